"""Identifiers for Cython code: one C call, a fresh text each time."""


cdef str new_id()
