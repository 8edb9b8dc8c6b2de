# Types of `_pool.pyx`: `ObjectPool` and its lease.

from collections.abc import Callable
from types import GenericAlias, TracebackType
from typing import Any, Generic, TypedDict, TypeVar, final, type_check_only

from typing_extensions import disjoint_base

__all__ = ["Lease", "ObjectPool"]

_T = TypeVar("_T")

@type_check_only
class _PoolStats(TypedDict):
    created: int
    reused: int
    released: int
    discarded: int
    aliased: int
    pool_size: int
    reuse_rate: float

@disjoint_base
class ObjectPool(Generic[_T]):
    def __init__(
        self,
        factory: Callable[[], _T],
        max_size: int = 1000,
        *,
        prefill: int | None = None,
        reset: Callable[[_T], object] | None = None,
        max_idle: float | None = None,
        name: str | None = None,
    ) -> None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def max_size(self) -> int: ...
    @property
    def max_idle(self) -> float | None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def stats(self) -> _PoolStats: ...
    def acquire(self) -> _T: ...
    def release(self, obj: _T, /) -> bool: ...
    def lease(self) -> Lease[_T]: ...
    def resize(self, max_size: int) -> None: ...
    def clear(self) -> None: ...
    def trim(self, nbytes: int) -> int: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def _sweep(self, budget: float, now: float | None = None) -> float: ...

@final
class Lease(Generic[_T]):
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    def __enter__(self) -> _T: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None: ...
