"""Loads under way and the threads that wait for them, for Cython code; described in ``_loads.pyx``."""

from libc.stdint cimport uint32_t, uint64_t

from cpython.object cimport PyObject


cdef class Aged:
    """A cached value with times of its own; a load whose result this is says how long it is kept."""
    cdef object value             # or an exception that is kept
    cdef bint failed              # it is an exception
    cdef double refresh_at        # from then on it is made anew in the background
    cdef double fresh_until       # from then on it is only for when making it anew fails
    cdef double life              # seconds that the cache keeps it


cdef class Load:
    cdef object key
    cdef uint32_t hash            # the key's, as the dict mixes it
    # Guarded by the lock of the dict that it belongs to.
    cdef PyObject* before         # neighbours in the dict's list, borrowed
    cdef PyObject* after
    cdef bint listed
    cdef bint forgotten           # the key was deleted meanwhile, so the result is not stored
    cdef bint unsaved             # the result is never stored here
    cdef Aged replaces            # a stored value that the result is to replace; None: there was none
    # Set before the load is listed.
    cdef uint64_t owner           # the thread that runs it, or the greenlet
    cdef unsigned long thread     # the system's thread
    cdef uint32_t generation      # `forks_seen` at its start
    # Written before it has ended, and read after that.
    cdef object value
    cdef object error             # what the factory raised, for those who wait as well; or None
    cdef object traceback
    cdef bint interrupted         # ended by what only its owner is to see, such as KeyboardInterrupt: others try again
    # Guarded by the lock in `_loads.pyx`.
    cdef bint ended
    cdef PyObject* waiting        # the first of its `Waiter`s; each has a reference


cdef Load new_load(object key, uint32_t hash)
# Whether no thread of this process runs the load any more, because the process was forked meanwhile.
cdef bint abandoned(Load load) noexcept
# Wait until the load has ended; LoadCycleError if it can't end before the caller goes on.
cdef int wait_for(Load load) except -1
# The load has ended: wake those who wait.
cdef int end(Load load) except -1
# A load's outcome, for those who have waited: raises its error if it has one.
cdef int raise_error_of(Load load) except -1
