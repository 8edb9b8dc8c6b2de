"""The output of a comparison: one table with its footnotes, and the same as JSON."""

import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from synthex_fast.validate.figures import (
    BASELINE,
    MET,
    MISSED,
    OURS,
    REPORT_RATE,
    RIVAL,
    Change,
    Figure,
    Row,
    Target,
    rows,
)
from synthex_fast.validate.http import measures as over_http
from synthex_fast.validate.intervals import FEWEST_FOR_95

# Of the JSON. A change of meaning makes a new one.
FORMAT = 2
# A table that goes to a file or a log need not fit a terminal.
PLAIN_WIDTH = 240
_STYLES = {MET: "green", MISSED: "bold red"}


REPORT, ARMS, CHANGES, REACH = "report", "arms", "changes", "reach"
# How the table's columns may be divided among tables, one above the other, the widest first.
_DIVISIONS = (
    ((REPORT, ARMS, CHANGES, REACH),),
    ((ARMS,), (REPORT, CHANGES, REACH)),
    ((ARMS,), (REPORT, REACH), (CHANGES,)),
)


def table(
    results: Any,
    plus_minus: str = "±",
    columns: Sequence[str] = _DIVISIONS[0][0],
    *,
    intervals: bool = True,
    fold: bool = False,
) -> Table:
    """The rows that have been measured, with these columns: the report's figures and target, each arm's figures, how
    far each arm got, and our target.

    `intervals` says whether improvements have theirs beside them, `fold` that cells may take several lines.
    """
    drawn = Table(
        title=_title(results),
        caption=_caption(results, plus_minus) if ARMS in columns else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    compared = [arm for arm in results.arms if arm != BASELINE]
    shown = rows(results)
    rivalry = {OURS, RIVAL} <= set(compared)
    drawn.add_column("", overflow="fold", min_width=12 if fold else 24)
    if REPORT in columns:
        drawn.add_column("report:\ncurrent", justify="right", style="dim")
        drawn.add_column("report:\ntarget", justify="right", style="dim")
    if ARMS in columns:
        for arm in results.arms:
            drawn.add_column(
                _head(arm), justify="right", no_wrap=not fold, style="bold" if arm == OURS else ""
            )
    if CHANGES in columns:
        for arm in compared:
            drawn.add_column(f"{_head(arm)}\nbetter by", justify="right", no_wrap=not fold)
        if rivalry:
            drawn.add_column(f"than\n{_head(RIVAL)}", justify="right", no_wrap=not fold)
    if REACH in columns:
        drawn.add_column("our\ntarget", justify="right", no_wrap=not fold)
    section = None
    for line in _lines(shown):
        measure = line[0].measure
        if ARMS not in columns and (len(line) > 1 or measure.more_is_better is None):
            continue
        if line[0].section != section:
            section = line[0].section
            drawn.add_section()
            drawn.add_row(Text(section, style="bold"))
        single = line[0] if len(line) == 1 else None
        cells: list[str | Text] = [f"{measure.label}, {measure.unit}" if measure.unit else measure.label]
        if REPORT in columns:
            cells += [measure.report_current, measure.report_target]
        if ARMS in columns:
            cells += [
                " / ".join(_cell(row.figures.get(arm), plus_minus) for row in line) for arm in results.arms
            ]
        if CHANGES in columns:
            cells += [_verdict(single, arm, intervals) for arm in compared]
            if rivalry:
                cells.append(change_text(single.beyond_rival, intervals) if single else "")
        if REACH in columns:
            cells.append(_reach(single))
        drawn.add_row(*cells)
    for column in drawn.columns:
        # Else rich would cut figures off in order to fit the others.
        pieces = str.splitlines if column.no_wrap else str.split
        column.min_width = max(column.min_width or 0, _widest(column, pieces))
    return drawn


def _widest(column: Column, pieces: Callable[[str], list[str]] = str.splitlines) -> int:
    return max(len(piece) for cell in (column.header, *column.cells) for piece in pieces(str(cell)))


def _fit(drawn: Table, console: Console) -> bool:
    """Give each column its width; false if they don't fit."""
    unlimited = console.options.update(width=10_000)
    spare = console.width - Measurement.get(console, unlimited, drawn).minimum
    # Figures are hardest to read in several lines, the labels of the first column are easiest.
    for column in (*drawn.columns[1:], drawn.columns[0]):
        more = max(0, min(spare, _widest(column) - (column.min_width or 0)))
        column.width = (column.min_width or 0) + more
        spare -= more
    return spare >= 0


def _head(arm: str) -> str:
    # May be broken between words.
    return arm.replace("_", " ") if arm == RIVAL else arm


def _lines(table: Iterable[Row]) -> list[list[Row]]:
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
    how = "it failed" if getattr(results, "failure", "") else "interrupted"
    return f"The report's workload, seed {results.seed}: {how}, finished rounds only"


def _caption(results: Any, plus_minus: str) -> str:
    finished = results.finished()
    if not finished:
        # In process; there may be others.
        return (
            f"medians of the rounds, {plus_minus} half the 95 % interval, or half the range of fewer than six"
        )
    rounds = f"{finished} round{'s' * (finished != 1)}"
    width = "95 % interval" if finished >= FEWEST_FOR_95 else "range, too few rounds for a 95 % interval"
    return (
        f"medians of {rounds}, {plus_minus} half the {width}; without {plus_minus}: one value, or all alike"
    )


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
    if figure.limits is not None:
        return f"{number(figure.median)} ({number(figure.limits.low)}-{number(figure.limits.high)})"
    if len(figure.values) == 1 or figure.spread == 0:
        return number(figure.median)
    if figure.median == 0:
        return f"0 {plus_minus}{number(figure.spread)}"
    return f"{number(figure.median)} {plus_minus}{100 * figure.spread / abs(figure.median):.0f} %"


def change_text(change: Change | None, interval: bool = True) -> str:
    """An improvement in percent, and where it lies.

    >>> from synthex_fast.validate.intervals import Interval
    >>> change_text(Change(59.6)), change_text(Change(-4.2, Interval(-7.0, 2.0)))
    ('+59 %', '-4 % (-7 to +2)')
    """
    if change is None:
        return "-"
    # Truncated, not rounded: 59.6 % does not meet a target of 60 %.
    shown = f"{int(change.percent):+,d} %"
    if interval and change.interval is not None:
        low, high = map(int, change.interval)
        shown += "" if low == high else f" ({low:+,d} to {high:+,d})"
    return shown


def _verdict(row: Row | None, arm: str, interval: bool) -> Text:
    if row is None:
        return Text("")
    shown, met = change_text(row.changes.get(arm), interval), row.report.get(arm)
    return Text(shown) if met is None else Text(f"{shown} {met}", style=_STYLES.get(met, "yellow"))


def _reach(row: Row | None) -> Text:
    if row is None or row.measure.reach is None:
        return Text("")
    met = row.reach.get(OURS)
    return Text(f"{row.measure.reach.text} {met or ''}".rstrip(), style=_STYLES.get(met or "", "yellow"))


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
            f"whole run is this many an hour: {one}. The limits are the 95 % ones of the count in the whole run: "
            "none in a short run does not mean few an hour. Pauses are those of refill and load."
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
    if results.http:
        notes += over_http.footnotes(results)
    if results.rounds:
        notes.append(
            "[6] Not measured, no Node is run: what V8 may use by its flags, the old space and three semi-spaces. The "
            "report's flags are fixed; node_heap_flags() sizes them for a container of 5.1 GB, all memory after the "
            "report's improvements, of which Node keeps its present share (6,336 MB of 9.25 GB)."
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
    if "synthex_fast" in results.arms and results.rounds:
        notes.append(
            "synthex_fast collects garbage after sending a response, so that time counts towards requests/s and "
            "CPU, not latency. Its effect on waiting requests is measured in bench/bench_gc_tuner.py."
        )
    if "recommended" in results.arms:
        notes.append(
            "recommended skips validation, because the report's reset() sets values that its models would "
            "reject; the other arms validate every field."
        )
    notes.append(
        "A target is met if the whole 95 % interval is on its right side, missed if the whole interval is on the wrong "
        "one, and unclear if noise could decide. Improvements are medians of the ratios to 'current' in the same "
        "round; intervals are bootstrapped. What was measured once is judged as it is."
    )
    notes.append(
        "Growth per day and leaks are measured by: synthex-fast soak"
        + ("" if getattr(results, "limit", None) else ". Not measured here: out-of-memory errors.")
    )
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
        *over_http.PACKAGES,
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
        "processor": processor(),
        "commit": _commit(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this package is run from, with a ``+`` if files differ from it."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    git = ("git", "-C", str(here))
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def as_json(results: Any, arguments: list[str]) -> dict:
    """All measurements and derived figures as JSON-serializable data."""
    return {
        "format": FORMAT,
        "complete": results.complete,
        "failure": getattr(results, "failure", ""),
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
        **{part: getattr(results, part, {}) for part in ("http", "limit", "garbage")},
        "footnotes": footnotes(results),
    }


def _row_as_json(row: Row) -> dict:
    measure = row.measure
    return {
        "key": measure.key,
        "section": row.section,
        "label": measure.label,
        "unit": measure.unit,
        "in_line": measure.in_line,
        "more_is_better": measure.more_is_better,
        "report_current": measure.report_current,
        "report_target": measure.report_target,
        "targets": {"report": _target_as_json(measure.target), "ours": _target_as_json(measure.reach)},
        "our_target": "" if measure.reach is None else measure.reach.text,
        "arms": {
            arm: {
                "median": figure.median,
                "interval": None if figure.interval is None else list(figure.interval),
                "least": min(figure.values),
                "greatest": max(figure.values),
                "values": list(figure.values),
            }
            for arm, figure in row.figures.items()
        },
        "better_by_percent": {arm: _change_as_json(change) for arm, change in row.changes.items()},
        "better_than_tuned_by_hand_percent": _change_as_json(row.beyond_rival),
        "target_met": row.report,
        "our_target_met": row.reach,
    }


def _target_as_json(target: Target | None) -> dict | None:
    return None if target is None else {"kind": target.kind, "amount": target.amount}


def _change_as_json(change: Change | None) -> dict | None:
    if change is None:
        return None
    return {
        "median": change.percent,
        "interval": None if change.interval is None else list(change.interval),
    }


def show(results: Any, console: Console) -> None:
    """Print the table and its footnotes, as wide as the terminal is."""
    plus_minus = "±" if (console.encoding or "").lower().startswith("utf") else "+-"
    for part in _fitting(results, console, plus_minus):
        console.print(part)
    for note in footnotes(results):
        console.print(note, markup=False, highlight=False)


def _fitting(results: Any, console: Console, plus_minus: str) -> list[Table]:
    """The table in as few pieces as fit."""
    drawn: list[Table] = []
    for division in _DIVISIONS:
        drawn = []
        for columns in division:
            options: list[dict[str, bool]] = [{}, {"intervals": False}]
            if len(division) > 1:
                options.append({"intervals": False, "fold": True})
            for option in options:
                candidate = table(results, plus_minus, columns, **option)
                fits = _fit(candidate, console)
                if fits:
                    break
            drawn.append(candidate)
            if not fits:
                break
        else:
            break
    return drawn
