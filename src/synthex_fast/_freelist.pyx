"""The freelist: its slow paths and everything that walks all threads' blocks. `_freelist.pxd` has the fast paths.

Standard build: a freelist is one stack of pointers, the depot. The GIL makes each function atomic, and the locks
compile to nothing.

Free-threaded build (Bonwick and Adams, "Magazines and Vmem", USENIX 2001): each thread has its own stack, a magazine,
in front of the depot, and exchanges `rounds` blocks with it at a time, so that most pops and pushes touch only memory
of their own thread.

- Limit. Every stack may hold as many blocks as it has credit. The credit of all stacks together is the limit: the
  magazines' part is `lent`, the rest belongs to the depot. A block that moves takes its credit along; a magazine
  without credit asks the depot for more, which reclaims what other magazines do not use.
- Locks. The registry's comes first, then a freelist's, which guards the depot, `lent` and the list of magazines, then
  a magazine's, which guards its stack. Two magazines are locked at once only if one of them is an orphan, which no
  thread uses. Nothing is allocated, freed or disposed of under a lock.
- Threads. A thread finds its magazine through a thread-local variable of the calling module; `freelist_attach` sets
  that up. `ThreadGuard`, which the thread's state dictionary owns, gives the magazines back when the thread ends. The
  registry tells it which freelists still exist then. A pinned freelist disposes of the blocks; any other keeps the
  magazine as an orphan for another thread to adopt or to empty.
- Fork. Locks are held only for short stretches by threads that do not detach, and a fork stops the others first. So
  all locks are free in the child, which ends the lost threads' states, and their guards give the magazines back.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memmove

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject

from synthex_fast._python cimport (
    PY_SSIZE_T_MAX, PyDict_SetItem, PyErr_Fetch, PyErr_Restore, PyThreadState_GetDict, Py_DECREF, Py_XDECREF,
    Py_XINCREF, visitproc,
)
from synthex_fast._sync cimport Lock, lock, unlock

__all__: list[str] = []


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
      /* The id of the thread state that has ended in this thread: code that still runs in it gets no magazine. */
      static SYNTHEX_THREAD_LOCAL uint64_t synthex_ended;
      static int synthex_has_ended(void) {
          return synthex_ended == PyThreadState_GetID(PyThreadState_Get());
      }
      static synthex_thread *synthex_current_thread(void) {
          return synthex_magazines == &synthex_no_thread ? NULL : synthex_magazines;
      }
      /* Points `variable`, a module's own, to this thread's magazines. */
      static void synthex_link_variable(synthex_thread *thread, synthex_thread **variable) {
          if (*variable == thread || thread->variable_count == 16) return;
          thread->variables[thread->variable_count++] = variable;
          *variable = thread;
      }
      static void synthex_unlink_variables(synthex_thread *thread) {
          /* A guard can be deallocated by another thread (in a forked child, or at the end of the interpreter). The
             variables of its own thread are then left alone: that thread no longer runs, and their memory may have been
             reused. */
          if (synthex_magazines != thread) return;
          while (thread->variable_count) *thread->variables[--thread->variable_count] = &synthex_no_thread;
          synthex_ended = PyThreadState_GetID(PyThreadState_Get());
      }
    #else
      #define synthex_has_ended() 1
      #define synthex_current_thread() NULL
      #define synthex_link_variable(thread, variable) ((void)(thread), (void)(variable))
      #define synthex_unlink_variables(thread) ((void)(thread))
    #endif
    """
    bint thread_has_ended "synthex_has_ended"() noexcept
    Thread* current_thread "synthex_current_thread"() noexcept
    void link_variable "synthex_link_variable"(Thread* thread, Thread** variable) noexcept
    void unlink_variables "synthex_unlink_variables"(Thread* thread) noexcept


# --- Stacks of blocks: the depot and the magazines ---

cdef inline Py_ssize_t stack_count(const Stack* stack) noexcept nogil:
    return stack.top - stack.base


cdef inline void stack_update(Stack* stack) noexcept nogil:
    """Restore the ceiling and, if the stack is empty, its base, after any other field has changed."""
    if stack.base == stack.top:
        stack.base = stack.top = 0
    # base + credit could overflow: a credit may be the largest Py_ssize_t.
    if stack.credit < stack.room - stack.base:
        stack.ceiling = stack.base + stack.credit
    else:
        stack.ceiling = stack.room


cdef void stack_move_down(Stack* stack) noexcept nogil:
    cdef Py_ssize_t count = stack_count(stack)
    memmove(stack.blocks, stack.blocks + stack.base, <size_t>count * sizeof(void*))
    if stack.since != NULL:
        memmove(stack.since, stack.since + stack.base, <size_t>count * sizeof(double))
    stack.base = 0
    stack.top = count
    stack_update(stack)


cdef bint stack_reserve(
    Stack* stack, Lock* guard, Py_ssize_t extra, Py_ssize_t most, bint timed
) noexcept nogil:
    """Make room for `extra` more blocks; False if allocation fails. Prefers moving down to growing past twice `most`.

    The caller does not hold the lock, as allocating may detach the thread.
    """
    cdef size_t width = sizeof(void*) + (sizeof(double) if timed else 0)
    cdef Py_ssize_t count, room
    cdef void* memory
    cdef void** blocks
    while True:
        lock(guard)
        count = stack_count(stack)
        if stack.room - stack.top >= extra:
            unlock(guard)
            return True
        # Moving down only if that frees half the room keeps the amortised cost of a push constant.
        if stack.room - count >= extra and (stack.base >= stack.room // 2 or stack.room // 2 >= most):
            stack_move_down(stack)
            unlock(guard)
            return True
        room = max(<Py_ssize_t>16, stack.room * 2, count + extra)
        unlock(guard)
        memory = NULL
        if room < PY_SSIZE_T_MAX // 64:
            # An extra cache line at the end keeps two threads' stacks apart.
            memory = PyMem_RawMalloc(<size_t>room * width + 64)
        lock(guard)
        if memory == NULL:
            if stack.room - stack_count(stack) >= extra:
                stack_move_down(stack)
            count = stack.room - stack.top
            unlock(guard)
            return count >= extra
        if stack.room < room:
            count = stack_count(stack)
            blocks = <void**>memory
            if count:
                memcpy(blocks, stack.blocks + stack.base, <size_t>count * sizeof(void*))
                if timed:
                    memcpy(blocks + room, stack.since + stack.base, <size_t>count * sizeof(double))
            memory = stack.blocks
            stack.blocks = blocks
            if timed:
                stack.since = <double*>(blocks + room)
            stack.room = room
            stack.base = 0
            stack.top = count
            stack_update(stack)
        unlock(guard)
        PyMem_RawFree(memory)


cdef Py_ssize_t stack_take(Stack* stack, void** out, Py_ssize_t number, double before) noexcept nogil:
    """Take up to `number` of the coldest blocks that have been idle since `before` or longer."""
    cdef Py_ssize_t taken = 0
    number = min(number, stack_count(stack))
    while taken < number:
        if stack.since != NULL and stack.since[stack.base] > before:
            break
        out[taken] = stack.blocks[stack.base]
        stack.base += 1
        taken += 1
    stack.counts[<int>DISCARDED] += taken
    stack_update(stack)
    return taken


cdef void stack_copy(Stack* target, Stack* source, Py_ssize_t at, Py_ssize_t number) noexcept nogil:
    """Append source.blocks[at:at + number] to target, which must have room."""
    memcpy(target.blocks + target.top, source.blocks + at, <size_t>number * sizeof(void*))
    if target.since != NULL and source.since != NULL:
        memcpy(target.since + target.top, source.since + at, <size_t>number * sizeof(double))
    target.top += number


cdef inline Py_ssize_t freelist_unlent(const Freelist* self) noexcept nogil:
    """Blocks that the depot may still take or lend credit for. Negative while a resize is under way."""
    return self.limit - self.lent - stack_count(&self.stack)


cdef inline Py_ssize_t rounds_for(Py_ssize_t limit) noexcept nogil:
    # Large enough that an exchange is rare, small enough that no thread holds most of a small limit.
    return min(<Py_ssize_t>32, max(<Py_ssize_t>1, limit // 8))


# --- The registry of all freelists: shows an ending thread which of its magazines still belong to one ---

cdef Lock registry_lock         # acquired before a freelist's
cdef Freelist** registry = NULL
cdef size_t registry_room = 0
cdef size_t registry_low = 0    # no free slot below
cdef uint64_t serials = 0


cdef bint registry_add(Freelist* self) noexcept:
    global registry, registry_room, registry_low, serials
    cdef size_t slot, room
    cdef Freelist** memory
    cdef Freelist** old
    while True:
        lock(&registry_lock)
        slot = registry_low
        while slot < registry_room and registry[slot] != NULL:
            slot += 1
        room = registry_room
        if slot < room:
            registry[slot] = self
            registry_low = slot + 1
            serials += 1
            self.serial = serials
            self.slot = slot
            unlock(&registry_lock)
            return True
        unlock(&registry_lock)
        memory = <Freelist**>PyMem_RawCalloc(max(<size_t>64, room * 2), sizeof(Freelist*))
        if memory == NULL:
            return False
        lock(&registry_lock)
        old = memory
        if registry_room == room:
            old = registry
            if room:
                memcpy(memory, registry, room * sizeof(Freelist*))
            registry = memory
            registry_room = max(<size_t>64, room * 2)
        unlock(&registry_lock)
        PyMem_RawFree(old)


cdef void registry_remove(Freelist* self) noexcept:
    global registry_low
    lock(&registry_lock)
    registry[self.slot] = NULL
    registry_low = min(registry_low, self.slot)
    unlock(&registry_lock)


# --- Magazines ---

cdef void magazine_unlink(Freelist* self, Magazine* magazine) noexcept nogil:
    """Remove it from the freelist, whose lock the caller holds, but keep its counts. The caller now owns it."""
    cdef int i
    if magazine.previous != NULL:
        magazine.previous.next = magazine.next
    else:
        self.magazines = magazine.next
    if magazine.next != NULL:
        magazine.next.previous = magazine.previous
    self.lent -= magazine.stack.credit
    for i in range(<int>COUNTS):
        self.stack.counts[i] += magazine.stack.counts[i]


cdef void magazine_free(Magazine* magazine) noexcept nogil:
    PyMem_RawFree(magazine.stack.blocks)
    PyMem_RawFree(magazine)


cdef Magazine* magazine_for(Freelist* self, Thread* thread) noexcept:
    """This thread's magazine, made or adopted if necessary; NULL if allocation fails."""
    cdef size_t count
    cdef Slot* slots
    cdef Slot* old
    cdef Magazine* mine
    if self.slot < thread.count and thread.slots[self.slot].serial == self.serial:
        return <Magazine*>thread.slots[self.slot].magazine
    if self.slot >= thread.count:
        count = max(<size_t>16, thread.count * 2, self.slot + 1)
        slots = <Slot*>PyMem_RawCalloc(count, sizeof(Slot))
        if slots == NULL:
            return NULL
        old = thread.slots
        if thread.count:
            memcpy(slots, old, thread.count * sizeof(Slot))
        thread.slots = slots
        thread.count = count
        PyMem_RawFree(old)
    cdef Magazine* spare = <Magazine*>PyMem_RawCalloc(1, sizeof(Magazine))
    if spare == NULL:
        return NULL
    lock(&self.lock)
    mine = self.magazines
    while mine != NULL and not mine.orphaned:
        mine = mine.next
    if mine == NULL:
        mine = spare
        spare = NULL
        mine.next = self.magazines
        if mine.next != NULL:
            mine.next.previous = mine
        self.magazines = mine
    self.attached += 1
    mine.serial = self.attached
    mine.orphaned = False
    unlock(&self.lock)
    PyMem_RawFree(spare)
    thread.slots[self.slot].magazine = mine
    thread.slots[self.slot].serial = self.serial
    return mine


cdef void magazine_end(uint64_t serial, size_t slot, Magazine* magazine) noexcept:
    """The thread of this magazine has ended."""
    cdef Freelist* self
    cdef free_block dispose
    cdef free_through dispose_through
    cdef PyObject* handler = NULL
    cdef Stack* stack
    lock(&registry_lock)
    self = registry[slot]
    if self == NULL or self.serial != serial:
        # The freelist was deleted first, and its magazines with it.
        unlock(&registry_lock)
        return
    lock(&self.lock)
    stack = &magazine.stack
    if not self.pinned and stack_count(stack):
        magazine.orphaned = True
        magazine = NULL
    else:
        stack.counts[<int>DISCARDED] += stack_count(stack)
        magazine_unlink(self, magazine)
        # The freelist may be deleted while the blocks are disposed of.
        dispose = self.dispose
        dispose_through = self.dispose_through
        handler = self.handler
        Py_XINCREF(handler)
    unlock(&self.lock)
    unlock(&registry_lock)
    if magazine != NULL:
        while stack_count(stack):
            stack.top -= 1
            if handler != NULL:
                dispose_through(handler, stack.blocks[stack.top])
            else:
                dispose(stack.blocks[stack.top])
        magazine_free(magazine)
        Py_XDECREF(handler)


cdef class ThreadGuard:
    """Gives a thread's magazines back when the thread's state dictionary, which owns it, is cleared."""

    cdef Thread* thread

    def __dealloc__(self):
        cdef Thread* thread = self.thread
        cdef size_t slot
        if thread == NULL:
            return
        unlink_variables(thread)
        for slot in range(thread.count):
            if thread.slots[slot].magazine != NULL:
                magazine_end(thread.slots[slot].serial, slot, <Magazine*>thread.slots[slot].magazine)
        PyMem_RawFree(thread.slots)
        PyMem_RawFree(thread)


cdef Thread* this_thread() except? NULL:
    cdef Thread* thread = current_thread()
    cdef PyObject* state
    cdef ThreadGuard guard
    if thread != NULL or thread_has_ended():
        return thread
    state = PyThreadState_GetDict()
    if state == NULL:
        return NULL
    guard = ThreadGuard.__new__(ThreadGuard)
    guard.thread = <Thread*>PyMem_RawCalloc(1, sizeof(Thread))
    if guard.thread == NULL:
        raise MemoryError()
    PyDict_SetItem(state, "synthex_fast.magazines", guard)
    link_variable(guard.thread, thread_variable())
    return guard.thread


cdef Magazine* freelist_attach(Freelist* self, Thread** variable) noexcept nogil:
    cdef Magazine* mine = NULL
    cdef Thread* thread
    cdef PyObject* kind
    cdef PyObject* error
    cdef PyObject* trace
    if not FREE_THREADED:
        return NULL
    with gil:
        # The caller may be a deallocation that runs while an exception is set.
        PyErr_Fetch(&kind, &error, &trace)
        try:
            thread = this_thread()
            if thread != NULL:
                link_variable(thread, variable)
                mine = magazine_for(self, thread)
        except MemoryError:
            pass
        PyErr_Restore(kind, error, trace)
    return mine


cdef void* freelist_refill(Freelist* self, Magazine* mine, double* since) noexcept nogil:
    """A pop whose magazine is empty: take `rounds` blocks from the depot, or else from an orphaned magazine."""
    cdef Stack* source = &self.stack
    cdef Stack* target
    cdef Magazine* orphan = NULL
    cdef Py_ssize_t number, grant
    cdef void* block
    if mine != NULL and not self.pinned:
        # If this fails, only the requested block is moved.
        stack_reserve(&mine.stack, &mine.lock, 2 * rounds_for(PY_SSIZE_T_MAX), 0, self.timed)
    lock(&self.lock)
    if not self.pinned and stack_count(source) == 0:
        orphan = self.magazines
        while orphan != NULL and not (orphan.orphaned and stack_count(&orphan.stack)):
            orphan = orphan.next
        if orphan != NULL:
            source = &orphan.stack
    target = &self.stack
    if mine != NULL:
        lock(&mine.lock)
        target = &mine.stack
    if self.pinned or stack_count(source) == 0:
        target.counts[<int>MISSED] += 1
        block = NULL
    else:
        target.counts[<int>REUSED] += 1
        source.top -= 1
        block = source.blocks[source.top]
        if since != NULL:
            since[0] = source.since[source.top]
        if mine != NULL:
            number = min(self.rounds - 1, stack_count(source), target.room - target.top)
            source.top -= number
            stack_copy(target, source, source.top, number)
            # Take credit for the returned block as well, which is likely to be pushed soon; but a thread that only
            # pops must not accumulate credit.
            grant = min(number + 1, max(<Py_ssize_t>0, 2 * self.rounds - target.credit))
            target.credit += grant
            self.lent += grant
            if orphan != NULL:
                source.credit -= number + 1
                self.lent -= number + 1
            stack_update(target)
        stack_update(source)
    if mine != NULL:
        unlock(&mine.lock)
    if orphan != NULL and stack_count(&orphan.stack) == 0:
        magazine_unlink(self, orphan)
    else:
        orphan = NULL
    unlock(&self.lock)
    if orphan != NULL:
        magazine_free(orphan)
    return block


cdef Py_ssize_t reclaim_credit(Freelist* self, Magazine* mine) noexcept nogil:
    """Take back the unused credit of the other magazines. Returns what can be lent. The caller holds the lock."""
    cdef Magazine* magazine = self.magazines
    cdef Py_ssize_t unused
    while magazine != NULL:
        if magazine != mine:
            lock(&magazine.lock)
            unused = magazine.stack.credit - stack_count(&magazine.stack)
            if unused > 0:
                magazine.stack.credit -= unused
                self.lent -= unused
                stack_update(&magazine.stack)
            unlock(&magazine.lock)
        magazine = magazine.next
    return freelist_unlent(self)


cdef bint freelist_return(Freelist* self, Magazine* mine, Py_ssize_t rounds) noexcept nogil:
    """Move up to `rounds` of the coldest blocks, and their credit, to the depot."""
    cdef Py_ssize_t number
    if not stack_reserve(&self.stack, &self.lock, rounds, self.limit, self.timed):
        return False
    lock(&self.lock)
    lock(&mine.lock)
    number = min(rounds, stack_count(&mine.stack), self.stack.room - self.stack.top)
    stack_copy(&self.stack, &mine.stack, mine.stack.base, number)
    mine.stack.base += number
    mine.stack.credit -= number
    self.lent -= number
    stack_update(&mine.stack)
    unlock(&mine.lock)
    unlock(&self.lock)
    return number > 0


cdef bint freelist_make_room(Freelist* self, Magazine* mine) noexcept nogil:
    """A push found its stack at the ceiling: True if it may try again, False if the block is refused."""
    cdef Py_ssize_t limit, rounds, count, grant
    cdef bint lacks_credit
    if mine == NULL:
        if freelist_unlent(self) > 0:
            if stack_reserve(&self.stack, &self.lock, 1, self.limit, self.timed):
                return True
        self.stack.counts[<int>DISCARDED] += 1
        return False
    lock(&self.lock)
    limit = self.limit
    rounds = self.rounds
    lock(&mine.lock)
    count = stack_count(&mine.stack)
    lacks_credit = count >= mine.stack.credit
    unlock(&mine.lock)
    grant = 1
    if not self.pinned and count >= 2 * rounds:
        unlock(&self.lock)
        if freelist_return(self, mine, rounds):
            return True
    elif lacks_credit:
        grant = freelist_unlent(self)
        if grant <= 0:
            # If all magazines are full, polling every one at each push would cost more than the block is worth.
            if mine.patience > 0:
                mine.patience -= 1
            else:
                grant = reclaim_credit(self, mine)
                if grant <= 0 and self.magazines.next != NULL:
                    mine.patience = 8
        if grant > 0:
            mine.patience = 0
            grant = min(grant, rounds if self.pinned else min(rounds, 2 * rounds - mine.stack.credit))
            self.lent += grant
            lock(&mine.lock)
            mine.stack.credit += grant
            stack_update(&mine.stack)
            unlock(&mine.lock)
        unlock(&self.lock)
        if grant > 0 and stack_reserve(&mine.stack, &mine.lock, 1, limit, self.timed):
            return True
    else:
        unlock(&self.lock)
        if stack_reserve(&mine.stack, &mine.lock, 1, limit, self.timed):
            return True
    lock(&mine.lock)
    mine.stack.counts[<int>DISCARDED] += 1
    unlock(&mine.lock)
    return False


cdef bint freelist_push_depot(Freelist* self, void* block, double since) noexcept nogil:
    """A push in a thread without a magazine: allocation failed, or the thread is ending."""
    cdef Py_ssize_t unlent = 0
    cdef Stack* stack = &self.stack
    cdef bint kept = False
    if not self.pinned:
        stack_reserve(stack, &self.lock, 1, self.limit, self.timed)
    lock(&self.lock)
    if not self.pinned and stack.top < stack.room:
        unlent = freelist_unlent(self)
        if unlent <= 0:
            unlent = reclaim_credit(self, NULL)
        if unlent > 0:
            stack.blocks[stack.top] = block
            if self.timed:
                stack.since[stack.top] = since
            stack.top += 1
            kept = True
    stack.counts[<int>(RELEASED if kept else DISCARDED)] += 1
    unlock(&self.lock)
    return kept


# --- The freelist ---

cdef Freelist* freelist_new(
    Py_ssize_t limit, free_block dispose, bint pinned=False, bint timed=False
) except NULL:
    cdef Freelist* self = <Freelist*>PyMem_RawCalloc(1, sizeof(Freelist))
    if self == NULL:
        raise MemoryError()
    self.limit = limit
    self.rounds = rounds_for(limit)
    self.dispose = dispose
    self.pinned = pinned
    self.timed = timed
    self.stack.credit = limit
    if FREE_THREADED and not registry_add(self):
        PyMem_RawFree(self)
        raise MemoryError()
    return self


cdef void freelist_delete(Freelist* self) noexcept:
    cdef Magazine* magazine
    if FREE_THREADED:
        registry_remove(self)
    freelist_trim(self, PY_SSIZE_T_MAX)
    while self.magazines != NULL:
        magazine = self.magazines
        magazine_unlink(self, magazine)
        magazine_free(magazine)
    PyMem_RawFree(self.stack.blocks)
    Py_XDECREF(self.handler)
    PyMem_RawFree(self)


cdef void freelist_handle(Freelist* self, free_through dispose, PyObject* handler) noexcept:
    cdef PyObject* previous
    Py_XINCREF(handler)
    lock(&self.lock)
    previous = self.handler
    self.handler = handler
    self.dispose_through = dispose
    unlock(&self.lock)
    Py_XDECREF(previous)


cdef void freelist_dispose(Freelist* self, void* block) noexcept:
    cdef PyObject* handler
    cdef free_through dispose_through
    lock(&self.lock)
    handler = self.handler
    dispose_through = self.dispose_through
    Py_XINCREF(handler)
    unlock(&self.lock)
    if handler == NULL:
        self.dispose(block)
    else:
        dispose_through(handler, block)
        Py_DECREF(handler)


cdef Py_ssize_t freelist_take(Freelist* self, void** out, Py_ssize_t number, double before) noexcept nogil:
    cdef Magazine* magazine
    cdef Py_ssize_t taken
    lock(&self.lock)
    taken = stack_take(&self.stack, out, number, before)
    magazine = self.magazines
    while magazine != NULL and taken < number:
        lock(&magazine.lock)
        taken += stack_take(&magazine.stack, out + taken, number - taken, before)
        unlock(&magazine.lock)
        magazine = magazine.next
    unlock(&self.lock)
    return taken


cdef Py_ssize_t freelist_take_own(
    Freelist* self, void** out, Py_ssize_t number, double before
) noexcept nogil:
    cdef Magazine* mine
    cdef Py_ssize_t taken = 0
    if not FREE_THREADED:
        return stack_take(&self.stack, out, number, before)
    mine = <Magazine*>find_magazine(self.serial, self.slot)
    if mine != NULL:
        lock(&mine.lock)
        taken = stack_take(&mine.stack, out, number, before)
        unlock(&mine.lock)
    return taken


cdef Py_ssize_t freelist_discard(Freelist* self, Py_ssize_t blocks, double before) noexcept:
    cdef void* taken[64]
    cdef Py_ssize_t number, i, total = 0
    while total < blocks:
        number = freelist_take(self, taken, min(<Py_ssize_t>64, blocks - total), before)
        for i in range(number):
            freelist_dispose(self, taken[i])
        total += number
        if number == 0:
            break
    return total


cdef Py_ssize_t freelist_trim(Freelist* self, Py_ssize_t blocks) noexcept:
    return freelist_discard(self, blocks, INFINITY)


cdef Py_ssize_t freelist_resize(Freelist* self, Py_ssize_t limit) noexcept:
    cdef Magazine* magazine
    cdef Py_ssize_t over, taken, total = 0
    lock(&self.lock)
    self.limit = limit
    self.rounds = rounds_for(limit)
    self.stack.credit = limit - self.lent
    stack_update(&self.stack)
    unlock(&self.lock)
    while True:
        lock(&self.lock)
        over = -freelist_unlent(self)
        if over > 0:
            over = -reclaim_credit(self, NULL)
        magazine = self.magazines
        while magazine != NULL:
            magazine.patience = 0
            magazine = magazine.next
        unlock(&self.lock)
        if over <= 0:
            return total
        taken = freelist_trim(self, over)
        total += taken
        # Nothing is left to take if a finaliser or another thread has resized it in the meantime.
        if taken == 0:
            return total


cdef Py_ssize_t freelist_stats(Freelist* self, int64_t* counts) noexcept nogil:
    cdef Magazine* magazine
    cdef Py_ssize_t idle
    cdef int i
    lock(&self.lock)
    idle = stack_count(&self.stack)
    if counts != NULL:
        for i in range(<int>COUNTS):
            counts[i] = self.stack.counts[i]
    magazine = self.magazines
    while magazine != NULL:
        lock(&magazine.lock)
        idle += stack_count(&magazine.stack)
        if counts != NULL:
            for i in range(<int>COUNTS):
                counts[i] += magazine.stack.counts[i]
        unlock(&magazine.lock)
        magazine = magazine.next
    unlock(&self.lock)
    return idle


cdef double freelist_oldest(Freelist* self) noexcept nogil:
    cdef double oldest = INFINITY
    cdef Magazine* magazine
    lock(&self.lock)
    if self.timed and stack_count(&self.stack):
        oldest = self.stack.since[self.stack.base]
    magazine = self.magazines
    while magazine != NULL:
        lock(&magazine.lock)
        if self.timed and stack_count(&magazine.stack):
            oldest = min(oldest, magazine.stack.since[magazine.stack.base])
        unlock(&magazine.lock)
        magazine = magazine.next
    unlock(&self.lock)
    return oldest


cdef bint stack_holds(const Stack* stack, const void* block) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(stack.base, stack.top):
        if stack.blocks[i] == block:
            return True
    return False


cdef bint freelist_holds(Freelist* self, const void* block) noexcept nogil:
    cdef Magazine* magazine
    cdef bint held
    lock(&self.lock)
    held = stack_holds(&self.stack, block)
    magazine = self.magazines
    while magazine != NULL and not held:
        lock(&magazine.lock)
        held = stack_holds(&magazine.stack, block)
        unlock(&magazine.lock)
        magazine = magazine.next
    unlock(&self.lock)
    return held


cdef int stack_visit(const Stack* stack, visitproc visit, void* arg) noexcept:
    cdef Py_ssize_t i
    cdef int stopped
    for i in range(stack.base, stack.top):
        stopped = visit(<PyObject*>stack.blocks[i], arg)
        if stopped:
            return stopped
    return 0


cdef int freelist_visit(Freelist* self, visitproc visit, void* arg) noexcept:
    # The collector has stopped all other threads, and a stopped thread holds no lock.
    cdef Magazine* magazine = self.magazines
    cdef int stopped = stack_visit(&self.stack, visit, arg)
    if self.handler != NULL and not stopped:
        stopped = visit(self.handler, arg)
    while magazine != NULL and not stopped:
        stopped = stack_visit(&magazine.stack, visit, arg)
        magazine = magazine.next
    return stopped


cdef void freelist_count(Freelist* self, Count which, int64_t number) noexcept nogil:
    cdef Magazine* mine = <Magazine*>find_magazine(self.serial, self.slot)
    if mine != NULL:
        lock(&mine.lock)
        mine.stack.counts[<int>which] += number
        unlock(&mine.lock)
    else:
        lock(&self.lock)
        self.stack.counts[<int>which] += number
        unlock(&self.lock)


# --- Borrowing one block at a time, to inspect it without the lock ---

cdef void stack_borrow(Stack* stack, Borrowed* borrowed) noexcept nogil:
    # The coldest block takes the place of the borrowed one, so that no other block has to move.
    cdef Py_ssize_t at = borrowed.at
    borrowed.block = stack.blocks[at]
    stack.blocks[at] = stack.blocks[stack.base]
    if stack.since != NULL:
        borrowed.since = stack.since[at]
        stack.since[at] = stack.since[stack.base]
    stack.base += 1
    stack.credit -= 1
    stack_update(stack)


cdef bint stack_give_back(Stack* stack, Borrowed* borrowed) noexcept nogil:
    cdef Py_ssize_t at = borrowed.at
    stack.credit += 1
    if stack.base == 0:
        # It was emptied or moved in the meantime: there is no gap below the blocks.
        if stack.room - stack.top < 1:
            stack_update(stack)
            return False
        memmove(stack.blocks + 1, stack.blocks, <size_t>stack.top * sizeof(void*))
        if stack.since != NULL:
            memmove(stack.since + 1, stack.since, <size_t>stack.top * sizeof(double))
        stack.base = 1
        stack.top += 1
        at = 0
    stack.base -= 1
    if not stack.base <= at < stack.top:
        at = stack.base
    stack.blocks[stack.base] = stack.blocks[at]
    stack.blocks[at] = borrowed.block
    if stack.since != NULL:
        stack.since[stack.base] = stack.since[at]
        stack.since[at] = borrowed.since
    stack_update(stack)
    return True


cdef bint freelist_borrow(Freelist* self, Py_ssize_t index, Borrowed* borrowed) noexcept nogil:
    # The stack's credit goes down by one, so that no push can take the place of the borrowed block.
    cdef Magazine* magazine
    cdef bint found = False
    lock(&self.lock)
    if index < stack_count(&self.stack):
        borrowed.home = NULL
        borrowed.at = self.stack.base + index
        stack_borrow(&self.stack, borrowed)
        self.lent += 1
        found = True
    else:
        index -= stack_count(&self.stack)
        magazine = self.magazines
        while magazine != NULL and not found:
            lock(&magazine.lock)
            if index < stack_count(&magazine.stack):
                borrowed.home = magazine
                borrowed.serial = magazine.serial
                borrowed.at = magazine.stack.base + index
                stack_borrow(&magazine.stack, borrowed)
                found = True
            else:
                index -= stack_count(&magazine.stack)
            unlock(&magazine.lock)
            magazine = magazine.next
    unlock(&self.lock)
    return found


cdef void freelist_give_back(Freelist* self, Borrowed* borrowed) noexcept:
    cdef Magazine* magazine
    cdef bint kept = False
    lock(&self.lock)
    if borrowed.home == NULL:
        self.lent -= 1
        kept = stack_give_back(&self.stack, borrowed)
    else:
        magazine = self.magazines
        while magazine != NULL and not (magazine == borrowed.home and magazine.serial == borrowed.serial):
            magazine = magazine.next
        if magazine == NULL:
            self.lent -= 1
        else:
            lock(&magazine.lock)
            kept = stack_give_back(&magazine.stack, borrowed)
            unlock(&magazine.lock)
    if not kept:
        self.stack.counts[<int>DISCARDED] += 1
    unlock(&self.lock)
    if not kept:
        freelist_dispose(self, borrowed.block)
