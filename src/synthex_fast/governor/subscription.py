"""The governor's use of a pressure source: its callbacks, and whether it was started here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthex_fast import _unraisable
from synthex_fast._pressure import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Subscription"]


class _Use:
    """One source: what cancels the calls it makes, and whether it was started here."""

    __slots__ = ("cancels", "source", "started")

    def __init__(self, source: Any) -> None:
        self.source = source
        self.started = False
        self.cancels: list[Callable[[], object]] = []

    def begin(self, callback: Callable[[str, Any], None]) -> None:
        source = self.source
        for level in LEVELS:
            self.cancels.append(source.on_pressure(level, callback))
        self.started = not _is_running(source)
        if self.started:
            source.start()

    def end(self) -> None:
        # Each by itself: one that raises must not leave the others undone.
        for cancel in self.cancels:
            try:
                cancel()
            except Exception as error:
                _unraisable.report(error, self.source)
        if self.started:
            try:
                self.source.stop()
            except Exception as error:
                _unraisable.report(error, self.source)


class Subscription:
    """At most one source at a time, which is left as it was found.

    One thread may detach what another one is attaching: it then finds nothing, and the other one has to look whether
    the source is still wanted.
    """

    __slots__ = ("_uses",)

    def __init__(self) -> None:
        # Taking from a list is one step for all threads.
        self._uses: list[_Use] = []

    @property
    def source(self) -> Any:
        for use in self._uses:
            return use.source
        return None

    def attach(self, source: Any, callback: Callable[[str, Any], None]) -> None:
        """Make the source call at each change of level, and run it. A source that can't be started is detached."""
        if source is self.source:
            return
        self.detach()
        use = _Use(source)
        try:
            use.begin(callback)
        except BaseException:
            # A source that does not run must not be taken for one that will call.
            use.end()
            raise
        self._uses.append(use)

    def take(self) -> Callable[[], None]:
        """Forget the source. Call what this returns to leave it as it was found, with no lock held."""
        try:
            return self._uses.pop().end
        except IndexError:
            return _do_nothing

    def detach(self) -> None:
        self.take()()


def _do_nothing() -> None:
    pass


def _is_running(source: Any) -> bool:
    """Whether it runs by itself; one that can't be started always does."""
    try:
        return bool(source.stats["running"])
    except Exception:
        return bool(getattr(source, "running", not callable(getattr(source, "start", None))))
