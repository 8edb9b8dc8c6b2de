"""The counting allocator's state: the allocators that it wraps, and what has been requested of them."""

from libc.stdint cimport uint64_t


cdef extern from "Python.h":
    ctypedef enum PyMemAllocatorDomain:
        PYMEM_DOMAIN_RAW
        PYMEM_DOMAIN_MEM
        PYMEM_DOMAIN_OBJ

    ctypedef struct PyMemAllocatorEx:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept nogil
        void *(*calloc)(void *ctx, size_t count, size_t size) noexcept nogil
        void *(*realloc)(void *ctx, void *block, size_t size) noexcept nogil
        void (*free)(void *ctx, void *block) noexcept nogil

    void PyMem_GetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx *allocator) noexcept nogil
    void PyMem_SetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx *allocator) noexcept nogil
    unsigned long PyThread_get_thread_ident() noexcept nogil


cdef PyMemAllocatorEx original[3]       # by domain: raw, mem, obj
cdef uint64_t requested                 # bytes
cdef uint64_t blocks
cdef bint inside                        # the counted thread is in an allocator already, or counting pauses
cdef unsigned long counted_thread
cdef bint installed
