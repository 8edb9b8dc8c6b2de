# Iterators, views, and snapshots of all entries, included by _ttl.pyx.


# ---- iteration ----

cdef enum Kind:
    KEYS = 0
    VALUES = 1
    ITEMS = 2


cdef class _Iterator:
    cdef TTLDict owner
    cdef uint32_t position    # the next slot to visit; NONE at the end
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
        # Loaded once: another thread may use the same iterator, and a position past the end must not be read.
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
                Py_INCREF(key)
                Py_INCREF(value)
                break
            slot += 1
        self.position = NONE if key == NULL else slot + 1
        leave_shared(stripe)
        if key == NULL:
            raise StopIteration
        if self.kind == KEYS:
            Py_DECREF(value)
            return owned(key)
        if self.kind == VALUES:
            Py_DECREF(key)
            return owned(value)
        return owned(key), owned(value)


cdef _Iterator entries_of(TTLDict self, Kind kind):
    cdef _Iterator iterator = _Iterator.__new__(_Iterator)
    expire_all_due(self)
    iterator.owner = self
    iterator.position = 0
    iterator.changes = self.changes
    iterator.kind = kind
    return iterator


class Items(ItemsView):
    """The (key, value) pairs of a TTLDict, without expired ones."""

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
    """The values of a TTLDict, without expired ones."""

    __slots__ = ()

    def __iter__(self):
        return entries_of(self._mapping, VALUES)

    def __contains__(self, value):
        return any(found is value or found == value for found in self)


# ---- snapshots ----

cdef struct Copied:
    PyObject* key
    PyObject* value
    double deadline
    uint64_t size


cdef list snapshot(TTLDict self, double now):
    """(key, value, deadline without the idle limit, size) of every entry that is not due, as of one moment.

    The order is that of the queues, oldest first, and the main queue before the other, so that inserting the entries
    into another dict keeps their eviction order.
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
                    Py_INCREF(copies[count].key)
                    Py_INCREF(copies[count].value)
                    count += 1
                slot = t.links[slot].prev
        leave(self)
        for at in range(count):
            found.append(
                (<object>copies[at].key, <object>copies[at].value, copies[at].deadline, copies[at].size)
            )
    finally:
        for at in range(count):
            Py_DECREF(copies[at].key)
            Py_DECREF(copies[at].value)
        PyMem_RawFree(copies)
    return found


cdef dict contents(TTLDict self):
    """The entries as a plain dict, as of one moment."""
    return {key: value for key, value, _, _ in snapshot(self, now_if_needed(self))}


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
    if self.on_evict is not None:
        found["on_evict"] = self.on_evict
    if self.policy_name != "s3fifo":
        found["policy"] = self.policy_name
    if not self.sweepable and self.clock is None:
        found["sweep"] = False
    return found


cdef int set_attributes(TTLDict self, object state) except -1:
    """Set the attributes of a subclass instance from what ``object.__getstate__`` returned for another."""
    attributes, slots = state if type(state) is tuple else (state, None)
    if attributes:
        self.__dict__.update(attributes)
    if slots:
        for name, value in slots.items():
            setattr(self, name, value)
    return 0
