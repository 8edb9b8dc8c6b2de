"""The caches of `synthex_fast.compat.cachebox`: their interface and behaviour are cachebox's, the code is not.

`TTLDict` can't stand in for them: it has no policies by frequency, at random or by what expires first, and keeps no
order that could be asked for. So each cache is a dict from keys to `Entry` objects, and an order of these: a ring
where entries go in the order in which they came or were used, a list elsewhere, which is a heap for two of the classes.

- An entry is in the dict if and only if it is in the order, at every point where Python code may run. Entries enter by
  ``dict.setdefault`` and leave by ``dict.pop``, each followed by the step in the order without anything in between: so
  that keys whose ``__hash__`` and ``__eq__`` use the cache, or let other threads use it, find it sound.
- What does not fit is evicted after its place was taken, since only taking it can fail. Until then a new entry ranks
  last (`link`), so that it is not the one that goes.
- Old values are dropped when all is in order.

Threads may share a cache without a lock of their own. On the free-threaded build each operation is a critical section,
which is left where Python code may run, and for a moment at the end of a function of the dict during which it was left.
So there another thread may meet an entry that is in the dict and not in the order yet, or the other way about: what
changes an entry's place asks first whether it has one (`is_in`), and what takes an entry out of the dict too early
leaves a mark (`GONE`).
"""

cimport cython
from libc.math cimport INFINITY, isnan
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cpython.dict cimport PyDict_GetItemWithError, PyDict_Items
from cpython.object cimport PyObject

from synthex_fast._arguments cimport check_callable, real, size as whole_size
from synthex_fast._clock cimport monotonic_precise, precise_reached, wall_clock
from synthex_fast._loads cimport Load, new_load
from synthex_fast._python cimport (
    PY_SSIZE_T_MAX, Py_INCREF, Py_NewRef, Py_ReprEnter, Py_ReprLeave, PyList_CheckExact, PyList_GET_SIZE,
    PySequence_Fast_ITEMS, PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTypeObject, PyVectorcall_NARGS, PyDict_CheckExact,
    defer_refcount, owned, vectorcallfunc,
)
from synthex_fast._random cimport draw
from synthex_fast._sync cimport FREE_THREADED, likely, uniquely_referenced
from synthex_fast._ttl cimport TTLDict, hash_key, load_value

import copyreg
import os
from datetime import datetime, timedelta
from sys import getsizeof as bytes_of

from synthex_fast.errors import type_error, value_error

__all__ = [
    "BaseCacheImpl",
    "Cache",
    "CachedFunction",
    "FIFOCache",
    "LFUCache",
    "LRUCache",
    "RRCache",
    "TTLCache",
    "VTTLCache",
]


cdef extern from *:
    """
    /* Takes the last item off a list without giving memory back, which could fail. Returns the list's reference. */
    static inline PyObject *synthex_take_last(PyObject *list) {
        Py_ssize_t last = PyList_GET_SIZE(list) - 1;
        PyObject *item = PyList_GET_ITEM(list, last);
        Py_SET_SIZE((PyVarObject *)list, last);
        return item;
    }
    """
    PyObject* take_last "synthex_take_last"(PyObject*) noexcept
    # Of a list's reference to an entry that the caller has a reference to as well.
    void release "Py_DECREF"(PyObject*) noexcept


cdef extern from "stdlib.h":
    # Cython's own declaration takes only functions that could run without the GIL.
    void qsort(void*, size_t, size_t, int (*)(const void*, const void*) noexcept) noexcept


cdef enum Kind:
    PLAIN
    FIFO
    LRU
    TTL
    # Those from here on have their entries in a list.
    RANDOM
    LFU
    VTTL


cdef enum:
    NOWHERE = -1
    GONE = -2


cdef object MISSING = object()
cdef uint64_t drawn = int.from_bytes(os.urandom(8), "little") | 1


cdef class Box
cdef class CachedFunction


@cython.final
@cython.internal
@cython.freelist(64)
cdef class Entry:
    """A key, its value, and its place in the cache's order."""

    cdef object key
    cdef object value
    cdef Py_ssize_t size
    cdef PyObject* previous       # neighbours in the ring
    cdef PyObject* following
    cdef Py_ssize_t place         # in the list; NOWHERE, or GONE: it has left the dict before it was in the order
    cdef double rank              # when it expires, on the precise clock; or how often it was used
    cdef double placed            # the rank by which the heap has placed it
    cdef uint64_t turn            # of equal ranks the lowest goes first

    def __dealloc__(self):
        unlink(self)


include "_ring.pxi"


# ---- the list: at random, or a heap with the next to go at its front ----

cdef inline bint before(PyObject* a, PyObject* b) noexcept:
    if (<Entry>a).placed != (<Entry>b).placed:
        return (<Entry>a).placed < (<Entry>b).placed
    return (<Entry>a).turn < (<Entry>b).turn


cdef int in_order(const void* a, const void* b) noexcept:
    return -1 if before((<PyObject**>a)[0], (<PyObject**>b)[0]) else 1


cdef inline void put_at(PyObject** items, Py_ssize_t at, PyObject* entry) noexcept:
    items[at] = entry
    (<Entry>entry).place = at


cdef void move_up(PyObject** items, Py_ssize_t at) noexcept:
    cdef PyObject* entry = items[at]
    cdef Py_ssize_t parent
    while at > 0:
        parent = (at - 1) >> 1
        if not before(entry, items[parent]):
            break
        put_at(items, at, items[parent])
        at = parent
    put_at(items, at, entry)


cdef void move_down(PyObject** items, Py_ssize_t count, Py_ssize_t at) noexcept:
    cdef PyObject* entry = items[at]
    cdef Py_ssize_t child
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and before(items[child + 1], items[child]):
            child += 1
        if not before(items[child], entry):
            break
        put_at(items, at, items[child])
        at = child
    put_at(items, at, entry)


cdef void settle_rank(Box self, Entry entry) noexcept:
    """Place an entry by its rank, which has changed."""
    cdef PyObject** items = PySequence_Fast_ITEMS(<PyObject*>self.order)
    entry.placed = entry.rank
    self.sorted = False
    move_up(items, entry.place)
    move_down(items, PyList_GET_SIZE(<PyObject*>self.order), entry.place)


cdef void sort(Box self) noexcept:
    """Bring the list into the order of eviction; it is still a heap then."""
    cdef PyObject** items
    cdef Py_ssize_t at, count
    if self.sorted:
        return
    items = PySequence_Fast_ITEMS(<PyObject*>self.order)
    count = PyList_GET_SIZE(<PyObject*>self.order)
    for at in range(count):
        (<Entry>items[at]).placed = (<Entry>items[at]).rank
    qsort(items, <size_t>count, sizeof(PyObject*), in_order)
    for at in range(count):
        (<Entry>items[at]).place = at
    self.sorted = True


# ---- entries come and go: each of these is one step, without Python code ----

cdef int link(Box self, Entry entry) except -1:
    """Add an entry that is in the dict to the order, as the last to go. Fails only before it has changed anything."""
    if entry.place == GONE:
        return 0
    if self.kind < RANDOM:
        link_last(self.root, entry)
    else:
        entry.placed = INFINITY
        self.order.append(entry)
        entry.place = PyList_GET_SIZE(<PyObject*>self.order) - 1
        self.sorted = False
    self.total += entry.size
    self.changes += 1
    if len(self.data) > self.room:
        self.room = len(self.data)
    return 0


cdef void forget(Box self, Entry entry) noexcept:
    """Take an entry that has left the dict out of the order."""
    cdef PyObject** items
    cdef Py_ssize_t at = entry.place, last
    self.changes += 1
    if not is_in(self, entry):
        entry.place = GONE
        return
    if self.kind < RANDOM:
        unlink(entry)
    else:
        items = PySequence_Fast_ITEMS(<PyObject*>self.order)
        last = PyList_GET_SIZE(<PyObject*>self.order) - 1
        if at != last:
            items[at], items[last] = items[last], items[at]
            (<Entry>items[at]).place = at
            self.sorted = False
        entry.place = NOWHERE
        release(take_last(<PyObject*>self.order))
        if at != last and self.kind != RANDOM:
            move_up(items, at)
            move_down(items, last, at)
    self.total -= entry.size


cdef inline bint is_in(Box self, Entry entry) noexcept:
    return entry.following != NULL if self.kind < RANDOM else entry.place >= 0


cdef inline object exchange(Box self, Entry entry, object value, Py_ssize_t size, double rank):
    """Replace the value of an entry, and return the old one."""
    cdef bint inside = is_in(self, entry)
    value, entry.value = entry.value, value
    if inside:
        self.total += size - entry.size
    entry.size = size
    if self.kind == LRU or FREE_THREADED:
        self.changes += 1
    if self.kind == LRU and inside:
        link_last(self.root, entry)
    elif is_timed(self):
        entry.rank = rank
    elif self.kind == LFU:
        # As cachebox does: a new value begins anew, and storing it is a use.
        entry.rank = rank + 1
    if self.kind > RANDOM and inside:
        settle_rank(self, entry)
    return value


# ---- what may run Python code, in a critical section of the cache ----

# While one of the dict's functions is at work, what it calls may put another dict in its place (`empty`, `shrink`).
# Then what it has done to the old one doesn't count, and is done to the new one. The dict is never cleared instead: on
# some versions of the interpreter, `setdefault` does not stand its dict being cleared meanwhile.

cdef inline PyObject* entry_at(Box self, object key) except? NULL:
    """The key's entry, borrowed; NULL without an error if there is none."""
    cdef dict data
    cdef PyObject* found
    while True:
        data = self.data
        found = PyDict_GetItemWithError(data, key)
        if likely(data is self.data):
            return found


cdef inline Entry find(Box self, object key):
    cdef PyObject* found = entry_at(self, key)
    return None if found == NULL else <Entry>found


cdef inline Entry enter(Box self, object key, Entry fresh):
    """Have the dict take in an entry, unless it has one with that key. Returns the one that it has then."""
    cdef dict data
    cdef Entry entry
    while True:
        data = self.data
        entry = <Entry>data.setdefault(key, fresh)
        if likely(data is self.data):
            return entry


cdef inline Entry leave(Box self, object key):
    """Remove the key from the dict, and return the entry; None if there is none."""
    cdef dict data
    cdef Entry entry, before = None
    while True:
        data = self.data
        entry = <Entry>data.pop(key, None)
        if likely(data is self.data):
            return before if entry is None else entry
        # The new dict may have been made of the old one before this, or after it.
        if entry is not None and is_in(self, entry):
            before = entry


cdef inline Entry take(Box self, object key):
    """Remove the key's entry from the dict and the order, and return it; None if there is none."""
    cdef Entry entry = leave(self, key)
    if entry is not None:
        forget(self, entry)
    return entry


cdef Entry take_entry(Box self, Entry entry):
    """`take` for an entry of the order. None if it has gone meanwhile."""
    cdef Entry taken = take(self, entry.key)
    if taken is None and is_in(self, entry):
        for each in list(self.data.values()):
            if each is entry:
                raise RuntimeError(
                    "a key has changed its hash, or what it equals, since it was stored: it can't be removed"
                )
        # Another thread has taken it out of the dict, and will find this done.
        if is_in(self, entry):
            forget(self, entry)
            taken = entry
    return taken


cdef Entry victim(Box self):
    """What goes next, or None."""
    cdef Entry entry
    cdef Py_ssize_t count
    if self.kind < RANDOM:
        entry = <Entry>self.root.following
        return None if entry is self.root or self.kind == PLAIN else entry
    count = PyList_GET_SIZE(<PyObject*>self.order)
    if count == 0:
        return None
    if self.kind == RANDOM:
        return <Entry>PySequence_Fast_ITEMS(<PyObject*>self.order)[<Py_ssize_t>(draw(&drawn) * <double>count)]
    while True:
        entry = <Entry>PySequence_Fast_ITEMS(<PyObject*>self.order)[0]
        if entry.placed == entry.rank or entry.placed == INFINITY:
            return entry
        # Uses only raise a rank, so that the heap need not hear of each: it is enough to look at its front.
        settle_rank(self, entry)


cdef Entry evict(Box self, Entry fresh=None):
    """Remove what goes next, but if possible not `fresh`, and return it. None if there is nothing."""
    cdef Entry entry, taken
    cdef Py_ssize_t count
    while True:
        entry = victim(self)
        if entry is not None and entry is fresh and self.kind == RANDOM:
            count = PyList_GET_SIZE(<PyObject*>self.order)
            if count > 1:
                entry = <Entry>PySequence_Fast_ITEMS(<PyObject*>self.order)[(entry.place + 1) % count]
        if entry is None:
            if self.kind == PLAIN:
                # Either it is full because another thread has stored a pair since this one looked, or it was asked to.
                raise OverflowError("the cache has no policy to evict entries by")
            return None
        taken = take_entry(self, entry)
        if taken is not None:
            return taken


cdef int drop_expired(Box self) except -1:
    """Remove what has expired; in a TTLCache, as cachebox does, only up to the first entry that has not."""
    cdef Entry entry
    while True:
        if self.kind == TTL:
            entry = <Entry>self.root.following
            if entry is self.root or not precise_reached(entry.rank):
                return 0
        else:
            if PyList_GET_SIZE(<PyObject*>self.order) == 0:
                return 0
            entry = <Entry>PySequence_Fast_ITEMS(<PyObject*>self.order)[0]
            if not precise_reached(entry.rank):
                return 0
        take_entry(self, entry)


cdef inline bint is_timed(Box self) noexcept:
    return self.kind == TTL or self.kind == VTTL


cdef inline bint has_expired(Box self, Entry entry) noexcept:
    return is_timed(self) and precise_reached(entry.rank)


cdef inline PyObject* look_up(Box self, object key) except? NULL:
    """The key's value, which counts as a use. A new reference; NULL without an error if there is none."""
    cdef PyObject* found
    cdef PyObject* value = NULL
    cdef Entry entry
    with cython.critical_section(self):
        found = entry_at(self, key)
        if found != NULL:
            entry = <Entry>found
            if self.kind == LRU:
                # One that is the last already stays there: no iteration need end for it.
                if entry.following != <PyObject*>self.root and entry.following != NULL:
                    self.changes += 1
                    link_last(self.root, entry)
            elif self.kind == LFU:
                entry.rank += 1
                self.sorted = False
            if not has_expired(self, entry):
                value = Py_NewRef(<PyObject*>entry.value)
    return value


cdef Entry peek_at(Box self, object key):
    """The key's entry, without counting that as a use; None if there is none that lives."""
    cdef Entry entry
    with cython.critical_section(self):
        entry = find(self, key)
        if entry is not None and has_expired(self, entry):
            entry = None
    return entry


cdef inline object value_of(Box self, Entry entry):
    # Another thread may be exchanging it.
    cdef object value
    with cython.critical_section(self):
        value = entry.value
    return value


cdef inline double rank_of(Box self, Entry entry) noexcept:
    cdef double rank
    with cython.critical_section(self):
        rank = entry.rank
    return rank


cdef inline bint is_over(Box self, Entry entry) noexcept:
    """`has_expired` outside of a critical section."""
    return is_timed(self) and precise_reached(rank_of(self, entry))


cdef Py_ssize_t size_of(Box self, object key, object value) except -1:
    found = self.sizer(key, value)
    if not hasattr(type(found), "__index__"):
        raise type_error("getsizeof()", found, "an integer from 0 on")
    found = found.__index__()
    if not 0 <= found <= PY_SSIZE_T_MAX:
        # What cachebox raises, which takes it for a very large size.
        raise OverflowError(f"getsizeof() must return an integer from 0 on, not {found}")
    return found


cdef int refuse(Box self, Py_ssize_t size) except -1:
    check_ready(self)
    raise OverflowError(f"the pair's size must be at most maxsize, {self.limit}, not {size}")


cdef inline int check_ready(Box self) except -1:
    if self.limit == 0:
        raise RuntimeError(f"the {type(self).__name__} is not initialized: __init__ has not been called")
    return 0


cdef inline Entry new_entry(Box self, object key, object value, Py_ssize_t size, double rank):
    cdef Entry fresh = self.spare
    if fresh is None:
        fresh = Entry.__new__(Entry)
    else:
        self.spare = None
    fresh.key = key
    fresh.value = value
    fresh.size = size
    fresh.place = NOWHERE
    fresh.rank = rank
    fresh.turn = self.turns
    self.turns += 1
    return fresh


cdef inline int recycle(Box self, Entry entry) except -1:
    """Keep an entry that has gone for the next one that comes, which is most of its price. Drops its key and value."""
    cdef object key = entry.key
    cdef object value = entry.value
    if self.spare is None and uniquely_referenced(<PyObject*>entry):
        entry.key = entry.value = None
        self.spare = entry
        # Whatever dropping them does, it finds all in order.
        key = value = None
    return 0


cdef inline int discard_next(Box self, Entry fresh) except -1:
    cdef Entry gone = evict(self, fresh)
    # While one was being removed, all may have been.
    if gone is not None:
        recycle(self, gone)
    return 0


cdef int refuse_full(Box self) except -1:
    raise OverflowError(f"the cache has reached maxsize, {self.limit}, and has no policy to evict entries by")


cdef object put(Box self, object key, object value, double rank, bint keep=False):
    """Store the pair. Returns the value that it replaces, None if there was none.

    With `keep`, what is there already stays, and what is there then is returned.
    """
    cdef Entry entry, fresh
    cdef Py_ssize_t size = 1
    cdef object old = None
    if self.sizer is not None:
        size = size_of(self, key, value)
    if size > self.limit:
        refuse(self, size)
    with cython.critical_section(self):
        if is_timed(self):
            drop_expired(self)
        if self.kind == PLAIN and self.total > self.limit - size and find(self, key) is None:
            refuse_full(self)
        fresh = new_entry(self, key, value, size, rank)
        entry = enter(self, key, fresh)
        if entry is fresh:
            insert(self, fresh)
            if keep:
                old = value
        else:
            recycle(self, fresh)
            if keep and not has_expired(self, entry):
                old = entry.value
            else:
                if self.kind == PLAIN and self.total - entry.size > self.limit - size:
                    refuse_full(self)
                old = exchange(self, entry, value, size, rank)
                if keep:
                    old = value
                while self.total > self.limit:
                    discard_next(self, None)
    return old


cdef int insert(Box self, Entry fresh) except -1:
    """Have the order take in an entry that is in the dict, and evict what has to go for it."""
    try:
        link(self, fresh)
    except BaseException:
        leave(self, fresh.key)
        raise
    if self.total > self.limit:
        try:
            while self.total > self.limit:
                discard_next(self, fresh)
        except BaseException:
            if is_in(self, fresh):
                take(self, fresh.key)
            raise
    if self.kind > RANDOM and fresh.place >= 0:
        settle_rank(self, fresh)
    return 0


cdef list snapshot(Box self):
    """All entries in the order of eviction, for caches that have one."""
    cdef list entries = []
    cdef PyObject* each
    with cython.critical_section(self):
        if self.kind < RANDOM:
            each = self.root.following
            while each != <PyObject*>self.root:
                entries.append(<Entry>each)
                each = (<Entry>each).following
        else:
            if self.kind != RANDOM:
                sort(self)
            entries.extend(self.order)
    return entries


cdef int empty(Box self, bint reuse) except -1:
    cdef dict data = {}
    cdef list order = []
    cdef Py_ssize_t at
    with cython.critical_section(self):
        if self.data:
            self.changes += 1
            while self.root.following != <PyObject*>self.root:
                unlink(<Entry>self.root.following)
            for at in range(PyList_GET_SIZE(<PyObject*>self.order)):
                (<Entry>PySequence_Fast_ITEMS(<PyObject*>self.order)[at]).place = NOWHERE
            # Dropped after this.
            data, self.data = self.data, data
            order, self.order = self.order, order
            self.total = 0
            self.sorted = True
        if not reuse:
            self.room = 0
            if self.kind != LRU:
                self.changes += 1
    return 0


cdef int shrink(Box self) except -1:
    cdef dict data, copied = None
    cdef list order
    cdef uint64_t changes
    with cython.critical_section(self):
        data = self.data
        if self.room > len(data):
            changes = self.changes
            copied = data.copy()
            # Copying compares keys with equal hashes. So it may have run code that uses the cache, or have found keys
            # equal that were not when they came.
            if changes == self.changes and data is self.data and len(copied) == len(data):
                order = self.order[:]
                self.data = copied
                self.order = order
                self.room = len(copied)
        if self.kind != LRU:
            self.changes += 1
    return 0


# ---- times ----

cdef inline double deadline_in(double life) noexcept:
    return INFINITY if life == INFINITY else monotonic_precise() + life


cdef inline double rank_of_new(Box self) noexcept:
    if self.kind == TTL:
        return deadline_in(self.life)
    return INFINITY if self.kind == VTTL else 0.0


cdef inline object remaining(double deadline):
    return max(deadline - monotonic_precise(), 0.0)


cdef double life_from(str name, object ttl, bint until) except? -1.0:
    """Seconds to live, 0 or less for what has expired already."""
    cdef str allowed = "a number of seconds or a timedelta"
    cdef double life
    if until:
        allowed = "a number of seconds, a timedelta, a datetime or None"
        if ttl is None:
            return INFINITY
        if isinstance(ttl, datetime):
            return <double>datetime.timestamp(ttl) - wall_clock()
    if isinstance(ttl, timedelta):
        return <double>timedelta.total_seconds(ttl)
    life = real(name, ttl, allowed)
    if isnan(life):
        raise value_error(name, ttl, allowed)
    return life


# ---- the classes ----

cdef class BaseCacheImpl:
    """What all caches have in common, for `isinstance`; has no methods of its own."""

    __class_getitem__ = classmethod(type(list[int]))

    def __cinit__(self, *args, **kwargs):
        pass


@cython.no_gc_clear
@cython.auto_pickle(False)
cdef class Box(BaseCacheImpl):
    """Box(maxsize, iterable=None, *, capacity=0, getsizeof=None)\n--\n
    The methods that all caches have.
    """

    # In this order they are released: entries unlink themselves from the root.
    cdef dict data
    cdef list order               # of entries, where there is no ring
    cdef Entry root               # of the ring
    cdef Entry spare              # in neither, for the next that comes
    cdef object sizer             # getsizeof, or None
    cdef Py_ssize_t limit         # maxsize; 0 until `__init__`
    cdef Py_ssize_t total         # of all sizes
    cdef Py_ssize_t room          # the most entries since it was last shrunk
    cdef uint64_t changes         # counts what ends an iteration
    cdef uint64_t turns
    cdef double life              # of entries, in seconds
    cdef Kind kind
    cdef bint sorted
    cdef bint plain               # of one of the classes here, none of whose methods is overridden
    cdef dict __dict__
    cdef object __weakref__

    __hash__ = None

    def __cinit__(self, *args, **kwargs):
        self.data = {}
        self.order = []
        self.sorted = True
        self.root = Entry.__new__(Entry)
        self.root.previous = self.root.following = <PyObject*>self.root
        self.plain = type(self) in PLAIN_TYPES

    def __init__(self, maxsize, iterable=None, *, capacity=0, getsizeof=None):
        start(self, maxsize, capacity, getsizeof)
        if iterable is not None:
            extend(self, iterable, INFINITY)

    @property
    def maxsize(self):
        """The largest sum of sizes; without ``getsizeof``, the most entries."""
        check_ready(self)
        return self.limit

    @property
    def getsizeof(self):
        """The function that says what a pair counts, or None: each counts 1."""
        check_ready(self)
        return self.sizer

    def current_size(self):
        """The sum of all sizes. O(1), and the entries that have expired."""
        check_ready(self)
        with cython.critical_section(self):
            if is_timed(self):
                drop_expired(self)
            total = self.total
        return total

    def remaining_size(self):
        """``maxsize - current_size()``."""
        return max(self.limit - <Py_ssize_t>Box.current_size(self), 0)

    def capacity(self):
        """The most entries that the cache has had since it was last shrunk, or was asked to have room for."""
        check_ready(self)
        return max(self.room, count_of(self))

    def __len__(self):
        return count_of(self)

    def __bool__(self):
        return count_of(self) != 0

    def __sizeof__(self):
        return (
            type(self).__basicsize__ + parts_size(self) + (count_of(self) + 1) * bytes_of(self.root)
        )

    def __contains__(self, key):
        cdef PyObject* value = look_up(self, key)
        if value == NULL:
            check_ready(self)
            return False
        owned(value)
        return True

    def contains(self, key):
        """Whether the key is there, as ``key in cache`` says. Counts as a use."""
        return key in self

    def is_empty(self):
        """Whether there is no entry."""
        check_ready(self)
        return count_of(self) == 0

    def is_full(self):
        """Whether the sum of sizes has reached `maxsize`."""
        check_ready(self)
        return self.total >= self.limit

    def insert(self, key, value):
        """Store the pair and return the value that it replaces, None if there was none.

        OverflowError if the pair is larger than `maxsize`, or for a `Cache` that is full. O(1) for most classes, O(log
        entries) for `LFUCache` and `VTTLCache`, apart from what has to go.
        """
        return put(self, key, value, rank_of_new(self))

    def __setitem__(self, key, value):
        put(self, key, value, rank_of_new(self))

    def update(self, iterable):
        """Store the pairs of a dict, of another cache, of what has ``items()``, or of an iterable of tuples."""
        check_ready(self)
        extend(self, iterable, INFINITY)

    def get(self, key, default=None):
        """The value, or `default` if there is none. O(1)."""
        cdef PyObject* value = look_up(self, key)
        if value == NULL:
            check_ready(self)
            return default
        return owned(value)

    def __getitem__(self, key):
        cdef PyObject* value = look_up(self, key)
        if value == NULL:
            check_ready(self)
            raise KeyError(key)
        return owned(value)

    def setdefault(self, key, default=None):
        """The value; if there is none, `default`, which is stored."""
        return default_for(self, key, default, rank_of_new(self))

    def setdefault_with(self, key, factory):
        """The value; if there is none, what ``factory()`` returns, which is stored.

        Threads that miss together may each call it: the first value stays, and all get it.
        """
        return made_for(self, key, factory, INFINITY)

    @cython.embedsignature(False)
    def pop(self, key, default=MISSING):
        """pop($self, key, default=...)\n--\n
        Remove the key and return its value; `default`, or a KeyError, if there is none."""
        cdef Entry entry = remove(self, key)
        if entry is None:
            if default is MISSING:
                raise KeyError(key)
            return default
        return entry.value

    def __delitem__(self, key):
        if remove(self, key) is None:
            raise KeyError(key)

    def popitem(self):
        """Remove and return the pair that goes next; KeyError if there is none."""
        cdef Entry entry = remove_next(self)
        return entry.key, entry.value

    def drain(self, n):
        """Call ``popitem()`` up to `n` times, and return how many pairs that has removed."""
        cdef Py_ssize_t count = 0
        check_ready(self)
        while count < n:
            try:
                remove_next(self)
            except KeyError:
                break
            count += 1
        return count

    def shrink_to_fit(self):
        """Give memory back that the entries don't need. O(entries) if there is some."""
        check_ready(self)
        shrink(self)

    def clear(self, *, reuse=False):
        """Remove all pairs. With `reuse`, `capacity()` stays as it is. O(entries)."""
        check_ready(self)
        empty(self, reuse)

    def __eq__(self, other):
        if not isinstance(other, Box) or (<Box>other).kind != self.kind:
            return NotImplemented
        return equals(self, <Box>other)

    def __iter__(self):
        return view(self, KEYS)

    def keys(self):
        """An iterator over the keys, in the order in which they go."""
        return view(self, KEYS)

    def values(self):
        """An iterator over the values, in the order in which they go."""
        return view(self, VALUES)

    def items(self):
        """An iterator over the pairs, in the order in which they go."""
        return view(self, ITEMS)

    def copy(self):
        """A cache of the same class with the same entries, in the same order. O(entries)."""
        return copied(self)

    def __copy__(self):
        return copied(self)

    def __reduce_ex__(self, protocol):
        return copyreg.__newobj__, (type(self),), self.__getstate__()

    def __getstate__(self):
        return state_of(self)

    def __setstate__(self, state):
        restore(self, state)

    def __repr__(self):
        return described(self)


cdef inline Py_ssize_t count_of(Box self) noexcept:
    cdef Py_ssize_t count
    # Another thread may be exchanging the dict.
    with cython.critical_section(self):
        count = len(self.data)
    return count


cdef object parts_size(Box self):
    cdef dict data
    cdef list order
    with cython.critical_section(self):
        data, order = self.data, self.order
    return bytes_of(data) + bytes_of(order)


cdef int start(Box self, object maxsize, object capacity, object getsizeof) except -1:
    cdef Py_ssize_t limit = whole_size("maxsize", maxsize)
    cdef Py_ssize_t room = whole_size("capacity", capacity)
    check_callable("getsizeof", getsizeof, True)
    if self.limit:
        raise RuntimeError(f"the {type(self).__name__} has been initialized already")
    self.sizer = getsizeof
    self.room = room
    self.limit = limit or PY_SSIZE_T_MAX
    return 0


cdef int extend(Box self, object iterable, double life) except -1:
    """Store all pairs; `life` is for a VTTLCache."""
    cdef Entry entry
    if iterable is self:
        return 0
    if isinstance(iterable, Box):
        # All at once: another thread may be changing it.
        for entry in snapshot(<Box>iterable):
            if not is_over(<Box>iterable, entry):
                put(self, entry.key, value_of(<Box>iterable, entry), rank_in(self, life))
        return 0
    if isinstance(iterable, dict):
        for pair in PyDict_Items(iterable):
            put(self, pair[0], pair[1], rank_in(self, life))
        return 0
    items = getattr(iterable, "items", None)
    for pair in iterable if items is None else items():
        if not isinstance(pair, tuple):
            raise type_error("a pair", pair, "a tuple of a key and a value")
        if len(pair) != 2:
            raise value_error("a pair", pair, "a tuple of a key and a value")
        put(self, pair[0], pair[1], rank_in(self, life))
    return 0


cdef inline double rank_in(Box self, double life) noexcept:
    return deadline_in(life) if self.kind == VTTL else rank_of_new(self)


cdef object default_for(Box self, object key, object default, double rank):
    cdef PyObject* value = look_up(self, key)
    if value != NULL:
        return owned(value)
    # As in cachebox, this counts as a use in an LFUCache.
    return put(self, key, default, rank + 1 if self.kind == LFU else rank, True)


cdef object made_for(Box self, object key, object factory, double life):
    cdef PyObject* value = look_up(self, key)
    if value != NULL:
        return owned(value)
    check_ready(self)
    made = factory()
    return default_for(self, key, made, rank_in(self, life))


cdef Entry remove(Box self, object key):
    cdef Entry entry
    check_ready(self)
    with cython.critical_section(self):
        if is_timed(self):
            drop_expired(self)
        entry = take(self, key)
        if entry is not None and has_expired(self, entry):
            entry = None
    return entry


cdef Entry remove_next(Box self):
    cdef Entry entry
    check_ready(self)
    with cython.critical_section(self):
        if is_timed(self):
            drop_expired(self)
        entry = evict(self)
    if entry is None:
        raise KeyError("the cache is empty")
    return entry


cdef object equals(Box self, Box other):
    cdef Entry entry, match
    if self is other:
        return True
    check_ready(self)
    check_ready(other)
    if self.limit != other.limit or count_of(self) != count_of(other):
        return False
    for entry in snapshot(self):
        if is_over(self, entry):
            continue
        with cython.critical_section(other):
            match = find(other, entry.key)
        if match is None:
            return False
        mine = value_of(self, entry)
        its = value_of(other, match)
        if mine is not its and not mine == its:
            return False
    return True


cdef Box copied(Box self):
    cdef Box made
    check_ready(self)
    made = type(self).__new__(type(self))
    if (<object>self).__dict__:
        (<object>made).__dict__.update((<object>self).__dict__)
    made.sizer = self.sizer
    made.life = self.life
    made.limit = self.limit
    cdef Entry entry
    cdef object value
    cdef Py_ssize_t size
    cdef double rank
    for entry in snapshot(self):
        with cython.critical_section(self):
            value = entry.value
            size = entry.size
            rank = entry.rank
        refill(made, entry.key, value, size, rank)
    return made


cdef int refill(Box self, object key, object value, Py_ssize_t size, double rank) except -1:
    """Add a pair that a copy or a pickle says was there."""
    cdef Entry fresh = new_entry(self, key, value, size, rank)
    if enter(self, key, fresh) is fresh:
        insert(self, fresh)
    return 0


cdef tuple state_of(Box self):
    """Settings and a list of the entries, with the times of those that expire on the wall clock."""
    cdef Entry entry
    cdef list entries = []
    cdef double shift = wall_clock() - monotonic_precise()
    cdef object value
    cdef double rank
    check_ready(self)
    for entry in snapshot(self):
        with cython.critical_section(self):
            value = entry.value
            rank = entry.rank
        if is_timed(self):
            entries.append((entry.key, value, None if rank == INFINITY else rank + shift))
        elif self.kind == LFU:
            entries.append((entry.key, value, <int64_t>rank))
        else:
            entries.append((entry.key, value))
    life = self.life if self.kind == TTL else None
    state = (self.limit, self.sizer, life, entries)
    return state + ((<object>self).__dict__,) if (<object>self).__dict__ else state


cdef int restore(Box self, tuple state) except -1:
    cdef double rank, shift = monotonic_precise() - wall_clock()
    cdef list entries = state[3]
    if len(entries) > state[0]:
        raise value_error("the state's entries", len(entries), f"at most maxsize, {state[0]}")
    if self.kind == TTL:
        self.life = want_life(state[2])
    start(self, state[0], 0, state[1])
    if len(state) > 4:
        (<object>self).__dict__.update(state[4])
    for each in entries:
        key, value = each[0], each[1]
        rank = 0.0
        if is_timed(self):
            rank = INFINITY if each[2] is None else <double>each[2] + shift
        elif self.kind == LFU:
            rank = <double>each[2]
        refill(self, key, value, 1 if self.sizer is None else size_of(self, key, value), rank)
    return 0


cdef double want_life(object ttl) except? -1.0:
    cdef double life = life_from("global_ttl", ttl, False)
    if life <= 0:
        raise value_error("global_ttl", ttl, "a positive number of seconds or a timedelta")
    return life


cdef str described(Box self):
    """At most a hundred pairs, the first and the last ones."""
    cdef Entry entry
    cdef list parts = []
    cdef list entries
    check_ready(self)
    cls = type(self)
    name = f"{cls.__module__}.{cls.__qualname__}[maxsize={self.limit}]"
    if Py_ReprEnter(self):
        return f"{name}({{...}})"
    try:
        entries = []
        for entry in snapshot(self):
            if not is_over(self, entry):
                entries.append(entry)
        left_out = len(entries) - 100
        if left_out > 0:
            entries[50:50 + left_out] = [None]
        for entry in entries:
            if entry is None:
                parts.append(f"... {left_out} truncated ...")
            else:
                parts.append(f"{entry.key!r}:{value_of(self, entry)!r}")
    finally:
        Py_ReprLeave(self)
    return f"{name}({{{', '.join(parts)}}})"


cdef class Cache(Box):
    """A cache without a policy: one that is full refuses new keys with OverflowError.

    Has the interface of ``cachebox.Cache``. `maxsize` is the largest sum of sizes (0: no limit), which ``getsizeof(key,
    value)`` says for each pair (None: 1). `iterable` is what the cache begins with. All operations are O(1) unless they
    say otherwise, and threads may share it.

    >>> cache = Cache(2, {"a": 1})
    >>> cache.insert("a", 2), cache.insert("b", 3), cache.is_full()
    (1, None, True)
    >>> cache["c"] = 4
    Traceback (most recent call last):
    OverflowError: the cache has reached maxsize, 2, and has no policy to evict entries by
    """

    def __cinit__(self, *args, **kwargs):
        self.kind = PLAIN


cdef class FIFOCache(Box):
    """A cache that evicts what was stored first. Storing a key again does not move it.

    >>> cache = FIFOCache(2, {"a": 1, "b": 2})
    >>> cache["c"] = 3
    >>> list(cache), cache.first(), cache.last()
    (['b', 'c'], 'b', 'c')
    """

    def __cinit__(self, *args, **kwargs):
        self.kind = FIFO

    def first(self, n=0):
        """The key that goes as the `n`-th one from 0; negative numbers count from the end. IndexError. O(n)."""
        return nth_key(self, n)

    def last(self):
        """The key that was stored last; IndexError if there is none."""
        return nth_key(self, -1)


cdef object nth_key(Box self, Py_ssize_t n):
    cdef PyObject* each
    cdef object key = MISSING
    check_ready(self)
    with cython.critical_section(self):
        if is_timed(self):
            drop_expired(self)
        each = <PyObject*>self.root
        if n < 0:
            # From the nearer end.
            if -n <= len(self.data):
                while n < 0:
                    each = (<Entry>each).previous
                    n += 1
        elif n < len(self.data):
            while n >= 0:
                each = (<Entry>each).following
                n -= 1
        if each != <PyObject*>self.root:
            key = (<Entry>each).key
    if key is MISSING:
        raise IndexError("`n` is out of range")
    return key


cdef class RRCache(Box):
    """A cache that evicts at random."""

    def __cinit__(self, *args, **kwargs):
        self.kind = RANDOM

    def random_key(self):
        """A key drawn at random; KeyError if there is none."""
        cdef Entry entry
        check_ready(self)
        with cython.critical_section(self):
            entry = victim(self)
        if entry is None:
            raise KeyError("the cache is empty")
        return entry.key


cdef class LRUCache(Box):
    """A cache that evicts what has not been used for the longest time; ``key in cache`` is a use as well.

    >>> cache = LRUCache(2, {"a": 1, "b": 2})
    >>> cache["a"]
    1
    >>> cache["c"] = 3
    >>> list(cache), cache.least_recently_used()
    (['a', 'c'], 'a')
    """

    def __cinit__(self, *args, **kwargs):
        self.kind = LRU

    def peek(self, key, default=None):
        """The value, or `default`, without counting that as a use."""
        return peeked(self, key, default)

    def least_recently_used(self):
        """The key that goes next; KeyError if there is none."""
        return end_of(self, True)

    def most_recently_used(self):
        """The key that goes last; KeyError if there is none."""
        return end_of(self, False)


cdef object peeked(Box self, object key, object default):
    cdef Entry entry
    check_ready(self)
    entry = peek_at(self, key)
    return default if entry is None else value_of(self, entry)


cdef object end_of(Box self, bint first):
    cdef Entry entry
    check_ready(self)
    with cython.critical_section(self):
        entry = <Entry>(self.root.following if first else self.root.previous)
    if entry is self.root:
        raise KeyError("the cache is empty")
    return entry.key


cdef class LFUCache(Box):
    """A cache that evicts what was used least often, and of those what was stored first.

    >>> cache = LFUCache(2, {"a": 1, "b": 2})
    >>> cache["a"]
    1
    >>> cache["c"] = 3
    >>> list(cache.items_with_frequency())
    [('c', 3, 0), ('a', 1, 1)]
    """

    def __cinit__(self, *args, **kwargs):
        self.kind = LFU

    def peek(self, key, default=None):
        """The value, or `default`, without counting that as a use."""
        return peeked(self, key, default)

    def items_with_frequency(self):
        """An iterator over tuples of key, value and number of uses, the least used first."""
        return view(self, WITH_FREQUENCY)

    def least_frequently_used(self, n=0):
        """The key that goes as the `n`-th one from 0; negative numbers count from the end. IndexError.

        O(entries log entries) after entries were used, O(1) when it is asked again.
        """
        cdef Py_ssize_t at = n, count
        cdef object key = MISSING
        check_ready(self)
        with cython.critical_section(self):
            count = PyList_GET_SIZE(<PyObject*>self.order)
            if at < 0:
                at += count
            if 0 <= at < count:
                sort(self)
                key = (<Entry>PySequence_Fast_ITEMS(<PyObject*>self.order)[at]).key
        if key is MISSING:
            raise IndexError("`n` is out of range")
        return key


cdef class TimedBox(Box):
    """The methods of the caches whose entries expire."""

    cdef object interval
    cdef readonly object _thread
    cdef object event

    @property
    def sweep_interval(self):
        """The seconds after which a thread removes what has expired, again and again; None: there is none."""
        return self.interval

    @property
    def _stop_event(self):
        if self.event is None:
            from threading import Event
            self.event = Event()
        return self.event

    def stop_sweeper(self):
        """Tell the thread, if there is one, to end."""
        self._stop_event.set()

    def __del__(self):
        # There is nothing yet if making the object has failed half-way.
        if <PyObject*>self.event != NULL and self.event is not None:
            self.event.set()

    def expire(self, *, reuse=False):
        """Remove what has expired, and with it, unless `reuse` is true, the memory that is not needed any more."""
        check_ready(self)
        with cython.critical_section(self):
            drop_expired(self)
        if not reuse:
            shrink(self)

    def get_with_expire(self, key, default=None):
        """The value and the seconds that it has left. Without the key: `default` and 0.0, in a VTTLCache None."""
        cdef Entry entry
        check_ready(self)
        entry = peek_at(self, key)
        if entry is None:
            return default, (0.0 if self.kind == TTL else None)
        return value_of(self, entry), left_of(self, entry)

    @cython.embedsignature(False)
    def pop_with_expire(self, key, default=MISSING):
        """pop_with_expire($self, key, default=...)\n--\n
        Like `get_with_expire`, and removes the key; KeyError if there is neither the key nor a default."""
        cdef Entry entry = remove(self, key)
        if entry is None:
            if default is MISSING:
                raise KeyError(key)
            return default, (0.0 if self.kind == TTL else None)
        return entry.value, left_of(self, entry)

    def popitem_with_expire(self):
        """Remove what goes next, and return its key, its value and the seconds that it had left."""
        cdef Entry entry = remove_next(self)
        return entry.key, entry.value, left_of(self, entry)

    def items_with_expire(self):
        """An iterator over tuples of key, value and the seconds left."""
        return view(self, WITH_EXPIRE)


cdef object left_of(Box self, Entry entry):
    # Only a VTTLCache has entries without a time to live of their own.
    cdef double rank = rank_of(self, entry)
    if rank == INFINITY and self.kind == VTTL:
        return None
    return remaining(rank)


cdef int start_sweeper(TimedBox self, object interval) except -1:
    if interval is None:
        return 0
    if isinstance(interval, timedelta):
        interval = timedelta.total_seconds(interval)
    if not real("sweep_interval", interval, "a number of seconds from 1 on, a timedelta or None") >= 1:
        raise ValueError(f"sweep_interval must be at least 1 second. It was {interval!r}")
    self.interval = interval
    self._thread = begin_sweeps(self, self._stop_event, interval)
    return 0


cdef class TTLCache(TimedBox):
    """TTLCache(maxsize, global_ttl, iterable=None, *, capacity=0, getsizeof=None, sweep_interval=None)\n--\n
    A cache whose entries expire `global_ttl` seconds, or that timedelta, after they were stored.

    Evicts what was stored first. Expired entries are not found any more; they are removed by the next call that stores,
    removes or lists entries, and with `sweep_interval` every so many seconds (at least 1) by a thread.

    >>> cache = TTLCache(10, 60, {"a": 1})
    >>> value, left = cache.get_with_expire("a")
    >>> value, 59 < left <= 60
    (1, True)
    """

    def __cinit__(self, *args, **kwargs):
        self.kind = TTL

    def __init__(self, maxsize, global_ttl, iterable=None, *, capacity=0, getsizeof=None, sweep_interval=None):
        self.life = want_life(global_ttl)
        start(self, maxsize, capacity, getsizeof)
        if iterable is not None:
            extend(self, iterable, INFINITY)
        start_sweeper(self, sweep_interval)

    @property
    def global_ttl(self):
        """How many seconds entries live."""
        check_ready(self)
        return self.life

    def first(self, n=0):
        """The key that goes as the `n`-th one from 0; negative numbers count from the end. IndexError. O(n)."""
        return nth_key(self, n)

    def last(self):
        """The key that was stored last; IndexError if there is none."""
        return nth_key(self, -1)


cdef class VTTLCache(TimedBox):
    """VTTLCache(maxsize, iterable=None, ttl=None, *, capacity=0, getsizeof=None, sweep_interval=None)\n--\n
    A cache whose entries have times to live of their own, and which evicts what expires first.

    A time to live is a number of seconds, a timedelta, a datetime until which the entry lives, or None: until it is
    evicted. `ttl` is that of `iterable`.

    >>> cache = VTTLCache(2, {"a": 1})
    >>> cache.insert("b", 2, ttl=60)
    >>> cache["c"] = 3
    >>> sorted(cache), cache.get_with_expire("c")
    (['a', 'c'], (3, None))
    """

    def __cinit__(self, *args, **kwargs):
        self.kind = VTTL

    def __init__(self, maxsize, iterable=None, ttl=None, *, capacity=0, getsizeof=None, sweep_interval=None):
        cdef double life = life_from("ttl", ttl, True)
        start(self, maxsize, capacity, getsizeof)
        if iterable is not None:
            extend(self, iterable, life)
        start_sweeper(self, sweep_interval)

    def insert(self, key, value, ttl=None):
        """Store the pair with that time to live, and return the value that it replaces, None if there was none.

        O(log entries), apart from what has expired or has to go.
        """
        return put(self, key, value, deadline_in(life_from("ttl", ttl, True)))

    def update(self, iterable, ttl=None):
        """Store the pairs of a dict, of another cache, of what has ``items()``, or of an iterable of tuples."""
        cdef double life = life_from("ttl", ttl, True)
        check_ready(self)
        extend(self, iterable, life)

    def setdefault(self, key, default=None, ttl=None):
        """The value; if there is none, `default`, which is stored with that time to live."""
        return default_for(self, key, default, deadline_in(life_from("ttl", ttl, True)))

    def setdefault_with(self, key, factory, ttl=None):
        """The value; if there is none, what ``factory()`` returns, which is stored with that time to live."""
        return made_for(self, key, factory, life_from("ttl", ttl, True))


cdef object PLAIN_TYPES = frozenset((Cache, FIFOCache, LFUCache, LRUCache, RRCache, TTLCache, VTTLCache))


include "_cachebox_views.pxi"
include "_cachebox_calls.pxi"


# What `synthex_fast.compat.cachebox` provides.
cdef object begin_sweeps = None
cdef object run_async = None
cdef object call_locked = None
cdef object make_key = None
cdef object copy_mutables = None
cdef object info_from = None


def provide(sweeps, asynchronous, locked, default_key, default_postprocess, info):
    """Set the functions in Python that objects of this module call. Called once, by `synthex_fast.compat.cachebox`."""
    global begin_sweeps, run_async, call_locked, make_key, copy_mutables, info_from
    begin_sweeps, run_async, call_locked, make_key, copy_mutables, info_from = (
        sweeps, asynchronous, locked, default_key, default_postprocess, info
    )
