# Storing entries and accounting for their size, included by _ttl.pyx.


cdef inline int64_t entry_size(TTLDict self, PyObject* key, PyObject* value) except -1:
    cdef bint exhausted = False
    cdef int64_t size
    if self.size_of is not None:
        return entry_size_by_caller(self, key, value)
    size = pair_sizeof(<object>key, <object>value, &exhausted)
    if unlikely(exhausted):
        enter(self)
        self.exhausted += 1
        leave(self)
    return size + ENTRY_COST


cdef int64_t entry_size_by_caller(TTLDict self, PyObject* key, PyObject* value) except -1:
    size = self.size_of(<object>key, <object>value)
    refuse_awaitable("sizeof", size)
    return <int64_t>integer("sizeof(key, value)", size, 0, SIZE_MAX, "bytes") + ENTRY_COST


cdef object too_large(TTLDict self, uint64_t size):
    cdef uint64_t limit = load_u64(&self.own_bytes)
    return ValueTooLargeError(f"key and value must be at most {limit} bytes (memory_limit), not {size}")


cdef enum:
    # How storing one entry can end besides well.
    ERROR_SET = -1            # by a comparison; nothing has changed
    NO_MEMORY = -2            # the entry is as it was
    TOO_LARGE = -3            # larger than `memory_limit`; the entry is as it was


cdef struct Outcome:
    # What `present` points to if the mode is LOADED.
    PyObject* present
    PyObject* load            # borrowed


cdef inline bint was_forgotten(PyObject** present) noexcept:
    return (<Load>(<Outcome*>present).load).forgotten or (<Load>(<Outcome*>present).load).unsaved


cdef struct Batch:
    # What `present` points to if the mode is MANY.
    Victims* victims
    PyObject** replaced       # receives the value that was replaced, or NULL
    int code                  # receives what `put` returns otherwise, or NO_MEMORY or TOO_LARGE


cdef inline bint to_replace(Load load, PyObject* value) noexcept:
    return load.replaces is not None and <PyObject*>load.replaces == value


cdef inline bint is_replaced(PyObject** present, PyObject* value) noexcept:
    return to_replace(<Load>(<Outcome*>present).load, value)


cdef inline double life_for(TTLDict self, double life, PyObject* key, PyObject* value) except? -1.0:
    """`life`, or what the dict's `ttl` function says if it is NaN."""
    return life if likely(life == life) else life_by_caller(self, key, value)


cdef double life_by_caller(TTLDict self, PyObject* key, PyObject* value) except? -1.0:
    if self.life_of is None:
        return INFINITY
    life = self.life_of(<object>key, <object>value)
    refuse_awaitable("ttl", life)
    return lifetime("ttl(key, value)", life, True)


cdef int put(
    TTLDict self, PyObject* key, PyObject* value, uint32_t hash, uint64_t size, double now, double deadline,
    Presence mode, PyObject** present,
) except -1:
    """TTLDict.store after everything that may fail or run Python code: hash, size and time are given."""
    cdef Table* t = &self.table
    cdef uint32_t slot
    cdef uint64_t low
    cdef double before
    cdef PyObject* replaced = NULL
    cdef Victims own
    cdef Victims* victims = &own
    cdef Batch* batch = NULL
    cdef bint late
    cdef bint timed = deadline != INFINITY or t.idle != INFINITY
    cdef int fresh = 0
    if unlikely(mode == MANY):
        # The caller has locked, and releases what was removed.
        mode = REPLACE
        batch = <Batch*>present
        present = NULL
        victims = batch.victims
    else:
        own.count = 0
        own.queued = 0
        enter(self)
    slot = find(self, key, hash, NULL)
    if unlikely(slot == FAILED):
        if batch == NULL:
            leave(self)
        return -1
    # Not before the search, which may run code that lowers the limit.
    if unlikely(size > self.most_bytes):
        fresh = put_oversized(self, slot, key, value, size, now, mode, present, &replaced, victims)
    else:
        if slot != MISSING and unlikely(slot_due(t, slot) <= now):
            remove_entry(self, slot, due_reason(self, slot, now), victims)
            slot = MISSING
        if unlikely(mode != REPLACE) and settled(self, slot, value, now, mode, present):
            pass
        elif (
            (unlikely(size > INLINE_SIZE_MAX) and not reserve_wide(t))
            or (timed and not reserve_node(t))
            or (slot == MISSING and t.live < t.limit and not reserve_slot(t))
        ):
            fresh = NO_MEMORY
        else:
            if slot != MISSING:
                before = slot_due(t, slot)
                replaced = t.slots[slot].value
                Py_INCREF(value)
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
                    make_room_beside(self, slot, now, victims)
            else:
                if unlikely(t.live >= t.limit or size > self.most_bytes - t.nbytes):
                    low = self.most_bytes - self.most_bytes // 5
                    make_room(
                        self, <uint32_t>(t.limit - 1) if t.limit != NONE else NONE, self.most_bytes - size,
                        low - size if low > size else 0, now, victims,
                    )
                Py_INCREF(key)
                Py_INCREF(value)
                slot = table_insert(t, key, value, hash, size, deadline, now)
                self.sets += 1
                store_u32(&self.changes, self.changes + 1)
                fresh = 1
            if present != NULL:
                present[0] = value
                Py_INCREF(value)
    if unlikely(batch != NULL):
        batch.code = fresh
        batch.replaced[0] = replaced
        return 0
    if any_due(self, now):
        remove_some_due(self, now, EXPIRE_STEPS, victims)
    late = sweeper_late(self, now)
    leave(self)
    release_refs(self, victims)
    release_replaced(self, key, replaced)
    if unlikely(fresh < 0):
        raise_refusal(self, fresh, size)
    if unlikely(late):
        wake_sweeper_or_drop(self, now, present)
    return fresh


cdef bint settled(
    TTLDict self, uint32_t slot, PyObject* value, double now, Presence mode, PyObject** present
) noexcept:
    """The part of `put` for modes other than REPLACE: whether there is nothing to store; then it sets `present`.

    Called locked, with the key's slot, whose entry is not due.
    """
    cdef Table* t = &self.table
    if slot != MISSING and (mode != LOADED or not is_replaced(present, t.slots[slot].value)):
        mark_used(t, slot, now)
        value = t.slots[slot].value
    elif mode != LOADED or not was_forgotten(present):
        return False
    if present != NULL:
        present[0] = value
        Py_INCREF(value)
    return True


# Apart from `put`, whose every call would clear what `try` needs.
cdef int wake_sweeper_or_drop(TTLDict self, double now, PyObject** present) except -1:
    try:
        wake_sweeper(self, now)
    except BaseException:
        # A signal handler raised. The value is stored, but the caller will not receive `present`.
        if present != NULL:
            Py_DECREF(present[0])
        raise
    return 0


cdef int raise_refusal(TTLDict self, int code, uint64_t size) except -1:
    if code == TOO_LARGE:
        raise too_large(self, size)
    raise MemoryError()


cdef int put_oversized(
    TTLDict self, uint32_t slot, PyObject* key, PyObject* value, uint64_t size, double now, Presence mode,
    PyObject** present, PyObject** replaced, Victims* victims,
) noexcept:
    """The part of `put` for a value that alone exceeds the limit in force. Called locked, with the key's slot.

    A value within the user's own limit causes no error: what happens is what would happen if it were stored, and then
    evicted before anything else. Nothing here allocates.
    """
    cdef Table* t = &self.table
    cdef int fresh = 0
    if size > self.own_bytes:
        if mode < OFFER:
            return TOO_LARGE
        self.uncacheable += 1
        present[0] = value
        Py_INCREF(value)
        return 0
    if slot != MISSING and slot_due(t, slot) <= now:
        remove_entry(self, slot, due_reason(self, slot, now), victims)
        slot = MISSING
    if slot != MISSING and mode != REPLACE and (mode != LOADED or not is_replaced(present, t.slots[slot].value)):
        mark_used(t, slot, now)
        value = t.slots[slot].value
    elif mode != LOADED or not was_forgotten(present):
        if slot == MISSING:
            Py_INCREF(key)
            store_u32(&self.changes, self.changes + 1)
            fresh = 1
        else:
            # The dict's own key, as after a replacement.
            table_remove(t, slot)
            key = t.slots[slot].key
            replaced[0] = t.slots[slot].value
            slot_free(t, slot)
        Py_INCREF(value)
        victims.keys[victims.count] = key
        victims.values[victims.count] = value
        victims.reasons[victims.count] = MEMORY
        victims.count += 1
        self.sets += 1
        self.evicted[<int>MEMORY] += 1
        self.over_cap += 1
    if present != NULL:
        present[0] = value
        Py_INCREF(value)
    return fresh


cdef int restore(TTLDict self, object key, object value, double deadline, uint64_t size, double now) except -1:
    """Store an entry of a copy or pickle, unless its deadline has passed."""
    if deadline > now:
        put(
            self, <PyObject*>key, <PyObject*>value, mix_hash(hash_of(<PyObject*>key), SEED), size, now, deadline,
            REPLACE, NULL,
        )
    return 0
