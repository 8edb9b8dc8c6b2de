"""MemoryGovernor in containers that are too small: one service without and with it, or several workers with one each.

``python bench/bench_governor.py [--quick]`` serves the workload of the memory report (see ``synthex-fast validate
--help``) in a container of 256 MB without swap, with caches of 512 MB each. The service handles one request after the
other as fast as it can, each unpickled, as if from a network. Resident memory is sampled from outside every few
milliseconds; the container's own high-water mark misses nothing.

``python bench/bench_governor.py --workers 4 [--quick]`` runs that many processes in one container of 512 MB, each with
a cache and a governor of its own. All use their caches alike, but the first starts well before the others. A table
shows what each cache holds and its hit ratio over time.

``python bench/bench_governor.py --page-cache [--quick]`` runs a service that keeps a cache and repeatedly reads
files of twice its container's size. Page cache is not memory in use: the cache must stay (at most 5 % evicted) and the
service must not be killed.

All need root and a memory controller of control groups (version 1 or 2) in which groups can be created. Elsewhere they
print why and measure nothing.
"""

import argparse
import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

MB = 1 << 20
LIMIT = 256 * MB
CACHES = 1024 * MB
SECONDS = 60.0
TARGET_SHARE = 0.95
SAMPLE_SECONDS = 0.005
# Throughput "before pressure" is that of the first seconds in which memory is below this share of the limit.
CALM_SHARE = 0.65

# The workers: each wants to keep more than its share of the container, and reads some keys far more often than others.
WORKERS_LIMIT = 512 * MB
WORKERS_SECONDS = 50.0
WORKER_KEYS = 100_000
WORKER_VALUE = 8 << 10
WORKER_SKEW = 2.0
# Requests in a row and the pause after them, so that several workers share two processors.
WORKER_BATCH = 300
WORKER_PAUSE = 0.01
# The second worker starts after this share of the time, when the first has filled the container; the rest soon after.
SECOND_START, NEXT_START = 0.25, 0.05
WORKERS_ROWS = 20


# The reader: a cache that fits, and files that don't, of which one that fits is read several times in a row.
READER_LIMIT = 240 * MB
READER_ENTRIES, READER_VALUE = 1_000, 60 << 10
READER_FILES = (150 * MB, 2 * READER_LIMIT)
READER_SECONDS = 30.0
READER_EVICTED = 0.05


class NoContainerError(Exception):
    """No control group can be created here; the message says why."""


class Container:
    """A memory control group with a hard limit and no swap, removed at the end."""

    def __init__(self, limit):
        self.limit = limit
        name = f"synthex-fast-{os.getpid()}-{next(_numbers)}"
        one, two = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        try:
            if (one / "memory.limit_in_bytes").exists():
                self.version, self.path = 1, one / name
                self.path.mkdir()
                self._write("memory.limit_in_bytes", limit)
                # A kernel without swap accounting lacks this file.
                with contextlib.suppress(FileNotFoundError):
                    self._write("memory.memsw.limit_in_bytes", limit)
                self._peak = "memory.max_usage_in_bytes"
            elif "memory" in (two / "cgroup.subtree_control").read_text().split():
                self.version, self.path = 2, two / name
                self.path.mkdir()
                self._write("memory.max", limit)
                with contextlib.suppress(FileNotFoundError):
                    self._write("memory.swap.max", 0)
                self._peak = "memory.peak"
            else:
                raise NoContainerError("no memory controller of control groups is mounted")
        except OSError as error:
            self.close()
            raise NoContainerError(f"no control group can be created: {error}") from error

    def _write(self, name, value):
        (self.path / name).write_text(str(value))

    def peak(self):
        """The most that was ever charged, or None if the kernel doesn't record it."""
        try:
            return int((self.path / self._peak).read_text())
        except FileNotFoundError:
            return None

    def close(self):
        for _ in range(100):
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                # Processes that are exiting still count.
                time.sleep(0.05)
            else:
                return

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


_numbers = itertools.count()


def resident(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def serve(procs, seconds, governed, caches, tuned):
    """The child: prints a line for each second, then the totals. Without a governor it is killed before that."""
    # Before any import, so that all memory is charged.
    Path(procs).write_text(str(os.getpid()))
    import pickle

    from synthex_fast import create_memory_aware_ttl_dict
    from synthex_fast.validate import arms, corpus
    from synthex_fast.validate.arms.synthex_fast import Service

    class LargeService(Service):
        def __init__(self):
            super().__init__()
            each = caches / 2 / MB
            self._active = create_memory_aware_ttl_dict(None, arms.ACTIVE_SECONDS, each)
            self._responses = create_memory_aware_ttl_dict(None, arms.RESPONSE_SECONDS, each)

    service = LargeService()
    if not tuned:
        service._tuner.stop()
    governor = None
    if governed:
        from synthex_fast import MemoryGovernor

        governor = MemoryGovernor(on_emergency=lambda governor: print("emergency", flush=True))
        for name in ("active", "responses", "buffer", "tuner", "monitor"):
            governor.register(getattr(service, f"_{name}"), name=name)
        governor.start()
    arriving = [pickle.dumps(request) for request in corpus.make(7)]
    served = errors = then = 0
    slowest = 0.0
    begin = second = time.perf_counter()
    print("begin", flush=True)
    for request in itertools.cycle(arriving):
        start = time.perf_counter()
        if start - second >= 1.0:
            print("second", served - then, f"{slowest * 1e3:.1f}", resident("self"), flush=True)
            then, second, slowest = served, start, 0.0
            if start - begin >= seconds:
                break
        try:
            service.handle(pickle.loads(request))
        except Exception as error:
            errors += 1
            if errors <= 5:
                print("error", repr(error), flush=True)
        served += 1
        slowest = max(slowest, time.perf_counter() - start)
    print("served", served, errors, flush=True)
    if governor is not None:
        stats = governor.stats
        for name, action in stats["actions"].items():
            freed, returned = action["freed"] // MB, action["returned"] // MB
            print(
                "action",
                name,
                action["count"],
                "times,",
                freed,
                "MB freed,",
                returned,
                "returned",
                flush=True,
            )
        print("overhead", f"{stats['overhead']:.2f}", "resident bytes for each counted one", flush=True)
        print(
            "held",
            sum(stats["components"][name]["memory_limit"] or 0 for name in ("active", "responses")),
            flush=True,
        )
        print("cost", stats["looks"], f"{stats['cpu_seconds']:.6f}", flush=True)
        governor.stop()


def measure(seconds, governed, limit=LIMIT, caches=CACHES, tuned=True, out=None):
    """Run a child in a container and return what it printed and how it ended, as a dict."""
    result = {"seconds": [], "killed": False, "served": 0, "errors": 0, "actions": [], "peak_rss": 0}
    with Container(limit) as container:
        code = [sys.executable, __file__, "--serve", str(container.path / "cgroup.procs"), str(seconds)]
        child = subprocess.Popen(
            [*code, str(int(governed)), str(caches), str(int(tuned))],
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        os.set_blocking(child.stdout.fileno(), False)
        lines = ""
        end = time.monotonic() + seconds + 120
        try:
            while time.monotonic() < end:
                result["peak_rss"] = max(result["peak_rss"], resident(child.pid))
                with contextlib.suppress(TypeError, BlockingIOError):
                    lines += child.stdout.read() or ""
                if child.poll() is not None:
                    break
                time.sleep(SAMPLE_SECONDS)
        finally:
            child.kill()
            child.wait()
        os.set_blocking(child.stdout.fileno(), True)
        lines += child.stdout.read()
        child.stdout.close()
        result["killed"] = child.returncode == -signal.SIGKILL
        result["status"] = child.returncode
        result["peak_charge"] = container.peak()
    for line in lines.splitlines():
        kind, *rest = line.split()
        if kind == "second":
            result["seconds"].append((int(rest[0]), float(rest[1]), int(rest[2])))
        elif kind == "served":
            result["served"], result["errors"] = int(rest[0]), int(rest[1])
        elif kind == "held":
            result["held"] = int(rest[0])
        elif kind == "cost":
            result["looks"], result["cpu_seconds"] = int(rest[0]), float(rest[1])
        elif kind in ("action", "overhead", "emergency", "error"):
            result["actions"].append(line)
    if out is not None:
        out(result)
    return result


def show(result):
    for second, (served, slowest, rss) in enumerate(result["seconds"], 1):
        print(f"    second {second:3}: {served:7,} requests, slowest {slowest:7.1f} ms, {rss / MB:6.1f} MB")
    for line in result["actions"]:
        print("   ", line)


def work(procs, base, seconds, rows, seed):
    """One of several workers: prints a line for each row of the table, until `base` (monotonic) plus `seconds`."""
    Path(procs).write_text(str(os.getpid()))
    import random

    from synthex_fast import MemoryGovernor, TTLDict

    cache = TTLDict()
    governor = MemoryGovernor()
    governor.register(cache)
    governor.start()
    draw = random.Random(seed).random
    row = int((time.monotonic() - base) / seconds * rows) + 1
    hits = asked = 0
    while row <= rows:
        for _ in range(WORKER_BATCH):
            key = int(WORKER_KEYS * draw() ** WORKER_SKEW)
            asked += 1
            if cache.get(key) is not None:
                hits += 1
            else:
                cache[key] = b"x" * WORKER_VALUE
        time.sleep(WORKER_PAUSE)
        if time.monotonic() - base >= row * seconds / rows:
            print(row, cache.nbytes, hits, asked, governor.level, flush=True)
            row, hits, asked = row + 1, 0, 0
    governor.stop()


def measure_workers(count, seconds, limit=WORKERS_LIMIT, rows=WORKERS_ROWS):
    """Run the workers in one container: their rows (by number: bytes, hits, requests, level) and how each ended."""
    workers = []
    with Container(limit) as container:
        base = time.monotonic()
        code = [
            sys.executable,
            __file__,
            "--work",
            str(container.path / "cgroup.procs"),
            str(base),
            str(seconds),
        ]
        try:
            for n in range(count):
                start = seconds * (SECOND_START + (n - 1) * NEXT_START) if n else 0.0
                time.sleep(max(0.0, base + start - time.monotonic()))
                workers.append(
                    subprocess.Popen([*code, str(rows), str(n)], stdout=subprocess.PIPE, text=True)
                )
            end = base + seconds + 10.0
            found = []
            for worker in workers:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(max(0.0, end - time.monotonic()))
                worker.kill()
                lines = [line.split() for line in worker.communicate()[0].splitlines()]
                seen = {
                    int(row): (int(size), int(hits), int(asked), level)
                    for row, size, hits, asked, level in lines
                }
                found.append((seen, worker.returncode))
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        return found, container.peak()


def show_workers(count, seconds):
    wanted = WORKER_KEYS * WORKER_VALUE // MB
    print(
        f"A container of {WORKERS_LIMIT // MB} MB, {count} workers; the first starts well before the others."
    )
    print(
        f"Each has a governor, and a cache that could use {wanted} MB. MB held, hit ratio since the row before:"
    )
    found, peak = measure_workers(count, seconds)
    print("  seconds" + "".join(f" | worker {n + 1:<7}" for n in range(count)))
    for row in range(1, WORKERS_ROWS + 1):
        cells = []
        for seen, _ in found:
            size, hits, asked, _level = seen.get(row, (0, 0, 0, ""))
            cells.append(f"{size / MB:6.1f} {hits / asked:6.1%}" if asked else f"{'-':>6} {'-':>6}")
        print(f"  {row * seconds / WORKERS_ROWS:7.1f}" + "".join(f" | {cell:>14}" for cell in cells))
    for n, (_, status) in enumerate(found, 1):
        if status:
            print(
                f"  worker {n} was killed"
                if status == -signal.SIGKILL
                else f"  worker {n} ended with status {status}"
            )
    last = [seen[WORKERS_ROWS][0] / MB for seen, _ in found if WORKERS_ROWS in seen]
    if last:
        equal = sum(last) / count
        print(f"  in the end the smallest cache holds {min(last):.1f} MB, the largest {max(last):.1f} MB")
        print(f"  (equal shares: {equal:.1f} MB each)")
    if peak is not None:
        print(f"  charged to the container at most {peak / WORKERS_LIMIT:.1%} of the limit")
    return 0 if all(status == 0 for _, status in found) else 1


def read_files(procs, folder, seconds):
    """The service that reads files: prints how much of its cache is left, and what the governor did."""
    Path(procs).write_text(str(os.getpid()))
    from synthex_fast import MemoryGovernor, TTLDict

    cache = TTLDict()
    for n in range(READER_ENTRIES):
        cache[n] = b"x" * READER_VALUE
    files = [Path(folder) / str(size) for size in READER_FILES]
    for path in files:
        # What is in the page cache already was charged to the process that wrote it.
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    block = bytearray(1 * MB)
    total = 0
    with MemoryGovernor() as governor:
        governor.register(cache)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for path, times in zip(files, (4, 1), strict=True):
                for _ in range(times):
                    with path.open("rb", buffering=0) as file:
                        while count := file.readinto(block):
                            total += count
        actions = {name: action["count"] for name, action in governor.stats["actions"].items()}
    print(len(cache), total, actions, flush=True)


def show_page_cache(seconds):
    import tempfile

    with tempfile.TemporaryDirectory() as folder, Container(READER_LIMIT) as container:
        for size in READER_FILES:
            with (Path(folder) / str(size)).open("wb") as file:
                for _ in range(size // MB):
                    file.write(os.urandom(MB))
                os.fsync(file.fileno())
        procs = str(container.path / "cgroup.procs")
        code = [sys.executable, __file__, "--read", procs, folder, str(seconds)]
        done = subprocess.run(code, stdout=subprocess.PIPE, text=True, check=False)
        peak = container.peak()
    print(
        f"A container of {READER_LIMIT // MB} MB, a cache of {READER_ENTRIES * READER_VALUE // MB} MB, "
        f"files of {READER_FILES[0] // MB} and {READER_FILES[1] // MB} MB read for {seconds:.0f} s:"
    )
    if done.returncode:
        killed = done.returncode == -signal.SIGKILL
        print("  killed" if killed else f"  ended with status {done.returncode}")
        return 1
    left, total, actions = done.stdout.split(maxsplit=2)
    evicted = 1 - int(left) / READER_ENTRIES
    print(f"  {int(total) / (1 << 30):.1f} GB read; the governor's actions: {actions.strip()}")
    if peak is not None:
        print(f"  charged to the container at most {peak / READER_LIMIT:.1%} of the limit")
    print(f"  evicted {evicted:.1%} of the cache (target: at most {READER_EVICTED:.0%}), not killed")
    good = evicted <= READER_EVICTED
    print("  all targets met" if good else "  TARGETS MISSED")
    return 0 if good else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="take 15 seconds instead of 60")
    parser.add_argument("--verbose", action="store_true", help="show every second, and what the governor did")
    parser.add_argument("--workers", type=int, metavar="N", help="show how N workers share one container")
    parser.add_argument("--page-cache", action="store_true", help="show a service that reads large files")
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        procs, seconds, governed, caches, tuned = arguments.serve
        serve(procs, float(seconds), bool(int(governed)), int(caches), bool(int(tuned)))
        return 0
    if arguments.work:
        procs, base, seconds, rows, seed = arguments.work
        work(procs, float(base), float(seconds), int(rows), int(seed))
        return 0
    if arguments.read:
        procs, folder, seconds = arguments.read
        read_files(procs, folder, float(seconds))
        return 0
    if arguments.page_cache:
        try:
            return show_page_cache(8.0 if arguments.quick else READER_SECONDS)
        except NoContainerError as error:
            print(f"Not measured here: {error}.")
            return 0
    if arguments.workers is not None:
        if not 1 <= arguments.workers <= 16:
            parser.error(f"argument --workers: must be from 1 to 16, not {arguments.workers}")
        try:
            return show_workers(arguments.workers, 15.0 if arguments.quick else WORKERS_SECONDS)
        except NoContainerError as error:
            print(f"Not measured here: {error}.")
            return 0
    seconds = 15.0 if arguments.quick else SECONDS
    out = show if arguments.verbose else None
    try:
        print(f"A container of {LIMIT // MB} MB, caches of {CACHES // MB} MB:")
        without = measure(seconds, governed=False, out=out)
        lived = len(without["seconds"])
        ends = "killed" if without["killed"] else f"ended with status {without['status']}"
        print(f"  without the governor: {ends} in second {lived + 1} (expected: killed)")
        result = measure(seconds, governed=True, out=out)
        # The size that the caches came to: the limit to set by hand, had it been known beforehand.
        sized = result.get("held") or LIMIT // 2
        by_hand = measure(min(seconds, 15.0), governed=False, caches=sized, out=out)
    except NoContainerError as error:
        print(f"Not measured here: {error}.")
        return 0
    ran = len(result["seconds"])
    ends = "killed" if result["killed"] else f"ended with status {result['status']}"
    print(f"  with it: {ends} after {ran} s (target: {seconds:.0f} s and status 0)")
    print(f"  requests served: {result['served']:,}, with {result['errors']} errors (target: 0)")
    rss, charge = result["peak_rss"] / LIMIT, result["peak_charge"]
    print(f"  resident memory at most {rss:.1%} of the limit (target: {TARGET_SHARE:.0%})")
    if charge is not None:
        print(f"  charged to the container at most {charge / LIMIT:.1%} of the limit")
    rates = [served for served, _, _ in result["seconds"]]
    calm = list(itertools.takewhile(lambda second: second[2] < CALM_SHARE * LIMIT, result["seconds"]))
    calm = [served for served, _, _ in calm] or rates[:1]
    later = rates[len(calm) :]
    if calm and later:
        before, after = statistics.median(calm), statistics.median(later)
        print(
            f"  requests a second: {before:,.0f} before pressure, {after:,.0f} under it: {after / before:.2f}"
        )
    kept = without["killed"] and not result["killed"] and result["status"] == 0 and ran >= seconds - 1
    usual = [served for served, _, _ in by_hand["seconds"]][len(calm) :]
    if usual and later:
        usual, now = statistics.median(usual), statistics.median(later)
        print(
            f"  without it, caches limited by hand to the same {sized // MB} MB: {usual:,.0f}; {now / usual:.2f}"
        )
    share = result.get("cpu_seconds", 0.0) / max(1, ran)
    print(
        f"  the governor considered memory {result.get('looks', 0):,} times and took {share:.3%} of a processor"
    )
    good = kept and not result["errors"] and rss <= TARGET_SHARE
    print("  all targets met" if good else "  TARGETS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
