"""Passes errors that no caller can catch, from callbacks and background threads, to ``sys.unraisablehook``."""

from __future__ import annotations

import weakref

__all__ = ["report"]


class _Raise:
    """A weak reference callback that raises: the interpreter then calls the hook, whose argument only it can make."""

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
    """Pass ``error`` to ``sys.unraisablehook``. ``where`` appears in the report, as its object or in its message.

    Never raises, so that a thread can continue afterwards. If allocation fails, the error is dropped.

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
