"""`install`: what it starts, for which applications, in which process, and that `stop` undoes all of it."""

import asyncio
import functools
import gc
import importlib
import json
import os
import sys
import threading
import types

import pytest
from servers import missing
from support import FREE_THREADED, in_child, needs_fork, quiet_fork, run

import synthex_fast
from synthex_fast import (
    AdaptiveMemoryMonitor,
    GCTuner,
    MemoryGovernor,
    ObjectPool,
    PooledExpertQuery,
    TTLDict,
)
from synthex_fast.errors import (
    AlreadyInstalledError,
    ArgumentTypeError,
    ArgumentValueError,
    SynthexFastError,
    TunerRunningError,
    UnsupportedServerError,
)
from synthex_fast.exporters import observed
from synthex_fast.integrations import Installation, installation
from synthex_fast.integrations.applications import interface

install = synthex_fast.install


def threads():
    """What an installation starts. The sweeper serves every dict, also those of earlier tests."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("synthex-fast") and thread.name != "synthex-fast-sweeper"
    ]


@pytest.fixture(autouse=True)
def _nothing_stays():
    """Each test finds the process as it was, and leaves it so."""
    # Python 3.12 begins with some frozen objects, and a tuner's stop leaves none.
    gc.unfreeze()
    before = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count(), list(gc.callbacks), threads()
    yield
    if installation.current() is not None:
        installation.current().stop()
    installation.release()
    assert (
        gc.get_threshold(),
        gc.isenabled(),
        gc.get_freeze_count(),
        list(gc.callbacks),
        threads(),
    ) == before
    assert not observed().snapshot()["components"]


def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def call_wsgi(app):
    response = app({"REQUEST_METHOD": "GET"}, lambda status, headers: None)
    try:
        return b"".join(response)
    finally:
        response.close()


class Lifespan:
    """A server's side of the lifespan protocol."""

    def __init__(self, app):
        self.app = app
        self.sent = []

    async def __aenter__(self):
        self.messages = asyncio.Queue()
        self.answered = asyncio.Queue()

        async def send(message):
            self.sent.append(message["type"])
            self.message = message
            await self.answered.put(message)

        async def run():
            try:
                await self.app({"type": "lifespan", "state": {}}, self.messages.get, send)
            finally:
                await self.answered.put(None)

        self.task = asyncio.create_task(run())
        await self.messages.put({"type": "lifespan.startup"})
        await self.answered.get()
        return self

    async def __aexit__(self, *error):
        if not self.task.done():
            await self.messages.put({"type": "lifespan.shutdown"})
        await asyncio.gather(self.task, return_exceptions=True)


async def ask(app, kind="http"):
    sent = []

    async def send(message):
        sent.append(message)

    await app({"type": kind}, None, send)
    return sent[-1]["body"]


# What starts, and what stop undoes


def test_without_an_application_everything_starts_at_once_and_stops():
    before = gc.get_threshold()
    app, placed = install()
    assert app is None
    assert placed.running
    assert placed.tuner.stats["running"] and placed.governor.running and placed.monitor.running
    assert isinstance(placed.tuner, GCTuner)
    assert isinstance(placed.governor, MemoryGovernor)
    assert isinstance(placed.monitor, AdaptiveMemoryMonitor)
    shown = observed()
    assert [shown.get(role) for role in ("tuner", "governor", "monitor")] == [
        placed.tuner,
        placed.governor,
        placed.monitor,
    ]
    assert threads()
    placed.stop()
    assert not placed.running
    assert not (placed.tuner.stats["running"] or placed.governor.running or placed.monitor.running)
    assert gc.get_threshold() == before
    assert not threads()
    assert [shown.get(role) for role in ("tuner", "governor", "monitor")] == [None] * 3
    placed.stop()


def test_one_limit_is_for_all_three():
    _, placed = install(memory_limit="1GB")
    stats = placed.stats
    assert {stats[role]["requested_limit"] for role in ("tuner", "governor", "monitor")} == {2**30}


@pytest.mark.parametrize("role", ["tuner", "governor", "monitor"])
def test_each_part_may_be_left_out(role):
    _, placed = install(**{role: False})
    assert getattr(placed, role) is None
    assert placed.stats[role] is None
    assert placed.running
    served, same = install(wsgi)
    assert same is placed
    assert call_wsgi(served) == b"hello" if role != "tuner" else served({}, lambda *_: None) == [b"hello"]


def test_objects_of_the_users_own_are_used_and_what_ran_before_goes_on():
    tuner, governor, monitor = GCTuner(freeze=False), MemoryGovernor(), AdaptiveMemoryMonitor()
    monitor.start()
    try:
        _, placed = install(tuner=tuner, governor=governor, monitor=monitor)
        assert (placed.tuner, placed.governor, placed.monitor) == (tuner, governor, monitor)
        assert tuner.stats["running"] and governor.running
        placed.stop()
        assert not (tuner.stats["running"] or governor.running)
        assert monitor.running
    finally:
        monitor.stop()


def test_the_governor_collects_through_the_tuner_and_is_woken_by_the_monitor():
    governor = MemoryGovernor()
    _, placed = install(governor=governor)
    assert "GCTuner" in governor.stats["components"]
    assert governor._subscription.source is placed.monitor
    placed.stop()
    assert governor.stats["components"] == {}
    _, placed = install()
    assert "GCTuner" in placed.governor.stats["components"]
    assert placed.governor._subscription.source is placed.monitor


class Part:
    """An object of the user's own that has the methods."""

    error = None

    def __init__(self):
        self.calls = []

    def start(self):
        self.calls.append("start")
        if self.error:
            raise self.error

    def stop(self):
        self.calls.append("stop")

    def request(self): ...
    def asgi(self, app):
        return app

    def wsgi(self, app):
        return app

    def on_pressure(self, level, callback):
        return lambda: None

    def register(self, obj, weight=1.0, *, name=None):
        self.calls.append(f"register {type(obj).__name__}")
        return obj

    def unregister(self, obj):
        self.calls.append(f"unregister {type(obj).__name__}")
        return True


def test_any_object_with_the_methods_will_do():
    tuner, governor, monitor = Part(), Part(), Part()
    _, placed = install(tuner=tuner, governor=governor, monitor=monitor)
    assert placed.stats["tuner"] is None
    placed.stop()
    assert tuner.calls == monitor.calls == ["start", "stop"]
    assert governor.calls == ["start", "stop"]
    _, placed = install(governor=governor)
    placed.stop()
    assert governor.calls[2:] == [
        "start",
        "register GCTuner",
        "register AdaptiveMemoryMonitor",
        "unregister AdaptiveMemoryMonitor",
        "unregister GCTuner",
        "stop",
    ]


def test_a_governor_of_the_users_own_is_shown():
    class Governor:
        level = "normal"
        start = stop = Part.start
        register, unregister = Part.register, Part.unregister
        error = None

        def __init__(self):
            self.calls = []

        @property
        def stats(self):
            return {"rss": 1, "charge": None, "limit": 2, "used": 0.5, "level": "normal"}

    _, placed = install(governor=Governor())
    users = placed.register(TTLDict(), name="users")
    snapshot = observed().snapshot()
    assert snapshot["memory"]["limit"] == 2
    assert set(snapshot["components"]) == {"users"}
    assert placed.governor.calls[-1] == "register TTLDict"
    assert len(users) == 0


@pytest.mark.parametrize("role", ["tuner", "governor", "monitor"])
def test_if_one_part_does_not_start_nothing_does(role):
    bad = Part()
    bad.error = OSError("no")
    with pytest.raises(OSError, match="no"):
        install(wsgi, **{role: bad})
    assert installation.current() is None
    _, placed = install()
    assert placed.running


def test_another_tuner_that_runs_is_respected():
    with GCTuner(freeze=False) as other:
        with pytest.raises(TunerRunningError):
            install()
        assert other.stats["running"]
        assert installation.current() is None
        assert not threads() or threads() == ["synthex-fast-gc-tuner"]


# Once


def test_a_further_call_gives_the_same():
    _, placed = install(wsgi, memory_limit="1GB")
    assert install()[1] is placed
    assert install(wsgi, memory_limit="1GB")[1] is placed
    served, same = install(asgi)
    assert same is placed
    assert asyncio.run(ask(served)) == b"hello"
    assert placed.tuner.stats["requests"] == 1


def test_an_application_is_wrapped_once():
    served, placed = install(wsgi)
    assert install(served)[0] is served
    # At another place, by a server's hook say.
    again, _ = install(lambda environ, start_response: served(environ, start_response))
    assert call_wsgi(again) == b"hello"
    assert placed.tuner.stats["requests"] == 1
    placed.stop()
    fresh, other = install(served)
    assert other is not placed and fresh is not served
    assert call_wsgi(fresh) == b"hello"
    assert other.tuner.stats["requests"] == 1
    assert placed.tuner.stats["requests"] == 1


@pytest.mark.parametrize(
    ("first", "then", "name"),
    [
        ({}, {"tuner": False}, "tuner"),
        ({"memory_limit": "1GB"}, {"memory_limit": "2GB"}, "memory_limit"),
        ({}, {"memory_limit": "2GB"}, "memory_limit"),
        ({}, {"monitor": AdaptiveMemoryMonitor()}, "monitor"),
    ],
)
def test_a_further_call_that_asks_for_something_else_is_refused(first, then, name):
    _, placed = install(**first)
    with pytest.raises(
        AlreadyInstalledError, match=f"^{name} is .* in the installation that is in place, not"
    ):
        install(wsgi, **then)
    assert placed.running
    placed.stop()
    install(**then)


def test_with_ends_it_and_start_after_another_is_refused():
    _, first = install()
    with first:
        assert first.running
    assert not first.running
    _, second = install()
    with pytest.raises(AlreadyInstalledError):
        first.start()
    second.stop()
    first.start()
    assert first.running and install()[1] is first


# Applications


def three(scope, receive, send): ...
def two(environ, start_response): ...
def anything(*arguments, **named): ...
def one(scope): ...


async def lonely(scope): ...


@functools.wraps(two)
def wrapped(*arguments):
    return two(*arguments)


class ASGIObject:
    async def __call__(self, scope, receive, send): ...


class WSGIObject:
    def __call__(self, environ, start_response): ...


class RSGIObject:
    async def __rsgi__(self, scope, protocol): ...


class ASGIAndRSGIObject(ASGIObject, RSGIObject):
    pass


class WSGIAndRSGIObject(WSGIObject, RSGIObject):
    pass


async def rsgi(scope, protocol): ...


def anything_named(environ, *rest): ...


@pytest.mark.parametrize(
    ("app", "kind"),
    [
        (asgi, "asgi"),
        (three, "asgi"),
        (ASGIObject(), "asgi"),
        (ASGIObject().__call__, "asgi"),
        (functools.partial(asgi), "asgi"),
        (functools.partial(three, 1), "wsgi"),
        (wsgi, "wsgi"),
        (two, "wsgi"),
        (WSGIObject(), "wsgi"),
        (wrapped, "wsgi"),
        (anything_named, "wsgi"),
        (rsgi, "rsgi"),
        (functools.partial(asgi, {}), "rsgi"),
        (RSGIObject(), "rsgi"),
        (ASGIAndRSGIObject(), "asgi"),
        (WSGIAndRSGIObject(), "rsgi"),
    ],
)
def test_interfaces_are_told_apart(app, kind):
    assert interface(app) == kind


@pytest.mark.parametrize(
    ("app", "text"),
    [
        (3, "app must be an ASGI, RSGI or WSGI application, or None, not 3"),
        ("module:app", "app must be"),
        (ASGIObject, "an instance, where this is the class"),
        (anything, "wrap it in a function of your own"),
        (max, "wrap it in a function of your own|app must be"),
        (one, "ASGI 2"),
        (lonely, "ASGI 2"),
        (lambda: None, "app must be"),
    ],
)
def test_what_is_no_application_is_refused_by_name_and_nothing_starts(app, text):
    with pytest.raises(ArgumentTypeError, match=text) as error:
        install(app)
    assert str(error.value).startswith("app must be ")
    assert installation.current() is None


class Loop:
    """What an RSGI application's start and end are given."""


class RSGILoaded:
    """Notes what is called."""

    def __init__(self, fail=()):
        self.calls = []
        self.fail = fail

    def _note(self, name):
        self.calls.append((name, installation.current().running))
        if name in self.fail:
            raise KeyError(name)

    def __rsgi_init__(self, loop):
        assert isinstance(loop, Loop)
        self._note("init")

    def __rsgi_del__(self, loop):
        assert isinstance(loop, Loop)
        self._note("del")

    async def __rsgi__(self, scope, protocol):
        self._note("call")


def call_rsgi(app):
    asyncio.run(app.__rsgi__(types.SimpleNamespace(proto="http", path="/", method="GET"), None))


def test_an_rsgi_application_is_started_before_and_ended_after():
    loaded = RSGILoaded()
    app, placed = install(loaded)
    assert not placed.running and placed.stats["waiting"] and placed.stats["interface"] == "rsgi"
    assert app.calls is loaded.calls and install(app)[0] is app
    app.__rsgi_init__(Loop())
    call_rsgi(app)
    assert placed.running and placed.stats["tuner"]["requests"] == 1
    app.__rsgi_del__(Loop())
    assert not placed.running
    assert loaded.calls == [("init", False), ("call", True), ("del", True)]


def test_an_rsgi_function_without_start_and_end_starts_with_the_first_request():
    called = []

    async def function(scope, protocol):
        called.append(scope.path)

    app, placed = install(function)
    asyncio.run(app(types.SimpleNamespace(proto="http", path="/", method="GET"), None))
    assert called == ["/"] and placed.running
    app.__rsgi_init__(Loop())
    app.__rsgi_del__(Loop())
    assert not placed.running


@pytest.mark.parametrize("fail", [["init"], ["del"], ["call"]])
def test_an_rsgi_application_that_fails_leaves_nothing_running(fail):
    app, placed = install(RSGILoaded(fail))

    def serve():
        app.__rsgi_init__(Loop())
        try:
            call_rsgi(app)
        finally:
            app.__rsgi_del__(Loop())

    with pytest.raises(KeyError, match=fail[0]):
        serve()
    assert not placed.running


def test_where_nothing_can_be_started_an_rsgi_application_is_ended():
    with GCTuner():
        loaded = RSGILoaded()
        app, placed = install(loaded)
        with pytest.raises(TunerRunningError):
            app.__rsgi_init__(Loop())
        assert loaded.calls == [("init", False), ("del", False)]
        assert not placed.running


@pytest.mark.parametrize(("app", "kind"), [(asgi, "asgi"), (wsgi, "wsgi")])
def test_granian_that_was_not_told_the_interface_is_refused(app, kind):
    served, _ = install(app)
    with pytest.raises(UnsupportedServerError, match=f"start it with --interface {kind}"):
        served.__rsgi_init__(Loop())


def test_a_tuner_of_ones_own_may_have_no_middleware_for_rsgi():
    methods = dict.fromkeys(("start", "stop", "request", "asgi", "wsgi"), lambda *_: None)
    with pytest.raises(ArgumentTypeError, match="tuner must be an object with rsgi, for an application"):
        install(rsgi, tuner=types.SimpleNamespace(**methods))
    assert installation.current() is None


FRAMEWORKS = {
    "starlette": ("asgi", "from starlette.applications import Starlette; app = Starlette()"),
    "fastapi": ("asgi", "from fastapi import FastAPI; app = FastAPI()"),
    "litestar": ("asgi", "from litestar import Litestar; app = Litestar([])"),
    "quart": ("asgi", "from quart import Quart; app = Quart('app')"),
    "flask": ("wsgi", "from flask import Flask; app = Flask('app')"),
    "django": (
        "asgi",
        "from django.conf import settings; settings.configure(ROOT_URLCONF='app')\n"
        "from django.core.asgi import get_asgi_application; app = get_asgi_application()",
    ),
    "django, wsgi": (
        "wsgi",
        "from django.conf import settings; settings.configure(ROOT_URLCONF='app')\n"
        "from django.core.wsgi import get_wsgi_application; app = get_wsgi_application()",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_frameworks_are_known_and_their_lifespans_run(framework):
    if missing(framework.split(",")[0]):
        pytest.skip(missing(framework.split(",")[0]))
    kind, code = FRAMEWORKS[framework]
    done = run(
        f"""
import asyncio, json, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
{code}
import synthex_fast
served, placed = synthex_fast.install(app)
ran = []
if placed.stats["interface"] == "asgi":
    from test_install import Lifespan
    async def main():
        ran.append(placed.running)
        async with Lifespan(served) as lifespan:
            ran.append(placed.running)
        ran.append(placed.running)
        ran.append(lifespan.sent)
    asyncio.run(main())
print(json.dumps([placed.stats["interface"], ran]))
""",
        stderr=None,
    )
    told, ran = json.loads(done.splitlines()[-1])
    assert told == kind
    if kind == "asgi":
        assert ran == [False, True, False, ["lifespan.startup.complete", "lifespan.shutdown.complete"]]


def test_attributes_are_the_applications():
    class Framework:
        debug = False

        def __call__(self, environ, start_response):
            return wsgi(environ, start_response)

        def get(self, path):
            return f"route {path}"

    app = Framework()
    served, _ = install(app)
    assert served.get("/") == "route /"
    served.debug = True
    assert app.debug is True
    del served.debug
    assert app.debug is False
    assert "get" in dir(served)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = served.no_such_name
    with pytest.raises(AttributeError):
        _ = served.__wrapped__


def test_each_request_of_a_wsgi_application_is_counted_until_it_stops():
    served, placed = install(wsgi)
    assert placed.running
    response = served({}, lambda *_: None)
    assert placed.stats["tuner"]["in_flight"] == 1
    response.close()
    assert placed.stats["tuner"]["in_flight"] == 0
    placed.stop()
    assert call_wsgi(served) == b"hello"
    assert placed.stats["tuner"]["requests"] == 1


# Lifespan


async def with_lifespan(scope, receive, send):
    if scope["type"] != "lifespan":
        await asgi(scope, receive, send)
        return
    assert (await receive())["type"] == "lifespan.startup"
    with_lifespan.seen.append(installation.current().running)
    await send({"type": "lifespan.startup.complete"})
    with_lifespan.seen.append(installation.current().running)
    assert (await receive())["type"] == "lifespan.shutdown"
    with_lifespan.seen.append(installation.current().running)
    await send({"type": "lifespan.shutdown.complete"})
    with_lifespan.seen.append(installation.current().running)


def test_it_starts_after_the_applications_own_startup_and_stops_after_its_shutdown():
    served, placed = install(with_lifespan)

    async def main():
        assert placed.stats["waiting"] and not placed.running
        for _ in range(2):
            with_lifespan.seen = []
            async with Lifespan(served) as lifespan:
                assert lifespan.sent == ["lifespan.startup.complete"]
                assert placed.running
                assert await ask(served) == b"hello"
                assert placed.stats["tuner"]["requests"] == 1
            assert lifespan.sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
            assert with_lifespan.seen == [False, True, True, False]
            assert not placed.running and not threads()

    asyncio.run(main())
    assert install()[1] is placed


@pytest.mark.parametrize("how", ["raises", "returns", "asserts"])
def test_an_application_without_a_lifespan_is_answered_for(how):
    async def app(scope, receive, send):
        if scope["type"] != "http":
            if how == "returns":
                return
            raise {"raises": ValueError, "asserts": AssertionError}[how]("http only")
        await asgi(scope, receive, send)

    served, placed = install(app)

    async def main():
        async with Lifespan(served) as lifespan:
            assert placed.running
            assert await ask(served) == b"hello"
        assert lifespan.sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert lifespan.task.exception() is None
        assert not placed.running

    asyncio.run(main())


def test_an_application_that_fails_to_start_is_not_covered_up():
    async def app(scope, receive, send):
        await receive()
        raise ValueError("no database")

    served, placed = install(app)

    async def main():
        async with Lifespan(served) as lifespan:
            pass
        assert lifespan.sent == []
        assert str(lifespan.task.exception()) == "no database"
        assert not placed.running

    asyncio.run(main())


@pytest.mark.parametrize("app", [with_lifespan, asgi])
def test_what_fails_to_start_fails_the_servers_start(app):
    with_lifespan.seen = []
    bad = Part()
    bad.error = OSError("no thread")

    served, placed = install(app, monitor=bad)

    async def main():
        async with Lifespan(served) as lifespan:
            pass
        assert lifespan.sent == ["lifespan.startup.failed"]
        assert lifespan.message["message"] == "synthex_fast did not start: no thread"
        assert isinstance(lifespan.task.exception(), OSError)
        assert not placed.running

    asyncio.run(main())


def test_a_cancelled_lifespan_stops_it():
    served, placed = install(with_lifespan)
    with_lifespan.seen = []

    async def main():
        async with Lifespan(served) as lifespan:
            lifespan.task.cancel()
        assert not placed.running

    asyncio.run(main())


def test_the_last_of_two_lifespans_stops_it():
    first, placed = install(with_lifespan)
    second, _ = install(asgi)
    with_lifespan.seen = []

    async def main():
        async with Lifespan(first):
            async with Lifespan(second) as lifespan:
                assert placed.running
            assert lifespan.sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
            assert placed.running
        assert not placed.running

    asyncio.run(main())


def test_without_a_lifespan_the_first_request_starts_it():
    served, placed = install(asgi)
    assert not placed.running
    assert asyncio.run(ask(served)) == b"hello"
    assert placed.running
    assert placed.tuner.stats["requests"] == 1


def test_after_stop_neither_a_request_nor_a_lifespan_starts_it():
    served, placed = install(asgi)
    placed.stop()
    assert asyncio.run(ask(served)) == b"hello"

    async def main():
        async with Lifespan(served) as lifespan:
            assert not placed.running
        assert lifespan.sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    asyncio.run(main())
    assert not placed.running


def test_stop_inside_a_lifespan_is_for_good():
    served, placed = install(with_lifespan)
    with_lifespan.seen = []

    async def main():
        async with Lifespan(served):
            placed.stop()
            assert not placed.running
        _, other = install()
        assert other.running
        async with Lifespan(served):
            pass
        assert other.running

    asyncio.run(main())


def test_if_the_first_request_cannot_start_it_that_is_reported_and_the_request_served(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: seen.append(str(report.exc_value)))
    bad = Part()
    bad.error = OSError("no")
    served, placed = install(asgi, monitor=bad)
    assert asyncio.run(ask(served)) == b"hello"
    assert asyncio.run(ask(served)) == b"hello"
    assert seen == ["no"]
    assert not placed.running


def test_additions_to_a_paused_buffer_wait_except_in_an_event_loop():
    async def inside():
        return installation._may_wait()

    assert installation._may_wait()
    assert asyncio.run(inside()) is False


# Components


def test_components_are_registered_with_the_governor_and_shown():
    _, placed = install()
    users = placed.register(TTLDict(), 2.0, name="users")
    lists = placed.register(ObjectPool(list, 3))
    assert placed.register(PooledExpertQuery) is PooledExpertQuery
    components = placed.stats["governor"]["components"]
    assert components["users"]["weight"] == 2.0
    assert set(components) == {"users", "ObjectPool", "GCTuner"}
    assert set(observed().snapshot()["components"]) == {"users", "ObjectPool", "PooledExpertQuery"}
    assert placed.unregister(lists)
    assert not placed.unregister(lists)
    assert "ObjectPool" not in observed().snapshot()["components"]
    placed.stop()
    assert observed().snapshot()["components"] == {}
    assert len(users) == 0


def test_without_a_governor_components_are_only_shown():
    _, placed = install(governor=False)
    users = placed.register(TTLDict(), name="users")
    assert dict(observed().components()) == {"users": users}


@pytest.mark.parametrize(
    ("arguments", "named", "text"),
    [
        (([],), {}, "obj must be something with nbytes and trim"),
        ((TTLDict(), -1), {}, "weight must be"),
        ((TTLDict(),), {"name": 3}, "name must be"),
    ],
)
def test_bad_components_are_refused(arguments, named, text):
    _, placed = install()
    with pytest.raises(SynthexFastError, match=text):
        placed.register(*arguments, **named)


# Metrics


@pytest.fixture
def exporter(monkeypatch):
    module = types.ModuleType("synthex_fast.exporters.prometheus")
    calls = []

    class Registered:
        def unregister(self):
            calls.append("unregister")

    def register():
        calls.append("register")
        if module.error is not None:
            raise module.error
        return Registered()

    module.register, module.calls, module.error = register, calls, None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_metrics_are_registered_while_it_runs(exporter):
    served, placed = install(asgi, metrics="prometheus")
    assert exporter.calls == []
    placed.start()
    assert exporter.calls == ["register"]
    placed.stop()
    assert exporter.calls == ["register", "unregister"]
    assert served is not asgi


def test_metrics_that_cannot_be_registered_stop_the_installation(exporter):
    exporter.error = ModuleNotFoundError("the extra is missing")
    with pytest.raises(ModuleNotFoundError, match="the extra is missing"):
        install(metrics="prometheus")
    assert installation.current() is None


def scrape_wsgi(app, **environ):
    """The status, headers and text of an answer, and whether it was the application's."""
    answered = []
    response = app(
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", **environ},
        lambda status, headers: answered.extend((status, dict(headers))),
    )
    text = b"".join(response).decode()
    if hasattr(response, "close"):
        response.close()
    return *answered, text


def scrape_asgi(app, **scope):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(
        app({"type": "http", "method": "GET", "path": "/metrics", "headers": [], **scope}, None, send)
    )
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"].decode()


def test_a_path_of_the_application_answers_scrapes_while_it_runs():
    pytest.importorskip("prometheus_client")
    served, placed = install(wsgi, metrics="/metrics")
    users = placed.register(TTLDict(), name="users")
    users["ada"] = 1
    status, headers, text = scrape_wsgi(served)
    assert status == "200 OK"
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert int(headers["Content-Length"]) == len(text.encode())
    assert 'synthex_cache_entries{cache="users"} 1.0' in text.splitlines()
    # A scrape is no request of the application's.
    assert placed.stats["tuner"]["requests"] == 0
    status, headers, nothing = scrape_wsgi(served, REQUEST_METHOD="HEAD")
    assert (status, nothing) == ("200 OK", "")
    assert int(headers["Content-Length"]) > 0
    for other in ({"PATH_INFO": "/metrics/"}, {"REQUEST_METHOD": "POST"}):
        assert scrape_wsgi(served, **other)[2] == "hello"
    placed.stop()
    assert scrape_wsgi(served)[2] == "hello"


def test_a_path_of_an_asgi_application_answers_scrapes():
    pytest.importorskip("prometheus_client")
    served, placed = install(asgi, metrics="/metrics")
    # The first request starts it where there is no lifespan.
    status, headers, text = scrape_asgi(served)
    assert status == 200
    assert int(headers[b"content-length"]) == len(text.encode())
    assert "synthex_memory_limit_bytes" in text
    assert scrape_asgi(served, method="HEAD")[2] == ""
    assert scrape_asgi(served, path="/")[2] == "hello"
    assert scrape_asgi(served, method="POST")[2] == "hello"
    placed.stop()
    assert scrape_asgi(served)[2] == "hello"


def test_a_path_without_an_application_is_refused():
    with pytest.raises(ArgumentValueError, match=r"^metrics must be .* no application to answer"):
        install(metrics="/metrics")
    assert installation.current() is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"metrics": "statsd"}, ArgumentValueError),
        ({"metrics": 1}, ArgumentTypeError),
        ({"memory_limit": "much"}, ArgumentValueError),
        ({"memory_limit": -1}, ArgumentValueError),
        ({"memory_limit": True}, ArgumentTypeError),
        ({"tuner": None}, ArgumentTypeError),
        ({"governor": GCTuner()}, ArgumentTypeError),
        ({"monitor": 1}, ArgumentTypeError),
    ],
)
def test_bad_options_are_refused_by_name_and_nothing_starts(options, error):
    (name,) = options
    with pytest.raises(error, match=f"^{name} must be"):
        install(wsgi, **options)
    assert installation.current() is None


def test_a_limit_that_nothing_would_use_is_refused():
    with pytest.raises(ArgumentValueError, match="memory_limit must be None, since nothing"):
        install(memory_limit="1GB", tuner=False, governor=False, monitor=False)


# Forks


@needs_fork
@quiet_fork
def test_a_forked_child_goes_on_with_it_and_can_stop_it():
    before = gc.get_threshold()
    served, placed = install(wsgi)
    assert call_wsgi(served) == b"hello"
    # What comes after the installation is shared with the child too.
    late = [[n] for n in range(5000)]
    frozen = gc.get_freeze_count()

    def child():
        assert placed.running and install()[1] is placed
        assert placed.stats["pid"] == os.getpid()
        assert call_wsgi(served) == b"hello"
        assert placed.stats["tuner"]["requests"] == 1
        assert placed.monitor.running
        if not FREE_THREADED:
            assert gc.get_freeze_count() >= frozen + len(late)
        placed.stop()
        assert gc.get_threshold() == before
        assert gc.get_freeze_count() == 0 or sys.version_info[:2] == (3, 12)
        assert not threads()

    in_child(child)
    assert placed.running
    assert placed.stats["tuner"]["requests"] == 1


@needs_fork
def test_what_waits_in_the_parent_starts_in_the_child():
    served, placed = install(asgi)

    def child():
        assert asyncio.run(ask(served)) == b"hello"
        assert placed.running
        placed.stop()

    in_child(child)
    assert not placed.running


# gevent


@pytest.mark.slow
@pytest.mark.skipif(bool(missing("gevent")), reason=missing("gevent"))
def test_under_gevents_own_server_greenlets_requests_are_counted_one_by_one():
    assert (
        run(
            """
            from gevent import monkey; monkey.patch_all()
            import gc, gevent, urllib.request
            before = gc.get_threshold()
            from gevent.pywsgi import WSGIServer
            import synthex_fast

            def app(environ, start_response):
                seen.append(installation.stats["tuner"]["in_flight"])
                gevent.sleep(0.02)
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [b"hello"]

            seen = []
            app, installation = synthex_fast.install(app)
            server = WSGIServer(("127.0.0.1", 0), app, log=None)
            server.start()

            def ask():
                return urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=20).read()

            jobs = [gevent.spawn(ask) for _ in range(50)]
            assert [job.get() for job in jobs] == [b"hello"] * 50
            stats = installation.stats["tuner"]
            print(stats["requests"], stats["in_flight"], max(seen) > 1)
            server.stop()
            installation.stop()
            print(gc.get_threshold() == before, installation.tuner._watcher.thread, installation.monitor.running)
            """,
            "-Wignore::DeprecationWarning",
            stderr=None,
        )
        == "50 0 True\nTrue None False\n"
    )


# What it costs the package


def test_the_package_imports_none_of_it_before_it_is_used():
    assert (
        run(
            """
            import sys
            import synthex_fast
            print([name for name in sys.modules if "integrations" in name or "exporters" in name])
            synthex_fast.install
            print("synthex_fast.integrations.gunicorn" in sys.modules)
            """
        )
        == "[]\nFalse\n"
    )


def test_it_is_one_class():
    assert importlib.import_module("synthex_fast.integrations").Installation is Installation
    with pytest.raises(TypeError, match="belongs to this process"):
        import copy

        copy.copy(install()[1])
