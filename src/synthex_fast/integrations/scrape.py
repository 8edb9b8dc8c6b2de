"""Where Prometheus finds the metrics of an application: at a path of its own, which `install` was given."""

from __future__ import annotations

import os
import shutil
import tempfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from synthex_fast.gc_tuner.requests import Send

__all__ = ["Endpoint", "share_directory", "unshare_directory"]

METHODS = ("GET", "HEAD")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Where the workers of a server share their figures, made by its main process, which also removes it.
_shared: tuple[int, str] | None = None


def share_directory() -> None:
    """Make the directory, in the process that will fork the workers, unless there is one or the user has named one."""
    global _shared
    if _shared is None and not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        _shared = os.getpid(), tempfile.mkdtemp(prefix="synthex-fast-metrics-")


def unshare_directory() -> None:
    """Remove it, in the process that has made it."""
    global _shared
    if _shared is not None and _shared[0] == os.getpid():
        (_, directory), _shared = _shared, None
        shutil.rmtree(directory, ignore_errors=True)


class Endpoint:
    """Answers scrapes of ``path``: with prometheus_client's own registry, or the registry of all its processes.

    Raises what `synthex_fast.exporters.prometheus.register` raises.
    """

    def __init__(self, path: str) -> None:
        from synthex_fast.exporters import prometheus

        self.path = path
        self._text = prometheus.generate_latest
        self._registry: Any = None
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            from prometheus_client import CollectorRegistry, multiprocess

            self._registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(self._registry)
        self._collector = prometheus.register(
            self._registry, directory=None if _shared is None else _shared[1]
        )

    def unregister(self) -> None:
        self._collector.unregister()

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes] | None:
        """The answer, or None if the request is for the application."""
        if environ.get("PATH_INFO") != self.path or environ.get("REQUEST_METHOD") not in METHODS:
            return None
        text = self._text(self._registry)
        start_response("200 OK", [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(text)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else text]

    async def asgi(self, scope: Any, send: Send) -> bool:
        """Answer, unless the request is for the application."""
        if scope["type"] != "http" or scope["path"] != self.path or scope["method"] not in METHODS:
            return False
        text = self._text(self._registry)
        headers = [
            (b"content-type", CONTENT_TYPE.encode()),
            (b"content-length", str(len(text)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else text})
        return True

    def rsgi(self, scope: Any, protocol: Any) -> bool:
        """Answer, unless the request is for the application."""
        if scope.proto != "http" or scope.path != self.path or scope.method not in METHODS:
            return False
        text = self._text(self._registry)
        headers = [("content-type", CONTENT_TYPE), ("content-length", str(len(text)))]
        if scope.method == "HEAD":
            protocol.response_empty(200, headers)
        else:
            protocol.response_bytes(200, headers, text)
        return True
