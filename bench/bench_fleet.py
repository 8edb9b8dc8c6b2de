"""Workers that share one container: does each get its share, do they take turns, do they survive, what does it cost?

``python bench/bench_fleet.py [share need turns chaos cost] [--seconds N] [--limit MB] [--quick]``

- ``share``: four equal workers in 512 MB, the first well before the others. Ten seconds after the last start the
  limits of their caches, and what the caches hold on average, are within 15 %.
- ``need``: four workers of which one has three times the working set; the others' fits. It gets more, and theirs stays.
- ``turns``: three workers that make garbage and survivors, with a tuner each. No two full collections overlap.
- ``chaos``: 1 to 8 workers, starts and deaths at random (a SIGKILL each), in 256 and in 512 MB, for ``--seconds`` in
  all (600; 60 with ``--quick``). No worker is killed by the kernel, none has an error, and the dead are soon forgotten.
- ``cost``: two workers in which nothing changes, with a fleet and, in another container at the same time, without:
  processor time of the governor's thread, and by how much it exceeds the other's; the median of three rounds.

Needs root and a memory controller of control groups in which groups can be created. Elsewhere it prints why and
measures nothing.
"""

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_governor import MB, Container, NoContainerError

EQUAL = 0.15
SETTLED_SECONDS = 10.0
# By then nothing changes any more in workers of which nothing is asked.
STEADY_AFTER = 20.0
VALUE = 8 << 10


def say(**what):
    print(json.dumps(what), flush=True)


def work(procs, options):
    """A worker: asks its cache for keys until it is killed or its time is over, and prints what it sees."""
    Path(procs).write_text(str(os.getpid()))
    import gc

    from synthex_fast import GCTuner, MemoryGovernor, TTLDict

    collections, alive = [], []
    draw = random.Random(options["seed"]).random
    cache = TTLDict()
    governor = MemoryGovernor(fleet=options.get("fleet", True))
    governor.register(cache)
    tuner = None
    if options.get("tuner"):

        def watch(phase, info):
            if info["generation"] == 2:
                collections.append((phase, time.monotonic()))

        gc.callbacks.append(watch)
        tuner = GCTuner(target_overhead=0.5, freeze=False)
        governor.register(tuner)
        tuner.start()
    governor.start()
    end = time.monotonic() + options["seconds"]
    keys, skew, batch, pause = options["keys"], options["skew"], options["batch"], options["pause"]
    # In an open loop: what others do to the processors makes no worker ask more or less.
    due = time.monotonic()
    hits = asked = 0
    shown = time.monotonic()
    errors = 0
    began, steady = shown, None
    while (now := time.monotonic()) < end:
        try:
            for _ in range(batch):
                key = int(keys * draw() ** skew)
                asked += 1
                if cache.get(key) is not None:
                    hits += 1
                else:
                    cache[key] = b"x" * VALUE
            if tuner is not None:
                with tuner.request():
                    # Survivors and cycles, so that full collections fall due; all is let go now and then.
                    for _ in range(300):
                        one, two = [bytearray(500)], []
                        one.append(two)
                        two.append(one)
                        alive.append(one)
                    if len(alive) > 50_000:
                        alive.clear()
        except Exception as error:
            errors += 1
            say(error=repr(error))
        due += pause
        time.sleep(max(0.0, due - time.monotonic()))
        if steady is None and now - began >= STEADY_AFTER:
            steady = thread_seconds("synthex-fast-governor"), governor.stats["looks"]
        if now - shown >= options["show"]:
            shown = now
            stats = governor.stats
            fleet = stats["fleet"]
            say(
                at=now, nbytes=cache.nbytes, cap=cache.memory_cap, hits=hits, asked=asked, level=stats["level"],
                state=fleet["state"], reason=fleet["reason"], workers=fleet["workers"], errors=errors,
            )  # fmt: skip
            hits = asked = 0
            if collections:
                taken, collections[:] = list(collections), []
                say(collections=taken)
    if tuner is not None:
        say(waited=tuner.stats["turns_waited"], causes=tuner.stats["causes"])
    if steady is not None:
        spent = thread_seconds("synthex-fast-governor") - steady[0]
        say(
            thread=spent,
            looks=governor.stats["looks"] - steady[1],
            seconds=time.monotonic() - began - STEADY_AFTER,
        )
    governor.stop()


def thread_seconds(name):
    """Processor time of this process's thread of that name, of which the kernel shows 15 letters; None without it."""
    import threading

    for thread in threading.enumerate():
        if thread.name == name:
            return int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) / 1e9
    return None


class Running:
    """A worker as seen from outside."""

    def __init__(self, container, **options):
        self.options = {
            "seed": 1, "seconds": 60.0, "keys": 100_000, "skew": 2.0, "batch": 60, "pause": 0.01, "show": 0.5, **options
        }  # fmt: skip
        self.out = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the object
        self.began = time.monotonic()
        code = [
            sys.executable,
            __file__,
            "--work",
            str(container.path / "cgroup.procs"),
            json.dumps(self.options),
        ]
        self.process = subprocess.Popen(code, stdout=self.out, text=True)
        self.killed_here = False

    def kill(self):
        self.killed_here = True
        self.process.kill()
        self.process.wait()

    def lines(self):
        self.out.seek(0)
        found = []
        for line in self.out.read().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                # Cut off as it was killed.
                continue
        return found

    def rows(self):
        return [line for line in self.lines() if "nbytes" in line]


def oom_kills(container):
    for name in ("memory.oom_control", "memory.events"):
        path = container.path / name
        if path.exists():
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def spread(values):
    """By how much the largest exceeds the smallest."""
    return max(values) / max(min(values), 1) - 1


def share(seconds, limit, quick):
    print(f"share: 4 equal workers in {limit} MB, the first {6 if quick else 12} s before the others")
    with Container(limit * MB) as container:
        head, total = (6.0, 24.0) if quick else (12.0, 36.0)
        workers = [Running(container, seed=0, seconds=total + 60)]
        time.sleep(head)
        for n in range(1, 4):
            workers.append(Running(container, seed=n, seconds=total + 60))
            time.sleep(1.0)
        last = time.monotonic() - 1.0
        time.sleep(total - head - 4.0)
        # All at once: as soon as one is gone, the others get what it had.
        for worker in workers:
            worker.process.send_signal(signal.SIGSTOP)
        for worker in workers:
            worker.kill()
        killed = oom_kills(container)
    settled = None
    moments = [last + step for step in range(1, int(total - head) - 5)]
    for moment in moments:
        caps = [
            next((row["cap"] for row in worker.rows() if row["at"] >= moment), None) for worker in workers
        ]
        if None in caps:
            break
        if spread(caps) > EQUAL:
            settled = None
        elif settled is None:
            settled = moment - last
    late = [[row for row in worker.rows() if row["at"] >= last + SETTLED_SECONDS] for worker in workers]
    means = [statistics.mean(row["nbytes"] for row in rows) / MB for rows in late]
    caps = [rows[-1]["cap"] / MB for rows in late]
    print("  limits of the caches in the end: " + ", ".join(f"{cap:.1f}" for cap in caps) + " MB")
    print("  held on average from 10 s after the last start: " + ", ".join(f"{m:.1f}" for m in means) + " MB")
    shown = "never" if settled is None else f"{settled:.0f} s after the last start"
    print(f"  limits within 15 % for good: {shown} (target: 10 s); means within {spread(means):.1%}")
    print(f"  OOM kills: {killed} (target: 0)")
    return settled is not None and settled <= SETTLED_SECONDS and spread(means) <= EQUAL and not killed


def need(seconds, limit, quick):
    print(f"need: 4 workers in {limit} MB; three have a working set of 55 MB, one of 165 MB")
    total = 25.0 if quick else 45.0
    with Container(limit * MB) as container:
        workers = [
            Running(
                container, seed=n, seconds=total + 60, keys=(165 if n == 0 else 55) * MB // VALUE, skew=1.2
            )
            for n in range(4)
        ]
        time.sleep(total)
        for worker in workers:
            worker.process.send_signal(signal.SIGSTOP)
        for worker in workers:
            worker.kill()
        killed = oom_kills(container)
    late = [worker.rows()[-12:] for worker in workers]
    held = [statistics.mean(row["nbytes"] for row in rows) / MB for rows in late]
    rates = [sum(row["hits"] for row in rows) / sum(row["asked"] for row in rows) for rows in late]
    print("  held: " + ", ".join(f"{each:.1f}" for each in held) + " MB")
    print("  hit ratios: " + ", ".join(f"{rate:.1%}" for rate in rates))
    print(f"  OOM kills: {killed} (target: 0)")
    return held[0] > 1.2 * max(held[1:]) and not killed


def turns(seconds, limit, quick):
    limit *= 2
    print(f"turns: 3 workers with a tuner each in {limit} MB, well below the watermark")
    with Container(limit * MB) as container:
        workers = [
            Running(container, seed=n, seconds=15.0 if quick else 40.0, tuner=True, keys=100)
            for n in range(3)
        ]
        for worker in workers:
            worker.process.wait()
    spans, waited = [], 0
    for n, worker in enumerate(workers):
        began = None
        for line in worker.lines():
            waited += line.get("waited", 0)
            for phase, at in line.get("collections", ()):
                if phase == "start":
                    began = at
                elif began is not None:
                    spans.append((began, at, n))
                    began = None
    spans.sort()
    overlaps = sum(
        1 for (_, end, one), (begin, _, two) in itertools.pairwise(spans) if begin < end and one != two
    )
    busy = sum(end - begin for begin, end, _ in spans)
    print(f"  {len(spans)} full collections, {busy:.2f} s in all; {waited} waited for their turn")
    causes = [line["causes"] for worker in workers for line in worker.lines() if "causes" in line]
    print(f"  causes: {causes}")
    print(f"  overlapping: {overlaps} (target: 0)")
    return bool(spans) and not overlaps


def chaos(seconds, limit, quick):
    good = True
    for size in (256, 512):
        good &= chaos_in(size, seconds / 2)
    return good


def chaos_in(limit, seconds):
    choose = random.Random(limit)
    print(f"chaos: 1 to 8 workers in {limit} MB, starts and deaths at random, for {seconds:.0f} s")
    died = errors = started = 0
    most = 0.0
    with Container(limit * MB) as container:
        living, everyone = [], []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for worker in list(living):
                if worker.process.poll() is not None:
                    died += 1
                    living.remove(worker)
            if len(living) < 8 and (not living or choose.random() < 0.55):
                living.append(
                    Running(container, seed=started, seconds=seconds, skew=choose.choice([1, 2, 3]))
                )
                everyone.append(living[-1])
                started += 1
            elif len(living) > 1:
                worker = living.pop(choose.randrange(len(living)))
                worker.kill()
            time.sleep(choose.choice([0.1, 0.5, 1.0, 2.0, 4.0]))
        counts = []
        time.sleep(2.5)
        for worker in living:
            rows = worker.rows()
            if rows:
                counts.append(rows[-1]["workers"])
        killed, peak = oom_kills(container), container.peak()
        for worker in living:
            worker.kill()
        for worker in everyone:
            lines = worker.lines()
            errors += sum("error" in line for line in lines)
            worker.out.close()
    most = (peak or 0) / (limit * MB)
    print(
        f"  {started} started, {started - len(living)} killed; at the end {len(living)} live, each sees: {counts}"
    )
    print(f"  OOM kills: {killed}, ended by themselves: {died}, errors: {errors} (target: 0 of each)")
    print(f"  charged at most {most:.1%} of the limit")
    return not killed and not died and not errors and all(count == len(living) for count in counts)


def cost(seconds, limit, quick):
    print(f"cost: 2 workers in {limit} MB, all in caches, 500 requests a second")
    used, extras = {False: [], True: []}, []
    for _ in range(1 if quick else 3):
        with Container(limit * MB) as one, Container(limit * MB) as other:
            # Filled at once, then hardly used. At the same time, so that other load on the machine makes no difference.
            workers = {
                fleet: [
                    Running(
                        container, seed=n, seconds=80.5, fleet=fleet, keys=1_000, batch=50, pause=0.1, show=99
                    )
                    for n in range(2)
                ]
                for fleet, container in ((False, one), (True, other))
            }
            for worker in itertools.chain(*workers.values()):
                worker.process.wait()
            for fleet, pair in workers.items():
                last = [worker.lines()[-1] for worker in pair]
                used[fleet].append(statistics.mean(line["thread"] / line["seconds"] for line in last) * 1e6)
                looks = statistics.mean(line["looks"] / line["seconds"] for line in last)
                print(
                    f"  fleet={fleet}: {used[fleet][-1]:.1f} microseconds a second, {looks:.3f} steps a second"
                )
            extras.append(used[True][-1] - used[False][-1])
    extra = statistics.median(extras)
    print(
        f"  the governor's alone {statistics.median(used[False]):.1f}, in a fleet {statistics.median(used[True]):.1f}, "
        f"the fleet's part {extra:.1f} microseconds a second for each worker (target: 20)"
    )
    return extra <= 20.0


KINDS = {"share": share, "need": need, "turns": turns, "chaos": chaos, "cost": cost}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--seconds", type=float, default=None, help="how long chaos lasts")
    parser.add_argument(
        "--limit", type=int, default=512, metavar="MB", help="of the container, except for chaos"
    )
    parser.add_argument("--quick", action="store_true", help="take less time")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        work(arguments.work[0], json.loads(arguments.work[1]))
        return 0
    unknown = [kind for kind in arguments.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"argument KIND: must be one of {', '.join(KINDS)}, not {unknown[0]}")
    seconds = arguments.seconds or (60.0 if arguments.quick else 600.0)
    good = True
    for kind in arguments.kinds or KINDS:
        try:
            good &= KINDS[kind](seconds, arguments.limit, arguments.quick)
        except NoContainerError as error:
            print(f"Not measured here: {error}.")
            return 0
    print("all targets met" if good else "TARGETS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
