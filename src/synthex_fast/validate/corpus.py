"""The requests that every arm serves, made from a seed before anything is measured."""

import hashlib
import random
from typing import NamedTuple

EXPERTS = ("architecture", "security", "performance", "data", "operations")
QUERY_TYPES = ("technical", "architectural", "optimization", "review", "research", "general", "code_review")
PRIORITIES = ("low", "medium", "high", "critical")

_WORDS = """
account allocate arena batch borrow bound buffer cache cleanup collect column commit consensus container
copy counter deadline deploy depot digest drain evict expert expire failure flush gateway generation
growth heap identifier index insert kernel latency lease ledger limit magazine measure memory message
metric monitor node object orphan pause policy pool pressure priority process profile query queue ratio
reader record recycle region release replica request resident response retry review round sample
schedule segment service shard signal slab snapshot source spread stable storage stream sweep table
target thread throughput token trace traffic tuning update upstream usage value variance version
watermark weight window worker
""".split()  # noqa: SIM905
_CONSTRAINTS = ("no downtime", "one region", "two cores", "under 512 MB", "Python only", "no new service")
_TAGS = ("Memory", "Latency", " cache", "GC", "pool ", "Review", "Service", "Batch")
_REGIONS = ("eu-west", "eu-north", "us-east", "ap-south")


class Answer(NamedTuple):
    """What an expert sends back, before it is a record."""

    expert_id: str
    content: str
    confidence: float
    reasoning: str
    metadata: dict[str, object]


class Request(NamedTuple):
    """What a caller sends in, with the five answers that it will get."""

    title: str
    content: str
    requester: str
    query_type: str
    priority: str
    context: dict[str, object]
    constraints: list[str]
    tags: list[str]
    answers: tuple[Answer, ...]


def make(seed: int, requests: int = 1_000) -> list[Request]:
    """The same `requests` requests for the same `seed`, on every platform and version.

    Sizes are the report's workload: a title of about 40 characters, content of 200 to 2,000, a context of 5
    keys, 3 constraints, 3 tags, and five answers of 500 to 2,000 characters with metadata of 4 keys.
    Confidences are drawn so that all three levels of consensus occur.

    >>> make(7, 3) == make(7, 3)
    True
    >>> make(7, 1) == make(8, 1)
    False
    """
    draw = random.Random(seed)
    # Cutting every text out of one long one takes a fraction of the time that writing 11,000 of them would.
    prose = " ".join(draw.choices(_WORDS, k=60_000))

    def text(shortest: int, longest: int) -> str:
        length = draw.randint(shortest, longest)
        start = draw.randrange(len(prose) - length)
        return prose[start : start + length]

    def answers() -> tuple[Answer, ...]:
        centre = draw.uniform(0.35, 0.95)
        scatter = draw.choice((0.05, 0.3, 0.6))
        return tuple(
            Answer(
                expert_id=expert,
                content=text(500, 2_000),
                confidence=min(1.0, max(0.0, centre + draw.uniform(-scatter, scatter))),
                reasoning=text(60, 240),
                metadata={
                    "model": f"{expert}-{draw.randint(1, 9)}",
                    "tokens": draw.randint(300, 4_000),
                    "seconds": draw.uniform(0.2, 9.0),
                    "cached": draw.random() < 0.25,
                },
            )
            for expert in EXPERTS
        )

    return [
        Request(
            title=text(34, 46).strip(),
            content=text(200, 2_000),
            requester=f"user-{draw.randint(1, 400)}",
            query_type=draw.choice(QUERY_TYPES),
            priority=draw.choice(PRIORITIES),
            context={
                "service": draw.choice(_WORDS),
                "region": draw.choice(_REGIONS),
                "retries": draw.randint(0, 5),
                "budget": draw.uniform(1.0, 500.0),
                "trace": f"{draw.getrandbits(64):016x}",
            },
            constraints=draw.sample(_CONSTRAINTS, 3),
            tags=draw.sample(_TAGS, 3),
            answers=answers(),
        )
        for _ in range(requests)
    ]


def digest(requests: list[Request]) -> str:
    """A fingerprint of the whole corpus: two processes that agree on it serve the same requests."""
    fingerprint = hashlib.sha256()
    for request in requests:
        fingerprint.update(repr(request).encode())
    return fingerprint.hexdigest()
