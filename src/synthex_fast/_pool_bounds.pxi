# Part of `_pool.pyx`: bounded pools, which limit how many objects are in use.
#
# A slot is the right to use one object. `taken` counts the slots that acquisitions and objects in use hold, and those
# passed to a waiter that has not run yet. A release passes its slot to the waiter that came first, so `taken` doesn't
# change and no later acquisition can take it; without a waiter the slot becomes free.
#
# `used` is a hash set of the objects in use, by address. Its references tell an object of the pool from any other and a
# first release from a second; and the object to which nothing else refers was dropped without a release.
#
# A waiter in the queue is owned by it. Whoever unlinks a waiter takes that reference over and decides what becomes of
# it: the slot (GRANTED), or nothing (OUTSIDE). Waiting ends once, whatever else happens at the same time: a waiter that
# times out, is interrupted or cancelled finds itself either still queued, or granted a slot that it has to pass on.
#
# The lock guards all of a `Bounds`, and nothing is allocated or released under it. A forked child has none of the
# parent's other threads: what they held and waited for is forgotten at its first use of the pool.

cdef enum:
    OUTSIDE             # not in the queue, and without a slot
    QUEUED
    GRANTED             # holds a slot

# While somebody waits, objects that were dropped without a release are looked for this often.
cdef double LOOK_SECONDS = 1.0
cdef str ALLOWED_TIMEOUT = "a number of seconds, 0 or more, or None"


@cython.final
@cython.internal
cdef class Waiter:
    """A thread or a task that waits for a slot."""

    cdef PyObject* preceding    # in the queue: borrowed
    cdef PyObject* following
    cdef int state              # guarded by the lock of the pool's bounds
    cdef object gate            # a thread's: a lock that opens when the slot comes
    cdef object future          # a task's
    cdef object loop


cdef double timeout_seconds(object timeout) except? -1.0:
    cdef double number
    if timeout is None:
        return INFINITY
    number = real("timeout", timeout, ALLOWED_TIMEOUT)
    # NaN fails the comparison; an int that no double holds is not the infinity it was read as.
    if not number >= 0.0 or (number == INFINITY and timeout != INFINITY):
        raise value_error("timeout", timeout, ALLOWED_TIMEOUT)
    return number


# --- The set of objects in use ---

cdef inline size_t place_of(const PyObject* obj, size_t mask) noexcept nogil:
    cdef uint64_t mixed = (<uint64_t><size_t>obj >> 4) * <uint64_t>0x9E3779B97F4A7C15
    return <size_t>(mixed >> 32) & mask


cdef void used_add(Bounds* bounds, PyObject* obj) noexcept nogil:
    """The caller passes a reference on, holds the lock, and has made room."""
    cdef size_t mask = bounds.room - 1
    cdef size_t i = place_of(obj, mask)
    while bounds.used[i] != NULL:
        i = (i + 1) & mask
    bounds.used[i] = obj
    bounds.number += 1


cdef void used_remove_at(Bounds* bounds, size_t i) noexcept nogil:
    """Empty that place and close the gap. The caller holds the lock and takes the reference over."""
    cdef size_t mask = bounds.room - 1
    cdef size_t j = i
    cdef size_t k
    while True:
        j = (j + 1) & mask
        if bounds.used[j] == NULL:
            break
        k = place_of(bounds.used[j], mask)
        # The object at j may move to i unless its own place is after i.
        if (k <= i or k > j) if i <= j else (j < k <= i):
            bounds.used[i] = bounds.used[j]
            i = j
    bounds.used[i] = NULL
    bounds.number -= 1


cdef bint used_remove(Bounds* bounds, const PyObject* obj) noexcept nogil:
    cdef size_t mask, i
    cdef bint found = False
    lock(&bounds.lock)
    if bounds.room:
        mask = bounds.room - 1
        i = place_of(obj, mask)
        while bounds.used[i] != NULL and bounds.used[i] != obj:
            i = (i + 1) & mask
        found = bounds.used[i] != NULL
        if found:
            used_remove_at(bounds, i)
    unlock(&bounds.lock)
    return found


cdef int used_reserve(Bounds* bounds) except -1:
    """Make room for the object of every slot taken. It stays: the set never shrinks."""
    cdef size_t room, need, i
    cdef PyObject** used
    cdef PyObject** old
    while True:
        lock(&bounds.lock)
        need = 2 * <size_t>bounds.taken
        room = bounds.room
        unlock(&bounds.lock)
        if need <= room:
            return 0
        room = max(<size_t>16, room)
        while room < need:
            room *= 2
        used = <PyObject**>PyMem_RawCalloc(room, sizeof(PyObject*))
        if used == NULL:
            raise MemoryError()
        old = used
        lock(&bounds.lock)
        if bounds.room < room:
            old = bounds.used
            need = bounds.room
            bounds.used = used
            bounds.room = room
            bounds.number = 0
            for i in range(need):
                if old[i] != NULL:
                    used_add(bounds, old[i])
        unlock(&bounds.lock)
        PyMem_RawFree(old)


# --- Slots and the queue ---

cdef Bounds* bounds_new(Py_ssize_t most) except NULL:
    cdef Bounds* bounds = <Bounds*>PyMem_RawCalloc(1, sizeof(Bounds))
    if bounds == NULL:
        raise MemoryError()
    bounds.most = most
    bounds.fork = forks_seen
    return bounds


cdef void bounds_clear(Bounds* bounds) noexcept:
    """Forget all objects and waiters."""
    cdef PyObject** used
    cdef PyObject* first
    cdef PyObject* following
    cdef size_t room, i
    lock(&bounds.lock)
    used = bounds.used
    room = bounds.room
    first = following = bounds.first
    while following != NULL:
        (<Waiter>following).state = OUTSIDE
        following = (<Waiter>following).following
    bounds.used = NULL
    bounds.room = 0
    bounds.first = bounds.last = NULL
    bounds.number = bounds.taken = bounds.waiting = 0
    unlock(&bounds.lock)
    for i in range(room):
        Py_XDECREF(used[i])
    PyMem_RawFree(used)
    while first != NULL:
        following = (<Waiter>first).following
        Py_DECREF(first)
        first = following


cdef inline Bounds* bounds_of(ObjectPool pool) noexcept:
    """The pool's bounds; in a forked child, at their first use, as if nothing were in use."""
    cdef Bounds* bounds = pool.bounds
    if unlikely(bounds.fork != forks_seen):
        bounds.fork = forks_seen
        bounds_clear(bounds)
    return bounds


cdef int bounds_visit(const Bounds* bounds, visitproc visit, void* arg) noexcept:
    cdef size_t i
    cdef int stopped
    cdef PyObject* waiter = bounds.first
    for i in range(bounds.room):
        if bounds.used[i] != NULL:
            stopped = visit(bounds.used[i], arg)
            if stopped:
                return stopped
    while waiter != NULL:
        stopped = visit(waiter, arg)
        if stopped:
            return stopped
        waiter = (<Waiter>waiter).following
    return 0


cdef bint slot_take(Bounds* bounds) noexcept:
    """Take a free slot, unless somebody has waited for one."""
    cdef bint free
    lock(&bounds.lock)
    free = bounds.taken < bounds.most and bounds.first == NULL
    if free:
        bounds.taken += 1
    unlock(&bounds.lock)
    return free


cdef bint slot_take_or_queue(Bounds* bounds, Waiter waiter) noexcept:
    """Take a free slot, or join the queue."""
    cdef bint free
    lock(&bounds.lock)
    free = bounds.taken < bounds.most and bounds.first == NULL
    if free:
        bounds.taken += 1
    else:
        Py_INCREF(<PyObject*>waiter)
        waiter.state = QUEUED
        waiter.preceding = bounds.last
        waiter.following = NULL
        if bounds.last != NULL:
            (<Waiter>bounds.last).following = <PyObject*>waiter
        else:
            bounds.first = <PyObject*>waiter
        bounds.last = <PyObject*>waiter
        bounds.waiting += 1
    unlock(&bounds.lock)
    return free


cdef void queue_unlink(Bounds* bounds, PyObject* waiter) noexcept:
    """The caller holds the lock and takes the queue's reference over."""
    cdef PyObject* preceding = (<Waiter>waiter).preceding
    cdef PyObject* following = (<Waiter>waiter).following
    if preceding != NULL:
        (<Waiter>preceding).following = following
    else:
        bounds.first = following
    if following != NULL:
        (<Waiter>following).preceding = preceding
    else:
        bounds.last = preceding
    (<Waiter>waiter).preceding = (<Waiter>waiter).following = NULL
    bounds.waiting -= 1


cdef bint queue_leave(Bounds* bounds, Waiter waiter) noexcept:
    """Leave the queue. False if the waiter was not in it (any more)."""
    cdef bint queued
    lock(&bounds.lock)
    queued = waiter.state == QUEUED
    if queued:
        queue_unlink(bounds, <PyObject*>waiter)
        waiter.state = OUTSIDE
    unlock(&bounds.lock)
    if queued:
        Py_DECREF(<PyObject*>waiter)
    return queued


cdef bint slot_claim(Bounds* bounds, Waiter waiter) noexcept:
    """Take over the slot that the waiter was granted, if it was."""
    cdef bint granted
    lock(&bounds.lock)
    granted = waiter.state == GRANTED
    if granted:
        waiter.state = OUTSIDE
    unlock(&bounds.lock)
    return granted


cdef void slot_give_up(Bounds* bounds, Waiter waiter) noexcept:
    """The waiter won't use a slot: leave the queue, or pass the slot on that has come in the meantime."""
    if not queue_leave(bounds, waiter) and slot_claim(bounds, waiter):
        slot_give(bounds)


cdef void slot_give(Bounds* bounds) noexcept:
    """Free a slot, and pass it to the waiter that came first, if any."""
    lock(&bounds.lock)
    # In a forked child, the slot may be one that the parent gave.
    if bounds.taken > 0:
        bounds.taken -= 1
    unlock(&bounds.lock)
    slots_pass_on(bounds)


cdef void slots_pass_on(Bounds* bounds) noexcept:
    """Pass free slots to those who wait."""
    cdef PyObject* first
    cdef int woken
    while True:
        lock(&bounds.lock)
        first = bounds.first if bounds.taken < bounds.most else NULL
        if first != NULL:
            queue_unlink(bounds, first)
            (<Waiter>first).state = GRANTED
            bounds.taken += 1
        unlock(&bounds.lock)
        if first == NULL:
            return
        woken = waiter_wake(<Waiter>first)
        if woken > 0:
            Py_DECREF(first)
            continue
        # Its loop was closed: the next one gets the slot. Or allocation failed: the next operation tries again.
        lock(&bounds.lock)
        if (<Waiter>first).state == GRANTED and bounds.taken > 0:
            bounds.taken -= 1
            (<Waiter>first).state = OUTSIDE
            if woken < 0:
                (<Waiter>first).state = QUEUED
                (<Waiter>first).following = bounds.first
                if bounds.first != NULL:
                    (<Waiter>bounds.first).preceding = first
                else:
                    bounds.last = first
                bounds.first = first
                bounds.waiting += 1
                first = NULL
        unlock(&bounds.lock)
        Py_XDECREF(first)
        if woken < 0:
            return


cdef int waiter_wake(Waiter waiter) noexcept:
    """1 if it will run, 0 if its event loop was closed, -1 if allocation failed."""
    cdef int woken = 1
    cdef PyObject* error
    cdef PyObject* value
    cdef PyObject* trace
    # A release may be part of handling an exception.
    PyErr_Fetch(&error, &value, &trace)
    try:
        if waiter.gate is not None:
            waiter.gate.release()
        else:
            if running_loop() is waiter.loop:
                settle(waiter.future)
            else:
                waiter.loop.call_soon_threadsafe(settle, waiter.future)
    except MemoryError:
        woken = -1
    except BaseException as failure:
        woken = 0
        if waiter.loop is None or not waiter.loop.is_closed():
            report_unraisable(failure, waiter.loop)
    PyErr_Restore(error, value, trace)
    return woken


cdef object running_loop():
    """The event loop that runs in this thread, or None."""
    asyncio = modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


def settle(future):
    if not future.done():
        future.set_result(None)


def look(reference, double end):
    """For `loop.call_at`: the task of this acquisition has waited for some time, or long enough."""
    cdef Acquisition acquisition = reference()
    cdef Waiter waiter = None if acquisition is None else acquisition.waiter
    cdef Bounds* bounds
    if waiter is None:
        return
    bounds = bounds_of(acquisition.pool)
    acquisition.timer = None
    if waiter.loop.time() >= end:
        if queue_leave(bounds, waiter):
            settle(waiter.future)
        return
    bounds_reclaim(acquisition.pool)
    acquisition.look_again(end)


cdef bint bounds_reclaim(ObjectPool pool) noexcept:
    """Discard the objects in use that were dropped without a release. Whether there were any. O(max_in_use)."""
    cdef Bounds* bounds = pool.bounds
    cdef PyObject* obj
    cdef size_t i
    cdef bint any_found = False
    while True:
        obj = NULL
        lock(&bounds.lock)
        for i in range(bounds.room):
            if bounds.used[i] != NULL and is_unshared(bounds.used[i]):
                obj = bounds.used[i]
                used_remove_at(bounds, i)
                break
        unlock(&bounds.lock)
        if obj == NULL:
            return any_found
        any_found = True
        freelist_count(pool.idle, DISCARDED, 1)
        freelist_dispose(pool.idle, obj)
        slot_give(bounds)


cdef int raise_exhausted(ObjectPool pool, double timeout) except -1:
    waited = f", none was released within {timeout:g} s" if timeout > 0 else ""
    raise PoolExhaustedError(f"all objects that may be in use are ({pool.bounds.most}){waited}")


# --- Acquire and release ---

cdef object bounded_acquire(ObjectPool pool, double timeout):
    cdef Bounds* bounds = bounds_of(pool)
    if not slot_try(pool):
        if timeout <= 0:
            raise_exhausted(pool, timeout)
        slot_wait(pool, bounds, timeout)
    return bounded_fill(pool)


cdef bint slot_try(ObjectPool pool) noexcept:
    """Take a slot without waiting, if there is one."""
    cdef Bounds* bounds = bounds_of(pool)
    if likely(slot_take(bounds)):
        return True
    # Slots may be free although somebody waits, if a waiter could not be woken.
    slots_pass_on(bounds)
    bounds_reclaim(pool)
    return slot_take(bounds)


cdef object bounded_fill(ObjectPool pool):
    """An object for a slot that has been taken; gives the slot back if that fails."""
    cdef Bounds* bounds = bounds_of(pool)
    try:
        used_reserve(bounds)
        obj = pool_take(pool)
    except BaseException:
        slot_give(bounds)
        raise
    # A factory or finaliser may have forked.
    bounds = bounds_of(pool)
    if unlikely(bounds.room == 0):
        return obj
    Py_INCREF(<PyObject*>obj)
    lock(&bounds.lock)
    used_add(bounds, <PyObject*>obj)
    unlock(&bounds.lock)
    return obj


cdef int slot_wait(ObjectPool pool, Bounds* bounds, double timeout) except -1:
    """Wait for a slot in this thread."""
    cdef Waiter waiter = Waiter.__new__(Waiter)
    cdef double left, end
    try:
        # Looked up here: once gevent has patched it, waiting lets other greenlets run.
        waiter.gate = _thread.allocate_lock()
    except RuntimeError:
        # Python 3.11 and 3.12 raise this ("can't allocate lock") if allocation fails.
        raise MemoryError() from None
    waiter.gate.acquire()
    if slot_take_or_queue(bounds, waiter):
        return 0
    try:
        left = timeout
        end = monotonic() + timeout
        while not waiter.gate.acquire(True, min(left, LOOK_SECONDS)):
            left = end - monotonic()
            if left <= 0:
                break
            bounds_reclaim(pool)
        else:
            return 0
    except BaseException:
        slot_give_up(bounds, waiter)
        raise
    # Granted, if it was not in the queue any more when its time was up.
    if queue_leave(bounds, waiter):
        raise_exhausted(pool, timeout)
    return 0


cdef bint bounded_release(ObjectPool pool, object obj) except -1:
    cdef Bounds* bounds = bounds_of(pool)
    if not used_remove(bounds, <PyObject*>obj):
        # Released before, or not an object of this pool: it takes no slot.
        return False
    # The set's reference; the caller has its own.
    Py_DECREF(<PyObject*>obj)
    try:
        return pool_keep(pool, obj)
    finally:
        slot_give(bounds_of(pool))


# --- Awaiting ---

@cython.final
cdef class Acquisition:
    """What `ObjectPool.aacquire` returns, to be awaited once. Cancelling the task that awaits it gives the place up."""

    cdef object __weakref__
    cdef ObjectPool pool
    cdef Lease lease            # that will hold the object, or None
    cdef Waiter waiter
    cdef object pending         # the iterator of what is awaited
    cdef object timer
    cdef double timeout
    cdef bint inner             # `pending` is a subclass's own aacquire
    cdef bint over

    __class_getitem__ = classmethod(type(list[int]))

    @cython.always_allow_keywords(False)
    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.step()

    @cython.always_allow_keywords(False)
    def send(self, value, /):
        """Continue, as a coroutine's method does."""
        return self.step()

    def throw(self, kind, value=None, trace=None, /):
        """End the waiting with this exception, as a coroutine's method does."""
        self.end()
        if self.inner and self.pending is not None and hasattr(self.pending, "throw"):
            return self.pending.throw(value if value is not None else kind)
        if value is None:
            value = kind if isinstance(kind, BaseException) else kind()
        elif not isinstance(value, BaseException):
            value = kind(value)
        if trace is not None:
            value = value.with_traceback(trace)
        raise value

    @cython.always_allow_keywords(False)
    def close(self):
        """End the waiting."""
        self.end()
        if self.inner and self.pending is not None and hasattr(self.pending, "close"):
            self.pending.close()

    def __del__(self):
        self.end()

    cdef object step(self):
        cdef bint waited = self.pending is not None
        if self.over:
            raise SynthexFastError("this acquisition has been awaited already")
        if self.inner:
            try:
                return next(self.pending)
            except StopIteration as stopped:
                obj = stopped.value
            except BaseException:
                self.over = True
                raise
        else:
            if waited:
                # Passes on what the future raises; what it yields is itself, if it was woken for nothing.
                try:
                    return next(self.pending)
                except StopIteration:
                    pass
                except BaseException:
                    self.end()
                    raise
            elif self.pool.bounds != NULL and not slot_try(self.pool):
                if self.timeout <= 0:
                    self.over = True
                    raise_exhausted(self.pool, self.timeout)
                if not self.enter():
                    return next(self.pending)
            obj = self.take(waited)
        self.over = True
        if self.lease is not None:
            lease_hold(self.lease, self.pool, obj)
        raise StopIteration(obj)

    cdef bint enter(self) except -1:
        """Join the queue; True if a slot came free in the meantime."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        import asyncio
        waiter.loop = asyncio.get_running_loop()
        waiter.future = waiter.loop.create_future()
        self.pending = iter(waiter.future.__await__())
        self.waiter = waiter
        self.look_again(waiter.loop.time() + self.timeout)
        return slot_take_or_queue(bounds_of(self.pool), waiter)

    cdef int look_again(self, double end) except -1:
        cdef Waiter waiter = self.waiter
        if waiter is not None:
            loop = waiter.loop
            # Weakly, so that an acquisition that nobody awaits any more leaves its place.
            self.timer = loop.call_at(min(end, loop.time() + LOOK_SECONDS), look, ref(self), end)
        return 0

    cdef object take(self, bint waited):
        cdef Waiter waiter = self.waiter
        self.stop_timer()
        if waiter is not None:
            self.waiter = None
            # From here on `bounded_fill` is responsible for the slot.
            if not slot_claim(bounds_of(self.pool), waiter) and waited:
                self.over = True
                raise_exhausted(self.pool, self.timeout)
        return pool_take(self.pool) if self.pool.bounds == NULL else bounded_fill(self.pool)

    cdef int stop_timer(self) except -1:
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
        return 0

    cdef int end(self) except -1:
        cdef Waiter waiter = self.waiter
        self.over = True
        self.waiter = None
        if waiter is not None:
            slot_give_up(bounds_of(self.pool), waiter)
        return self.stop_timer()


@cython.final
@cython.internal
cdef class Done:
    """Awaiting it takes no time."""

    @cython.always_allow_keywords(False)
    def __await__(self):
        return iter(())


cdef Done DONE = Done()
