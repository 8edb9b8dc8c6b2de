"""Turns rounds into table rows: medians with their spread, next to the report's figures and targets."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

BASELINE = "current"
# Requests a second in the report; hourly figures assume this load.
REPORT_RATE = 1_000
SECONDS_OF_A_DAY = 86_400


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` percent of the `ordered` values lie, interpolated linearly (numpy's
    default).

    >>> percentile([1, 2, 3, 4], 50)
    2.5
    """
    if not ordered:
        raise ValueError("percentile of no values")
    place = (len(ordered) - 1) * share / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Figure:
    """A measurement's values, one for each round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> float:
        """Half the range of the values."""
        return (max(self.values) - min(self.values)) / 2


@dataclass(frozen=True)
class Target:
    """A target set by the report: a change relative to the current system, or an absolute figure."""

    kind: str  # "less" or "more": percent of change; "below" or "above": the figure itself
    amount: float

    def verdict(self, now: Figure, before: Figure | None) -> tuple[float | None, bool | None]:
        """``(percent of improvement, met)``; None where there is nothing to compare with.

        >>> Target("less", 25).verdict(Figure((60.0,)), Figure((100.0,)))
        (40.0, True)
        >>> Target("above", 80).verdict(Figure((79.0,)), None)
        (None, False)
        """
        change = improvement(now, before, more_is_better=self.kind in ("more", "above"))
        if self.kind == "below":
            return change, now.median < self.amount
        if self.kind == "above":
            return change, now.median > self.amount
        return change, None if change is None else change >= self.amount


def improvement(now: Figure, before: Figure | None, more_is_better: bool) -> float | None:
    """By how many percent `now` is better than `before`: less, or more, of it. None when there was none
    before.
    """
    if before is None or before.median == 0:
        return None
    change = 100 * (now.median - before.median) / before.median
    return change if more_is_better else -change


@dataclass(frozen=True)
class Measure:
    """A row of the table: what is measured, how it is read from the results, and what the report says of
    it.
    """

    key: str
    label: str
    unit: str
    read: Callable[[Any, str], list[float]]
    report_current: str = ""
    report_target: str = ""
    target: Target | None = None
    more_is_better: bool | None = False  # None: neither
    in_line: bool = False  # shown in the line of the measure before it


def _of_rounds(read: Callable[[dict], float]) -> Callable[[Any, str], list[float]]:
    return lambda results, arm: [read(done) for done in results.rounds.get(arm, ())]


def _once(part: str, read: Callable[[dict], float]) -> Callable[[Any, str], list[float]]:
    return lambda results, arm: [read(found)] if (found := getattr(results, part).get(arm)) else []


def _added(results: Any, arm: str) -> list[float]:
    return [
        (done["peak_rss"] - results.started[arm]["before_load_rss"]) / 1e6
        for done in results.rounds.get(arm, ())
    ]


def _reuse(done: dict) -> float:
    return 100 * done["reused"] / max(1, done["reused"] + done["created"])


def _pause(share: float) -> Callable[[dict], float]:
    # A round without a collection had no pause: 0.
    return lambda done: 1e3 * percentile(sorted(done["pauses"]), share) if done["pauses"] else 0.0


def _daily(what: str, scale: float) -> Callable[[dict], float]:
    return lambda found: scale * found[what] * SECONDS_OF_A_DAY / found["interval"]


def _longest(pauses: list[float]) -> float:
    return 1e3 * max(pauses, default=0.0)


def _by_generation(
    key: str, label: str, read: Callable[[int], Callable[[Any, str], list[float]]]
) -> list[Measure]:
    """A measure for each of the collector's three generations; the table has them in one line."""
    return [
        Measure(f"{key}_{generation}", f"{label}, gen 0/1/2", "", read(generation), in_line=generation > 0)
        for generation in range(3)
    ]


MEASURES = (
    Measure(
        "throughput",
        "requests/s",
        "",
        _of_rounds(lambda done: done["requests"] / done["seconds"]),
        "1,000",
        "+35 %",
        Target("more", 35),
        more_is_better=True,
    ),
    Measure("latency_p50", "latency p50", "µs", _of_rounds(lambda done: 1e6 * done["latency_p50"])),
    Measure(
        "latency_p99",
        "latency p99",
        "µs",
        _of_rounds(lambda done: 1e6 * done["latency_p99"]),
        "",
        "-25 %",
        Target("less", 25),
    ),
    Measure("latency_p99.9", "latency p99.9", "µs", _of_rounds(lambda done: 1e6 * done["latency_p99.9"])),
    Measure(
        "cpu_per_request",
        "CPU per request",
        "µs",
        _of_rounds(lambda done: 1e6 * done["cpu_seconds"] / done["requests"]),
        "",
        "-20 %",
        Target("less", 20),
    ),
    Measure(
        "allocated_per_request",
        "allocated per request [1]",
        "kB",
        _once("allocation", lambda found: found["bytes"] / 1e3),
        "105.6 MB/s",
        "63.4 MB/s (-40 %)",
        Target("less", 40),
    ),
    *_by_generation(
        "first_fill_collections",
        "collections, first fill",
        lambda generation: _once("first_fill", lambda found: found["collections"][generation]),
    ),
    *_by_generation(
        "refill_collections",
        "collections, refill",
        lambda generation: _of_rounds(lambda done: done["refill_collections"][generation]),
    ),
    *_by_generation(
        "load_collections",
        "collections/1,000 requests",
        lambda generation: _of_rounds(lambda done: 1e3 * done["collections"][generation] / done["requests"]),
    ),
    Measure(
        "full_collections_per_hour",
        "full collections/h at 1,000/s [2]",
        "",
        _of_rounds(lambda done: 3_600 * REPORT_RATE * done["collections"][2] / done["requests"]),
        "12-15",
        "< 5",
        Target("below", 5),
    ),
    Measure(
        "pause_p99",
        "pause p99",
        "ms",
        _of_rounds(_pause(99.0)),
        "50-100 ms",
        "20-40 ms (-60 %)",
        Target("less", 60),
    ),
    Measure(
        "pause_max",
        "pause max",
        "ms",
        _of_rounds(_pause(100.0)),
        "50-100 ms",
        "20-40 ms (-60 %)",
        Target("less", 60),
    ),
    Measure(
        "first_fill_pause_max",
        "pause max, first fill",
        "ms",
        _once("first_fill", lambda found: _longest(found["pauses"])),
        "50-100 ms",
        "20-40 ms (-60 %)",
        Target("less", 60),
    ),
    Measure(
        "peak_rss",
        "peak RSS [3]",
        "MB",
        _of_rounds(lambda done: done["peak_rss"] / 1e6),
        "9.25 GB",
        "5.1 GB (-45 %)",
        Target("less", 45),
    ),
    Measure(
        "added_rss", "peak RSS added by the load [3]", "MB", _added, "", "heap -45 %", Target("less", 45)
    ),
    Measure("settled_rss", "settled RSS", "MB", _of_rounds(lambda done: done["settled_rss"] / 1e6)),
    Measure(
        "reuse_rate",
        "records reused",
        "%",
        _of_rounds(_reuse),
        "",
        "> 80 %",
        Target("above", 80),
        more_is_better=True,
    ),
    Measure(
        "cache_bytes",
        "bytes in caches and pools [4]",
        "MB",
        _once("held", lambda found: found["bytes"] / 1e6),
        "14.4 MB",
        "5.8 MB (-60 %)",
        Target("less", 60),
    ),
    Measure(
        "cache_account",
        "bytes counted by the caches [4]",
        "MB",
        _once("held", lambda found: found["account"] / 1e6),
        more_is_better=None,
    ),
    Measure(
        "sampling_interval",
        "seconds between memory samples [5]",
        "s",
        _once("sampling", lambda found: found["interval"]),
        "1",
        "5-60",
        more_is_better=None,
    ),
    Measure(
        "sampling_cpu",
        "memory monitor, CPU a day [5]",
        "s",
        _once("sampling", _daily("cpu_seconds", 1.0)),
        "216 s",
    ),
    Measure(
        "sampling_bytes",
        "memory monitor, bytes a day [5]",
        "MB",
        _once("sampling", _daily("bytes", 1e-6)),
        "26.3 MB",
        "4.4 MB (-83 %)",
        Target("less", 83),
    ),
)


@dataclass(frozen=True)
class Row:
    """A measure, each arm's figure, and each arm's improvement on the current system and whether it is
    enough.
    """

    measure: Measure
    figures: dict[str, Figure]
    verdicts: dict[str, tuple[float | None, bool | None]]


def rows(results: Any) -> list[Row]:
    """Every row for which anything has been measured."""
    # Here, since it is made of what this module has.
    from synthex_fast.validate import garbage, limit
    from synthex_fast.validate.http import measures as over_http

    table = []
    for measure in MEASURES + garbage.MEASURES + limit.MEASURES + over_http.MEASURES:
        found = {arm: Figure(tuple(values)) for arm in results.arms if (values := measure.read(results, arm))}
        if not found:
            continue
        before = found.get(BASELINE)
        verdicts = {}
        for arm, now in found.items():
            if arm == BASELINE or measure.more_is_better is None:
                continue
            if measure.target is None:
                verdicts[arm] = improvement(now, before, measure.more_is_better), None
            else:
                verdicts[arm] = measure.target.verdict(now, before)
        table.append(Row(measure, found, verdicts))
    return table
