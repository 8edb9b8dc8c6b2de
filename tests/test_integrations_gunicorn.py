"""gunicorn with the hooks of `synthex_fast.integrations.gunicorn`: each kind of worker, and hooks of the user's own."""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from servers import REPORTING, check_running, exercise, free_port, missing, serving
from support import ROOT, run, wait_for

pytestmark = [
    pytest.mark.skipif(bool(missing("gunicorn")), reason=missing("gunicorn")),
    pytest.mark.slow,
    pytest.mark.linux(reason="gunicorn, and sessions of processes"),
]

WSGI = (
    REPORTING
    + """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [report(environ["PATH_INFO"])]
"""
)
ASGI = (
    REPORTING
    + """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": report(scope["path"])})
"""
)
FLASK = (
    REPORTING
    + """
from flask import Flask
app = Flask(__name__)
app.get("/")(lambda: report("/"))
app.get("/stats")(report)
"""
)
# With a lifespan of its own.
FASTAPI = (
    REPORTING
    + """
from contextlib import asynccontextmanager
from fastapi import FastAPI, Response

@asynccontextmanager
async def lifespan(app):
    assert not _module.current().running
    app.state.table = [[n] for n in range(1000)]
    yield
    assert _module.current().running

app = FastAPI(lifespan=lifespan)

@app.get("/")
async def root():
    assert len(app.state.table) == 1000
    return Response(report("/"))

@app.get("/stats")
async def stats():
    return Response(report())
"""
)
STAR = "from synthex_fast.integrations.gunicorn import *\n"


def gunicorn(folder, application, configuration, *options, **environment):
    port = free_port()
    command = ["-m", "gunicorn", "application:app", "-b", f"127.0.0.1:{port}", "-w", "2", *options]
    files = {"application.py": application, "gunicorn.conf.py": configuration}
    return serving(folder, command, port=port, files=files, **environment)


WORKERS = {
    "sync": (FLASK, "preload_app = True", ["flask"]),
    "gthread": (WSGI, "threads = 4", []),
    "gevent": (WSGI, "preload_app = True", ["gevent"]),
    "asgi": (ASGI, "", []),
    "uvicorn_worker.UvicornWorker": (FASTAPI, "preload_app = True", ["fastapi", "uvicorn_worker"]),
}


@pytest.mark.parametrize("worker", WORKERS)
def test_each_kind_of_worker_serves_is_replaced_reloads_and_stops(tmp_path, worker):
    application, configuration, needs = WORKERS[worker]
    if missing(*needs):
        pytest.skip(missing(*needs))
    if worker == "asgi" and not _has_asgi_worker():
        pytest.skip("this gunicorn has no worker for ASGI")
    options = ["-k", worker, "--graceful-timeout", "15"]
    with gunicorn(tmp_path, application, f"{STAR}{configuration}\n", *options) as server:
        # A process of gunicorn's own that gevent has patched is slow to notice a dead worker: see test_gevent.
        assert exercise(server) == 0
        assert "TIMEOUT" not in server.log


def _has_asgi_worker():
    from gunicorn.workers import SUPPORTED_WORKERS

    return "asgi" in SUPPORTED_WORKERS


def test_hooks_of_the_users_own_run_too_and_before_ours(tmp_path):
    configuration = (
        STAR
        + """
from pathlib import Path

def note(text):
    with open("notes", "a") as notes:
        notes.write(f"{text}\\n")

def on_starting(server):
    note("on_starting")

def post_worker_init(worker):
    from synthex_fast.integrations.installation import current
    note(f"post_worker_init {current()}")

def worker_exit(server, worker):
    from synthex_fast.integrations.installation import current
    note(f"worker_exit {current().running}")
    raise ValueError("the user's")
"""
    )
    with gunicorn(tmp_path, WSGI, configuration, "-w", "1") as server:
        check_running(answer := server.wait_until_it_answers())
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        assert (tmp_path / "notes").read_text().splitlines() == [
            "on_starting",
            "post_worker_init None",
            "worker_exit True",
        ]
        # Ours ran in spite of the error.
        assert server.stopped(answer["pid"])


def test_where_the_users_hooks_replace_all_of_the_masters_they_are_chained_by_hand(tmp_path):
    replaced = """
def on_starting(server): pass
def on_reload(server): pass
def pre_fork(server, worker): worker.prepared = True
def post_worker_init(worker): assert worker.prepared
hooks(globals())
"""
    with gunicorn(tmp_path, WSGI, STAR + replaced, "-w", "1") as server:
        check_running(server.wait_until_it_answers())


def test_an_application_that_installs_itself_decides(tmp_path):
    application = (
        WSGI
        + """
import synthex_fast
app, installation = synthex_fast.install(app, memory_limit="50%", monitor=False)
assert not installation.running
"""
    )
    with gunicorn(tmp_path, application, STAR + "preload_app = True\n") as server:
        answer = server.wait_until_it_answers()
        stats = answer["stats"]
        assert stats["running"] and stats["monitor"] is None
        # By the master, before the fork.
        assert answer["frozen"] > 1000 and not stats["tuner"]["frozen"]
        assert stats["tuner"]["requests"] == 1
        from synthex_fast import GCTuner

        limit = GCTuner(memory_limit="50%").stats["memory_limit"]
        assert stats["tuner"]["memory_limit"] == stats["governor"]["limit"] == limit


def test_configured_options_reach_the_workers(tmp_path):
    with gunicorn(tmp_path, WSGI, STAR + "configure(memory_limit='1GB', governor=False)\n") as server:
        stats = server.wait_until_it_answers()["stats"]
        assert stats["governor"] is None
        assert stats["tuner"]["requested_limit"] == stats["monitor"]["requested_limit"] == 2**30


def test_an_application_installed_without_hooks_runs_in_master_and_workers(tmp_path):
    application = (
        WSGI
        + """
import synthex_fast
app, installation = synthex_fast.install(app)
kept = [[n] for n in range(1000)]
"""
    )
    with gunicorn(tmp_path, application, "preload_app = True\n") as server:
        for answer in (server.wait_until_it_answers(), *server.get_many(16)):
            check_running(answer)
            assert answer["stats"]["tuner"]["frozen"]
            # Also what came after the installation.
            assert answer["frozen"] > 1000


REFUSED = {
    "configure(memory_limit='much')": "memory_limit must be",
    "configure(tuner=3)": "tuner must be True, False, or an object with start, stop, request, asgi, wsgi, not 3 (int)",
    "configure(app=1)": "install() got an unexpected keyword argument 'app'",
    "configure(metrics='statsd')": "metrics must be",
    "worker_class = 'tornado'": "not with tornado: its applications are neither ASGI nor WSGI",
}


@pytest.mark.parametrize("configuration", REFUSED)
def test_what_cannot_work_is_refused_before_anything_listens(tmp_path, configuration):
    if "tornado" in configuration and missing("tornado"):
        # gunicorn itself looks for it first.
        (tmp_path / "tornado").mkdir()
        (tmp_path / "tornado" / "__init__.py").write_text("version_info = (6, 5, 0)\n")
        for name in ("httpserver", "ioloop", "wsgi", "web"):
            (tmp_path / "tornado" / f"{name}.py").write_text(
                "IOLoop = PeriodicCallback = WSGIContainer = object\n"
            )
    (tmp_path / "application.py").write_text(WSGI)
    (tmp_path / "gunicorn.conf.py").write_text(f"{STAR}{configuration}\n")
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "application:app", "-b", f"127.0.0.1:{free_port()}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert REFUSED[configuration] in done.stderr
    assert "Listening" not in done.stderr


def test_an_rsgi_application_is_refused_in_one_line(tmp_path):
    rsgi = REPORTING + "async def app(scope, protocol): pass\n"
    with gunicorn(tmp_path, rsgi, STAR) as server:
        assert server.process.wait(60) != 0
        assert "gunicorn serves ASGI and WSGI applications, and this is RSGI's, for granian" in server.log


def test_options_that_disagree_with_the_applications_stop_gunicorn(tmp_path):
    application = (
        WSGI
        + """
import synthex_fast
app, installation = synthex_fast.install(app, memory_limit="50%")
"""
    )
    with gunicorn(tmp_path, application, STAR + "configure(memory_limit='60%')\n") as server:
        assert server.process.wait(60) != 0
        assert "memory_limit is '50%' in the installation that is in place, not '60%'" in server.log


MEMORY = """
import gc, json, os, sys
gc.disable()
preloaded = [[n] for n in range(500_000)]
gc.enable()

def private():
    with open("/proc/self/smaps_rollup") as rollup:
        fields = dict(line.split(":") for line in list(rollup)[1:])
    return int(fields["Private_Dirty"].split()[0]) * 1024

at_start = None

def app(environ, start_response):
    global at_start
    if at_start is None:
        at_start = private()
    kept = []
    for n in range(200):
        cycle = [n]
        cycle.append(cycle)
        kept.append(cycle)
    if environ["PATH_INFO"] == "/collect":
        gc.collect()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "private": private()}).encode()]
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs /proc/self/smaps_rollup")
def test_workers_keep_little_of_their_own_of_what_the_master_preloaded(tmp_path):
    with gunicorn(tmp_path, MEMORY, STAR + "preload_app = True\n") as server:
        server.wait_until_it_answers()
        server.get_many(400)
        most = max(server.get("/collect")["private"] for _ in range(16))
        # What a worker needs for itself included; plain, it is over 60 MB.
        assert most < 20_000_000


def test_the_module_needs_no_gunicorn():
    assert (
        run(
            """
        import sys
        sys.modules["gunicorn"] = None
        import synthex_fast.integrations.gunicorn
        from synthex_fast.integrations import installation
        app, placed = installation.install()
        print(placed.running)
        installation.release()
        """
        )
        == "False\n"
    )


def test_a_dead_worker_found_by_the_master_stops_nothing_there(tmp_path):
    configuration = (
        STAR
        + """
def post_request(worker, req, environ, resp):
    pass
"""
    )
    with gunicorn(tmp_path, WSGI, configuration) as server:
        victim = server.wait_until_it_answers()["pid"]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: (got := server.try_to_get()) and got["pid"] != victim)
        assert server.stopped(victim) is None


def test_any_worker_answers_prometheus_for_all(tmp_path):
    if missing("prometheus_client"):
        pytest.skip(missing("prometheus_client"))
    configuration = f"{STAR}configure(metrics='/metrics')\n"
    with gunicorn(tmp_path, WSGI, configuration, TMPDIR=str(tmp_path)) as server:
        check_running(server.wait_until_it_answers())
        workers = server.all_workers(2)
        counted = sum(1 for _ in server.get_many(100, "/"))
        (shared,) = tmp_path.glob("synthex-fast-metrics-*")

        def text():
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as response:
                return response.read().decode()

        def requests():
            (line,) = [line for line in text().splitlines() if line.startswith("synthex_requests_total")]
            return float(line.split()[1])

        # A worker's own figures are seconds old for the others.
        wait_for(lambda: requests() >= counted, 30)
        for pid in workers:
            assert f'pid="{pid}"' in text()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert not shared.exists()
