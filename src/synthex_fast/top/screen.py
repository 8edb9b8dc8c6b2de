"""One frame, drawn for a terminal of a given width."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from typing import Any

    from rich.console import RenderableType

    Frame = dict[str, Any]

__all__ = ["Screen", "nbytes", "seconds"]

NONE = "-"
_STYLES = {
    "normal": "green",
    "warning": "yellow",
    "high": "dark_orange",
    "critical": "red",
    "emergency": "bold magenta",
}
_SPARKS = " ▁▂▃▄▅▆▇█"
_ROWS = 12


def _digits(number: float) -> str:
    size = abs(number)
    return f"{number:.{0 if size >= 99.95 or not size else 1 if size >= 9.995 else 2}f}"


def nbytes(number: float | None) -> str:
    """A size in the package's units.

    >>> nbytes(1536), nbytes(536_870_912), nbytes(None)
    ('1.50 KB', '512 MB', '-')
    """
    if number is None:
        return NONE
    if abs(number) < 1024:
        return f"{number:.0f} B"
    units = ["KB", "MB", "GB", "TB"]
    number /= 1024
    while abs(number) >= 999.5 and len(units) > 1:
        number /= 1024
        del units[0]
    return f"{_digits(number)} {units[0]}"


def seconds(number: float | None) -> str:
    """A time, in the unit that suits it.

    >>> seconds(0.00123), seconds(3), seconds(0)
    ('1.23 ms', '3.00 s', '0 ms')
    """
    if number is None:
        return NONE
    if number == 0:
        return "0 ms"
    if number < 0.000095:
        return f"{_digits(number * 1e6)} us"
    if number < 0.995:
        return f"{_digits(number * 1e3)} ms"
    return f"{_digits(number)} s" if number < 600 else f"{number / 60:.0f} min"


def _percent(share: float | None, places: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{places}f} %"


def _count(number: float | None) -> str:
    return NONE if number is None else f"{number:,.0f}"


class Screen:
    """Draws frames one after another: what changes between two of them gives the rates."""

    def __init__(self, ascii_only: bool = False) -> None:
        self._ascii = ascii_only
        self._before: Frame | None = None
        self._frame: Frame | None = None
        self._memory: deque[float] = deque(maxlen=400)

    def take(self, frame: Frame) -> None:
        """The frame to draw from now on."""
        if self._frame is not None and frame["id"] != self._frame["id"]:
            self._frame = self._before = None
            self._memory.clear()
        if self._frame is None or frame["time"] > self._frame["time"]:
            self._before, self._frame = self._frame, frame
            memory = frame["memory"]
            if memory and memory["used"] is not None:
                self._memory.append(memory["used"])

    def draw(self, width: int, note: str = "") -> RenderableType:
        """The frame. ``note`` is shown beside the title."""
        frame = self._frame
        if frame is None:
            return Text(note or "waiting for the first figures")
        parts: list[RenderableType] = [self._title(frame, note), self._memory_lines(frame, width)]
        parts += self._collector(frame, width)
        parts += self._components(frame, width)
        parts += self._decisions(frame, width)
        parts += self._siblings(frame)
        leak = (frame["monitor"] or {}).get("leak")
        if leak:
            style = "bold red" if leak["found"] else "dim"
            parts.append(Text.assemble(("\nleak  ", "bold"), (leak["text"] or "", style)))
        if frame["errors"]:
            listed = ", ".join(f"{name} ({error})" for name, error in frame["errors"].items())
            parts.append(Text.assemble(("\nnot readable  ", "bold"), (listed, "red")))
        return Group(*parts)

    def _title(self, frame: Frame, note: str) -> Text:
        at = time.strftime("%H:%M:%S", time.localtime(frame["time"]))
        return Text.assemble(
            ("synthex-fast", "bold"),
            (f"  pid {frame['pid']}  Python {frame['python']}  {at}", "dim"),
            (f"  {note}" if note else "", "yellow"),
        )

    def _memory_lines(self, frame: Frame, width: int) -> Text:
        memory = frame["memory"]
        if memory is None:
            return Text("\nmemory  not known", style="dim")
        limit, share, level = memory["limit"], memory["share"], memory["level"]
        text = Text.assemble("\n", ("memory  ", "bold"), nbytes(memory["rss"]))
        if limit is not None:
            text.append(f" of {nbytes(limit)}, {_percent(share)}")
        if level:
            text.append(f"  {level}", style=_STYLES.get(level, ""))
        text.append(f"   in components {nbytes(memory['held'])}", style="dim")
        if limit and share is not None:
            text.append("\n").append_text(self._bar(share, frame["levels"], width, level))
        room = max(10, width)
        recent = list(self._memory)[-room:]
        if len(recent) > 1 and not self._ascii:
            low, high = min(recent), max(recent)
            spread = max(high - low, 0.01 * high, 1.0)
            line = "".join(_SPARKS[1 + min(7, int(8 * (value - low) / spread))] for value in recent)
            text.append("\n").append(line, style="blue")
        return text

    def _bar(self, share: float, levels: dict[str, float], width: int, level: str | None) -> Text:
        """A bar with the levels' marks in it."""
        cells = max(10, min(width, 100))
        full = max(0, min(cells, math.floor(share * cells + 0.5)))
        filled, empty, mark = ("#", ".", "|") if self._ascii else ("█", "░", "│")
        bar = Text()
        marks = {min(cells - 1, int(at * cells)): name for name, at in levels.items() if at}
        for n in range(cells):
            if n in marks:
                bar.append(mark, style=_STYLES[marks[n]])
            elif n < full:
                bar.append(filled, style=_STYLES.get(level or "", "blue"))
            else:
                bar.append(empty, style="dim")
        return bar

    def _collector(self, frame: Frame, width: int) -> list[RenderableType]:
        tuner = frame["tuner"]
        if tuner is None:
            return [Text("\ncollector  no tuner is shown: observe(tuner)", style="dim")]
        text = Text.assemble(
            "\n",
            ("collector  ", "bold"),
            f"{_percent(tuner['overhead'], 2)} of the time, {_count(tuner['collections'])} collections, ",
            f"{_count(tuner['requests'])} requests, {_count(tuner['in_flight'])} in flight",
        )
        used = {name: count for name, count in tuner["causes"].items() if count}
        if used:
            text.append(
                "\n" + "  ".join(f"{name} {_count(count)}" for name, count in used.items()), style="dim"
            )
        drawn = _table(
            "pauses", "times", "p50", "p99", "longest", *(["total", "freed"] if width >= 70 else [])
        )
        names = ("young", "middle", "full")
        pauses = [(names[n] if n < 3 else str(n), each) for n, each in enumerate(tuner["generations"])]
        for name, each in [*pauses, ("in requests", tuner["in_request"])]:
            row = [
                name,
                _count(each["collections"]),
                *(seconds(each[figure]) for figure in ("p50", "p99", "max")),
            ]
            if width >= 70:
                row += [seconds(each.get("seconds")), _count(each.get("freed"))]
            drawn.add_row(*row)
        return [text, drawn]

    def _components(self, frame: Frame, width: int) -> list[RenderableType]:
        parts: list[RenderableType] = []
        by_kind: dict[str, list[Frame]] = {}
        for each in frame["components"]:
            kind = "buffer" if each["kind"] == "collector" else each["kind"]
            by_kind.setdefault(kind, []).append(each)
        wide, narrow = width >= 90, width < 66
        # What the figures leave.
        room = max(10, width - (76 if wide else 34 if narrow else 54))
        caches = by_kind.get("cache", [])
        if caches:
            middle = [] if narrow else ["entries", "lookups"]
            drawn = _table(
                "caches", "bytes", "hits", "evicted", *middle, *(["limit", "expired"] if wide else [])
            )
            for each in caches[:_ROWS]:
                figures = each["stats"]
                looked = figures.get("hits", 0) + figures.get("misses", 0)
                row = [
                    nbytes(each["nbytes"]),
                    _percent(figures.get("hit_rate")) if looked else NONE,
                    _count(sum(figures.get(name, 0) for name in ("full", "memory", "over_cap"))),
                ]
                if not narrow:
                    row += [_count(figures.get("entries")), self._rate(each, "hits", "misses")]
                if wide:
                    limits = [figures[name] for name in ("memory_limit", "memory_cap") if name in figures]
                    row += [
                        nbytes(min(limits)) if limits else NONE,
                        _count(figures.get("expired", 0) + figures.get("idle", 0)),
                    ]
                drawn.add_row(_name(each, room), *row)
            parts += [drawn, *_more(caches)]
        else:
            parts.append(Text("\ncaches  none is shown yet: observe(cache)", style="dim"))
        pools = by_kind.get("pool", [])
        if pools:
            middle = [] if narrow else ["taken", "discarded"]
            drawn = _table("pools", "bytes", "idle", "reused", *middle)
            for each in pools[:_ROWS]:
                figures = each["stats"]
                row = [
                    nbytes(each["nbytes"]),
                    _count(figures.get("pool_size")),
                    _percent(figures.get("reuse_rate")),
                ]
                if not narrow:
                    row += [self._rate(each, "created", "reused"), _count(figures.get("discarded"))]
                drawn.add_row(_name(each, room), *row)
            parts += [drawn, *_more(pools)]
        buffers = by_kind.get("buffer", [])
        if buffers:
            drawn = _table("buffers", "bytes", "added", "flushed", "rejected")
            for each in buffers[:_ROWS]:
                row = [_count(each["stats"].get(name)) for name in ("added", "flushed", "rejected")]
                drawn.add_row(_name(each, room), nbytes(each["nbytes"]), *row)
            parts += [drawn, *_more(buffers)]
        others = by_kind.get("other", [])
        if others:
            drawn = _table("others", "bytes")
            for each in others[:_ROWS]:
                drawn.add_row(_name(each, room), nbytes(each["nbytes"]))
            parts += [drawn, *_more(others)]
        return parts

    def _rate(self, each: Frame, *names: str) -> str:
        before = self._before
        if before is None or self._frame is None:
            return NONE
        earlier = next((other for other in before["components"] if other["name"] == each["name"]), None)
        took = self._frame["time"] - before["time"]
        if earlier is None or took <= 0:
            return NONE
        grown = sum(each["stats"].get(name, 0) - earlier["stats"].get(name, 0) for name in names)
        return f"{_count(grown / took)}/s" if grown >= 0 else NONE

    def _decisions(self, frame: Frame, width: int) -> list[RenderableType]:
        governor = frame["governor"]
        if governor is None:
            return [Text("\ngovernor  none is shown: observe(governor)", style="dim")]
        if governor["note"]:
            return [Text.assemble(("\ngovernor  ", "bold"), (governor["note"], "yellow"))]
        actions = sorted(governor["actions"].items(), key=lambda item: item[1]["seconds_ago"] or 0)
        if not actions:
            return [Text("\ngovernor  nothing has been decided yet", style="dim")]
        drawn = _table("decisions", "times", "freed", "ago")
        if width >= 70:
            drawn.add_column("why", overflow="fold")
        for name, action in actions[:_ROWS]:
            freed = _count(action["freed"]) if name == "expire" else nbytes(action["freed"])
            row = [
                Text(name.replace("_", " ")),
                _count(action["count"]),
                freed,
                seconds(action["seconds_ago"]),
            ]
            drawn.add_row(*row, *([Text(action["why"] or "")] if width >= 70 else []))
        return [drawn]

    def _siblings(self, frame: Frame) -> list[RenderableType]:
        fleet = frame["fleet"]
        if not fleet:
            return []
        said = [str(fleet[name]) for name in ("state", "reason", "note") if fleet.get(name)]
        if "workers" in fleet:
            said.append(f"{_count(fleet['workers'])} workers")
        parts: list[RenderableType] = [Text.assemble(("\nsiblings  ", "bold"), ", ".join(said))]
        if fleet["siblings"]:
            drawn = _table("process", "caches", "share")
            for each in fleet["siblings"][:_ROWS]:
                share = each.get("share")
                shown = nbytes(share) if share is not None and share > 1 else _percent(share, 0)
                drawn.add_row(f"pid {each.get('pid', NONE)}", nbytes(each.get("nbytes")), shown)
            parts.append(drawn)
        return parts


def _table(first: str, *columns: str) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), title_justify="left")
    drawn.add_column(f"\n{first}", no_wrap=True, style="bold")
    for name in columns:
        drawn.add_column(f"\n{name}", justify="right", no_wrap=True, header_style="dim")
    return drawn


def _more(items: list[Frame]) -> list[RenderableType]:
    return [Text(f"and {len(items) - _ROWS} more", style="dim")] if len(items) > _ROWS else []


def _name(each: Frame, room: int) -> Text:
    """A component's name, without rich's markup, shortened to what the width allows."""
    name = each["name"]
    return Text(name if len(name) <= room else name[: room - 2] + "..")
