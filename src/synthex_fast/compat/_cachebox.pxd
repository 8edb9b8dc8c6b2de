"""Nothing of `_cachebox.pyx` is for other Cython code: its classes are used as cachebox's are, from Python."""
