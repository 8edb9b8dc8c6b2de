"""The examples in Markdown pages: finds them, and runs them as a reader would.

All Python of a page runs in one namespace, from top to bottom: blocks with prompts as doctests, others as they are. A
``console`` block shows what ``synthex-fast`` prints; its commands are run by `synthex_fast.cli.main`. Anything else
that looks like an example must be marked as an illustration by a comment in the line above it, with the reason::

    <!-- not run: needs Node -->
"""

import contextlib
import doctest
import io
import re
import shlex
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)

# Fences with other languages, such as toml, hold no program.
RUN = ("python", "console")
PROGRAMS = (*RUN, "sh", "bash", "cython", "js")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int  # of its first line, from 0
    not_run: str  # the reason, if it is marked as an illustration


def blocks(path):
    """The fenced blocks of a page, in order."""
    found = []
    lines = path.read_text(encoding="utf-8").splitlines()
    fence = start = None
    for n, line in enumerate(lines):
        opening = re.match(r" *(`{3,}|~{3,}) *(\S*)", line)
        if fence is None and opening:
            fence, language, start = opening[1], opening[2], n + 1
        elif fence is not None and line.strip() == fence:
            above = next((text for text in reversed(lines[: start - 1]) if text.strip()), "")
            marked = re.fullmatch(r"<!-- not run: (.+) -->", above.strip())
            text = "".join(f"{each}\n" for each in lines[start:n])
            found.append(Block(language, text, start, marked[1] if marked else ""))
            fence = None
    assert fence is None, f"{path}: the fence in line {start} is not closed"
    return found


def needed(path):
    """The packages without which a page's examples can't run: it says so in a comment of its own."""
    return re.findall(r"^<!-- needs: (\S+) -->$", path.read_text(encoding="utf-8"), re.MULTILINE)


def _run_prompts(block, names, path):
    test = doctest.DocTestParser().get_doctest(block.text, {}, path.name, str(path), block.line)
    # In the constructor it would be copied.
    test.globs = names
    output = []
    # Otherwise it takes the -v of pytest for its own.
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=output.append, clear_globs=False)
    return "".join(output)


def _run_script(block, names, path):
    try:
        # The empty lines make the numbers in a traceback those of the page.
        exec(compile("\n" * block.line + block.text, str(path), "exec"), names)
    except BaseException:
        return f"{path.name}, line {block.line + 1}\n{traceback.format_exc()}"
    return ""


def _run_commands(block, path):
    from synthex_fast.cli import main

    failures = []
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
        program, *arguments = shlex.split(command)
        if program != "synthex-fast":
            failures.append(f"{path.name}, line {block.line + 1}: {program} is not run; mark the block\n")
            continue
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            status = main(arguments)
        if (status, shown.getvalue()) != (0, expected):
            failures.append(
                f"{path.name}, line {block.line + 1}: {command}\nexpected:\n{expected}got ({status}):\n"
                f"{shown.getvalue()}"
            )
    return "".join(failures)


def run(path):
    """Run the examples of a page. Returns what went wrong as text, and how many blocks were run."""
    names = {"__name__": "__main__"}
    failures, count = [], 0
    for block in blocks(path):
        if block.language not in PROGRAMS or block.not_run:
            continue
        if block.language == "console":
            failures.append(_run_commands(block, path))
        elif block.language == "python" and ">>> " in block.text:
            failures.append(_run_prompts(block, names, path))
        elif block.language == "python":
            failures.append(_run_script(block, names, path))
        else:
            continue
        count += 1
    return "".join(failures), count


def links(path):
    """The relative links of a page, outside its blocks: (file, heading or "") for each."""
    text = re.sub(
        r"^ *(`{3,}).*?^ *\1 *$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            file, _, heading = target.partition("#")
            found.append((path if not file else path.parent / file, heading))
    return found


def headings(path):
    """The anchors that GitHub and the documentation make of a page's headings."""
    anchors = set()
    for title in re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower())
        anchors.add(plain.strip().replace(" ", "-"))
    return anchors
