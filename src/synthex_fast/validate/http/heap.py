"""What a service holds for as long as it runs, and what its requests leave behind: the same for every arm.

Collectors differ in how often they traverse the first and how they deal with the second.
"""

import gc
from collections import deque
from typing import Any

OBJECTS_OF_A_NODE = 4
# The children of a node: a catalogue of products, say, is flat.
CHILDREN = 8

# A session's rows are what an ORM keeps of the queries that a request makes: they refer to the session and it to
# them. It lives while later requests may ask for it; then only a garbage collection can free it.
ROWS = 100
SESSIONS_KEPT = 1_000


class Node:
    """An entry of the service's long-lived data: an object with a list, a dict and a tuple of its own."""

    __slots__ = ("attributes", "children", "path")

    def __init__(self, parent: "Node | None", number: int) -> None:
        self.children: list[Node] = []
        self.path = (parent, number)
        self.attributes: dict[str, Any] = {"number": number, "siblings": self.children}


def build(objects: int) -> list[Node]:
    """A tree of about that many objects, all of which the garbage collector tracks.

    >>> len(build(1_000))
    250
    """
    nodes: list[Node] = []
    for number in range(max(1, objects // OBJECTS_OF_A_NODE)):
        parent = nodes[(number - 1) // CHILDREN] if number else None
        node = Node(parent, number)
        if parent is not None:
            parent.children.append(node)
        nodes.append(node)
    return nodes


class Row:
    """A row of a result, which knows the session that it came with."""

    __slots__ = ("session", "values")

    def __init__(self, session: "Session", values: dict[str, Any]) -> None:
        self.session = session
        self.values = values


class Session:
    """What a request leaves: its rows, which refer back to it, and so form cycles."""

    __slots__ = ("requester", "rows")

    def __init__(self, requester: str) -> None:
        self.requester = requester
        self.rows = [Row(self, {"number": number, "changed": []}) for number in range(ROWS)]


class Sessions:
    """The sessions of the latest requests. One that is dropped is garbage that only a collection finds."""

    def __init__(self) -> None:
        self._latest: deque[Session] = deque(maxlen=SESSIONS_KEPT)

    def open(self, requester: str) -> None:
        self._latest.append(Session(requester))


def tracked() -> int:
    """Objects that the garbage collector of this process tracks, frozen ones included."""
    return len(gc.get_objects()) + gc.get_freeze_count()
