"""`validate --http`: the application, the load generator, the servers, and what is made of their measurements."""

import asyncio
import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from types import SimpleNamespace

import psutil
import pytest
from support import COMMAND, Running, wait_for

from synthex_fast import cli
from synthex_fast.validate import figures
from synthex_fast.validate import rounds as in_process
from synthex_fast.validate.http import SCENARIOS, heap, measures
from synthex_fast.validate.http.watched import Pause, Watched, pauses

NEEDED = ("pydantic", "rich", *cli._HTTP_PACKAGES)
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the servers don't run on Windows"),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in NEEDED), reason="needs the extra validate-http"
    ),
]
SEED = 11
ARMS = ("current", "synthex_fast")


@pytest.fixture
def over_http(monkeypatch):
    """The module, with everything that is not measured made short."""
    from synthex_fast.validate.http import rounds

    monkeypatch.setattr(rounds, "WARM_UP", 0.1)
    monkeypatch.setattr(rounds, "CAPACITY", 0.1)
    monkeypatch.setattr(rounds, "FEWEST_REQUESTS", 1)
    return rounds


class TestHeap:
    def test_has_as_many_objects_as_asked_for_and_the_collector_tracks_them(self):
        gc.collect()
        before = heap.tracked()
        kept = heap.build(20_000)
        assert 20_000 <= heap.tracked() - before < 20_200
        assert sum(len(node.children) for node in kept) == len(kept) - 1

    def test_a_request_leaves_survivors_and_cycles(self):
        leavings = heap.Leavings()
        leavings.add("user")
        gc.collect()
        gc.disable()
        try:
            before = heap.tracked()
            for _ in range(10):
                leavings.add("user")
            # An instance with a list of rows, each an instance with a dict and a list.
            assert gc.collect() == 10 * (2 + 3 * heap.CYCLIC_ROWS)
            of_one = 1 + 3 * heap.KEPT_ROWS
            assert heap.tracked() - before == 10 * of_one
            for _ in range(heap.KEPT_FOR):
                leavings.add("user")
            gc.collect()
            assert heap.tracked() - before == (heap.KEPT_FOR - 1) * of_one
        finally:
            gc.enable()


class TestWatched:
    def test_tells_collections_inside_requests_from_those_between_them(self, tmp_path):
        async def app(scope, receive, send):
            gc.collect(1)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            gc.collect(0)
            await send({"type": "http.response.body", "body": b""})
            gc.collect(2)

        async def ignore(message):
            pass

        watched = Watched(app)
        path = tmp_path / "1.pauses"
        threshold = gc.get_threshold()
        gc.disable()
        watched.start(path)
        try:
            gc.collect(1)
            asyncio.run(watched({"type": "http"}, ignore, ignore))
        finally:
            watched.stop()
            gc.enable()
        assert gc.get_threshold() == threshold
        found, position = pauses(path, 0)
        assert [(pause.generation, pause.in_flight) for pause in found] == [(1, 0), (1, 1), (0, 1), (2, 0)]
        assert all(pause.nanoseconds > 0 for pause in found)
        assert pauses(path, position) == ([], position)

    def test_a_request_that_fails_is_over(self, tmp_path):
        async def app(scope, receive, send):
            raise RuntimeError("no")

        watched = Watched(app)
        with pytest.raises(RuntimeError, match="no"):
            asyncio.run(watched({"type": "http"}, None, None))
        watched.start(tmp_path / "1.pauses")
        gc.collect(0)
        watched.stop()
        assert pauses(tmp_path / "1.pauses", 0)[0][0].in_flight == 0


class TestDigest:
    """What becomes of a turn; times here are in seconds."""

    def digest(self, requests, late=(), collections=(), begin=100.0, end=110.0):
        from synthex_fast.validate.http import rounds

        latencies = array("q", [int(1e9 * latency) for _, latency in requests])
        ends = array("q", [int(1e9 * (due + latency)) for due, latency in requests])
        lateness = array("q", [int(1e9 * value) for value in late])
        answer = {
            "begin": int(1e9 * begin),
            "end": int(1e9 * end),
            "sent": len(requests),
            "unanswered": 0,
            "backlog": 0,
            "latencies": len(latencies),
            "generator_cpu_seconds": 0.5,
        }
        payload = latencies.tobytes() + ends.tobytes() + lateness.tobytes()
        return rounds.digest(answer, payload, [Pause(*each) for each in collections])

    def test_requests_due_while_it_settled_do_not_count(self):
        requests = [(100.1, 5.0)] + [(101 + number / 100, 0.001 * (1 + number)) for number in range(101)]
        found = self.digest(requests, late=[0.0001] * 102)
        assert found["requests"] == 101
        assert found["latency_p50"] == pytest.approx(0.051)
        assert found["latency_p99"] == pytest.approx(0.1)
        assert found["latency_max"] == pytest.approx(0.101)
        assert found["throughput"] == pytest.approx(101 / 9.75)
        assert found["percentiles"][0] == [0, pytest.approx(0.001)]
        assert found["percentiles"][-1] == [100, pytest.approx(0.101)]
        assert [share for share, _ in found["percentiles"]] == sorted(
            share for share, _ in found["percentiles"]
        )

    def test_the_histogram_has_every_request_once(self):
        from synthex_fast.validate.http.rounds import BOUNDS

        latencies = [0.00001, 0.001, 0.0011, 0.05, 7.0, 900.0]
        found = self.digest([(101.0, latency) for latency in latencies], late=[0.0])
        assert sum(count for _, count in found["histogram"]) == len(latencies)
        for latency, (bucket, _) in zip(latencies, found["histogram"], strict=True):
            assert bucket == len(BOUNDS) or latency <= BOUNDS[bucket]
            assert bucket == 0 or latency > BOUNDS[bucket - 1]

    def test_a_closed_loop_counts_what_was_answered_after_settling(self):
        found = self.digest([(100.0, 0.1), (100.1, 1.0), (101.1, 1.0)])
        assert found["requests"] == 2
        assert found["generator_late"] is False

    def test_collections_are_those_of_the_turn(self):
        ms = 1_000_000
        found = self.digest(
            [(101.0, 0.001)],
            late=[0.0],
            collections=[
                (int(99.0e9), 500 * ms, 2, 1),  # before
                (int(100.1e9), 400 * ms, 2, 1),  # while it settled
                (int(102.0e9), 2 * ms, 0, 1),
                (int(103.0e9), 30 * ms, 2, 3),
                (int(104.0e9), 70 * ms, 2, 0),
                (int(111.0e9), 300 * ms, 1, 1),  # after
            ],
        )
        assert found["collections"] == [1, 0, 2]
        assert found["outside"] == {"collections": [0, 1, 2], "sum": pytest.approx(1.2)}
        assert found["full_inside"] == 1
        assert (found["pauses_count"], found["pauses_inside_count"]) == (3, 2)
        assert found["pauses_longest"] == pytest.approx(0.07)
        assert found["pauses_inside_longest"] == pytest.approx(0.03)
        assert found["pauses_inside_sum"] == pytest.approx(0.032)
        assert found["pauses"] == [
            [1.75, pytest.approx(0.002), 0, 1],
            [2.75, pytest.approx(0.03), 2, 1],
            [3.75, pytest.approx(0.07), 2, 0],
        ]

    def test_the_longest_pauses_are_kept_in_the_order_of_time(self):
        from synthex_fast.validate.http.rounds import PAUSES_KEPT

        count = PAUSES_KEPT + 50
        collections = [(int(1e9 * (101 + number / 1e3)), 1000 + number, 0, 0) for number in range(count)]
        found = self.digest([(101.0, 0.001)], late=[0.0], collections=collections)
        assert found["pauses_count"] == count
        assert len(found["pauses"]) == PAUSES_KEPT
        assert found["pauses"][0][1] == pytest.approx(1050e-9)
        assert found["pauses"] == sorted(found["pauses"])

    def test_a_late_generator_is_told(self):
        requests = [(101.0, 0.001)] * 100
        assert self.digest(requests, late=[0.0] * 100)["generator_late"] is False
        found = self.digest(requests, late=[0.0] * 50 + [0.003] * 50)
        assert found["generator_late"] is True
        assert found["late_max"] == pytest.approx(0.003)

    def test_a_turn_without_a_response_is_an_error(self):
        with pytest.raises(in_process.ValidationError, match="no request was answered"):
            self.digest([], late=[])


class TestPlan:
    def test_shares_out_all_the_seconds(self):
        from synthex_fast.validate.http import rounds

        assert sum(rounds.SHARES.values()) == pytest.approx(1)
        assert tuple(rounds.SHARES) == SCENARIOS
        for arms in range(1, 5):
            for seconds in (rounds.least_seconds(arms), 120.0, 5_000.0):
                for share in rounds.SHARES.values():
                    number, turn = rounds.plan(arms, seconds * share)
                    assert number >= rounds.FEWEST_ROUNDS
                    assert number % 2 == 1
                    assert number * turn * arms == pytest.approx(seconds * share)
                    assert rounds.SHORTEST_TURN - 1e-9 <= turn <= rounds.LONGEST_TURN + 1e-9

    def test_turns_are_longer_where_they_would_have_too_few_requests(self):
        from synthex_fast.validate.http import rounds

        number, turn = rounds.plan(4, 2_000.0, rate=50.0)
        assert number >= rounds.FEWEST_ROUNDS
        assert rounds.LONGEST_TURN < turn <= rounds.WANTED_REQUESTS / 50.0
        assert number * turn * 4 == pytest.approx(2_000.0)
        # Not at the price of rounds.
        assert rounds.plan(4, 300.0, rate=50.0) == pytest.approx((7, 300 / 28))


class Stalling(threading.Thread):
    """A server that answers at once, except that one request keeps it from doing anything for `seconds`."""

    def __init__(self, stalled, seconds, status=b"200 OK"):
        super().__init__(daemon=True)
        self.stalled, self.seconds, self.status = stalled, seconds, status
        self.served = 0
        self.loop = asyncio.new_event_loop()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.partition(b":")[2]) for line in head.split(b"\r\n") if b"ontent-Length" in line
                )
                await reader.readexactly(length)
                self.served += 1
                if self.served == self.stalled:
                    time.sleep(self.seconds)
                writer.write(b"HTTP/1.1 " + self.status + b"\r\nContent-Length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def until_ended(self):
        self.ended = asyncio.Event()
        async with await asyncio.start_server(self.serve, sock=self.listening):
            await self.ended.wait()

    def run(self):
        self.loop.run_until_complete(self.until_ended())
        self.loop.close()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.ended.set)
        self.join()


@pytest.fixture(scope="module")
def generator():
    from synthex_fast.validate.http import rounds

    with rounds._generator(SEED) as running:
        yield running


def loaded(generator, port, **command):
    generator.order(port=port, **command)
    answer, payload = generator.answer(command.get("seconds", 1.0))
    if "refused" in answer:
        raise ConnectionError(answer["refused"])
    numbers = array("q")
    numbers.frombytes(payload)
    count = answer["latencies"]
    return answer, numbers[:count], numbers[2 * count :]


@pytest.mark.slow
class TestLoad:
    def test_an_open_loop_counts_the_wait_of_every_request_that_a_stall_delays(self, generator):
        with Stalling(stalled=20, seconds=1.0) as server:
            answer, latencies, late = loaded(
                generator, server.port, do="open", rate=100.0, seconds=2.0, connections=8
            )
        assert answer["sent"] == len(latencies) == len(late) == server.served == 200
        assert answer["unanswered"] == 0
        # Those that were due in the second of the stall waited for the rest of it.
        waited = sorted(latency / 1e9 for latency in latencies)[-50:]
        assert waited[0] >= 0.5
        assert waited[-1] >= 0.95

    def test_a_closed_loop_does_not(self, generator):
        with Stalling(stalled=20, seconds=1.0) as server:
            _, latencies, late = loaded(generator, server.port, do="closed", seconds=0.5, connections=1)
        assert not late
        assert len(latencies) == server.served == 20
        assert max(latencies) >= 0.95e9

    def test_an_open_loop_sends_at_its_rate(self, generator):
        with Stalling(stalled=0, seconds=0.0) as server:
            answer, latencies, late = loaded(
                generator, server.port, do="open", rate=300.0, seconds=0.5, connections=4
            )
        assert len(latencies) == len(late) == 150
        assert min(late) >= 0
        # The last is due after 149 intervals.
        assert answer["end"] - answer["begin"] >= 149 / 300 * 1e9

    def test_what_is_never_answered_is_counted_as_such(self, generator, monkeypatch):
        from synthex_fast.validate.http import load

        with Stalling(stalled=10, seconds=load.DRAIN_SECONDS + 2) as server:
            answer, latencies, _ = loaded(
                generator, server.port, do="open", rate=100.0, seconds=0.5, connections=4
            )
        assert answer["unanswered"] == 41
        assert len(latencies) == 50
        assert sorted(latencies)[-41] >= load.DRAIN_SECONDS * 0.9 * 1e9

    def test_a_server_that_fails_is_told(self, generator):
        with (
            Stalling(stalled=0, seconds=0.0, status=b"500 Internal Server Error") as server,
            pytest.raises(ConnectionError, match="answered with status 500"),
        ):
            loaded(generator, server.port, do="closed", seconds=0.2, connections=2)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionError, match="Connect"):
                loaded(generator, unused.getsockname()[1], do="closed", seconds=0.2, connections=2)

    def test_ends_with_the_pipe(self):
        process = subprocess.Popen(
            [sys.executable, "-m", "synthex_fast.validate.http.load", str(SEED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=in_process._environment(),
        )
        assert json.loads(process.stdout.readline()) == {"ready": True}
        process.stdin.close()
        assert process.wait(timeout=20) == 0
        process.stdout.close()


@pytest.fixture(scope="module")
def results():
    """A run over HTTP as short as can be."""
    from synthex_fast.validate.http import rounds

    made = in_process.Results(ARMS, SEED)
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "WARM_UP", 0.1)
        patch.setattr(rounds, "CAPACITY", 0.1)
        patch.setattr(rounds, "FEWEST_REQUESTS", 1)
        rounds.run(made, 12.0, lambda what, share: said.append((what, share)), heap_objects=20_000)
    made.said = said
    return made


@pytest.mark.slow
class TestRun:
    def test_has_as_many_rounds_of_each_scenario_and_arm_as_planned(self, results):
        assert results.complete
        assert set(results.http) == {*SCENARIOS, "settings"}
        for scenario in SCENARIOS:
            planned = results.http["settings"]["turns"][scenario]["rounds"]
            assert {arm: len(found) for arm, found in results.http[scenario].items()} == {
                "current": planned,
                "synthex_fast": planned,
            }

    def test_every_turn_says_what_it_measured(self, results):
        for scenario in SCENARIOS:
            server, _, loop = scenario.partition("-")
            for found in (turn for turns in results.http[scenario].values() for turn in turns):
                assert found["requests"] > 0
                assert 0 < found["latency_p50"] <= found["latency_p99"] <= found["latency_max"]
                assert found["cpu_seconds"] > 0
                assert found["generator_cpu_seconds"] > 0
                assert found["unanswered"] == 0
                assert sum(found["collections"]) == found["pauses_count"] >= len(found["pauses"])
                assert sum(count for _, count in found["histogram"]) == found["requests"]
                assert found["rss"] > 10_000_000
                assert len(found["memory"]) >= 2
                if sys.platform == "linux":
                    assert 0 < found["pss"] <= found["rss"]
                if loop == "open":
                    assert found["rate"] == results.http["settings"]["rates"][server]

    def test_each_server_has_its_workers_and_the_heap_in_each(self, results):
        for server, count in (("uvicorn", 1), ("gunicorn", 4)):
            for arm in ARMS:
                started = results.http["settings"]["started"][server][arm]
                assert len(started) == count
                assert all(worker["tracked"] > 20_000 for worker in started)

    def test_collections_of_the_arm_with_the_tuner_fall_between_requests(self, results):
        for scenario in SCENARIOS:
            turns = results.http[scenario]
            assert sum(turn["pauses_inside_count"] for turn in turns["current"]) > 0
            assert sum(turn["pauses_count"] for turn in turns["synthex_fast"]) > 0
            assert sum(turn["pauses_inside_count"] for turn in turns["synthex_fast"]) == 0

    def test_says_how_much_time_is_left(self, results):
        shares = [share for _, share in results.said]
        assert shares == sorted(shares)
        assert 0 <= shares[0] < 0.01
        assert 0.9 < shares[-1] < 1
        assert all("left)" in what for what, _ in results.said if "round" in what)

    def test_the_table_has_a_row_for_every_measure(self, results):
        keys = {row.measure.key for row in figures.rows(results)}
        missing = set() if sys.platform == "linux" else {"http_uvicorn_pss", "http_gunicorn_pss"}
        for server in ("uvicorn", "gunicorn"):
            turns = [turn for found in results.http[f"{server}-open"].values() for turn in found]
            # One request in 100 or 1,000 says nothing of fewer.
            for share, enough in (("p99", 100), ("p99.9", 1_000)):
                if all(turn["requests"] < enough for turn in turns):
                    missing.add(f"http_{server}_{share}")
        assert {measure.key for measure in measures.MEASURES} - keys <= missing
        planned = results.http["settings"]["turns"]
        for row in figures.rows(results):
            server, _, key = row.measure.key.removeprefix("http_").partition("_")
            if server in ("uvicorn", "gunicorn"):
                loop = "closed" if key in ("throughput", "cpu") else "open"
                assert set(row.figures) == set(ARMS) or key in ("p99", "p99.9")
                for figure in row.figures.values():
                    assert len(figure.values) == planned[f"{server}-{loop}"]["rounds"]

    @pytest.mark.parametrize(("key", "share", "enough"), [("p99", 99, 100), ("p99.9", 99.9, 1_000)])
    def test_a_percentile_is_of_turns_with_enough_requests_only(self, results, key, share, enough):
        turns = results.http["uvicorn-open"]["current"]
        (measure,) = (each for each in measures.MEASURES if each.key == f"http_uvicorn_{key}")
        for requests, expected in (
            (enough, [1e3 * turn[f"latency_p{share}"] for turn in turns]),
            (enough - 1, []),
        ):
            changed = [turn | {"requests": requests} for turn in turns]
            found = SimpleNamespace(http={"uvicorn-open": {"current": changed}})
            assert measure.read(found, "current") == expected

    def test_what_is_to_be_reached_is_of_measures_that_exist(self, results):
        known = {measure.key for _, measure in figures.measures()}
        assert set(measures.REACH) <= known

    def test_the_json_has_all_of_it(self, results):
        from synthex_fast.validate import report

        text = json.dumps(report.as_json(results, []), allow_nan=False)
        assert json.loads(text)["http"] == results.http
        assert json.loads(text)["environment"]["versions"]["uvicorn"]

    def test_the_notes_say_what_was_loaded(self, results):
        from synthex_fast.validate.http import rounds

        notes = "\n".join(measures.footnotes(results))
        assert "20,000 long-lived objects" in notes
        assert f" of {len(SCENARIOS) * len(ARMS) * rounds.FEWEST_ROUNDS} turns" in notes

    def test_a_saturated_server_is_told(self, results):
        def notes(backlog):
            found = results.http["uvicorn-open"]["current"]
            outside = {"collections": [0, 0, 0], "sum": 0.0}
            turns = [{**turn, "backlog": backlog, "rate": 200.0, "outside": outside} for turn in found]
            made = in_process.Results(ARMS, SEED)
            made.http = {"settings": results.http["settings"], "uvicorn-open": {"current": turns}}
            return measures.footnotes(made)

        assert len(notes(50)) == 1
        assert (
            f"{results.http['settings']['turns']['uvicorn-open']['rounds']} of current (uvicorn-open)"
            in (notes(51)[-1])
        )


def test_the_rate_is_one_that_every_arm_can_serve(over_http):
    def comparison(rate):
        made = in_process.Results(ARMS, SEED)
        return over_http.Comparison(made, 60.0, print, rate=rate, heap_objects=0, port=None)

    capacity = {"current": 500.0, "synthex_fast": 900.0}
    assert comparison(None)._chosen_rate("uvicorn", capacity) == 500 * over_http.DEFAULT_UTILISATION
    assert comparison(450.0)._chosen_rate("uvicorn", capacity) == 450
    with pytest.raises(in_process.ArgumentError, match="below the 500 requests/s that 'current' serves"):
        comparison(500.0)._chosen_rate("uvicorn", capacity)
    # One that stalls on and on still gets a measurable number of requests.
    turn = comparison(None)._plans["uvicorn-open"][1]
    rate = comparison(None)._chosen_rate("uvicorn", {"current": 0.5})
    assert rate * turn == pytest.approx(over_http.FEWEST_REQUESTS, rel=0.1)


def test_arms_that_answer_differently_end_the_run(over_http, monkeypatch):
    answers = iter([[{"count": 5, "level": "low", "mean": 0.5, "variance": 0.01}]] * 2)

    class Answering:
        port = 0

        def resume(self):
            pass

        stop = resume

    comparison = over_http.Comparison(
        in_process.Results(ARMS, SEED), 12.0, lambda *_: None, rate=None, heap_objects=0, port=None
    )
    monkeypatch.setattr(comparison, "_ask", lambda *_: ({"answers": next(answers)}, b""))
    comparison._compare("uvicorn", {arm: Answering() for arm in ARMS})
    answers = iter([[{"count": 5, "level": "low", "mean": mean, "variance": 0.01}] for mean in (0.5, 0.6)])
    with pytest.raises(in_process.ValidationError, match="uvicorn, request 0: 'current' answers"):
        comparison._compare("uvicorn", {arm: Answering() for arm in ARMS})


def command(*arguments):
    return subprocess.run(
        [*COMMAND, "validate", *arguments],
        capture_output=True,
        text=True,
        env=in_process._environment(),
        timeout=120,
        check=False,
    )


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("--http", "--rate", "0"), "argument --rate: must be a number of requests a second above 0"),
            (("--http", "--rate", "nan"), "not 'nan'"),
            (("--http", "--rate", "1e9"), "up to 100,000, not '1e9'"),
            (("--http", "--rate", "fast"), "not 'fast'"),
            (("--rate", "100"), "argument --rate: needs --http"),
            (("--port", "8000"), "argument --port: needs --http"),
            (("--heap-objects", "10"), "argument --heap-objects: needs --http"),
            (("--http", "--heap-objects", "-1"), "must be a whole number from 0 to 100,000,000, not '-1'"),
            (("--http", "--heap-objects", "1e6"), "not '1e6'"),
            (("--http", "--port", "0"), "must be a whole number from 1 to 65,535, not '0'"),
            (("--http", "--port", "http"), "not 'http'"),
            (("--http", "--port", "65535"), "argument --port: 4 arms need 4 ports"),
            (("--http=sometimes",), "argument --http"),
            (("--http", "only", "--seconds", "3"), "argument --seconds: must be at least"),
        ],
    )
    def test_is_one_line_and_status_2(self, capsys, arguments, complaint):
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate", *arguments])
        shown = capsys.readouterr()
        assert ended.value.code == 2
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert complaint in shown.err

    def test_a_missing_extra_is_named(self, capsys, monkeypatch):
        monkeypatch.setattr(
            cli, "find_spec", lambda name: None if name in ("uvloop", "starlette") else object()
        )
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate", "--http"])
        shown = capsys.readouterr()
        assert ended.value.code == 2
        assert shown.err.endswith("needs starlette and uvloop: pip install synthex-fast[validate-http]\n")

    @pytest.mark.slow
    def test_a_port_in_use_is_told_before_anything_is_measured(self, tmp_path):
        path = tmp_path / "results.json"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = command("--http", "--port", str(port), "--json", str(path))
        assert done.returncode == 2
        assert done.stderr == f"synthex-fast validate: argument --port: {port} is in use\n"
        assert done.stdout == ""
        assert not path.exists()

    @pytest.mark.slow
    def test_a_rate_that_no_arm_can_serve_is_refused(self, over_http, capsys, monkeypatch, tmp_path):
        path = tmp_path / "results.json"
        monkeypatch.setattr(over_http, "least_seconds", lambda arms: 1)
        arguments = [
            "--http",
            "only",
            "--arms",
            "synthex_fast",
            "--heap-objects",
            "1000",
            "--json",
            str(path),
        ]
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate", *arguments, "--rate", "90000"])
        assert ended.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "argument --rate: must be below the" in last
        assert last.endswith("not 90000")
        assert not path.exists()
        with pytest.raises(SystemExit) as ended:
            monkeypatch.setattr(over_http, "FEWEST_REQUESTS", 20)
            cli.main(["validate", *arguments, "--rate", "0.5", "--seconds", "10"])
        assert "argument --rate: must be at least 47 for turns of 0.43 s" in capsys.readouterr().err


def running(*arguments):
    """The command under way on one arm."""
    return Running(
        *("validate", "--http", "only", "--arms", "synthex_fast", "--seconds", "60"),
        *("--heap-objects", "10000", *arguments),
    )


@pytest.mark.slow
class TestInterruption:
    def test_ctrl_c_shows_what_is_finished_and_leaves_no_process(self, tmp_path):
        path = tmp_path / "partial.json"
        command = running("--json", str(path))
        command.wait_for("uvicorn-open, round 2 of")
        command.popen.send_signal(signal.SIGINT)
        shown, complaints = command.popen.communicate(timeout=30)
        assert command.popen.returncode == 130
        assert command.no_child_is_left()
        assert "interrupted" in shown
        assert "uvicorn: p99" in shown
        assert "Traceback" not in complaints
        found = json.loads(path.read_text())
        assert found["complete"] is False
        assert len(found["http"]["uvicorn-open"]["synthex_fast"]) == 1
        assert "gunicorn-open" not in found["http"]

    def test_sigterm_ends_in_order_too(self):
        command = running()
        command.wait_for("uvicorn-open, round 2 of")
        command.popen.send_signal(signal.SIGTERM)
        shown, _ = command.popen.communicate(timeout=30)
        assert command.popen.returncode == 143
        assert command.no_child_is_left()
        assert "uvicorn: p99" in shown

    def test_ctrl_c_before_anything_is_measured(self):
        command = running()
        command.wait_for("starting uvicorn")
        command.popen.send_signal(signal.SIGINT)
        shown, complaints = command.popen.communicate(timeout=30)
        assert command.popen.returncode == 130
        assert shown == ""
        assert complaints.endswith("interrupted before anything was measured\n")

    def test_a_server_that_dies_is_a_clear_error(self):
        command = running()
        command.wait_for("uvicorn-open, round 1 of")
        [server] = [
            child for child in command.children if "synthex_fast.validate.http.server" in child.cmdline()
        ]
        server.kill()
        shown, complaints = command.popen.communicate(timeout=60)
        assert command.popen.returncode == 1
        assert shown == ""
        assert "validate: the uvicorn of arm 'synthex_fast' was killed by signal 9" in complaints
        assert "Traceback" not in complaints
        assert command.no_child_is_left()

    def test_sigkill_leaves_no_orphan(self):
        command = running()
        command.wait_for("uvicorn-open, round 1 of")
        command.popen.kill()
        command.popen.communicate(timeout=30)
        assert command.no_child_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_gunicorn_is_configured_by_nobody_else(over_http, arm, tmp_path, monkeypatch):
    """Such a file, where the command is run, would be read in some arms and not in others."""
    (tmp_path / "gunicorn.conf.py").write_text("raise RuntimeError('it was read')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--no-such-option")
    with over_http._servers("gunicorn", (arm,), None, 1000) as servers:
        servers[arm].wait(lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(
    "adopted",
    [False, pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="needs prctl"))],
)
def test_gunicorn_ends_with_whoever_started_it(over_http, stopped, adopted):
    """Also while it waits for its turn, stopped, and also if a process of the same session adopts it."""
    code = (
        "import os, signal, sys\n"
        "from synthex_fast.validate.http import rounds\n"
        "with rounds._servers('gunicorn', ('synthex_fast',), None, 1000) as servers:\n"
        "    server = servers['synthex_fast']\n"
        "    server.wait(lambda: None)\n"
        f"    if {stopped}: server.stop()\n"
        "    print(*(process.pid for process in server.processes()), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=in_process._environment(),
    )
    left = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(left) == 5
    with adopting() if adopted else nullcontext():
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()
        wait_for(lambda: not any(process.is_running() and process.status() != "zombie" for process in left))


@contextmanager
def adopting():
    """This process adopts what its children leave, as the first one of a container does."""
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    assert prctl(set_child_subreaper, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
    try:
        yield
    finally:
        prctl(set_child_subreaper, *map(ctypes.c_ulong, (0, 0, 0, 0)))
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
