"""The page as an ASGI app."""

from __future__ import annotations

import asyncio
import sys
import time

from synthex_fast.exporters.page import _access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from synthex_fast.exporters._observed import Observed
    from synthex_fast.gc_tuner.requests import ASGIApplication, Message, Receive, Send

__all__ = ["asgi"]

# How often a stream looks whether its server is about to stop.
_LOOK_SECONDS = 0.25


def asgi(
    observed: Observed | None = None,
    *,
    allow: str | Iterable[str] | None = None,
    hosts: str | Iterable[str] = (),
    interval: float = 1.0,
    streams: int = 16,
) -> ASGIApplication:
    """The live page as an ASGI app, to be mounted at a path: ``app.mount("/synthex", page.asgi())``.

    ``observed`` is what it shows, by default the process's own (`synthex_fast.exporters.observe`). ``allow`` names
    addresses or networks (``"10.0.0.0/8"``) that may look besides this machine, and ``hosts`` the names under which a
    browser may ask for it besides ``localhost`` and, with ``allow``, any IP address. Everybody else gets status 403. A
    new snapshot is taken every ``interval`` seconds (0.1 to 60) while somebody looks, whatever their number; with more
    than ``streams`` viewers (0 to 1000) the others poll. Raises `ArgumentValueError` and `ArgumentTypeError` for bad
    arguments.

    >>> from synthex_fast.exporters import page
    >>> page.asgi(allow="10.0.0.0/33")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentValueError: allow must be addresses or networks such as "10.0.0.0/8", ...
    """
    page = _access.Page(observed, allow, hosts, interval, streams)
    open_streams = 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal open_streams
        kind = scope["type"]
        if kind == "lifespan":
            await _live(receive, send)
            return
        if kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _Headers(scope)
        client = scope.get("client")
        refusal = page.refusal(client[0] if client else None, headers.all("host"), headers.get)
        if refusal is not None:
            await _send(page.refused(refusal), scope["method"], send)
            return
        path = _access.below_mount(scope["path"], scope.get("root_path", ""))
        answer = page.answer(
            scope["method"],
            path,
            scope.get("query_string", b"").decode("latin-1"),
            headers.get("last-event-id"),
            open_streams < page.streams and _has_asyncio(),
        )
        if not answer.stream:
            await _send(answer, scope["method"], send)
            return
        open_streams += 1
        try:
            await _stream(page, answer, headers.get("last-event-id"), receive, send)
        except OSError:
            # The client is gone, as some servers say it.
            pass
        finally:
            open_streams -= 1

    return app


class _Headers:
    def __init__(self, scope: Message) -> None:
        self._pairs = [(name.lower(), value) for name, value in scope.get("headers", ())]

    def all(self, name: str) -> list[str]:
        wanted = name.encode()
        return [value.decode("latin-1") for found, value in self._pairs if found == wanted]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)


def _has_asyncio() -> bool:
    """Under trio the page polls."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return "trio" not in sys.modules or not _in_trio()


def _in_trio() -> bool:
    lowlevel = sys.modules.get("trio.lowlevel")
    return bool(lowlevel is not None and getattr(lowlevel, "in_trio_run", bool)())


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _head(answer: _access.Answer) -> dict[str, Any]:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


async def _send(answer: _access.Answer, method: str, send: Send) -> None:
    await send(_head(answer))
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer.body})


async def _stream(
    page: _access.Page, answer: _access.Answer, event_id: str | None, receive: Receive, send: Send
) -> None:
    """Send frames until the client leaves, the server is about to stop, or the stream has lasted long enough."""
    server = _access.Server()
    ends = time.monotonic() + (_access.LONG_STREAM_SECONDS if server.known else _access.STREAM_SECONDS)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await send(_head(answer))
        await send(_part(page.feed.first_events(event_id)))
        due = time.monotonic() + page.feed.interval
        while not server.stopping and (now := time.monotonic()) < ends:
            if now >= due:
                await send(_part(page.feed.event()))
                due = max(due + page.feed.interval, time.monotonic())
            wait = min(max(due - time.monotonic(), 0.001), _LOOK_SECONDS)
            done, _ = await asyncio.wait({gone}, timeout=wait)
            if done:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        gone.cancel()


def _part(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
