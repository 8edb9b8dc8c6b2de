"""What `ObjectPool` promises with `on_discard` and with `max_in_use`: who is called, who waits, and who comes first."""

import asyncio
import contextlib
import gc
import math
import os
import signal
import sys
import threading
import time
import weakref
from importlib.util import find_spec

import pytest
from support import FREE_THREADED, in_threads, needs_fork, quiet_fork, run, wait_for

from synthex_fast import ObjectPool
from synthex_fast._pool import Acquisition, Lease
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError, PoolExhaustedError, SynthexFastError


class Thing:
    closed = 0

    def close(self):
        self.closed += 1


class Closing:
    """An `on_discard` that remembers what it closed."""

    def __init__(self):
        self.things = []

    def __call__(self, thing):
        thing.close()
        self.things.append(thing)


def in_a_thread(function):
    """What the function returns in a thread of its own."""
    answer = []
    in_threads(lambda: answer.append(function()))
    return answer[0]


# --- arguments ---


@pytest.mark.parametrize("bad", [0, -1, 2**80, 1.5, "5", True, math.nan])
def test_a_bad_limit_is_named(bad):
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match=r"^max_in_use must be"):
        ObjectPool(Thing, max_in_use=bad)


@pytest.mark.parametrize("bad", [3, "close"])
def test_a_bad_on_discard_is_named(bad):
    with pytest.raises(ArgumentTypeError, match=r"^on_discard must be"):
        ObjectPool(Thing, on_discard=bad)


def test_on_discard_must_not_be_async():
    async def close(thing):
        pass

    with pytest.raises(ArgumentTypeError, match=r"^on_discard must be"):
        ObjectPool(Thing, on_discard=close)


@pytest.mark.parametrize("bad", [-1, -0.001, math.nan, "1", True, 10**400, -math.inf])
@pytest.mark.parametrize("bounded", [True, False])
def test_a_bad_timeout_is_named(bad, bounded):
    pool = ObjectPool(Thing, prefill=0, max_in_use=1 if bounded else None)
    for call in (pool.acquire, pool.aacquire, pool.lease):
        with pytest.raises((ArgumentTypeError, ArgumentValueError), match=r"^timeout must be"):
            call(timeout=bad)
    assert pool.stats["created"] == 0


def test_properties():
    close = Closing()
    pool = ObjectPool(Thing, prefill=0, max_in_use=3, on_discard=close)
    assert (pool.max_in_use, pool.on_discard) == (3, close)
    assert (ObjectPool(Thing).max_in_use, ObjectPool(Thing).on_discard) == (None, None)
    assert {"in_use", "waiting"} <= set(pool.stats)
    assert "in_use" not in ObjectPool(Thing).stats


# --- on_discard ---


def test_everything_the_pool_gives_up_is_closed_once():
    close = Closing()
    pool = ObjectPool(Thing, 10, prefill=10, on_discard=close)
    pool.trim(1)
    assert len(close.things) == 1
    pool.resize(5)
    assert len(close.things) == 5
    pool.clear()
    assert len(close.things) == 10
    assert {thing.closed for thing in close.things} == {1}
    assert pool.stats["discarded"] == 10


def test_a_released_object_that_finds_no_room_is_closed():
    close = Closing()
    pool = ObjectPool(Thing, 1, prefill=0, on_discard=close)
    first, second = pool.acquire(), pool.acquire()
    assert pool.release(first) and not close.things
    assert not pool.release(second)
    assert close.things == [second]


def test_an_object_whose_reset_raises_is_closed():
    close = Closing()

    def reset(thing):
        raise ValueError("broken")

    pool = ObjectPool(Thing, prefill=0, reset=reset, on_discard=close)
    thing = pool.acquire()
    with pytest.raises(ValueError, match="broken"):
        pool.release(thing)
    assert close.things == [thing] and len(pool) == 0


def test_expired_objects_are_closed_by_operations_and_by_the_sweep(monkeypatch):
    monkeypatch.setattr("synthex_fast._sweeper.schedule", lambda client, due: None)
    close = Closing()
    pool = ObjectPool(Thing, prefill=3, max_idle=0.01, on_discard=close)
    time.sleep(0.05)
    pool._sweep(1.0)
    assert len(close.things) == 3
    pool = ObjectPool(Thing, prefill=3, max_idle=0.01, on_discard=close)
    time.sleep(0.05)
    pool.acquire()
    assert len(close.things) == 6


def test_idle_objects_are_closed_when_the_pool_is_freed():
    close = Closing()
    pool = ObjectPool(Thing, prefill=4, on_discard=close)
    del pool
    gc.collect()
    assert [thing.closed for thing in close.things] == [1] * 4


def test_idle_objects_are_closed_when_a_cycle_with_the_pool_is_collected():
    class Owner:
        def __init__(self):
            self.open = 3
            self.pool = ObjectPool(Thing, prefill=3, on_discard=self.close)

        def close(self, thing):
            thing.close()
            # Everything still works: the collector has not taken anything apart.
            self.open -= 1
            closed.append((thing.closed, self.open, self.pool.max_size))

    closed = []
    owner = Owner()
    seen = weakref.ref(owner)
    del owner
    gc.collect()
    assert seen() is None
    assert closed == [(1, 2, 1000), (1, 1, 1000), (1, 0, 1000)]


def test_an_idle_object_that_is_still_used_is_not_closed():
    close = Closing()
    pool = ObjectPool(Thing, prefill=0, on_discard=close)
    thing = pool.acquire()
    pool.release(thing)
    pool.clear()
    assert not close.things and not thing.closed
    pool.release(thing)
    assert pool.acquire() is not thing
    assert pool.stats["aliased"] == 1 and not close.things


def test_an_object_released_twice_is_not_closed_while_it_is_idle():
    close = Closing()
    pool = ObjectPool(Thing, 1, prefill=0, on_discard=close)
    thing = pool.acquire()
    assert pool.release(thing)
    assert not pool.release(thing)  # no room
    assert not close.things
    del thing
    assert pool.acquire().closed == 0


def test_what_a_second_release_that_fails_finds_idle_is_not_closed():
    close = Closing()
    resets = []

    def reset(thing):
        resets.append(1)
        if len(resets) > 1:
            raise ValueError

    pool = ObjectPool(Thing, prefill=0, reset=reset, on_discard=close)
    thing = pool.acquire()
    pool.release(thing)
    with pytest.raises(ValueError):
        pool.release(thing)
    assert not close.things


def test_what_on_discard_raises_reaches_the_hook_and_nothing_is_lost(monkeypatch):
    def close(thing):
        raise OSError("no")

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: seen.append(str(found.exc_value)))
    pool = ObjectPool(Thing, 3, prefill=3, on_discard=close)
    pool.clear()
    extra = Thing()
    for _ in range(3):
        pool.release(Thing())
    pool.release(extra)
    assert seen == ["no"] * 4
    assert len(pool) == 3


def test_an_on_discard_that_returns_a_coroutine_is_reported(monkeypatch):
    async def close():
        pass

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: seen.append(str(found.exc_value)))
    ObjectPool(Thing, prefill=1, on_discard=lambda thing: close()).clear()
    assert len(seen) == 1 and seen[0].startswith("on_discard must not be async")


def test_on_discard_may_use_the_pool():
    def close(thing):
        if len(pool) < 3:
            pool.release(Thing())
        pool.acquire()
        pool.resize(7)
        pool.stats  # noqa: B018

    pool = ObjectPool(Thing, 10, prefill=10, on_discard=close)
    pool.clear()
    assert pool.max_size == 7


def test_an_exception_on_its_way_survives_on_discard():
    close = Closing()
    with pytest.raises(KeyError, match="body"), ObjectPool(Thing, 1, on_discard=close).lease():
        raise KeyError("body")
    assert len(close.things) == 1


def test_the_objects_of_a_thread_that_ends():
    close = Closing()
    pool = ObjectPool(Thing, prefill=0, on_discard=close)
    in_threads(lambda: pool.release(pool.acquire()))
    # Only that thread could have reused it, without the GIL.
    assert len(close.things) == (1 if FREE_THREADED else 0)
    pool.clear()
    assert len(close.things) == 1


@pytest.mark.skipif(not FREE_THREADED, reason="objects stay with their thread without the GIL only")
def test_another_threads_object_is_closed_at_release():
    close = Closing()
    pool = ObjectPool(Thing, prefill=0, on_discard=close)
    thing = in_a_thread(pool.acquire)
    assert not pool.release(thing)
    assert close.things == [thing]


def test_another_thread_can_clear():
    close = Closing()
    pool = ObjectPool(Thing, prefill=5, on_discard=close)
    in_threads(pool.clear)
    assert len(close.things) == 5


def test_prefilled_objects_are_closed_if_the_factory_fails():
    close = Closing()
    made = []

    def factory():
        if len(made) == 3:
            raise ValueError
        made.append(1)
        return Thing()

    with pytest.raises(ValueError):
        ObjectPool(factory, prefill=5, on_discard=close)
    assert len(close.things) == 3


# --- max_in_use ---


def test_the_limit_holds_and_the_error_is_a_timeout():
    pool = ObjectPool(Thing, max_in_use=2)
    first, second = pool.acquire(), pool.acquire()
    for timeout in (0, 0.001):
        with pytest.raises(PoolExhaustedError, match=r"\(2\)") as caught:
            pool.acquire(timeout=timeout)
        assert isinstance(caught.value, TimeoutError) and isinstance(caught.value, SynthexFastError)
    assert pool.stats["in_use"] == 2
    assert pool.release(first)
    assert pool.acquire(timeout=0) is not second
    assert pool.stats["in_use"] == 2 and pool.stats["waiting"] == 0


def test_a_timeout_is_of_no_account_without_a_limit():
    pool = ObjectPool(Thing, prefill=0)
    assert len({id(thing) for thing in [pool.acquire(timeout=0) for _ in range(5)]}) == 5


def test_with_max_idle():
    pool = ObjectPool(Thing, prefill=2, max_idle=100, max_in_use=1)
    with pool.lease(timeout=0), pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    assert len(pool) == 2


def test_a_second_release_and_a_strangers_object_take_no_slot():
    pool = ObjectPool(Thing, prefill=0, max_in_use=2)
    first, second = pool.acquire(), pool.acquire()
    assert pool.release(first) and not pool.release(first) and not pool.release(Thing())
    assert pool.stats["in_use"] == 1
    third = pool.acquire(timeout=0)
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    assert pool.release(second) and not pool.release(first) and pool.release(third)


def test_none_cannot_be_released():
    with pytest.raises(ArgumentTypeError, match=r"^obj must be"):
        ObjectPool(Thing, max_in_use=1).release(None)


def test_released_objects_are_reset_and_reused():
    pool = ObjectPool(dict, prefill=0, reset=dict.clear, max_in_use=1)
    for _ in range(5):
        with pool.lease() as context:
            assert not context
            context["user"] = 1
        del context
    assert pool.stats["created"] == 1


def test_a_release_whose_reset_raises_frees_the_slot():
    def reset(thing):
        raise ValueError

    pool = ObjectPool(Thing, prefill=0, reset=reset, max_in_use=1)
    for _ in range(3):
        with pytest.raises(ValueError):
            pool.release(pool.acquire(timeout=0))
    assert pool.stats["in_use"] == 0


def test_a_factory_that_raises_frees_the_slot():
    def factory():
        raise ValueError

    pool = ObjectPool(factory, prefill=0, max_in_use=1)
    for _ in range(3):
        with pytest.raises(ValueError):
            pool.acquire(timeout=0)
    assert pool.stats["in_use"] == 0


def test_objects_dropped_without_a_release_come_back():
    close = Closing()
    pool = ObjectPool(Thing, prefill=0, max_in_use=3, on_discard=close)
    kept = pool.acquire()
    pool.acquire()
    pool.acquire()
    again = [pool.acquire(timeout=0), pool.acquire(timeout=0)]
    assert len(close.things) == 2
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    assert pool.release(kept) and all(map(pool.release, again))


def test_many_objects_in_use():
    pool = ObjectPool(Thing, prefill=0, max_in_use=3000)
    used = [pool.acquire() for _ in range(3000)]
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    # In another order, so that gaps close in the middle of runs.
    for thing in used[::7] + [thing for n, thing in enumerate(used) if n % 7]:
        assert pool.release(thing) or len(pool) == pool.max_size
    assert pool.stats["in_use"] == 0
    assert not any(map(pool.release, used))


def test_a_factory_that_returns_one_object_again():
    thing = Thing()
    pool = ObjectPool(lambda: thing, prefill=0, max_in_use=2)
    assert pool.acquire(timeout=0) is pool.acquire(timeout=0)
    with pytest.raises(PoolExhaustedError):
        pool.acquire(timeout=0)
    pool.release(thing)
    pool.release(thing)
    assert pool.stats["in_use"] == 0


def test_a_waiting_thread_gets_what_is_released():
    pool = ObjectPool(Thing, prefill=0, max_in_use=1)
    thing = pool.acquire()
    got = []
    waiting = threading.Thread(target=lambda: got.append(pool.acquire(timeout=30)))
    waiting.start()
    wait_for(lambda: pool.stats["waiting"] == 1)
    pool.release(thing)
    waiting.join()
    assert len(got) == 1 and pool.stats["in_use"] == 1


def test_first_come_first_served():
    pool = ObjectPool(Thing, prefill=0, max_in_use=1)
    thing = pool.acquire()
    order = []

    def wait(n):
        got = pool.acquire()
        order.append(n)
        pool.release(got)

    threads = []
    for n in range(6):
        threads.append(threading.Thread(target=wait, args=(n,)))
        threads[-1].start()
        wait_for(lambda n=n: pool.stats["waiting"] == n + 1)
    # One that comes now must not overtake them.
    pool.release(thing)
    with contextlib.suppress(PoolExhaustedError):
        pool.release(pool.acquire(timeout=0))
        order.append("late")
    for thread in threads:
        thread.join()
    assert [n for n in order if n != "late"] == list(range(6))
    assert order[-1] == "late" or "late" not in order
    assert pool.stats["in_use"] == 0


def test_a_waiter_that_gives_up_leaves_its_place():
    pool = ObjectPool(Thing, prefill=0, max_in_use=1)
    thing = pool.acquire()
    got = []

    def give_up():
        with pytest.raises(PoolExhaustedError):
            pool.acquire(timeout=0.05)

    first = threading.Thread(target=give_up)
    first.start()
    # On a busy machine its time may be up before this thread looks.
    wait_for(lambda: pool.stats["waiting"] == 1 or not first.is_alive())
    second = threading.Thread(target=lambda: got.append(pool.acquire()))
    second.start()
    first.join()
    wait_for(lambda: pool.stats["waiting"] == 1)
    pool.release(thing)
    second.join()
    assert len(got) == 1 and pool.stats == {**pool.stats, "in_use": 1, "waiting": 0}


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_an_interrupt_while_waiting_loses_nothing():
    def interrupt(number, frame):
        raise KeyboardInterrupt

    pool = ObjectPool(Thing, prefill=0, max_in_use=1)
    thing = pool.acquire()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert pool.stats["waiting"] == 0
    pool.release(thing)
    pool.acquire(timeout=0)


def test_subclasses():
    class Counting(ObjectPool):
        acquired = 0

        def acquire(self, **options):
            self.acquired += 1
            return super().acquire(**options)

        def aacquire(self, **options):
            self.acquired += 1
            return super().aacquire(**options)

    pool = Counting(Thing, prefill=0, max_in_use=1)

    async def use():
        async with pool.lease(timeout=1) as thing:
            assert isinstance(thing, Thing)
            with pytest.raises(PoolExhaustedError):
                async with pool.lease(timeout=0.001):
                    pass

    with pool.lease():
        pass
    with pool.lease(timeout=1):
        pass
    asyncio.run(use())
    assert pool.acquired == 4 and pool.stats["in_use"] == 0


def test_a_subclass_without_init():
    class Broken(ObjectPool):
        def __init__(self):
            pass

    for call in (lambda: Broken().acquire(timeout=1), lambda: Broken().aacquire()):
        with pytest.raises(SynthexFastError, match="not initialised"):
            call()


# --- asyncio ---


def test_a_lease_of_an_unbounded_pool_is_an_async_context_manager():
    pool = ObjectPool(list, prefill=0, reset=list.clear)

    async def use():
        async with pool.lease() as items:
            items.append(1)
        lease = pool.lease()
        async with lease as other:
            with pytest.raises(SynthexFastError, match="already holds"):
                lease.__aenter__()
        async with lease:
            pass
        with pytest.raises(KeyError):
            async with lease:
                raise KeyError
        return items, other

    items, _other = asyncio.run(use())
    assert items == [] and isinstance(pool.lease(), Lease)


def test_tasks_wait_in_order_and_others_run():
    pool = ObjectPool(Thing, prefill=0, max_in_use=2)
    order = []
    most = [0]

    async def use(n):
        async with pool.lease():
            most[0] = max(most[0], pool.stats["in_use"])
            order.append(n)
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*map(use, range(50)))

    asyncio.run(main())
    assert order == list(range(50)) and most == [2]
    assert pool.stats["in_use"] == pool.stats["waiting"] == 0


def test_await_times_out():
    async def main():
        pool = ObjectPool(Thing, prefill=0, max_in_use=1)
        thing = await pool.aacquire()
        for timeout in (0, 0.001):
            with pytest.raises(PoolExhaustedError):
                await pool.aacquire(timeout=timeout)
        assert pool.stats["waiting"] == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.aacquire(), 0.001)
        assert pool.stats["waiting"] == 0
        pool.release(thing)
        assert isinstance(await pool.aacquire(timeout=0), Thing)

    asyncio.run(main())


def test_a_cancelled_task_leaves_its_place():
    async def main():
        pool = ObjectPool(Thing, prefill=0, max_in_use=1)
        thing = await pool.aacquire()
        first = asyncio.create_task(use(pool))
        second = asyncio.create_task(use(pool))
        await asyncio.sleep(0)
        assert pool.stats["waiting"] == 2
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert pool.stats["waiting"] == 1
        pool.release(thing)
        assert isinstance(await second, Thing)
        assert pool.stats["in_use"] == 0

    async def use(pool):
        async with pool.lease() as thing:
            return thing

    asyncio.run(main())


def test_a_task_cancelled_after_it_was_granted_a_slot_passes_it_on():
    async def main():
        pool = ObjectPool(Thing, prefill=0, max_in_use=1)
        thing = await pool.aacquire()
        first, second = (asyncio.ensure_future(wait(pool)) for _ in range(2))
        await asyncio.sleep(0)
        pool.release(thing)  # granted to the first, which has not run yet
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert isinstance(await second, Thing)
        assert pool.stats == {**pool.stats, "in_use": 1, "waiting": 0}

    async def wait(pool):
        return await pool.aacquire()

    asyncio.run(main())


def test_a_thread_releases_what_a_task_waits_for():
    async def main():
        pool = ObjectPool(Thing, prefill=0, max_in_use=1)
        thing = await pool.aacquire()
        waiting = asyncio.ensure_future(wait(pool))
        await asyncio.sleep(0)
        threading.Timer(0.02, pool.release, [thing]).start()
        assert isinstance(await waiting, Thing)

    async def wait(pool):
        return await pool.aacquire(timeout=30)

    asyncio.run(main())


def test_a_thread_waits_for_what_a_task_releases():
    async def main():
        pool = ObjectPool(Thing, prefill=0, max_in_use=1)
        thing = await pool.aacquire()
        waiting = asyncio.get_running_loop().run_in_executor(None, pool.acquire)
        while not pool.stats["waiting"]:
            await asyncio.sleep(0.001)
        pool.release(thing)
        assert isinstance(await waiting, Thing)

    asyncio.run(main())


def test_a_loop_that_was_closed_is_passed_over():
    pool = ObjectPool(Thing, prefill=0, max_in_use=1)
    thing = pool.acquire()
    loop = asyncio.new_event_loop()

    async def wait():
        return await pool.aacquire()

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    assert pool.stats["waiting"] == 1
    loop.close()
    pool.release(thing)
    pool.release(pool.acquire(timeout=0))
    assert pool.stats == {**pool.stats, "in_use": 0, "waiting": 0}
    # It is left pending with its loop.
    task._log_destroy_pending = False


def test_a_coroutine_that_is_dropped_leaves_its_place():
    pool = ObjectPool(Thing, prefill=0, max_in_use=1)
    thing = pool.acquire()

    async def wait():
        async with pool.lease():
            pass

    async def main():
        coroutine = wait()
        coroutine.send(None)
        assert pool.stats["waiting"] == 1
        coroutine.close()
        assert pool.stats["waiting"] == 0
        acquisition = pool.aacquire()
        acquisition.send(None)
        del acquisition
        assert pool.stats["waiting"] == 0
        coroutine = wait()
        coroutine.send(None)
        pool.release(thing)
        del coroutine
        gc.collect()
        assert pool.stats == {**pool.stats, "in_use": 0, "waiting": 0}

    asyncio.run(main())


def test_an_acquisition_is_awaited_once():
    pool = ObjectPool(Thing, prefill=0, max_in_use=1)

    async def main():
        acquisition = pool.aacquire()
        assert isinstance(acquisition, Acquisition)
        pool.release(await acquisition)
        with pytest.raises(SynthexFastError, match="awaited already"):
            await acquisition

    asyncio.run(main())
    # Neither waits for anything, so neither leaves anything behind.
    pool.aacquire()
    pool.aacquire().close()
    with pytest.raises(KeyError, match="x"):
        pool.aacquire().throw(KeyError("x"))
    with pytest.raises(RuntimeError, match="no running event loop"):
        pool.acquire()
        pool.release(pool.acquire(timeout=0))
        kept = pool.acquire()
        pool.aacquire().send(None)
    assert pool.release(kept)
    assert pool.stats["in_use"] == 0


def test_an_object_that_is_an_exception_or_a_tuple():
    for value in ((1, 2), StopIteration(3), ValueError(4), ()):
        pool = ObjectPool(lambda value=value: value, prefill=0, max_in_use=1)

        async def main(pool=pool):
            return await pool.aacquire()

        assert asyncio.run(main()) is value


def test_an_abandoned_loop_leaves_no_cycle_behind():
    class Pool(ObjectPool):
        pass

    def abandon():
        pool = Pool(Thing, prefill=0, max_in_use=1)
        pool.kept = pool.acquire()

        async def wait():
            await pool.aacquire(timeout=1000)

        loop = asyncio.new_event_loop()
        task = loop.create_task(wait())
        loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False
        loop.close()
        return weakref.ref(pool)

    seen = abandon()
    gc.collect()
    assert seen() is None


# --- threads, forks, gevent, failing allocations ---


@pytest.mark.parametrize("limit", [1, 3])
def test_threads_never_exceed_the_limit(hammer, limit):
    lock = threading.Lock()
    used = set()
    pool = ObjectPool(Thing, prefill=0, max_in_use=limit)

    def use(index):
        try:
            thing = pool.acquire(timeout=None if index % 2 else 0.0005)
        except PoolExhaustedError:
            return
        with lock:
            used.add(id(thing))
            assert len(used) <= limit
        with lock:
            used.remove(id(thing))
        pool.release(thing)

    hammer(8, use, iterations=300)
    assert pool.stats == {**pool.stats, "in_use": 0, "waiting": 0}


@pytest.mark.stress
def test_tasks_of_several_loops_and_threads_share_a_pool():
    pool = ObjectPool(Thing, prefill=0, max_in_use=2)
    done = []

    async def use(n):
        for _ in range(20):
            try:
                if n % 3 == 0:
                    async with asyncio.timeout(0.002), pool.lease():
                        await asyncio.sleep(0)
                else:
                    async with pool.lease(timeout=20):
                        assert pool.stats["in_use"] <= 2
                        await asyncio.sleep(0)
            except TimeoutError:
                pass
            done.append(n)

    async def main():
        await asyncio.gather(*map(use, range(12)))

    def threads():
        for _ in range(100):
            with pool.lease(timeout=20):
                assert pool.stats["in_use"] <= 2

    in_threads(lambda: asyncio.run(main()), lambda: asyncio.run(main()), threads, threads)
    assert len(done) == 480
    assert pool.stats == {**pool.stats, "in_use": 0, "waiting": 0}


@needs_fork
@quiet_fork
def test_nothing_is_in_use_in_a_forked_child():
    pool = ObjectPool(Thing, prefill=0, max_in_use=2)
    with pool.lease() as used:
        held = threading.Event(), threading.Event()

        def hold():
            with pool.lease():
                held[0].set()
                held[1].wait()

        holding = threading.Thread(target=hold)
        holding.start()
        held[0].wait()
        waiting = threading.Thread(target=lambda: pool.release(pool.acquire()))
        waiting.start()
        wait_for(lambda: pool.stats["waiting"] == 1)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert pool.stats == {**pool.stats, "in_use": 0, "waiting": 0}
                assert not pool.release(used)
                first, second = pool.acquire(timeout=0), pool.acquire(timeout=0)
                with pytest.raises(PoolExhaustedError):
                    pool.acquire(timeout=0)
                assert pool.release(first) and pool.release(second)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        held[1].set()
        assert os.waitpid(child, 0)[1] == 0
        holding.join()
        waiting.join()
    assert pool.stats["in_use"] == 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
def test_greenlets_wait_without_keeping_others_from_running():
    script = """
import signal
signal.alarm(40)
from gevent import monkey; monkey.patch_all()
import gevent.event
from synthex_fast import ObjectPool
from synthex_fast.errors import PoolExhaustedError
pool = ObjectPool(dict, prefill=0, max_in_use=1)
order = []
def use(n):
    with pool.lease(timeout=20):
        order.append(n)
        if n == 2:
            assert gave_up.wait(20)
        gevent.sleep(0.001)
def give_up():
    try:
        pool.acquire(timeout=0.001)
    except PoolExhaustedError:
        gave_up.set()
gave_up = gevent.event.Event()
gevent.joinall([gevent.spawn(use, n) for n in range(3)] + [gevent.spawn(give_up)])
print(order, pool.stats["in_use"], pool.stats["waiting"])
"""
    assert run(script, timeout=60) == "[0, 1, 2] 0 0\n"


def test_acquisitions_survive_failing_allocations(fail_allocations):
    pool = ObjectPool(Thing, prefill=0, max_in_use=2)

    def use():
        pool.release(pool.acquire(timeout=0))

    def check():
        # What was dropped on the way is discarded when its slot is needed.
        pool.acquire(timeout=0)
        pool.acquire(timeout=0)
        gc.collect()
        assert len(pool) <= 1

    fail_allocations(use, check=check)
    fail_allocations(lambda: ObjectPool(Thing, prefill=2, max_in_use=2, on_discard=Thing.close))


def test_waiting_survives_failing_allocations(fail_allocations):
    pool = ObjectPool(Thing, prefill=0, max_in_use=1)
    used = pool.acquire()

    def wait():
        with contextlib.suppress(PoolExhaustedError):
            pool.acquire(timeout=0.0001)

    def check():
        assert pool.stats == {**pool.stats, "in_use": 1, "waiting": 0}

    fail_allocations(wait, check=check)
    pool.release(used)


def test_discarding_survives_failing_allocations(fail_allocations, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda found: None)
    pool = ObjectPool(Thing, 10, prefill=10, on_discard=Thing.close)

    def discard(pool):
        pool.trim(1)
        pool.resize(2)
        pool.clear()

    fail_allocations(discard, prepare=lambda: ObjectPool(Thing, 10, prefill=10, on_discard=Thing.close))
    assert len(pool) == 10


def test_nothing_leaks(leaks_nothing):
    async def wait(pool):
        async with pool.lease(), pool.lease():
            with contextlib.suppress(PoolExhaustedError):
                await pool.aacquire(timeout=0)
            first, second = pool.aacquire(timeout=10), pool.aacquire()
            first.send(None)
            second.send(None)
            assert pool.stats["waiting"] == 2
            first.close()
        with contextlib.suppress(StopIteration):
            second.send(None)
        second.close()

    def scenario():
        pool = ObjectPool(Thing, 2, max_in_use=2, on_discard=Thing.close)
        with pool.lease(), pool.lease(), contextlib.suppress(PoolExhaustedError):
            pool.acquire(timeout=0.00001)
        pool.acquire()
        pool.clear()
        pool.release(Thing())
        loop.run_until_complete(wait(pool))

    # One for all runs: a loop leaves something of its own behind.
    loop = asyncio.new_event_loop()
    try:
        leaks_nothing(scenario)
    finally:
        loop.close()


def test_an_object_dropped_while_others_wait_makes_room_for_them():
    pool = ObjectPool(Thing, prefill=0, max_in_use=1)
    used = [pool.acquire()]
    got = []
    waiting = threading.Thread(target=lambda: got.append(pool.acquire()))
    if FREE_THREADED:
        # Only the thread that made an object can tell, so it has to be the one that waits.
        used.clear()
        assert pool.acquire(timeout=5)
        return
    waiting.start()
    wait_for(lambda: pool.stats["waiting"] == 1)
    used.clear()
    waiting.join()
    assert len(got) == 1


def test_a_task_looks_for_dropped_objects_while_it_waits():
    async def main():
        pool = ObjectPool(Thing, prefill=0, max_in_use=1)
        used = [await pool.aacquire()]
        asyncio.get_running_loop().call_later(0.01, used.clear)
        assert isinstance(await pool.aacquire(timeout=20), Thing)

    asyncio.run(main())
