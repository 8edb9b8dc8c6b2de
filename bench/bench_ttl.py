"""The claims about `TTLDict`: speed compared with dict and cachebox, bytes, pauses, hit ratios, threads.

Run as a script with the name of a probe, it measures one figure in a process of its own and prints it as
JSON, since earlier allocations of a process would change memory figures and pauses.
"""

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
from time import monotonic, perf_counter_ns, sleep, thread_time_ns

from measure import QUICK, Comparison, NotMeasuredError, compare, paired, scaling

HOUR = 3600.0


# Speed


def _text_keys(count, seed=1):
    """Keys like a service's, in an order that is unrelated to their addresses."""
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
    """A callable that runs ``source`` (an expression of ``mapping`` and ``key``) for every key, eight a turn."""
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
    """`get` of present keys, 100,000 text keys."""
    return _compare_reads("mapping.get(key)", lambda: _our_dict(100_000), dict)


def claim_get_vs_cachebox():
    """The same compared with the fastest cache package."""
    return _compare_reads("mapping.get(key)", lambda: _our_dict(100_000), lambda: _cachebox_ttl(100_000))


def claim_subscript_vs_dict():
    """`mapping[key]`, for which the interpreter has a specialised instruction if the mapping is a dict."""
    return _compare_reads("mapping[key]", lambda: _our_dict(100_000), dict)


def _overwrites(mapping, keys):
    """A callable that replaces every key's text; the replaced texts stay alive elsewhere."""
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
    """`mapping[key] = text` of a present key, with byte accounting."""
    return _compare_overwrites(lambda: _cachebox_ttl(100_000))


def claim_overwrite_vs_dict():
    """The same compared with a dict."""
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
    """Bytes that malloc has allocated and that are not freed yet, large blocks included."""
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

    A bounded TTLDict gets a fifth more keys than it holds, so that its memory of evicted keys counts too.
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
    # With every Python allocation made by malloc, one count covers Python, Cython and Rust alike.
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
    """200,000 entries with a TTL each, byte accounting and `max_size`."""
    return _bytes_per_entry("ours-bounded")


def claim_bytes_per_entry_unbounded():
    """The same without `max_size`."""
    return _bytes_per_entry("ours-unbounded")


def _resident():
    """Bytes of this process that are in memory, exactly: the figure in ``statm`` lags behind."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        raise NotMeasuredError("resident memory is read from /proc/self/smaps_rollup") from None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


def probe_resident(kind, count):
    """Growth of resident memory an entry: integer keys made beforehand, one value for all of them.

    Also what the dict itself counts for an entry beyond its key, and how much the process grew when the mapping
    was made: the first dict with a TTL loads the sweeper, once.
    """
    count = int(count)
    keys = list(range(10**6, 10**6 + count))
    value = "the value of all keys"
    _resident()
    empty = _resident()
    if kind == "dict":
        mapping = {}
    elif kind == "cachebox":
        from cachebox import TTLCache

        mapping = TTLCache(count, HOUR)
    else:
        from synthex_fast import TTLDict

        limits = {"max_size": count} if kind == "ours" else {}
        mapping = TTLDict(ttl=HOUR, memory_limit=1 << 40, **limits)
    before = _resident()
    for key in keys:
        mapping[key] = value
    after = _resident()
    counted = 0
    if kind.startswith("ours"):
        plain = TTLDict(sizeof=lambda key, value: 0)
        plain[0] = value
        counted = plain.nbytes
    return {"held": (after - before) / count, "counted": counted, "once": before - empty}


def claim_resident_bytes_per_entry():
    """200,000 integer keys and one shared value, `max_size`, `ttl` and `memory_limit` given, in a new process.

    The figure is the growth of the process's resident memory, next to what ``nbytes`` counts for the same.
    """
    rounds = [
        [_probe("probe_resident", kind, 200_000) for kind in ("ours", "cachebox")]
        for _ in range(1 if QUICK else 5)
    ]
    ours = rounds[0][0]
    unbounded, plain = (
        _probe("probe_resident", kind, 200_000)["held"] for kind in ("ours-unbounded", "dict")
    )
    note = (
        f"bytes of resident memory; nbytes counts {ours['counted']}; without max_size {unbounded:.1f}, "
        f"dict {plain:.1f}; the first dict with a ttl also loads the sweeper, {ours['once'] / 1e3:,.0f} kB once"
    )
    return paired([[run["held"] for run in pair] for pair in rounds], note)


def probe_stall(kind, count, clock="thread", texts="kept"):
    """Nanoseconds of single operations after ``count`` entries fell due at one instant.

    ``clock`` is "thread" (the thread's CPU time, which stops while other threads and processes run) or "wall".
    With ``texts`` "freed", the expired keys are freed with their entries.
    """
    count = int(count)
    clock = thread_time_ns if clock == "thread" else perf_counter_ns
    operations = 100_000 if QUICK else 500_000
    doomed = [f"doomed:{n}" for n in range(count)]
    live = _text_keys(10_000)
    if kind.startswith("ours"):
        from synthex_fast import TTLDict

        mapping = TTLDict(ttl=HOUR, memory_limit=1 << 40, sweep=kind == "ours-sweep")
        insert = mapping.set
    elif kind == "dict":
        # Nothing expires: what this machine does to operations that can't stall.
        mapping = {}

        def insert(key, value, life):
            mapping[key] = life

    else:
        from cachetools import TLRUCache

        # The package's cache with a TTL for each key: the value says when it falls due.
        mapping = TLRUCache(count * 2, ttu=lambda key, value, now: now + value, timer=monotonic)

        def insert(key, value, life):
            mapping[key] = life

    due = monotonic() + (count * 3e-6 if kind != "cachetools" else count * 15e-6) + 1.0
    for key in doomed:
        insert(key, 0.5, due - monotonic())
    for key in live:
        insert(key, HOUR, HOUR)
    if texts == "freed":
        del doomed
    assert monotonic() < due, "filling took too long"
    gc.collect()
    gc.freeze()
    gc.disable()
    fresh = itertools.count()
    get, pop = mapping.get, mapping.pop
    took = []
    append = took.append
    # Until a little after the instant: the dict's clock may be coarse.
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
        "median": took[len(took) // 2],
        "p9999": took[-len(took) // 10_000],
        "slowest": took[-1],
        # The time to read the clock, which is part of the other figures.
        "clock": statistics.median(empty),
    }


STALL_COUNT = 200_000 if QUICK else 1_000_000


def _stalls(kinds, rounds):
    """{kind: its runs}; the kinds take turns."""
    runs = [[_probe("probe_stall", kind, STALL_COUNT) for kind in kinds] for _ in range(rounds)]
    return dict(zip(kinds, zip(*runs, strict=True), strict=True))


def _micro(run):
    return f"median {run['median'] / 1e3:.2f}, p99.99 {run['p9999'] / 1e3:,.1f}, slowest {run['slowest'] / 1e3:,.0f} us"


def _least(values):
    """(the least of the rounds, lower and upper quartile).

    A stall that the dict causes appears in every round. An interrupt that the kernel charges to the thread, or a
    CPU cache that another process has displaced, appears in some. The least disturbed round leaves those out.
    """
    low, _, high = statistics.quantiles(values, n=4)
    return min(values), low, high


def claim_expiry_p9999():
    """1,000,000 entries fall due at once: p99.99 of the operations that follow, over their median.

    Each operation is measured in the thread's CPU time, clock reading included. The figure is that of the least
    disturbed round, with the sweeper or without it, whichever is worse.
    """
    runs = _stalls(("ours-sweep", "ours", "dict"), 3 if QUICK else 5)
    results = {}
    for kind, column in runs.items():
        ratio, low, high = _least([run["p9999"] / run["median"] for run in column])
        best = min(column, key=lambda run: run["p9999"] / run["median"])
        results[kind] = Comparison(best["p9999"], best["median"], ratio, (low, high))
    plain = results.pop("dict")
    clock = statistics.median(run["clock"] for run in runs["ours"])
    ours = max(results.values(), key=lambda result: result.ratio)
    wall = {kind: _probe("probe_stall", kind, STALL_COUNT, "wall") for kind in ("ours", "dict")}
    note = (
        ", ".join(f"{kind} {result.ratio:.1f}" for kind, result in results.items())
        + f"; dict, in which nothing expires, {plain.ratio:.1f}"
        + f"; CPU time with its clock's own {clock / 1e3:.2f} us, without it "
        + f"{(ours.ours_ns - clock) / (ours.rival_ns - clock):.1f} (dict "
        + f"{(plain.ours_ns - clock) / (plain.rival_ns - clock):.1f}); wall clock, for information: ours "
        + _micro(wall["ours"]) + "; dict " + _micro(wall["dict"])
    )  # fmt: skip
    return ours._replace(note=note)


def claim_expiry_slowest():
    """The slowest of the same operations in CPU time, in the least disturbed round, compared with a plain dict's."""
    runs = _stalls(("ours-sweep", "ours", "dict"), 3)
    slowest = {kind: [run["slowest"] for run in column] for kind, column in runs.items()}
    least = {kind: _least(values) for kind, values in slowest.items()}
    ours, low, high = max(least["ours-sweep"], least["ours"])
    plain = least["dict"][0]
    freed = _probe("probe_stall", "ours", STALL_COUNT, "thread", "freed")
    other = _probe("probe_stall", "cachetools", STALL_COUNT)["slowest"]
    note = (
        ", ".join(f"{kind} {'/'.join(f'{v / 1e3:,.0f}' for v in values)}" for kind, values in slowest.items())
        + f" us in {len(slowest['ours'])} rounds; where the expired keys are freed as well, "
        + f"{freed['slowest'] / 1e3:,.0f} us (the interpreter returns whole arenas of 1 MB to the kernel); "
        + f"cachetools {other / 1e3:,.0f} us"
    )
    return Comparison(ours, plain, ours / plain, (low / plain, high / plain), note)


# Hit ratios

TRACES = Path(os.environ.get("SYNTHEX_TRACES", Path(__file__).resolve().parents[2] / "shared" / "traces"))
CAPACITIES = {"web12": (275, 1_375, 3_439), "orm-busy": (1_526, 7_634, 19_087)}


def _trace(name):
    import numpy

    path = TRACES / f"{name}.trace.xz"
    if not path.exists():
        raise NotMeasuredError(f"{path} is missing")
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
    # A node is [key, visited, newer, older]; the ring's sentinel is between head and tail.
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
            evicted, hand = hand, hand[2]
            evicted[3][2], evicted[2][3] = evicted[2], evicted[3]
            del nodes[evicted[0]]
        # ring[2] is the oldest entry and ring[3] the newest.
        node = nodes[key] = [key, False, ring, ring[3]]
        ring[3][2] = node
        ring[3] = node
    return hits


def our_hits(trace, capacity, **options):
    """`TTLDict`, with its default policy unless `options` name one."""
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
        # Each thread has its own keys, equal to the stored ones, as two requests would.
        keys = _text_keys(100_000, seed=index + 2)
        return _each("mapping.get(key)", mapping, keys)

    return scaling(make_work)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
