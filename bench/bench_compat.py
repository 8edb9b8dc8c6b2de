"""`synthex_fast.compat` against the packages whose names it has, at their newest versions.

    python bench/bench_compat.py [cachetools | cachebox] [--quick]

Needs the packages `cachetools` and `cachebox`, or the one that is named.
"""

import sys
import tracemalloc
from importlib import import_module
from itertools import cycle

import measure
from measure import compare, statement

KEYS = [f"key-{n}" for n in range(1000)]


def _pair(name="cachetools"):
    return import_module(f"synthex_fast.compat.{name}"), import_module(name)


def _filled(cache):
    for key in KEYS:
        cache[key] = key
    return cache


def _each(source, make, name="cachetools"):
    """The statement with a full cache of each package."""
    return [
        statement(
            source,
            cache=cache,
            get=cache.get,
            insert=getattr(cache, "insert", None),
            key=cycle(KEYS).__next__,
        )
        for cache in (_filled(make(package)) for package in _pair(name))
    ]


def _lru(package):
    return package.LRUCache(1000)


def _ttl(package):
    return package.TTLCache(1000, 3600)


def claim_lru_get():
    """`LRUCache`: cache[key] of a key that is there."""
    return compare(*_each("cache[key()]", _lru))


def claim_lru_get_method():
    """`LRUCache`: cache.get(key)."""
    return compare(*_each("get(key())", _lru))


def claim_lru_set():
    """`LRUCache`: cache[key] = value, replacing."""
    return compare(*_each("k = key(); cache[k] = k", _lru))


def claim_lru_evict():
    """`LRUCache`: cache[key] = value of a new key, which evicts another."""
    return compare(*_each("k = key(); cache[k] = k", lambda package: package.LRUCache(500)))


def claim_ttl_get():
    """`TTLCache`: cache[key] of a key that is there."""
    return compare(*_each("cache[key()]", _ttl))


def claim_ttl_get_method():
    """`TTLCache`: cache.get(key)."""
    return compare(*_each("get(key())", _ttl))


def claim_ttl_set():
    """`TTLCache`: cache[key] = value, replacing."""
    return compare(*_each("k = key(); cache[k] = k", _ttl))


def claim_ttl_evict():
    """`TTLCache`: cache[key] = value of a new key, which evicts another."""
    return compare(*_each("k = key(); cache[k] = k", lambda package: package.TTLCache(500, 3600)))


def claim_lfu_get():
    """`LFUCache`: cache[key] of a key that is there."""
    return compare(*_each("cache[key()]", lambda package: package.LFUCache(1000)))


def claim_cached_hit():
    """A hit of a function decorated with `cached(LRUCache(...))`."""
    return compare(
        *[
            statement("call(3)", call=call)
            for call in (package.cached(package.LRUCache(100))(lambda n: n) for package in _pair())
        ]
    )


# --- cachebox ---


def _box(kind, size=1000):
    ttl = (3600,) if kind == "TTLCache" else ()
    return lambda package: getattr(package, kind)(size, *ttl)


def claim_cachebox_lru_get():
    """`LRUCache`: cache.get(key)."""
    return compare(*_each("get(key())", _box("LRUCache"), "cachebox"))


def claim_cachebox_lru_getitem():
    """`LRUCache`: cache[key]."""
    return compare(*_each("cache[key()]", _box("LRUCache"), "cachebox"))


def claim_cachebox_lru_replace():
    """`LRUCache`: cache.insert(key, value), replacing."""
    return compare(*_each("k = key(); insert(k, k)", _box("LRUCache"), "cachebox"))


def claim_cachebox_lru_evict():
    """`LRUCache`: cache.insert(key, value) of a new key, which evicts another."""
    return compare(*_each("k = key(); insert(k, k)", _box("LRUCache", 500), "cachebox"))


def claim_cachebox_ttl_get():
    """`TTLCache`: cache.get(key)."""
    return compare(*_each("get(key())", _box("TTLCache"), "cachebox"))


def claim_cachebox_ttl_replace():
    """`TTLCache`: cache.insert(key, value), replacing."""
    return compare(*_each("k = key(); insert(k, k)", _box("TTLCache"), "cachebox"))


def claim_cachebox_ttl_evict():
    """`TTLCache`: cache.insert(key, value) of a new key, which evicts another."""
    return compare(*_each("k = key(); insert(k, k)", _box("TTLCache", 500), "cachebox"))


def claim_cachebox_vttl_replace():
    """`VTTLCache`: cache.insert(key, value, 60), replacing."""
    return compare(*_each("k = key(); insert(k, k, 60)", _box("VTTLCache"), "cachebox"))


def claim_cachebox_lfu_get():
    """`LFUCache`: cache.get(key)."""
    return compare(*_each("get(key())", _box("LFUCache"), "cachebox"))


def claim_cachebox_lfu_evict():
    """`LFUCache`: cache.insert(key, value) of a new key, which evicts another."""
    return compare(*_each("k = key(); insert(k, k)", _box("LFUCache", 500), "cachebox"))


def _box_calls(source):
    return [
        statement(source, call=call)
        for call in (
            package.cached(package.LRUCache(100))(lambda *args: len(args)) for package in _pair("cachebox")
        )
    ]


def claim_cachebox_cached_hit():
    """A hit of a function decorated with `cached(LRUCache(...))`, one int."""
    return compare(*_box_calls("call(3)"))


def claim_cachebox_cached_hit_two():
    """A hit of a function decorated with `cached(LRUCache(...))`, two arguments."""
    return compare(*_box_calls("call(3, 4)"))


def bytes_per_entry(package, kind, count=100_000):
    """Of this package's caches, what the interpreter's allocators have given them. Rust allocates elsewhere."""
    keys = list(range(10**6, 10**6 + count))
    cache = _box(kind, count)(package)
    tracemalloc.start()
    for key in keys:
        cache[key] = None
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held / count


def main():
    arguments = sys.argv[1:]
    if "--quick" in arguments:
        measure.QUICK, measure.ROUNDS = True, 41
    wanted = [name for name in ("cachetools", "cachebox") if name in arguments] or ["cachetools", "cachebox"]
    for name, claim in list(globals().items()):
        if not name.startswith("claim_"):
            continue
        of = "cachebox" if name.startswith("claim_cachebox_") else "cachetools"
        if of in wanted:
            found = claim()
            low, high = found.spread
            print(
                f"{found.ratio:.2f} times ({low:.2f} - {high:.2f}); {found.ours_ns:,.0f} ns against "
                f"{found.rival_ns:,.0f} ns. {of}: {claim.__doc__}"
            )
    if "cachebox" in wanted:
        ours, theirs = _pair("cachebox")
        for kind in ("LRUCache", "TTLCache", "VTTLCache"):
            # What cachebox counts itself is what it allocates.
            count = 100_000
            full = _box(kind, count)(theirs)
            full.update((n, None) for n in range(count))
            print(
                f"{bytes_per_entry(ours, kind):.0f} bytes an entry of a {kind} beside key and value; cachebox says "
                f"{full.__sizeof__() / count:.0f}."
            )


if __name__ == "__main__":
    main()
