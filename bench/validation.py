"""Makes the documentation's page about validation from a run's JSON: docs/validation.md and its plots in docs/plots.

    synthex-fast validate --json results.json
    python bench/validation.py results.json [--soak soak.json]

Needs ``pip install '.[html]'``. The part of the page between the two comments "by hand" is kept as it is; everything
else is written anew.
"""

import argparse
import json
import re
import shlex
from pathlib import Path, PurePath

from synthex_fast.validate import compare
from synthex_fast.validate.figures import OURS, RIVAL, Change
from synthex_fast.validate.intervals import Interval
from synthex_fast.validate.page import document
from synthex_fast.validate.page.plots import named, plots
from synthex_fast.validate.report import change_text, number

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- by hand -->", "<!-- end of what is by hand -->"
BY_HAND = "\nEvery target that was not met is marked in the table.\n"

FRAME = """# Validation

<!-- Made by bench/validation.py; only what is marked as such is written by hand. -->

The memory report states what its service costs today and what its recommendations would save. `synthex-fast validate`
runs the report's workload through four versions of that service on one machine and answers each of those lines by
measurement: `current` is the service as the report found it, `recommended` follows the report, `tuned by hand` is what
a good engineer does today without this package, `synthex_fast` uses it. [The guide](guide/validate.md) says how it
works.

## Every figure of the report

Medians of the rounds with their 95 % intervals. An improvement is the median of the ratios to `current` in the same
round. *Met* means that the whole interval is on the target's right side, *missed* that all of it is on the wrong side,
and *unclear* that noise could decide, which counts as not met. A figure without an interval was measured once, or was
the same in all rounds.

{table}

{notes}

## What was not reached, and why

{begin}{by_hand}{end}

## The plots

{plots}
{soak}## How it was measured

{conditions}

`synthex-fast validate --compare` compares two such files, and `--html FILE` writes the same as one page.

## What the report got wrong

- 0.1056 KB for each of 1,000 requests a second is 105.6 KB a second, not 105.6 MB. What a request really allocates is
  in the table's first row.
- 216 s of sampling a day is 0.25 % of one core, not 2 to 5 %.
- V8's `--gc-interval` counts allocations, not milliseconds.
- Two objects that share a third are no reference cycle.
- A variance of "0.01" means nothing without a unit.

[The report, read carefully](report.md) has the reasons, and the command that measures them.
"""


def table(found):
    """The rows of the JSON as a Markdown table, sections in bold."""
    arms = found["arms"]
    heads = ["", "report: today", "report: target", *map(named, arms), f"{OURS} better by"]
    heads += [f"than {named(RIVAL)}"] if RIVAL in arms else []
    heads += ["report's target", "our target"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    section = None
    for line in document._lines(found["rows"]):
        row = line[0]
        if row["section"] != section:
            section = row["section"]
            lines.append([f"**{section}**"] + [""] * (len(heads) - 1))
        unit = f", {row['unit']}" if row["unit"] else ""
        cells = [row["label"] + unit, row["report_current"], row["report_target"]]
        cells += [" / ".join(figure(each["arms"].get(arm)) for each in line) for arm in arms]
        alone = len(line) == 1
        cells.append(change(row["better_by_percent"].get(OURS)) if alone else "")
        if RIVAL in arms:
            cells.append(change(row["better_than_tuned_by_hand_percent"]) if alone else "")
        cells.append(verdict(row["target_met"].get(OURS)) if alone else "")
        ours = verdict(row["our_target_met"].get(OURS))
        cells.append(f"{row['our_target']} {ours}".strip() if alone else "")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines)


def figure(found):
    if found is None:
        return ""
    shown = number(found["median"])
    if found["interval"] and found["interval"][0] < found["interval"][1]:
        shown += f" ({number(found['interval'][0])} to {number(found['interval'][1])})"
    return shown


def change(found):
    if found is None:
        return ""
    return change_text(Change(found["median"], found["interval"] and Interval(*found["interval"])))


def verdict(found):
    return {None: "", "met": "met"}.get(found, f"**{found}**")


def notes(found):
    return "\n".join(f"- {note}" for note in found["footnotes"])


def standalone(fragment):
    """A plot of the page as a file of its own, in the colours of the light page on white."""
    css = (Path(document.__file__).parent / "page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): ([^;]+);", css[: css.index("@media")]))
    text = re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]].replace('"', "'"), fragment)
    width, height = re.search(r'viewBox="0 0 (\S+) (\S+)"', text).groups()
    head, _, rest = text.partition(">")
    head = head.replace(
        "<svg", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"', 1
    )
    # One element a line, so that changes can be seen in a diff.
    rest = rest.replace("> <", ">\n<")
    return f'{head} width="{width}pt" height="{height}pt" style="background: white">{rest}\n'


def soak_table(found):
    if found is None:
        return ""
    lines = ["| | measured | report | | our target | |", "| --- | ---: | ---: | --- | ---: | --- |"]
    for row in found["rows"]:
        value = row["note"] if row["value"] is None else f"{number(row['value'])} {row['unit']}".strip()
        judged = [
            cell
            for target, met in ((row["report"], row["report_met"]), (row["reach"], row["reach_met"]))
            for cell in (target or "", {None: "", True: "met", False: "**missed**"}.get(met, str(met)))
        ]
        lines.append(f"| {row['label']} | {value} | {' | '.join(judged)} |")
    environment = found["environment"]
    commit = environment["commit"]
    return (
        f"## A day in minutes\n\n`{command(environment)}`{f', commit `{commit}`' if commit else ''}:\n\n"
        + "\n".join(lines)
        + "\n\n"
    )


def command(environment):
    """The command as it was given, without the directories of whoever ran it."""
    words = ["synthex-fast", *(PurePath(word).name for word in environment["arguments"])]
    return shlex.join(words)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="what `synthex-fast validate --json` wrote")
    parser.add_argument("--soak", type=Path, help="what `synthex-fast soak --json` wrote")
    parser.add_argument("--directory", type=Path, default=DOCS, help="where to write (default: docs)")
    given = parser.parse_args()
    try:
        found = compare.load(given.results)
    except compare.CompareError as error:
        parser.error(str(error))
    soak = None if given.soak is None else json.loads(given.soak.read_text(encoding="utf-8"))
    directory = given.directory / "plots"
    directory.mkdir(parents=True, exist_ok=True)
    images = []
    for plot in plots(found):
        path = directory / f"validation-{plot.name}.svg"
        path.write_text(standalone(plot.wide), encoding="utf-8")
        images.append(f"![{plot.title}](plots/{path.name})\n\n**{plot.title}.** {plot.caption}\n")
    page = given.directory / "validation.md"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    kept = old.partition(BEGIN)[2].partition(END)[0] or BY_HAND
    known = document.conditions(found) | {"command": command(found["environment"])}
    conditions = "\n".join(
        f"- {name}: `{value}`" if name in ("command", "commit") else f"- {name}: {value}"
        for name, value in known.items()
    )
    page.write_text(
        FRAME.format(
            table=table(found),
            notes=notes(found),
            begin=BEGIN,
            by_hand=kept,
            end=END,
            plots="\n".join(images),
            soak=soak_table(soak),
            conditions=conditions,
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
