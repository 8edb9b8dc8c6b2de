"""`ResponseBuffer`: responses collected in one slab, with columns that numpy reads without a copy.

All memory is claimed at construction. Adding a response writes one number into each column and takes one
reference; the ids become codes on the way, through a hash table that lies in the slab too.
"""

cimport cython
from cpython.list cimport PyList_GetSlice, PyList_New
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.tuple cimport PyTuple_New
from libc.math cimport INFINITY, ceil
from libc.stdint cimport INT32_MAX, int32_t, uint32_t
from libc.string cimport memmove, memset

from synthex_fast._records cimport PooledExpertResponse
from synthex_fast._sync cimport FREE_THREADED, lock, uniquely_referenced, unlikely, unlock

from _collections_abc import ItemsView, KeysView, Mapping, ValuesView
from _thread import allocate_lock
from time import monotonic

from synthex_fast.errors import (
    ArgumentTypeError,
    BatchTooLargeError,
    BufferFullError,
    BufferPausedError,
    type_error,
    value_error,
)

__all__ = ["Aggregate", "AggregateRow", "Columns", "ResponseBuffer"]


cdef extern from *:
    """
    /* A str whose text can be hashed and compared without allocating and without running Python code. */
    static inline int synthex_plain_str(PyObject *o) {
    #if PY_VERSION_HEX < 0x030C0000
        return PyUnicode_CheckExact(o) && PyUnicode_IS_READY(o);
    #else
        return PyUnicode_CheckExact(o);
    #endif
    }

    static inline Py_hash_t synthex_str_hash(PyObject *o) {
    #ifndef Py_GIL_DISABLED
        Py_hash_t hash = ((PyASCIIObject *)o)->hash;
        if (hash != -1) return hash;
    #endif
        return PyObject_Hash(o);
    }

    /* Equal texts have equal kinds: the interpreter keeps each str in the narrowest one. */
    static inline int synthex_str_equal(PyObject *a, PyObject *b) {
        Py_ssize_t length = PyUnicode_GET_LENGTH(a);
        int kind = PyUnicode_KIND(a);
        if (a == b) return 1;
        return length == PyUnicode_GET_LENGTH(b) && kind == (int)PyUnicode_KIND(b)
            && memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b), (size_t)length * (size_t)kind) == 0;
    }

    /* The account of a slab's borrowers; returns what it comes to. */
    static inline Py_ssize_t synthex_count(Py_ssize_t *count, Py_ssize_t change) {
    #ifdef Py_GIL_DISABLED
        return _Py_atomic_add_ssize(count, change) + change;
    #else
        return *count += change;
    #endif
    }

    static inline Py_ssize_t synthex_str_nbytes(PyObject *o) {
        Py_ssize_t text = (PyUnicode_GET_LENGTH(o) + 1) * (Py_ssize_t)PyUnicode_KIND(o);
        Py_ssize_t head = PyUnicode_IS_ASCII(o) ? sizeof(PyASCIIObject) : sizeof(PyCompactUnicodeObject);
        return head + text;
    }

    #define synthex_type_nbytes(o) Py_TYPE(o)->tp_basicsize
    #define synthex_is_instance(o, type) PyObject_TypeCheck(o, (PyTypeObject *)(type))
    #define synthex_is_list(o) PyList_CheckExact(o)
    #define synthex_is_list_or_tuple(o) (PyList_CheckExact(o) || PyTuple_CheckExact(o))
    #define synthex_items(o) PySequence_Fast_ITEMS(o)
    #define synthex_items_count(o) PySequence_Fast_GET_SIZE(o)

    /* Which process this is, counted in forks, and which of its parent's threads lives on in it. */
    static uint32_t synthex_slab_forks = 0;
    static unsigned long synthex_slab_survivor = 0;
    #ifndef _WIN32
      #include <pthread.h>
      static void synthex_slab_forked(void) {
          synthex_slab_forks += 1;
          synthex_slab_survivor = PyThread_get_thread_ident();
      }
      #define synthex_slab_watch_forks() pthread_atfork(NULL, NULL, synthex_slab_forked)
    #else
      #define synthex_slab_watch_forks() 0
    #endif
    """
    bint plain_str "synthex_plain_str"(PyObject*) noexcept nogil
    Py_hash_t str_hash "synthex_str_hash"(PyObject*) noexcept
    bint str_equal "synthex_str_equal"(PyObject*, PyObject*) noexcept nogil
    Py_ssize_t count_by "synthex_count"(Py_ssize_t*, Py_ssize_t) noexcept nogil
    Py_ssize_t str_nbytes "synthex_str_nbytes"(PyObject*) noexcept nogil
    Py_ssize_t type_nbytes "synthex_type_nbytes"(PyObject*) noexcept nogil
    bint is_instance "synthex_is_instance"(PyObject*, PyObject*) noexcept nogil
    bint is_list "synthex_is_list"(PyObject*) noexcept nogil
    bint is_list_or_tuple "synthex_is_list_or_tuple"(PyObject*) noexcept nogil
    PyObject** items_of "synthex_items"(PyObject*) noexcept nogil
    Py_ssize_t items_count "synthex_items_count"(PyObject*) noexcept nogil
    uint32_t forks "synthex_slab_forks"
    unsigned long survivor "synthex_slab_survivor"
    int watch_forks "synthex_slab_watch_forks"()

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    const int PyBUF_WRITABLE
    const int PyBUF_FORMAT
    const int PyBUF_ND
    const int PyBUF_STRIDES
    bint PyIndex_Check(object)
    int PyErr_CheckSignals() except -1
    object PyNumber_Index(object)
    double PyFloat_AsDouble(object) except? -1.0
    object PyUnicode_FromObject(object)
    object PyFrozenSet_New(PyObject*)
    int PySet_Add(PyObject*, PyObject*) except -1
    void Py_INCREF(PyObject*) noexcept
    void Py_DECREF(PyObject*) noexcept
    void Py_XDECREF(PyObject*) noexcept
    void PyList_SET_ITEM(PyObject*, Py_ssize_t, PyObject*) noexcept
    void PyTuple_SET_ITEM(PyObject*, Py_ssize_t, PyObject*) noexcept
    void PyObject_GC_UnTrack(PyObject*) noexcept
    void PyObject_ClearWeakRefs(PyObject*) noexcept
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef void (*destructor)(PyObject*) noexcept
    ctypedef struct Slots "PyTypeObject":
        traverseproc tp_traverse
        inquiry tp_clear
        destructor tp_dealloc


# A batch of this many is read on the C stack.
cdef enum:
    STAGED = 32


# The code tables --------------------------------------------------------------------------------------------

cdef size_t entries_for(size_t ids) noexcept nogil:
    """At most two thirds of the entries are ever in use: a miss then looks at five of them on average."""
    cdef size_t entries = 8
    while entries < ids + ids // 2:
        entries *= 2
    return entries


cdef int32_t code_find(const CodeTable* self, PyObject* id) noexcept:
    """The code of a plain str, or -1."""
    cdef Py_hash_t hash = str_hash(id)
    cdef size_t slot = <size_t>hash & self.mask
    while self.entries[slot].code:
        if self.entries[slot].hash == <uint32_t>hash and str_equal(self.ids[self.entries[slot].code - 1], id):
            return self.entries[slot].code - 1
        slot = (slot + 1) & self.mask
    return -1


cdef int32_t code_seek(CodeTable* self, PyObject* id) noexcept:
    cdef Py_hash_t hash = str_hash(id)
    cdef size_t slot = <size_t>hash & self.mask
    while self.entries[slot].code:
        if self.entries[slot].hash == <uint32_t>hash and str_equal(self.ids[self.entries[slot].code - 1], id):
            self.last = self.entries[slot].code - 1
            return self.last
        slot = (slot + 1) & self.mask
    Py_INCREF(id)
    self.last = self.used
    self.ids[self.used] = id
    self.used += 1
    self.entries[slot].hash = <uint32_t>hash
    self.entries[slot].code = self.used
    return self.last


cdef void table_wipe(CodeTable* self) noexcept:
    """Every entry is free again; the ids stay."""
    cdef size_t slot
    cdef int32_t code
    if <size_t>self.used > self.mask // 16:
        memset(self.entries, 0, (self.mask + 1) * sizeof(CodeEntry))
        return
    # A table made for millions of ids that holds a few is not worth a pass over all its memory.
    for code in range(self.used):
        slot = <size_t>str_hash(self.ids[code]) & self.mask
        while self.entries[slot].code != code + 1:
            slot = (slot + 1) & self.mask
        self.entries[slot].code = 0


cdef void table_drop_ids(CodeTable* self, int32_t first) noexcept:
    """Let go of the ids from a code on. It runs no Python code."""
    cdef int32_t code
    for code in range(first, self.used):
        Py_DECREF(self.ids[code])
        self.ids[code] = NULL
    self.used = first
    self.last = 0


cdef void table_recode(CodeTable* self, int32_t* column, Py_ssize_t rows) noexcept:
    """Give the ids in `column` the codes of their first use there, let others go. No entry is in use."""
    cdef int32_t used = self.used
    # The free entries serve as scratch: two numbers for each id, where each has more than one entry of two.
    cdef int32_t* new_code = <int32_t*>self.entries     # of the id now in place i; -1: not needed
    cdef int32_t* place = new_code + used               # of the id that gets code i
    cdef int32_t kept = 0
    cdef int32_t i
    cdef int32_t old
    cdef Py_ssize_t row
    cdef PyObject* id
    memset(new_code, 0xff, <size_t>used * sizeof(int32_t))
    for row in range(rows):
        old = column[row]
        if new_code[old] < 0:
            new_code[old] = kept
            place[kept] = old
            kept += 1
        column[row] = new_code[old]
    for i in range(kept):
        old = place[i]
        if old != i:
            id = self.ids[i]
            self.ids[i] = self.ids[old]
            self.ids[old] = id
            new_code[old] = new_code[i]
            if new_code[i] >= 0:
                place[new_code[i]] = old
    memset(self.entries, 0, <size_t>used * sizeof(CodeEntry))
    table_drop_ids(self, kept)
    for i in range(kept):
        table_enter(self, i)


cdef void table_enter(CodeTable* self, int32_t code) noexcept:
    """Make the id of this code findable; it is not yet."""
    cdef Py_hash_t hash = str_hash(self.ids[code])
    cdef size_t slot = <size_t>hash & self.mask
    while self.entries[slot].code:
        slot = (slot + 1) & self.mask
    self.entries[slot].hash = <uint32_t>hash
    self.entries[slot].code = code + 1


cdef tuple table_ids(const CodeTable* self, int32_t used):
    cdef tuple ids = PyTuple_New(used)
    cdef int32_t code
    for code in range(used):
        Py_INCREF(self.ids[code])
        PyTuple_SET_ITEM(<PyObject*>ids, code, self.ids[code])
    return ids


# The slab ---------------------------------------------------------------------------------------------------

cdef double NO_ROWS                    # something for the columns of a buffer without memory to point at
cdef Slab NOTHING                      # what a buffer fills before __init__: it has room for nothing
NOTHING.confidence = NOTHING.timestamp = &NO_ROWS
NOTHING.query = NOTHING.expert = <int32_t*>&NO_ROWS


cdef Slab* slab_new(Py_ssize_t capacity) except NULL:
    """Room for so many rows and as many distinct ids in each code table, or MemoryError.

    The memory comes zeroed: large blocks come from the system that way, page by page as they are touched.
    """
    cdef size_t rows = <size_t>capacity
    cdef size_t entries
    cdef size_t nbytes
    cdef char* at
    cdef Slab* self
    # A row takes at most 96 bytes, its share of the code tables included.
    if capacity > (PY_SSIZE_T_MAX - 4096) // 128:
        raise MemoryError()
    entries = entries_for(rows)
    nbytes = (
        sizeof(Slab)
        + rows * (2 * sizeof(double) + 2 * sizeof(int32_t) + 3 * sizeof(PyObject*))
        + 2 * entries * sizeof(CodeEntry)
    )
    self = <Slab*>PyMem_RawCalloc(1, nbytes)
    if self == NULL:
        raise MemoryError()
    self.borrowers = 1
    self.capacity = capacity
    self.nbytes = <Py_ssize_t>nbytes
    at = <char*>self + sizeof(Slab)
    self.confidence = <double*>at
    self.timestamp = self.confidence + rows
    self.query = <int32_t*>(self.timestamp + rows)
    self.expert = self.query + rows
    self.responses = <PyObject**>(self.expert + rows)
    self.queries.ids = self.responses + rows
    self.experts.ids = self.queries.ids + rows
    self.queries.entries = <CodeEntry*>(self.experts.ids + rows)
    self.experts.entries = self.queries.entries + entries
    self.queries.mask = self.experts.mask = entries - 1
    return self


cdef inline PyObject* open_gate(Fill* fill) noexcept:
    """End the pause. The gate, with its reference, or NULL where there was none. The caller holds the lock."""
    cdef PyObject* gate = fill.gate
    fill.gate = NULL
    fill.room = fill.slab.capacity
    return gate


cdef void slab_release(Slab* self) noexcept:
    """Give up one borrower's share; the last one frees the slab. The responses are not its concern."""
    if self == NULL or self == &NOTHING:
        return
    if count_by(&self.borrowers, -1) == 0:
        table_drop_ids(&self.queries, 0)
        table_drop_ids(&self.experts, 0)
        PyMem_RawFree(self)


cdef inline bint slab_is_shared(Slab* self) noexcept:
    return count_by(&self.borrowers, 0) > 1


cdef void slab_move_rows(Slab* to, const Slab* self, Py_ssize_t first, Py_ssize_t rows) noexcept:
    """Copy rows to the front of `to`, which may be the same slab; codes and references as they are."""
    memmove(to.confidence, self.confidence + first, <size_t>rows * sizeof(double))
    memmove(to.timestamp, self.timestamp + first, <size_t>rows * sizeof(double))
    memmove(to.query, self.query + first, <size_t>rows * sizeof(int32_t))
    memmove(to.expert, self.expert + first, <size_t>rows * sizeof(int32_t))
    memmove(to.responses, self.responses + first, <size_t>rows * sizeof(PyObject*))


cdef void slab_keep(Slab* self, Py_ssize_t first, Py_ssize_t rows) noexcept:
    """Leave only `rows` rows from `first` on, at the front. It lets ids go: not under a lock that is one."""
    table_wipe(&self.queries)
    table_wipe(&self.experts)
    if rows:
        slab_move_rows(self, self, first, rows)
        table_recode(&self.queries, self.query, rows)
        table_recode(&self.experts, self.expert, rows)
    else:
        table_drop_ids(&self.queries, 0)
        table_drop_ids(&self.experts, 0)


cdef void slab_copy(Slab* to, const Slab* self, Py_ssize_t first, Py_ssize_t rows) noexcept:
    """Put `rows` rows from `first` on into the fresh slab `to`; here they stay as they are."""
    cdef Py_ssize_t row
    slab_move_rows(to, self, first, rows)
    for row in range(rows):
        to.query[row] = code_of(&to.queries, self.queries.ids[to.query[row]])
        to.expert[row] = code_of(&to.experts, self.experts.ids[to.expert[row]])


cdef inline void slab_write(
    Slab* self,
    Py_ssize_t row,
    PyObject* response,
    PyObject* query,
    PyObject* expert,
    double confidence,
    double timestamp,
) noexcept:
    self.confidence[row] = confidence
    self.timestamp[row] = timestamp
    self.query[row] = code_of(&self.queries, query)
    self.expert[row] = code_of(&self.experts, expert)
    self.responses[row] = response


cdef char* BYTE = b"B"                 # the struct module's name for it


@cython.final
@cython.no_gc              # it leads to str objects only, which lead nowhere
cdef class SlabView:
    """What a numpy column stands on: the columns' memory, read-only, alive and unchanged while this is."""

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


cdef object ndarray = None             # numpy.ndarray, from the first call of columns() on


cdef object column(SlabView view, void* start, str dtype):
    global ndarray
    if ndarray is None:
        from numpy import ndarray as loaded
        ndarray = loaded
    return ndarray(view.rows, dtype, view, <char*>start - <char*>view.slab.confidence)


@cython.final
@cython.collection_type("mapping")
cdef class Columns:
    """The columns of a `ResponseBuffer` as read-only numpy arrays, by attribute or by name as in a mapping.

    `confidence` and `timestamp` (seconds since the epoch, UTC) are float64; `query` and `expert` are int32
    codes: ``columns.queries[code]`` and ``columns.experts[code]`` are the ids. Arrays and ids stay what
    they are, whatever becomes of the buffer.

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
        """The query ids: a tuple, a code of `query` is an index into it. Made at each access, O(ids)."""
        return () if self.view is None else table_ids(&self.view.slab.queries, self.view.queries)

    @property
    def experts(self):
        """The expert ids: a tuple, a code of `expert` is an index into it. Made at each access, O(ids)."""
        return () if self.view is None else table_ids(&self.view.slab.experts, self.view.experts)

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


# Consensus --------------------------------------------------------------------------------------------------

@cython.final
cdef class AggregateRow:
    """What the answers to one query come to.

    `count`, `mean` and population `variance` of their confidence, and the ids of the `experts` who gave them,
    a frozenset.

    >>> row = AggregateRow(2, 0.8, 0.01, ["ada", "bob"])
    >>> row.consensus, sorted(row.experts)
    ('high', ['ada', 'bob'])
    """

    __match_args__ = ("count", "mean", "variance", "experts")

    def __init__(self, Py_ssize_t count, double mean, double variance, experts):
        self.count = count
        self.mean = mean
        self.variance = variance
        self.experts = frozenset(experts)

    @property
    def consensus(self):
        """high where variance < 0.05 and mean > 0.7, medium where variance < 0.1 and mean > 0.5, else low."""
        if self.variance < 0.05 and self.mean > 0.7:
            return "high"
        if self.variance < 0.1 and self.mean > 0.5:
            return "medium"
        return "low"

    def __eq__(self, other):
        if type(other) is not AggregateRow:
            return NotImplemented
        cdef AggregateRow row = <AggregateRow>other
        return (
            self.count == row.count
            and self.mean == row.mean
            and self.variance == row.variance
            and self.experts == row.experts
        )

    def __hash__(self):
        return hash((self.count, self.mean, self.variance, self.experts))

    def __repr__(self):
        experts = ", ".join(map(repr, sorted(self.experts)))
        return (
            f"AggregateRow(count={self.count}, mean={self.mean!r}, variance={self.variance!r}, "
            f"experts={{{experts}}}, consensus={self.consensus!r})"
        )

    def __reduce__(self):
        return AggregateRow, (self.count, self.mean, self.variance, self.experts)


@cython.final
@cython.collection_type("mapping")
@cython.no_gc              # it leads to str objects only, which lead nowhere
cdef class Aggregate:
    """A read-only mapping from query id to `AggregateRow`, in the order in which the queries were first seen.

    It is a copy of what the buffer held when `ResponseBuffer.aggregate` made it, and does not change. Rows
    are made when they are read: a look-up is O(answers to that query).

    >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
    >>> buffer = ResponseBuffer(capacity=10)
    >>> buffer.add(PooledExpertResponse("q1", "ada", confidence=1.0))
    >>> {query: (row.count, row.consensus) for query, row in buffer.aggregate().items()}
    {'q1': (1, 'high')}
    """

    def __init__(self):
        raise ArgumentTypeError("an Aggregate is made by ResponseBuffer.aggregate()")

    def __dealloc__(self):
        if self.block != NULL:
            table_drop_ids(&self.queries, 0)
            table_drop_ids(&self.experts, 0)
            PyMem_RawFree(self.block)

    cdef AggregateRow row(self, int32_t query):
        cdef AggregateRow row = AggregateRow.__new__(AggregateRow)
        cdef Py_ssize_t i
        cdef frozenset experts = PyFrozenSet_New(NULL)
        for i in range(self.start[query], self.start[query + 1]):
            # A frozenset that nobody has seen yet may still be added to.
            PySet_Add(<PyObject*>experts, self.experts.ids[self.expert[i]])
        row.count = self.start[query + 1] - self.start[query]
        row.mean = self.mean[query]
        row.variance = self.variance[query]
        row.experts = experts
        return row

    cdef int32_t find(self, key) except -2:
        # As a dict does, an unhashable key is an error and not a miss.
        if not isinstance(key, str):
            hash(key)
            return -1
        if self.queries.used == 0:
            return -1
        key = PyUnicode_FromObject(key)
        return code_find(&self.queries, <PyObject*>key)

    def __getitem__(self, key):
        cdef int32_t query = self.find(key)
        if query < 0:
            raise KeyError(key)
        return self.row(query)

    def get(self, key, default=None):
        """The row of this query, or the default."""
        cdef int32_t query = self.find(key)
        return default if query < 0 else self.row(query)

    def __contains__(self, key):
        return self.find(key) >= 0

    def __len__(self):
        return self.queries.used

    def __iter__(self):
        return iter(table_ids(&self.queries, self.queries.used))

    def __reversed__(self):
        return reversed(table_ids(&self.queries, self.queries.used))

    def keys(self):
        """The query ids, in the order in which they were first seen."""
        return KeysView(self)

    def values(self):
        """The rows, each made when the iteration comes to it."""
        return ValuesView(self)

    def items(self):
        """Pairs of query id and row, each row made when the iteration comes to it."""
        return ItemsView(self)

    def __eq__(self, other):
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self) == dict(other)

    __hash__ = None

    def __repr__(self):
        return f"<Aggregate of {self.queries.used} queries>"

    def __reduce__(self):
        raise ArgumentTypeError("an Aggregate can't be pickled or copied; dict(aggregate) can")


cdef Aggregate aggregate_new(SlabView view):
    cdef Slab* slab = view.slab
    cdef size_t rows = <size_t>view.rows
    cdef size_t queries = <size_t>view.queries
    cdef size_t experts = <size_t>view.experts
    cdef size_t entries = entries_for(queries)
    cdef Aggregate self = Aggregate.__new__(Aggregate)
    cdef Py_ssize_t row
    cdef Py_ssize_t count
    cdef int32_t query
    cdef double away
    cdef double* rest
    cdef char* block
    if rows == 0:
        return self
    # No overflow: the slab itself is larger.
    block = <char*>PyMem_RawCalloc(
        1,
        queries * (3 * sizeof(double) + sizeof(Py_ssize_t) + sizeof(PyObject*))
        + 2 * sizeof(Py_ssize_t)
        + experts * sizeof(PyObject*)
        + entries * sizeof(CodeEntry)
        + rows * sizeof(int32_t),
    )
    if block == NULL:
        raise MemoryError()
    self.block = block
    self.mean = <double*>block
    self.variance = self.mean + queries
    rest = self.variance + queries
    self.start = <Py_ssize_t*>(rest + queries)
    self.queries.ids = <PyObject**>(self.start + queries + 2)
    self.experts.ids = self.queries.ids + queries
    self.queries.entries = <CodeEntry*>(self.experts.ids + experts)
    self.queries.mask = entries - 1
    self.expert = <int32_t*>(self.queries.entries + entries)

    # Sums first, then the squares of what is left without the mean, corrected for the rounding of the mean
    # (Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983). On the way the experts
    # are sorted by query: start[q + 2] counts, then start[q + 1] is where the next answer to q goes, and in
    # the end where q's answers end.
    for row in range(view.rows):
        query = slab.query[row]
        self.mean[query] += slab.confidence[row]
        self.start[query + 2] += 1
    for query in range(view.queries):
        self.mean[query] /= <double>self.start[query + 2]
        self.start[query + 2] += self.start[query + 1]
    for row in range(view.rows):
        query = slab.query[row]
        away = slab.confidence[row] - self.mean[query]
        self.variance[query] += away * away
        rest[query] += away
        self.expert[self.start[query + 1]] = slab.expert[row]
        self.start[query + 1] += 1
    for query in range(view.queries):
        count = self.start[query + 1] - self.start[query]
        self.variance[query] -= rest[query] * rest[query] / <double>count
        self.variance[query] /= <double>count
    for query in range(view.queries):
        Py_INCREF(slab.queries.ids[query])
        self.queries.ids[query] = slab.queries.ids[query]
        table_enter(&self.queries, query)
    self.queries.used = view.queries
    for query in range(view.experts):
        Py_INCREF(slab.experts.ids[query])
        self.experts.ids[query] = slab.experts.ids[query]
    self.experts.used = view.experts
    return self


# The buffer -------------------------------------------------------------------------------------------------

cdef Py_ssize_t sole_nbytes(PyObject* response) noexcept:
    """What goes with this reference: a response and its texts, as far as nothing else leads to them."""
    cdef Py_ssize_t nbytes
    cdef PyObject* text
    if not uniquely_referenced(response):
        return 0
    nbytes = type_nbytes(response)
    text = <PyObject*>(<PooledExpertResponse>response).content
    if plain_str(text) and uniquely_referenced(text):
        nbytes += str_nbytes(text)
    text = <PyObject*>(<PooledExpertResponse>response).reasoning
    if plain_str(text) and uniquely_referenced(text):
        nbytes += str_nbytes(text)
    return nbytes


cdef int row_read(Row* self, object got, Py_ssize_t index) except -1:
    """Fill the row with what the response says now, and strong references. A lone response has index -1."""
    cdef PooledExpertResponse response
    cdef object query
    cdef object expert
    if not isinstance(got, PooledExpertResponse):
        raise type_error("response" if index < 0 else f"responses[{index}]", got, "a PooledExpertResponse")
    response = <PooledExpertResponse>got
    with cython.critical_section(response):
        query = response.query_id
        expert = response.expert_id
        self.confidence = response.confidence
        self.timestamp = response.seconds
    # A subclass of str may have its own __hash__ and __eq__; its text has not.
    query = PyUnicode_FromObject(query)
    expert = PyUnicode_FromObject(expert)
    Py_INCREF(<PyObject*>query)
    Py_INCREF(<PyObject*>expert)
    Py_INCREF(<PyObject*>response)
    self.query = <PyObject*>query
    self.expert = <PyObject*>expert
    self.response = <PyObject*>response
    return 0


cdef object query_of(object got, Py_ssize_t index):
    """The id of the query that a response answers, as a plain str."""
    cdef object query
    if not isinstance(got, PooledExpertResponse):
        raise type_error(f"responses[{index}]", got, "a PooledExpertResponse")
    with cython.critical_section(got):
        query = (<PooledExpertResponse>got).query_id
    return PyUnicode_FromObject(query)


cdef void row_drop(Row* self) noexcept:
    Py_DECREF(self.query)
    Py_DECREF(self.expert)
    Py_XDECREF(self.response)


cdef Py_ssize_t positive(str name, object value) except -1:
    if not PyIndex_Check(value) or isinstance(value, bool):
        raise type_error(name, value, "a positive integer")
    value = PyNumber_Index(value)
    if value < 1 or value > PY_SSIZE_T_MAX:
        raise value_error(name, value, f"a positive integer up to {PY_SSIZE_T_MAX}")
    return value


cdef str WAITS = "True, False, seconds (0 or more) or a callable that returns one of these"


cdef double seconds_to_wait(object wait) except -1.0:
    """0: not at all, infinity: for ever."""
    cdef double seconds
    if wait is True:
        return INFINITY
    if wait is False:
        return 0.0
    if isinstance(wait, str):
        raise type_error("wait", wait, WAITS)
    try:
        seconds = PyFloat_AsDouble(wait)
    except TypeError:
        raise type_error("wait", wait, WAITS) from None
    except OverflowError:
        seconds = INFINITY if wait > 0 else -1.0
    if not seconds >= 0.0:
        raise value_error("wait", wait, WAITS)
    return seconds


@cython.final
@cython.internal
cdef class Gate:
    """What the additions to a paused buffer wait at.

    The lock is held from pause to resume; whoever gets hold of it lets go at once, and so lets in the next
    one. Each pause has a gate of its own: those who are still passing the last one can't be in the way.
    """

    def __cinit__(self, wait):
        self.seconds = 0.0
        if callable(wait):
            self.ask = wait
        else:
            self.seconds = seconds_to_wait(wait)
        try:
            self.shut = allocate_lock()
        except RuntimeError:
            # "can't allocate lock", until 3.12.
            raise MemoryError() from None
        self.shut.acquire()


cdef class ResponseBuffer:
    """A buffer of expert responses, of fixed size, with a cap on the batches it takes.

    `capacity` responses fit, `add_batch` takes at most `max_batch` at a time. With `on_flush` the buffer
    hands its responses to that handler, as a list, when it holds ``flush_threshold * capacity`` of them
    after an addition, or when an addition finds no room; without one a full buffer raises
    `BufferFullError`.

    Adding allocates nothing and costs O(1) per response. The columns say what a response said when it was
    added. A handler that raises loses nothing: the responses stay, in order, and the error reaches the
    caller. What the caller was adding is in the buffer then, unless it was to make room for it that the
    handler was called; ``stats["added"]`` tells. While the handler runs the buffer may be used, from this
    thread and others: additions go behind the rows that are being flushed, as long as there is room, and a
    flush inside a flush takes nothing.

    `pause` makes additions wait, or fail, until `resume`; everything else goes on.

    >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
    >>> buffer = ResponseBuffer(capacity=100, max_batch=10)
    >>> buffer.add(PooledExpertResponse("q1", "ada", confidence=0.9))
    >>> buffer.add_batch(PooledExpertResponse(query, "bob", confidence=0.7) for query in ("q1", "q2"))
    2
    >>> len(buffer), buffer.aggregate()["q1"].consensus
    (3, 'high')
    >>> [response.expert_id for response in buffer.flush()]
    ['ada', 'bob', 'bob']
    """

    def __cinit__(self):
        self.fill.slab = &NOTHING
        self.flush_at = PY_SSIZE_T_MAX

    def __init__(self, capacity=1000, max_batch=100, *, flush_threshold=0.8, on_flush=None):
        cdef Py_ssize_t rows = positive("capacity", capacity)
        cdef Py_ssize_t batch = positive("max_batch", max_batch)
        cdef double threshold
        cdef Py_ssize_t basic = type(self).__basicsize__
        cdef Slab* slab
        cdef bint fresh
        if isinstance(flush_threshold, (bool, str)):
            raise type_error("flush_threshold", flush_threshold, "a number above 0 and up to 1")
        try:
            threshold = PyFloat_AsDouble(flush_threshold)
        except TypeError:
            raise type_error("flush_threshold", flush_threshold, "a number above 0 and up to 1") from None
        except OverflowError:
            threshold = 2.0
        if not 0.0 < threshold <= 1.0:
            raise value_error("flush_threshold", flush_threshold, "a number above 0 and up to 1")
        if on_flush is not None and not callable(on_flush):
            raise type_error("on_flush", on_flush, "callable or None")
        slab = slab_new(rows)
        lock(&self.guard)
        fresh = self.fill.slab == &NOTHING
        if fresh:
            self.fill.slab = slab
            if self.fill.gate == NULL:
                self.fill.room = rows
            self.capacity = rows
            self.max_batch = batch
            self.flush_threshold = threshold
            self.on_flush = on_flush
            self.nbytes = slab.nbytes + basic
            if on_flush is not None:
                # A product that rounding puts a hair above the whole number it stands for must not cost one
                # more row.
                self.flush_at = max(<Py_ssize_t>1, <Py_ssize_t>ceil(threshold * <double>rows * (1.0 - 1e-12)))
        unlock(&self.guard)
        if not fresh:
            slab_release(slab)
            raise ArgumentTypeError("a ResponseBuffer can't be initialised twice")

    cdef Stored store(self, Row* rows, Py_ssize_t n) noexcept:
        """Add all rows, or none where there is no room. The references to the responses change hands."""
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
        self.stored(n)
        unlock(&self.guard)
        return STORED

    cdef inline bint fits(self, Py_ssize_t n) noexcept:
        """Whether n rows may be added: there is room, also for a new code for each, and no pause."""
        cdef Py_ssize_t codes = min(self.fill.room, <Py_ssize_t>(INT32_MAX - 1))
        codes -= max(self.fill.slab.queries.used, self.fill.slab.experts.used)
        return n <= self.fill.room - self.fill.count and n <= codes

    cdef inline void stored(self, Py_ssize_t n) noexcept:
        self.fill.count += n
        self.added += n
        if self.fill.count > self.high_water:
            self.high_water = self.fill.count

    cdef Py_ssize_t store_items(self, PyObject** items, Py_ssize_t n) noexcept:
        """Add responses straight from a list or tuple that nobody can change meanwhile.

        The number added, 0 where there is no room, or -1 where an item is none of the plain kind and
        nothing was added. Nothing in here runs Python code or allocates, which is what makes the borrowed
        references safe on the standard build.
        """
        cdef Py_ssize_t i
        cdef PyObject* item
        cdef Slab* slab = self.fill.slab
        for i in range(n):
            item = items[i]
            if unlikely(not is_instance(item, <PyObject*>PooledExpertResponse)):
                return -1
            if unlikely(
                not plain_str(<PyObject*>(<PooledExpertResponse>item).query_id)
                or not plain_str(<PyObject*>(<PooledExpertResponse>item).expert_id)
            ):
                return -1
        if unlikely(not self.fits(n)):
            return 0
        for i in range(n):
            item = items[i]
            Py_INCREF(item)
            slab_write(
                slab,
                self.fill.count + i,
                item,
                <PyObject*>(<PooledExpertResponse>item).query_id,
                <PyObject*>(<PooledExpertResponse>item).expert_id,
                (<PooledExpertResponse>item).confidence,
                (<PooledExpertResponse>item).seconds,
            )
        self.stored(n)
        return n

    cdef int make_room(self, Py_ssize_t n) except -1:
        if self.on_flush is None or n > self.capacity:
            raise self.full(n)
        self.empty(False)
        return 0

    cdef bint flushes_here(self) noexcept:
        """Whether this thread is in the middle of a flush. The caller holds the lock."""
        return self.flushing and self.flusher == PyThread_get_thread_ident() and (
            self.generation == forks or self.flusher == survivor
        )

    cdef int pass_gate(self, Py_ssize_t n, double* since) except -1:
        """Wait until the buffer is resumed, as long as the pause allows. `since`: when the wait began, or -1."""
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
            raise self.full(n)
        if here:
            # Perhaps this flush is what is to make room in memory, by the thread that would resume.
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
        # An interrupt that comes just before the wait begins does not end it; it shall not be lost for long.
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

    cdef object full(self, Py_ssize_t n):
        lock(&self.guard)
        self.rejected += 1
        unlock(&self.guard)
        return BufferFullError(
            f"no room for {n} more: the buffer holds {self.fill.count} of {self.capacity} responses; "
            "nothing was added"
        )

    cdef object too_large(self, str n):
        lock(&self.guard)
        self.rejected += 1
        unlock(&self.guard)
        return BatchTooLargeError(
            f"responses must be a batch of at most {self.max_batch} (max_batch), not {n}; nothing was added"
        )

    cdef int add_rows(self, PyObject** items, Py_ssize_t n, bint single) except -1:
        """Add responses by way of rows, all read before any Python code can run and change the items."""
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
                    self.pass_gate(n, &since)
                elif flushed:
                    raise self.full(n)
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
        """Add one response. O(1), allocates nothing.

        Raises `ArgumentTypeError` for anything but a PooledExpertResponse, and `BufferFullError` if there
        is no room and no handler to make some, or if the handler is at work already. An error that the
        handler raises is passed on: the response is in the buffer then, unless it was to make room for it.
        """
        cdef PyObject* item = <PyObject*>response
        if FREE_THREADED or self.store_items(&item, 1) != 1:
            self.add_rows(&item, 1, True)
        if self.fill.count >= self.flush_at:
            self.empty(False)

    def add_batch(self, responses):
        """Add the responses of an iterable, all or none, and return how many.

        O(n). Allocates nothing for a list or tuple; the free-threaded build copies a list and reads long
        batches into memory of their own.

        Raises `BatchTooLargeError` for more than `max_batch` of them (an iterator is read to that number
        plus one and no further), `ArgumentTypeError` if one is no PooledExpertResponse, and
        `BufferFullError` as `add` does; nothing was added then. An error that the handler raises is passed
        on: the batch is in the buffer then, unless the handler was to make room for it.
        """
        cdef PyObject* given = <PyObject*>responses
        cdef object items = responses
        cdef Py_ssize_t n
        cdef Py_ssize_t stored
        cdef bint sequence = is_list_or_tuple(given)
        if not sequence:
            items = self.collect(responses)
        n = items_count(<PyObject*>items)
        if n > self.max_batch:
            raise self.too_large(str(n))
        if FREE_THREADED and is_list(given):
            # Another thread may change the list at any moment.
            items = PyList_GetSlice(responses, 0, n)
            n = items_count(<PyObject*>items)
        if n == 0:
            return 0
        stored = -1
        if not FREE_THREADED:
            stored = self.store_items(items_of(<PyObject*>items), n)
        if unlikely(stored != n):
            self.add_rows(items_of(<PyObject*>items), n, False)
        lock(&self.guard)
        self.batches += 1
        unlock(&self.guard)
        if self.fill.count >= self.flush_at:
            self.empty(False)
        return n

    def _admit(self, tuple responses):
        """See to it that `_store_batch` will take these: responses, within the cap, with room made for them.

        Raises what `add_batch` raises, before anything has changed. Returns the id of the query that they
        answer, or a list with that of each response where they answer several.
        """
        cdef Py_ssize_t n = items_count(<PyObject*>responses)
        cdef PyObject** items = items_of(<PyObject*>responses)
        cdef object query = None
        cdef object other
        cdef list several = None
        cdef double since = -1.0
        cdef bint flushed = False
        cdef Py_ssize_t i
        if n > self.max_batch:
            raise self.too_large("more")
        for i in range(n):
            other = query_of(<object>items[i], i)
            if several is not None:
                several.append(other)
            elif query is None:
                query = other
            elif not str_equal(<PyObject*>query, <PyObject*>other):
                several = [query] * i
                several.append(other)
        while not self.fits(n):
            if self.fill.gate != NULL:
                self.pass_gate(n, &since)
            elif flushed:
                raise self.full(n)
            else:
                self.make_room(n)
                flushed = True
        return query if several is None else several

    def _store_batch(self, tuple responses):
        """Add all or none, as `add_batch` does, and leave the flush that is due then to the caller.

        Returns whether one is. An error means that nothing was added, whoever raised it.
        """
        cdef Py_ssize_t n = items_count(<PyObject*>responses)
        cdef Py_ssize_t stored = -1
        if n > self.max_batch:
            raise self.too_large("more")
        if not FREE_THREADED:
            stored = self.store_items(items_of(<PyObject*>responses), n)
        if unlikely(stored != n):
            self.add_rows(items_of(<PyObject*>responses), n, False)
        lock(&self.guard)
        self.batches += 1
        unlock(&self.guard)
        return self.fill.count >= self.flush_at

    cdef list collect(self, object iterable):
        cdef list items = []
        cdef object source
        try:
            source = iter(iterable)
        except TypeError as error:
            raise type_error("responses", iterable, "an iterable of PooledExpertResponse") from error
        for item in source:
            if len(items) == self.max_batch:
                raise self.too_large("more")
            items.append(item)
        return items

    cdef Py_ssize_t begin(self) noexcept:
        """The rows that a flush starting now takes: 0 while another is at work. The caller holds the lock."""
        if self.flushing and (self.generation == forks or self.flusher == survivor):
            return 0
        # A flush begun before a fork by a thread that is not in this process never ends.
        self.flushing = self.fill.count > 0
        self.flusher = PyThread_get_thread_ident()
        self.generation = forks
        return self.fill.count

    cdef list empty(self, bint wanted, Py_ssize_t* freed=NULL):
        """Flush, and return the responses if wanted. What may fail is done before anything changes."""
        cdef Py_ssize_t rows
        cdef Py_ssize_t left
        cdef Py_ssize_t i
        cdef bint shared = False
        cdef Slab* old = NULL
        cdef Slab* spare = NULL
        cdef tuple kept = None
        cdef list result = None
        lock(&self.guard)
        rows = self.begin()
        if rows:
            shared = self.needs_spare()
        unlock(&self.guard)
        if rows == 0:
            return []
        try:
            if shared:
                self.prepare()
            if self.on_flush is None:
                result = PyList_New(rows)
            else:
                # These references outlast the rows', so that removing the rows frees no response.
                kept = PyTuple_New(rows)
                for i in range(rows):
                    Py_INCREF(self.fill.slab.responses[i])
                    PyTuple_SET_ITEM(<PyObject*>kept, i, self.fill.slab.responses[i])
                if wanted:
                    result = list(kept)
                self.on_flush(list(kept))
        except BaseException:
            lock(&self.guard)
            self.flushing = False
            self.failed += 1
            spare = self.fill.spare
            self.fill.spare = NULL
            unlock(&self.guard)
            slab_release(spare)
            raise
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
        self.fill.count = left
        self.flushing = False
        self.flushes += 1
        self.flushed += rows
        unlock(&self.guard)
        slab_release(old)
        slab_release(spare)
        if kept is not None:
            # What the rows held; `kept` still holds its own.
            for i in range(rows):
                Py_DECREF(items_of(<PyObject*>kept)[i])
        if freed != NULL:
            for i in range(rows):
                freed[0] += sole_nbytes(items_of(<PyObject*>kept)[i])
        return result

    cdef inline bint needs_spare(self) noexcept:
        """Whether a flush that ended now would lack a fresh slab to turn to. The caller holds the lock.

        On the free-threaded build each flush takes one: letting ids or responses go may wait for another
        thread, which must not happen under a lock, and the old slab is there until they are gone.
        """
        return self.fill.spare == NULL and (FREE_THREADED or slab_is_shared(self.fill.slab))

    cdef int prepare(self) except -1:
        """See to it that the flush at work has a fresh slab to turn to."""
        cdef Slab* spare = slab_new(self.capacity)
        lock(&self.guard)
        if self.flushing and self.fill.spare == NULL:
            self.fill.spare = spare
            spare = NULL
        unlock(&self.guard)
        slab_release(spare)
        return 0

    def pause(self, wait=True):
        """Let no new response in until `resume`; everything else goes on. O(1). Return whether this call did it.

        `wait` says what becomes of `add` and `add_batch` meanwhile. True: they wait, without the interpreter's
        lock, until the buffer is resumed; Ctrl-C ends the wait. A number: they wait that many seconds and
        then raise `BufferPausedError`. False: they raise it at once. A callable is asked by each addition,
        in the thread that adds, for one of these (again each second of a wait): an event loop's thread
        should not wait. An addition that
        can't succeed anyway fails without waiting, and one made in the buffer's own flush handler raises
        `BufferPausedError`: the flush may be what the pause is for. What was refused or interrupted has
        added nothing.

        Pauses are not counted: a paused buffer stays as it is, with the `wait` it has (the call returns
        False), and one `resume` ends it. A process forked meanwhile has its copy paused too.

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
            self.fill.gate = <PyObject*>gate
            self.fill.room = 0
        unlock(&self.guard)
        return first

    def resume(self):
        """Let responses in again and wake everyone who waits to add one. O(1). Return whether it was paused."""
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
        """Whether additions wait or fail because of `pause`."""
        return self.fill.gate != NULL

    def flush(self):
        """Take all responses out and return them as a list, in the order in which they were added; O(n).

        With a handler they are handed to it first, as a list of its own; if it raises, they all stay. Empty
        while a flush is at work, in the handler or in another thread: that one has taken them. Raises
        MemoryError if there is no memory for the list, or for a fresh slab while columns are alive; nothing
        has changed then.
        """
        return self.empty(True)

    def trim(self, nbytes):
        """Flush through the handler, if there is one and `nbytes` is not 0; return the bytes freed, at least.

        The buffer's own size never changes. What counts are the responses that nobody else holds when the
        handler is done with them: each record with its content and reasoning. 0 without a handler.
        """
        cdef object wanted
        cdef Py_ssize_t freed = 0
        if not PyIndex_Check(nbytes) or isinstance(nbytes, bool):
            raise type_error("nbytes", nbytes, "an integer, 0 or more")
        wanted = PyNumber_Index(nbytes)
        if wanted < 0:
            raise value_error("nbytes", nbytes, "an integer, 0 or more")
        if wanted and self.on_flush is not None:
            self.empty(False, &freed)
        try:
            return freed
        except MemoryError:
            # The flush is done, and the caller short of memory: a smaller figure serves better than an error.
            return 0

    cdef SlabView borrow(self):
        """A view of the rows as they are now. While one lives, the slab is not used again."""
        cdef SlabView view = SlabView.__new__(SlabView)
        lock(&self.guard)
        while self.flushing and self.fill.spare == NULL:
            unlock(&self.guard)
            self.prepare()
            lock(&self.guard)
        count_by(&self.fill.slab.borrowers, 1)
        view.slab = self.fill.slab
        view.rows = self.fill.count
        view.queries = self.fill.slab.queries.used
        view.experts = self.fill.slab.experts.used
        unlock(&self.guard)
        return view

    def columns(self):
        """The columns as numpy arrays over the slab: read-only, of length ``len(buffer)``, no copy. O(1).

        `confidence` and `timestamp` (seconds since the epoch, UTC) are float64, `query` and `expert` int32
        codes, by attribute or by name; ``columns.queries[code]`` is the id. What an array shows never
        changes, and it keeps its memory alive: a flush leaves the slab to the arrays and goes on in a fresh
        one. Where no array is left it goes on in the same one, except on the free-threaded build. Raises
        MemoryError; needs numpy, which is imported at the first call.
        """
        cdef SlabView view = self.borrow()
        cdef Columns columns = Columns.__new__(Columns)
        columns.view = view
        columns.confidence = column(view, view.slab.confidence, "f8")
        columns.timestamp = column(view, view.slab.timestamp, "f8")
        columns.query = column(view, view.slab.query, "i4")
        columns.expert = column(view, view.slab.expert, "i4")
        return columns

    @property
    def queries(self):
        """The query ids: a tuple, a code of the `query` column is an index into it. Made at each access."""
        cdef SlabView view = self.borrow()
        return table_ids(&view.slab.queries, view.queries)

    @property
    def experts(self):
        """The expert ids: a tuple, a code of the `expert` column is an index into it. Made at each access."""
        cdef SlabView view = self.borrow()
        return table_ids(&view.slab.experts, view.experts)

    def aggregate(self):
        """What the answers to each query come to: a read-only mapping from query id to `AggregateRow`. O(n).

        Count, mean and population variance of the confidence are worked out now, in C, from the columns; a
        row and its set of experts are made when it is read. The mapping keeps nothing of the buffer and
        does not change.

        >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
        >>> buffer = ResponseBuffer()
        >>> buffer.add(PooledExpertResponse("q1", "ada", confidence=1.0))
        >>> buffer.add(PooledExpertResponse("q1", "bob", confidence=0.5))
        >>> buffer.aggregate()["q1"]
        AggregateRow(count=2, mean=0.75, variance=0.0625, experts={'ada', 'bob'}, consensus='medium')
        """
        return aggregate_new(self.borrow())

    @property
    def stats(self):
        """Counts since construction, as a dict.

        ``added`` responses, ``batches`` (calls of `add_batch` that succeeded), ``flushed`` responses,
        ``flushes``, ``failed`` (flushes that failed, the handler's errors for the most part), ``rejected``
        (calls refused because of the cap, a pause or for want of room), ``waited`` (calls that had to wait
        for the end of a pause) and ``high_water`` (the most responses held at once).
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
        return self.fill.count

    def __sizeof__(self):
        return self.nbytes

    def __repr__(self):
        return f"<{type(self).__name__} of {self.fill.count} responses, capacity {self.capacity}>"

    def __reduce__(self):
        raise ArgumentTypeError(
            f"a {type(self).__name__} can't be pickled or copied; the list that flush() returns can"
        )


# The collector and the responses ----------------------------------------------------------------------------

cdef traverseproc traverse_fields
cdef inquiry clear_fields
cdef destructor dealloc_fields
cdef Py_ssize_t fill_offset


cdef inline Fill* fill_of(PyObject* self) noexcept:
    # By offset: a cast to the class may take a reference for a moment, and the last one must go only once.
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


cdef void drop_responses(Fill* fill) noexcept:
    # One by one from the end: each may run Python code, which then finds a buffer in order.
    while fill.count:
        fill.count -= 1
        Py_DECREF(fill.slab.responses[fill.count])


cdef int clear(PyObject* self) noexcept:
    Py_XDECREF(open_gate(fill_of(self)))
    drop_responses(fill_of(self))
    return clear_fields(self)


cdef void dealloc(PyObject* self) noexcept:
    # Weak references go first: what the responses run as they go must not find the buffer through one. This
    # is why it is not done in __dealloc__, where the count of references is not 0.
    cdef Fill* fill = fill_of(self)
    PyObject_GC_UnTrack(self)
    PyObject_ClearWeakRefs(self)
    Py_XDECREF(open_gate(fill))
    drop_responses(fill)
    slab_release(fill.slab)
    slab_release(fill.spare)
    dealloc_fields(self)


cdef void take_slots(ResponseBuffer any) noexcept:
    global traverse_fields, clear_fields, dealloc_fields, fill_offset
    cdef Slots* slots = <Slots*>ResponseBuffer
    fill_offset = <char*>&any.fill - <char*><PyObject*>any
    traverse_fields = slots.tp_traverse
    clear_fields = slots.tp_clear
    dealloc_fields = slots.tp_dealloc
    slots.tp_traverse = traverse
    slots.tp_clear = clear
    slots.tp_dealloc = dealloc


take_slots(ResponseBuffer.__new__(ResponseBuffer))

if watch_forks():
    raise MemoryError()

Mapping.register(Columns)
Mapping.register(Aggregate)
