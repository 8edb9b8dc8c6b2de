"""What the governor's thread waits with: until it is notified, its time is over, or something in the fleet's file moves.

While nothing changes, a worker has only to see that its siblings' postings are as they were and their locks held. Done
in Python, each such look costs the thread its wake-up into the interpreter, ten times what the look itself takes. Here
the thread stays outside the interpreter, and returns only if there is something to be done.

The file is not trusted here either: its bytes are compared and never interpreted.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

__all__ = ["Watch"]


cdef extern from "pythread.h" nogil:
    ctypedef void* PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr_flag)
    void PyThread_release_lock(PyThread_type_lock lock)


cdef extern from *:
    """
    #if defined(_WIN32)
      /* There are no record locks, so no process has siblings. */
      static int synthex_unchanged(int fd, const char* seen, long long size, long long start) { return 0; }
      static int synthex_locked(int fd, long long start) { return 0; }
    #else
      #include <fcntl.h>
      #include <string.h>
      #include <sys/stat.h>
      #include <unistd.h>

      /* Whether the file, from `start`, still has these bytes and a name. */
      static int synthex_unchanged(int fd, const char* seen, long long size, long long start) {
          char part[4096];
          long long done = 0;
          struct stat status;
          while (done < size) {
              size_t wanted = size - done < (long long)sizeof part ? (size_t)(size - done) : sizeof part;
              ssize_t got = pread(fd, part, wanted, (off_t)(start + done));
              if (got <= 0 || memcmp(part, seen + done, (size_t)got) != 0)
                  return 0;
              done += got;
          }
          return fstat(fd, &status) == 0 && status.st_nlink > 0;
      }

      /* Whether another process has that byte locked. */
      static int synthex_locked(int fd, long long start) {
          struct flock lock;
          memset(&lock, 0, sizeof lock);
          lock.l_type = F_WRLCK;
          lock.l_whence = SEEK_SET;
          lock.l_start = (off_t)start;
          lock.l_len = 1;
          return fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
      }
    #endif
    """
    int unchanged "synthex_unchanged"(int fd, const char* seen, long long size, long long start) noexcept nogil
    int locked "synthex_locked"(int fd, long long start) noexcept nogil


# Microseconds: longer waits are divided.
cdef long long LONGEST = 3_600_000_000


@cython.no_gc_clear  # `acquire` uses the bytes without the GIL, and it holds a reference to this object only.
cdef class Watch:
    """Stands for the lock with which one thread waits (`synthex_fast._threads.Condition.wait`). It is held from the
    start.

    >>> watch = Watch()
    >>> watch.acquire(True, 0.001)
    False
    >>> watch.release()
    >>> watch.acquire(True, 10.0)
    True
    """

    def __cinit__(self):
        self._lock = PyThread_allocate_lock()
        if self._lock is NULL:
            raise MemoryError("no memory for a lock")
        PyThread_acquire_lock_timed(self._lock, 0, 0)
        self._count = 0
        self._period = -1

    def __dealloc__(self):
        if self._lock is not NULL:
            PyThread_free_lock(self._lock)

    def look_at(self, object file, int fd, bytes seen, long long start, list places, double period):
        """From the next `acquire` on, return every ``period`` seconds if the bytes from ``start`` on are no longer as
        ``seen``, or if one of the ``places`` is no longer locked by another process.

        ``file`` is kept alive, so that ``fd`` remains its.
        """
        cdef Py_ssize_t n
        if len(places) > 64:
            raise ValueError("more places than a file has")
        self._count = len(places)
        for n in range(self._count):
            self._places[n] = places[n]
        self._file, self._fd, self._seen, self._start = file, fd, seen, start
        self._period = <long long>(period * 1e6)

    def look_away(self):
        """From the next `acquire` on, wait only."""
        self._file = self._seen = None
        self._period = -1

    def acquire(self, bint blocking, double seconds):
        """Wait until `release` is called, and return True; return False after that many seconds (below 0: never), or as
        soon as what is watched has changed."""
        cdef long long left = -1 if seconds < 0 or seconds > 1e9 else <long long>(seconds * 1e6)
        cdef long long step
        cdef bint watching = self._period >= 0
        cdef bint notified = False
        cdef const char* bytes_seen = NULL
        cdef Py_ssize_t size = 0
        if watching:
            bytes_seen, size = PyBytes_AS_STRING(self._seen), PyBytes_GET_SIZE(self._seen)
        with nogil:
            while True:
                step = self._period if watching else LONGEST
                if 0 <= left < step:
                    step = left
                if PyThread_acquire_lock_timed(self._lock, step, 0) == 1:
                    notified = True
                    break
                if left >= 0:
                    left -= step
                    if left <= 0:
                        break
                if watching and not self._is_as_before(bytes_seen, size):
                    break
        return notified

    cdef bint _is_as_before(self, const char* seen, Py_ssize_t size) noexcept nogil:
        cdef Py_ssize_t n
        if not unchanged(self._fd, seen, size, self._start):
            return False
        for n in range(self._count):
            if not locked(self._fd, self._places[n]):
                return False
        return True

    def release(self):
        """Make `acquire` return, or the next call of it."""
        PyThread_release_lock(self._lock)
