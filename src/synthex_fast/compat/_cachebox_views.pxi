# What keys(), values() and items() return, included by _cachebox.pyx: iterators that know how many items they have
# left, and that end with RuntimeError when the cache has changed.
#
# Over a ring, an iterator holds the entry that it was at last: as long as nothing has changed, that is in the ring. A
# list would be reordered by what does not count as a change, so iterators over one have a copy.

cdef enum View:
    KEYS
    VALUES
    ITEMS
    WITH_FREQUENCY
    WITH_EXPIRE


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class CacheIterator:
    """An iterator over a cache, which is empty after one walk. RuntimeError if the cache has changed meanwhile."""
    cdef Box cache
    cdef View what
    cdef uint64_t changes         # the cache's when this began
    cdef Entry at                 # in the ring; the root: at its beginning
    cdef list copied
    cdef Py_ssize_t passed

    __class_getitem__ = classmethod(type(list[int]))

    def __iter__(self):
        return self

    def __next__(self):
        cdef Entry entry = None
        cdef object value = None
        cdef double rank = 0.0
        with cython.critical_section(self):
            while True:
                with cython.critical_section(self.cache):
                    check_unchanged(self)
                    entry = following(self, self.at, self.passed)
                    if entry is not None:
                        self.at = entry
                        self.passed += 1
                        value = entry.value
                        rank = entry.rank
                if entry is None or not is_over(self.cache, entry):
                    break
        if entry is None:
            raise StopIteration
        if self.what == KEYS:
            return entry.key
        if self.what == VALUES:
            return value
        if self.what == ITEMS:
            return entry.key, value
        if self.what == WITH_FREQUENCY:
            return entry.key, value, <int64_t>rank
        return entry.key, value, left_of(self.cache, entry)

    def __len__(self):
        return items_left(self, PY_SSIZE_T_MAX)

    def __bool__(self):
        return items_left(self, 1) != 0


cdef int check_unchanged(CacheIterator self) except -1:
    if self.changes != self.cache.changes:
        raise RuntimeError("the cache changed during iteration")
    return 0


cdef Entry following(CacheIterator self, Entry at, Py_ssize_t passed):
    cdef Entry entry
    if self.copied is not None:
        return <Entry>self.copied[passed] if passed < len(self.copied) else None
    entry = <Entry>at.following
    return None if entry is self.cache.root else entry


cdef Py_ssize_t items_left(CacheIterator self, Py_ssize_t most) except -1:
    """How many there are; counts no further than `most`. O(1) unless entries expire."""
    cdef Entry at
    cdef Py_ssize_t passed, count = 0
    with cython.critical_section(self):
        with cython.critical_section(self.cache):
            check_unchanged(self)
            if not is_timed(self.cache):
                count = len(self.cache.data) - self.passed
            else:
                at, passed = self.at, self.passed
                while count < most:
                    at = following(self, at, passed)
                    if at is None:
                        break
                    passed += 1
                    if not precise_reached(at.rank):
                        count += 1
    return count


cdef CacheIterator view(Box self, View what):
    cdef CacheIterator made = CacheIterator.__new__(CacheIterator)
    check_ready(self)
    made.cache = self
    made.what = what
    made.at = self.root
    with cython.critical_section(self):
        if is_timed(self):
            drop_expired(self)
        if self.kind >= RANDOM:
            made.copied = snapshot(self)
        made.changes = self.changes
    return made
