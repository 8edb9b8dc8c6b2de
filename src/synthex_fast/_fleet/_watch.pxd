# What a thread waits with that also watches the fleet's file.


cdef class Watch:
    # Held, except from `release` to the `acquire` that it ends.
    cdef void* _lock
    # The open file, kept alive with its descriptor, and the bytes that it had, from `_start` on.
    cdef object _file
    cdef int _fd
    cdef bytes _seen
    cdef long long _start
    # Bytes of it that living siblings have locked.
    cdef long long[64] _places
    cdef Py_ssize_t _count
    # Microseconds between two looks; below 0 if it does not look.
    cdef long long _period

    cdef bint _is_as_before(self, const char* seen, Py_ssize_t size) noexcept nogil
