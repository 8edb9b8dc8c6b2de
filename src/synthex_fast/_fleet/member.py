"""One process's membership in the fleet of its container, from the first exchange to `Member.leave`."""

from __future__ import annotations

import math
import os
import time
import weakref
from typing import TYPE_CHECKING

from synthex_fast import _lifecycle
from synthex_fast._fleet import turns
from synthex_fast._fleet.file import VERSION, AloneError, FleetFile, find_directory

if TYPE_CHECKING:
    from typing import Any

    from synthex_fast._fleet._watch import Watch
    from synthex_fast._fleet.split import Posting

__all__ = ["Member"]

# How long a worker stays alone before it tries again to join.
RETRY_SECONDS = 5.0


def _key_of(readings: Any) -> str:
    """The name of this process's container, the same for all in it: its control group's directory, by inode."""
    group = getattr(readings, "container", None)
    if not isinstance(group, tuple):
        raise AloneError("no container is known")
    try:
        status = os.stat(group[1])
    except OSError as error:
        raise AloneError(f"the control group can't be read: {error.strerror}") from error
    return f"{status.st_dev:x}-{status.st_ino:x}"


class Member:
    """Joins with the first exchange that succeeds, and tries again later if one fails.

    ``key`` names the fleet; True stands for the container's. One thread at a time exchanges; any may ask for
    `siblings`. A forked child joins as a worker of its own.
    """

    def __init__(self, key: bool | str, readings: Any) -> None:
        self._key = key
        self._readings = readings
        self._file: FleetFile | None = None
        self._retry_at = -math.inf
        self._started = 0.0
        # Why it is alone, if it is.
        self.reason = "not running" if key else "fleet=False"
        _members.add(self)

    @property
    def wanted(self) -> bool:
        """Whether it joins if it can."""
        return bool(self._key)

    @property
    def joined(self) -> bool:
        return self._file is not None

    @property
    def started(self) -> float:
        """Unix time at which it joined."""
        return self._started

    def exchange(self, posting: Posting, now: float) -> dict[int, Posting] | None:
        """Post, and return what the living siblings have posted, by slot; None if alone. Joins if it has not yet."""
        if not self.wanted:
            return None
        try:
            file = self._file
            if file is None:
                if now < self._retry_at:
                    return None
                file = self._join()
            file.post(posting._replace(started=self._started))
            return file.look()
        except AloneError as error:
            self._leave(str(error))
        except OSError as error:
            self._leave(f"nothing can be posted: {error.strerror}")
        self._retry_at = now + RETRY_SECONDS
        return None

    def look(self) -> dict[int, Posting] | None:
        """What the living siblings have posted, by slot; None if alone, or if it can't be read just now.

        The same object as last time unless something has changed. It takes about 5 microseconds and 1 for each sibling.
        """
        file = self._file
        try:
            return None if file is None else file.look()
        except (AloneError, OSError):
            # The next exchange finds the same, and leaves.
            return None

    def watch(self, watch: Watch, siblings: dict[int, Posting], period: float) -> bool:
        """See `FleetFile.watch`; False if alone."""
        file = self._file
        return file is not None and file.watch(watch, siblings, period)

    @property
    def slot(self) -> int:
        file = self._file
        return -1 if file is None else file.slot

    def _join(self) -> FleetFile:
        key = _key_of(self._readings)
        if isinstance(self._key, str):
            key = f"{key}-{self._key}"
        path = os.path.join(find_directory(), f"{VERSION}-{key}")
        for other in list(_members):
            file = other._file
            if file is not None and file.path == path:
                # Locks belong to the process, so it can't have two slots.
                raise AloneError("another governor of this process has joined")
        file = FleetFile(path)
        self._started = time.time()
        self._file = file
        self.reason = ""
        turns.current = file
        return file

    def _leave(self, reason: str) -> None:
        file, self._file = self._file, None
        self.reason = reason
        if file is not None:
            if turns.current is file:
                turns.current = None
            file.leave()

    def leave(self) -> None:
        """Leave for good, or until the next exchange."""
        if self.wanted:
            self._leave("not running")
        self._retry_at = -math.inf

    def forget(self) -> None:
        """In a forked child: slot and locks are the parent's."""
        if self._file is not None:
            self._file.abandon()
            self._file = None
            self.reason = "forked just now"
        self._retry_at = -math.inf


_members: weakref.WeakSet[Member] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    turns.current = None
    for member in list(_members):
        member.forget()


def _at_exit() -> None:
    for member in list(_members):
        member.leave()


_lifecycle.register(_lifecycle.Stage.FLEET, after_in_child=_after_fork_in_child, at_exit=_at_exit)
