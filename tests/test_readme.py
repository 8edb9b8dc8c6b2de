"""The README is short, its examples run, its figures are measured ones, and its commands are those that are checked.

The rest of the documentation is checked alike by ``test_docs.py``.
"""

import doctest
import re
from importlib.util import find_spec

import pytest
from examples import README, ROOT, run

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests run outside a checkout")


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_examples_say_what_happens():
    failures, count = run(README)
    assert not failures, failures
    assert count >= 9


def test_its_figures_are_rows_of_the_whole_table():
    def rows(path):
        text = path.read_text(encoding="utf-8").split("<!-- bench/report.py --markdown -->")[1]
        table = re.findall(r"^\|.*", text.split("<!-- end of bench/report.py -->")[0], re.MULTILINE)
        # The width of a column depends on the other rows.
        return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2:]]

    shown, measured = rows(README), rows(ROOT / "docs" / "performance.md")
    assert len(shown) > 10
    assert [row for row in shown if row not in measured] == []
    # A target that was missed is not for the small print.
    assert [row for row in measured if row[-1] == "MISS" and row not in shown] == []


def test_there_are_two_commands_and_both_make_their_own_environment():
    commands = re.findall(
        r"^```sh\n(.*?)\n```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(commands) == 2
    validate, tests = commands
    assert validate.endswith("synthex-fast validate")
    assert tests.endswith("-m pytest")
    for command in commands:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert "\n" not in command


def test_the_docstrings_examples_say_what_happens():
    from importlib import import_module

    from test_package import MODULES, PACKAGE

    plain = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
        if ">>> " in path.read_text(encoding="utf-8")
    }
    failed = {}
    for name in (*sorted(plain), *MODULES):
        try:
            module = import_module(f"synthex_fast.{name}")
        except ModuleNotFoundError as error:
            # What `synthex-fast validate` needs may not be installable on a new interpreter, and what its servers and
            # its page need is not in the extra for tests.
            needed = {"cachetools", "matplotlib", "msgspec", "pydantic", "rich", "starlette", "uuid_utils"}
            assert error.name in needed
            continue
        # Of a compiled module's members doctest can't tell the origin, so those that it imports are tested as well.
        own = False if name in MODULES else module
        output = []
        for test in doctest.DocTestFinder().find(module, module=own, globs=vars(module).copy()):
            source = "".join(example.source for example in test.examples)
            extras = [extra for extra in ("prometheus_client", "opentelemetry") if f" {extra}" in source]
            if any(find_spec(extra) is None for extra in extras):
                continue
            if doctest.DocTestRunner().run(test, out=output.append).failed:
                failed[test.name] = "".join(output)
    assert not failed, "\n".join(failed.values())
