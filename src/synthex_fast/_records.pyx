"""Pooled records of the report's requests and answers."""

from synthex_fast._clock cimport wall_clock


cdef class PooledExpertQuery:
    """A question put to the experts."""

    def __init__(self, str title, str content, str requester):
        self.title = title
        self.content = content
        self.requester = requester
        self.created = wall_clock()


cdef class PooledExpertResponse:
    """An expert's answer."""

    def __init__(self, str query_id, str expert_id, str content="", double confidence=0.0, str reasoning=""):
        self.query_id = query_id
        self.expert_id = expert_id
        self.content = content
        self.confidence = confidence
        self.reasoning = reasoning
        self.seconds = wall_clock()
