"""`ObjectPool` for Cython code: `pool_acquire` and `pool_release` without a Python call.

The freelist below it is in ``_freelist.pxd``. This file re-exports its names, so that
``from synthex_fast._pool cimport Freelist, freelist_new, freelist_pop, freelist_push`` works as well.
"""

from libc.stdint cimport uint32_t, uint64_t

from cpython.object cimport PyObject

from synthex_fast._sync cimport Lock
from synthex_fast._freelist cimport (  # no-cython-lint
    ALIASED, COUNTS, Count, DISCARDED, Freelist, MADE, MISSED, Magazine, RELEASED, REUSED, Slot, Stack, Thread,
    find_magazine, free_block, freelist_attach, freelist_count, freelist_delete, freelist_make_room, freelist_new,
    freelist_note, freelist_pop, freelist_pop_as, freelist_push, freelist_push_depot, freelist_push_since,
    freelist_refill, freelist_resize, freelist_stats, freelist_trim, stack_pop, thread_variable,
)


cdef struct Bounds:
    Lock lock
    uint32_t fork             # of the process that wrote the rest: `forks_seen`
    Py_ssize_t most           # max_in_use
    Py_ssize_t taken          # slots: of objects in use, of acquisitions under way, of waiters that were granted one
    PyObject** used           # the objects in use: a hash set by address; NULL where free
    size_t room               # places in it: a power of two, or 0
    Py_ssize_t number         # objects in it
    PyObject* first           # the queue of waiters, which owns them
    PyObject* last
    Py_ssize_t waiting


cdef class ObjectPool:
    cdef Freelist* idle
    cdef Bounds* bounds       # NULL: any number of objects may be in use
    cdef object factory
    cdef object reset
    cdef uint64_t seen_type   # of the type last released: its version << 1 | whether it has a `reset`
    cdef double idle_seconds  # max_idle; infinity for None
    cdef readonly object name
    # What is called for each object that the pool gives up, or None. The freelist refers to it as well.
    cdef readonly object on_discard
    cdef bint discards        # an `on_discard` was given
    cdef bint timed           # max_idle is finite
    cdef bint special         # timed or bounded: `pool_acquire` has more to do
    cdef bint calls_reset     # a `reset` was given
    cdef bint scheduled       # the sweeper will visit this pool
    cdef bint ready           # __init__ has succeeded
    cdef bint probed          # the first object has been examined
    cdef bint held_elsewhere  # and something else referred to it as soon as it was made
    cdef bint warned          # the user has been told
    cdef object __weakref__


cdef class Lease:
    cdef ObjectPool pool
    cdef object leased
    cdef double timeout


# `ObjectPool.acquire` and `ObjectPool.release`. The first waits for as long as it takes if the pool is bounded.
cdef object pool_acquire(ObjectPool pool)
cdef bint pool_release(ObjectPool pool, object obj) except -1
