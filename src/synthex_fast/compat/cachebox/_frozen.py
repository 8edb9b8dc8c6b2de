"""`Frozen`: a cache that can only be read."""

from __future__ import annotations

from typing import Any, TypeVar

from synthex_fast.compat._cachebox import BaseCacheImpl
from synthex_fast.errors import ArgumentTypeError, type_error

__all__ = ["Frozen"]

_K = TypeVar("_K")
_V = TypeVar("_V")


class Frozen(BaseCacheImpl[_K, _V]):
    """A view of a cache through which it can't be changed; what changes it elsewhere is seen.

    A method that would change it raises TypeError, or with ``ignore=True`` does nothing and returns None. Reading is
    as with the cache itself, uses and expiry included.

    >>> from synthex_fast.compat.cachebox import FIFOCache
    >>> cache = FIFOCache(10, {"a": 1})
    >>> frozen = Frozen(cache)
    >>> frozen["a"], len(frozen)
    (1, 1)
    >>> frozen["b"] = 2
    Traceback (most recent call last):
    TypeError: This cache is frozen.
    """

    __slots__ = ("_cache", "ignore")

    def __init__(self, cls: BaseCacheImpl[_K, _V], ignore: bool = False) -> None:
        if not isinstance(cls, BaseCacheImpl):
            raise type_error("cls", cls, "a cache")
        if isinstance(cls, Frozen):
            raise ArgumentTypeError("cls must be a cache that is not frozen already")
        self._cache: Any = cls
        self.ignore = ignore

    @property
    def cache(self) -> Any:
        """The cache itself."""
        return self._cache

    # --- reading ---

    @property
    def maxsize(self) -> int:
        return self._cache.maxsize  # type: ignore[no-any-return]

    @property
    def getsizeof(self) -> Any:
        return self._cache.getsizeof

    def current_size(self) -> int:
        return self._cache.current_size()  # type: ignore[no-any-return]

    def remaining_size(self) -> int:
        return self._cache.remaining_size()  # type: ignore[no-any-return]

    def capacity(self) -> int:
        return self._cache.capacity()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self._cache)

    def __sizeof__(self) -> int:
        return self._cache.__sizeof__()  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return bool(self._cache)

    def __contains__(self, key: Any) -> bool:
        return key in self._cache

    def contains(self, key: Any) -> bool:
        return key in self._cache

    def is_empty(self) -> bool:
        return self._cache.is_empty()  # type: ignore[no-any-return]

    def is_full(self) -> bool:
        return self._cache.is_full()  # type: ignore[no-any-return]

    def get(self, key: Any, default: Any = None) -> Any:
        return self._cache.get(key, default)

    def __getitem__(self, key: Any) -> Any:
        return self._cache[key]

    def items(self) -> Any:
        return self._cache.items()

    def values(self) -> Any:
        return self._cache.values()

    def keys(self) -> Any:
        return self._cache.keys()

    def __iter__(self) -> Any:
        return iter(self._cache)

    def copy(self) -> Frozen[_K, _V]:
        """A frozen view of a copy."""
        return Frozen(self._cache.copy(), self.ignore)

    def __copy__(self) -> Frozen[_K, _V]:
        return self.copy()

    def __repr__(self) -> str:
        return f"Frozen({self._cache!r})"

    # --- what would change the cache ---

    def _refuse(self) -> Any:
        if not self.ignore:
            raise TypeError("This cache is frozen.")

    def insert(self, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self._refuse()

    def __setitem__(self, key: Any, value: Any) -> None:
        self._refuse()

    def update(self, iterable: Any, *args: Any, **kwargs: Any) -> Any:
        return self._refuse()

    def setdefault(self, key: Any, default: Any = None, *args: Any, **kwargs: Any) -> Any:
        return self._refuse()

    def setdefault_with(self, key: Any, factory: Any, *args: Any, **kwargs: Any) -> Any:
        return self._refuse()

    def pop(self, key: Any, default: Any = None) -> Any:
        return self._refuse()

    def __delitem__(self, key: Any) -> None:
        self._refuse()

    def popitem(self) -> Any:
        return self._refuse()

    def drain(self, n: int) -> Any:
        return self._refuse()

    def shrink_to_fit(self) -> Any:
        return self._refuse()

    def clear(self, *, reuse: bool = False) -> Any:
        return self._refuse()
