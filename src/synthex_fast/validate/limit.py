"""Each arm at a memory limit that the current system outgrows: who is killed, who survives, what fails.

An arm runs in a process of its own, in a memory control group of its own where the system lets one be made. Elsewhere
this process watches its resident memory and kills it at the limit, as the kernel would; a run says which of the two it
was. Every arm gets the same requests, each of fresh objects as from a network, with the report's caches (500 queries
and their answers for 4 hours). What differs from the comparison of speed is the length of the answers, chosen so that
the cached ones alone come to one and a half times the limit. A shallow ``sys.getsizeof`` of a list of answers, which is
the account of the current system and of the recommended one, does not see it.

The runs are short and repeated; the arms take turns and the order rotates.
"""

import contextlib
import itertools
import json
import mmap
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from synthex_fast._readings import Readings
from synthex_fast.validate import corpus
from synthex_fast.validate.arms import RESPONSE_QUERIES, service
from synthex_fast.validate.figures import Measure, Target
from synthex_fast.validate.rounds import Results, ValidationError, _environment

RUNS = 7
REQUESTS = 2_000
# Of each request's answers, so that the cached ones outgrow the limit by half.
OUTGROWN = 1.5
# Below it an interpreter with its imports has no room for a service, above it the answers have no room in this machine.
LEAST_LIMIT = 128 << 20
ROOM = 1.25
SAMPLE_SECONDS = 0.005
# Of memory over time, for a plot.
MOST_SAMPLES = 200
PATIENCE = 120.0
WATCHED = "process that watches the resident size, since no control group can be made here"
# Served and failed, kept where they survive the process.
PROGRESS = struct.Struct("qq")


class Container:
    """A memory control group with a hard limit and no swap, removed by `close`. `OSError` if none can be made."""

    _numbers = itertools.count()

    def __init__(self, limit: int):
        name = f"synthex-fast-validate-{os.getpid()}-{next(self._numbers)}"
        version, own = Readings().container or (None, "")
        one = Path(own) if version == 1 else Path("/sys/fs/cgroup/memory")
        if (one / "memory.limit_in_bytes").exists():
            self.how, self.path = "control group, version 1", one / name
            files = {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}
            self._names = "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"
        else:
            two = Path("/sys/fs/cgroup")
            if "memory" not in (two / "cgroup.subtree_control").read_text().split():
                raise OSError("no memory controller is available")
            self.how, self.path = "control group, version 2", two / name
            files = {"memory.max": limit, "memory.swap.max": 0}
            self._names = "memory.current", "memory.peak", "memory.events"
        _remove_abandoned(self.path.parent)
        self.path.mkdir()
        try:
            if not os.access(self.processes, os.W_OK):
                raise OSError("no process can be moved there")
            for place, (file, value) in enumerate(files.items()):
                # A kernel without swap accounting lacks the second.
                with contextlib.suppress(FileNotFoundError) if place else contextlib.nullcontext():
                    (self.path / file).write_text(str(value))
        except OSError:
            self.close()
            raise

    @property
    def processes(self) -> Path:
        return self.path / "cgroup.procs"

    def usage(self) -> int:
        return self._number(0)

    def peak(self) -> int:
        return self._number(1)

    def kills(self) -> int:
        """How many processes the kernel has killed here for lack of memory."""
        for line in self._read(2).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def _read(self, which: int) -> str:
        try:
            return (self.path / self._names[which]).read_text()
        except OSError:
            # An old kernel records no peak.
            return ""

    def _number(self, which: int) -> int:
        text = self._read(which).strip()
        return int(text) if text else 0

    def close(self) -> None:
        for _ in range(200):
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                # A process that is exiting still counts.
                time.sleep(0.01)
            else:
                return


def _remove_abandoned(parent: Path) -> None:
    """Remove the groups of runs that were killed and could not do so themselves."""
    for found in parent.glob("synthex-fast-validate-*-*"):
        with contextlib.suppress(OSError, ValueError):
            if not Path("/proc", found.name.split("-")[3]).exists():
                # Fails if anything still runs there.
                found.rmdir()


def check(limit: int) -> None:
    """`ValueError` unless the arms can be run at this limit on this machine."""
    if limit < LEAST_LIMIT:
        raise ValueError(f"must be at least {LEAST_LIMIT >> 20} MB")
    available = Readings().available()
    if limit * ROOM > available:
        raise ValueError(f"leaves no room: {available >> 20} MB of memory are available")


def requests(seed: int, limit: int) -> Iterator[Any]:
    """Endless requests whose answers outgrow `limit` in a cache of the report's size.

    >>> request = next(requests(1, 256 << 20))
    >>> sum(len(answer.content) for answer in request.answers) > 300_000
    True
    """
    arriving = [pickle.dumps(request) for request in corpus.make(seed)]
    draw = random.Random(seed)
    mean = int(OUTGROWN * limit / (RESPONSE_QUERIES * len(corpus.EXPERTS)))
    text = "".join(draw.choices("etaoin shrdlu", k=1_000)) * (2 * mean // 1_000 + 2)
    for pickled in itertools.cycle(arriving):
        request = pickle.loads(pickled)
        answers = []
        for answer in request.answers:
            start = draw.randrange(1_000)
            answers.append(
                answer._replace(content=text[start : start + draw.randint(mean // 2, 3 * mean // 2)])
            )
        yield request._replace(answers=tuple(answers))


def serve(name: str, seed: int, limit: int, count: int, progress: str) -> None:
    """The arm's process: serves `count` requests and prints what it holds then, if it gets that far."""
    with open(progress, "r+b") as file, mmap.mmap(file.fileno(), PROGRESS.size) as shared:
        failed, first_error = 0, None
        arm = service(name)()
        arm.guard(limit)
        for served, request in enumerate(itertools.islice(requests(seed, limit), count), 1):
            try:
                arm.handle(request)
            except Exception as error:
                failed += 1
                first_error = first_error or f"{type(error).__name__}: {error}"
            PROGRESS.pack_into(shared, 0, served, failed)
    print(json.dumps({"first_error": first_error, "cached_bytes": arm.account()}), flush=True)
    # What it holds goes with the process.
    os._exit(0)


def one_run(
    arm: str, seed: int, limit: int, count: int = REQUESTS, tick: Callable[[], None] = lambda: None
) -> dict:
    """Run an arm at the limit, until it has served `count` requests or is killed. Leaves nothing behind."""
    with contextlib.ExitStack() as stack:
        try:
            container = Container(limit)
        except OSError:
            container = None
        else:
            stack.callback(container.close)
        progress = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "progress"
        progress.write_bytes(bytes(PROGRESS.size))
        stderr = stack.enter_context(tempfile.TemporaryFile())
        command = [sys.executable, "-m", __name__, arm, str(seed), str(limit), str(count), str(progress)]
        if container is not None:
            # It joins before it becomes an interpreter, so that all of that is charged.
            command = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(container.processes), *command]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(),
            **_apart(),
        )
        # Before the container is closed, which an exception must not prevent.
        stack.callback(_end, process)
        began = time.monotonic()
        usage = container.usage if container is not None else _watch(process.pid)
        watched, peak, series, next_tick = False, 0, [], began
        while process.poll() is None:
            now = time.monotonic()
            if now - began > PATIENCE:
                raise ValidationError(f"arm {arm!r} at the limit does not end")
            used = usage()
            series.append((round(now - began, 4), used))
            peak = max(peak, used)
            if container is None and used > limit:
                watched = True
                process.kill()
            if now >= next_tick:
                tick()
                next_tick = now + 0.25
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - began
        said = process.stdout.read()
        served, failed = PROGRESS.unpack(progress.read_bytes())
        # An old kernel doesn't count its kills.
        killed = watched or (
            container is not None and (container.kills() > 0 or process.returncode == -signal.SIGKILL)
        )
        if process.returncode and not killed:
            stderr.seek(0)
            lines = stderr.read().decode(errors="replace").strip().splitlines()
            raise ValidationError(
                f"arm {arm!r} at the limit ended with status {process.returncode}"
                + (f": {lines[-1].strip()}" if lines else "")
            )
        return {
            "limit": limit,
            "how": container.how if container is not None else WATCHED,
            "killed": killed,
            "requests": served,
            "planned": count,
            "errors": failed,
            "seconds": seconds,
            "peak": max(peak, container.peak()) if container is not None else peak,
            "series": _thinned(series),
            "first_error": None,
            "cached_bytes": None,
            **({} if killed else json.loads(said)),
        }


def _apart() -> dict[str, Any]:
    # In a group of its own, so that a Ctrl-C reaches this process alone, which then ends the other.
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"process_group": 0}


def _watch(pid: int) -> Callable[[], int]:
    import psutil

    process = psutil.Process(pid)

    def resident() -> int:
        try:
            return process.memory_info().rss
        except psutil.Error:
            return 0

    return resident


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


def _thinned(series: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """At most `MOST_SAMPLES` of them, each the greatest of its stretch."""
    stretch = max(1, -(-len(series) // MOST_SAMPLES))
    return [
        max(series[first : first + stretch], key=lambda sample: sample[1])
        for first in range(0, len(series), stretch)
    ]


def run(results: Results, limit: int, say: Callable[[str, float], None], runs: int = RUNS) -> None:
    """Fill ``results.limit``: for each arm a list of runs, in the order of the rounds."""
    arms = results.arms
    for number in range(runs):
        first = number % len(arms)
        for place, arm in enumerate(arms[first:] + arms[:first]):
            what = f"at the limit, {number + 1} of {runs}: {arm}"
            share = (number * len(arms) + place) / (runs * len(arms))
            say(what, share)
            done = one_run(
                arm, results.seed + number, limit, tick=lambda what=what, share=share: say(what, share)
            )
            results.limit.setdefault(arm, []).append(done)


def _of_runs(read: Callable[[dict], float]) -> Callable[[Any, str], list[float]]:
    return lambda results, arm: [read(done) for done in results.limit.get(arm, ())]


def _of_all(read: Callable[[list[dict]], float]) -> Callable[[Any, str], list[float]]:
    return lambda results, arm: [read(runs)] if (runs := results.limit.get(arm)) else []


def footnotes(results: Any) -> list[str]:
    """How the limit was set, and what became of each arm."""
    runs = [done for found in results.limit.values() for done in found]
    if not runs:
        return []
    said = []
    for arm, found in results.limit.items():
        killed = [done["requests"] for done in found if done["killed"]]
        after = f" after {min(killed):,} to {max(killed):,} requests" if killed else ""
        said.append(f"{arm} killed in {len(killed)} of {len(found)} runs{after}")
    one = runs[0]
    return [
        f"At the memory limit: {one['limit'] >> 20} MiB, set by a {one['how']}; {one['planned']:,} requests a "
        f"run with answers that fill the caches {OUTGROWN:g} times over. {'; '.join(said)}."
    ]


def _cached(results: Any, arm: str) -> list[float]:
    survived = [done for done in results.limit.get(arm, ()) if not done["killed"]]
    return [done["cached_bytes"] / 1e6 for done in survived]


MEASURES = (
    Measure(
        "limit_killed",
        "at the memory limit: killed",
        "% of runs",
        # Of all runs at once: a median would say 0 as long as fewer than half of them are killed.
        _of_all(lambda runs: 100 * sum(done["killed"] for done in runs) / len(runs)),
        "",
        "OOM errors 0",
        Target("below", 1),
        reach=Target("below", 1),
    ),
    Measure(
        "limit_served",
        "at the memory limit: requests served",
        "%",
        _of_runs(lambda done: 100 * done["requests"] / done["planned"]),
        more_is_better=True,
    ),
    Measure(
        "limit_errors",
        "at the memory limit: requests failed, all runs",
        "",
        _of_all(lambda runs: float(sum(done["errors"] for done in runs))),
    ),
    Measure(
        "limit_peak",
        "at the memory limit: most in use",
        "% of it",
        _of_runs(lambda done: 100 * done["peak"] / done["limit"]),
        more_is_better=None,
    ),
    Measure(
        "limit_cached",
        "at the memory limit: cached in the end, by the caches' own count",
        "MB",
        _cached,
        more_is_better=None,
    ),
)

if __name__ == "__main__":
    # A terminal's interrupt is for the process that started this one.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
