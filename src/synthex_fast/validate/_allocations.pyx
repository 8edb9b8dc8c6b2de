"""Counts the bytes requested from Python's allocators exactly.

tracemalloc reports live memory, not every request, and a pool saves requests. So during one untimed pass this
module hooks the interpreter's three allocation domains (PEP 445) and adds up the sizes that one thread requests.
It does not see what an extension takes directly from C's ``malloc`` (pydantic-core's Rust code, for example), or
objects that the interpreter reuses from its own free lists.
"""


cdef inline bint enter(size_t size) noexcept nogil:
    """Count `size` if this request is to be counted; true if the caller must `leave` again."""
    global requested, blocks, inside
    if PyThread_get_thread_ident() != counted_thread or inside:
        return False
    # The object allocator passes what is too large for it on to the raw one, which must not count it again.
    inside = True
    requested += size
    blocks += 1
    return True


cdef inline void leave() noexcept nogil:
    global inside
    inside = False


cdef void *counting_malloc(void *ctx, size_t size) noexcept nogil:
    cdef PyMemAllocatorEx *behind = <PyMemAllocatorEx *>ctx
    cdef bint counted = enter(size)
    cdef void *block = behind.malloc(behind.ctx, size)
    if counted:
        leave()
    return block


cdef void *counting_calloc(void *ctx, size_t number, size_t size) noexcept nogil:
    cdef PyMemAllocatorEx *behind = <PyMemAllocatorEx *>ctx
    cdef bint counted = enter(number * size)
    cdef void *block = behind.calloc(behind.ctx, number, size)
    if counted:
        leave()
    return block


cdef void *counting_realloc(void *ctx, void *block, size_t size) noexcept nogil:
    global requested, blocks
    cdef PyMemAllocatorEx *behind = <PyMemAllocatorEx *>ctx
    cdef size_t before = <size_t>block
    cdef bint counted = enter(size)
    cdef void *after = behind.realloc(behind.ctx, block, size)
    if counted:
        leave()
        # A block that grows in place is no new block, and its growth isn't known: only a move counts.
        if <size_t>after == before:
            requested -= size
            blocks -= 1
    return after


cdef void counting_free(void *ctx, void *block) noexcept nogil:
    cdef PyMemAllocatorEx *behind = <PyMemAllocatorEx *>ctx
    behind.free(behind.ctx, block)


cdef PyMemAllocatorDomain domain_at(int place) noexcept nogil:
    if place == 0:
        return PYMEM_DOMAIN_RAW
    if place == 1:
        return PYMEM_DOMAIN_MEM
    return PYMEM_DOMAIN_OBJ


def start() -> None:
    """Count what the calling thread requests from now on, from zero. `RuntimeError` if counting already.

    No other thread may allocate while this runs or while `stop` does: the interpreter swaps an allocator's
    five fields without a lock.

    >>> start()
    >>> data = bytearray(100_000)
    >>> requested, blocks = stop()
    >>> requested >= 100_000 and blocks >= 1
    True
    """
    global requested, blocks, inside, counted_thread, installed
    cdef PyMemAllocatorEx counting
    cdef int place
    if installed:
        raise RuntimeError("allocations are being counted already")
    requested = blocks = 0
    inside = False
    counted_thread = PyThread_get_thread_ident()
    installed = True
    for place in range(3):
        PyMem_GetAllocator(domain_at(place), &original[place])
        counting.ctx = &original[place]
        counting.malloc = counting_malloc
        counting.calloc = counting_calloc
        counting.realloc = counting_realloc
        counting.free = counting_free
        PyMem_SetAllocator(domain_at(place), &counting)


def pause() -> None:
    """Don't count until `resume`, and leave the hooks where they are: they can't be moved often and safely.

    >>> start()
    >>> pause()
    >>> data = bytearray(100_000)
    >>> resume()
    >>> requested, blocks = stop()
    >>> requested < 100_000
    True
    """
    global inside
    inside = True


def resume() -> None:
    """Count again, what is requested from now on."""
    global inside
    inside = False


def stop() -> tuple:
    """``(bytes, blocks)`` requested since `start`. Raises `RuntimeError` if nothing is being counted."""
    global installed
    cdef uint64_t seen_bytes = requested, seen_blocks = blocks
    cdef int place
    if not installed:
        raise RuntimeError("allocations are not being counted")
    for place in range(3):
        PyMem_SetAllocator(domain_at(place), &original[place])
    installed = False
    return seen_bytes, seen_blocks
