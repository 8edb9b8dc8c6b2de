"""Decorators with the interface of `functools.lru_cache`: the names of ``cachetools.func``."""

from __future__ import annotations

import math
import random
import threading
import time

from synthex_fast.compat.cachetools import FIFOCache, LFUCache, LRUCache, RRCache, TTLCache, cached, keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ("fifo_cache", "lfu_cache", "lru_cache", "rr_cache", "ttl_cache")


class _Unlimited(TTLCache):  # type: ignore[type-arg]
    """A TTLCache that says, as `functools.lru_cache` does, that its limit is None."""

    @property
    def maxsize(self) -> Any:
        return None


def _decorate(
    maxsize: Any, typed: bool, limited: Callable[[Any], Any], unlimited: Callable[[], Any] = dict
) -> Any:
    # Used without parentheses.
    function = maxsize if callable(maxsize) else None
    if function is not None:
        maxsize = 128
    cache = unlimited() if maxsize is None else limited(maxsize)

    def decorate(function: Any) -> Any:
        key = keys.typedkey if typed else keys.hashkey
        # With a condition threads that miss together call the function once.
        wrapper = cached(cache, key, condition=threading.Condition(), info=True)(function)
        wrapper.cache_parameters = lambda: {"maxsize": maxsize, "typed": typed}
        return wrapper

    return decorate if function is None else decorate(function)


def fifo_cache(maxsize: Any = 128, typed: bool = False) -> Any:
    """Keep the results of up to ``maxsize`` calls (None: of all), in a `FIFOCache`.

    >>> @fifo_cache
    ... def square(n):
    ...     return n * n
    >>> square(3), square.cache_parameters()
    (9, {'maxsize': 128, 'typed': False})
    """
    return _decorate(maxsize, typed, FIFOCache)


def lfu_cache(maxsize: Any = 128, typed: bool = False) -> Any:
    """The same with an `LFUCache`."""
    return _decorate(maxsize, typed, LFUCache)


def lru_cache(maxsize: Any = 128, typed: bool = False) -> Any:
    """The same with an `LRUCache`."""
    return _decorate(maxsize, typed, LRUCache)


def rr_cache(maxsize: Any = 128, choice: Any = random.choice, typed: bool = False) -> Any:
    """The same with an `RRCache`; ``choice`` picks the key of the result that goes."""
    return _decorate(maxsize, typed, lambda size: RRCache(size, choice))


def ttl_cache(
    maxsize: Any = 128, ttl: Any = 600, timer: Callable[[], Any] = time.monotonic, typed: bool = False
) -> Any:
    """The same with a `TTLCache`: results are kept for ``ttl`` seconds."""
    return _decorate(
        maxsize, typed, lambda size: TTLCache(size, ttl, timer), lambda: _Unlimited(math.inf, ttl, timer)
    )
