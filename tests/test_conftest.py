"""The shared fixtures and tools themselves: each must fail when what it looks for is there."""

import os
import sys
import threading

import conftest
import pytest
from support import Clock, FakeReadings, in_child, in_threads, needs_fork, quiet_fork, run, wait_for


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
    # Not a list: 3.15.0rc2 releases what is appended twice if the list can't grow.
    kept = set()
    leaks_nothing(lambda: fail_allocations(lambda d: d.update({1: [object()]}), prepare=dict))
    with pytest.raises(AssertionError, match="leak"):
        leaks_nothing(lambda: fail_allocations(lambda d: kept.add(object()), prepare=dict))


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


def test_waiting_ends_with_the_value_or_fails():
    values = [0, [], "found"]
    assert wait_for(lambda: values.pop(0)) == "found"
    with pytest.raises(AssertionError, match="still false"):
        wait_for(lambda: False, seconds=0.01)


def test_a_fresh_interpreter_must_end_as_expected():
    assert run("import sys\nprint(*sys.argv[1:])", arguments=["a", "b"]) == "a b\n"
    assert run("raise SystemExit(3)", status=3) == ""
    with pytest.raises(AssertionError, match="exit status 3"):
        run("raise SystemExit(3)")
    complains = "import sys\nprint('oops', file=sys.stderr)"
    with pytest.raises(AssertionError, match="oops"):
        run(complains)
    assert run(complains, stderr=None) == ""


@needs_fork
@quiet_fork
def test_a_child_that_raises_or_returns_false_fails(capfd):
    in_child(lambda: None)
    for call in (lambda: False, lambda: 1 // 0, lambda: sys.exit(0)):
        with pytest.raises(AssertionError):
            in_child(call)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_the_error_of_a_thread_is_raised():
    seen = []
    in_threads(lambda: seen.append(1), lambda: seen.append(2))
    assert sorted(seen) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda: None, lambda: 1 // 0)


def test_time_and_memory_are_what_the_test_says():
    clock, readings = Clock(5.0), FakeReadings(limit=100, rss=10)
    clock.now += 1
    readings.rss_ = 20
    assert (clock(), readings.rss(), readings.limit(), readings.charge()) == (6.0, 20, 100, None)
    assert readings.calls == ["rss", "limit", "charge"]
    readings.error = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        readings.rss()


class Item:
    """As much of a test as the marking needs."""

    def __init__(self, *marks, fixtures=(), name="test"):
        self.marks, self.fixturenames, self.name = list(marks), fixtures, name

    def get_closest_marker(self, name):
        return next((mark.mark for mark in self.marks if mark.name == name), None)

    def add_marker(self, mark):
        self.marks.append(getattr(pytest.mark, mark) if isinstance(mark, str) else mark)

    def marked(self):
        conftest.pytest_collection_modifyitems([self])
        return [mark.name for mark in self.marks]


def test_fixtures_and_state_machines_imply_their_marks():
    assert Item().marked() == []
    assert Item(fixtures=["hammer"]).marked() == ["stress"]
    assert Item(fixtures=["inside", "leaks_nothing"]).marked() == ["slow", "slow"]
    assert Item(name="runTest").marked() == ["stress"]


def test_tests_for_root_and_linux_are_skipped_elsewhere_with_the_reason(monkeypatch):
    monkeypatch.setattr(conftest, "IS_ROOT", True)
    monkeypatch.setattr(sys, "platform", "linux")
    assert Item(pytest.mark.root, pytest.mark.linux).marked() == ["root", "linux"]
    monkeypatch.setattr(conftest, "IS_ROOT", False)
    monkeypatch.setattr(sys, "platform", "darwin")
    item = Item(pytest.mark.root, pytest.mark.linux(reason="reads /proc"))
    assert item.marked() == ["root", "linux", "skip", "skip"]
    assert [mark.kwargs["reason"] for mark in item.marks[2:]] == ["needs linux: reads /proc", "needs root"]


def test_what_a_dict_evicts_depends_on_the_seed_alone():
    code = """
        import os, sys
        drawn = os.urandom
        sys.path.insert(0, sys.argv[1])
        import conftest
        import synthex_fast
        assert os.urandom is drawn and len(os.urandom(4)) == 4
        cache = synthex_fast.TTLDict(max_size=2000)
        for n in range(60_000):
            key = n * n * 7919 % 10_007
            if cache.get(key) is None:
                cache[key] = True
        print(sorted(cache)[:500], cache.stats["hits"])
    """

    def kept(seed, hashes):
        return run(
            code, arguments=[os.path.dirname(__file__)], SYNTHEX_FAST_TEST_SEED=seed, PYTHONHASHSEED=hashes
        )

    first = kept("1", "1")
    assert first == kept("1", "2")
    assert first != kept("2", "1")
