"""The plots of a run, drawn from its JSON. Each has a wide form and a narrow one for phones.

Arms differ in colour (Okabe and Ito's, which colour-blind readers can tell apart), in the form of their markers and in
the dashes of their lines.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from statistics import median
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from synthex_fast.validate.figures import OURS
from synthex_fast.validate.intervals import of_median
from synthex_fast.validate.page.svg import COLOURS, STYLE, fragment

WIDE, NARROW = 10.0, 3.75  # inches; both are shown at about 96 pixels an inch
MARKERS = {"current": "s", "recommended": "^", "tuned_by_hand": "D", OURS: "o"}
DASHES: dict[str, Any] = {
    "current": (0, (1, 1.4)),
    "recommended": (0, (4, 1.5, 1, 1.5)),
    "tuned_by_hand": (0, (4, 1.6)),
    OURS: "-",
}
SCENARIOS = {
    "uvicorn-open": "uvicorn, fixed rate",
    "gunicorn-open": "gunicorn with four workers, fixed rate",
}
SERVERS = {"uvicorn": "uvicorn", "gunicorn": "gunicorn with four workers"}
# Of an arm's collections, the longest: more could not be told apart, and would make the page large.
PAUSES_SHOWN = 120


class Plot(NamedTuple):
    """A finished plot: both forms as ``<svg>`` elements."""

    name: str
    title: str
    caption: str
    wide: str
    narrow: str


class Drawing(NamedTuple):
    """What can be drawn: `draw(narrow)` returns a figure, `description` says in words what it shows."""

    name: str
    title: str
    caption: str
    description: str
    draw: Callable[[bool], Any]


def plots(found: dict[str, Any]) -> Iterator[Plot]:
    """Every plot for which the run has data."""
    for make in (improvements, throughput, latencies, pauses, memory):
        drawing = make(found)
        if drawing is None:
            continue
        forms = []
        for form in ("wide", "narrow"):
            with matplotlib.rc_context(STYLE):
                figure = drawing.draw(form == "narrow")
            forms.append(fragment(figure, f"{drawing.name}-{form}", drawing.title, drawing.description))
        yield Plot(drawing.name, drawing.title, drawing.caption, *forms)


def named(arm: str) -> str:
    return arm if arm == OURS else arm.replace("_", " ")


def times(factor: float) -> str:
    """A factor as people say it.

    >>> times(12.34), times(1.5), times(0.5)
    ('12x', '1.5x', '0.5x')
    """
    return f"{factor:,.0f}x" if factor >= 10 else f"{factor:.2g}x"


def amount(value: float) -> str:
    """A figure with three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _limit(megabytes: float) -> str:
    """A memory limit as the axis has it, and as it is usually given."""
    return f"{amount(megabytes)} MB ({megabytes * 1e6 / 2**20:,.0f} MiB)"


def _panels(narrow: bool, titles: Sequence[str], height: float) -> tuple[Any, list[Any]]:
    """A figure with titled panels, one below the other if it is narrow, up to three side by side if not."""
    count = len(titles)
    columns = 1 if narrow else count if count <= 3 else 2
    rows = math.ceil(count / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(NARROW if narrow else WIDE, height * rows),
        layout="constrained",
        squeeze=False,
    )
    axes_of = list(grid.flat)
    for axes in axes_of[count:]:
        axes.remove()
    for axes, title in zip(axes_of, titles, strict=False):
        axes.set_title(_wrapped(title, 36 if narrow else 90 // columns))
    return figure, axes_of[:count]


def _legend(figure: Any, axes: Any, narrow: bool, columns: int = 4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=2 if narrow else columns,
        borderaxespad=0.2,
        columnspacing=1.6,
    )


def _log(axis: Any, formatted: Callable[[float], str]) -> None:
    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: formatted(value)))
    axis.set_minor_formatter(NullFormatter())


# ---- How far each version got


def _factor(percent: float, more: bool) -> float:
    """How many times as good: 50 % less is twice as good, 50 % more is 1.5 times."""
    if more:
        return max(1 + percent / 100, 1e-9)
    return math.inf if percent >= 100 else 1 / (1 - percent / 100)


def improvements(found: dict[str, Any]) -> Drawing | None:
    compared = [arm for arm in found["arms"] if arm != "current"]
    rows = [
        row
        for row in found["rows"]
        if any(row["better_by_percent"].values())
        and any(target and target["kind"] in ("less", "more") for target in row["targets"].values())
    ]
    if not rows:
        return None
    said = []
    for row in rows:
        if (change := row["better_by_percent"].get(OURS)) is not None:
            said.append(f"{row['label']} {times(_factor(change['median'], row['more_is_better']))}")

    def draw(narrow: bool) -> Any:
        figure, axes = plt.subplots(
            figsize=(NARROW if narrow else WIDE, 0.9 + (0.5 if narrow else 0.36) * len(rows)),
            layout="constrained",
        )
        shown = [
            _factor(percent, row["more_is_better"])
            for row in rows
            for change in row["better_by_percent"].values()
            if change is not None
            for percent in (change["interval"] or [change["median"]])
        ]
        targets = [
            _factor(target["amount"], target["kind"] == "more")
            for row in rows
            for target in row["targets"].values()
            if target and target["kind"] in ("less", "more")
        ]
        finite = [factor for factor in (*shown, *targets, 1.0) if math.isfinite(factor)]
        left, right = max(min(finite), 0.1) / 1.3, min(max(finite), 1_000) * 1.3
        offsets = dict(zip(compared, _spread(len(compared), 0.52), strict=True))
        for place, row in enumerate(rows):
            for name, target in row["targets"].items():
                if target and target["kind"] in ("less", "more"):
                    at = _factor(target["amount"], target["kind"] == "more")
                    axes.plot(
                        [at, at],
                        [place - 0.42, place + 0.42],
                        color=COLOURS["soft"] if name == "report" else COLOURS[OURS],
                        linewidth=1.3,
                        linestyle="-" if name == "report" else (0, (2, 1.2)),
                        zorder=1,
                    )
            for arm in compared:
                change = row["better_by_percent"].get(arm)
                if change is None:
                    continue
                more, y = row["more_is_better"], place + offsets[arm]
                ends = [min(max(_factor(end, more), left), right) for end in change["interval"] or []]
                at = _factor(change["median"], more)
                if ends:
                    axes.plot(
                        ends, [y, y], color=COLOURS[arm], linewidth=2.2 if arm == OURS else 1.4, alpha=0.75
                    )
                beyond = not left < at < right
                axes.plot(
                    [min(max(at, left), right)],
                    [y],
                    marker=(">" if at >= right else "<") if beyond else MARKERS[arm],
                    markersize=6.5 if arm == OURS else 5,
                    color=COLOURS[arm],
                    linestyle="none",
                    clip_on=False,
                    zorder=3,
                )
        axes.axvline(1, color=COLOURS["ink"], linewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        _log(axes.xaxis, times)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        labels = [_plain(row["label"]) for row in rows]
        axes.set_yticks(range(len(rows)), [_wrapped(label, 18 if narrow else 60) for label in labels])
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("times as good as current (log)")
        for arm in compared:
            axes.plot(
                [], [], color=COLOURS[arm], marker=MARKERS[arm], linewidth=1.6, markersize=5, label=named(arm)
            )
        axes.plot([], [], color=COLOURS["soft"], linewidth=1.3, label="report's target")
        axes.plot([], [], color=COLOURS[OURS], linewidth=1.3, linestyle=(0, (2, 1.2)), label="our target")
        _legend(figure, axes, narrow, 5)
        return figure

    return Drawing(
        "improvements",
        "How far each version got",
        "Twice as good is half the memory, time or garbage, or twice the requests. A bar is the 95 % interval; a "
        "target is met where the whole bar is to its right. An arrow at an edge lies beyond it.",
        "Beside the current system, this package is: " + "; ".join(said) + ".",
        draw,
    )


def _spread(count: int, height: float) -> list[float]:
    if count == 1:
        return [0.0]
    return [height * (place / (count - 1) - 0.5) for place in range(count)]


def _plain(label: str) -> str:
    """A label without its footnote."""
    return label.partition(" [")[0] if label.endswith("]") else label


def _wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


# ---- Throughput


def throughput(found: dict[str, Any]) -> Drawing | None:
    keys = {"throughput": "in process, one request after the other"} | {
        f"http_{server}_throughput": f"over HTTP, {name}" for server, name in SERVERS.items()
    }
    rows = [(keys[row["key"]], row["arms"]) for row in found["rows"] if row["key"] in keys]
    if not rows:
        return None
    said = [
        f"{title}: " + ", ".join(f"{named(arm)} {amount(figure['median'])}" for arm, figure in arms.items())
        for title, arms in rows
    ]

    def draw(narrow: bool) -> Any:
        figure, panels = _panels(narrow, [title for title, _ in rows], 0.75 + 0.46 * len(found["arms"]))
        for axes, (_, arms) in zip(panels, rows, strict=True):
            order = [arm for arm in found["arms"] if arm in arms]
            most = max(max(figure["values"]) for figure in arms.values())
            for place, arm in enumerate(order):
                values = arms[arm]["values"]
                axes.barh(
                    place, arms[arm]["median"], height=0.56, color=COLOURS[arm], alpha=0.28, linewidth=0
                )
                axes.plot(
                    values,
                    [place] * len(values),
                    MARKERS[arm],
                    color=COLOURS[arm],
                    markersize=3.6,
                    alpha=0.65,
                )
                if arms[arm]["interval"]:
                    axes.plot(arms[arm]["interval"], [place + 0.38] * 2, color=COLOURS[arm], linewidth=2)
            labels = [f"{named(arm)}\n{amount(arms[arm]['median'])}" for arm in order]
            axes.set_yticks(range(len(order)), labels)
            axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
            axes.grid(axis="y", visible=False)
            axes.set_ylim(len(order) - 0.4, -0.6)
            axes.set_xlim(0, 1.06 * most)
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
            axes.set_xlabel("requests a second")
        return figure

    return Drawing(
        "throughput",
        "Throughput",
        "A bar is the median of the rounds, each of which is a marker; the line below is the median's 95 % interval.",
        "Requests a second, " + ". ".join(said) + ".",
        draw,
    )


# ---- Latency


def latencies(found: dict[str, Any]) -> Drawing | None:
    panels = []
    for title, rounds, unit in (
        ("in process", found["rounds"], 1e6),
        *((f"over HTTP: {name}", found["http"].get(key, {}), 1e3) for key, name in SCENARIOS.items()),
    ):
        arms = {arm: _curve(done, unit) for arm, done in rounds.items() if done and "percentiles" in done[0]}
        if arms:
            panels.append((title, arms, "µs" if unit == 1e6 else "ms"))
    if not panels:
        return None
    said = []
    for title, arms, unit_name in panels:
        p99 = ", ".join(
            f"{named(arm)} {amount({share: middle for share, middle, *_ in curve}[99])} {unit_name}"
            for arm, curve in arms.items()
        )
        said.append(f"{title}: 99th percentile {p99}")

    def draw(narrow: bool) -> Any:
        figure, axes_of = _panels(narrow, [panel[0] for panel in panels], 2.9 if narrow else 3.4)
        for axes, (_, arms, unit_name) in zip(axes_of, panels, strict=True):
            for arm in (arm for arm in found["arms"] if arm in arms):
                curve = [point for point in arms[arm] if point[0] < 100]
                x = [_nines(share) for share, *_ in curve]
                middle, low, high = ([point[place] for point in curve] for place in (1, 2, 3))
                axes.fill_between(x, low, high, color=COLOURS[arm], alpha=0.16, linewidth=0)
                axes.plot(
                    x,
                    middle,
                    color=COLOURS[arm],
                    linestyle=DASHES[arm],
                    linewidth=2.2 if arm == OURS else 1.5,
                    marker=MARKERS[arm],
                    markersize=3.4,
                    label=named(arm),
                )
            axes.set_yscale("log")
            _log(axes.yaxis, amount)
            shares = (0, 90, 99, 99.9, 99.99)
            axes.set_xticks(
                [_nines(share) for share in shares], ["fastest", *(f"p{share:g}" for share in shares[1:])]
            )
            axes.set_ylabel(f"{unit_name} (log)")
            axes.set_xlabel("share of requests that took at most this long")
        _legend(figure, axes_of[0], narrow)
        return figure

    return Drawing(
        "latency",
        "Latency of requests",
        "Each step to the right has ten times fewer requests beyond it. A line is the median of the rounds, the band "
        "around it that median's 95 % interval. Over HTTP each request is timed from when it was due.",
        ". ".join(said) + ".",
        draw,
    )


def _curve(rounds: Sequence[dict[str, Any]], unit: float) -> list[tuple[float, float, float, float]]:
    """Share, median of the rounds, and its interval, for each percentile kept."""
    curve = []
    for points in zip(*(done["percentiles"] for done in rounds), strict=True):
        values = [unit * value for _, value in points]
        low, high = of_median(values) or (values[0], values[0])
        curve.append((points[0][0], median(values), low, high))
    return curve


def _nines(share: float) -> float:
    """Where a percentile lies on an axis of which each step has ten times fewer requests beyond it.

    >>> round(_nines(99.9), 6)
    3.0
    """
    return -math.log10(1 - share / 100) if share else 0.0


# ---- Pauses of the garbage collector


class _Strip(NamedTuple):
    """An arm's collections: when each began, its milliseconds, and whether a request was waiting."""

    points: list[tuple[float, float, bool]]
    length: float
    borders: list[float]

    def longest(self) -> float:
        return max((ms for _, ms, _ in self.points), default=0.0)


def pauses(found: dict[str, Any]) -> Drawing | None:
    panels: list[tuple[str, str, dict[str, _Strip]]] = []
    for key, name in SCENARIOS.items():
        rounds = found["http"].get(key, {})
        if rounds:
            strips = {arm: _timed(done) for arm, done in rounds.items()}
            panels.append((f"over HTTP: {name}", "seconds of load", strips))
    if not panels and found["rounds"]:
        strips = {arm: _ordered(done) for arm, done in found["rounds"].items()}
        panels.append(
            ("in process: refilling the caches, then load", "round, collections in their order", strips)
        )
    panels = [panel for panel in panels if any(strip.points for strip in panel[2].values())]
    if not panels:
        return None
    said = []
    for title, _, strips in panels:
        longest = ", ".join(
            f"{named(arm)} {len(strip.points)}, the longest {amount(strip.longest())} ms"
            for arm, strip in strips.items()
        )
        said.append(f"{title}: {longest}")
    over_http = any(key in found["http"] for key in SCENARIOS)

    def draw(narrow: bool) -> Any:
        order = [arm for arm in found["arms"] if any(arm in strips for _, _, strips in panels)]
        columns = 1 if narrow else len(panels)
        blocks = [panels] if columns > 1 else [[panel] for panel in panels]
        figure, grid = plt.subplots(
            len(order) * len(blocks),
            columns,
            figsize=(NARROW if narrow else WIDE, 0.5 + 0.95 * len(order) * len(blocks)),
            layout="constrained",
            squeeze=False,
            sharey=True,
            sharex="col" if len(blocks) == 1 else False,
        )
        most = max(ms for _, _, strips in panels for strip in strips.values() for _, ms, _ in strip.points)
        least = min(
            max(ms, 0.001)
            for _, _, strips in panels
            for strip in strips.values()
            for _, ms, _ in strip.points
        )
        for number, block in enumerate(blocks):
            for column, (title, x_label, strips) in enumerate(block):
                for row, arm in enumerate(order):
                    axes = grid[number * len(order) + row][column]
                    _strip(axes, arm, strips.get(arm), least / 2)
                    axes.set_yscale("log")
                    axes.set_ylim(least / 2, most * 3)
                    _log(axes.yaxis, amount)
                    axes.set_title(
                        named(arm)
                        if row
                        else f"{_wrapped(title, 36 if narrow else 90 // columns)}\n{named(arm)}"
                    )
                    if column == 0:
                        axes.set_ylabel("ms (log)")
                    if row == len(order) - 1:
                        axes.set_xlabel(x_label)
        return figure

    return Drawing(
        "pauses",
        "Pauses of the garbage collector",
        f"Each line is a collection; of a version's, the {PAUSES_SHOWN} longest are shown. "
        + (
            "Filled markers met at least one request in the process, hollow ones none. Vertical lines separate "
            "rounds, unless they are many."
            if over_http
            else "Vertical lines separate rounds, unless they are many. In process, synthex_fast collects between "
            "requests."
        ),
        "Collections and pauses, " + ". ".join(said) + ".",
        draw,
    )


def _timed(rounds: Iterable[dict[str, Any]]) -> _Strip:
    points, borders, begin = [], [], 0.0
    for done in rounds:
        points += [(begin + at, 1e3 * took, bool(inside)) for at, took, _, inside in done["pauses"]]
        begin += done["seconds"]
        borders.append(begin)
    return _Strip(points, begin, borders)


def _ordered(rounds: Sequence[dict[str, Any]]) -> _Strip:
    points = []
    for number, done in enumerate(rounds):
        count = len(done["pauses"])
        points += [
            (number + (place + 0.5) / count, 1e3 * took, True) for place, took in enumerate(done["pauses"])
        ]
    return _Strip(points, float(len(rounds)), [float(number + 1) for number in range(len(rounds))])


def _strip(axes: Any, arm: str, strip: _Strip | None, floor: float) -> None:
    axes.grid(axis="x", visible=False)
    if strip is None:
        return
    axes.set_xlim(0, strip.length)
    # More would be a grey ground.
    for border in strip.borders[:-1] if len(strip.borders) <= 40 else ():
        axes.axvline(border, color=COLOURS["line"], linewidth=0.8)
    if not strip.points:
        axes.text(
            0.5,
            0.5,
            "no collection",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=COLOURS["soft"],
        )
    for inside in (False, True):
        longest = sorted(strip.points, key=lambda point: -point[1])[:PAUSES_SHOWN]
        chosen = [(at, ms) for at, ms, met in longest if met == inside]
        if not chosen:
            continue
        x, y = zip(*chosen, strict=True)
        # One line with gaps, which is a single element.
        stems = [point for at, ms in chosen for point in ((at, floor), (at, ms), (math.nan, math.nan))]
        axes.plot(*zip(*stems, strict=True), color=COLOURS[arm], linewidth=0.8, alpha=0.7)
        axes.plot(
            x,
            y,
            MARKERS[arm],
            color=COLOURS[arm],
            markersize=3.4,
            markerfacecolor=COLOURS[arm] if inside else "none",
            markeredgewidth=0.8,
        )


# ---- Memory


def memory(found: dict[str, Any]) -> Drawing | None:
    panels: list[tuple[str, str, dict[str, list[tuple[list[float], list[float]]]], float | None]] = []
    # At the limit: a line for each run, from its start to its end.
    limits = {run["limit"] for runs in found["limit"].values() for run in runs}
    at_limit = {arm: [_series(run["series"]) for run in runs] for arm, runs in found["limit"].items()}
    if any(at_limit.values()):
        panels.append(("at the limit", "seconds", at_limit, max(limits, default=0) / 1e6 or None))
    for key, name in SCENARIOS.items():
        rounds = found["http"].get(key, {})
        series = {arm: _joined(done) for arm, done in rounds.items()}
        if any(points for lines in series.values() for points, _ in lines):
            panels.append((f"over HTTP: {name}", "seconds of load", series, None))
    if found["rounds"]:
        in_process = {
            arm: [([float(n + 1) for n in range(len(done))], [each["peak_rss"] / 1e6 for each in done])]
            for arm, done in found["rounds"].items()
        }
        panels.append(("in process: peak of each round", "round", in_process, None))
    if not panels:
        return None
    said = []
    for title, _, series, limit in panels:
        peaks = ", ".join(
            f"{named(arm)} {amount(max((max(y) for _, y in lines if y), default=0))} MB"
            for arm, lines in series.items()
        )
        said.append(f"{title}: at most {peaks}" + (f", with a limit of {_limit(limit)}" if limit else ""))

    def draw(narrow: bool) -> Any:
        figure, axes_of = _panels(narrow, [panel[0] for panel in panels], 2.5 if narrow else 3.0)
        for axes, (_, x_label, series, limit) in zip(axes_of, panels, strict=True):
            for arm in (arm for arm in found["arms"] if arm in series):
                for number, (x, y) in enumerate(series[arm]):
                    # Only the first of several runs can be followed.
                    look = (
                        {"linewidth": 0.6, "alpha": 0.35}
                        if number
                        else {
                            "linewidth": 2.2 if arm == OURS else 1.5,
                            "marker": MARKERS[arm],
                            "markersize": 3.4,
                            "markevery": max(1, len(x) // 8),
                            "label": named(arm),
                            "zorder": 3,
                        }
                    )
                    axes.plot(x, y, color=COLOURS[arm], linestyle=DASHES[arm], **look)
            if limit:
                axes.axhline(limit, color=COLOURS["ink"], linewidth=1.2)
                axes.text(
                    1,
                    limit,
                    f"limit {_limit(limit)}",
                    transform=axes.get_yaxis_transform(),
                    ha="right",
                    va="bottom",
                )
            for arm, runs in found["limit"].items() if limit else ():
                # A process that dies is sampled while it gives its memory back.
                ends = [
                    max(run["series"], key=itemgetter(1)) for run in runs if run["killed"] and run["series"]
                ]
                for at, size in ends:
                    axes.plot([at], [size / 1e6], "X", color=COLOURS[arm], markersize=8, zorder=4)
                if ends:
                    # Said once: the other runs end nearby.
                    at, size = max(ends)
                    axes.annotate(
                        "killed",
                        (at, size / 1e6),
                        xytext=(0, -14),
                        textcoords="offset points",
                        ha="center",
                    )
            most = max((max(y) for lines in series.values() for _, y in lines if y), default=1.0)
            axes.set_ylim(0, 1.12 * max(most, limit or 0))
            axes.set_xlabel(x_label)
            axes.set_ylabel("resident memory, MB")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=x_label == "round"))
        _legend(figure, axes_of[0], narrow)
        return figure

    return Drawing(
        "memory",
        "Memory",
        "Resident memory of each version's process or processes."
        + (
            " At the limit, the first run of each stands out from the others."
            if any(at_limit.values())
            else ""
        ),
        ". ".join(said) + ".",
        draw,
    )


def _series(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] / 1e6 for point in points]


def _joined(rounds: Iterable[dict[str, Any]]) -> list[tuple[list[float], list[float]]]:
    """The memory of rounds one after the other, as one line."""
    x: list[float] = []
    y: list[float] = []
    begin = 0.0
    for done in rounds:
        for at, rss in done.get("memory", ()):
            x.append(begin + max(at, 0.0))
            y.append(rss / 1e6)
        begin += done["seconds"]
    return [(x, y)]
