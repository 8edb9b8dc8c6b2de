# Types of `_codes.pyx`: nothing in it is for Python callers.

__all__: list[str]
