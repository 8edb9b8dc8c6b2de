"""A slab of responses (columns, the responses, two code tables: one block of memory) and the buffer on it."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from cpython.object cimport PyObject

from synthex_fast._sync cimport Lock


cdef struct CodeEntry:
    uint32_t hash             # the low bits of the id's hash
    int32_t code              # the code plus one; 0: the entry is free


cdef struct CodeTable:
    PyObject** ids            # code -> id, a plain str; the table holds one reference to each
    CodeEntry* entries        # id -> code: open addressing, linear probing
    size_t mask               # entries - 1, a power of two less one
    int32_t used              # codes given out: 0 to used - 1, in the order of first use
    int32_t last              # the code looked up last


cdef struct Slab:
    Py_ssize_t borrowers      # the buffer, while it fills this slab, and each view of it
    Py_ssize_t capacity       # rows
    Py_ssize_t nbytes         # this struct and all that the pointers below point to: one block
    double* confidence
    double* timestamp         # seconds since the epoch, UTC
    int32_t* query
    int32_t* expert
    PyObject** responses      # owned by the buffer that fills the slab
    CodeTable queries
    CodeTable experts


cdef struct Fill:
    Slab* slab
    Slab* spare               # made ahead where removing rows would need one, so that removing can't fail
    Py_ssize_t count          # rows in use
    Py_ssize_t room           # rows that additions may fill: all that the slab has, none while paused
    PyObject* gate            # a strong reference to the Gate while paused, otherwise NULL


cdef struct Row:
    PyObject* response        # this and the ids: strong references
    PyObject* query
    PyObject* expert
    double confidence
    double timestamp


cdef Slab* slab_new(Py_ssize_t capacity) except NULL
cdef void slab_release(Slab* self) noexcept
cdef int32_t code_find(const CodeTable* self, PyObject* id) noexcept    # -1: none
cdef int32_t code_seek(CodeTable* self, PyObject* id) noexcept


cdef inline int32_t code_of(CodeTable* self, PyObject* id) noexcept:
    """The code of a plain str, a new one if need be; the caller has seen to the room.

    Responses come in runs (one query, then the experts in their usual order), so the code of the last call
    and the one after it are tried first.
    """
    cdef int32_t code = self.last
    if self.ids[code] == id:
        return code
    code += 1
    if code >= self.used:
        code = 0
    if self.ids[code] == id:
        self.last = code
        return code
    return code_seek(self, id)


cdef class SlabView:
    cdef Slab* slab           # borrowed from the buffer: as long as one view lives, its rows stay as they are
    cdef Py_ssize_t rows
    cdef int32_t queries
    cdef int32_t experts


cdef class Columns:
    cdef SlabView view
    cdef readonly object confidence
    cdef readonly object timestamp
    cdef readonly object query
    cdef readonly object expert


cdef class AggregateRow:
    cdef readonly Py_ssize_t count
    cdef readonly double mean
    cdef readonly double variance
    cdef readonly frozenset experts


cdef class Aggregate:
    cdef void* block          # the arrays below
    cdef double* mean
    cdef double* variance
    cdef Py_ssize_t* start    # the responses to query q are start[q] to start[q + 1] of `expert`
    cdef int32_t* expert
    cdef CodeTable queries
    cdef CodeTable experts    # ids only

    cdef AggregateRow row(self, int32_t query)
    cdef int32_t find(self, key) except -2


cdef enum Stored:
    STORED
    NO_ROOM
    PAUSED


cdef class Gate:
    cdef object shut          # a lock, held from pause to resume
    cdef object ask           # what says how long to wait, or None
    cdef double seconds       # how long to wait: 0 not at all, infinity until resumed


cdef class ResponseBuffer:
    cdef object __weakref__
    cdef Lock guard           # of everything below that changes
    cdef Fill fill
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t max_batch
    cdef readonly Py_ssize_t nbytes         # of the buffer and a slab; what the responses hold is not counted
    cdef readonly double flush_threshold
    cdef readonly object on_flush
    cdef Py_ssize_t flush_at  # rows from which an addition flushes; past any count without a handler
    cdef bint flushing        # some thread is between taking the first rows and removing them
    cdef unsigned long flusher      # which
    cdef uint32_t generation        # and the process it runs in, counted in forks
    cdef int64_t added
    cdef int64_t batches
    cdef int64_t flushed
    cdef int64_t flushes
    cdef int64_t failed
    cdef int64_t rejected
    cdef int64_t waited
    cdef Py_ssize_t high_water

    cdef Stored store(self, Row* rows, Py_ssize_t n) noexcept
    cdef bint fits(self, Py_ssize_t n) noexcept
    cdef void stored(self, Py_ssize_t n) noexcept
    cdef Py_ssize_t store_items(self, PyObject** items, Py_ssize_t n) noexcept
    cdef int make_room(self, Py_ssize_t n) except -1
    cdef int pass_gate(self, Py_ssize_t n, double* since) except -1
    cdef bint flushes_here(self) noexcept
    cdef object full(self, Py_ssize_t n)
    cdef object paused_error(self, str why)
    cdef object too_large(self, str n)
    cdef int add_rows(self, PyObject** items, Py_ssize_t n, bint single) except -1
    cdef list collect(self, object iterable)
    cdef Py_ssize_t begin(self) noexcept
    cdef list empty(self, bint wanted, Py_ssize_t* freed=*)
    cdef bint needs_spare(self) noexcept
    cdef int prepare(self) except -1
    cdef SlabView borrow(self)
