"""The local tier of `synthex_fast.tiered`: what a lookup needs to know before it may answer from memory."""

from libc.stdint cimport int64_t, uint32_t

from synthex_fast._ttl cimport TTLDict


cdef class Copies:
    cdef object __weakref__
    cdef readonly TTLDict local   # the copies
    cdef double until             # when they stop being usable (time.monotonic); infinity: the connection is up
    cdef uint32_t generation      # `forks_seen` of the process that has the connection
    cdef int64_t stale_hits


cdef class LocalTier(Copies):
    pass


cdef class AsyncLocalTier(Copies):
    pass
