"""Memory figures from the kernel: resident size, the container's charge and limit, what the host has available.

On Linux the figures come from ``/proc`` and from the memory controller of control groups, version 1 or 2, through
descriptors kept open and read with ``pread``: opening a file costs several times what reading it does. Elsewhere
they come from psutil, and no container is seen.

How a process finds its group: ``/proc/self/cgroup`` gives its path in each hierarchy, ``/proc/self/mountinfo`` where
the hierarchies are mounted and which part of each is visible. See the man pages cgroups(7), cgroup_namespaces(7) and
proc(5), and the kernel's ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

from synthex_fast import _lifecycle
from synthex_fast._pressure import RECLAIMABLE_FROM
from synthex_fast.errors import type_error, value_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class HasLimit(Protocol):
        def limit(self) -> int | None: ...
        def total(self) -> int: ...


__all__ = ["Readings", "container_state", "memory_limit", "parse_size", "requested_limit"]

# Units are binary with or without the "i", as in Docker and the JVM.
_UNITS = {"": 1, "b": 1}
for _exponent, _letter in enumerate("kmgt", 1):
    _UNITS |= dict.fromkeys((_letter, f"{_letter}b", f"{_letter}i", f"{_letter}ib"), 1 << 10 * _exponent)

# A limit above this is a mistake: no machine has so much memory.
_MOST_BYTES = 1 << 62

# Number of forks that led to this process. Descriptors opened before the last one show the parent's memory.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


_lifecycle.register(_lifecycle.Stage.READINGS, after_in_child=_count_fork)


class _File:
    """A descriptor for reading. It is closed with the last reference: another thread may still be reading."""

    __slots__ = ("_identity", "fd")

    def __init__(self, path: str) -> None:
        self._identity: tuple[int, int] | None = None
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(self.fd)
        self._identity = status.st_dev, status.st_ino

    def read(self, size: int) -> bytes:
        return os.pread(self.fd, size, 0)

    def read_all(self) -> bytes:
        """The whole file: a process in many hierarchies has a long list of them."""
        parts = [os.pread(self.fd, 4096, 0)]
        while parts[-1]:
            parts.append(os.pread(self.fd, 65536, sum(map(len, parts))))
        return b"".join(parts)

    def __del__(
        self, fstat: Callable[[int], os.stat_result] = os.fstat, close: Callable[[int], None] = os.close
    ) -> None:
        # Turning into a daemon closes every descriptor, and the number may belong to another file by now.
        try:
            status = fstat(self.fd)
            if self._identity is None or self._identity == (status.st_dev, status.st_ino):
                close(self.fd)
        except (AttributeError, OSError):
            pass


_RECLAIMABLE = {
    1: (b"\ntotal_active_file ", b"\ntotal_inactive_file "),
    2: (b"\nactive_file ", b"\ninactive_file ", b"\nslab_reclaimable "),
}
_DIRTY = {1: (b"\ntotal_dirty ", b"\ntotal_writeback "), 2: (b"\nfile_dirty ", b"\nfile_writeback ")}
# How many groups to search if only their lists of members can tell which one is ours.
_MOST_DIRECTORIES = 4_096
# Enough for the statistics of either version.
_STAT_SIZE = 8192


class _Group:
    """The open files of a control group of the memory controller."""

    __slots__ = ("directory", "high", "limit", "stat", "swap", "usage", "version")

    def __init__(self, version: int, directory: str) -> None:
        self.version = version
        self.directory = directory
        usage, limit, swap = "memory.current", "memory.max", "memory.swap.current"
        if version == 1:
            usage, limit, swap = (
                "memory.usage_in_bytes",
                "memory.limit_in_bytes",
                "memory.memsw.usage_in_bytes",
            )
        self.usage = _File(os.path.join(directory, usage))
        self.limit = _File(os.path.join(directory, limit))
        self.stat = _File(os.path.join(directory, "memory.stat"))
        # Above this limit the kernel throttles and reclaims (version 2; systemd's MemoryHigh). The OOM killer stays
        # away, but a process that stays above it makes hardly any progress.
        self.high: _File | None = None
        if version == 2:
            with contextlib.suppress(OSError):
                self.high = _File(os.path.join(directory, "memory.high"))
        # Version 1 counts memory and swap together.
        self.swap: _File | None
        try:
            self.swap = _File(os.path.join(directory, swap))
        except OSError:
            # The kernel does not account for swap.
            self.swap = None

    def swapped(self, usage: int) -> int | None:
        if self.swap is None:
            return None
        swap = int(self.swap.read(32))
        return swap if self.version == 2 else max(0, swap - usage)

    def reclaimable(self, stat: bytes) -> int:
        """What the kernel reclaims before the OOM killer acts: file pages, recently used or not, and reclaimable slab.

        Dirty pages don't count, since they must be written first. Shared memory and locked pages are on other lists.
        """
        found = 0
        for key in _RECLAIMABLE[self.version]:
            found += _field(stat, key) or 0
        for key in _DIRTY[self.version]:
            found -= _field(stat, key) or 0
        return max(0, found)

    def working_set(self, limit: int) -> int:
        """Its charge, less what the kernel can reclaim if that matters under this limit."""
        usage = int(self.usage.read(32))
        if usage > RECLAIMABLE_FROM * limit:
            usage -= min(usage, self.reclaimable(self.stat.read(_STAT_SIZE)))
        return usage

    def ceiling(self) -> int | None:
        """The lower of its hard and its soft limit; None if it has neither."""
        least = None
        for file in (self.limit, self.high):
            if file is not None:
                text = file.read(32)
                # "max" is version 2's.
                if text[:1] != b"m" and (least is None or int(text) < least):
                    least = int(text)
        return least


class _Files:
    """The files that are open together. A thread may go on using a set that another thread has replaced."""

    __slots__ = (
        "forks",
        "group",
        "groups",
        "hidden",
        "host",
        "membership",
        "meminfo",
        "path",
        "process",
        "statm",
        "unknown",
        "visits",
    )

    def __init__(self, root: str) -> None:
        self.forks = _forks
        self.membership: _File | None = None
        self.path = b""
        # The process's own group and those around it, innermost first; and the one whose charge counts.
        self.groups: list[_Group] = []
        self.group: _Group | None = None
        # The limit of a group that is not visible here; only version 1 reports it.
        self.hidden: int | None = None
        # Whether the process may be in a group that could not be found.
        self.unknown = False
        self.visits = 0
        # The host's total and available memory and the text they come from, as of the last slow reading.
        self.host: tuple[int, int, bytes] | None = None
        self.process: Any = None
        self.statm: _File | None = None
        try:
            proc = os.path.join(root, "proc")
            statm = _File(os.path.join(proc, "self/statm"))
            self.meminfo = _File(os.path.join(proc, "meminfo"))
            text = self.meminfo.read(1024)
            # Kernels before 3.14 do not estimate it; psutil does then.
            if _field(text, b"MemAvailable:") is None:
                raise OSError
            self.enter_groups(root)
            self.find_hidden_limit()
            self.limit((_field(text, b"MemTotal:") or 0) << 10)
            self.statm = statm
        except OSError:
            import psutil

            self.process = psutil.Process()

    def enter_groups(self, root: str) -> None:
        try:
            self.membership = _File(os.path.join(root, "proc/self/cgroup"))
            self.path = self.membership.read_all()
            mounts = _read(os.path.join(root, "proc/self/mountinfo"))
        except OSError:
            self.membership = None
            return
        version, directories, known = find_groups(self.path.decode(errors="surrogateescape"), mounts, root)
        self.unknown = not known
        for directory in directories:
            try:
                self.groups.append(_Group(version, directory))
            except OSError:
                # Removed in the meantime, or not permitted: it may have had a limit.
                self.unknown = True
        if self.groups:
            self.group = self.groups[0]

    def find_hidden_limit(self) -> None:
        """Read the least limit of the whole hierarchy, which includes groups that a container can't see."""
        try:
            if self.groups and self.groups[0].version == 1:
                self.hidden = _field(self.groups[0].stat.read(_STAT_SIZE), b"\nhierarchical_memory_limit ")
        except OSError:
            pass

    def limit(self, total: int) -> int | None:
        """The limit with the least room below it; sets `group` to the group that has it."""
        groups = self.groups
        if not groups:
            return None
        # A limit above the host's memory has no effect; version 1 writes "no limit" as such a number.
        chosen, least, room = groups[0], total, None
        try:
            for group in groups:
                limit = group.ceiling()
                if group is groups[0] and self.hidden is not None and (limit is None or self.hidden < limit):
                    limit = self.hidden
                if limit is None or limit >= total:
                    continue
                left = limit - group.working_set(limit)
                # Of equals the outermost: it fills first.
                if room is None or left <= room:
                    chosen, least, room = group, limit, left
        except OSError:
            # Removed just now; the next reading finds the process's new group.
            return None
        self.group = chosen
        # `memory.high` may be 0; callers divide by the limit.
        return max(least, 1) if least < total else None

    def moved(self) -> bool:
        """Whether the process has been moved to another group."""
        try:
            return self.membership is not None and self.membership.read_all() != self.path
        except OSError:
            return True


class Readings:
    """Memory figures in bytes, read at each call.

    ``root`` is the directory that contains ``proc`` and everything mounted; tests use a copy of another machine's.
    May be used from any thread and in forked children. `rss` and `charge` together take about 3 microseconds on Linux,
    `slow` (everything else) 13 to 21.

    >>> Readings().rss() > 0
    True
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = os.fspath(root)
        self._page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
        self._files: _Files | None = None

    def close(self) -> None:
        """Close all descriptors. The next reading opens them again."""
        self._files = None

    def _open(self) -> _Files:
        self._files = files = _Files(self.root)
        return files

    def rss(self) -> int:
        """Resident set size of this process."""
        files = self._files
        if files is None or files.forks != _forks:
            files = self._open()
        if files.statm is None:
            return int(files.process.memory_info().rss)
        try:
            return int(os.pread(files.statm.fd, 128, 0).split(None, 2)[1]) * self._page
        except (OSError, ValueError, IndexError):
            # The descriptor was closed by someone else.
            files = self._open()
            if files.statm is None:
                return int(files.process.memory_info().rss)
            return int(files.statm.read(128).split(None, 2)[1]) * self._page

    def charge(self) -> int | None:
        """Memory charged to the container, page cache included; None outside of one.

        The container is the control group with the least room below its limit, among this process's own and those
        around it (of equal ones the outermost, which fills first), or the process's own if none has a limit.
        """
        files = self._files
        if files is None or files.forks != _forks:
            files = self._open()
        group = files.group
        if group is None:
            return None
        try:
            return int(os.pread(group.usage.fd, 32, 0))
        except (OSError, ValueError):
            # The process has been moved, and the group removed.
            group = self._open().group
            return None if group is None else int(group.usage.read(32))

    def limit(self) -> int | None:
        """The limit with the least room below it, of this process's control group and those around it; None if none is
        below `total`.
        """
        total = self.total()
        files = self._current()
        if files.moved():
            files = self._open()
        files.find_hidden_limit()
        return files.limit(total)

    def reclaimable(self) -> int:
        """The part of `charge` that the kernel reclaims before the OOM killer acts: mostly clean file pages.

        0 outside of a container. Kubernetes and Docker subtract less: only the file pages not used recently.
        """
        group = self._current().group
        try:
            return 0 if group is None else group.reclaimable(group.stat.read(_STAT_SIZE))
        except OSError:
            return 0

    def available(self) -> int:
        """What the host can give out without swapping (``MemAvailable``), regardless of the container's limit."""
        return self._host(b"MemAvailable:", "available")

    def total(self) -> int:
        """The host's memory."""
        return self._host(b"MemTotal:", "total")

    def swap(self) -> int:
        """Swap in use: by the container if that is known, else by the host."""
        files = self._current()
        if files.statm is None:
            import psutil

            return int(psutil.swap_memory().used)
        group = files.group
        try:
            swap = None if group is None else group.swapped(int(group.usage.read(32)))
        except OSError:
            swap = None
        return _host_swap(self._meminfo()) if swap is None else swap

    def slow(self, near: int = 0) -> tuple[int | None, int, int, int]:
        """`limit`, `available`, `swap` and `reclaimable`, with each file read once.

        Below a charge of ``near`` bytes the reclaimable part, the most expensive, is not read (0); from there on what
        is available is read at every other call. Whether the process has moved to another group is checked at one call
        in eight.
        """
        files = self._current()
        if files.statm is None:
            return None, self.available(), self.swap(), 0
        files.visits += 1
        if files.visits & 7 == 1:
            if files.moved():
                files = self._open()
            files.find_hidden_limit()
        group = files.group
        stat = b""
        usage = 0
        if group is not None:
            try:
                usage = int(group.usage.read(32))
                if usage >= near:
                    stat = group.stat.read(_STAT_SIZE)
            except OSError:
                # Removed just now.
                pass
        host = files.host
        if not stat or host is None or files.visits & 1:
            text = self._meminfo()
            # Since Linux 3.14 the first lines are: total, free, available.
            words = text.split(None, 8)
            if words[6] == b"MemAvailable:":
                total, available = int(words[1]) << 10, int(words[7]) << 10
            else:
                total, available = (
                    (_field(text, key) or 0) << 10 for key in (b"MemTotal:", b"MemAvailable:")
                )
            files.host = host = total, available, text
        total, available, text = host
        limit = files.limit(total)
        if group is None:
            return limit, available, _host_swap(text), 0
        try:
            if stat and group.version == 1:
                swap = _field(stat, b"\ntotal_swap ") if group.swap is not None else None
            else:
                swap = group.swapped(usage)
            if files.group is not group and files.group is not None and (stat or near <= 0):
                # The limit has turned out to be another group's.
                group = files.group
                stat = group.stat.read(_STAT_SIZE)
        except OSError:
            swap = None
        reclaimable = group.reclaimable(stat) if stat else 0
        return limit, available, _host_swap(text) if swap is None else swap, reclaimable

    @property
    def container(self) -> tuple[int, str] | None:
        """The version and directory of the control group whose charge counts."""
        group = self._current().group
        return None if group is None else (group.version, group.directory)

    @property
    def container_state(self) -> str:
        """``"limited"``, ``"none"`` if nothing but the host limits this process, or ``"unknown"``.

        Unknown is a process in a control group whose limits can't be read: there may be a limit then.
        """
        if not self.container_known:
            return "unknown"
        return "none" if self.limit() is None else "limited"

    @property
    def container_known(self) -> bool:
        """False if this process may be in a control group whose limits can't be read: there may be a limit then."""
        return not self._current().unknown

    def _current(self) -> _Files:
        files = self._files
        if files is None or files.forks != _forks:
            files = self._open()
        return files

    def _meminfo(self) -> bytes:
        try:
            text = self._current().meminfo.read(1024)
            if text.startswith(b"MemTotal:"):
                return text
        except OSError:
            pass
        # The descriptor was closed by someone else.
        return self._open().meminfo.read(1024)

    def _host(self, key: bytes, name: str) -> int:
        if self._current().statm is None:
            import psutil

            return int(getattr(psutil.virtual_memory(), name))
        return (_field(self._meminfo(), key) or 0) << 10


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _field(text: bytes, key: bytes) -> int | None:
    """The number that follows ``key``."""
    at = text.find(key)
    if at < 0:
        # A key that begins its line may be the very first one.
        if not (key.startswith(b"\n") and text.startswith(key[1:])):
            return None
        at = -1
    at += len(key)
    end = text.find(b"\n", at)
    line = text[at:end] if end >= 0 else text[at:]
    return int(line.removesuffix(b" kB"))


def _host_swap(meminfo: bytes) -> int:
    return max(0, (_field(meminfo, b"SwapTotal:") or 0) - (_field(meminfo, b"SwapFree:") or 0)) << 10


# Control groups


def find_groups(
    membership: str, mounts: str, root: str = "/", pid: int | None = None
) -> tuple[int, list[str], bool]:
    """The version of the memory controller, the directories of this process's groups, innermost first, and whether
    they are complete.

    ``membership`` and ``mounts`` are the texts of ``/proc/self/cgroup`` and ``/proc/self/mountinfo``. On hosts with
    both versions the controller is in one hierarchy only: in version 1 if it is listed there. Groups are missing if
    the hierarchy is not mounted, or if the mounted part says nothing about this process.
    """
    pid = os.getpid() if pid is None else pid
    paths = {}
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            paths[1] = path
        elif number == "0" and not controllers:
            paths[2] = path
    version = 1 if 1 in paths else 2
    if version not in paths:
        return version, [], True
    path = paths[version].removesuffix(" (deleted)")
    usage = "memory.usage_in_bytes" if version == 1 else "memory.current"
    # The mount that shows the largest part of the hierarchy contains most of the surrounding groups.
    for part, point in sorted(_mounts(mounts, version), key=lambda mount: len(mount[0])):
        top = os.path.join(root, point.lstrip("/"))
        if part.startswith("/.."):
            # The mount begins above our namespace (rootless containers), and the names in between are hidden from us.
            directory = _find_process(top, pid)
            if directory is not None:
                return version, _outwards(directory, top, usage), True
            if not part.strip("/."):
                # Our own group stays unknown, but the mounted one surrounds it.
                return version, _outwards(top, top, usage), False
            continue
        for inner in _inside(path, part):
            directory = os.path.join(top, inner) if inner else top
            if not os.path.isdir(directory) or (inner and not _any_exists(directory, top, usage)):
                continue
            return version, _outwards(directory, top, usage), True
    return version, [], False


def _outwards(directory: str, top: str, usage: str) -> list[str]:
    """The directory and those around it, up to the mount point, that account for memory."""
    directories = [directory]
    while directory != top:
        directory = os.path.dirname(directory)
        if not _counts_children(directory):
            return [d for d in directories if os.path.exists(os.path.join(d, usage))]
        directories.append(directory)
    if usage.startswith("memory.usage") and os.path.exists(os.path.join(top, "release_agent")):
        # The root of a whole version 1 hierarchy is the host, not a container.
        directories.pop()
    return [d for d in directories if os.path.exists(os.path.join(d, usage))]


def _counts_children(directory: str) -> bool:
    """Whether the group is charged for the groups in it. In version 1, before Linux 5.11, that was a choice."""
    try:
        return _read(os.path.join(directory, "memory.use_hierarchy")).strip() != "0"
    except OSError:
        return True


def _find_process(top: str, pid: int) -> str | None:
    """The group below ``top`` that has the process among its members; None if it can't be found."""
    wanted = b"%d" % pid
    for seen, (directory, children, _) in enumerate(os.walk(top)):
        if seen >= _MOST_DIRECTORIES:
            return None
        children.sort()
        with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.procs"), "rb") as file:
            if wanted in file.read().split():
                return directory
    return None


def _any_exists(directory: str, top: str, name: str) -> bool:
    while True:
        if os.path.exists(os.path.join(directory, name)):
            return True
        if directory == top:
            return False
        directory = os.path.dirname(directory)


def _inside(path: str, part: str) -> list[str]:
    """Paths below a mount that shows ``part`` of the hierarchy where the group ``path`` may be, most likely first."""
    if part == "/":
        return [path.strip("/")] if not path.startswith("/..") else []
    if path == part or path.startswith(part + "/"):
        return [path[len(part) :].strip("/")]
    # The process was moved after the mount was made, or the mount is from another namespace: try the common names.
    names = [name for name in path.split("/") if name and name != ".."]
    return ["/".join(names[n:]) for n in range(len(names))] + [""]


def _mounts(text: str, version: int) -> list[tuple[str, str]]:
    """(the part of the hierarchy shown, mount point) of each mount of the memory controller's hierarchy."""
    found = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, options = left.split(" "), right.split(" ")
        if not separator or len(fields) < 5 or len(options) < 3:
            continue
        if options[0] == "cgroup2" if version == 2 else "memory" in options[2].split(","):
            if version == 1 and options[0] != "cgroup":
                continue
            found.append((_unescaped(fields[3]), _unescaped(fields[4])))
    return found


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


# Sizes and limits as users write them


def parse_size(text: str, name: str = "memory_limit", whole: int | Callable[[], int] | None = None) -> int:
    """Bytes from ``"536870912"``, ``"512MB"``, ``"1.5GiB"`` or, if ``whole`` is given, ``"80%"`` of it.

    Units are B, K, M, G and T, optionally followed by B or iB, in upper or lower case. All are binary: 1 KB is 1,024
    bytes. Errors name the argument ``name``; sizes below one byte are refused.

    >>> parse_size("1.5GB"), parse_size("80%", whole=1000)
    (1610612736, 800)
    """
    allowed = 'a size like "512MB", "1.5GB" or "536870912"' + (
        "" if whole is None else ' or a percentage like "80%"'
    )
    if not isinstance(text, str):
        raise type_error(name, text, allowed)
    number = text.strip().lower()
    scale: float
    if number.endswith("%") and whole is not None:
        number = number[:-1].rstrip()
        scale = (whole() if callable(whole) else whole) / 100
        most = 100.0
    else:
        digits = number.rstrip("bikmgt")
        unit = number[len(digits) :]
        number = digits.rstrip()
        if unit not in _UNITS:
            raise value_error(name, text, allowed)
        scale = _UNITS[unit]
        most = float("inf")
    if (
        not number
        or number.strip("0123456789.")
        or number.count(".") > 1
        or number == "."
        or len(number) > 30
    ):
        raise value_error(name, text, allowed)
    value = float(number)
    size = int(number) * int(scale) if number.isdigit() and scale == int(scale) else int(value * scale)
    if value > most or not 1 <= size < _MOST_BYTES:
        raise value_error(name, text, allowed)
    return size


def memory_limit(limit: int | float | str | None, readings: HasLimit, name: str = "memory_limit") -> int:
    """A memory limit in bytes: None, a number of bytes, or a string for `parse_size`; at most the host's memory.

    None is the container's limit, or else the host's memory; a percentage is a share of it. A limit above the host's
    memory is clamped with a RuntimeWarning, so that one configuration suits machines of any size. Errors name the
    argument ``name``; limits below one byte are refused.
    """
    size = requested_limit(limit, readings, name)
    total = readings.total()
    if size > total:
        warnings.warn(
            f"{name} is {size} bytes, more than this machine has: {total} bytes are used instead",
            RuntimeWarning,
            stacklevel=_caller_level(),
        )
    return min(size, total)


def container_state(readings: object) -> str:
    """What is known about the container's limit: ``limited``, ``none`` or ``unknown``, as in `Readings`."""
    if isinstance(readings, Readings):
        return readings.container_state
    return "none" if readings.limit() is None else "limited"  # type: ignore[attr-defined]


def _caller_level() -> int:
    """The ``stacklevel`` at which a warning of `memory_limit` names the line that called into the package."""
    level, frame = 1, sys._getframe(1)
    while (
        frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "synthex_fast"
    ):
        level, frame = level + 1, frame.f_back
    return level


def requested_limit(limit: int | float | str | None, readings: HasLimit, name: str = "memory_limit") -> int:
    """`memory_limit` before it is clamped to what the machine has."""
    allowed = '1 byte or more, "512MB", "2GB", "80%" or None'
    if limit is None:
        return readings.limit() or readings.total()
    if isinstance(limit, str):
        return parse_size(limit, name, lambda: readings.limit() or readings.total())
    if isinstance(limit, bool) or not (isinstance(limit, (int, float)) or hasattr(limit, "__index__")):
        raise type_error(name, limit, allowed)
    if not isinstance(limit, float):
        import operator

        limit = operator.index(limit)
    # NaN fails every comparison.
    if not 1 <= limit < _MOST_BYTES:
        raise value_error(name, limit, allowed)
    return int(limit)
