"""OpenTelemetry: what the SDK's reader sees, and what arrives at a receiver of OTLP over HTTP."""

import gc
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support import MB, FakeReadings, run

from synthex_fast import GCTuner, MemoryGovernor, ObjectPool, TTLDict
from synthex_fast.errors import ArgumentTypeError
from synthex_fast.exporters import Observed, opentelemetry
from synthex_fast.exporters._metrics import BOUNDS, HISTOGRAM, METRICS

sdk = pytest.importorskip("opentelemetry.sdk.metrics")
export = pytest.importorskip("opentelemetry.sdk.metrics.export")


class Service:
    def __init__(self):
        self.observed = Observed()
        self.users = self.observed.add(TTLDict(max_size=2), name="users")
        self.lists = self.observed.add(ObjectPool(list), name="lists")
        self.governor = self.observed.add(
            MemoryGovernor(readings=FakeReadings(limit=1024 * MB, rss=500 * MB))
        )
        self.governor.register(self.users, name="users")
        self.tuner = self.observed.add(GCTuner(freeze=False))


@pytest.fixture
def service():
    made = Service()
    with made.tuner:
        yield made


@pytest.fixture
def reader():
    return export.InMemoryMetricReader()


@pytest.fixture
def provider(reader):
    made = sdk.MeterProvider([reader])
    yield made
    made.shutdown()


def collected(reader):
    """All metrics by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "synthex_fast"
    return {metric.name: metric for metric in scope.metrics}


def points(metric):
    return {tuple(sorted(point.attributes.items())): point.value for point in metric.data.data_points}


def test_each_part_is_shown_with_its_figures(reader, provider, service):
    opentelemetry.register(provider, service.observed)
    for key in ("ada", "bob", "cyd"):
        service.users[key] = 1
    service.users.get("cyd")
    service.lists.release(service.lists.acquire())
    gc.collect()
    seen = collected(reader)
    users = (("cache", "users"),)
    assert points(seen["synthex.cache.entries"]) == {users: 2}
    assert points(seen["synthex.cache.size"]) == {users: service.users.nbytes}
    assert points(seen["synthex.cache.hits"]) == {users: 1}
    assert points(seen["synthex.cache.evictions"])[(*users, ("reason", "full"))] == 1
    assert points(seen["synthex.pool.created"])[(("pool", "lists"),)] == service.lists.stats["created"]
    assert points(seen["process.memory.usage"]) == {(): 500 * MB}
    assert points(seen["synthex.governor.level"]) == {(): 0}
    full = (("cause", "automatic"), ("generation", "2"))
    count = points(seen["synthex.gc.pause.count"])[full]
    assert count >= 1
    assert points(seen["synthex.gc.pause.time"])[full] == pytest.approx(
        service.tuner.stats["pauses"][2]["seconds"]
    )
    buckets = points(seen["synthex.gc.pause.bucket"])
    assert buckets[(*full, ("le", float("inf")))] == count
    assert [buckets[(*full, ("le", bound))] for bound in BOUNDS] == sorted(
        buckets[(*full, ("le", bound))] for bound in BOUNDS
    )


def test_conventions_are_followed(reader, provider, service):
    semantic = pytest.importorskip("opentelemetry.semconv._incubating.metrics.cpython_metrics")
    process = pytest.importorskip("opentelemetry.semconv._incubating.metrics.process_metrics")
    attributes = pytest.importorskip("opentelemetry.semconv._incubating.attributes.cpython_attributes")
    opentelemetry.register(provider, service.observed)
    seen = collected(reader)
    stats = gc.get_stats()
    for name, key in (
        (semantic.CPYTHON_GC_COLLECTIONS, "collections"),
        (semantic.CPYTHON_GC_COLLECTED_OBJECTS, "collected"),
        (semantic.CPYTHON_GC_UNCOLLECTABLE_OBJECTS, "uncollectable"),
    ):
        for generation, counts in enumerate(stats):
            value = points(seen[name])[(attributes.CPYTHON_GC_GENERATION, generation),]
            assert 0 <= counts[key] - value <= counts[key]
        assert seen[name].data.is_monotonic and seen[name].unit.startswith("{")
    usage = seen[process.PROCESS_MEMORY_USAGE]
    assert usage.unit == "By" and not usage.data.is_monotonic
    assert all(name.startswith(("synthex.", "cpython.gc.", "process.memory.")) for name in seen)


def test_kinds_units_and_meanings_are_those_of_the_table(reader, provider, service):
    opentelemetry.register(provider, service.observed)
    seen = collected(reader)
    known = {metric.dotted: metric for metric in METRICS.values() if metric.kind != HISTOGRAM}
    found = known.keys() & seen.keys()
    assert len(found) > 25
    for name in found:
        assert (seen[name].unit, seen[name].description) == (known[name].unit, known[name].help)
        if known[name].kind == "counter":
            assert seen[name].data.is_monotonic
        else:
            assert not getattr(seen[name].data, "is_monotonic", False)


def test_one_export_reads_once_and_each_reads_anew(reader, provider, service):
    snapshots = []

    class Counting(Observed):
        def snapshot(self):
            snapshots.append(1)
            return super().snapshot()

    shown = Counting()
    users = shown.add(TTLDict(), name="users")
    opentelemetry.register(provider, shown)
    for count in (1, 2, 3):
        users[count] = 1
        assert points(collected(reader)["synthex.cache.entries"]) == {(("cache", "users"),): count}
        assert len(snapshots) == count


def test_unregister_ends_it_and_may_be_repeated(reader, provider, service, caplog):
    exporter = opentelemetry.register(provider, service.observed)
    assert collected(reader)
    exporter.unregister()
    exporter.unregister()
    assert not [name for name, metric in collected(reader).items() if metric.data.data_points]
    # What a callback raises is logged.
    assert not caplog.records


def test_the_global_provider_is_used_unless_another_is_given():
    script = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from synthex_fast import TTLDict
from synthex_fast.exporters import observe, opentelemetry
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
users = observe(TTLDict(), "users")
opentelemetry.register()
(scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
print(any(metric.name == "synthex.cache.entries" for metric in scope.metrics))
"""
    assert run(script) == "True\n"


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r"pip install synthex-fast\[otel\]"):
        opentelemetry.register()


@pytest.mark.parametrize("bad", [1, "provider", [], object()])
def test_a_bad_provider_is_named(bad):
    with pytest.raises(ArgumentTypeError, match=r"^meter_provider must be "):
        opentelemetry.register(bad)


@pytest.mark.parametrize("bad", [1, "observed", [], object()])
def test_a_bad_observed_is_named(provider, bad):
    with pytest.raises(ArgumentTypeError, match=r"^observed must be "):
        opentelemetry.register(provider, bad)


def test_it_arrives_at_a_receiver(service):
    otlp = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    messages = pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
    received = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, messages.ExportMetricsServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    service.users["ada"] = 1
    service.users.get("ada")
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        exporter = otlp.OTLPMetricExporter(f"http://127.0.0.1:{server.server_port}/v1/metrics", timeout=10)
        reader = export.PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
        provider = sdk.MeterProvider([reader])
        try:
            opentelemetry.register(provider, service.observed)
            assert provider.force_flush(10_000)
        finally:
            provider.shutdown()
            server.shutdown()
            thread.join(10)
    path, request = received[0]
    assert path == "/v1/metrics"
    seen = {
        metric.name: metric
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    (hits,) = seen["synthex.cache.hits"].sum.data_points
    assert (hits.as_int, hits.attributes[0].key, hits.attributes[0].value.string_value) == (
        1,
        "cache",
        "users",
    )
    assert seen["synthex.cache.hits"].sum.is_monotonic
    (size,) = seen["synthex.cache.size"].gauge.data_points
    assert size.as_int == service.users.nbytes
    assert {"cpython.gc.collections", "process.memory.usage", "synthex.gc.pause.bucket"} <= set(seen)
