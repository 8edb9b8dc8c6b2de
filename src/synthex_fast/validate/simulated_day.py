"""What a version's memory monitor costs in a day: a day's samples, on a clock that only the samples advance.

The samples are real ones. Before each, this process's memory is brought to what a service holds at that time of the
day: it follows the traffic, jobs come and go, and it is never quite still. How often an adaptive monitor takes a sample
then follows from the day, and not from one steady value.
"""

import gc
import math
import mmap
import random
import time
from collections.abc import Callable

from synthex_fast.validate import _allocations

SECONDS_OF_A_DAY = 86_400
# Bytes by which the simulated service's memory varies.
DAILY_SWING = 48 << 20
JOB_BYTES, JOB_SECONDS, JOBS = 24 << 20, 900, 4
NOISE_BYTES, NOISE_SECONDS = 1 << 20, 60
CHUNK = 256 << 10
# Of a monitor that takes more samples a day than this at its first interval, an even share of FEWER_SAMPLES is taken.
MOST_SAMPLES, FEWER_SAMPLES = 18_000, 4_320
# Samples are timed for this long, then counted in bytes for as long, which slows them down.
TURN_SECONDS = 1_800


class Day:
    """How many bytes more than at its least a service holds at each second of a day; the same for the same seed.

    >>> day = Day(7)
    >>> 0 <= day.nbytes(3_600.0) <= DAILY_SWING + JOBS * JOB_BYTES + NOISE_BYTES
    True
    >>> day.nbytes(3_600.0) == Day(7).nbytes(3_600.0)
    True
    """

    def __init__(self, seed: int):
        draw = random.Random(seed)
        self._jobs = [draw.randrange(SECONDS_OF_A_DAY - JOB_SECONDS) for _ in range(JOBS)]
        self._noise = [draw.randrange(NOISE_BYTES) for _ in range(SECONDS_OF_A_DAY // NOISE_SECONDS)]

    def nbytes(self, second: float) -> int:
        traffic = 0.5 - 0.5 * math.cos(2 * math.pi * (second / SECONDS_OF_A_DAY - 1 / 6))  # least at four
        jobs = sum(began <= second < began + JOB_SECONDS for began in self._jobs)
        return int(DAILY_SWING * traffic) + JOB_BYTES * jobs + self._noise[int(second) // NOISE_SECONDS]


class Ballast:
    """Memory of this process, straight from the system, so that its size shows in the resident size at once."""

    def __init__(self):
        self._chunks: list[mmap.mmap] = []

    @property
    def nbytes(self) -> int:
        return len(self._chunks) * CHUNK

    def resize(self, nbytes: int) -> None:
        chunks, wanted = self._chunks, nbytes // CHUNK
        while len(chunks) < wanted:
            chunk = mmap.mmap(-1, CHUNK)
            for place in range(0, CHUNK, mmap.PAGESIZE):
                chunk[place] = 1
            chunks.append(chunk)
        while len(chunks) > wanted:
            chunks.pop().close()


def measure(sample: Callable[[], float], seed: int) -> dict:
    """Take a day's samples with `sample`, which returns the seconds until the next one.

    Returns the samples of the day and how many of them were taken, the mean, least and greatest seconds between two,
    and CPU seconds and bytes of one. Of a monitor that takes very many, which are alike, an even share is taken.
    """
    day, ballast = Day(seed), Ballast()
    clock, now = time.thread_time_ns, 0.0
    cpu = requested = timed = counted = 0
    shortest, longest = math.inf, 0.0
    ballast.resize(day.nbytes(now))
    # What the first sample makes once is no cost of each.
    samples_a_day = SECONDS_OF_A_DAY / sample()
    stride = 1.0 if samples_a_day <= MOST_SAMPLES else samples_a_day / FEWER_SAMPLES
    counting = False
    gc.collect()
    try:
        while now < SECONDS_OF_A_DAY:
            if counting != bool(now // TURN_SECONDS % 2):
                counting = not counting
                if counting:
                    _allocations.start()
                    _allocations.pause()
                else:
                    requested += _allocations.stop()[0]
            ballast.resize(day.nbytes(now))
            if counting:
                _allocations.resume()
                seconds = sample()
                _allocations.pause()
                counted += 1
            else:
                began = clock()
                seconds = sample()
                cpu += clock() - began
                timed += 1
            shortest, longest = min(shortest, seconds), max(longest, seconds)
            now += seconds * stride
    finally:
        if counting:
            requested += _allocations.stop()[0]
        ballast.resize(0)
    return {
        "samples_a_day": (timed + counted) * stride,
        "samples_taken": timed + counted,
        "interval": SECONDS_OF_A_DAY / ((timed + counted) * stride),
        "shortest_interval": shortest,
        "longest_interval": longest,
        "cpu_seconds": cpu / 1e9 / timed,
        "bytes": requested / counted,
    }
