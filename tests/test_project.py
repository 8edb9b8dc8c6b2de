"""What the project says about itself: the version, the paths in its guides, the sessions that the workflows call."""

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import synthex_fast

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "RELEASING.md", "SECURITY.md")
in_a_checkout = pytest.mark.skipif(
    not (ROOT / "CONTRIBUTING.md").exists(), reason="the tests run outside a checkout"
)


def test_the_version_is_stated_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", synthex_fast.__version__)
    try:
        installed = metadata.distribution("synthex-fast")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    if Path(installed.locate_file("synthex_fast")).resolve() != Path(synthex_fast.__file__).parent.resolve():
        pytest.skip("the tests run on another copy than the installed one")
    assert installed.version == synthex_fast.__version__


@in_a_checkout
def test_the_version_elsewhere_is_the_same():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project]")[1].split("\n[")[0]
    assert 'dynamic = ["version"]' in project
    assert f"\nversion: {synthex_fast.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@in_a_checkout
@pytest.mark.parametrize("page", PAGES)
def test_paths_in_the_guides_exist(page):
    code = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text(encoding="utf-8"))
    words = {word for text in code for word in text.split()}
    paths = {
        word
        for word in words
        if re.match(r"(src|tests|bench|docs|\.ci|\.github)/|[A-Z]+\.(md|cff)$|\w+\.toml$", word)
    }
    assert paths
    assert sorted(path for path in paths if not list(ROOT.glob(path))) == []


@in_a_checkout
def test_each_module_is_on_the_map():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## A map of the house")[1]
    package = ROOT / "src" / "synthex_fast"
    parts = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    parts |= {path.stem for path in package.glob("*.pyx")}
    parts |= {path.stem for path in package.glob("*.py") if not path.name.startswith("_")}
    assert sorted(part for part in parts if f"src/synthex_fast/{part}" not in text) == []


@in_a_checkout
def test_the_workflows_call_sessions_and_scripts_that_exist():
    noxfile = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {
        node.name for node in noxfile.body if isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    called = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        called |= set(re.findall(r"nox -s (\w+)", text))
        for names in re.findall(r"^ +session: \[(.+)\]$", text, re.MULTILINE):
            called |= set(names.split(", "))
        for script in re.findall(r"(?:bash|python) (\.ci/\w+(?:\.py)?)", text):
            assert (ROOT / script).exists(), f"{path.name} calls {script}"
    assert {"tests", "lint", "sanitizers"} <= called
    assert called <= sessions


@in_a_checkout
def test_a_tag_that_the_sources_disagree_with_is_refused():
    checked = subprocess.run(
        [sys.executable, ROOT / ".ci" / "check_release.py", "v0.0.0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 1
    assert f"__version__ asks for 'v{synthex_fast.__version__}'" in checked.stderr
