"""TTLDict's fields, and the calls that other Cython code may make on it without a Python call."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cpython.object cimport PyObject

from synthex_fast._sync cimport Mutex
from synthex_fast._table cimport Table


cdef enum Reason:
    EXPIRED = 0
    IDLE = 1
    FULL = 2
    MEMORY = 3


cdef enum Presence:
    REPLACE = 0               # store: the new value wins
    KEEP = 1                  # store: a value that is there stays


cdef struct Stripe:
    # A reader takes one stripe's lock, a writer all of them: readers in different threads share no cache line.
    Mutex lock
    int64_t hits
    int64_t misses
    char padding[104]


cdef class TTLDict:
    cdef object __weakref__
    cdef Table table
    cdef Stripe* stripes
    cdef void* stripes_block
    cdef unsigned int generation  # of forks; see _sync.pxd
    cdef double ttl_seconds       # infinity: entries live until evicted
    cdef uint64_t most_bytes      # all bits set: no limit
    cdef Py_ssize_t most_entries  # as given; 0: no limit
    cdef uint32_t changes         # insertions and deletions by the user, which end an iteration
    cdef int64_t sets
    cdef int64_t gone[4]          # entries let go, by Reason
    cdef int64_t exhausted        # sizes that the account's budget cut short
    cdef bint sweepable
    cdef bint ready
    cdef double sweep_at          # when the sweeper comes next; infinity: it does not know of this dict
    cdef double swept             # when it came last, on the precise clock
    cdef int64_t operations_then  # operations counted at that time
    cdef object size_of
    cdef object clock
    cdef object on_gone
    cdef str policy_name

    # The value, as a new reference; NULL without an error: not there.
    cdef PyObject* lookup(self, PyObject* key) except? NULL
    # Whether the key was new. `present`, if not NULL, receives a new reference to the value that is there after it.
    cdef int store(self, PyObject* key, PyObject* value, double seconds, Presence mode, PyObject** present) except -1
    # Like lookup, and the entry is gone.
    cdef PyObject* take(self, PyObject* key) except? NULL
