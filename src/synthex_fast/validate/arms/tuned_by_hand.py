"""The service as a good engineer tunes it today without this package, with well-kept libraries and settings.

It stands for no section of the report: it is what the report's recommendations have to beat, and this package too.
Each part is a well-kept and widely used choice that still does what the current system does.

- Records: `msgspec.Struct`, which has slots, with the current system's checks in `__post_init__`, where msgspec
  documents that objects made by the program itself are checked. Its declared constraints apply to decoding only, and
  `msgspec.convert` from a dict takes over twice as long. Without cyclic tracking (``gc=False``), as what a record
  holds was decoded from a request and can't refer back to it. Identifiers are version-4 UUIDs by uuid-utils, a
  drop-in for the standard library's and many times faster.
- Caches: cachetools' `TTLCache`, which frees what has expired at the next insertion, under a lock because a
  background task expires entries too, for the times without traffic. Bounded by entries and by the text that they
  hold, at the report's target for the cache.
- Buffer: a list with a cap on a batch, flushed at the system's threshold. Only the thread of the requests uses it.
- Collector: a threshold of 50,000, and the heap of the start-up frozen, unless whoever runs the service has done so.
- Monitor: one value, the resident size, from one psutil process object every 15 s, which is how often monitoring
  systems usually scrape.
"""

import gc
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import psutil
from cachetools import TTLCache
from msgspec import Struct, field
from uuid_utils import uuid4

from synthex_fast.validate.arms import (
    ACTIVE_QUERIES,
    ACTIVE_SECONDS,
    BUFFER_CAPACITY,
    CACHE_LIMIT_MB,
    FLUSH_THRESHOLD,
    RESPONSE_QUERIES,
    RESPONSE_SECONDS,
    Consensus,
    consensus,
)

QUERY_TYPES = frozenset(
    ("technical", "architectural", "optimization", "review", "research", "general", "code_review")
)
PRIORITIES = frozenset(("low", "medium", "high", "critical"))
LARGEST_BATCH = 100
CACHE_LIMIT = int(CACHE_LIMIT_MB * 1024 * 1024)
GC_THRESHOLD = 50_000
# Full collections in 3.12 freeze a few hundred objects by themselves.
FROZEN_BY_INTERPRETER = 1_000
EXPIRE_SECONDS = 60.0
SAMPLE_SECONDS = 15.0
SAMPLES_KEPT = 240  # an hour


def new_id() -> str:
    return str(uuid4())


def now() -> datetime:
    return datetime.now(UTC)


class ExpertQuery(Struct, gc=False):
    title: str
    content: str
    requester: str
    query_type: str = "general"
    priority: str = "medium"
    context: dict[str, Any] = field(default_factory=dict)
    constraints: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    deadline: datetime | None = None
    id: str = field(default_factory=new_id)
    created_at: datetime = field(default_factory=now)

    def __post_init__(self):
        if not 1 <= len(self.title) <= 200:
            raise ValueError("title must have 1 to 200 characters")
        if not 10 <= len(self.content) <= 10_000:
            raise ValueError("content must have 10 to 10,000 characters")
        if not self.requester:
            raise ValueError("requester must not be empty")
        if self.query_type not in QUERY_TYPES:
            raise ValueError(f"unknown query type {self.query_type!r}")
        if self.priority not in PRIORITIES:
            raise ValueError(f"unknown priority {self.priority!r}")
        if self.deadline is not None and self.deadline <= self.created_at:
            raise ValueError("deadline must be after creation time")
        if self.tags:
            self.tags = list({tag.lower().strip() for tag in self.tags if tag.strip()})


class ExpertResponse(Struct, gc=False):
    query_id: str
    expert_id: str
    content: str = ""
    confidence: float = 0.0
    reasoning: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    timestamp: datetime = field(default_factory=now)

    def __post_init__(self):
        if not self.query_id:
            raise ValueError("query_id must not be empty")
        if not 0.0 <= self.confidence <= 1.0:
            raise ValueError("confidence must be from 0 to 1")


def query_bytes(query: ExpertQuery) -> int:
    return sys.getsizeof(query.content)


def responses_bytes(responses: list[ExpertResponse]) -> int:
    size = 0
    for response in responses:
        size += sys.getsizeof(response.content) + sys.getsizeof(response.reasoning)
    return size


class Cache:
    """A TTLCache for several threads, limited in entries and in bytes."""

    def __init__(self, entries, seconds, size):
        # TTLCache limits one sum. An entry counts as its share of the limit at least, so that this limits their number.
        share = CACHE_LIMIT // entries
        self._size = size
        self._entries = TTLCache(
            share * entries, seconds, timer=time.monotonic, getsizeof=lambda value: max(share, size(value))
        )
        self._lock = threading.Lock()

    def __setitem__(self, key, value):
        with self._lock:
            try:
                self._entries[key] = value
            except ValueError:
                # Larger than all of the cache: the request is served all the same.
                self._entries.pop(key, None)

    def expire(self):
        with self._lock:
            self._entries.expire()
        return EXPIRE_SECONDS

    def clear(self):
        with self._lock:
            self._entries.clear()

    def account(self):
        with self._lock:
            return sum(map(self._size, self._entries.values()))


class MemoryMonitor:
    def __init__(self):
        self._process = psutil.Process()
        self.history = deque(maxlen=SAMPLES_KEPT)

    def sample(self):
        self.history.append((time.time(), self._process.memory_info().rss))
        return SAMPLE_SECONDS


class Service:
    def __init__(self):
        self.flushed = 0
        self._made = 0
        self._active = Cache(ACTIVE_QUERIES, ACTIVE_SECONDS, query_bytes)
        self._responses = Cache(RESPONSE_QUERIES, RESPONSE_SECONDS, responses_bytes)
        self._buffer = []
        self._flush_size = int(BUFFER_CAPACITY * FLUSH_THRESHOLD)
        self._monitor = MemoryMonitor()
        self._thresholds = gc.get_threshold()
        gc.set_threshold(GC_THRESHOLD, *self._thresholds[1:])
        self._froze = gc.get_freeze_count() < FROZEN_BY_INTERPRETER
        if self._froze:
            gc.collect()
            gc.freeze()

    def handle(self, request) -> Consensus:
        query = ExpertQuery(
            request.title,
            request.content,
            request.requester,
            request.query_type,
            request.priority,
            request.context,
            request.constraints,
            request.tags,
        )
        query_id = query.id
        self._active[query_id] = query
        responses = [
            ExpertResponse(
                query_id,
                answer.expert_id,
                answer.content,
                answer.confidence,
                answer.reasoning,
                answer.metadata,
            )
            for answer in request.answers
        ]
        self._made += 1 + len(responses)
        self._add_batch(responses)
        self._responses[query_id] = responses
        return consensus(responses)

    answer = handle

    def sent(self):
        pass

    def _add_batch(self, responses):
        if len(responses) > LARGEST_BATCH:
            raise ValueError(f"a batch of {len(responses)} responses, {LARGEST_BATCH} are allowed")
        self._buffer += responses
        if len(self._buffer) >= self._flush_size:
            self.flush()

    def flush(self):
        self.flushed += len(self._buffer)
        self._buffer = []

    def expire(self):
        self.flush()
        self._active.clear()
        self._responses.clear()
        self.flushed = 0

    def tasks(self):
        return [
            (0.0, self._monitor.sample),
            (EXPIRE_SECONDS, self._active.expire),
            (EXPIRE_SECONDS, self._responses.expire),
        ]

    def sampling(self):
        return MemoryMonitor().sample

    def guard(self, memory_limit):
        pass

    def close(self):
        gc.set_threshold(*self._thresholds)
        if self._froze:
            gc.unfreeze()

    def made(self) -> tuple[int, int]:
        # Nothing is ever reused.
        return 0, self._made

    def account(self) -> int:
        return self._active.account() + self._responses.account()
