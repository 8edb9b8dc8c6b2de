"""`Record` at its edges: values, classes and threads that its other tests would not think of."""

import copy
import dataclasses
import functools
import gc
import os
import pickle
import sys
import threading
import weakref
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from support import in_child, in_threads, needs_fork, quiet_fork

from synthex_fast import Length, Range, Record, field
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError


class Loose(Record):
    """Fields that accept everything."""

    value: Any = None
    mapping: Any = field(default_factory=dict)
    items: Any = field(default_factory=list)


# --- values ---


def test_a_container_of_the_other_kind_is_not_kept_for_the_default():
    for _ in range(3):
        loose = Loose(mapping=["x"], items={"y": 1})
        del loose
        loose = Loose()
        assert (loose.mapping, loose.items) == ({}, [])


def test_an_ellipsis_is_a_value_like_any_other():
    loose = Loose(...)
    assert repr(loose) == "Loose(value=Ellipsis, mapping={}, items=[])"
    for twin in (
        copy.copy(loose),
        copy.deepcopy(loose),
        pickle.loads(pickle.dumps(loose)),
        loose.__replace__(),
    ):
        assert twin.value is ...
    raw = Loose.__new__(Loose)
    assert raw != Loose(..., ..., ...)
    assert raw == Loose.__new__(Loose)


class Slotted(Record):
    __slots__ = ("own",)
    x: int


@pytest.mark.parametrize(
    "extra",
    [
        5,
        (1, 2, 3),
        (5, None),
        (None, 5),
        ({"a": 1}, None),
        (None, {"nowhere": 1}),
        (None, {"x": "text"}),
        (None, {1: 2}),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(extra):
    record = Slotted(7)
    with pytest.raises(ArgumentValueError, match="state must be"):
        record.__setstate__(({"x": 1}, extra))
    assert record == Slotted(7)
    record.__setstate__(({"x": 1}, (None, {"own": 2})))
    assert (record.x, record.own) == (1, 2)


# --- classes ---


def test_a_method_written_for_the_fields_of_a_base_is_not_inherited():
    class Methods:
        __slots__ = ()

        def __repr__(self):
            return "a mixin's"

    bodies = {}
    for base, decorate in ((object, dataclasses.dataclass), (Record, lambda cls: cls)):

        @decorate
        class A(base):
            x: int

            def __eq__(self, other):
                return NotImplemented if not isinstance(other, A) else True

            def __repr__(self):
                return f"A<{self.x}>"

        @decorate
        class B(A):
            y: int = 0

        @decorate
        class C(B):
            z: int = 0

        bodies[base] = [
            A(1) == A(2),
            A(1) != A(2),
            A(1) == 1,
            A(1) != 1,
            repr(A(1)),
            B(1, 2) == B(1, 3),
            B(1, 2) != B(1, 3),
            B(1, 2) == B(1, 2),
            repr(B(1, 2)).endswith("B(x=1, y=2)"),
            C(1) == C(1) != C(2),
            repr(C(1)).endswith("C(x=1, y=0, z=0)"),
            A.__hash__,
            B.__hash__,
        ]
    assert bodies[Record] == bodies[object]

    class D(Methods, A):
        pass

    class E(A, eq=False):
        pass

    assert repr(D(1)) == "a mixin's"
    assert E(1) == A(2)


def test_not_equal_is_the_opposite_of_an_own_eq():
    class Mixin:
        __slots__ = ()

        def __eq__(self, other):
            return True

        __hash__ = None

    class Own(Record):
        x: int

        def __eq__(self, other):
            return True

    class Mixed(Mixin, Record):
        x: int

    for cls in (Own, Mixed):
        assert cls(1) == cls(2)
        assert not cls(1) != cls(2)  # noqa: SIM202


def test_total_ordering_completes_a_record():
    @functools.total_ordering
    class Version(Record):
        number: int

        def __lt__(self, other):
            return self.number < other.number

    assert Version(1) <= Version(1) < Version(2)
    assert Version(2) >= Version(1)
    assert not Version(1) > Version(1)
    assert Version(1) == Version(1) != Version(2)

    class Sub(Version):
        more: int = 0

    assert Sub(1, 5) < Sub(2)
    assert Sub(1, 5) != Sub(1)

    class Plain(Record):
        x: int

    with pytest.raises(TypeError, match="'<' not supported"):
        Plain(1) < Plain(2)  # noqa: B015

    class Ordered(Version, order=True):
        pass

    assert sorted([Ordered(2), Ordered(1)]) == [Ordered(1), Ordered(2)]


class Own:
    """Where the test below takes methods from."""

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 7


@pytest.mark.parametrize("names", [(), ("__eq__",), ("__hash__",), ("__eq__", "__hash__")])
@pytest.mark.parametrize("eq", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_hashes_follow_dataclasses(frozen, eq, names):
    body = {name: vars(Own)[name] for name in names}
    plain = dataclasses.make_dataclass("Plain", [("x", int)], namespace=dict(body), frozen=frozen, eq=eq)
    namespace = {"__annotations__": {"x": int}, "__module__": __name__, **body}
    ours = type(Record)("Ours", (Record,), namespace, frozen=frozen, eq=eq)
    assert (plain.__hash__ is None) == (ours.__hash__ is None)
    if plain.__hash__ is not None:
        for cls in (plain, ours):
            one, other = cls(1), cls(1)
            assert (hash(one) == hash(other)) == (eq or "__hash__" in names)
            assert (hash(one) == 7) == ("__hash__" in names)


# --- __post_init__ ---


def test_a_mixins_post_init_runs_as_for_dataclasses():
    log = []

    class Mixin:
        __slots__ = ()

        def __post_init__(self):
            log.append(("mixin", type(self).__name__, self.x))

    class Deeper(Mixin):
        __slots__ = ()

        def __post_init__(self):
            log.append("deeper")
            super().__post_init__()

    class Bound:
        __slots__ = ()

        @classmethod
        def __post_init__(cls):
            log.append(cls.__name__)

    logs = []
    for base, decorate in ((Record, lambda cls: cls), (object, dataclasses.dataclass)):
        behind, before = ((base, Mixin), (Mixin, base)) if base is Record else ((Mixin,), (Mixin,))

        @decorate
        class Behind(*behind):
            x: int

        @decorate
        class Before(*before):
            x: int

        @decorate
        class Own(*behind):
            x: int

            def __post_init__(self):
                log.append("own")
                super().__post_init__()

        @decorate
        class Again(Own):
            pass

        @decorate
        class Between(Before, Deeper):
            pass

        @decorate
        class Diamond(Behind, Deeper):
            pass

        @decorate
        class Bounded(Bound, *behind[:1] if base is Record else ()):
            x: int

        for cls in (Behind, Before, Own, Again, Between, Diamond, Bounded):
            cls(1)
            log.append("|")
        logs.append(log[:])
        log.clear()
    assert logs[0] == logs[1]


def test_a_library_that_fills_a_record_has_its_fields_checked_before_any_hook():
    class Mixin:
        __slots__ = ()

        def __post_init__(self):
            seen.append(self.total)

    class Before(Mixin, Record):
        total: Annotated[int, Range(0)] = 0

    class Behind(Record, Mixin):
        total: Annotated[int, Range(0)] = 0

    class Off(Before):
        __post_init__ = None

    for cls in (Before, Behind, Off):
        seen = []
        for total in (-1, 1):
            record = cls.__new__(cls)
            member(cls, "total").__set__(record, total)
            if cls is Off:
                continue
            if total < 0:
                with pytest.raises(ValueError, match="total must be"):
                    record.__post_init__()
            else:
                record.__post_init__()
        assert seen == ([] if cls is Off else [1])
    assert Off(1).total == 1


def member(cls, name):
    """The descriptor behind a field."""
    return next(vars(base)[name] for base in cls.__mro__ if name in vars(base))


class Sum(Record, frozen=True):
    parts: tuple
    total: Annotated[int, Range(0, 100)] = field(default=0, init=False)
    id: str = field(default_factory="uuid4", init=False)

    def __post_init__(self):
        self.total = sum(self.parts)


class Store(Record, frozen=True):
    """A frozen class as dataclasses have to write it."""

    parts: tuple
    total: Annotated[int, Range(0, 100)] = field(default=0, init=False)
    seen: Any = field(default=None, init=False)
    id: str = field(default_factory="uuid4", init=False)

    def __post_init__(self):
        object.__setattr__(self, "total", sum(self.parts))
        object.__setattr__(self, "seen", [self])


@pytest.mark.parametrize("cls", [Sum, Store])
def test_a_frozen_record_is_filled_by_libraries_whose_hook_assigns(cls):
    msgspec = pytest.importorskip("msgspec")
    pydantic = pytest.importorskip("pydantic")
    for record in (
        cls((1, 2)),
        msgspec.convert({"parts": (1, 2)}, cls),
        msgspec.json.decode(b'{"parts": [1, 2]}', type=cls),
        pydantic.TypeAdapter(cls).validate_python({"parts": (1, 2)}),
    ):
        assert (record.parts, record.total) == ((1, 2), 3)
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.total = 1
    for make in (
        lambda: cls((500,)),
        lambda: msgspec.convert({"parts": (500,)}, cls),
        lambda: pydantic.TypeAdapter(cls).validate_python({"parts": (500,)}),
    ):
        with pytest.raises(ValueError, match="total must be an integer from 0 to 100"):
            make()


def test_what_a_frozen_records_hook_stores_through_object_is_checked_and_tracked():
    gc.collect()
    for _ in range(3):
        store = Store((1, 2))
        assert gc.is_tracked(store)
        assert store.seen[0] is store
        canary = Canary()
        store.seen.append(canary)
        ref = weakref.ref(canary)
        del store, canary
        gc.collect()
        assert ref() is None

    class Wrong(Record, frozen=True):
        number: float
        name: str = ""

        def __post_init__(self):
            object.__setattr__(self, "number", 3)
            object.__setattr__(self, "name", self.number)
            object.__delattr__(self, "number")

    with pytest.raises(ArgumentTypeError, match="name must be a string"):
        Wrong(1.0)

    class Right(Record, frozen=True):
        number: float

        def __post_init__(self):
            object.__setattr__(self, "number", 3)

    assert type(Right(1.0).number) is float


def test_object_setattr_outside_of_a_hook_is_refused_or_unchecked():
    store = Store((1, 2))
    object.__setattr__(store, "total", "x")
    assert store.total == "x"
    loose = Link(1)
    if sys.version_info < (3, 13):
        with pytest.raises(TypeError, match="can't apply this __setattr__"):
            object.__setattr__(loose, "next", 2)
    else:
        object.__setattr__(loose, "next", 2)
        assert loose.next == 2


class Canary:
    pass


def test_an_own_setattr_that_passes_on_to_object_leaks_nothing():
    class Person(Record):
        friend: Any = None

        def __setattr__(self, name, value):
            object.__setattr__(self, name, value)

    person, canary = Person(), Canary()
    person.friend = [person, canary]
    ref = weakref.ref(canary)
    del person, canary
    gc.collect()
    assert ref() is None


def test_attribute_methods_check_their_arguments():
    record = Loose()
    for wrong in (
        lambda: record.__setattr__("value"),
        lambda: record.__setattr__(1, 2),
        lambda: record.__delattr__(1),
    ):
        with pytest.raises(TypeError):
            wrong()
    record.__setattr__("value", 5)
    assert record.value == 5
    with pytest.raises(TypeError):
        Record.__setattr__(object(), "value", 1)


# --- the decorator ---


def test_the_decorator_is_refused():
    with pytest.raises(TypeError, match="Late is a Record, which is a dataclass already"):

        @dataclasses.dataclass
        class Late(Record):
            x: int

    with pytest.raises(TypeError, match="Made is a Record"):
        dataclasses.make_dataclass("Made", [("x", int)], bases=(Record,))
    assert Loose(1).value == 1


def test_dataclass_params():
    class Ordered(Record, frozen=True, order=True, kw_only=True):
        x: int

    class Below(Ordered):
        y: int

    class Identity(Record, eq=False, weakref=True):
        pass

    decorated = dataclasses.dataclass(frozen=True, order=True, kw_only=True, slots=True)

    @decorated
    class Plain:
        x: int

    assert repr(Ordered.__dataclass_params__) == repr(Plain.__dataclass_params__)
    assert repr(Ordered(x=1).__dataclass_params__) == repr(Plain.__dataclass_params__)
    assert Below.__dataclass_params__.frozen
    assert Below.__dataclass_params__.order
    assert not Identity.__dataclass_params__.eq
    assert not Record.__dataclass_params__.frozen
    if sys.version_info >= (3, 12):
        assert not Below.__dataclass_params__.kw_only
        assert Identity.__dataclass_params__.weakref_slot
        assert Identity.__dataclass_params__.slots


# --- threads, forks and greenlets ---


class Link(Record):
    next: Any = None


class Waits:
    """Goes on waiting while its own reference is dropped."""

    def __init__(self, entered, leave):
        self.entered = entered
        self.leave = leave

    def __del__(self):
        self.entered.set()
        self.leave.wait(30)


def chain(length, innermost):
    for _ in range(length):
        innermost = Link(innermost)
    return innermost


@needs_fork
@quiet_fork
def test_a_deallocation_under_way_in_another_thread_holds_nothing_up():
    entered, leave = threading.Event(), threading.Event()
    deep = [chain(30, Waits(entered, leave))]
    thread = threading.Thread(target=deep.clear)
    thread.start()
    try:
        assert entered.wait(30)

        def frees_at_once():
            canary = Canary()
            ref = weakref.ref(canary)
            long = chain(100, canary)
            del long, canary
            assert ref() is None

        frees_at_once()
        in_child(frees_at_once)
    finally:
        leave.set()
        thread.join()


@needs_fork
def test_a_fork_in_a_deep_deallocation_goes_on_in_both():
    class Forks:
        def __del__(self):
            pids.append(os.fork())

    pids = []
    canary = Canary()
    ref = weakref.ref(canary)
    deep = chain(100, [canary, Forks(), chain(100, canary)])
    del canary, deep
    gone = ref() is None and Link.stats()["pool_size"] >= 200
    if pids[0] == 0:
        os._exit(not gone)
    assert gone
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0


def test_greenlets_that_initialise_frozen_records_in_turns():
    greenlet = pytest.importorskip("greenlet")

    class Slow(Record, frozen=True):
        x: int

        def __post_init__(self):
            main.switch()
            self.x += 1

    main = greenlet.getcurrent()
    one, other = greenlet.greenlet(lambda: Slow(1)), greenlet.greenlet(lambda: Slow(2))
    one.switch()
    other.switch()
    first = one.switch()
    assert first.x == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.x = 5
    third = greenlet.greenlet(lambda: Slow(3))
    third.switch()
    assert (other.switch().x, third.switch().x) == (3, 4)
    given_up = greenlet.greenlet(lambda: Slow(4))
    given_up.switch()
    del given_up
    place = [Slow.__new__(Slow) for _ in range(10)]
    for record in place:
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.x = 1


def test_threads_resolve_forward_references_together():
    for _ in range(30):
        namespace = {"Record": Record, "field": field, "__name__": "forward"}
        exec(
            "class Tree(Record):\n"
            "    left: 'Leaf | None' = None\n"
            "    size: 'Size' = 0\n"
            "    name: 'Annotated[str, Length(1, 5)]' = 'x'\n",
            namespace,
        )
        tree = namespace["Tree"]
        # The names of the module that the class stands in.
        sys.modules["forward"] = SimpleNamespace(Leaf=Loose, Size=int, Annotated=Annotated, Length=Length)

        def work(tree=tree):
            for n in range(50):
                assert tree(Loose(), n, "ab").size == n
                with pytest.raises(ValueError):
                    tree(None, 1, "too long")
                with pytest.raises(TypeError):
                    tree(None, "1")
                assert type(Record)("Sub", (tree,), {"__module__": "forward"})(None, 3).size == 3

        try:
            in_threads(work, work, work)
        finally:
            del sys.modules["forward"]


# --- allocation failure ---


def test_allocation_failure_in_hooks(fail_allocations):
    assert fail_allocations(lambda: Store((1, 2))) > 0
    assert fail_allocations(lambda: Sum((1, 2))) > 0
    assert fail_allocations(lambda record: record.__post_init__(), prepare=lambda: Sum((1, 2))) > 0


def test_threads_that_run_hooks_and_drop_deep_chains(hammer):
    def work(index):
        store = Store((index, 1))
        assert (store.total, store.seen) == (index + 1, [store])
        store.seen.clear()
        long = chain(60, store)
        del long
        assert shared.total == 3
        shared.__post_init__()

    shared = Store((1, 2))
    hammer(4, work, iterations=300)
    assert shared.seen == [shared]
