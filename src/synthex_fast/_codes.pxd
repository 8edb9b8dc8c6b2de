"""Code tables: dense integer codes for the ids in a slab's columns, and the inline path that looks a code up."""

from libc.stdint cimport int32_t, uint32_t

from cpython.object cimport PyObject

from synthex_fast._sync cimport likely


cdef struct CodeEntry:
    uint32_t hash             # the low 32 bits of the id's hash
    int32_t code              # the code plus one; 0: the entry is free


cdef struct CodeTable:
    PyObject** ids            # code -> id, an exact str; the table owns one reference to each
    CodeEntry* entries        # id -> code: open addressing, linear probing
    size_t mask               # number of entries (a power of two) minus one
    int32_t used              # codes in use: 0 to used - 1, in order of first use
    int32_t last              # the code that was looked up most recently


cdef size_t entries_for(size_t ids) noexcept nogil
cdef int32_t code_find(const CodeTable* self, PyObject* id) noexcept
cdef int32_t code_seek(CodeTable* self, PyObject* id) noexcept
cdef void table_enter(CodeTable* self, int32_t code) noexcept
cdef void table_wipe(CodeTable* self) noexcept
cdef void table_drop_ids(CodeTable* self, int32_t first) noexcept
cdef void table_recode(CodeTable* self, int32_t* column, Py_ssize_t rows) noexcept
cdef void table_fill(const CodeTable* self, tuple ids) noexcept
cdef tuple table_ids(const CodeTable* self, int32_t used)


cdef inline int32_t code_of(CodeTable* self, PyObject* id) noexcept:
    """The code of an exact str, assigned if it has none. The caller guarantees room for one more code.

    Responses arrive in runs (one query, its experts in their usual order), so the most recent code and the one after
    it are tried before the hash table.
    """
    cdef int32_t code = self.last
    if self.ids[code] == id:
        return code
    code += 1
    if code >= self.used:
        code = 0
    if self.ids[code] == id:
        self.last = code
        return code
    return code_seek(self, id)


cdef inline int32_t next_code_of(CodeTable* self, PyObject* id) noexcept:
    """`code_of` for an id that is more likely the next one than the most recent one again: an expert's in a batch."""
    cdef int32_t last = self.last
    cdef int32_t code = last + 1
    if code >= self.used:
        code = 0
    if likely(self.ids[code] == id):
        self.last = code
        return code
    return last if self.ids[last] == id else code_seek(self, id)
