"""What is measured inside a process that serves: requests in flight, and each garbage collection with its time.

Collections are written to a file as they end, so that they survive however the process does, and need no request of
their own to be fetched. Both are alike in every arm.
"""

import gc
import os
import struct
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_RECORD = struct.Struct("<qqii")


class Pause(NamedTuple):
    """A collection: when it began (nanoseconds of `time.perf_counter_ns`), how long it took, and what it met."""

    began: int
    nanoseconds: int
    generation: int
    in_flight: int


class Watched:
    """An ASGI application with its requests counted.

    A request is in flight from the moment the application is called until it hands over the last part of its
    response, which is where a server's work on it begins again.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._in_flight = 0
        self._began = 0
        self._met = 0
        self._file = -1

    def start(self, path: Path) -> None:
        """Write the collections of this process to `path` from here on."""
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        gc.callbacks.remove(self._on_collection)
        os.close(self._file)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._met = self._in_flight
            self._began = time.perf_counter_ns()
        else:
            took = time.perf_counter_ns() - self._began
            os.write(self._file, _RECORD.pack(self._began, took, info["generation"], self._met))

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_in_flight = True
        self._in_flight += 1

        async def sent(message: Message) -> None:
            nonlocal is_in_flight
            if is_in_flight and message["type"] == "http.response.body" and not message.get("more_body"):
                is_in_flight = False
                self._in_flight -= 1
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            if is_in_flight:
                self._in_flight -= 1


def pauses(path: Path, position: int) -> tuple[list[Pause], int]:
    """The collections written to `path` from byte `position` on, and the position after them."""
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    whole = len(data) // _RECORD.size * _RECORD.size
    return [Pause(*record) for record in _RECORD.iter_unpack(data[:whole])], position + whole
