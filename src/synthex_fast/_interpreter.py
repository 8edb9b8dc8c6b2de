"""Refuses import in a subinterpreter, before a compiled module is loaded there.

The compiled modules keep their state in C statics, so they serve only the first interpreter of a process that loads
them. If that were a subinterpreter, the main interpreter could no longer import the package. The package imports this
module first, which raises ImportError outside the main interpreter.
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
    raise ImportError("synthex_fast can be imported only in the main interpreter, not in a subinterpreter")
