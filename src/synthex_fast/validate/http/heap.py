"""What a service holds for as long as it runs, and what its requests leave behind: the same for every arm.

Collectors differ in how often they traverse the first and how they deal with the second.
"""

import gc
from collections import deque
from typing import Any

OBJECTS_OF_A_NODE = 4
# The children of a node: a catalogue of products, say, is flat.
CHILDREN = 8

# What a request leaves, in containers: about 200 that live for the next 2,000 requests, and 20 in cycles.
ROWS = 65
SESSIONS_KEPT = 2_000
CALLBACKS = 18


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
    """A row of what a request has read, as an object mapper keeps it: what it holds, and what has been changed."""

    __slots__ = ("changes", "values")

    def __init__(self, number: int) -> None:
        self.values: dict[str, Any] = {"number": number, "row": self.__class__}
        self.changes: list[str] = []


class Context:
    """What a framework makes for one request: callbacks that refer back to it, a cycle that nothing breaks."""

    __slots__ = ("callbacks", "requester")

    def __init__(self, requester: str) -> None:
        self.requester = requester
        self.callbacks = [self.finish for _ in range(CALLBACKS)]

    def finish(self) -> None:
        self.callbacks.clear()


class Sessions:
    """What requests have read, for those that follow: freed, without any cycles, when 2,000 newer ones have come."""

    def __init__(self) -> None:
        self._latest: deque[list[Row]] = deque(maxlen=SESSIONS_KEPT)

    def serve(self, requester: str) -> None:
        """What one request leaves behind."""
        self._latest.append([Row(number) for number in range(ROWS)])
        Context(requester)


def tracked() -> int:
    """Objects that the garbage collector of this process tracks, frozen ones included."""
    return len(gc.get_objects()) + gc.get_freeze_count()
