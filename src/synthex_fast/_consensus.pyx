"""Consensus: count, mean and variance of the confidence of each query's answers, kept up to date as they are added.

A `Tally` per query code is updated with each response (Welford, "Note on a Method for Calculating Corrected Sums of
Squares and Products", Technometrics 4, 1962), and each row points back at the previous row of its query, so the experts
of one query are found without reading the others. Nothing is ever subtracted from a tally: when rows are removed, the
tallies are cleared and recomputed from the rows that stay. Rounding errors therefore do not accumulate.

An `AggregateRow` copies three numbers when it is made; its set of experts is built when it is first read. An
`Aggregate` copies the tallies; its rows are made when they are read. Both may therefore have to read from the slab
later, so they are *readers*: each one is linked into the slab's list and holds the slab. Between flushes the slab only
grows, behind what a reader may read. A flush first makes every reader copy what it may still need
(`answers_detach_readers`), so that no reader keeps a slab alive or sees rows that are not its own. An object that is
made while a flush is running copies at once.

The list is guarded by the interpreter's lock. On the free-threaded build, which has none, everything is copied at once
and the list stays empty. A row's set is allocated before the slab is read, because allocating may run the cyclic
collector and with it any Python code, including a flush; from there on nothing runs Python code.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_New
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from synthex_fast._codes cimport CodeEntry, code_find, entries_for, table_drop_ids, table_enter, table_fill
from synthex_fast._python cimport PyFrozenSet_New, PySet_Add, PyUnicode_FromObject, Py_INCREF
from synthex_fast._sync cimport FREE_THREADED

from _collections_abc import ItemsView, KeysView, Mapping, ValuesView

from synthex_fast.errors import ArgumentTypeError

__all__ = ["Aggregate", "AggregateRow"]


cdef extern from *:
    """
    static inline Py_ssize_t synthex_answers_hold(Py_ssize_t *holders, Py_ssize_t change) {
    #ifdef Py_GIL_DISABLED
        return _Py_atomic_add_ssize(holders, change) + change;
    #else
        return *holders += change;
    #endif
    }
    """
    Py_ssize_t count_by "synthex_answers_hold"(Py_ssize_t*, Py_ssize_t) noexcept nogil


cdef Py_ssize_t answers_hold(Answers* self, Py_ssize_t change) noexcept:
    """Change the number of holders and return it. Only `answers_release` may make it 0."""
    return count_by(&self.holders, change)


cdef void answers_release(Answers* self) noexcept:
    """Drop one hold on the block; dropping the last one frees it."""
    if count_by(&self.holders, -1) == 0:
        table_drop_ids(&self.queries, 0)
        table_drop_ids(&self.experts, 0)
        PyMem_RawFree(self)


cdef int answers_detach_readers(Answers* self) except -1:
    """Make every reader copy what it may still need. The caller holds the answers.

    A MemoryError leaves the readers that have not copied yet in the list, and valid.
    """
    cdef object owner
    while self.readers != NULL:
        owner = <object>self.readers.owner
        if type(owner) is AggregateRow:
            (<AggregateRow>owner).experts
        elif not (<Aggregate>owner).detach():
            raise MemoryError()
    return 0


cdef void reader_join(Reader* self, Answers* answers, PyObject* owner) noexcept:
    count_by(&answers.holders, 1)
    self.answers = answers
    if not FREE_THREADED:
        self.owner = owner
        self.before = NULL
        self.after = answers.readers
        if self.after != NULL:
            self.after.before = self
        answers.readers = self


cdef void reader_leave(Reader* self) noexcept:
    cdef Answers* answers = self.answers
    if answers == NULL:
        return
    self.answers = NULL
    if not FREE_THREADED:
        if self.before != NULL:
            self.before.after = self.after
        else:
            answers.readers = self.after
        if self.after != NULL:
            self.after.before = self.before
    answers_release(answers)


@cython.final
@cython.freelist(8)
cdef class AggregateRow:
    """The consensus on one query: `count`, `mean` and population `variance` of its answers' confidence.

    `experts` is the frozenset of the ids of those who answered, built when it is first read: O(answers).

    >>> row = AggregateRow(2, 0.8, 0.01, ["ada", "bob"])
    >>> row.consensus, sorted(row.experts)
    ('high', ['ada', 'bob'])
    """

    __match_args__ = ("count", "mean", "variance", "experts")

    def __init__(self, Py_ssize_t count, double mean, double variance, experts):
        experts = frozenset(experts)
        reader_leave(&self.reader)
        self.count = count
        self.mean = mean
        self.variance = variance
        self.expert_ids = experts

    def __dealloc__(self):
        reader_leave(&self.reader)

    cdef void show(self, const Tally* tally) noexcept:
        self.count = tally.count
        self.mean = tally.first + tally.sum / <double>tally.count
        self.variance = tally.m2 / <double>tally.count
        self.newest = tally.newest

    cdef int add_experts(self, frozenset experts, const Answers* answers) except -1:
        """Fill a frozenset that no one else has seen yet. Runs no Python code."""
        cdef int32_t row = self.newest
        while row:
            PySet_Add(<PyObject*>experts, answers.experts.ids[answers.expert[row - 1]])
            row = answers.previous[row - 1]
        self.expert_ids = experts
        return 0

    cdef void read_later(self, Answers* answers) noexcept:
        reader_join(&self.reader, answers, <PyObject*>self)

    @property
    def experts(self):
        """The ids of the experts who answered, as a frozenset."""
        cdef frozenset experts
        if self.expert_ids is None:
            experts = PyFrozenSet_New(NULL)
            # Making it may have run the cyclic collector, and with it a flush that has built this row's set.
            if self.expert_ids is None:
                if self.reader.answers == NULL:
                    self.expert_ids = experts
                else:
                    self.add_experts(experts, self.reader.answers)
                    reader_leave(&self.reader)
        return self.expert_ids

    @property
    def consensus(self):
        """high if variance < 0.05 and mean > 0.7; else medium if variance < 0.1 and mean > 0.5; else low."""
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
@cython.no_gc              # it refers to str objects only, which refer to nothing
cdef class Aggregate:
    """A read-only mapping from query id to `AggregateRow`, in order of each query's first response.

    A snapshot of the moment when `ResponseBuffer.aggregate` made it. Rows are made when they are read: a lookup is
    O(1), and reading a row's `experts` is O(answers to that query).

    >>> from synthex_fast import PooledExpertResponse, ResponseBuffer
    >>> buffer = ResponseBuffer(capacity=10)
    >>> buffer.add(PooledExpertResponse("q1", "ada", confidence=1.0))
    >>> {query: (row.count, row.consensus) for query, row in buffer.aggregate().items()}
    {'q1': (1, 'high')}
    """

    def __init__(self):
        raise ArgumentTypeError("an Aggregate is made by ResponseBuffer.aggregate()")

    def __dealloc__(self):
        reader_leave(&self.reader)
        if self.block != NULL:
            table_drop_ids(&self.own.queries, 0)
            table_drop_ids(&self.own.experts, 0)
            PyMem_RawFree(self.block)
        PyMem_RawFree(self.tallies)

    cdef int reserve(self, size_t queries) except -1:
        """Make room for that many tallies; no size overflows, as the slab itself is larger."""
        PyMem_RawFree(self.tallies)
        self.reserved = 0
        self.tallies = <Tally*>PyMem_RawMalloc((queries + (queries == 0)) * sizeof(Tally))
        if self.tallies == NULL:
            raise MemoryError()
        self.reserved = queries
        return 0

    cdef bint take(self, Answers* answers, Py_ssize_t rows) noexcept:
        """Copy the tallies and become a reader; False if there are more than was reserved."""
        if <size_t>answers.queries.used > self.reserved:
            return False
        if answers.queries.used == 0:
            return True
        self.queries = answers.queries.used
        self.experts = answers.experts.used
        self.rows = rows
        memcpy(self.tallies, answers.tallies, <size_t>self.queries * sizeof(Tally))
        self.answers = answers
        reader_join(&self.reader, answers, <PyObject*>self)
        return True

    cdef bint detach(self) noexcept:
        """Copy what is read from the slab, and leave it; False if allocation fails. Runs no Python code."""
        cdef const Answers* answers = self.reader.answers
        cdef size_t queries = <size_t>self.queries
        cdef size_t experts = <size_t>self.experts
        cdef size_t rows = <size_t>self.rows
        cdef size_t entries = entries_for(queries)
        cdef int32_t code
        cdef PyObject** ids
        if answers == NULL:
            return True
        ids = <PyObject**>PyMem_RawMalloc(
            (queries + experts) * sizeof(PyObject*) + entries * sizeof(CodeEntry) + 2 * rows * sizeof(int32_t)
        )
        if ids == NULL:
            return False
        self.block = ids
        self.own.queries.ids = ids
        self.own.experts.ids = ids + queries
        self.own.queries.entries = <CodeEntry*>(ids + queries + experts)
        self.own.queries.mask = entries - 1
        self.own.expert = <int32_t*>(self.own.queries.entries + entries)
        self.own.previous = self.own.expert + rows
        memset(self.own.queries.entries, 0, entries * sizeof(CodeEntry))
        memcpy(self.own.expert, answers.expert, rows * sizeof(int32_t))
        memcpy(self.own.previous, answers.previous, rows * sizeof(int32_t))
        for code in range(self.queries):
            Py_INCREF(answers.queries.ids[code])
            ids[code] = answers.queries.ids[code]
            table_enter(&self.own.queries, code)
        self.own.queries.used = self.queries
        for code in range(self.experts):
            Py_INCREF(answers.experts.ids[code])
            self.own.experts.ids[code] = answers.experts.ids[code]
        self.own.experts.used = self.experts
        self.answers = &self.own
        reader_leave(&self.reader)
        return True

    cdef void leave(self) noexcept:
        reader_leave(&self.reader)

    cdef AggregateRow row(self, int32_t query):
        cdef AggregateRow row = AggregateRow.__new__(AggregateRow)
        cdef frozenset experts = None
        # Each allocation may run the cyclic collector, and with it a flush that detaches this aggregate.
        if self.reader.answers == NULL:
            experts = PyFrozenSet_New(NULL)
        row.show(&self.tallies[query])
        if experts is None:
            row.read_later(self.reader.answers)
        else:
            row.add_experts(experts, &self.own)
        return row

    cdef int32_t find(self, key) except -2:
        cdef int32_t code
        # As with a dict, an unhashable key is an error and not a miss.
        if not isinstance(key, str):
            hash(key)
            return -1
        key = PyUnicode_FromObject(key)
        if self.queries == 0:
            return -1
        code = code_find(&self.answers.queries, <PyObject*>key)
        # Queries that the buffer has seen since are not in this snapshot.
        return code if code < self.queries else -1

    cdef tuple ids(self):
        cdef tuple ids = PyTuple_New(self.queries)
        # Only now: making the tuple may run the cyclic collector, and with it a flush that detaches this aggregate.
        if self.queries:
            table_fill(&self.answers.queries, ids)
        return ids

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
        return self.queries

    def __iter__(self):
        return iter(self.ids())

    def __reversed__(self):
        return reversed(self.ids())

    def keys(self):
        """The query ids, in order of each query's first response."""
        return KeysView(self)

    def values(self):
        """The rows, each made when the iteration reaches it."""
        return ValuesView(self)

    def items(self):
        """Pairs of query id and row, each row made when the iteration reaches it."""
        return ItemsView(self)

    def __eq__(self, other):
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self) == dict(other)

    __hash__ = None

    def __repr__(self):
        return f"<Aggregate of {self.queries} queries>"

    def __reduce__(self):
        raise ArgumentTypeError("an Aggregate can't be pickled or copied; dict(aggregate) can")


Mapping.register(Aggregate)
