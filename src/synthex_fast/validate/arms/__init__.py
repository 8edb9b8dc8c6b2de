"""The four versions of the service, each a class called `Service` in a module of its own.

A `Service` has

- `handle(request)`: makes the query, keeps it among the active ones, makes its five responses, adds them to
  the buffer as a batch, keeps them per query, and returns their `Consensus`;
- `answer(request)` and `sent()`: the two halves of `handle`, before and after the response has gone out;
- `expire()`: releases all that the caches and the buffer hold, as a mass expiry does; pools keep their objects;
- `tasks()`: its background work, as pairs of the seconds until a task is first due and a function that runs it and
  returns the seconds until the next run;
- `flush()`: empties the response buffer, as its threshold does;
- `sampling()`: a function that takes a sample as its memory monitor does and returns the seconds until the next
  one; on the monitor's clock, two calls are that far apart;
- `guard(memory_limit)`: does what the version has against a memory limit of its container, in bytes, beyond the limits
  of its caches: nothing, but for this package;
- `close()`: restores what it changed for the whole process (the garbage collector's settings);
- `made()`: `(reused, created)`, the records taken from a pool or freelist and the ones newly allocated;
- `account()`: the bytes that the caches believe they hold;
- `flushed`: how many responses the buffer's handler has been given.
"""

from importlib import import_module
from typing import NamedTuple

# Second to last is what a good engineer does today: beating only a bad baseline proves little.
ARMS = ("current", "recommended", "tuned_by_hand", "synthex_fast")
# What the arms import beyond the package's own dependencies, all in the extra `validate`.
NEEDS = {
    "current": ("pydantic",),
    "recommended": ("pydantic",),
    "tuned_by_hand": ("cachetools", "msgspec", "uuid_utils"),
    "synthex_fast": (),
}

ACTIVE_QUERIES, ACTIVE_SECONDS = 1_000, 3_600.0
RESPONSE_QUERIES, RESPONSE_SECONDS = 500, 14_400.0
BUFFER_CAPACITY, FLUSH_THRESHOLD = 1_000, 0.8
# The report's target for the response cache; it gives no other figure for a cache's limit.
CACHE_LIMIT_MB = 5.8


class Consensus(NamedTuple):
    """What a request returns: how far its experts agree. The variance is the population's."""

    count: int
    mean: float
    variance: float
    level: str


def consensus(responses) -> Consensus:
    """The system's own rule in plain Python, which the package's buffer keeps to as well."""
    confidences = [response.confidence for response in responses]
    mean = sum(confidences) / len(confidences)
    variance = sum((confidence - mean) ** 2 for confidence in confidences) / len(confidences)
    if variance < 0.05 and mean > 0.7:
        level = "high"
    elif variance < 0.1 and mean > 0.5:
        level = "medium"
    else:
        level = "low"
    return Consensus(len(confidences), mean, variance, level)


def service(arm: str) -> type:
    """The `Service` class of `arm`; importing it is what the arm costs at start."""
    return import_module(f"{__name__}.{arm}").Service
