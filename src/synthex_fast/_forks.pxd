"""How many forks led to this process, for C state that a thread of the parent may have left half changed."""

from libc.stdint cimport uint32_t


# A lock, or a claim to be at work, that carries another number was left by a thread of a parent process. It is released
# or dropped by whoever next needs it.
cdef uint32_t forks_seen
# Which of the parent's threads lives on in this process: the one that forked (`PyThread_get_thread_ident`).
cdef unsigned long surviving_thread
