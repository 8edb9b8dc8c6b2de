"""The governor itself: it reads memory, asks the policy what to do, and does it to the components.

Each concern has its own module, with its own state:

- `components`: what an object may offer (protocols), and what is kept about each registered one;
- `reading`: memory in use against the nearer limit;
- `policy`: how much to free, which limits caches get, when to read memory next;
- `thread`: who acts and when, the thread, forks, exit;
- `sharing`: what the governors of one container agree on;
- `subscription`: the pressure source that wakes the governor.

`MemoryGovernor._step` is one pass: read memory, update what the policy knows, then act in order of what it costs the
caller, from pausing buffers (which frees nothing but stops the rise) to a full collection. Memory is read again after
each action, so that the next one deals with what is left. Only one thread at a time takes a step, and it holds no lock
while it does: components and callbacks may do anything, including registering, unregistering and stopping the governor.
"""

from __future__ import annotations

import gc
import math
import re
import time
import weakref
from typing import TYPE_CHECKING, TypeVar

from synthex_fast import _pressure, _threads, _unraisable
from synthex_fast import monitor as _monitor
from synthex_fast._arguments import finite_number, refuse_awaited, want_callable, want_text
from synthex_fast._pressure import (
    CRITICAL,
    EMERGENCY,
    HIGH,
    HYSTERESIS,
    LEVELS,
    MARKS,
    NORMAL,
    WARNING,
    MemoryUse,
    classify,
)
from synthex_fast.errors import ArgumentTypeError, type_error, value_error
from synthex_fast.governor.components import (
    Component,
    GarbageCollector,
    PressureSource,
    Registry,
    offers,
)
from synthex_fast.governor.policy import IDLE_SECONDS, NOISE, SIZED_FOR, Policy, share_out
from synthex_fast.governor.reading import MemoryReader
from synthex_fast.governor.sharing import Sharing
from synthex_fast.governor.subscription import Subscription
from synthex_fast.governor.thread import Worker, is_acting, join

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Literal, NoReturn, Self

    from synthex_fast._fleet._watch import Watch
    from synthex_fast._pressure import MemoryReadings
    from synthex_fast.governor.components import Live, Wait

    Pause = Literal["wait", "fail"] | Wait

__all__ = ["MemoryGovernor"]

# What a fleet may be called: it becomes part of a file's name.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

# While nothing moves: how often it is made sure of that, and how often a step is taken all the same.
STILL_SECONDS = 10.0
STILL_MOST_SECONDS = 30.0

T = TypeVar("T", bound="Component | GarbageCollector | PressureSource")


class _Action:
    """How often something was done, its results, and when and why it was last done."""

    __slots__ = ("count", "freed", "last", "returned", "why")

    def __init__(self) -> None:
        self.count = 0
        self.freed = 0
        self.returned = 0
        self.last = 0.0
        self.why = ""


class MemoryGovernor:
    """Keeps the memory of a process under one limit by shrinking the components registered with it.

    ``limit`` is the most that resident memory may come to: bytes, a size such as ``"512MB"``, a percentage of the
    container's limit (or of the host's memory, outside a container), or None for all of that, which is followed if a
    container is resized. Inside a container its charge is also compared with its own limit. Components are registered
    with `register` and referenced weakly; a monitor is kept alive while it is in use.

    What the governor does, by level (shares of the limit; a level ends 3 points below its mark):

    - normal: caches whose own limits exceed the headroom get lower ones for the time being, so that together they fill
      up to 77.5 % of the limit and no further. Those that are `Capped`, as TTLDict is, keep their own limits and get a
      cap, which causes no errors. If no limit was given and there is no container, no limit is lowered.
      Limits lowered under pressure grow back, by a tenth every five seconds.
    - warning (70 %): expired entries are freed and idle pools trimmed. No cache gets a limit below what it holds.
    - high (80 %): caches evict, in proportion to weight times size, and get lower limits so that they don't refill.
    - critical (90 %): one full garbage collection, through the tuner if one is registered, and free memory is returned
      to the system (``malloc_trim``). Both take at most half of the time, and are repeated less often while they
      return nothing.
    - emergency (95 %): buffers are paused (additions wait or fail, as ``pause`` says) and ``on_emergency(governor)`` is
      called. When memory falls again, the buffers are resumed first.

    ``pause`` is ``"wait"``, ``"fail"``, the seconds to wait, or a callable that each addition asks in its own thread
    (see `ResponseBuffer.pause`). What components and callbacks raise goes to ``sys.unraisablehook``.

    A running governor acts in its monitor's thread as soon as the monitor calls, using the sample passed on, and in a
    thread of its own while there is something to watch; otherwise both are asleep. It uses ``monitor`` or a registered
    one, and starts it if necessary; without either it creates an `AdaptiveMemoryMonitor`. It runs until `stop`, which
    lifts the caps and gives every other component its own limit back. ``readings`` and ``clock`` replace the sources of
    memory figures and time, for tests.

    In a container, the running governors of several processes of one user share its memory: each gets a part for its
    caches, by what another byte is worth to it (see ``stats["fleet"]``). ``fleet=False`` leaves this one out; a name
    of letters, digits, ``-`` and ``_`` makes a fleet of those in the container that give the same.

    >>> from synthex_fast import TTLDict
    >>> governor = MemoryGovernor("80%")
    >>> answers = governor.register(TTLDict(memory_limit=1_000_000))
    >>> governor.check()
    'normal'
    >>> governor.stats["components"]["TTLDict"]["nbytes"]
    0
    """

    def __init__(
        self,
        limit: int | float | str | None = None,
        *,
        monitor: PressureSource | None = None,
        readings: MemoryReadings | None = None,
        clock: Callable[[], float] | None = None,
        on_emergency: Callable[[MemoryGovernor], object] | None = None,
        pause: Pause = "wait",
        fleet: bool | str = True,
    ) -> None:
        want_callable("on_emergency", on_emergency, optional=True)
        want_callable("clock", clock, optional=True)
        if monitor is not None and not offers(monitor, PressureSource):
            raise type_error("monitor", monitor, "an AdaptiveMemoryMonitor, another PressureSource, or None")
        if not isinstance(fleet, (bool, str)):
            raise type_error("fleet", fleet, "True, False, or a name of letters, digits, - and _")
        if isinstance(fleet, str) and not _NAME.fullmatch(fleet):
            raise value_error("fleet", fleet, "True, False, or a name of 1 to 64 letters, digits, - and _")
        self._wait = _wait_from(pause)
        self._clock = time.monotonic if clock is None else clock
        self._memory = MemoryReader(limit, readings, self._clock)
        self._sharing = Sharing(fleet, self._memory.readings)
        self._on_emergency = on_emergency
        self._components = Registry()
        self._worker = Worker()
        self._subscription = Subscription()
        self._given_monitor = monitor
        # A monitor created here reads the process's memory. Readings given by the caller may not.
        self._trusts_own_monitor = readings is None
        self._reset()

    def _reset(self) -> None:
        """Forget everything learned and done."""
        self._level = NORMAL
        self._interval = math.inf
        self._policy = Policy(self._clock(), self._memory.limit, self._memory.bounded)
        self._policy.shares_limit = self._memory.follows
        self._sharing.leave()
        self._actions: dict[str, _Action] = {}
        # How many actions have been recorded.
        self._records = 0
        # Until when a step may be left out if nothing has moved, and what it would have to move from: resident size,
        # charge, and the number of components.
        self._still_until = -math.inf
        self._still = (0, 0, 0)

    # Components

    def register(self, obj: T, weight: float = 1.0, *, name: str | None = None) -> T:
        """Have the governor count and shrink ``obj``, and return it. O(components).

        Accepts a `Component`, which has ``nbytes`` and ``trim(nbytes) -> int``: a TTLDict, a pool, a buffer, a
        collector, an object of your own. Also a `GarbageCollector` (a tuner) and a `PressureSource` (a monitor).
        ``weight`` says how much of its size it gives up compared with others: with 2 twice the share that it would with
        1; with 0 nothing, it is only counted. Registering an object again changes its weight. It is referenced weakly:
        `ArgumentTypeError` for an object that can't be.

        >>> MemoryGovernor().register([])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        synthex_fast.errors.ArgumentTypeError: obj must be something with nbytes and trim(nbytes), ...
        """
        weight = finite_number("weight", weight, "a number, 0 or more", least=0)
        want_text("name", name, optional=True)
        if not any(offers(obj, protocol) for protocol in (Component, PressureSource, GarbageCollector)):
            needed = (
                "nbytes and trim(nbytes), with collect_garbage(nbytes), or with on_pressure(level, callback)"
            )
            raise type_error("obj", obj, f"something with {needed}")
        self._components.add(obj, weight, name)
        self._wake()
        return obj

    def unregister(self, obj: object) -> bool:
        """Leave ``obj`` alone from now on: lift its cap or restore its own limit, and resume it.

        Returns False if it was not registered.
        """
        state = self._components.find(obj)
        if state is None:
            return False
        self._components.remove(state)
        self._worker.wait_for_actor()
        state.restore(obj)
        if obj is self._subscription.source and obj is not self._given_monitor:
            self._subscription.detach()
            self._wake()
        return True

    # Acting

    @property
    def limit(self) -> int:
        """The limit in bytes."""
        return self._memory.limit

    @property
    def level(self) -> str:
        """``"normal"``, ``"warning"``, ``"high"``, ``"critical"`` or ``"emergency"``, when memory was last read."""
        return LEVELS[self._level]

    @property
    def running(self) -> bool:
        """Whether it acts by itself: between `start` and `stop`."""
        return self._worker.running

    def check(self) -> str:
        """Read memory now, act as its level requires, and return the level afterwards.

        For tests, and for programs without threads; a running governor does this by itself. Returns at once if another
        thread is doing it, or if called from a callback of the governor's own; memory is then read again there. Limits
        lowered and buffers paused remain so until memory falls or `stop` is called.
        """
        self._worker.act(self, True)
        return LEVELS[self._level]

    def _rest(self) -> float:
        """Seconds for which nothing is to be done, because all is as it was; 0 if a step is due."""
        now = self._clock()
        sharing = self._sharing
        if not sharing.is_as_before():
            return 0.0
        rest = sharing.rest(now)
        if rest <= 0 and self._is_still(now):
            sharing.due = now + STILL_SECONDS
            rest = sharing.interval(STILL_SECONDS)
        return rest

    def _is_still(self, now: float) -> bool:
        """Whether all that a step would decide from is as it was when the last one found nothing to do.

        A tenth of a step's cost: the limits are not read, nor needs, and nothing is divided anew.
        """
        if now >= self._still_until:
            return False
        try:
            rss, charge = self._memory.read_sizes()
        except Exception:
            # The step will report it.
            return False
        then, least = self._still, NOISE * self._memory.least_limit
        if abs(rss - then[0]) > least or abs((charge or 0) - then[1]) > least:
            return False
        components = self._components.live()
        return len(components) == then[2] and all(state.is_still(obj, NOISE) for state, obj in components)

    def _watch(self, watch: Watch) -> float:
        """Seconds for which nothing is to be done unless ``watch`` finds that the siblings have changed."""
        return self._sharing.watch(watch, self._clock())

    def _step(self, sample: object = None) -> None:
        """One pass: read memory (or use a sample just taken) and act on it."""
        now = self._clock()
        sharing = self._sharing
        # Another step is due at once if this one fails.
        sharing.due = self._still_until = -math.inf
        records = self._records
        try:
            use = self._memory.read_memory(sample)
        except Exception as error:
            # Without figures nothing can be decided; the next reading may succeed.
            _unraisable.report(error, self)
            self._interval = IDLE_SECONDS[WARNING]
            return
        policy = self._policy
        components = self._components.live()
        states = [state for state, _ in components]
        elapsed = policy.elapsed(now)
        divides = policy.divides(states, sharing.member.joined)
        for state, obj in components:
            before, state.nbytes = state.nbytes, state.read_size(obj)
            if divides and state.limited and state.weight:
                state.observe_need(obj, now)
            if elapsed > 0:
                state.growth = max(0.0, (state.nbytes - before) / elapsed)
        was, self._level = self._level, classify(use.share, self._level)
        level = self._level
        policy.observe(use, states, now, self._memory.limit)
        if self.running:
            try:
                sharing.consult(policy, use, self._memory.shared, components, level, now)
            except Exception as error:
                # The process's own memory is watched all the same.
                policy.alone()
                _unraisable.report(error, self)
        why = _reason(use)
        # Once the main thread has ended, the interpreter joins the others, also those that wait for a buffer.
        ending = _threads.main_thread_has_ended()
        if level >= EMERGENCY:
            if not ending:
                self._pause(components, why)
            if was < EMERGENCY:
                self._worker.emergency = True
                self._record("emergency", why)
        if level >= WARNING:
            use = self._free_unused(components, use, why)
        if level >= HIGH:
            use = self._evict(components, use, level, now, why)
        else:
            policy.calm()
        use = self._limit_caches(components, use, level, now, why)
        if level >= WARNING:
            use = self._trim_heap(components, use, level, why)
        if level >= CRITICAL:
            use = self._collect(components, use, why)
        level = self._level = classify(use.share, level)
        if level < EMERGENCY or ending:
            self._resume(components, use)
        seconds = policy.next_reading(use, states, level, now, self._clock() - now)
        if (
            seconds == IDLE_SECONDS[NORMAL]
            and level == NORMAL
            and records == self._records
            and self._memory.bounded
            and sharing.quiet
            and policy.is_settled(use, states)
        ):
            seconds = STILL_SECONDS
            self._still_until = now + STILL_MOST_SECONDS
            self._still = use.rss, use.charge or 0, len(components)
        sharing.due = now + seconds
        self._interval = sharing.interval(seconds)
        self._memory.acted()

    def _free_unused(self, components: Live, use: MemoryUse, why: str) -> MemoryUse:
        """Free what is not in use: expired entries, and objects idle in pools."""
        freed = 0
        for state, obj in components:
            if state.expirable and not state.removed:
                count = state.call(obj, "expire")
                freed += count if isinstance(count, int) else 0
        if freed:
            after = self._memory.read_memory()
            self._record("expire", why, freed, use.used - after.used)
            use = after
        excess = use.over(MARKS[WARNING] - HYSTERESIS)
        pools = [(state, obj) for state, obj in components if state.pool and state.trimmable]
        if excess > 0 and any(state.nbytes and state.weight for state, _ in pools):
            claims = [(state.weight * state.nbytes, float(state.nbytes)) for state, _ in pools]
            use = self._trim(pools, share_out(excess, claims), use, "trim_pools", why)
        return use

    def _evict(self, components: Live, use: MemoryUse, level: int, now: float, why: str) -> MemoryUse:
        policy = self._policy
        excess = policy.excess(use, level, now)
        if excess is None:
            return use
        caches = [(state, obj) for state, obj in components if state.evictable]
        amounts = policy.evictions(excess, [state for state, _ in caches], level)
        use = self._trim(caches, amounts, use, "evict", why)
        policy.evicted(use, now)
        return use

    def _trim(
        self, components: Live, amounts: list[float], use: MemoryUse, action: str, why: str
    ) -> MemoryUse:
        """Make each component free its amount."""
        freed = 0
        asked = False
        for (state, obj), amount in zip(components, amounts, strict=True):
            if amount < 1 or state.removed:
                continue
            asked = True
            done = state.call(obj, "trim", math.ceil(amount))
            if isinstance(done, int) and not isinstance(done, bool) and done > 0:
                state.freed += done
                state.nbytes = max(0, state.nbytes - done)
                freed += done
        if not asked:
            return use
        self._policy.freed(freed)
        after = self._memory.read_memory()
        self._record(action, why, freed, use.used - after.used)
        return after

    def _limit_caches(self, components: Live, use: MemoryUse, level: int, now: float, why: str) -> MemoryUse:
        """Set the limits under which all caches can fill up to the target size and no further."""
        caches = []
        for state, obj in components:
            if state.limited and state.weight and not state.removed and state.note_limit(obj):
                caches.append((state, obj))
        changes = self._policy.limits(use, [state for state, _ in caches], level, now)
        given = 0
        for n, limit, action in changes:
            state, obj = caches[n]
            before = state.nbytes
            if state.change_limit(obj, limit):
                self._record(action, why)
                if limit is not None and limit < before:
                    # Given to siblings.
                    state.nbytes = state.read_size(obj)
                    state.peak = min(state.peak, float(limit))
                    given += max(0, before - state.nbytes)
        return self._return(use, given, why) if given else use

    def _return(self, use: MemoryUse, given: int, why: str) -> MemoryUse:
        """Hand memory that caches have given up back to the system, for siblings."""
        self._policy.freed(given)
        cost = given * self._policy.overhead
        if cost < NOISE * use.limit:
            return use
        if self._policy.share is None:
            # For other caches of this process, which can use it as it is.
            self._record("give", why, given)
            return use
        if _pressure.find_malloc_trim():
            self._policy.heap_trim_begins()
            _pressure.malloc_trim()
        after = self._memory.read_memory()
        self._record("give", why, given, use.rss - after.rss)
        self._sharing.gave(cost, use.rss - after.rss, self._clock())
        return after

    def _collect(self, components: Live, use: MemoryUse, why: str) -> MemoryUse:
        """Run one full garbage collection, if that is due."""
        began = self._clock()
        if not self._policy.collects(use, began):
            return use
        for state, obj in components:
            if state.collect_method is not None and not state.removed:
                state.call(obj, state.collect_method, math.ceil(max(1.0, use.over(SIZED_FOR))))
                break
        else:
            gc.collect()
        after = self._memory.read_memory()
        now = self._clock()
        returned = use.used - after.used
        self._policy.collected(now, now - began, returned, use)
        self._record("collect", why, 0, returned)
        return self._trim_heap(components, after, CRITICAL, why)

    def _trim_heap(self, components: Live, use: MemoryUse, level: int, why: str) -> MemoryUse:
        """Make the C library return free memory to the system, if it is likely to hold some."""
        began = self._clock()
        states = [state for state, _ in components]
        if not _pressure.find_malloc_trim() or not self._policy.trims_heap(use, states, level, began):
            return use
        self._policy.heap_trim_begins()
        _pressure.malloc_trim()
        after = self._memory.read_memory()
        now = self._clock()
        returned = use.used - after.used
        self._policy.heap_trimmed(now, now - began, returned, use)
        self._record("malloc_trim", why, 0, returned)
        return after

    def _pause(self, components: Live, why: str) -> None:
        for state, obj in components:
            if state.pausable and not state.paused and not state.removed and state.pause(obj, self._wait):
                self._record("pause", why)

    def _resume(self, components: Live, use: MemoryUse) -> None:
        for state, obj in components:
            if state.paused and state.resume(obj):
                self._record("resume", _reason(use))

    def _record(self, action: str, why: str, freed: int = 0, returned: int = 0) -> None:
        """Record an action in the stats."""
        self._records += 1
        entry = self._actions.get(action)
        if entry is None:
            entry = self._actions[action] = _Action()
        entry.count += 1
        entry.freed += freed
        entry.returned += max(0, returned)
        entry.last = self._clock()
        entry.why = why

    def _notify_emergency(self) -> None:
        callback = self._on_emergency
        try:
            if callback is not None:
                refuse_awaited("on_emergency", callback(self))
        except Exception as error:
            _unraisable.report(error, callback)

    # Running

    def start(self) -> None:
        """Act by itself from now on. Does nothing if it does already."""
        if not self._worker.start(self):
            return
        _pressure.find_malloc_trim()
        try:
            self._wake()
        except BaseException:
            # If no thread could be started it would never act.
            self.stop()
            raise

    def _wake(self) -> None:
        """Act as soon as possible, in the governor's own thread, unless there is nothing to act on."""
        if self.running and (len(self._components) or self._on_emergency is not None):
            self._subscribe()
            self._worker.plan(0.0)

    def _subscribe(self) -> None:
        """Make a monitor call when the level changes."""
        worker = self._worker
        with worker.state:
            if worker.attaching or not worker.running:
                return
            worker.attaching = True
        try:
            source: Any = self._given_monitor
            for state in self._components.states():
                if source is None and state.pressure_source:
                    source = state.reference()
            trusted = source is not None or self._trusts_own_monitor
            if source is None:
                limit = self.limit if self._memory.bounded and not self._memory.follows else None
                source = self._subscription.source or _monitor.AdaptiveMemoryMonitor(limit=limit)
            self._subscription.attach(source, _pressure_callback(self, trusted))
        finally:
            with worker.state:
                worker.attaching = False
                # Stopped in the meantime, by a thread that found nothing to detach.
                leave = None if worker.running else self._subscription.take()
            if leave is not None:
                leave()

    def stop(self) -> None:
        """Stop acting, lift the caps, give every other component its own limit back, and resume what was paused."""
        with self._worker.state:
            # At once: another thread may start it again as soon as it has stopped.
            thread = self._worker.stop()
            leave = self._subscription.take()
        leave()
        join(thread)
        # A thread that is acting at this moment does it instead.
        self._worker.act(self, False)
        self._worker.wait_for_actor()

    def _restore(self) -> None:
        for state in self._components.states():
            obj = state.reference()
            if obj is not None:
                state.restore(obj)
        self._reset()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # Reporting

    @property
    def stats(self) -> dict[str, Any]:
        """What holds memory and what has been done about it, as a dict. O(components).

        ``rss``, ``charge`` (the container's; None outside one), ``limit``, ``used`` (share of the nearer limit),
        ``level``; ``nbytes``, the sum of what the components count, and ``rest``, the part of ``rss`` that is not
        theirs; ``overhead``, the resident bytes learned for each counted one. ``requested_limit`` is what was asked
        for: more than the machine has is clamped. ``container`` is ``limited``, ``none``, or ``unknown`` if the
        container's limits can't be read. ``components`` by name: ``type``, ``nbytes``, ``weight``, ``memory_limit``
        in force, ``own_limit`` that holds without a governor, ``memory_cap`` (None unless it is `Capped` and has one),
        ``paused``, ``freed`` bytes, ``errors``. ``actions`` by name:
        ``count``, ``freed`` (as counted by the components; entries for ``expire``), ``returned`` (bytes by which memory
        fell), ``seconds_ago`` and ``why``. ``looks``, how often the governor has considered memory, and
        ``cpu_seconds``, which that and everything that followed has taken. ``note``, the reason if there is nothing to
        do. ``fleet`` is about the workers of the container: ``state`` is ``joined``, or ``alone`` for the ``reason``
        given; ``workers``, how many there are; ``share``, resident bytes for this one's caches (None without others);
        ``siblings``, a list of what the others say of themselves: ``pid``, ``started`` (Unix time), ``nbytes`` that
        their caches count, ``held`` bytes that these occupy, ``share``, ``want`` (ghost hits a second), ``weight`` and
        ``level`` (0 for normal to 4 for emergency).
        """
        use = self._memory.read_memory()
        now = self._clock()
        total = 0
        components = {}
        for state, obj in self._components.live():
            size = state.read_size(obj)
            total += size
            limit, own, cap = state.limits(obj) if state.limited else (None, None, None)
            components[state.name] = {
                "type": state.kind,
                "nbytes": size,
                "weight": state.weight,
                "memory_limit": limit,
                "own_limit": own,
                "memory_cap": cap,
                "paused": state.paused,
                "freed": state.freed,
                "errors": state.errors,
            }
        return {
            "limit": self._memory.limit,
            "requested_limit": self._memory.requested,
            "container": self._memory.container_state,
            "rss": use.rss,
            "charge": use.charge,
            "used": use.share,
            "level": LEVELS[self._level],
            "nbytes": total,
            "rest": max(0, use.rss - total),
            "overhead": self._policy.overhead,
            "components": components,
            "actions": {
                name: {
                    "count": action.count,
                    "freed": action.freed,
                    "returned": action.returned,
                    "seconds_ago": now - action.last,
                    "why": action.why,
                }
                for name, action in list(self._actions.items())
            },
            "looks": self._worker.looks,
            "cpu_seconds": self._worker.cpu_seconds,
            "fleet": self._sharing.stats(),
            "note": self._idle_reason(),
        }

    def _idle_reason(self) -> str | None:
        if not len(self._components):
            return "nothing is registered, so nothing can be shrunk"
        if not self._memory.bounded:
            return "no limit was given and there is no container: the limit is all of the machine's memory"
        return None

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(
            f"{type(self).__name__} can't be pickled or copied: it belongs to this process; its stats can"
        )

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        name = type(self).__name__
        return f"<{name} of {len(self._components)} parts, limit {self.limit:,} bytes, {self.level}, {state}>"


def _reason(use: MemoryUse) -> str:
    return f"{use.share:.1%} of {use.limit:,} bytes in use"


def _wait_from(pause: Any) -> Wait:
    """What buffers are told to do with additions, from the argument ``pause``."""
    allowed = '"wait", "fail", seconds (0 or more) or a callable that returns True, False or seconds'
    if isinstance(pause, str):
        if pause not in ("wait", "fail"):
            raise value_error("pause", pause, allowed)
        wait: Any = pause == "wait"
    elif isinstance(pause, bool) or callable(pause) or (isinstance(pause, float) and pause == math.inf):
        wait = pause
    else:
        wait = finite_number("pause", pause, allowed, least=0)
    if callable(wait):
        want_callable("pause", wait)
    if wait is False:
        return False

    def ask() -> bool | float:
        # A thread that acts for a governor would wait for itself.
        if is_acting():
            return False
        answer: bool | float = wait() if callable(wait) else wait
        return answer

    return ask


def _pressure_callback(governor: MemoryGovernor, trusted: bool) -> Callable[[str, object], None]:
    """What a monitor calls. It refers to the governor weakly, since a monitor may outlive it.

    The samples of a monitor that is not ``trusted`` may show other memory than the governor's readings.
    """
    reference = weakref.ref(governor)

    def on_pressure(level: str, sample: object) -> None:
        governor = reference()
        if governor is not None and governor.running:
            governor._worker.act(governor, False, sample if trusted else None)

    return on_pressure
