"""The file that the workers of a container share: where it is, who owns which slot, and what is posted there.

The file is in a directory of this user's only, named after the container. It has a header and a fixed number of slots.
A worker owns a slot while it holds a record lock (``fcntl``) on the slot's first byte, which the kernel releases when
the process ends, however it ends. So a lock that is free means that the worker is gone, and no clock is needed.

Two properties of these locks matter. They belong to the process: all are lost as soon as it closes any descriptor of
the file, so a process opens it once. And a forked child has none of them, so it claims a slot of its own.

The file is read and written with ``pread`` and ``pwrite``. A mapping would save a microsecond for each look, and end
the process (SIGBUS) if somebody truncates the file. What is read is never trusted: a posting counts if its checksum and
each of its numbers are plausible, and is ignored otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import struct
import zlib

from synthex_fast import _runtime_directory
from synthex_fast._fleet._watch import is_locked
from synthex_fast._fleet.split import ANYTHING, WEIGHT_LEAST, WEIGHT_MOST, Posting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from synthex_fast._fleet._watch import Watch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["SLOTS", "AloneError", "FleetFile", "find_directory"]

MAGIC = b"synthex-fast fleet"
# Of the layout. Part of the file's name too, so that two versions of the package don't meet in one file.
VERSION = 1
SLOTS = 64
_HEADER = struct.Struct("<24sI36x")
_CHECKSUM = struct.Struct("<I4x")
_FIELDS = struct.Struct("<qdqqqdddqqqq??6x")
_SLOT_SIZE = 128
SIZE = _HEADER.size + SLOTS * _SLOT_SIZE
# Bytes of the header that stand for locks.
_SETUP_BYTE, _TURN_BYTE = 0, 32
_EMPTY = bytes(_SLOT_SIZE)


class AloneError(Exception):
    """There is no fleet to join; the message is the reason."""


def find_directory() -> str:
    """The directory for the file, made if it does not exist. Raises `AloneError` unless it is this user's only."""
    if fcntl is None:
        raise AloneError("the system has no fcntl locks")
    reason = "no directory"
    for path in _runtime_directory.candidates():
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            status = os.lstat(path)
        except OSError as error:
            reason = f"no directory can be made in {os.path.dirname(path)}: {error.strerror}"
            continue
        if not stat.S_ISDIR(status.st_mode):
            raise AloneError(f"{path} is not a directory")
        if not _runtime_directory.is_private(status):
            raise AloneError(f"{path} is not this user's only")
        return path
    raise AloneError(reason)


def _plausible(posting: Posting) -> bool:
    sizes = posting.nbytes, posting.held, posting.rest, posting.most, posting.floor, posting.share
    return (
        0 < posting.pid < 1 << 32
        and all(0 <= size <= ANYTHING for size in sizes)
        and 0 <= posting.level <= 4
        and all(0 <= number < math.inf for number in (posting.started, posting.want, posting.evidence))
        and WEIGHT_LEAST <= posting.weight <= WEIGHT_MOST
    )


def _packed(posting: Posting) -> bytes:
    fields = _FIELDS.pack(*posting)
    return (_CHECKSUM.pack(zlib.crc32(fields)) + fields).ljust(_SLOT_SIZE, b"\0")


def _unpacked(data: bytes) -> Posting | None:
    """The posting in a slot, or None if it is empty or makes no sense."""
    fields = data[_CHECKSUM.size : _CHECKSUM.size + _FIELDS.size]
    (checksum,) = _CHECKSUM.unpack_from(data)
    if checksum != zlib.crc32(fields):
        return None
    posting = Posting._make(_FIELDS.unpack(fields))
    return posting if _plausible(posting) else None


class FleetFile:
    """The open file and this process's slot in it. Raises `AloneError` if it can't be opened, or belongs to others."""

    __slots__ = ("__weakref__", "_identity", "_posted", "_raw", "_seen", "_turn", "fd", "path", "slot")

    def __init__(self, path: str) -> None:
        self._identity: tuple[int, int] | None = None
        self.path = path
        self.slot = -1
        self._posted = b""
        # The slots' bytes as last read, and the postings of others in them.
        self._raw = b""
        self._seen: dict[int, Posting] = {}
        self._turn = False
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self.fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise AloneError(f"{path} can't be opened: {error.strerror}") from error
        status = os.fstat(self.fd)
        self._identity = status.st_dev, status.st_ino
        try:
            self._check(status)
            self._set_up(status.st_size)
            self._claim()
        except OSError as error:
            raise AloneError(f"{path} can't be used: {error.strerror}") from error

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise AloneError(f"{self.path} is not a file")
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise AloneError(f"{self.path} is not this user's only")

    def _set_up(self, size: int) -> None:
        header = _HEADER.pack(MAGIC, VERSION)
        if not size:
            if not self._lock(_SETUP_BYTE):
                raise AloneError(f"{self.path} is being set up")
            try:
                # Zeros, not a hole: if the disk is full, that shows here.
                empty = not os.fstat(self.fd).st_size
                if empty and os.pwrite(self.fd, header + bytes(SIZE - len(header)), 0) != SIZE:
                    with contextlib.suppress(OSError):
                        os.ftruncate(self.fd, 0)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                self._unlock(_SETUP_BYTE)
        elif size != SIZE:
            raise AloneError(f"{self.path} has {size} bytes instead of {SIZE}")
        if os.pread(self.fd, len(header), 0) != header:
            raise AloneError(f"{self.path} is not a file of this version's")

    def _claim(self) -> None:
        for slot in range(SLOTS):
            if self._lock(self._place(slot)):
                self.slot = slot
                os.pwrite(self.fd, _EMPTY, self._place(slot))
                return
        raise AloneError(f"all {SLOTS} places of {self.path} are taken")

    @staticmethod
    def _place(slot: int) -> int:
        return _HEADER.size + slot * _SLOT_SIZE

    def _lock(self, at: int) -> bool:
        """Lock one byte, unless another process has it."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def _unlock(self, at: int) -> None:
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, at)

    def post(self, posting: Posting) -> None:
        """Tell the others. Raises OSError if it can't be written."""
        data = _packed(posting)
        self._check_identity()
        if os.pwrite(self.fd, data, self._place(self.slot)) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._posted = data

    def look(self) -> dict[int, Posting]:
        """The postings of the living siblings by slot; the same object as last time unless something has changed.

        Raises `AloneError` if the file is no longer the one that others find, or the slot is no longer this process's.
        """
        try:
            raw = os.pread(self.fd, SIZE - _HEADER.size, _HEADER.size)
            self._check_again()
        except OSError as error:
            raise AloneError(f"{self.path} can't be read: {error.strerror}") from error
        if len(raw) != SIZE - _HEADER.size:
            raise AloneError(f"{self.path} has changed its size")
        if raw != self._raw:
            found = self._parsed(raw)
            at = self.slot * _SLOT_SIZE
            if self._posted and raw[at : at + _SLOT_SIZE] != self._posted:
                # Taken for a dead one's, or overwritten.
                os.pwrite(self.fd, self._posted, self._place(self.slot))
            # Before the bytes: see `watch`.
            if found != self._seen:
                self._seen = found
        # Even if they are equal: a watch takes other bytes for a look.
        self._raw = raw
        gone = [slot for slot in self._seen if not self._lives(slot)]
        if gone:
            self._seen = {slot: posting for slot, posting in self._seen.items() if slot not in gone}
            self._raw = b""
        return self._seen

    def watch(self, watch: Watch, siblings: dict[int, Posting], period: float) -> bool:
        """Let ``watch`` look every ``period`` seconds whether the postings are still these and their owners alive.

        ``siblings`` are as last returned by `look`; False if they no longer are what was last read.
        """
        raw = self._raw
        # Compared last: another thread may be looking. Bytes that are too old only end the wait.
        if not raw or self._seen is not siblings:
            return False
        try:
            self._check_identity()
        except (AloneError, OSError):
            return False
        places = [self._place(slot) for slot in siblings]
        watch.look_at(self, self.fd, raw, _HEADER.size, places, period)
        return True

    def _check_identity(self) -> os.stat_result:
        """Nothing is written to another file that has got the number, as after turning into a daemon."""
        status = os.fstat(self.fd)
        if (status.st_dev, status.st_ino) != self._identity:
            raise AloneError(f"the descriptor of {self.path} was closed")
        return status

    def _check_again(self) -> None:
        """Whether file and slot are still what they were."""
        status = self._check_identity()
        if not status.st_nlink or status.st_size != SIZE:
            raise AloneError(f"{self.path} was removed or has changed its size")
        # Its own lock it gets in any case, unless another descriptor was closed and somebody else was faster.
        if not self._lock(self._place(self.slot)):
            raise AloneError(f"the place in {self.path} was lost")

    def _parsed(self, raw: bytes) -> dict[int, Posting]:
        before = self._raw
        found = {}
        for slot in range(SLOTS):
            at = slot * _SLOT_SIZE
            data = raw[at : at + _SLOT_SIZE]
            if slot == self.slot or data == _EMPTY:
                continue
            known = self._seen.get(slot)
            posting = known if known and data == before[at : at + _SLOT_SIZE] else _unpacked(data)
            if posting is not None:
                found[slot] = posting
        return found

    def _lives(self, slot: int) -> bool:
        """Whether the slot's owner is alive. What a dead one has left is removed."""
        if slot == self.slot:
            # Asking for the process's own lock would release it.
            return True
        place = self._place(slot)
        # With a lock of its own, this process would look to the others as if the dead one lived.
        if is_locked(self.fd, place):
            return True
        with contextlib.suppress(OSError):
            # Whoever takes the slot at this moment finds that its posting has gone, and posts again.
            os.pwrite(self.fd, _EMPTY, place)
        return False

    # Turns

    def take_turn(self) -> bool:
        """Take the turn to collect fully, unless a sibling has it."""
        try:
            self._turn = self._lock(_TURN_BYTE)
        except OSError:
            # Without locks there are no turns.
            return True
        return self._turn

    def end_turn(self) -> None:
        if self._turn:
            self._turn = False
            with contextlib.suppress(OSError):
                self._unlock(_TURN_BYTE)

    def leave(self) -> None:
        """Give the slot up. The descriptor is closed with the last reference: another thread may still be reading."""
        with contextlib.suppress(OSError, AloneError):
            # The last one takes the file away. Whoever joins at this moment finds that it is gone, and joins again.
            if not self.look():
                os.unlink(self.path)
        with contextlib.suppress(OSError, AloneError):
            self._check_identity()
            os.pwrite(self.fd, _EMPTY, self._place(self.slot))
            self._unlock(self._place(self.slot))

    def abandon(self) -> None:
        """In a forked child: nothing here is the child's."""
        self.slot = -1
        self._turn = False

    def __del__(
        self, fstat: Callable[[int], os.stat_result] = os.fstat, close: Callable[[int], None] = os.close
    ) -> None:
        # The number may belong to another file by now, if the process has closed all descriptors.
        try:
            status = fstat(self.fd)
            if self._identity is None or self._identity == (status.st_dev, status.st_ino):
                close(self.fd)
        except (AttributeError, OSError):
            pass
