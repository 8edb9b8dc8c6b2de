"""Plots of cost against size, beside rivals, for the page about performance: SVG files in ``docs/plots``.

    python bench/plots.py [--quick] [--only WORD] [--directory DIRECTORY]

Needs ``pip install '.[plots]'``. Each plot is measured in a process of its own, whose rounds give every rival its turn.
A line is the median of the rounds, the band around it goes from the lower to the upper quartile. ``figures.json`` keeps
what was measured, ``conditions.txt`` where and how; the page includes that.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
DIRECTORY = HERE.parent / "docs" / "plots"

OURS = "synthex-fast"
# The same colour for a rival in every plot (Okabe and Ito's, which colour-blind readers can tell apart).
COLOURS = {
    OURS: "#0072B2",
    "dict": "#555555",
    "list": "#555555",
    "plain Python": "#555555",
    "sys.getsizeof, recursively": "#555555",
    "cachebox": "#D55E00",
    "msgspec (unchecked)": "#D55E00",
    "gc.get_referents": "#D55E00",
    "cachetools": "#CC79A7",
    "pydantic": "#CC79A7",
    "deque and lock": "#CC79A7",
}


class Plot(NamedTuple):
    """What one file shows; ``measure(size)`` returns {rival: (median, low, high)}."""

    title: str
    x: str
    y: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    measure: object
    scale: float = 1.0  # what is measured, in the unit of y
    log: bool = True


# ---- What is measured ----


def _caches(size):
    """Mappings with that many text keys, and the keys in another order than they were stored in."""
    import bench_ttl
    from cachetools import TTLCache

    keys = bench_ttl._text_keys(size)
    makers = {
        OURS: lambda: bench_ttl._our_dict(size, memory_limit=1 << 40),
        "dict": dict,
        "cachebox": lambda: bench_ttl._cachebox_ttl(size),
        "cachetools": lambda: TTLCache(size, bench_ttl.HOUR),
    }
    mappings = {name: bench_ttl._filled(make, keys) for name, make in makers.items()}
    random.Random(2).shuffle(keys)
    return mappings, keys


def _rounds(quick, full):
    import measure

    return quick if measure.QUICK else full


def lookups(size):
    """`get` of present keys."""
    from bench_ttl import _each
    from measure import in_turns

    mappings, keys = _caches(size)
    # Eight keys a turn, without a rest.
    keys = keys[: size // 8 * 8]
    calls = {name: _each("mapping.get(key)", mapping, keys) for name, mapping in mappings.items()}
    return in_turns(calls, rounds=_rounds(11, 41))


def overwrites(size):
    """`mapping[key] = text` of present keys, with byte accounting on our side only."""
    from bench_ttl import _overwrites
    from measure import in_turns

    mappings, keys = _caches(size)
    calls = {name: _overwrites(mapping, keys) for name, mapping in mappings.items()}
    return in_turns(calls, rounds=_rounds(11, 41))


def bytes_per_entry(size):
    """What malloc has allocated for each entry beyond key and value, every entry with a TTL of its own."""
    from bench_ttl import _probe

    kinds = {OURS: "ours-bounded", "dict": "dict", "cachebox": "cachebox", "cachetools": "cachetools"}
    held = {name: _probe("probe_bytes", kind, size, PYTHONMALLOC="malloc") for name, kind in kinds.items()}
    return {name: (value, value, value) for name, value in held.items()}


def mass_expiry(size):
    """The slowest of the operations that follow after that many entries fell due at once, in CPU time.

    The line is the least disturbed round: other processes can make an operation slow, but not fast.
    """
    from bench_ttl import _least, _probe

    kinds = {OURS: "ours-sweep", "dict": "dict", "cachetools": "cachetools"}
    runs = {name: [] for name in kinds}
    for _ in range(_rounds(3, 5)):
        for name, kind in kinds.items():
            runs[name].append(_probe("probe_stall", kind, size)["slowest"])
    return {name: _least(values) for name, values in runs.items()}


def consensus(size):
    """The consensus on one of the queries whose answers are buffered, five answers to each."""
    import bench_slab
    from measure import in_turns, statement

    buffer, query = bench_slab._holding(size)
    responses = buffer.flush()
    for n in range(0, size, bench_slab.EXPERTS):
        buffer.add_batch(responses[n : n + bench_slab.EXPERTS])

    def plain():
        bench_slab.plain_aggregate([response for response in responses if response.query_id == query])

    calls = {
        OURS: statement("consensus(query)", consensus=buffer.consensus, query=query),
        "plain Python": plain,
    }
    return in_turns(calls, rounds=_rounds(11, 41))


def sizes_of_values(size):
    """The deep size of parsed JSON, in time per object in it; ``size`` is the number of answers."""
    import bench_sizeof
    from measure import in_turns

    value = json.loads(bench_sizeof.answers(size))
    objects = len(bench_sizeof.parts(value))
    calls = {
        OURS: lambda: bench_sizeof.sizeof(value),
        "sys.getsizeof, recursively": lambda: bench_sizeof.recursive(value, set()),
        "gc.get_referents": lambda: bench_sizeof.referents(value),
    }
    costs = in_turns(calls, rounds=_rounds(11, 41))
    return {name: [figure / objects for figure in cost] for name, cost in costs.items()}


def bursts(size):
    """So many objects acquired, then all of them released: time per object."""
    from bench_pool import ObjectPool, Plain, ReportPool
    from measure import in_turns

    def burst(take, give):
        held = []
        append = held.append
        pop = held.pop

        def run():
            for _ in range(size):
                append(take())
            for _ in range(size):
                give(pop())

        run.inner = size
        return run

    pool, report = ObjectPool(Plain, size, prefill=size), ReportPool(Plain, size)
    items = [Plain() for _ in range(size)]
    calls = {
        OURS: burst(pool.acquire, pool.release),
        "list": burst(items.pop, items.append),
        "deque and lock": burst(report.acquire, report.release),
    }
    return in_turns(calls, rounds=_rounds(11, 41))


def queries(size):
    """A query with that many constraints, made and dropped; the struct checks nothing and is given its id and time."""
    import bench_records
    from measure import in_turns, statement

    texts = [f"constraint number {n}" for n in range(size)]
    names = {**bench_records.TEXTS, "texts": texts}
    call = "make(title=title, content=content, requester=requester, constraints=texts[:]"
    known = {"id": str(bench_records.uuid4()), "now": datetime.now(UTC)}
    calls = {
        OURS: statement(f"{call})", make=bench_records._query(), **names),
        "pydantic": statement(f"{call})", make=bench_records._model(), **names, inner=100),
        "msgspec (unchecked)": statement(
            f"{call}, id=id, created_at=now)", make=bench_records._struct(), **names, **known
        ),
    }
    return in_turns(calls, rounds=_rounds(11, 41))


COUNTS = (100, 1_000, 10_000, 100_000, 1_000_000)
PLOTS = {
    "lookups": Plot("TTLDict.get of a present key", "entries", "nanoseconds", COUNTS, COUNTS[:4], lookups),
    "overwrites": Plot("Overwriting a present key", "entries", "nanoseconds", COUNTS, COUNTS[:4], overwrites),
    "bytes": Plot(
        "Memory for each entry, beyond key and value",
        "entries",
        "bytes",
        (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
        (1_000, 10_000, 30_000, 100_000),
        bytes_per_entry,
        log=False,
    ),
    "expiry": Plot(
        "The slowest operation after many entries expire at once",
        "entries that expire",
        "microseconds",
        COUNTS[1:],
        COUNTS[1:4],
        mass_expiry,
        scale=1e-3,
    ),
    "consensus": Plot(
        "The consensus on one query",
        "responses buffered",
        "nanoseconds",
        COUNTS[:4],
        COUNTS[:4],
        consensus,
    ),
    "sizeof": Plot(
        "The deep size of parsed JSON",
        "answers, 28 objects each",
        "nanoseconds for each object",
        (1, 10, 100, 700),
        (1, 10, 100),
        sizes_of_values,
    ),
    "pool": Plot(
        "Acquiring and releasing objects in bursts",
        "objects held at once",
        "nanoseconds for each",
        (1, 10, 100, 1_000, 10_000, 100_000),
        (1, 10, 100, 1_000, 10_000),
        bursts,
    ),
    "records": Plot(
        "Making and dropping a query",
        "constraints",
        "nanoseconds",
        (0, 1, 2, 4, 8, 16, 32),
        (0, 2, 8, 32),
        queries,
    ),
}


# ---- How it is shown ----


def draw(plot, figures, path):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # Text stays text, and the same figures give the same file.
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.family": "sans-serif"}
    figure, axes = plt.subplots(figsize=(7.0, 3.8), layout="constrained")
    sizes = [int(size) for size in figures]
    for name in figures[str(sizes[0])]:
        low, middle, high = ([figures[str(size)][name][n] * plot.scale for size in sizes] for n in (1, 0, 2))
        bold = 2.4 if name == OURS else 1.4
        axes.plot(sizes, middle, color=COLOURS[name], linewidth=bold, marker="o", markersize=3.5, label=name)
        axes.fill_between(sizes, low, high, color=COLOURS[name], alpha=0.18, linewidth=0)
    if 0 in sizes:
        axes.set_xticks(sizes)
    else:
        axes.set_xscale("log")
    if plot.log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y + (" (log)" if plot.log else ""))
    axes.grid(which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
    plt.close(figure)


def machine():
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def conditions(quick, load):
    """Markdown that says on what the figures were measured."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("cachebox", "cachetools", "msgspec", "pydantic", "numpy")
    )
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count()
    command = "python bench/plots.py" + (" --quick" if quick else "")
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}: {machine()}, {cores} cores, {platform.system()}, "
        f"CPython {platform.python_version()}, {packages}. Other processes used {load:.1f} cores on average when it "
        "began and ended"
        + (": these are rough figures, for the shapes of the curves.\n" if quick or load > 0.3 else ".\n")
    )


def _load():
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and shorter rounds: rough figures")
    parser.add_argument("--only", metavar="WORD", default="", help="plots whose name contains WORD")
    parser.add_argument("--directory", metavar="DIRECTORY", type=Path, default=DIRECTORY)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, size = options.measure
        print(json.dumps(PLOTS[name].measure(int(size))))
        return
    # The load before is that of others; afterwards this process is part of it.
    load = _load()
    environment = dict(os.environ, **({"SYNTHEX_BENCH_QUICK": "1"} if options.quick else {}))
    options.directory.mkdir(parents=True, exist_ok=True)
    record = options.directory / "figures.json"
    measured = json.loads(record.read_text()) if record.exists() else {}
    for name, plot in PLOTS.items():
        if options.only not in name:
            continue
        measured[name] = {}
        for size in plot.quick if options.quick else plot.sizes:
            print(f"{name}: {size:,} {plot.x}", file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, __file__, "--measure", name, str(size)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            measured[name][str(size)] = json.loads(done.stdout)
        draw(plot, measured[name], options.directory / f"{name}.svg")
    record.write_text(json.dumps(measured, indent=1) + "\n")
    if not options.only:
        load = statistics.fmean([load, max(0.0, _load() - 1.0)])
        (options.directory / "conditions.txt").write_text(conditions(options.quick, load))


if __name__ == "__main__":
    main()
