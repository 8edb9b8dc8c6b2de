"""How much to free, which limits caches get, and how often memory is read: arithmetic only.

Nothing here reads memory or calls a component. `MemoryGovernor` does both and asks `Policy` for the figures.

A cache counts the bytes of what it holds. What they cost in resident memory is more, because of allocator rounding and
fragmentation, so the ratio of the two (`Policy.overhead`) is learned while caches grow. Limits derived from it let the
caches fill up to the target size (`SIZED_FOR`) and no further. They are set while there is headroom, so that a cache
evicts by itself, in the insertion that would exceed it, however fast memory grows.

Freed memory need not return to the system at once. Resident memory that stays after an eviction is room for what comes
next. It causes no further eviction until it rises again (`Policy.excess`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from synthex_fast._fleet.split import Held, Together, budget, share_out, step_down
from synthex_fast._pressure import (
    CRITICAL,
    HIGH,
    HYSTERESIS,
    MARKS,
    NORMAL,
    WARNING,
    MemoryUse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from synthex_fast.governor.components import ComponentState

__all__ = ["Policy", "Throttle", "share_out"]

# The share of the limit that caches are sized for: below "high", with room for what no cache holds.
SIZED_FOR = 0.775
# Changes in memory below this share of the limit mean nothing: requests hold as much in passing.
NOISE = 0.01
# Resident bytes for each byte that caches count: the value assumed until it has been learned, and its bounds.
OVERHEAD = 1.25
OVERHEAD_LEAST, OVERHEAD_MOST = 1.0, 3.0
# A cache that evicts goes down to this share of its limit, and will refill.
EVICTED_TO = 0.8
# Limits grow back by this share of the caller's own limit in this many seconds.
RECOVERY_SECONDS = 5.0
RECOVERY_STEP = 0.1
# How many times as fast they do where shares say how far: a new worker among siblings is not to wait for its own.
DIVIDED_PACE = 2.0
# Seconds between two readings of memory, by level, and the fewest when it grows fast.
IDLE_SECONDS = (5.0, 2.0, 0.25, 0.1, 0.02)
LEAST_SECONDS = 0.02
CALM_LEAST_SECONDS = 0.05
# The half-life of the fastest growth seen.
FORGET_SECONDS = 5.0
# A collection or a malloc_trim that returned less than this share of the limit is repeated less often.
WORTHWHILE = 0.005
GAP_SECONDS = 1.0
MOST_GAP_SECONDS = 60.0
# The share of the limit that is freed each time while memory stays critical after everything in excess was freed.
SQUEEZE = 0.02
# A cache this near to its target is not made to evict: it would go down to `EVICTED_TO`.
CLOSE = 0.95
# No limit is set below this, so that ordinary values still fit.
FLOOR = 64 << 10


class Throttle:
    """Keeps something costly to half of the time, and to less while it returns nothing."""

    __slots__ = ("gap", "next_at")

    def __init__(self) -> None:
        self.gap = 0.0
        self.next_at = -math.inf

    def done(self, now: float, seconds: float, worthwhile: bool) -> None:
        self.gap = 0.0 if worthwhile else min(max(GAP_SECONDS, 2 * self.gap), MOST_GAP_SECONDS)
        self.next_at = now + max(seconds, self.gap)


class Policy:
    """What one governor has learned since it started, and the decisions that follow from it."""

    def __init__(self, now: float, limit: int, bounded: bool) -> None:
        # The process's own limit, and False if that is only the whole machine's memory.
        self._limit = limit
        self._bounded = bounded
        self.overhead = OVERHEAD
        # What the caches may still grow by, in the bytes that they count.
        self._headroom = 0.0
        # Bytes freed on purpose since the heap was last trimmed.
        self._freed = 0
        self._collections = Throttle()
        self._heap_trims = Throttle()
        self._read_at = -math.inf
        self._limits_at = now
        # Bytes a second, and the bytes and the time from which the present rise is measured.
        self._fastest = 0.0
        self._rise_start: tuple[float, float] = (math.inf, 0.0)
        self._used_peak = 0.0
        self._rss_peak = 0.0
        # Memory used, resident size and bytes counted when the overhead was last derived.
        self._learned_from: tuple[float, float, float] | None = None
        # Memory after the last eviction: only a rise above it causes another. 0 if none is in effect.
        self._evicted_at_use = 0.0
        self._squeezed_at = -math.inf
        self._recovering = False
        # Whether there are several caches, and all say what more room would be worth to them.
        self._divides = False
        self._asked = False
        # Resident bytes that this process's caches may hold, as workers of one container agreed; None without others.
        self.share: float | None = None
        # Resident bytes of that by which they may grow before memory is read again.
        self.grant = 0.0
        # Its part of what is to be evicted while memory is high.
        self.part = 1.0
        # Whether memory that a cache frees returns to the system, so that others can use it.
        self.gives = True
        # What the caches occupy of this process's resident memory.
        self.held = Held()
        # Whether there may be siblings.
        self.joined = False
        # Whether the container's limit is the only one.
        self.shares_limit = True

    def elapsed(self, now: float) -> float:
        """Seconds since the last reading was dealt with; infinite before the first."""
        return now - self._read_at

    def observe(self, use: MemoryUse, states: list[ComponentState], now: float, limit: int) -> None:
        """Take in a new reading, for which the sizes of the components have been read too."""
        self._limit = limit
        self._measure_growth(use, now)
        self._age_peaks(use, states, now)
        self._learn_overhead(use, states)
        self._divides = False
        if self._asked:
            caches = [state for state in states if state.limited and state.weight]
            self.held.observe(use.rss, sum(state.nbytes for state in caches) * self.overhead)
            self._weigh(caches, now)

    def divides(self, states: list[ComponentState], joined: bool) -> bool:
        """Whether the caches are to be asked for their needs: if there is a limit, and somebody to share it with."""
        self._asked = self._bounded and (
            joined or sum(1 for state in states if state.limited and state.weight) > 1
        )
        return self._asked

    def _weigh(self, caches: list[ComponentState], now: float) -> None:
        """Move the weights of the caches among themselves, by what another byte is worth to each."""
        self._divides = len(caches) > 1 and all(state.knows_need for state in caches)
        if self._divides:
            claims = [state.claim for state in caches]
            everyone = Together(claims)
            for state, claim in zip(caches, claims, strict=True):
                state.need.next_weight(claim, everyone, now)

    def _measure_growth(self, use: MemoryUse, now: float) -> None:
        """How fast memory has grown recently, in steps that exceed noise: it may do so again."""
        elapsed = max(0.0, now - self._read_at)
        self._fastest *= 0.5 ** min(elapsed / FORGET_SECONDS, 100.0)
        used, since = self._rise_start
        if use.used - used > NOISE * use.limit and now > since:
            self._fastest = max(self._fastest, (use.used - used) / (now - since))
            self._rise_start = (use.used, now)
        elif use.used < used:
            self._rise_start = (use.used, now)

    def _age_peaks(self, use: MemoryUse, states: list[ComponentState], now: float) -> None:
        """Update the recent peak of each component and of memory as a whole.

        A cache evicts to 80 % of its limit and refills from there: the room in between is not headroom for others. A
        cache that stays smaller gives it up slowly.
        """
        elapsed = max(0.0, now - self._limits_at)
        fallen = self._used_peak - RECOVERY_STEP * use.limit * elapsed / RECOVERY_SECONDS
        self._used_peak = max(float(use.used), fallen)
        self._rss_peak = max(
            float(use.rss), self._rss_peak - RECOVERY_STEP * use.limit * elapsed / RECOVERY_SECONDS
        )
        for state in states:
            step = RECOVERY_STEP * (state.own_limit or self._limit) * elapsed / RECOVERY_SECONDS
            lowest = max(state.nbytes / EVICTED_TO, state.peak - step)
            state.peak = max(float(state.nbytes), min(state.peak, lowest))

    def _learn_overhead(self, use: MemoryUse, states: list[ComponentState]) -> None:
        """What a byte that caches count costs in memory, from how the two grow."""
        counted = sum(state.peak for state in states)
        # What siblings add to the container's memory says nothing about this process's caches.
        sizes = self._used_peak, self._rss_peak
        used = sizes[self.joined]
        if self._learned_from is not None:
            *sizes_then, counted_then = self._learned_from
            used_then = sizes_then[self.joined]
            if used < used_then or counted < counted_then:
                # Memory has returned to the system, or the caches have shrunk within it.
                self._learned_from = (
                    min(sizes[0], sizes_then[0]),
                    min(sizes[1], sizes_then[1]),
                    min(counted, counted_then),
                )
            enough = 3 * NOISE * use.limit
            if counted > enough:
                # All that is in use is the most that the caches can cost.
                self.overhead = max(OVERHEAD_LEAST, min(self.overhead, used / counted))
            if counted - counted_then < enough:
                return
            ratio = (used - used_then) / (counted - counted_then)
            self.overhead = min(OVERHEAD_MOST, max(OVERHEAD_LEAST, ratio))
        self._learned_from = (*sizes, counted)

    def alone(self) -> None:
        """There are no siblings: all that the limit leaves is for this process's caches."""
        self.share, self.part, self.gives = None, 1.0, True

    def join(self, joined: bool) -> None:
        """Take note of whether there may be siblings, whose memory counts as used too."""
        self.joined = joined

    # Eviction

    def excess(self, use: MemoryUse, level: int, now: float) -> float | None:
        """Bytes of memory to free by evicting, at "high" or above; None for no eviction.

        That is what exceeds the target size, if memory has just risen: none of it is room to refill. Memory that
        stays although caches have shrunk is theirs to fill again, and evicting more would not lower it. More is evicted
        then only while memory is critical, and little by little.
        """
        if self._evicted_at_use and use.used < self._evicted_at_use + NOISE * use.limit:
            self._evicted_at_use = min(self._evicted_at_use, use.used)
            if level < CRITICAL or now < self._squeezed_at + GAP_SECONDS:
                return None
            self._squeezed_at = now
            return SQUEEZE * use.limit
        return (use.used - SIZED_FOR * use.limit) * (self.part if level < CRITICAL else 1.0)

    def evictions(self, excess: float, states: list[ComponentState], level: int) -> list[float]:
        """Bytes, as they count them, that each of the caches should free."""
        claims = [(state.weight * state.nbytes, float(state.nbytes)) for state in states]
        amounts = share_out(excess / self.overhead, claims)
        for n, state in enumerate(states):
            if state.limited and amounts[n]:
                # Room that it has evicted and not yet refilled is given up first, unless memory is critical.
                kept = state.peak if level < CRITICAL else state.nbytes
                state.peak = max(0.0, kept - amounts[n])
                amounts[n] = state.nbytes - state.peak
        return amounts

    def evicted(self, use: MemoryUse, now: float) -> None:
        """An eviction has left memory at ``use``."""
        self._evicted_at_use = max(SIZED_FOR * use.limit, use.used)
        self._squeezed_at = now

    def calm(self) -> None:
        """Memory is below "high": the next rise is answered in full."""
        self._evicted_at_use = 0.0

    # Limits

    def limits(
        self, use: MemoryUse, caches: list[ComponentState], level: int, now: float
    ) -> Iterator[tuple[int, int | None, str]]:
        """The limits to change so that all caches can fill up to the target size and no further.

        Yields a cache's index, its new limit (None: only the caller's own is to hold), and whether that is to
        ``"grow"`` or to ``"limit"``. Each is to be set before the next is asked for.
        """
        elapsed, self._limits_at = max(0.0, now - self._limits_at), now
        if not caches:
            return
        least = max(FLOOR, use.limit // (16 * max(4, len(caches))))
        divided = True
        if self.share is not None:
            # Its own limit may leave less than the container does.
            room = math.inf if self.shares_limit else SIZED_FOR * use.limit - use.used
            aims = self._divided(self.share, min(self.grant, room), caches, least)
        elif self._divides and level < HIGH:
            # What a cache has freed is room for the others, whether or not it has returned to the system.
            share = budget(SIZED_FOR * use.limit, use.used, [int(self.held.bytes)])
            grant = share - sum(state.peak for state in caches) * self.overhead
            aims = self._divided(share, grant, caches, least)
        else:
            divided = False
            grants = self._grants(use, caches)
            aims = [state.peak + grant for state, grant in zip(caches, grants, strict=True)]
        recovered = level == NORMAL and self._used_peak <= use.used
        for n, (state, aim) in enumerate(zip(caches, aims, strict=True)):
            own = state.own_limit
            if level >= HIGH:
                aim = min(aim, state.peak)
                state.limit_at = now
            elif level == NORMAL and not self._bounded:
                # No limit was asked for: only what pressure took is given back.
                aim = math.inf
            aim = max(aim, least, 0 if level >= HIGH or divided else state.nbytes)
            if state.set_limit is not None and self._recovering:
                pace = (
                    RECOVERY_STEP
                    * (own or self._limit)
                    / RECOVERY_SECONDS
                    * (DIVIDED_PACE if divided else 1.0)
                )
                # What is too little to be worth a change adds up until it is.
                step = max(pace * elapsed, min(pace * (now - state.limit_at), 2 * NOISE * state.set_limit))
                recovered = recovered and aim <= state.set_limit + step
                aim = min(aim, state.set_limit + step)
            if aim >= (own if own is not None else self._limit):
                if state.set_limit is not None:
                    state.limit_at = now
                    yield n, None, "grow"
            elif state.set_limit is None or abs(aim - state.set_limit) > NOISE * state.set_limit:
                grows = state.set_limit is not None and aim > state.set_limit
                state.limit_at = now
                yield n, int(aim), "grow" if grows else "limit"
        # Once they have grown back, limits follow the headroom.
        self._recovering = level >= HIGH or (self._recovering and not recovered)

    def _grants(self, use: MemoryUse, caches: list[ComponentState]) -> list[float]:
        """What each cache may grow by: equal shares, or in proportion to growth.

        They are reconsidered before they are used up, so that a cache that needs more gets what others leave.
        """
        self._headroom = max(0.0, SIZED_FOR * use.limit - max(use.used, self._used_peak)) / self.overhead
        demand = sum(state.growth for state in caches)
        claims = []
        for state in caches:
            own = self._limit if state.own_limit is None else state.own_limit
            claim = state.growth + 0.1 * demand / len(caches) if demand else 1.0
            claims.append((claim, max(0.0, own - state.peak)))
        return share_out(self._headroom, claims)

    def _divided(self, share: float, grant: float, caches: list[ComponentState], least: int) -> list[float]:
        """Limits for ``share`` resident bytes: less where a cache holds more than its part, else room to grow.

        ``grant`` is by how many resident bytes all together may grow for now.
        """
        targets = [max(float(least), target) for target in self._targets(share / self.overhead, caches)]
        rooms = [max(0.0, target - state.peak) for target, state in zip(targets, caches, strict=True)]
        grants = share_out(max(0.0, grant) / self.overhead, [(room, room) for room in rooms])
        self._headroom = sum(grants)
        kept = self.held.bytes / self.overhead / max(sum(state.peak for state in caches), 1.0)
        aims = []
        for state, target, grown in zip(caches, targets, grants, strict=True):
            if state.peak <= target:
                # Below its part it keeps what it has, and grows as memory allows.
                aims.append(state.peak + grown)
            elif state.nbytes <= target / CLOSE:
                # Near enough: what little is over goes with the next eviction of its own.
                aims.append(max(target, float(state.nbytes)))
            elif self.gives:
                aims.append(step_down(state.peak, target))
            else:
                # Nobody else can use what it has freed, so it fills that again.
                aims.append(state.peak * max(1.0, kept))
        return aims

    def _targets(self, total: float, caches: list[ComponentState]) -> list[float]:
        claims = []
        for state in caches:
            most = float(self._limit if state.own_limit is None else state.own_limit)
            if not state.hungry:
                most = min(most, state.room)
            claims.append((state.need.weight, most))
        targets = share_out(total, claims)
        over = (total - sum(targets)) / len(caches)
        return [target + over for target in targets] if over > 0 else targets

    def is_settled(self, use: MemoryUse, states: list[ComponentState]) -> bool:
        """Whether limits stay as they are while memory and sizes do: no peak is fading, and no cache wants more."""
        noise = NOISE * use.limit
        return (
            not self._recovering
            and self._used_peak <= use.used + noise
            and self._rss_peak <= use.rss + noise
            and not any(state.hungry or state.peak > state.nbytes / EVICTED_TO + 1 for state in states)
        )

    # The costly actions

    def collects(self, use: MemoryUse, now: float) -> bool:
        """Whether to run a full garbage collection now, at "critical" or above."""
        return use.share >= MARKS[CRITICAL] - HYSTERESIS and now >= self._collections.next_at

    def collected(self, now: float, seconds: float, returned: float, use: MemoryUse) -> None:
        self._collections.done(now, seconds, returned > WORTHWHILE * use.limit)
        # What it has freed is scattered over the heap.
        self._heap_trims.next_at = -math.inf

    def trims_heap(self, use: MemoryUse, states: list[ComponentState], level: int, now: float) -> bool:
        """Whether the C library is likely to hold free memory that it could return to the system."""
        if use.share < SIZED_FOR - HYSTERESIS or now < self._heap_trims.next_at:
            return False
        if level >= CRITICAL:
            return True
        peak = sum(state.peak for state in states if state.limited)
        shrunk = peak - sum(state.nbytes for state in states if state.limited)
        # A cache that evicts by itself refills: memory returned would only be faulted in again.
        if level < HIGH and shrunk < (1.0 - EVICTED_TO + 0.05) * peak:
            shrunk = 0
        return (self._freed + shrunk) * self.overhead >= NOISE * use.limit

    def freed(self, nbytes: int) -> None:
        """That many bytes have been freed on purpose and may not have returned to the system."""
        self._freed += nbytes

    def heap_trim_begins(self) -> None:
        self._freed = 0

    def heap_trimmed(self, now: float, seconds: float, returned: float, use: MemoryUse) -> None:
        self._heap_trims.done(now, seconds, returned > WORTHWHILE * use.limit)

    # Pace

    def next_reading(
        self, use: MemoryUse, states: list[ComponentState], level: int, now: float, took: float
    ) -> float:
        """Seconds to the next reading: a quarter of the time in which the next mark could be reached.

        ``took`` is what dealing with the present one, of time ``now``, has taken; it takes half of the time at most.
        """
        self._read_at = now
        limited = [state for state in states if state.set_limit is not None]
        wait = math.inf if level == NORMAL and not limited else IDLE_SECONDS[level]
        # The kernel reports the next level in time where it can, and a reading every so often costs next to nothing.
        least = LEAST_SECONDS if level >= HIGH else CALM_LEAST_SECONDS
        for state in limited if self._headroom > NOISE * use.limit else ():
            left = (state.set_limit or 0) - state.nbytes
            if 0 < left < state.growth * wait:
                wait = max(least, 0.25 * left / state.growth)
        mark = SIZED_FOR if level == WARNING and use.share < SIZED_FOR else (*MARKS, 1.0)[level + 1]
        if 0 < -use.over(mark) < self._fastest * min(wait, 4 * IDLE_SECONDS[NORMAL]):
            wait = min(wait, max(least, 0.25 * -use.over(mark) / self._fastest))
        return max(wait, took)
