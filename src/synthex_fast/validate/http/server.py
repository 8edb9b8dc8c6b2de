"""A server's process: ``python -m synthex_fast.validate.http.server KIND FD WORKERS``.

It serves `application.create` on the listening socket FD, and ends when its standard input does, together with its
workers, so that it can't outlive the process that started it, however that one ended.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading

from synthex_fast.validate.http import protocol
from synthex_fast.validate.http.application import SETTINGS, end_with_parent

FACTORY = "synthex_fast.validate.http.application:create"
# Longer than any arm waits for its turn: gunicorn kills a worker that it has not heard of for that long.
TIMEOUT = 86_400
# Seconds that a connection may be idle: longer than a load balancer's, as is usual behind one. By default gunicorn
# closes it after two, also when it was the worker that stalled.
KEEP_ALIVE = 75


def _end_with_input() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdin.buffer.read()
    # The group is this process's own, and its workers'.
    os.killpg(0, signal.SIGKILL)


def main(kind: str, fd: int, workers: int) -> None:
    os.setpgid(0, 0)
    end_with_parent()
    threading.Thread(target=_end_with_input, name="input", daemon=True).start()
    if kind == "uvicorn":
        import uvicorn

        config = uvicorn.Config(
            FACTORY,
            factory=True,
            loop="uvloop",
            http="httptools",
            lifespan="on",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            log_level="error",
        )
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])
        return
    from gunicorn.app.wsgiapp import run

    sys.argv = ["gunicorn", f"{FACTORY}()", f"--bind=fd://{fd}", f"--workers={workers}", "--preload"]
    sys.argv += ["--worker-class=uvicorn_worker.UvicornWorker", f"--timeout={TIMEOUT}"]
    sys.argv += [f"--keep-alive={KEEP_ALIVE}", "--log-level=error"]
    # Always one, since gunicorn would otherwise read a gunicorn.conf.py of the current directory, in some arms only.
    is_ours = json.loads(os.environ[SETTINGS])["arm"] == "synthex_fast"
    config = "synthex_fast.integrations.gunicorn" if is_ours else protocol.__name__
    sys.argv.append(f"--config=python:{config}")
    os.environ.pop("GUNICORN_CMD_ARGS", None)
    run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
