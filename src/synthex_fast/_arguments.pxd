"""Checks of arguments for Cython callers; what each accepts and raises is in ``_arguments.pyx``."""


cdef object integer(str name, object value, object least=*, object most=*, str unit=*, bint optional=*)
cdef Py_ssize_t size(str name, object value, Py_ssize_t least=*, str unit=*) except? -1
cdef double real(str name, object value, str allowed) except? -1.0
cdef double seconds(str name, object value, bint optional=*) except? -1.0
cdef double lifetime(str name, object value, bint optional=*) except? -1.0
cdef double share(str name, object value, double most=*) except? -1.0
cdef object unwrapped(object value)
cdef int check_callable(str name, object value, bint optional=*, bint may_await=*, str instead=*) except -1
cdef int refuse_awaitable(str name, object result, bint kept=*, str instead=*) except -1
cdef int check_text(str name, object value, bint optional=*) except -1
cdef int check_choice(str name, object value, object choices) except -1
