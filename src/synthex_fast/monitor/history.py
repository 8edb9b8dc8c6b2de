"""A month of samples in a fixed amount of memory: three rings of rows, each coarser than the one before.

A row keeps the minimum and the maximum of every metric over its width in time, so that no peak is averaged away. Each
ring holds one open row that samples are merged into. When a sample falls into the next row, the open one is packed into
the ring's buffer and merged into the open row of the next coarser ring. A coarser ring therefore lags behind by the
finer rings' open rows; reading adds those first.

Allocation may fail anywhere. `Ring.add` allocates everything it needs before it changes anything, so a sample that
fails is as if it had not been taken.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    # Row number, time, wall-clock drift, number of samples, minima, maxima.
    Row = tuple[float, float, float, int, Sequence[float], Sequence[float]]

__all__ = ["DAY", "HOUR", "METRICS", "MINUTE", "History"]

METRICS = ("rss", "charge", "limit", "available", "swap", "gc_seconds", "blocks")

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0


class Ring:
    """Rows of ``width`` seconds each, in a buffer allocated once."""

    # Monitor's clock, wall clock minus that since the first sample, samples, minimum and maximum of each metric.
    # Single precision is exact for whole pages up to 64 GB, and within 6e-8 of the value beyond.
    ROW = struct.Struct("<dfI14f")

    __slots__ = ("_coarser", "_next", "_open", "buffer", "count", "rows", "width")

    def __init__(self, rows: int, width: float, coarser: Ring | None) -> None:
        self.rows = rows
        self.width = width
        self.buffer = bytearray(rows * self.ROW.size)
        self._coarser = coarser
        self.clear()

    def clear(self) -> None:
        self.count = self._next = 0
        self._open: Row | None = None
        if self._coarser is not None:
            self._coarser.clear()

    def add(self, at: float, drift: float, samples: int, low: Sequence[float], high: Sequence[float]) -> None:
        row = self._open
        added = at // self.width, at, drift, samples, low, high
        if row is None:
            self._open = added
            return
        # If the clock goes back, the sample joins the open row.
        if added[0] <= row[0]:
            self._open = _merged(row, added)
            return
        flat = _flat(row)
        following, count = (self._next + 1) % self.rows, min(self.count + 1, self.rows)
        self.ROW.pack_into(self.buffer, self._next * self.ROW.size, *flat)
        if self._coarser is not None:
            self._coarser.add(*row[1:])
        self._next, self.count = following, count
        self._open = added

    def read(self, finer: Sequence[Row]) -> tuple[Any, list[Row]]:
        """All rows in order as an array of `_dtype`, open ones last; and the open ones by themselves.

        ``finer`` are the open rows of the finer rings, which have not been merged into this ring yet.
        """
        import numpy as np

        unpacked = [] if self._open is None else [self._open]
        for row in finer:
            row = row[1] // self.width, *row[1:]
            if unpacked and row[0] <= unpacked[-1][0]:
                unpacked[-1] = _merged(unpacked[-1], row)
            else:
                unpacked.append(row)
        size = self.ROW.size
        if self.count < self.rows:
            packed = bytes(self.buffer[: self.count * size])
        else:
            packed = bytes(self.buffer[self._next * size :] + self.buffer[: self._next * size])
        packed += b"".join([self.ROW.pack(*_flat(row)) for row in unpacked])
        return np.frombuffer(packed, _dtype(compact=True)), unpacked


def _merged(row: Row, other: Row) -> Row:
    low, high = tuple(map(min, row[4], other[4])), tuple(map(max, row[5], other[5]))
    return row[0], row[1], row[2], row[3] + other[3], low, high


def _flat(row: Row) -> list[float]:
    flat: list[float] = [row[1], row[2], min(row[3], 0xFFFFFFFF)]
    for pair in zip(row[4], row[5], strict=True):
        flat += pair
    return flat


_dtypes: dict[bool, Any] = {}


def _dtype(compact: bool = False) -> Any:
    """The type of a row as callers see it, or, ``compact``, as `Ring` packs it."""
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


class History:
    """An hour in rows of 5 seconds, a day in rows of 5 minutes, a month in rows of an hour: 130,464 bytes."""

    def __init__(self) -> None:
        # Each ring spans at least a row of the next coarser one more than is shown of it, so that no gap opens between.
        self._month = Ring(732, HOUR, None)
        self._day = Ring(300, 300.0, self._month)
        self._hour = Ring(780, 5.0, self._day)
        self.clear()

    def clear(self) -> None:
        self._hour.clear()
        self._offset: float | None = None
        self._latest = -math.inf

    @property
    def rings(self) -> tuple[Ring, Ring, Ring]:
        """The rings, coarsest first."""
        return self._month, self._day, self._hour

    @property
    def nbytes(self) -> int:
        return sum(len(ring.buffer) for ring in self.rings)

    def record(self, now: float, wall: float, values: Sequence[float]) -> None:
        """Add the seven metrics as they were at ``now`` on the monitor's clock, ``wall`` in Unix time."""
        if self._offset is None:
            self._offset = wall - now
        self._hour.add(now, wall - now - self._offset, 1, values, values)
        self._latest = max(self._latest, now)

    def _rows(self) -> list[Any]:
        """Rows of each ring, coarsest first and in order; no two cover the same time."""
        import numpy as np

        hour, hour_open = self._hour.read(())
        day, day_open = self._day.read(hour_open)
        month, _ = self._month.read(day_open)
        fine = math.ceil((self._latest - HOUR) / 300.0) * 300.0 if self._offset is not None else 0.0
        coarse = math.ceil((self._latest - DAY) / HOUR) * HOUR if self._offset is not None else 0.0
        bounds = ((-math.inf, coarse), (coarse, fine), (fine, math.inf))
        kept = []
        for ring, rows, (begin, end) in zip(self.rings, (month, day, hour), bounds, strict=True):
            # Compare where the row begins, which may be earlier than its first sample.
            part = np.floor(rows["time"] / ring.width) * ring.width
            kept.append(rows[(part >= begin) & (part < end)])
        return kept

    def read(self) -> Any:
        """A new structured array of all rows, oldest first."""
        import numpy as np

        parts = self._rows()
        result = np.empty(sum(map(len, parts)), _dtype())
        begin = 0
        for ring, rows in zip(self.rings, parts, strict=True):
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
        """Times on the monitor's clock and the least resident size of each row."""
        import numpy as np

        parts = self._rows()
        times: Floats = np.concatenate([rows["time"] for rows in parts])
        least: Floats = np.concatenate([rows["rss"]["min"] for rows in parts]).astype(np.float64)
        return times, least
