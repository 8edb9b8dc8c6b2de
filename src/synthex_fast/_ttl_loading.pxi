# Making missing values, one load for all who wait, included by _ttl.pyx.
#
# A `Load` (_loads.pyx) is one call of a factory. The dict lists it while it runs: those of threads in one list, where
# calls that miss find it, and those of event loops in another. The lists hold no references, since whoever runs a load
# has one and takes the load out of its list in any case.
#
# A deletion must not be undone by a load that began before it. So it marks the loads of its key in both lists as
# forgotten, in the same step in which it removes the entry, and `put` looks at the mark in the step in which it
# stores a result. Keys with the same hash are marked too, which costs another load at worst. Who waited for a forgotten
# load gets its result; who comes later doesn't find it and begins another.


# ---- the lists (locked) ----

cdef void list_load(TTLDict self, Load load, PyObject** first) noexcept:
    load.before = NULL
    load.after = first[0]
    if first[0] != NULL:
        (<Load>first[0]).before = <PyObject*>load
    first[0] = <PyObject*>load
    load.listed = True
    self.loads_listed += 1


cdef void unlist_load(TTLDict self, Load load, PyObject** first) noexcept:
    if load.before == NULL:
        first[0] = load.after
    else:
        (<Load>load.before).after = load.after
    if load.after != NULL:
        (<Load>load.after).before = load.before
    load.listed = False
    self.loads_listed += 1


cdef void forget_in(PyObject* load, uint32_t hash, bint every) noexcept:
    while load != NULL:
        if every or (<Load>load).hash == hash:
            (<Load>load).forgotten = True
        load = (<Load>load).after


cdef inline bint any_loading(TTLDict self) noexcept:
    return unlikely(self.loading != NULL or self.loading_async != NULL)


cdef void forget_loads(TTLDict self, uint32_t hash, bint every=False) noexcept:
    forget_in(self.loading, hash, every)
    forget_in(self.loading_async, hash, every)


# ---- threads ----

cdef PyObject* begin_load(TTLDict self, PyObject* key, uint32_t hash, Load mine, PyObject** running) except? NULL:
    """The value, if another than `mine` is to replace has been stored. Otherwise NULL, and `running` receives the
    load of the key.

    That is `mine`, now listed, unless one is under way. Both are new references.
    """
    cdef Table* t = &self.table
    cdef double now = now_if_needed(self)
    cdef PyObject* at
    cdef PyObject* candidate
    cdef PyObject* value
    cdef uint32_t slot, layout, listed
    cdef int verdict
    running[0] = NULL
    enter(self)
    while True:
        slot = find(self, key, hash, NULL)
        if slot == FAILED:
            leave(self)
            return NULL
        if slot != MISSING and slot_due(t, slot) > now and not to_replace(mine, t.slots[slot].value):
            value = t.slots[slot].value
            Py_INCREF(value)
            mark_used(t, slot, now)
            leave(self)
            return value
        layout = t.layout
        listed = self.loads_listed
        at = self.loading
        while at != NULL:
            verdict = 0
            if (<Load>at).hash == hash and not (<Load>at).forgotten and not abandoned(<Load>at):
                candidate = <PyObject*>(<Load>at).key
                if candidate == key:
                    verdict = 1
                elif PyUnicode_CheckExact(candidate) and PyUnicode_CheckExact(key):
                    verdict = same_text(candidate, key)
                else:
                    # The load owns its key.
                    Py_INCREF(at)
                    leave(self)
                    verdict = PyObject_RichCompareBool(candidate, key, Py_EQ)
                    Py_DECREF(at)
                    if verdict < 0:
                        return NULL
                    enter(self)
                    if layout != t.layout or listed != self.loads_listed:
                        break
                    if (<Load>at).forgotten:
                        verdict = 0
            if verdict:
                self.load_waits += 1
                running[0] = at
                Py_INCREF(at)
                leave(self)
                return NULL
            at = (<Load>at).after
        else:
            list_load(self, mine, &self.loading)
            running[0] = <PyObject*>mine
            Py_INCREF(running[0])
            leave(self)
            return NULL


cdef int finish_load(TTLDict self, Load load, PyObject** first, double seconds_taken, bint failed) except -1:
    """Take the load out of its list, count it, and wake those who wait for it."""
    enter(self)
    if load.listed:
        unlist_load(self, load, first)
    self.loads += 1
    self.load_failures += failed
    self.load_seconds += seconds_taken
    leave(self)
    return end(load)


cdef object store_loaded(TTLDict self, object key, object value, double life, Load load):
    """Store a load's result, and return what the key has then: another call may have stored a value meanwhile."""
    cdef Outcome outcome
    cdef uint64_t size
    cdef double now, deadline = INFINITY
    if load.unsaved:
        return value
    size = <uint64_t>entry_size(self, <PyObject*>key, <PyObject*>value)
    outcome.present = NULL
    outcome.load = <PyObject*>load
    if type(value) is Aged:
        life = (<Aged>value).life
    else:
        life = life_for(self, life, <PyObject*>key, <PyObject*>value)
    if life != INFINITY:
        now = now_of(self)
        deadline = now + life
    else:
        now = now_if_needed(self)
    put(
        self, <PyObject*>key, <PyObject*>value, load.hash, size, now, deadline, LOADED, <PyObject**>&outcome
    )
    return owned(outcome.present)


cdef int hash_key(object key, uint32_t* hash) except -1:
    hash[0] = mix_hash(hash_of(<PyObject*>key), SEED)
    return 0


cdef PyObject* lookup_hashed(TTLDict self, PyObject* key, uint32_t hash) except? NULL:
    return lookup_at(self, key, hash, now_if_needed(self))


cdef object load_value(TTLDict self, Load mine, object factory, double life, str name, str instead):
    """The value of a key that was missing a moment ago: made by this call, or by the one that is making it."""
    cdef Load other
    cdef PyObject* running = NULL
    cdef PyObject* present
    cdef double start
    cdef bint failed = True
    while True:
        present = begin_load(self, <PyObject*>mine.key, mine.hash, mine, &running)
        if present != NULL:
            return owned(present)
        other = <Load>owned(running)
        if other is mine:
            break
        wait_for(other)
        if not other.interrupted:
            raise_error_of(other)
            return other.value
    start = monotonic_precise()
    try:
        made = factory()
        failed = False
        refuse_awaitable(name, made, True, instead)
        mine.value = store_loaded(self, mine.key, made, life, mine)
    except Exception as error:
        mine.traceback = error.__traceback__
        mine.error = error
        raise
    except BaseException:
        mine.interrupted = True
        raise
    finally:
        finish_load(self, mine, &self.loading, monotonic_precise() - start, failed)
    return mine.value
