"""`validate --limit`: arms at a memory limit, in a control group or watched, and nothing of it left behind."""

import os
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil
import pytest
from support import wait_for

from synthex_fast import cli
from synthex_fast.validate import limit, rounds
from synthex_fast.validate.arms import NEEDS

MB = 1 << 20
LIMIT = 256 * MB

for _needed in {name for names in NEEDS.values() for name in names}:
    pytest.importorskip(_needed)


def no_container(_limit):
    raise OSError("none here")


@pytest.fixture(params=["control group", "watched"])
def how(request, monkeypatch):
    if request.param == "watched":
        monkeypatch.setattr(limit, "Container", no_container)
        return limit.WATCHED
    try:
        container = limit.Container(LIMIT)
    except OSError as error:
        pytest.skip(f"needs the right to make memory control groups: {error}")
    container.close()
    return container.how


@pytest.fixture
def left():
    """A function that lists what a run has left behind."""
    before = psutil.Process().children()
    return lambda: [
        *Path("/sys/fs/cgroup").glob(f"**/synthex-fast-validate-{os.getpid()}-*"),
        *(child for child in psutil.Process().children() if child not in before),
    ]


@pytest.mark.slow
class TestRun:
    def test_the_current_system_is_killed_in_the_middle(self, how, left):
        ticks = []
        found = limit.one_run("current", 1, LIMIT, tick=lambda: ticks.append(1))
        assert found["how"] == how
        assert found["killed"]
        assert 50 < found["requests"] < found["planned"] == limit.REQUESTS
        assert found["errors"] == 0
        assert found["peak"] >= 0.9 * LIMIT
        assert len(found["series"]) <= limit.MOST_SAMPLES
        assert max(used for _, used in found["series"]) > LIMIT / 2
        assert ticks
        assert left() == []

    def test_the_package_survives_with_more_cached_than_by_hand(self, how, left):
        found = {arm: limit.one_run(arm, 1, LIMIT, count=700) for arm in ("tuned_by_hand", "synthex_fast")}
        for run in found.values():
            assert not run["killed"]
            assert (run["requests"], run["errors"], run["first_error"]) == (700, 0, None)
            assert run["peak"] < LIMIT
        assert found["synthex_fast"]["cached_bytes"] > 2 * found["tuned_by_hand"]["cached_bytes"]
        assert left() == []

    def test_an_interrupt_leaves_nothing(self, how, monkeypatch, left):
        def interrupt():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            limit.one_run("synthex_fast", 1, LIMIT, tick=interrupt)
        assert left() == []

    def test_an_arm_that_fails_says_how(self, how, left):
        with pytest.raises(
            rounds.ValidationError, match=r"ended with status 1: .*No module named .*unheard_of"
        ):
            limit.one_run("unheard_of", 1, LIMIT)
        assert left() == []

    def test_arms_take_turns_and_runs_are_told_apart(self, monkeypatch):
        order = []

        def one_run(arm, seed, _limit, tick):
            order.append((arm, seed))
            return {"limit": LIMIT, "how": "x", "killed": arm == "a", "requests": seed, "planned": 9}

        monkeypatch.setattr(limit, "one_run", one_run)
        results = rounds.Results(("a", "b"), 5)
        limit.run(results, LIMIT, lambda what, share: None, runs=3)
        assert order == [("a", 5), ("b", 5), ("b", 6), ("a", 6), ("a", 7), ("b", 7)]
        assert [run["requests"] for run in results.limit["b"]] == [5, 6, 7]
        [note] = limit.footnotes(results)
        assert "a killed in 3 of 3 runs after 5 to 7 requests; b killed in 0 of 3 runs." in note
        killed, served = limit.MEASURES[:2]
        assert (killed.read(results, "a"), killed.read(results, "b")) == ([100.0], [0.0])
        # The median of the runs would be 0.
        results.limit["b"][0]["killed"] = True
        assert killed.read(results, "b") == [pytest.approx(100 / 3)]
        assert killed.read(results, "c") == []
        assert served.read(results, "a") == pytest.approx([100 * n / 9 for n in (5, 6, 7)])


def test_the_groups_of_a_run_that_was_killed_are_removed_by_the_next():
    try:
        first = limit.Container(LIMIT)
    except OSError as error:
        pytest.skip(f"needs the right to make memory control groups: {error}")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    left = first.path.with_name(f"synthex-fast-validate-{child.pid}-0")
    left.mkdir()
    try:
        limit.Container(LIMIT).close()
        assert not left.exists()
        # This process lives.
        assert first.path.exists()
    finally:
        first.close()
        with suppress(OSError):
            left.rmdir()


class TestTraffic:
    def test_cached_answers_outgrow_the_limit_and_a_shallow_account_does_not_see_it(self):
        made = list(islice(limit.requests(3, LIMIT), 500))
        texts = sum(len(answer.content) for request in made for answer in request.answers)
        assert texts == pytest.approx(limit.OUTGROWN * LIMIT, rel=0.05)
        assert 500 * sys.getsizeof(list(range(5))) < LIMIT / 1_000

    def test_is_the_same_for_every_arm_and_no_two_requests_share_an_answer(self):
        one, other = (list(islice(limit.requests(3, LIMIT), 20)) for _ in range(2))
        assert one == other
        assert one[0].answers[0].content is not other[0].answers[0].content


class TestArguments:
    @pytest.mark.parametrize(
        ("size", "complaint"),
        [
            ("much", "must be a size such as 256MB or 1GB, not 'much'"),
            ("0", "must be a size"),
            ("64MB", "must be at least 128 MB"),
            ("900TB", "leaves no room"),
        ],
    )
    def test_an_impossible_limit_ends_in_one_line_and_2(self, size, complaint, capsys):
        pytest.importorskip("rich")
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate", "--limit", size])
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert complaint in shown.err


def _at_the_limit(pid):
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if limit.__name__ in child.cmdline():
                found.append(child)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_terminated_command_leaves_no_process_and_no_group():
    pytest.importorskip("rich")
    command = [sys.executable, "-m", "synthex_fast.cli", "validate", "--arms", "synthex_fast"]
    running = subprocess.Popen(
        [*command, "--seconds", "0.4", "--limit", "200MB"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=rounds._environment(),
    )
    said = []
    reader = threading.Thread(target=lambda: said.extend(iter(running.stderr.readline, "")))
    reader.start()
    wait_for(lambda: any("at the limit" in line for line in said), 60)
    wait_for(children_of_limit := lambda: _at_the_limit(running.pid), 60)
    children = children_of_limit()
    running.terminate()
    assert running.wait(timeout=30) == cli.TERMINATED
    reader.join()
    assert "requests/s" in running.stdout.read()
    running.stdout.close()
    running.stderr.close()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/synthex-fast-validate-{running.pid}-*"))
    assert psutil.wait_procs(children, timeout=0)[1] == []
