"""GCTuner: keeps the cyclic garbage collector out of requests, within a share of the time and a limit of memory.

Where it comes from: freezing what start-up made and raising the threshold is what large Python services do by hand
(Instagram's ``gc.freeze``); letting no major collection run inside a request is Shopify's practice for Ruby ("Ruby
Out-of-Band GC"); letting the room under a memory limit decide when a collection is due is Go's ``GOMEMLIMIT`` (Knyszek,
"Soft memory limit", Go proposal 48409) and Uber's GOGC tuner before it; and so is giving up at half of the processor.

How the work is divided. The interpreter calls the callback at the start and at the end of each collection: it
measures, and now and then reads memory. A collection asked for in there would do nothing, so whatever is to be
collected is collected where a request ends, in ``idle()``, or by a watcher thread that the callback wakes. The watcher
sleeps on a queue: without collections there is no cyclic garbage, and nothing to watch.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import sysconfig
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from threading import RLock

# First of all: in a forked child its descriptors are marked as the parent's before the tuner reads.
from synthex_fast import _readings, _unraisable, errors
from synthex_fast.errors import TunerRunningError, type_error, value_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Generator,
        Iterable,
        Iterator,
        MutableMapping,
    )
    from types import TracebackType
    from typing import Any, Protocol, TypeVar

    class Collector(Protocol):
        """What the tuner uses of the module ``gc``; tests put another in its place."""

        @property
        def callbacks(self) -> list[Any]: ...
        def collect(self, generation: int = 2) -> int: ...
        def get_count(self) -> tuple[int, int, int]: ...
        def get_threshold(self) -> tuple[int, int, int]: ...
        def set_threshold(self, threshold0: int, threshold1: int, threshold2: int, /) -> None: ...
        def enable(self) -> None: ...
        def disable(self) -> None: ...
        def isenabled(self) -> bool: ...
        def freeze(self) -> None: ...
        def unfreeze(self) -> None: ...
        def get_freeze_count(self) -> int: ...

    class MemoryReadings(Protocol):
        """What the tuner uses of `synthex_fast._readings.Readings`."""

        def rss(self) -> int: ...
        def charge(self) -> int | None: ...
        def reclaimable(self) -> int: ...
        def limit(self) -> int | None: ...
        def total(self) -> int: ...

    Function = TypeVar("Function", bound=Callable[..., Any])
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApplication = Callable[[Message, Receive, Send], Awaitable[None]]
    WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

__all__ = ["GCTuner"]

# Shares of the memory limit. Over the high watermark requests no longer keep the collector out. It is lower where the
# reserve up to the limit would be small: what grows fast doesn't grow slower in a small container.
HIGH_WATERMARK, LOWEST_WATERMARK = 0.85, 0.70
RESERVE = 64 << 20
# So far below the watermark the young threshold begins to come down, and so far it may rise again.
NEAR, CLEAR = 0.15, 0.20

# Bounds of the young threshold, in containers: once there have been requests, and in a process without any.
YOUNG_LEAST = 500
YOUNG_AT_START = 2_000
YOUNG_MOST_WITH_REQUESTS = 3_000
YOUNG_MOST = 100_000
# Two young collections, then one of both young generations: at most three times the threshold in one pause.
MIDDLE_WITH_REQUESTS = 1
OUT_OF_REACH = 2**31 - 1

# How many requests pass between two collections at their ends is chosen so that one takes as long as this. The count
# that thresholds are compared with goes down with every container freed, so that the young objects can be many times as
# many; and those made lately are still in the processor's caches, where a collection costs a fraction.
BOUNDARY_MOST_NS = 200_000
# Twice without finding anything, they may grow to this: still short should the interpreter begin one inside a request.
FRUITLESS_BOUNDARY_MOST_NS = 400_000
REQUESTS_AT_MOST = 1_024
# Half of the millisecond that a collection inside a request may take: a machine has its bad moments.
PAUSE_BUDGET_NS = 500_000
# A full collection is due when memory has grown by as much as the last one left, and by this at least.
GROWTH_AT_LEAST = 64 << 20
# What no process grows faster than, in bytes a second: memory is read again before the watermark can be reached.
FASTEST_GROWTH = 4 << 30
READING_LEAST_NS = 5_000_000
READING_MOST_NS = 1_000_000_000
# The threshold is reconsidered once in so long; one that had to come down is held for as long as HOLD at first.
WINDOW_NS = 1_000_000_000
HOLD_NS = 60_000_000_000
HOLD_MOST_NS = 3_600_000_000_000
# A full collection that gives back less than a 64th of memory was fruitless if it found fewer objects than this, or
# took longer for each: then it looked at ten live ones for one that was garbage.
FEW_FREED = 1_000
FRUITLESS_NS = 5_000
# Time without collecting can be saved up for collecting, up to this: as much as Go's limiter lets it.
CREDIT_MOST_NS = 1_000_000_000
# Full collections of 3.12 move a few hundred immortal objects to those that are frozen; gc.freeze() freezes thousands.
FROZEN_BY_INTERPRETER = 1_000 if sys.version_info[:2] == (3, 12) else 0

# When a full collection is tried again for which another thread's stood in the way.
RETRY_SECONDS = 0.001
# When the watcher goes on for which there was no memory.
WITHOUT_MEMORY_SECONDS = 0.05

# What made a collection happen.
AUTOMATIC, BOUNDARY, DEBT, IDLE, WATERMARK, FORCED, TRIM = range(7)
CAUSES = ("automatic", "boundary", "debt", "idle", "watermark", "forced", "trim")

# Buckets of a pause in nanoseconds: eight for each power of two, the widest an eighth of what goes into it.
BUCKETS = 8 * 64

GENERATIONAL, INCREMENTAL, FREE_THREADED = "generational", "incremental", "free-threaded"


def collector_kind(hexversion: int, free_threaded: bool) -> str:
    """Which of CPython's three collectors a build has."""
    if free_threaded:
        return FREE_THREADED
    # Came with 3.14.0, went with 3.14.5.
    return INCREMENTAL if 0x030E0000 <= hexversion < 0x030E0500 else GENERATIONAL


def _upper_bound(bucket: int) -> int:
    """The longest pause, in nanoseconds, that goes into a bucket."""
    if bucket < 8:
        return bucket
    bits, eighth = divmod(bucket, 8)
    return max(((9 + eighth) << (bits - 4)) - 1, 8)


def _watermark(limit: int) -> float:
    return max(min(HIGH_WATERMARK, 1 - RESERVE / limit), LOWEST_WATERMARK)


def _quantile(counts: list[int], share: float) -> float:
    """In seconds, at most an eighth too high; 0 for no pauses at all."""
    rank = share * sum(counts)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return _upper_bound(bucket) / 1e9
    return 0.0


class _Pauses:
    """What the callback learns of collections. It takes no lock, and a container is made only where it looks at memory.

    The callback is a closure, and what can be told from the histograms is not counted twice: each statement in it is
    paid for at every collection.
    """

    __slots__ = (
        "armed",
        "callback",
        "counts",
        "due",
        "explicit",
        "freed",
        "in_flight",
        "in_request",
        "longest",
        "longest_in_request",
        "now",
        "over_budget",
        "taken",
        "taken_freed",
        "total",
        "unforced",
        "wake",
    )

    def __init__(
        self, now: Callable[[], int], glance: Callable[[int], bool], disarm: Callable[[], None]
    ) -> None:
        self.now = now
        # By generation: nanoseconds, objects, nanoseconds; and a histogram for each, one after the other.
        self.total, self.freed, self.longest = [0] * 3, [0] * 3, [0] * 3
        self.counts = [0] * (3 * BUCKETS)
        self.in_request = [0] * BUCKETS
        # What the watcher sleeps on: may be put into anywhere, in the middle of a put as well.
        self.wake: SimpleQueue[None] = SimpleQueue()
        self.callback = self._make_callback(now, glance, disarm)
        self.reset()

    def reset(self) -> None:
        # In place: the callback holds these lists.
        for figures in (self.total, self.freed, self.longest, self.counts, self.in_request):
            figures[:] = [0] * len(figures)
        # Collections that the tuner asked for, by cause.
        self.explicit = [0] * len(CAUSES)
        self.longest_in_request = self.over_budget = 0
        self.in_flight = 0
        self.unforced = True
        # Whether the interpreter has been told to make its next collection a full one; nanoseconds and objects of the
        # one it made, until they are looked at.
        self.armed = False
        self.taken = self.taken_freed = 0
        # When memory is to be read again.
        self.due = self.now()

    def _make_callback(
        self, now: Callable[[], int], glance: Callable[[int], bool], disarm: Callable[[], None]
    ) -> Callable[[str, dict[str, int]], None]:
        total, freed, longest, counts = self.total, self.freed, self.longest, self.counts
        began = now()
        attention = told = False

        def callback(phase: str, info: dict[str, int]) -> None:
            nonlocal began, attention, told
            if phase == "start":
                began = now()
                if began >= self.due:
                    # Before the collection, when memory stands highest.
                    attention = glance(began)
                    began = now()
                # The watcher may disarm it while the collection goes on.
                told = self.armed
                return
            pause = now() - began
            generation = info["generation"]
            bits = pause.bit_length()
            bucket = (bits << 3) | (pause >> (bits - 4)) & 7 if bits > 3 else pause
            counts[generation << 9 | bucket] += 1
            total[generation] += pause
            if info["collected"]:
                freed[generation] += info["collected"]
            if pause > longest[generation]:
                longest[generation] = pause
            if told and generation == 2:
                disarm()
                self.explicit[FORCED if self.in_flight else WATERMARK] += 1
                self.taken, self.taken_freed = pause, info["collected"]
                attention = True
            elif self.in_flight and self.unforced:
                self.in_request[bucket] += 1
                if pause > self.longest_in_request:
                    self.longest_in_request = pause
                if pause > PAUSE_BUDGET_NS:
                    self.over_budget += 1
            if attention:
                attention = False
                # Reading lets other threads in: were that the watcher, in here it could not collect.
                self.due = began + pause + 4 * READING_LEAST_NS
                self.rouse()

        return callback

    def rouse(self) -> None:
        if self.wake.empty():
            self.wake.put(None)

    def histogram(self, generation: int) -> list[int]:
        return self.counts[generation * BUCKETS : (generation + 1) * BUCKETS]


class _Request:
    """A request in flight, as a context manager and as a decorator. May be entered any number of times."""

    __slots__ = ("_epochs", "_tuner")

    def __init__(self, tuner: GCTuner) -> None:
        self._tuner = tuner
        self._epochs: list[int] = []

    def __enter__(self) -> None:
        self._epochs.append(self._tuner._enter())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._epochs:
            self._tuner._leave(self._epochs.pop())

    def __call__(self, function: Function) -> Function:
        """Each call of ``function`` is a request, to the end of its coroutine or generator where it makes one."""
        import functools
        import inspect

        if not callable(function) or isinstance(function, type):
            raise type_error("function", function, "a function, a coroutine function or a generator function")
        tuner = self._tuner
        plain: Any = function
        while isinstance(plain, functools.partial):
            plain = plain.func
        if not (inspect.isroutine(plain) or inspect.ismethod(plain)):
            # An object that can be called: what it does is said by its class.
            plain = type(plain).__call__
        made: Callable[..., Any]
        if inspect.isasyncgenfunction(plain):

            async def asynchronous_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
                # Before the request: arguments may be refused.
                inner = function(*args, **kwargs)
                epoch = tuner._enter()
                try:
                    item = await inner.__anext__()
                    while True:
                        try:
                            sent = yield item
                        except GeneratorExit:
                            raise
                        except BaseException as error:
                            item = await inner.athrow(error)
                        else:
                            item = await inner.asend(sent)
                except StopAsyncIteration:
                    pass
                finally:
                    try:
                        await inner.aclose()
                    finally:
                        tuner._leave(epoch)

            made = asynchronous_generator
        elif inspect.isgeneratorfunction(plain):

            def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                epoch = tuner._enter()
                try:
                    return (yield from function(*args, **kwargs))
                finally:
                    tuner._leave(epoch)

            made = generator
        elif inspect.iscoroutinefunction(plain):

            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                epoch = tuner._enter()
                try:
                    return await function(*args, **kwargs)
                finally:
                    tuner._leave(epoch)

            made = coroutine
        else:

            def call(*args: Any, **kwargs: Any) -> Any:
                epoch = tuner._enter()
                try:
                    return function(*args, **kwargs)
                finally:
                    tuner._leave(epoch)

            made = call
        functools.update_wrapper(made, function)
        return made  # type: ignore[return-value]


class _Response:
    """A WSGI response: its request is in flight until the server closes it, or lets it go unclosed."""

    __slots__ = ("_closed", "_epoch", "_result", "_tuner")

    def __init__(self, tuner: GCTuner, epoch: int, result: Iterable[bytes]) -> None:
        self._tuner = tuner
        self._epoch = epoch
        self._result = result
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._result)

    def __len__(self) -> int:
        # Servers take the content length from a list of one.
        return len(self._result)  # type: ignore[arg-type]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            close = getattr(self._result, "close", None)
            if close is not None:
                close()
        finally:
            epoch, self._epoch = self._epoch, 0
            self._tuner._leave(epoch)

    def __del__(self) -> None:
        epoch, self._epoch = self._epoch, 0
        if epoch:
            self._tuner._leave(epoch)


class GCTuner:
    """Keeps cyclic garbage collection out of requests, within a share of the time and a limit of memory.

    ``target_overhead`` is the share of wall time that collecting should take, above 0 and up to 0.5: full collections
    keep to it, the young threshold rises towards it. ``memory_limit`` is in bytes, or text such as ``"512MB"`` or
    ``"80%"`` of the container; ``None`` is the container's limit, else the host's memory. With ``freeze`` what is
    alive at `start` is collected once and then left out of every collection until `stop`, unless somebody has frozen
    something before.

    While it runs, every collection is measured; full collections don't start by themselves inside a request but wait
    until none is in flight, and happen only when memory has grown enough to make one worth while; the young threshold
    follows the time that collecting takes, the pauses it makes and the memory there is. At 85 % of the limit (64 MB
    below a small one, but not under 70 %) a full collection happens even inside a request (``forced`` in `stats`).
    The tuner asks for no collection that would make more than half of the time go to collecting, unless the last one
    found plenty of garbage and half of what was left to the limit is gone. Until the first request the old generation
    is left to the interpreter.

    One tuner runs in a process at a time, and is kept alive by that. A request costs about a microsecond. Raises
    `ArgumentValueError` and `ArgumentTypeError` for bad arguments.

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
    ) -> None:
        if isinstance(target_overhead, bool) or not isinstance(target_overhead, (int, float)):
            raise type_error("target_overhead", target_overhead, "a number above 0 and up to 0.5")
        if not 0 < target_overhead <= 0.5:
            raise value_error("target_overhead", target_overhead, "above 0 and up to 0.5")
        if not isinstance(freeze, bool):
            raise type_error("freeze", freeze, "True or False")
        self._readings: MemoryReadings = _readings.Readings() if readings is None else readings
        self._asked_limit = memory_limit
        self._limit = _readings.memory_limit(memory_limit, self._readings)
        self._target = float(target_overhead)
        self._freeze = freeze
        self._gc: Collector = gc if collector is None else collector
        self._kind = kind or collector_kind(sys.hexversion, bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
        # A full collection is the only one there is.
        self._only_full = self._kind == FREE_THREADED
        # What starts by itself may be old objects' turn: nothing may, inside a request.
        self._switched = self._kind != GENERATIONAL
        self._now: Callable[[], int] = time.perf_counter_ns if clock is None else lambda: int(clock() * 1e9)
        self._pauses = _Pauses(self._now, self._glance_before, self._disarm_at_once)
        # Kept: every look at a method makes a new object, and the list of callbacks is searched by identity.
        self._callback = self._pauses.callback
        # Reentrant, because a finaliser or a signal handler can make a request of its own anywhere.
        self._lock = RLock()
        self._work = RLock()
        # 0 while it doesn't run; else a number of its own for each start and each forked child.
        self._epoch = 0
        self._thread: threading.Thread | None = None
        self._saved = (0, 0, 0)
        self._enabled = True
        self._froze = False
        self._begin()

    def _begin(self) -> None:
        """Everything that is counted, as at the start: also in a forked child, also where it never ran."""
        now = self._ended = self._now()
        self._pauses.reset()
        self._high = _watermark(self._limit)
        self._started = now
        self._requests = 0
        self._serving = False
        # The watcher sleeps until a request wakes it: only where no collection does.
        self._dozing = self._switched
        self._forked = False
        self._young = YOUNG_AT_START
        self._boundary_at = YOUNG_AT_START // 2
        self._boundary_due = 1
        self._boundary_not_before = now
        self._boundary_requests = 1
        self._fruitless_boundaries = 0
        self._fruitless = 0
        self._limited = 0
        self._warned = False
        self._decisions: deque[dict[str, Any]] = deque(maxlen=32)
        # Memory: bytes of this process now, least since the last full collection, and at the start.
        self._rss = self._floor = self._base = 0
        self._share = 0.0
        self._headroom = self._limit
        self._read_at = now
        self._interval = READING_LEAST_NS
        self._container: int | None = None
        self._container_due = now
        self._forced_from = self._high
        self._growth_allowed = GROWTH_AT_LEAST
        self._full_due = now
        self._owing = False
        self._kept_objects = 0
        # The limiter: nanoseconds of collecting that are made good by as many without, and how far it has counted.
        self._credit = self._credit_total = 0
        self._credit_at = now
        self._full_pause = 0
        # Nanoseconds of the full collections that the tuner asked for.
        self._asked_ns = 0
        # Of the threshold.
        self._most = YOUNG_MOST
        self._young_in_clear = self._young
        self._held_until = now - HOLD_MOST_NS - 1
        self._hold = HOLD_NS
        self._window_began = now
        self._window_ns = self._window_over = self._window_count = 0

    # Start and stop

    def start(self) -> None:
        """Take the collector over; no effect on a tuner that runs.

        Costs one full collection with ``freeze``. Raises `TunerRunningError` where another tuner runs.
        """
        global _malloc_trim, _running
        with _guard:
            if _running is self:
                return
            if _running is not None:
                raise TunerRunningError("another GCTuner runs in this process: stop it first")
            if _malloc_trim is int:
                # Now: to import anything takes long in a process that is filling up.
                _malloc_trim = _find_malloc_trim()
            self._start()
            _running = self

    def _start(self) -> None:
        collector = self._gc
        self._saved = collector.get_threshold()
        self._enabled = collector.isenabled()
        if self._freeze and collector.get_freeze_count() <= FROZEN_BY_INTERPRETER:
            # Garbage that is frozen stays for good.
            collector.collect()
            collector.freeze()
            self._froze = True
            # The interpreter compares what is new with what the last full collection left: that is nothing now.
            collector.collect()
        try:
            self._begin()
            self._glance(self._now())
            self._floor = self._base = self._rss
            self._allow_growth()
            self._young = min(max(self._saved[0] or YOUNG_AT_START, YOUNG_AT_START), YOUNG_MOST)
            self._young_in_clear = self._young
            self._boundary_at = self._young // 2
            with self._lock:
                self._epoch = _next_epoch()
                # In the middle of a collection, by a finaliser or another thread, it hears of the end first.
                self._callback("start", {})
                collector.callbacks.append(self._callback)
                collector.enable()
                self._set_thresholds()
            self._start_watcher()
        except BaseException:
            self._restore()
            raise

    def stop(self) -> None:
        """Give the collector back as it was; no effect on a tuner that doesn't run.

        Requests in flight may end later; what `stats` has counted stays.
        """
        global _running
        with _guard:
            if _running is not self:
                return
            _running = None
            self._restore()
            # In here: the next start has a watcher of its own.
            watcher = self._dismiss_watcher()
        self._wait_for(watcher)

    def _restore(self) -> None:
        collector = self._gc
        with self._lock:
            self._epoch = 0
            self._ended = self._now()
            self._pauses.in_flight = 0
            self._remove_callback()
            collector.set_threshold(*self._saved)
            if self._enabled:
                collector.enable()
            else:
                collector.disable()
            if self._froze:
                self._froze = False
                collector.unfreeze()

    def _remove_callback(self) -> None:
        callbacks = self._gc.callbacks
        for place, callback in enumerate(callbacks):
            if callback is self._callback:
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

    def request(self) -> _Request:
        """A request in flight, for ``with``; the same object is a decorator.

        A decorated coroutine function or generator is in flight until it ends. Harmless while the tuner doesn't run.

        >>> from synthex_fast import GCTuner
        >>> tuner = GCTuner()
        >>> @tuner.request()
        ... def handle(n):
        ...     return n + 1
        >>> handle(1)
        2
        """
        return _Request(self)

    def _enter(self) -> int:
        epoch = self._epoch
        if not epoch:
            return 0
        pauses = self._pauses
        with self._lock:
            if epoch != self._epoch:
                return 0
            self._requests += 1
            pauses.in_flight += 1
            try:
                if pauses.in_flight == 1 and (self._switched or not self._serving):
                    if not self._serving:
                        self._serve()
                    self._set_thresholds()
                if self._dozing:
                    pauses.rouse()
                    self._dozing = False
            except BaseException:
                # For want of memory, perhaps. Nobody will leave what was not entered.
                pauses.in_flight -= 1
                raise
        if self._forked:
            self._restart_watcher()
        return epoch

    def _leave(self, epoch: int) -> None:
        if not epoch or epoch != self._epoch:
            return
        pauses = self._pauses
        with self._lock:
            if epoch != self._epoch:
                return
            pauses.in_flight -= 1
            nobody = not pauses.in_flight
            if nobody and self._switched:
                self._set_thresholds()
        try:
            now = self._now()
            # First: the callback of a young collection would read memory, and leave it to the watcher.
            if now >= pauses.due or (nobody and self._owing):
                self._glance(now)
                self._check(epoch)
            if not self._only_full:
                young, middle, _ = self._gc.get_count()
                if young >= self._boundary_at or (
                    self._requests >= self._boundary_due and now >= self._boundary_not_before
                ):
                    self._collect_young(1 if nobody or middle > MIDDLE_WITH_REQUESTS else 0)
        except Exception as error:
            _unraisable.report(error, self)

    def _serve(self) -> None:
        """From the first request on the old generation is the tuner's business."""
        self._most = YOUNG_MOST_WITH_REQUESTS
        if self._young > self._most:
            self._decide(self._now(), self._most, "requests have begun: pauses are kept short")
        # Last: where there is no memory for the decision, the next request makes it.
        self._serving = True

    def asgi(self, app: ASGIApplication) -> ASGIApplication:
        """Middleware: an HTTP request is in flight until the last part of its response is sent.

        A websocket is in flight while it works on a message, not while it waits for one; lifespan never is.
        """
        tuner = self

        async def application(scope: Message, receive: Receive, send: Send) -> None:
            kind = scope["type"]
            if kind not in ("http", "websocket"):
                await app(scope, receive, send)
                return
            epoch = tuner._enter()

            async def sent(message: Message) -> None:
                nonlocal epoch
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    epoch, ended = 0, epoch
                    tuner._leave(ended)

            async def received() -> Message:
                nonlocal epoch
                epoch, ended = 0, epoch
                tuner._leave(ended)
                message = await receive()
                if not epoch:
                    epoch = tuner._enter()
                return message

            try:
                if kind == "http":
                    await app(scope, receive, sent)
                else:
                    await app(scope, received, send)
            finally:
                epoch, ended = 0, epoch
                tuner._leave(ended)

        return application

    def wsgi(self, app: WSGIApplication) -> WSGIApplication:
        """Middleware: a request is in flight until the server closes its response, as PEP 3333 has it do."""
        tuner = self

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            epoch = tuner._enter()
            try:
                return _Response(tuner, epoch, app(environ, start_response))
            except BaseException:
                tuner._leave(epoch)
                raise

        return application

    # Collecting

    def idle(self) -> int:
        """Say that nothing is going on: whatever there is to collect is collected now. Objects found unreachable.

        Does nothing while a request is in flight, nor so soon after another full collection that the two would
        take more than ``target_overhead`` of the time.
        """
        # The lock by a name of its own: in a child forked by a finaliser, the tuner has another.
        work = self._work
        if not self._epoch or self._pauses.in_flight or not work.acquire(False):
            return 0
        try:
            now = self._now()
            self._glance(now)
            young, middle, old = self._gc.get_count()
            if young < self._boundary_at and not middle and not old:
                return 0
            if now < self._full_due or self._missing_credit(now):
                return 0
            return max(self._collect_all(IDLE), 0)
        finally:
            work.release()

    @property
    def nbytes(self) -> int:
        """Bytes that it holds for others: none."""
        return 0

    def trim(self, nbytes: int) -> int:
        """One full collection, at once: the bytes by which this process has become smaller.

        0 where it doesn't run, where another thread is collecting, or where collecting has had its half of the time.
        """
        work = self._work
        if nbytes <= 0 or not self._epoch or not work.acquire(False):
            return 0
        try:
            if not self._lives_on_it() and self._missing_credit(self._now()):
                self._limited += 1
                return 0
            before = self._readings.rss()
            done = self._collect_all(FORCED if self._pauses.in_flight else TRIM) >= 0
            return max(0, before - self._rss) if done else 0
        finally:
            work.release()

    def _collect(self, generation: int, cause: int) -> int:
        pauses = self._pauses
        pauses.explicit[cause] += 1
        if cause != FORCED:
            return self._gc.collect(generation)
        pauses.unforced = False
        try:
            return self._gc.collect(generation)
        finally:
            pauses.unforced = True

    def _collect_young(self, generation: int) -> None:
        """At the end of a request, often and shortly, so that the interpreter finds no reason to inside one.

        Between requests what has survived them is old, and what they leave in cycles is found while it is young.
        """
        if not self._gc.isenabled():
            return
        total = sum(self._pauses.total)
        freed = self._collect(generation, BOUNDARY)
        pause = sum(self._pauses.total) - total
        if not pause:
            # Another thread is collecting: nothing was done.
            self._pauses.explicit[BOUNDARY] -= 1
            return
        self._fruitless_boundaries = 0 if freed else self._fruitless_boundaries + 1
        most = BOUNDARY_MOST_NS if self._fruitless_boundaries < 2 else FRUITLESS_BOUNDARY_MOST_NS
        if pause > most:
            self._boundary_requests = max(self._boundary_requests // 2, 1)
        elif pause < most // 4:
            self._boundary_requests = min(self._boundary_requests * 2, REQUESTS_AT_MOST)
        self._boundary_due = self._requests + self._boundary_requests
        # Where even one request's objects take long.
        self._boundary_not_before = self._now() + 4 * pause

    def _collect_all(self, cause: int) -> int:
        """A full collection; -1 where it could not be. Held: ``_work``."""
        pauses = self._pauses
        before, total = self._rss, sum(pauses.total)
        # The callback is not to take this one for the interpreter's.
        armed, pauses.armed = pauses.armed, False
        freed = self._collect(2, cause)
        pause = sum(pauses.total) - total
        if not pause:
            # Another thread is collecting, perhaps as it was told: nothing was done.
            pauses.armed = armed
            pauses.explicit[cause] -= 1
            return -1
        if armed:
            self._disarm()
        self._follow_up(before, freed, pause)
        return freed

    def _follow_up(self, before: int, freed: int, pause: int) -> None:
        """What follows from the outcome of a full collection. Held: ``_work``."""
        now = self._now()
        self._glance(now)
        self._asked_ns += pause
        self._full_pause = pause
        fruitless = before - self._rss < before >> 6 and (freed < FEW_FREED or pause > freed * FRUITLESS_NS)
        self._fruitless = self._fruitless + 1 if fruitless else 0
        self._full_due = now + (int(pause / self._target) << self._patience())
        self._mark()
        # As much as has been kept since memory was below the watermark: a collection finds what came since the last.
        kept = not fruitless and self._share >= self._high
        self._kept_objects = max(freed, self._kept_objects) if kept else 0
        # From here on another may be asked for, should memory go on growing.
        self._pauses.taken = 0
        if self._share >= self._high and freed >= FEW_FREED:
            _malloc_trim(0)
            self._glance(self._now())
            self._mark()

    def _patience(self) -> int:
        """How often to double what a full collection waits for: not before the second in a row that was no use."""
        return min(max(0, self._fruitless - 1), 10)

    def _mark(self) -> None:
        """From how much memory on the next full collection is due."""
        self._floor = self._rss
        self._allow_growth()
        self._forced_from = self._high
        if self._share >= self._high:
            # What was freed may still be this process's, in holes: when it grows at all, they are full again. Where
            # there was little to free, an eighth of what is left; more if that is no use, but well before the end.
            left = max(1 - self._share, 0.0)
            step = 1 / 256
            if self._fruitless:
                step = min(max(left / 8, step) * (1 << self._patience()), max(left / 2, step))
            self._forced_from = self._share + step

    def _allow_growth(self) -> None:
        growth = max(self._floor, GROWTH_AT_LEAST) << self._patience()
        self._growth_allowed = min(growth, max(self._headroom // 2, 0))

    def _overdrawn(self, now: int) -> bool:
        """Whether one more full collection would make more than half of the time go to collecting."""
        missing = self._missing_credit(now)
        if not missing:
            return False
        if self._lives_on_it():
            return False
        self._limited += 1
        if not self._warned:
            self._warned = True
            self._note(now, "limit", self._young, "half of the time went to collecting")
            import warnings

            warnings.warn(
                "GCTuner: a collection would make more than half of the time go to collecting, so it waits; "
                "more is alive than the memory limit has room for, or garbage is made faster than it is collected",
                RuntimeWarning,
                stacklevel=2,
            )
        return True

    def _lives_on_it(self) -> bool:
        """Not a leak, and half of the reserve is gone: without a collection it would be killed, with one it lives."""
        return self._share >= (1 + self._high) / 2 and self._full_pause > 0 and not self._fruitless

    def _missing_credit(self, now: int) -> int:
        """Nanoseconds to go without collecting before there may be another collection as long as the last full one."""
        total = sum(self._pauses.total)
        collecting = total - self._credit_total
        without = now - self._credit_at - collecting
        self._credit = min(self._credit + without - collecting, CREDIT_MOST_NS + self._full_pause)
        self._credit_total, self._credit_at = total, now
        return max(0, self._full_pause - self._credit)

    def _arm(self, now: int) -> None:
        """From inside the callback: have the interpreter make its next collection a full one.

        It does so in the thread that fills the memory, which the watcher may be too slow for. It declines where
        less than a quarter of the old objects is new; then the watcher's is all there is.
        """
        pauses = self._pauses
        if self._switched or pauses.armed or pauses.taken or not self._lock.acquire(False):
            return
        try:
            if self._epoch and (self._lives_on_it() or not self._missing_credit(now)):
                pauses.armed = True
                self._set_thresholds()
        finally:
            self._lock.release()

    def _disarm(self) -> None:
        with self._lock:
            self._pauses.armed = False
            if self._epoch:
                self._set_thresholds()

    def _disarm_at_once(self) -> None:
        """For the callback, after a full collection: the next is not to be one as well."""
        self._pauses.armed = False
        # Otherwise the watcher does it.
        if self._lock.acquire(False):
            try:
                if self._epoch:
                    self._set_thresholds()
            finally:
                self._lock.release()

    # Memory

    def _glance_before(self, now: int) -> bool:
        """For the callback, before a collection."""
        attention = self._glance(now)
        if self._share >= self._forced_from:
            self._arm(now)
        work = self._work
        if attention and self._forked and work.acquire(False):
            # There is no watcher yet.
            try:
                self._tend(now)
            finally:
                work.release()
        return attention

    def _glance(self, now: int) -> bool:
        """Read memory. Whether the watcher should look at once. Runs inside the callback too."""
        # Not at every collection, even if it fails.
        self._pauses.due = now + READING_MOST_NS
        rss = self._readings.rss()
        if now >= self._container_due:
            # A container can be resized.
            self._container_due = now + HOLD_NS
            self._container = self._readings.limit()
            with contextlib.suppress(errors.ArgumentValueError):
                self._limit = _readings.memory_limit(self._asked_limit, self._readings)
            self._high = _watermark(min(self._limit, self._container or self._limit))
        container, high = self._container, self._high
        share, headroom = rss / self._limit, int(self._limit * high) - rss
        if container:
            charge = self._readings.charge()
            if charge is not None:
                if charge > container * (high - CLEAR):
                    charge -= self._readings.reclaimable()
                share = max(share, charge / container)
                headroom = min(headroom, int(container * high) - charge)
        self._rss, self._share, self._headroom, self._read_at = rss, share, headroom, now
        if rss < self._floor:
            self._floor = rss
        soon = max(headroom, 0) * 1_000_000_000 // FASTEST_GROWTH
        self._interval = min(max(soon, READING_LEAST_NS), READING_MOST_NS)
        self._pauses.due = now + self._interval
        return share > high - NEAR or now - self._window_began >= WINDOW_NS

    def _check(self, epoch: int) -> float:
        """Decide what memory and time call for, and do it. Seconds until it must be asked again, or -1."""
        work = self._work
        if not work.acquire(False):
            return -1
        try:
            if epoch != self._epoch:
                return -1
            self._tend(self._now())
            now = self._now()
            cause = self._cause(now)
            if cause:
                if self._overdrawn(now):
                    return self._missing_credit(now) / 1e9
                if self._collect_all(cause) < 0:
                    return RETRY_SECONDS
        finally:
            work.release()
        return -1

    def _tend(self, now: int) -> None:
        """What may be done inside the callback too. Held: ``_work``."""
        pauses = self._pauses
        if pauses.taken:
            pause, freed = pauses.taken, pauses.taken_freed
            self._disarm()
            self._follow_up(self._rss, freed, pause)
        elif pauses.armed and self._share < self._forced_from:
            self._disarm()
        self._adapt(now)

    def _cause(self, now: int) -> int:
        """Why a full collection is called for; 0 if it is not."""
        in_flight = self._pauses.in_flight
        self._owing = False
        if self._share >= self._high:
            if self._share >= self._forced_from or self._refilled():
                return FORCED if in_flight else WATERMARK
            return 0
        self._forced_from = self._high
        grown = self._rss - self._floor > self._growth_allowed
        if not grown or now < self._full_due or not self._gc.isenabled():
            return 0
        # To be paid at the first moment without a request, which may be short.
        self._owing = bool(in_flight)
        return 0 if in_flight else DEBT

    def _refilled(self) -> bool:
        """Whether most of what the last full collection freed, and the allocator kept, must be in use again.

        Only where the collector's count goes on until the next full one. Elsewhere the C library has been asked to give
        back what was freed, so that memory shows it.
        """
        return self._only_full and self._gc.get_count()[0] * 2 >= self._kept_objects > 0

    # The young threshold

    def _adapt(self, now: int) -> None:
        pauses = self._pauses
        young = self._young
        if self._share > self._high - NEAR:
            room = max(self._high - self._share, 0) / NEAR
            most = max(YOUNG_LEAST, int(self._young_in_clear * room))
            # In steps worth a decision, and one to the bottom.
            if most * 4 <= young * 3 or most == YOUNG_LEAST < young:
                self._decide(
                    now, max(most, young // 2), f"memory is at {self._share:.0%} of the limit", hold=True
                )
                young = self._young
        else:
            self._young_in_clear = young
        elapsed = now - self._window_began
        if elapsed < WINDOW_NS:
            return
        young_ns, middle_ns, old_ns = pauses.total
        # Full collections are left out once they are the tuner's business: no threshold spares one.
        spent = (
            young_ns + middle_ns + (0 if self._serving and not self._switched else old_ns - self._asked_ns)
        )
        overhead = (spent - self._window_ns) / elapsed
        over = pauses.over_budget - self._window_over
        count = sum(pauses.in_request) - self._window_count
        self._window_began, self._window_ns = now, spent
        self._window_over += over
        self._window_count += count
        if over >= 2 and over * 8 > count:
            if young > YOUNG_LEAST:
                reason = f"{over} of {count} pauses were over {PAUSE_BUDGET_NS / 1e6:g} ms inside a request"
                self._decide(now, max(young * 3 // 4, YOUNG_LEAST), reason, hold=True)
        elif overhead > self._target and self._share < self._high - CLEAR and young < self._most:
            if now < self._held_until:
                return
            # The garbage that gathers between two collections grows with the threshold.
            ahead = self._share + (self._rss - self._base) * 0.5 / self._limit
            if ahead < self._high - NEAR:
                reason = f"young collections took {overhead:.1%} of the time"
                self._decide(now, min(young * 3 // 2, self._most), reason)

    def _decide(self, now: int, young: int, reason: str, hold: bool = False) -> None:
        with self._lock:
            self._note(now, "raise" if young > self._young else "lower", young, reason)
            self._young = young
            if hold:
                self._hold_threshold(now)
            self._boundary_at = young // 2
            if self._epoch:
                self._set_thresholds()

    def _hold_threshold(self, now: int) -> None:
        """Longer each time, so that it doesn't swing between the same two values for ever."""
        if now - self._held_until > HOLD_MOST_NS:
            self._hold = HOLD_NS
        elif now >= self._held_until:
            self._hold = min(self._hold * 2, HOLD_MOST_NS)
        self._held_until = now + self._hold

    def _note(self, now: int, decision: str, young: int, reason: str) -> None:
        self._decisions.append(
            {
                "seconds": (now - self._started) / 1e9,
                "decision": decision,
                "from": self._young,
                "to": young,
                "reason": reason,
            }
        )

    def _set_thresholds(self) -> None:
        """Held: ``_lock``."""
        _, middle, old = self._saved
        if self._switched:
            # Not by disabling it, which the service may do and undo for reasons of its own.
            young = OUT_OF_REACH if self._pauses.in_flight else self._young
            self._gc.set_threshold(young, middle, old)
        elif self._pauses.armed:
            self._gc.set_threshold(YOUNG_LEAST, 0, -1)
        elif self._serving:
            self._gc.set_threshold(self._young, MIDDLE_WITH_REQUESTS, OUT_OF_REACH)
        else:
            self._gc.set_threshold(self._young, middle, old)

    # The watcher

    def _start_watcher(self) -> None:
        wake = self._pauses.wake = SimpleQueue()
        thread = self._thread = threading.Thread(
            target=self._watch, args=(self._epoch, wake), name="synthex-fast-gc-tuner", daemon=True
        )
        try:
            thread.start()
        except BaseException:
            self._thread = None
            raise

    def _restart_watcher(self) -> None:
        """After a fork, once there is a request: a process that was forked is warned about threads until then."""
        with self._lock:
            if not self._forked:
                return
            self._forked = False
        try:
            self._start_watcher()
        except Exception as error:
            # It does without one: requests have ends, and the callback does what may be done there.
            _unraisable.report(error, self)

    def _dismiss_watcher(self) -> threading.Thread | None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._pauses.rouse()
        return thread

    @staticmethod
    def _wait_for(watcher: threading.Thread | None) -> None:
        if watcher is not None and watcher is not threading.current_thread():
            # Bounded: a finaliser that it runs may be waiting for a lock that the caller holds. One that another thread
            # has yet to start ends by itself.
            with contextlib.suppress(RuntimeError):
                watcher.join(1.0)

    def _end_watcher(self) -> None:
        self._wait_for(self._dismiss_watcher())

    def _watch(self, epoch: int, wake: SimpleQueue[None]) -> None:
        me = threading.current_thread()
        seconds = -1.0
        # Looked at before it sleeps too: nobody wakes one that was dismissed before it was there.
        while epoch == self._epoch != 0 and self._thread is me:
            try:
                with contextlib.suppress(Empty):
                    wake.get(True, None if seconds < 0 else seconds)
                if epoch != self._epoch or self._thread is not me:
                    return
                now = self._now()
                # The callback has mostly read it just now, and each reading lets other threads go first, for 5 ms.
                if now - self._read_at > 2 * READING_LEAST_NS:
                    self._glance(now)
                else:
                    self._pauses.due = now + self._interval
                seconds = self._check(epoch)
                if self._switched and seconds < 0:
                    seconds = self._doze()
            except MemoryError:
                # Not even to sleep may there be any; perhaps another thread frees some.
                time.sleep(WITHOUT_MEMORY_SECONDS)
                seconds = WITHOUT_MEMORY_SECONDS
            except Exception as error:
                _unraisable.report(error, self)
                seconds = 1.0

    def _doze(self) -> float:
        """Inside requests no collection starts by itself, and none wakes the watcher: it looks when memory is due.

        Between requests it sleeps; the next one wakes it.
        """
        self._dozing = True
        if not self._pauses.in_flight:
            return -1
        self._dozing = False
        return max((self._pauses.due - self._now()) / 1e9, READING_LEAST_NS / 1e9)

    # What it knows

    @property
    def stats(self) -> dict[str, Any]:
        """What it has measured and decided since `start`, as a new dict. Seconds and bytes.

        ``collector`` is ``generational``, ``incremental`` or ``free-threaded``. ``overhead`` is the share of wall
        time spent collecting. ``pauses`` has a dict for each generation, ``in_request`` one for the pauses inside
        requests that were not forced; their quantiles come from a histogram and are at most an eighth too high.
        ``causes`` counts collections by what made them happen, ``forced`` those above the watermark with a request
        in flight, ``limited`` how often one was put off because half of the time had gone to collecting.
        ``decisions`` are the last 32 changes of the young threshold, each with its reason.
        """
        pauses = self._pauses
        now = self._now() if self._epoch else self._ended
        histograms = [pauses.histogram(generation) for generation in range(3)]
        generations = [
            {
                "collections": sum(counts),
                "freed": freed,
                "seconds": total / 1e9,
                "p50": _quantile(counts, 0.5),
                "p99": _quantile(counts, 0.99),
                "max": longest / 1e9,
            }
            for counts, freed, total, longest in zip(
                histograms, pauses.freed, pauses.total, pauses.longest, strict=True
            )
        ]
        collections = sum(map(sum, histograms))
        causes = dict(zip(CAUSES, pauses.explicit, strict=True))
        # One that was asked for while another thread collected has not taken place.
        causes["automatic"] = max(0, collections - sum(pauses.explicit))
        return {
            "running": bool(self._epoch),
            "collector": self._kind,
            "frozen": self._froze,
            "requests": self._requests,
            "in_flight": pauses.in_flight,
            "overhead": sum(pauses.total) / max(now - self._started, 1),
            "collections": collections,
            "causes": causes,
            "forced": pauses.explicit[FORCED],
            "limited": self._limited,
            "pauses": generations,
            "in_request": {
                "collections": sum(pauses.in_request),
                "p50": _quantile(pauses.in_request, 0.5),
                "p99": _quantile(pauses.in_request, 0.99),
                "max": pauses.longest_in_request / 1e9,
            },
            "young_threshold": self._young,
            "memory": self._rss,
            "memory_limit": self._limit,
            "memory_share": self._share,
            "decisions": [dict(decision) for decision in list(self._decisions)],
        }

    def __repr__(self) -> str:
        state = "running" if self._epoch else "stopped"
        return f"<GCTuner {state}, {self._kind} collector, {self._limit} bytes>"

    # Forks

    def _before_fork(self) -> None:
        self._end_watcher()
        if sys.version_info[:2] == (3, 12):
            # Its join() returns a moment before the system's thread has ended, and fork() warns of that thread.
            time.sleep(0.001)
        # A process forked in the middle of a collection never collects again. Bounded, as above.
        self._work.acquire(True, 1.0)

    def _after_fork_in_parent(self) -> None:
        # It may not have been to be had before the fork.
        with contextlib.suppress(RuntimeError):
            self._work.release()
        self._forked = bool(self._epoch)

    def _after_fork_in_child(self) -> None:
        self._lock, self._work = RLock(), RLock()
        self._pauses.wake = SimpleQueue()
        self._epoch = _next_epoch()
        self._begin()
        self._forked = True
        # First: what was out of reach for a request of the parent's must not stay so, should reading memory fail.
        self._set_thresholds()
        self._glance(self._now())
        self._floor = self._base = self._rss
        self._allow_growth()


# One collector, one tuner. Reentrant for the same reason as a tuner's own.
_guard = RLock()
_running: GCTuner | None = None
_epoch = 0
_malloc_trim: Callable[[int], int] = int


def _next_epoch() -> int:
    global _epoch
    _epoch += 1
    return _epoch


def _find_malloc_trim() -> Callable[[int], int]:
    """What gives memory that the C library keeps for itself back to the system; where there is none, nothing."""
    try:
        import ctypes

        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except Exception:
        return int
    return trim


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


def _finish() -> None:
    """At exit: what is frozen may stay so, since nothing will be collected but what the interpreter takes apart."""
    tuner = _running
    if tuner is not None:
        tuner._remove_callback()
        tuner._end_watcher()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
atexit.register(_finish)
