"""Nothing of `_caches.pyx` is for other Cython code: its classes are used as cachetools' are, from Python."""
