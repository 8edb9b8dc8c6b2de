"""What a field accepts (`Rule`), and the base class of all records, for Cython code that cimports them.

A record's own fields are slots, which C code reads through their offsets; ``_record.pyx`` describes the layout.
"""


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
