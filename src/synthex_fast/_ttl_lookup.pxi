# Finding and reading entries, included by _ttl.pyx.
#
# Most lookups compare identical objects, plain strings or plain ints and run no Python code. Where a comparison must
# ask Python, the lock is released for that time; if the index has changed by then (`Table.layout`), the search starts
# again.


cdef inline double now_of(TTLDict self) except? -1.0:
    return monotonic_coarse() if self.clock is None else read_timer(self.clock)


cdef inline double now_if_needed(TTLDict self) except? -1.0:
    """The time, or minus infinity if no entry is timed: nothing can be due then, so the clock is not read."""
    return now_of(self) if load_u32(&self.table.scheduled) or self.table.idle != INFINITY else -INFINITY


cdef double read_timer(object timer) except? -1.0:
    value = timer()
    refuse_awaitable("timer", value)
    cdef double now = real("timer()", value, "a finite number of seconds")
    if not -INFINITY < now < INFINITY:
        raise value_error("timer()", value, "a finite number of seconds")
    return now


cdef int compare(TTLDict self, uint32_t slot, PyObject* key, Stripe* shared) noexcept:
    """Ask Python whether the slot's key equals `key`: 1 yes, 0 no, 2 the index has changed, -1 an error.

    The lock is held before and after, and released in between. `shared` is the stripe that a reader holds; NULL means
    that the caller holds the lock for writing.
    """
    cdef PyObject* candidate = self.table.slots[slot].key
    cdef uint32_t layout = self.table.layout
    cdef int verdict
    Py_INCREF(candidate)
    if shared == NULL:
        leave(self)
    else:
        leave_shared(shared)
    verdict = PyObject_RichCompareBool(candidate, key, Py_EQ)
    Py_DECREF(candidate)
    if shared == NULL:
        enter(self)
    else:
        enter_shared(self)
    return 2 if self.table.layout != layout and verdict >= 0 else verdict


cdef inline uint32_t find(TTLDict self, PyObject* key, uint32_t hash, Stripe* shared) noexcept:
    """The slot that holds the key, due or not; MISSING; or FAILED with the error set. Locked before and after."""
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
            if PyUnicode_CheckExact(candidate) and PyUnicode_CheckExact(key):
                if same_text(candidate, key):
                    return slot
                continue
            if is_plain_int(candidate) and is_plain_int(key):
                if same_int(candidate, key):
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


cdef inline int raise_pending() except -1:
    """Pass on the error that made `find` return FAILED, once the caller has unlocked."""
    return -1


cdef inline void mark_used(Table* t, uint32_t slot, double now) noexcept:
    """Record that an entry was read."""
    # `now` may be earlier than the last use (another thread's, or a custom timer's). Moving it back would make the
    # entry due earlier than the heap expects.
    if t.touched != NULL and now > load_double(&t.touched[slot]):
        store_double(&t.touched[slot], now)
    slot_accessed(t, slot)


cdef PyObject* lookup_at(TTLDict self, PyObject* key, uint32_t hash, double now) except? NULL:
    """The value as a new reference, or NULL. Every kind of read goes through here."""
    cdef Table* t = &self.table
    cdef uint32_t slot
    cdef Stripe* stripe
    cdef PyObject* value = NULL
    # LRU relinks on a hit, so a reader needs the table to itself.
    cdef bint exclusive = FREE_THREADED and t.policy == LRU
    if exclusive:
        enter(self)
        stripe = self.stripes
    else:
        stripe = enter_shared(self)
    slot = find(self, key, hash, NULL if exclusive else stripe)
    if likely(slot < FAILED) and likely(slot_due(t, slot) > now):
        value = t.slots[slot].value
        Py_INCREF(value)
        mark_used(t, slot, now)
        stripe.hits += 1
        if FREE_THREADED and stripe.hits % SHARED_HITS == 0 and not owned_by_this_thread(<PyObject*>self):
            # Threads that count references to one object contend for its cache line. With deferred counting none of
            # them counts any more, and the garbage collector frees the dict.
            defer_refcount(<PyObject*>self)
    elif slot != FAILED:
        stripe.misses += 1
    if exclusive:
        leave(self)
    else:
        leave_shared(stripe)
    if slot != FAILED and any_due(self, now):
        expire_some(self, now)
    return value


cdef inline PyObject* lookup_now(TTLDict self, PyObject* key) except? NULL:
    return lookup_at(self, key, mix_hash(hash_of(key), SEED), now_if_needed(self))
