"""What the kernel says of memory: resident size, the container's charge and limit, what the host has left.

On Linux the figures come from ``/proc`` and from the memory controller of control groups, version 1 or 2, through
descriptors kept open and read with ``pread``: opening a file costs several times what reading it does. Elsewhere
they come from psutil, and there is no container.

How a process finds its group: ``/proc/self/cgroup`` says its path in each hierarchy, ``/proc/self/mountinfo`` where
the hierarchies are mounted and which part of them is (man pages cgroups(7), cgroup_namespaces(7), proc(5); files as
in the kernel's ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``).
"""

from __future__ import annotations

import os
import threading

from synthex_fast.errors import type_error, value_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class HasLimit(Protocol):
        def limit(self) -> int | None: ...
        def total(self) -> int: ...


__all__ = ["Readings", "memory_limit", "parse_size"]

# Binary, with or without the "i", as in Docker, the JVM and the report's memory_limit_mb.
_UNITS = {"": 1, "b": 1}
for _exponent, _letter in enumerate("kmgt", 1):
    _UNITS |= dict.fromkeys((_letter, f"{_letter}b", f"{_letter}i", f"{_letter}ib"), 1 << 10 * _exponent)

# How often this process is the child of a fork: descriptors opened before the last one show another process.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class _File:
    """A descriptor for reading, closed when nobody uses it any more: a thread may be reading while another reopens."""

    __slots__ = ("_identity", "fd")

    def __init__(self, path: str) -> None:
        self._identity: tuple[int, int] | None = None
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(self.fd)
        self._identity = status.st_dev, status.st_ino

    def read(self, size: int) -> bytes:
        return os.pread(self.fd, size, 0)

    def __del__(
        self, fstat: Callable[[int], os.stat_result] = os.fstat, close: Callable[[int], None] = os.close
    ) -> None:
        # A process that turns itself into a daemon closes every descriptor; the number may be another file's now.
        try:
            status = fstat(self.fd)
            if self._identity is None or self._identity == (status.st_dev, status.st_ino):
                close(self.fd)
        except (AttributeError, OSError):
            pass


class _Group:
    """A control group of the memory controller, as far as it can be read here."""

    __slots__ = ("directory", "limit", "stat", "swap", "usage", "version")

    def __init__(self, version: int, directory: str) -> None:
        self.version = version
        self.directory = directory
        usage, limit = "memory.current", "memory.max"
        if version == 1:
            usage, limit = "memory.usage_in_bytes", "memory.limit_in_bytes"
        self.usage = _File(os.path.join(directory, usage))
        self.limit = _File(os.path.join(directory, limit))
        self.stat = _File(os.path.join(directory, "memory.stat"))
        self.swap = None
        if version == 2:
            try:
                self.swap = _File(os.path.join(directory, "memory.swap.current"))
            except OSError:
                # No swap accounting in this kernel.
                self.swap = None


class Readings:
    """Figures on memory in bytes, read anew at each call.

    ``root`` is a directory that holds ``proc`` and what is mounted below it: a copy of another machine's, in tests.
    May be used from any thread, and goes on in the child of a fork. `rss` and `charge` together cost about 3
    microseconds on Linux, `slow` (everything else) about 20.

    >>> Readings().rss() > 0
    True
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._root = os.fspath(root)
        self._lock = threading.Lock()
        self._page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
        self._process: Any = None
        self._close()

    def _close(self) -> None:
        # No fork has this number: the next reading opens everything.
        self._opened = -1
        self._statm: _File | None = None
        self._meminfo: _File | None = None
        self._membership: _File | None = None
        self._path = b""
        # From the process's own group outwards.
        self._groups: list[_Group] = []
        # The one whose charge counts, and the limit by which it was chosen.
        self._group: _Group | None = None
        self._chosen_for: int | None = None

    def close(self) -> None:
        """Let go of all descriptors; another reading opens them again."""
        with self._lock:
            self._close()

    # Opening

    def _open(self) -> None:
        if not self._lock.acquire(timeout=1.0):
            # It was held by a thread of the parent when the process forked.
            self._lock = threading.Lock()
            self._lock.acquire()
        try:
            if self._opened == _forks:
                return
            forks = _forks
            self._close()
            try:
                proc = os.path.join(self._root, "proc")
                statm = _File(os.path.join(proc, "self/statm"))
                meminfo = _File(os.path.join(proc, "meminfo"))
                # Kernels before 3.14 don't estimate it; such a host is read with psutil.
                text = meminfo.read(8192)
                if _field(text, b"MemAvailable:") is not None:
                    self._statm, self._meminfo = statm, meminfo
                    self._enter_groups()
                    self._limit((_field(text, b"MemTotal:") or 0) << 10, self._stat())
            except OSError:
                pass
            if self._statm is None:
                import psutil

                self._process = psutil.Process()
            self._opened = forks
        finally:
            self._lock.release()

    def _enter_groups(self) -> None:
        try:
            self._membership = _File(os.path.join(self._root, "proc/self/cgroup"))
            self._path = self._membership.read(65536)
            mounts = _read(os.path.join(self._root, "proc/self/mountinfo"))
        except OSError:
            self._membership = None
            return
        version, directories = find_groups(self._path.decode(errors="surrogateescape"), mounts, self._root)
        groups = []
        for directory in directories:
            try:
                groups.append(_Group(version, directory))
            except OSError:
                # Gone, not permitted, or without the controller (the root of a version 2 hierarchy).
                continue
        self._groups = groups
        self._group = groups[0] if groups else None
        self._chosen_for = None

    def _reopen(self) -> None:
        self._opened = -1
        self._open()

    # The readings

    def rss(self) -> int:
        """Resident set size of this process."""
        if self._opened != _forks:
            self._open()
        statm = self._statm
        if statm is None:
            return int(self._process.memory_info().rss)
        try:
            return int(os.pread(statm.fd, 128, 0).split(None, 2)[1]) * self._page
        except (OSError, ValueError, IndexError):
            # The descriptor was closed behind our back.
            self._reopen()
            return int(_opened(self._statm).read(128).split(None, 2)[1]) * self._page

    def charge(self) -> int | None:
        """Memory charged to the container, page cache included; None outside of one.

        The container is the control group with the least limit among this process's own and those around it (the
        outermost of equals: it fills first), the process's own where none has a limit.
        """
        if self._opened != _forks:
            self._open()
        group = self._group
        if group is None:
            return None
        try:
            return int(os.pread(group.usage.fd, 32, 0))
        except (OSError, ValueError):
            # The process has been moved, and the group removed.
            self._reopen()
            group = self._group
            return None if group is None else int(group.usage.read(32))

    def limit(self) -> int | None:
        """The least limit of the process's control group and those around it; None where none is under `total`."""
        if self._opened != _forks:
            self._open()
        total = self.total()
        self._follow()
        return self._limit(total, self._stat())

    def _stat(self) -> bytes:
        """The own group's ``memory.stat`` where the limit is in there."""
        try:
            if self._groups and self._groups[0].version == 1:
                return self._groups[0].stat.read(8192)
        except OSError:
            pass
        return b""

    def _limit(self, total: int, stat: bytes) -> int | None:
        groups = self._groups
        if not groups:
            return None
        chosen = groups[0]
        # The kernel's own least over the hierarchy, groups included that a container can't see.
        least = _field(stat, b"\nhierarchical_memory_limit ")
        try:
            if least is None or (least < total and least != self._chosen_for):
                for group in groups:
                    limit = _number(group.limit.read(32))
                    if limit is not None and limit < total and (least is None or limit <= least):
                        least, chosen = limit, group
                self._chosen_for = least
            elif least < total and self._group is not None:
                chosen = self._group
        except OSError:
            # Removed at this moment; the next reading finds where the process is now.
            least = None
        self._group = chosen
        # One that the host can't reach binds nothing; "no limit" of version 1 is such a number too.
        return None if least is None or least >= total else least

    def _follow(self) -> None:
        """Find the groups anew if the process has been moved to another one."""
        membership = self._membership
        try:
            if membership is not None and membership.read(65536) != self._path:
                self._reopen()
        except OSError:
            self._reopen()

    def reclaimable(self) -> int:
        """The part of `charge` that the kernel takes back before it kills: file pages not used lately.

        0 where there is no container. What Kubernetes and Docker subtract to get the working set.
        """
        if self._opened != _forks:
            self._open()
        group = self._group
        if group is None:
            return 0
        key = b"\ntotal_inactive_file " if group.version == 1 else b"\ninactive_file "
        try:
            return _field(group.stat.read(8192), key) or 0
        except OSError:
            return 0

    def available(self) -> int:
        """What the host can give out without swapping (``MemAvailable``), whatever the container's limit."""
        return self._memory(b"MemAvailable:", "available")

    def total(self) -> int:
        """The host's memory."""
        return self._memory(b"MemTotal:", "total")

    def swap(self) -> int:
        """Swap in use: by the container where that is known, else by the host."""
        if self._opened != _forks:
            self._open()
        meminfo = self._meminfo
        if meminfo is None:
            import psutil

            return int(psutil.swap_memory().used)
        group = self._group
        try:
            if group is not None and group.version == 1:
                swap = _field(group.stat.read(8192), b"\ntotal_swap ")
                if swap is not None:
                    return swap
            elif group is not None and group.swap is not None:
                return int(group.swap.read(32))
        except OSError:
            pass
        return _host_swap(meminfo.read(8192))

    def slow(self, near: int = 0) -> tuple[int | None, int, int, int]:
        """`limit`, `available`, `swap` and `reclaimable`, each file read once.

        With a charge under ``near`` bytes the reclaimable part may be left out (0): reading it is the dearest.
        """
        if self._opened != _forks:
            self._open()
        meminfo = self._meminfo
        if meminfo is None:
            return None, self.available(), self.swap(), 0
        try:
            text = meminfo.read(8192)
        except OSError:
            self._reopen()
            text = _opened(self._meminfo).read(8192)
        available = (_field(text, b"MemAvailable:") or 0) << 10
        self._follow()
        stat = self._stat()
        limit = self._limit((_field(text, b"MemTotal:") or 0) << 10, stat)
        group = self._group
        if group is None:
            return limit, available, _host_swap(text), 0
        swap = reclaimable = None
        try:
            if group.version == 1:
                if group is not self._groups[0]:
                    stat = group.stat.read(8192)
                swap = _field(stat, b"\ntotal_swap ")
                reclaimable = _field(stat, b"\ntotal_inactive_file ")
            else:
                if group.swap is not None:
                    swap = int(group.swap.read(32))
                if near <= 0 or int(group.usage.read(32)) >= near:
                    reclaimable = _field(group.stat.read(8192), b"\ninactive_file ")
        except OSError:
            pass
        return limit, available, _host_swap(text) if swap is None else swap, reclaimable or 0

    def _memory(self, key: bytes, name: str) -> int:
        if self._opened != _forks:
            self._open()
        meminfo = self._meminfo
        if meminfo is None:
            import psutil

            return int(getattr(psutil.virtual_memory(), name))
        try:
            return (_field(meminfo.read(8192), key) or 0) << 10
        except OSError:
            self._reopen()
            return (_field(_opened(self._meminfo).read(8192), key) or 0) << 10

    @property
    def container(self) -> tuple[int, str] | None:
        """The version and directory of the control group whose charge counts."""
        if self._opened != _forks:
            self._open()
        group = self._group
        return None if group is None else (group.version, group.directory)


def _opened(file: _File | None) -> _File:
    if file is None:
        raise OSError("/proc can't be read any more")
    return file


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _number(text: bytes) -> int | None:
    """A limit, None for version 2's ``max``."""
    return None if text.startswith(b"max") else int(text)


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


def find_groups(membership: str, mounts: str, root: str = "/") -> tuple[int, list[str]]:
    """The version of the memory controller and the directories of this process's groups, its own first.

    ``membership`` and ``mounts`` are the texts of ``/proc/self/cgroup`` and ``/proc/self/mountinfo``. On hosts with
    both versions the controller is in one hierarchy only, and version 1 is where it is listed. No directory where
    the controller is not mounted.
    """
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
        return version, []
    path = paths[version].removesuffix(" (deleted)")
    usage = "memory.usage_in_bytes" if version == 1 else "memory.current"
    # The mount that shows the largest part of the hierarchy knows most of the groups around us.
    for part, point in sorted(_mounts(mounts, version), key=lambda mount: len(mount[0])):
        top = os.path.join(root, point.lstrip("/"))
        for inner in _inside(path, part):
            directory = os.path.join(top, inner) if inner else top
            if not os.path.isdir(directory) or (inner and not _any_exists(directory, top, usage)):
                continue
            directories = [directory]
            while directory != top:
                directory = os.path.dirname(directory)
                directories.append(directory)
            if version == 1 and os.path.exists(os.path.join(top, "release_agent")):
                # The root of the whole hierarchy is the host, not a container.
                directories.pop()
            return version, [d for d in directories if os.path.exists(os.path.join(d, usage))]
    return version, []


def _any_exists(directory: str, top: str, name: str) -> bool:
    while True:
        if os.path.exists(os.path.join(directory, name)):
            return True
        if directory == top:
            return False
        directory = os.path.dirname(directory)


def _inside(path: str, part: str) -> list[str]:
    """Where below a mount that shows ``part`` of the hierarchy the group ``path`` may be, best guess first."""
    if part == "/":
        return [path.strip("/")] if not path.startswith("/..") else []
    if path == part or path.startswith(part + "/"):
        return [path[len(part) :].strip("/")]
    # A process moved after the mount was made, or a mount from outside of our namespace: the names that both know.
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


# Limits as users write them


def parse_size(text: str, name: str = "memory_limit", whole: int | Callable[[], int] | None = None) -> int:
    """Bytes from ``"536870912"``, ``"512MB"``, ``"1.5GiB"`` or, where ``whole`` is given, ``"80%"`` of it.

    Units are B, K, M, G, T, also with B or iB, in any case, and binary: 1 KB is 1,024 bytes. `ValueError` names the
    argument ``name``; a size under one byte is refused.

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
    if value > most or size < 1:
        raise value_error(name, text, allowed)
    return size


def memory_limit(limit: int | float | str | None, readings: HasLimit, name: str = "memory_limit") -> int:
    """A memory limit in bytes from what a user may give for one.

    None is the container's limit, else the host's memory. A number is bytes, a string as `parse_size` reads it, a
    percentage being of the container's limit, else of the host's memory. `ValueError` and `TypeError` name the
    argument ``name``: what is not a number, under one byte or above the host's memory is refused.
    """
    total = readings.total()
    allowed = f'bytes from 1 to {total} (the host\'s memory), "512MB", "2GB", "80%" or None'
    if limit is None:
        return readings.limit() or total
    if isinstance(limit, str):
        size = parse_size(limit, name, lambda: readings.limit() or total)
    elif isinstance(limit, bool) or not (isinstance(limit, (int, float)) or hasattr(limit, "__index__")):
        raise type_error(name, limit, allowed)
    elif isinstance(limit, float):
        # NaN and the infinities fail here too.
        if not 1 <= limit <= total:
            raise value_error(name, limit, allowed)
        size = int(limit)
    else:
        import operator

        size = operator.index(limit)
    if not 1 <= size <= total:
        raise value_error(name, limit, allowed)
    return size
