"""The service as the report recommends it: section 6, as it stands, on the current system.

What section 6 gives is here unchanged in substance: `ObjectPool` (6A), the models with `reset` (6B), the dict
that evicts 20 % when it is over its limit (6C), `AdaptiveMemoryMonitor` (6D). What it leaves open is filled
the way that costs this version least:

- 6B derives from the current system's models, so the factory makes them without validation: a blank title is
  not a valid one.
- How a pooled record is filled isn't shown. Here its attributes are assigned, as `reset` assigns them.
  pydantic doesn't validate assignments unless told to, and if told to refuses the ``title = ""`` of the
  report's own `reset`; so this version skips the checks that the others make, which is to its advantage.
- When a record is released isn't shown either. Here it is when its cache drops it, the first moment at
  which nothing refers to it: in an `on_evict` callback, which the system's cache has.
- 6C calls an ``_estimate_memory_usage`` that the report doesn't show; here it is the system's running
  account, which is shallow. The limit is the report's target for the cache.
- Section 6 has no new buffer, consensus or collector thresholds: those of the current system stay.
"""

import gc
import os
import threading
from collections import deque
from typing import Any

import psutil

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
from synthex_fast.validate.arms.current import (
    ExpertQuery,
    ExpertResponse,
    QueryPriority,
    QueryType,
    ResponseBuffer,
    TTLDict,
    new_id,
    now,
)
from synthex_fast.validate.arms.current import Service as CurrentService


class ObjectPool:
    def __init__(self, factory, max_size=1000):
        self._factory = factory
        self._pool = deque(maxlen=max_size)
        self._lock = threading.Lock()
        self._created = 0
        self._reused = 0
        for _ in range(min(100, max_size)):
            self._pool.append(factory())
            self._created += 1

    def acquire(self):
        with self._lock:
            if self._pool:
                self._reused += 1
                return self._pool.popleft()
            self._created += 1
            return self._factory()

    def release(self, obj):
        if hasattr(obj, "reset"):
            obj.reset()
        with self._lock:
            if len(self._pool) < self._pool.maxlen:
                self._pool.append(obj)

    @property
    def stats(self):
        return {
            "created": self._created,
            "reused": self._reused,
            "pool_size": len(self._pool),
            "reuse_rate": self._reused / max(1, self._created + self._reused),
        }


class PooledExpertQuery(ExpertQuery):
    def reset(self):
        self.id = new_id()
        self.title = ""
        self.content = ""
        self.requester = ""
        self.query_type = QueryType.GENERAL
        self.priority = QueryPriority.MEDIUM
        self.context = {}
        self.constraints = []
        self.deadline = None
        self.tags = []
        self.created_at = now()


class PooledExpertResponse(ExpertResponse):
    def reset(self):
        self.id = new_id()
        self.query_id = ""
        self.expert_id = ""
        self.content = ""
        self.confidence = 0.0
        self.reasoning = ""
        self.metadata = {}
        self.timestamp = now()


def create_memory_aware_ttl_dict(max_size, ttl, memory_limit_mb, on_evict):
    class MemoryAwareTTLDict(TTLDict):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.memory_limit_bytes = memory_limit_mb * 1024 * 1024

        def _check_memory_limit(self):
            if self._estimate_memory_usage() > self.memory_limit_bytes:
                evict_count = int(len(self) * 0.2)
                for _ in range(evict_count):
                    self._evict_oldest()

        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            self._check_memory_limit()

    return MemoryAwareTTLDict(max_size, ttl, on_evict)


class AdaptiveMemoryMonitor:
    def __init__(self):
        self._base_interval = 5.0
        self._max_interval = 60.0
        self._stability_window = 10
        self._recent_samples = deque(maxlen=self._stability_window)

    def calculate_next_interval(self, current_memory):
        self._recent_samples.append(current_memory)
        if len(self._recent_samples) < self._stability_window:
            return self._base_interval
        mean = sum(self._recent_samples) / len(self._recent_samples)
        variance = sum((x - mean) ** 2 for x in self._recent_samples) / len(self._recent_samples)
        if variance < 0.01:
            return self._max_interval
        if variance < 0.05:
            return 30.0
        if variance < 0.1:
            return 15.0
        return self._base_interval

    def sample(self):
        # The report gives its variances no unit; megabytes are what the system's monitor counts in.
        return self.calculate_next_interval(psutil.Process(os.getpid()).memory_info().rss / 1024 / 1024)


def blank_query() -> PooledExpertQuery:
    query = PooledExpertQuery.model_construct()
    query.reset()
    return query


def blank_response() -> PooledExpertResponse:
    response = PooledExpertResponse.model_construct()
    response.reset()
    return response


class Service(CurrentService):
    """What section 6 does not replace stays as the current system has it."""

    def __init__(self):
        gc.set_threshold(700, 10, 10)
        self.flushed = 0
        self._query_pool = ObjectPool(blank_query)
        self._response_pool = ObjectPool(blank_response)
        self._active = create_memory_aware_ttl_dict(
            ACTIVE_QUERIES, ACTIVE_SECONDS, CACHE_LIMIT_MB, self._query_gone
        )
        self._responses = create_memory_aware_ttl_dict(
            RESPONSE_QUERIES, RESPONSE_SECONDS, CACHE_LIMIT_MB, self._responses_gone
        )
        self._buffer = ResponseBuffer(BUFFER_CAPACITY, FLUSH_THRESHOLD, self._process)
        self._monitor = AdaptiveMemoryMonitor()

    def _query_gone(self, _id: str, query: PooledExpertQuery) -> None:
        self._query_pool.release(query)

    def _responses_gone(self, _id: str, responses: list[Any]) -> None:
        for response in responses:
            self._response_pool.release(response)

    def handle(self, request) -> Consensus:
        query = self._query_pool.acquire()
        query.title = request.title
        query.content = request.content
        query.requester = request.requester
        query.query_type = QueryType(request.query_type)
        query.priority = QueryPriority(request.priority)
        query.context = dict(request.context)
        query.constraints = list(request.constraints)
        query.tags = list({tag.lower().strip() for tag in request.tags if tag.strip()})
        self._active[query.id] = query
        responses = []
        for answer in request.answers:
            response = self._response_pool.acquire()
            response.query_id = query.id
            response.expert_id = answer.expert_id
            response.content = answer.content
            response.confidence = answer.confidence
            response.reasoning = answer.reasoning
            response.metadata = dict(answer.metadata)
            responses.append(response)
        self._buffer.add_batch(responses)
        self._responses[query.id] = responses
        return consensus(self._responses.get(query.id))

    answer = handle

    def sampling(self):
        return AdaptiveMemoryMonitor().sample

    def made(self) -> tuple[int, int]:
        pools = self._query_pool.stats, self._response_pool.stats
        return sum(pool["reused"] for pool in pools), sum(pool["created"] for pool in pools)
