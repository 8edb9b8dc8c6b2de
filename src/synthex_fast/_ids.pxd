"""Identifiers for Cython code: `new_id` returns a new version-4 UUID as text.

`keyed_id` returns the one that belongs to a number under a key of 16 secret bytes. Records number themselves:
`take_serial` gives out a serial number for a few instructions, and `id_for` makes the identifier that belongs to it,
also in a process forked since.
"""

from libc.stdint cimport uint32_t, uint64_t

from synthex_fast._forks cimport forks_seen
from synthex_fast._sync cimport unlikely


cdef extern from *:
    """
    #ifndef SYNTHEX_SERIALS
    #define SYNTHEX_SERIALS
    /* Serial numbers to give out, as long as the fork count is `forks`. Each module that cimports this file has some of
       its own, and on the free-threaded build each thread has, so that constructions don't contend for one counter. */
    typedef struct {
        uint64_t next, end;
        uint32_t forks;
    } synthex_serials;
    #ifdef Py_GIL_DISABLED
      static SYNTHEX_THREAD_LOCAL synthex_serials synthex_serials_left;
    #else
      static synthex_serials synthex_serials_left;
    #endif
    static inline synthex_serials *synthex_serials_here(void) { return &synthex_serials_left; }
    #endif
    """
    ctypedef struct Serials "synthex_serials":
        uint64_t next
        uint64_t end
        uint32_t forks
    Serials* serials_here "synthex_serials_here"() noexcept nogil


cdef str new_id()
cdef str keyed_id(const uint64_t* key, uint64_t number)
cdef str id_for(uint64_t serial)
# The same as version 7, for a record made that many milliseconds after the epoch.
cdef str timed_id_for(uint64_t serial, uint64_t milliseconds)
cdef int refill_serials(Serials* left) except -1


cdef inline int want_serial() except -1:
    """Make sure that this thread has a serial number for `take_serial`."""
    cdef Serials* left = serials_here()
    if unlikely(left.next == left.end or left.forks != forks_seen):
        refill_serials(left)
    return 0


cdef inline uint64_t take_serial() noexcept:
    cdef Serials* left = serials_here()
    cdef uint64_t serial = left.next
    left.next = serial + 1
    return serial
