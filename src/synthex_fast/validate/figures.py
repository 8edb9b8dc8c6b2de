"""Turns rounds into table rows: medians with their intervals, next to the report's figures and both sets of targets.

The report's targets are what it promised; ours (`Measure.reach`) are what this package is to reach. A target is met
only if the whole interval is on its right side, and missed only if the whole interval is on the wrong one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from statistics import median
from typing import Any

from synthex_fast.node import node_heap_flags
from synthex_fast.validate import intervals
from synthex_fast.validate.intervals import Interval

BASELINE = "current"
# What is worth beating: the improvement over it is shown beside that over the current system.
RIVAL = "tuned_by_hand"
OURS = "synthex_fast"
# Requests a second in the report; hourly figures assume this load.
REPORT_RATE = 1_000
SECONDS_OF_A_DAY = 86_400

# Kept of the latencies of each round, in percent: enough for a curve.
QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99, 100)

MET, MISSED, UNCLEAR = "met", "missed", "unclear"


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
    """A measurement's values, one for each round, and where it lies, if that is known otherwise than by their noise."""

    values: tuple[float, ...]
    limits: Interval | None = None

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> float:
        """Half the width of the interval, 0 for a single value."""
        return 0.0 if self.interval is None else (self.interval.high - self.interval.low) / 2

    @cached_property
    def interval(self) -> Interval | None:
        """Where the median lies with 95 % confidence; None for a single value without limits."""
        return intervals.of_median(self.values) if self.limits is None else self.limits


@dataclass(frozen=True)
class Change:
    """By how many percent something is better than something else; its interval is None for a single value."""

    percent: float
    interval: Interval | None = None


def improvement(now: Figure, before: Figure | None, more_is_better: bool) -> Change | None:
    """By how much `now` is better than `before`: less, or more, of it. Rounds are compared one by one.

    None if there is nothing to compare with, or if it has no percentage because there was none before.

    >>> improvement(Figure((60.0,)), Figure((100.0,)), more_is_better=False)
    Change(percent=40.0, interval=None)
    """
    if before is None or before.median == 0:
        return None
    change, interval = intervals.of_change(now.values, before.values)
    # Adding 0 makes a negative zero positive.
    sign = 100 if more_is_better else -100
    if interval is None:
        return Change(sign * change + 0.0) if math.isfinite(change) else None
    if not all(map(math.isfinite, (change, *interval))):
        return None
    ends = sorted(sign * end + 0.0 for end in interval)
    return Change(sign * change + 0.0, Interval(*ends))


@dataclass(frozen=True)
class Target:
    """A change relative to the current system, or an absolute figure."""

    kind: str  # "less" or "more": percent of change; "below" or "above": the figure itself
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in ("less", "more", "below", "above"):
            raise ValueError(f"kind must be less, more, below or above, not {self.kind!r}")

    @property
    def text(self) -> str:
        """As the table shows it.

        >>> Target("less", 25).text, Target("above", 80).text
        ('-25 %', '> 80')
        """
        sign = {"less": "-", "more": "+", "below": "< ", "above": "> "}[self.kind]
        return f"{sign}{self.amount:g}" + (" %" if self.kind in ("less", "more") else "")

    def verdict(self, now: Figure, before: Figure | None) -> tuple[Change | None, str | None]:
        """The improvement, and whether it is enough: met, missed, or unclear if noise could have decided it.

        Both are None where there is nothing to compare with. A single value is judged as it is.

        >>> Target("less", 25).verdict(Figure((60.0,)), Figure((100.0,)))
        (Change(percent=40.0, interval=None), 'met')
        >>> Target("above", 80).verdict(Figure((79.0, 81.0)), None)
        (None, 'unclear')
        """
        change = improvement(now, before, more_is_better=self.kind in ("more", "above"))
        if self.kind in ("below", "above"):
            low, high = now.interval or (now.median, now.median)
            if self.kind == "below":
                return change, _three_way(high < self.amount, low >= self.amount)
            return change, _three_way(low > self.amount, high <= self.amount)
        if change is None:
            return None, None
        low, high = change.interval or (change.percent, change.percent)
        return change, _three_way(low >= self.amount, high < self.amount)


def _three_way(met: bool, missed: bool) -> str:
    return MET if met else MISSED if missed else UNCLEAR


@dataclass(frozen=True)
class Measure:
    """A row of the table: what is measured, how it is read from the results, and what the report says of
    it.

    `read` gives one value per round, in the order of the rounds, so that the arms' values pair up.
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
    reach: Target | None = None  # this package's own target
    # Where the figure lies, of a count of what is rare: as many zeros as there are rounds have no noise.
    limits: Callable[[Any, str], Interval | None] | None = None


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


# Of the report, in MB of 2**20 bytes: V8's flags, and all memory as it was and as it was to be.
NODE_OLD_SPACE, NODE_SEMI_SPACE, NODE_SEMI_SPACES = 6_144, 64, 3
REPORT_TOTAL, REPORT_AFTER = 9.25 * 1_024, 5.1 * 1_024


class _Container:
    """A container as large as all memory is after the report's improvements."""

    def limit(self) -> int:
        return int(REPORT_AFTER * 2**20)

    def total(self) -> int:
        return self.limit()


def node_heap(flags: Sequence[str]) -> int:
    """V8's heap limit under these flags, in MB: the old space and three semi-spaces.

    >>> node_heap(["--max-old-space-size=6144", "--max-semi-space-size=64"])
    6336
    """
    sizes = dict(flag.split("=") for flag in flags)
    return int(sizes["--max-old-space-size"]) + NODE_SEMI_SPACES * int(sizes["--max-semi-space-size"])


def _node_heap(results: Any, arm: str) -> list[float]:
    before = NODE_OLD_SPACE + NODE_SEMI_SPACES * NODE_SEMI_SPACE
    if not results.rounds or arm == RIVAL:
        return []
    if arm != OURS:
        return [float(before)]
    return [float(node_heap(node_heap_flags(share=before / REPORT_TOTAL, readings=_Container())))]


def _full_limits(results: Any, arm: str) -> Interval | None:
    from synthex_fast.validate import garbage

    done = results.rounds.get(arm, ())
    if not done:
        return None
    return garbage.limits(
        sum(each["collections"][2] for each in done), sum(each["requests"] for each in done)
    )


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
        reach=Target("more", 400),
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
        reach=Target("less", 95),
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
        reach=Target("below", 5),
        limits=_full_limits,
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
        reach=Target("less", 45),
    ),
    Measure(
        "added_rss",
        "peak RSS added by the load [3]",
        "MB",
        _added,
        "",
        "heap -45 %",
        Target("less", 45),
        reach=Target("less", 45),
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
        reach=Target("above", 99),
    ),
    Measure(
        "cache_bytes",
        "bytes in caches and pools [4]",
        "MB",
        _once("held", lambda found: found["bytes"] / 1e6),
        "14.4 MB",
        "5.8 MB (-60 %)",
        Target("less", 60),
        reach=Target("less", 60),
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
        reach=Target("less", 95),
    ),
    Measure(
        "sampling_bytes",
        "memory monitor, bytes a day [5]",
        "MB",
        _once("sampling", _daily("bytes", 1e-6)),
        "26.3 MB",
        "4.4 MB (-83 %)",
        Target("less", 83),
        reach=Target("less", 99),
    ),
    Measure(
        "node_heap",
        "Node's heap limit, by its flags [6]",
        "MB",
        _node_heap,
        "6 GB",
        more_is_better=None,
    ),
)


# Which of the report's figures each row answers, in the report's order (its sections 7 and 9). What is not named here
# is detail.
SECTIONS = {
    "Memory": (
        "allocated_per_request",
        "garbage_bytes",
        "garbage_kept",
        "garbage_blocks",
        "cache_bytes",
        "sampling_bytes",
        "added_rss",
        "peak_rss",
        "http_uvicorn_pss",
        "http_gunicorn_pss",
        "node_heap",
        "reuse_rate",
    ),
    "Performance": (
        "full_collections_per_hour",
        "hourly_full_collections",
        "hourly_inside",
        "http_uvicorn_full_inside",
        "http_gunicorn_full_inside",
        "pause_p99",
        "pause_max",
        "hourly_pause",
        "http_uvicorn_pause_inside",
        "http_gunicorn_pause_inside",
        "latency_p99",
        "http_uvicorn_p99",
        "http_gunicorn_p99",
        "throughput",
        "http_uvicorn_throughput",
        "http_gunicorn_throughput",
        "cpu_per_request",
        "http_uvicorn_cpu",
        "http_gunicorn_cpu",
        "sampling_cpu",
    ),
    "Stability": ("limit_killed", "limit_served", "limit_errors"),
}
DETAIL = "In detail"
# Modules with measures of their own.
PARTS = ("http.measures", "limit", "garbage")


@dataclass(frozen=True)
class Row:
    """A measure, and each arm's figure, improvement on the current system, and verdicts."""

    measure: Measure
    section: str
    figures: dict[str, Figure]
    changes: dict[str, Change | None]
    report: dict[str, str | None]  # by the report's target
    reach: dict[str, str | None]  # by ours
    beyond_rival: Change | None  # how much better this package is than `RIVAL`


def measures() -> Iterator[tuple[str, Measure]]:
    """All measures that there are, with their section, in the order of the table."""
    known = list(MEASURES)
    for part in PARTS:
        # Not at the top: they are made of what this module has.
        module = import_module(f"{__package__}.{part}")
        reach = getattr(module, "REACH", {})
        known += [replace(each, reach=reach.get(each.key, each.reach)) for each in module.MEASURES]
    by_key = {measure.key: measure for measure in known}
    for section, keys in SECTIONS.items():
        for key in keys:
            if key in by_key:
                yield section, by_key.pop(key)
    for measure in by_key.values():
        yield DETAIL, measure


def rows(results: Any) -> list[Row]:
    """Every row for which anything has been measured."""
    return [
        _row(section, measure, found)
        for section, measure in measures()
        if (found := _found(results, measure))
    ]


def _found(results: Any, measure: Measure) -> dict[str, Figure]:
    return {
        arm: _figure(measure, tuple(values), results, arm)
        for arm in results.arms
        if (values := measure.read(results, arm))
    }


def _figure(measure: Measure, values: tuple[float, ...], results: Any, arm: str) -> Figure:
    limits = None if measure.limits is None else measure.limits(results, arm)
    if limits is None:
        return Figure(values)
    # They are of all rounds together, whose median may be another figure.
    middle = median(values)
    return Figure(values, Interval(min(middle, limits.low), max(middle, limits.high)))


def _row(section: str, measure: Measure, found: dict[str, Figure]) -> Row:
    before = found.get(BASELINE)
    changes: dict[str, Change | None] = {}
    report: dict[str, str | None] = {}
    reach: dict[str, str | None] = {}
    beyond = None
    if (more := measure.more_is_better) is not None:
        for arm, now in found.items():
            if arm == BASELINE:
                continue
            changes[arm] = improvement(now, before, more)
            report[arm] = None if measure.target is None else measure.target.verdict(now, before)[1]
            reach[arm] = None if measure.reach is None else measure.reach.verdict(now, before)[1]
        if OURS in found:
            beyond = improvement(found[OURS], found.get(RIVAL), more)
    return Row(measure, section, found, changes, report, reach, beyond)
