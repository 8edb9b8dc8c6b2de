"""Metrics for OpenTelemetry: observable instruments, which the SDK asks for their values when it exports.

What has a semantic convention is called by it (``cpython.gc.*``, ``process.memory.usage``), all else ``synthex.*``.
Each process exports for itself, so the resource should tell them apart, as ``service.instance.id`` does.
"""

from __future__ import annotations

import gc

import synthex_fast
from synthex_fast._arguments import want_methods
from synthex_fast._threads import RLock
from synthex_fast.errors import type_error
from synthex_fast.exporters._metrics import BOUNDS, COUNTER, HISTOGRAM, METRICS, read
from synthex_fast.exporters._observed import Observed
from synthex_fast.exporters._observed import observed as observed_by_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

    from synthex_fast.exporters._metrics import Metric, Samples

__all__ = ["Exporter", "register"]

# OpenTelemetry's own, of the interpreter's counts: name, unit, description and key in `gc.get_stats`.
OF_CPYTHON = (
    (
        "cpython.gc.collections",
        "{collection}",
        "The number of times a generation was collected since interpreter start.",
        "collections",
    ),
    (
        "cpython.gc.collected_objects",
        "{object}",
        "The total number of objects collected inside a generation since interpreter start.",
        "collected",
    ),
    (
        "cpython.gc.uncollectable_objects",
        "{object}",
        "The total number of objects which were found to be uncollectable inside a generation since interpreter start.",
        "uncollectable",
    ),
)
GENERATION = "cpython.gc.generation"

# There is no observable histogram, so its parts are counters of their own.
PARTS = (
    ("count", "{pause}", "Number of pauses"),
    ("time", "s", "Time spent in pauses"),
    ("bucket", "{pause}", "Number of pauses up to the attribute `le`, in seconds"),
)


def register(meter_provider: MeterProvider | None = None, observed: Observed | None = None) -> Exporter:
    """Export the metrics of ``observed`` through ``meter_provider``, and return the exporter, which has `unregister()`.

    ``meter_provider`` is the global one unless given, ``observed`` the process's (see
    `synthex_fast.exporters.observe`). The figures are read once for each export.

    Raises `ImportError` without the extra ``otel`` and `ArgumentTypeError` for an argument of another type.

    >>> from opentelemetry.sdk.metrics import MeterProvider
    >>> from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    >>> from synthex_fast import TTLDict
    >>> from synthex_fast.exporters import Observed, opentelemetry
    >>> shown, reader = Observed(), InMemoryMetricReader()
    >>> users = shown.add(TTLDict(max_size=100), name="users")
    >>> exporter = opentelemetry.register(MeterProvider([reader]), shown)
    >>> (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
    >>> [metric.name for metric in scope.metrics if metric.name.startswith("synthex.cache.hits")]
    ['synthex.cache.hits']
    """
    try:
        from opentelemetry import metrics
    except ImportError as error:
        raise ImportError(
            "OpenTelemetry metrics need opentelemetry-sdk: pip install synthex-fast[otel]"
        ) from error
    if meter_provider is None:
        meter_provider = metrics.get_meter_provider()
    else:
        want_methods("meter_provider", meter_provider, ("get_meter",))
    if observed is None:
        observed = observed_by_process()
    elif not isinstance(observed, Observed):
        raise type_error("observed", observed, "an Observed or None")
    exporter = Exporter(observed)
    exporter._create(meter_provider)
    return exporter


class Exporter:
    """The instruments, made by `register`."""

    def __init__(self, observed: Observed) -> None:
        self._observed: Observed | None = observed
        self._lock = RLock()
        self._samples: Samples = {}
        # The instruments that have had their values from these samples: each export asks each of them once.
        self._served: set[str] | None = None

    def unregister(self) -> None:
        """Export no longer. OpenTelemetry can't remove instruments, so they stay, without values."""
        with self._lock:
            self._observed = None
            self._samples = {}

    def _create(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("synthex_fast", synthex_fast.__version__)
        for metric in METRICS.values():
            if metric.kind == HISTOGRAM:
                for part, unit, text in PARTS:
                    name = f"{metric.dotted}.{part}"
                    meter.create_observable_counter(name, [self._part(metric, part)], unit, text)
                continue
            if metric.kind == COUNTER:
                create: Callable[..., object] = meter.create_observable_counter
            elif metric.dotted.startswith("process."):
                # As the convention has it.
                create = meter.create_observable_up_down_counter
            else:
                create = meter.create_observable_gauge
            create(metric.dotted, [self._values(metric)], metric.unit, metric.help)
        for name, unit, text, key in OF_CPYTHON:
            meter.create_observable_counter(name, [self._of_cpython(key)], unit, text)

    def _read(self, instrument: str, metric: str) -> list[tuple[tuple[str, ...], Any]]:
        # Of another thread's export at the same time, at worst; then they are read again.
        with self._lock:
            if self._observed is None:
                return []
            if self._served is None or instrument in self._served:
                self._samples, self._served = read(self._observed.snapshot()), set()
            self._served.add(instrument)
            return self._samples.get(metric, [])

    def _values(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            for labels, value in self._read(metric.name, metric.name):
                yield Observation(value, dict(zip(metric.labels, labels, strict=True)))

        return observe

    def _part(self, metric: Metric, part: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            for labels, (*counts, seconds) in self._read(f"{metric.name}.{part}", metric.name):
                named = dict(zip(metric.labels, labels, strict=True))
                if part == "count":
                    yield Observation(sum(counts), named)
                elif part == "time":
                    yield Observation(seconds, named)
                else:
                    total = 0
                    for bound, count in zip((*BOUNDS, float("inf")), counts, strict=True):
                        total += count
                        yield Observation(total, {**named, "le": bound})

        return observe

    def _of_cpython(self, key: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            if self._observed is not None:
                for generation, counts in enumerate(gc.get_stats()):
                    yield Observation(counts[key], {GENERATION: generation})

        return observe
