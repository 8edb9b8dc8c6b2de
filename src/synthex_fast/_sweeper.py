"""One thread for the whole package that frees what fell due in dicts and pools that nobody touches.

It sleeps until the next entry is due, starts when the first one is scheduled, holds its clients weakly, steps aside
for a fork (so that a preloading server forks a single-threaded process), goes on in the child, and ends before the
interpreter does.

A client has a method ``_sweep(budget) -> float``: free what is due for at most ``budget`` seconds and return the time
(``time.monotonic()``) at which to come again, ``math.inf`` for not before it is scheduled anew.
"""

import atexit
import contextlib
import heapq
import itertools
import math
import os
import sys
import threading
import time
import weakref

__all__ = ["DELAY", "schedule"]

# Entries that fall due close together are freed in one waking. Well under the second that the dict promises.
DELAY = 0.25
# How long a slice may hold the interpreter: short while on time, longer the later, at last as long as any thread.
_SLICE_SECONDS = 0.0001
_LATE_SLICE_SECONDS = 0.002
_LATE_SECONDS = 0.2
_PAUSE_SECONDS = 0.0001
# When a client is tried again whose sweep raised.
_RETRY_SECONDS = 1.0

# A finaliser may run wherever Python code does, in here too, and schedule a client: the lock lets its own thread in,
# and each step leaves both structures sound. An entry is (time, number, weak reference, id of the client).
_state = threading.Condition()
_order = itertools.count()
# A heap. An entry that is not its client's in `_visits` has been replaced, and is passed over.
_agenda: list = []
# The next visit of each client by its id; at infinity while the client is being visited.
_visits: dict = {}
_purge_at = 64
_thread: threading.Thread | None = None
_over = False


def schedule(client, due):
    """See to it that ``client._sweep`` runs soon after ``due`` (seconds on the scale of ``time.monotonic()``)."""
    with _state:
        if _over:
            return
        entry = _plan(due + DELAY, weakref.ref(client), id(client))
        if len(_agenda) > _purge_at:
            _purge()
        if _thread is None or not _thread.is_alive():
            _start()
        elif entry is not None and _agenda[0] is entry:
            _state.notify()


def _plan(at, reference, key):
    """Plan a visit unless one is planned that is no later. The entry, if it is a new one."""
    planned = _visits.get(key)
    # References to one object are one, so that of a client that is gone, whose id this one has now, is another.
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
    """Drop what has been replaced and whose client is gone: many short-lived ones must not pile up here."""
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
    _thread = threading.Thread(target=_run, name="synthex-fast-sweeper", daemon=True)
    try:
        _thread.start()
    except BaseException:
        _thread = None
        raise


def _run():
    me = threading.current_thread()
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
                # Lets the threads that wait for the interpreter go first.
                time.sleep(_PAUSE_SECONDS)
                slice_ends = math.inf
            now = time.monotonic()
            if slice_ends == math.inf:
                slice_ends = now + _slice_seconds(now - entry[0])
            _visit(entry, slice_ends - now)
        except MemoryError:
            # Perhaps another thread frees some.
            time.sleep(DELAY)


def _slice_seconds(late):
    if late < _LATE_SECONDS:
        return _SLICE_SECONDS
    return (
        _LATE_SLICE_SECONDS if late < 2 * _LATE_SECONDS else max(_LATE_SLICE_SECONDS, sys.getswitchinterval())
    )


def _next_visit():
    """The entry whose time has come, now marked as being visited; or None, and the seconds to wait."""
    while _agenda:
        entry = _agenda[0]
        if _visits.get(entry[3]) is not entry:
            heapq.heappop(_agenda)
            continue
        wait = entry[0] - time.monotonic()
        if wait > 0:
            return None, min(wait, threading.TIMEOUT_MAX)
        # Known all the time to those who schedule it meanwhile, and to a process forked meanwhile.
        _visits[entry[3]] = (math.inf, next(_order), entry[2], entry[3])
        heapq.heappop(_agenda)
        return entry, 0.0
    return None, None


def _visit(entry, budget):
    at, _, reference, key = entry
    again = math.inf
    client = reference()
    if client is not None:
        try:
            again = client._sweep(budget)
        except BaseException:
            again = time.monotonic() + _RETRY_SECONDS
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
        # Perhaps the last reference: nothing may be locked.
        del client
    with _state:
        planned = _visits.get(key)
        if planned is None or planned[2] is not reference:
            # It has died, and the id is another client's.
            return
        now = time.monotonic()
        if again > now:
            again += DELAY
        else:
            # One that has more to free keeps its place, so that its lateness shows, but can't keep others waiting.
            again = max(at, now - 2 * _LATE_SECONDS)
        if again < math.inf:
            _plan(again, reference, key)
            # A fork did not wait for this visit: another thread has taken over, and sleeps.
            _state.notify()
        elif planned[0] == math.inf:
            del _visits[key]


def _stop():
    """End the thread, unless it is the one that asks (a fork inside an eviction callback)."""
    global _thread
    with _state:
        thread, _thread = _thread, None
        _state.notify_all()
    if thread is not None and thread is not threading.current_thread():
        # Bounded: a callback of the user's may be waiting for a lock that the caller holds.
        thread.join(1.0)


def _resume():
    with _state:
        if _visits and _thread is None and not _over:
            # Without a thread to be had, the next schedule() tries again.
            with contextlib.suppress(Exception):
                _start()


def _resume_in_child():
    global _state, _thread
    _state = threading.Condition()
    _thread = None
    now = time.monotonic()
    for at, _, reference, key in list(_visits.values()):
        # The thread that visited it is the parent's.
        if at == math.inf:
            _plan(now, reference, key)
    _resume()


def _finish():
    global _over
    _over = True
    _stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_stop, after_in_parent=_resume, after_in_child=_resume_in_child)
atexit.register(_finish)
