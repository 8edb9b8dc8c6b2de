"""Counts the instructions that each hot operation takes, by callgrind: figures that repeat, for spotting regressions.

    python bench/instructions.py [--python PYTHON]... [--only WORD]

Needs valgrind (Linux). Each operation has a process of its own, in which it is repeated first to warm up, then under
count; the count divided by the repetitions is the instructions per operation, the loop around it included. With several
interpreters (each with a build of the package installed, such as one before and one after a change) the last column
compares the last with the first. `gate.py` compares with the counts in ``baseline.json``.

Nothing counted uses numpy or psutil, and memory figures come from files of fixed content, so that neither their
versions nor the machine's memory matter.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# callgrind writes what it has counted so far whenever this function of the C library is called. Nothing else calls it.
MARK = "getppid"
WARM_UP = 1_000


class Operation(NamedTuple):
    """What is done first, what is repeated, and how often."""

    prepare: str
    repeat: str
    times: int = 5_000


class CountError(Exception):
    """An operation could not be counted; the message says why."""


# A dict seeds its hash at random, so its keys are taken in turns.
TEXT_KEYS = "d.update((f'key-{n}', n) for n in range(1000)); key = itertools.cycle(list(d)).__next__"
OTHER_KEYS = "other = itertools.cycle([f'other-{n}' for n in range(1000)]).__next__"
NEW_KEYS = "key = map('key-{}'.format, itertools.count()).__next__"
RESPONSES = (
    "made = [synthex_fast.PooledExpertResponse(f'query-{n // 5}', f'expert-{n % 5}', 'Yes.', n % 11 / 10)"
    " for n in range(1000)]"
)
READINGS = "from synthex_fast._readings import Readings; readings = Readings('machine')"
# What happens between requests depends on the clock, which here advances by 10 microseconds whenever it is read.
TUNER = (
    "tuner = synthex_fast.GCTuner(memory_limit='1GB', readings=readings, clock=itertools.count(0.0, 1e-5).__next__);"
    " tuner.start(); gc.disable()"
)
JSON = (
    "value = {'answers': [{'id': f'answer-{n}', 'score': n + 0.5, 'tags': ['a' * 20, 'b' * 20], 'error': None}"
    " for n in range(10)]}"
)

OPERATIONS = {
    # The interpreter alone. Its count tells whether two interpreters of one version are the same build.
    "interpreter": Operation(
        "d = {f'key-{n}': f'value-{n}' for n in range(1000)}; key = itertools.cycle(list(d)).__next__; get = d.get",
        "get(key()).startswith('value')",
    ),
    "ObjectPool acquire + release": Operation(
        "pool = synthex_fast.ObjectPool(list); acquire = pool.acquire; release = pool.release",
        "release(acquire())",
    ),
    "ObjectPool lease": Operation(
        "lease = synthex_fast.ObjectPool(list).lease", "with lease() as leased:\n    leased"
    ),
    "query made with 3 keywords, dropped": Operation(
        "Query = synthex_fast.PooledExpertQuery",
        "Query(title='Pool size', content='How large should it be?', requester='billing')",
    ),
    "query made with all fields, dropped": Operation(
        "Query = synthex_fast.PooledExpertQuery; context = {'region': 'eu', 'attempt': 1}; tags = ['cache', 'memory']",
        "Query(title='Pool size', content='How large should it be?', requester='billing', context=context,"
        " constraints=['no downtime'], tags=tags)",
    ),
    "response made, dropped": Operation(
        "Response = synthex_fast.PooledExpertResponse", "Response('q1', 'e1', 'Yes.', 0.8)"
    ),
    "own record of 3 texts made, dropped": Operation(
        "Own = type(synthex_fast.Record)('Own', (synthex_fast.Record,),"
        " {'__annotations__': dict.fromkeys('abc', str), '__module__': __name__})",
        "Own(a='Pool size', b='How large should it be?', c='billing')",
    ),
    "first read of .id": Operation(
        "Query = synthex_fast.PooledExpertQuery; query = iter(["
        "Query('Pool size', 'How large should it be?', 'billing') for _ in range(10_000)]).__next__",
        "query().id",
    ),
    "uuid4_text": Operation("from synthex_fast._ids import uuid4_text", "uuid4_text()"),
    "add, a flush per 800 responses": Operation(
        f"{RESPONSES}; b = synthex_fast.ResponseBuffer(1000, on_flush=len); add = b.add;"
        " response = itertools.cycle(made).__next__",
        "add(response())",
    ),
    "add_batch of 5, a flush per 800 responses": Operation(
        f"{RESPONSES}; b = synthex_fast.ResponseBuffer(1000, on_flush=len); add = b.add_batch;"
        " batch = itertools.cycle([made[n:n + 5] for n in range(0, 1000, 5)]).__next__",
        "add(batch())",
    ),
    "ResponseBuffer consensus, 1,000 buffered": Operation(
        f"{RESPONSES}; b = synthex_fast.ResponseBuffer(1001); [b.add(r) for r in made]; consensus = b.consensus;"
        " query = itertools.cycle(b.queries).__next__",
        "consensus(query())",
    ),
    "ResponseBuffer aggregate, 1,000 of 200 queries": Operation(
        f"{RESPONSES}; b = synthex_fast.ResponseBuffer(1001); [b.add(r) for r in made]; aggregate = b.aggregate",
        "for row in aggregate().values():\n    pass",
        times=200,
    ),
    "ResponseCollector add": Operation(
        f"{RESPONSES}; c = synthex_fast.ResponseCollector(max_per_query=None, memory_limit=None, on_flush=len);"
        " add = c.add; response = itertools.cycle(made).__next__",
        "add(response())",
    ),
    "ResponseCollector consensus": Operation(
        f"{RESPONSES}; c = synthex_fast.ResponseCollector(); [c.add(r) for r in made[:500]]; consensus = c.consensus;"
        " query = itertools.cycle(list(c)).__next__",
        "consensus(query())",
    ),
    "TTLDict get, hit": Operation(
        f"d = synthex_fast.TTLDict(10_000, 3600.0); get = d.get; {TEXT_KEYS}", "get(key())"
    ),
    "TTLDict get, hit, lru": Operation(
        f"d = synthex_fast.TTLDict(10_000, 3600.0, policy='lru'); get = d.get; {TEXT_KEYS}", "get(key())"
    ),
    "TTLDict get, hit, integer keys": Operation(
        "d = synthex_fast.TTLDict(10_000, 3600.0); get = d.get; d.update((n, n) for n in range(1000));"
        " key = itertools.cycle(list(d)).__next__",
        "get(key())",
    ),
    "TTLDict get, miss": Operation(
        f"d = synthex_fast.TTLDict(10_000, 3600.0); get = d.get; {TEXT_KEYS}; {OTHER_KEYS}", "get(other())"
    ),
    "TTLDict[key]": Operation(f"d = synthex_fast.TTLDict(10_000, 3600.0); {TEXT_KEYS}", "d[key()]"),
    "TTLDict key in": Operation(f"d = synthex_fast.TTLDict(10_000, 3600.0); {TEXT_KEYS}", "key() in d"),
    "TTLDict get_or_set, hit": Operation(
        f"d = synthex_fast.TTLDict(10_000, 3600.0); get = d.get_or_set; {TEXT_KEYS}; make = lambda: 1",
        "get(key(), make)",
    ),
    "cached function, hit": Operation(
        "f = synthex_fast.cached(lambda n: n); key = itertools.cycle(range(1000, 1100)).__next__; [f(n + 1000) for n in"
        " range(100)]",
        "f(key())",
    ),
    "cached function, miss": Operation(
        "f = synthex_fast.cached(lambda n: n); key = itertools.count(1000).__next__", "f(key())"
    ),
    "TTLDict overwrite": Operation(
        f"d = synthex_fast.TTLDict(10_000, 3600.0, memory_limit=2**30); v = 'value'; {TEXT_KEYS}",
        "d[key()] = v",
    ),
    "TTLDict set with a ttl": Operation(
        f"d = synthex_fast.TTLDict(10_000, 3600.0); set_ = d.set; {TEXT_KEYS}", "set_(key(), 1, 60.0)"
    ),
    "TTLDict insert + delete": Operation(
        f"d = synthex_fast.TTLDict(10_000, 3600.0); {TEXT_KEYS}; {OTHER_KEYS}",
        "k = other(); d[k] = 1; del d[k]",
    ),
    "TTLDict insert that evicts, max_size": Operation(
        f"d = synthex_fast.TTLDict(1000, 3600.0); {NEW_KEYS}; [d.__setitem__(key(), 1) for _ in range(2000)]",
        "d[key()] = 1",
    ),
    "TTLDict insert that evicts, memory_limit": Operation(
        f"d = synthex_fast.TTLDict(memory_limit=100_000); {NEW_KEYS}", "d[key()] = 1"
    ),
    "TTLDict insert, one due": Operation(
        "d = synthex_fast.TTLDict(None, 500.0, timer=itertools.count(0.0, 1.0).__next__);"
        f" {NEW_KEYS}; [d.__setitem__(n, n) for n in range(1000)]",
        "d[key()] = 1",
    ),
    "sizeof of a text and a number": Operation(
        "from synthex_fast._sizeof import sizeof_pair; k = 'key' * 5; v = 1 << 40", "sizeof_pair(k, v)"
    ),
    "sizeof of parsed JSON": Operation(
        f"from synthex_fast._sizeof import sizeof; {JSON}", "sizeof(value)", times=2_000
    ),
    "sizeof of an instance": Operation(
        "from synthex_fast._sizeof import sizeof; C = type('C', (), {}); c = C(); c.a = 'a' * 20; c.b = [1.5] * 5",
        "sizeof(c)",
    ),
    "GCTuner request": Operation(
        f"{READINGS}; {TUNER}; request = tuner.request()",
        "with request:\n    pass",
    ),
    "young collection, watched by GCTuner": Operation(
        f"{READINGS}; {TUNER}; collect = gc.collect",
        "collect(0)",
    ),
    "resident size": Operation(f"{READINGS}; rss = readings.rss", "rss()"),
    "AdaptiveMemoryMonitor sample": Operation(
        f"{READINGS}; m = synthex_fast.AdaptiveMemoryMonitor(readings=readings,"
        " clock=itertools.count(0.0, 1.0).__next__); sample = m.sample; after = m.calculate_next_interval",
        "after(sample().used)",
        times=2_000,
    ),
    "MemoryGovernor check, two caches": Operation(
        f"{READINGS}; g = synthex_fast.MemoryGovernor(readings=readings, clock=itertools.count(0.0, 1.0).__next__);"
        " caches = [g.register(synthex_fast.TTLDict(1000)) for _ in range(2)]; check = g.check",
        "check()",
        times=1_000,
    ),
}

# What `Readings('machine')` finds: 16 GB, 12 of them available, no control group, and a process of 100 MB.
MACHINE = {
    "proc/self/statm": "60000 25600 4000 1 0 40000 0\n",
    "proc/meminfo": "MemTotal:       16777216 kB\nMemFree:         8388608 kB\nMemAvailable:   12582912 kB\n"
    "Buffers:          100000 kB\nCached:          4000000 kB\nSwapCached:            0 kB\n"
    "SwapTotal:       1000000 kB\nSwapFree:        1000000 kB\n",
}


def script(operation):
    """The program that callgrind runs."""
    # As default arguments the names are locals, as a hot loop in a service would hold them.
    names = ", ".join(f"{name}={name}" for name in re.findall(r"(?:^|; ?)(\w+) = ", operation.prepare))
    repeat = "\n        ".join(operation.repeat.splitlines())
    # The collector would run at times that depend on what was imported. What takes the last block of one of the
    # allocator's pools costs more than what takes another: `range` would do so with its ints at times, and with the
    # spare blocks no operation does.
    return f"""\
import gc
import itertools
import os
import synthex_fast
gc.disable()
spare = [
    block
    for n in range(200)
    for block in (object(), n + 10**6, *map(bytes, range(15, 495, 16)))
]
del spare[::2]
{operation.prepare}
def run(times, {names}):
    for _ in itertools.repeat(None, times):
        {repeat}
run({WARM_UP})
os.{MARK}()
run({operation.times})
os.{MARK}()
"""


def count(python, operation, path=None):
    """Instructions of one operation, with that interpreter, and with the package in the directory ``path`` if given.

    Raises `CountError` if the program fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for name, text in MACHINE.items():
            (here / "machine" / name).parent.mkdir(parents=True, exist_ok=True)
            (here / "machine" / name).write_text(text)
        (here / "operation.py").write_text(script(operation))
        # Nothing else of the caller's environment, since its size and content change where things are in memory.
        environment = {
            "PATH": os.defpath,
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C",
        }
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        done = subprocess.run(
            [
                shutil.which("valgrind") or "valgrind",
                "--tool=callgrind",
                f"--dump-before={MARK}",
                "--callgrind-out-file=counts",
                python,
                "operation.py",
            ],
            cwd=here,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CountError(f"{python} failed under callgrind:\n{done.stderr[-2000:].strip()}")
        counted = here / "counts.2"
        found = re.search(r"^totals: (\d+)", counted.read_text(), re.M) if counted.exists() else None
        if found is None:
            raise CountError(f"callgrind did not count {python}:\n{done.stderr[-2000:].strip()}")
        return int(found.group(1)) / operation.times


def count_all(python, names, path=None):
    """Counts by name, in order; a `CountError` in place of a count that failed. Other load does not matter."""

    def attempt(name):
        try:
            return count(python, OPERATIONS[name], path)
        except CountError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(names, pool.map(attempt, names), strict=True))


def interpreter(given):
    """The absolute path of an interpreter given on the command line. A virtual environment's link stays one."""
    found = shutil.which(given)
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no interpreter {given!r}")
    return os.path.abspath(found)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python",
        action="append",
        type=interpreter,
        help="an interpreter that has the package; may be repeated (this one)",
    )
    parser.add_argument("--only", metavar="WORD", default="", help="operations whose name contains WORD")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("instructions.py needs valgrind, which is not installed")
    names = [name for name in OPERATIONS if options.only in name]
    if not names:
        sys.exit(f"--only: no operation's name contains {options.only!r}")
    columns = [count_all(python, names) for python in options.python or [sys.executable]]
    for name in names:
        figures = [column[name] for column in columns]
        for figure in figures:
            if isinstance(figure, CountError):
                sys.exit(f"{name}: {figure}")
        change = f"{figures[-1] / figures[0] - 1:+8.1%}" if len(figures) > 1 else ""
        print(f"{name:46}", *(f"{figure:9.1f}" for figure in figures), change)


if __name__ == "__main__":
    main()
