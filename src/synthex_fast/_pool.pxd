"""The freelist, as a C struct with inline functions, and the pool of Python objects that stands on it.

Standard build: a freelist is a stack of pointers, and ``freelist_pop`` and ``freelist_push`` are a few
instructions. Free-threaded build: each thread has a magazine of its own in front of a shared depot (Bonwick
and Adams, "Magazines and Vmem", USENIX 2001). Either way a caller needs an attached thread state (the GIL,
where there is one).

    cdef Freelist* spare = freelist_new(1000, free)      # keeps up to 1,000 blocks, over all threads
    block = freelist_pop(spare)                          # NULL: make one
    if not freelist_push(spare, block): free(block)      # False: it is still the caller's
"""

from libc.stdint cimport int64_t, uint64_t

from synthex_fast._sync cimport FREE_THREADED, Lock, likely, lock, unlikely, unlock


cdef extern from *:
    """
    #ifndef SYNTHEX_POOL
    #define SYNTHEX_POOL
    #ifdef Py_GIL_DISABLED
      /* A thread's magazines, by the slot number of their freelist. The serial number tells a freelist from
         one that had the same slot earlier. */
      typedef struct { uint64_t serial; void *magazine; } synthex_slot;
      typedef struct synthex_thread {
          size_t count;
          synthex_slot *slots;
          struct synthex_thread **variables[16];
          size_t variable_count;
      } synthex_thread;
      static synthex_thread synthex_no_thread;
      /* One copy in each module that cimports this file: a module reads its own without a call. */
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


cdef enum Count:
    REUSED                    # pops that gave a block
    MISSED                    # pops that found none
    RELEASED                  # pushes that kept the block
    DISCARDED                 # blocks let go: pushes without room, idle blocks cleared, trimmed or left
    ALIASED                   # blocks popped that somebody else still held
    MADE                      # blocks that the owner says it made
    COUNTS


cdef struct Stack:
    void** blocks             # blocks[base:top], coldest first
    double* since             # when each went idle; NULL in a freelist that does not ask
    Py_ssize_t base
    Py_ssize_t top
    Py_ssize_t ceiling        # a push at this top takes the slow way: min(room, base + credit)
    Py_ssize_t room           # blocks that the memory has room for
    Py_ssize_t credit         # blocks that it may keep
    int64_t counts[6]


cdef struct Magazine:
    char before[64]           # no other thread writes in these cache lines
    Lock lock
    bint orphaned             # its thread has ended; any thread may adopt it
    int patience              # pushes to refuse before asking the depot for credit again
    uint64_t serial           # tells it from a later one at the same address
    Stack stack
    Magazine* next
    Magazine* previous
    char after[64]


cdef struct Freelist:
    uint64_t serial
    size_t slot
    free_block let_go         # what becomes of a block that is not kept
    Py_ssize_t rounds         # blocks that a magazine and the depot exchange at a time
    bint pinned               # a block stays with the thread that pushed it
    bint timed                # blocks carry the time when they went idle
    char apart[64]            # what is above is read by every thread, what is below is written
    Lock lock             # taken before a magazine's, never after it
    Py_ssize_t limit          # blocks that all threads together may keep
    Py_ssize_t lent           # of those, credit that is with the magazines
    uint64_t attached         # magazines ever made
    Magazine* magazines
    Stack stack               # the depot; on the standard build, all there is


# `pinned` keeps each block with the thread that pushed it; `timed` remembers since when each has been idle.
cdef Freelist* freelist_new(Py_ssize_t limit, free_block let_go, bint pinned=*, bint timed=*) except NULL
# Nobody else may be using it. Every idle block is let go.
cdef void freelist_delete(Freelist* self) noexcept
# Change the limit; the coldest blocks over it are let go. The number of those.
cdef Py_ssize_t freelist_resize(Freelist* self, Py_ssize_t limit) noexcept
# Let go up to `blocks` idle blocks, coldest first. The number let go.
cdef Py_ssize_t freelist_trim(Freelist* self, Py_ssize_t blocks) noexcept
# Idle blocks now; COUNTS totals go to `counts` where that is not NULL. Exact when threads are at rest.
cdef Py_ssize_t freelist_stats(Freelist* self, int64_t* counts) noexcept nogil
# Add to one of the counts.
cdef void freelist_note(Freelist* self, Count which, int64_t number) noexcept nogil

# The slow ways of pop and push.
cdef Magazine* freelist_attach(Freelist* self, Thread** variable) noexcept nogil
cdef void* freelist_refill(Freelist* self, Magazine* mine, double* since) noexcept nogil
cdef bint freelist_make_room(Freelist* self, Magazine* mine) noexcept nogil
cdef bint freelist_push_depot(Freelist* self, void* block, double since) noexcept nogil


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
    """`freelist_pop` with more to say: `since` gets the time when the block went idle (NULL where the
    freelist is
    not timed), `spare_last` leaves the block pushed last where there is another one."""
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
    """The block that this thread pushed last, or another one, or NULL where there is none."""
    return freelist_pop_as(self, NULL, False)


cdef inline bint freelist_push_since(Freelist* self, void* block, bint timed, double since) noexcept nogil:
    """`freelist_push` for a timed freelist."""
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
    """Keep the block and return True, or return False: then it is still the caller's."""
    return freelist_push_since(self, block, False, 0.0)


cdef class ObjectPool:
    cdef Freelist* idle
    cdef object factory
    cdef object reset
    cdef uint64_t known       # type version << 1 | whether that type has a `reset`
    cdef double idle_seconds  # infinite where max_idle is None
    cdef readonly object name
    cdef bint timed
    cdef bint calls_reset     # a `reset` was handed in
    cdef bint scheduled       # the sweeper knows of this pool
    cdef bint ready           # __init__ went through
    cdef object __weakref__


cdef class Lease:
    cdef ObjectPool pool
    cdef object leased


# What `acquire` and `release` do, for Cython code.
cdef object pool_acquire(ObjectPool pool)
cdef bint pool_release(ObjectPool pool, object obj) except -1
