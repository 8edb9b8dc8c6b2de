"""Draws frames until told to stop: the terminal's keys, the pace, and what to do if no answer comes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from typing import TYPE_CHECKING

from synthex_fast.top.sources import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from rich.console import Console, RenderableType

    from synthex_fast.top.screen import Screen
    from synthex_fast.top.sources import Process, Source

__all__ = ["list_processes", "once", "watch"]

_SECONDS = 1.0


def once(source: Source, as_json: bool, console: Console | None) -> None:
    """Print one frame. Raises `SourceError`."""
    frame = source.frame()
    if as_json:
        print(json.dumps(frame, indent=1))
        return
    from synthex_fast.top.screen import Screen

    assert console is not None
    screen = Screen(_is_ascii(console))
    _take(screen, frame)
    console.print(_drawn(screen, console))


def list_processes(found: list[Process]) -> None:
    """One line for each process that answers."""
    from synthex_fast.top.screen import nbytes

    for process in found:
        try:
            frame = process.frame()
        except SourceError as error:
            print(f"{process.pid:>8}  {error}")
            continue
        memory = frame["memory"] or {}
        names = ", ".join(each["name"] for each in frame["components"][:4])
        print(f"{process.pid:>8}  {nbytes(memory.get('rss')):>8}  {memory.get('level') or '':<9}  {names}")


def watch(source: Source, console: Console) -> None:
    """Draw a frame each second until q or Ctrl-C. Raises `SourceError` if the first one can't be had.

    A process that has ended ends it, too; a page may be served by another worker soon, so it is asked again.
    """
    from rich.live import Live

    from synthex_fast.top.screen import Screen

    screen = Screen(_is_ascii(console))
    _take(screen, source.frame())
    drawn = _drawn(screen, console)
    heard = time.monotonic()
    note = ""
    with (
        _keys() as quits,
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            live.update(drawn, refresh=True)
            if quits(_SECONDS):
                return
            try:
                _take(screen, source.frame())
                heard, note = time.monotonic(), ""
            except SourceError as error:
                if "has ended" in str(error):
                    raise
                note = f"no answer for {time.monotonic() - heard:.0f} s, trying again"
            drawn = _drawn(screen, console, note)


_STRANGE = "these are the figures of another version of the package"


def _take(screen: Screen, frame: dict[str, Any]) -> None:
    try:
        screen.take(frame)
    except (LookupError, TypeError, AttributeError, ValueError):
        raise SourceError(_STRANGE) from None


def _drawn(screen: Screen, console: Console, note: str = "") -> RenderableType:
    try:
        return screen.draw(console.width, note)
    except (LookupError, TypeError, AttributeError, ValueError):
        raise SourceError(_STRANGE) from None


def _is_ascii(console: Console) -> bool:
    return not console.encoding.startswith("utf")


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yields a wait for that many seconds that returns True as soon as q is pressed."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before: Any = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, AttributeError):
        # Windows, or no terminal to read from: Ctrl-C ends it.
        yield _sleep
        return
    except Exception as error:
        # termios has an error of its own.
        if type(error).__name__ != "error":
            raise
        yield _sleep
        return

    def quits(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([descriptor], [], [], left)
            if not ready:
                return False
            typed = os.read(descriptor, 64)
            if not typed or b"q" in typed.lower():
                return True
        return False

    tty.setcbreak(descriptor)
    try:
        yield quits
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False
