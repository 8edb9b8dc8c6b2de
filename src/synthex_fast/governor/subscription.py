"""The governor's use of a pressure source: its callbacks, and whether it was started here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthex_fast import _unraisable
from synthex_fast._pressure import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Subscription"]


class Subscription:
    """At most one source at a time, which is left as it was found."""

    __slots__ = ("_cancels", "_started", "source")

    def __init__(self) -> None:
        self.source: Any = None
        self._started = False
        self._cancels: list[Callable[[], object]] = []

    def attach(self, source: Any, callback: Callable[[str, Any], None]) -> None:
        """Make the source call at each change of level, and run it. A source that can't be started is detached."""
        if source is self.source:
            return
        self.detach()
        self.source = source
        try:
            for level in LEVELS:
                self._cancels.append(source.on_pressure(level, callback))
            self._started = not _is_running(source)
            if self._started:
                source.start()
        except BaseException:
            # A source that does not run must not be taken for one that will call.
            self.detach()
            raise

    def detach(self) -> None:
        source, self.source = self.source, None
        cancels, self._cancels = self._cancels, []
        started, self._started = self._started, False
        # Each by itself: one that raises must not leave the others undone.
        for cancel in cancels:
            try:
                cancel()
            except Exception as error:
                _unraisable.report(error, source)
        if started:
            try:
                source.stop()
            except Exception as error:
                _unraisable.report(error, source)


def _is_running(source: Any) -> bool:
    """Whether it runs by itself; one that can't be started always does."""
    try:
        return bool(source.stats["running"])
    except Exception:
        return bool(getattr(source, "running", not callable(getattr(source, "start", None))))
