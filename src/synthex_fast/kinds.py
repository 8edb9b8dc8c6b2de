"""What a query can be about and how urgent it is, as string enumerations."""

from enum import StrEnum

__all__ = ["QueryPriority", "QueryType"]


class QueryType(StrEnum):
    """What a query is about; each member equals its text.

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
    """How urgent a query is; each member equals its text.

    >>> [str(priority) for priority in QueryPriority]
    ['low', 'medium', 'high', 'critical']
    """

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"
