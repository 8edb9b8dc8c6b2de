"""Field layout of the pooled records: what Cython code that cimports them may read without a Python call."""


cdef class PooledExpertQuery:
    cdef object __weakref__
    cdef str title
    cdef str content
    cdef str requester
    cdef object _id             # str, or None until first read
    cdef object _created_at     # datetime, or None until first read
    cdef double created         # seconds since the epoch, UTC
    cdef object _deadline
    cdef object _context        # dict, or None until first touched
    cdef object _constraints    # list, or None until first touched
    cdef object _tags           # list, or None until first touched
    cdef unsigned char query_type_code
    cdef unsigned char priority_code


cdef class PooledExpertResponse:
    cdef object __weakref__
    cdef str query_id
    cdef str expert_id
    cdef str content
    cdef str reasoning
    cdef object _metadata       # dict, or None until first touched
    cdef object _id             # str, or None until first read
    cdef object _timestamp      # datetime, or None until first read
    cdef double seconds         # the timestamp: seconds since the epoch, UTC
    cdef double confidence      # in [0, 1]
