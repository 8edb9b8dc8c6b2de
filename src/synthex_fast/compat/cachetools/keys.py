"""Key functions: what a call's arguments make of a key. The interface of ``cachetools.keys``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any

__all__ = ("hashkey", "methodkey", "typedkey", "typedmethodkey")


class _Named:
    """Divides the positional arguments of a key from the named ones."""


# Equal to no argument, and the same object when it comes out of a pickle.
_NAMED = (_Named,)


def hashkey(*args: Hashable, **kwargs: Hashable) -> tuple[Hashable, ...]:
    """A tuple of the arguments, which must be hashable.

    >>> hashkey(1, b=2) == hashkey(1.0, b=2), hashkey(1, b=2) == hashkey(1, 2)
    (True, False)
    """
    return (*args, *_NAMED, *sorted(kwargs.items())) if kwargs else args


def methodkey(self: Any, /, *args: Hashable, **kwargs: Hashable) -> tuple[Hashable, ...]:
    """`hashkey` without the first argument, the instance."""
    return (*args, *_NAMED, *sorted(kwargs.items())) if kwargs else args


def typedkey(*args: Hashable, **kwargs: Hashable) -> tuple[Hashable, ...]:
    """Like `hashkey`, but arguments of different types are different.

    >>> typedkey(1) == typedkey(1.0)
    False
    """
    named = sorted(kwargs.items())
    types = [type(each) for each in args]
    types += [type(value) for _, value in named]
    return (*args, *_NAMED, *named, *types) if named else (*args, *types)


def typedmethodkey(self: Any, /, *args: Hashable, **kwargs: Hashable) -> tuple[Hashable, ...]:
    """`typedkey` without the first argument, the instance."""
    return typedkey(*args, **kwargs)
