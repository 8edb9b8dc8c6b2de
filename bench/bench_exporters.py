"""What a scrape costs with many caches, and which locks it takes.

    python bench/bench_exporters.py [--quick] [--caches N] [--workers N]

1,000 caches, a tuner, a governor with all of them and a monitor. *Snapshot* is `Observed.snapshot`, *values* what the
collector makes of it, *text* the whole answer to a scrape, by `synthex_fast.exporters.prometheus.generate_latest` and
by prometheus_client's function of that name. *Workers* is the text where two processes share a directory, each with so
many caches, one of which is this. Processor time of this thread, in interleaved rounds: the median, and the least.

*Locks*: a scrape while another thread holds the tuner's locks, which requests and collections take. It would never end
if it needed one of them. The dict takes no lock on the standard build; on the free-threaded one each is locked for as
long as its counts are read.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest as by_prometheus_client

from synthex_fast import AdaptiveMemoryMonitor, GCTuner, MemoryGovernor, TTLDict
from synthex_fast.exporters import Observed
from synthex_fast.exporters._metrics import read
from synthex_fast.exporters.prometheus import generate_latest, register

TARGET_MS = 20


def measure(calls, rounds):
    """Milliseconds of this thread's processor time for each of them by name, in interleaved rounds."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.thread_time()
            call()
            times[name].append((time.thread_time() - began) * 1e3)
    return times


def service(count):
    observed = Observed()
    governor = observed.add(MemoryGovernor())
    caches = [governor.register(TTLDict(100), name=f"cache {n}") for n in range(count)]
    for cache in caches:
        for key in range(5):
            cache[key] = key
            cache.get(key)
    tuner = observed.add(GCTuner(freeze=False))
    monitor = observed.add(AdaptiveMemoryMonitor())
    monitor.sample()
    return observed, tuner, (governor, caches, monitor)


@contextlib.contextmanager
def workers(directory, count, caches):
    """Processes that share the directory, each with so many caches."""
    running = []
    try:
        for _ in range(count):
            code = [sys.executable, __file__, "--caches", str(caches), "--work", directory]
            running.append(subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for worker in running:
            assert worker.stdout.readline() == "ready\n"
        yield
    finally:
        for worker in running:
            worker.communicate()


def work(directory, caches):
    observed, tuner, kept = service(caches)
    with tuner:
        register(CollectorRegistry(), observed, directory=directory)
        print("ready", flush=True)
        sys.stdin.read()
    del kept


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--caches", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=2, help="that share a directory, this one included")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.caches)
        return
    rounds = 5 if options.quick else 31
    observed, tuner, kept = service(options.caches)
    registry, shared = CollectorRegistry(), CollectorRegistry()
    with tuner, tempfile.TemporaryDirectory() as directory:
        register(registry, observed)
        collector = register(shared, observed, directory=directory)
        of_workers = f"text, {options.workers} workers"
        figures = {
            "snapshot": lambda: observed.snapshot(),
            "snapshot and values": lambda: read(observed.snapshot()),
            "text": lambda: generate_latest(registry),
            "text by prometheus_client": lambda: by_prometheus_client(registry),
            of_workers: lambda: generate_latest(shared),
        }
        with workers(directory, options.workers - 1, options.caches):
            lines = generate_latest(registry).count(b"\n"), generate_latest(shared).count(b"\n")
            print(f"{options.caches:,} caches, {lines[0]:,} lines, {lines[1]:,} for all workers, in ms:")
            for name, times in measure(figures, rounds).items():
                target = f"   target: at most {TARGET_MS}" if name in ("text", of_workers) else ""
                print(f"{name:28}{statistics.median(times):8.1f}{min(times):8.1f}{target}")
        collector.unregister()
        done = []
        with tuner._lock, tuner._work:
            thread = threading.Thread(target=lambda: done.append(generate_latest(registry)), daemon=True)
            thread.start()
            thread.join(30)
        print(f"a scrape with the tuner's locks held by another thread: {'ends' if done else 'never ends'}")
    del kept


if __name__ == "__main__":
    main()
