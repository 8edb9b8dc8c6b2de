"""Callbacks whose result is dropped or kept must not be async: refused at construction, or when what they return shows.

Nothing may be lost then, and no coroutine may be left that was never awaited (a warning, which fails the test).
"""

import asyncio
import functools
import gc
import inspect
import sys
import types
import warnings

import pytest
from support import in_child, needs_fork, quiet_fork

from synthex_fast import (
    AdaptiveMemoryMonitor,
    MemoryGovernor,
    ObjectPool,
    PooledExpertResponse,
    ResponseBuffer,
    ResponseCollector,
    TTLDict,
)
from synthex_fast._arguments import refuse_awaited, want_callable
from synthex_fast.errors import ArgumentTypeError, BufferFullError
from synthex_fast.gc_tuner import GCTuner


@pytest.fixture(autouse=True)
def no_coroutine_is_left_unawaited():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(each.message) for each in caught if "never awaited" in str(each.message)] == []


async def function(*_arguments):
    return 1


async def generator(*_arguments):
    yield 1


@types.coroutine
def old_style(*_arguments):
    yield


class Caller:
    async def __call__(self, *_arguments):
        return 1

    async def method(self, *_arguments):
        return 1

    @classmethod
    async def of_class(cls, *_arguments):
        return 1

    part = functools.partialmethod(method, 1)


class StaticCaller:
    @staticmethod
    async def __call__(*_arguments):
        return 1


ASYNC = {
    "function": function,
    "generator": generator,
    "types.coroutine": old_style,
    "partial": functools.partial(function, 1),
    "partial of a partial": functools.partial(functools.partial(function, 1), 2),
    "partial of a method": functools.partial(Caller().method, 1),
    "partial of an object": functools.partial(Caller(), 1),
    "object": Caller(),
    "static call": StaticCaller(),
    "method": Caller().method,
    "classmethod": Caller.of_class,
    "partialmethod": Caller().part,
    "static method object": staticmethod(function),
}
if hasattr(inspect, "markcoroutinefunction"):
    ASYNC["marked"] = inspect.markcoroutinefunction(lambda *_arguments: function())
asynchronous = pytest.mark.parametrize("callback", ASYNC.values(), ids=ASYNC)

# How each callback is given, by its name in the error.
TAKERS = {
    "buffer on_flush": ("on_flush", lambda f: ResponseBuffer(10, 10, on_flush=f)),
    "collector on_flush": ("on_flush", lambda f: ResponseCollector(on_flush=f)),
    "on_evict": ("on_evict", lambda f: TTLDict(on_evict=f)),
    "on_remove": ("on_remove", lambda f: TTLDict(on_remove=f)),
    "ttl": ("ttl", lambda f: TTLDict(ttl=f)),
    "sizeof": ("sizeof", lambda f: TTLDict(memory_limit=1000, sizeof=f)),
    "timer": ("timer", lambda f: TTLDict(timer=f)),
    "get_or_set": ("factory", lambda f: TTLDict().get_or_set("k", f)),
    "pool factory": ("factory", lambda f: ObjectPool(f)),
    "pool reset": ("reset", lambda f: ObjectPool(list, reset=f)),
    "on_pressure": ("callback", lambda f: AdaptiveMemoryMonitor().on_pressure("high", f)),
    "on_emergency": ("on_emergency", lambda f: MemoryGovernor(on_emergency=f)),
    "governor pause": ("pause", lambda f: MemoryGovernor(pause=f)),
    "buffer pause": ("wait", lambda f: ResponseBuffer().pause(f)),
    "clock": ("clock", lambda f: AdaptiveMemoryMonitor(clock=f)),
}
takers = pytest.mark.parametrize(("name", "take"), TAKERS.values(), ids=TAKERS)


@asynchronous
@takers
def test_async_callables_are_refused_by_name(name, take, callback):
    with pytest.raises(ArgumentTypeError, match=rf"^{name} must be a callable that isn't async"):
        take(callback)


def test_other_callables_are_accepted():
    loop = functools.partial(len)
    loop.__setstate__((loop, (), {}, {}))
    for callback in (
        len,
        list,
        dict.get,
        [].append,
        lambda: function(),
        functools.partial(len, ""),
        Caller,
        loop,
    ):
        assert want_callable("callback", callback) is callback


def test_an_asgi_application_may_be_async():
    assert GCTuner().asgi(function) is not None


def test_results_that_need_no_await_are_accepted():
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    for result in (None, 1, "x", [], object(), future):
        refuse_awaited("callback", result)
    loop.close()


class Awaitable:
    def __await__(self):
        yield


def results():
    return {"coroutine": function(), "generator": generator(), "old": old_style(), "object": Awaitable()}


@pytest.mark.parametrize("kind", ["coroutine", "generator", "old", "object"])
def test_a_flush_whose_handler_returns_an_awaitable_loses_nothing(kind):
    returned = []

    def handler(responses):
        made = results()
        for other in made:
            if other in ("coroutine", "old") and other != kind:
                made[other].close()
        returned.append(made[kind])
        return made[kind]

    buffer = ResponseBuffer(10, 10, on_flush=handler)
    batch = [PooledExpertResponse("q", f"e{n}") for n in range(8)]
    with pytest.raises(ArgumentTypeError, match="on_flush must not be async: it returned"):
        buffer.add_batch(batch)
    assert len(buffer) == 8
    with pytest.raises(ArgumentTypeError, match="nothing awaits"):
        buffer.flush()
    assert len(buffer) == 8
    assert buffer.stats["failed"] == 2
    if kind == "coroutine":
        assert inspect.getcoroutinestate(returned[0]) == "CORO_CLOSED"


def test_a_generator_function_as_a_flush_handler_loses_nothing():
    def handler(responses):
        yield from responses

    buffer = ResponseBuffer(on_flush=handler)
    buffer.add(PooledExpertResponse("q", "e"))
    with pytest.raises(ArgumentTypeError, match="returned a generator"):
        buffer.flush()
    assert len(buffer) == 1


def test_a_collector_whose_handler_returns_an_awaitable_loses_nothing():
    collector = ResponseCollector(on_flush=lambda responses: function(responses))
    collector.add(PooledExpertResponse("q", "e"))
    with pytest.raises(ArgumentTypeError, match="on_flush must not be async"):
        collector.flush()
    assert collector.buffered == 1

    class Owner:
        async def handler(self, responses):
            return None

    owner = Owner()
    with pytest.raises(ArgumentTypeError, match="on_flush"):
        ResponseCollector(owner, on_flush=owner.handler)


def test_a_handler_may_return_a_task():
    sent = []

    async def send(responses):
        sent.extend(responses)

    async def main():
        buffer = ResponseBuffer(on_flush=lambda responses: asyncio.ensure_future(send(responses)))
        buffer.add(PooledExpertResponse("q", "e"))
        buffer.flush()
        await asyncio.sleep(0)
        return len(buffer)

    assert asyncio.run(main()) == 0
    assert [response.expert_id for response in sent] == ["e"]


def test_get_or_set_keeps_no_coroutine():
    cache = TTLDict()
    with pytest.raises(ArgumentTypeError, match="factory must not be async: it returned a coroutine"):
        cache.get_or_set("k", lambda: function())
    assert "k" not in cache
    assert cache.get_or_set("k", lambda: 1) == 1


def test_get_or_set_keeps_what_can_be_awaited_again():
    # A client object that may be awaited for its connection, as those of Redis and asyncpg may.
    client = Awaitable()
    assert TTLDict().get_or_set("k", lambda: client) is client


def test_a_size_or_a_time_is_no_coroutine():
    with pytest.raises(ArgumentTypeError, match="sizeof must not be async"):
        TTLDict(memory_limit=1000, sizeof=lambda key, value: function())["k"] = 1
    with pytest.raises(ArgumentTypeError, match="timer must not be async"):
        TTLDict(timer=lambda: function())


def test_the_pools_callables_return_no_coroutine():
    pool = ObjectPool(lambda: function(), prefill=0)
    with pytest.raises(ArgumentTypeError, match="factory must not be async"):
        pool.acquire()
    assert pool.stats["created"] == 0
    pool = ObjectPool(list, prefill=0, reset=lambda items: function())
    items = pool.acquire()
    with pytest.raises(ArgumentTypeError, match="reset must not be async"):
        pool.release(items)
    assert len(pool) == 0
    assert pool.stats["discarded"] == 1

    class Slow:
        async def reset(self):
            return None

    pool = ObjectPool(Slow, prefill=0)
    with pytest.raises(ArgumentTypeError, match="reset must not be async"):
        pool.release(pool.acquire())
    assert len(pool) == 0


@pytest.fixture
def unraisable(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: seen.append(str(report.exc_value)))
    return seen


def test_background_callbacks_report_what_nobody_awaits(unraisable):
    evicted = TTLDict(1, on_evict=lambda key, value, reason: function())
    evicted["a"] = 1
    evicted["b"] = 2
    assert len(evicted) == 1
    AdaptiveMemoryMonitor._call(lambda level, sample: function(), "high", None)
    governor = MemoryGovernor(on_emergency=lambda governor: function())
    governor._notify_emergency()
    assert [message.split(":")[0] for message in unraisable] == [
        "on_evict must not be async",
        "callback must not be async",
        "on_emergency must not be async",
    ]


def test_a_pause_is_no_coroutine():
    buffer = ResponseBuffer()
    buffer.pause(lambda: function())
    with pytest.raises(ArgumentTypeError, match="wait must not be async"):
        buffer.add(PooledExpertResponse("q", "e"))
    buffer.resume()


# --- aflush ---


def filled(cls=ResponseBuffer, count=3, **options):
    made = cls(**options)
    for n in range(count):
        made.add(PooledExpertResponse("q", f"e{n}"))
    return made


def buffered(made):
    return len(made) if isinstance(made, ResponseBuffer) else made.buffered


either = pytest.mark.parametrize("cls", [ResponseBuffer, ResponseCollector])


@either
def test_aflush_removes_what_the_handler_has_taken(cls):
    made = filled(cls, on_flush=lambda responses: pytest.fail("on_flush was called"))
    seen = []

    async def handler(responses):
        assert buffered(made) == 3
        seen.append([response.expert_id for response in responses])
        responses.clear()
        await asyncio.sleep(0)
        assert buffered(made) == 3

    taken = asyncio.run(made.aflush(handler))
    assert seen == [["e0", "e1", "e2"]]
    assert [response.expert_id for response in taken] == ["e0", "e1", "e2"]
    assert buffered(made) == 0
    assert asyncio.run(made.aflush(handler)) == []
    assert len(seen) == 1


@either
@pytest.mark.parametrize("error", [OSError, asyncio.CancelledError, KeyboardInterrupt])
def test_aflush_loses_nothing_if_the_handler_raises(cls, error):
    made = filled(cls)

    async def handler(responses):
        await asyncio.sleep(0)
        raise error

    with pytest.raises(error):
        asyncio.run(made.aflush(handler))
    assert buffered(made) == 3
    assert made.stats["failed"] == 1
    assert len(made.flush()) == 3


def test_aflush_loses_nothing_if_it_is_cancelled_or_dropped():
    buffer = filled()

    async def main():
        task = asyncio.ensure_future(buffer.aflush(lambda responses: asyncio.sleep(60)))
        await asyncio.sleep(0)
        assert buffer.flush() == []
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(buffer) == 3
    running = buffer.aflush(lambda responses: Awaitable())
    running.send(None)
    assert buffer.flush() == []
    del running
    gc.collect()
    assert len(buffer.flush()) == 3


def test_what_is_added_during_aflush_stays():
    buffer = filled()
    counted = []

    async def handler(responses):
        counted.append(buffer.consensus("q").count)
        buffer.add(PooledExpertResponse("q", "late", confidence=0.5))
        assert buffer.flush() == []
        assert await buffer.aflush(handler) == []

    asyncio.run(buffer.aflush(handler))
    assert counted == [3]
    assert buffer.consensus("q").experts == {"late"}
    assert [response.expert_id for response in buffer.flush()] == ["late"]


def test_a_full_buffer_refuses_during_aflush():
    buffer = filled(count=10, capacity=10)

    async def handler(responses):
        with pytest.raises(BufferFullError):
            buffer.add(PooledExpertResponse("q", "late"))

    asyncio.run(buffer.aflush(handler))
    assert len(buffer) == 0


def test_aflush_checks_its_handler():
    buffer = filled()
    with pytest.raises(ArgumentTypeError, match="handler must be callable"):
        buffer.aflush(None)
    with pytest.raises(ArgumentTypeError, match=r"handler\(responses\) must be something to await"):
        asyncio.run(buffer.aflush(len))
    assert len(buffer.flush()) == 3


def test_aflush_is_an_ordinary_coroutine():
    coroutine = ResponseBuffer().aflush(function)
    assert inspect.iscoroutine(coroutine)
    coroutine.close()


@needs_fork
@quiet_fork
def test_a_child_forked_during_aflush_can_flush():
    buffer = filled()
    running = buffer.aflush(lambda responses: Awaitable())
    running.send(None)

    def child():
        assert len(buffer.flush()) == 3
        buffer.add(PooledExpertResponse("q", "own"))
        with pytest.raises(StopIteration):
            running.send(None)
        assert len(buffer) == 1

    in_child(child)
    assert buffer.flush() == []
    with pytest.raises(StopIteration) as ended:
        running.send(None)
    assert len(ended.value.value) == 3
    assert len(buffer) == 0
