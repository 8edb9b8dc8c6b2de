"""What the near cache promises, against a Redis server of the tests' own on loopback."""

import asyncio
import gc
import json
import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec

import pytest
from servers import free_port
from support import ROOT, in_child, in_threads, needs_fork, quiet_fork, run, wait_for

from synthex_fast.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    LoadCycleError,
    ServerUnavailableError,
    SynthexFastError,
)

pytestmark = [
    pytest.mark.skipif(find_spec("redis") is None, reason="not installed: redis"),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="not installed: redis-server"),
]

if find_spec("redis") is not None:
    import redis
    import redis.asyncio

    from synthex_fast import tiered
    from synthex_fast.tiered import AsyncTieredCache, TieredCache


class Server:
    """A server that tests kill, stop and start again at the same port."""

    def __init__(self, folder, *options):
        self.port = free_port()
        self.folder = folder
        self.options = options
        self.process = None

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self):
        command = f"redis-server --port {self.port} --bind 127.0.0.1 --appendonly no --dir {self.folder}"
        self.process = subprocess.Popen(
            [*command.split(), "--save", "", *self.options], stdout=subprocess.DEVNULL
        )

        def answers():
            with suppress(redis.exceptions.RedisError), redis.Redis(port=self.port) as client:
                return client.ping()

        # One with options of its own may refuse a plain client, or not start.
        wait_for(
            lambda: self.process.poll() is not None or connects(self.port) if self.options else answers()
        )
        return self

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.resume()
            self.kill()


def connects(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server for the tests that don't end it."""
    server = Server(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.end()


@pytest.fixture
def server(shared):
    with redis.Redis(port=shared.port) as client:
        client.flushall()
    return shared


@pytest.fixture
def mortal(tmp_path):
    """A server that the test may kill."""
    server = Server(tmp_path).start()
    yield server
    server.end()


@pytest.fixture
def other(server):
    """Another client, as another process would have it."""
    with redis.Redis(port=server.port, decode_responses=True) as client:
        yield client


@contextmanager
def cache_at(server, *arguments, **options):
    with TieredCache(server.url, *arguments, **options) as cache:
        yield cache


def eventually(call):
    """Call until the server answers: on a busy machine it may not do so within a short time-out."""

    def answered():
        with suppress(ServerUnavailableError):
            call()
            return True

    wait_for(answered)


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "synthex-fast-tiered"]


# --- reading and writing ---


def test_it_reads_and_writes(server, other):
    with cache_at(server, 100) as cache:
        assert cache.get("a") is None and cache.get("a", 5) == 5
        cache["a"] = {"n": [1, 2.5, "ü", None]}
        assert other.get("cache:a") == '{"n":[1,2.5,"ü",null]}'
        assert cache["a"] == cache.get("a") == cache.peek("a") == {"n": [1, 2.5, "ü", None]}
        assert cache.delete("a") and not cache.delete("a")
        with pytest.raises(KeyError, match="a"):
            cache["a"]
        with pytest.raises(KeyError, match="a"):
            del cache["a"]
        assert cache.get_or_set("b", lambda: 7) == 7 == cache.get_or_set("b", lambda: 8)
        stats = cache.stats
        assert (stats["writes"], stats["deletes"], stats["connections"], stats["connected"]) == (
            2,
            3,
            1,
            True,
        )


def test_a_second_read_does_not_ask_the_server(server, other):
    other.set("cache:a", "1")
    with cache_at(server) as cache:
        assert cache.get("a") == 1
        asked = other.info("commandstats")["cmdstat_get"]["calls"]
        for _ in range(10):
            assert cache.get("a") == 1
        assert other.info("commandstats")["cmdstat_get"]["calls"] == asked
        assert (cache.stats["hits"], cache.stats["remote_hits"]) == (10, 1)


def test_another_clients_write_and_deletion_remove_the_copy(server, other):
    with cache_at(server) as cache:
        for change in (
            lambda: other.set("cache:a", "2"),
            lambda: other.delete("cache:a"),
            lambda: other.rename("cache:b", "cache:a"),
            lambda: other.expire("cache:a", 100),
            other.flushall,
        ):
            cache["b"] = 1
            cache["a"] = 1
            assert cache.peek("a") == 1
            change()
            wait_for(lambda: cache.peek("a") is None)
            assert cache.get("a") == (None if (value := other.get("cache:a")) is None else int(value))
        assert cache.stats["invalidations"] >= 4 and cache.stats["flushes"] == 1


def test_ones_own_write_leaves_a_copy_and_later_changes_remove_it(server, other):
    with cache_at(server) as cache:
        for n in range(5):
            cache["a"] = n
            cache.ping()
            assert cache.peek("a") == n
            other.set("cache:a", "-1")
            wait_for(lambda: cache.peek("a") is None)


def test_keys_without_the_prefix_are_none_of_its_business(server, other):
    with cache_at(server, prefix="") as every, cache_at(server, prefix="p:") as some:
        some["a"] = 1
        every.get("b")
        other.set("b", "1")
        other.set("p:a", "2")
        wait_for(lambda: some.peek("a") is None)
        every.ping()
        assert every.stats["invalidations"] == 2
        assert some.stats["invalidations"] == 1
        assert every.get("p:a") == 2


def test_two_caches_of_one_process_see_each_others_writes(server):
    with cache_at(server) as first, cache_at(server) as second:
        first["a"] = 1
        assert second.get("a") == 1
        first["a"] = 2
        wait_for(lambda: second.peek("a") is None)
        assert second.get("a") == 2


def test_times_to_live(server, other):
    with cache_at(server, ttl=100) as cache, cache_at(server) as forever:
        cache["a"] = 1
        assert 99_000 < other.pttl("cache:a") <= 100_000
        cache.set("a", 1, ttl=50.5)
        assert 49_000 < other.pttl("cache:a") <= 50_500
        cache.set("a", 1, ttl=math.inf)
        assert other.pttl("cache:a") == -1
        forever["a"] = 1
        assert other.pttl("cache:a") == -1
        assert forever.local.expires_at("a") == math.inf
        # A copy of somebody else's value lives no longer than that.
        other.set("cache:b", "1", px=60_000)
        assert forever.get("b") == 1
        assert 50 < forever.local.expires_at("b") - time.monotonic() <= 60
    with cache_at(server, local_ttl=5) as cache:
        cache.set("a", 1, ttl=100)
        assert 0 < cache.local.expires_at("a") - time.monotonic() <= 5
        cache.get("b")
        assert 0 < cache.local.expires_at("b") - time.monotonic() <= 5


def test_a_copy_ends_with_the_servers_value(server):
    with cache_at(server) as cache:
        cache.set("a", 1, ttl=0.05)
        wait_for(lambda: cache.peek("a") is None)
        # Its own life ends first: the server's began later.
        wait_for(lambda: cache.get("a") is None)


def test_serializers(server):
    class Odd:
        def __eq__(self, other):
            return type(other) is Odd

        __hash__ = None

    globals()["Odd"] = Odd
    Odd.__qualname__ = "Odd"
    for serializer, value in (
        ("bytes", b"\x00\xff\r\n"),
        ("bytes", b""),
        ("str", "text ü\n"),
        ("json", [1, {"a": None}]),
        ((pickle.dumps, pickle.loads), Odd()),
    ):
        with (
            cache_at(server, serializer=serializer) as cache,
            cache_at(server, serializer=serializer) as second,
        ):
            cache["a"] = value
            assert cache["a"] == value == second["a"]
            assert type(second["a"]) is type(value)


def test_the_copy_of_a_write_is_what_others_read(server):
    with cache_at(server) as cache:
        value = [(1, 2)]
        cache["a"] = value
        value.append(3)
        assert cache["a"] == [[1, 2]]


def test_large_values_arrive_in_pieces(server):
    text = "x" * 5_000_000
    with cache_at(server, serializer="str") as cache, cache_at(server, serializer="str") as second:
        cache["a"] = text
        assert second["a"] == text


def test_a_value_over_the_local_limit_is_written_and_not_copied(server, other):
    with cache_at(server, memory_limit=10_000, serializer="str") as cache:
        cache["a"] = "small"
        cache["a"] = "x" * 50_000
        assert cache.peek("a") is None
        assert cache["a"] == other.get("cache:a")
        assert len(cache.local) == 0


def test_what_the_serializer_raises_reaches_the_caller(server, other):
    with cache_at(server) as cache:
        cache["a"] = 1
        for bad in ({1, 2}, object()):
            with pytest.raises(TypeError):
                cache["a"] = bad
        assert cache["a"] == 1
        other.set("cache:a", "{")
        wait_for(lambda: cache.peek("a") is None)
        with pytest.raises(json.JSONDecodeError):
            cache.get("a")
        other.set("cache:a", "2")
        assert cache["a"] == 2
    unfit = (lambda value: value, bytes)
    with cache_at(server, serializer=unfit) as cache, pytest.raises(ArgumentTypeError, match="bytes"):
        cache["a"] = "text"
    with (
        cache_at(server, serializer="bytes") as cache,
        pytest.raises(ArgumentTypeError, match=r"^value must"),
    ):
        cache["a"] = "text"
    with cache_at(server, serializer="str") as cache, pytest.raises(ArgumentTypeError, match=r"^value must"):
        cache["a"] = b"text"


def test_loads_must_not_use_the_cache(server, other):
    def loads(data):
        return cache.get("b")

    with cache_at(server, serializer=(bytes, loads)) as cache:
        other.set("cache:a", "1")
        with pytest.raises(SynthexFastError, match="must not use the cache"):
            cache.get("a")


def test_callbacks_in_the_connections_thread_must_not_use_the_cache_either(server, other):
    refused = []

    def removed(key, value, reason):
        try:
            cache.get("b")
        except SynthexFastError as error:
            refused.append(str(error))

    with cache_at(server, on_remove=removed) as cache:
        cache["a"] = 1
        # The copies are removed while the connection's lock is held.
        other.client_kill_filter(_type="normal", skipme=True)
        other.client_kill_filter(_type="pubsub", skipme=True)
        eventually(lambda: cache.set("a", 2))
        eventually(lambda: cache.get("a"))
        assert cache.get("a") == 2
    assert any("must not use the cache" in text for text in refused)


def test_an_error_reply_reaches_the_caller_and_nothing_is_copied(server, other):
    other.lpush("cache:list", "1")
    with cache_at(server) as cache:
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            cache.get("list")
        assert cache.stats["errors"] == 1
        cache["a"] = 1
        assert cache["a"] == 1


@pytest.mark.parametrize("key", [1, b"a", None, ("a",)])
def test_keys_are_strings(server, key):
    with cache_at(server) as cache:
        for call in (cache.get, cache.delete, lambda key: cache.set(key, 1), cache.__getitem__):
            with pytest.raises(ArgumentTypeError, match=r"^key must be"):
                call(key)


def test_bad_arguments_are_named(server):
    for name, values in {
        "server": [1, None, redis.asyncio.Redis(port=server.port)],
        "max_size": [0, "1"],
        "ttl": [0, -1, "1", math.nan, 0.0001],
        "local_ttl": [0, "1"],
        "stale_if_error": [-1, "1", math.nan, None],
        "timeout": [0, None, math.inf, "1"],
        "heartbeat": [0, None, math.inf],
        "prefix": [1, None, b""],
        "serializer": ["pickle", None, (1, 2), (bytes,), bytes],
        "policy": ["none"],
    }.items():
        for value in values:
            with pytest.raises((ArgumentTypeError, ArgumentValueError), match=rf"^{name} must be"):
                TieredCache(**{"server": server.url, name: value})
    with cache_at(server) as cache:
        for value in (0, -1, "1", math.nan, 0.0001):
            with pytest.raises((ArgumentTypeError, ArgumentValueError), match=r"^ttl must be"):
                cache.set("a", 1, ttl=value)
    assert not readers()


def test_the_clients_settings_are_used(tmp_path):
    server = Server(tmp_path, "--requirepass", "secret").start()
    try:
        client = redis.Redis(port=server.port, password="secret", db=3, decode_responses=True)
        with TieredCache(client) as cache:
            cache["a"] = 1
            assert client.get("cache:a") == "1"
        with TieredCache(f"redis://:secret@127.0.0.1:{server.port}/3") as cache:
            assert cache["a"] == 1
        refused = pytest.raises(ServerUnavailableError, match="authenticate")
        with TieredCache(server.url, timeout=2) as cache, refused:
            cache.get("a")
        client.close()
    finally:
        server.end()


def test_a_unix_socket(tmp_path):
    path = tmp_path / "socket"
    server = Server(tmp_path, "--unixsocket", str(path)).start()
    try:
        with TieredCache(f"unix://{path}") as cache, cache_at(server) as second:
            cache["a"] = 1
            assert second["a"] == 1
    finally:
        server.end()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="not installed: openssl")
def test_tls_with_threads_that_write_while_others_read(tmp_path):
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "1",
                "-subj",
                "/CN=localhost",
            ),
            *("-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")),
        ],
        check=True,
        capture_output=True,
    )
    server = Server(
        tmp_path,
        *("--tls-port", str(port := free_port()), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(tmp_path / "certificate"), "--tls-key-file", str(tmp_path / "key")),
        *("--tls-ca-cert-file", str(tmp_path / "certificate")),
    )
    try:
        server.start()
        wait_for(lambda: server.process.poll() is not None or connects(port))
        if server.process.poll() is not None:
            pytest.skip("this redis-server is built without TLS")
        url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none"
        with TieredCache(url) as cache, TieredCache(url) as second:

            def write(n):
                for m in range(30):
                    cache[str(n)] = [m] * 1000
                    assert second.get(str(n)) is not None

            in_threads(*(partial(write, n) for n in range(4)))
            second.ping()
            assert [second.get(str(n))[0] for n in range(4)] == [29] * 4

        async def use():
            async with AsyncTieredCache(url) as cache:
                await cache.set("a", 1)
                assert await cache.get("a") == 1

        asyncio.run(use())
    finally:
        server.end()


# --- the order of things, without a server ---


def receiving():
    """A cache without a connection, and a request of each kind as if it had been sent."""
    cache = TieredCache("redis://127.0.0.1:1/0")
    cache._on_connected()

    def sent(kind, key, value=None):
        request = tiered._Request(kind, key, threading.Lock(), value)
        request.done.acquire()
        request.sent = time.monotonic()
        cache._pending.append(request)
        return request

    return cache, sent


def invalidate(*keys):
    return tiered._Push([b"invalidate", [b"cache:" + key.encode() for key in keys] or None])


def test_an_invalidation_behind_the_reply_removes_what_the_reply_stored():
    cache, sent = receiving()
    request = sent("get", "a")
    for item in (b"1", -1, invalidate("a")):
        cache._receive(item)
    assert request.result == 1 and cache.peek("a") is None


@pytest.mark.parametrize("keys", [("a",), ("b", "a"), ()])
def test_an_invalidation_between_the_two_replies_to_a_read(keys):
    cache, sent = receiving()
    request = sent("get", "a")
    for item in (b"1", invalidate(*keys), -1):
        cache._receive(item)
    assert request.result == 1 and cache.peek("a") is None


def test_an_invalidation_of_another_key_between_them():
    cache, sent = receiving()
    sent("get", "a")
    for item in (b"1", invalidate("b"), -1):
        cache._receive(item)
    assert cache.peek("a") == 1


def test_an_invalidation_before_the_reply_to_a_write():
    cache, sent = receiving()
    sent("set", "a", 3)
    for item in (invalidate("a"), b"OK"):
        cache._receive(item)
    # The write came after the change that the server tells of.
    assert cache.peek("a") == 3


def test_a_value_that_expired_between_the_two_replies():
    cache, sent = receiving()
    cache.local["a"] = 0
    request = sent("get", "a")
    for item in (b"1", -2):
        cache._receive(item)
    assert request.result == 1 and cache.peek("a") is None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_parser_takes_items_in_any_pieces(size):
    data = (
        b"$3\r\na\r\n\r\n$-1\r\n_\r\n$0\r\n\r\n:12\r\n:-2\r\n(123456789012345678901\r\n+OK\r\n-ERR no\r\n"
        b"!5\r\nWRONG\r\n=6\r\ntxt:ab\r\n*2\r\n:1\r\n*1\r\n$1\r\nx\r\n*-1\r\n~1\r\n#t\r\n,1.5\r\n"
        b"%1\r\n+k\r\n*1\r\n:1\r\n>2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n>2\r\n+invalidate\r\n_\r\n"
        b"|1\r\n+ttl\r\n:3\r\n:7\r\n"
    )
    parser = tiered._Parser()
    items = []
    for start in range(0, len(data), size):
        items += parser.feed(data[start : start + size])
    assert items == [
        *(b"a\r\n"[:3], None, None, b"", 12, -2, 123456789012345678901, b"OK", "ERR no", "WRONG", b"ab"),
        *([1, [b"x"]], None, [True], 1.5, {b"k": [1]}, [b"invalidate", [b"k"]], [b"invalidate", None], 7),
    ]
    assert [type(item) for item in items if isinstance(item, tiered._Push)] == [tiered._Push] * 2
    with pytest.raises(ConnectionError, match="not RESP3"):
        list(parser.feed(b"HTTP/1.1 200 OK\r\n"))


class Counted(bytearray):
    """Counts the bytes that are looked at or copied."""

    work = 0

    def find(self, sub, start=0):
        end = super().find(sub, start)
        self.work += (len(self) if end < 0 else end) - start
        return end

    def __getitem__(self, where):
        found = super().__getitem__(where)
        self.work += len(found)
        return found

    def __delitem__(self, where):
        self.work += len(self) - where.stop
        super().__delitem__(where)


def work_on(data, size):
    parser = tiered._Parser()
    parser._buffer = Counted()
    items = []
    for start in range(0, len(data), size):
        items += parser.feed(data[start : start + size])
    return items, parser._buffer.work / len(data)


def test_the_parser_takes_a_push_of_many_keys_in_linear_time():
    names = [b"cache:%d" % n for n in range(200_000)]
    names_sent = b"".join(b"$%d\r\n%b\r\n" % (len(name), name) for name in names)
    data = b">2\r\n$10\r\ninvalidate\r\n*%d\r\n%b" % (len(names), names_sent)
    items, work = work_on(data, 1 << 16)
    assert items == [[b"invalidate", names]]
    assert work < 3


@pytest.mark.parametrize("kind", [b"+", b"$100000\r\n"])
def test_the_parser_takes_a_long_item_in_linear_time(kind):
    items, work = work_on(kind + b"x" * 100_000 + b"\r\n", 100)
    assert items == [b"x" * 100_000]
    assert work < 3


def test_the_parser_takes_empty_and_nested_aggregates():
    data = b"*0\r\n%0\r\n>0\r\n|0\r\n:1\r\n*2\r\n|1\r\n+a\r\n*1\r\n:2\r\n*0\r\n%1\r\n*1\r\n:3\r\n:4\r\n"
    items, _ = work_on(data, 1)
    assert items == [[], {}, [], 1, [[], {(3,): 4}]]
    assert type(items[2]) is tiered._Push


# --- the server goes away and comes back ---


def test_copies_go_on_for_a_while_and_say_so(mortal):
    with cache_at(mortal, stale_if_error=30) as cache:
        cache["a"] = 1
        mortal.kill()
        wait_for(lambda: not cache.connected)
        assert cache.get("a") == 1 == cache["a"] == cache.peek("a")
        stats = cache.stats
        assert (stats["stale"], stats["connected"], stats["losses"]) == (True, False, 1)
        assert stats["stale_hits"] == 3
        for call in (
            lambda: cache.get("b"),
            lambda: cache.set("a", 2),
            lambda: cache.delete("a"),
            cache.ping,
        ):
            with pytest.raises(ServerUnavailableError) as caught:
                call()
            assert isinstance(caught.value, ConnectionError)
        assert cache.get("a") == 1


def test_copies_end_with_the_time_allowed(mortal):
    with cache_at(mortal, stale_if_error=0.2) as cache, cache_at(mortal) as strict:
        cache["a"] = strict["a"] = 1
        mortal.kill()
        wait_for(lambda: not strict.connected)
        assert strict.peek("a") is None and len(strict.local) == 0
        wait_for(lambda: not cache.stats["stale"])
        for each in (cache, strict):
            with pytest.raises(ServerUnavailableError):
                each.get("a")
        # Their memory is given back, too.
        wait_for(lambda: len(cache.local) == 0)


def test_copies_are_removed_before_a_new_connection_is_trusted(mortal, monkeypatch):
    with cache_at(mortal, stale_if_error=60) as cache:
        cache["a"] = 1
        mortal.kill()
        wait_for(lambda: not cache.connected)
        assert cache["a"] == 1
        seen = []
        trust = cache._trust

        def watched(until):
            seen.append((until, len(cache.local)))
            trust(until)

        cache._trust = watched
        mortal.start()
        with redis.Redis(port=mortal.port) as client:
            client.set("cache:a", "2")
        wait_for(lambda: cache.connected)
        assert seen == [(math.inf, 0)]
        assert cache["a"] == 2
        assert (cache.stats["stale"], cache.stats["connections"]) == (False, 2)


def test_a_server_that_falls_silent_is_noticed(mortal):
    with cache_at(mortal, timeout=0.1, heartbeat=0.1, stale_if_error=60) as cache:
        eventually(lambda: cache.set("a", 1))
        mortal.pause()
        wait_for(lambda: not cache.connected)
        # Counted from when it was last heard of, not from when that was noticed.
        assert cache._until == cache._heard + 60
        with pytest.raises(ServerUnavailableError):
            cache.get("b")
        mortal.resume()
        wait_for(lambda: cache.connected)
        eventually(lambda: cache["a"])


def test_a_request_that_is_not_answered_in_time(mortal):
    with cache_at(mortal, timeout=0.1, stale_if_error=60) as cache:
        eventually(lambda: cache.set("a", 1))
        mortal.pause()
        with pytest.raises(ServerUnavailableError):
            cache.get("b")
        assert cache["a"] == 1
        wait_for(lambda: not cache.connected)
        mortal.resume()
        eventually(lambda: cache.set("a", 2))
        eventually(lambda: cache["a"])
        assert cache["a"] == 2


def test_no_server_at_first(tmp_path):
    server = Server(tmp_path)
    with cache_at(server, timeout=2) as cache:
        with pytest.raises(ServerUnavailableError, match="the server is not available"):
            cache.get("a")
        with pytest.raises(ServerUnavailableError):
            cache["a"] = 1
        server.start()
        try:
            wait_for(lambda: cache.connected)
            cache["a"] = 1
            assert cache["a"] == 1 and cache.stats["losses"] == 0
        finally:
            server.end()


# --- two processes ---

WRITER = """
import sys, time
import redis
port, writes, keys = map(int, sys.argv[1:])
client = redis.Redis(port=port, retry=None)
for n in range(1, writes + 1):
    while True:
        try:
            client.set(f"cache:{n % keys}", n)
            break
        except redis.exceptions.ConnectionError:
            # The tests' server is being restarted.
            time.sleep(0.01)
    # The server has told everybody by now, and will say so in order. Nothing more is written until that is checked.
    if n % 20 == 0:
        print(n, flush=True)
        sys.stdin.readline()
"""


@pytest.mark.slow
def test_no_read_is_older_than_the_last_invalidation_over_ten_thousand_writes_and_a_restart(mortal, request):
    # The threads that read must not keep the reader of the connection waiting.
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-5)
    writes, keys = 10_000, 10
    names = [str(n) for n in range(keys)]
    with cache_at(mortal, stale_if_error=0) as cache:
        stop = threading.Event()
        local = [0]

        def read():
            """Values never go backwards, except that a restart loses all."""
            newest = dict.fromkeys(names, 0)
            while not stop.is_set():
                for name in names:
                    try:
                        value = cache.get(name)
                    except ServerUnavailableError:
                        time.sleep(0.001)
                        continue
                    if value is not None:
                        assert value >= newest[name], (name, value, newest[name])
                        newest[name] = value
                local[0] += 1

        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(mortal.port), str(writes), str(keys)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as writer:
            failed = []

            def body():
                try:
                    read()
                except BaseException as error:
                    failed.append(error)

            threads = [threading.Thread(target=body) for _ in range(2)]
            for thread in threads:
                thread.start()
            try:
                barriers = 0
                lost = False  # a restart has emptied the server, and not all keys have been written again
                for line in writer.stdout:
                    written = int(line)
                    if written == writes // 2:
                        mortal.kill()
                        mortal.start()
                        lost = True
                    try:
                        cache.ping()
                        found = {name: cache.get(name) for name in names}
                    except ServerUnavailableError:
                        wait_for(lambda: cache.connected)
                        writer.stdin.write("\n")
                        continue
                    # Everything up to `written` was acknowledged before the barrier.
                    for n in range(written - keys + 1, written + 1):
                        value = found[str(n % keys)]
                        assert (value is None and lost) or value >= n, (n, value)
                    lost = lost and None in found.values()
                    writer.stdin.write("\n")
                    barriers += 1
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
                writer.kill()
        assert not failed, failed
        assert barriers > writes / 20 - 10
        stats = cache.stats
        assert stats["connections"] == 2 and stats["invalidations"] > writes / 2 and stats["hits"]


@pytest.mark.slow
def test_two_processes_that_both_write_agree_in_the_end(server):
    script = f"""
import sys
from synthex_fast.tiered import TieredCache
with TieredCache("{server.url}") as cache:
    for n in range(2000):
        cache[str(n % 5)] = [sys.argv[1], n]
        cache.get(str((n + 1) % 5))
    print("written", flush=True)
    sys.stdin.readline()
    cache.ping()
    print([cache.get(str(n)) for n in range(5)])
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in "ab"
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["written\n"] * 2
        ends = [process.communicate("\n", timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    with redis.Redis(port=server.port) as client:
        assert ends == [str([json.loads(client.get(f"cache:{n}")) for n in range(5)]) + "\n"] * 2


# --- threads, forks, the end ---


class Interrupted:
    """A socket. While something is sent, the garbage collector runs, and what it calls uses the cache."""

    def __init__(self, raw):
        self.raw = raw

    def sendall(self, data):
        gc.collect()
        self.raw.sendall(data)


@pytest.mark.parametrize("kind", ["finaliser", "weak reference", "callback of gc"])
@pytest.mark.parametrize("operation", ["get", "set", "get_or_set", "peek"])
def test_a_finaliser_that_uses_the_cache_while_a_request_is_sent(server, kind, operation):
    with cache_at(server) as cache:
        cache.set("copied", 1)
        seen = []
        call = {
            "get": lambda: cache.get("b"),
            "set": lambda: cache.set("b", 2),
            "get_or_set": lambda: cache.get_or_set("b", int),
            "peek": lambda: cache.peek("copied"),
        }[operation]

        def use(*_):
            try:
                seen.append(call())
            except SynthexFastError as error:
                seen.append(str(error))

        class Node:
            pass

        class Final(Node):
            __del__ = use

        def read():
            node = Final() if kind == "finaliser" else Node()
            node.me = node
            kept = weakref.ref(node, use) if kind == "weak reference" else None
            if kind == "callback of gc":
                gc.callbacks.append(use)
            del node
            try:
                cache.get("a")
            finally:
                if kind == "callback of gc":
                    gc.callbacks.remove(use)
            del kept

        gc.disable()
        link = cache._link
        link.socket = Interrupted(link.socket)
        reader = threading.Thread(target=read, daemon=True)
        try:
            reader.start()
            reader.join(20)
            assert not reader.is_alive(), "it waits for itself"
        finally:
            gc.enable()
            # Closing shuts down what it knows as a socket.
            link.socket = link.socket.raw
        assert seen
        for each in seen:
            assert (
                each == 1 if operation == "peek" else "a finaliser or signal handler used the cache" in each
            )
        # What it interrupted and what comes later is as if nothing had been.
        cache.set("b", 3)
        assert cache.get("b") == 3 and cache.get("a") is None


def test_a_finaliser_that_uses_the_cache_while_it_is_connected(server, monkeypatch):
    seen = []
    with cache_at(server) as cache:
        start = threading.Thread.start

        def interrupted(thread):
            if thread.name == "synthex-fast-tiered":
                try:
                    cache.get("b")
                except SynthexFastError as error:
                    seen.append(str(error))
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", interrupted)
        user = threading.Thread(target=cache.get, args=("a",), daemon=True)
        user.start()
        user.join(20)
        assert not user.is_alive(), "it waits for itself"
        assert len(seen) == 1 and "was connecting the same cache" in seen[0]
        assert cache.get("a") is None


def test_values_are_released_without_the_lock(mortal):
    """What a copy's finaliser waits for may be in a thread that waits for the lock."""
    with cache_at(mortal, serializer=(lambda value: b"x", lambda data: Final()), timeout=1) as cache:
        locked = []

        class Final:
            def __del__(self):
                def try_it():
                    locked.append(not link.lock.acquire(timeout=0.5))
                    if not locked[-1]:
                        link.lock.release()

                thread = threading.Thread(target=try_it)
                thread.start()
                thread.join()

        cache.set("a", 1)
        link = cache._link
        wait_for(lambda: len(cache.local) == 1)
        mortal.kill()
        wait_for(lambda: locked)
        assert not any(locked)


LONE = "\ud800"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("key", lambda cache: cache.get(LONE)),
        ("key", lambda cache: cache.set("a" + LONE, 1)),
        ("key", lambda cache: cache.delete(LONE)),
        ("key", lambda cache: cache.get_or_set(LONE, int)),
        ("value", lambda cache: cache.set("a", LONE)),
        ("prefix", lambda cache: TieredCache("redis://127.0.0.1:1/0", prefix=LONE)),
    ],
)
@pytest.mark.parametrize("serializer", ["str", "json"])
def test_text_that_is_no_utf8_is_named(server, name, call, serializer):
    with (
        cache_at(server, serializer=serializer) as cache,
        pytest.raises(ArgumentValueError, match=rf"^{name} must be text without lone surrogates"),
    ):
        call(cache)


def test_get_or_set_is_single_flight(server, other):
    with cache_at(server) as cache:
        cache.ping()
        calls, barrier, may_end = [], threading.Barrier(9), threading.Event()

        def factory():
            calls.append(1)
            assert may_end.wait(20)
            return 42

        def call():
            barrier.wait()
            found.append(cache.get_or_set("a", factory))

        found = []
        threads = [threading.Thread(target=call, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        barrier.wait()
        wait_for(lambda: cache._loading.stats["load_waits"] == 7)
        # Another key does not wait.
        assert cache.get_or_set("b", lambda: 1) == 1
        may_end.set()
        for thread in threads:
            thread.join(20)
        assert (found, calls) == ([42] * 8, [1])
        assert other.get("cache:a") == "42" and cache.peek("a") == 42
        assert cache.get_or_set("a", factory) == 42 and len(calls) == 1


def test_an_exception_of_the_factory_goes_to_all_and_is_not_kept(server):
    with cache_at(server) as cache:
        may_end, seen = threading.Event(), []

        def factory():
            assert may_end.wait(20)
            raise KeyError("no")

        def call():
            try:
                cache.get_or_set("a", factory)
            except KeyError as error:
                seen.append(error)

        threads = [threading.Thread(target=call, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: cache._loading.stats["load_waits"] == 3)
        may_end.set()
        for thread in threads:
            thread.join(20)
        assert len(seen) == 4 and cache._loading.stats["loads"] == 1
        assert cache.get_or_set("a", lambda: 1) == 1


def test_a_factory_that_asks_for_its_own_key(server):
    with cache_at(server) as cache:
        with pytest.raises(LoadCycleError, match="'a'"):
            cache.get_or_set("a", lambda: cache.get_or_set("a", int))
        assert cache.get_or_set("a", lambda: cache.get_or_set("b", lambda: 2)) == 2
        with pytest.raises(ArgumentTypeError, match="factory must be"):
            cache.get_or_set("a", 3)
        with pytest.raises(ArgumentTypeError, match=r"factory\(\) must not be async"):
            cache.get_or_set("c", lambda: asyncio.sleep(0))


def test_a_load_is_not_written_if_its_key_is_deleted_meanwhile(server, other):
    with cache_at(server) as cache:

        def factory():
            cache.delete("a")
            return 1

        assert cache.get_or_set("a", factory) == 1
        assert other.get("cache:a") is None and cache.peek("a") is None

    async def main():
        async with AsyncTieredCache(server.url) as cache:

            async def make():
                await cache.delete("a")
                return 1

            assert await cache.get_or_set("a", make) == 1
            assert other.get("cache:a") is None and cache.peek("a") is None

    asyncio.run(main())


def test_asyncio_get_or_set_is_single_flight(server):
    async def main():
        async with AsyncTieredCache(server.url) as cache:
            calls, may_end = [], asyncio.Event()

            async def make():
                calls.append(1)
                await may_end.wait()
                return 42

            tasks = [asyncio.create_task(cache.get_or_set("a", make)) for _ in range(8)]
            async with asyncio.timeout(20):
                while cache._loading.stats["load_waits"] < 7 or not calls:
                    await asyncio.sleep(0.001)
                tasks[0].cancel()
                await asyncio.sleep(0)
                may_end.set()
                found = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert (found[1:], calls) == ([42] * 7, [1])

            async def fails():
                raise KeyError

            found = await asyncio.gather(
                *(cache.get_or_set("b", fails) for _ in range(3)), return_exceptions=True
            )
            assert [type(each) for each in found] == [KeyError] * 3

            async def itself():
                return await asyncio.gather(cache.get_or_set("b", itself))

            with pytest.raises(LoadCycleError):
                await asyncio.wait_for(cache.get_or_set("b", itself), 20)
            with pytest.raises(ArgumentTypeError, match=r"factory\(\) must be something to await"):
                await cache.get_or_set("b", int)

    asyncio.run(main())


def test_threads_that_miss_together_share_a_reply(server, other):
    other.set("cache:a", "1")
    with cache_at(server) as cache:
        cache.ping()
        other.config_resetstat()
        with other.pipeline() as pipe:
            pipe.client_pause(300)
            pipe.execute()
        in_threads(*[lambda: cache.get("a")] * 8)
        assert other.info("commandstats")["cmdstat_get"]["calls"] == 1
        assert not cache._reading and not cache._pending


def test_threads_that_end(server):
    with cache_at(server) as cache:
        for n in range(20):
            in_threads(lambda n=n: cache.set(str(n), n), lambda n=n: cache.get(str(n)))
        assert [cache[str(n)] for n in range(20)] == list(range(20))


def test_many_threads(server, hammer):
    with cache_at(server, 50) as cache, cache_at(server, 50) as second:

        def use(index):
            name = f"{index % 4}"
            caches = (cache, second) if index % 2 else (second, cache)
            caches[0][name] = [name] * 3
            value = caches[1].get(name)
            assert value is None or value == [name] * 3
            if index == 0:
                caches[0].delete(name)

        hammer(8, use, iterations=100)
        for each in (cache, second):
            each.ping()
        assert [cache.get(str(n)) for n in range(4)] == [second.get(str(n)) for n in range(4)]


@needs_fork
@quiet_fork
def test_a_forked_child_connects_anew_and_the_parent_goes_on(server, other):
    with cache_at(server) as cache:
        cache["a"] = 1

        def child():
            # Nobody tells the child of changes to its inherited copies.
            assert cache.peek("a") is None and not cache.connected and not cache.stats["stale"]
            other_than = redis.Redis(port=server.port)
            other_than.set("cache:a", "2")
            assert cache.get("a") == 2
            assert cache.connected and cache.stats["connections"] == 2
            other_than.set("cache:a", "3")
            wait_for(lambda: cache.peek("a") is None)
            cache["b"] = 5
            cache.close()

        in_child(child)
        cache.ping()
        assert cache.connected and cache["a"] == 3 and cache["b"] == 5
        assert cache.stats["connections"] == 1


@needs_fork
@quiet_fork
def test_a_fork_while_threads_use_it(server):
    with cache_at(server) as cache:
        stop = threading.Event()

        def use():
            while not stop.is_set():
                cache["x"] = 1
                cache.clear_local()
                cache.get("x")

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for n in range(10):
                in_child(lambda n=n: cache.set("child", n) or cache["child"] == n)
                assert cache.get("child") == n
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_closing(server):
    cache = TieredCache(server.url)
    cache["a"] = 1
    assert len(readers()) == 1
    cache.close()
    cache.close()
    assert not readers() and len(cache.local) == 0
    for call in (lambda: cache.get("a"), lambda: cache.set("a", 1), cache.ping):
        with pytest.raises(SynthexFastError, match="closed"):
            call()
    assert cache.peek("a") is None and not cache.connected
    assert "not connected" in repr(cache)
    TieredCache(server.url).close()


def test_closing_fails_those_who_wait(mortal):
    with cache_at(mortal, timeout=30) as cache:
        cache["a"] = 1
        mortal.pause()
        failed = []

        def wait():
            with pytest.raises(ServerUnavailableError):
                cache.get("b")
            failed.append(1)

        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_for(lambda: cache._pending)
        cache.close()
        waiting.join()
        assert failed == [1]


def test_a_cache_that_is_dropped_ends_its_thread_and_connection(server, other):
    def clients():
        return len([each for each in other.client_list() if each.get("flags", "").count("B")])

    before = clients()
    cache = TieredCache(server.url)
    cache["a"] = 1
    assert clients() == before + 1
    seen = weakref.ref(cache)
    del cache
    gc.collect()
    wait_for(lambda: seen() is None)
    wait_for(lambda: not readers())
    wait_for(lambda: clients() == before)


def test_it_says_what_it_holds(server):
    with cache_at(server) as cache:
        cache["a"] = "x" * 1000
        assert cache.nbytes > 1000
        assert cache.trim(1) > 1000 and cache.nbytes == 0
        assert cache["a"] == "x" * 1000
        cache.clear_local()
        assert cache.peek("a") is None and "connected" in repr(cache)


@pytest.mark.slow
def test_a_program_that_does_not_close_it_ends(server):
    script = f"""
from synthex_fast.tiered import TieredCache
cache = TieredCache("{server.url}")
cache["a"] = 1
print(cache["a"])
"""
    assert run(script, timeout=30) == "1\n"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
def test_greenlets(server):
    script = f"""
import signal
signal.alarm(40)
from gevent import monkey; monkey.patch_all()
import gevent
from synthex_fast.tiered import TieredCache
with TieredCache("{server.url}") as cache, TieredCache("{server.url}") as second:
    def use(n):
        cache[str(n)] = n
        assert second.get(str(n)) == n
        cache[str(n)] = n + 1
        second.ping()
        assert second.get(str(n)) == n + 1
    gevent.joinall([gevent.spawn(use, n) for n in range(50)], raise_error=True)
    print(cache.stats["writes"])
"""
    assert run(script, timeout=60) == "100\n"


def test_nothing_leaks(server, leaks_nothing):
    with cache_at(server, 10) as cache:

        def scenario():
            for n in range(30):
                cache[str(n)] = n
                cache.get(str(n))
                cache.get("missing")
            cache.delete("1")

        leaks_nothing(scenario)


# --- asyncio ---


def test_asyncio(server):
    async def main():
        client = redis.asyncio.Redis(port=server.port, decode_responses=True)
        async with AsyncTieredCache(server.url, 100) as cache, AsyncTieredCache(client) as second:
            assert await cache.get("a") is None and await cache.get("a", 5) == 5
            await cache.set("a", {"n": 1})
            assert await cache.get("a") == cache.peek("a") == {"n": 1} == await second.get("a")
            await second.set("a", 2)
            await cache.ping()
            assert cache.peek("a") is None and await cache.get("a") == 2
            assert await cache.delete("a") and not await cache.delete("a")

            async def make():
                return 7

            assert await cache.get_or_set("b", make) == 7 == await second.get_or_set("b", make)
            await client.flushall()
            await cache.ping()
            assert cache.peek("b") is None and cache.stats["flushes"] == 1
            for bad in (1, None):
                with pytest.raises(ArgumentTypeError, match=r"^key must be"):
                    await cache.get(bad)
            with pytest.raises(ArgumentTypeError, match=r"^server must be"):
                AsyncTieredCache(redis.Redis(port=server.port))
            found = await asyncio.gather(*(cache.get("a") for _ in range(10)))
            assert found == [None] * 10
        await client.aclose()
        with pytest.raises(SynthexFastError, match="closed"):
            await cache.get("a")
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "synthex-fast-tiered"]

    asyncio.run(main())


def test_asyncio_a_server_that_dies_and_returns(mortal):
    async def until(condition):
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.001)

    async def main():
        async with AsyncTieredCache(mortal.url, stale_if_error=30) as cache:
            await cache.set("a", 1)
            mortal.kill()
            await until(lambda: not cache.connected)
            assert await cache.get("a") == 1
            assert cache.stats["stale"] and cache.stats["stale_hits"] == 1
            for call in (lambda: cache.get("b"), lambda: cache.set("a", 2), cache.ping):
                with pytest.raises(ServerUnavailableError):
                    await call()
            mortal.start()
            await until(lambda: cache.connected)
            assert cache.peek("a") is None and await cache.get("a") is None
            await cache.set("a", 3)
            assert await cache.get("a") == 3 and cache.stats["connections"] == 2

    asyncio.run(main())


def test_asyncio_time_outs_and_cancellation(mortal):
    async def main():
        async with AsyncTieredCache(mortal.url, timeout=0.5, heartbeat=0.1) as cache:
            await cache.set("a", 1)
            mortal.pause()
            first = asyncio.ensure_future(cache.get("b"))
            second = asyncio.ensure_future(cache.get("b"))
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            with pytest.raises(ServerUnavailableError):
                await second
            async with asyncio.timeout(30):
                while cache.connected:
                    await asyncio.sleep(0.001)
                mortal.resume()
                while not cache.connected:
                    await asyncio.sleep(0.001)
            # The cancelled one's reply has not been taken for another's.
            assert await cache.get("a") == 1

    asyncio.run(main())


def test_asyncio_one_loop_after_another(server):
    cache = AsyncTieredCache(server.url)

    async def use(n):
        await cache.set("a", n)
        return await cache.get("a")

    assert [asyncio.run(use(n)) for n in range(3)] == [0, 1, 2]
    assert cache.stats["connections"] == 3

    async def two():
        await cache.get("a")
        return await asyncio.to_thread(asyncio.run, use(5))

    with pytest.raises(SynthexFastError, match="another event loop"):
        asyncio.run(two())


def test_asyncio_a_cache_that_is_dropped_ends_its_task(server):
    async def main():
        cache = AsyncTieredCache(server.url)
        await cache.set("a", 1)
        seen = weakref.ref(cache)
        del cache
        async with asyncio.timeout(30):
            while len(asyncio.all_tasks()) > 1:
                gc.collect()
                await asyncio.sleep(0.001)
        assert seen() is None

    asyncio.run(main())


@needs_fork
@quiet_fork
def test_asyncio_a_forked_child_connects_anew(server):
    async def main():
        async with AsyncTieredCache(server.url) as cache:
            await cache.set("a", 1)

            def child():
                assert cache.peek("a") is None

                async def use():
                    assert await cache.get("a") == 1
                    await cache.set("a", 2)

                # The loop of the parent counts as running in this thread.
                asyncio._set_running_loop(None)
                asyncio.run(use())

            in_child(child)
            await cache.ping()
            assert await cache.get("a") == 2

    asyncio.run(main())


def test_the_extra_is_named_where_it_is_missing():
    script = textwrap.dedent(
        """
        import sys
        sys.modules["redis"] = None
        from synthex_fast.tiered import TieredCache
        try:
            TieredCache("redis://localhost")
        except Exception as error:
            print(error)
        """
    )
    assert run(script) == "a tiered cache needs the extra: pip install 'synthex-fast[redis]'\n"
