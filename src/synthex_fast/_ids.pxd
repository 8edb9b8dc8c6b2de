"""Identifiers for Cython code: `new_id` returns a new version-4 UUID as text."""


cdef str new_id()
