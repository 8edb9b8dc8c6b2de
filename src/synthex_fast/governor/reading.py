"""Reading memory for the governor: the process's own limit, its container's, and samples that a monitor passes on."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, cast

from synthex_fast import _readings
from synthex_fast._arguments import want_methods
from synthex_fast._pressure import LEVELS, NORMAL, MemoryUse, nearest, working_set
from synthex_fast.governor.components import MemorySample, offers

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthex_fast._pressure import MemoryReadings

__all__ = ["MemoryReader"]

_METHODS = ("rss", "charge", "reclaimable", "limit", "available", "total")
# How old the container's limit may be: it rarely changes, and takes longer to read than the rest.
CONTAINER_SECONDS = 1.0
# How old a sample may be that stands for a reading. Other callbacks may have run since it was taken.
SAMPLE_SECONDS = 0.05


class MemoryReader:
    """Compares memory with a limit, which may follow that of a container."""

    def __init__(
        self,
        limit: int | float | str | None,
        readings: MemoryReadings | None,
        clock: Callable[[], float],
    ) -> None:
        if readings is None:
            readings = _readings.Readings()
        self._readings = readings = want_methods("readings", readings, _METHODS)
        self._clock = clock
        self.limit = _readings.memory_limit(limit, readings, name="limit")
        # More than `limit` if the machine has less.
        self.requested = _readings.requested_limit(limit, readings, name="limit")
        container = readings.limit()
        self.follows = limit is None and container is not None
        # False if the limit is only the whole machine's memory.
        self.bounded = limit is not None or container is not None
        self._container: int | None = None
        self._container_at = -math.inf
        # What the container's processes hold together and its limit, as of the last reading; None outside of one.
        self.shared: tuple[int, int] | None = None
        # Unix time at which the latest reading was taken or acted on: an older sample shows memory before that.
        self._latest = -math.inf

    @property
    def readings(self) -> MemoryReadings:
        return self._readings

    @property
    def container_state(self) -> str:
        return _readings.container_state(self._readings)

    def acted(self) -> None:
        """Memory has been acted on: samples taken until now no longer show what it is."""
        self._latest = time.time()

    def read_sizes(self) -> tuple[int, int | None]:
        """Only the resident size and the container's charge."""
        return self._readings.rss(), self._readings.charge()

    @property
    def least_limit(self) -> int:
        """The lower of the process's own limit and its container's, as of the last reading."""
        return self.limit if self.shared is None else min(self.limit, self.shared[1])

    def read_memory(self, sample: object = None) -> MemoryUse:
        """Memory in use against the nearer limit. What a fresh sample contains is not read again."""
        fresh = self._fresh(sample)
        if fresh is None:
            rss, charge = self._readings.rss(), self._readings.charge()
        else:
            rss, charge = fresh.rss, fresh.charge
        container = self._container_limit()
        if self.follows and container:
            # A container can be resized.
            self.limit = container
        limit = self.limit
        # At a rise the monitor has read everything. On the way down, what is slow to read may be a minute old.
        known = None if fresh is None or fresh.level == LEVELS[NORMAL] else fresh
        if charge is not None and container:
            if known and known.limit == container and (known.used != rss or limit <= container):
                # The larger of working set and resident size.
                held = known.used
            else:
                held = working_set(charge, container, self._readings.reclaimable)
            self.shared = held, container
            return nearest(rss, limit, charge, container, held)
        self.shared = None
        if self.bounded:
            return MemoryUse(rss, charge, rss, limit)
        # All processes share the machine's memory.
        taken = known.used if known and known.limit == limit else limit - self._readings.available()
        return MemoryUse(rss, charge, max(rss, taken), limit)

    def _container_limit(self) -> int | None:
        now = self._clock()
        if not 0 <= now - self._container_at < CONTAINER_SECONDS:
            self._container, self._container_at = self._readings.limit(), now
        return self._container

    def _fresh(self, sample: object) -> MemorySample | None:
        """The sample, if it shows memory as it is now. One sample may come with several calls, a level each."""
        if sample is None or not offers(sample, MemorySample):
            return None
        shown = cast("MemorySample", sample)
        now = time.time()
        # A clock set back or forward makes a sample look old, and memory is read.
        return shown if self._latest < shown.time <= now < shown.time + SAMPLE_SECONDS else None
