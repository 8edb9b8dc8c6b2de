# Locks of the free-threaded build, included by _ttl.pyx. On the standard build every function here compiles to nothing.
#
# A reader locks the stripe of its own thread, a writer locks all stripes in ascending order. Holding any one stripe
# therefore guarantees that no entry is inserted, removed or moved. Readers may still set FREQUENCY bits, `touched`
# times and their stripe's counters; a lost update there costs some accuracy, never consistency.

# Held while one thread resets a dict's locks after a fork, so that no other thread does so twice.
cdef Mutex fork_repair


cdef void reset_locks_after_fork(TTLDict self) noexcept:
    # A thread of the parent may have held stripes while it waited for the others. It had not changed the table yet.
    cdef unsigned int i
    mutex_lock(&fork_repair)
    if load_u32(&self.generation) != forks_seen:
        for i in range(STRIPES):
            memset(&self.stripes[i].lock, 0, sizeof(Mutex))
        store_u32(&self.generation, forks_seen)
    mutex_unlock(&fork_repair)


cdef inline Stripe* enter_shared(TTLDict self) noexcept:
    """Lock for reading and return the stripe that is held."""
    cdef Stripe* stripe = self.stripes
    if FREE_THREADED:
        if load_u32(&self.generation) != forks_seen:
            reset_locks_after_fork(self)
        stripe += this_thread_number() % STRIPES
        mutex_lock(&stripe.lock)
    return stripe


cdef inline void leave_shared(Stripe* stripe) noexcept:
    if FREE_THREADED:
        mutex_unlock(&stripe.lock)


cdef inline void enter(TTLDict self) noexcept:
    """Lock for writing."""
    cdef unsigned int i
    if FREE_THREADED:
        if load_u32(&self.generation) != forks_seen:
            reset_locks_after_fork(self)
        for i in range(STRIPES):
            mutex_lock(&self.stripes[i].lock)


cdef inline void leave(TTLDict self) noexcept:
    cdef unsigned int i
    if FREE_THREADED:
        for i in range(STRIPES):
            mutex_unlock(&self.stripes[i].lock)
