"""`Record` at its edges: values, classes and threads that its other tests would not think of."""

import copy
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
    for twin in (copy.copy(loose), copy.deepcopy(loose), pickle.loads(pickle.dumps(loose)), loose.__replace__()):
        assert twin.value is ...
    raw = Loose.__new__(Loose)
    assert raw != Loose(..., ..., ...)
    assert raw == Loose.__new__(Loose)
