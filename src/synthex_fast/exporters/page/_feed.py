"""Snapshots for whoever looks, and the last minutes for whoever looks next.

A viewer asks for the current frame; one snapshot serves all that ask within an interval. Nobody asks, nothing runs:
there is no thread. What a new viewer sees of the time before are the frames that others asked for, and from further
back the monitor's own history.

No lock: two viewers at the same moment may each take a snapshot, and what is kept is replaced, never changed.
"""

from __future__ import annotations

import bisect
import os
import time

from synthex_fast import _readings
from synthex_fast.errors import type_error
from synthex_fast.exporters._observed import Observed, observed
from synthex_fast.exporters.page import _figures

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["KEPT_SECONDS", "Feed"]

# What a new viewer gets to see: rows of frames, and rows of the monitor's history before them.
_FRAMES_KEPT = 600
KEPT_SECONDS = 900.0
# Where there is a frame, the monitor has nothing to add.
_NEAR_SECONDS = 5.0


class Feed:
    """The frames of one `Observed`: at most one snapshot for each ``interval`` seconds."""

    def __init__(self, shown: Observed | None, interval: float) -> None:
        if shown is not None and not isinstance(shown, Observed):
            raise type_error("observed", shown, "an Observed, or None for the process's own")
        self._observed = observed() if shown is None else shown
        self.interval = interval
        self._readings: Any = None
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self.identity = f"{self._pid}-{time.time_ns() // 1_000_000:x}"
        self._rows: tuple[list[Any], ...] = ()
        self._current: tuple[float, dict[str, Any], str] | None = None

    def _renew_after_fork(self) -> None:
        if self._pid != os.getpid():
            # What was kept is the parent's.
            self._readings = None
            self._reset()

    def frame(self) -> dict[str, Any]:
        """The current frame. Costs a snapshot, unless somebody has asked for one within the interval."""
        return self._latest()[1]

    def frame_json(self) -> str:
        return self._latest()[2]

    def frame_json_of(self, identity: str) -> str:
        """The current frame, if the process is the one that is asked for, else only which one this is."""
        self._renew_after_fork()
        if identity in ("", self.identity):
            return self.frame_json()
        return _figures.as_json({"id": self.identity, "pid": self._pid})

    def _latest(self) -> tuple[float, dict[str, Any], str]:
        self._renew_after_fork()
        now = time.monotonic()
        current = self._current
        # A stream that wakes up a little early must not get the frame it has sent already.
        if current is not None and now - current[0] < 0.8 * self.interval:
            return current
        snapshot = self._observed.snapshot()
        if snapshot["memory"] is None:
            snapshot["memory"] = self._resident()
        shown = _figures.frame(snapshot, self.identity)
        shown["interval"] = self.interval
        current = now, shown, _figures.as_json(shown)
        self._current = current
        self._rows = (*self._rows[1 - _FRAMES_KEPT :], _figures.point(shown))
        return current

    def _resident(self) -> dict[str, Any] | None:
        """Without a governor and a tuner, memory without a limit."""
        try:
            if self._readings is None:
                self._readings = _readings.Readings()
            rss, charge = int(self._readings.rss()), self._readings.charge()
        except OSError:
            return None
        return {"rss": rss, "charge": charge, "limit": None, "share": None, "level": None}

    def history_json(self, since: float = 0.0) -> str:
        """The rows (see `_figures.point`) after ``since`` in Unix time, oldest first, and whose they are."""
        self._latest()
        earliest = max(since, time.time() - KEPT_SECONDS)
        rows = [row for row in self._rows if row[0] > earliest]
        return _figures.as_json({"id": self.identity, "rows": sorted(rows + self._older(earliest, rows))})

    def _older(self, earliest: float, rows: list[list[Any]]) -> list[list[Any]]:
        """What the monitor remembers from when nobody looked: resident memory only."""
        monitor = self._observed.get("monitor")
        history = getattr(monitor, "history", None)
        if not callable(history):
            return []
        try:
            known = history()
            known = known[known["time"] > earliest]
            pairs = zip(known["time"].tolist(), known["rss"]["max"].tolist(), strict=True)
            found = [[round(at, 2), int(rss), None, None, None] for at, rss in pairs]
        except Exception:
            # It may be a monitor of the user's own, with a history of another kind.
            return []
        looked = [row[0] for row in rows]
        return [row for row in found if not _is_near(row[0], looked)]

    def since(self, event_id: str | None) -> float:
        """The time up to which a viewer that comes back has everything, from the id of the last event it got."""
        identity, _, at = (event_id or "").partition(":")
        try:
            return float(at) if identity == self.identity else 0.0
        except ValueError:
            return 0.0

    def event(self) -> bytes:
        """The current frame as a server-sent event."""
        _, shown, text = self._latest()
        return f"id: {shown['id']}:{shown['time']:.2f}\ndata: {text}\n\n".encode()

    def first_events(self, event_id: str | None) -> bytes:
        """What a stream begins with: how long to wait before coming back, the last minutes, and the current frame."""
        history = self.history_json(self.since(event_id))
        return b"retry: 500\nevent: history\ndata: " + history.encode() + b"\n\n" + self.event()


def _is_near(at: float, times: list[float]) -> bool:
    """Whether one of the times, which are in order, is less than 5 seconds away."""
    place = bisect.bisect(times, at - _NEAR_SECONDS)
    return place < len(times) and times[place] < at + _NEAR_SECONDS
