"""Fails if a hot path takes more instructions than ``baseline.json`` says. `instructions.py` counts them.

    python bench/gate.py [--python PYTHON] [--renew]

A hot path may grow by 3 %. ``--renew`` writes a new baseline, which is committed with the change that explains it.

Counts depend on the interpreter and the compiler, so a baseline belongs to one pair of them. With another pair, the
sources of the commit that last renewed the baseline are built with this interpreter and compiler and counted as well,
and that takes the baseline's place. This needs git with its history, Cython and setuptools; without them, or without
valgrind, nothing is compared, and the last line begins with "skip".
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from instructions import OPERATIONS, CountError, count_all, interpreter

HERE = Path(__file__).resolve().parent
BASELINE = HERE / "baseline.json"
TOLERANCE = 0.03
# The operation that uses nothing of the package, and how far its count may be off with the baseline's interpreter.
YARDSTICK = "interpreter"
YARDSTICK_TOLERANCE = 0.01


class BaselineError(Exception):
    """The baseline can't be used; the message says why."""


class Skip(Exception):
    """Nothing can be compared here; the message says why."""


class Baseline(NamedTuple):
    """Instructions by operation, and what they were counted with."""

    interpreter: str
    compiler: str
    cython: str
    instructions: dict[str, float]


class Difference(NamedTuple):
    """An operation whose count is not as it was. ``before`` or ``after`` is None if it was counted on one side only."""

    kind: str  # "slower", "faster", "new" or "missing"
    name: str
    before: float | None
    after: float | None

    def __str__(self):
        if self.before is None:
            return f"{self.kind:8} {self.name:46} {'':9} -> {self.after:9.1f}"
        if self.after is None:
            return f"{self.kind:8} {self.name:46} {self.before:9.1f} ->"
        change = self.after / self.before - 1
        return f"{self.kind:8} {self.name:46} {self.before:9.1f} -> {self.after:9.1f}  {change:+.1%}"


def read_baseline(text):
    """The baseline from its JSON text; `BaselineError` if it isn't one."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BaselineError(f"it is not JSON: {error}") from None
    if not isinstance(found, dict) or set(found) != set(Baseline._fields):
        raise BaselineError(f"it must be an object with the keys {', '.join(Baseline._fields)}")
    for key in Baseline._fields[:-1]:
        if not isinstance(found[key], str):
            raise BaselineError(f"{key} must be a text, not {found[key]!r}")
    counts = found["instructions"]
    if not isinstance(counts, dict) or YARDSTICK not in counts:
        raise BaselineError(f"instructions must be an object with a count for {YARDSTICK!r} at least")
    for name, value in counts.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise BaselineError(f"the count of {name!r} must be a number above 0, not {value!r}")
    return Baseline(**found)


def differences(before, after, tolerance=TOLERANCE):
    """What differs between two sets of counts by name, in the order of the second, then what it lacks."""
    found = []
    for name, count in after.items():
        if name not in before:
            found.append(Difference("new", name, None, count))
        elif count > before[name] * (1 + tolerance):
            found.append(Difference("slower", name, before[name], count))
        elif count < before[name] * (1 - tolerance):
            found.append(Difference("faster", name, before[name], count))
    found += [Difference("missing", name, before[name], None) for name in before if name not in after]
    return found


def verdict(found, compared, against):
    """Whether to fail, and the summary in one line."""
    of = {kind: sum(each.kind == kind for each in found) for kind in ("slower", "new", "missing", "faster")}
    failed = of["slower"] or of["new"] or of["missing"]
    parts = [f"{number} {kind}" for kind, number in of.items() if number]
    advice = ""
    if of["new"] or of["missing"] or of["faster"]:
        advice = "; renew the baseline with bench/gate.py --renew"
    listed = f": {', '.join(parts)}" if parts else ", none slower or faster"
    return bool(
        failed
    ), f"{compared} hot paths compared with {against}{listed} by more than {TOLERANCE:.0%}{advice}"


def why_not(baseline, interpreter, compiler, counted):
    """Why the baseline does not apply to counts made here; None if it does."""
    for what, was, now in (
        ("interpreter", baseline.interpreter, interpreter),
        ("compiler", baseline.compiler, compiler),
    ):
        if was != now:
            return f"the baseline is of another {what} ({was}, here {now})"
    before, after = baseline.instructions[YARDSTICK], counted[YARDSTICK]
    if abs(after / before - 1) > YARDSTICK_TOLERANCE:
        return f"this {interpreter} is another build ({before:.0f} instructions there, {after:.0f} here)"
    return None


# Printed by the interpreter that is counted, which may be another one than this.
DESCRIBE = """
import json, platform, sys, sysconfig
import synthex_fast._pool
compiled = open(synthex_fast._pool.__file__, "rb").read()
try:
    from Cython import __version__ as cython
except ImportError:
    cython = "unknown"
free = " free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
debug = " debug" if hasattr(sys, "gettotalrefcount") else ""
print(json.dumps({
    "interpreter": f"{platform.python_implementation()} {platform.python_version()}{free}{debug}"
    f" ({platform.python_compiler()}, {platform.machine()})",
    "compiled": compiled.decode("latin-1"),
    "cython": cython,
}))
"""


def describe(python):
    """The interpreter, the compiler that built the package for it, and the Cython that is installed."""
    done = subprocess.run([python, "-c", DESCRIBE], cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise CountError(f"{python} can't import the package:\n{done.stderr.strip()}")
    found = json.loads(done.stdout)
    # Compilers leave their names in the library's section ".comment"; patch releases hardly change a count.
    compiler = re.search(r"\0?(GCC|clang)(?:: \([^)]*\)| version) (\d+)\.", found["compiled"])
    return (
        found["interpreter"],
        f"{compiler[1].lower()} {compiler[2]}" if compiler else "unknown",
        found["cython"],
    )


def git(*arguments):
    done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skip(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def build_before(python, folder):
    """Build the sources that the baseline was counted from, in ``folder``; return its commit and import path."""
    if shutil.which("git") is None:
        raise Skip("git is not installed")
    # A shallow clone shows its oldest commit as the one that made every file.
    if git("rev-parse", "--is-shallow-repository") == "true":
        raise Skip("this is a shallow clone, without the commit of the baseline")
    commit = git("log", "-1", "--format=%h", "--", str(BASELINE))
    if not commit:
        raise Skip("no commit has a baseline")
    archive = folder / "sources.tar"
    git(
        "archive",
        "--output",
        str(archive),
        f"{commit}:{git('rev-parse', '--show-prefix').removesuffix('bench/')}",
    )
    shutil.unpack_archive(archive, folder, filter="data")
    done = subprocess.run(
        [python, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Skip(f"{commit} does not build here: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return commit, folder / "src"


def counts_of(python, names, path=None):
    """All counts; the first that fails ends the program, unless these are older sources (``path``)."""
    counted = count_all(python, names, path)
    if path is None:
        for name, figure in counted.items():
            if isinstance(figure, CountError):
                raise CountError(f"{name}: {figure}")
    return {name: figure for name, figure in counted.items() if not isinstance(figure, CountError)}


def compare(python):
    """Count, compare and print; return the exit status."""
    try:
        baseline = read_baseline(BASELINE.read_text())
    except (OSError, BaselineError) as error:
        print(f"bench/baseline.json: {error}")
        return 1
    version, compiler, cython = describe(python)
    counted = counts_of(python, OPERATIONS)
    reason = why_not(baseline, version, compiler, counted)
    before, against = baseline.instructions, f"the baseline ({version}, {compiler})"
    if reason is not None:
        print(reason)
        with tempfile.TemporaryDirectory() as folder:
            commit, path = build_before(python, Path(folder))
            before = counts_of(python, OPERATIONS, path)
        against = f"{commit}, built here because {reason}"
    found = differences(before, counted)
    if reason is not None:
        # What the older sources can't do yet is in no baseline of theirs.
        found = [each for each in found if each.kind != "new"]
    for each in found:
        print(each)
    failed, line = verdict(found, len(before.keys() & counted.keys()), against)
    if failed and reason is None and cython != baseline.cython:
        print(f"note: the baseline was made by Cython {baseline.cython}, and {cython} is installed here")
    print(line)
    return int(failed)


def renew(python):
    """Write the baseline."""
    counted = counts_of(python, OPERATIONS)
    version, compiler, cython = describe(python)
    rounded = {name: round(figure, 1) for name, figure in counted.items()}
    baseline = Baseline(version, compiler, cython, rounded)
    BASELINE.write_text(json.dumps(baseline._asdict(), indent=2) + "\n")
    print(f"baseline.json has {len(rounded)} counts of {version}, {compiler}")
    return 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python",
        type=interpreter,
        default=sys.executable,
        help="the interpreter that has the package (this one)",
    )
    parser.add_argument(
        "--renew", action="store_true", help="write the baseline instead of comparing with it"
    )
    options = parser.parse_args()
    try:
        if shutil.which("valgrind") is None:
            raise Skip("valgrind is not installed")
        return (renew if options.renew else compare)(options.python)
    except CountError as error:
        print(error)
        return 1
    except Skip as skip:
        print(f"skip: no hot path compared: {skip}")
        return 2 if options.renew else 0


if __name__ == "__main__":
    sys.exit(main())
