"""uWSGI: what works with it, and what `install` refuses there."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import REPORTING, check_running, free_port, members, serving
from support import ROOT, wait_for

UWSGI = shutil.which(
    "uwsgi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)

pytestmark = [
    pytest.mark.skipif(UWSGI is None, reason="not installed: uwsgi"),
    pytest.mark.slow,
    pytest.mark.linux(reason="sessions of processes"),
]

APPLICATION = (
    REPORTING
    + """
import synthex_fast

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [report(environ["PATH_INFO"])]

application, installation = synthex_fast.install(application)
print("at import", installation)
"""
)


def command(port, *options):
    return [
        *(UWSGI, "--http-socket", f"127.0.0.1:{port}", "--module", "application", "--need-app"),
        *("--virtualenv", sys.prefix, "--pythonpath", str(ROOT), *options),
    ]


@pytest.mark.parametrize(
    "options",
    [
        "--master --processes 2 --enable-threads",
        "--master --processes 2 --threads 2 --lazy-apps",
        "--enable-threads",
    ],
)
def test_workers_serve_are_replaced_reload_and_end(tmp_path, options):
    port = free_port()
    with serving(
        tmp_path,
        command(port, "--die-on-term", *options.split()),
        port=port,
        files={"application.py": APPLICATION},
    ) as server:
        check_running(server.wait_until_it_answers())
        state = "running" if "lazy" in options else "waiting"
        assert f"at import <Installation of tuner, governor, monitor, {state}>" in server.log
        workers = 2 if "--master" in options else 1
        first = {answer["pid"] for answer in server.get_many(1000, "/")}
        counted = {}

        def counts():
            answer = server.get()
            check_running(answer)
            counted[answer["pid"]] = answer["stats"]["tuner"]["requests"]
            return sum(counted.values()) >= 1000

        wait_for(counts)
        if workers == 2:
            os.kill(victim := next(iter(first)), signal.SIGKILL)
            now = server.all_workers(2, besides={victim})
            server.process.send_signal(signal.SIGHUP)
            # All: one that is still loading the application would take a stop for an interrupt.
            server.all_workers(2, besides=now)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        wait_for(lambda: not members(server.process.pid), 10)
        assert "Traceback" not in server.log and "Segmentation" not in server.log


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--master", "synthex_fast works with uWSGI only with enable-threads (or threads)"),
        ("--gevent 10 --enable-threads", "synthex_fast does not work with uWSGI's gevent loop"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(tmp_path, options, text):
    (tmp_path / "application.py").write_text(APPLICATION)
    done = subprocess.run(
        command(free_port(), *options.split()), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    if "gevent" in options and "unrecognized option" in done.stderr:
        pytest.skip("this uWSGI has no gevent")
    assert done.returncode != 0
    assert f"UnsupportedServerError: {text}" in done.stderr
    assert "spawned uWSGI worker" not in done.stderr
