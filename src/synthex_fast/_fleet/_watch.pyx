"""What the governor's thread waits with: until it is notified, its time is over, or the fleet's file has changed.

While nothing changes, a worker has only to see that its siblings' postings are as they were and their locks held. Done
in Python, each such look costs the thread its wake-up into the interpreter, ten times what the look itself takes. Here
the thread stays outside the interpreter, and returns only if there is something to be done.

On Linux it does not even wake up to look: inotify says when somebody has written to the file, and when somebody's last
descriptor of it was closed, which the death of a process does too. What has changed is then found by looking, no more
often than elsewhere. Whether notices come is tried first, with a byte that is written as it was; where they don't, or
no descriptor is to be had, the thread wakes up at each period instead.

The file is not trusted here either: its bytes are compared and never interpreted.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcmp

from synthex_fast._clock cimport monotonic_coarse

__all__ = ["Watch", "is_locked"]


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
      static int synthex_identify(int fd, unsigned long long* identity) { return 0; }
    #else
      #include <fcntl.h>
      #include <string.h>
      #include <sys/stat.h>
      #include <unistd.h>
      #if defined(__linux__) && defined(__LP64__)
        #include <sys/syscall.h>
        /* glibc's function is newer (2.33) than the systems that a wheel is for. */
        #define synthex_fstat(fd, status) syscall(SYS_fstat, fd, status)
      #else
        #define synthex_fstat(fd, status) fstat(fd, status)
      #endif

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
          return synthex_fstat(fd, &status) == 0 && status.st_nlink > 0;
      }

      /* What distinguishes a file from others that may have got its number; 0 if it is closed. */
      static int synthex_identify(int fd, unsigned long long* identity) {
          struct stat status;
          if (synthex_fstat(fd, &status) != 0)
              return 0;
          identity[0] = (unsigned long long)status.st_dev;
          identity[1] = (unsigned long long)status.st_ino;
          return 1;
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

    #if defined(__linux__)
      #include <errno.h>
      #include <poll.h>
      #include <stdint.h>
      #include <stdio.h>
      #include <sys/eventfd.h>
      #include <sys/inotify.h>

      static int synthex_new_bell(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

      static void synthex_ring(int bell) {
          uint64_t one = 1;
          ssize_t done = write(bell, &one, sizeof one);
          (void)done;
      }

      static void synthex_drain(int notices) {
          char events[4096];
          while (read(notices, events, sizeof events) > 0)
              ;
      }

      static int synthex_readable(int fd) {
          struct pollfd of = {fd, POLLIN, 0};
          return poll(&of, 1, 0) > 0 && (of.revents & POLLIN);
      }

      /* A descriptor for notices of the open file, with one to begin with; -1 if none come. */
      static int synthex_new_notices(int fd) {
          char path[40], first;
          int notices = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
          if (notices < 0)
              return -1;
          snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
          if (inotify_add_watch(notices, path, IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB) < 0 ||
              pread(fd, &first, 1, 0) != 1 || pwrite(fd, &first, 1, 0) != 1 || !synthex_readable(notices)) {
              close(notices);
              return -1;
          }
          return notices;
      }

      /* 1 if the bell was rung, which is to be silenced; 2 if there are notices; 0 if the time is over. */
      static int synthex_listen(int bell, int notices, long long microseconds) {
          struct pollfd of[2] = {{bell, POLLIN, 0}, {notices, POLLIN, 0}};
          int found = poll(of, notices < 0 ? 1 : 2, (int)((microseconds + 999) / 1000));
          return found <= 0 ? 0 : of[0].revents ? 1 : 2;
      }

      static void synthex_silence(int bell) {
          uint64_t rung;
          ssize_t done = read(bell, &rung, sizeof rung);
          (void)done;
      }

      static void synthex_close(int fd) { close(fd); }
    #else
      static int synthex_new_bell(void) { return -1; }
      static void synthex_ring(int bell) {}
      static void synthex_silence(int bell) {}
      static void synthex_drain(int notices) {}
      static int synthex_new_notices(int fd) { return -1; }
      static int synthex_listen(int bell, int notices, long long microseconds) { return 0; }
      static void synthex_close(int fd) {}
    #endif
    """
    int unchanged "synthex_unchanged"(int fd, const char* seen, long long size, long long start) noexcept nogil
    int locked "synthex_locked"(int fd, long long start) noexcept nogil
    bint identify "synthex_identify"(int fd, unsigned long long* identity) noexcept nogil
    int new_bell "synthex_new_bell"() noexcept nogil
    void ring "synthex_ring"(int bell) noexcept nogil
    void silence "synthex_silence"(int bell) noexcept nogil
    void drain "synthex_drain"(int notices) noexcept nogil
    int new_notices "synthex_new_notices"(int fd) noexcept nogil
    int listen "synthex_listen"(int bell, int notices, long long microseconds) noexcept nogil
    void close_descriptor "synthex_close"(int fd) noexcept nogil


# Microseconds: longer waits are divided.
cdef long long LONGEST = 3_600_000_000


cdef long long _least(double seconds) noexcept nogil:
    """In microseconds, and no more than half a minute."""
    return <long long>(min(seconds, 30.0) * 1e6)


def is_locked(int fd, long long start):
    """Whether another process has locked that byte of the file; asking locks nothing."""
    return locked(fd, start) != 0


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
        self._bell = -1
        self._notices = -1
        self._count = 0
        self._period = -1

    def __dealloc__(self):
        if self._lock is not NULL:
            PyThread_free_lock(self._lock)
        self._end_notices()

    cdef void _begin_notices(self) noexcept:
        if not identify(self._fd, &self._identity[0]):
            return
        self._bell = new_bell()
        if self._bell >= 0:
            self._notices = new_notices(self._fd)
            if self._notices < 0:
                close_descriptor(self._bell)
                self._bell = -1
            else:
                identify(self._bell, &self._identity[2])
                identify(self._notices, &self._identity[4])

    cdef void _end_notices(self) noexcept:
        if self._bell >= 0 and self._is_open():
            close_descriptor(self._notices)
            close_descriptor(self._bell)
        self._notices = self._bell = -1

    cdef bint _is_open(self) noexcept nogil:
        """Turning into a daemon closes every descriptor, and the numbers may belong to other files by now. They are not
        used unless the fleet's file still has its number, and they are of their kind.
        """
        cdef unsigned long long[6] now
        return (
            identify(self._fd, &now[0])
            and identify(self._bell, &now[2])
            and identify(self._notices, &now[4])
            and memcmp(now, self._identity, sizeof(now)) == 0
        )

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
        if file is not self._file:
            self._end_notices()
            self._file, self._fd = file, fd
            self._begin_notices()
        if seen is not self._seen:
            self.changed = False
        self._seen, self._start = seen, start
        self._period = <long long>(period * 1e6)

    def look_away(self):
        """From the next `acquire` on, wait only."""
        self._end_notices()
        self._file = self._seen = None
        self._period = -1
        self.changed = False

    def acquire(self, bint blocking, double seconds):
        """Wait until `release` is called, and return True; return False after that many seconds (below 0: never), or as
        soon as what is watched has changed (``changed``)."""
        cdef long long left = -1 if seconds < 0 or seconds > 1e9 else <long long>(seconds * 1e6)
        cdef long long step
        cdef bint watching = self._period >= 0
        cdef bint notified = False
        cdef const char* bytes_seen = NULL
        cdef Py_ssize_t size = 0
        if watching:
            bytes_seen, size = PyBytes_AS_STRING(self._seen), PyBytes_GET_SIZE(self._seen)
        if self._notices >= 0:
            with nogil:
                notified = self._listen(left, bytes_seen, size)
                if not self._is_open():
                    # Not to be closed, nor used again.
                    self._notices = self._bell = -1
            return notified
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
                    self.changed = True
                    break
        return notified

    cdef bint _listen(self, long long left, const char* seen, Py_ssize_t size) noexcept nogil:
        """`acquire` where there are notices. Between two looks there is at least one period."""
        cdef double looked = monotonic_coarse()
        cdef double end = looked + left * 1e-6
        cdef double next_look
        cdef int heard
        cdef double now = looked
        if self.changed:
            return False
        while left < 0 or now < end:
            # Bounded, for the case that the descriptors are closed meanwhile. And no notice comes of a death if another
            # process has inherited the file, so it is looked for then too.
            heard = listen(self._bell, self._notices, _least(end - now if left >= 0 else 1e9)) or 2
            now = monotonic_coarse()
            next_look = looked + self._period * 1e-6
            if left >= 0 and next_look > end:
                next_look = end
            while heard == 2 and now < next_look:
                heard = listen(self._bell, -1, _least(next_look - now)) or 2
                now = monotonic_coarse()
            if not self._is_open():
                return False
            if heard == 1:
                silence(self._bell)
                return True
            if heard == 2 and (left < 0 or now < end):
                drain(self._notices)
                if not self._is_as_before(seen, size):
                    # Its notices are gone, so this must be remembered until new bytes are given.
                    self.changed = True
                    return False
                looked = now
        return False

    cdef bint _is_as_before(self, const char* seen, Py_ssize_t size) noexcept nogil:
        cdef Py_ssize_t n
        if not unchanged(self._fd, seen, size, self._start):
            return False
        for n in range(self._count):
            if not locked(self._fd, self._places[n]):
                return False
        return True

    def release(self):
        """Make `acquire` return, or the next call of it. However often it is called, that is one call of `acquire`."""
        if self._bell >= 0 and self._is_open():
            ring(self._bell)
        else:
            # It is free if nobody has waited since it was last released. Releasing it twice would count twice, or be a
            # fatal error, depending on the interpreter.
            PyThread_acquire_lock_timed(self._lock, 0, 0)
            PyThread_release_lock(self._lock)
