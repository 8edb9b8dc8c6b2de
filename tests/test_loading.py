"""Single flight: `TTLDict.get_or_set` between threads, and `aget_or_set` between coroutines."""

import asyncio
import gc
import os
import signal
import sys
import threading
import traceback
import weakref
from importlib.util import find_spec

import pytest
from support import Clock, in_child, in_threads, needs_fork, quiet_fork, run, wait_for

from synthex_fast import TTLDict
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError, LoadCycleError, SynthexFastError


class Loading:
    """A factory that tells when it has begun and waits until it may end."""

    def __init__(self, result="loaded"):
        self.result, self.calls = result, 0
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self):
        self.calls += 1
        self.begun.set()
        assert self.may_end.wait(60)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class Background:
    """A call in a thread of its own; `outcome` waits for what it returned or raised."""

    def __init__(self, call):
        self._call = call
        self._outcome = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._outcome = self._call()
        except BaseException as error:
            self._outcome = error

    def outcome(self):
        self._thread.join(60)
        assert not self._thread.is_alive(), "it still waits"
        return self._outcome


def waiting(cache, count):
    wait_for(lambda: cache.stats["load_waits"] >= count)


# ---- threads


def test_threads_that_miss_together_call_the_factory_once():
    cache, load = TTLDict(), Loading()
    callers = [Background(lambda: cache.get_or_set("k", load)) for _ in range(8)]
    waiting(cache, 7)
    # Other keys never wait, nor do other operations with this one.
    assert cache.get_or_set("other", lambda: 1) == 1
    assert "k" not in cache
    assert cache.get("k") is None
    load.may_end.set()
    assert [caller.outcome() for caller in callers] == ["loaded"] * 8
    assert load.calls == 1
    stats = cache.stats
    assert (stats["loads"], stats["load_failures"], stats["load_waits"]) == (2, 0, 7)
    assert stats["load_seconds"] > 0
    assert cache["k"] == "loaded"


def test_each_dict_loads_for_itself():
    loads = [Loading("a"), Loading("b")]
    callers = [Background(lambda load=load: TTLDict().get_or_set("k", load)) for load in loads]
    for load in loads:
        assert load.begun.wait(60)
        load.may_end.set()
    assert [caller.outcome() for caller in callers] == ["a", "b"]


def test_an_exception_goes_to_all_who_wait_and_is_not_kept():
    cache, load = TTLDict(), Loading(OSError("no"))
    callers = [Background(lambda: cache.get_or_set("k", load)) for _ in range(5)]
    waiting(cache, 4)
    load.may_end.set()
    assert all(caller.outcome() is load.result for caller in callers)
    assert load.calls == 1
    assert cache.stats["load_failures"] == 1
    # The factory's frame is shown once to each, however many have raised it.
    names = [frame.name for frame in traceback.extract_tb(load.result.__traceback__)]
    assert names.count("__call__") == 1
    assert cache.get_or_set("k", lambda: 2) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_loading_thread_does_not_end_those_who_wait(error):
    cache, load = TTLDict(), Loading(error())
    first = Background(lambda: cache.get_or_set("k", load))
    assert load.begun.wait(60)
    others = [Background(lambda: cache.get_or_set("k", lambda: "second")) for _ in range(3)]
    waiting(cache, 3)
    load.may_end.set()
    assert first.outcome() is load.result
    assert [other.outcome() for other in others] == ["second"] * 3


def test_a_factory_that_asks_for_its_own_key_gets_an_error():
    cache = TTLDict()
    with pytest.raises(LoadCycleError, match="'k'") as raised:
        cache.get_or_set("k", lambda: cache.get_or_set("k", int))
    assert isinstance(raised.value, (RuntimeError, SynthexFastError))
    assert cache.get_or_set("k", lambda: cache.get_or_set("j", lambda: 3)) == 3

    class NoRepr(str):
        __slots__ = ()

        def __repr__(self):
            raise ValueError

    with pytest.raises(LoadCycleError, match="a key whose repr fails"):
        cache.get_or_set(NoRepr(), lambda: cache.get_or_set(NoRepr(), int))
    with pytest.raises(LoadCycleError) as raised:
        cache.get_or_set("x" * 500, lambda: cache.get_or_set("x" * 500, int))
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_that_wait_for_each_other_get_an_error(threads):
    caches = [TTLDict() for _ in range(threads)]
    all_load = threading.Barrier(threads)
    outcomes = []

    def load(n):
        all_load.wait(60)
        following = (n + 1) % threads
        return caches[following].get_or_set(following, lambda: "not called")

    def body(n):
        try:
            outcomes.append(caches[n].get_or_set(n, lambda: load(n)))
        except LoadCycleError as error:
            outcomes.append(error)

    in_threads(*(lambda n=n: body(n) for n in range(threads)))
    assert len(outcomes) == threads
    assert all(isinstance(outcome, LoadCycleError) for outcome in outcomes)
    assert [caches[n].get_or_set(n, lambda: "again") for n in range(threads)] == ["again"] * threads


def test_a_chain_that_ends_is_no_cycle():
    cache, last = TTLDict(), Loading("end")
    callers = [Background(lambda: cache.get_or_set(0, last))]
    assert last.begun.wait(60)
    for n in range(1, 5):
        callers.append(
            Background(lambda n=n: cache.get_or_set(n, lambda: cache.get_or_set(n - 1, None or str)))
        )
        waiting(cache, n)
    last.may_end.set()
    assert [caller.outcome() for caller in callers] == ["end"] * 5


@pytest.mark.parametrize("way", ["del", "pop", "clear", "delete_many"])
def test_a_load_does_not_undo_a_deletion(way):
    cache, load = TTLDict(), Loading("old")
    callers = [Background(lambda: cache.get_or_set("k", load)) for _ in range(2)]
    waiting(cache, 1)
    match way:
        case "del":
            with pytest.raises(KeyError):
                del cache["k"]
        case "pop":
            cache.pop("k", None)
        case "clear":
            cache.clear()
        case _:
            assert cache.delete_many(["k"]) == 0
    # Who comes later does not wait for what may be out of date.
    assert cache.get_or_set("k", lambda: "new") == "new"
    load.may_end.set()
    # What is there is newer than what they have loaded.
    assert [caller.outcome() for caller in callers] == ["new", "new"]
    assert cache["k"] == "new"


def test_a_forgotten_load_gives_its_result_to_those_who_wait_and_stores_nothing():
    cache, load = TTLDict(), Loading("old")
    callers = [Background(lambda: cache.get_or_set("k", load)) for _ in range(2)]
    waiting(cache, 1)
    cache.clear()
    load.may_end.set()
    assert [caller.outcome() for caller in callers] == ["old", "old"]
    assert "k" not in cache
    assert cache.get_or_set("k", lambda: "new") == "new"


def test_deleting_another_key_forgets_nothing():
    cache, load = TTLDict(), Loading()
    cache["other"] = 1
    caller = Background(lambda: cache.get_or_set("k", load))
    assert load.begun.wait(60)
    del cache["other"]
    load.may_end.set()
    assert caller.outcome() == "loaded"
    assert "k" in cache


def test_a_value_stored_meanwhile_stays_and_everyone_gets_it():
    cache, load = TTLDict(), Loading("loaded")
    callers = [Background(lambda: cache.get_or_set("k", load)) for _ in range(3)]
    waiting(cache, 2)
    cache["k"] = "set"
    assert cache.get_or_set("k", None or int) == "set"
    load.may_end.set()
    assert [caller.outcome() for caller in callers] == ["set"] * 3


def test_a_result_over_the_limit_goes_to_all_who_wait():
    cache, load = TTLDict(memory_limit=1000), Loading(bytes(5000))
    callers = [Background(lambda: cache.get_or_set("k", load)) for _ in range(3)]
    waiting(cache, 2)
    load.may_end.set()
    assert all(caller.outcome() is load.result for caller in callers)
    assert len(cache) == 0
    assert cache.stats["uncacheable"] == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthread_kill")
def test_a_wait_can_be_interrupted():
    cache, load = TTLDict(), Loading()
    caller = Background(lambda: cache.get_or_set("k", load))
    assert load.begun.wait(60)

    def interrupt():
        waiting(cache, 1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    killer = Background(interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_set("k", int)
    assert killer.outcome() is None
    load.may_end.set()
    assert caller.outcome() == "loaded"
    assert cache["k"] == "loaded"


class Key:
    """A key that calls a function when it is compared."""

    def __init__(self, value, on_eq=lambda: None):
        self.value, self.on_eq = value, on_eq

    def __hash__(self):
        return 42

    def __eq__(self, other):
        self.on_eq()
        other.on_eq()
        return isinstance(other, Key) and self.value == other.value


def test_equal_keys_of_any_type_share_a_load():
    cache, load = TTLDict(), Loading()
    callers = [Background(lambda key=key: cache.get_or_set(key, load)) for key in (1, 1.0, True, 1 + 0j)]
    waiting(cache, 3)
    load.may_end.set()
    assert [caller.outcome() for caller in callers] == ["loaded"] * 4
    assert load.calls == 1


def test_keys_with_equal_hashes_load_apart():
    cache, load = TTLDict(), Loading("a")
    caller = Background(lambda: cache.get_or_set(Key("a"), load))
    assert load.begun.wait(60)
    assert cache.get_or_set(Key("b"), lambda: "b") == "b"
    load.may_end.set()
    assert caller.outcome() == "a"


def test_a_comparison_with_the_key_of_a_load_may_do_anything():
    cache, load = TTLDict(), Loading("a")
    caller = Background(lambda: cache.get_or_set(Key("a"), load))
    assert load.begun.wait(60)

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get_or_set(Key("b", fail), int)

    # The load ends in the middle of the comparison with its key.
    def end():
        key.on_eq = lambda: None
        load.may_end.set()
        caller.outcome()

    key = Key("a", end)
    assert cache.get_or_set(key, None or int) == "a"

    # Or it is forgotten.
    cache.clear()
    load = Loading("old")
    caller = Background(lambda: cache.get_or_set(Key("a"), load))
    assert load.begun.wait(60)

    def forget():
        key.on_eq = lambda: None
        cache.clear()

    key = Key("a", forget)
    assert cache.get_or_set(key, lambda: "new") == "new"
    load.may_end.set()
    assert caller.outcome() == "new"


def test_a_factory_may_use_and_clear_the_dict():
    cache = TTLDict()

    def factory():
        cache.clear()
        cache["other"] = 1
        return "made"

    assert cache.get_or_set("k", factory) == "made"
    assert list(cache) == ["other"]


@needs_fork
@quiet_fork
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent():
    cache, load = TTLDict(), Loading()
    caller = Background(lambda: cache.get_or_set("k", load))
    assert load.begun.wait(60)

    def child():
        signal.alarm(30)
        assert cache.get_or_set("k", lambda: "the child's own") == "the child's own"
        assert cache["k"] == "the child's own"

    in_child(child)
    # In the middle of its own load, a thread may fork too, and goes on in both.
    own = TTLDict()

    def fork_inside():
        in_child(lambda: own.get_or_set("other", lambda: 5) == 5)
        return "made"

    assert own.get_or_set("k", fork_inside) == "made"
    load.may_end.set()
    assert caller.outcome() == "loaded"


@needs_fork
@quiet_fork
def test_a_forked_child_that_loads_keeps_its_load_to_itself():
    cache = TTLDict()

    def factory():
        pid = os.fork()
        if pid == 0:
            return "child"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return "parent"

    signal.alarm(60)
    try:
        found = cache.get_or_set("k", factory)
        if found == "child":
            # Its own load ended as usual; a re-entry would have been noticed.
            with pytest.raises(LoadCycleError):
                cache.get_or_set("r", lambda: cache.get_or_set("r", int))
            os._exit(int(cache["k"] != "child"))
    finally:
        signal.alarm(0)
    assert found == cache["k"] == "parent"


@pytest.mark.parametrize("content", [0, 8])
def test_without_memory_a_miss_fails_cleanly(fail_allocations, content):
    def prepare():
        cache = TTLDict(sweep=False)
        cache.update({n: n for n in range(content)})
        return cache

    def check(cache):
        assert len(cache) == content or cache.get("k") == 1
        cache.pop("k", None)
        # No load was left behind.
        assert cache.get_or_set("k", lambda: 2) == 2

    # Made here: Python 3.12 and 3.13 crash if there is no memory for a function.
    def factory():
        return 1

    assert fail_allocations(lambda cache: cache.get_or_set("k", factory), prepare=prepare, check=check) > 0


def test_loads_leak_nothing(leaks_nothing):
    def scenario():
        cache = TTLDict()
        barrier = threading.Barrier(3)

        def call():
            barrier.wait()
            cache.get_or_set("k", lambda: [cache])

        in_threads(call, call, call)
        with pytest.raises(LoadCycleError):
            cache.get_or_set("r", lambda: cache.get_or_set("r", int))
        with pytest.raises(ZeroDivisionError):
            cache.get_or_set("z", lambda: 1 / 0)
        cache.clear()

    leaks_nothing(scenario)


def test_each_key_is_loaded_by_one_thread_at_a_time(hammer):
    cache = TTLDict()
    running = [0] * 4

    def factory(key):
        running[key] += 1
        assert running[key] == 1, "two loads of a key at the same time"
        try:
            if key == 3:
                raise OSError
            return key
        finally:
            running[key] -= 1

    def call(index):
        for key in range(4):
            try:
                assert cache.get_or_set(key, lambda key=key: factory(key), 0.001) == key
            except OSError:
                assert key == 3

    hammer(8, call, iterations=300)
    stats = cache.stats
    assert stats["loads"] >= stats["load_failures"] > 0


def test_loads_and_deletions_from_threads(hammer):
    cache = TTLDict(8)

    def call(index):
        key = index % 3
        assert cache.get_or_set(key, lambda: key) == key
        if index == 0:
            cache.clear()
        elif index % 2:
            cache.pop(key, None)

    hammer(8, call, iterations=500)


# ---- coroutines


async def until(condition):
    """Let other tasks run until that is true."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("still false")


class Awaited:
    """The same for coroutines."""

    def __init__(self, result="loaded"):
        self.result, self.calls, self.cancelled = result, 0, False
        self.may_end = asyncio.Event()

    async def __call__(self):
        self.calls += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def coroutine_test(function):
    def test():
        asyncio.run(asyncio.wait_for(function(), 60))

    test.__name__ = function.__name__
    return test


@coroutine_test
async def test_coroutines_that_miss_together_load_once():
    cache, load = TTLDict(), Awaited()
    tasks = [asyncio.create_task(cache.aget_or_set("k", load)) for _ in range(6)]
    await until(lambda: cache.stats["load_waits"] == 5)
    assert await cache.aget_or_set("other", lambda: asyncio.sleep(0, "x")) == "x"
    load.may_end.set()
    assert await asyncio.gather(*tasks) == ["loaded"] * 6
    assert load.calls == 1
    assert await cache.aget_or_set("k", load) == "loaded"
    assert cache.stats["loads"] == 2
    assert cache._flights(asyncio.get_running_loop()) == {}


@coroutine_test
async def test_cancelling_one_who_waits_does_not_cancel_the_load():
    cache, load = TTLDict(), Awaited()
    tasks = [asyncio.create_task(cache.aget_or_set("k", load)) for _ in range(3)]
    await until(lambda: cache.stats["load_waits"] == 2)
    # The one that began it, too.
    tasks[0].cancel()
    tasks[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    load.may_end.set()
    assert await tasks[1] == "loaded"
    assert cache["k"] == "loaded"


@coroutine_test
async def test_if_all_who_wait_are_cancelled_the_load_is():
    cache, load = TTLDict(), Awaited()
    tasks = [asyncio.create_task(cache.aget_or_set("k", load)) for _ in range(3)]
    await until(lambda: cache.stats["load_waits"] == 2)
    for task in tasks:
        task.cancel()
    # One who comes now begins another load.
    later = asyncio.create_task(cache.aget_or_set("k", lambda: asyncio.sleep(0, "second")))
    assert await later in ("second", "loaded")
    await until(lambda: load.cancelled)
    assert all(task.cancelled() for task in tasks)
    assert "k" in cache


@coroutine_test
async def test_an_exception_goes_to_all_coroutines_and_is_not_kept():
    cache, load = TTLDict(), Awaited(OSError("no"))
    tasks = [asyncio.create_task(cache.aget_or_set("k", load)) for _ in range(4)]
    await until(lambda: cache.stats["load_waits"] == 3)
    load.may_end.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [load.result] * 4
    assert (load.calls, cache.stats["load_failures"]) == (1, 1)
    assert await cache.aget_or_set("k", lambda: asyncio.sleep(0, 1)) == 1


@coroutine_test
async def test_a_load_that_cancels_itself_is_tried_again_by_those_who_wait():
    cache, load = TTLDict(), Awaited(asyncio.CancelledError())
    first = asyncio.create_task(cache.aget_or_set("k", load))
    await until(lambda: load.calls)
    second = asyncio.create_task(cache.aget_or_set("k", lambda: asyncio.sleep(0, "second")))
    await until(lambda: cache.stats["load_waits"] == 1)
    load.may_end.set()
    assert await second == "second"
    assert first.cancelled()


@coroutine_test
async def test_coroutines_that_wait_for_themselves_get_an_error():
    cache = TTLDict()

    async def itself():
        return await cache.aget_or_set("k", itself)

    with pytest.raises(LoadCycleError, match="'k'"):
        await cache.aget_or_set("k", itself)
    both = asyncio.Barrier(2)

    async def wait_for_other(key):
        await both.wait()
        return await cache.aget_or_set(1 - key, None or itself)

    calls = [cache.aget_or_set(key, lambda key=key: wait_for_other(key)) for key in (0, 1)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in found] == [LoadCycleError] * 2
    assert await cache.aget_or_set("k", lambda: asyncio.sleep(0, 1)) == 1


@pytest.mark.parametrize("how", ["gather", "task", "group", "shield"])
def test_a_load_that_waits_for_itself_through_a_task_gets_an_error(how):
    async def through(call):
        if how == "gather":
            return (await asyncio.gather(call))[0]
        if how == "task":
            return await asyncio.create_task(call)
        if how == "shield":
            return await asyncio.shield(call)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(call)
        return task.result()

    async def main():
        cache, other = TTLDict(), TTLDict()

        async def itself():
            return await through(cache.aget_or_set("k", itself))

        async def first():
            return await through(other.aget_or_set("b", second))

        async def second():
            return await through(cache.aget_or_set("a", first))

        for key, function in (("k", itself), ("a", first)):
            with pytest.raises(BaseException) as caught:
                await asyncio.wait_for(cache.aget_or_set(key, function), 20)
            error = caught.value
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            assert type(error) is LoadCycleError
        both = asyncio.Barrier(2)

        async def wait_for_other(key):
            await both.wait()
            return await through(cache.aget_or_set(1 - key, None or itself))

        calls = [cache.aget_or_set(key, lambda key=key: wait_for_other(key)) for key in (0, 1)]
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
        assert all(isinstance(each, LoadCycleError | BaseExceptionGroup) for each in found)
        # Nothing of it is left.
        assert await cache.aget_or_set("k", lambda: asyncio.sleep(0, 1)) == 1

    asyncio.run(main())


@coroutine_test
async def test_a_task_that_outlives_the_load_that_started_it_is_free():
    cache, started = TTLDict(), []
    ended = asyncio.Event()

    async def later():
        await ended.wait()
        assert cache.pop("k") == "made"
        return await cache.aget_or_set("k", lambda: asyncio.sleep(0, "anew"))

    async def make():
        started.append(asyncio.create_task(later()))
        return "made"

    assert await cache.aget_or_set("k", make) == "made"
    ended.set()
    assert await started[0] == "anew"


@coroutine_test
async def test_loads_that_share_a_third_are_no_cycle():
    cache = TTLDict()

    async def leaf():
        await asyncio.sleep(0)
        return 1

    async def branch():
        return sum(await asyncio.gather(*(cache.aget_or_set("leaf", leaf) for _ in range(3))))

    async def root():
        return await asyncio.gather(*(cache.aget_or_set(key, branch) for key in "abab"))

    assert await cache.aget_or_set("root", root) == [3] * 4


@coroutine_test
async def test_a_load_does_not_undo_a_deletion_in_a_loop():
    cache, load = TTLDict(), Awaited("old")
    task = asyncio.create_task(cache.aget_or_set("k", load))
    await until(lambda: load.calls)
    cache.pop("k", None)
    later = asyncio.create_task(cache.aget_or_set("k", lambda: asyncio.sleep(0, "new")))
    assert await later == "new"
    load.may_end.set()
    assert await task == "new"
    load = Awaited("old")
    task = asyncio.create_task(cache.aget_or_set("j", load))
    await until(lambda: load.calls)
    cache.clear()
    load.may_end.set()
    assert await task == "old"
    assert "j" not in cache


@coroutine_test
async def test_a_value_that_a_thread_stores_meanwhile_stays():
    cache, load = TTLDict(), Awaited()
    task = asyncio.create_task(cache.aget_or_set("k", load))
    await until(lambda: load.calls)
    await asyncio.to_thread(cache.get_or_set, "k", lambda: "the thread's")
    load.may_end.set()
    assert await task == "the thread's"


@coroutine_test
async def test_bad_coroutine_functions_are_named():
    cache = TTLDict()
    with pytest.raises(ArgumentTypeError, match=r"coroutine_function\(\) must be something to await"):
        await cache.aget_or_set("k", lambda: 3)
    with pytest.raises(ArgumentTypeError, match="aget_or_set"):
        cache.get_or_set("k", Awaited().__call__)
    with pytest.raises(ArgumentTypeError, match="aget_or_set"):
        cache.get_or_set("k", lambda: asyncio.sleep(0))
    with pytest.raises(ArgumentTypeError, match="coroutine_function must be callable"):
        cache.aget_or_set("k", 3)
    with pytest.raises(ArgumentValueError, match="ttl must be"):
        cache.aget_or_set("k", asyncio.sleep, 0)
    assert len(cache) == 0
    assert cache._flights(asyncio.get_running_loop()) == {}


def test_loops_load_apart_and_a_closed_one_leaves_nothing():
    cache = TTLDict()

    def one_loop():
        async def main():
            return await cache.aget_or_set("k", lambda: asyncio.sleep(0, "x"))

        assert asyncio.run(main()) == "x"

    in_threads(one_loop, one_loop, one_loop)
    loop = asyncio.new_event_loop()
    unfinished = loop.create_task(cache.aget_or_set("j", Awaited()))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    cache.clear()
    one_loop()
    unfinished._log_destroy_pending = False


class Slotted(asyncio.SelectorEventLoop):
    """A loop that keeps no attributes of others."""

    @property
    def __dict__(self):
        raise AttributeError


@pytest.mark.parametrize("kind", [asyncio.SelectorEventLoop, Slotted])
def test_a_loop_that_is_closed_with_a_load_pending_is_freed(kind):
    cache, loads = TTLDict(), []

    def one_loop():
        loop = kind()
        load = Awaited()
        unfinished = loop.create_task(cache.aget_or_set("j", load))
        loop.run_until_complete(asyncio.sleep(0.01))
        assert load.calls == 1
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False
        unfinished._log_destroy_pending = False
        loop.close()
        loads.append(id(loop))
        return weakref.ref(loop)

    def fresh_loop():
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(
                asyncio.wait_for(cache.aget_or_set("other", lambda: asyncio.sleep(0, "x")), 20)
            )
        finally:
            loop.close()

    reference = one_loop()
    if kind is Slotted:
        # Where the loop can't keep it, the next one lets go of it.
        assert fresh_loop() == "x"
        cache.clear()
        other = Slotted()
        other.run_until_complete(cache.aget_or_set("k", lambda: asyncio.sleep(0, 1)))
        other.close()
    gc.collect()
    assert reference() is None
    # No later loop sees the old load, also not at the same address.
    for _ in range(20):
        reference = one_loop()
        gc.collect()
    assert fresh_loop() == "x"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs eager tasks")
def test_eager_tasks():
    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        cache = TTLDict()

        async def at_once():
            return 1

        assert await cache.aget_or_set("k", at_once) == 1

        async def itself():
            return await cache.aget_or_set("r", itself)

        with pytest.raises(LoadCycleError):
            await cache.aget_or_set("r", itself)
        load = Awaited()
        tasks = [asyncio.create_task(cache.aget_or_set("j", load)) for _ in range(3)]
        load.may_end.set()
        assert await asyncio.gather(*tasks) == ["loaded"] * 3
        assert load.calls == 1

    asyncio.run(main())


def test_async_loads_keep_the_ttl():
    clock = Clock()
    cache = TTLDict(ttl=10, timer=clock)

    async def main():
        await cache.aget_or_set("own", lambda: asyncio.sleep(0, 1))
        await cache.aget_or_set("given", lambda: asyncio.sleep(0, 1), ttl=3)

    asyncio.run(main())
    assert (cache.expires_at("own"), cache.expires_at("given")) == (10, 3)


def test_async_loads_keep_nothing_alive():
    class Value:
        pass

    async def main():
        cache, kept = TTLDict(), []
        for outcome in ("value", "error", "cancelled"):
            load = Awaited(Value())
            if outcome == "error":
                load.result = OSError(load)
            kept.append(weakref.ref(load))
            tasks = [asyncio.create_task(cache.aget_or_set(outcome, load)) for _ in range(3)]
            await until(lambda load=load: load.calls)
            for task in tasks if outcome == "cancelled" else tasks[:1]:
                task.cancel()
            load.may_end.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)
            del tasks, task, load
        cache.clear()
        gc.collect()
        return kept

    assert [reference() for reference in asyncio.run(main())] == [None] * 3


# ---- gevent


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
def test_greenlets_load_once_and_do_not_stop_their_hub():
    run(
        """
        import signal
        signal.alarm(60)
        from gevent import monkey; monkey.patch_all()
        import gevent, threading
        from gevent.event import Event
        from synthex_fast import TTLDict
        from synthex_fast.errors import LoadCycleError

        cache, go, calls = TTLDict(), Event(), []
        def factory():
            calls.append(1)
            go.wait()
            return "loaded"
        callers = [gevent.spawn(cache.get_or_set, "k", factory) for _ in range(5)]
        gevent.sleep(0)
        assert cache.stats["load_waits"] == 4, cache.stats
        # The hub runs others meanwhile, and those of another thread.
        assert cache.get_or_set("other", lambda: 1) == 1
        from gevent.monkey import get_original
        found = []
        get_original("_thread", "start_new_thread")(lambda: found.append(cache.get_or_set("k", factory)), ())
        while cache.stats["load_waits"] < 5:
            gevent.sleep(0.001)
        go.set()
        gevent.joinall(callers, raise_error=True)
        while not found:
            gevent.sleep(0.001)
        assert [caller.value for caller in callers] == ["loaded"] * 5 and found == ["loaded"] and len(calls) == 1

        def wait_for_other(key):
            gevent.sleep(0)
            return cache.get_or_set(1 - key, int)
        both = [gevent.spawn(cache.get_or_set, key, lambda key=key: wait_for_other(key)) for key in (0, 1)]
        gevent.joinall(both)
        assert all(isinstance(each.exception, LoadCycleError) for each in both), both
        # One that is killed lets another one load.
        go.clear()
        first = gevent.spawn(cache.get_or_set, "j", factory)
        gevent.sleep(0)
        second = gevent.spawn(cache.get_or_set, "j", lambda: "second")
        gevent.sleep(0)
        first.kill()
        second.join()
        assert second.value == "second"
        """,
        stderr=None,
    )
