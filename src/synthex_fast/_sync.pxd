"""Locks that compile to nothing on the standard build, reference checks and branch hints. Inline, for Cython code.

On the standard build the GIL makes C code atomic between the points where Python code may run, so ``Lock`` is empty.
On the free-threaded build it is a spin lock: code that holds it must not run Python code, release a reference,
allocate, block or detach the thread state. ``Mutex`` is a ``PyMutex`` there, for code that has to allocate while it
holds the lock: an allocator may have its own lock (tracemalloc's does), and a thread that spins while the holder waits
for that one would keep the interpreter from stopping the world.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t


cdef extern from *:
    """
    #ifndef SYNTHEX_SYNC
    #define SYNTHEX_SYNC
    #if defined(_MSC_VER)
      #define SYNTHEX_THREAD_LOCAL __declspec(thread)
      #define synthex_likely(x) (x)
      #define synthex_unlikely(x) (x)
    #else
      #define SYNTHEX_THREAD_LOCAL _Thread_local
      /* Of type long, which is wider than the int that the result goes to. */
      #define synthex_likely(x) ((int)__builtin_expect(!!(x), 1))
      #define synthex_unlikely(x) ((int)__builtin_expect(!!(x), 0))
    #endif
    #ifdef Py_GIL_DISABLED
      #if defined(_WIN32)
        #ifndef WIN32_LEAN_AND_MEAN
        #define WIN32_LEAN_AND_MEAN
        #endif
        #include <windows.h>
        #define SYNTHEX_YIELD() SwitchToThread()
      #else
        #include <sched.h>
        #define SYNTHEX_YIELD() sched_yield()
      #endif
      /* Not a PyMutex: a thread that waits for one detaches and may receive it while the world is stopped; in a forked
         child or at exit the mutex then stays locked forever. The holder of this lock never detaches, so while the
         world is stopped (fork, garbage collection) it is free and the data it guards is consistent. */
      typedef struct { int held; } synthex_lock;
      static inline void synthex_lock_acquire(synthex_lock *lock) {
          int tries = 0;
          for (;;) {
              int expected = 0;
              if (_Py_atomic_compare_exchange_int(&lock->held, &expected, 1)) return;
              while (_Py_atomic_load_int_relaxed(&lock->held)) {
                  if (++tries > 100) SYNTHEX_YIELD();
              }
          }
      }
      #define synthex_lock_release(lock) _Py_atomic_store_int_release(&(lock)->held, 0)
      typedef struct { PyMutex mutex; } synthex_mutex;
      #define synthex_mutex_acquire(m) PyMutex_Lock(&(m)->mutex)
      #define synthex_mutex_release(m) PyMutex_Unlock(&(m)->mutex)
      #define SYNTHEX_FREE_THREADED 1
      static inline int synthex_unique(PyObject *o) {
      #if PY_VERSION_HEX >= 0x030E0000
          return PyUnstable_Object_IsUniquelyReferenced(o);
      #else
          return _Py_IsOwnedByCurrentThread(o)
              && _Py_atomic_load_uint32_relaxed(&o->ob_ref_local) == 1
              && _Py_atomic_load_ssize_relaxed(&o->ob_ref_shared) == 0;
      #endif
      }
      #define synthex_owned_by_thread(o) _Py_IsOwnedByCurrentThread(o)
    #else
      typedef struct { char unused; } synthex_lock;
      #define synthex_lock_acquire(l) ((void)(l))
      #define synthex_lock_release(l) ((void)(l))
      typedef struct { char unused; } synthex_mutex;
      #define synthex_mutex_acquire(m) ((void)(m))
      #define synthex_mutex_release(m) ((void)(m))
      #define SYNTHEX_FREE_THREADED 0
      #define synthex_unique(o) (Py_REFCNT(o) == 1)
      #define synthex_owned_by_thread(o) 1
    #endif
    #ifdef Py_GIL_DISABLED
      /* Numbers the threads consecutively, so that they spread over an array of locks. */
      static uint32_t synthex_sync_threads_seen;
      static SYNTHEX_THREAD_LOCAL uint32_t synthex_sync_thread_number;
      static inline uint32_t synthex_sync_thread(void) {
          if (synthex_sync_thread_number == 0)
              synthex_sync_thread_number = _Py_atomic_add_uint32(&synthex_sync_threads_seen, 1) + 1;
          return synthex_sync_thread_number;
      }
    #else
      #define synthex_sync_thread() 0u
    #endif
    #ifdef Py_GIL_DISABLED
      #define synthex_load_u8(p) _Py_atomic_load_uint8_relaxed(p)
      #define synthex_store_u8(p, v) _Py_atomic_store_uint8_relaxed(p, v)
      #define synthex_load_flag(p) _Py_atomic_load_int_relaxed(p)
      #define synthex_store_flag(p, v) _Py_atomic_store_int_relaxed(p, v)
      #define synthex_load_u32(p) _Py_atomic_load_uint32_acquire(p)
      #define synthex_store_u32(p, v) _Py_atomic_store_uint32_release(p, v)
      #define synthex_load_u64(p) _Py_atomic_load_uint64_relaxed(p)
      #define synthex_store_u64(p, v) _Py_atomic_store_uint64_relaxed(p, v)
      #define synthex_load_ssize(p) _Py_atomic_load_ssize_relaxed(p)
      #define synthex_store_ssize(p, v) _Py_atomic_store_ssize_relaxed(p, v)
      #define synthex_load_pointer(p) _Py_atomic_load_ptr_acquire(p)
      #define synthex_store_pointer(p, v) _Py_atomic_store_ptr_release(p, v)
      static inline double synthex_load_double(const double *p) {
          union { uint64_t bits; double value; } word;
          word.bits = _Py_atomic_load_uint64_relaxed((const uint64_t *)p);
          return word.value;
      }
      static inline void synthex_store_double(double *p, double value) {
          union { uint64_t bits; double value; } word;
          word.value = value;
          _Py_atomic_store_uint64_relaxed((uint64_t *)p, word.bits);
      }
    #else
      #define synthex_load_u8(p) (*(p))
      #define synthex_store_u8(p, v) (*(p) = (v))
      #define synthex_load_flag(p) (*(p))
      #define synthex_store_flag(p, v) (*(p) = (v))
      #define synthex_load_u32(p) (*(p))
      #define synthex_store_u32(p, v) (*(p) = (v))
      #define synthex_load_u64(p) (*(p))
      #define synthex_store_u64(p, v) (*(p) = (v))
      #define synthex_load_ssize(p) (*(p))
      #define synthex_store_ssize(p, v) (*(p) = (v))
      #define synthex_load_pointer(p) (*(p))
      #define synthex_store_pointer(p, v) (*(p) = (v))
      #define synthex_load_double(p) (*(p))
      #define synthex_store_double(p, v) (*(p) = (v))
    #endif
    #endif
    """
    ctypedef struct Lock "synthex_lock":
        pass
    void lock "synthex_lock_acquire"(Lock*) noexcept nogil
    void unlock "synthex_lock_release"(Lock*) noexcept nogil
    ctypedef struct Mutex "synthex_mutex":
        pass
    void mutex_lock "synthex_mutex_acquire"(Mutex*) noexcept nogil
    void mutex_unlock "synthex_mutex_release"(Mutex*) noexcept nogil
    const bint FREE_THREADED "SYNTHEX_FREE_THREADED"
    # True if the caller's reference is the only one. Free-threaded: False unless this thread made the object.
    bint uniquely_referenced "synthex_unique"(PyObject*) noexcept nogil
    # True if the calling thread made the object (on the standard build, always).
    bint owned_by_this_thread "synthex_owned_by_thread"(PyObject*) noexcept nogil
    unsigned int this_thread_number "synthex_sync_thread"() noexcept nogil
    # For a word that one thread may read while another writes it. The read is only a hint, or the word is all there is
    # to know. Every write needs `store_*` then, also one under a lock; reads by whoever keeps all writers out don't
    # need `load_*`. What was written before `store_u32` or `store_pointer` is seen by whoever loads the new word; the
    # others order nothing.
    unsigned char load_u8 "synthex_load_u8"(const unsigned char*) noexcept nogil
    void store_u8 "synthex_store_u8"(unsigned char*, unsigned char) noexcept nogil
    bint load_flag "synthex_load_flag"(const bint*) noexcept nogil
    void store_flag "synthex_store_flag"(bint*, bint) noexcept nogil
    uint32_t load_u32 "synthex_load_u32"(const uint32_t*) noexcept nogil
    void store_u32 "synthex_store_u32"(uint32_t*, uint32_t) noexcept nogil
    uint64_t load_u64 "synthex_load_u64"(const uint64_t*) noexcept nogil
    void store_u64 "synthex_store_u64"(uint64_t*, uint64_t) noexcept nogil
    Py_ssize_t load_ssize "synthex_load_ssize"(const Py_ssize_t*) noexcept nogil
    void store_ssize "synthex_store_ssize"(Py_ssize_t*, Py_ssize_t) noexcept nogil
    void* load_pointer "synthex_load_pointer"(void**) noexcept nogil
    void store_pointer "synthex_store_pointer"(void**, void*) noexcept nogil
    double load_double "synthex_load_double"(const double*) noexcept nogil
    void store_double "synthex_store_double"(double*, double) noexcept nogil
    bint likely "synthex_likely"(bint) noexcept nogil
    bint unlikely "synthex_unlikely"(bint) noexcept nogil
