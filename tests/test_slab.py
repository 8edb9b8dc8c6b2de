"""ResponseBuffer: each promise, the buffer under hostile use, and a state machine against a plain list."""

import collections.abc
import contextlib
import copy
import gc
import itertools
import math
import os
import pickle
import signal
import statistics
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import FREE_THREADED, in_child, needs_fork, quiet_fork, run, wait_for

from synthex_fast import PooledExpertResponse
from synthex_fast._slab import Aggregate, AggregateRow, Columns, ResponseBuffer
from synthex_fast.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BatchTooLargeError,
    BufferFullError,
    BufferPausedError,
)


def answer(query="q", expert="e", confidence=0.5):
    return PooledExpertResponse(query, expert, confidence=confidence)


def answers(n, queries=3, experts=2):
    return [answer(f"q{i % queries}", f"e{i % experts}", i % 11 / 10) for i in range(n)]


def snapshot(buffer):
    """All that can be seen of a buffer without changing it, except stats of failures."""
    columns = buffer.columns()
    return (
        len(buffer),
        columns.confidence.tolist(),
        columns.timestamp.tolist(),
        [columns.queries[code] for code in columns.query],
        [columns.experts[code] for code in columns.expert],
        buffer.stats["added"],
        buffer.stats["flushed"],
        buffer.nbytes,
    )


def holds(buffer, expected):
    """The columns say what these responses say; codes are dense and in the order of first use."""
    columns = buffer.columns()
    assert len(buffer) == len(expected)
    assert columns.confidence.tolist() == [r.confidence for r in expected]
    assert columns.timestamp.tolist() == [
        r.timestamp.timestamp() if hasattr(r, "timestamp") else t
        for r, t in zip(expected, columns.timestamp.tolist(), strict=True)
    ]
    assert [columns.queries[code] for code in columns.query] == [r.query_id for r in expected]
    assert [columns.experts[code] for code in columns.expert] == [r.expert_id for r in expected]
    assert buffer.queries == columns.queries == tuple(dict.fromkeys(r.query_id for r in expected))
    assert buffer.experts == columns.experts == tuple(dict.fromkeys(r.expert_id for r in expected))
    return True


# Construction -----------------------------------------------------------------------------------------------


def test_defaults():
    buffer = ResponseBuffer()
    assert (buffer.capacity, buffer.max_batch, buffer.flush_threshold, buffer.on_flush) == (
        1000,
        100,
        0.8,
        None,
    )
    assert len(buffer) == 0
    assert buffer.flush() == []


@pytest.mark.parametrize("name", ["capacity", "max_batch"])
@pytest.mark.parametrize("value", [0, -1, -(2**70), 2**64, 10**400])
def test_sizes_out_of_range_are_refused(name, value):
    with pytest.raises(ArgumentValueError, match=f"{name} must be an integer from 1 to .*int"):
        ResponseBuffer(**{name: value})


@pytest.mark.parametrize("name", ["capacity", "max_batch"])
@pytest.mark.parametrize("value", [True, 1.0, math.nan, math.inf, "1", None, []])
def test_sizes_of_another_type_are_refused(name, value):
    with pytest.raises(ArgumentTypeError, match=f"{name} must be an integer from 1 to "):
        ResponseBuffer(**{name: value})


def test_sizes_may_be_any_integer():
    buffer = ResponseBuffer(np.int64(5), np.int32(2))
    assert (buffer.capacity, buffer.max_batch) == (5, 2)


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.0000001, math.nan, math.inf, 10**400])
def test_threshold_out_of_range_is_refused(value):
    with pytest.raises(ArgumentValueError, match="flush_threshold must be a number above 0 and up to 1"):
        ResponseBuffer(flush_threshold=value)


@pytest.mark.parametrize("value", [True, "0.5", None, 1j])
def test_threshold_of_another_type_is_refused(value):
    with pytest.raises(ArgumentTypeError, match="flush_threshold must be a number above 0 and up to 1"):
        ResponseBuffer(flush_threshold=value)


def test_handler_must_be_callable():
    with pytest.raises(ArgumentTypeError, match="on_flush must be callable or None, not 3"):
        ResponseBuffer(on_flush=3)


@pytest.mark.parametrize("capacity", [sys.maxsize, sys.maxsize // 64, sys.maxsize // 128 + 1, 2**58])
def test_a_capacity_beyond_memory_is_a_memory_error(capacity):
    with pytest.raises(MemoryError):
        ResponseBuffer(capacity)


def test_a_cap_past_32_bits_works():
    for cap in (2**31, 2**32 + 1, sys.maxsize):
        buffer = ResponseBuffer(10, cap)
        assert buffer.max_batch == cap
        assert buffer.add_batch(answers(10)) == 10
        with pytest.raises(BufferFullError):
            buffer.add_batch(answers(11))
        with pytest.raises(BufferFullError):
            buffer.add_batch(iter(answers(11)))


def test_a_large_capacity_works_and_is_wiped_entry_by_entry():
    buffer = ResponseBuffer(2_000_000)
    for _ in range(3):
        rows = answers(40, queries=40)
        buffer.add_batch(rows)
        assert holds(buffer, rows)
        assert buffer.flush() == rows
        assert buffer.queries == ()


def test_initialising_twice_is_refused_and_changes_nothing():
    buffer = ResponseBuffer(5)
    rows = answers(3)
    buffer.add_batch(rows)
    with pytest.raises(ArgumentTypeError, match="twice"):
        buffer.__init__(7)
    assert buffer.capacity == 5
    assert holds(buffer, rows)


def test_a_buffer_that_was_never_initialised_is_full_and_harmless():
    buffer = ResponseBuffer.__new__(ResponseBuffer)
    for _ in range(3):
        assert (len(buffer), buffer.flush(), buffer.queries, dict(buffer.aggregate())) == (0, [], (), {})
        assert all(len(column) == 0 for column in buffer.columns().values())
        with pytest.raises(BufferFullError):
            buffer.add(answer())
        assert buffer.trim(10) == 0
    buffer.__init__(2)
    buffer.add(answer())
    assert len(buffer) == 1


def test_nbytes_is_fixed():
    buffer = ResponseBuffer(50, on_flush=lambda responses: None)
    before = buffer.nbytes
    assert before >= 50 * (8 + 8 + 4 + 4 + 8)
    seen = set()
    views = []
    for response in answers(200):
        buffer.add(response)
        views.append(buffer.columns())
        seen.add(buffer.nbytes)
    assert seen == {before}
    assert sys.getsizeof(buffer) >= before
    with pytest.raises(AttributeError):
        buffer.nbytes = 1


# Adding -----------------------------------------------------------------------------------------------------


def test_add_and_add_batch_keep_the_order():
    buffer = ResponseBuffer(100)
    rows = answers(20)
    assert buffer.add(rows[0]) is None
    assert buffer.add_batch(rows[1:6]) == 5
    assert buffer.add_batch(tuple(rows[6:10])) == 4
    assert buffer.add_batch(row for row in rows[10:15]) == 5
    assert buffer.add_batch(dict.fromkeys(range(15, 20)) and iter(rows[15:20])) == 5
    assert buffer.add_batch([]) == buffer.add_batch(()) == buffer.add_batch(iter(())) == 0
    assert holds(buffer, rows)
    flushed = buffer.flush()
    assert all(a is b for a, b in zip(flushed, rows, strict=True))
    assert buffer.stats["batches"] == 4


def test_subclasses_of_list_and_tuple_are_iterated():
    class Doubling(list):
        def __iter__(self):
            return itertools.chain(super().__iter__(), super().__iter__())

    rows = answers(3)
    buffer = ResponseBuffer()
    assert buffer.add_batch(Doubling(rows)) == 6
    assert holds(buffer, rows + rows)


def test_a_python_subclass_of_the_response_is_taken():
    class Loud(PooledExpertResponse):
        pass

    buffer = ResponseBuffer()
    loud = Loud("q", "e", confidence=0.25)
    buffer.add(loud)
    buffer.add_batch([loud])
    assert buffer.columns().confidence.tolist() == [0.25, 0.25]
    assert buffer.flush() == [loud, loud]


def test_columns_say_what_was_so_when_the_response_was_added():
    buffer = ResponseBuffer()
    response = answer("q", "e", 0.25)
    buffer.add(response)
    try:
        response.confidence = 0.75
    except AttributeError:
        pytest.skip("records are read-only")
    assert buffer.columns().confidence.tolist() == [0.25]


@pytest.mark.parametrize("bad", [None, 1, "text", object(), PooledExpertResponse])
def test_only_responses_are_taken(bad):
    buffer = ResponseBuffer(4)
    rows = answers(2)
    buffer.add_batch(rows)
    before = snapshot(buffer)
    with pytest.raises(ArgumentTypeError, match=r"response must be a PooledExpertResponse"):
        buffer.add(bad)
    for make in (list, tuple, iter):
        with pytest.raises(ArgumentTypeError, match=r"responses\[1\] must be a PooledExpertResponse"):
            buffer.add_batch(make([answer(), bad]))
    assert snapshot(buffer) == before


@pytest.mark.parametrize("bad", [None, 1, answer()])
def test_a_batch_must_be_iterable(bad):
    with pytest.raises(ArgumentTypeError, match="responses must be an iterable"):
        ResponseBuffer().add_batch(bad)


def test_elements_are_checked_before_the_room_for_them():
    called = []
    for handler in (None, called.append):
        buffer = ResponseBuffer(2, flush_threshold=1.0, on_flush=handler)
        buffer.add(answer())
        for make in (list, tuple, iter):
            with pytest.raises(ArgumentTypeError):
                buffer.add_batch(make([answer(), answer(), answer(), 3]))
        with pytest.raises(ArgumentTypeError):
            buffer.add("text")
        assert len(buffer) == 1
    assert called == []


def test_a_batch_over_the_cap_adds_nothing():
    buffer = ResponseBuffer(100, 4)
    rows = answers(5)
    for make in (list, tuple, iter, lambda items: (item for item in items)):
        with pytest.raises(BatchTooLargeError, match=r"at most 4 \(max_batch\).*nothing was added"):
            buffer.add_batch(make(rows))
    assert len(buffer) == 0
    assert buffer.stats["added"] == 0
    assert buffer.stats["rejected"] == 4
    assert buffer.add_batch(rows[:4]) == 4


@pytest.mark.parametrize("cap", [1, 2, 31, 32, 33, 100])
def test_an_endless_generator_is_read_to_the_cap_plus_one(cap):
    read = 0
    closed = False

    def endless():
        nonlocal read, closed
        try:
            while True:
                read += 1
                yield answer()
        finally:
            closed = True

    buffer = ResponseBuffer(1000, cap)
    with pytest.raises(BatchTooLargeError):
        buffer.add_batch(endless())
    assert (read, closed, len(buffer)) == (cap + 1, True, 0)


def test_a_generator_that_raises_adds_nothing():
    def broken():
        yield answer()
        raise KeyError("mine")

    buffer = ResponseBuffer()
    with pytest.raises(KeyError, match="mine"):
        buffer.add_batch(broken())
    assert len(buffer) == 0


def test_a_generator_may_use_the_buffer_it_feeds():
    buffer = ResponseBuffer(10)
    first, second, third = answers(3)

    def feeding():
        buffer.add(first)
        yield second
        assert buffer.flush() == [first]
        yield third

    assert buffer.add_batch(feeding()) == 2
    assert holds(buffer, [second, third])


def test_an_iterator_that_is_broken_in_odd_ways():
    class NoNext:
        def __iter__(self):
            return 3

    class RaisesInIter:
        def __iter__(self):
            raise ZeroDivisionError

    buffer = ResponseBuffer()
    with pytest.raises(TypeError):
        buffer.add_batch(NoNext())
    with pytest.raises(ZeroDivisionError):
        buffer.add_batch(RaisesInIter())
    assert len(buffer) == 0


def test_a_full_buffer_without_a_handler():
    buffer = ResponseBuffer(3)
    rows = answers(3)
    buffer.add_batch(rows)
    for attempt in (
        lambda: buffer.add(answer()),
        lambda: buffer.add_batch([answer()]),
        lambda: buffer.add_batch(iter([answer()])),
    ):
        with pytest.raises(BufferFullError, match=r"holds 3 of 3.*nothing was added") as caught:
            attempt()
        assert isinstance(caught.value, OverflowError)
    assert holds(buffer, rows)
    assert buffer.stats["rejected"] == 3
    buffer.flush()
    buffer.add(answer())


def test_a_batch_that_does_not_fit_is_not_added_in_part():
    buffer = ResponseBuffer(5)
    rows = answers(3)
    buffer.add_batch(rows)
    with pytest.raises(BufferFullError):
        buffer.add_batch(answers(3))
    assert holds(buffer, rows)


def test_equal_ids_share_a_code_whatever_object_they_are():
    buffer = ResponseBuffer()
    for i in range(20):
        for text in ("", "a", "b\xe9", "c\u20ac", "d\U0001f600", "long" * 30):
            buffer.add(answer("".join(["q", text]), "".join(["e", text]), i / 20))
    columns = buffer.columns()
    assert columns.queries == ("q", "qa", "qb\xe9", "qc\u20ac", "qd\U0001f600", "q" + "long" * 30)
    assert columns.query.tolist() == columns.expert.tolist() == list(range(6)) * 20


def test_ids_of_a_str_subclass_count_by_their_text():
    class Loud(str):
        def __eq__(self, other):
            raise AssertionError("not to be called")

        def __hash__(self):
            raise AssertionError("not to be called")

    try:
        rows = [answer(Loud("q"), Loud("e")), answer("q", "e")]
    except TypeError:
        pytest.skip("records take plain text only")
    buffer = ResponseBuffer()
    buffer.add(rows[0])
    buffer.add_batch(rows)
    buffer.add_batch(rows * 20)
    assert buffer.queries == ("q",)
    assert type(buffer.queries[0]) is str
    assert len(buffer.aggregate()["q"].experts) == 1


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 8, 1365, 1366])
def test_as_many_distinct_ids_as_rows(capacity):
    buffer = ResponseBuffer(capacity, capacity)
    for _ in range(2):
        rows = [answer(f"query {i}", f"expert {i}") for i in range(capacity)]
        buffer.add_batch(rows)
        assert holds(buffer, rows)
        assert len(buffer.aggregate()) == capacity
        buffer.flush()


# Columns ----------------------------------------------------------------------------------------------------


def test_columns():
    buffer = ResponseBuffer(100)
    rows = answers(30)
    buffer.add_batch(rows)
    columns = buffer.columns()
    assert isinstance(columns, Columns)
    assert isinstance(columns, collections.abc.Mapping)
    assert list(columns) == list(columns.keys()) == ["confidence", "timestamp", "query", "expert"]
    assert len(columns) == 4
    assert "query" in columns
    assert "queries" not in columns
    assert 3 not in columns
    assert dict(columns).keys() == columns.keys()
    assert columns["query"] is columns.query is columns.get("query") is dict(columns.items())["query"]
    assert columns.get("rows", 5) == 5
    with pytest.raises(KeyError, match="rows"):
        columns["rows"]
    assert "30 responses" in repr(columns)
    assert [columns[name].dtype for name in columns] == [np.float64, np.float64, np.int32, np.int32]
    assert all(column.shape == (30,) for column in columns.values())
    assert holds(buffer, rows)


def test_columns_of_an_empty_buffer():
    assert all(column.shape == (0,) for column in ResponseBuffer().columns().values())


def test_columns_are_views_and_not_copies():
    buffer = ResponseBuffer(100)
    buffer.add_batch(answers(10))
    first, second = buffer.columns(), buffer.columns()
    for name in first:
        assert not first[name].flags.owndata
        assert first[name].__array_interface__["data"][0] == second[name].__array_interface__["data"][0]


def test_columns_are_read_only():
    buffer = ResponseBuffer()
    buffer.add(answer())
    for column in buffer.columns().values():
        assert not column.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            column.flags.writeable = True
        base = column.base
        with pytest.raises((BufferError, ValueError, TypeError)):
            np.frombuffer(base, "u1")[0] = 1
        with pytest.raises((BufferError, TypeError)):
            (_ for _ in ()).throw(BufferError) if memoryview(base).readonly else None


def test_what_a_view_stands_on_cannot_be_made_by_hand():
    buffer = ResponseBuffer()
    buffer.add(answer())
    kind = type(buffer.columns().query.base)
    with pytest.raises(BufferError):
        memoryview(kind())
    for cls in (Columns, Aggregate):
        with pytest.raises(ArgumentTypeError):
            cls()
        made = cls.__new__(cls)
        assert (len(made) in (0, 4), repr(made) != "") == (True, True)
    assert Columns.__new__(Columns).queries == Columns.__new__(Columns).experts == ()
    assert dict(Aggregate.__new__(Aggregate)) == {}


def test_views_do_not_grow_with_the_buffer():
    buffer = ResponseBuffer()
    rows = answers(6)
    buffer.add_batch(rows[:4])
    columns = buffer.columns()
    buffer.add_batch(rows[4:])
    buffer.add(answer("new", "new"))
    assert len(columns.query) == 4
    assert columns.queries == ("q0", "q1", "q2")
    assert columns.experts == ("e0", "e1")
    assert len(buffer.columns().query) == 7


def test_views_outlive_the_buffer():
    buffer = ResponseBuffer()
    buffer.add_batch(answers(5))
    column = buffer.columns().confidence
    del buffer
    gc.collect()
    ResponseBuffer().add_batch(answers(50))
    assert column.tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]


def address(buffer):
    return buffer.columns().confidence.__array_interface__["data"][0]


@pytest.mark.skipif(FREE_THREADED, reason="a fresh slab at each flush")
def test_a_flush_without_views_reuses_the_slab():
    buffer = ResponseBuffer()
    buffer.add_batch(answers(5))
    before = address(buffer)
    buffer.flush()
    buffer.add_batch(answers(5))
    assert address(buffer) == before


@pytest.mark.parametrize("keep", ["columns", "one array", "a slice"])
def test_a_flush_with_views_alive_leaves_the_slab_to_them(keep):
    buffer = ResponseBuffer(10, on_flush=None)
    rows = answers(5)
    buffer.add_batch(rows)
    before = address(buffer)
    columns = buffer.columns()
    confidence, ids = columns.confidence.tolist(), columns.queries
    kept = {"columns": columns, "one array": columns.confidence, "a slice": columns.confidence[1:3]}[keep]
    del columns
    assert buffer.flush() == rows
    assert address(buffer) != before
    for _ in range(3):
        buffer.add_batch([answer("other", "other", 1.0)] * 10)
        buffer.flush()
    if keep == "columns":
        assert (kept.confidence.tolist(), kept.queries) == (confidence, ids)
    else:
        assert kept.tolist() == (confidence if keep == "one array" else confidence[1:3])


def test_an_aggregate_does_not_keep_the_slab():
    buffer = ResponseBuffer()
    buffer.add_batch(answers(5))
    before = address(buffer)
    aggregate = buffer.aggregate()
    rows = dict(aggregate)
    buffer.flush()
    buffer.add_batch([answer("other", "other", 1.0)] * 10)
    assert FREE_THREADED or address(buffer) == before
    assert dict(aggregate) == rows


# The handler ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capacity", "threshold", "expected"),
    [
        (10, 0.8, 8),
        (10, 1.0, 10),
        (10, 1, 10),
        (10, 0.01, 1),
        (3, 0.5, 2),
        (100, 0.07, 7),
        (1000, 0.333, 333),
        (1, 0.5, 1),
    ],
)
def test_the_handler_is_called_at_the_threshold(capacity, threshold, expected):
    calls = []
    buffer = ResponseBuffer(capacity, flush_threshold=threshold, on_flush=calls.append)
    rows = answers(expected)
    for row in rows[:-1]:
        buffer.add(row)
    assert calls == []
    buffer.add(rows[-1])
    assert calls == [rows]
    assert type(calls[0]) is list
    assert len(buffer) == 0


def test_the_handler_is_called_after_a_batch_reaches_the_threshold():
    calls = []
    buffer = ResponseBuffer(10, on_flush=calls.append)
    rows = answers(9)
    buffer.add_batch(rows[:7])
    assert buffer.add_batch(rows[7:]) == 2
    assert calls == [rows]
    assert buffer.stats["flushes"] == 1
    assert buffer.stats["flushed"] == 9


@pytest.mark.parametrize("make", [list, tuple, iter])
def test_the_handler_is_called_when_a_batch_does_not_fit(make):
    calls = []
    buffer = ResponseBuffer(10, flush_threshold=1.0, on_flush=calls.append)
    rows = answers(14)
    buffer.add_batch(rows[:8])
    assert buffer.add_batch(make(rows[8:])) == 6
    assert calls == [rows[:8]]
    assert holds(buffer, rows[8:])


def test_a_batch_beyond_the_capacity_does_not_disturb_the_handler():
    calls = []
    buffer = ResponseBuffer(5, 100, on_flush=calls.append)
    buffer.add(answer())
    with pytest.raises(BufferFullError):
        buffer.add_batch(answers(6))
    assert calls == []
    assert len(buffer) == 1


def test_an_empty_batch_calls_no_handler():
    def refuse(responses):
        raise ValueError

    buffer = ResponseBuffer(2, on_flush=refuse)
    buffer.add(answer())
    with pytest.raises(ValueError):
        buffer.add(answer())
    assert buffer.add_batch([]) == 0


def test_flush_goes_through_the_handler_and_returns_the_responses():
    calls = []
    buffer = ResponseBuffer(10, on_flush=lambda responses: (calls.append(list(responses)), responses.clear()))
    rows = answers(4)
    buffer.add_batch(rows)
    assert buffer.flush() == rows
    assert calls == [rows]
    assert buffer.flush() == []
    assert calls == [rows]


def test_a_handler_that_raises_loses_nothing():
    fail = True
    calls = []

    def handler(responses):
        calls.append(list(responses))
        responses.clear()
        if fail:
            raise RuntimeError("no")

    buffer = ResponseBuffer(5, 3, flush_threshold=0.8, on_flush=handler)
    rows = answers(9)
    for row in rows[:3]:
        buffer.add(row)
    # There is room: the response is in, then the handler fails.
    with pytest.raises(RuntimeError, match="no"):
        buffer.add(rows[3])
    assert holds(buffer, rows[:4])
    with pytest.raises(RuntimeError, match="no"):
        buffer.add_batch([rows[4]])
    assert holds(buffer, rows[:5])
    # There is none: the handler is called first, and nothing is added.
    for attempt in (
        lambda: buffer.add(rows[5]),
        lambda: buffer.add_batch(rows[5:7]),
        buffer.flush,
        lambda: buffer.trim(1),
    ):
        with pytest.raises(RuntimeError, match="no"):
            attempt()
        assert holds(buffer, rows[:5])
    assert buffer.stats["failed"] == 6
    assert buffer.stats["added"] == 5
    assert buffer.stats["flushes"] == 0
    fail = False
    buffer.add_batch(rows[5:7])
    assert calls[-1] == rows[:5]
    assert holds(buffer, rows[5:7])
    assert buffer.flush() == rows[5:7]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_a_handler_may_raise_anything(error):
    def handler(responses):
        raise error

    buffer = ResponseBuffer(5, on_flush=handler)
    rows = answers(2)
    buffer.add_batch(rows)
    with pytest.raises(error):
        buffer.flush()
    assert holds(buffer, rows)


@pytest.mark.parametrize("view", [False, True])
def test_a_handler_may_add_behind_the_rows_being_flushed(view):
    rows = answers(8, queries=4, experts=3)
    late = [answer("q3", "late", 0.1), answer("later", "e1", 0.2)]
    seen = []

    def handler(responses):
        if not seen:
            seen.append(buffer.columns() if view else None)
            buffer.add(late[0])
            assert buffer.add_batch(late[1:]) == 1
            assert holds(buffer, rows + late)
        else:
            seen.append(responses)

    buffer = ResponseBuffer(10, on_flush=handler)
    buffer.add_batch(rows)
    assert holds(buffer, late)
    if view:
        assert seen[0].confidence.tolist() == [r.confidence for r in rows]
    assert buffer.flush() == late
    assert seen[1] == late
    assert holds(buffer, [])


@pytest.mark.parametrize("view", [False, True])
def test_codes_begin_anew_in_whatever_order_the_rows_behind_have(view):
    def add_behind(responses):
        for response in behind:
            buffer.add(response)
        if view:
            views.append(buffer.columns())

    for left in range(1, 5):
        for order in itertools.permutations("abcde", left):
            behind = [answer(query, query.upper()) for query in order]
            views = []
            buffer = ResponseBuffer(20, on_flush=add_behind)
            buffer.add_batch(
                [answer(query, expert) for query, expert in zip("abcdea", "EADBCE", strict=True)]
            )
            assert len(buffer.flush()) == 6
            assert holds(buffer, behind)
            buffer.add(answer("a", "B"))
            assert buffer.queries == tuple(dict.fromkeys([*order, "a"]))


def test_a_handler_that_adds_finds_no_more_room_than_there_is():
    refused = []

    def handler(responses):
        buffer.add(answer("a"))
        buffer.add(answer("b"))
        for attempt in (lambda: buffer.add(answer("c")), lambda: buffer.add_batch([answer("d")])):
            with pytest.raises(BufferFullError):
                attempt()
            refused.append(len(buffer))

    buffer = ResponseBuffer(10, on_flush=handler)
    buffer.add_batch(answers(8))
    assert refused == [10, 10]
    assert buffer.queries == ("a", "b")


def test_a_flush_inside_a_flush_takes_nothing():
    inner = []

    def handler(responses):
        inner.append(buffer.flush())
        inner.append(buffer.trim(100))

    buffer = ResponseBuffer(10, on_flush=handler)
    rows = answers(3)
    buffer.add_batch(rows)
    assert buffer.flush() == rows
    assert inner == [[], 0]
    assert buffer.stats["flushes"] == 1


def test_a_handler_that_puts_everything_back():
    def handler(responses):
        buffer.add_batch(responses[:2])

    buffer = ResponseBuffer(10, on_flush=handler)
    rows = answers(9, queries=9)
    for row in rows[:8]:
        buffer.add(row)
    assert holds(buffer, rows[:2])
    for row in rows[2:8]:
        buffer.add(row)
    assert holds(buffer, rows[:2])


def test_columns_taken_in_the_handler_stay_what_they_are():
    taken = []

    def handler(responses):
        taken.append((buffer.columns(), responses, buffer.queries, buffer.aggregate()))

    buffer = ResponseBuffer(10, on_flush=handler)
    for row in answers(80, queries=7):
        buffer.add(row)
    assert len(taken) == 10
    for columns, responses, queries, aggregate in taken:
        assert columns.confidence.tolist() == [r.confidence for r in responses]
        assert [queries[code] for code in columns.query] == [r.query_id for r in responses]
        assert sum(row.count for row in aggregate.values()) == 8


def test_a_list_that_the_handler_changes_is_added_as_it_was():
    batch = answers(5)
    given = list(batch)

    def handler(responses):
        given.clear()
        gc.collect()

    buffer = ResponseBuffer(6, flush_threshold=1.0, on_flush=handler)
    buffer.add_batch(answers(4))
    assert buffer.add_batch(given) == 5
    assert given == []
    assert holds(buffer, batch)


def test_a_handler_may_drop_the_last_name_of_its_buffer():
    def handler(responses):
        holder.clear()
        gc.collect()

    holder = [ResponseBuffer(3, on_flush=handler)]
    holder[0].add_batch(answers(3))
    assert holder == []


def test_responses_that_use_the_buffer_as_they_go():
    log = []

    class Clinging(PooledExpertResponse):
        def __del__(self):
            log.append(len(buffer))
            buffer.add(answer("from", "del"))
            buffer.flush()

    buffer = ResponseBuffer(10, on_flush=lambda responses: None)
    for _ in range(3):
        buffer.add_batch([Clinging("q", "e") for _ in range(5)])
        buffer.flush()
    gc.collect()
    assert len(log) == 15
    buffer.flush()
    assert len(buffer) == 0
    assert buffer.stats["added"] == buffer.stats["flushed"] == 30


def test_a_handler_in_another_thread_does_not_block_this_one():
    entered, leave = threading.Event(), threading.Event()
    handed = []

    def handler(responses):
        handed.append(responses)
        entered.set()
        assert leave.wait(10)

    buffer = ResponseBuffer(10, on_flush=handler)
    rows = answers(10)
    worker = threading.Thread(target=buffer.add_batch, args=(rows[:8],))
    worker.start()
    assert entered.wait(10)
    buffer.add(rows[8])
    buffer.add_batch(rows[9:])
    assert buffer.flush() == []
    assert buffer.trim(1) == 0
    with pytest.raises(BufferFullError):
        buffer.add(answer())
    columns = buffer.columns()
    leave.set()
    worker.join()
    assert handed == [rows[:8]]
    assert holds(buffer, rows[8:])
    assert columns.confidence.tolist() == [r.confidence for r in rows]


# trim and stats ---------------------------------------------------------------------------------------------


def test_trim_without_a_handler_frees_nothing():
    buffer = ResponseBuffer()
    rows = answers(5)
    buffer.add_batch(rows)
    assert buffer.trim(sys.maxsize) == 0
    assert holds(buffer, rows)


def test_trim_flushes_through_the_handler():
    calls = []
    buffer = ResponseBuffer(on_flush=calls.append)
    rows = answers(5)
    buffer.add_batch(rows)
    nbytes = buffer.nbytes
    assert buffer.trim(0) == 0
    assert calls == []
    assert buffer.trim(1) == 0
    assert calls == [rows]
    assert (len(buffer), buffer.nbytes) == (0, nbytes)


def test_trim_counts_what_nobody_else_holds():
    buffer = ResponseBuffer(on_flush=lambda responses: None)
    kept = PooledExpertResponse("q", "e", "x" * 5000)
    buffer.add(kept)
    buffer.add(
        PooledExpertResponse("q", "e", "".join(["x" * 1000, "\u20ac" * 1000]), 0.5, "".join(["y"] * 3000))
    )
    freed = buffer.trim(1)
    assert 4000 + 3000 <= freed <= 4000 + 3000 + 1000


@pytest.mark.parametrize("bad", [-1, -(2**70), 10**400])
def test_trim_refuses_numbers_out_of_range(bad):
    with pytest.raises(ArgumentValueError, match="nbytes must be an integer from 0 to "):
        ResponseBuffer().trim(bad)


@pytest.mark.parametrize("bad", [True, 1.5, math.nan, math.inf, None, "x", []])
def test_trim_refuses_other_types(bad):
    with pytest.raises(ArgumentTypeError, match="nbytes must be an integer from 0 to "):
        ResponseBuffer().trim(bad)


def test_stats():
    buffer = ResponseBuffer(10, 5)
    buffer.add_batch(answers(5))
    buffer.add(answer())
    buffer.flush()
    buffer.add(answer())
    with contextlib.suppress(BatchTooLargeError):
        buffer.add_batch(answers(6))
    assert buffer.stats == {
        "added": 7,
        "batches": 1,
        "flushed": 6,
        "flushes": 1,
        "failed": 0,
        "rejected": 1,
        "waited": 0,
        "high_water": 6,
    }


# Pause ------------------------------------------------------------------------------------------------------


def start_adding(buffer, *responses):
    """A thread that adds, and a list for what came of it; back when it waits, or is done."""
    outcome = []

    def put():
        try:
            outcome.append(buffer.add_batch(responses))
        except BaseException as error:
            outcome.append(error)

    before = buffer.stats["waited"]
    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    wait_for(lambda: not thread.is_alive() or buffer.stats["waited"] > before)
    return thread, outcome


@pytest.mark.parametrize("wait", [False, 0, 0.0, lambda: False, lambda: 0])
def test_additions_to_a_paused_buffer_fail_at_once_if_so_wished(wait):
    buffer = ResponseBuffer()
    buffer.add(answer("before"))
    assert buffer.pause(wait=wait)
    assert buffer.paused
    for add in (lambda: buffer.add(answer()), lambda: buffer.add_batch(answers(3))):
        with pytest.raises(BufferPausedError, match=r"paused.*nothing was added"):
            add()
    assert issubclass(BufferPausedError, RuntimeError)
    assert (len(buffer), buffer.stats["rejected"], buffer.stats["waited"]) == (1, 2, 0)
    assert buffer.resume()
    assert not buffer.paused
    buffer.add(answer())
    assert buffer.add_batch(answers(3)) == 3
    assert buffer.queries == ("before", "q", "q0", "q1", "q2")


@pytest.mark.parametrize("wait", [True, math.inf, 100, 1e300, lambda: True])
def test_additions_wait_until_the_buffer_is_resumed(wait):
    buffer = ResponseBuffer()
    buffer.pause(wait)
    waiting = [start_adding(buffer, answer(str(i))) for i in range(5)]
    assert (len(buffer), buffer.stats["waited"]) == (0, 5)
    assert all(thread.is_alive() for thread, _ in waiting)
    buffer.resume()
    for thread, outcome in waiting:
        thread.join(30)
        assert outcome == [1]
    assert sorted(buffer.queries) == ["0", "1", "2", "3", "4"]
    assert buffer.stats["rejected"] == 0


def test_additions_wait_for_the_seconds_given():
    buffer = ResponseBuffer()
    buffer.pause(wait=0.05)
    before = time.monotonic()
    with pytest.raises(BufferPausedError, match=r"waited for 0\.05 seconds; nothing was added"):
        buffer.add(answer())
    assert time.monotonic() - before >= 0.05
    assert (len(buffer), buffer.stats["waited"], buffer.stats["rejected"]) == (0, 1, 1)


def test_the_wait_is_as_the_pause_says_that_holds():
    buffer = ResponseBuffer()
    buffer.pause(wait=True)
    thread, outcome = start_adding(buffer, answer())
    # Whichever of the two the thread sees.
    buffer.resume(), buffer.pause(wait=False)
    thread.join(30)
    assert outcome == [1] or isinstance(outcome[0], BufferPausedError)


def test_pauses_are_not_counted():
    buffer = ResponseBuffer()
    assert not buffer.paused
    assert buffer.resume() is False
    assert buffer.pause(wait=False) is True
    assert buffer.pause(wait=True) is False
    with pytest.raises(BufferPausedError):
        buffer.add(answer())
    assert buffer.resume() is True
    assert buffer.resume() is False
    buffer.add(answer())


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("handled", [False, True])
def test_a_paused_buffer_does_everything_else(view, handled):
    taken = []
    buffer = ResponseBuffer(10, on_flush=taken.extend if handled else None)
    rows = answers(5)
    buffer.add_batch(rows)
    buffer.pause(wait=False)
    assert holds(buffer, rows)
    kept = buffer.columns() if view else None
    assert dict(buffer.aggregate()).keys() == {"q0", "q1", "q2"}
    assert buffer.trim(0) == 0
    assert buffer.flush() == rows
    assert taken == (rows if handled else [])
    assert (len(buffer), buffer.trim(1), buffer.flush(), buffer.stats["flushed"]) == (0, 0, [], 5)
    assert (kept is None) or kept.confidence.tolist() == [r.confidence for r in rows]
    with pytest.raises(BufferPausedError):
        buffer.add(rows[0])
    buffer.resume()
    assert buffer.add_batch(answers(7)) == 7


def test_what_fails_anyway_fails_without_waiting():
    buffer = ResponseBuffer(5, 10)
    buffer.pause()
    with pytest.raises(ArgumentTypeError):
        buffer.add(3)
    with pytest.raises(ArgumentTypeError):
        buffer.add_batch([answer(), 3])
    with pytest.raises(BatchTooLargeError):
        buffer.add_batch(answers(11))
    with pytest.raises(BufferFullError):
        buffer.add_batch(answers(6))
    assert buffer.add_batch([]) == 0
    assert (len(buffer), buffer.stats["waited"]) == (0, 0)


def test_what_was_said_when_it_was_added_is_what_counts():
    buffer = ResponseBuffer()
    buffer.pause()
    response = answer("then", confidence=0.25)
    thread, _ = start_adding(buffer, response)
    response.query_id, response.confidence = "later", 0.75
    buffer.resume()
    thread.join(30)
    assert buffer.queries == ("then",)
    assert buffer.columns().confidence.tolist() == [0.25]


def test_a_full_buffer_is_full_after_the_wait():
    buffer = ResponseBuffer(2)
    buffer.add_batch(answers(2))
    buffer.pause()
    thread, outcome = start_adding(buffer, answer())
    buffer.resume()
    thread.join(30)
    assert isinstance(outcome[0], BufferFullError)
    buffer.pause()
    thread, outcome = start_adding(buffer, answer())
    buffer.flush()
    buffer.resume()
    thread.join(30)
    assert outcome == [1]


def test_a_flush_handler_does_not_wait_for_its_own_buffer():
    raised = []

    def handler(responses):
        try:
            buffer.add(answer("behind"))
        except BufferPausedError as error:
            raised.append(str(error))

    buffer = ResponseBuffer(10, on_flush=handler)
    buffer.add_batch(answers(4))
    buffer.pause(wait=True)
    assert len(buffer.flush()) == 4
    assert raised == ["the buffer is paused, and its flush handler can't wait; nothing was added"]
    buffer.resume()
    buffer.add_batch(answers(4))
    assert len(buffer.flush()) == 4
    assert buffer.queries == ("behind",)


def test_a_handler_may_pause_and_resume_its_buffer():
    seen = []

    def handler(responses):
        seen.append(buffer.resume())
        buffer.add(answer("behind"))
        seen.append(buffer.pause(wait=False))

    buffer = ResponseBuffer(10, on_flush=handler)
    buffer.add_batch(answers(4))
    buffer.pause()
    buffer.flush()
    assert (seen, buffer.paused, buffer.queries) == ([True, True], True, ("behind",))


@pytest.mark.parametrize("bad", [-1, -0.001, math.nan, -math.inf, -(10**400), 10**400])
def test_a_wait_out_of_range_is_refused(bad):
    buffer = ResponseBuffer()
    with pytest.raises(ArgumentValueError, match="wait must be True, False, seconds"):
        buffer.pause(wait=bad)
    assert not buffer.paused
    buffer.pause(wait=lambda: bad)
    with pytest.raises(ArgumentValueError, match="wait must be True, False, seconds"):
        buffer.add(answer())
    assert len(buffer) == 0


@pytest.mark.parametrize("bad", [None, "1", "nan", [], 1j])
def test_a_wait_of_another_type_is_refused(bad):
    buffer = ResponseBuffer()
    with pytest.raises(ArgumentTypeError, match="wait must be True, False, seconds"):
        buffer.pause(wait=bad)
    assert not buffer.paused
    buffer.pause(wait=lambda: bad)
    with pytest.raises(ArgumentTypeError, match="wait must be True, False, seconds"):
        buffer.add(answer())
    assert len(buffer) == 0


def test_each_addition_asks_in_its_own_thread_whether_to_wait():
    asked = []

    def wait():
        asked.append(threading.current_thread())
        return threading.current_thread() is not threading.main_thread()

    buffer = ResponseBuffer()
    buffer.pause(wait=wait)
    with pytest.raises(BufferPausedError):
        buffer.add(answer("main"))
    thread, outcome = start_adding(buffer, answer("worker"))
    assert asked[0] is threading.main_thread() and thread in asked
    buffer.resume()
    thread.join(30)
    assert (outcome, buffer.queries) == ([1], ("worker",))


def test_who_is_asked_may_raise_or_resume():
    buffer = ResponseBuffer()

    def refuse():
        raise Refused

    buffer.pause(wait=refuse)
    with pytest.raises(Refused):
        buffer.add(answer())
    assert len(buffer) == 0
    buffer.resume()
    buffer.pause(wait=buffer.resume)
    buffer.add(answer("let in"))
    assert (buffer.paused, buffer.queries) == (False, ("let in",))


@pytest.mark.skipif(os.name == "nt", reason="needs os.kill with SIGINT")
def test_ctrl_c_ends_the_wait():
    buffer = ResponseBuffer()
    response = answer()
    buffer.pause()

    def interrupt():
        wait_for(lambda: buffer.stats["waited"])
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    references = sys.getrefcount(response)
    with pytest.raises(KeyboardInterrupt):
        buffer.add(response)
    thread.join()
    assert (len(buffer), buffer.paused, sys.getrefcount(response)) == (0, True, references)
    buffer.resume()
    buffer.add(response)


def test_a_buffer_not_initialised_yet_may_be_paused():
    buffer = ResponseBuffer.__new__(ResponseBuffer)
    buffer.pause(wait=False)
    buffer.__init__(10)
    with pytest.raises(BufferPausedError):
        buffer.add(answer())
    buffer.resume()
    buffer.add(answer())
    with pytest.raises(BufferFullError):
        ResponseBuffer.__new__(ResponseBuffer).add(answer())


def test_a_paused_buffer_in_garbage_is_freed():
    class Waits:
        def __init__(self, buffer):
            self.buffer = buffer

        def __call__(self):
            return True

    buffer = ResponseBuffer()
    buffer.pause(wait=Waits(buffer))
    gone = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert gone() is None
    buffer = ResponseBuffer()
    buffer.pause()
    gone = weakref.ref(buffer)
    del buffer
    assert FREE_THREADED or gone() is None


def test_eight_threads_with_pauses(hammer):
    buffer = ResponseBuffer(64, 16)
    counts = [0] * 8
    taken = []

    def work(i):
        if i < 6:
            while True:
                try:
                    buffer.add_batch(answers(3)) if i % 2 else buffer.add(answer())
                    break
                except BufferFullError:
                    taken.extend(buffer.flush())
                except BufferPausedError:
                    pass
            counts[i] += 3 if i % 2 else 1
        elif i == 6:
            buffer.pause(wait=(True, False, 0.0001, lambda: True)[counts[6] % 4])
            counts[6] += 1
            time.sleep(0)
            buffer.resume()
        else:
            held = len(buffer)
            assert held <= 64
            buffer.columns(), buffer.aggregate(), buffer.paused, taken.extend(buffer.flush())

    hammer(8, work, iterations=200)
    assert not buffer.paused
    taken.extend(buffer.flush())
    assert len(taken) == len({id(response) for response in taken}) == sum(counts[:6])
    assert buffer.stats["added"] == sum(counts[:6])


def test_two_threads_that_pause_and_many_that_wait(hammer):
    # Whoever waits gets in, however the ends of the pauses interleave.
    buffer = ResponseBuffer(10000)

    def work(i):
        if i < 2:
            if buffer.pause():
                buffer.resume()
        else:
            buffer.add(answer())

    hammer(8, work, iterations=200)
    assert len(buffer) == 6 * 200


@needs_fork
@quiet_fork
def test_a_forked_child_has_a_paused_buffer_of_its_own():
    buffer = ResponseBuffer(10)
    buffer.pause(wait=True)
    thread, outcome = start_adding(buffer, answer("parent"))

    def child():
        assert buffer.paused
        assert buffer.resume()
        assert not buffer.paused
        buffer.add(answer("child"))
        assert buffer.queries == ("child",)
        assert buffer.pause(wait=0.001)
        with pytest.raises(BufferPausedError):
            buffer.add(answer())

    in_child(child)
    assert thread.is_alive() and not outcome
    buffer.resume()
    thread.join(30)
    assert (outcome, buffer.queries) == ([1], ("parent",))


def test_a_waiting_daemon_does_not_keep_the_interpreter_from_ending():
    code = (
        "import threading, time\n"
        "from synthex_fast import PooledExpertResponse, ResponseBuffer\n"
        "buffer = ResponseBuffer(); buffer.pause()\n"
        "put = lambda: buffer.add(PooledExpertResponse('q', 'e'))\n"
        "[threading.Thread(target=put, daemon=True).start() for _ in range(4)]\n"
        "while buffer.stats['waited'] < 4: time.sleep(0.001)\n"
    )
    run(code, stderr=None)


# aggregate --------------------------------------------------------------------------------------------------


def plain_aggregate(rows):
    by_query = {}
    for row in rows:
        by_query.setdefault(row.query_id, []).append(row)
    return {
        query: (
            len(group),
            statistics.fmean(row.confidence for row in group),
            statistics.pvariance([row.confidence for row in group]),
            frozenset(row.expert_id for row in group),
        )
        for query, group in by_query.items()
    }


def check_consensus(buffer, rows):
    """`consensus` and `aggregate` give what the statistics module makes of these responses."""
    expected = plain_aggregate(rows)
    aggregate = buffer.aggregate()
    assert list(aggregate) == list(expected)
    for query, (count, mean, variance, experts) in expected.items():
        row = buffer.consensus(query)
        assert row == aggregate[query]
        assert (row.count, row.experts) == (count, experts)
        assert row.mean == pytest.approx(mean, rel=1e-12, abs=1e-15)
        assert row.variance == pytest.approx(variance, rel=1e-9, abs=1e-20)
    with pytest.raises(KeyError, match="nobody's"):
        buffer.consensus("nobody's")
    return expected


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from("vwxyz"), st.floats(0, 1)),
        max_size=60,
    )
)
def test_aggregate_agrees_with_statistics(triples):
    buffer = ResponseBuffer()
    rows = [answer(*triple) for triple in triples]
    buffer.add_batch(rows)
    aggregate = buffer.aggregate()
    expected = plain_aggregate(rows)
    assert list(aggregate) == list(expected)
    for query, (count, mean, variance, experts) in expected.items():
        row = aggregate[query]
        assert (row.count, row.experts) == (count, experts)
        assert row.mean == pytest.approx(mean, rel=1e-12, abs=1e-300)
        assert row.variance == pytest.approx(variance, rel=1e-9, abs=1e-20)
        assert row.variance >= 0


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_variance_is_stable(batch):
    buffer = ResponseBuffer()
    rows = [answer(confidence=0.9 + i * 1e-13) for i in range(100)]
    for start in range(0, 100, batch):
        buffer.add_batch(rows[start : start + batch])
    expected = statistics.pvariance([row.confidence for row in rows])
    assert buffer.aggregate()["q"].variance == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 10])
def test_variance_is_stable_when_the_first_answer_is_an_outlier(batch):
    # The figures are kept relative to the first confidence, which here is far from all the others.
    buffer = ResponseBuffer(20_000)
    rows = [answer(confidence=0.0), *(answer(confidence=0.9 + i % 100 * 1e-9) for i in range(19_999))]
    for start in range(0, 20_000, batch):
        buffer.add_batch(rows[start : start + batch])
    row = buffer.consensus("q")
    assert row.mean == pytest.approx(math.fsum(r.confidence for r in rows) / 20_000, rel=1e-13)
    assert row.variance == pytest.approx(statistics.pvariance([r.confidence for r in rows]), rel=1e-9)


def test_consensus_follows_every_addition():
    buffer = ResponseBuffer()
    buffer.add(answer("a", "ada", 1.0))
    buffer.add_batch([answer("b", "bob", 0.25), answer("a", "bob", 0.5), answer("a", "ada", 0.75)])
    assert buffer.consensus("a") == AggregateRow(3, 0.75, 0.125 / 3, {"ada", "bob"})
    assert buffer.consensus("".join(["b"])) == AggregateRow(1, 0.25, 0.0, {"bob"})
    with pytest.raises(KeyError, match="c"):
        buffer.consensus("c")
    buffer.flush()
    with pytest.raises(KeyError, match="a"):
        buffer.consensus("a")
    buffer.add(answer("a", "cyd", 0.75))
    assert buffer.consensus("a") == AggregateRow(1, 0.75, 0.0, {"cyd"})


def test_consensus_takes_an_id_of_a_str_subclass_by_its_text():
    class Loud(str):
        def __hash__(self):
            raise AssertionError

    buffer = ResponseBuffer()
    buffer.add(answer("b"))
    assert buffer.consensus(Loud("b")).count == 1


@pytest.mark.parametrize("bad", [None, True, 3, math.nan, b"q", [], ("q",)])
def test_consensus_refuses_what_is_no_string(bad):
    buffer = ResponseBuffer()
    buffer.add(answer())
    with pytest.raises(ArgumentTypeError, match="query_id must be a string"):
        buffer.consensus(bad)


def test_consensus_of_a_buffer_that_was_never_initialised():
    with pytest.raises(KeyError):
        ResponseBuffer.__new__(ResponseBuffer).consensus("q")


def test_consensus_allocates_the_row_and_nothing_else():
    from synthex_fast.validate import _allocations

    for held in (10, 20_000):
        buffer = ResponseBuffer(held, held)
        buffer.add_batch(answers(held, queries=held // 5))
        buffer.consensus("q0")
        kept = [None] * 100
        _allocations.start()
        for i in range(100):
            kept[i] = buffer.consensus("q0")
        seen, blocks = _allocations.stop()
        if not FREE_THREADED:  # there the set is built at once
            # Besides the row an int of the loop.
            assert (seen <= 200 * 100, blocks <= 2 * 100) == (True, True)


@pytest.mark.parametrize("take", [lambda b, q: b.consensus(q), lambda b, q: b.aggregate()[q]])
@pytest.mark.parametrize("end", ["flush", "more", "partial flush", "del"])
def test_a_row_shows_what_was_so_when_it_was_made(take, end):
    behind = []
    buffer = ResponseBuffer(100, on_flush=lambda responses: [buffer.add(each) for each in behind])
    buffer.add_batch([answer("a", "ada", 1.0), answer("b", "bob", 0.5), answer("a", "bob", 0.5)])
    rows = [take(buffer, "a") for _ in range(3)]
    dropped = [take(buffer, "b") for _ in range(3)]
    del dropped[1], rows[1]
    if end == "more":
        buffer.add_batch([*answers(20), answer("a", "cyd", 0.0)])
    elif end == "partial flush":
        behind = [answer("b", "dan", 0.0), answer("a", "eve", 0.0)]
        buffer.flush()
        assert buffer.consensus("a") == AggregateRow(1, 0.0, 0.0, {"eve"})
    elif end == "flush":
        buffer.flush()
        buffer.add_batch(answers(20))
    else:
        del buffer
        gc.collect()
    assert rows == [AggregateRow(2, 0.75, 0.0625, {"ada", "bob"})] * 2
    assert dropped == [AggregateRow(1, 0.5, 0.0, {"bob"})] * 2


def test_rows_and_aggregates_do_not_keep_the_slab():
    buffer = ResponseBuffer()
    for turn in range(3):
        buffer.add_batch(answers(5))
        before = address(buffer)
        made = buffer.consensus("q0"), buffer.aggregate(), buffer.aggregate()["q1"]
        buffer.flush()
        assert FREE_THREADED or address(buffer) == before
        assert made[0].experts == made[1]["q0"].experts == {"e0", "e1"}, turn


def test_consensus_in_the_flush_handler():
    seen = []

    def handler(responses):
        seen.extend((buffer.consensus("a"), buffer.aggregate(), buffer.aggregate()["a"]))
        buffer.add(answer("a", "cyd", 0.0))
        seen.append(buffer.consensus("a"))
        raise KeyError

    buffer = ResponseBuffer(100, on_flush=handler)
    buffer.add(answer("a", "ada", 1.0))
    before = buffer.consensus("a")
    with pytest.raises(KeyError):
        buffer.flush()
    first = AggregateRow(1, 1.0, 0.0, {"ada"})
    both = AggregateRow(2, 0.5, 0.25, {"ada", "cyd"})
    assert [before, seen[0], seen[1]["a"], seen[2]] == [first] * 4
    assert seen[3] == buffer.consensus("a") == both


@pytest.mark.parametrize("unread", [True, False])
def test_rows_made_in_the_flush_handler_outlive_the_flush(unread):
    kept = []

    def handler(responses):
        kept.extend((buffer.consensus("a"), buffer.aggregate(), buffer.aggregate()["a"]))
        if not unread:
            assert kept[0].experts == {"ada"}
        buffer.add(answer("b", "bob", 0.0))

    buffer = ResponseBuffer(100, on_flush=handler)
    buffer.add(answer("a", "ada", 1.0))
    before = address(buffer)
    buffer.flush()
    assert FREE_THREADED or address(buffer) == before
    assert [kept[0], kept[1]["a"], kept[2]] == [AggregateRow(1, 1.0, 0.0, {"ada"})] * 3
    assert dict(buffer.aggregate()) == {"b": AggregateRow(1, 0.0, 0.0, {"bob"})}


def test_partial_flushes_do_not_let_rounding_errors_add_up():
    # Each flush leaves one row behind, of a query that has been there from the start.
    buffer = ResponseBuffer(50, on_flush=lambda responses: buffer.add(behind))
    for i in range(2_000):
        buffer.add_batch([answer("a", f"e{i}", (i * 7919 % 1000) / 1000) for i in range(5)])
        behind = answer("a", "last", i % 10 / 10)
        buffer.flush()
        assert buffer.consensus("a") == AggregateRow(1, i % 10 / 10, 0.0, {"last"})


@pytest.mark.parametrize(
    ("confidences", "level"),
    [
        ([0.9, 0.8], "high"),
        ([0.71], "high"),
        ([0.7], "medium"),
        ([1.0, 1.0, 1.0, 0.5], "high"),
        ([1.0, 0.5], "medium"),
        ([0.51], "medium"),
        ([0.5], "low"),
        ([0.1], "low"),
        ([1.0, 0.0, 1.0], "low"),
        ([1.0, 1.0, 1.0, 0.2], "low"),
    ],
)
def test_consensus_levels(confidences, level):
    buffer = ResponseBuffer()
    buffer.add_batch([answer(confidence=c) for c in confidences])
    assert buffer.aggregate()["q"].consensus == level


@pytest.mark.parametrize(
    ("mean", "variance", "level"),
    [
        (0.8, 0.05, "medium"),
        (0.8, math.nextafter(0.05, 0), "high"),
        (0.7, 0.01, "medium"),
        (math.nextafter(0.7, 1), 0.01, "high"),
        (0.6, 0.1, "low"),
        (0.6, math.nextafter(0.1, 0), "medium"),
        (0.5, 0.0, "low"),
        (math.nextafter(0.5, 1), 0.0, "medium"),
        (math.nan, math.nan, "low"),
    ],
)
def test_consensus_boundaries(mean, variance, level):
    assert AggregateRow(1, mean, variance, ()).consensus == level


def test_aggregate_is_a_mapping():
    buffer = ResponseBuffer()
    assert dict(buffer.aggregate()) == {}
    assert "q" not in buffer.aggregate()
    buffer.add_batch(
        [answer("b", "x", 0.5), answer("a", "y", 1.0), answer("b", "y", 1.0), answer("b", "x", 0.0)]
    )
    aggregate = buffer.aggregate()
    assert isinstance(aggregate, collections.abc.Mapping)
    assert list(aggregate) == list(aggregate.keys()) == ["b", "a"]
    assert list(reversed(aggregate)) == ["a", "b"]
    assert len(aggregate) == 2
    assert aggregate["b"] == AggregateRow(3, 0.5, 0.5 / 3, {"x", "y"})
    assert type(aggregate["b"].experts) is frozenset
    assert dict(aggregate.items()) == dict(aggregate)
    assert list(aggregate.values()) == [aggregate["b"], aggregate["a"]]
    assert "".join(["b"]) in aggregate
    assert "c" not in aggregate
    assert 3 not in aggregate
    assert aggregate.get("c") is None
    assert aggregate.get(3, 4) == 4
    for key in ("c", 3, None, b"b", ("b",)):
        with pytest.raises(KeyError):
            aggregate[key]
    with pytest.raises(TypeError):
        aggregate[[]]
    with pytest.raises(TypeError):
        aggregate["c"] = 1
    assert aggregate == dict(aggregate)
    assert aggregate == buffer.aggregate()
    assert aggregate != {}
    assert aggregate != 3
    with pytest.raises(TypeError):
        hash(aggregate)
    assert "2 queries" in repr(aggregate)
    match aggregate:
        case {"a": AggregateRow(count=1)}:
            pass
        case _:
            pytest.fail("no mapping to match")


def test_aggregate_takes_a_key_of_a_str_subclass_by_its_text():
    class Loud(str):
        def __hash__(self):
            raise AssertionError

    buffer = ResponseBuffer()
    buffer.add(answer("b"))
    assert buffer.aggregate()[Loud("b")].count == 1


def test_a_row():
    row = AggregateRow(2, 0.75, 0.0625, ["bob", "ada"])
    assert repr(row) == (
        "AggregateRow(count=2, mean=0.75, variance=0.0625, experts={'ada', 'bob'}, consensus='medium')"
    )
    assert row == AggregateRow(2, 0.75, 0.0625, ("ada", "bob"))
    assert hash(row) == hash(AggregateRow(2, 0.75, 0.0625, ("ada", "bob")))
    assert row != AggregateRow(2, 0.75, 0.0625, ("ada",))
    assert row != (2, 0.75, 0.0625)
    match row:
        case AggregateRow(count, mean, variance, experts):
            assert (count, mean, variance, experts) == (2, 0.75, 0.0625, {"ada", "bob"})
    assert pickle.loads(pickle.dumps(row)) == copy.deepcopy(row) == row
    with pytest.raises(AttributeError):
        row.count = 3


def test_an_aggregate_does_not_change():
    buffer = ResponseBuffer()
    buffer.add_batch(answers(20, queries=7))
    aggregate = buffer.aggregate()
    before = dict(aggregate)
    buffer.add_batch(answers(50, queries=9))
    assert dict(aggregate) == before
    assert "q8" not in aggregate
    assert aggregate.get("q8") is None
    assert buffer.aggregate()["q8"].count == 5
    buffer.flush()
    buffer.add_batch([answer("other", "other", 1.0)] * 50)
    del buffer
    gc.collect()
    assert dict(aggregate) == before
    assert list(aggregate) == list(before)


# Pickling, subclasses, the collector ------------------------------------------------------------------------


def test_buffers_are_not_copied():
    buffer = ResponseBuffer()
    buffer.add(answer())
    for thing in (buffer, buffer.columns(), buffer.aggregate(), buffer.columns().query.base):
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(ArgumentTypeError, match="can't be pickled or copied"):
                attempt(thing)
    assert pickle.loads(pickle.dumps(dict(buffer.aggregate()))) == dict(buffer.aggregate())
    assert pickle.loads(pickle.dumps(buffer.columns().query)).tolist() == [0]


def test_subclasses():
    class Named(ResponseBuffer):
        def __init__(self, name):
            super().__init__(4, on_flush=self.take)
            self.name = name
            self.taken = []

        def take(self, responses):
            self.taken += responses

    buffer = Named("mine")
    rows = answers(4)
    buffer.add_batch(rows)
    assert buffer.taken == rows
    assert buffer.name == "mine"
    assert repr(buffer) == "<Named of 0 responses, capacity 4>"
    buffer.add(answer())
    gone = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert gone() is None


def test_the_buffer_holds_one_reference_to_each_response():
    buffer = ResponseBuffer()
    response = answer("query one", "expert one")
    before = sys.getrefcount(response)
    for make in (list, tuple, iter):
        buffer.add_batch(make([response]))
    buffer.add(response)
    assert sys.getrefcount(response) == before + 4
    assert gc.get_referents(buffer).count(response) == 4
    flushed = buffer.flush()
    assert sys.getrefcount(response) == before + 4
    del flushed
    assert sys.getrefcount(response) == before
    buffer.add(response)
    del buffer
    gc.collect()
    assert sys.getrefcount(response) == before


def test_garbage_cycles_are_collected():
    class Clinging(PooledExpertResponse):
        pass

    class Handler:
        def __call__(self, responses):
            pass

    for through in ("response", "handler", "subclass"):
        handler = Handler()
        buffer = ResponseBuffer(on_flush=handler)
        response = Clinging("q", "e")
        buffer.add(response)
        gone = weakref.ref(buffer), weakref.ref(response)
        if through == "response":
            response.buffer = buffer
        elif through == "handler":
            handler.buffer = buffer
        else:
            response.metadata_holder = {"buffer": buffer, "self": response}
        del buffer, response, handler
        gc.collect()
        assert [ref() for ref in gone] == [None, None], through


def test_a_buffer_in_garbage_is_whole_for_finalizers():
    seen = []

    class Owner:
        def __init__(self):
            self.buffer = ResponseBuffer()
            self.buffer.add_batch(answers(5))
            self.me = self

        def __del__(self):
            seen.append(len(self.buffer.flush()))
            self.buffer.add(answer())
            seen.append(self.buffer)

    Owner()
    gc.collect()
    assert seen[0] == 5
    assert len(seen[1]) == 1
    assert seen[1].queries == ("q",)


def test_weak_references_are_dead_before_the_responses_go():
    found = []

    class Nosy(PooledExpertResponse):
        def __del__(self):
            found.append(ref())

    buffer = ResponseBuffer()
    buffer.add_batch([Nosy("q", "e"), Nosy("q", "e")])
    ref = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert found == [None, None]


# Memory -----------------------------------------------------------------------------------------------------


def take(responses):
    """A handler that is done at once."""


def filled(handler=None, rows=6, view=False):
    """A buffer, what is to be added to it, columns that are alive or None, and how it looks."""

    def make():
        buffer = ResponseBuffer(10, on_flush=handler)
        buffer.add_batch(answers(rows))
        return buffer, answers(4), buffer.columns() if view else None, snapshot(buffer)

    return make


def filled_and_read(handler=None):
    made = filled(handler)()
    return (*made, made[0].consensus("q0"), made[0].aggregate())


def paused(wait):
    def make():
        made = filled()()
        made[0].pause(wait)
        return made

    return make


def unchanged(made):
    buffer, _, columns, before, *rows = made
    assert snapshot(buffer) == before
    for row in rows:
        row = row["q0"] if isinstance(row, Aggregate) else row
        assert (row.count, row.experts) == (2, {"e0", "e1"})
    if columns is not None:
        assert columns.confidence.tolist() == before[1]
    assert len(buffer.flush()) == before[0]


def added_to(made):
    """The addition itself needs no memory: where it was done, the flush that it brought on failed."""
    buffer, rows, _, before = made
    if buffer.stats["added"] == before[5]:
        unchanged(made)
        return
    assert (len(buffer), buffer.stats["flushed"]) == (buffer.stats["added"], 0)
    flushed = buffer.flush()
    assert flushed[before[0] :] == rows[: len(flushed) - before[0]]


def add_batch_refused(made):
    # Whatever fails, the answer is no.
    with contextlib.suppress(BufferFullError, BufferPausedError):
        made[0].add_batch(made[1])


def add_refused(made):
    with contextlib.suppress(BufferPausedError):
        made[0].add(made[1][0])


FAILING = {
    "construction": (filled(), lambda made: ResponseBuffer(10), unchanged),
    "add_batch of an iterator": (filled(), lambda made: made[0].add_batch(iter(made[1])), unchanged),
    "add_batch without room": (filled(rows=7), add_batch_refused, unchanged),
    "add with a handler": (filled(take, 7), lambda made: made[0].add(made[1][0]), added_to),
    "add_batch with a handler": (filled(take), lambda made: made[0].add_batch(made[1]), added_to),
    "add_batch with a handler to make room": (
        filled(take, 7),
        lambda made: made[0].add_batch(made[1]),
        added_to,
    ),
    "flush": (filled(), lambda made: made[0].flush(), unchanged),
    "flush with views": (filled(view=True), lambda made: made[0].flush(), unchanged),
    "flush with a handler": (filled(take), lambda made: made[0].flush(), unchanged),
    "flush with a handler and views": (filled(take, view=True), lambda made: made[0].flush(), unchanged),
    "flush with a handler that looks": (
        lambda: (made := filled(lambda responses: made[0].columns())()),
        lambda made: made[0].flush(),
        unchanged,
    ),
    "trim": (filled(take), lambda made: made[0].trim(1), unchanged),
    "columns": (filled(), lambda made: made[0].columns(), unchanged),
    "queries": (filled(), lambda made: made[0].queries, unchanged),
    "aggregate": (filled(), lambda made: made[0].aggregate(), unchanged),
    "a row": (filled(), lambda made: made[0].aggregate()["q0"], unchanged),
    "consensus": (filled(), lambda made: made[0].consensus("q0"), unchanged),
    "a row's experts": (filled(), lambda made: made[0].consensus("q0").experts, unchanged),
    "consensus in a handler": (
        lambda: (made := filled(lambda responses: made[0].consensus("q0"))()),
        lambda made: made[0].flush(),
        unchanged,
    ),
    "aggregate in a handler": (
        lambda: (made := filled(lambda responses: made[0].aggregate())()),
        lambda made: made[0].flush(),
        unchanged,
    ),
    "flush with a row": (filled_and_read, lambda made: made[0].flush(), unchanged),
    "flush with a row and a handler": (
        lambda: filled_and_read(take),
        lambda made: made[0].flush(),
        unchanged,
    ),
    "stats": (filled(), lambda made: made[0].stats, unchanged),
    "pause": (filled(), lambda made: made[0].pause(0.5), unchanged),
    "add while paused": (paused(lambda: False), add_refused, unchanged),
    "a wait": (paused(0.0001), add_batch_refused, unchanged),
}


@pytest.mark.parametrize("case", FAILING)
def test_failing_allocations(case, fail_allocations):
    prepare, call, check = FAILING[case]
    assert fail_allocations(call, check=check, prepare=prepare) > 0


def test_adding_allocates_nothing():
    _testcapi = pytest.importorskip("_testcapi")
    buffer = ResponseBuffer(1000)
    rows = answers(100, queries=100, experts=100)
    few, many, last = rows[:5], tuple(rows[5:99]), rows[99]
    add, add_batch, failed = buffer.add, buffer.add_batch, None
    for _ in range(2):  # fills the interpreter's own caches for the calls
        add(last)
        add_batch(few)
        add_batch(many)
        buffer.flush()
    _testcapi.set_nomemory(0)
    try:
        add(last)
        if not FREE_THREADED:  # there a list is copied, and a long batch read into memory of its own
            add_batch(few)
            add_batch(many)
    except MemoryError as error:
        failed = error
    finally:
        _testcapi.remove_mem_hooks()
    assert failed is None
    assert holds(buffer, [last] if FREE_THREADED else [last, *few, *many])


def test_nothing_is_kept_of_what_was_let_go():
    buffer = ResponseBuffer(100, on_flush=take)
    text = "".join(["some", "id"])
    before = sys.getrefcount(text)
    for _ in range(10):
        buffer.add_batch([answer(text, text) for _ in range(30)])
        views = buffer.columns(), buffer.aggregate()
        buffer.flush()
    assert sys.getrefcount(text) > before
    del views
    buffer.add(answer())
    buffer.flush()
    assert sys.getrefcount(text) == before


# State machine ----------------------------------------------------------------------------------------------


class Refused(Exception):
    pass


class PlainBuffer:
    """What a ResponseBuffer does, on a list."""

    def __init__(self, capacity, max_batch, flush_threshold, on_flush):
        self.capacity, self.max_batch, self.on_flush = capacity, max_batch, on_flush
        self.flush_at = max(1, math.ceil(flush_threshold * capacity * (1 - 1e-12)))
        self.rows = []
        self.flushing = False
        self.paused = False

    def pause(self, wait):
        self.paused, was = True, self.paused
        return not was

    def resume(self):
        self.paused, was = False, self.paused
        return was

    def add(self, response):
        self.add_batch([response], 1)

    def add_batch(self, responses, cap=None):
        responses = list(responses)
        if len(responses) > (cap or self.max_batch):
            raise BatchTooLargeError
        if not all(isinstance(response, PooledExpertResponse) for response in responses):
            raise ArgumentTypeError
        if not responses:
            return 0
        if self.paused:
            raise BufferFullError if len(responses) > self.capacity else BufferPausedError
        if len(self.rows) + len(responses) > self.capacity:
            if self.on_flush is None or len(responses) > self.capacity:
                raise BufferFullError
            self.flush()
            if len(self.rows) + len(responses) > self.capacity:
                raise BufferFullError
        self.rows += responses
        if self.on_flush is not None and len(self.rows) >= self.flush_at:
            self.flush()
        return len(responses)

    def flush(self):
        if self.flushing:
            return []
        taken = list(self.rows)
        if taken and self.on_flush is not None:
            self.flushing = True
            try:
                self.on_flush(list(taken))
            finally:
                self.flushing = False
        del self.rows[: len(taken)]
        return taken

    def trim(self, nbytes):
        if self.on_flush is not None:
            self.flush()


class BufferMachine(RuleBasedStateMachine):
    """The buffer and the list, each with a handler that refuses, adds and flushes again as it is told."""

    response = st.builds(answer, st.sampled_from("pqrstu"), st.sampled_from("vwxyz"), st.floats(0, 1))

    @initialize(
        capacity=st.integers(1, 12),
        max_batch=st.integers(1, 15),
        threshold=st.floats(0.05, 1),
        handled=st.booleans(),
    )
    def start(self, capacity, max_batch, threshold, handled):
        self.log = {}
        self.views = []
        self.kept = []
        self.refuse, self.look, self.behind = False, False, []

        def handler_for(name):
            def handler(responses):
                target = getattr(self, name)
                log = self.log[name]
                log.append(list(responses))
                if self.look and name == "buffer":
                    self.view()
                    self.kept.append(self.snapshot())
                for response in self.behind:
                    try:
                        target.add(response)
                    except (BufferFullError, BufferPausedError) as error:
                        log.append(type(error))
                log.append(target.flush())
                responses.clear()
                if self.refuse:
                    raise Refused

            return handler if handled else None

        self.buffer = ResponseBuffer(
            capacity, max_batch, flush_threshold=threshold, on_flush=handler_for("buffer")
        )
        self.model = PlainBuffer(capacity, max_batch, threshold, handler_for("model"))

    def snapshot(self):
        """What the buffer's aggregate says now; the model may be some steps behind or ahead."""
        aggregate = self.buffer.aggregate()
        rows = [self.buffer.consensus(query) for query in aggregate]
        expected = {
            query: (row.count, row.mean, row.variance, row.experts) for query, row in aggregate.items()
        }
        return aggregate, rows, expected

    def both(self, act):
        outcomes = []
        for name in ("buffer", "model"):
            self.log[name] = []
            try:
                outcomes.append((act(getattr(self, name)), self.log[name]))
            except (
                Refused,
                ArgumentTypeError,
                BatchTooLargeError,
                BufferFullError,
                BufferPausedError,
            ) as error:
                outcomes.append((type(error), self.log[name]))
        assert outcomes[0] == outcomes[1]

    @rule(refuse=st.booleans(), look=st.booleans(), behind=st.lists(response, max_size=3))
    def tell_handler(self, refuse, look, behind):
        self.refuse, self.look, self.behind = refuse, look, behind

    @rule(response=response)
    def add(self, response):
        self.both(lambda target: target.add(response))

    @rule(responses=st.lists(response, max_size=16), make=st.sampled_from([list, tuple, iter]))
    def add_batch(self, responses, make):
        self.both(lambda target: target.add_batch(make(responses)))

    @rule(
        responses=st.lists(response, max_size=4),
        bad=st.sampled_from([None, 3, "x"]),
        make=st.sampled_from([list, iter]),
    )
    def add_bad(self, responses, bad, make):
        self.both(lambda target: target.add_batch(make([*responses, bad])))

    @rule()
    def flush(self):
        self.both(lambda target: target.flush())

    @rule()
    def trim(self):
        self.both(lambda target: (target.trim(1), None)[1])

    @rule()
    def pause(self):
        self.both(lambda target: target.pause(wait=False))

    @rule()
    def resume(self):
        self.both(lambda target: target.resume())

    @rule()
    def view(self):
        columns = self.buffer.columns()
        self.views.append(
            (columns, [column.tolist() for column in columns.values()], columns.queries, columns.experts)
        )

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def drop_view(self, data):
        self.views.pop(data.draw(st.integers(0, len(self.views) - 1)))

    @rule()
    def aggregate(self):
        expected = check_consensus(self.buffer, self.model.rows)
        self.kept.append(
            (self.buffer.aggregate(), [self.buffer.consensus(query) for query in expected], expected)
        )

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def drop_rows(self, data):
        aggregate, rows, expected = self.kept.pop(data.draw(st.integers(0, len(self.kept) - 1)))
        assert list(aggregate) == list(expected)
        assert [row.experts for row in rows] == [row.experts for row in aggregate.values()]
        assert [row.experts for row in rows] == [experts for _, _, _, experts in expected.values()]
        assert [row.count for row in rows] == [count for count, _, _, _ in expected.values()]

    @invariant()
    def agrees(self):
        assert holds(self.buffer, self.model.rows)
        check_consensus(self.buffer, self.model.rows)
        assert self.buffer.paused == self.model.paused
        assert self.buffer.stats["added"] - self.buffer.stats["flushed"] == len(self.model.rows)
        for columns, values, queries, experts in self.views:
            assert [column.tolist() for column in columns.values()] == values
            assert (columns.queries, columns.experts) == (queries, experts)


BufferMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30)
TestBufferMachine = BufferMachine.TestCase


# Threads and fork -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handled", [False, True])
def test_eight_threads(handled, hammer):
    taken = []
    buffer = ResponseBuffer(64, 16, on_flush=taken.extend if handled else None)
    turns = [itertools.count() for _ in range(8)]

    def put(i):
        turn = next(turns[i])
        rows = [answer(f"{i}-{turn}", f"e{k}", k / 8) for k in range(5)]
        make = (list, tuple, iter)[turn % 3]
        while True:
            try:
                buffer.add_batch(make(rows))
                break
            except BufferFullError:
                flushed = buffer.flush()
                if not handled:
                    taken.extend(flushed)

    def look():
        columns = buffer.columns()
        copies = [column.tolist() for column in columns.values()]
        assert sum(row.count for row in buffer.aggregate().values()) <= 64
        queries = columns.queries
        # A batch goes in whole and in order.
        ids = [queries[code] for code in columns.query]
        assert all(len(list(group)) == 5 for _, group in itertools.groupby(ids))
        assert [column.tolist() for column in columns.values()] == copies
        assert len(buffer) <= 64
        # However other threads flush, a row is that of a whole batch or does not exist.
        rows = list(buffer.aggregate().values())
        for query in queries:
            with contextlib.suppress(KeyError):
                rows.append(buffer.consensus(query))
        assert set(rows) <= {AggregateRow(5, 0.25, 0.03125, ("e0", "e1", "e2", "e3", "e4"))}

    hammer(8, lambda i: look() if i % 4 == 3 else put(i), iterations=150)
    flushed = buffer.flush()
    if not handled:
        taken.extend(flushed)
    added = 6 * 150 * 5
    assert len(taken) == len({id(response) for response in taken}) == added
    assert buffer.stats["added"] == buffer.stats["flushed"] == added
    by_query = {}
    for response in taken:
        by_query.setdefault(response.query_id, []).append(response.expert_id)
    assert all(experts == ["e0", "e1", "e2", "e3", "e4"] for experts in by_query.values())


def test_threads_that_change_what_is_being_added(hammer):
    buffer = ResponseBuffer(1000, 1000)
    shared = answers(8)

    def change():
        shared.append(answer("new", "new"))
        shared.pop(0)
        shared[0].query_id = "".join(["ch", "anged"])
        shared[0].confidence = 0.125

    def put():
        with contextlib.suppress(BufferFullError):
            buffer.add_batch(shared)
            buffer.columns()
        buffer.flush()

    hammer(4, lambda i: change() if i == 0 else put(), iterations=300)
    assert buffer.stats["added"] == buffer.stats["flushed"] + len(buffer)


@needs_fork
@quiet_fork
def test_a_flush_in_a_thread_that_a_fork_left_behind_does_not_block_the_child():
    entered, leave = threading.Event(), threading.Event()
    # The child must not touch the events, whose locks the worker may hold during the fork.
    parent = os.getpid()

    def handler(responses):
        if os.getpid() == parent and not leave.is_set():
            entered.set()
            assert leave.wait(10)

    buffer = ResponseBuffer(10, on_flush=handler)
    rows = answers(4)
    buffer.add_batch(rows)
    worker = threading.Thread(target=buffer.flush)
    worker.start()
    assert entered.wait(10)
    view = buffer.columns()

    def child():
        assert buffer.flush() == rows
        assert (len(buffer), len(view.query)) == (0, 4)
        buffer.add(rows[0])
        assert buffer.flush() == rows[:1]

    in_child(child)
    leave.set()
    worker.join()
    assert len(buffer) == 0


@needs_fork
@quiet_fork
def test_a_fork_in_the_handler_goes_on_in_both_processes():
    child = None

    def handler(responses):
        nonlocal child
        if child is None:
            child = os.fork()
            # The running flush is this thread's own, in the child as well.
            assert buffer.flush() == []
            buffer.add(answer("behind"))

    buffer = ResponseBuffer(10, on_flush=handler)
    try:
        buffer.add_batch(answers(8))
        good = buffer.queries == ("behind",) and len(buffer.flush()) == 1
    finally:
        if child == 0:
            os._exit(0 if good else 1)
    assert good
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_fork
@quiet_fork
def test_forks_while_threads_use_the_buffer(hammer):
    buffer = ResponseBuffer(64, on_flush=take)

    def work():
        with contextlib.suppress(BufferFullError):
            buffer.add_batch(answers(5))
        buffer.columns()
        buffer.aggregate()

    def child():
        buffer.flush()
        for _ in range(20):
            buffer.add_batch(answers(5))
        buffer.columns()

    hammer(4, lambda i: in_child(child) if i == 0 else work(), iterations=8)


# The interpreter --------------------------------------------------------------------------------------------


def test_importing_leaves_numpy_out():
    run("import sys, synthex_fast._slab; assert 'numpy' not in sys.modules and 'logging' not in sys.modules")


def scenario():
    def handler(responses):
        with contextlib.suppress(BufferFullError):
            buffer.add(answer("behind"))
        kept.append(buffer.columns())

    kept = []
    buffer = ResponseBuffer(20, on_flush=handler)
    for make in (list, tuple, iter):
        for i in range(10):
            buffer.add_batch(make(answers(5, queries=i + 1)))
    kept.append(dict(buffer.aggregate()))
    buffer.trim(1)
    plain = ResponseBuffer(10)
    plain.add_batch(answers(9))
    for bad in ([3], answers(3), iter([answer(), None]), 3):
        with contextlib.suppress(TypeError, OverflowError):
            plain.add_batch(bad)
    for wait in (False, 0.0001, lambda: plain is None, -1, "x", object):
        with contextlib.suppress(TypeError, ValueError, BufferPausedError):
            plain.pause(wait)
            plain.pause(lambda: False)
            plain.add(answer())
        plain.resume()
    ResponseBuffer(5).pause(lambda: False)
    ResponseBuffer(5).pause(plain.resume)
    view = plain.columns()
    plain.flush()
    for bad in (
        {"capacity": 0},
        {"max_batch": 1.5},
        {"on_flush": 1},
        {"flush_threshold": math.nan},
        {"capacity": 2**58},
    ):
        with contextlib.suppress(TypeError, ValueError, MemoryError):
            ResponseBuffer(**bad)
    view.queries, plain.queries, plain.stats, repr(plain)


def test_no_references_leak(leaks_nothing):
    leaks_nothing(scenario)
