"""What is shown of a snapshot: figures, names and the package's own texts, in the form that the page and `top` read.

Everything is picked by name, so that nothing else can get out: statistics of a user's own component may hold anything,
and of them only numbers are taken. Of an error only its type is, since its message may quote a key or a value.
"""

from __future__ import annotations

import json
import math

from synthex_fast._pressure import LEVELS, MARKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

__all__ = ["COMPONENTS_MOST", "as_json", "frame", "point"]

# The largest components are shown one by one; the others are in the totals. A frame is sent every second.
COMPONENTS_MOST = 200
# Figures of one component, and characters of a name.
_FIGURES_MOST = 40
_NAME_MOST = 120
_LARGEST = 1 << 63
_TUNER = (
    "running",
    "collector",
    "frozen",
    "requests",
    "in_flight",
    "long_requests",
    "overhead",
    "collections",
    "forced",
    "limited",
    "young_threshold",
    "container",
)
_PAUSES = ("collections", "freed", "seconds", "p50", "p99", "max")
_DECISION = ("seconds", "decision", "from", "to", "reason")
_GOVERNOR = (
    "limit",
    "requested_limit",
    "container",
    "used",
    "level",
    "nbytes",
    "rest",
    "overhead",
    "looks",
    "cpu_seconds",
    "note",
)
_ACTION = ("count", "freed", "returned", "seconds_ago", "why")
_REGISTERED = ("weight", "memory_limit", "own_limit", "memory_cap", "paused", "freed", "errors")
_MONITOR = ("running", "level", "interval", "samples", "wakeups", "events", "cpu_seconds")
# Of the fleet: numbers, and whatever of these is text.
_FLEET_TEXTS = ("state", "level", "reason", "note")


def frame(snapshot: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """One frame: what a viewer sees at one moment. ``identity`` tells processes apart, even those of one pid."""
    components = [_component(name, part) for name, part in snapshot["components"].items()]
    components.sort(key=lambda part: (-(part["nbytes"] or 0), part["name"]))
    return {
        "id": identity,
        "time": snapshot["time"],
        "pid": snapshot["pid"],
        "version": snapshot["version"],
        "python": snapshot["python"],
        "levels": dict(zip(LEVELS, MARKS, strict=True)),
        "memory": _memory(snapshot["memory"], components),
        "tuner": _tuner(snapshot["tuner"]),
        "governor": _governor(snapshot["governor"]),
        "monitor": _monitor(snapshot["monitor"]),
        "fleet": _fleet(snapshot["governor"]),
        "components": components[:COMPONENTS_MOST],
        "left_out": max(0, len(components) - COMPONENTS_MOST),
        "totals": _totals(components),
        "errors": {_text(name): message.partition(":")[0] for name, message in snapshot["errors"].items()},
    }


def point(shown: Mapping[str, Any]) -> list[Any]:
    """A frame's row in the history: time, resident, counted against the limit, components', limit (bytes)."""
    memory = shown["memory"] or {}
    return [
        round(shown["time"], 2),
        memory.get("rss"),
        memory.get("used"),
        memory.get("held"),
        memory.get("limit"),
    ]


def as_json(value: object) -> str:
    """Compact JSON in ASCII without line breaks, as an event's data has to be."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _plain(value: object) -> Any:
    """A number, a flag, None, or a text of the package's; anything else, and what JSON has no number for, is None."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _LARGEST else None
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if type(value) is str else None


def _picked(figures: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: _plain(figures.get(name)) for name in names}


def _numbers(figures: Mapping[Any, Any], most: int = _FIGURES_MOST) -> dict[str, Any]:
    """The numbers and flags among them."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(name, str) and isinstance(value, (int, float)) and len(found) < most:
            number = _plain(value)
            if number is not None:
                found[_text(name)] = number
    return found


def _text(value: object) -> str:
    text = str(value)
    return text if len(text) <= _NAME_MOST else text[: _NAME_MOST - 1] + "…"


def _component(name: str, part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": _text(name),
        "kind": part["kind"],
        "type": _text(part["type"]),
        "nbytes": _plain(part["nbytes"]) if isinstance(part["nbytes"], (int, float)) else None,
        "stats": _numbers(part["stats"]),
    }


def _memory(memory: Mapping[str, Any] | None, components: list[dict[str, Any]]) -> dict[str, Any] | None:
    if memory is None:
        return None
    shown = _picked(memory, ("rss", "charge", "limit", "share", "level"))
    share, limit = shown["share"], shown["limit"]
    # What the levels are about: the container's memory, where its limit is the nearer one.
    shown["used"] = shown["rss"] if share is None or limit is None else int(share * limit)
    shown["held"] = sum(part["nbytes"] or 0 for part in components)
    return shown


def _tuner(tuner: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if tuner is None:
        return None
    shown = _picked(tuner, _TUNER)
    shown["causes"] = _numbers(tuner["causes"])
    shown["generations"] = [_picked(generation, _PAUSES) for generation in tuner["pauses"]]
    shown["in_request"] = _picked(tuner["in_request"], ("collections", "p50", "p99", "max"))
    shown["decisions"] = [_picked(decision, _DECISION) for decision in tuner["decisions"]]
    shown["histogram"] = _histogram(tuner.get("pause_histograms"))
    return shown


def _histogram(histograms: Any) -> dict[str, Any] | None:
    """Pauses of all generations by cause: ``bounds`` in seconds, and for each cause a count more than there are bounds.

    None if the tuner keeps no histograms.
    """
    if not histograms:
        return None
    bounds = [float(bound) for bound in histograms["bounds"]]
    causes: dict[str, list[int]] = {}
    for each in histograms["pauses"]:
        counts = causes.setdefault(_text(each["cause"]), [0] * (len(bounds) + 1))
        for n, count in enumerate(each["counts"]):
            counts[n] += int(count)
    return {"bounds": bounds, "causes": causes}


def _governor(governor: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if governor is None:
        return None
    shown = _picked(governor, _GOVERNOR)
    shown["actions"] = {_text(name): _picked(action, _ACTION) for name, action in governor["actions"].items()}
    shown["components"] = {
        _text(name): _picked(part, _REGISTERED)
        for name, part in list(governor["components"].items())[:COMPONENTS_MOST]
    }
    return shown


def _monitor(monitor: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if monitor is None:
        return None
    shown = _picked(monitor, _MONITOR)
    leak = monitor.get("leak")
    shown["leak"] = None if leak is None else _picked(leak, ("found", "text"))
    return shown


def _fleet(governor: Mapping[str, Any] | None) -> dict[str, Any] | None:
    fleet = None if governor is None else governor.get("fleet")
    if not isinstance(fleet, dict):
        return None
    siblings = fleet.get("siblings")
    return {
        **_numbers(fleet),
        **{name: _plain(fleet[name]) for name in _FLEET_TEXTS if isinstance(fleet.get(name), str)},
        "siblings": [
            {**_numbers(each), **{name: each[name] for name in _FLEET_TEXTS if type(each.get(name)) is str}}
            for each in (siblings if isinstance(siblings, (list, tuple)) else ())
            if isinstance(each, dict)
        ][:COMPONENTS_MOST],
    }


def _totals(components: list[dict[str, Any]]) -> dict[str, Any]:
    """By kind: how many there are, their bytes, and the sums of what adds up."""
    totals: dict[str, Any] = {}
    for part in components:
        total = totals.setdefault(part["kind"], {"count": 0, "nbytes": 0})
        total["count"] += 1
        total["nbytes"] += part["nbytes"] or 0
        for name in ("hits", "misses", "created", "reused"):
            if name in part["stats"]:
                total[name] = total.get(name, 0) + part["stats"][name]
    return totals
