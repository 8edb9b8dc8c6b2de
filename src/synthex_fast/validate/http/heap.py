"""What a service holds for as long as it runs, and what its requests leave behind: the same for every arm.

Collectors differ in how often they traverse the first and how they deal with the second.
"""

import gc
from collections import deque
from typing import Any

OBJECTS_OF_A_NODE = 4
# The children of a node: a catalogue of products, say, is flat.
CHILDREN = 8

# What a request leaves, in objects: about 200 that live for the next 2,000 requests, and 100 in cycles.
KEPT_ROWS, KEPT_FOR = 65, 2_000
CYCLIC_ROWS = 33


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
    """A row that a request has read, as an object mapper keeps it: its values, and the unit of work that it is in."""

    __slots__ = ("unit", "values")

    def __init__(self, number: int, unit: object) -> None:
        self.unit = unit
        self.values: dict[str, Any] = {"number": number, "changes": []}


class UnitOfWork:
    """What an object mapper makes for a request. Its rows refer back to it: garbage that only a collection finds."""

    __slots__ = ("requester", "rows")

    def __init__(self, requester: str) -> None:
        self.requester = requester
        self.rows = [Row(number, self) for number in range(CYCLIC_ROWS)]


class Leavings:
    """What requests leave behind: cycles at once, and results that later requests may use."""

    def __init__(self) -> None:
        # Freed without a collection, when they have become too many.
        self._kept: deque[list[Row]] = deque(maxlen=KEPT_FOR)

    def add(self, requester: str) -> None:
        """Those of one request."""
        UnitOfWork(requester)
        self._kept.append([Row(number, None) for number in range(KEPT_ROWS)])


def tracked() -> int:
    """Objects that the garbage collector of this process tracks, frozen ones included."""
    return len(gc.get_objects()) + gc.get_freeze_count()
