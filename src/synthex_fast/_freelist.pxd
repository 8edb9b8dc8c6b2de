"""A freelist of C blocks: a struct and the inline functions that pop and push, for any Cython code.

    cdef Freelist* spare = freelist_new(1000, free)      # keeps up to 1,000 blocks, over all threads
    block = freelist_pop(spare)                          # NULL: none is idle, allocate one
    if not freelist_push(spare, block): free(block)      # False: refused, the block is still the caller's

The caller needs an attached thread state (on the standard build, the GIL). ``_freelist.pyx`` describes the design.
``synthex_fast._pool`` re-exports the same names.
"""

from libc.stdint cimport int64_t, uint64_t

from cpython.object cimport PyObject

from synthex_fast._sync cimport FREE_THREADED, Lock, likely, lock, unlikely, unlock


cdef extern from *:
    """
    #ifndef SYNTHEX_FREELIST
    #define SYNTHEX_FREELIST
    #ifdef Py_GIL_DISABLED
      /* A thread's magazines, indexed by the slot of their freelist. Slots are reused, serial numbers are not: a
         different serial marks the magazine of an earlier freelist. `variables` are the pointers to this struct, one
         in each module that has asked for it. */
      typedef struct { uint64_t serial; void *magazine; } synthex_slot;
      typedef struct synthex_thread {
          size_t count;
          synthex_slot *slots;
          struct synthex_thread **variables[16];
          size_t variable_count;
      } synthex_thread;
      static synthex_thread synthex_no_thread;
      /* Each module that cimports this file has its own copy, so that it finds a magazine without a call. A copy is
         set by the first freelist_attach that the module makes in a thread, and reset when the thread ends. */
      static SYNTHEX_THREAD_LOCAL synthex_thread *synthex_magazines = &synthex_no_thread;
      static inline void *synthex_find_magazine(uint64_t serial, size_t slot) {
          synthex_thread *thread = synthex_magazines;
          if (synthex_likely(slot < thread->count && thread->slots[slot].serial == serial))
              return thread->slots[slot].magazine;
          return NULL;
      }
      #define synthex_thread_variable() (&synthex_magazines)
    #else
      typedef struct { uint64_t serial; void *magazine; } synthex_slot;
      typedef struct synthex_thread {
          size_t count;
          synthex_slot *slots;
          struct synthex_thread **variables[1];
          size_t variable_count;
      } synthex_thread;
      #define synthex_find_magazine(serial, slot) NULL
      #define synthex_thread_variable() NULL
    #endif
    #endif
    """
    ctypedef struct Slot "synthex_slot":
        uint64_t serial
        void* magazine
    ctypedef struct Thread "synthex_thread":
        size_t count
        Slot* slots
        Thread** variables[16]
        size_t variable_count
    void* find_magazine "synthex_find_magazine"(uint64_t serial, size_t slot) noexcept nogil
    Thread** thread_variable "synthex_thread_variable"() noexcept nogil


ctypedef void (*free_block)(void*) noexcept
ctypedef void (*free_through)(PyObject* handler, void* block) noexcept


cdef enum Count:
    REUSED                    # pops that returned a block
    MISSED                    # pops that returned NULL
    RELEASED                  # pushes that kept the block
    DISCARDED                 # pushes refused, and idle blocks disposed of
    ALIASED                   # popped blocks that were still referenced elsewhere (counted by the owner)
    MADE                      # new blocks (counted by the owner)
    COUNTS


cdef struct Stack:
    void** blocks             # blocks[base:top], coldest first
    double* since             # when each went idle; NULL unless the freelist is timed
    Py_ssize_t base
    Py_ssize_t top
    Py_ssize_t ceiling        # a push at this top takes the slow path: min(room, base + credit)
    Py_ssize_t room           # blocks that the allocated memory can hold
    Py_ssize_t credit         # blocks that the stack may hold: its share of the limit
    int64_t counts[6]


cdef struct Magazine:
    char before[64]           # padding: no other thread writes to these cache lines
    Lock lock
    bint orphaned             # its thread has ended: any thread may adopt it
    int patience              # pushes to refuse before credit is requested again
    uint64_t serial           # distinguishes it from a later magazine at the same address
    Stack stack
    Magazine* next
    Magazine* previous
    char after[64]


cdef struct Freelist:
    uint64_t serial
    size_t slot
    free_block dispose        # frees an idle block; may run Python code, so it is called without a lock
    Py_ssize_t rounds         # blocks that a magazine and the depot exchange at a time
    bint pinned               # a block stays with the thread that pushed it
    bint timed                # the stacks record when each block went idle
    char apart[64]            # padding: threads read what is above and write what is below
    Lock lock                 # acquired before a magazine's, never after it
    Py_ssize_t limit          # blocks that all threads together may keep
    Py_ssize_t lent           # the part of the limit that is the magazines' credit
    uint64_t attached         # how many times a magazine has been made or adopted
    Magazine* magazines
    Stack stack               # the depot; on the standard build, the only stack
    PyObject* handler         # if not NULL, `dispose_through` disposes of blocks and gets it; guarded by the lock
    free_through dispose_through


# `pinned` keeps each block with the thread that pushed it, `timed` records when each went idle.
cdef Freelist* freelist_new(Py_ssize_t limit, free_block dispose, bint pinned=*, bint timed=*) except NULL
# Disposes of every idle block. No other thread may still be using the freelist.
cdef void freelist_delete(Freelist* self) noexcept
# From now on this function disposes of blocks. It gets the handler, to which the freelist keeps a reference. If that is
# NULL, `dispose` does so again.
cdef void freelist_handle(Freelist* self, free_through dispose, PyObject* handler) noexcept
# Disposes of a block that the caller has taken out.
cdef void freelist_dispose(Freelist* self, void* block) noexcept
# Changes the limit and disposes of the coldest blocks beyond it. Returns their number.
cdef Py_ssize_t freelist_resize(Freelist* self, Py_ssize_t limit) noexcept
# Disposes of up to `blocks` idle blocks, coldest first. Returns their number.
cdef Py_ssize_t freelist_trim(Freelist* self, Py_ssize_t blocks) noexcept
# Returns the number of idle blocks; unless `counts` is NULL, it gets COUNTS totals. Exact while threads are at rest.
cdef Py_ssize_t freelist_stats(Freelist* self, int64_t* counts) noexcept nogil
# Adds to one of the totals.
cdef void freelist_count(Freelist* self, Count which, int64_t number) noexcept nogil

# For owners that check a block before it is disposed of. `before`: only blocks idle since then or longer.
# Takes out up to `number` blocks, coldest first, counted as discarded; the caller disposes of them.
cdef Py_ssize_t freelist_take(Freelist* self, void** out, Py_ssize_t number, double before) noexcept nogil
# The same, from this thread's own stack only.
cdef Py_ssize_t freelist_take_own(Freelist* self, void** out, Py_ssize_t number, double before) noexcept nogil
# Takes and disposes of up to `blocks` blocks. Returns their number.
cdef Py_ssize_t freelist_discard(Freelist* self, Py_ssize_t blocks, double before) noexcept
# When the block that has been idle longest went idle; infinity if none is idle or the freelist is not timed.
cdef double freelist_oldest(Freelist* self) noexcept nogil
# Whether this block is idle. O(idle blocks).
cdef bint freelist_holds(Freelist* self, const void* block) noexcept nogil
# Visits every idle block as an object, and the handler, for a `tp_traverse`.
cdef int freelist_visit(Freelist* self, int (*visit)(PyObject*, void*) noexcept, void* arg) noexcept

cdef struct Borrowed:
    void* block
    double since
    Magazine* home            # NULL: the depot
    uint64_t serial           # of that magazine
    Py_ssize_t at

# Takes out the idle block at this index, counted over all stacks. Returns whether there was one.
cdef bint freelist_borrow(Freelist* self, Py_ssize_t index, Borrowed* borrowed) noexcept nogil
# Puts it back where it was, or disposes of it if that stack has no room left.
cdef void freelist_give_back(Freelist* self, Borrowed* borrowed) noexcept

# The slow paths of pop and push.
cdef Magazine* freelist_attach(Freelist* self, Thread** variable) noexcept nogil
cdef void* freelist_refill(Freelist* self, Magazine* mine, double* since) noexcept nogil
cdef bint freelist_make_room(Freelist* self, Magazine* mine) noexcept nogil
cdef bint freelist_push_depot(Freelist* self, void* block, double since) noexcept nogil


cdef inline void freelist_note(Freelist* self, Count which, int64_t number) noexcept nogil:
    """The earlier name of `freelist_count`."""
    freelist_count(self, which, number)


cdef inline void* stack_pop(Stack* stack, double* since, bint spare_last) noexcept nogil:
    cdef Py_ssize_t last = stack.top - 1
    cdef void* block = stack.blocks[last]
    cdef double idle_since = 0.0
    if since != NULL:
        idle_since = stack.since[last]
    if spare_last and last > stack.base:
        stack.blocks[last - 1], block = block, stack.blocks[last - 1]
        if since != NULL:
            stack.since[last - 1], idle_since = idle_since, stack.since[last - 1]
    stack.top = last
    stack.counts[<int>REUSED] += 1
    if since != NULL:
        since[0] = idle_since
    return block


cdef inline void* freelist_pop_as(Freelist* self, double* since, bint spare_last) noexcept nogil:
    """`freelist_pop` with options.

    `since` gets the time when the block went idle; pass NULL unless the freelist is timed. `spare_last` takes the block
    pushed last only if no other is left.
    """
    cdef Stack* stack
    cdef Magazine* mine
    cdef void* block
    if FREE_THREADED:
        mine = <Magazine*>find_magazine(self.serial, self.slot)
        if unlikely(mine == NULL):
            mine = freelist_attach(self, thread_variable())
            if mine == NULL:
                return freelist_refill(self, NULL, since)
        stack = &mine.stack
        lock(&mine.lock)
        if unlikely(stack.top == stack.base):
            unlock(&mine.lock)
            return freelist_refill(self, mine, since)
        block = stack_pop(stack, since, spare_last)
        unlock(&mine.lock)
        return block
    stack = &self.stack
    if stack.top == stack.base:
        stack.counts[<int>MISSED] += 1
        return NULL
    return stack_pop(stack, since, spare_last)


cdef inline void* freelist_pop(Freelist* self) noexcept nogil:
    """The block that this thread pushed last, or else another one, or NULL if none is idle."""
    return freelist_pop_as(self, NULL, False)


cdef inline bint freelist_push_since(Freelist* self, void* block, bint timed, double since) noexcept nogil:
    """`freelist_push`, with the time when the block went idle if the freelist is `timed`."""
    cdef Stack* stack
    cdef Magazine* mine
    if FREE_THREADED:
        mine = <Magazine*>find_magazine(self.serial, self.slot)
        if unlikely(mine == NULL):
            mine = freelist_attach(self, thread_variable())
            if mine == NULL:
                return freelist_push_depot(self, block, since)
        stack = &mine.stack
        while True:
            lock(&mine.lock)
            if likely(stack.top < stack.ceiling):
                break
            unlock(&mine.lock)
            if not freelist_make_room(self, mine):
                return False
        stack.blocks[stack.top] = block
        if timed:
            stack.since[stack.top] = since
        stack.top += 1
        stack.counts[<int>RELEASED] += 1
        unlock(&mine.lock)
        return True
    stack = &self.stack
    if unlikely(stack.top >= stack.ceiling) and not freelist_make_room(self, NULL):
        return False
    stack.blocks[stack.top] = block
    if timed:
        stack.since[stack.top] = since
    stack.top += 1
    stack.counts[<int>RELEASED] += 1
    return True


cdef inline bint freelist_push(Freelist* self, void* block) noexcept nogil:
    """Keep the block and return True, or refuse it and return False; it is then still the caller's."""
    return freelist_push_since(self, block, False, 0.0)
