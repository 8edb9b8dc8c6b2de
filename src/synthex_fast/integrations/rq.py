"""RQ: worker classes for ``rq worker --worker-class synthex_fast.integrations.rq.Worker``.

Each job is a request. `Worker` forks a process for each job: before that it collects and freezes once, so that a job's
process copies little of what the worker has loaded, and the job's process starts what was asked for. `SimpleWorker`
runs jobs in its own process. Options are a class attribute::

    class Worker(synthex_fast.integrations.rq.Worker):
        options = {"memory_limit": "80%"}  # the arguments of synthex_fast.install

A mixin, `Jobs`, does the same for other classes of RQ's that fork or run jobs themselves.
"""

from __future__ import annotations

from synthex_fast.integrations import forking, installation

try:
    import rq
except ImportError as error:
    raise ImportError("synthex_fast.integrations.rq needs RQ: pip install rq") from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

__all__ = ["Jobs", "SimpleWorker", "Worker"]


class Jobs:
    """Makes a request of each job; stands before a class of RQ's in a list of bases."""

    options: ClassVar[dict[str, Any]] = {}

    def work(self, *arguments: Any, **named: Any) -> Any:
        placed = installation.place_to_wait(self.options)
        try:
            return super().work(*arguments, **named)  # type: ignore[misc]
        finally:
            placed.stop()

    def fork_work_horse(self, *arguments: Any, **named: Any) -> Any:
        forking.freeze()
        return super().fork_work_horse(*arguments, **named)  # type: ignore[misc]

    def perform_job(self, *arguments: Any, **named: Any) -> Any:
        placed = installation.current() or installation.place_to_wait(self.options)
        placed.start()
        if placed.tuner is None:
            return super().perform_job(*arguments, **named)  # type: ignore[misc]
        with placed.tuner.request():
            return super().perform_job(*arguments, **named)  # type: ignore[misc]


class Worker(Jobs, rq.Worker):
    """Forks a process for each job."""


class SimpleWorker(Jobs, rq.SimpleWorker):
    """Runs jobs in its own process."""
