"""The watcher: a daemon thread that sleeps on a queue until the callback or a request wakes it."""

from __future__ import annotations

import contextlib
from _queue import Empty

from synthex_fast import _threads, _unraisable
from synthex_fast._threads import SimpleQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# How long the watcher pauses after an allocation failed.
WITHOUT_MEMORY_SECONDS = 0.05


class Watcher:
    """Calls ``step(run)`` each time it is woken, and again after as many seconds as that returns, if not negative.

    It ends when it is dismissed, or when ``is_current(run)`` is false: each start and each forked child is a run.
    """

    __slots__ = ("_is_current", "_queue", "_step", "dozing", "restart_due", "thread")

    def __init__(self, is_current: Callable[[int], bool], step: Callable[[int], float]) -> None:
        self._is_current = is_current
        self._step = step
        # The queue may be put into anywhere, even by a finaliser in the middle of a put.
        self._queue: SimpleQueue[None] = SimpleQueue()
        self.thread: _threads.Thread | None = None
        self.reset(False)

    def reset(self, dozing: bool) -> None:
        # Whether it sleeps until a request wakes it, because no collection does.
        self.dozing = dozing
        # After a fork it is restarted with the first request: the interpreter warns when a process with threads forks.
        self.restart_due = False

    def reset_queue(self) -> None:
        """In a forked child: the parent's may be in any state."""
        self._queue = SimpleQueue()

    def start(self, run: int) -> None:
        queue = self._queue = SimpleQueue()
        thread = self.thread = _threads.new_thread(
            lambda me: self._loop(me, run, queue), "synthex-fast-gc-tuner"
        )
        try:
            thread.start()
        except BaseException:
            self.thread = None
            raise

    def wake(self) -> None:
        queue = self._queue
        if queue.empty():
            queue.put(None)

    def dismiss(self) -> _threads.Thread | None:
        """Make the thread end; returns it, for `wait_for`."""
        thread, self.thread = self.thread, None
        if thread is not None:
            self.wake()
        return thread

    @staticmethod
    def wait_for(thread: _threads.Thread | None) -> None:
        # Bounded, because a finaliser that the thread runs may be waiting for a lock of the caller's. A thread that
        # another one has yet to start ends by itself.
        _threads.join(thread, 1.0)

    def end(self) -> None:
        self.wait_for(self.dismiss())

    def _loop(self, me: _threads.Thread, run: int, queue: SimpleQueue[None]) -> None:
        seconds = -1.0
        # Checked before sleeping too: nothing wakes a thread that was dismissed before it began.
        while self._is_current(run) and self.thread is me:
            try:
                with contextlib.suppress(Empty):
                    queue.get(True, None if seconds < 0 else seconds)
                if not self._is_current(run) or self.thread is not me:
                    return
                seconds = self._step(run)
            except MemoryError:
                # Even sleeping may take memory; another thread may free some in the meantime.
                _threads.sleep(WITHOUT_MEMORY_SECONDS)
                seconds = WITHOUT_MEMORY_SECONDS
            except Exception as error:
                _unraisable.report(error, self._step)
                seconds = 1.0
