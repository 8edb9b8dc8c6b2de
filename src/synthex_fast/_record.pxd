"""What a field accepts (`Rule`), and the base class of all records, for Cython code that cimports them.

A record's own fields are slots, which C code reads through their offsets; ``_record.pyx`` describes the layout. What is
in a slot may be NULL and of any type, since member descriptors don't check what they store. On the free-threaded build
a reader needs the record's critical section.
"""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uintptr_t


cdef inline PyObject** slot_at(PyObject* op, Py_ssize_t offset) noexcept:
    return <PyObject**>(<char*>op + offset)


cdef inline bint is_number(PyObject* word) noexcept:
    """Whether a slot holds a number in place of a reference."""
    return <uintptr_t>word & 1


cdef inline int64_t clock_in(PyObject* op, Py_ssize_t offset) noexcept:
    """Microseconds since the epoch."""
    return <int64_t><uintptr_t>slot_at(op, offset)[0] >> 1


cdef Py_ssize_t field_offset(object cls, str name) except -1
cdef Py_ssize_t clock_offset(object cls, str name) except -1


cdef class Rule:
    cdef readonly int kind
    cdef readonly object cls            # INSTANCE and CHOICE: the class
    cdef readonly tuple options         # LITERAL: the values; UNION: the rules
    cdef readonly bint optional
    cdef readonly object least          # length, or None
    cdef readonly object most
    cdef readonly object low            # of numbers and all else that has an order, or None
    cdef readonly object high
    cdef readonly bint above            # the lower bound itself is excluded
    cdef readonly bint below
    cdef readonly object pattern        # a compiled pattern, or None
    cdef readonly tuple choices         # or None
    cdef readonly tuple calls
    cdef dict members
    cdef tuple members_in_order         # of a field that holds one of some texts, once it was read
    cdef str text                       # what is allowed
    cdef str _described(self)
    cdef str _restricted(self, str text)
    cdef bint fits(self, object value) except -1
    cdef object converted(self, str name, object value)
    cdef object _converted_by_one(self, str name, object value)
    cdef object checked(self, str name, object value)
    cdef bint _chosen(self, object value) except -1
    cdef int _in_range(self, str name, object value) except -1
    cdef int _of_length(self, str name, object value) except -1


cdef class RecordBase:
    pass
