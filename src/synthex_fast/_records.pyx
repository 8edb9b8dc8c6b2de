"""`PooledExpertQuery` and `PooledExpertResponse`: records whose memory is recycled through a freelist.

Construction runs in the type's vectorcall slot and takes a block from the freelist. Deallocation empties the record and
returns the block, keeping the dict and lists in it that nothing else refers to. A record is only recycled when its last
reference is dropped, so no code can use it after that.

Importing the module replaces the slots of both types that allocate, free and traverse an instance. Therefore fields may
be NULL here, and the functions below treat a record as a row of slots (`Record`): first the values, then, from
FIRST_CONTAINER on, the containers. Each container has a LIVE bit in the record's state if it is the record's contents;
without the bit it is idle, which means empty, untracked and invisible to Python code. The SHOWN bit says that Python
code may hold a reference to it, so that only the collector's view of it must be kept consistent.

An id is made when it is first read, but is fixed from the start by the record's serial number (`_ids.pyx`).

On the free-threaded build a record's critical section guards its slots and state. References are dropped after leaving
the section, because dropping one may run any code.
"""

cimport cython
from cpython.mem cimport PyMem_RawMalloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset, strcpy, strlen

from synthex_fast._arguments cimport real
from synthex_fast._clock cimport wall_clock
from synthex_fast._ids cimport id_for, take_serial, want_serial
from synthex_fast._pool cimport (
    COUNTS, DISCARDED, Freelist, MISSED, RELEASED, REUSED, freelist_new, freelist_pop, freelist_push, freelist_stats,
)
from synthex_fast._python cimport (
    METH_FASTCALL, METH_KEYWORDS, PY_SSIZE_T_MAX, PyCFunction, PyDescr_NewClassMethod, PyDescr_NewGetSet,
    PyDict_Check, PyDict_CheckExact, PyDict_Clear, PyDict_New, PyDict_SetItemString, PyFloat_AS_DOUBLE,
    PyFloat_CheckExact, PyGetSetDef, PyList_CheckExact, PyList_GET_SIZE, PyList_New, PyMethodDef,
    PyObject_ClearWeakRefs, PyObject_GC_Del, PyObject_GC_IsTracked, PyObject_GC_Track, PyObject_GC_UnTrack,
    PyObject_IS_GC, PyObject_Init, PyObject_TypeCheck, PyObject_Vectorcall, PyObject_VectorcallDict,
    PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTypeObject, PyType_Modified, PyUnicode_CheckExact,
    PyUnicode_FromObject, PyUnicode_GET_LENGTH, PyUnicode_InternInPlace, PyVectorcall_NARGS, Py_DECREF, Py_INCREF,
    Py_NewRef, Py_None, Py_ReprEnter, Py_ReprLeave, Py_TYPE, Py_XDECREF, Py_XINCREF, Py_XNewRef, same_text,
    visitproc,
)
from synthex_fast._sync cimport (
    FREE_THREADED, load_double, load_pointer, load_u8, load_u64, store_double, store_pointer, store_u8, store_u64,
    uniquely_referenced, unlikely,
)

from synthex_fast.errors import type_error, value_error

__all__ = ["PooledExpertQuery", "PooledExpertResponse"]

cdef extern from *:
    """
    #include <stddef.h>
    #include <string.h>

    /* The common start of both record types; SYNTHEX_LAYOUT_HOLDS makes the compiler check it. */
    typedef struct {
        PyObject_HEAD
        PyObject *weakrefs;
        double seconds;
        uint64_t serial;
        unsigned char state, query_type, priority;
        PyObject *slots[1];
    } synthex_record;

    #define SYNTHEX_QUERY struct __pyx_obj_12synthex_fast_8_records_PooledExpertQuery
    #define SYNTHEX_RESPONSE struct __pyx_obj_12synthex_fast_8_records_PooledExpertResponse
    #define SYNTHEX_SLOT(type, field) ((offsetof(type, field) - offsetof(synthex_record, slots)) / sizeof(PyObject *))
    #define SYNTHEX_LAYOUT_HOLDS (sizeof(char[ \\
        offsetof(SYNTHEX_QUERY, __weakref__) == offsetof(synthex_record, weakrefs) \\
        && offsetof(SYNTHEX_QUERY, seconds) == offsetof(synthex_record, seconds) \\
        && offsetof(SYNTHEX_QUERY, _serial) == offsetof(synthex_record, serial) \\
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
        && offsetof(SYNTHEX_RESPONSE, _serial) == offsetof(synthex_record, serial) \\
        && offsetof(SYNTHEX_RESPONSE, state) == offsetof(synthex_record, state) \\
        && SYNTHEX_SLOT(SYNTHEX_RESPONSE, _id) == 0 && SYNTHEX_SLOT(SYNTHEX_RESPONSE, _moment) == 1 \\
        && SYNTHEX_SLOT(SYNTHEX_RESPONSE, query_id) == 2 && SYNTHEX_SLOT(SYNTHEX_RESPONSE, expert_id) == 3 \\
        && SYNTHEX_SLOT(SYNTHEX_RESPONSE, content) == 4 && SYNTHEX_SLOT(SYNTHEX_RESPONSE, reasoning) == 5 \\
        && SYNTHEX_SLOT(SYNTHEX_RESPONSE, _metadata) == 6 ? 1 : -1]))

    /* A record's critical section; empty on the standard build, where the GIL guards it. */
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
    /* The float that a read of `confidence` returned last. */
    #ifdef Py_GIL_DISABLED
      static SYNTHEX_THREAD_LOCAL PyObject *synthex_last_number;
    #else
      static PyObject *synthex_last_number;
    #endif
    static inline PyObject **synthex_last_number_here(void) { return &synthex_last_number; }
    /* How deeply the emptying of containers is nested on this thread. */
    static inline int *synthex_clearing_here(void) { return &synthex_clearing; }

    /* Brings a block's object header back to life with one reference. */
    #if defined(Py_GIL_DISABLED) || defined(Py_REF_DEBUG) || defined(Py_TRACE_REFS)
      #define synthex_revive(op) _Py_NewReference(op)
    #else
      #define synthex_revive(op) ((void)((op)->ob_refcnt = 1))
    #endif
    #define synthex_gc_new(type) ((PyObject *)_PyObject_GC_New(type))
    #define synthex_heap_type(type) ((type)->tp_flags & Py_TPFLAGS_HEAPTYPE)
    #define synthex_is_text(op) PyUnicode_Check(op)
    #define synthex_list_room(op) (((PyListObject *)(op))->allocated)
    #define synthex_list_put(op, i, item) (((PyListObject *)(op))->ob_item[i] = (item))
    #define synthex_list_at(op, i) (((PyListObject *)(op))->ob_item[i])
    #define synthex_tuple_items(op) (((PyTupleObject *)(op))->ob_item)
    #define synthex_list_items(op) (((PyListObject *)(op))->ob_item)
    #define synthex_resize(op, n) Py_SET_SIZE((PyVarObject *)(op), (n))

    /* The top bit of each byte that is a capital letter, of eight bytes below 128. */
    #define SYNTHEX_CAPITALS(x) \\
        (((x) + 0x3F3F3F3F3F3F3F3FULL) & ~((x) + 0x2525252525252525ULL) & 0x8080808080808080ULL)

    /* Whether a tag is already lower-case and stripped; conservative, other texts go through str's methods. */
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
            /* The last eight bytes; some may have been checked above. */
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

    /* The slots before the containers. Unrolled by hand, because -O2 does not and this is a hot path. */
    static inline void synthex_drop_values(PyObject **slots) {
        Py_XDECREF(slots[0]);
        Py_XDECREF(slots[1]);
        Py_XDECREF(slots[2]);
        Py_XDECREF(slots[3]);
        Py_XDECREF(slots[4]);
        Py_XDECREF(slots[5]);
    }

    static inline int synthex_take_value(PyObject **slot, PyObject *value) {
        *slot = value;
        if (value == NULL) return 0;
        Py_INCREF(value);
        return !PyUnicode_CheckExact(value) && PyObject_IS_GC(value);
    }

    /* Returns 1 if one of them may be part of a reference cycle. */
    static inline int synthex_take_values(PyObject **slots, PyObject **values) {
        int cyclic = synthex_take_value(&slots[0], values[0]);
        cyclic |= synthex_take_value(&slots[1], values[1]);
        cyclic |= synthex_take_value(&slots[2], values[2]);
        cyclic |= synthex_take_value(&slots[3], values[3]);
        cyclic |= synthex_take_value(&slots[4], values[4]);
        cyclic |= synthex_take_value(&slots[5], values[5]);
        return cyclic;
    }
    """
    ctypedef struct Record "synthex_record":
        PyObject* weakrefs
        double seconds
        uint64_t serial
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
    PyObject** last_number_here "synthex_last_number_here"() noexcept
    void revive "synthex_revive"(PyObject*) noexcept
    PyObject* gc_new "synthex_gc_new"(PyTypeObject*) noexcept
    bint is_heap_type "synthex_heap_type"(PyTypeObject*) noexcept
    bint is_text "synthex_is_text"(PyObject*) noexcept
    Py_ssize_t list_room "synthex_list_room"(PyObject*) noexcept
    void list_put "synthex_list_put"(PyObject*, Py_ssize_t, PyObject*) noexcept
    PyObject* list_at "synthex_list_at"(PyObject*, Py_ssize_t) noexcept
    PyObject** tuple_items "synthex_tuple_items"(PyObject*) noexcept
    PyObject** list_items "synthex_list_items"(PyObject*) noexcept
    void resize "synthex_resize"(PyObject*, Py_ssize_t) noexcept
    void drop_values "synthex_drop_values"(PyObject**) noexcept
    bint take_values "synthex_take_values"(PyObject**, PyObject**) noexcept
    bint tag_is_clean "synthex_tag_is_clean"(PyObject*) noexcept


cdef enum:
    # Slots common to both types, then those of each type.
    ID, MOMENT,
    TITLE = 2, CONTENT, REQUESTER, DEADLINE, CONTEXT, CONSTRAINTS, TAGS, QUERY_SLOTS,
    QUERY_ID = 2, EXPERT_ID, ANSWER, REASONING, METADATA, RESPONSE_SLOTS,
    FIRST_CONTAINER = 6
    QUERY_TEXTS_END = 5
    RESPONSE_TEXTS_END = 6

    # Number of constructor arguments.
    QUERY_ARGUMENTS = 11
    RESPONSE_ARGUMENTS = 8

    # Bits of a record's state; LIVE and SHOWN are shifted by the container's index.
    LIVE = 1                    # the container is the record's contents, not idle
    SHOWN = 16                  # Python code may hold a reference to the container
    GIVEN = 128                 # the caller passed the dict

    IDLE_RECORDS = 4096         # of each type
    IDLE_LIST_ROOM = 64         # lists with a larger capacity are freed instead of kept
    SHORT_LIST = 16             # up to this many tags are compared pairwise, more through a set
    CLEARING_DEPTH = 20         # below this, containers are freed, so that CPython's trashcan bounds the recursion

    DICT, TEXTS, TAGGED


cdef struct Shape:
    PyTypeObject* type
    Freelist* idle
    int slots
    int texts_end               # the texts are in slots 2 up to this one, exclusive


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
    # A constructor's parameters. Names are interned, so most keywords match by identity.
    const char* called
    PyObject** names
    int count
    int positional
    int required


cdef struct Plan:
    # Checked arguments, each at its slot's index; the references are borrowed from the caller.
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
# Enumeration members and two objects of datetime; set when first needed, then never changed.
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


# --- Errors and arguments ----------------------------------------------------------------------------------------


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


cdef int bad_call(Names* call, str problem) except -1:
    raise TypeError(f"{call.called.decode()}() {problem}")


cdef int find_name(Names* call, PyObject* name) except -1:
    """The index of a keyword argument that was not passed in the order of the signature."""
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
    cdef Py_ssize_t i = 0, keywords
    cdef PyObject** names = call.names
    cdef PyObject** named
    cdef PyObject* name
    cdef int at
    cdef int count = call.count
    if unlikely(nargs > call.positional):
        bad_call(call, f"takes at most {call.positional} positional arguments but {nargs} were given")
    memset(given, 0, count * sizeof(PyObject*))
    for at in range(nargs):
        given[at] = args[at]
    if kwnames != NULL:
        at = <int>nargs
        named = tuple_items(kwnames)
        keywords = PyTuple_GET_SIZE(kwnames)
        # Most callers pass keywords in the order of the signature, and many begin with the first.
        while i < keywords and at < count and names[at] == named[i]:
            given[at] = args[at]
            at += 1
            i += 1
        for i in range(i, keywords):
            name = named[i]
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
    # No lock: two threads that race here store the same singleton.
    if published(place) == NULL:
        store_pointer(<void**>place, Py_NewRef(<PyObject*>value))


cdef inline PyObject* published(PyObject** place) noexcept:
    return <PyObject*>load_pointer(<void**>place)


cdef int load_datetime() except -1:
    from datetime import datetime, timezone
    # The class comes last: whoever sees it relies on the other.
    publish(&utc, timezone.utc)
    publish(&datetime_class, datetime)
    return 0


cdef double instant(PyObject* value, const char* name) except? -1.0:
    """Seconds since the epoch of a timezone-aware datetime."""
    if published(&datetime_class) == NULL:
        load_datetime()
    if not PyObject_TypeCheck(value, <PyTypeObject*>datetime_class):
        wrong_type(name, value, "a timezone-aware datetime")
    moment = <object>value
    if (<object>datetime_class).utcoffset(moment) is None:
        wrong_value(name, value, "a timezone-aware datetime")
    return (<object>datetime_class).timestamp(moment)


cdef PyObject* moment_at(double seconds) except NULL:
    if published(&datetime_class) == NULL:
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
    return value != NULL and not PyUnicode_CheckExact(value) and PyObject_IS_GC(value)


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
    """Replace a slot's value by a borrowed one or NULL."""
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


cdef PyObject* id_of(PyObject* op) except NULL:
    cdef Record* self = <Record*>op
    cdef PyObject* value = peek(op, ID)
    cdef uint64_t serial
    cdef Section section
    while value == NULL:
        serial = load_u64(&self.serial)
        made = id_for(serial)
        hold(&section, op)
        # Making the text may have run a collection, and so code that set or dropped the id.
        if self.slots[ID] == NULL and load_u64(&self.serial) == serial:
            self.slots[ID] = Py_NewRef(<PyObject*>made)
        value = Py_XNewRef(self.slots[ID])
        let(&section)
    return value


cdef PyObject* moment_of(PyObject* op) except NULL:
    cdef Record* self = <Record*>op
    cdef PyObject* value = peek(op, MOMENT)
    cdef PyObject* made
    cdef double seconds
    cdef Section section
    while value == NULL:
        seconds = load_double(&self.seconds)
        made = moment_at(seconds)
        hold(&section, op)
        # moment_at() ran Python code, which may have set another time.
        if self.slots[MOMENT] == NULL and load_double(&self.seconds) == seconds:
            self.slots[MOMENT] = Py_NewRef(made)
        value = Py_XNewRef(self.slots[MOMENT])
        let(&section)
        Py_DECREF(made)
    return value


cdef PyObject* contents(PyObject* op, int slot, bint* shown) noexcept:
    """A new reference to a live container or NULL; sets `shown` if Python code may hold the container too."""
    cdef Section section
    cdef PyObject* value = NULL
    hold(&section, op)
    if (<Record*>op).state & (LIVE << (slot - FIRST_CONTAINER)):
        value = Py_NewRef((<Record*>op).slots[slot])
        shown[0] = (<Record*>op).state & (SHOWN << (slot - FIRST_CONTAINER)) != 0
    let(&section)
    return value


cdef PyObject* touch(PyObject* op, Container* field) except NULL:
    """A new reference to the container for Python code; makes it live, and creates it if necessary."""
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
                # Free-threaded build only: another thread owns it, so this one can't read its reference count.
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
    """Steals the reference. Returns the container emptied if it can be reused, otherwise drops it and returns NULL.

    Only an exact dict or list without other references is reused. If Python code has seen it, the collector stops
    tracking it first: dropping its items may run any code, which must not find it through the collector.
    """
    cdef Py_ssize_t i, size
    cdef bint is_dict = PyDict_CheckExact(container)
    cdef bint tracked
    if (
        not uniquely_referenced(container)
        or not (is_dict or (PyList_CheckExact(container) and list_room(container) <= IDLE_LIST_ROOM))
        # A chain of records, each in the context of the next, must not overflow the stack.
        or clearing_here()[0] >= CLEARING_DEPTH
    ):
        Py_DECREF(container)
        return NULL
    if shown:
        tracked = FREE_THREADED and PyObject_GC_IsTracked(container)
        PyObject_GC_UnTrack(container)
        if FREE_THREADED and not uniquely_referenced(container):
            # Another thread got it from the collector just before.
            if tracked:
                PyObject_GC_Track(container)
            Py_DECREF(container)
            return NULL
    clearing_here()[0] += 1
    if is_dict:
        PyDict_Clear(container)
    else:
        size = PyList_GET_SIZE(container)
        # The list keeps its capacity, so that refilling it allocates nothing.
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
        if PyUnicode_CheckExact(item) and tag_is_clean(item):
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
    """Whether the items can be copied unchanged: exact texts and, for tags, also clean, few and distinct."""
    cdef Py_ssize_t i, j
    for i in range(n):
        if not PyUnicode_CheckExact(items[i]):
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
    """Copy the texts of a list, tuple or set into a list that the record owns.

    ``place`` holds an idle list to use, or NULL, and receives the result. Returns 0 if there was nothing to copy, 1 if
    there was, 2 if one of the texts may be part of a reference cycle, and -1 with an error set.
    """
    cdef PyObject* out = place[0]
    cdef PyObject* source = given
    cdef PyObject** items
    cdef Py_ssize_t n, i
    cdef int answer
    cdef object snapshot = None
    if not (PyTuple_CheckExact(source) or (PyList_CheckExact(source) and not FREE_THREADED)):
        if not isinstance(<object>given, (list, tuple, set, frozenset)):
            wrong_type(field.name, given, "a list of strings")
        # On the free-threaded build lists are copied too, because another thread may change the caller's list.
        snapshot = tuple(<object>given)
        source = <PyObject*>snapshot
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
        # An idle list has size 0, keeps its capacity, and is not tracked, because exact texts form no cycles.
        PyObject_GC_UnTrack(out)
        resize(out, 0)
        place[0] = out
        # The allocation may have run the collector, and with it any code: the caller's list may have changed.
        if PyList_CheckExact(source):
            if PyList_GET_SIZE(source) != n:
                return fill_list(place, given, field)
            items = list_items(source)
    if is_plain(items, n, field):
        for i in range(n):
            list_put(out, i, Py_NewRef(items[i]))
        resize(out, n)
        return 1
    # This function owns the list while filling it, so that an error frees it with its items.
    place[0] = NULL
    filling = <object>out
    Py_DECREF(out)
    answer = fill_from(<PyObject*>filling, source, given, field)
    place[0] = Py_NewRef(out)
    return answer


cdef inline unsigned char kept_of(int slot) noexcept:
    """The bits of the state that belong to the container in a slot; dicts are in the first container slot."""
    return ((LIVE | SHOWN) << (slot - FIRST_CONTAINER)) | (GIVEN if slot == FIRST_CONTAINER else 0)


cdef void put_container(PyObject* op, int slot, PyObject* value, unsigned char bits) noexcept:
    """Replace a container. Steals the reference to the new one, which may be NULL."""
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
    """Set a container of a record under construction. Returns 1 if it may be part of a reference cycle."""
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


# --- Allocation and deallocation --------------------------------------------------------------------------------


cdef inline PyObject* obtain(Shape* shape) except NULL:
    """An untracked record of the exact type. Containers are idle or NULL; the other slots are uninitialized."""
    cdef PyObject* op = <PyObject*>freelist_pop(shape.idle)
    if op != NULL:
        # The block was a record of this type, which it still says.
        if is_heap_type(shape.type):
            return PyObject_Init(op, shape.type)
        revive(op)
        return op
    op = gc_new(shape.type)
    if op == NULL:
        return NULL
    (<Record*>op).weakrefs = NULL
    (<Record*>op).state = 0
    memset(&(<Record*>op).slots[0], 0, shape.slots * sizeof(PyObject*))
    return op


cdef PyObject* blank(Shape* shape, PyTypeObject* cls) except NULL:
    """A record in the state that `reset` leaves it in."""
    cdef PyObject* op
    cdef Record* self
    cdef uint64_t serial
    cdef int i
    want_serial()
    serial = take_serial()
    if cls == shape.type:
        op = obtain(shape)
    else:
        op = cls.tp_alloc(cls, 0)
        if op == NULL:
            return NULL
    self = <Record*>op
    self.seconds = wall_clock()
    self.serial = serial
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
    cdef bint pooled = Py_TYPE(op) == shape.type
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
                # A caller who passes a dict usually passes the next one too: an idle dict would never be used.
                self.slots[i] = NULL
                Py_DECREF(container)
            elif self.state & (LIVE << (i - FIRST_CONTAINER)):
                self.slots[i] = emptied(container, self.state & (SHOWN << (i - FIRST_CONTAINER)) != 0)
        self.state = 0
    if not pooled:
        cls = Py_TYPE(op)
        cls.tp_free(op)
        if is_heap_type(shape.type):
            Py_DECREF(<PyObject*>cls)
        return
    if not freelist_push(shape.idle, op):
        block_free(op, slots)
    if is_heap_type(shape.type):
        Py_DECREF(<PyObject*>shape.type)


cdef void block_free(PyObject* op, int slots) noexcept:
    cdef int i
    for i in range(FIRST_CONTAINER, slots):
        Py_XDECREF((<Record*>op).slots[i])
    PyObject_GC_Del(op)


cdef inline int traverse(PyObject* op, Shape* shape, int slots, visitproc visit, void* arg) noexcept:
    cdef Record* self = <Record*>op
    cdef int i, answer
    if is_heap_type(shape.type):
        answer = visit(<PyObject*>Py_TYPE(op), arg)
        if answer:
            return answer
    for i in range(slots):
        # Visiting an idle container would let Python code get a reference to it.
        if i >= FIRST_CONTAINER and not self.state & (LIVE << (i - FIRST_CONTAINER)):
            continue
        if self.slots[i] != NULL:
            answer = visit(self.slots[i], arg)
            if answer:
                return answer
    return 0


cdef inline int clear(PyObject* op, Shape* shape, int slots) noexcept:
    """Drop what may be part of a cycle. Texts become empty, not NULL, since Cython code reads them unchecked."""
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
    """Swap the contents of a record with those of a new one of the exact type that only the caller refers to."""
    cdef Record* self = <Record*>op
    cdef Record* fresh = <Record*>other
    cdef Section section
    cdef bint tracked = PyObject_GC_IsTracked(other)
    cdef int i
    hold(&section, op)
    for i in range(shape.slots):
        self.slots[i], fresh.slots[i] = fresh.slots[i], self.slots[i]
    self.state, fresh.state = fresh.state, self.state
    # The new record's numbers are not read again.
    store_double(&self.seconds, fresh.seconds)
    store_u64(&self.serial, fresh.serial)
    if shape == &QUERY:
        store_u8(&self.query_type, fresh.query_type)
        store_u8(&self.priority, fresh.priority)
    else:
        store_double(&(<PooledExpertResponse>op).confidence, (<PooledExpertResponse>other).confidence)
    if tracked:
        track(op)
    elif Py_TYPE(op) == shape.type:
        PyObject_GC_UnTrack(op)
    let(&section)


cdef int reset_record(PyObject* op, Shape* shape) except -1:
    cdef PyObject* fresh = blank(shape, shape.type)
    exchange(op, fresh, shape)
    # Deallocating the old contents as a record keeps their containers for reuse.
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
    """Check the arguments; when restoring a pickled record, only their types."""
    cdef PyObject* value
    cdef int i
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
    cdef uint64_t serial
    cdef PyObject* op
    cdef Record* self
    cdef bint cyclic
    plan_query(given, restoring, &plan)
    want_serial()
    serial = take_serial()
    op = obtain(&QUERY)
    self = <Record*>op
    self.seconds = plan.seconds
    self.serial = serial
    self.query_type = plan.query_type
    self.priority = plan.priority
    cyclic = take_values(&self.slots[0], &plan.slots[0])
    if unlikely(plan.slots[CONTEXT] != NULL or plan.slots[CONSTRAINTS] != NULL or plan.slots[TAGS] != NULL):
        # From here on an error drops `made`, which frees the record and its contents.
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
    block_free(<PyObject*>op, QUERY_SLOTS)


cdef int query_traverse(PyObject* op, visitproc visit, void* arg) noexcept:
    return traverse(op, &QUERY, QUERY_SLOTS, visit, arg)


cdef int query_clear(PyObject* op) noexcept:
    return clear(op, &QUERY, QUERY_SLOTS)


# --- Responses ---------------------------------------------------------------------------------------------------


cdef double confidence_of(PyObject* value) except? -1.0:
    cdef double number
    if PyFloat_CheckExact(value):
        number = PyFloat_AS_DOUBLE(value)
    else:
        number = real("confidence", <object>value, "a number from 0 to 1")
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
    cdef uint64_t serial
    cdef PyObject* op
    cdef Record* self
    cdef bint cyclic
    plan_response(given, &plan)
    want_serial()
    serial = take_serial()
    op = obtain(&RESPONSE)
    self = <Record*>op
    self.seconds = plan.seconds
    self.serial = serial
    (<PooledExpertResponse>op).confidence = plan.confidence
    cyclic = take_values(&self.slots[0], &plan.slots[0])
    if plan.slots[METADATA] != NULL:
        # A dict is stored as it is, which can't fail.
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
    block_free(<PyObject*>op, RESPONSE_SLOTS)


cdef int response_traverse(PyObject* op, visitproc visit, void* arg) noexcept:
    return traverse(op, &RESPONSE, RESPONSE_SLOTS, visit, arg)


cdef int response_clear(PyObject* op) noexcept:
    return clear(op, &RESPONSE, RESPONSE_SLOTS)


# --- Attributes --------------------------------------------------------------------------------------------------


cdef PyObject* get_text(PyObject* op, void* closure) except NULL:
    cdef PyObject* value = peek(op, (<Text*>closure).slot)
    # Empty in an instance of a subclass that a library allocates itself and has not filled yet.
    return value if value != NULL else Py_NewRef(BLANK)


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
    cdef Section section
    cdef PyObject* old
    if value == NULL:
        not_deletable("id")
    value = absent(value)
    if value != NULL:
        check_text(value, &ID_TEXT)
    want_serial()
    Py_XINCREF(value)
    hold(&section, op)
    old = (<Record*>op).slots[ID]
    (<Record*>op).slots[ID] = value
    # None means a new id, and the old number would give the old one.
    store_u64(&(<Record*>op).serial, take_serial())
    if collectable(value):
        track(op)
    let(&section)
    Py_XDECREF(old)
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
    if PyObject_TypeCheck(op, QUERY.type):
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
    store_double(&(<Record*>op).seconds, seconds)
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
    if value != NULL and instant(value, "deadline") <= load_double(&(<Record*>op).seconds):
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
    cdef PyObject** member = &type_members[load_u8(&(<Record*>op).query_type)]
    if published(member) == NULL:
        load_kinds()
    return Py_NewRef(published(member))


cdef int set_query_type(PyObject* op, PyObject* value, void* closure) except -1:
    if value == NULL:
        not_deletable("query_type")
    store_u8(&(<Record*>op).query_type, code_of(value, "query_type", type_names, QUERY_TYPES))
    return 0


cdef PyObject* get_priority(PyObject* op, void* closure) except NULL:
    cdef PyObject** member = &priority_members[load_u8(&(<Record*>op).priority)]
    if published(member) == NULL:
        load_kinds()
    return Py_NewRef(published(member))


cdef int set_priority(PyObject* op, PyObject* value, void* closure) except -1:
    if value == NULL:
        not_deletable("priority")
    store_u8(&(<Record*>op).priority, code_of(value, "priority", priority_names, PRIORITIES))
    return 0


cdef PyObject* get_confidence(PyObject* op, void* closure) except NULL:
    cdef object number = load_double(&(<PooledExpertResponse>op).confidence)
    cdef PyObject** last = last_number_here()
    cdef PyObject* old = last[0]
    # orjson uses an attribute's value after it has dropped its reference to it, since others would hold one. So the
    # float stays alive until the next is read.
    last[0] = Py_NewRef(<PyObject*>number)
    Py_XDECREF(old)
    return Py_NewRef(<PyObject*>number)


cdef int set_confidence(PyObject* op, PyObject* value, void* closure) except -1:
    if value == NULL:
        not_deletable("confidence")
    store_double(&(<PooledExpertResponse>op).confidence, confidence_of(value))
    return 0


# --- The classes -------------------------------------------------------------------------------------------------


cdef object taken(PyObject* value):
    """Turn a new reference into a Cython object; NULL becomes None."""
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
    # Python code must not get a list that the collector doesn't track, so it gets a copy.
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
        "held_elsewhere": False,
    }


class RecordStats(dict):
    """Counts of a record type since the import, under the names that `ObjectPool.stats` gives them; a dict.

    ``created`` counts the records whose memory was newly allocated, ``reused`` those built in memory used before.
    ``aliased`` is always 0 and ``held_elsewhere`` False, because memory is reused only once nothing refers to the
    record. Instances of subclasses are not counted. Calling it, as in ``PooledExpertQuery.stats()``, returns the
    current counts as a plain dict.

    >>> from synthex_fast import PooledExpertQuery
    >>> PooledExpertQuery.stats["aliased"], PooledExpertQuery.stats()["aliased"]
    (0, 0)
    """

    # Not a cdef class, whose __call__ would have no signature that inspect and stubtest can read.
    __slots__ = ("_is_query",)

    def __call__(self):
        return counts(&QUERY if self._is_query else &RESPONSE)

    def __reduce__(self):
        # The counts belong to this process: a copy is a plain dict.
        return dict, (dict(self),)


@cython.final
@cython.internal
cdef class StatsAttribute:
    """The attribute ``stats`` of a record type, of its instances and of its subclasses: a new `RecordStats` each."""

    cdef Shape* shape

    def __cinit__(self, bint of_query):
        self.shape = &QUERY if of_query else &RESPONSE

    def __get__(self, instance, owner):
        stats = RecordStats(counts(self.shape))
        stats._is_query = self.shape == &QUERY
        return stats


cdef tuple query_values(PyObject* op):
    """All fields in the order of the constructor; containers that were never set are new empty ones."""
    return (
        taken(peek(op, TITLE)),
        taken(peek(op, CONTENT)),
        taken(peek(op, REQUESTER)),
        QUERY_TYPES[load_u8(&(<Record*>op).query_type)],
        PRIORITIES[load_u8(&(<Record*>op).priority)],
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
        load_double(&(<PooledExpertResponse>op).confidence),
        taken(peek(op, REASONING)),
        contents_or_empty(op, &METADATA_DICT),
        taken(id_of(op)),
        taken(moment_of(op)),
    )


cdef bint ids_differ(PyObject* one, PyObject* other) except -1:
    """Whether the identifiers alone make two records differ; one that was never read differs from any other."""
    cdef object a = taken(peek(one, ID))
    cdef object b = taken(peek(other, ID))
    return a is None or b is None or a != b


cdef str shown(object self, tuple fields, tuple values):
    cdef list parts = []
    # No comprehension: Cython 3.3.1 drops an item twice if allocation fails while appending it.
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


class RecordField:
    """A record's field as `dataclasses.fields` shows it, without importing dataclasses before somebody asks."""

    __slots__ = ("_default", "init", "kw_only", "metadata", "name", "type")
    repr = compare = True
    hash = None
    doc = None

    def __init__(self, name, type, default, kw_only):
        self.name = name
        self.type = type
        self.init = True
        self.kw_only = kw_only
        self.metadata = {}
        self._default = default

    def __repr__(self):
        return f"RecordField(name={self.name!r}, type={self.type!r})"

    @property
    def default(self):
        if self._default is not ...:
            return self._default
        from dataclasses import MISSING
        return MISSING

    @property
    def default_factory(self):
        from dataclasses import MISSING
        return MISSING

    @property
    def _field_type(self):
        import dataclasses
        return dataclasses._FIELD


# As texts, which cost nothing until somebody evaluates them.
cdef dict QUERY_ANNOTATIONS = {
    "title": "str",
    "content": "str",
    "requester": "str",
    "query_type": "__import__('synthex_fast.kinds').kinds.QueryType",
    "priority": "__import__('synthex_fast.kinds').kinds.QueryPriority",
    "context": "dict | None",
    "constraints": "list[str] | None",
    "deadline": "__import__('datetime').datetime | None",
    "tags": "list[str] | None",
    "id": "str | None",
    "created_at": "__import__('datetime').datetime | None",
}
cdef dict RESPONSE_ANNOTATIONS = {
    "query_id": "str",
    "expert_id": "str",
    "content": "str",
    "confidence": "float",
    "reasoning": "str",
    "metadata": "dict | None",
    "id": "str | None",
    "timestamp": "__import__('datetime').datetime | None",
}


cdef dict described(dict annotations, Names* call, dict defaults):
    cdef dict fields = {}
    cdef int i = 0
    for name in annotations:
        default = ... if i < call.required else defaults.get(name)
        fields[name] = RecordField(name, annotations[name], default, i >= call.positional)
        i += 1
    return fields


cdef object replaced(object self, tuple names, dict changes):
    for name in names:
        if name not in changes:
            changes[name] = getattr(self, name)
    return PyObject_VectorcallDict(type(self), NULL, 0, changes)


cdef object validated(object cls, object obj, tuple names):
    """What pydantic's ``model_validate`` would: unknown keys are ignored."""
    if isinstance(obj, cls):
        return obj
    if not isinstance(obj, dict):
        raise type_error("obj", obj, f"a dict of fields or a {cls.__name__}")
    known = {}
    for name in names:
        if name in obj:
            known[name] = obj[name]
    return cls.from_dict(known)


cdef object parsed(object json_data):
    from synthex_fast.record import parse_json
    return parse_json(json_data)


cdef dict changes_of(object update):
    if update is None:
        return {}
    if not isinstance(update, dict):
        raise type_error("update", update, "a dict of fields or None")
    return dict(update)


cdef object dump_of(object self, dict options):
    from synthex_fast.record import dump
    return dump(self, **options)


cdef object extra_state(object self, Shape* shape):
    """What a subclass written in Python keeps in its instances' ``__dict__`` and slots."""
    if Py_TYPE(<PyObject*>self) == shape.type:
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
    """A shallow copy made through the pickling protocol, so that a subclass can customise it."""
    make, arguments, state = self.__reduce__()
    twin = make(*arguments)
    twin.__setstate__(state)
    return twin


cdef tuple checked_state(object state, Py_ssize_t fields):
    if not (isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], tuple) and len(state[0]) == fields):
        raise value_error("state", state, "what __getstate__() returned")
    return state


cdef class PooledExpertQuery:
    """A question put to the experts, whose memory is reused for the next one after the last reference is dropped.

    ``title`` has 1 to 200 characters, ``content`` 10 to 10,000, ``requester`` at least one. ``query_type`` is one of
    technical, architectural, optimization, review, research, general, code_review, and ``priority`` one of low, medium,
    high, critical; both accept strings or `QueryType` and `QueryPriority` members, and read as members. ``deadline`` is
    a timezone-aware datetime later than ``created_at``. ``context`` is stored by reference. ``constraints`` and
    ``tags`` are copied; tags are lower-cased, stripped and deduplicated, and blank ones removed. ``id`` defaults to a
    version-4 UUID, which forked children and unpickled copies share, ``created_at`` to the time of construction in UTC.
    Setting an attribute applies the same checks. An error names the field and leaves the query unchanged.

    Construction takes constant time, plus linear time in the constraints and tags. Queries are mutable and compare by
    value, so they are unhashable. `PooledExpertQuery.stats` counts how often memory was reused.

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
        """Reset every field: empty texts, a new id and time, empty containers, the default type and priority.

        Containers that are referenced elsewhere are replaced, not changed.

        >>> query = PooledExpertQuery("Cache size", "How large should the cache be?", "ops")
        >>> query.reset()
        >>> query.title
        ''
        """
        reset_record(<PyObject*>self, &QUERY)

    def release(self):
        """Drop the contents now, as `reset` does; the memory is reused after the last reference is dropped.

        Safe to call more than once.
        """
        reset_record(<PyObject*>self, &QUERY)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.release()

    def to_dict(self):
        """All fields as a dict of strings, lists and dicts that `json.dumps` accepts; times are in ISO 8601.

        The containers are copied one level deep. `from_dict` makes an equal query from it.

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
        """A query made from the fields in ``data``, checked as in construction; times may be ISO 8601 strings.

        >>> query = PooledExpertQuery("Cache size", "How large should the cache be?", "ops")
        >>> PooledExpertQuery.from_dict(query.to_dict()) == query
        True
        """
        return PyObject_VectorcallDict(cls, NULL, 0, arguments_of(data, "created_at", QUERY_FIELDS))

    def __post_init__(self):
        """Raise TypeError: for libraries that fill a record without calling its class, which leaves defaults unset."""
        raise TypeError(f"{type(self).__name__} must be made by calling it or by from_dict()")

    def __replace__(self, /, **changes):
        return replaced(self, QUERY_FIELDS, changes)

    def model_dump(self, **options):
        """The fields as a dict; options as those of `synthex_fast.record.PydanticNames.model_dump`.

        >>> PooledExpertQuery("Cache size", "How large should the cache be?", "ops").model_dump(include=["title"])
        {'title': 'Cache size'}
        """
        return dump_of(self, options)

    def model_dump_json(self, *, indent=None, **options):
        """The fields as JSON text; options as those of `model_dump`."""
        from synthex_fast.record import dump_json
        return dump_json(self, indent, options)

    def model_copy(self, *, update=None):
        """A shallow copy, with the fields in ``update`` changed and checked."""
        return replaced(self, QUERY_FIELDS, changes_of(update))

    @classmethod
    def model_validate(cls, obj):
        """A record made from a dict of its fields, as `from_dict` does; keys that are no fields are ignored."""
        return validated(cls, obj, QUERY_FIELDS)

    @classmethod
    def model_validate_json(cls, json_data):
        """A record made from JSON text."""
        return validated(cls, parsed(json_data), QUERY_FIELDS)

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        from synthex_fast.experts import core_schema
        return core_schema(cls, PooledExpertQuery, handler)

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
    """An expert's answer, whose memory is reused for the next one after the last reference is dropped.

    ``confidence`` is a number from 0 to 1. ``metadata`` is stored by reference, not copied. ``id`` defaults to a
    version-4 UUID, which forked children and unpickled copies share, ``timestamp``, a timezone-aware datetime, to the
    time of construction in UTC. Setting an attribute applies the same checks. An error names the field and leaves the
    response unchanged.

    Construction takes constant time. Responses are mutable and compare by value, so they are unhashable.
    `PooledExpertResponse.stats` counts how often memory was reused.

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
        """Reset every field: empty texts, a new id and time, empty metadata, confidence 0.

        A metadata dict that is referenced elsewhere is replaced, not changed.

        >>> response = PooledExpertResponse("q-1", "expert-1", confidence=0.8)
        >>> response.reset()
        >>> response.confidence
        0.0
        """
        reset_record(<PyObject*>self, &RESPONSE)

    def release(self):
        """Drop the contents now, as `reset` does; the memory is reused after the last reference is dropped.

        Safe to call more than once.
        """
        reset_record(<PyObject*>self, &RESPONSE)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.release()

    def to_dict(self):
        """All fields as a dict of strings, numbers and dicts that `json.dumps` accepts; the time is in ISO 8601.

        The metadata is copied one level deep. `from_dict` makes an equal response from it.

        >>> PooledExpertResponse("q-1", "expert-1").to_dict()["confidence"]
        0.0
        """
        fields = dict(zip(RESPONSE_FIELDS, response_values(<PyObject*>self)))
        fields["metadata"] = dict(fields["metadata"])
        fields["timestamp"] = iso(fields["timestamp"])
        return fields

    @classmethod
    def from_dict(cls, data):
        """A response made from the fields in ``data``, checked as in construction; the time may be an ISO 8601 string.

        >>> response = PooledExpertResponse("q-1", "expert-1", confidence=0.8)
        >>> PooledExpertResponse.from_dict(response.to_dict()) == response
        True
        """
        return PyObject_VectorcallDict(cls, NULL, 0, arguments_of(data, "timestamp", RESPONSE_FIELDS))

    def __post_init__(self):
        """Raise TypeError: for libraries that fill a record without calling its class, which leaves defaults unset."""
        raise TypeError(f"{type(self).__name__} must be made by calling it or by from_dict()")

    def __replace__(self, /, **changes):
        return replaced(self, RESPONSE_FIELDS, changes)

    def model_dump(self, **options):
        """The fields as a dict; options as those of `synthex_fast.record.PydanticNames.model_dump`.

        >>> PooledExpertResponse("q-1", "expert-1").model_dump(include=["query_id"])
        {'query_id': 'q-1'}
        """
        return dump_of(self, options)

    def model_dump_json(self, *, indent=None, **options):
        """The fields as JSON text; options as those of `model_dump`."""
        from synthex_fast.record import dump_json
        return dump_json(self, indent, options)

    def model_copy(self, *, update=None):
        """A shallow copy, with the fields in ``update`` changed and checked."""
        return replaced(self, RESPONSE_FIELDS, changes_of(update))

    @classmethod
    def model_validate(cls, obj):
        """A record made from a dict of its fields, as `from_dict` does; keys that are no fields are ignored."""
        return validated(cls, obj, RESPONSE_FIELDS)

    @classmethod
    def model_validate_json(cls, json_data):
        """A record made from JSON text."""
        return validated(cls, parsed(json_data), RESPONSE_FIELDS)

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        from synthex_fast.experts import core_schema
        return core_schema(cls, PooledExpertResponse, handler)

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
    PyGetSetDef("title", get_text, set_text, "The title: 1 to 200 characters.", &TITLE_TEXT),
    PyGetSetDef("content", get_text, set_text, "The question: 10 to 10,000 characters.", &CONTENT_TEXT),
    PyGetSetDef("requester", get_text, set_text, "The name of the requester; not empty.", &REQUESTER_TEXT),
    PyGetSetDef("query_type", get_query_type, set_query_type, "A `QueryType`; accepts its string value too.", NULL),
    PyGetSetDef("priority", get_priority, set_priority, "A `QueryPriority`; accepts its string value too.", NULL),
    PyGetSetDef("context", get_container, set_container, "A dict; stored by reference, not copied.", &CONTEXT_DICT),
    PyGetSetDef("constraints", get_container, set_container, "A list of strings.", &CONSTRAINTS_LIST),
    PyGetSetDef("deadline", get_deadline, set_deadline, "A timezone-aware datetime, or None.", NULL),
    PyGetSetDef("tags", get_container, set_container, "A list of distinct lower-case strings.", &TAGS_LIST),
    PyGetSetDef("id", get_id, set_id, "A version-4 UUID as a string, unless another id was given.", NULL),
    PyGetSetDef("created_at", get_moment, set_moment, "The time of construction: a timezone-aware datetime.",
                <void*><const char*>"created_at"),
]
response_attributes[:] = [
    PyGetSetDef("query_id", get_text, set_text, "The id of the query answered.", &QUERY_ID_TEXT),
    PyGetSetDef("expert_id", get_text, set_text, "The id of the expert.", &EXPERT_ID_TEXT),
    PyGetSetDef("content", get_text, set_text, "The answer.", &ANSWER_TEXT),
    PyGetSetDef("confidence", get_confidence, set_confidence, "A float from 0 to 1.", NULL),
    PyGetSetDef("reasoning", get_text, set_text, "The reasoning behind the answer.", &REASONING_TEXT),
    PyGetSetDef("metadata", get_container, set_container, "A dict; stored by reference, not copied.", &METADATA_DICT),
    PyGetSetDef("id", get_id, set_id, "A version-4 UUID as a string, unless another id was given.", NULL),
    PyGetSetDef("timestamp", get_moment, set_moment, "The time of construction: a timezone-aware datetime.",
                <void*><const char*>"timestamp"),
]


cdef int install(
    Shape* shape, PyGetSetDef* attributes, int count, const char* signature, PyMethodDef* acquiring,
    const char* acquire_doc
) except -1:
    cdef int i
    cdef PyTypeObject* cls = shape.type
    cdef StatsAttribute stats = StatsAttribute(shape == &QUERY)
    cdef char* doc = <char*>PyMem_RawMalloc(strlen(signature) + strlen(cls.tp_doc) + 1)
    if doc == NULL:
        raise MemoryError()
    for i in range(count):
        PyDict_SetItemString(
            cls.tp_dict, attributes[i].name, PyDescr_NewGetSet(cls, &attributes[i])
        )
    acquiring.ml_name = "acquire"
    acquiring.ml_meth = <PyCFunction>acquire
    acquiring.ml_flags = METH_FASTCALL | METH_KEYWORDS
    acquiring.ml_doc = acquire_doc
    PyDict_SetItemString(cls.tp_dict, "stats", stats)
    # The names by which others recognise a dataclass.
    if shape == &QUERY:
        annotations = QUERY_ANNOTATIONS
        fields = described(annotations, &QUERY_CALL, {"query_type": "general", "priority": "medium"})
    else:
        annotations = RESPONSE_ANNOTATIONS
        fields = described(annotations, &RESPONSE_CALL, {"content": "", "confidence": 0.0, "reasoning": ""})
    PyDict_SetItemString(cls.tp_dict, "__annotations__", annotations)
    PyDict_SetItemString(cls.tp_dict, "__dataclass_fields__", fields)
    PyDict_SetItemString(cls.tp_dict, "acquire", PyDescr_NewClassMethod(cls, acquiring))
    # inspect.signature() reads the signature from the start of the docstring. Never freed, like the type.
    strcpy(doc, signature)
    strcpy(doc + strlen(signature), cls.tp_doc)
    cls.tp_doc = doc
    PyType_Modified(<PyTypeObject*>cls)
    return 0


cdef int name_all(PyObject** names, tuple texts) except -1:
    """Intern the texts; they are never freed."""
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

QUERY.type = <PyTypeObject*>PooledExpertQuery
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
    "The same as calling the class."
)

RESPONSE.type = <PyTypeObject*>PooledExpertResponse
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
    "The same as calling the class."
)
