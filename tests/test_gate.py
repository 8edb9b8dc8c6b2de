"""The comparison that `bench/gate.py` makes, without counting: what fails, what doesn't, and what it says."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def gate():
    if not (BENCH / "gate.py").exists():
        pytest.skip("the benches are not in this tree")
    with pytest.MonkeyPatch.context() as patch:
        # It imports `instructions` from its own directory.
        patch.syspath_prepend(str(BENCH))
        spec = importlib.util.spec_from_file_location("gate", BENCH / "gate.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "gate", module)
        spec.loader.exec_module(module)
        yield module


COUNTS = {"interpreter": 1000.0, "get": 100.0, "put": 200.0}
ELSEWHERE = "CPython 3.11.7 (GCC 12.2.0, x86_64)"


def baseline(**changed):
    return {
        "interpreter": ELSEWHERE,
        "compiler": "gcc 12",
        "cython": "3.3.1",
        "instructions": COUNTS,
        **changed,
    }


def kinds(found):
    return [(each.kind, each.name) for each in found]


def test_equal_counts_pass(gate):
    assert gate.differences(COUNTS, dict(COUNTS)) == []
    failed, line = gate.verdict([], 3, "the baseline")
    assert not failed
    assert line == "3 hot paths compared with the baseline, none slower or faster by more than 3%"


@pytest.mark.parametrize(
    ("after", "kind"), [(103.0, None), (103.1, "slower"), (97.0, None), (96.9, "faster")]
)
def test_three_percent_either_way_is_tolerated(gate, after, kind):
    found = gate.differences(COUNTS, {**COUNTS, "get": after})
    assert kinds(found) == ([] if kind is None else [(kind, "get")])


def test_growth_fails_and_names_the_path_with_both_counts(gate):
    (slower,) = found = gate.differences(COUNTS, {**COUNTS, "get": 110.0})
    assert str(slower).split() == ["slower", "get", "100.0", "->", "110.0", "+10.0%"]
    failed, line = gate.verdict(found, 3, "the baseline")
    assert failed
    assert "1 slower by more than 3%" in line and "renew" not in line


def test_shrinking_passes_and_suggests_a_new_baseline(gate):
    failed, line = gate.verdict(gate.differences(COUNTS, {**COUNTS, "get": 50.0}), 3, "the baseline")
    assert not failed
    assert line.endswith("1 faster by more than 3%; renew the baseline with bench/gate.py --renew")


def test_an_operation_without_a_baseline_fails(gate):
    (new,) = found = gate.differences(COUNTS, {**COUNTS, "touch": 70.0})
    assert str(new).split() == ["new", "touch", "->", "70.0"]
    failed, line = gate.verdict(found, 3, "the baseline")
    assert failed and "1 new" in line and "--renew" in line


def test_an_operation_that_is_gone_fails(gate):
    (missing,) = found = gate.differences(COUNTS, {"interpreter": 1000.0, "get": 100.0})
    assert str(missing).split() == ["missing", "put", "200.0", "->"]
    failed, line = gate.verdict(found, 2, "the baseline")
    assert failed and "1 missing" in line and "--renew" in line


def test_a_baseline_belongs_to_its_interpreter_and_compiler(gate):
    known = gate.read_baseline(json.dumps(baseline()))
    assert gate.why_not(known, ELSEWHERE, "gcc 12", COUNTS) is None
    other = ELSEWHERE.replace("3.11.7", "3.12.1")
    assert gate.why_not(known, other, "gcc 12", COUNTS) == (
        f"the baseline is of another interpreter ({ELSEWHERE}, here {other})"
    )
    assert gate.why_not(known, ELSEWHERE, "clang 18", COUNTS) == (
        "the baseline is of another compiler (gcc 12, here clang 18)"
    )


def test_another_build_of_the_same_interpreter_is_noticed_by_its_count(gate):
    known = gate.read_baseline(json.dumps(baseline()))
    assert gate.why_not(known, ELSEWHERE, "gcc 12", {**COUNTS, "interpreter": 1009.0}) is None
    reason = gate.why_not(known, ELSEWHERE, "gcc 12", {**COUNTS, "interpreter": 900.0})
    assert reason.endswith("is another build (1000 instructions there, 900 here)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "it must be an object with the keys interpreter, compiler, cython, instructions"),
        (json.dumps({"interpreter": ELSEWHERE}), "it must be an object with the keys"),
        (json.dumps(baseline(compiler=12)), "compiler must be a text, not 12"),
        (json.dumps(baseline(instructions=[1])), "instructions must be an object with a count"),
        (json.dumps(baseline(instructions={"get": 1})), "a count for 'interpreter' at least"),
        *(
            (
                json.dumps(baseline(instructions={**COUNTS, "get": value})),
                "the count of 'get' must be a number above 0",
            )
            for value in ("1", None, True, 0, -1, float("nan"), float("inf"))
        ),
    ],
)
def test_a_malformed_baseline_is_refused_in_one_line(gate, text, message):
    with pytest.raises(gate.BaselineError) as caught:
        gate.read_baseline(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_malformed_baseline_fails_before_anything_is_counted(gate, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gate, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(gate, "count_all", None)
    assert gate.compare("python") == 1
    (tmp_path / "baseline.json").write_text("{")
    assert gate.compare("python") == 1
    missing, malformed = capsys.readouterr().out.splitlines()
    assert missing.startswith("bench/baseline.json: ") and "No such file" in missing
    assert malformed.startswith("bench/baseline.json: it is not JSON")


def compared(gate, monkeypatch, tmp_path, counts, *, version=ELSEWHERE, before=None):
    """What `compare` returns if these are the counts, and ``before`` those of the baseline's commit built here."""
    monkeypatch.setattr(gate, "BASELINE", tmp_path / "baseline.json")
    gate.BASELINE.write_text(json.dumps(baseline()))
    monkeypatch.setattr(gate, "describe", lambda python: (version, "gcc 12", "3.4.0"))
    monkeypatch.setattr(gate, "build_before", lambda python, folder: ("abc1234", folder))
    monkeypatch.setattr(
        gate, "count_all", lambda python, names, path=None: counts if path is None else before
    )
    return gate.compare("python")


def test_the_last_line_is_the_summary(gate, monkeypatch, tmp_path, capsys):
    assert compared(gate, monkeypatch, tmp_path, COUNTS) == 0
    assert compared(gate, monkeypatch, tmp_path, {**COUNTS, "get": 150.0}) == 1
    passed, slower, note, failed = capsys.readouterr().out.splitlines()
    assert passed.startswith("3 hot paths compared with the baseline (CPython 3.11.7")
    assert slower.startswith("slower   get")
    assert note == "note: the baseline was made by Cython 3.3.1, and 3.4.0 is installed here"
    assert failed.startswith("3 hot paths compared") and "1 slower" in failed


def test_another_interpreter_is_compared_with_the_baselines_commit_built_there(
    gate, monkeypatch, tmp_path, capsys
):
    other = ELSEWHERE.replace("3.11.7", "3.12.1")
    # Twice the baseline's counts, but no more than the older sources take here; `put` is newer than they are.
    counts = {name: 2 * count for name, count in COUNTS.items()}
    before = {**counts, "put": gate.CountError("no such method")}
    assert compared(gate, monkeypatch, tmp_path, counts, version=other, before=before) == 0
    assert "2 hot paths compared with abc1234, built here because" in capsys.readouterr().out
    counts["get"] *= 1.1
    assert compared(gate, monkeypatch, tmp_path, counts, version=other, before=before) == 1
    assert "slower   get" in capsys.readouterr().out


def test_an_operation_that_fails_is_an_error(gate, monkeypatch, tmp_path):
    with pytest.raises(gate.CountError, match="get: no such method"):
        compared(gate, monkeypatch, tmp_path, {**COUNTS, "get": gate.CountError("no such method")})


def test_without_valgrind_it_says_that_nothing_was_compared(gate, monkeypatch, capsys):
    monkeypatch.setattr(gate.shutil, "which", lambda name: None if name == "valgrind" else name)
    monkeypatch.setattr(sys, "argv", ["gate.py"])
    assert gate.main() == 0
    monkeypatch.setattr(sys, "argv", ["gate.py", "--renew"])
    assert gate.main() == 2
    assert capsys.readouterr().out == "skip: no hot path compared: valgrind is not installed\n" * 2


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"rev-parse": "true"}, "this is a shallow clone, without the commit of the baseline"),
        ({"rev-parse": "false", "log": ""}, "no commit has a baseline"),
    ],
)
def test_history_that_lacks_the_baselines_commit_is_not_compared_with_itself(
    gate, monkeypatch, tmp_path, answers, message
):
    monkeypatch.setattr(gate.shutil, "which", lambda name: name)
    monkeypatch.setattr(gate, "git", lambda command, *rest: answers[command])
    with pytest.raises(gate.Skip, match=message):
        gate.build_before(sys.executable, tmp_path)


def test_each_operation_is_in_the_baseline(gate):
    from instructions import OPERATIONS, script

    known = gate.read_baseline((BENCH / "baseline.json").read_text())
    assert list(known.instructions) == list(OPERATIONS)
    for name, operation in OPERATIONS.items():
        compile(script(operation), name, "exec")
