"""Watches a process's memory for next to nothing: few samples while it is stable, all it takes when it is not.

A thread sleeps until the next sample is due or the kernel says that memory has grown, whichever comes first. What it
saw goes into a history of fixed size, from which `AdaptiveMemoryMonitor.leak` tells a leak from the ups and downs of
traffic.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import itertools
import math
import os
import select
import struct
import sys
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat

from synthex_fast import _unraisable
from synthex_fast._readings import Readings, memory_limit, parse_size
from synthex_fast.errors import type_error, value_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    Callback = Callable[[str, "Sample"], object]
    Floats = npt.NDArray[np.float64]
    # Of the history: bin, time, drift, samples, least, most.
    _Row = tuple[float, float, float, int, Sequence[float], Sequence[float]]

__all__ = ["LEVELS", "METRICS", "AdaptiveMemoryMonitor", "Leak", "Sample", "Trend"]

LEVELS = ("normal", "warning", "high", "critical", "emergency")
# The shares of the limit at which the levels begin, and how far under its beginning a level ends.
_BEGIN = (0.0, 0.70, 0.80, 0.90, 0.95)
HYSTERESIS = 0.03

METRICS = ("rss", "charge", "limit", "available", "swap", "gc_seconds", "blocks")

# Readings other than resident size and charge are taken this rarely.
_SLOW_SECONDS = 60.0
# Counting blocks takes time in proportion to their number: it is done so rarely that the average stays under this.
_BLOCKS_SECONDS_A_MINUTE = 5e-6
# For so long after an event no other is listened to: it bounds what a storm of them costs.
_DEAF_SECONDS = 0.8
# A collection is taken as an occasion to look at the resident size this often, where the kernel can't wake us.
_LOOK_SECONDS = 1.0
_LEAST_BURST = 16 << 20
# Bounded: a callback of the user's may be waiting for a lock that the caller of stop() holds.
_JOIN_SECONDS = 1.0
# When the thread goes on for which there was no memory.
_WITHOUT_MEMORY_SECONDS = 0.05

_MINUTE, _HOUR, _DAY = 60.0, 3_600.0, 86_400.0


class Sample(NamedTuple):
    """What `AdaptiveMemoryMonitor.sample` saw. Memory is in bytes, times in seconds."""

    time: float
    """Unix time."""
    rss: int
    """Resident set size of the process."""
    charge: int | None
    """Charged to the container, page cache included; None outside of one."""
    limit: int
    """What ``used`` is compared with."""
    available: int
    """What the host can give out without swapping; up to a minute old."""
    swap: int
    """Swap in use by the container, else by the host; up to a minute old."""
    gc_seconds: float
    """Spent in the garbage collector since `AdaptiveMemoryMonitor.start`."""
    blocks: int
    """Blocks the interpreter has allocated, about one for each live object; a minute old, longer in a large heap."""
    used: int
    """What counts against the limit."""
    level: str
    """One of ``LEVELS``."""


class Trend(NamedTuple):
    """The direction in which the floor of memory moves; `AdaptiveMemoryMonitor.trend`."""

    bytes_per_day: float
    percent_per_day: float
    confidence: float
    """From 0 to 1: one less the probability that memory without a trend would look like this."""
    seconds: float
    """How much history it rests on."""


class Leak(NamedTuple):
    """What `AdaptiveMemoryMonitor.leak` found. Its ``leaking`` is the verdict, ``text`` says it in words."""

    leaking: bool
    percent_per_day: float
    confidence: float
    """From 0 to 1: one less the probability that memory without a trend would look like this."""
    over_limit: bool
    """Whether the growth is above the 1 % a day that a healthy service keeps under."""
    seconds: float
    """How much history the verdict rests on."""
    text: str

    def __bool__(self) -> bool:
        return self.leaking


# History


class _Ring:
    """Rows of one resolution in memory allocated once: the least and the most of each metric in ``width`` seconds."""

    # Time (on the monitor's clock), wall clock against it since the start, samples, least and most of each metric.
    # Single precision is exact for whole pages up to 64 GB, and 6e-8 of the value beyond.
    ROW = struct.Struct("<dfI14f")

    __slots__ = ("_coarser", "_next", "_open", "buffer", "count", "rows", "width")

    def __init__(self, rows: int, width: float, coarser: _Ring | None) -> None:
        self.rows = rows
        self.width = width
        self.buffer = bytearray(rows * self.ROW.size)
        self._coarser = coarser
        self.clear()

    def clear(self) -> None:
        self.count = self._next = 0
        # The row that is still growing.
        self._open: _Row | None = None
        if self._coarser is not None:
            self._coarser.clear()

    def add(self, at: float, drift: float, samples: int, low: Sequence[float], high: Sequence[float]) -> None:
        row = self._open
        added = at // self.width, at, drift, samples, low, high
        if row is None:
            self._open = added
            return
        # A clock that goes back stays in the row it was in.
        if added[0] <= row[0]:
            self._open = _merged(row, added)
            return
        # All that needs memory comes first: a sample that fails is as if it had not been taken.
        flat = _flat(row)
        following, count = (self._next + 1) % self.rows, min(self.count + 1, self.rows)
        self.ROW.pack_into(self.buffer, self._next * self.ROW.size, *flat)
        if self._coarser is not None:
            self._coarser.add(*row[1:])
        self._next, self.count = following, count
        self._open = added

    def read(self, finer: Sequence[_Row]) -> tuple[Any, list[_Row]]:
        """The rows in order as an array of `_dtype`, the growing ones last; and the growing ones.

        Those of the ``finer`` rings, which this one has not been told of, are added to its own.
        """
        import numpy as np

        growing = [] if self._open is None else [self._open]
        for row in finer:
            row = row[1] // self.width, *row[1:]
            if growing and row[0] <= growing[-1][0]:
                growing[-1] = _merged(growing[-1], row)
            else:
                growing.append(row)
        size = self.ROW.size
        if self.count < self.rows:
            text = bytes(self.buffer[: self.count * size])
        else:
            text = bytes(self.buffer[self._next * size :] + self.buffer[: self._next * size])
        text += b"".join([self.ROW.pack(*_flat(row)) for row in growing])
        return np.frombuffer(text, _dtype(compact=True)), growing


def _merged(row: _Row, other: _Row) -> _Row:
    low, high = tuple(map(min, row[4], other[4])), tuple(map(max, row[5], other[5]))
    return row[0], row[1], row[2], row[3] + other[3], low, high


def _flat(row: _Row) -> list[float]:
    flat: list[float] = [row[1], row[2], min(row[3], 0xFFFFFFFF)]
    for pair in zip(row[4], row[5], strict=True):
        flat += pair
    return flat


_dtypes: dict[bool, Any] = {}


def _dtype(compact: bool = False) -> Any:
    import numpy as np

    found = _dtypes.get(compact)
    if found is not None:
        return found
    number = "<f4" if compact else "<f8"
    pair = [("min", number), ("max", number)]
    head: list[Any] = [("time", "<f8"), ("drift", number), ("samples", "<u4")]
    if not compact:
        head = [("time", "<f8"), ("seconds", "<f8"), ("samples", "<u4")]
    return _dtypes.setdefault(compact, np.dtype(head + [(name, pair) for name in METRICS]))


class _History:
    """An hour in rows of 5 seconds, a day of 5 minutes, a month of hours: 130,464 bytes, whatever the uptime."""

    def __init__(self) -> None:
        # Each holds a row of the next coarser one more than its span, so that the two always meet.
        self._month = _Ring(732, _HOUR, None)
        self._day = _Ring(300, 300.0, self._month)
        self._hour = _Ring(780, 5.0, self._day)
        self.clear()

    def clear(self) -> None:
        self._hour.clear()
        self._offset: float | None = None
        self._latest = -math.inf

    @property
    def nbytes(self) -> int:
        return sum(len(ring.buffer) for ring in (self._hour, self._day, self._month))

    def record(self, now: float, wall: float, values: Sequence[float]) -> None:
        if self._offset is None:
            self._offset = wall - now
        self._hour.add(now, wall - now - self._offset, 1, values, values)
        self._latest = max(self._latest, now)

    def rows(self) -> list[Any]:
        """Rows of the three, coarsest first and in order, none of them for the same time as another."""
        import numpy as np

        rings = (self._month, self._day, self._hour)
        hour, hour_growing = self._hour.read(())
        day, day_growing = self._day.read(hour_growing)
        month, _ = self._month.read(day_growing)
        fine = math.ceil((self._latest - _HOUR) / 300.0) * 300.0 if self._offset is not None else 0.0
        coarse = math.ceil((self._latest - _DAY) / _HOUR) * _HOUR if self._offset is not None else 0.0
        bounds = ((-math.inf, coarse), (coarse, fine), (fine, math.inf))
        kept = []
        for ring, rows, (begin, end) in zip(rings, (month, day, hour), bounds, strict=True):
            # By the row's beginning, not by its first sample.
            part = np.floor(rows["time"] / ring.width) * ring.width
            kept.append(rows[(part >= begin) & (part < end)])
        return kept

    def read(self) -> Any:
        import numpy as np

        parts = self.rows()
        result = np.empty(sum(map(len, parts)), _dtype())
        begin = 0
        for ring, rows in zip((self._month, self._day, self._hour), parts, strict=True):
            into = result[begin : begin + len(rows)]
            begin += len(rows)
            into["time"] = rows["time"] + rows["drift"] + (self._offset or 0.0)
            into["seconds"] = ring.width
            into["samples"] = rows["samples"]
            for name in METRICS:
                into[name]["min"] = rows[name]["min"]
                into[name]["max"] = rows[name]["max"]
        return result

    def floor(self) -> tuple[Floats, Floats]:
        """Times and least resident sizes."""
        import numpy as np

        parts = self.rows()
        times: Floats = np.concatenate([rows["time"] for rows in parts])
        least: Floats = np.concatenate([rows["rss"]["min"] for rows in parts]).astype(np.float64)
        return times, least


# Trend and leak


def theil_sen(times: Floats, values: Floats) -> float:
    """The median of the slopes between all pairs of points. O(n^2); none of up to 29 % of outliers moves it.

    H. Theil, "A rank-invariant method of linear and polynomial regression analysis", 1950; P. K. Sen, "Estimates of
    the regression coefficient based on Kendall's tau", Journal of the American Statistical Association 63, 1968.
    """
    import numpy as np

    first, second = np.triu_indices(len(times), 1)
    return float(np.median((values[second] - values[first]) / (times[second] - times[first])))


def _kendall_score(values: Floats) -> tuple[float, float]:
    """Rising pairs less falling ones, and the variance of that number over all orders of the same values."""
    import numpy as np

    n = len(values)
    first, second = np.triu_indices(n, 1)
    counts = np.unique(values, return_counts=True)[1].astype(np.float64)
    variance = (n * (n - 1) * (2 * n + 5) - float((counts * (counts - 1) * (2 * counts + 5)).sum())) / 18
    return float(np.sign(values[second] - values[first]).sum()), variance


def mann_kendall(times: Floats, values: Floats, slope: float) -> float:
    """The probability that points without a trend rise as consistently as these: one-sided Mann-Kendall test.

    The variance is corrected for ties (M. G. Kendall, "Rank Correlation Methods", 1975) and for serial correlation
    of what is left after the slope is taken out (K. H. Hamed and A. R. Rao, "A modified Mann-Kendall trend test for
    autocorrelated data", Journal of Hydrology 204, 1998), never downwards. H. B. Mann, "Nonparametric tests against
    trend", Econometrica 13, 1945. O(n^2).
    """
    import numpy as np

    n = len(values)
    score, variance = _kendall_score(values)
    if variance <= 0 or score <= 0:
        return 1.0
    left = values - slope * (times - times[0])
    ordered, places, ties = np.unique(left, return_inverse=True, return_counts=True)
    if len(ordered) > 1:
        # The mean rank of each group of equals.
        ranks = (np.cumsum(ties) - (ties - 1) / 2.0)[places]
        ranks = ranks - ranks.mean()
        lags = np.arange(1, n - 2)
        correlation = np.array([float(ranks[lag:] @ ranks[:-lag]) for lag in lags]) / float(ranks @ ranks)
        correlation[np.abs(correlation) < 1.96 / math.sqrt(n)] = 0.0
        weights = (n - lags) * (n - lags - 1) * (n - lags - 2)
        variance *= max(1.0, 1 + 2 / (n * (n - 1) * (n - 2)) * float((weights * correlation).sum()))
    return 0.5 * math.erfc((score - 1) / math.sqrt(variance) / math.sqrt(2))


def _blocks(
    times: Floats, values: Floats, end: float, seconds: float, block: float, keep: bool = False
) -> tuple[Floats, Floats]:
    """The least value of each block of the last ``seconds`` before ``end``; empty ones are left out or infinite."""
    import numpy as np

    count = max(1, round(seconds / block))
    index = np.floor((end - times) / block).astype(np.int64)
    inside = index < count
    least = np.full(count, np.inf)
    np.minimum.at(least, index[inside], values[inside])
    least = least[::-1]
    middle = np.asarray(end - (np.arange(count)[::-1] + 0.5) * block, np.float64)
    if keep:
        return middle, least
    there = np.isfinite(least)
    return middle[there], least[there]


# How much history a verdict may rest on: a window, its parts, the most of the rise that one step from part to part may
# make up, and the blocks whose least values are looked at. Traffic that comes down within a block leaves no trace; the
# blocks of the last window are days, longer than a daily cycle.
_WINDOWS = (
    (2.5 * _HOUR, 6, 0.6, (300.0, 750.0, 1_500.0)),
    (8 * _HOUR, 6, 0.45, (1_200.0, 4_800.0)),
    (_DAY, 6, 0.45, (_HOUR, 4 * _HOUR)),
    (9 * _DAY, 9, 0.35, (_DAY,)),
)
_SIGNIFICANCE = 0.005
_DAILY_PERCENT = 1.0
# No verdict on less growth than this over the window: allocators wander by as much.
_LEAST_RISE = 0.01
# The least share of the rise that each half of the window must have.
_EVEN = 0.3
# Memory that came down by so much before may go up by this share of it above where it ever was.
_FALL = 0.75


def _rises_as_a_leak(
    times: Floats, values: Floats, end: float, seconds: float, parts: int, step: float, block: float
) -> tuple[float, float] | None:
    """Slope and chance if the floor has grown over the last ``seconds`` as a leak makes it grow, else None."""
    import numpy as np

    part = seconds / parts
    # Older rows are hours; the least of an hour and of a shorter block can't be compared.
    reach = end - float(times[0]) if block >= _HOUR else min(end - float(times[0]), _DAY)
    at, least = _blocks(times, values, end, math.floor(reach / part + 0.1) * part, block, keep=True)
    # The level of a part is the median of its blocks, those left out that nobody saw.
    ordered = np.sort(least.reshape(-1, round(part / block)), axis=1)
    there = np.isfinite(ordered).sum(axis=1)
    levels = ordered[np.arange(len(ordered)), np.maximum(0, there - 1) // 2]
    floors = levels[-parts:]
    if len(floors) < parts or not there[-parts:].all():
        return None
    past = levels[there > 0]
    base = float(floors[0])
    thirds = floors.reshape(3, -1).mean(axis=1)
    early, late = np.diff(thirds)
    # From the middle of the first third to that of the last there are two.
    if (early + late) * 1.5 < _LEAST_RISE * base:
        return None
    # A leak goes on: neither a step, nor a cache that fills ever slower, nor the last tooth of a saw.
    if min(early, late) < _EVEN * (early + late) or np.diff(floors).max() > step * np.ptp(floors):
        return None
    if not _never_so_high(past, thirds[2], parts // 2):
        return None
    inside = (at > end - seconds) & np.isfinite(least)
    at, least = at[inside], least[inside]
    slope = theil_sen(at, least)
    if slope * _DAY < _DAILY_PERCENT / 100 * base or slope * seconds < _LEAST_RISE * base:
        return None
    return slope, mann_kendall(at, least, slope)


def _never_so_high(past: Floats, now: float, latest: int) -> bool:
    """Whether memory stands clearly above where it was before the ``latest`` of ``past``."""
    import numpy as np

    if len(past) <= latest:
        return True
    fall = float((np.maximum.accumulate(past) - past).max())
    return now > float(past[:-latest].max()) + _FALL * fall


def _find_leak(times: Floats, values: Floats) -> tuple[float, float, float] | None:
    """Window, slope and chance of the first window that shows one."""
    end = float(times[-1])
    hours = None
    for seconds, parts, step, blocks in _WINDOWS:
        if end - times[0] < seconds - seconds / parts / 10:
            break
        if hours is None:
            hours = _blocks(
                times, values, end, math.ceil((end - float(times[0]) + 1) / _HOUR) * _HOUR, _HOUR
            )[1]
        # What memory did in the month before counts as much as what it does now; longer blocks see to it themselves.
        if blocks[0] < _HOUR and not _never_so_high(
            hours, float(hours[-1]), max(1, int(seconds / _HOUR / 2))
        ):
            continue
        best = None
        for block in blocks:
            found = _rises_as_a_leak(times, values, end, seconds, parts, step, block)
            if found is not None and found[1] < (_SIGNIFICANCE if best is None else best[2]):
                best = seconds, *found
        if best is not None:
            return best
    return None


# Being woken


class _Pipe:
    """Closed when nobody uses it any more: its number may be another file's at the moment after."""

    __slots__ = ("into", "out")

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        for fd in (self.out, self.into):
            os.set_blocking(fd, False)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # No names of the module: at the interpreter's exit they may be gone.
        for name in ("into", "out"):
            try:  # noqa: SIM105
                close(getattr(self, name))
            except (AttributeError, OSError):
                pass


class _Wake:
    """Lets another thread, or the collector, cut a sleep short, and has the kernel do the same."""

    how = "collections"
    cost = "a look at the resident size (2 microseconds), at most once a second, at the end of a collection"

    def __init__(self) -> None:
        self._event = None
        self._pipe: _Pipe | None = None
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._pipe = _Pipe()
            self._poll = select.poll()
            self._poll.register(self._pipe.out, select.POLLIN)
        else:
            self._event = threading.Event()
        self._kernel: dict[int, int] = {}
        self._threshold: int | None = None
        self._group: tuple[int, str] | None = None

    def listen(self, container: tuple[int, str] | None, root: str) -> None:
        """Have the kernel wake us where it is willing to."""
        self._group = container
        if self._poll is None or not sys.platform.startswith("linux"):
            return
        directory = None if container is None else container[1]
        if container is not None and container[0] == 1 and self.expect(1 << 62):
            self.how = "cgroup threshold"
            self.cost = "nothing until it fires; setting it anew then takes about 0.1 ms"
            return
        found = []
        if container is not None and container[0] == 2:
            with contextlib.suppress(OSError):
                fd = os.open(os.path.join(container[1], "memory.events"), os.O_RDONLY | os.O_CLOEXEC)
                self._kernel[fd] = select.POLLPRI
                os.pread(fd, 4096, 0)
                found.append("cgroup events")
        paths = [os.path.join(root, "proc/pressure/memory")]
        if directory is not None and container is not None and container[0] == 2:
            paths.insert(0, os.path.join(directory, "memory.pressure"))
        for path in paths:
            # Stalled for 150 ms of a second; without CAP_SYS_RESOURCE a window must be a multiple of 2 seconds.
            for trigger in (b"some 150000 1000000\0", b"some 300000 2000000\0"):
                try:
                    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError:
                    break
                try:
                    os.write(fd, trigger)
                except OSError:
                    os.close(fd)
                    continue
                self._kernel[fd] = select.POLLPRI
                found.append("pressure stall" if b" 1000000" in trigger else "pressure stall (2 s)")
                break
            if len(found) > 0 and found[-1].startswith("pressure"):
                break
        if found:
            self.how = ", ".join([*found, _Wake.how])
            self.cost = f"nothing from the kernel while nothing stalls or reaches its limit; {_Wake.cost}"
        for fd, mask in self._kernel.items():
            self._poll.register(fd, mask)

    @property
    def by_threshold(self) -> bool:
        return self._threshold is not None

    def follow(self, container: tuple[int, str] | None) -> bool:
        """Whether the process is in another group than the one that was listened to."""
        if container is None or container == self._group:
            return False
        self._group = container
        return True

    def expect(self, charge: int) -> bool:
        """Be woken when the charge crosses this (version 1)."""
        assert self._group is not None
        directory = self._group[1]
        event = control = usage = pressure = -1
        try:
            event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            control = os.open(os.path.join(directory, "cgroup.event_control"), os.O_WRONLY | os.O_CLOEXEC)
            usage = os.open(os.path.join(directory, "memory.usage_in_bytes"), os.O_RDONLY | os.O_CLOEXEC)
            os.write(control, b"%d %d %d" % (event, usage, charge))
            with contextlib.suppress(OSError):
                # Page cache given up for the process's own memory leaves the charge where it was.
                pressure = os.open(
                    os.path.join(directory, "memory.pressure_level"), os.O_RDONLY | os.O_CLOEXEC
                )
                os.write(control, b"%d %d medium" % (event, pressure))
        except (OSError, AttributeError):
            _close(event)
            return False
        finally:
            _close(control)
            _close(usage)
            _close(pressure)
        old, self._threshold = self._threshold, event
        self._poll.register(event, select.POLLIN)
        if old is not None:
            self._poll.unregister(old)
            _close(old)
        return True

    def deafen(self, deaf: bool) -> None:
        """Don't listen to the kernel for now, or again."""
        for fd, mask in self._kernel.items():
            self._poll.modify(fd, 0 if deaf else mask)
        if self._threshold is not None:
            self._poll.modify(self._threshold, 0 if deaf else select.POLLIN)

    def sleep(self, seconds: float) -> bool:
        """Whether the kernel cut it short."""
        if self._event is not None:
            self._event.wait(min(seconds, threading.TIMEOUT_MAX))
            self._event.clear()
            return False
        pipe = self._pipe
        assert pipe is not None
        kernel = False
        # Rounded up: a sample too early would take the slow readings more often than once a minute.
        for fd, got in self._poll.poll(min(math.ceil(seconds * 1000), 1 << 30)):
            if fd == pipe.out:
                with contextlib.suppress(OSError):
                    os.read(fd, 4096)
                continue
            kernel = True
            if fd == self._threshold:
                with contextlib.suppress(OSError):
                    os.eventfd_read(fd)
                continue
            gone = got & select.POLLERR and not got & select.POLLPRI
            try:
                # Reading tells the kernel what we know of.
                os.pread(fd, 4096, 0)
            except OSError as error:
                gone = gone or error.errno == errno.ENODEV
            if gone:
                # Its group is, and would wake us for ever.
                self._poll.unregister(fd)
                self._kernel.pop(fd, None)
                _close(fd)
        return kernel

    def wake(self) -> None:
        if self._event is not None:
            self._event.set()
            return
        # Its own thread may be closing it.
        pipe = self._pipe
        if pipe is not None:
            with contextlib.suppress(OSError):
                os.write(pipe.into, b"x")

    def close(self) -> None:
        fds = list(self._kernel)
        if self._threshold is not None:
            fds.append(self._threshold)
        self._pipe = self._threshold = None
        self._kernel = {}
        for fd in fds:
            _close(fd)


def _close(fd: int) -> None:
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.close(fd)


class _Collections:
    """Adds up the time spent collecting; the entry in ``gc.callbacks``."""

    __slots__ = ("_began", "look", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began: float | None = None
        self.look: Callable[[float], None] | None = None

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
        look = self.look
        if look is not None:
            look(now)


class _Watch:
    """One life of the thread. Holds the monitor weakly: one that nobody refers to ends its thread."""

    def __init__(self, monitor: AdaptiveMemoryMonitor) -> None:
        self.over = False
        self.wake = _Wake()
        self.reference = weakref.ref(monitor, self._gone)
        self.collections = _Collections()
        self.thread = threading.Thread(target=self._run, name="synthex-fast-monitor", daemon=True)
        self.cpu_seconds = 0.0
        self._readings = monitor._readings
        self._look_at = 0.0
        self._seen_rss = 0
        self._burst = _LEAST_BURST

    def _gone(self, reference: object) -> None:
        self.end()

    def end(self) -> None:
        """Let the thread end. May run anywhere, in a collection too."""
        self.forget()
        self.wake.wake()

    def forget(self) -> None:
        self.over = True
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self.collections)

    def start(self) -> None:
        try:
            self.wake.listen(
                getattr(self._readings, "container", None), getattr(self._readings, "_root", "/")
            )
            if not self.wake.by_threshold:
                self.collections.look = self._look
            gc.callbacks.append(self.collections)
            self.thread.start()
        except BaseException:
            self.end()
            self.wake.close()
            raise

    def seen(self, rss: int, burst: int) -> None:
        self._seen_rss = rss
        self._burst = burst

    def _look(self, now: float) -> None:
        """At the end of a collection, where the kernel can't wake us."""
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            # A collection is no place to complain of what the next sample will find as well.
            with contextlib.suppress(OSError):
                if self._readings.rss() - self._seen_rss > self._burst:
                    self.wake.wake()

    def _run(self) -> None:
        seconds = 0.0
        deaf_until = -math.inf
        deaf = event = False
        monitor: AdaptiveMemoryMonitor | None = None
        try:
            while not self.over:
                try:
                    if seconds > 0:
                        event = self.wake.sleep(seconds)
                        if self.over:
                            return
                    now = time.monotonic()
                    monitor = self.reference()
                    if monitor is None:
                        return
                    try:
                        due = monitor._visit(self, event, deaf)
                    except MemoryError:
                        # Perhaps another thread frees some.
                        due = now + 1.0
                    # Perhaps the last reference: nothing may be locked.
                    monitor = None
                    if self.over:
                        return
                    after = time.monotonic()
                    if event:
                        deaf_until = now + _DEAF_SECONDS
                    if (deaf_until > after) != deaf:
                        self.wake.deafen(not deaf)
                        deaf = not deaf
                    seconds = max(0.001, min(due, deaf_until if deaf else math.inf) - after)
                    event = False
                    self.cpu_seconds = time.thread_time()
                except MemoryError:
                    # Nor was there any to sleep or to look at the clock.
                    monitor = None
                    time.sleep(_WITHOUT_MEMORY_SECONDS)
        finally:
            self.end()
            self.wake.close()


# The monitor

# All of them, weakly, for the child of a fork; those whose thread stepped aside for it.
_monitors: dict[int, weakref.ref[AdaptiveMemoryMonitor]] = {}
_numbers = itertools.count()
_paused: list[AdaptiveMemoryMonitor] = []


def _all_monitors() -> list[AdaptiveMemoryMonitor]:
    return [
        monitor for monitor in (reference() for reference in list(_monitors.values())) if monitor is not None
    ]


class AdaptiveMemoryMonitor:
    """Samples memory often while it changes and seldom while it doesn't; tells of pressure and of leaks.

    ``base_interval`` and ``max_interval`` are the seconds between samples of restless and of steady memory,
    ``stability_window`` the number of samples by which it is judged. ``limit`` is what memory is compared with: bytes,
    ``"2GB"``, ``"80%"`` of the container's limit or else of the host's memory, or None for the container's limit, else
    the host's memory.

    What counts against the limit: in a container the resident size or the container's charge less what the kernel can
    take back of it, whichever is more; elsewhere the resident size if a ``limit`` was given, else all the host's memory
    that is not available.

    A thread samples from `start` to `stop` (or inside ``with``); a monitor that nobody refers to ends it. The child of
    a fork has a thread of its own and an empty history. Any method may be called from any thread and from a callback.

    >>> monitor = AdaptiveMemoryMonitor()
    >>> monitor.sample().rss > 0
    True
    >>> monitor.history().dtype.names
    ('time', 'seconds', 'samples', 'rss', 'charge', 'limit', 'available', 'swap', 'gc_seconds', 'blocks')
    >>> with monitor:
    ...     monitor.stats["running"]
    True
    """

    def __init__(
        self,
        base_interval: float = 5.0,
        max_interval: float = 60.0,
        stability_window: int = 10,
        *,
        limit: int | float | str | None = None,
        readings: Any = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._base_interval = _seconds("base_interval", base_interval, 0.01)
        self._max_interval = _seconds("max_interval", max_interval, self._base_interval)
        if isinstance(stability_window, bool) or not isinstance(stability_window, int):
            raise type_error("stability_window", stability_window, "an integer from 2 to 1000")
        if not 2 <= stability_window <= 1000:
            raise value_error("stability_window", stability_window, "an integer from 2 to 1000")
        if clock is not None and not callable(clock):
            raise type_error("clock", clock, "callable or None")
        self._readings = Readings() if readings is None else readings
        self._clock = time.monotonic if clock is None else clock
        self._given: int | None = None
        self._share: float | None = None
        if limit is not None:
            self._given = memory_limit(limit, self._readings, "limit")
            if isinstance(limit, str) and limit.strip().endswith("%"):
                # Of a limit that may change.
                self._share = parse_size(limit, "limit", 1 << 40) / (1 << 40)
        self._lock = threading.RLock()
        self._watch: _Watch | None = None
        self._callbacks: dict[int, tuple[int, Callback]] = {}
        self._tickets = 0
        self._history = _History()
        self._recent: deque[float] = deque(maxlen=stability_window)
        self._clear()
        number = next(_numbers)

        def forget(reference: object, pop: Callable[[int, None], object] = _monitors.pop) -> None:
            pop(number, None)

        _monitors[number] = weakref.ref(self, forget)

    def _clear(self) -> None:
        """As before the first sample."""
        self._recent.clear()
        self._history.clear()
        self._level = 0
        self._busy = False
        self._interval = self._base_interval
        self._due = -math.inf
        self._gc_seconds = 0.0
        self._samples = self._wakeups = self._events = self._slow_readings = 0
        # What the slow readings said, and when.
        self._slow_at = -math.inf
        self._container_limit: int | None = None
        self._available = self._swap = self._reclaimable = 0
        self._rss_then = 0
        self._total = 0
        self._blocks = 0
        self._blocks_due = -math.inf
        # The threshold that is set, and by how much memory must grow to be worth waking up for.
        self._threshold_at: int | None = None
        self._patience = 1
        # The last leak found, and when and at what floor it was.
        self._standing: tuple[Leak, float, float] | None = None

    # Sampling

    def sample(self) -> Sample:
        """Take a sample now and act on it: history, level, callbacks.

        Resident size and charge are read anew, the rest when it is a minute old or the level would rise. About 10
        microseconds, 35 once a minute.
        """
        taken, calls = self._take()
        for level, callback in calls:
            self._call(callback, level, taken)
        return taken

    def _take(self) -> tuple[Sample, list[tuple[str, Callback]]]:
        # Short, because CPython 3.11 can't leave a block far down in a function when no memory is left at all.
        with self._lock:
            now = self._clock()
            taken = self._see(now)
            if self._busy:
                # A finaliser that samples while its own thread is at it: seen, but not written down.
                return taken, []
            self._busy = True
            try:
                return taken, self._note(now, taken)
            finally:
                self._busy = False

    def _see(self, now: float) -> Sample:
        rss = int(self._readings.rss())
        charge = self._readings.charge()
        if now - self._slow_at >= _SLOW_SECONDS or now < self._slow_at:
            self._read_slowly(now, rss)
        used, limit = self._compared(rss, charge)
        level = self._judge(used / limit)
        if level > self._level and self._slow_at != now:
            # Page cache grown in the last minute is no pressure.
            self._read_slowly(now, rss)
            used, limit = self._compared(rss, charge)
            level = self._judge(used / limit)
        watch = self._watch
        collecting = self._gc_seconds + (0.0 if watch is None else watch.collections.seconds)
        return Sample(
            time.time(),
            rss,
            charge,
            limit,
            self._available,
            self._swap,
            collecting,
            self._blocks,
            used,
            LEVELS[level],
        )

    def _note(self, now: float, taken: Sample) -> list[tuple[str, Callback]]:
        """Write it down; the callbacks that are due."""
        wall, rss, charge, limit, available, swap, collecting, blocks, _, name = taken
        before, level = self._level, LEVELS.index(name)
        calls: list[tuple[str, Callback]] = []
        if level > before:
            for begun in range(before + 1, level + 1):
                calls += [(LEVELS[n], callback) for n, callback in self._callbacks.values() if n == begun]
        elif level == 0 < before:
            calls = [(LEVELS[0], callback) for n, callback in self._callbacks.values() if n == 0]
        burst = self._burst(rss, limit)
        self._record(now, (rss, charge or 0, limit, available, swap, collecting, blocks), wall)
        self._level = level
        self._samples += 1
        if self._watch is not None:
            self._watch.seen(rss, burst)
        return calls

    def _record(self, now: float, values: Sequence[float], wall: float | None = None) -> None:
        """Put the seven metrics, seen at ``now`` on the monitor's clock, into the history."""
        self._history.record(now, now if wall is None else wall, values)

    def _read_slowly(self, now: float, rss: int) -> None:
        readings = self._readings
        known = self._container_limit
        # Far from the limit it makes no difference what of the charge could be taken back.
        near = 0 if self._slow_readings == 0 else 1 << 62 if known is None else int(_BEGIN[1] * 0.9 * known)
        if known is not None and self._given is not None:
            near = min(near, int(_BEGIN[1] * 0.9 * self._given))
        slow = getattr(readings, "slow", None)
        if slow is not None:
            self._container_limit, self._available, self._swap, self._reclaimable = slow(near)
        else:
            self._container_limit = readings.limit()
            self._available, self._swap = readings.available(), readings.swap()
            self._reclaimable = readings.reclaimable()
        if self._total <= 0:
            self._total = int(readings.total())
        self._rss_then = rss
        self._slow_at = now
        self._slow_readings += 1
        if now >= self._blocks_due:
            began = time.perf_counter()
            self._blocks = sys.getallocatedblocks()
            took = time.perf_counter() - began
            self._blocks_due = now + _MINUTE * min(_DAY, took / _BLOCKS_SECONDS_A_MINUTE)

    def _compared(self, rss: int, charge: int | None) -> tuple[int, int]:
        """What counts against the limit, and the limit."""
        container = self._container_limit
        given = self._given
        if self._share is not None:
            given = int(self._share * (container or self._total))
        if container is not None:
            limit = container if given is None else min(given, container)
            return max(rss, (charge or 0) - self._reclaimable), max(1, limit)
        if given is not None:
            return rss, max(1, given)
        # The host's figure is up to a minute old, our own part in it is not.
        return max(0, self._total - self._available + max(0, rss - self._rss_then)), max(1, self._total)

    def _judge(self, share: float) -> int:
        level = self._level
        while level < len(LEVELS) - 1 and share >= _BEGIN[level + 1]:
            level += 1
        while level > 0 and share < _BEGIN[level] - HYSTERESIS:
            level -= 1
        return level

    def calculate_next_interval(self, current_memory: float) -> float:
        """Seconds until the next sample is due, after one that saw ``current_memory``.

        The report's rule without a unit: the coefficient of variation (standard deviation by mean) of the last
        ``stability_window`` samples instead of their variance. Under 0.01 the interval is ``max_interval``, under 0.05
        half of it, under 0.1 a quarter (60, 30 and 15 seconds as they come), else, and until the window is full,
        ``base_interval``, under which it never is. Memory that is zero throughout is steady, a mean of zero or less is
        otherwise taken as restless. O(stability_window).

        >>> monitor = AdaptiveMemoryMonitor(stability_window=3)
        >>> [monitor.calculate_next_interval(memory) for memory in (100e6, 100e6, 100.5e6, 130e6)]
        [5.0, 5.0, 60.0, 5.0]
        """
        if isinstance(current_memory, bool) or not hasattr(current_memory, "__float__"):
            raise type_error("current_memory", current_memory, "a number")
        memory = _float(current_memory)
        if not math.isfinite(memory):
            raise value_error("current_memory", current_memory, "a finite number")
        with self._lock:
            recent = self._recent
            recent.append(memory)
            count = len(recent)
            if count < (recent.maxlen or 0):
                return self._base_interval
            mean = sum(recent) / count
            if mean <= 0:
                return self._max_interval if not any(recent) else self._base_interval
            variation = math.sqrt(sum([(x - mean) ** 2 for x in recent]) / count) / mean
        if variation < 0.01:
            return self._max_interval
        if variation < 0.05:
            return max(self._base_interval, self._max_interval / 2)
        if variation < 0.1:
            return max(self._base_interval, self._max_interval / 4)
        return self._base_interval

    # Looking back

    def history(self) -> npt.NDArray[np.void]:
        """What was seen, oldest first, in rows of 5 seconds for an hour, 5 minutes for a day, hours for a month.

        A structured array, the caller's own. ``time`` is the Unix time of a row's first sample, ``seconds`` the row's
        width and ``samples`` how many are in it; a time without samples has no row. For each metric (``rss``,
        ``charge``, ``limit``, ``available`` and ``swap`` in bytes, ``gc_seconds`` since the start, ``blocks``)
        there are ``min`` and ``max``, so that ``history()["rss"]["max"]`` are the peaks. ``charge`` is 0 outside of a
        container.
        Rows follow the monotonic clock; after the system's clock has been set back, ``time`` goes back as well.
        """
        with self._lock:
            rows: npt.NDArray[np.void] = self._history.read()
        return rows

    def trend(self, seconds: float | None = None) -> Trend:
        """The slope of the floor of resident memory over the last ``seconds`` (None: all there is), and its confidence.

        The floor is the least of each of up to 96 blocks of time; the slope is Theil and Sen's, the confidence from the
        test of Mann and Kendall with corrections for ties and serial correlation (`theil_sen` and `mann_kendall` name
        the papers). Of falling memory it is that of the fall. At most 96^2 / 2 pairs, less than a millisecond or two.
        """
        if seconds is not None:
            seconds = _seconds("seconds", seconds, 1.0)
        with self._lock:
            times, values = self._history.floor()
        return self._trend(times, values, seconds)

    @staticmethod
    def _trend(times: Floats, values: Floats, seconds: float | None) -> Trend:
        if len(times) < 2:
            return Trend(0.0, 0.0, 0.0, 0.0)
        end = float(times[-1])
        span = end - float(times[0]) if seconds is None else min(seconds, end - float(times[0]))
        if span <= 0:
            return Trend(0.0, 0.0, 0.0, 0.0)
        block = max(span / 95, 5.0)
        at, least = _blocks(times, values, end, (math.floor(span / block) + 1) * block, block)
        if len(at) < 4:
            return Trend(0.0, 0.0, 0.0, span)
        slope = theil_sen(at, least)
        chance = mann_kendall(at, least, slope) if slope >= 0 else mann_kendall(at, -least, -slope)
        base = float(least.mean())
        percent = 100 * slope * _DAY / base if base > 0 else 0.0
        return Trend(slope * _DAY, percent, 1 - chance, span)

    def leak(self) -> Leak:
        """Whether memory grows as a leak makes it grow, how fast, and how sure that is.

        Looked at are the last 2.5 hours, 8 hours, day and 9 days, each for a rise of the floor of resident memory of at
        least 1 % in all and 1 % a day, that is significant (Mann-Kendall, p under 0.005), is spread over the window (a
        step is not, nor is the last tooth of a saw), and has left memory higher than it ever was, by three quarters
        of the deepest fall so far. A leak of 1 % an hour is found within 3 hours where traffic alone doesn't
        move the floor by more; one that a larger daily cycle covers, once it stands out above the cycle, or after 9
        days.

        A verdict stands for as long as its window unless memory comes down. Until a day of history exists the rising
        flank of a cycle can't be told from a leak; ``text`` says so.
        Bounded work, a few milliseconds at most. The first peak of a longer cycle, a week's, looks like a leak too.

        >>> bool(AdaptiveMemoryMonitor().leak())
        False
        """
        with self._lock:
            times, values = self._history.floor()
        whole = float(times[-1] - times[0]) if len(times) else 0.0
        found = _find_leak(times, values) if len(times) > 1 else None
        standing = self._standing
        end = recent = 0.0
        if len(times):
            end = float(times[-1])
            recent = float(values[times > end - _HOUR / 2].min())
        if found is not None:
            seconds, slope, chance = found
            percent = 100 * slope * _DAY / float(values[times > times[-1] - seconds].min())
            text = (
                f"memory's floor has grown by {percent:.3g} % a day over the last {_spoken(seconds)}"
                f" (confidence {1 - chance:.3f}), to where it never was before"
            )
            if whole < _DAY:
                text += f"; with {_spoken(whole)} of history a rising flank can't be told from a leak yet"
            leak = Leak(True, percent, 1 - chance, percent > _DAILY_PERCENT, seconds, text)
            self._standing = leak, end, recent
            return leak
        # One flank is one alarm, though its rise may pause.
        if standing is not None and end - standing[1] < standing[0].seconds and recent > 0.98 * standing[2]:
            return standing[0]
        trend = self._trend(times, values, None)
        over = trend.percent_per_day > _DAILY_PERCENT
        text = f"no leak: over {_spoken(trend.seconds)} memory's floor moved by {trend.percent_per_day:.3g} % a day"
        if whole < _WINDOWS[0][0]:
            text = f"no verdict before {_spoken(_WINDOWS[0][0])} of history; there are {_spoken(whole)}"
        return Leak(False, trend.percent_per_day, trend.confidence, over, trend.seconds, text)

    # Pressure

    @property
    def level(self) -> str:
        """The level at the last sample.

        ``"normal"`` under 70 % of the limit, ``"warning"`` from there, ``"high"`` from 80, ``"critical"`` from 90,
        ``"emergency"`` from 95 %. A level ends 3 points under where it begins.
        """
        return LEVELS[self._level]

    def on_pressure(self, level: str, callback: Callback) -> Callable[[], None]:
        """Have ``callback(level, sample)`` called each time pressure rises to ``level`` or past it.

        On a jump, callbacks are called level by level from below, each with the level it was registered for; those for
        ``"normal"`` are called when pressure has fallen back to it. They run in the thread that sampled, which holds no
        lock; what they raise goes to ``sys.unraisablehook``. Returns a function that takes the callback off again.
        """
        if not isinstance(level, str):
            raise type_error("level", level, f"one of {', '.join(LEVELS)}")
        if level not in LEVELS:
            raise value_error("level", level, f"one of {', '.join(LEVELS)}")
        if not callable(callback):
            raise type_error("callback", callback, "callable")
        with self._lock:
            self._tickets += 1
            ticket = self._tickets
            # Replaced, not changed: a sample may be going through it.
            self._callbacks = {**self._callbacks, ticket: (LEVELS.index(level), callback)}
        reference = weakref.ref(self)

        def remove() -> None:
            monitor = reference()
            if monitor is not None:
                with monitor._lock:
                    callbacks = dict(monitor._callbacks)
                    # Let go of outside of the lock.
                    gone = callbacks.pop(ticket, None)
                    monitor._callbacks = callbacks
                del gone

        return remove

    @staticmethod
    def _call(callback: Callback, level: str, sample: Sample) -> None:
        try:
            callback(level, sample)
        except BaseException as error:
            _unraisable.report(error, callback)

    # The thread

    def start(self) -> None:
        """Sample in a thread until `stop`. Starting twice is once, and nothing at the interpreter's exit."""
        with self._lock:
            watch = self._watch
            if watch is not None and not watch.over:
                return
            if _over:
                return
            watch = _Watch(self)
            # A sample is due at once, and the events heard before it are nobody's.
            self._due = -math.inf
            self._threshold_at = None
            try:
                watch.start()
            except RuntimeError as error:
                # An interpreter that is ending has no use for a thread.
                if "shutdown" not in str(error):
                    raise
                return
            self._watch = watch

    def stop(self) -> None:
        """End the thread and wait for it, unless it is the thread that asks. History and callbacks stay.

        Waits for a callback that is running for a second at most. Stopping twice is once.
        """
        with self._lock:
            watch, self._watch = self._watch, None
            if watch is not None:
                self._gc_seconds += watch.collections.seconds
        if watch is not None:
            watch.end()
            thread = watch.thread
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(_JOIN_SECONDS)

    def __enter__(self) -> AdaptiveMemoryMonitor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _visit(self, watch: _Watch, event: bool, deaf: bool) -> float:
        """What the thread does when it wakes up; the time (``time.monotonic()``) at which to come again."""
        self._wakeups += 1
        now = time.monotonic()
        if deaf and not event and now < self._due:
            # Only the ears were closed for a while.
            return self._due
        try:
            taken = self.sample()
            grown = taken.rss
            if event:
                self._events += 1
            # Host-wide figures move with other processes, which are no business of the interval.
            steady = taken.used if self._container_limit is not None or self._given is not None else grown
            self._interval = self.calculate_next_interval(steady)
            if watch.wake.by_threshold and not watch.over:
                self._expect(watch, taken, event)
        except MemoryError:
            raise
        except Exception as error:
            # The kernel's files may fail; the next sample tries again.
            _unraisable.report(error, self.sample)
        self._due = now + self._interval
        return self._due

    def _burst(self, rss: int, limit: int) -> int:
        """By how much memory must grow to be worth waking up for."""
        return max(_LEAST_BURST, min(limit // 16, rss // 4))

    def _expect(self, watch: _Watch, taken: Sample, event: bool) -> None:
        """Set the threshold anew after it fired, or when memory has fallen far below it."""
        charge = taken.charge
        if charge is None:
            return
        if watch.wake.follow(self._readings.container):
            self._threshold_at = None
        burst = self._burst(taken.rss, taken.limit)
        at = self._threshold_at
        if at is not None and not event and at - charge <= 3 * burst * self._patience:
            return
        # A charge that grows by page cache alone is waited for longer and longer.
        fruitful = at is None or taken.rss - self._rss_expected > burst // 2
        self._patience = 1 if fruitful or not event else min(2 * self._patience, 16)
        ahead = burst * self._patience
        if taken.level != LEVELS[-1]:
            begin = _BEGIN[LEVELS.index(taken.level) + 1]
            ahead = min(ahead, max(1 << 20, int(begin * taken.limit) - taken.used))
        if watch.wake.expect(charge + ahead):
            self._threshold_at = charge + ahead
            self._rss_expected = taken.rss

    _rss_expected = 0

    # What it costs

    @property
    def nbytes(self) -> int:
        """What the history holds, whatever the uptime."""
        return self._history.nbytes

    @property
    def stats(self) -> dict[str, Any]:
        """Counts since the start, and how the kernel wakes the monitor.

        ``running``, ``level``, ``interval`` (seconds), ``samples``, ``wakeups`` (of the thread), ``events`` (those by
        the kernel), ``slow_readings``, ``cpu_seconds`` (of the thread), ``nbytes``, ``wake`` (what cuts a sleep short)
        and ``wake_cost``.
        """
        with self._lock:
            watch = self._watch
            running = watch is not None and not watch.over
            return {
                "running": running,
                "level": self.level,
                "interval": self._interval,
                "samples": self._samples,
                "wakeups": self._wakeups,
                "events": self._events,
                "slow_readings": self._slow_readings,
                "cpu_seconds": 0.0 if watch is None else watch.cpu_seconds,
                "nbytes": self.nbytes,
                "wake": watch.wake.how if watch is not None and running else None,
                "wake_cost": watch.wake.cost if watch is not None and running else None,
            }


def _float(value: SupportsFloat) -> float:
    try:
        return float(value)
    except OverflowError:
        # An integer beyond all floats.
        return math.inf


def _seconds(name: str, value: float, least: float) -> float:
    allowed = f"seconds from {least:g} to {_DAY:g}"
    if name == "seconds":
        allowed = f"at least {least:g} seconds, or None"
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
        raise type_error(name, value, allowed)
    number = _float(value)
    if not least <= number < math.inf or (name != "seconds" and number > _DAY):
        raise value_error(name, value, allowed)
    return number


def _spoken(seconds: float) -> str:
    for unit, name in ((_DAY, "days"), (_HOUR, "hours"), (_MINUTE, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} seconds"


# Forks and the end

_over = False


def _before_fork() -> None:
    for monitor in _all_monitors():
        watch = monitor._watch
        if watch is not None and not watch.over:
            _paused.append(monitor)
            monitor.stop()


def _after_fork_in_parent() -> None:
    while _paused:
        # Without a thread to be had, start() must be called again.
        with contextlib.suppress(Exception):
            _paused.pop().start()


def _after_fork_in_child() -> None:
    for monitor in _all_monitors():
        # Perhaps held by a thread that is not here.
        monitor._lock = threading.RLock()
        watch, monitor._watch = monitor._watch, None
        if watch is not None and not watch.over:
            # Started after it had stepped aside, for another thread's fork perhaps: the thread is the parent's.
            watch.forget()
            _paused.append(monitor)
        monitor._clear()
    _after_fork_in_parent()


def _finish() -> None:
    global _over
    _over = True
    for monitor in _all_monitors():
        monitor.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
atexit.register(_finish)
