"""Byte accounting against tracemalloc, against a plain model, and against values that misbehave."""

import array
import collections
import dataclasses
import enum
import gc
import io
import json
import logging
import mmap
import random
import string
import sys
import threading
import tracemalloc
import types
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FREE_THREADED, run

import synthex_fast
from synthex_fast import _sizeof, errors
from synthex_fast._sizeof import sizeof, sizeof_pair

LIST_HEADER = 8 if FREE_THREADED else 0  # list.__sizeof__ leaves it out there
UNLIMITED = sys.maxsize
# The interpreter makes each of these once.
SMALL_INTS = range(-5, 1025 if sys.version_info >= (3, 15) else 257)


def fresh(text):
    """The same text as a new object that nobody else refers to."""
    return "".join(list(text))


def words(seed):
    source = random.Random(seed)
    return lambda length: "".join(source.choices(string.ascii_lowercase, k=length))


# --- against tracemalloc ---


def as_json(items):
    source, word = random.Random(items), words(items)
    return json.dumps(
        {
            "id": word(36),
            "items": [
                {
                    "name": word(12),
                    "score": source.random(),
                    "tokens": source.randrange(10**6),
                    "time": source.randrange(10**12),
                    "tags": [word(6) for _ in range(3)],
                    "ok": True,
                    "text": word(80),
                    "note": "é" + word(20),
                    "error": None,
                }
                for _ in range(items)
            ],
            "vector": [source.random() for _ in range(items * 8)],
        }
    )


class Instance:
    def __init__(self, i):
        self.name = fresh(f"instance {i}")
        self.score = i * 1.5
        self.parts = [i + 1000, i + 2000]


class Slotted:
    __slots__ = ("name", "score")

    def __init__(self, i):
        self.name = fresh(f"instance {i}")
        self.score = i * 1.5


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y


Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Data:
    name: str
    score: float
    nested: dict


def with_dict_shown(i):
    instance = Instance(i)
    assert vars(instance)
    return instance


def by_code(i):
    return {
        "id": fresh(f"answer {i}"),
        "confidence": i + 0.5,
        "metadata": {"model": fresh(f"model {i}"), "tokens": i + 3000, "latency": i * 1.5 + 0.1},
        "pair": (i + 0.25, i + 0.75),
        "seen": {i + 1000, i + 2000},
        "frozen": frozenset([i + 5000.5]),
    }


def response(i):
    content, reasoning = fresh(f"content {i} " * 20), fresh(f"reasoning {i} " * 5)
    query, expert = fresh(f"query {i}"), fresh(f"expert {i}")
    made = synthex_fast.PooledExpertResponse(query, expert, content, 0.5, reasoning)
    if hasattr(made, "metadata"):
        made.metadata = by_code(i)
    return made


SMALL, MIDDLE, LARGE = as_json(3), as_json(12), as_json(100)

REALISTIC = {
    "json of 1.5 KB": lambda i: json.loads(SMALL),
    "json of 6 KB": lambda i: json.loads(MIDDLE),
    "json of 46 KB": lambda i: json.loads(LARGE),
    "dicts with literal keys": by_code,
    "floats": lambda i: [i + j * 0.5 for j in range(500)],
    "nested floats": lambda i: [[i + j * 0.5 for j in range(5)] for _ in range(50)],
    "integers as keys": lambda i: {i + 1000 + j: float(j) for j in range(50)},
    "a list of instances": lambda i: [Instance(i + j) for j in range(30)],
    "instances whose __dict__ was asked for": lambda i: [with_dict_shown(i + j) for j in range(30)],
    "instances with little in them": lambda i: [Point(1, 2) for _ in range(30)],
    "named tuples": lambda i: [Pair(1, 2) for _ in range(30)],
    "short lists": lambda i: [[None] for _ in range(30)],
    "slots": lambda i: [Slotted(i + j) for j in range(30)],
    "dataclass": lambda i: Data(fresh(f"data {i}"), i + 0.5, by_code(i)),
    "deque": lambda i: collections.deque(fresh(f"entry {i + j}") for j in range(100)),
    "ordered dict": lambda i: collections.OrderedDict((fresh(f"key {j}"), i + j + 0.5) for j in range(50)),
    "default dict": lambda i: collections.defaultdict(list, {fresh(f"key {j}"): [i + 0.5] for j in range(9)}),
    "a set of text": lambda i: {fresh(f"key {i + j}") for j in range(50)},
    "bytes": lambda i: [bytes([i % 256]) * 100, bytearray(200), memoryview(bytes(1000))],
    "array": lambda i: array.array("d", bytes(8 * 200)),
    "text beyond ASCII": lambda i: [fresh(f"é {i}" * 20), fresh(f"Ω {i}" * 20), fresh(f"𝛀 {i}" * 20)],
    "large integers": lambda i: [int(f"{i}{'7' * 60}"), -int(f"{i}{'7' * 25}"), int(f"{i}{'7' * 9}")],
}


def allocated(make, times):
    """Bytes that tracemalloc saw for each value, and the values. Many, so that the freelists don't matter."""
    values = [None] * times
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(times):
            values[i] = make(i + 1000)
        return (tracemalloc.get_traced_memory()[0] - before) / times, values
    finally:
        tracemalloc.stop()
        gc.enable()


def check_against_tracemalloc(make):
    kept = [make(i) for i in range(100)]  # types are known, shared keys settled, freelists drained
    nbytes, values = allocated(make, 200)
    assert sum(map(sizeof, values)) / len(values) == pytest.approx(nbytes, rel=0.05)
    assert kept


@pytest.mark.parametrize("make", REALISTIC.values(), ids=REALISTIC.keys())
@pytest.mark.slow
def test_account_is_within_5_percent_of_tracemalloc(make):
    check_against_tracemalloc(make)


def test_account_of_pooled_records_is_within_5_percent_of_tracemalloc():
    # Records that wait on the freelist, from earlier tests maybe, would not be allocated anew.
    waiting = synthex_fast.PooledExpertResponse.stats()["pool_size"]
    kept = [synthex_fast.PooledExpertResponse("q", "e") for _ in range(waiting)]
    check_against_tracemalloc(response)
    assert len(kept) == waiting


@pytest.mark.parametrize("make", [lambda i, n=n: as_numpy(n) for n in (10, 1000)], ids=["small", "large"])
def test_account_of_numpy_arrays_is_within_5_percent_of_tracemalloc(make):
    pytest.importorskip("numpy")
    check_against_tracemalloc(make)


def as_numpy(n):
    import numpy

    return numpy.zeros(n)


def test_interned_text_counts_where_nothing_else_refers_to_it():
    # Before 3.12, and as mortal interned text after it, such text dies with the value; immortal text stays.
    texts = [fresh(f"interned only here {i}") for i in range(50)]
    value = [sys.intern(text) for text in texts]
    del texts
    expected = sizeof([None for _ in range(50)])
    lone = sizeof(value) - expected
    keep = list(value)
    assert sizeof(value) == expected  # somebody else's as well: the process's
    assert keep
    mortal = sum(map(sys.getsizeof, keep))
    assert lone == mortal if sys.version_info < (3, 12) else lone in (0, mortal)


# --- against a plain model ---


def model(value):
    """The account in plain Python, for the exact types that the strategies below make."""
    seen, total, waiting = set(), 0, [value]
    while waiting:
        o = waiting.pop()
        if o is None or isinstance(o, bool) or id(o) in seen:
            continue
        seen.add(id(o))
        if isinstance(o, int):
            total += 0 if o in SMALL_INTS else max(sys.getsizeof(o), int.__basicsize__ + 8)
        elif isinstance(o, str):
            total += 0 if o == "" or (len(o) == 1 and ord(o) < 256) else sys.getsizeof(o)
        elif isinstance(o, bytes):
            total += 0 if len(o) < 2 else sys.getsizeof(o)
        elif isinstance(o, tuple) and not o:
            continue
        else:
            total += sys.getsizeof(o)
            if isinstance(o, list) and o:
                total += LIST_HEADER
        if isinstance(o, dict):
            waiting += [*o.keys(), *o.values()]
        elif isinstance(o, (list, tuple, set, frozenset)):
            waiting += o
    return total


def unshare_text(text):
    return fresh(text) if len(text) > 1 else text


keys = st.one_of(
    st.text(max_size=8).map(unshare_text),
    st.integers(-(10**20), 10**20),
    st.tuples(st.integers(1000, 10**6), st.floats(allow_nan=False)),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=20).map(unshare_text),
    st.binary(max_size=20),
    st.binary(max_size=20).map(bytearray),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(inner, max_size=6).map(tuple),
        st.dictionaries(keys, inner, max_size=6),
        st.sets(keys, max_size=6),
        st.frozensets(keys, max_size=6),
        st.tuples(inner, inner).map(lambda pair: [pair[0], pair[1], pair[0], [pair[1]]]),
    ),
    max_leaves=40,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_account_equals_the_plain_model(value):
    value = [value]
    if not FREE_THREADED:  # where parts of what was drawn may have become immortal
        assert sizeof(value) == model(value)
    assert sizeof(value, budget=1) >= 0


@settings(max_examples=50, deadline=None)
@given(keys, values)
def test_pair_counts_what_both_hold_once(key, value):
    nbytes, estimated = sizeof_pair(key, [value, key])
    assert not estimated
    if not FREE_THREADED:
        assert nbytes == model([key, [value, key]]) - model([None, None])


# --- sharing and cycles ---


def test_shared_parts_count_once():
    text = fresh("shared by all of them")
    part = [text, 1000.5]
    slot = 8
    assert sizeof([part, part, part]) == sizeof([None] * 3) + sizeof(part)
    assert sizeof({"a": text, "b": [text]}) == sizeof({"a": None, "b": None}) + sizeof(text) + sizeof([None])
    assert sizeof([text] * 1000) == sizeof([None] * 1000) + sizeof(text)
    assert sizeof([text] * 1000) - sizeof([text] * 999) == slot
    first, second = Instance(1), Instance(2)
    first.other = second.other = part
    both = sizeof(first) + sizeof(second) - sizeof(part)
    assert sizeof([first, second]) == sizeof([None, None]) + both


def test_a_number_shared_by_a_list_counts_once():
    number = float("1000.5")
    assert sizeof([number] * 10) == sizeof([None] * 10) + sizeof(number)


@pytest.mark.parametrize("show", [lambda o: vars(o), lambda o: None], ids=["dict asked for", "dict not made"])
def test_instance_and_its_dict_share_what_they_hold(show):
    instance = Instance(5)
    show(instance)
    alone = sizeof(instance)
    assert alone > sizeof(instance.name) + sizeof(instance.parts)
    shown = vars(instance)
    with_dict = sizeof(instance)
    assert with_dict >= alone
    assert sizeof([instance, shown]) == sizeof([shown, instance]) == pytest.approx(with_dict + 72, abs=24)


def test_an_instance_without_a_dict_gets_none_by_being_counted():
    instance = Instance(5)
    before = gc.get_referents(instance)
    sizeof(instance)
    assert len(gc.get_referents(instance)) == len(before)
    assert not any(isinstance(o, dict) for o in gc.get_referents(instance))


def test_cycles_end():
    loop = []
    loop.append(loop)
    assert sizeof(loop) == sizeof([None]) + sys.getsizeof(loop) - sys.getsizeof([None])
    first, second = Instance(1), Instance(2)
    first.other, second.other = second, first
    assert sizeof(first) == sizeof(second)
    mapping = {}
    mapping["self"] = mapping
    mapping["inside"] = (mapping, [mapping])
    assert 0 < sizeof(mapping) < 1000
    assert sizeof_pair(("k",), mapping)[1] is False


def test_the_same_object_as_key_and_value_counts_once():
    text = fresh("key and value")
    assert sizeof_pair(text, text) == (sizeof(text), False)
    both = (fresh("part"), 1000.5)
    assert sizeof_pair(both, both) == (sizeof(both), False)
    assert sizeof_pair(both, both[0])[0] == sizeof(both)
    assert sizeof_pair(both[0], both)[0] == sizeof(both)
    assert sizeof_pair(both[0], [both])[0] == sizeof([both])


# --- what belongs to the process ---


class Colour(enum.Enum):
    RED = "a value long enough to be seen in the account"


def function():
    return None


@pytest.mark.parametrize(
    "thing",
    [
        None,
        True,
        ...,
        NotImplemented,
        0,
        -5,
        256,
        "",
        "a",
        "é",
        b"",
        b"x",
        (),
        int,
        Instance,
        sys,
        function,
        function.__code__,
        len,
        str.join,
        vars(Slotted)["name"],
        Colour.RED,
        logging.getLogger("synthex_fast.tests"),
        logging.NullHandler(),
        threading.current_thread(),
    ],
    ids=repr,
)
def test_what_belongs_to_the_process_counts_nothing(thing):
    assert sizeof(thing) == 0
    assert sizeof([thing]) == sizeof([None])


def test_literal_keys_count_nothing():
    assert sizeof({"model": None}) == sizeof({"tokens": None}) == sys.getsizeof({"model": None})


def test_what_refers_to_a_value_without_holding_it_is_not_entered():
    instance = Instance(1)
    assert sizeof(weakref.ref(instance)) == sys.getsizeof(weakref.ref(instance))
    assert sizeof(instance.__init__) < 100
    assert sizeof(weakref.proxy(instance)) < 100

    def generator(value):
        yield value

    large = ["x"] * 10_000
    assert sizeof(generator(large)) < 1000


# --- instances ---


class Plain(list):
    pass


class Mapping(dict):
    pass


class Text(str):
    pass


def test_subclasses_of_containers_count_contents_and_attributes():
    keyed = Mapping({fresh("key"): fresh("text")})
    for made, empty in ((Plain([fresh("some text"), 1000.5]), Plain()), (keyed, Mapping())):
        made.note = fresh("an attribute of its own")
        contents = [*made.keys(), *made.values()] if isinstance(made, dict) else list(made)
        assert sizeof(made) > sizeof(empty) + sum(map(sizeof, contents)) + sizeof(made.note)
    text = Text("x" * 100)
    text.note = fresh("another attribute")
    assert sizeof(text) > sizeof(text.note) + 100


def test_values_of_dict_subclasses_count_once():
    class Slotless(dict):
        __slots__ = ()

    made = Slotless({fresh("key"): fresh("text"), fresh("other key"): [1000.5]})
    inside = sum(map(sizeof, [*made.keys(), *made.values()]))
    assert sizeof(made) == sys.getsizeof(made) + inside
    assert sizeof([made, made]) == sizeof([None, None]) + sizeof(made)


def test_text_counts_its_cached_encoding():
    import unicodedata

    text = fresh("é" * 1000)
    before = sys.getsizeof(text)
    with pytest.raises(KeyError):
        unicodedata.lookup(text)  # keeps the text as UTF-8, as many functions written in C do
    assert sizeof(text) == sys.getsizeof(text) > before + 1000


def test_a_changed_sizeof_is_noticed():
    class Changing:
        pass

    made = Changing()
    before = sizeof(made)
    Changing.__sizeof__ = lambda self: 10_000
    assert sizeof(made) >= 10_000
    Changing.__sizeof__ = lambda self: 20_000
    assert sizeof(made) >= 20_000
    del Changing.__sizeof__
    assert sizeof(made) == before


def test_types_that_come_and_go_are_told_apart():
    for i in range(300):
        shape = type("Shape", (), {"__slots__": tuple(f"s{j}" for j in range(i % 7))})
        made = shape()
        assert sizeof(made) == sys.getsizeof(made)


def test_own_sizeof_counts_along_with_what_is_held():
    class Own:
        def __init__(self):
            self.text = fresh("x" * 500)

        def __sizeof__(self):
            return 5_000_000_000

    assert 5_000_000_500 < sizeof([Own()]) < 5_000_001_000


def test_simple_namespace_exception_and_partial_are_entered():
    text = fresh("x" * 1000)
    assert sizeof(types.SimpleNamespace(text=text)) > sizeof(text)
    assert sizeof(ValueError(text)) > sizeof(text)


# --- numpy ---


def test_numpy_views_count_the_memory_they_keep_alive_once():
    numpy = pytest.importorskip("numpy")
    owner = numpy.arange(1000.0)
    assert sizeof(owner) == pytest.approx(owner.nbytes, abs=200)
    assert sizeof(owner[:10]) == pytest.approx(owner.nbytes, abs=400)
    assert sizeof([owner, owner[:10], owner[10:]]) == pytest.approx(owner.nbytes, abs=700)
    assert sizeof(numpy.arange(1000.0).reshape(10, 100)) == pytest.approx(8000, abs=400)
    assert sizeof(numpy.frombuffer(bytes(1000))) == pytest.approx(1000, abs=200)
    assert sizeof(numpy.frombuffer(memoryview(bytearray(1000)))) == pytest.approx(1000, abs=300)
    assert sizeof(numpy.float64(1.5)) < 100


def test_numpy_arrays_of_objects_count_the_objects():
    numpy = pytest.importorskip("numpy")
    text = fresh("x" * 1000)
    inner = {"key": fresh("y" * 1000)}
    made = numpy.array([text, inner, text, None], dtype=object)
    assert sizeof(made) == pytest.approx(made.nbytes + sizeof(text) + sizeof(inner), abs=200)
    assert sizeof_pair("k", numpy.empty(100, dtype=object)) == (sizeof(numpy.empty(100, dtype=object)), False)
    made[0] = made
    assert sizeof(made) > 0


def test_numpy_subclass_and_foreign_memory():
    numpy = pytest.importorskip("numpy")
    import mmap

    masked = numpy.ma.masked_array(numpy.arange(1000.0), mask=[0] * 1000)
    assert sizeof(masked) > 9000
    with mmap.mmap(-1, 8192) as mapped:
        seen = numpy.frombuffer(mapped, dtype="u1")
        assert sizeof(seen) == sizeof(mapped) + sizeof(numpy.empty(0))
        del seen


def test_import_leaves_numpy_alone():
    code = "import sys; from synthex_fast._sizeof import sizeof; sizeof([1.5]); print('numpy' in sys.modules)"
    assert run(code) == "False\n"


# --- depth ---


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {"inner": inner},
        lambda inner: {(float("1000.5"),): inner},
        lambda inner: collections.deque([inner]),
    ],
    ids=["list", "tuple", "dict", "dict with tuple keys", "deque"],
)
def test_nesting_100_000_deep_neither_crashes_nor_is_cut(wrap):
    value = None
    for _ in range(100_000):
        value = wrap(value)
    assert sizeof(value, budget=UNLIMITED) == 100_000 * sizeof(wrap(None))
    assert sizeof(value) > 0
    while value:  # by hand: not every type unwinds a deep value without the C stack
        value = (
            value.pop()
            if hasattr(value, "pop") and not isinstance(value, dict)
            else next(iter(value.values() if isinstance(value, dict) else value))
        )


# --- budget ---


class Counting:
    asked = 0

    def __sizeof__(self):
        Counting.asked += 1
        return 100


@pytest.mark.parametrize("size", [100, 1000, 100_000])
@pytest.mark.parametrize(
    "shape", [list, tuple, set, collections.deque, lambda them: dict(zip(them, them, strict=True))], ids=str
)
def test_budget_bounds_the_objects_looked_at(shape, size):
    value = shape([Counting() for _ in range(size)])
    Counting.asked = 0
    nbytes = sizeof([value, [Counting()] * 3], budget=1000)
    assert Counting.asked <= 1251
    assert nbytes == pytest.approx(sizeof([value, [None]], budget=UNLIMITED), rel=0.05)


def test_up_to_the_budget_nothing_is_estimated():
    value = [[float(i), float(i + 1)] for i in range(100)]  # 300 objects beside the outer list
    exact = sizeof(value, budget=UNLIMITED)
    assert sizeof_pair(None, value, budget=300) == (exact, False)
    nbytes, estimated = sizeof_pair(None, value, budget=299)
    assert estimated
    assert nbytes == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [[float(j) for j in range(100)] for i in range(2000)],
        lambda: {fresh(f"key {i}"): {"a": i + 1000.5, "b": [i + 0.5]} for i in range(50_000)},
        lambda: [Instance(i) for i in range(40_000)],
        lambda: collections.deque({"score": i + 0.5} for i in range(50_000)),
        lambda: {fresh(f"key {i}") for i in range(100_000)},
        lambda: {"rows": [[float(i)] for i in range(100_000)], "note": fresh("x" * 100_000), "more": [1.5]},
        lambda: [fresh("x" * 1_000_000), [float(i) for i in range(100_000)]],
        lambda: [[[float(i) for i in range(100_000)] for _ in range(2)], fresh("x" * 10_000_000)],
        lambda: Plain([i + 0.5] for i in range(50_000)),
    ],
    ids=[
        "lists",
        "dicts",
        "instances",
        "deque",
        "set",
        "siblings",
        "text before",
        "text after two",
        "subclass",
    ],
)
def test_estimates_come_near(make):
    value = make()
    nbytes, estimated = sizeof_pair(None, value)
    assert estimated
    assert nbytes == pytest.approx(sizeof(value, budget=UNLIMITED), rel=0.1)


def test_budget_bounds_what_is_held_and_what_is_skipped():
    waiting = collections.deque([] for _ in range(100_000))
    emptied = set(range(100_000))
    for i in range(99_999):
        emptied.discard(i)
    tracemalloc.start()
    try:
        assert sizeof_pair(None, waiting, budget=100)[1]
        assert sizeof_pair(None, emptied, budget=100)[1]
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_budget_must_be_a_positive_integer():
    for bad in (0, -1, -(2**70), 2**70, 10**400):
        with pytest.raises(errors.ArgumentValueError, match="budget must be an integer from 1 to"):
            sizeof([], budget=bad)
    for bad in (1.5, "1", None, True, float("nan"), float("inf"), []):
        with pytest.raises(errors.ArgumentTypeError, match="budget must be an integer"):
            sizeof([], budget=bad)
    assert sizeof([1.5], budget=sys.maxsize) == sizeof([1.5], budget=2**40) == sizeof([1.5])


# --- memory that neither __sizeof__ nor a traversal shows, and what both show ---


def test_string_io_counts_its_text():
    text = io.StringIO()
    text.write("x" * 1_000_000)
    assert sizeof(text) == pytest.approx(1_000_000, rel=0.05)
    text.seek(0)
    text.read(1)
    # From now on it keeps four bytes a character.
    assert sizeof(text) == pytest.approx(4_000_000, rel=0.05)
    text.close()
    assert sizeof(text) < 1000


def test_bytes_io_and_array_count_their_buffers():
    binary = io.BytesIO()
    binary.write(bytes(1_000_000))
    assert sizeof(binary) == pytest.approx(binary.__sizeof__(), rel=0.05)
    assert sizeof(binary) >= 1_000_000
    assert sizeof(array.array("d", [0.0]) * 100_000) == pytest.approx(800_000, rel=0.05)


def test_an_anonymous_map_counts_its_length():
    mapped = mmap.mmap(-1, 1 << 20)
    assert sizeof(mapped) == pytest.approx(1 << 20, rel=0.05)
    mapped.close()
    assert sizeof(mapped) < 1000


def test_a_sizeof_that_counts_what_it_refers_to_is_not_added_to_it():
    class Deep:
        def __init__(self):
            self.data = [bytearray(10_000) for _ in range(10)]

        def __sizeof__(self):
            return object.__sizeof__(self) + sizeof(self.data)

    assert sizeof(Deep()) == pytest.approx(sizeof(Deep().data), rel=0.05)


def test_a_sizeof_that_counts_only_the_object_is_added_to_what_it_refers_to():
    class Shallow:
        def __init__(self):
            self.data = bytearray(10_000)

        def __sizeof__(self):
            return object.__sizeof__(self) + 1000

    assert sizeof(Shallow()) == pytest.approx(11_000, rel=0.05)


def test_a_mapped_array_counts_its_file_once(tmp_path):
    numpy = pytest.importorskip("numpy")
    mapped = numpy.memmap(tmp_path / "mapped", dtype="u1", mode="w+", shape=(1_000_000,))
    assert sizeof(mapped) == pytest.approx(1_000_000, rel=0.05)
    # A slice keeps all of it alive.
    part = mapped[:10]
    assert sizeof(part) == pytest.approx(1_000_000, rel=0.05)
    assert sizeof([mapped, part]) == pytest.approx(1_000_000, rel=0.05)


def test_pandas_frames_and_indexes_count_once():
    pandas = pytest.importorskip("pandas")
    numpy = pytest.importorskip("numpy")
    frame = pandas.DataFrame({"a": numpy.arange(125_000), "b": numpy.arange(125_000.0)})
    assert sizeof(frame) == pytest.approx(2_000_000, rel=0.05)
    index = pandas.Index(numpy.arange(125_000))
    assert sizeof(index) == pytest.approx(1_000_000, rel=0.05)
    assert sizeof(pandas.Series(numpy.arange(125_000.0), index=index)) == pytest.approx(2_000_000, rel=0.05)
    frames = [pandas.DataFrame({"a": numpy.arange(125_000)}, index=index) for _ in range(2)]
    assert sizeof(frames) == pytest.approx(3_000_000, rel=0.05)
    texts = pandas.Series([f"text {n}" for n in range(10_000)], dtype=object)
    assert sizeof(texts) == pytest.approx(texts.memory_usage(deep=True), rel=0.05)


def test_pyarrow_arrays_tables_and_buffers_count_once():
    pyarrow = pytest.importorskip("pyarrow")
    values = pyarrow.array(range(125_000))
    assert sizeof(values) == pytest.approx(1_000_000, rel=0.05)
    table = pyarrow.table({"a": values})
    assert sizeof(table) == pytest.approx(1_000_000, rel=0.05)
    assert sizeof(table["a"]) == pytest.approx(1_000_000, rel=0.05)
    assert sizeof(pyarrow.allocate_buffer(1_000_000)) == pytest.approx(1_000_000, rel=0.05)


# --- hostile values ---


@pytest.mark.parametrize("name", ["_io.StringIO", "mmap.mmap", "pyarrow.lib.Buffer", "collections.deque"])
def test_a_python_class_named_like_one_made_in_c_is_measured_as_any_other(name):
    named = type(name, (), {"__slots__": ()})
    other = type("Other", (), {"__slots__": ()})
    assert sizeof([named(), named()]) == sizeof([other(), other()])


def test_the_methods_of_a_subclass_of_mmap_are_not_called():
    class Mapped(mmap.mmap):
        def __len__(self):
            raise KeyError("its own complaint")

    assert sizeof(Mapped(-1, 1_000_000)) == pytest.approx(1_000_000, rel=0.05)


def test_what_a_sizeof_raises_passes_through():
    class Raising:
        def __sizeof__(self):
            raise KeyError("its own complaint")

    shared = fresh("kept by the test")
    before = sys.getrefcount(shared)
    for _ in range(10):
        with pytest.raises(KeyError, match="its own complaint"):
            sizeof([[shared], {"a": [shared, (shared, Raising())]}])
    assert sys.getrefcount(shared) == before


@pytest.mark.parametrize("bad", [-1, -(2**80), 2**63, 2**100])
def test_impossible_sizes_are_refused(bad):
    class Liar:
        def __sizeof__(self):
            return bad

    with pytest.raises(errors.ArgumentValueError, match=r"Liar\.__sizeof__\(\) must be a number of bytes"):
        sizeof([Liar()])


@pytest.mark.parametrize("bad", [None, 1.5, "100"])
def test_sizes_that_are_no_integers_are_refused(bad):
    class Liar:
        def __sizeof__(self):
            return bad

    with pytest.raises(errors.ArgumentTypeError, match=r"Liar\.__sizeof__\(\) must be an integer"):
        sizeof({"a": Liar()})


def test_huge_sizes_saturate():
    class Huge:
        def __sizeof__(self):
            return 2**63 - 1

    top = sizeof([Huge(), "x" * 100, Huge()])
    assert 2**62 < top < 2**63
    assert 2**62 < sizeof([Huge() for _ in range(5000)], budget=10) < 2**63


class Hostile:
    """Does to its surroundings, while it is asked for its size, what the test says."""

    def __init__(self, act):
        self.act = act

    def __sizeof__(self):
        self.act()
        return 100


@pytest.mark.parametrize("kind", ["list", "dict", "set", "deque", "instance", "namespace"])
@pytest.mark.parametrize("how", ["clear", "grow", "drop"])
@pytest.mark.stress
def test_containers_changed_under_the_walk_are_safe(kind, how):
    for position in range(4):
        holder = {}

        def act(holder=holder):
            it = holder["it"]
            if how == "drop":
                holder["outer"].clear()
                gc.collect()
            elif kind in ("instance", "namespace"):
                vars(it).clear() if how == "clear" else vars(it).update({f"n{i}": [1.5] for i in range(100)})
            elif how == "clear":
                it.clear()
            else:
                for i in range(1000):
                    if kind == "dict":
                        it[f"n{i}"] = [1.5]
                    elif kind == "set":
                        it.add(f"n{i}")
                    else:
                        it.append([1.5])

        parts = [Hostile(lambda: None) for _ in range(4)]
        parts[position] = Hostile(act)
        if kind == "list":
            it = list(parts)
        elif kind == "dict":
            it = {i + 1000.5: part for i, part in enumerate(parts)}
        elif kind == "set":
            it = set(parts)
        elif kind == "deque":
            it = collections.deque(parts)
        elif kind == "instance":
            it = Instance(1)
            vars(it).update(zip("abcd", parts, strict=True))
        else:
            it = types.SimpleNamespace(**dict(zip("abcd", parts, strict=True)))
        del parts
        holder["it"] = it if how != "drop" else None
        holder["outer"] = [it, [2.5]]
        del it
        outer = holder["outer"]
        assert sizeof(outer) > 0
        assert sizeof_pair((1.5, 2.5), outer)[0] > 0


def test_the_class_may_change_under_the_walk():
    class Other:
        pass

    class Changing:
        def __init__(self):
            self.text = fresh("some text")

        def __sizeof__(self):
            self.__class__ = Other
            return 100

    assert sizeof([Changing(), Changing()]) > 200


def test_a_metaclass_may_answer_with_anything():
    class Meta(type):
        @property
        def __module__(cls):
            raise RuntimeError("no module")

    class Filterer(metaclass=Meta):
        def __init__(self):
            self.text = fresh("x" * 100)

    assert sizeof(Filterer()) > 100

    class Refusing(type):
        def __getattribute__(cls, name):
            raise RuntimeError("no attributes")

    class Refused(metaclass=Refusing):
        pass

    with pytest.raises(RuntimeError, match="no attributes"):
        sizeof([Refused()])


def test_a_sizeof_may_count_itself():
    class Nested:
        def __init__(self, depth):
            self.inner = Nested(depth - 1) if depth else None

        def __sizeof__(self):
            return 16 + sizeof(self.inner)

    assert sizeof(Nested(5)) > 16


# --- memory runs out, references stay balanced, threads meet ---


def everything():
    """A value that takes every path, the allocating ones included."""
    deep = [1.5]
    for _ in range(60):
        deep = [deep]
    shared = [fresh(f"text {i}") for i in range(200)]
    return {
        "deep": deep,
        "shared": [shared, list(shared)],
        "instance": Instance(3),
        "shown": with_dict_shown(4),
        "many": collections.deque([[i + 0.5] for i in range(100)]),
        "own": Hostile(lambda: None),
        (1000.5, 2.5): {(1000.5, 3.5): [1.5]},
        "array": bytearray(100),
    }


def test_out_of_memory_at_any_allocation_leaves_nothing_behind():
    testcapi = pytest.importorskip("_testcapi")
    if not hasattr(testcapi, "set_nomemory"):
        pytest.skip("no set_nomemory")
    value = everything()
    shared, many = value["shared"], value["many"]
    watched = [value, shared, shared[0], shared[0][0], value["deep"], many, many[0], value["own"]]
    expected = sizeof(value)
    counts = [sys.getrefcount(o) for o in watched]
    for start in range(2000):
        testcapi.set_nomemory(start, start + 1)
        try:
            nbytes = sizeof(value)
        except MemoryError:
            nbytes = None
        finally:
            testcapi.remove_mem_hooks()
        assert nbytes in (None, expected)
        assert [sys.getrefcount(o) for o in watched] == counts
        if nbytes is not None and start > 100:
            break
    else:
        raise AssertionError("every allocation failed")


def test_out_of_memory_while_a_type_is_first_seen():
    testcapi = pytest.importorskip("_testcapi")
    for start in range(60):

        class New:
            def __init__(self):
                self.text = fresh("x" * 100)

        made = New()
        testcapi.set_nomemory(start, start + 1)
        try:
            sizeof(made)
        except MemoryError:
            pass
        finally:
            testcapi.remove_mem_hooks()
        assert sizeof(made) > 150


@pytest.mark.skipif(not hasattr(sys, "gettotalrefcount"), reason="needs the debug interpreter")
def test_references_are_balanced():
    def liar(answer):
        return type("Liar", (), {"__sizeof__": lambda self: answer})()

    def once():
        sizeof(everything())
        sizeof_pair(("k", 1.5), everything(), budget=50)
        for bad in (-1, None, 2**70):
            with pytest.raises(errors.SynthexFastError):
                sizeof([[Hostile(lambda: None)], liar(bad)])
        with pytest.raises(errors.SynthexFastError):
            sizeof([], budget=0)

    for _ in range(5):
        once()
    gc.collect()
    before = sys.gettotalrefcount()
    for _ in range(20):
        once()
    gc.collect()
    assert abs(sys.gettotalrefcount() - before) < 40


def test_memory_is_given_back():
    value = everything()
    for _ in range(10):
        sizeof(value)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            sizeof(value)
        assert tracemalloc.get_traced_memory()[0] - before < 5000
    finally:
        tracemalloc.stop()


def test_threads_may_change_what_is_counted():
    numbers = [float(i) for i in range(50)]
    shared = {
        "list": [[x] for x in numbers],
        "dict": {f"k{i}": [x] for i, x in enumerate(numbers)},
        "set": {f"k{i}" for i in range(50)},
        "deque": collections.deque([x] for x in numbers),
        "instance": Instance(1),
    }
    stop = threading.Event()
    failures = []

    def change(seed):
        source = random.Random(seed)
        while not stop.is_set():
            i = source.randrange(50)
            shared["list"].append([float(i)])
            if len(shared["list"]) > 100:
                del shared["list"][:50]
            shared["dict"][f"k{source.randrange(200)}"] = [float(i)]
            shared["dict"].pop(f"k{source.randrange(200)}", None)
            shared["set"].add(f"k{source.randrange(200)}")
            shared["set"].discard(f"k{source.randrange(200)}")
            shared["deque"].append([float(i)])
            if len(shared["deque"]) > 100:
                shared["deque"].clear()
            shared["instance"].name = fresh(f"name {i}")
            shared["instance"].parts = [float(i)]
            if i == 7:
                vars(shared["instance"])["more"] = [float(i)]
            if i == 8:
                shared["instance"] = Instance(i)
            shared["own"] = Hostile(lambda: None)

    def count():
        try:
            for _ in range(300):
                assert 1000 < sizeof(shared) < 200_000
        except BaseException as error:
            failures.append(error)

    changing = [threading.Thread(target=change, args=(i,)) for i in range(4)]
    counting = [threading.Thread(target=count) for _ in range(4)]
    for thread in changing + counting:
        thread.start()
    for thread in counting:
        thread.join()
    stop.set()
    for thread in changing:
        thread.join()
    assert not failures


def test_docstrings_hold():
    import doctest

    assert doctest.testmod(_sizeof).failed == 0
