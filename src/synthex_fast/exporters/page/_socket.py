"""A Unix socket that answers with the current frame, for ``synthex-fast top PID``.

The protocol is the least there can be: whoever connects gets one frame as JSON, and the connection is closed. Nothing
is read from the peer. The socket is in a directory of this user's only, its name has the pid, and a peer of another
user gets nothing. A thread waits for peers; it sleeps in the kernel while there are none.

After a fork the parent's socket is the parent's: the child closes its copy and listens under its own pid.
"""

from __future__ import annotations

import _socket as _system  # what gevent leaves alone: the thread is the system's
import contextlib
import os
import socket
import struct
import sys

from synthex_fast import _lifecycle, _runtime_directory, _threads, _unraisable
from synthex_fast._lifecycle import Stage
from synthex_fast.exporters.page._feed import Feed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from synthex_fast.exporters._observed import Observed

__all__ = ["Listener", "listen", "peer"]

SUPPORTED = hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid")
# A peer that doesn't take its frame in this time gets no more of it.
_PEER_SECONDS = 1.0
# After accept() failed, for want of descriptors for example.
_RETRY_SECONDS = 0.2
_JOIN_SECONDS = 1.0
_INTERVAL = 0.5


def _directory() -> str:
    """The first that can be used, made if necessary. Raises OSError."""
    reason: OSError | None = None
    for path in _runtime_directory.candidates():
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            if _runtime_directory.is_private(os.lstat(path)):
                return path
            reason = PermissionError(f"{path} is not a directory of this user's only")
        except OSError as error:
            reason = error
    raise reason or OSError("no directory for the socket")


def peer(connection: Any) -> tuple[int | None, int] | None:
    """The pid (None if it can't be known) and the user at the other end; None where the system does not tell."""
    if hasattr(socket, "SO_PEERCRED"):
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", found)
        return pid, uid
    if sys.platform == "darwin":
        # LOCAL_PEERCRED of SOL_LOCAL: a struct xucred, which begins with its version and the user.
        _, uid = struct.unpack_from("2I", connection.getsockopt(0, 1, 76))
        return None, uid
    return None


class Listener:
    """A socket that `listen` has opened. ``path`` is where; `stop`, or leaving ``with``, closes and removes it."""

    def __init__(self, observed: Observed | None) -> None:
        self._feed = Feed(observed, _INTERVAL)
        self._socket: Any = None
        self._thread: Any = None
        self.path = ""

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._socket is not None

    def _start(self) -> None:
        path = os.path.join(_directory(), f"{os.getpid()}.sock")
        # Of a process that had the pid before and was killed.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        opened = _system.socket(_system.AF_UNIX, _system.SOCK_STREAM)
        try:
            opened.bind(path)
            try:
                os.chmod(path, 0o600)
                opened.listen(16)
                self._thread = _threads.new_thread(lambda me: self._run(opened), "synthex-fast-page")
                self._socket, self.path = opened, path
                self._thread.start()
            except BaseException:
                self._socket, self.path = None, ""
                os.unlink(path)
                raise
        except BaseException:
            opened.close()
            raise

    def _run(self, opened: Any) -> None:
        while self._socket is opened:
            try:
                descriptor, _ = opened._accept()
            except OSError:
                if self._socket is opened:
                    _threads.sleep(_RETRY_SECONDS)
                continue
            try:
                connection = _system.socket(_system.AF_UNIX, _system.SOCK_STREAM, 0, descriptor)
            except BaseException:
                os.close(descriptor)
                continue
            try:
                if self._socket is opened:
                    self._answer(connection)
            except OSError:
                # The peer left, or was too slow.
                pass
            except Exception as error:
                _unraisable.report(error, self)
            finally:
                connection.close()

    def _answer(self, connection: Any) -> None:
        connection.settimeout(_PEER_SECONDS)
        who = peer(connection)
        if who is not None and who[1] != os.geteuid():
            return
        connection.sendall(self._feed.frame_json().encode() + b"\n")

    def stop(self) -> None:
        """Close and remove the socket. No effect if that is done."""
        opened, path, thread = self._socket, self.path, self._thread
        if opened is None:
            return
        self._socket = self._thread = None
        with contextlib.suppress(OSError):
            os.unlink(path)
        # Closing alone does not wake a thread that waits in accept().
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)
        _threads.join(thread, _JOIN_SECONDS)
        opened.close()
        if _listener is self:
            _forget()

    def _after_fork_in_child(self) -> None:
        opened, self._socket, self._thread, self.path = self._socket, None, None, ""
        if opened is None:
            return
        opened.close()
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Listener at {self.path!r}>" if self.running else "<Listener, stopped>"


_listener: Listener | None = None


def _forget() -> None:
    global _listener
    _listener = None


def listen(observed: Observed | None = None) -> Listener:
    """Answer ``synthex-fast top`` of the same user from now on, over a Unix socket; returns what can stop it.

    ``observed`` is what is shown, by default the process's own. The socket is ``synthex-fast-UID/PID.sock``, the
    directory having mode 0700, in ``SYNTHEX_FAST_RUNTIME_DIR``, if set, or else in ``XDG_RUNTIME_DIR``, ``/dev/shm`` or
    the directory for temporary files. It is removed at `Listener.stop` and at exit. A forked child listens under its
    own pid. A process has one: if it listens already, that one is returned. Raises OSError if there is no such
    directory, or no Unix sockets.

    >>> from synthex_fast.exporters import page
    >>> with page.listen() as listener:
    ...     listener.running
    True
    """
    global _listener
    if not SUPPORTED:
        raise OSError("this system has no Unix sockets: mount the page, and give top its URL")
    if _listener is not None and _listener.running:
        return _listener
    listener = Listener(observed)
    listener._start()
    _listener = listener
    return listener


def _after_fork_in_child() -> None:
    if _listener is not None:
        _listener._after_fork_in_child()


def _at_exit() -> None:
    if _listener is not None:
        _listener.stop()


_lifecycle.register(Stage.PAGE, after_in_child=_after_fork_in_child, at_exit=_at_exit)
