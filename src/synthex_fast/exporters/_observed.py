"""Which objects are shown, and their figures as one plain dict: all that an exporter or the page needs to know."""

from __future__ import annotations

import itertools
import os
import sys
import time
import weakref

import synthex_fast
from synthex_fast._arguments import want_text
from synthex_fast.errors import type_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["Observed", "observe", "observed"]

CACHE, POOL, BUFFER, COLLECTOR, OTHER = KINDS = ("cache", "pool", "buffer", "collector", "other")

# A figure of an object's `stats` that only this kind has. A collector of responses is also a cache and a buffer.
_TELLING = (("queries", COLLECTOR), ("hit_rate", CACHE), ("reuse_rate", POOL), ("high_water", BUFFER))


def _read_stats(obj: Any) -> Mapping[str, Any]:
    """The ``stats`` of an object, or of a record type, whose ``stats`` is a method; empty if it has none."""
    try:
        stats = obj.stats
    except AttributeError:
        # What a governor takes needs none. An error inside a getter is one.
        if hasattr(type(obj), "stats"):
            raise
        return {}
    return stats() if callable(stats) else stats  # type: ignore[no-any-return]


def _role(obj: Any) -> str | None:
    """What part an object plays of which there is one: a tuner, a monitor, a governor; None for a component."""
    if isinstance(obj, type):
        return None
    if hasattr(obj, "collect_garbage") and hasattr(obj, "request"):
        return "tuner"
    if hasattr(obj, "on_pressure"):
        return "monitor"
    if hasattr(obj, "register") and hasattr(obj, "level"):
        return "governor"
    return None


class Observed:
    """The objects that exporters show: caches, pools, buffers, record types, a tuner, a monitor, a governor.

    They are referenced weakly, and what is registered with the governor is shown without being added. Nothing is read
    until `snapshot` is called. Safe to use from several threads; a forked child shows the same objects, which are then
    its own copies.

    >>> from synthex_fast import TTLDict
    >>> from synthex_fast.exporters import Observed
    >>> shown = Observed()
    >>> users = shown.add(TTLDict(max_size=100), name="users")
    >>> users["ada"] = 1
    >>> shown.snapshot()["components"]["users"]["stats"]["entries"]
    1
    """

    def __init__(self) -> None:
        # By identity; each change of a dict is atomic, and a weak reference may die at any point.
        self._components: dict[int, tuple[Callable[[], Any], str]] = {}
        self._roles: dict[str, Callable[[], Any]] = {}
        # By name, who has it. A name is claimed by `setdefault`, so that no two components get the same one. A lock
        # could be held by another thread at a fork.
        self._names: dict[str, Callable[[], Any]] = {}

    def add(self, obj: T, name: str | None = None) -> T:
        """Show ``obj`` from now on, and return it. O(components).

        ``name`` distinguishes components of one kind; without it the object's own ``name`` or its type's is used, with
        a number if that is taken. A tuner, monitor or governor replaces the one shown before. Adding an object again
        changes its name. Raises `ArgumentTypeError` for an object without ``stats`` or without weak references.
        """
        want_text("name", name, optional=True)
        if not hasattr(obj, "stats"):
            raise type_error("obj", obj, "something with stats, such as a TTLDict, a pool or a GCTuner")
        role = _role(obj)
        key = id(obj)
        try:
            if role is not None:
                self._roles[role] = weakref.ref(obj)
                return obj
            reference = weakref.ref(obj, _remover(self._components, self._names, key))
        except TypeError:
            raise type_error("obj", obj, "an object that can be weakly referenced") from None
        self._forget(obj)
        free = _free_name(
            _base_name(obj, name), lambda name: self._names.setdefault(name, reference) is not reference
        )
        try:
            self._components[key] = (reference, free)
        except BaseException:
            self._names.pop(free, None)
            raise
        return obj

    def remove(self, obj: object) -> bool:
        """Show it no longer. Returns False if it was not shown."""
        for role, reference in list(self._roles.items()):
            if reference() is obj:
                del self._roles[role]
                return True
        return self._forget(obj)

    def _forget(self, obj: object) -> bool:
        known = self._components.get(id(obj))
        if known is None or known[0]() is not obj:
            return False
        _remover(self._components, self._names, id(obj))(known[0])
        return True

    def get(self, role: str) -> Any:
        """The ``"tuner"``, ``"monitor"`` or ``"governor"``, or None if there is none or it is gone."""
        reference = self._roles.get(role)
        return None if reference is None else reference()

    def components(self) -> Iterator[tuple[str, Any]]:
        """The components that exist, by name: those added, then those that only the governor knows."""
        seen = set()
        for key, (reference, name) in list(self._components.items()):
            obj = reference()
            if obj is not None:
                seen.add(key)
                yield name, obj
        # A governor of the user's own may keep its components in another way.
        registry = getattr(self.get("governor"), "_components", None)
        if registry is None:
            return
        taken = set(self._names)
        for state, obj in registry.live():
            if id(obj) not in seen and _role(obj) is None:
                name = _free_name(state.name, taken.__contains__)
                taken.add(name)
                yield name, obj

    def snapshot(self) -> dict[str, Any]:
        """All figures, as a dict of plain values that JSON can hold. O(components); takes no lock of theirs.

        ``time`` (Unix), ``pid``, ``version``, ``python``; ``tuner``, ``governor``, ``monitor``: their ``stats``, the
        monitor's with ``leak``, or None; ``memory``: ``rss``, ``charge``, ``limit``, ``share``, ``level``, from the
        governor or else the tuner, or None; ``components`` by name: ``kind`` (cache, pool, buffer, collector, other),
        ``type``, ``nbytes`` (None if it has none) and ``stats``. What can't be read is left out and named in
        ``errors``.
        """
        errors: dict[str, str] = {}
        result: dict[str, Any] = {
            "time": time.time(),
            "pid": os.getpid(),
            "version": synthex_fast.__version__,
            "python": sys.version.split()[0],
        }
        for role in ("tuner", "governor", "monitor"):
            obj = self.get(role)
            result[role] = None if obj is None else _read(role, _role_stats, obj, errors)
        result["memory"] = _memory(result["governor"], result["tuner"])
        components: dict[str, Any] = {}
        for name, obj in self.components():
            shown = _read(name, _component, obj, errors)
            if shown is not None:
                components[name] = shown
        result["components"] = components
        result["errors"] = errors
        return result


def _base_name(obj: object, given: str | None) -> str:
    given = given or getattr(obj, "name", None)
    kind = obj if isinstance(obj, type) else type(obj)
    return given if isinstance(given, str) and given else kind.__name__


def _free_name(base: str, is_taken: Callable[[str], bool]) -> str:
    if not is_taken(base):
        return base
    numbered = (f"{base}-{number}" for number in itertools.count(2))
    return next(name for name in numbered if not is_taken(name))


def _remover(
    components: dict[int, Any], names: dict[str, Callable[[], Any]], key: int
) -> Callable[[object], None]:
    def remove(reference: object) -> None:
        known = components.get(key)
        if known is not None and known[0] is reference:
            components.pop(key, None)
            if names.get(known[1]) is reference:
                names.pop(known[1], None)

    return remove


def _read(name: str, read: Callable[[Any], Any], obj: Any, errors: dict[str, str]) -> Any:
    # The getters of a component may be the user's: one that fails must not hide the others.
    try:
        return read(obj)
    except Exception as error:
        errors[name] = f"{type(error).__name__}: {error}"
        return None


def _role_stats(obj: Any) -> dict[str, Any]:
    stats = dict(_read_stats(obj))
    leak = getattr(obj, "leak", None)
    if callable(leak):
        found = leak()
        stats["leak"] = {"found": bool(found), "text": found.text}
    return stats


def _component(obj: Any) -> dict[str, Any]:
    stats = dict(_read_stats(obj))
    nbytes = None if isinstance(obj, type) else getattr(obj, "nbytes", None)
    kind = OTHER
    for figure, its_kind in _TELLING:
        if figure in stats:
            kind = its_kind
            break
    if kind == BUFFER:
        # As a collector's stats have it.
        stats["buffered"] = len(obj)
    return {
        "kind": kind,
        "type": obj.__name__ if isinstance(obj, type) else type(obj).__name__,
        "nbytes": nbytes,
        "stats": stats,
    }


def _memory(governor: Mapping[str, Any] | None, tuner: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if governor is not None:
        return {
            "rss": governor["rss"],
            "charge": governor["charge"],
            "limit": governor["limit"],
            "share": governor["used"],
            "level": governor["level"],
        }
    if tuner is not None:
        return {
            "rss": tuner["memory"],
            "charge": None,
            "limit": tuner["memory_limit"],
            "share": tuner["memory_share"],
            "level": None,
        }
    return None


_process = Observed()


def observed() -> Observed:
    """The process's own `Observed`, which `synthex_fast.install` fills and exporters show unless given another."""
    return _process


def observe(obj: T, name: str | None = None) -> T:
    """Show ``obj`` in the process's metrics and on its page; see `Observed.add`.

    >>> from synthex_fast import ObjectPool
    >>> from synthex_fast.exporters import observe
    >>> buffers = observe(ObjectPool(bytearray, 100), name="buffers")
    """
    return _process.add(obj, name)
