"""Byte accounting: `sizeof` against walkers in plain Python, and against `sys.getsizeof` of each part.

``python bench/bench_sizeof.py`` prints nanoseconds per object and how far the account is from tracemalloc.
"""

import gc
import json
import random
import string
import sys
import tracemalloc

from measure import compare, statement

from synthex_fast._sizeof import sizeof, sizeof_pair


def words(seed):
    source = random.Random(seed)
    return lambda length: "".join(source.choices(string.ascii_lowercase, k=length))


def answers(count):
    """JSON text of that many answers, about 450 bytes each."""
    source, word = random.Random(count), words(count)

    def answer():
        return {
            "expert": word(12),
            "confidence": source.random(),
            "tokens": source.randrange(10**6),
            "tags": [word(6) for _ in range(3)],
            "ok": True,
            "content": word(200),
            "error": None,
            "vector": [source.random() for _ in range(8)],
        }

    return json.dumps({"id": word(36), "answers": [answer() for _ in range(count)]})


class Answer:
    def __init__(self, i):
        self.expert = words(i)(12)
        self.confidence = i + 0.5
        self.metadata = {"model": words(i)(8), "latency": i + 0.25}


SMALL, LARGE = json.loads(answers(3)), json.loads(answers(100))
METADATA = {"model": words(1)(12), "tokens": 3000, "latency": 1.5, "note": words(2)(30)}
INSTANCES = [Answer(i) for i in range(100)]


def parts(value):
    """Every object that a walk visits, one entry for each reference to it."""
    found, waiting = [], [value]
    while waiting:
        o = waiting.pop()
        found.append(o)
        if isinstance(o, dict):
            waiting += [*o.keys(), *o.values()]
        elif isinstance(o, (list, tuple, set, frozenset)):
            waiting += o
        elif hasattr(o, "__dict__"):
            waiting += gc.get_referents(o)[:-1]
    return found


def recursive(value, seen):
    """The walker that recipes and caches use: recursion, a set of ids, `sys.getsizeof` of each object."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    nbytes = sys.getsizeof(value)
    if isinstance(value, dict):
        for key, item in value.items():
            nbytes += recursive(key, seen) + recursive(item, seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            nbytes += recursive(item, seen)
    elif hasattr(value, "__dict__"):
        nbytes += recursive(value.__dict__, seen)
    return nbytes


def referents(value):
    """The walker built on the collector: `gc.get_referents` of a whole level at a time."""
    seen, level, nbytes = set(), [value], 0
    while level:
        fresh = {id(o): o for o in level if id(o) not in seen and not isinstance(o, type)}
        seen.update(fresh)
        nbytes += sum(map(sys.getsizeof, fresh.values()))
        level = gc.get_referents(*fresh.values())
    return nbytes


def against_recursion(value, inner):
    ours = statement("sizeof(value)", inner=inner, sizeof=sizeof, value=value)
    rival = statement("walk(value, set())", inner=10, walk=recursive, value=value)
    return compare(ours, rival)


def claim_small_json_against_recursion():
    """A parsed answer of 1.5 KB against the recursive walker in Python."""
    return against_recursion(SMALL, 1000)


def claim_large_json_against_recursion():
    """Parsed answers of 45 KB against the recursive walker in Python."""
    return against_recursion(LARGE, 100)


def claim_large_json_against_referents():
    """Parsed answers of 45 KB against `gc.get_referents` level by level."""
    ours = statement("sizeof(value)", inner=100, sizeof=sizeof, value=LARGE)
    rival = statement("walk(value)", inner=10, walk=referents, value=LARGE)
    return compare(ours, rival)


def claim_instances_against_recursion():
    """A hundred instances with attributes against the recursive walker in Python."""
    return against_recursion(INSTANCES, 100)


def claim_large_json_against_getsizeof_of_each_part():
    """Parsed answers of 45 KB against `sys.getsizeof` of each part, the parts listed beforehand."""
    ours = statement("sizeof(value)", inner=100, sizeof=sizeof, value=LARGE)
    rival = statement("sum(map(getsizeof, parts))", inner=10, getsizeof=sys.getsizeof, parts=parts(LARGE))
    return compare(ours, rival)


def claim_text_pair_against_getsizeof():
    """A text key and a text value, as a dict counts them, against `sys.getsizeof` of the value alone."""
    key, value = words(3)(20), words(4)(200)
    ours = statement("pair(key, value)", pair=sizeof_pair, key=key, value=value)
    rival = statement("getsizeof(value)", getsizeof=sys.getsizeof, value=value)
    return compare(ours, rival)


def claim_metadata_against_getsizeof_of_each_part():
    """A flat dict of four keys against `sys.getsizeof` of its nine parts, listed beforehand."""
    ours = statement("sizeof(value)", sizeof=sizeof, value=METADATA)
    rival = statement("sum(map(getsizeof, parts))", getsizeof=sys.getsizeof, parts=parts(METADATA))
    return compare(ours, rival)


def error_against_tracemalloc(make, times=200):
    kept = [make(i) for i in range(100)]
    values = [None] * times
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(times):
        values[i] = make(i)
    allocated = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    del kept
    return sum(map(sizeof, values)) / allocated - 1, allocated / times


def main():
    print(f"{'value':<12} {'objects':>8} {'ns each':>8} {'of recursion':>13}")
    for name, value in {
        "1.5 KB": SMALL,
        "45 KB": LARGE,
        "metadata": METADATA,
        "instances": INSTANCES,
    }.items():
        result = against_recursion(value, 100)
        count = len(parts(value))
        print(f"{name:<12} {count:>8} {result.ours_ns / count:>8.1f} {result.ratio:>13.4f}")
    small, large = answers(3), answers(100)
    for name, make in {
        "1.5 KB": lambda i: json.loads(small),
        "45 KB": lambda i: json.loads(large),
        "instances": lambda i: [Answer(i + j) for j in range(20)],
        "floats": lambda i: [[i + j * 0.5 for j in range(20)] for _ in range(50)],
    }.items():
        error, allocated = error_against_tracemalloc(make)
        print(f"{name:<12} {allocated:>8.0f} bytes by tracemalloc, account {error:+.2%}")


if __name__ == "__main__":
    main()
