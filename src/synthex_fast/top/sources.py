"""Where frames come from: the page's URL, or the Unix socket of a process of the same user."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, Protocol

from synthex_fast import _runtime_directory
from synthex_fast.exporters.page import _socket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["Page", "Process", "Source", "SourceError", "find", "processes"]

_SECONDS = 5.0
# More than a frame with everything in it: whoever answers with more is no page.
_LARGEST = 16 << 20
# How often one worker of several is asked for before another one's answer will do.
_TRIES = 12
LISTEN = "synthex_fast.exporters.page.listen()"


class SourceError(Exception):
    """There is no frame to be had; the message is one line that says why."""


class Source(Protocol):
    """Something that answers with frames. `frame` raises `SourceError`."""

    name: str

    def frame(self) -> dict[str, Any]: ...


class Process:
    """A process with a socket of its own (`synthex_fast.exporters.page.listen`)."""

    def __init__(self, pid: int, path: str) -> None:
        self.pid, self.path = pid, path
        self.name = f"process {pid}"

    def frame(self) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SECONDS)
            try:
                connection.connect(self.path)
                self._check(_socket.peer(connection))
                answer = b""
                while part := connection.recv(1 << 16):
                    answer += part
                    if len(answer) > _LARGEST:
                        raise SourceError(f"{self.name} sends more than a frame")
            except OSError as error:
                raise SourceError(self._why(error)) from None
        return _parsed(answer, self.name)

    def _check(self, peer: tuple[int | None, int] | None) -> None:
        """A child that has inherited the socket, or a process that has the name of another, doesn't count."""
        if peer is None:
            return
        pid, user = peer
        if user != os.geteuid():
            raise SourceError(f"the socket of {self.name} belongs to another user (uid {user})")
        if pid not in (None, self.pid):
            raise SourceError(f"the socket of {self.name} is served by process {pid}")

    def _why(self, error: OSError) -> str:
        if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK):
            return f"{self.name} has ended" if not _exists(self.pid) else f"{self.name} no longer answers"
        return f"{self.name} does not answer: {error.strerror or error}"


class Page:
    """A page that is mounted in a server."""

    def __init__(self, url: str) -> None:
        import urllib.parse

        parts = urllib.parse.urlsplit(url)
        try:
            valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            valid = False
        if not valid:
            raise SourceError(f"not a URL of a page: {url!r} (such as http://localhost:8000/synthex)")
        self.name = url
        self._url = urllib.parse.urlunsplit(
            (parts.scheme, parts.netloc, parts.path.rstrip("/") + "/frame", "", "")
        )
        # The process that has answered. Any of a server's workers may answer the next request: then it is repeated.
        self._of = ""

    def frame(self) -> dict[str, Any]:
        from urllib.parse import urlencode

        tries = _TRIES if self._of else 0
        while True:
            answer = self._answer(f"?{urlencode({'of': self._of})}" if tries else "")
            # Another worker only says that it is another.
            if not tries or b'"components"' in answer:
                break
            tries -= 1
        frame = _parsed(answer, self.name)
        self._of = str(frame.get("id", ""))
        return frame

    def _answer(self, query: str) -> bytes:
        import http.client
        import urllib.error
        import urllib.request

        # No proxy: the page answers clients on its own machine, and refuses one.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self._url + query, headers={"accept": "application/json"})
        try:
            with opener.open(request, timeout=_SECONDS) as response:
                return bytes(response.read(_LARGEST))
        except urllib.error.HTTPError as error:
            with error:
                is_text = error.headers.get_content_type() == "text/plain"
                text = _line(error.read(500)) if is_text else ""
            raise SourceError(
                f"{self.name} answers {error.code} {error.reason}{text and ': ' + text}"
            ) from None
        except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise SourceError(
                f"{self.name} does not answer: {getattr(reason, 'strerror', None) or reason}"
            ) from None


def _line(text: bytes) -> str:
    return " ".join(_printable(text.decode("utf-8", "replace")).split())


def _printable(value: Any) -> Any:
    """Without what a terminal would obey, in every text of a frame: its names are those of another program."""
    if isinstance(value, str):
        return (
            value if value.isprintable() else "".join(each if each.isprintable() else " " for each in value)
        )
    if isinstance(value, list):
        return [_printable(each) for each in value]
    if isinstance(value, dict):
        return {_printable(name): _printable(each) for name, each in value.items()}
    return value


def _parsed(answer: bytes, name: str) -> dict[str, Any]:
    if not answer:
        raise SourceError(f"{name} answers nothing")
    try:
        frame: dict[str, Any] = _printable(json.loads(answer))
        if isinstance(frame["pid"], int) and isinstance(frame["components"], list):
            return frame
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise SourceError(f"{name} does not answer with a page's figures")


def processes() -> list[Process]:
    """Those of this user that listen, by pid. Sockets of processes that have ended are removed."""
    found: dict[int, Process] = {}
    for pid, path in _sockets():
        if _is_served(path):
            found.setdefault(pid, Process(pid, path))
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
    return [found[pid] for pid in sorted(found)]


def _sockets() -> Iterator[tuple[int, str]]:
    if not _socket.SUPPORTED:
        return
    for directory in _runtime_directory.candidates():
        try:
            if not _runtime_directory.is_private(os.lstat(directory)):
                continue
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            stem, _, suffix = name.partition(".")
            path = os.path.join(directory, name)
            if suffix == "sock" and stem.isdecimal():
                with contextlib.suppress(OSError):
                    if stat.S_ISSOCK(os.lstat(path).st_mode):
                        yield int(stem), path


def _is_served(path: str) -> bool:
    """False for what a process has left behind that was killed, even if another has its pid by now."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SECONDS)
        try:
            connection.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            pass
    return True


def _exists(pid: int) -> bool:
    import psutil

    # Beyond a C int there is none, and asking raises.
    return pid < 1 << 31 and bool(psutil.pid_exists(pid))


def _of_process(pid: int) -> Process:
    for process in processes():
        if process.pid == pid:
            return process
    import psutil

    if not _exists(pid):
        raise SourceError(f"there is no process {pid}")
    with contextlib.suppress(psutil.Error):
        owner = psutil.Process(pid)
        if hasattr(os, "geteuid") and owner.uids().effective != os.geteuid():
            raise SourceError(f"process {pid} belongs to another user ({owner.username()})")
    raise SourceError(f"process {pid} does not answer: it has to call {LISTEN}, or give the URL of its page")


def find(text: str | None) -> Source | list[Process]:
    """What ``text`` names, a pid or a URL; without it the only process that listens, or the list of several.

    Raises `SourceError` if there is none.
    """
    if text is None:
        found = processes()
        if not found:
            raise SourceError(
                f"no process of this user listens: it has to call {LISTEN}, or give the URL of its page"
            )
        return found[0] if len(found) == 1 else found
    if text.isdecimal() and text.isascii():
        # Longer than any pid, and more digits than int() may take.
        return _of_process(int(text[:20]))
    return Page(text)
