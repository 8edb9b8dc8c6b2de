"""Cached functions: nothing in ``_cached.pyx`` is for other Cython code, which calls them as objects."""
