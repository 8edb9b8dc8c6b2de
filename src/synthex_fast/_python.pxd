"""The interpreter's C API, declared once for every module of the package.

Cython's own ``cpython`` headers declare most of these on ``object``, which adds reference counting that the callers
here do themselves. A comment says who owns a reference where the function's name does not. A function declared without
``except`` returns NULL or -1 with the error set: its callers have state to restore before they raise.
"""

from cpython.object cimport PyObject


cdef extern from *:
    """
    #ifndef SYNTHEX_PYTHON
    #define SYNTHEX_PYTHON
    /* Turns a reference that the caller owns into an object of Cython's, without counting it again. */
    #define synthex_owned(o) (o)

    /* A str whose text can be hashed and compared without allocating and without running Python code. */
    static inline int synthex_is_plain_text(PyObject *o) {
    #if PY_VERSION_HEX < 0x030C0000
        return PyUnicode_CheckExact(o) && PyUnicode_IS_READY(o);
    #else
        return PyUnicode_CheckExact(o);
    #endif
    }

    /* Equal texts have equal kinds: the interpreter keeps each str in the narrowest one. Both must be ready. */
    static inline int synthex_same_text(PyObject *a, PyObject *b) {
        Py_ssize_t length = PyUnicode_GET_LENGTH(a);
        return length == PyUnicode_GET_LENGTH(b) && PyUnicode_KIND(a) == PyUnicode_KIND(b)
            && memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b), (size_t)length * (size_t)PyUnicode_KIND(a)) == 0;
    }

    /* PyObject_Hash, without a call if a str has cached its hash. */
    static inline Py_hash_t synthex_hash(PyObject *o) {
        if (PyUnicode_CheckExact(o)) {
    #ifdef Py_GIL_DISABLED
            Py_hash_t hash = _Py_atomic_load_ssize_relaxed(&((PyASCIIObject *)o)->hash);
    #else
            Py_hash_t hash = ((PyASCIIObject *)o)->hash;
    #endif
            if (hash != -1) return hash;
        }
        return PyObject_Hash(o);
    }

    /* Free-threaded build, 3.14 on: references to the object are no longer counted, and the collector frees it. */
    #if defined(Py_GIL_DISABLED) && PY_VERSION_HEX >= 0x030E0000
      #define synthex_defer_refcount(o) ((void)PyUnstable_Object_EnableDeferredRefcount(o))
    #else
      #define synthex_defer_refcount(o) ((void)(o))
    #endif
    #endif
    """
    object owned "synthex_owned"(PyObject*)
    bint is_plain_text "synthex_is_plain_text"(PyObject*) noexcept nogil
    bint same_text "synthex_same_text"(PyObject*, PyObject*) noexcept nogil
    Py_hash_t hash_of "synthex_hash"(PyObject*) except -1
    Py_hash_t text_hash "synthex_hash"(PyObject*) noexcept          # of an exact str, where it cannot fail
    void defer_refcount "synthex_defer_refcount"(PyObject*) noexcept


cdef extern from "Python.h":
    ctypedef struct PyTypeObject

    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef void (*destructor)(PyObject*) noexcept
    ctypedef void (*freefunc)(void*) noexcept
    ctypedef PyObject* (*allocfunc)(PyTypeObject*, Py_ssize_t) noexcept
    ctypedef PyObject* (*newfunc)(PyTypeObject*, PyObject*, PyObject*) except NULL
    ctypedef PyObject* (*vectorcallfunc)(PyObject*, PyObject* const*, size_t, PyObject*) except NULL
    ctypedef PyObject* (*getter)(PyObject*, void*) except NULL
    ctypedef int (*setter)(PyObject*, PyObject*, void*) except -1
    ctypedef PyObject* (*PyCFunction)(PyObject*, PyObject*)

    ctypedef struct PyTypeObject:
        const char* tp_name
        Py_ssize_t tp_basicsize
        Py_ssize_t tp_itemsize
        unsigned long tp_flags
        unsigned int tp_version_tag
        const char* tp_doc
        PyTypeObject* tp_base     # borrowed
        PyObject* tp_dict         # borrowed
        traverseproc tp_traverse
        inquiry tp_clear
        destructor tp_dealloc
        freefunc tp_free
        allocfunc tp_alloc
        newfunc tp_new
        vectorcallfunc tp_vectorcall

    ctypedef struct PyGetSetDef:
        const char* name
        getter get
        setter set
        const char* doc
        void* closure

    ctypedef struct PyMethodDef:
        const char* ml_name
        PyCFunction ml_meth
        int ml_flags
        const char* ml_doc

    enum:
        METH_FASTCALL
        METH_KEYWORDS
        PyBUF_WRITABLE
        PyBUF_FORMAT
        PyBUF_ND
        PyBUF_STRIDES

    const Py_ssize_t PY_SSIZE_T_MAX
    PyObject* Py_None

    # References
    void Py_INCREF(PyObject*) noexcept
    void Py_XINCREF(PyObject*) noexcept
    void Py_DECREF(PyObject*) noexcept
    void Py_XDECREF(PyObject*) noexcept
    PyObject* Py_NewRef(PyObject*) noexcept
    PyObject* Py_XNewRef(PyObject*) noexcept
    PyTypeObject* Py_TYPE(PyObject*) noexcept
    Py_ssize_t Py_REFCNT(PyObject*) noexcept

    # Objects
    int PyObject_RichCompareBool(PyObject*, PyObject*, int) noexcept
    PyObject* PyObject_CallNoArgs(PyObject*) noexcept
    PyObject* PyObject_CallOneArg(PyObject*, PyObject*) noexcept
    PyObject* PyObject_CallFunctionObjArgs(PyObject*, ...) noexcept
    PyObject* PyObject_VectorcallMethod(PyObject*, PyObject**, size_t, PyObject*) noexcept
    PyObject* PyObject_Vectorcall(PyObject*, PyObject* const*, size_t, PyObject*) except NULL
    object PyObject_VectorcallDict(object, PyObject* const*, size_t, dict)
    Py_ssize_t PyVectorcall_NARGS(size_t) noexcept
    bint PyObject_TypeCheck(PyObject*, PyTypeObject*) noexcept
    PyObject* PyObject_Init(PyObject*, PyTypeObject*) noexcept
    void PyObject_ClearWeakRefs(PyObject*) noexcept
    int Py_ReprEnter(object) except -1
    void Py_ReprLeave(object) noexcept

    # The cyclic collector
    void PyObject_GC_Track(PyObject*) noexcept
    void PyObject_GC_UnTrack(PyObject*) noexcept
    bint PyObject_GC_IsTracked(PyObject*) noexcept
    bint PyObject_IS_GC(PyObject*) noexcept
    void PyObject_GC_Del(void*) noexcept

    # Types
    PyObject* _PyType_Lookup(PyTypeObject*, object) noexcept        # borrowed; NULL without an error
    void PyType_Modified(PyTypeObject*) noexcept
    object PyDescr_NewGetSet(PyTypeObject*, PyGetSetDef*)
    object PyDescr_NewClassMethod(PyTypeObject*, PyMethodDef*)

    # Texts, numbers and containers
    bint PyUnicode_CheckExact(PyObject*) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject*) noexcept
    object PyUnicode_FromObject(object)
    void PyUnicode_InternInPlace(PyObject**) noexcept
    bint PyIndex_Check(object)
    object PyNumber_Index(object)
    double PyFloat_AsDouble(object) except? -1.0
    bint PyFloat_CheckExact(PyObject*) noexcept
    double PyFloat_AS_DOUBLE(PyObject*) noexcept
    Py_ssize_t PyTuple_GET_SIZE(PyObject*) noexcept
    PyObject* PyTuple_GET_ITEM(PyObject*, Py_ssize_t) noexcept      # borrowed
    void PyTuple_SET_ITEM(PyObject*, Py_ssize_t, PyObject*) noexcept  # takes the reference over
    bint PyTuple_CheckExact(PyObject*) noexcept
    PyObject* PyList_New(Py_ssize_t) noexcept
    Py_ssize_t PyList_GET_SIZE(PyObject*) noexcept
    void PyList_SET_ITEM(PyObject*, Py_ssize_t, PyObject*) noexcept   # takes the reference over
    bint PyList_CheckExact(PyObject*) noexcept
    PyObject** PySequence_Fast_ITEMS(PyObject*) noexcept            # borrowed; of a list or tuple
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject*) noexcept
    PyObject* PyDict_New() noexcept
    void PyDict_Clear(PyObject*) noexcept
    bint PyDict_Check(PyObject*) noexcept
    bint PyDict_CheckExact(PyObject*) noexcept
    int PyDict_SetItem(PyObject*, object, object) except -1
    int PyDict_SetItemString(PyObject*, const char*, object) except -1
    object PyFrozenSet_New(PyObject*)
    int PySet_Add(PyObject*, PyObject*) except -1

    # Errors and threads
    void PyErr_Fetch(PyObject**, PyObject**, PyObject**) noexcept
    void PyErr_Restore(PyObject*, PyObject*, PyObject*) noexcept
    void PyErr_WriteUnraisable(PyObject*) noexcept
    int PyErr_CheckSignals() except -1
    PyObject* PyThreadState_GetDict() noexcept                      # borrowed; NULL without an error
    unsigned long PyThread_get_thread_ident() noexcept nogil
