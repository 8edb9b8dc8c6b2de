"""Records made and dropped, compared with a bare struct and with the reported service's validated model."""

import sysconfig
from datetime import UTC, datetime
from uuid import uuid4

from measure import Comparison, NotMeasuredError, compare, scaling, statement

TEXTS = {
    "title": "How should the response cache be sized?",
    "content": "The cache holds five responses to each of the last five hundred queries. " * 8,
    "requester": "billing-service",
}
THREE = "make(title=title, content=content, requester=requester)"
FULL = (
    "make(title=title, content=content, requester=requester, query_type='review', priority='high',"
    " context={'service': service, 'region': region, 'cpus': 4, 'memory_mb': 2048, 'canary': False},"
    " constraints=[limit, restart, latency], tags=[cache, memory, sizing])"
)
NAMES = {
    "service": "billing",
    "region": "eu-west-1",
    "limit": "under 2 GB in all",
    "restart": "no restart",
    "latency": "p99 below 20 ms",
    "cache": "cache",
    "memory": "memory",
    "sizing": "sizing",
}


def _struct():
    import msgspec

    class Query(msgspec.Struct):
        title: str
        content: str
        requester: str
        id: str
        created_at: datetime
        query_type: str = "general"
        priority: str = "medium"
        context: dict = msgspec.field(default_factory=dict)
        constraints: list = msgspec.field(default_factory=list)
        deadline: datetime | None = None
        tags: list = msgspec.field(default_factory=list)

    return Query


def _query():
    from synthex_fast import PooledExpertQuery

    return PooledExpertQuery


def _model():
    # The same model as in the `current` arm of `synthex-fast validate`.
    from synthex_fast.validate.arms.current import ExpertQuery

    return ExpertQuery


def claim_query_vs_msgspec():
    """A query of three keywords, checked, id and time included; the struct checks nothing and is passed both."""
    handed_in = "make(title=title, content=content, requester=requester, id=id, created_at=now)"
    return compare(
        statement(THREE, make=_query(), **TEXTS),
        statement(handed_in, make=_struct(), id=str(uuid4()), now=datetime.now(UTC), **TEXTS),
    )


def claim_query_with_id_vs_msgspec():
    """The same with the id read, so that it has to be made, compared with a struct that makes its own."""
    made = "make(title=title, content=content, requester=requester, id=str(uuid4()), created_at=now(UTC))"
    return compare(
        statement(THREE + ".id", make=_query(), **TEXTS),
        statement(made, make=_struct(), uuid4=uuid4, now=datetime.now, UTC=UTC, **TEXTS, inner=100),
    )


def claim_query_vs_pydantic():
    """A query of three keywords, compared with the model that validates the same."""
    return compare(
        statement(THREE, make=_query(), **TEXTS), statement(THREE, make=_model(), **TEXTS, inner=100)
    )


def claim_full_vs_pydantic():
    """With a context of five keys, three constraints and three tags, new ones for each."""
    return compare(
        statement(FULL, make=_query(), **TEXTS, **NAMES),
        statement(FULL, make=_model(), **TEXTS, **NAMES, inner=100),
    )


def claim_response_vs_msgspec():
    """A response with a confidence and metadata of four keys, compared with the bare struct given id and time."""
    import msgspec

    from synthex_fast import PooledExpertResponse

    class Response(msgspec.Struct):
        query_id: str
        expert_id: str
        content: str
        confidence: float
        reasoning: str
        metadata: dict
        id: str
        timestamp: datetime

    fields = (
        "query_id=id, expert_id='expert-1', content=content, confidence=0.8, reasoning=content,"
        " metadata={'model': 'm', 'tokens': 812, 'cached': False, 'seconds': 0.7}"
    )
    names = {"id": str(uuid4()), "content": TEXTS["content"]}
    return compare(
        statement(f"make({fields})", make=PooledExpertResponse, **names),
        statement(f"make({fields}, id=id, timestamp=now)", make=Response, now=datetime.now(UTC), **names),
    )


# Records of one's own, the same class declared with each.
THREE_TEXTS = "make(a=a, b=b, c=c)"
ABC = {"a": "billing-service", "b": "eu-west-1", "c": "p99 below 20 ms"}
MIXED = "make(a=a, b=5, c=1.5, d=True, g=b, h=c)"


def _three(base, text=str, **options):
    return type(base)(
        "Three", (base,), {"__annotations__": dict.fromkeys("abc", text), "__module__": __name__}, **options
    )


def _three_of_dataclass():
    import dataclasses

    return dataclasses.make_dataclass("Three", [(name, str) for name in "abc"], slots=True)


def _mixed(base, factory):
    annotations = {"a": str, "b": int, "c": float, "d": bool, "e": list, "f": dict, "g": str, "h": str}
    made = {"e": factory(default_factory=list), "f": factory(default_factory=dict), "g": "", "h": ""}
    return type(base)("Mixed", (base,), {"__annotations__": annotations, "__module__": __name__, **made})


def claim_own_vs_msgspec():
    """A record of three texts, made by keyword, checked to be texts; the struct checks nothing."""
    import msgspec

    from synthex_fast import Record

    return compare(
        statement(THREE_TEXTS, make=_three(Record), **ABC),
        statement(THREE_TEXTS, make=_three(msgspec.Struct), **ABC),
    )


def claim_own_vs_dataclass():
    """The same, compared with a dataclass with slots."""
    from synthex_fast import Record

    return compare(
        statement(THREE_TEXTS, make=_three(Record), **ABC),
        statement(THREE_TEXTS, make=_three_of_dataclass(), **ABC),
    )


def claim_own_checked_vs_msgspec():
    """The same with lengths checked in all three, compared with the struct that checks nothing."""
    from typing import Annotated

    import msgspec

    from synthex_fast import Length, Record

    return compare(
        statement(THREE_TEXTS, make=_three(Record, Annotated[str, Length(1, 100)]), **ABC),
        statement(THREE_TEXTS, make=_three(msgspec.Struct), **ABC),
    )


def claim_own_mixed_vs_msgspec():
    """Eight fields, among them a list and a dict that their factories make."""
    import msgspec

    from synthex_fast import Record, field

    return compare(
        statement(MIXED, make=_mixed(Record, field), **ABC),
        statement(MIXED, make=_mixed(msgspec.Struct, msgspec.field), **ABC),
    )


def claim_own_read_vs_dataclass():
    """An attribute read."""
    from synthex_fast import Record

    return compare(
        statement("record.b", record=_three(Record)(**ABC)),
        statement("record.b", record=_three_of_dataclass()(**ABC)),
    )


def claim_own_bytes():
    """Traced bytes of each of 1,000,000 records of three texts in a list; ``rival`` is the struct's."""
    import tracemalloc

    import msgspec

    from synthex_fast import Record

    held = {}
    for name, base in (("ours", Record), ("rival", msgspec.Struct)):
        make = _three(base)
        tracemalloc.start()
        records = [make(**ABC) for _ in range(1_000_000)]
        held[name] = tracemalloc.get_traced_memory()[0] / len(records)
        tracemalloc.stop()
        del records
    ratio = held["ours"] / held["rival"]
    return Comparison(held["ours"], held["rival"], ratio, (ratio, ratio), "bytes, not nanoseconds")


def claim_own_two_threads():
    """Records of three texts made and dropped by two threads, compared with one, on the free-threaded build."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise NotMeasuredError("two threads run in parallel only on a free-threaded interpreter")
    from synthex_fast import Record

    make = _three(Record)
    return scaling(lambda n: statement(THREE_TEXTS, make=make, **ABC, inner=500_000))
