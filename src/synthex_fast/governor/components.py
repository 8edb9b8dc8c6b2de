"""What a registered object offers, and what the governor keeps about each one.

The protocols say in types what the governor can use. An object may offer several of them: a `TTLDict` is a
`Component` that is `Expirable`, `Limited` and `Capped`. The objects belong to the caller and are referenced weakly, so
a `ComponentState` never refers to its object: its methods are given the object, which their caller keeps alive.

An object's methods and getters are the caller's code. They may raise, re-enter the governor, or register and unregister
components. No lock is held around them, and each error is counted and goes to ``sys.unraisablehook`` the first time.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from synthex_fast import _unraisable
from synthex_fast._fleet.split import SETTLED_PART, SPARE, Claim, Hunger, Need
from synthex_fast.errors import type_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Wait = bool | float | Callable[[], bool | float]
    Live = list[tuple["ComponentState", Any]]

__all__ = [
    "Capped",
    "Component",
    "Expirable",
    "GarbageCollector",
    "IdlePool",
    "Limited",
    "MemorySample",
    "Pausable",
    "PressureSource",
]


# A cache that is at its limit holds at least this part of it: it evicts to 80 % and refills.
HUNGRY_PART = 0.75
# Seconds between two looks at what a cache knows of its misses.
NEED_SECONDS = 0.4
# What one that is not at its limit is given room for: this many seconds of growth, and a little.
GROWTH_SECONDS = 5.0
LEAST_ROOM = 1 << 20


@runtime_checkable
class Component(Protocol):
    """Something that holds memory and can free some of it: all that a component of your own needs.

    >>> class Thumbnails:
    ...     def __init__(self):
    ...         self.images = [bytes(10_000) for _ in range(3)]
    ...     @property
    ...     def nbytes(self):
    ...         return sum(map(len, self.images))
    ...     def trim(self, nbytes):
    ...         before = self.nbytes
    ...         while self.images and before - self.nbytes < nbytes:
    ...             self.images.pop()
    ...         return before - self.nbytes
    >>> thumbnails = Thumbnails()
    >>> isinstance(thumbnails, Component)
    True
    >>> from synthex_fast import MemoryGovernor
    >>> MemoryGovernor().register(thumbnails) is thumbnails
    True
    """

    @property
    def nbytes(self) -> int:
        """Bytes held now. The governor reads it each time it reads memory, so it should be O(1)."""
        ...

    def trim(self, nbytes: int, /) -> int:
        """Free about ``nbytes`` bytes and return how many were freed."""
        ...


@runtime_checkable
class Expirable(Protocol):
    """A component whose entries expire."""

    def expire(self) -> int:
        """Free the entries that have expired and return how many there were."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A component that keeps itself under a memory limit, by evicting.

    The governor changes the limit and later restores it. If the component is `Capped` too, it leaves the limit alone.
    """

    @property
    def memory_limit(self) -> int | None:
        """The most bytes that ``nbytes`` may come to, or None for no limit."""
        ...

    def resize(self, *, memory_limit: int | None) -> object:
        """Change the limit and evict what exceeds it."""
        ...


@runtime_checkable
class Capped(Protocol):
    """A component that takes a second limit from outside and keeps itself under the lower of the two, by evicting.

    Shortage then neither changes its own settings nor causes errors that they would not: what the cap leaves no room
    for is not kept. There is one cap, so register a component with one governor. If something else has set a cap, the
    governor replaces it only by a lower one, and never lifts one that it has not set: of two governors, the one that
    allows less prevails. A cap that was replaced is not set again.
    """

    @property
    def memory_limit(self) -> int | None:
        """The component's own limit of ``nbytes``, or None."""
        ...

    @property
    def memory_cap(self) -> int | None:
        """The limit set by `cap`, or None."""
        ...

    def cap(self, nbytes: int | None, /) -> object:
        """Set the cap, or lift it (None), and evict what exceeds it."""
        ...


@runtime_checkable
class Pausable(Protocol):
    """A component that can refuse or delay additions, as `ResponseBuffer` does."""

    def pause(self, *, wait: Wait) -> object:
        """Delay additions (True), refuse them (False), or delay them for that many seconds; a callable is asked each
        time. Return False if it is paused already: the governor then leaves it to the code that paused it.
        """
        ...

    def resume(self) -> object:
        """Accept additions again."""
        ...


@runtime_checkable
class IdlePool(Protocol):
    """A pool: what it holds is idle, so trimming it loses no data."""

    def acquire(self) -> Any: ...

    def release(self, obj: Any, /) -> object: ...


@runtime_checkable
class GarbageCollector(Protocol):
    """Something that runs the cyclic garbage collector on request, as `GCTuner` does."""

    def collect_garbage(self, nbytes: int, /) -> int:
        """Collect now, unless that would take too much time, and return the bytes by which the process shrank."""
        ...


@runtime_checkable
class MemorySample(Protocol):
    """What the governor uses of a sample that a `PressureSource` passes on. Sizes are in bytes."""

    @property
    def time(self) -> float:
        """Unix time at which it was taken."""
        ...

    @property
    def rss(self) -> int: ...

    @property
    def charge(self) -> int | None: ...

    @property
    def limit(self) -> int: ...

    @property
    def used(self) -> int: ...

    @property
    def level(self) -> str: ...


@runtime_checkable
class PressureSource(Protocol):
    """Something that calls when memory pressure changes, as `AdaptiveMemoryMonitor` does.

    One that also has ``start()`` and ``stop()`` is started if it is not running (``stats["running"]``, or an attribute
    ``running``), and stopped again once the governor no longer uses it.
    """

    def on_pressure(self, level: str, callback: Callable[[str, Any], object], /) -> Callable[[], object]:
        """Call ``callback(level, sample)`` when pressure reaches ``level``. Return a function that cancels it.

        ``sample`` is a `MemorySample` just taken, or None: the governor then reads memory itself.
        """
        ...


# For each protocol, the names that it requires and whether each is a method.
_members: dict[type, tuple[tuple[str, bool], ...]] = {
    protocol: tuple(
        (name, callable(member))
        for base in protocol.__mro__
        for name, member in vars(base).items()
        if not name.startswith("_")
    )
    for protocol in (
        Capped,
        Component,
        Expirable,
        GarbageCollector,
        IdlePool,
        Limited,
        MemorySample,
        Pausable,
        PressureSource,
    )
}


def offers(obj: object, protocol: type) -> bool:
    """Whether ``obj`` has all that ``protocol`` requires.

    Not ``isinstance``: before Python 3.12 that passes on what a getter raises, and since then it overlooks what
    ``__getattr__`` provides. A getter that raises exists; reading it is tried again later.
    """
    return all(_has(obj, name, method) for name, method in _members[protocol])


def _has(obj: object, name: str, method: bool) -> bool:
    try:
        value = getattr(obj, name)
    except AttributeError:
        return False
    except Exception:
        # It exists, but its getter raised. Nothing can be called in its place.
        return not method
    return not method or callable(value)


def lower(limit: int | None, other: int | None) -> int | None:
    """The lower of two limits, of which either may be None for no limit."""
    return other if limit is None or (other is not None and other < limit) else limit


def _read(obj: Any, name: str) -> int | None:
    limit = getattr(obj, name)
    return limit if isinstance(limit, int) else None


def _read_if_possible(obj: Any, name: str) -> int | None:
    try:
        return _read(obj, name)
    except Exception:
        return None


class ComponentState:
    """What the governor keeps about one registered object."""

    __slots__ = (
        "asked_at",
        "capped",
        "collect_method",
        "errors",
        "expirable",
        "freed",
        "growth",
        "hunger",
        "hungry",
        "key",
        "kind",
        "knows_need",
        "limit_at",
        "limited",
        "missed",
        "name",
        "nbytes",
        "need",
        "own_limit",
        "pausable",
        "paused",
        "peak",
        "pool",
        "pressure_source",
        "reference",
        "removed",
        "reported",
        "set_limit",
        "trimmable",
        "weight",
    )

    def __init__(self, obj: object, key: int, reference: Callable[[], Any], weight: float, name: str) -> None:
        self.key = key
        self.reference = reference
        self.weight = weight
        self.name = name
        self.kind = type(obj).__name__
        self.trimmable = offers(obj, Component)
        self.expirable = offers(obj, Expirable)
        self.pausable = offers(obj, Pausable)
        self.pool = offers(obj, IdlePool)
        self.capped = offers(obj, Capped) and not self.pool
        self.limited = self.capped or (offers(obj, Limited) and not self.pool)
        # The method that collects garbage. A tuner without `collect_garbage` does so when it is trimmed.
        self.collect_method: str | None = None
        if offers(obj, GarbageCollector):
            self.collect_method = "collect_garbage"
        elif self.trimmable and _has(obj, "request", True) and _has(obj, "idle", True):
            self.collect_method = "trim"
        self.pressure_source = offers(obj, PressureSource)
        # Bytes when last read, and the most that they have recently been.
        self.nbytes = 0
        self.peak = 0.0
        # Bytes a second between the last two readings.
        self.growth = 0.0
        # Whether it could use more room, and how many misses that would have spared, as far as it knows.
        self.hunger = Hunger()
        self.need = Need()
        self.knows_need = False
        self.asked_at = -math.inf
        self.hungry = False
        self.missed = 0
        # The limit without the governor, and the one that it has set, if any: a cap, or instead of the other.
        self.own_limit: int | None = None
        self.set_limit: int | None = None
        # When that was last changed, or pressure last kept it from growing.
        self.limit_at = 0.0
        if self.limited:
            with contextlib.suppress(Exception):
                self._observe_limit(obj)
        self.paused = False
        # Unregistered, though a list made before may still name it.
        self.removed = False
        self.freed = 0
        self.errors = 0
        self.reported: set[str] = set()

    def observe_need(self, obj: Any, now: float) -> None:
        """Take in what the object knows of its misses: whether it could use more room, and for how many."""
        if 0 <= now - self.asked_at < NEED_SECONDS:
            return
        self.asked_at = now
        count = evicted = None
        try:
            stats = obj.stats
            evicted = stats.get("memory")
            # How many a larger cache would have answered; all of them where that is not known.
            count = stats.get("ghost_hits" if getattr(obj, "policy", "s3fifo") == "s3fifo" else "misses")
        except Exception:
            # Only few components have this.
            pass
        self.knows_need = False
        if isinstance(count, int) and isinstance(evicted, int):
            self.knows_need = True
            self.missed = count
            self.hungry = self.hunger.observe(evicted, now)
            self.need.observe(count, now)
        else:
            limit = lower(self.own_limit, self.set_limit)
            self.hungry = limit is not None and self.nbytes >= HUNGRY_PART * limit

    def is_still(self, obj: Any, noise: float) -> bool:
        """Whether its size has moved by no more than that part of its limit since it was read, and its limit is as it
        was left."""
        if not self.limited:
            return True
        limit = lower(self.own_limit, self.set_limit)
        if limit is not None and abs(self.read_size(obj) - self.nbytes) > noise * limit:
            return False
        own = _read_if_possible(obj, "memory_limit")
        if self.capped:
            return own == self.own_limit and _read_if_possible(obj, "memory_cap") == self.set_limit
        return own == (self.own_limit if self.set_limit is None else self.set_limit)

    @property
    def claim(self) -> Claim:
        """What its weight among the caches of this process depends on."""
        settled = self.set_limit is None or self.nbytes >= SETTLED_PART * self.set_limit
        return Claim(self.nbytes, self.need.want, self.need.evidence, settled or not self.hungry, self.hungry)

    @property
    def room(self) -> float:
        """What it may come to hold soon if it is not hungry."""
        return SPARE * self.peak + GROWTH_SECONDS * self.growth + LEAST_ROOM

    @property
    def evictable(self) -> bool:
        """Whether trimming it evicts entries.

        A buffer only flushes when it is trimmed, which is its handler's business. A collector of responses can be
        paused too, but is also a cache.
        """
        buffer = self.pausable and not self.limited
        return self.trimmable and not (self.pool or buffer or self.collect_method or self.pressure_source)

    def read_size(self, obj: Any) -> int:
        """Bytes that it holds now; 0 if that can't be read."""
        if not self.trimmable:
            return 0
        try:
            size = obj.nbytes
            if isinstance(size, bool) or not hasattr(size, "__index__"):
                raise type_error("nbytes", size, "an integer, 0 or more")
            return max(0, int(size.__index__()))
        except Exception as error:
            self.failed("nbytes", error)
            return 0

    def call(self, obj: Any, method: str, *arguments: Any) -> Any:
        """What the method returns, or None if it raises."""
        try:
            return getattr(obj, method)(*arguments)
        except Exception as error:
            self.failed(method, error)
            return None

    def failed(self, what: str, error: Exception) -> None:
        """Count an error, and report it if it is the first of its kind."""
        self.errors += 1
        if what not in self.reported:
            self.reported.add(what)
            _unraisable.report(error, f"{what} of {self.name}")

    def note_limit(self, obj: Any) -> bool:
        """Take in limits that were set elsewhere; False if they can't be read."""
        try:
            self._observe_limit(obj)
        except Exception as error:
            # Not None: the caller's own limit would be forgotten.
            self.failed("memory_limit", error)
            return False
        return True

    def _observe_limit(self, obj: Any) -> None:
        current = _read(obj, "memory_limit")
        if self.capped:
            cap = _read(obj, "memory_cap")
            if cap != self.set_limit:
                # Somebody else's cap, or none any more.
                self.set_limit = None
                current = lower(current, cap)
            self.own_limit = current
        elif current != (self.own_limit if self.set_limit is None else self.set_limit):
            # Set elsewhere, so this is the limit to restore.
            self.own_limit, self.set_limit = current, None

    def limits(self, obj: Any) -> tuple[int | None, int | None, int | None]:
        """The limit in force, the object's own, and its cap, as they are now; None for what can't be read."""
        own = _read_if_possible(obj, "memory_limit")
        if self.capped:
            cap = _read_if_possible(obj, "memory_cap")
            return lower(own, cap), own, cap
        lowered = self.set_limit is not None and own == self.set_limit
        return own, self.own_limit if lowered else own, None

    def _set(self, obj: Any, limit: int | None) -> None:
        if self.capped:
            obj.cap(limit)
        else:
            obj.resize(memory_limit=self.own_limit if limit is None else limit)

    @property
    def _setter(self) -> str:
        return "cap" if self.capped else "resize"

    def change_limit(self, obj: Any, limit: int | None) -> bool:
        """Limit the object, or no longer (None); False if that raises, with the state as it was."""
        before, self.set_limit = self.set_limit, limit
        try:
            self._set(obj, limit)
        except Exception as error:
            self.set_limit = before
            self.failed(self._setter, error)
            return False
        if self.removed:
            # Unregistered in the meantime, by code that the eviction ran or by a thread that did not wait any longer.
            self.set_limit = limit
            self.restore(obj)
        return True

    def pause(self, obj: Any, wait: Wait) -> bool:
        """Pause the object, unless it is paused already; True if it was paused here."""
        try:
            self.paused = obj.pause(wait=wait) is not False
        except Exception as error:
            self.failed("pause", error)
            return False
        paused = self.paused
        if self.removed:
            self.restore(obj)
        return paused

    def resume(self, obj: Any) -> bool:
        """Resume the object; False if that raises, as it may if allocation fails. It is then tried again later."""
        self.paused = False
        try:
            obj.resume()
        except Exception as error:
            self.paused = True
            self.failed("resume", error)
            return False
        return True

    def restore(self, obj: Any) -> None:
        """Resume the object and undo the governor's limit, unless another has been set elsewhere."""
        if self.paused:
            self.resume(obj)
        limit, self.set_limit = self.set_limit, None
        if limit is not None:
            what = "memory_cap" if self.capped else "memory_limit"
            try:
                if _read(obj, what) == limit:
                    what = self._setter
                    self._set(obj, None)
            except Exception as error:
                # The limit to restore must not be forgotten: the next stop tries again.
                self.set_limit = limit
                self.failed(what, error)


class Registry:
    """The registered objects, by identity.

    No lock: each change of the dict is atomic, since a weak reference may die in any thread at any point.
    """

    __slots__ = ("_states",)

    def __init__(self) -> None:
        self._states: dict[int, ComponentState] = {}

    def __len__(self) -> int:
        return len(self._states)

    def states(self) -> list[ComponentState]:
        return list(self._states.values())

    def find(self, obj: object) -> ComponentState | None:
        state = self._states.get(id(obj))
        return state if state is not None and state.reference() is obj else None

    def add(self, obj: object, weight: float, name: str | None) -> None:
        """Register ``obj``, or change its weight and name."""
        known = self.find(obj)
        if known is not None:
            known.weight = weight
            if name is not None:
                known.name = self._unique_name(obj, name)
            return
        key = id(obj)
        try:
            reference = weakref.ref(obj, _remover(self._states, key))
        except TypeError:
            raise type_error("obj", obj, "an object that can be weakly referenced") from None
        self._states[key] = ComponentState(obj, key, reference, weight, self._unique_name(obj, name))

    def remove(self, state: ComponentState) -> None:
        self._states.pop(state.key, None)
        state.removed = True

    def live(self) -> Live:
        """The components that still exist, each with its object. Pressure sources hold no memory and are left out."""
        found = []
        for state in self.states():
            obj = state.reference()
            if obj is not None and not state.removed and (state.trimmable or state.collect_method):
                found.append((state, obj))
        return found

    def _unique_name(self, obj: object, given: object) -> str:
        # In the stats one of two components with the same name would hide the other.
        given = given or getattr(obj, "name", None)
        base = given if isinstance(given, str) and given else type(obj).__name__
        taken = {state.name for state in self.states() if state.reference() is not obj}
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        return name


def _remover(states: dict[int, ComponentState], key: int) -> Callable[[object], None]:
    # Refers to the dict only: a component must not keep the governor alive.
    def remove(reference: object) -> None:
        state = states.get(key)
        if state is not None and state.reference is reference:
            states.pop(key, None)

    return remove
