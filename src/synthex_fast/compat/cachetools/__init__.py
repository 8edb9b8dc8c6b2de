"""The names of ``cachetools``, so that replacing it takes one changed import.

    from synthex_fast.compat import cachetools        # instead of: import cachetools
    from synthex_fast.compat.cachetools import TTLCache, cached

The caches behave as those of cachetools 8 do, whose own tests pass with them, and are several times as fast. New code
has more from `TTLDict`: limits in bytes, entries that are freed when they expire, and use by threads without a lock.
"""

from __future__ import annotations

import functools
import types
from typing import NamedTuple

from synthex_fast.compat._caches import Cache, FIFOCache, LFUCache, LRUCache, RRCache, TLRUCache, TTLCache
from synthex_fast.compat.cachetools import keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = (
    "Cache",
    "CacheInfo",
    "FIFOCache",
    "LFUCache",
    "LRUCache",
    "RRCache",
    "TLRUCache",
    "TTLCache",
    "cached",
    "cachedmethod",
)


class CacheInfo(NamedTuple):
    """How a decorated function has used its cache."""

    hits: int
    misses: int
    maxsize: Any
    currsize: Any


def _info_of(cache: Any, hits: int, misses: int) -> CacheInfo:
    if isinstance(cache, Cache):
        return CacheInfo(hits, misses, cache.maxsize, cache.currsize)
    return CacheInfo(hits, misses, None, len(cache))


class _Memoized:
    """What is called instead of a function. Subclasses have `cache`, `cache_key`, `cache_lock`, `cache_condition`."""

    cache: Any
    cache_key: Any
    cache_lock: Any
    cache_condition: Any

    def _start(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._hits = self._misses = 0
        # Keys whose values are being made, if there is a condition to wait for them.
        self._pending: set[Any] = set()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        cache = self.cache
        key = self.cache_key(*args, **kwargs)
        lock = self.cache_lock
        if lock is None:
            try:
                value = cache[key]
            except KeyError:
                self._misses += 1
            else:
                self._hits += 1
                return value
            value = self._function(*args, **kwargs)
            try:  # noqa: SIM105
                cache[key] = value
            except ValueError:
                # Too large to be kept.
                pass
            return value
        if self.cache_condition is not None:
            return self._call_once(cache, key, lock, args, kwargs)
        with lock:
            try:
                value = cache[key]
            except KeyError:
                self._misses += 1
            else:
                self._hits += 1
                return value
        value = self._function(*args, **kwargs)
        with lock:
            try:
                # Another thread's value may have come first; all get the same one.
                return cache.setdefault(key, value)
            except ValueError:
                return value

    def _call_once(self, cache: Any, key: Any, lock: Any, args: Any, kwargs: Any) -> Any:
        """The same, while other threads wait for a value that this one makes."""
        condition = self.cache_condition
        with lock:
            while key in self._pending:
                condition.wait()
            try:
                value = cache[key]
            except KeyError:
                self._misses += 1
                self._pending.add(key)
            else:
                self._hits += 1
                return value
        try:
            value = self._function(*args, **kwargs)
            with lock:
                try:  # noqa: SIM105
                    cache[key] = value
                except ValueError:
                    pass
            return value
        finally:
            with lock:
                self._pending.remove(key)
                condition.notify_all()

    def cache_clear(self) -> None:
        """Empty the cache, and forget the counts."""
        lock = self.cache_lock
        if lock is None:
            self.cache.clear()
            self._hits = self._misses = 0
        else:
            with lock:
                self.cache.clear()
                self._hits = self._misses = 0


class _Informed(_Memoized):
    def cache_info(self) -> CacheInfo:
        """The counts, as `CacheInfo`."""
        lock = self.cache_lock
        if lock is None:
            return _info_of(self.cache, self._hits, self._misses)
        with lock:
            return _info_of(self.cache, self._hits, self._misses)


# --- functions ---


class _Function(_Memoized):
    def __init__(self, function: Any, cache: Any, key: Any, lock: Any, condition: Any) -> None:
        # First: what another decorator has left in the function's `__dict__` must not take the place of what follows.
        functools.update_wrapper(self, function)
        self._start(function)
        self.cache = cache
        self.cache_key = key
        self.cache_lock = condition if lock is None else lock
        self.cache_condition = condition

    # As a function: bound when it is a class attribute, and copied and pickled by reference.

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return self.__qualname__  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"<cached {self.__wrapped__!r}>"  # type: ignore[attr-defined]


class _InformedFunction(_Function, _Informed):
    pass


def cached(
    cache: Any, key: Any = keys.hashkey, lock: Any = None, condition: Any = None, info: bool = False
) -> Any:
    """Decorate a function with a cache, any mutable mapping, as ``cachetools.cached`` does.

    ``key(*args, **kwargs)`` makes the cache's keys. ``lock`` is held while the cache is used, not while the function
    runs; with a ``condition`` the function runs once for threads that call it together. ``info=True`` adds
    ``cache_info()``. The wrapper also has ``cache_clear()``, ``cache``, ``cache_key``, ``cache_lock`` and
    ``cache_condition``.

    >>> @cached(LRUCache(maxsize=100), info=True)
    ... def square(n):
    ...     return n * n
    >>> square(3), square(3), square.cache_info()
    (9, 9, CacheInfo(hits=1, misses=1, maxsize=100, currsize=1))
    """
    if cache is None:
        raise TypeError("cache must not be None")
    kind = _InformedFunction if info else _Function
    return lambda function: kind(function, cache, key, lock, condition)


# --- methods ---


class _Bound(_Memoized):
    """A decorated method of one instance."""

    def __init__(self, instance: Any, method: _Method) -> None:
        functools.update_wrapper(self, method.__wrapped__)  # type: ignore[attr-defined]
        self._start(types.MethodType(method.__wrapped__, instance))  # type: ignore[attr-defined]
        self._instance = instance
        self._method = method
        self.cache_key = functools.partial(method._key, instance)

    @property
    def cache(self) -> Any:
        return self._method._cache(self._instance)

    @property
    def cache_lock(self) -> Any:
        lock = self._method._lock or self._method._condition
        return None if lock is None else lock(self._instance)

    @property
    def cache_condition(self) -> Any:
        condition = self._method._condition
        return None if condition is None else condition(self._instance)

    def __reduce__(self) -> Any:
        # Made anew where it is read: its counts begin again.
        return self._method.__get__, (self._instance,)

    def __repr__(self) -> str:
        wrapped = self.__wrapped__  # type: ignore[attr-defined]
        return f"<cachedmethod {wrapped!r} of {object.__repr__(self._instance)}>"


class _InformedBound(_Bound, _Informed):
    pass


class _Method:
    """A decorated method in its class. The first access through an instance leaves a `_Bound` in its ``__dict__``."""

    # Under this name an instance keeps those of methods that a subclass overrides, which `super()` reaches.
    _OVERRIDDEN = "__cachetools_cachedmethods"

    def __init__(self, method: Any, cache: Any, key: Any, lock: Any, condition: Any, info: bool) -> None:
        functools.update_wrapper(self, method)
        self._cache = cache
        self._key = key
        self._lock = lock
        self._condition = condition
        self._kind = _InformedBound if info else _Bound
        self._owner: type | None = None
        self._name: str | None = None
        self._unbound: _Unbound | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        if self._name is None:
            self._owner, self._name = owner, name
        elif self._name != name:
            raise TypeError(
                f"Cannot assign the same descriptor to two different names ({self._name!r} and {name!r})."
            )

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        name = self._name
        if name is None:
            if isinstance(instance, type):
                # A classmethod around it, before Python 3.13.
                self()
            raise TypeError("Cannot use descriptor instance without calling __set_name__ on it")
        if instance is None:
            if self._unbound is None:
                self._unbound = _Unbound(self)
            return self._unbound
        found = next((vars(base)[name] for base in type(instance).__mro__ if name in vars(base)), None)
        try:
            attributes = instance.__dict__
            if found is self:
                # Another thread's may have come first.
                return attributes.setdefault(name, self._kind(instance, self))
            others = attributes.setdefault(self._OVERRIDDEN, {})
        except AttributeError:
            raise TypeError(
                f"No '__dict__' attribute on {type(instance).__name__!r} instance to cache {name!r}"
            ) from None
        except TypeError:
            raise TypeError(
                f"The '__dict__' attribute on {type(instance).__name__!r} instance does not support item "
                f"assignment for caching {name!r}"
            ) from None
        if self not in others:
            others.setdefault(self, self._kind(instance, self))
        return others[self]

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "Cannot call @cachedmethod descriptor directly: @cachedmethod must be the outermost decorator, and "
            "decorating class methods, static methods or properties is not supported"
        )

    def __reduce__(self) -> Any:
        return _method_of, (self._owner, self._name)


def _method_of(owner: type, name: str) -> Any:
    return vars(owner)[name]


class _Unbound:
    """A decorated method reached through its class, to be called with an instance."""

    def __init__(self, method: _Method) -> None:
        functools.update_wrapper(self, method.__wrapped__)  # type: ignore[attr-defined]
        self._method = method

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._method.__get__(instance)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if args:
            return self._method.__get__(args[0])(*args[1:], **kwargs)
        import inspect

        try:
            first = next(iter(inspect.signature(self).parameters.values()), None)
        except ValueError:
            first = None
        if first is None or first.kind is not first.POSITIONAL_OR_KEYWORD or first.name not in kwargs:
            raise TypeError("Cannot call @cachedmethod through the class without an instance")
        return self._method.__get__(kwargs.pop(first.name))(**kwargs)

    def __reduce__(self) -> Any:
        return self._method.__get__, (None,)

    def __repr__(self) -> str:
        return f"<cachedmethod {self.__wrapped__!r}>"  # type: ignore[attr-defined]


def cachedmethod(
    cache: Any, key: Any = keys.methodkey, lock: Any = None, condition: Any = None, info: bool = False
) -> Any:
    """Decorate a method with the cache that ``cache(self)`` returns, as ``cachetools.cachedmethod`` does.

    ``lock(self)`` and ``condition(self)`` return what `cached` takes as ``lock`` and ``condition``.

    >>> class Prices:
    ...     def __init__(self):
    ...         self.cache = TTLCache(maxsize=100, ttl=60)
    ...     @cachedmethod(lambda self: self.cache)
    ...     def price(self, article):
    ...         return len(article) * 10
    >>> Prices().price("anvil")
    50
    """
    if not callable(cache):
        raise TypeError("cache must be callable")
    return lambda method: _Method(method, cache, key, lock, condition, info)
