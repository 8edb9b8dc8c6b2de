"""Random numbers for Cython code that needs many and no secrets: jitter, and which entry goes."""

from libc.stdint cimport uint64_t


cdef inline double draw(uint64_t* state) noexcept nogil:
    """A number from 0 up to 1 (xorshift64*; Vigna, 2016). The state is any number but 0.

    Threads that change one state at once draw the same, which does no harm.
    """
    cdef uint64_t drawn = state[0]
    drawn ^= drawn >> 12
    drawn ^= drawn << 25
    drawn ^= drawn >> 27
    state[0] = drawn
    return <double>((drawn * <uint64_t>0x2545F4914F6CDD1D) >> 11) / 9007199254740992.0
