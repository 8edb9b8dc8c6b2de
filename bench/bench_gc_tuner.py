"""GCTuner against ``gc.set_threshold(700, 10, 10)``: latency of requests, pauses inside them, time and memory.

    python bench/bench_gc_tuner.py [--quick] [--only load|callback|request|limit|fork] [--seconds N] [--json FILE]

*Load*: an open loop of 200 requests a second, evenly spaced, each with 1 ms of other work (processor time), over
2,000,000 long-lived objects; each request leaves 200 containers that live for 5,000 requests and 20 that form
cycles. It ends when the plain collector has made five full collections, or after ``--seconds``: the incremental and the
free-threaded collector report none. Both arms run at the same time, each in a separate process and, if there are two
processors, each on its own. Latency counts from the scheduled arrival to the end of the work. ``--quick`` has a
twentieth of the objects and 15 seconds: rough figures.

*Callback*: what the tuner's callback adds to a collection, compared with one that does nothing.

*Request*: what ``with tuner.request()`` costs, without the young collections between requests.

*Limit*: cycles that outlive young collections, in a control group of 300 MB (Linux, version 1, root), with
``gc.disable()`` and with the tuner.

*Fork*: private memory (``Private_Dirty``) of each of 4 workers forked from a process with 500,000 objects, after 400
requests of 1,000 containers each, 150,000 of which are alive at a time (Linux). Workers don't touch the parent's
objects. *Plain* has no tuner, *frozen* calls ``gc.freeze()`` before the fork; the tuner is started before the fork, or
by each worker after it.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from pathlib import Path
from time import perf_counter_ns, thread_time_ns

from synthex_fast import GCTuner

RATE = 200
WORK_NS = 1_000_000
LONG_LIVED = 2_000_000
CONTAINERS, LIFETIME, CYCLIC = 200, 5_000, 20
FULL_COLLECTIONS = 5
SECONDS, SECONDS_QUICK = 150, 15
MEGABYTE = 1 << 20
WORKERS, PRELOADED = 4, 500_000
FORK_ARMS = ("plain", "frozen", "before", "after")


class Watch:
    """Pauses as the bench sees them, the same in both arms: (generation, wall ns, processor ns, inside a request)."""

    def __init__(self):
        self.pauses = []
        self.inside = False
        self.began = (0, 0)

    def __call__(self, phase, info):
        if phase == "start":
            self.began = (perf_counter_ns(), thread_time_ns())
            return
        processor, wall = thread_time_ns() - self.began[1], perf_counter_ns() - self.began[0]
        self.pauses.append((info["generation"], wall, processor, self.inside))


def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


class Load:
    """The requests of one arm."""

    def __init__(self, scale):
        self.kept = deque(maxlen=LIFETIME // scale)
        self.long_lived = [[n] for n in range(LONG_LIVED // scale)]

    def request(self):
        ends = thread_time_ns() + WORK_NS
        self.kept.append([[n] for n in range(CONTAINERS)])
        for _ in range(CYCLIC // 2):
            one, other = [], []
            one.append(other)
            other.append(one)
        while thread_time_ns() < ends:
            pass


def run_arm(arm, scale, stop_file, processor, limit, seconds):
    """One arm, in its own process; prints a JSON object."""
    if processor >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {processor})
    load = Load(scale)
    watch = Watch()
    tuner = None
    if arm == "tuner":
        tuner = GCTuner(memory_limit=limit)
        tuner.start()
    else:
        gc.set_threshold(700, 10, 10)
        gc.collect()
    gc.callbacks.append(watch)
    latencies, sizes = [], [rss()]
    period = 1_000_000_000 // RATE
    began = perf_counter_ns()
    number = full = 0
    while True:
        due = began + number * period
        wait = due - perf_counter_ns()
        if wait > 0:
            time.sleep(wait / 1e9)
        watch.inside = True
        if tuner is None:
            load.request()
            latencies.append(perf_counter_ns() - due)
        else:
            with tuner.request():
                load.request()
                latencies.append(perf_counter_ns() - due)
                watch.inside = False
        watch.inside = False
        number += 1
        if number % 100 == 0:
            sizes.append(rss())
            if arm == "plain":
                full = sum(pause[0] == 2 for pause in watch.pauses)
                if full >= FULL_COLLECTIONS or perf_counter_ns() - began > seconds * 1e9:
                    break
            elif os.path.exists(stop_file):
                break
    elapsed = perf_counter_ns() - began
    gc.callbacks.remove(watch)
    inside = [pause for pause in watch.pauses if pause[3]]
    latencies.sort()

    def quantile(share):
        return latencies[min(int(share * len(latencies)), len(latencies) - 1)] / 1e6

    result = {
        "requests": number,
        "seconds": elapsed / 1e9,
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "p99.9": quantile(0.999),
        "max": latencies[-1] / 1e6,
        "collections": [sum(pause[0] == generation for pause in watch.pauses) for generation in range(3)],
        "inside": len(inside),
        "longest_inside": max((pause[1] for pause in inside), default=0) / 1e6,
        "longest_inside_processor": max((pause[2] for pause in inside), default=0) / 1e6,
        "longest": max((pause[1] for pause in watch.pauses), default=0) / 1e6,
        "longest_processor": max((pause[2] for pause in watch.pauses), default=0) / 1e6,
        "share": sum(pause[1] for pause in watch.pauses) / elapsed,
        "rss_start": sizes[0] / MEGABYTE,
        "rss_end": sizes[-1] / MEGABYTE,
        "rss_max": max(sizes) / MEGABYTE,
        "rss_halfway": sizes[len(sizes) // 2] / MEGABYTE,
    }
    if tuner is not None:
        stats = tuner.stats
        result["tuner"] = stats
        tuner.stop()
    print(json.dumps(result))
    sys.stdout.flush()
    # Freeing two million objects would only take time.
    os._exit(0)


def measure_load(quick, swap=False, limit="1GB", seconds=None):
    """Both arms at once; their figures by name."""
    scale = 20 if quick else 1
    if seconds is None:
        seconds = SECONDS_QUICK if quick else SECONDS
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    places = processors[:2] if len(processors) > 1 else [-1, -1]
    if swap:
        places.reverse()
    with tempfile.TemporaryDirectory() as directory:
        stop_file = str(Path(directory) / "stop")
        children = {}
        for arm, processor in zip(("plain", "tuner"), places, strict=True):
            command = [
                sys.executable,
                __file__,
                "--arm",
                arm,
                "--scale",
                str(scale),
                "--stop-file",
                stop_file,
            ]
            command += ["--processor", str(processor), "--limit", limit, "--seconds", str(seconds)]
            children[arm] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        results = {}
        plain, _ = children["plain"].communicate()
        Path(stop_file).touch()
        results["plain"] = json.loads(plain)
        results["tuner"] = json.loads(children["tuner"].communicate()[0])
    return results


def measure_callback():
    """Nanoseconds a collection (start and stop) beyond a callback that does nothing; and with that one alone."""

    def nothing(phase, info):
        pass

    gc.disable()
    gc.collect()
    gc.freeze()
    tuner = GCTuner(freeze=False)
    tuner.start()
    ours = next(callback for callback in gc.callbacks if callback.__module__.startswith("synthex_fast."))
    # Without the interpreter lock every collection is a full one.
    calls, rounds = (50 if sysconfig.get_config_var("Py_GIL_DISABLED") else 10_000), 41

    def measure(callback):
        gc.callbacks[:] = [callback]
        collect = gc.collect
        began = thread_time_ns()
        for _ in range(calls):
            collect(0)
        return (thread_time_ns() - began) / calls

    extra, alone = [], []
    for number in range(rounds):
        if number % 2:
            bare, full = measure(nothing), measure(ours)
        else:
            full, bare = measure(ours), measure(nothing)
        extra.append(full - bare)
        alone.append(bare)
    gc.callbacks[:] = []
    tuner.stop()
    gc.unfreeze()
    return extra, alone


def measure_request():
    """Nanoseconds for each `with tuner.request()` around nothing, beyond the loop."""
    calls, rounds = 20_000, 21
    gc.disable()
    tuner = GCTuner(freeze=False)
    tuner.start()
    # The boundaries of requests collect only while collection is enabled.
    gc.disable()
    request = tuner.request()
    results = []
    for _ in range(rounds):
        began = thread_time_ns()
        for _ in range(calls):
            pass
        between = thread_time_ns()
        for _ in range(calls):
            with request:
                pass
        results.append((thread_time_ns() - between - (between - began)) / calls)
    tuner.stop()
    gc.enable()
    return results


def private_dirty():
    with open("/proc/self/smaps_rollup") as rollup:
        for line in rollup:
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) << 10
    raise OSError("smaps_rollup has no Private_Dirty")


def serve_in_worker(tuner):
    kept = deque(maxlen=150)
    for _ in range(400):
        if tuner is None:
            kept.append([[n] for n in range(1_000)])
        else:
            with tuner.request():
                kept.append([[n] for n in range(1_000)])
    return private_dirty()


def run_fork_arm(arm):
    """One arm, in its own process: prints the bytes of each worker as a JSON list."""
    preloaded = [[n] for n in range(PRELOADED)]
    tuner = None
    if arm == "before":
        tuner = GCTuner()
        tuner.start()
    elif arm == "frozen":
        gc.collect()
        gc.freeze()
    # Workers stay until all have measured: a page is private once the other processes that had it are gone.
    done_read, done_write = os.pipe()
    result_read, result_write = os.pipe()
    for _ in range(WORKERS):
        if not os.fork():
            os.close(done_write)
            if arm == "after":
                tuner = GCTuner()
                tuner.start()
            os.write(result_write, b"%d\n" % serve_in_worker(tuner))
            os.read(done_read, 1)
            os._exit(0)
    os.close(result_write)
    with os.fdopen(result_read) as results:
        private = [int(results.readline()) for _ in range(WORKERS)]
    os.close(done_write)
    for _ in range(WORKERS):
        os.wait()
    print(json.dumps(private))
    sys.stdout.flush()
    os._exit(len(preloaded) != PRELOADED)


def measure_fork():
    """Bytes private to each worker, by arm; None if the kernel doesn't report it."""
    if not os.path.exists("/proc/self/smaps_rollup"):
        return None
    return {
        arm: json.loads(subprocess.check_output([sys.executable, __file__, "--fork-arm", arm]))
        for arm in FORK_ARMS
    }


def claim_callback():
    """What the callback costs a collection, against a whole empty collection with a callback that does nothing."""
    from measure import summary

    return summary(*measure_callback())


def claim_latency():
    """The 99.9th percentile of the load's latency, against the plain collector. Takes a minute and a half."""
    from measure import QUICK, Comparison

    load = measure_load(QUICK)
    ours, rival = load["tuner"]["p99.9"] * 1e6, load["plain"]["p99.9"] * 1e6
    tuner = load["tuner"]
    note = f"longest pause in a request {tuner['longest_inside']:.2f} ms, {tuner['share']:.2%} of the time"
    return Comparison(ours, rival, ours / rival, (ours / rival, ours / rival), note)


LIMITED = """
import collections, gc, sys
from synthex_fast import GCTuner

class Node:
    pass

def load(count, held):
    for n in range(count):
        node = Node()
        node.itself = node
        node.payload = bytes(2000)
        held.append(node)

held = collections.deque(maxlen=10_000)
if sys.argv[1] == "disabled":
    gc.disable()
    load(1_000_000, held)
else:
    with GCTuner() as tuner:
        with tuner.request():
            load(500_000, held)
        for n in range(500):
            with tuner.request():
                load(1_000, held)
        stats = tuner.stats
    print(stats["memory_limit"] >> 20, stats["forced"], stats["causes"]["debt"], stats["limited"])
"""


def measure_limit(megabytes=300):
    """How each arm ends in a control group of that many megabytes; None if control groups are not available."""
    parent = Path("/sys/fs/cgroup/memory")
    if not (parent / "memory.limit_in_bytes").exists() or os.geteuid() != 0:
        return None
    group = parent / f"synthex-fast-bench-{os.getpid()}"
    group.mkdir()
    results = {}
    try:
        (group / "memory.limit_in_bytes").write_text(str(megabytes * MEGABYTE))
        for arm in ("disabled", "tuner"):
            (group / "memory.max_usage_in_bytes").write_text("0")

            def enter():
                (group / "cgroup.procs").write_text(str(os.getpid()))

            done = subprocess.run(
                [sys.executable, "-c", LIMITED, arm],
                preexec_fn=enter,
                capture_output=True,
                text=True,
                check=False,
            )
            peak = int((group / "memory.max_usage_in_bytes").read_text()) / MEGABYTE
            results[arm] = {
                "returncode": done.returncode,
                "peak": peak,
                "output": done.stdout.split(),
                "stderr": done.stderr[-300:],
            }
    finally:
        group.rmdir()
    return results


def print_load(results):
    plain, tuner = results["plain"], results["tuner"]
    print(f"load: {tuner['requests']:,} requests in {tuner['seconds']:.0f} s; plain {plain['requests']:,}")
    print(f"{'':34}{'plain':>12}{'tuner':>12}{'times better':>14}")
    for name in ("p50", "p99", "p99.9", "max"):
        ratio = plain[name] / tuner[name]
        target = "   target: at least 10" if name == "p99.9" else ""
        print(f"{'latency ' + name + ', ms':34}{plain[name]:12.2f}{tuner[name]:12.2f}{ratio:14.1f}{target}")
    rows = [
        ("longest pause in a request, ms", "longest_inside", 1, "   target: at most 1 unless forced"),
        ("  of that processor time, ms", "longest_inside_processor", 1, ""),
        ("longest pause overall, ms", "longest", 1, ""),
        ("  of that processor time, ms", "longest_processor", 1, ""),
        ("share of time collecting, %", "share", 100, "   target: at most 1"),
        ("RSS at the start, MB", "rss_start", 1, ""),
        ("RSS halfway, MB", "rss_halfway", 1, ""),
        ("RSS at the end, MB", "rss_end", 1, ""),
        ("RSS at most, MB", "rss_max", 1, ""),
    ]
    for title, key, factor, target in rows:
        print(f"{title:34}{plain[key] * factor:12.2f}{tuner[key] * factor:12.2f}{'':14}{target}")
    for title, key in (("collections by generation", "collections"), ("collections in requests", "inside")):
        print(f"{title:34}{plain[key]!s:>12}{tuner[key]!s:>12}")
    stats = tuner["tuner"]
    limit = stats["memory_limit"] / MEGABYTE
    print(f"limit {limit:.0f} MB; forced {stats['forced']}; by cause {stats['causes']}")
    for decision in stats["decisions"]:
        print("  decision", decision)


def print_callback(quartiles):
    low, middle, high = quartiles
    print(f"callback: {middle:.0f} ns a collection ({low:.0f} - {high:.0f})   target: at most 1000")


def print_limit(results):
    if results is None:
        print("limit: needs root and control groups of version 1")
        return
    for arm, result in results.items():
        end = "survived" if result["returncode"] == 0 else f"ended with {result['returncode']}"
        print(f"limit: {arm:10}{end}, at most {result['peak']:.0f} MB {result['output']} {result['stderr']}")
    print("   target: killed (-9) with gc.disable(), alive with the tuner")


def print_request(quartiles):
    low, middle, high = quartiles
    print(f"request: {middle:.0f} ns ({low:.0f} - {high:.0f})")


def print_fork(results):
    if results is None:
        print("fork: needs /proc/self/smaps_rollup")
        return
    titles = {
        "plain": "no tuner",
        "frozen": "no tuner, gc.freeze() before the fork",
        "before": "tuner started before the fork",
        "after": "tuner started after the fork",
    }
    print(f"fork: private memory of {WORKERS} workers over {PRELOADED:,} preloaded objects, MB each")
    for arm, private in results.items():
        print(f"  {titles[arm]:40}" + "".join(f"{nbytes / MEGABYTE:8.1f}" for nbytes in private))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("load", "callback", "request", "limit", "fork"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--swap", action="store_true", help="the arms change processors")
    parser.add_argument("--limit", default="1GB", help="the tuner's memory limit")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"the load at most (by default {SECONDS}, or {SECONDS_QUICK} with --quick)",
    )
    parser.add_argument("--arm", choices=("plain", "tuner"), help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--stop-file", default="", help=argparse.SUPPRESS)
    parser.add_argument("--processor", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--fork-arm", choices=FORK_ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fork_arm:
        run_fork_arm(arguments.fork_arm)
    if arguments.arm:
        run_arm(
            arguments.arm,
            arguments.scale,
            arguments.stop_file,
            arguments.processor,
            arguments.limit,
            arguments.seconds,
        )
    results = {}
    if arguments.only in (None, "callback"):
        results["callback"] = statistics.quantiles(measure_callback()[0], n=4)
        print_callback(results["callback"])
    if arguments.only in (None, "request"):
        results["request"] = statistics.quantiles(measure_request(), n=4)
        print_request(results["request"])
    if arguments.only in (None, "fork"):
        results["fork"] = measure_fork()
        print_fork(results["fork"])
    if arguments.only in (None, "limit"):
        results["limit"] = measure_limit()
        print_limit(results["limit"])
    if arguments.only in (None, "load"):
        results["load"] = measure_load(arguments.quick, arguments.swap, arguments.limit, arguments.seconds)
        print_load(results["load"])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
