# What a thread waits with that also watches the fleet's file.


cdef class Watch:
    # Held, except from `release` to the `acquire` that it ends.
    cdef void* _lock
    # Descriptors: what `release` rings, and where notices of the file arrive; -1 where none can be had.
    cdef int _bell
    cdef int _notices
    # Device and inode of the open file, of the bell and of the notices.
    cdef unsigned long long[6] _identity
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
    # Whether what it last looked at has changed.
    cdef readonly bint changed

    cdef void _begin_notices(self) noexcept
    cdef void _end_notices(self) noexcept
    cdef bint _is_open(self) noexcept nogil
    cdef bint _listen(self, long long left, const char* seen, Py_ssize_t size) noexcept nogil
    cdef bint _is_as_before(self, const char* seen, Py_ssize_t size) noexcept nogil
