"""uvicorn, granian and hypercorn serve what `install` returns: it starts and stops with each worker's lifespan.

granian's own interface, RSGI, too.
"""

import http.client
import json
import os
import signal

import pytest
from servers import (
    REPORTING,
    check_running,
    exercise,
    free_port,
    members,
    missing,
    serving,
    uvicorn_patience,
)
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

RSGI = {
    "function": REPORTING
    + """
async def app(scope, protocol):
    protocol.response_bytes(200, [("content-type", "application/json")], report(scope.path))
"""
    + INSTALLED,
    "object": REPORTING
    + """
import asyncio

class App:
    async def load(self):
        await asyncio.sleep(0)
        self.table = [[n] for n in range(1000)]

    def __rsgi_init__(self, loop):
        assert not installation.running
        loop.run_until_complete(self.load())

    def __rsgi_del__(self, loop):
        loop.run_until_complete(asyncio.sleep(0))
        Path(f"ended-{os.getpid()}").write_text(f"{installation.running} {len(self.table)}")

    async def __rsgi__(self, scope, protocol):
        if scope.proto == "ws":
            transport = await protocol.accept()
            while (message := await transport.receive()).kind:
                await transport.send_bytes(report())
            return
        if scope.path == "/stream":
            transport = protocol.response_stream(200, [("content-type", "text/plain")])
            await transport.send_bytes(report())
            while not Path("go").exists():
                await asyncio.sleep(0.02)
            await transport.send_bytes(b"the end")
            return
        body = b"".join([part async for part in protocol]) if scope.path == "/parts" else await protocol()
        assert len(self.table) == 1000
        if scope.path in ("/parts", "/body"):
            protocol.response_str(status=200, headers=[], body=json.dumps(body.decode()))
        else:
            protocol.response_bytes(200, [("content-type", "application/json")], report(scope.path))

app = App()
"""
    + INSTALLED,
}

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
    if server == "uvicorn":
        command += uvicorn_patience()
    return serving(folder, command, port=port, files={"application.py": application}, **environment)


@pytest.mark.parametrize(
    ("server", "application", "options"),
    [
        ("uvicorn", "fastapi", []),
        ("granian", "fastapi", []),
        ("hypercorn", "plain", []),
        ("hypercorn", "plain", ["--worker-class", "trio"]),
    ],
    ids=["uvicorn", "granian", "hypercorn", "hypercorn-trio"],
)
def test_workers_serve_are_replaced_reload_and_stop(tmp_path, server, application, options):
    if "trio" in options and missing("trio"):
        pytest.skip(missing("trio"))
    if application == "fastapi" and missing("fastapi"):
        pytest.skip(missing("fastapi"))
    # hypercorn ends if a worker does, see below, and as soon as the first has stopped it terminates the others.
    patient = server != "hypercorn"
    with start(tmp_path, server, {"plain": PLAIN, "fastapi": FASTAPI}[application], *options) as running:
        exercise(running, kill=patient, leave_word=2 if patient else 1)


@pytest.mark.parametrize("installed", [False, True], ids=["without_the_package", "installed"])
def test_hypercorn_ends_if_a_worker_is_killed_and_leaves_nothing(tmp_path, installed):
    """As it does by itself: it is no fault of an installation's."""
    application = PLAIN if installed else PLAIN.replace(INSTALLED, "")
    with start(tmp_path, "hypercorn", application) as running:
        answer = running.wait_until_it_answers()
        assert (answer["stats"] is not None) == installed
        os.kill(answer["pid"], signal.SIGKILL)
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


def granian(folder, application, *options, workers=2):
    """granian with the interface that it has unless told otherwise, RSGI."""
    if missing("granian"):
        pytest.skip(missing("granian"))
    port = free_port()
    command = f"-m granian --port {port} --workers {workers} --respawn-failed-workers --respawn-interval 0.1"
    return serving(
        folder,
        [*command.split(), *options, "application:app"],
        port=port,
        files={"application.py": application},
    )


@pytest.mark.parametrize("kind", RSGI)
def test_granian_serves_rsgi(tmp_path, kind):
    with granian(tmp_path, RSGI[kind]) as running:
        exercise(running)
        if kind == "object":
            ended = [path.read_text() for path in tmp_path.glob("ended-*")]
            # Its own start and end are inside, as with a lifespan.
            assert len(ended) >= 2 and set(ended) == {"True 1000"}


def test_what_rsgi_streams_and_websockets_wait_for_is_no_request(tmp_path):
    if missing("websockets"):
        pytest.skip(missing("websockets"))
    from websockets.sync.client import connect

    looks = []

    def tuner():
        looks.append(running.get()["stats"]["tuner"])
        return looks[-1]

    with granian(tmp_path, RSGI["object"], workers=1) as running:
        check_running(running.wait_until_it_answers())
        before = tuner()["requests"]
        streaming = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        streaming.request("GET", "/stream")
        response = streaming.getresponse()
        first = json.loads(response.read1())
        assert first["stats"]["tuner"]["in_flight"] == 1
        # That which asks.
        wait_for(lambda: tuner()["in_flight"] == 1)
        with connect(f"ws://127.0.0.1:{running.port}/", proxy=None) as socket:
            for _ in range(3):
                socket.send("how many?")
                assert json.loads(socket.recv())["stats"]["tuner"]["in_flight"] == 1
            wait_for(lambda: tuner()["in_flight"] == 1)
        (tmp_path / "go").touch()
        assert response.read() == b"the end"
        streaming.close()
        for path in ("/body", "/parts"):
            posting = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
            posting.request("POST", path, body=b"x" * 100_000)
            assert json.loads(posting.getresponse().read()) == "x" * 100_000
            posting.close()
        last = tuner()
        assert last["in_flight"] == 1
        # A stream and a websocket are one request each, however many parts they have.
        assert last["requests"] - before == len(looks[1:]) + len(("stream", "websocket", "body", "parts"))


def test_an_rsgi_application_answers_prometheus(tmp_path):
    if missing("prometheus_client"):
        pytest.skip(missing("prometheus_client"))
    application = RSGI["object"].replace("install(app)", "install(app, metrics='/metrics')")
    with granian(tmp_path, application, workers=1) as running:
        check_running(running.wait_until_it_answers())
        for method in ("GET", "HEAD"):
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
            connection.request(method, "/metrics")
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200 and response.headers["content-type"].startswith("text/plain")
            assert ("synthex_requests_total " in text) == (method == "GET")
            assert int(response.headers["content-length"]) > 1000
            connection.close()


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_granian_that_was_not_told_the_interface_says_how(tmp_path, kind):
    with granian(tmp_path, {"asgi": PLAIN, "wsgi": WSGI}[kind], workers=1) as running:
        wait_for(lambda: f"this is {kind.upper()}'s: start it with --interface {kind}" in running.log, 60)
        assert running.try_to_get() is None


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
        assert last.endswith(
            "app must be an ASGI, RSGI or WSGI application, or None, not 'application' (str)"
        )
