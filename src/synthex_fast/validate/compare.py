"""Compares two files of ``synthex-fast validate --json``: what became better or worse, and what noise explains."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from synthex_fast.validate.figures import Figure
from synthex_fast.validate.intervals import Interval, of_independent_change
from synthex_fast.validate.report import FORMAT, number

BETTER, WORSE, NOISE, SAME, CHANGED, SINGLE = (
    "better",
    "worse",
    "within noise",
    "the same",
    "differs",
    "not judged",
)
_STYLES = {BETTER: "green", WORSE: "bold red", NOISE: "dim", SAME: "dim", SINGLE: "dim"}


class CompareError(Exception):
    """The files can't be compared; the message is one line that names the file and the reason."""


@dataclass(frozen=True)
class Difference:
    """A row of one arm, in both files. `change` is relative: 0.5 is half as much again."""

    key: str
    label: str
    section: str
    first: Figure
    second: Figure
    change: float
    interval: Interval | None
    verdict: str


def load(path: Path) -> dict[str, Any]:
    """What ``--json`` wrote to `path`. Raises `CompareError` for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise CompareError(f"can't read {str(path)!r}: {reason}") from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise CompareError(f"{str(path)!r} is not JSON") from None
    if not isinstance(found, dict) or "format" not in found:
        raise CompareError(f"{str(path)!r} was not written by synthex-fast validate --json")
    if found["format"] != FORMAT:
        raise CompareError(
            f"{str(path)!r} has format {found['format']!r}, this version compares files of format {FORMAT}"
        )
    try:
        for _ in _rows(found):
            pass
        warnings(found, found)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise CompareError(f"{str(path)!r} is damaged: it lacks what --json writes") from None
    return found


def warnings(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """In what the two runs differ besides what is to be compared, a line each."""
    one, two = _conditions(first), _conditions(second)
    found = [f"different {name}: {one[name]} and {two[name]}" for name in one if one[name] != two[name]]
    found += [
        f"the {place} file is of a run that {'failed' if run.get('failure') else 'was interrupted'}"
        for place, run in (("first", first), ("second", second))
        if not run["complete"]
    ]
    return found


def _conditions(run: dict[str, Any]) -> dict[str, str]:
    environment = run["environment"]
    return {
        "processor": f"{environment['processor']}, {environment['cpus']} cores",
        "system": str(environment["platform"]),
        "Python": f"{environment['python']}{', free-threaded' if environment['free_threaded'] else ''}",
        "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "seed": str(run["seed"]),
    }


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Difference]]:
    """By arm, the rows that both have. Raises `CompareError` if the arms differ."""
    if set(first["arms"]) != set(second["arms"]):
        raise CompareError(
            f"the files are of different arms: {', '.join(first['arms'])} and {', '.join(second['arms'])}"
        )
    found: dict[str, list[Difference]] = {arm: [] for arm in first["arms"]}
    before = {(arm, row["key"]): figure for row, arm, figure in _rows(first)}
    for row, arm, figure in _rows(second):
        if (arm, row["key"]) in before:
            found[arm].append(_difference(row, before[arm, row["key"]], figure))
    return found


def _rows(run: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Figure]]:
    for row in run["rows"]:
        for arm, figure in row["arms"].items():
            values = tuple(float(value) for value in figure["values"])
            if not values or not all(map(math.isfinite, values)) or arm not in run["arms"]:
                raise ValueError
            if not {"key", "label", "unit", "section", "more_is_better"} <= row.keys():
                raise KeyError
            yield row, arm, Figure(values)


def _difference(row: dict[str, Any], first: Figure, second: Figure) -> Difference:
    change, interval = of_independent_change(second.values, first.values)
    label = f"{row['label']}, {row['unit']}" if row["unit"] else row["label"]
    verdict = _verdict(row["more_is_better"], change, interval, len(first.values), len(second.values))
    return Difference(row["key"], label, row["section"], first, second, change, interval, verdict)


def _verdict(more_is_better: bool | None, change: float, interval: Interval | None, *counts: int) -> str:
    if interval is None:
        return SAME if change == 0 and counts == (1, 1) else SINGLE
    if interval.low == interval.high == 0:
        return SAME
    if interval.low <= 0 <= interval.high:
        return NOISE
    if more_is_better is None:
        return CHANGED
    return BETTER if (interval.low > 0) == more_is_better else WORSE


def table(arm: str, differences: list[Difference]) -> Table:
    """One arm's rows, with its verdicts counted below."""
    drawn = Table(title=arm, caption=_counts(differences), box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("", overflow="fold")
    for name in ("first", "second", "change", ""):
        drawn.add_column(name, justify="right")
    section = None
    for each in differences:
        if each.section != section:
            section = each.section
            drawn.add_section()
            drawn.add_row(Text(section, style="bold"))
        drawn.add_row(
            each.label,
            _figure(each.first),
            _figure(each.second),
            change_text(each),
            Text(each.verdict, style=_STYLES.get(each.verdict, "")),
        )
    return drawn


def _figure(figure: Figure) -> str:
    shown = number(figure.median)
    if figure.interval is None or figure.interval.low == figure.interval.high:
        return shown
    low, high = map(number, figure.interval)
    return f"{shown} ({low} to {high})"


def change_text(difference: Difference) -> str:
    """The change in percent, with its interval."""
    if not math.isfinite(difference.change):
        return "from 0"
    shown = f"{100 * difference.change:+,.1f} %"
    if difference.interval is None:
        return shown
    low, high = (f"{100 * end:+,.1f}" if math.isfinite(end) else "any" for end in difference.interval)
    return shown if low == high else f"{shown} ({low} to {high})"


def _counts(differences: list[Difference]) -> str:
    verdicts = [each.verdict for each in differences]
    return ", ".join(
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in (BETTER, WORSE, NOISE, SAME, CHANGED, SINGLE)
        if verdict in verdicts
    )


NOTES = (
    "Medians with their 95 % intervals. 'better' and 'worse': the whole interval of the change is on one side of 0. "
    "'within noise': no difference that the noise within the runs couldn't have made; about one row in twenty differs "
    "by chance alone. 'not judged': measured once in a run, so its noise is unknown.",
    "A machine that was faster or slower during one run changes every version's figures: those of 'current', whose "
    "code stays the same, show by how much.",
)


def show(first: dict[str, Any], second: dict[str, Any], console: Console) -> None:
    """Print the comparison. Raises `CompareError` if the files can't be compared."""
    differences = compare(first, second)
    for warning in warnings(first, second):
        console.print(f"Warning: {warning}", style="yellow", markup=False, highlight=False)
    for arm, rows in differences.items():
        if rows:
            console.print(table(arm, rows))
    for note in NOTES:
        console.print(note, markup=False, highlight=False)
