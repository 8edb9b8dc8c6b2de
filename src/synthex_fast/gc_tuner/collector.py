"""The interpreter's collector: which kind it is, and its settings before, while and after a tuner runs."""

from __future__ import annotations

import sys

from synthex_fast._forks import fork_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Collector(Protocol):
        """What the tuner uses of the module ``gc``; tests substitute their own."""

        @property
        def callbacks(self) -> list[Any]: ...
        def collect(self, generation: int = 2) -> int: ...
        def get_count(self) -> tuple[int, int, int]: ...
        def get_threshold(self) -> tuple[int, int, int]: ...
        def set_threshold(self, threshold0: int, threshold1: int, threshold2: int, /) -> None: ...
        def enable(self) -> None: ...
        def disable(self) -> None: ...
        def isenabled(self) -> bool: ...
        def freeze(self) -> None: ...
        def unfreeze(self) -> None: ...
        def get_freeze_count(self) -> int: ...


COLLECTOR_METHODS = (
    "collect",
    "get_count",
    "get_threshold",
    "set_threshold",
    "enable",
    "disable",
    "isenabled",
    "freeze",
    "unfreeze",
    "get_freeze_count",
)

GENERATIONAL, INCREMENTAL, FREE_THREADED = "generational", "incremental", "free-threaded"
KINDS = (GENERATIONAL, INCREMENTAL, FREE_THREADED)

# A threshold that is never reached.
OUT_OF_REACH = 2**31 - 1
# The least young threshold, in containers.
YOUNG_LEAST = 500
# Two young collections, then one of both young generations: at most three times the threshold in one pause.
MIDDLE_WITH_REQUESTS = 1
# Full collections in 3.12 freeze a few hundred immortal objects; gc.freeze() freezes thousands.
FROZEN_BY_INTERPRETER = 1_000 if sys.version_info[:2] == (3, 12) else 0
# Linux's PF_FORKNOEXEC: forked, and no other program executed since.
FORKED_WITHOUT_EXEC = 0x40


def collector_kind(hexversion: int, free_threaded: bool) -> str:
    """Which of CPython's three collectors a build has."""
    if free_threaded:
        return FREE_THREADED
    # Python 3.14.0 to 3.14.4 only.
    return INCREMENTAL if 0x030E0000 <= hexversion < 0x030E0500 else GENERATIONAL


def is_forked_child() -> bool:
    """Whether this process shares its pages with the one that forked it.

    A fork before the package was imported is known on Linux only.
    """
    if fork_count():
        return True
    try:
        with open("/proc/self/stat", "rb") as stat:
            # The name, in parentheses, may contain anything.
            fields = stat.read().rpartition(b")")[2].split()
        return bool(int(fields[6]) & FORKED_WITHOUT_EXEC)
    except (OSError, ValueError, IndexError):
        return False


class CollectorSettings:
    """The interpreter's thresholds, switch and frozen objects, and how they were before the tuner started."""

    __slots__ = ("_enabled", "collected_at_start", "frozen", "gc", "saved", "switched")

    def __init__(self, collector: Collector, kind: str) -> None:
        self.gc = collector
        # An automatic collection may include old objects, so none may start inside a request.
        self.switched = kind != GENERATIONAL
        self.saved = (0, 0, 0)
        self._enabled = True
        # Whether the tuner froze the objects that are frozen, and whether it collected before.
        self.frozen = self.collected_at_start = False

    def save(self) -> None:
        self.saved = self.gc.get_threshold()
        self._enabled = self.gc.isenabled()
        self.collected_at_start = False

    def freeze(self) -> None:
        """Freeze what is alive, unless the service has frozen objects itself.

        Frozen garbage is never collected, hence the collection before. It writes to the header of every object, though,
        and in a forked child each page written to is copied: there, garbage that the parent left costs less.

        The free-threaded build's gc.freeze() writes to every object itself, so there only a tuner that was started
        before the fork keeps the pages shared.
        """
        collector = self.gc
        if collector.get_freeze_count() > FROZEN_BY_INTERPRETER:
            return
        if not is_forked_child():
            self.collected_at_start = True
            collector.collect()
        collector.freeze()
        self.frozen = True
        # The interpreter compares what is new with what the last full collection kept, which must be nothing now. This
        # one visits no frozen object.
        collector.collect()

    def apply(self, young: int, in_flight: int, serving: bool, armed: bool) -> None:
        _, middle, old = self.saved
        if self.switched:
            # Not through gc.disable(): the service may call it, and gc.enable(), for its own reasons.
            self.gc.set_threshold(OUT_OF_REACH if in_flight else young, middle, old)
        elif armed:
            # A negative threshold makes the next collection a full one.
            self.gc.set_threshold(YOUNG_LEAST, 0, -1)
        elif serving:
            self.gc.set_threshold(young, MIDDLE_WITH_REQUESTS, OUT_OF_REACH)
        else:
            self.gc.set_threshold(young, middle, old)

    def restore(self) -> None:
        collector = self.gc
        collector.set_threshold(*self.saved)
        if self._enabled:
            collector.enable()
        else:
            collector.disable()
        if self.frozen:
            self.frozen = False
            collector.unfreeze()
