"""The package's one ``pthread_atfork`` handler: it counts forks.

Python's own fork hooks (`synthex_fast._lifecycle`) run with the interpreter in order and may use Python. This handler
runs inside ``fork`` itself, even if C code calls it, so it only writes two numbers; C code compares them with those it
recorded earlier. Windows has no fork, and the numbers stay 0 there.
"""

from libc.stdint cimport uint32_t

from synthex_fast._python cimport PyThread_get_thread_ident

__all__ = ["fork_count"]


cdef extern from *:
    """
    #if defined(_WIN32)
      #define synthex_at_fork(handler) 0
    #else
      #include <pthread.h>
      #define synthex_at_fork(handler) pthread_atfork(NULL, NULL, handler)
    #endif
    """
    int at_fork "synthex_at_fork"(void (*handler)() noexcept nogil) noexcept


cdef uint32_t forks_seen = 0
cdef unsigned long surviving_thread = 0


cdef void count_fork() noexcept nogil:
    global forks_seen, surviving_thread
    forks_seen += 1
    surviving_thread = PyThread_get_thread_ident()


if at_fork(count_fork) != 0:
    raise MemoryError("no memory for the fork handler")


def fork_count():
    """How many forks led from the process that imported the package to this one.

    >>> fork_count()
    0
    """
    return forks_seen
