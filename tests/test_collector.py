"""ResponseCollector: both parts or neither, limits that hold, an owner that is released."""

import contextlib
import copy
import gc
import math
import os
import pickle
import threading
import time
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from support import Clock, needs_fork, quiet_fork, run, wait_for

from synthex_fast import PooledExpertResponse, ResponseBuffer, ResponseCollector, TTLDict
from synthex_fast.collector import MEMORY_LIMIT
from synthex_fast.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BatchTooLargeError,
    BufferFullError,
    BufferPausedError,
    CollectorClosedError,
    OwnerGoneError,
    ValueTooLargeError,
)


def answer(query="q1", expert="ada", confidence=0.8, size=0):
    # Made anew: a text that something else holds too is not the response's own.
    content = "x" * size + expert if size else ""
    return PooledExpertResponse(query, expert, content, confidence)


def answers(query="q1", count=5, size=0):
    return [answer(query, f"expert-{n}", 0.5 + n % 5 / 10, size) for n in range(count)]


class Owner:
    pass


class Blob:
    """Something large whose end can be seen."""

    def __init__(self):
        self.bytes = bytes(100_000)


@pytest.fixture
def no_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def exact_nbytes(collector):
    exact = TTLDict()
    for query in list(collector):
        exact[query] = collector._answers.get(query)
    return exact.nbytes


def both(collector):
    """What either part has: ids of the kept answers by query, ids of the buffered ones."""
    kept = {query: [id(r) for r in collector._answers.get(query)] for query in collector}
    return kept, len(collector._buffer)


# Adding and reading ---------------------------------------------------------------------------------------------


def test_answers_are_kept_by_query_and_buffered():
    collector = ResponseCollector()
    first, second = answers("q1"), answers("q2", 3)
    assert collector.add_batch(first) == 5
    assert collector.add_batch(tuple(second)) == 3
    late = answer("q1", "late")
    assert collector.add(late) is None
    assert collector.responses("q1") == (*first, late)
    assert all(a is b for a, b in zip(collector.responses("q2"), second, strict=True))
    assert sorted(collector) == ["q1", "q2"]
    assert len(collector) == 2
    assert "q1" in collector and "q3" not in collector
    assert collector.buffered == 9
    assert collector.flush() == [*first, *second, late]
    assert collector.buffered == 0
    assert len(collector.responses("q1")) == 6


def test_the_defaults_are_the_reports():
    collector = ResponseCollector()
    assert MEMORY_LIMIT == 6_081_740
    assert collector.memory_limit == MEMORY_LIMIT
    assert collector.max_queries == 500
    assert collector._answers.ttl == 14_400.0
    assert collector._answers.idle == 3_600.0
    assert (collector._buffer.capacity, collector._buffer.max_batch) == (1000, 100)
    assert collector._buffer.flush_threshold == 0.8


def test_a_batch_may_answer_several_queries():
    collector = ResponseCollector()
    mixed = [answer("q2"), answer("q1"), answer("q2"), answer("q3"), answer("q1")]
    collector.add(answer("q3", "earlier"))
    assert collector.add_batch(iter(mixed)) == 5
    assert collector.responses("q1") == (mixed[1], mixed[4])
    assert collector.responses("q2") == (mixed[0], mixed[2])
    assert [r.expert_id for r in collector.responses("q3")] == ["earlier", "ada"]


def test_nothing_to_add_and_nothing_there():
    collector = ResponseCollector()
    assert collector.add_batch([]) == collector.add_batch(iter(())) == 0
    assert collector.responses("q1") == collector.pop("q1") == ()
    with pytest.raises(KeyError, match="q1"):
        collector.consensus("q1")
    assert len(collector) == 0
    assert bool(collector) is True


def test_what_is_read_does_not_change_with_the_collector():
    collector = ResponseCollector()
    collector.add_batch(answers(count=2))
    before = collector.responses("q1")
    collector.add(answer())
    assert len(before) == 2
    given = answers("q2", 2)
    collector.add_batch(given)
    given.clear()
    assert len(collector.responses("q2")) == 2


class TextId(str):
    __slots__ = ()

    def __hash__(self):
        raise RuntimeError("never asked")

    def __eq__(self, other):
        raise RuntimeError("never asked")


def test_ids_of_other_kinds_are_the_texts_they_hold():
    collector = ResponseCollector()
    collector.add_batch([answer(TextId("q1")), answer("q1"), answer("q2"), answer(TextId("q2"))])
    assert len(collector.responses("q1")) == len(collector.responses("q2")) == 2
    assert all(type(query) is str for query in collector)


def test_pop_keeps_them_no_longer():
    collector = ResponseCollector()
    given = answers()
    collector.add_batch(given)
    assert collector.pop("q1") == tuple(given)
    assert "q1" not in collector
    assert collector.buffered == 5
    assert collector._answers.nbytes == 0


# Consensus ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confidences", "level"),
    [
        ((0.9, 0.8, 0.85), "high"),
        ((1.0, 0.5), "medium"),
        ((0.6,), "medium"),
        ((0.1, 0.9), "low"),
        ((0.5,), "low"),
    ],
)
def test_consensus_is_the_row_of_the_buffer(confidences, level):
    collector = ResponseCollector()
    collector.add(answer("other", "zoe", 0.1))
    collector.add_batch([answer("q1", f"e{n}", value) for n, value in enumerate(confidences)])
    row = collector.consensus("q1")
    assert row == collector.aggregate()["q1"]
    assert row.consensus == level
    assert (row.count, row.experts) == (len(confidences), {f"e{n}" for n in range(len(confidences))})
    assert row.mean == pytest.approx(math.fsum(confidences) / len(confidences))


def test_consensus_counts_what_was_handed_on_and_aggregate_does_not():
    collector = ResponseCollector()
    collector.add_batch(answers(count=3))
    collector.flush()
    collector.add(answer())
    assert collector.consensus("q1").count == 4
    assert collector.aggregate()["q1"].count == 1
    assert len(collector.columns().confidence) == 1


def test_released_answers_and_those_of_another_query_no_longer_count():
    collector = ResponseCollector()
    given = answers(count=3)
    collector.add_batch(given)
    given[0].release()
    given[1].query_id = "q2"
    assert collector.consensus("q1").count == 1
    given[2].query_id = "q2"
    with pytest.raises(KeyError):
        collector.consensus("q1")


# All or none ----------------------------------------------------------------------------------------------------


def endless():
    while True:
        endless.read += 1
        yield answer()


def refusals():
    endless.read = 0
    return [
        ([answer("q1"), "no response"], ArgumentTypeError, r"responses\[1\] must be a PooledExpertResponse"),
        ([answer() for _ in range(11)], BatchTooLargeError, "at most 10"),
        (endless(), BatchTooLargeError, "at most 10"),
        (7, ArgumentTypeError, "responses must be an iterable"),
        ([answer("q1", size=200_000)], ValueTooLargeError, "memory_limit"),
        ([answer("new"), answer("q2"), answer("new2", size=200_000)], ValueTooLargeError, "memory_limit"),
        ([answer("q2", size=30_000) for _ in range(4)], ValueTooLargeError, "memory_limit"),
        ([answer("q1") for _ in range(10)], ValueTooLargeError, "at most 11 .*max_per_query.*not 12"),
        ([answer("new"), *(answer("q1") for _ in range(9))], None, None),
        ([answer("new") for _ in range(9)], BufferFullError, "no room for 9"),
        ([*(answer("q4") for _ in range(8)), answer("q5")], BufferFullError, "no room for 9"),
    ]


@pytest.mark.parametrize("which", range(11))
def test_what_is_refused_changes_nothing_here_or_there(which):
    batch, error, says = refusals()[which]
    collector = ResponseCollector(
        memory_limit=100_000, max_queries=3, max_per_query=11, capacity=18, max_batch=10, timer=Clock(1000.0)
    )
    collector.add_batch(answers("q1", 2))
    collector.add_batch(answers("q2", 4, size=5_000))
    collector.add_batch(answers("q3", 1))
    if error is BufferFullError:
        collector.add_batch(answers("q1", 3))
    before, weight = (both(collector), collector._answers.stats["full"]), collector.nbytes
    if error is None:
        assert collector.add_batch(batch) == len(batch)
        return
    with pytest.raises(error, match=says):
        collector.add_batch(batch)
    assert (both(collector), collector._answers.stats["full"]) == before
    # A list that was longer keeps some room.
    assert weight <= collector.nbytes < weight + 100
    assert endless.read in (0, 11)


def test_add_complains_of_its_own_argument():
    collector = ResponseCollector()
    with pytest.raises(ArgumentTypeError, match="response must be a PooledExpertResponse, not 'x'"):
        collector.add("x")


def test_a_handler_that_fails_when_it_is_to_make_room_leaves_both_parts():
    def fail(_):
        raise OSError("down")

    collector = ResponseCollector(capacity=10, flush_threshold=1.0, on_flush=fail)
    collector.add_batch(answers("q1", 8))
    before = both(collector)
    for batch in (answers("q2", 5), [answer("q1"), answer("q3"), answer("q4")]):
        with pytest.raises(OSError, match="down"):
            collector.add_batch(batch)
        assert both(collector) == before


def test_a_handler_that_fails_after_an_addition_leaves_it_in_both_parts():
    def fail(_):
        raise OSError("down")

    collector = ResponseCollector(capacity=10, on_flush=fail)
    collector.add_batch(answers("q1", 6))
    with pytest.raises(OSError, match="down"):
        collector.add_batch(answers("q2", 3))
    assert "q2" in collector
    assert collector.buffered == 9
    assert collector.stats["failed"] == 1


def test_a_refusal_at_the_last_moment_is_undone():
    class Full(ResponseBuffer):
        def _store_batch(self, responses):
            raise BufferFullError("another thread was faster")

    collector = ResponseCollector(max_queries=10)
    shared = answer("q1", "shared")
    collector.add_batch([answer("q1", "before"), shared])
    collector._buffer = Full()
    before, weight = both(collector), collector._answers.nbytes
    for batch in (
        [answer("q1")],
        [shared],
        [answer("q9")],
        [answer("q9"), shared, answer("q8"), answer("q1")],
    ):
        with pytest.raises(BufferFullError):
            collector.add_batch(batch)
        assert both(collector) == before
        # A list that was longer keeps some room.
        assert collector._answers.nbytes == exact_nbytes(collector)
        assert weight <= collector._answers.nbytes < weight + 100


def test_an_undone_addition_leaves_what_came_behind_it():
    later = answer("q1", "later")

    class Interrupted(ResponseBuffer):
        def _store_batch(self, responses):
            if responses[0].expert_id == "later":
                return ResponseBuffer._store_batch(self, responses)
            collector.add(later)
            raise BufferFullError

    collector = ResponseCollector()
    collector._buffer = Interrupted()
    with pytest.raises(BufferFullError):
        collector.add_batch(answers("q1", 3))
    assert collector.responses("q1") == (later,)
    assert len(collector._buffer.flush()) == 1


@pytest.fixture
def fail_some_allocations():
    """``fail_some_allocations(call, prepare, check)``: one, two and three allocations in a row fail, at every turn.

    Not all from one on, as `fail_allocations` has it: that is for compiled code. The interpreter itself turns in
    circles, or aborts, where it can't note how far a function has come or make a MemoryError.
    """
    _testcapi = pytest.importorskip("_testcapi")
    set_nomemory, remove_mem_hooks = _testcapi.set_nomemory, _testcapi.remove_mem_hooks

    def attempt(call, prepared, first, behind):
        error = None
        try:
            set_nomemory(first, behind)
            call(prepared)
        except BaseException as caught:
            remove_mem_hooks()
            error = caught
        finally:
            remove_mem_hooks()
        return error

    def run(call, prepare, check):
        for burst in (1, 2, 3):
            succeeded, first = 0, 0
            # What fails without an error, as a cache may, is no end; so many in a row are.
            while succeeded < 30:
                prepared = prepare()
                gc.disable()
                try:
                    error = attempt(call, prepared, first, first + burst)
                finally:
                    gc.enable()
                if error is not None:
                    assert isinstance(error, MemoryError), error
                    error.__traceback__ = None
                check(prepared, error is not None)
                succeeded = 0 if error is not None else succeeded + 1
                first += 1
                assert first < 2000

    return run


@pytest.mark.parametrize("size", [1, 5, 40])
def test_allocation_failures_leave_both_or_neither(fail_some_allocations, size):
    def prepare():
        collector = ResponseCollector(max_batch=100, sweep=False)
        collector.add_batch(answers("q1", 3))
        batch = [answer(f"q{n % 3}" if size > 1 else "q1", f"e{n}") for n in range(size)]
        return collector, batch, both(collector)

    def check(prepared, failed):
        collector, _, (kept, buffered) = prepared
        found, found_buffered = both(collector)
        if failed:
            assert collector._answers.nbytes <= weight + 100
            assert (collector._answers.nbytes > 0) == bool(found)
            assert found_buffered == buffered
            # Taking back may itself lack memory: then a query's answers are dropped together.
            assert found in (kept, {})
        else:
            assert found_buffered == buffered + size
            assert sum(map(len, found.values())) == 3 + size

    weight = prepare()[0]._answers.nbytes
    fail_some_allocations(lambda prepared: prepared[0].add_batch(prepared[1]), prepare, check)


@pytest.mark.parametrize(
    "operation", ["responses", "consensus", "pop", "aggregate", "flush", "stats", "construct"]
)
def test_allocation_failures_elsewhere_change_nothing(fail_some_allocations, operation):
    def prepare():
        collector = ResponseCollector(sweep=False)
        collector.add_batch(answers("q1", 3))
        return collector, both(collector)

    def call(prepared):
        collector = prepared[0]
        if operation == "construct":
            ResponseCollector(Owner(), capacity=5)
        elif operation == "stats":
            collector.stats  # noqa: B018
        elif operation in ("aggregate", "flush"):
            getattr(collector, operation)()
        else:
            getattr(collector, operation)("q1")

    def check(prepared, failed):
        if failed:
            assert both(prepared[0]) == prepared[1]

    fail_some_allocations(call, prepare, check)


# Limits ---------------------------------------------------------------------------------------------------------


def test_memory_limit_holds_after_each_operation():
    collector = ResponseCollector(memory_limit=50_000, capacity=10_000, max_queries=None)
    for n in range(300):
        collector.add_batch(answers(f"q{n % 60}", 1 + n % 3, size=100 + n))
        assert collector._answers.nbytes <= 50_000
        assert collector._answers.nbytes == exact_nbytes(collector)
    assert collector.stats["memory"] > 0


def test_a_query_can_grow_up_to_the_limit_and_no_further():
    collector = ResponseCollector(memory_limit=20_000, capacity=10_000)
    count = 0
    with pytest.raises(ValueTooLargeError):
        while True:
            collector.add(answer("q1", f"e{count}", size=1000))
            count += 1
    assert 10 <= count < 20
    assert len(collector.responses("q1")) == collector.buffered == count
    collector.add(answer("q2"))
    assert "q2" in collector


def test_max_queries_and_max_per_query():
    collector = ResponseCollector(max_queries=3, max_per_query=4)
    for n in range(10):
        collector.add(answer(f"q{n}"))
        assert len(collector) <= 3
    collector.add_batch(answers("q9", 3))
    with pytest.raises(ValueTooLargeError, match="max_per_query"):
        collector.add(answer("q9"))
    with pytest.raises(ValueTooLargeError, match="max_per_query"):
        collector.add_batch(answers("new", 5))
    assert ResponseCollector(max_per_query=None).add_batch(answers("q", 50)) == 50


def test_answers_go_ttl_after_the_first_and_idle_after_the_last_use():
    clock = Clock(1000.0)
    collector = ResponseCollector(ttl=100.0, idle=30.0, timer=clock)
    collector.add(answer("read"))
    collector.add(answer("added to"))
    collector.add(answer("unused"))
    for _ in range(3):
        clock.now += 25
        assert collector.responses("read")
        collector.add(answer("added to"))
    assert sorted(collector) == ["added to", "read"]
    clock.now += 26
    assert len(collector) == 0
    assert collector.responses("read") == ()
    collector.add(answer("added to"))
    assert len(collector.responses("added to")) == 1
    stats = collector.stats
    assert (stats["idle"], stats["expired"]) == (1, 2)
    clock.now += 31
    assert collector.expire() == 1


def test_unused_answers_are_freed_without_anyone_asking():
    collector = ResponseCollector(idle=0.05)
    held = answer()
    gone = weakref.ref(held)
    collector.add(held)
    collector.flush()
    del held
    wait_for(lambda: gone() is None)


def test_an_entry_that_goes_while_it_grows_begins_anew():
    """What lets it go is what any other thread may do at that moment."""
    collector = ResponseCollector()
    collector.add(answer("q1", "old"))

    class Answers(TTLDict):
        def recount(self, key):
            if len(self.get(key)) == 2:
                self.trim(10**9)
            return super().recount(key)

    kept = Answers()
    kept["q1"] = collector._answers["q1"]
    collector._answers = kept
    collector.add(answer("q1", "new"))
    assert [r.expert_id for r in collector.responses("q1")] == ["new"]
    assert collector.buffered == 2


def test_a_size_that_raises_reaches_the_caller_and_nothing_is_added():
    class Hostile:
        error = None

        def __sizeof__(self):
            if self.error is not None:
                raise self.error
            return 100

    hostile = Hostile()
    collector = ResponseCollector()
    first = PooledExpertResponse("q1", "ada", metadata={"blob": hostile})
    collector.add(first)
    before = both(collector)
    for error in (KeyError("mine"), RuntimeError("mine"), MemoryError()):
        hostile.error = error
        for query in ("q1", "q2"):
            batch = [PooledExpertResponse(query, "bob", metadata={"blob": hostile})]
            with pytest.raises(type(error)):
                collector.add_batch(batch)
            hostile.error = None
            assert both(collector) == before
            hostile.error = error


# The governor's protocol ----------------------------------------------------------------------------------------


def test_nbytes_is_that_of_both_parts():
    collector = ResponseCollector()
    empty = collector.nbytes
    assert empty == ResponseBuffer().nbytes
    collector.add_batch(answers(count=5, size=10_000))
    assert collector.nbytes > empty + 50_000


def test_trim_hands_on_and_evicts():
    handed = []
    collector = ResponseCollector(on_flush=handed.extend)
    collector.add_batch(answers("q1", 5, size=1000))
    collector.add_batch(answers("q2", 5, size=1000))
    assert collector.trim(0) == 0
    assert collector.buffered == 10
    assert collector.trim(1) >= 5000
    assert len(collector) == 1
    assert len(handed) == 10 and collector.buffered == 0
    assert collector.trim(10**9) >= 5000
    assert len(collector) == 0
    for wrong in (-1, 1.5, True, "x"):
        with pytest.raises((ArgumentValueError, ArgumentTypeError), match="nbytes"):
            collector.trim(wrong)


def test_trim_frees_though_the_handler_fails():
    def fail(_):
        raise OSError("down")

    collector = ResponseCollector(on_flush=fail)
    collector.add_batch(answers(count=5, size=1000))
    with pytest.raises(OSError, match="down"):
        collector.trim(10**9)
    assert len(collector) == 0
    assert collector.buffered == 5


def test_a_pause_lets_nothing_into_either_part():
    collector = ResponseCollector()
    assert collector.pause(wait=False) is True
    assert collector.paused
    with pytest.raises(BufferPausedError):
        collector.add(answer())
    assert both(collector) == ({}, 0)
    assert collector.resume() is True
    collector.add(answer())
    assert both(collector)[1] == 1


@pytest.mark.parametrize(("how", "error"), [("owner", OwnerGoneError), ("close", CollectorClosedError)])
def test_an_addition_that_waits_is_refused_when_the_collector_ends(how, error):
    owner = Owner()
    collector = ResponseCollector(owner)
    collector.pause()
    raised = []

    def add():
        try:
            collector.add(answer())
        except Exception as caught:
            raised.append(type(caught))

    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    wait_for(lambda: collector.stats["waited"])
    if how == "owner":
        del owner
    else:
        collector.close()
    thread.join(10)
    assert raised == [error]
    assert collector.nbytes == 0


def test_an_addition_waits_for_the_end_of_a_pause_before_it_changes_anything():
    collector = ResponseCollector(max_queries=1)
    collector.add(answer("q1"))
    collector.pause()
    thread = threading.Thread(target=collector.add, args=(answer("q2"),))
    thread.start()
    wait_for(lambda: collector.stats["waited"])
    assert list(collector) == ["q1"]
    collector.resume()
    thread.join(30)
    assert list(collector) == ["q2"]
    collector.close()
    assert not collector.pause()
    assert not collector.resume()
    assert not ResponseCollector().paused


def test_resize():
    collector = ResponseCollector()
    for n in range(10):
        collector.add_batch(answers(f"q{n}", 2, size=1000))
    collector.resize(max_queries=5)
    assert len(collector) == collector.max_queries == 5
    collector.resize(memory_limit=6_000)
    assert collector._answers.nbytes <= 6_000 and collector.memory_limit == 6_000
    collector.resize(max_queries=None, memory_limit=None)
    assert (collector.max_queries, collector.memory_limit) == (None, None)
    with pytest.raises(ArgumentValueError, match="max_queries"):
        collector.resize(max_queries=0)


def test_answers_over_the_cap_are_delivered_though_not_kept():
    delivered = []
    collector = ResponseCollector(memory_limit=1_000_000, on_flush=delivered.extend)
    collector.add_batch(answers("q1", 2))
    collector.cap(20_000)
    assert (collector.memory_limit, collector.memory_cap, list(collector)) == (1_000_000, 20_000, ["q1"])
    # A query's first answers, more answers, and answers to several queries at once.
    collector.add_batch(answers("q2", 2, size=30_000))
    collector.add_batch(answers("q1", 2, size=30_000))
    collector.add_batch([*answers("q3", 1), *answers("q4", 1, size=60_000)])
    assert list(collector) == ["q3"]
    stats = collector.stats
    # The second answers to "q1": with the older ones, and alone.
    assert (stats["over_cap"], stats["memory"], collector.buffered) == (4, 4, 8)
    with pytest.raises(ValueTooLargeError, match="memory_limit"):
        collector.add_batch(answers("q5", 1, size=2_000_000))
    assert collector.buffered == 8
    collector.cap(None)
    collector.add_batch(answers("q2", 2, size=30_000))
    assert (sorted(collector), collector.memory_cap) == (["q2", "q3"], None)
    collector.close()
    assert len(delivered) == 10
    collector.cap(100)
    collector.cap(None)


def test_stats():
    collector = ResponseCollector(max_queries=2)
    for n in range(3):
        collector.add_batch(answers(f"q{n}", 2))
    collector.flush()
    collector.add(answer("q2"))
    stats = collector.stats
    assert (stats["queries"], stats["full"], stats["buffered"]) == (2, 1, 1)
    assert (stats["added"], stats["batches"], stats["flushed"], stats["flushes"]) == (7, 4, 6, 1)
    assert stats["nbytes"] == collector._answers.nbytes
    assert stats["abandoned"] == 0


# The owner ------------------------------------------------------------------------------------------------------


def test_the_owner_goes_at_once_though_it_holds_the_collector(no_gc):
    class Service:
        def __init__(self):
            self.blob = Blob()
            self.handed = []
            self.collector = ResponseCollector(self, on_flush=self.process)

        def process(self, responses):
            self.handed.extend(responses)

    service = Service()
    assert service.collector.owner is service
    held = answer()
    service.collector.add(held)
    service.collector.flush()
    assert service.handed == [held]
    gone = [weakref.ref(service), weakref.ref(service.blob), weakref.ref(service.collector)]
    del service
    assert [reference() for reference in gone] == [None] * 3


def test_what_the_collector_holds_goes_with_the_owner(no_gc):
    owner = Owner()
    collector = ResponseCollector(owner)
    collector.add_batch(kept := answers("q1", 3))
    collector.flush()
    collector.add_batch(buffered := answers("q2", 2))
    gone = [weakref.ref(response) for response in kept + buffered]
    del kept, buffered
    assert all(reference() is not None for reference in gone)
    del owner
    assert all(reference() is None for reference in gone)
    assert collector.nbytes == 0
    assert collector.owner is None
    stats = collector.stats
    assert (stats["abandoned"], stats["added"], stats["buffered"], stats["queries"]) == (2, 5, 0, 0)


def test_answers_in_the_buffer_are_handed_to_nobody_when_the_owner_goes(no_gc):
    handed = []
    owner = Owner()
    collector = ResponseCollector(owner, on_flush=handed.extend)
    collector.add(answer())
    del owner
    assert handed == []
    assert collector.stats["abandoned"] == 1


CALLS = {
    "add": lambda c: c.add(answer()),
    "add_batch": lambda c: c.add_batch([answer()]),
    "add_batch of none": lambda c: c.add_batch([]),
    "responses": lambda c: c.responses("q1"),
    "consensus": lambda c: c.consensus("q1"),
    "aggregate": lambda c: c.aggregate(),
    "columns": lambda c: c.columns(),
    "flush": lambda c: c.flush(),
    "pop": lambda c: c.pop("q1"),
    "in": lambda c: "q1" in c,
    "len": len,
    "iter": iter,
    "with": lambda c: c.__enter__(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.slow
def test_calls_say_that_the_owner_is_gone(call):
    owner = Owner()
    collector = ResponseCollector(owner)
    collector.add(answer())
    del owner
    gc.collect()
    with pytest.raises(OwnerGoneError, match="the owner of this ResponseCollector is gone") as refused:
        CALLS[call](collector)
    assert isinstance(refused.value, ReferenceError)
    assert repr(collector) == "<ResponseCollector, its owner gone>"


@pytest.mark.parametrize("call", CALLS)
def test_calls_say_that_the_collector_is_closed(call):
    collector = ResponseCollector(Owner)
    collector.add(answer())
    collector.close()
    with pytest.raises(CollectorClosedError, match="this ResponseCollector has been closed") as refused:
        CALLS[call](collector)
    assert isinstance(refused.value, ValueError)
    assert repr(collector) == "<ResponseCollector, closed>"
    assert collector.owner is None


def test_what_a_governor_asks_is_answered_to_the_end():
    owner = Owner()
    ended = [ResponseCollector(owner), ResponseCollector()]
    for collector in ended:
        collector.add(answer())
    ended[1].close()
    del owner
    gc.collect()
    for collector in ended:
        assert collector.nbytes == 0
        assert collector.trim(100) == collector.expire() == collector.buffered == 0
        collector.resize(memory_limit=1000)
        assert collector.stats["queries"] == 0
        collector.close()


def test_a_call_at_work_does_not_keep_the_owner(no_gc):
    owner = Owner()
    gone = weakref.ref(owner)

    def handler(responses):
        owners.clear()
        assert gone() is None
        assert len(responses) == 9
        with pytest.raises(OwnerGoneError):
            collector.add(answer())

    owners = [owner]
    del owner
    collector = ResponseCollector(owners[0], capacity=10, on_flush=handler)
    assert collector.add_batch(answers(count=9)) == 9
    assert collector.stats["abandoned"] == 9
    with pytest.raises(OwnerGoneError):
        collector.responses("q1")


@pytest.mark.parametrize("closed", [False, True])
def test_an_addition_at_work_at_the_end_leaves_nothing_behind(closed):
    owners = [Owner()]

    class Ends(ResponseBuffer):
        def _admit(self, responses):
            if closed:
                collector.close()
            owners.clear()
            return ResponseBuffer._admit(self, responses)

    collector = ResponseCollector(owners[0])
    collector._buffer = Ends()
    with pytest.raises(CollectorClosedError if closed else OwnerGoneError):
        collector.add(answer())
    assert len(collector._answers) == collector.buffered == collector.nbytes == 0


def test_a_handler_of_the_collector_itself_is_no_cycle(no_gc):
    class Printing(ResponseCollector):
        def __init__(self):
            super().__init__(on_flush=self.handle)
            self.handed = []

        def handle(self, responses):
            self.handed += responses

    collector = Printing()
    collector.add(held := answer())
    assert collector.flush() == collector.handed == [held]
    gone = weakref.ref(collector)
    del collector
    assert gone() is None


def test_a_handler_of_the_owner_written_in_c_is_no_cycle_either(no_gc):
    class Handed(list):
        pass

    owner = Handed()
    owner.collector = ResponseCollector(owner, on_flush=owner.append)
    owner.collector.add(held := answer())
    owner.collector.flush()
    assert owner == [[held]]
    gone = weakref.ref(owner)
    del owner
    assert gone() is None


def test_a_handler_of_something_else_is_kept():
    class Sink:
        def __init__(self):
            self.got = []

        def take(self, responses):
            self.got.extend(responses)

    sink = Sink()
    collector = ResponseCollector(Owner, on_flush=sink.take)
    got = sink.got
    del sink
    collector.add(answer())
    collector.flush()
    assert len(got) == 1


def test_an_owner_that_cannot_be_referred_to_weakly_is_refused():
    class Slotted:
        __slots__ = ("x",)

    for owner in (Slotted(), 7, (), []):
        with pytest.raises(ArgumentTypeError, match="owner must be an object that supports weak references"):
            ResponseCollector(owner)

    class Fine:
        __slots__ = ("__weakref__",)

    fine = Fine()
    assert ResponseCollector(fine).owner is fine


def test_the_collector_may_go_before_its_owner():
    owner = Owner()
    collector = ResponseCollector(owner)
    gone = weakref.ref(collector)
    del collector
    gc.collect()
    assert gone() is None
    assert weakref.getweakrefcount(owner) == 0


def test_an_owner_in_a_cycle_is_collected_with_everything():
    owner = Owner()
    owner.me = owner
    owner.collector = ResponseCollector(owner)
    held = answer()
    owner.collector.add(held)
    gone = [weakref.ref(owner), weakref.ref(owner.collector), weakref.ref(held)]
    del owner, held
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_a_finaliser_that_uses_the_collector_as_the_owner_goes_gets_a_clear_error():
    errors = []

    class Last:
        def __del__(self):
            try:
                collector.responses("q1")
            except Exception as error:
                errors.append(error)

    owner = Owner()
    collector = ResponseCollector(owner)
    collector.add(PooledExpertResponse("q1", "ada", metadata={"last": Last()}))
    del owner
    gc.collect()
    assert [type(error) for error in errors] == [OwnerGoneError]


# The end --------------------------------------------------------------------------------------------------------


def test_with_hands_on_and_lets_go(no_gc):
    handed = []
    with ResponseCollector(on_flush=lambda responses: handed.append(len(responses))) as collector:
        collector.add_batch(given := answers())
        gone = weakref.ref(given[0])
        del given
    assert handed == [5]
    assert gone() is None
    assert collector.stats["abandoned"] == 0
    collector.close()


def test_close_without_a_handler_lets_go():
    collector = ResponseCollector()
    collector.add_batch(answers())
    collector.close()
    assert collector.stats["abandoned"] == 5
    assert collector.nbytes == 0


def test_a_handler_that_fails_at_the_end_leaves_the_collector_open():
    down = True

    def handler(_):
        if down:
            raise OSError("down")

    collector = ResponseCollector(on_flush=handler)
    with pytest.raises(OSError, match="down"), collector:
        collector.add(answer())
    assert collector.buffered == 1
    assert len(collector.responses("q1")) == 1
    down = False
    collector.close()
    with pytest.raises(CollectorClosedError):
        collector.flush()


def test_two_threads_may_close_it():
    """The one that comes second must not take from under the first what its handler may yet refuse."""
    at_work, go_on = threading.Event(), threading.Event()
    calls, errors = [], []

    def handler(_):
        calls.append(1)
        at_work.set()
        assert go_on.wait(30)
        if len(calls) == 1:
            raise OSError("down")

    def close():
        try:
            collector.close()
        except OSError as error:
            errors.append(error)

    collector = ResponseCollector(on_flush=handler)
    collector.add(answer())
    threads = [threading.Thread(target=close) for _ in range(2)]
    threads[0].start()
    assert at_work.wait(30)
    threads[1].start()
    time.sleep(0.02)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 1
    assert collector.stats["flushed"] == 1
    assert collector.stats["abandoned"] == 0


def test_a_process_ends_quietly_with_a_collector_alive():
    code = """
import atexit, sys, threading
from synthex_fast import PooledExpertResponse, ResponseCollector
from synthex_fast.errors import CollectorClosedError

class Service:
    def __init__(self):
        self.collector = ResponseCollector(self, on_flush=self.take)
        self.me = self
    def take(self, responses):
        pass

service = Service()
sys.late = ResponseCollector(Service)
started = threading.Event()

def use():
    service.collector.add_batch([PooledExpertResponse("q", "e", metadata={"c": service}) for _ in range(5)])
    sys.late.add(PooledExpertResponse("q", "e"))
    sys.late.flush()
    service.collector.pop("q")
    sys.late.pop("q")
    started.set()

def work():
    # The error for a closed collector is expected. Its traceback is not printed: a daemon thread that holds the lock of
    # standard error when the interpreter ends makes CPython abort.
    try:
        while True:
            use()
    except CollectorClosedError:
        pass

for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
assert started.wait(30)
atexit.register(service.collector.close)
"""
    run(code)


def test_closing_when_the_owner_goes_meanwhile():
    owners = [Owner()]
    collector = ResponseCollector(owners[0], on_flush=lambda _: owners.clear())
    collector.add(answer())
    collector.close()
    assert collector.stats["abandoned"] == 0


# Re-entrancy and threads ----------------------------------------------------------------------------------------


def test_a_handler_may_use_the_collector():
    seen = []

    def handler(responses):
        seen.append(len(responses))
        if len(seen) < 3:
            collector.add(answer("from the handler"))
        assert collector.responses("q0")
        assert collector.flush() == []

    collector = ResponseCollector(capacity=10, on_flush=handler)
    for n in range(4):
        collector.add_batch(answers(f"q{n}", 4))
    assert sum(seen) + collector.buffered == collector.stats["added"] == 16 + 2
    assert len(collector.responses("from the handler")) == 2


def test_a_finaliser_may_add_to_the_query_that_is_growing():
    class Adds:
        def __init__(self):
            self.armed = False

        def __sizeof__(self):
            if self.armed:
                self.armed = False
                collector.add(answer("q1", "nested"))
            return 10

    adds = Adds()
    collector = ResponseCollector()
    collector.add(PooledExpertResponse("q1", "first", metadata={"adds": adds}))
    adds.armed = True
    collector.add(answer("q1", "outer"))
    assert sorted(r.expert_id for r in collector.responses("q1")) == ["first", "nested", "outer"]
    assert collector.buffered == 3
    assert collector._answers.nbytes == exact_nbytes(collector)


def test_threads_lose_nothing(hammer):
    handed = []
    collector = ResponseCollector(
        on_flush=handed.extend, capacity=200, memory_limit=None, max_per_query=None, max_queries=None
    )
    refused = [0] * 8

    def work(index):
        for query in ("shared", f"own-{index}"):
            try:
                collector.add_batch([answer(query, f"e{index}", 0.5) for _ in range(3)])
            except BufferFullError:
                refused[index] += 3
        collector.consensus("shared")
        assert all(r.query_id == "shared" for r in collector.responses("shared"))

    hammer(8, work, iterations=100)
    left = collector.flush()
    added = 8 * 100 * 6 - sum(refused)
    assert collector.stats["added"] == added
    assert len(handed) == added
    assert left == [] or handed[-len(left) :] == left
    assert sum(len(collector.responses(query)) for query in list(collector)) == added


def test_threads_within_limits(hammer):
    collector = ResponseCollector(memory_limit=30_000, max_queries=10, max_per_query=20, capacity=100_000)

    def work(index):
        query = f"q{(index + collector.buffered) % 14}"
        try:
            collector.add_batch([answer(query, size=200), answer(f"q{index}", size=100)])
        except ValueTooLargeError:
            collector.pop(query)
        collector.responses(query)
        if index == 0:
            collector.trim(5_000)
        assert collector._answers.nbytes <= 30_000

    hammer(8, work, iterations=100)
    assert collector._answers.nbytes == exact_nbytes(collector)
    for query in list(collector):
        assert all(r.query_id == query for r in collector.responses(query))
    assert len(collector) <= 10


def add_until_the_owner_is_gone(collector, started, refused):
    started.wait()
    try:
        while True:
            # While another thread flushes, the buffer may be full.
            with contextlib.suppress(BufferFullError):
                collector.add_batch(answers(count=3))
            collector.pop("q1")
    except OwnerGoneError as error:
        # The traceback's frame would keep the owner.
        refused.append(type(error))


@pytest.mark.stress
def test_the_owner_goes_while_threads_add():
    for _ in range(20):
        owner = Owner()
        collector = ResponseCollector(owner, on_flush=lambda _: None)
        started = threading.Barrier(5)
        refused = []
        threads = [
            threading.Thread(target=add_until_the_owner_is_gone, args=(collector, started, refused))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        started.wait()
        time.sleep(0.002)
        del owner
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert len(refused) == 4
        assert collector.nbytes == 0


@needs_fork
@quiet_fork
def test_a_child_can_add_though_another_thread_held_the_lock():
    collector = ResponseCollector()
    collector.add(answer())
    held, release = threading.Event(), threading.Event()

    def hold():
        with collector._lock():
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        try:
            collector.add(answer())
            os._exit(0 if len(collector.responses("q1")) == 2 == collector.buffered else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + 30
    status = (0, 0)
    while status == (0, 0) and time.monotonic() < end:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if status == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    release.set()
    thread.join()
    assert status == (child, 0)


# Copies, subclasses, references ---------------------------------------------------------------------------------


def test_pickling_and_copying_are_refused():
    collector = ResponseCollector()
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ArgumentTypeError, match="can't be pickled or copied"):
            duplicate(collector)
    collector.add(answer())
    assert pickle.loads(pickle.dumps(collector.responses("q1"))) == collector.responses("q1")


def test_a_subclass_may_have_more_and_is_initialised_once():
    class Counting(ResponseCollector):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.calls = 0

        def add_batch(self, responses):
            self.calls += 1
            return super().add_batch(responses)

    collector = Counting(max_queries=5)
    collector.add(answer())
    assert collector.calls == 1
    assert repr(collector) == "<Counting of 1 queries, 1 responses to be delivered>"
    with pytest.raises(ArgumentTypeError, match="initialised twice"):
        collector.__init__()
    assert "q1" in collector
    with pytest.raises(ArgumentTypeError, match=r"^Counting can't"):
        pickle.dumps(collector)


def test_a_subclass_of_the_response_is_welcome():
    class Mine(PooledExpertResponse):
        pass

    collector = ResponseCollector()
    collector.add(mine := Mine("q1", "ada"))
    assert collector.responses("q1")[0] is mine


def test_nothing_leaks(leaks_nothing):
    def scenario():
        owner = Owner()
        collector = ResponseCollector(
            owner, capacity=20, max_batch=10, memory_limit=20_000, on_flush=len, sweep=False
        )
        for n in range(6):
            collector.add_batch(answers(f"q{n % 2}", 4, size=50))
        collector.consensus("q1")
        for wrong in (["x"], answers("q1", 11), [answer(size=30_000)], [answer("q5"), answer(size=30_000)]):
            with pytest.raises((ArgumentTypeError, ArgumentValueError)):
                collector.add_batch(wrong)
        collector.pop("q1")
        del owner
        with ResponseCollector(sweep=False) as other:
            other.add(answer())

    leaks_nothing(scenario)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttl", 0), ("ttl", -1), ("ttl", math.nan), ("ttl", "x"), ("ttl", True),
        ("idle", 0), ("idle", math.nan), ("idle", []),
        ("memory_limit", 0), ("memory_limit", -5), ("memory_limit", 1.5), ("memory_limit", "5MB"),
        ("max_queries", 0), ("max_queries", -1), ("max_queries", 1.5), ("max_queries", True),
        ("max_per_query", 0), ("max_per_query", math.nan), ("max_per_query", "x"),
        ("capacity", 0), ("capacity", None), ("max_batch", 0), ("max_batch", 2.0),
        ("flush_threshold", 0), ("flush_threshold", 1.1), ("flush_threshold", math.nan),
        ("on_flush", 7), ("policy", "best"), ("policy", 1), ("timer", 5),
    ],
)  # fmt: skip
def test_absurd_arguments_are_named(name, value):
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match=f"^{name} must be"):
        ResponseCollector(**{name: value})


def test_limits_past_32_bits_work():
    collector = ResponseCollector(memory_limit=2**40, max_queries=2**40, max_per_query=2**40, max_batch=2**40)
    collector.add(answer())
    assert (collector.memory_limit, collector.max_queries) == (2**40, 2**40)


# Against a plain model ------------------------------------------------------------------------------------------


class AgainstModel(RuleBasedStateMachine):
    """Dicts of lists and a list: no eviction, so that the model knows what is kept."""

    made = Bundle("made")

    @initialize(threshold=st.sampled_from([0.3, 0.8, 1.0]), handler=st.booleans())
    def begin(self, threshold, handler):
        self.failing = False
        self.handed = []
        self.kept, self.buffer = {}, []
        self.flush_at = math.ceil(threshold * 20) if handler else 10**9

        def on_flush(responses):
            if self.failing:
                raise OSError
            self.handed.append(responses)

        self.has_handler = handler
        self.clock = Clock(1000.0)
        self.collector = ResponseCollector(
            capacity=20, max_batch=8, max_per_query=10, flush_threshold=threshold, timer=self.clock, ttl=50, idle=None,
            on_flush=on_flush if handler else None,
        )  # fmt: skip
        self.begun = {}

    @rule(queries=st.lists(st.sampled_from("abc"), max_size=9), target=made)
    def make(self, queries):
        return [answer(query) for query in queries]

    def model_add(self, batch):
        """What adding should raise, if anything; the model is as it should be afterwards."""
        if len(batch) > 8:
            return BatchTooLargeError
        if not batch:
            return None
        if len(self.buffer) + len(batch) > 20:
            if not self.has_handler:
                return BufferFullError
            if self.failing:
                return OSError
            self.buffer = []
        for query in "abc":
            count = sum(r.query_id == query for r in batch)
            if count and len(self.kept.get(query, ())) + count > 10:
                return ValueTooLargeError
        for response in batch:
            self.begun.setdefault(response.query_id, self.clock.now)
            self.kept.setdefault(response.query_id, []).append(response)
            self.buffer.append(response)
        if len(self.buffer) >= self.flush_at:
            if self.failing:
                return OSError
            self.buffer = []
        return None

    @rule(batch=made, single=st.booleans())
    def add(self, batch, single):
        if single and batch:
            batch = batch[:1]
        expected = self.model_add(batch)
        if expected is None:
            if single and batch:
                self.collector.add(batch[0])
            else:
                assert self.collector.add_batch(iter(batch)) == len(batch)
        else:
            with pytest.raises(expected):
                self.collector.add_batch(batch)

    @rule(failing=st.booleans())
    def handler_changes(self, failing):
        self.failing = failing

    @rule()
    def flush(self):
        if self.failing and self.has_handler and self.buffer:
            with pytest.raises(OSError):
                self.collector.flush()
        else:
            assert self.collector.flush() == self.buffer
            self.buffer = []

    @rule(query=st.sampled_from("abc"))
    def pop(self, query):
        assert self.collector.pop(query) == tuple(self.kept.pop(query, ()))
        self.begun.pop(query, None)

    @rule(seconds=st.sampled_from([1, 10, 49]))
    def time_passes(self, seconds):
        self.clock.now += seconds
        for query, begun in list(self.begun.items()):
            if begun + 50 <= self.clock.now:
                del self.kept[query], self.begun[query]

    @invariant()
    def agrees(self):
        if not hasattr(self, "collector"):
            return
        assert sorted(self.collector) == sorted(self.kept)
        for query, expected in self.kept.items():
            found = self.collector.responses(query)
            assert len(found) == len(expected)
            assert all(a is b for a, b in zip(found, expected, strict=True))
            row = self.collector.consensus(query)
            assert row.count == len(expected)
        assert self.collector.buffered == len(self.buffer)


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_name_loads_on_first_use():
    code = (
        "import sys, synthex_fast\n"
        "assert 'synthex_fast.collector' not in sys.modules\n"
        "from synthex_fast import ResponseCollector\n"
        "print(ResponseCollector.__module__, 'numpy' in sys.modules, 'typing' in sys.modules)"
    )
    assert run(code, "-S").split() == ["synthex_fast.collector", "False", "False"]


def test_the_examples_say_what_happens():
    import doctest

    import synthex_fast.collector

    assert doctest.testmod(synthex_fast.collector).failed == 0
