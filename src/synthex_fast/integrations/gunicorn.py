"""Hooks for gunicorn, for the top of ``gunicorn.conf.py``::

    from synthex_fast.integrations.gunicorn import *

    configure(memory_limit="80%")  # optional: the arguments of synthex_fast.install
    preload_app = True

Each worker then has a tuner, a governor and a monitor, and its requests are counted, whether or not the application
calls `install` itself:

- ``pre_fork``, in the master: with ``preload_app``, collects and freezes what has been loaded, before each fork.
- ``post_worker_init``, in the worker: wraps the application and starts. Not in ``post_fork``, because only now has a
  worker without ``preload_app`` loaded the application, which is to be frozen too. An ASGI application starts it with
  its lifespan.
- ``worker_exit``, in the worker: stops.
- ``on_starting``, ``on_reload``: check the worker class.
- ``on_exit``, in the master: removes what the workers shared.

With ``configure(metrics="/metrics")`` any worker answers Prometheus for all of them at that path.

Hooks of your own may stand anywhere in the file: yours run first, then these. A function that replaces one of these is
found when gunicorn starts or reloads. Only if yours replace ``on_starting``, ``on_reload`` and ``pre_fork``, all three,
call ``hooks(globals())`` at the end of the file.
"""

from __future__ import annotations

import os

from synthex_fast.errors import UnsupportedServerError
from synthex_fast.integrations import applications, forking, installation, scrape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "configure",
    "hooks",
    "on_exit",
    "on_reload",
    "on_starting",
    "post_worker_init",
    "pre_fork",
    "worker_exit",
]

# Which gunicorn may not use, and why.
_REFUSED = {
    "eventlet": "it makes green threads of the package's own, which must run beside the event loop",
    "tornado": "its applications are neither ASGI nor WSGI",
}

_options = dict(installation.DEFAULTS)


def configure(**options: Any) -> None:
    """Say what is to be installed in each worker: the arguments of `synthex_fast.install`, without ``app``.

    Raises what `install` would raise for them, and `TypeError` for an argument that it does not have.
    """
    _options.update(installation.checked(options))


def on_starting(server: Any) -> None:
    """In the master, before it listens."""
    _adopt(server)


def on_reload(server: Any) -> None:
    """In the master, after it has read its configuration again, and before it forks new workers."""
    _adopt(server)


def pre_fork(server: Any, worker: Any) -> None:
    """In the master, before each fork."""
    _adopt(server)
    if str(_options["metrics"]).startswith("/"):
        # A scrape reaches any of the workers, so each answers for all.
        scrape.share_directory()
    if server.cfg.preload_app:
        forking.freeze()


def post_worker_init(worker: Any) -> None:
    """In the worker, which has loaded its application."""
    installation.release()
    name = "asgi" if hasattr(worker, "asgi") else "wsgi"
    app = getattr(worker, name)
    kind = applications.interface(
        app, or_else=applications.ASGI if _serves_asgi(worker) else applications.WSGI
    )
    if kind == applications.RSGI:
        raise UnsupportedServerError(
            "gunicorn serves ASGI and WSGI applications, and this is RSGI's, for granian"
        )
    served, placed = installation.place(app, kind, _options)
    setattr(worker, name, served)
    if kind == applications.WSGI:
        placed.start()


def worker_exit(server: Any, worker: Any) -> None:
    """In the worker, which is about to end; in the master for one that it finds dead."""
    placed = installation.current()
    if placed is not None and worker.pid == os.getpid():
        placed.stop()


def on_exit(server: Any) -> None:
    """In the master, at its end."""
    scrape.unshare_directory()


_OURS: dict[str, Callable[..., None]] = {
    each.__name__: each for each in (on_starting, on_reload, pre_fork, post_worker_init, worker_exit, on_exit)
}


def hooks(namespace: dict[str, Any]) -> None:
    """Make the functions of a configuration file that replaced these hooks call them.

    Needed only if all of ``on_starting``, ``on_reload`` and ``pre_fork`` are yours: ``hooks(globals())`` at the end of
    the file.
    """
    for name, ours in _OURS.items():
        namespace[name] = _after(namespace.get(name), ours)


def _adopt(server: Any) -> None:
    """Add these hooks to those that the configuration has in their place, once."""
    _refuse(server.cfg)
    for name, ours in _OURS.items():
        theirs = server.cfg.settings[name].get()
        chained = _after(theirs, ours)
        if chained is not theirs:
            server.cfg.set(name, chained)


def _after(theirs: Any, ours: Callable[..., None]) -> Any:
    """A hook that calls ``theirs``, then ``ours``; ``theirs`` itself if it does already."""
    if theirs is ours or getattr(theirs, "__wrapped__", None) is ours:
        return theirs
    if theirs is None:
        return ours

    # gunicorn counts a hook's arguments: those of `__wrapped__`.
    def hook(*arguments: Any) -> None:
        try:
            theirs(*arguments)
        except BaseException:
            if ours is worker_exit:
                ours(*arguments)
            raise
        ours(*arguments)

    hook.__wrapped__ = ours  # type: ignore[attr-defined]
    hook.__name__ = ours.__name__
    return hook


def _refuse(cfg: Any) -> None:
    name = cfg.worker_class_str
    for refused, reason in _REFUSED.items():
        if refused in name.lower():
            raise UnsupportedServerError(
                f"synthex_fast works with gunicorn's workers sync, gthread, gevent and asgi, and with uvicorn's, not "
                f"with {name}: {reason}"
            )


def _serves_asgi(worker: Any) -> bool:
    return hasattr(worker, "asgi") or any(
        base.__module__.startswith(("uvicorn", "uvicorn_worker")) for base in type(worker).__mro__
    )


# The master only forks those that serve, also where it loads an application that calls `install`.
installation.hold("gunicorn")
