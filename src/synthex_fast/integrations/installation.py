"""`install`: starts a service's tuner, governor and monitor, in the process that serves, and wraps its application."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import weakref

from synthex_fast import _lifecycle, _unraisable
from synthex_fast._arguments import finite_number, want_text
from synthex_fast._lifecycle import Stage
from synthex_fast._readings import Readings, requested_limit
from synthex_fast._threads import RLock
from synthex_fast.errors import AlreadyInstalledError, type_error, value_error
from synthex_fast.exporters import observed
from synthex_fast.gc_tuner import FREE_THREADED, GCTuner
from synthex_fast.governor import Component, MemoryGovernor
from synthex_fast.governor.components import offers
from synthex_fast.integrations import applications, uwsgi
from synthex_fast.integrations.scrape import Endpoint
from synthex_fast.monitor import AdaptiveMemoryMonitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, NoReturn, Self, TypeVar

    T = TypeVar("T")

__all__ = ["Installation", "checked", "current", "hold", "install", "place", "place_to_wait", "release"]

# Modules of `synthex_fast.exporters`.
METRICS = ("prometheus", "opentelemetry")
METRICS_ALLOWED = '"prometheus", "opentelemetry" or a path such as "/metrics"'

DEFAULTS: dict[str, Any] = {
    "memory_limit": None,
    "tuner": True,
    "governor": True,
    "monitor": True,
    "metrics": None,
}

# What an object of the user's own must offer.
METHODS = {
    "tuner": ("start", "stop", "request", "asgi", "wsgi"),
    "governor": ("start", "stop", "register", "unregister"),
    "monitor": ("start", "stop", "on_pressure"),
}


class Installation:
    """What `install` has put in place in this process, and how to remove it.

    ``tuner``, ``governor`` and ``monitor`` are the objects in use, or None. In a forked child an installation that runs
    goes on, with threads of its own. Inside ``with`` it runs, and is removed at the end.

    >>> from synthex_fast import TTLDict, install
    >>> app, installation = install(tuner=False, monitor=False)
    >>> with installation:
    ...     users = installation.register(TTLDict(), name="users")
    ...     installation.running, list(installation.stats["governor"]["components"])
    (True, ['users'])
    >>> installation.running
    False
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._own: dict[str, bool] = {}
        for role, methods in METHODS.items():
            given = options[role]
            self._own[role] = not isinstance(given, bool)
            if self._own[role] and not all(callable(getattr(given, name, None)) for name in methods):
                raise type_error(role, given, f"True, False, or an object with {', '.join(methods)}")
        limit = options["memory_limit"]
        if limit is not None:
            readings = Readings()
            try:
                requested_limit(limit, readings)
            finally:
                readings.close()
            if not any(options[role] is True for role in METHODS):
                raise value_error(
                    "memory_limit", limit, "None, since nothing that `install` makes would use it"
                )
        metrics = options["metrics"]
        self._exporter: Any = None
        # Answers scrapes at a path of the application, while it runs.
        self._endpoint: Endpoint | None = None
        if self._serves_metrics():
            # Now, so that it does not fail when the first worker starts.
            importlib.import_module("synthex_fast.exporters.prometheus")
        elif metrics is not None:
            if not isinstance(metrics, str):
                raise type_error("metrics", metrics, f"{METRICS_ALLOWED}, or None")
            if metrics not in METRICS:
                raise value_error("metrics", metrics, METRICS_ALLOWED)
            self._exporter = importlib.import_module(f"synthex_fast.exporters.{metrics}")
        self.tuner: Any = self._part("tuner", lambda: GCTuner(memory_limit=limit))
        self.monitor: Any = self._part("monitor", lambda: AdaptiveMemoryMonitor(limit=limit))
        self.governor: Any = self._part(
            "governor", lambda: MemoryGovernor(limit, monitor=self.monitor, pause=_may_wait)
        )
        self._interface: str | None = None
        # What stops that which has been started, in the order in which it was.
        self._undo: list[Callable[[], object]] = []
        self._running = False
        # Whether the first request is to start it.
        self._waiting = False
        # Lifespans under way: several applications may be served by one process.
        self._lifespans = 0
        self._registered: dict[int, weakref.ref[Any]] = {}

    def _serves_metrics(self) -> bool:
        metrics = self._options["metrics"]
        return isinstance(metrics, str) and metrics.startswith("/")

    def _part(self, role: str, make: Callable[[], Any]) -> Any:
        given = self._options[role]
        if self._own[role]:
            return given
        return make() if given else None

    # Start and stop

    @property
    def running(self) -> bool:
        """Whether it is running in this process."""
        return self._running

    def start(self) -> None:
        """Start what was asked for, unless it is running. `install` and servers' hooks call it.

        If anything can't be started, nothing is. Raises `TunerRunningError` if a `GCTuner` of somebody else's is
        running, `AlreadyInstalledError` if this installation was stopped and another took its place.
        """
        global _current
        with _guard:
            if self._running:
                return
            if _current is not None and _current is not self:
                raise AlreadyInstalledError("another installation is in place: stop that one first")
            try:
                self._start_parts()
            except BaseException:
                self._undo_all()
                raise
            self._running = True
            self._waiting = False
            _current = self

    def _start_parts(self) -> None:
        undo = self._undo
        shown = observed()
        tuner, governor, monitor = self.tuner, self.governor, self.monitor
        # The governor last, since it starts its monitor if nobody has.
        for part in (tuner, monitor, governor):
            if part is not None and not _is_running(part):
                undo.append(part.stop)
                part.start()
        if governor is not None:
            # What is the user's own on both sides, the user has registered, if it is to be.
            if tuner is not None and not (self._own["tuner"] and self._own["governor"]):
                governor.register(tuner)
                undo.append(lambda: governor.unregister(tuner))
            if monitor is not None and self._own["governor"] and not self._own["monitor"]:
                governor.register(monitor)
                undo.append(lambda: governor.unregister(monitor))
        for part in (tuner, governor, monitor):
            if part is not None and hasattr(part, "stats"):
                shown.add(part)
                undo.append(lambda part=part: shown.remove(part))  # type: ignore[misc]
        if self._exporter is not None:
            registered = self._exporter.register()
            unregister = getattr(registered, "unregister", None)
            if callable(unregister):
                undo.append(unregister)
        if self._serves_metrics():
            endpoint = Endpoint(self._options["metrics"])
            undo.append(endpoint.unregister)
            self._endpoint = endpoint
            undo.append(lambda: setattr(self, "_endpoint", None))

    def _undo_all(self) -> None:
        undo = self._undo
        while undo:
            each = undo.pop()
            try:
                each()
            except Exception as error:
                _unraisable.report(error, each)

    def stop(self) -> None:
        """Stop everything and restore the collector's settings; requests are no longer counted. May be repeated.

        `install` may then be called anew. What was running before `install` was called goes on.
        """
        global _current
        with _guard:
            self._pause()
            self._lifespans = 0
            self._waiting = False
            if _current is self:
                _current = None
            registered = [reference() for reference in self._registered.values()]
            self._registered.clear()
        for obj in registered:
            if obj is not None:
                self.unregister(obj)

    def _pause(self) -> None:
        """Stop everything, and stay in place for the next lifespan."""
        with _guard:
            self._running = False
            self._undo_all()

    def _start_late(self) -> None:
        """With the first request, where no server's hook and no lifespan did it before."""
        with _guard:
            if not self._waiting:
                return
            self._waiting = False
            try:
                self.start()
            except Exception as error:
                # The request is not at fault.
                _unraisable.report(error, self)

    def _enter(self) -> None:
        """A server has started the application."""
        with _guard:
            # Not after `stop`, which says that it is not wanted.
            if _current is self:
                self.start()
                self._lifespans += 1

    def _leave(self) -> None:
        with _guard:
            # None, if it was stopped in the meantime.
            if self._lifespans:
                self._lifespans -= 1
                if not self._lifespans:
                    self._pause()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # Components

    def register(self, obj: T, weight: float = 1.0, *, name: str | None = None) -> T:
        """Have the governor shrink ``obj`` when memory is short, and metrics show it under ``name``. Returns it.

        Takes what `MemoryGovernor.register` takes, and record types or anything else that has ``stats``, which is only
        shown. It is referenced weakly.
        """
        weight = finite_number("weight", weight, "a number, 0 or more", least=0)
        want_text("name", name, optional=True)
        shown = hasattr(obj, "stats")
        component = not isinstance(obj, type) and offers(obj, Component)
        if not (shown or component):
            raise type_error("obj", obj, "something with nbytes and trim(nbytes), or with stats")
        try:
            self._registered[id(obj)] = weakref.ref(obj)
        except TypeError:
            raise type_error("obj", obj, "an object that can be weakly referenced") from None
        if component and self.governor is not None:
            self.governor.register(obj, weight, name=name)
        if shown:
            observed().add(obj, name)
        return obj

    def unregister(self, obj: object) -> bool:
        """Leave ``obj`` alone, and show it no longer. Returns False if it was not registered."""
        self._registered.pop(id(obj), None)
        known = self.governor is not None and bool(self.governor.unregister(obj))
        return observed().remove(obj) or known

    # Reporting

    @property
    def stats(self) -> dict[str, Any]:
        """What runs and what it has done, as a new dict.

        ``running``; ``pid``; ``interface``, ``"asgi"``, ``"rsgi"`` or ``"wsgi"`` if an application was given;
        ``waiting``, whether the first request is to start it; ``tuner``, ``governor`` and ``monitor``: their ``stats``,
        or None.
        """
        return {
            "running": self._running,
            "pid": os.getpid(),
            "interface": self._interface,
            "waiting": self._waiting,
            **{role: getattr(getattr(self, role), "stats", None) for role in METHODS},
        }

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} can't be pickled or copied: it belongs to this process")

    def __repr__(self) -> str:
        parts = [role for role in METHODS if getattr(self, role) is not None]
        state = "running" if self._running else "waiting" if self._waiting else "stopped"
        return f"<Installation of {', '.join(parts) or 'nothing'}, {state}>"

    # Agreement with a further call of `install`, and forks

    def _agree(self, options: dict[str, Any]) -> None:
        """Raise if that asks for something else. An option that was left out asks for nothing in particular."""
        for name, value in options.items():
            mine = self._options[name]
            if value is mine or value is DEFAULTS[name]:
                continue
            if name in ("memory_limit", "metrics") and value == mine:
                continue
            raise AlreadyInstalledError(
                f"{name} is {mine!r} in the installation that is in place, not {value!r}: stop that one first"
            )

    def _after_fork_in_child(self) -> None:
        if not self._running or self.tuner is None or self._own["tuner"]:
            return
        stats = self.tuner.stats
        if stats["frozen"] and stats["collector"] != FREE_THREADED:
            # What the parent has loaded since is shared too, until a collection writes to it. Freezing does not, except
            # on a free-threaded build.
            gc.freeze()


def install(
    app: Any = None,
    *,
    memory_limit: int | float | str | None = None,
    tuner: Any = True,
    governor: Any = True,
    monitor: Any = True,
    metrics: str | None = None,
) -> tuple[Any, Installation]:
    """Start a tuner, a governor and a monitor for a service. Returns the application to serve and the `Installation`.

    ``app`` is an ASGI application (Starlette, FastAPI, Litestar, Quart, Django), a WSGI one (Flask, Django), an RSGI
    one (granian's own interface), or None if there is none. Serve what is returned in its place; its attributes are
    those of ``app``. Each of its requests is a request of the tuner's, so that collections happen between them.

    For an ASGI application, all starts in the process that serves, once the application's own startup is over, and
    stops with its shutdown (the lifespan protocol); with the first request if the server has no lifespan. RSGI's
    ``__rsgi_init__`` and ``__rsgi_del__`` do the same. Otherwise it starts now. A child that is forked afterwards goes
    on with it.

    ``memory_limit`` is for all three: bytes, ``"512MB"``, or ``"80%"`` of the container. ``tuner``, ``governor`` and
    ``monitor`` are True, False, or an object of your own that has the methods of `GCTuner`, `MemoryGovernor` or
    `AdaptiveMemoryMonitor`. ``metrics`` is ``"prometheus"`` or ``"opentelemetry"``, which registers them with that
    library, or a path such as ``"/metrics"``, where the application then answers Prometheus, also for its siblings
    under gunicorn.

    A process has one installation: a further call returns the same, and raises `AlreadyInstalledError` if it asks for
    something else. Raises `ArgumentTypeError` and `ArgumentValueError` for bad arguments, an ``app`` whose interface
    can't be told among them, and `UnsupportedServerError` in a server that the package can't work in.

    >>> from synthex_fast import install
    >>> def hello(environ, start_response):
    ...     start_response("200 OK", [("Content-Type", "text/plain")])
    ...     return [b"hello"]
    >>> app, installation = install(hello, memory_limit="90%")
    >>> installation.stats["interface"], installation.stats["tuner"]["running"]
    ('wsgi', True)
    >>> installation.stop()
    """
    return place(
        app,
        None if app is None else applications.interface(app),
        {
            "memory_limit": memory_limit,
            "tuner": tuner,
            "governor": governor,
            "monitor": monitor,
            "metrics": metrics,
        },
    )


def place(app: Any, kind: str | None, options: dict[str, Any]) -> tuple[Any, Installation]:
    """`install`, with the application's interface known."""
    global _current
    if kind is None and isinstance(options["metrics"], str) and options["metrics"].startswith("/"):
        raise value_error(
            "metrics",
            options["metrics"],
            '"prometheus" or "opentelemetry" where there is no application to answer',
        )
    with _guard:
        installation, new = _current, _current is None
        if installation is None:
            installation = Installation(options)
        else:
            installation._agree(options)
        served = app if kind is None else applications.wrap(app, kind, installation)
        if kind is not None:
            installation._interface = kind
        if new:
            _start_or_wait(installation, kind)
            _current = installation
    return served, installation


def place_to_wait(options: dict[str, Any]) -> Installation:
    """`install` for a server whose hooks start it, in those of its processes that serve."""
    global _current
    chosen = complete(options)
    with _guard:
        if _current is None:
            _current = Installation(chosen)
            _current._waiting = True
        else:
            _current._agree(chosen)
        return _current


def complete(options: dict[str, Any]) -> dict[str, Any]:
    """All arguments of `install` but ``app``; raises TypeError, as a call would, for one that it does not have."""
    for name in options:
        if name not in DEFAULTS:
            raise TypeError(f"install() got an unexpected keyword argument {name!r}")
    return {**DEFAULTS, **options}


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """`complete`, for a process that only hands them on: raises what `install` would."""
    chosen = complete(options)
    Installation(chosen)
    return chosen


def _start_or_wait(installation: Installation, kind: str | None) -> None:
    server = uwsgi.server()
    if server is not None:
        uwsgi.check(server)
    if server is not None and uwsgi.is_master(server):
        uwsgi.after_fork(server, installation.start)
        installation._waiting = True
    elif _holder is not None or kind in (applications.ASGI, applications.RSGI):
        installation._waiting = True
    else:
        installation.start()


def current() -> Installation | None:
    """The installation in place in this process, if any."""
    return _current


def hold(server: str) -> None:
    """Leave the start to a server's hook, which will call `release`: this process may only fork those that serve."""
    global _holder
    _holder = server


def release() -> None:
    global _holder
    _holder = None


def _is_running(part: Any) -> bool:
    running = getattr(part, "running", None)
    if running is None:
        stats = getattr(part, "stats", None)
        running = stats.get("running") if isinstance(stats, dict) else None
    return bool(running)


def _may_wait() -> bool:
    """Whether an addition to a paused buffer may wait: not where an event loop would."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is None or asyncio._get_running_loop() is None


_guard = RLock()
_current: Installation | None = None
_holder: str | None = None


def _after_fork_in_child() -> None:
    global _guard
    _guard = RLock()
    if _current is not None:
        _current._after_fork_in_child()


_lifecycle.register(Stage.INSTALLATION, after_in_child=_after_fork_in_child)
