"""The page itself: what the run says in short, the table, the plots, and the conditions."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from shlex import join
from typing import Any

from synthex_fast.validate.figures import MET, MISSED, OURS, RIVAL, UNCLEAR, Change
from synthex_fast.validate.intervals import Interval
from synthex_fast.validate.page.plots import Plot, named, plots
from synthex_fast.validate.report import change_text, number

_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
# Nothing may be fetched, whatever a name or a label holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_SIGNS = {MET: "✓", MISSED: "✗", UNCLEAR: "?"}
_ABOUT = {
    "current": "the service as the report found it",
    "recommended": "with the report's own recommendations",
    "tuned_by_hand": "what a good engineer does today without this package",
    OURS: "with this package",
}


def page(found: dict[str, Any]) -> str:
    """The page of a run's JSON, as HTML."""
    drawn = list(plots(found))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            "<title>synthex-fast validate</title>",
            f"<style>\n{_CSS}</style>",
            "</head>",
            "<body>",
            *_header(found),
            "<main>",
            *_table(found),
            *(line for plot in drawn for line in _plot(plot)),
            *_notes(found),
            *_conditions(found),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _header(found: dict[str, Any]) -> Iterator[str]:
    yield "<header>"
    yield "<h1>The report, measured</h1>"
    arms = [f"<b>{escape(named(arm))}</b> ({escape(_ABOUT.get(arm, ''))})" for arm in found["arms"]]
    yield (
        "<p>A memory report on a Python service set targets. Here its workload runs through these versions of the "
        f"service, which take turns: {', '.join(arms)}.</p>"
    )
    if not found["complete"]:
        failure = found.get("failure")
        how = f"failed: {escape(failure)}" if failure else "was interrupted."
        yield f'<p class="warning"><b>This run {how}</b> Only what was finished is shown.</p>'
    if OURS in found["arms"]:
        yield '<dl class="sum">'
        for name, verdicts in (
            ("the report's targets", [row["target_met"].get(OURS) for row in found["rows"]]),
            ("our own targets", [row["our_target_met"].get(OURS) for row in found["rows"]]),
        ):
            judged = [verdict for verdict in verdicts if verdict]
            yield (
                f"<div><dt>{named(OURS)} and {name}</dt><dd>{judged.count(MET)} of {len(judged)} met"
                f"<small>{judged.count(MISSED)} missed, {judged.count(UNCLEAR)} unclear</small></dd></div>"
            )
        for key, name in (
            ("throughput", "requests a second, in process"),
            ("http_uvicorn_p99", "p99 over HTTP"),
        ):
            for row in found["rows"]:
                if row["key"] == key and (change := row["better_by_percent"].get(OURS)):
                    yield (
                        f"<div><dt>{name}</dt><dd>{_signed(change, row)}"
                        "<small>beside the current system</small></dd></div>"
                    )
        yield "</dl>"
    yield "</header>"


def _signed(change: dict[str, Any], row: dict[str, Any]) -> str:
    # As the figure moved, not as it improved.
    return f"{int(change['median'] if row['more_is_better'] else -change['median']):+,d} %"


def _table(found: dict[str, Any]) -> Iterator[str]:
    compared = OURS in found["arms"] and RIVAL in found["arms"]
    yield '<section id="figures">'
    yield "<h2>Every figure of the report</h2>"
    yield (
        '<p class="caption">Medians of the rounds with their 95 % intervals, and by how much they are better than '
        "those of the current system, round by round. <b>✓ met</b>: the whole interval is on the target's right side. "
        "<b>✗ missed</b>: the whole of it is on the wrong side. <b>? unclear</b>: noise could decide.</p>"
    )
    yield '<table class="cards">'
    heads = ["report: today", "report: target", *map(named, found["arms"])]
    if compared:
        heads.append(f"{OURS} than tuned by hand")
    heads.append(f"our target, {OURS}")
    columns = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    yield f"<thead><tr><td></td>{columns}</tr></thead>"
    section = None
    for line in _lines(found["rows"]):
        row = line[0]
        if row["section"] != section:
            if section is not None:
                yield "</tbody>"
            section = row["section"]
            head = f'<th colspan="{len(heads) + 1}" scope="rowgroup">{escape(section)}</th>'
            yield f'<tbody><tr class="section">{head}</tr>'
        unit = f' <span class="unit">{escape(row["unit"])}</span>' if row["unit"] else ""
        cells = [
            (heads[0], "report", escape(row["report_current"])),
            (heads[1], "report", escape(row["report_target"])),
        ]
        several = "several " if len(line) > 1 else ""
        cells += [
            (
                named(arm),
                f"{several}{'ours' if arm == OURS else ''}",
                _arm(line, arm) if arm in row["arms"] else "",
            )
            for arm in found["arms"]
        ]
        if compared:
            beyond = _change(row["better_than_tuned_by_hand_percent"]) if len(line) == 1 else None
            cells.append((heads[-2], "", "" if beyond is None else _beside(beyond)))
        reached = _verdict(row["our_target_met"].get(OURS))
        cells.append(
            (
                heads[-1],
                "ours",
                f"<span>{escape(row['our_target'])} {reached}</span>" if row["our_target"] else "",
            )
        )
        drawn = "".join(_cell(name, kind.strip(), text) for name, kind, text in cells)
        yield f'<tr id="row-{escape(row["key"])}"><th scope="row">{escape(row["label"])}{unit}</th>{drawn}</tr>'
    if section is not None:
        yield "</tbody>"
    yield "</table>"
    yield "</section>"


def _cell(name: str, kind: str, text: str) -> str:
    if not text:
        return "<td></td>"
    # Quoted: it may be several classes.
    named_class = f' class="{kind}"' if kind else ""
    return f'<td data-name="{escape(name)}"{named_class}>{text}</td>'


def _lines(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    lines: list[list[dict[str, Any]]] = []
    for row in rows:
        if row["in_line"]:
            lines[-1].append(row)
        else:
            lines.append([row])
    return lines


def _arm(line: list[dict[str, Any]], arm: str) -> str:
    figures = [row["arms"][arm] for row in line if arm in row["arms"]]
    shown = [" / ".join(number(figure["median"]) for figure in figures)]
    if len(line) > 1:
        return shown[0]
    interval = figures[0]["interval"]
    if interval and interval[0] < interval[1]:
        shown.append(f'<small class="interval">{number(interval[0])} to {number(interval[1])}</small>')
    change = _change(line[0]["better_by_percent"].get(arm))
    if change is not None:
        shown.append(f"<small>{change_text(change)}</small>")
    if verdict := line[0]["target_met"].get(arm):
        shown.append(f"<small>{_verdict(verdict)}</small>")
    return "".join(shown)


def _change(found: dict[str, Any] | None) -> Change | None:
    if found is None:
        return None
    interval = found["interval"]
    return Change(found["median"], None if interval is None else Interval(*interval))


def _beside(change: Change) -> str:
    short, whole = change_text(change, interval=False), change_text(change)
    return f"<span>{short}</span>" + (
        f"<small>{whole.removeprefix(short).strip(' ()')}</small>" if whole != short else ""
    )


def _verdict(verdict: str | None) -> str:
    return "" if verdict is None else f'<b class="{verdict}">{_SIGNS[verdict]} {verdict}</b>'


def _plot(plot: Plot) -> Iterator[str]:
    yield f'<section id="plot-{plot.name}">'
    yield f"<h2>{escape(plot.title)}</h2>"
    yield "<figure>"
    yield f'<div class="wide">{plot.wide}</div>'
    yield f'<div class="narrow">{plot.narrow}</div>'
    yield f"<figcaption>{escape(plot.caption)}</figcaption>"
    yield "</figure>"
    yield "</section>"


def _notes(found: dict[str, Any]) -> Iterator[str]:
    yield '<section id="notes"><h2>How to read it</h2><ul class="notes">'
    for note in found["footnotes"]:
        yield f"<li>{escape(note)}</li>"
    yield "</ul></section>"


def conditions(found: dict[str, Any]) -> dict[str, str]:
    """Where and how the run was made, for this page and the documentation's."""
    environment = found["environment"]
    python = f"{environment['implementation']} {environment['python']}"
    build = [
        name
        for name, there in (
            ("free-threaded", environment["free_threaded"]),
            ("debug build", environment["debug_build"]),
        )
        if there
    ]
    rounds = (
        f"{found['finished_rounds']} of {found['planned_rounds']} rounds of {found['round_seconds']:.2g} s"
    )
    return {
        "command": f"synthex-fast {join(environment['arguments'])}",
        "finished": environment["finished_at"],
        "processor": f"{environment['processor']}, {environment['cpus']} cores",
        "system": f"{environment['platform']}",
        "Python": ", ".join([python, *build]),
        "packages": ", ".join(
            f"{name} {version}" for name, version in environment["versions"].items() if version is not None
        ),
        "commit": environment["commit"] or "not run from a checkout",
        "seed": str(found["seed"]),
        "in process": rounds,
    }


def _conditions(found: dict[str, Any]) -> Iterator[str]:
    yield '<section id="conditions"><h2>Conditions</h2><dl class="facts">'
    for name, value in conditions(found).items():
        value = f"<code>{escape(value)}</code>" if name in ("command", "commit") else escape(value)
        yield f"<dt>{escape(name)}</dt><dd>{value}</dd>"
    yield "</dl></section>"
