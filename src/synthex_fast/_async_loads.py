"""The coroutine behind `TTLDict.aget_or_set`: single flight in each event loop.

A load runs in a task of its own, so that cancelling one of those who wait for it doesn't cancel it. Each of them waits
for a future of its own, which the task's end resolves. If the last one is cancelled, nobody wants the value any more,
and the task is cancelled as well.

A load is known to all that runs on its behalf by a context variable, which tasks that it starts inherit: so one that
waits for itself is found out through `asyncio.gather` as well. Whether it waits for such a task nobody can tell until
it does, so until the load has ended a task that it started counts as a part of it.

What a loop loads is kept by the loop, not by the dict, and ends with it: a load refers to its task, and that to its
loop, so whoever kept it would keep a closed loop too.

Everything here happens in the loop's thread. What other threads do to the dict meanwhile is the dict's business: see
``_ttl_loading.pxi``.
"""

from __future__ import annotations

from asyncio import CancelledError, current_task, get_running_loop
from contextvars import ContextVar
from time import perf_counter
from weakref import WeakKeyDictionary

from synthex_fast.errors import LoadCycleError, type_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from synthex_fast._loads import Aged
    from synthex_fast._ttl import TTLDict

__all__ = ["Flight", "current_load", "flights_in", "flights_of", "fly", "load", "take_off", "under_way"]

_MISSING: Any = object()
_KEPT_AS = "_synthex_fast_flights"
# What such loops load as have no attributes.
_kept_apart: dict[AbstractEventLoop, WeakKeyDictionary[Any, dict[Any, Flight]]] = {}


class Mark:
    """What a context has of the load that it belongs to, and still has after that has ended."""

    __slots__ = ("flight",)

    def __init__(self, flight: Flight) -> None:
        self.flight: Flight | None = flight


_mark: ContextVar[Mark | None] = ContextVar("synthex_fast_load", default=None)


def flights_in(loop: AbstractEventLoop, owner: Any) -> dict[Any, Flight]:
    """What the loop is loading for a dict, which `owner` stands for, by key."""
    kept: Any
    try:
        kept = loop.__dict__.get(_KEPT_AS)
        if kept is None:
            kept = loop.__dict__[_KEPT_AS] = WeakKeyDictionary()
    except AttributeError:
        kept = _kept_apart.get(loop)
        if kept is None:
            # A loop that was closed while it loaded something has left that behind.
            for other in list(_kept_apart):
                if other.is_closed():
                    _kept_apart.pop(other, None)
            kept = _kept_apart[loop] = WeakKeyDictionary()
    flights: dict[Any, Flight] = kept.setdefault(owner, {})
    return flights


def flights_of(loop: AbstractEventLoop, owner: object) -> list[Flight]:
    """The loads that the loop has for a cached function."""
    kept: Any = getattr(loop, _KEPT_AS, None) or _kept_apart.get(loop) or {}
    return [flight for flights in list(kept.values()) for flight in flights.values() if flight.owner is owner]


def current_load() -> Callable[[], bool] | None:
    """What tells whether the load that this belongs to has been forgotten."""
    mark = _mark.get()
    return None if mark is None or mark.flight is None else mark.flight.forgotten


class Flight:
    """A load under way."""

    __slots__ = (
        "_key",
        "_others",
        "_waiting_for",
        "abandoned",
        "forgotten",
        "owner",
        "task",
        "waiters",
        "wanted",
    )

    def __init__(self, key: object, others: dict[Any, Flight], owner: object = None) -> None:
        self._key = key
        # The cached function that it is for, if any.
        self.owner = owner
        # Those of the same dict and loop, this one among them.
        self._others = others
        self.task: Task[Any] | None = None
        self.waiters: list[Future[Any]] = []
        # What its own task, and those that it started, wait for.
        self._waiting_for: list[Flight] = []
        # Whether it goes on when nobody waits for it any more.
        self.wanted = False
        # Whether those who wait for it must not begin another if it is cancelled.
        self.abandoned = False
        # Set by the load once it has begun: whether the dict has forgotten it.
        self.forgotten: Callable[[], bool] | None = None

    def start(self, loop: AbstractEventLoop, running: Coroutine[Any, Any, Any]) -> None:
        self._others[self._key] = self
        try:
            # It may end at once: a loop's task factory may make eager ones.
            self.task = loop.create_task(running)
            self.task.add_done_callback(self._end)
        except BaseException:
            running.close()
            self.leave()
            raise

    def then(self, call: Callable[[Task[Any]], object]) -> None:
        """Call it with the load's task once that has ended."""
        if self.task is not None:
            self.task.add_done_callback(call)

    def leave(self) -> None:
        """Be no load under way any more."""
        if self._others.get(self._key) is self:
            del self._others[self._key]

    def is_current(self) -> bool:
        """Whether a call made now may wait for it: not if its key was deleted after it began."""
        return self.forgotten is None or not self.forgotten()

    def _end(self, task: Task[Any]) -> None:
        self.leave()
        waiters, self.waiters = self.waiters, []
        if task.cancelled():
            # By somebody else, or by its own function. Those who wait were not cancelled: they try again.
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result((False, None))
            return
        error = task.exception()
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result((True, task.result()))
            else:
                waiter.set_exception(error)

    def _depends_on(self, other: Flight) -> bool:
        """Whether it is that load, or can't end before that one has."""
        seen = {self}
        left = [self]
        while left:
            at = left.pop()
            if at is other:
                return True
            for each in at._waiting_for:
                if each not in seen:
                    seen.add(each)
                    left.append(each)
        return False

    async def wait(self, loop: AbstractEventLoop) -> tuple[bool, Any]:
        """Whether the load came to its end, and the value."""
        mark = _mark.get()
        mine = None if mark is None else mark.flight
        if mine is not None and self._depends_on(mine):
            raise LoadCycleError(
                f"the value of {self._key!r:.80} is being made by a coroutine that waits for this call: neither it nor"
                " a task that it starts must await its own key, nor two each other's"
            )
        waiter: Future[Any] = loop.create_future()
        self.waiters.append(waiter)
        if mine is not None:
            mine._waiting_for.append(self)
        try:
            return await waiter  # type: ignore[no-any-return]
        except CancelledError:
            if self.waiters == [waiter] and self.task is not None and not self.wanted:
                self.leave()
                self.task.cancel()
            raise
        finally:
            if mine is not None:
                mine._waiting_for.remove(self)
            if waiter in self.waiters:
                self.waiters.remove(waiter)


async def load(
    cache: TTLDict[Any, Any],
    key: Any,
    function: Callable[[], Awaitable[Any]],
    life: float,
    owner: object = None,
) -> Any:
    """The key's value; if it is missing, what ``await function()`` returns, stored for ``life`` seconds."""
    value = cache._lookup(key, _MISSING)
    if value is not _MISSING:
        return value
    return await fly(cache, key, function, life, owner=owner)


def under_way(cache: TTLDict[Any, Any], loop: AbstractEventLoop, key: Any) -> Flight | None:
    """The load of the key that a call made now may wait for."""
    flight = cache._flights(loop).get(key)
    return None if flight is None or not flight.is_current() else flight


def take_off(
    cache: TTLDict[Any, Any],
    loop: AbstractEventLoop,
    key: Any,
    function: Callable[[], Awaitable[Any]],
    life: float,
    replaces: Aged | None = None,
    unsaved: bool = False,
    owner: object = None,
) -> Flight:
    """Begin a load. It runs to its end even if nobody waits for it, unless somebody has and was cancelled."""
    flight = Flight(key, cache._flights(loop), owner)
    flight.start(loop, _run(flight, cache, key, function, life, replaces, unsaved))
    return flight


async def fly(
    cache: TTLDict[Any, Any],
    key: Any,
    function: Callable[[], Awaitable[Any]],
    life: float,
    replaces: Aged | None = None,
    unsaved: bool = False,
    owner: object = None,
) -> Any:
    """The result of the load that is under way for the key, or of a new one."""
    loop = get_running_loop()
    while True:
        flight = under_way(cache, loop, key)
        mine = flight is None
        if flight is None:
            flight = take_off(cache, loop, key, function, life, replaces, unsaved, owner)
        else:
            cache._count_wait()
        ended, value = await flight.wait(loop)
        if ended:
            return value
        if mine or flight.abandoned:
            # Its function has let itself be cancelled, or somebody has cancelled its task.
            raise CancelledError


async def _run(
    flight: Flight,
    cache: TTLDict[Any, Any],
    key: Any,
    function: Callable[[], Awaitable[Any]],
    life: float,
    replaces: Aged | None,
    unsaved: bool,
) -> Any:
    if current_task() is None:
        raise RuntimeError("a load must run in a task")
    load = cache._begin_load(key, replaces, unsaved)
    flight.forgotten = load.is_forgotten
    failed = True
    start = perf_counter()
    # In the task's own context. There it stays, and so does it in those of the tasks that the function starts.
    mark = Mark(flight)
    _mark.set(mark)
    try:
        waiting = function()
        if not hasattr(type(waiting), "__await__"):
            raise type_error(
                "coroutine_function()", waiting, "something to await (get_or_set takes other functions)"
            )
        value = await waiting
        failed = False
        return cache._store_load(load, value, life)
    finally:
        # Not only when the task's end is announced: who comes until then would take it for a load under way.
        flight.leave()
        mark.flight = None
        cache._finish_load(load, perf_counter() - start, failed)
