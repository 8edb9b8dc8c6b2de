"""Watches a process's memory at almost no cost: rarely while it is stable, at once when it grows.

- `sampling`: reads memory, compares it with its limit, and decides how often to do so.
- `history`: a month of samples in rings of fixed size.
- `trend`: the slope of memory's floor, and whether it is a leak.
- `wakeups`: the kernel events that end a sleep early.
- `thread`: the background thread, and the timing of garbage collections.
- `monitor`: `AdaptiveMemoryMonitor`, which owns one of each.
"""

from __future__ import annotations

from synthex_fast._pressure import HYSTERESIS as HYSTERESIS
from synthex_fast._pressure import LEVELS
from synthex_fast._readings import Readings as Readings
from synthex_fast._readings import memory_limit as memory_limit
from synthex_fast._readings import parse_size as parse_size
from synthex_fast.monitor.history import METRICS
from synthex_fast.monitor.monitor import AdaptiveMemoryMonitor
from synthex_fast.monitor.sampling import Sample
from synthex_fast.monitor.trend import Leak, Trend, mann_kendall, theil_sen

__all__ = [
    "LEVELS",
    "METRICS",
    "AdaptiveMemoryMonitor",
    "Leak",
    "Sample",
    "Trend",
    "mann_kendall",
    "theil_sen",
]
