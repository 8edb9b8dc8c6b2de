"""Measures every claim the project makes about speed and memory, and compares them with the targets.

    python bench/report.py [--quick] [--only WORD] [--json FILE] [--markdown] [--free-threaded PYTHON]

Each claim is measured in a process of its own by a function ``claim_...`` of a ``bench_*.py`` next to this
file; what it measures against runs in the same process, in turns. Needs ``pip install '.[bench]'``. The rows
for free-threaded Python run on the interpreter given, or on one found.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Row(NamedTuple):
    """One line of the table: the target, and the claim that measures it."""

    operation: str
    against: str
    target: str
    claim: str  # module:function
    figure: str  # "ratio": ours / rival; "speedup": rival / ours; "ours"
    bound: float
    at_least: bool = False
    free_threaded: bool = False


def at_most(operation, against, bound, claim, target=None):
    return Row(operation, against, target or f"at most {bound:g} times", claim, "ratio", bound)


def faster(operation, against, bound, claim):
    target = f"at least {bound:g} times faster" if bound > 1 else "faster"
    return Row(operation, against, target, claim, "speedup", bound, at_least=True)


ROWS = [
    at_most("ObjectPool acquire + release", "list.pop() + list.append()", 1.7, "bench_pool:claim_vs_list"),
    faster("", "the report's deque-and-lock pool", 10, "bench_pool:claim_vs_report_pool"),
    at_most(
        "query made with 3 keywords, dropped", "msgspec.Struct", 1.0, "bench_records:claim_query_vs_msgspec"
    ),
    faster("", "the pydantic model", 50, "bench_records:claim_query_vs_pydantic"),
    faster(
        "  with context, constraints, tags", "the pydantic model", 20, "bench_records:claim_full_vs_pydantic"
    ),
    at_most(
        "own class of 3 texts, made by keyword", "msgspec.Struct", 0.8, "bench_records:claim_own_vs_msgspec"
    ),
    at_most("", "@dataclass(slots=True)", 0.35, "bench_records:claim_own_vs_dataclass"),
    at_most(
        "  with all three checked",
        "msgspec.Struct, unchecked",
        1.0,
        "bench_records:claim_own_checked_vs_msgspec",
    ),
    at_most(
        "  of 8 fields, one list, one dict", "msgspec.Struct", 0.8, "bench_records:claim_own_mixed_vs_msgspec"
    ),
    at_most(
        "  an attribute read", "@dataclass(slots=True)", 1.1, "bench_records:claim_own_read_vs_dataclass"
    ),
    at_most("  bytes each, of 1,000,000", "msgspec.Struct", 1.02, "bench_records:claim_own_bytes"),
    faster("reading .id for the first time", "str(uuid.uuid4())", 15, "bench_ids:claim_first_id"),
    at_most("@cached, hit, one int", "functools.lru_cache", 1.3, "bench_cached:claim_hit_vs_lru_cache"),
    faster("", "cachetools.cached", 3, "bench_cached:claim_hit_vs_cachetools"),
    at_most("TTLDict get, hit, 100,000 text keys", "dict", 1.3, "bench_ttl:claim_get_vs_dict"),
    faster("", "cachebox.TTLCache", 1, "bench_ttl:claim_get_vs_cachebox"),
    at_most("TTLDict[key], hit, 100,000 text keys", "dict", 1.3, "bench_ttl:claim_subscript_vs_dict"),
    at_most(
        "TTLDict overwrite, text, byte accounting",
        "cachebox.TTLCache",
        0.8,
        "bench_ttl:claim_overwrite_vs_cachebox",
    ),
    at_most("", "dict", 3.0, "bench_ttl:claim_overwrite_vs_dict"),
    Row(
        "bytes per entry, 200,000, max_size",
        "cachebox.VTTLCache",
        "at most 64",
        "bench_ttl:claim_bytes_per_entry_bounded",
        "ours",
        64,
    ),
    Row(
        "bytes per entry, no max_size",
        "cachebox.VTTLCache",
        "at most 80",
        "bench_ttl:claim_bytes_per_entry_unbounded",
        "ours",
        80,
    ),
    Row(
        "resident bytes per entry, max_size",
        "cachebox.TTLCache",
        "at most 60",
        "bench_ttl:claim_resident_bytes_per_entry",
        "ours",
        60,
    ),
    at_most(
        "1,000,000 entries expire at once: p99.99", "the median operation", 20, "bench_ttl:claim_expiry_p9999"
    ),
    Row(
        "  the slowest operation",
        "dict",
        "at most 100 us",
        "bench_ttl:claim_expiry_slowest",
        "ours",
        100e3,
    ),
    Row(
        "hit ratio, 2 traces, 3 capacities",
        "the better of LRU and SIEVE",
        "at least 1 times",
        "bench_ttl:claim_hit_ratio",
        "ratio",
        1.0,
        at_least=True,
    ),
    at_most("add_batch of 5 responses", "list.append five times", 1.0, "bench_slab:claim_add_batch"),
    Row(
        "consensus(query_id), 100,000 buffered",
        "the same, 10 buffered",
        "at most 250 ns",
        "bench_slab:claim_consensus",
        "ours",
        250,
    ),
    Row(
        "  allocated by it",
        "a row of aggregate()",
        "at most 200 bytes",
        "bench_slab:claim_consensus_bytes",
        "ours",
        200,
    ),
    faster("aggregate() of 1,000 of 200 queries", "plain Python", 20, "bench_slab:claim_aggregate"),
    Row(
        "two threads, acquire + release",
        "one thread",
        "at least 1.7 times",
        "bench_pool:claim_two_threads",
        "ratio",
        1.7,
        True,
        True,
    ),
    Row(
        "two threads, own class of 3 texts",
        "one thread",
        "at least 1.8 times",
        "bench_records:claim_own_two_threads",
        "ratio",
        1.8,
        True,
        True,
    ),
    Row(
        "two threads, @cached hit",
        "one thread",
        "at least 1.5 times",
        "bench_cached:claim_two_threads",
        "ratio",
        1.5,
        True,
        True,
    ),
    Row(
        "two threads, TTLDict get",
        "one thread",
        "at least 1.5 times",
        "bench_ttl:claim_two_threads_get",
        "ratio",
        1.5,
        True,
        True,
    ),
    Row(
        "import synthex_fast",
        "a bare interpreter",
        "at most 10 ms more",
        "bench_package:claim_import",
        "ours",
        10e6,
    ),
]


def run_claim(name):
    """In the process of its own: measure, print one JSON object."""
    module, function = name.split(":")
    sys.path.insert(0, str(HERE))
    from measure import Comparison, NotMeasuredError

    try:
        claim = getattr(importlib.import_module(module), function)
        result = Comparison(*claim())._asdict()
    except NotMeasuredError as e:
        result = {"missing": str(e)}
    print(json.dumps(result))


def measure(row, python):
    """The claim's figures as a dict; with the key ``missing`` instead if there are none."""
    if row.free_threaded and python is None:
        return {"missing": "no free-threaded interpreter with the package: give one with --free-threaded"}
    done = subprocess.run(
        [str(python) if row.free_threaded else sys.executable, __file__, "--claim", row.claim],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"missing": lines[-1], "error": done.stderr}
    return json.loads(done.stdout.splitlines()[-1])


def measured(row, result):
    """The figure that counts and its spread, on the scale of the bound."""
    low, high = result["spread"]
    if row.figure == "ours":
        return result["ours_ns"], (low * result["rival_ns"], high * result["rival_ns"])
    if row.figure == "speedup":
        return 1 / result["ratio"], (1 / high, 1 / low)
    return result["ratio"], (low, high)


def verdict(row, figure):
    return "hit" if (figure >= row.bound if row.at_least else figure <= row.bound) else "MISS"


def shown(row, result):
    """The columns "measured" and "quartiles" as text."""
    figure, (low, high) = measured(row, result)
    if row.claim == "bench_package:claim_import":
        return f"{figure / 1e6:.2f} ms", f"{low / 1e6:.2f} - {high / 1e6:.2f}"
    if row.claim == "bench_ttl:claim_expiry_slowest":
        return f"{figure / 1e3:.0f} us", f"{low / 1e3:.0f} - {high / 1e3:.0f}"
    digits = 0 if figure >= 100 else 1 if figure >= 10 else 4 if row.claim.endswith("hit_ratio") else 2
    unit = " times" if row.figure != "ours" else " ns" if row.target.endswith(" ns") else " bytes"
    return f"{figure:.{digits}f}{unit}", f"{low:.{digits}f} - {high:.{digits}f}"


def free_threaded_python(given):
    """An interpreter without global lock that can import the package, built if necessary; or None."""
    shared = HERE.parents[1] / "shared/bin/python-from-source"
    cached = Path.home() / ".cache/python-from-source/3.14t/bin/python3.14t"
    candidates = [given, os.environ.get("SYNTHEX_FREE_THREADED"), shutil.which("python3.14t")]
    # The script that builds one takes minutes; a report uses only what it has built already.
    candidates += [str(cached)] if shared.exists() and cached.exists() else []
    python = next(filter(None, candidates), None)
    if python is None:
        return None
    if (
        subprocess.run([python, "-c", "import synthex_fast"], capture_output=True, check=False).returncode
        == 0
    ):
        return python
    home = HERE.parent / "build/bench-free-threaded"
    print(f"building the package for {python} in {home}", file=sys.stderr)
    subprocess.run([python, "-m", "venv", home], check=True)
    installed = subprocess.run(
        [home / "bin/pip", "install", "-q", HERE.parent], check=False, stdout=sys.stderr
    )
    return home / "bin/python" if installed.returncode == 0 else None


def table(rows, markdown):
    head = ("operation", "measured against", "target", "measured", "quartiles", "")
    lines = [head, *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]

    def joined(line):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        return "| " + " | ".join(cells) + " |" if markdown else "  ".join(cells).rstrip()

    rule = tuple("-" * width for width in widths)
    return "\n".join(map(joined, (head, rule, *rows)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: rough figures")
    parser.add_argument(
        "--only", metavar="WORD", default="", help="rows whose claim or operation contains WORD"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all figures to FILE")
    parser.add_argument("--markdown", action="store_true", help="print the table as the README has it")
    parser.add_argument("--free-threaded", metavar="PYTHON", help="interpreter for the rows about threads")
    parser.add_argument("--claim", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.claim:
        return run_claim(options.claim)
    if options.quick:
        os.environ["SYNTHEX_BENCH_QUICK"] = "1"

    operation = ""
    rows = []
    for row in ROWS:
        # A row without an operation is about that of the row above.
        operation = row.operation or operation
        row = row._replace(operation=operation)
        if options.only in row.claim or options.only in operation:
            rows.append(row)
    python = None
    if any(row.free_threaded for row in rows):
        python = free_threaded_python(options.free_threaded)

    lines, notes, record, missed = [], [], [], 0
    start = time.monotonic()
    for n, row in enumerate(rows, 1):
        print(f"[{n}/{len(rows)}] {row.claim}", file=sys.stderr, flush=True)
        result = measure(row, python)
        if "missing" in result:
            lines.append((row.operation.strip(), row.against, row.target, "not measured", "", ""))
            notes.append(f"{row.operation.strip()} / {row.against}: {result['missing']}")
            word = None
        else:
            figure, _ = measured(row, result)
            word = verdict(row, figure)
            lines.append((row.operation.strip(), row.against, row.target, *shown(row, result), word))
            if result["note"]:
                notes.append(f"{row.operation.strip()}: {result['note']}")
        missed += word != "hit"
        record.append({**row._asdict(), **result, "verdict": word})
    print(table(lines, options.markdown))
    print()
    for note in notes:
        print(f"- {note}")
    conditions = f"CPython {sys.version.split()[0]}" + (", quick" if options.quick else "")
    seconds = time.monotonic() - start
    print(f"- {len(rows) - missed} of {len(rows)} targets met; {conditions}, {seconds:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))
    return int(missed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
