"""Threads, locks and sleeps of the operating system, also in a program that gevent has patched.

``gevent.monkey.patch_all()`` makes a greenlet of each new thread, and replaces locks, queues, ``poll`` and ``sleep`` by
ones that switch to another greenlet. The package's threads must run beside the event loop: none may wait for a turn in
it, nor start a second loop in its own thread. So this module has the interpreter's own primitives. It makes no
difference whether gevent patches before it is imported, afterwards, or while threads run.

Two conditions go with that. A greenlet that waits here keeps all others waiting, so each such wait is bounded and
short. And greenlets of one thread share its locks, identifier and thread-local values, so none may give way to another
while it holds a lock.
"""

from __future__ import annotations

import _thread
import sys
import threading
import time
from _queue import SimpleQueue  # gevent replaces the one in `queue`
from _thread import RLock  # gevent replaces the one in `threading`
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any, TypeAlias

__all__ = [
    "Condition",
    "RLock",
    "SimpleQueue",
    "get_ident",
    "join",
    "local",
    "main_thread_has_ended",
    "new_thread",
    "original",
    "sleep",
]


def original(module: ModuleType, name: str) -> Any:
    """What the module had under that name before gevent patched it, if it did."""
    monkey = sys.modules.get("gevent.monkey")
    return getattr(module, name) if monkey is None else monkey.get_original(module.__name__, name)


get_ident: Callable[[], int] = original(_thread, "get_ident")
sleep: Callable[[float], None] = original(time, "sleep")
local = original(_thread, "_local")
_allocate_lock = original(_thread, "allocate_lock")
_start_new_thread = original(_thread, "start_new_thread")
# gevent also replaces the method of each thread that runs while it patches.
_join = original(threading, "Thread").join


class Condition(RLock):  # type: ignore[misc]
    """Like `threading.Condition` with a reentrant lock.

    It is the lock, so that ``with`` calls functions in C. A signal handler that raises as one in Python begins, or
    before it returns, would leave the lock held.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()

    def wait(self, seconds: float | None = None, waiter: Any = None) -> bool:
        """Release the lock until notified, or for that time; return whether it was notified.

        ``waiter`` is the lock to wait for, which is held; it may be one that returns early.
        """
        if waiter is None:
            waiter = _allocate_lock()
            waiter.acquire()
        self._waiting.append(waiter)
        notified: bool = False
        held = self._release_save()  # type: ignore[attr-defined]
        try:
            notified = waiter.acquire(True, -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX))
        finally:
            self._acquire_restore(held)  # type: ignore[attr-defined]
            if not notified:
                try:  # noqa: SIM105
                    self._waiting.remove(waiter)
                except ValueError:
                    pass
        return notified

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until that is true, but not for longer than ``seconds``."""
        end = time.monotonic() + seconds
        while not condition() and (left := end - time.monotonic()) > 0:
            self.wait(left)

    def notify_all(self) -> None:
        while self._waiting:
            self._waiting.popleft().release()


class _SystemThread:
    """A thread that `threading` does not know. Ends without a trace there, even if that is patched in the meantime."""

    daemon = True

    def __init__(self, run: Callable[[Thread], object], name: str) -> None:
        self.name = name
        self.ident: int | None = None
        self._run = run
        # Held while it runs.
        self._running: _thread.LockType = _allocate_lock()

    def start(self) -> None:
        self._running.acquire()
        try:
            self.ident = _start_new_thread(self._bootstrap, ())
        except BaseException:
            self._running.release()
            raise

    def _bootstrap(self) -> None:
        # Not yet set by `start`, if this thread is faster.
        self.ident = get_ident()
        try:
            self._run(self)
        finally:
            del self._run
            self._running.release()

    def is_alive(self) -> bool:
        return self._running.locked()

    def join(self, seconds: float) -> None:
        if self._running.acquire(True, seconds):
            self._running.release()


class _KnownThread(threading.Thread):
    """A thread of `threading`'s, which debuggers, profilers and users see by its name."""

    def __init__(self, run: Callable[[Thread], object], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._call = run

    def run(self) -> None:
        try:
            self._call(self)
        finally:
            del self._call
            if _is_patched():
                # gevent has patched `threading` since the start, which will look for the thread by its greenlet.
                active = threading._active  # type: ignore[attr-defined]
                active[threading.get_ident()] = active.pop(get_ident(), self)


if TYPE_CHECKING:
    Thread: TypeAlias = _SystemThread | _KnownThread


def new_thread(run: Callable[[Thread], object], name: str) -> Thread:
    """A daemon thread that will call ``run(thread)``.

    A program that has imported gevent may patch at any time, and gevent then prepares the locks of a program without
    other threads only. So there it is one that `threading` does not know.
    """
    return (_SystemThread if "gevent" in sys.modules else _KnownThread)(run, name)


def join(thread: Thread | None, seconds: float) -> None:
    """Wait for the thread to end, ``seconds`` at most; not at all for the current one, or if it has not started."""
    if thread is None or thread.ident in (None, get_ident()):
        return
    if isinstance(thread, _KnownThread):
        _join(thread, seconds)
    else:
        thread.join(seconds)


def _is_patched() -> bool:
    return threading.get_ident is not get_ident


def main_thread_has_ended() -> bool:
    """Whether the interpreter has begun to wait for the other threads, which it does before it exits."""
    # gevent waits for greenlets only, and asking it switches to another one.
    return not _is_patched() and not threading.main_thread().is_alive()
