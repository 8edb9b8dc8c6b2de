"""Pacing: how large the young threshold is, when the next collection is due, and how much time collecting may take.

Nothing here collects or takes a lock: each class keeps figures and answers a question, and the tuner acts on it.
"""

from __future__ import annotations

from collections import deque

from synthex_fast.gc_tuner.collector import YOUNG_LEAST
from synthex_fast.gc_tuner.memory import NEAR
from synthex_fast.gc_tuner.pauses import PAUSE_BUDGET_NS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from synthex_fast.gc_tuner.memory import MemoryWatch
    from synthex_fast.gc_tuner.pauses import PauseStatistics

# Bounds of the young threshold, in containers: once there have been requests, and in a process without any.
YOUNG_AT_START = 2_000
YOUNG_MOST_WITH_REQUESTS = 3_000
YOUNG_MOST = 100_000
# The threshold is reconsidered once per window. After it was lowered it is held, for HOLD_NS at first.
WINDOW_NS = 1_000_000_000
HOLD_NS = 60_000_000_000
HOLD_MOST_NS = 3_600_000_000_000

# The number of requests between two collections at their ends is chosen so that one takes about this long. The count
# of containers that thresholds are compared with goes down with each one freed, so there can be many times as many
# young objects; those made recently are still in the processor's caches, where collecting costs a fraction.
BOUNDARY_MOST_NS = 200_000
# After two that found nothing they may grow to this, which is still short if one starts inside a request.
FRUITLESS_BOUNDARY_MOST_NS = 400_000
REQUESTS_AT_MOST = 1_024

# A full collection is due when memory has grown by as much as the last one kept, and at least by this.
GROWTH_AT_LEAST = 64 << 20
# A full collection that returns less than a 64th of memory was fruitless if it freed fewer objects than this, or took
# longer for each: about ten live objects were then visited for each one freed.
FEW_FREED = 1_000
FRUITLESS_NS = 5_000
# Time without collecting can be saved up for collecting, up to this, as in Go's limiter.
CREDIT_MOST_NS = 1_000_000_000


class Change:
    """A new young threshold and the reason for it; with ``hold``, it is not raised again for some time."""

    __slots__ = ("hold", "reason", "threshold")

    def __init__(self, threshold: int, reason: str, hold: bool = False) -> None:
        self.threshold = threshold
        self.reason = reason
        self.hold = hold


class YoungThreshold:
    """The young generation's threshold, in containers, and the decisions that led to it."""

    __slots__ = (
        "_clear_value",
        "_held_until",
        "_hold",
        "_most",
        "_started",
        "_target",
        "_window_collecting",
        "_window_count",
        "_window_over",
        "boundary",
        "decisions",
        "value",
        "window_began",
    )

    def __init__(self, target: float) -> None:
        self._target = target

    def reset(self, now: int) -> None:
        self._started = now
        self._most = YOUNG_MOST
        self.decisions: deque[dict[str, Any]] = deque(maxlen=32)
        self._hold = HOLD_NS
        self._held_until = now - HOLD_MOST_NS - 1
        self.window_began = now
        self._window_collecting = self._window_over = self._window_count = 0
        self.begin_at(YOUNG_AT_START)

    def begin_at(self, threshold: int) -> None:
        """Begin with the service's own threshold, within bounds; no decision is noted."""
        self.value = min(max(threshold, YOUNG_AT_START), YOUNG_MOST)
        # Its value when memory was last well below the limit: it is lowered in proportion to this.
        self._clear_value = self.value
        # A young collection between requests is worthwhile from half of the threshold on.
        self.boundary = self.value // 2

    def cap_for_requests(self) -> Change | None:
        """From the first request on."""
        self._most = YOUNG_MOST_WITH_REQUESTS
        if self.value > self._most:
            return Change(self._most, "requests have begun: pauses are kept short")
        return None

    def adapt_to_memory(self, memory: MemoryWatch) -> Change | None:
        if not memory.is_near:
            self._clear_value = self.value
            return None
        room = max(memory.high - memory.share, 0) / NEAR
        most = max(YOUNG_LEAST, int(self._clear_value * room))
        # In steps large enough to be worth a decision, the last one to the least.
        if most * 4 <= self.value * 3 or most == YOUNG_LEAST < self.value:
            return Change(
                max(most, self.value // 2), f"memory is at {memory.share:.0%} of the limit", hold=True
            )
        return None

    def window_is_over(self, now: int) -> bool:
        return now - self.window_began >= WINDOW_NS

    def adapt_to_pauses(
        self, now: int, pauses: PauseStatistics, collecting: int, memory: MemoryWatch
    ) -> Change | None:
        """At the end of a window. ``collecting`` is the time spent, since the start, that the threshold affects."""
        elapsed = now - self.window_began
        overhead = (collecting - self._window_collecting) / elapsed
        over = pauses.over_budget - self._window_over
        count = sum(pauses.in_request) - self._window_count
        self.window_began, self._window_collecting = now, collecting
        self._window_over += over
        self._window_count += count
        if over >= 2 and over * 8 > count:
            if self.value > YOUNG_LEAST:
                reason = f"{over} of {count} pauses were over {PAUSE_BUDGET_NS / 1e6:g} ms inside a request"
                return Change(max(self.value * 3 // 4, YOUNG_LEAST), reason, hold=True)
        elif overhead > self._target and memory.is_clear and self.value < self._most:
            if now < self._held_until:
                return None
            # The garbage that accumulates between two collections grows with the threshold.
            expected = memory.share + (memory.rss - memory.at_start) * 0.5 / memory.limit
            if expected < memory.high - NEAR:
                reason = f"young collections took {overhead:.1%} of the time"
                return Change(min(self.value * 3 // 2, self._most), reason)
        return None

    def apply(self, now: int, change: Change) -> None:
        self.record(
            now, "raise" if change.threshold > self.value else "lower", change.threshold, change.reason
        )
        self.value = change.threshold
        self.boundary = self.value // 2
        if change.hold:
            self._extend_hold(now)

    def _extend_hold(self, now: int) -> None:
        """Longer each time, so that the threshold doesn't oscillate between two values."""
        if now - self._held_until > HOLD_MOST_NS:
            self._hold = HOLD_NS
        elif now >= self._held_until:
            self._hold = min(self._hold * 2, HOLD_MOST_NS)
        self._held_until = now + self._hold

    def record(self, now: int, decision: str, threshold: int, reason: str) -> None:
        self.decisions.append(
            {
                "seconds": (now - self._started) / 1e9,
                "decision": decision,
                "from": self.value,
                "to": threshold,
                "reason": reason,
            }
        )


class Boundaries:
    """The young collections at the ends of requests: short and frequent, so that none starts inside one."""

    __slots__ = ("_due", "_fruitless", "_not_before", "gap")

    def reset(self, now: int) -> None:
        # Requests from one to the next.
        self.gap = 1
        self._due = 1
        self._not_before = now
        self._fruitless = 0

    def is_due(self, requests: int, now: int) -> bool:
        return requests >= self._due and now >= self._not_before

    def record(self, requests: int, now: int, freed: int, pause: int) -> None:
        self._fruitless = 0 if freed else self._fruitless + 1
        most = BOUNDARY_MOST_NS if self._fruitless < 2 else FRUITLESS_BOUNDARY_MOST_NS
        if pause > most:
            self.gap = max(self.gap // 2, 1)
        elif pause < most // 4:
            self.gap = min(self.gap * 2, REQUESTS_AT_MOST)
        self._due = requests + self.gap
        # Bounds the overhead where even one request's objects take long.
        self._not_before = now + 4 * pause


class FullCollections:
    """When the next full collection is due, from how the ones before went and how memory has grown since."""

    __slots__ = (
        "_fruitless",
        "_growth_allowed",
        "_target",
        "asked_ns",
        "forced_from",
        "kept_objects",
        "last_pause",
        "not_before",
        "owed",
    )

    def __init__(self, target: float) -> None:
        self._target = target

    def reset(self, now: int, memory: MemoryWatch) -> None:
        # In a row.
        self._fruitless = 0
        self.last_pause = 0
        # Nanoseconds of those that the tuner asked for.
        self.asked_ns = 0
        # No full collection before this, to keep to the time budget; except above the watermark.
        self.not_before = now
        self._growth_allowed = GROWTH_AT_LEAST
        # One fell due while a request was in flight: make up for it as soon as none is, since that moment may be short.
        self.owed = False
        # The share of the limit from which one happens even inside a request.
        self.forced_from = memory.high
        # Objects freed while the allocator kept their memory.
        self.kept_objects = 0

    def is_debt(self, now: int, memory: MemoryWatch) -> bool:
        """Whether memory has grown enough, and the time budget allows one."""
        return memory.rss - memory.lowest > self._growth_allowed and now >= self.not_before

    def is_vital(self, memory: MemoryWatch) -> bool:
        """Whether the process would be killed without a collection but not with one.

        Half of the reserve is gone, and the last collection found plenty: survival takes priority over latency.
        """
        return memory.share >= (1 + memory.high) / 2 and self.last_pause > 0 and not self._fruitless

    def record(self, now: int, before: int, freed: int, pause: int, memory: MemoryWatch) -> None:
        """Plan from the outcome of one: resident memory was ``before`` and is now as ``memory`` says."""
        self.asked_ns += pause
        self.last_pause = pause
        little = before - memory.rss < before >> 6
        fruitless = little and (freed < FEW_FREED or pause > freed * FRUITLESS_NS)
        self._fruitless = self._fruitless + 1 if fruitless else 0
        self.not_before = now + (int(pause / self._target) << self._patience())
        self.mark(memory)
        # The largest number since memory was below the watermark: each collection finds only what is new.
        kept = not fruitless and memory.is_high
        self.kept_objects = max(freed, self.kept_objects) if kept else 0

    def _patience(self) -> int:
        """How often to double the wait for the next one: from the second fruitless one in a row on."""
        return min(max(0, self._fruitless - 1), 10)

    def mark(self, memory: MemoryWatch) -> None:
        """Measure growth from here, and set the share from which the next one is forced."""
        self.mark_growth(memory)
        self.forced_from = memory.high
        if memory.is_high:
            # Freed memory may still belong to the process, in holes: any growth means that they are full again. After a
            # fruitless one, wait for an eighth of what is left, or more if that did not help, but at most half.
            left = max(1 - memory.share, 0.0)
            step = 1 / 256
            if self._fruitless:
                step = min(max(left / 8, step) * (1 << self._patience()), max(left / 2, step))
            self.forced_from = memory.share + step

    def mark_growth(self, memory: MemoryWatch) -> None:
        memory.mark()
        growth = max(memory.rss, GROWTH_AT_LEAST) << self._patience()
        self._growth_allowed = min(growth, max(memory.headroom // 2, 0))


class Limiter:
    """Caps collection at half of wall time: each nanosecond of it is paid for with one without."""

    __slots__ = ("_collecting", "_counted_at", "_credit", "limited", "warned")

    def reset(self, now: int) -> None:
        self._credit = 0
        # How far it has counted: time spent collecting, and the time of day.
        self._collecting = 0
        self._counted_at = now
        # How often a collection was put off.
        self.limited = 0
        self.warned = False

    def wait_ns(self, now: int, collecting: int, pause: int) -> int:
        """Nanoseconds without collecting until a collection of ``pause`` nanoseconds is paid for."""
        spent = collecting - self._collecting
        without = now - self._counted_at - spent
        self._credit = min(self._credit + without - spent, CREDIT_MOST_NS + pause)
        self._collecting, self._counted_at = collecting, now
        return max(0, pause - self._credit)
