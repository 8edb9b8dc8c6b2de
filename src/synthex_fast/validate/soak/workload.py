"""The traffic of a day: when requests arrive, who sends them, what they ask for. All of it follows from a seed.

Arrivals follow a daily cycle: half as many again in the afternoon, half as many at night. Every fourth minute, on
average, is a burst: a third of its requests arrive in two of its seconds. Over any whole day the rate is exactly the
one asked for.

Users are drawn from a Zipf distribution. A few of them send most requests, and most send one so rarely that their
sessions fall idle.
"""

import math
import random
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

DAY, HOUR, MINUTE = 86_400, 3_600, 60
USERS = 10_000
# Above this rank of recency, a reader polls for answers that are mostly no longer kept.
RECENT = 1_024
# The mean time until a query's answer is no longer awaited, unless it is withdrawn earlier.
LIFE_SECONDS = 0.6
CYCLE = 0.5  # amplitude of the daily cycle, as a share of the rate
QUIETEST = 4 * HOUR
BURST_SECONDS, BURST_SHARE, MINUTES_PER_BURST = 2, 1 / 3, 4

BLOCK = 4_096  # requests drawn at once

# What a request does besides the ordinary, and how many of 4,096 do it.
EXTRAS = 4_096
ORDINARY, REVIEW, CYCLIC, WITHDRAWN, FULL_BATCH, LARGE_BATCH, ENDLESS_BATCH = range(7)
_SHARES = {REVIEW: 256, CYCLIC: 200, WITHDRAWN: 1_400, FULL_BATCH: 3, LARGE_BATCH: 2, ENDLESS_BATCH: 2}


class Clock:
    """The simulated time in seconds since the run began. Whoever plays the traffic advances it."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0


class Arrival(NamedTuple):
    """A request: its user, the corpus's request, the query's life, the rank polled for, and the extra."""

    user: str
    asked: int
    life: float
    rank: int
    extra: int


def zipf(items: int, exponent: float = 1.0) -> np.ndarray:
    """The cumulative distribution of a Zipf law over that many ranks.

    >>> zipf(3).round(2).tolist()
    [0.55, 0.82, 1.0]
    """
    weights = np.arange(1, items + 1, dtype=np.float64) ** -exponent
    cumulative = weights.cumsum()
    return cumulative / cumulative[-1]


def arrived(rate: float, seconds: float) -> float:
    """How many requests the daily cycle has brought by that time, at an average of `rate` a second.

    >>> round(arrived(1_000, DAY)), round(arrived(1_000, 8 * HOUR)) < 8 * HOUR * 1_000
    (86400000, True)
    """
    # The integral of 1 - CYCLE * cos(angle * (t - QUIETEST)) from 0 on.
    angle = 2 * math.pi / DAY
    cycle = math.sin(angle * (seconds - QUIETEST)) + math.sin(angle * QUIETEST)
    return rate * (seconds - CYCLE / angle * cycle)


class Traffic:
    """The requests of one worker, second by second. Two with the same arguments are the same."""

    def __init__(self, seed: int, worker: int, rate: float, corpus_size: int) -> None:
        self._rate = rate
        self._corpus_size = corpus_size
        self._bursts = random.Random(f"{seed} {worker}")
        self._random = np.random.default_rng((seed, worker))
        self._users = [f"user-{number:05}" for number in range(USERS)]
        self._user_shares = zipf(USERS)
        self._rank_shares = zipf(RECENT)
        extras = np.zeros(EXTRAS, dtype=np.int64)
        place = 0
        for extra, count in _SHARES.items():
            extras[place : place + count] = extra
            place += count
        self._extras = extras

    def counts(self) -> Generator[int, None, None]:
        """How many requests arrive in each second, without end."""
        minute = 0
        while True:
            before, after = (round(arrived(self._rate, MINUTE * n)) for n in (minute, minute + 1))
            yield from self._minute(after - before)
            minute += 1

    def _minute(self, count: int) -> list[int]:
        # In plain Python, since numpy keeps the memory of small arrays, which would be seen as growth.
        burst = 0.0
        begin = 0
        if self._bursts.randrange(MINUTES_PER_BURST) == 0:
            burst = BURST_SHARE / BURST_SECONDS
            begin = self._bursts.randrange(MINUTE - BURST_SECONDS + 1)
        steady = (1 - burst * BURST_SECONDS) / (MINUTE - BURST_SECONDS if burst else MINUTE)
        counts, share, before = [], 0.0, 0
        for second in range(MINUTE):
            share += burst if burst and begin <= second < begin + BURST_SECONDS else steady
            after = round(count * share)
            counts.append(after - before)
            before = after
        return counts

    def requests(self) -> Generator[Arrival, None, None]:
        """What the requests are, without end."""
        first = 0
        while True:
            # Blocks of one size: numpy keeps small arrays for reuse by their size, and would be seen to grow.
            yield from map(Arrival, *self._draw(first))
            first += BLOCK

    def _draw(self, first: int) -> tuple[list, ...]:
        draw, users = self._random, self._users
        # In turns, as `validate` has it. Drawn at random they would come out of main memory, where a service finds the
        # request that it has just parsed in the processor's cache.
        asked = [place % self._corpus_size for place in range(first, first + BLOCK)]
        return (
            [users[rank] for rank in np.searchsorted(self._user_shares, draw.random(BLOCK)).tolist()],
            asked,
            (draw.standard_exponential(BLOCK) * LIFE_SECONDS + 1e-3).tolist(),
            np.searchsorted(self._rank_shares, draw.random(BLOCK)).tolist(),
            self._extras[draw.integers(EXTRAS, size=BLOCK)].tolist(),
        )
