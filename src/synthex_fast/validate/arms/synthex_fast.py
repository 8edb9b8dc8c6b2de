"""The service with this package in its hot path, used as its documentation says and with its defaults.

- Records: `PooledExpertQuery` and `PooledExpertResponse`, by plain construction. They check the same fields
  as the current system's models, and recycle themselves, so there is no pool to acquire from and no release
  to forget. Their identifiers are made when they are first read, and nothing here reads an answer's.
- Caches: `TTLDict`s of the same sizes and TTLs, with the memory limit that the report asks for; here the
  account is deep.
- Buffer: `ResponseBuffer` of the same capacity, which also gives the consensus. The service empties it at
  the same threshold, but after it has read the consensus, while a request's own responses are still in it.
- Garbage collector: a `GCTuner`, to which a request lasts until its response has gone out. It freezes nothing
  here, since the harness has frozen what is its own in every arm.
- Monitor: an `AdaptiveMemoryMonitor`, sampled as the other versions' are.
- At a memory limit (`guard`): a `MemoryGovernor` with all of these registered. The caches' own limits are then those
  of the container, which the governor shares out.
"""

from synthex_fast import (
    AdaptiveMemoryMonitor,
    GCTuner,
    MemoryGovernor,
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


def _sample(monitor: AdaptiveMemoryMonitor) -> float:
    return monitor.calculate_next_interval(monitor.sample().rss)


class Service:
    def __init__(self):
        self.flushed = 0
        self._active = create_memory_aware_ttl_dict(ACTIVE_QUERIES, ACTIVE_SECONDS, CACHE_LIMIT_MB)
        self._responses = create_memory_aware_ttl_dict(RESPONSE_QUERIES, RESPONSE_SECONDS, CACHE_LIMIT_MB)
        self._buffer = ResponseBuffer(BUFFER_CAPACITY)
        self._flush_size = int(BUFFER_CAPACITY * FLUSH_THRESHOLD)
        self._monitor = AdaptiveMemoryMonitor()
        self._governor = None
        self._tuner = GCTuner()
        self._tuner.start()
        self._request = self._tuner.request()

    def handle(self, request) -> Consensus:
        try:
            return self.answer(request)
        finally:
            self.sent()

    def sent(self):
        self._request.__exit__(None, None, None)

    def answer(self, request) -> Consensus:
        self._request.__enter__()
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
        # Not a comprehension, which makes a function for each request before Python 3.12.
        responses = []
        for answer in request.answers:
            responses.append(
                PooledExpertResponse(
                    query_id,
                    answer.expert_id,
                    answer.content,
                    answer.confidence,
                    answer.reasoning,
                    answer.metadata,
                )
            )
        self._buffer.add_batch(responses)
        self._responses[query_id] = responses
        row = self._buffer.consensus(query_id)
        if len(self._buffer) >= self._flush_size:
            self.flush()
        return Consensus(row.count, row.mean, row.variance, row.consensus)

    def expire(self):
        self.flush()
        self._active.clear()
        self._responses.clear()
        self.flushed = 0

    def tasks(self):
        return [(0.0, lambda: _sample(self._monitor))]

    def sampling(self):
        now = 0.0
        monitor = AdaptiveMemoryMonitor(clock=lambda: now)

        def sample():
            nonlocal now
            seconds = _sample(monitor)
            now += seconds
            return seconds

        return sample

    def guard(self, memory_limit):
        # The caches may have all of it, as far as the governor finds room.
        self._active.resize(memory_limit=memory_limit)
        self._responses.resize(memory_limit=memory_limit)
        self._governor = MemoryGovernor(memory_limit)
        for name in ("active", "responses", "buffer", "tuner", "monitor"):
            self._governor.register(getattr(self, f"_{name}"), name=name)
        self._governor.start()

    def close(self):
        if self._governor is not None:
            self._governor.stop()
        self._tuner.stop()

    def flush(self):
        self.flushed += len(self._buffer.flush())

    def made(self) -> tuple[int, int]:
        records = PooledExpertQuery.stats, PooledExpertResponse.stats
        return sum(record["reused"] for record in records), sum(record["created"] for record in records)

    def account(self) -> int:
        return self._active.nbytes + self._responses.nbytes
