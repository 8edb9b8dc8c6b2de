"""Measures the figures of the README's section "The report, read carefully": ``python bench/slips.py``.

Needs ``pip install '.[bench]'``.
"""

import gc
import statistics
import sys
import tracemalloc
import weakref
from datetime import datetime
from time import perf_counter
from typing import Any
from uuid import uuid4

import psutil
from pydantic import BaseModel, Field


class Query(BaseModel):
    """Shaped like the report's query, with the checks that the system in the report makes."""

    id: str = Field(default_factory=lambda: str(uuid4()))
    title: str = Field(min_length=1, max_length=200)
    content: str = Field(min_length=10, max_length=10_000)
    requester: str = Field(min_length=1)
    query_type: str = "general"
    priority: str = "medium"
    context: dict[str, Any] = Field(default_factory=dict)
    constraints: list[str] = Field(default_factory=list)
    deadline: datetime | None = None
    tags: list[str] = Field(default_factory=list)
    created_at: datetime = Field(default_factory=lambda: datetime.now().astimezone())


TITLE, CONTENT = "How should the connection pool be sized?", "Some text. " * 50


def _query():
    return Query(
        title=TITLE,
        content=CONTENT,
        requester="circle",
        context={"service": "billing", "region": "eu", "attempt": 1, "budget": 0.5, "trace": "abc"},
        constraints=["no downtime", "one region", "two reviewers"],
        tags=["database", "pooling", "latency"],
    )


def bytes_of_a_query():
    """What one validated query allocates, its texts not included: the report says 0.1056 KB."""
    count = 2_000
    _query()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [_query() for _ in range(count)]
    held = (tracemalloc.get_traced_memory()[0] - before) / count
    tracemalloc.stop()
    shallow = sys.getsizeof(kept[0])
    return (
        f"one query holds {held:,.0f} bytes besides its texts (sys.getsizeof of it: {shallow}); "
        f"at 1,000 requests/s that is {held / 1e3:,.1f} MB/s; the report's 105.6 bytes would be 0.1056 MB/s"
    )


def share_of_sampling():
    """What one sample a second costs: the report says 2.5 ms a sample, and 2 to 5 % of a core."""
    process = psutil.Process()
    times = []
    for _ in range(200):
        start = perf_counter()
        process.memory_info()
        process.memory_percent()
        psutil.virtual_memory()
        times.append(perf_counter() - start)
    sample = statistics.median(times)
    return (
        f"2.5 ms a second is {2.5e-3:.2%} of a core; one sample took {sample * 1e3:.3f} ms here, "
        f"{sample:.4%} of a core at one a second"
    )


def two_owners_are_no_cycle():
    """Whether two objects that share a third wait for the collector."""

    class Drive:
        pass

    class Owner:
        def __init__(self, drive):
            self.drive = drive

    gc.collect()
    gc.disable()
    try:
        drive = Drive()
        gone = weakref.ref(drive)
        handler, collector = Owner(drive), Owner(drive)
        del drive, handler, collector
        freed = gone() is None
    finally:
        gc.enable()
    return f"two owners of one drive, dropped with the collector off: the drive is {'freed' if freed else 'kept'}"


def variance_has_a_unit():
    """The same stable memory readings in two units."""
    readings = [512.0 + n % 3 * 0.4 for n in range(10)]  # MB
    in_bytes = [r * 2**20 for r in readings]
    cv = statistics.pstdev(readings) / statistics.fmean(readings)
    return (
        f"ten readings around 512 MB: variance {statistics.pvariance(readings):.3f} in MB, "
        f"{statistics.pvariance(in_bytes):.2e} in bytes; coefficient of variation {cv:.5f} in both"
    )


def collector_of_this_interpreter():
    """Which of CPython's collectors runs here."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        kind = "the free-threaded build's own: one generation, all threads stopped"
    elif (3, 14, 0) <= sys.version_info < (3, 14, 5):
        kind = "the incremental one (3.14.0 to 3.14.4)"
    else:
        kind = "the one with three generations"
    return f"CPython {sys.version.split()[0]} has {kind}; thresholds {gc.get_threshold()}"


if __name__ == "__main__":
    for measure in (
        bytes_of_a_query,
        share_of_sampling,
        two_owners_are_no_cycle,
        variance_has_a_unit,
        collector_of_this_interpreter,
    ):
        print(f"{measure.__name__}: {measure()}")
