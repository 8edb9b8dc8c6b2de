"""What the reader gets: one table with its footnotes, and the same as JSON."""

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

# A table that is read from a file or a log has no terminal's width to keep to.
PLAIN_WIDTH = 200
# Below this the table is shown in two halves, one above the other.
WHOLE_WIDTH = 155


def table(results: Any, plus_minus: str = "±", *, measured: bool = True, judged: bool = True) -> Table:
    """The rows that have been measured: each arm's figures, and the report's with how far each arm got."""
    finished = f"{results.finished()} round{'s' * (results.finished() != 1)}"
    drawn = Table(
        title=_title(results),
        caption=f"medians of {finished}, {plus_minus} half the distance of the extremes"
        if measured
        else None,
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
    return f"The report's workload, seed {results.seed}: interrupted, this is what was finished"


def number(value: float) -> str:
    """Three figures that count, and no more.

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
    # Cut, not rounded: 59.6 % is not the 60 % that were asked.
    shown = "-" if change is None else f"{int(change):+,d} %"
    if met is None:
        return Text(shown)
    return Text(f"{shown} met", style="green") if met else Text(f"{shown} MISS", style="bold red")


def footnotes(results: Any) -> list[str]:
    """What the table needs said beside it, the report's slips included."""
    notes = [
        "[1] The report makes 0.1056 KB times 1,000 requests/s into 105.6 MB/s; it is 105.6 KB/s. Here a "
        "request's kB are MB/s at 1,000 requests/s. Counted at Python's own allocators, so what pydantic's "
        "Rust code takes from the C library is not in it."
    ]
    served = {arm: sum(done["requests"] for done in rounds) for arm, rounds in results.rounds.items()}
    if served:
        one = ", ".join(f"{arm} {3_600 * REPORT_RATE / count:,.1f}" for arm, count in served.items())
        notes.append(
            "[2] On full caches the workload frees what it makes and leaves no cycles, so the collector has "
            "little to run for. It runs while the caches fill: for the first time, and again after the mass "
            "expiry that begins each round (1,100 requests each). A single full collection under load in the "
            f"whole run would read as: {one}. Pauses are of refill and load."
        )
    if results.started:
        resident = ", ".join(
            f"{arm} {number(begun['before_load_rss'] / 1e6)} MB, {number(begun['import_rss'] / 1e6)} of them "
            "its imports"
            for arm, begun in results.started.items()
        )
        notes.append(
            "[3] Resident before the load, with the interpreter, the corpus, the harness and this package in "
            f"every arm: {resident}. The texts are the corpus's and shared, so what the load adds is the "
            "service's own."
        )
    if results.held:
        notes.append(
            "[4] The service with full caches, by tracemalloc, each request's texts its own; then what the "
            "caches' own account says. The report's figure is its estimate for the responses alone."
        )
    if results.sampling:
        notes.append(
            "[5] With steady memory: what a sample takes, as often as the version then samples; the thread's "
            "wake-ups are not in it. Bytes are those requested from Python's allocators; the report's figure "
            "is its estimate of the data that its samples are."
        )
    if any(not done["peak_rss_of_this_round"] for rounds in results.rounds.values() for done in rounds):
        notes.append("This system can't reset a peak: each round's peak RSS is the highest since the start.")
    notes.append(
        "Other slips of the report: 216 s of sampling a day are 0.25 % of one core, not 2-5 %; a variance "
        "of 0.01 needs a unit. Its current figures are from another machine under another load."
    )
    if "synthex_fast" in results.arms:
        notes.append(
            "synthex_fast collects garbage when a response has gone out: that is in requests/s and CPU, not in "
            "latency. What it does to requests that wait meanwhile is measured in bench/bench_gc_tuner.py."
        )
    if "recommended" in results.arms:
        notes.append(
            "recommended skips validation, since the report's reset() sets what its models would refuse if "
            "asked; the other two check every field."
        )
    notes.append("Not measured here: growth per day, leaks, out-of-memory errors.")
    return notes


def environment(arguments: list[str]) -> dict:
    """Where and with what the figures were made."""
    versions = {}
    for package in ("synthex-fast", "pydantic", "pydantic-core", "psutil", "rich"):
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
    """Everything that was measured, and what was made of it, for a program to read."""
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
