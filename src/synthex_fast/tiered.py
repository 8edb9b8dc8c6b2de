"""A near cache: a `TTLDict` in each process in front of one Valkey or Redis server (extra ``redis``).

`TieredCache` is for threads, `AsyncTieredCache` for asyncio. Reads are answered from local copies, writes go through to
the server, and the server tells every process which copies no longer hold (its "client-side caching", version 6 on).

Why a copy is never older than what the server has told:

- One connection carries everything: commands, their replies and the server's invalidations (RESP3 pushes). The server
  writes them in the order in which things happened, and one reader, a thread or a task, applies them in that order. A
  reply that was under way when somebody changed the key is stored and then removed by the invalidation behind it. With
  a connection for each the invalidation could overtake the reply.
- Nothing but the reader stores or removes a copy. A written value becomes a copy when its reply arrives.
- Tracking is by prefix (``CLIENT TRACKING ON BCAST PREFIX ... NOLOOP``): the server sends each change of a key with the
  prefix and remembers no keys. In its default mode it remembers what each client has read, forgets that with the first
  change, and with NOLOOP forgets it silently when the client itself writes: a copy of one's own write would never be
  invalidated. In broadcast mode NOLOOP leaves out only keys whose last change was this connection's.
- Without the connection nothing is known of changes. Copies then serve for ``stale_if_error`` seconds since the server
  was last heard of, and all are removed before a new connection's first reply.

A forked child has neither the reader nor a connection of its own: its copies are not used, and its first operation
starts both anew.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import threading
import time
import weakref
from collections import deque
from contextlib import suppress

from synthex_fast._arguments import one_of, positive_seconds, refuse_awaited, want_callable, want_text
from synthex_fast._async_loads import current_load, fly
from synthex_fast._tiered import AsyncLocalTier, Copies, LocalTier
from synthex_fast._ttl import TTLDict
from synthex_fast.errors import ServerUnavailableError, SynthexFastError, type_error, value_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType
    from typing import Any, Self

__all__ = ["AsyncTieredCache", "TieredCache"]

_MISSING: Any = object()
_BEGUN: Any = object()
# Seconds between attempts to connect: the first and the longest pause.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_CHUNK = 1 << 16


# --- RESP3, the protocol ---


class _Incomplete(Exception):
    """The rest of an item has not arrived yet."""


class _Forgotten(Exception):
    """The key was deleted while the value was made that was to be written."""


class _Push(list):  # type: ignore[type-arg]
    """What the server sends without having been asked."""


class _Refusal(str):
    """An error reply."""

    __slots__ = ()


class _Parser:
    """Splits what arrives into replies and pushes. Knows nothing of sockets.

    An item may arrive in thousands of pieces. What has been read of one is kept, so that each byte is looked at a fixed
    number of times, however it is split.
    """

    __slots__ = ("_at", "_buffer", "_open", "_searched")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        # Up to here no line ends that begins at `_at`.
        self._searched = 0
        # The aggregates that have begun, the outermost first: kind, how many items are still to come, those there are.
        self._open: list[tuple[bytes, int, list[Any]]] = []

    def feed(self, data: bytes) -> Iterator[Any]:
        """The items that are complete with this data."""
        self._buffer += data
        while self._at < len(self._buffer):
            start = self._at
            try:
                item = self._part()
            except _Incomplete:
                self._at = start
                break
            if item is _BEGUN:
                continue
            while self._open:
                kind, size, items = self._open[-1]
                items.append(item)
                if len(items) < size:
                    break
                self._open.pop()
                if kind == b"|":  # attributes of the item that follows
                    break
                item = _whole(kind, items)
            else:
                yield item
        if self._at:
            del self._buffer[: self._at]
            self._searched = max(self._searched - self._at, 0)
            self._at = 0

    def _line(self) -> bytes:
        end = self._buffer.find(b"\r\n", max(self._at, self._searched))
        if end < 0:
            # The last byte may be the first half of the end.
            self._searched = len(self._buffer) - 1
            raise _Incomplete
        line = bytes(self._buffer[self._at : end])
        self._at = end + 2
        return line

    def _bulk(self, size: int) -> bytes:
        end = self._at + size
        if len(self._buffer) < end + 2:
            raise _Incomplete
        data = bytes(self._buffer[self._at : end])
        self._at = end + 2
        return data

    def _part(self) -> Any:
        """The next item that has none inside it; `_BEGUN` if an aggregate begins."""
        line = self._line()
        kind, rest = line[:1] or b"?", line[1:]
        if kind == b"$":
            return None if rest == b"-1" else self._bulk(int(rest))
        if kind == b"+":
            return rest
        if kind in b":(":
            return int(rest)
        if kind == b"_":
            return None
        if kind == b"-":
            return _Refusal(rest.decode("utf-8", "replace"))
        if kind == b"!":
            return _Refusal(self._bulk(int(rest)).decode("utf-8", "replace"))
        if kind == b"=":
            return self._bulk(int(rest))[4:]
        if kind in b"*~>%|":
            size = int(rest)
            if size < 0:
                return None
            if kind in b"%|":
                size *= 2
            if size:
                self._open.append((kind, size, []))
                return _BEGUN
            return _BEGUN if kind == b"|" else _whole(kind, [])
        if kind == b",":
            return float(rest)
        if kind == b"#":
            return rest == b"t"
        raise ConnectionError(f"the server sent {line[:40]!r}, which is not RESP3")


def _whole(kind: bytes, items: list[Any]) -> Any:
    if kind == b">":
        return _Push(items)
    if kind == b"%":
        keys = (tuple(key) if isinstance(key, list) else key for key in items[::2])
        return dict(zip(keys, items[1::2], strict=True))
    return items


def _pack(*arguments: bytes) -> bytes:
    parts = [b"*%d\r\n" % len(arguments)]
    parts += (b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments)
    return b"".join(parts)


# --- serialisers ---


def _bytes_as_they_are(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise type_error("value", value, "bytes, since the serializer is 'bytes'")
    return bytes(value)


def _encoded(value: Any) -> bytes:
    if not isinstance(value, str):
        raise type_error("value", value, "a string, since the serializer is 'str'")
    return _utf8("value", value)


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise value_error(name, text, "text without lone surrogates, which UTF-8 can't encode") from None


_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _json_of(value: Any) -> bytes:
    text = _to_json(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise value_error("value", value, "text without lone surrogates, which UTF-8 can't encode") from None


_SERIALIZERS: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "bytes": (_bytes_as_they_are, bytes),
    "str": (_encoded, bytes.decode),
    "json": (_json_of, json.loads),
}


def _serializer(given: Any) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    if isinstance(given, str):
        one_of("serializer", given, tuple(_SERIALIZERS))
        return _SERIALIZERS[given]
    if isinstance(given, tuple) and len(given) == 2 and all(map(callable, given)):
        return given
    raise type_error("serializer", given, "'bytes', 'str', 'json' or a pair of callables (dumps, loads)")


# --- what both caches share ---


class _Request:
    """A command that has been sent, or is about to be: what it is for, and how it ended.

    `done` is a thread's lock that opens with the answer, or a task's future.
    """

    __slots__ = (
        "done",
        "error",
        "key",
        "kind",
        "life",
        "outdated",
        "replies",
        "result",
        "sent",
        "unless",
        "value",
        "wanted",
    )

    def __init__(
        self, kind: str, key: str | None, done: Any, value: Any = None, life: float = math.inf
    ) -> None:
        self.kind = kind
        self.key = key
        self.value = value
        self.life = life
        self.wanted = 2 if kind == "get" else 1
        self.replies: list[Any] = []
        # The key has been invalidated since the first of its replies.
        self.outdated = False
        self.sent = math.inf
        # If it is true when its turn to be sent comes, it is not sent.
        self.unless: Callable[[], bool] | None = None
        self.result: Any = _MISSING
        self.error: BaseException | None = None
        self.done = done


class _Shared(Copies):
    """The settings, the counts, and what happens to the local copies. The reader alone calls `_receive`."""

    def _configure(
        self,
        server: Any,
        asynchronous: bool,
        max_size: int | None,
        ttl: float | None,
        prefix: str,
        serializer: Any,
        local_ttl: float | None,
        stale_if_error: float,
        timeout: float,
        heartbeat: float,
        options: dict[str, Any],
    ) -> None:
        self._ttl = positive_seconds("ttl", ttl, optional=True)
        self._local_ttl = positive_seconds("local_ttl", local_ttl, optional=True)
        # The shortest life that the server can be told.
        if self._ttl < 0.001:
            raise value_error("ttl", ttl, "at least 0.001 seconds, or None")
        self._stale_seconds = (
            0.0 if stale_if_error == 0 else positive_seconds("stale_if_error", stale_if_error)
        )
        self._timeout = positive_seconds("timeout", timeout)
        self._heartbeat = positive_seconds("heartbeat", heartbeat)
        for name, value in (("timeout", self._timeout), ("heartbeat", self._heartbeat)):
            if value > threading.TIMEOUT_MAX:
                raise value_error(name, value, f"at most {threading.TIMEOUT_MAX:.0f} seconds")
        want_text("prefix", prefix)
        self._prefix = _utf8("prefix", prefix)
        self._dumps, self._loads = _serializer(serializer)
        self._make_connection = _connection_factory(server, asynchronous, self._timeout)
        self._set_up(TTLDict(max_size, **options))
        # Lists the loads of `get_or_set`.
        self._loading: TTLDict[str, Any] = TTLDict(sweep=False)
        self._counts = dict.fromkeys(
            (
                "remote_hits",
                "remote_misses",
                "writes",
                "deletes",
                "invalidations",
                "flushes",
                "connections",
                "losses",
                "errors",
            ),
            0,
        )
        self._begin()

    def _begin(self) -> None:
        """Without a connection, as at first."""
        self._connected = False
        self._closed = False
        self._reason: str = "it has not been connected yet"
        self._pending: deque[_Request] = deque()
        self._reading: dict[str, _Request] = {}
        self._heard = -math.inf
        self._trust(-math.inf)

    # -- commands --

    def _server_key(self, key: Any) -> bytes:
        if not isinstance(key, str):
            raise type_error("key", key, "a string")
        return self._prefix + _utf8("key", key)

    def _life(self, ttl: float | None) -> float:
        if ttl is None:
            return self._ttl
        life = positive_seconds("ttl", ttl)
        if life < 0.001:
            raise value_error("ttl", ttl, "at least 0.001 seconds, or None")
        return life if life == math.inf else math.floor(life * 1000) / 1000

    def _get_command(self, key: str) -> bytes:
        name = self._server_key(key)
        return _pack(b"GET", name) + _pack(b"PTTL", name)

    def _set_command(self, key: str, value: Any, ttl: float | None, done: Any) -> tuple[bytes, _Request]:
        name = self._server_key(key)
        life = self._life(ttl)
        data = self._dumps(value)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise type_error("what the serializer returned", data, "bytes")
        data = bytes(data)
        # What any other process will read: the local copy must not differ, nor be an object that the caller changes.
        request = _Request("set", key, done, self._loads(data), life)
        arguments = [b"SET", name, data]
        # The server's limit on milliseconds is lower than what a float of seconds can say; longer is forever.
        if life < 1e12:
            arguments += [b"PX", b"%d" % (life * 1000)]
        return _pack(*arguments), request

    # -- what arrives; called by the reader only --

    def _receive(self, item: Any) -> None:
        if type(item) is _Push:
            if item and item[0] == b"invalidate":
                self._invalidate(item[1])
            return
        if not self._pending:
            raise ConnectionError("the server sent a reply without a request")
        request = self._pending[0]
        request.replies.append(item)
        if len(request.replies) == request.wanted:
            self._pending.popleft()
            try:
                self._finish(request)
            except BaseException as error:
                request.error = error
                if request.key is not None:
                    self.local.pop(request.key, None)
            self._answer(request)

    def _invalidate(self, names: list[bytes] | None) -> None:
        # A push may come between the two replies to a read.
        partial = self._pending[0] if self._pending and self._pending[0].replies else None
        if names is None:
            self._counts["flushes"] += 1
            self.local.clear()
            if partial is not None:
                partial.outdated = True
            return
        self._counts["invalidations"] += len(names)
        skip = len(self._prefix)
        for name in names:
            # A key that is no UTF-8 is no key of this cache.
            key = name[skip:].decode("utf-8", "surrogateescape")
            self.local.pop(key, None)
            if partial is not None and partial.key == key:
                partial.outdated = True

    def _finish(self, request: _Request) -> None:
        reply = request.replies[0]
        key = request.key
        for each in request.replies:
            if type(each) is _Refusal:
                self._counts["errors"] += 1
                raise _refused(each)
        if request.kind == "get":
            assert key is not None
            if reply is None:
                self._counts["remote_misses"] += 1
                self.local.pop(key, None)
                return
            self._counts["remote_hits"] += 1
            request.result = self._loads(reply)
            left = request.replies[1]
            # -1: it does not expire. -2: it has, in the meantime.
            self._keep(request, request.result, math.inf if left == -1 else left / 1000)
        elif request.kind == "set":
            self._counts["writes"] += 1
            request.result = None
            self._keep(request, request.value, request.life)
        elif request.kind == "delete":
            self._counts["deletes"] += 1
            assert key is not None
            self.local.pop(key, None)
            request.result = reply > 0
        else:
            request.result = None

    def _keep(self, request: _Request, value: Any, life: float) -> None:
        """Store a copy that expires no later than the server's value: its life began after the request was sent."""
        assert request.key is not None
        life = min(life - (time.monotonic() - request.sent) if life < math.inf else life, self._local_ttl)
        if life <= 0 or request.outdated:
            self.local.pop(request.key, None)
            return
        try:
            self.local.set(request.key, value, life)
        except ValueError:
            # Larger than the local memory limit. An earlier copy must not stay.
            self.local.pop(request.key, None)

    def _on_connected(self) -> None:
        """The server tracks from here on: nothing that was copied earlier may be used."""
        self._counts["connections"] += 1
        self.local.clear()
        self._connected = True
        self._heard = time.monotonic()
        self._trust(math.inf)

    def _on_lost(self, reason: object) -> list[_Request]:
        """The connection is gone, or there never was one. Fails what was under way, and returns it.

        Neither values nor copies are released here, which can run code of the user's: the caller may hold a lock.
        """
        self._reason = str(reason)
        if self._connected:
            self._connected = False
            self._counts["losses"] += 1
            self._trust(self._heard + self._stale_seconds)
        self._reading.clear()
        failed = list(self._pending)
        self._pending.clear()
        for request in failed:
            request.error = self._unavailable()
            self._answer(request)
        return failed

    def _drop_stale(self) -> None:
        if not self._connected and self._until <= time.monotonic():
            self.local.clear()

    def _answer(self, request: _Request) -> None:
        raise NotImplementedError

    def _unavailable(self, reason: str | None = None) -> ServerUnavailableError:
        return ServerUnavailableError(f"the server is not available: {reason or self._reason}")

    def _is_silent(self) -> bool:
        """Whether the oldest request has waited for too long."""
        return bool(self._pending) and time.monotonic() - self._pending[0].sent > self._timeout

    # -- for everybody --

    @property
    def connected(self) -> bool:
        """Whether the connection is up, and with it the invalidations."""
        return self._connected and not self._forked

    @property
    def nbytes(self) -> int:
        """What the local copies hold, as `TTLDict.nbytes` counts it."""
        return self.local.nbytes

    def trim(self, nbytes: int) -> int:
        """Remove local copies to free about so many bytes; returns how many were freed. For a memory governor."""
        return self.local.trim(nbytes)

    def clear_local(self) -> None:
        """Remove all local copies; the server keeps its values. O(copies)."""
        self.local.clear()

    @property
    def stats(self) -> dict[str, Any]:
        """Counts and the state, as a dict.

        `hits`, `misses`: lookups of local copies. `remote_hits`, `remote_misses`: what the server had. `writes`,
        `deletes`: acknowledged ones. `invalidations`: keys that others changed; `flushes`: whole databases.
        `connections`, `losses`: made and lost. `errors`: replies that are errors. `connected`. `stale`: whether copies
        are being served although the connection is lost. `stale_hits`: how many were. `entries`, `nbytes`: of copies.
        """
        local = self.local.stats
        return {
            "hits": local["hits"],
            "misses": local["misses"],
            **self._counts,
            "connected": self.connected,
            "stale": not self._connected and not self._forked and self._until > time.monotonic(),
            "stale_hits": self._stale_hits,
            "entries": local["entries"],
            "nbytes": local["nbytes"],
        }


def _refused(text: str) -> Exception:
    from redis.exceptions import ResponseError

    return ResponseError(text)


def _connection_factory(server: Any, asynchronous: bool, timeout: float) -> Callable[[], Any]:
    """What makes one more connection like those of the client, or to the URL."""
    try:
        import redis
        import redis.asyncio
    except ModuleNotFoundError as error:
        raise SynthexFastError("a tiered cache needs the extra: pip install 'synthex-fast[redis]'") from error
    package: Any = redis.asyncio if asynchronous else redis
    if isinstance(server, str):
        pool = package.ConnectionPool.from_url(server)
    elif isinstance(server, package.Redis):
        pool = server.connection_pool
    else:
        name = "redis.asyncio.Redis" if asynchronous else "redis.Redis"
        raise type_error("server", server, f"a URL or a {name}")
    # Notices of maintenance would be pushes for a handler of the client's.
    settings = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if not name.startswith(("maint", "orig_", "oss_", "retry", "cache"))
    }
    settings |= {
        "protocol": 3,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
        "parser_class": _plain_parser(asynchronous),
    }
    return lambda: pool.connection_class(**settings)


def _plain_parser(asynchronous: bool) -> Any:
    """The client's own, in Python: hiredis could read further than the replies to the client's greeting."""
    from redis._parsers import _AsyncRESP3Parser, _RESP3Parser

    return _AsyncRESP3Parser if asynchronous else _RESP3Parser


def _tracking(prefix: bytes) -> bytes:
    return _pack(b"CLIENT", b"TRACKING", b"ON", b"BCAST", b"PREFIX", prefix, b"NOLOOP")


# --- threads ---

# Held while a link is started or taken away. A thread of the parent's may hold it at a fork. It can be entered again:
# a finaliser or a signal handler may run, and use a cache, in the thread that holds it.
_starting = threading.RLock()


def _renew_lock() -> None:
    global _starting
    _starting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class _Turn:
    """Entered with a link's lock held. The lock's holder gets an error instead of a second turn within its first.

    The garbage collector and signals can interrupt the holder, and what they call may use the cache. The interrupted
    request has been sent in part, or is not in its place yet, so there is no room for another one.
    """

    __slots__ = ("_taken",)

    def __init__(self) -> None:
        self._taken = False

    def __enter__(self) -> None:
        if self._taken:
            raise SynthexFastError(
                "a finaliser or signal handler used the cache in a thread that it interrupted while that was sending a"
                " request of the same cache"
            )
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


class _Link:
    """One reader thread and its connection. Refers to the cache weakly, so that dropping the cache ends the thread."""

    def __init__(self, cache: TieredCache) -> None:
        self.cache = weakref.ref(cache)
        # Guards the order of requests, which is that of what is sent, and whether the connection is up.
        # One that its holder can take again, to be refused by `turn` instead of waiting for itself.
        self.lock = threading.RLock()
        self.turn = _Turn()
        self.socket: Any = None
        self.closing = False
        self.wake = threading.Event()
        self.tried = threading.Event()
        # Looked up here: in a program that gevent has patched, all of this is greenlets.
        self.thread = threading.Thread(target=self.run, name="synthex-fast-tiered", daemon=True)

    def run(self) -> None:
        pause = _FIRST_PAUSE
        while not self.closing:
            connection = None
            reason: object = "the connection was closed"
            cache = self.cache()
            if cache is None:
                return
            prefix, heartbeat, timeout = cache._prefix, cache._heartbeat, cache._timeout
            connect = cache._make_connection
            del cache
            try:
                connection = connect()
                connection.connect()
                raw = connection._sock
                parser = self.track(raw, prefix)
                reason = self.serve(raw, parser, heartbeat, timeout)
                pause = _FIRST_PAUSE
            except BaseException as error:
                reason = error
            finally:
                self.lose(reason)
                if connection is not None:
                    connection.disconnect()
                del connection
            self.tried.set()
            if self.closing or self.cache() is None:
                return
            self.wake.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            cache = self.cache()
            if cache is not None:
                cache._drop_stale()
            del cache

    def track(self, raw: Any, prefix: bytes) -> _Parser:
        raw.sendall(_tracking(prefix))
        parser = _Parser()
        while True:
            data = raw.recv(_CHUNK)
            if not data:
                raise ConnectionError("the server closed the connection")
            for item in parser.feed(data):
                if type(item) is _Refusal:
                    raise ConnectionError(f"it refused to track keys: {item}")
                if type(item) is not _Push:
                    return parser

    def serve(self, raw: Any, parser: _Parser, heartbeat: float, timeout: float) -> str:
        """Apply what arrives until the connection is lost; returns why."""
        receive = _receive_plain(raw) if not hasattr(raw, "pending") else _receive_tls(raw, self.lock)
        raw.settimeout(min(heartbeat, timeout))
        cache = self.cache()
        if cache is None:
            return "the cache is gone"
        # Before the lock is taken, since it runs what the copies run when they are released. Nobody else stores any.
        cache.local.clear()
        with self.lock:
            if self.closing:
                return "the cache was closed"
            cache._on_connected()
            self.socket = raw
        self.tried.set()
        while True:
            # While it waits nothing may keep the cache alive.
            del cache
            data = receive(min(heartbeat, timeout))
            cache = self.cache()
            if cache is None:
                return "the cache is gone"
            if data is None:
                if cache._is_silent():
                    return f"it has not answered for {timeout:g} s"
                if not cache._pending and time.monotonic() - cache._heard >= heartbeat:
                    self.send(cache, _Request("ping", None, None), _pack(b"PING"))
                continue
            if not data:
                return "the server closed the connection"
            cache._heard = time.monotonic()
            for item in parser.feed(data):
                cache._receive(item)

    def send(self, cache: TieredCache, request: _Request, payload: bytes) -> None:
        with self.lock, self.turn:
            self.send_locked(cache, request, payload)

    def send_locked(self, cache: TieredCache, request: _Request, payload: bytes) -> None:
        if self.socket is None:
            raise cache._unavailable()
        if request.unless is not None and request.unless():
            raise _Forgotten
        request.sent = time.monotonic()
        cache._pending.append(request)
        try:
            self.socket.sendall(payload)
        except BaseException:
            # What the server has received is not known: the reader ends the connection and fails all requests.
            _shut(self.socket)
            if self.thread is threading.current_thread():
                raise

    def lose(self, reason: object) -> None:
        cache = self.cache()
        usable = cache is not None and not cache._forked
        failed: list[_Request] = []
        with self.lock:
            self.socket = None
            if usable:
                failed = cache._on_lost(reason)  # type: ignore[union-attr]
        if usable:
            cache._drop_stale()  # type: ignore[union-attr]
        # Their values are released here, without the lock.
        del failed

    def stop(self, join: bool = False) -> None:
        self.closing = True
        self.wake.set()
        raw = self.socket
        if raw is not None:
            _shut(raw)
        if join and self.thread is not threading.current_thread() and self.thread.ident is not None:
            self.thread.join(5.0)


def _receive_plain(raw: Any) -> Callable[[float], bytes | None]:
    def receive(seconds: float) -> bytes | None:
        try:
            return raw.recv(_CHUNK)  # type: ignore[no-any-return]
        except TimeoutError:
            return None

    return receive


def _receive_tls(raw: Any, lock: Any) -> Callable[[float], bytes | None]:
    """One thread at a time may use a TLS socket, so this one must not keep it while it waits for data."""
    import selectors
    import ssl

    # One that has no limit on descriptors, where there is such a one.
    waiting = getattr(selectors, "PollSelector", selectors.SelectSelector)()
    waiting.register(raw, selectors.EVENT_READ)

    def receive(seconds: float) -> bytes | None:
        if not raw.pending() and not waiting.select(seconds):
            return None
        with lock:
            before = raw.gettimeout()
            raw.settimeout(0.0)
            try:
                return raw.recv(_CHUNK)  # type: ignore[no-any-return]
            except (ssl.SSLWantReadError, BlockingIOError):
                return None
            finally:
                raw.settimeout(before)

    return receive


def _shut(raw: Any) -> None:
    try:  # noqa: SIM105
        # The plain one, also of a TLS socket: it wakes the reader, and says nothing to the peer.
        socket.socket.shutdown(raw, socket.SHUT_RDWR)
    except (OSError, TypeError, ValueError):
        pass


class TieredCache(_Shared, LocalTier):
    """A `TTLDict` of local copies in front of a Valkey or Redis server, for threads.

    ``server`` is a URL ("redis://host:6379/0") or a ``redis.Redis`` whose settings are used; the cache makes one
    connection of its own, at first use. ``max_size``, and ``memory_limit``, ``policy`` and what else ``options`` may
    have, are the local `TTLDict`'s. ``ttl`` is how many seconds values live, on the server and so here (None: forever).
    A copy can be given a shorter life, ``local_ttl``. Keys are strings, stored under ``prefix`` + key; the server sends
    this process every change of a key with that prefix, so it should belong to this cache alone.

    ``serializer`` is "bytes", "str", "json" or a pair of callables, ``(dumps, loads)``. Pickle is none of them, because
    whoever can write to the server could then run code here; ``(pickle.dumps, pickle.loads)`` says that you trust it.
    ``loads``, ``on_remove`` and ``on_evict`` may run in the connection's thread and must not use the cache. Copies are
    shared: don't change what `get` gives.

    Within ``timeout`` seconds the server must answer. If the connection is lost, reads of copies go on for
    ``stale_if_error`` seconds since the server was last heard of, while everything else raises
    `ServerUnavailableError`; ``stats["stale"]`` tells. Once it is back all copies are removed. A server that falls
    silent without closing the connection is noticed after ``heartbeat`` + ``timeout`` seconds.

    The connection's thread ends with `close`, with the ``with`` block, or when nothing refers to the cache any more. A
    forked child makes a connection of its own when it first uses the cache, and its copies begin empty.
    """

    def __init__(
        self,
        server: Any,
        max_size: int | None = None,
        ttl: float | None = None,
        *,
        prefix: str = "cache:",
        serializer: Any = "json",
        local_ttl: float | None = None,
        stale_if_error: float = 0.0,
        timeout: float = 5.0,
        heartbeat: float = 5.0,
        **options: Any,
    ) -> None:
        self._link: _Link | None = None
        # The lock, while a thread that holds it makes a link. A child of a fork has another lock.
        self._starting_in: Any = None
        self._configure(
            server,
            False,
            max_size,
            ttl,
            prefix,
            serializer,
            local_ttl,
            stale_if_error,
            timeout,
            heartbeat,
            options,
        )

    # -- operations --

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Write a value through to the server; every other process drops its copy. One round trip.

        ``ttl`` in seconds, None for the cache's own, `math.inf` for none. The local copy is what ``loads`` makes of
        the serialised value, as others will read it.
        """
        payload, request = self._set_command(key, value, ttl, None)
        self._call(request, payload)

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def delete(self, key: str) -> bool:
        """Delete a key on the server and everywhere. Whether it was there. One round trip."""
        payload = _pack(b"UNLINK", self._server_key(key))
        # A load of the key that is under way must not be written after this.
        self._loading.pop(key, None)
        return bool(self._call(_Request("delete", key, None), payload))

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def get_or_set(self, key: str, factory: Callable[[], Any], ttl: float | None = None) -> Any:
        """The value under the key; if there is none, that of ``factory()``, which is written.

        Single flight in each process, as `TTLDict.get_or_set`: threads, or greenlets, that find no copy at the same
        time share one question to the server and one call of the factory. An exception goes to all of them and is not
        kept. Other keys never wait. If this process deletes the key meanwhile, all get the result, and it is not
        written. Processes don't wait for each other: the last write stays. O(1) if there is a local copy.

        `LoadCycleError` if the factory asks for the same key, or for one whose factory waits for this one.
        """
        want_callable("factory", factory)
        self._life(ttl)
        value = self.peek(key, _MISSING)
        if value is not _MISSING:
            return value
        self._server_key(key)
        # Before it waits for anybody: neither the connection's thread nor one that is sending may.
        link = self._usable_link()
        with link.lock, link.turn:
            pass

        def load(is_forgotten: Callable[[], bool]) -> Any:
            value = self._miss(key, _MISSING)
            if value is _MISSING:
                value = factory()
                refuse_awaited("factory()", value)
                payload, request = self._set_command(key, value, ttl, None)
                request.unless = is_forgotten
                with suppress(_Forgotten):
                    self._call(request, payload)
            return value

        return self._load_once(self._loading, key, load)

    def ping(self) -> float:
        """Wait for the server; returns the seconds. What it had invalidated by then has been removed here."""
        request = _Request("ping", None, None)
        began = time.monotonic()
        self._call(request, _pack(b"PING"))
        return time.monotonic() - began

    def close(self) -> None:
        """Close the connection, end its thread and remove the copies. Later operations raise. Harmless if repeated."""
        with _starting:
            self._closed = True
            link, self._link = self._link, None
        if link is not None and not self._forked:
            link.stop(join=True)
        self._trust(-math.inf)
        self.local.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        link = getattr(self, "_link", None)
        if link is not None and not self._forked:
            link.stop()

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<{type(self).__name__} {self._prefix.decode()!r}: {state}, {len(self.local)} local copies>"

    # -- the connection --

    def _usable_link(self) -> _Link:
        """The link, started if need be: at first use, and in a forked child."""
        link = self._link
        if link is not None and link.thread is threading.current_thread():
            # It would wait for itself, and may hold the lock already.
            raise SynthexFastError(
                "what the connection's thread calls (loads, on_remove, on_evict) must not use the cache that calls it"
            )
        if link is None or self._forked:
            # Loads and copies that the parent had: released without the lock.
            old: list[Any] = []
            with _starting:
                if self._closed:
                    raise SynthexFastError("this cache is closed")
                if self._starting_in is _starting:
                    raise SynthexFastError(
                        "a finaliser or signal handler used the cache in a thread that it interrupted while that was"
                        " connecting the same cache"
                    )
                self._starting_in = _starting
                try:
                    if self._forked:
                        inherited, self._link = self._link, None
                        if inherited is not None and inherited.socket is not None:
                            # Only this process's descriptor; the parent goes on with its own.
                            inherited.socket.close()
                        old += (self._pending, self._reading)
                        self.local.clear()
                        self._begin()
                    link = self._link
                    if link is None:
                        link = _Link(self)
                        link.thread.start()
                        self._link = link
                        if self._closed:
                            # By what interrupted this.
                            self._link = None
                            link.stop()
                            raise SynthexFastError("this cache is closed")
                finally:
                    self._starting_in = None
            del old
        if not self._connected:
            link.tried.wait(self._timeout)
        return link

    def _miss(self, key: str, default: Any) -> Any:
        payload = self._get_command(key)
        link = self._usable_link()
        with link.lock, link.turn:
            # Others that wait for the same key share the reply, which arrives after their calls began.
            request = self._reading.get(key)
            if request is None:
                request = _Request("get", key, _closed_lock())
                self._reading[key] = request
                try:
                    link.send_locked(self, request, payload)
                except BaseException:
                    self._reading.pop(key, None)
                    raise
        self._wait(link, request)
        return default if request.result is _MISSING else request.result

    def _call(self, request: _Request, payload: bytes) -> Any:
        link = self._usable_link()
        request.done = _closed_lock()
        link.send(self, request, payload)
        self._wait(link, request)
        return request.result

    def _wait(self, link: _Link, request: _Request) -> None:
        if not request.done.acquire(True, self._timeout):
            raise self._unavailable(f"it has not answered within {self._timeout:g} s")
        # For the next one that waits.
        request.done.release()
        if request.error is not None:
            raise _again(request.error)

    def _answer(self, request: _Request) -> None:
        if request.kind == "get" and self._reading.get(request.key) is request:  # type: ignore[arg-type]
            del self._reading[request.key]  # type: ignore[arg-type]
        if request.done is not None:
            request.done.release()


def _closed_lock() -> Any:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _again(error: BaseException) -> BaseException:
    """An error that several threads raise: each its own, where that is possible."""
    if type(error) is ServerUnavailableError:
        return ServerUnavailableError(*error.args)
    return error


# --- asyncio ---


class AsyncTieredCache(_Shared, AsyncLocalTier):
    """`TieredCache` for asyncio: `get`, `set`, `delete`, `get_or_set`, `ping` and `close` are awaited.

    ``server`` is a URL or a ``redis.asyncio.Redis``.

    `get` has its value at once if there is a local copy, and `peek` returns a copy without being awaited. A cache
    belongs to the event loop that first uses it; it can be used in another one after that is closed.
    """

    def __init__(
        self,
        server: Any,
        max_size: int | None = None,
        ttl: float | None = None,
        *,
        prefix: str = "cache:",
        serializer: Any = "json",
        local_ttl: float | None = None,
        stale_if_error: float = 0.0,
        timeout: float = 5.0,
        heartbeat: float = 5.0,
        **options: Any,
    ) -> None:
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._configure(
            server,
            True,
            max_size,
            ttl,
            prefix,
            serializer,
            local_ttl,
            stale_if_error,
            timeout,
            heartbeat,
            options,
        )

    # -- operations --

    async def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        """Write a value through to the server; every other process drops its copy. One round trip.

        ``ttl`` in seconds, None for the cache's own, `math.inf` for none. If the task is cancelled meanwhile, the write
        may still happen.
        """
        payload, request = self._set_command(key, value, ttl, None)
        await self._call(request, payload)

    async def delete(self, key: str) -> bool:
        """Delete a key on the server and everywhere. Whether it was there. One round trip."""
        payload = _pack(b"UNLINK", self._server_key(key))
        # A load of the key that is under way must not be written after this.
        self._loading.pop(key, None)
        return bool(await self._call(_Request("delete", key, None), payload))

    async def get_or_set(
        self, key: str, factory: Callable[[], Awaitable[Any]], ttl: float | None = None
    ) -> Any:
        """The value under the key; if there is none, that of ``await factory()``, which is written.

        Single flight, as `TTLDict.aget_or_set`: tasks that find no copy at the same time share one question to the
        server and one call of the factory. To cancel one who waits doesn't cancel it for the others; if all are
        cancelled, it is. Everything else is as with `TieredCache.get_or_set`.
        """
        want_callable("factory", factory, may_await=True)
        self._life(ttl)
        value = self.peek(key, _MISSING)
        if value is not _MISSING:
            return value
        self._server_key(key)

        async def load() -> Any:
            is_forgotten = current_load()
            value = await self._miss(key, _MISSING)
            if value is _MISSING:
                made = factory()
                if not hasattr(type(made), "__await__"):
                    raise type_error("factory()", made, "something to await")
                value = await made
                payload, request = self._set_command(key, value, ttl, None)
                request.unless = is_forgotten
                with suppress(_Forgotten):
                    await self._call(request, payload)
            return value

        return await fly(self._loading, key, load, math.inf, None, True)

    async def ping(self) -> float:
        """Wait for the server; returns the seconds. What it had invalidated by then has been removed here."""
        began = time.monotonic()
        await self._call(_Request("ping", None, None), _pack(b"PING"))
        return time.monotonic() - began

    async def close(self) -> None:
        """Close the connection, end its task and remove the copies. Later operations raise. Harmless if repeated."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None and self._loop is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])
        self._trust(-math.inf)
        self.local.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        task, loop = getattr(self, "_task", None), getattr(self, "_loop", None)
        if task is not None and loop is not None and not self._forked and not loop.is_closed():
            try:  # noqa: SIM105
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<{type(self).__name__} {self._prefix.decode()!r}: {state}, {len(self.local)} local copies>"

    # -- the connection --

    async def _ready(self) -> None:
        """Start the reader if need be, and wait for its first attempt to connect."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise SynthexFastError("this cache is closed")
        if self._loop is not loop or self._forked or self._task is None or self._task.done():
            elsewhere = self._loop is not None and self._loop is not loop and not self._forked
            if elsewhere and not self._loop.is_closed():  # type: ignore[union-attr]
                raise SynthexFastError("this cache is in use in another event loop")
            self._begin()
            self.local.clear()
            self._loop = loop
            self._writer = None
            self._tried = asyncio.Event()
            self._task = loop.create_task(_read(weakref.ref(self), self._tried), name="synthex-fast-tiered")
        if not self._connected and not self._tried.is_set():
            try:
                async with asyncio.timeout(self._timeout):
                    await self._tried.wait()
            except TimeoutError:
                raise self._unavailable(f"it could not be connected within {self._timeout:g} s") from None

    async def _miss(self, key: str, default: Any) -> Any:
        payload = self._get_command(key)
        await self._ready()
        request = self._reading.get(key)
        if request is None:
            request = _Request("get", key, asyncio.get_running_loop().create_future())
            self._send(request, payload)
            self._reading[key] = request
        await self._wait(request)
        return default if request.result is _MISSING else request.result

    async def _call(self, request: _Request, payload: bytes) -> Any:
        await self._ready()
        request.done = asyncio.get_running_loop().create_future()
        self._send(request, payload)
        await self._wait(request)
        return request.result

    def _send(self, request: _Request, payload: bytes) -> None:
        if self._writer is None:
            raise self._unavailable()
        if request.unless is not None and request.unless():
            raise _Forgotten
        request.sent = time.monotonic()
        self._pending.append(request)
        self._writer.write(payload)

    async def _wait(self, request: _Request) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                # Others may wait for the same reply, and the reader answers whether somebody waits or not.
                await asyncio.shield(request.done)
        except TimeoutError:
            raise self._unavailable(f"it has not answered within {self._timeout:g} s") from None
        if request.error is not None:
            raise _again(request.error)

    def _answer(self, request: _Request) -> None:
        if request.kind == "get" and self._reading.get(request.key) is request:  # type: ignore[arg-type]
            del self._reading[request.key]  # type: ignore[arg-type]
        if request.done is not None and not request.done.done():
            request.done.set_result(None)


async def _read(owner: weakref.ref[AsyncTieredCache], tried: asyncio.Event) -> None:
    """Connect, apply what arrives until the connection is lost, and begin again, while the cache exists."""
    pause = _FIRST_PAUSE
    while (cache := owner()) is not None:
        reason: object = "the connection was closed"
        connection: Any = None
        make = cache._make_connection
        heartbeat, timeout, prefix = cache._heartbeat, cache._timeout, cache._prefix
        del cache
        try:
            connection = make()
            await connection.connect()
            parser = await _track(connection, prefix, timeout)
            cache = owner()
            if cache is None:
                return
            cache._on_connected()
            cache._writer = connection._writer
            del cache
            tried.set()
            pause = _FIRST_PAUSE
            reason = await _serve(owner, connection._reader, parser, heartbeat, timeout)
        except asyncio.CancelledError:
            reason = "the cache was closed"
            raise
        except Exception as error:
            reason = error
        finally:
            cache = owner()
            if cache is not None:
                cache._writer = None
                cache._on_lost(reason)
                cache._drop_stale()
            del cache
            if connection is not None and connection._writer is not None:
                connection._writer.close()
                connection._reader = connection._writer = None
            connection = None
        tried.set()
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        cache = owner()
        if cache is not None:
            cache._drop_stale()
        del cache


async def _track(connection: Any, prefix: bytes, timeout: float) -> _Parser:
    connection._writer.write(_tracking(prefix))
    parser = _Parser()
    async with asyncio.timeout(timeout):
        while True:
            data = await connection._reader.read(_CHUNK)
            if not data:
                raise ConnectionError("the server closed the connection")
            for item in parser.feed(data):
                if type(item) is _Refusal:
                    raise ConnectionError(f"it refused to track keys: {item}")
                if type(item) is not _Push:
                    return parser


async def _serve(
    owner: weakref.ref[AsyncTieredCache], reader: Any, parser: _Parser, heartbeat: float, timeout: float
) -> str:
    while True:
        data = None
        try:
            async with asyncio.timeout(min(heartbeat, timeout)):
                data = await reader.read(_CHUNK)
        except TimeoutError:
            pass
        cache = owner()
        if cache is None:
            return "the cache is gone"
        if data is None:
            if cache._is_silent():
                return f"it has not answered for {timeout:g} s"
            if not cache._pending and time.monotonic() - cache._heard >= heartbeat:
                cache._send(_Request("ping", None, None), _pack(b"PING"))
        elif not data:
            return "the server closed the connection"
        else:
            cache._heard = time.monotonic()
            for item in parser.feed(data):
                cache._receive(item)
        del cache
