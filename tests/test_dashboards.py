"""The dashboard and the alerts, against a real Prometheus that scrapes the workers of a real gunicorn."""

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import ROOT, wait_for

from synthex_fast._pressure import LEVELS, MARKS
from synthex_fast.exporters._metrics import METRICS

DASHBOARDS = Path(__file__).parents[1] / "dashboards"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")

pytestmark = pytest.mark.skipif(not DASHBOARDS.is_dir(), reason="the tests run outside a checkout")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def generator():
    spec = importlib.util.spec_from_file_location("generate", DASHBOARDS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def queries():
    """Those of all panels, by the panel's title and the query's letter."""
    dashboard = json.loads((DASHBOARDS / "synthex-fast.json").read_text(encoding="utf-8"))
    return {
        f"{panel['title']}, {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }


def test_the_dashboard_is_what_the_script_makes():
    text = generator().text()
    assert (DASHBOARDS / "synthex-fast.json").read_text(encoding="utf-8") == text
    done = subprocess.run([sys.executable, DASHBOARDS / "generate.py", "--check"], check=False, timeout=30)
    assert done.returncode == 0


def test_the_script_finds_a_changed_dashboard(tmp_path):
    shutil.copy(DASHBOARDS / "generate.py", tmp_path)
    script = tmp_path / "generate.py"
    target = tmp_path / "synthex-fast.json"
    for changed in (None, "{}"):
        if changed:
            target.write_text(changed)
        done = subprocess.run(
            [sys.executable, script, "--check"], capture_output=True, check=False, timeout=30
        )
        assert done.returncode == 1 and b"run it" in done.stdout


def test_panels_do_not_overlap():
    dashboard = json.loads((DASHBOARDS / "synthex-fast.json").read_text(encoding="utf-8"))
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_levels_begin_where_the_governors_do():
    assert dict(zip(LEVELS[1:], MARKS[1:], strict=True)) == generator().MARKS


def test_queries_and_alerts_name_metrics_that_exist():
    texts = [
        *queries().values(),
        (DASHBOARDS / "alerts.yml").read_text(),
        (DASHBOARDS / "alerts_test.yml").read_text(),
    ]
    named = {
        re.sub("_(bucket|sum|count)$", "", name)
        for text in texts
        for name in re.findall(r"synthex_\w+", text)
    }
    assert len(named) > 20 and named <= set(METRICS)


@needs_promtool
def test_the_alerts_fire_when_they_should_and_only_then():
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [PROMTOOL, *command], cwd=DASHBOARDS, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_documents_name_the_same_line_for_prometheus_and_it_is_right(tmp_path):
    lines = []
    for name in ("README.md", "docs/guide/metrics.md"):
        text = (DASHBOARDS.parent / name).read_text(encoding="utf-8")
        (found,) = re.findall(r"- \{job_name: [^`]*?\}\]\}", text)
        lines.append(" ".join(found.split()))
    assert len(set(lines)) == 1
    (tmp_path / "prometheus.yml").write_text(f"scrape_configs:\n{lines[0]}\n")
    command = [PROMTOOL, "check", "config", tmp_path / "prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# Live --------------------------------------------------------------------------------------------------------------

APPLICATION = """
import itertools, os
from prometheus_client import CollectorRegistry, Counter, generate_latest, multiprocess
from support import MB, FakeReadings
from synthex_fast import (
    AdaptiveMemoryMonitor, GCTuner, MemoryGovernor, ObjectPool, PooledExpertResponse, ResponseBuffer, TTLDict
)
from synthex_fast.exporters import _workers, observe, prometheus

_workers.WRITE_SECONDS = 0.1

class Governor(MemoryGovernor):
    # In a fleet, whether or not it is one here.
    @property
    def stats(self):
        return {**super().stats, "fleet": {"state": "joined", "workers": 2, "share": 100 * MB, "siblings": []}}

readings = FakeReadings(limit=1024 * MB, rss=500 * MB, charge=600 * MB)
users = observe(TTLDict(max_size=50), name="users")
lists = observe(ObjectPool(list, 10), name="lists")
answers = observe(ResponseBuffer(100, 10), name="answers")
monitor = observe(AdaptiveMemoryMonitor(readings=readings))
governor = observe(Governor(readings=readings))
governor.register(users, name="users")
tuner = observe(GCTuner(freeze=False))
tuner.start()
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
prometheus.register(registry)
worked = Counter("worked", "The application's own.")
numbers = itertools.count()

def work():
    n = next(numbers)
    worked.inc()
    users[n] = [n]
    users.get(n - n % 3)
    lists.release(lists.acquire())
    answers.add(PooledExpertResponse("q", "ada"))
    if n % 10 == 0:
        answers.flush()
        for share in (0.97, 0.5):
            readings.rss_ = int(share * 1024 * MB)
            governor.check()
    for _ in range(50):
        cycle = [[] for _ in range(20)]
        cycle.append(cycle)
    return str(os.getpid()).encode()

def answer(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain; version=0.0.4")])
    return [generate_latest(registry) if environ["PATH_INFO"] == "/metrics" else work()]

app = tuner.wsgi(answer)
"""


def get(port, path, **parameters):
    address = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address, timeout=10) as response:
        return response.read().decode()


@contextmanager
def running(command, log, **options):
    """A program and all that it starts, which are gone afterwards."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
        try:
            yield process
        except BaseException:
            print(log.read_text()[-5000:])
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Scraped:
    """gunicorn with two workers under load, and a Prometheus that scrapes it twice a second."""

    def __init__(self, folder, stack):
        (folder / "application.py").write_text(APPLICATION)
        shared = folder / "shared"
        shared.mkdir()
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        self.port = listening.getsockname()[1]
        stack.enter_context(
            running(
                [
                    *(
                        sys.executable,
                        "-m",
                        "gunicorn",
                        "application:app",
                        "-w",
                        "2",
                        "--graceful-timeout",
                        "5",
                    ),
                    *("-b", f"fd://{listening.fileno()}"),
                ],
                folder / "gunicorn.log",
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
                    "PROMETHEUS_MULTIPROC_DIR": str(shared),
                    "HOME": str(folder),
                },
                pass_fds=[listening.fileno()],
            )
        )
        self.api = free_port()
        target = {"targets": [f"127.0.0.1:{self.port}"]}
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "500ms"},
            "rule_files": [str(DASHBOARDS / "alerts.yml")],
            "scrape_configs": [{"job_name": "app", "static_configs": [target]}],
        }
        # JSON is YAML too.
        (folder / "prometheus.yml").write_text(json.dumps(config))
        stack.enter_context(
            running(
                [
                    *(PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}"),
                    *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.api}"),
                ],
                folder / "prometheus.log",
            )
        )
        self.sent = 0
        self.busy = threading.Event()
        self.ended = False
        self.idle = threading.Event()
        self.thread = threading.Thread(target=self._load, daemon=True)
        self.thread.start()
        stack.callback(self.end)
        wait_for(self._answers)
        self.busy.set()

    def _answers(self):
        with suppress(OSError):
            return get(self.port, "/")

    def end(self):
        self.ended = True
        self.busy.set()
        self.thread.join(20)

    def _load(self):
        while not self.ended:
            if not self.busy.is_set():
                self.idle.set()
                self.busy.wait(1)
                continue
            # A connection to a worker that is killed may fail.
            with suppress(OSError):
                get(self.port, "/")
                self.sent += 1

    def pause(self):
        self.busy.clear()
        self.idle.clear()
        assert self.idle.wait(20)
        # Until all workers have written their files: as many puts as prometheus_client counts itself.
        wait_for(lambda: len(self.worked()) == 1)

    def worked(self):
        """How often both say that the application has worked."""
        text = self.metrics()
        return {value_of(text, name) for name in ("synthex_cache_puts_total", "worked_total")}

    def metrics(self):
        return get(self.port, "/metrics")

    def query(self, expression):
        """The values by labels, as Prometheus has them; those that are no numbers are left out."""
        answer = json.loads(get(self.api, "/api/v1/query", query=expression))
        assert answer["status"] == "success", answer
        found = {
            tuple(sorted(each["metric"].items())): float(each["value"][1])
            for each in answer["data"]["result"]
        }
        return {labels: value for labels, value in found.items() if not math.isnan(value)}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    if PROMETHEUS is None:
        pytest.skip("prometheus is not installed")
    for name in ("gunicorn", "prometheus_client"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    with ExitStack() as stack:
        yield Scraped(tmp_path_factory.mktemp("scraped"), stack)


def value_of(text, name):
    """The sum of a metric's samples in the text format."""
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith((f"{name} ", f"{name}{{"))
    )


@pytest.mark.parametrize("name", queries() if DASHBOARDS.is_dir() else [])
@pytest.mark.slow
@pytest.mark.linux(reason="starts a real Prometheus")
def test_each_query_returns_data(scraped, name):
    expression = (
        queries()[name].replace("$__rate_interval", "5s").replace("$job", ".*").replace("$instance", ".*")
    )
    assert "$" not in expression
    wait_for(lambda: scraped.query(expression))


@pytest.mark.slow
@pytest.mark.linux(reason="starts a real Prometheus")
def test_prometheus_adds_up_what_the_workers_count_and_forgets_a_dead_one(scraped):
    def pids():
        return {dict(labels)["pid"] for labels in scraped.query("synthex_cache_entries")}

    wait_for(lambda: len(pids()) == 2)
    scraped.pause()
    total = scraped.worked()
    # Whichever worker answers.
    assert len(total) == 1 and total == scraped.worked() == scraped.worked()
    (before,) = total
    assert scraped.sent <= before <= scraped.sent + 50
    count = value_of(scraped.metrics(), "synthex_gc_pause_seconds_count")
    victim = sorted(pids())[0]
    os.kill(int(victim), signal.SIGKILL)
    wait_for(lambda: f'pid="{victim}"' not in scraped.metrics())
    assert scraped.worked() == total
    assert value_of(scraped.metrics(), "synthex_gc_pause_seconds_count") >= count > 0
    scraped.busy.set()
    # The worker in its place is there, and counts on.
    wait_for(lambda: len(pids()) == 2 and victim not in pids())
    wait_for(lambda: scraped.query("sum(synthex_cache_puts_total)").get((), 0) > before + 20)
    # No counter ever fell, although either worker may have answered.
    names = [name for name, metric in METRICS.items() if metric.kind == "counter"]
    names += [f"synthex_gc_pause_seconds_{part}" for part in ("bucket", "count", "sum")]
    seen = {name: scraped.query(f"max(resets({name}[2m]))").get(()) for name in names}
    assert {name for name, resets in seen.items() if resets} == set()
    assert len([name for name, resets in seen.items() if resets == 0]) > 20


@pytest.mark.slow
@pytest.mark.linux(reason="starts a real Prometheus")
def test_the_alerts_are_evaluated(scraped):
    def evaluated():
        groups = json.loads(get(scraped.api, "/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return len(rules) == 4 and all(rule["health"] == "ok" for rule in rules)

    wait_for(evaluated)
