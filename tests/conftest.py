"""Fixtures that several test files share: failing allocations, leak checks, stress from threads, a memory control
group, and extensions that cimport the package."""

import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from array import array
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Its failing assertions show their operands, as those in tests do.
pytest.register_assert_rewrite("support")

# A TTLDict mixes hashes with a seed that is drawn when its module is imported, and that decides which keys share a
# place and so which are evicted. Fixed here: a simulation ends alike in each run. Another seed is another run.
TABLE_SEED = int(os.environ.get("SYNTHEX_FAST_TEST_SEED", "1"))


class SeededTable:
    """Imports that module, and it alone, with random bytes that are the seed's."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target) if name == "synthex_fast._ttl" else None
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def seeded(module):
            drawn, os.urandom = os.urandom, lambda size: TABLE_SEED.to_bytes(size, "little")
            try:
                execute(module)
            finally:
                os.urandom = drawn

        spec.loader.exec_module = seeded
        return spec


sys.meta_path.insert(0, SeededTable)


def without_opentelemetry(register_at_fork):
    """`os.register_at_fork`, but not for OpenTelemetry's SDK: in each child, it has every provider of the process start
    threads, which takes seconds when there are many, and tests leave them to the garbage collector."""

    def register(**hooks):
        if not any(
            str(getattr(hook, "__module__", None)).startswith("opentelemetry.") for hook in hooks.values()
        ):
            register_at_fork(**hooks)

    return register


if hasattr(os, "register_at_fork"):
    os.register_at_fork = without_opentelemetry(os.register_at_fork)

import support  # noqa: E402

# No test may depend on how fast the machine is, so hypothesis has no deadline either.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# A run started in the background inherits "ignore interrupts", and so would the children that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DEBUG_BUILD = hasattr(sys, "gettotalrefcount")
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


# Tests that use these fixtures are marked accordingly. The last three compile an extension.
IMPLIED = {
    "hammer": "stress",
    "leaks_nothing": "slow",
    "blocks": "slow",
    "borrower": "slow",
    "inside": "slow",
}


def pytest_report_header():
    return f"SYNTHEX_FAST_TEST_SEED={TABLE_SEED}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests by their fixtures, before ``-m`` chooses among them, and skip those that can't run here."""
    for item in items:
        for fixture, marker in IMPLIED.items():
            if fixture in item.fixturenames:
                item.add_marker(marker)
        if item.name == "runTest":
            # A state machine of hypothesis, which is a test case with this one method.
            item.add_marker("stress")
        for marker, met in (("linux", sys.platform == "linux"), ("root", IS_ROOT)):
            given = item.get_closest_marker(marker)
            if given is not None and not met:
                reason = given.kwargs.get("reason")
                item.add_marker(
                    pytest.mark.skip(reason=f"needs {marker}: {reason}" if reason else f"needs {marker}")
                )


def _is_memory_error(error):
    """Python 3.14.4 forgets to set it if it can't allocate room for the items of a display, or a call, of over ten."""
    return isinstance(error, MemoryError) or (
        (3, 14) <= sys.version_info < (3, 14, 5)
        and type(error) is SystemError
        and str(error) == "error return without exception set"
    )


def _attempt(call, arguments, set_nomemory, limits, remove_mem_hooks):
    """Run the call with the hook in place: its exception or None, and whether an allocation was refused.

    Everything is a local already: between the two hook calls only the call and the probe allocate.
    """
    error = None
    reached = False
    try:
        set_nomemory(*limits)
        call(*arguments)
    except BaseException as e:
        remove_mem_hooks()
        error = e
    else:
        try:
            bytes(1000)
        except MemoryError:
            reached = True
    finally:
        remove_mem_hooks()
    return error, reached


@pytest.fixture
def fail_allocations():
    """``fail_allocations(call, *, check=None, prepare=None, most=2000) -> int``: every allocation fails once.

    Runs ``call`` with its n-th allocation failing, and again with all from the n-th on failing, for n = 1, 2,
    ... until the call gets through untouched; returns how many allocations that took. Each failure must be a
    `MemoryError`; the call may also succeed in spite of it. ``check`` runs after each failure (not after a
    success, which may change the object). ``prepare`` runs before each attempt, outside the window; its
    result is passed to ``call`` and ``check``.
    """
    _testcapi = pytest.importorskip("_testcapi")
    set_nomemory, remove_mem_hooks = _testcapi.set_nomemory, _testcapi.remove_mem_hooks

    def run(call, *, check=None, prepare=None, most=2000):
        def attempt(*limits):
            arguments = () if prepare is None else (prepare(),)
            enabled = gc.isenabled()
            gc.disable()
            try:
                error, reached = _attempt(call, arguments, set_nomemory, limits, remove_mem_hooks)
            finally:
                if enabled:
                    gc.enable()
            if error is not None:
                if not _is_memory_error(error):
                    raise AssertionError(f"allocation {limits} failed with {error!r}") from error
                error.__traceback__ = None
                if check is not None:
                    check(*arguments)
            return error is not None or reached

        attempt(10**9)  # fills caches, so that the first attempts don't differ from the later ones
        for n in range(most):
            if not attempt(n):
                break
            # One failure alone is harder: what follows succeeds and may act on a half-made state.
            attempt(n, n + 1)
        else:
            raise AssertionError(f"the call still reaches a failing allocation after {most}")
        return n

    return run


def _held():
    """Counts that must not grow: references and blocks on debug builds, bytes and blocks elsewhere."""
    for _ in range(3):
        gc.collect()
    if DEBUG_BUILD:
        return sys.gettotalrefcount(), sys.getallocatedblocks()
    return tracemalloc.get_traced_memory()[0], sys.getallocatedblocks()


@pytest.fixture(autouse=True, scope="module")
def _frozen_heap():
    """Full collections need not look at what the modules before have made, which takes most of their time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def leaks_nothing():
    """``leaks_nothing(scenario, *, runs=3, windows=6)``: repeated runs leave no more references and blocks.

    A leak grows in every window, a cache that fills does not; so the smallest growth must be zero.
    """

    def check(scenario, *, runs=3, windows=6):
        tracing = tracemalloc.is_tracing()
        if not DEBUG_BUILD and not tracing:
            tracemalloc.start()
        try:
            for _ in range(runs):
                scenario()
            # Preallocated: what the check itself keeps must not look like a leak.
            totals, blocks = array("q", bytes(8 * (windows + 1))), array("q", bytes(8 * (windows + 1)))
            totals[0], blocks[0] = _held()
            for window in range(1, windows + 1):
                for _ in range(runs):
                    scenario()
                totals[window], blocks[window] = _held()
        finally:
            if not DEBUG_BUILD and not tracing:
                tracemalloc.stop()
        for name, counts in (("references" if DEBUG_BUILD else "bytes", totals), ("blocks", blocks)):
            growth = [after - before for before, after in pairwise(counts)]
            # Without the debug build's exact count, a cache of the interpreter's that still grows a little is no
            # leak: the smallest one is a block in each run.
            least = 1 if DEBUG_BUILD else runs
            assert min(growth) < least, f"{runs} runs leak {min(growth)} {name} or more: {growth}"

    return check


@pytest.fixture
def hammer():
    """``hammer(n_threads, fn, *, iterations=1000, seconds=None, timeout=120)``: ``fn(index)``, all at once.

    The threads start together and switch as often as the interpreter allows. The first exception that ``fn``
    raises is raised here. A deadlock fails the test after ``timeout`` seconds rather than hanging it.
    """

    def run(n_threads, fn, *, iterations=1000, seconds=None, timeout=120):
        barrier = threading.Barrier(n_threads)
        errors = []

        def body(index):
            try:
                barrier.wait(timeout)
                if seconds is None:
                    for _ in range(iterations):
                        fn(index)
                        if errors:
                            return
                else:
                    end = time.monotonic() + seconds
                    while time.monotonic() < end and not errors:
                        fn(index)
            except BaseException as e:
                errors.append(e)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=body, args=(n,), daemon=True) for n in range(n_threads)]
        try:
            for thread in threads:
                thread.start()
            end = time.monotonic() + timeout
            for thread in threads:
                thread.join(max(0, end - time.monotonic()))
            assert not any(thread.is_alive() for thread in threads), f"threads still run after {timeout} s"
        finally:
            sys.setswitchinterval(interval)
        if errors:
            raise errors[0]

    return run


@pytest.fixture
def group():
    """A child of this process's version 1 memory group, removed afterwards. Tests that use it are marked ``root``."""
    from synthex_fast._readings import Readings

    found = Readings().container
    version, directory = found or (None, "/sys/fs/cgroup/memory")
    path = Path(directory) / f"synthex-fast-test-{os.getpid()}"
    if version == 2 or not os.access(path.parent / "cgroup.procs", os.W_OK):
        pytest.skip("needs the memory controller of version 1")
    try:
        path.mkdir()
    except OSError as e:
        pytest.skip(f"needs the right to make version 1 memory control groups: {e}")
    yield path
    # The kernel may take a moment to release the last process.
    for _ in range(100):
        try:
            path.rmdir()
            break
        except OSError:
            time.sleep(0.05)
    else:
        path.rmdir()


CYTHON = Path(__file__).parent / "cython"

BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
name = sys.argv[1]
setup(name=name, script_args=["-q", "build_ext", "--inplace"], ext_modules=cythonize(f"{name}.pyx", quiet=True))
"""


def build_extension(source, folder, cflags):
    """Compile a ``.pyx`` file that cimports the package's headers, as another project would, and import it.

    It is copied to ``folder`` first, so that nothing is built among the tests.
    """
    name = source.stem
    shutil.copy(source, folder)
    (folder / "build.py").write_text(BUILD)
    built = subprocess.run(
        [sys.executable, "build.py", name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(support.ROOT), "CFLAGS": cflags},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (library,) = (path for path in folder.iterdir() if path.suffix in (".so", ".pyd"))
    spec = importlib.util.spec_from_file_location(name, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
