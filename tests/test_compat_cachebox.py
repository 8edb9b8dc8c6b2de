"""`synthex_fast.compat.cachebox` behaves as cachebox does: its own tests, and a comparison with it step by step."""

import asyncio
import contextvars
import copy
import gc
import inspect
import operator
import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import ROOT, run_python

from synthex_fast.compat import cachebox as ours
from synthex_fast.errors import LoadCycleError

try:
    import cachebox as theirs
except ModuleNotFoundError:
    theirs = None

needs_theirs = pytest.mark.skipif(
    theirs is None or int(theirs.__version__.split(".")[0]) < 6, reason="not installed: cachebox 6"
)

KINDS = ["Cache", "FIFOCache", "LFUCache", "LRUCache", "RRCache", "TTLCache", "VTTLCache"]
EVICTING = KINDS[1:]
DOCUMENTED = Path(__file__).parents[1] / "docs" / "migrate" / "cachebox.md"

# Tests of theirs that can't pass, and the words with which the documentation tells why.
DIFFERENT = {
    "test_c_key_error_without_exception": "sets no exception",
    "test_locks_should_not_leak_on_exception": "`__closure__`",
    "test_waiters_should_not_leak_on_cancel": "`__closure__`",
}


def make(package, kind, maxsize=10, iterable=None, **options):
    cls = getattr(package, kind)
    return (
        cls(maxsize, 1000, iterable, **options) if kind == "TTLCache" else cls(maxsize, iterable, **options)
    )


# --- their own tests ---

# Takes the place of the package in the sources, for child processes as well.
STAND_IN = """
import sys
from synthex_fast.compat import cachebox
cachebox._use_small_offset_feature = False
sys.modules["cachebox"] = cachebox
"""

# Runs coroutine functions as pytest-asyncio would, which need not be installed.
ASYNC_TESTS = """
import asyncio
import inspect
import pytest

def pytest_configure(config):
    config.addinivalue_line("markers", "asyncio: a coroutine function")

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
"""

# pip asks the sources' build backend, which needs Rust, for the metadata of what it downloads.
BACKEND = """
import os

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = os.path.join(directory, "cachebox.dist-info")
    os.makedirs(info)
    with open("PKG-INFO", encoding="utf-8") as given, open(os.path.join(info, "METADATA"), "w") as made:
        made.writelines(line for line in given if line.startswith(("Metadata-Version", "Name", "Version")))
    with open(os.path.join(info, "WHEEL"), "w") as made:
        made.write("Wheel-Version: 1.0\\nGenerator: none\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return "cachebox.dist-info"
"""


def sources(folder):
    """The newest source distribution of cachebox, downloaded once and kept with pytest's cache."""
    kept = sorted(folder.glob("cachebox-*.tar.gz"))
    if not kept:
        backend = folder / "backend"
        backend.mkdir(exist_ok=True)
        (backend / "maturin.py").write_text(BACKEND)
        fetched = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"),
                *("--no-build-isolation", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"),
                *("-d", str(folder), "cachebox>=6"),
            ],
            env={**os.environ, "PYTHONPATH": str(backend)},
            capture_output=True,
            text=True,
        )
        kept = sorted(folder.glob("cachebox-*.tar.gz"))
        if not kept:
            pytest.skip(f"cachebox's sources can't be downloaded: {fetched.stderr.strip()[-200:]}")
    return kept[-1]


@pytest.mark.slow
def test_their_own_tests_pass(request, tmp_path):
    cache = getattr(request.config, "cache", None)
    kept = tmp_path / "kept" if cache is None else cache.mkdir("cachebox")
    kept.mkdir(exist_ok=True)
    with tarfile.open(sources(kept)) as archive:
        archive.extractall(tmp_path / "sources", filter="data")
    (folder,) = (tmp_path / "sources").iterdir()
    # Theirs is not among what can be imported.
    (folder / "cachebox").rename(folder / "theirs")
    (folder / "cachebox").mkdir()
    (folder / "cachebox" / "__init__.py").write_text(STAND_IN)
    (folder / "async_tests.py").write_text(ASYNC_TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "async_tests"),
            *("-c", "pytest.ini", "-k", " and ".join(f"not {name}" for name in DIFFERENT), "tests"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.rpartition("\n")[0].rpartition("\n")[2].split()[0]) > 1000, done.stdout


@pytest.mark.skipif(not DOCUMENTED.exists(), reason="not in a checkout: the documentation")
def test_the_differences_are_documented():
    text = DOCUMENTED.read_text()
    table = text.partition("| difference | reason |")[2].partition("\n\n")[0]
    assert table.count("\n") > 10
    for name, words in DIFFERENT.items():
        assert words in table, name


# --- the same as theirs, step by step ---


def order(kind, pairs):
    # Theirs list those of two classes in the order of a hash table.
    return sorted(pairs) if kind in ("Cache", "RRCache") else list(pairs)


def state(kind, cache):
    return (
        order(kind, cache.items()),
        order(kind, cache),
        len(cache),
        cache.current_size(),
        cache.remaining_size(),
        cache.is_full(),
        cache.is_empty(),
        bool(cache),
    )


def attempt(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except (KeyError, ValueError, IndexError, OverflowError) as error:
        return type(error)


OPERATIONS = {
    "insert": lambda cache, key, value: cache.insert(key, value),
    "setitem": lambda cache, key, value: operator.setitem(cache, key, value),
    "getitem": lambda cache, key, value: cache[key],
    "get": lambda cache, key, value: cache.get(key, value),
    "contains": lambda cache, key, value: (key in cache, cache.contains(key)),
    "delitem": lambda cache, key, value: operator.delitem(cache, key),
    "pop": lambda cache, key, value: cache.pop(key),
    "pop default": lambda cache, key, value: cache.pop(key, value),
    "popitem": lambda cache, key, value: cache.popitem(),
    "setdefault": lambda cache, key, value: cache.setdefault(key, value),
    "setdefault_with": lambda cache, key, value: cache.setdefault_with(key, lambda: value),
    "update": lambda cache, key, value: cache.update({key: value, key + 1: value}),
    "update pairs": lambda cache, key, value: cache.update((n, value) for n in (key, key + 2)),
    "drain": lambda cache, key, value: cache.drain(value % 3),
    "clear": lambda cache, key, value: cache.clear(reuse=value % 2 == 0) if value == 3 else None,
    "shrink": lambda cache, key, value: cache.shrink_to_fit(),
    "peek": lambda cache, key, value: cache.peek(key, value),
    "least used": lambda cache, key, value: cache.least_frequently_used(value - 2),
    "frequency": lambda cache, key, value: list(cache.items_with_frequency()),
    "least recent": lambda cache, key, value: cache.least_recently_used(),
    "most recent": lambda cache, key, value: cache.most_recently_used(),
    "first": lambda cache, key, value: cache.first(value - 2),
    "last": lambda cache, key, value: cache.last(),
    "expire": lambda cache, key, value: cache.expire(reuse=True),
    "insert ttl": lambda cache, key, value: cache.insert(key, value, 100 + 10 * key),
}
NEEDS = {
    "peek": "peek",
    "least used": "least_frequently_used",
    "frequency": "items_with_frequency",
    "least recent": "least_recently_used",
    "most recent": "most_recently_used",
    "first": "first",
    "last": "last",
    "expire": "expire",
}


@needs_theirs
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_random_operations_have_the_same_effect(kind, sized):
    options = {"getsizeof": lambda key, value: abs(value)} if sized else {}
    names = [
        name
        for name in OPERATIONS
        if hasattr(getattr(ours, kind), NEEDS.get(name, "get"))
        and (name != "insert ttl" or kind == "VTTLCache")
        # What goes at random differs.
        and not (kind == "RRCache" and name in ("popitem", "drain"))
    ]
    # So that nothing has to go.
    size = 0 if kind == "RRCache" else 20 if sized else 6
    for seed in range(30):
        draw = random.Random(seed)
        pair = [make(package, kind, size, **options) for package in (ours, theirs)]
        for _ in range(200):
            name = draw.choice([*names, "insert", "insert", "get"])
            key, value = draw.randrange(12), draw.randrange(9)
            if sized and draw.random() < 0.05:
                value = 25
            answers = []
            for n, cache in enumerate(pair):
                if kind == "Cache" and sized and name in ("insert", "setitem", "update", "update pairs"):
                    # Theirs keeps a larger value that it refuses.
                    old = cache.get(key, 0)
                    if cache.current_size() - old + 2 * value > size:
                        continue
                answers.append(attempt(OPERATIONS[name], cache, key, value))
                if draw.random() < 0:
                    pair[n] = cache
            if len(answers) == 2:
                assert answers[0] == answers[1], (seed, name, key, value)
            assert state(kind, pair[0]) == state(kind, pair[1]), (seed, name, key, value)
            if draw.random() < 0.05:
                pair = [cache.copy() for cache in pair]
            # Theirs forget the order of equals.
            if draw.random() < 0.05 and not sized and kind not in ("LFUCache", "VTTLCache"):
                pair = [pickle.loads(pickle.dumps(cache)) for cache in pair]


@needs_theirs
def test_the_names_are_the_same():
    their_names = {name for name in vars(theirs) if not name.startswith("_")}
    modules = {name for name in their_names if inspect.ismodule(getattr(theirs, name))}
    assert their_names - modules == set(ours.__all__) - {"CacheInfo"}
    for kind in [*KINDS, "Frozen"]:
        public = {name for name in dir(getattr(theirs, kind)) if not name.startswith("_")}
        assert public <= set(dir(getattr(ours, kind))), kind
    assert (ours.EVENT_MISS, ours.EVENT_HIT) == (theirs.EVENT_MISS, theirs.EVENT_HIT)
    assert ours.CacheInfo._fields == theirs._wrappers.CacheInfo._fields


@needs_theirs
def test_keys_are_made_alike():
    for args, kwargs in (((), {}), ((1,), {}), (("a",), {}), ((1.0,), {}), ((True,), {}), ((1, "b"), {})):
        for name in ("make_key", "make_typed_key", "make_hash_key"):
            assert getattr(ours, name)(*args, **kwargs) == getattr(theirs, name)(*args, **kwargs), (
                name,
                args,
            )
    assert len(ours.make_key(1, a=2, b=3)) == len(theirs.make_key(1, a=2, b=3)) == 6
    assert len(ours.make_typed_key(1, a=2)) == len(theirs.make_typed_key(1, a=2)) == 6
    assert ours.make_key(1, a=2) != ours.make_key(1, "a", 2)


@needs_theirs
@pytest.mark.parametrize("kind", KINDS)
def test_bad_arguments_are_refused_as_theirs_are(kind):
    for package in (ours, theirs):
        cache = make(package, kind, 3, getsizeof=lambda key, value: value)
        for pairs, error in (([[1, 2]], TypeError), ([(1, 2, 3)], ValueError), (5, TypeError)):
            with pytest.raises(error):
                cache.update(pairs)
        for value, error in ((4, OverflowError), (-1, OverflowError), (1.5, TypeError)):
            with pytest.raises(error):
                cache.insert(1, value)
        with pytest.raises(TypeError, match="unhashable"):
            cache.insert([], 1)
        with pytest.raises(TypeError, match="unhashable"):
            hash(cache)
        with pytest.raises(TypeError):
            cache < cache  # noqa: B015
        with pytest.raises(RuntimeError, match="initialized"):
            cache.__init__(*((3, 1) if kind == "TTLCache" else (3,)))
        with pytest.raises(RuntimeError, match="not initialized"):
            type(cache).__new__(type(cache)).is_full()
        assert (
            len(cache) == 0
            and cache != {}
            and cache != make(package, "Cache" if kind != "Cache" else "LRUCache")
        )


# --- a plain model ---


class Model(RuleBasedStateMachine):
    """A cache with sizes against lists, in the order in which entries go."""

    LIMIT = 12
    kind = ""

    def __init__(self):
        super().__init__()
        self.cache = getattr(ours, self.kind)(self.LIMIT, getsizeof=lambda key, value: value)
        self.pairs = []  # [key, value, uses, turn]
        self.turn = 0

    def find(self, key):
        return next((pair for pair in self.pairs if pair[0] == key), None)

    def used(self, pair):
        pair[2] += 1
        if self.kind == "LRUCache":
            self.pairs.remove(pair)
            self.pairs.append(pair)
        self.arrange()

    def arrange(self):
        if self.kind == "LFUCache":
            self.pairs.sort(key=lambda pair: (pair[2], pair[3]))

    def total(self):
        return sum(pair[1] for pair in self.pairs)

    @rule(key=st.integers(0, 9), value=st.integers(0, 13))
    def insert(self, key, value):
        pair = self.find(key)
        if value > self.LIMIT:
            with pytest.raises(OverflowError):
                self.cache.insert(key, value)
            return
        assert self.cache.insert(key, value) == (pair and pair[1])
        if pair is None:
            while self.total() + value > self.LIMIT:
                del self.pairs[0]
            self.pairs.append([key, value, 0, self.turn])
            self.turn += 1
            self.arrange()
        else:
            pair[1:3] = value, 0
            self.used(pair)
            while self.total() > self.LIMIT:
                del self.pairs[0]

    @rule(key=st.integers(0, 9))
    def get(self, key):
        pair = self.find(key)
        assert self.cache.get(key) == (pair and pair[1])
        if pair is not None:
            self.used(pair)

    @rule(key=st.integers(0, 9))
    def pop(self, key):
        pair = self.find(key)
        assert self.cache.pop(key, None) == (pair and pair[1])
        if pair is not None:
            self.pairs.remove(pair)

    @precondition(lambda self: self.pairs)
    @rule()
    def popitem(self):
        key, value, *_ = self.pairs.pop(0)
        assert self.cache.popitem() == (key, value)

    @rule()
    def replace(self):
        sizes, self.cache = self.cache.getsizeof, self.cache.copy()
        assert self.cache.getsizeof is sizes
        # From then on, equals go in the order that they have now.
        self.turn = len(self.pairs)
        for turn, pair in enumerate(self.pairs):
            pair[3] = turn

    @rule()
    def shrink(self):
        self.cache.shrink_to_fit()
        assert self.cache.capacity() == len(self.pairs)

    @invariant()
    def same(self):
        assert list(self.cache.items()) == [(key, value) for key, value, *_ in self.pairs]
        assert self.cache.current_size() == self.total()


class FIFOModel(Model):
    kind = "FIFOCache"


class LRUModel(Model):
    kind = "LRUCache"


class LFUModel(Model):
    kind = "LFUCache"


TestFIFOModel = FIFOModel.TestCase
TestLRUModel = LRUModel.TestCase
TestLFUModel = LFUModel.TestCase


def test_what_goes_at_random_is_any():
    cache = ours.RRCache(5, ((n, n) for n in range(5)))
    assert {cache.random_key() for _ in range(500)} == set(range(5))
    gone = set()
    for n in range(300):
        before = set(cache)
        cache[100 + n] = n
        assert len(cache) == 5 and 100 + n in cache
        (out,) = before - set(cache)
        gone.add(sorted(before).index(out))
    assert gone == set(range(5))
    assert sorted(cache.popitem()[0] for _ in range(5)) and cache.is_empty()


# --- times ---


def test_expired_entries_are_not_found_nor_listed():
    cache = ours.VTTLCache(10)
    cache.insert("gone", 1, ttl=0.01)
    cache.insert("stays", 2)
    cache.insert("later", 3, ttl=timedelta(hours=1))
    held = cache.items()
    time.sleep(0.02)
    assert "gone" not in cache and cache.get("gone", 5) == 5
    assert len(held) == 2 and list(held) == [("later", 3), ("stays", 2)]
    assert len(cache) == 3 and cache.current_size() == 2 and len(cache) == 2
    with pytest.raises(KeyError):
        cache.pop("gone")
    assert cache.popitem() == ("later", 3) and cache.popitem() == ("stays", 2)


def test_an_expired_value_behind_a_fresh_one_is_not_returned():
    # cachebox's `pop` returns it.
    cache = ours.TTLCache(10, 0.3, {"a": 1, "b": 2})
    time.sleep(0.2)
    cache["a"] = 3
    time.sleep(0.15)
    if "a" in cache:
        assert len(cache) == 2 and list(cache) == ["a"]
    assert cache.pop("b", None) is None
    assert cache.pop_with_expire("b", 7) == (7, 0.0)


def test_times_to_live_of_every_kind():
    cache = ours.VTTLCache(10)
    for ttl in (0, -1, timedelta(seconds=-1), datetime.now() - timedelta(1), datetime.now(UTC)):
        cache.insert("k", 1, ttl)
        assert "k" not in cache
    for ttl in (50, 50.0, timedelta(seconds=50), datetime.now(UTC) + timedelta(seconds=50)):
        cache.insert("k", 1, ttl)
        assert 40 < cache.get_with_expire("k")[1] <= 50
    cache.insert("k", 1, float("inf"))
    assert cache.get_with_expire("k") == (1, None) == cache.pop_with_expire("k")
    for ttl in ("x", [], True, float("nan")):
        with pytest.raises((TypeError, ValueError), match=r"ttl must be a number of seconds"):
            cache.insert("k", 1, ttl)
        with pytest.raises((TypeError, ValueError), match=r"global_ttl must be a"):
            ours.TTLCache(10, ttl)
    for ttl in (0, -1, timedelta(0), datetime.now()):
        with pytest.raises((TypeError, ValueError), match=r"global_ttl must be a"):
            ours.TTLCache(10, ttl)
    with pytest.raises(ValueError, match="at least 1 second"):
        ours.VTTLCache(10, sweep_interval=0.5)


def test_what_expires_is_pickled_with_its_time():
    for cache in (ours.TTLCache(10, 50, {1: 2}), ours.VTTLCache(10, {1: 2}, 50)):
        again = pickle.loads(pickle.dumps(cache))
        assert again == cache and 40 < again.get_with_expire(1)[1] <= 50.001
        assert 40 < cache.copy().get_with_expire(1)[1] <= 50


def test_a_sweeper_does_not_keep_its_cache():
    class Value:
        pass

    cache = ours.VTTLCache(10, sweep_interval=1)
    value = Value()
    cache.insert("a", value, ttl=0.01)
    seen, gone = weakref.ref(cache), weakref.ref(value)
    thread = cache._thread
    assert thread.daemon and cache.sweep_interval == 1
    del value
    for _ in range(100):
        if gone() is None:
            break
        time.sleep(0.05)
    assert gone() is None and len(cache) == 0
    del cache
    thread.join(10)
    assert seen() is None and not thread.is_alive()


# --- iteration ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_ends_an_iteration(kind):
    cache = make(ours, kind, 10, {n: n for n in range(4)})
    for change in (
        lambda: cache.insert(9, 9),
        lambda: cache.pop(9),
        lambda: cache.shrink_to_fit() if kind != "LRUCache" else cache.insert(0, 0),
        lambda: cache.clear(),
    ):
        held = cache.items()
        next(held)
        change()
        for use in (lambda held=held: next(held), lambda held=held: len(held), lambda held=held: bool(held)):
            with pytest.raises(RuntimeError, match="changed during iteration"):
                use()
    assert list(cache) == [] and not cache.keys()


def test_uses_end_an_iteration_where_they_move_entries():
    cache = ours.LRUCache(10, {n: n for n in range(3)})
    held = iter(cache)
    next(held)
    cache[2]
    assert next(held) == 1
    cache[0]
    with pytest.raises(RuntimeError):
        next(held)
    cache = ours.LFUCache(10, {n: n for n in range(3)})
    held = iter(cache)
    cache[0], cache[1]
    assert list(cache) == [2, 0, 1]
    assert list(held) == [0, 1, 2]


# --- what is special here ---


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_and_copies(kind):
    class Own(getattr(ours, kind)):
        pass

    cache = make(ours, kind, 10, {n: n for n in range(5)})
    cache.get(2)
    for again in (cache.copy(), copy.copy(cache), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert again == cache and type(again) is type(cache) and again.maxsize == 10
        assert list(again.items()) == list(cache.items())
        again[9] = 6
        assert again != cache and 9 not in cache
    cls = Own
    own = cls(10, 1000) if kind == "TTLCache" else cls(10)
    own.note = [1]
    own["self"] = own
    assert own.copy().note is own.note and type(own.copy()) is Own
    deep = copy.deepcopy(own)
    assert deep.note == [1] and deep.note is not own.note and deep.get("self") is deep
    assert "{...}" in repr(own)


@pytest.mark.parametrize("kind", KINDS)
def test_long_ones_are_described_in_part(kind):
    cache = make(ours, kind, 0, {n: n for n in range(130)})
    text = repr(cache)
    assert (
        text.count(":") == 100 and "... 30 truncated ..." in text and f"{kind}[maxsize={sys.maxsize}]" in text
    )


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_collected_and_weakly_referenced(kind):
    cache = make(ours, kind)
    cache["self"] = cache
    cache["held"] = cache.items()
    seen = weakref.ref(cache)
    del cache
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_may_use_the_cache_while_it_is_dropped(kind):
    class Value:
        def __init__(self, n):
            self.n = n

        def __del__(self):
            cache.get(1)
            cache.pop(self.n + 100, None)
            if not cache.is_full():
                cache[self.n + 100] = 1
            cache.pop(self.n, None)
            list(cache)

    for _ in range(3):
        cache = make(ours, kind, 4)
        for n in range(30):
            try:
                cache[n % 7] = Value(n % 6)
            except OverflowError:
                cache.pop(next(iter(cache)))
            cache.get(n % 5)
            assert cache.current_size() == len(cache) == len(list(cache)) <= 4
        cache.clear()
        cache.clear()
        cache[1] = 2
        assert cache.get(1) == 2 and len(cache) == len(list(cache))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_keys(kind):
    draw = random.Random(1)
    busy = honest = False

    class Key:
        def __init__(self, n):
            self.n = n

        def __hash__(self):
            return self.n % 3

        def __eq__(self, other):
            nonlocal busy
            chance = 1.0 if honest else draw.random()
            if chance < 0.05:
                raise ZeroDivisionError
            if not busy:
                busy = True
                try:
                    if chance < 0.1:
                        cache.clear()
                    elif chance < 0.15:
                        cache.shrink_to_fit()
                    elif chance < 0.25:
                        cache.pop(Key(draw.randrange(9)), None)
                    elif chance < 0.4:
                        cache[Key(draw.randrange(9))] = 3
                finally:
                    busy = False
            return self.n == other.n

    cache = make(ours, kind, 5, getsizeof=lambda key, value: 1)
    for n in range(6000):
        try:
            match n % 8:
                case 0 | 1 | 2:
                    cache[Key(draw.randrange(9))] = n
                case 3 | 4:
                    cache.get(Key(draw.randrange(9)))
                case 5:
                    cache.pop(Key(draw.randrange(9)), None)
                case 6:
                    cache.setdefault(Key(draw.randrange(9)), n)
                case _:
                    cache.copy() == cache  # noqa: B015
        except (ZeroDivisionError, KeyError, RuntimeError, OverflowError):
            pass
        # What is counted is what is there, in the dict and in the order.
        assert len(cache) == len(list(cache.items())) == len(cache.keys()) == cache.current_size()
        honest = True
        assert all(key in cache for key in list(cache))
        honest = False
    # If neither what has to go nor what has come could be removed, there are too many until the next one comes.
    assert len(cache) < 15
    honest = True
    for _ in range(2):
        if kind != "Cache" or not cache.is_full():
            cache[object()] = 1
    assert kind == "Cache" or len(cache) <= 5
    cache.clear()
    assert cache.current_size() == 0 and not list(cache)


@pytest.mark.parametrize("kind", EVICTING)
def test_a_key_that_changes_its_hash(kind):
    class Key:
        code = 1

        def __hash__(self):
            return self.code

    key = Key()
    cache = make(ours, kind, 1, {key: 1})
    Key.code = 2
    with pytest.raises(RuntimeError, match="changed its hash"):
        cache["other"] = 2
    assert len(cache) == 1 and cache.current_size() == 1 and "other" not in cache
    with pytest.raises(RuntimeError, match="changed its hash"):
        cache.popitem()
    Key.code = 1
    cache["other"] = 2
    assert list(cache) == ["other"]
    cache.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_use_the_cache(kind):
    def size(key, value):
        if value == "clear":
            cache.clear()
        elif value == "store":
            cache.insert(key, "other")
        elif value == "raise":
            raise ZeroDivisionError
        return 2

    cache = make(ours, kind, 8, getsizeof=size)
    cache[1] = "plain"
    cache[2] = "store"
    cache[3] = "clear"
    with pytest.raises(ZeroDivisionError):
        cache[4] = "raise"
    assert list(cache.items()) == [(3, "clear")] and cache.current_size() == 2


def test_a_larger_value_that_is_refused_is_not_kept():
    # cachebox keeps it, and is over its limit.
    cache = ours.Cache(5, {"a": 1, "b": 2}, getsizeof=lambda key, value: value)
    with pytest.raises(OverflowError, match="maxsize, 5"):
        cache["a"] = 4
    assert cache["a"] == 1 and cache.current_size() == 3


@pytest.mark.parametrize("kind", KINDS)
def test_allocations_may_fail(kind, fail_allocations):
    def prepare():
        cache = make(ours, kind, 4, {n: n for n in range(4)})
        cache.pop(3)
        return cache

    def use(cache):
        cache[3] = 3

    def unchanged(cache):
        assert sorted(cache.items()) == [(0, 0), (1, 1), (2, 2)] and cache.current_size() == 3
        cache[3] = 2
        assert cache[3] == 2 and len(cache) == 4

    assert fail_allocations(use, prepare=prepare, check=unchanged) >= 0

    def prepare_full():
        return make(ours, kind, 4, {n: n for n in range(4)})

    def evict(cache):
        cache[1] = 5
        cache.insert("new", 3) if kind != "Cache" else None
        cache.get("new")
        cache.pop(2, None)
        list(cache.items())
        cache.copy()
        cache.shrink_to_fit()
        cache.clear()

    def sound(cache):
        assert cache.current_size() == len(cache) == len(list(cache)) <= 4
        cache.pop(1, None)
        cache[11] = 2
        assert cache[11] == 2

    fail_allocations(evict, prepare=prepare_full, check=sound)


@pytest.mark.parametrize("kind", EVICTING)
def test_what_would_go_stays_if_there_is_no_memory(kind, fail_allocations):
    def prepare():
        return make(ours, kind, 4, {n: n for n in range(4)})

    def check(cache):
        assert sorted(cache.items()) == [(n, n) for n in range(4)]

    def use(cache):
        cache["new"] = 3

    assert fail_allocations(use, prepare=prepare, check=check) > 0


class Colliding:
    """A key whose comparisons let other threads run."""

    def __init__(self, n):
        self.n = n

    def __hash__(self):
        return self.n % 4

    def __eq__(self, other):
        return self.n == other.n


@pytest.mark.parametrize("key_of", [int, Colliding])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_need_no_lock(kind, key_of, hammer):
    cache = make(ours, kind, 20)

    def use(index):
        draw = random.Random(index + time.monotonic_ns())
        for _ in range(20):
            n = draw.randrange(40)
            key = key_of(n)
            try:
                match draw.randrange(12):
                    case 0 | 1 | 2:
                        cache[key] = n
                    case 3 | 4:
                        assert cache.get(key) in (None, n)
                    case 5:
                        assert cache.pop(key, None) in (None, n)
                    case 6:
                        assert cache.setdefault_with(key, partial(int, n)) == n
                    case 7:
                        assert all(int(k == key_of(v)) for k, v in cache.copy().items())
                    case 8:
                        for k, v in cache.items():
                            assert k == key_of(v)
                    case 9:
                        cache.shrink_to_fit()
                    case 10 if draw.random() < 0.1:
                        cache.clear()
                    case _:
                        cache.popitem()
            except (KeyError, RuntimeError, OverflowError) as error:
                # It is empty or full, or has changed during an iteration.
                assert "its hash" not in str(error)

    hammer(4, use, iterations=50)
    assert cache.current_size() == len(cache) == len(list(cache)) <= 20
    assert all(key in cache for key in list(cache))
    cache.clear()
    cache[1] = 1
    assert list(cache) == [1]


def test_nothing_leaks(leaks_nothing):
    def scenario():
        for kind in KINDS:
            cache = make(ours, kind, 4)
            for n in range(10):
                try:
                    cache[n] = [n]
                except OverflowError:
                    cache.clear()
                cache.get(n - 1)
            cache.pop(9, None)
            cache.copy() == cache  # noqa: B015
            list(cache.items())
            cache.shrink_to_fit()
            repr(cache)
            # Not pickled: what that keeps grows for a while.
            type(cache).__new__(type(cache)).__setstate__(cache.__getstate__())

        @ours.cached(ours.LRUCache(3))
        def square(n, m=1):
            return [n * n]

        [square(n) for n in (1, 2, 3, 4, 4)]
        square(1, m=2)
        square.cache_info()

    leaks_nothing(scenario)


# --- Frozen ---


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_caches_refuse_what_changes_them(kind):
    cache = make(ours, kind, 10, {"a": 1})
    frozen = ours.Frozen(cache)
    for change in (
        lambda cache: cache.insert("a", 2),
        lambda cache: operator.setitem(cache, "a", 2),
        lambda cache: cache.update({"a": 2}),
        lambda cache: cache.setdefault("b", 2),
        lambda cache: cache.setdefault_with("b", list),
        lambda cache: cache.pop("a"),
        lambda cache: operator.delitem(cache, "a"),
        lambda cache: cache.popitem(),
        lambda cache: cache.drain(1),
        lambda cache: cache.shrink_to_fit(),
        lambda cache: cache.clear(),
    ):
        with pytest.raises(TypeError, match="This cache is frozen"):
            change(frozen)
        assert change(ours.Frozen(cache, ignore=True)) is None
    assert state(kind, frozen) == state(kind, cache) and frozen["a"] == frozen.get("a") == 1 and "a" in frozen
    assert repr(frozen) == f"Frozen({cache!r})" and frozen.copy().cache == cache
    assert frozen.maxsize == 10 and frozen.getsizeof is None and list(frozen.values()) == [1]
    assert frozen.contains("a") and frozen.capacity() == 1 and frozen.__sizeof__() == cache.__sizeof__()
    assert not ours.Frozen(make(ours, kind)) and copy.copy(frozen)["a"] == 1
    for bad in (frozen, {}, None):
        with pytest.raises(TypeError, match="cls must be a cache"):
            ours.Frozen(bad)


# --- cached ---


def test_a_cached_function():
    calls = []

    @ours.cached(ours.LRUCache(2))
    def pair(a, b=0):
        """Two."""
        calls.append((a, b))
        return [a, b]

    assert pair(1) == pair(1) == [1, 0] and pair(1) is not pair(1)
    assert pair(1, 2) == pair(1, 2) and pair(1, b=2) == pair(1, b=2) == [1, 2]
    assert calls == [(1, 0), (1, 2), (1, 2)]
    assert pair.cache_info() == (5, 3, 2, 2, 2, pair.cache.__sizeof__())
    assert ours.get_cached_cache_info(pair).length == 2 and ours.get_cached_callback(pair) is None
    assert pair(1, 2, cachebox__ignore=True) == [1, 2] and len(calls) == 4
    assert pair(1, 2, cachebox__ignore=False) and len(calls) == 4
    assert pair.__name__ == "pair" and pair.__doc__ == "Two." and pair.__wrapped__(3) == [3, 0]
    assert str(inspect.signature(pair)) == "(a, b=0)" and copy.deepcopy(pair) is pair
    assert ours.is_cached(pair) and not ours.is_cached(len)
    ours.clear_cached_cache(pair)
    assert pair.cache_info()[:2] == (0, 0) and len(ours.get_cached_cache(pair)) == 0
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        pair()
    with pytest.raises(TypeError, match="unhashable"):
        pair([])


@ours.cached()
def named(n):
    return n


def test_a_cached_function_is_pickled_by_name():
    assert pickle.loads(pickle.dumps(named)) is named


def test_what_is_kept_begins_with_a_dict():
    @ours.cached({1: "one"})
    def name(n):
        return str(n)

    assert (name(1), name(2)) == ("one", "2") and name.cache.maxsize == sys.maxsize


@pytest.mark.parametrize("lock", [True, None, False, threading.Lock, threading.RLock])
def test_errors_are_not_kept(lock):
    calls = []

    @ours.cached(lock=lock)
    def fail(n):
        calls.append(n)
        raise ValueError(n)

    for _ in range(2):
        with pytest.raises(ValueError, match="5"):
            fail(5)
    assert calls == [5, 5] and fail.cache_info()[:2] == (0, 0) and not fail.turns


@pytest.mark.parametrize("lock", [True, threading.RLock])
@pytest.mark.parametrize("failing", [False, True])
def test_calls_that_miss_together_wait_for_one(lock, failing):
    calls, answers, events = [], [], []
    entered, go_on = threading.Event(), threading.Event()

    @ours.cached(lock=lock, callback=lambda event, key, value: events.append(event))
    def slow(n):
        calls.append(n)
        entered.set()
        assert go_on.wait(30)
        if failing:
            raise ValueError(n)
        return n * 2

    def call():
        try:
            answers.append(slow(4))
        except ValueError as error:
            answers.append(error)

    threads = [threading.Thread(target=call) for _ in range(5)]
    threads[0].start()
    assert entered.wait(30)
    for thread in threads[1:]:
        thread.start()
    waiting = 0
    while waiting < 4:
        waiting = (
            slow.flights.stats["load_waits"]
            if lock is True
            else sum(t.calls for t in slow.turns.values()) - 1
        )
        time.sleep(0.005)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert calls == [4]
    if failing:
        assert len(set(map(id, answers))) == 1 and isinstance(answers[0], ValueError) and events == []
    else:
        assert answers == [8] * 5 and sorted(events) == [ours.EVENT_MISS, *[ours.EVENT_HIT] * 4]
        assert slow.cache_info()[:2] == (4, 1)
    assert not slow.turns


def test_without_a_lock_each_call_runs():
    barrier = threading.Barrier(2, timeout=30)
    calls = []

    @ours.cached(lock=None)
    def slow(n):
        calls.append(n)
        barrier.wait()
        return n

    threads = [threading.Thread(target=slow, args=(1,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert calls == [1, 1]


def test_a_call_that_waits_for_itself_is_refused():
    # cachebox waits forever.
    @ours.cached()
    def again(n):
        return again(n)

    with pytest.raises(LoadCycleError):
        again(1)

    @ours.cached()
    async def later(n):
        return await later(n)

    with pytest.raises(LoadCycleError):
        asyncio.run(later(1))

    depth = []

    @ours.cached(lock=threading.RLock)
    def ends(n):
        depth.append(n)
        return n if len(depth) == 3 else ends(n)

    assert ends(1) == 1 and len(depth) == 3


def test_methods():
    class Shop:
        shared = ours.Cache(0)

        def __init__(self, factor):
            self.factor = factor
            self.kept = ours.LRUCache(10)

        @ours.cached(lambda self: self.kept)
        def price(self, n):
            return n * self.factor

        @ours.cached(lambda self: self.shared)
        def common(self, n):
            return n * self.factor

        @classmethod
        @ours.cached()
        def named(cls, n):
            return cls.__name__, n

        @staticmethod
        @ours.cached()
        def plain(n):
            return n

    cheap, dear = Shop(1), Shop(10)
    assert (cheap.price(2), dear.price(2), cheap.price(n=2)) == (2, 20, 2)
    assert list(cheap.kept) == [2, ours.make_key(n=2)] and list(dear.kept) == [2]
    assert (cheap.common(2), dear.common(2)) == (2, 2)
    assert Shop.named(1) == cheap.named(1) == ("Shop", 1) and Shop.plain(3) == cheap.plain(3) == 3
    assert not ours.is_cached(Shop.price) and not hasattr(Shop.price, "cache_info")
    assert not hasattr(Shop.price, "cache_clear") and Shop.price.callback is None
    with pytest.raises(TypeError, match="without one"):
        Shop.price()
    seen = weakref.ref(cheap)
    del cheap
    gc.collect()
    assert seen() is None


def test_other_caches_are_asked_as_objects():
    class Loud(ours.LRUCache):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

    asked = []

    @ours.cached(Loud(5))
    def square(n):
        return n * n

    assert (square(2), square(2), asked) == (4, 4, [2, 2, 2]) or asked == [2, 2]
    frozen = ours.Frozen(ours.LRUCache(5, {1: "kept"}), ignore=True)
    assert ours.cached(frozen)(str)(1) == "kept" and ours.cached(frozen)(str)(2) == "2" and len(frozen) == 1


def test_callbacks_and_postprocessing():
    heard = []
    call = ours.cached(callback=lambda *event: heard.append(event), postprocess=lambda value: value + 1)(abs)
    assert (call(-3), call(-3)) == (4, 4)
    assert heard == [(ours.EVENT_MISS, -3, 3), (ours.EVENT_HIT, -3, 3)] and call.callback is not None
    nested = {"a": [1]}
    for postprocess, copied, deep in (
        (None, False, False),
        (ours.postprocess_copy, True, False),
        (ours.postprocess_copy_mutables, True, False),
        (ours.postprocess_deepcopy, True, True),
        (ours.postprocess_deepcopy_mutables, True, True),
    ):
        call = ours.cached(postprocess=postprocess)(lambda n: nested)
        for _ in range(2):
            assert (call(1) is not nested) is copied and (call(1)["a"] is not nested["a"]) is deep
    for value in ([1], {1: 2}, {1}, (1,), "text"):
        call = ours.cached()(lambda n, value=value: value)
        assert call(1) == call(1) == value and (call(1) is value) is isinstance(value, (tuple, str))


def test_bad_options_are_refused():
    for bad in (set(), 5, "x"):
        with pytest.raises(TypeError, match="cache must be a cache"):
            ours.cached(bad)

    async def heard(*event):
        pass

    with pytest.raises(TypeError, match="callback must not be a coroutine function"):
        ours.cached(callback=heard)(len)
    for lock in (asyncio.Lock, 5, object):
        with pytest.raises(TypeError, match="lock must be a class of locks"):
            ours.cached(lock=lock)(len)
    with pytest.raises(TypeError, match="lock must be a class of asynchronous locks"):
        ours.cached(lock=threading.Lock)(heard)
    with pytest.warns(DeprecationWarning, match="copy_level"):
        ours.cached(copy_level=2)
    with pytest.raises(TypeError, match="the result must not be async"):
        ours.cached()(lambda: heard())()


class Turnstile(asyncio.Lock):
    """A lock of the user's own class."""


@pytest.mark.parametrize("lock", [True, asyncio.Lock, Turnstile, None])
def test_a_cached_coroutine_function(lock):
    calls, heard = [], []

    async def callback(event, key, value):
        heard.append((event, key))

    @ours.cached(ours.LRUCache(5), callback=callback, lock=lock)
    async def double(n):
        calls.append(n)
        await asyncio.sleep(0)
        if n < 0:
            raise ValueError(n)
        return [n * 2]

    async def main():
        # Before Python 3.12 only asyncio's can be told.
        assert (inspect if sys.version_info >= (3, 12) else asyncio).iscoroutinefunction(double)
        assert await double(2) == await double(2) == [4] and await double(2) is not await double(2)
        assert await double(2, cachebox__ignore=True) == [4] and calls == [2, 2]
        assert double.cache_info()[:2] == (3, 1)
        calls.clear()
        heard.clear()
        assert await asyncio.gather(*(double(3) for _ in range(4))) == [[6]] * 4
        together = lock is not None
        assert len(calls) == (1 if together else 4)
        assert sorted(heard) == sorted([(ours.EVENT_MISS, 3)] + [((1, 2)[together], 3)] * 3)
        calls.clear()
        errors = await asyncio.gather(*(double(-1) for _ in range(4)), return_exceptions=True)
        assert len(calls) == len(set(map(id, errors))) == (1 if together else 4)
        assert all(isinstance(error, ValueError) for error in errors) and -1 not in double.cache
        with pytest.raises(ValueError):
            await double(-1)
        assert not double.turns

    asyncio.run(main())


def test_cancelling_one_does_not_cancel_the_others():
    started, release = [], []

    @ours.cached()
    async def slow(n):
        started.append(n)
        await release[0].wait()
        return n

    async def main():
        release.append(asyncio.Event())
        first, second, third = (asyncio.create_task(slow(1)) for _ in range(3))
        while not started:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        # The first one is who began it; cachebox would cancel all.
        first.cancel()
        second.cancel()
        for cancelled in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        release[0].set()
        assert await third == 1 and started == [1] and await slow(1) == 1

    asyncio.run(main())


def test_the_context_reaches_the_function():
    variable = contextvars.ContextVar("variable", default=0)

    @ours.cached()
    async def read(n):
        return variable.get()

    async def main():
        variable.set(7)
        return await read(1)

    assert asyncio.run(main()) == 7


def test_it_needs_neither_cachebox_nor_numpy():
    script = """
    import sys
    sys.modules["cachebox"] = sys.modules["numpy"] = sys.modules["psutil"] = None
    import synthex_fast.compat.cachebox
    """
    done = run_python(script)
    assert done.returncode == 0, done.stderr
