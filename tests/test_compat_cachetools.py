"""`synthex_fast.compat.cachetools` behaves as cachetools does: its own tests, and a comparison with it step by step."""

import copy
import gc
import operator
import os
import pickle
import random
import subprocess
import sys
import tarfile
import weakref

import pytest
from support import ROOT, run_python

from synthex_fast.compat import cachetools as ours
from synthex_fast.compat.cachetools import func, keys

try:
    import cachetools as theirs
except ModuleNotFoundError:
    theirs = None

needs_theirs = pytest.mark.skipif(
    theirs is None or int(theirs.__version__.split(".")[0]) < 8, reason="not installed: cachetools 8"
)

KINDS = ["Cache", "FIFOCache", "LFUCache", "LRUCache", "RRCache", "TLRUCache", "TTLCache"]


class Clock:
    """An integer clock that tests set."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


def make(package, kind, maxsize, clock=None, getsizeof=None):
    """A cache of that package; at random, the first key goes. A value's size is at the end of its name."""
    cls = getattr(package, kind)
    if kind == "TTLCache":
        return cls(maxsize, 5, clock or Clock(), getsizeof)
    if kind == "TLRUCache":
        return cls(maxsize, lambda key, value, time: time + value % 7, clock or Clock(), getsizeof)
    if kind == "RRCache":
        return cls(maxsize, min, getsizeof)
    return cls(maxsize, getsizeof)


# --- their own tests ---

SHIM = """
import sys
from synthex_fast.compat import cachetools
import synthex_fast.compat.cachetools.func
for name in ("", ".keys", ".func"):
    sys.modules["cachetools" + name] = sys.modules["synthex_fast.compat.cachetools" + name]
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", "pytest.ini", "tests"]))
"""


def sources(folder):
    """The newest source distribution of cachetools, downloaded once and kept with pytest's cache."""
    kept = sorted(folder.glob("cachetools-*.tar.gz"))
    if not kept:
        fetched = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"),
                *("--disable-pip-version-check", "--retries", "1", "--timeout", "20"),
                *("-d", str(folder), "cachetools"),
            ],
            capture_output=True,
            text=True,
        )
        kept = sorted(folder.glob("cachetools-*.tar.gz"))
        if not kept:
            pytest.skip(f"cachetools' sources can't be downloaded: {fetched.stderr.strip()[-200:]}")
    return kept[-1]


@pytest.mark.slow
def test_their_own_tests_pass(request, tmp_path):
    cache = getattr(request.config, "cache", None)
    kept = tmp_path / "kept" if cache is None else cache.mkdir("cachetools")
    with tarfile.open(sources(kept)) as archive:
        archive.extractall(tmp_path / "sources", filter="data")
    (folder,) = (tmp_path / "sources").iterdir()
    # Theirs is not among what can be imported.
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-c", SHIM],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.rpartition("\n")[0].rpartition("\n")[2].split()[0]) > 400, done.stdout


# --- the same as theirs, step by step ---


def state(cache):
    # Sizes and keys as they are, without asking for what would expire something.
    return list(cache), len(cache), cache.currsize, list(cache.items()), repr(cache).partition("(")[2]


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except (KeyError, ValueError) as error:
        return type(error)


@needs_theirs
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_random_operations_have_the_same_effect(kind, sized):
    for seed in range(40):
        draw = random.Random(seed)
        clocks = Clock(), Clock()
        size = abs if sized else None
        pair = [
            make(package, kind, 20 if sized else 6, clock, size)
            for package, clock in zip((ours, theirs), clocks, strict=True)
        ]
        for _ in range(300):
            key, value = (
                draw.randrange(12),
                draw.randrange(-1, 9) if draw.random() < 0.1 else draw.randrange(9),
            )
            if sized and draw.random() < 0.05:
                value = 25
            operation = draw.choice(
                [
                    *[("setitem",)] * 4,
                    *[("getitem",)] * 4,
                    *[("get",)] * 2,
                    *[("tick",)] * 2,
                    *(
                        "contains",
                        "delitem",
                        "pop",
                        "popitem",
                        "setdefault",
                        "expire",
                        "clear",
                        "copy",
                        "pickle",
                    ),
                ]
            )
            name = operation if isinstance(operation, str) else operation[0]
            if name == "clear" and draw.random() < 0.8:
                continue
            answers = []
            for n, cache in enumerate(pair):
                if name == "setitem":
                    answer = attempt(operator.setitem, cache, key, value)
                elif name == "getitem":
                    answer = attempt(operator.getitem, cache, key)
                elif name == "delitem":
                    answer = attempt(operator.delitem, cache, key)
                elif name == "contains":
                    answer = key in cache
                elif name == "tick":
                    clocks[n].now += 1
                    answer = None
                elif name == "expire":
                    answer = attempt(cache.expire) if hasattr(cache, "expire") else None
                elif name == "copy":
                    if kind == "RRCache":
                        continue
                    pair[n] = copy.copy(cache)
                    answer = None
                elif name == "pickle":
                    if kind == "TLRUCache":
                        continue
                    if kind == "TTLCache":
                        # Their entries keep the order of their insertion only approximately.
                        continue
                    pair[n] = pickle.loads(pickle.dumps(cache))
                    answer = None
                elif name == "popitem":
                    answer = attempt(cache.popitem)
                elif name == "clear":
                    answer = cache.clear()
                else:
                    answer = attempt(getattr(cache, name), key, *([value] if name == "setdefault" else []))
                answers.append(answer)
            assert answers == [] or answers[0] == answers[1], (seed, name, key, value)
            assert state(pair[0]) == state(pair[1]), (seed, name, key, value)


@needs_theirs
def test_the_names_are_the_same():
    assert set(ours.__all__) == set(theirs.__all__)
    import cachetools.func
    import cachetools.keys

    assert set(keys.__all__) == set(cachetools.keys.__all__)
    assert set(func.__all__) == set(cachetools.func.__all__)
    for kind in KINDS:
        public = {name for name in dir(getattr(theirs, kind)) if not name.startswith("_")}
        assert public <= set(dir(getattr(ours, kind))), kind


# --- what is special here ---


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_and_copies(kind):
    cache = make(ours, kind, 10, getsizeof=None)
    for n in range(5):
        cache[n] = n + 1
    cache.note = [1]
    shallow = copy.copy(cache)
    assert shallow == cache and shallow.note is cache.note and shallow.maxsize == 10
    shallow[9] = 6
    assert 9 not in cache
    if kind != "TLRUCache":
        again = pickle.loads(pickle.dumps(cache))
        assert list(again.items()) == list(cache.items()) and again.note == [1]
        deep = copy.deepcopy(cache)
        assert deep == cache and deep.note is not cache.note
    with pytest.raises(TypeError, match="unhashable"):
        hash(cache)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subclass_hears_of_what_is_evicted(kind):
    heard = []

    class Heard(getattr(ours, kind)):
        def popitem(self):
            pair = super().popitem()
            heard.append(pair)
            return pair

    arguments = {"TTLCache": (100,), "TLRUCache": (lambda key, value, time: time + 100,)}.get(kind, ())
    cache = Heard(2, *arguments)
    for n in range(5):
        cache[n] = n
    assert len(heard) == 3 and len(cache) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_collected_and_weakly_referenced(kind):
    cache = make(ours, kind, 10)
    cache[1] = 1
    cache.loop = cache
    cache.clear()
    seen = weakref.ref(cache)
    del cache
    gc.collect()
    assert seen() is None

    class Value(int):
        pass

    cache = make(ours, kind, 10)
    value = Value(1)
    value.cache = cache
    cache[1] = value
    cache[2] = 3
    seen = weakref.ref(cache)
    del cache, value
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_may_use_the_cache_while_it_is_dropped(kind):
    class Value(int):
        def __del__(self):
            cache.get(1)
            cache[int(self) + 100] = 1
            cache.pop(int(self) + 100, None)
            len(cache)

    for _ in range(3):
        cache = make(ours, kind, 4)
        for n in range(20):
            cache[n % 7] = Value(n % 6 + 1)
            cache.get(n % 5)
        cache.clear()
        cache[1] = 2
        assert list(cache) == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_keys(kind):
    draw = random.Random(1)

    class Key:
        def __init__(self, n):
            self.n = n

        def __hash__(self):
            return self.n % 3

        def __eq__(self, other):
            chance = draw.random()
            if chance < 0.05:
                raise ZeroDivisionError
            if chance < 0.1:
                cache.clear()
            elif chance < 0.2:
                cache.pop(Key(draw.randrange(9)), None)
            elif chance < 0.3:
                cache[Key(draw.randrange(9))] = 3
            return self.n == other.n

        def __lt__(self, other):
            return self.n < other.n

    cache = make(ours, kind, 5)
    for n in range(3000):
        try:
            match n % 5:
                case 0 | 1:
                    cache[Key(draw.randrange(9))] = n % 6 + 1
                case 2:
                    cache.get(Key(draw.randrange(9)))
                case 3:
                    cache.pop(Key(draw.randrange(9)), None)
                case _:
                    list(cache)
        except (ZeroDivisionError, KeyError, RuntimeError, RecursionError, IndexError):
            pass
    cache.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_allocations_may_fail(kind, fail_allocations):
    def prepare():
        cache = make(ours, kind, 4)
        for n in range(4):
            cache[n] = n + 1
        return cache

    def use(cache):
        cache[1] = 5
        cache[9] = 3
        cache.get(9)
        cache.pop(2, None)
        list(cache)

    def check(cache):
        assert cache.currsize == len(cache) == len(list(cache)) <= 4
        cache[11] = 2
        assert cache[11] == 2

    fail_allocations(use, prepare=prepare, check=check)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_without_a_lock_lose_entries_at_most(kind, hammer):
    cache = make(ours, kind, 20)

    def use(index):
        draw = random.Random(index)
        for _ in range(20):
            key = draw.randrange(40)
            try:
                match draw.randrange(8):
                    case 0 | 1 | 2:
                        cache[key] = key % 6 + 1
                    case 3 | 4:
                        assert cache.get(key) in (None, key % 6 + 1)
                    case 5:
                        cache.pop(key, None)
                    case 6:
                        len(cache)
                    case _:
                        copy.copy(cache)
            except (KeyError, RuntimeError, IndexError):
                # As with a dict that changes while it is used.
                pass

    hammer(4, use, iterations=50)
    cache.clear()
    cache[1] = 1
    assert list(cache) == [1]


def test_nothing_leaks(leaks_nothing):
    def scenario():
        for kind in KINDS:
            cache = make(ours, kind, 4)
            for n in range(10):
                cache[n] = [n] if kind in ("Cache", "LRUCache", "FIFOCache", "LFUCache") else n % 6 + 1
                cache.get(n - 1)
            cache.pop(9, None)
            copy.copy(cache)

        @ours.cached(ours.LRUCache(3), info=True)
        def square(n):
            return n * n

        [square(n) for n in range(5)]

    leaks_nothing(scenario)


def test_the_decorators_take_any_mapping():
    from synthex_fast import TTLDict

    calls = []

    @ours.cached(TTLDict(10), info=True)
    def square(n):
        calls.append(n)
        return n * n

    assert (square(2), square(2), square.cache_info()) == (4, 4, (1, 1, None, 1))
    assert calls == [2]


def test_it_needs_neither_cachetools_nor_numpy():
    script = """
    import sys
    sys.modules["cachetools"] = sys.modules["numpy"] = sys.modules["psutil"] = None
    import synthex_fast.compat.cachetools.func
    """
    done = run_python(script)
    assert done.returncode == 0, done.stderr
