# Iterators, views, and snapshots of all entries, included by _ttl.pyx.
#
# A loop in Python and a consumer in C, such as list(d) or dict(d), need different things. The loop gets a live
# iterator, which raises if the user inserts or deletes. The consumer gets the entries of one moment, as a plain dict
# gives it, because another thread may write, or an entry fall due, before it is done. The two are told apart by the
# bytecode instruction at which the calling frame stands. A loop calls iter() at one instruction and next() at another,
# whereas a consumer does both within one.
#
# dict(d), {**d} and dict.update call keys(), iterate over it, and then look up every key, all within one instruction.
# An iteration over keys() that begins at the instruction which called keys() therefore records the pairs in `copies`,
# and __getitem__ takes from there what the same frame asks for at the same instruction. The record owns the frame, so
# that no later frame has its address, and is dropped with the last key. If an error ends the copy early, the next
# d[key] drops it, once its frame has ended or moved on.


# ---- iteration ----

cdef enum Kind:
    KEYS = 0
    VALUES = 1
    ITEMS = 2


cdef inline uint64_t instruction() noexcept:
    """A number for the calling frame and its present instruction; 0 if unknown.

    A later frame may get the same number, so a match may only decide which of two correct things is done.
    """
    cdef int at = 0
    cdef PyObject* frame = current_frame(&at)
    return 0 if frame == NULL else <uint64_t><size_t>frame * <uint64_t>0x9E3779B97F4A7C15 + <uint64_t>at + 1


@cython.final
cdef class _Iterator:
    cdef TTLDict owner
    cdef uint64_t made_by     # the instruction that made it, until the first call of next(); then 0
    cdef list entries         # what is left of the entries of one moment; None: the iterator is live
    cdef uint32_t position    # the next slot to visit; NONE at the end
    cdef uint32_t changes
    cdef Kind kind

    def __cinit__(self):
        self.position = NONE

    def __iter__(self):
        return self

    def __next__(self):
        # Threads may share an iterator.
        with cython.critical_section(self):
            return self.next_entry()

    cdef object next_entry(self):
        cdef TTLDict owner = self.owner
        cdef Table* t = &owner.table
        cdef PyObject* key = NULL
        cdef PyObject* value = NULL
        cdef double now
        cdef uint32_t slot = self.position
        cdef Stripe* stripe
        if slot == NONE:
            raise StopIteration
        if self.made_by:
            if self.made_by == instruction():
                self.entries = entries_now(owner, self.kind)
            self.made_by = 0
        if self.entries is not None:
            if slot >= <size_t>len(self.entries):
                self.position = NONE
                raise StopIteration
            self.position = slot + 1
            return self.entries[slot]
        now = now_if_needed(owner)
        stripe = enter_shared(owner)
        if self.changes != owner.changes:
            leave_shared(stripe)
            raise RuntimeError("dictionary changed size during iteration")
        while slot < t.used:
            if t.slots[slot].key != NULL and not load_u32(&t.slots[slot].meta) & DEAD and slot_due(t, slot) > now:
                key = t.slots[slot].key
                value = t.slots[slot].value
                Py_INCREF(key)
                Py_INCREF(value)
                break
            slot += 1
        self.position = NONE if key == NULL else <uint32_t>(slot + 1)
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
    iterator.changes = load_u32(&self.changes)
    iterator.kind = kind
    iterator.made_by = instruction()
    return iterator


class Keys(KeysView):
    """The keys of a TTLDict, without expired ones."""

    __slots__ = ("_made_by",)

    def __init__(self, mapping):
        self._mapping = mapping
        self._made_by = instruction()

    def __iter__(self):
        cdef list pairs
        made_by = self._made_by
        if not made_by or made_by != instruction():
            return entries_of(self._mapping, KEYS)
        pairs = entries_now(self._mapping, ITEMS)
        keys = []
        for pair in pairs:
            keys.append((<tuple>pair)[0])
        keys = iter(keys)
        if pairs:
            add_copy(self._mapping, pairs)
        return keys


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


# ---- copies made by C code ----

cdef void release_copies(Copying* copy) noexcept:
    """Free a chain of records that the dict no longer holds."""
    cdef Copying* following
    while copy != NULL:
        following = copy.following
        Py_DECREF(copy.pairs)
        Py_DECREF(copy.frame)
        PyMem_RawFree(copy)
        copy = following


cdef Copying* detach_copies(TTLDict self) noexcept:
    cdef Copying* copies
    enter(self)
    copies = self.copies
    self.copies = NULL
    leave(self)
    return copies


cdef inline bint frame_ended(PyObject* frame) noexcept:
    # While a frame runs or waits, the interpreter or its generator has a reference besides the record's.
    return Py_REFCNT(frame) == 1


cdef int add_copy(TTLDict self, list pairs) except -1:
    """Record that the present instruction copies these pairs."""
    cdef int at = 0
    cdef PyObject* frame = current_frame(&at)
    cdef Copying* copy
    cdef Copying* dropped = NULL
    cdef Copying** link
    if frame == NULL:
        return 0
    copy = <Copying*>PyMem_RawMalloc(sizeof(Copying))
    if copy == NULL:
        raise MemoryError()
    copy.frame = frame
    copy.instruction = at
    copy.pairs = <PyObject*>pairs
    copy.position = 0
    Py_INCREF(copy.frame)
    Py_INCREF(copy.pairs)
    enter(self)
    link = &self.copies
    while link[0] != NULL:
        if link[0].frame == frame or frame_ended(link[0].frame):
            move_copy(link, &dropped)
        else:
            link = &link[0].following
    copy.following = self.copies
    self.copies = copy
    leave(self)
    release_copies(dropped)
    return 0


cdef inline void move_copy(Copying** link, Copying** to) noexcept:
    cdef Copying* copy = link[0]
    link[0] = copy.following
    copy.following = to[0]
    to[0] = copy


cdef PyObject* copied_value(TTLDict self, PyObject* key) noexcept:
    """The key's value as a new reference, if the present instruction is copying the dict; else NULL."""
    cdef int at = 0
    cdef PyObject* frame = current_frame(&at)
    cdef PyObject* pair
    cdef PyObject* value = NULL
    cdef Copying* copy
    cdef Copying* dropped = NULL
    cdef Copying** link
    cdef Py_ssize_t size
    enter(self)
    link = &self.copies
    while link[0] != NULL:
        copy = link[0]
        if copy.frame == frame:
            size = PyList_GET_SIZE(copy.pairs)
            while copy.instruction == at and value == NULL and copy.position < size:
                pair = PySequence_Fast_ITEMS(copy.pairs)[copy.position]
                copy.position += 1
                if PyTuple_GET_ITEM(pair, 0) == key:
                    value = PyTuple_GET_ITEM(pair, 1)
                    Py_INCREF(value)
            if value == NULL or copy.position == size:
                move_copy(link, &dropped)
                continue
        elif frame_ended(copy.frame):
            move_copy(link, &dropped)
            continue
        link = &copy.following
    leave(self)
    release_copies(dropped)
    return value


# ---- snapshots ----

cdef struct Pair:
    PyObject* key
    PyObject* value


cdef list entries_now(TTLDict self, Kind kind):
    """The keys, values or pairs that are not due, as of one moment, in the order of a live iterator."""
    cdef Table* t = &self.table
    cdef double now = now_if_needed(self)
    cdef Pair* pairs = NULL
    cdef uint32_t slot, room, count = 0, at
    cdef list found = []
    try:
        while True:
            room = load_u32(&t.live)
            PyMem_RawFree(pairs)
            pairs = <Pair*>PyMem_RawMalloc((<size_t>room + 1) * sizeof(Pair))
            if pairs == NULL:
                raise MemoryError()
            enter(self)
            if t.live <= room:
                break
            leave(self)
        for slot in range(t.used):
            if t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD and slot_due(t, slot) > now:
                pairs[count].key = t.slots[slot].key
                pairs[count].value = t.slots[slot].value
                Py_INCREF(pairs[count].key)
                Py_INCREF(pairs[count].value)
                count += 1
        leave(self)
        for at in range(count):
            if kind == KEYS:
                found.append(<object>pairs[at].key)
            elif kind == VALUES:
                found.append(<object>pairs[at].value)
            else:
                entry = (<object>pairs[at].key, <object>pairs[at].value)
                found.append(entry)
    finally:
        for at in range(count):
            Py_DECREF(pairs[at].key)
            Py_DECREF(pairs[at].value)
        PyMem_RawFree(pairs)
    return found


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
            room = load_u32(&t.live)
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
    """The arguments that make another dict like this one. A limit set from outside is not this dict's to pass on."""
    cdef Py_ssize_t entries = load_ssize(&self.most_entries)
    cdef uint64_t own = load_u64(&self.own_bytes)
    found = {}
    if entries:
        found["max_size"] = entries
    if self.ttl_seconds != INFINITY:
        found["ttl"] = self.ttl_seconds if self.life_of is None else self.life_of
    if own != NO_LIMIT:
        found["memory_limit"] = own
    if self.size_of is not None:
        found["sizeof"] = self.size_of
    if self.table.idle != INFINITY:
        found["idle"] = self.table.idle
    if self.clock is not None:
        found["timer"] = self.clock
    if self.on_evict is not None:
        found["on_evict"] = self.on_evict
    if self.on_remove is not None:
        found["on_remove"] = self.on_remove
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
