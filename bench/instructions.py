"""Counts the instructions that each hot operation takes, by callgrind: figures that repeat, for spotting regressions.

    python bench/instructions.py [--python PYTHON]... [--only WORD]

Needs valgrind. Each operation runs N and 2 N times under callgrind, and the difference divided by N is the instructions
per operation, the loop around it included. With several interpreters (each with a build of the package installed, such
as one before and one after a change) the last column compares the last with the first.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys

N = 20_000

# Name, what to do first, what to repeat. A dict seeds its hash at random, so its keys are taken in turns.
OPERATIONS = [
    (
        "ObjectPool acquire + release",
        "pool = synthex_fast.ObjectPool(list); acquire = pool.acquire; release = pool.release",
        "release(acquire())",
    ),
    (
        "query made with 3 keywords, dropped",
        "Query = synthex_fast.PooledExpertQuery",
        "Query(title='Pool size', content='How large should it be?', requester='billing')",
    ),
    (
        "TTLDict get, hit",
        "d = synthex_fast.TTLDict(10_000, 3600.0); d.update((f'key-{n}', n) for n in range(1000)); get = d.get;"
        " key = itertools.cycle(list(d)).__next__",
        "get(key())",
    ),
    (
        "TTLDict overwrite",
        "d = synthex_fast.TTLDict(10_000, 3600.0, memory_limit=2**30);"
        " d.update((f'key-{n}', n) for n in range(1000)); v = 'value'; key = itertools.cycle(list(d)).__next__",
        "d[key()] = v",
    ),
    (
        "add_batch of 5, a flush per 1,000 responses",
        "b = synthex_fast.ResponseBuffer(1000, on_flush=len);"
        " batch = [synthex_fast.PooledExpertResponse('q1', f'e{n}', 'Yes.', 0.8) for n in range(5)]; add = b.add_batch",
        "add(batch)",
    ),
]


def count(python, prepare, repeat, times):
    """Instructions of a whole process that repeats the operation so often."""
    # As default arguments the names are locals, as a hot loop in a service would hold them.
    names = ", ".join(f"{name}={name}" for name in re.findall(r"(?:^|; ?)(\w+) = ", prepare))
    # `range` would allocate an int each time, at a cost that depends on where the allocator happens to be.
    code = f"""
import itertools
import synthex_fast
{prepare}
def run(times, {names}):
    for _ in itertools.repeat(None, times):
        {repeat}
run({times})
"""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", python, "-c"]
    result = subprocess.run(
        [*command, code],
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", result.stderr)
    if result.returncode or not found:
        sys.exit(f"callgrind failed with {python}:\n{result.stderr[-2000:]}")
    return int(found.group(1))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python", action="append", help="an interpreter that has the package; may be repeated (this one)"
    )
    parser.add_argument("--only", metavar="WORD", default="", help="operations whose name contains WORD")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("instructions.py needs valgrind, which is not installed")
    pythons = options.python or [sys.executable]
    for name, prepare, repeat in OPERATIONS:
        if options.only not in name:
            continue
        figures = [
            (count(python, prepare, repeat, 2 * N) - count(python, prepare, repeat, N)) / N
            for python in pythons
        ]
        change = f"{figures[-1] / figures[0] - 1:+8.1%}" if len(figures) > 1 else ""
        print(f"{name:45}", *(f"{figure:9.1f}" for figure in figures), change, flush=True)


if __name__ == "__main__":
    main()
