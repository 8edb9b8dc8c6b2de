"""What ends the monitor's sleep early: the kernel, when memory grows or stalls, and other threads.

`Waker` sleeps in ``poll`` on a pipe, which other threads write to, and on the kernel's files. Which ones depends on the
control group's version:

- Version 1: a threshold on the charge (``cgroup.event_control``). It fires once memory has grown to it, and
  `GrowthThreshold` decides where to set the next one.
- Version 2: ``memory.events``, and pressure stall information of the group or of the host.
- Without these, or in addition to the latter, the monitor reads resident size after garbage collections (`thread`).

One thread may wake a waker while another closes it. The pipe is therefore closed only once it is unused, because its
descriptor's number may belong to another file a moment later.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import sys
import threading
from _queue import Empty
from typing import TYPE_CHECKING, Any

from synthex_fast._threads import SimpleQueue, original

if TYPE_CHECKING:
    from collections.abc import Callable

    from synthex_fast.monitor.sampling import Sample

__all__ = ["LEAST_BURST", "GrowthThreshold", "Waker", "burst"]

# gevent's would wait for its event loop.
_close_descriptor: Callable[[int], None] = original(os, "close")

LEAST_BURST = 16 << 20
# A threshold closer than this would fire all the time.
_LEAST_AHEAD = 1 << 20


def burst(rss: int, limit: int) -> int:
    """Bytes by which memory must grow to be worth an extra sample."""
    return max(LEAST_BURST, min(limit // 16, rss // 4))


class _Pipe:
    """Closed when the last reference is released."""

    __slots__ = ("into", "out")

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        for fd in (self.out, self.into):
            os.set_blocking(fd, False)

    def __del__(self, close: Callable[[int], None] = _close_descriptor) -> None:
        # At the interpreter's exit the module's names may be gone.
        for name in ("into", "out"):
            try:  # noqa: SIM105
                close(getattr(self, name))
            except (AttributeError, OSError):
                pass


class Waker:
    """A sleep that another thread, a garbage collection or the kernel can end early."""

    how = "collections"
    cost = "a reading of resident size (2 microseconds), at most once a second, at the end of a collection"

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] | None = None
        self._pipe: _Pipe | None = None
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._pipe = _Pipe()
            self._poll = original(select, "poll")()
            self._poll.register(self._pipe.out, select.POLLIN)
        else:
            self._queue = SimpleQueue()
        # Events to poll for, by descriptor.
        self._kernel: dict[int, int] = {}
        self._threshold: int | None = None
        self._group: tuple[int, str] | None = None

    def subscribe(self, container: tuple[int, str] | None, root: str) -> None:
        """Register for the kernel's events as far as it allows.

        ``container`` is the version and the directory of the control group; ``proc`` is in ``root``.
        """
        self._group = container
        if self._poll is None or not sys.platform.startswith("linux"):
            return
        if container is not None and container[0] == 1 and self.set_threshold(1 << 62):
            self.how = "cgroup threshold"
            self.cost = (
                "nothing until it fires; setting the next one then takes about 0.1 ms of processor time"
            )
            return
        found = []
        paths = [os.path.join(root, "proc/pressure/memory")]
        if container is not None and container[0] == 2:
            directory = container[1]
            with contextlib.suppress(OSError):
                fd = os.open(os.path.join(directory, "memory.events"), os.O_RDONLY | os.O_CLOEXEC)
                self._kernel[fd] = select.POLLPRI
                os.pread(fd, 4096, 0)
                found.append("cgroup events")
            paths.insert(0, os.path.join(directory, "memory.pressure"))
        for path in paths:
            stall = self._subscribe_to_stalls(path)
            if stall is not None:
                found.append(stall)
                break
        if found:
            self.how = ", ".join([*found, Waker.how])
            self.cost = (
                f"nothing from the kernel while memory neither stalls nor reaches its limit; {Waker.cost}"
            )
        for fd, mask in self._kernel.items():
            self._poll.register(fd, mask)

    def _subscribe_to_stalls(self, path: str) -> str | None:
        # Some task stalled for 150 ms in a second. Without CAP_SYS_RESOURCE the window must be a multiple of 2 seconds.
        for how, trigger in (
            ("pressure stall", b"some 150000 1000000\0"),
            ("pressure stall (2 s)", b"some 300000 2000000\0"),
        ):
            try:
                fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                return None
            try:
                os.write(fd, trigger)
            except OSError:
                _close_descriptor(fd)
                continue
            self._kernel[fd] = select.POLLPRI
            return how
        return None

    @property
    def has_threshold(self) -> bool:
        return self._threshold is not None

    def move_to(self, container: tuple[int, str] | None) -> bool:
        """Set the next threshold in that group; return whether it is another one than before."""
        if container is None or container == self._group:
            return False
        self._group = container
        return True

    def set_threshold(self, charge: int) -> bool:
        """Wake up when the group's charge crosses this many bytes (version 1 only); return whether it is set.

        The kernel makes the processes of a group wait for their turn, 40 ms each and more under load.
        """
        assert self._group is not None
        directory = self._group[1]
        event = control = usage = pressure = -1
        try:
            event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            control = os.open(os.path.join(directory, "cgroup.event_control"), os.O_WRONLY | os.O_CLOEXEC)
            usage = os.open(os.path.join(directory, "memory.usage_in_bytes"), os.O_RDONLY | os.O_CLOEXEC)
            os.write(control, b"%d %d %d" % (event, usage, charge))
            with contextlib.suppress(OSError):
                # If page cache makes room for the process's own memory, the charge does not change.
                pressure = os.open(
                    os.path.join(directory, "memory.pressure_level"), os.O_RDONLY | os.O_CLOEXEC
                )
                os.write(control, b"%d %d medium" % (event, pressure))
        except BaseException as error:
            _close(event)
            if isinstance(error, (OSError, AttributeError)):
                return False
            raise
        finally:
            _close(control)
            _close(usage)
            _close(pressure)
        old, self._threshold = self._threshold, event
        self._poll.register(event, select.POLLIN)
        if old is not None:
            self._poll.unregister(old)
            _close(old)
        return True

    def mute(self, muted: bool) -> None:
        """Ignore the kernel's events, or stop ignoring them."""
        for fd, mask in self._kernel.items():
            self._poll.modify(fd, 0 if muted else mask)
        if self._threshold is not None:
            self._poll.modify(self._threshold, 0 if muted else select.POLLIN)

    def sleep(self, seconds: float) -> bool:
        """Sleep until woken or for that time; return whether the kernel ended it."""
        if self._queue is not None:
            with contextlib.suppress(Empty):
                self._queue.get(True, min(seconds, threading.TIMEOUT_MAX))
            return False
        pipe = self._pipe
        assert pipe is not None
        kernel = False
        # Rounded up: samples slightly too early would read the slow figures more often than once a minute.
        for fd, got in self._poll.poll(min(math.ceil(seconds * 1000), 1 << 30)):
            if fd == pipe.out:
                with contextlib.suppress(OSError):
                    os.read(fd, 4096)
                continue
            kernel = True
            if fd == self._threshold:
                with contextlib.suppress(OSError):
                    os.eventfd_read(fd)
                continue
            removed = got & select.POLLERR and not got & select.POLLPRI
            try:
                # The kernel reports only changes since the last read.
                os.pread(fd, 4096, 0)
            except OSError as error:
                removed = removed or error.errno == errno.ENODEV
            if removed:
                # The group no longer exists, and poll would return at once forever.
                self._poll.unregister(fd)
                self._kernel.pop(fd, None)
                _close(fd)
        return kernel

    def wake(self) -> None:
        """End the sleep, from any thread."""
        queue = self._queue
        if queue is not None:
            if queue.empty():
                queue.put(None)
            return
        # The sleeping thread may be closing it.
        pipe = self._pipe
        if pipe is not None:
            with contextlib.suppress(OSError):
                os.write(pipe.into, b"x")

    def close(self) -> None:
        fds = list(self._kernel)
        if self._threshold is not None:
            fds.append(self._threshold)
        self._pipe = self._threshold = None
        self._kernel = {}
        for fd in fds:
            _close(fd)


def _close(fd: int) -> None:
    if fd >= 0:
        with contextlib.suppress(OSError):
            _close_descriptor(fd)


class GrowthThreshold:
    """Where the threshold on the charge is, and where the next one goes.

    A charge that grows by page cache alone would wake the monitor in vain, so each vain event doubles the distance to
    the next threshold, up to ``_MOST_PATIENCE`` bursts.
    """

    _MOST_PATIENCE = 16

    __slots__ = ("_patience", "_rss", "at")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.at: int | None = None
        self._patience = 1
        # Resident size when the threshold was set.
        self._rss = 0

    def forget(self) -> None:
        """The threshold is no longer set; how long to wait for the next one stays."""
        self.at = None

    def update(
        self,
        waker: Waker,
        sample: Sample,
        event: bool,
        container: tuple[int, str] | None,
        distance: int,
        until_next_level: int | None,
    ) -> None:
        """Set the next threshold, ``distance`` bytes ahead or at the next level, after an event or a fall of memory."""
        charge = sample.charge
        if charge is None:
            return
        if waker.move_to(container):
            self.at = None
        at = self.at
        if at is not None and not event and at - charge <= 3 * distance * self._patience:
            return
        in_vain = at is not None and sample.rss - self._rss <= distance // 2
        self._patience = min(2 * self._patience, self._MOST_PATIENCE) if in_vain and event else 1
        ahead = distance * self._patience
        if until_next_level is not None:
            ahead = min(ahead, max(_LEAST_AHEAD, until_next_level))
        if waker.set_threshold(charge + ahead):
            self.at = charge + ahead
            self._rss = sample.rss
