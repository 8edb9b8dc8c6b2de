"""`synthex-fast soak`: the command as its users run it, what its checks find, and that its clock is obeyed."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support import COMMAND, Running, needs_fork, quiet_fork

from synthex_fast import cli
from synthex_fast.validate.rounds import _environment
from synthex_fast.validate.soak import checks, run, service, worker, workload
from synthex_fast.validate.soak.workload import DAY, HOUR, Clock, Traffic

# An hour of simulated time, at a rate so low that it takes seconds.
RATE = 4.0


def plan(requests=None, rate=RATE, seconds=None):
    return worker.Plan(0, 3, rate, requests, seconds)


def play(made):
    """Everything that the worker sends when it plays."""
    sent = []
    worker.Player(made, sent.append).play()
    return sent


def lines_of(sent):
    return [line for message in sent for line in message.get("failed", ())]


class TestWorkload:
    def test_a_day_has_exactly_the_rate_asked_for(self):
        counts = Traffic(1, 0, 7.5, 10).counts()
        assert sum(next(counts) for _ in range(DAY)) == 7.5 * DAY

    def test_the_same_seed_gives_the_same_traffic_and_each_worker_its_own(self):
        def taken(seed, number):
            traffic = Traffic(seed, number, 50.0, 10)
            counts, requests = traffic.counts(), traffic.requests()
            return [next(counts) for _ in range(600)], [next(requests) for _ in range(600)]

        assert taken(1, 0) == taken(1, 0)
        assert taken(1, 0)[1] != taken(1, 1)[1] != taken(2, 1)[1]

    def test_nights_are_quiet_afternoons_busy_and_some_minutes_come_in_bursts(self):
        traffic = Traffic(1, 0, 100.0, 10)
        counts = traffic.counts()
        day = [next(counts) for _ in range(DAY)]
        night, afternoon = (sum(day[hour * HOUR : (hour + 1) * HOUR]) / HOUR for hour in (4, 16))
        assert 49 < night < 53
        assert 147 < afternoon < 151
        assert max(day) > 10 * 100

    def test_users_are_skewed_and_every_extra_happens(self):
        requests = Traffic(1, 0, 100.0, 10).requests()
        drawn = [next(requests) for _ in range(20_000)]
        by_user = {}
        for arrival in drawn:
            by_user[arrival.user] = by_user.get(arrival.user, 0) + 1
        assert max(by_user.values()) > 1_000
        assert list(by_user.values()).count(1) > 1_000
        assert {arrival.extra for arrival in drawn} == set(range(7))

    def test_planned_hours_are_when_the_requests_have_arrived(self):
        hours = run.planned_hours(1_000_000, 100)
        assert workload.arrived(100, hours * HOUR - 60) < 1_000_000 <= workload.arrived(100, hours * HOUR) + 1


@quiet_fork
@pytest.mark.slow
class TestChecks:
    def test_an_hour_passes_and_its_clock_is_the_simulated_one(self):
        sent = play(plan(10_500))
        assert sent[-1] == {"done": True}, lines_of(sent)
        warm, hour, end = [message["record"] for message in sent if "record" in message]
        assert (warm["simulated"], hour["simulated"]) == (worker.WARM, HOUR)
        assert end["requests"] == 10_500
        assert hour["real"] < HOUR / 10
        dicts = hour["dicts"]
        # One entry a second, of nine lives. Of those that outlast the hour, all are there; of the others, the last.
        known = dicts["entries of known TTL"]
        alive = sum(min(int(life), HOUR) for life in service.Expectations.LIVES) / 9
        assert known["entries"] == pytest.approx(alive, rel=0.01)
        assert known["entries"] + known["expired"] == HOUR
        # Each of four catalogs has expired at once, the last one ten seconds ago.
        assert (dicts["catalog"]["expired"], dicts["catalog"]["entries"]) == (4 * service.CATALOG, 0)
        assert dicts["sessions"]["idle"] > 100
        assert dicts["active queries"]["expired"] > 1_000
        # At 5 to 60 seconds each.
        assert HOUR / 60 <= hour["monitor_samples"] <= HOUR / 5 + 1
        assert end["batches_too_large"] > 0

    def test_entries_live_as_long_as_the_model_says(self):
        clock = Clock()
        known = service.Expectations(clock)
        for second in range(2_000):
            clock.now = float(second)
            known.tick(second)
            if second % 100 == 0:
                assert (len(known.timed.dict), len(known.idle.dict)) == known.alive(clock.now)
        assert known.wrong == ""
        assert known.timed.removed["expired"] > 1_000
        assert known.idle.removed["idle"] > 100
        # A clock that has run ahead of the model's is found at once.
        clock.now += 301.0
        known.idle.dict.expire()
        known._visit((1_999 * 1_999) % known.KEYS, 2_000.0)
        assert known.wrong.endswith("is not there after 1 s without use")

    @needs_fork
    def test_a_planted_leak_moves_the_floor(self, monkeypatch):
        kept, handle = [], service.Service.handle

        def leaking(self, *request):
            kept.append([request])
            handle(self, *request)

        monkeypatch.setattr(service.Service, "handle", leaking)
        lines = lines_of(play(plan(10_500)))
        assert lines
        assert all(line.startswith("floor of memory, ") for line in lines)
        assert "objects: expected at most" in "".join(lines)
        assert "in worker 1 at simulated hour 1.00" in lines[0]

    @pytest.mark.parametrize(
        ("name", "does", "complaint"),
        [
            ("active", lambda made: made.active.dict.set("stray", 1, 3_600.0), "active queries: sets"),
            ("sessions", lambda made: made.sessions.dict.pop("user-00000", None), "sessions: entries"),
            ("catalog", lambda made: made.catalog.dict.get("item-0"), "catalog: hits + misses"),
            ("buffer", lambda made: made.buffer.flush(), "buffer: responses flushed"),
            ("pool", lambda made: made.lent.append(made.scratch.acquire()), "pool: created + reused"),
            ("monitor", lambda made: made.monitor.sample(), "monitor: samples"),
        ],
    )  # fmt: skip
    def test_a_planted_error_of_account_is_found(self, name, does, complaint, monkeypatch):
        tick = service.Service.tick

        def wrong(self, second, arriving):
            tick(self, second, arriving)
            if second == 500:
                does(self)

        monkeypatch.setattr(service.Service, "tick", wrong)
        lines = lines_of(play(plan(10_500)))
        assert any(line.startswith(complaint) for line in lines), lines
        assert all("expected" in line and "found" in line and "hour 0.17" in line for line in lines)

    def test_bytes_are_compared_with_a_fresh_count(self):
        made = service.Service(Clock())
        try:
            made.tick(0, 0)
            assert checks.accounts_and_limits(made) == []
            held = ["x"]
            made.sessions.dict["user"] = held
            made.sessions.sets += 1
            made.requests += 1
            held.append("y" * 1_000)
            found = [failure.what for failure in checks.accounts_and_limits(made)]
            assert "sessions: nbytes, counted afresh" in found
        finally:
            made.close()

    def test_without_fork_there_is_no_floor_and_all_else_is_checked(self, monkeypatch):
        report = pytest.importorskip("synthex_fast.validate.soak.report", exc_type=ImportError)
        monkeypatch.setattr(checks, "CAN_FORK", False)
        monkeypatch.setattr(report, "CAN_FORK", False)
        sent = play(plan(3_000))
        assert sent[-1] == {"done": True}, lines_of(sent)
        results = run.Results(1, 4, 1, 3_000, None)
        results.records[0] = [message["record"] for message in sent if "record" in message]
        assert [record["floor"] for record in results.records[0]] == [None, None]
        rows = {row.key: row for row in report.rows(results)}
        assert rows["growth_bytes"].value is None
        assert rows["growth_bytes"].note == "needs a system that can fork"

    def test_a_floor_may_only_rise_within_its_tolerance(self):
        first = checks.Floor(100_000, 30_000, 50 << 20)
        assert checks.floor_moved(first, checks.Floor(100_600, 30_130, 54 << 20)) == []
        assert checks.floor_moved(first, checks.Floor(50_000, 1_000, 1 << 20)) == []
        moved = checks.floor_moved(first, checks.Floor(100_601, 30_131, 60 << 20))
        assert [failure.what.split(", ")[1] for failure in moved] == ["blocks", "objects", "bytes"]

    @needs_fork
    def test_the_floor_is_measured_without_disturbing_the_service(self):
        clock = Clock()
        made = service.Service(clock)
        try:
            made.tick(0, 0)
            before = {kept.name: len(kept.dict) for kept in made.kept()}
            floor = checks.floor(made)
            assert before == {kept.name: len(kept.dict) for kept in made.kept()}
            assert made.tuner.stats["running"]
            assert 0 < floor.objects < floor.blocks < floor.bytes
        finally:
            made.close()


class TestReport:
    @staticmethod
    def results(grown, hours=24):
        found = run.Results(1, 1_000, 1, None, 60.0)
        floors = [
            {"blocks": 200_000 + grown * n // 24, "objects": 30_000, "bytes": 50 << 20} for n in range(hours)
        ]
        found.records[0] = [
            {"kind": "hour", "simulated": (n + 1) * HOUR, "floor": floor} for n, floor in enumerate(floors)
        ]
        return found

    def test_growth_is_the_slope_of_the_hourly_floors(self):
        report = pytest.importorskip("synthex_fast.validate.soak.report", exc_type=ImportError)
        assert report.growth(self.results(2_000), "blocks") == pytest.approx(1.0, abs=0.02)
        assert report.growth(self.results(2_000), "objects") == 0
        # One measurement that is off changes nothing.
        outlier = self.results(2_000)
        outlier.records[0][10]["floor"]["blocks"] += 50_000
        assert report.growth(outlier, "blocks") == pytest.approx(1.0, abs=0.02)

    def test_progress_tells_the_time_left(self):
        assert run._left(0.25, 30.0) == ", about 2 min left"
        assert run._left(0.001, 30.0) == run._left(0.9, 1.0) == ""

    def test_no_slope_is_drawn_through_few_floors(self):
        report = pytest.importorskip("synthex_fast.validate.soak.report", exc_type=ImportError)
        assert report.growth(self.results(2_000, hours=3), "blocks") is None
        assert report.growth(self.results(2_000, hours=4), "blocks") is not None


@pytest.mark.slow
class TestCommand:
    def test_a_short_run_end_to_end(self, tmp_path):
        pytest.importorskip("rich")
        path = tmp_path / "soak.json"
        arguments = ["--rate", "6", "--requests", "18000", "--seed", "5", "--json", str(path)]
        finished = subprocess.run(
            [*COMMAND, "soak", *arguments], capture_output=True, text=True, env=_environment(), timeout=300
        )
        assert finished.returncode == 0, finished.stderr
        assert "Traceback" not in finished.stderr
        assert "hour 1 of 1: " in finished.stderr
        found = json.loads(path.read_text())
        assert found["complete"]
        assert (found["seed"], found["rate"], found["processes"]) == (5, 6, found["processes"])
        assert sum(records[-1]["requests"] for records in found["records"]) == 18_000
        rows = {row["key"]: row for row in found["rows"]}
        for row in rows.values():
            assert row["label"] in finished.stdout
        # Little more than an hour: some can be told, and some can't.
        assert rows["records_reused"]["value"] > 80
        assert rows["growth_blocks"]["value"] is None
        assert rows["growth_blocks"]["report_met"] is None
        assert "Can't be told yet: growth of resident memory a day" in finished.stdout
        assert "Not a whole day" in finished.stdout
        assert finished.stdout.count("MISS") == sum(
            row[key] is False for row in rows.values() for key in ("report_met", "reach_met")
        )

    @pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX has them")
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_it_says_what_it_has_when_stopped(self, number, status, tmp_path):
        pytest.importorskip("rich")
        path = tmp_path / "soak.json"
        command = Running("soak", "--rate", "4", "--requests", "400000", "--json", str(path))
        command.wait_for("hour 1 of")
        command.popen.send_signal(number)
        shown, complaints = command.popen.communicate(timeout=100)
        assert command.popen.returncode == status
        assert command.no_child_is_left()
        assert "ended early" in shown
        assert "requests/s" in shown
        assert "Traceback" not in complaints
        found = json.loads(path.read_text())
        assert found["complete"] is False
        assert found["simulated_seconds"] >= HOUR

    @pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX has them")
    def test_a_worker_that_dies_is_a_clear_error(self):
        pytest.importorskip("rich")
        command = Running("soak", "--rate", "4", "--requests", "400000")
        command.wait_for("hour 1 of")
        # Beside the workers, multiprocessing has a process of its own.
        next(child for child in command.children if "spawn_main" in "".join(child.cmdline())).kill()
        shown, complaints = command.popen.communicate(timeout=100)
        assert command.popen.returncode == 1
        assert "failed checks (a worker died)" in " ".join(shown.split())
        assert command.no_child_is_left()
        assert "was killed by signal 9" in complaints
        assert "Traceback" not in complaints

    def test_a_failed_check_is_a_line_and_status_1(self, monkeypatch, capsys):
        pytest.importorskip("rich")

        def fail(results, _show):
            results.records[0].append(play(plan(200))[-2]["record"])
            results.failures.append("pool: idle: expected 3, found 4, in worker 1 at simulated hour 2.00")

        monkeypatch.setattr(run, "run", fail)
        assert cli.main(["soak", "--processes", "1"]) == 1
        shown = capsys.readouterr()
        assert (
            shown.err
            == "synthex-fast soak: pool: idle: expected 3, found 4, in worker 1 at simulated hour 2.00\n"
        )
        assert "failed checks" in shown.out


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--requests", "0"], "from 1 to 9,007,199,254,740,992, not '0'"),
            (["--requests", "many"], "not 'many'"),
            (["--requests", "1", "--processes", "2"], "at least 1 for each of 2 processes"),
            (["--requests", "5", "--seconds", "5"], "not allowed with"),
            (["--seconds", "nan"], "above 0, not 'nan'"),
            (["--seconds", "-1"], "above 0, not '-1'"),
            (["--rate", "0"], "from 1 to 1,000,000, not '0'"),
            (["--rate", "1e3"], "not '1e3'"),
            (["--processes", "0"], "from 1 to 256, not '0'"),
            (["--seed", "-1"], "whole number, 0 or more, not '-1'"),
            (["--json", os.curdir], "can't write"),
            (["--json", "/nowhere/at/all.json"], "can't write '/nowhere/at/all.json'"),
            (["surplus"], "surplus"),
        ],
    )
    def test_bad_ones_end_in_one_line_and_2(self, arguments, complaint, capsys):
        with pytest.raises(SystemExit) as ended:
            cli.main(["soak", *arguments])
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert complaint in shown.err

    def test_a_missing_extra_is_named_in_one_line(self, capsys, monkeypatch):
        monkeypatch.setattr(cli, "find_spec", lambda _name: None)
        with pytest.raises(SystemExit) as ended:
            cli.main(["soak"])
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert shown.err == "synthex-fast soak: needs rich: pip install synthex-fast[validate]\n"
