"""Who acts for a governor and when: turns, the thread, forks and the interpreter's exit.

A governor acts in whichever thread asks: its own (`Worker`), its monitor's, or the caller's of `check`. One at a time
does, the *actor*. A thread that finds another one acting returns at once, and the actor reads memory again for it.

``state`` is the only lock. It guards the fields of `Worker`, and is never held while memory is read, a component is
called or a callback runs. It is reentrant, since a finaliser may run wherever Python code does, in a critical section
too; each step leaves all fields consistent.

Before a fork the threads end, so that a preloading server forks a process that has none. Then the forking thread takes
each ``state`` and holds it over the fork, so that the child can release it. It does so after the monitors' threads have
ended, since one of them may be the actor. Afterwards parent and child start threads of their own.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

from synthex_fast import _lifecycle, _threads, _unraisable
from synthex_fast._fleet._watch import Watch
from synthex_fast._pressure import WARNING
from synthex_fast.governor import policy

if TYPE_CHECKING:
    from typing import Protocol

    class Target(Protocol):
        """What a worker needs from its governor."""

        _interval: float
        """Seconds until memory is to be read again."""

        def _rest(self) -> float: ...
        def _watch(self, watch: Watch) -> float: ...
        def _step(self, sample: object = None) -> None: ...
        def _restore(self) -> None: ...
        def _notify_emergency(self) -> None: ...
        def stop(self) -> None: ...


__all__ = ["Worker", "is_acting"]

# How often one thread reads memory again because others asked during its turn; then the governor's own does it.
ROUNDS = 3
# How long one thread waits for another. Bounded: a callback may be waiting for a lock that the waiting thread holds.
WAIT_SECONDS = 1.0

# How many governors a thread acts for. A number: greenlets that share a thread may take turns in any order.
_acting = _threads.local()


def is_acting() -> bool:
    """Whether this thread acts for a governor: it must not wait for a buffer that only it would resume."""
    return getattr(_acting, "depth", 0) > 0


class Worker:
    """Takes turns at acting for one governor, and has a thread for it while something is planned."""

    def __init__(self) -> None:
        self.state = _threads.Condition()
        # The governor while it is running, else None.
        self.target: Target | None = None
        self.thread: _threads.Thread | None = None
        # When the thread is to act next, by `time.monotonic`.
        self.due = math.inf
        # Whether it must act then, and not only look whether anything has changed.
        self.urgent = True
        # The identifier of the thread that acts now, and how many have finished.
        self.actor: int | None = None
        self.turns = 0
        # What other threads have left to the actor: to read memory again, or to restore the components after a stop.
        self.again = False
        self.restoring = False
        # Set by a step that has entered "emergency".
        self.emergency = False
        # A thread is choosing the pressure source.
        self.attaching = False
        self.looks = 0
        self.cpu_seconds = 0.0

    @property
    def running(self) -> bool:
        return self.target is not None

    def act(self, target: Target, asked: bool, sample: object = None) -> None:
        """Take a turn: a step if it was asked for or the governor runs, and what a stop has left to be restored."""
        me = _threads.get_ident()
        entered = False
        began = time.thread_time()
        with self.state:
            if self.actor is not None:
                self.again = self.again or self.actor != me
                return
            self.actor = me
        try:
            # Inside the block: it may fail if memory is short.
            _acting.depth = getattr(_acting, "depth", 0) + 1
            entered = True
            rounds = 0
            while True:
                self.again = False
                restored = self.restoring
                if restored:
                    self.restoring = False
                    target._restore()
                elif asked or self.running:
                    target._step(sample)
                sample = None
                rounds += 1
                now = time.thread_time()
                self.cpu_seconds += now - began
                began = now
                self.looks += 1
                with self.state:
                    # What was asked for before a stop is void.
                    late = self.again and not restored
                    if not self.restoring and (not late or rounds >= ROUNDS):
                        self._leave()
                        break
            with self.state:
                emergency, self.emergency = self.emergency, False
            self.plan(0.0 if late else target._interval)
            if emergency:
                # Not as the actor: while the callback takes its time, other threads go on acting.
                target._notify_emergency()
        finally:
            with self.state:
                failed = self.actor == me
                if failed:
                    self._leave()
            if entered:
                _acting.depth -= 1
            if failed:
                self._recover(target)

    def _recover(self, target: Target) -> None:
        """After an error, do what others have left to this thread: restore after a stop, or plan another step."""
        if self.restoring:
            self.act(target, False)
        else:
            with contextlib.suppress(Exception):
                self.plan(policy.IDLE_SECONDS[WARNING])

    def _leave(self) -> None:
        self.actor = None
        self.turns += 1
        self.state.notify_all()

    def wait_for_actor(self) -> None:
        """Let another thread finish what it is doing to the components."""
        with self.state:
            turns = self.turns
            if self.actor != _threads.get_ident():
                self.state.wait_for(lambda: self.actor is None or self.turns != turns, WAIT_SECONDS)

    def start(self, target: Target) -> bool:
        """Run for ``target`` from now on; False if it is already running or the interpreter is exiting."""
        with self.state:
            if self.running or _lifecycle.is_exiting():
                return False
            self.target = target
            self.restoring = False
            running.add(self)
            return True

    def stop(self) -> _threads.Thread | None:
        """Run no longer, and leave it to the next turn to restore the components. Returns the thread, which ends."""
        with self.state:
            self.target = None
            running.discard(self)
            thread, self.thread = self.thread, None
            self.restoring = True
            self.state.notify_all()
        return thread

    def plan(self, seconds: float) -> None:
        """Act in that many seconds, in the worker's own thread; infinity for never."""
        with self.state:
            if self.target is None:
                return
            self.due = time.monotonic() + seconds
            self.urgent = self.urgent or seconds <= 0
            if seconds == math.inf or _lifecycle.is_exiting() or _forking:
                return
            if self.thread is None or not self.thread.is_alive():
                self._start_thread(self.target)
            else:
                self.state.notify_all()

    def _start_thread(self, target: Target) -> None:
        thread = _threads.new_thread(lambda me: self._run(me, target), "synthex-fast-governor")
        self.thread = thread
        try:
            thread.start()
        except BaseException:
            self.thread = None
            raise

    def _run(self, me: _threads.Thread, target: Target) -> None:
        # This thread's own: one that has been told to end may still be waiting with its.
        watch = Watch()
        while True:
            with self.state:
                if self.thread is not me:
                    return
                wait = self.due - time.monotonic()
                if wait > 0:
                    # Planned is the next look; where the watch looks, that can wait for what comes after.
                    wait = max(wait, self._watch(target, watch))
                    self.state.wait(None if wait == math.inf else wait, watch)
                    if watch.changed:
                        self.due = min(self.due, time.monotonic())
                    continue
                self.due = math.inf
                urgent, self.urgent = self.urgent, False
            try:
                rest = 0.0 if urgent else target._rest()
                if rest > 0:
                    with self.state:
                        self.due = min(self.due, time.monotonic() + rest)
                    continue
                self.act(target, False)
            except BaseException as error:
                # Even SystemExit, if a component lets it through: the thread is the governor's.
                with self.state:
                    self.due = min(self.due, time.monotonic() + policy.IDLE_SECONDS[WARNING])
                _unraisable.report(error, target)

    @staticmethod
    def _watch(target: Target, watch: Watch) -> float:
        try:
            return target._watch(watch)
        except Exception:
            # Such as MemoryError. Nothing is watched, and the next look is the one that is planned.
            watch.look_away()
            return 0.0


def join(thread: _threads.Thread | None) -> None:
    """Wait for a thread that has been told to end, unless it is this one."""
    _threads.join(thread, WAIT_SECONDS)


# The running workers. They keep their governors alive.
running: set[Worker] = set()
_forking = False
# The locks that a forking thread holds over its fork: each thread its own, since several may fork at once.
_forker = _threads.local()


def _before_fork() -> None:
    global _forking
    _forking = True
    for worker in list(running):
        with worker.state:
            thread, worker.thread = worker.thread, None
            worker.state.notify_all()
        join(thread)


def _hold_locks() -> None:
    held = _forker.__dict__.setdefault("held", [])
    for state in sorted((worker.state for worker in list(running)), key=id):
        state.acquire()
        held.append(state)


def _release_locks() -> None:
    held = _forker.__dict__.get("held")
    while held:
        held.pop().release()


def _release_locks_in_child() -> None:
    me = _threads.get_ident()
    for worker in list(running):
        worker.thread = None
        worker.attaching = False
        # A thread of the parent's was acting, and had put off the next step until it was done.
        if worker.actor not in (None, me):
            worker.actor = None
            worker.due = 0.0
            worker.urgent = True
    _release_locks()


def _after_fork() -> None:
    global _forking
    _forking = False
    for worker in list(running):
        # If no thread can be started, the monitor's next call tries again.
        with contextlib.suppress(Exception):
            worker.plan(max(0.0, worker.due - time.monotonic()))


def _at_exit() -> None:
    for worker in list(running):
        target = worker.target
        if target is not None:
            target.stop()


_lifecycle.register(
    _lifecycle.Stage.GOVERNOR,
    before=_before_fork,
    after_in_parent=_after_fork,
    after_in_child=_after_fork,
    at_exit=_at_exit,
)
_lifecycle.register(
    _lifecycle.Stage.GOVERNOR_LOCKS,
    before=_hold_locks,
    after_in_parent=_release_locks,
    after_in_child=_release_locks_in_child,
)
