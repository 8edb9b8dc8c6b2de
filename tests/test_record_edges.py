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
