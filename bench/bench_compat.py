"""`synthex_fast.compat.cachetools` against the package whose names it has, at its newest version.

    python bench/bench_compat.py [--quick]

Needs the package `cachetools`.
"""

import sys
from itertools import cycle

import measure
from measure import compare, statement

KEYS = [f"key-{n}" for n in range(1000)]


def _pair():
    import cachetools as theirs

    from synthex_fast.compat import cachetools as ours

    return ours, theirs


def _filled(cache):
    for key in KEYS:
        cache[key] = key
    return cache


def _each(source, make):
    """The statement with a full cache of each package."""
    return [
        statement(source, cache=cache, get=cache.get, key=cycle(KEYS).__next__)
        for cache in (_filled(make(package)) for package in _pair())
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


def main():
    if "--quick" in sys.argv[1:]:
        measure.QUICK, measure.ROUNDS = True, 41
    for name, claim in list(globals().items()):
        if name.startswith("claim_"):
            found = claim()
            low, high = found.spread
            print(
                f"{found.ratio:.2f} times ({low:.2f} - {high:.2f}); {found.ours_ns:,.0f} ns against "
                f"{found.rival_ns:,.0f} ns. {claim.__doc__}"
            )


if __name__ == "__main__":
    main()
