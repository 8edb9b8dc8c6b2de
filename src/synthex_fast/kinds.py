"""`QueryType` and `QueryPriority`: the types and priorities of queries, as string enumerations."""

from enum import StrEnum

__all__ = ["QueryPriority", "QueryType"]


class QueryType(StrEnum):
    """The type of a query. Each member equals its string value.

    >>> QueryType.CODE_REVIEW == "code_review"
    True
    """

    TECHNICAL = "technical"
    ARCHITECTURAL = "architectural"
    OPTIMIZATION = "optimization"
    REVIEW = "review"
    RESEARCH = "research"
    GENERAL = "general"
    CODE_REVIEW = "code_review"


class QueryPriority(StrEnum):
    """The priority of a query. Each member equals its string value.

    >>> [str(priority) for priority in QueryPriority]
    ['low', 'medium', 'high', 'critical']
    """

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"
