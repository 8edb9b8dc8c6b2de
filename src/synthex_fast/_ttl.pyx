"""TTLDict: a mapping whose entries expire, with a limit in entries and in bytes.

The table itself (hash index, expiry heap, eviction order, byte account) is in ``_table.pxd``; here are the references,
the locks of the free-threaded build and everything that may run Python code. The rule throughout: ask for all that may
run Python code or fail first (hash, size, time, memory), then change the table in one go, then, unlocked, let go of
what came out of it.
"""

cimport cython
from libc.math cimport INFINITY, isnan
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport Py_EQ, PyObject, visitproc

from synthex_fast._clock cimport monotonic_coarse, monotonic_precise
from synthex_fast._sizeof cimport pair_sizeof
from synthex_fast._sync cimport (
    FREE_THREADED, Mutex, forks_seen, likely, mutex_lock, mutex_unlock, owned_by_this_thread, this_thread_number,
    unlikely, watch_forks,
)
from synthex_fast._table cimport (
    DEAD, FIFO, IN_MAIN, INLINE_SIZE_MAX, LRU, NONE, S3FIFO, SIEVE, TICKS_PER_SECOND, Node, Table, ghost_remember,
    heap_find_due, heap_next_due, heap_rebuild, index_home, mix_hash, queue_push, queue_unlink,
    reserve_node, reserve_slot, reserve_wide, slot_accessed, slot_bury, slot_due, slot_exhume, slot_free,
    slot_schedule, slot_set_size, slot_size, table_free, table_init, table_insert, table_probe, table_remove,
    table_victim, tick_at_or_after, tick_at_or_before,
)

import math
import os
from _collections_abc import ItemsView, KeysView, MutableMapping, ValuesView
from types import GenericAlias

from synthex_fast.errors import ArgumentValueError, ValueTooLargeError, type_error, value_error


__all__ = ["Items", "TTLDict", "Values", "create_memory_aware_ttl_dict"]


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
      #define SYNTHEX_STRIPES 8
      #define synthex_cached_hash(o) _Py_atomic_load_ssize_relaxed(&((PyASCIIObject *)(o))->hash)
      #if PY_VERSION_HEX >= 0x030E0000
        #define synthex_defer(o) ((void)PyUnstable_Object_EnableDeferredRefcount(o))
      #else
        #define synthex_defer(o) ((void)(o))
      #endif
    #else
      #define SYNTHEX_STRIPES 1
      #define synthex_cached_hash(o) (((PyASCIIObject *)(o))->hash)
      #define synthex_defer(o) ((void)(o))
    #endif
    #define SYNTHEX_FAILED 0xFFFFFFFEu
    /* How deep this thread is in letting entries go. */
    static SYNTHEX_THREAD_LOCAL int synthex_letting_go;
    #define synthex_own(o) (o)
    static inline Py_hash_t synthex_hash(PyObject *key) {
        if (PyUnicode_CheckExact(key)) {
            Py_hash_t hash = synthex_cached_hash(key);
            if (hash != -1)
                return hash;
        }
        return PyObject_Hash(key);
    }
    static inline int synthex_same_text(PyObject *a, PyObject *b) {
        Py_ssize_t length = PyUnicode_GET_LENGTH(a);
        return length == PyUnicode_GET_LENGTH(b) && PyUnicode_KIND(a) == PyUnicode_KIND(b)
            && memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b), (size_t)length * PyUnicode_KIND(a)) == 0;
    }
    """
    const unsigned int STRIPES "SYNTHEX_STRIPES"
    # What `find` returns instead of a slot; both are greater than any slot.
    const uint32_t MISSING "SYNTHEX_NONE"
    const uint32_t FAILED "SYNTHEX_FAILED"
    Py_hash_t hash_of "synthex_hash"(PyObject*) except -1
    bint same_text "synthex_same_text"(PyObject*, PyObject*) noexcept
    void defer_refcount "synthex_defer"(PyObject*) noexcept
    int letting_go "synthex_letting_go"
    # Turn a reference that we own into an object: no count changes.
    object owned "synthex_own"(PyObject*)

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
    bint is_text "PyUnicode_CheckExact"(PyObject*) noexcept
    # -1 with the error set: declared without `except`, because the caller has locks to take first.
    int rich_compare "PyObject_RichCompareBool"(PyObject*, PyObject*, int) noexcept
    void incref "Py_INCREF"(PyObject*) noexcept
    void decref "Py_DECREF"(PyObject*) noexcept
    void xdecref "Py_XDECREF"(PyObject*) noexcept
    void PyErr_WriteUnraisable(PyObject*) noexcept
    # NULL with the error set: declared without `except`, because here the error does not pass.
    PyObject* PyObject_CallFunctionObjArgs(PyObject*, ...) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct FullType "PyTypeObject":
        traverseproc tp_traverse
        inquiry tp_clear
    int Py_ReprEnter(object) except -1
    void Py_ReprLeave(object)


cdef enum:
    VICTIMS = 8
    # Due entries that one lookup, insertion or deletion looks at: more than one can add, so that a backlog shrinks.
    STEPS = 4
    # Due entries that `len` and its like take off the heap one by one before they pass over the whole heap instead.
    SETTLE_STEPS = 64
    # What a key and value cost beyond themselves: 32 bytes of slot, 12 of links, 8 of heap, 6.4 of index, spare room.
    ENTRY_COST = 64
    # A reason beside those of Reason: on_evict is not told.
    SILENT = 4
    # On a free-threaded build: lookups by one of the threads that did not make the dict, before it is found shared.
    SHARED_HITS = 1024

cdef int64_t ALL = 0x7FFFFFFFFFFFFFFF
cdef uint64_t NO_LIMIT = <uint64_t>0xFFFFFFFFFFFFFFFF
cdef uint64_t SEED = int.from_bytes(os.urandom(8), "little")
# A node may stand a tick behind its entry's deadline, and arithmetic rounds.
cdef double TICK = 1.5 / TICKS_PER_SECOND
# The sweeper waits this long to gather entries, and promises to come within a second.
cdef double SWEEP_SLACK = 0.5
# So late, and the sweeper has lost the dict: its thread could not start, or an error ended it.
cdef double SWEEP_LOST = 2.0
cdef tuple REASONS = ("expired", "idle", "full", "memory")
cdef dict POLICIES = {"fifo": FIFO, "lru": LRU, "sieve": SIEVE, "s3fifo": S3FIFO}
cdef object UNCHANGED = object()
cdef object schedule = None
# Keeps a thread that waits for this lock out of `repair_after_fork` until the other has repaired.
cdef Mutex repair


cdef struct Victims:
    # Entries taken out of the table, to be let go once it is consistent and unlocked.
    int count
    int64_t buried            # more of them, in the table's queue of dead slots
    PyObject* keys[VICTIMS]
    PyObject* values[VICTIMS]
    int reasons[VICTIMS]


# ---- locks of the free-threaded build (nothing at all on the standard one) ----

cdef void repair_after_fork(TTLDict self) noexcept:
    # A thread that only exists in the parent may have held stripes while it waited for others; it had changed nothing.
    cdef unsigned int i
    mutex_lock(&repair)
    if self.generation != forks_seen:
        for i in range(STRIPES):
            memset(&self.stripes[i].lock, 0, sizeof(Mutex))
        self.generation = forks_seen
    mutex_unlock(&repair)


cdef inline Stripe* enter_shared(TTLDict self) noexcept:
    """Lock for reading. Nobody changes the table meanwhile."""
    cdef Stripe* stripe = self.stripes
    if FREE_THREADED:
        if self.generation != forks_seen:
            repair_after_fork(self)
        stripe += this_thread_number() % STRIPES
        mutex_lock(&stripe.lock)
    return stripe


cdef inline void leave_shared(Stripe* stripe) noexcept:
    if FREE_THREADED:
        mutex_unlock(&stripe.lock)


cdef inline void enter(TTLDict self) noexcept:
    """Lock for writing."""
    cdef unsigned int i
    if FREE_THREADED:
        if self.generation != forks_seen:
            repair_after_fork(self)
        for i in range(STRIPES):
            mutex_lock(&self.stripes[i].lock)


cdef inline void leave(TTLDict self) noexcept:
    cdef unsigned int i
    if FREE_THREADED:
        for i in range(STRIPES):
            mutex_unlock(&self.stripes[i].lock)


# ---- lookup ----

cdef int compare(TTLDict self, uint32_t slot, PyObject* key, Stripe* shared) noexcept:
    """Ask Python whether the slot's key equals `key`: 1, 0, 2 when the table changed meanwhile, -1 on an error.

    Called locked (`shared`: the stripe held for reading, NULL: held for writing), unlocks meanwhile, returns locked.
    """
    cdef PyObject* candidate = self.table.slots[slot].key
    cdef uint32_t layout = self.table.layout
    cdef int verdict
    incref(candidate)
    if shared == NULL:
        leave(self)
    else:
        leave_shared(shared)
    verdict = rich_compare(candidate, key, Py_EQ)
    decref(candidate)
    if shared == NULL:
        enter(self)
    else:
        enter_shared(self)
    return 2 if self.table.layout != layout and verdict >= 0 else verdict


cdef inline uint32_t find(TTLDict self, PyObject* key, uint32_t hash, Stripe* shared) noexcept:
    """The slot that holds the key, due or not, MISSING, or FAILED with the error set. Locked before and after."""
    cdef Table* t = &self.table
    cdef uint32_t at, slot
    cdef PyObject* candidate
    cdef int verdict
    while t.live:
        at = index_home(t, hash)
        while True:
            slot = table_probe(t, hash, &at)
            if slot == MISSING:
                return MISSING
            candidate = t.slots[slot].key
            if candidate == key:
                return slot
            if is_text(candidate) and is_text(key):
                if same_text(candidate, key):
                    return slot
                continue
            verdict = compare(self, slot, key, shared)
            if verdict == 1:
                return slot
            if verdict == 2:
                break
            if verdict < 0:
                return FAILED
    return MISSING


cdef inline int raise_current() except -1:
    """For a caller that `find` told of an error, and that has unlocked."""
    return -1


cdef inline double now_of(TTLDict self) except? -1.0:
    return monotonic_coarse() if self.clock is None else read_timer(self.clock)


cdef inline double now_if_needed(TTLDict self) except? -1.0:
    """The time, or minus infinity where no entry is timed: nothing is due by then, and the clock is left alone."""
    return now_of(self) if self.table.scheduled or self.table.idle != INFINITY else -INFINITY


cdef inline void used(Table* t, uint32_t slot, double now) noexcept:
    """An entry was read."""
    # Threads and timers may step back a little; the entry would then fall due earlier than the heap knows.
    if t.touched != NULL and now > t.touched[slot]:
        t.touched[slot] = now
    slot_accessed(t, slot)


# ---- letting entries go ----

cdef inline void kill(TTLDict self, uint32_t slot, int reason, Victims* victims) noexcept:
    """Take an entry out of the table; its references move to `victims` (locked for writing)."""
    cdef Table* t = &self.table
    table_remove(t, slot)
    self.gone[reason] += 1
    if reason == FULL or reason == MEMORY:
        # Ends an iteration; freeing what has expired does not.
        self.changes += 1
    if victims.count < VICTIMS:
        victims.keys[victims.count] = t.slots[slot].key
        victims.values[victims.count] = t.slots[slot].value
        victims.reasons[victims.count] = reason
        victims.count += 1
        slot_free(t, slot)
    else:
        slot_bury(t, slot, reason)
        victims.buried += 1


cdef inline int due_reason(TTLDict self, uint32_t slot, double now) noexcept:
    return EXPIRED if self.table.slots[slot].deadline <= now else IDLE


cdef inline bint any_due(TTLDict self, double now) noexcept:
    """Whether an operation has due entries to free. One that runs in a callback or finaliser leaves them to the
    operation that called it: otherwise each would be told of within the telling of the one before."""
    return unlikely(now >= self.table.next_due) and letting_go == 0


cdef inline void step(TTLDict self, double now, int steps, Victims* victims) noexcept:
    """Take out due entries, looking at no more than `steps` (locked for writing)."""
    cdef uint32_t slot
    while steps > 0:
        slot = heap_next_due(&self.table, now, &steps)
        if slot == NONE:
            break
        kill(self, slot, due_reason(self, slot, now), victims)


cdef void tell(TTLDict self, PyObject* key, PyObject* value, int reason) noexcept:
    """Call the eviction callback and drop both references."""
    cdef PyObject* result
    if self.on_gone is not None and reason != SILENT:
        result = PyObject_CallFunctionObjArgs(
            <PyObject*>self.on_gone, key, value, <PyObject*>REASONS[reason], <PyObject*>NULL
        )
        if result == NULL:
            PyErr_WriteUnraisable(<PyObject*>self.on_gone)
        else:
            decref(result)
    decref(key)
    decref(value)


cdef void let_go_of_all(TTLDict self, Victims* victims) noexcept:
    global letting_go
    cdef int i
    cdef uint32_t slot
    cdef PyObject* key
    cdef PyObject* value
    cdef int reason
    letting_go += 1
    for i in range(victims.count):
        tell(self, victims.keys[i], victims.values[i], victims.reasons[i])
    while victims.buried > 0:
        victims.buried -= 1
        enter(self)
        slot = slot_exhume(&self.table)
        if slot == NONE:
            leave(self)
            break
        key = self.table.slots[slot].key
        value = self.table.slots[slot].value
        reason = self.table.links[slot].prev
        slot_free(&self.table, slot)
        leave(self)
        tell(self, key, value, reason)
    letting_go -= 1


cdef inline void let_go(TTLDict self, Victims* victims) noexcept:
    """Let go of what was taken out. Any Python code may run in here; nothing is locked."""
    if unlikely(victims.count):
        let_go_of_all(self, victims)


cdef void reap(TTLDict self, double now) noexcept:
    """What a lookup does for expiry: a few steps, and no more."""
    cdef Victims victims
    victims.count = 0
    victims.buried = 0
    enter(self)
    step(self, now, STEPS, &victims)
    leave(self)
    let_go(self, &victims)


cdef void shed_arrays(TTLDict self) noexcept:
    """A large table that has become empty gives its memory back."""
    cdef Table* t = &self.table
    cdef Table old
    enter(self)
    if t.live == 0 and t.dead_first == NONE and t.room > 64:
        detach(t, &old)
        leave(self)
        table_free(&old)
    else:
        leave(self)


cdef int64_t bury_all(TTLDict self) noexcept:
    """Queue all entries to be let go without a word (locked for writing). Returns how many they were."""
    cdef Table* t = &self.table
    cdef uint32_t slot
    cdef int64_t count = 0
    for slot in range(t.used):
        if t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD:
            table_remove(t, slot)
            slot_bury(t, slot, SILENT)
            count += 1
    return count


cdef int64_t settle(TTLDict self, double now, int64_t most) noexcept:
    """Let go of the entries that are due, all or at most so many. Returns how many they were."""
    cdef Table* t = &self.table
    cdef Victims victims
    cdef int steps = SETTLE_STEPS, looks = SETTLE_STEPS
    cdef uint32_t slot, tick
    cdef int64_t count = 0
    victims.count = 0
    victims.buried = 0
    enter(self)
    while count < most and steps > 0:
        slot = heap_next_due(t, now, &steps)
        if slot == NONE:
            break
        kill(self, slot, due_reason(self, slot, now), &victims)
        count += 1
    if count < most and t.scheduled and now + TICK >= t.next_due:
        # What remains is a long backlog, or entries whose tick is not quite over.
        tick = tick_at_or_before(t, now) + 1
        while steps > 0 and count < most:
            slot = heap_find_due(t, now, tick, 0, &looks)
            if slot == NONE:
                break
            kill(self, slot, due_reason(self, slot, now), &victims)
            count += 1
        if steps <= 0 or looks <= 0:
            count += pass_over(self, now, most - count, &victims)
    leave(self)
    let_go(self, &victims)
    if count and t.live == 0:
        shed_arrays(self)
    return count


cdef int64_t pass_over(TTLDict self, double now, int64_t most, Victims* victims) noexcept:
    """Take out due entries, at most so many, in one pass over the whole heap (locked for writing)."""
    cdef Table* t = &self.table
    cdef uint32_t over = tick_at_or_before(t, now), at, slot, kept = 0
    cdef int64_t count = 0
    cdef bint moved = False
    cdef double due
    cdef Node node
    for at in range(t.scheduled):
        node = t.heap[at]
        slot = node.slot
        if node.tick <= over + 1 and count < most:
            due = slot_due(t, slot)
            if due <= now or due == INFINITY:
                t.links[slot].node = NONE
                if due <= now:
                    kill(self, slot, due_reason(self, slot, now), victims)
                    count += 1
                moved = True
                continue
            if node.tick <= over:
                node.tick = max(tick_at_or_after(t, due), over + 1)
                moved = True
        t.heap[kept] = node
        kept += 1
    t.scheduled = kept
    if moved:
        heap_rebuild(t)
    return count


cdef inline int settle_now(TTLDict self) except -1:
    cdef double now
    if self.table.scheduled:
        now = now_of(self)
        if now + TICK >= self.table.next_due:
            settle(self, now, ALL)
    return 0


cdef inline uint32_t due_first(TTLDict self, double now) noexcept:
    """A due entry to be evicted before any other, or NONE where a bounded search finds none."""
    cdef Table* t = &self.table
    cdef int steps = SETTLE_STEPS
    cdef uint32_t slot = NONE
    if now + TICK >= t.next_due:
        slot = heap_next_due(t, now, &steps)
        if slot == NONE:
            slot = heap_find_due(t, now, tick_at_or_before(t, now) + 1, 0, &steps)
    return slot


cdef void make_room(TTLDict self, uint32_t entries, uint64_t most, uint64_t low, double now, Victims* victims) noexcept:
    """Evict, due entries first, until so many entries are left and no more than `most` bytes (locked for writing).

    Where it takes entries that are not due to get there, it goes on to `low` bytes.
    """
    cdef Table* t = &self.table
    cdef uint32_t slot
    cdef int reason
    while t.live and (t.live > entries or t.nbytes > most):
        slot = due_first(self, now)
        if slot != NONE:
            reason = due_reason(self, slot, now)
        else:
            reason = FULL
            if t.live <= entries:
                reason = MEMORY
                most = low
            slot = table_victim(t)
            if slot == NONE:
                break
            if t.policy == S3FIFO and t.count[0] and t.tail[0] == slot:
                ghost_remember(t, t.slots[slot].hash)
        kill(self, slot, reason, victims)


# ---- the sweeper ----

cdef int wake_sweeper(TTLDict self, double now) except -1:
    """Have the package's sweeper come when the first entry is due."""
    global schedule
    cdef double due = self.table.next_due
    self.sweep_at = max(due, now)
    try:
        if schedule is None:
            from synthex_fast._sweeper import schedule as found
            schedule = found
        schedule(self, due)
    except Exception:
        # No memory or no thread to be had: another store tries again, in half a second.
        self.sweep_at = now + 0.5 - SWEEP_LOST
    return 0


cdef inline bint sweeper_late(TTLDict self, double now) noexcept:
    return self.sweepable and (
        self.table.next_due + SWEEP_SLACK < self.sweep_at or now > self.sweep_at + SWEEP_LOST
    )


# ---- arguments ----

cdef object whole_number(str name, object value, str unit):
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise type_error(name, value, f"a positive integer ({unit}) or None")
    number = value.__index__()
    if number < 1:
        raise value_error(name, value, f"a positive integer ({unit}) or None")
    return number


cdef double seconds_from(str name, object value) except? -1.0:
    cdef double seconds
    if isinstance(value, bool) or not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        raise type_error(name, value, "a positive number of seconds or None")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = INFINITY if value > 0 else -INFINITY
    if isnan(seconds) or seconds <= 0:
        raise value_error(name, value, "a positive number of seconds or None")
    return seconds


@cython.trashcan(True)
cdef class TTLDict:
    """A mapping whose entries expire, and which can't outgrow its limits.

    ``max_size`` limits the entries, ``memory_limit`` the bytes that keys, values and the dict's own cost per entry
    take together (``nbytes``); ``ttl`` is how long an entry lives and ``idle`` how long without being read or
    replaced, in seconds. ``None`` means no limit. An expired value is never returned, counted or shown; it is freed
    by the operations that follow, a few entries each, and within a second or so by the package's sweeper if nobody
    touches the dict (``sweep=False`` does without).

    ``policy`` says which entry makes room in a full dict: ``"s3fifo"`` (Yang et al., SOSP 2023; the default, best on
    the traces in the benchmarks), ``"sieve"`` (Zhang et al., NSDI 2024), ``"lru"`` or ``"fifo"``. Entries that are due
    go first. Over ``memory_limit`` it evicts down to 80 % of it.

    ``sizeof(key, value)`` replaces the built-in account of a pair and returns bytes. ``timer()`` returns seconds as a
    float and replaces the coarse monotonic clock; such a dict isn't swept. ``on_evict(key, value, reason)`` is told of
    entries that the dict lets go (reason: ``"expired"``, ``"idle"``, ``"full"`` or ``"memory"``), not of deletions
    and replacements; what it raises goes to ``sys.unraisablehook``.

    Lookup, insertion and deletion take O(1) time on average (O(log n) where an entry's deadline comes nearer), and
    look at no more than a fixed number of due entries. ``len``, iteration and ``expire`` free all that are due. The
    order of iteration is unspecified.

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
        # Stripes start on a cache line of their own.
        self.stripes = <Stripe*>((<size_t>self.stripes_block + 127) & ~<size_t>127)
        self.generation = forks_seen
        self.most_bytes = NO_LIMIT
        self.ttl_seconds = INFINITY
        self.sweep_at = INFINITY
        self.policy_name = "s3fifo"
        self.sweepable = True
        table_init(&self.table, S3FIFO, NONE, INFINITY, monotonic_coarse())

    def __init__(
        self, max_size=None, ttl=None, *, memory_limit=None, sizeof=None, policy="s3fifo", idle=None, timer=None,
        on_evict=None, sweep=True,
    ):
        # To Cython `sizeof` is an operator, so the argument can't be named.
        configure(
            self, max_size, ttl, memory_limit, locals()["sizeof"], policy, idle, timer, on_evict, bool(sweep)
        )

    def __dealloc__(self):
        # tp_clear has let the entries go, or will never be called for want of any: then there is nothing to let go.
        if self.stripes_block != NULL:
            clear_entries(self)
            PyMem_RawFree(self.stripes_block)

    # ---- the C face ----

    cdef PyObject* lookup(self, PyObject* key) except? NULL:
        return read(self, key)

    cdef int store(self, PyObject* key, PyObject* value, double seconds, Presence mode, PyObject** present) except -1:
        cdef uint32_t hash = mix_hash(hash_of(key), SEED)
        cdef uint64_t size = <uint64_t>weigh(self, key, value)
        cdef double now, deadline = INFINITY
        if seconds != INFINITY:
            now = now_of(self)
            deadline = now + seconds
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
        victims.buried = 0
        enter(self)
        slot = find(self, key, hash, NULL)
        if unlikely(slot == FAILED):
            leave(self)
            return NULL
        if slot != MISSING:
            if unlikely(slot_due(t, slot) <= now):
                kill(self, slot, due_reason(self, slot, now), &victims)
            else:
                table_remove(t, slot)
                old_key = t.slots[slot].key
                value = t.slots[slot].value
                slot_free(t, slot)
                self.changes += 1
        if any_due(self, now):
            step(self, now, STEPS, &victims)
        leave(self)
        let_go(self, &victims)
        xdecref(old_key)
        return value

    # ---- mapping ----

    def __getitem__(self, key):
        """The value stored under the key; KeyError where there is none or it has expired."""
        cdef PyObject* value = read(self, <PyObject*>key)
        if value == NULL:
            raise KeyError(key)
        return owned(value)

    def get(self, key, default=None, /):
        """The value stored under the key, or `default`. O(1).

        >>> TTLDict().get("nobody", 0)
        0
        """
        cdef PyObject* value = read(self, <PyObject*>key)
        if value == NULL:
            return default
        return owned(value)

    def __contains__(self, key):
        """Whether the key has a value that has not expired. It counts neither as a use nor as a hit or miss."""
        cdef uint32_t hash = mix_hash(hash_of(<PyObject*>key), SEED), slot
        cdef double now = now_if_needed(self)
        cdef Stripe* stripe = enter_shared(self)
        cdef bint found
        slot = find(self, <PyObject*>key, hash, stripe)
        found = slot < FAILED and slot_due(&self.table, slot) > now
        leave_shared(stripe)
        if unlikely(slot == FAILED):
            raise_current()
        if any_due(self, now):
            reap(self, now)
        return found

    def __setitem__(self, key, value):
        self.store(<PyObject*>key, <PyObject*>value, self.ttl_seconds, REPLACE, NULL)

    def set(self, key, value, ttl=None):
        """Store the value for `ttl` seconds: None is the dict's own ttl, ``math.inf`` never expires. O(1).

        Raises ValueTooLargeError, and changes nothing, where key and value exceed the memory limit.

        >>> d = TTLDict(ttl=60)
        >>> d.set("short", 1, ttl=0.5)
        >>> d.expires_at("short") < d.expires_at("short") + 60
        True
        """
        self.store(
            <PyObject*>key, <PyObject*>value, self.ttl_seconds if ttl is None else seconds_from("ttl", ttl), REPLACE,
            NULL,
        )

    def __delitem__(self, key):
        cdef PyObject* value = self.take(<PyObject*>key)
        if value == NULL:
            raise KeyError(key)
        decref(value)

    def pop(self, key, default=UNCHANGED, /):
        """Remove the key and return its value, or `default`; KeyError where neither is there. O(1).

        >>> TTLDict().pop("nobody", None)
        """
        cdef PyObject* value = self.take(<PyObject*>key)
        if value != NULL:
            return owned(value)
        if default is UNCHANGED:
            raise KeyError(key)
        return default

    def popitem(self):
        """Remove and return a (key, value) pair, the oldest of its queue; KeyError where the dict is empty. O(1).

        >>> d = TTLDict()
        >>> d["a"] = 1
        >>> d.popitem()
        ('a', 1)
        """
        cdef Table* t = &self.table
        cdef uint32_t slot
        cdef PyObject* key
        cdef PyObject* value
        settle_now(self)
        enter(self)
        slot = t.tail[0] if t.tail[0] != NONE else t.tail[1]
        if slot == NONE:
            leave(self)
            raise KeyError("popitem(): the TTLDict is empty")
        table_remove(t, slot)
        key = t.slots[slot].key
        value = t.slots[slot].value
        slot_free(t, slot)
        self.changes += 1
        leave(self)
        return owned(key), owned(value)

    def setdefault(self, key, default=None, /):
        """The key's value, after storing `default` where there was none. O(1).

        >>> TTLDict().setdefault("a", 1)
        1
        """
        cdef uint32_t hash = mix_hash(hash_of(<PyObject*>key), SEED)
        cdef double now = now_of(self) if self.ttl_seconds != INFINITY else now_if_needed(self)
        cdef PyObject* present = look(self, <PyObject*>key, hash, now)
        cdef uint64_t size
        if present == NULL:
            size = <uint64_t>weigh(self, <PyObject*>key, <PyObject*>default)
            put(
                self, <PyObject*>key, <PyObject*>default, hash, size, now,
                now + self.ttl_seconds if self.ttl_seconds != INFINITY else INFINITY, KEEP, &present,
            )
        return owned(present)

    def get_or_set(self, key, factory, ttl=None):
        """The key's value; where there is none, ``factory()`` is called and its result stored for `ttl` seconds.

        The factory runs unlocked: two threads may both run it, and both return the value that was stored first. What
        it raises passes to the caller, and nothing is stored.

        >>> TTLDict().get_or_set("a", lambda: 2)
        2
        """
        cdef double seconds = self.ttl_seconds if ttl is None else seconds_from("ttl", ttl)
        cdef PyObject* present
        if not callable(factory):
            raise type_error("factory", factory, "callable")
        present = self.lookup(<PyObject*>key)
        if present == NULL:
            made = factory()
            self.store(<PyObject*>key, <PyObject*>made, seconds, KEEP, &present)
        return owned(present)

    update = MutableMapping.update

    def clear(self):
        """Remove every entry, without telling `on_evict`. O(n)."""
        cdef Table* t = &self.table
        cdef Table old
        cdef Victims victims
        enter(self)
        self.changes += 1
        if t.dead_first == NONE:
            detach(t, &old)
            leave(self)
            drop(&old)
            return
        # Entries that on_evict is yet to be told of must not get lost with the arrays.
        victims.count = 0
        victims.buried = bury_all(self)
        leave(self)
        let_go_of_all(self, &victims)

    def __len__(self):
        settle_now(self)
        return self.table.live

    def __bool__(self):
        settle_now(self)
        return self.table.live != 0

    def __iter__(self):
        return entries_of(self, KEYS)

    def keys(self):
        """A view of the keys."""
        return KeysView(self)

    def values(self):
        """A view of the values."""
        return Values(self)

    def items(self):
        """A view of the (key, value) pairs."""
        return Items(self)

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

        With an idle limit this is the earlier of the two times. KeyError where the key is not there.

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
            raise_current()
        if due <= now:
            raise KeyError(key)
        return due

    def touch(self, key, ttl=None):
        """Have the entry live `ttl` seconds from now (None: the dict's own ttl); whether the key was there. O(log n).

        >>> TTLDict().touch("nobody")
        False
        """
        cdef Table* t = &self.table
        cdef double seconds = self.ttl_seconds if ttl is None else seconds_from("ttl", ttl)
        cdef uint32_t hash = mix_hash(hash_of(<PyObject*>key), SEED), slot
        cdef double now = now_of(self) if seconds != INFINITY else now_if_needed(self), before
        cdef bint found, failed = False, late
        enter(self)
        slot = find(self, <PyObject*>key, hash, NULL)
        if slot == FAILED:
            leave(self)
            raise_current()
        found = slot != MISSING and slot_due(t, slot) > now
        if found:
            if t.links[slot].node == NONE and seconds != INFINITY and not reserve_node(t):
                failed = True
            else:
                before = slot_due(t, slot)
                t.slots[slot].deadline = now + seconds if seconds != INFINITY else INFINITY
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
            reap(self, now)
        return found

    def expire(self, limit=None):
        """Free the entries that are due, at most `limit` of them; returns how many. O(due), at most O(n).

        >>> TTLDict(ttl=60).expire()
        0
        """
        cdef int64_t most = ALL
        cdef double now
        if limit is not None:
            most = <int64_t>min(whole_number("limit", limit, "entries"), ALL)
        if self.table.scheduled == 0:
            return 0
        now = now_of(self)
        return settle(self, now, most) if now + TICK >= self.table.next_due else 0

    def _sweep(self, double budget):
        """What the package's sweeper calls: free due entries for `budget` seconds; when to come again
        (``time.monotonic()``), infinity for not before it is told."""
        cdef Table* t = &self.table
        cdef double now = now_of(self), start = monotonic_precise(), next_due
        cdef int64_t operations = self.sets
        cdef Victims victims
        cdef unsigned int i
        for i in range(STRIPES):
            operations += self.stripes[i].hits + self.stripes[i].misses
        if now >= t.next_due and self.swept > 0:
            # In a dict in use the operations free what is due, at this rate within half a second: keep out of the way.
            if (operations - self.operations_then) * STEPS * 0.5 > t.scheduled * (start - self.swept):
                self.swept = start
                self.operations_then = operations
                self.sweep_at = now + 0.05
                return now + 0.05
        self.operations_then = operations
        self.swept = start
        while now >= t.next_due:
            victims.count = 0
            victims.buried = 0
            enter(self)
            step(self, now, VICTIMS, &victims)
            leave(self)
            let_go(self, &victims)
            if monotonic_precise() - start >= budget:
                break
        shed_arrays(self)
        enter(self)
        next_due = t.next_due
        self.sweep_at = next_due
        leave(self)
        return next_due

    # ---- bytes ----

    @property
    def nbytes(self):
        """Bytes that keys, values and the table's cost per entry take; 0 for an empty dict. O(1), O(due) if any are."""
        cdef uint64_t size
        settle_now(self)
        # Another thread may be between taking something in and evicting for it.
        enter(self)
        size = self.table.nbytes
        leave(self)
        return size

    @property
    def max_size(self):
        """Most entries that the dict holds, or None."""
        return self.most_entries or None

    @property
    def memory_limit(self):
        """Most bytes that the dict holds, or None."""
        return None if self.most_bytes == NO_LIMIT else self.most_bytes

    @property
    def ttl(self):
        """Seconds that an entry lives unless told otherwise, or None."""
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
        """Account anew for an entry whose value has changed in place; returns its bytes. KeyError if not there.

        Over the memory limit it evicts others; ValueTooLargeError, and the account as it was, where this entry alone
        exceeds it.

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
        cdef PyObject* value = look(self, <PyObject*>key, hash, now)
        cdef uint64_t size
        cdef Victims victims
        cdef bint failed = False
        if value == NULL:
            raise KeyError(key)
        # Keeps the value, and with it its address, to the end of the call.
        _held = owned(value)
        size = <uint64_t>weigh(self, <PyObject*>key, value)
        # Made while nothing has changed yet: there may be no memory for it.
        result = size
        victims.count = 0
        victims.buried = 0
        enter(self)
        slot = find(self, <PyObject*>key, hash, NULL)
        if slot == FAILED:
            leave(self)
            raise_current()
        # Replaced while it was weighed: then the account of the new value stands.
        if slot != MISSING and t.slots[slot].value == value and slot_due(t, slot) > now:
            if size > self.most_bytes:
                leave(self)
                raise too_large(self, size)
            if size > INLINE_SIZE_MAX and not reserve_wide(t):
                failed = True
            else:
                t.nbytes = t.nbytes - slot_size(t, slot) + size
                slot_set_size(t, slot, size)
                if t.nbytes > self.most_bytes:
                    make_room_beside(self, slot, now, &victims)
        leave(self)
        let_go(self, &victims)
        if failed:
            raise MemoryError()
        return result

    def trim(self, nbytes):
        """Evict until about `nbytes` bytes are free (due entries first); returns the bytes freed. O(entries freed).

        >>> d = TTLDict()
        >>> d["a"] = bytes(1000)
        >>> d.trim(1) >= 1000
        True
        """
        cdef uint64_t before, after, wanted
        cdef double now
        cdef Victims victims
        if isinstance(nbytes, bool) or not hasattr(type(nbytes), "__index__"):
            raise type_error("nbytes", nbytes, "a non-negative integer")
        number = nbytes.__index__()
        if number < 0:
            raise value_error("nbytes", nbytes, "a non-negative integer")
        wanted = min(number, NO_LIMIT)
        now = now_if_needed(self)
        victims.count = 0
        victims.buried = 0
        enter(self)
        before = self.table.nbytes
        after = before - min(wanted, before)
        make_room(self, NONE, after, after, now, &victims)
        after = self.table.nbytes
        leave(self)
        let_go(self, &victims)
        if self.table.live == 0:
            shed_arrays(self)
        return before - after

    def resize(self, max_size=UNCHANGED, memory_limit=UNCHANGED):
        """Change one limit or both (None: no limit) and evict what is over at once. O(entries evicted).

        >>> d = TTLDict(max_size=10)
        >>> d.resize(max_size=None, memory_limit=1_000_000)
        >>> d.max_size, d.memory_limit
        (None, 1000000)
        """
        cdef double now = now_if_needed(self)
        cdef Victims victims
        cdef Py_ssize_t entries = self.most_entries if max_size is UNCHANGED else entries_from(max_size)
        cdef uint64_t most = self.most_bytes if memory_limit is UNCHANGED else bytes_from(memory_limit)
        victims.count = 0
        victims.buried = 0
        enter(self)
        set_limits(self, entries, most)
        make_room(self, self.table.limit, most, most - most // 5, now, &victims)
        leave(self)
        let_go(self, &victims)

    @property
    def stats(self):
        """Counts since construction, as a dict: hits, misses, sets, entries let go by reason, and sizes cut short.

        ``sizeof_exhausted`` counts values so large that the account's budget ran out and the rest was estimated.

        >>> TTLDict().stats["hits"]
        0
        """
        cdef int64_t hits = 0, misses = 0
        cdef unsigned int i
        settle_now(self)
        for i in range(STRIPES):
            hits += self.stripes[i].hits
            misses += self.stripes[i].misses
        return {
            "hits": hits,
            "misses": misses,
            "hit_rate": <double>hits / (hits + misses) if hits + misses else 0.0,
            "sets": self.sets,
            "expired": self.gone[<int>EXPIRED],
            "idle": self.gone[<int>IDLE],
            "full": self.gone[<int>FULL],
            "memory": self.gone[<int>MEMORY],
            "entries": self.table.live,
            "nbytes": self.table.nbytes,
            "sizeof_exhausted": self.exhausted,
        }

    # ---- copies ----

    def copy(self):
        """A shallow copy with the same limits, deadlines and account; idle times start anew. O(n)."""
        cdef TTLDict other = type(self).__new__(type(self))
        cdef double now = now_if_needed(self)
        TTLDict.__init__(other, **settings(self))
        for key, value, due, size in snapshot(self, now):
            restore(other, key, value, due, size, now)
        set_attributes(other, object.__getstate__(self))
        return other

    __copy__ = copy

    def __reduce_ex__(self, protocol):
        """Pickled with the seconds that each entry has left: clocks of two processes don't compare."""
        cdef double now = now_of(self)
        # No comprehension: Cython's drops an item twice where the append finds no memory.
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
            restore(self, key, value, now + <double>left, weigh(self, <PyObject*>key, <PyObject*>value), now)

    @classmethod
    def __class_getitem__(cls, item):
        return GenericAlias(cls, item)


MutableMapping.register(TTLDict)


def create_memory_aware_ttl_dict(max_size, ttl, memory_limit_mb):
    """The report's spelling of a TTLDict with a limit in mebibytes.

    >>> create_memory_aware_ttl_dict(500, 14_400.0, 5.5).memory_limit
    5767168
    """
    if isinstance(memory_limit_mb, bool) or not isinstance(memory_limit_mb, (int, float)):
        raise type_error("memory_limit_mb", memory_limit_mb, "a positive number of mebibytes")
    if not 0 < memory_limit_mb < math.inf:
        raise value_error("memory_limit_mb", memory_limit_mb, "a positive number of mebibytes")
    return TTLDict(max_size, ttl, memory_limit=max(1, int(memory_limit_mb * 1024 * 1024)))


def _blank(cls):
    return cls.__new__(cls)


cdef int configure(
    TTLDict self, object max_size, object ttl, object memory_limit, object account, object policy, object idle,
    object timer, object on_evict, bint sweep,
) except -1:
    cdef double ttl_seconds = INFINITY, idle_seconds = INFINITY, start
    require_unused(self)
    cdef Py_ssize_t entries = entries_from(max_size)
    cdef uint64_t most = bytes_from(memory_limit)
    if ttl is not None:
        ttl_seconds = seconds_from("ttl", ttl)
    if idle is not None:
        idle_seconds = seconds_from("idle", idle)
    if not isinstance(policy, str):
        raise type_error("policy", policy, f"one of {', '.join(map(repr, POLICIES))}")
    if policy not in POLICIES:
        raise value_error("policy", policy, f"one of {', '.join(map(repr, POLICIES))}")
    for name, call in (("sizeof", account), ("timer", timer), ("on_evict", on_evict)):
        if call is not None and not callable(call):
            raise type_error(name, call, "callable or None")
    start = monotonic_coarse() if timer is None else read_timer(timer)
    # The arguments' own code may have called this, or used the dict.
    require_unused(self)
    self.ready = True
    self.ttl_seconds = ttl_seconds
    self.policy_name = str(policy)
    self.size_of = account
    self.clock = timer
    self.on_gone = on_evict
    self.sweepable = timer is None and sweep
    table_init(&self.table, POLICIES[policy], NONE, idle_seconds, start)
    set_limits(self, entries, most)
    return 0


cdef int require_unused(TTLDict self) except -1:
    # A table that was ever used is another one than table_init makes.
    if self.ready or self.table.layout:
        raise ArgumentValueError("a TTLDict is initialised once, before its first use; use resize() to change limits")
    return 0


cdef double read_timer(object timer) except? -1.0:
    cdef double now
    value = timer()
    if isinstance(value, bool) or not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        raise type_error("timer()", value, "a number of seconds")
    try:
        now = float(value)
    except OverflowError:
        now = INFINITY
    if isnan(now) or now == INFINITY or now == -INFINITY:
        raise value_error("timer()", value, "a finite number of seconds")
    return now


cdef void set_limits(TTLDict self, Py_ssize_t entries, uint64_t most) noexcept:
    self.most_entries = entries
    # A limit that no table can reach is none, and costs nothing.
    self.table.limit = NONE if entries == 0 or <uint64_t>entries >= NONE else <uint32_t>entries
    self.most_bytes = most


cdef Py_ssize_t entries_from(object max_size) except -1:
    """The limit in entries, 0 for none."""
    if max_size is None:
        return 0
    return min(whole_number("max_size", max_size, "entries"), PY_SSIZE_T_MAX)


cdef uint64_t bytes_from(object memory_limit) except? 0:
    """The limit in bytes, all bits set for none."""
    if memory_limit is None:
        return NO_LIMIT
    return min(whole_number("memory_limit", memory_limit, "bytes"), NO_LIMIT)


cdef inline int64_t weigh(TTLDict self, PyObject* key, PyObject* value) except -1:
    cdef bint exhausted = False
    cdef int64_t size
    if self.size_of is not None:
        return weigh_by_caller(self, key, value)
    size = pair_sizeof(<object>key, <object>value, &exhausted)
    if unlikely(exhausted):
        enter(self)
        self.exhausted += 1
        leave(self)
    return size + ENTRY_COST


cdef int64_t weigh_by_caller(TTLDict self, PyObject* key, PyObject* value) except -1:
    size = self.size_of(<object>key, <object>value)
    if isinstance(size, bool) or not hasattr(type(size), "__index__"):
        raise type_error("sizeof(key, value)", size, "a non-negative integer (bytes)")
    number = size.__index__()
    if not 0 <= number < 0x3FFFFFFFFFFFFFFF:
        raise value_error("sizeof(key, value)", size, "a non-negative integer (bytes) below 2**62")
    return <int64_t>number + ENTRY_COST


cdef object too_large(TTLDict self, uint64_t size):
    return ValueTooLargeError(f"key and value must be at most {self.most_bytes} bytes (memory_limit), not {size}")


cdef PyObject* look(TTLDict self, PyObject* key, uint32_t hash, double now) except? NULL:
    """The value as a new reference, or NULL. What every way of reading does."""
    cdef Table* t = &self.table
    cdef uint32_t slot
    cdef Stripe* stripe
    cdef PyObject* value = NULL
    cdef bint alone = FREE_THREADED and t.policy == LRU
    if alone:
        # LRU relinks on a hit, so there is no reading beside other readers.
        enter(self)
        stripe = self.stripes
    else:
        stripe = enter_shared(self)
    slot = find(self, key, hash, NULL if alone else stripe)
    if likely(slot < FAILED) and likely(slot_due(t, slot) > now):
        value = t.slots[slot].value
        incref(value)
        used(t, slot, now)
        stripe.hits += 1
        if FREE_THREADED and stripe.hits % SHARED_HITS == 0 and not owned_by_this_thread(<PyObject*>self):
            # Two threads that count one object's references pass its cache line to and fro. From now on none of them
            # counts, and the garbage collector frees the dict.
            defer_refcount(<PyObject*>self)
    elif slot != FAILED:
        stripe.misses += 1
    if alone:
        leave(self)
    else:
        leave_shared(stripe)
    if slot != FAILED and any_due(self, now):
        reap(self, now)
    return value


cdef inline PyObject* read(TTLDict self, PyObject* key) except? NULL:
    return look(self, key, mix_hash(hash_of(key), SEED), now_if_needed(self))


cdef int put(
    TTLDict self, PyObject* key, PyObject* value, uint32_t hash, uint64_t size, double now, double deadline,
    Presence mode, PyObject** present,
) except -1:
    """TTLDict.store with all known that may fail or run Python code."""
    cdef Table* t = &self.table
    cdef uint32_t slot
    cdef uint64_t low
    cdef double before
    cdef PyObject* replaced = NULL
    cdef Victims victims
    cdef bint failed = False, late
    cdef bint timed = deadline != INFINITY or t.idle != INFINITY
    cdef int fresh = 0
    victims.count = 0
    victims.buried = 0
    enter(self)
    if unlikely(size > self.most_bytes):
        leave(self)
        raise too_large(self, size)
    slot = find(self, key, hash, NULL)
    if unlikely(slot == FAILED):
        leave(self)
        return -1
    if slot != MISSING and unlikely(slot_due(t, slot) <= now):
        kill(self, slot, due_reason(self, slot, now), &victims)
        slot = MISSING
    if slot != MISSING and mode == KEEP:
        used(t, slot, now)
    elif (
        (unlikely(size > INLINE_SIZE_MAX) and not reserve_wide(t))
        or (timed and not reserve_node(t))
        or (slot == MISSING and t.live < t.limit and not reserve_slot(t))
    ):
        failed = True
    elif slot != MISSING:
        before = slot_due(t, slot)
        replaced = t.slots[slot].value
        incref(value)
        t.slots[slot].value = value
        t.slots[slot].deadline = deadline
        t.nbytes = t.nbytes - slot_size(t, slot) + size
        slot_set_size(t, slot, size)
        if t.touched != NULL:
            t.touched[slot] = now
        if timed or t.links[slot].node != NONE:
            slot_schedule(t, slot, before)
        slot_accessed(t, slot)
        self.sets += 1
        if unlikely(t.nbytes > self.most_bytes):
            make_room_beside(self, slot, now, &victims)
    else:
        if unlikely(t.live >= t.limit or size > self.most_bytes - t.nbytes):
            low = self.most_bytes - self.most_bytes // 5
            make_room(
                self, t.limit - 1 if t.limit != NONE else NONE, self.most_bytes - size,
                low - size if low > size else 0, now, &victims,
            )
        incref(key)
        incref(value)
        slot = table_insert(t, key, value, hash, size, deadline, now)
        self.sets += 1
        self.changes += 1
        fresh = 1
    if present != NULL and not failed:
        present[0] = t.slots[slot].value
        incref(present[0])
    if any_due(self, now):
        step(self, now, STEPS, &victims)
    late = sweeper_late(self, now)
    leave(self)
    let_go(self, &victims)
    xdecref(replaced)
    if unlikely(failed):
        raise MemoryError()
    if unlikely(late):
        try:
            wake_sweeper(self, now)
        except BaseException:
            # A signal's: the value is stored, but the caller will not see what is present.
            if present != NULL:
                decref(present[0])
            raise
    return fresh


cdef void make_room_beside(TTLDict self, uint32_t slot, double now, Victims* victims) noexcept:
    """Evict down to 80 % of the memory limit, but not this entry (locked for writing)."""
    cdef Table* t = &self.table
    cdef int queue = 1 if t.slots[slot].meta & IN_MAIN else 0
    cdef uint64_t low = self.most_bytes - self.most_bytes // 5
    if slot_due(t, slot) <= now:
        # Its new deadline is no later than now.
        make_room(self, NONE, self.most_bytes, low, now, victims)
        return
    # Out of its queue it can't be chosen.
    queue_unlink(t, slot)
    make_room(self, NONE, self.most_bytes, low, now, victims)
    queue_push(t, queue, slot)


cdef inline void detach(Table* t, Table* old) noexcept:
    """Move all arrays and their references from `t` to `old` (locked for writing).

    What dropping the references runs then finds an empty, working dict.
    """
    old[0] = t[0]
    t.slots = NULL
    t.links = NULL
    t.index = NULL
    t.heap = NULL
    t.touched = NULL
    t.wide = NULL
    t.ghosts = NULL
    t.live = t.scheduled = t.count[0] = t.count[1] = 0
    t.head[0] = t.head[1] = t.tail[0] = t.tail[1] = t.hand = t.dead_first = t.dead_last = NONE
    t.nbytes = 0
    t.next_due = INFINITY
    table_free(t)


cdef void drop(Table* old) noexcept:
    cdef uint32_t slot
    for slot in range(old.used):
        if old.slots[slot].key != NULL:
            decref(old.slots[slot].key)
            decref(old.slots[slot].value)
    table_free(old)


cdef void clear_entries(TTLDict self) noexcept:
    cdef Table old
    enter(self)
    detach(&self.table, &old)
    leave(self)
    drop(&old)


cdef dict settings(TTLDict self):
    """The arguments that make another dict like this one."""
    found = {}
    if self.most_entries:
        found["max_size"] = self.most_entries
    if self.ttl_seconds != INFINITY:
        found["ttl"] = self.ttl_seconds
    if self.most_bytes != NO_LIMIT:
        found["memory_limit"] = self.most_bytes
    if self.size_of is not None:
        found["sizeof"] = self.size_of
    if self.table.idle != INFINITY:
        found["idle"] = self.table.idle
    if self.clock is not None:
        found["timer"] = self.clock
    if self.on_gone is not None:
        found["on_evict"] = self.on_gone
    if self.policy_name != "s3fifo":
        found["policy"] = self.policy_name
    if not self.sweepable and self.clock is None:
        found["sweep"] = False
    return found


cdef int set_attributes(TTLDict self, object state) except -1:
    """Give an instance of a subclass what `object.__getstate__` took from another."""
    attributes, slots = state if type(state) is tuple else (state, None)
    if attributes:
        self.__dict__.update(attributes)
    if slots:
        for name, value in slots.items():
            setattr(self, name, value)
    return 0


cdef struct Copied:
    PyObject* key
    PyObject* value
    double deadline
    uint64_t size


cdef list snapshot(TTLDict self, double now):
    """(key, value, deadline without the idle limit, size) of all entries that are not due, all at one time.

    The oldest come first, those in the main queue before the others.
    """
    cdef Table* t = &self.table
    cdef Copied* copies = NULL
    cdef uint32_t slot, room, count = 0, at
    cdef int queue
    cdef list found = []
    try:
        while True:
            room = t.live
            PyMem_RawFree(copies)
            copies = <Copied*>PyMem_RawMalloc((<size_t>room + 1) * sizeof(Copied))
            if copies == NULL:
                raise MemoryError()
            enter(self)
            if t.live <= room:
                break
            leave(self)
        for queue in (1, 0):
            slot = t.tail[queue]
            while slot != NONE:
                if slot_due(t, slot) > now:
                    copies[count].key = t.slots[slot].key
                    copies[count].value = t.slots[slot].value
                    copies[count].deadline = t.slots[slot].deadline
                    copies[count].size = slot_size(t, slot)
                    incref(copies[count].key)
                    incref(copies[count].value)
                    count += 1
                slot = t.links[slot].prev
        leave(self)
        for at in range(count):
            found.append(
                (<object>copies[at].key, <object>copies[at].value, copies[at].deadline, copies[at].size)
            )
    finally:
        for at in range(count):
            decref(copies[at].key)
            decref(copies[at].value)
        PyMem_RawFree(copies)
    return found


cdef dict contents(TTLDict self):
    """As a plain dict, all at one time."""
    return {key: value for key, value, _, _ in snapshot(self, now_if_needed(self))}


cdef int restore(TTLDict self, object key, object value, double deadline, uint64_t size, double now) except -1:
    """Store an entry that falls due at `deadline`, if that is still to come."""
    if deadline > now:
        put(
            self, <PyObject*>key, <PyObject*>value, mix_hash(hash_of(<PyObject*>key), SEED), size, now, deadline,
            REPLACE, NULL,
        )
    return 0


# ---- iteration ----

cdef enum Kind:
    KEYS = 0
    VALUES = 1
    ITEMS = 2


cdef class _Iterator:
    cdef TTLDict owner
    cdef uint32_t position    # the slot to look at next; NONE: at the end
    cdef uint32_t changes
    cdef Kind kind

    def __cinit__(self):
        self.position = NONE

    def __iter__(self):
        return self

    def __next__(self):
        cdef TTLDict owner = self.owner
        cdef Table* t = &owner.table
        cdef PyObject* key = NULL
        cdef PyObject* value = NULL
        cdef double now
        # One load: another thread may have the same iterator, and a position past the end is never looked at.
        cdef uint32_t slot = self.position
        cdef Stripe* stripe
        if slot == NONE:
            raise StopIteration
        now = now_if_needed(owner)
        stripe = enter_shared(owner)
        if self.changes != owner.changes:
            leave_shared(stripe)
            raise RuntimeError("dictionary changed size during iteration")
        while slot < t.used:
            if t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD and slot_due(t, slot) > now:
                key = t.slots[slot].key
                value = t.slots[slot].value
                incref(key)
                incref(value)
                break
            slot += 1
        self.position = NONE if key == NULL else slot + 1
        leave_shared(stripe)
        if key == NULL:
            raise StopIteration
        if self.kind == KEYS:
            decref(value)
            return owned(key)
        if self.kind == VALUES:
            decref(key)
            return owned(value)
        return owned(key), owned(value)


cdef _Iterator entries_of(TTLDict self, Kind kind):
    cdef _Iterator iterator = _Iterator.__new__(_Iterator)
    settle_now(self)
    iterator.owner = self
    iterator.position = 0
    iterator.changes = self.changes
    iterator.kind = kind
    return iterator


class Items(ItemsView):
    """The (key, value) pairs of a TTLDict, expired ones left out."""

    __slots__ = ()

    def __iter__(self):
        return entries_of(self._mapping, ITEMS)

    def __contains__(self, item):
        try:
            key, value = item
        except (TypeError, ValueError):
            return False
        found = self._mapping.get(key, UNCHANGED)
        return found is value or found == value


class Values(ValuesView):
    """The values of a TTLDict, expired ones left out."""

    __slots__ = ()

    def __iter__(self):
        return entries_of(self._mapping, VALUES)

    def __contains__(self, value):
        return any(found is value or found == value for found in self)


# ---- garbage collection ----

# Cython sees the fields that are objects; the table's references it can't see.
cdef traverseproc traverse_fields = (<FullType*>TTLDict).tp_traverse
cdef inquiry clear_fields = (<FullType*>TTLDict).tp_clear


cdef int traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef Table* t = &(<TTLDict>self).table
    cdef uint32_t slot
    cdef int stop = traverse_fields(self, visit, arg)
    for slot in range(t.used):
        if stop:
            return stop
        if t.slots[slot].key != NULL:
            stop = visit(t.slots[slot].key, arg)
            if not stop:
                stop = visit(t.slots[slot].value, arg)
    return stop


cdef int clear_references(PyObject* self) noexcept:
    clear_entries(<TTLDict>self)
    return clear_fields(self)


(<FullType*>TTLDict).tp_traverse = traverse
(<FullType*>TTLDict).tp_clear = clear_references
watch_forks()
