"""The freelist, as a C struct with plain functions, and the pool of Python objects that stands on it."""

from libc.stdint cimport int64_t

from cpython.object cimport PyObject


ctypedef void (*free_block)(void*) noexcept


cdef struct Freelist:
    void** blocks             # a stack: the block released last is the warmest
    Py_ssize_t count          # blocks in it
    Py_ssize_t room           # blocks that it has room for before it must grow
    Py_ssize_t limit          # blocks that it may keep
    free_block let_go         # what becomes of a block that is not kept
    int64_t reused            # pops that gave a block
    int64_t missed            # pops that found none
    int64_t released          # pushes that kept the block
    int64_t discarded         # pushes that did not


cdef Freelist* freelist_new(Py_ssize_t limit, free_block let_go) except NULL
cdef void freelist_delete(Freelist* self) noexcept
cdef bint freelist_grow(Freelist* self) noexcept nogil


cdef inline void* freelist_pop(Freelist* self) noexcept nogil:
    """The block released last, or NULL."""
    if self.count == 0:
        self.missed += 1
        return NULL
    self.count -= 1
    self.reused += 1
    return self.blocks[self.count]


cdef inline bint freelist_push(Freelist* self, void* block) noexcept nogil:
    """Keep the block and return True, or return False: then it is still the caller's."""
    if self.count == self.room and not freelist_grow(self):
        self.discarded += 1
        return False
    self.blocks[self.count] = block
    self.count += 1
    self.released += 1
    return True
