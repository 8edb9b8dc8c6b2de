"""Clocks, inline: a coarse monotonic clock for deadlines and the wall clock for time stamps.

The coarse clock is the kernel's tick (1 to 16 ms), read without a system call: about 4 ns where the precise one takes
24. It is on the scale of ``time.monotonic()``, so deadlines can be compared with it. The wall clock is the precise one
cut to whole microseconds, as ``datetime.now()`` cuts it, so that the two keep their order.
"""

cdef extern from *:
    """
    #ifndef SYNTHEX_CLOCK
    #define SYNTHEX_CLOCK
    #if defined(_WIN32)
      #ifndef WIN32_LEAN_AND_MEAN
      #define WIN32_LEAN_AND_MEAN
      #endif
      #include <windows.h>
      static inline double synthex_monotonic(void) {
          return (double)GetTickCount64() * 1e-3;
      }
      static inline double synthex_precise(void) {
          LARGE_INTEGER ticks, frequency;
          QueryPerformanceCounter(&ticks);
          QueryPerformanceFrequency(&frequency);
          return (double)ticks.QuadPart / (double)frequency.QuadPart;
      }
      static inline double synthex_wall(void) {
          FILETIME t;
          ULARGE_INTEGER u;
          GetSystemTimePreciseAsFileTime(&t);
          u.LowPart = t.dwLowDateTime;
          u.HighPart = t.dwHighDateTime;
          /* FILETIME counts 100 ns steps from 1601. */
          return (double)((u.QuadPart - 116444736000000000ULL) / 10) * 1e-6;
      }
    #else
      #include <time.h>
      #if defined(CLOCK_MONOTONIC_COARSE)
        #define SYNTHEX_COARSE CLOCK_MONOTONIC_COARSE
      #elif defined(CLOCK_UPTIME_RAW_APPROX)
        /* macOS: the cached form of the clock behind time.monotonic(). */
        #define SYNTHEX_COARSE CLOCK_UPTIME_RAW_APPROX
      #else
        #define SYNTHEX_COARSE CLOCK_MONOTONIC
      #endif
      static inline double synthex_monotonic(void) {
          struct timespec t;
          clock_gettime(SYNTHEX_COARSE, &t);
          return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
      }
      static inline double synthex_precise(void) {
          struct timespec t;
          clock_gettime(CLOCK_MONOTONIC, &t);
          return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
      }
      static inline double synthex_wall(void) {
          struct timespec t;
          clock_gettime(CLOCK_REALTIME, &t);
          return (double)t.tv_sec + (double)(t.tv_nsec / 1000) * 1e-6;
      }
    #endif
    #endif
    """
    double monotonic_coarse "synthex_monotonic"() noexcept nogil
    # For durations only: on Windows its zero is not that of the coarse clock.
    double monotonic_precise "synthex_precise"() noexcept nogil
    double wall_clock "synthex_wall"() noexcept nogil
