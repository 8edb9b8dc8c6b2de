"""Real servers, started on loopback for one test: `serving` starts one and makes sure that nothing of it is left.

`exercise` is what each must stand: requests, a worker's death, a reload, a graceful stop.
"""

import http.client
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from importlib.util import find_spec

import psutil
from support import ROOT, wait_for

# Appended to each application: what it answers, and what it leaves behind when its installation ends.
REPORTING = """
import gc, json, os, threading
from pathlib import Path
from synthex_fast.integrations import installation as _module

_pause = _module.Installation._pause

def _pause_and_tell(self):
    was_running = self.running
    _pause(self)
    if was_running:
        Path(f"stopped-{os.getpid()}").write_text(
            json.dumps({"threshold": gc.get_threshold(), "threads": threads()})
        )

_module.Installation._pause = _pause_and_tell

def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("synthex-fast")]

def report(path="/stats"):
    cycle = []
    cycle.append(cycle)
    answer = {"pid": os.getpid()}
    if path == "/stats":
        placed = _module.current()
        answer |= {
            "stats": None if placed is None else placed.stats, "threshold": gc.get_threshold(),
            "threads": threads(), "frozen": gc.get_freeze_count(),
        }
    return json.dumps(answer).encode()
"""

# Interpreters of the same version have the same.
THRESHOLDS = json.loads(
    subprocess.run(
        [sys.executable, "-c", "import gc; print(list(gc.get_threshold()))"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
)


def missing(*modules):
    """Why a test that needs these can't run; empty if it can."""
    absent = [name for name in modules if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def uvicorn_patience():
    """Options: it gives up a reload, or a worker, for which the machine is too busy for five seconds."""
    import uvicorn

    known = "timeout_worker_healthcheck" in inspect.signature(uvicorn.Config).parameters
    return ["--timeout-worker-healthcheck", "60"] if known else []


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class Server:
    def __init__(self, process, port, folder):
        self.process = process
        self.port = port
        self.folder = folder

    @property
    def log(self):
        return (self.folder / "log").read_text()

    def get(self, path="/stats"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def try_to_get(self, path="/stats"):
        with suppress(OSError, http.client.HTTPException, ValueError):
            return self.get(path)

    def wait_until_it_answers(self):
        def answers():
            assert self.process.poll() is None, f"it has ended: {self.log}"
            return self.try_to_get()

        return wait_for(answers, 60)

    def get_many(self, count, path="/stats", clients=8):
        """That many requests, by several clients. Returns the answers."""
        answers, errors = [], []

        def ask():
            try:
                for _ in range(count // clients):
                    answers.append(self.get(path))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        if errors:
            raise errors[0]
        return answers

    def all_workers(self, count, besides=()):
        """The workers that answer, once there are that many besides those; all run what was installed."""
        found = set()

        def ask():
            with suppress(OSError, http.client.HTTPException, ValueError):
                found.update(answer["pid"] for answer in self.get_many(16) if check_running(answer))
            return len(found - set(besides)) >= count

        wait_for(ask, 60)
        return found - set(besides)

    def stopped(self, pid):
        """What the process with that id left behind when its installation ended."""
        path = self.folder / f"stopped-{pid}"
        text = path.read_text() if path.exists() else ""
        return json.loads(text) if text else None


@contextmanager
def serving(folder, command, *, port, files=(), **environment):
    """A running server: ``command`` is what follows the interpreter. ``files`` are written to the folder before."""
    for name, text in dict(files).items():
        (folder / name).write_text(text)
    with open(folder / "log", "ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command] if command[0] == "-m" else command,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
                "HOME": str(folder),
                "PYTHONFAULTHANDLER": "1",
                **environment,
            },
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = Server(process, port, folder)
    try:
        yield server
    except BaseException:
        print(server.log)
        raise
    finally:
        left = members(process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(20)


def members(session):
    """The processes of a session that have not ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess, PermissionError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def check_running(answer):
    """True; fails unless the answer comes from a worker in which everything runs."""
    stats = answer["stats"]
    assert stats["running"] and stats["tuner"]["running"] and stats["monitor"]["running"], answer
    assert stats["tuner"]["requests"] >= 1
    assert answer["frozen"] > 0
    return True


def _count(server):
    answer = server.get()
    check_running(answer)
    return answer["pid"], answer["stats"]["tuner"]["requests"]


def exercise(server, *, requests=1000, workers=2, kill=True, reload=True, leave_word=2, graceful=20):
    """Start, serve, lose a worker, reload, stop gracefully and leave nothing.

    ``leave_word`` is how many workers at least are let end their installation.
    """
    check_running(server.wait_until_it_answers())
    first = {answer["pid"] for answer in server.get_many(requests, "/")}
    assert server.process.pid not in first
    # All were counted, by whichever worker served them.
    counted = {}
    wait_for(lambda: counted.update([_count(server)]) or counted.keys() >= first)
    assert sum(counted.values()) >= requests

    gone = set()
    if kill:
        gone.add(victim := next(iter(first)))
        os.kill(victim, signal.SIGKILL)
    now = server.all_workers(workers, besides=gone)
    if reload:
        server.process.send_signal(signal.SIGHUP)
        gone |= now
        # All: granian's and uWSGI's don't hear of a stop while they start.
        now = server.all_workers(workers, besides=gone)
        wait_for(lambda: not {process.pid for process in members(server.process.pid)} & gone, 60)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(graceful)
    assert time.monotonic() - began < graceful
    wait_for(lambda: not members(server.process.pid), 10)
    words = [word for pid in now if (word := server.stopped(pid)) is not None]
    assert len(words) >= leave_word
    assert all(word == {"threshold": THRESHOLDS, "threads": []} for word in words), words
    assert "Traceback" not in server.log, server.log
    return status
