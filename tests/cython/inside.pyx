# cython: language_level=3, freethreading_compatible=True, boundscheck=False, wraparound=False
"""The invariants that hold of the table under TTLDict between two operations, for `test_table.py`."""

from libc.math cimport INFINITY
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from cpython.object cimport PyObject

from synthex_fast._table cimport (
    DEAD, IN_MAIN, NONE, SIEVE, TICKS_PER_SECOND, Table, dead_pop, dead_push, heap_next_due, index_home, mix_hash,
    reserve_node, reserve_slot, slot_accessed, slot_bury, slot_due, slot_exhume, slot_free, slot_size, table_free,
    table_init, table_insert, table_probe, table_remove, table_victim,
)
from synthex_fast._ttl cimport REPLACE, TTLDict


cdef int check_slots(TTLDict d, unsigned char* seen) except -1:
    """Every slot below `used` is live, free or dead, and in the matching chain exactly once."""
    cdef Table* t = &d.table
    cdef uint32_t slot, live = 0, dead = 0, spare = 0, last = NONE
    assert t.used <= t.room, "more slots used than there are"
    for slot in range(t.used):
        if t.slots[slot].key == NULL:
            continue
        assert t.slots[slot].value != NULL, f"slot {slot} has a key without a value"
        if t.slots[slot].meta & DEAD:
            dead += 1
        else:
            live += 1
    assert live == t.live, f"{live} live slots, but live = {t.live}"
    assert live <= t.limit, f"{live} entries, but the limit is {t.limit}"
    slot = t.free
    while slot != NONE:
        assert slot < t.used and not seen[slot], f"free chain: {slot}"
        assert t.slots[slot].key == NULL and t.slots[slot].value == NULL, f"free slot {slot} holds references"
        seen[slot] = 1
        spare += 1
        slot = t.links[slot].next
    slot = t.dead_first
    while slot != NONE:
        assert slot < t.used and not seen[slot], f"dead queue: {slot}"
        assert t.slots[slot].key != NULL and t.slots[slot].meta & DEAD, f"slot {slot} is in the dead queue, alive"
        seen[slot] = 1
        dead -= 1
        last = slot
        slot = t.links[slot].next
    assert dead == 0 and last == t.dead_last, "a dead slot is not in the dead queue"
    assert live + spare == t.used or t.dead_first != NONE, f"{t.used} slots: {live} live, {spare} free"
    return 0


cdef int check_index(TTLDict d, unsigned char* seen) except -1:
    cdef Table* t = &d.table
    cdef uint32_t i, slot, at, found = 0, mask = (<uint32_t>1 << t.slot_bits) - 1
    assert <uint64_t>t.live * 8 <= <uint64_t>t.index_size * 5, f"{t.live} entries in an index of {t.index_size}"
    for i in range(t.index_size):
        if t.index[i]:
            slot = (t.index[i] & mask) - 1
            assert slot < t.used and not seen[slot], f"index entry {i} leads to slot {slot}"
            assert t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD, f"the index leads to dead slot {slot}"
            seen[slot] = 1
            found += 1
    assert found == t.live, f"{found} index entries for {t.live} entries"
    for slot in range(t.used):
        if seen[slot]:
            at = index_home(t, t.slots[slot].hash)
            i = slot + 1
            while i != slot:
                i = table_probe(t, t.slots[slot].hash, &at)
                assert i != NONE, f"slot {slot} is not found from its home"
    return 0


cdef int check_queues(TTLDict d, unsigned char* seen) except -1:
    cdef Table* t = &d.table
    cdef uint32_t slot, previous, count, total = 0
    cdef int queue
    cdef bint hand = t.hand == NONE
    for queue in range(2):
        slot = t.head[queue]
        previous = NONE
        count = 0
        while slot != NONE:
            assert slot < t.used and not seen[slot], f"queue {queue} leads to slot {slot} twice"
            assert t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD, f"dead slot {slot} in queue {queue}"
            assert t.links[slot].prev == previous, f"slot {slot} has a wrong predecessor"
            assert bool(t.slots[slot].meta & IN_MAIN) == queue, f"slot {slot} is in the other queue"
            hand = hand or slot == t.hand
            seen[slot] = 1
            count += 1
            previous = slot
            slot = t.links[slot].next
        assert previous == t.tail[queue], f"queue {queue} ends at {previous}, not {t.tail[queue]}"
        assert count == t.count[queue], f"queue {queue} holds {count}, not {t.count[queue]}"
        total += count
    assert total == t.live, f"{total} entries in the queues, {t.live} in the table"
    assert hand, f"the hand points at {t.hand}, which is in no queue"
    return 0


cdef int check_heap(TTLDict d) except -1:
    cdef Table* t = &d.table
    cdef uint32_t at, slot, scheduled = 0
    cdef double due, when
    assert t.scheduled <= t.heap_room, "more nodes than there is room for"
    for at in range(t.scheduled):
        slot = t.heap[at].slot
        assert slot < t.used and t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD, f"node {at} has no entry"
        assert t.links[slot].node == at, f"node {at} is of slot {slot}, which says {t.links[slot].node}"
        assert at == 0 or t.heap[(at - 1) >> 2].tick <= t.heap[at].tick, f"node {at} is earlier than its parent"
    for slot in range(t.used):
        if t.slots[slot].key == NULL or t.slots[slot].meta & DEAD:
            continue
        due = slot_due(t, slot)
        if t.links[slot].node == NONE:
            assert due == INFINITY, f"slot {slot} falls due at {due} and is not scheduled"
            continue
        scheduled += 1
        at = t.links[slot].node
        assert at < t.scheduled and t.heap[at].slot == slot, f"slot {slot} is not at node {at}"
        # Tick 0 stands for any time before the base, and next_due is minus infinity then.
        when = t.base + <double>t.heap[at].tick / TICKS_PER_SECOND if t.heap[at].tick else t.next_due
        assert when <= due + 2.0 / TICKS_PER_SECOND + abs(due) * 1e-15, f"slot {slot}: due {due}, node {when}"
    assert scheduled == t.scheduled, f"{t.scheduled} nodes for {scheduled} entries"
    if t.scheduled == 0:
        assert t.next_due == INFINITY, f"nothing is scheduled, but next_due = {t.next_due}"
    elif t.heap[0].tick:
        assert t.next_due == t.base + <double>t.heap[0].tick / TICKS_PER_SECOND, "next_due is not the first node's"
    return 0


cdef int check_account(TTLDict d) except -1:
    cdef Table* t = &d.table
    cdef uint64_t total = 0
    cdef uint32_t slot
    for slot in range(t.used):
        if t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD:
            total += slot_size(t, slot)
    assert total == t.nbytes, f"the sizes make {total}, nbytes is {t.nbytes}"
    assert d.most_bytes == min(d.own_bytes, d.cap_bytes), "the limit in force is not the lower one"
    assert total <= d.most_bytes, f"{total} bytes, the limit is {d.most_bytes}"
    return 0


def check(TTLDict d not None):
    """Raise AssertionError if the table breaks an invariant that holds between two operations."""
    cdef Table* t = &d.table
    cdef unsigned char* seen[3]
    cdef int i
    for i in range(3):
        seen[i] = <unsigned char*>calloc(t.room + 1, 1)
    try:
        check_slots(d, seen[0])
        check_index(d, seen[1])
        check_queues(d, seen[2])
        check_heap(d)
        check_account(d)
    finally:
        for i in range(3):
            free(seen[i])


def shape(TTLDict d not None):
    """Figures that no method returns."""
    cdef Table* t = &d.table
    return {
        "live": t.live, "room": t.room, "used": t.used, "scheduled": t.scheduled, "ghosts": t.ghost_room,
        "next_due": t.next_due, "wide": t.wide != NULL,
    }


def due(TTLDict d not None, double now):
    """How many entries are due and still in the table."""
    cdef Table* t = &d.table
    cdef uint32_t slot, count = 0
    for slot in range(t.used):
        if t.slots[slot].key != NULL and not t.slots[slot].meta & DEAD and slot_due(t, slot) <= now:
            count += 1
    return count


def through_the_c_face(TTLDict d not None, key, value, double seconds):
    """What C code does instead of d.set(), d[key] and d.pop()."""
    cdef PyObject* found
    fresh = d.store(<PyObject*>key, <PyObject*>value, seconds, REPLACE, NULL)
    found = d.lookup(<PyObject*>key)
    first = <object>found
    found = d.take(<PyObject*>key)
    second = <object>found
    return fresh, first is value, second is value, d.lookup(<PyObject*>key) == NULL


cdef uint64_t numbers(uint64_t count, uint32_t limit) noexcept nogil:
    """Numbers as keys and values, no interpreter: the sum of what is left when all but the last 100 fell due."""
    cdef Table table
    cdef Table* t = &table
    cdef uint64_t n, total = 0
    cdef uint32_t slot, at, hash
    cdef int steps
    table_init(t, SIEVE, limit, INFINITY, 0.0)
    for n in range(1, count + 1):
        if t.live >= t.limit:
            slot = table_victim(t)
            table_remove(t, slot)
            slot_free(t, slot)
        elif not reserve_slot(t):
            break
        if not reserve_node(t):
            break
        table_insert(t, <PyObject*>n, <PyObject*>(2 * n), mix_hash(<Py_hash_t>n, 7), 1, <double>n, 0.0)
    while True:
        steps = 8
        slot = heap_next_due(t, <double>count - 100, &steps)
        if slot == NONE:
            break
        table_remove(t, slot)
        slot_free(t, slot)
    for n in range(1, count + 1):
        hash = mix_hash(<Py_hash_t>n, 7)
        at = index_home(t, hash)
        slot = table_probe(t, hash, &at) if t.live else NONE
        while slot != NONE and t.slots[slot].key != <PyObject*>n:
            slot = table_probe(t, hash, &at)
        if slot != NONE:
            slot_accessed(t, slot)
            total += <uint64_t>t.slots[slot].value + (t.nbytes - t.live)
    for slot in range(t.used):
        t.slots[slot].key = NULL
    table_free(t)
    return total


def dead_queue(bint former_names):
    """The order in which four dead slots come out again, and whether the queue is then empty."""
    cdef Table table
    cdef uint32_t slot
    table_init(&table, SIEVE, NONE, INFINITY, 0.0)
    for slot in range(4):
        if not reserve_slot(&table):
            raise MemoryError()
        table_insert(&table, <PyObject*>1, <PyObject*>1, slot, 1, INFINITY, 0.0)
    for slot in (2, 0, 3, 1):
        table_remove(&table, slot)
        if former_names:
            slot_bury(&table, slot, 0)
        else:
            dead_push(&table, slot, 0)
    order = []
    for _ in range(4):
        slot = slot_exhume(&table) if former_names else dead_pop(&table)
        order.append(slot)
        slot_free(&table, slot)
    empty = dead_pop(&table) == NONE
    table_free(&table)
    return order, empty


def without_the_interpreter(uint64_t count, uint32_t limit):
    with nogil:
        count = numbers(count, limit)
    return count
