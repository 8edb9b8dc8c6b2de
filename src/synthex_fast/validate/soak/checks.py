"""What must hold at every simulated hour: accounts, limits, and the floor of memory.

An account is what the service has counted itself, beside what the package says. None may differ at all. A limit is one
that the service has set.

The floor is what remains when everything that the service keeps is released: caches cleared, buffer flushed, pool
emptied, garbage collected. Measuring it in the running service would end every session and restart every TTL, so it is
measured in a forked copy, which then ends (where a system can't fork, it is not measured). Three figures tell it:
memory blocks that the interpreter's allocator has given out, objects that the garbage collector tracks, and resident
bytes. Blocks and objects are exact: a leak of one object in 100,000 requests shows within hours. Resident bytes also
show what no allocator of the interpreter knows of.
"""

import contextlib
import gc
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from synthex_fast import PooledExpertQuery, PooledExpertResponse, TTLDict, _pressure
from synthex_fast.validate import process_memory
from synthex_fast.validate.soak.service import MAX_BATCH, Kept, Service, live_records

CAN_FORK = hasattr(os, "fork")

# How far the floor may rise above its first measurement. Blocks and objects: 0.1 % is the growth allowed in a day, and
# a few dozen come with what happens for the first time later (pressure, a reload, code that the interpreter
# specialises). Bytes: an arena of the allocator is 1 MiB, and one surviving block keeps all of it.
FLOOR_SHARE = 0.001
FLOOR_SLACK = {"blocks": 500, "objects": 100, "bytes": 4 << 20}
# More than a record type keeps.
FREE_RECORDS = 5_000


class Failure(NamedTuple):
    """A check that failed, and what was found instead of what."""

    what: str
    expected: str
    found: str

    def line(self, worker: int, hour: float) -> str:
        return (
            f"{self.what}: expected {self.expected}, found {self.found}, "
            f"in worker {worker + 1} at simulated hour {hour:.2f}"
        )


class Floor(NamedTuple):
    """What remains of memory when all that the service keeps is released."""

    blocks: int
    objects: int
    bytes: int


def _equal(what: str, expected: object, found: object) -> list[Failure]:
    return [] if expected == found else [Failure(what, str(expected), str(found))]


def _at_most(what: str, limit: float | None, found: float) -> list[Failure]:
    return [] if limit is None or found <= limit else [Failure(what, f"at most {limit}", str(found))]


def accounts_and_limits(service: Service) -> list[Failure]:
    """Every check but that of the floor; empty if all is well."""
    service.settle()
    failures = []
    for kept in service.kept():
        failures += _dict(kept)
    failures += _expectations(service)
    failures += _buffer(service)
    failures += _reviews(service)
    failures += _pool(service)
    failures += _records(service)
    failures += _monitor(service)
    return failures


def _dict(kept: Kept) -> list[Failure]:
    name, found = kept.name, kept.dict.stats
    removed = sum(kept.removed.values())
    # A dict without limits, so that nothing is evicted while it is filled; the order of iteration is of no matter.
    fresh: TTLDict[Any, Any] = TTLDict(sweep=False)
    fresh.update(kept.dict)
    failures = _equal(f"{name}: nbytes, counted afresh", fresh.nbytes, kept.dict.nbytes)
    for reason, count in kept.removed.items():
        failures += _equal(f"{name}: entries removed as {reason!r}", count, found[reason])
    failures += _equal(f"{name}: sets", kept.sets, found["sets"])
    failures += _equal(f"{name}: entries", kept.added - kept.deleted - removed, found["entries"])
    failures += _equal(f"{name}: entries iterated over", len(kept.dict), len(fresh))
    failures += _equal(f"{name}: hits + misses", kept.lookups, found["hits"] + found["misses"])
    failures += _equal(f"{name}: hits", kept.hits, found["hits"])
    failures += _at_most(f"{name}: entries", kept.dict.max_size, len(kept.dict))
    failures += _at_most(f"{name}: bytes", kept.dict.memory_limit, kept.dict.nbytes)
    return failures + _at_most(
        f"{name}: bytes under the governor's cap", kept.dict.memory_cap, kept.dict.nbytes
    )


def _expectations(service: Service) -> list[Failure]:
    known = service.expectations
    timed, idle = known.alive(service.clock.now)
    failures = _equal("entries of known life", "", known.wrong)
    failures += _equal("entries of known TTL: alive", timed, len(known.timed.dict))
    return failures + _equal("entries of known idle time: alive", idle, len(known.idle.dict))


def _buffer(service: Service) -> list[Failure]:
    buffer, found = service.buffer, service.buffer.stats
    failures = _equal("buffer: responses added", service.added, found["added"])
    failures += _equal("buffer: batches", service.batches, found["batches"])
    failures += _equal("buffer: responses flushed", service.delivered, found["flushed"])
    failures += _equal("buffer: responses held", service.added - service.delivered, len(buffer))
    failures += _equal("buffer: refused batches", service.too_large + service.paused, found["rejected"])
    failures += _equal("buffer: failed flushes", 0, found["failed"])
    failures += _at_most("buffer: most responses at once", buffer.capacity, found["high_water"])
    return failures + _equal("buffer: batch cap", MAX_BATCH, buffer.max_batch)


def _reviews(service: Service) -> list[Failure]:
    found = service.reviews.stats
    held = service.reviewed - service.reviewed_delivered
    failures = _equal("collector: responses added", service.reviewed, found["added"])
    failures += _equal("collector: responses flushed", service.reviewed_delivered, found["flushed"])
    failures += _equal("collector: responses buffered", held, found["buffered"])
    failures += _at_most("collector: queries", service.reviews.max_queries, found["queries"])
    return failures + _at_most("collector: bytes", service.reviews.memory_limit, found["nbytes"])


def _pool(service: Service) -> list[Failure]:
    pool, found = service.scratch, service.scratch.stats
    acquired = service.requests + service.acquired
    lent = len(service.lent)
    # The first eight were made before anything was acquired.
    failures = _equal("pool: created + reused", acquired + 8, found["created"] + found["reused"])
    alive = found["created"] - found["discarded"] - found["aliased"]
    failures += _equal("pool: idle", alive - lent, found["pool_size"])
    failures += _equal("pool: objects held elsewhere", 0, found["aliased"])
    return failures + _at_most("pool: idle", pool.max_size, len(pool))


def _records(service: Service) -> list[Failure]:
    # Every query is held by the active ones alone; a response by up to four parts, which share it.
    queries = live_records(PooledExpertQuery) - service.queries_before
    failures = _equal("live queries", len(service.active.dict), queries)
    responses = live_records(PooledExpertResponse) - service.responses_before
    held = 5 * len(service.responses.dict)
    failures += _at_most("responses in the cache, of those alive", responses, held)
    elsewhere = len(service.buffer) + 5 * len(service.reviews) + service.reviews.buffered
    return failures + _at_most("live responses", held + elsewhere, responses)


def _monitor(service: Service) -> list[Failure]:
    found, now = service.monitor.stats, service.clock.now
    failures = _equal("monitor: samples", service.samples, found["samples"])
    failures += _equal(
        "monitor: samples in its history", service.samples, int(service.monitor.history()["samples"].sum())
    )
    # The first was taken at 0, and each sets the time of the next.
    least = int(service.sample_due / 60.0)
    most = int(service.sample_due / 5.0) + 1
    if not least <= service.samples <= most:
        failures.append(Failure("monitor: samples", f"{least} to {most}", str(service.samples)))
    failures += _at_most("monitor: seconds between samples", 60.0, service.sample_interval_most)
    if service.sample_interval_least < 5.0:
        failures.append(
            Failure("monitor: seconds between samples", "at least 5", str(service.sample_interval_least))
        )
    if service.sample_due <= now - 1:
        failures.append(Failure("monitor: next sample", f"after {now:.0f} s", f"{service.sample_due:.0f} s"))
    return failures


# ---- The floor ----


def floor(service: Service, release: Callable[[], None] = lambda: None) -> Floor | None:
    """Measure the floor without disturbing the service; None where the system can't fork.

    `release` is called in the copy first: it lets go of what the player of the traffic holds.
    """
    return _floor_of_a_copy(service, release) if CAN_FORK else None


def floor_moved(first: Floor, now: Floor) -> list[Failure]:
    """A failure for each figure that has risen above `first` by more than is allowed."""
    failures = []
    for name, before, after in zip(Floor._fields, first, now, strict=True):
        limit = before + int(before * FLOOR_SHARE) + FLOOR_SLACK[name]
        failures += _at_most(f"floor of memory, {name}", limit, after)
    return failures


def _drained(service: Service) -> Floor:
    service.drain()
    _fill_freelists()
    # What finalisers of the first collection release, the second finds.
    gc.collect()
    gc.collect()
    _pressure.malloc_trim()
    return Floor(sys.getallocatedblocks(), len(gc.get_objects()), anonymous())


def _fill_freelists() -> None:
    """Make the record types keep as many free records as they ever will.

    Otherwise they keep as many as were alive at once, with their lists and dicts, and each busier hour than any before
    would be seen as growth.
    """
    text = "x" * 10
    queries = [
        PooledExpertQuery(text, text, text, context={text: 0}, constraints=[text], tags=[text])
        for _ in range(FREE_RECORDS)
    ]
    responses = [PooledExpertResponse(text, text, metadata={text: 0}) for _ in range(FREE_RECORDS)]
    del queries, responses


def _floor_of_a_copy(service: Service, release: Callable[[], None]) -> Floor:
    read, write = os.pipe()
    with warnings.catch_warnings():
        # The tuner's thread and the sweeper prepare for a fork; the interpreter can't know that.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            release()
            os.write(write, json.dumps(_drained(service)).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if not text:
        raise RuntimeError(f"the copy in which the floor of memory is measured ended with status {status}")
    return Floor(*json.loads(text))


def anonymous() -> int:
    """Resident bytes that belong to this process alone. A forked copy maps its files lazily, so they don't count."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return process_memory.resident()
