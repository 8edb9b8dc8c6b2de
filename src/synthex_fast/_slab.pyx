"""`ResponseBuffer`: a fixed-size buffer of responses whose columns numpy reads without a copy.

**Memory.** All memory is claimed at construction, as one block: the slab. Adding a response writes one value into each
column, takes one reference to the response, and updates the running figures of its query. Ids are stored as codes
(`synthex_fast._codes`); the figures and the objects that show them are in `synthex_fast._consensus`.

**Ownership.** The buffer owns a reference to each response; the code tables own the ids. The slab is held by its
buffer, by each view of its columns and by each reader of its figures, and is freed by the last holder. While a view
exists, the rows it shows never change: additions only write behind them, and a flush leaves the slab to its views and
continues in a fresh one. Without views it continues in the same one. The free-threaded build takes a fresh one each
time.

**Flushing.** The rows to flush are chosen first, then everything that may fail is done (allocating the result and a
spare slab, running the handler), and the rows are removed last, which cannot fail. Additions made until then go behind
the chosen rows and are moved to the front when those are removed, with new codes and new figures. One flush runs at a
time. A flush that was begun by a thread that a fork left behind never ends and is ignored, and so is one whose
handler was being awaited at a fork: it belongs to the parent's event loop.

**Locking.** `guard` protects every field that changes. It does not exist on the standard build, where the interpreter's
lock has the same effect: the sections between `lock` and `unlock` run no Python code. Nothing in such a section may
allocate, release a reference or block.
"""

cimport cython
from cpython.list cimport PyList_GetSlice, PyList_New
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_New
from libc.math cimport INFINITY, ceil
from libc.stdint cimport INT32_MAX, int32_t
from libc.string cimport memmove, memset

from synthex_fast._arguments cimport check_callable, check_text, real, refuse_awaitable, share, size
from synthex_fast._codes cimport (
    CodeEntry,
    code_find,
    code_of,
    entries_for,
    next_code_of,
    table_drop_ids,
    table_ids,
    table_recode,
    table_wipe,
)
from synthex_fast._consensus cimport (
    Aggregate,
    AggregateRow,
    Answers,
    Tally,
    answers_detach_readers,
    answers_hold,
    answers_release,
    tally_rows,
)
from synthex_fast._forks cimport forks_seen, surviving_thread
from synthex_fast._python cimport (
    PY_SSIZE_T_MAX,
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyErr_CheckSignals,
    PyErr_Fetch,
    PyErr_Restore,
    PyFloat_AS_DOUBLE,
    PyFloat_CheckExact,
    PyFrozenSet_New,
    PyList_CheckExact,
    PyList_SET_ITEM,
    PyObject_ClearWeakRefs,
    PyObject_GC_UnTrack,
    PyObject_TypeCheck,
    PySequence_Fast_GET_SIZE,
    PySequence_Fast_ITEMS,
    PyThread_get_thread_ident,
    PyTuple_CheckExact,
    PyTuple_SET_ITEM,
    PyTypeObject,
    PyUnicode_FromObject,
    Py_DECREF,
    Py_INCREF,
    Py_TYPE,
    Py_XDECREF,
    destructor,
    inquiry,
    is_plain_text,
    same_text,
    traverseproc,
    visitproc,
)
from synthex_fast._record cimport clock_in, clock_offset, field_offset, slot_at
from synthex_fast._sync cimport (
    FREE_THREADED, likely, load_flag, load_pointer, load_ssize, lock, store_flag, store_pointer, store_ssize,
    uniquely_referenced, unlikely, unlock,
)

import _thread
from _collections_abc import ItemsView, KeysView, Mapping, ValuesView
from time import monotonic

from synthex_fast.errors import (
    ArgumentTypeError,
    BatchTooLargeError,
    BufferFullError,
    BufferPausedError,
    type_error,
    value_error,
)
from synthex_fast.experts import PooledExpertResponse

__all__ = ["Aggregate", "AggregateRow", "Columns", "ResponseBuffer"]

# A cimported class does not become an attribute of this module by itself, but users import these from here.
globals().update(Aggregate=Aggregate, AggregateRow=AggregateRow)


cdef extern from *:
    """
    static inline Py_ssize_t synthex_text_nbytes(PyObject *o) {
        Py_ssize_t text = (PyUnicode_GET_LENGTH(o) + 1) * (Py_ssize_t)PyUnicode_KIND(o);
        Py_ssize_t head = PyUnicode_IS_ASCII(o) ? sizeof(PyASCIIObject) : sizeof(PyCompactUnicodeObject);
        return head + text;
    }
    """
    Py_ssize_t text_nbytes "synthex_text_nbytes"(PyObject*) noexcept nogil


# Batches up to this size are read on the C stack.
cdef enum:
    STAGED = 32


# The slab ---------------------------------------------------------------------------------------------------

cdef double NO_ROWS                    # what the columns of a buffer without memory point at
cdef CodeEntry NO_ENTRY                # its code tables: one free entry
cdef Slab NOTHING                      # what a buffer fills before __init__: room for nothing
NOTHING.confidence = NOTHING.timestamp = &NO_ROWS
NOTHING.query = NOTHING.answers.expert = <int32_t*>&NO_ROWS
NOTHING.answers.queries.entries = NOTHING.answers.experts.entries = &NO_ENTRY


cdef Slab* slab_new(Py_ssize_t capacity) except NULL:
    """A slab for `capacity` rows and as many distinct ids in each code table, or MemoryError.

    The memory arrives zeroed, and large blocks come from the system page by page as they are touched.
    """
    cdef size_t rows = <size_t>capacity
    cdef size_t entries
    cdef size_t nbytes
    cdef char* at
    cdef Slab* self
    # A row takes at most 132 bytes, its share of the code tables included.
    if capacity > (PY_SSIZE_T_MAX - 4096) // 256:
        raise MemoryError()
    entries = entries_for(rows)
    nbytes = (
        sizeof(Slab)
        + rows * (2 * sizeof(double) + 3 * sizeof(int32_t) + 3 * sizeof(PyObject*) + sizeof(Tally))
        + 2 * entries * sizeof(CodeEntry)
    )
    self = <Slab*>PyMem_RawCalloc(1, nbytes)
    if self == NULL:
        raise MemoryError()
    self.answers.holders = 1
    self.capacity = capacity
    self.nbytes = <Py_ssize_t>nbytes
    at = <char*>self + sizeof(Slab)
    # The columns come first and next to each other: `SlabView` exports them as one buffer.
    self.confidence = <double*>at
    self.timestamp = self.confidence + rows
    self.query = <int32_t*>(self.timestamp + rows)
    self.answers.expert = self.query + rows
    self.responses = <PyObject**>(self.answers.expert + rows)
    self.answers.queries.ids = self.responses + rows
    self.answers.experts.ids = self.answers.queries.ids + rows
    self.answers.tallies = <Tally*>(self.answers.experts.ids + rows)
    self.answers.queries.entries = <CodeEntry*>(self.answers.tallies + rows)
    self.answers.experts.entries = self.answers.queries.entries + entries
    self.answers.queries.mask = self.answers.experts.mask = entries - 1
    self.answers.previous = <int32_t*>(self.answers.experts.entries + entries)
    return self


cdef inline PyObject* open_gate(Fill* fill) noexcept:
    """End the pause. Returns the gate with its reference, or NULL if not paused. The caller holds the lock."""
    cdef PyObject* gate = fill.gate
    store_pointer(<void**>&fill.gate, NULL)
    store_ssize(&fill.room, fill.slab.capacity)
    return gate


cdef void slab_release(Slab* self) noexcept:
    """Drop one hold on the slab; dropping the last one frees it. The buffer releases the responses."""
    if self != NULL and self != &NOTHING:
        answers_release(&self.answers)


cdef inline bint slab_is_shared(Slab* self) noexcept:
    return answers_hold(&self.answers, 0) > 1


cdef void slab_move_rows(Slab* to, const Slab* self, Py_ssize_t first, Py_ssize_t rows) noexcept:
    """Copy rows to the front of `to`, which may be the same slab, with codes and references as they are."""
    memmove(to.confidence, self.confidence + first, <size_t>rows * sizeof(double))
    memmove(to.timestamp, self.timestamp + first, <size_t>rows * sizeof(double))
    memmove(to.query, self.query + first, <size_t>rows * sizeof(int32_t))
    memmove(to.answers.expert, self.answers.expert + first, <size_t>rows * sizeof(int32_t))
    memmove(to.responses, self.responses + first, <size_t>rows * sizeof(PyObject*))


cdef void slab_keep(Slab* self, Py_ssize_t first, Py_ssize_t rows) noexcept:
    """Keep only `rows` rows from `first` on, moved to the front. Releases ids, so it must not run under a real lock."""
    cdef Answers* answers = &self.answers
    cdef Py_ssize_t row
    table_wipe(&answers.queries)
    table_wipe(&answers.experts)
    memset(answers.tallies, 0, <size_t>answers.queries.used * sizeof(Tally))
    if rows == 0:
        table_drop_ids(&answers.queries, 0)
        table_drop_ids(&answers.experts, 0)
        return
    slab_move_rows(self, self, first, rows)
    table_recode(&answers.queries, self.query, rows)
    table_recode(&answers.experts, answers.expert, rows)
    for row in range(rows):
        tally_rows(answers, self.query[row], self.confidence, row, row + 1)


cdef void slab_copy(Slab* to, const Slab* self, Py_ssize_t first, Py_ssize_t rows) noexcept:
    """Copy `rows` rows from `first` on into the fresh slab `to`. This slab does not change."""
    cdef Py_ssize_t row
    slab_move_rows(to, self, first, rows)
    for row in range(rows):
        to.query[row] = code_of(&to.answers.queries, self.answers.queries.ids[to.query[row]])
        to.answers.expert[row] = code_of(&to.answers.experts, self.answers.experts.ids[to.answers.expert[row]])
        tally_rows(&to.answers, to.query[row], to.confidence, row, row + 1)


cdef inline void slab_write(
    Slab* self,
    Py_ssize_t row,
    PyObject* response,
    PyObject* query,
    PyObject* expert,
    double confidence,
    double timestamp,
) noexcept:
    cdef int32_t code = code_of(&self.answers.queries, query)
    self.confidence[row] = confidence
    self.timestamp[row] = timestamp
    self.query[row] = code
    self.answers.expert[row] = code_of(&self.answers.experts, expert)
    self.responses[row] = response
    tally_rows(&self.answers, code, self.confidence, row, row + 1)


cdef char* BYTE = b"B"                 # the struct module's name for it


@cython.final
@cython.no_gc              # it refers to str objects only, which refer to nothing
cdef class SlabView:
    """The memory under a numpy column: read-only, and valid and unchanged for as long as the view exists."""

    def __dealloc__(self):
        slab_release(self.slab)

    def __reduce__(self):
        raise ArgumentTypeError("a view of a buffer can't be pickled or copied; the numpy columns can")

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE == PyBUF_WRITABLE:
            raise BufferError("the columns of a ResponseBuffer are read-only")
        if self.slab == NULL:
            raise BufferError("this view was not made by a ResponseBuffer")
        buffer.buf = self.slab.confidence
        buffer.len = self.slab.capacity * <Py_ssize_t>(2 * sizeof(double) + 2 * sizeof(int32_t))
        buffer.readonly = True
        buffer.itemsize = 1
        buffer.format = BYTE if flags & PyBUF_FORMAT else NULL
        buffer.ndim = 1
        buffer.shape = &buffer.len if flags & PyBUF_ND else NULL
        buffer.strides = &buffer.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL
        buffer.obj = self


cdef object ndarray = None             # numpy.ndarray, once columns() has been called


cdef object column(SlabView view, void* start, str dtype):
    global ndarray
    if ndarray is None:
        from numpy import ndarray as loaded
        ndarray = loaded
    return ndarray(view.rows, dtype, view, <char*>start - <char*>view.slab.confidence)


@cython.final
@cython.collection_type("mapping")
cdef class Columns:
    """The columns of a `ResponseBuffer` as read-only numpy arrays, by attribute or, as in a mapping, by name.

    `confidence` and `timestamp` (seconds since the epoch, UTC) are float64. `query` and `expert` are int32
    codes: ``columns.queries[code]`` and ``columns.experts[code]`` are the ids. Arrays and ids never change,
    even if the buffer does.

    >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
    >>> buffer = ResponseBuffer(capacity=10)
    >>> buffer.add_batch(PooledExpertResponse("q1", expert, confidence=0.5) for expert in ("a", "b"))
    2
    >>> columns = buffer.columns()
    >>> float(columns.confidence.mean()), columns["query"].tolist(), columns.experts
    (0.5, [0, 0], ('a', 'b'))
    >>> list(columns)
    ['confidence', 'timestamp', 'query', 'expert']
    """

    def __init__(self):
        raise ArgumentTypeError("Columns are made by ResponseBuffer.columns()")

    @property
    def queries(self):
        """The query ids as a tuple: codes in `query` are indexes into it. Built at each access, O(ids)."""
        return () if self.view is None else table_ids(&self.view.slab.answers.queries, self.view.queries)

    @property
    def experts(self):
        """The expert ids as a tuple: codes in `expert` are indexes into it. Built at each access, O(ids)."""
        return () if self.view is None else table_ids(&self.view.slab.answers.experts, self.view.experts)

    def keys(self):
        """The names of the columns."""
        return KeysView(self)

    def values(self):
        """The columns."""
        return ValuesView(self)

    def items(self):
        """Pairs of name and column."""
        return ItemsView(self)

    def get(self, key, default=None):
        """The column of this name, or the default."""
        if key in COLUMN_NAMES:
            return getattr(self, key)
        return default

    def __getitem__(self, key):
        if key in COLUMN_NAMES:
            return getattr(self, key)
        raise KeyError(key)

    def __contains__(self, key):
        return key in COLUMN_NAMES

    def __iter__(self):
        return iter(COLUMN_NAMES)

    def __len__(self):
        return len(COLUMN_NAMES)

    def __repr__(self):
        rows = 0 if self.view is None else self.view.rows
        return f"<Columns of {rows} responses: {', '.join(COLUMN_NAMES)}>"

    def __reduce__(self):
        raise ArgumentTypeError("Columns can't be pickled or copied; dict(columns) can")


cdef tuple COLUMN_NAMES = ("confidence", "timestamp", "query", "expert")


# The buffer -------------------------------------------------------------------------------------------------

# The response type, and the offsets of what a buffer reads of one.
cdef PyTypeObject* RESPONSE = <PyTypeObject*>PooledExpertResponse
cdef Py_ssize_t QUERY_ID = field_offset(PooledExpertResponse, "query_id")
cdef Py_ssize_t EXPERT_ID = field_offset(PooledExpertResponse, "expert_id")
cdef Py_ssize_t ANSWER = field_offset(PooledExpertResponse, "content")
cdef Py_ssize_t REASONING = field_offset(PooledExpertResponse, "reasoning")
cdef Py_ssize_t CONFIDENCE = field_offset(PooledExpertResponse, "confidence")
cdef Py_ssize_t CLOCK = clock_offset(PooledExpertResponse, "timestamp")


cdef object value_in(object response, Py_ssize_t offset, str name):
    cdef PyObject* value = slot_at(<PyObject*>response, offset)[0]
    if value == NULL:
        # Only a member descriptor's own __delete__ can do that.
        raise AttributeError(f"the response's {name} is not set")
    return <object>value


cdef inline bint is_plain(PyObject* item) noexcept:
    """Whether a row can be read from the item without running Python code."""
    cdef PyObject* value
    if unlikely(not PyObject_TypeCheck(item, RESPONSE)):
        return False
    value = slot_at(item, QUERY_ID)[0]
    if unlikely(value == NULL or not is_plain_text(value)):
        return False
    value = slot_at(item, EXPERT_ID)[0]
    if unlikely(value == NULL or not is_plain_text(value)):
        return False
    value = slot_at(item, CONFIDENCE)[0]
    return likely(value != NULL and PyFloat_CheckExact(value))


cdef inline double confidence_in(PyObject* response) noexcept:
    return PyFloat_AS_DOUBLE(slot_at(response, CONFIDENCE)[0])


cdef inline double seconds_in(PyObject* response) noexcept:
    return <double>clock_in(response, CLOCK) / 1e6


cdef Py_ssize_t sole_nbytes(PyObject* response) noexcept:
    """Bytes that releasing this reference frees: the response and its texts, where nothing else refers to them."""
    cdef Py_ssize_t nbytes
    cdef PyObject* text
    cdef PyObject* number
    if not uniquely_referenced(response):
        return 0
    nbytes = Py_TYPE(response).tp_basicsize
    text = slot_at(response, ANSWER)[0]
    if text != NULL and is_plain_text(text) and uniquely_referenced(text):
        nbytes += text_nbytes(text)
    text = slot_at(response, REASONING)[0]
    if text != NULL and is_plain_text(text) and uniquely_referenced(text):
        nbytes += text_nbytes(text)
    number = slot_at(response, CONFIDENCE)[0]
    if number != NULL and PyFloat_CheckExact(number) and uniquely_referenced(number):
        nbytes += Py_TYPE(number).tp_basicsize
    return nbytes


cdef int row_read(Row* self, object got, Py_ssize_t index) except -1:
    """Fill the row with the response's current values and strong references. Index -1: not part of a batch."""
    cdef object query
    cdef object expert
    cdef object confidence
    if not PyObject_TypeCheck(<PyObject*>got, RESPONSE):
        raise type_error("response" if index < 0 else f"responses[{index}]", got, "a PooledExpertResponse")
    with cython.critical_section(got):
        query = value_in(got, QUERY_ID, "query_id")
        expert = value_in(got, EXPERT_ID, "expert_id")
        confidence = value_in(got, CONFIDENCE, "confidence")
        self.timestamp = seconds_in(<PyObject*>got)
    self.confidence = real("confidence", confidence, "a number from 0 to 1")
    # A subclass of str may define __hash__ and __eq__; an exact str of the same text does not.
    query = PyUnicode_FromObject(query)
    expert = PyUnicode_FromObject(expert)
    Py_INCREF(<PyObject*>query)
    Py_INCREF(<PyObject*>expert)
    Py_INCREF(<PyObject*>got)
    self.query = <PyObject*>query
    self.expert = <PyObject*>expert
    self.response = <PyObject*>got
    return 0


cdef object query_of(object got, Py_ssize_t index):
    """The id of the query that a response answers, as a plain str."""
    cdef object query
    if not PyObject_TypeCheck(<PyObject*>got, RESPONSE):
        raise type_error(f"responses[{index}]", got, "a PooledExpertResponse")
    with cython.critical_section(got):
        query = value_in(got, QUERY_ID, "query_id")
    return PyUnicode_FromObject(query)


cdef void row_drop(Row* self) noexcept:
    Py_DECREF(self.query)
    Py_DECREF(self.expert)
    Py_XDECREF(self.response)


cdef str WAITS = "True, False, seconds (0 or more) or a callable that returns one of these"


cdef double seconds_to_wait(object wait) except -1.0:
    """0: not at all; infinity: until resumed."""
    cdef double seconds
    refuse_awaitable("wait", wait)
    if wait is True:
        return INFINITY
    if wait is False:
        return 0.0
    seconds = real("wait", wait, WAITS)
    # NaN fails the comparison; an int that no double holds is not the infinity it was read as.
    if not seconds >= 0.0 or (seconds == INFINITY and wait != INFINITY):
        raise value_error("wait", wait, WAITS)
    return seconds


@cython.final
@cython.internal
cdef class Gate:
    """Where additions to a paused buffer wait.

    The lock is held from pause to resume. A thread that then acquires it releases it at once, which wakes the
    next one. Each pause has its own gate, so threads that are still passing the previous one do not interfere.
    """

    def __cinit__(self, wait):
        self.seconds = 0.0
        if callable(wait):
            check_callable("wait", wait)
            self.ask = wait
        else:
            self.seconds = seconds_to_wait(wait)
        try:
            # Looked up here: once gevent has patched it, waiting lets other greenlets run.
            self.shut = _thread.allocate_lock()
        except RuntimeError:
            # Python 3.11 and 3.12 raise this ("can't allocate lock") if allocation fails.
            raise MemoryError() from None
        self.shut.acquire()


cdef class ResponseBuffer:
    """ResponseBuffer(capacity=1000, max_batch=100, *, flush_threshold=0.8, on_flush=None)\n--\n
    A buffer of expert responses, of fixed size, with a cap on the batches it takes.

    It holds `capacity` responses, and `add_batch` takes at most `max_batch` at a time. With `on_flush`, the
    buffer passes its responses to that handler, as a list, when an addition brings it to
    ``flush_threshold * capacity`` responses or finds no room. Without a handler, a full buffer raises
    `BufferFullError`.

    Adding allocates nothing and costs O(1) per response. The columns and the consensus show a response as it
    was when it was added. If the handler raises, nothing is lost: the responses stay, in order, and the caller
    gets the error. What the caller was adding is then in the buffer, unless the handler was called to make
    room for it; ``stats["added"]`` shows which. While the handler runs, this thread and others may use the
    buffer: additions go behind the rows that are being flushed, as long as there is room, and a nested flush
    takes nothing. The handler must not be async; `aflush` awaits one that is.

    `pause` makes additions wait or fail until `resume`. Everything else still works.

    >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
    >>> buffer = ResponseBuffer(capacity=100, max_batch=10)
    >>> buffer.add(PooledExpertResponse("q1", "ada", confidence=0.9))
    >>> buffer.add_batch(PooledExpertResponse(query, "bob", confidence=0.7) for query in ("q1", "q2"))
    2
    >>> len(buffer), buffer.consensus("q1").consensus
    (3, 'high')
    >>> [response.expert_id for response in buffer.flush()]
    ['ada', 'bob', 'bob']
    """

    def __cinit__(self):
        self.fill.slab = &NOTHING
        self.flush_at = PY_SSIZE_T_MAX

    def __init__(self, capacity=1000, max_batch=100, *, flush_threshold=0.8, on_flush=None):
        cdef Py_ssize_t rows = size("capacity", capacity, 1)
        cdef Py_ssize_t batch = size("max_batch", max_batch, 1)
        cdef double threshold = share("flush_threshold", flush_threshold)
        cdef Py_ssize_t basic = type(self).__basicsize__
        cdef Slab* slab
        cdef bint fresh
        check_callable("on_flush", on_flush, True)
        slab = slab_new(rows)
        lock(&self.guard)
        fresh = self.fill.slab == &NOTHING
        if fresh:
            self.fill.slab = slab
            if self.fill.gate == NULL:
                store_ssize(&self.fill.room, rows)
            self.capacity = rows
            self.max_batch = batch
            self.flush_threshold = threshold
            self.on_flush = on_flush
            self.nbytes = slab.nbytes + basic
            if on_flush is not None:
                # Rounding may put the product just above the whole number that is meant: that must not cost a row.
                self.flush_at = max(<Py_ssize_t>1, <Py_ssize_t>ceil(threshold * <double>rows * (1.0 - 1e-12)))
        unlock(&self.guard)
        if not fresh:
            slab_release(slab)
            raise ArgumentTypeError("a ResponseBuffer can't be initialised twice")

    cdef Stored store(self, Row* rows, Py_ssize_t n) noexcept:
        """Add all rows or, if there is no room, none. Takes over the references to the responses."""
        cdef Py_ssize_t i
        cdef bint paused
        lock(&self.guard)
        if not self.fits(n):
            paused = self.fill.gate != NULL
            unlock(&self.guard)
            return PAUSED if paused else NO_ROOM
        for i in range(n):
            slab_write(
                self.fill.slab, self.fill.count + i, rows[i].response, rows[i].query, rows[i].expert,
                rows[i].confidence, rows[i].timestamp,
            )
            rows[i].response = NULL
        self.count_added(n)
        unlock(&self.guard)
        return STORED

    cdef inline bint fits(self, Py_ssize_t n) noexcept:
        """Whether n rows may be added: the buffer is not paused and has room.

        Every code is in use by a row, so there is room for n more codes as well.
        """
        return n <= min(load_ssize(&self.fill.room), <Py_ssize_t>(INT32_MAX - 1)) - load_ssize(&self.fill.count)

    cdef inline void count_added(self, Py_ssize_t n) noexcept:
        store_ssize(&self.fill.count, self.fill.count + n)
        self.added += n
        if self.fill.count > self.high_water:
            self.high_water = self.fill.count

    cdef bint store_item(self, PyObject* item) noexcept:
        """`store_items` for one: whether it was added."""
        if unlikely(not is_plain(item) or not self.fits(1)):
            return False
        Py_INCREF(item)
        slab_write(
            self.fill.slab, self.fill.count, item, slot_at(item, QUERY_ID)[0], slot_at(item, EXPERT_ID)[0],
            confidence_in(item), seconds_in(item),
        )
        self.count_added(1)
        return True

    cdef Py_ssize_t store_items(self, PyObject** items, Py_ssize_t n) noexcept:
        """Add responses straight from a list or tuple that cannot change during the call.

        Returns the number added, 0 if there is no room, or -1 if an item needs the slower path. Nothing here
        runs Python code or allocates, so the borrowed references are safe on the standard build.
        """
        cdef Slab* slab = self.fill.slab
        cdef Answers* answers = &slab.answers
        cdef Py_ssize_t start = self.fill.count
        cdef PyObject** responses = slab.responses + start
        cdef double* confidence = slab.confidence + start
        cdef double* timestamp = slab.timestamp + start
        cdef int32_t* queries = slab.query + start
        cdef int32_t* experts = answers.expert + start
        cdef Py_ssize_t i
        cdef PyObject* item
        cdef PyObject* query = NULL
        cdef PyObject* other
        cdef int32_t code = -1
        cdef int32_t found
        cdef Py_ssize_t first = 0
        if unlikely(not self.fits(n)):
            return 0
        # Nobody reads rows before they are counted, so what is checked can be written at once.
        for i in range(n):
            item = items[i]
            if unlikely(not is_plain(item)):
                return -1
            responses[i] = item
            confidence[i] = confidence_in(item)
            timestamp[i] = seconds_in(item)
        for i in range(n):
            item = responses[i]
            Py_INCREF(item)
            other = slot_at(item, QUERY_ID)[0]
            if other != query:
                query = other
                found = code_of(&answers.queries, query)
                if found != code:
                    if code >= 0:
                        tally_rows(answers, code, slab.confidence, start + first, start + i)
                    code = found
                    first = i
            queries[i] = code
            experts[i] = next_code_of(&answers.experts, slot_at(item, EXPERT_ID)[0])
        if code >= 0:
            tally_rows(answers, code, slab.confidence, start + first, start + n)
        self.count_added(n)
        return n

    cdef int make_room(self, Py_ssize_t n) except -1:
        if self.on_flush is None or n > self.capacity:
            raise self.full_error(n)
        self.flush_rows(False)
        return 0

    cdef bint flushes_here(self) noexcept:
        """Whether this thread is running a flush of this buffer. The caller holds the lock."""
        return self.flushing and self.flusher == PyThread_get_thread_ident() and (
            self.generation == forks_seen or self.flusher == surviving_thread
        )

    cdef int wait_at_gate(self, Py_ssize_t n, double* since) except -1:
        """Wait for `resume`, for as long as the pause allows. `since`: when the wait began, or -1.

        Returns after a second at the latest; the caller tries again.
        """
        cdef Gate gate = None
        cdef bint here = False
        cdef double seconds
        cdef double left
        lock(&self.guard)
        if self.fill.gate != NULL:
            gate = <Gate>self.fill.gate
            here = self.flushes_here()
        unlock(&self.guard)
        if gate is None:
            return 0
        if n > self.capacity:
            raise self.full_error(n)
        if here:
            # The flush may be what the pause is for, and this the thread that would resume.
            raise self.paused_error("its flush handler can't wait")
        seconds = gate.seconds if gate.ask is None else seconds_to_wait(gate.ask())
        if seconds == 0.0:
            raise self.paused_error("additions don't wait")
        if since[0] < 0.0:
            since[0] = monotonic()
            lock(&self.guard)
            self.waited += 1
            unlock(&self.guard)
        left = seconds
        if seconds != INFINITY:
            left = since[0] + seconds - <double>monotonic()
            if left <= 0.0:
                raise self.paused_error(f"the addition has waited for {seconds:g} seconds")
        # A signal that arrives just before the wait begins does not end it. Waking once a second bounds that delay.
        if not gate.shut.acquire(True, min(left, 1.0)):
            PyErr_CheckSignals()
            return 0
        gate.shut.release()
        return 0

    cdef object paused_error(self, str why):
        lock(&self.guard)
        self.rejected += 1
        unlock(&self.guard)
        return BufferPausedError(f"the buffer is paused, and {why}; nothing was added")

    cdef object full_error(self, Py_ssize_t n):
        lock(&self.guard)
        self.rejected += 1
        unlock(&self.guard)
        return BufferFullError(
            f"no room for {n} more: the buffer holds {load_ssize(&self.fill.count)} of {self.capacity} responses; "
            "nothing was added"
        )

    cdef object too_large_error(self, str n):
        lock(&self.guard)
        self.rejected += 1
        unlock(&self.guard)
        return BatchTooLargeError(
            f"responses must be a batch of at most {self.max_batch} (max_batch), not {n}; nothing was added"
        )

    cdef int add_rows(self, PyObject** items, Py_ssize_t n, bint single) except -1:
        """Add responses through rows: references are taken to all of them before Python code can change the items."""
        cdef Row few[STAGED]
        cdef Row* rows = few
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t i
        cdef Stored outcome
        cdef double since = -1.0
        cdef bint flushed = False
        if n > STAGED:
            if n > PY_SSIZE_T_MAX // <Py_ssize_t>sizeof(Row):
                raise MemoryError()
            rows = <Row*>PyMem_RawMalloc(<size_t>n * sizeof(Row))
            if rows == NULL:
                raise MemoryError()
        try:
            while done < n:
                row_read(&rows[done], <object>items[done], -1 if single else done)
                done += 1
            while True:
                outcome = self.store(rows, n)
                if outcome == STORED:
                    break
                if outcome == PAUSED:
                    self.wait_at_gate(n, &since)
                elif flushed:
                    raise self.full_error(n)
                else:
                    self.make_room(n)
                    flushed = True
        finally:
            for i in range(done):
                row_drop(&rows[i])
            if rows != few:
                PyMem_RawFree(rows)
        return 0

    def add(self, response):
        """Add one response. O(1); allocates nothing.

        Raises `ArgumentTypeError` for anything but a PooledExpertResponse, and `BufferFullError` if there is
        no room and no handler to make room, or a flush is already running. The handler's own errors propagate;
        the response is then in the buffer, unless the handler was called to make room for it.
        """
        cdef PyObject* item = <PyObject*>response
        if FREE_THREADED or not self.store_item(item):
            self.add_rows(&item, 1, True)
        if load_ssize(&self.fill.count) >= self.flush_at:
            self.flush_rows(False)

    def add_batch(self, responses):
        """Add the responses of an iterable, all or none, and return how many.

        O(n). Allocates nothing for a list or tuple; the free-threaded build copies a list and allocates for
        batches over 32.

        Raises `BatchTooLargeError` for more than `max_batch` responses (an iterator is read to one more than
        that and no further), `ArgumentTypeError` if an item is not a PooledExpertResponse, and
        `BufferFullError` as `add` does. In all of these cases nothing is added. The handler's own errors
        propagate; the batch is then in the buffer, unless the handler was called to make room for it.
        """
        cdef PyObject* given = <PyObject*>responses
        cdef object items = responses
        cdef Py_ssize_t n
        cdef Py_ssize_t stored
        cdef bint sequence = PyList_CheckExact(given) or PyTuple_CheckExact(given)
        if not sequence:
            items = self.collect(responses)
        n = PySequence_Fast_GET_SIZE(<PyObject*>items)
        if n > self.max_batch:
            raise self.too_large_error(str(n))
        if FREE_THREADED and PyList_CheckExact(given):
            # Another thread may change the list at any time.
            items = PyList_GetSlice(responses, 0, n)
            n = PySequence_Fast_GET_SIZE(<PyObject*>items)
        if n == 0:
            return 0
        stored = -1
        if not FREE_THREADED:
            stored = self.store_items(PySequence_Fast_ITEMS(<PyObject*>items), n)
        if unlikely(stored != n):
            self.add_rows(PySequence_Fast_ITEMS(<PyObject*>items), n, False)
        lock(&self.guard)
        self.batches += 1
        unlock(&self.guard)
        if load_ssize(&self.fill.count) >= self.flush_at:
            self.flush_rows(False)
        return n

    def _admit(self, tuple responses):
        """Check what `_store_batch` would refuse, and make room for the batch.

        Raises what `add_batch` raises, before anything has changed. Returns the id of the query that the
        responses answer, or the list of each response's query id if they answer several.
        """
        cdef Py_ssize_t n = PySequence_Fast_GET_SIZE(<PyObject*>responses)
        cdef PyObject** items = PySequence_Fast_ITEMS(<PyObject*>responses)
        cdef object query = None
        cdef object other
        cdef list several = None
        cdef double since = -1.0
        cdef bint flushed = False
        cdef Py_ssize_t i
        if n > self.max_batch:
            raise self.too_large_error("more")
        for i in range(n):
            other = query_of(<object>items[i], i)
            if several is not None:
                several.append(other)
            elif query is None:
                query = other
            elif query is not other and not same_text(<PyObject*>query, <PyObject*>other):
                several = [query] * i
                several.append(other)
        while not self.fits(n):
            if load_pointer(<void**>&self.fill.gate) != NULL:
                self.wait_at_gate(n, &since)
            elif flushed:
                raise self.full_error(n)
            else:
                self.make_room(n)
                flushed = True
        return query if several is None else several

    def _store_batch(self, tuple responses):
        """Add all or none, as `add_batch` does, but leave flushing to the caller.

        Returns whether the buffer should be flushed. If this raises, nothing was added.
        """
        cdef Py_ssize_t n = PySequence_Fast_GET_SIZE(<PyObject*>responses)
        cdef Py_ssize_t stored = -1
        if n > self.max_batch:
            raise self.too_large_error("more")
        if not FREE_THREADED:
            stored = self.store_items(PySequence_Fast_ITEMS(<PyObject*>responses), n)
        if unlikely(stored != n):
            self.add_rows(PySequence_Fast_ITEMS(<PyObject*>responses), n, False)
        lock(&self.guard)
        self.batches += 1
        unlock(&self.guard)
        return load_ssize(&self.fill.count) >= self.flush_at

    cdef list collect(self, object iterable):
        cdef list items = []
        cdef object source
        try:
            source = iter(iterable)
        except TypeError as error:
            raise type_error("responses", iterable, "an iterable of PooledExpertResponse") from error
        for item in source:
            if len(items) == self.max_batch:
                raise self.too_large_error("more")
            items.append(item)
        return items

    cdef Py_ssize_t begin_flush(self, unsigned long flusher) noexcept:
        """Start a flush and return the number of rows it takes: 0 if one is running. The caller holds the lock."""
        if self.flushing and (self.generation == forks_seen or self.flusher == surviving_thread):
            return 0
        # A flush that was begun before a fork, by a thread that this process does not have, never ends.
        store_flag(&self.flushing, self.fill.count > 0)
        self.ticket += 1
        self.flusher = flusher
        self.generation = forks_seen
        return self.fill.count

    cdef list flush_rows(self, bint wanted, Py_ssize_t* freed=NULL):
        """Flush, and return the responses if wanted. Everything that may fail is done before anything changes."""
        cdef Py_ssize_t rows
        cdef Py_ssize_t i
        cdef tuple kept = None
        cdef list result = None
        lock(&self.guard)
        rows = self.begin_flush(PyThread_get_thread_ident())
        unlock(&self.guard)
        if rows == 0:
            return []
        try:
            self.prepare_flush()
            if self.on_flush is None:
                result = PyList_New(rows)
            else:
                kept = self.responses_of(rows)
                if wanted:
                    result = list(kept)
                refuse_awaitable("on_flush", self.on_flush(list(kept)))
        except BaseException:
            self.abandon_flush()
            raise
        self.finish_flush(rows, kept, result)
        if freed != NULL:
            for i in range(rows):
                freed[0] += sole_nbytes(PySequence_Fast_ITEMS(<PyObject*>kept)[i])
        return result

    cdef int prepare_flush(self) except -1:
        """Allocate what removing the rows will need."""
        cdef bint shared
        # Before the question whether the slab is shared: readers hold it.
        answers_detach_readers(&self.fill.slab.answers)
        lock(&self.guard)
        shared = self.needs_spare()
        unlock(&self.guard)
        if shared:
            self.prepare_spare()
        return 0

    cdef tuple responses_of(self, Py_ssize_t rows):
        """The first rows' responses. The references outlive those of the rows, so removing these frees no response."""
        cdef tuple kept = PyTuple_New(rows)
        cdef Py_ssize_t i
        for i in range(rows):
            Py_INCREF(self.fill.slab.responses[i])
            PyTuple_SET_ITEM(<PyObject*>kept, i, self.fill.slab.responses[i])
        return kept

    cdef void abandon_flush(self) noexcept:
        """End the running flush without removing anything."""
        cdef Slab* spare
        lock(&self.guard)
        store_flag(&self.flushing, False)
        self.failed += 1
        spare = self.fill.spare
        self.fill.spare = NULL
        unlock(&self.guard)
        slab_release(spare)

    cdef void finish_flush(self, Py_ssize_t rows, tuple kept, list result) noexcept:
        """Remove the rows. Their responses are in `kept`; if that is None, their references move to `result`."""
        cdef Py_ssize_t left
        cdef Py_ssize_t i
        cdef Slab* old = NULL
        cdef Slab* spare = NULL
        lock(&self.guard)
        if kept is None:
            for i in range(rows):
                PyList_SET_ITEM(<PyObject*>result, i, self.fill.slab.responses[i])
        left = self.fill.count - rows
        if FREE_THREADED or slab_is_shared(self.fill.slab):
            old = self.fill.slab
            slab_copy(self.fill.spare, old, rows, left)
            self.fill.slab = self.fill.spare
        else:
            spare = self.fill.spare
            slab_keep(self.fill.slab, rows, left)
        self.fill.spare = NULL
        store_ssize(&self.fill.count, left)
        store_flag(&self.flushing, False)
        self.flushes += 1
        self.flushed += rows
        unlock(&self.guard)
        slab_release(old)
        slab_release(spare)
        if kept is not None:
            # The rows' references; `kept` still has its own.
            for i in range(rows):
                Py_DECREF(PySequence_Fast_ITEMS(<PyObject*>kept)[i])

    cdef inline bint needs_spare(self) noexcept:
        """Whether the running flush still has to allocate a fresh slab. The caller holds the lock.

        On the free-threaded build each flush needs one: releasing ids may wait for another thread, which must
        not happen under a lock, so the old slab keeps them until the lock is free.
        """
        return self.fill.spare == NULL and (FREE_THREADED or slab_is_shared(self.fill.slab))

    cdef int prepare_spare(self) except -1:
        """Allocate the fresh slab that the running flush needs, unless it has one."""
        cdef Slab* spare = slab_new(self.capacity)
        lock(&self.guard)
        if self.flushing and self.fill.spare == NULL:
            self.fill.spare = spare
            spare = NULL
        unlock(&self.guard)
        slab_release(spare)
        return 0

    def pause(self, wait=True):
        """Stop accepting responses until `resume`. O(1). Return whether this call paused the buffer.

        `wait` decides what `add` and `add_batch` do until then. True: they wait until the buffer is resumed,
        without holding the interpreter's lock; Ctrl-C ends the wait. A number: they wait that many seconds
        and then raise `BufferPausedError`. False: they raise it at once. A callable: each addition calls it,
        in its own thread, for one of these (and again every second while it waits), so that an event loop's
        thread can choose not to wait.

        An addition that would fail anyway fails without waiting. One made in the buffer's own flush handler
        raises `BufferPausedError`, since the flush may be what the pause is for. An addition that is refused
        or interrupted adds nothing.

        Pauses do not nest: pausing a paused buffer changes nothing and returns False, and one `resume` ends
        the pause. A forked child's copy of a paused buffer is paused too.

        >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
        >>> buffer = ResponseBuffer()
        >>> buffer.pause(wait=False)
        True
        >>> buffer.add(PooledExpertResponse("q1", "ada"))
        Traceback (most recent call last):
        synthex_fast.errors.BufferPausedError: the buffer is paused, and additions don't wait; nothing was added
        >>> buffer.resume()
        True
        >>> buffer.add(PooledExpertResponse("q1", "ada"))
        """
        cdef Gate gate = Gate(wait)
        cdef bint first
        lock(&self.guard)
        first = self.fill.gate == NULL
        if first:
            Py_INCREF(<PyObject*>gate)
            store_pointer(<void**>&self.fill.gate, <void*>gate)
            store_ssize(&self.fill.room, 0)
        unlock(&self.guard)
        return first

    def resume(self):
        """Accept responses again and wake all waiting additions. O(1). Return whether the buffer was paused."""
        cdef PyObject* taken
        cdef Gate gate
        lock(&self.guard)
        taken = open_gate(&self.fill)
        unlock(&self.guard)
        if taken == NULL:
            return False
        gate = <Gate>taken
        Py_DECREF(taken)
        gate.shut.release()
        return True

    @property
    def paused(self):
        """Whether `pause` makes additions wait or fail."""
        return load_pointer(<void**>&self.fill.gate) != NULL

    def flush(self):
        """Remove all responses and return them as a list, in the order in which they were added. O(n).

        The handler, if any, gets them first, as a list of its own; if it raises, all of them stay. The result
        is empty while another flush is running, in the handler or in another thread, because that flush has
        taken them. Raises MemoryError, with nothing changed, if allocation fails.
        """
        return self.flush_rows(True)

    def aflush(self, handler):
        """A coroutine: await ``handler(responses)``, then remove the responses and return them as a list. O(n).

        They stay in the buffer until the handler is done, and for good if it raises or is cancelled. Those added
        meanwhile go behind them and stay too, and other flushes return an empty list. So does this one while
        another flush is running. `on_flush` is not called. `ArgumentTypeError` if the handler is not callable.

        >>> import asyncio
        >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
        >>> async def send(responses):
        ...     print(len(responses), "sent")
        >>> buffer = ResponseBuffer()
        >>> buffer.add(PooledExpertResponse("q1", "ada"))
        >>> len(asyncio.run(buffer.aflush(send))), len(buffer)
        1 sent
        (1, 0)
        """
        check_callable("handler", handler, False, True)
        from synthex_fast._async_flush import flush
        return flush(self, handler)

    def _begin_async_flush(self):
        """Start a flush whose handler is awaited. Returns its ticket and responses, or None if there is nothing to do.

        The responses stay in the buffer until `_end_async_flush`.
        """
        cdef Py_ssize_t rows
        cdef uint64_t ticket
        lock(&self.guard)
        # No thread runs it: after a fork, the child has no event loop that would end it.
        rows = self.begin_flush(0)
        ticket = self.ticket
        unlock(&self.guard)
        if rows == 0:
            return None
        try:
            self.prepare_flush()
            return ticket, self.responses_of(rows)
        except BaseException:
            self.abandon_flush()
            raise

    def _end_async_flush(self, uint64_t ticket, tuple kept, bint done):
        """Remove the responses if the handler is done with them; otherwise leave them."""
        cdef bint running
        lock(&self.guard)
        # In a forked child another flush may have taken these rows.
        running = self.flushing and self.ticket == ticket
        unlock(&self.guard)
        if not running:
            return
        if done:
            self.finish_flush(PySequence_Fast_GET_SIZE(<PyObject*>kept), kept, None)
        else:
            self.abandon_flush()

    def trim(self, nbytes):
        """Flush through the handler, if there is one and `nbytes` is not 0; return at least how many bytes were freed.

        The buffer's own size never changes. The result counts the responses that nothing else refers to once
        the handler is done with them: each record with its content and reasoning. It is 0 without a handler.
        """
        cdef Py_ssize_t wanted = size("nbytes", nbytes)
        cdef Py_ssize_t freed = 0
        if wanted and self.on_flush is not None:
            self.flush_rows(False, &freed)
        try:
            return freed
        except MemoryError:
            # The flush is done and memory is short: a figure that is too small serves the caller better than an error.
            return 0

    cdef SlabView borrow(self):
        """A view of the current rows. While it exists, the slab is not reused."""
        cdef SlabView view = SlabView.__new__(SlabView)
        lock(&self.guard)
        while self.flushing and self.fill.spare == NULL:
            unlock(&self.guard)
            self.prepare_spare()
            lock(&self.guard)
        answers_hold(&self.fill.slab.answers, 1)
        view.slab = self.fill.slab
        view.rows = self.fill.count
        view.queries = self.fill.slab.answers.queries.used
        view.experts = self.fill.slab.answers.experts.used
        unlock(&self.guard)
        return view

    def columns(self):
        """The columns as read-only numpy arrays over the slab, of length ``len(buffer)``, without a copy. O(1).

        `confidence` and `timestamp` (seconds since the epoch, UTC) are float64, `query` and `expert` int32
        codes, by attribute or by name; ``columns.queries[code]`` is the id. An array never changes and keeps
        its memory alive: a flush leaves the slab to the arrays and continues in a fresh one. Once no array is
        left, the slab is reused, except on the free-threaded build. Raises MemoryError. Needs numpy, which is
        imported by the first call.
        """
        cdef SlabView view = self.borrow()
        cdef Columns columns = Columns.__new__(Columns)
        columns.view = view
        columns.confidence = column(view, view.slab.confidence, "f8")
        columns.timestamp = column(view, view.slab.timestamp, "f8")
        columns.query = column(view, view.slab.query, "i4")
        columns.expert = column(view, view.slab.answers.expert, "i4")
        return columns

    @property
    def queries(self):
        """The query ids as a tuple: codes in the `query` column are indexes into it. Built at each access, O(ids)."""
        cdef SlabView view = self.borrow()
        return table_ids(&view.slab.answers.queries, view.queries)

    @property
    def experts(self):
        """The expert ids as a tuple: codes in the `expert` column are indexes into it. Built at each access, O(ids)."""
        cdef SlabView view = self.borrow()
        return table_ids(&view.slab.answers.experts, view.experts)

    def consensus(self, query_id):
        """The consensus of the buffered responses to one query, as an `AggregateRow`. O(1), however full the buffer is.

        Count, mean and population variance of the confidence are kept up to date as responses are added. The
        row does not change afterwards. Its set of experts is built when it is first read, or by the next flush,
        at O(answers to the query); the free-threaded build builds it here.

        Raises `KeyError` if the buffer holds no response to the query, and `ArgumentTypeError` if `query_id`
        is not a string.

        >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
        >>> buffer = ResponseBuffer()
        >>> buffer.add(PooledExpertResponse("q1", "ada", confidence=1.0))
        >>> buffer.add(PooledExpertResponse("q1", "bob", confidence=0.5))
        >>> buffer.consensus("q1")
        AggregateRow(count=2, mean=0.75, variance=0.0625, experts={'ada', 'bob'}, consensus='medium')
        """
        cdef object text = query_id
        cdef AggregateRow row
        cdef Answers* answers
        cdef frozenset experts = None
        cdef int32_t query
        if unlikely(not is_plain_text(<PyObject*>text)):
            check_text("query_id", query_id)
            text = PyUnicode_FromObject(query_id)
        row = AggregateRow.__new__(AggregateRow)
        if FREE_THREADED or load_flag(&self.flushing):
            # The flush that is running must not find a reader: the row gets its set now.
            experts = PyFrozenSet_New(NULL)
        lock(&self.guard)
        answers = &self.fill.slab.answers
        query = code_find(&answers.queries, <PyObject*>text)
        if query >= 0:
            row.show(&answers.tallies[query])
            if FREE_THREADED:
                answers_hold(answers, 1)
        unlock(&self.guard)
        if query < 0:
            raise KeyError(query_id)
        if experts is None:
            row.read_later(answers)
            return row
        try:
            row.add_experts(experts, answers)
        finally:
            if FREE_THREADED:
                answers_release(answers)
        return row

    def aggregate(self):
        """The consensus on every query: a read-only mapping from query id to `AggregateRow`. O(queries).

        The mapping is a snapshot: it does not change and does not keep the buffer's memory. It copies count,
        mean and variance of each query; rows and their sets of experts are built when they are read. If it
        still exists at the next flush, that flush copies the expert codes for it, O(responses).

        >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
        >>> buffer = ResponseBuffer()
        >>> buffer.add(PooledExpertResponse("q1", "ada", confidence=1.0))
        >>> buffer.add(PooledExpertResponse("q1", "bob", confidence=0.5))
        >>> buffer.aggregate()["q1"]
        AggregateRow(count=2, mean=0.75, variance=0.0625, experts={'ada', 'bob'}, consensus='medium')
        """
        cdef Aggregate aggregate = Aggregate.__new__(Aggregate)
        cdef bint taken = False
        cdef bint detached = True
        cdef size_t queries
        while not taken:
            lock(&self.guard)
            queries = <size_t>self.fill.slab.answers.queries.used
            unlock(&self.guard)
            # Outside the lock, so another thread may add more queries in the meantime.
            aggregate.reserve(queries)
            lock(&self.guard)
            taken = aggregate.take(&self.fill.slab.answers, self.fill.count)
            unlock(&self.guard)
        if FREE_THREADED or load_flag(&self.flushing):
            # The flush that is running must not find a reader.
            detached = aggregate.detach()
        if not detached:
            aggregate.leave()
            raise MemoryError()
        return aggregate

    @property
    def stats(self):
        """Counts since construction, as a dict.

        ``added`` responses, ``batches`` (successful calls of `add_batch`), ``flushed`` responses, ``flushes``,
        ``failed`` flushes (usually the handler raised), ``rejected`` calls (because of the batch cap, a pause
        or lack of room), ``waited`` (calls that waited for the end of a pause) and ``high_water`` (the most
        responses held at once).
        """
        cdef int64_t added, batches, flushed, flushes, failed, rejected, waited
        cdef Py_ssize_t high_water
        lock(&self.guard)
        added = self.added
        batches = self.batches
        flushed = self.flushed
        flushes = self.flushes
        failed = self.failed
        rejected = self.rejected
        waited = self.waited
        high_water = self.high_water
        unlock(&self.guard)
        return {
            "added": added,
            "batches": batches,
            "flushed": flushed,
            "flushes": flushes,
            "failed": failed,
            "rejected": rejected,
            "waited": waited,
            "high_water": high_water,
        }

    def __len__(self):
        return load_ssize(&self.fill.count)

    def __sizeof__(self):
        return self.nbytes

    def __repr__(self):
        return f"<{type(self).__name__} of {load_ssize(&self.fill.count)} responses, capacity {self.capacity}>"

    def __reduce__(self):
        raise ArgumentTypeError(
            f"{type(self).__name__} can't be pickled or copied; the list that flush() returns can"
        )


# The collector and the responses ----------------------------------------------------------------------------

cdef traverseproc traverse_fields
cdef inquiry clear_fields
cdef destructor dealloc_fields
cdef Py_ssize_t fill_offset


cdef inline Fill* fill_of(PyObject* self) noexcept:
    # By offset: casting to the class may take and drop a reference, and here the count may be 0 already.
    return <Fill*>(<char*>self + fill_offset)


cdef int traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef Fill* fill = fill_of(self)
    cdef Py_ssize_t i
    cdef int stop
    for i in range(fill.count):
        stop = visit(fill.slab.responses[i], arg)
        if stop:
            return stop
    if fill.gate != NULL:
        stop = visit(fill.gate, arg)
        if stop:
            return stop
    return traverse_fields(self, visit, arg)


cdef void abandon_slab(Fill* fill) noexcept:
    """Release the gate, the responses and the slab. That may run Python code, which then finds an empty buffer."""
    cdef PyObject* gate = open_gate(fill)
    cdef Slab* slab = fill.slab
    cdef Py_ssize_t count = fill.count
    cdef Py_ssize_t i
    cdef PyObject* type = NULL
    cdef PyObject* value = NULL
    cdef PyObject* traceback = NULL
    store_ssize(&fill.count, 0)
    store_ssize(&fill.room, 0)
    fill.slab = &NOTHING
    Py_XDECREF(gate)
    for i in range(count):
        Py_DECREF(slab.responses[i])
    if slab.answers.readers != NULL:
        # Without a copy of their own they would keep the whole slab. If memory is short, they do.
        PyErr_Fetch(&type, &value, &traceback)
        try:
            answers_detach_readers(&slab.answers)
        except BaseException:
            pass
        PyErr_Restore(type, value, traceback)
    slab_release(slab)


cdef int clear(PyObject* self) noexcept:
    abandon_slab(fill_of(self))
    return clear_fields(self)


cdef void dealloc(PyObject* self) noexcept:
    # Weak references are cleared first: Python code that runs as the responses are freed must not reach the buffer
    # through one. That rules out __dealloc__, which Cython calls with a reference count that is not 0.
    cdef Fill* fill = fill_of(self)
    PyObject_GC_UnTrack(self)
    PyObject_ClearWeakRefs(self)
    abandon_slab(fill)
    slab_release(fill.spare)
    dealloc_fields(self)


cdef void take_slots(ResponseBuffer any) noexcept:
    global traverse_fields, clear_fields, dealloc_fields, fill_offset
    cdef PyTypeObject* slots = <PyTypeObject*>ResponseBuffer
    fill_offset = <char*>&any.fill - <char*><PyObject*>any
    traverse_fields = slots.tp_traverse
    clear_fields = slots.tp_clear
    dealloc_fields = slots.tp_dealloc
    slots.tp_traverse = traverse
    slots.tp_clear = clear
    slots.tp_dealloc = dealloc


take_slots(ResponseBuffer.__new__(ResponseBuffer))

Mapping.register(Columns)
