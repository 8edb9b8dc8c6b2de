"""`cached` and what belongs to it: key makers, postprocessors, and what takes place in Python."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import weakref
from typing import NamedTuple

from synthex_fast.caching import _mark_async
from synthex_fast.compat import _cachebox
from synthex_fast.compat._cachebox import EVENT_HIT, EVENT_MISS, BaseCacheImpl, CachedFunction, LRUCache
from synthex_fast.errors import ArgumentTypeError, type_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "EVENT_HIT",
    "EVENT_MISS",
    "CacheInfo",
    "cached",
    "clear_cached_cache",
    "get_cached_cache",
    "get_cached_cache_info",
    "get_cached_callback",
    "is_cached",
    "make_hash_key",
    "make_key",
    "make_typed_key",
    "postprocess_copy",
    "postprocess_copy_mutables",
    "postprocess_deepcopy",
    "postprocess_deepcopy_mutables",
]


class CacheInfo(NamedTuple):
    """How a decorated function has used its cache; ``memory`` is in bytes, without keys and values."""

    hits: int
    misses: int
    maxsize: int
    current_size: int
    length: int
    memory: int


# --- keys ---

_KEYWORDS = object()


def make_key(*args: Any, **kwargs: Any) -> Any:
    """A key of a call's arguments: a single int or str itself, else a tuple. Keywords count in the order given.

    >>> make_key(1), make_key(1, 2)
    (1, (1, 2))
    """
    if kwargs:
        return (*args, _KEYWORDS, *(part for item in kwargs.items() for part in item))
    if len(args) == 1 and type(args[0]) in (int, str):
        return args[0]
    return args


def make_hash_key(*args: Any, **kwargs: Any) -> int:
    """The hash of what `make_key` returns for several arguments: small, and wrong when two calls have the same.

    >>> make_hash_key(1, 2) == hash((1, 2))
    True
    """
    return hash(make_key(*args, **kwargs) if kwargs else args)


def make_typed_key(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """A key that tells apart arguments that are equal, but of different types.

    >>> make_typed_key(1) == make_typed_key(1.0)
    False
    """
    key = make_key(*args, **kwargs) if kwargs else args
    return (*key, *map(type, args), *map(type, kwargs.values()))


# --- what is returned ---

_MUTABLE = (dict, list, set)


def postprocess_copy_mutables(value: Any) -> Any:
    """A shallow copy of a dict, list or set; anything else as it is."""
    return copy.copy(value) if type(value) in _MUTABLE else value


def postprocess_copy(value: Any) -> Any:
    """A shallow copy."""
    return copy.copy(value)


def postprocess_deepcopy_mutables(value: Any) -> Any:
    """A deep copy of a dict, list or set; anything else as it is."""
    return copy.deepcopy(value) if type(value) in _MUTABLE else value


def postprocess_deepcopy(value: Any) -> Any:
    """A deep copy."""
    return copy.deepcopy(value)


# --- the decorator ---


def cached(
    cache: Any = None,
    key_maker: Callable[..., Any] = make_key,
    clear_reuse: bool = False,
    callback: Callable[[int, Any, Any], Any] | None = None,
    copy_level: int = 1,
    postprocess: Callable[[Any], Any] | None = postprocess_copy_mutables,
    lock: Any = True,
) -> Callable[[Any], Any]:
    """Keep a function's results in a cache, as ``cachebox.cached`` does.

    - ``cache``: one of the caches; None or a dict: an `LRUCache` without a limit, which begins with the dict's pairs;
      or a function of the first argument that returns a cache, such as ``lambda self: self.results``.
    - ``key_maker(*args, **kwargs)``, without the first argument in the last case, makes the keys.
    - ``callback(event, key, value)`` hears of each `EVENT_HIT` and `EVENT_MISS`; a coroutine function's may be one too.
    - ``postprocess(value)`` makes what is returned of what is kept; by default a copy of a dict, list or set.
    - ``lock``: True means that calls that miss together wait for one of them, None or False that each calls the
      function. Another class of locks, such as ``threading.RLock``, is used as it is, one for each key.
    - ``clear_reuse`` is given to the cache's ``clear``. ``copy_level`` does nothing.

    The function that is returned has ``cache``, ``cache_info()``, ``cache_clear()`` and ``callback``, the first three
    only if the cache is one. ``cachebox__ignore=True`` in a call leaves the cache out. A hit costs O(1).

    >>> @cached(LRUCache(100))
    ... def square(n):
    ...     return n * n
    >>> square(3), square(3), square.cache_info()[:5]
    (9, 9, (1, 1, 100, 1, 1))
    """
    if copy_level != 1:
        import warnings

        warnings.warn(
            "copy_level has no effect: use postprocess instead", category=DeprecationWarning, stacklevel=2
        )
    if cache is None:
        cache = LRUCache(0)
    elif type(cache) is dict:
        cache = LRUCache(0, cache)
    elif not isinstance(cache, BaseCacheImpl) and not callable(cache):
        raise type_error("cache", cache, "a cache, a dict, a function that returns one, or None")
    of_instance = not isinstance(cache, BaseCacheImpl)

    def decorate(function: Any) -> Any:
        is_async = inspect.iscoroutinefunction(function)
        if not is_async and inspect.iscoroutinefunction(callback):
            raise ArgumentTypeError("callback must not be a coroutine function, unless the function is one")
        found: Any = CachedFunction(
            function,
            cache=cache,
            of_instance=of_instance,
            is_async=is_async,
            key_maker=key_maker,
            callback=callback,
            postprocess=postprocess,
            clear_reuse=clear_reuse,
            lock=_lock_for(lock, is_async),
        )
        functools.update_wrapper(found, function)
        if is_async:
            _mark_async(found)
        return found

    return decorate


def _lock_for(lock: Any, is_async: bool) -> Any:
    """None for none, True for single flight, or a class of locks."""
    if lock is None or lock is False:
        return None
    if lock is True:
        return True
    if is_async:
        import asyncio

        if lock is asyncio.Lock:
            return True
        if not hasattr(lock, "__aenter__"):
            raise type_error(
                "lock", lock, "a class of asynchronous locks, True, False or None, for a coroutine function"
            )
        return lock
    if lock is threading.Lock:
        return True
    # A function until Python 3.13.
    if lock is not threading.RLock and not hasattr(lock, "__enter__"):
        raise type_error("lock", lock, "a class of locks, True, False or None")
    return lock


class _Turn:
    """The calls with one key that wait for each other, and their lock."""

    __slots__ = ("calls", "error", "lock")

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.calls = 0
        # What the function has raised, for those who wait as well.
        self.error: BaseException | None = None


_counting = threading.Lock()


def _enter(memo: Any, key: Any) -> _Turn:
    made = _Turn(memo.lock_type())
    with _counting:
        turn = memo.turns.setdefault(key, made)
        turn.calls += 1
    return turn  # type: ignore[no-any-return]


def _leave(memo: Any, key: Any, turn: _Turn, error: BaseException | None) -> None:
    with _counting:
        turn.calls -= 1
        if error is not None:
            turn.error = error
        # Who comes after an error begins anew.
        if (turn.calls == 0 or error is not None) and memo.turns.get(key) is turn:
            del memo.turns[key]


def _call_locked(memo: Any, cache: Any, key: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    """Whether the function was called, and the value, with a lock of the user's own class."""
    place = (id(cache), key)
    turn = _enter(memo, place)
    error = None
    try:
        with turn.lock:
            if turn.error is not None:
                raise turn.error
            found, value = memo._stored_in(cache, key)
            if found:
                return False, value
            try:
                value = memo.function(*args, **kwargs)
                memo._keep(cache, key, value)
            except BaseException as raised:
                error = raised
                turn.error = raised
                raise
            return True, value
    finally:
        _leave(memo, place, turn, error)


async def _call_locked_async(memo: Any, cache: Any, key: Any, args: Any, kwargs: Any) -> tuple[bool, Any]:
    place = (id(cache), key)
    turn = _enter(memo, place)
    error = None
    try:
        async with turn.lock:
            if turn.error is not None:
                raise turn.error
            found, value = memo._stored_in(cache, key)
            if found:
                return False, value
            try:
                value = await memo.function(*args, **kwargs)
                memo._keep(cache, key, value)
            except BaseException as raised:
                error = raised
                turn.error = raised
                raise
            return True, value
    finally:
        _leave(memo, place, turn, error)


async def _call_async(memo: Any, args: Any, kwargs: Any) -> Any:
    cache, key, found, value = memo._stored(args, kwargs)
    event = EVENT_HIT
    if not found:
        made = True
        if memo.lock_type is None:
            value = await memo.function(*args, **kwargs)
            memo._keep(cache, key, value)
        elif memo.lock_type is not True:
            made, value = await _call_locked_async(memo, cache, key, args, kwargs)
        else:
            from math import inf

            from synthex_fast._async_loads import fly

            make, making = memo._making(cache, key, args, kwargs)
            value = await fly(memo.flights, (id(cache), key), make, inf, None, True)
            made = memo._was_made(making)
        if made:
            event = EVENT_MISS
    memo._count(event)
    if memo.callback is not None:
        heard = memo.callback(event, key, value)
        if inspect.isawaitable(heard):
            await heard
    return memo._finished(value)


# --- about decorated functions ---


def is_cached(func: Any) -> bool:
    """Whether the function is decorated with `cached`, and has one cache.

    >>> is_cached(cached()(len)), is_cached(len)
    (True, False)
    """
    return isinstance(getattr(func, "cache", None), BaseCacheImpl)


def get_cached_cache(cached_func: Any) -> Any:
    """``cached_func.cache``, for type checkers."""
    return cached_func.cache


def get_cached_cache_info(cached_func: Any) -> CacheInfo:
    """``cached_func.cache_info()``, for type checkers."""
    return cached_func.cache_info()  # type: ignore[no-any-return]


def get_cached_callback(cached_func: Any) -> Any:
    """``cached_func.callback``, for type checkers."""
    return cached_func.callback


def clear_cached_cache(cached_func: Any) -> None:
    """``cached_func.cache_clear()``, for type checkers."""
    cached_func.cache_clear()


# --- the sweeper ---


def _sweep(reference: weakref.ref[Any], stop: threading.Event, interval: float) -> None:
    # It must not keep the cache alive while it waits.
    while not stop.wait(interval):
        cache = reference()
        if cache is None:
            return
        cache.expire()
        del cache


def _begin_sweeps(cache: Any, stop: threading.Event, interval: float) -> threading.Thread:
    thread = threading.Thread(
        target=_sweep, args=(weakref.ref(cache), stop, interval), name="synthex-fast-cachebox", daemon=True
    )
    thread.start()
    return thread


_cachebox.provide(
    _begin_sweeps, _call_async, _call_locked, make_key, postprocess_copy_mutables, CacheInfo._make
)
