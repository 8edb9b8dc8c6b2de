"""Pause statistics: the callback in ``gc.callbacks`` that measures each collection, and histograms of the pauses."""

from __future__ import annotations

from itertools import pairwise

from synthex_fast.gc_tuner.memory import READING_LEAST_NS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from synthex_fast.gc_tuner.memory import MemoryWatch

# What made a collection happen.
AUTOMATIC, BOUNDARY, DEBT, IDLE, WATERMARK, FORCED, TRIM = range(7)
CAUSES = ("automatic", "boundary", "debt", "idle", "watermark", "forced", "trim")

# A collection inside a request may take 1 ms; half of that is kept in reserve for a slow machine.
PAUSE_BUDGET_NS = 500_000

# Buckets of a pause in nanoseconds: eight for each power of two, each at most an eighth as wide as its values.
BUCKETS = 8 * 64

# Upper bounds of the buckets that `PauseStatistics.histograms` sums those up in: powers of two, which divide none of
# them, from 16 microseconds to 4 seconds.
BOUND_BITS = range(14, 33)
BOUNDS = tuple((1 << bits) / 1e9 for bits in BOUND_BITS)
_PLACES = (0, *((bits + 1) * 8 for bits in BOUND_BITS), BUCKETS)


def _upper_bound(bucket: int) -> int:
    """The longest pause, in nanoseconds, that falls into a bucket."""
    if bucket < 8:
        return bucket
    bits, eighth = divmod(bucket, 8)
    return max(((9 + eighth) << (bits - 4)) - 1, 8)


def quantile(counts: list[int], share: float) -> float:
    """In seconds, at most an eighth too high; 0 without any pauses."""
    rank = share * sum(counts)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return _upper_bound(bucket) / 1e9
    return 0.0


def _sum_up(counts: list[int]) -> list[int]:
    """A histogram's counts by `BOUNDS`; the last is of what is longer than the last of them."""
    return [sum(counts[first:end]) for first, end in pairwise(_PLACES)]


class PauseStatistics:
    """Pauses by generation and cause, and inside requests. Written by the callback, which takes no lock.

    The callback runs at every collection, so each of its statements counts: it is a closure, it makes a container only
    where it reads memory, and what the histograms already show is not counted separately.
    """

    __slots__ = (
        "armed",
        "callback",
        "explicit",
        "freed",
        "in_flight",
        "in_request",
        "longest",
        "longest_in_request",
        "over_budget",
        "row",
        "rows",
        "taken",
        "taken_freed",
        "unforced",
    )

    def __init__(
        self,
        now: Callable[[], int],
        memory: MemoryWatch,
        read_memory: Callable[[int], bool],
        disarm: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        # By generation: objects, nanoseconds.
        self.freed, self.longest = [0] * 3, [0] * 3
        # By cause: a histogram for each generation, one after the other, then their nanoseconds, the oldest first.
        self.rows = [[0] * (3 * BUCKETS + 3) for _ in CAUSES]
        self.in_request = [0] * BUCKETS
        # Kept, because each access to a method makes a new object, and the list of callbacks is searched by identity.
        self.callback = self._make_callback(now, memory, read_memory, disarm, wake)
        self.reset()

    def reset(self) -> None:
        # In place: the callback holds these lists.
        for figures in (self.freed, self.longest, self.in_request, *self.rows):
            figures[:] = [0] * len(figures)
        # Of the cause of the collections that begin now. Set by the thread that asks for one, without a lock: another
        # thread's that begins at the same moment may be counted there too.
        self.row = self.rows[AUTOMATIC]
        # Collections that the tuner asked for, by cause.
        self.explicit = [0] * len(CAUSES)
        self.longest_in_request = self.over_budget = 0
        self.in_flight = 0
        # False while the tuner makes a forced collection, which is not counted against requests.
        self.unforced = True
        # Whether the interpreter's next collection is set to be a full one; nanoseconds and objects of the one it
        # made, until the tuner has followed up on it.
        self.armed = False
        self.taken = self.taken_freed = 0

    def _make_callback(
        self,
        now: Callable[[], int],
        memory: MemoryWatch,
        read_memory: Callable[[int], bool],
        disarm: Callable[[], None],
        wake: Callable[[], None],
    ) -> Callable[[str, dict[str, int]], None]:
        freed, longest, rows = self.freed, self.longest, self.rows
        row = rows[AUTOMATIC]
        began = now()
        attention = full_asked = False

        def callback(phase: str, info: dict[str, int]) -> None:
            nonlocal began, attention, full_asked, row
            if phase == "start":
                began = now()
                if began >= memory.due:
                    # Before the collection, when memory is at its highest.
                    attention = read_memory(began)
                    began = now()
                # The watcher may disarm it during the collection.
                full_asked = self.armed
                # A finaliser may ask for a collection of its own during this one.
                row = self.row
                return
            pause = now() - began
            generation = info["generation"]
            bits = pause.bit_length()
            bucket = (bits << 3) | (pause >> (bits - 4)) & 7 if bits > 3 else pause
            if info["collected"]:
                freed[generation] += info["collected"]
            if pause > longest[generation]:
                longest[generation] = pause
            if full_asked and generation == 2:
                disarm()
                cause = FORCED if self.in_flight else WATERMARK
                self.explicit[cause] += 1
                row = rows[cause]
                self.taken, self.taken_freed = pause, info["collected"]
                attention = True
            elif self.in_flight and self.unforced:
                self.in_request[bucket] += 1
                if pause > self.longest_in_request:
                    self.longest_in_request = pause
                if pause > PAUSE_BUDGET_NS:
                    self.over_budget += 1
            row[generation << 9 | bucket] += 1
            row[~generation] += pause
            if attention:
                attention = False
                # Reading lets other threads run. The watcher could not collect if it ran inside the callback.
                memory.due = began + pause + 4 * READING_LEAST_NS
                wake()

        return callback

    def collecting(self) -> int:
        """Nanoseconds spent in collections of any kind."""
        return sum([row[-1] + row[-2] + row[-3] for row in self.rows])

    def total(self, generation: int) -> int:
        """Nanoseconds spent in collections of that generation."""
        return sum(row[~generation] for row in self.rows)

    def _used(self, generation: int) -> list[tuple[int, list[int]]]:
        """The causes of its pauses, each with its histogram."""
        first = generation * BUCKETS
        parts = [(cause, row[first : first + BUCKETS]) for cause, row in enumerate(self.rows)]
        return [(cause, counts) for cause, counts in parts if any(counts)]

    def _histogram(self, generation: int) -> list[int]:
        """Of all causes."""
        used = [counts for _, counts in self._used(generation)]
        if len(used) < 2:
            return used[0] if used else []
        return [sum(counts) for counts in zip(*used, strict=True)]

    def histograms(self) -> dict[str, Any]:
        """Pauses by generation and cause, as far as there were any, in buckets that end at ``bounds``."""
        found = [
            {
                "generation": generation,
                "cause": CAUSES[cause],
                "seconds": self.rows[cause][~generation] / 1e9,
                "counts": _sum_up(counts),
            }
            for generation in range(3)
            for cause, counts in self._used(generation)
        ]
        return {"bounds": list(BOUNDS), "pauses": found}

    def by_generation(self) -> list[dict[str, Any]]:
        """A dict for each generation: collections, objects freed, and seconds."""
        return [
            {
                "collections": sum(counts),
                "freed": self.freed[generation],
                "seconds": self.total(generation) / 1e9,
                "p50": quantile(counts, 0.5),
                "p99": quantile(counts, 0.99),
                "max": self.longest[generation] / 1e9,
            }
            for generation, counts in enumerate(map(self._histogram, range(3)))
        ]

    def inside_requests(self) -> dict[str, Any]:
        return {
            "collections": sum(self.in_request),
            "p50": quantile(self.in_request, 0.5),
            "p99": quantile(self.in_request, 0.99),
            "max": self.longest_in_request / 1e9,
        }

    def by_cause(self, collections: int) -> dict[str, int]:
        causes = dict(zip(CAUSES, self.explicit, strict=True))
        # A collection that was asked for while another thread collected has not taken place.
        causes["automatic"] = max(0, collections - sum(self.explicit))
        return causes
