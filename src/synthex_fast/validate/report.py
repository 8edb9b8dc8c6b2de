"""The output of a comparison: one table with its footnotes, and the same as JSON."""

import os
import platform
import sys
import sysconfig
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from synthex_fast.validate.figures import BASELINE, REPORT_RATE, Figure, Row, rows

# A table that goes to a file or a log need not fit a terminal.
PLAIN_WIDTH = 200
# Below this the table is shown in two halves, one above the other.
WHOLE_WIDTH = 155


def table(results: Any, plus_minus: str = "±", *, measured: bool = True, judged: bool = True) -> Table:
    """The rows that have been measured: each arm's figures, and the report's with how far each arm got."""
    finished = f"{results.finished()} round{'s' * (results.finished() != 1)}"
    drawn = Table(
        title=_title(results),
        caption=f"medians of {finished}, {plus_minus} half the range" if measured else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    compared = [arm for arm in results.arms if arm != BASELINE]
    drawn.add_column("", overflow="fold")
    if judged:
        drawn.add_column("report:\ncurrent", justify="right", style="dim")
        drawn.add_column("report:\ntarget", justify="right", style="dim")
    if measured:
        for arm in results.arms:
            drawn.add_column(
                arm, justify="right", no_wrap=True, style="bold" if arm == "synthex_fast" else ""
            )
    if judged:
        for arm in compared:
            drawn.add_column(f"{arm}\nbetter by", justify="right", no_wrap=True)
    for line in _lines(rows(results)):
        measure = line[0].measure
        if not measured and (len(line) > 1 or measure.more_is_better is None):
            continue
        cells = [f"{measure.label}, {measure.unit}" if measure.unit else measure.label]
        if judged:
            cells += [measure.report_current, measure.report_target]
        if measured:
            cells += [
                " / ".join(_cell(row.figures.get(arm), plus_minus) for row in line) for arm in results.arms
            ]
        if judged:
            cells += [_verdict(line[0], arm) if len(line) == 1 else "" for arm in compared]
        drawn.add_row(*cells)
    return drawn


def _lines(table: list[Row]) -> list[list[Row]]:
    lines: list[list[Row]] = []
    for row in table:
        if row.measure.in_line:
            lines[-1].append(row)
        else:
            lines.append([row])
    return lines


def _title(results: Any) -> str:
    if results.complete:
        return f"The report's workload, seed {results.seed}"
    return f"The report's workload, seed {results.seed}: interrupted, finished rounds only"


def number(value: float) -> str:
    """Format a number with three significant digits.

    >>> number(12345.678), number(12.3456), number(0.01234), number(0.0)
    ('12,346', '12.3', '0.0123', '0')
    """
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _cell(figure: Figure | None, plus_minus: str) -> str:
    if figure is None:
        return "-"
    if len(figure.values) == 1 or figure.spread == 0:
        return number(figure.median)
    if figure.median == 0:
        return f"0 {plus_minus}{number(figure.spread)}"
    return f"{number(figure.median)} {plus_minus}{100 * figure.spread / abs(figure.median):.0f} %"


def _verdict(row: Row, arm: str) -> Text:
    change, met = row.verdicts.get(arm, (None, None))
    # Truncated, not rounded: 59.6 % does not meet a target of 60 %.
    shown = "-" if change is None else f"{int(change):+,d} %"
    if met is None:
        return Text(shown)
    return Text(f"{shown} met", style="green") if met else Text(f"{shown} MISS", style="bold red")


def footnotes(results: Any) -> list[str]:
    """Notes on how to read the table, including the report's errors."""
    notes = [
        "[1] 'The report' is the performance report on the original system, whose figures and targets are shown. "
        "It equates 0.1056 KB at 1,000 requests/s with 105.6 MB/s; the product is 105.6 KB/s. At 1,000 "
        "requests/s, kB per request equal MB/s. Only Python's allocators are counted, so memory that "
        "pydantic's Rust code takes from the C library is excluded."
    ]
    served = {arm: sum(done["requests"] for done in rounds) for arm, rounds in results.rounds.items()}
    if served:
        one = ", ".join(f"{arm} {3_600 * REPORT_RATE / count:,.1f}" for arm, count in served.items())
        notes.append(
            "[2] With full caches the workload frees everything it allocates and creates no cycles, so the "
            "collector rarely runs. It runs while the caches fill: once at the start, and again after the mass "
            "expiry that begins each round (1,100 requests each). One full collection under load in the "
            f"whole run would show as: {one}. Pauses are those of refill and load."
        )
    if results.started:
        resident = ", ".join(
            f"{arm} {number(begun['before_load_rss'] / 1e6)} MB, of which imports "
            f"{number(begun['import_rss'] / 1e6)} MB"
            for arm, begun in results.started.items()
        )
        notes.append(
            "[3] RSS before the load, including the interpreter, the corpus, the harness and this package in "
            f"every arm: {resident}. Requests share the corpus's strings, so the growth under load is the "
            "service's own memory."
        )
    if results.held:
        notes.append(
            "[4] The service with full caches, measured by tracemalloc with fresh strings for every request, then "
            "as counted by the caches themselves. The report's figure is an estimate for the responses alone."
        )
    if results.sampling:
        notes.append(
            "[5] Over one simulated day in which memory follows the traffic and jobs come and go; without thread "
            "wake-ups. Samples taken of those that the day has: "
            + ", ".join(
                f"{arm} {found['samples_taken']:,} of {found['samples_a_day']:,.0f}"
                for arm, found in results.sampling.items()
            )
            + ". Bytes are those requested from Python's allocators; the report's figure is an estimate of the size "
            "of its samples."
        )
    if results.garbage:
        from synthex_fast.validate import garbage

        notes += garbage.footnotes(results)
    if results.limit:
        from synthex_fast.validate import limit

        notes += limit.footnotes(results)
    if any(not done["peak_rss_of_this_round"] for rounds in results.rounds.values() for done in rounds):
        notes.append(
            "This system cannot reset the peak RSS: each round shows the peak since the process started."
        )
    notes.append(
        "Other errors in the report: 216 s of sampling a day are 0.25 % of one core, not 2-5 %; a variance "
        "of 0.01 needs a unit. Its current figures come from a different machine and load."
    )
    if "synthex_fast" in results.arms:
        notes.append(
            "synthex_fast collects garbage after sending a response, so that time counts towards requests/s and "
            "CPU, not latency. Its effect on waiting requests is measured in bench/bench_gc_tuner.py."
        )
    if "recommended" in results.arms:
        notes.append(
            "recommended skips validation, because the report's reset() sets values that its models would "
            "reject; the other arms validate every field."
        )
    notes.append("Not measured here: growth per day, leaks, out-of-memory errors.")
    return notes


def environment(arguments: list[str]) -> dict:
    """The interpreter, machine and package versions behind the figures."""
    versions = {}
    for package in (
        "synthex-fast",
        "pydantic",
        "pydantic-core",
        "msgspec",
        "cachetools",
        "uuid-utils",
        "psutil",
        "rich",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            from synthex_fast import __version__

            versions[package] = __version__ if package == "synthex-fast" else None
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "debug_build": hasattr(sys, "gettotalrefcount"),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "arguments": arguments,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def as_json(results: Any, arguments: list[str]) -> dict:
    """All measurements and derived figures as JSON-serializable data."""
    return {
        "format": 1,
        "complete": results.complete,
        "environment": environment(arguments),
        "seed": results.seed,
        "corpus": results.corpus,
        "arms": list(results.arms),
        "planned_rounds": results.planned_rounds,
        "finished_rounds": results.finished(),
        "round_seconds": results.round_seconds,
        "requests_compared": results.compared,
        "rows": [_row_as_json(row) for row in rows(results)],
        "started": results.started,
        "held": results.held,
        "first_fill": results.first_fill,
        "sampling": results.sampling,
        "allocation": results.allocation,
        "rounds": results.rounds,
        "footnotes": footnotes(results),
    }


def _row_as_json(row: Row) -> dict:
    measure = row.measure
    return {
        "key": measure.key,
        "label": measure.label,
        "unit": measure.unit,
        "report_current": measure.report_current,
        "report_target": measure.report_target,
        "arms": {
            arm: {
                "median": figure.median,
                "least": min(figure.values),
                "greatest": max(figure.values),
                "values": list(figure.values),
            }
            for arm, figure in row.figures.items()
        },
        "better_by_percent": {arm: change for arm, (change, _) in row.verdicts.items()},
        "target_met": {arm: met for arm, (_, met) in row.verdicts.items()},
    }


def show(results: Any, console: Console) -> None:
    """Print the table and its footnotes, as wide as the terminal is."""
    plus_minus = "±" if (console.encoding or "").lower().startswith("utf") else "+-"
    if console.width >= WHOLE_WIDTH:
        console.print(table(results, plus_minus))
    else:
        console.print(table(results, plus_minus, judged=False))
        console.print(table(results, plus_minus, measured=False))
    for note in footnotes(results):
        console.print(note, markup=False, highlight=False)
