"""Starts the servers and the load generator, has the arms take turns, and fills ``results.http``.

One kind of server after the other. All arms' servers of a kind are started, warmed up and asked for the same answers;
then each round loads every arm once, in an order that rotates. A server that waits for its turn is stopped (SIGSTOP),
not only left without load: its monitors and timers would otherwise run in the turns of the others, and with two
processors that is a disturbance of the size that p99.9 shows. Continuing it costs nothing that lasts: each turn
begins with some load that is not counted.
"""

import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from synthex_fast.validate import figures
from synthex_fast.validate.http.application import SETTINGS
from synthex_fast.validate.http.watched import Pause, pauses
from synthex_fast.validate.rounds import ArgumentError, Process, ValidationError, _environment

HEAP_OBJECTS = 1_000_000
WORKERS = {"uvicorn": 1, "gunicorn": 4}
# Enough for each of gunicorn's workers to have some.
OPEN_CONNECTIONS, CLOSED_CONNECTIONS = 64, 16
# Of the seconds of load. Open loops get more: their figures are about what is rare.
SHARES = {"uvicorn-open": 0.4, "uvicorn-closed": 0.15, "gunicorn-open": 0.3, "gunicorn-closed": 0.15}
DEFAULT_LOAD = 120.0
FEWEST_ROUNDS = 7
LONGEST_TURN = 8.0
# Turns are longer at a low rate, as long as there are enough of them: a percentile is one of enough requests only.
WANTED_REQUESTS = 1_000
SHORTEST_TURN = 0.3
# Load at the beginning of a turn that is not counted.
SETTLING = 0.25
# So that caches are full and sessions have reached their number; then what a server can do, the best of several
# measurements, because a full collection may stall it for the whole of one.
WARM_UP, CAPACITY, CAPACITIES = 1.0, 0.5, 3
# Of what the slowest arm served as fast as it could: far from saturated, and not idle either.
DEFAULT_UTILISATION = 0.4
# A response time is that of a saturated server where it grows for as long as the load lasts.
FEWEST_REQUESTS = 20
# The generator was late if one request in a hundred was sent this much after it was due.
LATE = 0.002
START_SECONDS = 120.0
COMPARED = 20
# Guesses for the time left until they have been measured, in seconds: to start one kind of server and warm it up, and
# of each turn beside its load.
STARTING_EXPECTED, BETWEEN_EXPECTED = 20.0, 0.7
# Kept of each round for the page; their number and sum are complete.
PAUSES_KEPT = 400
QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99, 100)
# Upper bounds of the histogram, in seconds: 5 % apart, from 50 µs to a minute.
BOUNDS = tuple(50e-6 * 1.05**number for number in range(288))


class Generator(Process):
    """The load generator's process."""

    def __init__(self, seed: int):
        super().__init__("load generator", seed, "synthex_fast.validate.http.load")


class Server:
    """An arm's server, listening on a socket of this process's making, in a process group of its own."""

    def __init__(self, kind: str, arm: str, listening: socket.socket, heap_objects: int):
        self.kind, self.arm = kind, arm
        self.port = listening.getsockname()[1]
        self._directory = tempfile.TemporaryDirectory(prefix="synthex-fast-")
        self.directory = Path(self._directory.name)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (`end` closes it)
        self._read: dict[Path, int] = {}
        self._stopped = False
        settings = {
            "arm": arm,
            "directory": str(self.directory),
            "heap_objects": heap_objects,
            "preloaded": WORKERS[kind] > 1,
        }
        try:
            self._popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", "synthex_fast.validate.http.server"),
                    *(kind, str(listening.fileno()), str(WORKERS[kind])),
                ],
                stdin=subprocess.PIPE,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=[listening.fileno()],
                env={**_environment(), SETTINGS: json.dumps(settings)},
                process_group=0,
            )
        except BaseException:
            self._stderr.close()
            self._directory.cleanup()
            raise
        self._main = psutil.Process(self._popen.pid)
        self.started: list[dict] = []

    def wait(self, tick: Callable[[], None]) -> None:
        """Until each worker serves."""
        deadline = time.monotonic() + START_SECONDS
        while len(ready := list(self.directory.glob("*.ready"))) < WORKERS[self.kind]:
            self.check()
            if time.monotonic() > deadline:
                raise ValidationError(f"the {self.kind} of arm {self.arm!r} did not start")
            time.sleep(0.05)
            tick()
        self.started = [json.loads(path.read_text()) for path in ready]

    def check(self) -> None:
        """Raises if it has ended."""
        status = self._popen.poll()
        if status is None:
            return
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        last = f": {lines[-1].strip()}" if lines else ""
        raise ValidationError(f"the {self.kind} of arm {self.arm!r} {how}{last}")

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def stop(self) -> None:
        """Let none of its threads run until `resume`."""
        self._stopped = True
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._stopped = False
        self._signal(signal.SIGCONT)

    def processes(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self._main, *self._main.children()]
        return []

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        return sum(_cpu_seconds(process) for process in self.processes())

    def rss(self) -> int:
        """Resident bytes, with what workers share counted in each of them."""
        return sum(_rss(process) for process in self.processes())

    def pss(self) -> int | None:
        """Resident bytes with what is shared counted once; None where the system does not say."""
        if sys.platform != "linux":
            return None
        return sum(_pss(process) for process in self.processes())

    def pauses(self) -> list[Pause]:
        """Collections since the last call, in all workers, by the time at which they began."""
        found: list[Pause] = []
        for path in self.directory.glob("*.pauses"):
            new, self._read[path] = pauses(path, self._read.get(path, 0))
            found += new
        return sorted(found)

    def kill(self) -> None:
        # Also those that are stopped.
        self._signal(signal.SIGKILL)

    def end(self) -> None:
        self._popen.wait()
        with suppress(OSError):
            self._popen.stdin.close()
        self._stderr.close()
        self._directory.cleanup()


def _rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def _pss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.NoSuchProcess:
        return 0


def _cpu_seconds(process: psutil.Process) -> float:
    if sys.platform == "linux":
        # In nanoseconds, where a process's times are in hundredths of a second.
        with suppress(OSError):
            tasks = Path(f"/proc/{process.pid}/task").iterdir()
            return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


@contextmanager
def _listening(port: int | None, count: int) -> Iterator[list[socket.socket]]:
    """As many sockets on the loopback interface: on `port` and those after it, or wherever there is room."""
    sockets: list[socket.socket] = []
    try:
        for number in range(count):
            made = socket.socket()
            sockets.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wanted = 0 if port is None else port + number
            try:
                made.bind(("127.0.0.1", wanted))
                made.listen(1024)
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                why = "is in use" if error.errno == errno.EADDRINUSE else "may not be used by this user"
                raise ArgumentError(f"argument --port: {wanted} {why}") from None
        yield sockets
    finally:
        for made in sockets:
            made.close()


def check_port(port: int | None, count: int) -> None:
    """Raise `ArgumentError` unless as many servers can listen from `port` on."""
    if port is not None:
        with _listening(port, count):
            pass


@contextmanager
def _servers(
    kind: str, arms: tuple[str, ...], port: int | None, heap_objects: int
) -> Iterator[dict[str, Server]]:
    """A server for each arm; all have ended when the block exits, even with an exception."""
    started: dict[str, Server] = {}
    try:
        with _listening(port, len(arms)) as sockets:
            for arm, listening in zip(arms, sockets, strict=True):
                started[arm] = Server(kind, arm, listening, heap_objects)
        yield started
    finally:
        for server in started.values():
            server.kill()
        for server in started.values():
            server.end()


@contextmanager
def _generator(seed: int) -> Iterator[Generator]:
    generator = Generator(seed)
    try:
        generator.answer()
        yield generator
    finally:
        generator.kill()
        generator.end()


def plan(arms: int, seconds: float, rate: float = math.inf) -> tuple[int, float]:
    """How many rounds of a scenario, and how long each arm's turn, for `seconds` of load at `rate`.

    >>> plan(4, 42.0)
    (7, 1.5)
    >>> plan(4, 400.0)
    (13, 7.6923076923076925)
    >>> plan(4, 400.0, rate=80.0)
    (9, 11.11111111111111)
    """
    longest = max(LONGEST_TURN, WANTED_REQUESTS / rate)
    rounds = max(FEWEST_ROUNDS, math.ceil(seconds / (arms * longest)))
    rounds += rounds % 2 == 0
    return rounds, seconds / (arms * rounds)


def least_seconds(arms: int) -> float:
    """The least load that can be shared out among that many arms."""
    return math.ceil(FEWEST_ROUNDS * SHORTEST_TURN * arms / min(SHARES.values()))


class Comparison:
    """One run over HTTP."""

    def __init__(
        self,
        results: Any,
        seconds: float,
        say: Callable[[str, float], None],
        *,
        rate: float | None,
        heap_objects: int,
        port: int | None,
    ):
        self._results = results
        self._seconds = seconds
        self._say = say
        self._rate = rate
        self._heap_objects = heap_objects
        self._port = port
        self._plans = {
            scenario: plan(len(results.arms), seconds * share) for scenario, share in SHARES.items()
        }
        self._done = 0.0  # the share of the load that is over
        # Expected of what is not load, in seconds, until it has been measured.
        self._starting, self._between = STARTING_EXPECTED, BETWEEN_EXPECTED
        self._to_start = len(WORKERS)
        self._turns_left = sum(rounds for rounds, _ in self._plans.values()) * len(results.arms)
        self._generator: Generator

    def _tell(self, what: str) -> None:
        self._say(what, self._done)

    def _left(self) -> str:
        seconds = (1 - self._done) * self._seconds
        seconds += self._turns_left * self._between + self._to_start * self._starting
        return f"{seconds:.0f} s left" if seconds < 100 else f"{math.ceil(seconds / 60)} min left"

    def run(self) -> None:
        results = self._results
        results.http["settings"] = {
            "heap_objects": self._heap_objects,
            "seconds": self._seconds,
            "workers": dict(WORKERS),
            "connections": {"open": OPEN_CONNECTIONS, "closed": CLOSED_CONNECTIONS},
            "histogram_bounds": [float(f"{bound:.4g}") for bound in BOUNDS],
            "rates": {},
            "capacity": {},
            "started": {},
            "turns": {},
        }
        with _generator(results.seed) as self._generator:
            for kind in WORKERS:
                self._tell(f"starting {kind} ({self._left()})")
                with _servers(kind, results.arms, self._port, self._heap_objects) as servers:
                    self._measure(kind, servers)

    def _measure(self, kind: str, servers: dict[str, Server]) -> None:
        results = self._results
        settings = results.http["settings"]
        began = time.monotonic()
        for arm, server in servers.items():
            server.wait(lambda arm=arm: self._tell(f"{kind}: starting {arm}"))
        settings["started"][kind] = {arm: server.started for arm, server in servers.items()}
        for server in servers.values():
            server.stop()
        self._compare(kind, servers)
        capacity = {}
        for arm, server in servers.items():
            what = f"{kind}: warming up {arm}"
            self._load(what, server, "closed", WARM_UP * math.sqrt(WORKERS[kind]))
            capacity[arm] = max(
                self._load(what, server, "closed", CAPACITY)["throughput"] for _ in range(CAPACITIES)
            )
        settings["capacity"][kind] = capacity
        rate = self._chosen_rate(kind, capacity)
        settings["rates"][kind] = rate
        self._plan_again(kind, rate)
        self._to_start -= 1
        self._starting = time.monotonic() - began
        for loop in ("open", "closed"):
            scenario = f"{kind}-{loop}"
            rounds, turn = self._plans[scenario]
            settings["turns"][scenario] = {"rounds": rounds, "seconds": turn}
            arms = list(servers)
            for number in range(rounds):
                first = number % len(arms)
                for arm in arms[first:] + arms[:first]:
                    began = time.monotonic()
                    what = f"{scenario}, round {number + 1} of {rounds}: {arm} ({self._left()})"
                    found = self._load(what, servers[arm], loop, turn, rate)
                    results.http.setdefault(scenario, {}).setdefault(arm, []).append(found)
                    self._done += SHARES[scenario] / (rounds * len(arms))
                    self._turns_left -= 1
                    self._between = time.monotonic() - began - turn

    def check_rate(self) -> None:
        turn = min(self._plans[f"{kind}-open"][1] for kind in WORKERS)
        if self._rate is not None and self._rate * turn < FEWEST_REQUESTS:
            raise ArgumentError(
                f"argument --rate: must be at least {math.ceil(FEWEST_REQUESTS / turn)} for turns of {turn:.2g} s, not "
                f"{self._rate:g}"
            )

    def _chosen_rate(self, kind: str, capacity: dict[str, float]) -> float:
        slowest = min(capacity, key=capacity.__getitem__)
        if self._rate is None:
            least = FEWEST_REQUESTS / self._plans[f"{kind}-open"][1]
            return float(f"{max(DEFAULT_UTILISATION * capacity[slowest], least):.2g}")
        # With another kind of server there are results already, in which a saturated server shows.
        if self._rate >= capacity[slowest] and not self._done:
            raise ArgumentError(
                f"argument --rate: must be below the {capacity[slowest]:,.0f} requests/s that {slowest!r} serves "
                f"behind {kind} here as fast as it can, not {self._rate:g}"
            )
        return self._rate

    def _plan_again(self, kind: str, rate: float) -> None:
        """Longer turns, and fewer of them, if `rate` leaves too few requests for each."""
        scenario, arms = f"{kind}-open", len(self._results.arms)
        planned, _ = self._plans[scenario]
        self._plans[scenario] = plan(arms, self._seconds * SHARES[scenario], rate)
        self._turns_left += (self._plans[scenario][0] - planned) * arms

    def _compare(self, kind: str, servers: dict[str, Server]) -> None:
        """The servers must answer alike."""
        returned = {}
        for arm, server in servers.items():
            server.resume()
            answer, _ = self._ask(server, {"do": "ask", "count": COMPARED})
            server.stop()
            returned[arm] = answer["answers"]
        first, *others = returned
        for other in others:
            for number, (one, two) in enumerate(zip(returned[first], returned[other], strict=True)):
                if not (
                    (one["count"], one["level"]) == (two["count"], two["level"])
                    and math.isclose(one["mean"], two["mean"], abs_tol=1e-6)
                    and math.isclose(one["variance"], two["variance"], abs_tol=1e-6)
                ):
                    raise ValidationError(
                        f"{kind}, request {number}: {first!r} answers {one}, {other!r} answers {two}"
                    )

    def _ask(
        self, server: Server, command: dict, tick: Callable[[], None] = lambda: None
    ) -> tuple[dict, bytes]:
        self._generator.order(**command, port=server.port)
        answer, payload = self._generator.answer(command.get("seconds", 0.0), tick)
        if "refused" in answer:
            server.check()
            raise ValidationError(f"the {server.kind} of arm {server.arm!r} failed: {answer['refused']}")
        return answer, payload

    def _load(self, what: str, server: Server, loop: str, seconds: float, rate: float = 0.0) -> dict:
        """One turn of an arm; the server runs for that long only."""
        memory: list[tuple[float, int]] = []

        def tick() -> None:
            memory.append((time.perf_counter(), server.rss()))
            self._tell(what)

        server.resume()
        try:
            server.check()
            earlier = server.pauses()
            cpu = server.cpu_seconds()
            command = {"do": loop, "seconds": seconds + SETTLING}
            if loop == "open":
                command |= {"rate": rate, "connections": OPEN_CONNECTIONS}
            else:
                command |= {"connections": CLOSED_CONNECTIONS}
            tick()
            answer, payload = self._ask(server, command, tick)
            cpu = server.cpu_seconds() - cpu
            tick()
            pss = server.pss()
            found = digest(answer, payload, earlier + server.pauses())
        finally:
            server.stop()
        found["cpu_seconds"] = cpu
        found["cpu_per_request"] = cpu / answer["sent"]
        found["rate"] = rate
        begin = answer["begin"] / 1e9
        found["memory"] = [[round(at - begin, 3), rss] for at, rss in memory]
        found["rss"], found["pss"] = memory[-1][1], pss
        return found


def digest(answer: dict, payload: bytes, collections: list[Pause]) -> dict:
    """What is kept of a turn: the load generator's answer, and what the server's collector did meanwhile."""
    times = array("q")
    times.frombytes(payload)
    count = answer["latencies"]
    latencies, ends, late = times[:count], times[count : 2 * count], times[2 * count :]
    begin, end = answer["begin"] + int(SETTLING * 1e9), answer["end"]
    # Of an open loop a request counts if it was due after settling; of a closed one, if it was answered after that.
    counted = sorted(
        latency / 1e9
        for latency, ended in zip(latencies, ends, strict=True)
        if ended - (latency if late else 0) >= begin
    )
    if not counted:
        raise ValidationError("no request was answered in a whole turn")
    # What is answered after the last request was due still belongs to it, and so does that time.
    seconds = (end - begin) / 1e9
    found: dict[str, Any] = {
        "seconds": seconds,
        "requests": len(counted),
        "throughput": len(counted) / seconds,
        "unanswered": answer["unanswered"],
        "backlog": answer["backlog"],
        "latency_mean": sum(counted) / len(counted),
        "latency_max": counted[-1],
        "percentiles": [[share, figures.percentile(counted, share)] for share in QUANTILES],
        "histogram": _histogram(counted),
        "generator_cpu_seconds": answer["generator_cpu_seconds"],
    }
    for share in (50, 99, 99.9):
        found[f"latency_p{share:g}"] = figures.percentile(counted, share)
    lateness = sorted(value / 1e9 for value in late)
    found["late_p99"] = figures.percentile(lateness, 99) if lateness else 0.0
    found["late_max"] = lateness[-1] if lateness else 0.0
    found["generator_late"] = found["late_p99"] > LATE
    met = [pause for pause in collections if begin <= pause.began < end]
    inside = [pause for pause in met if pause.in_flight > 0]
    found["collections"] = [sum(pause.generation == each for pause in met) for each in range(3)]
    found["full_inside"] = sum(pause.generation == 2 for pause in inside)
    outside = [pause for pause in collections if not begin <= pause.began < end]
    found["outside"] = {
        "collections": [sum(pause.generation == each for pause in outside) for each in range(3)],
        "sum": sum(pause.nanoseconds for pause in outside) / 1e9,
    }
    for name, which in (("pauses", met), ("pauses_inside", inside)):
        taken = [pause.nanoseconds / 1e9 for pause in which]
        found[f"{name}_count"] = len(taken)
        found[f"{name}_sum"] = sum(taken)
        found[f"{name}_longest"] = max(taken, default=0.0)
    kept = sorted(sorted(met, key=lambda pause: -pause.nanoseconds)[:PAUSES_KEPT])
    found["pauses"] = [
        [
            round((pause.began - begin) / 1e9, 4),
            pause.nanoseconds / 1e9,
            pause.generation,
            int(pause.in_flight > 0),
        ]
        for pause in kept
    ]
    return found


def _histogram(ordered: list[float]) -> list[list[int]]:
    """``[bucket, count]`` of each bucket that is not empty; bucket ``n`` ends at ``BOUNDS[n]``, the last has no end."""
    buckets: dict[int, int] = {}
    for latency in ordered:
        bucket = bisect_left(BOUNDS, latency)
        buckets[bucket] = buckets.get(bucket, 0) + 1
    return [[bucket, count] for bucket, count in sorted(buckets.items())]


def run(
    results: Any,
    seconds: float | None,
    say: Callable[[str, float], None],
    *,
    rate: float | None = None,
    heap_objects: int = HEAP_OBJECTS,
    port: int | None = None,
) -> None:
    """Fill ``results.http`` with `seconds` of load for all arms and scenarios together.

    ``say(what, share)`` is called several times a second. Raises `ArgumentError` for what can't be measured as asked
    for, and `ValidationError` when a server fails or the arms disagree.
    """
    comparison = Comparison(
        results,
        DEFAULT_LOAD if seconds is None else seconds,
        say,
        rate=rate,
        heap_objects=heap_objects,
        port=port,
    )
    results.complete = False
    comparison.check_rate()
    comparison.run()
    results.complete = True
