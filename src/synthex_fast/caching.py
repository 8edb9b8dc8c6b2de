"""Decorators that keep the results of functions: `cached` and `cachedmethod`.

What a call does, hit or miss, is in ``_cached.pyx``. This module checks the options and has what needs Python: the
coroutines of cached coroutine functions, and the threads that make values anew in the background.
"""

from __future__ import annotations

import inspect
import math
from functools import update_wrapper
from typing import NamedTuple, overload

from synthex_fast import _cached
from synthex_fast._arguments import want_bool, want_callable, whole_number
from synthex_fast._cached import Cached
from synthex_fast._ttl import TTLDict
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError, type_error, value_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
    from contextlib import AbstractContextManager
    from datetime import timedelta
    from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

    from synthex_fast._async_loads import Flight
    from synthex_fast._loads import Aged

__all__ = ["CacheInfo", "cached", "cachedmethod"]

if TYPE_CHECKING:
    _P = ParamSpec("_P")
    _R = TypeVar("_R")
    _Life: TypeAlias = float | timedelta
    _Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]

    class _Decorator(Protocol):
        def __call__(self, function: Callable[_P, _R], /) -> Cached[_P, _R]: ...


_DEFAULT_SIZE = 128


class _NotGiven:
    def __repr__(self) -> str:
        return "<not given>"


_NOT_GIVEN: Any = _NotGiven()


class _Nothing(dict):  # type: ignore[type-arg]
    """A cache that keeps nothing."""

    maxsize = 0

    def __setitem__(self, key: object, value: object) -> None:
        pass


class CacheInfo(NamedTuple):
    """What ``cache_info()`` returns; the fields are those of `functools.lru_cache`'s."""

    hits: int
    misses: int
    maxsize: int | None
    currsize: int


@overload
def cached(
    function: int | MutableMapping[Any, Any] | None = ...,
    /,
    *,
    max_size: int | None = ...,
    ttl: _Life | Callable[[Any, Any], _Life | None] | None = None,
    key: Callable[..., Any] | None = None,
    cache: MutableMapping[Any, Any] | None = None,
    typed: bool = False,
    lock: AbstractContextManager[Any] | None = None,
    refresh_after: _Life | None = None,
    stale_if_error: _Life | None = None,
    negative_ttl: _Life | None = None,
    negative_errors: _Errors = (),
    jitter: _Life | None = None,
    maxsize: int | None = ...,
    condition: AbstractContextManager[Any] | None = None,
    info: bool = True,
) -> _Decorator: ...
@overload
def cached(function: Callable[_P, _R], /) -> Cached[_P, _R]: ...
def cached(
    function: Any = _NOT_GIVEN,
    /,
    *,
    max_size: int | None = _NOT_GIVEN,
    ttl: Any = None,
    key: Callable[..., Any] | None = None,
    cache: Any = None,
    typed: bool = False,
    lock: Any = None,
    refresh_after: Any = None,
    stale_if_error: Any = None,
    negative_ttl: Any = None,
    negative_errors: Any = (),
    jitter: Any = None,
    maxsize: int | None = _NOT_GIVEN,
    condition: Any = None,
    info: bool = True,
) -> Any:
    """Keep a function's results by its arguments, which must be hashable. For coroutine functions and methods too.

    ``@cached`` alone keeps 128 results. The options:

    - ``max_size``: how many results to keep; None for no limit, 0 for none. ``cached(500)`` says the same.
    - ``ttl``: how long a result lives, in seconds or as a timedelta, or a function of key and result that says so.
    - ``cache``: a `TTLDict`, or another mutable mapping, to keep the results in. ``cached(mapping)`` says the same.
      ``lock`` is then taken around its use. Several functions may share one, if their keys differ.
    - ``key``: a function of the arguments that returns the key. Without it, calls are the same if their arguments are
      equal, in whatever order keywords are given. ``typed``: 1 and 1.0 are different.
    - ``refresh_after``: a result older than that is returned at once, and made anew in the background, in a thread or
      task. If that fails, ``sys.unraisablehook`` hears of it, and it is tried again after as long.
    - ``stale_if_error``: how long after its end a result still serves if the function fails.
    - ``negative_ttl``: how long None lives as a result, and how long an exception does that is of one of the
      ``negative_errors``. Other exceptions are never kept.
    - ``jitter``: up to so many seconds, drawn at random, are added to each result's life, so that not all end at once.

    Calls that miss together wait for one call of the function, as with `TTLDict.get_or_set` and `aget_or_set`. The
    function that is returned has ``cache_info()``, ``cache_clear()``, ``cache_parameters()``, ``cache_key(*args)``,
    ``invalidate(*args)``, which forgets one result, ``cache_contains(*args)``, ``cache`` and ``__wrapped__``.

    A method defined in a class body has a cache for each instance, which goes with the instance.

    ``maxsize``, ``condition`` and ``info`` are accepted for code that used `functools.lru_cache` or cachetools. A hit
    costs O(1) and a hash of the key. Errors name the option.

    >>> @cached(max_size=1000, ttl=60)
    ... def square(number):
    ...     return number * number
    >>> square(3), square(3), square.cache_info()
    (9, 9, CacheInfo(hits=1, misses=1, maxsize=1000, currsize=1))
    >>> square.invalidate(3), square.invalidate(3)
    (True, False)
    """
    options = _options(
        max_size=max_size, ttl=ttl, key=key, cache=cache, typed=typed, lock=lock, refresh_after=refresh_after,
        stale_if_error=stale_if_error, negative_ttl=negative_ttl, negative_errors=negative_errors, jitter=jitter,
        maxsize=maxsize, condition=condition,
    )  # fmt: skip
    want_bool("info", info)
    if function is _NOT_GIVEN:
        return _decorator(options, False)
    if _is_mapping(function):
        if cache is not None:
            raise ArgumentTypeError("cache must be given once")
        return _decorator({**options, "cache": function}, False)
    if function is None or (hasattr(type(function), "__index__") and not callable(function)):
        if max_size is not _NOT_GIVEN or maxsize is not _NOT_GIVEN:
            raise ArgumentTypeError("max_size must be given once")
        whole_number("max_size, in place of the function,", function, 0, optional=True, unit="results")
        return _decorator({**options, "max_size": function}, False)
    if callable(function) or isinstance(function, classmethod):
        return _decorator(options, False)(function)
    raise type_error("function", function, "a function, or a number of results or a mapping in its place")


@overload
def cachedmethod(
    function: None = ...,
    /,
    *,
    max_size: int | None = ...,
    ttl: _Life | Callable[[Any, Any], _Life | None] | None = None,
    key: Callable[..., Any] | None = None,
    cache: Callable[[Any], MutableMapping[Any, Any] | None] | None = None,
    typed: bool = False,
    lock: Callable[[Any], AbstractContextManager[Any]] | None = None,
    refresh_after: _Life | None = None,
    stale_if_error: _Life | None = None,
    negative_ttl: _Life | None = None,
    negative_errors: _Errors = (),
    jitter: _Life | None = None,
    condition: Callable[[Any], AbstractContextManager[Any]] | None = None,
    info: bool = True,
) -> _Decorator: ...
@overload
def cachedmethod(function: Callable[_P, _R], /) -> Cached[_P, _R]: ...
def cachedmethod(
    function: Any = _NOT_GIVEN,
    /,
    *,
    max_size: int | None = _NOT_GIVEN,
    ttl: Any = None,
    key: Callable[..., Any] | None = None,
    cache: Any = None,
    typed: bool = False,
    lock: Any = None,
    refresh_after: Any = None,
    stale_if_error: Any = None,
    negative_ttl: Any = None,
    negative_errors: Any = (),
    jitter: Any = None,
    condition: Any = None,
    info: bool = True,
) -> Any:
    """`cached` for methods, wherever they are defined: each instance has a cache of its own, which goes with it.

    The instance needs a ``__dict__``, or a ``__weakref__`` slot, and need not be hashable. ``cache`` may be a function
    of the instance that returns where its results are, such as ``cachedmethod(lambda self: self.results)``; None means
    that nothing is kept. ``lock`` is a function of the instance then. A ``key`` function gets the instance too.

    ``instance.method.invalidate(*args)``, ``cache_clear()`` and ``cache_info()`` are the instance's;
    ``Class.method.cache_clear()`` is for all instances.

    >>> class Shop:
    ...     @cachedmethod(max_size=100)
    ...     def price(self, article):
    ...         return len(article)
    >>> shop = Shop()
    >>> shop.price("tea"), shop.price("tea"), shop.price.cache_info().hits
    (3, 3, 1)
    """
    options = _options(
        max_size=max_size, ttl=ttl, key=key, cache=cache, typed=typed, lock=lock, refresh_after=refresh_after,
        stale_if_error=stale_if_error, negative_ttl=negative_ttl, negative_errors=negative_errors, jitter=jitter,
        maxsize=_NOT_GIVEN, condition=condition,
    )  # fmt: skip
    want_bool("info", info)
    if function is _NOT_GIVEN:
        return _decorator(options, True)
    if _takes_instance_only(function):
        if cache is not None:
            raise ArgumentTypeError("cache must be given once")
        return _decorator({**options, "cache": function}, True)
    return _decorator(options, True)(function)


def _options(**given: Any) -> dict[str, Any]:
    return given


def _takes_instance_only(function: Any) -> bool:
    """Whether ``cachedmethod(function)`` is meant as cachetools' is: a lambda, or a getter, that returns a cache."""
    return getattr(function, "__name__", None) == "<lambda>" or (
        callable(function) and not inspect.isfunction(function)
    )


def _is_mapping(value: Any) -> bool:
    return not inspect.isclass(value) and hasattr(value, "keys") and hasattr(value, "__setitem__")


def _seconds(name: str, value: Any) -> float:
    # A dict checks it in the words of all other times.
    return _cached.life_from(name, value)


def _decorator(options: dict[str, Any], is_method: bool) -> Callable[[Any], Cached[Any, Any]]:
    """Check the options, once for all functions that it is applied to."""
    max_size, cache, key, ttl = (options[name] for name in ("max_size", "cache", "key", "ttl"))
    size_name = "max_size"
    if options["maxsize"] is not _NOT_GIVEN:
        if max_size is not _NOT_GIVEN:
            raise ArgumentTypeError("max_size must be given once, not as maxsize too")
        max_size, size_name = options["maxsize"], "maxsize"
    lock = options["lock"] if options["condition"] is None else options["condition"]
    for name in ("lock", "condition"):
        if options[name] is not None and not (
            callable(options[name]) if is_method else hasattr(type(options[name]), "__enter__")
        ):
            raise type_error(
                name, options[name], "a function of the instance" if is_method else "a context manager"
            )
    want_callable("key", key, optional=True)
    want_bool("typed", options["typed"])
    if max_size is not _NOT_GIVEN:
        if cache is not None:
            raise ArgumentTypeError("max_size must not be given with a cache, which has a size of its own")
        if whole_number(size_name, max_size, 0, optional=True, unit="results") == 0:
            # As `functools.lru_cache` takes it. The other options are checked, and have nothing to act on.
            _decorator({**options, "max_size": 1, "maxsize": _NOT_GIVEN}, is_method)
            nothing = dict.fromkeys(("ttl", "refresh_after", "stale_if_error", "negative_ttl", "jitter"))
            kept = (lambda instance: None) if is_method else _Nothing()
            return _decorator(
                {
                    **options,
                    **nothing,
                    "negative_errors": (),
                    "max_size": _NOT_GIVEN,
                    "maxsize": _NOT_GIVEN,
                    "cache": kept,
                },
                is_method,
            )
    elif cache is None:
        max_size = _DEFAULT_SIZE
    given: dict[str, Any] = {}
    for name in ("refresh_after", "stale_if_error", "negative_ttl", "jitter"):
        if options[name] is not None:
            given[name] = _seconds(name, options[name])
            if given[name] == math.inf and name in ("jitter", "refresh_after"):
                raise value_error(name, options[name], "a finite number of seconds")
    errors = options["negative_errors"]
    if inspect.isclass(errors):
        errors = (errors,)
    if not isinstance(errors, tuple) or not all(
        inspect.isclass(each) and issubclass(each, Exception) for each in errors
    ):
        raise type_error("negative_errors", errors, "an exception class or a tuple of them")
    if errors:
        if "negative_ttl" not in given:
            raise ArgumentValueError("negative_errors needs a negative_ttl: how long they are kept")
        given["negative_errors"] = errors
    aged = bool(given)
    if callable(ttl):
        want_callable("ttl", ttl)
        if cache is not None:
            raise ArgumentTypeError("ttl must not be a function if a cache is given; give it to the TTLDict")
    elif ttl is not None:
        seconds = _seconds("ttl", ttl)
        if given.get("refresh_after", 0.0) >= seconds:
            raise value_error("refresh_after", options["refresh_after"], "less than ttl")
        if aged or cache is not None:
            given["life"] = seconds
    of_instance = cache is not None and not _is_mapping(cache)
    if of_instance and not (is_method and callable(cache)):
        raise type_error(
            "cache", cache, "a mutable mapping" + (" or a function of the instance" if is_method else "")
        )
    foreign = cache is not None and not isinstance(cache, TTLDict)
    if foreign and (aged or ttl is not None):
        raise ArgumentTypeError("a cache that is not a TTLDict takes none of ttl, refresh_after, stale_if_error, "
                                "negative_ttl and jitter")  # fmt: skip
    if is_method and cache is not None and not of_instance:
        raise type_error("cache", cache, "a function of the instance that returns its cache, or None")
    if callable(ttl) and aged:
        given["life_of"] = ttl
    own_ttl = None if aged else ttl

    def make() -> TTLDict[Any, Any]:
        return TTLDict(max_size, own_ttl)

    parameters: dict[str, Any] = {"maxsize": getattr(cache, "maxsize", None), "typed": options["typed"]}
    if isinstance(cache, TTLDict):
        parameters["maxsize"] = cache.max_size
    elif cache is None:
        parameters["maxsize"] = max_size
    for name in ("ttl", "refresh_after", "stale_if_error", "negative_ttl", "jitter"):
        if options[name] is not None:
            parameters[name] = options[name]

    def decorate(function: Any) -> Cached[Any, Any]:
        if isinstance(function, classmethod):
            raise type_error("function", function, "below @classmethod, which is to be the outermost")
        want_callable("function", function, may_await=True)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise type_error("function", function, "one whose result can be used more than once")
        is_async = inspect.iscoroutinefunction(function) or (
            not inspect.isroutine(function)
            and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
        )
        results = None
        if isinstance(cache, TTLDict):
            results = cache
        elif cache is None and not is_method:
            results = make()
        found: Cached[Any, Any] = Cached(
            function,
            cache=results,
            mapping=cache if foreign and not of_instance else None,
            mapping_of=cache if of_instance else None,
            lock=lock,
            make=None if cache is not None else make,
            key=key,
            typed=options["typed"],
            is_async=is_async,
            is_method=is_method,
            options={**given, "aged": aged, "parameters": parameters},
        )
        update_wrapper(found, function)
        if is_async:
            _mark_async(found)
        return found

    return decorate


def _mark_async(found: Any) -> None:
    """Have `inspect`, or before Python 3.12 `asyncio`, take it for a coroutine function."""
    if hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(found)
    else:
        from asyncio import coroutines

        found._is_coroutine = coroutines._is_coroutine  # type: ignore[attr-defined]


# ---- coroutines


async def _run(cached: Cached[Any, Any], cache: TTLDict[Any, Any], key: Any, call: Any) -> Any:
    """A call of a cached coroutine function."""
    from synthex_fast._async_loads import fly, load

    if not cached._is_aged:
        return await load(cache, key, call, cached._life_in(cache), cached)
    found, value, aged, refresh = cached._look_up(cache, key)
    if found:
        if refresh and aged is not None:
            _refresh(cached, cache, key, aged, call)
        return value
    try:
        made = await fly(cache, key, cached._aged_call(cache, key, call), math.inf, aged, owner=cached)
    except Exception as error:
        return cached._stale_value(aged, error)
    return cached._opened(made)


def _refresh(cached: Cached[Any, Any], cache: TTLDict[Any, Any], key: Any, aged: Aged, call: Any) -> None:
    from asyncio import get_running_loop

    from synthex_fast._async_loads import take_off, under_way

    loop: AbstractEventLoop = get_running_loop()
    if under_way(cache, loop, key) is not None:
        # Whatever that is for, it may bring a new value.
        cached._refresh_failed(cache, aged, None)
        return
    flight = take_off(cache, loop, key, cached._aged_call(cache, key, call), math.inf, aged, owner=cached)
    flight.wanted = True

    def ended(task: Task[Any]) -> None:
        if task.cancelled():
            cached._refresh_failed(cache, aged, None)
        elif (error := task.exception()) is not None:
            cached._refresh_failed(cache, aged, error)

    flight.then(ended)


def _run_flight(
    cached: Cached[Any, Any], flights: TTLDict[Any, Any], key: Any, function: Callable[[], Awaitable[Any]]
) -> Coroutine[Any, Any, Any]:
    from synthex_fast._async_loads import fly

    return fly(flights, key, function, math.inf, None, True, cached)


def _loads_of(cached: Cached[Any, Any]) -> list[Flight]:
    """Those that the running event loop has."""
    from asyncio import _get_running_loop

    from synthex_fast._async_loads import flights_of

    loop = _get_running_loop()
    return [] if loop is None else flights_of(loop, cached)


async def _close(cached: Cached[Any, Any], wait: bool) -> None:
    from asyncio import current_task
    from asyncio import wait as ended

    cached._close()
    tasks = []
    for flight in _loads_of(cached):
        task = flight.task
        # Not the one that this runs in, which would wait for itself.
        if task is not None and task is not current_task():
            if not wait:
                flight.abandoned = True
                task.cancel()
            tasks.append(task)
    if tasks:
        await ended(tasks)


async def _answered(value: Any) -> Any:
    return value


# ---- threads


def _in_background(refresh: Callable[..., object], *arguments: Any) -> None:
    """Call it in a thread; in a program that gevent has patched, in a greenlet."""
    import threading
    from contextvars import copy_context

    threading.Thread(
        target=copy_context().run, args=(refresh, *arguments), name="synthex-fast-refresh", daemon=True
    ).start()


_cached.provide(_run, _run_flight, _answered, _in_background, CacheInfo._make, _close, _loads_of)
