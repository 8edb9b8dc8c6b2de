"""The live page: what it shows, to whom, over ASGI and WSGI, and in a browser."""

import asyncio
import gc
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress

import browser
import psutil
import pytest
from servers import members, uvicorn_patience
from support import ROOT, FakeReadings, in_child, needs_fork, quiet_fork, wait_for

from synthex_fast import AdaptiveMemoryMonitor, GCTuner, MemoryGovernor, TTLDict
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError
from synthex_fast.exporters import Observed, page
from synthex_fast.exporters.page import _access, _figures
from synthex_fast.exporters.page._feed import Feed


class Component:
    """A component of a user's own, with whatever statistics."""

    nbytes = 7

    def __init__(self, **stats):
        self.stats = stats


@pytest.fixture
def shown():
    return Observed()


# ---- What is shown


def test_only_figures_and_names_are_shown(shown):
    class Failing(Component):
        @property
        def stats(self):
            if self.fails:
                raise ValueError("the key 'hunter2' is taken")
            return {}

        @stats.setter
        def stats(self, value):
            self.fails = False

    failing = shown.add(Failing(), "failing")
    failing.fails = True
    odd = shown.add(
        Component(
            entries=3, last_key="hunter2", keys=["hunter2"], nested={"hunter2": 1}, raw=b"hunter2", flag=True
        ),
        "odd",
    )
    tuner = shown.add(GCTuner())
    text = Feed(shown, 1.0).frame_json()
    frame = json.loads(text)
    assert "hunter2" not in text
    assert frame["components"] == [
        {
            "name": "odd",
            "kind": "other",
            "type": "Component",
            "nbytes": 7,
            "stats": {"entries": 3, "flag": True},
        }
    ]
    assert frame["errors"] == {"failing": "ValueError"}
    assert frame["tuner"]["collector"] == tuner.stats["collector"]
    assert odd.stats["last_key"] == "hunter2"


def test_numbers_that_json_lacks_are_left_out(shown):
    odd = shown.add(Component(a=math.inf, b=math.nan, c=10**400, d=2), "\ud800 odd\n" + 200 * "x")
    frame = json.loads(Feed(shown, 1.0).frame_json())
    (found,) = frame["components"]
    assert found["stats"] == {"d": 2}
    assert len(found["name"]) == 120
    assert odd.nbytes == 7


def test_a_frame_has_a_bounded_size(shown):
    many = [shown.add(Component(), f"c{n}") for n in range(_figures.COMPONENTS_MOST + 5)]
    large = shown.add(Component(**{f"f{n}": n for n in range(1000)}), "large")
    large.nbytes = 1000
    frame = Feed(shown, 1.0).frame()
    assert frame["left_out"] == 6
    assert len(frame["components"]) == _figures.COMPONENTS_MOST
    # The largest are shown, and all are counted.
    assert frame["components"][0]["name"] == "large"
    assert len(frame["components"][0]["stats"]) == 40
    assert frame["totals"]["other"] == {"count": len(many) + 1, "nbytes": 7 * len(many) + 1000}


def test_memory_counts_against_the_nearer_limit(shown):
    readings = FakeReadings(limit=200 << 20, rss=60 << 20, charge=150 << 20)
    governor = shown.add(MemoryGovernor("150MB", readings=readings))
    governor.check()
    memory = Feed(shown, 1.0).frame()["memory"]
    assert memory["level"] == "warning"
    assert memory["rss"] == 60 << 20
    # 75 % of the container's limit, drawn against the governor's own.
    assert memory["used"] == pytest.approx(0.75 * memory["limit"], rel=0.01)


def test_memory_is_shown_without_a_governor(shown):
    memory = Feed(shown, 1.0).frame()["memory"]
    assert memory["rss"] > 1 << 20
    assert memory["limit"] is None


def test_pauses_of_all_generations_are_summed_by_cause():
    pauses = [
        {"generation": 0, "cause": "boundary", "seconds": 1.0, "counts": [1, 2, 3]},
        {"generation": 2, "cause": "boundary", "seconds": 1.0, "counts": [0, 0, 4]},
        {"generation": 2, "cause": "forced", "seconds": 1.0, "counts": [0, 1, 0]},
    ]
    assert _figures._histogram({"bounds": [0.001, 0.01], "pauses": pauses}) == {
        "bounds": [0.001, 0.01],
        "causes": {"boundary": [1, 2, 7], "forced": [0, 1, 0]},
    }
    assert _figures._histogram(None) is None


def test_siblings_are_shown_as_numbers():
    governor = {
        "fleet": {
            "state": "together",
            "workers": 2,
            "siblings": [{"pid": 7, "share": 0.5, "secret": object()}],
        }
    }
    assert _figures._fleet(governor) == {
        "workers": 2,
        "state": "together",
        "siblings": [{"pid": 7, "share": 0.5}],
    }
    assert _figures._fleet({}) is None


# ---- The feed


def test_one_snapshot_serves_all_viewers(shown, monkeypatch):
    taken = []
    snapshot = Observed.snapshot
    monkeypatch.setattr(Observed, "snapshot", lambda self: taken.append(1) or snapshot(self))
    feed = Feed(shown, 60.0)
    assert not taken
    for _ in range(10):
        feed.event()
        feed.history_json()
    assert len(taken) == 1


def test_the_history_is_bounded_and_continues_where_a_viewer_left(shown):
    feed = Feed(shown, 0.1)
    for n in range(1000):
        feed._current = None
        feed.frame()
        if n == 990:
            event_id = re.match(r"id: (\S+)\n", feed.event().decode())[1]
    rows = json.loads(feed.history_json())["rows"]
    assert len(rows) == 600
    assert rows == sorted(rows)
    assert len(json.loads(feed.history_json(feed.since(event_id)))["rows"]) < 20
    # That of another process, and nonsense, mean a full one.
    for other in (None, "", "1-2:5", f"{feed.identity}:x", "x:y:z"):
        assert feed.since(other) == 0.0


def test_the_monitor_knows_the_time_when_nobody_looked(shown):
    monitor = shown.add(AdaptiveMemoryMonitor())
    now = time.time()
    for seconds in range(600, 0, -5):
        monitor._record(1000.0 - seconds, (5e7, 0.0, 1e9, 0.0, 0.0, 0.0, 0.0), now - seconds)
    rows = json.loads(Feed(shown, 1.0).history_json())["rows"]
    assert len(rows) > 100
    assert rows[0][0] < now - 590
    assert rows[0][1:] == [50_000_000, None, None, None]


@needs_fork
@quiet_fork
def test_a_child_has_a_feed_of_its_own(shown):
    feed = Feed(shown, 60.0)
    parent = feed.frame()

    def child():
        frame = feed.frame()
        assert frame["pid"] == os.getpid() != parent["pid"]
        assert frame["id"] != parent["id"]
        assert len(json.loads(feed.history_json())["rows"]) == 1

    in_child(child)


# ---- Who may look: one table for both apps


def asgi_request(
    app,
    path="/",
    method="GET",
    client="127.0.0.1",
    headers=(),
    root_path="",
    query="",
    seconds=5.0,
    room=1 << 24,
):
    """The status, headers and body of one request; a stream is left after the first ``room`` bytes."""
    sent = []
    body = b""

    async def run():
        left = asyncio.Event()

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            nonlocal body
            sent.append(message)
            body += message.get("body", b"")
            if len(body) >= room:
                left.set()

        pairs = [(name.encode(), value.encode()) for name, value in (("host", "localhost"), *headers)]
        if any(name == "host" for name, _ in headers):
            pairs = pairs[1:]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": root_path,
            "query_string": query.encode(),
            "headers": [pair for pair in pairs if pair[1] != b"-"],
            "client": None if client is None else (client, 5),
        }
        await asyncio.wait_for(app(scope, receive, send), seconds)

    asyncio.run(run())
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, body


def wsgi_request(
    app, path="/", method="GET", client="127.0.0.1", headers=(), root_path="", query="", multithread=True
):
    started = []
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SCRIPT_NAME": root_path,
        "QUERY_STRING": query,
        "HTTP_HOST": "localhost",
        "wsgi.multithread": multithread,
        **({} if client is None else {"REMOTE_ADDR": client}),
        **{"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers},
    }
    environ = {name: value for name, value in environ.items() if value != "-"}
    parts = app(environ, lambda status, head: started.append((status, head)))
    status, head = started[0]
    return int(status.split()[0]), {name.lower(): value for name, value in head}, parts


def status_of(kind, options, **request):
    if kind == "asgi":
        return asgi_request(page.asgi(**options), **request)[0]
    return wsgi_request(page.wsgi(**options), **request)[0]


FORWARDED = [("x-forwarded-for", "127.0.0.1")]


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
@pytest.mark.parametrize(
    ("status", "options", "client", "headers"),
    [
        (200, {}, "127.0.0.1", []),
        (200, {}, "127.8.9.1", [("host", "localhost:8000")]),
        (200, {}, "::1", [("host", "[::1]:8000")]),
        (200, {}, "::ffff:127.0.0.1", [("host", "127.0.0.1:8000")]),
        (200, {}, "127.0.0.1", [("host", "app.localhost")]),
        (200, {"hosts": "app.test"}, "127.0.0.1", [("host", "APP.test.:8000")]),
        # Other clients, and none at all (a Unix socket behind a proxy).
        (403, {}, "10.0.0.5", []),
        (403, {}, "::ffff:10.0.0.5", []),
        (403, {}, "2001:db8::1", []),
        (403, {}, None, []),
        (403, {}, "", []),
        (403, {}, "localhost", []),
        # Headers don't make a client local.
        (403, {}, "10.0.0.5", FORWARDED),
        (403, {}, "127.0.0.1", FORWARDED),
        (403, {}, "127.0.0.1", [("forwarded", "for=127.0.0.1")]),
        # DNS rebinding: the name of another site that points here.
        (403, {}, "127.0.0.1", [("host", "evil.example")]),
        (403, {}, "127.0.0.1", [("host", "localhost.evil.example")]),
        (403, {}, "127.0.0.1", [("host", "127.0.0.1.evil.example")]),
        (403, {}, "127.0.0.1", [("host", "evil.example:127")]),
        (403, {}, "127.0.0.1", [("host", "10.0.0.1")]),
        (403, {}, "127.0.0.1", [("host", "-")]),
        (403, {"hosts": ["app.test"]}, "127.0.0.1", [("host", "evil.example")]),
        # Where others are allowed, an address can't have been rebound, and a name has to be known.
        (200, {"allow": "10.0.0.0/8"}, "10.0.0.5", [("host", "10.0.0.1:8000")]),
        (200, {"allow": "10.0.0.5"}, "10.0.0.5", FORWARDED),
        (200, {"allow": ["10.0.0.0/8"]}, "127.0.0.1", []),
        # A proxy on this machine is not let in because others are.
        (403, {"allow": ["10.0.0.0/8"]}, "127.0.0.1", FORWARDED),
        (200, {"allow": ["127.0.0.1"]}, "127.0.0.1", FORWARDED),
        (200, {"allow": ["fd00::/8"], "hosts": ["a.test"]}, "fd00::7%eth0", [("host", "a.test")]),
        (403, {"allow": "10.0.0.0/8"}, "10.0.0.5", [("host", "evil.example")]),
        (403, {"allow": "10.0.0.0/8"}, "11.0.0.5", [("host", "10.0.0.1")]),
        (403, {"allow": []}, "10.0.0.5", [("host", "10.0.0.1")]),
    ],
)  # fmt: skip
def test_who_may_look(kind, status, options, client, headers):
    for path in ("/", "/frame", "/history", "/nowhere"):
        expected = 404 if path == "/nowhere" and status == 200 else status
        assert status_of(kind, options, client=client, headers=headers, path=path) == expected


def test_two_hosts_are_refused():
    app = page.asgi()
    assert asgi_request(app, headers=[("host", "localhost"), ("host", "localhost")])[0] == 403


def test_a_refusal_says_what_would_change_it():
    for options, words in (
        ({"client": "10.0.0.5"}, b"allow="),
        ({"headers": [("host", "evil.example")]}, b"hosts="),
    ):
        status, head, body = asgi_request(page.asgi(), **options)
        assert status == 403
        assert words in body
        assert head["content-type"].startswith("text/plain")


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
@pytest.mark.parametrize(
    ("status", "method", "path"),
    [
        (200, "GET", "/"),
        (200, "GET", ""),
        (200, "HEAD", "/"),
        (200, "HEAD", "/events"),
        (405, "POST", "/"),
        (405, "PUT", "/frame"),
        (404, "POST", "/nowhere"),
        (404, "GET", "/frame/"),
        (404, "GET", "/../frame"),
        (404, "GET", "//frame"),
        (404, "GET", "/page.js"),
        (404, "GET", "/events\0"),
    ],
)
def test_paths_and_methods(kind, status, method, path):
    assert status_of(kind, {}, method=method, path=path) == status


@pytest.mark.parametrize(
    ("path", "root_path"),
    [
        ("/frame", ""),
        # Starlette leaves the mount in the path, others take it off.
        ("/synthex/frame", "/synthex"),
        ("/frame", "/synthex"),
        ("/synthex/frame", "/synthex/"),
        ("/a/b/frame", "/a/b"),
    ],
)
def test_a_mount_may_be_in_the_path_or_not(path, root_path):
    assert asgi_request(page.asgi(), path=path, root_path=root_path)[0] == 200
    assert asgi_request(page.asgi(), path=path.replace("frame", "nowhere"), root_path=root_path)[0] == 404


def test_a_mount_ends_at_a_slash():
    assert _access.below_mount("/synthex2/frame", "/synthex") == "/synthex2/frame"
    assert _access.below_mount("/synthex", "/synthex") == ""


def test_the_page_is_one_document_with_a_strict_policy():
    app = page.asgi()
    nonces = set()
    for _ in range(3):
        status, head, body = asgi_request(app)
        text = body.decode()
        nonce = re.search(r"script-src 'nonce-([\w-]+)'", head["content-security-policy"])[1]
        assert status == 200
        assert text.count(f'nonce="{nonce}"') == 2
        nonces.add(nonce)
        # Nothing to load, no event handlers, no inline styles.
        assert not re.search(
            r"\s(src|on\w+|style)=|href=\"(?!#|data:)",
            re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S),
        )
        assert "{nonce}" not in text
    assert len(nonces) == 3
    assert "default-src 'none'" in head["content-security-policy"]
    assert "unsafe" not in head["content-security-policy"]
    assert head["cache-control"] == "no-store"
    assert asgi_request(app, path="/frame")[1]["cache-control"] == "no-store"
    assert int(head["content-length"]) == len(body) < 100_000


@pytest.mark.parametrize("make", [page.asgi, page.wsgi])
@pytest.mark.parametrize(
    ("error", "options", "name"),
    [
        (ArgumentTypeError, {"observed": {}}, "observed"),
        (ArgumentValueError, {"allow": "10.0.0.0/33"}, "allow"),
        (ArgumentValueError, {"allow": "localhost"}, "allow"),
        (ArgumentTypeError, {"allow": 5}, "allow"),
        (ArgumentTypeError, {"allow": [5]}, "allow"),
        (ArgumentValueError, {"hosts": "http://a"}, "hosts"),
        (ArgumentValueError, {"hosts": "a:80"}, "hosts"),
        (ArgumentTypeError, {"hosts": None}, "hosts"),
        (ArgumentValueError, {"interval": 0}, "interval"),
        (ArgumentValueError, {"interval": 0.01}, "interval"),
        (ArgumentValueError, {"interval": 61}, "interval"),
        (ArgumentTypeError, {"interval": "1"}, "interval"),
        (ArgumentValueError, {"streams": -1}, "streams"),
        (ArgumentTypeError, {"streams": True}, "streams"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, error, options, name):
    with pytest.raises(error, match=f"^{name} must be"):
        make(**options)


# ---- Streams


def events(body):
    """The events of a stream: ``(name, data)``."""
    found = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "data" in fields:
            found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def test_a_stream_begins_with_the_history_and_goes_on(shown):
    cache = shown.add(TTLDict(), "users")
    app = page.asgi(shown, interval=0.1)
    one = len(asgi_request(app, path="/events", room=1)[2])
    cache["ada"] = 1
    time.sleep(0.1)
    status, head, body = asgi_request(app, path="/events", room=3 * one)
    assert status == 200
    assert head["content-type"] == "text/event-stream"
    (kind, history), *frames = events(body)
    assert kind == "history"
    assert frames[-1][1]["components"][0]["stats"]["entries"] == 1
    assert frames[-1][1]["time"] > frames[0][1]["time"] >= history["rows"][-1][0] - 0.01
    assert body.startswith(b"retry: ")


def test_a_stream_ends_when_the_client_leaves_or_its_time_is_up(shown, monkeypatch):
    app = page.asgi(shown, interval=0.1, streams=1)
    for _ in range(3):
        # Long before its time, and each time there is room again.
        assert events(asgi_request(app, path="/events", room=1)[2])[0][0] == "history"
    monkeypatch.setattr(_access, "STREAM_SECONDS", 0.5)
    began = time.monotonic()
    asgi_request(app, path="/events", seconds=10)
    assert 0.4 < time.monotonic() - began < 5


class FakeServer:
    should_exit = False

    def handle_exit(self, number, frame):
        self.should_exit = True


def test_a_stream_ends_when_the_server_stops(shown):
    server = FakeServer()
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        app = page.asgi(shown, interval=60)
        threading.Timer(0.5, server.handle_exit, (signal.SIGTERM, None)).start()
        began = time.monotonic()
        asgi_request(app, path="/events", seconds=20)
        assert 0.3 < time.monotonic() - began < 5
    finally:
        signal.signal(signal.SIGTERM, before)


def test_viewers_without_a_stream_are_told_to_poll(shown):
    body = asgi_request(page.asgi(shown, streams=0), path="/events")[2]
    assert events(body) == [("poll", 2)]
    # One that handles a request at a time would be occupied by it.
    _, _, parts = wsgi_request(page.wsgi(shown, streams=5), path="/events", multithread=False)
    assert events(b"".join(parts)) == [("poll", 2)]


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_a_worker_that_is_not_the_one_asked_for_says_which_it_is(shown, kind, monkeypatch):
    app = getattr(page, kind)(shown)

    def frame(query):
        if kind == "asgi":
            body = asgi_request(app, path="/frame", query=query)[2]
        else:
            body = b"".join(wsgi_request(app, path="/frame", query=query)[2])
        return json.loads(body)

    whole = frame("")
    assert whole["time"] and frame(f"of={whole['id']}") == whole
    with monkeypatch.context() as patched:
        # It costs no snapshot.
        patched.setattr(Observed, "snapshot", lambda self: 1 / 0)
        assert frame("of=1-abc") == {"id": whole["id"], "pid": os.getpid()}


def test_wsgi_streams_are_bounded_and_their_places_come_back(shown, monkeypatch):
    monkeypatch.setattr(_access, "STREAM_SECONDS", 0.3)
    app = page.wsgi(shown, interval=0.1)
    _, head, stream = wsgi_request(app, path="/events")
    assert head["content-type"] == "text/event-stream"
    assert "content-length" not in head
    assert events(next(iter(stream)))[0][0] == "history"
    assert events(b"".join(wsgi_request(app, path="/events")[2])) == [("poll", 2)]
    assert sum(1 for _ in stream) >= 1
    stream.close()
    stream = wsgi_request(app, path="/events")[2]
    assert events(next(stream))[0][0] == "history"
    # A server that forgets to close one.
    del stream
    gc.collect()
    assert events(next(wsgi_request(app, path="/events")[2]))[0][0] == "history"


def test_lifespan_and_websockets_are_answered():
    async def run(scope, *messages):
        sent, waiting = [], list(messages)

        async def receive():
            return waiting.pop(0)

        async def send(message):
            sent.append(message["type"])

        await asyncio.wait_for(page.asgi()(scope, receive, send), 5)
        return sent

    sent = asyncio.run(run({"type": "lifespan"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert asyncio.run(run({"type": "websocket", "headers": []})) == ["websocket.close"]


# ---- Servers


APP = textwrap.dedent("""
    from synthex_fast import TTLDict
    from synthex_fast.exporters import Observed, page
    shown = Observed()
    users = shown.add(TTLDict(), "users")
    users["ada"] = 1
    asgi = page.asgi(shown, interval=0.2)
    wsgi = page.wsgi(shown, interval=0.2)
""")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def server(tmp_path, *command):
    """Serves the app above in a process of its own, started by ``command`` with its port; yields that, and its URL."""
    (tmp_path / "page_app.py").write_text(APP)
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *(part.replace("PORT", str(port)) for part in command)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield process, f"http://127.0.0.1:{port}/"
    finally:
        # Its workers too, which may not notice that it is gone.
        left = members(process.pid)
        process.kill()
        process.wait()
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


UVICORN = ("-m", "uvicorn", "page_app:asgi", "--port", "PORT", "--log-level", "warning")
# hypercorn imports trio only if it is told to.
HYPERCORN = ("-m", "hypercorn", "page_app:asgi", "--bind", "127.0.0.1:PORT", "--graceful-timeout", "3", "-k")
GUNICORN = ("-m", "gunicorn", "page_app:wsgi", "--bind", "127.0.0.1:PORT", "--workers", "1")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(
    ("needed", "command", "streams"),
    [
        (["uvicorn"], UVICORN, True),
        (["gunicorn"], (*GUNICORN, "--threads", "3"), True),
        (["gunicorn"], GUNICORN, False),
        (["hypercorn"], (*HYPERCORN, "asyncio"), True),
        (["hypercorn", "trio"], (*HYPERCORN, "trio"), False),
    ],
    ids=["uvicorn", "gunicorn-gthread", "gunicorn-sync", "hypercorn", "hypercorn-trio"],
)  # fmt: skip
def test_a_real_server_streams_and_stops_in_time(tmp_path, needed, command, streams):
    for name in needed:
        pytest.importorskip(name)
    with server(tmp_path, *command) as (process, url):
        frame = json.load(urllib.request.urlopen(url + "frame", timeout=20))
        assert frame["components"][0]["stats"]["entries"] == 1
        stream = urllib.request.urlopen(url + "events", timeout=20)
        if streams:
            lines = iter(stream)
            seen = [line for line, _ in zip(lines, range(12), strict=False) if line.startswith(b"data: ")]
            assert len(seen) >= 3
            # The others are served meanwhile.
            assert urllib.request.urlopen(url, timeout=20).status == 200
        else:
            assert events(stream.read()) == [("poll", 2)]
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.wait(20)
        assert time.monotonic() - began < 8
        stream.close()


# ---- In a browser


SERVE = textwrap.dedent("""
    import os, sys, threading, time
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
    from synthex_fast import GCTuner, MemoryGovernor, ObjectPool, TTLDict
    from synthex_fast.exporters import Observed, page

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Quiet(WSGIRequestHandler):
        def log_message(self, *arguments):
            pass

    shown = Observed()
    users = shown.add(TTLDict(max_size=1000), "users")
    evil = shown.add(TTLDict(memory_limit=1 << 20), "<img src=x onerror=document.title='hacked'>")
    pool = shown.add(ObjectPool(list, 10), "a_pool_with_a_name_that_is_long_and_has_no_place_to_break_it_at_all")
    tuner, governor = shown.add(GCTuner()), shown.add(MemoryGovernor("2GB"))
    governor.register(users)

    def load():
        n = 0
        while True:
            with tuner.request():
                for n in range(n, n + 50):
                    users.get(n % 1500)
                    users[n % 1500] = n
                    cycle = []
                    cycle.append(cycle)
            time.sleep(0.02)

    threading.Thread(target=load, daemon=True).start()
    mounted = page.wsgi(shown, interval=0.25, streams=int(sys.argv[2]))

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/some/where" or path.startswith("/some/where/"):
            # wsgiref doesn't know that it is threaded.
            own = {"SCRIPT_NAME": "/some/where", "PATH_INFO": path[11:], "wsgi.multithread": True}
            return mounted({**environ, **own}, start_response)
        start_response("404 Not Found", [])
        return []

    with tuner, governor:
        make_server("127.0.0.1", int(sys.argv[1]), app, Server, Quiet).serve_forever()
""")


@contextmanager
def serving(tmp_path, port, streams=4):
    script = tmp_path / "serve.py"
    script.write_text(SERVE)
    with (tmp_path / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), str(port), str(streams)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("websockets.sync.client")
    if browser.CHROMIUM is None:
        pytest.skip("there is no Chromium")
    try:
        opened = browser.Browser()
    except RuntimeError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    port = free_port()
    with serving(tmp_path_factory.mktemp("page"), port):
        yield f"http://localhost:{port}/some/where"


LIVE = "document.querySelector('.dot').className === 'dot live' && document.querySelectorAll('#caches tbody tr').length"


def cell(row, name):
    """A figure of a table, by the row's name and the column's."""
    return f"""(() => {{ const row = [...document.querySelectorAll("tbody tr")]
        .find((row) => row.querySelector("th").innerText.startsWith({json.dumps(row)}));
        return row && row.querySelector(`[data-name="{name}"]`).innerText; }})()"""


@pytest.mark.slow
class TestInABrowser:
    def test_figures_appear_and_change_under_load(self, chromium, site):
        chromium.open(site)
        chromium.wait(LIVE)
        assert chromium.text(".state") == "live"
        chromium.wait(cell("users", "Entries") + ".replace(/\\D/g, '') === '1000'")
        before = int(re.sub(r"\D", "", chromium.eval(cell("users", "Evicted: full"))))
        assert "MB" in chromium.text("#memory")
        collections = (
            "parseInt(document.querySelector('.sum > div:nth-child(3) .note').innerText.replace(/\\D/g, ''))"
        )
        counted = chromium.eval(collections)
        chromium.wait(f"{collections} > {counted}")
        chromium.wait(f"parseInt({cell('users', 'Evicted: full')}.replace(/\\D/g, '')) > {before}")
        chromium.wait(cell("users", "Lookups") + ".endsWith('/s')")
        # As long as there is only a minute of it, a minute is drawn.
        assert chromium.text("#memory button[aria-pressed=true]") in ("1 min", "5 min")
        chromium.eval("document.querySelector('#memory .choice').lastChild.click()")
        assert chromium.text("#memory button[aria-pressed=true]") == "1 h"
        # The line grows.
        points = "document.querySelector('path.used').getAttribute('d').split('L').length"
        first = chromium.eval(points)
        chromium.wait(f"{points} > {first}")

    def test_no_request_leaves_the_host_and_nothing_complains(self, chromium, site):
        chromium.open(site)
        chromium.wait(LIVE)
        chromium.wait("document.querySelector('path.used').getAttribute('d').split('L').length > 4")
        assert chromium.errors == []
        asked = [url for url in chromium.requests if not url.startswith("data:")]
        assert asked
        assert all(url.startswith(site) for url in asked), asked

    def test_names_are_text(self, chromium, site):
        chromium.open(site)
        chromium.wait(LIVE)
        assert "<img src=x onerror=document.title='hacked'>" in chromium.text("#caches")
        assert chromium.eval("document.querySelectorAll('img').length") == 0
        assert "hacked" not in chromium.eval("document.title")

    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_it_fits_any_width_and_can_be_read(self, chromium, site, dark):
        chromium.open(site, dark=dark)
        chromium.wait(LIVE)
        for width in (320, 360, 621, 760, 901, 961, 1101, 1400):
            chromium.resize(width)
            chromium.eval("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
            assert chromium.eval("document.documentElement.scrollWidth") <= width
            wide = chromium.eval(
                """(() => {
                    const end = (each) => each.getBoundingClientRect().right;
                    return [...document.querySelectorAll("section, .sum > div")].filter((each) =>
                        [...each.querySelectorAll("table, p, dl, h2, dd, button")].some((inner) =>
                            inner.getClientRects().length && end(inner) > end(each) + 0.5)
                    ).map((each) => each.id || each.innerText);
                })()"""
            )
            assert wide == [], width
        low = chromium.eval(CONTRAST)
        assert low == []

    def test_by_keyboard(self, chromium, site):
        chromium.open(site)
        chromium.wait(LIVE)
        seen = []
        for _ in range(8):
            chromium.press("Tab", 9)
            focused = "document.activeElement"
            seen.append(
                chromium.eval(f"{focused}.className || {focused}.innerText.trim() || {focused}.tagName")
            )
            assert chromium.eval(f"getComputedStyle({focused}).outlineStyle") != "none", seen
        expected = ["skip", "Pause", "1 min", "5 min", "15 min", "1 h", "chart", "As a table"]
        assert seen == expected
        chromium.eval("document.querySelector('.chart').focus()")
        chromium.press("ArrowLeft", 37)
        chromium.wait("!document.querySelector('.tip').hidden")
        assert re.match(r"\d\d:\d\d:\d\d · [\d.]+ MB", chromium.text(".tip"))
        assert chromium.eval("document.querySelector('.chart [role=status]').textContent").startswith(
            chromium.text(".tip")[:5]
        )
        # Pausing keeps every figure as it is.
        chromium.eval(
            "[...document.querySelectorAll('button')].find((each) => each.innerText === 'Pause').focus()"
        )
        chromium.press("Enter", 13)
        chromium.wait("document.querySelector('.dot').className === 'dot paused'")
        before = chromium.text("main")
        time.sleep(0.8)
        assert chromium.text("main") == before

    def test_for_a_screen_reader(self, chromium, site):
        chromium.open(site)
        chromium.wait(LIVE)
        assert chromium.eval("document.documentElement.lang") == "en"
        assert chromium.eval("document.querySelectorAll('main').length") == 1
        assert chromium.eval("document.querySelectorAll('h1').length") == 1
        unnamed = chromium.eval(
            """[...document.querySelectorAll("table")].filter((each) => !each.caption?.textContent.trim()).length
            + [...document.querySelectorAll("th")].filter((each) => !each.scope).length
            + [...document.querySelectorAll("section")].filter((each) =>
                !document.getElementById(each.getAttribute("aria-labelledby"))).length
            + [...document.querySelectorAll("svg")].filter((each) => each.getClientRects().length
                && !each.getAttribute("aria-label")).length"""
        )
        assert unnamed == 0
        assert re.search(
            r"now [\d.]+ [KMG]B",
            chromium.eval("document.querySelector('#memory svg').getAttribute('aria-label')"),
        )
        # Figures that change each second are not read out.
        time.sleep(1)
        assert chromium.text("#news") in ("", "Connected")

    def test_motion_is_left_out_on_request(self, chromium, site):
        animation = "getComputedStyle(document.querySelector('.dot')).animationName"
        chromium.open(site)
        chromium.wait(LIVE)
        assert chromium.eval(animation) == "beat"
        chromium.open(site, reduced_motion=True)
        chromium.wait(LIVE)
        assert chromium.eval(animation) == "none"

    def test_it_polls_where_there_is_no_stream(self, chromium, tmp_path):
        port = free_port()
        with serving(tmp_path, port, streams=0):
            chromium.open(f"http://127.0.0.1:{port}/some/where/")
            chromium.wait(LIVE)
            assert chromium.text(".state") == "polling"
            evicted = chromium.wait(cell("users", "Evicted: full"))
            chromium.wait(f"{cell('users', 'Evicted: full')} !== {json.dumps(evicted)}")
            assert chromium.errors == []

    def test_of_several_workers_it_stays_with_one_and_any_may_be_chosen(self, chromium, tmp_path):
        pytest.importorskip("gunicorn")
        shown = "parseInt(document.querySelector('.about').innerText.match(/pid (\\d+)/)[1])"
        points = "document.querySelector('path.used').getAttribute('d').split(/[ML]/).length"
        state = "document.querySelector('.state').innerText"

        def stays(pid):
            """Through further figures of that process."""
            for _ in range(2):
                before = chromium.eval(points)
                chromium.wait(f"{points} > {before}")
                assert chromium.eval(shown) == pid

        with server(tmp_path, *GUNICORN[:-1], "3") as (process, url):
            chromium.open(url)
            chromium.wait(LIVE)
            chromium.wait(
                "/^worker pid \\d+ of 3 that have answered/.test(document.querySelector('.about').innerText)"
            )
            first = chromium.eval(shown)
            stays(first)
            pids = {child.pid for child in psutil.Process(process.pid).children()}
            offered = "[...document.querySelector('select').options].map((each) => each.innerText)"
            assert chromium.eval(offered) == ["any process", *(f"pid {pid}" for pid in sorted(pids))]
            for other in sorted(pids - {first}):
                chromium.eval(
                    f"""(() => {{ const picker = document.querySelector("select");
                    picker.value = [...picker.options].find((each) => each.innerText === "pid {other}").value;
                    picker.dispatchEvent(new Event("change")); }})()"""
                )
                chromium.wait(f"{shown} === {other}")
                stays(other)
            # The chosen one dies: that others answer does not make its figures new.
            os.kill(other, signal.SIGKILL)
            chromium.wait(f"{state}.startsWith('pid {other} has not answered for')")
            assert chromium.eval(shown) == other
            chromium.eval(
                """(() => { const picker = document.querySelector("select");
                picker.value = ""; picker.dispatchEvent(new Event("change")); })()"""
            )
            chromium.wait(f"{shown} !== {other} && {state} === 'polling'")
            assert chromium.errors == []

    def test_with_streams_it_knows_the_other_workers_too(self, chromium, tmp_path):
        pytest.importorskip("uvicorn")
        about = "document.querySelector('.about').innerText"
        with server(tmp_path, *UVICORN, "--workers", "3", *uvicorn_patience()) as (_, url):
            chromium.open(url)
            chromium.wait(LIVE)
            chromium.wait(f"/^worker pid \\d+ of 3 that have answered/.test({about})", 150)
            assert chromium.text(".state") == "live"
            (other,) = chromium.eval(
                f"""(() => {{ const picker = document.querySelector("select");
                const shown = {about}.match(/pid (\\d+)/)[1];
                const other = [...picker.options].find((each) => each.value && each.innerText !== `pid ${{shown}}`);
                picker.value = other.value;
                picker.dispatchEvent(new Event("change"));
                return [other.innerText]; }})()"""
            )
            chromium.wait(f"{about}.startsWith('worker {other} of ')", 150)
            chromium.wait("document.querySelector('.state').innerText === 'live'")
            assert chromium.errors == []

    def test_it_survives_a_restart_of_the_worker(self, chromium, tmp_path):
        port = free_port()
        with serving(tmp_path, port) as first:
            chromium.open(f"http://localhost:{port}/some/where/")
            chromium.wait(LIVE)
            assert f"pid {first.pid} " in chromium.text("#top")
        chromium.wait("document.querySelector('.dot').className === 'dot lost'")
        with serving(tmp_path, port) as second:
            chromium.wait(f"document.querySelector('#top').innerText.includes('pid {second.pid} ')")
            chromium.wait(LIVE)
            chromium.wait("document.querySelector('#news').innerText.length > 0")


# Text whose contrast with what is behind it is below 4.5 to 1.
CONTRAST = """(() => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
    const behind = (each) => { for (; each; each = each.parentElement) {
        const found = rgb(getComputedStyle(each).backgroundColor); if (found.length < 4 || found[3] > 0) return found; }
        return [255, 255, 255]; };
    const low = [];
    for (const each of document.querySelectorAll("body *")) {
        if (![...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
        if (!each.getClientRects().length || each.closest("script, style, .unseen, .skip")) continue;
        const style = getComputedStyle(each);
        const text = light(rgb(each instanceof SVGElement ? style.fill : style.color)), back = light(behind(each));
        const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
        if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${each.textContent}`);
    }
    return low;
})()"""
