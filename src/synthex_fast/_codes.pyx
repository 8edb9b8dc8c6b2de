"""Code tables: each distinct id gets a small integer, so that a column holds four bytes instead of a reference.

A table maps ids to codes through an open-addressing hash table and codes back to ids through an array. Both arrays
belong to the caller, who allocates them inside a larger block and guarantees room. Codes are dense and in order of
first use. Ids are exact `str` objects whose text can be hashed and compared without running Python code, so nothing
here allocates, fails or re-enters, except `table_ids`, which builds a tuple.
"""

from cpython.tuple cimport PyTuple_New
from libc.string cimport memset

from synthex_fast._python cimport PyTuple_SET_ITEM, Py_DECREF, Py_INCREF, same_text, text_hash

__all__ = []


cdef size_t entries_for(size_t ids) noexcept nogil:
    """Hash entries for that many ids. At most two thirds are used, which keeps a miss at five probes on average."""
    cdef size_t entries = 8
    while entries < ids + ids // 2:
        entries *= 2
    return entries


cdef inline int32_t probe(const CodeTable* self, PyObject* id, Py_hash_t hash, size_t* free) noexcept:
    """The code of an id; or -1, and then `free` is the entry where it belongs."""
    cdef size_t slot = <size_t>hash & self.mask
    cdef int32_t code
    while self.entries[slot].code:
        code = self.entries[slot].code - 1
        if self.entries[slot].hash == <uint32_t>hash and (self.ids[code] == id or same_text(self.ids[code], id)):
            return code
        slot = (slot + 1) & self.mask
    free[0] = slot
    return -1


cdef int32_t code_find(const CodeTable* self, PyObject* id) noexcept:
    """The code of an exact str, or -1 if it has none."""
    cdef size_t free
    if self.used and self.ids[self.last] == id:
        return self.last
    return probe(self, id, text_hash(id), &free)


cdef int32_t code_seek(CodeTable* self, PyObject* id) noexcept:
    """The code of an exact str, assigned if it has none: what `code_of` falls back on."""
    cdef Py_hash_t hash = text_hash(id)
    cdef size_t free = 0
    cdef int32_t code = probe(self, id, hash, &free)
    if code < 0:
        Py_INCREF(id)
        code = self.used
        self.ids[code] = id
        self.used += 1
        self.entries[free].hash = <uint32_t>hash
        self.entries[free].code = self.used
    self.last = code
    return code


cdef void table_enter(CodeTable* self, int32_t code) noexcept:
    """Make the id of this code findable. It must not be in the hash table yet."""
    cdef Py_hash_t hash = text_hash(self.ids[code])
    cdef size_t slot = <size_t>hash & self.mask
    while self.entries[slot].code:
        slot = (slot + 1) & self.mask
    self.entries[slot].hash = <uint32_t>hash
    self.entries[slot].code = code + 1


cdef void table_wipe(CodeTable* self) noexcept:
    """Free every hash entry and keep the ids."""
    cdef size_t slot
    cdef int32_t code
    if <size_t>self.used > self.mask // 16:
        memset(self.entries, 0, (self.mask + 1) * sizeof(CodeEntry))
        return
    # A table sized for millions of ids that holds a few: clearing all of its memory would cost far more.
    for code in range(self.used):
        slot = <size_t>text_hash(self.ids[code]) & self.mask
        while self.entries[slot].code != code + 1:
            slot = (slot + 1) & self.mask
        self.entries[slot].code = 0


cdef void table_drop_ids(CodeTable* self, int32_t first) noexcept:
    """Release the ids from code `first` on. Runs no Python code: the ids are exact str objects."""
    cdef int32_t code
    for code in range(first, self.used):
        Py_DECREF(self.ids[code])
        self.ids[code] = NULL
    self.used = first
    self.last = 0


cdef void table_recode(CodeTable* self, int32_t* column, Py_ssize_t rows) noexcept:
    """Renumber the ids in order of first use in `column`, rewrite the column and release the ids it does not use.

    The hash table must have been wiped.
    """
    cdef int32_t used = self.used
    # The wiped entries serve as scratch space: each id needs two numbers, and has more than one entry of two.
    cdef int32_t* new_code = <int32_t*>self.entries     # of the id now at index i; -1: unused
    cdef int32_t* place = new_code + used               # current index of the id that gets code i
    cdef int32_t kept = 0
    cdef int32_t i
    cdef int32_t old
    cdef Py_ssize_t row
    cdef PyObject* id
    memset(new_code, 0xff, <size_t>used * sizeof(int32_t))
    for row in range(rows):
        old = column[row]
        if new_code[old] < 0:
            new_code[old] = kept
            place[kept] = old
            kept += 1
        column[row] = new_code[old]
    for i in range(kept):
        old = place[i]
        if old != i:
            id = self.ids[i]
            self.ids[i] = self.ids[old]
            self.ids[old] = id
            new_code[old] = new_code[i]
            if new_code[i] >= 0:
                place[new_code[i]] = old
    memset(self.entries, 0, <size_t>used * sizeof(CodeEntry))
    table_drop_ids(self, kept)
    for i in range(kept):
        table_enter(self, i)


cdef void table_fill(const CodeTable* self, tuple ids) noexcept:
    """Put the first ids into a new tuple of that length."""
    cdef int32_t code
    for code in range(<int32_t>len(ids)):
        Py_INCREF(self.ids[code])
        PyTuple_SET_ITEM(<PyObject*>ids, code, self.ids[code])


cdef tuple table_ids(const CodeTable* self, int32_t used):
    """The first `used` ids. Making the tuple may run the cyclic collector: the caller keeps the table as it is."""
    cdef tuple ids = PyTuple_New(used)
    table_fill(self, ids)
    return ids
