"""One worker of the soak: plays its share of the traffic, checks at every simulated hour, and sends records.

It runs in a process of its own, or in the caller's. What it sends are dicts of plain values: ``{"progress": ...}``
several times a second, ``{"record": ...}`` at each check, and at the end one of ``{"done": ...}``, ``{"failed": ...}``
and ``{"error": ...}``.
"""

import gc
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from synthex_fast import PooledExpertQuery, PooledExpertResponse, ResponseBuffer
from synthex_fast.validate import corpus, process_memory
from synthex_fast.validate.soak import checks
from synthex_fast.validate.soak.service import Service
from synthex_fast.validate.soak.workload import HOUR, MINUTE, Clock, Traffic

# When everything is warm: the floor is compared with the one measured then.
WARM = 10 * MINUTE
PROGRESS_SECONDS = 0.25


@dataclass(frozen=True)
class Plan:
    """What a worker plays: at least one of ``requests`` and ``seconds`` (of real time) ends it."""

    worker: int
    seed: int
    rate: float
    requests: int | None
    seconds: float | None


class Collections:
    """Counts the garbage collector's runs by generation, and the longest pause of each."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0]
        self.longest = [0.0, 0.0, 0.0]
        self._began = 0.0

    def callback(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
            return
        pause, generation = time.perf_counter() - self._began, info["generation"]
        self.counts[generation] += 1
        if pause > self.longest[generation]:
            self.longest[generation] = pause


class Player:
    """Plays a plan. `send` gets what is to be told; `stopped` is asked a few times a second."""

    def __init__(
        self, plan: Plan, send: Callable[[dict[str, Any]], None], stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._plan = plan
        self._send, self._stopped = send, stopped
        self._corpus = corpus.make(plan.seed)
        self._traffic = Traffic(plan.seed, plan.worker, plan.rate, len(self._corpus))
        self._counts, self._arriving = self._traffic.counts(), self._traffic.requests()
        self._clock = Clock()
        # Imported on first use otherwise, and counted as growth.
        ResponseBuffer(1, 1).columns()
        self.service = Service(self._clock)
        self._collections = Collections()
        self._first_floor: checks.Floor | None = None

    def play(self) -> None:
        """Play until the plan's end, a failed check, or a stop."""
        gc.callbacks.append(self._collections.callback)
        try:
            self._begin = time.perf_counter()
            self._cpu = time.process_time()
            failures, ended = self._play()
            if not failures:
                failures = self._check("end")
        finally:
            gc.callbacks.remove(self._collections.callback)
            self.service.close()
        if failures:
            hour = self._clock.now / HOUR
            self._send({"failed": [failure.line(self._plan.worker, hour) for failure in failures]})
        else:
            self._send({"done": ended})

    def _play(self) -> tuple[list[checks.Failure], bool]:
        """The failures of a check, and whether the plan's end was reached."""
        plan, clock, service = self._plan, self._clock, self.service
        handle, requests, arriving = service.handle, self._corpus, self._arriving
        left = float("inf") if plan.requests is None else plan.requests
        deadline = self._begin + (float("inf") if plan.seconds is None else plan.seconds)
        next_progress = 0.0
        for second, count in enumerate(self._counts):
            clock.now = begin = float(second)
            if second == WARM or (second and second % HOUR == 0 and left > 0):
                failures = self._check("warm" if second == WARM else "hour")
                if failures:
                    return failures, False
            real = time.perf_counter()
            if real >= next_progress:
                next_progress = real + PROGRESS_SECONDS
                self._send({"progress": {"requests": service.requests, "simulated": begin}})
                if self._stopped():
                    return [], False
            if left <= 0 or real >= deadline:
                return [], True
            count = int(min(count, left))
            left -= count
            service.tick(second, count)
            for place, (user, asked, life, rank, extra) in enumerate(islice(arriving, count)):
                clock.now = begin + place / count
                handle(user, requests[asked], life, rank, extra)
        raise AssertionError("seconds do not end")

    def _check(self, kind: str) -> list[checks.Failure]:
        failures = checks.accounts_and_limits(self.service)
        record = self._record(kind)
        floor = checks.floor(self.service, self._release)
        record["floor"] = None if floor is None else floor._asdict()
        # Last of all: it imports parts of numpy, which would be seen as growth.
        record["leak"] = self.service.leak() if kind == "end" else ""
        if self._first_floor is None:
            self._first_floor = floor
        elif floor is not None:
            failures += checks.floor_moved(self._first_floor, floor)
        self._send({"record": record})
        return failures

    def _release(self) -> None:
        """In the copy in which the floor is measured: what has been drawn and has yet to arrive is no growth."""
        self._counts.close()
        self._arriving.close()

    def _record(self, kind: str) -> dict[str, Any]:
        service = self.service
        records = [PooledExpertQuery.stats, PooledExpertResponse.stats]
        pool = service.scratch.stats
        return {
            "kind": kind,
            "simulated": self._clock.now,
            "real": time.perf_counter() - self._begin,
            "cpu": time.process_time() - self._cpu,
            "requests": service.requests,
            "resident": process_memory.resident(),
            "peak": process_memory.peak(),
            "collections": list(self._collections.counts),
            "longest_pauses": list(self._collections.longest),
            "longest_in_request": service.worst_in_request(),
            "records_reused": int(sum(found["reused"] for found in records)),
            "records_created": int(sum(found["created"] for found in records)),
            "pool_reused": pool["reused"],
            "pool_created": pool["created"],
            "dicts": {
                kept.name: {"entries": len(kept.dict), "nbytes": kept.dict.nbytes, **kept.removed}
                for kept in service.kept()
            },
            "batches_too_large": service.all_too_large + service.too_large,
            "batches_paused": service.all_paused + service.paused,
            "pressure_calls": service.pressure_calls,
            "governor": {name: done["count"] for name, done in service.governor.stats["actions"].items()},
            "reloads": service.reloads,
            "monitor_samples": service.samples,
            "monitor_cpu": service.sample_cpu,
            "monitor_bytes": service.monitor.nbytes,
        }


def run(plan: Plan, connection: Connection) -> None:
    """A worker's process. It ends when the other side says stop, or is gone."""
    # Ctrl-C reaches the whole group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def stopped() -> bool:
        return connection.poll() and connection.recv() == "stop"

    try:
        Player(plan, connection.send, stopped).play()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # Nobody is left to be told.
        return
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}, line {where.lineno}"
        connection.send({"error": f"{type(error).__name__}: {error} ({place})"})
