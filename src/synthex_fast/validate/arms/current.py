"""The service as it runs today.

Where the shape comes from: sections 1 to 5 of the report, and the system it reports on where the report is
silent.

- Records: pydantic models with validated fields and a ``uuid4`` each (section 1). Times are timezone-aware,
  where the system uses the deprecated ``datetime.utcnow()``; the two cost the same.
- Caches (section 2A): ``OrderedDict`` in least-recently-used order under an ``RLock``, a dataclass entry per
  value that carries its own times, TTL and size, statistics, and a size from a shallow ``sys.getsizeof``. The
  system wraps this class in another that only passes calls on; that layer is left out here.
- Clean-up (sections 2A and 4A): a scan of every entry, every 300 s for queries and every 600 s for responses.
- Buffer (section 2B): a list without a limit on a batch, flushed when it reaches 800 responses.
- Collector (section 3A): ``gc.set_threshold(700, 10, 10)``.
- Monitor (section 5): a thread that asks psutil every second for seven metrics and keeps an hour of samples.
"""

import gc
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4

import psutil
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from synthex_fast.validate.arms import (
    ACTIVE_QUERIES,
    ACTIVE_SECONDS,
    BUFFER_CAPACITY,
    FLUSH_THRESHOLD,
    RESPONSE_QUERIES,
    RESPONSE_SECONDS,
    Consensus,
    consensus,
)


class QueryType(StrEnum):
    TECHNICAL = "technical"
    ARCHITECTURAL = "architectural"
    OPTIMIZATION = "optimization"
    REVIEW = "review"
    RESEARCH = "research"
    GENERAL = "general"
    CODE_REVIEW = "code_review"


class QueryPriority(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


def new_id() -> str:
    return str(uuid4())


def now() -> datetime:
    return datetime.now(UTC)


class ExpertQuery(BaseModel):
    id: str = Field(default_factory=new_id)
    title: str = Field(min_length=1, max_length=200)
    content: str = Field(min_length=10, max_length=10_000)
    requester: str = Field(min_length=1)
    query_type: QueryType = QueryType.GENERAL
    priority: QueryPriority = QueryPriority.MEDIUM
    context: dict[str, Any] = Field(default_factory=dict)
    constraints: list[str] = Field(default_factory=list)
    created_at: datetime = Field(default_factory=now)
    deadline: datetime | None = None
    tags: list[str] = Field(default_factory=list)

    @field_validator("deadline")
    @classmethod
    def deadline_after_creation(cls, deadline: datetime | None, info: ValidationInfo) -> datetime | None:
        if deadline and "created_at" in info.data and deadline <= info.data["created_at"]:
            raise ValueError("Deadline must be after creation time")
        return deadline

    @field_validator("tags")
    @classmethod
    def tags_lower_and_unique(cls, tags: list[str]) -> list[str]:
        return list({tag.lower().strip() for tag in tags if tag.strip()})


class ExpertResponse(BaseModel):
    id: str = Field(default_factory=new_id)
    query_id: str = Field(min_length=1)
    expert_id: str
    content: str = ""
    confidence: float = Field(default=0.0, ge=0.0, le=1.0)
    reasoning: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)
    timestamp: datetime = Field(default_factory=now)


@dataclass
class CacheEntry:
    value: Any
    created_at: float = field(default_factory=time.time)
    accessed_at: float = field(default_factory=time.time)
    ttl: float | None = None
    size_bytes: int = 0

    def is_expired(self) -> bool:
        return self.ttl is not None and time.time() > self.created_at + self.ttl


@dataclass
class CacheStats:
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    expirations: int = 0
    memory_bytes: int = 0


class TTLDict:
    def __init__(self, max_size, ttl, on_evict=None):
        self._max_size = max_size
        self._ttl = ttl
        self._on_evict = on_evict
        self._entries: OrderedDict[Any, CacheEntry] = OrderedDict()
        self._lock = threading.RLock()
        self.stats = CacheStats()

    def __len__(self):
        return len(self._entries)

    def __setitem__(self, key, value):
        size = sys.getsizeof(value)
        with self._lock:
            if key in self._entries:
                self.stats.memory_bytes -= self._entries.pop(key).size_bytes
            entry = CacheEntry(value, ttl=self._ttl, size_bytes=size)
            while len(self._entries) >= self._max_size:
                self._evict_oldest()
            self._entries[key] = entry
            self.stats.memory_bytes += size

    def get(self, key, default=None):
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.stats.misses += 1
                return default
            if entry.is_expired():
                del self._entries[key]
                self._gone(key, entry)
                self.stats.expirations += 1
                self.stats.misses += 1
                return default
            self._entries.move_to_end(key)
            entry.accessed_at = time.time()
            self.stats.hits += 1
            return entry.value

    def _evict_oldest(self):
        if self._entries:
            key, entry = self._entries.popitem(last=False)
            self.stats.evictions += 1
            self._gone(key, entry)

    def _gone(self, key, entry):
        self.stats.memory_bytes -= entry.size_bytes
        if self._on_evict is not None:
            self._on_evict(key, entry.value)

    def _estimate_memory_usage(self):
        return self.stats.memory_bytes

    def clear(self):
        with self._lock:
            while self._entries:
                self._evict_oldest()

    def cleanup(self):
        with self._lock:
            expired = [key for key, entry in self._entries.items() if entry.is_expired()]
            for key in expired:
                self._gone(key, self._entries.pop(key))
            self.stats.expirations += len(expired)


class ResponseBuffer:
    def __init__(self, max_size, flush_threshold, on_flush):
        self._flush_size = int(max_size * flush_threshold)
        self._on_flush = on_flush
        self._buffer = []

    def add(self, response):
        self._buffer.append(response)
        if len(self._buffer) >= self._flush_size:
            self.flush()

    def add_batch(self, responses):
        for response in responses:
            self.add(response)

    def flush(self):
        batch, self._buffer = self._buffer, []
        self._on_flush(batch)


@dataclass
class MemorySnapshot:
    timestamp: datetime
    total_memory: int
    available_memory: int
    percent_used: float
    process_memory: int
    swap_used: int
    swap_percent: float


class MemoryMonitor:
    def __init__(self, sampling_interval=1.0, history_size=3_600):
        self._interval = sampling_interval
        self.history = deque(maxlen=history_size)

    def sample(self):
        memory = psutil.virtual_memory()
        swap = psutil.swap_memory()
        process = psutil.Process(os.getpid()).memory_info()
        self.history.append(
            MemorySnapshot(
                timestamp=now(),
                total_memory=memory.total,
                available_memory=memory.available,
                percent_used=memory.percent,
                process_memory=process.rss,
                swap_used=swap.used,
                swap_percent=swap.percent,
            )
        )
        return self._interval


class Service:
    def __init__(self):
        gc.set_threshold(700, 10, 10)
        self.flushed = 0
        self._active = TTLDict(ACTIVE_QUERIES, ACTIVE_SECONDS)
        self._responses = TTLDict(RESPONSE_QUERIES, RESPONSE_SECONDS)
        self._buffer = ResponseBuffer(BUFFER_CAPACITY, FLUSH_THRESHOLD, self._process)
        self._monitor = MemoryMonitor()

    def _process(self, batch):
        self.flushed += len(batch)

    def handle(self, request) -> Consensus:
        query = ExpertQuery(
            title=request.title,
            content=request.content,
            requester=request.requester,
            query_type=request.query_type,
            priority=request.priority,
            context=request.context,
            constraints=request.constraints,
            tags=request.tags,
        )
        self._active[query.id] = query
        responses = [
            ExpertResponse(
                query_id=query.id,
                expert_id=answer.expert_id,
                content=answer.content,
                confidence=answer.confidence,
                reasoning=answer.reasoning,
                metadata=answer.metadata,
            )
            for answer in request.answers
        ]
        self._buffer.add_batch(responses)
        self._responses[query.id] = responses
        return consensus(self._responses.get(query.id))

    answer = handle

    def sent(self):
        pass

    def expire(self):
        self.flush()
        self._active.clear()
        self._responses.clear()
        self.flushed = 0

    def tasks(self):
        return [
            (0.0, self._monitor.sample),
            (300.0, lambda: self._active.cleanup() or 300.0),
            (600.0, lambda: self._responses.cleanup() or 600.0),
        ]

    def flush(self):
        self._buffer.flush()

    def sampling(self):
        return MemoryMonitor().sample

    def guard(self, memory_limit):
        pass

    def close(self):
        pass

    def made(self) -> tuple[int, int]:
        # Every request makes one query and five responses, and nothing is ever reused.
        stats = self._active.stats
        return 0, 6 * (len(self._active) + stats.evictions + stats.expirations)

    def account(self) -> int:
        return self._active.stats.memory_bytes + self._responses.stats.memory_bytes
