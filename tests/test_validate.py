"""`validate` below the command line: corpus, arms, measurements, and what is made of them."""

import gc
import json
import mmap
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import run, wait_for

from synthex_fast.errors import TunerRunningError
from synthex_fast.validate import _allocations, corpus, figures, process_memory, rounds
from synthex_fast.validate.arms import ARMS, NEEDS, service
from synthex_fast.validate.background import Background

SEED = 11


@pytest.fixture(scope="module")
def requests():
    return corpus.make(SEED)


@pytest.fixture(params=ARMS)
def arm(request):
    """A service of each arm; what it does to the collector is undone."""
    for needed in NEEDS[request.param]:
        pytest.importorskip(needed)
    thresholds = gc.get_threshold()
    made = service(request.param)()
    yield made
    made.close()
    gc.set_threshold(*thresholds)


class TestCorpus:
    def test_is_the_reports_workload(self, requests):
        assert len(requests) == 1_000
        for request in requests:
            assert 30 <= len(request.title) <= 50
            assert 200 <= len(request.content) <= 2_000
            assert (len(request.context), len(request.constraints), len(request.tags)) == (5, 3, 3)
            assert len(request.answers) == 5
            for answer in request.answers:
                assert 500 <= len(answer.content) <= 2_000
                assert 0 <= answer.confidence <= 1
                assert answer.reasoning
                assert len(answer.metadata) == 4

    def test_has_no_two_texts_alike(self, requests):
        texts = [request.content for request in requests]
        texts += [answer.content for request in requests for answer in request.answers]
        assert len(set(texts)) == len(texts)

    def test_follows_from_its_seed_alone(self, requests):
        make = "from synthex_fast.validate import corpus; print(corpus.digest(corpus.make({})))"
        digests = [
            run(make.format(seed), PYTHONHASHSEED=hashes).strip()
            for seed, hashes in ((SEED, "1"), (SEED, "2"), (SEED + 1, "1"))
        ]
        assert digests[0] == digests[1] == corpus.digest(requests)
        assert digests[2] != digests[0]


@pytest.mark.slow
class TestArms:
    def test_return_the_consensus_that_follows_from_the_confidences(self, arm, requests):
        levels = set()
        # More than the buffer's 1,000 and the responses' 500: it is flushed and both caches evict on the way.
        for request in requests + requests[:200]:
            confidences = [answer.confidence for answer in request.answers]
            mean = sum(confidences) / 5
            variance = sum((confidence - mean) ** 2 for confidence in confidences) / 5
            level = "low"
            if variance < 0.05 and mean > 0.7:
                level = "high"
            elif variance < 0.1 and mean > 0.5:
                level = "medium"
            count, found_mean, found_variance, found_level = arm.handle(request)
            assert (count, found_level) == (5, level)
            assert found_mean == pytest.approx(mean)
            assert found_variance == pytest.approx(variance, abs=1e-9)
            levels.add(level)
        assert levels == {"high", "medium", "low"}

    def test_hand_the_buffer_over_and_lose_no_response(self, arm, requests):
        for request in requests:
            arm.handle(request)
        assert arm.flushed == 5_000 // 800 * 800
        arm.flush()
        assert arm.flushed == 5_000

    def test_let_everything_go_when_it_expires(self, arm, requests):
        for request in requests[:50]:
            arm.handle(request)
        assert arm.account() > 0
        arm.expire()
        assert arm.account() == 0
        assert arm.flushed == 0
        assert arm.handle(requests[0]).count == 5

    def test_leave_the_corpus_as_it_was(self, arm, requests):
        before = corpus.digest(requests)
        for request in requests:
            arm.handle(request)
        arm.expire()
        assert corpus.digest(requests) == before

    def test_make_six_records_a_request(self, arm, requests):
        before = sum(arm.made())
        for request in requests[:100]:
            arm.handle(request)
        assert sum(arm.made()) - before == 600

    def test_background_tasks_say_when_to_come_again(self, arm):
        for first, task in arm.tasks():
            assert first >= 0
            assert task() > 0

    def test_sampling_becomes_as_rare_as_the_version_makes_it(self, arm):
        sample = arm.sampling()
        intervals = [sample() for _ in range(30)]
        if type(arm) is service("current"):
            assert set(intervals) == {1.0}
        elif type(arm) is service("tuned_by_hand"):
            assert set(intervals) == {15.0}
        else:
            assert intervals[0] == 5.0
            assert set(intervals) <= {5.0, 15.0, 30.0, 60.0}
        if type(arm) is service("synthex_fast"):
            assert intervals[-1] == 60.0

    @pytest.mark.parametrize("arm", ["synthex_fast"], indirect=True)
    def test_a_closed_service_leaves_the_collector_as_it_was(self, arm):
        with pytest.raises(TunerRunningError):
            service("synthex_fast")()
        arm.close()
        before = gc.get_threshold(), len(gc.callbacks)
        other = service("synthex_fast")()
        assert (gc.get_threshold(), len(gc.callbacks)) != before
        other.close()
        assert (gc.get_threshold(), len(gc.callbacks)) == before

    @pytest.mark.parametrize("name", ["recommended", "synthex_fast"])
    def test_pools_reuse_once_the_caches_are_full(self, name, requests):
        pytest.importorskip("pydantic")
        pooled = service(name)()
        try:
            for request in requests + requests[:100]:
                pooled.handle(request)
            reused, created = pooled.made()
            for request in requests:
                pooled.handle(request)
            now_reused, now_created = pooled.made()
        finally:
            pooled.close()
        assert (now_reused - reused) / (now_reused - reused + now_created - created) > 0.95


class TestAllocations:
    def test_counts_what_is_requested_and_nothing_else(self):
        _allocations.start()
        assert _allocations.stop() == (0, 0)
        _allocations.start()
        for _ in range(2):
            bytearray(1_000_000)
        seen, blocks = _allocations.stop()
        # Freeing takes nothing back, and a large block that one allocator passes on to another counts once.
        assert 2_000_000 <= seen < 2_001_000
        assert 2 <= blocks <= 6

    def test_a_block_that_moves_counts_again(self):
        _allocations.start()
        grown = []
        for _ in range(100):
            grown.append(None)
        seen, _ = _allocations.stop()
        assert seen >= 100 * 8

    def test_can_be_repeated_but_not_nested(self):
        _allocations.start()
        with pytest.raises(RuntimeError, match="being counted already"):
            _allocations.start()
        _allocations.stop()
        with pytest.raises(RuntimeError, match="not being counted"):
            _allocations.stop()

    def test_counts_the_calling_thread_only(self):
        go, done = threading.Event(), threading.Event()

        def allocate():
            go.wait()
            bytearray(50_000_000)
            done.set()

        thread = threading.Thread(target=allocate)
        thread.start()
        _allocations.start()
        go.set()
        done.wait()
        seen, _ = _allocations.stop()
        thread.join()
        assert seen < 1_000_000


class TestProcessMemory:
    def test_sees_memory_come_and_keeps_the_peak(self):
        before = process_memory.resident()
        # Straight from the system: an allocator may have as much to hand from an earlier test.
        with mmap.mmap(-1, 60_000_000) as block:
            for place in range(0, len(block), mmap.PAGESIZE):
                block[place] = 1
            assert process_memory.resident() - before > 50_000_000
        assert process_memory.peak() - before > 50_000_000
        if process_memory.restart_peak():
            assert process_memory.peak() - before < 50_000_000


class TestBackground:
    def test_runs_while_there_is_load_and_rests_while_there_is_none(self):
        ran = []
        background = Background([(0.0, lambda: ran.append(1) or 0.001)])
        time.sleep(0.05)
        assert not ran
        background.resume()
        wait_for(lambda: len(ran) >= 3)
        background.pause()
        count = len(ran)
        assert count >= 3
        time.sleep(0.05)
        assert len(ran) == count

    def test_counts_seconds_of_load_only(self):
        ran = []
        background = Background([(0.2, lambda: ran.append(1) or 60.0)])
        for _ in range(3):
            background.resume()
            background.pause()
            time.sleep(0.1)
        assert not ran


class TestFigures:
    @given(
        st.lists(st.integers(0, 10**12), min_size=1, max_size=200),
        st.one_of(st.floats(0, 100), st.sampled_from([0, 50, 99, 99.9, 100])),
    )
    def test_percentile_is_numpys(self, values, share):
        numpy = pytest.importorskip("numpy")
        assert figures.percentile(sorted(values), share) == pytest.approx(
            float(numpy.percentile(values, share)), rel=1e-9, abs=1e-3
        )

    def test_percentile_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="no values"):
            figures.percentile([], 50)

    def test_figure_is_the_median_with_half_the_range(self):
        figure = figures.Figure((3.0, 1.0, 2.0, 10.0, 2.5))
        assert figure.median == 2.5
        assert figure.spread == 4.5

    @pytest.mark.parametrize(
        ("target", "now", "before", "change", "met"),
        [
            (("less", 25), 75.0, 100.0, 25, True),
            (("less", 25), 75.1, 100.0, 24.9, False),
            (("less", 25), 120.0, 100.0, -20, False),
            (("more", 35), 135.0, 100.0, 35, True),
            (("more", 35), 134.0, 100.0, 34, False),
            (("below", 5), 4.9, 10.0, 51, True),
            (("below", 5), 5.0, 10.0, 50, False),
            (("above", 80), 80.0, 40.0, 100, False),
            (("above", 80), 81.0, 0.0, None, True),
            (("less", 60), 0.0, 0.0, None, None),
        ],
    )
    def test_verdicts(self, target, now, before, change, met):
        found, verdict = figures.Target(*target).verdict(figures.Figure((now,)), figures.Figure((before,)))
        assert found == (None if change is None else pytest.approx(change))
        assert verdict is met

    def test_without_the_current_system_only_absolute_targets_are_judged(self):
        assert figures.Target("less", 25).verdict(figures.Figure((1.0,)), None) == (None, None)
        assert figures.Target("above", 80).verdict(figures.Figure((90.0,)), None) == (None, True)

    def test_a_missed_target_is_shown_as_a_miss(self):
        pytest.importorskip("rich")
        from synthex_fast.validate import report

        results = rounds.Results(("current", "synthex_fast"), SEED)
        results.allocation = {
            arm: {"bytes": nbytes, "kept_bytes": 0.0, "blocks": 100.0}
            for arm, nbytes in (("current", 10_000.0), ("synthex_fast", 7_000.0))
        }
        assert "+30 % MISS" in _shown(report.table(results))
        results.allocation["synthex_fast"]["bytes"] = 5_000.0
        shown = _shown(report.table(results))
        assert "+50 % met" in shown
        assert "MISS" not in shown


def _shown(table):
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


class TestRounds:
    @given(st.integers(1, 4), st.floats(1.4, 10_000))
    def test_plan_shares_out_all_the_seconds(self, arms, seconds):
        number, turn = rounds.plan(arms, seconds)
        assert number >= 7
        assert number % 2 == 1
        assert number * turn * arms == pytest.approx(seconds)
        assert turn <= rounds.LONGEST_ROUND + 1e-9
        assert turn >= rounds.SHORTEST_ROUND - 1e-9

    def test_arms_that_disagree_end_the_comparison(self):
        class Answering:
            def __init__(self, level):
                self.level = level

            def order(self, **command):
                self.count = command["count"]

            def answer(self):
                return {"consensus": [[5, 0.5, 0.01, self.level]] * self.count}, b""

        results = rounds.Results(("current", "synthex_fast"), SEED)
        rounds._same_consensus(results, {arm: Answering("low") for arm in results.arms})
        assert results.compared == rounds.COMPARED_REQUESTS
        disagreeing = {"current": Answering("low"), "synthex_fast": Answering("high")}
        with pytest.raises(rounds.ValidationError, match="'current' returns"):
            rounds._same_consensus(results, disagreeing)

    def test_a_process_that_dies_is_named_with_how_it_went(self):
        with rounds.processes(("synthex_fast",), SEED) as running:
            process = running["synthex_fast"]
            process.answer()
            process.order(do="round", seconds=30.0)
            process.kill()
            with pytest.raises(
                rounds.ValidationError, match=r"'synthex_fast' (was killed by signal 9|exited with)"
            ):
                process.answer()

    def test_an_arm_that_fails_says_why(self):
        with rounds.processes(("synthex_fast",), SEED) as running:
            process = running["synthex_fast"]
            process.answer()
            process.order(do="round", seconds="long")
            with pytest.raises(rounds.ValidationError, match="'synthex_fast' failed: TypeError"):
                process.answer()

    def test_a_worker_ends_with_the_pipe_even_in_a_round(self):
        worker = subprocess.Popen(
            [sys.executable, "-m", "synthex_fast.validate.worker", "synthex_fast", str(SEED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=rounds._environment(),
        )
        json.loads(worker.stdout.readline())
        worker.stdin.write(b'{"do": "round", "seconds": 600}\n')
        worker.stdin.flush()
        time.sleep(0.2)
        worker.stdin.close()
        assert worker.wait(timeout=20) == 0
        worker.stdout.close()
