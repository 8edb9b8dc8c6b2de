"""Stand-ins and small tools that several test files use. Fixtures are in `conftest.py`.

`Clock` and `FakeReadings` replace time and the kernel's memory figures. `run` starts a fresh interpreter, `in_child`
and `in_threads` run code in a forked child and in threads, and `wait_for` waits for what another thread does.
"""

import os
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
import traceback
from pathlib import Path

import pytest

import synthex_fast

MB = 1 << 20
GB = 1 << 30

# The directory that a fresh interpreter must have on its path to import this very package.
ROOT = Path(synthex_fast.__file__).parents[1]
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
POLICIES = ["fifo", "lru", "sieve", "s3fifo"]

# Of the command line; a subcommand follows.
COMMAND = [sys.executable, "-m", "synthex_fast.cli"]


class Running:
    """A `synthex-fast` command under way, what it has said on stderr, and the processes that it had then."""

    def __init__(self, *arguments):
        from synthex_fast.validate.rounds import _environment

        self.popen = subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        self.said = []

    def wait_for(self, words):
        """Read what it says until a line has these words."""
        import psutil

        for line in self.popen.stderr:
            self.said.append(line)
            if words in line:
                break
        else:
            raise AssertionError("".join(self.said))
        self.children = psutil.Process(self.popen.pid).children(recursive=True)

    def no_child_is_left(self):
        import psutil

        assert self.children
        return not psutil.wait_procs(self.children, timeout=10)[1]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
# CPython 3.12 and later warn about every fork of a process with threads.
quiet_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


class Clock:
    """A clock that stands still until a test sets ``now``, in seconds."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


class FakeReadings:
    """Memory figures that a test sets: a host of 16 GB, in a container only if it has a limit.

    Each method returns the attribute of the same name with an underscore, or raises ``error`` if a test has set it.
    ``calls`` lists the methods called.
    """

    def __init__(self, limit=None, rss=100 * MB, charge=None, total=16 * GB):
        self.calls = []
        self.error = None
        self.rss_ = rss
        self.charge_ = charge
        self.reclaimable_ = 0
        self.limit_ = limit
        self.available_ = 12 * GB
        self.swap_ = 5 * MB
        self.total_ = total

    def _read(self, name):
        self.calls.append(name)
        if self.error is not None:
            raise self.error
        return getattr(self, f"{name}_")

    def rss(self):
        return self._read("rss")

    def charge(self):
        return self._read("charge")

    def reclaimable(self):
        return self._read("reclaimable")

    def limit(self):
        return self._read("limit")

    def available(self):
        return self._read("available")

    def swap(self):
        return self._read("swap")

    def total(self):
        return self._read("total")

    def close(self):
        pass


def run_python(code, *options, arguments=(), timeout=120, **environment):
    """Run ``code`` in a fresh interpreter that imports this package, and return the completed process.

    ``options`` are the interpreter's own, such as ``"-S"``; ``environment`` holds further variables.
    """
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run(code, *options, status=0, stderr="", **given):
    """`run_python`, check the exit status and standard error (unless None), and return what was printed."""
    done = run_python(code, *options, **given)
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    if stderr is not None:
        assert done.stderr == stderr
    return done.stdout


def wait_for(condition, seconds=30.0):
    """Wait until ``condition()`` is true and return its value; fail after ``seconds``, which no passing test needs."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"still false after {seconds} s"
        time.sleep(0.001)
    return value


def in_child(call):
    """Fork, run ``call`` in the child and wait for it. The child fails if ``call`` raises or returns False."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = int(call() is False)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def in_threads(*functions):
    """Run the functions at the same time, each in its thread, and raise the first error."""
    errors = []
    barrier = threading.Barrier(len(functions))

    def body(function):
        try:
            barrier.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
