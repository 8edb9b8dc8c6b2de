"""Deep sizes of Python values for Cython callers, with an inline fast path for values that hold no others."""

from libc.stdint cimport int64_t

from cpython.object cimport PyObject


cdef extern from *:
    """
    #ifndef SYNTHEX_SIZEOF
    #define SYNTHEX_SIZEOF
    #include <stddef.h>

    /* Text that the value owns; 0 for what the process shares, -1 for layouts only str.__sizeof__ knows. */
    static inline int64_t synthex_text_bytes(PyObject *o) {
        PyCompactUnicodeObject *text = (PyCompactUnicodeObject *)o;
        int64_t n, bytes;
        if (PyUnicode_CHECK_INTERNED(o) && Py_REFCNT(o) > 1) return 0;
        if (PyUnicode_IS_COMPACT_ASCII(o)) {
            n = (int64_t)PyUnicode_GET_LENGTH(o);
            return n < 2 ? 0 : (int64_t)sizeof(PyASCIIObject) + n + 1;
        }
        if (!((PyASCIIObject *)o)->state.compact) return -1;
        n = (int64_t)PyUnicode_GET_LENGTH(o);
        if (n < 2 && PyUnicode_KIND(o) == PyUnicode_1BYTE_KIND) return 0;
        bytes = (int64_t)sizeof(PyCompactUnicodeObject) + (n + 1) * (int64_t)PyUnicode_KIND(o);
        if (text->utf8 != NULL) bytes += (int64_t)text->utf8_length + 1;
        return bytes;
    }

    /* One digit takes the room of the whole struct, whatever int.__sizeof__ says. */
    static inline int64_t synthex_int_bytes(PyObject *o) {
        size_t bytes;
    #if PY_VERSION_HEX >= 0x030C0000
        bytes = offsetof(PyLongObject, long_value.ob_digit)
              + sizeof(digit) * (((PyLongObject *)o)->long_value.lv_tag >> _PyLong_NON_SIZE_BITS);
    #else
        Py_ssize_t size = Py_SIZE(o);
        if (size >= -1 && size <= 1) {
            Py_ssize_t value = size * (Py_ssize_t)((PyLongObject *)o)->ob_digit[0];
            /* the interpreter's own small ints, which are not immortal there yet */
            if (value >= -5 && value <= 256) return 0;
        }
        bytes = offsetof(PyLongObject, ob_digit) + sizeof(digit) * (size_t)(size < 0 ? -size : size);
    #endif
        return (int64_t)(bytes < sizeof(PyLongObject) ? sizeof(PyLongObject) : bytes);
    }

    #if PY_VERSION_HEX >= 0x030C0000
      #define synthex_immortal(o) _Py_IsImmortal(o)
    #else
      #define synthex_immortal(o) 0
    #endif

    /* Bytes of a value that holds no other; 0 for what belongs to the process; -1 for all the rest. */
    static inline int64_t synthex_leaf_bytes(PyObject *o) {
        PyTypeObject *type = Py_TYPE(o);
        if (type == &PyUnicode_Type) return synthex_text_bytes(o);
        if (type == &PyLong_Type) return synthex_int_bytes(o);
        if (type == &PyFloat_Type) return (int64_t)sizeof(PyFloatObject);
        if (o == Py_None || type == &PyBool_Type) return 0;
        if (type == &PyBytes_Type) {
            /* the empty one and those of one byte are the interpreter's */
            return Py_SIZE(o) < 2 ? 0 : (int64_t)offsetof(PyBytesObject, ob_sval) + 1 + (int64_t)Py_SIZE(o);
        }
        if (type == &PyComplex_Type) return (int64_t)sizeof(PyComplexObject);
        return -1;
    }
    #endif
    """
    bint immortal "synthex_immortal"(PyObject*) noexcept nogil
    int64_t leaf_bytes "synthex_leaf_bytes"(PyObject*) noexcept nogil


cdef enum:
    DEFAULT_BUDGET = 20_000     # objects visited before the rest is estimated


cdef int64_t walk(PyObject* first, PyObject* second, Py_ssize_t budget, bint* exhausted) except -1


cdef inline int64_t deep_sizeof(object value, bint* exhausted) except -1:
    """Bytes that `value` occupies. Sets `*exhausted` to True if part was estimated, otherwise leaves it unchanged."""
    cdef int64_t nbytes = leaf_bytes(<PyObject*>value)
    if nbytes > 0:
        return 0 if immortal(<PyObject*>value) else nbytes
    if nbytes == 0:
        return 0
    return walk(<PyObject*>value, NULL, DEFAULT_BUDGET, exhausted)


cdef inline int64_t pair_sizeof(object key, object value, bint* exhausted) except -1:
    """Bytes that a key and its value occupy together; what both refer to counts once."""
    cdef int64_t of_key = leaf_bytes(<PyObject*>key)
    cdef int64_t of_value = leaf_bytes(<PyObject*>value)
    if of_key < 0 or of_value < 0:
        return walk(<PyObject*>key, <PyObject*>value, DEFAULT_BUDGET, exhausted)
    if immortal(<PyObject*>key):
        of_key = 0
    if immortal(<PyObject*>value) or <PyObject*>key == <PyObject*>value:
        of_value = 0
    return of_key + of_value
