# cython: language_level=3, freethreading_compatible=True
"""Uses the freelist and the table from C, as a package built on this one would."""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint32_t
from cpython.object cimport PyObject
from synthex_fast._pool cimport Freelist, freelist_delete, freelist_new, freelist_pop, freelist_push
from synthex_fast._table cimport (
    LRU, NONE, Table, heap_next_due, index_home, mix_hash, reserve_node, reserve_slot, slot_accessed, slot_free,
    table_free, table_init, table_insert, table_probe, table_remove, table_victim,
)


cdef void release_block(void* block) noexcept:
    pass


# Under nogil the compiler refuses anything that would call into Python.
cdef int64_t cycle(Freelist* spare, int* blocks, int count, int rounds) noexcept nogil:
    cdef int64_t total = 0
    cdef int _round, _each, i
    for _round in range(rounds):
        for i in range(count):
            freelist_push(spare, &blocks[i])
        for _each in range(count):
            total += (<int*>freelist_pop(spare))[0]
    return total


def use_freelist(int rounds):
    cdef int[4] blocks
    cdef Freelist* spare = freelist_new(3, release_block)
    cdef int i
    for i in range(4):
        blocks[i] = i + 1
    try:
        total = cycle(spare, blocks, 3, rounds)
        return total, [freelist_push(spare, &blocks[i]) for i in range(4)]
    finally:
        freelist_delete(spare)


cdef uint32_t find(Table* table, size_t key) noexcept nogil:
    # The table compares no keys; here they are numbers instead of pointers.
    cdef uint32_t hash = mix_hash(<Py_hash_t>key, 1), slot, at
    if table.live == 0:
        return NONE
    at = index_home(table, hash)
    while True:
        slot = table_probe(table, hash, &at)
        if slot == NONE or <size_t>table.slots[slot].key == key:
            return slot


cdef bint insert(Table* table, size_t key, double deadline) noexcept nogil:
    if not (reserve_slot(table) and reserve_node(table)):
        return False
    table_insert(table, <PyObject*>key, NULL, mix_hash(<Py_hash_t>key, 1), 10, deadline, 0.0)
    return True


cdef void remove(Table* table, uint32_t slot) noexcept nogil:
    table_remove(table, slot)
    slot_free(table, slot)


cdef (int64_t, int64_t, int64_t, int64_t) fill_and_drain(Table* table, int count) noexcept nogil:
    cdef int64_t found = 0, expired = 0, oldest
    cdef uint32_t slot
    cdef int key, steps
    for key in range(1, count + 1):
        # Odd keys fall due at 10 s.
        if not insert(table, key, 10.0 if key % 2 else INFINITY):
            return -1, -1, -1, -1
    for key in range(1, count + 11):
        if find(table, key) != NONE:
            found += 1
    slot_accessed(table, find(table, 1))
    oldest = <int64_t><size_t>table.slots[table_victim(table)].key
    while True:
        steps = 100
        slot = heap_next_due(table, 11.0, &steps)
        if slot == NONE:
            break
        remove(table, slot)
        expired += 1
    return found, oldest, expired, <int64_t>table.nbytes


def use_table(int count):
    cdef Table table
    cdef (int64_t, int64_t, int64_t, int64_t) result
    table_init(&table, LRU, NONE, INFINITY, 0.0)
    with nogil:
        result = fill_and_drain(&table, count)
        table_free(&table)
    return result
