"""The table behind TTLDict: hash index, expiry heap, eviction order and byte accounting over one set of slots.

Plain C structs with inline functions that touch no reference count and run no Python code, so that other Cython code
can cimport them and use them without the interpreter. Keys are compared by the caller: `table_probe` yields the slots
that carry a hash. An entry takes 32 bytes of slot, 12 of links, 8 of heap node, 4/0.625 of index and, once something
was evicted, 4 of ghost. Arrays grow in place and in steps of a quarter; the pages of a step that no slot has used yet
are not resident. With a limit in entries, the last step is exact.

The index is open-addressed with linear probing and backward-shift deletion (Knuth, TAOCP 3, 6.4, algorithm R). Homes
are found by range reduction, so its size need not be a power of two. The heap is 4-ary. A node's tick may be earlier
than its slot's deadline (a refreshed entry is moved when it reaches the top), but never later by more than one tick.
Policies: FIFO, LRU, SIEVE (Zhang et al., NSDI 2024) and S3-FIFO (Yang et al., SOSP 2023).
"""

from libc.math cimport INFINITY, ceil, floor
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyObject

from synthex_fast._sync cimport FREE_THREADED, load_double, load_u32, store_double, store_u32


cdef extern from *:
    """
    #define SYNTHEX_NONE 0xFFFFFFFFu
    #define SYNTHEX_TICK_MAX 0xFFFFFFF0u
    #define SYNTHEX_TICK_REBASE 0x80000000u
    #define SYNTHEX_TICK_BACK 0x20000000u
    #define SYNTHEX_SIZE_MAX_INLINE 0x0FFFFFFFu
    """
    const uint32_t NONE "SYNTHEX_NONE"
    const uint32_t TICK_MAX "SYNTHEX_TICK_MAX"
    const uint32_t TICK_REBASE "SYNTHEX_TICK_REBASE"
    const uint32_t TICK_BACK "SYNTHEX_TICK_BACK"
    const uint32_t INLINE_SIZE_MAX "SYNTHEX_SIZE_MAX_INLINE"


cdef enum Policy:
    FIFO = 0
    LRU = 1
    SIEVE = 2
    S3FIFO = 3


cdef enum:
    TICKS_PER_SECOND = 64
    # Bits of Slot.meta; the size in bytes stands above them.
    FREQUENCY = 3         # accesses since insertion or the last second chance, saturating
    IN_MAIN = 4           # in queue 1 (S3-FIFO's main queue), else in queue 0
    DEAD = 8              # removed, its references not released yet
    SIZE_SHIFT = 4
    GHOSTS_PER_BUCKET = 16
    # Second chances that one eviction gives at most, so that it never walks a whole queue.
    SECOND_CHANCES = 512


cdef struct Slot:
    PyObject* key             # NULL: the slot is free
    PyObject* value
    double deadline           # when the entry expires, on the timer's scale; infinity: never
    uint32_t hash             # the key's, mixed
    uint32_t meta


cdef struct Link:
    uint32_t prev             # towards the newer end of the queue; the reason while DEAD
    uint32_t next             # towards the older end; next free or dead slot outside the queues
    uint32_t node             # position in the heap, or NONE


cdef struct Node:
    uint32_t tick             # ticks from Table.base
    uint32_t slot


cdef struct Table:
    Slot* slots
    Link* links
    uint32_t* index           # 0: empty, else tag bits of the hash above slot + 1
    uint32_t room             # slots allocated
    uint32_t used             # slots ever used since the last time all were free
    uint32_t live             # entries
    uint32_t free             # chain of free slots below `used`
    uint32_t index_size
    uint32_t slot_bits        # low bits of an index entry that hold the slot
    uint32_t layout           # counts changes of the index, for a search that ran Python code in between
    uint32_t limit            # entries at most; NONE: no limit

    Node* heap
    uint32_t scheduled        # nodes in the heap
    uint32_t heap_room
    double base               # the time of tick 0
    double next_due           # when the heap's first node falls due; minus infinity if its tick is 0
    double idle               # seconds; infinity: no idle limit
    double* touched           # time of last access per slot; NULL without an idle limit

    int policy
    uint32_t head[2]          # newest of each queue
    uint32_t tail[2]          # oldest of each queue
    uint32_t count[2]
    uint32_t hand             # SIEVE's
    uint32_t* ghosts          # S3-FIFO's memory of what it evicted young: 18 bits of hash, 14 of age
    uint32_t ghost_buckets
    uint32_t ghost_room       # evictions that a ghost is remembered for
    uint64_t ghost_clock      # ghosts ever made
    uint64_t ghost_hits       # insertions of young ghosts: a table half as large again would still have had them

    uint64_t nbytes
    uint64_t* wide            # sizes of all slots, once one did not fit into its slot's meta
    uint32_t dead_first       # queue of DEAD slots
    uint32_t dead_last


# ---- set-up ---------------------------------------------------------------------------------------------------------

cdef inline void table_init(Table* t, int policy, uint32_t limit, double idle, double now) noexcept nogil:
    memset(t, 0, sizeof(Table))
    t.free = t.hand = t.dead_first = t.dead_last = NONE
    t.head[0] = t.head[1] = t.tail[0] = t.tail[1] = NONE
    t.policy = policy
    t.limit = limit
    t.idle = idle
    t.base = now
    t.next_due = INFINITY


cdef inline void table_free(Table* t) noexcept nogil:
    """Free the arrays. The table must hold no entry; it can be filled again."""
    PyMem_RawFree(t.slots)
    PyMem_RawFree(t.links)
    PyMem_RawFree(t.index)
    PyMem_RawFree(t.heap)
    PyMem_RawFree(t.touched)
    PyMem_RawFree(t.ghosts)
    PyMem_RawFree(t.wide)
    t.slots = NULL
    t.links = NULL
    t.index = NULL
    t.heap = NULL
    t.touched = NULL
    t.ghosts = NULL
    t.wide = NULL
    t.room = t.used = t.index_size = t.heap_room = t.ghost_buckets = 0
    t.free = NONE
    t.layout += 1


cdef inline size_t table_bytes(const Table* t) noexcept nogil:
    """Bytes that the arrays have allocated."""
    cdef size_t found = t.room * (sizeof(Slot) + sizeof(Link))
    found += t.index_size * sizeof(uint32_t) + t.heap_room * sizeof(Node)
    found += <size_t>t.ghost_buckets * GHOSTS_PER_BUCKET * sizeof(uint32_t)
    if t.touched != NULL:
        found += t.room * sizeof(double)
    if t.wide != NULL:
        found += t.room * sizeof(uint64_t)
    return found


# ---- hash index ----

cdef inline uint32_t mix_hash(Py_hash_t value, uint64_t seed) noexcept nogil:
    """32 well-spread bits of a Python hash, whatever pattern its integers had (multiply and shift, twice)."""
    cdef uint64_t x = (<uint64_t>value ^ seed) * <uint64_t>0x9E3779B97F4A7C15
    x ^= x >> 32
    x *= <uint64_t>0xD6E8FEB86659FD93
    return <uint32_t>(x >> 32)


cdef inline uint32_t index_home(const Table* t, uint32_t hash) noexcept nogil:
    return <uint32_t>((<uint64_t>hash * t.index_size) >> 32)


cdef inline uint32_t table_probe(const Table* t, uint32_t hash, uint32_t* at) noexcept nogil:
    """The next slot that carries `hash`, or NONE. Start with `at[0] = index_home(t, hash)`; live must not be 0."""
    cdef uint32_t i = at[0], entry, tag = hash << t.slot_bits, mask = (<uint32_t>1 << t.slot_bits) - 1
    while True:
        entry = t.index[i]
        if entry == 0:
            return NONE
        i += 1
        if i == t.index_size:
            i = 0
        if (entry ^ tag) <= mask and t.slots[(entry & mask) - 1].hash == hash:
            at[0] = i
            return (entry & mask) - 1


cdef inline void index_insert(Table* t, uint32_t slot) noexcept nogil:
    cdef uint32_t hash = t.slots[slot].hash, i = index_home(t, hash)
    while t.index[i] != 0:
        i += 1
        if i == t.index_size:
            i = 0
    t.index[i] = (hash << t.slot_bits) | (slot + 1)


cdef inline void index_remove(Table* t, uint32_t slot) noexcept nogil:
    cdef uint32_t i = index_home(t, t.slots[slot].hash), mask = (<uint32_t>1 << t.slot_bits) - 1, j, home, entry
    while (t.index[i] & mask) != slot + 1:
        i += 1
        if i == t.index_size:
            i = 0
    j = i
    while True:
        j += 1
        if j == t.index_size:
            j = 0
        entry = t.index[j]
        if entry == 0:
            break
        home = index_home(t, t.slots[(entry & mask) - 1].hash)
        # An entry may move back to i unless that puts it in front of its home.
        if (i < home <= j) if i <= j else (home > i or home <= j):
            continue
        t.index[i] = entry
        i = j
    t.index[i] = 0


cdef inline bint grow(void** array, uint32_t before, uint32_t room, size_t item) noexcept nogil:
    cdef void* old = array[0]
    cdef void* grown
    if <uint64_t>room * item > <uint64_t>0x7FFFFFFFFFFFFFFF >> (0 if sizeof(size_t) == 8 else 32):
        return False
    if not FREE_THREADED:
        grown = PyMem_RawRealloc(old, room * item)
    else:
        # An allocator with a lock of its own (tracemalloc's) may wait in here while the garbage collector runs:
        # it must find the old array intact.
        grown = PyMem_RawMalloc(room * item)
        if grown != NULL and old != NULL:
            memcpy(grown, old, before * item)
    if grown == NULL:
        return False
    array[0] = grown
    if FREE_THREADED:
        PyMem_RawFree(old)
    return True


cdef inline bint index_rebuild(Table* t, uint32_t size) noexcept nogil:
    """Make the index `size` entries large and re-enter every live slot. False: allocation failed, nothing changed."""
    cdef uint32_t* old = NULL
    cdef uint32_t* index
    cdef uint32_t slot, bits = 1, most = size if size > t.room else t.room
    if not FREE_THREADED:
        # In place: a second array would leave a hole in the heap that stays resident.
        if not grow(<void**>&t.index, 0, size, sizeof(uint32_t)):
            return False
        memset(t.index, 0, size * sizeof(uint32_t))
    else:
        index = <uint32_t*>PyMem_RawCalloc(size, sizeof(uint32_t))
        if index == NULL:
            return False
        old = t.index
        t.index = index
    while bits < 31 and (most + 1) >> bits:
        bits += 1
    t.index_size = size
    t.slot_bits = bits
    t.layout += 1
    for slot in range(t.used):
        if t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD:
            index_insert(t, slot)
    # Last: the allocator may wait in here, and a process forked during the wait must find a consistent table.
    PyMem_RawFree(old)
    return True


cdef inline bint slots_grow(Table* t) noexcept nogil:
    """Make room for more slots. False: allocation failed, no entry has moved."""
    cdef uint32_t before = t.room
    cdef uint32_t room = t.room + (t.room if t.room < 1024 else <uint32_t>(t.room >> 2)) + 8
    if t.limit > t.room and room > t.limit:
        room = t.limit
    if room < t.room or room >= 0x7FFFFFFF:
        return False
    # If a later array can't grow, those before it stay larger than needed, which is harmless.
    if not grow(<void**>&t.slots, before, room, sizeof(Slot)):
        return False
    if not grow(<void**>&t.links, before, room, sizeof(Link)):
        return False
    if t.idle != INFINITY and not grow(<void**>&t.touched, before, room, sizeof(double)):
        return False
    if t.wide != NULL and not grow(<void**>&t.wide, before, room, sizeof(uint64_t)):
        return False
    t.room = room
    if t.index != NULL and (room + 1) >> t.slot_bits and not index_rebuild(t, t.index_size):
        t.room = before
        return False
    return True


cdef inline bint index_too_small(const Table* t, uint64_t live) noexcept nogil:
    # At most 5/8 full: a removal then examines four entries to the right on average; at 6/8 it would examine nine.
    return live * 8 > <uint64_t>t.index_size * 5


cdef inline bint index_grow(Table* t) noexcept nogil:
    """Make the index larger. False: allocation failed, nothing changed."""
    cdef uint64_t size = <uint64_t>t.index_size * 2 + 16
    if t.limit != NONE and <uint64_t>t.limit * 8 // 5 + 4 > t.index_size:
        size = min(size, <uint64_t>t.limit * 8 // 5 + 4)
    return size <= 0x7FFFFFFF and index_rebuild(t, <uint32_t>size)


cdef inline bint reserve_slot(Table* t) noexcept nogil:
    """Make room for one more slot and index entry. False: allocation failed, no entry has moved."""
    if t.free == NONE and t.used == t.room and not slots_grow(t):
        return False
    return not index_too_small(t, <uint64_t>t.live + 1) or index_grow(t)


cdef inline bint reserve_slots(Table* t, uint32_t count) noexcept nogil:
    """`reserve_slot` for that many, which may be more than fit. Removed slots that are not released yet count
    as free."""
    cdef uint64_t live = <uint64_t>t.live + count
    while t.room < live:
        if not slots_grow(t):
            return False
    while index_too_small(t, live):
        if not index_grow(t):
            return False
    return True


cdef inline bint reserve_node(Table* t) noexcept nogil:
    """Make room for one more node in the heap. False: allocation failed, nothing changed."""
    # A full table evicts before it inserts, so it never has more nodes than its limit.
    return t.scheduled < t.heap_room or t.heap_room >= t.limit or heap_grow(t)


cdef inline bint reserve_nodes(Table* t, uint32_t count) noexcept nogil:
    """`reserve_node` for that many."""
    while t.heap_room < t.limit and t.heap_room < <uint64_t>t.scheduled + count:
        if not heap_grow(t):
            return False
    return True


cdef inline bint heap_grow(Table* t) noexcept nogil:
    """Make room for more nodes in the heap. False: allocation failed, nothing changed."""
    cdef uint32_t room = t.heap_room + (t.heap_room if t.heap_room < 1024 else <uint32_t>(t.heap_room >> 2)) + 8
    if room > t.limit:
        room = t.limit
    if not grow(<void**>&t.heap, t.heap_room, room, sizeof(Node)):
        return False
    t.heap_room = room
    return True


cdef inline bint reserve_wide(Table* t) noexcept nogil:
    """Make room for a size over INLINE_SIZE_MAX. False: allocation failed, nothing changed."""
    cdef uint32_t slot
    if t.wide != NULL:
        return True
    t.wide = <uint64_t*>PyMem_RawMalloc(<size_t>t.room * sizeof(uint64_t))
    if t.wide == NULL:
        return False
    for slot in range(t.used):
        t.wide[slot] = t.slots[slot].meta >> SIZE_SHIFT
    return True


# ---- byte accounting ----

cdef inline uint64_t slot_size(const Table* t, uint32_t slot) noexcept nogil:
    return t.wide[slot] if t.wide != NULL else t.slots[slot].meta >> SIZE_SHIFT


cdef inline void slot_set_size(Table* t, uint32_t slot, uint64_t size) noexcept nogil:
    """Set the slot's size in bytes. One over INLINE_SIZE_MAX needs `reserve_wide` first."""
    cdef uint32_t kept = t.slots[slot].meta & ((1 << SIZE_SHIFT) - 1)
    if t.wide != NULL:
        t.wide[slot] = size
    else:
        kept |= <uint32_t>size << SIZE_SHIFT
    t.slots[slot].meta = kept


# ---- queues ----

cdef inline void queue_push(Table* t, int queue, uint32_t slot) noexcept nogil:
    """Put the slot at the newer end."""
    cdef uint32_t head = t.head[queue]
    t.links[slot].prev = NONE
    t.links[slot].next = head
    if head == NONE:
        t.tail[queue] = slot
    else:
        t.links[head].prev = slot
    t.head[queue] = slot
    t.count[queue] += 1
    if queue:
        t.slots[slot].meta |= IN_MAIN
    else:
        t.slots[slot].meta &= ~<uint32_t>IN_MAIN


cdef inline void queue_unlink(Table* t, uint32_t slot) noexcept nogil:
    cdef uint32_t prev = t.links[slot].prev, next = t.links[slot].next
    cdef int queue = 1 if t.slots[slot].meta & IN_MAIN else 0
    if t.hand == slot:
        t.hand = prev
    if prev == NONE:
        t.head[queue] = next
    else:
        t.links[prev].next = next
    if next == NONE:
        t.tail[queue] = prev
    else:
        t.links[next].prev = prev
    t.count[queue] -= 1


# ---- expiry heap ----

cdef inline uint32_t tick_at_or_after(const Table* t, double when) noexcept nogil:
    cdef double ticks = ceil((when - t.base) * TICKS_PER_SECOND)
    if ticks <= 0:
        return 0
    return TICK_MAX if ticks >= TICK_MAX else <uint32_t>ticks


cdef inline uint32_t tick_at_or_before(const Table* t, double when) noexcept nogil:
    cdef double ticks = floor((when - t.base) * TICKS_PER_SECOND)
    if ticks <= 0:
        return 0
    return TICK_MAX if ticks >= TICK_MAX else <uint32_t>ticks


cdef inline double slot_due(const Table* t, uint32_t slot) noexcept nogil:
    """When the entry expires, idle time included."""
    cdef double due = t.slots[slot].deadline, unused
    if t.touched != NULL:
        unused = load_double(&t.touched[slot]) + t.idle
        if unused < due:
            due = unused
    return due


cdef inline void heap_first_changed(Table* t) noexcept nogil:
    if t.scheduled == 0:
        store_double(&t.next_due, INFINITY)
    elif t.heap[0].tick:
        store_double(&t.next_due, t.base + <double>t.heap[0].tick / TICKS_PER_SECOND)
    else:
        # Tick 0 stands for any time before the base.
        store_double(&t.next_due, -INFINITY)


cdef inline void heap_up(Table* t, uint32_t at, Node node) noexcept nogil:
    cdef uint32_t parent
    while at:
        parent = (at - 1) >> 2
        if t.heap[parent].tick <= node.tick:
            break
        t.heap[at] = t.heap[parent]
        t.links[t.heap[at].slot].node = at
        at = parent
    t.heap[at] = node
    t.links[node.slot].node = at


cdef inline void heap_down(Table* t, uint32_t at, Node node) noexcept nogil:
    cdef uint32_t child, best, last
    cdef uint64_t first
    while True:
        first = (<uint64_t>at << 2) + 1
        if first >= t.scheduled:
            break
        best = <uint32_t>first
        last = <uint32_t>(best + 4) if t.scheduled - best > 4 else t.scheduled
        for child in range(best + 1, last):
            if t.heap[child].tick < t.heap[best].tick:
                best = child
        if t.heap[best].tick >= node.tick:
            break
        t.heap[at] = t.heap[best]
        t.links[t.heap[at].slot].node = at
        at = best
    t.heap[at] = node
    t.links[node.slot].node = at


cdef inline void heap_remove(Table* t, uint32_t slot) noexcept nogil:
    cdef uint32_t at = t.links[slot].node
    cdef Node moved
    t.links[slot].node = NONE
    store_u32(&t.scheduled, t.scheduled - 1)
    if at != t.scheduled:
        moved = t.heap[t.scheduled]
        if at and moved.tick < t.heap[(at - 1) >> 2].tick:
            heap_up(t, at, moved)
        else:
            heap_down(t, at, moved)
    if at == 0:
        heap_first_changed(t)


cdef inline void heap_rebuild(Table* t) noexcept nogil:
    """Make the nodes a heap again, whatever their order (Floyd 1964), in linear time."""
    cdef uint32_t at
    for at in range(t.scheduled):
        t.links[t.heap[at].slot].node = at
    if t.scheduled > 1:
        at = ((t.scheduled - 2) >> 2) + 1
        while at:
            at -= 1
            heap_down(t, at, t.heap[at])
    heap_first_changed(t)


cdef inline void heap_rebase(Table* t, double base) noexcept nogil:
    """Change the time from which ticks are counted."""
    cdef uint32_t at
    t.base = base
    for at in range(t.scheduled):
        t.heap[at].tick = tick_at_or_after(t, slot_due(t, t.heap[at].slot))
    heap_rebuild(t)


cdef inline void slot_schedule(Table* t, uint32_t slot, double before) noexcept nogil:
    """Update the heap for a slot whose deadline was `before` until now. The heap must have room (`reserve_node`).

    A node that would only move later stays where it is until it reaches the top.
    """
    cdef double due = slot_due(t, slot)
    cdef Node node
    cdef uint32_t at = t.links[slot].node
    if at == NONE:
        if due != INFINITY:
            node.slot = slot
            node.tick = tick_at_or_after(t, due)
            store_u32(&t.scheduled, t.scheduled + 1)
            heap_up(t, t.scheduled - 1, node)
            if t.links[slot].node == 0:
                heap_first_changed(t)
    elif due < before:
        node.slot = slot
        node.tick = tick_at_or_after(t, due)
        if node.tick < t.heap[at].tick:
            heap_up(t, at, node)
            if t.links[slot].node == 0:
                heap_first_changed(t)


cdef inline uint32_t heap_next_due(Table* t, double now, int* steps) noexcept nogil:
    """A slot that is due, or NONE. Each node examined takes one of `steps`; NONE is also returned if they run out."""
    cdef uint32_t tick, slot
    cdef double due
    cdef Node node
    tick = tick_at_or_before(t, now)
    if tick >= TICK_REBASE:
        # A year after the base at the earliest.
        heap_rebase(t, now)
        tick = 0
    elif now < t.base and t.scheduled and t.heap[0].tick == 0:
        # The clock went back, and tick 0 can't order times before the base. Rebase far enough that this stays rare.
        heap_rebase(t, now - <double>TICK_BACK / TICKS_PER_SECOND)
        tick = tick_at_or_before(t, now)
    while t.scheduled and t.heap[0].tick <= tick and steps[0] > 0:
        steps[0] -= 1
        slot = t.heap[0].slot
        due = slot_due(t, slot)
        if due <= now:
            return slot
        if due == INFINITY:
            heap_remove(t, slot)
            continue
        node.slot = slot
        node.tick = tick_at_or_after(t, due)
        if node.tick <= tick:
            node.tick = tick + 1
        heap_down(t, 0, node)
        heap_first_changed(t)
    return NONE


cdef inline uint32_t heap_find_due(const Table* t, double now, uint32_t tick, uint32_t at, int* steps) noexcept nogil:
    """A slot at or below node `at` that is due within its tick, or NONE. Each node examined takes one of `steps`."""
    cdef uint32_t slot, child, last
    cdef uint64_t first
    if at >= t.scheduled or t.heap[at].tick > tick or steps[0] <= 0:
        return NONE
    steps[0] -= 1
    if slot_due(t, t.heap[at].slot) <= now:
        return t.heap[at].slot
    first = (<uint64_t>at << 2) + 1
    if first >= t.scheduled:
        return NONE
    last = <uint32_t>(first + 4) if t.scheduled - first > 4 else t.scheduled
    for child in range(<uint32_t>first, last):
        slot = heap_find_due(t, now, tick, child, steps)
        if slot != NONE:
            return slot
    return NONE


# ---- entries ----

cdef inline bint ghost_forget(Table* t, uint32_t hash) noexcept nogil:
    """Remove the hash from the ghosts. Returns whether it was there."""
    cdef uint32_t* bucket
    cdef uint32_t i, now, grain
    cdef uint64_t age
    if t.ghosts == NULL:
        return False
    bucket = t.ghosts + <size_t>((<uint64_t>hash * t.ghost_buckets) >> 32) * GHOSTS_PER_BUCKET
    grain = (t.ghost_room >> 12) + 1
    now = <uint32_t>(t.ghost_clock // grain) & 0x3FFF
    for i in range(<uint32_t>GHOSTS_PER_BUCKET):
        if bucket[i] and (bucket[i] >> 14) == (hash & 0x3FFFF):
            age = ((now - bucket[i]) & 0x3FFF) * <uint64_t>grain
            if age <= t.ghost_room:
                bucket[i] = 0
                # There is always room for half of the entries, whatever size the table had when it was made.
                t.ghost_hits += 2 * age <= t.live
                return True
    return False


cdef inline void ghost_remember(Table* t, uint32_t hash) noexcept nogil:
    """Remember an evicted hash for as many evictions as there are entries. If allocation fails, it is forgotten."""
    cdef uint32_t* bucket
    cdef uint32_t i, now, grain, age, oldest = 0, victim = 0
    # By the entries present, not the limit: the limit in bytes may admit far fewer.
    cdef uint32_t room = t.live if t.live < t.limit else t.limit
    if t.ghosts == NULL or (
        room != t.ghost_room if room == t.limit
        else room > 2 * <uint64_t>t.ghost_room or 4 * <uint64_t>room < t.ghost_room
    ):
        PyMem_RawFree(t.ghosts)
        t.ghosts = NULL
        t.ghost_room = room
        t.ghost_clock = 1
        t.ghost_buckets = room // GHOSTS_PER_BUCKET + 1
        t.ghosts = <uint32_t*>PyMem_RawCalloc(<size_t>t.ghost_buckets * GHOSTS_PER_BUCKET, sizeof(uint32_t))
        if t.ghosts == NULL:
            return
    bucket = t.ghosts + <size_t>((<uint64_t>hash * t.ghost_buckets) >> 32) * GHOSTS_PER_BUCKET
    grain = (t.ghost_room >> 12) + 1
    now = <uint32_t>(t.ghost_clock // grain) & 0x3FFF
    t.ghost_clock += 1
    for i in range(<uint32_t>GHOSTS_PER_BUCKET):
        if bucket[i] == 0:
            victim = i
            break
        age = (now - bucket[i]) & 0x3FFF
        if age >= oldest:
            oldest = age
            victim = i
    bucket[victim] = ((hash & 0x3FFFF) << 14) | now


cdef inline uint32_t table_victim(Table* t) noexcept nogil:
    """The entry that the policy evicts next, or NONE. It stays in the table; entries before it get second chances."""
    cdef uint32_t slot, chances = 0
    cdef uint32_t small
    if t.policy == SIEVE:
        slot = t.hand if t.hand != NONE else t.tail[0]
        while slot != NONE and t.slots[slot].meta & FREQUENCY and chances < SECOND_CHANCES:
            chances += 1
            t.slots[slot].meta &= ~<uint32_t>FREQUENCY
            slot = t.links[slot].prev if t.links[slot].prev != NONE else t.tail[0]
        t.hand = slot
        return slot
    if t.policy != S3FIFO:
        return t.tail[0]
    small = t.live // 10
    while True:
        if t.count[0] and (t.count[0] > small or t.count[1] == 0):
            slot = t.tail[0]
            if (t.slots[slot].meta & FREQUENCY) < 2 or chances >= SECOND_CHANCES:
                return slot
            queue_unlink(t, slot)
            t.slots[slot].meta &= ~<uint32_t>FREQUENCY
            queue_push(t, 1, slot)
        else:
            slot = t.tail[1]
            if slot == NONE or not t.slots[slot].meta & FREQUENCY or chances >= SECOND_CHANCES:
                return slot
            t.slots[slot].meta -= 1
            queue_unlink(t, slot)
            queue_push(t, 1, slot)
        chances += 1


cdef inline void slot_accessed(Table* t, uint32_t slot) noexcept nogil:
    """Record a hit for the policy. LRU relinks, so there the caller must hold the lock for writing."""
    cdef uint32_t meta = load_u32(&t.slots[slot].meta)
    if t.policy >= SIEVE:
        if (meta & FREQUENCY) != FREQUENCY:
            store_u32(&t.slots[slot].meta, meta + 1)
    elif t.policy == LRU and t.head[0] != slot:
        queue_unlink(t, slot)
        queue_push(t, 0, slot)


cdef inline uint32_t table_insert(
    Table* t, PyObject* key, PyObject* value, uint32_t hash, uint64_t size, double deadline, double now
) noexcept nogil:
    """Add a new entry and return its slot. `reserve_slot` and `reserve_node` must have made room."""
    cdef uint32_t slot = t.free
    if slot != NONE:
        t.free = t.links[slot].next
    else:
        slot = t.used
        t.used += 1
    t.slots[slot].key = key
    t.slots[slot].value = value
    t.slots[slot].hash = hash
    t.slots[slot].deadline = deadline
    t.slots[slot].meta = 0
    t.links[slot].node = NONE
    if t.touched != NULL:
        t.touched[slot] = now
    slot_set_size(t, slot, size)
    t.nbytes += size
    index_insert(t, slot)
    queue_push(t, 1 if t.policy == S3FIFO and ghost_forget(t, hash) else 0, slot)
    slot_schedule(t, slot, INFINITY)
    store_u32(&t.live, t.live + 1)
    t.layout += 1
    return slot


cdef inline void table_remove(Table* t, uint32_t slot) noexcept nogil:
    """Take the entry out of index, heap, queue and account. Its slot keeps key and value until `slot_free`."""
    index_remove(t, slot)
    queue_unlink(t, slot)
    if t.links[slot].node != NONE:
        heap_remove(t, slot)
    t.nbytes -= slot_size(t, slot)
    store_u32(&t.live, t.live - 1)
    t.layout += 1


cdef inline void slot_free(Table* t, uint32_t slot) noexcept nogil:
    t.slots[slot].key = NULL
    t.slots[slot].value = NULL
    t.slots[slot].meta = 0
    t.links[slot].next = t.free
    t.free = slot


cdef inline void dead_push(Table* t, uint32_t slot, uint32_t reason) noexcept nogil:
    """Add a removed slot to the dead queue, which keeps its key and value until they are released."""
    t.slots[slot].meta |= DEAD
    t.links[slot].prev = reason
    t.links[slot].next = NONE
    if t.dead_last == NONE:
        t.dead_first = slot
    else:
        t.links[t.dead_last].next = slot
    t.dead_last = slot


cdef inline uint32_t dead_pop(Table* t) noexcept nogil:
    """The slot that has been in the dead queue longest, or NONE. The caller takes its key and value and frees it."""
    cdef uint32_t slot = t.dead_first
    if slot != NONE:
        t.dead_first = t.links[slot].next
        if t.dead_first == NONE:
            t.dead_last = NONE
    return slot


# Former names of the two, for code that cimports them.

cdef inline void slot_bury(Table* t, uint32_t slot, uint32_t reason) noexcept nogil:
    dead_push(t, slot, reason)


cdef inline uint32_t slot_exhume(Table* t) noexcept nogil:
    return dead_pop(t)
