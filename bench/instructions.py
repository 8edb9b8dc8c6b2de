"""Counts the instructions that each hot operation executes, to compare two builds of the package.

Unlike a timing, the count hardly depends on the machine's load: two runs of one build differ by well under 1 %. Each
operation runs under callgrind twice, N and 2N times; the difference of the totals, divided by N, leaves out start-up
and import. What remains includes the interpreter's own share, so compare only builds run by the same interpreter:

    python bench/instructions.py                                 # this interpreter, this package
    python bench/instructions.py --python /other/venv/bin/python  # another build
    python bench/instructions.py --python ... --against ...      # both, and the ratio

Needs valgrind. PYTHONPATH is passed on.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys

# Name: (iterations N, set-up, statement). The statement is written out ten times in the loop's body.
OPERATIONS = {
    "acquire + release": (
        20_000,
        "class Thing: pass\npool = synthex_fast.ObjectPool(Thing)",
        "pool.release(pool.acquire())",
    ),
    "query construction": (
        10_000,
        "Query = synthex_fast.PooledExpertQuery\ncontent = 'How large should the cache be?'",
        "Query(title='Cache size', content=content, requester='ops')",
    ),
    "TTLDict.get": (
        40_000,
        "d = synthex_fast.TTLDict(max_size=2000, ttl=3600, sweep=False)\n"
        "keys = [f'key {i}' for i in range(1000)]\n"
        "for key in keys: d[key] = key\n"
        "get, key = d.get, keys[500]",
        "get(key)",
    ),
    "d[k] = v": (
        40_000,
        "d = synthex_fast.TTLDict(max_size=2000, ttl=3600, sweep=False)\n"
        "keys = [f'key {i}' for i in range(1000)]\n"
        "for key in keys: d[key] = key\n"
        "key = keys[500]",
        "d[key] = key",
    ),
    "add_batch of 5": (
        10_000,
        "Response = synthex_fast.PooledExpertResponse\n"
        "buffer = synthex_fast.ResponseBuffer(capacity=1000)\n"
        "five = [Response('query', f'expert {i}', confidence=0.5) for i in range(5)]\n"
        "add_batch = buffer.add_batch",
        "add_batch(five)",
    ),
}
# Ten batches of five fill a twentieth of the buffer; it is flushed after each twelve turns of the loop.
EACH_TURN = {"add_batch of 5": "        if not turn % 12: buffer.flush()\n"}

PROGRAM = """
import gc, sys
import synthex_fast
{setup}
def run(turns, {names}):
    for turn in range(turns):
{each_turn}{body}
gc.collect()
gc.disable()
run(int(sys.argv[1]) // 10, {names})
"""


def program(name):
    _, setup, statement = OPERATIONS[name]
    scope = re.findall(r"\b(pool|Query|content|get|d|key|buffer|five|add_batch)\b", statement)
    if name in EACH_TURN:
        scope.append("buffer")
    return PROGRAM.format(
        setup=setup,
        names=", ".join(dict.fromkeys(scope)),
        each_turn=EACH_TURN.get(name, ""),
        body=f"        {statement}\n" * 10,
    )


def total(python, code, iterations):
    """Instructions that one run of ``code`` executes, start-up included."""
    command = [
        "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
        python, "-c", code, str(iterations),
    ]  # fmt: skip
    # A fixed seed: otherwise the interpreter's own dicts collide differently in each run.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"{' '.join(command[3:4])} under callgrind failed:\n{done.stderr}")
    return int(found.group(1))


def instructions(python, name):
    """Instructions per operation."""
    iterations, code = OPERATIONS[name][0], program(name)
    # The least of three: what depends on the clock or on a random seed can only add to it.
    once, twice = (min(total(python, code, times * iterations) for _ in range(3)) for times in (1, 2))
    return (twice - once) / iterations


def main():
    parser = argparse.ArgumentParser(description="Instructions per hot operation, counted by callgrind.")
    parser.add_argument("--python", default=sys.executable, help="the interpreter whose package is measured")
    parser.add_argument("--against", help="a second interpreter to compare with; it ignores PYTHONPATH")
    parser.add_argument("names", nargs="*", help=f"operations (default: all of {', '.join(OPERATIONS)})")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("bench/instructions.py needs valgrind, which is not installed")
    for name in options.names or OPERATIONS:
        ours = instructions(options.python, name)
        line = f"{name:20} {ours:9.1f}"
        if options.against:
            place = os.environ.pop("PYTHONPATH", None)
            other = instructions(options.against, name)
            if place is not None:
                os.environ["PYTHONPATH"] = place
            line += f" {other:9.1f}  {ours / other:6.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
