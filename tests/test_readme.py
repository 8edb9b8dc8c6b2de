"""The README's examples run, and its commands are those that are checked."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests run outside a checkout")


def test_the_examples_say_what_happens():
    # Markdown's fences would otherwise belong to what an example is expected to print.
    text = re.sub(r"^```.*$", "", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, {}, "README", str(README), 0)
    assert len(examples.examples) > 20
    output = []
    failures = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(
        examples, out=output.append
    )
    assert failures.failed == 0, "".join(output)


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

    plain = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "_interpreter", "cli"}
    failed = {}
    for name in (*sorted(plain), *MODULES):
        module = import_module(f"synthex_fast.{name}")
        finder = doctest.DocTestFinder(exclude_empty=True)
        output = []
        for test in finder.find(module, module=False, globs=vars(module).copy()):
            if doctest.DocTestRunner().run(test, out=output.append).failed:
                failed[test.name] = "".join(output)
    assert not failed, "\n".join(failed.values())
