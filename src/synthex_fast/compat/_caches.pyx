"""The caches of `synthex_fast.compat.cachetools`: their interface and behaviour are cachetools', the code is not.

`TTLDict` can't stand in for them. Their timers and times to live may be of any type, such as datetimes; they evict by
calling a `popitem` that subclasses override; they list keys in the order of insertion while they evict in another;
sizes are numbers of any kind. So each cache here is a dict from keys to `Entry` objects, which are linked in the order
of eviction, those of a `TTLCache` also in the order in which they expire.

- The dict owns the entries, the links are borrowed. An entry unlinks itself when it is freed, so that no link outlives
  what it points to, whatever frees it. The root of each ring belongs to the cache and is freed last.
- What subclasses may override is called as a method, unless the object is of one of the classes here (`plain`).
- Keys' `__hash__` and `__eq__`, sizes, timers and values that are dropped may run any code. An operation looks keys up
  before it changes links, and changes links without calling anything.

Like cachetools' they are not meant to be shared by threads without a lock. Memory stays sound if they are.
"""

cimport cython
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject

from synthex_fast._python cimport PY_SSIZE_T_MAX, PyObject_CallNoArgs, owned
from synthex_fast._sync cimport FREE_THREADED, load_u8, store_u8

import copyreg
from collections.abc import ItemsView, KeysView, Mapping, MutableMapping, ValuesView
from heapq import heapify, heappop, heappush
from random import choice as random_choice
from time import monotonic

__all__ = ["Cache", "FIFOCache", "LFUCache", "LRUCache", "RRCache", "TLRUCache", "TTLCache"]


cdef object MISSING = object()


@cython.final
@cython.internal
@cython.freelist(64)
cdef class Entry:
    """A key, its value, and its places in the cache's orders."""

    cdef object key
    cdef object value
    cdef object size
    cdef object expires
    cdef Item item              # of a TLRUCache: its place in the heap
    cdef Py_ssize_t number      # of an RRCache: its index
    cdef object uses            # of an LFUCache: how often it was used, an int
    # Rings through a root that is an entry as well; NULL if it is in none. In eviction order and in expiry order.
    cdef PyObject* previous
    cdef PyObject* following
    cdef PyObject* sooner
    cdef PyObject* later

    def __dealloc__(self):
        unlink(self)
        unlink_expiry(self)


@cython.final
@cython.internal
cdef class Item:
    """A place in the heap of a TLRUCache."""

    cdef object key
    cdef object expires
    cdef unsigned char removed  # other threads look without the cache's section

    def __lt__(Item self, other):
        return self.expires < (<Item>other).expires


cdef inline void make_root(Entry root) noexcept:
    root.previous = root.following = root.sooner = root.later = <PyObject*>root


include "_ring.pxi"


cdef inline void link_behind(Entry anchor, Entry entry) noexcept:
    entry.previous = <PyObject*>anchor
    entry.following = anchor.following
    (<Entry>anchor.following).previous = <PyObject*>entry
    anchor.following = <PyObject*>entry


cdef inline void unlink_expiry(Entry entry) noexcept:
    if entry.later != NULL:
        (<Entry>entry.sooner).later = entry.later
        (<Entry>entry.later).sooner = entry.sooner
        entry.sooner = entry.later = NULL


cdef inline void link_latest(Entry root, Entry entry) noexcept:
    unlink_expiry(entry)
    entry.sooner = root.sooner
    entry.later = <PyObject*>root
    (<Entry>root.sooner).later = <PyObject*>entry
    root.sooner = <PyObject*>entry


cdef inline bint before(object a, object b) except -1:
    if type(a) is float and type(b) is float:
        return <double>a < <double>b
    return bool(a < b)


cdef Py_ssize_t count_limit(object maxsize) except -1:
    """How many entries of size 1 fit."""
    if maxsize >= PY_SSIZE_T_MAX:
        return PY_SSIZE_T_MAX
    return int(maxsize)


@cython.no_gc_clear
cdef class Cache:
    """Cache(maxsize, getsizeof=None)\n--\n
    A mapping of limited size, and the base class of the others: it evicts in no useful order.

    Has the interface of ``cachetools.Cache``. `maxsize` may be any number, `getsizeof(value)` says what a value counts
    (None: 1). A value larger than `maxsize` raises ValueError. All operations are O(1), apart from evictions.

    >>> cache = LRUCache(maxsize=2)
    >>> cache["a"], cache["b"] = 1, 2
    >>> cache["a"]
    1
    >>> cache["c"] = 3
    >>> list(cache), cache.currsize
    (['a', 'c'], 2)
    """

    # In this order they are released: entries unlink themselves from the root.
    cdef dict data
    cdef Entry root
    cdef object most            # maxsize
    cdef object total           # currsize, if values have sizes
    cdef Py_ssize_t limit       # entries, if values have none
    cdef bint sized
    cdef bint plain             # none of the methods is overridden
    cdef dict __dict__
    cdef object __weakref__

    __class_getitem__ = classmethod(type(list[int]))
    __hash__ = None

    def __cinit__(self, *args, **kwargs):
        self.data = {}
        self.root = Entry.__new__(Entry)
        make_root(self.root)
        self.most = self.total = 0
        self.plain = type(self) in PLAIN

    def __init__(self, maxsize, getsizeof=None):
        if maxsize < 0:
            raise ValueError("maxsize must be non-negative")
        if getsizeof is not None:
            self.getsizeof = getsizeof
        forget_all(self)
        self.sized = self.getsizeof is not Cache.getsizeof
        self.limit = count_limit(maxsize)
        self.most = maxsize

    # What happens to an entry that has been stored or is being removed. Subclasses in C have their orders here.

    cdef int inserted(self, Entry entry) except -1:
        link_last(self.root, entry)
        return 0

    cdef int updated(self, Entry entry) except -1:
        return 0

    cdef int removed(self, Entry entry) except -1:
        return 0

    cdef int cleared(self) except -1:
        return 0

    cdef Entry victim(self):
        """What is evicted next, or None."""
        cdef Entry entry
        with cython.critical_section(self):
            entry = <Entry>self.root.following
        return None if entry is self.root else entry

    cdef tuple take(self):
        """Remove what is evicted next and return its pair."""
        cdef Entry entry = self.victim()
        if entry is None:
            raise KeyError(f"{type(self).__name__} is empty") from None
        key, value = entry.key, value_of(self, entry)
        delete(self, key)
        return key, value

    def __repr__(self):
        return cache_repr(self)

    def __getitem__(self, key):
        cdef Entry entry = find(self, key)
        return missing(self, key) if entry is None else value_of(self, entry)

    def __setitem__(self, key, value):
        put(self, key, value)

    def __delitem__(self, key):
        remove(self, key)

    def __contains__(self, key):
        return find(self, key) is not None

    def __missing__(self, key):
        raise KeyError(key)

    def __iter__(self):
        return iter(self.data)

    def __len__(self):
        return len(self.data)

    def __eq__(self, other):
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self.items()) == dict(other.items())

    def keys(self):
        """A view of the keys, in the order of insertion."""
        return KeysView(self)

    def values(self):
        """A view of the values."""
        return ValuesView(self)

    def items(self):
        """A view of the pairs."""
        return ItemsView(self)

    update = MutableMapping.update

    def get(self, key, default=None):
        """The value, or `default` if there is none; `__missing__` is not called."""
        if key in self:
            return self[key]
        return default

    # Its signature is in the docstring: `inspect` could make nothing of the default.
    @cython.embedsignature(False)
    def pop(self, key, default=MISSING):
        """pop($self, key, default=...)\n--\n
        Remove the key and return its value; `default`, or a KeyError, if there is none."""
        if key in self:
            value = self[key]
            del self[key]
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def setdefault(self, key, default=None):
        """The value; if there is none, `default`, which is stored."""
        if key in self:
            return self[key]
        self[key] = default
        return default

    def popitem(self):
        """Remove and return the pair that is evicted next; KeyError if there is none."""
        return self.take()

    def clear(self):
        """Remove all pairs. O(pairs)."""
        forget_all(self)

    @property
    def maxsize(self):
        """The largest sum of sizes."""
        return self.most

    @property
    def currsize(self):
        """The sum of sizes now."""
        return total_of(self) if self.sized else len(self.data)

    @staticmethod
    def getsizeof(value):
        """What a value counts."""
        return 1

    def __copy__(self):
        cdef Cache made = type(self).__new__(type(self))
        (<object>made).__dict__.update((<object>self).__dict__)
        restore(made, self.state())
        return made

    def __reduce_ex__(self, protocol):
        return copyreg.__newobj__, (type(self),), ((<object>self).__dict__ or None, self.state())

    def __setstate__(self, state):
        attributes, own = state
        if attributes:
            (<object>self).__dict__.update(attributes)
        restore(self, own)

    cdef dict state(self):
        """All that is in C, as values that can be pickled: settings, pairs by insertion, the orders by their keys."""
        cdef Entry entry
        pairs = []
        order = []
        expiry = []
        for entry in list(self.data.values()):
            with cython.critical_section(self):
                pair = (entry.key, entry.value, entry.size, entry.expires, entry.number, entry.uses)
            # Another thread may just be storing it.
            if pair[3] is not None or not isinstance(self, TimedCache):
                pairs.append(pair)
        self.list_orders(order, expiry)
        return {
            "maxsize": self.most, "sized": bool(self.sized), "pairs": pairs, "order": order, "expiry": expiry,
            "settings": self.settings(),
        }

    cdef int list_orders(self, list order, list expiry) except -1:
        cdef PyObject* each
        with cython.critical_section(self):
            each = self.root.following
            while each != <PyObject*>self.root:
                order.append((<Entry>each).key)
                each = (<Entry>each).following
            each = self.root.later
            while each != <PyObject*>self.root:
                expiry.append((<Entry>each).key)
                each = (<Entry>each).later
        return 0

    cdef object settings(self):
        return None

    cdef int configure(self, object settings) except -1:
        return 0

    cdef int restored(self) except -1:
        return 0


MutableMapping.register(Cache)


cdef inline Entry find(Cache self, object key):
    cdef PyObject* found
    cdef Entry entry = None
    with cython.critical_section(self):
        found = PyDict_GetItemWithError(self.data, key)
        if found != NULL:
            entry = <Entry>found
    return entry


cdef inline object value_of(Cache self, Entry entry):
    # Another thread may be exchanging it.
    cdef object value
    with cython.critical_section(self):
        value = entry.value
    return value


cdef inline object size_of(Cache self, Entry entry):
    cdef object size
    with cython.critical_section(self):
        size = entry.size
    return size


cdef inline object expiry_of(Cache self, Entry entry):
    cdef object expires
    with cython.critical_section(self):
        expires = entry.expires
    return expires


cdef inline bint was_due(TimedCache self, Entry entry, object time) except -1:
    cdef object expires = expiry_of(self, entry)
    # None: it is just being stored.
    return expires is not None and not before(time, expires)


cdef inline bint is_due(TimedCache self, Entry entry) except -1:
    return was_due(self, entry, self.clock.now())


cdef inline object total_of(Cache self):
    cdef object total
    with cython.critical_section(self):
        total = self.total
    return total


cdef object missing(Cache self, object key):
    if self.plain:
        raise KeyError(key)
    return self.__missing__(key)


cdef str cache_repr(Cache self):
    cdef Entry entry
    pairs = {}
    for entry in list(self.data.values()):
        pairs[entry.key] = value_of(self, entry)
    size = total_of(self) if self.sized else len(pairs)
    return f"{type(self).__name__}({pairs!r}, maxsize={self.most!r}, currsize={size!r})"


cdef Entry put(Cache self, object key, object value):
    """Store the pair, evict what has to go for it, and return its entry."""
    cdef Entry entry
    if self.sized:
        return put_sized(self, key, value)
    if self.limit < 1:
        raise ValueError("value too large")
    entry = find(self, key)
    if entry is None:
        while len(self.data) >= self.limit:
            evict(self)
        entry = insert(self, key, value, None)
    else:
        replace(self, entry, value)
    return entry


cdef Entry put_sized(Cache self, object key, object value):
    cdef Entry entry
    size = self.getsizeof(value)
    if size > self.most:
        raise ValueError("value too large")
    if size < 0:
        raise ValueError("value size must be non-negative")
    entry = find(self, key)
    more = size if entry is None else size - size_of(self, entry)
    while total_of(self) + more > self.most:
        evict(self)
        # It may be the entry itself that had to go.
        if entry is not None:
            entry = find(self, key)
            if entry is None:
                more = size
    if entry is None:
        entry = insert(self, key, value, size)
    else:
        with cython.critical_section(self):
            self.total = self.total + size - entry.size
            entry.size = size
        replace(self, entry, value)
    return entry


cdef int replace(Cache self, Entry entry, object value) except -1:
    with cython.critical_section(self):
        # Dropped after the exchange.
        value, entry.value = entry.value, value
        self.updated(entry)
    return 0


cdef Entry insert(Cache self, object key, object value, object size):
    cdef Entry entry = Entry.__new__(Entry)
    entry.key = key
    entry.value = value
    entry.size = size
    with cython.critical_section(self):
        if FREE_THREADED and key in self.data:
            # Another thread's, since we looked: an entry that is dropped must be in no order any more.
            remove(self, key)
        self.data[key] = entry
        if size is not None:
            self.total = self.total + size
        try:
            self.inserted(entry)
        except BaseException:
            self.data.pop(key, None)
            if size is not None:
                self.total = self.total - size
            raise
    return entry


cdef Entry remove(Cache self, object key):
    cdef Entry entry
    with cython.critical_section(self):
        entry = self.data.pop(key)
        try:
            self.removed(entry)
        finally:
            unlink(entry)
            unlink_expiry(entry)
        if entry.size is not None:
            self.total = self.total - entry.size
    return entry


cdef int evict(Cache self) except -1:
    if self.plain:
        self.take()
    else:
        self.popitem()
    return 0


cdef int forget_all(Cache self) except -1:
    cdef Entry entry
    with cython.critical_section(self):
        # A list, because another thread may store an entry when a free-threaded build leaves the section for a moment.
        for entry in list(self.data.values()):
            unlink(entry)
            unlink_expiry(entry)
        self.total = 0
        self.cleared()
        self.data.clear()
    return 0


cdef int restore(Cache self, dict state) except -1:
    cdef Entry entry
    forget_all(self)
    self.most = state["maxsize"]
    self.limit = count_limit(self.most)
    self.sized = state["sized"]
    self.configure(state["settings"])
    for key, value, size, expires, number, uses in state["pairs"]:
        entry = Entry.__new__(Entry)
        entry.key = key
        entry.value = value
        entry.size = size
        entry.expires = expires
        entry.number = number
        entry.uses = uses
        self.data[key] = entry
        if size is not None:
            self.total = self.total + size
    for key in state["order"]:
        entry = self.data.get(key)
        if entry is not None:
            link_last(self.root, entry)
    for key in state["expiry"]:
        entry = self.data.get(key)
        if entry is not None:
            link_latest(self.root, entry)
    self.restored()
    return 0


cdef int delete(Cache self, object key) except -1:
    if self.plain:
        remove(self, key)
    else:
        del self[key]
    return 0


cdef class FIFOCache(Cache):
    """A cache that evicts what was stored first. Storing a key again makes it the last one."""

    cdef int updated(self, Entry entry) except -1:
        if entry.following != NULL:
            link_last(self.root, entry)
        return 0


cdef class LRUCache(Cache):
    """A cache that evicts what has not been used for the longest time."""

    cdef int updated(self, Entry entry) except -1:
        if entry.following != NULL:
            link_last(self.root, entry)
        return 0

    def __getitem__(self, key):
        cdef Entry entry = used(self, key)
        return missing(self, key) if entry is None else value_of(self, entry)

    def get(self, key, default=None):
        """The value, or `default` if there is none; `__missing__` is not called."""
        cdef Entry entry
        if not self.plain:
            return Cache.get(self, key, default)
        entry = used(self, key)
        return default if entry is None else value_of(self, entry)


cdef inline Entry used(Cache self, object key):
    """The entry, which is now the last to go; None if there is none."""
    cdef PyObject* found
    cdef Entry entry = None
    with cython.critical_section(self):
        found = PyDict_GetItemWithError(self.data, key)
        if found != NULL:
            entry = <Entry>found
            link_last(self.root, entry)
    return entry


cdef class LFUCache(Cache):
    """A cache that evicts what was used least often, and of those what was used least recently."""

    # The ring is sorted by uses, then by the time of the last one. From a number of uses to the last entry with it:
    cdef dict tails

    def __cinit__(self, *args, **kwargs):
        self.tails = {}

    cdef int use(self, Entry entry) except -1:
        """One use more: behind all others that have as many then."""
        cdef object now = entry.uses
        cdef object more = 1 if now is None else now + 1
        cdef Entry anchor = self.tails.get(more)
        if anchor is None:
            anchor = self.root if now is None else self.tails.get(now, self.root)
        # The only step that may fail comes first.
        self.tails[more] = entry
        if anchor is not entry:
            self.leave(entry)
            unlink(entry)
            link_behind(anchor, entry)
        else:
            self.leave(entry)
        entry.uses = more
        return 0

    cdef int leave(self, Entry entry) except -1:
        """It will no longer be among those with as many uses."""
        cdef Entry previous
        if entry.uses is None or self.tails.get(entry.uses) is not entry:
            return 0
        previous = <Entry>entry.previous if entry.previous != NULL else self.root
        if previous is not self.root and previous.uses == entry.uses:
            self.tails[entry.uses] = previous
        else:
            del self.tails[entry.uses]
        return 0

    cdef int inserted(self, Entry entry) except -1:
        return self.use(entry)

    cdef int updated(self, Entry entry) except -1:
        return self.use(entry) if entry.following != NULL else 0

    cdef int removed(self, Entry entry) except -1:
        return self.leave(entry)

    cdef int cleared(self) except -1:
        self.tails = {}
        return 0

    def __getitem__(self, key):
        cdef Entry entry = find(self, key)
        if entry is None:
            return missing(self, key)
        with cython.critical_section(self):
            if entry.following != NULL:
                self.use(entry)
        return value_of(self, entry)

    cdef int restored(self) except -1:
        cdef PyObject* each = self.root.following
        while each != <PyObject*>self.root:
            self.tails[(<Entry>each).uses] = <Entry>each
            each = (<Entry>each).following
        return 0


cdef class RRCache(Cache):
    """A cache that evicts at random: what `choice` picks from a list of the keys."""

    cdef object chooser
    cdef list order

    def __cinit__(self, *args, **kwargs):
        self.order = []

    def __init__(self, maxsize, choice=random_choice, getsizeof=None):
        Cache.__init__(self, maxsize, getsizeof)
        self.chooser = choice

    @property
    def choice(self):
        """What picks the key that is evicted."""
        return self.chooser

    cdef int inserted(self, Entry entry) except -1:
        self.order.append(entry.key)
        entry.number = len(self.order) - 1
        return 0

    cdef int removed(self, Entry entry) except -1:
        cdef Py_ssize_t place = entry.number
        cdef Py_ssize_t last = len(self.order) - 1
        if place < last:
            moved = self.order[last]
            (<Entry>self.data[moved]).number = place
            # Looking it up may have changed the list.
            if last == len(self.order) - 1:
                self.order[place] = moved
        if self.order:
            self.order.pop()
        return 0

    cdef int cleared(self) except -1:
        self.order = []
        return 0

    cdef Entry victim(self):
        return find(self, self.chooser(self.order)) if self.order else None

    cdef int list_orders(self, list order, list expiry) except -1:
        return 0

    cdef object settings(self):
        return self.chooser, list(self.order)

    cdef int configure(self, object settings) except -1:
        self.chooser, self.order = settings
        return 0


@cython.final
cdef class Timer:
    """What ``cache.timer`` is: calls the timer, or within a ``with`` block gives the time at which that began."""

    cdef object function
    cdef object time
    cdef Py_ssize_t nesting

    def __init__(self, function):
        self.function = function

    cdef inline object now(self):
        cdef object time = None
        cdef bint stopped
        with cython.critical_section(self):
            stopped = self.nesting > 0
            if stopped:
                time = self.time
        return time if stopped else owned(PyObject_CallNoArgs(<PyObject*>self.function))

    cdef inline object enter(self):
        cdef object time = self.now()
        with cython.critical_section(self):
            self.time = time
            self.nesting += 1
        return time

    cdef inline int leave(self) except -1:
        with cython.critical_section(self):
            self.nesting -= 1
        return 0

    def __call__(self):
        return self.now()

    def __enter__(self):
        return self.enter()

    def __exit__(self, *exc):
        self.leave()

    def __copy__(self):
        return Timer(self.function)

    def __deepcopy__(self, memo):
        from copy import deepcopy
        return Timer(deepcopy(self.function, memo))

    def __reduce__(self):
        return Timer, (self.function,)

    def __getattr__(self, name):
        return getattr(self.function, name)


cdef class TimedCache(Cache):
    """The base of the caches whose entries expire."""

    cdef Timer clock

    def __init__(self, maxsize, timer, getsizeof=None):
        Cache.__init__(self, maxsize, getsizeof)
        self.clock = Timer(timer)

    @property
    def timer(self):
        """The timer; as a context manager it stops the time."""
        return self.clock

    def expire(self, time=None):
        """Remove what has expired by then (None: now) and return a list of the pairs."""
        return self.expired(self.clock.now() if time is None else time)

    cdef list expired(self, object time):
        raise NotImplementedError

    cdef inline int settle(self, object time) except -1:
        """Remove what has expired, by a method of that name if a subclass has its own."""
        if self.plain:
            self.expired(time)
        else:
            self.expire(time)
        return 0

    cdef int settle_now(self) except -1:
        time = self.clock.enter()
        try:
            self.settle(time)
        finally:
            self.clock.leave()
        return 0

    cdef tuple take(self):
        time = self.clock.enter()
        try:
            self.settle(time)
            return Cache.take(self)
        finally:
            self.clock.leave()

    def __repr__(self):
        self.settle_now()
        return cache_repr(self)

    def __len__(self):
        self.settle_now()
        return len(self.data)

    @property
    def currsize(self):
        """The sum of sizes now."""
        self.settle_now()
        return total_of(self) if self.sized else len(self.data)

    def __contains__(self, key):
        cdef Entry entry = find(self, key)
        return entry is not None and not is_due(self, entry)

    def __getitem__(self, key):
        cdef Entry entry = used(self, key)
        if entry is None or is_due(self, entry):
            return missing(self, key)
        return value_of(self, entry)

    def __delitem__(self, key):
        time = self.clock.now()
        cdef Entry entry = remove(self, key)
        if was_due(self, entry, time):
            raise KeyError(key)

    def __iter__(self):
        cdef Entry entry
        # Of a copy of the keys: they may expire meanwhile.
        for key in list(self.data):
            self.clock.enter()
            try:
                entry = find(self, key)
                if entry is not None and not is_due(self, entry):
                    yield key
            finally:
                self.clock.leave()

    def get(self, key, default=None):
        """The value, or `default` if there is none; `__missing__` is not called."""
        cdef Entry entry
        if self.plain:
            entry = find(self, key)
            if entry is None or is_due(self, entry):
                return default
            with cython.critical_section(self):
                if entry.following != NULL:
                    link_last(self.root, entry)
            return value_of(self, entry)
        self.clock.enter()
        try:
            return Cache.get(self, key, default)
        finally:
            self.clock.leave()

    @cython.embedsignature(False)
    def pop(self, key, default=MISSING):
        """pop($self, key, default=...)\n--\n
        Remove the key and return its value; `default`, or a KeyError, if there is none."""
        self.clock.enter()
        try:
            return Cache.pop(self, key, default)
        finally:
            self.clock.leave()

    def setdefault(self, key, default=None):
        """The value; if there is none, `default`, which is stored."""
        self.clock.enter()
        try:
            return Cache.setdefault(self, key, default)
        finally:
            self.clock.leave()


cdef class TTLCache(TimedCache):
    """An `LRUCache` whose entries expire `ttl` after they were stored, on the timer's scale: ``timer() + ttl``.

    >>> now = 0
    >>> cache = TTLCache(maxsize=10, ttl=5, timer=lambda: now)
    >>> cache["a"] = 1
    >>> now = 5
    >>> cache.get("a"), cache.expire()
    (None, [('a', 1)])
    """

    cdef object life

    def __init__(self, maxsize, ttl, timer=monotonic, getsizeof=None):
        TimedCache.__init__(self, maxsize, timer, getsizeof)
        self.life = ttl

    @property
    def ttl(self):
        """How long entries live."""
        return self.life

    def __setitem__(self, key, value):
        cdef Entry entry
        time = self.clock.enter()
        try:
            expires = time + self.life
            self.settle(time)
            entry = put(self, key, value)
        finally:
            self.clock.leave()
        with cython.critical_section(self):
            entry.expires = expires
            if entry.following != NULL:
                link_last(self.root, entry)
                link_latest(self.root, entry)

    cdef list expired(self, object time):
        cdef list found = []
        cdef Entry entry
        while True:
            with cython.critical_section(self):
                entry = <Entry>self.root.later
                expires = entry.expires
            if entry is self.root or before(time, expires):
                break
            remove(self, entry.key)
            found.append((entry.key, value_of(self, entry)))
        return found

    cdef object settings(self):
        return self.clock, self.life

    cdef int configure(self, object settings) except -1:
        self.clock, self.life = settings
        self.clock = self.clock.__copy__()
        return 0

    def __setstate__(self, state):
        TimedCache.__setstate__(self, state)
        self.expire(self.clock.now())


cdef class TLRUCache(TimedCache):
    """An `LRUCache` whose entries expire when ``ttu(key, value, timer())`` says."""

    cdef object use
    cdef list heap              # of Items, some of which are removed

    def __cinit__(self, *args, **kwargs):
        self.heap = []

    def __init__(self, maxsize, ttu, timer=monotonic, getsizeof=None):
        TimedCache.__init__(self, maxsize, timer, getsizeof)
        self.use = ttu

    @property
    def ttu(self):
        """The function that says when an entry expires."""
        return self.use

    cdef int removed(self, Entry entry) except -1:
        if entry.item is not None:
            store_u8(&entry.item.removed, True)
        return 0

    cdef int cleared(self) except -1:
        cdef list heap = []
        with cython.critical_section(self):
            # Dropped after this.
            heap, self.heap = self.heap, heap
        return 0

    def __setitem__(self, key, value):
        cdef Entry entry
        cdef Item item
        time = self.clock.enter()
        try:
            self.settle(time)
            expires = self.use(key, value, time)
            if not before(time, expires):
                # It would have expired at once, and so has what it replaces.
                if find(self, key) is not None:
                    remove(self, key)
                return
            item = Item.__new__(Item)
            item.key = key
            item.expires = expires
            entry = put(self, key, value)
        finally:
            self.clock.leave()
        with cython.critical_section(self):
            if entry.item is not None:
                store_u8(&entry.item.removed, True)
            entry.item = item
            entry.expires = expires
            if entry.following != NULL:
                link_last(self.root, entry)
            try:
                heappush(self.heap, item)
            except BaseException:
                # Neither in the heap nor stored.
                remove(self, key)
                raise

    cdef list expired(self, object time):
        cdef list found = []
        cdef Entry entry
        cdef Item item
        self.compact()
        while True:
            item = self.take_due(time)
            if item is None:
                return found
            entry = remove(self, item.key)
            found.append((entry.key, value_of(self, entry)))

    cdef int compact(self) except -1:
        """Drop removed items once they are the greater part of the heap."""
        cdef list heap, kept
        cdef Py_ssize_t count
        cdef Item item
        with cython.critical_section(self):
            heap = self.heap
            count = len(heap)
            if count > 2 * len(self.data):
                kept = []
                for item in heap:
                    if not load_u8(&item.removed):
                        kept.append(item)
                heapify(kept)
                # Comparisons run any code, and on the free-threaded build let other threads in.
                if self.heap is heap and len(heap) == count:
                    self.heap = kept
        return 0

    cdef Item take_due(self, object time):
        """Take the first expired item, and removed ones before it, from the heap. None: no item has expired."""
        cdef Item item
        cdef list heap
        cdef bint taken
        while True:
            item = None
            with cython.critical_section(self):
                heap = self.heap
                if heap:
                    item = <Item>heap[0]
            if item is None or (not load_u8(&item.removed) and before(time, item.expires)):
                return None
            with cython.critical_section(self):
                # The comparison may have run any code.
                taken = heap is self.heap and bool(heap) and heap[0] is item
                if taken:
                    heappop(heap)
            if taken and not load_u8(&item.removed):
                return item

    cdef object settings(self):
        return self.clock, self.use

    cdef int configure(self, object settings) except -1:
        self.clock, self.use = settings
        self.clock = self.clock.__copy__()
        return 0

    cdef int restored(self) except -1:
        cdef Entry entry
        cdef Item item
        for entry in self.data.values():
            item = Item.__new__(Item)
            item.key = entry.key
            item.expires = entry.expires
            entry.item = item
            self.heap.append(item)
        heapify(self.heap)
        return 0


cdef object PLAIN = frozenset((Cache, FIFOCache, LFUCache, LRUCache, RRCache, TLRUCache, TTLCache))
