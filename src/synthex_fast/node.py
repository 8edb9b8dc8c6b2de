"""V8 heap flags for a Node process that shares the container, sized from the container's limit.

How V8 reads them (``Heap::ConfigureHeap`` in V8's ``src/heap/heap.cc``): a semi-space is rounded up to a power of two;
the young generation is three of them (two semi-spaces, and as much again for large young objects); and
``v8.getHeapStatistics().heap_size_limit`` is the old space's size and the young generation's together. A third flag,
``--max-heap-size``, may not be given with both, and a size of 0 stands for V8's own default, so neither is used here.
"""

from __future__ import annotations

from synthex_fast._readings import Readings
from synthex_fast._readings import memory_limit as limit_from
from synthex_fast.errors import type_error, value_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from synthex_fast._readings import HasLimit

__all__ = ["node_heap_flags", "node_options"]

_MB = 1 << 20
# In MB. Under the least heap Node hardly starts.
_LEAST_HEAP = 32
_MOST_SEMI_SPACE = 64
# The young generation takes at most this part of the heap.
_YOUNG_PART = 8
_SEMI_SPACES = 3


def node_heap_flags(
    memory_limit: int | float | str | None = None,
    *,
    share: float = 0.75,
    readings: HasLimit | None = None,
) -> list[str]:
    """Flags that keep a Node process's heap within its share of a memory limit, as a list of two strings.

    `memory_limit` is what the Node process shares with others, in bytes, as "512MB" or "2GB" (1 MB is 2**20 bytes), or
    as a percentage of the container's limit; None is the container's limit, or the host's memory where there is none.
    `share` is the part of it, above 0 and up to 1, that the heap may come to. What is left is for what V8 does not
    count: the process itself (some 40 MB), buffers outside the heap, and the neighbours.

    The young generation gets an eighth of the heap at most, in semi-spaces of a power of two from 1 to 64 MB; the old
    space gets the rest. The heap's limit, ``v8.getHeapStatistics().heap_size_limit``, is what was asked for less a MB
    at most.

    Raises ValueError or TypeError that name the argument: a limit above the host's memory, NaN, a share out of range,
    a heap under 32 MB.

    >>> node_heap_flags("2GB")
    ['--max-old-space-size=1344', '--max-semi-space-size=64']
    """
    if isinstance(share, (bool, str)) or not (
        hasattr(type(share), "__float__") or hasattr(type(share), "__index__")
    ):
        raise type_error("share", share, "a number above 0 and up to 1")
    try:
        part = float(share)
    except OverflowError:
        part = 2.0
    if not 0.0 < part <= 1.0:
        raise value_error("share", share, "a number above 0 and up to 1")
    limit = _limit(memory_limit, readings)
    heap = int(limit * part) // _MB
    if heap < _LEAST_HEAP:
        given = limit if memory_limit is None else memory_limit
        raise value_error(
            "memory_limit", given, f"{_LEAST_HEAP} MB or more after the share of {part:g} is taken"
        )
    semi_space = 1
    while semi_space < _MOST_SEMI_SPACE and 2 * semi_space * _SEMI_SPACES * _YOUNG_PART <= heap:
        semi_space *= 2
    return [
        f"--max-old-space-size={heap - _SEMI_SPACES * semi_space}",
        f"--max-semi-space-size={semi_space}",
    ]


def node_options(
    memory_limit: int | float | str | None = None,
    *,
    share: float = 0.75,
    readings: HasLimit | None = None,
) -> str:
    """The same as one string, as the environment variable ``NODE_OPTIONS`` wants it.

    >>> node_options("1GB", share=0.5)
    '--max-old-space-size=464 --max-semi-space-size=16'
    """
    return " ".join(node_heap_flags(memory_limit, share=share, readings=readings))


def _limit(given: int | float | str | None, readings: HasLimit | None) -> int:
    if readings is not None:
        return limit_from(given, readings)
    own = Readings()
    try:
        return limit_from(given, own)
    finally:
        own.close()
