"""AdaptiveMemoryMonitor against the reported monitor (a thread that calls psutil every second), with stable memory.

    python bench/bench_monitor.py [--quick]

"Reported" is the monitor of the service whose analysis (the report) this package answers. Both monitors run in their
own threads, in turns, and are woken at the same short interval, so that caches are equally cold. The process's CPU time
per wake-up, waking included, is multiplied by the wake-ups of a day: 86,400 for the reported monitor, and 1,440 for
this one, whose interval is 60 seconds while memory is stable. Each of its wake-ups takes the slow readings too, as it
does at that interval.

Bytes of a day are counted in the same way for both. *Allocated* is everything the interpreter's allocators return
during a sample, including blocks freed again. *Kept* is the growth of the history over the samples (tracemalloc). The
reported monitor drops samples after an hour; what counts as kept is what it writes, as in the report's 26.3 MB a day.
"""

import argparse
import statistics
import sys
import threading
import time
import tracemalloc

from synthex_fast import AdaptiveMemoryMonitor
from synthex_fast._readings import Readings
from synthex_fast.monitor.thread import CollectionTimer
from synthex_fast.validate import _allocations
from synthex_fast.validate.arms.current import MemoryMonitor

SECONDS_A_DAY = 86_400
TARGET_FAST_US, TARGET_SLOW_US = 5, 25
TARGET_CPU, TARGET_BYTES = 0.95, 0.99


class Reported:
    """The reported monitor's thread."""

    wakeups_a_day = SECONDS_A_DAY

    def __init__(self, interval):
        self.monitor = MemoryMonitor(interval, history_size=10**6)
        self.wakeups = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def sample(self):
        self.monitor.sample()

    def _run(self):
        while not self._over.wait(self.monitor._interval):
            self.monitor.sample()
            self.wakeups += 1

    def start(self):
        self._thread.start()

    def stop(self):
        self._over.set()
        self._thread.join()


class Ours:
    wakeups_a_day = SECONDS_A_DAY // 60

    def __init__(self, interval):
        # On this clock each wake-up is a minute after the one before.
        self._minutes = 0
        self.monitor = AdaptiveMemoryMonitor(interval, interval, clock=self._clock)
        self.start, self.stop = self.monitor.start, self.monitor.stop

    def _clock(self):
        self._minutes += 60
        return float(self._minutes)

    @property
    def wakeups(self):
        return self.monitor.stats["wakeups"]

    def sample(self):
        # The thread computes the interval as well.
        taken = self.monitor.sample()
        self.monitor.calculate_next_interval(taken.used)


def cpu_per_wakeup(arm, interval, seconds):
    """Nanoseconds of the process's CPU time per wake-up; the measuring thread sleeps during that."""
    watched = arm(interval)
    watched.start()
    time.sleep(3 * interval)
    before, begin = watched.wakeups, time.process_time_ns()
    time.sleep(seconds)
    spent, wakeups = time.process_time_ns() - begin, watched.wakeups - before
    watched.stop()
    return spent / wakeups


def allocated_per_sample(arm, samples):
    """Bytes returned by the interpreter's allocators during a sample."""
    watched = arm(1.0)
    for _ in range(20):
        watched.sample()
    _allocations.start()
    try:
        for _ in range(samples):
            watched.sample()
    finally:
        counted = _allocations.stop()
    return counted[0] / samples


def kept_per_sample(arm, samples):
    """Bytes by which memory grows with each sample."""
    watched = arm(1.0)
    for _ in range(20):
        watched.sample()
    tracemalloc.start()
    for _ in range(500):
        watched.sample()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(samples):
        watched.sample()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return max(0.0, (after - before) / samples)


def cpu_per_call(call, calls=2_000, rounds=9):
    """Microseconds of CPU time per call, the median of several rounds."""
    found = []
    for _ in range(rounds):
        begin = time.process_time_ns()
        for _ in range(calls):
            call()
        found.append((time.process_time_ns() - begin) / calls / 1e3)
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer and shorter rounds, too few for reliable figures"
    )
    options = parser.parse_args()
    rounds, seconds, interval, samples = (2, 1.0, 0.02, 500) if options.quick else (5, 4.0, 0.05, 2_000)
    missed = 0

    def row(what, measured, target, hit):
        nonlocal missed
        missed += not hit
        print(f"  {what:<58}{measured:>16}   target {target:<20}{'hit' if hit else 'MISS'}")

    readings = Readings()
    fast = cpu_per_call(lambda: (readings.rss(), readings.charge()))
    slow_far = cpu_per_call(lambda: readings.slow(1 << 62))
    slow_near = cpu_per_call(readings.slow)
    blocks = cpu_per_call(sys.getallocatedblocks)
    print("CPU time of a sample's readings")
    row("resident size and charge", f"{fast:.2f} us", f"at most {TARGET_FAST_US} us", fast <= TARGET_FAST_US)
    row(
        "the rest, once a minute",
        f"{slow_far + blocks:.2f} us",
        f"at most {TARGET_SLOW_US} us",
        slow_far + blocks <= TARGET_SLOW_US,
    )
    row(
        "the rest, near the limit (reclaimable part too)",
        f"{slow_near + blocks:.2f} us",
        f"at most {TARGET_SLOW_US} us",
        slow_near + blocks <= TARGET_SLOW_US,
    )

    cpu = {Reported: [], Ours: []}
    for _ in range(rounds):
        for arm, found in cpu.items():
            found.append(cpu_per_wakeup(arm, interval, seconds) * arm.wakeups_a_day / 1e9)
    allocated = {arm: allocated_per_sample(arm, samples) * arm.wakeups_a_day for arm in cpu}
    kept = {arm: kept_per_sample(arm, samples) * arm.wakeups_a_day for arm in cpu}

    print(
        f"A day of stable memory, from {rounds} rounds of {seconds:g} s in turns, woken every {interval * 1e3:g} ms"
    )
    for arm, found in cpu.items():
        name = "reported" if arm is Reported else "ours"
        print(
            f"  {name:<10}{arm.wakeups_a_day:>7,} wake-ups, CPU {statistics.median(found):8.3f} s"
            f" ({min(found):.3f} - {max(found):.3f}), allocated {allocated[arm] / 1e6:10.3f} MB,"
            f" kept {kept[arm] / 1e6:8.4f} MB"
        )
    saved = 1 - statistics.median(
        ours / theirs for ours, theirs in zip(cpu[Ours], cpu[Reported], strict=True)
    )
    row("CPU saved, wake-ups included", f"{saved:.3%}", f"at least {TARGET_CPU:.0%}", saved >= TARGET_CPU)
    for name, figures in (("allocated", allocated), ("kept", kept)):
        saved = 1 - figures[Ours] / figures[Reported]
        row(f"bytes saved, {name}", f"{saved:.3%}", f"at least {TARGET_BYTES:.0%}", saved >= TARGET_BYTES)

    watching = AdaptiveMemoryMonitor()
    with watching:
        time.sleep(0.1)
        stats = watching.stats
        print(f"Woken by: {stats['wake']}. Cost: {stats['wake_cost']}.")
        print(
            f"History: {stats['nbytes']:,} bytes, regardless of the uptime (target: at most {128 << 10:,})."
        )
    row("history", f"{watching.nbytes:,} B", f"at most {128 << 10:,} B", watching.nbytes <= 128 << 10)
    callback = CollectionTimer()
    note = cpu_per_call(lambda: (callback("start", {}), callback("stop", {})))
    print(f"  A collection costs {note:.2f} us more while the monitor runs.")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
