"""Single flight: calls that miss together wait for one load instead of each making the value.

A `Load` is one call of a factory. The cache that starts it keeps it in a list of its own while it runs, so that other
calls find it; that list, and which keys are equal, is the cache's business. This module knows who runs a load and who
waits for it, across all caches of the process.

A thread that waits does so on a lock of its own, which is made by whatever ``_thread.allocate_lock`` is at that time.
Once gevent has patched it, the lock is gevent's and the other greenlets go on, the one that runs the load among them.
For the same reason whoever runs a load is known by ``_thread.get_ident()``, which then tells greenlets apart.

A load whose end depends on the caller can't be waited for. Each thread waits for one load at most, and each load is
run by one thread. So the search follows one chain: the load, its owner, the load that this one waits for, and so on. If
it comes back to the caller, the caller gets `LoadCycleError`. The search and the entry of the caller into the chain are
one step under `guard`, so of several threads that close a cycle the last one notices.

After a fork, the threads that ran loads in the parent do not exist, apart from the one that forked: `abandoned`.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from cpython.object cimport PyObject

from synthex_fast._forks cimport forks_seen, surviving_thread
from synthex_fast._python cimport Py_DECREF, Py_INCREF, PyThread_get_thread_ident, owned
from synthex_fast._sync cimport Lock, lock, unlock

import _thread

from synthex_fast.errors import LoadCycleError

__all__ = ["Aged", "Load"]


# Guards `waiters`, and of every load `ended` and `waiting`. Nothing but pointers is changed while it is held.
cdef Lock guard
# The first of all threads that wait.
cdef PyObject* waiters = NULL


@cython.final
@cython.auto_pickle(False)
cdef class Aged:
    """A cached value with times of its own."""


@cython.final
@cython.auto_pickle(False)
cdef class Load:
    """A call of a factory that is under way or has ended."""

    def is_forgotten(self):
        """Whether the key was deleted since the load began."""
        return self.forgotten


@cython.final
cdef class Waiter:
    """A thread that waits for a load. Whoever unlinks it under `guard` releases the reference that the links have."""
    cdef uint64_t who
    cdef uint32_t generation
    cdef Load load
    cdef object gate              # a lock, held until the load has ended
    cdef bint linked
    cdef PyObject* next_of_load
    cdef PyObject* before         # neighbours among all waiters
    cdef PyObject* after


cdef inline uint64_t caller() except? 0:
    return <uint64_t>_thread.get_ident()


cdef Load new_load(object key, uint32_t hash):
    cdef Load load = Load.__new__(Load)
    load.key = key
    load.hash = hash
    load.owner = caller()
    load.thread = PyThread_get_thread_ident()
    load.generation = forks_seen
    return load


cdef bint abandoned(Load load) noexcept:
    return load.generation != forks_seen and load.thread != surviving_thread


cdef void link(Waiter waiter, Load load) noexcept:
    global waiters
    waiter.next_of_load = load.waiting
    load.waiting = <PyObject*>waiter
    waiter.before = NULL
    waiter.after = waiters
    if waiters != NULL:
        (<Waiter>waiters).before = <PyObject*>waiter
    waiters = <PyObject*>waiter
    waiter.linked = True


cdef void unlink(Waiter waiter) noexcept:
    """Take it out of the list of all; its load's list is the caller's."""
    global waiters
    if waiter.before == NULL:
        waiters = waiter.after
    else:
        (<Waiter>waiter.before).after = waiter.after
    if waiter.after != NULL:
        (<Waiter>waiter.after).before = waiter.before
    waiter.linked = False


cdef PyObject* waiter_of(uint64_t who) noexcept:
    cdef PyObject* at = waiters
    while at != NULL:
        # One from before a fork may be of a thread that does not exist, and whose number another one has.
        if (<Waiter>at).who == who and (<Waiter>at).generation == forks_seen:
            return at
        at = (<Waiter>at).after
    return NULL


cdef bint depends_on(PyObject* load, uint64_t who) noexcept:
    """Whether the load can't end before that thread goes on."""
    cdef PyObject* waiter
    while True:
        if (<Load>load).owner == who:
            return True
        waiter = waiter_of((<Load>load).owner)
        if waiter == NULL:
            return False
        load = <PyObject*>(<Waiter>waiter).load


cdef int wait_for(Load load) except -1:
    cdef Waiter waiter = Waiter.__new__(Waiter)
    cdef PyObject** at
    cdef bint cycle = False, ended, mine = False
    waiter.who = caller()
    waiter.load = load
    waiter.generation = forks_seen
    try:
        # Looked up here: once gevent has patched it, waiting lets other greenlets run.
        waiter.gate = _thread.allocate_lock()
    except RuntimeError:
        # Python 3.11 and 3.12 raise this ("can't allocate lock") if allocation fails.
        raise MemoryError() from None
    waiter.gate.acquire()
    lock(&guard)
    ended = load.ended
    if not ended:
        cycle = depends_on(<PyObject*>load, waiter.who)
        if not cycle:
            Py_INCREF(<PyObject*>waiter)
            link(waiter, load)
    unlock(&guard)
    if ended:
        return 0
    if cycle:
        raise LoadCycleError(
            f"the value of {shown(load.key)} is being made by a factory that waits for this call: a factory must not"
            " ask for its own key, nor two for each other's"
        )
    try:
        waiter.gate.acquire()
    finally:
        # Still there if the wait was interrupted.
        lock(&guard)
        if waiter.linked:
            mine = True
            at = &load.waiting
            while at[0] != <PyObject*>waiter:
                at = &(<Waiter>at[0]).next_of_load
            at[0] = waiter.next_of_load
            unlink(waiter)
        unlock(&guard)
        if mine:
            Py_DECREF(<PyObject*>waiter)
    return 0


cdef str shown(object key):
    try:
        text = repr(key)
    except Exception:
        return "a key whose repr fails"
    return text if len(text) <= 80 else text[:80] + "..."


cdef int end(Load load) except -1:
    cdef PyObject* waiting
    cdef PyObject* at
    lock(&guard)
    load.ended = True
    waiting = load.waiting
    load.waiting = NULL
    at = waiting
    while at != NULL:
        unlink(<Waiter>at)
        at = (<Waiter>at).next_of_load
    unlock(&guard)
    while waiting != NULL:
        at = (<Waiter>waiting).next_of_load
        waiter = <Waiter>owned(waiting)
        waiting = at
        try:
            waiter.gate.release()
        except Exception:
            # Not ours to report, and the others are to be woken all the same.
            pass
    return 0


cdef int raise_error_of(Load load) except -1:
    if load.error is not None:
        # Where it was raised first: otherwise each thread that raises it would add to what the others show.
        raise load.error.with_traceback(load.traceback)
    return 0
