"""`validate` below the command line: corpus, arms, measurements, and what is made of them."""

import gc
import json
import math
import mmap
import random
import statistics
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import run, wait_for

from synthex_fast.errors import TunerRunningError
from synthex_fast.validate import _allocations, corpus, figures, intervals, process_memory, rounds
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

    def test_figure_is_the_median_with_half_the_interval(self):
        figure = figures.Figure((3.0, 1.0, 2.0, 10.0, 2.5))
        assert figure.median == 2.5
        # Five values: no interval between two of them would cover the median with 95 %.
        assert figure.interval == (1.0, 10.0)
        assert figure.spread == 4.5
        assert figures.Figure((3.0,)).interval is None
        assert figures.Figure((3.0,)).spread == 0

    @pytest.mark.parametrize(
        ("target", "now", "before", "change", "met"),
        [
            (("less", 25), 75.0, 100.0, 25, "met"),
            (("less", 25), 75.1, 100.0, 24.9, "missed"),
            (("less", 25), 120.0, 100.0, -20, "missed"),
            (("more", 35), 135.0, 100.0, 35, "met"),
            (("more", 35), 134.0, 100.0, 34, "missed"),
            (("below", 5), 4.9, 10.0, 51, "met"),
            (("below", 5), 5.0, 10.0, 50, "missed"),
            (("above", 80), 80.0, 40.0, 100, "missed"),
            (("above", 80), 81.0, 0.0, None, "met"),
            (("less", 60), 0.0, 0.0, None, None),
        ],
    )
    def test_verdicts_on_single_values(self, target, now, before, change, met):
        found, verdict = figures.Target(*target).verdict(figures.Figure((now,)), figures.Figure((before,)))
        assert found == (None if change is None else figures.Change(pytest.approx(change)))
        assert verdict == met

    @pytest.mark.parametrize(
        ("target", "now", "before", "met"),
        [
            # Steady, with the whole interval on one side.
            (("less", 25), [70, 71, 69, 70, 72, 68, 70], [100] * 7, "met"),
            (("less", 25), [80, 81, 79, 80, 82, 78, 80], [100] * 7, "missed"),
            # The same medians, but the rounds differ by more than is missing.
            (("less", 25), [70, 40, 90, 95, 30, 60, 99], [100] * 7, "unclear"),
            (("less", 25), [80, 40, 90, 95, 30, 85, 40], [100] * 7, "unclear"),
            # Rounds in which everything was slow say nothing about the difference.
            (("less", 25), [70, 140, 700, 35, 7, 70, 70], [100, 200, 1000, 50, 10, 100, 100], "met"),
            (("more", 35), [150, 149, 151, 150, 152, 148, 150], [100] * 7, "met"),
            (("more", 35), [150, 100, 151, 90, 152, 300, 150], [100] * 7, "unclear"),
            (("below", 5), [4, 4, 4, 3, 4, 4, 4], [9] * 7, "met"),
            (("below", 5), [4, 4, 4, 30, 4, 0, 4], [9] * 7, "unclear"),
            (("below", 5), [5, 6, 7, 6, 5, 6, 6], [9] * 7, "missed"),
            (("above", 80), [99, 98, 99, 99, 99, 99, 99], [0] * 7, "met"),
            (("above", 80), [99, 70, 99, 60, 99, 99, 75], [0] * 7, "unclear"),
            # It was 0 in some rounds, and in most of them later: no percentage, so no verdict.
            (("less", 25), [5, 5, 5, 5, 5, 5, 5], [0, 9, 0, 9, 9, 0, 9], None),
        ],
    )
    def test_noise_that_could_decide_makes_a_verdict_unclear(self, target, now, before, met):
        assert (
            figures.Target(*target).verdict(figures.Figure(tuple(now)), figures.Figure(tuple(before)))[1]
            == met
        )

    def test_improvements_are_of_the_same_round(self):
        now, before = figures.Figure((1.0, 20.0, 300.0)), figures.Figure((2.0, 40.0, 600.0))
        assert figures.improvement(now, before, more_is_better=False) == figures.Change(50.0, (50.0, 50.0))
        # An interrupted run has a round more of some arms than of others.
        longer = figures.Figure((*now.values, 1.0))
        assert figures.improvement(longer, before, more_is_better=False) == figures.Change(50.0, (50.0, 50.0))

    def test_without_the_current_system_only_absolute_targets_are_judged(self):
        assert figures.Target("less", 25).verdict(figures.Figure((1.0,)), None) == (None, None)
        assert figures.Target("above", 80).verdict(figures.Figure((90.0,)), None) == (None, "met")

    def test_unknown_kinds_of_target_are_refused(self):
        with pytest.raises(ValueError, match="kind must be less, more, below or above, not 'under'"):
            figures.Target("under", 5)

    def test_measures_have_keys_of_their_own_and_sections_name_no_other(self):
        keys = [measure.key for _, measure in figures.measures()]
        assert len(set(keys)) == len(keys)
        assert set(figures.SECTIONS["Memory"]) >= {"allocated_per_request", "cache_bytes", "reuse_rate"}
        assert [section for section, _ in figures.measures()].index(figures.DETAIL) > 10

    def test_no_full_collection_in_a_short_run_is_not_few_an_hour(self):
        def row(requests):
            results = rounds.Results(("synthex_fast",), SEED)
            results.started["synthex_fast"] = {"before_load_rss": 0}
            results.rounds["synthex_fast"] = _rounds([requests] * 7)
            (found,) = (
                row for row in figures.rows(results) if row.measure.key == "full_collections_per_hour"
            )
            return found.figures["synthex_fast"], found.report["synthex_fast"], found.reach["synthex_fast"]

        short, *verdicts = row(10_000)
        assert (short.median, short.interval.low) == (0, 0)
        assert short.interval.high == pytest.approx(3.689 * 3_600_000 / 70_000, rel=1e-3)
        assert verdicts == [figures.UNCLEAR] * 2
        long, *verdicts = row(400_000)
        assert long.interval.high < 5
        assert verdicts == [figures.MET] * 2

    def test_node_is_sized_and_not_run(self):
        results = rounds.Results(ARMS, SEED)
        assert figures.rows(results) == []
        results.rounds = {arm: [] for arm in ARMS}
        (row,) = figures.rows(results)
        assert row.measure.key == "node_heap"
        # 5.1 GB times 6,336 MB of 9.25 GB, rounded down to what V8 can have.
        assert row.figures["synthex_fast"].median == pytest.approx(5.1 / 9.25 * 6_336, abs=1)
        assert row.figures["current"].median == 6_144 + 3 * 64
        assert row.report == {}


class TestTable:
    """The table in a terminal."""

    @pytest.fixture
    def results(self):
        pytest.importorskip("rich")
        results = rounds.Results(("current", "synthex_fast"), SEED)
        results.allocation = {
            arm: {"bytes": nbytes, "kept_bytes": 0.0, "blocks": 100.0}
            for arm, nbytes in (("current", 10_000.0), ("synthex_fast", 7_000.0))
        }
        return results

    def test_a_missed_target_is_shown_as_missed(self, results):
        assert "+30 % missed" in _shown(results)
        assert "-95 % missed" in _shown(results)
        results.allocation["synthex_fast"]["bytes"] = 5_000.0
        assert "+50 % met" in _shown(results)
        assert "-95 % missed" in _shown(results)
        results.allocation["synthex_fast"]["bytes"] = 400.0
        assert "+96 % met" in _shown(results)
        assert "-95 % met" in _shown(results)

    def test_what_noise_could_have_made_is_not_shown_as_met(self, results):
        steady = [100.0, 101.0, 99.0, 100.0, 100.0, 100.0, 100.0]
        results.rounds = {"current": _rounds(steady), "synthex_fast": _rounds([150.0] * 7)}
        assert "+50 % (+48 to +51) met" in _shown(results)
        noisy = [150.0, 90.0, 160.0, 300.0, 80.0, 150.0, 151.0]
        results.rounds["synthex_fast"] = _rounds(noisy)
        assert "+50 % (-20 to +200) unclear" in _shown(results)
        assert "medians of 7 rounds, ± half the 95 % interval" in _shown(results)

    def test_too_few_rounds_are_called_so(self, results):
        results.rounds = {"current": _rounds([1.0, 2.0]), "synthex_fast": _rounds([1.0, 2.0])}
        assert "too few rounds for a 95 % interval" in _shown(results)

    @pytest.mark.parametrize("width", [80, 100, 120, 155, 200, 240])
    @pytest.mark.parametrize("arms", [ARMS, ("current", "synthex_fast"), ("synthex_fast",)])
    def test_fits_the_terminal_with_no_figure_cut_off(self, width, arms):
        pytest.importorskip("rich")
        results = rounds.Results(arms, SEED)
        for number, arm in enumerate(arms):
            wide = [12_345.6 * (number + 1) * factor for factor in (0.31, 1.7, 1.0, 1.2, 0.9, 0.8, 2.4)]
            results.rounds[arm] = _rounds(wide)
            results.held[arm] = {"bytes": 12.3e6, "account": 1.2e6}
        shown = _shown(results, width)
        assert max(map(len, shown.splitlines())) <= width
        assert "…" not in shown
        words = shown.split()
        for row in figures.rows(results):
            for figure in row.figures.values():
                assert report_number(figure.median) in words
            for verdict in (*row.report.values(), *row.reach.values()):
                assert verdict is None or verdict in words


def report_number(value):
    from synthex_fast.validate import report

    return report.number(value)


def _rounds(throughputs):
    """Rounds of one second with that many requests."""
    return [
        {
            "requests": requests,
            "seconds": 1.0,
            "cpu_seconds": 0.5,
            "refill_requests": 10,
            "refill_collections": [3, 2, 1],
            "collections": [30, 20, 0],
            "pauses": [0.001, 0.002],
            "latency_p50": 1 / requests,
            "latency_p99": 2 / requests,
            "latency_p99.9": 3 / requests,
            "peak_rss": 50_000_000,
            "peak_rss_of_this_round": True,
            "settled_rss": 40_000_000,
            "reused": 3,
            "created": 1,
        }
        for requests in throughputs
    ]


def _shown(results, width=200):
    from rich.console import Console

    from synthex_fast.validate import report

    for arm in results.arms:
        results.started.setdefault(arm, {"before_load_rss": 30_000_000, "import_rss": 1_000_000})
    console = Console(width=width)
    with console.capture() as capture:
        report.show(results, console)
    return capture.get()


class TestIntervals:
    @pytest.mark.parametrize("count", [7, 8, 11, 15, 31])
    @pytest.mark.parametrize(
        ("draw", "median"),
        [
            (lambda random: random.gauss(0, 1), 0.0),
            (lambda random: random.expovariate(1), math.log(2)),
            (lambda random: random.lognormvariate(0, 1), 1.0),
        ],
        ids=["normal", "exponential", "lognormal"],
    )
    def test_cover_the_median_of_a_known_distribution(self, draw, median, count):
        chance, trials = random.Random(3), 400
        covered = 0
        for _ in range(trials):
            low, high = intervals.of_median([draw(chance) for _ in range(count)])
            covered += low <= median <= high
        # At 95 %, three standard deviations of the number of trials below.
        assert covered / trials > 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)

    @pytest.mark.parametrize("count", [7, 15])
    def test_of_changes_cover_the_change_in_spite_of_drift(self, count):
        chance, trials = random.Random(4), 400
        covered = narrow = 0
        for _ in range(trials):
            drift = [chance.lognormvariate(0, 1) for _ in range(count)]
            before = [100 * slow * chance.lognormvariate(0, 0.05) for slow in drift]
            now = [80 * slow * chance.lognormvariate(0, 0.05) for slow in drift]
            _, (low, high) = intervals.of_change(now, before)
            covered += low <= -0.2 <= high
            narrow += high - low < 0.3
        assert covered / trials > 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)
        # The drift is far larger than that.
        assert narrow / trials > 0.95

    @pytest.mark.parametrize("count", [7, 15])
    def test_of_independent_changes_cover_it_too(self, count):
        chance, trials = random.Random(5), 400
        covered = 0
        for _ in range(trials):
            before = [100 * chance.lognormvariate(0, 0.1) for _ in range(count)]
            now = [120 * chance.lognormvariate(0, 0.1) for _ in range(count)]
            _, (low, high) = intervals.of_independent_change(now, before)
            covered += low <= 0.2 <= high
        assert covered / trials > 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)

    def test_known_data_have_known_intervals(self):
        # Of seven values, a resample's median is the least with a probability of 1 %, more than lies outside here.
        assert intervals.of_median([5.0, 1.0, 4.0, 2.0, 7.0, 3.0, 6.0]) == (1.0, 7.0)
        # Of 101, by the binomial distribution, the 41st and the 61st; resampling may be off by one.
        low, high = intervals.of_median([float(n) for n in range(1, 102)])
        assert low == pytest.approx(41, abs=1)
        assert high == pytest.approx(61, abs=1)

    def test_the_same_values_have_the_same_interval(self):
        values = [random.Random(6).random() for _ in range(21)]
        assert intervals.of_median(values) == intervals.of_median(list(values))

    def test_narrow_as_there_are_more_values(self):
        chance = random.Random(7)
        widths = []
        for count in (7, 31, 301):
            low, high = intervals.of_median([chance.gauss(0, 1) for _ in range(count)])
            widths.append(high - low)
        assert widths == sorted(widths, reverse=True)

    @given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=40))
    def test_lie_within_the_values_and_hold_the_median(self, values):
        low, high = intervals.of_median(values)
        assert min(values) <= low <= statistics.median(values) <= high <= max(values)

    def test_from_nothing_is_no_change_or_an_infinite_one(self):
        assert intervals.of_change([0.0, 1.0, 2.0], [0.0, 0.0, 0.0]) == (math.inf, (0.0, math.inf))
        assert figures.improvement(figures.Figure((1.0,)), figures.Figure((0.0,)), True) is None


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
