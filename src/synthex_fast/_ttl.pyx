"""TTLDict: a mapping whose entries expire, limited in entries and in bytes.

The table itself (hash index, expiry heap, eviction order, byte accounting) is a C struct in ``_table.pxd`` that knows
nothing about reference counts, locks or Python code. This module adds those three. It is one compilation unit, so that
the hot paths inline, and reads in this order:

- ``_ttl_locking.pxi``: the locks of the free-threaded build;
- ``_ttl_lookup.pxi``: the clock, the search for a key, reads;
- ``_ttl_eviction.pxi``: removal, release of references, expiry, eviction, the sweeper;
- ``_ttl_storing.pxi``: entry sizes and the one function that stores;
- ``_ttl_loading.pxi``: missing values that are made once for all who ask;
- ``_ttl_many.pxi``: several keys at once;
- ``_ttl_views.pxi``: iterators, views, snapshots;
- this file: the class, its construction, and its part in garbage collection.

Who owns what. A live slot owns one reference to its key and one to its value. Removing an entry moves both to a
`Victims` record on the caller's stack. A record holds eight entries; the slots of further ones are marked DEAD and join
the table's dead queue, which then owns their references until `dead_pop`. A replaced value belongs to `put` until it
has unlocked. A detached table (`clear`, deallocation, the garbage collector) takes its references with it.

In which order things change. Every operation has three phases. First it computes all that may run Python code or fail:
hash, size, time. Then it locks, finds the entry, allocates what it may need, and changes the table in C code that can't
fail. Last it unlocks, calls `on_evict` and drops the references it took out. Python code can therefore run only while
the table is consistent and unlocked, and may use the dict. A comparison in the middle of a search unlocks as well, and
the search starts again if the index has changed (`Table.layout`).

What each lock guards. On the standard build there is no lock: the interpreter's own makes the second phase atomic. On
the free-threaded build a reader holds one of eight stripes and a writer all of them, so no entry is inserted, removed
or moved while anyone reads. Allocation may happen under a lock, Python code and reference drops may not. The garbage
collector traverses the table without a lock, since it stops every other thread.

How expiry stays cheap. An operation frees a few due entries (`expire_some`); only calls that count or show all entries
free all that are due (`expire_due`). An operation that runs inside a callback or finaliser frees none
(`callback_depth`), or callbacks would nest. Entries of an unused dict are freed by the package's sweeper thread.
"""

cimport cython
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport Py_EQ, PyObject

from synthex_fast._arguments cimport check_callable, check_choice, integer, lifetime, real, refuse_awaitable, unwrapped
from synthex_fast._arguments cimport size as byte_count
from synthex_fast._clock cimport monotonic_coarse, monotonic_precise
from synthex_fast._forks cimport forks_seen
from synthex_fast._loads cimport Aged, Load, abandoned, end, new_load, raise_error_of, wait_for
from synthex_fast._python cimport (
    PY_SSIZE_T_MAX, Py_DECREF, Py_INCREF, Py_NewRef, Py_None, Py_REFCNT, Py_ReprEnter, Py_ReprLeave, Py_XDECREF,
    PyErr_WriteUnraisable, PyFloat_AS_DOUBLE, PyFloat_CheckExact, PyDict_SetItemString, PyList_GET_SIZE,
    PyObject_CallFunctionObjArgs,
    PyObject_RichCompareBool, PySequence_Fast_ITEMS, PyTuple_GET_ITEM, PyTuple_GET_SIZE,
    PyType_Modified, PyTypeObject, PyUnicode_CheckExact,
    defer_refcount, hash_of, inquiry, owned, same_text, traverseproc, visitproc,
)
from synthex_fast._sizeof cimport pair_sizeof
from synthex_fast._sync cimport (
    FREE_THREADED, Mutex, likely, load_double, load_pointer, load_ssize, load_u32, load_u64, mutex_lock, mutex_unlock,
    owned_by_this_thread, store_double, store_pointer, store_ssize, store_u32, store_u64, this_thread_number, unlikely,
)
from synthex_fast._table cimport (
    DEAD, FIFO, IN_MAIN, INLINE_SIZE_MAX, LRU, NONE, S3FIFO, SIEVE, TICKS_PER_SECOND, Node, Table, dead_pop, dead_push,
    ghost_remember, heap_find_due, heap_next_due, heap_rebuild, index_home, index_too_small, mix_hash, queue_push,
    queue_unlink, reserve_node, reserve_nodes, reserve_slot, reserve_slots, reserve_wide, slot_accessed, slot_due,
    slot_free, slot_schedule, slot_set_size, slot_size, table_bytes, table_free, table_init, table_insert, table_probe,
    table_remove, table_victim, tick_at_or_after, tick_at_or_before,
)

import os
from _collections_abc import ItemsView, KeysView, MutableMapping, ValuesView
from operator import length_hint
from sys import getsizeof
from types import GenericAlias

from synthex_fast._arguments import want_bool
from synthex_fast.errors import ArgumentValueError, ValueTooLargeError, type_error, value_error


__all__ = ["Items", "Keys", "TTLDict", "Values", "create_memory_aware_ttl_dict"]


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
      #define SYNTHEX_STRIPES 8
    #else
      #define SYNTHEX_STRIPES 1
    #endif
    #define SYNTHEX_FAILED 0xFFFFFFFEu
    /* How many releases of removed entries this thread is inside of. */
    static SYNTHEX_THREAD_LOCAL int synthex_callback_depth;

    static inline PyObject *synthex_current_frame(int *instruction) {
        PyFrameObject *frame = PyEval_GetFrame();
        if (frame != NULL) *instruction = PyFrame_GetLasti(frame);
        return (PyObject *)frame;
    }

    static inline int synthex_same_int(PyObject *a, PyObject *b) {
        PyObject *result = PyLong_Type.tp_richcompare(a, b, Py_EQ);
        int same = result == Py_True;
        Py_DECREF(result);
        return same;
    }
    """
    bint is_plain_int "PyLong_CheckExact"(PyObject*) noexcept
    # Of two such; runs no Python code, allocates nothing and can't fail.
    bint same_int "synthex_same_int"(PyObject*, PyObject*) noexcept
    # The innermost Python frame, borrowed, and the instruction it is at; NULL if there is none or no memory for it.
    PyObject* current_frame "synthex_current_frame"(int* instruction) noexcept
    const unsigned int STRIPES "SYNTHEX_STRIPES"
    # What `find` returns instead of a slot. Both are greater than any slot.
    const uint32_t MISSING "SYNTHEX_NONE"
    const uint32_t FAILED "SYNTHEX_FAILED"
    int callback_depth "synthex_callback_depth"


cdef enum:
    # Entries that a `Victims` record holds before the dead queue is used.
    VICTIMS = 8
    # Due entries that one lookup, insertion or deletion examines. An insertion adds one, so a backlog shrinks.
    EXPIRE_STEPS = 4
    # Due entries that `expire_due` takes off the heap one by one before it scans the whole heap instead.
    EXPIRE_DUE_STEPS = 64
    # What a key and value cost beyond themselves: 32 bytes of slot, 12 of links, 8 of heap, 6.4 of index, and the rest
    # for pages that are not full. Measured by `bench_ttl.py`; without `max_size` the index may be half as dense.
    ENTRY_COST = 60
    # Free-threaded build: hits by other threads than the dict's own before it counts as shared.
    SHARED_HITS = 1024

cdef int64_t ALL = 0x7FFFFFFFFFFFFFFF
cdef uint64_t NO_LIMIT = <uint64_t>0xFFFFFFFFFFFFFFFF
cdef uint64_t SEED = int.from_bytes(os.urandom(8), "little")
# A node's tick may lie behind its entry's deadline by one, and arithmetic rounds.
cdef double TICK = 1.5 / TICKS_PER_SECOND
# A deadline that is nearer than the sweeper's next visit by less than this doesn't bring the visit forward. The sweeper
# promises to come within a second.
cdef double SWEEP_SLACK = 0.5
# A sweeper this late has forgotten the dict: its thread could not start, or an error ended it.
cdef double SWEEP_LOST = 2.0
cdef tuple REASONS = ("expired", "idle", "full", "memory", None, "deleted", "replaced", "cleared")
cdef dict POLICIES = {"fifo": FIFO, "lru": LRU, "sieve": SIEVE, "s3fifo": S3FIFO}
cdef object UNCHANGED = object()
cdef str AWAIT_INSTEAD = "; await aget_or_set(key, coroutine_function) instead"
cdef str PAIRS = "a mapping or an iterable of (key, value) pairs"
# What a caller's `sizeof` may return at most, so that sums with it don't overflow.
cdef object SIZE_MAX = 2**62 - 1
# The sweeper's function, imported when the first dict needs it and then kept: threads read it without a lock.
cdef PyObject* schedule = NULL


include "_ttl_locking.pxi"
include "_ttl_lookup.pxi"
include "_ttl_eviction.pxi"
include "_ttl_storing.pxi"
include "_ttl_loading.pxi"
include "_ttl_many.pxi"
include "_ttl_views.pxi"


# ---- arguments ----

cdef Py_ssize_t entries_from(object max_size) except -1:
    """The limit in entries, 0 for none."""
    return 0 if max_size is None else integer("max_size", max_size, 1, PY_SSIZE_T_MAX, "entries", True)


cdef uint64_t bytes_from(object memory_limit) except? 0:
    """The limit in bytes, NO_LIMIT for none."""
    return NO_LIMIT if memory_limit is None else integer("memory_limit", memory_limit, 1, PY_SSIZE_T_MAX, "bytes", True)


cdef uint64_t cap_from(object nbytes) except? 0:
    """Like bytes_from, and 0 is allowed: an existing dict may be told to keep nothing for the time being."""
    return NO_LIMIT if nbytes is None else integer("nbytes", nbytes, 0, PY_SSIZE_T_MAX, "bytes", True)


cdef inline double life_from(TTLDict self, object ttl) except? -1.0:
    """The seconds that an entry is to live: `ttl`, or the dict's own if it is None; NaN if its function is to say."""
    if ttl is None:
        return self.ttl_seconds
    if PyFloat_CheckExact(<PyObject*>ttl) and PyFloat_AS_DOUBLE(<PyObject*>ttl) > 0:
        return PyFloat_AS_DOUBLE(<PyObject*>ttl)
    return lifetime("ttl", ttl, True)


@cython.final
@cython.internal
cdef class FlightsOwner:
    """Stands for a dict where event loops keep what they load for it, and goes with the dict."""
    cdef object __weakref__


@cython.trashcan(True)
@cython.collection_type("mapping")
cdef class TTLDict:
    """TTLDict(max_size=None, ttl=None, *, memory_limit=None, sizeof=None, policy='s3fifo', idle=None, \
timer=None, on_evict=None, on_remove=None, sweep=True)\n--\n
    A mapping whose entries expire, and whose size in entries and bytes is limited.

    ``max_size`` limits the number of entries. ``memory_limit`` limits the bytes (``nbytes``) that keys, values and the
    dict's own cost per entry take together. ``ttl`` is how many seconds an entry lives, ``idle`` how many seconds it
    lives without being read or replaced; a ``timedelta`` says the same. ``ttl`` may also be a function of key and value
    that returns either, or None for an entry that never expires. ``None`` means no limit. An expired value is never
    returned, counted or shown. It is freed by the operations that follow, a few entries each, or within about a second
    by the package's sweeper if the dict is not used (``sweep=False`` turns that off).

    ``policy`` says which entry a full dict evicts: ``"s3fifo"`` (Yang et al., SOSP 2023; the default, with the best hit
    ratio in the benchmarks), ``"sieve"`` (Zhang et al., NSDI 2024), ``"lru"`` or ``"fifo"``. Due entries always go
    first. When ``memory_limit`` is exceeded, the dict evicts down to 80 % of it. `cap` sets a second, lower limit from
    outside; a `MemoryGovernor` does so while memory is short.

    Inserting or deleting during an iteration raises RuntimeError, as with a dict. Eviction and expiry don't: the
    iterator skips what is gone. ``list(d)``, ``dict(d)`` and other consumers written in C see the entries of one
    moment, whatever other threads do; ``dict(d)`` counts neither as a use nor as hits.

    ``sizeof(key, value)`` returns the bytes of both and replaces the built-in estimate. A function of the value alone
    is passed as ``lambda key, value: measure(value)``; ``sys.getsizeof`` is refused, because it would measure the key
    and take the value for its default. ``timer()`` returns seconds as a float and
    replaces the coarse monotonic clock; a dict with its own timer isn't swept. ``on_evict(key, value, reason)`` is
    called after an entry was removed because it was ``"expired"`` or ``"idle"``, or because the dict was ``"full"`` or
    out of ``"memory"``. It is not called for what the user removes: ``on_remove(key, value, reason)`` is, because the
    key was ``"deleted"``, its value ``"replaced"`` or the dict ``"cleared"``. What either raises goes to
    ``sys.unraisablehook``.

    Lookup, insertion and deletion take O(1) time on average (O(log n) if a deadline comes nearer) and free at most a
    fixed number of due entries. ``len``, iteration and ``expire`` free all that are due. The order of iteration is
    unspecified. Arguments that are out of range raise ArgumentValueError, arguments of the wrong type
    ArgumentTypeError.

    >>> from synthex_fast import TTLDict
    >>> answers = TTLDict(max_size=500, ttl=14_400.0, memory_limit=6_000_000)
    >>> answers["q1"] = ["yes", "no"]
    >>> answers.get("q1"), answers.get("q2")
    (['yes', 'no'], None)
    """

    def __cinit__(self):
        self.stripes_block = PyMem_RawCalloc(STRIPES + 1, sizeof(Stripe))
        if self.stripes_block == NULL:
            raise MemoryError()
        # Each stripe starts on a cache line of its own.
        self.stripes = <Stripe*>((<size_t>self.stripes_block + 127) & ~<size_t>127)
        self.generation = forks_seen
        self.most_bytes = self.own_bytes = self.cap_bytes = NO_LIMIT
        self.ttl_seconds = INFINITY
        self.sweep_at = INFINITY
        self.policy_name = "s3fifo"
        self.sweepable = True
        table_init(&self.table, S3FIFO, NONE, INFINITY, monotonic_coarse())

    def __init__(
        self, max_size=None, ttl=None, *, memory_limit=None, sizeof=None, policy="s3fifo", idle=None, timer=None,
        on_evict=None, on_remove=None, sweep=True,
    ):
        # To Cython `sizeof` is an operator, so the argument can't be named.
        configure(
            self, max_size, ttl, memory_limit, locals()["sizeof"], policy, idle, timer, on_evict, on_remove, sweep
        )

    def __dealloc__(self):
        # tp_clear has emptied the dict, or was not needed because there was no cycle to break.
        if self.stripes_block != NULL:
            release_entries(self)
            release_copies(detach_copies(self))
            PyMem_RawFree(self.stripes_block)

    # ---- the C interface (described in _ttl.pxd) ----

    cdef PyObject* lookup(self, PyObject* key) except? NULL:
        return lookup_now(self, key)

    cdef int store(self, PyObject* key, PyObject* value, double life, Presence mode, PyObject** present) except -1:
        cdef uint32_t hash = mix_hash(hash_of(key), SEED)
        cdef uint64_t size = <uint64_t>entry_size(self, key, value)
        cdef double now, deadline = INFINITY
        if life != INFINITY:
            if unlikely(life != life):
                life = life_by_caller(self, key, value)
            now = now_of(self)
            deadline = now + life
        else:
            now = now_if_needed(self)
        return put(self, key, value, hash, size, now, deadline, mode, present)

    cdef PyObject* take(self, PyObject* key) except? NULL:
        cdef Table* t = &self.table
        cdef uint32_t hash = mix_hash(hash_of(key), SEED), slot
        cdef double now = now_if_needed(self)
        cdef PyObject* value = NULL
        cdef PyObject* old_key = NULL
        cdef Victims victims
        victims.count = 0
        victims.queued = 0
        enter(self)
        slot = find(self, key, hash, NULL)
        if unlikely(slot == FAILED):
            leave(self)
            return NULL
        if any_loading(self):
            forget_loads(self, hash)
        if slot != MISSING:
            if unlikely(slot_due(t, slot) <= now):
                remove_entry(self, slot, due_reason(self, slot, now), &victims)
            else:
                table_remove(t, slot)
                old_key = t.slots[slot].key
                value = t.slots[slot].value
                slot_free(t, slot)
                store_u32(&self.changes, self.changes + 1)
        if any_due(self, now):
            remove_some_due(self, now, EXPIRE_STEPS, &victims)
        leave(self)
        release_refs(self, &victims)
        if old_key != NULL:
            if unlikely(self.on_remove is not None):
                notify_removed(self, old_key, value, DELETED)
            Py_DECREF(old_key)
        return value

    # ---- mapping ----

    def __getitem__(self, key):
        """The value stored under the key. Raises KeyError if the key is missing or has expired."""
        cdef PyObject* value = NULL
        if unlikely(self.copies != NULL):
            value = copied_value(self, <PyObject*>key)
        if likely(value == NULL):
            value = lookup_now(self, <PyObject*>key)
        if value == NULL:
            return missing(self, key)
        return owned(value)

    # `get` is below, after the class.

    def __contains__(self, key):
        """Whether the key has a value that has not expired. Counts neither as a use nor as a hit or miss."""
        cdef uint32_t hash = mix_hash(hash_of(<PyObject*>key), SEED), slot
        cdef double now = now_if_needed(self)
        cdef Stripe* stripe = enter_shared(self)
        cdef bint found
        slot = find(self, <PyObject*>key, hash, stripe)
        found = slot < FAILED and slot_due(&self.table, slot) > now
        leave_shared(stripe)
        if unlikely(slot == FAILED):
            raise_pending()
        if any_due(self, now):
            expire_some(self, now)
        return found

    def __setitem__(self, key, value):
        self.store(<PyObject*>key, <PyObject*>value, self.ttl_seconds, REPLACE, NULL)

    def set(self, key, value, ttl=None):
        """Store the value for `ttl` seconds. None means the dict's own ttl, ``math.inf`` that it never expires. O(1).

        Raises ValueTooLargeError, and changes nothing, if key and value alone exceed `memory_limit`. If they exceed
        only the `cap`, the value is evicted at once, without an error (see `cap`).

        >>> d = TTLDict(ttl=60)
        >>> d.set("short", 1, ttl=0.5)
        >>> d["long"] = 2
        >>> d.expires_at("short") < d.expires_at("long")
        True
        """
        self.store(<PyObject*>key, <PyObject*>value, life_from(self, ttl), REPLACE, NULL)

    def __delitem__(self, key):
        cdef PyObject* value = self.take(<PyObject*>key)
        if value == NULL:
            raise KeyError(key)
        Py_DECREF(value)

    def pop(self, key, /, default=UNCHANGED):
        """Remove the key and return its value, or `default`. Raises KeyError if there is neither. O(1).

        >>> TTLDict().pop("nobody", None)
        """
        cdef PyObject* value = self.take(<PyObject*>key)
        if value != NULL:
            return owned(value)
        if default is UNCHANGED:
            raise KeyError(key)
        return default

    def popitem(self):
        """Remove and return a (key, value) pair, the oldest of its queue. Raises KeyError if the dict is empty. O(1).

        >>> d = TTLDict()
        >>> d["a"] = 1
        >>> d.popitem()
        ('a', 1)
        """
        cdef Table* t = &self.table
        cdef uint32_t slot
        cdef PyObject* key
        cdef PyObject* value
        expire_all_due(self)
        enter(self)
        slot = t.tail[0] if t.tail[0] != NONE else t.tail[1]
        if slot == NONE:
            leave(self)
            raise KeyError("popitem(): the TTLDict is empty")
        table_remove(t, slot)
        key = t.slots[slot].key
        value = t.slots[slot].value
        slot_free(t, slot)
        store_u32(&self.changes, self.changes + 1)
        leave(self)
        if self.on_remove is not None:
            notify_removed(self, key, value, DELETED)
        return owned(key), owned(value)

    def setdefault(self, key, /, default=None):
        """The key's value, after storing `default` if the key was missing. O(1).

        >>> TTLDict().setdefault("a", 1)
        1
        """
        cdef uint32_t hash = mix_hash(hash_of(<PyObject*>key), SEED)
        cdef double now = now_of(self) if self.ttl_seconds != INFINITY else now_if_needed(self)
        cdef PyObject* present = lookup_at(self, <PyObject*>key, hash, now)
        cdef uint64_t size
        cdef double life
        if present == NULL:
            size = <uint64_t>entry_size(self, <PyObject*>key, <PyObject*>default)
            life = life_for(self, self.ttl_seconds, <PyObject*>key, <PyObject*>default)
            put(
                self, <PyObject*>key, <PyObject*>default, hash, size, now, now + life if life != INFINITY else INFINITY,
                KEEP, &present,
            )
        return owned(present)

    def get_or_set(self, key, factory, ttl=None):
        """The key's value. If the key is missing, ``factory()`` is called and its result stored for `ttl` seconds.

        Single flight: callers that find the key missing while a factory runs for it wait, in whatever thread or gevent
        greenlet, and get its result; callers with other keys don't. If the factory raises, nothing is stored, and the
        exception goes to all who wait; one that is no `Exception`, such as KeyboardInterrupt, ends only the call that
        ran the factory, and another caller's factory is tried. A factory that asks for its own key, or waits for one
        that waits for it, gets `LoadCycleError`.

        The factory runs unlocked. A value that another call stores in the meantime stays, and everyone gets it. If the
        key is deleted in the meantime or the dict cleared, the result is returned to those who wait, but not stored.
        After a fork, the child makes anew what another thread of the parent was making.

        A result that alone exceeds `memory_limit` is returned without being stored, and counted in
        ``stats["uncacheable"]``. `ArgumentTypeError` if the factory is a coroutine function or returns a coroutine,
        which only one caller could await: `aget_or_set` takes those.

        >>> TTLDict().get_or_set("a", lambda: 2)
        2
        """
        cdef double life = life_from(self, ttl)
        cdef uint32_t hash
        cdef PyObject* present
        check_callable("factory", factory, False, False, AWAIT_INSTEAD)
        hash = mix_hash(hash_of(<PyObject*>key), SEED)
        present = lookup_at(self, <PyObject*>key, hash, now_if_needed(self))
        if unlikely(present == NULL):
            return load_value(self, new_load(key, hash), factory, life, "factory", AWAIT_INSTEAD)
        return owned(present)

    def aget_or_set(self, key, coroutine_function, ttl=None):
        """A coroutine for the key's value. If the key is missing, ``await coroutine_function()`` makes it.

        Single flight in each event loop of asyncio: coroutines that find the key missing while it is made wait for the
        same result, or get the same exception, which is not kept. The load is a task of its own. To cancel one who
        waits doesn't cancel it; if all who wait are cancelled, it is. Otherwise everything is as with `get_or_set`,
        whose loads and those of other event loops are not waited for: the value that is stored first stays.
        `LoadCycleError` if the coroutine function awaits the same key, or one whose load awaits it.

        >>> import asyncio
        >>> async def answer():
        ...     return 42
        >>> asyncio.run(TTLDict().aget_or_set("a", answer))
        42
        """
        cdef double life = life_from(self, ttl)
        check_callable("coroutine_function", coroutine_function, False, True)
        import_async_loads()
        return load_async(self, key, coroutine_function, life)

    def _lookup(self, key, default):
        cdef PyObject* value = lookup_now(self, <PyObject*>key)
        return default if value == NULL else owned(value)

    def _flights(self, loop):
        """What the event loop is loading, by key. Called by `_async_loads`, in its thread."""
        if self.flights is None:
            owner = FlightsOwner.__new__(FlightsOwner)
            # Loops in several threads may come together.
            enter(self)
            if self.flights is None:
                self.flights = owner
            leave(self)
        import_async_loads()
        return flights_in(loop, self.flights)

    def _begin_load(self, key, Aged replaces, bint unsaved):
        cdef Load load = new_load(key, mix_hash(hash_of(<PyObject*>key), SEED))
        load.replaces = replaces
        load.unsaved = unsaved
        enter(self)
        list_load(self, load, &self.loading_async)
        leave(self)
        return load

    def _store_load(self, Load load, value, double life):
        """Store what was loaded, and return what the key has then."""
        refuse_awaitable("coroutine_function()", value, True)
        return store_loaded(self, load.key, value, life, load)

    def _finish_load(self, Load load, double seconds, bint failed):
        finish_load(self, load, &self.loading_async, seconds, failed)

    def _count_wait(self):
        enter(self)
        self.load_waits += 1
        leave(self)

    # ---- several keys ----

    def get_many(self, keys):
        """A plain dict of those of the keys that are present, with their values. O(number of keys).

        The keys are looked up under one lock and at one time. Each counts as a hit or a miss.

        >>> d = TTLDict()
        >>> d.set_many({"a": 1, "b": 2})
        >>> d.get_many(["a", "c"])
        {'a': 1}
        """
        return get_all(self, keys_from(keys))

    def set_many(self, entries, ttl=None):
        """Store the entries of a mapping or of an iterable of pairs for `ttl` seconds. O(number of entries).

        They are stored under one lock and at one time; it is released in between only to call `on_evict`. If an
        entry is refused (`ValueTooLargeError`), a key can't be hashed or its comparison with a present one raises, or
        memory is short, nothing is stored. Comparisons are tried in advance, apart from those of texts. If one raises
        only later, the entries before it are stored, as `dict.update` does it.

        >>> d = TTLDict()
        >>> d.set_many([("a", 1), ("b", 2)], ttl=60)
        >>> sorted(d)
        ['a', 'b']
        """
        cdef double life = life_from(self, ttl)
        set_all(self, pairs_from(entries), life)

    def delete_many(self, keys):
        """Delete those of the keys that are present, under one lock. Returns how many. O(number of keys).

        >>> TTLDict.fromkeys("abc").delete_many(["a", "c", "x"])
        2
        """
        return delete_all(self, keys_from(keys))

    def update(self, other=(), /, **entries):
        """Store the entries of a mapping or of an iterable of pairs, and the keyword arguments. O(entries given).

        One after another, as `dict.update` does: if one raises, those before it are stored. `set_many` stores all or
        none.
        """
        if not isinstance(other, TTLDict):
            MutableMapping.update(self, other, **entries)
            return
        if type(other).__getitem__ is TTLDict.__getitem__:
            # Without a second look-up, which would miss an entry that falls due meanwhile.
            for key, value in other.items():
                self[key] = value
        else:
            for key in list(other):
                try:
                    value = other[key]
                except KeyError:
                    continue
                self[key] = value
        for key, value in entries.items():
            self[key] = value

    def clear(self):
        """Remove every entry, without calling `on_evict`. Loads under way store nothing. O(n)."""
        cdef Table* t = &self.table
        cdef Table old
        cdef Victims victims
        enter(self)
        store_u32(&self.changes, self.changes + 1)
        forget_loads(self, 0, True)
        if t.dead_first == NONE and self.on_remove is None:
            detach(t, &old)
            leave(self)
            release_detached(&old)
            return
        # The dead queue holds entries for which `on_evict` must still be called, so the arrays have to stay.
        victims.count = 0
        victims.queued = remove_all(self)
        leave(self)
        release_all_refs(self, &victims)

    def __len__(self):
        expire_all_due(self)
        return load_u32(&self.table.live)

    def __bool__(self):
        expire_all_due(self)
        return load_u32(&self.table.live) != 0

    def __iter__(self):
        return entries_of(self, KEYS)

    def keys(self):
        """A view of the keys."""
        return Keys(self)

    def values(self):
        """A view of the values."""
        return Values(self)

    def items(self):
        """A view of the (key, value) pairs."""
        return Items(self)

    # The order of iteration is unspecified, so there is none to reverse. Without this, reversed() would try indices.
    __reversed__ = None

    def __or__(self, other):
        """A copy that is updated with the other mapping. Its settings are the left operand's, unless that is a dict."""
        if not isinstance(other, (dict, MutableMapping)):
            return NotImplemented
        found = self.copy()
        found.update(other)
        return found

    def __ror__(self, other):
        if not isinstance(other, (dict, MutableMapping)):
            return NotImplemented
        return joined(self, other)

    def __ior__(self, other):
        self.update(other)
        return self

    @classmethod
    def fromkeys(cls, keys, value=None, **settings):
        """A dict of these keys, all with the same value; keyword arguments are the constructor's. O(number of keys).

        >>> TTLDict.fromkeys("ab", 0, ttl=60)["b"]
        0
        """
        made = cls(**settings)
        for key in keys_from(keys):
            made[key] = value
        return made

    def __eq__(self, other):
        if not isinstance(other, (dict, MutableMapping)):
            return NotImplemented
        return contents(self) == (contents(other) if isinstance(other, TTLDict) else dict(other.items()))

    __hash__ = None

    def __repr__(self):
        if Py_ReprEnter(self):
            return f"{type(self).__name__}({{...}})"
        try:
            parts = [repr(contents(self))]
            for name, value in settings(self).items():
                parts.append(name + "=" + repr(value))
            return type(self).__name__ + "(" + ", ".join(parts) + ")"
        finally:
            Py_ReprLeave(self)

    # ---- time ----

    def expires_at(self, key):
        """When the entry expires, on the timer's scale (``time.monotonic()``); ``math.inf`` for never. O(1).

        With an idle limit, this is the earlier of the two times. Raises KeyError if the key is missing.

        >>> TTLDict().expires_at("nobody")
        Traceback (most recent call last):
        KeyError: 'nobody'
        """
        cdef uint32_t hash = mix_hash(hash_of(<PyObject*>key), SEED), slot
        cdef double now = now_if_needed(self), due = -INFINITY
        cdef Stripe* stripe = enter_shared(self)
        slot = find(self, <PyObject*>key, hash, stripe)
        if slot < FAILED:
            due = slot_due(&self.table, slot)
        leave_shared(stripe)
        if slot == FAILED:
            raise_pending()
        if due <= now:
            raise KeyError(key)
        return due

    def touch(self, key, ttl=None):
        """Make the entry live for `ttl` seconds from now (None: the dict's own ttl). O(log n).

        Returns whether the key was present.

        >>> TTLDict().touch("nobody")
        False
        """
        cdef Table* t = &self.table
        cdef double life = life_from(self, ttl)
        cdef uint32_t hash = mix_hash(hash_of(<PyObject*>key), SEED), slot
        cdef double now = now_of(self) if life != INFINITY else now_if_needed(self), before
        cdef bint found, failed = False, late
        cdef PyObject* value
        if unlikely(life != life):
            value = lookup_at(self, <PyObject*>key, hash, now)
            if value == NULL:
                return False
            _held = owned(value)
            life = life_by_caller(self, <PyObject*>key, value)
        enter(self)
        slot = find(self, <PyObject*>key, hash, NULL)
        if slot == FAILED:
            leave(self)
            raise_pending()
        found = slot != MISSING and slot_due(t, slot) > now
        if found:
            if t.links[slot].node == NONE and life != INFINITY and not reserve_node(t):
                failed = True
            else:
                before = slot_due(t, slot)
                t.slots[slot].deadline = now + life if life != INFINITY else INFINITY
                if t.touched != NULL:
                    t.touched[slot] = now
                slot_schedule(t, slot, before)
                slot_accessed(t, slot)
        late = sweeper_late(self, now)
        leave(self)
        if failed:
            raise MemoryError()
        if late:
            wake_sweeper(self, now)
        if any_due(self, now):
            expire_some(self, now)
        return found

    def expire(self, limit=None):
        """Free the entries that are due, at most `limit` of them, and return how many. O(due), at most O(n).

        >>> TTLDict(ttl=60).expire()
        0
        """
        cdef int64_t most = ALL
        cdef double now
        if limit is not None:
            most = integer("limit", limit, 1, PY_SSIZE_T_MAX, "entries", True)
        if load_u32(&self.table.scheduled) == 0:
            return 0
        now = now_of(self)
        return expire_due(self, now, most) if now + TICK >= load_double(&self.table.next_due) else 0

    def _sweep(self, double budget):
        """Free due entries for `budget` seconds. Called by the package's sweeper.

        Returns when to call again (``time.monotonic()``); infinity means not before it is scheduled.
        """
        cdef Table* t = &self.table
        cdef double now = now_of(self), start = monotonic_precise(), next_due
        cdef uint32_t scheduled
        cdef int64_t operations
        cdef Victims victims
        cdef unsigned int i
        enter(self)
        operations = self.sets
        for i in range(STRIPES):
            operations += self.stripes[i].hits + self.stripes[i].misses
        next_due = t.next_due
        scheduled = t.scheduled
        leave(self)
        if now >= next_due and self.swept > 0:
            # If the operations alone will free the backlog within half a second at their present rate, stay out of
            # their way.
            if (operations - self.operations_then) * EXPIRE_STEPS * 0.5 > scheduled * (start - self.swept):
                self.swept = start
                self.operations_then = operations
                store_double(&self.sweep_at, now + 0.05)
                return now + 0.05
        self.operations_then = operations
        self.swept = start
        while now >= load_double(&t.next_due):
            victims.count = 0
            victims.queued = 0
            enter(self)
            remove_some_due(self, now, VICTIMS, &victims)
            leave(self)
            release_refs(self, &victims)
            if monotonic_precise() - start >= budget:
                break
        shrink_if_empty(self)
        enter(self)
        next_due = t.next_due
        store_double(&self.sweep_at, next_due)
        leave(self)
        return next_due

    # ---- bytes ----

    @property
    def nbytes(self):
        """Bytes of keys, values and the table's cost per entry; 0 for an empty dict. O(1), O(due) if any are due."""
        cdef uint64_t size
        expire_all_due(self)
        # Locked: another thread may have inserted an entry and not yet evicted for it.
        enter(self)
        size = self.table.nbytes
        leave(self)
        return size

    @property
    def max_size(self):
        """The limit in entries, or None."""
        return load_ssize(&self.most_entries) or None

    @property
    def memory_limit(self):
        """The dict's own limit in bytes, or None. A `memory_cap` below it holds instead."""
        return limit_or_none(load_u64(&self.own_bytes))

    @property
    def memory_cap(self):
        """The limit in bytes that `cap` has set, or None."""
        return limit_or_none(load_u64(&self.cap_bytes))

    @property
    def ttl(self):
        """Seconds that an entry lives by default, or the function that says so, or None."""
        if self.life_of is not None:
            return self.life_of
        return None if self.ttl_seconds == INFINITY else self.ttl_seconds

    @property
    def idle(self):
        """Seconds that an entry lives without being used, or None."""
        return None if self.table.idle == INFINITY else self.table.idle

    @property
    def policy(self):
        """The eviction policy's name."""
        return self.policy_name

    def recount(self, key):
        """Measure an entry again after its value changed in place, and return its bytes. O(size of the value).

        Over the memory limit, other entries are evicted. Raises KeyError if the key is missing, and ValueTooLargeError,
        with the account unchanged, if this entry alone exceeds `memory_limit`. If it exceeds only the `cap`, it is
        evicted.

        >>> d = TTLDict()
        >>> d["a"] = []
        >>> before = d.nbytes
        >>> d["a"].extend(range(1000))
        >>> d.recount("a") > before
        True
        """
        cdef Table* t = &self.table
        cdef uint32_t hash = mix_hash(hash_of(<PyObject*>key), SEED), slot
        cdef double now = now_if_needed(self)
        cdef PyObject* value = lookup_at(self, <PyObject*>key, hash, now)
        cdef uint64_t size
        cdef Victims victims
        cdef bint failed = False
        if value == NULL:
            raise KeyError(key)
        # Keeps the value alive, and so its address unique, to the end of the call.
        _held = owned(value)
        size = <uint64_t>entry_size(self, <PyObject*>key, value)
        # The int is made before anything changes, since allocating it may fail.
        result = size
        victims.count = 0
        victims.queued = 0
        enter(self)
        slot = find(self, <PyObject*>key, hash, NULL)
        if slot == FAILED:
            leave(self)
            raise_pending()
        # If the value was replaced while it was measured, the new value's size is already right.
        if slot != MISSING and t.slots[slot].value == value and slot_due(t, slot) > now:
            if size > self.own_bytes:
                leave(self)
                raise too_large(self, size)
            if size > self.most_bytes:
                remove_entry(self, slot, MEMORY, &victims)
                self.over_cap += 1
            elif size > INLINE_SIZE_MAX and not reserve_wide(t):
                failed = True
            else:
                t.nbytes = t.nbytes - slot_size(t, slot) + size
                slot_set_size(t, slot, size)
                if t.nbytes > self.most_bytes:
                    make_room_beside(self, slot, now, &victims)
        leave(self)
        release_refs(self, &victims)
        if failed:
            raise MemoryError()
        return result

    def trim(self, nbytes):
        """Evict entries, due ones first, until about `nbytes` bytes are freed. Returns the bytes freed.

        O(entries freed).

        >>> d = TTLDict()
        >>> d["a"] = bytes(1000)
        >>> d.trim(1) >= 1000
        True
        """
        cdef uint64_t before, after, wanted = byte_count("nbytes", nbytes, 0, "bytes")
        cdef double now = now_if_needed(self)
        cdef Victims victims
        victims.count = 0
        victims.queued = 0
        enter(self)
        before = self.table.nbytes
        after = before - min(wanted, before)
        make_room(self, NONE, after, after, now, &victims)
        after = self.table.nbytes
        leave(self)
        release_refs(self, &victims)
        if load_u32(&self.table.live) == 0:
            shrink_if_empty(self)
        return before - after

    def resize(self, max_size=UNCHANGED, memory_limit=UNCHANGED):
        """Change one limit or both (None: no limit) and evict what exceeds it at once. O(entries evicted).

        A `memory_cap` stays as it is, and holds if it is lower than `memory_limit`.

        >>> d = TTLDict(max_size=10)
        >>> d.resize(max_size=None, memory_limit=1_000_000)
        >>> d.max_size, d.memory_limit
        (None, 1000000)
        """
        cdef double now = now_if_needed(self)
        cdef Victims victims
        cdef Py_ssize_t entries = 0 if max_size is UNCHANGED else entries_from(max_size)
        cdef uint64_t own = NO_LIMIT if memory_limit is UNCHANGED else bytes_from(memory_limit)
        victims.count = 0
        victims.queued = 0
        enter(self)
        # Read only here: the code of an argument, or another thread, may have changed the limit that is to stay.
        set_limits(
            self, self.most_entries if max_size is UNCHANGED else entries,
            self.own_bytes if memory_limit is UNCHANGED else own, self.cap_bytes,
        )
        make_room_within_limits(self, now, &victims)
        leave(self)
        release_refs(self, &victims)

    def cap(self, nbytes):
        """Limit the bytes from outside, for the time being, and evict what exceeds that at once. O(entries evicted).

        For a `MemoryGovernor`, or whatever else knows how much memory there is. The lower of `nbytes` and
        `memory_limit` holds; 0 keeps nothing, None lifts the cap. The dict's own settings stay as they are, and so
        copies and pickles have no cap. There is one cap at a time: the last call sets it.

        A cap causes no error. A value that alone exceeds it, but not `memory_limit`, is handled as if it had been
        stored and evicted at once: an older value under its key is gone, ``on_evict(key, value, "memory")`` is called,
        and ``stats["over_cap"]`` counts it.

        >>> d = TTLDict(memory_limit=1_000_000)
        >>> d.cap(1000)
        >>> d["big"] = bytes(5000)
        >>> "big" in d, d.stats["over_cap"], d.memory_cap, d.memory_limit
        (False, 1, 1000, 1000000)
        >>> d.cap(None)
        >>> d["big"] = bytes(5000)
        >>> "big" in d
        True
        """
        cdef double now = now_if_needed(self)
        cdef Victims victims
        cdef uint64_t cap = cap_from(nbytes)
        victims.count = 0
        victims.queued = 0
        enter(self)
        set_limits(self, self.most_entries, self.own_bytes, cap)
        make_room_within_limits(self, now, &victims)
        leave(self)
        release_refs(self, &victims)

    @property
    def stats(self):
        """Counts since construction, as a dict: hits, misses, sets, and evictions by reason.

        ``sizeof_exhausted`` counts values so large that part of their size was estimated, ``uncacheable`` those that
        `get_or_set` returned without storing them because they alone exceed the memory limit, and ``over_cap`` those
        evicted at once because they alone exceed the `cap` (they count as ``memory`` too). ``ghost_hits`` counts
        insertions of keys that the policy ``"s3fifo"`` evicted young and not long ago: lookups that a dict half as
        large again would have answered. With other policies it is 0.

        ``loads`` counts the calls of factories by `get_or_set` and `aget_or_set` that have ended, ``load_failures``
        those that raised, ``load_seconds`` the time that all took, and ``load_waits`` calls that waited for another's.

        >>> TTLDict().stats["hits"]
        0
        """
        cdef int64_t hits = 0, misses = 0, sets, exhausted, uncacheable, over_cap, loads, failures, waits
        cdef double load_seconds
        cdef int64_t evicted[4]
        cdef uint64_t nbytes, own, cap, ghost_hits
        cdef uint32_t live
        cdef unsigned int i
        expire_all_due(self)
        enter(self)
        for i in range(STRIPES):
            hits += self.stripes[i].hits
            misses += self.stripes[i].misses
        memcpy(evicted, self.evicted, sizeof(evicted))
        sets = self.sets
        live = self.table.live
        nbytes = self.table.nbytes
        exhausted = self.exhausted
        uncacheable = self.uncacheable
        over_cap = self.over_cap
        loads = self.loads
        failures = self.load_failures
        waits = self.load_waits
        load_seconds = self.load_seconds
        ghost_hits = self.table.ghost_hits
        own = self.own_bytes
        cap = self.cap_bytes
        leave(self)
        return {
            "hits": hits,
            "misses": misses,
            "hit_rate": <double>hits / (hits + misses) if hits + misses else 0.0,
            "sets": sets,
            "expired": evicted[<int>EXPIRED],
            "idle": evicted[<int>IDLE],
            "full": evicted[<int>FULL],
            "memory": evicted[<int>MEMORY],
            "entries": live,
            "nbytes": nbytes,
            "sizeof_exhausted": exhausted,
            "uncacheable": uncacheable,
            "over_cap": over_cap,
            "ghost_hits": ghost_hits,
            "loads": loads,
            "load_failures": failures,
            "load_seconds": load_seconds,
            "load_waits": waits,
            "memory_limit": limit_or_none(own),
            "memory_cap": limit_or_none(cap),
        }

    def __sizeof__(self):
        """Bytes of the dict's own memory: the object and its arrays, without keys and values. O(1)."""
        cdef size_t own
        enter(self)
        own = table_bytes(&self.table)
        leave(self)
        return object.__sizeof__(self) + (STRIPES + 1) * sizeof(Stripe) + own

    # ---- copies ----

    def copy(self):
        """A shallow copy with the same limits, deadlines and sizes, but no `cap`. Idle times start over. O(n)."""
        cdef TTLDict other = type(self).__new__(type(self))
        cdef double now = now_if_needed(self)
        TTLDict.__init__(other, **settings(self))
        for key, value, due, size in snapshot(self, now):
            restore(other, key, value, due, size, now)
        set_attributes(other, object.__getstate__(self))
        return other

    __copy__ = copy

    def __reduce_ex__(self, protocol):
        """Pickles the seconds that each entry has left, since the clocks of two processes can't be compared."""
        cdef double now = now_of(self)
        # Not a comprehension: Cython's drops an item twice if the append can't allocate.
        entries = []
        for key, value, due, _ in snapshot(self, now):
            entry = (key, value, due - now)
            entries.append(entry)
        return _blank, (type(self),), (settings(self), entries, object.__getstate__(self))

    def __setstate__(self, state):
        cdef double now
        limits, entries, attributes = state
        TTLDict.__init__(self, **limits)
        set_attributes(self, attributes)
        now = now_of(self)
        for key, value, left in entries:
            restore(self, key, value, now + <double>left, entry_size(self, <PyObject*>key, <PyObject*>value), now)

    @classmethod
    def __class_getitem__(cls, item):
        return GenericAlias(cls, item)


# ---- get ----

# A method that takes a keyword costs more if Cython unpacks its arguments, which matters for this one only.

cdef extern from *:
    """
    PyDoc_STRVAR(synthex_get_doc,
        "get($self, key, /, default=None)\\n--\\n\\n"
        "The value stored under the key, or `default`. O(1).\\n\\n"
        "        >>> TTLDict().get(\\"nobody\\", default=0)\\n"
        "        0\\n"
        "        ");
    static PyMethodDef synthex_get = {"get", NULL, METH_FASTCALL | METH_KEYWORDS, synthex_get_doc};
    #define synthex_new_get(type, function) \\
        (synthex_get.ml_meth = (PyCFunction)(void (*)(void))(function), PyDescr_NewMethod((type), &synthex_get))
    """
    ctypedef PyObject* (*keyword_function)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*) except NULL
    object new_get "synthex_new_get"(PyTypeObject*, keyword_function)


cdef PyObject* get(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) except NULL:
    cdef PyObject* value
    cdef PyObject* default = Py_None
    if count == 2:
        default = args[1]
    if unlikely(names != NULL or count < 1 or count > 2):
        if names == NULL or count != 1 or PyTuple_GET_SIZE(names) != 1 or <str>PyTuple_GET_ITEM(names, 0) != "default":
            raise TypeError("get() takes a key and a default, the latter also as a keyword")
        default = args[1]
    value = lookup_now(<TTLDict>self, args[0])
    if value == NULL:
        Py_INCREF(default)
        return default
    return value


PyDict_SetItemString((<PyTypeObject*>TTLDict).tp_dict, "get", new_get(<PyTypeObject*>TTLDict, get))
PyType_Modified(<PyTypeObject*>TTLDict)
MutableMapping.register(TTLDict)


# ---- construction ----

def create_memory_aware_ttl_dict(max_size, ttl, memory_limit_mb):
    """A TTLDict with its memory limit in mebibytes.

    The name and the arguments are those of the memory-management report that this package answers (see the README).

    >>> create_memory_aware_ttl_dict(500, 14_400.0, 5.5).memory_limit
    5767168
    """
    cdef str allowed = "a positive number of mebibytes"
    cdef double limit = real("memory_limit_mb", memory_limit_mb, allowed) * 1024 * 1024
    if not 0 < limit < PY_SSIZE_T_MAX:
        raise value_error("memory_limit_mb", memory_limit_mb, allowed)
    return TTLDict(max_size, ttl, memory_limit=max(1, int(limit)))


cdef object missing(TTLDict self, object key):
    """What ``d[key]`` gives for a missing key: that of a subclass's `__missing__`, or KeyError."""
    method = None if type(self) is TTLDict else getattr(type(self), "__missing__", None)
    if method is None:
        raise KeyError(key)
    return method(self, key)


cdef TTLDict joined(TTLDict self, object other):
    """``other | self``, as a dict like `self`, whose entries keep their deadlines."""
    cdef TTLDict found = type(self).__new__(type(self))
    cdef double now = now_if_needed(self)
    TTLDict.__init__(found, **settings(self))
    set_attributes(found, object.__getstate__(self))
    found.update(other)
    for key, value, due, size in snapshot(self, now):
        restore(found, key, value, due, size, now)
    return found


# The function behind `aget_or_set`, imported when it is first called.
cdef object load_async = None
cdef object flights_in = None


cdef int import_async_loads() except -1:
    global load_async, flights_in
    if load_async is None:
        from synthex_fast import _async_loads
        flights_in = _async_loads.flights_in
        load_async = _async_loads.load
    return 0


def _blank(cls):
    return cls.__new__(cls)


cdef int configure(
    TTLDict self, object max_size, object ttl, object memory_limit, object size_of, object policy, object idle,
    object timer, object on_evict, object on_remove, object sweep,
) except -1:
    cdef double ttl_seconds, idle_seconds, start
    require_unused(self)
    cdef Py_ssize_t entries = entries_from(max_size)
    cdef uint64_t most = bytes_from(memory_limit)
    cdef bint ttl_of_entry = callable(ttl)
    if ttl_of_entry:
        check_callable("ttl", ttl)
        ttl_seconds = NAN
    else:
        ttl_seconds = lifetime("ttl", ttl, True)
    idle_seconds = lifetime("idle", idle, True)
    if isinstance(policy, str):
        # A subclass may define __str__, __hash__ and __eq__; an exact str of the same text does not.
        policy = str.__str__(policy)
    check_choice("policy", policy, POLICIES)
    check_sizeof(size_of)
    check_callable("timer", timer, True)
    check_callable("on_evict", on_evict, True)
    check_callable("on_remove", on_remove, True)
    want_bool("sweep", sweep)
    if timer is None and sweep and (ttl_seconds != INFINITY or idle_seconds != INFINITY):
        # Here rather than in the first store, which may be part of a request: the modules it loads take milliseconds.
        try:
            import_sweeper()
        except Exception:
            # Probably out of memory. The first store tries again.
            pass
    start = monotonic_coarse() if timer is None else read_timer(timer)
    # The code of an argument may have initialised this dict, or used it.
    require_unused(self)
    self.ready = True
    self.ttl_seconds = ttl_seconds
    self.policy_name = policy
    self.size_of = size_of
    self.clock = timer
    self.on_evict = on_evict
    self.on_remove = on_remove
    self.life_of = ttl if ttl_of_entry else None
    self.sweepable = timer is None and sweep
    table_init(&self.table, POLICIES[policy], NONE, idle_seconds, start)
    set_limits(self, entries, most, self.cap_bytes)
    return 0


cdef int check_sizeof(object size_of) except -1:
    check_callable("sizeof", size_of, True)
    cdef object function = unwrapped(size_of)
    if function is getsizeof or function is length_hint or function is next:
        # They would take the value for the default: sys.getsizeof would measure the key alone, without an error.
        raise value_error("sizeof", size_of, "a function of (key, value) rather than (object, default)")
    return 0


cdef int require_unused(TTLDict self) except -1:
    # Once used, the table holds arrays and counts that table_init would overwrite.
    if self.ready or self.table.layout:
        raise ArgumentValueError("a TTLDict is initialised once, before its first use; use resize() to change limits")
    return 0


cdef inline object limit_or_none(uint64_t nbytes):
    return None if nbytes == NO_LIMIT else nbytes


cdef void set_limits(TTLDict self, Py_ssize_t entries, uint64_t own, uint64_t cap) noexcept:
    store_ssize(&self.most_entries, entries)
    # A limit beyond what a table can hold is the same as none.
    self.table.limit = NONE if entries == 0 or <uint64_t>entries >= NONE else <uint32_t>entries
    store_u64(&self.own_bytes, own)
    store_u64(&self.cap_bytes, cap)
    self.most_bytes = min(own, cap)


cdef void make_room_within_limits(TTLDict self, double now, Victims* victims) noexcept:
    cdef uint64_t most = self.most_bytes
    make_room(self, self.table.limit, most, most - most // 5, now, victims)


# ---- garbage collection ----

# Cython's own functions visit the fields that are objects. The references in the table are added here.
cdef traverseproc traverse_fields = (<PyTypeObject*>TTLDict).tp_traverse
cdef inquiry clear_fields = (<PyTypeObject*>TTLDict).tp_clear


cdef int traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef Table* t = &(<TTLDict>self).table
    cdef uint32_t slot
    cdef Copying* copy = (<TTLDict>self).copies
    cdef int stop = traverse_fields(self, visit, arg)
    while copy != NULL and not stop:
        stop = visit(copy.frame, arg)
        if not stop:
            stop = visit(copy.pairs, arg)
        copy = copy.following
    for slot in range(t.used):
        if stop:
            return stop
        if t.slots[slot].key != NULL:
            stop = visit(t.slots[slot].key, arg)
            if not stop:
                stop = visit(t.slots[slot].value, arg)
    return stop


cdef int clear_references(PyObject* self) noexcept:
    release_entries(<TTLDict>self)
    release_copies(detach_copies(<TTLDict>self))
    return clear_fields(self)


(<PyTypeObject*>TTLDict).tp_traverse = traverse
(<PyTypeObject*>TTLDict).tp_clear = clear_references
