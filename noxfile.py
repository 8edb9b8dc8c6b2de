"""One session for each thing that the workflows do: ``nox -l`` lists them, ``nox -s tests`` runs one.

The checks are scripts in ``.ci``, which make their own environments and also run without nox.
"""

import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.sessions = ["everything"]
nox.options.error_on_missing_interpreters = True

PYPROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))


def script(session: nox.Session, name: str, *arguments: str) -> None:
    session.run("bash", f".ci/{name}", *arguments, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests on the interpreter that runs nox; arguments go to pytest."""
    try:
        session.install(".[test]")
    except nox.command.CommandFailed:
        # An interpreter may be too new for the wheels of what `validate` needs; its tests are then skipped.
        session.install(".", "pytest", "hypothesis", "Cython", "setuptools")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(venv_backend="none")
def everything(session: nox.Session) -> None:
    """All that must pass before a change is merged; arguments choose steps."""
    script(session, "run", *session.posargs)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Ruff, cython-lint, mypy and stubtest."""
    script(session, "run", "lint")


@nox.session(venv_backend="none")
def workflows(session: nox.Session) -> None:
    """The workflows against their schema and zizmor's rules."""
    script(session, "workflows")


@nox.session(venv_backend="none")
def http(session: nox.Session) -> None:
    """The tests of `synthex-fast validate --http`, with its servers."""
    script(session, "run", "http")


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The documentation, without warnings, and its examples."""
    script(session, "docs")


@nox.session(venv_backend="none")
def wheels(session: nox.Session) -> None:
    """The source distribution and a wheel, built offline and tested without a compiler; --all: every interpreter."""
    script(session, "wheels", *session.posargs)


@nox.session(venv_backend="none")
def chroot(session: nox.Session) -> None:
    """The wheel and the quick start in a root without a compiler (needs root's rights); --all: every interpreter."""
    script(session, "chroot", *session.posargs)


@nox.session
def gate(session: nox.Session) -> None:
    """Instruction counts of the hot paths against bench/baseline.json (needs valgrind)."""
    session.install(".")
    script(session, "gate", "python")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Timings beside the rivals."""
    session.install(".[bench]")
    session.run("python", "bench/report.py", "--quick", "--markdown")


@nox.session(venv_backend="none")
def sanitizers(session: nox.Session) -> None:
    """The tests with address and undefined-behaviour sanitizers, and those with threads with the thread sanitizer.

    Arguments go to .ci/sanitize, such as `thread` to run the latter only.
    """
    for arguments in [session.posargs] if session.posargs else [["address"], ["thread"]]:
        script(session, "sanitize", *arguments)


@nox.session(venv_backend="none")
def aarch64(session: nox.Session) -> None:
    """The tests of the core on an emulated AArch64 (needs root's rights)."""
    script(session, "aarch64")


@nox.session(venv_backend="none")
def musl(session: nox.Session) -> None:
    """The tests of the core with musl instead of glibc (needs root's rights)."""
    script(session, "musl")


@nox.session
def release_wheels(session: nox.Session) -> None:
    """The wheels of a release for this platform, into dist; arguments go to cibuildwheel."""
    session.install(*PYPROJECT["dependency-groups"]["cibuildwheel"])
    session.run("cibuildwheel", "--output-dir", "dist", *session.posargs)
