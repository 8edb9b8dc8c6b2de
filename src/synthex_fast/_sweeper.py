"""One thread for the whole package that frees what fell due in dicts and pools that nobody touches.

It sleeps until the next entry is due, starts when the first one is scheduled, holds its clients weakly, steps aside
for a fork (so that a preloading server forks a single-threaded process), goes on in the child, and ends before the
interpreter does.

A client has a method ``_sweep(budget) -> float``: free what is due for at most ``budget`` seconds and return the time
(``time.monotonic()``) at which to come again, ``math.inf`` for not at all.
"""

import atexit
import contextlib
import heapq
import itertools
import math
import os
import threading
import time
import weakref

__all__ = ["DELAY", "schedule"]

# Entries that fall due close together are freed in one waking. Well under the second that the dict promises.
DELAY = 0.25
# How long a slice may hold the interpreter: short while on time, longer the later it is.
_SLICE_SECONDS = 0.0001
_LATE_SLICE_SECONDS = 0.002
_LATE_SECONDS = 0.5

_order = itertools.count()
_state = threading.Condition()
_agenda: list = []
_purge_at = 64
_thread: threading.Thread | None = None
_over = False


def schedule(client, due):
    """See to it that ``client._sweep`` runs soon after ``due`` (seconds on the scale of ``time.monotonic()``)."""
    global _agenda, _purge_at
    reference = weakref.ref(client)
    with _state:
        if _over:
            return
        heapq.heappush(_agenda, (due + DELAY, next(_order), reference))
        if len(_agenda) > _purge_at:
            # Many short-lived clients with distant deadlines must not pile up here.
            _agenda = [entry for entry in _agenda if entry[2]() is not None]
            heapq.heapify(_agenda)
            _purge_at = max(64, 2 * len(_agenda))
        if _thread is None:
            _start()
        elif _agenda[0][2] is reference:
            _state.notify()


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
    while True:
        with _state:
            if _thread is not me:
                return
            if not _agenda:
                _state.wait()
                continue
            wait = _agenda[0][0] - time.monotonic()
            if wait > 0:
                _state.wait(min(wait, threading.TIMEOUT_MAX))
                continue
            due, _, reference = heapq.heappop(_agenda)
        client = reference()
        if client is None:
            continue
        late = time.monotonic() - due
        again = client._sweep(_LATE_SLICE_SECONDS if late > _LATE_SECONDS else _SLICE_SECONDS)
        del client
        if again < math.inf:
            with _state:
                # A client that has more to free keeps its place, so that its lateness shows.
                at = due if again <= time.monotonic() else again + DELAY
                heapq.heappush(_agenda, (at, next(_order), reference))
        # Lets the threads that wait for the interpreter go first.
        time.sleep(_SLICE_SECONDS)


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
        if _agenda and _thread is None and not _over:
            # Without a thread to be had, the next schedule() tries again.
            with contextlib.suppress(RuntimeError):
                _start()


def _resume_in_child():
    global _state, _thread
    _state = threading.Condition()
    _thread = None
    _resume()


def _finish():
    global _over
    _over = True
    _stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_stop, after_in_parent=_resume, after_in_child=_resume_in_child)
atexit.register(_finish)
