"""`MemoryGovernor`: one memory limit for a process, kept by making its caches smaller in good time.

The kernel kills a container that comes to its limit; it asks nobody first. The governor watches the same figures and
acts before: it lets what is due expire and idle pools go, evicts from caches, collects garbage, hands memory back to
the system, and holds up what comes in when all that is not enough.

How much to free is worked out, not guessed. A cache counts the bytes of what it holds; what they cost in resident
memory is more (allocator rounding, fragmentation), so the ratio of the two is learned while the caches grow. From it
follow the limits under which the caches fill up to, but not over, the size aimed at (`SIZED_FOR`): set while there is
headroom, they make a cache evict by itself, in the insertion that would go too far, however fast memory grows. What has
been freed need not go back to the system at once. Resident memory that stays after an eviction is not answered by
another one until it rises further: it is room for what comes next, and `malloc_trim` gives it back where it can.

It knows the parts only by what they offer (`nbytes`, `trim`, `expire`, `resize`, `pause`, `resume`), holds them weakly,
and holds no lock while it calls one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import math
import os
import sys
import threading
import time
import weakref

from synthex_fast import _readings, _unraisable
from synthex_fast import monitor as _monitor
from synthex_fast.errors import type_error, value_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Protocol, Self, TypeVar

    T = TypeVar("T")
    Wait = bool | float | Callable[[], bool | float]

    class MemoryReadings(Protocol):
        """What the governor uses of `synthex_fast._readings.Readings`."""

        def rss(self) -> int: ...
        def charge(self) -> int | None: ...
        def reclaimable(self) -> int: ...
        def limit(self) -> int | None: ...
        def available(self) -> int: ...
        def total(self) -> int: ...


__all__ = ["MemoryGovernor"]

LEVELS = ("normal", "warning", "high", "critical", "emergency")
NORMAL, WARNING, HIGH, CRITICAL, EMERGENCY = range(5)
# Shares of the limit at which each level begins, and how far under it memory must fall for the level to end.
MARKS = (0.0, 0.70, 0.80, 0.90, 0.95)
HYSTERESIS = 0.03
# What the limits of the caches are worked out for: under "high", with room for what is no cache's.
SIZED_FOR = 0.775
# Differences in memory that mean nothing: what requests hold in passing.
NOISE = 0.01
# Resident bytes for each byte that caches count, until it has been learned, and its bounds.
OVERHEAD = 1.25
OVERHEAD_LEAST, OVERHEAD_MOST = 1.0, 3.0
# A cache that evicts goes down to this share of its limit, and will come back.
EVICTED_TO = 0.8
# Limits grow back by a tenth in so many seconds.
RECOVERY_SECONDS = 5.0
RECOVERY_STEP = 0.1
# How often memory is looked at, by level: at least, and at most when it grows fast.
IDLE_SECONDS = (5.0, 2.0, 0.25, 0.1, 0.02)
LEAST_SECONDS = 0.02
CALM_LEAST_SECONDS = 0.05
# How old the container's limit may be: it seldom changes, and takes longer to read than the rest.
CONTAINER_SECONDS = 1.0
# In how many seconds the fastest growth seen counts half.
FORGET_SECONDS = 5.0
# A collection, or malloc_trim, that gave back less than this share of the limit is asked for less often.
WORTH_IT = 0.005
GAP_SECONDS = 1.0
MOST_GAP_SECONDS = 60.0
# How often one thread looks again because others have asked meanwhile; what is left is for the governor's own.
ROUNDS = 3
# What is freed more at each look while memory stays critical although all that was due has been freed.
SQUEEZE = 0.02
# No limit is taken below this, so that ordinary values still fit.
FLOOR = 64 << 10

# A thread in here acts for a governor: it must not wait for a buffer that only it would resume.
_acting = threading.local()


class _Part:
    """What is known of a registered object besides itself."""

    __slots__ = (
        "ceiling",
        "errors",
        "expires",
        "freed",
        "gone",
        "growth",
        "high",
        "key",
        "kind",
        "limited",
        "monitor",
        "name",
        "nbytes",
        "own",
        "paused",
        "pauses",
        "pool",
        "reference",
        "reported",
        "trims",
        "tuner",
        "weight",
    )

    def __init__(self, obj: object, key: int, reference: Callable[[], Any], weight: float, name: str) -> None:
        self.key = key
        self.reference = reference
        self.weight = weight
        self.name = name
        self.kind = type(obj).__name__
        self.monitor = _can(obj, "on_pressure")
        self.tuner = _can(obj, "request") and _can(obj, "idle") and _can(obj, "trim")
        self.pauses = _can(obj, "pause") and _can(obj, "resume")
        self.pool = _can(obj, "acquire") and _can(obj, "release")
        self.expires = _can(obj, "expire")
        self.trims = _can(obj, "trim")
        self.limited = _can(obj, "resize") and _has(obj, "memory_limit") and not self.pool
        # Bytes at the last look, and the most that it has lately come to.
        self.nbytes = 0
        self.high = 0.0
        # Bytes a second between the last two looks.
        self.growth = 0.0
        # The limit that it is to have when nothing presses, and the one set here instead, if any.
        self.own: int | None = None
        self.ceiling: int | None = None
        self.paused = False
        self.gone = False
        self.freed = 0
        self.errors = 0
        self.reported: set[str] = set()

    @property
    def evictable(self) -> bool:
        # A buffer only flushes when it is trimmed, which is its handler's business; a collector is a cache as well.
        buffer = self.pauses and not self.limited
        return self.trims and not (self.pool or buffer or self.tuner or self.monitor)


class _Action:
    """How often something was done, what it came to, and when and why last."""

    __slots__ = ("count", "freed", "last", "returned", "why")

    def __init__(self) -> None:
        self.count = 0
        self.freed = 0
        self.returned = 0
        self.last = 0.0
        self.why = ""


class _Look:
    """Memory at one moment: ``used`` bytes of ``limit``, whichever limit is the nearest."""

    __slots__ = ("charge", "limit", "rss", "used")

    def __init__(self, rss: int, charge: int | None, used: int, limit: int) -> None:
        self.rss = rss
        self.charge = charge
        self.used = used
        self.limit = limit

    @property
    def share(self) -> float:
        return self.used / self.limit

    def over(self, share: float) -> float:
        return self.used - share * self.limit


class _Pace:
    """Keeps something costly to half of the time, and to less where it gives nothing back."""

    __slots__ = ("again", "gap")

    def __init__(self) -> None:
        self.gap = 0.0
        self.again = -math.inf

    def done(self, now: float, seconds: float, worth_it: bool) -> None:
        self.gap = 0.0 if worth_it else min(max(GAP_SECONDS, 2 * self.gap), MOST_GAP_SECONDS)
        self.again = now + max(seconds, self.gap)


def _has(obj: object, name: str) -> bool:
    try:
        getattr(obj, name)
    except AttributeError:
        return False
    except Exception:
        # It is there, and has its bad moments.
        return True
    return True


def _can(obj: object, name: str) -> bool:
    try:
        return callable(getattr(obj, name, None))
    except Exception:
        return False


def _share_out(total: float, claims: list[tuple[float, float]]) -> list[float]:
    """Shares of ``total`` in proportion to the first of each claim, none above the second.

    >>> _share_out(90.0, [(1.0, 100.0), (2.0, 100.0), (1.0, 0.0)])
    [30.0, 60.0, 0.0]
    >>> _share_out(90.0, [(1.0, 100.0), (2.0, 50.0)])
    [40.0, 50.0]
    """
    shares = [0.0] * len(claims)
    left = {n for n, (claim, most) in enumerate(claims) if claim > 0 and most > 0}
    while left and total > 0:
        sum_of_claims = sum(claims[n][0] for n in left)
        full = {n for n in left if total * claims[n][0] / sum_of_claims >= claims[n][1]}
        for n in full or left:
            shares[n] = claims[n][1] if full else total * claims[n][0] / sum_of_claims
        if not full:
            break
        total -= sum(claims[n][1] for n in full)
        left -= full
    return shares


_libc_trim: Callable[[int], object] | None = None
_libc_asked = False


def _find_malloc_trim() -> None:
    """Look for glibc's malloc_trim before it is needed: loading ctypes takes memory, too."""
    global _libc_trim, _libc_asked
    if _libc_asked:
        return
    _libc_asked = True
    if sys.platform != "linux":
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        # musl has none.
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes = [ctypes.c_size_t]
        trim.restype = ctypes.c_int
        _libc_trim = trim


class MemoryGovernor:
    """Keeps the memory of a process under one limit, by way of the parts registered with it.

    ``limit`` is what resident memory may come to: bytes, a size such as ``"512MB"``, a percentage of the container's
    limit (else of the host's memory), or None for just that, which is followed where a container is resized. Where
    there is a container its charge counts as well, against its own limit. Parts are registered with `register` and
    held weakly; a monitor is held while it is in use.

    What it does, by level (shares of the limit; a level ends 3 points under its mark):

    - normal: caches whose own limits are beyond the headroom get lower ones for the time being, so that together they
      fill up to 77.5 % of the limit and not further. Where no limit was given and there is no container, none
      is lowered. Limits lowered under pressure grow back, by a tenth in five seconds.
    - warning (70 %): what is due expires, and idle pools are trimmed. No cache's limit is lowered below what it holds.
    - high (80 %): caches are evicted from, in proportion to weight times size, and their limits lowered so that they
      don't refill.
    - critical (90 %): one full collection, through the tuner where one is registered, and memory freed is handed back
      to the system (``malloc_trim``), both at most half of the time, and more seldom where they give nothing back.
    - emergency (95 %): buffers are paused (additions wait, or fail, as ``pause`` says), ``on_emergency(governor)`` is
      called. As memory falls again, resuming them comes first.

    ``pause`` is ``"wait"``, ``"fail"``, seconds to wait, or a callable that each addition asks in its own thread (see
    `ResponseBuffer.pause`). What parts and callbacks raise goes to ``sys.unraisablehook``.

    A running governor acts in its monitor's thread as soon as the monitor calls, and in one of its own while there is
    something to watch; both are asleep otherwise. ``monitor`` or a registered one is used, and started if need be;
    without either it makes an `AdaptiveMemoryMonitor`. It runs until `stop`, which gives every part its own limit back.

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
        monitor: Any = None,
        readings: MemoryReadings | None = None,
        clock: Callable[[], float] | None = None,
        on_emergency: Callable[[MemoryGovernor], object] | None = None,
        pause: Any = "wait",
    ) -> None:
        if on_emergency is not None and not callable(on_emergency):
            raise type_error("on_emergency", on_emergency, "callable or None")
        if monitor is not None and not _can(monitor, "on_pressure"):
            raise type_error("monitor", monitor, "an AdaptiveMemoryMonitor or None")
        self._wait = _wait_of(pause)
        self._container: int | None = None
        self._container_at = -math.inf
        self._readings: MemoryReadings = _readings.Readings() if readings is None else readings
        self._limit = _readings.memory_limit(limit, self._readings, name="limit")
        self._follows = limit is None and self._readings.limit() is not None
        # Whether the limit is somebody's wish, not just all that the machine has.
        self._bounded = limit is not None or self._readings.limit() is not None
        self._clock = time.monotonic if clock is None else clock
        self._on_emergency = on_emergency
        self._given_monitor = monitor
        # Changed by operations that are atomic in themselves: a weak reference may die in any thread, at any point.
        self._parts: dict[int, _Part] = {}
        # Reentrant: a finaliser may run wherever Python code does, in here too, and each step leaves all sound.
        self._state = threading.Condition()
        self._actor: int | None = None
        self._turn = 0
        self._looks = 0
        self._cpu_seconds = 0.0
        self._again = False
        self._restore = False
        self._emergency = False
        self._running = False
        self._thread: threading.Thread | None = None
        self._due = math.inf
        self._monitor: Any = None
        self._monitor_started = False
        self._removals: list[Callable[[], None]] = []
        self._attaching = False
        self._forget()

    def _forget(self) -> None:
        """Begin to learn anew."""
        self._level = NORMAL
        self._interval = math.inf
        # Bytes a second, and the bytes and the time from which a rise is reckoned.
        self._fastest = 0.0
        self._rising_from: tuple[float, float] = (math.inf, 0.0)
        self._looked_at = -math.inf
        self._limits_at = self._clock()
        self._overhead = OVERHEAD
        self._learned_from: tuple[float, float] | None = None
        self._used_high = 0.0
        # Bytes freed on purpose since memory was last handed back.
        self._freed = 0
        self._mark = 0.0
        self._squeezed_at = -math.inf
        self._recovering = False
        # What the caches may still grow by, in the bytes that they count.
        self._headroom = 0.0
        self._collections = _Pace()
        self._trims = _Pace()
        self._actions: dict[str, _Action] = {}

    # Parts

    def register(self, obj: T, weight: float = 1.0, *, name: str | None = None) -> T:
        """Let the governor count and shrink ``obj``, and return it. O(1).

        Takes what has ``nbytes`` and ``trim(nbytes) -> int``: a TTLDict, a pool, a buffer, a collector, a tuner,
        something of your own; and a monitor. ``weight`` is how readily it gives way to others: with 2 it gives up twice
        the share of its size that one with 1 does, with 0 nothing, it is only counted. Registering again changes the
        weight. Held weakly: `ArgumentTypeError` for an object that can't be.

        >>> MemoryGovernor().register([])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        synthex_fast.errors.ArgumentTypeError: obj must be something with nbytes and trim(nbytes), or a monitor, ...
        """
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise type_error("weight", weight, "a number, 0 or more")
        # An integer may be more than a float can hold.
        if not 0 <= weight <= sys.float_info.max:
            raise value_error("weight", weight, "a number, 0 or more")
        if name is not None and not isinstance(name, str):
            raise type_error("name", name, "text or None")
        if not (_can(obj, "trim") and _has(obj, "nbytes")) and not _can(obj, "on_pressure"):
            raise type_error("obj", obj, "something with nbytes and trim(nbytes), or a monitor")
        key = id(obj)
        known = self._parts.get(key)
        if known is not None and known.reference() is obj:
            known.weight = float(weight)
            if name is not None:
                known.name = self._name_for(obj, name)
            self._wake()
            return obj
        try:
            reference = weakref.ref(obj, _forget_part(self._parts, key))
        except TypeError:
            raise type_error("obj", obj, "an object that can be weakly referenced") from None
        part = _Part(obj, key, reference, float(weight), self._name_for(obj, name))
        if part.limited:
            part.own = _limit_of(obj)
        self._parts[key] = part
        self._wake()
        return obj

    def _name_for(self, obj: object, given: object) -> str:
        """Its own, for in the stats one of two with the same name would hide the other."""
        given = given or getattr(obj, "name", None)
        base = given if isinstance(given, str) and given else type(obj).__name__
        taken = {part.name for part in list(self._parts.values()) if part.reference() is not obj}
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        return name

    def unregister(self, obj: object) -> bool:
        """Leave ``obj`` alone from now on: it has its own limit again, and is resumed. Return whether it was known."""
        part = self._parts.get(id(obj))
        if part is None or part.reference() is not obj:
            return False
        self._parts.pop(id(obj), None)
        part.gone = True
        self._wait_for_actor()
        self._let_be(part, obj)
        if obj is self._monitor and obj is not self._given_monitor:
            self._detach()
            self._wake()
        return True

    def _let_be(self, part: _Part, obj: Any) -> None:
        """Take back what is being done to a part."""
        if part.paused:
            self._let_in(part, obj)
        ceiling, part.ceiling = part.ceiling, None
        if ceiling is not None and _limit_of(obj) == ceiling:
            try:
                obj.resize(memory_limit=part.own)
            except Exception as error:
                # Its own limit must not be forgotten: stopping again tries again.
                part.ceiling = ceiling
                self._failed(part, "resize", error)

    def _let_in(self, part: _Part, obj: Any) -> bool:
        """Resume a part; False where it raises, for want of memory perhaps: then it is tried again."""
        part.paused = False
        try:
            obj.resume()
        except Exception as error:
            part.paused = True
            self._failed(part, "resume", error)
            return False
        return True

    def _call(self, part: _Part, obj: Any, method: str, *arguments: Any, **options: Any) -> Any:
        """What the method returns; None where it raises, which is counted, and reported the first time."""
        try:
            return getattr(obj, method)(*arguments, **options)
        except Exception as error:
            self._failed(part, method, error)
            return None

    def _failed(self, part: _Part, what: str, error: Exception) -> None:
        part.errors += 1
        if what not in part.reported:
            part.reported.add(what)
            _unraisable.report(error, f"{what} of {part.name}")

    # Acting

    @property
    def limit(self) -> int:
        """The limit in bytes."""
        return self._limit

    @property
    def level(self) -> str:
        """``"normal"``, ``"warning"``, ``"high"``, ``"critical"`` or ``"emergency"``, as of the last look."""
        return LEVELS[self._level]

    @property
    def running(self) -> bool:
        """Whether it acts by itself: between `start` and `stop`."""
        return self._running

    def check(self) -> str:
        """Look at memory now, do what is called for, and return the level then.

        For tests, and for programs without threads; a running governor does it by itself. Returns at once where
        another thread is at it, or a callback of the governor's own: that one then looks again. Limits lowered and
        buffers paused stay so until memory falls or `stop` is called.
        """
        return self._act(True)

    def _act(self, asked: bool) -> str:
        """Look and act, if that was asked for or while the governor runs, and give back what a stop has left to."""
        me = threading.get_ident()
        inside = getattr(_acting, "inside", False)
        began = time.thread_time()
        with self._state:
            if self._actor is not None:
                self._again = self._again or self._actor != me
                return LEVELS[self._level]
            self._actor = me
        try:
            # In here: it may fail for want of memory.
            _acting.inside = True
            rounds = 0
            while True:
                self._again = False
                released = self._restore
                if released:
                    self._release()
                elif asked or self._running:
                    self._step()
                rounds += 1
                now = time.thread_time()
                self._cpu_seconds += now - began
                began = now
                self._looks += 1
                with self._state:
                    # What was asked for before it was stopped is over.
                    late = self._again and not released
                    if not self._restore and (not late or rounds >= ROUNDS):
                        self._leave()
                        break
            with self._state:
                emergency, self._emergency = self._emergency, False
            self._plan(0.0 if late else self._interval)
            if emergency:
                self._call_for_help()
        finally:
            with self._state:
                failed = self._actor == me
                if failed:
                    self._leave()
            _acting.inside = inside
            if failed:
                self._make_up()
        return LEVELS[self._level]

    def _make_up(self) -> None:
        """After an error, what others have left to this thread: to give back after a stop, or to look again."""
        if self._restore:
            self._act(False)
        else:
            with contextlib.suppress(Exception):
                self._plan(IDLE_SECONDS[WARNING])

    def _leave(self) -> None:
        self._actor = None
        self._turn += 1
        self._state.notify_all()

    def _wait_for_actor(self) -> None:
        """Let another thread finish what it is doing to the parts."""
        with self._state:
            turn = self._turn
            if self._actor != threading.get_ident():
                # Bounded: a callback of the user's may be waiting for a lock that the caller holds.
                self._state.wait_for(lambda: self._actor is None or self._turn != turn, 1.0)

    def _call_for_help(self) -> None:
        # Nothing is held here: while it takes its time, other threads go on governing.
        callback = self._on_emergency
        try:
            if callback is not None:
                callback(self)
        except Exception as error:
            _unraisable.report(error, callback)

    def _look(self) -> _Look:
        readings, limit = self._readings, self._limit
        rss = readings.rss()
        charge = readings.charge()
        used, of = rss, limit
        now = self._clock()
        if not 0 <= now - self._container_at < CONTAINER_SECONDS:
            self._container, self._container_at = readings.limit(), now
        container = self._container
        if self._follows and container and container != limit:
            # A container can be resized.
            limit = self._limit = of = container
        if charge is not None and container:
            held = charge
            if held > (MARKS[WARNING] - HYSTERESIS) * container:
                # The kernel takes idle file pages back before it kills. Reading how many costs more than the rest.
                held -= min(held, readings.reclaimable())
            if held * limit > rss * container:
                used, of = held, container
        elif not self._bounded:
            # The machine's memory is everybody's.
            used = max(rss, limit - readings.available())
        return _Look(rss, charge, used, of)

    def _classify(self, look: _Look) -> int:
        share, level = look.share, self._level
        while level < EMERGENCY and share >= MARKS[level + 1]:
            level += 1
        while level > NORMAL and share < MARKS[level] - HYSTERESIS:
            level -= 1
        return level

    def _alive(self) -> list[tuple[_Part, Any]]:
        """The parts that hold memory, each with its object."""
        found = []
        for part in list(self._parts.values()):
            obj = part.reference()
            if obj is not None and not part.gone and part.trims:
                found.append((part, obj))
        return found

    def _size(self, part: _Part, obj: Any) -> int:
        try:
            size = obj.nbytes
            if isinstance(size, bool) or not hasattr(size, "__index__"):
                raise type_error("nbytes", size, "an integer, 0 or more")
            return max(0, int(size.__index__()))
        except Exception as error:
            self._failed(part, "nbytes", error)
            return 0

    def _step(self) -> None:
        now = self._clock()
        try:
            look = self._look()
        except Exception as error:
            # Without figures there is nothing to go by; perhaps they can be read later.
            _unraisable.report(error, self)
            self._interval = IDLE_SECONDS[WARNING]
            return
        parts = self._alive()
        elapsed = now - self._looked_at
        for part, obj in parts:
            before, part.nbytes = part.nbytes, self._size(part, obj)
            part.growth = max(0.0, (part.nbytes - before) / elapsed) if elapsed > 0 else part.growth
        self._measure(look, now)
        was, self._level = self._level, self._classify(look)
        level = self._level
        self._age(parts, look, now)
        self._learn(look, parts)
        why = f"{look.share:.1%} of {look.limit:,} bytes in use"
        # The interpreter joins its threads then, also those that wait for a buffer.
        ending = not threading.main_thread().is_alive()
        if level >= EMERGENCY:
            if not ending:
                self._pause(parts, why)
            if was < EMERGENCY:
                self._emergency = True
                self._did("emergency", why)
        if level >= WARNING:
            look = self._relieve(parts, look, why)
        if level >= HIGH:
            look = self._evict(parts, look, level, now, why)
        else:
            self._mark = 0.0
        self._limit_caches(parts, look, level, now, why)
        if level >= WARNING:
            look = self._hand_back(parts, look, level, why)
        if level >= CRITICAL:
            look = self._collect(parts, look, why)
        level = self._level = self._classify(look)
        if level < EMERGENCY or ending:
            self._resume(parts, f"{look.share:.1%} of {look.limit:,} bytes in use")
        self._looked_at = now
        self._interval = self._next_look(parts, look, level, self._clock() - now)

    def _measure(self, look: _Look, now: float) -> None:
        """How fast memory has lately grown, in steps that are more than noise; what it has done, it may do again."""
        elapsed = max(0.0, now - self._looked_at)
        self._fastest *= 0.5 ** min(elapsed / FORGET_SECONDS, 100.0)
        used, since = self._rising_from
        if look.used - used > NOISE * look.limit and now > since:
            self._fastest = max(self._fastest, (look.used - used) / (now - since))
            self._rising_from = (look.used, now)
        elif look.used < used:
            self._rising_from = (look.used, now)

    def _age(self, parts: list[tuple[_Part, Any]], look: _Look, now: float) -> None:
        """What each cache has lately come to, and memory as a whole.

        A cache evicts to 80 % of its limit and refills from there: the room in between is not headroom for others. One
        that stays smaller gives it up slowly.
        """
        elapsed = max(0.0, now - self._limits_at)
        fallen = self._used_high - RECOVERY_STEP * look.limit * elapsed / RECOVERY_SECONDS
        self._used_high = max(float(look.used), fallen)
        for part, _ in parts:
            step = RECOVERY_STEP * (part.own or self._limit) * elapsed / RECOVERY_SECONDS
            lowest = max(part.nbytes / EVICTED_TO, part.high - step)
            part.high = max(float(part.nbytes), min(part.high, lowest))

    def _learn(self, look: _Look, parts: list[tuple[_Part, Any]]) -> None:
        """What a byte that caches count costs in memory, from how the two grow."""
        counted = sum(part.high for part, _ in parts)
        used = self._used_high
        least = 3 * NOISE * look.limit
        if self._learned_from is not None:
            used_then, counted_then = self._learned_from
            if used < used_then or counted < counted_then:
                # Memory has gone back to the system, or the caches have shrunk inside of it.
                self._learned_from = (min(used, used_then), min(counted, counted_then))
            if counted - counted_then < least:
                return
            ratio = (used - used_then) / (counted - counted_then)
            self._overhead = min(OVERHEAD_MOST, max(OVERHEAD_LEAST, ratio))
        self._learned_from = (used, counted)

    def _relieve(self, parts: list[tuple[_Part, Any]], look: _Look, why: str) -> _Look:
        """What costs nobody anything: due entries, and objects that lie idle in pools."""
        freed = 0
        for part, obj in parts:
            if part.expires and not part.gone:
                count = self._call(part, obj, "expire")
                freed += count if isinstance(count, int) else 0
        if freed:
            after = self._look()
            self._did("expire", why, freed, look.used - after.used)
            look = after
        over = look.over(MARKS[WARNING] - HYSTERESIS)
        pools = [(part, obj) for part, obj in parts if part.pool and part.trims]
        if over > 0 and any(part.nbytes and part.weight for part, _ in pools):
            claims = [(part.weight * part.nbytes, float(part.nbytes)) for part, _ in pools]
            look = self._trim(pools, _share_out(over, claims), look, "trim_pools", why)
        return look

    def _trim(
        self, parts: list[tuple[_Part, Any]], amounts: list[float], look: _Look, action: str, why: str
    ) -> _Look:
        freed = 0
        asked = False
        for (part, obj), amount in zip(parts, amounts, strict=True):
            if amount < 1 or part.gone:
                continue
            asked = True
            done = self._call(part, obj, "trim", math.ceil(amount))
            if isinstance(done, int) and not isinstance(done, bool) and done > 0:
                part.freed += done
                part.nbytes = max(0, part.nbytes - done)
                freed += done
        if not asked:
            return look
        self._freed += freed
        after = self._look()
        self._did(action, why, freed, look.used - after.used)
        return after

    def _evict(self, parts: list[tuple[_Part, Any]], look: _Look, level: int, now: float, why: str) -> _Look:
        """Free what memory is over the size aimed at, when it has just risen: then nothing of it is room to refill.

        Memory that stays although caches have shrunk is theirs to fill again; freeing more would not lower it. That is
        done, little by little, only while memory is critical.
        """
        aim = SIZED_FOR * look.limit
        over = look.used - aim
        if self._mark and look.used < self._mark + NOISE * look.limit:
            self._mark = min(self._mark, look.used)
            if level < CRITICAL or now < self._squeezed_at + GAP_SECONDS:
                return look
            self._squeezed_at = now
            over = SQUEEZE * look.limit
        caches = [(part, obj) for part, obj in parts if part.evictable]
        amounts = _share_out(
            over / self._overhead, [(part.weight * part.nbytes, float(part.nbytes)) for part, _ in caches]
        )
        for n, (part, _) in enumerate(caches):
            if part.limited and amounts[n]:
                # Room that it has evicted and not refilled yet is given up first, unless matters are worse.
                kept = part.high if level < CRITICAL else part.nbytes
                part.high = max(0.0, kept - amounts[n])
                amounts[n] = part.nbytes - part.high
        look = self._trim(caches, amounts, look, "evict", why)
        self._mark = max(aim, look.used)
        self._squeezed_at = now
        return look

    def _limit_caches(
        self, parts: list[tuple[_Part, Any]], look: _Look, level: int, now: float, why: str
    ) -> None:
        """Set each cache's limit so that all of them can fill up to what memory is sized for, and not further."""
        elapsed = max(0.0, now - self._limits_at)
        self._limits_at = now
        headroom = max(0.0, SIZED_FOR * look.limit - max(look.used, self._used_high)) / self._overhead
        caches = []
        for part, obj in parts:
            if part.limited and part.weight and not part.gone:
                current = _limit_of(obj)
                if current != (part.own if part.ceiling is None else part.ceiling):
                    # Somebody else has set it meanwhile: that is what it shall come back to.
                    part.own, part.ceiling = current, None
                caches.append((part, obj))
        if not caches:
            return
        floor = max(FLOOR, look.limit // (16 * max(4, len(caches))))
        # Equal shares, or by who grows; they are looked at again before they are used up, so that who needs more gets
        # what others leave.
        rooms = [max(0.0, (self._limit if part.own is None else part.own) - part.high) for part, _ in caches]
        demand = sum(part.growth for part, _ in caches)
        grants = _share_out(
            headroom,
            [
                (part.growth + 0.1 * demand / len(caches) if demand else 1.0, room)
                for (part, _), room in zip(caches, rooms, strict=True)
            ],
        )
        self._headroom = headroom
        recovered = level == NORMAL and self._used_high <= look.used
        for (part, obj), grant in zip(caches, grants, strict=True):
            own = part.own
            step = RECOVERY_STEP * (own or self._limit) * elapsed / RECOVERY_SECONDS
            aim = part.high + grant
            if level >= HIGH:
                aim = min(aim, part.high)
            elif level == NORMAL and not self._bounded:
                # Nobody asked for a limit: only what pressure took is given back.
                aim = math.inf
            aim = max(aim, floor, part.nbytes if level < HIGH else 0)
            if part.ceiling is not None and self._recovering:
                recovered = recovered and aim <= part.ceiling + step
                aim = min(aim, part.ceiling + step)
            if aim >= (own if own is not None else self._limit):
                if part.ceiling is not None:
                    self._set(part, obj, own, None, "grow", why)
            elif part.ceiling is None or abs(aim - part.ceiling) > NOISE * part.ceiling:
                grows = part.ceiling is not None and aim > part.ceiling
                self._set(part, obj, int(aim), int(aim), "grow" if grows else "limit", why)
        # Once they are back, limits follow the headroom.
        self._recovering = level >= HIGH or (self._recovering and not recovered)

    def _set(
        self, part: _Part, obj: Any, limit: int | None, ceiling: int | None, action: str, why: str
    ) -> None:
        before = part.ceiling
        part.ceiling = ceiling
        try:
            obj.resize(memory_limit=limit)
        except Exception as error:
            part.ceiling = before
            self._failed(part, "resize", error)
            return
        self._did(action, why)
        if part.gone:
            # Unregistered meanwhile, by what the eviction ran or in another thread, which did not wait for ever.
            part.ceiling = ceiling
            self._let_be(part, obj)

    def _collect(self, parts: list[tuple[_Part, Any]], look: _Look, why: str) -> _Look:
        began = self._clock()
        if look.share < MARKS[CRITICAL] - HYSTERESIS or began < self._collections.again:
            return look
        tuner = next(((part, obj) for part, obj in parts if part.tuner and not part.gone), None)
        if tuner is None:
            gc.collect()
        else:
            self._call(*tuner, "trim", math.ceil(max(1.0, look.over(SIZED_FOR))))
        after = self._look()
        now = self._clock()
        returned = look.used - after.used
        self._collections.done(now, now - began, returned > WORTH_IT * look.limit)
        self._did("collect", why, 0, returned)
        # What it has freed is all over the heap.
        self._trims.again = -math.inf
        return self._hand_back(parts, after, CRITICAL, why)

    def _hand_back(self, parts: list[tuple[_Part, Any]], look: _Look, level: int, why: str) -> _Look:
        """Have the allocator return what it holds free, where that is likely to be something."""
        began = self._clock()
        _find_malloc_trim()
        if _libc_trim is None or look.share < SIZED_FOR - HYSTERESIS or began < self._trims.again:
            return look
        if level < CRITICAL:
            high = sum(part.high for part, _ in parts if part.limited)
            shrunk = high - sum(part.nbytes for part, _ in parts if part.limited)
            # What a cache evicts of its own it refills: giving that back would only have it faulted in again.
            if level < HIGH and shrunk < (1.0 - EVICTED_TO + 0.05) * high:
                shrunk = 0
            if (self._freed + shrunk) * self._overhead < NOISE * look.limit:
                return look
        self._freed = 0
        _libc_trim(0)
        after = self._look()
        now = self._clock()
        returned = look.used - after.used
        self._trims.done(now, now - began, returned > WORTH_IT * look.limit)
        self._did("malloc_trim", why, 0, returned)
        return after

    def _pause(self, parts: list[tuple[_Part, Any]], why: str) -> None:
        for part, obj in parts:
            if part.pauses and not part.paused and not part.gone:
                try:
                    # A buffer that somebody else has paused is theirs to resume.
                    part.paused = obj.pause(wait=self._wait) is not False
                except Exception as error:
                    self._failed(part, "pause", error)
                    continue
                if part.paused:
                    self._did("pause", why)
                if part.gone:
                    self._let_be(part, obj)

    def _resume(self, parts: list[tuple[_Part, Any]], why: str) -> None:
        for part, obj in parts:
            if part.paused and self._let_in(part, obj):
                self._did("resume", why)

    def _did(self, action: str, why: str, freed: int = 0, returned: int = 0) -> None:
        entry = self._actions.get(action)
        if entry is None:
            entry = self._actions[action] = _Action()
        entry.count += 1
        entry.freed += freed
        entry.returned += max(0, returned)
        entry.last = self._clock()
        entry.why = why

    def _next_look(self, parts: list[tuple[_Part, Any]], look: _Look, level: int, took: float) -> float:
        """Seconds: until a quarter of the way to what matters next could be behind us, and half of the time at most."""
        limited = [part for part, _ in parts if part.ceiling is not None]
        wait = math.inf if level == NORMAL and not limited else IDLE_SECONDS[level]
        # The kernel tells of the next level in time, where it can; a look in so many seconds costs next to nothing.
        least = LEAST_SECONDS if level >= HIGH else CALM_LEAST_SECONDS
        for part in limited if self._headroom > NOISE * look.limit else ():
            left = (part.ceiling or 0) - part.nbytes
            if 0 < left < part.growth * wait:
                wait = max(least, 0.25 * left / part.growth)
        mark = SIZED_FOR if level == WARNING and look.share < SIZED_FOR else (*MARKS, 1.0)[level + 1]
        if 0 < -look.over(mark) < self._fastest * min(wait, 4 * IDLE_SECONDS[NORMAL]):
            wait = min(wait, max(least, 0.25 * -look.over(mark) / self._fastest))
        return max(wait, took)

    # Running

    def start(self) -> None:
        """Act by itself from now on; nothing where it does already."""
        with self._state:
            if self._running or _over:
                return
            self._running = True
            self._restore = False
            _governors.add(self)
        _find_malloc_trim()
        try:
            self._wake()
        except BaseException:
            # Without a thread to be had it would be a governor that never looks.
            self.stop()
            raise

    def _listen(self) -> None:
        """Have a monitor call when the level changes."""
        with self._state:
            if self._attaching or not self._running:
                return
            self._attaching = True
        try:
            monitor = self._given_monitor
            for part in list(self._parts.values()):
                if monitor is None and part.monitor:
                    monitor = part.reference()
            if monitor is None:
                monitor = self._monitor or _monitor.AdaptiveMemoryMonitor(
                    limit=self._limit if self._bounded and not self._follows else None
                )
            if monitor is not self._monitor:
                self._detach()
                called = _calls(self)
                self._monitor = monitor
                self._monitor_started = False
                try:
                    for level in LEVELS:
                        self._removals.append(monitor.on_pressure(level, called))
                    self._monitor_started = not _is_running(monitor)
                    if self._monitor_started:
                        monitor.start()
                except BaseException:
                    # One that does not run is not to be taken for one that will call.
                    self._detach()
                    raise
        finally:
            self._attaching = False

    def _detach(self) -> None:
        """Leave the monitor as it was found."""
        monitor, self._monitor = self._monitor, None
        removals, self._removals = self._removals, []
        try:
            for remove in removals:
                remove()
            if monitor is not None and self._monitor_started:
                monitor.stop()
        except Exception as error:
            _unraisable.report(error, monitor)

    def _wake(self) -> None:
        """Look as soon as may be, in the governor's own thread; with nothing to act on there is none."""
        if self._running and (self._parts or self._on_emergency is not None):
            self._listen()
            self._plan(0.0)

    def _plan(self, seconds: float) -> None:
        with self._state:
            if not self._running:
                return
            self._due = time.monotonic() + seconds
            if seconds == math.inf or _over or _forking:
                return
            if self._thread is None or not self._thread.is_alive():
                self._start_thread()
            else:
                self._state.notify_all()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="synthex-fast-governor", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except BaseException:
            self._thread = None
            raise

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._state:
                if self._thread is not me:
                    return
                wait = self._due - time.monotonic()
                if wait > 0:
                    self._state.wait(None if wait == math.inf else min(wait, threading.TIMEOUT_MAX))
                    continue
                self._due = math.inf
            try:
                self._act(False)
            except BaseException as error:
                # One that a part let through, SystemExit also: the thread is the governor's.
                with self._state:
                    self._due = min(self._due, time.monotonic() + IDLE_SECONDS[WARNING])
                _unraisable.report(error, self)

    def stop(self) -> None:
        """Act no more, and give every part back what was its own: its limit, and its buffers resumed."""
        with self._state:
            self._running = False
            _governors.discard(self)
            thread, self._thread = self._thread, None
            self._restore = True
            self._state.notify_all()
        self._detach()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)
        # Whoever is acting at this moment does it instead.
        self._act(False)
        self._wait_for_actor()

    def _release(self) -> None:
        self._restore = False
        for part in list(self._parts.values()):
            obj = part.reference()
            if obj is not None:
                self._let_be(part, obj)
        self._forget()

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

    # Showing

    @property
    def stats(self) -> dict[str, Any]:
        """Who holds what, and what was done about it, as a dict. O(parts).

        ``rss``, ``charge`` (the container's; None without one), ``limit``, ``used`` (the share of the nearest limit),
        ``level``; ``nbytes``, the sum of what the components count, and ``rest``, what of ``rss`` is none of theirs;
        ``overhead``, resident bytes for each counted one, as learned. ``components`` by name: ``type``, ``nbytes``,
        ``weight``, ``memory_limit`` now and ``own_limit``, the one it goes back to, ``paused``, ``freed`` bytes,
        ``errors``. ``actions`` by name: ``count``, ``freed`` (as counted by the parts; for ``expire`` entries),
        ``returned`` (what memory fell by), ``seconds_ago`` and ``why``. ``looks`` at memory and the ``cpu_seconds``
        that they and all that followed have taken. ``note`` says where there is nothing to do.
        """
        look = self._look()
        now = self._clock()
        total = 0
        components = {}
        for part, obj in self._alive():
            size = self._size(part, obj)
            total += size
            limit = _limit_of(obj) if part.limited else None
            components[part.name] = {
                "type": part.kind,
                "nbytes": size,
                "weight": part.weight,
                "memory_limit": limit,
                "own_limit": limit if part.ceiling is None or limit != part.ceiling else part.own,
                "paused": part.paused,
                "freed": part.freed,
                "errors": part.errors,
            }
        return {
            "limit": self._limit,
            "rss": look.rss,
            "charge": look.charge,
            "used": look.share,
            "level": LEVELS[self._level],
            "nbytes": total,
            "rest": max(0, look.rss - total),
            "overhead": self._overhead,
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
            "looks": self._looks,
            "cpu_seconds": self._cpu_seconds,
            "note": self._note(),
        }

    def _note(self) -> str | None:
        if not self._parts:
            return "nothing is registered: there is nothing to make smaller"
        if not self._bounded:
            return "no limit was given and there is no container: all of the machine's memory counts"
        return None

    def __repr__(self) -> str:
        state = "running" if self._running else "stopped"
        name = type(self).__name__
        return f"<{name} of {len(self._parts)} parts, limit {self._limit:,} bytes, {self.level}, {state}>"


def _wait_of(pause: Any) -> Any:
    """What buffers are told to do with additions, from what the user said."""
    allowed = '"wait", "fail", seconds (0 or more) or a callable that returns True, False or seconds'
    if pause == "fail" or pause is False:
        return False
    if pause == "wait":
        wait: Any = True
    elif pause is True or callable(pause):
        wait = pause
    elif isinstance(pause, (int, float)):
        if not pause >= 0:
            raise value_error("pause", pause, allowed)
        wait = pause
    elif isinstance(pause, str):
        raise value_error("pause", pause, allowed)
    else:
        raise type_error("pause", pause, allowed)

    def ask() -> Any:
        # Who acts for a governor would wait for itself.
        if getattr(_acting, "inside", False):
            return False
        return wait() if callable(wait) else wait

    return ask


def _limit_of(obj: Any) -> int | None:
    try:
        limit = obj.memory_limit
    except Exception:
        return None
    return limit if isinstance(limit, int) else None


def _forget_part(parts: dict[int, _Part], key: int) -> Callable[[object], None]:
    # Not the governor: a part shall not keep it alive.
    def forget(reference: object) -> None:
        part = parts.get(key)
        if part is not None and part.reference is reference:
            parts.pop(key, None)

    return forget


def _calls(governor: MemoryGovernor) -> Callable[..., None]:
    """What a monitor calls: weak, for a monitor may outlive the governor."""
    reference = weakref.ref(governor)

    def pressed(*_: object) -> None:
        governor = reference()
        if governor is not None and governor._running:
            governor._act(False)

    return pressed


def _is_running(monitor: Any) -> bool:
    try:
        return bool(monitor.stats["running"])
    except Exception:
        return bool(getattr(monitor, "running", False))


# Every running governor; its thread refers to it as well.
_governors: set[MemoryGovernor] = set()
_over = False
_forking = False
# What a thread that forks holds meanwhile: its own list, for several may fork at once.
_forker = threading.local()


def _before_fork() -> None:
    """End the threads, so that a preloading server forks a process that has none."""
    global _forking
    _forking = True
    for governor in list(_governors):
        with governor._state:
            thread, governor._thread = governor._thread, None
            governor._state.notify_all()
        if thread is not None and thread is not threading.current_thread():
            # Bounded: a callback of the user's may be waiting for a lock that the caller holds.
            thread.join(1.0)
    # Nobody holds them at the fork but this thread, so that the child can let them go.
    held = _forker.__dict__.setdefault("held", [])
    for state in sorted((governor._state for governor in list(_governors)), key=id):
        state.acquire()
        held.append(state)


def _after_fork() -> None:
    global _forking
    _forking = False
    held = _forker.__dict__.get("held")
    while held:
        held.pop().release()
    for governor in list(_governors):
        # Without a thread to be had, the monitor's next call tries again.
        with contextlib.suppress(Exception):
            governor._plan(max(0.0, governor._due - time.monotonic()))


def _after_fork_in_child() -> None:
    me = threading.get_ident()
    for governor in list(_governors):
        governor._thread = None
        governor._attaching = False
        # A thread of the parent's was at it, and had put off the next look until it was done.
        if governor._actor not in (None, me):
            governor._actor = None
            governor._due = 0.0
    _after_fork()


def _finish() -> None:
    global _over
    _over = True
    for governor in list(_governors):
        governor.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
atexit.register(_finish)
