"""Errors that nobody waits for, those of callbacks and background threads, on their way to ``sys.unraisablehook``."""

from __future__ import annotations

import weakref

__all__ = ["report"]


class _Raise:
    """Raises where the interpreter reports what is raised: the hook itself takes nothing that was made in Python."""

    __slots__ = ("__weakref__", "_error", "_where")

    def __init__(self, error: BaseException, where: object) -> None:
        self._error: BaseException | None = error
        self._where = where

    def __call__(self, reference: object) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error

    def __repr__(self) -> str:
        return repr(self._where)


def report(error: BaseException, where: object) -> None:
    """Hand ``error`` to ``sys.unraisablehook``; ``where`` shows in the object or, from Python 3.14 on, the message.

    Raises nothing, for threads must go on after it: where there is no memory to report an error with, it is dropped.

    >>> import sys
    >>> hook, sys.unraisablehook = sys.unraisablehook, lambda seen: print(repr(seen.exc_value))
    >>> report(ValueError("no"), "a callback")
    ValueError('no')
    >>> sys.unraisablehook = hook
    """
    try:
        victim = _Raise(error, None)
        reference = weakref.ref(victim, _Raise(error, where))
    except MemoryError:
        return
    del error, victim, reference
