"""The slab (a table of responses in one block of memory) and the buffer that fills it."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from cpython.object cimport PyObject

from synthex_fast._codes cimport CodeEntry, CodeTable, code_find, code_of, code_seek
from synthex_fast._consensus cimport Aggregate, AggregateRow, Answers, Tally
from synthex_fast._sync cimport Lock


cdef struct Slab:
    Answers answers           # first, so that freeing the answers frees the slab
    Py_ssize_t capacity       # rows
    Py_ssize_t nbytes         # size of the whole block: this struct and everything its pointers refer to
    double* confidence
    double* timestamp         # seconds since the epoch, UTC
    int32_t* query
    PyObject** responses      # owned by the buffer that fills the slab


cdef struct Fill:
    Slab* slab
    Slab* spare               # allocated ahead if removing rows will need one, so that removing them cannot fail
    Py_ssize_t count          # rows in use
    Py_ssize_t room           # rows that additions may fill: the slab's capacity, or 0 while paused
    PyObject* gate            # a strong reference to the Gate while paused, otherwise NULL


cdef struct Row:
    PyObject* response        # this and the ids: strong references
    PyObject* query
    PyObject* expert
    double confidence
    double timestamp


cdef Slab* slab_new(Py_ssize_t capacity) except NULL
cdef void slab_release(Slab* self) noexcept


cdef class SlabView:
    cdef Slab* slab           # held: while a view exists, the rows it shows do not change
    cdef Py_ssize_t rows
    cdef int32_t queries
    cdef int32_t experts


cdef class Columns:
    cdef SlabView view
    cdef readonly object confidence
    cdef readonly object timestamp
    cdef readonly object query
    cdef readonly object expert


cdef enum Stored:
    STORED
    NO_ROOM
    PAUSED


cdef class Gate:
    cdef object shut          # a lock, held from pause to resume
    cdef object ask           # callable that returns how long to wait, or None
    cdef double seconds       # how long to wait: 0 not at all, infinity until resumed


cdef class ResponseBuffer:
    cdef object __weakref__
    cdef Lock guard           # guards everything below that changes
    cdef Fill fill
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t max_batch
    cdef readonly Py_ssize_t nbytes         # of the buffer and one slab, without what the responses hold
    cdef readonly double flush_threshold
    cdef readonly object on_flush
    cdef Py_ssize_t flush_at  # an addition that reaches this many rows flushes; out of reach without a handler
    cdef bint flushing        # between choosing the rows to flush and removing them
    cdef uint64_t ticket            # how many flushes have begun: tells a flush whether it is the running one
    cdef unsigned long flusher      # the thread that runs it, or 0 if an awaited handler does
    cdef uint32_t generation        # and the process it runs in, as a number of forks
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
    cdef void count_added(self, Py_ssize_t n) noexcept
    cdef bint store_item(self, PyObject* item) noexcept
    cdef Py_ssize_t store_items(self, PyObject** items, Py_ssize_t n) noexcept
    cdef int make_room(self, Py_ssize_t n) except -1
    cdef int wait_at_gate(self, Py_ssize_t n, double* since) except -1
    cdef bint flushes_here(self) noexcept
    cdef object full_error(self, Py_ssize_t n)
    cdef object paused_error(self, str why)
    cdef object too_large_error(self, str n)
    cdef int add_rows(self, PyObject** items, Py_ssize_t n, bint single) except -1
    cdef list collect(self, object iterable)
    cdef Py_ssize_t begin_flush(self, unsigned long flusher) noexcept
    cdef int prepare_flush(self) except -1
    cdef tuple responses_of(self, Py_ssize_t rows)
    cdef void abandon_flush(self) noexcept
    cdef void finish_flush(self, Py_ssize_t rows, tuple kept, list result) noexcept
    cdef list flush_rows(self, bint wanted, Py_ssize_t* freed=*)
    cdef bint needs_spare(self) noexcept
    cdef int prepare_spare(self) except -1
    cdef SlabView borrow(self)
