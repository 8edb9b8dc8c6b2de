"""GCTuner itself: starts and stops, counts requests, and collects when `pacing` finds it due."""

from __future__ import annotations

import contextlib
import gc
import sys
import sysconfig
import time
import warnings

from synthex_fast import _lifecycle, _pressure, _readings, _unraisable
from synthex_fast._arguments import (
    one_of,
    positive_seconds,
    share_of_one,
    want_bool,
    want_callable,
    want_methods,
    whole_number,
)
from synthex_fast._fleet import turns
from synthex_fast._lifecycle import Stage
from synthex_fast._threads import RLock, sleep
from synthex_fast.errors import ArgumentTypeError, TunerRunningError
from synthex_fast.gc_tuner import requests
from synthex_fast.gc_tuner.collector import (
    COLLECTOR_METHODS,
    FREE_THREADED,
    INCREMENTAL,
    KINDS,
    MIDDLE_WITH_REQUESTS,
    CollectorSettings,
    collector_kind,
)
from synthex_fast.gc_tuner.memory import READING_LEAST_NS, READINGS_METHODS, MemoryWatch
from synthex_fast.gc_tuner.pacing import (
    FEW_FREED,
    Boundaries,
    Change,
    FullCollections,
    Limiter,
    YoungThreshold,
)
from synthex_fast.gc_tuner.pauses import (
    AUTOMATIC,
    BOUNDARY,
    DEBT,
    FORCED,
    IDLE,
    TRIM,
    WATERMARK,
    PauseStatistics,
)
from synthex_fast.gc_tuner.watcher import Watcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, NoReturn

    from synthex_fast._pressure import MemoryReadings
    from synthex_fast.gc_tuner.collector import Collector
    from synthex_fast.gc_tuner.requests import ASGIApplication, RSGIApplication, WSGIApplication

# Why there was no full collection.
BUSY, NOT_OUR_TURN = -1, -2
# A full collection that another thread's held up is retried after this.
RETRY_SECONDS = 0.001
# A full collection that waits for its turn, because a sibling is collecting, is retried after this.
TURN_SECONDS = 0.02
# The watcher's, where it sleeps for a time: the system's waits have a limit.
LONGEST_SLEEP = 3600.0


class GCTuner:
    """Keeps cyclic garbage collection out of requests, within a time budget and a memory limit.

    ``target_overhead`` is the share of wall time that collecting should take, above 0 and up to 0.5: full collections
    keep to it, and the young threshold rises towards it. ``memory_limit`` is in bytes, or text such as ``"512MB"`` or
    ``"80%"`` of the container; ``None`` is the container's limit, else the host's memory. With ``freeze``, `start`
    collects once and then excludes what is alive from every collection until `stop`, unless the service has frozen
    objects itself. In a forked child it freezes without collecting, which would copy each page shared with the parent;
    on the free-threaded build freezing copies them too, so start the tuner before the fork there.

    While it runs, every collection is measured. Full collections don't start by themselves inside a request: they
    wait until none is in flight, and happen only when memory has grown enough to make one worth while. The young
    threshold adapts to the time that collecting takes, its pauses and the memory available. At 85 % of the limit (64
    MB below a small one, but not under 70 %) a full collection happens even inside a request (``forced`` in `stats`).
    Of several workers in a container whose governors share its memory (see `MemoryGovernor`), one at a time collects
    fully, unless memory is above that mark; the others put theirs off (``turns_waited``).
    The tuner caps collection at 50 % of wall time and warns once (`RuntimeWarning`), unless the last collection found
    plenty of garbage and half of the reserve below the limit is gone: survival takes priority over latency. Until the
    first request the old generation is left to the interpreter.

    A request older than ``long_request`` seconds (infinity for never) no longer keeps collections away: it may be
    waiting for an event or a slow client. In `stats` it stays in flight, and is one of the ``long_requests``.

    One tuner runs in a process at a time, and it is kept alive while it runs. A request costs one to two microseconds.
    Raises `ArgumentValueError` and `ArgumentTypeError` for bad arguments.

    >>> from synthex_fast import GCTuner
    >>> tuner = GCTuner(memory_limit="90%")
    >>> with tuner:
    ...     with tuner.request():
    ...         answer = sum(range(10))
    ...     tuner.stats["requests"], tuner.stats["in_flight"]
    (1, 0)
    """

    def __init__(
        self,
        *,
        target_overhead: float = 0.01,
        memory_limit: int | float | str | None = None,
        freeze: bool = True,
        readings: MemoryReadings | None = None,
        clock: Callable[[], float] | None = None,
        collector: Collector | None = None,
        kind: str | None = None,
        long_request: float = 5.0,
    ) -> None:
        target = share_of_one("target_overhead", target_overhead, 0.5)
        self._freeze = want_bool("freeze", freeze)
        self._in_flight = requests.InFlight(positive_seconds("long_request", long_request) * 1e9)
        if readings is None:
            readings = _readings.Readings()
        else:
            want_methods("readings", readings, READINGS_METHODS)
        want_callable("clock", clock, optional=True)
        if collector is None:
            collector = gc
        else:
            want_methods("collector", collector, COLLECTOR_METHODS)
        if kind is None:
            kind = collector_kind(sys.hexversion, bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
        self._kind = one_of("kind", kind, KINDS)
        self._gc: Collector = collector
        self._settings = CollectorSettings(collector, kind)
        self._switched = self._settings.switched
        # A full collection is the only kind.
        self._only_full = kind == FREE_THREADED
        # Collected at the end of a request. The incremental collector's generation 1 is an increment of the old objects
        # instead: it may pass over the young ones, or begin by marking all that is alive, in one pause.
        self._boundary_generation = 0 if kind == INCREMENTAL else 1
        self._now: Callable[[], int] = time.perf_counter_ns if clock is None else lambda: int(clock() * 1e9)
        self._memory = MemoryWatch(readings, memory_limit)
        self._watcher = Watcher(self._is_current, self._watch)
        self._young = YoungThreshold(target)
        self._boundaries = Boundaries()
        self._full = FullCollections(target)
        self._limiter = Limiter()
        self._memory.reset(self._now())
        self._pauses = PauseStatistics(
            self._now,
            self._memory,
            self._read_before_collection,
            self._disarm_in_callback,
            self._watcher.wake,
        )
        self._lock = RLock()
        self._work = RLock()
        # 0 while it isn't running; otherwise unique to each start and each forked child.
        self._epoch = 0
        self._reset()

    def _reset(self) -> None:
        """Everything that is counted, as before the first start: also at each start and in a forked child."""
        now = self._started = self._ended = self._now()
        self._requests = 0
        self._turns_waited = 0
        self._serving = False
        self._in_flight.reset()
        self._pauses.reset()
        self._memory.reset(now)
        self._young.reset(now)
        self._boundaries.reset(now)
        self._full.reset(now, self._memory)
        self._limiter.reset(now)
        self._watcher.reset(dozing=self._switched)

    # Start and stop

    def start(self) -> None:
        """Take over the garbage collector. No effect if the tuner is already running.

        With ``freeze`` it costs one full collection, except in a forked child: there it freezes without one, and
        ``stats["collected_at_start"]`` is False. Raises `TunerRunningError` if another tuner is running.
        """
        global _running
        with _guard:
            if _running is self:
                return
            if _running is not None:
                raise TunerRunningError("another GCTuner is running in this process: stop it first")
            # Now, because an import is slow in a process that runs out of memory.
            _pressure.find_malloc_trim()
            self._start()
            _running = self

    def _start(self) -> None:
        settings = self._settings
        settings.save()
        try:
            if self._freeze:
                settings.freeze()
            self._reset()
            self._begin_reading()
            self._young.begin_at(settings.saved[0])
            with self._lock:
                self._epoch = _next_epoch()
                # In the middle of a collection, by a finaliser or another thread, the callback hears of its end first.
                self._pauses.callback("start", {})
                self._gc.callbacks.append(self._pauses.callback)
                self._gc.enable()
                self._set_thresholds()
            self._start_watcher()
        except BaseException:
            self._restore()
            raise

    def _begin_reading(self) -> None:
        memory = self._memory
        memory.read(self._now())
        memory.at_start = memory.rss
        self._full.mark_growth(memory)

    def stop(self) -> None:
        """Restore the collector's settings. No effect if the tuner isn't running.

        Requests in flight may end later; `stats` keeps its figures.
        """
        global _running
        with _guard:
            if _running is not self:
                return
            _running = None
            self._restore()
            # With the guard held: the next start has a watcher of its own.
            watcher = self._watcher.dismiss()
        self._watcher.wait_for(watcher)

    def _restore(self) -> None:
        with self._lock:
            self._epoch = 0
            self._ended = self._now()
            self._in_flight.reset()
            self._pauses.in_flight = 0
            self._remove_callback()
            self._settings.restore()

    def _remove_callback(self) -> None:
        callbacks = self._gc.callbacks
        for place, callback in enumerate(callbacks):
            if callback is self._pauses.callback:
                del callbacks[place]
                break

    def __enter__(self) -> GCTuner:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # Requests

    def request(self) -> requests.Request:
        """A request, in flight inside ``with``; the same object is a decorator.

        A call of a decorated function that returns an awaitable or a generator is in flight until that ends. No effect
        while the tuner isn't running.

        >>> from synthex_fast import GCTuner
        >>> tuner = GCTuner()
        >>> @tuner.request()
        ... def handle(n):
        ...     return n + 1
        >>> handle(1)
        2
        """
        return requests.Request(self)

    def asgi(self, app: ASGIApplication) -> ASGIApplication:
        """ASGI middleware: an HTTP request is in flight until the last part of its response is sent.

        From the first part of a streamed response on, such as server-sent events, it is in flight only while the
        application works on a part, not while it waits.
        A websocket is in flight while it works on a message, not while it waits for one; lifespan never is.
        """
        return requests.asgi(self, want_callable("app", app, may_await=True))

    def rsgi(self, app: RSGIApplication) -> RSGIApplication:
        """RSGI middleware, for granian: an HTTP request is in flight until the application's coroutine ends.

        From the call of ``response_stream`` on, and in a websocket, it is in flight only while the application runs,
        not while it waits. ``app`` is a function of scope and protocol, or the ``__rsgi__`` of an object.
        """
        return requests.rsgi(self, want_callable("app", app, may_await=True))

    def wsgi(self, app: WSGIApplication) -> WSGIApplication:
        """WSGI middleware: a request is in flight until the server closes its response, as PEP 3333 demands.

        While the server sends a part of a streamed response, the request is not in flight.
        A file (``wsgi.file_wrapper``) reaches the server unchanged, so that it can use ``sendfile``.
        """
        return requests.wsgi(self, want_callable("app", app))

    def _begin_request(self, counted: bool = True) -> int:
        """The request's number, for `_end_request`; 0 while the tuner isn't running. A part of one is not counted."""
        if not self._epoch:
            return 0
        pauses, watcher, in_flight = self._pauses, self._watcher, self._in_flight
        now = self._now()
        with self._lock:
            if not self._epoch:
                return 0
            self._requests += counted
            number = next(in_flight.numbers)
            in_flight.began[number] = now
            pauses.in_flight = count = len(in_flight.began)
            try:
                if count == 1 and (self._switched or not self._serving):
                    if not self._serving:
                        self._begin_serving()
                    self._set_thresholds()
                if watcher.dozing:
                    watcher.wake()
                    watcher.dozing = False
            except BaseException:
                # Allocation may have failed. A request that did not begin will not end.
                in_flight.began.pop(number, None)
                pauses.in_flight = len(in_flight.began)
                raise
        if watcher.restart_due:
            self._restart_watcher()
        return number

    def _begin_serving(self) -> None:
        """From the first request on, the tuner decides when the old generation is collected."""
        change = self._young.cap_for_requests()
        if change is not None:
            self._change_threshold(self._now(), change)
        # Last: if allocation fails above, the next request tries again.
        self._serving = True

    def _end_request(self, number: int) -> None:
        if not number or not self._epoch:
            return
        pauses, in_flight = self._pauses, self._in_flight
        with self._lock:
            # The number of a request of another run is unknown.
            if in_flight.began.pop(number, None) is None and not in_flight.end_long(number):
                return
            epoch = self._epoch
            pauses.in_flight = count = len(in_flight.began)
            if not count and self._switched:
                self._set_thresholds()
        try:
            now = self._now()
            if now >= in_flight.due:
                self._find_long_requests(now)
            nobody = not pauses.in_flight
            # First: otherwise the callback of a young collection would read memory, and leave the rest to the watcher.
            if now >= self._memory.due or (nobody and self._full.owed):
                self._read_memory(now)
                self._collect_if_due(epoch)
            if not self._only_full:
                young, middle, _ = self._gc.get_count()
                if young >= self._young.boundary or self._boundaries.is_due(self._requests, now):
                    self._collect_young(
                        self._boundary_generation if nobody or middle > MIDDLE_WITH_REQUESTS else 0
                    )
        except Exception as error:
            _unraisable.report(error, self)

    def _find_long_requests(self, now: int) -> None:
        """From here on they no longer keep collections away."""
        pauses, in_flight = self._pauses, self._in_flight
        with self._lock:
            in_flight.find_long(now)
            before, pauses.in_flight = pauses.in_flight, len(in_flight.began)
            if before and not pauses.in_flight and self._epoch and self._switched:
                self._set_thresholds()

    # Collecting

    def idle(self) -> int:
        """Collect garbage now, while the service is idle. Returns the number of unreachable objects found.

        No effect while a request is in flight, nor so soon after another full collection that the two would take more
        than ``target_overhead`` of the time.
        """
        if self._now() >= self._in_flight.due:
            self._find_long_requests(self._now())
        # A local reference: in a child forked by a finaliser, the tuner has another lock.
        work = self._work
        if not self._epoch or self._pauses.in_flight or not work.acquire(False):
            return 0
        try:
            now = self._now()
            self._read_memory(now)
            young, middle, old = self._gc.get_count()
            if young < self._young.boundary and not middle and not old:
                return 0
            if now < self._full.not_before or self._wait_ns(now):
                return 0
            return max(self._collect_in_turn(IDLE), 0)
        finally:
            work.release()

    def collect_garbage(self, nbytes: int) -> int:
        """One full collection now; returns the bytes by which resident memory fell.

        ``nbytes`` is how much memory the caller would like; a collection frees all that it finds. Returns 0 without
        collecting if that is 0, the tuner isn't running, another thread is collecting, or the cap of 50 % of wall time
        is reached; or, below the watermark, if a sibling in the container is collecting. Raises `ArgumentTypeError` or
        `ArgumentValueError` unless it is an integer, 0 or more.

        >>> from synthex_fast import GCTuner
        >>> with GCTuner() as tuner:
        ...     tuner.collect_garbage(1 << 20) >= 0
        True
        """
        nbytes = whole_number("nbytes", nbytes, 0)
        work = self._work
        if not nbytes or not self._epoch or not work.acquire(False):
            return 0
        try:
            if not self._full.is_vital(self._memory) and self._wait_ns(self._now()):
                self._limiter.limited += 1
                return 0
            before = self._memory.resident()
            done = self._collect_in_turn(FORCED if self._pauses.in_flight else TRIM) >= 0
            return max(0, before - self._memory.rss) if done else 0
        finally:
            work.release()

    def trim(self, nbytes: int) -> int:
        """The same as `collect_garbage`."""
        return self.collect_garbage(nbytes)

    @property
    def nbytes(self) -> int:
        """Always 0: a tuner holds no memory for others."""
        return 0

    def _collect(self, generation: int, cause: int) -> int:
        pauses = self._pauses
        pauses.explicit[cause] += 1
        pauses.unforced = cause != FORCED
        pauses.row = pauses.rows[cause]
        try:
            return self._gc.collect(generation)
        finally:
            pauses.row = pauses.rows[AUTOMATIC]
            pauses.unforced = True

    def _collect_young(self, generation: int) -> None:
        """At the end of a request, so that the interpreter finds no reason to collect inside one.

        Between requests what has survived them is old, and the cycles that they leave are found while young.
        """
        if not self._gc.isenabled():
            return
        pauses = self._pauses
        before = pauses.collecting()
        freed = self._collect(generation, BOUNDARY)
        pause = pauses.collecting() - before
        if not pause:
            # Another thread is collecting: nothing was done.
            pauses.explicit[BOUNDARY] -= 1
            return
        self._boundaries.record(self._requests, self._now(), freed, pause)

    def _collect_in_turn(self, cause: int) -> int:
        """A full collection, unless a sibling in the container collects and there is no hurry. Held: ``_work``.

        The objects freed; `BUSY` if another thread is collecting, `NOT_OUR_TURN` if a sibling is.
        """
        taken = turns.take()
        if taken is False and not self._memory.is_high:
            self._turns_waited += 1
            # Not at the end of every request until then.
            self._full.not_before = max(self._full.not_before, self._now() + int(TURN_SECONDS * 1e9))
            self._full.owed = False
            return NOT_OUR_TURN
        try:
            return self._collect_all(cause)
        finally:
            turns.end(taken)

    def _collect_all(self, cause: int) -> int:
        """A full collection: the objects freed, or `BUSY` if another thread is collecting. Held: ``_work``."""
        pauses = self._pauses
        rss, before = self._memory.rss, pauses.collecting()
        # So that the callback doesn't take this one for the interpreter's.
        armed, pauses.armed = pauses.armed, False
        freed = self._collect(2, cause)
        pause = pauses.collecting() - before
        if not pause:
            # The other thread's may be the one that the interpreter was told to make.
            pauses.armed = armed
            pauses.explicit[cause] -= 1
            return BUSY
        if armed:
            self._disarm()
        self._follow_up(rss, freed, pause)
        return freed

    def _follow_up(self, before: int, freed: int, pause: int) -> None:
        """Plan the next full collection from the outcome of this one. Held: ``_work``."""
        memory, full = self._memory, self._full
        now = self._now()
        self._read_memory(now)
        full.record(now, before, freed, pause, memory)
        # From here on the interpreter may be told to make another, if memory goes on growing.
        self._pauses.taken = 0
        if memory.is_high and freed >= FEW_FREED:
            _pressure.malloc_trim()
            self._read_memory(self._now())
            full.mark(memory)

    def _wait_ns(self, now: int) -> int:
        """Until another full collection as long as the last one would keep to the cap on time."""
        return self._limiter.wait_ns(now, self._pauses.collecting(), self._full.last_pause)

    def _is_limited(self, now: int) -> bool:
        """Whether one more full collection would exceed the cap on time; warns the first time."""
        if not self._wait_ns(now) or self._full.is_vital(self._memory):
            return False
        limiter = self._limiter
        limiter.limited += 1
        if not limiter.warned:
            limiter.warned = True
            self._young.record(now, "limit", self._young.value, "collection reached half of the time")
            warnings.warn(
                "GCTuner: collection is capped at half of the time, so a full collection is put off; either more "
                "objects are alive than the memory limit allows, or garbage is made faster than it is collected",
                RuntimeWarning,
                stacklevel=2,
            )
        return True

    # Telling the interpreter to collect. A collection can't be started inside the callback, but the thresholds can be
    # set so that the interpreter's next one is full: in the thread that fills memory, which the watcher may be too slow
    # for. The interpreter declines if less than a quarter of the old objects is new; then only the watcher is left.

    def _arm_in_callback(self, now: int) -> None:
        pauses = self._pauses
        if self._switched or pauses.armed or pauses.taken or not self._lock.acquire(False):
            return
        try:
            if self._epoch and (self._full.is_vital(self._memory) or not self._wait_ns(now)):
                pauses.armed = True
                self._set_thresholds()
        finally:
            self._lock.release()

    def _disarm_in_callback(self) -> None:
        """After a full collection, so that the next is not one too."""
        self._pauses.armed = False
        # If another thread holds the lock, the watcher sets them.
        if self._lock.acquire(False):
            try:
                if self._epoch:
                    self._set_thresholds()
            finally:
                self._lock.release()

    def _disarm(self) -> None:
        with self._lock:
            self._pauses.armed = False
            if self._epoch:
                self._set_thresholds()

    # Deciding

    def _read_memory(self, now: int) -> bool:
        """Whether the watcher should act at once. Runs inside the callback too."""
        self._memory.read(now)
        return self._memory.is_near or self._young.window_is_over(now)

    def _read_before_collection(self, now: int) -> bool:
        """For the callback."""
        attention = self._read_memory(now)
        if self._memory.share >= self._full.forced_from:
            self._arm_in_callback(now)
        work = self._work
        if attention and self._watcher.restart_due and work.acquire(False):
            # There is no watcher yet.
            try:
                self._adapt(now)
            finally:
                work.release()
        return attention

    def _collect_if_due(self, epoch: int) -> float:
        """Seconds until it must be called again, or -1 if only when there is a reason."""
        work = self._work
        if not work.acquire(False):
            return -1
        try:
            if epoch != self._epoch:
                return -1
            now = self._now()
            if now >= self._in_flight.due:
                self._find_long_requests(now)
            self._adapt(now)
            now = self._now()
            cause = self._cause(now)
            if cause:
                if self._is_limited(now):
                    return self._wait_ns(now) / 1e9
                freed = self._collect_in_turn(cause)
                if freed < 0:
                    return RETRY_SECONDS if freed == BUSY else TURN_SECONDS
        finally:
            work.release()
        return -1

    def _cause(self, now: int) -> int:
        """Why a full collection is due; 0 if none is."""
        memory, full = self._memory, self._full
        in_flight = self._pauses.in_flight
        full.owed = False
        if memory.is_high:
            if memory.share >= full.forced_from or self._is_refilled():
                return FORCED if in_flight else WATERMARK
            return 0
        full.forced_from = memory.high
        if not full.is_debt(now, memory) or not self._gc.isenabled():
            return 0
        full.owed = bool(in_flight)
        return 0 if in_flight else DEBT

    def _is_refilled(self) -> bool:
        """Whether most of what the last full collection freed, and the allocator kept, must be in use again.

        Only known where the collector's count goes on until the next full one. Elsewhere the C library has been asked
        to return what was freed, so resident memory shows it.
        """
        return self._only_full and self._gc.get_count()[0] * 2 >= self._full.kept_objects > 0

    def _adapt(self, now: int) -> None:
        """What needs no collection, and may run inside the callback too. Held: ``_work``."""
        pauses, memory, full, young = self._pauses, self._memory, self._full, self._young
        if pauses.taken:
            pause, freed = pauses.taken, pauses.taken_freed
            self._disarm()
            self._follow_up(memory.rss, freed, pause)
        elif pauses.armed and memory.share < full.forced_from:
            self._disarm()
        change = young.adapt_to_memory(memory)
        if change is not None:
            self._change_threshold(now, change)
        if young.window_is_over(now):
            young_ns, middle_ns, old_ns = map(pauses.total, range(3))
            collecting = young_ns + middle_ns
            # Full collections count until the tuner decides on them: no threshold saves one from then on.
            if not self._serving or self._switched:
                collecting += old_ns - full.asked_ns
            change = young.adapt_to_pauses(now, pauses, collecting, memory)
            if change is not None:
                self._change_threshold(now, change)

    def _change_threshold(self, now: int, change: Change) -> None:
        with self._lock:
            self._young.apply(now, change)
            if self._epoch:
                self._set_thresholds()

    def _set_thresholds(self) -> None:
        """Held: ``_lock``."""
        pauses = self._pauses
        self._settings.apply(self._young.value, pauses.in_flight, self._serving, pauses.armed)

    # The watcher

    def _is_current(self, epoch: int) -> bool:
        return epoch == self._epoch != 0

    def _start_watcher(self) -> None:
        self._watcher.start(self._epoch)

    def _restart_watcher(self) -> None:
        """After a fork, with the first request."""
        with self._lock:
            if not self._watcher.restart_due:
                return
            self._watcher.restart_due = False
        try:
            self._start_watcher()
        except Exception as error:
            # The tuner works without it: requests end, and the callback does what it can.
            _unraisable.report(error, self)

    def _watch(self, epoch: int) -> float:
        """In the watcher, when it is woken: seconds until it must act again, or -1 if only when it is woken."""
        memory, watcher = self._memory, self._watcher
        now = self._now()
        # The callback has mostly just read it, and each reading lets other threads run first, for 5 ms.
        if now - memory.read_at > 2 * READING_LEAST_NS:
            self._read_memory(now)
        else:
            memory.postpone(now)
        seconds = self._collect_if_due(epoch)
        if seconds >= 0:
            return seconds
        if not self._switched:
            # If only requests keep a collection away, it is made once they are long, even if none ends.
            seconds = (self._in_flight.due - now) / 1e9
            return max(min(seconds, LONGEST_SLEEP), RETRY_SECONDS) if self._full.owed else -1
        # Inside requests no collection starts by itself, so none wakes the watcher: it acts when memory is to be read.
        # Between requests it sleeps, and the next one wakes it. Set before the check, for a request that begins now.
        watcher.dozing = True
        if not self._pauses.in_flight:
            return -1
        watcher.dozing = False
        return max((memory.due - self._now()) / 1e9, READING_LEAST_NS / 1e9)

    # Reporting

    @property
    def stats(self) -> dict[str, Any]:
        """What it has measured and decided since `start`, as a new dict. Seconds and bytes.

        ``in_flight`` are the requests that have not ended, ``long_requests`` those of them that were found to be older
        than ``long_request`` seconds.
        ``collector`` is ``generational``, ``incremental`` or ``free-threaded``. ``frozen`` is whether the tuner froze
        what was alive at the start, ``collected_at_start`` whether it collected before that, as everywhere but in a
        forked child. ``overhead`` is the share of wall time spent collecting. ``pauses`` has a dict for each
        generation, ``in_request`` one for the pauses inside requests that were not forced; their quantiles come from a
        histogram and are at most an eighth too high. ``pause_histograms`` has the histograms by generation and cause:
        the number of pauses (``counts``) up to each of the ``bounds`` and from the one before, the last for those
        beyond, and their sum (``seconds``). ``causes`` counts collections by what made them happen, ``forced``
        those above the watermark with a request in flight, ``limited`` those put off because collection is capped at
        50 % of wall time, ``turns_waited`` those because a sibling in the container was collecting. ``decisions`` are
        the last 32 changes of the young threshold, each with its reason.
        ``memory_limit`` is in force, ``requested_limit`` what was asked for, which may be more than the machine has.
        ``container`` is ``limited``, ``none``, or ``unknown`` if the container's limits can't be read.
        """
        pauses, memory, young = self._pauses, self._memory, self._young
        now = self._now() if self._epoch else self._ended
        generations = pauses.by_generation()
        collections = sum(generation["collections"] for generation in generations)
        causes = pauses.by_cause(collections)
        return {
            "running": bool(self._epoch),
            "collector": self._kind,
            "frozen": self._settings.frozen,
            "collected_at_start": self._settings.collected_at_start,
            "requests": self._requests,
            "in_flight": pauses.in_flight + self._in_flight.long,
            "long_requests": self._in_flight.long,
            "overhead": pauses.collecting() / max(now - self._started, 1),
            "collections": collections,
            "causes": causes,
            "forced": causes["forced"],
            "limited": self._limiter.limited,
            "turns_waited": self._turns_waited,
            "pauses": generations,
            "in_request": pauses.inside_requests(),
            "pause_histograms": pauses.histograms(),
            "young_threshold": young.value,
            "memory": memory.rss,
            "memory_limit": memory.limit,
            "requested_limit": memory.requested,
            "container": memory.container_state,
            "memory_share": memory.share,
            "decisions": [dict(decision) for decision in list(young.decisions)],
        }

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(
            f"{type(self).__name__} can't be pickled or copied: it belongs to this process; its stats can"
        )

    def __repr__(self) -> str:
        state = "running" if self._epoch else "stopped"
        return f"<GCTuner {state}, {self._kind} collector, {self._memory.limit} bytes>"

    # Forks

    def _before_fork(self) -> None:
        self._watcher.end()
        if sys.version_info[:2] == (3, 12):
            # Its join() returns a moment before the system's thread has ended, and fork() warns of that thread.
            sleep(0.001)
        # A process forked in the middle of a collection never collects again. Bounded, as for the watcher.
        self._work.acquire(True, 1.0)

    def _after_fork_in_parent(self) -> None:
        # It may not have been acquired in time before the fork.
        with contextlib.suppress(RuntimeError):
            self._work.release()
        self._watcher.restart_due = bool(self._epoch)

    def _after_fork_in_child(self) -> None:
        """A new run. Nothing is collected: that would copy each page shared with the parent."""
        self._lock, self._work = RLock(), RLock()
        self._watcher.reset_queue()
        self._epoch = _next_epoch()
        self._reset()
        self._settings.collected_at_start = False
        self._watcher.restart_due = True
        # First: a threshold out of reach for the sake of the parent's request must not stay, should reading fail.
        self._set_thresholds()
        self._begin_reading()


# A process has one collector, so one tuner runs at a time. Guarded by `_guard`.
_guard = RLock()
_running: GCTuner | None = None
_epoch = 0


def _next_epoch() -> int:
    global _epoch
    _epoch += 1
    return _epoch


def _before_fork() -> None:
    if _running is not None:
        _running._before_fork()


def _after_fork_in_parent() -> None:
    if _running is not None:
        _running._after_fork_in_parent()


def _after_fork_in_child() -> None:
    global _guard
    _guard = RLock()
    if _running is not None:
        _running._after_fork_in_child()


def _at_exit() -> None:
    """Leave frozen objects frozen: the interpreter's own last collections should not visit them."""
    tuner = _running
    if tuner is not None:
        tuner._remove_callback()
        tuner._watcher.end()


_lifecycle.register(
    Stage.TUNER,
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
    at_exit=_at_exit,
)
