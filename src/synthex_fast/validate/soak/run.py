"""Starts the workers, follows their progress, and collects their records."""

import math
import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from synthex_fast.validate.soak import worker
from synthex_fast.validate.soak.workload import DAY, HOUR, MINUTE, arrived

DEFAULT_SECONDS = 60.0
# A worker checks, measures the floor and ends within this, once it has been told to stop.
STOP_SECONDS = 60.0
# One that sends nothing for so long hangs. A check takes a few seconds at most.
PATIENCE = 300.0


class SoakError(Exception):
    """The soak cannot continue; the message gives the reason in one line."""


@dataclass
class Results:
    """What the workers have sent so far. It can be reported at any moment, as after an interruption."""

    seed: int
    rate: float
    processes: int
    requests: int | None
    seconds: float | None
    records: list[list[dict[str, Any]]] = field(default_factory=list)  # of each worker, in order of time
    failures: list[str] = field(default_factory=list)
    complete: bool = False
    broken: bool = False  # a worker has died or hangs, so that not all was checked

    def __post_init__(self) -> None:
        self.records = [[] for _ in range(self.processes)]

    def last(self) -> list[dict[str, Any]]:
        """Each worker's last record, of those that have any."""
        return [records[-1] for records in self.records if records]

    @property
    def simulated(self) -> float:
        """Simulated seconds that every worker has played and checked."""
        return min((records[-1]["simulated"] if records else 0.0 for records in self.records), default=0.0)

    def plans(self) -> list[worker.Plan]:
        """What each worker plays: an equal part of the traffic."""
        plans = []
        for number in range(self.processes):
            requests = self.requests
            if requests is not None:
                requests = requests * (number + 1) // self.processes - requests * number // self.processes
            plans.append(worker.Plan(number, self.seed, self.rate / self.processes, requests, self.seconds))
        return plans


class _Worker:
    """A worker's process and the connection to it."""

    def __init__(self, plan: worker.Plan) -> None:
        # Fresh, never forked: it has nothing of this process, and so no floor of its memory.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=worker.run, args=(plan, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.number = plan.worker
        self.requests, self.simulated = 0, 0.0
        self.over = False
        self.heard = time.monotonic()

    def stop(self) -> None:
        if not self.over:
            try:
                self.connection.send("stop")
            except OSError:
                self.over = True


Show = Callable[[str, float, str], None]


def run(results: Results, show: Show) -> None:
    """Fill `results`. Calls ``show(what, share, hour)`` several times a second: the present figures, the share that is
    done, and a line for each simulated hour, empty in between.

    On an exception, such as KeyboardInterrupt, workers are told to stop, and what they have so far is collected before
    it goes on. Raises `SoakError` if a worker dies.
    """
    workers: list[_Worker] = []
    try:
        for plan in results.plans():
            workers.append(_Worker(plan))
        began = time.monotonic()
        try:
            _follow(results, workers, show, began, math.inf)
        except SoakError:
            results.broken = True
            raise
        except BaseException:
            _stop(results, workers, show, began)
            raise
        if results.failures:
            _stop(results, workers, show, began)
        results.complete = not results.failures
    finally:
        for each in workers:
            each.process.kill()
        for each in workers:
            each.process.join()
            each.connection.close()


def _stop(results: Results, workers: list[_Worker], show: Show, began: float) -> None:
    for each in workers:
        each.stop()
    # A worker that has died in the meantime is not the reason why this ends.
    with suppress(SoakError):
        _follow(results, workers, show, began, time.monotonic() + STOP_SECONDS)


def _follow(results: Results, workers: list[_Worker], show: Show, began: float, until: float) -> None:
    """Receive what the workers send until all are done, one has failed, or it is late."""
    hours = int(results.simulated // HOUR)
    while not all(each.over for each in workers):
        now = time.monotonic()
        if now > until:
            return
        by_connection = {each.connection: each for each in workers if not each.over}
        for ready in wait(list(by_connection), timeout=0.25):
            assert isinstance(ready, Connection)
            each = by_connection[ready]
            each.heard = now
            _receive(results, each)
        for each in workers:
            if not each.over and now - each.heard > PATIENCE:
                raise SoakError(f"worker {each.number + 1} does not respond")
        share = _share(results, workers, now - began)
        hour = ""
        if int(results.simulated // HOUR) > hours:
            hours = int(results.simulated // HOUR)
            hour = _hour_line(results, hours, share, now - began)
        show(_what(results, workers, share, now - began), share, hour)
        if results.failures and until == math.inf:
            return


def _receive(results: Results, each: _Worker) -> None:
    try:
        message = each.connection.recv()
    except (EOFError, OSError):
        each.process.join()
        code = each.process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
        raise SoakError(f"worker {each.number + 1} {how}") from None
    match message:
        case {"progress": progress}:
            each.requests, each.simulated = progress["requests"], progress["simulated"]
        case {"record": record}:
            results.records[each.number].append(record)
            each.requests, each.simulated = record["requests"], record["simulated"]
        case {"failed": lines}:
            results.failures += lines
            each.over = True
        case {"error": error}:
            raise SoakError(f"worker {each.number + 1} failed: {error}")
        case _:
            each.over = True


def _share(results: Results, workers: list[_Worker], seconds: float) -> float:
    """The share of the run that is done: of requests or of time, whichever ends it first."""
    share = 0.0
    if results.requests is not None:
        share = sum(each.requests for each in workers) / results.requests
    if results.seconds is not None:
        share = max(share, seconds / results.seconds)
    return min(1.0, share)


def duration(seconds: float) -> str:
    """Format a duration for people.

    >>> duration(42), duration(1_930), duration(7_260)
    ('42 s', '32 min', '2 h 01 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5_400:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def _left(share: float, seconds: float) -> str:
    # The first second says little.
    return f", about {duration(seconds * (1 - share) / share)} left" if share > 0.002 and seconds > 2 else ""


def _what(results: Results, workers: list[_Worker], share: float, seconds: float) -> str:
    requests = sum(each.requests for each in workers)
    simulated = min(each.simulated for each in workers)
    return (
        f"simulated {simulated / HOUR:.2f} h, {requests:,} requests, "
        f"{requests / max(seconds, 1e-9):,.0f}/s{_left(share, seconds)}"
    )


def planned_hours(requests: int, rate: float) -> float:
    """Simulated hours, to the minute, until so many requests have arrived.

    >>> planned_hours(86_400_000, 1_000)
    24.0
    """
    low, high = 0, int(2 * requests / rate / MINUTE) + 2 * DAY // MINUTE
    while low < high:
        middle = (low + high) // 2
        if round(arrived(rate, middle * MINUTE)) >= requests:
            high = middle
        else:
            low = middle + 1
    return low * MINUTE / HOUR


def _hour_line(results: Results, hour: int, share: float, seconds: float) -> str:
    last = results.last()
    requests = sum(record["requests"] for record in last)
    full = sum(record["collections"][2] for record in last)
    floors = [record["floor"]["bytes"] / 2**20 for record in last if record["floor"]]
    floor = f"floor {sum(floors):.1f} MiB, " if floors else ""
    planned = "" if results.requests is None else f" of {planned_hours(results.requests, results.rate):.0f}"
    return (
        f"hour {hour}{planned}: {requests:,} requests, {requests / seconds:,.0f}/s, checks passed, "
        f"{floor}{full} full collections{_left(share, seconds)}"
    )


def is_whole_days(results: Results) -> bool:
    """Whether the daily cycle is over, so that the rate was the one asked for.

    >>> is_whole_days(Results(1, 1000.0, 2, 1000, None))
    False
    """
    return results.simulated >= DAY - 1 and (results.simulated + 1) % DAY <= 2
