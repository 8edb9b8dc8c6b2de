# Functions decorated with `cached`, included by _cachebox.pyx.
#
# A hit is made here. What misses is single flight, by the engine of `TTLDict`; `flights` lists the calls under way.
# With a lock of the user's own class, `call_locked` in Python takes one for each key instead; without any, each call
# runs the function.

cdef extern from *:
    """
    #define synthex_is_simple_key(o) (PyLong_CheckExact(o) || PyUnicode_CheckExact(o))

    static inline void synthex_make_vectorcall(PyTypeObject *type, Py_ssize_t offset) {
        type->tp_vectorcall_offset = offset;
        type->tp_call = PyVectorcall_Call;
        type->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR;
        PyType_Modified(type);
    }
    """
    bint is_simple_key "synthex_is_simple_key"(PyObject*) noexcept
    void make_vectorcall "synthex_make_vectorcall"(PyTypeObject*, Py_ssize_t) noexcept
    object PyVectorcall_Call(object, object, object)
    object PyMethod_New(object, object)
    bint PySet_CheckExact(PyObject*) noexcept
    PyObject* PyDict_Copy(PyObject*) except NULL
    PyObject* PyList_GetSlice(PyObject*, Py_ssize_t, Py_ssize_t) except NULL
    PyObject* PySet_New(PyObject*) except NULL
    PyObject** items_of "PySequence_Fast_ITEMS"(object) noexcept


cdef str NO_INSTEAD = ", as a decorated function that is not a coroutine function"
# As cachebox numbers them.
EVENT_MISS = 1
EVENT_HIT = 2


cdef enum Guard:
    NO_LOCK
    SINGLE_FLIGHT
    OWN_LOCK


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class Making:
    """A call of the function that stores its result: what a load's factory is."""
    cdef CachedFunction memo
    cdef object cache
    cdef object key
    cdef tuple args
    cdef dict kwargs
    cdef bint made                # it was called: nobody was faster

    def __call__(self):
        value = stored(self.cache, self.key)
        if value is MISSING:
            value = self.memo.function(*self.args, **self.kwargs)
            self.memo.keep(self.cache, self.key, value)
            self.made = True
        return value

    async def awaited(self):
        value = stored(self.cache, self.key)
        if value is MISSING:
            value = await self.memo.function(*self.args, **self.kwargs)
            self.memo.keep(self.cache, self.key, value)
            self.made = True
        return value


cdef object stored(object cache, object key):
    cdef PyObject* value
    if isinstance(cache, Box) and (<Box>cache).plain:
        value = look_up(<Box>cache, key)
        return MISSING if value == NULL else owned(value)
    try:
        return cache[key]
    except KeyError:
        return MISSING


@cython.final
@cython.auto_pickle(False)
cdef class CachedFunction:
    """A function whose results are kept; see `synthex_fast.compat.cachebox.cached`."""
    cdef object __weakref__
    cdef dict __dict__
    cdef vectorcallfunc vectorcall
    cdef readonly object function
    cdef object kept_in           # a cache, or a function of the first argument that returns one
    cdef bint of_instance         # the latter
    cdef bint simple              # a hit with one text or number needs no more than looking it up
    cdef bint is_async
    cdef object key_maker
    cdef bint default_key         # it is `make_key`
    cdef object on_event          # callback, or None
    cdef object postprocess       # or None
    cdef bint copies              # it is `postprocess_copy_mutables`
    cdef bint clear_reuse
    cdef Guard guard
    cdef readonly object lock_type
    cdef readonly TTLDict flights
    cdef readonly dict turns      # the calls under way with locks of the user's own
    cdef int64_t hits
    cdef int64_t misses

    def __init__(self, function, *, cache, of_instance, is_async, key_maker, callback, postprocess, clear_reuse, lock):
        self.vectorcall = call_cached
        self.function = function
        self.kept_in = cache
        self.of_instance = of_instance
        self.is_async = is_async
        self.key_maker = key_maker
        self.default_key = key_maker is make_key
        self.on_event = callback
        self.postprocess = postprocess
        self.copies = postprocess is copy_mutables
        self.clear_reuse = clear_reuse
        self.guard = NO_LOCK if lock is None else SINGLE_FLIGHT if lock is True else OWN_LOCK
        self.lock_type = lock
        if self.guard == SINGLE_FLIGHT:
            self.flights = TTLDict(sweep=False)
        self.turns = {}
        self.simple = (
            not of_instance and not is_async and self.default_key and callback is None
            and isinstance(cache, Box) and (<Box>cache).plain
        )
        defer_refcount(<PyObject*>self)

    def __call__(self, /, *args, **kwargs):
        return PyVectorcall_Call(self, args, kwargs)

    cdef object finished(self, object value):
        """What the caller gets for a value that is kept."""
        if self.copies:
            if PyList_CheckExact(<PyObject*>value):
                return owned(PyList_GetSlice(<PyObject*>value, 0, PY_SSIZE_T_MAX))
            if PyDict_CheckExact(<PyObject*>value):
                return owned(PyDict_Copy(<PyObject*>value))
            if PySet_CheckExact(<PyObject*>value):
                return owned(PySet_New(<PyObject*>value))
            return value
        return value if self.postprocess is None else self.postprocess(value)

    cdef int keep(self, object cache, object key, object value) except -1:
        if isinstance(cache, Box) and (<Box>cache).plain:
            put(<Box>cache, key, value, rank_of_new(<Box>cache))
        else:
            cache[key] = value
        return 0

    cdef tuple place_of(self, tuple args, dict kwargs):
        """The cache of a call, and its key there."""
        cache = self.kept_in
        if self.of_instance:
            if not args:
                raise TypeError(f"{self.function!r} is cached for each first argument, and was called without one")
            cache = cache(args[0])
            args = args[1:]
        if not self.default_key or kwargs:
            return cache, self.key_maker(*args, **kwargs)
        # What `make_key` does.
        if len(args) == 1 and is_simple_key(PyTuple_GET_ITEM(<PyObject*>args, 0)):
            return cache, args[0]
        return cache, args

    cdef object call_slowly(self, PyObject** args, Py_ssize_t count, PyObject* names):
        cdef tuple given = <tuple>tuple_of(args, count)
        cdef dict kwargs = {}
        cdef Py_ssize_t at
        cdef Making making
        cdef uint32_t hash
        cdef Load load
        if names != NULL:
            for at in range(PyTuple_GET_SIZE(names)):
                kwargs[<object>PyTuple_GET_ITEM(names, at)] = <object>args[count + at]
            if kwargs.pop("cachebox__ignore", False):
                return self.function(*given, **kwargs)
        if self.is_async:
            return run_async(self, given, kwargs)
        cache, key = self.place_of(given, kwargs)
        value = stored(cache, key)
        if value is not MISSING:
            return self.ended(EVENT_HIT, key, value)
        if self.guard == OWN_LOCK:
            made, value = call_locked(self, cache, key, given, kwargs)
            return self.ended(EVENT_MISS if made else EVENT_HIT, key, value)
        making = self.making(cache, key, given, kwargs)
        if self.guard == NO_LOCK:
            value = self.function(*given, **kwargs)
            self.keep(cache, key, value)
            return self.ended(EVENT_MISS, key, value)
        flight = (<size_t><PyObject*>cache, key)
        hash_key(flight, &hash)
        load = new_load(flight, hash)
        load.unsaved = True
        value = load_value(self.flights, load, making, INFINITY, "the result", NO_INSTEAD)
        return self.ended(EVENT_MISS if making.made else EVENT_HIT, key, value)

    cdef Making making(self, object cache, object key, tuple args, dict kwargs):
        cdef Making making = Making.__new__(Making)
        making.memo = self
        making.cache = cache
        making.key = key
        making.args = args
        making.kwargs = kwargs
        return making

    cdef object ended(self, object event, object key, object value):
        if event is EVENT_HIT:
            self.hits += 1
        else:
            self.misses += 1
        if self.on_event is not None:
            self.on_event(event, key, value)
        return self.finished(value)

    # The same in parts, for coroutines.

    def _stored(self, args, kwargs):
        """The cache of a call, its key there, whether that has a value, and the value."""
        cache, key = self.place_of(args, kwargs)
        value = stored(cache, key)
        return cache, key, value is not MISSING, (None if value is MISSING else value)

    def _stored_in(self, cache, key):
        value = stored(cache, key)
        return value is not MISSING, (None if value is MISSING else value)

    def _keep(self, cache, key, value):
        self.keep(cache, key, value)

    def _count(self, event):
        if event == EVENT_HIT:
            self.hits += 1
        else:
            self.misses += 1

    def _finished(self, value):
        return self.finished(value)

    def _making(self, cache, key, args, kwargs):
        """The coroutine function that makes the value, and a function that says whether it has been called."""
        cdef Making making = self.making(cache, key, args, kwargs)
        return making.awaited, making

    def _was_made(self, Making making):
        return making.made

    # What the user sees besides. With a cache for each instance there is none to speak of.

    @property
    def cache(self):
        """Where the results are."""
        self.want_one_cache("cache")
        return self.kept_in

    @property
    def cache_info(self):
        self.want_one_cache("cache_info")
        return self._info

    @property
    def cache_clear(self):
        self.want_one_cache("cache_clear")
        return self._clear

    cdef int want_one_cache(self, str name) except -1:
        if self.of_instance:
            raise AttributeError(f"{name}: {self.function!r} has a cache for each first argument")
        return 0

    @property
    def callback(self):
        """The function that hears of each hit and miss, or None."""
        return self.on_event

    def _info(self):
        """Hits, misses, maxsize, the sum of sizes, entries and bytes."""
        cache = self.kept_in
        return info_from((
            self.hits, self.misses, cache.maxsize, cache.current_size(), len(cache), cache.__sizeof__()
        ))

    def _clear(self):
        """Forget all results, and begin to count anew."""
        self.kept_in.clear(reuse=self.clear_reuse)
        self.hits = self.misses = 0

    # As a function: bound when it is a class attribute, and copied and pickled by reference.

    def __get__(self, instance, owner):
        return self if instance is None else PyMethod_New(self, instance)

    def __reduce__(self):
        return self.__qualname__

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return f"<cached {self.function!r}>"


cdef object tuple_of(PyObject** items, Py_ssize_t count):
    cdef list found = []
    cdef Py_ssize_t at
    for at in range(count):
        found.append(<object>items[at])
    return tuple(found)


cdef PyObject* call_cached(PyObject* o, PyObject* const* args, size_t flags, PyObject* names) except NULL:
    cdef PyObject* value
    cdef Py_ssize_t count = PyVectorcall_NARGS(flags)
    if likely((<CachedFunction>o).simple and count == 1 and names == NULL) and likely(is_simple_key(args[0])):
        value = look_up(<Box>(<CachedFunction>o).kept_in, <object>args[0])
        if likely(value != NULL):
            (<CachedFunction>o).hits += 1
            if not (<CachedFunction>o).copies and (<CachedFunction>o).postprocess is None:
                return value
            found = (<CachedFunction>o).finished(owned(value))
            Py_INCREF(<PyObject*>found)
            return <PyObject*>found
    found = (<CachedFunction>o).call_slowly(<PyObject**>args, count, names)
    Py_INCREF(<PyObject*>found)
    return <PyObject*>found


cdef CachedFunction _probe = CachedFunction.__new__(CachedFunction)
make_vectorcall(<PyTypeObject*>CachedFunction, <char*>&_probe.vectorcall - <char*><PyObject*>_probe)
