"""Runs the arms in turns, each in its own process, and collects their measurements.

Every arm gets the same corpus, and only one of them works at a time. Each round runs every arm once, and the order
rotates, so that changes in the machine's speed affect all arms alike. The processes are started fresh (never forked),
wait idle for their turn, and exit when the pipe from this process closes.
"""

import math
import os
import queue
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path

from synthex_fast.validate import figures

FEWEST_ROUNDS = 7
LONGEST_ROUND = 3.0  # seconds
SHORTEST_ROUND = 0.05
COMPARED_REQUESTS = 200
# The length of a run if no load is asked for: a minute, everything included.
DEFAULT_LOAD = 45.0
DEFAULT_TOTAL = 54.0
# Seconds beyond the requested duration after which a silent process counts as hung.
PATIENCE = 120.0


class ValidationError(Exception):
    """The comparison cannot continue; the message gives the reason in one line."""


class ArgumentError(ValidationError):
    """What was asked for cannot be measured here; the message names the option."""


@dataclass
class Results:
    """What has been measured so far. It can be reported at any moment, as after an interruption."""

    arms: tuple[str, ...]
    seed: int
    planned_rounds: int = 0
    round_seconds: float = 0.0
    corpus: dict = field(default_factory=dict)
    started: dict[str, dict] = field(default_factory=dict)
    held: dict[str, dict] = field(default_factory=dict)
    first_fill: dict[str, dict] = field(default_factory=dict)
    allocation: dict[str, dict] = field(default_factory=dict)
    sampling: dict[str, dict] = field(default_factory=dict)
    rounds: dict[str, list[dict]] = field(default_factory=dict)
    http: dict = field(default_factory=dict)  # scenario -> arm -> rounds
    limit: dict[str, list[dict]] = field(default_factory=dict)  # arm -> runs at the memory limit
    garbage: dict[str, dict] = field(default_factory=dict)
    compared: int = 0  # requests for which all arms returned the same result
    complete: bool = False
    failure: str = ""  # why the run ended early, unless it was interrupted

    def finished(self) -> int:
        """Rounds that every arm has finished."""
        return min((len(self.rounds.get(arm, ())) for arm in self.arms), default=0)


class Process:
    """An arm's process, and the pipes to and from it."""

    def __init__(self, arm: str, seed: int, module: str = ""):
        self.arm = arm
        self._name = f"the {arm}" if module else f"the process of arm {arm!r}"
        program = [module] if module else ["synthex_fast.validate.worker", arm]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (`end` closes it)
        # In a group of its own, so that a Ctrl-C reaches this process alone, which then ends the others.
        apart = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            if sys.platform == "win32"
            else {"process_group": 0}
        )
        self._popen = subprocess.Popen(
            [sys.executable, "-m", *program, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(),
            **apart,
        )
        self._answers: queue.SimpleQueue[tuple[dict, bytes] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            for line in self._popen.stdout:
                answer = loads(line)
                self._answers.put((answer, self._popen.stdout.read(answer.get("payload", 0))))
        self._answers.put(None)

    def order(self, **command) -> None:
        """Send a command to the process; `answer` waits for the result."""
        try:
            self._popen.stdin.write(dumps(command).encode() + b"\n")
            self._popen.stdin.flush()
        except OSError:
            # `answer` will find the pipe closed and report that, with the last line that the process wrote.
            pass

    def answer(self, seconds: float = 0.0, tick: Callable[[], None] = lambda: None) -> tuple[dict, bytes]:
        """The next answer, and its bytes. Calls `tick` a few times a second; an answer is due in about
        `seconds`.
        """
        deadline = time.monotonic() + seconds + PATIENCE
        while True:
            try:
                answer = self._answers.get(timeout=0.25)
            except queue.Empty:
                tick()
                if time.monotonic() > deadline:
                    raise ValidationError(f"{self._name} does not respond") from None
                continue
            if answer is None:
                raise ValidationError(f"{self._name} {self._how_it_ended()}")
            if "error" in answer[0]:
                raise ValidationError(f"arm {self.arm!r} failed: {answer[0]['error']}")
            return answer

    def _how_it_ended(self) -> str:
        status = self._popen.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        return f"{how}: {lines[-1].strip()}" if lines else how

    def kill(self) -> None:
        """Kill the process without waiting for it: it holds nothing that needs saving."""
        self._popen.kill()

    def end(self) -> None:
        """Wait for the killed process and close its pipes."""
        self._popen.wait()
        self._reader.join()
        self._popen.stdout.close()
        with suppress(OSError):
            self._popen.stdin.close()
        self._stderr.close()


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    # The same hashes in every arm, so that the order of sets does not differ between them.
    environment["PYTHONHASHSEED"] = "0"
    root = str(Path(__file__).resolve().parents[2])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        # Run from a source tree, which the child would not find by itself.
        paths = [root, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


@contextmanager
def processes(arms: tuple[str, ...], seed: int) -> Iterator[dict[str, Process]]:
    """A process for each arm; all have ended when the block exits, even with an exception."""
    started: dict[str, Process] = {}
    try:
        for arm in arms:
            started[arm] = Process(arm, seed)
        yield started
    finally:
        # All are killed before any is waited for, so that none survives a second Ctrl-C.
        for process in started.values():
            process.kill()
        for process in started.values():
            process.end()


def plan(arms: int, seconds: float) -> tuple[int, float]:
    """How many rounds, and how long each arm's turn: ``(rounds, seconds of a turn)``.

    Long runs have more rounds, not longer ones: a median of many says more.

    >>> plan(3, 42.0)
    (7, 2.0)
    >>> plan(2, 60.0)
    (11, 2.727272727272727)
    """
    rounds = max(FEWEST_ROUNDS, math.ceil(seconds / (arms * LONGEST_ROUND)))
    rounds += rounds % 2 == 0
    return rounds, seconds / (arms * rounds)


def least_seconds(arms: int) -> float:
    """The least load that `plan` can share out among that many arms."""
    return FEWEST_ROUNDS * SHORTEST_ROUND * arms


def run(results: Results, seconds: float | None, say: Callable[[str, float], None]) -> None:
    """Fill `results`, with `seconds` of load for all arms together (as much as fits into a minute if None).

    ``say(what, share)`` is called several times a second with the current activity and the share of the run that
    is done. Raises `ValidationError` when an arm's process dies or the arms disagree.
    """
    began = time.monotonic()
    arms = results.arms
    say("filling the caches once to measure their size", 0.0)
    with processes(arms, results.seed) as measured:
        for process in measured.values():
            process.answer()
            process.order(do="held")
        for arm, process in measured.items():
            results.held[arm] = process.answer(tick=lambda: say("measuring the caches", 0.02))[0]
    say("starting the arms", 0.04)
    with processes(arms, results.seed) as working:
        for arm, process in working.items():
            results.started[arm] = process.answer()[0]
        _same_corpus(results)
        for arm, process in working.items():
            say(f"{arm}: filling the caches", 0.05)
            process.order(do="first fill")
            results.first_fill[arm] = process.answer()[0]
            results.first_fill[arm]["pauses"] = [pause / 1e9 for pause in results.first_fill[arm]["pauses"]]
        _same_consensus(results, working)
        counting = time.monotonic()
        for arm, process in working.items():
            say(f"{arm}: counting allocations", 0.06)
            process.order(do="allocation")
            results.allocation[arm] = process.answer()[0]
        # A round fills the caches before its load; counting allocations took that long and some more.
        filling = FEWEST_ROUNDS * (time.monotonic() - counting)
        for arm, process in working.items():
            what = f"{arm}: a simulated day of memory samples"
            process.order(do="sampling")
            results.sampling[arm] = process.answer(tick=lambda what=what: say(what, 0.08))[0]
        if seconds is None:
            left = DEFAULT_TOTAL - (time.monotonic() - began) - filling
            seconds = max(least_seconds(len(arms)), min(DEFAULT_LOAD, left))
        rounds, turn = plan(len(arms), seconds)
        results.planned_rounds, results.round_seconds = rounds, turn
        for number in range(rounds):
            first = number % len(arms)
            for place, arm in enumerate(arms[first:] + arms[:first]):
                share = 0.1 + 0.9 * (number * len(arms) + place) / (rounds * len(arms))
                what = f"round {number + 1} of {rounds}: {arm}"
                say(what, share)
                working[arm].order(do="round", seconds=turn)
                answer, payload = working[arm].answer(turn, lambda what=what, share=share: say(what, share))
                results.rounds.setdefault(arm, []).append(_digested(answer, payload))
    results.complete = True


def _digested(answer: dict, payload: bytes) -> dict:
    latencies = array("q")
    latencies.frombytes(payload)
    if len(latencies) != answer["requests"] or not latencies:
        raise ValidationError(f"{answer['requests']} requests but {len(latencies)} latencies came back")
    del answer["payload"]
    ordered = sorted(latencies)
    for name, share in (("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)):
        answer[f"latency_{name}"] = figures.percentile(ordered, share) / 1e9
    answer["latency_max"] = ordered[-1] / 1e9
    answer["percentiles"] = [[share, figures.percentile(ordered, share) / 1e9] for share in figures.QUANTILES]
    answer["pauses"] = [pause / 1e9 for pause in answer["pauses"]]
    return answer


def _same_corpus(results: Results) -> None:
    corpora = {(started.pop("digest"), started.pop("requests")) for started in results.started.values()}
    if len(corpora) != 1:
        raise ValidationError("the arms made different corpora from the same seed")
    digest, requests = corpora.pop()
    results.corpus = {"digest": digest, "requests": requests}


def _same_consensus(results: Results, working: dict[str, Process]) -> None:
    returned = {}
    for arm, process in working.items():
        process.order(do="consensus", count=COMPARED_REQUESTS)
        returned[arm] = process.answer()[0]["consensus"]
    first, *others = returned
    for other in others:
        for number, (one, two) in enumerate(zip(returned[first], returned[other], strict=True)):
            count, mean, variance, level = one
            if not (
                (count, level) == (two[0], two[3])
                and math.isclose(mean, two[1], abs_tol=1e-6)
                and math.isclose(variance, two[2], abs_tol=1e-6)
            ):
                raise ValidationError(f"request {number}: {first!r} returns {one}, {other!r} returns {two}")
    results.compared = COMPARED_REQUESTS
