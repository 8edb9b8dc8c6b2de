"""The freelist and `ObjectPool` on it."""

cimport cython
from libc.math cimport INFINITY, isfinite
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memmove

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject

from synthex_fast._clock cimport monotonic_coarse
from synthex_fast._sizeof cimport deep_sizeof
from synthex_fast._sync cimport Lock, lock, owned_by_this_thread, uniquely_referenced, unlock

from time import monotonic

from synthex_fast.errors import FactoryError, SynthexFastError, type_error, value_error

__all__ = ["Lease", "ObjectPool"]


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
      /* The thread state with this id has ended: what still runs in it gets no magazine any more. */
      static SYNTHEX_THREAD_LOCAL uint64_t synthex_ended;
      static int synthex_has_ended(void) {
          return synthex_ended == PyThreadState_GetID(PyThreadState_Get());
      }
      static synthex_thread *synthex_current_thread(void) {
          return synthex_magazines == &synthex_no_thread ? NULL : synthex_magazines;
      }
      /* From now on `variable`, a module's own, leads to this thread's magazines. */
      static void synthex_tell(synthex_thread *thread, synthex_thread **variable) {
          if (*variable == thread || thread->variable_count == 16) return;
          thread->variables[thread->variable_count++] = variable;
          *variable = thread;
      }
      static void synthex_forget(synthex_thread *thread) {
          /* A guard that goes in another thread (in a forked child, at the end of the interpreter) leaves the
             variables of its own alone: that thread runs no more, and the memory may be another's. */
          if (synthex_magazines != thread) return;
          while (thread->variable_count) *thread->variables[--thread->variable_count] = &synthex_no_thread;
          synthex_ended = PyThreadState_GetID(PyThreadState_Get());
      }
      #define synthex_own_variable() (&synthex_magazines)
      #define SYNTHEX_DEFER(o) ((void)PyUnstable_Object_EnableDeferredRefcount(o))
      #define SYNTHEX_LOAD(p) _Py_atomic_load_uint64_relaxed(p)
      #define SYNTHEX_STORE(p, v) _Py_atomic_store_uint64_relaxed(p, v)
      #define SYNTHEX_TYPE_VERSION(o) ((uint64_t)_Py_atomic_load_uint_relaxed(&Py_TYPE(o)->tp_version_tag))
    #else
      #define synthex_has_ended() 1
      #define synthex_current_thread() NULL
      #define synthex_tell(thread, variable) ((void)(thread), (void)(variable))
      #define synthex_forget(thread) ((void)(thread))
      #define synthex_own_variable() NULL
      #define SYNTHEX_DEFER(o) ((void)(o))
      #define SYNTHEX_LOAD(p) (*(p))
      #define SYNTHEX_STORE(p, v) (*(p) = (v))
      #define SYNTHEX_TYPE_VERSION(o) ((uint64_t)Py_TYPE(o)->tp_version_tag)
    #endif
    """
    bint thread_has_ended "synthex_has_ended"() noexcept
    Thread* current_thread "synthex_current_thread"() noexcept
    void tell "synthex_tell"(Thread* thread, Thread** variable) noexcept
    void forget "synthex_forget"(Thread* thread) noexcept
    Thread** own_variable "synthex_own_variable"() noexcept
    void defer_refcount "SYNTHEX_DEFER"(PyObject*) noexcept
    uint64_t load "SYNTHEX_LOAD"(uint64_t*) noexcept
    void store "SYNTHEX_STORE"(uint64_t*, uint64_t) noexcept
    # 0 where the type has none at the moment. No two types, and no two states of one, ever have the same.
    uint64_t type_version "SYNTHEX_TYPE_VERSION"(PyObject*) noexcept


cdef extern from "Python.h":
    void incref "Py_INCREF"(PyObject*) noexcept
    void decref "Py_DECREF"(PyObject*) noexcept
    # Hands on the reference that the caller holds.
    object steal "(PyObject*)"(PyObject*)
    PyObject* PyThreadState_GetDict() noexcept
    int PyDict_SetItem(PyObject*, object, object) except -1
    void PyErr_Fetch(PyObject**, PyObject**, PyObject**) noexcept
    void PyErr_Restore(PyObject*, PyObject*, PyObject*) noexcept
    ctypedef int (*Visit "visitproc")(PyObject*, void*) noexcept
    ctypedef int (*Traverse "traverseproc")(PyObject*, Visit, void*) noexcept
    ctypedef int (*Clear "inquiry")(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        Py_ssize_t tp_basicsize
        Traverse tp_traverse
        Clear tp_clear
    PyTypeObject* Py_TYPE(PyObject*) noexcept
    PyObject* _PyType_Lookup(PyTypeObject*, object) noexcept
    object call_none "PyObject_CallNoArgs"(PyObject*)
    PyObject* call_one "PyObject_CallOneArg"(PyObject*, PyObject*) noexcept
    PyObject* call_method "PyObject_VectorcallMethod"(PyObject*, PyObject**, size_t, PyObject*) noexcept
    PyObject* Py_None
    const Py_ssize_t PY_SSIZE_T_MAX


# --- a stack of blocks, the part that a freelist, a depot and a magazine share ---

cdef inline Py_ssize_t stack_count(const Stack* stack) noexcept nogil:
    return stack.top - stack.base


cdef inline void stack_settle(Stack* stack) noexcept nogil:
    """Set what follows from base, top, room and credit."""
    if stack.base == stack.top:
        stack.base = stack.top = 0
    # No sum of base and credit: a credit near the largest Py_ssize_t must not wrap.
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
    stack_settle(stack)


cdef bint stack_reserve(
    Stack* stack, Lock* guard, Py_ssize_t extra, Py_ssize_t most, bint timed
) noexcept nogil:
    """Make memory for `extra` more blocks, moving down instead of growing past twice `most`.

    Call it without the lock: an allocation may detach the thread.
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
        # Moving down only where it frees half the room keeps the cost of a push constant on average.
        if stack.room - count >= extra and (stack.base >= stack.room // 2 or stack.room // 2 >= most):
            stack_move_down(stack)
            unlock(guard)
            return True
        room = max(<Py_ssize_t>16, stack.room * 2, count + extra)
        unlock(guard)
        memory = NULL
        if room < PY_SSIZE_T_MAX // 64:
            # A line to spare at the end: no two threads' magazines meet in one.
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
            stack_settle(stack)
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
    stack_settle(stack)
    return taken


cdef void stack_copy(Stack* target, Stack* source, Py_ssize_t at, Py_ssize_t number) noexcept nogil:
    """Append source.blocks[at:at + number] to target, which has the room."""
    memcpy(target.blocks + target.top, source.blocks + at, <size_t>number * sizeof(void*))
    if target.since != NULL and source.since != NULL:
        memcpy(target.since + target.top, source.since + at, <size_t>number * sizeof(double))
    target.top += number


cdef inline Py_ssize_t freelist_unlent(const Freelist* self) noexcept nogil:
    """Blocks that the depot may still take, or lend the credit for. Negative while a resize is under way."""
    return self.limit - self.lent - stack_count(&self.stack)


cdef inline Py_ssize_t rounds_for(Py_ssize_t limit) noexcept nogil:
    # Long enough that a trip to the depot is rare, short enough that no thread sits on most of a small limit.
    return min(<Py_ssize_t>32, max(<Py_ssize_t>1, limit // 8))


# --- every freelist of the process, so that an ending thread knows which of its magazines still have one ---

cdef Lock registry_lock     # taken before a freelist's
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


# --- magazines ---

cdef void magazine_unlink(Freelist* self, Magazine* magazine) noexcept nogil:
    """Under the freelist's lock: it is the caller's alone from now on. What it counted stays."""
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
    """This thread's magazine, made or adopted if need be, or NULL where memory is short."""
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
    cdef free_block let_go
    cdef Stack* stack
    lock(&registry_lock)
    self = registry[slot]
    if self == NULL or self.serial != serial:
        # The freelist went first and took the magazine along.
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
        let_go = self.let_go
    unlock(&self.lock)
    unlock(&registry_lock)
    if magazine != NULL:
        while stack_count(stack):
            stack.top -= 1
            let_go(stack.blocks[stack.top])
        magazine_free(magazine)


cdef class ThreadGuard:
    """Lives in a thread's state dictionary and gives the thread's magazines back when that goes."""

    cdef Thread* thread

    def __dealloc__(self):
        cdef Thread* thread = self.thread
        cdef size_t slot
        if thread == NULL:
            return
        forget(thread)
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
    tell(guard.thread, own_variable())
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
        # The caller may be a deallocation in the middle of somebody's exception.
        PyErr_Fetch(&kind, &error, &trace)
        try:
            thread = this_thread()
            if thread != NULL:
                tell(thread, variable)
                mine = magazine_for(self, thread)
        except MemoryError:
            pass
        PyErr_Restore(kind, error, trace)
    return mine


cdef void* freelist_refill(Freelist* self, Magazine* mine, double* since) noexcept nogil:
    """A pop whose magazine is empty: take rounds from the depot, or else from a thread that has ended."""
    cdef Stack* source = &self.stack
    cdef Stack* target
    cdef Magazine* orphan = NULL
    cdef Py_ssize_t number, grant
    cdef void* block
    if mine != NULL and not self.pinned:
        # Without that memory the block asked for is all there is to move.
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
            # The credit of the block that leaves comes along, as it is likely to be back soon; but a thread
            # that only pops shall not heap up credit.
            grant = min(number + 1, max(<Py_ssize_t>0, 2 * self.rounds - target.credit))
            target.credit += grant
            self.lent += grant
            if orphan != NULL:
                source.credit -= number + 1
                self.lent -= number + 1
            stack_settle(target)
        stack_settle(source)
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
    """Under the lock: take back what credit the other magazines don't use. What can be lent then."""
    cdef Magazine* magazine = self.magazines
    cdef Py_ssize_t unused
    while magazine != NULL:
        if magazine != mine:
            lock(&magazine.lock)
            unused = magazine.stack.credit - stack_count(&magazine.stack)
            if unused > 0:
                magazine.stack.credit -= unused
                self.lent -= unused
                stack_settle(&magazine.stack)
            unlock(&magazine.lock)
        magazine = magazine.next
    return freelist_unlent(self)


cdef bint freelist_hand_over(Freelist* self, Magazine* mine, Py_ssize_t rounds) noexcept nogil:
    """Move up to `rounds` blocks, the coldest, and their credit to the depot."""
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
    stack_settle(&mine.stack)
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
        if freelist_hand_over(self, mine, rounds):
            return True
    elif lacks_credit:
        grant = freelist_unlent(self)
        if grant <= 0:
            # Where every thread is full, asking all of them each time would cost more than the block did.
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
            stack_settle(&mine.stack)
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
    """A push in a thread that has no magazine: memory is short, or the thread is about to end."""
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


# --- the freelist ---

cdef Freelist* freelist_new(
    Py_ssize_t limit, free_block let_go, bint pinned=False, bint timed=False
) except NULL:
    cdef Freelist* self = <Freelist*>PyMem_RawCalloc(1, sizeof(Freelist))
    if self == NULL:
        raise MemoryError()
    self.limit = limit
    self.rounds = rounds_for(limit)
    self.let_go = let_go
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
    PyMem_RawFree(self)


cdef Py_ssize_t freelist_take(Freelist* self, void** out, Py_ssize_t number, double before) noexcept nogil:
    """Take out up to `number` blocks, coldest first, that have been idle since `before` or longer.

    They are counted as discarded; the caller lets them go.
    """
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


cdef Py_ssize_t freelist_take_near(
    Freelist* self, void** out, Py_ssize_t number, double before
) noexcept nogil:
    """`freelist_take` from this thread's own blocks only."""
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


cdef Py_ssize_t freelist_let_go(Freelist* self, Py_ssize_t blocks, double before) noexcept:
    cdef void* taken[64]
    cdef Py_ssize_t number, i, total = 0
    while total < blocks:
        number = freelist_take(self, taken, min(<Py_ssize_t>64, blocks - total), before)
        for i in range(number):
            self.let_go(taken[i])
        total += number
        if number == 0:
            break
    return total


cdef Py_ssize_t freelist_trim(Freelist* self, Py_ssize_t blocks) noexcept:
    return freelist_let_go(self, blocks, INFINITY)


cdef Py_ssize_t freelist_resize(Freelist* self, Py_ssize_t limit) noexcept:
    cdef Magazine* magazine
    cdef Py_ssize_t over, gone, total = 0
    lock(&self.lock)
    self.limit = limit
    self.rounds = rounds_for(limit)
    self.stack.credit = limit - self.lent
    stack_settle(&self.stack)
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
        gone = freelist_trim(self, over)
        total += gone
        # Only a resize that runs in a finaliser, or in another thread, leaves nothing to let go here.
        if gone == 0:
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
    """Since when the block has been idle that has been so longest, or infinity."""
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


cdef int stack_visit(const Stack* stack, Visit visit, void* arg) noexcept:
    cdef Py_ssize_t i
    cdef int stopped
    for i in range(stack.base, stack.top):
        stopped = visit(<PyObject*>stack.blocks[i], arg)
        if stopped:
            return stopped
    return 0


cdef int freelist_visit(Freelist* self, Visit visit, void* arg) noexcept:
    """For the garbage collector. It has stopped all other threads, none of them under a lock."""
    cdef Magazine* magazine = self.magazines
    cdef int stopped = stack_visit(&self.stack, visit, arg)
    while magazine != NULL and not stopped:
        stopped = stack_visit(&magazine.stack, visit, arg)
        magazine = magazine.next
    return stopped


cdef void freelist_note(Freelist* self, Count which, int64_t number) noexcept nogil:
    cdef Magazine* mine = <Magazine*>find_magazine(self.serial, self.slot)
    if mine != NULL:
        lock(&mine.lock)
        mine.stack.counts[<int>which] += number
        unlock(&mine.lock)
    else:
        lock(&self.lock)
        self.stack.counts[<int>which] += number
        unlock(&self.lock)


cdef struct Borrowed:
    void* block
    double since
    Magazine* home            # NULL: the depot
    uint64_t serial           # of the magazine
    Py_ssize_t at


cdef void stack_borrow(Stack* stack, Borrowed* borrowed) noexcept nogil:
    # The coldest block takes the place of the borrowed one, so that nothing has to move.
    cdef Py_ssize_t at = borrowed.at
    borrowed.block = stack.blocks[at]
    stack.blocks[at] = stack.blocks[stack.base]
    if stack.since != NULL:
        borrowed.since = stack.since[at]
        stack.since[at] = stack.since[stack.base]
    stack.base += 1
    stack.credit -= 1
    stack_settle(stack)


cdef bint stack_give_back(Stack* stack, Borrowed* borrowed) noexcept nogil:
    cdef Py_ssize_t at = borrowed.at
    stack.credit += 1
    if stack.base == 0:
        # It was emptied in between, or its memory is another one.
        if stack.room - stack.top < 1:
            stack_settle(stack)
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
    stack_settle(stack)
    return True


cdef bint freelist_borrow(Freelist* self, Py_ssize_t index, Borrowed* borrowed) noexcept nogil:
    """Take out the idle block at this index, over all stacks; `freelist_give_back` finds its place kept."""
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
        self.let_go(borrowed.block)


# --- the pool of objects ---

cdef Py_ssize_t SAMPLES = 64      # objects weighed for one reading of nbytes
cdef Py_ssize_t DUE = 8           # idle objects that one acquire or release lets go because their time is up

cdef void let_object_go(void* block) noexcept:
    decref(<PyObject*>block)


cdef Py_ssize_t size_argument(str name, object value, Py_ssize_t lowest) except -1:
    cdef Py_ssize_t size
    allowed = f"an integer from {lowest} to {PY_SSIZE_T_MAX}"
    if not hasattr(value, "__index__"):
        raise type_error(name, value, allowed)
    try:
        size = value
    except OverflowError:
        raise value_error(name, value, allowed) from None
    if size < lowest:
        raise value_error(name, value, allowed)
    return size


cdef double seconds_argument(str name, object value) except -1.0:
    cdef double seconds
    allowed = "a positive number of seconds or None"
    if not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise type_error(name, value, allowed)
    seconds = value
    if not seconds > 0.0:
        raise value_error(name, value, allowed)
    return seconds


cdef Py_ssize_t weigh(object obj) noexcept:
    cdef bint exhausted = False
    try:
        return deep_sizeof(obj, &exhausted)
    except Exception:
        # An object that can't say what it holds must not stop the others from being freed.
        return Py_TYPE(<PyObject*>obj).tp_basicsize


cdef object pool_make(ObjectPool pool):
    """A new object, counted as created."""
    if not pool.ready:
        refuse(pool, pool)
    obj = call_none(<PyObject*>pool.factory)
    if obj is None:
        raise FactoryError("factory must return an object, not None")
    freelist_note(pool.idle, MADE, 1)
    if FREE_THREADED and not owned_by_this_thread(<PyObject*>pool):
        # Two threads that count one object's references pass its cache line to and fro. From now on neither
        # counts, and the garbage collector frees the pool.
        defer_refcount(<PyObject*>pool)
    return obj


cdef int pool_fill(ObjectPool pool) except -1:
    """Make one object and keep it."""
    obj = pool_make(pool)
    if pool_keep(pool, <PyObject*>obj):
        freelist_note(pool.idle, RELEASED, -1)
    # A factory that releases objects itself may have filled the pool; anything else is want of memory.
    elif freelist_stats(pool.idle, NULL) < pool.idle.limit:
        raise MemoryError()
    return 0


cdef void pool_let_due_go(ObjectPool pool, double now) noexcept:
    cdef void* due[8]
    cdef Py_ssize_t i
    cdef Py_ssize_t number = freelist_take_near(pool.idle, due, DUE, now - pool.idle_seconds)
    for i in range(number):
        decref(<PyObject*>due[i])


cdef inline void pool_settle(ObjectPool pool) noexcept:
    if pool.timed:
        freelist_let_go(pool.idle, PY_SSIZE_T_MAX, monotonic_coarse() - pool.idle_seconds)


cdef void pool_clear(ObjectPool pool) noexcept:
    # As many as there are now: a finaliser that releases objects could keep this busy for ever.
    freelist_trim(pool.idle, freelist_stats(pool.idle, NULL))


cdef object pool_acquire_timed(ObjectPool pool):
    cdef double now = monotonic_coarse()
    cdef double since
    cdef Py_ssize_t due = 0
    cdef PyObject* obj
    pool_let_due_go(pool, now)
    while due < DUE:
        obj = <PyObject*>freelist_pop_as(pool.idle, &since, True)
        if obj == NULL:
            break
        if since <= now - pool.idle_seconds:
            # So are all the colder ones; they go a few at a time.
            due += 1
            freelist_note(pool.idle, REUSED, -1)
            freelist_note(pool.idle, DISCARDED, 1)
            decref(obj)
        elif likely(uniquely_referenced(obj)):
            return steal(obj)
        else:
            pool_let_alias_go(pool, obj)
    return pool_make(pool)


cdef void pool_let_alias_go(ObjectPool pool, PyObject* obj) noexcept:
    freelist_note(pool.idle, REUSED, -1)
    # The collector may hand an object of this thread to another one; that is no fault of the caller's.
    freelist_note(pool.idle, ALIASED if owned_by_this_thread(obj) else DISCARDED, 1)
    decref(obj)


cdef object pool_acquire(ObjectPool pool):
    cdef PyObject* obj
    if unlikely(pool.timed):
        return pool_acquire_timed(pool)
    while True:
        # The last one spared: in `for ...: x = pool.acquire(); ...; pool.release(x)` the name still holds it.
        obj = <PyObject*>freelist_pop_as(pool.idle, NULL, True)
        if unlikely(obj == NULL):
            return pool_make(pool)
        if likely(uniquely_referenced(obj)):
            return steal(obj)
        pool_let_alias_go(pool, obj)


cdef bint has_reset(ObjectPool pool, PyObject* obj, uint64_t version) except -1:
    """Whether the type has a `reset`; what was found is kept for as long as the type stays as it is."""
    cdef PyObject* found = _PyType_Lookup(Py_TYPE(obj), "reset")
    cdef bint has = found != NULL and found != Py_None
    if version != 0 and version == type_version(obj):
        store(&pool.known, version << 1 | has)
    return has


cdef int pool_reset(ObjectPool pool, PyObject* obj) except -1:
    cdef uint64_t version, known
    cdef PyObject* args[1]
    cdef PyObject* answer
    if pool.calls_reset:
        answer = call_one(<PyObject*>pool.reset, obj)
    else:
        version = type_version(obj)
        known = load(&pool.known)
        if not ((known & 1) if known >> 1 == version and version != 0 else has_reset(pool, obj, version)):
            return 0
        args[0] = obj
        answer = call_method(<PyObject*>reset_name, args, 1, NULL)
    if answer == NULL:
        freelist_note(pool.idle, DISCARDED, 1)
        return -1
    decref(answer)
    return 0


cdef inline bint pool_keep(ObjectPool pool, PyObject* obj) noexcept:
    """Make the object idle if there is room; the caller keeps its reference."""
    cdef bint kept
    incref(obj)
    if unlikely(pool.timed):
        kept = pool_push_timed(pool, obj)
    else:
        kept = freelist_push(pool.idle, obj)
    if unlikely(not kept):
        decref(obj)
    return kept


cdef bint pool_release(ObjectPool pool, object obj) except -1:
    cdef PyObject* block = <PyObject*>obj
    # What matches is known to have no reset. A pool that was given one, or was never set up, knows no type.
    if unlikely(load(&pool.known) != type_version(block) << 1):
        if obj is None or not pool.ready:
            refuse(pool, obj)
        pool_reset(pool, block)
    if FREE_THREADED and not owned_by_this_thread(block):
        freelist_note(pool.idle, DISCARDED, 1)
        return False
    return pool_keep(pool, block)


cdef bint pool_push_timed(ObjectPool pool, PyObject* obj) noexcept:
    cdef double now = monotonic_coarse()
    cdef bint kept
    pool_let_due_go(pool, now)
    kept = freelist_push_since(pool.idle, obj, True, now)
    if kept and not pool.scheduled:
        pool.scheduled = True
        try:
            from synthex_fast._sweeper import schedule
            schedule(pool, now + pool.idle_seconds)
        except BaseException:
            # No memory or no new thread: the next release tries again, and operations let go what is due.
            pool.scheduled = False
    return kept


cdef int refuse(ObjectPool pool, object obj) except -1:
    if obj is None:
        raise type_error("obj", None, "an object that the pool handed out")
    raise SynthexFastError("this pool was never set up: a subclass did not call ObjectPool.__init__")


cdef str reset_name = "reset"


cdef class ObjectPool:
    """ObjectPool(factory, max_size=1000, *, prefill=None, reset=None, max_idle=None, name=None)\n--\n
    Keep objects that are costly to make and hand them out again.

    `factory()` makes an object when none is idle; at most `max_size` objects are kept idle, over all threads.
    `prefill` objects are made at once (None: the lesser of 100 and `max_size`). `reset(obj)` runs when an
    object is released; None calls ``obj.reset()`` where the type has one. An object idle for more than
    `max_idle` seconds is let go at the pool's next operation or by a background sweep (None: never). `name`
    is for the reader of `stats`.

    An object to which anyone else holds a strong reference is never handed out: `acquire` lets it go and
    takes another one. Releasing an object twice does no harm by that. An acquired object that is simply
    dropped is freed as any other; it need not be released.

    Without the GIL each thread has a magazine of its own (Bonwick and Adams, "Magazines and Vmem", USENIX
    2001), and an object is reused by the thread that made it: anywhere else `release` lets it go. Once a
    second thread uses the pool, the garbage collector, not the last reference, frees it. Objects with weak
    references to them are not reused there.

    `acquire` and `release` take constant time and no lock that another thread waits for. Wrong arguments
    raise `ArgumentTypeError` or `ArgumentValueError`, a factory that returns None `FactoryError`.

    >>> from synthex_fast import ObjectPool
    >>> pool = ObjectPool(bytearray, max_size=10, prefill=1)
    >>> with pool.lease() as buffer:
    ...     buffer += b"text"
    >>> len(pool), pool.stats["reused"]
    (1, 1)
    """

    __class_getitem__ = classmethod(type(list[int]))

    def __cinit__(self, *args, **kwargs):
        self.idle_seconds = INFINITY
        self.known = 1
        self.idle = freelist_new(0, let_object_go, True, False)

    def __init__(self, factory, max_size=1000, *, prefill=None, reset=None, max_idle=None, name=None):
        cdef Py_ssize_t limit, filled, _i
        cdef double idle_seconds = INFINITY
        if self.ready:
            raise SynthexFastError("a pool can be set up only once")
        if not callable(factory):
            raise type_error("factory", factory, "callable")
        limit = size_argument("max_size", max_size, 1)
        if prefill is None:
            filled = min(<Py_ssize_t>100, limit)
        else:
            filled = size_argument("prefill", prefill, 0)
            if filled > limit:
                raise value_error("prefill", prefill, f"no more than max_size, which is {limit}")
        if reset is not None and not callable(reset):
            raise type_error("reset", reset, "callable or None")
        if max_idle is not None:
            idle_seconds = seconds_argument("max_idle", max_idle)
        if name is not None and not isinstance(name, str):
            raise type_error("name", name, "a string or None")
        freelist_resize(self.idle, limit)
        self.factory = factory
        self.reset = reset
        self.calls_reset = reset is not None
        self.idle_seconds = idle_seconds
        # Nothing is in it yet, in any thread.
        self.timed = self.idle.timed = isfinite(idle_seconds)
        self.name = name
        self.ready = True
        try:
            for _i in range(filled):
                pool_fill(self)
        except BaseException:
            pool_clear(self)
            self.ready = False
            raise

    def __dealloc__(self):
        if self.idle != NULL:
            freelist_delete(self.idle)

    # Without keywords these are METH_NOARGS and METH_O: the interpreter packs no arguments for them.
    @cython.always_allow_keywords(False)
    def acquire(self):
        """Hand out an idle object, or a new one. O(1).

        What the factory raises is passed on, with the pool unchanged; `FactoryError` where it returns None.

        >>> pool = ObjectPool(dict, prefill=0)
        >>> pool.acquire()
        {}
        """
        return pool_acquire(self)

    @cython.always_allow_keywords(False)
    def release(self, obj, /):
        """Take an object back, after its reset: True where it is kept, False where the pool is full. O(1).

        Where the reset raises, the object is let go and the error passed on. Without the GIL an object that
        another thread made is let go too.

        >>> pool = ObjectPool(dict, max_size=1, prefill=0)
        >>> pool.release(pool.acquire()), pool.release({})
        (True, False)
        """
        return pool_release(self, obj)

    @cython.always_allow_keywords(False)
    def lease(self):
        """A context manager: an object on entry, released on exit, also when the body raises.

        >>> pool = ObjectPool(list, prefill=0)
        >>> with pool.lease() as items:
        ...     items.append(1)
        >>> len(pool)
        1
        """
        cdef Lease lease = Lease.__new__(Lease)
        lease.pool = self
        return lease

    def resize(self, max_size):
        """Change how many idle objects may be kept; those over it go, coldest first. O(objects let go).

        >>> pool = ObjectPool(list, prefill=10)
        >>> pool.resize(4)
        >>> len(pool), pool.max_size
        (4, 4)
        """
        freelist_resize(self.idle, size_argument("max_size", max_size, 1))

    def clear(self):
        """Let go all idle objects, those of other threads included. O(idle objects).

        >>> pool = ObjectPool(list)
        >>> pool.clear()
        >>> len(pool)
        0
        """
        pool_clear(self)

    def trim(self, nbytes):
        """Let idle objects go, coldest first, until about `nbytes` bytes are free; the estimated bytes freed.

        O(objects let go). The protocol by which a memory governor shares out its limit.

        >>> pool = ObjectPool(lambda: bytearray(1000), prefill=10)
        >>> 3000 <= pool.trim(3000) <= 5000, len(pool)
        (True, 7)
        """
        cdef Py_ssize_t wanted = size_argument("nbytes", nbytes, 0)
        cdef Py_ssize_t left, freed = 0
        cdef void* taken[1]
        pool_settle(self)
        left = freelist_stats(self.idle, NULL)
        while freed < wanted and left > 0 and freelist_take(self.idle, taken, 1, INFINITY):
            left -= 1
            freed += weigh(steal(<PyObject*>taken[0]))
        return freed

    def _sweep(self, double budget, now=None):
        """For the sweeper: let go what has been idle for too long, for at most `budget` seconds.

        When to come again, on the scale of ``time.monotonic()``; infinity for not before it is told.
        """
        cdef double stop = monotonic() + budget
        cdef double at = monotonic_coarse() if now is None else now
        cdef double due
        while freelist_let_go(self.idle, DUE, at - self.idle_seconds) == DUE:
            if monotonic() > stop:
                return at
        # A release from here on finds the pool unscheduled and schedules it, at worst once too often.
        self.scheduled = False
        due = freelist_oldest(self.idle) + self.idle_seconds
        if due != INFINITY:
            self.scheduled = True
        return due

    def __len__(self):
        pool_settle(self)
        return freelist_stats(self.idle, NULL)

    def __bool__(self):
        # An empty pool is still a pool: `pool or default` must not depend on what is idle.
        return True

    def __repr__(self):
        named = "" if self.name is None else f" {self.name!r}"
        return f"<{type(self).__name__}{named}: {len(self)} of {self.max_size} idle>"

    @property
    def max_size(self):
        """How many idle objects may be kept."""
        return self.idle.limit

    @property
    def max_idle(self):
        """Seconds after which an idle object is let go, or None."""
        return self.idle_seconds if self.timed else None

    @property
    def nbytes(self):
        """What the idle objects hold, in bytes. Up to 64 of them are weighed and stand for the rest.

        >>> pool = ObjectPool(lambda: bytearray(1000), prefill=10)
        >>> 10_000 <= pool.nbytes <= 12_000
        True
        """
        cdef Py_ssize_t number, weighed = 0, total = 0
        cdef Py_ssize_t i
        cdef double stride
        cdef Borrowed borrowed
        pool_settle(self)
        number = freelist_stats(self.idle, NULL)
        stride = max(1.0, <double>number / SAMPLES)
        for i in range(min(number, SAMPLES)):
            if not freelist_borrow(self.idle, <Py_ssize_t>(i * stride), &borrowed):
                break
            total += weigh(<object>borrowed.block)
            weighed += 1
            freelist_give_back(self.idle, &borrowed)
        if weighed == 0:
            return 0
        return total if weighed == number else <Py_ssize_t>(<double>total / weighed * number)

    @property
    def stats(self):
        """Counts since the pool was made, exact when threads are at rest.

        `created` objects made, `reused` acquisitions served by an idle object, `released` objects taken back,
        `discarded` objects let go instead (no room, a reset that raised, another thread's, idle too long,
        cleared, trimmed), `aliased` objects let go because somebody still held them, `pool_size` idle objects
        now, `reuse_rate` the part of the objects handed out or made that was reused.

        >>> pool = ObjectPool(list, prefill=1)
        >>> pool.release(pool.acquire())
        True
        >>> pool.stats["created"], pool.stats["reused"], pool.stats["reuse_rate"]
        (1, 1, 0.5)
        """
        cdef int64_t counts[6]
        cdef int64_t made, reused
        cdef Py_ssize_t idle
        pool_settle(self)
        idle = freelist_stats(self.idle, counts)
        made = counts[<int>MADE]
        reused = counts[<int>REUSED]
        return {
            "created": made,
            "reused": reused,
            "released": counts[<int>RELEASED],
            "discarded": counts[<int>DISCARDED],
            "aliased": counts[<int>ALIASED],
            "pool_size": idle,
            "reuse_rate": <double>reused / <double>max(<int64_t>1, made + reused),
        }


@cython.final
@cython.freelist(16)
cdef class Lease:
    """What `ObjectPool.lease` returns. Leaving it twice is harmless; once left it may be entered again."""

    __class_getitem__ = classmethod(type(list[int]))

    @cython.always_allow_keywords(False)
    def __enter__(self):
        cdef ObjectPool pool = self.pool
        cdef bint free
        if self.leased is not None:
            raise SynthexFastError("this lease holds an object already")
        obj = pool_acquire(pool) if type(pool) is ObjectPool else pool.acquire()
        with cython.critical_section(self):
            free = self.leased is None
            if free:
                self.leased = obj
        if free:
            return obj
        # Another thread entered it at the same time.
        pool.release(obj)
        raise SynthexFastError("this lease holds an object already")

    def __exit__(self, kind=None, error=None, trace=None):
        cdef ObjectPool pool = self.pool
        with cython.critical_section(self):
            obj = self.leased
            self.leased = None
        if obj is None:
            return
        if type(pool) is ObjectPool:
            pool_release(pool, obj)
        else:
            pool.release(obj)


# Cython's own traversal knows the pool's Python fields; the idle objects lie in C memory.
cdef Traverse traverse_fields = (<PyTypeObject*>ObjectPool).tp_traverse
cdef Clear clear_fields = (<PyTypeObject*>ObjectPool).tp_clear


cdef int traverse_pool(PyObject* self, Visit visit, void* arg) noexcept:
    cdef int stopped = traverse_fields(self, visit, arg)
    # A collection may come between the allocation of the pool and that of its freelist.
    if stopped or (<ObjectPool>self).idle == NULL:
        return stopped
    return freelist_visit((<ObjectPool>self).idle, visit, arg)


cdef int clear_pool(PyObject* self) noexcept:
    if (<ObjectPool>self).idle != NULL:
        pool_clear(<ObjectPool>self)
    return clear_fields(self)


(<PyTypeObject*>ObjectPool).tp_traverse = traverse_pool
(<PyTypeObject*>ObjectPool).tp_clear = clear_pool
