"""Workers of one service that answer a scrape for each other, through files in a directory.

Each process writes its figures to a file of its own, when it is scraped and every few seconds. The one that is scraped
writes its own file first and then reads all of them, so no counter ever falls from one scrape to the next, whichever
worker answers. A worker that has died is told by a lock that the kernel releases: its counters are added to the file
of the dead, its gauges are forgotten.

Locks. A process holds a lock of one byte, at a random offset of the file ``lock``, for as long as it lives; the first
byte is locked while files are read and the dead are counted. Both are POSIX record locks: a forked child has none of
them, but they end with the first descriptor of that file that the process closes, so there is one for each directory,
which is never closed. Threads of one process don't exclude each other that way, hence `_guard`.

Counters must not fall, so a count that starts again, such as a tuner's, is added to what it was before. What a forked
child has inherited is its parent's, and is subtracted.

What is read is not trusted: files of another user, or that make no sense, are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from _queue import Empty
from pathlib import Path

from synthex_fast import _lifecycle, _threads, _unraisable
from synthex_fast._threads import RLock, SimpleQueue
from synthex_fast.errors import ArgumentValueError, value_error
from synthex_fast.exporters._metrics import BOUNDS, COUNTER, GAUGE, HISTOGRAM, METRICS, read

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from synthex_fast.exporters._metrics import Samples
    from synthex_fast.exporters._observed import Observed

    # A number, or a histogram's counts and sum.
    Totals = dict[str, dict[tuple[str, ...], Any]]

__all__ = ["Member", "join"]

WRITE_SECONDS = 5.0
# How long a scrape waits for another one in another worker.
WAIT_SECONDS = 2.0
FORMAT = 1
FOLDER, LOCK, DEAD = "synthex-fast", "lock", "dead.json"
_FILE = re.compile(r"(\d+)-([0-9a-f]{12})\.(json|tmp)")

# Guards all that follows. Reentrant, since a finaliser may fork or unregister anywhere.
_guard = RLock()
# Over a fork.
_held = False
_members: dict[tuple[str, int], Member] = {}
_descriptors: dict[str, int] = {}


def join(name: str, directory: str | os.PathLike[str], observed: Observed) -> Member:
    """Share the figures of ``observed`` in that directory, which ``name`` stands for in errors."""
    folder = _prepared(name, directory)
    with _guard:
        key = (str(folder), id(observed))
        member = _members.get(key)
        if member is None:
            member = _members[key] = Member(folder, observed, key)
            try:
                member.begin()
            except BaseException as error:
                del _members[key]
                if isinstance(error, OSError):
                    raise value_error(
                        name, directory, f"a directory to write to ({error.strerror})"
                    ) from error
                raise
        member.users += 1
    return member


def _prepared(name: str, directory: str | os.PathLike[str]) -> Path:
    if fcntl is None:
        raise ArgumentValueError(f"{name} can't be used on this system, which has no POSIX record locks")
    folder = Path(directory) / FOLDER
    try:
        folder.mkdir(0o700, exist_ok=True)
        found = os.lstat(folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise value_error(name, os.fspath(directory), f"a directory to write to ({reason})") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise value_error(
            name,
            os.fspath(directory),
            f"one in which {FOLDER} is this user's own directory, closed to others",
        )
    return folder.resolve()


class Member:
    """One process's part in it. Made by `join`; ``users`` are the collectors that it serves."""

    def __init__(self, folder: Path, observed: Observed, key: tuple[str, int]) -> None:
        self.folder = folder
        self.users = 0
        self._observed = observed
        self._key = key
        self.token = 0
        self._totals = _Totals()
        self._thread: _threads.Thread | None = None
        self._queue: SimpleQueue[None] = SimpleQueue()

    # The rest is called with `_guard` held, except for what the thread does.

    def begin(self) -> None:
        """Become a member as this process."""
        self.token = 0
        self.write()
        self.start_thread()

    def leave(self) -> None:
        """For one user; the last one ends it. Its counters stay."""
        with _guard:
            self.users -= 1
            if self.users or _members.pop(self._key, None) is None:
                return
            self._write_or_report()
            fcntl.lockf(_descriptor(self.folder), fcntl.LOCK_UN, 1, self.token)
            thread = self._dismiss_thread()
        _threads.join(thread, 1.0)

    def write(self) -> tuple[Totals, Samples]:
        """Write this process's figures to its file: its counters and its gauges."""
        if not self.token:
            # Never 0, which is the byte of those who read.
            token = int.from_bytes(os.urandom(6), "big") | 1
            fcntl.lockf(_descriptor(self.folder), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, token)
            self.token = token
        samples = read(self._observed.snapshot())
        self._totals.update(samples)
        totals = self._totals.current()
        gauges = {name: values for name, values in samples.items() if METRICS[name].kind == GAUGE}
        shown = {"format": FORMAT, "counters": _shown(totals), "gauges": gauges}
        self._replace(f"{os.getpid()}-{self.token:012x}.json", shown)
        return totals, gauges

    def _replace(self, name: str, content: dict[str, Any]) -> None:
        path = self.folder / name
        temporary = path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, separators=(",", ":"))
        os.replace(temporary, path)

    def _write_or_report(self) -> tuple[Totals, Samples] | None:
        try:
            return self.write()
        except Exception as error:
            _unraisable.report(error, self)
            return None

    def gather(self) -> tuple[Samples, Samples]:
        """The counters and histograms of all workers, and the gauges of the living with their pids."""
        with _guard:
            # If that fails, as on a full disk, its last file counts: no counter falls.
            own = self._write_or_report()
            with _reading(self.folder):
                totals, gauges = self._read_all(own)
        return {name: list(values.items()) for name, values in totals.items()}, gauges

    def _read_all(self, own: tuple[Totals, Samples] | None) -> tuple[Totals, Samples]:
        dead = _load(self.folder / DEAD) or {}
        totals = _counters(dead)
        listed = dead.get("folded")
        counted = {token for token in listed if isinstance(token, str)} if isinstance(listed, list) else set()
        living: Totals = {}
        gauges: Samples = {}
        gone, folded = [], set()
        for path in self.folder.iterdir():
            match = _FILE.fullmatch(path.name)
            if match is None:
                continue
            pid, token, kind = match.groups()
            alive = self._is_alive(int(token, 16))
            if not alive:
                gone.append(path)
            if kind == "tmp" or (not alive and token in counted):
                continue
            if own is not None and int(token, 16) == self.token:
                _add_up(living, own[0])
                _add_gauges(gauges, own[1], pid)
                continue
            content = _load(path)
            if content is None:
                continue
            _add_up(living if alive else totals, _counters(content))
            if alive:
                _add_gauges(gauges, _gauges(content), pid)
            else:
                folded.add(token)
        if folded:
            # First: a file that is still there is then known to have been counted.
            shown = {"format": FORMAT, "folded": sorted(counted | folded), "counters": _shown(totals)}
            self._replace(DEAD, shown)
        for path in gone:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        if counted and not gone:
            self._replace(DEAD, {"format": FORMAT, "folded": [], "counters": _shown(totals)})
        _add_up(totals, living)
        return totals, gauges

    def _is_alive(self, token: int) -> bool:
        if any(token == member.token for member in _members.values()):
            return True
        descriptor = _descriptor(self.folder)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, token)
        except OSError:
            return True
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, token)
        return False

    # The thread

    def start_thread(self) -> None:
        if _lifecycle.is_exiting():
            return
        queue = self._queue = SimpleQueue()
        thread = _threads.new_thread(lambda me: self._loop(queue), "synthex-fast-metrics")
        thread.start()
        self._thread = thread

    def _dismiss_thread(self) -> _threads.Thread | None:
        thread, self._thread = self._thread, None
        self._queue.put(None)
        return thread

    def _loop(self, queue: SimpleQueue[None]) -> None:
        while True:
            with contextlib.suppress(Empty):
                queue.get(True, WRITE_SECONDS)
                return
            with _guard:
                if queue is self._queue and self._thread is not None:
                    self._write_or_report()

    # Forks

    def before_fork(self) -> None:
        # What the child inherits is known exactly.
        with contextlib.suppress(Exception):
            self.write()

    def end_thread(self) -> None:
        _threads.join(self._dismiss_thread(), 1.0)

    def after_fork_in_child(self) -> None:
        self._totals.inherit()
        self.begin()


class _Totals:
    """Counters and histograms of a process since it became a member, which never fall."""

    def __init__(self) -> None:
        self._last: Totals = {}
        self._carried: Totals = {}

    def update(self, samples: Samples) -> None:
        for name, metric in METRICS.items():
            if metric.kind == GAUGE:
                continue
            now = dict(samples.get(name, ()))
            last = self._last.setdefault(name, {})
            carried = self._carried.setdefault(name, {})
            for labels, before in last.items():
                # It was reset, or its component is gone.
                if labels not in now or _count(now[labels]) < _count(before):
                    carried[labels] = _plus(carried.get(labels, 0), before)
            self._last[name] = now

    def current(self) -> Totals:
        found: Totals = {}
        for name, last in self._last.items():
            carried = self._carried[name]
            found[name] = (
                {labels: _plus(carried.get(labels, 0), last.get(labels, 0)) for labels in {**carried, **last}}
                if carried
                else last
            )
        return found

    def inherit(self) -> None:
        """In a forked child: what has been counted so far is the parent's."""
        self._carried = {
            name: {labels: _minus(value) for labels, value in values.items()}
            for name, values in self._last.items()
        }


def _count(value: Any) -> float:
    return sum(value[:-1]) if isinstance(value, list) else value


def _plus(one: Any, other: Any) -> Any:
    if isinstance(one, list) and isinstance(other, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    # 0 stands for a histogram without pauses too.
    if isinstance(one, list):
        return one
    return other if isinstance(other, list) else one + other


def _minus(value: Any) -> Any:
    return [-each for each in value] if isinstance(value, list) else -value


def _shown(totals: Totals) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
    return {name: list(values.items()) for name, values in totals.items() if values}


def _add_up(totals: Totals, more: Totals) -> None:
    for name, values in more.items():
        into = totals.setdefault(name, {})
        if not into:
            into.update(values)
            continue
        for labels, value in values.items():
            into[labels] = _plus(into.get(labels, 0), value)


def _load(path: Path) -> dict[str, Any] | None:
    """What the file holds, or None if it is not one of ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                return None
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _values(content: dict[str, Any], key: str, *kinds: str) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Those values that make sense: of metrics that are known here, with their labels."""
    metrics = content.get(key)
    for name, values in metrics.items() if isinstance(metrics, dict) else ():
        metric = METRICS.get(name)
        if metric is None or metric.kind not in kinds or not isinstance(values, list):
            continue
        count, is_histogram = len(metric.labels), metric.kind == HISTOGRAM
        for each in values:
            if type(each) is not list or len(each) != 2:
                continue
            labels, value = each
            if (
                type(labels) is not list
                or len(labels) != count
                or not all(type(label) is str for label in labels)
            ):
                continue
            if is_histogram:
                if (
                    type(value) is not list
                    or len(value) != len(BOUNDS) + 2
                    or not all(map(_is_number, value))
                ):
                    continue
            elif not _is_number(value):
                continue
            yield name, tuple(labels), value


def _is_number(value: Any) -> bool:
    """One that a float can hold, and no NaN."""
    return type(value) in (int, float) and abs(value) < 1e300


def _counters(content: dict[str, Any]) -> Totals:
    found: Totals = {}
    for name, labels, value in _values(content, "counters", COUNTER, HISTOGRAM):
        found.setdefault(name, {})[labels] = value
    return found


def _gauges(content: dict[str, Any]) -> Samples:
    found: Samples = {}
    for name, labels, value in _values(content, "gauges", GAUGE):
        found.setdefault(name, []).append((labels, value))
    return found


def _add_gauges(gauges: Samples, more: Samples, pid: str) -> None:
    for name, values in more.items():
        gauges.setdefault(name, []).extend([((*labels, pid), value) for labels, value in values])


def _descriptor(folder: Path) -> int:
    name = str(folder)
    if name not in _descriptors:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        _descriptors[name] = os.open(folder / LOCK, flags, 0o600)
    return _descriptors[name]


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    descriptor = _descriptor(folder)
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            break
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"another process has held {folder / LOCK} for {WAIT_SECONDS:g} s"
                ) from error
            _threads.sleep(0.002)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, 0)


def _before_fork() -> None:
    global _held
    members = list(_members.values())
    if members:
        for member in members:
            member.end_thread()
        # Bounded: a finaliser that forks may run anywhere. It does without the lock then.
        _held = _guard.acquire(True, 1.0)
        for member in members:
            member.before_fork()


def _after_fork_in_parent() -> None:
    global _held
    if _held:
        _held = False
        _guard.release()
    for member in list(_members.values()):
        member.start_thread()


def _after_fork_in_child() -> None:
    global _guard, _held
    _guard, _held = RLock(), False
    # The child has no locks, so closing its copies releases none.
    for descriptor in _descriptors.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    for member in list(_members.values()):
        try:
            member.after_fork_in_child()
        except Exception as error:
            _unraisable.report(error, member)


def _at_exit() -> None:
    for member in list(_members.values()):
        with _guard:
            member._write_or_report()
            thread = member._dismiss_thread()
        _threads.join(thread, 1.0)


_lifecycle.register(
    _lifecycle.Stage.METRICS,
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
    at_exit=_at_exit,
)
