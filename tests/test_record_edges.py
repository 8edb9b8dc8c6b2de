"""`Record` at its edges: values, classes and threads that its other tests would not think of."""

import copy
import dataclasses
import gc
import pickle
from typing import Any

import pytest

from synthex_fast import Record, field


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
        assert not cls(1) != cls(2)


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
