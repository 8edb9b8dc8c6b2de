"""The fourth arm of `validate`: checks the same as the current system, and stays within its limits.

With it, the simulated day of memory samples, and the counts of allocations and collections.
"""

import gc
from itertools import pairwise

import pytest
from support import FREE_THREADED

from synthex_fast import AdaptiveMemoryMonitor
from synthex_fast.validate import (
    _allocations,
    corpus,
    figures,
    garbage,
    process_memory,
    rounds,
    simulated_day,
)
from synthex_fast.validate.arms import ARMS, NEEDS, service

for _needed in {name for names in NEEDS.values() for name in names}:
    pytest.importorskip(_needed)

from synthex_fast.validate.arms import current, tuned_by_hand  # noqa: E402 (they import what may be missing)

QUERY = {"title": "t", "content": "ten letters", "requester": "r"}
RESPONSE = {"query_id": "q", "expert_id": "e"}


@pytest.fixture
def tuned():
    service = tuned_by_hand.Service()
    yield service
    service.close()


def with_content(request, characters):
    answers = tuple(answer._replace(content="x" * characters) for answer in request.answers)
    return request._replace(answers=answers)


def test_it_stands_beside_the_others_just_before_the_package():
    assert ARMS[-2:] == ("tuned_by_hand", "synthex_fast")


class TestRecords:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"title": ""},
            {"title": "t" * 201},
            {"content": "too short"},
            {"content": "c" * 10_001},
            {"requester": ""},
            {"query_type": "unheard of"},
            {"priority": "unheard of"},
            {"created_at": current.now(), "deadline": current.now().replace(year=2000)},
        ],
        ids=lambda wrong: "-".join(wrong),
    )
    def test_a_query_that_the_current_system_refuses_is_refused(self, wrong):
        for module in (current, tuned_by_hand):
            with pytest.raises(ValueError):
                module.ExpertQuery(**QUERY | wrong)

    @pytest.mark.parametrize("wrong", [{"query_id": ""}, {"confidence": -0.01}, {"confidence": 1.01}])
    def test_a_response_that_the_current_system_refuses_is_refused(self, wrong):
        for module in (current, tuned_by_hand):
            with pytest.raises(ValueError):
                module.ExpertResponse(**RESPONSE | wrong)

    def test_what_it_accepts_is_what_the_current_system_makes_of_it(self):
        arguments = QUERY | {"tags": [" A", "a", "", "B "], "query_type": "review", "priority": "low"}
        one, other = current.ExpertQuery(**arguments), tuned_by_hand.ExpertQuery(**arguments)
        for name in ("title", "content", "requester", "query_type", "priority", "context", "constraints"):
            assert getattr(one, name) == getattr(other, name)
        assert sorted(one.tags) == sorted(other.tags) == ["a", "b"]
        assert len(one.id) == len(other.id) == 36
        assert other.created_at.tzinfo is not None


class TestLimits:
    def test_entries_are_limited_whatever_their_size(self, tuned):
        requests = corpus.make(3, 1_100)
        for request in requests:
            tuned.handle(request)
        assert len(tuned._active._entries) == 1_000
        assert len(tuned._responses._entries) == 500

    def test_texts_are_limited_in_bytes(self, tuned):
        request = with_content(corpus.make(3, 1)[0], 100_000)
        for _ in range(100):
            tuned.handle(request)
        # Five texts of 100,000 characters each: 12 such entries fit into 5.8 MiB.
        assert len(tuned._responses._entries) == 12
        assert tuned._responses.account() <= tuned_by_hand.CACHE_LIMIT

    def test_answers_larger_than_the_cache_are_served_and_not_kept(self, tuned):
        request = with_content(corpus.make(3, 1)[0], tuned_by_hand.CACHE_LIMIT // 4)
        assert tuned.handle(request).count == 5
        assert len(tuned._responses._entries) == 0
        tuned._responses["q"] = []
        tuned._responses["q"] = [tuned_by_hand.ExpertResponse("q", "e", "x" * 2 * tuned_by_hand.CACHE_LIMIT)]
        # The old value would be wrong.
        assert len(tuned._responses._entries) == 0

    def test_a_batch_over_the_cap_is_refused_whole(self, tuned):
        responses = [tuned_by_hand.ExpertResponse("q", "e")] * 101
        with pytest.raises(ValueError, match="101 responses, 100 are allowed"):
            tuned._add_batch(responses)
        tuned.flush()
        assert tuned.flushed == 0


class TestCollector:
    def test_it_freezes_what_is_there_and_collects_rarely_until_closed(self):
        # Else all is frozen already.
        gc.unfreeze()
        thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
        service = tuned_by_hand.Service()
        try:
            assert gc.get_threshold()[0] == 50_000
            assert gc.get_freeze_count() > max(frozen, 10_000)
        finally:
            service.close()
        assert gc.get_threshold() == thresholds
        assert gc.get_freeze_count() <= frozen

    def test_what_others_have_frozen_stays_so(self):
        gc.freeze()
        try:
            frozen = gc.get_freeze_count()
            tuned_by_hand.Service().close()
            assert gc.get_freeze_count() >= frozen
        finally:
            gc.unfreeze()


class TestSimulatedDay:
    def test_every_interval_of_the_day_is_lived_through(self):
        seen = []

        def sample():
            seen.append(1)
            return 30.0 if len(seen) % 2 else 10.0

        found = simulated_day.measure(sample, 1)
        # The first is before the day; then 20 s each on average.
        assert len(seen) - 1 == found["samples_taken"] == found["samples_a_day"] == 86_400 / 20
        assert found["interval"] == 20
        assert (found["shortest_interval"], found["longest_interval"]) == (10, 30)

    def test_of_very_many_an_even_share_is_taken_and_all_are_counted(self):
        taken = 0

        def sample():
            nonlocal taken
            taken += 1
            return 0.5

        found = simulated_day.measure(sample, 1)
        assert found["samples_taken"] == taken - 1 == pytest.approx(simulated_day.FEWER_SAMPLES, abs=1)
        assert found["samples_a_day"] == pytest.approx(172_800, rel=0.001)

    def test_bytes_are_those_of_the_samples_alone(self):
        def sample():
            bytearray(10_000)
            return 60.0

        assert simulated_day.measure(sample, 1)["bytes"] == pytest.approx(10_000, rel=0.05)

    def test_resident_memory_follows_the_day(self):
        ballast = simulated_day.Ballast()
        before = process_memory.resident()
        ballast.resize(60 << 20)
        assert process_memory.resident() - before > 55 << 20
        ballast.resize(0)
        assert process_memory.resident() - before < 20 << 20

    def test_the_day_has_a_quiet_and_a_busy_time_and_jobs(self):
        day = simulated_day.Day(1)
        sizes = [day.nbytes(float(second)) for second in range(0, 86_400, 60)]
        assert min(sizes) < 2 << 20
        assert max(sizes) > simulated_day.DAILY_SWING
        assert max(abs(one - two) for one, two in pairwise(sizes)) > simulated_day.JOB_BYTES / 2
        assert len(set(sizes)) > len(sizes) / 2

    def test_an_adaptive_monitor_is_rarer_when_memory_rests(self):
        monitor = AdaptiveMemoryMonitor(clock=lambda: clock)
        clock = 0.0

        def sample():
            nonlocal clock
            seconds = monitor.calculate_next_interval(monitor.sample().rss)
            clock += seconds
            return seconds

        found = simulated_day.measure(sample, 1)
        assert found["shortest_interval"] == 5
        assert found["longest_interval"] == 60


class TestPausedCounting:
    def test_nothing_is_counted_in_a_pause(self):
        _allocations.start()
        _allocations.pause()
        bytearray(1_000_000)
        _allocations.resume()
        bytearray(10_000)
        _allocations.pause()
        seen, blocks = _allocations.stop()
        assert 10_000 <= seen < 11_000
        assert 1 <= blocks <= 3


class TestGarbage:
    def test_what_a_request_keeps_is_told_from_what_it_frees(self):
        kept = []

        def handle(size):
            kept.append(bytearray(size))
            bytearray(3 * size)

        sizes = [10_000] * 600
        found = garbage.allocated(handle, sizes)
        assert found["bytes"] == pytest.approx(40_000, rel=0.02)
        assert 4 <= found["blocks"] <= 6
        assert garbage.kept(handle, sizes) == pytest.approx(10_000, rel=0.02)
        assert gc.isenabled()

    @pytest.mark.skipif(
        FREE_THREADED, reason="objects are larger there, and the interpreter keeps fewer for reuse"
    )
    def test_the_package_allocates_a_twentieth_of_the_current_systems(self):
        requests, found = corpus.make(3), {}
        for arm in ("current", "synthex_fast"):
            made = service(arm)()
            for request in requests:
                made.handle(request)
            found[arm] = garbage.allocated(made.handle, requests)
            made.close()
        assert found["synthex_fast"]["bytes"] < found["current"]["bytes"] / 10

    def test_collections_are_counted_by_generation_and_place(self):
        class Collecting:
            """One young collection inside every second request, a full one after every third."""

            def __init__(self):
                self.number = 0

            handle = close = lambda *_: None

            def answer(self, request):
                self.number += 1
                if not self.number % 2:
                    gc.collect(0)

            def sent(self):
                if not self.number % 3:
                    gc.collect(2)

        thresholds = gc.get_threshold()
        gc.disable()
        try:
            found = garbage.count_collections(Collecting, ["request"], 0.1, 1_000)
        finally:
            gc.enable()
        served = found["requests"]
        assert gc.get_threshold() == thresholds
        assert found["by_generation"] == [served // 2, 0, served // 3]
        assert found["inside_requests"] == [served // 2, 0, 0]
        assert found["longest_pause"] > 0
        assert found["an_hour"][2]["rate"] == pytest.approx(3_600_000 / 3, rel=0.05)

    def test_a_rate_has_the_exact_limits_of_its_count(self):
        # Of tables of the Poisson distribution.
        for count, low, high in (
            (0, 0.0, 3.689),
            (1, 0.0253, 5.572),
            (10, 4.795, 18.390),
            (100, 81.36, 121.63),
        ):
            found = garbage.rate(count, 3_600_000)
            assert found["rate"] == count
            assert found["low"] == pytest.approx(low, rel=0.001)
            assert found["high"] == pytest.approx(high, rel=0.001)
        large = garbage.rate(10_000, 3_600_000)
        assert (large["low"], large["high"]) == pytest.approx((9_805, 10_198), rel=0.001)

    def test_a_long_lived_heap_is_as_many_objects_as_asked_for(self):
        gc.collect()
        before = len(gc.get_objects())
        heap = garbage.long_lived(20_000)
        gc.collect()
        assert len(gc.get_objects()) - before == pytest.approx(20_000, rel=0.01)
        assert len(heap) == 5_000

    @pytest.mark.slow
    def test_each_arm_is_counted_in_a_process_of_its_own(self):
        results = rounds.Results(("tuned_by_hand", "synthex_fast"), 3)
        garbage.run(results, 0.3, lambda what, share: None, objects=50_000)
        for found in results.garbage.values():
            assert found["requests"] >= 200
            assert found["heap_objects"] == 50_000
            assert sum(found["inside_requests"]) <= sum(found["by_generation"])
        assert results.garbage["synthex_fast"]["inside_requests"][2] == 0
        [note] = garbage.footnotes(results)
        assert "tuned_by_hand 0 in" in note
        row = next(row for row in figures.rows(results) if row.measure.key == "hourly_full_collections")
        found = row.figures["synthex_fast"]
        # None were seen in less than an hour's worth: that proves nothing.
        assert found.median == found.interval.low == 0
        assert found.interval.high > 5
        assert row.report["synthex_fast"] == row.reach["synthex_fast"] == figures.UNCLEAR
