"""V8 heap flags for a Node process that shares a container, sized from the container's limit.

V8 derives its heap from the flags as follows (``Heap::ConfigureHeap`` in V8's ``src/heap/heap.cc``). A semi-space is
rounded up to a power of two. The young generation is three of them: two semi-spaces, and as much again for large young
objects. ``v8.getHeapStatistics().heap_size_limit`` is the sum of the old space and the young generation. A third flag,
``--max-heap-size``, may not be combined with both, and a size of 0 stands for V8's own default, so neither is used.
"""

from __future__ import annotations

from synthex_fast._arguments import share_of_one, want_methods, want_text
from synthex_fast._readings import Readings
from synthex_fast._readings import memory_limit as limit_from
from synthex_fast.errors import value_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from synthex_fast._readings import HasLimit

__all__ = ["node_heap_flags", "node_options"]

_MB = 1 << 20
# In MB. Node hardly starts with less heap.
_LEAST_HEAP = 32
_MOST_SEMI_SPACE = 64
# The young generation takes at most one part in this many of the heap.
_YOUNG_PART = 8
_SEMI_SPACES = 3


def node_heap_flags(
    memory_limit: int | float | str | None = None,
    *,
    share: float = 0.75,
    readings: HasLimit | None = None,
) -> list[str]:
    """Flags that keep a Node process's heap within its share of a memory limit, as a list of two strings.

    `memory_limit` is what the Node process shares with others: bytes, a size such as "512MB" or "2GB" (1 MB is 2**20
    bytes), or a percentage of the container's limit. None is the container's limit, or the host's memory outside a
    container. `share` is the part of it, above 0 and up to 1, that the heap may use. The rest is for what V8 does not
    count: the process itself (about 40 MB), buffers outside the heap, and other processes.

    The young generation gets at most an eighth of the heap, in semi-spaces of a power of two from 1 to 64 MB. The old
    space gets the rest. The heap's limit, ``v8.getHeapStatistics().heap_size_limit``, is at most 1 MB below the size
    asked for. O(1).

    Raises `ArgumentValueError` or `ArgumentTypeError`, with the argument's name: for a limit above the host's memory,
    NaN, a share out of range, or a heap below 32 MB.

    >>> node_heap_flags("2GB")
    ['--max-old-space-size=1344', '--max-semi-space-size=64']
    """
    part = share_of_one("share", share)
    limit = _limit(memory_limit, readings)
    heap = int(limit * part) // _MB
    if heap < _LEAST_HEAP:
        given = limit if memory_limit is None else memory_limit
        raise value_error(
            "memory_limit", given, f"large enough for a share of {part:g} to be {_LEAST_HEAP} MB or more"
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
    existing: str = "",
) -> str:
    """The flags of `node_heap_flags` as one string, for the environment variable ``NODE_OPTIONS``.

    `existing` is what the variable holds already: it is kept, and wins where it sets the same flag.

    >>> node_options("1GB", share=0.5)
    '--max-old-space-size=464 --max-semi-space-size=16'
    >>> node_options("1GB", share=0.5, existing="--max_semi_space_size=8 --enable-source-maps")
    '--max_semi_space_size=8 --enable-source-maps --max-old-space-size=464'
    """
    want_text("existing", existing)
    # V8 takes an underscore for a dash.
    theirs = {option.partition("=")[0].replace("_", "-") for option in existing.split()}
    ours = [
        flag
        for flag in node_heap_flags(memory_limit, share=share, readings=readings)
        if flag.partition("=")[0] not in theirs
    ]
    return " ".join([existing.strip(), *ours]).strip()


def _limit(given: int | float | str | None, readings: HasLimit | None) -> int:
    if readings is not None:
        return limit_from(given, want_methods("readings", readings, ("limit", "total")))
    own = Readings()
    try:
        return limit_from(given, own)
    finally:
        own.close()
