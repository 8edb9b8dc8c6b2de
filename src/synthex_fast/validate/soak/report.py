"""The output of a soak: a table of figures with what was promised beside each, and everything as JSON."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from synthex_fast.monitor import theil_sen
from synthex_fast.validate.report import environment, number
from synthex_fast.validate.soak.checks import CAN_FORK
from synthex_fast.validate.soak.run import Results, Show, duration, is_whole_days
from synthex_fast.validate.soak.workload import DAY, HOUR

# A slope through fewer hourly floors would be of noise.
FEWEST_FLOORS = 4
FEWEST_HOURS = 3.0


@dataclass(frozen=True)
class Bound:
    """A promise: the figure is to be less, or greater, than an amount."""

    text: str
    amount: float
    less: bool = True

    def met(self, value: float) -> bool:
        return value < self.amount if self.less else value > self.amount


@dataclass(frozen=True)
class Row:
    """A line of the table. `value` is None if the run was too short to tell; `note` then says what is missing."""

    key: str
    label: str
    unit: str
    value: float | None
    report: Bound | None = None
    reach: Bound | None = None
    note: str = ""

    def verdict(self, bound: Bound | None) -> bool | None:
        return None if bound is None or self.value is None else bound.met(self.value)


_GROWTH = Bound("< 1 %", 1.0), Bound("< 0.1 %", 0.1)


def growth(results: Results, figure: str) -> float | None:
    """Percent a day by which a figure of the floor grows, of the worker where it grows most; None if unknown.

    The slope is that of Theil and Sen over the hourly floors: the median of the slopes between all pairs, so that a few
    outliers don't matter. It is relative to the first of them.
    """
    slopes = []
    for records in results.records:
        floors = [record for record in records if record["kind"] != "warm" and record["floor"]]
        if len(floors) < FEWEST_FLOORS or floors[-1]["simulated"] < FEWEST_HOURS * HOUR:
            return None
        times = np.array([record["simulated"] for record in floors])
        values = np.array([float(record["floor"][figure]) for record in floors])
        slopes.append(float(100 * theil_sen(times, values) * DAY / values[0]))
    return max(slopes, default=None)


def rows(results: Results) -> list[Row]:
    """Every line of the table, also those that can't be told yet."""
    last = results.last()
    if not last:
        return []
    hours = results.simulated / HOUR
    worker_hours = sum(record["simulated"] for record in last) / HOUR
    long_enough = hours >= FEWEST_HOURS
    short = f"needs {FEWEST_HOURS:g} simulated hours"
    floors = f"needs {FEWEST_FLOORS} hourly floors in {FEWEST_HOURS:g} simulated hours"
    if not CAN_FORK:
        floors = "needs a system that can fork"

    def total(read: Callable[[dict[str, Any]], float]) -> float:
        return sum(read(record) for record in last)

    def rate(read: Callable[[dict[str, Any]], float]) -> float | None:
        return total(read) / worker_hours if long_enough else None

    def reuse(what: str) -> float | None:
        # Since everything was warm: what is made until then is what there is to reuse.
        reused = created = 0
        for records in results.records:
            if len(records) < 2 or records[0]["kind"] != "warm":
                return None
            reused += records[-1][f"{what}_reused"] - records[0][f"{what}_reused"]
            created += records[-1][f"{what}_created"] - records[0][f"{what}_created"]
        return 100 * reused / max(1, reused + created)

    warm = "needs 10 simulated minutes and some more"
    reused = Bound("> 80 %", 80.0, False), Bound("> 99 %", 99.0, False)
    seconds = max(record["real"] for record in last)
    served = total(lambda record: record["requests"])
    cpu = total(lambda record: record["cpu"])
    day_of_work = DAY * results.rate
    samples = rate(lambda record: record["monitor_samples"])
    monitor_cpu = rate(lambda record: record["monitor_cpu"])
    return [
        Row(
            "growth_bytes", "growth of resident memory a day", "%", growth(results, "bytes"), *_GROWTH, floors
        ),
        Row(
            "growth_blocks",
            "growth of allocated blocks a day",
            "%",
            growth(results, "blocks"),
            *_GROWTH,
            floors,
        ),
        Row(
            "growth_objects",
            "growth of live objects a day",
            "%",
            growth(results, "objects"),
            *_GROWTH,
            floors,
        ),
        Row(
            "failures",
            "failed checks",
            "",
            # A worker that died may have had one to tell.
            None if results.broken and not results.failures else float(len(results.failures)),
            None,
            Bound("0", 0.5),
            "a worker died",
        ),
        Row(
            "leaks",
            "leaks found by the monitor",
            "",
            float(sum(bool(record["leak"]) for record in last)) if results.simulated >= DAY - 1 else None,
            Bound("none", 0.5),
            Bound("none", 0.5),
            # In less, the rise of a daily cycle looks like one; its guide says so.
            "needs a simulated day",
        ),
        Row("records_reused", "records reused", "%", reuse("records"), *reused, warm),
        Row("pool_reused", "objects of the pool reused", "%", reuse("pool"), *reused, warm),
        *[
            Row(
                f"collections_{generation}",
                f"collections an hour and worker, generation {generation}",
                "",
                rate(lambda record, generation=generation: record["collections"][generation]),
                Bound("< 5", 5.0) if generation == 2 else None,
                Bound("< 5", 5.0) if generation == 2 else None,
                short,
            )
            for generation in range(3)
        ],
        Row(
            "longest_in_request",
            "longest pause inside a request, unforced",
            "ms",
            1e3 * max(record["longest_in_request"] for record in last),
            Bound("20-40 ms", 40.0),
            Bound("< 1 ms", 1.0),
        ),
        Row(
            "longest_pause",
            "longest pause of all, between requests or forced",
            "ms",
            1e3 * max(max(record["longest_pauses"]) for record in last),
            Bound("20-40 ms", 40.0),
        ),
        Row(
            "throughput",
            "requests/s, all workers",
            "",
            served / seconds,
            None,
            # A day in half an hour.
            Bound("> 48,000", 48_000.0, False) if results.rate == 1_000 else None,
        ),
        Row("cpu_per_request", "CPU per request", "µs", 1e6 * cpu / max(1.0, served)),
        Row(
            "day_on_two_cores",
            "CPU for a day, shared by two cores",
            "min",
            cpu / max(1.0, served) * day_of_work / 2 / 60,
            None,
            Bound("< 30", 30.0) if results.rate == 1_000 else None,
        ),
        Row(
            "monitor_samples",
            "memory samples a day and worker",
            "",
            None if samples is None else 24 * samples,
            Bound("1,440-17,280", 17_281.0),
            None,
            short,
        ),
        Row(
            "monitor_cpu",
            "memory monitor, CPU a day and worker",
            "s",
            None if monitor_cpu is None else 24 * monitor_cpu,
            Bound("216 today", 216.0),
            Bound("< 10.8 (-95 %)", 10.8),
            short,
        ),
        Row(
            "monitor_bytes",
            "memory monitor, its history",
            "MB",
            max(record["monitor_bytes"] for record in last) / 1e6,
            Bound("4.4 a day", 4.4),
            Bound("< 0.26 (-99 %)", 0.263),
        ),
        Row("peak", "peak RSS, largest worker", "MB", max(record["peak"] for record in last) / 1e6),
    ]


def _verdict(row: Row, bound: Bound | None) -> Text:
    met = row.verdict(bound)
    if bound is None:
        return Text("")
    if met is None:
        return Text(bound.text, style="dim")
    return Text(f"{bound.text} met", style="green") if met else Text(f"{bound.text} MISS", style="bold red")


def table(results: Results) -> Table:
    """The figures, each with the report's promise, this package's, and whether they are kept."""
    drawn = Table(title=title(results), box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("", overflow="fold")
    drawn.add_column("measured", justify="right", no_wrap=True, style="bold")
    drawn.add_column("the report", justify="right")
    drawn.add_column("this package", justify="right")
    for row in rows(results):
        label = f"{row.label}, {row.unit}" if row.unit else row.label
        shown = "can't be told yet" if row.value is None else _number(row.value)
        drawn.add_row(label, shown, _verdict(row, row.report), _verdict(row, row.reach))
    return drawn


def _number(value: float) -> str:
    # Sums of figures near zero, such as growth: more digits than these are noise.
    return "0" if abs(value) < 5e-5 else number(value)


def title(results: Results) -> str:
    """What was played, and whether all of it was."""
    served = sum(record["requests"] for record in results.last())
    seconds = max((record["real"] for record in results.last()), default=0.0)
    ended = "" if results.complete else ", ended early"
    return (
        f"{served:,} requests, {results.simulated / HOUR:.2f} simulated hours at {results.rate:g} a second, in "
        f"{duration(seconds)} with {results.processes} process{'es' * (results.processes > 1)}, "
        f"seed {results.seed}{ended}"
    )


def footnotes(results: Results) -> list[str]:
    """What the table leaves out, and what it can't say."""
    notes = []
    missing: dict[str, list[str]] = {}
    for row in rows(results):
        if row.value is None:
            missing.setdefault(row.note, []).append(row.label)
    if missing:
        notes += [f"Can't be told yet: {'; '.join(labels)} ({why})." for why, labels in missing.items()]
    last = results.last()
    if last:
        removed: dict[str, int] = {}
        for record in last:
            for found in record["dicts"].values():
                for reason in ("expired", "idle", "full", "memory"):
                    removed[reason] = removed.get(reason, 0) + found[reason]
        counts = ", ".join(f"{count:,} {reason}" for reason, count in removed.items())
        notes.append(
            f"Entries removed: {counts}. Batches refused: "
            f"{sum(record['batches_too_large'] for record in last):,} over the cap, "
            f"{sum(record['batches_paused'] for record in last):,} while the governor had paused the buffer."
        )
    if results.simulated and not is_whole_days(results):
        notes.append(
            "Not a whole day: traffic follows a daily cycle, so that its rate was not yet the average."
        )
    return notes


def show(results: Results, console: Console) -> None:
    """Print the table and its notes."""
    console.print(table(results))
    for note in footnotes(results):
        console.print(note, markup=False, highlight=False)


def as_json(results: Results, arguments: list[str]) -> dict[str, Any]:
    """All records and derived figures as JSON-serializable data."""
    return {
        "format": 1,
        "complete": results.complete,
        "environment": environment(arguments),
        "seed": results.seed,
        "rate": results.rate,
        "processes": results.processes,
        "requests": results.requests,
        "seconds": results.seconds,
        "simulated_seconds": results.simulated,
        "rows": [
            {
                "key": row.key,
                "label": row.label,
                "unit": row.unit,
                "value": row.value,
                "report": None if row.report is None else row.report.text,
                "report_met": row.verdict(row.report),
                "reach": None if row.reach is None else row.reach.text,
                "reach_met": row.verdict(row.reach),
                "note": row.note if row.value is None else "",
            }
            for row in rows(results)
        ],
        "failures": results.failures,
        "records": results.records,
        "footnotes": footnotes(results),
    }


@contextmanager
def progress(console: Console) -> Iterator[Show]:
    """Yields what `run` shows its progress with: a bar on a terminal, elsewhere a line for each simulated hour."""
    if not console.is_terminal:

        def show(_what: str, _share: float, hour: str) -> None:
            if hour:
                print(hour, file=sys.stderr, flush=True)

        yield show
        return

    from rich.progress import BarColumn, Progress, TextColumn

    # Drawn on each call, not by a thread, which would take time from the workers.
    columns = BarColumn(bar_width=24), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("starting", total=1.0)

        def draw(what: str, share: float, _hour: str) -> None:
            bar.update(task, description=what, completed=share, refresh=True)

        yield draw
