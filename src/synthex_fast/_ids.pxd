"""Identifiers for Cython code: `new_id` returns a new version-4 UUID as text.

`keyed_id` returns the one that belongs to a number under a key of 16 secret bytes.
"""

from libc.stdint cimport uint64_t


cdef str new_id()
cdef str keyed_id(const uint64_t* key, uint64_t number)
