"""The monitor's background thread, and the timing of garbage collections while it runs.

A `SamplingThread` is one run, from `start` to `stop`. It refers to its monitor strongly only while it samples, and
weakly otherwise, so it ends once nothing else refers to the monitor. It also ends once its run is `over`, which it
checks after every sleep.

Neither a failing callback nor a failed allocation ends the thread. After the latter it pauses and tries again.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
import weakref
from typing import TYPE_CHECKING

from synthex_fast import _threads
from synthex_fast.monitor.wakeups import LEAST_BURST, Waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthex_fast._pressure import KernelReadings, MemoryReadings
    from synthex_fast.monitor.monitor import AdaptiveMemoryMonitor

__all__ = ["CollectionTimer", "SamplingThread"]

# After an event, further ones are ignored for this long, which bounds the cost of a burst of them.
_MUTED_SECONDS = 0.8
# If the kernel can't wake the thread, resident size is checked after a collection, at most this often.
_CHECK_SECONDS = 1.0
# Bounded, because a user's callback may be waiting for a lock that the caller of stop() holds.
_JOIN_SECONDS = 1.0
# Pause before the next attempt if allocation fails: in a sample, and even outside of one.
_RETRY_SAMPLE_SECONDS = 1.0
_RETRY_SECONDS = 0.05


class CollectionTimer:
    """Adds up the time spent in the garbage collector; an entry in ``gc.callbacks``."""

    __slots__ = ("_began", "after", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began: float | None = None
        # Called after each collection.
        self.after: Callable[[float], None] | None = None

    def __call__(
        self, phase: str, info: dict[str, int], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if phase == "start":
            self._began = clock()
            return
        now = clock()
        if self._began is not None:
            self.seconds += now - self._began
            self._began = None
        after = self.after
        if after is not None:
            after(now)


class SamplingThread:
    """One run of the thread."""

    def __init__(
        self, monitor: AdaptiveMemoryMonitor, readings: MemoryReadings, kernel: KernelReadings
    ) -> None:
        self.over = False
        self.waker = Waker()
        self.collections = CollectionTimer()
        self.cpu_seconds = 0.0
        self._monitor = weakref.ref(monitor, self._monitor_released)
        self._readings = readings
        self._kernel = kernel
        self._thread = _threads.new_thread(lambda me: self._run(), "synthex-fast-monitor")
        self._check_at = 0.0
        self._rss = 0
        self._burst = LEAST_BURST

    def start(self) -> None:
        try:
            gc.callbacks.append(self.collections)
            self._thread.start()
        except BaseException:
            self.end()
            self.waker.close()
            raise

    def _subscribe(self) -> None:
        # In the thread: the kernel may take a second, and the caller of `start` may be an event loop or a fork.
        self.waker.subscribe(self._kernel.container, self._kernel.root)
        if not self.waker.has_threshold:
            self.collections.after = self._check_growth

    def _monitor_released(self, reference: object) -> None:
        self.end()

    def end(self) -> None:
        """Make the thread end. May be called anywhere, even during a garbage collection."""
        self.abandon()
        self.waker.wake()

    def abandon(self) -> None:
        """Mark the run as over without waking the thread, which after a fork does not exist."""
        self.over = True
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self.collections)

    def join(self) -> None:
        """Wait for the thread, unless called from it, and not for longer than a second."""
        _threads.join(self._thread, _JOIN_SECONDS)

    def note_sample(self, rss: int, burst: int) -> None:
        """Growth is measured from this resident size; ``burst`` bytes of it wake the thread."""
        self._rss = rss
        self._burst = burst

    def _check_growth(self, now: float) -> None:
        if now >= self._check_at:
            self._check_at = now + _CHECK_SECONDS
            # The next sample will report the same error.
            with contextlib.suppress(OSError):
                if self._readings.rss() - self._rss > self._burst:
                    self.waker.wake()

    def _run(self) -> None:
        seconds = 0.0
        muted_until = -math.inf
        muted = event = subscribed = False
        monitor: AdaptiveMemoryMonitor | None = None
        try:
            while not self.over:
                try:
                    if not subscribed:
                        self._subscribe()
                        subscribed = True
                    if seconds > 0:
                        event = self.waker.sleep(seconds)
                        if self.over:
                            return
                    now = time.monotonic()
                    monitor = self._monitor()
                    if monitor is None:
                        return
                    try:
                        due = monitor._on_wakeup(self, event, muted)
                    except MemoryError:
                        # Another thread may free some memory.
                        due = now + _RETRY_SAMPLE_SECONDS
                    # This may be the last reference, so no lock may be held here.
                    monitor = None
                    if self.over:
                        return
                    after = time.monotonic()
                    if event:
                        muted_until = now + _MUTED_SECONDS
                    if (muted_until > after) != muted:
                        self.waker.mute(not muted)
                        muted = not muted
                    seconds = max(0.001, min(due, muted_until if muted else math.inf) - after)
                    event = False
                    self.cpu_seconds = time.thread_time()
                except MemoryError:
                    # Even sleeping or reading the clock needs memory.
                    monitor = None
                    _threads.sleep(_RETRY_SECONDS)
        finally:
            self.end()
            self.waker.close()
