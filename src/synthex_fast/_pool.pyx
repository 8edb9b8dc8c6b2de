"""`ObjectPool`: idle Python objects on a freelist, and `Lease`, its context manager.

The freelist (`_freelist.pyx`) owns one reference to each idle object. `acquire` takes that reference over if it is the
object's only one, or if all others come from the object's own parts, such as a bound method of its own that it stores
(`refers_to_itself_only`). Any other object is still referenced elsewhere and is discarded. `release` resets an object
before it becomes idle; an object whose reset raises is discarded.

On the free-threaded build the freelist is pinned: only the thread that made an object can tell whether a reference is
the only one, so each object stays with its thread.

With `max_idle`, operations discard at most `MOST_EXPIRED` objects each, so that none pays for a mass expiry; methods
that count or size idle objects discard all that have expired, and the package's sweeper does so in the background.

`on_discard` is called with an object that the pool gives up: an idle one when it is disposed of (`discard_through`), a
released one that is refused (`pool_let_go`). One that is still referenced elsewhere is not passed to it, as it may be
in use; for a released object, to which the caller refers anyway, that means one that is idle already.

A pool with `max_in_use` is bounded; `_pool_bounds.pxi` describes that.

Resets, factories and finalisers may run any Python code, which may use the same pool. They run while no lock is held
and the pool is in order.
"""

cimport cython
from libc.math cimport INFINITY, isfinite
from libc.stdint cimport int64_t, uint64_t

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject

from synthex_fast._arguments cimport check_callable, check_text, real, refuse_awaitable, seconds, size
from synthex_fast._clock cimport monotonic_coarse
from synthex_fast._forks cimport forks_seen
from synthex_fast._freelist cimport (
    ALIASED, Borrowed, COUNTS, DISCARDED, MADE, RELEASED, REUSED, freelist_borrow, freelist_count, freelist_delete,
    freelist_discard, freelist_dispose, freelist_give_back, freelist_handle, freelist_holds, freelist_new,
    freelist_oldest, freelist_pop_as, freelist_push, freelist_push_since, freelist_resize, freelist_stats,
    freelist_take, freelist_take_own, freelist_trim, freelist_visit,
)
from synthex_fast._python cimport (
    PY_SSIZE_T_MAX, PyErr_Fetch, PyErr_Restore, PyObject_CallNoArgs, PyObject_CallOneArg, PyObject_VectorcallMethod,
    PyTypeObject, Py_DECREF, Py_INCREF, Py_None, Py_REFCNT, Py_TYPE, Py_XDECREF, _PyType_Lookup, defer_refcount,
    inquiry, owned, traverseproc, visitproc,
)
from synthex_fast._sizeof cimport deep_sizeof
from synthex_fast._sync cimport (
    FREE_THREADED, likely, load_flag, load_u64, lock, owned_by_this_thread, store_flag, store_u64, uniquely_referenced,
    unlikely, unlock,
)

import _thread
from _weakref import ref
from sys import modules
from time import monotonic

from synthex_fast.errors import (
    ArgumentTypeError, FactoryError, PoolExhaustedError, SynthexFastError, type_error, value_error,
)

__all__ = ["Acquisition", "Lease", "ObjectPool"]


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
      #define SYNTHEX_TYPE_VERSION(o) ((uint64_t)_Py_atomic_load_uint_relaxed(&Py_TYPE(o)->tp_version_tag))
    #else
      #define SYNTHEX_TYPE_VERSION(o) ((uint64_t)Py_TYPE(o)->tp_version_tag)
    #endif
    """
    # 0 if the type has no version at the moment. Versions are never reused: equal ones mean an unchanged type.
    uint64_t type_version "SYNTHEX_TYPE_VERSION"(PyObject*) noexcept


cdef extern from *:
    """
    #define SYNTHEX_PARTS 64
    #define SYNTHEX_VISITS 4096

    typedef struct {
        PyObject *object;
        Py_ssize_t found;               /* references to it from its parts and itself */
        int visits, count;
        struct { PyObject *object; Py_ssize_t found; int entered; } parts[SYNTHEX_PARTS];
    } synthex_search;

    static int synthex_search_visit(PyObject *op, void *arg) {
        synthex_search *search = (synthex_search *)arg;
        int i;
        if (++search->visits > SYNTHEX_VISITS) return 1;
        if (op == search->object) {
            search->found++;
            return 0;
        }
        if (!PyObject_IS_GC(op)) return 0;
        for (i = 0; i < search->count; i++) {
            if (search->parts[i].object == op) {
                search->parts[i].found++;
                return 0;
            }
        }
        /* Others are left out: references from them then count as those of strangers. */
        if (search->count < SYNTHEX_PARTS) {
            search->parts[search->count].object = op;
            search->parts[search->count].found = 1;
            search->parts[search->count++].entered = 0;
        }
        return 0;
    }

    #if PY_VERSION_HEX >= 0x030D0000 && !defined(Py_GIL_DISABLED)
      #define SYNTHEX_HIDDEN_DICT
      /* Where an object whose type has inline values keeps its `__dict__`, once that was asked for. */
      static Py_ssize_t synthex_dict_place;
    #endif

    /* To be called with an object whose class is written in Python, before any search. */
    static int synthex_find_dict_place(PyObject *op) {
    #ifdef SYNTHEX_HIDDEN_DICT
        if (PyType_HasFeature(Py_TYPE(op), Py_TPFLAGS_INLINE_VALUES)) {
            /* Makes the dict, which a search must not do. */
            PyObject **place = _PyObject_GetDictPtr(op);
            if (place == NULL) {
                if (!PyErr_Occurred()) PyErr_NoMemory();
                return -1;
            }
            synthex_dict_place = (char *)place - (char *)op;
        }
    #else
        (void)op;
    #endif
        return 0;
    }

    /* Whether others refer to the object's `__dict__`. One that shares the object's inline values is not visited. */
    static int synthex_dict_is_held(PyObject *op) {
    #ifdef SYNTHEX_HIDDEN_DICT
        if (PyType_HasFeature(Py_TYPE(op), Py_TPFLAGS_INLINE_VALUES)) {
            PyObject *dict = *(PyObject **)((char *)op + synthex_dict_place);
            return dict != NULL && Py_REFCNT(dict) > 1;
        }
    #else
        (void)op;
    #endif
        return 0;
    }

    /* Whether all references to the object but `own` come from itself and its parts. A part is an object to which only
       the object and its parts refer. May answer no where this is so, never yes where it isn't. Runs no Python code. */
    static int synthex_refers_to_itself_only(PyObject *op, Py_ssize_t own) {
    #ifdef Py_GIL_DISABLED
        return 0;                       /* other threads change reference counts meanwhile */
    #else
        synthex_search search;
        int i;
        if (!PyObject_IS_GC(op) || Py_TYPE(op)->tp_traverse == NULL || synthex_dict_is_held(op)) return 0;
        search.object = op;
        search.found = 0;
        search.visits = search.count = 0;
        if (Py_TYPE(op)->tp_traverse(op, synthex_search_visit, &search)) return 0;
        for (i = 0; search.found < Py_REFCNT(op) - own && i < search.count; i++) {
            PyObject *part = search.parts[i].object;
            if (search.parts[i].entered || search.parts[i].found != Py_REFCNT(part)) continue;
            search.parts[i].entered = 1;
            if (Py_TYPE(part)->tp_traverse == NULL || synthex_dict_is_held(part)) continue;
            if (Py_TYPE(part)->tp_traverse(part, synthex_search_visit, &search)) return 0;
            i = -1;                     /* what it refers to may now be a part, too */
        }
        return search.found == Py_REFCNT(op) - own;
    #endif
    }

    /* Free-threaded build: whether the collector has found the object to be unreachable and runs finalisers, apart from
       `own` references. It holds one itself meanwhile. */
    static int synthex_is_garbage(PyObject *op, Py_ssize_t own) {
    #ifdef Py_GIL_DISABLED
        enum { UNREACHABLE = 1 << 2 };  /* _PyGC_BITS_UNREACHABLE */
        return PyObject_IS_GC(op) && (_Py_atomic_load_uint8_relaxed(&op->ob_gc_bits) & UNREACHABLE)
            && Py_REFCNT(op) == own + 1;
    #else
        (void)op, (void)own;
        return 0;
    #endif
    }
    """
    bint refers_to_itself_only "synthex_refers_to_itself_only"(PyObject*, Py_ssize_t own) noexcept
    bint is_garbage_but_for "synthex_is_garbage"(PyObject*, Py_ssize_t own) noexcept
    int find_dict_place "synthex_find_dict_place"(object) except -1


class _WithDict:
    pass


find_dict_place(_WithDict())
del _WithDict


cdef enum:
    SAMPLES = 64        # objects whose size is taken for one reading of nbytes
    MOST_EXPIRED = 8    # expired objects that one acquire or release discards
cdef str reset_name = "reset"


cdef void release_reference(void* block) noexcept:
    Py_DECREF(<PyObject*>block)


cdef void discard_through(PyObject* on_discard, void* block) noexcept:
    """Dispose of an idle object of a pool that has an `on_discard`. Steals the reference."""
    cdef PyObject* obj = <PyObject*>block
    # Unlike `is_unshared` this may be asked by another thread than the object's own. All references are counted in one
    # of two words then, and only somebody who holds one can move them from one word to the other.
    if Py_REFCNT(obj) == 1 or refers_to_itself_only(obj, 1) or is_garbage_but_for(obj, 1):
        call_on_discard(on_discard, obj)
    Py_DECREF(obj)


cdef int report_unraisable(object error, object where) except -1:
    # Imported here: it costs time, and most programs never need it.
    from synthex_fast._unraisable import report
    report(error, where)
    return 0


cdef void call_on_discard(PyObject* on_discard, PyObject* obj) noexcept:
    cdef PyObject* error
    cdef PyObject* value
    cdef PyObject* trace
    # The object may be disposed of while an exception is set.
    PyErr_Fetch(&error, &value, &trace)
    try:
        refuse_awaitable("on_discard", owned(PyObject_CallOneArg(on_discard, obj)))
    except BaseException as failure:
        report_unraisable(failure, <object>on_discard)
    PyErr_Restore(error, value, trace)


cdef void pool_let_go(ObjectPool pool, PyObject* obj) noexcept:
    """A released object is not kept: pass it to `on_discard`, unless it is idle because it was released twice."""
    if pool.discards and not freelist_holds(pool.idle, obj):
        on_discard = pool.on_discard
        if on_discard is not None:
            call_on_discard(<PyObject*>on_discard, obj)


cdef Py_ssize_t object_size(object obj) noexcept:
    cdef bint exhausted = False
    try:
        return deep_sizeof(obj, &exhausted)
    except Exception:
        # An object whose size can't be taken must not keep the others from being freed.
        return Py_TYPE(<PyObject*>obj).tp_basicsize


cdef object pool_make(ObjectPool pool):
    """Make an object and count it as created."""
    if not pool.ready:
        raise_not_ready()
    obj = owned(PyObject_CallNoArgs(<PyObject*>pool.factory))
    if obj is None:
        raise FactoryError("factory must return an object, not None")
    refuse_awaitable("factory", obj, True)
    if unlikely(not load_flag(&pool.probed)):
        store_flag(&pool.probed, True)
        store_flag(&pool.held_elsewhere, not is_unshared(<PyObject*>obj))
    freelist_count(pool.idle, MADE, 1)
    if FREE_THREADED and not owned_by_this_thread(<PyObject*>pool):
        # Two threads that count references to one object contend for its cache line. With deferred counting they
        # don't; in exchange, only the garbage collector frees the pool.
        defer_refcount(<PyObject*>pool)
    return obj


cdef int pool_add(ObjectPool pool) except -1:
    """Make one object and keep it."""
    obj = pool_make(pool)
    if pool_push(pool, <PyObject*>obj):
        freelist_count(pool.idle, RELEASED, -1)
    # Refused: allocation failed, unless the factory has released objects itself and filled the pool.
    elif freelist_stats(pool.idle, NULL) < pool.idle.limit:
        raise MemoryError()
    return 0


cdef void pool_expire_some(ObjectPool pool, double now) noexcept:
    cdef void* due[MOST_EXPIRED]
    cdef Py_ssize_t i
    cdef Py_ssize_t number = freelist_take_own(pool.idle, due, MOST_EXPIRED, now - pool.idle_seconds)
    for i in range(number):
        freelist_dispose(pool.idle, due[i])


cdef inline void pool_expire_idle(ObjectPool pool) noexcept:
    if pool.timed:
        freelist_discard(pool.idle, PY_SSIZE_T_MAX, monotonic_coarse() - pool.idle_seconds)


cdef void pool_clear(ObjectPool pool) noexcept:
    # Only as many as are idle now: a finaliser that releases objects could keep this running forever.
    freelist_trim(pool.idle, freelist_stats(pool.idle, NULL))


cdef object pool_acquire_timed(ObjectPool pool):
    cdef double now = monotonic_coarse()
    cdef double since
    cdef Py_ssize_t due = 0
    cdef PyObject* obj
    pool_expire_some(pool, now)
    while due < MOST_EXPIRED:
        obj = <PyObject*>freelist_pop_as(pool.idle, &since, True)
        if obj == NULL:
            break
        if since <= now - pool.idle_seconds:
            # The colder ones have expired too; each operation discards a few.
            due += 1
            freelist_count(pool.idle, REUSED, -1)
            freelist_count(pool.idle, DISCARDED, 1)
            freelist_dispose(pool.idle, obj)
        elif is_unshared(obj):
            return owned(obj)
        else:
            pool_discard_alias(pool, obj)
    return pool_make(pool)


cdef inline bint is_unshared(PyObject* obj) noexcept:
    """Whether the caller's reference is the only one, apart from those of the object's own parts."""
    return uniquely_referenced(obj) or refers_to_itself_only(obj, 1)


cdef int pool_discard_alias(ObjectPool pool, PyObject* obj) except -1:
    freelist_count(pool.idle, REUSED, -1)
    # Another thread's object: the collector may change an object's owner, which is no alias of the caller's.
    freelist_count(pool.idle, ALIASED if owned_by_this_thread(obj) else DISCARDED, 1)
    cls = type(<object>obj)
    Py_DECREF(obj)
    # A reset may drop what held the object at first; then some have been reused.
    if load_flag(&pool.held_elsewhere) and not pool.warned and not pool_has_reused(pool):
        pool.warned = True
        warn_of_held_objects(cls)
    return 0


cdef bint pool_has_reused(ObjectPool pool) noexcept:
    cdef int64_t counts[COUNTS]
    freelist_stats(pool.idle, counts)
    return counts[<int>REUSED] > 0


cdef int warn_of_held_objects(object cls) except -1:
    from warnings import warn
    cause = (
        "or, without the GIL, the object refers to itself through its own attributes"
        if FREE_THREADED
        else "such as a registry, a list or a running thread that the factory passes it to"
    )
    warn(
        f"this pool can't reuse its {cls.__name__} objects: something still refers to each when "
        f"the factory returns it, {cause}",
        RuntimeWarning,
        2,
    )
    return 0


cdef object pool_acquire(ObjectPool pool):
    if unlikely(pool.special):
        return pool_acquire_special(pool, INFINITY)
    return pool_acquire_plain(pool)


cdef object pool_acquire_special(ObjectPool pool, double timeout):
    if pool.bounds != NULL:
        return bounded_acquire(pool, timeout)
    return pool_acquire_timed(pool)


cdef object pool_take(ObjectPool pool):
    """An object, whatever is in use."""
    return pool_acquire_timed(pool) if pool.timed else pool_acquire_plain(pool)


cdef inline object pool_acquire_plain(ObjectPool pool):
    cdef PyObject* obj
    while True:
        # Spare the object released last: in `for ...: x = pool.acquire(); ...; pool.release(x)`, x still refers to it.
        obj = <PyObject*>freelist_pop_as(pool.idle, NULL, True)
        if unlikely(obj == NULL):
            return pool_make(pool)
        if likely(uniquely_referenced(obj)) or refers_to_itself_only(obj, 1):
            return owned(obj)
        pool_discard_alias(pool, obj)


cdef bint has_reset(ObjectPool pool, PyObject* obj, uint64_t version) except -1:
    """Whether the object's type has a `reset`. The pool remembers the answer until the type changes."""
    cdef PyObject* found = _PyType_Lookup(Py_TYPE(obj), "reset")
    cdef bint has = found != NULL and found != Py_None
    if version != 0 and version == type_version(obj) and pool.bounds == NULL:
        store_u64(&pool.seen_type, version << 1 | has)
    return has


cdef int pool_reset(ObjectPool pool, PyObject* obj) except -1:
    cdef uint64_t version, seen
    cdef PyObject* args[1]
    cdef PyObject* answer
    if pool.calls_reset:
        answer = PyObject_CallOneArg(<PyObject*>pool.reset, obj)
    else:
        version = type_version(obj)
        seen = load_u64(&pool.seen_type)
        if not ((seen & 1) if seen >> 1 == version and version != 0 else has_reset(pool, obj, version)):
            return 0
        args[0] = obj
        answer = PyObject_VectorcallMethod(<PyObject*>reset_name, args, 1, NULL)
    if unlikely(answer != Py_None):
        return pool_refuse_reset(pool, obj, answer)
    Py_DECREF(answer)
    return 0


cdef int pool_refuse_reset(ObjectPool pool, PyObject* obj, PyObject* answer) except -1:
    """Fail if the reset raised or has to be awaited. Steals the reference to its answer."""
    try:
        result = owned(answer)
        refuse_awaitable("reset", result)
    except BaseException:
        freelist_count(pool.idle, DISCARDED, 1)
        pool_let_go(pool, obj)
        raise
    return 0


cdef inline bint pool_push(ObjectPool pool, PyObject* obj) noexcept:
    """Make the object idle if there is room. The caller keeps its own reference."""
    cdef bint kept
    Py_INCREF(obj)
    if unlikely(pool.timed):
        kept = pool_push_timed(pool, obj)
    else:
        kept = freelist_push(pool.idle, obj)
    if unlikely(not kept):
        Py_DECREF(obj)
        pool_let_go(pool, obj)
    return kept


cdef bint pool_release(ObjectPool pool, object obj) except -1:
    cdef PyObject* block = <PyObject*>obj
    # A match means a type without a reset. Pools that were given a reset, or never initialised, match no type.
    if unlikely(load_u64(&pool.seen_type) != type_version(block) << 1):
        if obj is None:
            raise type_error("obj", None, "an object acquired from the pool")
        if not pool.ready:
            raise_not_ready()
        if pool.bounds != NULL:
            return bounded_release(pool, obj)
        pool_reset(pool, block)
    if FREE_THREADED and not owned_by_this_thread(block):
        return pool_refuse_foreign(pool, block)
    return pool_push(pool, block)


cdef bint pool_refuse_foreign(ObjectPool pool, PyObject* obj) noexcept:
    freelist_count(pool.idle, DISCARDED, 1)
    pool_let_go(pool, obj)
    return False


cdef bint pool_keep(ObjectPool pool, object obj) except -1:
    """`pool_release`, whatever is in use."""
    pool_reset(pool, <PyObject*>obj)
    if FREE_THREADED and not owned_by_this_thread(<PyObject*>obj):
        return pool_refuse_foreign(pool, <PyObject*>obj)
    return pool_push(pool, <PyObject*>obj)


cdef bint pool_push_timed(ObjectPool pool, PyObject* obj) noexcept:
    cdef double now = monotonic_coarse()
    cdef bint kept
    pool_expire_some(pool, now)
    kept = freelist_push_since(pool.idle, obj, True, now)
    if kept and not load_flag(&pool.scheduled):
        store_flag(&pool.scheduled, True)
        try:
            from synthex_fast._sweeper import schedule
            schedule(pool, now + pool.idle_seconds)
        except BaseException:
            # No memory, or no thread can be started. The next release retries; until then operations expire objects.
            store_flag(&pool.scheduled, False)
    return kept


cdef int raise_not_ready() except -1:
    raise SynthexFastError("this pool is not initialised: a subclass did not call ObjectPool.__init__")


include "_pool_bounds.pxi"


cdef class ObjectPool:
    """ObjectPool(factory, max_size=1000, *, prefill=None, reset=None, max_idle=None, max_in_use=None, \
on_discard=None, name=None)\n--\n
    Reuse released objects that are expensive to make.

    `factory()` makes an object when none is idle. At most `max_size` objects are kept idle, over all threads.
    `prefill` objects are made at once (None: 100, or `max_size` if that is less). `reset(obj)` runs when an
    object is released; None calls ``obj.reset()`` if the type has that method. An object idle for more than
    `max_idle` seconds is discarded by the pool's next operation or a background sweep (None: never). `name`
    identifies the pool in its repr.

    `on_discard(obj)` is called for each object that the pool gives up, to close it: an idle object that expires
    or that `clear`, `trim` or `resize` removes, those that are idle when the pool is freed (or, without the GIL,
    when their thread ends), and a released one that is not kept because the pool is full, its reset raised or,
    without the GIL, another thread made it. An idle object that is still referenced elsewhere is not passed to
    it: whoever refers to it may be using it, and has to close it. It is called outside of any critical section
    and may use the pool. What it raises goes to ``sys.unraisablehook``.

    With `max_in_use`, at most so many objects are in use at a time: `acquire` waits, first come first served,
    until one is released, and raises `PoolExhaustedError` (a TimeoutError) after its timeout; `aacquire` and
    ``async with pool.lease()`` wait without blocking the event loop. Objects must be released then. One that is
    dropped instead is discarded within a second of somebody's having to wait (without the GIL, only if that is
    the thread that made it). A bounded pool keeps a reference to each object in use; releasing one that is not in
    use does nothing and returns False. In a forked child nothing is in use at first.

    `acquire` never returns an object that is still referenced elsewhere: it discards that one and takes
    another. Releasing an object twice is therefore harmless. References from the object's own parts, such as
    a bound method of its own that it stores, don't count, except without the GIL. If something else refers to
    an object as soon as the factory returns it, none can be reused, and the pool warns once (RuntimeWarning).
    An acquired object need not be released: without references it is freed like any other.

    Without the GIL each thread has its own magazine (Bonwick and Adams, "Magazines and Vmem", USENIX 2001),
    and an object is reused only by the thread that made it; `release` in another thread discards it. Once a
    second thread uses the pool, the garbage collector frees the pool, not the last reference. Objects that
    are weakly referenced are not reused there.

    `acquire` and `release` take constant time and, without `max_in_use`, never wait for another thread's work.
    Invalid arguments raise `ArgumentTypeError` or `ArgumentValueError`; a factory that returns None raises
    `FactoryError`.

    >>> from synthex_fast import ObjectPool
    >>> pool = ObjectPool(bytearray, max_size=10, prefill=1)
    >>> with pool.lease() as buffer:
    ...     buffer += b"text"
    >>> len(pool), pool.stats["reused"]
    (1, 1)
    """

    __class_getitem__ = classmethod(type(list[int]))

    def __cinit__(self, *args, **kwargs):
        self.idle_seconds = INFINITY
        self.seen_type = 1
        self.idle = freelist_new(0, release_reference, True, False)

    def __init__(
        self, factory, max_size=1000, *, prefill=None, reset=None, max_idle=None, max_in_use=None, on_discard=None,
        name=None
    ):
        cdef Py_ssize_t limit, filled, in_use = 0, _i
        cdef double idle_seconds
        if self.ready:
            raise SynthexFastError("this pool is already initialised")
        check_callable("factory", factory)
        limit = size("max_size", max_size, 1)
        if prefill is None:
            filled = min(<Py_ssize_t>100, limit)
        else:
            filled = size("prefill", prefill)
            if filled > limit:
                raise value_error("prefill", prefill, f"at most max_size, which is {limit}")
        check_callable("reset", reset, True)
        idle_seconds = seconds("max_idle", max_idle, True)
        if max_in_use is not None:
            in_use = size("max_in_use", max_in_use, 1)
        check_callable("on_discard", on_discard, True)
        check_text("name", name, True)
        if max_in_use is not None and self.bounds == NULL:
            self.bounds = bounds_new(in_use)
        freelist_resize(self.idle, limit)
        self.factory = factory
        self.reset = reset
        self.calls_reset = reset is not None
        self.idle_seconds = idle_seconds
        # No thread has pushed anything yet, so no stack exists that lacks the times.
        self.timed = self.idle.timed = isfinite(idle_seconds)
        self.special = self.timed or self.bounds != NULL
        self.discards = on_discard is not None
        self.on_discard = on_discard
        if self.discards:
            freelist_handle(self.idle, discard_through, <PyObject*>on_discard)
        self.name = name
        self.ready = True
        try:
            for _i in range(filled):
                pool_add(self)
        except BaseException:
            pool_clear(self)
            self.ready = False
            raise

    def __del__(self):
        # While the fields are in order: `on_discard` may use the pool, or what a cycle consists of.
        if self.discards:
            pool_clear(self)

    def __dealloc__(self):
        if self.bounds != NULL:
            bounds_clear(self.bounds)
            PyMem_RawFree(self.bounds)
        if self.idle != NULL:
            freelist_delete(self.idle)

    def acquire(self, *, timeout=None):
        """Return an idle object, or a new one if none is idle. O(1).

        Exceptions from the factory propagate and leave the pool unchanged. `FactoryError` if it returns None.

        If `max_in_use` objects are in use, it waits for one to be released, for up to `timeout` seconds: None for as
        long as it takes, 0 not at all. `PoolExhaustedError` then. An exception while it waits, such as
        KeyboardInterrupt, loses nothing. Without `max_in_use` it never waits.

        >>> pool = ObjectPool(dict, prefill=0)
        >>> pool.acquire()
        {}
        >>> bounded = ObjectPool(dict, prefill=0, max_in_use=1)
        >>> used = bounded.acquire()
        >>> bounded.acquire(timeout=0.01)
        Traceback (most recent call last):
        synthex_fast.errors.PoolExhaustedError: all objects that may be in use are (1), none was released within 0.01 s
        """
        cdef double waiting
        if timeout is None:
            return pool_acquire(self)
        waiting = timeout_seconds(timeout)
        return pool_acquire_special(self, waiting) if self.special else pool_acquire_plain(self)

    def aacquire(self, *, timeout=None):
        """`acquire` for a coroutine of asyncio, to be awaited: other tasks run while it waits. O(1).

        Without `max_in_use` it doesn't wait. An object may be released by any thread. If the awaiting task is
        cancelled, its place in the queue goes to the next one.

        >>> import asyncio
        >>> pool = ObjectPool(dict, prefill=0, max_in_use=1)
        >>> async def use():
        ...     context = await pool.aacquire(timeout=5)
        ...     pool.release(context)
        >>> asyncio.run(use())
        """
        return acquisition_for(self, None, timeout_seconds(timeout))

    # Without keywords it compiles to METH_O, which needs no argument parsing.
    @cython.always_allow_keywords(False)
    def release(self, obj, /):
        """Reset an object and keep it for reuse. True if it was kept, False if the pool is full. O(1).

        If the reset raises, the object is discarded and the exception propagates. Without the GIL an object
        made by another thread is discarded too.

        >>> pool = ObjectPool(dict, max_size=1, prefill=0)
        >>> pool.release(pool.acquire()), pool.release({})
        (True, False)
        """
        return pool_release(self, obj)

    def lease(self, *, timeout=None):
        """A context manager that acquires an object on entry and releases it on exit, even if the body raises.

        It works with ``with`` and, in a coroutine of asyncio, ``async with``. `timeout` is that of `acquire`.

        >>> pool = ObjectPool(list, prefill=0)
        >>> with pool.lease() as items:
        ...     items.append(1)
        >>> len(pool)
        1
        """
        cdef Lease lease = Lease.__new__(Lease)
        lease.pool = self
        lease.timeout = INFINITY if timeout is None else timeout_seconds(timeout)
        return lease

    def __reduce__(self):
        raise ArgumentTypeError(
            f"{type(self).__name__} can't be pickled or copied: its idle objects belong to this process"
        )

    def resize(self, max_size):
        """Change how many objects may be idle; discard those beyond it, coldest first. O(objects discarded).

        >>> pool = ObjectPool(list, prefill=10)
        >>> pool.resize(4)
        >>> len(pool), pool.max_size
        (4, 4)
        """
        freelist_resize(self.idle, size("max_size", max_size, 1))

    def clear(self):
        """Discard all idle objects, those of other threads included. O(idle objects).

        >>> pool = ObjectPool(list)
        >>> pool.clear()
        >>> len(pool)
        0
        """
        pool_clear(self)

    def trim(self, nbytes):
        """Discard idle objects, coldest first, to free about `nbytes` bytes. Returns the estimate of bytes freed.

        O(objects discarded). A memory governor calls it when memory runs short.

        >>> pool = ObjectPool(lambda: bytearray(1000), prefill=10)
        >>> 3000 <= pool.trim(3000) <= 5000, len(pool)
        (True, 7)
        """
        cdef Py_ssize_t wanted = size("nbytes", nbytes)
        cdef Py_ssize_t left, freed = 0
        cdef void* taken[1]
        pool_expire_idle(self)
        left = freelist_stats(self.idle, NULL)
        while freed < wanted and left > 0 and freelist_take(self.idle, taken, 1, INFINITY):
            left -= 1
            freed += object_size(<object>taken[0])
            freelist_dispose(self.idle, taken[0])
        return freed

    def _sweep(self, double budget, now=None):
        """For the sweeper: discard expired objects for at most `budget` seconds.

        Returns when to call it again, on the scale of ``time.monotonic()``; infinity for not until scheduled.
        """
        cdef double stop = monotonic() + budget
        cdef double at = monotonic_coarse() if now is None else now
        cdef double due
        while freelist_discard(self.idle, MOST_EXPIRED, at - self.idle_seconds) == MOST_EXPIRED:
            if monotonic() > stop:
                return at
        # A release from here on finds the pool unscheduled and schedules it, at worst one time too many.
        store_flag(&self.scheduled, False)
        due = freelist_oldest(self.idle) + self.idle_seconds
        if due != INFINITY:
            store_flag(&self.scheduled, True)
        return due

    def __len__(self):
        pool_expire_idle(self)
        return freelist_stats(self.idle, NULL)

    def __bool__(self):
        # `pool or default` must not depend on whether an object is idle.
        return True

    def __repr__(self):
        named = "" if self.name is None else f" {self.name!r}"
        return f"<{type(self).__name__}{named}: {len(self)} of {self.max_size} idle>"

    @property
    def max_size(self):
        """How many idle objects may be kept."""
        return self.idle.limit

    @property
    def max_idle(self):
        """Seconds after which an idle object is discarded; None for never."""
        return self.idle_seconds if self.timed else None

    @property
    def max_in_use(self):
        """How many objects may be in use at a time; None for any number."""
        return None if self.bounds == NULL else self.bounds.most

    @property
    def nbytes(self):
        """Estimated size of the idle objects in bytes, nested values included, from a sample of up to 64. O(1).

        >>> pool = ObjectPool(lambda: bytearray(1000), prefill=10)
        >>> 10_000 <= pool.nbytes <= 12_000
        True
        """
        cdef Py_ssize_t number, sampled = 0, total = 0
        cdef Py_ssize_t i
        cdef double stride
        cdef Borrowed borrowed
        pool_expire_idle(self)
        number = freelist_stats(self.idle, NULL)
        stride = max(1.0, <double>number / SAMPLES)
        for i in range(min(number, SAMPLES)):
            if not freelist_borrow(self.idle, <Py_ssize_t>(i * stride), &borrowed):
                break
            total += object_size(<object>borrowed.block)
            sampled += 1
            freelist_give_back(self.idle, &borrowed)
        if sampled == 0:
            return 0
        return total if sampled == number else <Py_ssize_t>(<double>total / sampled * number)

    @property
    def stats(self):
        """Counts since the pool was made, as a dict. Exact while no thread is using the pool.

        `created`: objects made. `reused`: acquisitions served by an idle object. `released`: released objects
        that were kept. `discarded`: objects refused (no room, a reset that raised, another thread's) or removed
        (expired, cleared, trimmed). `aliased`: objects discarded because they were still referenced elsewhere.
        `pool_size`: idle objects now. `reuse_rate`: `reused` / (`created` + `reused`). `held_elsewhere`:
        whether something besides the pool referred to the first object as soon as the factory returned it. With
        `max_in_use` also `in_use` (objects in use, or about to be) and `waiting`: acquisitions that wait for one.

        >>> pool = ObjectPool(list, prefill=1)
        >>> pool.release(pool.acquire())
        True
        >>> pool.stats["created"], pool.stats["reused"], pool.stats["reuse_rate"]
        (1, 1, 0.5)
        """
        cdef int64_t counts[6]
        cdef int64_t made, reused
        cdef Py_ssize_t idle, in_use, waiting
        cdef Bounds* bounds
        pool_expire_idle(self)
        idle = freelist_stats(self.idle, counts)
        made = counts[<int>MADE]
        reused = counts[<int>REUSED]
        figures = {
            "created": made,
            "reused": reused,
            "released": counts[<int>RELEASED],
            "discarded": counts[<int>DISCARDED],
            "aliased": counts[<int>ALIASED],
            "pool_size": idle,
            "reuse_rate": <double>reused / <double>max(<int64_t>1, made + reused),
            "held_elsewhere": bool(load_flag(&self.held_elsewhere)),
        }
        if self.bounds != NULL:
            bounds = bounds_of(self)
            lock(&bounds.lock)
            in_use = bounds.taken
            waiting = bounds.waiting
            unlock(&bounds.lock)
            figures["in_use"] = in_use
            figures["waiting"] = waiting
        return figures


@cython.final
@cython.freelist(16)
cdef class Lease:
    """The context manager of `ObjectPool.lease`. Exiting twice is harmless; after an exit it can be entered again."""

    __class_getitem__ = classmethod(type(list[int]))

    @cython.always_allow_keywords(False)
    def __enter__(self):
        cdef ObjectPool pool = self.pool
        if self.leased is not None:
            raise SynthexFastError("this lease already holds an object")
        if type(pool) is ObjectPool:
            obj = pool_acquire_special(pool, self.timeout) if pool.special else pool_acquire_plain(pool)
        elif self.timeout == INFINITY:
            obj = pool.acquire()
        else:
            obj = pool.acquire(timeout=self.timeout)
        lease_hold(self, pool, obj)
        return obj

    def __exit__(self, kind=None, error=None, trace=None):
        lease_end(self)

    @cython.always_allow_keywords(False)
    def __aenter__(self):
        if self.leased is not None:
            raise SynthexFastError("this lease already holds an object")
        return acquisition_for(self.pool, self, self.timeout)

    def __aexit__(self, kind=None, error=None, trace=None):
        lease_end(self)
        return DONE


cdef int lease_hold(Lease lease, ObjectPool pool, object obj) except -1:
    cdef bint free
    with cython.critical_section(lease):
        free = lease.leased is None
        if free:
            lease.leased = obj
    if free:
        return 0
    # Another thread or task has entered it in the meantime.
    pool.release(obj)
    raise SynthexFastError("this lease already holds an object")


cdef int lease_end(Lease lease) except -1:
    cdef ObjectPool pool = lease.pool
    with cython.critical_section(lease):
        obj = lease.leased
        lease.leased = None
    if obj is not None:
        if type(pool) is ObjectPool:
            pool_release(pool, obj)
        else:
            pool.release(obj)
    return 0


cdef object acquisition_for(ObjectPool pool, Lease lease, double timeout):
    """What awaits an object of the pool; a lease also keeps the object."""
    cdef Acquisition acquisition
    if not pool.ready:
        raise_not_ready()
    acquisition = Acquisition.__new__(Acquisition)
    acquisition.pool = pool
    acquisition.lease = lease
    acquisition.timeout = timeout
    # A subclass may have its own.
    if lease is not None and type(pool) is not ObjectPool:
        acquisition.inner = True
        own = pool.aacquire() if timeout == INFINITY else pool.aacquire(timeout=timeout)
        acquisition.pending = own.__await__()
    return acquisition


# Cython's own traversal visits the pool's Python fields; these add the idle objects, which are in C memory.
cdef traverseproc traverse_fields = (<PyTypeObject*>ObjectPool).tp_traverse
cdef inquiry clear_fields = (<PyTypeObject*>ObjectPool).tp_clear


cdef int traverse_pool(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef int stopped = traverse_fields(self, visit, arg)
    if (<ObjectPool>self).bounds != NULL and not stopped:
        stopped = bounds_visit((<ObjectPool>self).bounds, visit, arg)
    # A collection may run before __cinit__ has made the freelist.
    if stopped or (<ObjectPool>self).idle == NULL:
        return stopped
    return freelist_visit((<ObjectPool>self).idle, visit, arg)


cdef int clear_pool(PyObject* self) noexcept:
    if (<ObjectPool>self).bounds != NULL:
        bounds_clear((<ObjectPool>self).bounds)
    if (<ObjectPool>self).idle != NULL:
        # `__del__` has passed the idle objects to it. By now it may refer to objects that are no longer in order.
        freelist_handle((<ObjectPool>self).idle, NULL, NULL)
        pool_clear(<ObjectPool>self)
    return clear_fields(self)


(<PyTypeObject*>ObjectPool).tp_traverse = traverse_pool
(<PyTypeObject*>ObjectPool).tp_clear = clear_pool
