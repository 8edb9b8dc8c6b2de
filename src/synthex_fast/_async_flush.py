"""The coroutine behind `ResponseBuffer.aflush`. In Python, so that it is a coroutine like any other to asyncio."""

from __future__ import annotations

from synthex_fast.errors import type_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from synthex_fast._slab import ResponseBuffer
    from synthex_fast.experts import PooledExpertResponse

__all__ = ["flush"]


async def flush(
    buffer: ResponseBuffer, handler: Callable[[list[PooledExpertResponse]], Awaitable[object]]
) -> list[PooledExpertResponse]:
    """Have the handler take the buffer's responses; remove them once it has, and only then."""
    begun = buffer._begin_async_flush()
    if begun is None:
        return []
    ticket, kept = begun
    done = False
    try:
        result = list(kept)
        waiting = handler(list(kept))
        if not hasattr(type(waiting), "__await__"):
            raise type_error("handler(responses)", waiting, "something to await")
        await waiting
        done = True
    finally:
        buffer._end_async_flush(ticket, kept, done)
    return result
