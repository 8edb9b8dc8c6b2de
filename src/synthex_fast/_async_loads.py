"""The coroutine behind `TTLDict.aget_or_set`: single flight in each event loop.

A load runs in a task of its own, so that cancelling one of those who wait for it doesn't cancel it. Each of them waits
for a future of its own, which the task's end resolves. If the last one is cancelled, nobody wants the value any more,
and the task is cancelled as well.

Everything here happens in the loop's thread. What other threads do to the dict meanwhile is the dict's business: see
``_ttl_loading.pxi``.
"""

from __future__ import annotations

from asyncio import CancelledError, current_task, get_running_loop
from time import perf_counter

from synthex_fast.errors import LoadCycleError, type_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from synthex_fast._loads import Aged
    from synthex_fast._ttl import TTLDict

__all__ = ["Flight", "fly", "load", "take_off", "under_way"]

_MISSING: Any = object()
# The loads that tasks are running, so that one which waits for itself is found out. A task is of one loop.
_flying: dict[Task[Any], Flight] = {}


class Flight:
    """A load under way."""

    __slots__ = ("_key", "_others", "_task", "_waiting_for", "forgotten", "waiters", "wanted")

    def __init__(self, key: object, others: dict[Any, Flight]) -> None:
        self._key = key
        # Those of the same dict and loop, this one among them.
        self._others = others
        self._task: Task[Any] | None = None
        self.waiters: list[Future[Any]] = []
        # What its own task waits for.
        self._waiting_for: Flight | None = None
        # Whether it goes on when nobody waits for it any more.
        self.wanted = False
        # Set by the load once it has begun: whether the dict has forgotten it.
        self.forgotten: Callable[[], bool] | None = None

    def start(self, loop: AbstractEventLoop, running: Coroutine[Any, Any, Any]) -> None:
        self._others[self._key] = self
        try:
            # It may end at once: a loop's task factory may make eager ones.
            self._task = loop.create_task(running)
            self._task.add_done_callback(self._end)
        except BaseException:
            running.close()
            self.leave()
            raise

    def then(self, call: Callable[[Task[Any]], object]) -> None:
        """Call it with the load's task once that has ended."""
        if self._task is not None:
            self._task.add_done_callback(call)

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

    async def wait(self, loop: AbstractEventLoop) -> tuple[bool, Any]:
        """Whether the load came to its end, and the value."""
        me = current_task()
        mine = None if me is None else _flying.get(me)
        at: Flight | None = self
        while mine is not None and at is not None:
            if at is mine:
                raise LoadCycleError(
                    f"the value of {self._key!r:.80} is being made by a coroutine that waits for this call: it must not"
                    " await its own key, nor two each other's"
                )
            at = at._waiting_for
        waiter: Future[Any] = loop.create_future()
        self.waiters.append(waiter)
        if mine is not None:
            mine._waiting_for = self
        try:
            return await waiter  # type: ignore[no-any-return]
        except CancelledError:
            if self.waiters == [waiter] and self._task is not None and not self.wanted:
                self.leave()
                self._task.cancel()
            raise
        finally:
            if mine is not None:
                mine._waiting_for = None
            if waiter in self.waiters:
                self.waiters.remove(waiter)


async def load(
    cache: TTLDict[Any, Any], key: Any, function: Callable[[], Awaitable[Any]], life: float
) -> Any:
    """The key's value; if it is missing, what ``await function()`` returns, stored for ``life`` seconds."""
    value = cache._lookup(key, _MISSING)
    if value is not _MISSING:
        return value
    return await fly(cache, key, function, life)


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
) -> Flight:
    """Begin a load. It runs to its end even if nobody waits for it, unless somebody has and was cancelled."""
    flight = Flight(key, cache._flights(loop))
    flight.start(loop, _run(flight, cache, key, function, life, replaces, unsaved))
    return flight


async def fly(
    cache: TTLDict[Any, Any],
    key: Any,
    function: Callable[[], Awaitable[Any]],
    life: float,
    replaces: Aged | None = None,
    unsaved: bool = False,
) -> Any:
    """The result of the load that is under way for the key, or of a new one."""
    loop = get_running_loop()
    while True:
        flight = under_way(cache, loop, key)
        mine = flight is None
        if flight is None:
            flight = take_off(cache, loop, key, function, life, replaces, unsaved)
        else:
            cache._count_wait()
        ended, value = await flight.wait(loop)
        if ended:
            return value
        if mine:
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
    me = current_task()
    if me is None:
        raise RuntimeError("a load must run in a task")
    load = cache._begin_load(key, replaces, unsaved)
    flight.forgotten = load.is_forgotten
    failed = True
    start = perf_counter()
    _flying[me] = flight
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
        del _flying[me]
        cache._finish_load(load, perf_counter() - start, failed)
