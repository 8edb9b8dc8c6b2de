"""The object that a cached function is: it makes a key of the arguments and asks a TTLDict, or another mapping.

`synthex_fast.caching` checks the options, makes these objects and has what runs in Python: coroutines, threads.

A call takes one of three ways. The first, for a function whose options are plain and that is called with one text or
number, is one look-up in C. The second makes a key of the arguments and looks that up. Both end with `load_value` if
the result is missing: one call of the function for all who wait. The third is for values with times of their own. They
stand in the dict as `Aged` objects, which the dict keeps for as long as they may serve if the function fails.

A method's results are in a cache of its instance's own. The instance holds it (`Holder`), in its ``__dict__``: so it
goes with the instance, and a result that refers to the instance makes a cycle that the garbage collector frees. A table
of weak references to instances would be a leak then. Where an instance has no ``__dict__``, there is such a table.
A copied ``__dict__`` brings the original's holder along, which its reference to the original tells.
"""

cimport cython
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cpython.object cimport PyObject

from synthex_fast._arguments cimport lifetime, real, refuse_awaitable
from synthex_fast._clock cimport monotonic_coarse
from synthex_fast._loads cimport Aged, Load, new_load
from synthex_fast._python cimport (
    defer_refcount, Py_INCREF, Py_XDECREF, PyObject_Vectorcall, PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTypeObject,
    PyVectorcall_NARGS, owned, vectorcallfunc,
)
from synthex_fast._random cimport draw
from synthex_fast._sync cimport likely
from synthex_fast._ttl cimport TTLDict, hash_key, load_value, lookup_hashed

import os
import weakref
from copy import copy

from synthex_fast._arguments import want_bool
from synthex_fast._unraisable import report
from synthex_fast.errors import SynthexFastError

__all__ = ["BoundCached", "Cached", "Holder"]


cdef extern from *:
    """
    #define synthex_is_simple_key(o) (PyLong_CheckExact(o) || PyUnicode_CheckExact(o))

    static inline void synthex_make_vectorcall(PyTypeObject *type, Py_ssize_t offset) {
        type->tp_vectorcall_offset = offset;
        type->tp_call = PyVectorcall_Call;
        type->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR;
        PyType_Modified(type);
    }

    static inline PyObject *synthex_tuple_of(PyObject *const *items, Py_ssize_t count) {
        PyObject *tuple = PyTuple_New(count);
        for (Py_ssize_t at = 0; tuple != NULL && at < count; at++) PyTuple_SET_ITEM(tuple, at, Py_NewRef(items[at]));
        return tuple;
    }

    /* Whether a weak reference is to that object, which is alive. */
    static inline int synthex_refers_to(PyObject *reference, PyObject *object) {
        return ((PyWeakReference *)reference)->wr_object == object;
    }
    """
    # A key that equals nothing of another type.
    bint is_simple_key "synthex_is_simple_key"(PyObject*) noexcept
    void make_vectorcall "synthex_make_vectorcall"(PyTypeObject*, Py_ssize_t) noexcept
    tuple tuple_of "synthex_tuple_of"(PyObject** items, Py_ssize_t count)
    bint refers_to "synthex_refers_to"(PyObject*, PyObject*) noexcept
    object PyObject_GenericGetAttr(object, object)
    dict PyObject_GenericGetDict(object, void*)
    object PyVectorcall_Call(object, object, object)
    object PyMethod_New(object, object)
    bint PyType_Check(PyObject*) noexcept


# Separates positional arguments from keywords in a key.
cdef object KEYWORDS = type("Keywords", (), {"__slots__": (), "__repr__": lambda self: "<keywords>"})()
cdef object MISSING = object()
cdef str NO_INSTEAD = ", as a decorated function that is not a coroutine function"
# Of the generator that draws jitter.
cdef uint64_t drawn = int.from_bytes(os.urandom(8), "little") | 1
# For instances without a __dict__: holders by the name of the method and the id of the instance.
cdef dict held_apart = {}


cdef class Cached


@cython.final
@cython.auto_pickle(False)
cdef class Call:
    """A call of the function that is to be made; what a load's factory is."""
    cdef object function
    cdef tuple args
    cdef dict kwargs

    def __call__(self):
        return self.function(*self.args) if self.kwargs is None else self.function(*self.args, **self.kwargs)


cdef Call call_of(object function, PyObject** args, Py_ssize_t count, PyObject* names):
    cdef Call call = Call.__new__(Call)
    cdef Py_ssize_t at
    call.function = function
    call.args = tuple_of(args, count)
    if names != NULL and PyTuple_GET_SIZE(names):
        call.kwargs = {}
        for at in range(PyTuple_GET_SIZE(names)):
            call.kwargs[<object>PyTuple_GET_ITEM(names, at)] = <object>args[count + at]
    return call


@cython.final
@cython.auto_pickle(False)
cdef class AgedCall:
    """The same, and the result is what stands in the cache."""
    cdef Cached cached
    cdef TTLDict cache
    cdef object key
    cdef Call call

    def __call__(self):
        try:
            value = self.call()
        except Exception as error:
            return self.cached.kept_error(self.cache, error)
        refuse_awaitable("the result", value, True)
        return self.cached.aged_of(self.cache, self.key, value)

    async def awaited(self):
        try:
            value = await self.call()
        except Exception as error:
            return self.cached.kept_error(self.cache, error)
        return self.cached.aged_of(self.cache, self.key, value)


@cython.final
@cython.auto_pickle(False)
cdef class MappingCall:
    """The same, and the result is stored in a mapping that is not a TTLDict."""
    cdef object mapping
    cdef object lock
    cdef object key
    cdef Call call

    def __call__(self):
        value = stored(self.mapping, self.lock, self.key)
        if value is MISSING:
            value = self.call()
            refuse_awaitable("the result", value, True)
            store(self.mapping, self.lock, self.key, value)
        return value

    async def awaited(self):
        value = stored(self.mapping, self.lock, self.key)
        if value is MISSING:
            value = await self.call()
            store(self.mapping, self.lock, self.key, value)
        return value


cdef object stored(object mapping, object lock, object key):
    try:
        if lock is None:
            return mapping[key]
        with lock:
            return mapping[key]
    except KeyError:
        return MISSING


cdef int store(object mapping, object lock, object key, object value) except -1:
    try:
        if lock is None:
            mapping[key] = value
        else:
            with lock:
                mapping[key] = value
    except ValueError:
        # Caches raise it for a value that is too large for them. It is returned all the same.
        pass
    return 0


cdef inline double now_of(TTLDict cache) except? -1.0:
    if cache.clock is None:
        return monotonic_coarse()
    return real("timer()", cache.clock(), "a finite number of seconds")


@cython.final
@cython.auto_pickle(False)
cdef class Holder:
    """An instance's cache for one method. A copy or pickle of the instance gets an empty one."""
    cdef object __weakref__
    cdef object owner             # a weak reference
    cdef Cached cached
    cdef TTLDict cache            # None: an empty one
    cdef int64_t hits_before      # those of before the last `cache_clear`
    cdef int64_t misses_before

    cdef int clear(self) except -1:
        self.cache.clear()
        self.hits_before = self.misses_before = 0
        self.hits_before, self.misses_before, _ = self.counts()
        return 0

    cdef tuple counts(self):
        stats = self.cache.stats
        return stats["hits"] - self.hits_before, stats["misses"] - self.misses_before, stats["entries"]

    def __reduce__(self):
        return Holder, ()

    def __deepcopy__(self, memo):
        return Holder()


@cython.final
@cython.auto_pickle(False)
cdef class Forget:
    """Called when an instance whose holder is apart is gone. Not a function: Cython leaks a reference with each."""
    cdef tuple key

    def __call__(self, reference):
        held_apart.pop(self.key, None)


cdef Forget forget_of(tuple key):
    cdef Forget forget = Forget.__new__(Forget)
    forget.key = key
    return forget


cdef inline bint is_of(Holder holder, Cached cached, PyObject* instance) noexcept:
    return holder.cached is cached and refers_to(<PyObject*>holder.owner, instance)


@cython.final
@cython.auto_pickle(False)
cdef class Cached:
    """A function whose results are kept; see `synthex_fast.caching.cached`."""
    cdef object __weakref__
    cdef dict __dict__
    cdef vectorcallfunc vectorcall
    cdef object function
    cdef TTLDict results          # None: there is one for each instance, or the results are in `mapping`
    cdef bint plain               # a single text or number is the key, and the value stands in `results` as it is
    cdef bint typed
    cdef bint is_async
    cdef bint is_method           # the first argument is the instance, and no part of the key
    cdef bint aged                # values stand in the cache as `Aged`
    cdef object key_function      # or None
    # Where results are, if that is not a TTLDict: a mapping, or a function of the instance that returns one.
    cdef object mapping
    cdef object mapping_of
    cdef object lock              # a context manager, or with `mapping_of` a function of the instance; or None
    cdef TTLDict flights          # lists the loads for those
    cdef int64_t hits             # with those
    cdef int64_t misses
    # One cache for each instance.
    cdef object make              # makes an empty one
    cdef object attribute         # the name under which an instance holds it
    cdef object holders           # all of them, weakly
    # What a call's result lives; in seconds, infinity: forever.
    cdef double life              # NaN: as the dict says
    cdef object life_of           # a function of key and value, or None
    cdef double jitter
    cdef double refresh_after
    cdef double stale_seconds
    cdef double negative_life     # NaN: as other results
    cdef tuple negative_errors
    cdef int64_t hits_before      # those of before the last `cache_clear`
    cdef int64_t misses_before
    cdef dict parameters
    cdef int64_t stale            # stale values returned because making new ones failed
    cdef bint closed              # by `cache_close`

    def __init__(self, function, *, cache, mapping, mapping_of, lock, make, key, typed, is_async, is_method, options):
        self.vectorcall = call_cached
        self.function = function
        self.results = cache
        self.mapping = mapping
        self.mapping_of = mapping_of
        self.lock = lock
        self.make = make
        self.key_function = key
        self.typed = typed
        self.is_async = is_async
        self.is_method = is_method
        self.life = options.get("life", NAN)
        self.life_of = options.get("life_of")
        self.jitter = options.get("jitter", 0.0)
        self.refresh_after = options.get("refresh_after", INFINITY)
        self.stale_seconds = options.get("stale_if_error", 0.0)
        self.negative_life = options.get("negative_ttl", NAN)
        self.negative_errors = options.get("negative_errors", ())
        self.aged = options["aged"]
        self.parameters = options["parameters"]
        if mapping is not None or mapping_of is not None:
            self.flights = TTLDict(sweep=False)
        self.attribute = f"_cached_{getattr(function, '__qualname__', type(function).__name__)}"
        self.holders = weakref.WeakSet()
        # It lives long, and threads that count references to it would contend.
        defer_refcount(<PyObject*>self)
        self.plain = not (is_method or is_async or typed or self.aged or key is not None or cache is None)

    # ---- calls ----

    def __call__(self, /, *args, **kwargs):
        return PyVectorcall_Call(self, args, kwargs)

    cdef object key_of(self, PyObject** args, Py_ssize_t count, PyObject* names):
        """The key of a call. The instance of a method is among the arguments, but only the user's function gets it."""
        cdef Py_ssize_t skip = 1 if self.is_method else 0, at
        cdef Py_ssize_t keywords = 0 if names == NULL else PyTuple_GET_SIZE(names)
        cdef list parts
        if self.key_function is not None:
            return owned(PyObject_Vectorcall(<PyObject*>self.key_function, args, <size_t>count, names))
        if keywords == 0 and not self.typed:
            if count - skip == 1 and is_simple_key(args[skip]):
                return <object>args[skip]
            return tuple_of(args + skip, count - skip)
        parts = []
        for at in range(skip, count):
            parts.append(<object>args[at])
        if keywords:
            order = range(keywords)
            if keywords > 1:
                # The same call, whatever order the keywords are in.
                order = sorted(order, key=(<object>names).__getitem__)
            parts.append(KEYWORDS)
            for at in order:
                parts.append(<object>PyTuple_GET_ITEM(names, at))
                parts.append(<object>args[count + at])
        if self.typed:
            for at in range(skip, count):
                parts.append(type(<object>args[at]))
            if keywords:
                for at in order:
                    parts.append(type(<object>args[count + at]))
        return tuple(parts)

    cdef TTLDict dict_of(self, PyObject* instance):
        """The dict of an instance's results, made if there is none."""
        return self.results if self.results is not None else self.holder_of(instance).cache

    cdef Holder held_by(self, PyObject* instance):
        try:
            held = PyObject_GenericGetAttr(<object>instance, self.attribute)
        except AttributeError:
            held = held_apart.get((self.attribute, <size_t>instance))
        return <Holder>held if type(held) is Holder and is_of(<Holder>held, self, instance) else None

    cdef Holder holder_of(self, PyObject* instance):
        cdef Holder holder = self.held_by(instance), other
        if holder is not None:
            return holder
        holder = Holder.__new__(Holder)
        holder.cached = self
        holder.cache = self.make()
        try:
            holder.owner = weakref.ref(<object>instance)
        except TypeError:
            raise TypeError(
                f"{self.attribute[8:]}() is cached for each instance, and {type(<object>instance).__name__} objects"
                " can't be referenced weakly: add '__weakref__' to __slots__"
            ) from None
        other = self.give(instance, holder)
        if other is holder:
            self.holders.add(holder)
        return other

    cdef Holder give(self, PyObject* instance, Holder holder):
        """Have the instance hold it, unless another thread was faster: returns what it holds."""
        cdef dict attributes
        try:
            if PyType_Check(instance):
                # A class's attributes are not to be changed behind its back.
                raise AttributeError
            # Not set as an attribute: two threads would both set one. Nor does the class's own __setattr__ matter.
            attributes = PyObject_GenericGetDict(<object>instance, NULL)
            key = self.attribute
        except AttributeError:
            attributes = held_apart
            key = (self.attribute, <size_t>instance)
            holder.owner = weakref.ref(<object>instance, forget_of(key))
        held = attributes.setdefault(key, holder)
        if held is not holder and not (type(held) is Holder and is_of(<Holder>held, self, instance)):
            # Another instance's: the attributes are a copy.
            attributes[key] = held = holder
        return <Holder>held

    cdef object call_slowly(self, PyObject** args, Py_ssize_t count, PyObject* names, bint missed):
        cdef TTLDict cache
        cdef PyObject* value
        cdef Call call
        cdef uint32_t hash
        if self.closed:
            raise SynthexFastError(f"{self.attribute[8:]}() is closed: its cache_close() was called")
        if self.is_method and count == 0:
            # The function's own error says what is missing.
            return owned(PyObject_Vectorcall(<PyObject*>self.function, args, <size_t>count, names))
        key = self.key_of(args, count, names)
        if self.mapping is not None or self.mapping_of is not None:
            return self.call_with_mapping(key, args, count, names)
        cache = self.dict_of(args[0] if count else NULL)
        if self.is_async:
            return run_async(self, cache, key, call_of(self.function, args, count, names))
        if self.aged:
            return self.aged_value(cache, key, call_of(self.function, args, count, names))
        hash_key(key, &hash)
        if not missed:
            value = lookup_hashed(cache, <PyObject*>key, hash)
            if value != NULL:
                return owned(value)
        call = call_of(self.function, args, count, names)
        return load_value(cache, new_load(key, hash), call, self.life_in(cache), "the result", NO_INSTEAD)

    cdef double life_in(self, TTLDict cache) noexcept:
        return self.life if self.life == self.life else cache.ttl_seconds

    # ---- values with times of their own ----

    cdef Aged aged_of(self, TTLDict cache, object key, object value):
        cdef Aged aged = Aged.__new__(Aged)
        cdef double now, life
        if value is None and self.negative_life == self.negative_life:
            life = self.negative_life
        elif self.life_of is not None:
            life = lifetime("ttl(key, value)", self.life_of(key, value), True)
        else:
            life = self.life_in(cache)
            if life != life:
                life = INFINITY
                if cache.life_of is not None:
                    life = lifetime("ttl(key, value)", cache.life_of(key, value), True)
        now = now_of(cache)
        if self.jitter:
            life += self.jitter * draw(&drawn)
        aged.value = value
        aged.fresh_until = now + life
        aged.refresh_at = now + self.refresh_after
        aged.life = life + self.stale_seconds
        return aged

    cdef Aged kept_error(self, TTLDict cache, object error):
        """The error as a result, if it is one to be kept; else it is raised."""
        cdef Aged aged
        if not isinstance(error, self.negative_errors):
            raise error
        aged = Aged.__new__(Aged)
        # Without the frames that it passed through, which would live as long.
        aged.value = error.with_traceback(None)
        aged.failed = True
        aged.life = self.negative_life + (self.jitter * draw(&drawn) if self.jitter else 0.0)
        aged.fresh_until = now_of(cache) + aged.life
        aged.refresh_at = INFINITY
        return aged

    cdef object aged_value(self, TTLDict cache, object key, Call call):
        cdef PyObject* found
        cdef uint32_t hash
        cdef Aged aged = None
        cdef double now
        hash_key(key, &hash)
        found = lookup_hashed(cache, <PyObject*>key, hash)
        if found != NULL:
            value = owned(found)
            if type(value) is not Aged:
                # The user has stored it.
                return value
            aged = <Aged>value
            now = now_of(cache)
            if now < aged.fresh_until:
                if now >= aged.refresh_at:
                    self.begin_refresh(cache, key, aged, call)
                return opened(aged)
        try:
            made = self.make_anew(cache, key, hash, aged, call)
        except Exception:
            if aged is None or aged.failed:
                raise
            self.stale += 1
            return aged.value
        return opened(made)

    cdef object make_anew(self, TTLDict cache, object key, uint32_t hash, Aged aged, Call call):
        cdef Load load = new_load(key, hash)
        cdef AgedCall aged_call = aged_call_of(self, cache, key, call)
        load.replaces = aged
        return load_value(cache, load, aged_call, INFINITY, "the result", NO_INSTEAD)

    cdef int begin_refresh(self, TTLDict cache, object key, Aged aged, Call call) except -1:
        # Who comes now sees that it has begun.
        aged.refresh_at = INFINITY
        try:
            in_background(self._refresh, cache, key, aged, call)
        except Exception as error:
            self._refresh_failed(cache, aged, error)
        return 0

    def _refresh(self, TTLDict cache, key, Aged aged, Call call):
        """Make a value anew that is still good. Runs in a thread of its own."""
        cdef uint32_t hash
        try:
            hash_key(key, &hash)
            self.make_anew(cache, key, hash, aged, call)
        except Exception as error:
            self._refresh_failed(cache, aged, error)

    def _refresh_failed(self, TTLDict cache, Aged aged, error):
        """Try again after a while. There is no error if the task that did it was cancelled."""
        aged.refresh_at = now_of(cache) + self.refresh_after
        if error is not None:
            report(error, self.function)

    # The same for coroutines, which `synthex_fast.caching` runs.

    def _look_up(self, TTLDict cache, key):
        """(whether there is a value, the value, Aged or None, whether to refresh it)."""
        cdef PyObject* found = cache.lookup(<PyObject*>key)
        cdef Aged aged
        cdef double now
        if found == NULL:
            return False, None, None, False
        value = owned(found)
        if type(value) is not Aged:
            return True, value, None, False
        aged = <Aged>value
        now = now_of(cache)
        if now >= aged.fresh_until:
            return False, None, aged, False
        if now >= aged.refresh_at:
            aged.refresh_at = INFINITY
            return True, opened(aged), aged, True
        return True, opened(aged), aged, False

    def _opened(self, value):
        return opened(value)

    def _stale_value(self, Aged aged, error):
        """What is returned if making it anew has failed."""
        if aged is None or aged.failed:
            raise error
        self.stale += 1
        return aged.value

    def _aged_call(self, TTLDict cache, key, Call call):
        return aged_call_of(self, cache, key, call).awaited

    @property
    def _is_aged(self):
        return self.aged

    def _life_in(self, TTLDict cache):
        return self.life_in(cache)

    # ---- other mappings ----

    cdef object mapping_for(self, PyObject* instance):
        return self.mapping if self.mapping_of is None else self.mapping_of(<object>instance)

    cdef object lock_for(self, PyObject* instance):
        return self.lock if self.mapping_of is None or self.lock is None else self.lock(<object>instance)

    cdef object call_with_mapping(self, object key, PyObject** args, Py_ssize_t count, PyObject* names):
        cdef PyObject* instance = args[0] if count else NULL
        cdef MappingCall factory
        cdef Call call = call_of(self.function, args, count, names)
        cdef Load load
        cdef uint32_t hash
        mapping = self.mapping_for(instance)
        if mapping is None:
            # Caching is off for this instance.
            return call()
        if isinstance(mapping, TTLDict) and self.lock is None:
            return self.call_with_dict(<TTLDict>mapping, key, call)
        lock = self.lock_for(instance)
        value = stored(mapping, lock, key)
        if value is not MISSING:
            self.hits += 1
            return answered(value) if self.is_async else value
        self.misses += 1
        factory = MappingCall.__new__(MappingCall)
        factory.mapping = mapping
        factory.lock = lock
        factory.key = key
        factory.call = call
        flight = (<size_t><PyObject*>mapping, key)
        if self.is_async:
            return run_flight(self, self.flights, flight, factory.awaited)
        hash_key(flight, &hash)
        load = new_load(flight, hash)
        load.unsaved = True
        return load_value(self.flights, load, factory, INFINITY, "the result", NO_INSTEAD)

    cdef object call_with_dict(self, TTLDict cache, object key, Call call):
        cdef PyObject* value
        cdef uint32_t hash
        if self.is_async:
            return run_async(self, cache, key, call)
        hash_key(key, &hash)
        value = lookup_hashed(cache, <PyObject*>key, hash)
        if value != NULL:
            self.hits += 1
            return owned(value)
        self.misses += 1
        return load_value(cache, new_load(key, hash), call, cache.ttl_seconds, "the result", NO_INSTEAD)

    # ---- what the user sees besides ----

    def cache_key(self, /, *args, **kwargs):
        """The key under which the result of such a call is kept."""
        cdef tuple names = tuple(kwargs)
        cdef tuple given = args + tuple(kwargs.values())
        return self.key_of(items_of(given), len(args), <PyObject*>names)

    def invalidate(self, /, *args, **kwargs):
        """Forget the result of such a call. Returns whether there was one. One that is being made is not kept."""
        cdef PyObject* value
        cdef PyObject* instance = PyTuple_GET_ITEM(<PyObject*>args, 0) if args else NULL
        if self.is_method and not args:
            raise TypeError("invalidate() of a method needs the instance first")
        key = self.cache_key(*args, **kwargs)
        if self.flights is None:
            value = self.dict_of(instance).take(<PyObject*>key)
            Py_XDECREF(value)
            return value != NULL
        return drop(self.mapping_for(instance), self.lock_for(instance), key)

    cache_invalidate = invalidate

    def cache_contains(self, /, *args, **kwargs):
        """Whether there is a result of such a call."""
        if self.is_method and not args:
            raise TypeError("cache_contains() of a method needs the instance first")
        cdef PyObject* instance = PyTuple_GET_ITEM(<PyObject*>args, 0) if args else NULL
        key = self.cache_key(*args, **kwargs)
        if self.flights is None:
            return key in self.dict_of(instance)
        mapping = self.mapping_for(instance)
        return mapping is not None and key in mapping

    def cache_clear(self):
        """Forget all results, of all instances, and begin to count anew."""
        if self.mapping is not None:
            if self.lock is None:
                self.mapping.clear()
            else:
                with self.lock:
                    self.mapping.clear()
        elif self.results is not None:
            self.results.clear()
        for holder in list(self.holders):
            (<Holder>holder).clear()
        self.hits = self.misses = 0
        self.hits_before = self.misses_before = 0
        hits, misses, _ = self.counts()
        self.hits_before = hits
        self.misses_before = misses

    cdef tuple counts(self):
        """Hits, misses, entries."""
        if self.mapping is not None:
            size = getattr(self.mapping, "currsize", None)
            return self.hits, self.misses, len(self.mapping) if size is None else size
        if self.mapping_of is not None:
            return self.hits, self.misses, 0
        if self.results is not None:
            stats = self.results.stats
            return stats["hits"] - self.hits_before, stats["misses"] - self.misses_before, stats["entries"]
        sums = [0, 0, 0]
        for holder in list(self.holders):
            for at, count in enumerate((<Holder>holder).counts()):
                sums[at] += count
        return tuple(sums)

    @property
    def cache(self):
        """Where the results are. None for a method, whose instances have a cache each: ``instance.method.cache``."""
        return self.results if self.mapping is None else self.mapping

    @property
    def cache_lock(self):
        return self.lock

    @property
    def cache_condition(self):
        return self.lock

    def cache_parameters(self):
        """The options, as `functools.lru_cache` tells them, with those that it lacks if they were given.

        Of a coroutine function also ``tasks``, how many of its loads the running event loop has, and ``closed``.
        """
        found = dict(self.parameters)
        if self.is_async:
            found["tasks"] = len(loads_of(self))
            found["closed"] = self.closed
        return found

    def cache_close(self, *, wait=False):
        """Of a coroutine function, to be awaited: end its loads in the running event loop, and refuse later calls.

        Loads that are under way are cancelled, and whoever waits for one gets `asyncio.CancelledError`; with ``wait``
        they are left to end by themselves. Returns when they have ended. Later calls raise `SynthexFastError`, of all
        instances if it is a method. Results stay in ``cache``. Harmless if repeated. TypeError for other functions.

        >>> import asyncio
        >>> from synthex_fast import cached
        >>> @cached
        ... async def answer():
        ...     return 42
        >>> async def main():
        ...     found = await answer()
        ...     await answer.cache_close()
        ...     return found
        >>> asyncio.run(main()), answer.cache_parameters()["closed"]
        (42, True)
        """
        if not self.is_async:
            raise TypeError(f"cache_close() is for coroutine functions, which {self.attribute[8:]}() is not")
        return close_loads(self, want_bool("wait", wait))

    def _close(self):
        self.closed = True

    def cache_info(self):
        """Hits, misses, the most entries and the entries; of a method, those of all instances together."""
        hits, misses, entries = self.counts()
        if self.mapping is not None:
            return info_from((hits, misses, getattr(self.mapping, "maxsize", None), entries))
        like = self.results if self.results is not None or self.make is None else self.make()
        return info_from((hits, misses, None if like is None else like.max_size, entries))

    def _info_of(self, instance):
        cdef Holder holder = self.holder_of(<PyObject*>instance)
        hits, misses, entries = holder.counts()
        return hits, misses, holder.cache.max_size, entries

    def _clear_of(self, instance):
        if self._has_own_caches:
            self.holder_of(<PyObject*>instance).clear()
            return
        mapping = self._cache_of(instance)
        lock = self.lock_for(<PyObject*>instance)
        if mapping is None:
            return
        if lock is None:
            mapping.clear()
        else:
            with lock:
                mapping.clear()

    def _cache_of(self, instance):
        return self.dict_of(<PyObject*>instance) if self.flights is None else self.mapping_for(<PyObject*>instance)

    @property
    def _has_own_caches(self):
        """Whether each instance has a cache."""
        return self.flights is None and self.results is None

    @property
    def stale_served(self):
        """How many calls got a stale value because making a new one failed."""
        return self.stale

    # ---- as a descriptor ----

    def __set_name__(self, owner, name):
        # Only for what the class body defines: a function of a module may be an attribute of a class as well.
        qualname = getattr(self.function, "__qualname__", "")
        if self.is_method or qualname == f"{owner.__qualname__}.{self.function.__name__}":
            self.attribute = f"_cached_{owner.__qualname__}.{name}"
            if self.make is not None and self.key_function is None:
                self.is_method = True
                self.plain = False
                self.results = None

    def __get__(self, instance, owner):
        cdef BoundCached bound
        if instance is None:
            return self
        if not self.is_method:
            return PyMethod_New(self, instance)
        bound = BoundCached.__new__(BoundCached)
        bound.cached = self
        bound.instance = instance
        return bound

    def __reduce__(self):
        # By name, as functions are.
        return self.__qualname__

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return f"<cached {self.function!r}>"


cdef bint drop(object mapping, object lock, object key) except -1:
    if mapping is None:
        return False
    try:
        if lock is None:
            del mapping[key]
        else:
            with lock:
                del mapping[key]
    except KeyError:
        return False
    return True


cdef AgedCall aged_call_of(Cached cached, TTLDict cache, object key, Call call):
    cdef AgedCall found = AgedCall.__new__(AgedCall)
    found.cached = cached
    found.cache = cache
    found.key = key
    found.call = call
    return found


cdef object opened(object value):
    """What a caller gets for what stands in the cache."""
    if type(value) is not Aged:
        return value
    if not (<Aged>value).failed:
        return (<Aged>value).value
    error = (<Aged>value).value
    try:
        # A new one for each caller, since raising it records where.
        error = copy(error)
    except Exception:
        pass
    raise error


@cython.final
@cython.auto_pickle(False)
cdef class BoundCached:
    """A cached method of an instance."""
    cdef object __weakref__
    cdef Cached cached
    cdef object instance

    def __call__(self, /, *args, **kwargs):
        return self.cached(self.instance, *args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.cached, name)

    @property
    def __self__(self):
        return self.instance

    @property
    def __func__(self):
        return self.cached

    @property
    def __wrapped__(self):
        return self.cached.function.__get__(self.instance)

    @property
    def __doc__(self):
        return self.cached.__doc__

    @property
    def cache(self):
        """The instance's cache."""
        return self.cached._cache_of(self.instance)

    def cache_key(self, /, *args, **kwargs):
        """The key under which the result of such a call is kept."""
        return self.cached.cache_key(self.instance, *args, **kwargs)

    def invalidate(self, /, *args, **kwargs):
        """Forget the result of such a call. Returns whether there was one."""
        return self.cached.invalidate(self.instance, *args, **kwargs)

    cache_invalidate = invalidate

    def cache_contains(self, /, *args, **kwargs):
        """Whether there is a result of such a call."""
        return self.cached.cache_contains(self.instance, *args, **kwargs)

    def cache_clear(self):
        """Forget the instance's results; all of them if instances share a cache."""
        self.cached._clear_of(self.instance)

    @property
    def cache_lock(self):
        """The instance's lock, or None."""
        return self.cached.lock_for(<PyObject*>self.instance)

    @property
    def cache_condition(self):
        return self.cached.lock_for(<PyObject*>self.instance)

    def cache_info(self):
        """Hits, misses and entries of the instance's cache."""
        if not self.cached._has_own_caches:
            return self.cached.cache_info()
        return info_from(self.cached._info_of(self.instance))

    def __eq__(self, other):
        if type(other) is not BoundCached:
            return NotImplemented
        return self.cached is (<BoundCached>other).cached and self.instance is (<BoundCached>other).instance

    def __hash__(self):
        return hash(self.cached) ^ <Py_hash_t>(<size_t><PyObject*>self.instance >> 4)

    def __reduce__(self):
        return getattr, (self.instance, self.cached.__name__)

    def __repr__(self):
        return f"<cached {self.cached.function!r} of {object.__repr__(self.instance)}>"


cdef extern from *:
    PyObject** items_of "PySequence_Fast_ITEMS"(object) noexcept


# ---- the entry for calls ----

cdef PyObject* call_cached(PyObject* o, PyObject* const* args, size_t flags, PyObject* names) except NULL:
    cdef PyObject* value
    cdef Py_ssize_t count = PyVectorcall_NARGS(flags)
    cdef bint missed = False
    if likely(count == 1 and (<Cached>o).plain and names == NULL) and likely(is_simple_key(args[0])):
        value = (<Cached>o).results.lookup(args[0])
        if likely(value != NULL):
            return value
        missed = True
    found = (<Cached>o).call_slowly(<PyObject**>args, count, names, missed)
    Py_INCREF(<PyObject*>found)
    return <PyObject*>found


# What `synthex_fast.caching` provides.
cdef object run_async = None
cdef object run_flight = None
cdef object answered = None
cdef object in_background = None
cdef object info_from = None
cdef object close_loads = None
cdef object loads_of = None


def life_from(name, value):
    """A time as a number of seconds, as a TTLDict takes it."""
    return lifetime(name, value)


def provide(run, flight, answer, background, info, close, loads):
    """Set the functions in Python that objects of this module call. Called once, by `synthex_fast.caching`."""
    global run_async, run_flight, answered, in_background, info_from, close_loads, loads_of
    run_async, run_flight, answered, in_background, info_from = run, flight, answer, background, info
    close_loads, loads_of = close, loads


cdef Cached _probe = Cached.__new__(Cached)
make_vectorcall(<PyTypeObject*>Cached, <char*>&_probe.vectorcall - <char*><PyObject*>_probe)
