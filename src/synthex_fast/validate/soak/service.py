"""The service under load: the operations of the arm `synthex_fast`, and what else a service does in a day.

Each request makes a query and five responses, keeps the query among the active ones until it is withdrawn or its life
is over, adds the responses to the buffer as a batch, keeps them per query and reads their consensus. In addition it
looks up its user's session and profile, reads an item of a catalog, polls for the answers to a recent query, and works
in a pooled scratch buffer. Some withdraw a query, leave a reference cycle behind, are reviewed by a
`ResponseCollector`, or add a batch of as many responses as the buffer takes at once, or of more.

By the clock: the catalog is loaded every quarter of an hour, and all of it expires at once just before; sessions end
after five minutes without a request; the monitor takes a sample when it is due, and the governor acts on it; four times
a day the configuration is reloaded while requests are served; twice a day another process in the container takes so
much memory that the caches must give theirs up.

Whatever the service does it counts itself, in plain attributes, so that `checks` can compare.
"""

import gc
import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from synthex_fast import (
    AdaptiveMemoryMonitor,
    GCTuner,
    MemoryGovernor,
    ObjectPool,
    PooledExpertQuery,
    PooledExpertResponse,
    ResponseBuffer,
    ResponseCollector,
    TTLDict,
)
from synthex_fast._readings import Readings
from synthex_fast.errors import BatchTooLargeError, BufferPausedError
from synthex_fast.validate.arms import (
    ACTIVE_QUERIES,
    ACTIVE_SECONDS,
    BUFFER_CAPACITY,
    CACHE_LIMIT_MB,
    FLUSH_THRESHOLD,
    RESPONSE_QUERIES,
    RESPONSE_SECONDS,
)
from synthex_fast.validate.corpus import Request
from synthex_fast.validate.soak import workload
from synthex_fast.validate.soak.workload import (
    CYCLIC,
    FULL_BATCH,
    HOUR,
    LARGE_BATCH,
    MINUTE,
    RECENT,
    REVIEW,
    WITHDRAWN,
    Clock,
)

MAX_BATCH = 100
CACHE_LIMIT = int(CACHE_LIMIT_MB * 2**20)
SESSION_SECONDS, SESSION_IDLE = 8 * HOUR, 5 * MINUTE
PROFILES, PROFILE_SECONDS = 2_000, 5 * MINUTE
CATALOG, CATALOG_RELOAD, CATALOG_SECONDS = 3_000, 15 * MINUTE, 15 * MINUTE - 10
SCRATCH_IDLE, SCRATCH_BYTES = 10 * MINUTE, 4_096
RELOADS = tuple(hour * HOUR + 30 * MINUTE for hour in (2, 8, 14, 20))
SWEEP = MINUTE

# The container of the simulated machine, and the memory that another process in it takes: at most times a third, and
# twice a day so much that every level of pressure is passed through.
CONTAINER = 2 << 30
NEIGHBOUR, NEIGHBOUR_MOST = 0.33, 0.93
PRESSURE = (3 * HOUR + 20 * MINUTE, 15 * HOUR + 20 * MINUTE)
PRESSURE_RISES, PRESSURE_LASTS = 10 * MINUTE, 2 * MINUTE


class Machine(Readings):
    """The real figures of this process, in a container that it shares with a simulated neighbour."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def neighbour(self) -> int:
        """Bytes that the other process takes now."""
        of_day = self._clock.now % workload.DAY
        rise = 0.0
        for peak in PRESSURE:
            since = abs(of_day - peak) - PRESSURE_LASTS / 2
            rise = max(rise, min(1.0, 1.0 - since / PRESSURE_RISES))
        return int(CONTAINER * (NEIGHBOUR + rise * (NEIGHBOUR_MOST - NEIGHBOUR)))

    def charge(self) -> int:
        return self.rss() + self.neighbour()

    def limit(self) -> int:
        return CONTAINER

    def reclaimable(self) -> int:
        return 0

    def slow(self, near: int = 0) -> tuple[int | None, int, int, int]:
        _, available, swap, _ = super().slow(near)
        return CONTAINER, available, swap, 0


class Kept:
    """A dict of the service, beside what the service has counted of it."""

    __slots__ = ("added", "deleted", "dict", "hits", "lookups", "name", "removed", "sets")

    def __init__(self, name: str, clock: Clock, max_size: int | None, ttl: float | None, **more: Any) -> None:
        self.name = name
        self.removed = removed = {"expired": 0, "idle": 0, "full": 0, "memory": 0}

        def on_evict(_key: object, _value: object, reason: str) -> None:
            removed[reason] += 1

        self.dict: TTLDict[Any, Any] = TTLDict(
            max_size, ttl, timer=lambda: clock.now, on_evict=on_evict, **more
        )
        # `sets` counts all, `added` those of a key that was not there.
        self.sets = self.added = self.deleted = self.lookups = self.hits = 0


def live_records(kind: Any) -> int:
    """How many records of a type are in use: all that were made, except those freed or kept for reuse."""
    found = kind.stats
    return int(found["created"] - found["discarded"] - found["aliased"] - found["pool_size"])


class Scratch:
    """What the pool keeps: expensive to make, cheap to reset."""

    __slots__ = ("buffer", "used")

    def __init__(self) -> None:
        self.buffer = bytearray(SCRATCH_BYTES)
        self.used = 0

    def reset(self) -> None:
        self.used = 0


class _Node:
    __slots__ = ("other", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.other: _Node | None = None


class _Reviews:
    """Owns the collector of reviewed responses; a reload replaces it."""


class Expectations:
    """Entries whose end is known in advance: a TTL drawn from seconds to six hours, or an idle limit, in a plain model.

    One entry of each kind is added and one looked up in every simulated second.
    """

    LIVES = (1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 21_600.0)
    IDLE = 300.0
    KEYS = 1_009  # a prime, so that the squares of the seconds visit them at irregular intervals

    def __init__(self, clock: Clock) -> None:
        self.timed = Kept("entries of known TTL", clock, None, None)
        self.idle = Kept("entries of known idle time", clock, None, None, idle=self.IDLE)
        self._ends: list[tuple[float, int]] = []
        self._alive: dict[int, float] = {}
        self._last_use: dict[int, float] = {}
        self.wrong = ""

    def tick(self, second: int) -> None:
        now = float(second)
        timed, ends, alive = self.timed, self._ends, self._alive
        life = self.LIVES[second % len(self.LIVES)]
        timed.dict.set(second, now, life)
        timed.sets += 1
        timed.added += 1
        heapq.heappush(ends, (now + life, second))
        alive[second] = now + life
        while ends and ends[0][0] <= now:
            del alive[heapq.heappop(ends)[1]]
        probed = second - (second * second) % (second + 1 if second < 30_000 else 30_000)
        timed.lookups += 1
        found = timed.dict.get(probed) is not None
        timed.hits += found
        if found != (probed in alive):
            self.wrong = (
                f"entry {probed} is {'still' if found else 'no longer'} there after {second - probed} s"
            )
        self._visit((second * second) % self.KEYS, now)

    def _visit(self, key: int, now: float) -> None:
        idle, last_use = self.idle, self._last_use
        idle.lookups += 1
        found = idle.dict.get(key) is not None
        idle.hits += found
        last = last_use.get(key, -self.IDLE)
        if found != (now - last < self.IDLE):
            self.wrong = (
                f"entry {key} is {'still' if found else 'not'} there after {now - last:g} s without use"
            )
        if not found:
            idle.dict[key] = now
            idle.sets += 1
            idle.added += 1
        last_use[key] = now

    def alive(self, now: float) -> tuple[int, int]:
        """How many entries of each kind the model has at that time."""
        return (
            sum(end > now for end in self._alive.values()),
            sum(now - last < self.IDLE for last in self._last_use.values()),
        )

    def clear(self) -> None:
        self.timed.dict.clear()
        self.idle.dict.clear()
        self._ends.clear()
        self._alive.clear()
        self._last_use.clear()


class Service:
    """One worker. `handle` serves a request, `tick` does what is due at a second; the caller advances the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        began = time.perf_counter()
        machine = self._machine = Machine(clock)

        def passed() -> float:
            # Collections take real time, in the middle of the simulated.
            return clock.now + (time.perf_counter() - began)

        # Others of this process, which are none of the service's. Those that are garbage would be freed later.
        gc.collect()
        self.queries_before, self.responses_before = map(
            live_records, (PooledExpertQuery, PooledExpertResponse)
        )
        self.active = Kept("active queries", clock, ACTIVE_QUERIES, ACTIVE_SECONDS)
        self.responses = Kept(
            "responses", clock, RESPONSE_QUERIES, RESPONSE_SECONDS, memory_limit=CACHE_LIMIT
        )
        self.sessions = Kept(
            "sessions",
            clock,
            workload.USERS,
            SESSION_SECONDS,
            idle=SESSION_IDLE,
            memory_limit=4 * CACHE_LIMIT,
        )
        self.profiles = Kept("profiles", clock, PROFILES, PROFILE_SECONDS, memory_limit=CACHE_LIMIT)
        self.catalog = Kept("catalog", clock, CATALOG, CATALOG_SECONDS)
        self.expectations = Expectations(clock)
        self.scratch = ObjectPool(Scratch, 256, prefill=8, max_idle=SCRATCH_IDLE, name="scratch")
        self.lent: list[Scratch] = []
        self._swept_at = time.monotonic()
        self.monitor = AdaptiveMemoryMonitor(clock=lambda: clock.now, readings=machine)
        self.tuner = GCTuner(clock=passed, readings=machine)
        self.governor = MemoryGovernor(
            CONTAINER, readings=machine, clock=lambda: clock.now, pause="fail", fleet=False
        )
        # Of the buffer now in use, and of those before it.
        self.too_large = self.paused = self.all_too_large = self.all_paused = 0
        self._new_buffer()
        self._new_reviews()
        for kept in (self.active, self.responses, self.sessions, self.profiles, self.catalog):
            self.governor.register(kept.dict, name=kept.name)
        self.governor.register(self.scratch)
        self.governor.register(self.tuner)
        self.monitor.on_pressure("warning", self._on_pressure)
        self._recent = [""] * RECENT
        self._items = [f"item-{number}" for number in range(CATALOG)]
        self.requests = self.acquired = self.pressure_calls = self.reloads = 0
        self.samples, self.sample_cpu, self.sample_interval_least, self.sample_interval_most = (
            0,
            0.0,
            1e9,
            0.0,
        )
        self.sample_due = 0.0
        # Of the tuner's runs before its last start.
        self.longest_in_request = 0.0
        self._flush_size = int(BUFFER_CAPACITY * FLUSH_THRESHOLD)
        self._request = self.tuner.request()
        self._tasks: list[tuple[float, Callable[[float], float]]] = [
            (0.0, self._sample),
            (0.0, self._load_catalog),
            (float(SWEEP), self._sweep),
            (float(SCRATCH_IDLE), self._sweep_pool),
            (float(RELOADS[0]), self._reload),
        ]
        self._next_task = 0.0
        self.tuner.start()

    def _new_buffer(self) -> None:
        self.all_too_large += self.too_large
        self.all_paused += self.paused
        self.buffer = ResponseBuffer(BUFFER_CAPACITY, MAX_BATCH)
        self.governor.register(self.buffer, name="buffer")
        self.added = self.batches = self.delivered = self.too_large = self.paused = 0

    def _new_reviews(self) -> None:
        clock = self.clock
        # The old owner dies here, and its collector with it.
        self._owner = _Reviews()
        self.reviews = ResponseCollector(
            self._owner, on_flush=self._on_reviewed, timer=lambda: clock.now, memory_limit=CACHE_LIMIT
        )
        self.governor.register(self.reviews, name="reviews")
        self.reviewed = self.reviewed_delivered = self.reviews_refused = 0

    def _on_reviewed(self, responses: list[PooledExpertResponse]) -> None:
        self.reviewed_delivered += len(responses)

    # Requests

    def handle(self, user: str, request: Request, life: float, rank: int, extra: int) -> None:
        """Serve one request."""
        self._request.__enter__()
        try:
            self._answer(user, request, life, rank, extra)
        finally:
            self._request.__exit__(None, None, None)

    def _answer(self, user: str, request: Request, life: float, rank: int, extra: int) -> None:
        number = self.requests
        self.requests = number + 1
        scratch = self.scratch.acquire()
        if self.sessions.dict.get(user) is None:
            self._begin_session(user)
        self.profiles.dict.get_or_set(user, self._load_profile)
        query = PooledExpertQuery(
            request.title,
            request.content,
            request.requester,
            query_type=request.query_type,
            priority=request.priority,
            context=request.context,
            constraints=request.constraints,
            tags=request.tags,
        )
        query_id = query.id
        self.active.dict.set(query_id, query, life)
        responses = [
            PooledExpertResponse(
                query_id,
                answer.expert_id,
                answer.content,
                answer.confidence,
                answer.reasoning,
                answer.metadata,
            )
            for answer in request.answers
        ]
        try:
            self.buffer.add_batch(responses)
        except BufferPausedError:
            self.paused += 1
        else:
            self.added += 5
            self.batches += 1
            self.buffer.consensus(query_id)
        self.responses.dict[query_id] = responses
        recent = self._recent
        if self.responses.dict.get(recent[(number - rank) % RECENT]) is not None:
            self.responses.hits += 1
        if self.catalog.dict.get(self._items[rank]) is not None:
            self.catalog.hits += 1
        self.catalog.lookups += 1
        recent[number % RECENT] = query_id
        if len(self.buffer) >= self._flush_size:
            self.delivered += len(self.buffer.flush())
        if extra:
            self._do_extra(extra, query_id, responses)
        scratch.used = number
        self.scratch.release(scratch)

    def _begin_session(self, user: str) -> None:
        self.sessions.dict[user] = (user, f"{user} since {self.clock.now:.3f}")
        self.sessions.sets += 1

    def _load_profile(self) -> str:
        self.profiles.sets += 1
        return f"profile {self.profiles.sets}, valid for {PROFILE_SECONDS} s"

    def _do_extra(self, extra: int, query_id: str, responses: list[PooledExpertResponse]) -> None:
        if extra == WITHDRAWN:
            self.active.deleted += self.active.dict.pop(query_id, None) is not None
        elif extra == REVIEW:
            try:
                self.reviews.add_batch(responses)
                self.reviewed += len(responses)
                if query_id in self.reviews:
                    self.reviews.consensus(query_id)
            except BufferPausedError:
                self.reviews_refused += 1
        elif extra == CYCLIC:
            one, other = _Node(query_id), _Node(query_id)
            one.other, other.other = other, one
        else:
            self._add_batch(extra, responses)

    def _add_batch(self, extra: int, responses: list[PooledExpertResponse]) -> None:
        batch: Iterator[PooledExpertResponse] | list[PooledExpertResponse]
        if extra == FULL_BATCH:
            batch = (responses * MAX_BATCH)[:MAX_BATCH]
        elif extra == LARGE_BATCH:
            batch = (responses * MAX_BATCH)[: MAX_BATCH + 1]
        else:
            batch = itertools.cycle(responses)
        try:
            self.added += self.buffer.add_batch(batch)
            self.batches += 1
        except BatchTooLargeError:
            self.too_large += 1
        except BufferPausedError:
            self.paused += 1

    # What is due at a second

    def tick(self, second: int, arriving: int) -> None:
        """Do what is due, and lend scratch buffers for as many connections as a tenth of the requests that arrive."""
        self.expectations.tick(second)
        lent = self.lent
        while lent:
            self.scratch.release(lent.pop())
        wanted = min(arriving // 10, 200)
        for _ in range(wanted):
            lent.append(self.scratch.acquire())
        self.acquired += wanted
        if second >= self._next_task:
            now = float(second)
            self._tasks = [(task(now) if due <= now else due, task) for due, task in self._tasks]
            self._next_task = min(due for due, _ in self._tasks)

    def _sample(self, now: float) -> float:
        """Sample memory; the callback for pressure, and with it the governor, is not counted to the monitor."""
        began = time.thread_time()
        taken = self.monitor.sample()
        seconds = self.monitor.calculate_next_interval(taken.used / taken.limit)
        self.sample_cpu += time.thread_time() - began
        self.samples += 1
        self.sample_interval_least = min(self.sample_interval_least, seconds)
        self.sample_interval_most = max(self.sample_interval_most, seconds)
        self.sample_due = now + seconds
        self.governor.check()
        return self.sample_due

    def _on_pressure(self, _level: str, _sample: object) -> None:
        self.pressure_calls += 1

    def _load_catalog(self, now: float) -> float:
        catalog = self.catalog
        alive = len(catalog.dict)
        for item in self._items:
            catalog.dict[item] = f"{item} at {now:.0f}"
        catalog.sets += CATALOG
        catalog.added += CATALOG - alive
        return now + CATALOG_RELOAD

    def _sweep(self, now: float) -> float:
        # A dict with its own timer is not swept by the package.
        for kept in self.kept():
            kept.dict.expire()
        self.reviews.expire()
        return now + SWEEP

    def _sweep_pool(self, now: float) -> float:
        """Discard what has been idle since the last call: for `SCRATCH_IDLE` seconds of the simulated time."""
        swept = time.monotonic()
        # The pool's times are real. What it has kept from before the last sweep counts as old enough.
        self.scratch._sweep(1.0, self._swept_at + SCRATCH_IDLE)
        self._swept_at = swept
        return now + SCRATCH_IDLE

    def _reload(self, now: float) -> float:
        """A new configuration while requests are served: limits change, parts are replaced, the tuner starts anew."""
        self.reloads += 1
        smaller = self.reloads % 2
        self.profiles.dict.resize(PROFILES // 2 if smaller else PROFILES)
        self.scratch.resize(128 if smaller else 256)
        self.delivered += len(self.buffer.flush())
        self._new_buffer()
        self._new_reviews()
        self.catalog = Kept("catalog", self.clock, CATALOG, CATALOG_SECONDS)
        self.governor.register(self.catalog.dict, name=f"catalog {self.reloads}")
        self._load_catalog(now)
        self.longest_in_request = self.worst_in_request()
        self.tuner.stop()
        self.tuner.start()
        today = now - now % workload.DAY
        later = [today + time for time in (*RELOADS, RELOADS[0] + workload.DAY) if today + time > now]
        return later[0]

    # For the checks

    def kept(self) -> tuple[Kept, ...]:
        """All dicts, the model's last."""
        known = self.expectations
        return (
            self.active, self.responses, self.sessions, self.profiles, self.catalog, known.timed, known.idle
        )  # fmt: skip

    def settle(self) -> None:
        """Complete the counts that follow from the number of requests."""
        served = self.requests
        self.active.sets = self.active.added = served
        self.responses.sets = self.responses.added = self.responses.lookups = served
        self.sessions.lookups = self.profiles.lookups = served
        self.sessions.added, self.profiles.added = self.sessions.sets, self.profiles.sets
        self.sessions.hits = served - self.sessions.sets
        self.profiles.hits = served - self.profiles.sets

    def worst_in_request(self) -> float:
        """The longest pause inside a request that was not forced, in seconds."""
        return max(self.longest_in_request, self.tuner.stats["in_request"]["max"])

    def leak(self) -> str:
        """What the monitor says of a leak, if it finds one; else empty."""
        found = self.monitor.leak()
        return found.text if found else ""

    def drain(self) -> None:
        """Release all that the caches, the buffer and the pool hold; what is left is the floor."""
        self.tuner.stop()
        while self.lent:
            self.scratch.release(self.lent.pop())
        for kept in self.kept():
            kept.dict.clear()
        self.expectations.clear()
        self.buffer.flush()
        self.reviews.close()
        self.scratch.clear()
        self._recent[:] = [""] * RECENT

    def close(self) -> None:
        """Restore what the service changed for the whole process."""
        self.tuner.stop()
