"""How the benches time: medians of interleaved rounds, so that the machine's drift affects both sides alike.

A claim is a function that returns a `Comparison`. Nanoseconds say little on a shared machine; the ratio of
two things timed in turns says a lot, so it is taken within each round and reported as median and quartiles.
"""

import gc
import os
import statistics
import threading
import time
from time import perf_counter_ns
from typing import NamedTuple

# Rounds when a claim names none, and how long one side of one round runs at least. Many short rounds: where
# other processes take turns on the machine, an interruption then spoils a few of them, and the median none.
QUICK = bool(os.environ.get("SYNTHEX_BENCH_QUICK"))
ROUNDS = 201
ROUND_SECONDS = 0.002
if QUICK:
    ROUNDS, ROUND_SECONDS = 41, 0.001


# What is compared neither waits nor uses other threads, so its processor time is its time, less what other
# processes took in between. Windows counts that in ticks of 15 ms only.
_FINE = time.get_clock_info("thread_time").resolution <= 1e-6
_clock = time.thread_time_ns if _FINE else perf_counter_ns


class Comparison(NamedTuple):
    """What one claim measured; ``ratio`` is ours divided by the rival's, so smaller is better."""

    ours_ns: float
    rival_ns: float
    ratio: float
    spread: tuple[float, float]  # lower and upper quartile of the rounds' ratios
    note: str = ""  # what else a reader of the figure should know


class NotMeasuredError(Exception):
    """A claim can't be measured here; the message says what is missing."""


def statement(source, /, *, inner=1000, unroll=10, **names):
    """A callable that runs ``source`` about ``inner`` times with ``names`` as locals.

    Its attribute ``inner`` is the exact count. The statement is written out ``unroll`` times in the loop's
    body, so that the loop itself, the same on both sides, doesn't pull the ratio towards 1.

    >>> run = statement("items.append(1); items.pop()", items=[])
    >>> run(), run.inner
    (None, 1000)
    """
    trips = max(1, inner // unroll)
    body = "\n".join(f"        {line}" for _ in range(unroll) for line in source.strip().splitlines())
    arguments = "".join(f", {name}={name}" for name in names)
    # As default arguments the names are fast locals, the way a hot loop in a service would hold them.
    code = f"def run(trips={trips}{arguments}):\n    for _ in range(trips):\n{body}\n"
    scope = dict(names)
    exec(compile(code, "<statement>", "exec"), scope)
    run = scope["run"]
    run.inner = trips * unroll
    return run


def _calls_for(call, seconds):
    """How many calls take ``seconds`` together."""
    calls = 1
    while True:
        start = _clock()
        for _ in range(calls):
            call()
        if _clock() - start >= seconds * 1e9:
            return calls
        calls *= 2


def _time(call, calls, prepare):
    if prepare is not None:
        prepare()
    start = _clock()
    for _ in range(calls):
        call()
    return _clock() - start


def compare(ours, rival, *, rounds=None, inner=None, seconds=None, prepare_ours=None, prepare_rival=None):
    """Time two callables in alternating order and return a `Comparison` of nanoseconds per operation.

    ours, rival: take no argument and do the operation ``inner`` times a call (`statement` makes such
    callables and knows its count; otherwise ``inner`` is 1 unless given). ``seconds``: how long one side of
    one round runs at least. ``prepare_ours``, ``prepare_rival``: run before each timing and are not timed;
    the call is then made once a round, since it may use up what was prepared. The cyclic collector is off
    while the clock runs, as in `timeit`: what it costs is measured by ``synthex-fast validate``.
    """
    rounds = ROUNDS if rounds is None else rounds
    seconds = ROUND_SECONDS if seconds is None else seconds
    inner_ours = inner if inner is not None else getattr(ours, "inner", 1)
    inner_rival = inner if inner is not None else getattr(rival, "inner", 1)
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        calls_ours = _calls_for(ours, seconds) if prepare_ours is None else 1
        calls_rival = _calls_for(rival, seconds) if prepare_rival is None else 1
        took_ours, took_rival = [], []
        for n in range(rounds):
            if n % 2:
                b = _time(rival, calls_rival, prepare_rival)
                a = _time(ours, calls_ours, prepare_ours)
            else:
                a = _time(ours, calls_ours, prepare_ours)
                b = _time(rival, calls_rival, prepare_rival)
            took_ours.append(a / (calls_ours * inner_ours))
            took_rival.append(b / (calls_rival * inner_rival))
    finally:
        if enabled:
            gc.enable()
    return summary(took_ours, took_rival)


class Cost(NamedTuple):
    """Nanoseconds per operation: the median of the rounds, and their lower and upper quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values):
        """The cost that the values, one for each round, come to."""
        low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        return cls(median, low, high)


def in_turns(calls, *, rounds=None, seconds=None, prepare=None):
    """The `Cost` of several callables by name, each timed once a round, in an order that rotates.

    ``calls`` are as in `compare`, and so are the clock and the rest. ``prepare`` has functions by the same names that
    run before each timing and are not timed; a callable with one is called once a round.
    """
    rounds = ROUNDS if rounds is None else rounds
    seconds = ROUND_SECONDS if seconds is None else seconds
    prepare = prepare or {}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        names = list(calls)
        count = {name: 1 if name in prepare else _calls_for(calls[name], seconds) for name in names}
        took = {name: [] for name in names}
        for n in range(rounds):
            for name in names[n % len(names) :] + names[: n % len(names)]:
                spent = _time(calls[name], count[name], prepare.get(name))
                took[name].append(spent / (count[name] * getattr(calls[name], "inner", 1)))
    finally:
        if enabled:
            gc.enable()
    return {name: Cost.of(values) for name, values in took.items()}


def summary(ours, rival):
    """The `Comparison` of two lists of per-round figures (of any unit), taken in pairs."""
    ratios = [a / b for a, b in zip(ours, rival, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    medians = (statistics.median(values) for values in (ours, rival, ratios))
    return Comparison(*medians, spread=(low, high))


def paired(samples, note=""):
    """A `Comparison` of any figures: ``samples`` are pairs of ours and the rival's, one a round."""
    return summary(*zip(*samples, strict=True))._replace(note=note)


def _run_threads(works):
    """Wall nanoseconds from the moment all threads reach the barrier until the last one finishes."""
    start = [0]

    def begin():
        start[0] = perf_counter_ns()

    barrier = threading.Barrier(len(works), action=begin)
    ends = [0] * len(works)

    def run(n, work):
        barrier.wait()
        work()
        ends[n] = perf_counter_ns()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(ends) - start[0]


def scaling(make_work, *, threads=2, rounds=None):
    """How the throughput of ``threads`` threads compares with that of one, in a thread of its own too.

    ``make_work(n)`` returns the callable for thread ``n``; every call of it does the same amount of work. In
    the result ``ours_ns`` is the time of ``threads`` threads, ``rival_ns`` that of one, and ``ratio`` is how
    many times the throughput of one thread was reached, so here larger is better. A round needs as many idle
    cores as threads: if other processes need them too, the result means nothing.
    """
    if rounds is None:
        rounds = 11 if QUICK else 41
    many, one = [], []
    for n in range(rounds):
        order = ((threads, many), (1, one)) if n % 2 else ((1, one), (threads, many))
        for count, times in order:
            times.append(_run_threads([make_work(index) for index in range(count)]))
    ratios = [threads * single / several for several, single in zip(many, one, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    medians = (statistics.median(values) for values in (many, one, ratios))
    return Comparison(*medians, spread=(low, high))
