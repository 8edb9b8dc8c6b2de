"""The service with this package in its hot path, used as its documentation says and with its defaults.

- Records: `PooledExpertQuery` and `PooledExpertResponse`, by plain construction. They check the same fields
  as the current system's models, and recycle themselves, so there is no pool to acquire from and no release
  to forget.
- Caches: `TTLDict`s of the same sizes and TTLs, with the memory limit that the report asks for; here the
  account is deep.
- Buffer: `ResponseBuffer` of the same capacity; the consensus is a row of its `aggregate()`. The service
  hands the buffer over at the same threshold, after the aggregation, so that a request's own responses are
  still there for it.
- The collector stays at the interpreter's own settings, and nothing samples memory: the package's tuner
  and monitor are not part of this first version of the comparison.
"""

from synthex_fast import (
    PooledExpertQuery,
    PooledExpertResponse,
    ResponseBuffer,
    create_memory_aware_ttl_dict,
)
from synthex_fast.validate.arms import (
    ACTIVE_QUERIES,
    ACTIVE_SECONDS,
    BUFFER_CAPACITY,
    CACHE_LIMIT_MB,
    FLUSH_THRESHOLD,
    RESPONSE_QUERIES,
    RESPONSE_SECONDS,
    Consensus,
)


class Service:
    def __init__(self):
        self.flushed = 0
        self._active = create_memory_aware_ttl_dict(ACTIVE_QUERIES, ACTIVE_SECONDS, CACHE_LIMIT_MB)
        self._responses = create_memory_aware_ttl_dict(RESPONSE_QUERIES, RESPONSE_SECONDS, CACHE_LIMIT_MB)
        self._buffer = ResponseBuffer(BUFFER_CAPACITY)
        self._flush_size = int(BUFFER_CAPACITY * FLUSH_THRESHOLD)

    def handle(self, request) -> Consensus:
        query = PooledExpertQuery(
            request.title,
            request.content,
            request.requester,
            query_type=request.query_type,
            priority=request.priority,
            context=request.context,
            constraints=request.constraints,
            tags=request.tags,
        )
        query_id = query.id
        self._active[query_id] = query
        responses = [
            PooledExpertResponse(
                query_id,
                answer.expert_id,
                answer.content,
                answer.confidence,
                answer.reasoning,
                answer.metadata,
            )
            for answer in request.answers
        ]
        self._buffer.add_batch(responses)
        self._responses[query_id] = responses
        row = self._buffer.aggregate()[query_id]
        if len(self._buffer) >= self._flush_size:
            self.flush()
        return Consensus(row.count, row.mean, row.variance, row.consensus)

    def expire(self):
        self.flush()
        self._active.clear()
        self._responses.clear()
        self.flushed = 0

    def tasks(self):
        return []

    def flush(self):
        self.flushed += len(self._buffer.flush())

    def made(self) -> tuple[int, int]:
        records = PooledExpertQuery.stats(), PooledExpertResponse.stats()
        return sum(record["reused"] for record in records), sum(record["created"] for record in records)

    def account(self) -> int:
        return self._active.nbytes + self._responses.nbytes
