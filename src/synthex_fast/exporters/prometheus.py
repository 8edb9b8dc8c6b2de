"""Metrics for Prometheus, through ``prometheus_client``: `register` once, and scrape as usual.

The figures are read when Prometheus scrapes. Nothing is counted twice, and no hot path knows of it.
"""

from __future__ import annotations

import os

from synthex_fast._arguments import want_methods
from synthex_fast.errors import ArgumentValueError, type_error
from synthex_fast.exporters import _workers
from synthex_fast.exporters._metrics import BOUNDS, COUNTER, HISTOGRAM, METRICS, read
from synthex_fast.exporters._observed import Observed
from synthex_fast.exporters._observed import observed as observed_by_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.registry import CollectorRegistry

    from synthex_fast.exporters._metrics import Samples

__all__ = ["Collector", "register"]

# Where prometheus_client's processes share their figures; set, it means that there are several.
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def register(
    registry: CollectorRegistry | None = None,
    observed: Observed | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
) -> Collector:
    """Export the metrics of ``observed`` through ``registry``, and return the collector, which has `unregister()`.

    ``registry`` is prometheus_client's own unless given, ``observed`` the process's (see
    `synthex_fast.exporters.observe`).

    Workers of one service, of which a scrape reaches any, share their figures in ``directory``, or in that of
    prometheus_client's multiprocess mode, the environment variable ``PROMETHEUS_MULTIPROC_DIR``. Call this once in each
    worker, or before they are forked. Then whichever worker is scraped answers for all: counters and histograms are
    sums, dead workers' included, and gauges are those of each living worker, with its ``pid`` as a label. Each worker
    writes its figures to a file of its own every 5 seconds, in a thread, and when it is scraped; what a worker that is
    killed counted after it last wrote is lost.

    Raises `ImportError` without the extra ``prometheus``, `ArgumentValueError` if the registry has these metrics
    already or the directory can't be used, `ArgumentTypeError` for an argument of another type.

    >>> from prometheus_client import CollectorRegistry, generate_latest
    >>> from synthex_fast import TTLDict
    >>> from synthex_fast.exporters import Observed, prometheus
    >>> shown, registry = Observed(), CollectorRegistry()
    >>> users = shown.add(TTLDict(max_size=100), name="users")
    >>> collector = prometheus.register(registry, shown)
    >>> users["ada"] = 1
    >>> [line for line in generate_latest(registry).decode().splitlines() if line.startswith("synthex_cache_entries")]
    ['synthex_cache_entries{cache="users"} 1.0']
    >>> collector.unregister()
    """
    try:
        import prometheus_client
    except ImportError as error:
        raise ImportError(
            "Prometheus metrics need prometheus_client: pip install synthex-fast[prometheus]"
        ) from error
    if registry is None:
        registry = prometheus_client.REGISTRY
    else:
        want_methods("registry", registry, ("register", "unregister", "collect"))
    if observed is None:
        observed = observed_by_process()
    elif not isinstance(observed, Observed):
        raise type_error("observed", observed, "an Observed or None")
    name = "directory"
    if directory is None:
        directory, name = os.environ.get(DIRECTORY_VARIABLE) or None, DIRECTORY_VARIABLE
    elif not isinstance(directory, (str, os.PathLike)):
        raise type_error("directory", directory, "a path or None")
    collector = Collector(observed)
    try:
        registry.register(collector)
    except ValueError as error:
        raise ArgumentValueError(
            "registry must be one without these metrics: call unregister() of the collector registered before"
        ) from error
    collector._registry = registry
    if directory is not None:
        try:
            collector._member = _workers.join(name, directory, observed)
        except BaseException:
            registry.unregister(collector)
            raise
    return collector


class Collector:
    """A collector for prometheus_client, made by `register`.

    It may be registered with further registries, such as one made for each request in prometheus_client's
    multiprocess mode.
    """

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._registry: CollectorRegistry | None = None
        self._member: _workers.Member | None = None

    def describe(self) -> Iterable[Family]:
        """The names and types of all metrics, without values."""
        return [_family(name) for name in METRICS]

    def collect(self) -> Iterator[Family]:
        """All metrics that there are figures for now. O(components), and the workers' in multiprocess mode."""
        member = self._member
        gauges: Samples = {}
        if member is None:
            samples = read(self._observed.snapshot())
        else:
            samples, gauges = member.gather()
        for name in METRICS:
            if name in samples:
                yield _filled(name, samples[name], METRICS[name].labels)
            elif name in gauges:
                yield _filled(name, gauges[name], (*METRICS[name].labels, "pid"))

    def unregister(self) -> None:
        """Export no longer. No effect the second time."""
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.unregister(self)
        member, self._member = self._member, None
        if member is not None:
            member.leave()


def _family(name: str) -> Family:
    from prometheus_client.metrics_core import Metric as Family

    metric = METRICS[name]
    # It adds the suffix itself.
    return Family(name.removesuffix("_total") if metric.kind == COUNTER else name, metric.help, metric.kind)


def _filled(name: str, samples: list[tuple[tuple[str, ...], Any]], label_names: tuple[str, ...]) -> Family:
    from prometheus_client.samples import Sample

    family = _family(name)
    if METRICS[name].kind != HISTOGRAM:
        family.samples = [
            Sample(name, dict(zip(label_names, labels, strict=True)), value) for labels, value in samples
        ]
        return family
    for labels, (*counts, seconds) in samples:
        named = dict(zip(label_names, labels, strict=True))
        total = 0
        for bound, count in zip((*map(repr, BOUNDS), "+Inf"), counts, strict=True):
            total += count
            family.samples.append(Sample(f"{name}_bucket", {**named, "le": bound}, total))
        family.samples.append(Sample(f"{name}_count", named, total))
        family.samples.append(Sample(f"{name}_sum", named, seconds))
    return family
