"""A near cache for Valkey and Redis against what it replaces: a bare `TTLDict`, and the client asked each time.

    python bench/bench_tiered.py [--quick]

Starts a redis-server on loopback; needs that and the package `redis`.
"""

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress

import measure
from measure import NotMeasuredError, compare, statement

KEYS = 1000


@contextmanager
def server():
    """A server of the bench's own; yields its URL."""
    if shutil.which("redis-server") is None:
        raise NotMeasuredError("redis-server is not installed")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                end = time.monotonic() + 10
                while time.monotonic() < end:
                    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                        break
                    time.sleep(0.01)
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                process.terminate()


def _filled(cache):
    for n in range(KEYS):
        cache[f"key-{n}"] = f"value-{n}"
    return cache


def _hits(cache):
    from itertools import cycle

    # Equal texts, but not the same as those under which the values were stored: a service makes them anew.
    key = cycle([f"key-{n}" for n in range(KEYS)]).__next__
    return statement("get(key())", get=cache.get, key=key)


def claim_local_hit_vs_dict():
    """`get` of a key with a local copy, against a `TTLDict` with the same entries."""
    from synthex_fast import TTLDict
    from synthex_fast.tiered import TieredCache

    with server() as url, TieredCache(url, 10 * KEYS, ttl=3600) as cache:
        return compare(_hits(_filled(cache)), _hits(_filled(TTLDict(10 * KEYS, ttl=3600))))


def claim_local_hit_vs_client():
    """The same, against the client's `get`."""
    import redis

    from synthex_fast.tiered import TieredCache

    with server() as url, TieredCache(url, 10 * KEYS) as cache, redis.Redis.from_url(url) as client:
        _filled(cache)
        return _by_the_clock(lambda: cache.get("key-1"), lambda: client.get("cache:key-1"))


def claim_awaited_hit_vs_dict():
    """`await cache.get` of a key with a local copy, against a `TTLDict`'s `get`, both in a coroutine."""
    from synthex_fast import TTLDict
    from synthex_fast.tiered import AsyncTieredCache

    async def hits(get):
        for _ in range(1000):
            await get("key-1")

    async def plain(get):
        for _ in range(1000):
            get("key-1")

    def driven(function, get):
        def run():
            with suppress(StopIteration):
                function(get).send(None)

        run.inner = 1000
        return run

    with server() as url:
        cache = AsyncTieredCache(url)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(cache.set("key-1", "value"))
        found = compare(driven(hits, cache.get), driven(plain, _filled(TTLDict()).get))
        loop.run_until_complete(cache.close())
        loop.close()
        return found


def claim_miss_vs_client():
    """A key that has to be fetched, against the client's `get` of it: two threads' turns instead of one."""
    import redis

    from synthex_fast.tiered import TieredCache

    with server() as url, TieredCache(url) as cache, redis.Redis.from_url(url) as client:
        _filled(cache)

        def miss():
            cache.local.clear()
            cache.get("key-1")

        return _by_the_clock(miss, lambda: client.get("cache:key-1"))


def _by_the_clock(ours, rival):
    """Both wait for another process or thread, so what counts is the time that passes."""
    samples = []
    for n in range(measure.ROUNDS):
        took = {}
        for call in (ours, rival) if n % 2 else (rival, ours):
            start = time.perf_counter_ns()
            for _ in range(20):
                call()
            took[call] = (time.perf_counter_ns() - start) / 20
        samples.append((took[ours], took[rival]))
    return measure.paired(samples)


def main():
    if "--quick" in sys.argv[1:]:
        measure.QUICK, measure.ROUNDS = True, 41
    for name, claim in list(globals().items()):
        if name.startswith("claim_"):
            found = claim()
            low, high = found.spread
            print(
                f"{claim.__doc__.splitlines()[0]}\n    {found.ratio:.3f} times ({low:.3f} - {high:.3f}); "
                f"{found.ours_ns:,.0f} ns against {found.rival_ns:,.0f} ns"
            )


if __name__ == "__main__":
    main()
