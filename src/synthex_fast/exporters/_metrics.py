"""The metrics: their names, units and meanings in one table, and their values from a snapshot.

Prometheus, OpenTelemetry, the dashboard and the page of the documentation all take them from here. Names follow
Prometheus's conventions (base units, ``_total``), caches Micrometer's (gets, puts, evictions by cause, entries, bytes).
"""

from __future__ import annotations

import operator
from typing import NamedTuple

from synthex_fast._pressure import LEVELS
from synthex_fast.gc_tuner.pauses import BOUNDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    # By the metric's name; each value with the values of the metric's labels. A histogram's are its counts, one for
    # each bucket, and its sum.
    Samples = dict[str, list[tuple[tuple[str, ...], Any]]]
    # The same with all labels in one list and all values in another. Metrics may share a list of labels.
    Labels = list[tuple[str, ...]]
    Column = tuple[Labels, list[Any]]
    Columns = dict[str, Column]

__all__ = ["BOUNDS", "COUNTER", "GAUGE", "HISTOGRAM", "METRICS", "Metric", "read", "read_columns"]

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class Metric(NamedTuple):
    """What a metric is called and means."""

    name: str
    """For Prometheus."""
    dotted: str
    """For OpenTelemetry."""
    kind: str
    unit: str
    """By UCUM: bytes are ``By``, ``{entry}`` are entries."""
    labels: tuple[str, ...]
    help: str


METRICS: dict[str, Metric] = {}


def _metric(kind: str, name: str, dotted: str, unit: str, labels: str, text: str) -> str:
    METRICS[name] = Metric(name, dotted, kind, unit, tuple(labels.split()), text)
    return name


def _counter(name: str, dotted: str, unit: str, labels: str, text: str) -> str:
    return _metric(COUNTER, name, dotted, unit, labels, text)


def _gauge(name: str, dotted: str, unit: str, labels: str, text: str) -> str:
    return _metric(GAUGE, name, dotted, unit, labels, text)


# In each of these groups by the key in `stats`, in the order in which they are shown.

BUILD_INFO = _gauge(
    "synthex_build_info", "synthex.build", "1", "version python", "Always 1; the versions are its labels"
)
UNREADABLE = _gauge(
    "synthex_unreadable_components",
    "synthex.unreadable",
    "{component}",
    "",
    "Components whose figures could not be read",
)

PAUSES = _metric(
    HISTOGRAM,
    "synthex_gc_pause_seconds",
    "synthex.gc.pause",
    "s",
    "generation cause",
    "Pauses for garbage collection, by generation and by what made the collection happen",
)
FREED = _counter(
    "synthex_gc_freed_objects_total",
    "synthex.gc.freed",
    "{object}",
    "generation",
    "Unreachable objects that garbage collection found",
)
IN_REQUEST = _counter(
    "synthex_gc_request_collections_total",
    "synthex.gc.request_collections",
    "{collection}",
    "",
    "Collections inside requests that were not forced by memory",
)
TUNER = {
    "limited": _counter(
        "synthex_gc_limited_total",
        "synthex.gc.limited",
        "{collection}",
        "",
        "Full collections put off because collection is capped at half of the time",
    ),
    "overhead": _gauge(
        "synthex_gc_overhead_ratio", "synthex.gc.overhead", "1", "", "Share of wall time spent collecting"
    ),
    "young_threshold": _gauge(
        "synthex_gc_young_threshold_objects",
        "synthex.gc.young_threshold",
        "{object}",
        "",
        "New containers after which the interpreter collects the youngest generation",
    ),
    "running": _gauge(
        "synthex_gc_tuner_running", "synthex.gc.tuner_running", "1", "", "1 while the tuner runs"
    ),
    "requests": _counter(
        "synthex_requests_total", "synthex.requests", "{request}", "", "Requests that have begun"
    ),
    "in_flight": _gauge(
        "synthex_requests_in_flight",
        "synthex.requests.in_flight",
        "{request}",
        "",
        "Requests that have not ended",
    ),
    "long_requests": _gauge(
        "synthex_requests_long_in_flight",
        "synthex.requests.long_in_flight",
        "{request}",
        "",
        "Requests that have not ended and no longer keep full collections away",
    ),
}

MEMORY = {
    "rss": _gauge(
        "synthex_memory_resident_bytes", "process.memory.usage", "By", "", "Resident memory of the process"
    ),
    "charge": _gauge(
        "synthex_memory_container_bytes",
        "synthex.memory.container",
        "By",
        "",
        "What the kernel charges the container with",
    ),
    "limit": _gauge(
        "synthex_memory_limit_bytes",
        "synthex.memory.limit",
        "By",
        "",
        "The memory limit of the governor, else of the tuner",
    ),
    "share": _gauge(
        "synthex_memory_used_ratio",
        "synthex.memory.used",
        "1",
        "",
        "Memory as a share of the nearer limit, the process's own or the container's",
    ),
}

GOVERNOR_LEVEL = _gauge(
    "synthex_governor_level",
    "synthex.governor.level",
    "1",
    "",
    "0 normal, 1 warning, 2 high, 3 critical, 4 emergency",
)
GOVERNOR = {
    "nbytes": _gauge(
        "synthex_governor_counted_bytes",
        "synthex.governor.counted",
        "By",
        "",
        "What the registered components count as theirs",
    ),
    "rest": _gauge(
        "synthex_governor_rest_bytes",
        "synthex.governor.rest",
        "By",
        "",
        "Resident memory that is no registered component's",
    ),
    "looks": _counter(
        "synthex_governor_looks_total",
        "synthex.governor.looks",
        "{look}",
        "",
        "Times that the governor has considered memory",
    ),
    "cpu_seconds": _counter(
        "synthex_governor_cpu_seconds_total",
        "synthex.governor.cpu_time",
        "s",
        "",
        "Processor time of the governor and of all that it had done",
    ),
}
ACTIONS = _counter(
    "synthex_governor_actions_total",
    "synthex.governor.actions",
    "{action}",
    "action",
    "What the governor did, such as evict, collect, pause",
)
ACTION_FREED = _counter(
    "synthex_governor_freed_bytes_total",
    "synthex.governor.freed",
    "By",
    "action",
    "Bytes that components freed for the governor, as they count them",
)
RETURNED = _counter(
    "synthex_governor_returned_bytes_total",
    "synthex.governor.returned",
    "By",
    "action",
    "Bytes by which memory fell through the governor's actions",
)
GOVERNED = {
    "freed": _counter(
        "synthex_component_freed_bytes_total",
        "synthex.component.freed",
        "By",
        "component",
        "What it has freed for the governor",
    ),
    "paused": _gauge(
        "synthex_component_paused",
        "synthex.component.paused",
        "1",
        "component",
        "1 while the governor has paused it",
    ),
    "errors": _counter(
        "synthex_component_errors_total",
        "synthex.component.errors",
        "{error}",
        "component",
        "Errors of its methods when the governor called them",
    ),
}
FLEET = {
    "workers": _gauge(
        "synthex_fleet_workers",
        "synthex.fleet.workers",
        "{process}",
        "",
        "Processes that share the container's memory, this one included",
    ),
    "share": _gauge(
        "synthex_fleet_share_bytes",
        "synthex.fleet.share",
        "By",
        "",
        "This process's share of what the caches may hold together",
    ),
}

LEAK = _gauge(
    "synthex_memory_leak",
    "synthex.memory.leak",
    "1",
    "",
    "1 if memory grows the way a leak does, as the monitor finds",
)
MONITOR_LEVEL = _gauge(
    "synthex_monitor_level",
    "synthex.monitor.level",
    "1",
    "",
    "0 normal, 1 warning, 2 high, 3 critical, 4 emergency, at the monitor's last sample",
)
MONITOR = {
    "samples": _counter(
        "synthex_monitor_samples_total",
        "synthex.monitor.samples",
        "{sample}",
        "",
        "Samples that the monitor took",
    ),
    "wakeups": _counter(
        "synthex_monitor_wakeups_total",
        "synthex.monitor.wakeups",
        "{wakeup}",
        "",
        "Times that its thread woke up",
    ),
    "events": _counter(
        "synthex_monitor_events_total",
        "synthex.monitor.events",
        "{event}",
        "",
        "Times that the kernel woke it up",
    ),
    "interval": _gauge(
        "synthex_monitor_interval_seconds", "synthex.monitor.interval", "s", "", "Time until its next sample"
    ),
    "cpu_seconds": _counter(
        "synthex_monitor_cpu_seconds_total",
        "synthex.monitor.cpu_time",
        "s",
        "",
        "Processor time of its thread",
    ),
}

CACHE = {
    "entries": _gauge("synthex_cache_entries", "synthex.cache.entries", "{entry}", "cache", "Entries now"),
    "nbytes": _gauge(
        "synthex_cache_bytes",
        "synthex.cache.size",
        "By",
        "cache",
        "What keys, values and the cache itself take",
    ),
    "memory_limit": _gauge(
        "synthex_cache_limit_bytes",
        "synthex.cache.limit",
        "By",
        "cache",
        "Its own memory limit, if it has one",
    ),
    "memory_cap": _gauge(
        "synthex_cache_cap_bytes",
        "synthex.cache.cap",
        "By",
        "cache",
        "The limit set from outside, as by the governor, if there is one",
    ),
    "hits": _counter(
        "synthex_cache_hits_total", "synthex.cache.hits", "{get}", "cache", "Gets that found a value"
    ),
    "misses": _counter(
        "synthex_cache_misses_total", "synthex.cache.misses", "{get}", "cache", "Gets that found none"
    ),
    "sets": _counter("synthex_cache_puts_total", "synthex.cache.puts", "{put}", "cache", "Values stored"),
    "ghost_hits": _counter(
        "synthex_cache_ghost_hits_total",
        "synthex.cache.ghost_hits",
        "{get}",
        "cache",
        "Stored keys that had been evicted not long ago, and would have been hits in a larger cache",
    ),
    "uncacheable": _counter(
        "synthex_cache_uncacheable_total",
        "synthex.cache.uncacheable",
        "{put}",
        "cache",
        "Values not stored because they alone exceed the memory limit",
    ),
    "over_cap": _counter(
        "synthex_cache_over_cap_total",
        "synthex.cache.over_cap",
        "{put}",
        "cache",
        "Values evicted at once because they alone exceed the limit set from outside",
    ),
}
EVICTIONS = _counter(
    "synthex_cache_evictions_total",
    "synthex.cache.evictions",
    "{entry}",
    "cache reason",
    "Entries dropped because they expired, were idle, or made room under a limit (full: of entries, memory: of bytes)",
)
REASONS = ("expired", "idle", "full", "memory")

POOL = {
    "pool_size": _gauge("synthex_pool_idle_objects", "synthex.pool.idle", "{object}", "pool", "Idle objects"),
    "nbytes": _gauge(
        "synthex_pool_bytes", "synthex.pool.size", "By", "pool", "What the idle objects hold, estimated"
    ),
    "created": _counter(
        "synthex_pool_created_total", "synthex.pool.created", "{object}", "pool", "Objects made"
    ),
    "reused": _counter(
        "synthex_pool_reused_total",
        "synthex.pool.reused",
        "{object}",
        "pool",
        "Acquisitions served by an idle object",
    ),
    "released": _counter(
        "synthex_pool_released_total",
        "synthex.pool.released",
        "{object}",
        "pool",
        "Released objects that were kept",
    ),
    "discarded": _counter(
        "synthex_pool_discarded_total",
        "synthex.pool.discarded",
        "{object}",
        "pool",
        "Objects refused or removed",
    ),
    "aliased": _counter(
        "synthex_pool_aliased_total",
        "synthex.pool.aliased",
        "{object}",
        "pool",
        "Objects discarded because they were still referenced elsewhere",
    ),
}

BUFFER = {
    "buffered": _gauge(
        "synthex_buffer_responses", "synthex.buffer.responses", "{response}", "buffer", "Responses in it now"
    ),
    "high_water": _gauge(
        "synthex_buffer_high_water_responses",
        "synthex.buffer.high_water",
        "{response}",
        "buffer",
        "The most responses that it held at once",
    ),
    "added": _counter(
        "synthex_buffer_added_total", "synthex.buffer.added", "{response}", "buffer", "Responses added"
    ),
    "batches": _counter(
        "synthex_buffer_batches_total", "synthex.buffer.batches", "{batch}", "buffer", "Batches added"
    ),
    "flushed": _counter(
        "synthex_buffer_flushed_total", "synthex.buffer.flushed", "{response}", "buffer", "Responses flushed"
    ),
    "flushes": _counter(
        "synthex_buffer_flushes_total", "synthex.buffer.flushes", "{flush}", "buffer", "Flushes"
    ),
    "failed": _counter(
        "synthex_buffer_failed_flushes_total",
        "synthex.buffer.failed_flushes",
        "{flush}",
        "buffer",
        "Flushes that failed, mostly because the handler raised",
    ),
    "rejected": _counter(
        "synthex_buffer_rejected_total",
        "synthex.buffer.rejected",
        "{call}",
        "buffer",
        "Additions refused because of the batch cap, a pause or lack of room",
    ),
    "waited": _counter(
        "synthex_buffer_waited_total",
        "synthex.buffer.waited",
        "{call}",
        "buffer",
        "Additions that waited for the end of a pause",
    ),
}
BUFFER_BYTES = _gauge(
    "synthex_buffer_bytes", "synthex.buffer.size", "By", "buffer", "Its own memory, fixed from construction"
)
OTHER_BYTES = _gauge(
    "synthex_object_bytes", "synthex.object.size", "By", "object", "What a component of another kind holds"
)


def read(snapshot: Mapping[str, Any]) -> Samples:
    """The values of all metrics that a snapshot of `Observed` has figures for. O(components)."""
    found = read_columns(snapshot).items()
    return {name: list(zip(labels, values, strict=True)) for name, (labels, values) in found}


def read_columns(snapshot: Mapping[str, Any]) -> Columns:
    """`read` in columns, in a third of the time."""
    found: Columns = {name: ([], []) for name in METRICS}
    _put(found, BUILD_INFO, (snapshot["version"], snapshot["python"]), 1)
    _put(found, UNREADABLE, (), len(snapshot["errors"]))
    tuner, governor, monitor = snapshot["tuner"], snapshot["governor"], snapshot["monitor"]
    if tuner is not None:
        _read_tuner(found, tuner)
    if snapshot["memory"] is not None:
        _add(found, MEMORY, [()], [snapshot["memory"]])
    if governor is not None:
        _read_governor(found, governor)
    if monitor is not None:
        _put(found, LEAK, (), int(monitor["leak"]["found"]))
        _put(found, MONITOR_LEVEL, (), LEVELS.index(monitor["level"]))
        _add(found, MONITOR, [()], [monitor])
    _read_components(found, snapshot["components"])
    return {name: columns for name, columns in found.items() if columns[0]}


def _put(found: Columns, name: str, labels: tuple[str, ...], value: Any) -> None:
    into = found[name]
    into[0].append(labels)
    into[1].append(value)


def _add(found: Columns, group: dict[str, str], labels: Labels, stats: Sequence[Mapping[str, Any]]) -> None:
    """Add the figures of a group, for each of the labels those of the ``stats`` in its place."""
    columns: Iterable[Sequence[Any]]
    try:
        # Nothing, from no stats, or from a single key.
        columns = list(zip(*map(operator.itemgetter(*group), stats), strict=True)) if len(group) > 1 else []
    except KeyError:
        # Another version of a part may not have it; None is no figure.
        columns = []
    for name, values in zip(
        group.values(), columns or [[each.get(key) for each in stats] for key in group], strict=True
    ):
        _extend(found, name, labels, values)


def _extend(found: Columns, name: str, labels: Labels, values: Sequence[Any]) -> None:
    if None in values:
        labels = [each for each, value in zip(labels, values, strict=True) if value is not None]
        values = [value for value in values if value is not None]
    if values:
        before = found[name]
        # True becomes 1: OpenTelemetry takes numbers only.
        values = list(map(operator.pos, values))
        # One list of labels serves many metrics, so none is ever changed.
        found[name] = (before[0] + labels, before[1] + values) if before[0] else (labels, values)


def _read_tuner(found: Columns, stats: Mapping[str, Any]) -> None:
    for pauses in stats["pause_histograms"]["pauses"]:
        labels = (str(pauses["generation"]), pauses["cause"])
        _put(found, PAUSES, labels, [*pauses["counts"], pauses["seconds"]])
    for generation, pauses in enumerate(stats["pauses"]):
        _put(found, FREED, (str(generation),), pauses["freed"])
    _put(found, IN_REQUEST, (), stats["in_request"]["collections"])
    _add(found, TUNER, [()], [stats])


def _read_governor(found: Columns, stats: Mapping[str, Any]) -> None:
    _put(found, GOVERNOR_LEVEL, (), LEVELS.index(stats["level"]))
    _add(found, GOVERNOR, [()], [stats])
    for action, done in stats["actions"].items():
        labels = (action,)
        _put(found, ACTIONS, labels, done["count"])
        # What expired is counted in entries.
        if action != "expire":
            _put(found, ACTION_FREED, labels, done["freed"])
        _put(found, RETURNED, labels, done["returned"])
    components = stats["components"]
    names: Labels = [(name,) for name in components]
    _add(found, GOVERNED, names, list(components.values()))
    # Only where siblings share a container.
    _add(found, FLEET, [()], [stats.get("fleet") or {}])


def _read_components(found: Columns, components: Mapping[str, Any]) -> None:
    kinds: dict[str, list[str]] = {}
    for name, component in components.items():
        kinds.setdefault(component["kind"], []).append(name)
    for kind, names in kinds.items():
        labels: Labels = [(name,) for name in names]
        parts = [components[name] for name in names]
        stats = [part["stats"] for part in parts]
        if kind in ("cache", "collector"):
            _add(found, CACHE, labels, stats)
            by_reason: Labels = [(name, reason) for name in names for reason in REASONS]
            _extend(found, EVICTIONS, by_reason, [each[reason] for each in stats for reason in REASONS])
            if kind == "collector":
                # It calls entries queries.
                _extend(found, CACHE["entries"], labels, [each["queries"] for each in stats])
                _add(found, BUFFER, labels, stats)
        elif kind == "pool":
            _add(found, POOL, labels, [{"nbytes": part["nbytes"], **part["stats"]} for part in parts])
        elif kind == "buffer":
            _add(found, BUFFER, labels, stats)
            _add(found, {"nbytes": BUFFER_BYTES}, labels, parts)
        else:
            _add(found, {"nbytes": OTHER_BYTES}, labels, parts)
