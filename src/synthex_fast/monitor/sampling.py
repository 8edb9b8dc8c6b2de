"""Reading memory, comparing it with its limit, and deciding how long to wait until the next time.

`MemorySampler` reads resident size and charge at every sample, since they are cheap. The rest is read once a minute,
and whenever the level changes: callbacks then get a sample in which everything is current. `synthex_fast._pressure`
decides what counts against which limit, for the governor too.

`AdaptiveInterval` is the rule for the time between samples. Neither takes a lock; the monitor holds its own.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, cast

from synthex_fast._arguments import want_methods
from synthex_fast._pressure import (
    EMERGENCY,
    LEVELS,
    MARKS,
    RECLAIMABLE_FROM,
    MemoryUse,
    classify,
    nearest,
    on_host,
    working_set,
)
from synthex_fast._readings import Readings, memory_limit, parse_size, requested_limit
from synthex_fast.monitor.history import DAY, MINUTE

if TYPE_CHECKING:
    from synthex_fast._pressure import KernelReadings, MemoryReadings

__all__ = ["AdaptiveInterval", "MemorySampler", "Sample"]

# Everything but resident size and charge is read this rarely.
_SLOW_SECONDS = 60.0
# Counting blocks takes time in proportion to their number. It is done so rarely that the average stays below this.
_BLOCKS_SECONDS_A_MINUTE = 5e-6
# A charge that no process has: with it, `slow` never reads the reclaimable part.
_NEVER = 1 << 62

_METHODS = ("rss", "charge", "reclaimable", "limit", "available", "swap", "total")


class Sample(NamedTuple):
    """Memory at one moment, from `AdaptiveMemoryMonitor.sample`. Sizes are in bytes, times in seconds.

    Memory has two limits, the process's own and its container's. ``used`` and ``limit`` are the pair that is
    nearer: the resident size and the process's limit, or the container's working set and its limit. Outside of a
    container and without a limit of its own, they are what the host has in use, and the host's memory.
    """

    time: float
    """Unix time."""
    rss: int
    """Resident set size of the process."""
    charge: int | None
    """Charged to the container, page cache included; None outside of one."""
    limit: int
    """The limit of ``used``."""
    available: int
    """What the host can give out without swapping. Up to a minute old."""
    swap: int
    """Swap in use by the container, or else by the host. Up to a minute old."""
    gc_seconds: float
    """Time spent in the garbage collector since `AdaptiveMemoryMonitor.start`."""
    blocks: int
    """Blocks allocated by the interpreter, about one per live object. A minute old, or more in a large heap."""
    used: int
    """What counts against ``limit``."""
    level: str
    """One of ``LEVELS``."""
    working_set: int | None = None
    """The part of ``charge`` that the kernel can't reclaim; None without a container's limit. Far below the limit it is
    all of ``charge``; otherwise the reclaimable part is up to a minute old, except that callbacks get it current."""


class _OneByOne:
    """What `Readings` offers in bulk, for readings that offer single figures only and belong to no control group."""

    root = "/"
    container = None

    def __init__(self, readings: MemoryReadings) -> None:
        self._readings = readings

    def slow(self, near: int = 0) -> tuple[int | None, int, int, int]:
        readings = self._readings
        return readings.limit(), readings.available(), readings.swap(), readings.reclaimable()


class MemorySampler:
    """Takes samples, each with the level that it means."""

    def __init__(self, limit: int | float | str | None, readings: MemoryReadings | None) -> None:
        if readings is None:
            readings = Readings()
        self.readings = readings = want_methods("readings", readings, _METHODS)
        self.kernel: KernelReadings = readings if isinstance(readings, Readings) else _OneByOne(readings)
        # The one given, as it is in force; None for the container's or the host's memory.
        self.limit: int | None = None
        self.requested: int | None = None
        self._share: float | None = None
        if limit is not None:
            self.limit = memory_limit(limit, readings, "limit")
            self.requested = requested_limit(limit, readings, "limit")
            if isinstance(limit, str) and limit.strip().endswith("%"):
                # The limit that it is a share of may change.
                self._share = parse_size(limit, "limit", 1 << 40) / (1 << 40)
        self.clear()

    def clear(self) -> None:
        """Forget everything read so far."""
        self.slow_readings = 0
        self._slow_at = -math.inf
        self._container_limit: int | None = None
        self._available = self._swap = self._reclaimable = 0
        # Resident size when the host's figures were read.
        self._rss_then = 0
        self._total = 0
        self._blocks = 0
        self._blocks_due = -math.inf

    def read(self, now: float, before: int, gc_seconds: float) -> Sample:
        """Take a sample at ``now`` on the monitor's clock; ``before`` is the level of the last one."""
        rss = int(self.readings.rss())
        charge = self.readings.charge()
        if now - self._slow_at >= _SLOW_SECONDS or now < self._slow_at:
            self._read_slow(now, rss)
        held = self._working_set(charge)
        use = self._compare(rss, charge, held)
        level = classify(use.share, before)
        if level != before and self._slow_at != now:
            # Page cache that has grown in the last minute is not pressure, and callbacks get current figures.
            self._read_slow(now, rss)
            held = self._working_set(charge)
            use = self._compare(rss, charge, held)
            level = classify(use.share, before)
        return Sample(
            time.time(),
            rss,
            charge,
            use.limit,
            self._available,
            self._swap,
            gc_seconds,
            self._blocks,
            use.used,
            LEVELS[level],
            held,
        )

    @property
    def bounded(self) -> bool:
        """Whether there is a limit other than the host's memory."""
        return self._container_limit is not None or self.limit is not None

    @property
    def own_limit(self) -> int:
        """The limit of the resident size."""
        if self._share is not None:
            return max(1, int(self._share * (self._container_limit or self._total)))
        return max(1, self.limit or self._container_limit or self._total)

    @property
    def least_limit(self) -> int:
        return min(self.own_limit, self._container_limit or self.own_limit)

    def until_next_level(self, sample: Sample) -> int | None:
        """Bytes by which memory must grow to reach the next level at either limit; None at the highest level."""
        level = LEVELS.index(sample.level)
        if level == EMERGENCY:
            return None
        mark = MARKS[level + 1]
        left = int(mark * sample.limit) - sample.used
        container, held = self._container_limit, sample.working_set
        if container is not None and held is not None:
            left = min(left, int(mark * self.own_limit) - sample.rss, int(mark * container) - held)
        return left

    def _working_set(self, charge: int | None) -> int | None:
        container = self._container_limit
        if charge is None or container is None:
            return None
        # No lambda: CPython 3.12 and 3.13 corrupt memory if a function can't be allocated.
        return working_set(charge, max(1, container), self._last_reclaimable)

    def _last_reclaimable(self) -> int:
        return self._reclaimable

    def _compare(self, rss: int, charge: int | None, held: int | None) -> MemoryUse:
        container = self._container_limit
        if container is None and self.limit is None:
            # The host's figure may be a minute old; what this process has grown by since is known.
            available = self._available - max(0, rss - self._rss_then)
            return on_host(rss, charge, max(1, self._total), available)
        return nearest(rss, self.own_limit, charge, None if container is None else max(1, container), held)

    def _read_slow(self, now: float, rss: int) -> None:
        known = self._container_limit
        near = 0
        if self.slow_readings:
            near = _NEVER if known is None else int(RECLAIMABLE_FROM * known)
        limit, available, swap, reclaimable = self.kernel.slow(near)
        if limit is not None and near > RECLAIMABLE_FROM * limit:
            # A lower limit than before: the charge may be near it.
            limit, available, swap, reclaimable = self.kernel.slow(int(RECLAIMABLE_FROM * limit))
        self._container_limit, self._available = limit, available
        self._swap, self._reclaimable = swap, reclaimable
        if self._total <= 0:
            self._total = int(self.readings.total())
        self._rss_then = rss
        self._slow_at = now
        self.slow_readings += 1
        if now >= self._blocks_due:
            began = time.perf_counter()
            self._blocks = sys.getallocatedblocks()
            took = time.perf_counter() - began
            self._blocks_due = now + MINUTE * min(DAY, took / _BLOCKS_SECONDS_A_MINUTE)


class AdaptiveInterval:
    """Seconds until the next sample, from how much the last ones vary: ``longest`` if hardly, ``shortest`` if much."""

    __slots__ = ("_recent", "longest", "shortest")

    def __init__(self, shortest: float, longest: float, window: int) -> None:
        self.shortest = shortest
        self.longest = longest
        self._recent: deque[float] = deque(maxlen=window)

    def clear(self) -> None:
        self._recent.clear()

    def after(self, memory: float) -> float:
        recent = self._recent
        recent.append(memory)
        count = len(recent)
        if count < cast("int", recent.maxlen):
            return self.shortest
        mean = sum(recent) / count
        if mean <= 0:
            return self.longest if not any(recent) else self.shortest
        variation = math.sqrt(sum([(x - mean) ** 2 for x in recent]) / count) / mean
        if variation < 0.01:
            return self.longest
        if variation < 0.05:
            return max(self.shortest, self.longest / 2)
        if variation < 0.1:
            return max(self.shortest, self.longest / 4)
        return self.shortest
