"""Garbage: what a request allocates, how much of it is kept, and how often the collector runs in an hour.

With full caches a service frees as much as it allocates, so that what a request allocates is the garbage that it makes,
now or when the caches evict it. Allocations are counted by hooks in the interpreter's allocators (`_allocations`).

How often the collector runs depends on what else is alive. `--collections` serves requests in a process that holds as
many objects as a real service does, and that leaves a cycle behind with each request, as frameworks do. A count of few
collections, or of none, says little of an hour unless enough requests were served: each rate has its 95 % interval,
from the exact limits of a Poisson count (Garwood, 1936).
"""

import contextlib
import gc
import math
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from synthex_fast.validate import _allocations
from synthex_fast.validate.figures import REPORT_RATE, Measure, Target
from synthex_fast.validate.intervals import Interval

ALLOCATION_REQUESTS = 500
# Fewer than the smaller cache has entries: all that they keep is still there at the end.
KEPT_REQUESTS = 400
HEAP_OBJECTS = 1_000_000
OBJECTS_OF_A_NODE = 4
HOUR = 3_600 * REPORT_RATE  # requests
GENERATIONS = 3
# Counts above it have their limits by an approximation.
MANY = 500
# Requests before the time is looked at again.
STRETCH = 200


def allocated(handle: Callable[[Any], Any], requests: Sequence[Any]) -> dict:
    """Bytes and blocks that each of some requests requests from Python's allocators; the caches are full."""
    requests = requests[:ALLOCATION_REQUESTS]
    gc.collect()
    # A collection may empty the interpreter's free lists, at a point that differs between the arms.
    gc.disable()
    _allocations.start()
    try:
        for request in requests:
            handle(request)
    finally:
        requested, blocks = _allocations.stop()
        gc.enable()
    return {"bytes": requested / len(requests), "blocks": blocks / len(requests)}


def kept(handle: Callable[[Any], Any], requests: Sequence[Any]) -> float:
    """Bytes of what a request allocates that are still there when it has been answered; the caches are empty."""
    requests = requests[:KEPT_REQUESTS]
    gc.collect()
    tracemalloc.start()
    try:
        for request in requests:
            handle(request)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(requests)
    finally:
        tracemalloc.stop()


class _Collections:
    """Counts the collector's runs: by generation, inside requests, and the longest pause."""

    def __init__(self):
        self.counts = [0] * GENERATIONS
        self.inside = [0] * GENERATIONS
        self.longest = 0  # nanoseconds
        self.in_request = False
        self._began = 0

    def __call__(self, phase: str, info: dict) -> None:
        if phase == "start":
            self._began = time.perf_counter_ns()
            return
        self.longest = max(self.longest, time.perf_counter_ns() - self._began)
        self.counts[info["generation"]] += 1
        self.inside[info["generation"]] += self.in_request


def long_lived(objects: int) -> list[Any]:
    """About that many objects that the collector tracks: a list of nodes, each with a list, a dict and a tuple.

    >>> len(long_lived(1_000))
    250
    """
    nodes: list[Any] = []
    for number in range(objects // OBJECTS_OF_A_NODE):
        children: list[Any] = []
        nodes.append([{"number": number, "children": children}, (children, number)])
    return nodes


def count_collections(make_service: type, requests: Sequence[Any], seconds: float, objects: int) -> dict:
    """Serve requests for that long beside a long-lived heap of `objects`, and count collections by generation.

    The service is made after the heap, when a process has started up, so that it can freeze it.
    """
    heap = long_lived(objects)
    gc.collect()
    service = make_service()
    answer, sent = service.answer, service.sent
    seen = _Collections()
    served, place = 0, 0
    for request in requests:
        service.handle(request)
    gc.callbacks.append(seen)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(STRETCH):
                seen.in_request = True
                # What a framework keeps for a request, with a callback that refers back to it.
                context = {"request": requests[place], "callbacks": []}
                context["callbacks"].append(context)
                answer(requests[place])
                del context
                seen.in_request = False
                sent()
                place = (place + 1) % len(requests)
            served += STRETCH
    finally:
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(seen)
        service.close()
    del heap
    return {
        "requests": served,
        "heap_objects": objects,
        "by_generation": seen.counts,
        "inside_requests": seen.inside,
        "longest_pause": seen.longest / 1e9,
        "an_hour": [rate(count, served) for count in seen.counts],
    }


def rate(count: int, requests: int) -> dict:
    """Events an hour at the report's rate, from `count` of them in so many requests, with the 95 % interval.

    >>> found = rate(0, 3_600_000)
    >>> found["rate"], found["low"], round(found["high"], 3)
    (0.0, 0.0, 3.689)
    """
    hours = requests / HOUR
    return {
        "rate": count / hours,
        "low": _poisson_mean(count - 1, 0.975) / hours if count else 0.0,
        "high": _poisson_mean(count, 0.025) / hours,
    }


def limits(count: int, requests: int) -> Interval:
    """The 95 % interval of `rate`."""
    found = rate(count, requests)
    return Interval(found["low"], found["high"])


# A table asks several times, until it has found the widths that fit.
@lru_cache(maxsize=256)
def _poisson_mean(count: int, share: float) -> float:
    """The mean of a Poisson distribution of which that share is `count` or less: 0.025 or 0.975 of it."""
    if count > MANY:
        # Wilson and Hilferty, 1931; from here on right to about a millionth, where the sum would take long.
        above = count + 1
        sign = 1 if share < 0.5 else -1
        return above * (1 - 1 / (9 * above) + sign * 1.959964 / (3 * math.sqrt(above))) ** 3
    low, high = 0.0, count + 10.0 * math.sqrt(count + 1) + 20
    for _ in range(60):
        mean = (low + high) / 2
        # With logarithms, since the terms of a large mean underflow.
        total = math.fsum(
            math.exp(number * math.log(mean) - mean - math.lgamma(number + 1)) for number in range(count + 1)
        )
        if total > share:
            low = mean
        else:
            high = mean
    return (low + high) / 2


def run(results: Any, seconds: float, say: Callable[[str, float], None], objects: int = HEAP_OBJECTS) -> None:
    """Fill ``results.garbage``: collections of each arm, which serves for `seconds` beside a long-lived heap."""
    from synthex_fast.validate.rounds import processes

    for place, arm in enumerate(results.arms):
        what, share = f"{arm}: collections beside a long-lived heap", place / len(results.arms)
        with processes((arm,), results.seed) as started:
            process = started[arm]
            process.answer()
            process.order(do="collections", seconds=seconds, objects=objects)
            answer, _ = process.answer(seconds, lambda what=what, share=share: say(what, share))
            results.garbage[arm] = answer


def footnotes(results: Any) -> list[str]:
    """Over how many requests collections were counted, and between what limits an hour's full ones lie."""
    if not results.garbage:
        return []
    said = "; ".join(
        f"{arm} {found['by_generation'][2]} in {found['requests']:,} requests, "
        f"so {full['low']:.1f} to {full['high']:.1f}"
        for arm, found in results.garbage.items()
        for full in [found["an_hour"][2]]
    )
    objects = next(iter(results.garbage.values()))["heap_objects"]
    return [
        f"Collections beside a heap of {objects:,} objects, with a cycle left by each request. Full ones an hour at "
        f"{REPORT_RATE:,} requests/s, with their 95 % limits: {said}. Requests were served as fast as possible."
    ]


def _allocation(read: Callable[[dict], float]) -> Callable[[Any, str], list[float]]:
    return lambda results, arm: [read(found)] if (found := results.allocation.get(arm)) else []


def _counted(read: Callable[[dict], float]) -> Callable[[Any, str], list[float]]:
    return lambda results, arm: [read(found)] if (found := results.garbage.get(arm)) else []


def _full_limits(results: Any, arm: str) -> Interval | None:
    found = results.garbage.get(arm)
    return limits(found["by_generation"][2], found["requests"]) if found else None


MEASURES = (
    Measure(
        "garbage_blocks", "blocks allocated per request [1]", "", _allocation(lambda found: found["blocks"])
    ),
    Measure(
        "garbage_kept",
        "of the bytes, kept until evicted [1]",
        "kB",
        _allocation(lambda found: found["kept_bytes"] / 1e3),
    ),
    Measure(
        "garbage_bytes",
        "of the bytes, freed within the request [1]",
        "kB",
        _allocation(lambda found: max(0.0, found["bytes"] - found["kept_bytes"]) / 1e3),
    ),
    *(
        Measure(
            f"hourly_collections_{generation}",
            "collections/h at 1,000/s, long-lived heap, gen 0/1/2",
            "",
            _counted(lambda found, generation=generation: found["an_hour"][generation]["rate"]),
            in_line=generation > 0,
        )
        for generation in range(GENERATIONS)
    ),
    Measure(
        "hourly_full_collections",
        "full collections/h, long-lived heap",
        "",
        _counted(lambda found: found["an_hour"][2]["rate"]),
        "12-15",
        "< 5",
        Target("below", 5),
        reach=Target("below", 5),
        limits=_full_limits,
    ),
    Measure(
        "hourly_inside",
        "full collections inside requests, long-lived heap",
        "",
        _counted(lambda found: float(found["inside_requests"][2])),
        # A number of whole collections.
        reach=Target("below", 0.5),
    ),
    Measure(
        "hourly_pause",
        "longest pause, long-lived heap",
        "ms",
        _counted(lambda found: 1e3 * found["longest_pause"]),
    ),
)
