"""How near memory is to its limit: the arithmetic that the monitor, the tuner and the governor share.

Two figures are compared with two limits. The resident size of the process is compared with the process's own limit, and
the charge of its container, less what the kernel takes back before it acts, with the container's. The one
nearer to its limit counts (`nearest`). `classify` turns its share of the limit into a level.

`malloc_trim` is here too: memory freed inside the C library still counts until the library returns it.
"""

from __future__ import annotations

import contextlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class MemoryReadings(Protocol):
        """What the monitor, the tuner and the governor use of `synthex_fast._readings.Readings`. Sizes are in bytes."""

        def rss(self) -> int: ...
        def charge(self) -> int | None: ...
        def reclaimable(self) -> int: ...
        def limit(self) -> int | None: ...
        def available(self) -> int: ...
        def swap(self) -> int: ...
        def total(self) -> int: ...

    class KernelReadings(Protocol):
        """What the monitor uses of it in addition: several figures in one call, and where the kernel's files are."""

        @property
        def root(self) -> str: ...
        @property
        def container(self) -> tuple[int, str] | None: ...
        def slow(self, near: int = 0) -> tuple[int | None, int, int, int]: ...


__all__ = [
    "CRITICAL",
    "EMERGENCY",
    "HIGH",
    "HYSTERESIS",
    "LEVELS",
    "MARKS",
    "NORMAL",
    "RECLAIMABLE_FROM",
    "WARNING",
    "MemoryUse",
    "classify",
    "find_malloc_trim",
    "malloc_trim",
    "nearest",
    "on_host",
    "working_set",
]

LEVELS = ("normal", "warning", "high", "critical", "emergency")
NORMAL, WARNING, HIGH, CRITICAL, EMERGENCY = range(5)
# The share of the limit at which each level begins, and how far below it memory must fall for the level to end.
MARKS = (0.0, 0.70, 0.80, 0.90, 0.95)
HYSTERESIS = 0.03
# Below this share of the container's limit the reclaimable part of the charge changes no decision.
RECLAIMABLE_FROM = 0.9 * MARKS[WARNING]


class MemoryUse:
    """Memory at one moment: ``used`` bytes of ``limit``, of the two pairs the one that is nearer."""

    __slots__ = ("charge", "limit", "rss", "used")

    def __init__(self, rss: int, charge: int | None, used: int, limit: int) -> None:
        self.rss = rss
        self.charge = charge
        self.used = used
        self.limit = limit

    @property
    def share(self) -> float:
        return self.used / self.limit

    @property
    def headroom(self) -> int:
        """Bytes left below the limit; negative above it."""
        return self.limit - self.used

    def over(self, share: float) -> float:
        """Bytes above that share of the limit; negative below it."""
        return self.used - share * self.limit


def working_set(
    charge: int, limit: int, reclaimable: Callable[[], int], asked_from: float = RECLAIMABLE_FROM
) -> int:
    """The part of a container's charge that the kernel can't take back.

    ``reclaimable`` is called only above the share ``asked_from`` of the limit, because it is the most expensive figure
    to read.
    """
    if charge <= asked_from * limit:
        return charge
    return charge - min(charge, reclaimable())


def nearest(
    rss: int, own_limit: int, charge: int | None, container: int | None, held: int | None
) -> MemoryUse:
    """Memory in use against the nearer of two limits.

    ``own_limit`` is the process's and bounds ``rss``; ``container`` is its container's (None without one) and bounds
    ``held``, the container's working set. Bytes; the limits are positive.

    >>> use = nearest(300, 1000, 900, 1000, 600)
    >>> use.used, use.limit
    (600, 1000)
    """
    if container and held is not None and held * own_limit > rss * container:
        return MemoryUse(rss, charge, held, container)
    return MemoryUse(rss, charge, rss, own_limit)


def on_host(rss: int, charge: int | None, total: int, available: int) -> MemoryUse:
    """Memory in use on a host without a limit: all processes share it, so whatever is not ``available`` counts.

    >>> on_host(300, None, 1000, 600).used
    400
    """
    return MemoryUse(rss, charge, max(rss, total - available), total)


def classify(share: float, level: int = NORMAL) -> int:
    """The level for memory at ``share`` of its limit that was at ``level`` before: a level ends below its mark.

    >>> classify(0.91), classify(0.88, CRITICAL), classify(0.86, CRITICAL)
    (3, 3, 2)
    """
    while level < EMERGENCY and share >= MARKS[level + 1]:
        level += 1
    while level > NORMAL and share < MARKS[level] - HYSTERESIS:
        level -= 1
    return level


_trim: Callable[[int], int] | None = None
_sought = False


def find_malloc_trim() -> bool:
    """Find glibc's ``malloc_trim`` ahead of need, since loading ctypes takes memory too. Returns whether it exists."""
    global _sought, _trim
    if not _sought:
        if sys.platform == "linux":
            with contextlib.suppress(ImportError, OSError, AttributeError):
                import ctypes

                # musl has none.
                trim = ctypes.CDLL(None).malloc_trim
                trim.argtypes = [ctypes.c_size_t]
                trim.restype = ctypes.c_int
                _trim = trim
        # Last: if allocation fails above, the next call tries again.
        _sought = True
    return _trim is not None


def malloc_trim() -> bool:
    """Make the C library return free memory to the system; False if it has no such call."""
    if not find_malloc_trim() or _trim is None:
        return False
    _trim(0)
    return True
