"""Running figures for each query, and the read-only objects that show them."""

from libc.stdint cimport int32_t

from cpython.object cimport PyObject

from synthex_fast._codes cimport CodeTable


cdef struct Tally:            # of the responses to one query
    double first              # the confidence of the first one
    double sum                # of the differences from `first`
    double m2                 # sum of squared deviations from the mean
    int32_t count
    int32_t newest            # row of the most recent response, plus one


cdef struct Answers           # forward declaration


cdef struct Reader:           # a link in the list of objects that still read from a set of answers
    Answers* answers          # NULL: the object has copied what it needs
    Reader* before
    Reader* after
    PyObject* owner           # borrowed: the object that contains this struct


cdef struct Answers:          # the head of a block from PyMem_RawCalloc that also holds what the pointers refer to
    Py_ssize_t holders        # the buffer, each view of its columns and each reader; the last one frees the block
    CodeTable queries
    CodeTable experts
    Tally* tallies            # by query code
    int32_t* expert           # by row: the expert's code
    int32_t* previous         # by row: the previous row of the same query, plus one; 0: none
    Reader* readers           # empty on the free-threaded build


cdef Py_ssize_t answers_hold(Answers* self, Py_ssize_t change) noexcept
cdef void answers_release(Answers* self) noexcept
cdef int answers_detach_readers(Answers* self) except -1


cdef inline void tally_rows(
    Answers* self, int32_t query, const double* confidence, Py_ssize_t first, Py_ssize_t end
) noexcept:
    """Count the rows `first` to `end` - 1, which all answer one query: Welford's update for several values at once.

    The formula is that of Chan, Golub and LeVeque ("Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979). It is applied to the differences from the query's first confidence: the confidences of one query
    are close together, so these are small and often exact, and the variance keeps its precision however narrow the
    spread is.
    """
    cdef Tally* tally = &self.tallies[query]
    cdef double before = <double>tally.count
    cdef double count = <double>(end - first)
    cdef double sum = 0.0
    cdef double squares = 0.0
    cdef double difference
    cdef double cross
    cdef double origin
    cdef Py_ssize_t row
    if tally.count == 0:
        tally.first = confidence[first]
    origin = tally.first
    for row in range(first, end):
        self.previous[row] = <int32_t>row
        difference = confidence[row] - origin
        sum += difference
        squares += difference * difference
    self.previous[first] = tally.newest
    tally.newest = <int32_t>end
    tally.count += <int32_t>(end - first)
    if count > 1.0:
        squares -= sum * sum / count
        # Rounding may take it just below 0.
        if squares > 0.0:
            tally.m2 += squares
    if before != 0.0:
        cross = count * tally.sum - before * sum
        tally.m2 += cross * cross / (before * count * (before + count))
    tally.sum += sum


cdef class AggregateRow:
    cdef readonly Py_ssize_t count
    cdef readonly double mean
    cdef readonly double variance
    cdef frozenset expert_ids           # None until first read
    cdef Reader reader
    cdef int32_t newest       # where the chain of the query's rows begins

    cdef void show(self, const Tally* tally) noexcept
    cdef int add_experts(self, frozenset experts, const Answers* answers) except -1
    cdef void read_later(self, Answers* answers) noexcept


cdef class Aggregate:
    cdef Tally* tallies       # a copy
    cdef size_t reserved      # queries that `tallies` has room for
    cdef Answers* answers     # what is read: the slab's, or `own`
    cdef Reader reader
    cdef Answers own          # tables, experts and chain copied into `block`
    cdef void* block
    cdef Py_ssize_t rows
    cdef int32_t queries
    cdef int32_t experts

    cdef int reserve(self, size_t queries) except -1
    cdef bint take(self, Answers* answers, Py_ssize_t rows) noexcept
    cdef bint detach(self) noexcept
    cdef void leave(self) noexcept
    cdef AggregateRow row(self, int32_t query)
    cdef int32_t find(self, key) except -2
    cdef tuple ids(self)
