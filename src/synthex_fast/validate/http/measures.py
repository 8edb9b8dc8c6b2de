"""The rows of the table that are measured over HTTP.

The report gives no figures of its own for HTTP: its targets for latency, throughput and CPU are those of the whole
system, which is what is measured here.
"""

from collections.abc import Callable
from typing import Any

from synthex_fast.validate.figures import Measure, Target
from synthex_fast.validate.http import SCENARIOS

# Behind the figures, besides those of the comparison in process.
PACKAGES = ("gunicorn", "httptools", "starlette", "uvicorn", "uvicorn-worker", "uvloop")
# Seconds' worth of requests.
BACKLOG = 0.25


def _read(scenario: str, read: Callable[[dict], float | None]) -> Callable[[Any, str], list[float]]:
    def values(results: Any, arm: str) -> list[float]:
        found = [read(turn) for turn in results.http.get(scenario, {}).get(arm, ())]
        return [] if None in found else found

    return values


def _milliseconds(key: str) -> Callable[[dict], float]:
    return lambda turn: 1e3 * turn[key]


def _percentile(share: float) -> Callable[[dict], float | None]:
    """In milliseconds, of turns with enough requests for one to be slower than that."""
    key = f"latency_p{share:g}"
    enough = round(100 / (100 - share))
    return lambda turn: 1e3 * turn[key] if turn["requests"] >= enough else None


def _open(server: str, title: str) -> list[Measure]:
    scenario = f"{server}-open"

    def measure(key: str, label: str, unit: str, read: Callable[[dict], float | None], *more: Any) -> Measure:
        return Measure(f"http_{server}_{key}", f"{title}: {label}", unit, _read(scenario, read), *more)

    return [
        measure("p50", "p50 [H]", "ms", _percentile(50)),
        measure("p99", "p99 [H]", "ms", _percentile(99), "", "-25-30 %", Target("less", 25)),
        measure("p99.9", "p99.9 [H]", "ms", _percentile(99.9)),
        measure("max", "max [H]", "ms", _milliseconds("latency_max")),
        # Mostly what waking up costs, which is the same for all.
        measure(
            "open_cpu",
            "CPU per request [H]",
            "µs",
            lambda turn: 1e6 * turn["cpu_per_request"],
            "",
            "-20 %",
            Target("less", 20),
        ),
        measure(
            "pause_inside",
            "longest pause inside a request",
            "ms",
            _milliseconds("pauses_inside_longest"),
            "50-100 ms",
            "20-40 ms",
            Target("below", 40),
        ),
        # A request that arrives during a pause waits as well, but is not in the process yet.
        measure(
            "pause_longest",
            "longest pause, also between requests",
            "ms",
            _milliseconds("pauses_longest"),
            "50-100 ms",
            "20-40 ms",
            Target("below", 40),
        ),
        measure(
            "pauses_inside",
            "pauses inside requests, ms per s",
            "",
            lambda turn: 1e3 * turn["pauses_inside_sum"] / turn["seconds"],
        ),
        measure("full_inside", "full collections inside requests", "", lambda turn: turn["full_inside"]),
        measure("full", "full collections", "", lambda turn: turn["collections"][2]),
        measure("pss", "memory of all processes (PSS)", "MB", _megabytes),
    ]


def _megabytes(turn: dict) -> float | None:
    return None if turn["pss"] is None else turn["pss"] / 1e6


def _closed(server: str, title: str) -> list[Measure]:
    scenario = f"{server}-closed"
    return [
        Measure(
            f"http_{server}_throughput",
            f"{title}: requests/s",
            "",
            _read(scenario, lambda turn: turn["throughput"]),
            "1,000",
            "+30-40 %",
            Target("more", 30),
            more_is_better=True,
        ),
        Measure(
            f"http_{server}_cpu",
            f"{title}: CPU per request, full speed",
            "µs",
            _read(scenario, lambda turn: 1e6 * turn["cpu_per_request"]),
            "",
            "-20 %",
            Target("less", 20),
        ),
    ]


MEASURES = (
    *_open("uvicorn", "uvicorn"),
    *_closed("uvicorn", "uvicorn"),
    *_open("gunicorn", "gunicorn, 4 workers"),
    *_closed("gunicorn", "gunicorn, 4 workers"),
)

# What this package is to reach, beyond the report's targets.
REACH = {
    f"http_{server}_{key}": target
    for server in ("uvicorn", "gunicorn")
    for key, target in (
        ("p99", Target("less", 50)),
        ("throughput", Target("more", 40)),
        ("cpu", Target("less", 40)),
        ("open_cpu", Target("less", 40)),
        ("pause_inside", Target("below", 1)),
        # None: the figure is a number of whole collections.
        ("full_inside", Target("below", 0.5)),
    )
}


def footnotes(results: Any) -> list[str]:
    """How the rows measured over HTTP are to be read."""
    settings = results.http["settings"]
    turns = [
        turn for scenario in SCENARIOS for found in results.http.get(scenario, {}).values() for turn in found
    ]
    if not turns:
        return []
    rates = ", ".join(f"{rate:g}/s behind {server}" for server, rate in settings["rates"].items())
    late = sum(turn["generator_late"] for turn in turns)
    notes = [
        f"[H] At a fixed rate ({rates}), each request timed from when it was due, so that one that had to wait for a "
        "stalled server counts that wait; requests/s and CPU at full speed are of connections that never wait. Each "
        f"version holds {settings['heap_objects']:,} long-lived objects, and each request leaves 200 that live for "
        f"2,000 requests and 100 in cycles. {late} of {len(turns)} turns had a load generator more than 2 ms late for "
        "one request in a hundred."
    ]
    outside: dict[str, int] = {}
    for scenario in SCENARIOS:
        for arm, found in results.http.get(scenario, {}).items():
            outside[arm] = outside.get(arm, 0) + sum(turn["outside"]["collections"][2] for turn in found)
    if any(outside.values()):
        which = ", ".join(f"{arm} {count}" for arm, count in outside.items())
        notes.append(
            "Full collections whose pauses count nowhere, because they fell before or after the counted part of a "
            f"turn: {which}."
        )
    saturated: dict[str, int] = {}
    for scenario in SCENARIOS:
        for arm, found in results.http.get(scenario, {}).items():
            saturated[f"{arm} ({scenario})"] = sum(turn["backlog"] > BACKLOG * turn["rate"] for turn in found)
    if any(saturated.values()):
        which = ", ".join(f"{count} of {name}" for name, count in saturated.items() if count)
        notes.append(
            f"Turns that ended with more requests waiting than are due in {BACKLOG} s, as when a server is saturated "
            f"or stalls at the end: {which}."
        )
    return notes
