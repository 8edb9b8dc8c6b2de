"""Requests in flight: their ages, the context manager and decorator, and the ASGI, RSGI and WSGI middleware.

Each way of marking a request calls the tuner's ``_begin_request()``, keeps the number that it returns, and passes it
to ``_end_request()`` once. A request that began in another run, or while the tuner was stopped, ends without effect.

A response that is streamed is in flight only while the application works on a part of it. Each part then begins and
ends like a request, but is not counted as one.
"""

from __future__ import annotations

import contextlib
import itertools
import types

from synthex_fast.errors import type_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Coroutine,
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
    RSGIApplication = Callable[[Any, Any], Awaitable[None]]
    WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

    class Tuner(Protocol):
        """What requests use of `GCTuner`."""

        def _begin_request(self, counted: bool = True) -> int: ...
        def _end_request(self, number: int) -> None: ...


class InFlight:
    """When each request in flight began, by number; those older than ``long_ns`` are *long* and kept apart.

    The tuner's ``_lock`` guards it. The lock is reentrant and a finaliser may begin and end requests anywhere, so each
    step leaves it consistent.
    """

    __slots__ = ("_long", "_long_ns", "began", "due", "numbers")

    def __init__(self, long_ns: float) -> None:
        self._long_ns = long_ns
        # Never the same number twice, in no run: a request of another run is unknown.
        self.numbers = itertools.count(1)
        self.reset()

    def reset(self) -> None:
        # In a forked child the parent's may be in any state.
        self.began: dict[int, int] = {}
        self._long: set[int] = set()
        # No request becomes long before this.
        self.due: float = 0

    @property
    def long(self) -> int:
        return len(self._long)

    def end_long(self, number: int) -> bool:
        """Whether it was one of the long ones."""
        if number in self._long:
            self._long.discard(number)
            return True
        return False

    def find_long(self, now: int) -> None:
        began = self.began
        while began:
            # The order is that in which they began.
            number = next(iter(began))
            due = began.get(number, now) + self._long_ns
            if due > now:
                self.due = due
                return
            # In this order: if allocation fails, nothing has changed.
            self._long.add(number)
            if began.pop(number, None) is None:
                self._long.discard(number)
        self.due = now + self._long_ns


class Request:
    """A request, as a context manager and as a decorator; may be entered any number of times, also nested."""

    __slots__ = ("_numbers", "_tuner")

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        # Never emptied, as a list that is frees its memory, and each request would allocate it again. No request is 0.
        self._numbers: list[int] = [0, 0]

    def __enter__(self) -> None:
        self._numbers.append(self._tuner._begin_request())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if len(self._numbers) > 2:
            self._tuner._end_request(self._numbers.pop())

    def __call__(self, function: Function) -> Function:
        """Make each call of ``function`` a request, which lasts until the awaitable or generator it returns ends.

        A static or class method becomes another one.
        """
        import functools
        import inspect

        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(self(function.__func__))
        if not callable(function) or isinstance(function, type):
            raise type_error("function", function, "a function, a coroutine function or a generator function")
        plain: Any = function
        while True:
            if isinstance(plain, functools.partial):
                plain = plain.func
            elif isinstance(plain, staticmethod):
                plain = plain.__func__
            else:
                break
        if not (inspect.isroutine(plain) or inspect.ismethod(plain)):
            # A callable object: its class says what a call returns.
            plain = type(plain).__call__
        decorate: Callable[..., Callable[..., Any]]
        if inspect.isasyncgenfunction(plain):
            decorate = _asynchronous_generator
        elif inspect.isgeneratorfunction(plain):
            is_coroutine = plain.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE
            decorate = _coroutine if is_coroutine else _generator
        elif inspect.iscoroutinefunction(plain):
            decorate = _coroutine
        else:
            decorate = _call
        made: Any = decorate(self._tuner, function)
        return functools.update_wrapper(made, function)  # type: ignore[return-value]


# What `Request` makes of a function, by what a call of it returns. A result that goes on with a request, which has been
# counted, is wrapped by the same functions.


def _asynchronous_generator(tuner: Tuner, function: Callable[..., Any], counted: bool = True) -> Any:
    async def asynchronous_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        # Before the request begins, since the function may refuse its arguments.
        inner = function(*args, **kwargs)
        number = tuner._begin_request(counted)
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
                tuner._end_request(number)

    return asynchronous_generator


def _generator(tuner: Tuner, function: Callable[..., Any], counted: bool = True) -> Any:
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        number = tuner._begin_request(counted)
        try:
            return (yield from function(*args, **kwargs))
        finally:
            tuner._end_request(number)

    return generator


def _coroutine(tuner: Tuner, function: Callable[..., Any], counted: bool = True) -> Any:
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        number = tuner._begin_request(counted)
        try:
            return await function(*args, **kwargs)
        finally:
            tuner._end_request(number)

    return coroutine


def _call(tuner: Tuner, function: Callable[..., Any]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        number = tuner._begin_request()
        try:
            result = function(*args, **kwargs)
            if hasattr(type(result), "__await__"):
                if hasattr(result, "add_done_callback"):
                    # A future or task, which the caller may have use for as such.
                    ended = number
                    result.add_done_callback(lambda future: tuner._end_request(ended))
                    number = 0
                    return result
                decorate = _coroutine
            elif isinstance(result, types.GeneratorType):
                # 0x100 is CO_ITERABLE_COROUTINE: a coroutine made of a generator.
                decorate = _coroutine if result.gi_code.co_flags & 0x100 else _generator
            elif isinstance(result, types.AsyncGeneratorType):
                decorate = _asynchronous_generator
            else:
                return result
            return decorate(tuner, lambda: result, False)()
        finally:
            tuner._end_request(number)

    return call


class _Closing:
    """Ends a request once, after closing its response, or when dropped."""

    __slots__ = ("_close", "_number", "_tuner")

    def __init__(self, tuner: Tuner, number: int, result: object) -> None:
        self._close: Callable[[], object] | None = getattr(result, "close", None)
        self._tuner = tuner
        self._number = number

    def close(self) -> None:
        close, self._close = self._close, None
        try:
            if close is not None:
                close()
        finally:
            self._end()

    def _end(self) -> None:
        number, self._number = self._number, 0
        if number:
            self._tuner._end_request(number)

    def __del__(self) -> None:
        # Not set if looking up `close` failed: the middleware ends the request then.
        if getattr(self, "_number", 0):
            self._end()


class Response(_Closing):
    """A WSGI response: its request is in flight until the server closes it, or drops it without closing it.

    While the server sends a part that the application made when asked for it, the request is not in flight.
    """

    __slots__ = ("_closed", "_result")

    def __init__(self, tuner: Tuner, number: int, result: Iterable[bytes]) -> None:
        super().__init__(tuner, number, result)
        self._result = result
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        # In a list all parts have been made already.
        return iter(self._result) if isinstance(self._result, (list, tuple)) else self._parts()

    def _parts(self) -> Iterator[bytes]:
        for part in self._result:
            self._end()
            yield part
            self._resume()

    def _resume(self) -> None:
        if not self._number and not self._closed:
            self._number = _begin_part(self._tuner)

    def __len__(self) -> int:
        # Servers take the content length from a list of one.
        return len(self._result)  # type: ignore[arg-type]

    def close(self) -> None:
        self._resume()
        self._closed = True
        super().close()


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


def _begin_part(tuner: Tuner) -> int:
    """For the next part of a response. It is made in any case, so it is merely not in flight if allocation fails."""
    with contextlib.suppress(MemoryError):
        return tuner._begin_request(False)
    return 0


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class _Exchange:
    """A request and its response, over ASGI or RSGI.

    From the first part of a streamed response on, the request is in flight only while the application runs, and not
    while it waits: for its next event, say, or for a slow client. An application that runs in another task from there,
    as frameworks' streaming responses and middleware may do, can't be seen to run, and is not in flight.
    """

    __slots__ = ("_is_running", "_number", "_streams", "_tuner")

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._streams = self._is_running = False
        self._number = tuner._begin_request()

    def stream(self) -> None:
        self._streams = True
        if not self._is_running:
            self._leave()

    def _leave(self) -> None:
        number, self._number = self._number, 0
        self._tuner._end_request(number)

    def end(self) -> None:
        self._streams = False
        self._leave()

    @types.coroutine
    def run(self, made: Awaitable[None]) -> Generator[Any, Any, Any]:
        """Await what the application has returned."""
        coroutine: Coroutine[Any, Any, Any]
        coroutine = made if isinstance(made, types.CoroutineType) else _wait_for(made)
        step: Callable[[Any], Any] = coroutine.send
        value: Any = None
        while True:
            if self._streams and not self._number:
                self._number = _begin_part(self._tuner)
            self._is_running = True
            try:
                awaited = step(value)
            except StopIteration as stop:
                return stop.value
            finally:
                self._is_running = False
                # An exception would be kept by the frame in its own traceback.
                value = None
            if self._streams:
                self._leave()
            try:
                value = yield awaited
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                step, value = coroutine.throw, error
            else:
                step = coroutine.send
            awaited = None


class _ASGIExchange(_Exchange):
    __slots__ = ("_send",)

    def __init__(self, tuner: Tuner, send: Send) -> None:
        self._send = send
        super().__init__(tuner)

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            await self._send(message)
        elif message.get("more_body"):
            self._streams = True
            await self._send(message)
            self.stream()
        else:
            await self._send(message)
            self.end()


def asgi(tuner: Tuner, app: ASGIApplication) -> ASGIApplication:
    """The application with each HTTP request in flight until the last part of its response is sent."""

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            exchange = _ASGIExchange(tuner, send)
            try:
                await exchange.run(app(scope, receive, exchange.send))
            finally:
                exchange.end()
            return
        if kind != "websocket":
            await app(scope, receive, send)
            return
        number = tuner._begin_request()

        async def received() -> Message:
            nonlocal number
            number, ended = 0, number
            tuner._end_request(ended)
            message = await receive()
            if not number:
                number = tuner._begin_request()
            return message

        try:
            await app(scope, received, send)
        finally:
            number, ended = 0, number
            tuner._end_request(ended)

    return application


class _HTTPProtocol:
    """RSGI's protocol of an HTTP request, which tells when the response begins to stream."""

    __slots__ = ("_exchange", "_protocol")

    def __init__(self, protocol: Any, exchange: _Exchange) -> None:
        self._protocol = protocol
        self._exchange = exchange

    def response_stream(self, *arguments: Any, **named: Any) -> Any:
        transport = self._protocol.response_stream(*arguments, **named)
        self._exchange.stream()
        return transport

    def __call__(self) -> Any:
        return self._protocol()

    def __aiter__(self) -> Any:
        return self._protocol.__aiter__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)


def rsgi(tuner: Tuner, app: RSGIApplication) -> RSGIApplication:
    """The application with each HTTP request in flight until it returns."""

    async def application(scope: Any, protocol: Any) -> None:
        exchange = _Exchange(tuner)
        try:
            if scope.proto == "http":
                protocol = _HTTPProtocol(protocol, exchange)
            else:
                # A websocket, which waits for messages most of the time.
                exchange.stream()
            await exchange.run(app(scope, protocol))
        finally:
            exchange.end()

    return application


def wsgi(tuner: Tuner, app: WSGIApplication) -> WSGIApplication:
    """The application with each request in flight until the server closes its response."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        number = tuner._begin_request()
        try:
            result = app(environ, start_response)
            if not _is_file(environ, result):
                return Response(tuner, number, result)
            closed = _FileClose(tuner, number, result)
        except BaseException:
            tuner._end_request(number)
            raise
        # If the response can't be given another `close`, this one is dropped here, which ends the request.
        with contextlib.suppress(AttributeError, TypeError):
            result.close = closed  # type: ignore[attr-defined]
        return result

    return application
