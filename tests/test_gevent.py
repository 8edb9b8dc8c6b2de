"""The background threads in a program that gevent patches, whenever that happens, and under gunicorn's gevent workers.

Each script runs in an interpreter of its own, since patching can't be undone, and an alarm ends it if anything hangs.
"""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec

import pytest
from support import ROOT, run, run_python, wait_for

# Not imported here: where gevent is imported, the package starts threads that `threading` does not know.
pytestmark = [
    pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed"),
    pytest.mark.slow,
    pytest.mark.linux(reason="counts the system's threads in /proc"),
]

STEPS = {
    "gevent": "import gevent.hub",
    "patch": "from gevent import monkey; monkey.patch_all()",
    "import": "from synthex_fast import AdaptiveMemoryMonitor, GCTuner, MemoryGovernor, ResponseBuffer, TTLDict",
}
ORDERS = ["patch import start", "import patch start", "import start patch", "gevent import start patch"]

# For each part: how it starts, what shows that its thread works, how it stops.
PARTS = {
    "tuner": (
        "tuner = GCTuner(freeze=False); tuner.start()",
        """
        with tuner.request():
            pass
        watcher = tuner._watcher
        if watcher.restart_due or watcher.thread is None:
            raise AssertionError("no watcher")
        watcher.wake()
        wait_for(lambda: watcher._queue.empty() and watcher.thread.is_alive())
        """,
        "tuner.stop()",
    ),
    "monitor": (
        "monitor = AdaptiveMemoryMonitor(base_interval=60); monitor.start()",
        """
        samples = monitor.stats["samples"]
        def sampled():
            # Again each time: a sample under way plans the next one when it ends.
            monitor._due = 0.0
            monitor._thread.waker.wake()
            return monitor.stats["samples"] > samples
        wait_for(sampled)
        assert "gevent" not in type(monitor._thread.waker._poll).__module__
        """,
        "monitor.stop()",
    ),
    "governor": (
        """
        kept = TTLDict(100)
        governor = MemoryGovernor(); governor.register(kept); governor.start()
        """,
        """
        looks = governor._worker.looks
        def looked():
            governor._worker.plan(0.0)
            return governor._worker.looks > looks
        wait_for(looked)
        governor.check()
        """,
        "governor.stop()",
    ),
    "sweeper": (
        """
        evicted = []
        cache = TTLDict(100, ttl=0.05, on_evict=lambda key, value, reason: evicted.append(key))
        cache["early"] = 1
        """,
        """
        del evicted[:]
        cache["late"] = 1
        wait_for(lambda: "late" in evicted)
        """,
        "from synthex_fast import _sweeper; _sweeper._stop()",
    ),
}
PARTS["all parts"] = tuple("\n".join(textwrap.dedent(part[n]) for part in PARTS.values()) for n in range(3))

SCRIPT = """
import gc, os, signal, sys, time
signal.alarm(40)

def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it does not act"
        time.sleep(0.005)

{steps}

def act():
{act}

def stop():
{stop}
    wait_for(lambda: len(os.listdir("/proc/self/task")) == 1)

import gevent.hub
ticks = 0

def tick():
    global ticks
    while True:
        gevent.sleep(0.001)
        ticks += 1

gevent.spawn(tick)
act()
wait_for(lambda: ticks)
hubs = [each for each in gc.get_objects() if isinstance(each, gevent.hub.Hub)]
assert len(hubs) == 1, "a thread of the package's has an event loop"
# As gevent's `subprocess` does before it forks. Its `os.fork` does so afterwards, in the parent, and `waitpid` then
# waits forever for a child that has ended by then.
gevent.get_hub().loop.install_sigchld()
child = os.fork()
if child == 0:
    signal.alarm(20)
    status = 1
    try:
        act()
        stop()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0
act()
stop()
print("stopped")
"""


def script_for(part, order):
    start, act, stop = (textwrap.dedent(code) for code in PARTS[part])
    return SCRIPT.format(
        steps="\n".join({**STEPS, "start": start}[step] for step in order.split()),
        act=textwrap.indent(act, "    "),
        stop=textwrap.indent(stop, "    "),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("part", PARTS)
def test_each_part_acts_forks_and_stops_whenever_gevent_patches(part, order):
    script = script_for(part, order)
    # From 3.12 on the interpreter warns of the fork if it counts more than one thread.
    done = run_python(script, "-Wignore::DeprecationWarning", timeout=60)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
    if done.stderr:
        assert order == "import start patch", done.stderr
        assert without_addresses(done.stderr) == what_gevent_prints_after_a_fork()


@pytest.mark.parametrize("part", ["monitor", "governor"])
def test_a_part_goes_on_if_the_child_ends_before_fork_returns(part):
    # Registered before the package's hooks, so it runs before them. It leaves the child to be waited for.
    first = """
import os
os.register_at_fork(after_in_parent=lambda: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT))
"""
    assert run(first + script_for(part, ORDERS[0]), "-Wignore::DeprecationWarning", timeout=60) == "stopped\n"


def without_addresses(text):
    return re.sub(r"0x[0-9a-f]+", "0x", text)


@functools.cache
def what_gevent_prints_after_a_fork():
    """In the child of a program without this package that patches while a thread of `threading` runs.

    On Python 3.14 gevent 26.9 passes an argument to that thread's handle which only gevent's own handles take.
    """
    script = """
import os, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
from gevent import monkey; monkey.patch_all()
# Those of gevent need an event loop.
fork, waitpid = monkey.get_original("os", ["fork", "waitpid"])
child = fork()
if child:
    waitpid(child, 0)
os._exit(0)
"""
    return without_addresses(run_python(script, "-Wignore::DeprecationWarning", timeout=60).stderr)


@pytest.mark.parametrize("order", ORDERS[:2])
def test_a_greenlet_that_waits_for_a_paused_buffer_lets_others_run(order):
    steps = "\n".join({**STEPS, "start": ""}[step] for step in order.split())
    script = f"""
import signal
signal.alarm(40)
{steps}
import time, _thread
import gevent
from synthex_fast import PooledExpertResponse
buffer = ResponseBuffer(10, 10)
buffer.pause(wait=30)
added = []
def add():
    buffer.add(PooledExpertResponse("q", "e"))
    added.append(time.monotonic())
def resume():
    monkey.get_original("time", "sleep")(0.2)
    assert not added
    resumed.append(time.monotonic())
    buffer.resume()
resumed = []
waiting = gevent.spawn(add)
monkey.get_original("_thread", "start_new_thread")(resume, ())
ticks = 0
while not waiting.dead:
    gevent.sleep(0.005)
    ticks += 1
assert ticks > 5, ticks
assert added[0] - resumed[0] < 0.5, "woken by the end of its nap, not by the resumption"
print(len(buffer))
"""
    assert run(script, timeout=60) == "1\n"


def test_greenlets_that_act_for_governors_in_turns_leave_nothing_behind():
    script = """
import signal
signal.alarm(40)
from gevent import monkey; monkey.patch_all()
import gevent.event
from synthex_fast import MemoryGovernor
from synthex_fast.governor.thread import is_acting
class Waiting:
    registered = False
    def __init__(self, until):
        self.until = until
        self.began = gevent.event.Event()
    @property
    def nbytes(self):
        if self.registered:
            self.began.set()
            assert self.until.wait(10)
        return 1
    def trim(self, nbytes):
        return 0
def check(part):
    governor = MemoryGovernor()
    governor.register(part)
    part.registered = True
    governor.check()
    return is_acting()
second = Waiting(gevent.event.Event())
first = Waiting(second.began)
ends_first = gevent.spawn(check, first)
assert first.began.wait(10)
ends_last = gevent.spawn(check, second)
ends_first.link(lambda ended: second.until.set())
print(ends_first.get(), ends_last.get(), is_acting())
"""
    assert run(script, timeout=60) == "True False False\n"


# gunicorn ---------------------------------------------------------------------------------------------------

APPLICATION = """
import json, os
from synthex_fast import AdaptiveMemoryMonitor, GCTuner, MemoryGovernor, TTLDict

tuner = GCTuner()
tuner.start()
monitor = AdaptiveMemoryMonitor(base_interval=0.05)
monitor.start()
evicted = []
cache = TTLDict(1000, ttl=0.1, on_evict=lambda key, value, reason: evicted.append(key))
governor = MemoryGovernor(monitor=monitor)
governor.register(cache)
governor.start()
cache["at import"] = 1

def answer(environ, start_response):
    cache[environ["PATH_INFO"]] = [1]
    figures = {
        "pid": os.getpid(), "samples": monitor.stats["samples"], "evicted": len(evicted),
        "requests": tuner.stats["requests"], "looks": governor._worker.looks,
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(figures).encode()]

app = tuner.wsgi(answer)
"""


@contextmanager
def gunicorn(folder, application):
    """A server with two preloaded gevent workers: its process, port and log. All its processes are dead afterwards."""
    (folder / "application.py").write_text(application)
    log = folder / "log"
    with socket.socket() as listening, open(log, "wb") as output:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "application:app"),
                *("-k", "gevent", "--preload", "-w", "2", "--graceful-timeout", "60", "--timeout", "30"),
                *("-b", f"fd://{listening.fileno()}"),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)},
            pass_fds=[listening.fileno()],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield server, listening.getsockname()[1], log
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)


def get(port, path="/"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as response:
        return json.load(response)


@pytest.mark.parametrize(
    "patch", ["", STEPS["patch"] + "\n"], ids=["the worker patches", "the application patches"]
)
def test_gunicorns_gevent_workers_serve_and_stop(tmp_path, patch):
    pytest.importorskip("gunicorn")
    with gunicorn(tmp_path, patch + APPLICATION) as (server, port, log), ThreadPoolExecutor(8) as clients:
        try:
            get(port)
            answers = list(clients.map(lambda n: get(port, n), range(400)))
            workers = {answer["pid"] for answer in answers}
            assert len(answers) == 400 and server.pid not in workers
            # The parts work in the worker: forked, they began anew.
            seen = wait_for(
                lambda: (now := get(port))["samples"] > 2 and now["evicted"] and now["looks"] and now
            )
            assert seen["requests"] > 1

            # gunicorn's own process, once patched, is slow to notice a dead worker, whatever the application is.
            if not patch:
                os.kill(seen["pid"], signal.SIGKILL)

                def replaced():
                    # The dying worker may still have taken this request.
                    with suppress(OSError):
                        return get(port)["pid"] not in {*workers, seen["pid"]}

                wait_for(replaced)

            server.send_signal(signal.SIGTERM)
            # Long before the graceful time-out: none has to be killed.
            assert server.wait(30) == 0
        except BaseException:
            print(log.read_text())
            raise
        output = log.read_text()
        assert "Traceback" not in output and "TIMEOUT" not in output, output


REFRESH = """
import signal
signal.alarm(40)
from gevent import monkey; monkey.patch_all()
import gevent
from gevent.event import Event
from synthex_fast.caching import cached

now = [0.0]
from synthex_fast import TTLDict
may_end, calls, threads = Event(), [], []

@cached(TTLDict(timer=lambda: now[0]), ttl=60, refresh_after=10)
def f(x):
    calls.append(x)
    threads.append(gevent.getcurrent())
    if len(calls) == 2:
        # Only this greenlet waits.
        assert may_end.wait(20)
    return len(calls)

assert f("a") == 1
now[0] = 10.0
assert [f("a") for _ in range(5)] == [1] * 5
while len(calls) < 2:
    gevent.sleep(0.001)
assert threads[1] is not gevent.getcurrent()
assert f("a") == 1 and len(calls) == 2
may_end.set()
while f("a") != 2:
    gevent.sleep(0.001)
assert len(calls) == 2

# Greenlets that find it ended share one call.
now[0] = 100.0
assert [each.get(timeout=20) for each in [gevent.spawn(f, "a") for _ in range(6)]] == [3] * 6
assert len(calls) == 3
print("done")
"""


def test_a_cached_function_is_refreshed_in_a_greenlet():
    assert run(REFRESH).strip() == "done"
