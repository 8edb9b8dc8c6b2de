"""Applications of web servers: which interface one has, and the one to serve in its place.

The application to serve makes a request of each request, starts the installation if nothing else has, and otherwise
passes everything on: attributes too, so that ``app.get("/")`` or ``app.test_client()`` go on working.
"""

from __future__ import annotations

import functools
import inspect

from synthex_fast.errors import ArgumentTypeError, UnsupportedServerError, type_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from synthex_fast.gc_tuner.requests import Message, Receive, Send
    from synthex_fast.integrations.installation import Installation

__all__ = ["ASGI", "RSGI", "WSGI", "Application", "interface", "wrap"]

ASGI, RSGI, WSGI = "asgi", "rsgi", "wsgi"

# Says in a request's own dict that it has been counted: an application may be wrapped at more than one place.
COUNTED = "synthex_fast.counted"

_ALLOWED = "an ASGI, RSGI or WSGI application, or None"
_SPELLED_OUT = (
    "an application whose arguments show its interface: wrap it in a function of your own, "
    "`async def app(scope, receive, send)` or `def app(environ, start_response)`"
)


def interface(app: object, or_else: str | None = None) -> str:
    """``"asgi"``, ``"rsgi"`` or ``"wsgi"``. Raises `ArgumentTypeError`, naming ``app``, if that can't be told.

    Three arguments are ASGI's (``scope, receive, send``), two WSGI's (``environ, start_response``) or, of a coroutine
    function, RSGI's (``scope, protocol``). An object with ``__rsgi__`` is RSGI's unless it is ASGI's as well.
    ``or_else`` is what it is if its arguments may be either's.
    """
    if isinstance(app, Application):
        return app.interface
    if isinstance(app, type):
        raise type_error("app", app, f"{_ALLOWED}: an instance, where this is the class")
    if hasattr(app, "__rsgi__"):
        try:
            return ASGI if _interface_of_call(app, or_else) == ASGI else RSGI
        except ArgumentTypeError:
            return RSGI
    return _interface_of_call(app, or_else)


def _interface_of_call(app: object, or_else: str | None) -> str:
    if not callable(app):
        raise type_error("app", app, _ALLOWED)
    call: Any = app
    while isinstance(call, functools.partial):
        call = call.func
    if not (inspect.isroutine(call) or isinstance(call, functools.partial)):
        call = type(call).__call__.__get__(call)
    awaited = inspect.iscoroutinefunction(call)
    try:
        signature = inspect.signature(app if isinstance(app, functools.partial) else call)
    except (ValueError, TypeError):
        if or_else is not None:
            return or_else
        raise type_error("app", app, _SPELLED_OUT) from None
    three, two, one = (_accepts(signature, count) for count in (3, 2, 1))
    if three and (awaited or not two):
        return ASGI
    if two and not three:
        return RSGI if awaited else WSGI
    if three and two:
        first = next(iter(signature.parameters))
        if first == "scope":
            return ASGI
        if first in ("environ", "env"):
            return WSGI
        if or_else is not None:
            return or_else
        raise type_error("app", app, _SPELLED_OUT)
    if one and not two:
        raise type_error("app", app, f"{_ALLOWED}: with one argument it is of ASGI 2, which is not supported")
    raise type_error("app", app, _ALLOWED)


def _accepts(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


class Application:
    """What `install` returns in an application's place. Attributes are those of the application."""

    __slots__ = ("_app", "_counted", "_installation")
    interface = ""

    def __init__(self, app: Callable[..., Any], installation: Installation) -> None:
        object.__setattr__(self, "_app", app)
        object.__setattr__(self, "_installation", installation)
        object.__setattr__(self, "_counted", self._with_requests(self.interface, app))

    def _with_requests(self, kind: str, app: Callable[..., Any]) -> Callable[..., Any]:
        tuner = self._installation.tuner
        if tuner is None:
            return app
        wrap = getattr(tuner, kind, None)
        if wrap is None:
            raise type_error("tuner", tuner, f"an object with {kind}, for an application of this kind")
        return wrap(app)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        # Not those of the language: copying or pickling, say, would take the application for this object.
        if name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._app, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._app, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._app, name)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self._app)})

    def __repr__(self) -> str:
        return f"<{self._app!r}, installed in {self._installation!r}>"

    def __rsgi_init__(self, loop: Any) -> None:
        """granian, whose default interface is RSGI, calls it before it serves."""
        raise UnsupportedServerError(
            f"granian was told to serve an RSGI application, and this is {self.interface.upper()}'s: start it with "
            f"--interface {self.interface}"
        )


class WSGIApplication(Application):
    __slots__ = ()
    interface = WSGI

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        installation = self._installation
        if installation._waiting:
            installation._start_late()
        endpoint = installation._endpoint
        if endpoint is not None:
            answer: Iterable[bytes] | None = endpoint.wsgi(environ, start_response)
            if answer is not None:
                return answer
        if COUNTED in environ:
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        environ[COUNTED] = True
        return self._counted(environ, start_response)  # type: ignore[no-any-return]


class ASGIApplication(Application):
    __slots__ = ()
    interface = ASGI

    # Servers ask whether this is a coroutine function.
    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _Lifespan(self._app, self._installation, receive, send).run(scope)
            return
        installation = self._installation
        if installation._waiting:
            installation._start_late()
        endpoint = installation._endpoint
        if endpoint is not None and await endpoint.asgi(scope, send):
            return
        if COUNTED in scope:
            await self._app(scope, receive, send)
        else:
            scope[COUNTED] = True
            await self._counted(scope, receive, send)


class RSGIApplication(Application):
    """For granian, which takes the three methods that the specification of RSGI names, or calls it."""

    __slots__ = ("_call",)
    interface = RSGI

    def __init__(self, app: Any, installation: Installation) -> None:
        object.__setattr__(self, "_call", getattr(app, "__rsgi__", app))
        super().__init__(app, installation)

    def _with_requests(self, kind: str, app: Callable[..., Any]) -> Callable[..., Any]:
        return super()._with_requests(kind, self._call)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        installation = self._installation
        if installation._waiting:
            installation._start_late()
        endpoint = installation._endpoint
        if endpoint is None or not endpoint.rsgi(scope, protocol):
            await self._counted(scope, protocol)

    __call__ = __rsgi__

    def __rsgi_init__(self, loop: Any) -> None:
        """Start, once the application has: what it has loaded is then frozen too."""
        begin = getattr(self._app, "__rsgi_init__", None)
        if begin is not None:
            begin(loop)
        try:
            self._installation._enter()
        except BaseException:
            self._end(loop)
            raise

    def __rsgi_del__(self, loop: Any) -> None:
        try:
            self._end(loop)
        finally:
            self._installation._leave()

    def _end(self, loop: Any) -> None:
        end = getattr(self._app, "__rsgi_del__", None)
        if end is not None:
            end(loop)


class _Lifespan:
    """One run of a server's lifespan protocol.

    The installation starts once the application has started, so that what it has loaded is frozen too, and stops
    before the application tells the server that it has ended. An application that does not know the protocol, such as
    Django, is answered for.
    """

    __slots__ = ("_app", "_entered", "_failed", "_heard", "_installation", "_receive", "_send", "_told")

    def __init__(
        self, app: Callable[..., Any], installation: Installation, receive: Receive, send: Send
    ) -> None:
        self._app = app
        self._installation = installation
        self._receive = receive
        self._send = send
        # Whether the application has received or sent anything, and whether the server was told of a failed start.
        self._heard = self._told = self._entered = False
        self._failed: Exception | None = None

    async def run(self, scope: Message) -> None:
        try:
            try:
                await self._app(scope, self._receive_for_app, self._send_for_app)
            except Exception:
                if self._heard:
                    await self._tell_of_failure()
                    raise
            if not self._heard:
                await self._answer()
        finally:
            self._leave()

    async def _receive_for_app(self) -> Message:
        self._heard = True
        return await self._receive()

    async def _send_for_app(self, message: Message) -> None:
        self._heard = True
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            # What this raises, the application takes for its server's failure: it cleans up, and says that it failed.
            self._enter()
        elif kind == "lifespan.startup.failed":
            self._told = True
        elif kind.startswith("lifespan.shutdown."):
            self._leave()
        await self._send(message)

    async def _answer(self) -> None:
        await self._receive()
        try:
            self._enter()
        except Exception:
            await self._tell_of_failure()
            raise
        await self._send({"type": "lifespan.startup.complete"})
        await self._receive()
        self._leave()
        await self._send({"type": "lifespan.shutdown.complete"})

    def _enter(self) -> None:
        try:
            self._installation._enter()
        except Exception as error:
            self._failed = error
            raise
        self._entered = True

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self._installation._leave()

    async def _tell_of_failure(self) -> None:
        """Servers take an error for an application without a lifespan, and would go on."""
        if self._failed is not None and not self._told:
            self._told = True
            message = f"synthex_fast did not start: {self._failed}"
            await self._send({"type": "lifespan.startup.failed", "message": message})


def wrap(app: Any, kind: str, installation: Installation) -> Application:
    """The application to serve, of that interface; the same one if this installation has made it."""
    if isinstance(app, Application):
        if app._installation is installation:
            return app
        app = app._app
    return _APPLICATIONS[kind](app, installation)


_APPLICATIONS: dict[str, type[Application]] = {
    each.interface: each for each in (ASGIApplication, RSGIApplication, WSGIApplication)
}
