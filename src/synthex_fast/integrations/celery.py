"""Celery: tasks are requests, and each pool process has a tuner, a governor and a monitor::

    from synthex_fast.integrations.celery import connect

    connect(memory_limit="80%")  # next to the application, where workers import it

With the prefork pool, the worker's main process collects and freezes what has been loaded before it forks, and starts
nothing itself. With the pools ``solo``, ``threads`` and ``gevent`` everything runs in the worker's one process.
"""

from __future__ import annotations

import sys

from synthex_fast.errors import UnsupportedServerError
from synthex_fast.integrations import forking, installation

try:
    from celery import signals
except ImportError as error:
    raise ImportError("synthex_fast.integrations.celery needs Celery: pip install celery") from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from synthex_fast.integrations.installation import Installation

__all__ = ["connect"]

# The tasks that run, each with its request. Threads change it at once, each for its own task.
_requests: dict[str, Any] = {}


def connect(**options: Any) -> Installation:
    """Make requests of tasks, in this application's workers; ``options`` are those of `synthex_fast.install`.

    Elsewhere, as in a program that only sends tasks, nothing starts. Raises what `install` raises, and
    `UnsupportedServerError` in a worker with the pool ``eventlet``.
    """
    if "eventlet" in sys.modules and sys.modules["eventlet"].patcher.is_monkey_patched("thread"):
        raise UnsupportedServerError(
            "synthex_fast works with Celery's pools prefork, solo, threads and gevent, not with eventlet: it makes "
            "green threads of the package's own, which must run beside the event loop"
        )
    placed = installation.place_to_wait(options)
    for signal, receiver in (
        (signals.worker_init, _before_pool),
        (signals.worker_before_create_process, _before_fork),
        (signals.worker_process_init, _start),
        (signals.worker_ready, _start_without_processes),
        (signals.worker_process_shutdown, _stop),
        (signals.worker_shutdown, _stop),
        (signals.task_prerun, _begin_task),
        (signals.task_postrun, _end_task),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=f"synthex_fast.{receiver.__name__}.{signal.name}")
    return placed


def _before_pool(sender: Any = None, **named: Any) -> None:
    """In the main process, which has loaded the tasks. Brokers without an event loop send no signal for each fork."""
    if "prefork" in str(getattr(sender, "pool_cls", "")):
        forking.freeze()


def _before_fork(**named: Any) -> None:
    forking.freeze()


def _start(**named: Any) -> None:
    placed = installation.current()
    if placed is not None:
        placed.start()


def _start_without_processes(sender: Any = None, **named: Any) -> None:
    pool = getattr(sender, "pool", None)
    if pool is not None and not type(pool).__module__.endswith("prefork"):
        _start()


def _stop(**named: Any) -> None:
    placed = installation.current()
    if placed is not None and placed.running:
        placed.stop()


def _begin_task(task_id: str, **named: Any) -> None:
    placed = installation.current()
    if placed is not None and placed.running and placed.tuner is not None:
        request = placed.tuner.request()
        request.__enter__()
        _requests[task_id] = request


def _end_task(task_id: str, **named: Any) -> None:
    request = _requests.pop(task_id, None)
    if request is not None:
        request.__exit__(None, None, None)
