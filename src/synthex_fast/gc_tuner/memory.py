"""Memory as last read: how near it is to the limit, and when to read it again."""

from __future__ import annotations

import contextlib

from synthex_fast import _readings, errors
from synthex_fast._pressure import nearest, working_set

TYPE_CHECKING = False
if TYPE_CHECKING:
    from synthex_fast._pressure import MemoryReadings

# Shares of the memory limit. Above the high watermark requests no longer hold full collections off. It is lower where
# less than the reserve would be left up to the limit: memory grows no slower in a small container.
HIGH_WATERMARK, LOWEST_WATERMARK = 0.85, 0.70
RESERVE = 64 << 20
# The young threshold is lowered from this far below the watermark on, and may rise again this far below it.
NEAR, CLEAR = 0.15, 0.20

# No process grows faster than this, in bytes a second: memory is read again before it can reach the watermark.
FASTEST_GROWTH = 4 << 30
READING_LEAST_NS = 5_000_000
READING_MOST_NS = 1_000_000_000
# A container can be resized, so its limit is read again this often.
LIMIT_NS = 60_000_000_000

READINGS_METHODS = ("rss", "charge", "reclaimable", "limit", "total")


def watermark(limit: int) -> float:
    """The share of ``limit`` above which a full collection happens even inside a request."""
    return max(min(HIGH_WATERMARK, 1 - RESERVE / limit), LOWEST_WATERMARK)


class MemoryWatch:
    """This process's memory and its container's against their limits. Bytes, shares and nanoseconds."""

    __slots__ = (
        "_asked_limit",
        "_container",
        "_interval",
        "_limit_due",
        "_readings",
        "at_start",
        "due",
        "headroom",
        "high",
        "limit",
        "lowest",
        "read_at",
        "requested",
        "rss",
        "share",
    )

    def __init__(self, readings: MemoryReadings, asked_limit: int | float | str | None) -> None:
        self._readings = readings
        self._asked_limit = asked_limit
        self.limit = _readings.memory_limit(asked_limit, readings)
        # More than `limit` if the machine has less.
        self.requested = _readings.requested_limit(asked_limit, readings)

    def reset(self, now: int) -> None:
        self.high = watermark(self.limit)
        # Resident memory: now, the least since `mark`, and at the start.
        self.rss = self.lowest = self.at_start = 0
        # The nearer of two shares: of the process's limit and of the container's.
        self.share = 0.0
        # Bytes up to the watermark; negative above it.
        self.headroom = self.limit
        self.read_at = now
        # When memory is read again.
        self.due = now
        self._interval = READING_LEAST_NS
        self._container: int | None = None
        self._limit_due = now

    @property
    def is_near(self) -> bool:
        return self.share > self.high - NEAR

    @property
    def is_clear(self) -> bool:
        return self.share < self.high - CLEAR

    @property
    def is_high(self) -> bool:
        return self.share >= self.high

    def read(self, now: int) -> None:
        # If reading fails, it is not retried at every collection.
        self.due = now + READING_MOST_NS
        readings = self._readings
        rss = readings.rss()
        if now >= self._limit_due:
            self._limit_due = now + LIMIT_NS
            self._container = readings.limit()
            with contextlib.suppress(errors.ArgumentValueError):
                # Without the warning of the start.
                asked = _readings.requested_limit(self._asked_limit, readings)
                self.limit = min(asked, readings.total())
            self.high = watermark(min(self.limit, self._container or self.limit))
        container, high = self._container, self.high
        charge = held = None
        headroom = int(self.limit * high) - rss
        if container:
            charge = readings.charge()
            if charge is not None:
                held = working_set(charge, container, readings.reclaimable, high - CLEAR)
                # Of both limits, since the nearer one in share can be the farther one in bytes.
                headroom = min(headroom, int(container * high) - held)
        share = nearest(rss, self.limit, charge, container, held).share
        self.rss, self.share, self.headroom, self.read_at = rss, share, headroom, now
        if rss < self.lowest:
            self.lowest = rss
        soonest = max(headroom, 0) * 1_000_000_000 // FASTEST_GROWTH
        self._interval = min(max(soonest, READING_LEAST_NS), READING_MOST_NS)
        self.due = now + self._interval

    def mark(self) -> None:
        """Measure growth from the last reading on."""
        self.lowest = self.rss

    def postpone(self, now: int) -> None:
        """Keep the last reading, which is recent, for another interval."""
        self.due = now + self._interval

    @property
    def container_state(self) -> str:
        return _readings.container_state(self._readings)

    def resident(self) -> int:
        """Resident memory now; changes nothing else."""
        return self._readings.rss()
