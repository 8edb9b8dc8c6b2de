"""What `ObjectPool` promises."""

import collections
import contextlib
import copy
import doctest
import gc
import math
import os
import pickle
import random
import sys
import threading
import time
import warnings
import weakref
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support import FREE_THREADED, in_threads, needs_fork, run

from synthex_fast import _pool
from synthex_fast._pool import Lease, ObjectPool
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError, FactoryError, SynthexFastError

STATS = {"created", "reused", "released", "discarded", "aliased", "pool_size", "reuse_rate", "held_elsewhere"}


class Thing:
    pass


class Resettable:
    resets = 0

    def reset(self):
        self.resets += 1


def counts(pool, *names):
    stats = pool.stats
    return tuple(stats[name] for name in names)


@pytest.fixture
def no_sweeper(monkeypatch):
    """The sweeper's thread would run out of memory too, and its agenda would look like a leak."""
    monkeypatch.setattr("synthex_fast._sweeper.schedule", lambda client, due: None)


# --- construction and arguments ---


def test_prefills_as_the_report_does():
    assert len(ObjectPool(Thing)) == 100
    assert len(ObjectPool(Thing, 30)) == 30
    assert len(ObjectPool(Thing, prefill=0)) == 0
    pool = ObjectPool(Thing, 7, prefill=5)
    assert counts(pool, "created", "reused", "released", "pool_size") == (5, 0, 0, 5)


def test_properties():
    pool = ObjectPool(Thing, max_size=2**40, prefill=1, max_idle=5, name="things")
    assert (pool.max_size, pool.max_idle, pool.name) == (2**40, 5.0, "things")
    assert repr(pool) == f"<ObjectPool 'things': 1 of {2**40} idle>"
    assert ObjectPool(Thing).max_idle is None
    assert ObjectPool(Thing, max_idle=math.inf).max_idle is None
    assert set(pool.stats) == STATS
    with pytest.raises(AttributeError):
        pool.name = "other"


def test_an_empty_pool_is_true():
    assert ObjectPool(Thing, prefill=0)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"factory": 3}, ArgumentTypeError, "factory"),
        ({"factory": None}, ArgumentTypeError, "factory"),
        ({"max_size": 0}, ArgumentValueError, "max_size"),
        ({"max_size": -1}, ArgumentValueError, "max_size"),
        ({"max_size": 2**80}, ArgumentValueError, "max_size"),
        ({"max_size": 1.5}, ArgumentTypeError, "max_size"),
        ({"max_size": math.nan}, ArgumentTypeError, "max_size"),
        ({"max_size": "10"}, ArgumentTypeError, "max_size"),
        ({"max_size": None}, ArgumentTypeError, "max_size"),
        ({"prefill": -1}, ArgumentValueError, "prefill"),
        ({"prefill": 1001}, ArgumentValueError, "prefill"),
        ({"prefill": 0.5}, ArgumentTypeError, "prefill"),
        ({"reset": 5}, ArgumentTypeError, "reset"),
        ({"max_idle": 0}, ArgumentValueError, "max_idle"),
        ({"max_idle": -1.0}, ArgumentValueError, "max_idle"),
        ({"max_idle": math.nan}, ArgumentValueError, "max_idle"),
        ({"max_idle": "1"}, ArgumentTypeError, "max_idle"),
        ({"max_idle": 10**400}, ArgumentValueError, "max_idle"),
        ({"max_idle": True}, ArgumentTypeError, "max_idle"),
        ({"max_size": True}, ArgumentTypeError, "max_size"),
        ({"prefill": True}, ArgumentTypeError, "prefill"),
        ({"name": 5}, ArgumentTypeError, "name"),
    ],
)
def test_bad_arguments_are_named(arguments, error, name):
    made = []
    with pytest.raises(error, match=f"^{name} must be"):
        ObjectPool(**{"factory": lambda: made.append(1) or Thing(), **arguments})
    assert not made


@pytest.mark.parametrize("bad", [0, -5, 2**70, 10**400, 1.5, "5", None, True, [], math.nan, math.inf])
def test_bad_resize_leaves_the_pool_as_it_was(bad):
    pool = ObjectPool(Thing, 50)
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match=r"^max_size must be"):
        pool.resize(bad)
    assert (pool.max_size, len(pool)) == (50, 50)


@pytest.mark.parametrize("bad", [-5, 2**70, 10**400, 1.5, "5", None, True, [], math.nan, math.inf])
def test_bad_trim_leaves_the_pool_as_it_was(bad):
    pool = ObjectPool(Thing, 50)
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match=r"^nbytes must be"):
        pool.trim(bad)
    assert len(pool) == 50


def test_an_argument_whose_index_raises_passes_its_error_on():
    class Odd:
        def __index__(self):
            raise RuntimeError("odd")

    with pytest.raises(RuntimeError, match="odd"):
        ObjectPool(Thing, Odd())


def test_none_cannot_be_released():
    pool = ObjectPool(Thing, prefill=3)
    with pytest.raises(ArgumentTypeError, match=r"^obj must be"):
        pool.release(None)
    assert counts(pool, "released", "pool_size") == (0, 3)


def test_set_up_once():
    pool = ObjectPool(Thing, 5)
    with pytest.raises(SynthexFastError):
        pool.__init__(dict)
    assert isinstance(pool.acquire(), Thing)


def test_a_subclass_that_never_set_it_up():
    class Lazy(ObjectPool):
        def __init__(self):
            pass

    pool = Lazy()
    for call in (pool.acquire, lambda: pool.release(Thing()), pool.lease().__enter__):
        with pytest.raises(SynthexFastError, match="not initialised"):
            call()
    pool.clear()
    assert len(pool) == pool.nbytes == pool.trim(100) == 0
    assert gc.get_referents(pool) is not None


# --- acquire and release ---


def test_hands_out_what_was_released():
    pool = ObjectPool(Thing, prefill=0)
    first = pool.acquire()
    address = id(first)
    assert pool.release(first) is True
    del first
    assert id(pool.acquire()) == address
    assert counts(pool, "created", "reused", "released") == (1, 1, 1)
    assert pool.stats["reuse_rate"] == 0.5


def test_keeps_no_more_than_max_size():
    pool = ObjectPool(Thing, 3, prefill=0)
    things = [pool.acquire() for _ in range(5)]
    assert [pool.release(thing) for thing in things] == [True] * 3 + [False] * 2
    assert counts(pool, "released", "discarded", "pool_size") == (3, 2, 3)


def test_an_object_somebody_holds_is_never_handed_out():
    pool = ObjectPool(Thing, prefill=0)
    held = pool.acquire()
    pool.release(held)
    other = pool.acquire()
    assert other is not held
    assert counts(pool, "aliased", "reused", "created", "pool_size") == (1, 0, 2, 0)


def test_goes_past_aliased_objects_to_one_that_is_free():
    pool = ObjectPool(Thing, prefill=0)
    things = [pool.acquire() for _ in range(5)]
    address = id(things[0])
    for thing in things:
        pool.release(thing)
    del things[0], thing
    assert id(pool.acquire()) == address
    assert counts(pool, "aliased", "reused", "pool_size") == (3, 1, 1)
    pool.acquire()
    assert counts(pool, "aliased", "reused", "pool_size") == (4, 1, 0)


class BoundToItself(Thing):
    def __init__(self):
        self.call = self.method

    def method(self):
        return self


class InAClosure(Thing):
    def __init__(self):
        self.call = lambda: self


class WithChildren(Thing):
    def __init__(self):
        self.children = [Thing(), Thing()]
        self.by_name = dict(enumerate(self.children))
        for child in self.children:
            child.owner = self
        self.itself = self


class WithSlots:
    __slots__ = ("call",)

    def __init__(self):
        self.call = partial(WithSlots.method, self)

    def method(self):
        return self


SELF_REFERRING = [BoundToItself, InAClosure, WithChildren, WithSlots]
without_gil = pytest.mark.skipif(
    FREE_THREADED, reason="needs the GIL: reference counts must not change meanwhile"
)


@without_gil
@pytest.mark.parametrize("max_idle", [None, 1000.0])
@pytest.mark.parametrize("kind", SELF_REFERRING)
def test_an_object_that_refers_to_itself_is_reused(kind, max_idle):
    pool = ObjectPool(kind, prefill=0, max_idle=max_idle)
    for _ in range(1000):
        with pool.lease() as thing:
            assert type(thing) is kind
        del thing
    assert counts(pool, "created", "reused", "aliased", "held_elsewhere") == (1, 999, 0, False)


@without_gil
def test_an_object_that_comes_to_refer_to_itself_is_reused():
    pool = ObjectPool(Thing, prefill=0)
    for _ in range(100):
        thing = pool.acquire()
        thing.cached = thing.__eq__
        pool.release(thing)
        del thing
    assert counts(pool, "created", "aliased") == (1, 0)


@pytest.mark.parametrize("kind", SELF_REFERRING)
def test_an_object_held_through_one_of_its_parts_is_not_handed_out(kind):
    def part_of(thing):
        if kind is WithChildren:
            return thing.children[0]
        return thing.call

    pool = ObjectPool(kind, prefill=0)
    for hold in (lambda thing: thing, lambda thing: vars(thing) if kind is not WithSlots else thing, part_of):
        thing = pool.acquire()
        address = id(thing)
        held = hold(thing)
        pool.release(thing)
        del thing
        other = pool.acquire()
        assert id(other) != address
        assert held is not None
        del other, held


@without_gil
def test_a_self_reference_that_is_dropped_hides_no_holder():
    pool = ObjectPool(BoundToItself, prefill=0)
    thing = pool.acquire()
    pool.release(thing)
    # As many references as before: this one in the place of the method's.
    del thing.call
    assert pool.acquire() is not thing
    assert counts(pool, "aliased") == (1,)


@without_gil
def test_releasing_an_object_that_refers_to_itself_twice_is_harmless():
    pool = ObjectPool(BoundToItself, prefill=0)
    thing = pool.acquire()
    assert pool.release(thing)
    assert pool.release(thing)
    del thing
    first, second = pool.acquire(), pool.acquire()
    assert first is not second


@pytest.mark.parametrize("max_idle", [None, 1000.0])
def test_objects_that_something_holds_from_the_start_are_reported_once(max_idle):
    registry = []

    def factory():
        thing = Thing()
        registry.append(thing)
        return thing

    pool = ObjectPool(factory, prefill=0, max_idle=max_idle)
    pool.release(pool.acquire())
    assert pool.stats["held_elsewhere"] is True
    with pytest.warns(
        RuntimeWarning, match="can't reuse its Thing objects: something still refers to each"
    ) as seen:
        for _ in range(10):
            pool.release(pool.acquire())
    assert len(seen) == 1
    assert counts(pool, "reused", "aliased") == (0, 10)


def test_a_warning_made_an_error_harms_no_pool():
    registry = []

    def factory():
        registry.append(Thing())
        return registry[-1]

    pool = ObjectPool(factory, prefill=0)
    pool.release(pool.acquire())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            pool.acquire()
    assert type(pool.acquire()) is Thing
    assert counts(pool, "pool_size", "aliased", "created") == (0, 1, 2)


def test_a_reset_may_drop_what_holds_an_object():
    registry = []

    def factory():
        registry.append(Thing())
        return registry[-1]

    pool = ObjectPool(factory, prefill=0, reset=lambda thing: registry.clear())
    for _ in range(10):
        pool.release(pool.acquire())
    held = pool.acquire()
    pool.release(held)
    pool.acquire()
    assert counts(pool, "reused", "aliased") == (10, 1)


@pytest.mark.parametrize("max_idle", [None, 1000.0])
def test_a_name_that_lives_on_in_a_loop_costs_no_object(max_idle):
    pool = ObjectPool(Thing, prefill=10, max_idle=max_idle)
    for _ in range(100):
        thing = pool.acquire()
        pool.release(thing)
    for _ in range(100):
        with pool.lease() as thing:
            assert thing
    assert counts(pool, "created", "reused", "aliased", "pool_size") == (10, 200, 0, 10)


def test_releasing_twice_is_harmless():
    pool = ObjectPool(Thing, prefill=0)
    thing = pool.acquire()
    assert pool.release(thing)
    assert pool.release(thing)
    del thing
    first, second = pool.acquire(), pool.acquire()
    assert first is not second
    assert counts(pool, "aliased") == (1,)


@pytest.mark.parametrize("shared", [5, "text", (), Thing, Thing(), None.__class__])
@pytest.mark.filterwarnings("ignore:this pool can't reuse:RuntimeWarning")
def test_an_object_shared_with_the_whole_program_is_never_reused(shared):
    pool = ObjectPool(lambda: shared, prefill=3)
    assert pool.acquire() is shared
    assert pool.stats["reused"] == 0
    pool.release(shared)
    assert pool.acquire() is shared
    assert pool.stats["reused"] == 0


def test_any_object_may_be_released():
    pool = ObjectPool(dict, prefill=0)
    assert pool.release(Thing())
    assert isinstance(pool.acquire(), Thing)


def test_a_dropped_object_is_simply_freed():
    pool = ObjectPool(Thing, prefill=0)
    gone = weakref.ref(pool.acquire())
    gc.collect()
    assert gone() is None
    assert counts(pool, "created", "pool_size") == (1, 0)


# --- factory ---


def test_a_factory_that_raises_changes_nothing():
    calls = []

    def factory():
        calls.append(1)
        if len(calls) > 1:
            raise KeyError("no more")
        return Thing()

    pool = ObjectPool(factory, prefill=0)
    first = pool.acquire()
    before = pool.stats
    with pytest.raises(KeyError, match="no more"):
        pool.acquire()
    assert pool.stats == before
    assert pool.release(first)


def test_a_factory_that_returns_none():
    pool = ObjectPool(lambda: None, prefill=0)
    before = pool.stats
    with pytest.raises(FactoryError, match="factory"):
        pool.acquire()
    assert pool.stats == before
    with pytest.raises(FactoryError):
        ObjectPool(lambda: None)


def test_a_factory_that_fails_in_the_middle_of_the_prefill_leaks_nothing():
    alive = weakref.WeakSet()

    def factory():
        if len(alive) == 5:
            raise ValueError("enough")
        thing = Thing()
        alive.add(thing)
        return thing

    with pytest.raises(ValueError, match="enough"):
        ObjectPool(factory)
    gc.collect()
    assert not alive


def test_a_factory_may_use_the_pool():
    def factory():
        if depth and len(depth) < 5:
            depth.append(1)
            pool.release(Thing())
            pool.acquire()
            pool.resize(10)
            pool.clear()
            assert len(pool) == 0
        return Thing()

    depth = []
    pool = ObjectPool(factory, prefill=0)
    depth.append(1)
    assert isinstance(pool.acquire(), Thing)


def test_a_factory_may_fill_the_pool_itself():
    pools = []

    class Pool(ObjectPool):
        def __init__(self):
            pools.append(self)
            super().__init__(self.make, 4)

        def make(self):
            pools[0].release(Thing())
            return Thing()

    assert len(Pool()) == 4


# --- reset ---


def test_calls_the_reset_of_the_type_when_released():
    pool = ObjectPool(Resettable, prefill=2)
    thing = pool.acquire()
    assert thing.resets == 0
    pool.release(thing)
    assert thing.resets == 1


def test_calls_the_reset_it_was_given():
    seen = []
    pool = ObjectPool(Resettable, prefill=0, reset=seen.append)
    thing = pool.acquire()
    pool.release(thing)
    assert seen == [thing]
    assert thing.resets == 0


def test_reset_of_types_that_change():
    class Late:
        pass

    class Child(Late):
        pass

    seen = []
    pool = ObjectPool(Child, prefill=0)

    def release_and_count():
        del seen[:]
        for _ in range(3):
            pool.release(pool.acquire())
        return len(seen)

    assert release_and_count() == 0
    Late.reset = lambda self: seen.append("late")
    assert release_and_count() == 3
    Child.reset = lambda self: seen.append("child")
    assert release_and_count() == 3
    assert set(seen) == {"child"}
    Child.reset = None
    assert release_and_count() == 0
    del Child.reset
    assert release_and_count() == 3
    del Late.reset
    assert release_and_count() == 0


def test_reset_of_a_type_that_changes_more_often_than_the_interpreter_counts():
    class Restless:
        pass

    seen = []
    pool = ObjectPool(Restless, prefill=0)
    for number in range(3000):
        if number % 2:
            del Restless.reset
        else:
            Restless.reset = lambda self: seen.append(1)
        pool.release(pool.acquire())
    assert len(seen) == 1500


def test_reset_is_found_by_type_in_a_mixed_pool():
    pool = ObjectPool(Thing, prefill=0)
    things = [kind() for _ in range(20) for kind in (Thing, Resettable, dict, Resettable, Thing, list)]
    for thing in things:
        pool.release(thing)
    assert [thing.resets for thing in things if isinstance(thing, Resettable)] == [1] * 40


def test_an_object_that_changes_its_class():
    pool = ObjectPool(Thing, prefill=0)
    thing = pool.acquire()
    pool.release(thing)
    thing.__class__ = Resettable
    pool.release(thing)
    assert thing.resets == 1


@pytest.mark.parametrize("given", [True, False])
def test_a_reset_that_raises_lets_the_object_go(given):
    def fail(self):
        raise OSError("cannot")

    class Failing:
        pass

    if not given:
        Failing.reset = fail
    pool = ObjectPool(Failing, prefill=2, reset=fail if given else None)
    thing = pool.acquire()
    gone = weakref.ref(thing)
    for _ in range(2):
        with pytest.raises(OSError, match="cannot"):
            pool.release(thing)
    assert counts(pool, "discarded", "released", "pool_size") == (2, 0, 1)
    del thing
    gc.collect()
    assert gone() is None


def test_a_reset_may_use_the_pool():
    class Busy:
        def reset(self):
            if not busy:
                busy.append(1)
                pool.release(pool.acquire())
                pool.release(Busy())
                pool.clear()
                pool.resize(1)

    busy = []
    pool = ObjectPool(Busy, 10, prefill=10)
    assert pool.release(pool.acquire())
    assert (len(pool), pool.max_size) == (1, 1)


def test_a_reset_may_release_the_same_object():
    class Eager:
        depth = 0

        def reset(self):
            self.depth += 1
            if self.depth == 1:
                pool.release(self)

    pool = ObjectPool(Eager, prefill=0)
    eager = pool.acquire()
    pool.release(eager)
    del eager
    assert pool.acquire() is not pool.acquire()


# --- finalisers that use the pool ---


class Hostile:
    """Its finaliser does to the pool what the test asks for."""

    pool = None
    deeds = ()

    def __del__(self):
        pool = Hostile.pool() if Hostile.pool else None
        if pool is not None:
            for deed in Hostile.deeds:
                deed(pool)


DEEDS = {
    "acquire": lambda pool: pool.acquire(),
    "release": lambda pool: pool.release(Thing()),
    "resurrect": lambda pool: pool.release(pool.acquire()),
    "clear": lambda pool: pool.clear(),
    "resize": lambda pool: pool.resize(3),
    "grow": lambda pool: pool.resize(300),
    "trim": lambda pool: pool.trim(10_000),
    "nbytes": lambda pool: pool.nbytes,
    "stats": lambda pool: pool.stats,
    "sweep": lambda pool: pool._sweep(10.0, time.monotonic() + 1e6),
}


@pytest.mark.parametrize("max_idle", [None, 1000.0])
@pytest.mark.parametrize("deed", DEEDS)
def test_finalisers_that_use_the_pool(deed, max_idle):
    made = []

    def factory():
        made.append(1)
        return Hostile() if len(made) <= 50 else Thing()

    pool = ObjectPool(factory, 20, prefill=20, max_idle=max_idle)
    Hostile.pool = weakref.ref(pool)
    Hostile.deeds = (DEEDS[deed],)
    try:
        for action in (
            lambda: pool.trim(1),
            lambda: pool.resize(10),
            lambda: pool.release(Hostile()),
            lambda: [pool.release(Hostile()) for _ in range(30)],
            lambda: pool.resize(2),
            lambda: pool._sweep(10.0, time.monotonic() + 1e6),
            lambda: pool.clear(),
            lambda: [pool.release(pool.acquire()) for _ in range(10)],
        ):
            action()
            assert 0 <= len(pool) <= pool.max_size
            assert pool.stats["pool_size"] == len(pool)
        held = [pool.acquire() for _ in range(30)]
        assert len({id(thing) for thing in held}) == 30
        held.clear()
        pool.clear()
    finally:
        Hostile.pool, Hostile.deeds = None, ()


def test_clear_ends_though_finalisers_release_more():
    class Hydra:
        def __del__(self):
            if growing and len(pool) < pool.max_size:
                pool.release(Hydra())

    growing = [1]
    pool = ObjectPool(Hydra, 10)
    pool.clear()
    assert len(pool) <= 10
    pool.trim(10**9)
    pool.resize(1)
    assert len(pool) <= 1
    growing.clear()


# --- lease ---


def test_lease_releases_at_the_end():
    pool = ObjectPool(Thing, prefill=1)
    with pool.lease() as thing:
        assert isinstance(thing, Thing)
        assert len(pool) == 0
    assert len(pool) == 1


def test_lease_releases_when_the_body_raises():
    pool = ObjectPool(Thing, prefill=1)
    with pytest.raises(ZeroDivisionError), pool.lease():
        raise ZeroDivisionError
    assert counts(pool, "released", "pool_size") == (1, 1)


def test_lease_left_twice():
    pool = ObjectPool(Thing, prefill=1)
    lease = pool.lease()
    lease.__enter__()
    lease.__exit__(None, None, None)
    lease.__exit__(None, None, None)
    lease.__exit__()
    assert counts(pool, "released", "pool_size") == (1, 1)
    with lease, pytest.raises(SynthexFastError):
        lease.__enter__()
    assert counts(pool, "released", "pool_size") == (2, 1)


def test_lease_whose_reset_raises():
    def fail(thing):
        raise OSError("cannot")

    pool = ObjectPool(Thing, prefill=1, reset=fail)
    with pytest.raises(OSError, match="cannot") as caught, pool.lease():
        raise ZeroDivisionError
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert counts(pool, "discarded", "pool_size") == (1, 0)


def test_lease_of_a_subclass_calls_its_methods():
    calls = []

    class Logged(ObjectPool):
        def acquire(self):
            calls.append("acquire")
            return super().acquire()

        def release(self, obj):
            calls.append("release")
            return super().release(obj)

    with Logged(Thing).lease():
        pass
    assert calls == ["acquire", "release"]


def test_a_lease_without_a_pool():
    with pytest.raises(AttributeError):
        Lease().__enter__()


# --- size: resize, clear, trim, nbytes ---


def test_resize_lets_go_what_is_over():
    pool = ObjectPool(Thing, 100)
    pool.resize(30)
    assert counts(pool, "pool_size", "discarded") == (30, 70)
    pool.resize(60)
    assert [pool.release(Thing()) for _ in range(40)] == [True] * 30 + [False] * 10
    assert len(pool) == 60


def test_clear():
    pool = ObjectPool(Thing)
    pool.clear()
    assert counts(pool, "pool_size", "discarded") == (0, 100)
    assert pool.release(pool.acquire())


def test_nbytes_and_trim():
    pool = ObjectPool(lambda: bytearray(10_000), prefill=20)
    nbytes = pool.nbytes
    assert 200_000 <= nbytes <= 220_000
    assert counts(pool, "pool_size", "aliased", "reused", "discarded") == (20, 0, 0, 0)
    freed = pool.trim(35_000)
    assert 35_000 <= freed <= 50_000
    assert len(pool) == 16
    assert pool.nbytes == nbytes - freed
    assert pool.trim(0) == 0
    assert pool.trim(10**12) == nbytes - freed
    assert (len(pool), pool.nbytes, pool.trim(1)) == (0, 0, 0)


def test_nbytes_of_many_objects_is_an_estimate():
    sizes = random.Random(3)
    pool = ObjectPool(lambda: bytearray(sizes.randrange(900, 1100)), 10_000, prefill=10_000)
    # The header of a bytearray and its bytes differ between versions of the interpreter.
    average = 999.5 + sys.getsizeof(bytearray(1000)) - 1000
    assert pool.nbytes == pytest.approx(10_000 * average, rel=0.05)
    assert len(pool) == 10_000
    pool.resize(5000)
    assert pool.nbytes == pytest.approx(5000 * average, rel=0.05)
    held = [pool.acquire() for _ in range(5000)]
    assert counts(pool, "reused", "aliased", "pool_size") == (5000, 0, 0)
    assert len({id(thing) for thing in held}) == 5000


@pytest.mark.parametrize("deed", DEEDS)
def test_weighing_objects_that_use_the_pool(deed):
    class Heavy:
        def __sizeof__(self):
            if busy:
                busy.pop()
                DEEDS[deed](pool)
            return 1000

    busy = []
    pool = ObjectPool(Heavy, 20, prefill=20, max_idle=1e9)
    for action in (lambda: pool.nbytes, lambda: pool.trim(3000)):
        busy.append(1)
        assert action() >= 0
        assert len(pool) <= pool.max_size
    stats = pool.stats
    held = [pool.acquire() for _ in range(40)]
    assert len({id(thing) for thing in held}) == 40
    assert pool.stats["aliased"] == stats["aliased"]
    assert pool.stats["reused"] - stats["reused"] == stats["pool_size"]


def test_weighing_objects_whose_sizeof_raises():
    class Broken:
        def __sizeof__(self):
            raise ValueError("no idea")

    pool = ObjectPool(Broken, prefill=5)
    assert pool.nbytes > 0
    assert pool.trim(1) > 0
    assert len(pool) == 4


# --- idle time ---


def test_lets_go_what_has_been_idle_too_long():
    pool = ObjectPool(Thing, prefill=10, max_idle=0.05)
    assert len(pool) == 10
    time.sleep(0.1)
    assert isinstance(pool.acquire(), Thing)
    assert pool.stats["reused"] == 0
    assert counts(pool, "pool_size", "discarded", "created") == (0, 10, 11)
    pool.release(Thing())
    assert counts(pool, "pool_size") == (1,)


def test_an_operation_lets_go_a_bounded_number():
    freed = []

    class Heard:
        def __del__(self):
            freed.append(1)

    pool = ObjectPool(Heard, 1000, prefill=500, max_idle=0.05)
    time.sleep(0.1)
    held = pool.acquire()
    assert 1 <= len(freed) <= 20
    first = len(freed)
    pool.release(held)
    assert 1 <= len(freed) - first <= 20
    assert len(pool) == 1
    assert len(freed) == 500


def test_a_sweep_lets_go_what_is_due_and_tells_when_to_come_back():
    pool = ObjectPool(Thing, prefill=10, max_idle=100.0)
    now = time.monotonic()
    assert pool._sweep(10.0, now) == pytest.approx(now + 100, abs=1.0)
    assert len(pool) == 10
    assert pool._sweep(10.0, now + 101) == math.inf
    assert len(pool) == 0
    assert ObjectPool(Thing)._sweep(10.0) == math.inf


def test_the_order_of_idle_times_survives_use():
    pool = ObjectPool(Thing, 8, prefill=0, max_idle=100.0)
    chance = random.Random(5)
    for _ in range(2000):
        if chance.random() < 0.5:
            pool.release(Thing())
        elif chance.random() < 0.9:
            pool.acquire()
        else:
            pool.trim(1)
            pool.nbytes  # noqa: B018
        assert len(pool) <= 8
    pool.release(Thing())
    assert pool._sweep(10.0, time.monotonic() + 99) < math.inf
    assert pool._sweep(10.0, time.monotonic() + 101) == math.inf


def test_idle_times_stay_with_their_objects_when_memory_moves():
    pool = ObjectPool(Thing, 32, prefill=16, max_idle=100.0)
    time.sleep(0.05)
    between = time.monotonic()
    time.sleep(0.05)
    for _ in range(16):
        pool.release(Thing())  # grows
    for _ in range(16):
        pool.trim(1)
    for _ in range(10):
        pool.release(Thing())  # moves down
    assert pool._sweep(10.0, between + 100) > between + 100
    assert len(pool) == 26
    pool = ObjectPool(Thing, 64, prefill=16, max_idle=100.0)
    time.sleep(0.05)
    between = time.monotonic()
    time.sleep(0.05)
    for _ in range(24):
        pool.release(Thing())
    pool.nbytes  # noqa: B018
    pool._sweep(10.0, between + 100)
    assert len(pool) == 24


# --- being a Python object ---


@pytest.mark.filterwarnings("ignore:this pool can't reuse:RuntimeWarning")
def test_generic_subclassable_weakrefable():
    class Named(ObjectPool[Thing]):
        def __init__(self, name):
            super().__init__(Thing, 5, name=name)
            self.extra = 1

    pool = Named("x")
    assert (pool.name, pool.extra, len(pool)) == ("x", 1, 5)
    assert isinstance(pool.acquire(), Thing)
    reference = weakref.ref(pool)
    del pool
    assert reference() is None
    assert ObjectPool[int].__args__ == (int,)
    assert ObjectPool[int](lambda: 5).acquire() == 5


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, pickle.dumps])
def test_cannot_be_copied(copies):
    with pytest.raises(TypeError):
        copies(ObjectPool(Thing))


def test_frees_its_objects():
    pool = ObjectPool(Thing)
    things = [pool.acquire() for _ in range(20)]
    alive = weakref.WeakSet(things)
    for thing in things:
        pool.release(thing)
    del things, thing
    gc.collect()
    assert len(alive) == 20
    del pool
    gc.collect()
    assert not alive


def test_cycles_through_the_pool_are_collected():
    class Maker:
        def __init__(self):
            self.pool = ObjectPool(self.make, 5, prefill=0, reset=self.wipe)
            for _ in range(5):
                self.pool.release(self.make())

        def make(self):
            thing = Thing()
            thing.maker = self
            return thing

        def wipe(self, thing):
            pass

    maker = Maker()
    reference = weakref.ref(maker)
    del maker
    gc.collect()
    assert reference() is None


def test_cycles_through_idle_objects_are_collected():
    pool = ObjectPool(Thing, prefill=0)
    thing = Thing()
    thing.pool = pool
    reference = weakref.ref(pool)
    pool.release(thing)
    del thing, pool
    gc.collect()
    assert reference() is None


def test_a_cycle_that_only_the_pool_can_break():
    class Marked(ObjectPool):
        pass

    pool = Marked(list, prefill=0)
    # The collector can't empty a tuple, so it must empty the pool.
    pool.release((pool,))
    del pool
    gc.collect()
    # No weak reference would show it: those are cleared before anything is freed.
    assert not [found for found in gc.get_objects() if type(found) is Marked]


def test_the_collector_sees_idle_objects():
    pool = ObjectPool(Thing, prefill=3)
    assert sum(isinstance(found, Thing) for found in gc.get_referents(pool)) == 3


def test_a_collection_at_each_allocation():
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(5):
            pool = ObjectPool(Resettable, max_size=20, prefill=20, name="x")
            held = [pool.acquire() for _ in range(30)]
            for thing in held:
                pool.release(thing)
            del held, thing
            with pool.lease():
                gc.collect()
    finally:
        gc.set_threshold(*before)
    assert counts(pool, "pool_size", "aliased") == (20, 0)


def test_a_finaliser_in_a_collected_cycle_may_still_call():
    results = []

    class Last:
        def __del__(self):
            try:
                results.append(self.pool.acquire())
                self.pool.release(Thing())
            except Exception as error:
                results.append(error)

    last = Last()
    last.pool = ObjectPool(Thing, prefill=1)
    last.pool.release(last)
    del last
    gc.collect()
    assert len(results) >= 1


@pytest.mark.usefixtures("no_sweeper")
def test_leaks_nothing(leaks_nothing):
    def scenario():
        pool = ObjectPool(Resettable, 20, max_idle=1e6, name="flat")
        for _ in range(30):
            with pool.lease():
                pass
        held = [pool.acquire() for _ in range(40)]
        for thing in held:
            pool.release(thing)
        pool.acquire()
        pool.resize(10)
        pool.trim(100)
        pool.nbytes  # noqa: B018
        pool._sweep(10.0, time.monotonic() + 2e6)
        pool.clear()
        for bad in (lambda: pool.resize(0), lambda: pool.release(None), lambda: ObjectPool(lambda: None)):
            with contextlib.suppress(SynthexFastError):
                bad()
        ObjectPool(int).release(5)

    leaks_nothing(scenario)


def test_no_object_stays_behind():
    class Counted:
        def reset(self):
            pass

    def scenario():
        pool = ObjectPool(Counted, 20, max_idle=50.0)
        for _ in range(30):
            with pool.lease():
                pass
        held = [pool.acquire() for _ in range(40)]
        for thing in held:
            pool.release(thing)
        pool.resize(10)
        pool.trim(100)
        assert pool.nbytes
        pool.clear()
        pool.release(Counted())

    scenario()
    gc.collect()
    assert not [found for found in gc.get_objects() if type(found) is Counted]
    before = sys.getrefcount(Counted)
    for _ in range(50):
        scenario()
    gc.collect()
    assert abs(sys.getrefcount(Counted) - before) < 10


# --- memory that runs out ---


def whole(pool, expected=None):
    """The pool's account is right and it hands each object out once."""
    stats = pool.stats
    assert stats["pool_size"] == len(pool) <= pool.max_size
    held = [pool.acquire() for _ in range(len(pool))]
    assert len({id(thing) for thing in held}) == len(held)
    assert pool.stats["reused"] - stats["reused"] == stats["pool_size"]
    if expected is not None:
        assert stats["pool_size"] == expected


@pytest.mark.usefixtures("no_sweeper")
@pytest.mark.parametrize("max_idle", [None, 1e6])
def test_memory_runs_out_in_the_constructor(fail_allocations, max_idle):
    class Tracked:
        pass

    assert fail_allocations(lambda: ObjectPool(Tracked, 40, prefill=40, max_idle=max_idle, name="x")) > 40
    gc.collect()
    assert not [found for found in gc.get_objects() if type(found) is Tracked]


@pytest.mark.usefixtures("no_sweeper")
@pytest.mark.parametrize("max_idle", [None, 1e6])
def test_memory_runs_out_in_acquire(fail_allocations, max_idle):
    def check(pool):
        assert pool.stats["created"] == 0
        whole(pool, 0)

    made = fail_allocations(
        lambda pool: pool.acquire(),
        prepare=lambda: ObjectPool(Thing, prefill=0, max_idle=max_idle),
        check=check,
    )
    assert made > 0


@pytest.mark.usefixtures("no_sweeper")
@pytest.mark.parametrize("max_idle", [None, 1e6])
@pytest.mark.parametrize("idle", [0, 16, 32, 64])
def test_memory_runs_out_in_release(fail_allocations, max_idle, idle):
    thing = Thing()
    states = []

    def prepare():
        for pool in states:
            # A release that finds no memory lets the object go.
            kept, refused = counts(pool, "released", "discarded")
            assert kept + refused == 1
            assert len(pool) == idle + kept
            held = [pool.acquire() for _ in range(idle + kept)]
            assert counts(pool, "pool_size", "reused", "aliased") == (0, idle, kept)
            assert len({id(other) for other in held}) == len(held)
        states[:] = [ObjectPool(Thing, prefill=idle, max_idle=max_idle)]
        return states[0]

    fail_allocations(lambda pool: pool.release(thing), prepare=prepare)
    prepare()


@pytest.mark.parametrize(
    "act",
    [
        lambda pool: pool.resize(20),
        lambda pool: pool.resize(2000),
        lambda pool: pool.clear(),
        lambda pool: pool.trim(100),
        lambda pool: pool.nbytes,
        lambda pool: pool.stats,
        lambda pool: len(pool),
        lambda pool: repr(pool),
        lambda pool: pool.lease().__enter__(),
        lambda pool: pool._sweep(1.0),
    ],
)
def test_memory_runs_out_elsewhere(fail_allocations, act):
    fail_allocations(act, prepare=lambda: ObjectPool(Thing, 50), check=lambda pool: whole(pool, 50))


# --- threads ---


@pytest.mark.stress
def test_eight_threads():
    class Exclusive:
        held = 0

        def reset(self):
            self.resets = getattr(self, "resets", 0) + 1

    pool = ObjectPool(Exclusive, 50, name="hammered")

    def hammer(seed):
        chance = random.Random(seed)
        held = []
        for _ in range(3000):
            action = chance.random()
            if action < 0.5 and len(held) < 10:
                thing = pool.acquire()
                assert thing.held == 0, "handed out twice"
                thing.held = 1
                held.append(thing)
                del thing
            elif held:
                thing = held.pop()
                thing.held = 0
                pool.release(thing)
                del thing
            if action > 0.998:
                pool.resize(chance.choice((20, 50)))
            elif action > 0.996:
                pool.trim(200)
            elif action > 0.994:
                assert pool.nbytes >= 0
            elif action > 0.992:
                pool.clear()
            elif action > 0.99:
                assert len(pool) <= 60
        for thing in held:
            thing.held = 0
            pool.release(thing)

    in_threads(*(lambda seed=seed: hammer(seed) for seed in range(8)))
    pool.resize(50)
    stats = pool.stats
    assert stats["pool_size"] == len(pool) <= 50
    pool.clear()
    assert len(pool) == 0
    assert pool.stats["discarded"] == stats["discarded"] + stats["pool_size"]


@pytest.mark.stress
def test_eight_threads_with_idle_times_and_a_sweeper():
    pool = ObjectPool(Thing, 50, max_idle=1000.0)
    ends = threading.Event()

    def hammer():
        for number in range(3000):
            pool.release(pool.acquire())
            if number % 100 == 0:
                with pool.lease():
                    pool.release(Thing())

    def sweep():
        while not ends.is_set():
            pool._sweep(10.0, time.monotonic() + 2000)
            time.sleep(0.001)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        in_threads(*[hammer] * 8)
    finally:
        ends.set()
        sweeper.join()
    stats = pool.stats
    assert stats["pool_size"] == len(pool) <= 50


def test_counts_add_up_over_threads():
    pool = ObjectPool(Thing, 1000, prefill=0)

    def use():
        for _ in range(500):
            pool.release(pool.acquire())

    in_threads(*[use] * 4)
    stats = pool.stats
    assert stats["reused"] + stats["created"] == 2000
    assert stats["released"] == 2000
    assert stats["pool_size"] == stats["released"] - stats["reused"] - stats["aliased"] - stats["discarded"]


@pytest.mark.skipif(not FREE_THREADED, reason="objects belong to no thread on the standard build")
def test_an_object_of_another_thread_is_let_go():
    pool = ObjectPool(Thing, prefill=0)
    thing = pool.acquire()
    kept = []
    in_threads(lambda: kept.append(pool.release(thing)))
    assert kept == [False]
    assert counts(pool, "discarded", "pool_size") == (1, 0)
    assert pool.release(thing)


@pytest.mark.skipif(FREE_THREADED, reason="objects stay with their thread there")
def test_an_object_goes_from_thread_to_thread():
    pool = ObjectPool(Thing, prefill=0)
    address = []

    def use():
        thing = pool.acquire()
        address.append(id(thing))
        pool.release(thing)

    in_threads(use)
    assert id(pool.acquire()) == address[0]


def test_objects_of_an_ended_thread():
    pool = ObjectPool(Thing, prefill=0)
    in_threads(lambda: [pool.release(thing) for thing in [pool.acquire() for _ in range(10)]])
    assert pool.stats["released"] == 10
    if FREE_THREADED:
        assert counts(pool, "discarded", "pool_size") == (10, 0)
    else:
        assert counts(pool, "discarded", "pool_size") == (0, 10)


def test_a_finaliser_in_an_ending_thread_may_use_the_pool():
    class Tail:
        def __del__(self):
            if pool.stats["created"] < 100:
                pool.release(pool.acquire())
                pool.release(Thing())

    pool = ObjectPool(Tail, prefill=0)
    for _ in range(5):
        in_threads(*[lambda: [pool.release(thing) for thing in [pool.acquire() for _ in range(10)]]] * 3)
    assert len(pool) <= pool.max_size
    local = threading.local()

    def leave_behind():
        local.tail = pool.acquire()

    in_threads(*[leave_behind] * 3)
    pool.clear()


def test_room_moves_between_threads():
    pool = ObjectPool(Thing, 100, prefill=0)
    for thing in [pool.acquire() for _ in range(100)]:
        pool.release(thing)
    del thing
    held = [pool.acquire() for _ in range(100)]
    kept = []
    in_threads(lambda: kept.extend(pool.release(Thing()) for _ in range(100)))
    assert kept == [True] * 100
    assert len(held) == 100


def test_other_threads_clear_trim_and_resize_what_a_thread_holds():
    pool = ObjectPool(Thing, 100, prefill=0)
    filled, go_on = threading.Barrier(2), threading.Barrier(2)

    def fill():
        for _ in range(3):
            for thing in [Thing() for _ in range(100)]:
                assert pool.release(thing)
            del thing
            filled.wait()
            go_on.wait()

    thread = threading.Thread(target=fill)
    thread.start()
    for act, left in ((pool.clear, 0), (lambda: pool.resize(10), 10), (lambda: pool.trim(10**9), 0)):
        filled.wait()
        assert len(pool) == 100
        assert pool.nbytes > 0
        act()
        assert len(pool) == left
        pool.clear()
        pool.resize(100)
        go_on.wait()
    thread.join()


@pytest.mark.skipif(not FREE_THREADED, reason="about reference counts without the GIL")
def test_a_pool_many_threads_used_is_freed_by_the_collector():
    pool = ObjectPool(Thing, prefill=0)
    in_threads(*[partial(lambda pool: pool.release(pool.acquire()), pool)] * 4)
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    assert reference() is None


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.stress
def test_fork_while_threads_use_the_pool():
    pool = ObjectPool(Thing, 100, max_idle=1000.0)
    ends = threading.Event()

    def use():
        while not ends.is_set():
            held = [pool.acquire() for _ in range(5)]
            for thing in held:
                pool.release(thing)
            del held, thing
            len(pool)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    for _ in range(50):
                        pool.release(pool.acquire())
                    others = [
                        threading.Thread(target=lambda: [pool.release(pool.acquire()) for _ in range(50)])
                        for _ in range(3)
                    ]
                    for other in others:
                        other.start()
                    for other in others:
                        other.join()
                    gc.collect()
                    pool.clear()
                    code = 0 if len(pool) == 0 and pool.nbytes == 0 else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        ends.set()
        for thread in threads:
            thread.join()


EXIT = """
import atexit, sys, threading, time
from synthex_fast._pool import ObjectPool

class Noisy:
    def __del__(self):
        pool.release(pool.acquire())

pool = ObjectPool(Noisy, 50, max_idle=1000.0)
keep = []

def use():
    while True:
        with pool.lease():
            pass

for _ in range(3):
    threading.Thread(target=use, daemon=True).start()
time.sleep(0.05)
sys.modules["kept past the end"] = pool
atexit.register(pool.acquire)
print("done")
"""


def test_the_interpreter_ends_well():
    for _ in range(3):
        assert run(EXIT, stderr=None) == "done\n"


# --- against a model ---


class PoolAgainstAModel(RuleBasedStateMachine):
    """The model: a list of idle objects, the last but one goes first, and what the caller still holds."""

    def __init__(self):
        super().__init__()
        self.max_size = 8
        self.pool = ObjectPool(self.make, self.max_size, prefill=0, reset=self.wipe)
        self.idle = []
        self.held = {}
        self.number = 0
        self.fails = False
        self.counts = collections.Counter(
            dict.fromkeys(STATS - {"pool_size", "reuse_rate", "held_elsewhere"}, 0)
        )

    def make(self):
        thing = Thing()
        self.number += 1
        thing.number = self.number
        return thing

    def wipe(self, thing):
        if self.fails:
            raise OSError

    @rule()
    def acquire(self):
        thing = self.pool.acquire()
        while self.idle:
            number = self.idle.pop(-2 if len(self.idle) > 1 else -1)
            if number not in self.held and number not in self.idle:
                assert thing.number == number
                self.counts["reused"] += 1
                break
            self.counts["aliased"] += 1
        else:
            assert thing.number == self.number
            self.counts["created"] += 1
        self.held[thing.number] = thing

    @rule(data=st.data(), keeps=st.booleans(), fails=st.booleans())
    def release(self, data, keeps, fails):
        if not self.held:
            return
        number = data.draw(st.sampled_from(sorted(self.held)))
        thing = self.held[number] if keeps else self.held.pop(number)
        self.fails = fails
        try:
            kept = self.pool.release(thing)
        except OSError:
            assert fails
            kept = False
        else:
            assert not fails
            assert kept == (len(self.idle) < self.max_size)
        if kept:
            self.idle.append(number)
        self.counts["released" if kept else "discarded"] += 1

    @rule(data=st.data())
    def drop(self, data):
        if self.held:
            del self.held[data.draw(st.sampled_from(sorted(self.held)))]

    @rule(max_size=st.integers(1, 12))
    def resize(self, max_size):
        self.pool.resize(max_size)
        self.max_size = max_size
        over = max(0, len(self.idle) - max_size)
        self.counts["discarded"] += over
        del self.idle[:over]

    @rule()
    def clear(self):
        self.pool.clear()
        self.counts["discarded"] += len(self.idle)
        self.idle.clear()

    @rule()
    def trim(self):
        """One byte is worth one object, the coldest."""
        assert (self.pool.trim(1) > 0) == bool(self.idle)
        self.counts["discarded"] += bool(self.idle)
        del self.idle[:1]

    @rule()
    def trim_nothing(self):
        assert self.pool.trim(0) == 0

    @rule()
    def weigh(self):
        assert (self.pool.nbytes > 0) == bool(self.idle)

    @invariant()
    def agrees(self):
        stats = self.pool.stats
        assert len(self.pool) == stats["pool_size"] == len(self.idle) <= self.max_size
        assert {name: stats[name] for name in self.counts} == dict(self.counts)


PoolAgainstAModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
test_pool_against_a_model = PoolAgainstAModel.TestCase


def test_the_examples_in_the_docstrings():
    failed, tried = doctest.testmod(_pool)
    assert tried > 10
    assert failed == 0


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_pool_says_why_it_cannot_be_copied(duplicate):
    with pytest.raises(ArgumentTypeError, match="ObjectPool can't be pickled or copied"):
        duplicate(ObjectPool(list))
