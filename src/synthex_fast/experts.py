"""The two expert types as declarations: what pydantic's schemas say of `PooledExpertQuery` and `PooledExpertResponse`.

The types themselves are hand-written C (`_records.pyx`). These classes have the same fields and bounds.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated, Any, get_type_hints

from synthex_fast.kinds import QueryPriority, QueryType
from synthex_fast.record import Length, Range, Record, field

__all__: list[str] = []


class _Query(Record):
    title: Annotated[str, Length(1, 200)]
    content: Annotated[str, Length(10, 10_000)]
    requester: Annotated[str, Length(1)]
    query_type: QueryType = QueryType.GENERAL
    priority: QueryPriority = QueryPriority.MEDIUM
    context: dict[str, Any] = field(default_factory=dict)
    constraints: list[str] = field(default_factory=list)
    deadline: datetime | None = None
    tags: list[str] = field(default_factory=list)
    id: Annotated[str, Length(1)] = field(default_factory="uuid4")
    created_at: datetime = field(default_factory="now")


class _Response(Record):
    query_id: str
    expert_id: str
    content: str = ""
    confidence: Annotated[float, Range(0, 1)] = 0.0
    reasoning: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    id: Annotated[str, Length(1)] = field(default_factory="uuid4")
    timestamp: datetime = field(default_factory="now")


_DECLARED: dict[str, type[Record]] = {"PooledExpertQuery": _Query, "PooledExpertResponse": _Response}


def core_schema(cls: type, base: type, handler: Any) -> Any:
    """The core schema of an expert type or a subclass: takes an instance as it is, or makes one from its fields."""
    from pydantic_core import core_schema as schemas

    declared = _DECLARED[base.__name__]
    hints = get_type_hints(declared, include_extras=True)
    fields: dict[str, Any] = {}
    for one in dataclasses.fields(declared):
        inner = handler.generate_schema(hints[one.name])
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if one.default is not dataclasses.MISSING:
            inner = schemas.with_default_schema(inner, default=one.default)
        fields[one.name] = schemas.typed_dict_field(inner, required=required)
    table = schemas.typed_dict_schema(fields, cls_name=cls.__name__)

    def made(value: Any, validate: Any) -> Any:
        return value if isinstance(value, cls) else cls(**validate(value))

    return schemas.no_info_wrap_validator_function(
        made,
        table,
        serialization=schemas.plain_serializer_function_ser_schema(
            lambda record: {name: getattr(record, name) for name in fields}, return_schema=table
        ),
        ref=f"{cls.__module__}.{cls.__qualname__}:{id(cls)}",
        metadata={"pydantic_js_updates": {"title": cls.__name__}},
    )
