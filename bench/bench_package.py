"""How long it takes to import the package into a bare interpreter."""

import statistics
import subprocess
import sys
from pathlib import Path

from measure import QUICK, Comparison

CODE = """
import sys
from time import perf_counter_ns
sys.path.insert(0, {place!r})
start = perf_counter_ns()
import synthex_fast
print(perf_counter_ns() - start)
"""


def claim_import():
    """`import synthex_fast` in a bare interpreter, in nanoseconds: not a ratio."""
    import synthex_fast

    code = CODE.format(place=str(Path(synthex_fast.__file__).parents[1]))
    command = [sys.executable, "-S", "-E", "-c"]
    times = []
    for _ in range(11 if QUICK else 41):
        done = subprocess.run([*command, code], capture_output=True, text=True, check=True)
        times.append(int(done.stdout))
    low, median, high = statistics.quantiles(times, n=4)
    # The limit is an absolute time: with a rival of 1 ns, the ratio is the time.
    return Comparison(median, 1.0, median, (low, high))
