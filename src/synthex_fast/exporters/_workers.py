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

What is read is not trusted: files of another user are left out, and metrics that make no sense.

Figures are kept in columns everywhere: metrics of one kind share a list of labels, which is written, read, compared and
merged once for all of them.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import itertools
import json
import operator
import os
import re
import stat
import time
import weakref
from _queue import Empty
from array import array
from pathlib import Path

from synthex_fast import _lifecycle, _threads, _unraisable
from synthex_fast._threads import RLock, SimpleQueue
from synthex_fast.errors import ArgumentValueError, value_error
from synthex_fast.exporters._metrics import BOUNDS, COUNTER, GAUGE, HISTOGRAM, METRICS, read_columns

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from synthex_fast.exporters._metrics import Column, Columns, Labels
    from synthex_fast.exporters._observed import Observed

__all__ = ["Member", "join"]

WRITE_SECONDS = 5.0
# How long a scrape waits for another one in another worker.
WAIT_SECONDS = 2.0
FORMAT = 2
# Larger values make no sense; the sum of as many as there may be still fits in a float.
_MOST = 1e300
# Columns of at least so many integers are written as one text.
COMPACT_FROM = 16
FOLDER, LOCK, DEAD = "synthex-fast", "lock", "dead.json"
_FILE = re.compile(r"(\d+)-([0-9a-f]{12})\.(json|tmp)")

# Guards all that follows. Reentrant, since a finaliser may fork or unregister anywhere.
_guard = RLock()
# Over a fork.
_held = False
_members: dict[tuple[str, int], Member] = {}
# What those that left had counted, which the files have already, in case the same is shared again.
_former: dict[tuple[str, int], tuple[Callable[[], Observed | None], _Totals]] = {}
_descriptors: dict[str, int] = {}


def join(name: str, directory: str | os.PathLike[str], observed: Observed) -> Member:
    """Share the figures of ``observed`` in that directory, which ``name`` stands for in errors."""
    folder = _prepared(name, directory)
    with _guard:
        key = (str(folder), id(observed))
        member = _members.get(key)
        if member is None:
            member = _members[key] = Member(folder, observed, key)
            former = _former.get(key)
            if former is not None and former[0]() is observed:
                member.resume(former[1])
            try:
                member.begin()
            except BaseException as error:
                del _members[key]
                if isinstance(error, OSError):
                    raise value_error(
                        name, directory, f"a directory to write to ({error.strerror})"
                    ) from error
                raise
            _former.pop(key, None)
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

    def resume(self, totals: _Totals) -> None:
        """What has been counted so far is that of a member of this process that left."""
        totals.inherit()
        self._totals = totals

    def leave(self) -> None:
        """For one user; the last one ends it. Its counters stay."""
        with _guard:
            self.users -= 1
            if self.users or _members.pop(self._key, None) is None:
                return
            self._write_or_report()
            _former[self._key] = weakref.ref(self._observed), self._totals
            fcntl.lockf(_descriptor(self.folder), fcntl.LOCK_UN, 1, self.token)
            thread = self._dismiss_thread()
        _threads.join(thread, 1.0)

    def write(self) -> tuple[Columns, Columns]:
        """Write this process's figures to its file: its counters and its gauges."""
        if not self.token:
            # Never 0, which is the byte of those who read.
            token = int.from_bytes(os.urandom(6), "big") | 1
            fcntl.lockf(_descriptor(self.folder), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, token)
            self.token = token
        columns = read_columns(self._observed.snapshot())
        gauges = {name: column for name, column in columns.items() if METRICS[name].kind == GAUGE}
        self._totals.update(columns)
        totals = self._totals.current()
        self._replace(f"{os.getpid()}-{self.token:012x}.json", totals, gauges)
        return totals, gauges

    def _replace(self, name: str, counters: Columns, gauges: Columns, **more: Any) -> None:
        path = self.folder / name
        temporary = path.with_suffix(".tmp")
        content = json.dumps(
            {"format": FORMAT, **_packed(counters, gauges), **more}, separators=(",", ":")
        ).encode()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)

    def _write_or_report(self) -> tuple[Columns, Columns] | None:
        try:
            return self.write()
        except Exception as error:
            _unraisable.report(error, self)
            return None

    def gather(self) -> tuple[Columns, Columns]:
        """The counters and histograms of all workers, and the gauges of the living with their pids."""
        with _guard:
            # If that fails, as on a full disk, its last file counts: no counter falls.
            own = self._write_or_report()
            with _reading(self.folder):
                return self._read_all(own)

    def _read_all(self, own: tuple[Columns, Columns] | None) -> tuple[Columns, Columns]:
        add = _Adder()
        dead = _load(self.folder / DEAD) or {}
        totals, _ = _unpacked(dead)
        listed = dead.get("folded")
        counted = {token for token in listed if isinstance(token, str)} if isinstance(listed, list) else set()
        living: Columns = {}
        gauges: list[tuple[str, Columns]] = []
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
                living = add.both(living, own[0])
                gauges.append((pid, own[1]))
                continue
            content = _load(path)
            if content is None:
                continue
            counters, its_gauges = _unpacked(content)
            if alive:
                living = add.both(living, counters)
                gauges.append((pid, its_gauges))
            else:
                totals = add.both(totals, counters)
                folded.add(token)
        if folded:
            # First: a file that is still there is then known to have been counted.
            self._replace(DEAD, totals, {}, folded=sorted(counted | folded))
        for path in gone:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        if counted and not gone:
            self._replace(DEAD, totals, {}, folded=[])
        return add.both(totals, living), _by_pid(gauges)

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
        self._last: Columns = {}
        # What is to be added to that: counts from before a reset, and those of the parent's, below 0.
        self._carried: Columns = {}

    def update(self, columns: Columns) -> None:
        add = _Adder()
        for name, metric in METRICS.items():
            if metric.kind == GAUGE:
                continue
            now, last = columns.get(name, _NONE), self._last.get(name, _NONE)
            ended = add.missing_or_less(now, last)
            if ended[0]:
                # It was reset, or its component is gone.
                self._carried[name] = add(self._carried.get(name, _NONE), ended)
            self._last[name] = now

    def current(self) -> Columns:
        found = _Adder().both(self._last, self._carried)
        return {name: column for name, column in found.items() if column[0]}

    def inherit(self) -> None:
        """What has been counted so far is another member's: the parent's, in a forked child."""
        self._carried = {
            name: (labels, list(map(_minus, values))) for name, (labels, values) in self._last.items()
        }


_NONE: Column = ([], [])


class _Adder:
    """Adds columns up. Two lists of labels are compared only once, however many metrics share them. Changes no list."""

    def __init__(self) -> None:
        # By the identities of two lists of labels, which are kept alive with them: labels that are in either, the first
        # ones first, and the place of each of the second's. None if they are the same.
        self._places: dict[tuple[int, int], tuple[Labels, Labels, tuple[Labels, list[int]] | None]] = {}

    def _merged(self, one: Labels, other: Labels) -> tuple[Labels, list[int]] | None:
        key = id(one), id(other)
        known = self._places.get(key)
        if known is None:
            merged = None
            if one != other:
                places = {labels: place for place, labels in enumerate(one)}
                of_other = [places.setdefault(labels, len(places)) for labels in other]
                merged = list(places), of_other
            known = self._places[key] = one, other, merged
        return known[2]

    def __call__(self, one: Column, other: Column) -> Column:
        if not one[0] or not other[0]:
            return other if other[0] else one
        merged = self._merged(one[0], other[0])
        if merged is None:
            plus = _plus if isinstance(one[1][0], list) else operator.add
            return one[0], list(map(plus, one[1], other[1]))
        labels, places = merged
        values = [*one[1], *[0] * (len(labels) - len(one[0]))]
        for place, value in zip(places, other[1], strict=True):
            values[place] = _plus(values[place], value)
        return labels, values

    def both(self, one: Columns, other: Columns) -> Columns:
        found = dict(one)
        for name, column in other.items():
            found[name] = self(found.get(name, _NONE), column)
        return found

    def missing_or_less(self, now: Column, before: Column) -> Column:
        """What was counted before under labels that are there no longer, or where the count has fallen."""
        if not before[0]:
            return _NONE
        values = before[1]
        if self._merged(before[0], now[0]) is None:
            if isinstance(values[0], list):
                fallen = [_count(new) < _count(old) for new, old in zip(now[1], values, strict=True)]
            else:
                fallen = list(map(operator.lt, now[1], values))
            if True not in fallen:
                return _NONE
        else:
            known = dict(zip(*now, strict=True))
            fallen = [
                labels not in known or _count(known[labels]) < _count(old)
                for labels, old in zip(*before, strict=True)
            ]
        return list(itertools.compress(before[0], fallen)), list(itertools.compress(values, fallen))


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


def _by_pid(gauges: list[tuple[str, Columns]]) -> Columns:
    """The gauges of all workers, with their pids as the last of their labels."""
    parts: dict[str, list[tuple[str, Column]]] = {}
    for pid, columns in gauges:
        for name, column in columns.items():
            parts.setdefault(name, []).append((pid, column))
    # By identity, so that metrics which share lists of labels go on doing so.
    known: dict[tuple[tuple[str, int], ...], Labels] = {}
    found: Columns = {}
    for name, each in parts.items():
        key = tuple((pid, id(labels)) for pid, (labels, _) in each)
        if key not in known:
            known[key] = [(*one, pid) for pid, (labels, _) in each for one in labels]
        found[name] = known[key], [value for _, (_, values) in each for value in values]
    return found


# Files


def _packed(counters: Columns, gauges: Columns) -> dict[str, Any]:
    """Columns as JSON has them: lists of labels by their numbers, each as one list of texts for each label."""
    numbers: dict[int, int] = {}
    lists: list[list[tuple[str, ...]]] = []
    shown: dict[str, dict[str, Any]] = {"counters": {}, "gauges": {}}
    for key, columns in (("counters", counters), ("gauges", gauges)):
        for name, (labels, values) in columns.items():
            number = numbers.setdefault(id(labels), len(lists))
            if number == len(lists):
                lists.append(list(zip(*labels, strict=True)))
            shown[key][name] = number, _compact(values)
    return {"labels": lists, **shown}


def _compact(values: list[Any]) -> list[Any] | str:
    """Many integers as one text, which JSON reads and writes several times as fast."""
    if len(values) < COMPACT_FROM:
        return values
    try:
        return binascii.b2a_base64(array("q", values), newline=False).decode()
    except (TypeError, OverflowError):
        # Not all of them are integers, or one is too large.
        return values


def _expanded(values: Any) -> list[Any] | None:
    """What `_compact` was given, unless it makes no sense."""
    if type(values) is not str:
        return values if type(values) is list else None
    numbers = array("q")
    try:
        numbers.frombytes(binascii.a2b_base64(values))
    except ValueError:
        return None
    return numbers.tolist()


def _load(path: Path) -> dict[str, Any] | None:
    """What the file holds, or None if it is not one of ours. `OSError` if this process can't open any file now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                return None
            content = json.load(file)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            # Else a dead worker's file would be removed uncounted.
            raise
        return None
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _unpacked(content: dict[str, Any]) -> tuple[Columns, Columns]:
    """The counters and histograms, and the gauges: of metrics that are known here, those that make sense."""
    lists = content.get("labels")
    known: dict[tuple[int, int], Labels | None] = {}
    found: tuple[Columns, Columns] = {}, {}
    for columns, key, kinds in zip(
        found, ("counters", "gauges"), ((COUNTER, HISTOGRAM), (GAUGE,)), strict=True
    ):
        metrics = content.get(key)
        for name, column in metrics.items() if isinstance(metrics, dict) else ():
            metric = METRICS.get(name)
            if metric is None or metric.kind not in kinds or type(column) is not list or len(column) != 2:
                continue
            number, values = column[0], _expanded(column[1])
            if type(number) is not int or values is None or type(lists) is not list:
                continue
            of = number, len(metric.labels)
            if of not in known:
                known[of] = _labels(lists, *of)
            labels = known[of]
            if labels is None or len(labels) != len(values):
                continue
            if not _are_values(values, metric.kind):
                good = [_are_values([value], metric.kind) for value in values]
                labels = list(itertools.compress(labels, good))
                values = list(itertools.compress(values, good))
            columns[name] = labels, values
    return found


def _labels(lists: list[Any], number: int, count: int) -> Labels | None:
    """The list of that number, if it is one for ``count`` labels in which none is there twice."""
    if not count:
        return [()]
    texts = lists[number] if 0 <= number < len(lists) else None
    if (
        type(texts) is not list
        or len(texts) != count
        or not all(type(each) is list and {*map(type, each)} == {str} for each in texts)
        or len({*map(len, texts)}) != 1
    ):
        return None
    labels = list(zip(*texts, strict=True))
    return labels if len({*labels}) == len(labels) else None


def _are_values(values: list[Any], kind: str) -> bool:
    """Whether they are numbers that a float can hold, and no NaN; or such lists, for a histogram."""
    if kind == HISTOGRAM:
        return all(
            type(each) is list and len(each) == len(BOUNDS) + 2 and _are_values(each, COUNTER)
            for each in values
        )
    # No comparison with a NaN is true. It would hide from `min` and `max`.
    return {*map(type, values)} <= {int, float} and all(map(_MOST.__gt__, map(abs, values)))


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
