"""`AdaptiveMemoryMonitor`: samples memory, keeps its history, calls back under pressure, and finds leaks.

One lock guards all of the monitor's state. It is reentrant, because a finalizer may sample while its own thread is
sampling; such a sample is returned but not recorded (`_busy`). Callbacks run without the lock, after the sample that
caused them has been recorded. numpy is imported when the history is first read.

Before a fork, running monitors stop; afterwards they start again in both processes, and in the child with an empty
history. At the interpreter's exit they stop.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import weakref
from typing import TYPE_CHECKING, Any

from synthex_fast import _lifecycle, _unraisable
from synthex_fast._arguments import finite_number, one_of, refuse_awaited, want_callable, whole_number
from synthex_fast._pressure import LEVELS, NORMAL
from synthex_fast._readings import container_state
from synthex_fast._threads import RLock
from synthex_fast.errors import ArgumentTypeError
from synthex_fast.monitor.history import DAY, History
from synthex_fast.monitor.sampling import AdaptiveInterval, MemorySampler
from synthex_fast.monitor.thread import SamplingThread
from synthex_fast.monitor.trend import LeakDetector, measure_trend
from synthex_fast.monitor.wakeups import GrowthThreshold, burst

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import NoReturn

    import numpy as np
    import numpy.typing as npt

    from synthex_fast._pressure import MemoryReadings
    from synthex_fast.monitor.sampling import Sample
    from synthex_fast.monitor.trend import Leak, Trend

    Callback = Callable[[str, Sample], object]

__all__ = ["AdaptiveMemoryMonitor"]

_LEAST_INTERVAL = 0.01


class AdaptiveMemoryMonitor:
    """Samples memory often while it changes and rarely while it is stable; reports pressure and leaks.

    ``base_interval`` and ``max_interval`` are the seconds between samples while memory varies and while it is stable,
    judged by the last ``stability_window`` samples. ``limit`` is the limit of the process's resident size: bytes,
    ``"2GB"``, or ``"80%"`` of the container's limit (of the host's memory outside of a container). None is the
    container's limit.

    Two shares are compared, and the larger counts (`Sample` has ``used`` and ``limit`` of that one): resident size
    against ``limit``, and, in a container, its working set against the container's limit. The working set is what is
    charged to the container minus what the kernel can reclaim. Outside of a container and without a ``limit``, it is
    the host's memory that counts, except what is available.

    A thread samples from `start` to `stop`, or inside ``with``; it ends when nothing refers to the monitor any more.
    After a fork the child has its own thread and an empty history. Any method may be called from any thread and from
    callbacks. ``readings`` and ``clock`` replace the sources of memory figures and time.

    >>> monitor = AdaptiveMemoryMonitor()
    >>> monitor.sample().rss > 0
    True
    >>> monitor.history().dtype.names
    ('time', 'seconds', 'samples', 'rss', 'charge', 'limit', 'available', 'swap', 'gc_seconds', 'blocks')
    >>> with monitor:
    ...     monitor.running
    True
    """

    def __init__(
        self,
        base_interval: float = 5.0,
        max_interval: float = 60.0,
        stability_window: int = 10,
        *,
        limit: int | float | str | None = None,
        readings: MemoryReadings | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        shortest = _interval("base_interval", base_interval, _LEAST_INTERVAL)
        longest = _interval("max_interval", max_interval, shortest)
        window = whole_number("stability_window", stability_window, 2, 1000)
        self._clock = want_callable("clock", clock, optional=True) or time.monotonic
        self._sampler = MemorySampler(limit, readings)
        self._pace = AdaptiveInterval(shortest, longest, window)
        self._lock = RLock()
        self._thread: SamplingThread | None = None
        # Index of the level and callback, by ticket. Replaced, never changed: a sample may be iterating over it.
        self._callbacks: dict[int, tuple[int, Callback]] = {}
        self._tickets = 0
        self._history = History()
        self._leaks = LeakDetector()
        self._threshold = GrowthThreshold()
        self._clear()
        number = next(_numbers)

        def forget(reference: object, pop: Callable[[int, None], object] = _monitors.pop) -> None:
            pop(number, None)

        _monitors[number] = weakref.ref(self, forget)

    def _clear(self) -> None:
        """Return to the state before the first sample."""
        for part in (self._sampler, self._pace, self._history, self._leaks, self._threshold):
            part.clear()
        self._level = NORMAL
        self._busy = False
        self._interval = self._pace.shortest
        self._due = -math.inf
        # Of the threads that have ended.
        self._gc_seconds = 0.0
        self._samples = self._wakeups = self._events = 0

    # ---- Sampling ----

    def sample(self) -> Sample:
        """Take a sample now, record it, and call back if pressure has changed.

        Resident size and charge are always read; the rest is read if it is a minute old or the level changes. About 10
        microseconds, 35 once a minute.
        """
        taken, calls = self._take_sample()
        for level, callback in calls:
            self._call(callback, level, taken)
        return taken

    def _take_sample(self) -> tuple[Sample, list[tuple[str, Callback]]]:
        # Short, because CPython 3.11 can't leave a block far down in a function if no memory is left.
        with self._lock:
            now = self._clock()
            taken = self._read_memory(now)
            if self._busy:
                return taken, []
            self._busy = True
            try:
                return taken, self._apply(now, taken)
            finally:
                self._busy = False

    def _read_memory(self, now: float) -> Sample:
        thread = self._thread
        gc_seconds = self._gc_seconds + (0.0 if thread is None else thread.collections.seconds)
        return self._sampler.read(now, self._level, gc_seconds)

    def _apply(self, now: float, taken: Sample) -> list[tuple[str, Callback]]:
        """Record the sample and adopt its level; return the callbacks to call, each with its level."""
        before, level = self._level, LEVELS.index(taken.level)
        calls: list[tuple[str, Callback]] = []
        if level > before:
            for begun in range(before + 1, level + 1):
                calls += [(LEVELS[n], callback) for n, callback in self._callbacks.values() if n == begun]
        elif level == NORMAL < before:
            calls = [(LEVELS[NORMAL], callback) for n, callback in self._callbacks.values() if n == NORMAL]
        distance = burst(taken.rss, self._sampler.least_limit)
        values = (
            taken.rss,
            taken.charge or 0,
            taken.limit,
            taken.available,
            taken.swap,
            taken.gc_seconds,
            taken.blocks,
        )
        self._record(now, values, taken.time)
        self._level = level
        self._samples += 1
        if self._thread is not None:
            self._thread.note_sample(taken.rss, distance)
        return calls

    def _record(self, now: float, values: Sequence[float], wall: float | None = None) -> None:
        """Add the seven metrics, seen at ``now`` on the monitor's clock, to the history."""
        self._history.record(now, now if wall is None else wall, values)

    def calculate_next_interval(self, current_memory: float) -> float:
        """Seconds until the next sample, given that the latest one saw ``current_memory``.

        The rule comes from the report, the analysis of a Python service's memory use that this package answers, but is
        independent of units: it uses the coefficient of variation (standard deviation divided by mean) of the last
        ``stability_window`` samples instead of their variance. Below 0.01 the interval is ``max_interval``, below 0.05
        half of it, below 0.1 a quarter of it (60, 30 and 15 seconds by default), but never less than
        ``base_interval``. From 0.1 on, and until the window is full, it is ``base_interval``. Memory of zero throughout
        is stable; any other mean of zero or less is not. O(stability_window).

        >>> monitor = AdaptiveMemoryMonitor(stability_window=3)
        >>> [monitor.calculate_next_interval(memory) for memory in (100e6, 100e6, 100.5e6, 130e6)]
        [5.0, 5.0, 60.0, 5.0]
        """
        memory = finite_number("current_memory", current_memory)
        with self._lock:
            return self._pace.after(memory)

    # ---- History, trend and leaks ----

    def history(self) -> npt.NDArray[np.void]:
        """All samples, oldest first, in rows of 5 seconds for an hour, 5 minutes for a day and an hour for a month.

        Returns a structured array that belongs to the caller. ``time`` is the Unix time of a row's first sample,
        ``seconds`` the row's width and ``samples`` how many it holds; times without samples have no row. Each metric
        (``rss``, ``charge``, ``limit``, ``available`` and ``swap`` in bytes, ``gc_seconds`` since the start,
        ``blocks``) has ``min`` and ``max``, so ``history()["rss"]["max"]`` are the peaks. ``charge`` is 0 outside of a
        container.
        Rows follow the monotonic clock: if the system's clock is set back, ``time`` goes back as well.
        """
        with self._lock:
            rows: npt.NDArray[np.void] = self._history.read()
        return rows

    def trend(self, seconds: float | None = None) -> Trend:
        """The slope of the floor of resident memory over the last ``seconds`` (None: all history), and its confidence.

        The floor is the least of each of up to 96 blocks of time. The slope is that of Theil and Sen; the confidence
        comes from the test of Mann and Kendall, corrected for ties and serial correlation (`theil_sen` and
        `mann_kendall` name the papers). For falling memory it is the confidence of the fall. Takes 2 milliseconds at
        most.
        """
        if seconds is not None:
            seconds = finite_number("seconds", seconds, "at least 1 second, or None", least=1.0)
        with self._lock:
            times, values = self._history.floor()
        return measure_trend(times, values, seconds)

    def leak(self) -> Leak:
        """Whether memory grows the way a leak does, how fast, and how certain that is.

        The last 2.5 hours, 8 hours, day and 9 days are each checked for a rise of the floor of resident memory that

        - is at least 1 % over the window and 1 % a day,
        - is significant (Mann-Kendall, p below 0.005),
        - is spread over the window, unlike a step or the last tooth of a saw, and
        - leaves memory higher than it ever was, by three quarters of the deepest fall so far.

        A leak of 1 % an hour is found within 3 hours if traffic alone moves the floor by less. One that is hidden by a
        larger daily cycle is found once it exceeds the cycle, or after 9 days.

        A verdict stands for as long as its window unless memory falls. With less than a day of history, the rising part
        of a daily cycle looks like a leak, and ``text`` warns of it; so does the first peak of a longer cycle, such as
        a week's, without a warning. Takes a few milliseconds at most.

        >>> bool(AdaptiveMemoryMonitor().leak())
        False
        """
        with self._lock:
            times, values = self._history.floor()
        return self._leaks.detect(times, values)

    # ---- Pressure ----

    @property
    def level(self) -> str:
        """The level at the last sample.

        ``"normal"`` below 70 % of the limit, ``"warning"`` from 70 %, ``"high"`` from 80 %, ``"critical"`` from 90 %,
        ``"emergency"`` from 95 %. A level ends 3 percentage points below where it begins.
        """
        return LEVELS[self._level]

    def on_pressure(self, level: str, callback: Callback) -> Callable[[], None]:
        """Call ``callback(level, sample)`` each time pressure rises to ``level`` or past it.

        If pressure jumps over several levels, their callbacks are called from the lowest level up, each with the level
        it was registered for. Callbacks for ``"normal"`` are called when pressure has fallen back to it. They run
        without a lock in the thread that sampled, and every figure in the sample but ``blocks`` is current. What they
        raise goes to ``sys.unraisablehook``. Returns a function that unregisters the callback.

        >>> monitor = AdaptiveMemoryMonitor()
        >>> unregister = monitor.on_pressure("high", lambda level, sample: print(level, sample.used))
        >>> unregister()
        """
        index = LEVELS.index(one_of("level", level, LEVELS))
        want_callable("callback", callback)
        with self._lock:
            self._tickets += 1
            ticket = self._tickets
            self._callbacks = {**self._callbacks, ticket: (index, callback)}
        reference = weakref.ref(self)

        def unregister() -> None:
            monitor = reference()
            if monitor is not None:
                with monitor._lock:
                    callbacks = dict(monitor._callbacks)
                    # Released after unlocking.
                    removed = callbacks.pop(ticket, None)
                    monitor._callbacks = callbacks
                del removed

        return unregister

    @staticmethod
    def _call(callback: Callback, level: str, sample: Sample) -> None:
        try:
            refuse_awaited("callback", callback(level, sample))
        except BaseException as error:
            _unraisable.report(error, callback)

    # ---- The thread ----

    @property
    def running(self) -> bool:
        """Whether the thread samples."""
        thread = self._thread
        return thread is not None and not thread.over

    def start(self) -> None:
        """Sample in a thread until `stop`. Does nothing if it is running or the interpreter is exiting."""
        with self._lock:
            if self.running or _lifecycle.is_exiting():
                return
            thread = SamplingThread(self, self._sampler.readings, self._sampler.kernel)
            # Sample at once; earlier events no longer matter.
            self._due = -math.inf
            self._threshold.forget()
            try:
                thread.start()
            except RuntimeError as error:
                # No thread can be started at the interpreter's exit, and none is needed.
                if "shutdown" not in str(error):
                    raise
                return
            self._thread = thread

    def stop(self) -> None:
        """End the thread and wait for it, unless called from it. History and callbacks stay.

        Waits a second at most for a callback that is running. Does nothing if the thread is not running.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._gc_seconds += thread.collections.seconds
        if thread is not None:
            thread.end()
            thread.join()

    def __enter__(self) -> AdaptiveMemoryMonitor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _on_wakeup(self, thread: SamplingThread, event: bool, muted: bool) -> float:
        """Sample if a sample is due or the kernel woke the thread. Return the next due time (``time.monotonic()``)."""
        self._wakeups += 1
        now = time.monotonic()
        if muted and not event and now < self._due:
            # The thread woke up only to end the muting.
            return self._due
        try:
            taken = self.sample()
            if event:
                self._events += 1
            # The host's figures change with other processes. Shares, because used and limit may be of another pair now.
            memory = taken.used / taken.limit if self._sampler.bounded else taken.rss
            self._interval = self.calculate_next_interval(memory)
            if thread.waker.has_threshold and not thread.over:
                self._threshold.update(
                    thread.waker,
                    taken,
                    event,
                    self._sampler.kernel.container,
                    burst(taken.rss, self._sampler.least_limit),
                    self._sampler.until_next_level(taken),
                )
        except MemoryError:
            raise
        except Exception as error:
            # The kernel's files may fail; the next sample tries again.
            _unraisable.report(error, self.sample)
        self._due = now + self._interval
        return self._due

    # ---- Cost ----

    @property
    def nbytes(self) -> int:
        """Size of the history in bytes, which does not depend on the uptime."""
        return self._history.nbytes

    @property
    def stats(self) -> dict[str, Any]:
        """Counts since the start, and how the kernel wakes the monitor.

        ``running``, ``level``, ``interval`` (seconds), ``samples``, ``wakeups`` (of the thread), ``events`` (wake-ups
        by the kernel), ``slow_readings`` (of the figures read once a minute), ``cpu_seconds`` (of the thread),
        ``nbytes``, ``wake`` (what can end a sleep early) and ``wake_cost``. ``limit`` is the limit given, in bytes or
        None, and ``requested_limit`` what was asked for: more than the machine has is clamped. ``container`` is
        ``limited``, ``none``, or ``unknown`` if the container's limits can't be read.
        """
        with self._lock:
            thread, running = self._thread, self.running
            waker = thread.waker if thread is not None and running else None
            return {
                "running": running,
                "level": self.level,
                "interval": self._interval,
                "samples": self._samples,
                "wakeups": self._wakeups,
                "events": self._events,
                "slow_readings": self._sampler.slow_readings,
                "cpu_seconds": 0.0 if thread is None else thread.cpu_seconds,
                "nbytes": self.nbytes,
                "wake": None if waker is None else waker.how,
                "wake_cost": None if waker is None else waker.cost,
                "limit": self._sampler.limit,
                "requested_limit": self._sampler.requested,
                "container": container_state(self._sampler.readings),
            }

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(
            f"{type(self).__name__} can't be pickled or copied: it belongs to this process; its stats can"
        )


def _interval(name: str, value: float, least: float) -> float:
    return finite_number(name, value, f"seconds from {least:g} to {DAY:g}", least=least, most=DAY)


# ---- Fork and exit ----

# Weak references to all monitors, and the monitors stopped for a fork.
_monitors: dict[int, weakref.ref[AdaptiveMemoryMonitor]] = {}
_numbers = itertools.count()
_paused: list[AdaptiveMemoryMonitor] = []


def _all_monitors() -> list[AdaptiveMemoryMonitor]:
    return [
        monitor for monitor in (reference() for reference in list(_monitors.values())) if monitor is not None
    ]


def _before_fork() -> None:
    for monitor in _all_monitors():
        if monitor.running:
            _paused.append(monitor)
            monitor.stop()


def _resume() -> None:
    while _paused:
        # If no thread can be started now, the user must call start() again.
        with contextlib.suppress(Exception):
            _paused.pop().start()


def _resume_in_child() -> None:
    for monitor in _all_monitors():
        # A thread that does not exist here may be holding the old lock.
        monitor._lock = RLock()
        thread, monitor._thread = monitor._thread, None
        if thread is not None and not thread.over:
            # Another thread started it after it had stopped for the fork; its thread is the parent's.
            thread.abandon()
            _paused.append(monitor)
        monitor._clear()
    _resume()


def _stop_all() -> None:
    for monitor in _all_monitors():
        monitor.stop()


_lifecycle.register(
    _lifecycle.Stage.MONITOR,
    before=_before_fork,
    after_in_parent=_resume,
    after_in_child=_resume_in_child,
    at_exit=_stop_all,
)
