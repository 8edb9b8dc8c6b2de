"""`synthex-fast validate --compare`: which differences are shown as such, and which files are refused."""

import json
import math

import pytest

pytest.importorskip("rich")

import validation_results
from rich.console import Console

from synthex_fast import cli
from synthex_fast.validate import compare


@pytest.fixture
def files(tmp_path):
    """``write(name, content)``: a file, and its path as text."""

    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def verdicts(first, second, arm="synthex_fast"):
    return {each.key: each.verdict for each in compare.compare(first, second)[arm]}


def shown(first, second, width=120):
    console = Console(width=width)
    with console.capture() as capture:
        compare.show(first, second, console)
    return capture.get()


@pytest.mark.slow
class TestVerdicts:
    def test_what_became_faster_is_better_and_the_rest_is_noise(self):
        before = validation_results.found(seed=1, http=False, limit=False)
        after = validation_results.found(seed=2, http=False, limit=False, faster=1.5)
        found = verdicts(before, after)
        assert found["throughput"] == compare.BETTER
        assert found["latency_p99"] == compare.BETTER
        assert found["reuse_rate"] == compare.SAME
        # Whatever noise may have made of one of them, it is another arm whose code did not change.
        others = [verdicts(before, after, arm)["throughput"] for arm in ("current", "tuned_by_hand")]
        assert others == [compare.NOISE] * 2
        assert verdicts(after, before)["throughput"] == compare.WORSE

    def test_a_small_change_in_much_noise_is_noise(self):
        before = validation_results.found(seed=3, http=False, limit=False, noise=0.4)
        after = validation_results.found(seed=4, http=False, limit=False, noise=0.4, faster=1.05)
        assert verdicts(before, after)["throughput"] == compare.NOISE

    def test_noise_alone_is_seldom_called_a_difference(self):
        differing = judged = 0
        for seed in range(40):
            before = validation_results.found(("current",), seed=2 * seed, http=False, limit=False, noise=0.2)
            after = validation_results.found(
                ("current",), seed=2 * seed + 1, http=False, limit=False, noise=0.2
            )
            found = verdicts(before, after, "current")["throughput"]
            judged += 1
            differing += found in (compare.BETTER, compare.WORSE)
        # 5 % expected; 15 % would be three standard deviations.
        assert differing / judged <= 0.15

    def test_the_same_file_has_no_difference(self):
        found = validation_results.found()
        assert set(verdicts(found, found).values()) <= {compare.SAME, compare.NOISE}

    def test_a_single_value_is_not_judged(self):
        before, after = validation_results.found(), validation_results.found(faster=1.5)
        (row,) = (
            each for each in compare.compare(before, after)["synthex_fast"] if each.key == "cache_bytes"
        )
        assert row.verdict == compare.SINGLE
        assert row.change == pytest.approx(1 / 1.5 - 1)
        assert row.interval is None

    def test_rows_of_neither_direction_only_differ(self):
        before, after = validation_results.found(), validation_results.found()
        for found, value in ((before, 1.0), (after, 2.0)):
            for row in found["rows"]:
                if row["key"] == "sampling_interval":
                    row["arms"]["current"]["values"] = [value] * 7
        assert verdicts(before, after, "current")["sampling_interval"] == compare.CHANGED

    def test_from_nothing_there_is_no_percentage(self):
        before, after = validation_results.found(), validation_results.found()
        for found, values in ((before, [0.0] * 7), (after, [3.0] * 7)):
            for row in found["rows"]:
                if row["key"] == "full_collections_per_hour":
                    row["arms"]["current"]["values"] = values
        (row,) = (
            each
            for each in compare.compare(before, after)["current"]
            if each.key == "full_collections_per_hour"
        )
        assert (row.change, row.verdict) == (math.inf, compare.WORSE)
        assert compare.change_text(row) == "from 0"


@pytest.mark.slow
class TestShown:
    def test_both_medians_the_change_and_the_count_are_there(self):
        before = validation_results.found(seed=1)
        after = validation_results.found(seed=2, faster=1.5)
        text = shown(before, after)
        (row,) = (each for each in compare.compare(before, after)["synthex_fast"] if each.key == "throughput")
        for number in (row.first.median, row.second.median):
            assert f"{number:,.0f}" in text
        assert compare.change_text(row) in text
        assert "better" in text
        assert "not judged" in text
        assert all(arm in text for arm in before["arms"])

    @pytest.mark.parametrize("width", [80, 120])
    def test_fits(self, width):
        text = shown(validation_results.found(seed=1), validation_results.found(seed=2), width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text

    @pytest.mark.parametrize(
        ("path", "value", "warning"),
        [
            (("environment", "processor"), "another", "different processor: "),
            (("environment", "python"), "3.99.0", "different Python: "),
            (("environment", "platform"), "Plan 9", "different system: "),
            (("seed",), 99, "different seed: 1 and 99"),
            (("complete",), False, "the second file is of a run that was interrupted"),
        ],
    )
    def test_other_conditions_are_warned_of(self, path, value, warning):
        before, after = validation_results.found(), validation_results.found()
        assert "Warning" not in shown(before, after, 300)
        place = after
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        assert f"Warning: {warning}" in shown(before, after, 300)


class TestCommand:
    def test_it_compares_and_runs_nothing(self, files, capsys):
        first = files("a.json", validation_results.found(seed=1))
        second = files("b.json", validation_results.found(seed=2, faster=1.5))
        assert cli.main(["validate", "--compare", first, second]) == 0
        out = capsys.readouterr().out
        assert "requests/s" in out
        assert "better" in out

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("{", "is not JSON"),
            ("[]", "was not written by synthex-fast validate --json"),
            ("{}", "was not written by synthex-fast validate --json"),
            ('{"format": 1}', "has format 1, this version compares files of format 2"),
            ('{"format": 2}', "is damaged"),
            ('{"format": 2, "rows": 3}', "is damaged"),
            ('{"format": 2, "rows": [{"arms": {"current": {"values": ["x"]}}}]}', "is damaged"),
            ("[" * 100_000, "is not JSON"),
            (
                '{"format": 2, "rows": [{"arms": {"current": {"values": [%s]}}}]}' % ("9" * 400),
                "is damaged",
            ),
        ],
    )
    def test_other_files_are_refused_in_one_line(self, files, capsys, content, complaint):
        good, bad = files("good.json", validation_results.found()), files("bad.json", content)
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(SystemExit) as ended:
                cli.main(["validate", "--compare", *pair])
            assert ended.value.code == 2
            shown = capsys.readouterr()
            assert shown.out == ""
            assert shown.err.count("\n") == 1
            assert "bad.json" in shown.err
            assert complaint in shown.err

    def test_a_row_that_lacks_something_is_damage(self, files, capsys):
        for lost in ("label", "unit", "section", "more_is_better", "key"):
            found = validation_results.found()
            del found["rows"][3][lost]
            bad = files("bad.json", found)
            with pytest.raises(SystemExit):
                cli.main(["validate", "--compare", bad, bad])
            assert "is damaged" in capsys.readouterr().err

    def test_unreadable_files_and_other_arms_are_refused(self, files, capsys, tmp_path):
        good = files("good.json", validation_results.found())
        fewer = files("fewer.json", validation_results.found(("current", "synthex_fast")))
        binary = tmp_path / "binary.json"
        binary.write_bytes(b"\xff\xfe\x00")
        for other, complaint in (
            (str(tmp_path / "nowhere.json"), "No such file"),
            (str(tmp_path), "can't read"),
            (str(binary), "not text"),
            (fewer, "different arms"),
        ):
            with pytest.raises(SystemExit) as ended:
                cli.main(["validate", "--compare", good, other])
            assert ended.value.code == 2
            shown = capsys.readouterr()
            assert shown.err.count("\n") == 1
            assert complaint in shown.err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--seconds", "3"],
            ["--json", "x.json"],
            ["--from", "x.json"],
            ["--limit", "256MB"],
            ["--collections", "3"],
            ["--http"],
            ["--rate", "3"],
            ["--heap-objects", "3"],
            ["--port", "3"],
            ["--arms", "current"],
            ["--seed", "1"],
        ],
    )
    def test_what_needs_a_run_is_refused_beside_it(self, arguments, files, capsys, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        good = files("good.json", validation_results.found())
        with pytest.raises(SystemExit) as ended:
            cli.main(["validate", "--compare", good, good, *arguments])
        assert ended.value.code == 2
        assert f"not allowed with {arguments[0]}" in capsys.readouterr().err
