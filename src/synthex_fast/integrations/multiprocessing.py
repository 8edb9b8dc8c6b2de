"""Pools of processes: `initializer` for `multiprocessing.Pool` and `ProcessPoolExecutor`, `counted` for what they call.

>>> from concurrent.futures import ProcessPoolExecutor
>>> from synthex_fast.integrations.multiprocessing import counted, initializer
>>> with ProcessPoolExecutor(2, initializer=initializer(memory_limit="80%")) as pool:
...     list(pool.map(counted(len), ["a", "bc"]))
[1, 2]

Works with each start method. With ``fork`` and ``forkserver``, call `synthex_fast.integrations.forking.freeze` in the
parent, after it has loaded what its children share: their collections then don't copy it.
"""

from __future__ import annotations

import functools
import sys

from synthex_fast._arguments import want_callable
from synthex_fast.errors import type_error
from synthex_fast.integrations import installation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["counted", "initializer"]


def initializer(
    *, then: Callable[..., object] | None = None, thenargs: Iterable[Any] = (), **options: Any
) -> Callable[[], None]:
    """An initializer for a pool's processes, which can be pickled: installs in each of them.

    ``options`` are the arguments of `synthex_fast.install`. ``then(*thenargs)``, an initializer of your own, is called
    afterwards. Bad arguments are refused here, in the parent.
    """
    want_callable("then", then, optional=True)
    try:
        arguments = tuple(thenargs)
    except TypeError:
        raise type_error("thenargs", thenargs, "an iterable of arguments for `then`") from None
    return functools.partial(_initialize, installation.checked(options), then, arguments)


def _initialize(
    options: dict[str, Any], then: Callable[..., object] | None, arguments: tuple[Any, ...]
) -> None:
    installation.place(None, None, options)[1].start()
    if then is not None:
        then(*arguments)


class counted:
    """``function`` with each call a request, wherever an installation runs. It can be pickled if ``function`` can."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = want_callable("function", function)
        self.__qualname__ = ""
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        placed = installation.current()
        if placed is None or not placed.running or placed.tuner is None:
            return self._function(*arguments, **named)
        with placed.tuner.request():
            return self._function(*arguments, **named)

    def __reduce__(self) -> Any:
        found: Any = sys.modules.get(self.__module__)
        for name in self.__qualname__.split("."):
            found = getattr(found, name, None)
        # As a decorator it has taken the function's name, by which functions are pickled.
        return self.__qualname__ if found is self else (counted, (self._function,))
