"""The command as its users run it: on all arms in a process of its own, interrupted, with bad arguments."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from support import COMMAND, FREE_THREADED, Running, run

from synthex_fast import cli
from synthex_fast.gc_tuner import INCREMENTAL, collector_kind
from synthex_fast.validate import figures, garbage, rounds
from synthex_fast.validate.arms import ARMS, NEEDS
from synthex_fast.validate.rounds import _environment

pytest.importorskip("rich")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """One real run of all arms, as short as may be: ``(what it printed, its JSON)``."""
    for needed in {name for names in NEEDS.values() for name in names}:
        pytest.importorskip(needed)
    path = tmp_path_factory.mktemp("validate") / "results.json"
    arguments = ["validate", "--seconds", "1.5", "--seed", "5", "--json", str(path)]
    finished = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=_environment(), timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    return finished, json.loads(path.read_text())


@pytest.mark.slow
class TestWholeRun:
    def test_every_row_has_every_arm(self, whole_run):
        _, found = whole_run
        assert found["complete"]
        assert found["arms"] == list(ARMS)
        asked = [
            measure
            for measure in figures.MEASURES + garbage.MEASURES
            if not measure.key.startswith("hourly_")
        ]
        keys = [measure.key for _, measure in figures.measures()]
        assert [row["key"] for row in found["rows"]] == sorted(
            (measure.key for measure in asked), key=keys.index
        )
        for row in found["rows"]:
            # The report has flags for Node; whoever tunes by hand would find their own.
            expected = set(ARMS) - ({"tuned_by_hand"} if row["key"] == "node_heap" else set())
            assert set(row["arms"]) == expected, row["key"]
            for figure in row["arms"].values():
                assert figure["least"] <= figure["median"] <= figure["greatest"]
                low, high = figure["interval"] or [figure["median"]] * 2
                assert low <= figure["median"] <= high
                if row["key"] == "full_collections_per_hour":
                    # None in some seconds says nothing of an hour.
                    assert high > 5
                    continue
                assert figure["least"] <= low
                assert high <= figure["greatest"]
                assert (figure["interval"] is None) == (len(figure["values"]) == 1)

    def test_figures_are_of_the_rounds(self, whole_run):
        _, found = whole_run
        rows = {row["key"]: row["arms"] for row in found["rows"]}
        for arm in ARMS:
            rounds = found["rounds"][arm]
            assert len(rounds) == found["planned_rounds"] == found["finished_rounds"] == 7
            for done in rounds:
                assert done["requests"] > 10
                assert done["seconds"] >= found["round_seconds"] * 0.99
                assert 0 < done["cpu_seconds"] < 3 * done["seconds"] + 0.1
                assert 0 < done["latency_p50"] <= done["latency_p99"] <= done["latency_p99.9"]
                assert done["latency_p99.9"] <= done["latency_max"] <= done["seconds"]
                # Half of the latencies are at least the median.
                assert done["latency_p50"] * done["requests"] / 2 <= done["seconds"]
                counted = sum(done["collections"]) + sum(done["refill_collections"])
                if collector_kind(sys.hexversion, FREE_THREADED) == INCREMENTAL:
                    # An increment that finds no work due is not in gc.get_stats(), but calls the callbacks.
                    assert len(done["pauses"]) >= counted
                else:
                    assert len(done["pauses"]) == counted
                assert done["settled_rss"] > 10_000_000
                assert done["peak_rss"] > 0.95 * done["settled_rss"]
                assert done["reused"] + done["created"] == 6 * done["requests"]
                # All but what is still in the buffer has been handed over.
                made = 5 * (done["requests"] + done["refill_requests"])
                assert made - 800 <= done["responses_flushed"] <= made
            assert rows["throughput"][arm]["values"] == [
                done["requests"] / done["seconds"] for done in rounds
            ]
            # Rounds that are measured differ; a constant would not.
            assert len(set(rows["throughput"][arm]["values"])) > 1

    def test_what_the_caches_hold_is_more_than_their_texts(self, whole_run):
        _, found = whole_run
        held = {arm: found["held"][arm]["bytes"] for arm in ARMS}
        # 1,000 queries of 1,100 characters and 2,500 responses of 1,400 are 4.6 MB before any record is made.
        assert all(4_000_000 < bytes_held < 40_000_000 for bytes_held in held.values())
        # The shallow account sees the outermost object only; the package's sees what is held.
        assert found["held"]["current"]["account"] < held["current"] / 20
        assert found["held"]["synthex_fast"]["account"] == pytest.approx(held["synthex_fast"], rel=0.1)

    def test_reuse_and_allocation_tell_the_arms_apart(self, whole_run):
        _, found = whole_run
        rows = {row["key"]: row for row in found["rows"]}
        reuse = rows["reuse_rate"]["arms"]
        assert reuse["current"]["median"] == 0
        assert reuse["tuned_by_hand"]["median"] == 0
        assert reuse["recommended"]["median"] > 80
        assert reuse["synthex_fast"]["median"] > 80
        assert rows["reuse_rate"]["target_met"]["synthex_fast"] == "met"
        allocated = rows["allocated_per_request"]["arms"]
        assert 0 < allocated["synthex_fast"]["median"] < allocated["current"]["median"]

    def test_environment_and_seed_are_told(self, whole_run):
        _, found = whole_run
        assert found["seed"] == 5
        assert found["requests_compared"] == 200
        assert len(found["corpus"]["digest"]) == 64
        environment = found["environment"]
        assert environment["python"] == sys.version.split()[0]
        assert environment["platform"]
        assert environment["versions"]["pydantic"]
        assert environment["arguments"][:3] == ["validate", "--seconds", "1.5"]

    def test_the_table_shows_it(self, whole_run):
        finished, found = whole_run
        for arm in ARMS:
            assert arm in finished.stdout
        words = set(finished.stdout.replace(",", " ").split())
        for measure in figures.MEASURES:
            # A label may be broken between words.
            assert set(measure.label.replace(",", " ").split()) <= words
        for text in ("105.6 KB/s", "0.25 % of one core", "medians of 7 rounds", "better by"):
            assert text in finished.stdout
        for verdict in ("met", "missed", "unclear"):
            judged = [
                row for row in found["rows"] if not row["in_line"] and row["more_is_better"] is not None
            ]
            verdicts = [met for row in judged for met in row["target_met"].values()]
            verdicts += [row["our_target_met"].get("synthex_fast") for row in judged]
            shown = re.findall(rf"(?:%|-|\)|\d) {verdict}\b", finished.stdout)
            assert len(shown) == verdicts.count(verdict)
        assert "round 7 of 7: synthex_fast" in finished.stderr
        assert "Traceback" not in finished.stderr


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ([], "COMMAND"),
            (["nonsense"], "nonsense"),
            (["validate", "--seconds", "0"], "above 0, not '0'"),
            (["validate", "--seconds=-3"], "above 0, not '-3'"),
            (["validate", "--seconds", "nan"], "above 0, not 'nan'"),
            (["validate", "--seconds", "inf"], "above 0, not 'inf'"),
            (["validate", "--seconds", "soon"], "above 0, not 'soon'"),
            (["validate", "--seconds", "0.2"], "at least 1.40 for 4 arms"),
            (["validate", "--arms", "current,fastest"], "not 'fastest'"),
            (["validate", "--arms", ""], "not ''"),
            (["validate", "--arms", "current,current"], "each arm once"),
            (["validate", "--collections", "0"], "above 0, not '0'"),
            (["validate", "--seed", "-1"], "whole number, 0 or more, not '-1'"),
            (["validate", "--seed", "1.5"], "whole number, 0 or more, not '1.5'"),
            (["validate", "--json", "/nowhere/at/all.json"], "can't write '/nowhere/at/all.json'"),
            (["validate", "--json", os.curdir], "can't write"),
            (["validate", "--json", ""], "can't write"),
            (["validate", "--sec", "5"], "--sec"),
            (["validate", "surplus"], "surplus"),
            (["node-flags", "--memory-limit", "much"], "not 'much'"),
            (["node-flags", "--memory-limit", "0"], "not '0'"),
            (["node-flags", "--memory-limit=-5MB"], "not '-5MB'"),
            (["node-flags", "--memory-limit", "9999999999GB"], "memory_limit must be"),
            (["node-flags", "--memory-limit", "120%"], "not '120%'"),
            (["node-flags", "--memory-limit", "20MB"], "32 MB or more"),
            (["node-flags", "--memory-limit", "x\ny"], "memory_limit"),
            (["node-flags", "--share", "0"], "above 0 and up to 1, not '0'"),
            (["node-flags", "--share", "1.5"], "not '1.5'"),
            (["node-flags", "--share", "nan"], "not 'nan'"),
            (["node-flags", "--share", "most"], "not 'most'"),
            (["node-flags", "--sh", "0.5"], "--sh"),
            (["node-flags", "surplus"], "surplus"),
        ],
    )
    def test_bad_ones_end_in_one_line_and_2(self, arguments, complaint, capsys):
        for needed in {name for names in NEEDS.values() for name in names}:
            pytest.importorskip(needed)
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert complaint in shown.err

    def test_a_file_that_is_there_survives_a_refusal(self, tmp_path, capsys):
        kept, new = tmp_path / "kept.json", tmp_path / "new.json"
        kept.write_text("mine")
        for path in (kept, new):
            with pytest.raises(SystemExit):
                cli.main(["validate", "--json", str(path), "--seconds", "0.01"])
        capsys.readouterr()
        assert kept.read_text() == "mine"
        assert not new.exists()

    @pytest.mark.parametrize("missing", ["rich", "pydantic", "cachetools", "msgspec", "uuid_utils"])
    def test_a_missing_extra_is_named_in_one_line(self, missing, capsys, monkeypatch):
        monkeypatch.setattr(cli, "find_spec", lambda name: None if name == missing else object())
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate"])
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        assert "pip install synthex-fast[validate]" in shown.err
        assert missing in shown.err

    def test_version_and_help_are_no_errors(self, capsys):
        for arguments in (["--version"], ["--help"], ["validate", "--help"]):
            with pytest.raises(SystemExit) as ended:
                cli.main(arguments)
            assert ended.value.code == 0
        assert "--seconds" in capsys.readouterr().out

    def test_the_command_line_alone_imports_no_extra(self):
        extras = "{'rich', 'pydantic', 'msgspec', 'cachetools', 'psutil', 'numpy'}"
        assert run(f"import sys, synthex_fast.cli; print({extras} & set(sys.modules))") == "set()\n"


class TestNodeFlags:
    def test_they_are_one_line_fit_for_a_command(self, capsys):
        from synthex_fast import node_heap_flags

        assert cli.main(["node-flags", "--memory-limit", "512MB"]) == 0
        assert capsys.readouterr().out == "--max-old-space-size=336 --max-semi-space-size=16\n"
        assert cli.main(["node-flags"]) == 0
        assert capsys.readouterr().out.split() == node_heap_flags()

    @pytest.mark.parametrize("size", ["536870912", "524288KB", "512MB", "0.5GB", "512mib"])
    def test_sizes_are_read_as_bytes_kb_mb_gb(self, size, capsys):
        assert cli.main(["node-flags", "--memory-limit", size, "--share", "0.5"]) == 0
        assert capsys.readouterr().out == "--max-old-space-size=232 --max-semi-space-size=8\n"

    def test_a_percentage_is_of_the_container_or_host(self, capsys):
        from synthex_fast import node_options

        assert cli.main(["node-flags", "--memory-limit", "50%"]) == 0
        assert capsys.readouterr().out == node_options("50%") + "\n"

    def test_the_environments_form(self, capsys):
        assert cli.main(["node-flags", "--memory-limit", "512MB", "--env"]) == 0
        assert capsys.readouterr().out == "NODE_OPTIONS=--max-old-space-size=336 --max-semi-space-size=16\n"

    def test_the_environments_own_options_stay_and_win(self, capsys, monkeypatch):
        monkeypatch.setenv("NODE_OPTIONS", "--enable-source-maps --max_semi_space_size=8")
        assert cli.main(["node-flags", "--memory-limit", "512MB", "--env"]) == 0
        assert capsys.readouterr().out == (
            "NODE_OPTIONS=--enable-source-maps --max_semi_space_size=8 --max-old-space-size=336\n"
        )

    @pytest.mark.skipif(shutil.which("node") is None or os.name == "nt", reason="needs node and a shell")
    @pytest.mark.parametrize("form", ["$({}) ", "", 'env "$({} --env)" '])
    def test_the_shell_hands_them_to_node(self, form):
        flags = f"{shlex.join(COMMAND)} node-flags --memory-limit 512MB"
        code = shlex.quote("require('v8').getHeapStatistics().heap_size_limit")
        if form.startswith("$"):
            line = f"node {form.format(flags)} -p {code}"
        elif form:
            line = f"{form.format(flags)} node -p {code}"
        else:
            line = f'export "$({flags} --env)" && node -p {code}'
        shown = subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, env=_environment(), check=True, timeout=60
        )
        assert int(shown.stdout) == 384 * 2**20

    def test_it_starts_without_what_it_does_not_need(self):
        code = (
            "import sys\n"
            "from synthex_fast import cli\n"
            "cli.main(['node-flags', '--memory-limit', '512MB'])\n"
            "heavy = {'numpy', 'rich', 'pydantic', 'asyncio', 'logging', 'synthex_fast.validate.rounds'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        assert run(code).splitlines()[-1] == "[]"


class TestParts:
    """Of a run of several parts, which are not run here."""

    @pytest.fixture
    def ended(self, monkeypatch):
        pytest.importorskip("matplotlib")
        import validation_results

        def run(results, *_):
            results.__dict__.update(validation_results.made(http=False, limit=False).__dict__)

        monkeypatch.setattr(rounds, "run", run)

    def test_an_interruption_of_a_later_one_is_one_of_the_run(self, ended, tmp_path, monkeypatch, capsys):
        def interrupted(*_):
            raise KeyboardInterrupt

        path = tmp_path / "results.json"
        arguments = ["validate", "--collections", "9", "--json", str(path)]
        monkeypatch.setattr(garbage, "run", interrupted)
        assert cli.main(arguments) == cli.INTERRUPTED
        assert "interrupted, finished rounds only" in capsys.readouterr().out
        assert json.loads(path.read_text())["complete"] is False
        monkeypatch.setattr(garbage, "run", lambda *_: None)
        assert cli.main(arguments) == 0
        assert "interrupted" not in capsys.readouterr().out
        assert json.loads(path.read_text())["complete"] is True

    @pytest.mark.skipif(sys.platform == "win32", reason="has no /dev/stdout")
    def test_json_to_where_the_table_goes_comes_after_it(self, tmp_path):
        printed = tmp_path / "printed"
        code = """
            from pathlib import Path
            from synthex_fast import cli
            print("the table")
            cli._write_whole(Path("/dev/stdout"), "the results")
        """
        with printed.open("w") as file:
            subprocess.run(
                [sys.executable, "-c", textwrap.dedent(code)], stdout=file, check=True, env=_environment()
            )
        assert printed.read_text() == "the table\nthe results"

    def test_a_failure_of_a_later_one_leaves_what_is_finished(self, ended, tmp_path, monkeypatch, capsys):
        def failing(*_):
            raise rounds.ValidationError("the process of arm 'current' exited with status 3")

        written, page = tmp_path / "results.json", tmp_path / "page.html"
        monkeypatch.setattr(garbage, "run", failing)
        arguments = ["validate", "--collections", "9", "--json", str(written), "--html", str(page)]
        assert cli.main(arguments) == 1
        shown = capsys.readouterr()
        assert "it failed, finished rounds only" in shown.out
        assert shown.err.splitlines()[-1] == (
            "synthex-fast validate: the process of arm 'current' exited with status 3"
        )
        found = json.loads(written.read_text())
        assert found["complete"] is False
        assert found["failure"] == "the process of arm 'current' exited with status 3"
        assert "This run failed: the process of arm &#x27;current&#x27;" in page.read_text()

    @pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX has them")
    def test_sigterm_while_results_are_written_ends_in_order(self, ended, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(cli, "_page", lambda _: os.kill(os.getpid(), signal.SIGTERM))
        path = tmp_path / "page.html"
        assert cli.main(["validate", "--html", str(path)]) == cli.TERMINATED
        assert not path.exists()


def running(*arguments):
    """The comparison under way, on one arm."""
    return Running("validate", "--arms", "synthex_fast", "--seconds", "10", *arguments)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX has them")
@pytest.mark.slow
class TestInterruption:
    def test_ctrl_c_shows_what_is_finished_and_leaves_no_process(self, tmp_path):
        path = tmp_path / "partial.json"
        command = running("--json", str(path))
        command.wait_for("round 2 of")
        command.popen.send_signal(signal.SIGINT)
        shown, complaints = command.popen.communicate(timeout=30)
        assert command.popen.returncode == 130
        assert command.no_child_is_left()
        assert "interrupted, finished rounds only" in shown
        assert "Traceback" not in complaints
        found = json.loads(path.read_text())
        assert found["complete"] is False
        assert found["finished_rounds"] == len(found["rounds"]["synthex_fast"]) == 1
        assert "medians of 1 round," in shown

    def test_ctrl_c_before_anything_is_measured(self):
        command = running()
        command.wait_for("filling the caches")
        command.popen.send_signal(signal.SIGINT)
        shown, complaints = command.popen.communicate(timeout=30)
        assert command.popen.returncode == 130
        assert shown == ""
        assert "interrupted before anything was measured" in complaints

    def test_sigterm_ends_in_order_too(self):
        command = running()
        command.wait_for("round 1 of")
        command.popen.send_signal(signal.SIGTERM)
        shown, _ = command.popen.communicate(timeout=30)
        assert command.popen.returncode == 143
        assert command.no_child_is_left()
        assert "bytes in caches and pools" in shown

    def test_sigkill_leaves_no_orphan(self):
        command = running()
        command.wait_for("round 1 of")
        command.popen.kill()
        command.popen.communicate(timeout=30)
        assert command.no_child_is_left()

    def test_a_worker_that_dies_is_a_clear_error(self):
        command = running()
        command.wait_for("round 1 of")
        time.sleep(0.1)
        for child in command.children:
            child.kill()
        shown, complaints = command.popen.communicate(timeout=30)
        assert command.popen.returncode == 1
        assert shown == ""
        assert "validate: the process of arm 'synthex_fast' was killed by signal 9" in complaints
        assert "Traceback" not in complaints
