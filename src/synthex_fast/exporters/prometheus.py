"""Metrics for Prometheus, through ``prometheus_client``: `register` once, and scrape as usual.

The figures are read when Prometheus scrapes. Nothing is counted twice, and no hot path knows of it.
"""

from __future__ import annotations

import functools
import itertools
import os

from synthex_fast._arguments import want_methods
from synthex_fast.errors import ArgumentValueError, type_error
from synthex_fast.exporters import _workers
from synthex_fast.exporters._metrics import BOUNDS, COUNTER, HISTOGRAM, METRICS, read_columns
from synthex_fast.exporters._observed import Observed
from synthex_fast.exporters._observed import observed as observed_by_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.registry import CollectorRegistry

    from synthex_fast.exporters._metrics import Column, Columns

__all__ = ["Collector", "generate_latest", "register"]

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
    prometheus_client = _client()
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
        return [_family_type()(name, [], ()) for name in METRICS]

    def collect(self) -> Iterator[Family]:
        """All metrics that there are figures for now. O(components), and the workers' in multiprocess mode."""
        member = self._member
        gauges: Columns = {}
        if member is None:
            columns = read_columns(self._observed.snapshot())
        else:
            columns, gauges = member.gather()
        for name in METRICS:
            if name in columns:
                yield _family_type()(name, columns[name], METRICS[name].labels)
            elif name in gauges:
                yield _family_type()(name, gauges[name], (*METRICS[name].labels, "pid"))

    def unregister(self) -> None:
        """Export no longer. No effect the second time."""
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.unregister(self)
        member, self._member = self._member, None
        if member is not None:
            member.leave()


def generate_latest(registry: CollectorRegistry | None = None) -> bytes:
    """The text of all metrics in ``registry`` (by default prometheus_client's own), for the answer to a scrape.

    The same as of ``prometheus_client.generate_latest``, which takes several times as long for the metrics of this
    package. It matters with hundreds of components. Raises `ImportError` without the extra ``prometheus``.

    >>> from prometheus_client import CollectorRegistry
    >>> from synthex_fast.exporters import Observed, prometheus
    >>> registry = CollectorRegistry()
    >>> collector = prometheus.register(registry, Observed())
    >>> prometheus.generate_latest(registry).decode().splitlines()[-1]
    'synthex_unreadable_components 0.0'
    """
    prometheus_client = _client()
    if registry is None:
        registry = prometheus_client.REGISTRY
    else:
        want_methods("registry", registry, ("collect",))
    parts = []
    known = _Texts(prometheus_client.utils.floatToGoString)
    for family in registry.collect():
        if isinstance(family, _family_type()):
            parts.append(family.text(known).encode())
        else:
            parts.append(prometheus_client.generate_latest(_One(family)))
    return b"".join(parts)


class _One:
    """A registry with one family."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> list[Family]:
        return [self._family]


def _client() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise ImportError(
            "Prometheus metrics need prometheus_client: pip install synthex-fast[prometheus]"
        ) from error
    return prometheus_client


@functools.cache
def _family_type() -> type[Any]:
    """The type of our families, which is made once prometheus_client is there."""
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.samples import Sample

    class Shown(Family):
        """Makes prometheus_client's samples only if they are asked for."""

        def __init__(self, name: str, column: Column, label_names: tuple[str, ...]) -> None:
            metric = METRICS[name]
            # It adds the suffix itself.
            known = name.removesuffix("_total") if metric.kind == COUNTER else name
            super().__init__(known, metric.help, metric.kind)
            self._parts = (
                _flat(name, column, label_names)
                if metric.kind == HISTOGRAM
                else [(name, label_names, column)]
            )

        @property
        def samples(self) -> list[Sample]:
            return [
                Sample(name, dict(zip(label_names, labels, strict=True)), value)
                for name, label_names, column in self._parts
                for labels, value in zip(*column, strict=True)
            ]

        @samples.setter
        def samples(self, given: list[Sample]) -> None:
            # By the constructor.
            assert not given

        def text(self, known: _Texts) -> str:
            """In Prometheus's format. ``known`` are the labels and numbers that have been written before."""
            name = f"{self.name}_total" if self.type == COUNTER else self.name
            texts = [f"# HELP {name} {self.documentation}\n# TYPE {name} {self.type}\n"]
            for name, label_names, (labels, values) in self._parts:
                # Joined from three columns: a format for each line would take twice as long.
                lines = [name] * (3 * len(values))
                lines[1::3] = known.labels(label_names, labels)
                lines[2::3] = map(known.numbers.__getitem__, values)
                texts += lines
            return "".join(texts)

    return Shown


class _Numbers(dict[float, str]):
    """The ends of the lines that have each number. Most are the same few."""

    def __init__(self, in_go: Callable[[float], str]) -> None:
        self._in_go = in_go

    def __missing__(self, value: float) -> str:
        simple = type(value) is int and 0 <= value < 1_000_000
        text = self[value] = f" {value}.0\n" if simple else f" {self._in_go(value)}\n"
        return text


class _Texts:
    """The texts of numbers and of lists of labels, each made when it is first needed."""

    def __init__(self, in_go: Callable[[float], str]) -> None:
        self.numbers = _Numbers(in_go)
        # By the identity of the list, which is kept alive with it: many metrics have the same.
        self._known: dict[tuple[tuple[str, ...], int], tuple[list[tuple[str, ...]], list[str]]] = {}

    def labels(self, names: tuple[str, ...], labels: list[tuple[str, ...]]) -> list[str]:
        key = names, id(labels)
        if key not in self._known:
            self._known[key] = labels, self._made(names, labels)
        return self._known[key][1]

    @staticmethod
    def _made(names: tuple[str, ...], labels: list[tuple[str, ...]]) -> list[str]:
        if not names:
            return [""] * len(labels)
        # In the order of the names.
        places = sorted(range(len(names)), key=names.__getitem__)
        pairs = ",".join(f'{names[place]}="%s"' for place in places)
        columns = list(zip(*labels, strict=True))
        escaped = [_escaped(columns[place]) for place in places]
        return [*map(f"{{{pairs}}}".__mod__, zip(*escaped, strict=True))]


def _escaped(texts: Sequence[str]) -> Sequence[str]:
    together = "".join(texts)
    if not any(special in together for special in '\\\n"'):
        return texts
    return [text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for text in texts]


def _flat(
    name: str, column: Column, label_names: tuple[str, ...]
) -> list[tuple[str, tuple[str, ...], Column]]:
    """The parts of a histogram as columns of metrics of their own."""
    found: list[tuple[str, tuple[str, ...], Column]] = []
    bounds = (*map(repr, BOUNDS), "+Inf")
    for labels, (*counts, seconds) in zip(*column, strict=True):
        buckets = [*itertools.accumulate(counts)]
        found.append(
            (f"{name}_bucket", (*label_names, "le"), ([(*labels, bound) for bound in bounds], buckets))
        )
        found.append((f"{name}_count", label_names, ([labels], [buckets[-1]])))
        found.append((f"{name}_sum", label_names, ([labels], [seconds])))
    return found
