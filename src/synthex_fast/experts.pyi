# Types of `experts.py`: the two expert types.

from datetime import datetime
from typing import Any, ClassVar, Literal, Self, TypeAlias

from typing_extensions import disjoint_base

from synthex_fast._record import RecordBase, RecordMeta
from synthex_fast.kinds import QueryPriority, QueryType

__all__ = ["PooledExpertQuery", "PooledExpertResponse"]

_Type: TypeAlias = (
    QueryType
    | Literal["technical", "architectural", "optimization", "review", "research", "general", "code_review"]
)
_Priority: TypeAlias = QueryPriority | Literal["low", "medium", "high", "critical"]
_Texts: TypeAlias = list[str] | tuple[str, ...] | set[str] | frozenset[str]

class _Expert(RecordBase, metaclass=RecordMeta):
    __dataclass_fields__: ClassVar[dict[str, Any]]
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def to_dict(self) -> dict[str, Any]: ...
    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self: ...
    def model_dump(self, **options: Any) -> dict[str, Any]: ...
    def model_dump_json(self, *, indent: int | None = None, **options: Any) -> str: ...
    def model_copy(self, *, update: dict[str, Any] | None = None) -> Self: ...
    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...
    @classmethod
    def model_validate_json(cls, json_data: str | bytes) -> Self: ...
    def __getstate__(self) -> tuple[tuple[Any, ...], Any]: ...  # type: ignore[override]
    def __setstate__(self, state: tuple[tuple[Any, ...], Any]) -> None: ...  # type: ignore[override]

@disjoint_base
class PooledExpertQuery(_Expert):
    def __init__(
        self,
        title: str,
        content: str,
        requester: str,
        *,
        query_type: _Type = "general",
        priority: _Priority = "medium",
        context: dict[str, Any] | None = None,
        constraints: _Texts | None = None,
        deadline: datetime | None = None,
        tags: _Texts | None = None,
        id: str | None = None,
        created_at: datetime | None = None,
    ) -> None: ...
    @classmethod
    def acquire(
        cls,
        title: str,
        content: str,
        requester: str,
        *,
        query_type: _Type = "general",
        priority: _Priority = "medium",
        context: dict[str, Any] | None = None,
        constraints: _Texts | None = None,
        deadline: datetime | None = None,
        tags: _Texts | None = None,
        id: str | None = None,
        created_at: datetime | None = None,
    ) -> Self: ...
    @property
    def title(self) -> str: ...
    @title.setter
    def title(self, value: str) -> None: ...
    @property
    def content(self) -> str: ...
    @content.setter
    def content(self, value: str) -> None: ...
    @property
    def requester(self) -> str: ...
    @requester.setter
    def requester(self, value: str) -> None: ...
    @property
    def query_type(self) -> QueryType: ...
    @query_type.setter
    def query_type(self, value: _Type) -> None: ...
    @property
    def priority(self) -> QueryPriority: ...
    @priority.setter
    def priority(self, value: _Priority) -> None: ...
    @property
    def context(self) -> dict[str, Any]: ...
    @context.setter
    def context(self, value: dict[str, Any] | None) -> None: ...
    @property
    def constraints(self) -> list[str]: ...
    @constraints.setter
    def constraints(self, value: _Texts | None) -> None: ...
    @property
    def deadline(self) -> datetime | None: ...
    @deadline.setter
    def deadline(self, value: datetime | None) -> None: ...
    @property
    def tags(self) -> list[str]: ...
    @tags.setter
    def tags(self, value: _Texts | None) -> None: ...
    @property
    def id(self) -> str: ...
    @id.setter
    def id(self, value: str | None) -> None: ...
    @property
    def created_at(self) -> datetime: ...
    @created_at.setter
    def created_at(self, value: datetime | None) -> None: ...

@disjoint_base
class PooledExpertResponse(_Expert):
    def __init__(
        self,
        query_id: str,
        expert_id: str,
        content: str = "",
        confidence: float = 0.0,
        reasoning: str = "",
        metadata: dict[str, Any] | None = None,
        *,
        id: str | None = None,
        timestamp: datetime | None = None,
    ) -> None: ...
    @classmethod
    def acquire(
        cls,
        query_id: str,
        expert_id: str,
        content: str = "",
        confidence: float = 0.0,
        reasoning: str = "",
        metadata: dict[str, Any] | None = None,
        *,
        id: str | None = None,
        timestamp: datetime | None = None,
    ) -> Self: ...
    @property
    def query_id(self) -> str: ...
    @query_id.setter
    def query_id(self, value: str) -> None: ...
    @property
    def expert_id(self) -> str: ...
    @expert_id.setter
    def expert_id(self, value: str) -> None: ...
    @property
    def content(self) -> str: ...
    @content.setter
    def content(self, value: str) -> None: ...
    @property
    def confidence(self) -> float: ...
    @confidence.setter
    def confidence(self, value: float) -> None: ...
    @property
    def reasoning(self) -> str: ...
    @reasoning.setter
    def reasoning(self, value: str) -> None: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    @metadata.setter
    def metadata(self, value: dict[str, Any] | None) -> None: ...
    @property
    def id(self) -> str: ...
    @id.setter
    def id(self, value: str | None) -> None: ...
    @property
    def timestamp(self) -> datetime: ...
    @timestamp.setter
    def timestamp(self, value: datetime | None) -> None: ...
