"""The package's one background thread, which frees due entries of dicts and pools that are not used.

The thread starts when the first client is scheduled and sleeps until the next entry is due. It holds its clients
weakly. Before a fork it ends, so that a preloading server forks a single-threaded process, and it starts again in
parent and child. It ends before the interpreter does.

A client has a method ``_sweep(budget) -> float``: free due entries for at most ``budget`` seconds, and return the time
(``time.monotonic()``) of the next visit, or ``math.inf`` for none until the client is scheduled again.

The lock of ``_state`` guards the agenda and the visits. It is never held during a visit, nor while a reference to a
client is dropped on purpose: both may run any Python code.
"""

import contextlib
import heapq
import itertools
import math
import sys
import threading
import time
import weakref

from synthex_fast import _lifecycle, _threads

__all__ = ["DELAY", "schedule"]

# Waiting this long lets one visit free entries that fall due close together. The dict promises a second.
DELAY = 0.25
# How long the thread may hold the interpreter at a stretch: longer the later it is, in the end as long as any thread.
_SLICE_SECONDS = 0.0001
_LATE_SLICE_SECONDS = 0.002
_LATE_SECONDS = 0.2
_PAUSE_SECONDS = 0.0001
# After how long a client whose sweep raised is visited again.
_RETRY_SECONDS = 1.0

# The lock is reentrant, because a finaliser may run in the middle of any function here and schedule a client; each step
# therefore leaves both structures consistent. An entry is (time, number, weak reference, id of the client).
_state = _threads.Condition()
_order = itertools.count()
# A heap. An entry that is not its client's entry in `_visits` was replaced, and is skipped.
_agenda: list = []
# The next visit of each client by its id; at infinity while the client is being visited.
_visits: dict = {}
_purge_at = 64
_thread = None


def schedule(client, due):
    """Schedule a call of ``client._sweep`` soon after ``due`` (seconds on the scale of ``time.monotonic()``)."""
    with _state:
        if _lifecycle.is_exiting():
            return
        entry = _plan(due + DELAY, weakref.ref(client), id(client))
        if len(_agenda) > _purge_at:
            _purge()
        if _thread is None or not _thread.is_alive():
            _start()
        elif entry is not None and _agenda[0] is entry:
            _state.notify_all()


def _plan(at, reference, key):
    """Plan a visit, unless an earlier one is planned. Returns the new entry or None."""
    planned = _visits.get(key)
    # weakref.ref returns the same reference for the same object, so another one belongs to a dead client whose id this
    # client has now.
    if planned is not None and planned[2] is reference and planned[0] <= at:
        return None
    entry = (at, next(_order), reference, key)
    heapq.heappush(_agenda, entry)
    _visits[key] = entry
    return entry


def _forget(entry):
    if _visits.get(entry[3]) is entry:
        del _visits[entry[3]]


def _purge():
    """Drop replaced entries and those of dead clients, so that short-lived clients don't accumulate."""
    global _purge_at
    kept = []
    try:
        while _agenda:
            entry = heapq.heappop(_agenda)
            if _visits.get(entry[3]) is entry:
                if entry[2]() is None:
                    _forget(entry)
                else:
                    kept.append(entry)
    finally:
        for entry in kept:
            heapq.heappush(_agenda, entry)
    _purge_at = max(64, 2 * len(_agenda))


def _start():
    global _thread
    _thread = _threads.new_thread(_run, "synthex-fast-sweeper")
    try:
        _thread.start()
    except BaseException:
        _thread = None
        raise


def _run(me):
    slice_ends = math.inf
    while True:
        try:
            with _state:
                if _thread is not me:
                    return
                entry, wait = _next_visit()
                if entry is None:
                    slice_ends = math.inf
                    _state.wait(wait)
                    continue
            if time.monotonic() >= slice_ends:
                # Gives waiting threads a chance to take the interpreter.
                _threads.sleep(_PAUSE_SECONDS)
                slice_ends = math.inf
            now = time.monotonic()
            if slice_ends == math.inf:
                slice_ends = now + _slice_seconds(now - entry[0])
            _visit(me, entry, slice_ends - now)
        except MemoryError:
            # Another thread may free some memory.
            _threads.sleep(DELAY)


def _slice_seconds(late):
    if late < _LATE_SECONDS:
        return _SLICE_SECONDS
    return (
        _LATE_SLICE_SECONDS if late < 2 * _LATE_SECONDS else max(_LATE_SLICE_SECONDS, sys.getswitchinterval())
    )


def _next_visit():
    """(entry, 0) for an entry whose time has come, now marked as being visited; otherwise (None, seconds to wait)."""
    while _agenda:
        entry = _agenda[0]
        if _visits.get(entry[3]) is not entry:
            heapq.heappop(_agenda)
            continue
        wait = entry[0] - time.monotonic()
        if wait > 0:
            return None, wait
        # The client stays in `_visits` throughout: it may be scheduled, or the process forked, during the visit.
        _visits[entry[3]] = (math.inf, next(_order), entry[2], entry[3])
        heapq.heappop(_agenda)
        return entry, 0.0
    return None, None


def _visit(me, entry, budget):
    at, _, reference, key = entry
    again = math.inf
    client = reference()
    if client is not None:
        try:
            again = client._sweep(budget)
        except BaseException:
            again = time.monotonic() + _RETRY_SECONDS
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), me)))
        # This may be the last reference, so the lock must not be held.
        del client
    with _state:
        planned = _visits.get(key)
        if planned is None or planned[2] is not reference:
            # The client died, and another one has reused its id.
            return
        now = time.monotonic()
        if again > now:
            again += DELAY
        else:
            # A client with more to free keeps its time, so that its lateness lengthens the slices, within a bound that
            # leaves the others their turn.
            again = max(at, now - 2 * _LATE_SECONDS)
        if again < math.inf:
            _plan(again, reference, key)
            # If a fork did not wait for this visit, another thread has taken over and may be asleep.
            _state.notify_all()
        elif planned[0] == math.inf:
            del _visits[key]


def _stop():
    """End the thread, and wait for it unless it is the caller (a fork inside an eviction callback)."""
    global _thread
    with _state:
        thread, _thread = _thread, None
        _state.notify_all()
    # Bounded, because an eviction callback may be waiting for a lock that the caller holds.
    _threads.join(thread, 1.0)


def _resume():
    with _state:
        if _visits and _thread is None and not _lifecycle.is_exiting():
            # If no thread can be started, the next schedule() tries again.
            with contextlib.suppress(Exception):
                _start()


def _resume_in_child():
    global _state, _thread
    _state = _threads.Condition()
    _thread = None
    now = time.monotonic()
    for at, _, reference, key in list(_visits.values()):
        # It was being visited by a thread that exists only in the parent.
        if at == math.inf:
            _plan(now, reference, key)
    _resume()


_lifecycle.register(
    _lifecycle.Stage.SWEEPER,
    before=_stop,
    after_in_parent=_resume,
    after_in_child=_resume_in_child,
    at_exit=_stop,
)
