"""The documentation: its examples run, its links lead somewhere, and its API pages describe every public name.

That the pages build without a warning, and describe every member of every public class, is checked by ``.ci/docs``.
"""

import importlib.util
import re
import sys

import pytest
from examples import PAGES, PROGRAMS, README, ROOT, blocks, headings, links, needed, run

pytestmark = pytest.mark.skipif(not PAGES, reason="the tests run outside a checkout")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


WITH_EXAMPLES = [page for page in PAGES if any(block.language in PROGRAMS for block in blocks(page))]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name_of)
def test_the_examples_say_what_happens(path):
    missing = [name for name in needed(path) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    failures, _ = run(path)
    assert not failures, failures


def test_illustrations_are_rare_and_give_their_reason():
    programs = [block for page in (README, *PAGES) for block in blocks(page) if block.language in PROGRAMS]
    marked = [block for block in programs if block.not_run]
    assert len(programs) > 50
    assert len(marked) * 8 < len(programs)


def test_programs_in_other_languages_are_marked():
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("sh", "bash", "cython", "js"):
                assert block.not_run, f"{name_of(page)}, line {block.line}: not run, and not marked"


def test_every_block_names_its_language():
    for page in (README, *PAGES):
        assert all(block.language for block in blocks(page)), name_of(page)


@pytest.mark.parametrize("path", [README, *PAGES], ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(path):
    for file, heading in links(path):
        assert file.exists(), f"{name_of(path)} links to {file}"
        assert not heading or heading in headings(file), f"{name_of(path)} links to #{heading} in {file}"


def test_every_page_is_in_a_table_of_contents():
    listed = {ROOT / "docs" / "index.md"}
    for page in PAGES:
        for block in blocks(page):
            if block.language == "{toctree}":
                for line in block.text.split():
                    listed |= set((page.parent / line).parent.glob(f"{(page.parent / line).name}.md"))
    assert set(PAGES) == listed


def test_the_api_pages_have_every_public_name(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "_extensions"), *sys.path])
    from public_names import public_names

    described = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        described |= set(re.findall(r"^\.\. auto(?:class|function|data):: ([\w.]+)", text, re.MULTILINE))
        for module in re.findall(r"^\.\. automodule:: ([\w.]+)", text, re.MULTILINE):
            # A page may be the only place that names it.
            names = importlib.import_module(module).__all__
            described |= {f"{module}.{name}" for name in names}
    assert not set(public_names()) - described


def test_the_promises_name_tests_that_exist():
    page = ROOT / "docs" / "promises.md"
    named = re.findall(r"`(test_\w+)(?:::(test_\w+))?`", page.read_text(encoding="utf-8"))
    assert len(named) > 40
    for module, function in named:
        source = ROOT / "tests" / f"{module}.py"
        assert source.exists(), module
        if function:
            assert f"def {function}(" in source.read_text(encoding="utf-8"), f"{module}::{function}"
