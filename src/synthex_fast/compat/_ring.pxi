# A ring of entries through a root that is an entry as well, included by the modules that have an `Entry` with the
# borrowed links `previous` and `following`, which are NULL while it is in none.

cdef inline void unlink(Entry entry) noexcept:
    if entry.following != NULL:
        (<Entry>entry.previous).following = entry.following
        (<Entry>entry.following).previous = entry.previous
        entry.previous = entry.following = NULL


cdef inline void link_last(Entry root, Entry entry) noexcept:
    unlink(entry)
    entry.previous = root.previous
    entry.following = <PyObject*>root
    (<Entry>root.previous).following = <PyObject*>entry
    root.previous = <PyObject*>entry
