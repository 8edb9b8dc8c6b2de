# Several keys at once, included by _ttl.pyx: one lock and one reading of the clock.

cdef struct Each:
    PyObject* key             # borrowed from what the caller gave
    PyObject* value           # to be stored: borrowed; else a new reference, or NULL
    PyObject* removed         # the dict's own key, or the value that was replaced; a new reference or NULL
    uint32_t hash
    uint64_t size
    double deadline


cdef Each* room_for(Py_ssize_t count) except NULL:
    cdef Each* each = <Each*>PyMem_RawCalloc(<size_t>count + 1, sizeof(Each))
    if each == NULL:
        raise MemoryError()
    return each


cdef tuple keys_from(object keys):
    try:
        found = iter(keys)
    except TypeError:
        raise type_error("keys", keys, "an iterable of keys") from None
    return tuple(found)


cdef list pairs_from(object entries):
    """The keys and values in turns."""
    cdef list found = []
    try:
        pairs = iter(entries.items() if hasattr(entries, "keys") else entries)
    except TypeError:
        raise type_error("entries", entries, PAIRS) from None
    for pair in pairs:
        try:
            key, value = pair
        except (TypeError, ValueError):
            raise type_error("entries", entries, PAIRS) from None
        found.append(key)
        found.append(value)
    return found


cdef dict get_all(TTLDict self, tuple keys):
    cdef Table* t = &self.table
    cdef Py_ssize_t count = len(keys), at
    cdef Each* each = room_for(count)
    cdef double now
    cdef uint32_t slot = MISSING
    cdef int64_t hits = 0
    cdef Stripe* stripe
    cdef bint exclusive = FREE_THREADED and t.policy == LRU
    cdef dict found = {}
    try:
        for at in range(count):
            each[at].hash = mix_hash(hash_of(<PyObject*>keys[at]), SEED)
        now = now_if_needed(self)
        if exclusive:
            enter(self)
            stripe = self.stripes
        else:
            stripe = enter_shared(self)
        for at in range(count):
            slot = find(self, PyTuple_GET_ITEM(<PyObject*>keys, at), each[at].hash, NULL if exclusive else stripe)
            if slot == FAILED:
                break
            if slot != MISSING and slot_due(t, slot) > now:
                each[at].value = t.slots[slot].value
                Py_INCREF(each[at].value)
                mark_used(t, slot, now)
                hits += 1
        else:
            stripe.hits += hits
            stripe.misses += count - hits
        if exclusive:
            leave(self)
        else:
            leave_shared(stripe)
        if slot == FAILED:
            raise_pending()
        for at in range(count):
            if each[at].value != NULL:
                found[keys[at]] = <object>each[at].value
        if any_due(self, now):
            expire_some(self, now)
    finally:
        for at in range(count):
            Py_XDECREF(each[at].value)
        PyMem_RawFree(each)
    return found


cdef int reserve_many(TTLDict self, Each* each, uint32_t count) noexcept:
    """Make room for entries, so that storing them can't fail. Returns 0 or a code as `put` notes it."""
    cdef Table* t = &self.table
    cdef uint32_t at, slot, fresh = 0, timed = 0
    cdef bint roomy
    for at in range(count):
        if each[at].size > INLINE_SIZE_MAX and not reserve_wide(t):
            return NO_MEMORY
    roomy = t.room - t.live >= count and t.heap_room - t.scheduled >= count and not index_too_small(t, t.live + count)
    for at in range(count):
        # Where there is room for all, only comparisons that may raise are of interest: they are to do so before
        # anything is stored. Those of texts don't, but with odd keys of equal hash.
        if roomy and PyUnicode_CheckExact(each[at].key):
            continue
        slot = find(self, each[at].key, each[at].hash, NULL)
        if slot == FAILED:
            return ERROR_SET
        fresh += slot == MISSING
        timed += slot == MISSING or t.links[slot].node == NONE
    if roomy:
        # Still, unless a comparison has changed the dict.
        fresh = timed = count
    # A full dict evicts for what exceeds its limit.
    fresh = min(fresh, t.limit - min(t.live, t.limit))
    return 0 if reserve_slots(t, fresh) and reserve_nodes(t, timed) else NO_MEMORY


cdef int set_all(TTLDict self, list pairs, double life) except -1:
    cdef Py_ssize_t count = len(pairs) // 2, at
    cdef Each* each = room_for(count)
    cdef double now
    cdef bint timed = life != INFINITY, late
    cdef int code = 0
    cdef uint64_t largest = 0
    cdef Victims victims
    cdef Batch batch
    batch.victims = &victims
    error = None
    victims.count = 0
    victims.queued = 0
    try:
        if count >= NONE // 2:
            raise MemoryError()
        for at in range(count):
            key = pairs[2 * at]
            value = pairs[2 * at + 1]
            each[at].key = <PyObject*>key
            each[at].value = <PyObject*>value
            each[at].hash = mix_hash(hash_of(<PyObject*>key), SEED)
            each[at].size = <uint64_t>entry_size(self, <PyObject*>key, <PyObject*>value)
            each[at].deadline = life_for(self, life, <PyObject*>key, <PyObject*>value)
            largest = max(largest, each[at].size)
        now = now_of(self) if timed else now_if_needed(self)
        for at in range(count):
            if each[at].deadline != INFINITY:
                each[at].deadline += now
        enter(self)
        code = TOO_LARGE if largest > self.own_bytes else reserve_many(self, each, <uint32_t>count)
        if code < 0:
            leave(self)
            if code == ERROR_SET:
                raise_pending()
            raise_refusal(self, code, largest)
        for at in range(count):
            if victims.count > VICTIMS - 2:
                # One entry may add two.
                leave(self)
                release_all_refs(self, &victims)
                victims.count = 0
                victims.queued = 0
                enter(self)
            batch.replaced = &each[at].removed
            batch.code = ERROR_SET
            try:
                put(
                    self, each[at].key, each[at].value, each[at].hash, each[at].size, now, each[at].deadline, MANY,
                    <PyObject**>&batch,
                )
            except BaseException as raised:
                error = raised
            code = batch.code
            if code < 0:
                break
        if code != ERROR_SET and any_due(self, now):
            remove_some_due(self, now, EXPIRE_STEPS, &victims)
        late = sweeper_late(self, now)
        leave(self)
        # Before any error is raised. If one is, the entries before it are stored: a comparison that succeeded in
        # `reserve_many` has failed, and what the entries replaced or evicted may have been released.
        release_refs(self, &victims)
        if error is not None:
            raise error
        if code < 0:
            raise_refusal(self, code, each[at].size)
        if late:
            wake_sweeper(self, now)
    finally:
        for at in range(count):
            release_replaced(self, each[at].key, each[at].removed)
        PyMem_RawFree(each)
    return 0


cdef Py_ssize_t delete_all(TTLDict self, tuple keys) except -1:
    cdef Table* t = &self.table
    cdef Py_ssize_t count = len(keys), at, deleted = 0
    cdef Each* each = room_for(count)
    cdef double now
    cdef uint32_t slot = MISSING
    cdef Victims victims
    victims.count = 0
    victims.queued = 0
    try:
        for at in range(count):
            each[at].hash = mix_hash(hash_of(<PyObject*>keys[at]), SEED)
        now = now_if_needed(self)
        enter(self)
        for at in range(count):
            if any_loading(self):
                forget_loads(self, each[at].hash)
            slot = find(self, PyTuple_GET_ITEM(<PyObject*>keys, at), each[at].hash, NULL)
            if slot == FAILED:
                break
            if slot == MISSING:
                continue
            if slot_due(t, slot) <= now:
                remove_entry(self, slot, due_reason(self, slot, now), &victims)
                continue
            table_remove(t, slot)
            each[at].removed = t.slots[slot].key
            each[at].value = t.slots[slot].value
            slot_free(t, slot)
            store_u32(&self.changes, self.changes + 1)
            deleted += 1
        if slot != FAILED and any_due(self, now):
            remove_some_due(self, now, EXPIRE_STEPS, &victims)
        leave(self)
        try:
            if slot == FAILED:
                raise_pending()
        finally:
            release_refs(self, &victims)
    finally:
        for at in range(count):
            if each[at].removed != NULL:
                if self.on_remove is not None:
                    notify_removed(self, each[at].removed, each[at].value, DELETED)
                Py_DECREF(each[at].removed)
                Py_DECREF(each[at].value)
        PyMem_RawFree(each)
    return deleted
