# Types of `_record.pyx`: the engine of records.

from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypedDict, overload

from typing_extensions import disjoint_base

__all__ = ["RecordBase", "RecordMeta", "Rule"]

KINDS: dict[str, int]
HOWS: dict[str, int]
STYLES: dict[str, int]
ORDERINGS: dict[str, Any]

_Count: TypeAlias = Literal["created", "reused", "released", "discarded", "aliased", "pool_size"]

class _Stats(TypedDict):
    created: int
    reused: int
    released: int
    discarded: int
    aliased: int
    pool_size: int
    reuse_rate: float
    held_elsewhere: bool

class RecordStats(dict[str, float]):
    def __reduce__(self) -> tuple[type[dict[str, float]], tuple[dict[str, float]]]: ...
    @overload
    def __getitem__(self, key: _Count, /) -> int: ...  # type: ignore[overload-overlap]
    @overload
    def __getitem__(self, key: str, /) -> float: ...
    def __call__(self) -> _Stats: ...

@disjoint_base
class Rule:
    kind: int
    cls: Any
    options: tuple[Any, ...]
    optional: bool
    least: int | None
    most: int | None
    low: Any
    high: Any
    above: bool
    below: bool
    pattern: Any
    choices: tuple[Any, ...] | None
    calls: tuple[Callable[[Any], object], ...]
    def __init__(
        self,
        kind: int,
        *,
        cls: Any = None,
        options: Iterable[Any] = (),
        optional: bool = False,
        least: int | None = None,
        most: int | None = None,
        low: Any = None,
        high: Any = None,
        above: bool = False,
        below: bool = False,
        pattern: Any = None,
        choices: Iterable[Any] | None = None,
        calls: Iterable[Callable[[Any], object]] = (),
        allowed: str | None = None,
    ) -> None: ...
    @property
    def allowed(self) -> str: ...
    def fits_as_it_is(self, value: object) -> bool: ...
    def check(self, name: str, value: Any) -> Any: ...

@disjoint_base
class RecordMeta(type):
    __dataclass_fields__: dict[str, Field[Any]]
    def __new__(
        meta, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **options: Any
    ) -> RecordMeta: ...

class RecordBase:
    __match_args__: ClassVar[tuple[str, ...]]
    stats: ClassVar[RecordStats]
    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    acquire: ClassVar[type[Self]]
    def __post_init__(self) -> None: ...
    def reset(self) -> None: ...
    def release(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None: ...
    def __rich_repr__(self) -> Iterator[tuple[str, Any]]: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> Self: ...
    def __replace__(self, /, **changes: Any) -> Self: ...
    def __getstate__(self) -> tuple[dict[str, Any], Any]: ...
    def __setstate__(self, state: tuple[dict[str, Any], Any]) -> None: ...

def lay_out(
    cls: type,
    fields: list[str | tuple[Any, ...]],
    order: tuple[int, ...],
    *,
    pool: int,
    gc: bool,
    frozen: bool,
    eq: bool,
    ordered: bool,
    validate: bool,
    weakrefs: str | None,
    attributes: str | None,
    extras: bool,
    reset: Callable[[Any], object] | None,
    blank: bool = False,
    opens: bool = False,
) -> None: ...
def check_and_run(record: RecordBase, hook: Callable[[Any], Any] | None) -> None: ...
def post_init_after(cls: type, after: type | None) -> Any: ...
def known_rules_of(cls: type) -> dict[str, Rule | None]: ...
def unresolved(cls: type) -> list[str]: ...
def set_rules(cls: type, rules: dict[str, Rule]) -> None: ...
def is_complete(cls: type) -> bool: ...
def options_of(cls: type) -> dict[str, Any]: ...
def rules_of(cls: type) -> dict[str, Rule]: ...
def late_fields(cls: type) -> list[str]: ...
def make_class(
    meta: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any], keywords: dict[str, Any]
) -> type: ...
def know_datetime() -> None: ...
def uuid7_text() -> str: ...
def set_loader(loading: Callable[[], None]) -> None: ...
def set_makers(declaring: Callable[..., type], resolving: Callable[[type], None]) -> None: ...
