"""The parts together, as a service uses them: repeated runs, eight threads at once, a fork in the middle."""

import contextlib
import gc
import os
import signal
import sys
import threading

import pytest
from support import needs_fork

from synthex_fast import (
    ObjectPool,
    PooledExpertQuery,
    PooledExpertResponse,
    ResponseBuffer,
    TTLDict,
)
from synthex_fast.errors import BufferFullError


class Request(PooledExpertQuery):
    """A service's own record."""


def serve(pool, active, answers, buffer, flushed, number):
    """One request: a query, five answers, the cache, the buffer, consensus."""
    query = Request(
        f"Title {number}",
        "How large should the pool be, and why?",
        "billing",
        context={"number": number, "nested": {"list": [number] * 3}},
        constraints=["cheap", "fast"],
        tags=["Pool", "pool "],
    )
    active[query.id] = query
    batch = [
        PooledExpertResponse(query.id, f"expert-{n}", "Because." * 10, n / 5, metadata={"n": n})
        for n in range(5)
    ]
    # A full buffer whose handler is running in another thread refuses: a service answers without it.
    with contextlib.suppress(BufferFullError):
        buffer.add_batch(batch)
    answers[query.id] = batch
    scratch = pool.acquire()
    try:
        scratch.append(number)
        # Other threads may have pushed it out already.
        assert active.get(query.id, query).context["number"] == number
        assert len(answers.get(query.id, batch)) == 5
    finally:
        scratch.clear()
        pool.release(scratch)
    flushed.append(len(flushed))
    return query.id


def service():
    """The parts as one process has them."""
    pool = ObjectPool(list, 50)
    active = TTLDict(max_size=100, ttl=3600.0)
    answers = TTLDict(max_size=50, ttl=3600.0, memory_limit=200_000)
    buffer = ResponseBuffer(1000, 100, on_flush=lambda batch: None)
    return pool, active, answers, buffer, []


def requests():
    parts = service()
    for number in range(20):
        serve(*parts, number)
    aggregate = parts[3].aggregate()
    assert all(row.count == 5 for row in aggregate.values())
    parts[3].flush()


def cycles():
    query = PooledExpertQuery("A title", "Some content here", "someone")
    query.context["itself"] = query
    cache = TTLDict(max_size=10, ttl=3600.0)
    cache["itself"] = cache
    cache["query"] = query
    pool = ObjectPool(list, 10, prefill=0)
    held = pool.acquire()
    held.append(pool)
    held.append(cache)
    pool.release(held)
    buffer = ResponseBuffer(10)
    response = PooledExpertResponse(query.id, "an expert", "An answer", 0.5)
    response.metadata["buffer"] = buffer
    buffer.add(response)


def failures():
    """Every way to be refused that leaves something half done, if it is done wrong."""
    _, active, answers, buffer, _ = service()
    with pytest.raises(ValueError):
        PooledExpertQuery("A title", "short", "someone", tags=["one"], context={"a": [1]})
    with pytest.raises(TypeError):
        active[[]] = "unhashable"
    with pytest.raises(ValueError):
        answers["key"] = b"x" * 300_000
    with pytest.raises((TypeError, ValueError)):
        buffer.add_batch([PooledExpertResponse("query", "an expert", "An answer", 0.5), "no response"])
    with pytest.raises(ValueError):
        buffer.add_batch(PooledExpertResponse("query", "an expert") for _ in range(200))
    assert len(buffer) == len(answers) == len(active) == 0

    def factory():
        raise LookupError

    with pytest.raises(LookupError):
        active.get_or_set("key", factory)
    with pytest.raises(LookupError):
        ObjectPool(factory, 10, prefill=0).acquire()


@pytest.mark.parametrize("scenario", [requests, cycles, failures])
def test_repeated_runs_leak_nothing(scenario, leaks_nothing):
    # The sweeper's list of dicts that are gone is cleared at every 65th. A window adds 140, which leaves it longer by
    # 10, until the seventh at the latest leaves it shorter: there must be as many.
    leaks_nothing(scenario, runs=70, windows=9)


def test_eight_threads_serve_requests(hammer):
    parts = service()
    numbers = iter(range(10**9))
    lock = threading.Lock()

    def work(index):
        with lock:
            number = next(numbers)
        serve(*parts, number)
        if number % 50 == 0:
            parts[3].aggregate()
            gc.collect(0)

    hammer(8, work, iterations=100)
    pool, active, answers, _, flushed = parts
    assert len(flushed) == 800
    assert len(active) == 100
    assert len(answers) <= 50
    assert answers.nbytes <= 200_000
    stats = pool.stats
    assert stats["released"] + stats["discarded"] == 800


@needs_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.stress
def test_fork_while_other_threads_serve_requests():
    parts = service()
    stop = threading.Event()
    errors = []

    def work(offset):
        number = offset
        try:
            while not stop.is_set():
                serve(*parts, number)
                number += 1
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(n * 10**6,)) for n in range(4)]
    for thread in threads:
        thread.start()
    ids = set()
    try:
        for _ in range(10):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                status = 1
                # A deadlock ends the child, not the test run. (faulthandler's own timer would deadlock in a child
                # of a process that has one running.)
                signal.alarm(60)
                try:
                    os.close(reader)
                    # The parts that the parent uses, and new ones.
                    made = [serve(*parts, n) for n in range(50)] + [serve(*service(), n) for n in range(5)]
                    os.write(writer, "\n".join(made).encode())
                    status = 0
                except BaseException:
                    import traceback

                    traceback.print_exc()
                    sys.stderr.flush()
                finally:
                    os._exit(status)
            os.close(writer)
            with open(reader, encoding="ascii") as pipe:
                made = pipe.read().split()
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert len(made) == 55
            # Neither another child nor the parent may have drawn the same identifiers.
            assert ids.isdisjoint(made)
            ids.update(made)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert ids.isdisjoint(parts[1])
