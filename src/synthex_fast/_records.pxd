"""Field layout of the pooled records: what Cython code that cimports them may read without a Python call.

The texts are always there and never None; on the free-threaded build read them under a critical section of the
record. Fields with a leading underscore are private: they may be NULL, which Cython code must not read as an object.
Both types begin alike, down to ``_moment``, so that one set of functions serves both.
"""

from cpython.object cimport PyObject


cdef class PooledExpertQuery:
    cdef object __weakref__
    cdef double seconds         # when it was made: seconds since the epoch, UTC, a whole number of microseconds
    cdef unsigned char state    # which containers hold contents, and which of them Python code has seen
    cdef unsigned char query_type_code
    cdef unsigned char priority_code
    cdef object _id             # str, or NULL until first read
    cdef object _moment         # the time as a datetime, or NULL until first read
    cdef str title
    cdef str content
    cdef str requester
    cdef object _deadline       # datetime, or NULL where there is none
    cdef object _context        # dict, an idle one until first touched, or NULL
    cdef object _constraints    # list, likewise
    cdef object _tags           # list, likewise


cdef class PooledExpertResponse:
    cdef object __weakref__
    cdef double seconds         # when it was made: seconds since the epoch, UTC, a whole number of microseconds
    cdef unsigned char state    # whether the metadata hold contents, and whether Python code has seen them
    cdef object _id             # str, or NULL until first read
    cdef object _moment         # the time as a datetime, or NULL until first read
    cdef str query_id
    cdef str expert_id
    cdef str content
    cdef str reasoning
    cdef object _metadata       # dict, an idle one until first touched, or NULL
    cdef double confidence      # in [0, 1]
