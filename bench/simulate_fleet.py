"""How workers that share a container's memory should divide it: policies compared on traces, in seconds.

``python bench/simulate_fleet.py [--workers 2 4 8] [--quick]`` runs workers with one cache each, a `TTLDict` whose
entries all count the same, on streams of keys: real traces if they lie next to the repository (``../shared/traces``),
and synthetic ones. In each scenario the workers' streams differ in length of tail, working set or rate. Time is
simulated, and the code that divides is that of the package (`synthex_fast._fleet.split`). Policies:

- ``equal``: the same for everybody, and never changed;
- ``demand``: in proportion to the misses of the last seconds;
- ``ghosts``: what the package does, weights that climb by ghost hits per byte;
- ``best static``: the best division that stays as it is, found by search: each worker's hits at many sizes are counted
  first, then the division of most hits is computed exactly (dynamic programming).

For each the sum of hits of all workers is shown against the best static division (target for ``ghosts``: 97 %).
"""

import argparse
import lzma
import os
import sys
import time
from pathlib import Path

import numpy

from synthex_fast import TTLDict
from synthex_fast._fleet import split
from synthex_fast._fleet.split import ANYTHING, Need, Posting

# Next to the repository, or to the folder that holds its work trees.
FOLDERS = [parent / "shared/traces" for parent in Path(__file__).resolve().parents[2:4]]
if "SYNTHEX_TRACES" in os.environ:
    FOLDERS = [Path(os.environ["SYNTHEX_TRACES"])]
TARGET = 0.97
# What an entry counts beside what `sizeof` says, and in all.
ENTRY = 1 << 10
# Simulated seconds between two exchanges.
TICK = 2.0


def read_trace(name, most=None):
    for folder in FOLDERS:
        path = folder / f"{name}.trace.xz"
        if path.exists():
            break
    else:
        return None
    with lzma.open(path) as file:
        return numpy.frombuffer(file.read(4 * most if most else -1), dtype=">i4").astype(numpy.int64)


def zipf(count, keys, skew, seed):
    """Keys whose k-th is asked for in proportion to k to the power of minus ``skew``."""
    rank = numpy.arange(1, keys + 1, dtype=float) ** -skew
    edges = numpy.cumsum(rank / rank.sum())
    return numpy.searchsorted(edges, numpy.random.default_rng(seed).random(count))


def uniform(count, keys, seed):
    return numpy.random.default_rng(seed).integers(0, keys, count)


def cost():
    """What a TTLDict adds to `sizeof` for each entry."""
    probe = TTLDict(sizeof=lambda key, value: 0)
    probe[0] = None
    return probe.nbytes


OWN = cost()


def make_cache():
    return TTLDict(sizeof=lambda key, value: ENTRY - OWN)


def serve(cache, keys):
    """Ask for each key, and store what is missing. Returns the hits."""
    get, hits = cache.get, 0
    for key in keys:
        if get(key) is None:
            cache[key] = True
        else:
            hits += 1
    return hits


class Worker:
    def __init__(self, number, stream, per_tick):
        self.number = number
        self.stream = stream
        self.per_tick = per_tick
        self.cache = make_cache()
        self.need = Need()
        self.hits = 0
        self.share = 0.0
        self.misses = 0.0
        self.hunger = split.Hunger()
        self.hungry = True
        self.peak = 0

    def tick(self, n):
        keys = self.stream[n * self.per_tick : (n + 1) * self.per_tick].tolist()
        hits = serve(self.cache, keys)
        self.hits += hits
        self.misses = 0.7 * self.misses + (len(keys) - hits)
        return hits

    def post(self, now):
        stats = self.cache.stats
        self.need.observe(stats["ghost_hits"], now)
        self.hungry = self.hunger.observe(stats["memory"], now)
        size = stats["nbytes"]
        self.peak, grown = max(size, min(self.peak, size / 0.8)), max(0, size - self.peak)
        most = ANYTHING if self.hungry else int(split.SPARE * self.peak + 5 * grown / TICK + 16 * ENTRY)
        settled = now > 3 * TICK and size >= split.SETTLED_PART * min(self.share, most)
        return Posting(
            self.number + 1, 0.0, size, size, 0, self.need.want, self.need.evidence, self.need.weight,
            most, ENTRY, int(self.share), 0, settled, self.hungry,
        )  # fmt: skip


def divide_equal(total, workers, postings, now):
    return [total / len(workers)] * len(workers)


def divide_by_demand(total, workers, postings, now):
    return split.share_out(total, [(worker.misses + 1.0, float(ANYTHING)) for worker in workers])


def divide_by_ghosts(total, workers, postings, now):
    everyone = split.Together(postings)
    for worker, posting in zip(workers, postings, strict=True):
        worker.need.next_weight(posting, everyone, now)
    return split.divide(
        total, [p._replace(weight=w.need.weight) for p, w in zip(postings, workers, strict=True)]
    )


POLICIES = {"equal": divide_equal, "demand": divide_by_demand, "ghosts": divide_by_ghosts}


def simulate(streams, ticks, total, policy):
    """The workers' hits under a policy, and what each had in the end."""
    workers = [Worker(n, stream, len(stream) // ticks) for n, stream in enumerate(streams)]
    for worker in workers:
        worker.share = total / len(workers)
        worker.cache.cap(int(worker.share))
    for n in range(ticks):
        for worker in workers:
            worker.tick(n)
        now = (n + 1) * TICK
        postings = [worker.post(now) for worker in workers]
        shares = POLICIES[policy](total, workers, postings, now)
        for worker, share in zip(workers, shares, strict=True):
            worker.share = share
            cap = worker.cache.memory_cap
            if abs(share - cap) > 0.01 * cap and not (share < worker.cache.nbytes <= share / 0.95):
                worker.cache.cap(max(int(share), 16 * ENTRY))
    return [worker.hits for worker in workers], [worker.share for worker in workers]


def hits_at(stream, size):
    cache = make_cache()
    cache.cap(max(int(size), ENTRY))
    return serve(cache, stream.tolist())


def best_static(streams, total):
    """The most hits of any division on a grid, and that division: each worker's hits at every size, then a search."""
    curves = {}
    table = []
    # Steps of a part of an equal share. With many workers nobody has more than eight shares.
    steps = 12 if len(streams) == 2 else 8 if len(streams) <= 8 else 4
    grid = steps * len(streams)
    most = min(grid, 8 * steps)
    for stream in streams:
        key = (len(stream), stream[:64].tobytes(), stream[-64:].tobytes())
        if key not in curves:
            curves[key] = [0] + [hits_at(stream, total * step / grid) for step in range(1, most + 1)]
        table.append(curves[key])
    best = [0] * (grid + 1)
    chosen = []
    for curve in table:
        after, choice = [0] * (grid + 1), [0] * (grid + 1)
        for size in range(grid + 1):
            own = range(min(size, most) + 1)
            after[size], choice[size] = max((best[size - step] + curve[step], step) for step in own)
        best = after
        chosen.append(choice)
    size, division = grid, []
    for choice in reversed(chosen):
        division.append(choice[size])
        size -= choice[size]
    return best[grid], [total * step / grid for step in reversed(division)]


def scenarios(count, length):
    """By name: the streams of ``count`` workers, and how many entries fit in all their caches together."""
    half = count // 2
    yield (
        "equal workers",
        [zipf(length, 20_000, 0.9, seed) for seed in range(count)],
        4_000 * count,
    )
    yield (
        "one with three times the working set",
        [zipf(length, 6_000 if n == 0 else 2_000, 0.3, n) for n in range(count)],
        1_700 * (count + 2),
    )
    yield (
        "one whose keys are spread three times as wide",
        [zipf(length, 24_000 if n == 0 else 8_000, 0.8, n) for n in range(count)],
        4_000 * count,
    )
    yield (
        "one with three times the requests",
        [zipf(3 * length if n == 0 else length, 20_000, 0.9, n) for n in range(count)],
        4_000 * count,
    )
    yield (
        "half with hardly any locality",
        [zipf(length, 10_000, 1.0, n) if n < half else uniform(length, 200_000, n) for n in range(count)],
        3_000 * count,
    )
    yield (
        "half that fit in little",
        [zipf(length, 20_000, 0.8, n) if n < half else zipf(length, 1_000, 0.9, n) for n in range(count)],
        3_000 * count,
    )
    web, orm = read_trace("web12"), read_trace("orm-busy", count * length + 1)
    if web is not None and orm is not None:
        web = numpy.resize(web, length)
        yield (
            "traces: web12, orm-busy",
            [web if n % 2 else orm[n * length : (n + 1) * length] for n in range(count)],
            1_200 * count,
        )
        yield (
            "traces: orm-busy in parts",
            [orm[n * length : (n + 1) * length] for n in range(count)],
            1_500 * count,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8], metavar="N", help="how many")
    parser.add_argument("--quick", action="store_true", help="shorter streams")
    arguments = parser.parse_args()
    if not all(2 <= count <= 64 for count in arguments.workers):
        parser.error("argument --workers: must be from 2 to 64")
    length = 60_000 if arguments.quick else 200_000
    ticks = length // 500
    missed = 0
    for count in arguments.workers:
        print(f"{count} workers, {length:,} requests each, {ticks * TICK:.0f} simulated seconds")
        print(f"  {'':46}" + "".join(f"{name:>10}" for name in POLICIES) + "   shares under ghosts")
        for name, streams, entries in scenarios(count, length):
            began = time.perf_counter()
            total = float(entries * ENTRY)
            best, division = best_static(streams, total)
            row, last = [], []
            for policy in POLICIES:
                hits, last = simulate(streams, ticks, total, policy)
                row.append(sum(hits) / best)
            good = row[-1] >= TARGET
            missed += not good
            shown = " ".join(f"{share / total:.2f}" for share in last[:8])
            ideal = " ".join(f"{share / total:.2f}" for share in division[:8])
            print(
                f"  {name:46}" + "".join(f"{part:10.1%}" for part in row) + f"   {shown} (best: {ideal})"
                f"{'' if good else '  MISSED'}  {time.perf_counter() - began:.1f} s",
                flush=True,
            )
    print("all targets met" if not missed else f"{missed} TARGETS MISSED")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
