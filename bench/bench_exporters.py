"""What a scrape costs with many caches, and which locks it takes.

    python bench/bench_exporters.py [--quick] [--caches N]

1,000 caches, a tuner, a governor with all of them and a monitor. *Snapshot* is `Observed.snapshot`, *values* what the
collector makes of it, *text* the whole answer to a scrape, by `synthex_fast.exporters.prometheus.generate_latest` and
by prometheus_client's function of that name. *Workers* is the text where processes share a directory, one of which is
this. Processor time of this thread: the median, and the least.

*Locks*: a scrape while another thread holds the tuner's locks, which requests and collections take. It would never end
if it needed one of them. The dict takes no lock on the standard build; on the free-threaded one each is locked for as
long as its counts are read.
"""

import argparse
import statistics
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


def measure(call, rounds):
    """Milliseconds of this thread's processor time, as text: the median and the least."""
    times = []
    for _ in range(rounds):
        began = time.thread_time()
        call()
        times.append((time.thread_time() - began) * 1e3)
    return f"{statistics.median(times):8.1f}{min(times):8.1f}"


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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--caches", type=int, default=1_000)
    options = parser.parse_args()
    rounds = 5 if options.quick else 31
    observed, tuner, kept = service(options.caches)
    registry = CollectorRegistry()
    with tuner, tempfile.TemporaryDirectory() as directory:
        collector = register(registry, observed)
        figures = {
            "snapshot": lambda: observed.snapshot(),
            "snapshot and values": lambda: read(observed.snapshot()),
            "text": lambda: generate_latest(registry),
            "text by prometheus_client": lambda: by_prometheus_client(registry),
        }
        lines = generate_latest(registry).count(b"\n")
        print(f"{options.caches:,} caches, {lines:,} lines, in ms:")
        for name, call in figures.items():
            target = f"   target: at most {TARGET_MS}" if name == "text" else ""
            print(f"{name:28}{measure(call, rounds)}{target}")
        collector.unregister()
        collector = register(registry, observed, directory=directory)
        print(f"{'text, workers':28}{measure(lambda: generate_latest(registry), rounds)}")
        collector.unregister()
        register(registry, observed)
        done = []
        with tuner._lock, tuner._work:
            thread = threading.Thread(target=lambda: done.append(generate_latest(registry)), daemon=True)
            thread.start()
            thread.join(30)
        print(f"a scrape with the tuner's locks held by another thread: {'ends' if done else 'never ends'}")
    del kept


if __name__ == "__main__":
    main()
