"""How many forks led to this process, for C state that a thread of the parent may have left half changed."""

from libc.stdint cimport uint32_t


# A lock or an in-progress mark that carries another number was left by a thread of a parent process. The next thread
# that needs it clears it.
cdef uint32_t forks_seen
# Which of the parent's threads exists in this process: the one that forked (`PyThread_get_thread_ident`).
cdef unsigned long surviving_thread
