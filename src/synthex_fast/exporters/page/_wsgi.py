"""The page as a WSGI app."""

from __future__ import annotations

import time
import weakref
from http import HTTPStatus

from synthex_fast.exporters.page import _access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Self

    from synthex_fast.exporters._observed import Observed
    from synthex_fast.gc_tuner.requests import WSGIApplication

__all__ = ["wsgi"]


def wsgi(
    observed: Observed | None = None,
    *,
    allow: str | Iterable[str] | None = None,
    hosts: str | Iterable[str] = (),
    interval: float = 1.0,
    streams: int = 1,
) -> WSGIApplication:
    """The live page as a WSGI app, to be mounted at a path: ``DispatcherMiddleware(app, {"/synthex": page.wsgi()})``.

    The arguments are those of `asgi`. A stream occupies a thread of the server for up to ten seconds at a time, so by
    default one viewer gets one and the others poll; with a server that handles one request at a time
    (``wsgi.multithread`` is false, as in gunicorn's sync workers) all of them do.

    >>> from synthex_fast.exporters import page
    >>> app = page.wsgi(streams=0)
    """
    page = _access.Page(observed, allow, hosts, interval, streams)
    # Weakly: a server that forgets to close one must not keep the others out for good.
    open_streams: weakref.WeakSet[_Stream] = weakref.WeakSet()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def header(name: str) -> str | None:
            return environ.get("HTTP_" + name.upper().replace("-", "_"))

        method = environ["REQUEST_METHOD"]
        host = header("host")
        refusal = page.refusal(environ.get("REMOTE_ADDR"), [] if host is None else [host], header)
        if refusal is not None:
            answer = page.refused(refusal)
        else:
            room = bool(environ.get("wsgi.multithread")) and len(open_streams) < page.streams
            answer = page.answer(
                method,
                environ.get("PATH_INFO", ""),
                environ.get("QUERY_STRING", ""),
                header("last-event-id"),
                room,
            )
        status = HTTPStatus(answer.status)
        start_response(
            f"{status.value} {status.phrase}", [(name.title(), value) for name, value in answer.headers]
        )
        if answer.stream:
            return _Stream(page, header("last-event-id"), open_streams)
        return [b"" if method == "HEAD" else answer.body]

    return app


class _Stream:
    """The events, one at a time. The server closes it (PEP 3333), which makes room for another."""

    def __init__(self, page: _access.Page, event_id: str | None, among: weakref.WeakSet[_Stream]) -> None:
        self._feed = page.feed
        self._server = _access.Server()
        self._event_id = event_id
        self._began = self._ends = 0.0
        self._among = among
        among.add(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if not self._began:
            self._began = time.monotonic()
            self._ends = self._began + _access.STREAM_SECONDS
            return self._feed.first_events(self._event_id)
        # Cooperative where gevent has patched it.
        time.sleep(self._feed.interval)
        if self._server.stopping or time.monotonic() >= self._ends:
            raise StopIteration
        return self._feed.event()

    def close(self) -> None:
        self._among.discard(self)
