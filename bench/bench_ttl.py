"""What `TTLDict` claims: speed beside dict and cachebox, bytes, pauses, hit ratios, threads.

Run as a script with the name of a probe, it measures one figure in a process of its own and prints it as
JSON: what a process has allocated before would change memory figures and pauses.
"""

import bisect
import gc
import itertools
import json
import lzma
import os
import random
import statistics
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from time import monotonic, perf_counter_ns, sleep

from measure import QUICK, Comparison, NotMeasuredError, compare, paired, scaling

HOUR = 3600.0


# Speed


def _text_keys(count, seed=1):
    """Keys as a service has them, in an order that has nothing to do with where they lie in memory."""
    keys = [f"query:{n:08x}-{n * 2654435761 % 2**32:08x}" for n in range(count)]
    random.Random(seed).shuffle(keys)
    return keys


def _filled(make, keys):
    mapping = make()
    for key in keys:
        mapping[key] = f"value of {key}"
    return mapping


def _our_dict(count, **options):
    from synthex_fast import TTLDict

    return TTLDict(max_size=count, ttl=HOUR, **options)


def _cachebox_ttl(count):
    from cachebox import TTLCache

    return TTLCache(count, HOUR)


def _each(source, mapping, keys, **names):
    """A callable that runs ``source``, which says ``mapping`` and ``key``, for every key, eight a turn."""
    letters = [f"key{n}" for n in range(8)]
    body = "\n".join("        " + source.replace("key", letter) for letter in letters)
    arguments = "".join(f", {name}={name}" for name in names)
    head = f"def run(mapping=mapping, groups=groups{arguments}):\n    for {', '.join(letters)} in groups:\n"
    groups = list(zip(*[iter(keys)] * 8, strict=True))
    scope = {"mapping": mapping, "groups": groups, **names}
    exec(compile(head + body, "<each>", "exec"), scope)
    scope["run"].inner = len(groups) * 8
    return scope["run"]


def _compare_reads(source, make_ours, make_rival):
    keys = _text_keys(100_000)
    ours, rival = _filled(make_ours, keys), _filled(make_rival, keys)
    random.Random(2).shuffle(keys)
    return compare(_each(source, ours, keys), _each(source, rival, keys))


def claim_get_vs_dict():
    """`get` of keys that are there, 100,000 text keys."""
    return _compare_reads("mapping.get(key)", lambda: _our_dict(100_000), dict)


def claim_get_vs_cachebox():
    """The same beside the fastest cache package."""
    return _compare_reads("mapping.get(key)", lambda: _our_dict(100_000), lambda: _cachebox_ttl(100_000))


def claim_subscript_vs_dict():
    """`mapping[key]`, for which the interpreter has an instruction of its own if the mapping is a dict."""
    return _compare_reads("mapping[key]", lambda: _our_dict(100_000), dict)


def _overwrites(mapping, keys):
    """A callable that gives every key another text than it has; what it replaces stays alive elsewhere."""
    texts = [
        [f"answer {n} of forty characters, or nearly {turn}" for n in range(len(keys))] for turn in range(2)
    ]
    turns = itertools.cycle([list(zip(keys, values, strict=True)) for values in texts])

    def run():
        for key, value in next(turns):
            mapping[key] = value

    run.inner = len(keys)
    return run


def _compare_overwrites(make_rival):
    keys = _text_keys(100_000)
    ours, rival = _filled(lambda: _our_dict(100_000, memory_limit=1 << 34), keys), _filled(make_rival, keys)
    random.Random(2).shuffle(keys)
    return compare(_overwrites(ours, keys), _overwrites(rival, keys))


def claim_overwrite_vs_cachebox():
    """`mapping[key] = text` of a key that is there, byte account on."""
    return _compare_overwrites(lambda: _cachebox_ttl(100_000))


def claim_overwrite_vs_dict():
    """The same beside a dict."""
    return _compare_overwrites(dict)


# Probes in processes of their own


def _probe(name, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, __file__, name, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} {arguments}: {done.stderr}")
    return json.loads(done.stdout)


def _allocated():
    """Bytes that malloc has handed out and not got back, large blocks included."""
    import ctypes

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )]  # fmt: skip

    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        raise NotMeasuredError("the C library has no mallinfo2 (glibc 2.33 or later)") from None
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def probe_bytes(kind, count):
    """Bytes an entry beyond key and value, every entry with a time to live of its own.

    A bounded cache of ours gets a fifth more keys than it holds: what its policy remembers of evicted ones counts.
    """
    count = int(count)
    keys = _text_keys(count + count // 5 if kind == "ours-bounded" else count)
    values = [f"value of {key}" for key in keys]
    lives = [HOUR + n % 1000 for n in range(len(keys))]
    if kind.startswith("ours"):
        from synthex_fast import TTLDict

        mapping = TTLDict(max_size=count if kind == "ours-bounded" else None, ttl=HOUR, memory_limit=1 << 40)
        insert = mapping.set
    elif kind == "cachebox":
        from cachebox import VTTLCache

        mapping = VTTLCache(count)
        insert = mapping.insert
    elif kind == "dict":
        mapping = {}

        def insert(key, value, life):
            mapping[key] = value
    else:
        from cachetools import TLRUCache

        mapping = TLRUCache(count, ttu=lambda key, value, now: now + HOUR)

        def insert(key, value, life):
            mapping[key] = value

    gc.collect()
    before = _allocated()
    for key, value, life in zip(keys, values, lives, strict=True):
        insert(key, value, life)
    gc.collect()
    held = _allocated() - before
    assert len(mapping) == count
    return held / count


def _bytes_per_entry(ours):
    # With every Python allocation made by malloc, one account covers Python, Cython and Rust alike.
    samples = [
        [_probe("probe_bytes", kind, 200_000, PYTHONMALLOC="malloc") for kind in (ours, "cachebox")]
        for _ in range(1 if QUICK else 3)
    ]
    others = {
        kind: _probe("probe_bytes", kind, 200_000, PYTHONMALLOC="malloc") for kind in ("dict", "cachetools")
    }
    note = "bytes; " + ", ".join(f"{kind} {held:.0f}" for kind, held in others.items())
    return paired(samples, note)


def claim_bytes_per_entry_bounded():
    """200,000 entries, per-key time to live and byte account on, `max_size` given."""
    return _bytes_per_entry("ours-bounded")


def claim_bytes_per_entry_unbounded():
    """The same without `max_size`."""
    return _bytes_per_entry("ours-unbounded")


def probe_stall(kind, count):
    """Nanoseconds of single operations after ``count`` entries fell due at one instant."""
    count = int(count)
    operations = 100_000 if QUICK else 500_000
    doomed = [f"doomed:{n}" for n in range(count)]
    live = _text_keys(10_000)
    if kind.startswith("ours"):
        from synthex_fast import TTLDict

        mapping = TTLDict(ttl=HOUR, memory_limit=1 << 40, sweep=kind == "ours-sweep")
        insert = mapping.set
    elif kind == "dict":
        # Nothing expires: how far p99.99 lies from the median on this machine as it is.
        mapping = {}

        def insert(key, value, life):
            mapping[key] = life

    else:
        from cachetools import TLRUCache

        # The package's cache with a time to live for each key: the value says when it falls due.
        mapping = TLRUCache(count * 2, ttu=lambda key, value, now: now + value, timer=monotonic)

        def insert(key, value, life):
            mapping[key] = life

    due = monotonic() + (count * 3e-6 if kind != "cachetools" else count * 15e-6) + 1.0
    for key in doomed:
        insert(key, 0.5, due - monotonic())
    for key in live:
        insert(key, HOUR, HOUR)
    del doomed
    assert monotonic() < due, "filling took too long"
    gc.collect()
    gc.freeze()
    gc.disable()
    fresh = itertools.count()
    get, pop, clock = mapping.get, mapping.pop, perf_counter_ns
    took = []
    append = took.append
    # Up to the instant and a little beyond: the clock may be coarse.
    sleep(max(0.0, due + 0.02 - monotonic()))
    for key in itertools.islice(itertools.cycle(live), operations // 4):
        new = f"fresh:{next(fresh)}"
        start = clock()
        get(key)
        read = clock()
        mapping[new] = HOUR
        set_ = clock()
        get("no such key")
        missed = clock()
        pop(new, None)
        popped = clock()
        append(read - start)
        append(set_ - read)
        append(missed - set_)
        append(popped - missed)
    empty = []
    for _ in range(10_000):
        start = clock()
        empty.append(clock() - start)
    took.sort()
    return {
        "count": len(took),
        "median": took[len(took) // 2],
        "total": sum(took),
        "slowest": took[-len(took) // 50 :],
        # What reading the clock takes belongs to neither side of the ratio.
        "clock": statistics.median(empty),
    }


def _pooled(runs):
    return {
        "count": sum(run["count"] for run in runs),
        "total": sum(run["total"] for run in runs),
        "median": statistics.median(run["median"] - run["clock"] for run in runs),
        "clock": statistics.median(run["clock"] for run in runs),
        "slowest": sorted(itertools.chain.from_iterable(run["slowest"] for run in runs)),
    }


def _quantile_beyond_noise(ours, control, share):
    """The time that at most ``share`` of our operations exceed, interruptions by the machine taken away.

    The machine interrupts any running code at some rate. ``control``, in which nothing can stall, says how
    many interruptions longer than a given time there are in a second of running; as many are expected of
    ours.
    """
    slow, noise = ours["slowest"], control["slowest"]
    for n, limit in enumerate(slow):
        exceeding = len(slow) - n - 1
        interrupted = (len(noise) - bisect.bisect_right(noise, limit)) / control["total"] * ours["total"]
        if exceeding - interrupted <= share * ours["count"]:
            return limit - ours["clock"]
    raise AssertionError("the last one exceeds nothing")


def claim_expiry_stall():
    """1,000,000 entries fall due at once: p99.99 of the operations that follow, over their median.

    The same operations on a dict, in which nothing expires, show how often the machine interrupts; that often
    is expected of ours as well, and what goes beyond is counted.
    """
    count = 200_000 if QUICK else 1_000_000
    # With the sweeper at work and without: the worse of the two is what is claimed.
    kinds = ("ours-sweep", "ours", "dict")
    rounds = [[_probe("probe_stall", kind, count) for kind in kinds] for _ in range(3 if QUICK else 7)]
    runs = {kind: _pooled(column) for kind, column in zip(kinds, zip(*rounds, strict=True), strict=True)}
    results = {}
    for kind in kinds[:2]:
        p9999 = _quantile_beyond_noise(runs[kind], runs["dict"], 1e-4)
        single = [
            _quantile_beyond_noise(_pooled([run[n]]), _pooled([run[2]]), 1e-4) / runs[kind]["median"]
            for run in rounds
            for n in [kinds.index(kind)]
        ]
        low, _, high = statistics.quantiles(single, n=4)
        median = runs[kind]["median"]
        results[kind] = Comparison(p9999, median, p9999 / median, (low, high))
    note = ", ".join(f"{kind} {result.ratio:.1f}" for kind, result in results.items())
    raw = {kind: run["slowest"][-int(run["count"] * 1e-4)] / run["median"] for kind, run in runs.items()}
    note += "; as measured, interruptions included: "
    note += ", ".join(f"{kind} {value:.0f}" for kind, value in raw.items())
    stall = _probe("probe_stall", "cachetools", count)["slowest"][-1]
    note += (
        f"; slowest operation {runs['ours']['slowest'][-1] / 1e3:,.0f} us, cachetools' {stall / 1e3:,.0f} us"
    )
    return max(results.values(), key=lambda result: result.ratio)._replace(note=note)


# Hit ratios

TRACES = Path(os.environ.get("SYNTHEX_TRACES", Path(__file__).resolve().parents[2] / "shared" / "traces"))
CAPACITIES = {"web12": (275, 1_375, 3_439), "orm-busy": (1_526, 7_634, 19_087)}


def _trace(name):
    import numpy

    path = TRACES / f"{name}.trace.xz"
    if not path.exists():
        raise NotMeasuredError(f"{path} is not there")
    keys = numpy.frombuffer(lzma.decompress(path.read_bytes()), dtype=">i4").tolist()
    return keys[:1_000_000] if QUICK else keys


def lru_hits(trace, capacity):
    """Least recently used, on an OrderedDict."""
    cache, hits = OrderedDict(), 0
    for key in trace:
        if key in cache:
            cache.move_to_end(key)
            hits += 1
        else:
            if len(cache) == capacity:
                cache.popitem(last=False)
            cache[key] = None
    return hits


def sieve_hits(trace, capacity):
    """SIEVE: one queue, a visited bit, a hand that moves from tail to head (Zhang et al., NSDI 2024)."""
    # A node is [key, visited, newer, older]; the ring's sentinel stands between head and tail.
    ring = [None, True, None, None]
    ring[2] = ring[3] = ring
    nodes, hand, hits = {}, ring, 0
    for key in trace:
        node = nodes.get(key)
        if node is not None:
            node[1] = True
            hits += 1
            continue
        if len(nodes) == capacity:
            if hand is ring:
                hand = ring[2]
            while hand[1]:
                hand[1] = False
                hand = hand[2]
                if hand is ring:
                    hand = ring[2]
            gone, hand = hand, hand[2]
            gone[3][2], gone[2][3] = gone[2], gone[3]
            del nodes[gone[0]]
        # ring[2] is the oldest entry and ring[3] the newest.
        node = nodes[key] = [key, False, ring, ring[3]]
        ring[3][2] = node
        ring[3] = node
    return hits


def our_hits(trace, capacity, **options):
    """`TTLDict` with the policy given, or its own."""
    from synthex_fast import TTLDict

    cache, hits = TTLDict(max_size=capacity, ttl=HOUR, sweep=False, **options), 0
    get = cache.get
    for key in trace:
        if get(key) is None:
            cache[key] = True
        else:
            hits += 1
    return hits


def claim_hit_ratio():
    """Both traces at three capacities; the ratio is that of the least favourable of the six."""
    samples, shown = [], []
    for name, capacities in CAPACITIES.items():
        trace = _trace(name)
        for capacity in capacities:
            lru, sieve, ours = (
                hits(trace, capacity) / len(trace) for hits in (lru_hits, sieve_hits, our_hits)
            )
            samples.append((ours, max(lru, sieve)))
            shown.append(f"{name} {capacity}: {ours:.4f} (LRU {lru:.4f}, SIEVE {sieve:.4f})")
    ours, best = min(samples, key=lambda pair: pair[0] / pair[1])
    ratios = [a / b for a, b in samples]
    return Comparison(ours, best, ours / best, (min(ratios), max(ratios)), "; ".join(shown))


# Threads


def claim_two_threads_get():
    """Two threads read one dict of 100,000 text keys; on a free-threaded interpreter only."""
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        raise NotMeasuredError("this interpreter has a global lock")
    mapping = _filled(lambda: _our_dict(100_000), _text_keys(100_000))

    def make_work(index):
        # Keys of the thread's own, equal to those stored: what two requests bring with them.
        keys = _text_keys(100_000, seed=index + 2)
        return _each("mapping.get(key)", mapping, keys)

    return scaling(make_work)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
