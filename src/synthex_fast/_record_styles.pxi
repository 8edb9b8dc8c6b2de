# Fields that are stored in another way than they are read, a part of ``_record.pyx``.
#
# - CODED: one of some texts. The slot holds its place among them as a number. Reading it gives the member of an
#   enumeration that is imported only then.
# - CLOCKED: a time that is made when first read. A second slot always has it as a number of microseconds, for C code
#   and for fields that must be later (`Field.after`).
# - TOUCHED, TEXTS, TAGS: a dict or list that is made when first read. The slot is NULL until then, or holds an idle
#   container, marked as no reference is: with the lowest bit set, so that all that looks for numbers leaves it alone.
#   Texts that are given are copied, into the idle list if there is one. That list is out of the collector's sight until
#   Python code gets it, because exact texts form no cycles.

cdef extern from *:
    """
    #define synthex_is_text(op) PyUnicode_Check(op)
    #define synthex_list_put(op, i, item) (((PyListObject *)(op))->ob_item[i] = (item))
    #define synthex_list_items(op) (((PyListObject *)(op))->ob_item)

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
    """
    bint is_text "synthex_is_text"(PyObject*) noexcept
    void list_put "synthex_list_put"(PyObject*, Py_ssize_t, PyObject*) noexcept
    PyObject** list_items "synthex_list_items"(PyObject*) noexcept
    bint tag_is_clean "synthex_tag_is_clean"(PyObject*) noexcept


cdef enum:
    SHORT_LIST = 16             # up to this many tags are compared pairwise, more through a set


cdef inline bint is_touched(Field* field) noexcept:
    return field.style >= TOUCHED


cdef inline PyObject* marked(PyObject* container) noexcept:
    return <PyObject*>(<uintptr_t>container | 1)


cdef inline PyObject* unmarked(PyObject* word) noexcept:
    return <PyObject*>(<uintptr_t>word & ~<uintptr_t>1)


cdef int not_allowed(Field* field, PyObject* value, bint of_right_kind) except -1:
    error = value_error if of_right_kind else type_error
    raise error(<object>field.name, <object>value, (<Rule>field.rule).allowed)


# --- One of some texts -------------------------------------------------------------------------------------------


cdef Py_ssize_t code_of(Field* field, PyObject* value) except -1:
    """The place of the text among the allowed ones."""
    cdef PyObject* texts = <PyObject*>(<Rule>field.rule).options
    cdef Py_ssize_t count = PyTuple_GET_SIZE(texts)
    cdef Py_ssize_t i
    for i in range(count):
        if tuple_items(texts)[i] == value:
            return i
    if is_text(value):
        for i in range(count):
            if same_text(tuple_items(texts)[i], value):
                return i
    not_allowed(field, value, is_text(value))


cdef PyObject* code_in(PyObject* op, Field* field) noexcept:
    cdef Section section
    cdef PyObject* word
    hold(&section, op)
    word = slot_at(op, field.offset)[0]
    let(&section)
    return word


cdef object coded_text(PyObject* op, Field* field):
    cdef PyObject* word = code_in(op, field)
    return UNSET if word == NULL else (<Rule>field.rule).options[<Py_ssize_t>number_in(word)]


cdef PyObject* coded_value(PyObject* op, Field* field) except NULL:
    """A new reference to the member."""
    cdef Rule rule = <Rule>field.rule
    cdef PyObject* word = code_in(op, field)
    if word == NULL:
        raise AttributeError(f"{<object>field.name} is not set")
    if rule.members_in_order is None:
        load_members(rule)
    return Py_NewRef(tuple_items(<PyObject*>rule.members_in_order)[number_in(word)])


cdef int load_members(Rule rule) except -1:
    enumeration = rule.cls()
    members = tuple(map(enumeration, rule.options))
    with cython.critical_section(rule):
        # Set once: others read it without a lock.
        if rule.members_in_order is None:
            rule.members_in_order = members
    return 0


cdef PyObject* get_coded(PyObject* op, void* closure) except NULL:
    return coded_value(op, field_here(op, <Field*>closure))


# --- Times -------------------------------------------------------------------------------------------------------


cdef int64_t micros_of(Field* field, PyObject* moment) except? -1:
    """Microseconds since the epoch. The datetime's timezone may run any code."""
    if datetime_class is None:
        load_datetime()
    if not isinstance(<object>moment, datetime_class):
        # Only where nothing is checked.
        not_allowed(field, moment, False)
    return <int64_t>round_half_even(<double>(datetime_class.timestamp(<object>moment)) * 1e6)


cdef extern from "math.h":
    double round_half_even "rint"(double) noexcept


cdef int compare_times(PyObject* op, Layout* layout) except -1:
    """Check the fields that must be later than another. The record is not shared yet, or may be filled unchecked."""
    cdef int i
    for i in range(layout.laters):
        value = peeked_or(op, layout.later[i], None)
        if value is not None:
            want_later(op, layout.later[i], <PyObject*>value)
    return 0


cdef int64_t clock_of(PyObject* op, Field* field) noexcept:
    cdef Section section
    cdef int64_t micros
    hold(&section, op)
    micros = clock_in(op, field.clock)
    let(&section)
    return micros


cdef int want_later(PyObject* op, Field* field, PyObject* value) except -1:
    if micros_of(field, value) <= clock_of(op, field.after):
        raise value_error(<str>field.name, <object>value, f"later than {<str>field.after.name}")
    return 0


cdef int want_earlier(PyObject* op, Field* field, PyObject* value, int64_t micros) except -1:
    """Check a new value against the fields that must be later than it."""
    cdef Layout* layout = layout_of(op)
    cdef int i
    for i in range(layout.laters):
        if layout.later[i].after == field:
            later = peeked_or(op, layout.later[i], None)
            if later is not None and micros >= micros_of(layout.later[i], <PyObject*>later):
                raise value_error(
                    <str>field.name, <object>value, f"earlier than the {<str>layout.later[i].name}"
                )
    return 0


cdef void store_clocked(PyObject* op, Field* field, PyObject* word, int64_t micros, bint cyclic) noexcept:
    """Replace a time and its number together. Steals the reference, if the word is one."""
    cdef PyObject* old
    cdef Section section
    hold(&section, op)
    old = slot_at(op, field.offset)[0]
    store_pointer(<void**>slot_at(op, field.offset), word)
    slot_at(op, field.clock)[0] = number_word(micros)
    if cyclic and layout_of(op).gc:
        track(op)
    let(&section)
    if not is_number(old):
        Py_XDECREF(old)


cdef int assign_clocked(PyObject* op, Field* field, PyObject* value) except -1:
    cdef bint cyclic = False
    cdef int64_t micros
    if value == Py_None and field.renews:
        micros = wall_micros()
        want_earlier(op, field, value, micros)
        store_clocked(op, field, number_word(micros), micros, False)
        return 0
    checked = owned(taken(field, value, &cyclic))
    micros = micros_of(field, <PyObject*>checked)
    want_earlier(op, field, <PyObject*>checked, micros)
    store_clocked(op, field, Py_NewRef(<PyObject*>checked), micros, cyclic)
    return 0


cdef int set_clocked(PyObject* op, Field* field, PyObject* value) except -1:
    """Store what a library sets through the descriptor, which ``__post_init__`` checks."""
    if value == Py_None and field.renews:
        renew_lazy(op, field)
    elif datetime_class is not None and isinstance(<object>value, datetime_class):
        store_clocked(op, field, Py_NewRef(value), micros_of(field, value), collectable(value))
    else:
        put(op, field.offset, Py_NewRef(value), True)
    return 0


# --- Lists of texts ----------------------------------------------------------------------------------------------


cdef Py_ssize_t find_tag(PyObject* out, Py_ssize_t taken, PyObject* tag) noexcept:
    cdef Py_ssize_t i
    for i in range(taken):
        if same_text(list_at(out, i), tag):
            return i
    return -1


cdef int fill_from(PyObject* out, PyObject* source, PyObject* given, Field* field) except -1:
    cdef bint is_tuple = PyTuple_CheckExact(source)
    cdef Py_ssize_t i, taken = 0
    cdef PyObject* item
    cdef int answer = 1
    cdef set seen = None
    for i in range(PyTuple_GET_SIZE(source) if is_tuple else PyList_GET_SIZE(source)):
        if is_tuple:
            item = tuple_items(source)[i]
        elif i < PyList_GET_SIZE(source):
            item = list_at(source, i)
        else:
            break
        if unlikely(not is_text(item)):
            not_allowed(field, given, False)
        if field.style == TEXTS:
            if not PyUnicode_CheckExact(item) and is_gc(item):
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


cdef bint can_be_copied(PyObject** items, Py_ssize_t n, Field* field) noexcept:
    """Whether the items can be taken unchanged: exact texts and, for tags, also clean, few and distinct."""
    cdef Py_ssize_t i, j
    for i in range(n):
        if not PyUnicode_CheckExact(items[i]):
            return False
    if field.style == TEXTS:
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


cdef int fill_list(PyObject** place, PyObject* given, Field* field) except -1:
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
            not_allowed(field, given, False)
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
            raise MemoryError()
        # An idle list has size 0, keeps its capacity, and is not tracked, because exact texts form no cycles.
        PyObject_GC_UnTrack(out)
        resize(out, 0)
        place[0] = out
        # The allocation may have run the collector, and with it any code: the caller's list may have changed.
        if PyList_CheckExact(source):
            if PyList_GET_SIZE(source) != n:
                return fill_list(place, given, field)
            items = list_items(source)
    if can_be_copied(items, n, field):
        for i in range(n):
            list_put(out, i, Py_NewRef(items[i]))
        resize(out, n)
        return 1
    # This function owns the list while filling it, so that an error frees it with its items.
    place[0] = NULL
    filling = owned(out)
    answer = fill_from(<PyObject*>filling, source, given, field)
    place[0] = Py_NewRef(out)
    return answer


# --- Containers that are made when first read --------------------------------------------------------------------


cdef bint has_contents(PyObject* op, Field* field) noexcept:
    """Whether the container has been made, or given."""
    cdef Section section
    cdef PyObject* word
    hold(&section, op)
    word = slot_at(op, field.offset)[0]
    let(&section)
    return word != NULL and not is_number(word)


cdef object untouched_value(PyObject* op, Field* field):
    """The container, or a new empty one where none has been made: the record's own is still not made then."""
    cdef Section section
    cdef PyObject* value = NULL
    cdef PyObject* word
    cdef bint hidden = False
    hold(&section, op)
    word = slot_at(op, field.offset)[0]
    if word != NULL and not is_number(word):
        value = Py_NewRef(word)
        hidden = field.style != TOUCHED and not PyObject_GC_IsTracked(word)
    let(&section)
    if value == NULL:
        return {} if field.style == TOUCHED else []
    found = owned(value)
    # Python code must not get a list that the collector doesn't track, so it gets a copy.
    return list(found) if hidden else found


cdef PyObject* touch(PyObject* op, Field* field) except NULL:
    """A new reference to the container for Python code; makes it if necessary."""
    cdef PyObject** slot = slot_at(op, field.offset)
    cdef Section section
    cdef PyObject* made = NULL
    cdef PyObject* idle
    cdef PyObject* value
    while True:
        idle = value = NULL
        hold(&section, op)
        if is_number(slot[0]):
            slot[0] = unmarked(slot[0])
            if not uniquely_referenced(slot[0]):
                # Free-threaded build only: another thread owns it, so this one can't read its reference count.
                idle = slot[0]
                slot[0] = NULL
        if slot[0] == NULL and made != NULL:
            slot[0] = made
            made = NULL
        if slot[0] != NULL:
            value = Py_NewRef(slot[0])
            track(value)
            if layout_of(op).gc:
                track(op)
        let(&section)
        Py_XDECREF(idle)
        if value != NULL:
            Py_XDECREF(made)
            if load_u8(&field.keep) != KEEP:
                store_u8(&field.keep, KEEP)
            return value
        made = PyDict_New() if field.style == TOUCHED else PyList_New(0)
        if made == NULL:
            raise MemoryError()


cdef PyObject* get_touched(PyObject* op, void* closure) except NULL:
    return touch(op, field_here(op, <Field*>closure))


cdef void put_container(PyObject* op, Field* field, PyObject* value, bint cyclic) noexcept:
    """Replace the container, which may be an idle one. Steals the reference to the new one, or to none."""
    cdef PyObject* old
    cdef Section section
    hold(&section, op)
    old = slot_at(op, field.offset)[0]
    store_pointer(<void**>slot_at(op, field.offset), value)
    if cyclic and layout_of(op).gc:
        track(op)
    let(&section)
    Py_XDECREF(unmarked(old))


cdef int assign_touched(PyObject* op, Field* field, PyObject* value) except -1:
    cdef PyObject* made = NULL
    cdef int answer
    if value == Py_None:
        put_container(op, field, NULL, False)
    elif field.style == TOUCHED:
        if not isinstance(<object>value, dict):
            not_allowed(field, value, False)
        put_container(op, field, Py_NewRef(value), True)
    else:
        answer = fill_list(&made, value, field)
        if answer == 0:
            Py_XDECREF(made)
            made = NULL
        elif answer == 2:
            track(made)
        put_container(op, field, made, answer == 2)
    return 0


# --- All of them -------------------------------------------------------------------------------------------------


cdef int fill_styled(PyObject* op, Layout* layout, Field* field, PyObject* value, bint* cyclic) except -1:
    """Set a field of a record under construction to what is given for it."""
    cdef PyObject** slot = slot_at(op, field.offset)
    cdef PyObject* place
    cdef int answer
    if field.renews and value == Py_None:
        fill_default(op, layout, field, cyclic)
    elif field.style == CODED:
        slot[0] = number_word(code_of(field, value))
    elif field.style == TOUCHED:
        if not isinstance(<object>value, dict):
            not_allowed(field, value, False)
        drop_idle(op, field)
        slot[0] = Py_NewRef(value)
        cyclic[0] = True
    elif field.style == CLOCKED:
        # Whatever was in the slot was a number.
        slot[0] = NULL
        slot[0] = taken(field, value, cyclic)
        slot_at(op, field.clock)[0] = number_word(micros_of(field, slot[0]))
    else:
        place = unmarked(slot[0])
        slot[0] = NULL
        answer = (<fill_list_function>fill_list)(&place, value, field)
        if answer <= 0:
            if place != NULL and field.keeps:
                slot[0] = marked(place)
            else:
                Py_XDECREF(place)
            if answer < 0:
                raise_set_error()
            return 0
        slot[0] = place
        if answer == 2:
            track(place)
            cyclic[0] = True
    return 0


ctypedef int (*fill_list_function)(PyObject**, PyObject*, Field*) noexcept


cdef int assign_styled(PyObject* op, Field* field, PyObject* value) except -1:
    cdef bint cyclic = False
    if field.style == CODED:
        put(op, field.offset, number_word(code_of(field, value)), False)
    elif field.style == CLOCKED:
        assign_clocked(op, field, value)
    elif is_touched(field):
        assign_touched(op, field, value)
    else:
        checked = owned(taken(field, value, &cyclic))
        if checked is not None:
            want_later(op, field, <PyObject*>checked)
        put(op, field.offset, Py_NewRef(<PyObject*>checked), cyclic)
    return 0


cdef int restore(PyObject* op, Layout* layout, Field* field, object value) except -1:
    """Set a field of a new record to what a pickled one held: what is allowed, or what `reset` leaves."""
    cdef bint cyclic = True
    if field.style == CODED:
        put(op, field.offset, number_word(code_of(field, <PyObject*>value)), False)
    elif field.style == CLOCKED:
        put(op, field.offset, taken(field, <PyObject*>value, &cyclic), True)
        slot_at(op, field.clock)[0] = number_word(micros_of(field, <PyObject*>value))
    elif field.style == TEXTS or field.style == TAGS:
        # As it is, since items of any kind may have been added to it.
        if not isinstance(value, list):
            raise type_error(<str>field.name, value, "a list")
        track(<PyObject*>value)
        put(op, field.offset, Py_NewRef(<PyObject*>value), True)
    elif field.style == TOUCHED:
        assign_touched(op, field, <PyObject*>value)
    elif field.how == REQUIRED and is_blank(field, value):
        put(op, field.offset, Py_NewRef(<PyObject*>value), collectable(<PyObject*>value))
    else:
        put(op, field.offset, taken(field, <PyObject*>value, &cyclic), True)
    return 0


cdef bint is_blank(Field* field, object value) except -1:
    blank = blank_of(field)
    return type(value) is type(blank) and (value is None or not value)


cdef Field* field_here(PyObject* op, Field* field) noexcept:
    """The field of the record's own class, for a descriptor that may be a base's."""
    cdef Layout* layout = layout_of(op)
    if unlikely(field < layout.fields or field >= layout.fields + layout.count):
        return find(layout, field.name)
    return field


cdef int set_styled(PyObject* op, PyObject* value, void* closure) except -1:
    cdef Field* field = <Field*>closure
    if value == NULL:
        raise AttributeError(f"{<object>field.name} cannot be deleted")
    return assign_styled(op, field_here(op, field), value)


cdef PyGetSetDef attribute_of(Field* field) except *:
    """The attribute in place of the member descriptor, for a field that is not read as it is stored."""
    cdef const char* text = "Made when first read."
    if field.description != NULL:
        text = PyUnicode_AsUTF8(<object>field.description)
    if field.style == CODED:
        return PyGetSetDef(PyUnicode_AsUTF8(<object>field.name), get_coded, set_styled, text, field)
    if is_touched(field):
        return PyGetSetDef(PyUnicode_AsUTF8(<object>field.name), get_touched, set_styled, text, field)
    return PyGetSetDef(PyUnicode_AsUTF8(<object>field.name), get_lazy, set_lazy, text, field)
