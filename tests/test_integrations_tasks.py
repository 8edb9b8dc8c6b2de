"""Celery, RQ and pools of processes: tasks, jobs and calls are requests, in processes that are forked for them."""

import concurrent.futures
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from servers import REPORTING, THRESHOLDS, free_port, members, missing, serving
from support import ROOT, quiet_fork, run, wait_for

import synthex_fast
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError
from synthex_fast.integrations import installation
from synthex_fast.integrations.multiprocessing import counted, initializer

# Pools ------------------------------------------------------------------------------------------------------


@counted
def decorated(n):
    """Doubles."""
    placed = installation.current()
    return n * 2, placed.running, placed.stats["tuner"]["in_flight"], placed.stats["tuner"]["memory_limit"]


def plain(n):
    return n + 1


def remember(value):
    remember.value = value


def remembered(_):
    return remember.value, installation.current().running


@quiet_fork
@pytest.mark.slow
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_pools_processes_are_installed_and_calls_are_requests(method, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.path.dirname(__file__)]))
    before = gc.get_threshold()
    begin = initializer(memory_limit="1GB", then=remember, thenargs=("mine",))
    context = multiprocessing.get_context(method)
    with context.Pool(2, initializer=begin) as pool:
        assert pool.map(decorated, range(4)) == [(n * 2, True, 1, 2**30) for n in range(4)]
        assert pool.map(counted(plain), [1, 2]) == [2, 3]
        assert pool.map(remembered, [0]) == [("mine", True)]
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, initializer=begin) as pool:
        assert list(pool.map(decorated, [3])) == [(6, True, 1, 2**30)]
    assert installation.current() is None
    assert gc.get_threshold() == before


def served(_):
    placed = installation.current()
    return os.getpid(), placed.running, placed.stats["tuner"]["requests"]


@quiet_fork
@pytest.mark.slow
def test_a_pools_process_that_is_replaced_is_installed_too(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.path.dirname(__file__)]))
    with multiprocessing.get_context("spawn").Pool(1, initializer(), maxtasksperchild=2) as pool:
        answers = pool.map(counted(served), range(6), chunksize=1)
    pids = [pid for pid, *_ in answers]
    assert pids[::2] == pids[1::2] and len(set(pids)) == 3
    assert [rest for _, *rest in answers] == [[True, 1], [True, 2]] * 3


def test_counted_functions_are_like_their_functions():
    assert decorated.__doc__ == "Doubles."
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    assert pickle.loads(pickle.dumps(counted(plain)))(1) == 2
    with pytest.raises(ArgumentTypeError, match="function must be"):
        counted(3)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"memory_limit": "much"}, ArgumentValueError, "memory_limit must be"),
        ({"tuner": 3}, ArgumentTypeError, "tuner must be"),
        ({"then": 3}, ArgumentTypeError, "then must be"),
        ({"thenargs": 3}, ArgumentTypeError, "thenargs must be"),
        ({"app": 3}, TypeError, "unexpected keyword argument 'app'"),
    ],
)
def test_bad_arguments_are_refused_in_the_parent(options, error, text):
    with pytest.raises(error, match=text):
        initializer(**options)
    assert installation.current() is None


# Celery -----------------------------------------------------------------------------------------------------

CELERY = (
    REPORTING
    + """
from celery import Celery
from synthex_fast.integrations.celery import connect

here = os.environ["HERE"]
broker = os.environ["BROKER"]
app = Celery("tasks", broker=broker, backend=f"file://{here}/results")
if broker == "filesystem://":
    app.conf.broker_transport_options = {
        "data_folder_in": f"{here}/broker", "data_folder_out": f"{here}/{os.environ['OUT']}",
        "control_folder": f"{here}/control", "polling_interval": 0.02,
    }
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=32,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
)
installed = connect(memory_limit="1GB")

@app.task(ignore_result=True)
def work(n):
    report("/")

@app.task
def fail():
    raise ValueError("as it should")

@app.task
def stats():
    return json.loads(report())
"""
)

needs_celery = pytest.mark.skipif(bool(missing("celery")), reason=missing("celery"))
# Of RQ, each with a fork of its own; `.ci/run --all` asks for the greater number.
JOBS = 1000 if os.environ.get("SYNTHEX_FAST_TEST_ALL") else 200


@contextmanager
def celery(folder, monkeypatch, pool, *options, broker="filesystem://"):
    """A running worker, and a client's side of the application."""
    for name in ("broker", "control", "results", "sent"):
        (folder / name).mkdir()
    # Not the module: at SIGHUP Celery starts its own script anew.
    script = Path(sys.executable).with_name("celery")
    command = f"{script} -A tasks worker --pool {pool} --concurrency 2 --without-gossip --without-mingle"
    with serving(
        folder,
        [*command.split(), "--without-heartbeat", *options],
        port=0,
        files={"tasks.py": CELERY},
        HERE=str(folder),
        OUT="broker",
        BROKER=broker,
    ) as server:
        monkeypatch.setenv("HERE", str(folder))
        monkeypatch.setenv("OUT", "sent")
        monkeypatch.setenv("BROKER", broker)
        names = {"__name__": "tasks"}
        # Not imported, so that the next test has its own.
        exec(
            compile(CELERY.replace("_module.Installation._pause = ", "unused = "), "tasks.py", "exec"), names
        )
        assert not names["installed"].running
        try:
            yield server, names
        finally:
            names["installed"].stop()
            names["app"].close()


def send(names, task, *arguments):
    """Send a task. The broker is a folder, and a worker that sees a file takes it, even before it has been written."""
    sent = names[task].apply_async(arguments)
    here = Path(names["here"])
    for path in (here / "sent").iterdir():
        path.rename(here / "broker" / path.name)
    return sent


def stats_of(names):
    return send(names, "stats").get(timeout=60, interval=0.02)


def stats_of_several(names):
    """More at once than a process takes, so that none of two has them all."""
    sent = [send(names, "stats") for _ in range(16)]
    return [each.get(timeout=60, interval=0.02) for each in sent]


def check(answer):
    stats = answer["stats"]
    assert stats["running"] and stats["tuner"]["running"] and stats["monitor"]["running"]
    assert stats["tuner"]["memory_limit"] == 2**30
    # The task that tells it.
    assert stats["tuner"]["in_flight"] >= 1
    return answer["pid"]


@needs_celery
@pytest.mark.slow
@pytest.mark.linux(reason="sessions of processes")
@pytest.mark.parametrize("broker", ["filesystem", "redis"])
def test_celerys_pool_processes_are_installed_replaced_restarted_and_stopped(
    tmp_path, monkeypatch, broker, request
):
    url = "filesystem://"
    if broker == "redis":
        port = request.getfixturevalue("redis").connection_pool.connection_kwargs["port"]
        url = f"redis://127.0.0.1:{port}/0"
    with celery(tmp_path, monkeypatch, "prefork", broker=url) as (server, names):
        first = {check(stats_of(names))}
        assert server.process.pid not in first
        for n in range(1000):
            send(names, "work", n)
        wait_for(lambda: first.update(map(check, stats_of_several(names))) or len(first) == 2, 60)
        counted = {}

        def all_done():
            for answer in stats_of_several(names):
                counted[check(answer)] = answer["stats"]["tuner"]["requests"]
            return sum(counted.values()) >= 1000

        wait_for(all_done, 90)
        # Frozen by the main process, before the fork.
        answer = stats_of(names)
        assert answer["frozen"] > 10_000 and not answer["stats"]["tuner"]["frozen"]

        with pytest.raises(ValueError, match="as it should"):
            send(names, "fail").get(timeout=60, interval=0.02)
        assert stats_of(names)["stats"]["tuner"]["in_flight"] == 1

        # Not with a broker that has no event loop: the pool's processes share a lock there, which the killed one may
        # hold for ever.
        if broker == "redis":
            os.kill(next(iter(first)), signal.SIGKILL)
            wait_for(lambda: not first.issuperset(map(check, stats_of_several(names))), 60)

        before = {process.pid for process in members(server.process.pid)} - {server.process.pid}
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not {process.pid for process in members(server.process.pid)} & before, 60)
        last = check(stats_of(names))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        wait_for(lambda: not members(server.process.pid), 10)
        assert server.stopped(last) == {"threshold": THRESHOLDS, "threads": []}


@needs_celery
@pytest.mark.slow
@pytest.mark.linux(reason="sessions of processes")
@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_celerys_other_pools_run_in_the_workers_own_process(tmp_path, monkeypatch, pool):
    if pool == "gevent" and missing("gevent"):
        pytest.skip(missing("gevent"))
    with celery(tmp_path, monkeypatch, pool) as (server, names):
        for n in range(20):
            send(names, "work", n)
        assert check(stats_of(names)) == server.process.pid
        wait_for(lambda: stats_of(names)["stats"]["tuner"]["requests"] > 20, 60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert server.stopped(server.process.pid) == {"threshold": THRESHOLDS, "threads": []}


@needs_celery
def test_celerys_eventlet_is_refused():
    out = run(
        """
        import sys, types
        eventlet = types.ModuleType("eventlet")
        eventlet.patcher = types.SimpleNamespace(is_monkey_patched=lambda name: True)
        sys.modules["eventlet"] = eventlet
        from synthex_fast.integrations import celery, installation
        try:
            celery.connect()
        except RuntimeError as error:
            print(type(error).__name__, error)
        print(installation.current())
        """,
        stderr=None,
    )
    assert out.startswith(
        "UnsupportedServerError synthex_fast works with Celery's pools prefork, solo, threads"
    )
    assert out.endswith("None\n")


@pytest.mark.parametrize("name", ["celery", "rq"])
def test_what_is_not_installed_is_named_in_one_line(name):
    out = run(
        f"""
        import sys
        sys.modules[{name!r}] = None
        try:
            import synthex_fast.integrations.{name}
        except ImportError as error:
            print(error)
        """
    )
    assert out.startswith(f"synthex_fast.integrations.{name} needs ")
    assert f"pip install {name}" in out and out.count("\n") == 1


# RQ ---------------------------------------------------------------------------------------------------------

RQ = (
    REPORTING
    + """
import time
import synthex_fast.integrations.rq

class Telling:
    options = {"memory_limit": "1GB"}

    def work(self, *arguments, **named):
        try:
            return super().work(*arguments, **named)
        finally:
            # Whatever ran jobs in this process has ended.
            left = {"threshold": gc.get_threshold(), "threads": threads(), "placed": repr(_module.current())}
            Path(f"worked-{os.getpid()}").write_text(json.dumps(left))

class Worker(Telling, synthex_fast.integrations.rq.Worker):
    pass

class SimpleWorker(Telling, synthex_fast.integrations.rq.SimpleWorker):
    pass

def stats():
    return json.loads(report())

def work(n):
    answer = json.loads(report())
    tuner = answer["stats"]["tuner"]
    return n, answer["pid"], answer["stats"]["running"], tuner["requests"], tuner["in_flight"]

def wait(name):
    # Until the file "NAME-go" is there; the file NAME tells who waits.
    Path(name).write_text(str(os.getpid()))
    while not Path(f"{name}-go").exists():
        time.sleep(0.02)
    return json.loads(report())

def fail():
    raise ValueError("as it should")
"""
)


@pytest.fixture
def redis(tmp_path):
    """A Redis server of the test's own, and a connection to it."""
    if missing("rq", "redis"):
        pytest.skip(missing("rq", "redis"))
    if shutil.which("redis-server") is None:
        pytest.skip("not installed: redis-server")
    from redis import Redis

    port = free_port()
    command = f"redis-server --port {port} --bind 127.0.0.1 --appendonly no --dir {tmp_path}"
    with subprocess.Popen([*command.split(), "--save", ""], stdout=subprocess.DEVNULL) as server:
        try:
            connection = Redis(port=port)
            wait_for(lambda: _answers(port))
            yield connection
            connection.close()
        finally:
            server.terminate()


def _answers(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True


def rq_worker(folder, connection, kind, count):
    """A worker that ends once its queue is empty: what its jobs returned."""
    from rq import Queue

    (folder / "jobs.py").write_text(RQ)
    queue = Queue(connection=connection)
    jobs = [queue.enqueue("jobs.stats") for _ in range(count)]
    failed = queue.enqueue("jobs.fail")
    port = connection.connection_pool.connection_kwargs["port"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rq.cli", "worker", "--burst", "--worker-class", f"jobs.{kind}"),
            *("--url", f"redis://127.0.0.1:{port}"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert failed.get_status() == "failed"
    return [job.return_value() for job in jobs]


@pytest.mark.slow
@pytest.mark.linux(reason="RQ forks")
@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_each_of_rqs_jobs_is_a_request(tmp_path, redis, kind):
    answers = rq_worker(tmp_path, redis, kind, 10)
    pids = {answer["pid"] for answer in answers}
    for answer in answers:
        check(answer)
        assert answer["frozen"] > 10_000
    requests = [answer["stats"]["tuner"]["requests"] for answer in answers]
    if kind == "Worker":
        assert len(pids) == 10 and requests == [1] * 10
        # Its worker froze, before the fork.
        assert not any(answer["stats"]["tuner"]["frozen"] for answer in answers)
    else:
        assert len(pids) == 1 and requests == list(range(1, 11))
        (stopped,) = tmp_path.glob("stopped-*")
        assert json.loads(stopped.read_text()) == {"threshold": THRESHOLDS, "threads": []}


def rq_serving(folder, connection, kind):
    """A worker that runs until it is told to stop."""
    port = connection.connection_pool.connection_kwargs["port"]
    return serving(
        folder,
        ["-m", "rq.cli", "worker", "--worker-class", f"jobs.{kind}", "--url", f"redis://127.0.0.1:{port}"],
        port=0,
        files={"jobs.py": RQ},
    )


def text_of(path):
    """What is in the file, once there is anything."""

    def read():
        return path.read_text() if path.exists() else ""

    return wait_for(read, 300)


def alive(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
@pytest.mark.linux(reason="RQ forks, and sessions of processes")
@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_an_rq_worker_goes_on_after_a_death_is_replaced_and_stops(tmp_path, redis, kind):
    from rq import Queue
    from rq import Worker as RQWorker

    queue = Queue(connection=redis)
    forks = kind == "Worker"

    def enqueue(name, *arguments):
        return queue.enqueue(f"jobs.{name}", *arguments, result_ttl=-1)

    # In three parts: 40, 40 and 20 %.
    first_part, second_part, count = JOBS * 4 // 10, JOBS * 8 // 10, JOBS
    jobs = [enqueue("work", n) for n in range(first_part)]
    killed = enqueue("wait", "killed")
    jobs += [enqueue("work", n) for n in range(first_part, second_part)]
    orphaned = enqueue("wait", "orphaned")
    jobs += [enqueue("work", n) for n in range(second_part, count)]

    with rq_serving(tmp_path, redis, kind) as first:
        victim = int(text_of(tmp_path / "killed"))
        assert (victim != first.process.pid) == forks
        if forks:
            # The process of one job: the job has failed, and the worker goes on with the next.
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: killed.get_status(refresh=True) == "failed")
        else:
            (tmp_path / "killed-go").touch()
        # The worker itself, in the middle of a job.
        busy = int(text_of(tmp_path / "orphaned"))
        assert first.process.poll() is None
        first.process.kill()
        first.process.wait(10)
        if forks:
            # A job's process survives its worker, and ends what it has begun.
            (tmp_path / "orphaned-go").touch()
            wait_for(lambda: orphaned.get_status(refresh=True) == "finished")
            assert check(orphaned.return_value()) == busy
            wait_for(lambda: not alive(busy), 10)
        wait_for(lambda: not members(first.process.pid), 10)
        assert len(queue) == count - second_part
        assert "Traceback" not in first.log, first.log

    with rq_serving(tmp_path, redis, kind) as second:
        wait_for(lambda: not len(queue) and jobs[-1].get_status(refresh=True) == "finished", 300)
        answers = [job.return_value() for job in jobs]
        assert [answer[0] for answer in answers] == list(range(count))
        # The hooks ran: each job was a request of an installation that ran, where it should.
        assert all(running and in_flight == 1 for _, _, running, _, in_flight in answers)
        pids = [pid for _, pid, *_ in answers]
        counts = [count for *_, count, _ in answers]
        if forks:
            assert len(set(pids)) == count and not {first.process.pid, second.process.pid} & set(pids)
            assert counts == [1] * count
        else:
            last_part = count - second_part
            assert pids == [first.process.pid] * second_part + [second.process.pid] * last_part
            assert counts == [
                *range(1, first_part + 1),
                *range(first_part + 2, second_part + 2),
                *range(1, last_part + 1),
            ]

        # Told to stop in the middle of a job: that one ends, the next is left to others.
        last, left = enqueue("wait", "last"), enqueue("work", 0)
        text_of(tmp_path / "last")
        second.process.send_signal(signal.SIGTERM)
        wait_for(lambda: any(worker.shutdown_requested_date for worker in RQWorker.all(connection=redis)), 20)
        (tmp_path / "last-go").touch()
        assert second.process.wait(20) == 0
        wait_for(lambda: not members(second.process.pid), 10)
        assert last.get_status(refresh=True) == "finished"
        check(last.return_value())
        assert left.get_status(refresh=True) == "queued"
        ended = json.loads((tmp_path / f"worked-{second.process.pid}").read_text())
        assert ended == {"threshold": THRESHOLDS, "threads": [], "placed": "None"}
        assert "Traceback" not in second.log, second.log


def test_none_of_this_is_imported_with_install():
    assert (
        run(
            """
        import sys
        import synthex_fast
        synthex_fast.install
        print([name for name in ("celery", "rq", "multiprocessing", "gunicorn", "asyncio") if name in sys.modules])
        """
        )
        == "[]\n"
    )
    assert synthex_fast.install is installation.install
