"""Refuses subinterpreters, before a compiled module is loaded into one.

The compiled modules keep their state in C statics and so serve one interpreter in a process: the first that
loads them. Were that a subinterpreter, the main interpreter could no longer import the package. This module
is imported first and lets only the main interpreter pass.
"""

try:
    import _interpreters  # Python 3.13 and later
except ImportError:
    try:
        import _xxsubinterpreters as _interpreters
    except ImportError:
        # Built without subinterpreters.
        _interpreters = None

if _interpreters is not None and _interpreters.get_current() != _interpreters.get_main():
    raise ImportError("synthex_fast serves the main interpreter only, not a subinterpreter")
