"""`ObjectPool` for Cython code: `pool_acquire` and `pool_release` without a Python call.

The freelist below it is in ``_freelist.pxd``. This file re-exports its names, so that
``from synthex_fast._pool cimport Freelist, freelist_new, freelist_pop, freelist_push`` works as well.
"""

from libc.stdint cimport uint64_t

from synthex_fast._freelist cimport (  # no-cython-lint
    ALIASED, COUNTS, Count, DISCARDED, Freelist, MADE, MISSED, Magazine, RELEASED, REUSED, Slot, Stack, Thread,
    find_magazine, free_block, freelist_attach, freelist_count, freelist_delete, freelist_make_room, freelist_new,
    freelist_note, freelist_pop, freelist_pop_as, freelist_push, freelist_push_depot, freelist_push_since,
    freelist_refill, freelist_resize, freelist_stats, freelist_trim, stack_pop, thread_variable,
)


cdef class ObjectPool:
    cdef Freelist* idle
    cdef object factory
    cdef object reset
    cdef uint64_t seen_type   # of the type last released: its version << 1 | whether it has a `reset`
    cdef double idle_seconds  # max_idle; infinity for None
    cdef readonly object name
    cdef bint timed           # max_idle is finite
    cdef bint calls_reset     # a `reset` was given
    cdef bint scheduled       # the sweeper will visit this pool
    cdef bint ready           # __init__ has succeeded
    cdef object __weakref__


cdef class Lease:
    cdef ObjectPool pool
    cdef object leased


# `ObjectPool.acquire` and `ObjectPool.release`.
cdef object pool_acquire(ObjectPool pool)
cdef bint pool_release(ObjectPool pool, object obj) except -1
