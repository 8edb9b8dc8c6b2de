"""The local tier of `synthex_fast.tiered`: a lookup that is answered from memory costs about as much as a `TTLDict`'s.

`get` looks at two words before it asks its dict: until when the copies may be used, and which process has the
connection that keeps them right. While the connection is up, the first is infinity. If it is lost, the copies are
usable for a while longer and each use is counted; in a forked child they are not, since only the parent hears of
changes. Everything else, such as a key that is not there, is for the subclass's `_miss`, which is written in Python.
"""

cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport uint32_t

from cpython.object cimport PyObject

from synthex_fast._clock cimport monotonic_coarse
from synthex_fast._forks cimport forks_seen
from synthex_fast._python cimport Py_NewRef, owned
from synthex_fast._sync cimport likely, load_double, load_u32, store_double, store_u32
from synthex_fast._loads cimport Load, new_load
from synthex_fast._ttl cimport TTLDict, hash_key, load_value

__all__ = ["AsyncLocalTier", "Copies", "LocalTier"]


cdef extern from *:
    """
    /* Ends an iteration with this value, without making an exception if that can be avoided. */
    static void synthex_stop_with(PyObject *value) {
        /* Given by itself, a tuple would be taken for the exception's arguments, an exception for the exception. */
        if (PyTuple_Check(value) || PyExceptionInstance_Check(value)) {
            PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
            if (stop == NULL) return;
            PyErr_SetObject(PyExc_StopIteration, stop);
            Py_DECREF(stop);
        }
        else PyErr_SetObject(PyExc_StopIteration, value);
    }

    typedef PyObject *(*synthex_next)(PyObject *);
    typedef PySendResult (*synthex_send)(PyObject *, PyObject *, PyObject **);

    /* Cython's own `__next__` would add a traceback to each StopIteration, which costs more than all the rest. */
    static void synthex_make_ready(PyObject *type, synthex_next next, synthex_send send) {
        ((PyTypeObject *)type)->tp_iternext = next;
        ((PyTypeObject *)type)->tp_as_async->am_send = send;
    }
    """
    ctypedef enum PySendResult:
        PYGEN_RETURN
    void stop_with "synthex_stop_with"(PyObject*) noexcept
    void make_ready "synthex_make_ready"(
        object, PyObject* (*)(PyObject*) noexcept, PySendResult (*)(PyObject*, PyObject*, PyObject**) noexcept
    ) noexcept


cdef object MISSING = object()


@cython.final
@cython.auto_pickle(False)
cdef class Make:
    """A load's factory. Calls `make` with what tells whether the load's key was deleted meanwhile."""
    cdef object make
    cdef Load load

    def __call__(self):
        return self.make(self.load.is_forgotten)


cdef inline PyObject* local_lookup(Copies tier, PyObject* key) except? NULL:
    """The copy as a new reference; NULL without an error if there is none that may be used."""
    cdef PyObject* value
    if likely(load_double(&tier.until) == INFINITY and load_u32(&tier.generation) == forks_seen):
        return tier.local.lookup(key)
    if load_u32(&tier.generation) != forks_seen or monotonic_coarse() >= load_double(&tier.until):
        return NULL
    value = tier.local.lookup(key)
    if value != NULL:
        tier.stale_hits += 1
    return value


cdef class Copies:
    """A `TTLDict` of copies, and until when they may be used. The caches of `synthex_fast.tiered` are built on it."""

    def __cinit__(self, *args, **kwargs):
        self.local = TTLDict()
        self.until = -INFINITY

    def _set_up(self, TTLDict local not None):
        self.local = local
        store_u32(&self.generation, forks_seen)

    def _trust(self, double until):
        """Copies may be used until then, on the scale of ``time.monotonic()``; infinity while the connection is up."""
        store_u32(&self.generation, forks_seen)
        store_double(&self.until, until)

    @property
    def _until(self):
        return load_double(&self.until)

    @property
    def _stale_hits(self):
        return self.stale_hits

    @property
    def _forked(self):
        """Whether this process was forked from the one that has the connection."""
        return load_u32(&self.generation) != forks_seen

    def peek(self, key, default=None, /):
        """The local copy if there is one that may be used, else `default`. O(1), and never asks the server."""
        cdef PyObject* value = local_lookup(self, <PyObject*>key)
        return default if value == NULL else owned(value)


cdef class LocalTier(Copies):
    """`Copies` for threads: `get` asks the server where there is no copy."""

    def get(self, key, default=None, /):
        """The value under the key, or `default`. O(1) if there is a local copy, else a round trip to the server.

        `ServerUnavailableError` if there is no usable copy and the server doesn't answer.
        """
        cdef PyObject* value = local_lookup(self, <PyObject*>key)
        if likely(value != NULL):
            return owned(value)
        return self._miss(key, default)

    def __getitem__(self, key):
        cdef PyObject* found = local_lookup(self, <PyObject*>key)
        if likely(found != NULL):
            return owned(found)
        value = self._miss(key, MISSING)
        if value is MISSING:
            raise KeyError(key)
        return value

    def _load_once(self, TTLDict loading, key, make):
        """What ``make(is_forgotten)`` returns, called once for all threads that ask for the key meanwhile."""
        cdef uint32_t hash
        cdef Make factory = Make.__new__(Make)
        hash_key(key, &hash)
        factory.make = make
        factory.load = new_load(key, hash)
        factory.load.unsaved = True
        return load_value(loading, factory.load, factory, INFINITY, "factory()", "")


cdef class AsyncLocalTier(Copies):
    """`LocalTier` for asyncio: what `get` returns is to be awaited, and is there at once if there is a copy."""

    def get(self, key, default=None, /):
        """The value under the key, or `default`, to be awaited. O(1) if there is a local copy, else a round trip.

        `ServerUnavailableError` if there is no usable copy and the server doesn't answer.
        """
        cdef PyObject* value = local_lookup(self, <PyObject*>key)
        cdef Ready ready
        if likely(value != NULL):
            ready = Ready.__new__(Ready)
            ready.value = owned(value)
            return ready
        return self._miss(key, default)


@cython.final
@cython.internal
@cython.freelist(16)
cdef class Ready:
    """Awaiting it gives the value at once, each time."""

    cdef object value

    @cython.always_allow_keywords(False)
    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration(self.value)


cdef PyObject* ready_next(PyObject* self) noexcept:
    stop_with(<PyObject*>(<Ready>self).value)
    return NULL


cdef PySendResult ready_send(PyObject* self, PyObject* sent, PyObject** result) noexcept:
    result[0] = Py_NewRef(<PyObject*>(<Ready>self).value)
    return PYGEN_RETURN


make_ready(Ready, ready_next, ready_send)
