"""Checks that what `.ci/elsewhere` hides is hidden, and that the package then takes its other branch."""

import os
import select
import sys

import psutil

import synthex_fast
from synthex_fast import _pressure
from synthex_fast._readings import Readings
from synthex_fast.monitor.wakeups import Waker

windows = os.environ["SYNTHEX_FAST_ELSEWHERE"] == "windows"
assert sys.platform != "linux", sys.platform
assert not os.path.exists("/proc/self/statm") and not os.path.exists("/sys/fs/cgroup")
for path in ("/proc/self/statm", "/sys/fs/cgroup"):
    try:
        os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        continue
    raise AssertionError(f"{path} can be opened")
assert not hasattr(os, "eventfd")
assert hasattr(os, "fork") != windows and hasattr(select, "poll") != windows

readings = Readings()
assert abs(readings.rss() - psutil.Process().memory_info().rss) < 32 << 20
assert readings.charge() is None and readings.container is None
assert readings._files.statm is None, "the figures come from /proc"
assert not _pressure.find_malloc_trim()
waker = Waker()
waker.subscribe(readings.container, "/")
assert waker.how == "collections", waker.how
assert (waker._event is not None) == windows
with synthex_fast.AdaptiveMemoryMonitor() as monitor:
    assert monitor.sample().rss > 0
