"""Deep sizes of Python values: shared and cyclic parts count once, and the work is bounded.

The walk is depth first on a stack of its own, so nesting can't overflow the C stack. The stack owns
strong references, because a ``__sizeof__`` written in Python may change the value during the walk.
Only objects with more than one reference are remembered as seen: one with a single reference can be reached
only along the path that the walk took.
"""

from libc.stdint cimport INT64_MAX, int64_t, uintptr_t
from libc.string cimport memcpy, memset, strcmp, strrchr

from cpython.buffer cimport PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject

from synthex_fast._arguments cimport size as size_argument
from synthex_fast._python cimport (
    PY_SSIZE_T_MAX, PyBUF_FORMAT, PyDict_Check, PyTypeObject, Py_DECREF, Py_INCREF, Py_TYPE, Py_XDECREF,
)
from synthex_fast._sync cimport unlikely

import io

from synthex_fast import errors

__all__ = ["sizeof", "sizeof_pair"]


cdef extern from *:
    """
    /* Where the interpreter keeps an instance's attributes until its __dict__ is first read. */
    #if PY_VERSION_HEX >= 0x030D0000
      /* In the instance, behind its basic size: capacity, size, embedded, valid, their order, the values. */
      #define synthex_inline_values(o) ((unsigned char *)(o) + Py_TYPE(o)->tp_basicsize)
      static inline Py_ssize_t synthex_attribute_bytes(PyObject *o) {
          Py_ssize_t capacity;
          if (!(Py_TYPE(o)->tp_flags & Py_TPFLAGS_INLINE_VALUES)) return 0;
          capacity = synthex_inline_values(o)[0];
          return ((capacity + 7) & ~(Py_ssize_t)7) + (capacity + 1) * (Py_ssize_t)sizeof(PyObject *);
      }
      /* A __dict__ whose values are still the instance's own. */
      #define synthex_is_attribute_view(dict) \\
          (((PyDictObject *)(dict))->ma_values && ((unsigned char *)((PyDictObject *)(dict))->ma_values)[2])
      #define synthex_split_prefix(dict) 0
    #else
      /* In a block of their own: a prefix as long as its last byte says, then a slot for each key. */
      static inline Py_ssize_t synthex_attribute_bytes(PyObject *o) {
          unsigned char *values, *keys;
          Py_ssize_t *counts;
          if (!(Py_TYPE(o)->tp_flags & Py_TPFLAGS_MANAGED_DICT)) return 0;
      #if PY_VERSION_HEX >= 0x030C0000
          values = ((unsigned char **)o)[-3];
          if (!((uintptr_t)values & 1)) return 0;
          values += 1;
      #else
          values = ((unsigned char **)o)[-4];
      #endif
          keys = (unsigned char *)((PyHeapTypeObject *)Py_TYPE(o))->ht_cached_keys;
          if (values == NULL || keys == NULL) return 0;
          counts = (Py_ssize_t *)(keys + sizeof(Py_ssize_t) + 8);    /* dk_usable, dk_nentries */
          return values[-1] + (counts[0] + counts[1]) * (Py_ssize_t)sizeof(PyObject *);
      }
      #define synthex_is_attribute_view(dict) 0
      static inline Py_ssize_t synthex_split_prefix(PyObject *dict) {
          unsigned char *values = (unsigned char *)((PyDictObject *)dict)->ma_values;
          return values == NULL ? 0 : values[-1];
      }
    #endif

    /* 3.13 traverses such values from the instance and passes over its __dict__; later ones reverse it. */
    #if PY_VERSION_HEX >= 0x030D0000 && PY_VERSION_HEX < 0x030E0000
      #ifdef Py_GIL_DISABLED
        #define SYNTHEX_DICT_WORD -1
      #else
        #define SYNTHEX_DICT_WORD -3
      #endif
      #define synthex_hidden_dict(o) \\
          ((Py_TYPE(o)->tp_flags & Py_TPFLAGS_INLINE_VALUES) ? ((PyObject **)(o))[SYNTHEX_DICT_WORD] : NULL)
      #define SYNTHEX_HIDES_DICTS 1
    #else
      #define synthex_hidden_dict(o) NULL
      #define SYNTHEX_HIDES_DICTS 0
    #endif

    #ifdef Py_GIL_DISABLED
      typedef PyCriticalSection synthex_section;
      #define synthex_section_begin(s, o) PyCriticalSection_Begin((s), (o))
      #define synthex_section_end(s) PyCriticalSection_End(s)
      #define SYNTHEX_LIST_HEADER ((Py_ssize_t)sizeof(Py_ssize_t))
      #define SYNTHEX_PER_THREAD SYNTHEX_THREAD_LOCAL
    #else
      typedef struct { char unused; } synthex_section;
      #define synthex_section_begin(s, o) ((void)(s))
      #define synthex_section_end(s) ((void)(s))
      #define SYNTHEX_LIST_HEADER 0
      #define SYNTHEX_PER_THREAD
    #endif

    /* What the account does with instances, by type. A heap type's version changes whenever one of its
       attributes does, and is never used again; other types don't change and don't die. */
    typedef struct {
        PyTypeObject *type;
        unsigned int version;
        int treatment;
        Py_ssize_t fixed;
        Py_ssize_t each;
        PyCFunction sizer;
    } synthex_type_entry;
    #define SYNTHEX_TYPE_ENTRIES 64
    static SYNTHEX_PER_THREAD synthex_type_entry synthex_types[SYNTHEX_TYPE_ENTRIES];
    static inline synthex_type_entry *synthex_type_slot(PyTypeObject *type) {
        uintptr_t at = (uintptr_t)type >> 4;
        return &synthex_types[(at ^ (at >> 6)) & (SYNTHEX_TYPE_ENTRIES - 1)];
    }

    /* The C function behind a method descriptor of a type that can't go away; NULL for other callables. */
    static inline PyCFunction synthex_plain_method(PyObject *method) {
        PyMethodDescrObject *descr = (PyMethodDescrObject *)method;
        if (!Py_IS_TYPE(method, &PyMethodDescr_Type) || descr->d_method->ml_flags != METH_NOARGS
            || (descr->d_common.d_type->tp_flags & Py_TPFLAGS_HEAPTYPE)) return NULL;
        return descr->d_method->ml_meth;
    }

    /* The value of an int of one digit; -1 for other ints and for all else. */
    static inline int64_t synthex_small_size(PyObject *size) {
        if (!PyLong_CheckExact(size)) return -1;
    #if PY_VERSION_HEX >= 0x030C0000
        return PyUnstable_Long_IsCompact((PyLongObject *)size) ?
            (int64_t)PyUnstable_Long_CompactValue((PyLongObject *)size) : -1;
    #else
        return Py_SIZE(size) == 1 ? (int64_t)((PyLongObject *)size)->ob_digit[0] : -1;
    #endif
    }

    #define synthex_list_items(o) (((PyListObject *)(o))->ob_item)
    #define synthex_list_allocated(o) (((PyListObject *)(o))->allocated)
    #define synthex_tuple_items(o) (((PyTupleObject *)(o))->ob_item)
    #define synthex_set_used(o) (((PySetObject *)(o))->used)
    #define synthex_set_mask(o) (((PySetObject *)(o))->mask)
    #define synthex_set_outside(o) (((PySetObject *)(o))->table != ((PySetObject *)(o))->smalltable)
    /* The key in a slot, NULL where it is empty or deleted: only a deleted one has the hash -1. */
    static inline PyObject *synthex_set_key(PyObject *o, Py_ssize_t i) {
        setentry *slot = &((PySetObject *)o)->table[i];
        return slot->hash == -1 ? NULL : slot->key;
    }
    #define synthex_set_entry sizeof(setentry)

    /* Whether C code made the type under this full name. Its own __name__ is then the last part only, so a Python class
       that was given the full name as its __name__ is told apart. */
    static inline int synthex_has_c_name(PyTypeObject *type, const char *name) {
        return strcmp(type->tp_name, name) == 0
            && (!(type->tp_flags & Py_TPFLAGS_HEAPTYPE)
                || PyUnicode_CompareWithASCIIString(((PyHeapTypeObject *)type)->ht_name, name) != 0);
    }

    /* How an io.StringIO begins. Once something but appending was done to it, it keeps four bytes a character. */
    typedef struct {
        PyObject_HEAD
        Py_UCS4 *buffer;
        Py_ssize_t position;
        Py_ssize_t length;
        size_t room;
        int state;
    } synthex_string_io;
    static inline int64_t synthex_string_io_bytes(PyObject *o) {
        synthex_string_io *text = (synthex_string_io *)o;
        return text->state == 1 ? (int64_t)(text->room * sizeof(Py_UCS4)) : -1;
    }
    """
    ctypedef object (*sizefunc "PyCFunction")(PyObject*, PyObject*)

    ctypedef struct Section "synthex_section":
        pass
    void section_begin "synthex_section_begin"(Section*, PyObject*) noexcept
    void section_end "synthex_section_end"(Section*) noexcept

    ctypedef struct TypeEntry "synthex_type_entry":
        PyTypeObject* type
        unsigned int version
        int treatment
        Py_ssize_t fixed          # bytes of an instance without its items
        Py_ssize_t each           # bytes of an item
        sizefunc sizer         # its __sizeof__ in C, or NULL
    TypeEntry* type_slot "synthex_type_slot"(PyTypeObject*) noexcept

    int64_t small_size "synthex_small_size"(PyObject*) noexcept
    sizefunc plain_method "synthex_plain_method"(PyObject*) noexcept
    Py_ssize_t attribute_bytes "synthex_attribute_bytes"(PyObject*) noexcept
    bint is_attribute_view "synthex_is_attribute_view"(PyObject*) noexcept
    PyObject* hidden_dict "synthex_hidden_dict"(PyObject*) noexcept
    const bint HIDES_DICTS "SYNTHEX_HIDES_DICTS"
    Py_ssize_t split_prefix "synthex_split_prefix"(PyObject*) noexcept
    const Py_ssize_t LIST_HEADER "SYNTHEX_LIST_HEADER"
    PyObject** list_items "synthex_list_items"(PyObject*) noexcept
    Py_ssize_t list_allocated "synthex_list_allocated"(PyObject*) noexcept
    PyObject** tuple_items "synthex_tuple_items"(PyObject*) noexcept
    Py_ssize_t set_used "synthex_set_used"(PyObject*) noexcept
    Py_ssize_t set_mask "synthex_set_mask"(PyObject*) noexcept
    bint set_outside "synthex_set_outside"(PyObject*) noexcept
    PyObject* set_key "synthex_set_key"(PyObject*, Py_ssize_t) noexcept
    const Py_ssize_t SET_ENTRY "synthex_set_entry"
    bint has_c_name "synthex_has_c_name"(PyTypeObject*, const char*) noexcept
    int64_t string_io_bytes "synthex_string_io_bytes"(PyObject*) noexcept

    PyTypeObject PyDict_Type, PyList_Type, PyTuple_Type, PySet_Type, PyFrozenSet_Type
    PyTypeObject PyModule_Type, PyFunction_Type, PyCFunction_Type, PyCode_Type
    PyTypeObject PyMethodDescr_Type, PyClassMethodDescr_Type, PyWrapperDescr_Type
    PyTypeObject PyGetSetDescr_Type, PyMemberDescr_Type
    PyTypeObject PyMethod_Type, PyFrame_Type, PyGen_Type, PyCoro_Type, PyAsyncGen_Type
    PyTypeObject PyTraceBack_Type, PyCapsule_Type, PyContext_Type
    PyTypeObject _PyWeakref_RefType, _PyWeakref_ProxyType, _PyWeakref_CallableProxyType
    const unsigned long Py_TPFLAGS_HEAPTYPE, Py_TPFLAGS_HAVE_GC, Py_TPFLAGS_TYPE_SUBCLASS
    const int PyBUF_ANY_CONTIGUOUS

    Py_ssize_t Py_SIZE(PyObject*) noexcept
    Py_ssize_t Py_REFCNT(PyObject*) noexcept
    bint PyType_IsSubtype(PyTypeObject*, PyTypeObject*) noexcept
    bint PyDict_Next(PyObject*, Py_ssize_t*, PyObject**, PyObject**) noexcept
    Py_ssize_t PyDict_GET_SIZE(PyObject*) noexcept
    bint PyAnySet_Check(PyObject*) noexcept
    PyObject* PyMemoryView_GET_BASE(PyObject*) noexcept
    long long PyLong_AsLongLong(object) except? -1

cdef extern from * nogil:
    """
    #if PY_VERSION_HEX >= 0x030C0000
      #define SYNTHEX_PREHEADER (Py_TPFLAGS_MANAGED_DICT | Py_TPFLAGS_MANAGED_WEAKREF)
    #else
      #define SYNTHEX_PREHEADER Py_TPFLAGS_MANAGED_DICT
    #endif
    """
    const unsigned long PREHEADER "SYNTHEX_PREHEADER"


cdef enum:
    # What count_leaf() returns instead of a size.
    ENTER = -1
    NO_MEMORY = -2

    # What is done with the instances of a type.
    NOTHING = 1               # they belong to the process: nothing is counted
    SHALLOW = 2               # themselves, without what they refer to
    DEEP = 3                  # themselves and everything that they refer to
    ARRAY = 4                 # numpy.ndarray: the same, and the memory that a view keeps alive
    MAPPING = 5               # a dict subclass: its traversal doesn't show the keys
    PLAIN_MAPPING = 6         # the same, with nothing else worth a traversal
    EXTERNAL = 7              # themselves, and memory that neither __sizeof__ nor a traversal shows
    OWN_SIZER = 8             # added to the others: __sizeof__ is looked up and called each time

    LIST = 0
    TUPLE = 1
    DICT = 2
    SET = 3
    REFERENTS = 4

    FRAMES = 24
    REFERENT_SLOTS = 32
    SEEN_SLOTS = 128          # a power of two
    MEAN_BYTES = 64           # assumed of an object until one has been visited

# The total saturates here: only a wrong __sizeof__ can exceed it. The headroom above exceeds any real memory.
cdef int64_t MOST = INT64_MAX - (<int64_t>1 << 60)


cdef struct Frame:
    PyObject* owner           # a strong reference to a container being read, or NULL
    Py_ssize_t at             # position in it; for REFERENTS: where its part of the stack of referents starts
    Py_ssize_t done           # children already counted
    Py_ssize_t expected       # REFERENTS only: all its children
    int64_t before            # the total before its children
    int64_t claimed           # REFERENTS only: bytes that a __sizeof__ written in Python adds to the object itself
    int kind


cdef struct Walk:
    int64_t total
    Py_ssize_t left           # objects that may still be visited
    Py_ssize_t reserve        # objects for the siblings of what was cut short
    Py_ssize_t visited
    Py_ssize_t solitary       # references up to which an object can't be met twice
    bint exhausted
    bint no_memory
    bint cut                  # the collection of referents under way stopped at the budget
    Py_ssize_t leaves         # leaves counted by the collection under way
    PyObject* roots[2]
    PyObject** seen           # open addressing; NULL until something shared is met
    Py_ssize_t seen_count
    Py_ssize_t seen_mask
    Frame* frames
    Py_ssize_t depth
    Py_ssize_t frame_room
    PyObject** referents      # strong references
    Py_ssize_t referent_count
    Py_ssize_t referent_room
    Frame frame_store[FRAMES]
    PyObject* referent_store[REFERENT_SLOTS]
    PyObject* seen_store[SEEN_SLOTS]


cdef object object_sizeof = object.__sizeof__
cdef sizefunc dict_sizer = plain_method(<PyObject*>dict.__sizeof__)
cdef Py_ssize_t gc_header = 0

# Bare names of classes and the modules they come from. What inherits from one is part of the running program.
cdef dict PROGRAM_TYPES = {
    b"Enum": "enum",
    b"Filterer": "logging",
    b"Manager": "logging",
    b"Thread": "threading",
    b"_local": "_thread",
    b"AbstractEventLoop": "asyncio.events",
    b"Executor": "concurrent.futures._base",
    b"BaseProcess": "multiprocessing.process",
    b"BaseContext": "multiprocessing.context",
}


cdef inline Py_ssize_t pre_header(PyTypeObject* type) noexcept:
    """What an allocation has in front of the object: the collector's links, dict and weak references."""
    cdef Py_ssize_t nbytes = 0
    if type.tp_flags & Py_TPFLAGS_HAVE_GC:
        nbytes = gc_header
    if type.tp_flags & PREHEADER:
        nbytes += 2 * sizeof(void*)
    return nbytes


# --- objects met before ---

cdef inline Py_ssize_t seen_slot(Walk* w, PyObject* o) noexcept:
    cdef uintptr_t at = <uintptr_t>o >> 4
    return <Py_ssize_t>((at ^ (at >> 7) ^ (at >> 15)) & <uintptr_t>w.seen_mask)


cdef void remember(Walk* w, PyObject* o) noexcept:
    cdef Py_ssize_t i = seen_slot(w, o)
    while w.seen[i] != NULL:
        if w.seen[i] == o:
            return
        i = (i + 1) & w.seen_mask
    w.seen[i] = o
    w.seen_count += 1


cdef bint grow_seen(Walk* w) noexcept:
    """Make room for more; False if allocation fails."""
    cdef PyObject** old = w.seen
    cdef Py_ssize_t old_slots = w.seen_mask + 1
    cdef Py_ssize_t i
    cdef PyObject** table
    if old == NULL:
        w.seen = w.seen_store
        w.seen_mask = SEEN_SLOTS - 1
        memset(w.seen, 0, sizeof(w.seen_store))
        # A root is counted as a root: anywhere else it counts as met before.
        remember(w, w.roots[0])
        if w.roots[1] != NULL:
            remember(w, w.roots[1])
        return True
    table = <PyObject**>PyMem_Calloc(<size_t>old_slots * 4, sizeof(PyObject*))
    if table == NULL:
        return False
    w.seen = table
    w.seen_mask = old_slots * 4 - 1
    w.seen_count = 0
    for i in range(old_slots):
        if old[i] != NULL:
            remember(w, old[i])
    if old != w.seen_store:
        PyMem_Free(old)
    return True


cdef inline int met_before(Walk* w, PyObject* o) noexcept:
    """1 if the object was met before, otherwise 0, and it is remembered; -1 if allocation fails."""
    cdef Py_ssize_t i
    if unlikely(w.seen_count * 2 >= w.seen_mask) and not grow_seen(w):
        w.no_memory = True
        return -1
    i = seen_slot(w, o)
    while w.seen[i] != NULL:
        if w.seen[i] == o:
            return 1
        i = (i + 1) & w.seen_mask
    w.seen[i] = o
    w.seen_count += 1
    return 0


cdef inline int64_t count_leaf(Walk* w, PyObject* o) noexcept:
    """Bytes of a leaf, 0 for what was met before or isn't the value's own; ENTER; NO_MEMORY."""
    cdef int64_t nbytes = leaf_bytes(o)
    cdef int met
    if nbytes == 0:
        return 0
    if Py_REFCNT(o) > w.solitary:
        if immortal(o):
            return 0
        met = met_before(w, o)
        if met:
            return 0 if met > 0 else NO_MEMORY
    return nbytes


# --- the stacks ---

cdef int push_frame(Walk* w, PyObject* owner, int kind, Py_ssize_t at, Py_ssize_t expected) except -1:
    """Takes over the reference to `owner`, also when it fails."""
    cdef Frame* frame
    cdef void* room
    if w.depth == w.frame_room:
        if w.frames == w.frame_store:
            room = PyMem_Malloc(<size_t>w.frame_room * 4 * sizeof(Frame))
            if room != NULL:
                memcpy(room, w.frames, <size_t>w.depth * sizeof(Frame))
        else:
            room = PyMem_Realloc(w.frames, <size_t>w.frame_room * 4 * sizeof(Frame))
        if room == NULL:
            Py_XDECREF(owner)
            raise MemoryError()
        w.frames = <Frame*>room
        w.frame_room *= 4
    frame = &w.frames[w.depth]
    frame.owner = owner
    frame.at = at
    frame.done = 0
    frame.expected = expected
    frame.before = w.total
    frame.claimed = 0
    frame.kind = kind
    w.depth += 1
    return 0


cdef void pop_frame(Walk* w) noexcept:
    cdef Frame* frame = &w.frames[w.depth - 1]
    cdef PyObject* owner = frame.owner
    cdef Py_ssize_t start = frame.at if frame.kind == REFERENTS else w.referent_count
    w.depth -= 1
    while w.referent_count > start:
        w.referent_count -= 1
        Py_DECREF(w.referents[w.referent_count])
    Py_XDECREF(owner)


cdef bint hold_referent(Walk* w, PyObject* o) noexcept:
    """Adds a reference of its own; False if allocation fails."""
    cdef void* room
    if w.referent_count == w.referent_room:
        if w.referents == w.referent_store:
            room = PyMem_Malloc(<size_t>w.referent_room * 4 * sizeof(PyObject*))
            if room != NULL:
                memcpy(room, w.referents, <size_t>w.referent_count * sizeof(PyObject*))
        else:
            room = PyMem_Realloc(w.referents, <size_t>w.referent_room * 4 * sizeof(PyObject*))
        if room == NULL:
            w.no_memory = True
            return False
        w.referents = <PyObject**>room
        w.referent_room *= 4
    Py_INCREF(o)
    w.referents[w.referent_count] = o
    w.referent_count += 1
    return True


# --- what a type's instances are ---

cdef bint is_program_type(object cls) except -1:
    cdef const char* name = (<PyTypeObject*><PyObject*>cls).tp_name
    cdef const char* dot = strrchr(name, c".")
    module = PROGRAM_TYPES.get(<bytes>(name if dot == NULL else dot + 1))
    if module is None:
        return False
    try:
        return cls.__module__ == module
    except MemoryError:
        raise
    except Exception:
        # A metaclass may raise anything; such a class is not one of those listed.
        return False


cdef bint is_numpy_array(PyTypeObject* type) noexcept:
    while type != NULL:
        if not type.tp_flags & Py_TPFLAGS_HEAPTYPE and strcmp(type.tp_name, "numpy.ndarray") == 0:
            return True
        type = type.tp_base
    return False


cdef PyTypeObject* base_named(PyTypeObject* type, const char* name) noexcept:
    """The type, or the base of it, that C code made under that name; NULL if there is none. Imports nothing."""
    while type != NULL and not has_c_name(type, name):
        type = type.tp_base
    return type


cdef inline bint is_named(PyTypeObject* type, const char* name) noexcept:
    return base_named(type, name) != NULL


cdef int64_t external_bytes(PyObject* o) except -1:
    """Memory of an io.StringIO, an mmap or a pyarrow buffer that lies outside of the object itself."""
    cdef object value = <object>o
    cdef PyTypeObject* base
    cdef int64_t nbytes
    # The methods of the type made in C: those of a subclass may return or raise anything.
    try:
        if is_named(Py_TYPE(o), "_io.StringIO"):
            nbytes = string_io_bytes(o)
            if nbytes < 0:
                # Until something other than an append happens, it holds an ordinary text.
                text = io.StringIO.getvalue(value)
                nbytes = max(leaf_bytes(<PyObject*>text), <int64_t>0)
            return nbytes
        base = base_named(Py_TYPE(o), "mmap.mmap")
        if base != NULL:
            return checked_size(o, (<object>(<PyObject*>base)).__len__(value))
        base = base_named(Py_TYPE(o), "pyarrow.lib.Buffer")
        return checked_size(o, (<object>(<PyObject*>base)).size.__get__(value))
    except ValueError:
        # It has been closed.
        return 0


cdef int treatment_of(PyTypeObject* type) except -1:
    if (
        type.tp_flags & Py_TPFLAGS_TYPE_SUBCLASS
        or type == Py_TYPE(<PyObject*>Ellipsis)
        or type == Py_TYPE(<PyObject*>NotImplemented)
        or type == &PyFunction_Type
        or type == &PyCode_Type
        or type == &PyMethodDescr_Type
        or type == &PyClassMethodDescr_Type
        or type == &PyWrapperDescr_Type
        or type == &PyGetSetDescr_Type
        or type == &PyMemberDescr_Type
        or PyType_IsSubtype(type, &PyModule_Type)
        or PyType_IsSubtype(type, &PyCFunction_Type)
    ):
        return NOTHING
    if (
        type == &PyMethod_Type
        or type == &PyFrame_Type
        or type == &PyGen_Type
        or type == &PyCoro_Type
        or type == &PyAsyncGen_Type
        or type == &PyTraceBack_Type
        or type == &PyCapsule_Type
        or type == &PyContext_Type
        or type == &_PyWeakref_ProxyType
        or type == &_PyWeakref_CallableProxyType
        or PyType_IsSubtype(type, &_PyWeakref_RefType)
    ):
        return SHALLOW
    for cls in (<object>(<PyObject*>type)).__mro__:
        if is_program_type(cls):
            return NOTHING
    if PyType_IsSubtype(type, &PyDict_Type):
        if strcmp(type.tp_name, "collections.defaultdict") == 0:
            return PLAIN_MAPPING
        if strcmp(type.tp_name, "collections.OrderedDict") == 0:
            return PLAIN_MAPPING
        return MAPPING
    if is_numpy_array(type):
        return ARRAY
    if is_named(type, "_io.StringIO") or is_named(type, "mmap.mmap") or is_named(type, "pyarrow.lib.Buffer"):
        return EXTERNAL
    return DEEP


cdef bint counts_referents(object method) except -1:
    """Whether it is pandas' ``__sizeof__``, which adds up everything that a traversal finds as well.

    A frame and its index may be shared with others, so the traversal, which counts them once, is the better figure.
    """
    try:
        module = method.__module__
    except MemoryError:
        raise
    except Exception:
        return False
    return isinstance(module, str) and module.partition(".")[0] == "pandas"


cdef int describe(PyTypeObject* type, TypeEntry* entry) except -1:
    """Fills the entry, which is the caller's own, and caches a copy for the type's next instance."""
    cdef object method
    cdef unsigned int version
    entry.treatment = treatment_of(type)
    entry.fixed = pre_header(type) + type.tp_basicsize
    entry.each = type.tp_itemsize
    if type.tp_flags & Py_TPFLAGS_HEAPTYPE:
        # Their common allocator leaves room for one item more, a sentinel.
        entry.fixed += entry.each
    entry.sizer = NULL
    if entry.treatment != NOTHING:
        method = (<object>(<PyObject*>type)).__sizeof__
        if method is not object_sizeof and not counts_referents(method):
            entry.fixed = pre_header(type)
            entry.sizer = plain_method(<PyObject*>method)
            if entry.sizer == NULL:
                entry.treatment |= OWN_SIZER
    # Read after the look-up, which is what gives a type its version. Without one nothing can be remembered.
    version = type.tp_version_tag
    if version or not type.tp_flags & Py_TPFLAGS_HEAPTYPE:
        entry.type = type
        entry.version = version if type.tp_flags & Py_TPFLAGS_HEAPTYPE else 0
        type_slot(type)[0] = entry[0]
    return 0


cdef int64_t checked_size(PyObject* o, object size) except -1:
    cdef object name
    cdef long long nbytes
    if not isinstance(size, int):
        name = f"{type(<object>o).__name__}.__sizeof__()"
        raise errors.type_error(name, size, "an integer")
    try:
        nbytes = PyLong_AsLongLong(size)
    except OverflowError:
        nbytes = -1
    if nbytes < 0:
        name = f"{type(<object>o).__name__}.__sizeof__()"
        raise errors.value_error(name, size, "a number of bytes from 0 to 2**63 - 1")
    return nbytes


cdef inline int64_t call_sizer(PyObject* o, sizefunc sizer) except -1:
    cdef object size = sizer(o, NULL)
    cdef int64_t nbytes = small_size(<PyObject*>size)
    return nbytes if nbytes >= 0 else checked_size(o, size)


cdef inline void add(Walk* w, int64_t nbytes) noexcept:
    w.total = MOST if nbytes > MOST - w.total else w.total + nbytes


# --- entering a value ---

cdef int collect(PyObject* o, void* arg) noexcept:
    """A visitproc: counts leaves and holds the rest. Anything but 0 ends the traversal."""
    cdef Walk* w = <Walk*>arg
    cdef int64_t nbytes
    if Py_TYPE(o).tp_flags & Py_TPFLAGS_TYPE_SUBCLASS:
        return 0
    if w.left <= w.referent_count:
        w.cut = True
        return 1
    nbytes = count_leaf(w, o)
    if nbytes >= 0:
        w.total += nbytes
        w.left -= 1
        w.visited += 1
        w.leaves += 1
        return 0
    if nbytes == ENTER:
        if hold_referent(w, o):
            return 0
    return 1


cdef Py_ssize_t children_of(PyObject* o, Py_ssize_t found) noexcept:
    """The number of referents of an object of which only `found` were visited, as far as it is known."""
    cdef Py_ssize_t n = found
    if PyDict_Check(o):
        n = PyDict_GET_SIZE(o)
    elif PyAnySet_Check(o):
        n = set_used(o)
    elif PyType_IsSubtype(Py_TYPE(o), &PyList_Type) or PyType_IsSubtype(Py_TYPE(o), &PyTuple_Type):
        n = Py_SIZE(o)
    elif is_named(Py_TYPE(o), "collections.deque"):
        n = Py_SIZE(o)
    return max(n, found)


cdef int enter_referents(Walk* w, PyObject* o) except -1:
    """Counts or holds what the object on top of the stack refers to, as its type's traversal shows it."""
    cdef Section section
    cdef Frame* frame = &w.frames[w.depth - 1]
    w.leaves = 0
    w.cut = False
    frame.at = w.referent_count
    section_begin(&section, o)
    if hidden_dict(o) != NULL:
        # What it holds is met on both ways, and must be remembered although it has one reference.
        w.solitary = 0
        collect(hidden_dict(o), w)
    Py_TYPE(o).tp_traverse(o, collect, w)
    section_end(&section)
    frame.done = w.leaves
    frame.expected = w.leaves + w.referent_count - frame.at
    if w.cut:
        w.exhausted = True
        frame.expected = children_of(o, frame.expected)
    if w.no_memory:
        raise MemoryError()
    return 0


cdef int enter_array(Walk* w, object array) except -1:
    """What a numpy array refers to without showing it: the owner of its memory, its Python objects."""
    cdef PyTypeObject* plain = Py_TYPE(<PyObject*>array)
    cdef Py_ssize_t start = w.referent_count
    cdef Py_ssize_t expected = 0
    cdef Py_ssize_t i
    cdef Py_ssize_t n
    cdef int64_t before = w.total
    cdef int64_t nbytes
    cdef PyObject* child
    cdef object of_class, base
    cdef Py_buffer view
    while plain.tp_flags & Py_TPFLAGS_HEAPTYPE:
        plain = plain.tp_base
    of_class = <object>(<PyObject*>plain)
    base = of_class.base.__get__(array)
    while isinstance(base, memoryview):
        base = <object>PyMemoryView_GET_BASE(<PyObject*>base)
    w.leaves = 0
    w.cut = False
    if base is not None:
        if isinstance(base, (of_class, bytes, bytearray)) or is_named(Py_TYPE(<PyObject*>base), "mmap.mmap"):
            nbytes = count_leaf(w, <PyObject*>base)
            if nbytes >= 0:
                w.total += nbytes
            elif nbytes == ENTER:
                hold_referent(w, <PyObject*>base)
                expected = 1
        else:
            # Another library's buffer: only the array's own extent is known.
            add(w, of_class.nbytes.__get__(array))
    elif of_class.dtype.__get__(array).char == "O":
        PyObject_GetBuffer(array, &view, PyBUF_ANY_CONTIGUOUS | PyBUF_FORMAT)
        n = view.len // <Py_ssize_t>sizeof(PyObject*)
        for i in range(n):
            child = (<PyObject**>view.buf)[i]
            if child != NULL and collect(child, w):
                break
        PyBuffer_Release(&view)
        # An element that was never set is NULL: only an array cut short is taken to have no such gaps.
        expected = n if w.cut else w.leaves + w.referent_count - start
    if w.no_memory:
        raise MemoryError()
    push_frame(w, NULL, REFERENTS, start, expected)
    w.frames[w.depth - 1].done = w.leaves
    w.frames[w.depth - 1].before = before
    return 0


cdef int enter_instance(Walk* w, PyObject* o) except -1:
    """Counts the object on top of the stack, which isn't one of the containers read in place."""
    cdef PyTypeObject* type = Py_TYPE(o)
    cdef TypeEntry* known = type_slot(type)
    cdef TypeEntry entry
    cdef int64_t nbytes
    cdef int64_t claimed = 0
    cdef object cls, method, size
    # A copy: Python code that runs below may put another type into the slot.
    entry = known[0]
    if entry.type != type or (type.tp_flags & Py_TPFLAGS_HEAPTYPE and entry.version != type.tp_version_tag):
        # Held, because a metaclass may give the instance another type while it is asked.
        cls = <object>(<PyObject*>type)
        describe(type, &entry)
    if entry.treatment == NOTHING:
        pop_frame(w)
        return 0
    nbytes = entry.fixed
    if entry.sizer != NULL:
        nbytes += call_sizer(o, entry.sizer)
    elif entry.treatment & OWN_SIZER:
        cls = <object>(<PyObject*>type)
        method = cls.__sizeof__
        size = method(<object>o)
        claimed = checked_size(o, size)
        add(w, claimed)
        if is_named(type, "collections.deque") and Py_TYPE(<PyObject*>method) == &PyMethodDescr_Type:
            # A deque's own method is known to count its blocks and nothing that they refer to.
            claimed = 0
        else:
            claimed = max(<int64_t>0, claimed - type.tp_basicsize)
    elif entry.each:
        nbytes += entry.each * abs(Py_SIZE(o))
    add(w, nbytes + attribute_bytes(o))
    w.frames[w.depth - 1].before = w.total
    w.frames[w.depth - 1].claimed = claimed
    entry.treatment &= ~OWN_SIZER
    if entry.treatment == SHALLOW:
        pop_frame(w)
        return 0
    if entry.treatment == PLAIN_MAPPING:
        w.frames[w.depth - 1].kind = DICT
        w.frames[w.depth - 1].at = 0
        return 0
    if entry.treatment == MAPPING:
        # The traversal and the reading below both meet the values.
        w.solitary = 0
    if Py_TYPE(o).tp_traverse != NULL:
        enter_referents(w, o)
    if entry.treatment == MAPPING:
        Py_INCREF(o)
        push_frame(w, o, DICT, 0, 0)
    if entry.treatment == ARRAY:
        enter_array(w, <object>o)
    if entry.treatment == EXTERNAL:
        add(w, external_bytes(o))
    return 0


cdef int enter(Walk* w, PyObject* o) except -1:
    """Counts a container or an instance and makes ready to read what it holds. Takes over the reference."""
    cdef PyTypeObject* type = Py_TYPE(o)
    cdef Section section
    cdef Py_ssize_t n
    if type == &PyDict_Type:
        push_frame(w, o, DICT, 0, 0)
        if is_attribute_view(o):
            w.total += pre_header(type) + type.tp_basicsize
            if HIDES_DICTS:
                w.solitary = 0
        else:
            w.total += pre_header(type) + call_sizer(o, dict_sizer) + split_prefix(o)
        n = PyDict_GET_SIZE(o)
    elif type == &PyList_Type:
        push_frame(w, o, LIST, 0, 0)
        n = list_allocated(o)
        w.total += pre_header(type) + type.tp_basicsize + n * <Py_ssize_t>sizeof(PyObject*)
        if n:
            w.total += LIST_HEADER
    elif type == &PyTuple_Type:
        n = Py_SIZE(o)
        push_frame(w, o, TUPLE, 0, 0)
        if n:
            w.total += pre_header(type) + type.tp_basicsize + n * <Py_ssize_t>sizeof(PyObject*)
    elif type == &PySet_Type or type == &PyFrozenSet_Type:
        push_frame(w, o, SET, 0, 0)
        w.total += pre_header(type) + type.tp_basicsize
        section_begin(&section, o)
        if set_outside(o):
            w.total += (set_mask(o) + 1) * <Py_ssize_t>SET_ENTRY
        n = set_used(o)
        section_end(&section)
    else:
        push_frame(w, o, REFERENTS, w.referent_count, 0)
        enter_instance(w, o)
        return 0
    if n == 0:
        pop_frame(w)
    else:
        w.frames[w.depth - 1].before = w.total
    return 0


# --- reading what was entered ---

cdef PyObject* read_list(Walk* w, Frame* frame) noexcept:
    """Counts leaves up to the first child that must be entered, returned with a reference, else NULL."""
    cdef Section section
    cdef PyObject* o = frame.owner
    cdef PyObject* child = NULL
    cdef PyObject** items
    cdef Py_ssize_t start = frame.at
    cdef Py_ssize_t at = start
    cdef Py_ssize_t stop
    cdef int64_t nbytes
    section_begin(&section, o)
    items = list_items(o) if frame.kind == LIST else tuple_items(o)
    stop = min(Py_SIZE(o), start + w.left)
    while at < stop:
        nbytes = count_leaf(w, items[at])
        at += 1
        if nbytes >= 0:
            w.total += nbytes
        else:
            if nbytes == ENTER:
                child = items[at - 1]
                Py_INCREF(child)
            break
    section_end(&section)
    if at > start:
        frame.done += at - start
        w.left -= at - start
        w.visited += at - start
    frame.at = at
    return child


cdef PyObject* read_set(Walk* w, Frame* frame) noexcept:
    """As `read_list`. Slots cost something too: a set that was once large may be nearly all empty slots."""
    cdef Section section
    cdef PyObject* o = frame.owner
    cdef PyObject* child = NULL
    cdef PyObject* key
    cdef int64_t nbytes
    section_begin(&section, o)
    while frame.at <= set_mask(o) and w.left > 0:
        key = set_key(o, frame.at)
        frame.at += 1
        if key == NULL:
            if frame.at & 15 == 0:
                w.left -= 1
            continue
        frame.done += 1
        w.left -= 1
        w.visited += 1
        nbytes = count_leaf(w, key)
        if nbytes >= 0:
            w.total += nbytes
        else:
            if nbytes == ENTER:
                child = key
                Py_INCREF(child)
            break
    section_end(&section)
    return child


cdef PyObject* read_dict(Walk* w, Frame* frame, PyObject** other) noexcept:
    """As `read_list` does, with the key in `*other` where both it and its value must be entered."""
    cdef Section section
    cdef PyObject* o = frame.owner
    cdef PyObject* child = NULL
    cdef PyObject* key
    cdef PyObject* value
    cdef Py_ssize_t entries = 0
    cdef int64_t of_key
    cdef int64_t of_value
    section_begin(&section, o)
    while 2 * entries < w.left and PyDict_Next(o, &frame.at, &key, &value):
        entries += 1
        of_key = count_leaf(w, key)
        of_value = count_leaf(w, value)
        if of_key >= 0 and of_value >= 0:
            w.total += of_key + of_value
            continue
        if w.no_memory:
            break
        if of_key >= 0:
            w.total += of_key
        else:
            child = key
            Py_INCREF(child)
        if of_value >= 0:
            w.total += of_value
        else:
            if child != NULL:
                other[0] = child
            child = value
            Py_INCREF(child)
        break
    section_end(&section)
    frame.done += 2 * entries
    w.left -= 2 * entries
    w.visited += 2 * entries
    return child


cdef Py_ssize_t children(Frame* frame) noexcept:
    if frame.kind == REFERENTS:
        return frame.expected
    if frame.kind == DICT:
        return 2 * PyDict_GET_SIZE(frame.owner)
    if frame.kind == SET:
        return set_used(frame.owner)
    return Py_SIZE(frame.owner)


cdef void estimate(Walk* w, Frame* frame) noexcept:
    """Assume that the children not visited are as large as those that were."""
    cdef Py_ssize_t n = children(frame)
    cdef double rest
    if n <= frame.done:
        return
    w.exhausted = True
    if frame.done:
        rest = <double>(w.total - frame.before) / frame.done
    elif w.visited:
        rest = <double>w.total / w.visited
    else:
        rest = MEAN_BYTES
    rest *= n - frame.done
    add(w, <int64_t>rest if rest < <double>MOST else MOST)


cdef void leave_frame(Walk* w) noexcept:
    """Pops a frame that has been read to its end.

    A ``__sizeof__`` written in Python may count what the object refers to, or only what nothing else shows. Where it
    claims about as much as was found behind the object, it is taken to be the former, and the larger figure counts.
    """
    cdef Frame* frame = &w.frames[w.depth - 1]
    cdef int64_t found = w.total - frame.before
    if frame.claimed and found // 2 <= frame.claimed and frame.claimed // 2 <= found:
        w.total -= min(frame.claimed, found)
    pop_frame(w)


cdef int read_all(Walk* w) except -1:
    """Reads until the stack is empty."""
    cdef Frame* frame
    cdef PyObject* child
    cdef PyObject* key
    while w.depth:
        frame = &w.frames[w.depth - 1]
        if w.left <= 0:
            if children(frame) > frame.done:
                estimate(w, frame)
                # What comes next to the part cut short may differ in kind: each level gets half the reserve.
                w.left = w.reserve >> 1
                w.reserve -= w.left
            leave_frame(w)
            continue
        key = NULL
        if frame.kind == DICT:
            child = read_dict(w, frame, &key)
        elif frame.kind == SET:
            child = read_set(w, frame)
        elif frame.kind == REFERENTS:
            child = NULL
            if w.referent_count > frame.at:
                w.referent_count -= 1
                child = w.referents[w.referent_count]
                frame.done += 1
                w.left -= 1
                w.visited += 1
        else:
            child = read_list(w, frame)
        if w.no_memory:
            raise MemoryError()
        if child == NULL:
            if w.left > 0 or children(frame) <= frame.done:
                if frame.expected > frame.done:
                    estimate(w, frame)
                leave_frame(w)
            continue
        if key != NULL:
            # Key and value are both to be entered: the key waits on the stack of referents.
            if not hold_referent(w, key):
                Py_DECREF(key)
                Py_DECREF(child)
                raise MemoryError()
            Py_DECREF(key)
            frame = NULL
            try:
                push_frame(w, NULL, REFERENTS, w.referent_count - 1, 1)
            except MemoryError:
                Py_DECREF(child)
                raise
        enter(w, child)
    return 0


cdef int64_t walk(PyObject* first, PyObject* second, Py_ssize_t budget, bint* exhausted) except -1:
    """Bytes that one value or two hold together, after at most 1.25 times `budget` objects."""
    cdef Walk w
    cdef PyObject* root
    cdef int i
    w.total = 0
    w.left = budget
    w.reserve = budget >> 2
    w.visited = 0
    w.solitary = 1
    w.exhausted = False
    w.no_memory = False
    w.roots[0] = first
    w.roots[1] = second if second != first else NULL
    w.seen = NULL
    w.seen_count = 0
    w.seen_mask = 0
    w.frames = w.frame_store
    w.depth = 0
    w.frame_room = FRAMES
    w.referents = w.referent_store
    w.referent_count = 0
    w.referent_room = REFERENT_SLOTS
    Py_INCREF(first)
    if second != NULL:
        Py_INCREF(second)
    try:
        for i in range(2):
            root = w.roots[i]
            if root == NULL or immortal(root):
                continue
            if leaf_bytes(root) >= 0:
                w.total += leaf_bytes(root)
                continue
            Py_INCREF(root)
            enter(&w, root)
            read_all(&w)
        if w.exhausted:
            exhausted[0] = True
        return w.total
    finally:
        while w.depth:
            pop_frame(&w)
        while w.referent_count:
            w.referent_count -= 1
            Py_DECREF(w.referents[w.referent_count])
        if w.frames != w.frame_store:
            PyMem_Free(w.frames)
        if w.referents != w.referent_store:
            PyMem_Free(w.referents)
        if w.seen != NULL and w.seen != w.seen_store:
            PyMem_Free(w.seen)
        Py_DECREF(first)
        if second != NULL:
            Py_DECREF(second)


cdef Py_ssize_t checked_budget(object budget) except -1:
    # The walk adds a reserve to the budget; half the address space is more than any value can hold.
    return min(size_argument("budget", budget, 1), PY_SSIZE_T_MAX >> 1)


def sizeof(value, *, budget=20_000):
    """Bytes that `value` occupies, nested values included; parts that are shared or in a cycle count once.

    Containers, text, numbers, numpy arrays (with the memory that a view keeps alive) and instances count with
    all that they refer to. What belongs to the running program counts 0 and isn't entered: types, modules,
    functions, enum members, loggers, threads, interned text that others refer to as well, immortal objects,
    small integers. Weak references, bound methods, generators and frames count without what they refer to.

    After `budget` objects the rest is estimated: the unvisited part of a container is assumed to be like the
    visited part. A value of up to `budget` objects is counted exactly. O(min(objects, budget)).

    Raises `ArgumentTypeError` and `ArgumentValueError` for a bad budget or a ``__sizeof__`` that returns an
    invalid size; exceptions raised by a ``__sizeof__`` propagate.

    >>> text = "x" * 1000
    >>> once, twice = sizeof([text]), sizeof([text, text])
    >>> twice - once        # one more slot in the list, not one more text
    8
    """
    cdef bint exhausted = False
    return walk(<PyObject*>value, NULL, checked_budget(budget), &exhausted)


def sizeof_pair(key, value, *, budget=20_000):
    """Bytes that a key and its value occupy together, and whether part of that was estimated.

    What both refer to counts once. Otherwise the same as `sizeof`.

    >>> name = "expert-%d" % 7
    >>> nbytes, estimated = sizeof_pair(name, {"expert": name})
    >>> nbytes == sizeof(name) + sizeof({"expert": 0}), estimated
    (True, False)
    """
    cdef bint exhausted = False
    cdef Py_ssize_t limit = checked_budget(budget)
    cdef int64_t nbytes
    if limit == DEFAULT_BUDGET:
        nbytes = pair_sizeof(key, value, &exhausted)
    else:
        nbytes = walk(<PyObject*>key, <PyObject*>value, limit, &exhausted)
    return nbytes, bool(exhausted)


def _find_header():
    global gc_header
    import sys
    gc_header = sys.getsizeof([]) - [].__sizeof__()


_find_header()
del _find_header
