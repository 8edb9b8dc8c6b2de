"""uWSGI: `install` finds it by itself; what it must be told is here.

uWSGI loads an application in its master and forks afterwards, without the interpreter's hooks for forks, unless it has
``lazy-apps``. So nothing is started in the master: each worker starts after the fork.
"""

from __future__ import annotations

import sys

from synthex_fast.errors import UnsupportedServerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["after_fork", "check", "is_master", "server"]


def server() -> Any:
    """uWSGI's own module, which exists in its processes only, or None."""
    module = sys.modules.get("uwsgi")
    # A script of that name is none.
    return module if hasattr(module, "worker_id") and hasattr(module, "opt") else None


def check(uwsgi: Any) -> None:
    """Raise `UnsupportedServerError` for settings with which the package can't work."""
    if not ("enable-threads" in uwsgi.opt or "threads" in uwsgi.opt):
        raise UnsupportedServerError(
            "synthex_fast works with uWSGI only with enable-threads (or threads): without it, no thread but the "
            "request's ever runs"
        )
    for loop in ("gevent", "asyncio", "greenlet"):
        if loop in uwsgi.opt:
            raise UnsupportedServerError(
                f"synthex_fast does not work with uWSGI's {loop} loop, whose requests take turns in one thread; use "
                "threads or processes"
            )


def is_master(uwsgi: Any) -> bool:
    """Whether this process only forks those that serve."""
    return not uwsgi.worker_id()


def after_fork(uwsgi: Any, start: Callable[[], object]) -> None:
    """Call ``start`` in each worker. Without a master there is no such hook: the first request is left to do it."""
    if not uwsgi.masterpid():
        return
    try:
        import uwsgidecorators
    except ImportError:
        before = getattr(uwsgi, "post_fork_hook", None)

        def hook() -> None:
            if before is not None:
                before()
            start()

        uwsgi.post_fork_hook = hook
    else:
        # It has the one hook that uWSGI knows, and whoever imports it later would replace another.
        uwsgidecorators.postfork(start)
