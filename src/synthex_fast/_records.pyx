"""`PooledExpertQuery` and `PooledExpertResponse`: records whose memory goes back to a freelist when they die.

Construction runs in the type's vectorcall slot and takes a block from the freelist; deallocation empties the record and
puts the block back, with the dict and lists that nobody else holds still in it. So nobody can use a record after
its release: it is released because nobody has it.

The slots of both types that make, free and traverse an instance are replaced when the module is imported, which is
why fields may be NULL here and why the functions below see a record as a row of slots (`Record`).
"""

from cpython.mem cimport PyMem_RawMalloc
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int64_t
from libc.string cimport memset, strcpy, strlen

from synthex_fast._clock cimport wall_clock
from synthex_fast._ids cimport new_id
from synthex_fast._pool cimport (
    COUNTS, DISCARDED, Freelist, MISSED, RELEASED, REUSED, freelist_new, freelist_pop, freelist_push, freelist_stats,
)
from synthex_fast._sync cimport FREE_THREADED, uniquely_referenced, unlikely

from synthex_fast.errors import type_error, value_error

__all__ = ["PooledExpertQuery", "PooledExpertResponse"]

cdef extern from *:
    """
    #include <stddef.h>
    #include <string.h>

    /* What both record types begin with; LAYOUT_HOLDS below makes the compiler check it against them. */
    typedef struct {
        PyObject_HEAD
        PyObject *weakrefs;
        double seconds;
        unsigned char state, query_type, priority;
        PyObject *slots[1];
    } synthex_record;

    #define SYNTHEX_QUERY struct __pyx_obj_12synthex_fast_8_records_PooledExpertQuery
    #define SYNTHEX_RESPONSE struct __pyx_obj_12synthex_fast_8_records_PooledExpertResponse
    #define SYNTHEX_SLOT(type, field) ((offsetof(type, field) - offsetof(synthex_record, slots)) / sizeof(PyObject *))
    #define SYNTHEX_LAYOUT_HOLDS (sizeof(char[ \\
        offsetof(SYNTHEX_QUERY, __weakref__) == offsetof(synthex_record, weakrefs) \\
        && offsetof(SYNTHEX_QUERY, seconds) == offsetof(synthex_record, seconds) \\
        && offsetof(SYNTHEX_QUERY, state) == offsetof(synthex_record, state) \\
        && offsetof(SYNTHEX_QUERY, query_type_code) == offsetof(synthex_record, query_type) \\
        && offsetof(SYNTHEX_QUERY, priority_code) == offsetof(synthex_record, priority) \\
        && SYNTHEX_SLOT(SYNTHEX_QUERY, _id) == 0 && SYNTHEX_SLOT(SYNTHEX_QUERY, _moment) == 1 \\
        && SYNTHEX_SLOT(SYNTHEX_QUERY, title) == 2 && SYNTHEX_SLOT(SYNTHEX_QUERY, content) == 3 \\
        && SYNTHEX_SLOT(SYNTHEX_QUERY, requester) == 4 && SYNTHEX_SLOT(SYNTHEX_QUERY, _deadline) == 5 \\
        && SYNTHEX_SLOT(SYNTHEX_QUERY, _context) == 6 && SYNTHEX_SLOT(SYNTHEX_QUERY, _constraints) == 7 \\
        && SYNTHEX_SLOT(SYNTHEX_QUERY, _tags) == 8 \\
        && offsetof(SYNTHEX_RESPONSE, __weakref__) == offsetof(synthex_record, weakrefs) \\
        && offsetof(SYNTHEX_RESPONSE, seconds) == offsetof(synthex_record, seconds) \\
        && offsetof(SYNTHEX_RESPONSE, state) == offsetof(synthex_record, state) \\
        && SYNTHEX_SLOT(SYNTHEX_RESPONSE, _id) == 0 && SYNTHEX_SLOT(SYNTHEX_RESPONSE, _moment) == 1 \\
        && SYNTHEX_SLOT(SYNTHEX_RESPONSE, query_id) == 2 && SYNTHEX_SLOT(SYNTHEX_RESPONSE, expert_id) == 3 \\
        && SYNTHEX_SLOT(SYNTHEX_RESPONSE, content) == 4 && SYNTHEX_SLOT(SYNTHEX_RESPONSE, reasoning) == 5 \\
        && SYNTHEX_SLOT(SYNTHEX_RESPONSE, _metadata) == 6 ? 1 : -1]))

    /* One record's critical section; empty where the interpreter's own lock does the work. */
    #ifdef Py_GIL_DISABLED
      #define synthex_section PyCriticalSection
      #define synthex_hold(section, op) PyCriticalSection_Begin((section), (op))
      #define synthex_let(section) PyCriticalSection_End(section)
      static SYNTHEX_THREAD_LOCAL int synthex_clearing = 0;
    #else
      typedef struct { char unused; } synthex_section;
      #define synthex_hold(section, op) ((void)(section))
      #define synthex_let(section) ((void)(section))
      static int synthex_clearing = 0;
    #endif
    /* How many containers are being emptied, one from within another, on this thread. */
    static inline int *synthex_clearing_here(void) { return &synthex_clearing; }

    #define synthex_gc_new(type) ((PyObject *)_PyObject_GC_New(type))
    #define synthex_type(op) ((PyObject *)Py_TYPE(op))
    #define synthex_heap_type(type) ((type)->tp_flags & Py_TPFLAGS_HEAPTYPE)
    #define synthex_is_text(op) PyUnicode_Check(op)
    #define synthex_is_exact_text(op) PyUnicode_CheckExact(op)
    #define synthex_list_room(op) (((PyListObject *)(op))->allocated)
    #define synthex_list_put(op, i, item) (((PyListObject *)(op))->ob_item[i] = (item))
    #define synthex_list_at(op, i) (((PyListObject *)(op))->ob_item[i])
    #define synthex_tuple_items(op) (((PyTupleObject *)(op))->ob_item)
    #define synthex_list_items(op) (((PyListObject *)(op))->ob_item)
    #define synthex_resize(op, n) Py_SET_SIZE((PyVarObject *)(op), (n))

    /* The top bit of each byte that is a capital letter, of eight bytes below 128. */
    #define SYNTHEX_CAPITALS(x) \\
        (((x) + 0x3F3F3F3F3F3F3F3FULL) & ~((x) + 0x2525252525252525ULL) & 0x8080808080808080ULL)

    /* Whether a tag needs no lower-casing and no stripping; other texts than these are left to str's own methods. */
    static inline int synthex_tag_is_clean(PyObject *text) {
        const char *c;
        Py_ssize_t length = PyUnicode_GET_LENGTH(text), i;
        unsigned long long word = 0;
        unsigned int half;
        if (!PyUnicode_IS_ASCII(text) || length == 0) return 0;
        c = (const char *)PyUnicode_DATA(text);
        if (c[0] <= ' ' || c[length - 1] <= ' ') return 0;
        if (length >= 8) {
            for (i = 0; i < length - 8; i += 8) {
                memcpy(&word, c + i, 8);
                if (SYNTHEX_CAPITALS(word)) return 0;
            }
            /* The last eight, some of them for the second time. */
            memcpy(&word, c + length - 8, 8);
        } else if (length >= 4) {
            memcpy(&half, c, 4);
            word = half;
            memcpy(&half, c + length - 4, 4);
            word |= (unsigned long long)half << 32;
        } else {
            word = (unsigned long long)c[0] | (unsigned long long)c[length / 2] << 8
                | (unsigned long long)c[length - 1] << 16;
        }
        return !SYNTHEX_CAPITALS(word);
    }

    /* The slots before the containers, written out: -O2 unrolls no loop, and these are the hot ones. */
    static inline void synthex_drop_values(PyObject **slots) {
        Py_XDECREF(slots[0]);
        Py_XDECREF(slots[1]);
        Py_DECREF(slots[2]);
        Py_DECREF(slots[3]);
        Py_XDECREF(slots[4]);
        Py_XDECREF(slots[5]);
    }

    static inline int synthex_take_value(PyObject **slot, PyObject *value) {
        *slot = value;
        if (value == NULL) return 0;
        Py_INCREF(value);
        return !PyUnicode_CheckExact(value) && PyObject_IS_GC(value);
    }

    /* 1 if one of them may be part of a cycle. */
    static inline int synthex_take_values(PyObject **slots, PyObject **values) {
        int cyclic = synthex_take_value(&slots[0], values[0]);
        cyclic |= synthex_take_value(&slots[1], values[1]);
        cyclic |= synthex_take_value(&slots[2], values[2]);
        cyclic |= synthex_take_value(&slots[3], values[3]);
        cyclic |= synthex_take_value(&slots[4], values[4]);
        cyclic |= synthex_take_value(&slots[5], values[5]);
        return cyclic;
    }

    /* Equality of two str by their characters, whatever a subclass makes of ==. */
    static inline int synthex_same_text(PyObject *a, PyObject *b) {
        Py_hash_t hash_a, hash_b;
        if (a == b) return 1;
        if (PyUnicode_GET_LENGTH(a) != PyUnicode_GET_LENGTH(b) || PyUnicode_KIND(a) != PyUnicode_KIND(b)) return 0;
        /* -1: not known yet. */
        hash_a = ((PyASCIIObject *)a)->hash;
        hash_b = ((PyASCIIObject *)b)->hash;
        if (hash_a != hash_b && hash_a != -1 && hash_b != -1) return 0;
        return memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b), (size_t)PyUnicode_GET_LENGTH(a) * PyUnicode_KIND(a)) == 0;
    }
    """
    ctypedef struct Record "synthex_record":
        PyObject* weakrefs
        double seconds
        unsigned char state
        unsigned char query_type
        unsigned char priority
        PyObject** slots
    int layout_holds "SYNTHEX_LAYOUT_HOLDS"
    ctypedef struct Section "synthex_section":
        pass
    void hold "synthex_hold"(Section*, PyObject*) noexcept
    void let "synthex_let"(Section*) noexcept
    int* clearing_here "synthex_clearing_here"() noexcept
    PyObject* gc_new "synthex_gc_new"(PyTypeObject*) noexcept
    PyObject* type_of "synthex_type"(PyObject*) noexcept
    bint is_heap_type "synthex_heap_type"(PyTypeObject*) noexcept
    bint is_text "synthex_is_text"(PyObject*) noexcept
    bint is_exact_text "synthex_is_exact_text"(PyObject*) noexcept
    Py_ssize_t list_room "synthex_list_room"(PyObject*) noexcept
    void list_put "synthex_list_put"(PyObject*, Py_ssize_t, PyObject*) noexcept
    PyObject* list_at "synthex_list_at"(PyObject*, Py_ssize_t) noexcept
    PyObject** tuple_items "synthex_tuple_items"(PyObject*) noexcept
    PyObject** list_items "synthex_list_items"(PyObject*) noexcept
    void resize "synthex_resize"(PyObject*, Py_ssize_t) noexcept
    void drop_values "synthex_drop_values"(PyObject**) noexcept
    bint take_values "synthex_take_values"(PyObject**, PyObject**) noexcept
    bint tag_is_clean "synthex_tag_is_clean"(PyObject*) noexcept
    bint same_text "synthex_same_text"(PyObject*, PyObject*) noexcept

cdef extern from "Python.h":
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef PyObject* (*getter)(PyObject*, void*) except NULL
    ctypedef int (*setter)(PyObject*, PyObject*, void*) except -1
    ctypedef PyObject* (*newfunc)(PyTypeObject*, PyObject*, PyObject*) except NULL
    ctypedef PyObject* (*callfunc "vectorcallfunc")(PyObject*, PyObject* const*, size_t, PyObject*) except NULL
    ctypedef PyObject* (*PyCFunction)(PyObject*, PyObject*)

    ctypedef struct Type "PyTypeObject":
        newfunc tp_new
        PyObject* (*tp_alloc)(PyTypeObject*, Py_ssize_t) noexcept
        void (*tp_dealloc)(PyObject*) noexcept
        void (*tp_free)(void*) noexcept
        int (*tp_traverse)(PyObject*, visitproc, void*) noexcept
        int (*tp_clear)(PyObject*) noexcept
        callfunc tp_vectorcall
        PyObject* tp_dict
        const char* tp_doc

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

    void Py_INCREF(PyObject*) noexcept
    void Py_XINCREF(PyObject*) noexcept
    void Py_DECREF(PyObject*) noexcept
    void Py_XDECREF(PyObject*) noexcept
    PyObject* Py_NewRef(PyObject*) noexcept
    PyObject* Py_XNewRef(PyObject*) noexcept
    PyObject* Py_None
    const Py_ssize_t PY_SSIZE_T_MAX
    PyObject* PyObject_Init(PyObject*, PyTypeObject*) noexcept
    void PyObject_GC_Track(PyObject*) noexcept
    void PyObject_GC_UnTrack(PyObject*) noexcept
    bint PyObject_GC_IsTracked(PyObject*) noexcept
    bint PyObject_IS_GC(PyObject*) noexcept
    void PyObject_GC_Del(void*) noexcept
    void PyObject_ClearWeakRefs(PyObject*) noexcept
    PyObject* PyObject_Vectorcall(PyObject*, PyObject* const*, size_t, PyObject*) except NULL
    object PyObject_VectorcallDict(object, PyObject* const*, size_t, dict)
    Py_ssize_t PyVectorcall_NARGS(size_t) noexcept
    bint PyObject_TypeCheck(PyObject*, PyTypeObject*) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject*) noexcept
    object PyUnicode_FromObject(object)
    void PyUnicode_InternInPlace(PyObject**) noexcept
    Py_ssize_t PyTuple_GET_SIZE(PyObject*) noexcept
    PyObject* PyTuple_GET_ITEM(PyObject*, Py_ssize_t) noexcept
    bint PyTuple_CheckExact(PyObject*) noexcept
    bint PyList_CheckExact(PyObject*) noexcept
    PyObject* PyList_New(Py_ssize_t) noexcept
    Py_ssize_t PyList_GET_SIZE(PyObject*) noexcept
    bint PyDict_Check(PyObject*) noexcept
    bint PyDict_CheckExact(PyObject*) noexcept
    PyObject* PyDict_New() noexcept
    void PyDict_Clear(PyObject*) noexcept
    bint PyFloat_CheckExact(PyObject*) noexcept
    double PyFloat_AS_DOUBLE(PyObject*) noexcept
    object PyDescr_NewGetSet(PyTypeObject*, PyGetSetDef*)
    object PyDescr_NewClassMethod(PyTypeObject*, PyMethodDef*)
    int Py_ReprEnter(object) except -1
    void Py_ReprLeave(object) noexcept
    int PyDict_SetItemString(PyObject*, const char*, object) except -1
    void PyType_Modified(PyTypeObject*) noexcept


cdef enum:
    # Slots of both types, then of each.
    ID, MOMENT,
    TITLE = 2, CONTENT, REQUESTER, DEADLINE, CONTEXT, CONSTRAINTS, TAGS, QUERY_SLOTS,
    QUERY_ID = 2, EXPERT_ID, ANSWER, REASONING, METADATA, RESPONSE_SLOTS,
    FIRST_CONTAINER = 6
    QUERY_TEXTS_END = 5
    RESPONSE_TEXTS_END = 6

    # Arguments, in the order of the signatures.
    QUERY_ARGUMENTS = 11
    RESPONSE_ARGUMENTS = 8

    # A record's state. Of each container: it is the record's contents, not idle; Python code has seen it.
    LIVE = 1
    SHOWN = 16
    GIVEN = 128                 # the dict came from the caller

    IDLE_RECORDS = 4096         # of each type
    IDLE_LIST_ROOM = 64         # a list with room for more items is let go
    SHORT_LIST = 16             # tags up to this many are compared one by one
    CLEARING_DEPTH = 20         # beyond it containers are left to the interpreter's own bound on recursion

    DICT, TEXTS, TAGGED


cdef struct Shape:
    Type* type
    Freelist* idle
    int slots
    int texts_end               # the texts are in the slots from 2 up to it


cdef struct Text:
    const char* name
    const char* allowed
    int slot
    Py_ssize_t least            # characters
    Py_ssize_t most


cdef struct Container:
    const char* name
    int slot
    int holds                   # DICT, TEXTS or TAGGED


cdef struct Names:
    # The parameters of a constructor: names are interned, so that most keywords match by identity.
    const char* called
    PyObject** names
    int count
    int positional
    int required


cdef struct Plan:
    # Arguments found good, borrowed from the caller, each in its slot.
    PyObject* slots[QUERY_SLOTS]
    double seconds
    double confidence
    unsigned char query_type
    unsigned char priority


cdef Shape QUERY, RESPONSE
cdef Text TITLE_TEXT = Text("title", "1 to 200 characters", TITLE, 1, 200)
cdef Text CONTENT_TEXT = Text("content", "10 to 10,000 characters", CONTENT, 10, 10_000)
cdef Text REQUESTER_TEXT = Text("requester", "a non-empty string", REQUESTER, 1, PY_SSIZE_T_MAX)
cdef Text QUERY_ID_TEXT = Text("query_id", "a string", QUERY_ID, 0, PY_SSIZE_T_MAX)
cdef Text EXPERT_ID_TEXT = Text("expert_id", "a string", EXPERT_ID, 0, PY_SSIZE_T_MAX)
cdef Text ANSWER_TEXT = Text("content", "a string", ANSWER, 0, PY_SSIZE_T_MAX)
cdef Text REASONING_TEXT = Text("reasoning", "a string", REASONING, 0, PY_SSIZE_T_MAX)
cdef Text ID_TEXT = Text("id", "a non-empty string", ID, 1, PY_SSIZE_T_MAX)
cdef Container CONTEXT_DICT = Container("context", CONTEXT, DICT)
cdef Container CONSTRAINTS_LIST = Container("constraints", CONSTRAINTS, TEXTS)
cdef Container TAGS_LIST = Container("tags", TAGS, TAGGED)
cdef Container METADATA_DICT = Container("metadata", METADATA, DICT)

cdef tuple QUERY_TYPES = (
    "technical", "architectural", "optimization", "review", "research", "general", "code_review",
)
cdef tuple PRIORITIES = ("low", "medium", "high", "critical")
cdef enum:
    TYPES = 7
    GENERAL = 5
    URGENCIES = 4
    MEDIUM = 1
cdef PyObject* type_names[TYPES]
cdef PyObject* priority_names[URGENCIES]
# Members of the enumerations, and two names of datetime; loaded by the first reader, then never changed.
cdef PyObject* type_members[TYPES]
cdef PyObject* priority_members[URGENCIES]
cdef PyObject* datetime_class = NULL
cdef PyObject* utc = NULL

cdef tuple QUERY_FIELDS = (
    "title", "content", "requester", "query_type", "priority", "context", "constraints", "deadline", "tags", "id",
    "created_at",
)
cdef tuple RESPONSE_FIELDS = (
    "query_id", "expert_id", "content", "confidence", "reasoning", "metadata", "id", "timestamp",
)
cdef PyObject* query_names[QUERY_ARGUMENTS]
cdef PyObject* response_names[RESPONSE_ARGUMENTS]
cdef Names QUERY_CALL = Names("PooledExpertQuery", &query_names[0], QUERY_ARGUMENTS, 3, 3)
cdef Names RESPONSE_CALL = Names("PooledExpertResponse", &response_names[0], RESPONSE_ARGUMENTS, 6, 2)
cdef PyObject* BLANK = NULL     # the empty string


# --- Complaints and arguments ------------------------------------------------------------------------------------


cdef int wrong_type(const char* name, PyObject* got, str allowed) except -1:
    raise type_error(name.decode(), <object>got, allowed)


cdef int wrong_value(const char* name, PyObject* got, str allowed) except -1:
    raise value_error(name.decode(), <object>got, allowed)


cdef int not_deletable(const char* name) except -1:
    raise AttributeError(f"{name.decode()} cannot be deleted")


cdef int check_text(PyObject* value, Text* text) except -1:
    cdef Py_ssize_t length
    if unlikely(not is_text(value)):
        wrong_type(text.name, value, "a string" if text.least == 0 else text.allowed.decode())
    length = PyUnicode_GET_LENGTH(value)
    if unlikely(length < text.least or length > text.most):
        wrong_value(text.name, value, text.allowed.decode())
    return 0


cdef int code_of(PyObject* value, const char* name, PyObject** names, tuple allowed) except -1:
    cdef int i
    cdef int count = <int>PyTuple_GET_SIZE(<PyObject*>allowed)
    for i in range(count):
        if names[i] == value:
            return i
    if not is_text(value):
        wrong_type(name, value, "one of " + ", ".join(allowed))
    for i in range(count):
        if same_text(names[i], value):
            return i
    wrong_value(name, value, "one of " + ", ".join(allowed))


cdef int bad_call(Names* call, str complaint) except -1:
    raise TypeError(f"{call.called.decode()}() {complaint}")


cdef int find_name(Names* call, PyObject* name) except -1:
    """The index of a keyword that was not where the signature's order has it."""
    cdef int i
    for i in range(call.count):
        if call.names[i] == name:
            return i
    for i in range(call.count):
        if same_text(call.names[i], name):
            return i
    bad_call(call, f"got an unexpected keyword argument '{<object>name}'")


cdef int bind(Names* call, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames, PyObject** given) except -1:
    """Sort a vectorcall's arguments into the order of the signature."""
    cdef Py_ssize_t i
    cdef PyObject** names = call.names
    cdef PyObject* name
    cdef int at
    cdef int count = call.count
    if unlikely(nargs > call.positional):
        bad_call(call, f"takes at most {call.positional} positional arguments but {nargs} were given")
    memset(given, 0, count * sizeof(PyObject*))
    for i in range(nargs):
        given[i] = args[i]
    if kwnames != NULL:
        at = <int>nargs
        for i in range(PyTuple_GET_SIZE(kwnames)):
            name = PyTuple_GET_ITEM(kwnames, i)
            # Callers mostly keep to the order of the signature, leaving out what they don't need.
            while at < count and names[at] != name:
                at += 1
            if unlikely(at == count):
                at = find_name(call, name)
            if unlikely(given[at] != NULL):
                bad_call(call, f"got multiple values for argument '{<object>name}'")
            given[at] = args[nargs + i]
            at += 1
    for i in range(call.required):
        if unlikely(given[i] == NULL):
            bad_call(call, f"missing required argument: '{<object>call.names[i]}'")
    return 0


# --- Time and enumerations, loaded when first needed -------------------------------------------------------------


cdef void publish(PyObject** place, object value) noexcept:
    # Without a lock: two threads that come here together both store the same singleton.
    if place[0] == NULL:
        place[0] = Py_NewRef(<PyObject*>value)


cdef int load_datetime() except -1:
    from datetime import datetime, timezone
    publish(&utc, timezone.utc)
    publish(&datetime_class, datetime)
    return 0


cdef double instant(PyObject* value, const char* name) except? -1.0:
    """Seconds since the epoch of a timezone-aware datetime."""
    if datetime_class == NULL:
        load_datetime()
    if not PyObject_TypeCheck(value, <PyTypeObject*>datetime_class):
        wrong_type(name, value, "a timezone-aware datetime")
    moment = <object>value
    if (<object>datetime_class).utcoffset(moment) is None:
        wrong_value(name, value, "a timezone-aware datetime")
    return (<object>datetime_class).timestamp(moment)


cdef PyObject* moment_at(double seconds) except NULL:
    if datetime_class == NULL:
        load_datetime()
    moment = (<object>datetime_class).fromtimestamp(seconds, <object>utc)
    return Py_NewRef(<PyObject*>moment)


cdef int load_kinds() except -1:
    cdef int i
    from synthex_fast.kinds import QueryPriority, QueryType
    for i in range(TYPES):
        publish(&type_members[i], QueryType(QUERY_TYPES[i]))
    for i in range(URGENCIES):
        publish(&priority_members[i], QueryPriority(PRIORITIES[i]))
    return 0


# --- A record's slots --------------------------------------------------------------------------------------------


cdef inline bint collectable(PyObject* value) noexcept:
    """Whether the value may be part of a reference cycle."""
    return value != NULL and not is_exact_text(value) and PyObject_IS_GC(value)


cdef inline void track(PyObject* op) noexcept:
    if not PyObject_GC_IsTracked(op):
        PyObject_GC_Track(op)


cdef PyObject* peek(PyObject* op, int slot) noexcept:
    """A new reference to what is in the slot, or NULL."""
    cdef Section section
    cdef PyObject* value
    hold(&section, op)
    value = (<Record*>op).slots[slot]
    Py_XINCREF(value)
    let(&section)
    return value


cdef void put(PyObject* op, int slot, PyObject* value) noexcept:
    """Put a borrowed value, or NULL, in the place of another."""
    cdef Section section
    cdef PyObject* old
    Py_XINCREF(value)
    hold(&section, op)
    old = (<Record*>op).slots[slot]
    (<Record*>op).slots[slot] = value
    if collectable(value):
        track(op)
    let(&section)
    Py_XDECREF(old)


cdef PyObject* settle(PyObject* op, int slot, PyObject* made) noexcept:
    """Put a lazily made value in its slot unless another came first; a new reference to what is there then."""
    cdef Section section
    cdef PyObject* value
    hold(&section, op)
    value = (<Record*>op).slots[slot]
    if value == NULL:
        value = (<Record*>op).slots[slot] = Py_NewRef(made)
    Py_INCREF(value)
    let(&section)
    return value


cdef PyObject* id_of(PyObject* op) except NULL:
    cdef PyObject* value = peek(op, ID)
    if value != NULL:
        return value
    made = new_id()
    return settle(op, ID, <PyObject*>made)


cdef PyObject* moment_of(PyObject* op) except NULL:
    cdef Record* self = <Record*>op
    cdef PyObject* value = peek(op, MOMENT)
    cdef PyObject* made
    cdef double seconds
    cdef Section section
    while value == NULL:
        seconds = self.seconds
        made = moment_at(seconds)
        hold(&section, op)
        # Making it ran Python code, and that may have set another time.
        if self.slots[MOMENT] == NULL and self.seconds == seconds:
            self.slots[MOMENT] = Py_NewRef(made)
        value = Py_XNewRef(self.slots[MOMENT])
        let(&section)
        Py_DECREF(made)
    return value


cdef PyObject* contents(PyObject* op, int slot, bint* shown) noexcept:
    """A new reference to a container that holds something of the user's, or NULL, and whether Python code knows it."""
    cdef Section section
    cdef PyObject* value = NULL
    hold(&section, op)
    if (<Record*>op).state & (LIVE << (slot - FIRST_CONTAINER)):
        value = Py_NewRef((<Record*>op).slots[slot])
        shown[0] = (<Record*>op).state & (SHOWN << (slot - FIRST_CONTAINER)) != 0
    let(&section)
    return value


cdef PyObject* touch(PyObject* op, Container* field) except NULL:
    """A new reference to the container for Python code to keep; made, or taken from idleness, where there is none."""
    cdef Record* self = <Record*>op
    cdef int bit = field.slot - FIRST_CONTAINER
    cdef Section section
    cdef PyObject* made = NULL
    cdef PyObject* idle
    cdef PyObject* value
    while True:
        idle = value = NULL
        hold(&section, op)
        if not self.state & (LIVE << bit):
            if self.slots[field.slot] != NULL and not uniquely_referenced(self.slots[field.slot]):
                # Only on the free-threaded build: another thread made it, so its count can't be told here.
                idle = self.slots[field.slot]
                self.slots[field.slot] = NULL
            if self.slots[field.slot] == NULL and made != NULL:
                self.slots[field.slot] = made
                made = NULL
            if self.slots[field.slot] != NULL:
                self.state |= LIVE << bit
        if self.state & (LIVE << bit):
            value = Py_NewRef(self.slots[field.slot])
            if not self.state & (SHOWN << bit):
                self.state |= SHOWN << bit
                track(value)
                track(op)
        let(&section)
        Py_XDECREF(idle)
        if value != NULL:
            Py_XDECREF(made)
            return value
        made = PyDict_New() if field.holds == DICT else PyList_New(0)
        if made == NULL:
            return NULL


cdef inline PyObject* emptied(PyObject* container, bint shown) noexcept:
    """Take the reference; give it back if the container can be used again, emptied, or else let it go: NULL.

    Only an exact dict or list that nobody else holds is used again. If it was ever shown to Python code it leaves the
    collector's sight first: nobody must find it while what it held is let go, which may run any code.
    """
    cdef Py_ssize_t i, size
    cdef bint is_dict = PyDict_CheckExact(container)
    cdef bint tracked
    if (
        not uniquely_referenced(container)
        or not (is_dict or (PyList_CheckExact(container) and list_room(container) <= IDLE_LIST_ROOM))
        # A chain of records, each in the context of the next, must not run out of stack.
        or clearing_here()[0] >= CLEARING_DEPTH
    ):
        Py_DECREF(container)
        return NULL
    if shown:
        tracked = FREE_THREADED and PyObject_GC_IsTracked(container)
        PyObject_GC_UnTrack(container)
        if FREE_THREADED and not uniquely_referenced(container):
            # Another thread found it through the collector just before.
            if tracked:
                PyObject_GC_Track(container)
            Py_DECREF(container)
            return NULL
    clearing_here()[0] += 1
    if is_dict:
        PyDict_Clear(container)
    else:
        size = PyList_GET_SIZE(container)
        # The list keeps its room, so that it can be filled again without an allocation.
        resize(container, 0)
        for i in range(size):
            Py_DECREF(list_at(container, i))
    clearing_here()[0] -= 1
    return container


cdef Py_ssize_t find_tag(PyObject* out, Py_ssize_t taken, PyObject* tag) noexcept:
    cdef Py_ssize_t i
    for i in range(taken):
        if same_text(list_at(out, i), tag):
            return i
    return -1


cdef int fill_from(PyObject* out, PyObject* source, PyObject* given, Container* field) except -1:
    cdef bint is_tuple = PyTuple_CheckExact(source)
    cdef Py_ssize_t i, taken = 0
    cdef PyObject* item
    cdef int answer = 1
    cdef set seen = None
    for i in range(PyTuple_GET_SIZE(source) if is_tuple else PyList_GET_SIZE(source)):
        if is_tuple:
            item = PyTuple_GET_ITEM(source, i)
        elif i < PyList_GET_SIZE(source):
            item = list_at(source, i)
        else:
            break
        if unlikely(not is_text(item)):
            wrong_type(field.name, given, "a list of strings")
        if field.holds == TEXTS:
            if collectable(item):
                answer = 2
            list_put(out, taken, Py_NewRef(item))
            taken += 1
            resize(out, taken)
            continue
        if is_exact_text(item) and tag_is_clean(item):
            Py_INCREF(item)
        else:
            text = PyUnicode_FromObject(<object>item).strip().lower()
            if not text:
                continue
            item = Py_NewRef(<PyObject*>text)
        if taken < SHORT_LIST:
            if find_tag(out, taken, item) >= 0:
                Py_DECREF(item)
                continue
        else:
            tag = <object>item
            Py_DECREF(item)
            if seen is None:
                seen = set(<list>out)
            if tag in seen:
                continue
            seen.add(tag)
            Py_INCREF(item)
        list_put(out, taken, item)
        taken += 1
        resize(out, taken)
    return answer if taken else 0


cdef bint is_plain(PyObject** items, Py_ssize_t n, Container* field) noexcept:
    """Whether the items can be taken as they are: exact texts and, where they are tags, clean, few and different."""
    cdef Py_ssize_t i, j
    for i in range(n):
        if not is_exact_text(items[i]):
            return False
    if field.holds == TEXTS:
        return True
    if n > SHORT_LIST:
        return False
    for i in range(n):
        if not tag_is_clean(items[i]):
            return False
        for j in range(i):
            if same_text(items[i], items[j]):
                return False
    return True


cdef int fill_list(PyObject** place, PyObject* given, Container* field) except -1:
    """Put the texts of a list, tuple or set in a list of the record's own: 1, or 2 if one may be part of a cycle.

    ``place`` has an idle list to use, or NULL, and still has where there is nothing to fill in (0) or an error (-1).
    """
    cdef PyObject* out = place[0]
    cdef PyObject* source = given
    cdef PyObject** items
    cdef Py_ssize_t n, i
    cdef int answer
    cdef object taken_over = None
    if not (PyTuple_CheckExact(source) or (PyList_CheckExact(source) and not FREE_THREADED)):
        if not isinstance(<object>given, (list, tuple, set, frozenset)):
            wrong_type(field.name, given, "a list of strings")
        # On the free-threaded build also because the caller's list may change under another thread's hands.
        taken_over = tuple(<object>given)
        source = <PyObject*>taken_over
    if PyTuple_CheckExact(source):
        n = PyTuple_GET_SIZE(source)
        items = tuple_items(source)
    else:
        n = PyList_GET_SIZE(source)
        items = list_items(source)
    if n == 0:
        return 0
    if out != NULL and (list_room(out) < n or not uniquely_referenced(out)):
        place[0] = NULL
        Py_DECREF(out)
        out = NULL
    if out == NULL:
        out = PyList_New(n)
        if out == NULL:
            return -1
        # Room for n and a size of 0 is how idle lists are; what it will hold needs no collector.
        PyObject_GC_UnTrack(out)
        resize(out, 0)
        place[0] = out
        # Making the list may have run the collector, and that any code: the caller's list may have changed.
        if PyList_CheckExact(source):
            if PyList_GET_SIZE(source) != n:
                return fill_list(place, given, field)
            items = list_items(source)
    if is_plain(items, n, field):
        for i in range(n):
            list_put(out, i, Py_NewRef(items[i]))
        resize(out, n)
        return 1
    # While it is filled the list belongs to this function, so that an error lets it go with what it got so far.
    place[0] = NULL
    filling = <object>out
    Py_DECREF(out)
    answer = fill_from(<PyObject*>filling, source, given, field)
    place[0] = Py_NewRef(out)
    return answer


cdef inline unsigned char kept_of(int slot) noexcept:
    """What the state says of the container in a slot; the dicts are in the first one."""
    return ((LIVE | SHOWN) << (slot - FIRST_CONTAINER)) | (GIVEN if slot == FIRST_CONTAINER else 0)


cdef void put_container(PyObject* op, int slot, PyObject* value, unsigned char bits) noexcept:
    """Put a container whose reference is taken over, or NULL, in the place of another."""
    cdef Record* self = <Record*>op
    cdef int bit = slot - FIRST_CONTAINER
    cdef Section section
    cdef PyObject* old
    hold(&section, op)
    old = self.slots[slot]
    self.slots[slot] = value
    self.state = (self.state & ~kept_of(slot)) | (bits << bit)
    if bits and slot == FIRST_CONTAINER:
        self.state |= GIVEN
    if bits & SHOWN:
        track(value)
        track(op)
    let(&section)
    Py_XDECREF(old)


cdef inline int add_container(PyObject* op, Container* field, PyObject* given, bint as_it_is) except -1:
    """Give a record that nobody else has seen what its constructor got for a container: 1 if it may be in a cycle."""
    cdef Record* self = <Record*>op
    cdef int bit = field.slot - FIRST_CONTAINER
    cdef PyObject* idle
    cdef int answer
    if given == NULL:
        return 0
    if field.holds == DICT or as_it_is:
        idle = self.slots[field.slot]
        self.slots[field.slot] = Py_NewRef(given)
        self.state |= (LIVE | SHOWN) << bit
        if field.holds == DICT:
            self.state |= GIVEN
        Py_XDECREF(idle)
        return 1
    answer = fill_list(&self.slots[field.slot], given, field)
    if answer == 0:
        return 0
    self.state |= LIVE << bit
    if answer == 2:
        self.state |= SHOWN << bit
        PyObject_GC_Track(self.slots[field.slot])
        return 1
    return 0


# --- What the interpreter calls ----------------------------------------------------------------------------------


cdef inline PyObject* obtain(Shape* shape) except NULL:
    """An untracked record of the exact type: its containers are idle or NULL, its other slots anything."""
    cdef PyObject* op = <PyObject*>freelist_pop(shape.idle)
    if op != NULL:
        return PyObject_Init(op, <PyTypeObject*>shape.type)
    op = gc_new(<PyTypeObject*>shape.type)
    if op == NULL:
        return NULL
    (<Record*>op).weakrefs = NULL
    (<Record*>op).state = 0
    memset(&(<Record*>op).slots[0], 0, shape.slots * sizeof(PyObject*))
    return op


cdef PyObject* blank(Shape* shape, PyTypeObject* cls) except NULL:
    """A record with the blanks that `reset` gives."""
    cdef PyObject* op
    cdef Record* self
    cdef int i
    if cls == <PyTypeObject*>shape.type:
        op = obtain(shape)
    else:
        op = (<Type*>cls).tp_alloc(cls, 0)
        if op == NULL:
            return NULL
    self = <Record*>op
    self.seconds = wall_clock()
    for i in range(FIRST_CONTAINER):
        self.slots[i] = Py_NewRef(BLANK) if 2 <= i < shape.texts_end else NULL
    if shape == &QUERY:
        self.query_type = GENERAL
        self.priority = MEDIUM
    else:
        (<PooledExpertResponse>op).confidence = 0.0
    return op


cdef inline void dealloc(PyObject* op, Shape* shape, int slots) noexcept:
    cdef Record* self = <Record*>op
    cdef bint pooled = type_of(op) == <PyObject*>shape.type
    cdef PyObject* container
    cdef PyTypeObject* cls
    cdef int i
    PyObject_GC_UnTrack(op)
    if self.weakrefs != NULL:
        PyObject_ClearWeakRefs(op)
    drop_values(&self.slots[0])
    if self.state or not pooled:
        for i in range(FIRST_CONTAINER, slots):
            container = self.slots[i]
            if container == NULL:
                continue
            if not pooled:
                Py_DECREF(container)
            elif i == FIRST_CONTAINER and self.state & GIVEN:
                # Who hands in a dict will hand in the next one too: an idle one would never be used.
                self.slots[i] = NULL
                Py_DECREF(container)
            elif self.state & (LIVE << (i - FIRST_CONTAINER)):
                self.slots[i] = emptied(container, self.state & (SHOWN << (i - FIRST_CONTAINER)) != 0)
        self.state = 0
    if not pooled:
        cls = <PyTypeObject*>type_of(op)
        (<Type*>cls).tp_free(op)
        if is_heap_type(<PyTypeObject*>shape.type):
            Py_DECREF(<PyObject*>cls)
        return
    if not freelist_push(shape.idle, op):
        let_block_go(op, slots)
    if is_heap_type(<PyTypeObject*>shape.type):
        Py_DECREF(<PyObject*>shape.type)


cdef void let_block_go(PyObject* op, int slots) noexcept:
    cdef int i
    for i in range(FIRST_CONTAINER, slots):
        Py_XDECREF((<Record*>op).slots[i])
    PyObject_GC_Del(op)


cdef inline int traverse(PyObject* op, Shape* shape, int slots, visitproc visit, void* arg) noexcept:
    cdef Record* self = <Record*>op
    cdef int i, answer
    if is_heap_type(<PyTypeObject*>shape.type):
        answer = visit(type_of(op), arg)
        if answer:
            return answer
    for i in range(slots):
        # An idle container is nobody's contents: showing it would let Python code take hold of it.
        if i >= FIRST_CONTAINER and not self.state & (LIVE << (i - FIRST_CONTAINER)):
            continue
        if self.slots[i] != NULL:
            answer = visit(self.slots[i], arg)
            if answer:
                return answer
    return 0


cdef inline int clear(PyObject* op, Shape* shape, int slots) noexcept:
    """Let go what may be part of a cycle; the texts stay texts, since Cython code reads them unchecked."""
    cdef Record* self = <Record*>op
    cdef PyObject* old
    cdef int i
    for i in range(slots):
        old = self.slots[i]
        if not collectable(old):
            continue
        if i >= FIRST_CONTAINER:
            if not self.state & (LIVE << (i - FIRST_CONTAINER)):
                continue
            self.state &= ~kept_of(i)
        self.slots[i] = Py_NewRef(BLANK) if 2 <= i < shape.texts_end else NULL
        Py_DECREF(old)
    return 0


cdef void exchange(PyObject* op, PyObject* other, Shape* shape) noexcept:
    """Swap the contents of a record with those of one of the exact type that nobody else has seen."""
    cdef Record* self = <Record*>op
    cdef Record* fresh = <Record*>other
    cdef Section section
    cdef bint tracked = PyObject_GC_IsTracked(other)
    cdef int i
    hold(&section, op)
    for i in range(shape.slots):
        self.slots[i], fresh.slots[i] = fresh.slots[i], self.slots[i]
    self.state, fresh.state = fresh.state, self.state
    self.seconds, fresh.seconds = fresh.seconds, self.seconds
    if shape == &QUERY:
        self.query_type, fresh.query_type = fresh.query_type, self.query_type
        self.priority, fresh.priority = fresh.priority, self.priority
    else:
        (<PooledExpertResponse>op).confidence = (<PooledExpertResponse>other).confidence
    if tracked:
        track(op)
    elif type_of(op) == <PyObject*>shape.type:
        PyObject_GC_UnTrack(op)
    let(&section)


cdef int reset_record(PyObject* op, Shape* shape) except -1:
    cdef PyObject* fresh = blank(shape, <PyTypeObject*>shape.type)
    exchange(op, fresh, shape)
    # What was in the record goes the way of every record, so its containers are kept for the next one.
    Py_DECREF(fresh)
    return 0


# --- Queries -----------------------------------------------------------------------------------------------------


cdef inline PyObject* absent(PyObject* value) noexcept:
    return NULL if value == Py_None else value


cdef int check_dict(PyObject* value, Container* field) except -1:
    if not PyDict_Check(value):
        wrong_type(field.name, value, "a dict")
    return 0


cdef int check_list(PyObject* value, Container* field) except -1:
    if not isinstance(<object>value, list):
        wrong_type(field.name, value, "a list")
    return 0


cdef int plan_query(PyObject** given, bint restoring, Plan* plan) except -1:
    """Check the arguments; when restoring a pickled record only their types."""
    cdef PyObject* value
    if unlikely(restoring):
        for i in range(3):
            if not is_text(given[i]):
                wrong_type(query_names_of(i), given[i], "a string")
    else:
        check_text(given[0], &TITLE_TEXT)
        check_text(given[1], &CONTENT_TEXT)
        check_text(given[2], &REQUESTER_TEXT)
    plan.slots[TITLE] = given[0]
    plan.slots[CONTENT] = given[1]
    plan.slots[REQUESTER] = given[2]
    plan.query_type = GENERAL if given[3] == NULL else code_of(given[3], "query_type", type_names, QUERY_TYPES)
    plan.priority = MEDIUM if given[4] == NULL else code_of(given[4], "priority", priority_names, PRIORITIES)
    plan.slots[CONTEXT] = value = absent(given[5])
    if value != NULL:
        check_dict(value, &CONTEXT_DICT)
    plan.slots[CONSTRAINTS] = value = absent(given[6])
    if value != NULL and restoring:
        check_list(value, &CONSTRAINTS_LIST)
    plan.slots[TAGS] = value = absent(given[8])
    if value != NULL and restoring:
        check_list(value, &TAGS_LIST)
    plan.slots[ID] = value = absent(given[9])
    if value != NULL:
        check_text(value, &ID_TEXT)
    plan.slots[MOMENT] = value = absent(given[10])
    if value != NULL:
        plan.seconds = instant(value, "created_at")
    else:
        plan.seconds = wall_clock()
    plan.slots[DEADLINE] = value = absent(given[7])
    if value != NULL and instant(value, "deadline") <= plan.seconds and not restoring:
        wrong_value("deadline", value, "later than created_at")
    return 0


cdef const char* query_names_of(int i) noexcept:
    return TITLE_TEXT.name if i == 0 else CONTENT_TEXT.name if i == 1 else REQUESTER_TEXT.name


cdef PyObject* query_made(PyObject** given, bint restoring) except NULL:
    cdef Plan plan
    cdef PyObject* op
    cdef Record* self
    cdef bint cyclic
    plan_query(given, restoring, &plan)
    op = obtain(&QUERY)
    self = <Record*>op
    self.seconds = plan.seconds
    self.query_type = plan.query_type
    self.priority = plan.priority
    cyclic = take_values(&self.slots[0], &plan.slots[0])
    if unlikely(plan.slots[CONTEXT] != NULL or plan.slots[CONSTRAINTS] != NULL or plan.slots[TAGS] != NULL):
        # From here on an error lets the record go, which takes care of all that it got.
        made = taken(op)
        cyclic |= add_container(op, &CONTEXT_DICT, plan.slots[CONTEXT], restoring)
        cyclic |= add_container(op, &CONSTRAINTS_LIST, plan.slots[CONSTRAINTS], restoring)
        cyclic |= add_container(op, &TAGS_LIST, plan.slots[TAGS], restoring)
        Py_INCREF(<PyObject*>made)
    if cyclic:
        PyObject_GC_Track(op)
    return op


cdef PyObject* query_call(PyObject* cls, PyObject* const* args, size_t nargsf, PyObject* kwnames) except NULL:
    cdef PyObject* given[QUERY_ARGUMENTS]
    bind(&QUERY_CALL, args, PyVectorcall_NARGS(nargsf), kwnames, given)
    return query_made(given, False)


cdef PyObject* query_new(PyTypeObject* cls, PyObject* args, PyObject* kwargs) except NULL:
    return blank(&QUERY, cls)


cdef int query_assign(PyObject* op, PyObject** given, bint restoring) except -1:
    cdef PyObject* fresh = query_made(given, restoring)
    exchange(op, fresh, &QUERY)
    Py_DECREF(fresh)
    return 0


cdef void query_dealloc(PyObject* op) noexcept:
    dealloc(op, &QUERY, QUERY_SLOTS)


cdef void query_block_free(void* op) noexcept:
    let_block_go(<PyObject*>op, QUERY_SLOTS)


cdef int query_traverse(PyObject* op, visitproc visit, void* arg) noexcept:
    return traverse(op, &QUERY, QUERY_SLOTS, visit, arg)


cdef int query_clear(PyObject* op) noexcept:
    return clear(op, &QUERY, QUERY_SLOTS)


# --- Responses ---------------------------------------------------------------------------------------------------


cdef double number_of(PyObject* value) except? -1.0:
    try:
        return <object>value
    except TypeError:
        pass
    except OverflowError:
        return 2.0
    wrong_type("confidence", value, "a number from 0 to 1")


cdef double confidence_of(PyObject* value) except? -1.0:
    cdef double number = PyFloat_AS_DOUBLE(value) if PyFloat_CheckExact(value) else number_of(value)
    if unlikely(not (0.0 <= number <= 1.0)):
        wrong_value("confidence", value, "a number from 0 to 1")
    return number


cdef int plan_response(PyObject** given, Plan* plan) except -1:
    cdef PyObject* value
    check_text(given[0], &QUERY_ID_TEXT)
    check_text(given[1], &EXPERT_ID_TEXT)
    if given[2] != NULL:
        check_text(given[2], &ANSWER_TEXT)
    if given[4] != NULL:
        check_text(given[4], &REASONING_TEXT)
    plan.slots[QUERY_ID] = given[0]
    plan.slots[EXPERT_ID] = given[1]
    plan.slots[ANSWER] = BLANK if given[2] == NULL else given[2]
    plan.confidence = 0.0 if given[3] == NULL else confidence_of(given[3])
    plan.slots[REASONING] = BLANK if given[4] == NULL else given[4]
    plan.slots[METADATA] = value = absent(given[5])
    if value != NULL:
        check_dict(value, &METADATA_DICT)
    plan.slots[ID] = value = absent(given[6])
    if value != NULL:
        check_text(value, &ID_TEXT)
    plan.slots[MOMENT] = value = absent(given[7])
    if value != NULL:
        plan.seconds = instant(value, "timestamp")
    else:
        plan.seconds = wall_clock()
    return 0


cdef PyObject* response_made(PyObject** given) except NULL:
    cdef Plan plan
    cdef PyObject* op
    cdef Record* self
    cdef bint cyclic
    plan_response(given, &plan)
    op = obtain(&RESPONSE)
    self = <Record*>op
    self.seconds = plan.seconds
    (<PooledExpertResponse>op).confidence = plan.confidence
    cyclic = take_values(&self.slots[0], &plan.slots[0])
    if plan.slots[METADATA] != NULL:
        # A dict is taken as it is: no error can come of it.
        cyclic |= add_container(op, &METADATA_DICT, plan.slots[METADATA], True)
    if cyclic:
        PyObject_GC_Track(op)
    return op


cdef PyObject* response_call(PyObject* cls, PyObject* const* args, size_t nargsf, PyObject* kwnames) except NULL:
    cdef PyObject* given[RESPONSE_ARGUMENTS]
    bind(&RESPONSE_CALL, args, PyVectorcall_NARGS(nargsf), kwnames, given)
    return response_made(given)


cdef PyObject* response_new(PyTypeObject* cls, PyObject* args, PyObject* kwargs) except NULL:
    return blank(&RESPONSE, cls)


cdef int response_assign(PyObject* op, PyObject** given) except -1:
    cdef PyObject* fresh = response_made(given)
    exchange(op, fresh, &RESPONSE)
    Py_DECREF(fresh)
    return 0


cdef void response_dealloc(PyObject* op) noexcept:
    dealloc(op, &RESPONSE, RESPONSE_SLOTS)


cdef void response_block_free(void* op) noexcept:
    let_block_go(<PyObject*>op, RESPONSE_SLOTS)


cdef int response_traverse(PyObject* op, visitproc visit, void* arg) noexcept:
    return traverse(op, &RESPONSE, RESPONSE_SLOTS, visit, arg)


cdef int response_clear(PyObject* op) noexcept:
    return clear(op, &RESPONSE, RESPONSE_SLOTS)


# --- Attributes --------------------------------------------------------------------------------------------------


cdef PyObject* get_text(PyObject* op, void* closure) except NULL:
    return peek(op, (<Text*>closure).slot)


cdef int set_text(PyObject* op, PyObject* value, void* closure) except -1:
    cdef Text* text = <Text*>closure
    if value == NULL:
        not_deletable(text.name)
    check_text(value, text)
    put(op, text.slot, value)
    return 0


cdef PyObject* get_id(PyObject* op, void* closure) except NULL:
    return id_of(op)


cdef int set_id(PyObject* op, PyObject* value, void* closure) except -1:
    if value == NULL:
        not_deletable("id")
    value = absent(value)
    if value != NULL:
        check_text(value, &ID_TEXT)
    put(op, ID, value)
    return 0


cdef PyObject* get_moment(PyObject* op, void* closure) except NULL:
    return moment_of(op)


cdef int set_moment(PyObject* op, PyObject* value, void* closure) except -1:
    cdef const char* name = <const char*>closure
    cdef double seconds
    cdef Section section
    cdef PyObject* old
    cdef PyObject* deadline
    if value == NULL:
        not_deletable(name)
    value = absent(value)
    seconds = wall_clock() if value == NULL else instant(value, name)
    if PyObject_TypeCheck(op, <PyTypeObject*>QUERY.type):
        deadline = peek(op, DEADLINE)
        if deadline != NULL:
            limit = <object>deadline
            Py_DECREF(deadline)
            if seconds >= instant(<PyObject*>limit, "deadline"):
                wrong_value(name, value if value != NULL else Py_None, "earlier than the deadline")
    Py_XINCREF(value)
    hold(&section, op)
    old = (<Record*>op).slots[MOMENT]
    (<Record*>op).slots[MOMENT] = value
    (<Record*>op).seconds = seconds
    if collectable(value):
        track(op)
    let(&section)
    Py_XDECREF(old)
    return 0


cdef PyObject* get_deadline(PyObject* op, void* closure) except NULL:
    cdef PyObject* value = peek(op, DEADLINE)
    return value if value != NULL else Py_NewRef(Py_None)


cdef int set_deadline(PyObject* op, PyObject* value, void* closure) except -1:
    if value == NULL:
        not_deletable("deadline")
    value = absent(value)
    if value != NULL and instant(value, "deadline") <= (<Record*>op).seconds:
        wrong_value("deadline", value, "later than created_at")
    put(op, DEADLINE, value)
    return 0


cdef PyObject* get_container(PyObject* op, void* closure) except NULL:
    return touch(op, <Container*>closure)


cdef int set_container(PyObject* op, PyObject* value, void* closure) except -1:
    cdef Container* field = <Container*>closure
    cdef PyObject* made = NULL
    cdef int answer
    if value == NULL:
        not_deletable(field.name)
    if value == Py_None:
        put_container(op, field.slot, NULL, 0)
    elif field.holds == DICT:
        check_dict(value, field)
        put_container(op, field.slot, Py_NewRef(value), LIVE | SHOWN)
    else:
        answer = fill_list(&made, value, field)
        put_container(op, field.slot, made, 0 if made == NULL else LIVE if answer < 2 else LIVE | SHOWN)
    return 0


cdef PyObject* get_query_type(PyObject* op, void* closure) except NULL:
    cdef PyObject** member = &type_members[(<Record*>op).query_type]
    if member[0] == NULL:
        load_kinds()
    return Py_NewRef(member[0])


cdef int set_query_type(PyObject* op, PyObject* value, void* closure) except -1:
    if value == NULL:
        not_deletable("query_type")
    (<Record*>op).query_type = code_of(value, "query_type", type_names, QUERY_TYPES)
    return 0


cdef PyObject* get_priority(PyObject* op, void* closure) except NULL:
    cdef PyObject** member = &priority_members[(<Record*>op).priority]
    if member[0] == NULL:
        load_kinds()
    return Py_NewRef(member[0])


cdef int set_priority(PyObject* op, PyObject* value, void* closure) except -1:
    if value == NULL:
        not_deletable("priority")
    (<Record*>op).priority = code_of(value, "priority", priority_names, PRIORITIES)
    return 0


cdef PyObject* get_confidence(PyObject* op, void* closure) except NULL:
    cdef object number = (<PooledExpertResponse>op).confidence
    return Py_NewRef(<PyObject*>number)


cdef int set_confidence(PyObject* op, PyObject* value, void* closure) except -1:
    if value == NULL:
        not_deletable("confidence")
    (<PooledExpertResponse>op).confidence = confidence_of(value)
    return 0


# --- The classes -------------------------------------------------------------------------------------------------


cdef object taken(PyObject* value):
    """The reference, as an object of Cython's; None for NULL."""
    if value == NULL:
        return None
    result = <object>value
    Py_DECREF(value)
    return result


cdef object contents_or_empty(PyObject* op, Container* field):
    cdef bint shown = False
    cdef PyObject* value = contents(op, field.slot, &shown)
    if value == NULL:
        return {} if field.holds == DICT else []
    if shown:
        return taken(value)
    # A list that the collector doesn't see must not get into anybody's hands; a copy does as well.
    return list(taken(value))


cdef dict counts(Shape* shape):
    cdef int64_t totals[COUNTS]
    cdef Py_ssize_t idle = freelist_stats(shape.idle, totals)
    cdef int64_t made = totals[<int>MISSED] + totals[<int>REUSED]
    return {
        "created": totals[<int>MISSED],
        "reused": totals[<int>REUSED],
        "released": totals[<int>RELEASED],
        "discarded": totals[<int>DISCARDED],
        "aliased": 0,
        "pool_size": idle,
        "reuse_rate": <double>totals[<int>REUSED] / made if made else 0.0,
    }


class RecordStats(dict):
    """What a record type's ``stats`` is: a dict, as other parts' ``stats`` are, that may be called as well.

    The report spells it as a call, which returns the same counts as a plain dict.
    """

    __slots__ = ()

    def __call__(self):
        return dict(self)


cdef class StatsAttribute:
    """Counts since the import, for the type and its instances, under the keys of `ObjectPool.stats`.

    ``created`` counts records whose memory was allocated, ``reused`` those made in memory used before. ``aliased`` is
    always 0: memory is reused only after its record is gone. Instances of subclasses are not counted.

    >>> from synthex_fast import PooledExpertQuery
    >>> PooledExpertQuery.stats["aliased"]
    0
    """

    cdef Shape* shape

    def __get__(self, instance, owner):
        return RecordStats(counts(self.shape))


cdef tuple query_values(PyObject* op):
    """All fields in the order of the constructor; untouched containers come as new empty ones."""
    return (
        taken(peek(op, TITLE)),
        taken(peek(op, CONTENT)),
        taken(peek(op, REQUESTER)),
        QUERY_TYPES[(<Record*>op).query_type],
        PRIORITIES[(<Record*>op).priority],
        contents_or_empty(op, &CONTEXT_DICT),
        contents_or_empty(op, &CONSTRAINTS_LIST),
        taken(peek(op, DEADLINE)),
        contents_or_empty(op, &TAGS_LIST),
        taken(id_of(op)),
        taken(moment_of(op)),
    )


cdef tuple response_values(PyObject* op):
    """All fields in the order of the constructor; untouched metadata come as a new dict."""
    return (
        taken(peek(op, QUERY_ID)),
        taken(peek(op, EXPERT_ID)),
        taken(peek(op, ANSWER)),
        (<PooledExpertResponse>op).confidence,
        taken(peek(op, REASONING)),
        contents_or_empty(op, &METADATA_DICT),
        taken(id_of(op)),
        taken(moment_of(op)),
    )


cdef bint ids_differ(PyObject* one, PyObject* other) except -1:
    """Whether the identifiers alone tell two records apart; one that nobody has read yet is like no other."""
    cdef object a = taken(peek(one, ID))
    cdef object b = taken(peek(other, ID))
    return a is None or b is None or a != b


cdef str shown(object self, tuple fields, tuple values):
    cdef list parts = []
    # No comprehension: Cython 3.3.1 drops an item twice where appending it fails for want of memory.
    for name, value in zip(fields, values):
        part = f"{name}={value!r}"
        parts.append(part)
    return f"{type(self).__qualname__}({', '.join(parts)})"


cdef str iso(object moment):
    return None if moment is None else moment.isoformat()


cdef dict arguments_of(object data, str time_field, tuple fields):
    """A copy of ``data`` with its times as datetimes, for the constructor."""
    if not isinstance(data, dict):
        raise type_error("data", data, "a dict as to_dict() returns")
    arguments = dict(data)
    for name in arguments:
        if name not in fields:
            raise value_error("data", name, "a dict with no keys but " + ", ".join(fields))
    load_datetime()
    for name in (time_field, "deadline"):
        moment = arguments.get(name)
        if isinstance(moment, str):
            try:
                arguments[name] = (<object>datetime_class).fromisoformat(moment)
            except ValueError:
                raise value_error(name, moment, "a time in ISO 8601") from None
    return arguments


cdef object extra_state(object self, Shape* shape):
    """What a subclass written in Python keeps in its instances' ``__dict__`` and slots."""
    if type_of(<PyObject*>self) == <PyObject*>shape.type:
        return None
    return object.__getstate__(self)


cdef int restore_extra(object self, object extra) except -1:
    if isinstance(extra, tuple):
        extra, slots = extra
        for name, value in slots.items():
            setattr(self, name, value)
    if extra:
        self.__dict__.update(extra)
    return 0


cdef object reduced(object self):
    from copyreg import __newobj__
    return __newobj__, (type(self),), self.__getstate__()


cdef object copied(object self):
    """A shallow copy by way of the pickling protocol, so that subclasses have their say."""
    make, arguments, state = self.__reduce__()
    twin = make(*arguments)
    twin.__setstate__(state)
    return twin


cdef tuple checked_state(object state, Py_ssize_t fields):
    if not (isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], tuple) and len(state[0]) == fields):
        raise value_error("state", state, "what __getstate__() returned")
    return state


cdef class PooledExpertQuery:
    """A question put to the experts. Its memory is used again for the next one when the last reference goes.

    ``title`` has 1 to 200 characters, ``content`` 10 to 10,000, ``requester`` at least one. ``query_type`` is one of
    technical, architectural, optimization, review, research, general, code_review, and ``priority`` one of low, medium,
    high, critical: texts or `QueryType` and `QueryPriority` members, read as members. ``deadline`` is a timezone-aware
    datetime later than ``created_at``. ``context`` is kept as it is; ``constraints`` and ``tags`` are copied, tags
    lower-cased, stripped, and each once, blank ones left out. ``id`` is a version-4 UUID made when first read unless
    one is given, ``created_at`` the time of construction in UTC unless one is given. Attributes are checked when
    set as they are here. An error names the field, and leaves the query as it was.

    Construction takes constant time beside the constraints and tags. Queries are mutable and compare by value, so
    they have no hash.

    >>> query = PooledExpertQuery("Cache size", "How large should the cache be?", "ops", tags=["Cache", " cache "])
    >>> query.tags, query.query_type == "general", len(query.id)
    (['cache'], True, 36)
    """

    __match_args__ = ("title", "content", "requester")

    def __init__(self, *args, **kwargs):
        cdef PyObject* given[QUERY_ARGUMENTS]
        names, values = tuple(kwargs), args + tuple(kwargs.values())
        bind(&QUERY_CALL, tuple_items(<PyObject*>values), len(args), <PyObject*>names, given)
        query_assign(<PyObject*>self, given, False)

    def reset(self):
        """Set every field back: blank texts, a new id and time, no contents, the default type and priority.

        Containers that somebody else holds are left to them unchanged.

        >>> query = PooledExpertQuery("Cache size", "How large should the cache be?", "ops")
        >>> query.reset()
        >>> query.title
        ''
        """
        reset_record(<PyObject*>self, &QUERY)

    def release(self):
        """Let the contents go now, as `reset` does; the memory itself is used again when the last reference goes.

        Releasing twice does no harm.
        """
        reset_record(<PyObject*>self, &QUERY)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.release()

    def to_dict(self):
        """All fields as a dict of plain texts, lists and dicts, times in ISO 8601: what `json.dumps` takes.

        The containers are copied, one level deep. `from_dict` makes an equal query of it.

        >>> PooledExpertQuery("Cache size", "How large should the cache be?", "ops").to_dict()["priority"]
        'medium'
        """
        fields = dict(zip(QUERY_FIELDS, query_values(<PyObject*>self)))
        fields["context"] = dict(fields["context"])
        fields["constraints"] = list(fields["constraints"])
        fields["tags"] = list(fields["tags"])
        fields["deadline"] = iso(fields["deadline"])
        fields["created_at"] = iso(fields["created_at"])
        return fields

    @classmethod
    def from_dict(cls, data):
        """A query of the fields in ``data``, checked as in construction; times may be texts in ISO 8601.

        >>> query = PooledExpertQuery("Cache size", "How large should the cache be?", "ops")
        >>> PooledExpertQuery.from_dict(query.to_dict()) == query
        True
        """
        return PyObject_VectorcallDict(cls, NULL, 0, arguments_of(data, "created_at", QUERY_FIELDS))

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        if self is other:
            return True
        if ids_differ(<PyObject*>self, <PyObject*>other):
            return False
        return query_values(<PyObject*>self) == query_values(<PyObject*>other)

    def __repr__(self):
        if Py_ReprEnter(self):
            return f"{type(self).__qualname__}(...)"
        try:
            return shown(self, QUERY_FIELDS, query_values(<PyObject*>self))
        finally:
            Py_ReprLeave(self)

    def __copy__(self):
        return copied(self)

    def __reduce__(self):
        return reduced(self)

    def __getstate__(self):
        return query_values(<PyObject*>self), extra_state(self, &QUERY)

    def __setstate__(self, state):
        cdef PyObject* given[QUERY_ARGUMENTS]
        cdef int i
        fields, extra = checked_state(state, QUERY_ARGUMENTS)
        for i in range(QUERY_ARGUMENTS):
            given[i] = PyTuple_GET_ITEM(<PyObject*>fields, i)
        query_assign(<PyObject*>self, given, True)
        restore_extra(self, extra)


cdef class PooledExpertResponse:
    """An expert's answer. Its memory is used again for the next one when the last reference goes.

    ``confidence`` is a number from 0 to 1. ``metadata`` is kept as it is. ``id`` is a version-4 UUID made when first
    read unless one is given, ``timestamp`` the time of construction in UTC unless a timezone-aware datetime is given.
    Attributes are checked when set as they are here. An error names the field, and leaves the response as it was.

    Construction takes constant time. Responses are mutable and compare by value, so they have no hash.

    >>> response = PooledExpertResponse("q-1", "expert-1", "About 2 GB.", confidence=0.8)
    >>> response.confidence, response.metadata
    (0.8, {})
    """

    __match_args__ = ("query_id", "expert_id", "content", "confidence", "reasoning", "metadata")

    def __init__(self, *args, **kwargs):
        cdef PyObject* given[RESPONSE_ARGUMENTS]
        names, values = tuple(kwargs), args + tuple(kwargs.values())
        bind(&RESPONSE_CALL, tuple_items(<PyObject*>values), len(args), <PyObject*>names, given)
        response_assign(<PyObject*>self, given)

    def reset(self):
        """Set every field back: blank texts, a new id and time, no metadata, confidence 0.

        Metadata that somebody else holds are left to them unchanged.

        >>> response = PooledExpertResponse("q-1", "expert-1", confidence=0.8)
        >>> response.reset()
        >>> response.confidence
        0.0
        """
        reset_record(<PyObject*>self, &RESPONSE)

    def release(self):
        """Let the contents go now, as `reset` does; the memory itself is used again when the last reference goes.

        Releasing twice does no harm.
        """
        reset_record(<PyObject*>self, &RESPONSE)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.release()

    def to_dict(self):
        """All fields as a dict of plain texts, numbers and dicts, the time in ISO 8601: what `json.dumps` takes.

        The metadata are copied, one level deep. `from_dict` makes an equal response of it.

        >>> PooledExpertResponse("q-1", "expert-1").to_dict()["confidence"]
        0.0
        """
        fields = dict(zip(RESPONSE_FIELDS, response_values(<PyObject*>self)))
        fields["metadata"] = dict(fields["metadata"])
        fields["timestamp"] = iso(fields["timestamp"])
        return fields

    @classmethod
    def from_dict(cls, data):
        """A response of the fields in ``data``, checked as in construction; the time may be a text in ISO 8601.

        >>> response = PooledExpertResponse("q-1", "expert-1", confidence=0.8)
        >>> PooledExpertResponse.from_dict(response.to_dict()) == response
        True
        """
        return PyObject_VectorcallDict(cls, NULL, 0, arguments_of(data, "timestamp", RESPONSE_FIELDS))

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        if self is other:
            return True
        if ids_differ(<PyObject*>self, <PyObject*>other):
            return False
        return response_values(<PyObject*>self) == response_values(<PyObject*>other)

    def __repr__(self):
        if Py_ReprEnter(self):
            return f"{type(self).__qualname__}(...)"
        try:
            return shown(self, RESPONSE_FIELDS, response_values(<PyObject*>self))
        finally:
            Py_ReprLeave(self)

    def __copy__(self):
        return copied(self)

    def __reduce__(self):
        return reduced(self)

    def __getstate__(self):
        return response_values(<PyObject*>self), extra_state(self, &RESPONSE)

    def __setstate__(self, state):
        cdef PyObject* given[RESPONSE_ARGUMENTS]
        cdef int i
        fields, extra = checked_state(state, RESPONSE_ARGUMENTS)
        for i in range(RESPONSE_ARGUMENTS):
            given[i] = PyTuple_GET_ITEM(<PyObject*>fields, i)
        response_assign(<PyObject*>self, given)
        restore_extra(self, extra)


# --- The types as the functions above make them ------------------------------------------------------------------


cdef PyObject* acquire(PyObject* cls, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) except NULL:
    return PyObject_Vectorcall(cls, args, nargs, kwnames)


cdef PyGetSetDef query_attributes[QUERY_ARGUMENTS]
cdef PyGetSetDef response_attributes[RESPONSE_ARGUMENTS]
cdef PyMethodDef query_acquire, response_acquire

query_attributes[:] = [
    PyGetSetDef("title", get_text, set_text, "What it is about: 1 to 200 characters.", &TITLE_TEXT),
    PyGetSetDef("content", get_text, set_text, "The question: 10 to 10,000 characters.", &CONTENT_TEXT),
    PyGetSetDef("requester", get_text, set_text, "Who asks; not empty.", &REQUESTER_TEXT),
    PyGetSetDef("query_type", get_query_type, set_query_type, "A `QueryType`; set as a member or its text.", NULL),
    PyGetSetDef("priority", get_priority, set_priority, "A `QueryPriority`; set as a member or its text.", NULL),
    PyGetSetDef("context", get_container, set_container, "A dict, kept as it is given.", &CONTEXT_DICT),
    PyGetSetDef("constraints", get_container, set_container, "A list of strings.", &CONSTRAINTS_LIST),
    PyGetSetDef("deadline", get_deadline, set_deadline, "A timezone-aware datetime, or None.", NULL),
    PyGetSetDef("tags", get_container, set_container, "A list of lower-case strings, each once.", &TAGS_LIST),
    PyGetSetDef("id", get_id, set_id, "A version-4 UUID as text, unless another text was given.", NULL),
    PyGetSetDef("created_at", get_moment, set_moment, "When it was made: a timezone-aware datetime.",
                <void*><const char*>"created_at"),
]
response_attributes[:] = [
    PyGetSetDef("query_id", get_text, set_text, "The id of the query that it answers.", &QUERY_ID_TEXT),
    PyGetSetDef("expert_id", get_text, set_text, "Who answers.", &EXPERT_ID_TEXT),
    PyGetSetDef("content", get_text, set_text, "The answer.", &ANSWER_TEXT),
    PyGetSetDef("confidence", get_confidence, set_confidence, "A float from 0 to 1.", NULL),
    PyGetSetDef("reasoning", get_text, set_text, "What led to the answer.", &REASONING_TEXT),
    PyGetSetDef("metadata", get_container, set_container, "A dict, kept as it is given.", &METADATA_DICT),
    PyGetSetDef("id", get_id, set_id, "A version-4 UUID as text, unless another text was given.", NULL),
    PyGetSetDef("timestamp", get_moment, set_moment, "When it was made: a timezone-aware datetime.",
                <void*><const char*>"timestamp"),
]


cdef int install(
    Shape* shape, PyGetSetDef* attributes, int count, const char* signature, PyMethodDef* acquiring,
    const char* acquire_doc
) except -1:
    cdef int i
    cdef StatsAttribute stats
    cdef Type* cls = shape.type
    cdef char* doc = <char*>PyMem_RawMalloc(strlen(signature) + strlen(cls.tp_doc) + 1)
    if doc == NULL:
        raise MemoryError()
    for i in range(count):
        PyDict_SetItemString(
            cls.tp_dict, attributes[i].name, PyDescr_NewGetSet(<PyTypeObject*>cls, &attributes[i])
        )
    acquiring.ml_name = "acquire"
    acquiring.ml_meth = <PyCFunction>acquire
    acquiring.ml_flags = METH_FASTCALL | METH_KEYWORDS
    acquiring.ml_doc = acquire_doc
    PyDict_SetItemString(cls.tp_dict, "acquire", PyDescr_NewClassMethod(<PyTypeObject*>cls, acquiring))
    stats = StatsAttribute.__new__(StatsAttribute)
    stats.shape = shape
    PyDict_SetItemString(cls.tp_dict, "stats", stats)
    # In front of the docstring, where inspect.signature() finds it. It is kept for as long as the type: for ever.
    strcpy(doc, signature)
    strcpy(doc + strlen(signature), cls.tp_doc)
    cls.tp_doc = doc
    PyType_Modified(<PyTypeObject*>cls)
    return 0


cdef int name_all(PyObject** names, tuple texts) except -1:
    """Interned texts, kept for as long as the process lives."""
    cdef Py_ssize_t i
    for i in range(len(texts)):
        names[i] = Py_NewRef(<PyObject*>texts[i])
        PyUnicode_InternInPlace(&names[i])
    return 0


layout_holds
name_all(type_names, QUERY_TYPES)
name_all(priority_names, PRIORITIES)
name_all(query_names, QUERY_FIELDS)
name_all(response_names, RESPONSE_FIELDS)
BLANK = Py_NewRef(<PyObject*>"")

QUERY.type = <Type*>PooledExpertQuery
QUERY.idle = freelist_new(IDLE_RECORDS, query_block_free)
QUERY.slots = QUERY_SLOTS
QUERY.texts_end = QUERY_TEXTS_END
QUERY.type.tp_new = query_new
QUERY.type.tp_dealloc = query_dealloc
QUERY.type.tp_traverse = query_traverse
QUERY.type.tp_clear = query_clear
QUERY.type.tp_vectorcall = query_call
install(
    &QUERY, query_attributes, QUERY_ARGUMENTS,
    "PooledExpertQuery(title, content, requester, *, query_type='general', priority='medium', context=None,\n"
    "    constraints=None, deadline=None, tags=None, id=None, created_at=None)\n--\n\n",
    &query_acquire,
    "acquire($type, /, title, content, requester, *, query_type='general', priority='medium', context=None,\n"
    "    constraints=None, deadline=None, tags=None, id=None, created_at=None)\n--\n\n"
    "A query made as by calling the class."
)

RESPONSE.type = <Type*>PooledExpertResponse
RESPONSE.idle = freelist_new(IDLE_RECORDS, response_block_free)
RESPONSE.slots = RESPONSE_SLOTS
RESPONSE.texts_end = RESPONSE_TEXTS_END
RESPONSE.type.tp_new = response_new
RESPONSE.type.tp_dealloc = response_dealloc
RESPONSE.type.tp_traverse = response_traverse
RESPONSE.type.tp_clear = response_clear
RESPONSE.type.tp_vectorcall = response_call
install(
    &RESPONSE, response_attributes, RESPONSE_ARGUMENTS,
    "PooledExpertResponse(query_id, expert_id, content='', confidence=0.0, reasoning='', metadata=None, *,\n"
    "    id=None, timestamp=None)\n--\n\n",
    &response_acquire,
    "acquire($type, /, query_id, expert_id, content='', confidence=0.0, reasoning='', metadata=None, *,\n"
    "    id=None, timestamp=None)\n--\n\n"
    "A response made as by calling the class."
)
