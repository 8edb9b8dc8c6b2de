"""The table under TTLDict: the invariants of its index, heap, queues, chains and account after any operation.

A small extension checks them. It cimports the table as any other Cython code would."""

import contextlib
import math
import random

import pytest
from conftest import CYTHON, build_extension
from support import POLICIES, Clock

pytest.importorskip("Cython")
pytest.importorskip("setuptools")

from synthex_fast import TTLDict
from synthex_fast.errors import ValueTooLargeError


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    return build_extension(CYTHON / "inside.pyx", tmp_path_factory.mktemp("inside"), "-O1")


def test_the_table_works_without_the_interpreter(inside):
    kept = range(901, 1001)
    assert inside.without_the_interpreter(1000, 0xFFFFFFFF) == 2 * sum(kept)
    assert inside.without_the_interpreter(1000, 50) == 2 * sum(range(951, 1001))


@pytest.mark.parametrize("former_names", [False, True])
def test_the_dead_queue_is_first_in_first_out(inside, former_names):
    assert inside.dead_queue(former_names) == ([2, 0, 3, 1], True)


def test_the_c_face(inside):
    d = TTLDict(5)
    assert inside.through_the_c_face(d, "key", ["value"], math.inf) == (1, True, True, True)
    assert inside.through_the_c_face(d, "key", ["value"], 5.0) == (1, True, True, True)
    inside.check(d)
    with pytest.raises(TypeError):
        inside.through_the_c_face(d, [], 1, 5.0)


def often(weights, *once):
    """Names to choose from: those in ``weights`` as many times as it says, the others once."""
    return [name for name, weight in weights.items() for _ in range(weight)] + list(once)


class Driver:
    """Random operations on a dict whose clock jumps and goes back."""

    OPERATIONS = often(
        {"set": 6, "get": 7, "pop": 4, "touch": 2, "pass time": 2, "len": 2},
        "expire", "contains", "popitem", "clear", "iterate", "resize", "recount", "trim", "copy",
    )  # fmt: skip

    def __init__(self, seed, inside):
        self.inside = inside
        chance = self.chance = random.Random(seed)
        self.clock = Clock(chance.choice([0.0, -1e6, 1.7e9, 3.3e5]))
        self.idle = chance.choice([None, None, 0.5, 30.0])
        self.limit = chance.choice([None, 3000, 2**29, 2**40])
        self.keys = chance.choice([6, 40, 400])
        self.sizes = chance.choice([[0, 50], [0, 10, 2**28, 2**33], [2**28 - 70, 2**28 + 70, 300], [2800]])
        self.d = TTLDict(
            chance.choice([None, 1, 2, 3, 10, 150]),
            chance.choice([None, 1.0, 1e-12, 400.0, 1e12]),
            memory_limit=self.limit,
            sizeof=lambda key, value: value[1],
            policy=chance.choice(POLICIES),
            idle=self.idle,
            timer=self.clock,
            on_evict=self.gone if chance.random() < 0.5 else None,
        )
        self.nested = self.told = 0

    def gone(self, key, value, reason):
        self.told += 1
        assert reason in ("expired", "idle", "full", "memory")
        if self.nested < 3 and self.chance.random() < 0.3:
            self.nested += 1
            self.operate()
            self.nested -= 1

    def operate(self):
        d, chance = self.d, self.chance
        told = self.told
        key = chance.randrange(self.keys)
        ttl = chance.choice([None, None, 1e-12, 0.004, 0.1, 5.0, 1e3, 1e8, 1e300, math.inf])
        match chance.choice(self.OPERATIONS):
            case "set":
                try:
                    d.set(key, (key, chance.choice(self.sizes)), ttl)
                except ValueTooLargeError:
                    assert self.limit
            case "get":
                value = d.get(key)
                assert value is None or value[0] == key
            case "pop":
                d.pop(key, None)
            case "touch":
                d.touch(key, ttl)
            case "pass time":
                self.clock.now += chance.choice(
                    [0.0, 1e-9, 0.003, 0.01, 0.4, 7.0, 900.0, 3e7, 4e8, -1e-3, -0.3, -50.0, -3e7]
                )
            case "expire":
                d.expire(chance.choice([None, 1, 5]))
            case "contains":
                key in d  # noqa: B015
            case "popitem":
                try:
                    d.popitem()
                except KeyError:
                    assert not self.inside.shape(d)["live"]
            case "clear" if chance.random() < 0.1:
                d.clear()
            case "len":
                expected = len(d)
                if self.told == told:
                    assert self.inside.due(d, self.clock.now) == 0
                    assert expected == self.inside.shape(d)["live"]
            case "iterate":
                try:
                    for key, value in d.items():
                        assert value[0] == key
                        if chance.random() < 0.1:
                            self.clock.now += 0.01
                except RuntimeError:
                    assert self.told > told
            case "resize" if chance.random() < 0.3:
                self.limit = chance.choice([None, 3000, 2**29, 2**40])
                d.resize(chance.choice([None, 1, 2, 3, 10, 150]), self.limit)
            case "recount":
                with contextlib.suppress(KeyError, ValueTooLargeError):
                    d.recount(key)
            case "trim":
                d.trim(chance.choice([0, 1, 200, 2**28]))
            case "copy" if chance.random() < 0.1:
                twin = d.copy()
                self.inside.check(twin)
                if self.told == told:
                    assert (twin, twin.nbytes) == (d, d.nbytes) or self.told > told


@pytest.mark.parametrize("seed", range(120))
def test_random_operations_leave_the_table_sound(inside, seed):
    driver = Driver(seed, inside)
    for _ in range(400):
        driver.operate()
        inside.check(driver.d)
    driver.d.clear()
    inside.check(driver.d)


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_leave_the_table_sound(inside, hammer, policy):
    """All operations at once on one dict, keys whose comparison runs Python code among them."""

    class Key:
        def __init__(self, n):
            self.n = n

        def __hash__(self):
            return self.n % 5

        def __eq__(self, other):
            return isinstance(other, Key) and self.n == other.n

    chances = [random.Random(n) for n in range(8)]
    operations = often(
        {"set": 5, "get": 5, "pop": 3},
        "contains", "touch", "expire", "len", "new iterator", "iterate", "popitem", "clear", "copy", "trim",
        "resize", "recount",
    )  # fmt: skip
    told = []
    d = TTLDict(
        60,
        0.01,
        memory_limit=20_000,
        policy=policy,
        idle=0.008,
        on_evict=lambda *entry: told.append(entry[2]),
    )
    iterators = [iter(d)]

    def body(index):
        chance = chances[index]
        key = chance.choice([chance.randrange(90), str(chance.randrange(40)), Key(chance.randrange(20))])
        match chance.choice(operations):
            case "set":
                d.set(key, (key, "x" * chance.randrange(400)), chance.choice([None, 0.001, math.inf]))
            case "get":
                value = d.get(key)
                assert value is None or value[0] == key
            case "pop":
                d.pop(key, None)
            case "contains":
                key in d  # noqa: B015
            case "touch":
                d.touch(key, chance.choice([None, 0.001, math.inf]))
            case "expire":
                d.expire(chance.choice([None, 3]))
            case "len":
                assert 0 <= len(d) <= 60
                assert 0 <= d.nbytes <= 20_000
            case "new iterator":
                iterators[0] = iter(d)
            case "iterate":
                # One iterator, stepped by all threads.
                with contextlib.suppress(RuntimeError, StopIteration):
                    for _ in range(100):
                        next(iterators[0])
            case "popitem":
                with contextlib.suppress(KeyError):
                    d.popitem()
            case "clear" if chance.random() < 0.1:
                d.clear()
            case "copy":
                assert len(d.copy()) <= 60
            case "trim":
                d.trim(chance.randrange(2000))
            case "resize" if chance.random() < 0.1:
                d.resize(max_size=60, memory_limit=20_000)
            case "recount":
                with contextlib.suppress(KeyError):
                    d.recount(key)

    hammer(8, body, iterations=10_000)
    inside.check(d)
    assert set(told) <= {"expired", "idle", "full", "memory"}
    d.clear()
    inside.check(d)


def test_ghosts_are_as_many_as_what_lives(inside):
    d = TTLDict(10**8, memory_limit=100_000, sizeof=lambda k, v: 436)
    for n in range(2000):
        d[n] = n
    assert inside.shape(d)["live"] <= 200
    assert 0 < inside.shape(d)["ghosts"] <= 400
    d = TTLDict(100)
    for n in range(1000):
        d[n] = n
    assert inside.shape(d)["ghosts"] == 100
    d.resize(max_size=60)
    d[0] = 0
    assert inside.shape(d)["ghosts"] == 60
    inside.check(d)


@pytest.mark.parametrize("policy", POLICIES)
def test_growth_to_many_and_back_to_nothing(inside, policy):
    clock = Clock()
    d = TTLDict(timer=clock, policy=policy)
    order = list(range(100_000))
    random.Random(5).shuffle(order)
    for n in order:
        d.set(n * 1_000_003, n, ttl=1.0 + n % 977)
    inside.check(d)
    for n in order[:50_000]:
        del d[n * 1_000_003]
    inside.check(d)
    for n in order[50_000:70_000]:
        d.set(n * 1_000_003, n)
    inside.check(d)
    clock.now = 500.0
    assert len(d) == 20_000 + sum(1 + n % 977 > 500 for n in order[70_000:])
    inside.check(d)
    clock.now = 1e4
    assert len(d) == 20_000
    inside.check(d)
    for n in order[50_000:70_000]:
        d.pop(n * 1_000_003)
    inside.check(d)
    assert (len(d), d.nbytes) == (0, 0)
