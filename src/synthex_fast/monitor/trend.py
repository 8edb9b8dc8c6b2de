"""The slope of memory's floor, and whether it is a leak.

Traffic moves memory up and down; a leak raises the floor that memory returns to. Everything here works on that
floor: the least resident size of each of some equal blocks of time.

`measure_trend` gives the floor's slope (Theil and Sen) and how unlikely it is by chance (Mann and Kendall).
`LeakDetector` asks more before it calls a rise a leak: it must be significant, go on throughout the window rather than
come in one step, and leave memory higher than it has ever been. The checks run over four windows, shortest first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from synthex_fast.monitor.history import DAY, HOUR, MINUTE

if TYPE_CHECKING:
    from synthex_fast.monitor.history import Floats

__all__ = ["Leak", "LeakDetector", "Trend", "mann_kendall", "measure_trend", "theil_sen"]


class Trend(NamedTuple):
    """The slope of the floor of resident memory, from `AdaptiveMemoryMonitor.trend`."""

    bytes_per_day: float
    percent_per_day: float
    confidence: float
    """From 0 to 1: one minus the probability that memory without a trend would look like this."""
    seconds: float
    """The length of the history that was used."""


class Leak(NamedTuple):
    """The verdict of `AdaptiveMemoryMonitor.leak`, which is also its truth value; ``text`` explains it."""

    leaking: bool
    percent_per_day: float
    confidence: float
    """From 0 to 1: one minus the probability that memory without a trend would look like this."""
    over_limit: bool
    """Whether memory grows by more than 1 % a day, which a healthy service does not."""
    seconds: float
    """The length of the history that the verdict rests on."""
    text: str

    def __bool__(self) -> bool:
        return self.leaking


def theil_sen(times: Floats, values: Floats) -> float:
    """The median of the slopes between all pairs of points, robust against up to 29 % of outliers. O(n^2).

    H. Theil, "A rank-invariant method of linear and polynomial regression analysis", 1950; P. K. Sen, "Estimates of
    the regression coefficient based on Kendall's tau", Journal of the American Statistical Association 63, 1968.

    >>> import numpy as np
    >>> theil_sen(np.arange(4.0), np.array([1.0, 3.0, 5.0, 7.0]))
    2.0
    """
    import numpy as np

    first, second = np.triu_indices(len(times), 1)
    return float(np.median((values[second] - values[first]) / (times[second] - times[first])))


def kendall_score(values: Floats) -> tuple[float, float]:
    """The number of rising pairs minus that of falling ones, and its variance over all orders of the same values."""
    import numpy as np

    n = len(values)
    first, second = np.triu_indices(n, 1)
    counts = np.unique(values, return_counts=True)[1].astype(np.float64)
    variance = (n * (n - 1) * (2 * n + 5) - float((counts * (counts - 1) * (2 * counts + 5)).sum())) / 18
    return float(np.sign(values[second] - values[first]).sum()), variance


def mann_kendall(times: Floats, values: Floats, slope: float) -> float:
    """The probability that points without a trend rise as consistently as these: one-sided Mann-Kendall test. O(n^2).

    The variance is corrected for ties (M. G. Kendall, "Rank Correlation Methods", 1975) and for serial correlation of
    the residuals from ``slope`` (K. H. Hamed and A. R. Rao, "A modified Mann-Kendall trend test for autocorrelated
    data", Journal of Hydrology 204, 1998); the latter correction never lowers it. H. B. Mann, "Nonparametric tests
    against trend", Econometrica 13, 1945.

    >>> import numpy as np
    >>> mann_kendall(np.arange(24.0), np.arange(24.0), 1.0) < 1e-6
    True
    """
    import numpy as np

    n = len(values)
    score, variance = kendall_score(values)
    if variance <= 0 or score <= 0:
        return 1.0
    residuals = values - slope * (times - times[0])
    ordered, places, ties = np.unique(residuals, return_inverse=True, return_counts=True)
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


def _block_minima(
    times: Floats, values: Floats, end: float, seconds: float, block: float, keep_empty: bool = False
) -> tuple[Floats, Floats]:
    """Middle and least value of each block of the ``seconds`` before ``end``; empty ones are infinite, or left out."""
    import numpy as np

    count = max(1, round(seconds / block))
    index = np.floor((end - times) / block).astype(np.int64)
    inside = index < count
    least = np.full(count, np.inf)
    np.minimum.at(least, index[inside], values[inside])
    least = least[::-1]
    middle = np.asarray(end - (np.arange(count)[::-1] + 0.5) * block, np.float64)
    if keep_empty:
        return middle, least
    seen = np.isfinite(least)
    return middle[seen], least[seen]


def measure_trend(times: Floats, values: Floats, seconds: float | None = None) -> Trend:
    """The trend of the floor over the last ``seconds``, or over all of it. At most 96^2 / 2 pairs of points."""
    if len(times) < 2:
        return Trend(0.0, 0.0, 0.0, 0.0)
    end = float(times[-1])
    span = end - float(times[0]) if seconds is None else min(seconds, end - float(times[0]))
    if span <= 0:
        return Trend(0.0, 0.0, 0.0, 0.0)
    block = max(span / 95, 5.0)
    at, least = _block_minima(times, values, end, (math.floor(span / block) + 1) * block, block)
    if len(at) < 4:
        return Trend(0.0, 0.0, 0.0, span)
    slope = theil_sen(at, least)
    chance = mann_kendall(at, least, slope) if slope >= 0 else mann_kendall(at, -least, -slope)
    base = float(least.mean())
    percent = 100 * slope * DAY / base if base > 0 else 0.0
    return Trend(slope * DAY, percent, 1 - chance, span)


class _Window(NamedTuple):
    """A length of history that a verdict may rest on."""

    seconds: float
    parts: int
    """The window is compared part by part."""
    largest_step: float
    """The largest share of the rise that may come between one part and the next."""
    blocks: tuple[float, ...]
    """Lengths in seconds of the blocks whose least values are tried. Traffic that subsides within a block is unseen."""


# The blocks of the last window are days, longer than a daily cycle.
_WINDOWS = (
    _Window(2.5 * HOUR, 6, 0.6, (300.0, 750.0, 1_500.0)),
    _Window(8 * HOUR, 6, 0.45, (1_200.0, 4_800.0)),
    _Window(DAY, 6, 0.45, (HOUR, 4 * HOUR)),
    _Window(9 * DAY, 9, 0.35, (DAY,)),
)
_SIGNIFICANCE = 0.005
_DAILY_PERCENT = 1.0
# The least growth over the window, as a share of memory at its start: allocators fluctuate by as much.
_LEAST_RISE = 0.01
# The least share of the rise that each half of the window must have.
_LEAST_SHARE_OF_HALF = 0.3
# After its deepest fall so far, memory may exceed its earlier maximum by this share of that fall.
_FALL_ALLOWANCE = 0.75
# A leak that was found is still reported while memory has not fallen below this share of what it was then.
_STILL_STANDING = 0.98


def _rises_like_a_leak(
    times: Floats, values: Floats, end: float, window: _Window, block: float
) -> tuple[float, float] | None:
    """Slope and chance if the floor, in blocks of that length, has grown over the window the way a leak does."""
    import numpy as np

    parts, seconds = window.parts, window.seconds
    part = seconds / parts
    # Rows older than a day are hours, whose minima can't be compared with those of shorter blocks.
    reach = end - float(times[0]) if block >= HOUR else min(end - float(times[0]), DAY)
    at, least = _block_minima(
        times, values, end, math.floor(reach / part + 0.1) * part, block, keep_empty=True
    )
    # The level of a part is the median of its blocks, not counting those without samples.
    ordered = np.sort(least.reshape(-1, round(part / block)), axis=1)
    seen = np.isfinite(ordered).sum(axis=1)
    levels = ordered[np.arange(len(ordered)), np.maximum(0, seen - 1) // 2]
    floors = levels[-parts:]
    if len(floors) < parts or not seen[-parts:].all():
        return None
    past = levels[seen > 0]
    base = float(floors[0])
    thirds = floors.reshape(3, -1).mean(axis=1)
    early, late = np.diff(thirds)
    # The middles of the first and the last third are two thirds of the window apart.
    if (early + late) * 1.5 < _LEAST_RISE * base:
        return None
    # A leak goes on. A step does not, nor does a cache that fills ever more slowly or the last tooth of a saw.
    if min(early, late) < _LEAST_SHARE_OF_HALF * (early + late) or np.diff(
        floors
    ).max() > window.largest_step * np.ptp(floors):
        return None
    if not _is_new_high(past, thirds[2], parts // 2):
        return None
    inside = (at > end - seconds) & np.isfinite(least)
    at, least = at[inside], least[inside]
    slope = theil_sen(at, least)
    if slope * DAY < _DAILY_PERCENT / 100 * base or slope * seconds < _LEAST_RISE * base:
        return None
    return slope, mann_kendall(at, least, slope)


def _is_new_high(past: Floats, now: float, latest: int) -> bool:
    """Whether memory is clearly higher than it ever was before the ``latest`` levels of ``past``."""
    import numpy as np

    if len(past) <= latest:
        return True
    fall = float((np.maximum.accumulate(past) - past).max())
    return now > float(past[:-latest].max()) + _FALL_ALLOWANCE * fall


def _find_leak(times: Floats, values: Floats) -> tuple[float, float, float] | None:
    """Length, slope and chance of the shortest window that shows a leak."""
    end = float(times[-1])
    hours = None
    for window in _WINDOWS:
        seconds = window.seconds
        if end - times[0] < seconds - seconds / window.parts / 10:
            break
        if hours is None:
            whole = math.ceil((end - float(times[0]) + 1) / HOUR) * HOUR
            hours = _block_minima(times, values, end, whole, HOUR)[1]
        # Short blocks see a day at most; compare with the month before as well. Longer blocks see all of it.
        latest = max(1, int(seconds / HOUR / 2))
        if window.blocks[0] < HOUR and not _is_new_high(hours, float(hours[-1]), latest):
            continue
        best = None
        for block in window.blocks:
            found = _rises_like_a_leak(times, values, end, window, block)
            if found is not None and found[1] < (_SIGNIFICANCE if best is None else best[2]):
                best = seconds, *found
        if best is not None:
            return best
    return None


class LeakDetector:
    """Gives verdicts on the floor of memory, and keeps the last leak found: a rise that pauses is one alarm."""

    __slots__ = ("_standing",)

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        # The last leak found, when, and at which floor.
        self._standing: tuple[Leak, float, float] | None = None

    def detect(self, times: Floats, values: Floats) -> Leak:
        whole = float(times[-1] - times[0]) if len(times) else 0.0
        found = _find_leak(times, values) if len(times) > 1 else None
        standing = self._standing
        end = recent = 0.0
        if len(times):
            end = float(times[-1])
            recent = float(values[times > end - HOUR / 2].min())
        if found is not None:
            seconds, slope, chance = found
            percent = 100 * slope * DAY / float(values[times > times[-1] - seconds].min())
            text = (
                f"the floor of memory has grown by {percent:.3g} % a day over the last {_duration(seconds)}"
                f" (confidence {1 - chance:.3f}) and is higher than ever before"
            )
            if whole < DAY:
                text += (
                    f"; with only {_duration(whole)} of history"
                    " this may still be the rising part of a daily cycle"
                )
            leak = Leak(True, percent, 1 - chance, percent > _DAILY_PERCENT, seconds, text)
            self._standing = leak, end, recent
            return leak
        if (
            standing is not None
            and end - standing[1] < standing[0].seconds
            and recent > _STILL_STANDING * standing[2]
        ):
            return standing[0]
        trend = measure_trend(times, values)
        over = trend.percent_per_day > _DAILY_PERCENT
        text = (
            f"no leak: the floor of memory moved by {trend.percent_per_day:.3g} % a day"
            f" over the last {_duration(trend.seconds)}"
        )
        shortest = _WINDOWS[0].seconds
        if whole < shortest:
            text = f"no verdict yet: {_duration(whole)} of history, at least {_duration(shortest)} needed"
        return Leak(False, trend.percent_per_day, trend.confidence, over, trend.seconds, text)


def _duration(seconds: float) -> str:
    for unit, name in ((DAY, "days"), (HOUR, "hours"), (MINUTE, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} seconds"
