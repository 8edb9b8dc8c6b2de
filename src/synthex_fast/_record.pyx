"""The engine of `synthex_fast.record`: a metaclass whose classes have fields as data, and memory from a freelist.

A class (`RecordMeta`) carries a `Layout`: one `Field` for each of its fields, in the order of the constructor's
parameters. Everything that happens to a record is a loop over those. `record.py` reads a class body and says what the
fields are; `lay_out` here turns that into a layout and puts the functions of this file into the type's slots.

- Fields are slots made by ``type.__new__`` for ``__slots__``. Their member descriptors stay, so the interpreter
  specialises reads as it does for any slotted class. Writes go through `record_setattro`, which checks. A descriptor's
  own ``__set__`` is not checked, so nothing here relies on a value's type, nor on a slot being filled.
- Construction runs in the type's vectorcall slot. It takes a block from the class's freelist, checks each argument and
  stores it. Until all are stored the record is untracked and nobody else knows it.
- Deallocation drops the values and returns the block. An idle block keeps its reference to the class, so that
  construction and deallocation leave the class's reference count alone: threads would contend for it. The class
  reports one reference to itself for each idle block when it is traversed, so the cyclic collector still frees a class
  that nobody uses. In an idle block a slot is NULL, or holds an idle container or a number that nothing reads any more.
- A list or dict that its field's factory made, and that nobody else holds, is emptied and stays in its slot of the idle
  block: an idle container is empty, untracked and invisible to Python code. A field whose caller always brings a
  container of their own stops keeping one (`Field.keep`).
- A field that is made when first read (an identifier, the time) holds a number until then: a word with its lowest bit
  set, which no reference has. Such a field has an attribute of ours instead of the member descriptor, and its slot a
  name of its own, so that ``__class__`` can't be set to a class that would take the word for a reference.
- Other fields that are stored in another way than they are read (`Style`, ``_record_styles.pxi``) have one too.
- A record is tracked by the collector once a value may be part of a reference cycle. Only `reset` and
  ``__init__``, which give it new values, untrack it again.
- Records that hold records nest deeply in some programs. Deallocation counts its depth and puts records aside beyond
  `DEPTH`, to be deallocated by the outermost call.

On the free-threaded build a record's critical section guards its slots; references are dropped after leaving it.
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject, Py_EQ, Py_GE, Py_GT, Py_LE, Py_LT, Py_NE
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from synthex_fast._clock cimport wall_micros
from synthex_fast._freelist cimport (
    COUNTS, DISCARDED, Freelist, MISSED, RELEASED, REUSED, freelist_delete, freelist_new, freelist_pop, freelist_push,
    freelist_resize, freelist_stats,
)
from synthex_fast._ids cimport id_for, take_serial, timed_id_for, want_serial
from synthex_fast._python cimport (
    destructor, freefunc, inquiry, METH_FASTCALL, newfunc, owned, Py_DECREF, Py_INCREF, Py_NewRef, Py_None,
    Py_ReprEnter, Py_ReprLeave, PY_SSIZE_T_MAX, Py_TYPE, Py_XDECREF, Py_XINCREF, PyCFunction, PyDescr_NewGetSet,
    PyDict_CheckExact, PyDict_Clear, PyDict_New, PyDict_SetItemString, PyFloat_AS_DOUBLE, PyGetSetDef,
    PyList_CheckExact, PyList_GET_SIZE, PyList_New, PyMethodDef, PyObject_CallNoArgs, PyObject_ClearWeakRefs,
    PyObject_GC_Del, PyObject_GC_IsTracked, PyObject_GC_Track, PyObject_GC_UnTrack, PyObject_TypeCheck,
    PyObject_VectorcallDict, PyTuple_CheckExact, PyTuple_GET_SIZE, PyType_Modified, PyTypeObject,
    PyUnicode_CheckExact, PyUnicode_FromObject, PyUnicode_GET_LENGTH, PyUnicode_InternInPlace, PyVectorcall_NARGS,
    same_text, traverseproc, vectorcallfunc, visitproc,
)
from synthex_fast._sync cimport (
    FREE_THREADED, load_pointer, load_u8, store_pointer, store_u8, likely, uniquely_referenced, unlikely,
)

from operator import index as to_index

from synthex_fast.errors import type_error, value_error

__all__ = ["RecordBase", "RecordMeta", "Rule"]

cdef extern from *:
    """
    #include <stddef.h>
    #include <string.h>
    #include <structmember.h>

    struct synthex_layout;
    typedef struct {
        PyHeapTypeObject type;
        void *layout;
    } synthex_record_class;

    static PyTypeObject synthex_record_meta = {
        PyVarObject_HEAD_INIT(NULL, 0)
        .tp_name = "synthex_fast._record.RecordMeta",
        .tp_basicsize = sizeof(synthex_record_class),
        .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_TYPE_SUBCLASS
            | Py_TPFLAGS_HAVE_VECTORCALL,
        .tp_vectorcall_offset = offsetof(PyTypeObject, tp_vectorcall),
        .tp_doc = "The class of record classes; what it does is described at `synthex_fast.Record`.",
    };
    #define synthex_layout_at(cls) (((synthex_record_class *)(cls))->layout)
    static inline void synthex_put_layout(void *cls, void *layout) { synthex_layout_at(cls) = layout; }

    /* What the interpreter puts before an object whose dict or weak references it manages itself. */
    #ifdef Py_TPFLAGS_MANAGED_WEAKREF
      #define SYNTHEX_PREHEADER (Py_TPFLAGS_MANAGED_DICT | Py_TPFLAGS_MANAGED_WEAKREF)
    #else
      #define SYNTHEX_PREHEADER (1UL << 4)      /* 3.11's flag for a dict, which has no public name */
    #endif

    #ifndef SYNTHEX_SECTION
    #define SYNTHEX_SECTION
    /* A record's critical section; empty on the standard build, where the GIL guards it. */
    #ifdef Py_GIL_DISABLED
      #define synthex_section PyCriticalSection
      #define synthex_hold(section, op) PyCriticalSection_Begin((section), (op))
      #define synthex_let(section) PyCriticalSection_End(section)
    #else
      typedef struct { char unused; } synthex_section;
      #define synthex_hold(section, op) ((void)(section))
      #define synthex_let(section) ((void)(section))
    #endif
    #endif

    /* How deeply deallocations are nested on this thread, and the records put aside by those nested too deeply. Such a
       record is dead; its first word links it to the next. */
    typedef struct { int depth; PyObject *aside; } synthex_nesting;
    static SYNTHEX_THREAD_LOCAL synthex_nesting synthex_nested;
    static inline synthex_nesting *synthex_nesting_here(void) {
        synthex_nesting *here = &synthex_nested;
    #if defined(__GNUC__)
        /* Or else the compiler looks the address up for each use of it. */
        __asm__ ("" : "+r"(here));
    #endif
        return here;
    }

    /* The frozen records whose __post_init__ this thread runs. They need not end in the order in which they began: a
       greenlet may be switched to another in between, which is also why the links can't be on the stack. */
    typedef struct synthex_initialized { PyObject *record; struct synthex_initialized *next; } synthex_initialized;
    static SYNTHEX_THREAD_LOCAL synthex_initialized *synthex_initialized_here;
    static int synthex_initialize(PyObject *record) {
        synthex_initialized *link = PyMem_RawMalloc(sizeof(synthex_initialized));
        if (link == NULL)
            return 0;
        link->record = record;
        link->next = synthex_initialized_here;
        synthex_initialized_here = link;
        return 1;
    }
    static void synthex_end_initialize(PyObject *record) {
        synthex_initialized **at = &synthex_initialized_here, *link;
        while ((*at)->record != record)
            at = &(*at)->next;
        link = *at;
        *at = link->next;
        PyMem_RawFree(link);
    }
    static int synthex_is_initialized(PyObject *record) {
        synthex_initialized *link = synthex_initialized_here;
        while (link != NULL && link->record != record)
            link = link->next;
        return link != NULL;
    }
    #define synthex_link(op) (*(PyObject **)(op))

    /* Brings a block's object header back to life with one reference; its class was never dropped. */
    #if defined(Py_GIL_DISABLED) || defined(Py_REF_DEBUG) || defined(Py_TRACE_REFS)
      #define synthex_revive(op) _Py_NewReference(op)
    #else
      #define synthex_revive(op) ((void)((op)->ob_refcnt = 1))
    #endif

    /* A thread that finds a class ready must see what another has written before. */
    #ifdef Py_GIL_DISABLED
      #define synthex_load_state(p) _Py_atomic_load_uint8(p)
      #define synthex_store_state(p, v) _Py_atomic_store_uint8((p), (v))
    #else
      #define synthex_load_state(p) (*(p))
      #define synthex_store_state(p, v) (*(p) = (v))
    #endif

    #define synthex_gc_new(cls) ((PyObject *)_PyObject_GC_New(cls))
    #define synthex_plain_new(cls) ((PyObject *)_PyObject_New(cls))
    #define synthex_is_gc(op) PyType_IS_GC(Py_TYPE(op))
    /* The first word of the collector's header is its link to the next object, 0 for an object that is not tracked. */
    #ifdef Py_GIL_DISABLED
      #define synthex_is_tracked(op) PyObject_GC_IsTracked(op)
    #else
      #define synthex_is_tracked(op) (((uintptr_t *)(op))[-2] != 0)
    #endif
    /* The table that all empty dicts share; a dict that was filled and emptied again has one of its own. */
    static void *synthex_empty_keys;
    static inline void synthex_learn_empty_keys(PyObject *dict) {
        synthex_empty_keys = (void *)((PyDictObject *)dict)->ma_keys;
    }
    #define synthex_is_fresh_dict(op) ((void *)((PyDictObject *)(op))->ma_keys == synthex_empty_keys)
    #define synthex_list_room(op) (((PyListObject *)(op))->allocated)
    #define synthex_list_at(op, i) (((PyListObject *)(op))->ob_item[i])
    #define synthex_resize(op, n) Py_SET_SIZE((PyVarObject *)(op), (n))
    #define synthex_tuple_items(op) (((PyTupleObject *)(op))->ob_item)
    static inline void synthex_set_member_doc(PyObject *op, const char *doc) {
        if (Py_IS_TYPE(op, &PyMemberDescr_Type)) ((PyMemberDescrObject *)op)->d_member->doc = doc;
    }
    #define synthex_member_offset(op) \\
        (Py_IS_TYPE((op), &PyMemberDescr_Type) ? ((PyMemberDescrObject *)(op))->d_member->offset : 0)

    /* New dicts are tracked from the start; earlier versions track one when it first holds what may form a cycle. */
    #if PY_VERSION_HEX >= 0x030E0000
      #define SYNTHEX_DICTS_TRACKED 1
    #else
      #define SYNTHEX_DICTS_TRACKED 0
    #endif

    /* A default that every record shares is a new float for each on the free-threaded build, because threads would
       contend for its reference count. */
    #ifdef Py_GIL_DISABLED
      #define synthex_shared(op) \\
          (PyFloat_CheckExact(op) ? PyFloat_FromDouble(PyFloat_AS_DOUBLE(op)) : Py_NewRef(op))
    #else
      #define synthex_shared(op) Py_NewRef(op)
    #endif
    """
    PyTypeObject meta_type "synthex_record_meta"
    void* layout_at "synthex_layout_at"(void*) noexcept
    void put_layout "synthex_put_layout"(void*, void*) noexcept
    const unsigned long PREHEADER "SYNTHEX_PREHEADER"
    ctypedef struct Section "synthex_section":
        pass
    void hold "synthex_hold"(Section*, PyObject*) noexcept
    void let "synthex_let"(Section*) noexcept
    ctypedef struct Nesting "synthex_nesting":
        int depth
        PyObject* aside
    Nesting* nesting_here "synthex_nesting_here"() noexcept
    bint initialize "synthex_initialize"(PyObject*) noexcept
    void end_initialize "synthex_end_initialize"(PyObject*) noexcept
    bint is_initialized "synthex_is_initialized"(PyObject*) noexcept
    PyObject* link_of "synthex_link"(PyObject*) noexcept
    void revive "synthex_revive"(PyObject*) noexcept
    unsigned char load_state "synthex_load_state"(const unsigned char*) noexcept
    void store_state "synthex_store_state"(unsigned char*, unsigned char) noexcept
    PyObject* gc_new "synthex_gc_new"(PyTypeObject*) noexcept
    PyObject* plain_new "synthex_plain_new"(PyTypeObject*) noexcept
    bint is_gc "synthex_is_gc"(PyObject*) noexcept
    bint is_tracked "synthex_is_tracked"(PyObject*) noexcept
    void learn_empty_keys "synthex_learn_empty_keys"(PyObject*) noexcept
    bint is_fresh_dict "synthex_is_fresh_dict"(PyObject*) noexcept
    Py_ssize_t list_room "synthex_list_room"(PyObject*) noexcept
    PyObject* list_at "synthex_list_at"(PyObject*, Py_ssize_t) noexcept
    void resize "synthex_resize"(PyObject*, Py_ssize_t) noexcept
    PyObject** tuple_items "synthex_tuple_items"(PyObject*) noexcept
    Py_ssize_t member_offset "synthex_member_offset"(PyObject*) noexcept
    void set_member_doc "synthex_set_member_doc"(PyObject*, const char*) noexcept
    const bint DICTS_TRACKED "SYNTHEX_DICTS_TRACKED"
    PyObject* shared "synthex_shared"(PyObject*) noexcept


cdef extern from "Python.h":
    ctypedef int (*setattrofunc)(PyObject*, PyObject*, PyObject*) except -1
    ctypedef struct Slots "PyTypeObject":
        Py_ssize_t tp_basicsize
        Py_ssize_t tp_itemsize
        Py_ssize_t tp_weaklistoffset
        Py_ssize_t tp_dictoffset
        unsigned long tp_flags
        destructor tp_dealloc
        destructor tp_finalize
        destructor tp_del
        freefunc tp_free
        traverseproc tp_traverse
        inquiry tp_clear
        newfunc tp_new
        vectorcallfunc tp_vectorcall
        setattrofunc tp_setattro
        void* tp_richcompare
        void* tp_init
        void* tp_call
        PyTypeObject* tp_base
    const unsigned long Py_TPFLAGS_HAVE_GC
    const unsigned long Py_TPFLAGS_IS_ABSTRACT
    PyTypeObject PyType_Type
    PyTypeObject PyBaseObject_Type
    PyTypeObject PyFunction_Type
    PyTypeObject PyUnicode_Type
    PyTypeObject PyLong_Type
    PyTypeObject PyFloat_Type
    PyTypeObject PyBool_Type
    PyTypeObject PyBytes_Type
    PyTypeObject PyList_Type
    PyTypeObject PyDict_Type
    PyTypeObject PySet_Type
    PyTypeObject PyFrozenSet_Type
    PyTypeObject PyTuple_Type
    int PyType_Ready(PyTypeObject*) except -1
    const int METH_O
    int PyDict_DelItem(PyObject*, object) except -1
    object PyDescr_NewMethod(PyTypeObject*, PyMethodDef*)
    int PyObject_GenericSetAttr(PyObject*, PyObject*, PyObject*) except -1
    PyObject* PyObject_GenericGetDict(PyObject*, void*) except NULL
    int PyObject_GenericSetDict(PyObject*, PyObject*, void*) except -1
    int PyObject_CallFinalizerFromDealloc(PyObject*) noexcept
    int Py_EnterRecursiveCall(const char*) except *   # any value but 0
    void Py_LeaveRecursiveCall() noexcept
    void PyObject_Free(void*) noexcept
    const char* PyUnicode_AsUTF8(object) except NULL
    Py_ssize_t PyUnicode_GetLength "PyUnicode_GET_LENGTH"(object) noexcept
    Py_ssize_t PyBytes_GET_SIZE(object) noexcept
    Py_ssize_t PyTuple_Size "PyTuple_GET_SIZE"(object) noexcept
    Py_ssize_t PyDict_Size(object) except -1
    Py_ssize_t PySet_Size(object) except -1
    Py_ssize_t PyList_Size "PyList_GET_SIZE"(object) noexcept


cdef enum Kind:
    # What a field holds.
    ANY, TEXT, INTEGER, NUMBER, TRUTH, BYTES, LIST, DICT, SET, FROZEN_SET, TUPLE, MOMENT, DATE, CHOICE, LITERAL,
    INSTANCE, UNION, NOTHING


cdef enum How:
    # What a field gets that no argument was given for.
    REQUIRED, ABSENT, VALUE, NEW_LIST, NEW_DICT, FACTORY, UUID4, UUID7, NOW, CODE, WHEN_TOUCHED


cdef enum Style:
    # How a field is stored, where that is not what reading it gives.
    ORDINARY
    CODED                       # one of some texts, as the number of its place among them; read as an enumeration's
    CLOCKED                     # a time, with a second slot that has it as a number too
    TOUCHED                     # a dict that is made when first read
    TEXTS                       # a list that is made when first read, of texts that are copied from what is given
    TAGS                        # the same, of stripped and distinct lower-case texts


cdef enum Simple:
    # Whether a value of the exact class is stored as it is, if it is plain and the field never `keeps`.
    INTRICATE
    SIMPLE
    SIZED                       # if it has the length that is allowed


cdef enum Bound:
    # How a value of the exact class is checked further.
    FREE, LENGTH, SPAN, CHECKED


cdef enum:
    UNRESOLVED = 0              # an annotation could not be evaluated yet
    READY
    CLEARED                     # by the collector: the class is garbage

    ARGUMENTS_ON_STACK = 24
    IDLE_LIST_ROOM = 64         # lists with a larger capacity are freed instead of kept
    KEEP = 4                    # so many containers in a row may be kept in vain
    DEPTH = 40                  # deallocations nested more deeply than this wait


cdef struct Field:
    PyTypeObject* exact         # values of exactly this class need no check but `bound`
    Py_ssize_t offset           # of the slot
    PyObject* name              # interned; owned, like the next two
    PyObject* value             # the default or the factory, or NULL
    PyObject* rule              # a `Rule`, or NULL: not resolved yet
    Py_ssize_t least, most      # LENGTH: in characters
    double low, high            # SPAN
    Py_ssize_t clock            # offset of the slot for the time as a number: UUID7, CLOCKED
    PyObject* initial           # the slot's default: a number, a borrowed reference that needs no care, or NULL
    Field* after                # the field whose time this one's must be later than, or NULL
    unsigned char kind
    unsigned char style
    unsigned char how
    unsigned char bound
    unsigned char simple        # whether a value of the exact class is stored as it is (`Simple`)
    unsigned char plain         # a value of the exact class can't be part of a reference cycle
    unsigned char optional      # None is allowed
    unsigned char lazy          # the slot may hold a number in place of a reference
    unsigned char renews        # None stands for what the field gets that no argument was given for
    unsigned char keeps         # the idle block may hold an idle container in this slot
    unsigned char keep          # how many more may be kept in vain
    unsigned char shown         # in the repr
    unsigned char compared
    unsigned char hashed
    unsigned char parameter     # 0: positional, 1: keyword-only, 2: none
    PyObject* description       # owned text, or NULL


cdef struct Default:
    # What a field gets that no argument was given for.
    Py_ssize_t offset
    PyObject* word              # `Field.initial`
    Field* field


cdef struct Loose:
    # A slot that may hold a reference, or something else.
    Py_ssize_t offset
    Field* field                # NULL if it holds references only


cdef struct Layout:
    PyTypeObject* type          # borrowed
    Freelist* idle
    Field* fields               # positional parameters, keyword-only ones, then those that are no parameters
    PyObject** names            # borrowed from the fields
    unsigned short* order       # indices of the fields in the order in which they were declared
    Field** special             # the fields whose slots may hold a number or an idle container
    Loose* loose                # the slots before ``plain_from`` that may hold references
    int looses
    Field** later               # the fields whose time must be later than that of another
    PyGetSetDef* attributes     # of fields that are not read as they are stored
    int count
    int parameters
    int positional
    unsigned char state
    bint gc                     # instances have the collector's header
    bint tracked                # from the start
    bint frozen
    bint eq
    bint ordered
    bint validated
    bint keeping                # one field or more keeps containers
    bint blank                  # ``__new__`` gives what `reset` leaves
    bint opens                  # subclasses written in Python have a __dict__ unless they say otherwise
    int specials
    int laters
    int defaults
    Default* default            # of all fields but those that are made when touched
    int* first_default          # for each number of fields, the first default of the fields from there on
    Py_ssize_t plain_from       # from this offset on, all slots hold references only
    bint nests                  # a value may be a record or hold one
    Py_ssize_t pool             # the most idle records
    bint extras                 # there is a __dict__, or slots that are no fields
    Py_ssize_t end              # offset of the byte after the last slot
    Py_ssize_t weakrefs         # offset of the list of weak references, or 0
    PyObject* post_init         # owned, or NULL
    PyObject* reset             # owned, or NULL


cdef inline Layout* layout_of(PyObject* op) noexcept:
    return <Layout*>layout_at(Py_TYPE(op))


cdef inline PyObject* number_word(uint64_t number) noexcept:
    return <PyObject*><uintptr_t>(number << 1 | 1)


cdef inline uint64_t number_in(PyObject* word) noexcept:
    return <uint64_t><uintptr_t>word >> 1


# The tuples and None of this module are objects of Cython's; C code below uses pointers.
cdef object datetime_class = None
cdef object date_class = None
cdef object timezone_class = None
cdef object utc = None
cdef object FrozenInstanceError = None
cdef object declare = None      # of record.py: makes a class
cdef object resolve = None      # of record.py: evaluates what was left of a class's annotations
cdef object load_makers = None  # imports record.py, which sets the two
cdef object UNSET = object()    # stands for no value, since every other object may be one


# --- Rules: what a field accepts ---------------------------------------------------------------------------------


cdef bint is_aware(object moment) except -1:
    # A timezone of the standard library's always knows its offset; others may not.
    if type(moment) is datetime_class and type(moment.tzinfo) is timezone_class:
        return True
    return datetime_class.utcoffset(moment) is not None


cdef str plural(object number, str unit):
    return f"{number:,} {unit}"


cdef class Rule:
    """What one field accepts: a kind, and what restricts it. ``check`` returns the value as it is stored."""

    def __init__(
        self, int kind, *, cls=None, options=(), optional=False, least=None, most=None, low=None, high=None,
        above=False, below=False, pattern=None, choices=None, calls=(), allowed=None
    ):
        self.kind = kind
        self.cls = cls
        self.options = tuple(options)
        self.optional = optional
        self.least = least
        self.most = most
        self.low = low
        self.high = high
        self.above = above
        self.below = below
        self.pattern = pattern
        self.choices = None if choices is None else tuple(choices)
        self.calls = tuple(calls)
        self.text = allowed
        if kind == CHOICE:
            self.members = dict(cls._value2member_map_)

    @property
    def allowed(self):
        """What the field accepts, in words."""
        if self.text is None:
            self.text = self._described()
        return self.text

    cdef str _described(self):
        cdef str text
        cdef list parts
        if self.kind == LITERAL:
            text = "one of " + ", ".join(map(repr, self.options))
        elif self.kind == CHOICE:
            text = "one of " + ", ".join(map(str, self.members))
        elif self.kind == UNION:
            parts = []
            for rule in self.options:
                parts.append(rule.allowed)
            text = " or ".join(parts)
        elif self.kind == INSTANCE:
            text = f"{'an' if self.cls.__name__[:1] in 'AEIOUaeiou' else 'a'} {self.cls.__name__}"
        else:
            text = KIND_TEXTS[self.kind]
        text = self._restricted(text)
        if self.optional and self.kind != NOTHING:
            text += " or None"
        return text

    cdef str _restricted(self, str text):
        cdef str unit
        cdef list more = []
        if self.choices is not None:
            text = "one of " + ", ".join(map(repr, self.choices))
        if self.least is not None or self.most is not None:
            unit = "characters" if self.kind == TEXT else "bytes" if self.kind == BYTES else "items"
            if self.most is None:
                if self.least == 1:
                    text = "a non-empty " + text.split(" ", 1)[1]
                else:
                    more.append(f"at least {plural(self.least, unit)}")
            elif not self.least:
                more.append(f"at most {plural(self.most, unit)}")
            elif self.kind == TEXT and self.pattern is None:
                text = f"{self.least:,} to {plural(self.most, unit)}"
            else:
                more.append(f"{self.least:,} to {plural(self.most, unit)}")
        if more:
            text += " of " + more.pop()
        if self.low is not None and self.high is not None and not self.above and not self.below:
            text += f" from {self.low} to {self.high}"
        else:
            if self.low is not None:
                more.append(f"{'above' if self.above else 'at least'} {self.low}")
            if self.high is not None:
                more.append(f"{'below' if self.below else 'at most'} {self.high}")
            if more:
                text += ", " + " and ".join(more)
        if self.pattern is not None:
            text += f" that matches {self.pattern.pattern!r}"
        for call in self.calls:
            text += f" that {getattr(call, '__name__', type(call).__name__)} accepts"
        return text

    cdef bint fits(self, object value) except -1:
        """Whether the value is of this kind as it is, whatever restricts it."""
        cdef int kind = self.kind
        if value is None:
            return self.optional or kind == NOTHING or kind == ANY or (kind == INSTANCE and self.cls is object)
        if kind == ANY:
            return True
        if kind == TEXT:
            return isinstance(value, str)
        if kind == INTEGER:
            return isinstance(value, int) and not isinstance(value, bool)
        if kind == NUMBER:
            return isinstance(value, float)
        if kind == TRUTH:
            return isinstance(value, bool)
        if kind == BYTES:
            return isinstance(value, bytes)
        if kind == LIST:
            return isinstance(value, list)
        if kind == DICT:
            return isinstance(value, dict)
        if kind == SET:
            return isinstance(value, set)
        if kind == FROZEN_SET:
            return isinstance(value, frozenset)
        if kind == TUPLE:
            return isinstance(value, tuple)
        if kind == MOMENT:
            if datetime_class is None:
                load_datetime()
            return isinstance(value, datetime_class)
        if kind == DATE:
            return isinstance(value, date_class) and not isinstance(value, datetime_class)
        if kind == CHOICE or kind == INSTANCE:
            return isinstance(value, self.cls)
        if kind == LITERAL:
            for option in self.options:
                if type(option) is type(value) and option == value:
                    return True
            return False
        if kind == UNION:
            for rule in self.options:
                if (<Rule>rule).fits(value):
                    return True
        return False

    cdef object converted(self, str name, object value):
        """A value of another kind as one of this, where that loses nothing."""
        cdef int kind = self.kind
        cls = type(value)
        if not isinstance(value, (bool, str)):
            if kind == INTEGER and hasattr(cls, "__index__"):
                return to_index(value)
            if kind == NUMBER and (hasattr(cls, "__float__") or hasattr(cls, "__index__")):
                try:
                    return float(value)
                except OverflowError:
                    raise value_error(name, value, self.allowed) from None
        if kind == CHOICE:
            try:
                return self.members[value]
            except (KeyError, TypeError):
                pass
            for known in self.members:
                if isinstance(value, type(known)):
                    raise value_error(name, value, self.allowed)
        elif kind == LITERAL:
            for known in self.options:
                if type(value) is type(known):
                    raise value_error(name, value, self.allowed)
        elif kind == UNION:
            return self._converted_by_one(name, value)
        raise type_error(name, value, self.allowed)

    cdef object _converted_by_one(self, str name, object value):
        error = type_error
        for rule in self.options:
            try:
                return (<Rule>rule).checked(name, value)
            except ValueError:
                error = value_error
            except TypeError:
                pass
        raise error(name, value, self.allowed)

    cdef object checked(self, str name, object value):
        if value is None and self.optional:
            return None
        if self.kind == UNION:
            for rule in self.options:
                if (<Rule>rule).fits(value):
                    value = (<Rule>rule).checked(name, value)
                    break
            else:
                value = self.converted(name, value)
        elif not self.fits(value):
            value = self.converted(name, value)
        if self.kind == MOMENT and not is_aware(value):
            raise value_error(name, value, self.allowed)
        if self.low is not None or self.high is not None:
            self._in_range(name, value)
        if self.least is not None or self.most is not None:
            self._of_length(name, value)
        if self.choices is not None and not self._chosen(value):
            raise value_error(name, value, self.allowed)
        if self.pattern is not None and self.pattern.search(value) is None:
            raise value_error(name, value, self.allowed)
        for call in self.calls:
            if not call(value):
                raise value_error(name, value, self.allowed)
        return value

    cdef bint _chosen(self, object value) except -1:
        for choice in self.choices:
            if type(choice) is type(value) and choice == value:
                return True
        return False

    cdef int _in_range(self, str name, object value) except -1:
        cdef bint inside = True
        try:
            if self.low is not None:
                inside = value > self.low if self.above else value >= self.low
            if inside and self.high is not None:
                inside = value < self.high if self.below else value <= self.high
        except TypeError:
            raise type_error(name, value, self.allowed) from None
        if not inside:
            raise value_error(name, value, self.allowed)
        return 0

    cdef int _of_length(self, str name, object value) except -1:
        cdef Py_ssize_t length
        # The length that a subclass may claim with a __len__ of its own does not count.
        if isinstance(value, str):
            length = PyUnicode_GetLength(value)
        elif isinstance(value, bytes):
            length = PyBytes_GET_SIZE(value)
        elif isinstance(value, list):
            length = PyList_Size(value)
        elif isinstance(value, tuple):
            length = PyTuple_Size(value)
        elif isinstance(value, dict):
            length = PyDict_Size(value)
        elif isinstance(value, (set, frozenset)):
            length = PySet_Size(value)
        else:
            try:
                length = len(value)
            except TypeError:
                raise type_error(name, value, self.allowed) from None
        if (self.least is not None and length < self.least) or (self.most is not None and length > self.most):
            raise value_error(name, value, self.allowed)
        return 0

    def fits_as_it_is(self, value):
        """Whether the value is of the rule's kind, whatever restricts it."""
        return self.fits(value)

    def check(self, str name, value):
        """The value as the field stores it; an error names the field, the value and what is allowed."""
        return self.checked(name, value)


KINDS = {
    "any": ANY, "text": TEXT, "integer": INTEGER, "number": NUMBER, "truth": TRUTH, "bytes": BYTES, "list": LIST,
    "dict": DICT, "set": SET, "frozenset": FROZEN_SET, "tuple": TUPLE, "moment": MOMENT, "date": DATE,
    "choice": CHOICE, "literal": LITERAL, "instance": INSTANCE, "union": UNION, "nothing": NOTHING,
}
HOWS = {
    "required": REQUIRED, "absent": ABSENT, "value": VALUE, "list": NEW_LIST, "dict": NEW_DICT, "factory": FACTORY,
    "uuid4": UUID4, "uuid7": UUID7, "now": NOW, "code": CODE, "when_touched": WHEN_TOUCHED,
}
STYLES = {
    "ordinary": ORDINARY, "coded": CODED, "clocked": CLOCKED, "touched": TOUCHED, "texts": TEXTS, "tags": TAGS,
}
cdef dict KIND_TEXTS = {
    ANY: "anything", TEXT: "a string", INTEGER: "an integer", NUMBER: "a number", TRUTH: "True or False",
    BYTES: "bytes", LIST: "a list", DICT: "a dict", SET: "a set", FROZEN_SET: "a frozenset", TUPLE: "a tuple",
    MOMENT: "a timezone-aware datetime", DATE: "a date", NOTHING: "None",
}


cdef PyTypeObject* exact_class(Rule rule) noexcept:
    """The class whose direct instances are of the kind, or NULL if there is none."""
    cdef int kind = rule.kind
    if kind == TEXT:
        return &PyUnicode_Type
    if kind == INTEGER:
        return &PyLong_Type
    if kind == NUMBER:
        return &PyFloat_Type
    if kind == TRUTH:
        return &PyBool_Type
    if kind == BYTES:
        return &PyBytes_Type
    if kind == LIST:
        return &PyList_Type
    if kind == DICT:
        return &PyDict_Type
    if kind == SET:
        return &PySet_Type
    if kind == FROZEN_SET:
        return &PyFrozenSet_Type
    if kind == TUPLE:
        return &PyTuple_Type
    if kind == CHOICE or kind == INSTANCE:
        return <PyTypeObject*>rule.cls
    return NULL


cdef int adopt(Field* field, Rule rule, bint validate) except -1:
    """Copy from the rule what the fast path reads."""
    cdef bint plain_bounds
    cdef PyObject* old = field.rule
    field.kind = <unsigned char>rule.kind
    field.optional = rule.optional
    field.exact = exact_class(rule)
    field.plain = field.exact != NULL and not (<Slots*>field.exact).tp_flags & Py_TPFLAGS_HAVE_GC
    field.bound = FREE
    plain_bounds = rule.pattern is None and rule.choices is None and not rule.calls
    if rule.least is not None or rule.most is not None:
        field.bound = CHECKED
        if rule.kind == TEXT and plain_bounds:
            field.bound = LENGTH
            field.least = 0 if rule.least is None else rule.least
            field.most = PY_SSIZE_T_MAX if rule.most is None else rule.most
    elif rule.low is not None or rule.high is not None:
        field.bound = CHECKED
        if rule.kind == NUMBER and plain_bounds and not rule.above and not rule.below:
            field.bound = SPAN
            field.low = float("-inf") if rule.low is None else rule.low
            field.high = float("inf") if rule.high is None else rule.high
    elif not plain_bounds:
        field.bound = CHECKED
    if rule.kind == ANY and field.bound != FREE:
        # There is no class that would do without a check.
        field.kind = UNION
    if not validate:
        field.kind = ANY
        field.exact = NULL
        field.plain = False
        field.bound = FREE
    if field.style != ORDINARY:
        field.kind = UNION
        field.exact = NULL
        field.plain = field.style == CODED or field.style == CLOCKED
    field.simple = INTRICATE
    if field.plain and field.exact != NULL and not field.keeps:
        field.simple = SIMPLE if field.bound == FREE else SIZED if field.bound == LENGTH else INTRICATE
    Py_INCREF(<PyObject*>rule)
    # A thread that makes a subclass reads it.
    store_pointer(<void**>&field.rule, <PyObject*>rule)
    Py_XDECREF(old)
    return 0


# --- Values ------------------------------------------------------------------------------------------------------


cdef inline bint collectable(PyObject* value) noexcept:
    """Whether the value may be part of a reference cycle."""
    return is_gc(value)


cdef inline void track(PyObject* op) noexcept:
    if not PyObject_GC_IsTracked(op):
        PyObject_GC_Track(op)


cdef inline bint of_length(Field* field, PyObject* value) noexcept:
    cdef Py_ssize_t length = PyUnicode_GET_LENGTH(value)
    return field.least <= length <= field.most


cdef inline bint within(Field* field, PyObject* value) noexcept:
    cdef double number
    if field.bound == LENGTH:
        return of_length(field, value)
    if field.bound == SPAN:
        number = PyFloat_AS_DOUBLE(value)
        return field.low <= number <= field.high
    return False


cdef PyObject* admit(Field* field, PyObject* value) except NULL:
    stored = (<Rule>field.rule).checked(<str>field.name, <object>value)
    return Py_NewRef(<PyObject*>stored)


cdef inline PyObject* taken(Field* field, PyObject* value, bint* cyclic) except NULL:
    """A new reference to the value as it is stored; sets `cyclic` if it may be part of a reference cycle."""
    if likely(Py_TYPE(value) == field.exact):
        if field.bound == FREE or within(field, value):
            if not field.plain:
                cyclic[0] = True
            return Py_NewRef(value)
    elif field.kind == ANY or (field.optional and value == Py_None):
        cyclic[0] |= collectable(value)
        return Py_NewRef(value)
    value = admit(field, value)
    cyclic[0] |= collectable(value)
    return value


cdef object peeked(PyObject* op, Field* field):
    """The field's value; AttributeError if it has none."""
    cdef PyObject* value
    cdef Section section
    if field.style == CODED:
        return owned(coded_value(op, field))
    if is_touched(field):
        return untouched_value(op, field)
    if field.lazy:
        return owned(lazy_value(op, field))
    hold(&section, op)
    value = slot_at(op, field.offset)[0]
    Py_XINCREF(value)
    let(&section)
    if value == NULL:
        raise AttributeError(f"{<object>field.name} is not set")
    return owned(value)


cdef object peeked_or(PyObject* op, Field* field, object default):
    try:
        return peeked(op, field)
    except AttributeError:
        return default


cdef int load_datetime() except -1:
    global datetime_class, date_class, timezone_class, utc
    from datetime import date, datetime, timezone
    utc = timezone.utc
    timezone_class = timezone
    date_class = date
    datetime_class = datetime
    return 0


cdef int start_lazy(PyObject* op, Field* field) except -1:
    """Give a field that is made when first read its number. The record is not shared yet."""
    cdef PyObject* word
    if field.how == NOW:
        slot_at(op, field.offset)[0] = word = number_word(wall_micros())
        if field.clock:
            slot_at(op, field.clock)[0] = word
        return 0
    want_serial()
    if field.how == UUID7:
        slot_at(op, field.clock)[0] = number_word(wall_micros() // 1000)
    slot_at(op, field.offset)[0] = number_word(take_serial())
    return 0


cdef object lazy_made(Field* field, PyObject* word, PyObject* clock):
    cdef uint64_t micros
    if field.how == NOW:
        if utc is None:
            load_datetime()
        micros = number_in(word)
        from datetime import timedelta
        return datetime_class.fromtimestamp(micros // 1_000_000, utc) + timedelta(microseconds=micros % 1_000_000)
    if field.how == UUID7:
        return timed_id_for(number_in(word), number_in(clock))
    return id_for(number_in(word))


cdef PyObject* lazy_value(PyObject* op, Field* field) except NULL:
    """A new reference to the value of a field that is made when first read."""
    cdef Section section
    cdef PyObject* word
    cdef PyObject* clock
    while True:
        clock = NULL
        hold(&section, op)
        word = slot_at(op, field.offset)[0]
        if word != NULL and not is_number(word):
            Py_INCREF(word)
            let(&section)
            return word
        if field.clock:
            clock = slot_at(op, field.clock)[0]
        let(&section)
        if word == NULL:
            if field.how != UUID4 and field.how != UUID7 and field.how != NOW:
                raise AttributeError(f"{<object>field.name} is not set")
            renew_lazy(op, field)
            continue
        made = lazy_made(field, word, clock)
        hold(&section, op)
        # Making it may have run a collection, and so code that set another value.
        if slot_at(op, field.offset)[0] == word:
            slot_at(op, field.offset)[0] = Py_NewRef(<PyObject*>made)
        let(&section)


cdef int renew_lazy(PyObject* op, Field* field) except -1:
    """Give the field a new number, whatever it holds."""
    cdef Section section
    cdef PyObject* old
    cdef uint64_t now = wall_micros()
    cdef uint64_t serial = now
    if field.how != NOW:
        want_serial()
        serial = take_serial()
    hold(&section, op)
    old = slot_at(op, field.offset)[0]
    slot_at(op, field.offset)[0] = number_word(serial)
    if field.clock:
        slot_at(op, field.clock)[0] = number_word(now if field.how == NOW else now // 1000)
    let(&section)
    if not is_number(old):
        Py_XDECREF(old)
    return 0


cdef void put(PyObject* op, Py_ssize_t offset, PyObject* value, bint cyclic) noexcept:
    """Replace a slot's value. Steals the reference to the new one."""
    cdef Section section
    cdef PyObject* old
    hold(&section, op)
    old = slot_at(op, offset)[0]
    # Readers on the free-threaded build take no lock.
    store_pointer(<void**>slot_at(op, offset), value)
    if cyclic and layout_of(op).gc:
        track(op)
    let(&section)
    if not is_number(old):
        Py_XDECREF(old)


# --- Memory ------------------------------------------------------------------------------------------------------


cdef int refuse_abstract(Layout* layout) except -1:
    cls = <object>layout.type
    methods = ", ".join(sorted(cls.__abstractmethods__))
    raise TypeError(f"Can't instantiate abstract class {cls.__name__} without an implementation of {methods}")


cdef inline PyObject* obtain(Layout* layout) except NULL:
    """An untracked record whose slots are NULL or hold numbers or, where the field keeps one, an idle container."""
    cdef PyObject* op = <PyObject*>freelist_pop(layout.idle)
    if likely(op != NULL):
        revive(op)
        return op
    if unlikely((<Slots*>layout.type).tp_flags & Py_TPFLAGS_IS_ABSTRACT):
        # Asked only here, since an abstract class has no idle records.
        refuse_abstract(layout)
    op = gc_new(layout.type) if layout.gc else plain_new(layout.type)
    if op == NULL:
        raise MemoryError()
    memset(<char*>op + sizeof(PyObject), 0, layout.end - sizeof(PyObject))
    return op


cdef PyObject* emptied(PyObject* container) noexcept:
    """Steals the reference. Returns the container emptied if it can be kept, otherwise drops it and returns NULL.

    Only an exact dict or list without other references is kept. The collector stops tracking it first: dropping its
    items may run any code, which must not find it through the collector.
    """
    cdef Py_ssize_t i, size
    cdef bint is_dict = PyDict_CheckExact(container)
    cdef bint tracked
    if (
        not uniquely_referenced(container)
        or not (is_dict or (PyList_CheckExact(container) and list_room(container) <= IDLE_LIST_ROOM))
    ):
        Py_DECREF(container)
        return NULL
    tracked = FREE_THREADED and PyObject_GC_IsTracked(container)
    PyObject_GC_UnTrack(container)
    if FREE_THREADED and not uniquely_referenced(container):
        # Another thread got it from the collector just before.
        if tracked:
            PyObject_GC_Track(container)
        Py_DECREF(container)
        return NULL
    if is_dict:
        if not is_fresh_dict(container):
            PyDict_Clear(container)
    else:
        size = PyList_GET_SIZE(container)
        # The list keeps its capacity, so that refilling it allocates nothing.
        resize(container, 0)
        for i in range(size):
            Py_DECREF(list_at(container, i))
    return container


cdef inline void drop_slots(PyObject* op, Layout* layout) noexcept:
    """Drop all values; leaves NULL and idle containers."""
    cdef PyObject** slot = slot_at(op, sizeof(PyObject))
    cdef PyObject** end = slot_at(op, layout.end)
    cdef PyObject* value
    if layout.specials:
        drop_marked(op, layout)
        return
    while slot < end:
        value = slot[0]
        slot[0] = NULL
        Py_XDECREF(value)
        slot += 1


cdef void drop_marked(PyObject* op, Layout* layout) noexcept:
    """`drop_slots` for a class some of whose slots may hold numbers, or containers to keep.

    Numbers stay: nothing reads them any more, and all of them are set again when the block is used.
    """
    cdef PyObject** slot
    cdef PyObject** end = slot_at(op, layout.end)
    cdef PyObject* value
    cdef Field* field
    cdef int i
    for i in range(layout.looses):
        slot = slot_at(op, layout.loose[i].offset)
        value = slot[0]
        if value == NULL or is_number(value):
            continue
        slot[0] = NULL
        field = layout.loose[i].field
        if (
            field == NULL or not field.keeps or not load_u8(&field.keep)
            # One of the other kind, which an annotation may allow, is no default.
            or PyDict_CheckExact(value) != (field.how == NEW_DICT or field.style == TOUCHED)
        ):
            Py_DECREF(value)
            continue
        value = emptied(value)
        if value != NULL:
            slot[0] = marked(value) if is_touched(field) else value
    slot = slot_at(op, layout.plain_from)
    while slot < end:
        value = slot[0]
        slot[0] = NULL
        Py_XDECREF(value)
        slot += 1


cdef void block_free(void* block) noexcept:
    """Free an idle block and the containers in it. Drops its reference to the class."""
    cdef PyObject* op = <PyObject*>block
    cdef PyTypeObject* cls = Py_TYPE(op)
    cdef Layout* layout = <Layout*>layout_at(cls)
    cdef int i
    if layout.keeping:
        for i in range(layout.specials):
            if layout.special[i].keeps:
                Py_XDECREF(unmarked(slot_at(op, layout.special[i].offset)[0]))
    if layout.gc:
        PyObject_GC_Del(op)
    else:
        PyObject_Free(op)
    Py_DECREF(<PyObject*>cls)


cdef bint revived_by_finalizer(PyObject* op, Layout* layout) noexcept:
    cdef Slots* cls = <Slots*>Py_TYPE(op)
    if cls.tp_finalize != NULL:
        if layout.gc:
            track(op)
        if PyObject_CallFinalizerFromDealloc(op) < 0:
            return True
    return False


cdef inline void dispose(PyObject* op, Layout* layout) noexcept:
    if layout.gc and is_tracked(op):
        PyObject_GC_UnTrack(op)
    if layout.weakrefs and slot_at(op, layout.weakrefs)[0] != NULL:
        PyObject_ClearWeakRefs(op)
    drop_slots(op, layout)
    # A finalised object is marked as such in its header, so its memory is not used again.
    if (<Slots*>layout.type).tp_finalize != NULL or not freelist_push(layout.idle, op):
        block_free(op)


cdef void dispose_nested(PyObject* op, Layout* layout) noexcept:
    cdef Nesting* nesting = nesting_here()
    if nesting.depth >= DEPTH:
        if layout.gc:
            PyObject_GC_UnTrack(op)
        if layout.weakrefs and slot_at(op, layout.weakrefs)[0] != NULL:
            # The link stands where the reference count does: a weak reference would take the record for a live one.
            PyObject_ClearWeakRefs(op)
        (<PyObject**>op)[0] = nesting.aside
        nesting.aside = op
        return
    nesting.depth += 1
    dispose(op, layout)
    while nesting.depth == 1 and nesting.aside != NULL:
        op = nesting.aside
        nesting.aside = link_of(op)
        (<PyObject**>op)[0] = NULL
        dispose(op, layout_of(op))
    nesting.depth -= 1


cdef void record_dealloc(PyObject* op) noexcept:
    cdef Layout* layout = layout_of(op)
    if unlikely((<Slots*>layout.type).tp_finalize != NULL) and revived_by_finalizer(op, layout):
        return
    if layout.nests:
        dispose_nested(op, layout)
    else:
        dispose(op, layout)


cdef int record_traverse(PyObject* op, visitproc visit, void* arg) noexcept:
    cdef Layout* layout = layout_of(op)
    cdef Py_ssize_t offset = sizeof(PyObject)
    cdef PyObject* value
    cdef int answer = visit(<PyObject*>Py_TYPE(op), arg)
    while not answer and offset < layout.end:
        value = slot_at(op, offset)[0]
        if value != NULL and not is_number(value) and offset != layout.weakrefs:
            answer = visit(value, arg)
        offset += sizeof(PyObject*)
    return answer


cdef int record_clear(PyObject* op) noexcept:
    cdef Layout* layout = layout_of(op)
    cdef Py_ssize_t offset = sizeof(PyObject)
    cdef PyObject* value
    while offset < layout.end:
        value = slot_at(op, offset)[0]
        if value != NULL and not is_number(value) and offset != layout.weakrefs and collectable(value):
            slot_at(op, offset)[0] = NULL
            Py_DECREF(value)
        offset += sizeof(PyObject*)
    return 0


# --- Construction ------------------------------------------------------------------------------------------------


cdef int bad_call(Layout* layout, str problem) except -1:
    raise TypeError(f"{(<object>layout.type).__name__}() {problem}")


cdef int find_name(Layout* layout, PyObject* name) except -1:
    """The index of a keyword argument that was not passed in the order of the parameters."""
    cdef int i
    for i in range(layout.parameters):
        if layout.names[i] == name:
            return i
    for i in range(layout.parameters):
        if same_text(layout.names[i], name):
            return i
    bad_call(layout, f"got an unexpected keyword argument '{<object>name}'")


cdef int bind(
    Layout* layout, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames, PyObject** given
) except -1:
    """Sort a vectorcall's arguments into the order of the fields; NULL where there is none."""
    cdef Py_ssize_t i
    cdef PyObject* name
    cdef PyObject** names = layout.names
    cdef PyObject** named
    cdef int at
    cdef int count = layout.parameters
    if unlikely(nargs > layout.positional):
        bad_call(layout, f"takes at most {layout.positional} positional arguments but {nargs} were given")
    for i in range(nargs):
        given[i] = args[i]
    for i in range(nargs, layout.count):
        given[i] = NULL
    if kwnames != NULL:
        at = <int>nargs
        named = tuple_items(kwnames)
        for i in range(PyTuple_GET_SIZE(kwnames)):
            name = named[i]
            while at < count and names[at] != name:
                at += 1
            if at == count:
                at = find_name(layout, name)
            if unlikely(given[at] != NULL):
                bad_call(layout, f"got multiple values for argument '{<object>name}'")
            given[at] = args[nargs + i]
            at += 1
    return 0


cdef inline Py_ssize_t in_order(Layout* layout, PyObject* kwnames, Py_ssize_t nargs, Py_ssize_t* stopped) noexcept:
    """How many arguments there are, if they are those of the first fields in their order.

    Otherwise -1; ``stopped`` is then the index of the first keyword that is not.
    """
    cdef Py_ssize_t i, keywords
    cdef PyObject** names = layout.names + nargs
    cdef PyObject** named
    if kwnames == NULL:
        return nargs
    keywords = PyTuple_GET_SIZE(kwnames)
    if unlikely(nargs + keywords > layout.parameters):
        stopped[0] = 0
        return -1
    named = tuple_items(kwnames)
    for i in range(keywords):
        if names[i] != named[i]:
            stopped[0] = i
            return -1
    return nargs + keywords


cdef inline Py_ssize_t bind_in_order(
    Layout* layout, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames, Py_ssize_t first, PyObject** given
) noexcept:
    """`bind` for keywords in the order of the parameters, some of which may be left out; -1 for all other calls.

    Returns how many fields it has sorted: the others are to have their defaults. `in_order` has compared the keywords
    before the ``first``.
    """
    cdef Py_ssize_t i, at = nargs + first
    cdef PyObject** names = layout.names
    cdef PyObject** named = tuple_items(kwnames)
    cdef PyObject* name
    cdef Py_ssize_t count = layout.parameters
    memcpy(given, args, at * sizeof(PyObject*))
    for i in range(first, PyTuple_GET_SIZE(kwnames)):
        name = named[i]
        while at < count and names[at] != name:
            given[at] = NULL
            at += 1
        if unlikely(at == count):
            return -1
        given[at] = args[nargs + i]
        at += 1
    return at


cdef int fill_container(PyObject* op, Field* field) except -1:
    """Make the idle container the field's value, or a new one."""
    cdef PyObject** slot = slot_at(op, field.offset)
    cdef PyObject* value = slot[0]
    if value != NULL and not uniquely_referenced(value):
        # Free-threaded build only: another thread made it, so this one can't read its reference count.
        slot[0] = NULL
        Py_DECREF(value)
        value = NULL
    if value == NULL:
        value = PyDict_New() if field.how == NEW_DICT else PyList_New(0)
        if value == NULL:
            raise MemoryError()
        slot[0] = value
    elif field.how == NEW_LIST or DICTS_TRACKED:
        PyObject_GC_Track(value)
    if field.keeps and load_u8(&field.keep) != KEEP:
        store_u8(&field.keep, KEEP)
    return 0


cdef int fill_default(PyObject* op, Layout* layout, Field* field, bint* cyclic) except -1:
    """Set a field that no argument was given for."""
    cdef PyObject* value
    if field.how == VALUE:
        value = shared(field.value)
        if value == NULL:
            raise MemoryError()
        slot_at(op, field.offset)[0] = value
        cyclic[0] |= collectable(value)
    elif field.how == NEW_LIST or field.how == NEW_DICT:
        fill_container(op, field)
        cyclic[0] = True
    elif field.how == FACTORY:
        made = owned_or_raise(PyObject_CallNoArgs(field.value))
        slot_at(op, field.offset)[0] = taken(field, <PyObject*>made, cyclic)
    elif field.how == REQUIRED:
        bad_call(layout, f"missing required argument: '{<object>field.name}'")
    elif field.how == CODE:
        slot_at(op, field.offset)[0] = field.initial
    elif field.how != ABSENT and field.how != WHEN_TOUCHED:
        start_lazy(op, field)
    return 0


cdef object owned_or_raise(PyObject* value):
    """A new reference as an object of Cython's; NULL stands for an error that is set."""
    if value == NULL:
        raise_set_error()
    return owned(value)


cdef extern from *:
    """
    #define synthex_error_is_set() (-1)
    """
    int raise_set_error "synthex_error_is_set"() except -1


cdef void drop_idle(PyObject* op, Field* field) noexcept:
    """An argument takes the place of the container that was kept."""
    cdef PyObject* idle = unmarked(slot_at(op, field.offset)[0])
    cdef unsigned char keep = load_u8(&field.keep)
    if idle != NULL:
        slot_at(op, field.offset)[0] = NULL
        if keep:
            store_u8(&field.keep, keep - 1)
        Py_DECREF(idle)


cdef inline int fill(
    PyObject* op, Layout* layout, PyObject* const* given, Py_ssize_t number, bint* cyclic
) except -1:
    """Set the first fields to what is given for them, and the others to their defaults."""
    cdef Field* field = layout.fields
    cdef Default* default
    cdef PyObject* value
    cdef Py_ssize_t i
    for i in range(number):
        value = given[i]
        if unlikely(value == NULL):
            value = field.initial
            if value == NULL:
                fill_default(op, layout, field, cyclic)
            else:
                if not is_number(value):
                    Py_INCREF(value)
                slot_at(op, field.offset)[0] = value
        elif likely(
            Py_TYPE(value) == field.exact
            and (field.simple == SIMPLE or (field.simple == SIZED and of_length(field, value)))
        ):
            Py_INCREF(value)
            slot_at(op, field.offset)[0] = value
        else:
            # What `taken` begins with, written out.
            if likely(Py_TYPE(value) == field.exact and (field.bound == FREE or within(field, value))):
                if not field.plain:
                    cyclic[0] = True
                Py_INCREF(value)
            elif unlikely(field.style != ORDINARY or (field.renews and value == Py_None)):
                fill_styled(op, layout, field, value, cyclic)
                field += 1
                continue
            else:
                value = taken(field, value, cyclic)
            if unlikely(field.keeps):
                drop_idle(op, field)
            slot_at(op, field.offset)[0] = value
        field += 1
    for i in range(layout.first_default[number], layout.defaults):
        default = &layout.default[i]
        if is_number(default.word):
            slot_at(op, default.offset)[0] = default.word
        elif default.word != NULL:
            Py_INCREF(default.word)
            slot_at(op, default.offset)[0] = default.word
        elif default.field.how == UUID4:
            want_serial()
            slot_at(op, default.offset)[0] = number_word(take_serial())
        elif default.field.how == NOW:
            slot_at(op, default.offset)[0] = value = number_word(wall_micros())
            if default.field.clock:
                slot_at(op, default.field.clock)[0] = value
        else:
            fill_default(op, layout, default.field, cyclic)
    for i in range(layout.laters):
        value = slot_at(op, layout.later[i].offset)[0]
        if unlikely(value != Py_None):
            compare_times(op, layout)
    return 0


ctypedef int (*fill_function)(PyObject*, Layout*, PyObject* const*, Py_ssize_t, bint*) noexcept


cdef inline PyObject* made(Layout* layout, PyObject* const* given, Py_ssize_t number) except NULL:
    cdef bint cyclic = layout.tracked
    cdef PyObject* op = obtain(layout)
    # Called as a function that can't raise, because the error has to free the record before it propagates.
    if unlikely((<fill_function>fill)(op, layout, given, number, &cyclic) < 0):
        Py_DECREF(op)
        return NULL
    if cyclic and layout.gc:
        PyObject_GC_Track(op)
    return op


cdef object stored_in(PyObject* op, Field* field):
    """The field's value; UNSET if it has none, or one that is not made yet."""
    cdef Section section
    cdef PyObject* value
    hold(&section, op)
    value = slot_at(op, field.offset)[0]
    if value == NULL or is_number(value):
        value = <PyObject*>UNSET
    Py_INCREF(value)
    let(&section)
    return owned(value)


cdef int check_fields(PyObject* op, Layout* layout, list known) except -1:
    """Check the fields of a record that was filled in another way, except those whose value is the one in `known`."""
    cdef Field* field
    cdef int64_t micros
    cdef bint cyclic
    cdef int i
    for i in range(layout.count):
        field = &layout.fields[i]
        if is_touched(field):
            # Checked whichever way it is set.
            continue
        value = stored_in(op, field)
        if value is not UNSET and (known is None or value is not known[i]):
            cyclic = False
            checked = owned(taken(field, <PyObject*>value, &cyclic))
            if field.style == CLOCKED:
                micros = micros_of(field, <PyObject*>checked)
                store_clocked(op, field, Py_NewRef(<PyObject*>checked), micros, cyclic)
            else:
                put(op, field.offset, Py_NewRef(<PyObject*>checked), cyclic)
    return compare_times(op, layout)


cdef int run_hook(PyObject* op, Layout* layout, object hook) except -1:
    """Run a ``__post_init__``. A frozen record can be assigned to until it returns, by ``object.__setattr__`` as well.

    What that stores is checked when the hook has returned.
    """
    cdef list known = []
    cdef int i
    if not layout.frozen:
        call_hook(hook, op)
        return 0
    for i in range(layout.count):
        value = stored_in(op, &layout.fields[i])
        known.append(value)
    if not initialize(op):
        raise MemoryError()
    try:
        call_hook(hook, op)
    finally:
        end_initialize(op)
    return check_fields(op, layout, known)


cdef int call_hook(object hook, PyObject* op) except -1:
    if PyObject_TypeCheck(<PyObject*>hook, &PyFunction_Type):
        hook(<object>op)
    else:
        bound = hook.__get__(<object>op, type(<object>op)) if hasattr(hook, "__get__") else hook
        bound()
    return 0


cdef object hook_after(object cls, object after):
    """The first ``__post_init__`` in the class's MRO, after a class of it or None, that a class body has; or None.

    It is the function that was written there, without the check that `record.py` puts around it.
    """
    cdef bint here = after is None
    for base in cls.__mro__:
        if not here:
            here = base is after
            continue
        if base is RecordBase:
            continue
        hook = base.__dict__.get("__post_init__", UNSET)
        if hook is not UNSET and not hasattr(hook, "__checks_for__"):
            return getattr(hook, "__wrapped_hook__", hook)
    return None


cdef int post_init(PyObject* op, Layout* layout) except -1:
    """Run the class's ``__post_init__``."""
    return run_hook(op, layout, <object>layout.post_init)


ctypedef int (*post_init_function)(PyObject*, Layout*) noexcept


cdef inline PyObject* completed(PyObject* op, Layout* layout) except NULL:
    """Run ``__post_init__``. Steals the reference if that raises."""
    if layout.post_init != NULL and unlikely((<post_init_function>post_init)(op, layout) < 0):
        Py_DECREF(op)
        return NULL
    return op


cdef int prepare(PyTypeObject* cls) except -1:
    """Called before a class that isn't ready makes a record."""
    cdef Layout* layout = <Layout*>layout_at(cls)
    name = (<object>cls).__qualname__
    if layout == NULL:
        raise TypeError(f"{name} can't be used before it is complete")
    if layout.state == CLEARED:
        raise TypeError(f"{name} has been freed by the garbage collector")
    resolve(<object>cls)
    return 0


cdef inline Layout* ready(PyTypeObject* cls) except NULL:
    cdef Layout* layout = <Layout*>layout_at(cls)
    if unlikely(layout == NULL or load_state(&layout.state) != READY):
        prepare(cls)
    return layout


cdef PyObject* made_of_many(
    Layout* layout, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames
) except NULL:
    """A record of a class with more fields than the stack has room for."""
    cdef PyObject* op
    cdef PyObject** given = <PyObject**>PyMem_RawCalloc(layout.count, sizeof(PyObject*))
    if given == NULL:
        raise MemoryError()
    try:
        bind(layout, args, nargs, kwnames, given)
        op = made(layout, given, layout.count)
    finally:
        PyMem_RawFree(given)
    return op


cdef PyObject* record_call(PyObject* cls, PyObject* const* args, size_t nargsf, PyObject* kwnames) except NULL:
    cdef PyObject* given[ARGUMENTS_ON_STACK]
    cdef PyObject* op
    cdef Layout* layout = ready(<PyTypeObject*>cls)
    cdef Py_ssize_t nargs = PyVectorcall_NARGS(nargsf)
    cdef Py_ssize_t stopped = 0
    cdef Py_ssize_t number = -1
    if likely(nargs <= layout.positional):
        number = in_order(layout, kwnames, nargs, &stopped)
    if likely(number >= 0):
        op = made(layout, args, number)
    elif layout.count > ARGUMENTS_ON_STACK:
        op = made_of_many(layout, args, nargs, kwnames)
    else:
        if nargs <= layout.positional:
            number = bind_in_order(layout, args, nargs, kwnames, stopped, given)
        if unlikely(number < 0):
            bind(layout, args, nargs, kwnames, given)
            number = layout.count
        op = made(layout, given, number)
    return completed(op, layout)


cdef PyObject* bare(PyTypeObject* cls) except NULL:
    """A record none of whose fields is set."""
    cdef Layout* layout = ready(cls)
    cdef PyObject* op = obtain(layout)
    cdef PyObject* idle
    cdef int i
    for i in range(layout.specials):
        idle = slot_at(op, layout.special[i].offset)[0]
        slot_at(op, layout.special[i].offset)[0] = NULL
        if layout.special[i].clock:
            slot_at(op, layout.special[i].clock)[0] = NULL
        if layout.special[i].keeps:
            Py_XDECREF(unmarked(idle))
    if layout.tracked:
        PyObject_GC_Track(op)
    return op


cdef PyObject* record_new(PyTypeObject* cls, PyObject* args, PyObject* kwargs) except NULL:
    cdef PyObject* op
    if not PyObject_TypeCheck(<PyObject*>cls, &meta_type):
        raise TypeError(f"{(<object>cls).__name__} can't be instantiated")
    op = blank(cls) if ready(cls).blank else bare(cls)
    if (<Layout*>layout_at(cls)).gc:
        # Whoever fills it may store values without our knowledge.
        track(op)
    return op


cdef void exchange(PyObject* op, PyObject* other, Layout* layout) noexcept:
    """Swap the fields of a record with those of one of the same class that only the caller refers to."""
    cdef Section section
    cdef Field* field
    cdef PyObject** mine
    cdef PyObject** theirs
    cdef PyObject* value
    cdef int i
    hold(&section, op)
    for i in range(layout.count):
        field = &layout.fields[i]
        mine = slot_at(op, field.offset)
        theirs = slot_at(other, field.offset)
        value = mine[0]
        store_pointer(<void**>mine, theirs[0])
        theirs[0] = value
        if field.clock:
            mine = slot_at(op, field.clock)
            theirs = slot_at(other, field.clock)
            mine[0], theirs[0] = theirs[0], mine[0]
    if layout.gc:
        if PyObject_GC_IsTracked(other):
            track(op)
        elif PyObject_GC_IsTracked(op):
            # It has the old values now.
            PyObject_GC_Track(other)
            if not layout.extras:
                PyObject_GC_UnTrack(op)
    let(&section)


cdef object blank_of(Field* field):
    """What a field that has no default is reset to; UNSET stands for nothing."""
    cdef int kind = (<Rule>field.rule).kind
    if field.optional or kind == NOTHING:
        return None
    if kind == TEXT:
        return ""
    if kind == INTEGER:
        return 0
    if kind == NUMBER:
        return 0.0
    if kind == TRUTH:
        return False
    if kind == BYTES:
        return b""
    if kind == LIST:
        return []
    if kind == DICT:
        return {}
    if kind == SET:
        return set()
    if kind == FROZEN_SET:
        return frozenset()
    if kind == TUPLE:
        return ()
    return UNSET


cdef int fill_blank(PyObject* op, Layout* layout, bint* cyclic) except -1:
    cdef Field* field
    cdef int i
    for i in range(layout.count):
        field = &layout.fields[i]
        if field.how != REQUIRED:
            fill_default(op, layout, field, cyclic)
            continue
        blank = blank_of(field)
        if blank is not UNSET:
            slot_at(op, field.offset)[0] = Py_NewRef(<PyObject*>blank)
            cyclic[0] |= collectable(<PyObject*>blank)
    return 0


ctypedef int (*blank_function)(PyObject*, Layout*, bint*) noexcept


cdef PyObject* blank(PyTypeObject* cls) except NULL:
    """A record as `reset` leaves it."""
    cdef Layout* layout = ready(cls)
    cdef bint cyclic = layout.tracked
    cdef PyObject* op = obtain(layout)
    if (<blank_function>fill_blank)(op, layout, &cyclic) < 0:
        Py_DECREF(op)
        return NULL
    if cyclic and layout.gc:
        PyObject_GC_Track(op)
    return op


# --- Attributes --------------------------------------------------------------------------------------------------


cdef inline Field* find(Layout* layout, PyObject* name) noexcept:
    """The field of that name, or NULL."""
    cdef int i
    for i in range(layout.count):
        if layout.names[i] == name:
            return &layout.fields[i]
    for i in range(layout.count):
        if same_text(layout.names[i], name):
            return &layout.fields[i]
    return NULL


cdef int refuse_frozen(PyObject* name, PyObject* value) except -1:
    if FrozenInstanceError is None:
        load_frozen_error()
    raise FrozenInstanceError(f"cannot {'delete' if value == NULL else 'assign to'} field '{<object>name}'")


cdef int load_frozen_error() except -1:
    global FrozenInstanceError
    from dataclasses import FrozenInstanceError as error
    FrozenInstanceError = error
    return 0


cdef int assign(PyObject* op, Field* field, PyObject* value) except -1:
    cdef bint cyclic = False
    if unlikely(field.style != ORDINARY or field.after != NULL):
        assign_styled(op, field, value)
    elif field.renews and value == Py_None:
        renew_lazy(op, field)
    else:
        value = taken(field, value, &cyclic)
        put(op, field.offset, value, cyclic)
    return 0


cdef int record_setattro(PyObject* op, PyObject* name, PyObject* value) except -1:
    cdef Layout* layout = layout_of(op)
    cdef Field* field
    if unlikely(layout.frozen) and not is_initialized(op):
        refuse_frozen(name, value)
    field = find(layout, name)
    if field == NULL:
        PyObject_GenericSetAttr(op, name, value)
        if layout.gc:
            # A slot that is no field, or the __dict__, holds it now.
            track(op)
        return 0
    if value == NULL:
        raise AttributeError(f"{<object>name} cannot be deleted")
    if unlikely(load_state(&layout.state) != READY):
        prepare(layout.type)
    return assign(op, field, value)


cdef PyObject* get_lazy(PyObject* op, void* closure) except NULL:
    return lazy_value(op, field_here(op, <Field*>closure))


cdef int set_lazy(PyObject* op, PyObject* value, void* closure) except -1:
    # Reached only through the descriptor itself, which is checked less, as a member descriptor's is.
    cdef Field* field = <Field*>closure
    if value == NULL:
        raise AttributeError(f"{<object>field.name} cannot be deleted")
    if field.style == CLOCKED:
        set_clocked(op, field, value)
    elif field.renews and value == Py_None:
        renew_lazy(op, field)
    else:
        put(op, field.offset, Py_NewRef(value), True)
    return 0


# `object.__setattr__` refuses an object if a class that is not written in Python assigns attributes in its own way. So
# RecordBase has these as plain methods, and only classes that are not frozen get `record_setattro` itself in the slot.
cdef PyObject* set_attribute(PyObject* op, PyObject* const* args, Py_ssize_t nargs) except NULL:
    if nargs != 2:
        raise TypeError(f"expected 2 arguments, got {nargs}")
    want_name(<object>args[0])
    record_setattro(op, args[0], args[1])
    return Py_NewRef(Py_None)


cdef PyObject* delete_attribute(PyObject* op, PyObject* name) except NULL:
    want_name(<object>name)
    record_setattro(op, name, NULL)
    return Py_NewRef(Py_None)


cdef int want_name(object name) except -1:
    if not isinstance(name, str):
        raise TypeError(f"attribute name must be string, not '{type(name).__name__}'")
    return 0


cdef bint sets_itself(object cls) except -1:
    """Whether attributes of the class's records are set in no other way than here."""
    return cls.__setattr__ is RecordBase.__setattr__ and cls.__delattr__ is RecordBase.__delattr__


cdef PyGetSetDef dict_attribute = PyGetSetDef(
    "__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, "The attributes that are no fields.", NULL
)


include "_record_styles.pxi"


# --- The metaclass -----------------------------------------------------------------------------------------------


cdef PyObject* meta_new(PyTypeObject* meta, PyObject* args, PyObject* kwargs) except NULL:
    if declare is None:
        load_makers()
    options = {} if kwargs == NULL else <dict>kwargs
    made = declare(<object>meta, *<tuple>args, **options)
    return Py_NewRef(<PyObject*>made)


cdef int meta_init(PyObject* cls, PyObject* args, PyObject* kwargs) except -1:
    return 0


cdef void layout_drop(Layout* layout) noexcept:
    """Drop the references that a layout has to anything but the names."""
    cdef PyObject* old
    cdef int i
    layout.defaults = 0
    for i in range(layout.count):
        if layout.fields[i].how == VALUE:
            layout.fields[i].initial = NULL
        old = layout.fields[i].value
        layout.fields[i].value = NULL
        Py_XDECREF(old)
        old = layout.fields[i].rule
        layout.fields[i].rule = NULL
        Py_XDECREF(old)
    old = layout.post_init
    layout.post_init = NULL
    Py_XDECREF(old)
    old = layout.reset
    layout.reset = NULL
    Py_XDECREF(old)


cdef void layout_free(Layout* layout) noexcept:
    cdef int i
    if layout.fields != NULL:
        layout_drop(layout)
        for i in range(layout.count):
            Py_XDECREF(layout.fields[i].name)
            Py_XDECREF(layout.fields[i].description)
    if layout.idle != NULL:
        freelist_delete(layout.idle)
    PyMem_RawFree(layout.fields)
    PyMem_RawFree(layout.names)
    PyMem_RawFree(layout.order)
    PyMem_RawFree(layout.special)
    PyMem_RawFree(layout.loose)
    PyMem_RawFree(layout.later)
    PyMem_RawFree(layout.default)
    PyMem_RawFree(layout.first_default)
    PyMem_RawFree(layout.attributes)
    PyMem_RawFree(layout)


cdef int meta_traverse(PyObject* cls, visitproc visit, void* arg) noexcept:
    cdef Layout* layout = <Layout*>layout_at(cls)
    cdef int i, answer
    cdef Py_ssize_t _idle
    if layout != NULL:
        for i in range(layout.count):
            if layout.fields[i].value != NULL:
                answer = visit(layout.fields[i].value, arg)
                if answer:
                    return answer
            if layout.fields[i].rule != NULL:
                answer = visit(layout.fields[i].rule, arg)
                if answer:
                    return answer
        if layout.post_init != NULL:
            answer = visit(layout.post_init, arg)
            if answer:
                return answer
        if layout.reset != NULL:
            answer = visit(layout.reset, arg)
            if answer:
                return answer
        # Each idle block has a reference to the class.
        for _idle in range(freelist_stats(layout.idle, NULL)):
            answer = visit(cls, arg)
            if answer:
                return answer
    return (<Slots*>&PyType_Type).tp_traverse(cls, visit, arg)


cdef int meta_clear(PyObject* cls) noexcept:
    cdef Layout* layout = <Layout*>layout_at(cls)
    if layout != NULL:
        # Records that are garbage too may still be deallocated, but nothing may be made any more.
        store_state(&layout.state, CLEARED)
        freelist_resize(layout.idle, 0)
        layout_drop(layout)
    return (<Slots*>&PyType_Type).tp_clear(cls)


cdef void meta_dealloc(PyObject* cls) noexcept:
    cdef Layout* layout = <Layout*>layout_at(cls)
    # What deallocates a class expects it tracked, but the collector must not meet this one half empty.
    PyObject_GC_UnTrack(cls)
    if layout != NULL:
        put_layout(cls, NULL)
        layout_free(layout)
    PyObject_GC_Track(cls)
    (<Slots*>&PyType_Type).tp_dealloc(cls)


cdef int meta_setattro(PyObject* cls, PyObject* name, PyObject* value) except -1:
    if <object>name == "stats" and layout_at(cls) != NULL:
        raise TypeError(f"cannot set stats of {(<object>cls).__name__}")
    if <object>name == "__dataclass_params__":
        # The first thing that `dataclasses.dataclass` does. Its methods would bypass the checks.
        raise TypeError(
            f"{(<object>cls).__name__} is a Record, which is a dataclass already: "
            "pass the decorator's arguments as class options instead"
        )
    (<Slots*>&PyType_Type).tp_setattro(cls, name, value)
    # The functions that a layout remembers, and the slots that a class written in Python inherits from it.
    if <object>name in ("__init__", "__new__", "__post_init__"):
        refresh(<object>cls)
    return 0


cdef int refresh(object cls) except -1:
    """Look up again what a class or a base of it defines in Python."""
    cdef Layout* layout = <Layout*>layout_at(<void*>cls)
    cdef PyObject* old
    if layout != NULL:
        hook = hook_after(cls, None)
        old = layout.post_init
        layout.post_init = NULL if hook is None else Py_NewRef(<PyObject*>hook)
        if not FREE_THREADED:
            # Without the GIL another thread may be about to call it. It is dropped with the process then.
            Py_XDECREF(old)
        set_call(<PyTypeObject*>cls)
    for sub in type.__subclasses__(cls):
        refresh(sub)
    return 0


cdef void set_call(PyTypeObject* cls) noexcept:
    """Construction is ours unless a class has an __init__ or a __new__ of its own."""
    cdef Slots* slots = <Slots*>cls
    if slots.tp_new == record_new and slots.tp_init == (<Slots*>(<PyTypeObject*>RecordBase)).tp_init:
        slots.tp_vectorcall = record_call
    else:
        slots.tp_vectorcall = NULL


# --- What every record has ---------------------------------------------------------------------------------------


cdef dict counts(Layout* layout):
    cdef int64_t totals[COUNTS]
    cdef Py_ssize_t idle = freelist_stats(layout.idle, totals)
    cdef int64_t made = totals[<int>MISSED] + totals[<int>REUSED]
    return {
        "created": totals[<int>MISSED],
        "reused": totals[<int>REUSED],
        "released": totals[<int>RELEASED],
        "discarded": totals[<int>DISCARDED],
        "aliased": 0,
        "pool_size": idle,
        "reuse_rate": <double>totals[<int>REUSED] / made if made else 0.0,
        "held_elsewhere": False,
    }


class RecordStats(dict):
    """Counts of a record class since it was made, under the names that `ObjectPool.stats` gives them; a dict.

    ``created`` counts the records whose memory was newly allocated, ``reused`` those built in memory used before.
    ``aliased`` is always 0 and ``held_elsewhere`` False, because memory is reused only once nothing refers to the
    record. Instances of subclasses are not counted. Calling it, as in ``Order.stats()``, returns the current counts as
    a plain dict.

    >>> from synthex_fast import Record
    >>> class Order(Record):
    ...     customer: str
    >>> Order.stats["aliased"], Order.stats()["aliased"]
    (0, 0)
    """

    # Not a cdef class, whose __call__ would have no signature that inspect and stubtest can read.
    __slots__ = ("_cls",)

    def __call__(self):
        return counts(<Layout*>layout_at(<void*>self._cls))

    def __reduce__(self):
        # The counts belong to this process: a copy is a plain dict.
        return dict, (dict(self),)


cdef object HERE = object()


@cython.final
@cython.internal
cdef class ClassAttribute:
    """An attribute of record classes and of their instances: ``stats``, or else ``acquire``.

    ``stats`` is a new `RecordStats` each time. ``acquire`` is the class, so that calling it is the same.
    """

    cdef bint counts

    def __cinit__(self, bint counts, made_here):
        if made_here is not HERE:
            raise TypeError("this attribute can't be made elsewhere")
        self.counts = counts

    def __get__(self, instance, owner):
        if not self.counts:
            return owner
        if layout_at(<void*>owner) == NULL:
            raise AttributeError("stats")
        stats = RecordStats(counts(<Layout*>layout_at(<void*>owner)))
        stats._cls = owner
        return stats


cdef object extra_state(object self, Layout* layout):
    """What an instance has besides its fields: its ``__dict__``, and slots that are no fields."""
    if not layout.extras:
        return None
    state = object.__getstate__(self)
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if slots:
        slots = dict(slots)
        for i in range(layout.count):
            slots.pop(<str>layout.names[i], None)
    return (attributes, slots) if attributes or slots else None


cdef int check_extra(object self, Layout* layout, object extra) except -1:
    """That `restore_extra` can restore it, and that it has no value of a field, which would not be checked."""
    cdef type cls = type(self)
    if extra is None:
        return 0
    if not isinstance(extra, tuple) or len(<tuple>extra) != 2:
        raise value_error("state", extra, "what __getstate__() returned")
    attributes, slots = extra
    for part in (attributes, slots):
        if not (part is None or isinstance(part, dict)):
            raise value_error("state", part, "what __getstate__() returned")
    if attributes and (<Slots*><PyTypeObject*>cls).tp_dictoffset == 0:
        raise value_error("state", attributes, f"without attributes, for which {cls.__qualname__} has no __dict__")
    for name in slots or ():
        if not isinstance(name, str) or find_named(layout, name) != NULL or not hasattr(cls, name):
            raise value_error("state", name, f"a slot of {cls.__qualname__}")
    return 0


cdef int restore_extra(object self, object extra) except -1:
    if extra is None:
        return 0
    attributes, slots = extra
    if slots:
        for name, value in slots.items():
            PyObject_GenericSetAttr(<PyObject*>self, <PyObject*>name, <PyObject*>value)
    if attributes:
        self.__dict__.update(attributes)
    if layout_of(<PyObject*>self).gc:
        track(<PyObject*>self)
    return 0


cdef int set_raw(PyObject* op, Field* field, PyObject* value) noexcept:
    """Store a value that another record held, unchecked."""
    put(op, field.offset, Py_NewRef(value), collectable(value))
    return 0


cdef object copy_of(object self, object memo):
    """A shallow copy, or a deep one if there is a memo. Identifiers and times that were never read are the same too."""
    cdef PyObject* op = <PyObject*>self
    cdef Layout* layout = layout_of(op)
    cdef PyObject* word
    cdef PyObject* clock
    cdef Field* field
    cdef Section section
    cdef int i
    twin = owned(bare(layout.type))
    if memo is not None:
        from copy import deepcopy
        memo[id(self)] = twin
    for i in range(layout.count):
        field = &layout.fields[i]
        if field.lazy:
            clock = NULL
            hold(&section, op)
            word = slot_at(op, field.offset)[0]
            if field.clock:
                clock = slot_at(op, field.clock)[0]
            if not is_number(word):
                Py_XINCREF(word)
            let(&section)
            if word == NULL:
                continue
            # A deep copy of another field may have reached the twin and read it, or set it.
            if is_number(word):
                put(<PyObject*>twin, field.offset, word, False)
            else:
                value = owned(word)
                if memo is not None:
                    value = deepcopy(value, memo)
                set_raw(<PyObject*>twin, field, <PyObject*>value)
            if clock != NULL:
                slot_at(<PyObject*>twin, field.clock)[0] = clock
            continue
        elif is_touched(field) and not has_contents(op, field):
            continue
        value = peeked_or(op, field, UNSET)
        if value is UNSET:
            continue
        if memo is not None:
            value = deepcopy(value, memo)
        set_raw(<PyObject*>twin, field, <PyObject*>value)
    extra = extra_state(self, layout)
    if extra is not None:
        restore_extra(twin, deepcopy(extra, memo) if memo is not None else extra)
    return twin


cdef bint same_word(PyObject* one, PyObject* other, Field* field, bint* different) noexcept:
    """Whether neither of two lazily made values has been read, and then whether they are different."""
    cdef PyObject* a
    cdef PyObject* b
    if not field.lazy:
        return False
    a = <PyObject*>load_pointer(<void**>slot_at(one, field.offset))
    b = <PyObject*>load_pointer(<void**>slot_at(other, field.offset))
    if is_number(a) and is_number(b):
        different[0] = a != b
        return True
    return False


cdef object compared(object self, object other, int op):
    cdef Layout* layout = layout_of(<PyObject*>self)
    cdef Field* field
    cdef list pairs = []
    cdef bint different = False
    cdef int i
    if type(self) is not type(other) or not layout.eq or (op != Py_EQ and op != Py_NE and not layout.ordered):
        return NotImplemented
    # All values are taken before any is compared, because comparing may run code that changes them.
    for i in range(layout.count):
        field = &layout.fields[layout.order[i]]
        if not field.compared:
            continue
        if same_word(<PyObject*>self, <PyObject*>other, field, &different):
            if not different:
                continue
            if op == Py_EQ:
                return False
            if op == Py_NE:
                return True
        mine = peeked_or(<PyObject*>self, field, UNSET)
        theirs = peeked_or(<PyObject*>other, field, UNSET)
        if mine is theirs:
            continue
        if (
            PyUnicode_CheckExact(<PyObject*>mine) and PyUnicode_CheckExact(<PyObject*>theirs)
            and same_text(<PyObject*>mine, <PyObject*>theirs)
        ):
            continue
        pair = (mine, theirs)
        pairs.append(pair)
    for mine, theirs in pairs:
        if mine == theirs:
            continue
        if op == Py_EQ:
            return False
        if op == Py_NE:
            return True
        if op == Py_LT:
            return mine < theirs
        if op == Py_LE:
            return mine <= theirs
        if op == Py_GT:
            return mine > theirs
        return mine >= theirs
    return op == Py_EQ or op == Py_LE or op == Py_GE


cdef class RecordBase:
    """The methods of all records that are written in C; `synthex_fast.Record` adds those written in Python."""

    def __init__(self, *args, **kwargs):
        cdef PyObject* op = <PyObject*>self
        cdef Layout* layout = ready(Py_TYPE(op))
        names, values = tuple(kwargs), args + tuple(kwargs.values())
        fresh = owned(made_of_many(layout, tuple_items(<PyObject*>values), len(args), <PyObject*>names))
        exchange(op, <PyObject*>fresh, layout)
        if layout.post_init != NULL:
            post_init(op, layout)

    def __post_init__(self):
        """Check every field again.

        For libraries that fill a record without calling its class. Construction calls only one that a class defines,
        be it a base that is no record and stands behind: that one is called from here as well.
        """
        check_and_run(self, hook_after(type(self), RecordBase))

    def reset(self):
        """Set every field back to its default, and fields without one to an empty value.

        Those are the empty string, 0, False, an empty container, or None if it is allowed; a field of another kind is
        then not set. Identifiers and times are made anew. Containers that are referenced elsewhere are replaced, not
        changed. Then the class's ``reset`` function runs, if it has one.
        """
        cdef PyObject* op = <PyObject*>self
        cdef Layout* layout = ready(Py_TYPE(op))
        if layout.frozen:
            refuse_frozen(<PyObject*>"reset", NULL)
        fresh = owned(blank(layout.type))
        exchange(op, <PyObject*>fresh, layout)
        # Deallocating the old contents as a record keeps their containers for reuse.
        fresh = None
        if layout.reset != NULL:
            (<object>layout.reset)(self)

    def release(self):
        """Drop the contents now, as `reset` does; the memory is reused after the last reference is dropped.

        Safe to call more than once.
        """
        self.reset()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.release()

    def __repr__(self):
        cdef Layout* layout = layout_of(<PyObject*>self)
        cdef Field* field
        cdef list parts = []
        cdef int i
        if Py_ReprEnter(self):
            return f"{type(self).__qualname__}(...)"
        try:
            for i in range(layout.count):
                field = &layout.fields[layout.order[i]]
                if field.style == CODED:
                    value = coded_text(<PyObject*>self, field)
                else:
                    value = peeked_or(<PyObject*>self, field, UNSET)
                if field.shown and value is not UNSET:
                    part = f"{<str>field.name}={value!r}"
                    parts.append(part)
            return f"{type(self).__qualname__}({', '.join(parts)})"
        finally:
            Py_ReprLeave(self)

    def __rich_repr__(self):
        cdef Layout* layout = layout_of(<PyObject*>self)
        cdef Field* field
        cdef list parts = []
        cdef int i
        for i in range(layout.count):
            field = &layout.fields[layout.order[i]]
            value = peeked_or(<PyObject*>self, field, UNSET)
            if field.shown and value is not UNSET:
                part = (<str>field.name, value)
                parts.append(part)
        return iter(parts)

    def __eq__(self, other):
        return compared(self, other, Py_EQ)

    def __ne__(self, other):
        if (<Slots*>Py_TYPE(<PyObject*>self)).tp_richcompare != (<Slots*><PyTypeObject*>RecordBase).tp_richcompare:
            # The class may have an __eq__ of its own.
            return object.__ne__(self, other)
        return compared(self, other, Py_NE)

    def __lt__(self, other):
        return compared(self, other, Py_LT)

    def __le__(self, other):
        return compared(self, other, Py_LE)

    def __gt__(self, other):
        return compared(self, other, Py_GT)

    def __ge__(self, other):
        return compared(self, other, Py_GE)

    def __hash__(self):
        cdef Layout* layout = layout_of(<PyObject*>self)
        cdef Field* field
        cdef list values = []
        cdef int i
        if not layout.eq:
            return object.__hash__(self)
        # Neither hash() nor a tuple's notices that records in records nest too deeply.
        Py_EnterRecursiveCall(" while hashing a record")
        try:
            for i in range(layout.count):
                field = &layout.fields[layout.order[i]]
                if field.hashed:
                    value = peeked(<PyObject*>self, field)
                    values.append(value)
            return hash(tuple(values))
        finally:
            Py_LeaveRecursiveCall()

    def __copy__(self):
        return copy_of(self, None)

    def __deepcopy__(self, memo):
        return copy_of(self, memo)

    def __replace__(self, /, **changes):
        cdef Layout* layout = layout_of(<PyObject*>self)
        cdef Field* field
        cdef int i
        for i in range(layout.count):
            field = &layout.fields[i]
            name = <str>field.name
            if i >= layout.parameters:
                if name in changes:
                    raise ValueError(f"field {name} is declared with init=False, it cannot be specified with replace()")
            elif name not in changes:
                value = peeked_or(<PyObject*>self, field, UNSET)
                if value is not UNSET:
                    changes[name] = value
        return PyObject_VectorcallDict(type(self), NULL, 0, changes)

    def __reduce__(self):
        from copyreg import __newobj__
        return __newobj__, (type(self),), self.__getstate__()

    def __getstate__(self):
        cdef Layout* layout = layout_of(<PyObject*>self)
        cdef Field* field
        cdef dict fields = {}
        cdef int i
        for i in range(layout.count):
            field = &layout.fields[layout.order[i]]
            if field.style == CODED:
                value = coded_text(<PyObject*>self, field)
            else:
                value = peeked_or(<PyObject*>self, field, UNSET)
            if value is not UNSET:
                fields[<str>field.name] = value
        return fields, extra_state(self, layout)

    def __setstate__(self, state):
        cdef PyObject* op = <PyObject*>self
        cdef Layout* layout = ready(Py_TYPE(op))
        cdef Field* field
        cdef bint cyclic = True
        cdef int i
        if not (isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict)):
            raise value_error("state", state, "what __getstate__() returned")
        fields, extra = state
        # All is checked before anything is changed. A field that the pickled class did not have gets its default.
        fresh = owned(bare(layout.type))
        for i in range(layout.count):
            field = &layout.fields[i]
            given = fields.get(<str>field.name, UNSET)
            if given is not UNSET:
                restore(<PyObject*>fresh, layout, field, given)
            elif field.how != REQUIRED:
                fill_default(<PyObject*>fresh, layout, field, &cyclic)
        for name in fields:
            if find_named(layout, name) == NULL:
                raise value_error("state", name, f"a field of {type(self).__qualname__}")
        check_extra(self, layout, extra)
        compare_times(<PyObject*>fresh, layout)
        exchange(op, <PyObject*>fresh, layout)
        if layout.gc:
            track(op)
        restore_extra(self, extra)


cdef Field* find_named(Layout* layout, object name) noexcept:
    return find(layout, <PyObject*>name) if isinstance(name, str) else NULL


# --- Making a class ----------------------------------------------------------------------------------------------


cdef Py_ssize_t offset_of(object cls, str slot) except -1:
    """The offset of a slot that the class itself has made."""
    cdef Py_ssize_t offset = member_offset(<PyObject*>cls.__dict__[slot])
    if offset == 0:
        raise SystemError(f"{slot} is no slot")
    return offset


cdef Field* base_field(PyTypeObject* cls, object name) except? NULL:
    """The field of that name which the class's layout begins with."""
    cdef Layout* base = <Layout*>layout_at((<Slots*>cls).tp_base)
    cdef PyTypeObject* parent = (<Slots*>cls).tp_base
    cdef Field* found = NULL
    if PyObject_TypeCheck(<PyObject*>parent, &meta_type) and base != NULL:
        found = find_named(base, name)
    if found == NULL:
        raise TypeError(f"{name}: no base class has a slot for this field")
    return found


cdef int declare_field(Layout* layout, Field* field, object cls, tuple given) except -1:
    """Fill in a field that the class declares; returns which parameter it is."""
    cdef Field* inherited
    name, rule, how, value, slot, clock, parameter, shown, compared_, hashed = given[:10]
    Py_INCREF(<PyObject*>name)
    field.name = <PyObject*>name
    PyUnicode_InternInPlace(&field.name)
    # From here on, an error frees what the field owns.
    layout.count += 1
    field.how = how
    if how == VALUE or how == FACTORY or how == CODE:
        field.value = Py_NewRef(<PyObject*>value)
    if len(given) > 10:
        field.style = given[10]
        if given[12] is not None:
            field.description = Py_NewRef(<PyObject*>given[12])
    field.lazy = how in (UUID4, UUID7, NOW)
    if slot is not None:
        field.offset = offset_of(cls, slot)
        if clock is not None:
            field.clock = offset_of(cls, clock)
    else:
        inherited = base_field(layout.type, name)
        if inherited.style != ORDINARY:
            raise TypeError(f"{name}: a base class has this field as one that can't be declared anew")
        field.offset = inherited.offset
        field.clock = inherited.clock
        if field.lazy and (not inherited.lazy or (how == UUID7 and not inherited.clock)):
            raise TypeError(f"{name}: a base class has this field as one that is not made when first read")
        field.lazy = inherited.lazy
    field.shown = shown
    field.compared = compared_
    field.hashed = hashed
    if rule is not None:
        field.rule = Py_NewRef(<PyObject*>rule)
        if how == CODE:
            field.initial = number_word((<Rule>rule).options.index(value))
    return parameter


cdef int inherit(Layout* layout, Field* field, Field* inherited) noexcept:
    """Fill in a field as a base class has it; returns which parameter it is."""
    field[0] = inherited[0]
    layout.count += 1
    Py_INCREF(field.name)
    Py_XINCREF(field.value)
    Py_XINCREF(field.rule)
    Py_XINCREF(field.description)
    field.after = NULL
    field.keeps = False
    return field.parameter


cdef void list_loose_slots(Layout* layout) noexcept:
    """Find out which slots may hold what, for `drop_marked`."""
    cdef Py_ssize_t offset = sizeof(PyObject)
    cdef Field* field
    cdef Field* found
    cdef bint numbers_only
    cdef int i
    layout.plain_from = offset
    for i in range(layout.specials):
        field = layout.special[i]
        layout.plain_from = max(
            layout.plain_from, max(field.offset, field.clock) + <Py_ssize_t>sizeof(PyObject*)
        )
    while offset < layout.plain_from:
        found = NULL
        numbers_only = False
        for i in range(layout.specials):
            field = layout.special[i]
            if field.offset == offset:
                found = field
            numbers_only |= field.clock == offset
        if not numbers_only and not (found != NULL and found.style == CODED):
            layout.loose[layout.looses].offset = offset
            layout.loose[layout.looses].field = found
            layout.looses += 1
        offset += sizeof(PyObject*)


cdef void list_defaults(Layout* layout) noexcept:
    """List what the fields get that no arguments are given for."""
    cdef Field* field
    cdef Default* default
    cdef int i
    layout.defaults = 0
    for i in range(layout.count):
        field = &layout.fields[i]
        layout.first_default[i] = layout.defaults
        if field.how == VALUE and not FREE_THREADED and not collectable(field.value):
            field.initial = field.value
        elif field.how != CODE:
            field.initial = NULL
        if field.how == WHEN_TOUCHED:
            continue
        default = &layout.default[layout.defaults]
        layout.defaults += 1
        default.field = field
        default.offset = field.offset
        default.word = field.initial
    layout.first_default[layout.count] = layout.defaults


cdef int describe(object cls, Field* field) except -1:
    """Give the member descriptor of a class's own field its description."""
    if field.description != NULL:
        slot = cls.__dict__.get(<str>field.name)
        if slot is not None:
            # The text is in the field's own object, which lives as long as the class does.
            set_member_doc(<PyObject*>slot, PyUnicode_AsUTF8(<object>field.description))
    return 0


def lay_out(
    cls, list fields, tuple order, *, pool, gc, frozen, eq, ordered, validate, weakrefs, attributes, extras, reset,
    blank=False, opens=False
):
    """Give the class its layout.

    ``fields`` has an item for each field, positional parameters first, then keyword-only ones, then fields that are no
    parameters. A field that a base class declares has its name; one that the class declares has a tuple: name, rule
    (None: not resolved yet), how it is filled, the default or factory, the class's own slot or None (inherited), the
    slot for a clock or None, which parameter it is (0 to 2), and whether it is shown, compared and hashed; then, if it
    has one, its style, the name of the field whose time it must be later than, and its description. ``order`` has the
    indices of the fields as they were declared. ``weakrefs`` and ``attributes`` name the class's own hidden slots, if
    it has any. ``blank`` and ``opens`` are described at `Layout`.
    """
    cdef PyTypeObject* type_ = <PyTypeObject*>cls
    cdef Slots* slots = <Slots*>type_
    cdef Layout* layout
    cdef Layout* base = NULL
    cdef Field* field
    cdef int count = <int>len(fields)
    cdef int i, parameter, attributes_made = 0
    cdef bint resolved = True
    if slots.tp_flags & PREHEADER or slots.tp_itemsize or layout_at(<void*>cls) != NULL:
        raise TypeError(f"{cls.__name__}: its bases can't be combined with a Record")
    if (
        not issubclass(<object>slots.tp_base, RecordBase)
        and (<Slots*>slots.tp_base).tp_basicsize != <Py_ssize_t>sizeof(PyObject)
    ):
        raise TypeError(f"{cls.__name__}: a base that has slots of its own can't be combined with a Record")
    if PyObject_TypeCheck(<PyObject*>slots.tp_base, &meta_type):
        base = <Layout*>layout_at(slots.tp_base)
    layout = <Layout*>PyMem_RawCalloc(1, sizeof(Layout))
    if layout == NULL:
        raise MemoryError()
    try:
        layout.type = type_
        layout.fields = <Field*>PyMem_RawCalloc(count + 1, sizeof(Field))
        layout.names = <PyObject**>PyMem_RawCalloc(count + 1, sizeof(PyObject*))
        layout.order = <unsigned short*>PyMem_RawCalloc(count + 1, sizeof(unsigned short))
        layout.attributes = <PyGetSetDef*>PyMem_RawCalloc(count + 1, sizeof(PyGetSetDef))
        layout.special = <Field**>PyMem_RawCalloc(count + 1, sizeof(Field*))
        layout.later = <Field**>PyMem_RawCalloc(count + 1, sizeof(Field*))
        layout.default = <Default*>PyMem_RawCalloc(count + 1, sizeof(Default))
        layout.first_default = <int*>PyMem_RawCalloc(count + 1, sizeof(int))
        layout.loose = <Loose*>PyMem_RawCalloc(slots.tp_basicsize // sizeof(PyObject*), sizeof(Loose))
        if (
            layout.fields == NULL or layout.names == NULL or layout.order == NULL or layout.attributes == NULL
            or layout.special == NULL or layout.later == NULL or layout.loose == NULL or layout.default == NULL
            or layout.first_default == NULL
        ):
            raise MemoryError()
        layout.pool = pool
        layout.idle = freelist_new(pool, block_free)
        layout.end = slots.tp_basicsize
        layout.gc = gc
        layout.frozen = frozen
        layout.eq = eq
        layout.ordered = ordered
        layout.validated = validate
        layout.extras = extras
        layout.blank = blank or (base != NULL and base.blank)
        layout.opens = opens or (base != NULL and base.opens)
        if weakrefs is not None:
            layout.weakrefs = slots.tp_weaklistoffset = offset_of(cls, weakrefs)
        elif base != NULL:
            layout.weakrefs = base.weakrefs
        if attributes is not None:
            slots.tp_dictoffset = offset_of(cls, attributes)
        # An own __setattr__ may pass values on to object's, which would not track the record.
        layout.tracked = gc and (slots.tp_dictoffset != 0 or not (frozen or sets_itself(cls)))
        layout.extras = layout.extras or slots.tp_dictoffset != 0 or (base != NULL and base.extras)
        for i in range(count):
            field = &layout.fields[i]
            layout.order[i] = order[i]
            if isinstance(fields[i], str):
                parameter = inherit(layout, field, base_field(type_, fields[i]))
            else:
                parameter = declare_field(layout, field, cls, fields[i])
            layout.count = i + 1
            layout.names[i] = field.name
            field.lazy = field.lazy or field.style == CODED
            if field.lazy and field.how in (UUID4, UUID7, NOW):
                field.renews = True
            if is_touched(field):
                field.renews = True
            if pool and gc and field.how in (NEW_LIST, NEW_DICT, WHEN_TOUCHED):
                layout.keeping = field.keeps = True
                field.keep = KEEP
            if field.lazy or field.keeps or is_touched(field):
                layout.special[layout.specials] = field
                layout.specials += 1
            field.parameter = parameter
            if parameter < 2:
                layout.parameters = i + 1
                if parameter == 0:
                    layout.positional = i + 1
            if field.rule == NULL:
                resolved = False
            else:
                adopt(field, <Rule>field.rule, validate)
                # An instance without the collector's header may be of a subclass, and that a record with more in it.
                if not field.plain or field.kind == INSTANCE:
                    layout.nests = True
        for i in range(count):
            if isinstance(fields[i], str):
                field = base_field(type_, fields[i])
                if field.after != NULL:
                    layout.fields[i].after = find(layout, field.after.name)
            elif len(fields[i]) > 11 and fields[i][11] is not None:
                layout.fields[i].after = find_named(layout, fields[i][11])
            if layout.fields[i].after != NULL:
                layout.later[layout.laters] = &layout.fields[i]
                layout.laters += 1
        list_defaults(layout)
        list_loose_slots(layout)
        if reset is not None:
            Py_INCREF(<PyObject*>reset)
            layout.reset = <PyObject*>reset
        if not resolved:
            layout.nests = True
        layout.state = READY if resolved else UNRESOLVED
        for i in range(count):
            field = &layout.fields[i]
            if not field.lazy and not is_touched(field):
                describe(cls, field)
                continue
            layout.attributes[attributes_made] = attribute_of(field)
            descriptor = PyDescr_NewGetSet(type_, &layout.attributes[attributes_made])
            attributes_made += 1
            if not isinstance(fields[i], str):
                for slot in fields[i][4:6]:
                    if slot is not None:
                        delattr(cls, slot)
            setattr(cls, <str>field.name, descriptor)
        if weakrefs is not None:
            delattr(cls, weakrefs)
        if attributes is not None:
            delattr(cls, attributes)
            # Not by setattr(), which would set the attribute of the class itself.
            PyDict_SetItemString(type_.tp_dict, "__dict__", PyDescr_NewGetSet(type_, &dict_attribute))
    except BaseException:
        layout_free(layout)
        raise
    put_layout(<void*>cls, layout)
    if gc:
        slots.tp_flags |= Py_TPFLAGS_HAVE_GC
        slots.tp_traverse = record_traverse
        slots.tp_clear = record_clear
        slots.tp_free = PyObject_GC_Del
    else:
        slots.tp_flags &= ~Py_TPFLAGS_HAVE_GC
        slots.tp_traverse = NULL
        slots.tp_clear = NULL
        slots.tp_free = PyObject_Free
    slots.tp_dealloc = record_dealloc
    if count and not frozen and sets_itself(cls):
        slots.tp_setattro = record_setattro
    if compares_itself(cls):
        slots.tp_richcompare = (<Slots*><PyTypeObject*>RecordBase).tp_richcompare
    if cls.__new__ is RecordBase.__new__:
        # A base before the record class would have lent its own.
        slots.tp_new = record_new
    refresh(cls)
    PyType_Modified(type_)


def check_and_run(record, hook):
    """Check a record's fields, then run a ``__post_init__``, if it is not None, as construction does."""
    cdef PyObject* op = <PyObject*>record
    cdef Layout* layout = ready(Py_TYPE(op))
    check_fields(op, layout, None)
    if layout.gc:
        # A library may have stored what it likes.
        track(op)
    if hook is not None:
        run_hook(op, layout, hook)


def post_init_after(cls, after):
    """The ``__post_init__`` that is next in the class's MRO after one of its classes; None if there is none."""
    return hook_after(cls, after)


def known_rules_of(cls):
    """The rules of a record class by field name; None for one that is not resolved yet."""
    cdef Layout* layout = complete_layout(cls)
    cdef dict rules = {}
    cdef int i
    for i in range(layout.count):
        rules[<str>layout.names[i]] = None if layout.fields[i].rule == NULL else <object>layout.fields[i].rule
    return rules


def unresolved(cls):
    """The names of the fields whose annotations have not been evaluated yet."""
    cdef list names = []
    # No comprehension: Cython 3.3.1 drops an item twice if allocation fails while appending it.
    for name, rule in known_rules_of(cls).items():
        if rule is None:
            names.append(name)
    return names


def set_rules(cls, dict rules):
    """Complete a layout some of whose annotations could not be evaluated before."""
    cdef Layout* layout = <Layout*>layout_at(<void*>cls)
    cdef int i
    with cython.critical_section(cls):
        # Threads that evaluate at the same time find the same.
        if layout.state == UNRESOLVED:
            for i in range(layout.count):
                rule = rules.get(<str>layout.names[i])
                if rule is not None and layout.fields[i].rule == NULL:
                    adopt(&layout.fields[i], rule, layout.validated)
            store_state(&layout.state, READY)


def is_complete(cls):
    """Whether all annotations of the class have been evaluated."""
    cdef Layout* layout = <Layout*>layout_at(<void*>cls)
    return layout != NULL and layout.state == READY


cdef Layout* complete_layout(object cls) except NULL:
    cdef Layout* layout = <Layout*>layout_at(<void*>cls)
    if layout == NULL:
        raise TypeError(f"{cls.__qualname__} can't be used before it is complete")
    return layout


def options_of(cls):
    """The options of a record class by name."""
    cdef Layout* layout = complete_layout(cls)
    cdef Slots* slots = <Slots*><void*>cls
    return {
        "pool": layout.pool, "gc": layout.gc, "frozen": layout.frozen, "order": layout.ordered, "eq": layout.eq,
        "validate": layout.validated, "weakref": slots.tp_weaklistoffset != 0, "dict": slots.tp_dictoffset != 0,
        "opens": layout.opens,
        "reset": None if layout.reset == NULL else <object>layout.reset,
    }


def rules_of(cls):
    """The rules of a record class by field name, in the order of declaration; evaluates what is left to evaluate."""
    cdef Layout* layout = ready(<PyTypeObject*>cls)
    cdef dict rules = {}
    cdef int i
    for i in range(layout.count):
        rules[<str>layout.names[layout.order[i]]] = <object>layout.fields[layout.order[i]].rule
    return rules


def late_fields(cls):
    """The names of the fields that a record class's constructor takes no arguments for."""
    cdef Layout* layout = ready(<PyTypeObject*>cls)
    cdef list names = []
    cdef int i
    for i in range(layout.parameters, layout.count):
        names.append(<str>layout.names[i])
    return names


def make_class(meta, str name, tuple bases, dict namespace, dict keywords):
    """``type.__new__`` for the metaclass; the keywords are for ``__init_subclass__``."""
    arguments = (name, bases, namespace)
    return owned((<Slots*>&PyType_Type).tp_new(<PyTypeObject*>meta, <PyObject*>arguments, <PyObject*>keywords))


cdef Py_ssize_t field_offset(object cls, str name) except -1:
    """The offset of a field's slot in the class's instances, and in those of its subclasses."""
    return named_field(cls, name).offset


cdef Py_ssize_t clock_offset(object cls, str name) except -1:
    """The offset of the slot in which a time always is a number of microseconds since the epoch (`clock_in`)."""
    return named_field(cls, name).clock


cdef Field* named_field(object cls, str name) except NULL:
    cdef Field* field = find(complete_layout(cls), <PyObject*>name)
    if field == NULL:
        raise SystemError(f"{cls.__name__} has no field {name}")
    return field


def know_datetime():
    """Load what checks of dates and times need."""
    load_datetime()


def uuid7_text():
    """A new version-7 UUID (RFC 9562) as 36 lower-case characters: the time in milliseconds, then random bits.

    O(1).

    >>> import uuid
    >>> uuid.UUID(uuid7_text()).version
    7
    """
    want_serial()
    return timed_id_for(take_serial(), wall_micros() // 1000)


def set_makers(declaring, resolving):
    """Called by `record.py`, which knows how to read a class body."""
    global declare, resolve
    declare = declaring
    resolve = resolving


def set_loader(loading):
    """Called by a module that declares classes without `record.py`; the function is to import that."""
    global load_makers
    load_makers = loading


# Only classes with order=True have them: a class that seems to is none that functools.total_ordering would complete.
ORDERINGS = {}

cdef bint compares_itself(object cls) except -1:
    """Whether records of the class are compared in no other way than here."""
    if cls.__eq__ is not RecordBase.__eq__ or cls.__ne__ is not RecordBase.__ne__:
        return False
    for name, method in ORDERINGS.items():
        if getattr(cls, name) is not method and getattr(cls, name) is not getattr(object, name):
            return False
    return True


cdef PyMethodDef setting
cdef PyMethodDef deleting

cdef int install() except -1:
    cdef Slots* meta = <Slots*>&meta_type
    cdef Slots* base = <Slots*><PyTypeObject*>RecordBase
    if base.tp_basicsize != sizeof(PyObject):
        raise ImportError("a record's base class has fields of its own")
    empty = {}
    learn_empty_keys(<PyObject*>empty)
    meta.tp_call = (<Slots*>&PyType_Type).tp_call
    meta.tp_base = &PyType_Type
    meta.tp_new = meta_new
    meta.tp_init = <void*>meta_init
    meta.tp_traverse = meta_traverse
    meta.tp_clear = meta_clear
    meta.tp_dealloc = meta_dealloc
    meta.tp_setattro = meta_setattro
    PyType_Ready(&meta_type)
    base.tp_new = record_new
    base.tp_dealloc = record_dealloc
    PyDict_SetItemString((<PyTypeObject*>RecordBase).tp_dict, "acquire", ClassAttribute(False, HERE))
    PyDict_SetItemString((<PyTypeObject*>RecordBase).tp_dict, "stats", ClassAttribute(True, HERE))
    for method in ("__lt__", "__le__", "__gt__", "__ge__"):
        ORDERINGS[method] = RecordBase.__dict__[method]
        PyDict_DelItem((<PyTypeObject*>RecordBase).tp_dict, method)
    setting.ml_name = "__setattr__"
    setting.ml_meth = <PyCFunction>set_attribute
    setting.ml_flags = METH_FASTCALL
    setting.ml_doc = "Implement setattr(self, name, value)."
    deleting.ml_name = "__delattr__"
    deleting.ml_meth = <PyCFunction>delete_attribute
    deleting.ml_flags = METH_O
    deleting.ml_doc = "Implement delattr(self, name)."
    PyDict_SetItemString(
        (<PyTypeObject*>RecordBase).tp_dict, "__setattr__", PyDescr_NewMethod(<PyTypeObject*>RecordBase, &setting)
    )
    PyDict_SetItemString(
        (<PyTypeObject*>RecordBase).tp_dict, "__delattr__", PyDescr_NewMethod(<PyTypeObject*>RecordBase, &deleting)
    )
    PyType_Modified(<PyTypeObject*>RecordBase)
    return 0


install()
RecordMeta = <object>&meta_type
