"""Full collections in turns: at most one worker of a container collects fully at a time, unless memory is high.

The tuner asks here. Where no governor has joined a fleet, the answer costs the reading of one name.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Turns(Protocol):
        def take_turn(self) -> bool: ...
        def end_turn(self) -> None: ...


__all__ = ["end", "take"]

# Set by the member of a fleet while it has joined.
current: Turns | None = None


def take() -> Turns | bool | None:
    """False if a sibling is collecting; otherwise what is to be given to `end` after the collection. Never waits."""
    turns = current
    if turns is None:
        return None
    return turns if turns.take_turn() else False


def end(taken: Turns | bool | None) -> None:
    if taken:
        taken.end_turn()  # type: ignore[union-attr]
