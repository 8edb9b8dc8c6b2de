"""Who may look, what a path means, and the answers that ASGI and WSGI share.

The page is for one's own eyes: by default only a client on the same machine gets it. Three things are checked, none of
which a header can talk around:

- the address of the client, as the server saw it;
- the ``Host`` that the browser asked for: a page of another site whose name is made to point here (DNS rebinding) gives
  itself away by it;
- that no proxy stands between, unless `allow` names its address: behind one on this machine, every client looks local.
"""

from __future__ import annotations

import ipaddress
import secrets
from urllib.parse import parse_qs

from synthex_fast._arguments import positive_seconds, whole_number
from synthex_fast.errors import type_error, value_error
from synthex_fast.exporters.page import _document
from synthex_fast.exporters.page._feed import Feed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeAlias

    from synthex_fast.exporters._observed import Observed

    Networks: TypeAlias = list[ipaddress.IPv4Network | ipaddress.IPv6Network]

__all__ = ["Answer", "Page", "Server"]

_LOCAL_NAMES = ("localhost", "ip6-localhost", "localhost.localdomain")
# What proxies add.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
# A stream ends after this, and the browser comes back at once: a server that waits for its connections before it stops
# waits no longer. Where the server says that it is about to stop, a stream may last.
STREAM_SECONDS = 10.0
LONG_STREAM_SECONDS = 600.0
# How often the page asks where it gets no stream.
POLL_SECONDS = 2.0

_HEADERS = (
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
)
_PAGE_HEADERS = (
    ("content-type", "text/html; charset=utf-8"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
)


class Answer:
    """A response, or with ``stream`` the head of one."""

    __slots__ = ("body", "headers", "status", "stream")

    def __init__(
        self, status: int, headers: Iterable[tuple[str, str]], body: bytes = b"", stream: bool = False
    ) -> None:
        self.status = status
        self.headers = [*_HEADERS, *headers]
        self.body = body
        self.stream = stream
        if not stream:
            self.headers.append(("content-length", str(len(body))))


def _text(status: int, text: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status, [("content-type", "text/plain; charset=utf-8"), *headers], text.encode() + b"\n")


class Server:
    """Whether the server is about to stop, from the object whose method handles SIGTERM, where that is known.

    Neither ASGI nor WSGI tells an application that its server stops, and uvicorn waits for every response to end. The
    handler is only looked at.
    """

    __slots__ = ("_owner",)

    def __init__(self) -> None:
        import signal

        try:
            self._owner: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        except (AttributeError, ValueError):
            self._owner = None

    @property
    def known(self) -> bool:
        return hasattr(self._owner, "should_exit") or hasattr(self._owner, "alive")

    @property
    def stopping(self) -> bool:
        # uvicorn's Server, gunicorn's workers.
        owner = self._owner
        return getattr(owner, "should_exit", False) is True or getattr(owner, "alive", True) is False


class Page:
    """What both apps are made of: the feed, the checks and the routes."""

    def __init__(
        self,
        observed: Observed | None,
        allow: str | Iterable[str] | None,
        hosts: str | Iterable[str],
        interval: float,
        streams: int,
    ) -> None:
        self.feed = Feed(observed, _interval(interval))
        self._networks = None if allow is None else _networks(allow)
        self._hosts = _names(hosts)
        self.streams = whole_number("streams", streams, 0, 1000)

    def refusal(
        self, client: str | None, hosts: list[str], header: Callable[[str], str | None]
    ) -> str | None:
        """Why this request is not answered, or None if it is."""
        address = _address(client)
        if address is None or not (address.is_loopback or self._is_named(address)):
            return "this page answers clients on the same machine only; allow= names others"
        if not self._is_named(address) and any(header(name) is not None for name in _FORWARDED):
            return (
                "this page answers no proxy, behind which any client looks local; allow= may name its address"
            )
        if len(hosts) != 1 or not self._is_expected(hosts[0]):
            return "this page is not served under that host name; hosts= names others"
        return None

    def _is_named(self, address: Any) -> bool:
        """Whether ``allow`` names it. Being on this machine is another matter: a proxy may be, too."""
        return any(address in network for network in self._networks or ())

    def _is_expected(self, host: str) -> bool:
        name = _host_name(host)
        if name in _LOCAL_NAMES or name.endswith(".localhost") or name in self._hosts:
            return True
        address = _address(name)
        # An address in place of a name can't have been rebound.
        return address is not None and (address.is_loopback or self._networks is not None)

    def answer(self, method: str, path: str, query: str, event_id: str | None, stream: bool) -> Answer:
        """The answer to a request that may be answered; ``path`` is the part below the mount.

        ``stream`` is whether there is room for one more stream. A ``query`` of ``of=ID`` asks for the frame of that
        process: no server lets a client name the worker that is to answer, so another one says at little cost that it
        is another.
        """
        if path not in ("", "/", "/events", "/frame", "/history"):
            return _text(404, "not found")
        if method not in ("GET", "HEAD"):
            return _text(405, "GET and HEAD only", ("allow", "GET, HEAD"))
        if path == "/frame":
            of = parse_qs(query).get("of", [""])[0]
            return Answer(200, [("content-type", "application/json")], self.feed.frame_json_of(of).encode())
        if path == "/history":
            history = self.feed.history_json(self.feed.since(event_id))
            return Answer(200, [("content-type", "application/json")], history.encode())
        if path == "/events":
            headers = [("content-type", "text/event-stream"), ("x-accel-buffering", "no")]
            if not stream or method == "HEAD":
                return Answer(
                    200, headers, b"event: poll\ndata: %g\n\n" % max(POLL_SECONDS, self.feed.interval)
                )
            return Answer(200, headers, stream=True)
        nonce = secrets.token_urlsafe(18)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = [*_PAGE_HEADERS, ("content-security-policy", policy)]
        return Answer(200, headers, _document.document(nonce).encode())

    def refused(self, reason: str) -> Answer:
        return _text(403, reason)


def below_mount(path: str, mount: str) -> str:
    """The part of a path below the mount, whether or not the server has taken the mount off."""
    mount = mount.rstrip("/")
    if mount and (path == mount or path.startswith(mount + "/")):
        path = path[len(mount) :]
    return path


def _interval(interval: float) -> float:
    seconds = positive_seconds("interval", interval)
    if not 0.1 <= seconds <= 60:
        raise value_error("interval", interval, "0.1 to 60 seconds")
    return seconds


def _texts(name: str, value: object, allowed: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    try:
        texts = list(texts)  # type: ignore[call-overload]
    except TypeError:
        raise type_error(name, value, allowed) from None
    for text in texts:
        if not isinstance(text, str):
            raise type_error(name, text, allowed)
    return texts


def _networks(allow: object) -> Networks:
    allowed = 'addresses or networks such as "10.0.0.0/8", or None for this machine only'
    found: Networks = []
    for text in _texts("allow", allow, allowed):
        try:
            found.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError:
            raise value_error("allow", text, allowed) from None
    return found


def _names(hosts: object) -> frozenset[str]:
    allowed = 'host names such as "metrics.internal", without a port'
    names = _texts("hosts", hosts, allowed)
    for name in names:
        if not name or "/" in name or ":" in name or name != name.strip():
            raise value_error("hosts", name, allowed)
    return frozenset(name.lower().rstrip(".") for name in names)


def _address(text: str | None) -> Any:
    """The IP address in a text, or None. An IPv4 address inside an IPv6 one is the former."""
    try:
        address = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _host_name(host: str) -> str:
    """A ``Host`` without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")
