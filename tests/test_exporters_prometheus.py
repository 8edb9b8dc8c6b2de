"""Prometheus: what is exported, workers that answer for each other, and a real server that scrapes them."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from support import ROOT, FakeReadings, in_child, needs_fork, quiet_fork, run, wait_for

from synthex_fast import (
    AdaptiveMemoryMonitor,
    GCTuner,
    MemoryGovernor,
    ObjectPool,
    PooledExpertQuery,
    PooledExpertResponse,
    ResponseBuffer,
    ResponseCollector,
    TTLDict,
)
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError
from synthex_fast.exporters import Observed, _workers, prometheus
from synthex_fast.exporters._metrics import BOUNDS, METRICS

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
needs_locks = pytest.mark.skipif(_workers.fcntl is None, reason="needs POSIX record locks")


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.fixture
def registry():
    return prometheus_client.CollectorRegistry()


def scrape(registry):
    """The value of each sample: {(name, (label, value), ...): number}."""
    text = prometheus_client.generate_latest(registry).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Service:
    """One of each part, shown by ``observed``."""

    def __init__(self):
        self.observed = Observed()
        self.users = self.observed.add(TTLDict(max_size=2), name="users")
        self.lists = self.observed.add(ObjectPool(list, prefill=1), name="lists")
        self.buffer = self.observed.add(ResponseBuffer(10, 10), name="answers")
        self.collector = self.observed.add(ResponseCollector(), name="kept")
        self.observed.add(PooledExpertQuery)
        self.readings = FakeReadings(limit=1 << 30)
        self.governor = self.observed.add(MemoryGovernor(readings=self.readings))
        self.governor.register(self.users, name="users")
        self.monitor = self.observed.add(AdaptiveMemoryMonitor(readings=self.readings))
        self.tuner = self.observed.add(GCTuner(freeze=False, readings=FakeReadings()))


@pytest.fixture
def service():
    made = Service()
    with made.tuner:
        yield made


def test_each_part_is_shown_with_its_figures(registry, service):
    prometheus.register(registry, service.observed)
    for key in ("ada", "bob", "cyd"):
        service.users[key] = 1
    service.users.get("cyd")
    service.users.get("nobody")
    service.lists.release(service.lists.acquire())
    service.buffer.add(PooledExpertResponse("q1", "ada"))
    service.collector.add(PooledExpertResponse("q1", "ada"))
    with service.tuner.request():
        gc.collect()
    service.readings.rss_ = int(0.97 * (1 << 30))
    service.governor.check()
    service.monitor.sample()
    seen = scrape(registry)
    users, lists, answers, kept = (
        ("cache", "users"),
        ("pool", "lists"),
        ("buffer", "answers"),
        ("cache", "kept"),
    )
    expected = {
        ("synthex_cache_entries", users): len(service.users),
        ("synthex_cache_bytes", users): service.users.nbytes,
        ("synthex_cache_hits_total", users): 1,
        ("synthex_cache_misses_total", users): 1,
        ("synthex_cache_puts_total", users): 3,
        ("synthex_cache_evictions_total", users, ("reason", "full")): 1,
        ("synthex_cache_evictions_total", users, ("reason", "idle")): 0,
        ("synthex_cache_entries", kept): 1,
        ("synthex_buffer_responses", ("buffer", "kept")): 1,
        ("synthex_pool_created_total", lists): 1,
        ("synthex_pool_reused_total", lists): 1,
        ("synthex_pool_idle_objects", lists): 1,
        ("synthex_pool_bytes", lists): service.lists.nbytes,
        ("synthex_buffer_responses", answers): 1,
        ("synthex_buffer_added_total", answers): 1,
        ("synthex_buffer_bytes", answers): service.buffer.nbytes,
        ("synthex_memory_limit_bytes",): 1 << 30,
        ("synthex_memory_resident_bytes",): service.readings.rss_,
        ("synthex_governor_level",): 4,
        ("synthex_governor_actions_total", ("action", "emergency")): 1,
        ("synthex_monitor_level",): 4,
        ("synthex_monitor_samples_total",): 1,
        ("synthex_memory_leak",): 0,
        ("synthex_requests_total",): 1,
        ("synthex_requests_in_flight",): 0,
        ("synthex_unreadable_components",): 0,
    }
    assert {key: seen.get(key) for key in expected} == expected
    name = "synthex_gc_pause_seconds"
    full = (("cause", "automatic"), ("generation", "2"))
    assert seen[f"{name}_count", *full] >= 1
    assert seen[f"{name}_bucket", full[0], full[1], ("le", "+Inf")] == seen[f"{name}_count", *full]
    assert seen[f"{name}_sum", *full] == pytest.approx(service.tuner.stats["pauses"][2]["seconds"])
    counts = [seen[f"{name}_bucket", full[0], full[1], ("le", repr(bound))] for bound in BOUNDS]
    assert counts == sorted(counts)


@needs_promtool
def test_promtool_has_nothing_to_object(registry, service):
    prometheus.register(registry, service.observed)
    service.governor.check()
    text = prometheus_client.generate_latest(registry)
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("workers", [False, pytest.param(True, marks=needs_locks)])
def test_the_faster_text_is_prometheus_clients(registry, service, tmp_path, workers):
    kept = [
        service.observed.add(TTLDict(), name=name)
        for name in ('a "b"', "back\\slash", "new\nline", "100 % ü")
    ]
    kept[0]["k"] = bytes(5_000_000)
    prometheus_client.Counter("own", 'The "application\'s"', ["by"], registry=registry).labels("x").inc()
    collector = prometheus.register(registry, service.observed, directory=tmp_path if workers else None)
    service.readings.error = None
    service.governor.check()
    gc.collect()
    # One snapshot for both, since figures change.
    families = list(registry.collect())
    frozen = types.SimpleNamespace(collect=lambda: families)
    expected = prometheus_client.generate_latest(frozen)
    assert prometheus.generate_latest(types.SimpleNamespace(collect=lambda: families)) == expected
    assert expected.count(b"\n") > 100 and b"e+06" in expected
    collector.unregister()


def test_the_faster_text_is_of_the_processs_registry_unless_another_is_given():
    collector = prometheus.register(None, Observed())
    try:
        text = prometheus.generate_latest()
        assert b"synthex_unreadable_components 0.0" in text and b"python_info" in text
    finally:
        collector.unregister()
    with pytest.raises(ArgumentTypeError, match=r"^registry must be "):
        prometheus.generate_latest(3)


def test_what_is_absent_is_left_out(registry):
    prometheus.register(registry, Observed())
    assert {key[0] for key in scrape(registry)} == {"synthex_build_info", "synthex_unreadable_components"}


def test_a_fleet_is_shown_where_there_is_one(registry, monkeypatch):
    shown = Observed()
    governor = shown.add(MemoryGovernor(readings=FakeReadings()))
    stats = {**governor.stats, "fleet": {"state": "joined", "workers": 3, "share": 1000, "siblings": []}}

    class Sharing(MemoryGovernor):
        @property
        def stats(self):
            return stats

    sharing = shown.add(Sharing())
    prometheus.register(registry, shown)
    assert scrape(registry)["synthex_fleet_workers",] == 3
    assert scrape(registry)["synthex_fleet_share_bytes",] == 1000
    stats["fleet"] = {"state": "alone", "workers": 1, "share": None, "siblings": []}
    assert ("synthex_fleet_share_bytes",) not in scrape(registry)
    del stats["fleet"]
    assert ("synthex_fleet_workers",) not in scrape(registry)
    assert sharing is not None


def test_a_component_that_can_not_be_read_hides_no_other(registry):
    class Broken:
        stats: object = {}

    shown = Observed()
    users = shown.add(TTLDict(), name="users")
    broken = shown.add(Broken(), name="broken")
    Broken.stats = property(lambda self: self.missing)
    prometheus.register(registry, shown)
    seen = scrape(registry)
    assert seen["synthex_unreadable_components",] == 1
    assert seen["synthex_cache_entries", ("cache", "users")] == len(users)
    assert broken is not None


def test_a_component_of_ones_own_is_shown_by_its_size(registry):
    class Thumbnails:
        nbytes = 1234

        def trim(self, nbytes):
            return 0

    shown, thumbnails = Observed(), Thumbnails()
    governor = shown.add(MemoryGovernor(readings=FakeReadings()))
    governor.register(thumbnails)
    prometheus.register(registry, shown)
    seen = scrape(registry)
    assert seen["synthex_object_bytes", ("object", "Thumbnails")] == 1234
    assert seen["synthex_component_errors_total", ("component", "Thumbnails")] == 0
    assert seen["synthex_unreadable_components",] == 0


def test_no_lock_of_the_tuners_is_needed(registry, service):
    prometheus.register(registry, service.observed)
    seen = []
    with service.tuner._lock, service.tuner._work:
        thread = threading.Thread(target=lambda: seen.append(scrape(registry)), daemon=True)
        thread.start()
        thread.join(20)
    assert seen


def test_unregister_ends_it_and_may_be_repeated(registry):
    collector = prometheus.register(registry, Observed())
    collector.unregister()
    collector.unregister()
    assert not scrape(registry)
    prometheus.register(registry, Observed()).unregister()


def test_the_process_is_shown_unless_another_is_given(registry):
    from synthex_fast.exporters import observe, observed

    users = observe(TTLDict(), name="shown by default")
    try:
        prometheus.register(registry)
        assert ("synthex_cache_entries", ("cache", "shown by default")) in scrape(registry)
    finally:
        observed().remove(users)
    collector = prometheus.register(None, Observed())
    try:
        assert ("synthex_unreadable_components",) in scrape(prometheus_client.REGISTRY)
    finally:
        collector.unregister()


# Bad input ---------------------------------------------------------------------------------------------------------


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install synthex-fast\[prometheus\]"):
        prometheus.register()


def test_the_module_is_imported_without_the_extra():
    assert run(
        "import sys; import synthex_fast.exporters.prometheus; print('prometheus_client' in sys.modules)"
    ) == ("False\n")


@pytest.mark.parametrize("bad", [1, "registry", [], object()])
def test_a_bad_registry_is_named(bad):
    with pytest.raises(ArgumentTypeError, match=r"^registry must be "):
        prometheus.register(bad)


def test_a_registry_that_has_them_is_named(registry):
    prometheus.register(registry, Observed())
    with pytest.raises(ArgumentValueError, match=r"^registry must be one without these metrics"):
        prometheus.register(registry, Observed())


@pytest.mark.parametrize("bad", [1, "observed", [], object()])
def test_a_bad_observed_is_named(registry, bad):
    with pytest.raises(ArgumentTypeError, match=r"^observed must be "):
        prometheus.register(registry, bad)


@needs_locks
def test_a_bad_directory_is_named_and_nothing_stays_registered(registry, tmp_path, monkeypatch):
    with pytest.raises(ArgumentTypeError, match=r"^directory must be a path"):
        prometheus.register(registry, directory=3)
    file = tmp_path / "file"
    file.touch()
    open_to_all = tmp_path / "open" / _workers.FOLDER
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    link = tmp_path / "link" / _workers.FOLDER
    link.parent.mkdir()
    link.symlink_to(tmp_path)
    for bad in (tmp_path / "missing", file, open_to_all.parent, link.parent, "nul\0"):
        with pytest.raises(ArgumentValueError, match=r"^directory must be "):
            prometheus.register(registry, Observed(), directory=bad)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(file))
    with pytest.raises(ArgumentValueError, match=f"^PROMETHEUS_MULTIPROC_DIR must be .*{file}"):
        prometheus.register(registry, Observed())
    assert not scrape(registry)
    assert not _workers._members


# Documentation -----------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "metrics.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the tests run outside a checkout")
def test_the_documentation_has_every_metric_with_its_unit_and_meaning():
    units = {"By": "bytes", "s": "seconds"}
    expected = [
        f"| `{metric.name}` | `{metric.dotted}` | {metric.kind} | {units.get(metric.unit, metric.unit.strip('{}'))} "
        f"| {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in METRICS.values()
    ]
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| `synthex_")] == expected


def test_the_table_is_what_is_exported(registry, service):
    prometheus.register(registry, service.observed)
    with service.tuner.request():
        gc.collect()
    service.users.resize(memory_limit=10**6)
    service.users.cap(10**5)
    service.readings.rss_, service.readings.charge_ = int(0.97 * (1 << 30)), 1 << 29
    service.governor.check()
    text = prometheus_client.generate_latest(registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    exported = {name + "_total" * (family.type == "counter"): family for name, family in families.items()}
    assert exported.keys() <= METRICS.keys()
    # What the table has besides: of a kind that is not there, or of a version to come.
    absent = {"synthex_object_bytes", "synthex_cache_ghost_hits_total"}
    absent |= {"synthex_fleet_workers", "synthex_fleet_share_bytes"}
    assert METRICS.keys() - exported.keys() <= absent
    for name, family in exported.items():
        metric = METRICS[name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


# Workers -----------------------------------------------------------------------------------------------------------


class Worker:
    """A process with a dict and a tuner that does what it is told."""

    SCRIPT = """
import gc, os, sys
from prometheus_client import CollectorRegistry, generate_latest
from synthex_fast import GCTuner, TTLDict
from synthex_fast.exporters import Observed, _workers, prometheus
_workers.WRITE_SECONDS = 0.05
shown, registry = Observed(), CollectorRegistry()
users = shown.add(TTLDict(100), name="users")
tuner = shown.add(GCTuner(freeze=False))
tuner.start()
gc.disable()
collector = prometheus.register(registry, shown, directory=sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    @property
    def pid(self):
        return str(self.process.pid)

    def ready(self):
        assert self.process.stdout.readline() == "ready\n"

    def do(self, line):
        """Execute a line there, and return what it printed."""
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        printed = []
        while (answer := self.process.stdout.readline()) != "done\n":
            assert answer, "it has ended"
            printed.append(answer)
        return "".join(printed)

    def scrape(self):
        text = self.do("print(generate_latest(registry).decode())")
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.communicate(timeout=20)


@pytest.fixture
def workers(tmp_path):
    """Two of them that share a directory."""
    made = [Worker(tmp_path), Worker(tmp_path)]
    try:
        for worker in made:
            worker.ready()
        yield made
    finally:
        for worker in made:
            worker.process.kill()
            worker.process.communicate()


HITS = ("synthex_cache_hits_total", ("cache", "users"))
FULL = ("synthex_gc_pause_seconds_count", ("cause", "automatic"), ("generation", "2"))


def entries(seen):
    return {dict(key[1:])["pid"]: value for key, value in seen.items() if key[0] == "synthex_cache_entries"}


def files(folder):
    return sorted(path.name for path in (folder / _workers.FOLDER).iterdir())


@needs_locks
def test_whichever_worker_is_scraped_answers_for_all(workers, tmp_path):
    one, other = workers
    one.do("users['a'] = 1; users.get('a'); gc.collect()")
    other.do("users['a'] = users['b'] = 1; users.get('a'); users.get('b'); gc.collect(); gc.collect()")
    wait_for(lambda: (seen := one.scrape())[HITS] == 3 == seen.get(FULL))
    for worker in workers:
        seen = worker.scrape()
        assert entries(seen) == {one.pid: 1, other.pid: 2}
        assert seen[HITS] == 3
        assert seen[FULL] == 3
        assert seen["synthex_gc_pause_seconds_bucket", *FULL[1:], ("le", "+Inf")] == 3
        assert seen["synthex_gc_pause_seconds_sum", *FULL[1:]] > 0
    folder = tmp_path / _workers.FOLDER
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@needs_locks
@pytest.mark.parametrize("file", ["other's", "dead.json"])
def test_a_scrape_that_can_open_no_file_fails_and_loses_nothing(workers, tmp_path, file):
    one, other = workers
    other.do("users['a'] = 1; users.get('a'); gc.collect()")
    wait_for(lambda: (seen := one.scrape())[HITS] == 1 == seen.get(FULL))
    other.end()
    if file == "dead.json":
        one.scrape()
    name = (
        file if file == "dead.json" else next(name for name in files(tmp_path) if name.startswith(other.pid))
    )
    one.do(
        "import os, errno; plain = os.open; "
        f"os.open = lambda path, *flags: plain(path, *flags) if {name!r} not in str(path) "
        "else (_ for _ in ()).throw(OSError(errno.EMFILE, 'Too many open files'))"
    )
    failed = one.do(
        "exec('try: generate_latest(registry)\\nexcept OSError as error: print(error.errno == errno.EMFILE)')"
    )
    assert failed == "True\n"
    one.do("os.open = plain")
    assert one.scrape()[HITS] == 1


@needs_locks
def test_a_killed_workers_counters_stay_and_its_gauges_go(workers, tmp_path):
    one, other = workers
    other.do("users['a'] = 1; users.get('a'); gc.collect()")
    wait_for(lambda: (seen := one.scrape())[HITS] == 1 == seen.get(FULL))
    other.end()
    for _ in range(3):
        seen = one.scrape()
        assert entries(seen) == {one.pid: 0}
        assert seen[HITS] == 1 and seen[FULL] == 1
        assert not [key for key in seen if ("pid", other.pid) in key]
    assert len(files(tmp_path)) == 3, "the files of dead workers would pile up"
    third = Worker(tmp_path)
    try:
        third.ready()
        third.do("users['a'] = 1; users.get('a')")
        seen = third.scrape()
        assert entries(seen) == {one.pid: 0, third.pid: 1}
        assert seen[HITS] == 2
    finally:
        third.end()


@needs_locks
def test_a_worker_that_ends_loses_nothing(workers):
    one, other = workers
    other.do("_workers._members[next(iter(_workers._members))]._dismiss_thread()")
    other.do("users['a'] = 1; users.get('a')")
    other.process.communicate()
    assert one.scrape()[HITS] == 1


@needs_locks
def test_a_worker_that_died_between_counting_and_removing_is_counted_once(workers, tmp_path):
    one, other = workers
    other.do("users['a'] = 1; users.get('a')")
    wait_for(lambda: one.scrape()[HITS] == 1)
    (name,) = (name for name in files(tmp_path) if name.startswith(f"{other.pid}-"))
    path = tmp_path / _workers.FOLDER / name
    left = path.read_bytes()
    other.end()
    assert one.scrape()[HITS] == 1
    path.write_bytes(left)
    path.chmod(0o600)
    assert one.scrape()[HITS] == 1
    assert name not in files(tmp_path)


@needs_locks
def test_counters_that_start_again_do_not_fall(workers):
    one, _ = workers
    one.do("users['a'] = 1; users.get('a'); gc.collect()")
    assert (one.scrape()[HITS], one.scrape()[FULL]) == (1, 1)
    one.do("tuner.stop(); tuner.start(); del users; users = shown.add(TTLDict(9), name='users')")
    assert (one.scrape()[HITS], one.scrape()[FULL]) == (1, 1)
    one.do("gc.collect(); users['a'] = 1; users.get('a')")
    assert (one.scrape()[HITS], one.scrape()[FULL]) == (2, 2)


@needs_locks
def test_what_makes_no_sense_is_left_out(workers, tmp_path):
    one, other = workers
    folder = tmp_path / _workers.FOLDER
    other.do("users['a'] = 1; users.get('a')")
    wait_for(lambda: one.scrape()[HITS] == 1)
    (name,) = (name for name in files(tmp_path) if name.startswith(f"{other.pid}-"))
    good = json.loads((folder / name).read_bytes())
    other.end()
    bad = [
        b"", b"\xff", b"[]", b"{", b"[" * 100_000, b'{"format": 1}', b'{"format": 2, "counters": 3, "gauges": []}',
        b'{"format": 2, "folded": 3}', b'{"format": 2, "folded": [3, []]}',
        *(
            json.dumps({"format": 2, "labels": lists, "counters": {metric: column}}).encode()
            for metric in ("synthex_cache_hits_total", "synthex_gc_pause_seconds", "synthex_cache_entries", "no_such")
            for lists, column in (
                *(
                    ([[["users"]]] if metric.startswith("synthex_cache") else [[["0"], ["idle"]]], column)
                    for column in (
                        3, [], [0], [0, [1], 1], ["0", [1]], [True, [1]], [-1, [1]], [1, [1]], [None, None], [0, 3],
                        [0, []], [0, ""], [0, "!"], [0, "AAAA"], [0, ["1"]], [0, [float("nan")]], [0, [10**400]],
                        [0, [True]], [0, [[1, 2]]], [0, [[float("nan")] * (len(BOUNDS) + 2)]], [0, [1, 1]],
                    )
                ),
                *(
                    (labels, [0, [1 if metric.startswith("synthex_cache") else [1] * (len(BOUNDS) + 2)]])
                    for labels in (
                        3, [], [3], [[]], [[3]], [[[]]], [["users"]], [[[3]]], [[["users"], ["x"], ["y"]]],
                        [[["users", "users"]]], [[["0"], ["idle", "x"]]],
                    )
                ),
            )
        ),
    ]  # fmt: skip
    for content in bad:
        for target in (f"1-{1:012x}.json", "dead.json"):
            (folder / target).write_bytes(content)
            seen = one.scrape()
            assert seen.get(HITS) == (0 if target == "dead.json" else seen.get(HITS))
            assert entries(seen) == {one.pid: 0}
    (folder / "dead.json").unlink(missing_ok=True)
    good["labels"].append([["users", "others"]])
    for metric, (_, values) in good["counters"].items():
        if metric.startswith("synthex_cache") and len(values) == 1:
            good["counters"][metric] = len(good["labels"]) - 1, [*values, float("nan")]
    (folder / f"1-{1:012x}.json").write_text(json.dumps(good))
    (folder / "a directory").mkdir()
    (folder / f"2-{2:012x}.json").symlink_to(folder / name)
    assert one.scrape()[HITS] == 1


@needs_locks
def test_workers_whose_caches_differ_in_number_and_order_are_added_up(workers):
    one, other = workers
    names = [f"cache {n}" for n in range(40)]
    make = "caches = {{name: shown.add(TTLDict(99), name=name) for name in {}}}"
    one.do(make.format(names))
    other.do(make.format([*names[:10:-1], "mine", *names[:5]]))
    for _ in range(2):
        one.do("for cache in caches.values(): cache[0] = 0; cache.get(0)")
        other.do("for n, cache in enumerate(caches.values()): [cache.get(1) for _ in range(n)]")
        # `one` writes its file, from which `other` reads below.
        one.scrape()
    other.scrape()
    for scraped in (one, other):
        seen = scraped.scrape()
        of_other = [*names[:10:-1], "mine", *names[:5]]
        for name in {*names, *of_other}:
            n = of_other.index(name) if name in of_other else 0
            assert seen["synthex_cache_misses_total", ("cache", name)] == 2 * n
            assert seen["synthex_cache_hits_total", ("cache", name)] == (2 if name in names else 0)
            pids = {pid for pid, has in ((one.pid, name in names), (other.pid, name in of_other)) if has}
            keys = {key for key in seen if key[0] == "synthex_cache_entries" and ("cache", name) in key}
            assert keys == {("synthex_cache_entries", ("cache", name), ("pid", pid)) for pid in pids}


@pytest.mark.parametrize(
    "values",
    [[], [1, 2], list(range(-20, 20)), [2**63 - 1] * 20, [2**63] * 20, [*range(20), 0.5], [[1, 2.5]] * 20],
)
def test_columns_are_written_and_read_as_they_are(values):
    written = json.loads(json.dumps(_workers._compact(values)))
    assert _workers._expanded(written) == values
    small = all(type(value) is int and value < 2**63 for value in values)
    assert isinstance(written, str) == (small and len(values) >= 16)


@needs_locks
@needs_fork
@quiet_fork
def test_a_forked_child_is_a_worker_whose_counts_begin_at_the_fork(registry, tmp_path):
    service = Service()
    service.users["a"] = 1
    service.users.get("a")
    collector = prometheus.register(registry, service.observed, directory=tmp_path)
    try:
        assert scrape(registry)[HITS] == 1
        service.users.get("a")

        def child():
            assert scrape(registry)[HITS] == 2
            service.users.get("a")
            seen = scrape(registry)
            assert seen[HITS] == 3
            assert set(entries(seen)) == {str(os.getpid()), str(os.getppid())}
            assert collector._member._thread.is_alive()

        in_child(child)
        assert collector._member._thread.is_alive()
        seen = scrape(registry)
        assert seen[HITS] == 3
        assert set(entries(seen)) == {str(os.getpid())}
    finally:
        collector.unregister()
    assert not _workers._members


@needs_locks
def test_two_registries_of_a_process_count_it_once(registry, tmp_path):
    shown = Observed()
    users = shown.add(TTLDict(), name="users")
    users["a"] = 1
    users.get("a")
    first = prometheus.register(registry, shown, directory=tmp_path)
    other = prometheus_client.CollectorRegistry()
    second = prometheus.register(other, shown, directory=tmp_path)
    assert scrape(registry)[HITS] == scrape(other)[HITS] == 1
    first.unregister()
    assert scrape(other)[HITS] == 1
    second.unregister()
    # Its counters stay, for those that come later.
    third = prometheus.register(registry, Observed(), directory=tmp_path)
    assert scrape(registry)[HITS] == 1
    third.unregister()


@needs_locks
def test_a_process_that_leaves_and_comes_back_counts_nothing_twice(registry, tmp_path):
    shown = Observed()
    users = shown.add(TTLDict(), name="users")
    users["a"] = 1
    for hits in (1, 3, 5):
        users.get("a")
        collector = prometheus.register(registry, shown, directory=tmp_path)
        for _ in range(2):
            assert scrape(registry)[HITS] == hits
        users.get("a")
        collector.unregister()


@needs_locks
def test_a_full_disk_lets_no_counter_fall(registry, tmp_path, monkeypatch):
    shown = Observed()
    users = shown.add(TTLDict(), name="users")
    users["a"] = 1
    users.get("a")
    collector = prometheus.register(registry, shown, directory=tmp_path)
    errors = []
    monkeypatch.setattr(sys, "unraisablehook", lambda seen: errors.append(seen.exc_value))
    with monkeypatch.context() as full:

        def replace(*paths):
            raise OSError(28, "No space left on device")

        full.setattr(_workers.os, "replace", replace)
        users.get("a")
        assert scrape(registry)[HITS] == 1
    assert [error.errno for error in errors] == [28]
    assert scrape(registry)[HITS] == 2
    collector.unregister()
