"""TTLDict against a simple model, and each of its promises."""

import collections
import contextlib
import copy
import functools
import gc
import inspect
import math
import operator
import pickle
import random
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Mapping, MutableMapping
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import POLICIES, Clock, needs_fork, run, wait_for

from synthex_fast import ResponseBuffer, TTLDict, _sweeper, create_memory_aware_ttl_dict
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError, ValueTooLargeError

# What the dict counts for an entry beyond key and value.
ENTRY = TTLDict(sizeof=lambda k, v: 0)
ENTRY["a"] = 1
ENTRY = ENTRY.nbytes


class Hostile:
    """A key whose hash and comparisons can be made to do anything."""

    def __init__(self, value, on_eq=None, on_hash=None):
        self.value, self.on_eq, self.on_hash = value, on_eq, on_hash

    def __hash__(self):
        if self.on_hash:
            self.on_hash()
        return 42

    def __eq__(self, other):
        if self.on_eq:
            self.on_eq()
        return isinstance(other, Hostile) and self.value == other.value


class OnDel:
    def __init__(self, call):
        self.call = call

    def __del__(self):
        self.call()


def same_hash(a, b):
    """Different keys with the same hash, whose comparison runs Python code."""
    return Hostile(a), Hostile(b)


# ---- the model

KEYS = st.integers(0, 12).map(lambda n: n if n % 3 else f"k{n}" if n % 2 else (n, "t"))
TTLS = st.one_of(st.none(), st.sampled_from([0.001, 0.5, 1.0, 1.0, 2.5, 7, 1e9, math.inf]))
STEPS = st.sampled_from([0.0, 0.0004, 0.001, 0.01, 0.49, 0.5, 1.0, 2.0, 3.0, 50.0, 1e9])
SIZES = st.integers(0, 60)


class Model(RuleBasedStateMachine):
    """A dict of (value, deadline, last use, size). What the policy evicts is taken from `on_evict`."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        max_size=st.one_of(st.none(), st.integers(1, 8)),
        ttl=st.sampled_from([None, 1.0, 3.0]),
        idle=st.sampled_from([None, None, 0.75]),
        limit=st.one_of(st.none(), st.integers(ENTRY + 40, 4 * ENTRY + 100)),
        start=st.sampled_from([0.0, -5.0, 1.7e9]),
    )
    def begin(self, policy, max_size, ttl, idle, limit, start):
        self.clock = Clock(start)
        self.model = {}
        self.evicted = []
        self.max_size, self.ttl, self.idle = max_size, ttl, idle
        self.own, self.cap, self.over_cap = limit, None, 0
        self.d = TTLDict(
            max_size,
            ttl,
            memory_limit=limit,
            sizeof=lambda k, v: v[1],
            policy=policy,
            idle=idle,
            timer=self.clock,
            on_evict=lambda *entry: self.evicted.append(entry),
        )
        self.serial = 0

    @property
    def limit(self):
        return min((limit for limit in (self.own, self.cap) if limit is not None), default=None)

    def too_large(self, value):
        """Whether a value is over the cap alone."""
        return self.cap is not None and self.limit == self.cap < ENTRY + value[1]

    def not_kept(self, key, value):
        """Update the model for a value that was stored although it alone exceeds the cap."""
        self.over_cap += 1
        assert self.evicted.count((key, value, "memory")) == 1
        self.evicted.remove((key, value, "memory"))
        was_live = key in self.live()
        assert all(reason in ("expired", "idle") for _, _, reason in self.evicted), "nothing else has to go"
        self.apply_evictions()
        if was_live:
            del self.model[key]
        assert key not in self.d

    def due(self, key):
        _, deadline, used = self.model[key]
        return min(deadline, used + self.idle if self.idle else math.inf)

    def apply_evictions(self, trimmed=False):
        """Remove from the model what the dict evicted, checking each reason."""
        for key, value, reason in self.evicted:
            assert self.model[key][0] is value
            if reason in ("expired", "idle"):
                assert self.due(key) <= self.clock.now
                assert (reason == "expired") == (self.model[key][1] <= self.clock.now)
            else:
                assert self.max_size or self.limit is not None or trimmed
                assert self.due(key) > self.clock.now, "a due entry is evicted as expired"
                assert reason in ("full", "memory")
            del self.model[key]
        self.evicted.clear()

    def live(self):
        return {k: v[0] for k, v in self.model.items() if self.due(k) > self.clock.now}

    def deadline(self, ttl):
        seconds = self.ttl if ttl is None else ttl
        return math.inf if seconds is None else self.clock.now + seconds

    def stored(self, key, value, ttl):
        """Update the model for a store that the dict has done."""
        was_live = key in self.live()
        newcomer = [e for e in self.evicted if e[0] == key and e[1] is value]
        assert not newcomer, "an entry is not evicted by its own insertion"
        full = [e for e in self.evicted if e[2] == "full"]
        memory = [e for e in self.evicted if e[2] == "memory"]
        before = len(self.model) - sum(e[2] in ("expired", "idle") for e in self.evicted)
        if full:
            assert len(full) == 1
            assert not was_live
            assert before >= self.max_size
        if memory:
            assert self.limit is not None
            replaced = self.model[key][0][1] + ENTRY if was_live else 0
            lives = self.weight() - sum(ENTRY + e[1][1] for e in full)
            assert lives - replaced + ENTRY + value[1] > self.limit, "what lives would have fitted"
        self.apply_evictions()
        self.model[key] = (value, self.deadline(ttl), self.clock.now)
        if memory:
            # Down to 80 %, unless the newcomer alone is above that.
            size = self.weight()
            assert size <= self.limit - self.limit // 5 or len(self.d) == 1

    def weight(self):
        return sum(ENTRY + v[1] for v in self.live().values())

    @rule(key=KEYS, size=SIZES, ttl=TTLS, plain=st.booleans())
    def store(self, key, size, ttl, plain):
        self.serial += 1
        value = (self.serial, size)
        if self.own is not None and ENTRY + size > self.own:
            before = self.live()
            with pytest.raises(ValueTooLargeError, match="memory_limit"):
                self.d[key] = value
            assert dict(self.d.items()) == before
            self.apply_evictions()
            return
        if plain:
            ttl = None
            self.d[key] = value
        else:
            self.d.set(key, value, ttl)
        if self.too_large(value):
            self.not_kept(key, value)
        else:
            self.stored(key, value, ttl)

    @rule(key=KEYS, way=st.sampled_from(["get", "item", "in", "setdefault", "get_or_set"]))
    def look(self, key, way):
        there = self.live().get(key)
        self.serial += 1
        value = (self.serial, 0)
        if way == "get":
            assert self.d.get(key) is there
        elif way == "item":
            if there is None:
                with pytest.raises(KeyError):
                    self.d[key]
            else:
                assert self.d[key] is there
        elif way == "in":
            assert (key in self.d) == (there is not None)
        elif way == "setdefault":
            assert self.d.setdefault(key, value) is (there or value)
        else:
            assert self.d.get_or_set(key, lambda: value, 2.5) is (there or value)
        if there is None and way in ("setdefault", "get_or_set"):
            if self.too_large(value):
                self.not_kept(key, value)
                return
            self.stored(key, value, None if way == "setdefault" else 2.5)
            return
        if there is not None and way != "in":
            self.model[key] = (*self.model[key][:2], self.clock.now)
        self.apply_evictions()

    @rule(key=KEYS, way=st.sampled_from(["del", "pop"]))
    def delete(self, key, way):
        there = self.live().get(key)
        if way == "pop":
            assert self.d.pop(key, None) is there
        elif there is None:
            with pytest.raises(KeyError):
                del self.d[key]
        else:
            del self.d[key]
        self.apply_evictions()
        if there is not None:
            del self.model[key]

    @rule(keys=st.lists(KEYS, max_size=5))
    def get_many(self, keys):
        live = self.live()
        found = self.d.get_many(keys)
        assert found == {key: live[key] for key in keys if key in live}
        for key in found:
            self.model[key] = (*self.model[key][:2], self.clock.now)
        self.apply_evictions()

    @rule(keys=st.lists(KEYS, max_size=5))
    def delete_many(self, keys):
        gone = set(keys) & self.live().keys()
        assert self.d.delete_many(keys) == len(gone)
        self.apply_evictions()
        for key in gone:
            del self.model[key]

    @precondition(lambda self: self.max_size is None and self.limit is None)
    @rule(keys=st.lists(KEYS, max_size=20), ttl=TTLS)
    def set_many(self, keys, ttl):
        entries = [(key, (self.serial + n, n)) for n, key in enumerate(keys, 1)]
        self.serial += len(keys)
        self.d.set_many(entries, ttl)
        for key, value in entries:
            self.apply_evictions()
            self.model[key] = (value, self.deadline(ttl), self.clock.now)

    @rule(key=KEYS, ttl=TTLS)
    def touch(self, key, ttl):
        there = key in self.live()
        assert self.d.touch(key, ttl) == there
        if there:
            self.model[key] = (self.model[key][0], self.deadline(ttl), self.clock.now)
        self.apply_evictions()

    @rule(key=KEYS)
    def expires_at(self, key):
        if key in self.live():
            assert self.d.expires_at(key) == self.due(key)
        else:
            with pytest.raises(KeyError):
                self.d.expires_at(key)

    @rule(seconds=STEPS)
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(limit=st.one_of(st.none(), st.integers(1, 3)))
    def expire(self, limit):
        waiting = len(self.model) - len(self.live())
        assert self.d.expire(limit) == (waiting if limit is None else min(limit, waiting))
        self.apply_evictions()

    @rule()
    def popitem(self):
        live = self.live()
        if live:
            key, value = self.d.popitem()
            self.apply_evictions()
            assert self.model.pop(key)[0] is value is live[key]
        else:
            with pytest.raises(KeyError):
                self.d.popitem()
            self.apply_evictions()

    @rule(wanted=st.integers(0, 400))
    def trim(self, wanted):
        before = self.weight()
        freed = self.d.trim(wanted)
        gone = [e for e in self.evicted if e[2] not in ("expired", "idle")]
        expired = len(self.evicted) - len(gone)
        self.apply_evictions(trimmed=True)
        assert freed >= min(wanted, before)
        assert before - self.weight() == sum(ENTRY + e[1][1] for e in gone)
        assert freed >= expired * ENTRY

    @rule(max_size=st.one_of(st.none(), st.integers(1, 8)), limit=st.one_of(st.none(), st.integers(120, 500)))
    def resize(self, max_size, limit):
        self.d.resize(max_size=max_size, memory_limit=limit)
        self.max_size, self.own = max_size or 10**9, limit or 10**9
        self.apply_evictions()
        self.max_size, self.own = max_size, limit

    @rule(cap=st.one_of(st.none(), st.integers(0, 400)))
    def set_cap(self, cap):
        before = self.weight()
        self.d.cap(cap)
        self.cap = cap
        over = self.limit is not None and before > self.limit
        assert any(reason == "memory" for _, _, reason in self.evicted) == over
        self.apply_evictions()
        if over:
            assert self.weight() <= self.limit - self.limit // 5

    @rule()
    def clear(self):
        self.d.clear()
        self.apply_evictions()
        self.model.clear()

    @rule()
    def replace_by_copy(self):
        twin = self.d.copy()
        assert (twin.memory_limit, twin.memory_cap) == (self.own, None)
        assert dict(twin.items()) == self.live()
        for key in twin:
            assert twin.expires_at(key) >= self.d.expires_at(key)
        self.apply_evictions()

    @precondition(lambda self: hasattr(self, "d"))
    @invariant()
    def agrees(self):
        live = self.live()
        assert (self.d.memory_limit, self.d.memory_cap) == (self.own, self.cap)
        if self.serial % 3 == 0:
            assert self.d.stats["over_cap"] == self.over_cap
            self.apply_evictions()
            # Not always: reading frees what is due, and the states in between need testing too.
            assert len(self.d) == len(live)
            assert dict(self.d.items()) == live
            assert self.d.nbytes == sum(ENTRY + v[1] for v in live.values())
            self.apply_evictions()
            assert self.model.keys() == live.keys()
        if self.max_size:
            assert len(live) <= self.max_size
        if self.limit is not None:
            assert self.weight() <= self.limit


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase


# ---- promises, one by one


def test_is_a_mutable_mapping():
    d = TTLDict[str, int](5)
    assert isinstance(d, MutableMapping)
    assert isinstance(d, Mapping)
    d.update({"a": 1}, b=2)
    assert d == {"a": 1, "b": 2}
    assert d == {"a": 1, "b": 2}
    assert d != {"a": 1}
    assert d == d.copy()
    assert sorted(d.keys()) == ["a", "b"]
    assert sorted(d.values()) == [1, 2]
    assert ("a", 1) in d.items()
    assert ("a", 2) not in d.items()
    assert 2 in d.values()
    assert d.keys() & {"a", "z"} == {"a"}
    assert repr(d) == "TTLDict({'a': 1, 'b': 2}, max_size=5)"
    with pytest.raises(TypeError):
        hash(d)


def test_match_takes_a_ttldict_for_a_mapping():
    class Derived(TTLDict):
        pass

    for cls in (TTLDict, Derived):
        d = cls()
        d.update(a=1, b=2)
        match d:
            case {"a": x, **rest}:
                assert (x, rest) == (1, {"b": 2})
            case _:
                raise AssertionError("no mapping")


def test_signatures_can_be_inspected():
    for cls in (TTLDict, ResponseBuffer):
        parameters = inspect.signature(cls).parameters
        assert {name: p.default for name, p in parameters.items()} == {
            TTLDict: {
                "max_size": None,
                "ttl": None,
                "memory_limit": None,
                "sizeof": None,
                "policy": "s3fifo",
                "idle": None,
                "timer": None,
                "on_evict": None,
                "on_remove": None,
                "sweep": True,
            },
            ResponseBuffer: {"capacity": 1000, "max_batch": 100, "flush_threshold": 0.8, "on_flush": None},
        }[cls]
        assert not cls.__doc__.startswith(cls.__name__)


def test_getsizeof_is_the_dicts_own_memory():
    d = TTLDict(ttl=60.0, sweep=False)
    empty = sys.getsizeof(d)
    pairs = [(n, bytes(100)) for n in range(10_000)]
    tracemalloc.start()
    try:
        d.update(pairs)
        allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert sys.getsizeof(d) - empty == pytest.approx(allocated, rel=0.05)
    d.clear()
    assert sys.getsizeof(d) == empty

    class Derived(TTLDict):
        pass

    assert sys.getsizeof(Derived()) > sys.getsizeof(TTLDict())


def test_report_spelling():
    d = create_memory_aware_ttl_dict(max_size=500, ttl=14_400.0, memory_limit_mb=0.5)
    assert (d.max_size, d.ttl, d.memory_limit) == (500, 14_400.0, 524_288)
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(ArgumentValueError, match="memory_limit_mb"):
            create_memory_aware_ttl_dict(1, 1, bad)
    with pytest.raises(ArgumentTypeError, match="memory_limit_mb"):
        create_memory_aware_ttl_dict(1, 1, "5")


@pytest.mark.parametrize(
    ("name", "bad", "error"),
    [
        ("max_size", 0, ArgumentValueError),
        ("max_size", -1, ArgumentValueError),
        ("max_size", 1.5, ArgumentTypeError),
        ("max_size", True, ArgumentTypeError),
        ("max_size", "9", ArgumentTypeError),
        ("memory_limit", 0, ArgumentValueError),
        ("memory_limit", -(2**70), ArgumentValueError),
        ("memory_limit", math.nan, ArgumentTypeError),
        ("ttl", 0, ArgumentValueError),
        ("ttl", -1.0, ArgumentValueError),
        ("ttl", math.nan, ArgumentValueError),
        ("ttl", "1", ArgumentTypeError),
        ("ttl", True, ArgumentTypeError),
        ("ttl", -(10**400), ArgumentValueError),
        ("idle", 0, ArgumentValueError),
        ("idle", math.nan, ArgumentValueError),
        ("idle", [], ArgumentTypeError),
        ("policy", "mru", ArgumentValueError),
        ("policy", 3, ArgumentTypeError),
        ("policy", None, ArgumentTypeError),
        ("sizeof", 3, ArgumentTypeError),
        ("timer", 3, ArgumentTypeError),
        ("on_evict", 3, ArgumentTypeError),
    ],
)
def test_bad_arguments_are_named(name, bad, error):
    with pytest.raises(error, match=f"^{name} must be .* not {type(bad).__name__ and ''}"):
        TTLDict(**{name: bad})


def test_bad_arguments_change_nothing():
    d = TTLDict(4, 60)
    d["a"] = 1
    before = d.expires_at("a")
    for call in (
        lambda: d.set("a", 2, ttl=0),
        lambda: d.set("a", 2, ttl=math.nan),
        lambda: d.set("a", 2, ttl="soon"),
        lambda: d.touch("a", -1),
        lambda: d.get_or_set("b", 3),
        lambda: d.expire(0),
        lambda: d.trim(-1),
        lambda: d.trim(1.5),
        lambda: d.resize(max_size=0),
        lambda: d.resize(memory_limit=1.5),
        lambda: d.resize(max_size=2, memory_limit=-1),
        lambda: d.set([], 1),
        lambda: d.__init__(5),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    assert (dict(d.items()), d.expires_at("a"), d.max_size, d.memory_limit) == ({"a": 1}, before, 4, None)


@pytest.mark.parametrize("limit", [1e300, 2.0**43, 10**400])
def test_a_limit_in_mebibytes_is_not_clamped(limit):
    with pytest.raises(ArgumentValueError, match=r"^memory_limit_mb must be"):
        create_memory_aware_ttl_dict(4, 60, limit)


def test_limits_past_32_bits_work():
    d = TTLDict(2**40, memory_limit=2**50, sizeof=lambda k, v: v)
    assert (d.max_size, d.memory_limit) == (2**40, 2**50)
    for n in range(5):
        d[n] = 2**33 + n
    assert d.nbytes == 5 * (2**33 + ENTRY) + 10
    d[2] = 1
    assert d.nbytes == 4 * (2**33 + ENTRY) + 8 + 1 + ENTRY
    d["small"] = 3
    del d[0]
    assert d.nbytes == 3 * (2**33 + ENTRY) + 8 + 1 + 3 + 2 * ENTRY
    with pytest.raises(ValueTooLargeError, match=f"{2**50} bytes"):
        d["big"] = 2**50
    with pytest.raises(ArgumentValueError, match="max_size"):
        TTLDict(2**70)
    with pytest.raises(ArgumentValueError, match="sizeof"):
        d["x"] = 2**63


def test_expiry_is_exact_and_shown_nowhere():
    clock, gone = Clock(100.0), []
    d = TTLDict(ttl=1.0, timer=clock, on_evict=lambda *entry: gone.append(entry))
    d["a"] = 1
    d.set("b", 2, ttl=math.inf)
    assert d.expires_at("a") == 101.0
    assert d.expires_at("b") == math.inf
    clock.now = math.nextafter(101.0, 0)
    assert d["a"] == 1
    assert len(d) == 2
    clock.now = 101.0
    assert "a" not in d
    assert d.get("a") is None
    assert list(d) == ["b"]
    assert list(d.values()) == [2]
    assert list(d.items()) == [("b", 2)]
    assert len(d) == 1
    assert d == {"b": 2}
    assert gone == [("a", 1, "expired")]
    assert d.stats["expired"] == 1


@pytest.mark.parametrize("start", [0.0, -7.3, 1.7e9])
@pytest.mark.parametrize("limit", ["ttl", "idle"])
def test_no_operation_sees_an_entry_that_has_just_expired(start, limit):
    """Each operation is the first after the deadline, which lies in the middle of a tick of the heap."""
    operations = {
        "get": (lambda d: d.get("a"), None),
        "subscript": (lambda d: d["a"], KeyError),
        "in": (lambda d: "a" in d, False),
        "pop": (lambda d: d.pop("a", None), None),
        "delete": (lambda d: d.__delitem__("a"), KeyError),
        "popitem": (lambda d: d.popitem(), KeyError),
        "setdefault": (lambda d: d.setdefault("a", 2), 2),
        "get_or_set": (lambda d: d.get_or_set("a", lambda: 2), 2),
        "touch": (lambda d: d.touch("a"), False),
        "expires_at": (lambda d: d.expires_at("a"), KeyError),
        "recount": (lambda d: d.recount("a"), KeyError),
        "len": (len, 0),
        "bool": (bool, False),
        "nbytes": (lambda d: d.nbytes, 0),
        "entries": (lambda d: d.stats["entries"], 0),
        "iter": (list, []),
        "values": (lambda d: list(d.values()), []),
        "items": (lambda d: list(d.items()), []),
        "==": (lambda d: d == {}, True),
        "copy": (lambda d: len(d.copy()), 0),
        "pickle": (lambda d: d.__reduce_ex__(4)[2][1], []),
        "repr": (lambda d: "1" in repr(d).split("}")[0], False),
        "expire": (lambda d: d.expire(), 1),
        "expire one": (lambda d: d.expire(1), 1),
    }
    for name, (operation, expected) in operations.items():
        clock = Clock(start)
        d = TTLDict(timer=clock, **{limit: 0.7})
        d["a"] = 1
        clock.now = math.nextafter(start + 0.7, -math.inf)
        iterator = iter(d)
        clock.now = start + 0.7
        try:
            assert operation(d) == expected, name
        except KeyError:
            assert expected is KeyError, name
        if name not in ("setdefault", "get_or_set"):
            assert list(iterator) == [], name


def test_storing_over_an_expired_entry_is_an_insertion():
    clock, gone = Clock(), []
    d = TTLDict(ttl=1.0, timer=clock, on_evict=lambda *entry: gone.append(entry))
    d["a"] = 1
    clock.now = 1.0
    d["a"] = 2
    assert gone == [("a", 1, "expired")]
    assert d["a"] == 2


def test_idle_entries_go_and_used_ones_stay():
    clock, gone = Clock(), []
    d = TTLDict(idle=1.0, ttl=10.0, timer=clock, on_evict=lambda *entry: gone.append(entry))
    d["used"], d["left"] = 1, 2
    for _ in range(20):
        clock.now += 0.4
        assert d["used"] == 1
    assert gone == [("left", 2, "idle")]
    clock.now = 9.9
    clock.now = 10.0
    assert "used" not in d
    assert len(d) == 0
    assert gone[1][0] == "used"


def test_lookups_free_a_fixed_number_of_due_entries_each():
    clock = Clock()
    gone = []
    d = TTLDict(ttl=1.0, timer=clock, on_evict=lambda *entry: gone.append(entry))
    for n in range(1000):
        d[n] = n
    d.set("stays", 1, ttl=100)
    clock.now = 2.0
    for operate in (
        lambda: d.get("stays"),
        lambda: d.get("absent"),
        lambda: "stays" in d,
        lambda: d.__setitem__("new", 1),
        lambda: d.pop("new"),
        lambda: d.touch("stays", 100),
    ):
        before = len(gone)
        operate()
        assert 0 < len(gone) - before <= 8
    assert d.expire(limit=10) == 10
    assert len(d) == 1
    assert len(gone) == 1000


def test_a_backlog_shrinks_even_when_every_operation_inserts():
    clock = Clock()
    d = TTLDict(ttl=1.0, timer=clock)
    for n in range(1000):
        d[n] = n
    clock.now = 2.0
    for n in range(1000, 1600):
        d[n] = n
    assert d.stats["entries"] == 600


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200, 5000])
@pytest.mark.parametrize("spread", [0.0, 0.0001, 1.0])
def test_len_frees_all_that_is_due(count, spread):
    clock = Clock(1.7e9)
    d = TTLDict(timer=clock)
    order = list(range(count))
    random.Random(count).shuffle(order)
    for n in order:
        d.set(n, n, ttl=1.0 + n * spread)
    due = {n: d.expires_at(n) for n in order}
    for now in sorted(random.Random(1).sample(sorted(due.values()), min(count, 20))):
        clock.now = now
        expected = {n for n, at in due.items() if at > now}
        assert len(d) == len(expected)
        assert set(d) == expected


def test_refreshed_entries_outlive_their_first_deadline():
    clock = Clock()
    d = TTLDict(ttl=10.0, timer=clock)
    for n in range(500):
        d[n] = n
    for step in range(1, 10):
        clock.now = step * 5.0
        for n in range(0, 500, 2):
            d[n] = n
    assert set(d) == set(range(0, 500, 2))
    for n in range(0, 500, 4):
        d.touch(n, 0.5)
    clock.now += 0.5
    assert set(d) == set(range(2, 500, 4))


def test_a_clock_that_goes_back_hides_nothing_that_is_due():
    for idle in (None, 10.0):
        clock = Clock(1e9)
        d = TTLDict(ttl=10.0, idle=idle, timer=clock)
        d["a"] = 1
        clock.now = 0.0
        d["b"] = 2
        assert d["b"] == 2
        clock.now = 10.0
        assert (len(d), list(d)) == (1, ["a"])
        assert d.stats["expired"] == 1
    clock = Clock(100.0)
    d = TTLDict(idle=10.0, timer=clock)
    d["a"] = 1
    clock.now = 95.0
    assert d["a"] == 1
    clock.now = 107.0
    assert (len(d), list(d)) == (1, ["a"])
    clock.now = 110.0
    assert (len(d), list(d)) == (0, [])


def test_comparisons_may_store_timed_entries_below_zero():
    """A lookup that needs no time when it begins must not take what is stored during it for expired."""
    for operation in (
        lambda d, k: d.get(k),
        lambda d, k: d.setdefault(k, 3),
        lambda d, k: d.expires_at(k) and 2,
    ):
        d = TTLDict(timer=Clock(-5.0))
        a, b = same_hash("a", "b")
        d[a] = 1
        a.on_eq = lambda d=d, a=a, b=b: (setattr(a, "on_eq", None), d.set(b, 2, ttl=1.0))
        assert operation(d, Hostile("b")) == 2
        assert d.stats["expired"] == 0


@pytest.mark.parametrize("scale", [1.0, 1e18])
def test_expire_with_a_limit_comes_to_an_end(scale):
    """Also where the timer counts nanoseconds, too coarse as a float for the ticks of the heap."""
    clock = Clock(1.7 * scale)
    d = TTLDict(timer=clock)
    for n in range(300):
        d.set(n, n, ttl=1e3)
        d.touch(n, 2e3 + n)
    clock.now += 1e3
    assert d.expire(1) == 0
    for n in range(300):
        d.set(n, n, ttl=math.ulp(clock.now))
    clock.now += math.ulp(clock.now)
    assert [d.expire(100) for _ in range(4)] == [100, 100, 100, 0]


def test_each_operation_reads_the_clock_once_at_most():
    reads = 0

    def timer():
        nonlocal reads
        reads += 1
        return 1.0

    d = TTLDict(9, ttl=10, idle=5, timer=timer, sizeof=lambda k, v: 1)
    d["a"] = 1
    iterator = iter(d)
    for operation in (
        lambda: next(iterator),
        lambda: d.get("a"),
        lambda: d["a"],
        lambda: "a" in d,
        lambda: d.set("a", 1, ttl=3),
        lambda: d.touch("a"),
        lambda: d.expires_at("a"),
        lambda: d.recount("a"),
        lambda: d.setdefault("a", 1),
        lambda: d.setdefault("b", 1),
        lambda: d.get_or_set("a", int),
        lambda: d.pop("b"),
        lambda: len(d),
        lambda: d.stats,
        lambda: d.nbytes,
        lambda: d.expire(),
        lambda: d.expire(1),
        lambda: d.trim(0),
        lambda: d.resize(max_size=7),
        lambda: iter(d),
        lambda: d.popitem(),
        lambda: d.clear(),
    ):
        reads = 0
        operation()
        assert reads <= 1
    untimed = TTLDict(9, timer=timer)
    reads = 0
    untimed["a"] = 1
    untimed.update(b=untimed.get("a"))
    assert (untimed.pop("a"), len(untimed), reads) == (1, 1, 0)


def test_years_pass():
    clock = Clock()
    d = TTLDict(timer=clock)
    year = 365 * 86400.0
    for n in range(1, 12):
        d.set(n, n, ttl=n * year)
    for n in range(1, 12):
        clock.now = n * year - 1
        assert n in d
        assert len(d) == 12 - n
        clock.now = n * year
        assert n not in d
    assert len(d) == 0


def test_a_timer_may_go_back_and_must_return_seconds():
    clock = Clock(100.0)
    d = TTLDict(ttl=10, timer=clock)
    d["a"] = 1
    clock.now = 0.0
    d["b"] = 2
    assert dict(d) == {"a": 1, "b": 2}
    clock.now = 10.0
    assert dict(d) == {"a": 1}
    for bad, error in (
        (None, ArgumentTypeError),
        ("1", ArgumentTypeError),
        (math.nan, ArgumentValueError),
        (10**400, ArgumentValueError),
    ):
        clock.now = bad
        with pytest.raises(error, match=r"timer\(\)"):
            d["c"] = 3
        with pytest.raises(error, match=r"timer\(\)"):
            len(d)
    clock.now = 11.0
    assert dict(d) == {"a": 1}


# ---- limits


@pytest.mark.parametrize("policy", POLICIES)
def test_full_dict_evicts_one_at_a_time_due_entries_first(policy):
    clock, gone = Clock(), []
    d = TTLDict(3, timer=clock, policy=policy, on_evict=lambda k, v, why: gone.append((k, why)))
    d.set("a", 1, ttl=9)
    d.set("b", 2, ttl=1)
    d.set("c", 3, ttl=9)
    clock.now = 1.0
    d["d"] = 4
    assert gone == [("b", "expired")]
    d["e"] = 5
    assert len(gone) == 2
    assert gone[1][1] == "full"
    assert len(d) == 3
    assert "e" in d


def test_fifo_and_lru_order():
    for policy, expected in (("fifo", ["a", "b"]), ("lru", ["b", "c"])):
        gone = []
        d = TTLDict(3, policy=policy, on_evict=lambda k, v, why, gone=gone: gone.append(k))
        d.update(a=1, b=2, c=3)
        d["a"]
        d["d"] = 4
        d["e"] = 5
        assert gone == expected


def test_sieve_and_s3fifo_keep_what_is_used_through_a_scan():
    for policy in ("sieve", "s3fifo"):
        d = TTLDict(100, policy=policy)
        for _ in range(3):
            for hot in range(20):
                d.setdefault(("hot", hot), 1)
        for n in range(2000):
            d[n] = n
            if n % 50 == 0:
                for hot in range(20):
                    d.get(("hot", hot))
        assert sum(("hot", hot) in d for hot in range(20)) >= 18, policy


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_limit(policy):
    gone = []
    d = TTLDict(
        memory_limit=1000, sizeof=lambda k, v: v - ENTRY, policy=policy, on_evict=lambda *e: gone.append(e)
    )
    for n in range(10):
        d[n] = 100
    assert (d.nbytes, gone) == (1000, [])
    d["x"] = 100
    assert d.nbytes == 800
    assert {why for _, _, why in gone} == {"memory"}
    assert "x" in d
    with pytest.raises(ValueTooLargeError):
        d["y"] = 1001
    with pytest.raises(ValueTooLargeError):
        d["x"] = 1001
    assert (d.nbytes, d["x"]) == (800, 100)
    d["y"] = 1000
    assert dict(d) == {"y": 1000}
    d["z"] = 850
    assert dict(d) == {"z": 850}
    d.clear()
    assert d.nbytes == 0
    # An entry that grows in place keeps its own place.
    d["a"], d["b"] = 400, 400
    d["a"] = 700
    assert dict(d) == {"a": 700}


def test_due_entries_make_room_before_any_other_is_evicted():
    clock, gone = Clock(), []
    d = TTLDict(
        memory_limit=1000,
        sizeof=lambda k, v: 100 - ENTRY,
        timer=clock,
        on_evict=lambda k, v, why: gone.append(why),
    )
    for n in range(10):
        d.set(n, n, ttl=1.0 if n == 5 else None)
    clock.now = 1.0
    d["x"] = 1
    assert (gone, d.nbytes) == (["expired"], 1000)
    d["y"] = 1
    assert (gone, d.nbytes) == (["expired"] + ["memory"] * 3, 800)


@pytest.mark.parametrize("policy", ["sieve", "s3fifo"])
def test_the_policy_goes_by_what_lives_not_by_a_limit_out_of_reach(policy):
    d = TTLDict(10**6, memory_limit=100_000, policy=policy)
    for _ in range(5):
        for hot in range(50):
            d.setdefault(("hot", hot), 1)
    for n in range(5000):
        d[n] = n
        if n % 20 == 0:
            for hot in range(50):
                d.get(("hot", hot))
    assert sum(("hot", hot) in d for hot in range(50)) >= 45


def test_setdefault_measures_only_what_it_stores():
    d = TTLDict(memory_limit=1000, sizeof=lambda k, v: v)
    assert d.setdefault("a", 1) == 1
    assert d.setdefault("a", 5000) == 1
    with pytest.raises(ValueTooLargeError):
        d.setdefault("b", 5000)
    assert (d.stats["hits"], d.stats["misses"]) == (1, 2)


def test_default_account_and_recount():
    d = TTLDict(memory_limit=1_000_000)
    assert d.nbytes == 0
    value = {"numbers": [1.5] * 10}
    d["a"] = value
    first = d.nbytes
    assert first > ENTRY + sys.getsizeof(value)
    value["text"] = "x" * 5000
    assert d.nbytes == first
    assert d.recount("a") == d.nbytes >= first + 5000
    value["more"] = "y" * 2_000_000
    before = d.nbytes
    with pytest.raises(ValueTooLargeError):
        d.recount("a")
    assert d.nbytes == before
    with pytest.raises(KeyError):
        d.recount("b")
    del d["a"]
    assert d.nbytes == 0


def test_recount_over_the_limit_evicts_others():
    sizes = {}
    d = TTLDict(memory_limit=1000, sizeof=lambda k, v: sizes.get(k, 100) - ENTRY)
    for n in range(10):
        d[n] = n
    sizes[3] = 500
    assert d.recount(3) == 500
    assert 3 in d
    assert d.nbytes == 800


@pytest.mark.parametrize("bad", [-1, 1.5, None, "3", True, 2**62, 10**400])
def test_bad_sizeof_results(bad):
    d = TTLDict(sizeof=lambda k, v: bad if v == "bad" else 10)
    d["a"] = 1
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match="sizeof"):
        d["a"] = "bad"
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match="sizeof"):
        d["b"] = "bad"
    assert (dict(d), d.nbytes) == ({"a": 1}, ENTRY + 10)


def test_get_or_set_returns_a_value_over_the_limit_uncached():
    d = TTLDict(memory_limit=10_000)
    d["kept"] = 1
    calls = []

    def load():
        calls.append(1)
        return bytes(20_000)

    for _ in range(2):
        assert d.get_or_set("big", load) == bytes(20_000)
    assert len(calls) == 2
    assert dict(d.items()) == {"kept": 1}
    assert d.stats["uncacheable"] == 2
    assert d.stats["sets"] == 1
    # What the caller stores itself is refused, and so is an error of the factory's own.
    for store in (lambda: d.__setitem__("big", load()), lambda: d.setdefault("big", load())):
        with pytest.raises(ValueTooLargeError):
            store()
    with pytest.raises(ValueTooLargeError):
        d.get_or_set("nested", lambda: d.set("big", load()))
    assert d.stats["uncacheable"] == 2
    value = object()
    before = sys.getrefcount(value)
    small = TTLDict(memory_limit=1)
    for _ in range(100):
        assert small.get_or_set("k", lambda: value) is value
    assert sys.getrefcount(value) == before


@pytest.mark.parametrize(
    "builtin",
    [
        sys.getsizeof,
        operator.length_hint,
        next,
        functools.partial(sys.getsizeof),
        staticmethod(sys.getsizeof),
    ],
)
def test_sizeof_refuses_builtins_that_take_a_default(builtin):
    with pytest.raises(ArgumentValueError, match=r"^sizeof must be a function of \(key, value\)"):
        TTLDict(sizeof=builtin)
    d = TTLDict(memory_limit=10_000, sizeof=lambda key, value: sys.getsizeof(value))
    for n in range(100):
        d[n] = bytes(1000)
    assert 5 <= len(d) <= 10


def test_trim_and_resize():
    gone = []
    d = TTLDict(sizeof=lambda k, v: 100 - ENTRY, on_evict=lambda k, v, why: gone.append(why))
    for n in range(10):
        d[n] = n
    assert d.trim(0) == 0
    assert d.trim(250) == 300
    assert len(d) == 7
    d.resize(max_size=5)
    assert len(d) == 5
    d.resize(memory_limit=300)
    assert d.nbytes == 200
    assert (d.max_size, d.memory_limit) == (5, 300)
    assert gone == ["memory"] * 3 + ["full"] * 2 + ["memory"] * 3
    assert d.trim(sys.maxsize) == 200
    assert (len(d), d.nbytes) == (0, 0)


def test_a_cap_is_no_limit_of_the_dicts_own():
    gone = []
    d = TTLDict(
        memory_limit=2000, sizeof=lambda k, v: v - ENTRY, on_evict=lambda k, v, why: gone.append((k, v, why))
    )
    for n in range(20):
        d[n] = 100
    d.cap(1000)
    assert (d.nbytes, d.memory_limit, d.memory_cap) == (800, 2000, 1000)
    assert {why for _, _, why in gone} == {"memory"}
    assert (d.stats["memory_limit"], d.stats["memory_cap"]) == (2000, 1000)
    # Up to the cap an insertion evicts others, down to 80 % of it.
    d["x"] = d["y"] = 100
    d["z"] = 100
    assert (d.nbytes, "z" in d) == (800, True)
    d["z"] = 1000
    assert dict(d) == {"z": 1000}
    # The user's own limit may change, and the lower one holds.
    d.resize(memory_limit=3000)
    assert (d.nbytes, d.memory_limit, d.memory_cap) == (1000, 3000, 1000)
    d.resize(max_size=5)
    assert (d.memory_limit, d.memory_cap) == (3000, 1000)
    d.resize(memory_limit=500)
    assert (dict(d), d.memory_limit, d.memory_cap) == ({}, 500, 1000)
    with pytest.raises(ValueTooLargeError, match="at most 500 bytes"):
        d["w"] = 600
    d.resize(memory_limit=None)
    d["w"] = 900
    d.cap(None)
    assert (dict(d), d.memory_limit, d.memory_cap) == ({"w": 900}, None, None)
    d["v"] = 10_000
    assert d.nbytes == 10_900
    d.cap(0)
    assert (dict(d), d.memory_cap) == ({}, 0)
    for bad in (-1, 1.5, "1", True, 2**70):
        with pytest.raises(
            (ArgumentTypeError, ArgumentValueError), match=r"^nbytes must be an integer from 0"
        ):
            d.cap(bad)
    assert d.memory_cap == 0


STORES = {
    "item": lambda d, value: d.__setitem__("k", value),
    "set": lambda d, value: d.set("k", value, ttl=5),
    "update": lambda d, value: d.update({"k": value}),
    "keyword": lambda d, value: d.update(k=value),
    "setdefault": lambda d, value: d.setdefault("k", value),
    "get_or_set": lambda d, value: d.get_or_set("k", lambda: value, ttl=5),
}


@pytest.mark.parametrize("way", STORES)
@pytest.mark.parametrize("present", [None, "live", "due"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_value_over_the_cap_is_evicted_at_once_without_an_error(way, present, policy):
    clock, gone = Clock(), []
    d = TTLDict(
        3,
        memory_limit=200_000,
        timer=clock,
        policy=policy,
        on_evict=lambda *entry: gone.append(entry),
    )
    d.cap(8_000)
    d["other"] = other = object()
    old, big = object(), bytes(12_000)
    if present:
        d.set("k", old, ttl=1.0)
        clock.now = 0.5 if present == "live" else 1.0
    refs = sys.getrefcount(big), sys.getrefcount(old), sys.getrefcount(None)
    nbytes = d.nbytes if present == "live" else TTLDict(timer=clock).nbytes
    before = d.stats
    result = STORES[way](d, big)
    if present == "live" and way in ("setdefault", "get_or_set"):
        assert result is old
        assert (gone, d.stats["over_cap"], d.nbytes) == ([], 0, nbytes)
        return
    assert result is (big if way in ("setdefault", "get_or_set") else None)
    expired = [("k", old, "expired")] if present == "due" else []
    assert sorted(gone, key=lambda entry: entry[2]) == [*expired, ("k", big, "memory")]
    # An old value would be stale.
    assert dict(d.items()) == {"other": other}
    stats = d.stats
    assert (stats["over_cap"], stats["memory"], stats["sets"]) == (1, 1, before["sets"] + 1)
    assert (stats["uncacheable"], stats["entries"]) == (0, 1)
    assert d.nbytes == d.recount("other")
    gone.clear()
    del result, expired
    clock.now = 3.0
    assert sys.getrefcount(big) == refs[0]
    # The dict's own reference is gone, if it had one.
    assert sys.getrefcount(old) == refs[1] - bool(present)
    # What its own settings refuse is refused as ever, and changes nothing.
    with pytest.raises(ValueTooLargeError, match=r"at most 200000 bytes \(memory_limit\)"):
        d["other"] = bytes(300_000)
    assert (d["other"], d.stats["over_cap"]) == (other, 1)
    assert d.get_or_set("huge", lambda: bytes(300_000)) == bytes(300_000)
    assert (d.stats["uncacheable"], d.stats["over_cap"], gone) == (1, 1, [])
    d.cap(None)
    assert STORES[way](d, big) is (big if way in ("setdefault", "get_or_set") else None)
    assert d["k"] is big


def test_recount_over_the_cap_evicts_the_entry():
    gone = []
    d = TTLDict(memory_limit=200_000, on_evict=lambda *entry: gone.append(entry))
    d.cap(8_000)
    d["a"], d["b"] = value, _ = [], "b"
    value.append(bytes(12_000))
    assert d.recount("a") > 12_000
    assert (dict(d.items()), gone) == ({"b": "b"}, [("a", value, "memory")])
    assert d.stats["over_cap"] == 1
    with pytest.raises(KeyError):
        d.recount("a")
    assert d.nbytes == d.recount("b")
    # Beyond its own limit it is an error that changes nothing, cap or not.
    d["a"] = value = []
    value.append(bytes(300_000))
    with pytest.raises(ValueTooLargeError):
        d.recount("a")
    assert (d["a"] is value, d.stats["over_cap"]) == (True, 1)


@pytest.mark.parametrize("make", [TTLDict, lambda **limits: Sub("me", **limits)])
def test_copies_and_pickles_have_the_dicts_own_limits(make):
    for own in (None, 10**6):
        d = make(memory_limit=own)
        d["a"] = [1]
        d.cap(5000)
        for twin in (d.copy(), copy.copy(d), copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
            assert (twin.memory_limit, twin.memory_cap, dict(twin.items())) == (own, None, {"a": [1]})
            assert ("memory_limit" in repr(twin)) == (own is not None)
            twin["b"] = bytes(12_000)
            assert "b" in twin
        assert repr(d) == repr(twin).replace(f", 'b': {bytes(12_000)!r}", "")


def test_a_cap_set_before_the_dict_is_initialised_holds():
    d = TTLDict.__new__(TTLDict)
    d.cap(500)
    d.__init__(memory_limit=10**6)
    assert (d.memory_limit, d.memory_cap) == (10**6, 500)
    d["a"] = bytes(1000)
    assert (len(d), d.stats["over_cap"]) == (0, 1)


def test_a_subclass_may_override_resize_and_cap():
    class Logging(TTLDict):
        def resize(self, *arguments, **limits):
            calls.append(limits)
            super().resize(*arguments, **limits)

        def cap(self, nbytes):
            calls.append(nbytes)
            super().cap(nbytes)

    calls = []
    d = Logging(memory_limit=10**6)
    d.resize(memory_limit=10**5)
    d.cap(5000)
    assert (d.memory_limit, d.memory_cap) == (10**5, 5000)
    assert calls == [{"memory_limit": 10**5}, 5000]


# ---- callbacks and other code that runs in the middle


@pytest.mark.parametrize("way", ["resize", "cap"])
def test_a_comparison_may_lower_the_limit_below_the_value_being_stored(way):
    d = TTLDict(memory_limit=2000, sizeof=lambda k, v: v - ENTRY)
    first, second = same_hash(1, 2)
    d[first] = 200
    second.on_eq = first.on_eq = lambda: d.cap(300) if way == "cap" else d.resize(memory_limit=300)
    with contextlib.nullcontext() if way == "cap" else pytest.raises(ValueTooLargeError):
        d[second] = 1000
    second.on_eq = first.on_eq = None
    assert d.nbytes == 200
    assert list(d) == [first]


def test_on_evict_may_use_the_dict_when_a_value_is_over_the_cap(monkeypatch):
    deep, reported = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: reported.append(found.exc_type))

    def on_evict(key, value, reason):
        deep.append(key)
        match key:
            case "clear":
                d.clear()
            case "lift":
                d.cap(None)
                d[key] = value
            case "smaller":
                d[key] = 1
            case "again":
                if len(deep) < 100:
                    d[key] = value
            case "init":
                d.__init__()

    d = TTLDict(memory_limit=10**6, on_evict=on_evict)
    for key in ("clear", "lift", "smaller", "init", "again"):
        d.pop("lift", None)
        d.cap(2000)
        big = bytes(12_000)
        before = sys.getrefcount(big)
        d[key] = big
        assert d.get(key) is {"lift": big, "smaller": 1}.get(key)
        assert sys.getrefcount(big) == before + (key == "lift")
    assert deep[:4] == ["clear", "lift", "smaller", "init"]
    assert (len(deep), d.stats["over_cap"]) == (100, 100)
    assert reported == [ArgumentValueError]
    # An iteration ends as with any insertion.
    iterator = iter(d)
    d["new"] = big
    with pytest.raises(RuntimeError, match="changed size"):
        next(iterator)


def test_what_on_evict_raises_goes_to_the_unraisable_hook():
    seen = []

    def refuse(key, value, reason):
        raise ZeroDivisionError(key)

    d = TTLDict(1, on_evict=refuse)
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: seen.append(args.exc_type)
    try:
        d["a"] = 1
        d["b"] = 2
    finally:
        sys.unraisablehook = hook
    assert seen == [ZeroDivisionError]
    assert dict(d) == {"b": 2}


def test_deleting_and_replacing_do_not_call_on_evict():
    gone = []
    d = TTLDict(9, on_evict=lambda *entry: gone.append(entry))
    d["a"] = 1
    d["a"] = 2
    del d["a"]
    d["b"] = 1
    d.pop("b")
    d["c"] = 1
    d.clear()
    d["d"] = 1
    d.popitem()
    assert gone == []


def test_callbacks_may_use_the_dict():
    d = TTLDict(
        2, on_evict=lambda k, v, why: d.set(("again", k), v) if isinstance(k, int) and k < 50 else None
    )
    for n in range(100):
        d[n] = n
    assert len(d) == 2
    clock = Clock()
    seen = []

    def on_evict(key, value, reason):
        seen.append((len(e), list(e), e.expire(), e.get(key)))
        e.clear()

    e = TTLDict(ttl=1, timer=clock, on_evict=on_evict)
    for n in range(200):
        e[n] = n
    clock.now = 1.0
    assert len(e) == 0
    assert len(seen) == 200
    assert all(entry == (0, [], 0, None) for entry in seen)


@pytest.mark.parametrize("way", ["callback", "finaliser"])
def test_eviction_callbacks_and_finalisers_do_not_nest(way):
    """Each entry's callback looks something up, which frees due entries, whose callbacks look something up, ..."""
    clock, depth, deepest, told = Clock(), 0, 0, 0

    def use():
        nonlocal depth, deepest, told
        depth, told = depth + 1, told + 1
        deepest = max(deepest, depth)
        d.get("a")
        d[("new", told)] = None
        d.pop(("new", told))
        assert "b" not in d
        depth -= 1

    d = TTLDict(ttl=1.0, timer=clock, on_evict=(lambda *entry: use()) if way == "callback" else None)
    for n in range(3000):
        d[n] = OnDel(use) if way == "finaliser" else n
    clock.now = 1.0
    before = told
    d.get("a")
    assert 0 < told - before <= 8
    while d.stats["entries"]:
        d.get("a")
    assert told == 3000
    assert deepest <= 2


def test_comparisons_may_change_the_dict():
    d = TTLDict()
    a, b = same_hash("a", "b")
    d[a] = 1

    def wreck():
        b.on_eq = None
        d.clear()
        for n in range(100):
            d[n] = n

    a.on_eq = lambda: (setattr(a, "on_eq", None), wreck())
    assert d.get(b) is None
    assert len(d) == 100
    for operation in (d.get, d.pop, d.touch, d.__contains__, d.expires_at, lambda k: d.set(k, 1), d.recount):
        d.clear()
        a, b = same_hash("a", "a")
        d[a] = 1
        done = []

        def evil(done=done, b=b):
            if not done:
                done.append(1)
                b.on_eq = None
                d.clear()
                for n in range(50):
                    d[n] = n

        b.on_eq = evil
        a.on_eq = evil
        with contextlib.suppress(KeyError, TypeError):
            operation(b)
        assert done
        assert set(range(50)) <= set(d)


def test_errors_from_hash_and_eq_pass_and_change_nothing():
    d = TTLDict()
    a, b = same_hash("a", "b")
    d[a] = 1

    def fail():
        raise ZeroDivisionError

    b.on_eq = fail
    a.on_eq = fail
    for operation in (
        d.get,
        d.pop,
        d.touch,
        d.__contains__,
        d.expires_at,
        lambda k: d.set(k, 1),
        d.__delitem__,
    ):
        with pytest.raises(ZeroDivisionError):
            operation(b)
    b.on_hash = fail
    for operation in (
        d.get,
        d.pop,
        d.touch,
        d.__contains__,
        d.expires_at,
        lambda k: d.set(k, 1),
        d.__delitem__,
    ):
        with pytest.raises(ZeroDivisionError):
            operation(b)
    a.on_eq = None
    assert list(d.items()) == [(a, 1)]
    with pytest.raises(TypeError):
        d[[]] = 1
    with pytest.raises(TypeError):
        d.get([])


def test_finalisers_may_use_the_dict():
    d = TTLDict(3)
    calls = []

    def again():
        calls.append(1)
        if len(calls) < 200:
            d[len(calls)] = OnDel(again)
            d.get(1)
            len(d)

    for n in range(20):
        d[n] = OnDel(again)
    for n in range(20):
        d[n] = OnDel(again)
        d.pop(n, None)
    d.clear()
    assert len(calls) >= 200
    d.clear()
    assert len(d) == 0


def test_equal_strings_of_other_types_and_numbers():
    class Text(str):
        pass

    d = TTLDict()
    d["a"] = 1
    assert d[Text("a")] == 1
    d[Text("a")] = 2
    assert d["a"] == 2
    assert len(d) == 1
    d[1] = "one"
    assert d[1.0] == d[True] == "one"
    d["\u00e9"] = d["\u20ac"] = d["\U0001f600"] = 3
    assert d["€é"[:1]] == 3
    assert "\u00e8" not in d


@pytest.mark.parametrize("pattern", [1, 2, 1 << 10, 1 << 20, 1 << 32, 1 << 48, 0x9E3779B1, (1 << 61) - 2])
def test_integer_patterns_do_not_pile_up(pattern):
    """Each key lies within a few places of its home: counted in comparisons, which only equal hashes get."""
    d = TTLDict()
    for n in range(3000):
        d[n * pattern] = n
    assert all(d[n * pattern] == n for n in range(3000))
    assert len(d) == 3000


# ---- iteration


def test_changing_the_dict_while_iterating_raises():
    for change in (
        lambda d: d.__setitem__("new", 1),
        lambda d: d.pop(3),
        lambda d: d.clear(),
        lambda d: d.popitem(),
        lambda d: d.setdefault("new", 1),
    ):
        for view in (lambda d: d, lambda d: d.values(), lambda d: d.items(), lambda d: d.keys()):
            d = TTLDict()
            d.update({n: n for n in range(10)})
            iterator = iter(view(d))
            next(iterator)
            change(d)
            with pytest.raises(RuntimeError, match="dictionary changed size during iteration"):
                list(iterator)


def test_eviction_and_expiry_do_not_end_an_iteration():
    sizes = {}
    for change in (
        lambda d: d.set(1, 800),
        lambda d: (sizes.update({1: 900}), d.recount(1)),
        lambda d: d.trim(1),
        lambda d: d.resize(max_size=2),
    ):
        sizes.clear()
        d = TTLDict(memory_limit=1000, sizeof=lambda k, v: sizes.get(k, v) - ENTRY)
        for n in range(5):
            d[n] = 200
        for view in (d, d.keys(), d.values(), d.items()):
            iterator = iter(view)
            seen = [next(iterator)]
            change(d)
            seen += list(iterator)
            # What was evicted meanwhile is skipped.
            assert 1 <= len(d) < 5
            assert set(view) <= set(seen)
            assert len(seen) <= len(d) + 1
        with pytest.raises(RuntimeError, match="dictionary changed size during iteration"):
            for key in d:
                del d[key]
    clock = Clock()
    for change in (lambda d: d.trim(1), lambda d: d.resize(max_size=5), lambda d: d.expire(1)):
        d = TTLDict(timer=clock)
        for n in range(5):
            d.set(n, n, ttl=1.0 if n == 4 else math.inf)
        iterator = iter(d)
        assert next(iterator) == 0
        clock.now += 1.0
        change(d)
        assert list(iterator) == [1, 2, 3]


def test_a_slow_loop_goes_on_while_a_governor_empties_the_dict():
    d = TTLDict()
    d.update((n, bytes(1000)) for n in range(1000))
    seen = 0
    for _, value in d.items():
        assert len(value) == 1000
        seen += 1
        # What a governor's thread does at any moment.
        d.trim(d.nbytes // 4 + 1)
    assert 1 < seen < 1000
    assert len(d) < 10
    iterator = iter(d)
    d.trim(d.nbytes)
    assert list(iterator) == []


def test_iterators_outlive_their_end():
    d = TTLDict()
    d["a"] = 1
    iterator = iter(d)
    assert list(iterator) == ["a"]
    d["b"] = 1
    assert list(iterator) == []
    assert list(type(iterator)()) == []


def test_comparing_and_showing_are_done_on_one_state():
    d = TTLDict()
    d[Hostile(1, on_hash=lambda: d.set(object(), 1))] = 1
    size = len(d)
    assert repr(d).count("Hostile") == 1
    assert d != {}
    assert len(d) > size


def test_replacing_while_iterating_is_allowed_and_expiry_is_no_change():
    clock = Clock()
    d = TTLDict(timer=clock)
    for n in range(100):
        d.set(n, n, ttl=1.0 if n % 2 else 5.0)
    seen = []
    for key in d:
        d[key] = -1 if key % 2 == 0 else d.pop("absent", 0)
        seen.append(key)
    assert seen == list(range(100))
    for n in range(100):
        d.set(n, n, ttl=1.0 if n % 2 else 5.0)
    seen = []
    for key in d:
        if key == 10:
            clock.now = 1.0
            len(d)
        seen.append(key)
    assert seen == [n for n in range(100) if n % 2 == 0 or n <= 10]
    iterator = iter(d)
    clock.now = 5.0
    assert list(iterator) == []
    assert list(iterator) == []


# ---- copies


def copies():
    return {
        "dict": dict,
        "unpacking": lambda d: {**d},
        "dict.update": lambda d: (copy := {}, copy.update(d))[0],
        "|=": lambda d: operator.ior({}, d),
        "keyword arguments": lambda d: (lambda **given: given)(**d),
        "OrderedDict": collections.OrderedDict,
        "Counter": collections.Counter,
        "TTLDict.update": lambda d: (copy := TTLDict(), copy.update(d))[0],
        "items": lambda d: dict(d.items()),
        "views": lambda d: dict(d.items()) if list(d.keys()) and list(d.values()) else {},
    }


@pytest.mark.parametrize("name", copies())
def test_a_copy_sees_each_key_with_its_value_or_not_at_all(name):
    content = {f"k{n}": n for n in range(50)}

    def ticking():
        ticking.now += ticking.step
        return ticking.now

    def interfering():
        # In the place of another thread, at each point where the copy could give way to one.
        if interfering.on:
            interfering.on = False
            d.pop(f"k{random.randrange(50)}", None)
            d[f"k{random.randrange(50)}"] = 1000
            interfering.on = True
        return 0.0

    for start in range(0, 60, 5):
        ticking.now = ticking.step = 0
        d = TTLDict(timer=ticking)
        for n in range(50):
            d.set(f"k{n}", n, ttl=n + 1)
        ticking.now, ticking.step = start, 1
        copied = copies()[name](d)
        assert copied.items() <= content.items()
        assert copied or start > 40
    interfering.on = False
    d = TTLDict(timer=interfering, idle=1.0)
    d.update(content)
    for _ in range(20):
        interfering.on = True
        copied = copies()[name](d)
        interfering.on = False
        assert copied
        assert all(value in (content[key], 1000) for key, value in copied.items())


def test_a_copy_leaves_nothing_behind():
    class Key(str):
        def __hash__(self):
            return hash_of(str(self))

    class Value:
        pass

    clock = Clock()
    d = TTLDict(ttl=5.0, timer=clock)
    hash_of = hash
    for n in range(20):
        d[Key(n)] = Value()
    refs = [weakref.ref(value) for value in d.values()]

    def fail():
        raise OverflowError

    def copy_in_part():
        nonlocal hash_of
        calls = iter(range(10))
        hash_of = lambda text: hash(text) if next(calls, None) is not None else fail()  # noqa: E731
        try:
            dict(d)
        finally:
            hash_of = hash

    with pytest.raises(OverflowError):
        copy_in_part()
    keys = list(d)
    clock.now = 5.0
    for key in keys:
        with pytest.raises(KeyError):
            d[key]
    d.expire()
    # The error may be kept by its traceback only; it is gone here.
    assert [ref for ref in refs if ref() is not None] == []

    # In one frame: neither a copy nor the views in parts give a value that has expired.
    d["a"] = d["b"] = 1
    for first in (dict, lambda d: list(d.keys()), lambda d: iter(d.keys())):
        d["a"] = d["b"] = 1
        first(d)
        clock.now += 5.0
        with pytest.raises(KeyError):
            d["a"]


def test_update_takes_what_a_plain_dict_takes():
    class Shouting(TTLDict):
        def __getitem__(self, key):
            value = super().__getitem__(key)
            source.pop("b", None)
            return value.upper()

    source = Shouting()
    source.update({"a": "x", "b": "y"}, c="z")
    d = TTLDict()
    d.update(source)
    assert dict(d) == {"a": "X", "c": "Z"}
    d.clear()
    d.update([("a", 1)], self=2, other=3)
    d.update(d)
    assert dict(d) == {"a": 1, "self": 2, "other": 3}
    d.update(TTLDict(), a=4)
    d.update()
    assert d["a"] == 4
    for bad in (1, [1], None):
        with pytest.raises(TypeError):
            d.update(bad)


def test_a_copy_within_a_copy():
    class Key(str):
        def __hash__(self):
            nonlocal busy
            if busy:
                busy = False
                inner.append(dict(d))
                clock.now = 5.0
                with pytest.raises(KeyError):
                    d[self]
            return hash(str(self))

    inner, busy = [], False
    clock = Clock()
    d = TTLDict(ttl=5.0, timer=clock)
    d["x"] = 0
    d[Key("once")] = 9
    d["last"] = 10
    busy = True
    assert dict(d) == {"x": 0, "once": 9, "last": 10}
    assert inner == [{"x": 0, "once": 9, "last": 10}]
    assert dict(d) == {}


def test_lists_of_views_are_taken_at_one_moment(hammer):
    d = TTLDict()
    d.update((n, n) for n in range(200))
    views = (d, d.keys(), d.values(), d.items())

    def body(index):
        if index:
            d[1000 + index] = index
            d.pop(1000 + index, None)
        else:
            for view in views:
                assert 200 <= len(list(view)) <= 203
            assert len(dict(d)) >= 200

    hammer(4, body, iterations=1000)


def test_copy_and_pickle():
    clock = Clock(50.0)
    d = TTLDict(7, 10.0, memory_limit=10**6, idle=8.0, policy="lru")
    d.update(a=[1], b=2)
    d.set("c", 3, ttl=math.inf)
    for twin in (d.copy(), copy.copy(d), pickle.loads(pickle.dumps(d)), copy.deepcopy(d)):
        assert twin == d
        assert type(twin) is TTLDict
        assert (twin.max_size, twin.ttl, twin.memory_limit, twin.idle, twin.policy) == (
            7,
            10.0,
            10**6,
            8.0,
            "lru",
        )
        assert abs(twin.expires_at("a") - d.expires_at("a")) < 1
    assert d.copy().nbytes == d.nbytes
    assert d.copy()["a"] is d["a"]
    assert copy.deepcopy(d)["a"] is not d["a"]
    timed = TTLDict(ttl=10.0, timer=clock)
    timed["a"] = 1
    clock.now = 55.0
    twin = timed.copy()
    assert twin.expires_at("a") == 60.0
    clock.now = 60.0
    assert len(twin) == 0


def test_a_copy_measures_nothing_anew_and_keeps_deadlines():
    measured = 0

    def sizeof(key, value):
        nonlocal measured
        measured += 1
        return len(value)

    d = TTLDict(3, 60.0, memory_limit=1000, sizeof=sizeof)
    value = [1]
    d["a"] = value
    d.set("b", [], ttl=math.inf)
    # It has grown beyond what the dict would take.
    value.extend(range(5000))
    measured = 0
    twin = d.copy()
    assert (twin, twin.nbytes, measured) == (d, d.nbytes, 0)
    assert twin.expires_at("a") == d.expires_at("a")
    assert twin.expires_at("b") == math.inf


def test_a_dict_in_use_takes_no_other_state():
    class Value:
        pass

    value = Value()
    ref = weakref.ref(value)
    for d in (TTLDict(), TTLDict.__new__(TTLDict)):
        d["a"] = value
        state = TTLDict(7).__reduce_ex__(4)[2]
        with pytest.raises(ArgumentValueError, match="initialised once"):
            d.__init__(7)
        with pytest.raises(ArgumentValueError, match="initialised once"):
            d.__setstate__(state)
        assert (d["a"], d.max_size) == (value, None)
        d.clear()
        with pytest.raises(ArgumentValueError, match="initialised once"):
            d.__init__(7)
    blank = TTLDict.__new__(TTLDict)
    with pytest.raises(ArgumentValueError, match="initialised once"):
        blank.__init__(timer=lambda d=blank, value=value: d.set("a", value) or 1.0)
    assert blank["a"] is value
    del value, d, blank
    gc.collect()
    assert ref() is None


def test_the_policy_may_be_a_string_that_lies():
    class Liar(str):
        __slots__ = ()

        def __str__(self):
            raise KeyError("its own complaint")

        def __hash__(self):
            return hash("sieve")

        def __eq__(self, other):
            return True

    assert TTLDict(policy=Liar("lru")).policy == "lru"
    d = TTLDict.__new__(TTLDict)
    with pytest.raises(ArgumentValueError, match="policy"):
        d.__init__(policy=Liar("newest"))
    d.__init__(policy="fifo")
    assert d.policy == "fifo"


def test_an_initialisation_that_fails_may_be_repeated():
    d = TTLDict.__new__(TTLDict)
    for bad in ({"max_size": 0}, {"ttl": -1}, {"policy": "x"}, {"timer": lambda: None}, {"idle": "x"}):
        with pytest.raises((TypeError, ValueError)):
            d.__init__(**{"max_size": 9, **bad})
        assert (d.max_size, d.ttl, d.policy) == (None, None, "s3fifo")
    d.__init__(5)
    assert d.max_size == 5


def test_a_pickled_dict_keeps_the_seconds_that_were_left():
    d = TTLDict()
    d.set("a", 1, ttl=100)
    left = run(
        """
        import pickle, sys, time
        d = pickle.loads(bytes.fromhex(sys.argv[1]))
        print(d.expires_at("a") - time.monotonic())
        """,
        arguments=[pickle.dumps(d).hex()],
    )
    assert 90 < float(left) <= 100.1


class Sub(TTLDict):
    def __init__(self, owner, **limits):
        super().__init__(**limits)
        self.owner = owner

    def shout(self):
        return f"{self.owner}!"


def test_subclass():
    d = Sub("me", max_size=3)
    d["a"] = 1
    twin = pickle.loads(pickle.dumps(d))
    assert (type(twin), twin.shout(), dict(twin), twin.max_size) == (Sub, "me!", {"a": 1}, 3)
    for twin in (copy.copy(d), d.copy(), copy.deepcopy(d)):
        assert (type(twin), twin.shout(), dict(twin)) == (Sub, "me!", {"a": 1})

    class Slotted(TTLDict):
        __slots__ = ("owner",)

    slotted = Slotted(3)
    slotted.owner = "me"
    assert copy.copy(slotted).owner == copy.deepcopy(slotted).owner == "me"

    class Overriding(TTLDict):
        max_size = property(lambda self: "many")

        def __len__(self):
            return 7

        def items(self):
            raise ZeroDivisionError

        def get(self, *arguments):
            raise ZeroDivisionError

    overriding = Overriding(3)
    overriding["a"] = 1
    assert repr(overriding) == "Overriding({'a': 1}, max_size=3)"
    assert overriding == {"a": 1}
    assert overriding.copy()["a"] == overriding.setdefault("a", 2) == overriding.pop("a") == 1

    class Bare(TTLDict):
        def __init__(self):
            pass

    bare = Bare()
    bare["a"] = 1
    assert (bare["a"], bare.max_size, bare.ttl) == (1, None, None)


def test_a_dict_that_contains_itself():
    d = TTLDict()
    d["self"] = d
    assert "TTLDict({...})" in repr(d)
    twin = copy.deepcopy(d)
    assert twin["self"] is twin
    twin = pickle.loads(pickle.dumps(d))
    assert twin["self"] is twin


# ---- memory


def test_cycles_are_collected():
    class Node:
        pass

    node = Node()
    node.d = TTLDict(on_evict=lambda *entry, node=node: None)
    node.d["node"] = node
    node.d[(node,)] = 1
    ref, dict_ref = weakref.ref(node), weakref.ref(node.d)
    del node
    gc.collect()
    assert ref() is None
    assert dict_ref() is None


def test_deep_nesting_is_freed_without_recursion():
    d = TTLDict(sizeof=lambda k, v: 1)
    for _ in range(100_000):
        outer = TTLDict(sizeof=lambda k, v: 1)
        outer["in"] = d
        d = outer
    del d, outer


def test_references_are_dropped():
    class Value:
        pass

    clock = Clock()
    d = TTLDict(4, 10.0, timer=clock)
    values = [Value() for _ in range(20)]
    refs = [weakref.ref(value) for value in values]
    for n, value in enumerate(values):
        d[n] = value
    del value
    values.clear()
    assert sum(ref() is not None for ref in refs) == 4
    d.pop(19)
    d[18] = None
    assert sum(ref() is not None for ref in refs) == 2
    clock.now = 10.0
    d.expire()
    assert sum(ref() is not None for ref in refs) == 0


def exercise(policy="s3fifo"):
    clock = Clock()
    d = TTLDict(
        50, 5.0, memory_limit=20_000, policy=policy, idle=4.0, timer=clock, on_evict=lambda *entry: None
    )
    for n in range(300):
        d[n] = [n]
        d.get(n - 3)
        d.setdefault(n - 1, None)
        d.pop(n - 7, None)
        clock.now += 0.05
        d.touch(n - 2)
    list(d.items())
    d.update(dict(d))
    d.update(d)
    d.copy()
    d.trim(100)
    d.resize(max_size=5)
    d.cap(3_000)
    for key in ("big", 299):
        for store in (d.set, d.setdefault, lambda k, v: d.get_or_set(k, lambda: v)):
            store(key, "x" * 6_000)
    d["grows"] = grows = []
    grows.append("x" * 6_000)
    d.recount("grows")
    d.cap(None)
    for bad in ([], {}):
        with pytest.raises(TypeError):
            d[bad] = 1
    with pytest.raises(ValueTooLargeError):
        d["x"] = "x" * 30_000
    d["self"] = d
    d.clear()


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_leaks(leaks_nothing, policy):
    leaks_nothing(lambda: exercise(policy), runs=2)


def entry_points():
    grow = {n: n for n in range(8)}
    pairs = [(n, n) for n in range(-30, 3)]
    return {
        "construct": (lambda _: TTLDict(5, 5.0, memory_limit=100, idle=3, policy="lru"), {}),
        "insert": (lambda d: d.set("new", "value", ttl=7), grow),
        "insert first": (lambda d: d.set("new", "value", ttl=7), {}),
        "replace": (lambda d: d.set(3, "value", ttl=7), grow),
        "setdefault": (lambda d: d.setdefault("new", 1), grow),
        "get_or_set": (lambda d: d.get_or_set("new", int), grow),
        "get": (lambda d: d.get(3), grow),
        "getitem": (lambda d: d[3], grow),
        "pop": (lambda d: d.pop(77, None), grow),
        "touch": (lambda d: d.touch(3, 2.0), grow),
        "items": (lambda d: list(d.items()), grow),
        "keys": (lambda d: list(d.keys()), grow),
        "dict": (lambda d: dict(d), grow),
        "stats": (lambda d: d.stats, grow),
        "nbytes": (lambda d: d.nbytes, grow),
        "recount": (lambda d: d.recount(3), grow),
        "copy": (lambda d: d.copy(), grow),
        "repr": (lambda d: repr(d), grow),
        "reduce": (lambda d: d.__reduce_ex__(4), grow),
        "wide": (lambda d: d.set(3, 2**30), grow),
        "cap": (lambda d: d.cap(10**6 + 1), grow),
        "get_many": (lambda d: d.get_many([1, 2, "x"]), grow),
        "set_many": (lambda d: d.set_many(pairs, ttl=7), grow),
        "set_many wide": (lambda d: d.set_many([("a", 1), (3, 2**30)]), grow),
        "delete_many": (lambda d: d.delete_many(["x", "y"]), grow),
        "or": (lambda d: d | {3: 4, "new": 5}, grow),
        "ror": (lambda d: {3: 4, "new": 5} | d, grow),
        "fromkeys": (lambda d: TTLDict.fromkeys(range(30), ttl=5, sweep=False), grow),
    }


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("key", [3, "new"])
def test_without_memory_a_value_over_the_cap_is_gone_or_nothing_changes(fail_allocations, key, timed):
    clock = Clock()
    content = {n: n for n in range(8)}
    evicted = []

    def prepare():
        evicted.clear()
        d = TTLDict(
            sizeof=lambda k, v: 8 if v == 1 or v in content else 10**6, timer=clock if timed else None
        )
        d.update(content)
        d.cap(10**6)
        return d

    def check(d):
        assert dict(d.items()) == content
        assert d.nbytes == len(content) * (ENTRY + 8)
        assert (d.stats["over_cap"], d.stats["memory"]) == (0, 0)
        d[key] = "big"
        assert key not in d
        assert d.stats["over_cap"] == 1

    value = "big"
    before = sys.getrefcount(value)
    assert fail_allocations(lambda d: d.set(key, value, 7), prepare=prepare, check=check) >= 0
    assert sys.getrefcount(value) == before


@pytest.mark.parametrize("name", entry_points())
@pytest.mark.parametrize("timed", [False, True])
def test_without_memory_nothing_changes(fail_allocations, name, timed):
    call, content = entry_points()[name]
    clock = Clock()

    def prepare():
        # `wide` wants a size that the table can't keep in its slots.
        d = TTLDict(sizeof=lambda k, v: v if v == 2**30 else 8, timer=clock if timed else None, sweep=False)
        d.update(content)
        return d

    def check(d):
        assert dict(d.items()) == content
        assert d.nbytes == len(content) * (ENTRY + 8)
        for n in range(100, 140):
            d[n] = n
        assert len(d) == len(content) + 40

    assert fail_allocations(call, prepare=prepare, check=check) >= 0


# ---- the rest of a mapping, and several keys at once


def test_union_takes_the_left_settings():
    clock = Clock()
    left = TTLDict(10, 60, timer=clock)
    left["a"] = 1
    left.set("b", 2, ttl=5)
    clock.now = 1.0
    both = left | {"b": 3, "c": 4}
    assert (type(both), dict(both), both.max_size) == (TTLDict, {"a": 1, "b": 3, "c": 4}, 10)
    assert (both.expires_at("a"), both.expires_at("b"), dict(left)) == (60, 61, {"a": 1, "b": 2})
    other = {"b": 3, "c": 4} | left
    assert (type(other), dict(other)) == (TTLDict, {"a": 1, "b": 2, "c": 4})
    assert (other.expires_at("b"), other.expires_at("c"), other.ttl) == (5, 61, 60)
    assert dict(left | TTLDict.fromkeys("a", 9)) == {"a": 9, "b": 2}
    same = left
    left |= [("x", 1)]
    assert left is same
    assert left["x"] == 1
    for bad in (3, [("a", 1)], None):
        with pytest.raises(TypeError):
            left | bad
        with pytest.raises(TypeError):
            bad | left
    sub = Sub(5)
    sub.note = "kept"
    assert (type(sub | {}), (sub | {}).note, ({} | sub).note) == (Sub, "kept", "kept")


def test_fromkeys():
    made = TTLDict.fromkeys(iter("ab"), 0, ttl=60, max_size=5)
    assert (dict(made), made.ttl, made.max_size) == ({"a": 0, "b": 0}, 60, 5)
    assert type(Sub.fromkeys("a", owner=1)) is Sub
    with pytest.raises(ArgumentValueError, match="ttl"):
        TTLDict.fromkeys("a", ttl=0)


def test_reversed_is_refused():
    with pytest.raises(TypeError, match="not reversible"):
        reversed(TTLDict.fromkeys("ab"))


def test_defaults_by_keyword():
    d = TTLDict()
    assert (d.get("k", default=1), d.pop("k", default=2), d.setdefault("k", default=3)) == (1, 2, 3)
    assert d.get("k", default=1) == 3
    for arguments, keywords in [
        ((), {}), (("k", 1, 2), {}), (("k", 1), {"default": 2}), (("k",), {"other": 1}),
        ((), {"key": "k"}), ((), {"default": 1}),
    ]:  # fmt: skip
        for method in (d.get, d.pop):
            with pytest.raises(TypeError):
                method(*arguments, **keywords)
    for method in (TTLDict.get, TTLDict.setdefault):
        assert str(inspect.signature(method)) == "(self, key, /, default=None)"


def test_missing_of_a_subclass():
    class Doubling(TTLDict):
        def __missing__(self, key):
            self[key] = key * 2
            return self[key]

    d = Doubling()
    assert (d["a"], d["a"], dict(d)) == ("aa", "aa", {"a": "aa"})
    # As with a dict, nothing else asks it.
    assert (d.get("b"), d.pop("b", None), "b" in d, d.get_many("b")) == (None, None, False, {})
    with pytest.raises(KeyError):
        del d["b"]


def test_times_may_be_timedeltas():
    clock = Clock()
    d = TTLDict(ttl=timedelta(minutes=1), idle=timedelta(hours=1), timer=clock)
    assert (d.ttl, d.idle) == (60.0, 3600.0)
    d.set("set", 1, ttl=timedelta(seconds=3))
    d.get_or_set("made", int, ttl=timedelta(milliseconds=500))
    d.set_many({"many": 1}, ttl=timedelta(seconds=4))
    d["touched"] = 1
    d.touch("touched", timedelta(seconds=2))
    assert [d.expires_at(key) for key in ("set", "made", "many", "touched")] == [3, 0.5, 4, 2]
    assert create_memory_aware_ttl_dict(5, timedelta(seconds=9), 1).ttl == 9.0
    for bad in (timedelta(0), timedelta(seconds=-1)):
        with pytest.raises(
            ArgumentValueError, match="ttl must be a positive number of seconds, a timedelta or None"
        ):
            TTLDict(ttl=bad)


def test_a_ttl_may_depend_on_key_and_value():
    clock = Clock(100.0)
    d = TTLDict(ttl=lambda key, value: value, timer=clock, sweep=False)
    d["plain"] = 5
    d["never"] = None
    d["delta"] = timedelta(seconds=7)
    d.set("given", 5, ttl=1)
    d.setdefault("default", 6)
    assert d.get_or_set("made", lambda: 8) == 8
    d.set_many({"many": 9, "forever": math.inf})
    names = ["plain", "never", "delta", "given", "default", "made", "many", "forever"]
    assert [d.expires_at(name) for name in names] == [105, math.inf, 107, 101, 106, 108, 109, math.inf]
    clock.now = 101.0
    assert d.touch("plain")
    assert not d.touch("nobody")
    assert d.expires_at("plain") == 106
    assert "given" not in d
    assert callable(d.ttl)
    assert d.copy().ttl is d.ttl
    for bad in (0, -1, "x", math.nan):
        with pytest.raises((ArgumentValueError, ArgumentTypeError), match=r"ttl\(key, value\) must be"):
            d["bad"] = bad
        assert "bad" not in d

    def fail(key, value):
        raise ZeroDivisionError

    failing = TTLDict(ttl=fail)
    for store in (
        lambda: failing.set("a", 1),
        lambda: failing.set_many({"a": 1}),
        lambda: failing.setdefault("a", 1),
        lambda: failing.get_or_set("a", int),
    ):
        with pytest.raises(ZeroDivisionError):
            store()
    assert len(failing) == 0


def test_on_remove_hears_of_what_the_user_removes_and_on_evict_of_the_rest():
    heard, clock = [], Clock()
    d = TTLDict(
        2,
        10,
        policy="lru",
        timer=clock,
        on_evict=lambda *e: heard.append(e),
        on_remove=lambda *e: heard.append(e),
    )
    d["a"] = 1
    d["a"] = 2
    assert d.setdefault("a", 3) == 2
    d.set_many({"a": 3})
    assert d.pop("a") == 3
    d["b"] = 1
    del d["b"]
    d["c"] = 1
    assert d.popitem() == ("c", 1)
    d.update(d=1, e=1)
    assert d.delete_many(["d", "x"]) == 1
    d["f"] = 1
    d["g"] = 1
    d.clear()
    d["h"] = 1
    clock.now = 10
    assert len(d) == 0
    assert heard == [
        ("a", 1, "replaced"), ("a", 2, "replaced"), ("a", 3, "deleted"), ("b", 1, "deleted"), ("c", 1, "deleted"),
        ("d", 1, "deleted"), ("e", 1, "full"), ("f", 1, "cleared"), ("g", 1, "cleared"), ("h", 1, "expired"),
    ]  # fmt: skip
    assert d.copy().__reduce_ex__(4)[2][0]["on_remove"] is not None


def test_on_remove_may_use_the_dict_and_fail(monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    def on_remove(key, value, reason):
        if value:
            d[key] = value - 1
        else:
            raise ZeroDivisionError

    d = TTLDict(on_remove=on_remove)
    d["a"] = 3
    assert d.pop("a") == 3
    assert d["a"] == 2
    d["a"] = 0
    assert d["a"] in (0, 1)
    d.clear()
    d.pop("a", None)
    assert [type(each.exc_value) for each in unraisable[:1]] == [ZeroDivisionError]


def test_several_keys_at_once():
    d = TTLDict()
    d.set_many({n: str(n) for n in range(1000)})
    assert d.get_many(range(-5, 1005)) == {n: str(n) for n in range(1000)}
    assert (d.stats["hits"], d.stats["misses"], d.stats["sets"]) == (1000, 10, 1000)
    d.set_many(((n, None) for n in range(500)), ttl=9)
    assert d.get_many([0, 0, 999]) == {0: None, 999: "999"}
    d.set_many(TTLDict.fromkeys("xyz"))
    assert d.delete_many(range(1000)) == 1000
    assert sorted(d) == ["x", "y", "z"]
    assert (d.get_many([]), d.delete_many([]), d.set_many([])) == ({}, 0, None)
    for bad in ([3], ["abc"], [(1, 2, 3)]):
        with pytest.raises(
            ArgumentTypeError, match=r"entries must be .* an iterable of \(key, value\) pairs"
        ):
            d.set_many(bad)
    with pytest.raises(ZeroDivisionError):
        d.get_many(1 / 0 for _ in range(1))


def test_setting_several_at_once_is_all_or_nothing():
    d = TTLDict(memory_limit=2000)
    d["a"] = 1
    with pytest.raises(ValueTooLargeError):
        d.set_many([("a", 2), ("b", 3), ("c", bytes(5000))])
    assert dict(d) == {"a": 1}
    with pytest.raises(TypeError, match="unhashable"):
        d.set_many([("a", 2), ([], 3)])
    assert dict(d) == {"a": 1}


@pytest.mark.parametrize("policy", POLICIES)
def test_setting_more_at_once_than_fits(policy):
    gone = []
    d = TTLDict(20, policy=policy, on_evict=lambda *entry: gone.append(entry))
    d.set_many((n, n) for n in range(100))
    assert len(d) == 20
    assert len(gone) == 80
    assert {reason for _, _, reason in gone} == {"full"}
    assert {key for key, _, _ in gone} | set(d) == set(range(100))
    capped = TTLDict(sizeof=lambda key, value: value, on_evict=lambda *entry: gone.append(entry))
    capped.cap(500)
    del gone[:]
    capped.set_many({n: 1000 if n % 2 else 1 for n in range(30)})
    assert capped.stats["over_cap"] == 15
    assert len(gone) == 30 - len(capped)
    assert 0 < capped.nbytes <= 500


def test_one_reading_of_the_clock_for_several_keys():
    readings = []
    d = TTLDict(ttl=5, timer=lambda: readings.append(1) or 0.0)
    d.set_many({1: 1, 2: 2})
    del readings[:]
    for call in (
        lambda: d.set_many({1: 1, 2: 2, 3: 3}), lambda: d.get_many([1, 2, 3, 4]), lambda: d.delete_many([1, 2, 4])
    ):  # fmt: skip
        call()
        assert len(readings) == 1
        del readings[:]


@pytest.mark.parametrize(
    "call",
    [
        lambda d, keys: d.get_many(keys),
        lambda d, keys: d.set_many([(key, 1) for key in keys]),
        lambda d, keys: d.delete_many(keys),
    ],
    ids=["get", "set", "delete"],
)
def test_comparisons_may_do_anything_while_several_keys_are_handled(call):
    first, second = same_hash(1, 2)
    d = TTLDict()
    d.update({"a": 0, first: "x", "b": 0})

    def fail():
        raise ZeroDivisionError

    first.on_eq = fail
    with pytest.raises(ZeroDivisionError):
        call(d, ["a", second, "b"])
    first.on_eq = None
    assert d[first] == "x"
    assert "b" in d

    def clear():
        first.on_eq = None
        d.clear()

    first.on_eq = clear
    call(d, ["a", second, "b"])
    assert first not in d
    assert len(d) in (0, 2, 3)


def test_several_keys_from_threads(hammer):
    d = TTLDict(50)
    keys = list(range(100))

    def call(index):
        if index % 3 == 0:
            d.set_many((key, key) for key in keys)
        elif index % 3 == 1:
            assert all(key == value for key, value in d.get_many(keys).items())
        else:
            d.delete_many(keys[index::8])

    hammer(6, call, iterations=100)
    assert len(d) <= 50


# ---- threads, fork, the sweeper


@pytest.mark.parametrize("policy", POLICIES)
def test_eight_threads(hammer, policy):
    d = TTLDict(64, 0.02, memory_limit=64 * 400, policy=policy, on_evict=lambda *entry: None)
    rng = [random.Random(n) for n in range(8)]
    # Stores and lookups twice as often as the others.
    operations = ["store", "store", "get", "get", "pop", "setdefault", "iterate", "count", "touch"]

    def body(index):
        key = rng[index].randrange(100)
        match rng[index].choice(operations):
            case "store":
                d[key] = (key, "x" * 10)
            case "pop":
                d.pop(key, None)
            case "setdefault":
                d.setdefault(str(key), (str(key),))
            case "iterate":
                try:
                    for k, v in d.items():
                        assert v[0] == k
                except RuntimeError as e:
                    assert "changed size" in str(e)
            case "count":
                assert len(d) <= 64
            case "touch":
                d.touch(key)
                if rng[index].randrange(50) == 0:
                    d.clear()
            case "get":
                value = d.get(key)
                assert value is None or value[0] == key

    hammer(8, body, iterations=1500)
    assert d.nbytes <= 64 * 400
    d.expire()
    assert len(dict(d.items())) == len(d)


def test_hostile_keys_in_threads(hammer):
    d = TTLDict(30)
    keys = [Hostile(n) for n in range(40)]

    def body(index):
        key = random.choice(keys)
        d[key] = key.value
        value = d.get(random.choice(keys))
        assert value is None or 0 <= value < 40
        d.pop(random.choice(keys), None)

    hammer(8, body, iterations=150)
    assert len(d) <= 30


def test_the_sweeper_frees_what_nobody_touches():
    class Value:
        pass

    d = TTLDict(ttl=0.05)
    swept, kept = Value(), Value()
    refs = weakref.ref(swept), weakref.ref(kept)
    d["a"] = swept
    still = TTLDict(ttl=0.05, sweep=False)
    still["a"] = kept
    del swept, kept
    wait_for(lambda: refs[0]() is None)
    assert refs[1]() is not None
    # A nearer deadline brings the sweeper forward.
    value = Value()
    ref = weakref.ref(value)
    d.set("far", 1, ttl=1000)
    d.set("near", value, ttl=0.05)
    del value
    wait_for(lambda: ref() is None)
    assert len(d) == 1
    assert len(still) == 0


def test_the_sweeper_holds_no_dict_and_frees_a_big_backlog():
    d = TTLDict(ttl=0.3)
    ref = weakref.ref(d)
    gone = []
    e = TTLDict(ttl=0.3, on_evict=lambda *entry: gone.append(entry[2]))
    for n in range(20_000):
        d[n] = e[n] = n
    del d
    gc.collect()
    assert ref() is None
    wait_for(lambda: len(gone) == 20_000)
    assert set(gone) == {"expired"}


def test_the_sweeper_survives_callbacks_that_raise():
    seen = []

    def refuse(key, value, reason):
        raise ZeroDivisionError

    hook, sys.unraisablehook = sys.unraisablehook, lambda args: seen.append(args.exc_type)
    try:
        d = TTLDict(ttl=0.02, on_evict=refuse)
        d["a"] = 1
        wait_for(lambda: seen)
        d["b"] = 1
        wait_for(lambda: len(seen) == 2)
    finally:
        sys.unraisablehook = hook


class Swept:
    """A client of the sweeper with the given `_sweep`."""

    def __init__(self, sweep):
        self._sweep = sweep


class Interrupted(Exception):
    """What a signal handler raises."""


def interrupt(call, at):
    """Call it, and raise as one of the package's Python functions begins or ends. Whether it came to that.

    Those are the places at which a signal handler may run and a trace function as well. Between lines, the latter also
    gets a turn where the former doesn't.
    """
    left = at

    def trace(frame, event, argument):
        nonlocal left
        if "synthex_fast" not in frame.f_code.co_filename:
            return None
        if event in ("call", "return"):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise Interrupted
        return trace

    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(tracing)
    return left < 0


def test_a_signal_handler_that_raises_leaves_the_sweepers_lock_free():
    keeper = TTLDict(ttl=60.0)
    keeper["k"] = 1
    interrupted = 0
    for at in range(1000):
        d = TTLDict(ttl=1.0)
        try:
            if not interrupt(functools.partial(d.__setitem__, "k", 1), at):
                break
        except Interrupted:
            interrupted += 1
        assert d["k"] == 1
        others = []

        def lock(others=others):
            others.append(_sweeper._state.acquire(timeout=5) and _sweeper._state.release())

        other = threading.Thread(target=lock)
        other.start()
        other.join()
        assert others == [None], f"event {at}: the lock is held"
    assert interrupted > 4


def test_the_sweeper_plans_one_visit_for_each_client():
    d = TTLDict(ttl=1e6)
    d["far"] = 1
    for n in range(200):
        # As a distant entry and many near ones do, each coming before the visit that is planned.
        _sweeper.schedule(d, time.monotonic() + 1e6 - n)
    planned = [entry for entry in _sweeper._visits.values() if entry[2]() is d]
    assert len(planned) == 1
    due = planned[0][0]
    _sweeper.schedule(d, time.monotonic() + 1e7)
    assert _sweeper._visits[id(d)][0] == due
    for _ in range(3000):
        TTLDict(ttl=1e6)["a"] = 1
    assert len(_sweeper._agenda) < 1000
    assert len(_sweeper._visits) < 1000
    visits = []
    client = Swept(lambda budget: visits.append(budget) or (0.0 if len(visits) < 5 else math.inf))
    _sweeper.schedule(client, 0.0)
    wait_for(lambda: len(visits) == 5 and id(client) not in _sweeper._visits)
    assert all(0 < budget <= 0.1 for budget in visits)


def test_a_client_scheduled_while_it_is_visited_is_visited_again():
    visits = []

    def sweep(budget):
        visits.append(time.monotonic())
        if len(visits) == 1:
            _sweeper.schedule(client, time.monotonic())
            return time.monotonic() + 1e6
        return math.inf

    client = Swept(sweep)
    _sweeper.schedule(client, 0.0)
    wait_for(lambda: len(visits) == 2)


@pytest.mark.slow
def test_a_client_whose_sweep_raises_is_visited_again_and_keeps_nobody_waiting(monkeypatch):
    seen, visits = [], []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))

    def sweep(budget):
        visits.append(1)
        if len(visits) == 1:
            raise ZeroDivisionError
        return math.inf

    client = Swept(sweep)
    _sweeper.schedule(client, 0.0)
    endless = Swept(lambda budget: 0.0)
    _sweeper.schedule(endless, 0.0)
    other = []
    late = Swept(lambda budget: other.append(1) or math.inf)
    _sweeper.schedule(late, time.monotonic())
    wait_for(lambda: len(visits) == 2 and other)
    assert seen == [ZeroDivisionError]


def test_finalisers_that_run_in_the_agenda_lose_nobody():
    """The sweeper holds its clients weakly, so the last reference may be dropped while it looks at one."""
    visits = []
    saved = [Swept(lambda budget, n=n: visits.append(n) or math.inf) for n in range(300)]

    class Last:
        def __init__(self, n):
            self.n = n

        def __del__(self):
            _sweeper.schedule(saved[self.n], 0.0)

        def _sweep(self, budget):
            return math.inf

    for n in range(300):
        dying = Last(n)
        dying.cycle = dying
        _sweeper.schedule(dying, time.monotonic() + 1e6)
    del dying
    gc.collect()
    wait_for(lambda: len(visits) >= 300)
    assert set(visits) == set(range(300))


def test_signals_pass_and_the_sweeper_is_called_again(monkeypatch):
    d = TTLDict(ttl=0.01)
    plan = _sweeper._plan

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(_sweeper, "_plan", interrupted)
    for store in (lambda: d.setdefault("a", Sub), lambda: d.set("b", 1), lambda: TTLDict(ttl=1).touch("b")):
        with contextlib.suppress(KeyboardInterrupt):
            store()
    assert d.stats["sets"] >= 1

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(_sweeper, "_plan", fail)
    e = TTLDict(ttl=0.01)
    e["a"] = 1
    monkeypatch.setattr(_sweeper, "_plan", plan)
    time.sleep(0.7)
    e.set("far", 1, ttl=1e6)
    gone = weakref.ref(value := Swept(None))
    e["last"] = value
    del value
    wait_for(lambda: gone() is None)


@needs_fork
@pytest.mark.slow
def test_a_child_forked_in_the_middle_of_a_visit_visits_again():
    script = """
import os, sys, threading, time
from synthex_fast import TTLDict
parent, inside, go_on = os.getpid(), threading.Event(), threading.Event()
gone = []
def on_evict(key, value, reason):
    gone.append(key)
    if os.getpid() == parent and threading.current_thread() is not main and not inside.is_set():
        inside.set()
        go_on.wait()
# The main thread's own insertions evict too, where the machine is slow.
main = threading.main_thread()
d = TTLDict(ttl=0.5, on_evict=on_evict)
for n in range(100): d[n] = n
inside.wait()
pid = os.fork()
if pid == 0:
    end = time.monotonic() + 20
    while len(gone) < 93 and time.monotonic() < end:
        time.sleep(0.01)
    os._exit(0 if len(gone) >= 93 else 1)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
go_on.set()
end = time.monotonic() + 20
while len(gone) < 100 and time.monotonic() < end:
    time.sleep(0.01)
assert (code, len(gone)) == (0, 100), (code, len(gone))
"""
    run(script, "-W", "ignore", stderr=None)


@needs_fork
@pytest.mark.stress
def test_fork_with_threads_and_sweeper():
    script = """
import os, sys, threading, time, warnings
warnings.simplefilter("error")
from synthex_fast import TTLDict
d = TTLDict(1000, ttl=0.2)
long = TTLDict(1000)
long.update({n: n for n in range(100)})
d["seed"] = 1
gone = []
e = TTLDict(ttl=0.3, on_evict=lambda *entry: gone.append(entry))
e["a"] = 1
if sys.argv[1] == "threads":
    warnings.simplefilter("ignore")
    stop = False
    def work():
        n = 0
        while not stop:
            n += 1
            d[n % 500] = n
            d.get(n % 300)
            long.get(n % 100)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for t in threads: t.start()
children = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        for n in range(2000):
            d[n] = n; d.get(n - 1); long[n % 100]
        end = time.monotonic() + 20
        while not gone and time.monotonic() < end:
            time.sleep(0.01)
        os._exit(0 if gone == [("a", 1, "expired")] and len(long) == 100 else 1)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
stop = True
end = time.monotonic() + 20
while not gone and time.monotonic() < end:
    time.sleep(0.01)
assert gone, "the parent's sweeper is gone"
assert codes == [0] * 8, codes
"""
    # The sweeper alone must not make a process that forks look multi-threaded: that is a warning from 3.12 on.
    for mode in ("alone", "threads"):
        run(script, arguments=[mode], stderr=None)


def test_the_process_ends_with_the_sweeper_at_work():
    script = """
from synthex_fast import TTLDict
d = TTLDict(ttl=0.01)
for n in range(5000): d[n] = [n]
d.set("far", 1, ttl=1e6)
e = TTLDict(ttl=1e9); e["self"] = e
class AtEnd:
    def __del__(self):
        d["late"] = 1
d["x"] = AtEnd()
"""
    run(script)


def test_no_thread_is_started_without_need():
    script = """
import sys, threading
from synthex_fast import TTLDict
d = TTLDict(10); d["a"] = 1
e = TTLDict(10, ttl=5, sweep=False); e["a"] = 1
f = TTLDict(10, ttl=5, timer=lambda: 1.0); f["a"] = 1
assert threading.active_count() == 1
"""
    run(script)


def test_a_large_empty_table_gives_its_memory_back():
    import tracemalloc

    clock = Clock()
    tracemalloc.start()
    try:
        d = TTLDict(ttl=1.0, timer=clock, sizeof=lambda k, v: 1)
        base = tracemalloc.get_traced_memory()[0]
        for n in range(20_000):
            d[n] = None
        clock.now = 1.0
        d.expire()
        assert tracemalloc.get_traced_memory()[0] - base < 50_000
        d["a"] = 1
        assert d == {"a": 1}
    finally:
        tracemalloc.stop()


def test_an_entry_allocates_what_the_dict_counts():
    import tracemalloc

    count = 20_000
    keys = list(range(10**6, 10**6 + count))
    tracemalloc.start()
    try:
        d = TTLDict(count, 3600.0, memory_limit=2**40, sizeof=lambda k, v: 0)
        before = tracemalloc.get_traced_memory()[0]
        for key in keys:
            d[key] = None
        allocated = tracemalloc.get_traced_memory()[0] - before
        assert ENTRY - 3 <= allocated / count <= ENTRY == 60
    finally:
        tracemalloc.stop()


def test_get_from_two_threads_sees_whole_values():
    d = TTLDict(100)
    stop = threading.Event()

    def write():
        n = 0
        while not stop.is_set():
            n += 1
            d["k"] = (n, n)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5000):
            value = d.get("k")
            assert value is None or value[0] == value[1]
    finally:
        stop.set()
        thread.join()


# ---- a comparison that fails in the middle of several entries


class Incomparable:
    def __hash__(self):
        return 1

    def __eq__(self, other):
        raise OSError("no")


@pytest.mark.parametrize("kind", [dict, TTLDict])
def test_update_stores_the_entries_before_a_comparison_that_fails(kind):
    """As `dict.update` does it, and no entry after it."""
    present = Incomparable()
    cache = kind()
    cache[present] = "present"
    with pytest.raises(OSError, match="no"):
        cache.update([(10, 0), (11, 1), (Incomparable(), 2), ("after", 3)])
    assert [*cache.values()] == ["present", 0, 1]


@pytest.mark.parametrize("room", [0, 1000])
def test_set_many_stores_nothing_if_a_comparison_fails(room):
    cache = TTLDict.fromkeys(range(10, room))
    for key in range(10, room):
        # Leaves room for more entries than will be stored.
        del cache[key]
    present = Incomparable()
    cache[present] = "present"
    cache[10] = "old"
    with pytest.raises(OSError, match="no"):
        cache.set_many([(10, "new"), (11, 1), (Incomparable(), 2), ("after", 3)])
    assert set(cache.values()) == {"present", "old"}


def test_set_many_stores_the_entries_before_a_comparison_that_fails_later():
    class Fickle:
        calls = 0

        def __hash__(self):
            return 1

        def __eq__(self, other):
            self.calls += 1
            if self.calls > 1:
                raise OSError("no")
            return False

    cache = TTLDict.fromkeys(range(10, 1000))
    cache.clear()
    cache.set_many({n: n for n in range(100, 200)})
    cache.delete_many(range(100, 200))
    cache[1] = "present"
    fickle = Fickle()
    with pytest.raises(OSError, match="no"):
        cache.set_many([(10, "new"), (fickle, 2), ("after", 3)])
    assert set(cache.values()) == {"present", "new"}


@pytest.mark.parametrize(
    "bad",
    [([], 1), ("large", "x" * 10_000)],
    ids=["unhashable", "too large"],
)
def test_set_many_stores_nothing_if_an_entry_is_refused(bad):
    cache = TTLDict(memory_limit=5_000)
    cache["a"] = 1
    with pytest.raises((TypeError, ValueTooLargeError)):
        cache.set_many([("a", 2), ("b", 3), bad])
    assert dict(cache) == {"a": 1}
