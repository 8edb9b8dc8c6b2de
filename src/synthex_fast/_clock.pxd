"""Clocks for Cython code, inline: a coarse monotonic one for deadlines, a precise one, and the wall clock.

The coarse clock advances with the kernel's tick (every 1 to 16 ms) and is read without a system call, in about 4 ns;
the precise one takes 24 ns. It has the scale of ``time.monotonic()``, so the two can be compared. The wall clock is
precise and in whole microseconds, truncated or (from Python 3.15 on) rounded like those of ``datetime.now()``, so that
times from both sort in the order they were taken.
"""

cdef extern from *:
    """
    #ifndef SYNTHEX_CLOCK
    #define SYNTHEX_CLOCK
    /* Of a time in steps, `per` of which make a microsecond: as the interpreter's datetime.now() does. */
    static inline unsigned long long synthex_microseconds(unsigned long long steps, unsigned per) {
    #if PY_VERSION_HEX >= 0x030F0000
        return (steps + per / 2) / per;
    #else
        return steps / per;
    #endif
    }
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
      static inline int synthex_reached(double time) {
          return synthex_precise() >= time;
      }
      static inline unsigned long long synthex_wall_micros(void) {
          FILETIME t;
          ULARGE_INTEGER u;
          GetSystemTimePreciseAsFileTime(&t);
          u.LowPart = t.dwLowDateTime;
          u.HighPart = t.dwHighDateTime;
          /* FILETIME counts 100 ns steps from 1601. */
          return synthex_microseconds(u.QuadPart - 116444736000000000ULL, 10);
      }
    #else
      #include <time.h>
      #if defined(CLOCK_MONOTONIC_COARSE)
        #define SYNTHEX_COARSE CLOCK_MONOTONIC_COARSE
      #elif defined(CLOCK_UPTIME_RAW_APPROX)
        /* macOS: the cached variant of the clock behind time.monotonic(). */
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
      static inline int synthex_reached(double time) {
      #if defined(CLOCK_MONOTONIC_COARSE)
          /* The same clock, as it stood at the kernel's last tick: the precise one is asked only near the time. */
          double now = synthex_monotonic();
          if (now >= time) return 1;
          if (now + 0.05 < time) return 0;
      #endif
          return synthex_precise() >= time;
      }
      static inline unsigned long long synthex_wall_micros(void) {
          struct timespec t;
          clock_gettime(CLOCK_REALTIME, &t);
          return (unsigned long long)t.tv_sec * 1000000 + synthex_microseconds((unsigned long long)t.tv_nsec, 1000);
      }
    #endif
    #define synthex_wall() ((double)synthex_wall_micros() * 1e-6)
    #endif
    """
    double monotonic_coarse "synthex_monotonic"() noexcept nogil
    # For durations only: on Windows it starts from a different zero than the coarse clock.
    double monotonic_precise "synthex_precise"() noexcept nogil
    # Whether the precise clock has reached that time, mostly at the coarse one's price.
    bint precise_reached "synthex_reached"(double) noexcept nogil
    # Microseconds since the epoch.
    unsigned long long wall_micros "synthex_wall_micros"() noexcept nogil
    double wall_clock "synthex_wall"() noexcept nogil
