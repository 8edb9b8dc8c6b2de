"""Fork and exit, in one order for the whole package.

Each part that has a thread, a lock or descriptors of its own registers here for its stage. Before a fork and at the
interpreter's exit the stages run from the last to the first, after a fork from the first to the last: a part that uses
another one pauses before it and resumes after it. The governor acts through a monitor, so its stage is later than the
monitor's; everything reads memory, so descriptors are marked as the parent's first.

State in C that must be right even where a fork bypasses the interpreter's hooks uses `synthex_fast._forks` instead.
"""

from __future__ import annotations

import atexit
import os

# Its hook for forked children must run before those here: it takes every thread but the one that forked for the
# parent's, even one that a part has just started.
import threading  # noqa: F401

from synthex_fast import _unraisable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Hook = Callable[[], object]

__all__ = ["Stage", "is_exiting", "register"]


class Stage:
    """The order in which parts resume after a fork; they pause before one in the reverse order.

    Plain numbers: the first dict that needs the sweeper imports this module, and importing `enum` would cost more.
    """

    READINGS = 0
    # Locks that the governor holds over the fork, taken once no thread of the package is left to wait for them.
    GOVERNOR_LOCKS = 1
    SWEEPER = 2
    TUNER = 3
    MONITOR = 4
    GOVERNOR = 5
    # It reads all of the others.
    PAGE = 7


class _Hooks:
    __slots__ = ("after_in_child", "after_in_parent", "at_exit", "before")

    def __init__(
        self,
        before: Hook | None,
        after_in_parent: Hook | None,
        after_in_child: Hook | None,
        at_exit: Hook | None,
    ) -> None:
        self.before = before
        self.after_in_parent = after_in_parent
        self.after_in_child = after_in_child
        self.at_exit = at_exit


_hooks: dict[int, _Hooks] = {}
# Made at registration: a fork must not depend on memory being left for another list.
_in_order: tuple[_Hooks, ...] = ()
_last_first: tuple[_Hooks, ...] = ()
_exiting = False


def register(
    stage: int,
    *,
    before: Hook | None = None,
    after_in_parent: Hook | None = None,
    after_in_child: Hook | None = None,
    at_exit: Hook | None = None,
) -> None:
    """Register functions to call around each fork and at the interpreter's exit.

    A stage has one registration, and the latest counts: a module whose import was interrupted is imported again. What a
    hook raises goes to ``sys.unraisablehook``, and the other hooks still run.
    """
    global _hooks, _in_order, _last_first
    # The dict last: if allocation fails, nothing has been registered, and the import may be repeated.
    added = {**_hooks, stage: _Hooks(before, after_in_parent, after_in_child, at_exit)}
    in_order = tuple(added[each] for each in sorted(added))
    _in_order, _last_first, _hooks = in_order, in_order[::-1], added


def is_exiting() -> bool:
    """Whether the interpreter has begun to exit: no thread should be started from then on."""
    return _exiting


def _call(hook: Hook | None) -> None:
    if hook is not None:
        try:
            hook()
        except BaseException as error:
            _unraisable.report(error, hook)


def _before_fork() -> None:
    for hooks in _last_first:
        _call(hooks.before)


def _after_in_parent() -> None:
    for hooks in _in_order:
        _call(hooks.after_in_parent)


def _after_in_child() -> None:
    for hooks in _in_order:
        _call(hooks.after_in_child)


def _at_exit() -> None:
    global _exiting
    _exiting = True
    for hooks in _last_first:
        _call(hooks.at_exit)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
atexit.register(_at_exit)
