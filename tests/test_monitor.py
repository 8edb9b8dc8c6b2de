"""AdaptiveMemoryMonitor: intervals, history, pressure and leaks with a fake clock; its thread for real."""

import contextlib
import gc
import itertools
import math
import os
import pickle
import select
import statistics
import sys
import threading
import time
import weakref

import pytest
from conftest import DEBUG_BUILD
from hypothesis import given, settings
from hypothesis import strategies as st
from support import GB, MB, Clock, FakeReadings, in_child, needs_fork, quiet_fork, run, wait_for

import synthex_fast
from synthex_fast import AdaptiveMemoryMonitor, monitor
from synthex_fast._readings import Readings
from synthex_fast.errors import ArgumentTypeError
from synthex_fast.monitor import sampling, trend, wakeups
from synthex_fast.monitor import thread as thread_module

np = pytest.importorskip("numpy")

HOUR = 3600.0
DAY = 86400.0
LINUX = sys.platform.startswith("linux")


@pytest.fixture
def clock():
    return Clock(1000.0)


def contained(clock, limit=1000 * MB, **given):
    """A monitor in a container, and its readings."""
    readings = FakeReadings(limit=limit, charge=100 * MB)
    return AdaptiveMemoryMonitor(readings=readings, clock=clock, **given), readings


def use(readings, clock, nbytes):
    readings.rss_ = nbytes
    readings.charge_ = nbytes
    clock.now += 5


# Intervals


@pytest.mark.parametrize(
    ("variation", "expected"),
    [
        (0.0, 60.0),
        (0.009, 60.0),
        (0.011, 30.0),
        (0.049, 30.0),
        (0.051, 15.0),
        (0.099, 15.0),
        (0.11, 5.0),
        (0.9, 5.0),
    ],
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e9, 1e15])
def test_the_reports_steps_whatever_the_unit(variation, expected, scale):
    watching = AdaptiveMemoryMonitor(readings=FakeReadings())
    for n in range(10):
        interval = watching.calculate_next_interval(scale * (1 + variation * (-1) ** n))
        assert interval == (5.0 if n < 9 else expected)


def test_the_steps_scale_with_the_arguments():
    def steps(**given):
        found = []
        for variation in (0.0, 0.03, 0.07, 0.5):
            watching = AdaptiveMemoryMonitor(readings=FakeReadings(), stability_window=2, **given)
            watching.calculate_next_interval(1e9 * (1 - variation))
            found.append(watching.calculate_next_interval(1e9 * (1 + variation)))
        return found

    assert steps() == [60, 30, 15, 5]
    assert steps(base_interval=1, max_interval=8) == [8, 4, 2, 1]
    assert steps(base_interval=20) == [60, 30, 20, 20]
    assert steps(base_interval=7, max_interval=7) == [7, 7, 7, 7]


def test_memory_without_a_mean():
    watching = AdaptiveMemoryMonitor(readings=FakeReadings(), stability_window=2)
    watching.calculate_next_interval(0)
    assert watching.calculate_next_interval(0) == 60.0
    for value in (-1.0, 1.0, -1.0, -1.0):
        assert watching.calculate_next_interval(value) == 5.0


@given(st.lists(st.floats(0, 1e15), min_size=1, max_size=30), st.integers(2, 8))
def test_intervals_against_statistics(values, window):
    watching = AdaptiveMemoryMonitor(readings=FakeReadings(), stability_window=window)
    for n, value in enumerate(values, 1):
        interval = watching.calculate_next_interval(value)
        recent = values[max(0, n - window) : n]
        mean = math.fsum(recent) / len(recent)
        if n < window:
            expected = {5.0}
        elif mean == 0:
            expected = {60.0}
        else:
            variation = statistics.pstdev(recent, mean) / mean
            # On a boundary rounding decides.
            expected = {
                60.0 if v < 0.01 else 30.0 if v < 0.05 else 15.0 if v < 0.1 else 5.0
                for v in (variation * (1 - 1e-9), variation * (1 + 1e-9))
            }
        assert interval in expected


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (math.nan, ValueError),
        (math.inf, ValueError),
        (10**400, ValueError),
        ("5", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_what_is_no_memory_leaves_the_window_as_it_was(value, error):
    watching = AdaptiveMemoryMonitor(readings=FakeReadings(), stability_window=2)
    watching.calculate_next_interval(7)
    with pytest.raises(error, match="current_memory must be"):
        watching.calculate_next_interval(value)
    assert watching.calculate_next_interval(7) == 60.0


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"base_interval": 0}, ValueError),
        ({"base_interval": -1}, ValueError),
        ({"base_interval": math.nan}, ValueError),
        ({"base_interval": 10**400}, ValueError),
        ({"base_interval": "5"}, TypeError),
        ({"base_interval": True}, TypeError),
        ({"max_interval": 4}, ValueError),
        ({"max_interval": math.inf}, ValueError),
        ({"stability_window": 1}, ValueError),
        ({"stability_window": 10**6}, ValueError),
        ({"stability_window": 3.0}, TypeError),
        ({"stability_window": True}, TypeError),
        ({"limit": -1}, ValueError),
        ({"limit": 0}, ValueError),
        ({"limit": math.nan}, ValueError),
        ({"limit": 1 << 62}, ValueError),
        ({"limit": "120%"}, ValueError),
        ({"limit": True}, TypeError),
        ({"clock": 3}, TypeError),
    ],
)
def test_arguments_out_of_reach(given, error):
    (name,) = given
    with pytest.raises(error, match=f"{name} must be"):
        AdaptiveMemoryMonitor(**{"readings": FakeReadings(), **given})


# Samples


def test_a_sample_has_the_seven_metrics(clock):
    watching, _ = contained(clock)
    taken = watching.sample()
    assert abs(taken.time - time.time()) < 60
    assert (taken.rss, taken.charge, taken.limit) == (100 * MB, 100 * MB, 1000 * MB)
    assert (taken.available, taken.swap, taken.gc_seconds) == (12 * GB, 5 * MB, 0.0)
    # The interpreter counts none if each is a malloc, which suits memory checkers.
    assert taken.blocks > 1000 or os.environ.get("PYTHONMALLOC") == "malloc"
    assert (taken.used, taken.level) == (100 * MB, "normal")
    row = watching.history()[-1]
    for name in monitor.METRICS:
        assert row[name]["min"] == row[name]["max"] == getattr(taken, name)


def test_resident_size_and_charge_each_time_the_rest_once_a_minute(clock):
    watching, readings = contained(clock)
    watching.sample()
    readings.calls.clear()
    for _ in range(11):
        clock.now += 5
        watching.sample()
    assert set(readings.calls) == {"rss", "charge"}
    clock.now += 5
    watching.sample()
    assert {"limit", "available", "swap"} < set(readings.calls)
    assert watching.stats["slow_readings"] == 2


def test_counting_blocks_stays_cheap_in_a_large_heap(clock, monkeypatch):
    watching, _ = contained(clock)
    counts = []

    def count():
        counts.append(clock.now)
        time.sleep(0.001)
        return 7

    monkeypatch.setattr(sampling.sys, "getallocatedblocks", count)
    for _ in range(400):
        watching.sample()
        clock.now += 60
    # A millisecond at 5 microseconds a minute: every 200 minutes at most.
    assert 1 <= len(counts) <= 2


def test_collections_are_timed_while_it_runs():
    watching = AdaptiveMemoryMonitor()
    assert watching.sample().gc_seconds == 0.0
    before = list(gc.callbacks)
    with watching:
        for _ in range(3):
            gc.collect()
        spent = watching.sample().gc_seconds
        assert 0.0 < spent < 60.0
    assert gc.callbacks == before
    gc.collect()
    assert spent <= watching.sample().gc_seconds < 60.0


# History


def feed(watching, times, values, wall=0.0):
    for now, value in zip(times, values, strict=True):
        watching._record(now, (value, value, 16e9, 8e9, 0, 0, 1000), wall + now)


def test_history_has_a_fixed_size(clock):
    watching, _ = contained(clock)
    assert watching.nbytes <= 128 << 10
    buffers = [
        ring.buffer for ring in (watching._history._hour, watching._history._day, watching._history._month)
    ]
    before = [len(buffer) for buffer in buffers]
    times = np.concatenate((np.arange(0, 60 * DAY, 1800.0), np.arange(60 * DAY, 60 * DAY + 2 * HOUR, 1.0)))
    feed(watching, times.tolist(), times.tolist())
    assert [len(buffer) for buffer in buffers] == before
    assert watching.nbytes == sum(before) <= 128 << 10
    rows = watching.history()
    assert len(rows) < 1900
    # A month of hours, a day of 5 minutes, an hour of 5 seconds.
    assert rows["time"][-1] - rows["time"][0] >= 30 * DAY
    ages = rows["time"][-1] - rows["time"]
    assert set(rows["seconds"][ages < HOUR - 300]) == {5.0}
    assert set(rows["seconds"][(ages > HOUR) & (ages < DAY - HOUR)]) == {300.0}
    assert set(rows["seconds"][ages > DAY]) == {HOUR}


def test_a_peak_is_never_averaged_away(clock):
    watching, _ = contained(clock)
    times = np.arange(0, 25 * DAY, 60.0)
    values = np.full(len(times), 100.0 * MB)
    values[7] = 900 * MB
    values[11] = 10 * MB
    feed(watching, times.tolist(), values.tolist())
    rss = watching.history()["rss"]
    assert rss["max"].max() == 900 * MB
    assert rss["min"].min() == 10 * MB
    assert rss["max"][0] == 900 * MB


def test_history_is_the_callers_own_and_may_be_empty(clock):
    watching, _ = contained(clock)
    rows = watching.history()
    assert len(rows) == 0
    assert rows.dtype.names == ("time", "seconds", "samples", *monitor.METRICS)
    watching.sample()
    rows = watching.history()
    rows["samples"] = 0
    assert watching.history()["samples"].sum() == 1


class Rows:
    """What the history promises, from all samples."""

    def __init__(self):
        self.samples = []

    def add(self, now, value):
        # A clock that goes back stays where it was.
        now = max(now, max((t for t, _ in self.samples), default=-math.inf))
        self.samples.append((now, value))


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [0.0, 0.5, 1.0, 5.0, 60.0, 299.0, 300.0, HOUR, 3 * HOUR, DAY, 9 * DAY, -7.0, -HOUR]
            ),
            st.integers(0, 2**24),
        ),
        min_size=1,
        max_size=50,
    )
)
def test_history_against_a_model(steps):
    watching = AdaptiveMemoryMonitor(readings=FakeReadings(), clock=Clock(1000.0))
    model = Rows()
    now = 5000.0
    for step, value in steps:
        now += step
        feed(watching, [now], [value])
        model.add(now, value)
    rows = watching.history()
    # Few enough that no ring is full: each sample is in one row, and only there.
    assert rows["samples"].sum() == len(model.samples)
    assert (np.diff(rows["time"]) > 0).all()
    assert rows["rss"]["max"].max() == max(v for _, v in model.samples)
    assert rows["rss"]["min"].min() == min(v for _, v in model.samples)
    for row in rows:
        begin = row["time"] // row["seconds"] * row["seconds"]
        inside = [v for t, v in model.samples if begin <= t < begin + row["seconds"]]
        assert inside
        assert (row["rss"]["min"], row["rss"]["max"]) == (min(inside), max(inside))
        assert row["samples"] == len(inside)


def test_the_systems_clock_may_jump(clock):
    watching, _ = contained(clock)
    feed(watching, [0.0, 60.0], [1, 2], wall=1e9)
    feed(watching, [120.0, 180.0], [3, 4], wall=1e9 - 7200)
    rows = watching.history()
    assert rows["time"].tolist() == [1e9, 1e9 + 60, 1e9 - 7080, 1e9 - 7020]
    assert rows["rss"]["max"].tolist() == [1, 2, 3, 4]


def test_a_clock_that_goes_back_does_no_harm(clock):
    watching, readings = contained(clock)
    watching.sample()
    clock.now -= 900
    readings.rss_ = 5 * MB
    watching.sample()
    rows = watching.history()
    assert rows["samples"].tolist() == [2]
    assert rows["rss"]["min"].tolist() == [5 * MB]
    clock.now += 7200
    assert watching.sample().level == "normal"
    assert watching.history()["samples"].tolist() == [2, 1]


# Pressure


def test_levels_and_hysteresis(clock):
    watching, readings = contained(clock)
    seen = []
    for percent in (
        69.9,
        70,
        79.9,
        80,
        89.9,
        90,
        94.9,
        95,
        100,
        92.1,
        91.9,
        87.1,
        86.9,
        77.1,
        76.9,
        67.1,
        66.9,
        10,
    ):
        use(readings, clock, int(percent * 10 * MB))
        seen.append(watching.sample().level)
        assert watching.level == seen[-1]
    w, h, c, e = monitor.LEVELS[1:]
    assert seen == ["normal", w, w, h, h, c, c, e, e, e, c, c, h, h, w, w, "normal", "normal"]


def test_a_level_does_not_flutter(clock):
    watching, readings = contained(clock)
    calls = []
    for level in monitor.LEVELS:
        watching.on_pressure(level, lambda level, sample: calls.append(level))
    for n in range(50):
        use(readings, clock, (699 + 2 * (n % 2)) * MB)
        watching.sample()
    assert calls == ["warning"]


def test_callbacks_level_by_level(clock):
    watching, readings = contained(clock)
    calls = []

    def note(level, sample):
        calls.append((level, sample.level))

    for level in reversed(monitor.LEVELS):
        watching.on_pressure(level, note)
    watching.sample()
    assert calls == []
    use(readings, clock, 920 * MB)
    watching.sample()
    watching.sample()
    assert calls == [("warning", "critical"), ("high", "critical"), ("critical", "critical")]
    calls.clear()
    use(readings, clock, 820 * MB)
    watching.sample()
    assert calls == []
    use(readings, clock, 960 * MB)
    watching.sample()
    assert calls == [("critical", "emergency"), ("emergency", "emergency")]
    calls.clear()
    use(readings, clock, 100 * MB)
    watching.sample()
    assert calls == [("normal", "normal")]


def test_a_callback_is_taken_off(clock):
    watching, readings = contained(clock)
    calls = []
    removes = [watching.on_pressure("high", lambda level, sample, n=n: calls.append(n)) for n in range(3)]
    removes[1]()
    removes[1]()
    use(readings, clock, 850 * MB)
    watching.sample()
    assert calls == [0, 2]
    del watching
    removes[0]()


@pytest.mark.parametrize(("level", "error"), [("urgent", ValueError), (3, TypeError), (None, TypeError)])
def test_levels_that_there_are_not(level, error, clock):
    watching, _ = contained(clock)
    with pytest.raises(
        error, match="level must be one of 'normal', 'warning', 'high', 'critical', 'emergency'"
    ):
        watching.on_pressure(level, print)
    with pytest.raises(TypeError, match="callback must be callable"):
        watching.on_pressure("high", None)


def test_page_cache_is_no_pressure(clock):
    watching, readings = contained(clock)
    watching.sample()
    # All of it grown since the last slow readings.
    readings.charge_ = 990 * MB
    readings.reclaimable_ = 700 * MB
    clock.now += 5
    assert watching.sample().used == 290 * MB
    readings.rss_ = 750 * MB
    taken = watching.sample()
    assert (taken.used, taken.level) == (750 * MB, "warning")


def test_a_limit_that_changes_at_run_time(clock):
    watching, readings = contained(clock)
    share = AdaptiveMemoryMonitor(readings=readings, clock=clock, limit="50%")
    assert (watching.sample().limit, share.sample().limit) == (1000 * MB, 500 * MB)
    readings.limit_ = 120 * MB
    clock.now += 60
    assert (watching.sample().level, watching.sample().limit) == ("high", 120 * MB)
    assert share.sample().limit == 60 * MB


@pytest.mark.parametrize(
    ("container", "given", "used", "limit"),
    [
        # The process's own size against what was given; all that is not available against the host's memory.
        (None, "500MB", 200 * MB, 500 * MB),
        (None, "50%", 200 * MB, 8 * GB),
        (None, None, 4 * GB, 16 * GB),
        # In a container also its working set against its limit: whichever share is larger.
        (1 * GB, None, 700 * MB, 1 * GB),
        (1 * GB, "250MB", 200 * MB, 250 * MB),
        (1 * GB, "500MB", 700 * MB, 1 * GB),
        (1 * GB, "2GB", 700 * MB, 1 * GB),
        (1 * GB, "25%", 200 * MB, 256 * MB),
        # Far from the container's limit the reclaimable part is not read.
        (2 * GB, None, 710 * MB, 2 * GB),
    ],
)
def test_what_is_compared_with_what(container, given, used, limit, clock):
    readings = FakeReadings(limit=container, rss=200 * MB, charge=710 * MB)
    readings.reclaimable_ = 10 * MB
    taken = AdaptiveMemoryMonitor(readings=readings, clock=clock, limit=given).sample()
    assert (taken.used, taken.limit) == (used, limit)
    held = None if container is None else 710 * MB if container == 2 * GB else 700 * MB
    assert taken.working_set == held


def test_callbacks_get_current_figures(clock):
    watching, readings = contained(clock)
    seen = []
    for level in monitor.LEVELS:
        watching.on_pressure(level, lambda level, sample: seen.append((level, sample)))
    watching.sample()
    # Both a rise and the fall back to normal read what is otherwise read once a minute.
    for charge, reclaimable, available in ((900 * MB, 150 * MB, 7 * GB), (800 * MB, 200 * MB, 9 * GB)):
        readings.charge_, readings.reclaimable_, readings.available_ = charge, reclaimable, available
        clock.now += 1
        watching.sample()
        _, taken = seen[-1]
        assert (taken.used, taken.working_set, taken.available) == (
            charge - reclaimable,
            charge - reclaimable,
            available,
        )
    assert [level for level, _ in seen] == ["warning", "normal"]


def test_a_container_that_shrinks_does_not_count_page_cache(clock):
    class Bulk(Readings):
        """Leaves the reclaimable part out below ``near``, as the kernel's readings do."""

        def __init__(self):
            super().__init__()
            self.limit_ = 1000 * MB

        def rss(self):
            return 100 * MB

        def charge(self):
            return 500 * MB

        def slow(self, near=0):
            return self.limit_, 12 * GB, 0, 350 * MB if near <= 500 * MB else 0

    readings = Bulk()
    watching = AdaptiveMemoryMonitor(readings=readings, clock=clock)
    for n in range(3):
        clock.now += 60
        assert watching.sample().used == 500 * MB, n
    readings.limit_ = 500 * MB
    clock.now += 60
    assert watching.sample()[8:] == (150 * MB, "normal", 150 * MB)


def test_the_next_level_may_be_nearer_at_the_other_limit(clock):
    readings = FakeReadings(limit=1000 * MB)
    watching = AdaptiveMemoryMonitor(readings=readings, clock=clock, limit="500MB")
    # 60 % of one limit, 64 % of the other, whose next level is further away in bytes.
    readings.rss_, readings.charge_ = 300 * MB, 640 * MB
    taken = watching.sample()
    assert (taken.used, taken.limit) == (640 * MB, 1000 * MB)
    assert watching._sampler.until_next_level(taken) == 50 * MB
    readings.rss_ = 500 * MB
    assert watching._sampler.until_next_level(watching.sample()) is None


def test_readings_must_offer_what_is_read():
    with pytest.raises(ArgumentTypeError, match="readings must be an object with the methods rss, charge"):
        AdaptiveMemoryMonitor(readings=object())


def test_running_says_whether_the_thread_is():
    watching = AdaptiveMemoryMonitor(readings=FakeReadings())
    assert watching.running is False
    with watching:
        assert watching.running is watching.stats["running"] is True
    assert watching.running is False


def test_samples_pickled_before_the_working_set_was_added():
    taken = AdaptiveMemoryMonitor(readings=FakeReadings(limit=GB, charge=MB)).sample()
    assert pickle.loads(pickle.dumps(taken)) == taken
    # `synthex_fast.monitor.Sample` by name, with ten fields.
    text = b"csynthex_fast.monitor\nSample\n(I0\nI1\nNI2\nI3\nI4\nI5\nI6\nI7\nS'high'\nt\x81."
    assert pickle.loads(text) == monitor.Sample(0, 1, None, 2, 3, 4, 5, 6, 7, "high", None)


def test_a_burst_counts_on_the_host_before_its_figures_are_read_again(clock):
    readings = FakeReadings(rss=200 * MB)
    watching = AdaptiveMemoryMonitor(readings=readings, clock=clock)
    watching.sample()
    readings.rss_ += GB
    clock.now += 5
    assert watching.sample().used == 5 * GB


def test_callbacks_that_raise(clock, monkeypatch):
    watching, readings = contained(clock)
    caught = []
    monkeypatch.setattr(
        sys,
        "unraisablehook",
        # Since 3.13 the message names the callback.
        lambda args: caught.append((args.exc_value, f"{args.err_msg} {args.object!r}")),
    )
    calls = []

    def bad(level, sample):
        raise KeyError(level)

    watching.on_pressure("warning", bad)
    watching.on_pressure("warning", lambda level, sample: calls.append(level))
    use(readings, clock, 720 * MB)
    assert watching.sample().level == "warning"
    assert [(type(error), repr(bad) in where) for error, where in caught] == [(KeyError, True)]
    assert calls == ["warning"]


def test_the_default_hook_can_print_it(clock, capsys):
    watching, readings = contained(clock)
    watching.on_pressure("warning", lambda level, sample: 1 / 0)
    use(readings, clock, 720 * MB)
    hook, sys.unraisablehook = sys.unraisablehook, sys.__unraisablehook__
    try:
        watching.sample()
    finally:
        sys.unraisablehook = hook
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_callbacks_may_use_the_monitor(clock):
    watching, readings = contained(clock)
    seen = []

    def callback(level, sample):
        # Nothing is locked: another thread gets through.
        thread = threading.Thread(target=lambda: seen.append(watching.sample().level))
        thread.start()
        thread.join(30)
        seen.append(watching.level)
        watching.stop()
        watching.on_pressure("critical", lambda level, sample: seen.append("added"))

    watching.on_pressure("high", callback)
    use(readings, clock, 850 * MB)
    watching.sample()
    use(readings, clock, 940 * MB)
    watching.sample()
    assert seen == ["high", "high", "added"]


def test_a_finaliser_may_sample_while_its_own_thread_does(clock):
    watching, _ = contained(clock)
    inner = []
    record = watching._history.record

    def interrupted(*arguments):
        inner.append(watching.sample())
        return record(*arguments)

    watching._history.record = interrupted
    watching.sample()
    assert [taken.rss for taken in inner] == [100 * MB]
    watching._history.record = record
    watching.sample()
    assert watching.history()["samples"].sum() == 2


def test_allocation_failure_leaves_it_working(clock, fail_allocations):
    def prepare():
        watching, readings = contained(clock)
        for _ in range(3):
            watching.sample()
            clock.now += 7
        use(readings, clock, 820 * MB)
        return watching

    def check(watching):
        assert watching.history()["samples"].sum() in (3, 4)
        assert watching.sample().level == "high"
        assert watching.level == "high"

    assert fail_allocations(lambda watching: watching.sample(), prepare=prepare, check=check) > 5


# Trends and leaks


def test_theil_sen_withstands_outliers():
    times = np.arange(20.0)
    values = 3 + 2 * times
    values[[2, 9, 15, 16, 19]] = 1e6
    assert monitor.theil_sen(times, values) == pytest.approx(2)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=5))
def test_the_variance_of_the_score_with_ties(values):
    orders = [np.array(order, dtype=float) for order in itertools.permutations(values)]
    scores = [trend.kendall_score(order)[0] for order in orders]
    variance = trend.kendall_score(orders[0])[1]
    assert statistics.fmean(scores) == pytest.approx(0, abs=1e-9)
    assert statistics.pvariance(scores) == pytest.approx(variance, abs=1e-9)


def test_mann_kendall_finds_what_it_should_seldom():
    rng = np.random.default_rng(1)
    times = np.arange(24.0)
    independent = sum(monitor.mann_kendall(times, rng.normal(size=24), 0.0) < 0.05 for _ in range(400))
    assert 5 <= independent <= 35
    # Each value mostly the one before it: without the correction a third of these would pass for trends.
    serial = 0
    for _ in range(400):
        values = rng.normal(size=24)
        for n in range(1, 24):
            values[n] += 0.8 * values[n - 1]
        serial += monitor.mann_kendall(times, values, monitor.theil_sen(times, values)) < 0.05
    assert serial <= 80
    assert monitor.mann_kendall(times, times, 1.0) < 1e-6
    assert monitor.mann_kendall(times, np.zeros(24), 0.0) == 1.0
    assert monitor.mann_kendall(times, -times, -1.0) == 1.0


def simulate(shape, days, every=HOUR, seed=0, interval=120.0):
    """The verdicts that turned to a leak, each with the hours since the start."""
    rng = np.random.default_rng(seed)
    times = np.arange(0, days * DAY, interval)
    values = 500 * MB * shape(times, rng)
    watching = AdaptiveMemoryMonitor(readings=FakeReadings(), clock=Clock(1000.0))
    alarms = []
    leaking = False
    step = round(every / interval)
    for begin in range(0, len(times), step):
        feed(watching, times[begin : begin + step].tolist(), values[begin : begin + step].tolist())
        found = watching.leak()
        if found and not leaking:
            alarms.append((times[min(begin + step, len(times)) - 1] / HOUR, found))
        leaking = bool(found)
    return alarms


def noise(times, rng, size=0.005):
    return 1 + size * rng.standard_normal(len(times))


def saw(times, period, rng, jitter=0.2):
    y = np.zeros(len(times))
    begin = -rng.uniform(0, period)
    while begin < times[-1]:
        length = period * (1 + jitter * rng.uniform(-1, 1))
        inside = (times >= begin) & (times < begin + length)
        y[inside] = (1 + jitter * rng.uniform(-1, 1)) * (times[inside] - begin) / length
        begin += length
    return y


def cycle(times, rng, jitter=0.1):
    """Once a day from 0 to about 1."""
    sizes = 1 + jitter * rng.standard_normal(int(times[-1] // DAY) + 2)
    size = np.interp(times / DAY, np.arange(len(sizes)), sizes)
    return size * 0.5 * (1 + np.sin(2 * np.pi * (times / DAY - rng.uniform())))


LEAKS = {
    "steady": lambda t, rng: noise(t, rng),
    "restless": lambda t, rng: noise(t, rng, 0.01),
    "saw": lambda t, rng: noise(t, rng, 0.003) + 0.2 * saw(t, 600, rng),
    "spikes": lambda t, rng: noise(t, rng, 0.003) + 0.3 * rng.random(len(t)) ** 4,
}


@pytest.mark.parametrize("traffic", LEAKS)
@pytest.mark.parametrize("seed", range(3))
def test_a_leak_of_one_percent_an_hour_is_found_within_three_hours(traffic, seed):
    def shape(times, rng):
        return LEAKS[traffic](times, rng) + 0.01 * times / HOUR

    # As restless as some of it is, it is sampled every 5 or 15 seconds.
    alarms = simulate(shape, 3 / 24, every=600, seed=seed, interval=15.0)
    assert alarms
    hours, found = alarms[0]
    assert hours <= 3.0
    assert found.over_limit
    assert 10 < found.percent_per_day < 45
    assert found.confidence > 0.99
    assert "may still be the rising part of a daily cycle" in found.text


def test_a_leak_that_begins_after_days_is_found_within_three_hours():
    def shape(times, rng):
        return noise(times, rng) + 0.01 * np.maximum(0, times - 4 * DAY) / HOUR

    ((hours, found), *_) = simulate(shape, 4.25, every=600)
    assert 4 * 24 < hours <= 4 * 24 + 3
    assert "may still be" not in found.text


def test_a_slow_leak_under_a_daily_cycle_is_found():
    def shape(times, rng):
        return noise(times, rng) * (1 + 0.2 * cycle(times, rng, 0.05)) + 0.03 * times / DAY

    alarms = simulate(shape, 16, every=12 * HOUR)
    late = [found for hours, found in alarms if hours > 24]
    assert late
    assert 1 < late[0].percent_per_day < 10


HARMLESS = {
    "flat": lambda t, rng: noise(t, rng),
    "saw of 40 minutes": lambda t, rng: noise(t, rng) + 0.5 * saw(t, 2400, rng),
    "saw of 8 hours": lambda t, rng: noise(t, rng) + 0.5 * saw(t, 8 * HOUR, rng),
    "saw of 30 hours": lambda t, rng: noise(t, rng) + 0.5 * saw(t, 30 * HOUR, rng),
    "daily": lambda t, rng: noise(t, rng) * (1 + 0.3 * cycle(t, rng)),
    "step": lambda t, rng: noise(t, rng) + rng.uniform(0.03, 0.5) * (t > rng.uniform(0.1, 0.9) * t[-1]),
    "steps": lambda t, rng: noise(t, rng) + sum(
        rng.uniform(-0.05, 0.2) * (t > at) for at in rng.uniform(0, t[-1], 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(1 if DEBUG_BUILD else 2))
@pytest.mark.parametrize("traffic", HARMLESS)
@pytest.mark.slow
def test_a_month_of_harmless_traffic_gives_one_false_alarm_at_most(traffic, seed):
    alarms = simulate(HARMLESS[traffic], 30, every=2 * HOUR, seed=seed)
    assert len(alarms) <= 1
    for hours, found in alarms:
        assert ("may still be the rising part of a daily cycle" in found.text) == (hours < 24)


def test_one_flank_is_one_alarm_though_its_rise_may_pause(clock):
    watching, _ = contained(clock)
    times = np.arange(0, 3 * HOUR, 60.0)
    feed(watching, times.tolist(), (100 * MB * (1 + 0.02 * times / HOUR)).tolist())
    found = watching.leak()
    assert found
    # It stands for as long as its window of 2.5 hours.
    for now in np.arange(3 * HOUR, 5.25 * HOUR, 300.0).tolist():
        feed(watching, [now], [106.0 * MB])
    assert watching.leak()
    feed(watching, np.arange(5.25 * HOUR, 6 * HOUR, 60.0).tolist(), [106.0 * MB] * 45)
    assert not watching.leak()


def test_a_verdict_falls_with_memory(clock):
    watching, _ = contained(clock)
    times = np.arange(0, 3 * HOUR, 60.0)
    feed(watching, times.tolist(), (100 * MB * (1 + 0.02 * times / HOUR)).tolist())
    assert watching.leak()
    feed(watching, np.arange(3 * HOUR, 3.25 * HOUR, 60.0).tolist(), [100.0 * MB] * 15)
    assert not watching.leak()


def test_trend(clock):
    watching, _ = contained(clock)
    assert watching.trend() == (0.0, 0.0, 0.0, 0.0)
    assert not watching.leak()
    times = np.arange(0, 6 * HOUR, 60.0)
    feed(watching, times.tolist(), (100 * MB * (1 + 0.01 * times / HOUR)).tolist())
    trend = watching.trend()
    assert trend.bytes_per_day == pytest.approx(24 * MB, rel=0.02)
    assert trend.percent_per_day == pytest.approx(24, rel=0.1)
    assert trend.confidence > 0.999
    assert trend.seconds == pytest.approx(6 * HOUR, abs=400)
    assert watching.trend(HOUR).seconds == HOUR
    feed(watching, (times + 6 * HOUR).tolist(), (200 * MB * (1 - 0.01 * times / HOUR)).tolist())
    assert watching.trend(3 * HOUR).bytes_per_day == pytest.approx(-48 * MB, rel=0.05)
    assert watching.trend(3 * HOUR).confidence > 0.999
    for seconds, error in ((0, ValueError), (-5, ValueError), (math.nan, ValueError), ("5", TypeError)):
        with pytest.raises(error, match="seconds must be"):
            watching.trend(seconds)


def test_no_verdict_too_early(clock):
    watching, _ = contained(clock)
    times = np.arange(0, 1.5 * HOUR, 60.0)
    feed(watching, times.tolist(), (100 * MB * (1 + 0.05 * times / HOUR)).tolist())
    found = watching.leak()
    assert not found.leaking
    assert found.over_limit
    assert found.text.endswith("at least 2.5 hours needed")


def test_gaps_in_the_history(clock):
    watching, _ = contained(clock)
    # The machine slept from the second to the seventh hour.
    times = np.concatenate((np.arange(0, 2 * HOUR, 60.0), np.arange(7 * HOUR, 9 * HOUR, 60.0)))
    feed(watching, times.tolist(), [100.0 * MB] * len(times))
    assert not watching.leak()
    assert watching.trend().percent_per_day == 0.0
    assert watching.history()["samples"].sum() == len(times)


# The thread


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "synthex-fast-monitor"]


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    if threads():
        gc.collect()
        wait_for(lambda: not threads())


def test_start_and_stop_twice():
    watching = AdaptiveMemoryMonitor(0.01, 0.02)
    watching.stop()
    for _ in range(2):
        watching.start()
        watching.start()
        assert len(threads()) == 1
        assert threads()[0].daemon
        assert watching.stats["running"]
        before = watching.stats["samples"]
        wait_for(lambda before=before: watching.stats["samples"] > before + 3)
        watching.stop()
        watching.stop()
        assert threads() == []
        assert not watching.stats["running"]
    with watching as same:
        assert same is watching
        assert len(threads()) == 1


def test_start_and_stop_from_two_threads():
    watching = AdaptiveMemoryMonitor(0.01, 0.02)
    most = []

    def hammer():
        for _ in range(10):
            watching.start()
            most.append(len([t for t in threads() if t.is_alive()]))
            watching.sample()
            watching.stop()

    hammering = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in hammering:
        thread.start()
    for thread in hammering:
        thread.join()
    watching.stop()
    wait_for(lambda: not threads())
    assert not [callback for callback in gc.callbacks if isinstance(callback, thread_module.CollectionTimer)]
    watching.start()
    wait_for(lambda: watching.stats["wakeups"] > 0)
    watching.stop()


def test_many_threads_use_one_monitor():
    watching = AdaptiveMemoryMonitor(0.01, 0.02)
    errors = []

    def hammer(n):
        try:
            for i in range(60):
                watching.sample()
                remove = watching.on_pressure(monitor.LEVELS[i % 5], lambda level, sample: None)
                watching.calculate_next_interval(i)
                if i % 10 == n:
                    watching.history(), watching.leak(), watching.stats
                remove()
        except BaseException as e:
            errors.append(e)

    with watching:
        hammering = [threading.Thread(target=hammer, args=(n,)) for n in range(8)]
        for thread in hammering:
            thread.start()
        for thread in hammering:
            thread.join()
    assert errors == []
    assert watching.history()["samples"].sum() == watching.stats["samples"] >= 480


def test_stable_memory_is_sampled_seldom():
    watching = AdaptiveMemoryMonitor(
        0.01, 0.08, stability_window=3, readings=FakeReadings(limit=GB, charge=100 * MB)
    )
    with watching:
        wait_for(lambda: watching.stats["interval"] == 0.08)
        watching._sampler.readings.rss_ *= 3
        wait_for(lambda: watching.stats["interval"] == 0.01)
        wait_for(lambda: watching.stats["interval"] == 0.08)


def test_a_monitor_that_nobody_holds_ends_its_thread():
    watching = AdaptiveMemoryMonitor()
    watching.start()
    while watching.stats["wakeups"] == 0:
        time.sleep(0.005)
    reference = weakref.ref(watching)
    del watching
    wait_for(lambda: reference() is None and not threads())
    assert not [callback for callback in gc.callbacks if isinstance(callback, thread_module.CollectionTimer)]


def test_a_monitor_in_a_cycle_with_its_callback_is_collected():
    watching = AdaptiveMemoryMonitor()
    watching.on_pressure("high", lambda level, sample, held=watching: None)
    watching.start()
    reference = weakref.ref(watching)
    del watching
    wait_for(lambda: gc.collect() >= 0 and reference() is None and not threads())


def test_a_callback_may_stop_or_drop_the_monitor():
    readings = FakeReadings(limit=GB, charge=100 * MB)
    held = {"monitor": AdaptiveMemoryMonitor(0.01, 0.02, readings=readings)}
    reference = weakref.ref(held["monitor"])
    done = threading.Event()

    def callback(level, sample):
        held["monitor"].stop()
        held["monitor"].start()
        del held["monitor"]
        done.set()

    held["monitor"].on_pressure("high", callback)
    held["monitor"].start()
    readings.rss_ = 900 * MB
    assert done.wait(30)
    wait_for(lambda: gc.collect() >= 0 and reference() is None and not threads())


def test_stop_waits_for_a_running_callback_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(thread_module, "_JOIN_SECONDS", 0.05)
    readings = FakeReadings(limit=GB, rss=900 * MB, charge=900 * MB)
    watching = AdaptiveMemoryMonitor(readings=readings)
    entered, leave = threading.Event(), threading.Event()

    def callback(level, sample):
        entered.set()
        leave.wait(30)

    watching.on_pressure("high", callback)
    watching.start()
    assert entered.wait(30)
    watching.stop()
    assert len(threads()) == 1
    leave.set()


def test_readings_that_fail_do_not_end_the_thread(monkeypatch):
    caught = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: caught.append(args.exc_value))
    readings = FakeReadings(limit=GB, charge=100 * MB)
    watching = AdaptiveMemoryMonitor(0.01, 0.02, readings=readings)
    with watching:
        wait_for(lambda: watching.stats["samples"] > 2)
        readings.rss_ = "much"
        wait_for(lambda: len(caught) > 2)
        readings.rss_ = 100 * MB
        before = watching.stats["samples"]
        wait_for(lambda: watching.stats["samples"] > before + 2)
    assert isinstance(caught[0], (TypeError, ValueError))


def test_a_thread_that_can_not_be_had(monkeypatch):
    watching = AdaptiveMemoryMonitor()
    watching.sample()
    callbacks = list(gc.callbacks)
    before = os.listdir("/proc/self/fd") if LINUX else []

    def fail(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            watching.start()
    assert gc.callbacks == callbacks
    assert not watching.stats["running"]
    if LINUX:
        assert len(os.listdir("/proc/self/fd")) == len(before)
    watching.start()
    watching.stop()


@pytest.mark.linux(reason="counts descriptors in /proc")
def test_no_descriptor_is_left_open():
    watching = AdaptiveMemoryMonitor(0.01, 0.02)
    watching.sample()
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        with watching:
            wait_for(lambda: watching.stats["wakeups"] > 0)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_exit_with_a_running_monitor():
    assert run(
        """
        from synthex_fast import AdaptiveMemoryMonitor
        monitor = AdaptiveMemoryMonitor(0.01, 0.01)
        monitor.start()
        other = AdaptiveMemoryMonitor(limit=1 << 20)
        other.on_pressure("high", lambda level, sample: print(level))
        other.start()
        import atexit, time
        time.sleep(0.1)
        atexit.register(lambda: (monitor.stop(), monitor.start(), monitor.sample(), print("still there")))
        """
    ).split() == ["high", "still", "there"]


@pytest.mark.slow
def test_exit_while_a_callback_runs():
    run(
        """
        import threading, time
        from synthex_fast import AdaptiveMemoryMonitor
        monitor = AdaptiveMemoryMonitor(limit=1 << 20)
        entered = threading.Event()
        def callback(level, sample):
            entered.set()
            time.sleep(1000)
        monitor.on_pressure("high", callback)
        monitor.start()
        entered.wait()
        """
    )


def test_sampling_needs_neither_numpy_nor_psutil():
    out = run(
        """
        import sys
        from synthex_fast import AdaptiveMemoryMonitor
        with AdaptiveMemoryMonitor() as monitor:
            monitor.sample()
        print("numpy" in sys.modules, "psutil" in sys.modules)
        """
    )
    assert out.split()[0] == "False"
    if LINUX:
        assert out.split()[1] == "False"


@needs_fork
@quiet_fork
def test_fork_with_a_running_monitor():
    watching = AdaptiveMemoryMonitor(0.01, 0.02)
    stopped = AdaptiveMemoryMonitor()
    stopped.sample()
    calls = []
    watching.on_pressure("normal", lambda level, sample: calls.append(level))

    def child():
        # A thread of its own, a clean slate, its own figures.
        assert watching.stats["running"]
        assert len(threads()) == 1
        assert len(stopped.history()) == 0
        wait_for(lambda: watching.stats["samples"] > 3)
        assert watching.history()["samples"].sum() < 2000
        block = b"x" * (64 * MB)
        assert watching.sample().rss > 64 * MB
        del block
        assert not stopped.stats["running"]
        watching.stop()
        assert threads() == []

    with watching:
        wait_for(lambda: watching.stats["samples"] > 3)
        before = watching.stats["samples"]
        in_child(child)
        assert len(threads()) == 1
        assert watching.stats["samples"] >= before
        wait_for(lambda: watching.stats["samples"] > before + 3)
    assert len(stopped.history()) == 1


@needs_fork
@quiet_fork
def test_fork_finds_no_lock_held():
    watching = AdaptiveMemoryMonitor()
    over = threading.Event()

    def hammer():
        while not over.is_set():
            watching.sample()

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        for _ in range(10):
            in_child(lambda: (watching.sample(), watching.start(), watching.stop()))
    finally:
        over.set()
        thread.join()


@needs_fork
@quiet_fork
def test_a_monitor_started_while_another_thread_forks_goes_on_in_the_child():
    code = """
        import gc, os, time, warnings
        warnings.simplefilter("ignore")
        watching = None
        # Before the package's own: called behind it.
        os.register_at_fork(before=lambda: watching.start())
        from synthex_fast import AdaptiveMemoryMonitor

        watching = AdaptiveMemoryMonitor(0.01, 0.02)
        watching.start()
        callbacks = len(gc.callbacks)
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        else:
            end = time.monotonic() + 30
            while watching.stats["samples"] < 3 and time.monotonic() < end:
                time.sleep(0.001)
            os._exit(watching.stats["samples"] < 3 or len(gc.callbacks) != callbacks)
        watching.stop()
    """
    run(code)


@needs_fork
@quiet_fork
def test_fork_inside_a_callback():
    readings = FakeReadings(limit=GB, rss=900 * MB, charge=900 * MB)
    watching = AdaptiveMemoryMonitor(0.01, 0.02, readings=readings)
    done = []

    def callback(level, sample):
        in_child(lambda: watching.sample())
        done.append(level)

    watching.on_pressure("high", callback)
    with watching:
        wait_for(lambda: done)
        before = watching.stats["samples"]
        wait_for(lambda: watching.stats["samples"] > before + 2)
    assert done == ["high"]


# Being woken


def test_a_collection_is_an_occasion_to_look(monkeypatch):
    monkeypatch.setattr(wakeups.Waker, "subscribe", lambda self, container, root: None)
    readings = FakeReadings()
    watching = AdaptiveMemoryMonitor(readings=readings)
    with watching:
        wait_for(lambda: watching.stats["samples"] == 1)
        assert watching.stats["wake"] == "collections"
        assert "microseconds" in watching.stats["wake_cost"]
        # Not yet a burst.
        readings.rss_ += 8 * MB
        gc.collect()
        readings.rss_ += 100 * MB
        watching._thread._check_at = 0.0
        gc.collect()
        wait_for(lambda: watching.stats["samples"] == 2)


def test_a_look_at_a_collection_costs_little(monkeypatch):
    monkeypatch.setattr(wakeups.Waker, "subscribe", lambda self, container, root: None)
    readings = FakeReadings()
    with AdaptiveMemoryMonitor(readings=readings) as watching:
        wait_for(lambda: watching.stats["samples"] == 1)
        watching._thread._check_at = 0.0
        readings.calls.clear()
        began = time.monotonic()
        for _ in range(50):
            gc.collect(0)
        # One a second; without the GIL each collection is a full one, and 50 of them may take several.
        assert readings.calls.count("rss") <= 3 + (time.monotonic() - began)


@pytest.mark.parametrize("fails", [False, True])
def test_a_kernel_that_takes_its_time_keeps_only_the_thread_waiting(monkeypatch, fails):
    began, ready = threading.Event(), threading.Event()
    calls = []

    def subscribe(self, container, root):
        calls.append(threading.current_thread())
        began.set()
        assert ready.wait(10), "the caller of start() waits, too"
        if fails and len(calls) == 1:
            raise MemoryError

    monkeypatch.setattr(wakeups.Waker, "subscribe", subscribe)
    with AdaptiveMemoryMonitor(readings=FakeReadings()) as watching:
        assert began.wait(10)
        assert watching.running
        assert watching.stats["samples"] == 0
        ready.set()
        wait_for(lambda: watching.stats["samples"] == 1)
        assert calls == [watching._thread._thread] * (1 + fails)


@pytest.mark.skipif(not hasattr(wakeups.select, "poll"), reason="no poll here")
def test_a_storm_of_events_is_bounded(monkeypatch):
    monkeypatch.setattr(thread_module, "_MUTED_SECONDS", 0.1)
    readings = FakeReadings(limit=GB, charge=100 * MB)
    stop = threading.Event()
    pair = os.pipe()

    def listen(self, container, root):
        # A descriptor that is always ready.
        self._kernel[os.dup(pair[0])] = wakeups.select.POLLIN
        for fd, mask in self._kernel.items():
            self._poll.register(fd, mask)

    monkeypatch.setattr(wakeups.Waker, "subscribe", listen)
    os.write(pair[1], b"x")
    watching = AdaptiveMemoryMonitor(readings=readings)
    try:
        with watching:
            wait_for(lambda: watching.stats["events"] >= 3)
            begin, events = time.monotonic(), watching.stats["events"]
            stop.wait(0.5)
            spent = time.monotonic() - begin
            assert 1 <= watching.stats["events"] - events <= spent / 0.1 + 1
    finally:
        for fd in pair:
            os.close(fd)


@pytest.mark.linux(reason="pressure-stall information is Linux's")
def test_v2_listens_to_events_and_asks_for_a_trigger(tmp_path):
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 0\n")
    (tmp_path / "memory.pressure").write_text("")
    waker = wakeups.Waker()
    waker.subscribe((2, str(tmp_path)), "/")
    try:
        assert waker.how == "cgroup events, pressure stall, collections"
        assert (tmp_path / "memory.pressure").read_text() == "some 150000 1000000\0"
        assert not waker.has_threshold
        assert not waker.sleep(0.001)
        waker.wake()
        begin = time.monotonic()
        assert not waker.sleep(60)
        assert time.monotonic() - begin < 30
    finally:
        waker.close()


@pytest.mark.linux(reason="control groups are Linux's")
@pytest.mark.root(reason="makes a version 2 control group")
def test_events_of_a_group_that_is_gone_wake_nobody_again():
    for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        group = os.path.join(top, f"synthex-fast-test-{os.getpid()}")
        if os.path.exists(os.path.join(top, "cgroup.controllers")) and os.access(top, os.W_OK):
            break
    else:
        pytest.skip("needs version 2 of control groups, and the right to make one")
    try:
        os.mkdir(group)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    waker = wakeups.Waker()
    try:
        # Any of its files that can be waited for: that of the memory controller needs the controller.
        fd = os.open(os.path.join(group, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
        os.pread(fd, 4096, 0)
        waker._kernel[fd] = select.POLLPRI
        waker._poll.register(fd, select.POLLPRI)
        assert not waker.sleep(0.001)
        os.rmdir(group)
        waker.sleep(0.1)
        assert waker._kernel == {}
        assert not waker.sleep(0.001)
    finally:
        waker.close()
        if os.path.exists(group):
            os.rmdir(group)


@pytest.mark.parametrize("where", ["sleep", "mute"])
def test_the_thread_outlives_want_of_memory(monkeypatch, where):
    done = getattr(wakeups.Waker, where)
    failed = []

    def fail(self, *args):
        if len(failed) < 3:
            failed.append(1)
            raise MemoryError
        return done(self, *args)

    monkeypatch.setattr(thread_module, "_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(thread_module, "_MUTED_SECONDS", 0.02)
    monkeypatch.setattr(wakeups.Waker, where, fail)
    if where == "mute":
        slept = wakeups.Waker.sleep
        monkeypatch.setattr(wakeups.Waker, "sleep", lambda self, seconds: slept(self, 0.001) or True)
    watching = AdaptiveMemoryMonitor(0.01, 0.02)
    with watching:
        wait_for(lambda: len(failed) == 3)
        samples = watching.stats["samples"]
        wait_for(lambda: watching.stats["samples"] > samples + 2)
        assert watching.stats["running"]
    assert threads() == []


@pytest.mark.linux(reason="elsewhere there may be no pipe")
def test_a_wake_up_never_goes_into_another_file(monkeypatch, tmp_path):
    waker = wakeups.Waker()
    opened = []

    def write(fd, text):
        # The thread that it would wake ends at this moment, and somebody opens a file.
        waker.close()
        opened.extend(os.open(tmp_path / "precious", os.O_WRONLY | os.O_CREAT) for _ in range(4))
        return os_write(fd, text)

    os_write = os.write
    monkeypatch.setattr(os, "write", write)
    waker.wake()
    waker.wake()
    monkeypatch.undo()
    assert len(opened) == 4
    for fd in opened:
        os.close(fd)
    assert (tmp_path / "precious").read_bytes() == b""


@pytest.mark.linux(reason="pressure-stall information is Linux's")
def test_a_kernel_that_refuses_leaves_collections(tmp_path):
    for container in (None, (2, str(tmp_path)), (1, str(tmp_path))):
        waker = wakeups.Waker()
        waker.subscribe(container, str(tmp_path))
        assert waker.how == "collections"
        waker.close()
        waker.close()


def test_where_there_is_no_poll(monkeypatch):
    monkeypatch.delattr(wakeups.select, "poll", raising=False)
    readings = FakeReadings(limit=GB, charge=100 * MB)
    watching = AdaptiveMemoryMonitor(0.01, 0.02, readings=readings)
    with watching:
        assert watching.stats["wake"] == "collections"
        wait_for(lambda: watching.stats["samples"] > 3)
        watching._pace.longest = watching._pace.shortest = 60.0
        wait_for(lambda: watching.stats["interval"] == 60.0)
    assert threads() == []


BURST = """
    import os, threading, time
    with open({group!r} + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
    with open({group!r} + "/memory.limit_in_bytes", "w") as file:
        file.write(str(400 << 20))
    from synthex_fast import AdaptiveMemoryMonitor
    monitor = AdaptiveMemoryMonitor(60.0, 60.0)
    called = []
    for level in ("warning", "high"):
        monitor.on_pressure(level, lambda level, sample: called.append((level, time.monotonic())))
    monitor.start()
    while monitor.stats["wakeups"] == 0 or monitor._threshold.at is None:
        time.sleep(0.01)
    print(monitor.stats["wake"], monitor.sample().limit >> 20, monitor.stats["events"])
    time.sleep(0.3)
    print(monitor.stats["wakeups"])
    blocks = []
    # 100 MB, then 220 MB more in two steps: each of them is a burst.
    for size in (100, 110, 110):
        blocks.append(b"x" * (size << 20))
        time.sleep(1.1)
    print(monitor.stats["events"] >= 3, monitor.stats["wakeups"] <= 12)
    print(max(monitor.history()["rss"]["max"]) >= 320 << 20)
    print([level for level, at in called])
    monitor.stop()
"""


@pytest.mark.linux
@pytest.mark.root
@pytest.mark.slow
def test_a_burst_is_noticed_within_a_second_at_the_longest_interval(group):
    out = run(BURST.format(group=str(group))).splitlines()
    assert out == ["cgroup threshold 400 0", "1", "True True", "True", "['warning', 'high']"]


# The names


def test_public_names():
    assert synthex_fast.AdaptiveMemoryMonitor is monitor.AdaptiveMemoryMonitor
    assert "AdaptiveMemoryMonitor" in synthex_fast.__all__


def test_examples_in_the_docstrings():
    import doctest

    from synthex_fast import _pressure, _readings

    for module in (monitor.monitor, trend, _readings, _pressure):
        failed, tried = doctest.testmod(module)
        assert tried > 0
        assert failed == 0


def test_the_default_readings_are_the_kernels():
    with contextlib.closing(AdaptiveMemoryMonitor()._sampler.readings) as readings:
        assert isinstance(readings, monitor.Readings)
        assert AdaptiveMemoryMonitor(readings=readings).sample().rss > MB
