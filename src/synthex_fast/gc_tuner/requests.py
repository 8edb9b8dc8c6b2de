"""Requests in flight: the context manager and decorator, and the ASGI and WSGI middleware.

Each way of marking a request calls the tuner's ``_begin_request()``, keeps the number of the run that it returns, and
hands it to ``_end_request()`` once. A request that began in another run, or while the tuner was stopped, ends without
effect.
"""

from __future__ import annotations

import contextlib

from synthex_fast.errors import type_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Generator,
        Iterable,
        Iterator,
        MutableMapping,
    )
    from types import TracebackType
    from typing import Any, Protocol, TypeVar

    Function = TypeVar("Function", bound=Callable[..., Any])
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApplication = Callable[[Message, Receive, Send], Awaitable[None]]
    WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

    class Tuner(Protocol):
        """What requests use of `GCTuner`."""

        def _begin_request(self) -> int: ...
        def _end_request(self, run: int) -> None: ...


class Request:
    """A request, as a context manager and as a decorator; may be entered any number of times, also nested."""

    __slots__ = ("_runs", "_tuner")

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._runs: list[int] = []

    def __enter__(self) -> None:
        self._runs.append(self._tuner._begin_request())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._runs:
            self._tuner._end_request(self._runs.pop())

    def __call__(self, function: Function) -> Function:
        """Make each call of ``function`` a request, which lasts until the coroutine or generator it returns ends."""
        import functools
        import inspect

        if not callable(function) or isinstance(function, type):
            raise type_error("function", function, "a function, a coroutine function or a generator function")
        tuner = self._tuner
        plain: Any = function
        while isinstance(plain, functools.partial):
            plain = plain.func
        if not (inspect.isroutine(plain) or inspect.ismethod(plain)):
            # A callable object: its class says what a call returns.
            plain = type(plain).__call__
        made: Callable[..., Any]
        if inspect.isasyncgenfunction(plain):

            async def asynchronous_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
                # Before the request begins, since the function may refuse its arguments.
                inner = function(*args, **kwargs)
                run = tuner._begin_request()
                try:
                    item = await inner.__anext__()
                    while True:
                        try:
                            sent = yield item
                        except GeneratorExit:
                            raise
                        except BaseException as error:
                            item = await inner.athrow(error)
                        else:
                            item = await inner.asend(sent)
                except StopAsyncIteration:
                    pass
                finally:
                    try:
                        await inner.aclose()
                    finally:
                        tuner._end_request(run)

            made = asynchronous_generator
        elif inspect.isgeneratorfunction(plain):

            def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                run = tuner._begin_request()
                try:
                    return (yield from function(*args, **kwargs))
                finally:
                    tuner._end_request(run)

            made = generator
        elif inspect.iscoroutinefunction(plain):

            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                run = tuner._begin_request()
                try:
                    return await function(*args, **kwargs)
                finally:
                    tuner._end_request(run)

            made = coroutine
        else:

            def call(*args: Any, **kwargs: Any) -> Any:
                run = tuner._begin_request()
                try:
                    return function(*args, **kwargs)
                finally:
                    tuner._end_request(run)

            made = call
        functools.update_wrapper(made, function)
        return made  # type: ignore[return-value]


class _Closing:
    """Ends a request once, after closing its response, or when dropped."""

    __slots__ = ("_close", "_run", "_tuner")

    def __init__(self, tuner: Tuner, run: int, result: object) -> None:
        self._close: Callable[[], object] | None = getattr(result, "close", None)
        self._tuner = tuner
        self._run = run

    def close(self) -> None:
        close, self._close = self._close, None
        try:
            if close is not None:
                close()
        finally:
            self._end()

    def _end(self) -> None:
        run, self._run = self._run, 0
        if run:
            self._tuner._end_request(run)

    def __del__(self) -> None:
        # Not set if looking up `close` failed: the middleware ends the request then.
        if getattr(self, "_run", 0):
            self._end()


class Response(_Closing):
    """A WSGI response: its request is in flight until the server closes it, or drops it without closing it."""

    __slots__ = ("_result",)

    def __init__(self, tuner: Tuner, run: int, result: Iterable[bytes]) -> None:
        super().__init__(tuner, run, result)
        self._result = result

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._result)

    def __len__(self) -> int:
        # Servers take the content length from a list of one.
        return len(self._result)  # type: ignore[arg-type]


class _FileClose(_Closing):
    """The ``close`` of a file response. It does not refer to the response: that cycle would live until collected."""

    __slots__ = ()

    def __call__(self) -> None:
        self.close()


def _is_file(environ: dict[str, Any], result: object) -> bool:
    """Whether the server may send the response as a file, by the operating system: only if it gets this very object.

    Most servers have a class in ``wsgi.file_wrapper`` and look for instances of it. uWSGI has a function there, which
    returns the file that it was given and remembers it.
    """
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is None:
        return False
    return isinstance(result, wrapper) if isinstance(wrapper, type) else hasattr(result, "read")


def asgi(tuner: Tuner, app: ASGIApplication) -> ASGIApplication:
    """The application with each HTTP request in flight until the last part of its response is sent."""

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        run = tuner._begin_request()

        async def sent(message: Message) -> None:
            nonlocal run
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                run, ended = 0, run
                tuner._end_request(ended)

        async def received() -> Message:
            nonlocal run
            run, ended = 0, run
            tuner._end_request(ended)
            message = await receive()
            if not run:
                run = tuner._begin_request()
            return message

        try:
            if kind == "http":
                await app(scope, receive, sent)
            else:
                await app(scope, received, send)
        finally:
            run, ended = 0, run
            tuner._end_request(ended)

    return application


def wsgi(tuner: Tuner, app: WSGIApplication) -> WSGIApplication:
    """The application with each request in flight until the server closes its response."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        run = tuner._begin_request()
        try:
            result = app(environ, start_response)
            if not _is_file(environ, result):
                return Response(tuner, run, result)
            closed = _FileClose(tuner, run, result)
        except BaseException:
            tuner._end_request(run)
            raise
        # If the response can't be given another `close`, this one is dropped here, which ends the request.
        with contextlib.suppress(AttributeError, TypeError):
            result.close = closed  # type: ignore[attr-defined]
        return result

    return application
