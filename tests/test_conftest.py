"""The shared fixtures themselves: each must fail when what it looks for is there."""

import threading

import pytest


def test_every_allocation_of_the_call_fails_once(fail_allocations):
    states = []
    count = fail_allocations(lambda d: d.update({1: [object()]}), prepare=dict, check=states.append)
    assert count >= 3
    # Each n fails twice: alone, and with everything after it. The dict had not been touched.
    assert len(states) >= count
    assert not any(states)


def test_another_error_than_memory_error_is_reported(fail_allocations):
    def call():
        try:
            return bytearray(1000)
        except MemoryError as e:
            raise ValueError from e

    with pytest.raises(AssertionError, match="ValueError"):
        fail_allocations(call)


def test_a_call_may_do_without_the_memory(fail_allocations):
    def call():
        try:
            return [object()]
        except MemoryError:
            return None

    assert fail_allocations(call) >= 1


def test_a_leak_is_found_and_a_cache_is_not_taken_for_one(leaks_nothing):
    kept, cache = [], {}
    leaks_nothing(lambda: [object() for _ in range(100)])
    leaks_nothing(lambda: cache.setdefault("once", object()))
    with pytest.raises(AssertionError, match="leak"):
        leaks_nothing(lambda: kept.append(object()))


def test_a_leak_on_the_way_of_a_failure_is_found(leaks_nothing, fail_allocations):
    kept = []
    leaks_nothing(lambda: fail_allocations(lambda d: d.update({1: [object()]}), prepare=dict))
    with pytest.raises(AssertionError, match="leak"):
        leaks_nothing(lambda: fail_allocations(lambda d: kept.append(object()), prepare=dict))


def test_all_threads_run_and_the_first_error_is_raised(hammer):
    seen = []
    hammer(8, seen.append, iterations=100)
    assert sorted(seen) == sorted(list(range(8)) * 100)
    with pytest.raises(ZeroDivisionError):
        hammer(8, lambda index: 1 // 0)


def test_a_deadlock_fails_instead_of_hanging(hammer):
    never = threading.Event()
    try:
        with pytest.raises(AssertionError, match="still run"):
            hammer(2, lambda index: never.wait(), iterations=1, timeout=0.2)
    finally:
        never.set()
