# Expiry, eviction and the release of references, included by _ttl.pyx.
#
# Removing an entry and releasing its references are two steps. `remove_entry` runs locked and moves both references to
# a `Victims` record; `release_refs` runs unlocked, calls `on_evict` and drops them. A function that takes `Victims*`
# expects the lock to be held for writing, and leaves the release to its caller.


cdef struct Victims:
    int count
    int64_t queued            # further ones, in the table's dead queue
    PyObject* keys[VICTIMS]
    PyObject* values[VICTIMS]
    int reasons[VICTIMS]


# ---- releasing references ----

cdef void notify(object callback, str name, PyObject* key, PyObject* value, int reason) noexcept:
    cdef PyObject* result = PyObject_CallFunctionObjArgs(
        <PyObject*>callback, key, value, <PyObject*>REASONS[reason], <PyObject*>NULL
    )
    if result == NULL:
        PyErr_WriteUnraisable(<PyObject*>callback)
    else:
        if result != Py_None:
            check_callback_result(callback, name, result)
        Py_DECREF(result)


cdef void notify_evicted(TTLDict self, PyObject* key, PyObject* value, int reason) noexcept:
    """Call `on_evict` or `on_remove`, if there is one for this reason, and drop both references."""
    if reason < SILENT:
        if self.on_evict is not None:
            notify(self.on_evict, "on_evict", key, value, reason)
    elif reason > SILENT and self.on_remove is not None:
        notify(self.on_remove, "on_remove", key, value, reason)
    Py_DECREF(key)
    Py_DECREF(value)


cdef void check_callback_result(object callback, str name, PyObject* result) noexcept:
    try:
        refuse_awaitable(name, <object>result)
    except BaseException as error:
        from synthex_fast._unraisable import report
        report(error, callback)


cdef void notify_removed(TTLDict self, PyObject* key, PyObject* value, int reason) noexcept:
    """Call `on_remove`, which there is, for an entry that the user has removed. Drops nothing."""
    global callback_depth
    callback_depth += 1
    notify(self.on_remove, "on_remove", key, value, reason)
    callback_depth -= 1


cdef inline void release_replaced(TTLDict self, PyObject* key, PyObject* replaced) noexcept:
    """Drop a value that another one has replaced, or NULL. `key` equals the entry's."""
    if replaced != NULL:
        if unlikely(self.on_remove is not None):
            notify_removed(self, key, replaced, REPLACED)
        Py_DECREF(replaced)


cdef void release_all_refs(TTLDict self, Victims* victims) noexcept:
    global callback_depth
    cdef int i
    cdef uint32_t slot
    cdef PyObject* key
    cdef PyObject* value
    cdef int reason
    callback_depth += 1
    for i in range(victims.count):
        notify_evicted(self, victims.keys[i], victims.values[i], victims.reasons[i])
    while victims.queued > 0:
        victims.queued -= 1
        enter(self)
        slot = dead_pop(&self.table)
        if slot == NONE:
            leave(self)
            break
        key = self.table.slots[slot].key
        value = self.table.slots[slot].value
        reason = self.table.links[slot].prev
        slot_free(&self.table, slot)
        leave(self)
        notify_evicted(self, key, value, reason)
    callback_depth -= 1


cdef inline void release_refs(TTLDict self, Victims* victims) noexcept:
    """Notify of the removed entries and drop their references. Nothing is locked; any Python code may run."""
    if unlikely(victims.count):
        release_all_refs(self, victims)


# ---- removing entries ----

cdef inline void remove_entry(TTLDict self, uint32_t slot, int reason, Victims* victims) noexcept:
    """Take an entry out of the table. Its references move to `victims`."""
    cdef Table* t = &self.table
    table_remove(t, slot)
    self.evicted[reason] += 1
    # Not counted in `changes`: an iterator skips what was evicted or is due, since the user removed none of it.
    if victims.count < VICTIMS:
        victims.keys[victims.count] = t.slots[slot].key
        victims.values[victims.count] = t.slots[slot].value
        victims.reasons[victims.count] = reason
        victims.count += 1
        slot_free(t, slot)
    else:
        dead_push(t, slot, reason)
        victims.queued += 1


cdef int64_t remove_all(TTLDict self) noexcept:
    """Move every entry to the dead queue, to be released without calling `on_evict` (locked). Returns how many."""
    cdef Table* t = &self.table
    cdef uint32_t slot
    cdef int64_t count = 0
    for slot in range(t.used):
        if t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD:
            table_remove(t, slot)
            dead_push(t, slot, CLEARED)
            count += 1
    return count


cdef inline void detach(Table* t, Table* old) noexcept:
    """Move all arrays and their references from `t` to `old` (locked).

    Code that runs while the references are dropped then finds an empty dict that works.
    """
    old[0] = t[0]
    t.slots = NULL
    t.links = NULL
    t.index = NULL
    t.heap = NULL
    t.touched = NULL
    t.wide = NULL
    t.ghosts = NULL
    store_u32(&t.live, 0)
    store_u32(&t.scheduled, 0)
    t.count[0] = t.count[1] = 0
    t.head[0] = t.head[1] = t.tail[0] = t.tail[1] = t.hand = t.dead_first = t.dead_last = NONE
    t.nbytes = 0
    store_double(&t.next_due, INFINITY)
    table_free(t)


cdef void release_detached(Table* old) noexcept:
    cdef uint32_t slot
    for slot in range(old.used):
        if old.slots[slot].key != NULL:
            Py_DECREF(old.slots[slot].key)
            Py_DECREF(old.slots[slot].value)
    table_free(old)


cdef void release_entries(TTLDict self) noexcept:
    """Empty the dict without calling `on_evict`, as its deallocation and the garbage collector do."""
    cdef Table old
    enter(self)
    detach(&self.table, &old)
    leave(self)
    release_detached(&old)


cdef void shrink_if_empty(TTLDict self) noexcept:
    """Return the arrays of a large table that has become empty."""
    cdef Table* t = &self.table
    cdef Table old
    enter(self)
    if t.live == 0 and t.dead_first == NONE and t.room > 64:
        detach(t, &old)
        leave(self)
        table_free(&old)
    else:
        leave(self)


# ---- expiry ----

cdef inline int due_reason(TTLDict self, uint32_t slot, double now) noexcept:
    return EXPIRED if self.table.slots[slot].deadline <= now else IDLE


cdef inline bint any_due(TTLDict self, double now) noexcept:
    """Whether an operation has due entries to free.

    One that runs inside a callback or finaliser leaves them to the operation that called it; otherwise eviction
    callbacks would nest.
    """
    return unlikely(now >= load_double(&self.table.next_due)) and callback_depth == 0


cdef inline void remove_some_due(TTLDict self, double now, int steps, Victims* victims) noexcept:
    """Remove due entries, examining at most `steps` nodes of the heap."""
    cdef uint32_t slot
    while steps > 0:
        slot = heap_next_due(&self.table, now, &steps)
        if slot == NONE:
            break
        remove_entry(self, slot, due_reason(self, slot, now), victims)


cdef void expire_some(TTLDict self, double now) noexcept:
    """A lookup's share of expiry: a bounded number of due entries."""
    cdef Victims victims
    victims.count = 0
    victims.queued = 0
    enter(self)
    remove_some_due(self, now, EXPIRE_STEPS, &victims)
    leave(self)
    release_refs(self, &victims)


cdef int64_t expire_due(TTLDict self, double now, int64_t most) noexcept:
    """Free the entries that are due, `most` of them at most. Returns how many."""
    cdef Table* t = &self.table
    cdef Victims victims
    cdef int steps = EXPIRE_DUE_STEPS, looks = EXPIRE_DUE_STEPS
    cdef uint32_t slot, tick
    cdef int64_t count = 0
    victims.count = 0
    victims.queued = 0
    enter(self)
    while count < most and steps > 0:
        slot = heap_next_due(t, now, &steps)
        if slot == NONE:
            break
        remove_entry(self, slot, due_reason(self, slot, now), &victims)
        count += 1
    if count < most and t.scheduled and now + TICK >= t.next_due:
        # What remains is a long backlog, or entries within the current tick.
        tick = tick_at_or_before(t, now) + 1
        while steps > 0 and count < most:
            slot = heap_find_due(t, now, tick, 0, &looks)
            if slot == NONE:
                break
            remove_entry(self, slot, due_reason(self, slot, now), &victims)
            count += 1
        if steps <= 0 or looks <= 0:
            count += expire_scan(self, now, most - count, &victims)
    leave(self)
    release_refs(self, &victims)
    if count and load_u32(&t.live) == 0:
        shrink_if_empty(self)
    return count


cdef int64_t expire_scan(TTLDict self, double now, int64_t most, Victims* victims) noexcept:
    """Remove due entries, `most` of them at most, in one pass over the whole heap. O(n) instead of O(due log n)."""
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
                    remove_entry(self, slot, due_reason(self, slot, now), victims)
                    count += 1
                moved = True
                continue
            if node.tick <= over:
                node.tick = max(tick_at_or_after(t, due), <uint32_t>(over + 1))
                moved = True
        t.heap[kept] = node
        kept += 1
    store_u32(&t.scheduled, kept)
    if moved:
        heap_rebuild(t)
    return count


cdef inline int expire_all_due(TTLDict self) except -1:
    """Free every due entry, before an operation that shows or counts entries."""
    cdef double now
    if load_u32(&self.table.scheduled):
        now = now_of(self)
        if now + TICK >= load_double(&self.table.next_due):
            expire_due(self, now, ALL)
    return 0


# ---- eviction ----

cdef inline uint32_t due_first(TTLDict self, double now) noexcept:
    """A due entry, to be evicted before any other; NONE if a bounded search finds none."""
    cdef Table* t = &self.table
    cdef int steps = EXPIRE_DUE_STEPS
    cdef uint32_t slot = NONE
    if now + TICK >= t.next_due:
        slot = heap_next_due(t, now, &steps)
        if slot == NONE:
            slot = heap_find_due(t, now, tick_at_or_before(t, now) + 1, 0, &steps)
    return slot


cdef void make_room(TTLDict self, uint32_t entries, uint64_t most, uint64_t low, double now, Victims* victims) noexcept:
    """Evict until at most `entries` entries and `most` bytes are left, due entries first.

    If entries that are not due must go to meet the limit in bytes, eviction goes on down to `low` bytes.
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
        remove_entry(self, slot, reason, victims)


cdef void make_room_beside(TTLDict self, uint32_t slot, double now, Victims* victims) noexcept:
    """Evict other entries than this one, down to 80 % of the limit in force."""
    cdef Table* t = &self.table
    cdef int queue = 1 if t.slots[slot].meta & IN_MAIN else 0
    cdef uint64_t low = self.most_bytes - self.most_bytes // 5
    if slot_due(t, slot) <= now:
        # Its new deadline is not in the future, so it may go as well.
        make_room(self, NONE, self.most_bytes, low, now, victims)
        return
    # While it is in no queue, no policy can choose it.
    queue_unlink(t, slot)
    make_room(self, NONE, self.most_bytes, low, now, victims)
    queue_push(t, queue, slot)


# ---- the sweeper ----

cdef int import_sweeper() except -1:
    global schedule
    if load_pointer(<void**>&schedule) == NULL:
        from synthex_fast._sweeper import schedule as found
        store_pointer(<void**>&schedule, Py_NewRef(<PyObject*>found))
    return 0


cdef int wake_sweeper(TTLDict self, double now) except -1:
    """Schedule a visit by the package's sweeper for when the first entry is due."""
    cdef double due = load_double(&self.table.next_due)
    store_double(&self.sweep_at, max(due, now))
    try:
        import_sweeper()
        (<object>load_pointer(<void**>&schedule))(self, due)
    except (ImportError, MemoryError, RuntimeError):
        # Out of memory, or no thread could be started. A store after half a second tries again. Any other error is one
        # of a signal handler, for the caller.
        store_double(&self.sweep_at, now + 0.5 - SWEEP_LOST)
    return 0


cdef inline bint sweeper_late(TTLDict self, double now) noexcept:
    """Whether a store must schedule the sweeper's visit. The caller holds the lock."""
    cdef double visit = load_double(&self.sweep_at)
    return self.sweepable and (self.table.next_due + SWEEP_SLACK < visit or now > visit + SWEEP_LOST)
