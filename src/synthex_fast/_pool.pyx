"""The freelist and `ObjectPool` on it."""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc


cdef Freelist* freelist_new(Py_ssize_t limit, free_block let_go) except NULL:
    cdef Freelist* self = <Freelist*>PyMem_RawCalloc(1, sizeof(Freelist))
    if self == NULL:
        raise MemoryError()
    self.limit = limit
    self.let_go = let_go
    return self


cdef void freelist_delete(Freelist* self) noexcept:
    while self.count:
        self.count -= 1
        self.let_go(self.blocks[self.count])
    PyMem_RawFree(self.blocks)
    PyMem_RawFree(self)


cdef bint freelist_grow(Freelist* self) noexcept nogil:
    cdef Py_ssize_t room = min(self.limit, max(<Py_ssize_t>16, self.room * 2))
    cdef void* blocks
    if room <= self.room:
        return False
    blocks = PyMem_RawRealloc(self.blocks, <size_t>room * sizeof(void*))
    if blocks == NULL:
        return False
    self.blocks = <void**>blocks
    self.room = room
    return True
