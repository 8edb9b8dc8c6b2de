# cython: language_level=3, freethreading_compatible=True
"""The C-level freelist as a class, for `test_freelist.py`.

It cimports from both modules that export the freelist: what one pushes, the other pops.
"""

from libc.stdint cimport int64_t
from synthex_fast._pool cimport (
    COUNTS, Freelist, freelist_delete, freelist_new, freelist_pop, freelist_push, freelist_resize,
    freelist_stats, freelist_trim,
)
from synthex_fast._freelist cimport (
    Freelist as OwnFreelist, freelist_count, freelist_pop as own_pop, freelist_push as own_push,
)
from synthex_fast._pool cimport MADE, freelist_note

gone = []

cdef void release_block(void* block) noexcept:
    gone.append(<size_t>block)

cdef class Blocks:
    """Numbers stand for blocks: a freelist never reads a block."""
    cdef Freelist* idle

    def __cinit__(self, Py_ssize_t limit, bint pinned=False):
        self.idle = freelist_new(limit, release_block, pinned, False)

    def __dealloc__(self):
        if self.idle != NULL:
            freelist_delete(self.idle)

    def push(self, size_t block):
        return freelist_push(self.idle, <void*>block)

    def pop(self):
        return <size_t>freelist_pop(self.idle)

    def push_own(self, size_t block):
        cdef OwnFreelist* same = self.idle
        return own_push(same, <void*>block)

    def pop_own(self):
        return <size_t>own_pop(self.idle)

    def count_made(self):
        """Once by each of the function's two names."""
        freelist_count(self.idle, MADE, 1)
        freelist_note(self.idle, MADE, 1)

    def resize(self, Py_ssize_t limit):
        return freelist_resize(self.idle, limit)

    def trim(self, Py_ssize_t number):
        return freelist_trim(self.idle, number)

    def stats(self):
        cdef int64_t counts[6]
        idle = freelist_stats(self.idle, counts)
        names = ("reused", "missed", "released", "discarded", "aliased", "made")
        return dict(zip(names, [counts[i] for i in range(<int>COUNTS)]), idle=idle)

    def exchange(self, Py_ssize_t times):
        """Pop and push, without a Python call in the loop."""
        cdef Py_ssize_t i
        cdef void* block
        for i in range(times):
            block = freelist_pop(self.idle)
            if block == NULL:
                return i
            freelist_push(self.idle, block)
        return times
