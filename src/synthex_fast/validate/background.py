"""Runs a service's background tasks in a thread, which pauses while there is no load."""

import threading
import time
from collections.abc import Callable

Task = tuple[float, Callable[[], float]]


class Background:
    """Runs each task when it is due, counted in seconds of load: no time passes during another arm's turn.

    A service samples its memory at intervals for as long as it runs. Counting only the seconds of
    its own rounds keeps that rate unchanged, and keeps the samples out of the other arms' rounds.
    """

    def __init__(self, tasks: list[Task]):
        self._due = list(tasks)
        self._changed = threading.Condition()
        self._loaded = 0.0  # seconds of load in the rounds that are over
        self._since: float | None = None  # when the present round began
        if tasks:
            threading.Thread(target=self._run, name="background", daemon=True).start()

    def resume(self) -> None:
        with self._changed:
            self._since = time.perf_counter()
            self._changed.notify()

    def pause(self) -> None:
        """Returns when no task is running and none will until `resume`."""
        with self._changed:
            self._loaded = self._now()
            self._since = None

    def _now(self) -> float:
        return self._loaded + (0.0 if self._since is None else time.perf_counter() - self._since)

    def _run(self) -> None:
        # The condition is held while a task runs, so that `pause` waits for it; the load never takes it.
        with self._changed:
            while True:
                when, task = min(self._due, key=lambda entry: entry[0])
                if self._since is None:
                    self._changed.wait()
                elif (wait := when - self._now()) > 0:
                    self._changed.wait(wait)
                else:
                    self._due.remove((when, task))
                    self._due.append((self._now() + task(), task))
