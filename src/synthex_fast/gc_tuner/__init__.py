"""GCTuner: keeps the cyclic garbage collector out of requests, within a time budget and a memory limit.

Prior art. Freezing what start-up made and raising the threshold is what large Python services do by hand (Instagram's
``gc.freeze``). Running no major collection inside a request is Shopify's practice for Ruby ("Ruby Out-of-Band GC").
Deciding by the room left under a memory limit when a collection is due is Go's ``GOMEMLIMIT`` (Knyszek, "Soft memory
limit", Go proposal 48409) and, before it, Uber's GOGC tuner; capping collection at half of the time is Go's too.

Who owns what. `GCTuner` (in ``tuner``) wires the parts together and holds the locks; each part owns its state:

- ``pauses``: the callback that the interpreter calls around each collection, and its histograms.
- ``memory``: memory as last read, and when to read it again.
- ``pacing``: the young threshold, the collections between requests, when a full one is due, and the cap on time.
- ``collector``: the interpreter's settings, as found, as set and as restored; freezing.
- ``requests``: the context manager, the decorator, and the ASGI and WSGI middleware.
- ``watcher``: the background thread.

In which order things happen. A collection can't be started inside the callback, so the callback only measures and,
every now and then, reads memory. Collections happen where a request ends, in ``idle()``, or in the watcher thread,
which the callback wakes. The watcher sleeps on a queue: without collections there is no cyclic garbage to watch.

Locks. ``_lock`` guards the run's number (``_epoch``), the requests in flight and the interpreter's thresholds: they
always agree when it is released. ``_work`` is held by the thread that decides on or makes a full collection, so there
is one at a time; it is taken before ``_lock``. ``_guard``, one per process, guards which tuner runs, and is taken
before both. All are reentrant, since a finaliser or a signal handler can begin a request anywhere. Code inside the
callback never waits for a lock.
"""

from synthex_fast.gc_tuner import collector, memory, pacing, pauses, tuner, watcher
from synthex_fast.gc_tuner.collector import (
    FREE_THREADED,
    GENERATIONAL,
    INCREMENTAL,
    OUT_OF_REACH,
    collector_kind,
)
from synthex_fast.gc_tuner.tuner import GCTuner

__all__ = ["FREE_THREADED", "GENERATIONAL", "INCREMENTAL", "OUT_OF_REACH", "GCTuner", "collector_kind"]

TYPE_CHECKING = False
if not TYPE_CHECKING:

    def __getattr__(name):
        # The constants that this module had before it became a package.
        for part in (collector, memory, pacing, pauses, tuner, watcher) if name.isupper() else ():
            if hasattr(part, name):
                return getattr(part, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
