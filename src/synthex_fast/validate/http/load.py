"""The load generator's process: ``python -m synthex_fast.validate.http.load SEED``.

*Open loop*: requests are due at a fixed rate, and the time of each counts from when it was due, whether or not the
server (or this process) was able to take it by then. A stalled server thereby shows in every request that it kept
waiting, where a generator that waits for one response before it sends the next would record a single slow one
(coordinated omission). How late this process itself was is measured too: a round is only worth something if that is
little.

*Closed loop*: each connection sends its next request when it has its response, as fast as the server can.

Commands come as one JSON line each, as for `validate.worker`. The closed loop runs on uvloop, because this process
shares the processors with the server. The open loop runs on plain asyncio and ``select``, whose timeouts are in
microseconds, where those of uvloop and epoll are in milliseconds.
"""

import asyncio
import gc
import json
import os
import selectors
import sys
import time
import traceback
from array import array
from collections import deque

import httptools
import uvloop

from synthex_fast.validate import corpus
from synthex_fast.validate.http.protocol import PATH
from synthex_fast.validate.worker import Channel

# After the last request was due: what is still unanswered then is counted as such.
DRAIN_SECONDS = 10.0
# Connections are opened one after another, so that each worker of a server gets some.
BETWEEN_CONNECTIONS = 0.002

clock = time.perf_counter_ns


def payloads(seed: int) -> list[bytes]:
    """The corpus as HTTP requests."""
    made = []
    for request in corpus.make(seed):
        fields = request._asdict()
        fields["answers"] = [answer._asdict() for answer in request.answers]
        body = json.dumps(fields).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request under way."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self.number = -1  # of the request under way
        self.write = lambda data: None

    def connection_made(self, transport):
        self._transport = transport
        self.write = transport.write

    def data_received(self, data):
        self._parser.feed_data(data)

    def on_body(self, body):
        self._body += body

    def on_message_complete(self):
        body, self._body = self._body, b""
        if self._parser.get_status_code() != 200:
            self._load.fail(f"the server answered with status {self._parser.get_status_code()}")
        else:
            self._load.answered(self, body)

    def connection_lost(self, _error):
        self._load.fail("the server closed a connection")

    def close(self):
        self._transport.abort()


class Load:
    """One round of load."""

    def __init__(self, payloads: list[bytes], loop: asyncio.AbstractEventLoop):
        self._payloads = payloads
        self._loop = loop
        self._over = loop.create_future()
        self._connections: list[Connection] = []
        self.latencies = array("q")  # nanoseconds, in the order of the responses
        self.ends = array("q")

    async def connect(self, port: int, connections: int) -> None:
        for _ in range(connections):
            connection = Connection(self)
            await self._loop.create_connection(lambda made=connection: made, "127.0.0.1", port)
            self._connections.append(connection)
            await asyncio.sleep(BETWEEN_CONNECTIONS)

    def fail(self, reason: str) -> None:
        if not self._over.done():
            self._over.set_exception(ConnectionError(reason))

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def close(self) -> None:
        self._end()
        # So that nothing warns of an exception that nobody took.
        self._over.exception()
        for connection in self._connections:
            connection.close()

    def answered(self, connection: Connection, body: bytes) -> None:
        raise NotImplementedError

    async def over(self, seconds: float) -> None:
        await asyncio.wait_for(asyncio.shield(self._over), seconds)


class Ask(Load):
    """One request after the other; keeps the responses."""

    async def run(self, count: int) -> list[dict]:
        self._count = count
        self.answers: list[dict] = []
        self._connections[0].write(self._payloads[0])
        await self.over(DRAIN_SECONDS + count)
        return self.answers

    def answered(self, connection: Connection, body: bytes) -> None:
        self.answers.append(json.loads(body))
        if len(self.answers) == self._count:
            self._end()
        else:
            connection.write(self._payloads[len(self.answers) % len(self._payloads)])


class OpenLoop(Load):
    async def run(self, rate: float, seconds: float, first: int) -> dict:
        self._first, self._count = first, max(1, int(rate * seconds))
        self._interval = 1e9 / rate
        self._sent = self._taken = self._done = self.backlog = 0
        self._due_unsent: deque[int] = deque()
        self._idle = deque(self._connections)
        self.late = array("q")
        self._begin = clock() + 5_000_000
        self._zero = self._loop.time() - clock() / 1e9
        self._call_at(self._begin)
        answered_in_time = True
        try:
            await self.over(seconds + DRAIN_SECONDS)
        except TimeoutError:
            answered_in_time = False
        end = clock()
        if not answered_in_time:
            waiting = [*self._due_unsent, *(c.number for c in self._connections if c.number >= 0)]
            for number in waiting:
                # As long as that at least.
                self.latencies.append(end - self._due(number))
                self.ends.append(end)
        return {
            "begin": self._begin,
            "end": max(self._due(self._count), end if self._done else 0),
            "sent": self._sent,
            "unanswered": self._taken - self._done,
            "backlog": self.backlog,
        }

    def _due(self, number: int) -> int:
        return self._begin + int(number * self._interval)

    def _call_at(self, when: int) -> None:
        self._loop.call_at(when / 1e9 + self._zero, self._tick)

    def _tick(self) -> None:
        if self._over.done():
            # It failed: the loop will serve other rounds.
            return
        now = clock()
        while self._taken < self._count and (due := self._due(self._taken)) <= now:
            number = self._taken
            self._taken += 1
            # Of this process, not of the server: before it is known whether a connection is free.
            self.late.append(now - due)
            if self._idle:
                self._send(self._idle.popleft(), number)
            else:
                self._due_unsent.append(number)
        if self._taken < self._count:
            self._call_at(self._due(self._taken))
        else:
            self.backlog = self._taken - self._done

    def _send(self, connection: Connection, number: int) -> None:
        connection.number = number
        self._sent += 1
        connection.write(self._payloads[(self._first + number) % len(self._payloads)])

    def answered(self, connection: Connection, body: bytes) -> None:
        now = clock()
        self.latencies.append(now - self._due(connection.number))
        self.ends.append(now)
        self._done += 1
        connection.number = -1
        if self._due_unsent:
            self._send(connection, self._due_unsent.popleft())
        else:
            self._idle.append(connection)
        if self._done == self._count:
            self._end()


class ClosedLoop(Load):
    async def run(self, seconds: float, first: int) -> dict:
        self._next, self._begun = first, {}
        self.late = array("q")
        self._begin = clock()
        self._until = self._begin + int(seconds * 1e9)
        self._busy = len(self._connections)
        for connection in self._connections:
            self._send(connection)
        await self.over(seconds + DRAIN_SECONDS)
        return {
            "begin": self._begin,
            "end": clock(),
            "sent": len(self.latencies),
            "unanswered": 0,
            "backlog": 0,
        }

    def _send(self, connection: Connection) -> None:
        connection.number = clock()
        connection.write(self._payloads[self._next % len(self._payloads)])
        self._next += 1

    def answered(self, connection: Connection, body: bytes) -> None:
        now = clock()
        self.latencies.append(now - connection.number)
        self.ends.append(now)
        if now < self._until:
            self._send(connection)
        else:
            self._busy -= 1
            if not self._busy:
                self._end()


class Generator:
    def __init__(self, seed: int):
        self._payloads = payloads(seed)
        self._next = 0
        self._precise = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._cheap = uvloop.new_event_loop()

    def run(self, command: dict) -> tuple[dict, memoryview | None]:
        kind = {"ask": Ask, "open": OpenLoop, "closed": ClosedLoop}[command["do"]]
        loop = self._precise if kind is OpenLoop else self._cheap
        load = kind(self._payloads, loop)
        try:
            return loop.run_until_complete(self._run(load, command))
        finally:
            load.close()
            # Lets the closed connections go.
            loop.run_until_complete(asyncio.sleep(0))

    async def _run(self, load: Load, command: dict) -> tuple[dict, memoryview | None]:
        if isinstance(load, Ask):
            await load.connect(command["port"], 1)
            return {"answers": await load.run(command["count"])}, None
        await load.connect(command["port"], command["connections"])
        cpu = time.process_time_ns()
        if isinstance(load, OpenLoop):
            found = await load.run(command["rate"], command["seconds"], self._next)
        else:
            found = await load.run(command["seconds"], self._next)
        found["generator_cpu_seconds"] = (time.process_time_ns() - cpu) / 1e9
        self._next += found["sent"]
        found["latencies"] = len(load.latencies)
        raw = load.latencies.tobytes() + load.ends.tobytes() + load.late.tobytes()
        return found, memoryview(raw)


def main(seed: int) -> None:
    channel = Channel()
    try:
        generator = Generator(seed)
        # Its own collections would count as the server's.
        gc.collect()
        gc.freeze()
        gc.disable()
        channel.send({"ready": True})
        while True:
            try:
                answer, payload = generator.run(channel.receive())
            except (OSError, TimeoutError) as error:
                channel.send({"refused": str(error) or "no response from the server"})
            else:
                channel.send(answer, payload)
    except Exception as error:
        traceback.print_exc()
        channel.send({"error": f"{type(error).__name__}: {error}"})
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
