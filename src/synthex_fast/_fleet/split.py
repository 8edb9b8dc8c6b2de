"""How the workers of a container divide its memory for caches. ``bench/simulate_fleet.py`` runs it too.

Arithmetic only. What is divided are resident bytes. The budget is what the container's limit leaves once everything
that no cache holds is paid for (`budget`). Each worker gets a floor, and of the rest a part in proportion to its
weight, but never more than it can use (`divide`).

Weights begin equal and climb hills (Cidon et al., "Cliffhanger", NSDI 2016). A miss on an entry that was evicted not
long ago, a ghost hit, would have been a hit in a larger cache, so ghost hits per byte held estimate what another byte
is worth. Where a worker's bytes are worth more than the average, its weight grows, and elsewhere it falls
(`Need.next_weight`). In the end all are worth the same, which for hit curves that flatten is the best division. Equal
workers stay equal: a difference that chance explains moves nothing.

Memory that a cache has freed and that has not returned to the system is still its own. `Held` keeps account of that, so
that a division never hands out memory that is not there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Claimant(Protocol):
        """A worker, or a cache among those of one process, with what its weight depends on."""

        @property
        def held(self) -> int: ...
        @property
        def want(self) -> float: ...
        @property
        def evidence(self) -> float: ...
        @property
        def settled(self) -> bool: ...
        @property
        def hungry(self) -> bool: ...


__all__ = [
    "ANYTHING",
    "Held",
    "Hunger",
    "Need",
    "Posting",
    "Together",
    "budget",
    "divide",
    "fair_part",
    "share_out",
    "step_down",
]

# As much as there is.
ANYTHING = 1 << 50
WEIGHT_LEAST, WEIGHT_MOST = 1 / 64, 64.0
# A worker keeps at least this part of an equal share, so that its need can be seen.
FLOOR_PART = 1 / 8
# Ghost hits are averaged over about this many seconds.
MEMORY_SECONDS = 8.0
# Weights move by this power of the ratio of values per byte each `CLIMB_SECONDS`, and by no more than `CLIMB_MOST`.
CLIMB = 0.5
CLIMB_SECONDS = 4.0
CLIMB_MOST = 0.25
# Differences of less than this, in the logarithm, move nothing; nor do those that chance explains: this many standard
# deviations.
DEADBAND = 0.10
DEVIATIONS = 2.5
# By how much a weight returns to 1 in `CLIMB_SECONDS` while there is no such difference.
RELAX = 0.1
# A worker has settled if it holds at least this part of its share. Before, its misses say nothing about a larger one.
SETTLED_PART = 0.7
# How long a cache that has evicted counts as hungry, and how much more than it holds one that is not may come to.
HUNGRY_SECONDS = 20.0
SPARE = 1.05
# How much of what a worker holds above its share it gives up at once. It goes on when that has returned to the system.
STEP_DOWN = 0.6


class Posting(NamedTuple):
    """What one worker tells the others. Sizes in bytes."""

    pid: int
    # Unix time at which it joined.
    started: float
    # What its caches count, what they occupy of resident memory, and the rest of its resident memory.
    nbytes: int
    held: int
    rest: int
    # Ghost hits a second, and how many have been counted for that.
    want: float
    evidence: float
    weight: float
    # The most and the least that it should get.
    most: int
    floor: int
    # What it has computed as its share.
    share: int
    level: int
    # Whether it holds about what it may, and whether it could use more.
    settled: bool
    hungry: bool


class Claim(NamedTuple):
    """What a cache's weight among the others of its process depends on; as in `Posting`."""

    held: int
    want: float
    evidence: float
    settled: bool
    hungry: bool


class Together:
    """Sums over those of all workers, or caches of a process, that are hungry; and whether all have settled."""

    __slots__ = ("evidence", "held", "hungry", "settled", "want")

    def __init__(self, claimants: Sequence[Claimant]) -> None:
        hungry = [each for each in claimants if each.hungry]
        self.hungry = len(hungry)
        self.held = sum(each.held for each in hungry)
        self.want = sum(each.want for each in hungry)
        self.evidence = sum(each.evidence for each in hungry)
        self.settled = all(each.settled for each in claimants)


def share_out(total: float, claims: Sequence[tuple[float, float]]) -> list[float]:
    """Divide ``total`` in proportion to the first number of each claim; no share exceeds the second.

    >>> share_out(90.0, [(1.0, 100.0), (2.0, 100.0), (1.0, 0.0)])
    [30.0, 60.0, 0.0]
    >>> share_out(90.0, [(1.0, 100.0), (2.0, 50.0)])
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


def budget(sized_for: float, used: float, held: Sequence[int]) -> float:
    """Resident bytes that all caches may occupy together: ``sized_for``, less what is in ``use`` and not held by one.

    >>> budget(400, 350, [100, 200])
    350.0
    """
    together = min(float(sum(held)), used)
    return max(0.0, sized_for - used + together)


def divide(total: float, workers: Sequence[Posting]) -> list[float]:
    """The share of each worker. Every worker computes the same from the same postings.

    >>> one = Posting(1, 0.0, 0, 0, 0, 0.0, 0.0, 1.0, ANYTHING, 0, 0, 0, True, True)
    >>> divide(90.0, [one, one._replace(pid=2, weight=2.0)])
    [30.0, 60.0]
    >>> divide(90.0, [one, one._replace(pid=2, most=9)])
    [81.0, 9.0]
    """
    count = len(workers)
    if not count:
        return []
    least = [min(float(worker.floor), float(worker.most), total / count) for worker in workers]
    left = total - sum(least)
    claims = [
        (worker.weight, max(0.0, worker.most - floor)) for worker, floor in zip(workers, least, strict=True)
    ]
    shares = [floor + extra for floor, extra in zip(least, share_out(left, claims), strict=True)]
    over = total - sum(shares)
    if over > 1.0:
        # Nobody can use it now. Any of them may want it before the next division.
        shares = [share + over / count for share in shares]
    return shares


def fair_part(workers: Sequence[Posting], shares: Sequence[float], mine: int) -> float:
    """The part of what must be evicted from all that worker ``mine`` evicts: by what each holds above its share."""
    over = [max(0.0, worker.held - share) for worker, share in zip(workers, shares, strict=True)]
    if not sum(over):
        over = [float(worker.held) for worker in workers]
    together = sum(over)
    return over[mine] / together if together else 1.0


def step_down(held: float, share: float) -> float:
    """What to hold next on the way down from ``held`` to ``share``: most of the way, and the last part at once."""
    gap = held - share
    return share if gap <= 0.25 * share else held - STEP_DOWN * gap


class Need:
    """What another byte would be worth to one worker or cache, and the weight that follows from it."""

    __slots__ = ("_at", "_last", "_time", "_weighed_at", "evidence", "want", "weight")

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        # Ghost hits a second, and the number that this is derived from.
        self.want = 0.0
        self.evidence = 0.0
        self._time = 0.0
        self._last: int | None = None
        self._at = 0.0
        self._weighed_at: float | None = None

    def observe(self, count: int, now: float) -> None:
        """Take in the number of ghost hits ever counted."""
        last, self._last = self._last, count
        elapsed, self._at = now - self._at, now
        if last is None or elapsed <= 0 or count < last:
            return
        kept = 0.5 ** min(elapsed / MEMORY_SECONDS, 100.0)
        self.evidence = self.evidence * kept + (count - last)
        self._time = self._time * kept + elapsed
        self.want = self.evidence / self._time

    def forget(self) -> None:
        """Begin to count anew: the size has changed so much that what was counted says nothing about it."""
        self.want = self.evidence = self._time = 0.0

    def next_weight(self, mine: Claimant, everyone: Together, now: float) -> float:
        """Move the weight by what another byte is worth to this worker and to the others.

        Only those that are hungry are compared. Who has all that it needs has no ghost hits, and yet what it holds may
        be worth more than anything; what it does not use goes to others anyway. And while anybody's cache is still
        filling, its misses say nothing about a larger one.
        """
        at, self._weighed_at = self._weighed_at, now
        if at is None or not mine.hungry or everyone.hungry < 2 or not everyone.settled:
            return self.weight
        # One more of each: no ratio is infinite, and few of them say little.
        evidence = max(everyone.evidence - mine.evidence, 0.0) + 1
        rate = max(everyone.want - mine.want, 0.0) + 1 / MEMORY_SECONDS
        own = (mine.want + 1 / MEMORY_SECONDS) / max(mine.held, 1)
        ratio = math.log(own * max(everyone.held - mine.held, 1) / rate)
        chance = DEVIATIONS * math.sqrt(1 / (mine.evidence + 1) + 1 / evidence)
        beyond = abs(ratio) - max(DEADBAND, chance)
        steps = min((now - at) / CLIMB_SECONDS, 2.0)
        if beyond > 0:
            move = math.copysign(min(CLIMB * beyond, CLIMB_MOST), ratio) * steps
        else:
            # Back to equal shares, which are as good: where hit curves are straight, chance would lead anywhere.
            move = -RELAX * steps * math.log(self.weight)
        self.weight = min(max(self.weight * math.exp(move), WEIGHT_LEAST), WEIGHT_MOST)
        return self.weight


class Hunger:
    """Whether a cache could use more: it has evicted for want of room not long ago."""

    __slots__ = ("_last", "_until")

    def __init__(self) -> None:
        self._last: int | None = None
        self._until = -math.inf

    def observe(self, evicted: int, now: float) -> bool:
        """``evicted`` is the number of entries ever evicted."""
        last, self._last = self._last, evicted
        if last is not None and evicted > last:
            self._until = now + HUNGRY_SECONDS
        return now < self._until


class Held:
    """Resident bytes that caches occupy: what they hold, and what they have freed that the process has kept."""

    __slots__ = ("_rss", "bytes")

    def __init__(self) -> None:
        self.bytes = 0.0
        self._rss: int | None = None

    def observe(self, rss: int, cached: float) -> float:
        """``rss`` is the resident size of the process, ``cached`` what the caches' contents cost of it."""
        before, self._rss = self._rss, rss
        returned = 0 if before is None else max(0, before - rss)
        self.bytes = min(max(self.bytes - returned, cached), float(max(rss, 0)))
        return self.bytes
