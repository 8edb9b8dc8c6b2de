"""Field layout of the pooled records, for Cython code that cimports them to read without a Python call.

The text fields are always set and never None; on the free-threaded build read them in a critical section of the
record. Fields with a leading underscore are private: they may be NULL, which Cython code must not read as an object.
Both types start with the same fields, down to ``_moment``, so that one set of functions serves both.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t


cdef class PooledExpertQuery:
    cdef object __weakref__
    cdef double seconds         # time of construction: seconds since the epoch, UTC, in whole microseconds
    cdef uint64_t _serial       # what the id is made from when it is first read
    cdef unsigned char state    # which containers are live, and which of them Python code has seen
    cdef unsigned char query_type_code
    cdef unsigned char priority_code
    cdef object _id             # str, or NULL until first read
    cdef object _moment         # `seconds` as a datetime, or NULL until first read
    cdef str title
    cdef str content
    cdef str requester
    cdef object _deadline       # datetime, or NULL if there is no deadline
    cdef object _context        # dict, idle until first used, or NULL
    cdef object _constraints    # list, likewise
    cdef object _tags           # list, likewise


cdef class PooledExpertResponse:
    cdef object __weakref__
    cdef double seconds         # time of construction: seconds since the epoch, UTC, in whole microseconds
    cdef uint64_t _serial       # what the id is made from when it is first read
    cdef unsigned char state    # whether the metadata dict is live, and whether Python code has seen it
    cdef object _id             # str, or NULL until first read
    cdef object _moment         # `seconds` as a datetime, or NULL until first read
    cdef str query_id
    cdef str expert_id
    cdef str content
    cdef str reasoning
    cdef object _metadata       # dict, idle until first used, or NULL
    cdef double confidence      # in [0, 1]
