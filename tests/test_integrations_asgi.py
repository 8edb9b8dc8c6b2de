"""uvicorn, granian and hypercorn serve what `install` returns: it starts and stops with each worker's lifespan."""

import os
import signal

import pytest
from servers import REPORTING, check_running, exercise, free_port, members, missing, serving
from support import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.linux(reason="sessions of processes")]

INSTALLED = """
import synthex_fast
app, installation = synthex_fast.install(app)
"""
# Knows no lifespan, like Django's applications.
PLAIN = (
    REPORTING
    + """
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError(scope["type"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": report(scope["path"])})
"""
    + INSTALLED
)
FASTAPI = (
    REPORTING
    + """
from contextlib import asynccontextmanager
from fastapi import FastAPI, Response

@asynccontextmanager
async def lifespan(app):
    assert not installation.running
    app.state.table = [[n] for n in range(1000)]
    yield
    assert installation.running
    del app.state.table

app = FastAPI(lifespan=lifespan)

@app.get("/")
async def root():
    assert len(app.state.table) == 1000
    return Response(report("/"))
"""
    + INSTALLED
    + """
# After the installation.
@app.get("/stats")
async def stats():
    return Response(report())
"""
)
WSGI = (
    REPORTING
    + """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [report(environ["PATH_INFO"])]
"""
    + INSTALLED
)

# For each server: how it is started with a number of workers.
SERVERS = {
    "uvicorn": "uvicorn application:app --port {port} --workers {workers}",
    "granian": "granian --interface asgi --port {port} --workers {workers} --respawn-failed-workers "
    "--respawn-interval 0.1 application:app",
    "hypercorn": "hypercorn application:app --bind 127.0.0.1:{port} --workers {workers} --graceful-timeout 3",
}


def start(folder, server, application, *options, workers=2, **environment):
    if missing(server):
        pytest.skip(missing(server))
    port = free_port()
    command = ["-m", *SERVERS[server].format(port=port, workers=workers).split(), *options]
    return serving(folder, command, port=port, files={"application.py": application}, **environment)


@pytest.mark.parametrize(
    ("server", "application"), [("uvicorn", "fastapi"), ("granian", "fastapi"), ("hypercorn", "plain")]
)
def test_workers_serve_are_replaced_reload_and_stop(tmp_path, server, application):
    if application == "fastapi" and missing("fastapi"):
        pytest.skip(missing("fastapi"))
    # hypercorn ends if a worker does, see below, and as soon as the first has stopped it terminates the others.
    patient = server != "hypercorn"
    with start(tmp_path, server, {"plain": PLAIN, "fastapi": FASTAPI}[application]) as running:
        exercise(running, kill=patient, leave_word=2 if patient else 1)


def test_hypercorn_ends_if_a_worker_is_killed_and_leaves_nothing(tmp_path):
    with start(tmp_path, "hypercorn", PLAIN) as running:
        victim = running.wait_until_it_answers()["pid"]
        os.kill(victim, signal.SIGKILL)
        running.process.wait(60)
        wait_for(lambda: not members(running.process.pid), 10)


def test_without_a_lifespan_the_first_request_starts_it(tmp_path):
    with start(tmp_path, "uvicorn", PLAIN, "--lifespan", "off", workers=1) as running:
        check_running(running.wait_until_it_answers())
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(20)
        assert "Traceback" not in running.log


def test_granian_serves_wsgi(tmp_path):
    if missing("granian"):
        pytest.skip(missing("granian"))
    port = free_port()
    command = f"-m granian --interface wsgi --port {port} --workers 2 --respawn-failed-workers --respawn-interval 0.1"
    with serving(
        tmp_path, [*command.split(), "application:app"], port=port, files={"application.py": WSGI}
    ) as running:
        # Its workers end without a word to what they serve.
        exercise(running, leave_word=0)


@pytest.mark.parametrize("server", SERVERS)
def test_what_fails_to_start_fails_the_servers_start(tmp_path, server):
    broken = PLAIN.replace(
        "synthex_fast.install(app)",
        "synthex_fast.install(app, monitor=Broken())",
    ).replace(
        "import synthex_fast\n",
        """
import synthex_fast
class Broken:
    def start(self):
        raise OSError("the monitor has no thread")
    def stop(self):
        Path("monitor-stopped").touch()
    def on_pressure(self, level, callback):
        return lambda: None
""",
    )
    with start(tmp_path, server, broken, workers=1) as running:
        if server == "granian":
            # It would start its workers again and again.
            wait_for(lambda: "the monitor has no thread" in running.log, 30)
        else:
            running.process.wait(60)
        assert "synthex_fast did not start: the monitor has no thread" in running.log
        assert running.try_to_get() is None
        # The tuner had been started, and was stopped.
        assert (tmp_path / "monitor-stopped").exists()


def test_a_wrong_application_is_told_in_one_line(tmp_path):
    with start(tmp_path, "uvicorn", REPORTING + "app = 'application'\n" + INSTALLED, workers=1) as running:
        assert running.process.wait(60) != 0
        last = running.log.strip().splitlines()[-1]
        assert last.endswith("app must be an ASGI or WSGI application, or None, not 'application' (str)")
