"""Bootstrap intervals of medians and of changes between them.

All intervals are 95 % percentile bootstrap intervals. With few values these are known to be too narrow, because a
resample varies less than a sample does. The remedy used here is Hesterberg's ("What Teachers Should Know About the
Bootstrap", The American Statistician, 2015): the quantiles are taken further out, by as much as Student's t with one
degree of freedom less than there are values is wider than the normal distribution. Below six values no interval
between two of them covers a median with 95 % probability, so the interval is their range.

The resamples come from a fixed seed: the same values always give the same interval.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist, median
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 4_000
# Fewer have no interval that covers a median with 95 % probability: 2 * 0.5**5 > 0.05.
FEWEST_FOR_95 = 6
_NORMAL = NormalDist()
_UPPER = 0.975


class Interval(NamedTuple):
    """Where a figure lies with 95 % confidence."""

    low: float
    high: float


def of_median(values: Sequence[float]) -> Interval | None:
    """The interval of the median of `values`; None for fewer than two. O(n log n) in each resample.

    >>> of_median([5.0])
    >>> of_median([4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    Interval(low=4.0, high=4.0)
    >>> of_median([1.0, 2.0, 3.0])
    Interval(low=1.0, high=3.0)
    """
    return None if len(values) < 2 else _of_median(tuple(values))


# A table asks for each figure's several times, until it has found the widths that fit.
@lru_cache(maxsize=4096)
def _of_median(values: tuple[float, ...]) -> Interval:
    return _quantiles(_medians(values, seed=1), len(values))


def of_change(now: Sequence[float], before: Sequence[float]) -> tuple[float, Interval | None]:
    """The median of the relative changes from `before` to `now`, pair by pair, and its interval.

    The values are those of the same rounds, so that what made a whole round slow cancels out. Surplus values of
    the longer sequence are left out. A change from 0 to more is infinite.

    >>> of_change([50.0, 60.0, 30.0], [100.0, 120.0, 60.0])
    (-0.5, Interval(low=-0.5, high=-0.5))
    """
    changes = [_change(one, two) for one, two in zip(now, before, strict=False)]
    return median(changes), of_median(changes)


def of_independent_change(now: Sequence[float], before: Sequence[float]) -> tuple[float, Interval | None]:
    """The relative change from the median of `before` to that of `now`, which were measured independently.

    The interval is None if either has fewer than two values.

    >>> of_independent_change([110.0, 110.0, 110.0], [100.0, 100.0, 100.0])
    (0.1, Interval(low=0.1, high=0.1))
    """
    change = _change(median(now), median(before))
    if min(len(now), len(before)) < 2:
        return change, None
    ones, twos = _medians(now, seed=1), _medians(before, seed=2)
    changes = [_change(one, two) for one, two in zip(ones.tolist(), twos.tolist(), strict=True)]
    return change, _quantiles(np.array(changes), min(len(now), len(before)))


def _change(now: float, before: float) -> float:
    if before == 0:
        return 0.0 if now == 0 else math.copysign(math.inf, now)
    return (now - before) / before


def _medians(values: Sequence[float], seed: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The median of each resample. Two samples are drawn independently if their seeds differ."""
    drawn = np.asarray(values, dtype=float)[_draws(len(values), seed)]
    drawn.sort(axis=1)
    middle = len(values) // 2
    if len(values) % 2:
        return drawn[:, middle]
    return (drawn[:, middle - 1] + drawn[:, middle]) / 2


@lru_cache(maxsize=8)
def _draws(count: int, seed: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count), dtype=np.int32)


def _quantiles(medians: "np.ndarray[Any, np.dtype[np.float64]]", count: int) -> Interval:
    ordered = np.sort(medians)
    # An index, not an interpolation: a median may be infinite.
    place = math.floor(_tail(count) * (RESAMPLES - 1)) if count >= FEWEST_FOR_95 else 0
    return Interval(float(ordered[place]), float(ordered[-1 - place]))


def _tail(count: int) -> float:
    """The share of the resamples beyond either end of the interval."""
    return _NORMAL.cdf(-math.sqrt(count / (count - 1)) * _student(count - 1))


def _student(degrees: int) -> float:
    """The quantile of Student's t that leaves 2.5 % above it, by its series in 1/`degrees`.

    Off by less than 0.2 % from five degrees on. (Abramowitz and Stegun, 26.7.5)

    >>> round(_student(6), 2), round(_student(30), 3)
    (2.45, 2.042)
    """
    z = _NORMAL.inv_cdf(_UPPER)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))
