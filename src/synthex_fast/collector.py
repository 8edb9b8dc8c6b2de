"""`ResponseCollector`: the answers to each query, kept for a time and within a limit, and handed on in batches.

It puts a `TTLDict` (what was answered to which query), a `ResponseBuffer` (what is yet to be handed on) and the
consensus together, keeps the two parts in step, and refers to its owner weakly.
"""

from __future__ import annotations

import os
from _thread import RLock
from functools import partial
from itertools import islice
from operator import index
from weakref import ref

from synthex_fast._records import PooledExpertResponse
from synthex_fast._slab import ResponseBuffer
from synthex_fast._ttl import TTLDict
from synthex_fast.errors import (
    ArgumentTypeError,
    CollectorClosedError,
    OwnerGoneError,
    SynthexFastError,
    ValueTooLargeError,
    type_error,
    value_error,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, Literal, NoReturn, Self, SupportsFloat, SupportsIndex

    from synthex_fast._slab import Aggregate, AggregateRow, Columns

__all__ = ["MEMORY_LIMIT", "ResponseCollector"]

MEMORY_LIMIT = int(5.8 * 2**20)
"""The report's target for the response cache, 5.8 MB, counted as the report's own code counts them: in 2**20 bytes."""

_UNCHANGED: Any = object()
# In the place of a buffer that has been let go: it has room for nothing, and holds nothing.
_NO_BUFFER = ResponseBuffer.__new__(ResponseBuffer)

_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class ResponseCollector:
    """Keeps the answers to each query and buffers them for whoever takes them on.

    An answer that is added goes to two places: to the others of its query, where `responses` and `consensus` find
    it, and into a buffer, from where `on_flush` gets it as one of a list. Both have it, or neither.

    The kept answers are those of at most `max_queries` queries and `memory_limit` bytes (5.8 MB = 6,081,740 bytes,
    the report's target). A query's answers are let go `ttl` seconds after the first of them, `idle` seconds after
    they were last read or added to, and, where a limit needs room, by the `policy` of a `TTLDict`; `max_per_query`
    is the most that one query may have. None means no limit. The buffer takes `capacity` responses, at most
    `max_batch` at a time, and hands them to `on_flush` when it holds ``flush_threshold * capacity`` of them;
    without a handler it fills up, and `flush` empties it. What waits there does not count against `memory_limit`:
    for the most part it is the same objects.

    `owner` is the object that the collector works for, and is referred to weakly. When it goes, all that the
    collector holds goes at once, without a garbage collection: the kept answers, and those in the buffer, which are
    handed to nobody (`close` first where they matter). Calls after that raise `OwnerGoneError`. A handler that is a
    method of the owner, or of the collector, is referred to weakly too; a lambda or partial that leads to the owner
    keeps it alive.

    May be shared by threads. A handler runs outside of all locks; what it raises reaches whoever added or flushed,
    and loses nothing. Weak references, subclasses and ``with`` work; pickling and copying are refused.

    >>> from synthex_fast import PooledExpertResponse, ResponseCollector
    >>> collector = ResponseCollector(on_flush=lambda responses: print(len(responses), "handed on"))
    >>> with collector:
    ...     collector.add_batch(PooledExpertResponse("q1", expert, "Yes.", 0.9) for expert in ("ada", "bob"))
    ...     collector.add(PooledExpertResponse("q1", "cyd", "Likely.", 0.75))
    ...     row = collector.consensus("q1")
    ...     row.count, round(row.mean, 2), row.consensus
    ...     [response.expert_id for response in collector.responses("q1")]
    2
    (3, 0.85, 'high')
    ['ada', 'bob', 'cyd']
    3 handed on
    """

    __slots__ = (
        "__weakref__",
        "_answers",
        "_buffer",
        "_ended",
        "_holder",
        "_locks",
        "_max_batch",
        "_max_per_query",
    )

    # Of each query a list, which only grows at its end, or shrinks again under the lock.
    _answers: TTLDict[str, list[PooledExpertResponse]]
    _buffer: ResponseBuffer
    # What tells whether the collector may be used: the weak reference to the owner, or as good as one.
    _holder: Callable[[], object]
    # Counts as they were at the end, once there was one.
    _ended: dict[str, int] | None
    # By the number of forks, for closing by its complement: what another thread held in the parent is never
    # released in the child.
    _locks: dict[int, Any]

    def __init__(
        self,
        owner: object = None,
        *,
        ttl: float | None = 14_400.0,
        idle: float | None = 3_600.0,
        memory_limit: SupportsIndex | None = MEMORY_LIMIT,
        max_queries: SupportsIndex | None = 500,
        max_per_query: SupportsIndex | None = 1000,
        capacity: SupportsIndex = 1000,
        max_batch: SupportsIndex = 100,
        flush_threshold: SupportsFloat = 0.8,
        on_flush: Callable[[list[PooledExpertResponse]], object] | None = None,
        policy: Literal["s3fifo", "sieve", "lru", "fifo"] = "s3fifo",
        timer: Callable[[], float] | None = None,
        sweep: bool = True,
    ) -> None:
        if hasattr(self, "_answers"):
            raise ArgumentTypeError(f"a {type(self).__name__} can't be initialised twice")
        holder: Callable[[], object] = tuple
        if owner is not None:
            try:
                holder = ref(owner, partial(_owner_gone, ref(self)))
            except TypeError:
                allowed = "an object that can be referred to weakly (with __slots__: one named __weakref__), or None"
                raise type_error("owner", owner, allowed) from None
        most = _positive("max_per_query", max_per_query)
        answers: TTLDict[str, list[PooledExpertResponse]] = TTLDict(
            _positive("max_queries", max_queries),
            ttl,
            memory_limit=memory_limit,
            idle=idle,
            policy=policy,
            timer=timer,
            sweep=sweep,
        )
        for anchor in (owner, self):
            if anchor is not None and getattr(on_flush, "__self__", None) is anchor:
                function = getattr(on_flush, "__func__", None)
                if function is None:
                    # A method written in C, such as append.
                    function = getattr(type(anchor), getattr(on_flush, "__name__", ""), None)
                if function is not None:
                    on_flush = partial(_call_method, ref(anchor), function)
                break
        buffer = ResponseBuffer(capacity, max_batch, flush_threshold=flush_threshold, on_flush=on_flush)
        self._max_per_query = float("inf") if most is None else most
        self._max_batch = buffer.max_batch
        self._locks = {_forks: _new_lock()}
        self._ended = None
        self._buffer = buffer
        self._holder = holder
        self._answers = answers

    # Adding ---------------------------------------------------------------------------------------------------

    def add(self, response: PooledExpertResponse) -> None:
        """Add one response: to those of its query and to the buffer, or to neither.

        Raises what `add_batch` raises. O(1), and O(answers so far) where the query has some: they are weighed anew.

        >>> collector = ResponseCollector()
        >>> collector.add(PooledExpertResponse("q1", "ada", confidence=0.5))
        >>> "q1" in collector, len(collector)
        (True, 1)
        """
        if not isinstance(response, PooledExpertResponse):
            raise type_error("response", response, "a PooledExpertResponse")
        self.add_batch((response,))

    def add_batch(self, responses: Iterable[PooledExpertResponse]) -> int:
        """Add the responses of an iterable, all or none, and return how many; they may answer several queries.

        Nothing was added, here or there, where it raises `ArgumentTypeError` (one is no PooledExpertResponse),
        `BatchTooLargeError` (more than `max_batch`; an iterator is read to that number plus one),
        `ValueTooLargeError` (all the answers to a query would exceed `memory_limit` or `max_per_query`), or
        `BufferFullError` (no room in the buffer, and nobody to make some). What `on_flush` raises is passed on:
        nothing was added where it was to make room, and all was where it ran because of them; `in` tells.
        """
        # Before the owner is asked for: while it is there, so is the buffer.
        buffer = self._buffer
        if self._holder() is None:
            raise self._refusal()
        if (type(responses) is list or type(responses) is tuple) and len(responses) <= self._max_batch:
            batch = tuple(responses)
        else:
            batch = self._read(responses)
        if not batch:
            return 0
        # All that the buffer may refuse it refuses now, before anything is evicted for the sake of these.
        query = buffer._admit(batch)
        answers = list(batch)
        if (
            type(query) is str
            and len(answers) <= self._max_per_query
            and self._answers.setdefault(query, answers) is answers
        ):
            # The first answers to their query: the short way.
            try:
                due = buffer._store_batch(batch)
            except BaseException:
                self._take_back(query, batch)
                raise
        else:
            groups = [(query, batch)] if type(query) is str else self._grouped(query, batch)
            due = self._add(buffer, groups, batch)
        if self._ended is not None:
            # The owner went, or another thread closed the collector, while these were filed.
            self._answers.clear()
            raise self._refusal()
        if due:
            buffer.flush()
        return len(batch)

    def _add(
        self,
        buffer: ResponseBuffer,
        groups: Sequence[tuple[str, Sequence[PooledExpertResponse]]],
        batch: tuple[PooledExpertResponse, ...],
    ) -> bool:
        """Both parts or neither; whether the buffer is due to be flushed."""
        # Short functions, here and below: CPython 3.11 turns in circles where memory has run out and it can't note
        # how far into a function, past 256 instructions, an error came.
        error = None
        due = False
        filed = 0
        try:
            for query_id, answers in groups:
                self._file(query_id, list(answers))
                filed += 1
            due = buffer._store_batch(batch)
        except BaseException as caught:
            error = caught
        if error is None:
            return due
        while filed:
            filed -= 1
            group = groups[filed]
            self._take_back(group[0], group[1])
        try:
            raise error
        finally:
            # Else the error's traceback and this frame would keep each other.
            error = None

    def _read(self, responses: Iterable[PooledExpertResponse]) -> tuple[PooledExpertResponse, ...]:
        """One more than the cap at most, which the buffer will then refuse."""
        try:
            source = iter(responses)
        except TypeError as error:
            raise type_error("responses", responses, "an iterable of PooledExpertResponse") from error
        return tuple(islice(source, self._max_batch + 1))

    def _grouped(
        self, queries: list[str] | str, batch: tuple[PooledExpertResponse, ...]
    ) -> list[tuple[str, Sequence[PooledExpertResponse]]]:
        """The batch by query, if each can be filed: the first ones must not evict others when the last one fails."""
        groups: dict[str, list[PooledExpertResponse]] = {}
        for query_id, response in zip(queries, batch, strict=True):
            groups.setdefault(query_id, []).append(response)
        limit = self._answers.memory_limit
        scale: TTLDict[str, list[PooledExpertResponse]] = TTLDict(memory_limit=limit, sweep=False)
        for query_id, answers in groups.items():
            before = self._answers.get(query_id)
            self._check_count(query_id, (len(before) if before else 0) + len(answers))
            if limit is not None:
                scale[query_id] = before + answers if before else answers
        return list(groups.items())

    def _check_count(self, query_id: str, count: int) -> None:
        if count > self._max_per_query:
            raise ValueTooLargeError(
                f"the answers to query {query_id!r} must be at most {self._max_per_query} (max_per_query), "
                f"not {count}; nothing was added"
            )

    def _file(self, query_id: str, answers: list[PooledExpertResponse]) -> None:
        """Put answers with the others of their query, all or none. The list may become the one that is kept."""
        if len(answers) > self._max_per_query:
            self._check_count(query_id, len(answers))
        present = self._answers.setdefault(query_id, answers)
        if present is not answers:
            self._extend(query_id, present, answers)

    def _extend(
        self, query_id: str, present: list[PooledExpertResponse], answers: list[PooledExpertResponse]
    ) -> None:
        with self._lock():
            while not self._extended(query_id, present, answers):
                # Expired or evicted meanwhile, and these with them: they begin anew, without the others.
                present = self._answers.setdefault(query_id, answers)
                if present is answers:
                    return

    def _extended(
        self, query_id: str, present: list[PooledExpertResponse], answers: list[PooledExpertResponse]
    ) -> bool:
        """Add to a query's list and weigh it anew. False where it was not that query's list any more."""
        self._check_count(query_id, len(present) + len(answers))
        present.extend(answers)
        weighed = 0
        error: BaseException
        try:
            # More than once where a ``__sizeof__`` in the answers' metadata adds to the same list.
            while weighed != len(present):
                weighed = len(present)
                self._answers.recount(query_id)
            return self._answers.get(query_id) is present
        except BaseException as caught:
            error = caught
        try:
            # A KeyError may also be that of a ``__sizeof__``.
            if isinstance(error, KeyError) and self._answers.get(query_id) is not present:
                return False
            self._take_back(query_id, answers)
            raise error
        finally:
            del error

    def _take_back(self, query_id: str, answers: Sequence[PooledExpertResponse]) -> None:
        """Undo `_file`. What was evicted since is gone already; what came behind stays."""
        try:
            with self._lock():
                self._remove(query_id, answers)
        except MemoryError:
            # Even making a list shorter can fail. Then all go, as if evicted, rather than some that don't belong.
            self._answers.pop(query_id, None)

    def _remove(self, query_id: str, answers: Sequence[PooledExpertResponse]) -> None:
        """Take the run of these very objects that is nearest to the end out of the query's list; the lock is held.

        Others only append, and whoever interrupts this thread has undone or finished what it did before it returns:
        the place that was found stays the right one.
        """
        present = self._answers.get(query_id)
        if present is None:
            return
        count = len(answers)
        at = len(present) - count
        while at >= 0:
            same = 0
            while same < count and present[at + same] is answers[same]:
                same += 1
            if same == count:
                del present[at : at + count]
                break
            at -= 1
        if not present:
            self._answers.pop(query_id, None)
            return
        try:  # noqa: SIM105 (suppress() would need memory, which may have run out)
            self._answers.recount(query_id)
        except Exception:
            # It is gone meanwhile, or can't be weighed now: its account is then too high, not too low.
            pass

    def _lock(self, closing: bool = False) -> Any:
        """What guards the lists against each other's undoing; `closing`: what lets one thread at a time close."""
        key = -1 - _forks if closing else _forks
        lock = self._locks.get(key)
        return self._locks.setdefault(key, _new_lock()) if lock is None else lock

    # Reading --------------------------------------------------------------------------------------------------

    def responses(self, query_id: str) -> tuple[PooledExpertResponse, ...]:
        """The kept answers to a query, in the order in which they were added; empty where there are none. O(answers).

        Reading them counts as a use: they stay for another `idle` seconds, within `ttl`.

        >>> ResponseCollector().responses("nobody's")
        ()
        """
        if self._holder() is None:
            raise self._refusal()
        present = self._answers.get(query_id)
        return () if present is None else tuple(present)

    def consensus(self, query_id: str) -> AggregateRow:
        """What the kept answers to a query come to: count, mean and variance of their confidence, experts, level.

        The row, and the rule for its level, are those of `ResponseBuffer.aggregate`. Answers that were released, or
        given another query id, since they were added don't count. It counts as a use. KeyError where no answer is
        kept. O(answers).

        >>> collector = ResponseCollector()
        >>> collector.add(PooledExpertResponse("q1", "ada", confidence=1.0))
        >>> collector.add(PooledExpertResponse("q1", "bob", confidence=0.5))
        >>> collector.consensus("q1")
        AggregateRow(count=2, mean=0.75, variance=0.0625, experts={'ada', 'bob'}, consensus='medium')
        """
        answers = self.responses(query_id)
        if answers:
            count = len(answers)
            scratch = ResponseBuffer(count, count)
            scratch._store_batch(answers)
            row = scratch.aggregate().get(query_id)
            if row is not None:
                return row
        raise KeyError(query_id)

    def aggregate(self) -> Aggregate:
        """What the answers in the buffer come to, by query: those not handed on yet, kept or not. O(buffered).

        >>> len(ResponseCollector().aggregate())
        0
        """
        if self._holder() is None:
            raise self._refusal()
        return self._buffer.aggregate()

    def columns(self) -> Columns:
        """The answers in the buffer as columns for numpy, without a copy: see `ResponseBuffer.columns`. O(1)."""
        if self._holder() is None:
            raise self._refusal()
        return self._buffer.columns()

    def __contains__(self, query_id: object) -> bool:
        """Whether answers to the query are kept. It counts as no use."""
        if self._holder() is None:
            raise self._refusal()
        return query_id in self._answers

    def __len__(self) -> int:
        """How many queries have answers that are kept."""
        if self._holder() is None:
            raise self._refusal()
        return len(self._answers)

    def __bool__(self) -> bool:
        # An empty collector, or one without an owner, is there all the same.
        return True

    def __iter__(self) -> Iterator[str]:
        """The ids of the queries that have answers, in no particular order."""
        if self._holder() is None:
            raise self._refusal()
        return iter(self._answers)

    @property
    def owner(self) -> object:
        """The object that the collector works for; None where there is none, or where it is gone."""
        return self._holder() if type(self._holder) is ref else None

    @property
    def buffered(self) -> int:
        """How many responses wait in the buffer."""
        return len(self._buffer)

    @property
    def memory_limit(self) -> int | None:
        """Most bytes that the kept answers take, or None."""
        return self._answers.memory_limit

    @property
    def max_queries(self) -> int | None:
        """Most queries whose answers are kept, or None."""
        return self._answers.max_size

    @property
    def stats(self) -> dict[str, int]:
        """Counts since construction, as a dict.

        ``queries`` kept now and their ``nbytes``; those let go, by reason (``expired``, ``idle``, ``full``,
        ``memory``); ``buffered`` responses; of the buffer ``added``, ``batches`` (calls of `add` and `add_batch`
        that succeeded), ``flushed``, ``flushes``, ``failed``, ``rejected`` and ``high_water``, as in
        `ResponseBuffer.stats`. They stand still when the collector is closed or its owner goes; ``abandoned`` then
        says how many were in the buffer.
        """
        return self._counts() if self._ended is None else dict(self._ended)

    def _counts(self) -> dict[str, int]:
        kept = self._answers.stats
        return {
            "queries": kept["entries"],
            "nbytes": kept["nbytes"],
            "expired": kept["expired"],
            "idle": kept["idle"],
            "full": kept["full"],
            "memory": kept["memory"],
            "buffered": len(self._buffer),
            "abandoned": 0,
            **self._buffer.stats,
        }

    # Letting go -----------------------------------------------------------------------------------------------

    def flush(self) -> list[PooledExpertResponse]:
        """Hand what is in the buffer to `on_flush`, if there is one, and return it. The kept answers stay. O(buffered).

        If the handler raises, everything stays in the buffer. Empty while another flush is at work.
        """
        if self._holder() is None:
            raise self._refusal()
        return self._buffer.flush()

    def pop(self, query_id: str) -> tuple[PooledExpertResponse, ...]:
        """Keep the answers to a query no longer, and return them; empty where there are none. O(answers).

        In the buffer they stay: they have yet to be handed on.

        >>> collector = ResponseCollector()
        >>> collector.add(PooledExpertResponse("q1", "ada"))
        >>> len(collector.pop("q1")), "q1" in collector, collector.buffered
        (1, False, 1)
        """
        if self._holder() is None:
            raise self._refusal()
        with self._lock():
            present = self._answers.pop(query_id, None)
        return () if present is None else tuple(present)

    def close(self) -> None:
        """Hand on what is in the buffer, then let go of everything; calls after that raise `CollectorClosedError`.

        Without an `on_flush` what is in the buffer is let go too. If the handler raises, the collector stays open, and
        everything in it. Closing it again, or when the owner is gone, does nothing. Nothing should be added or
        flushed meanwhile.
        """
        with self._lock(closing=True):
            if self._holder() is None:
                return
            if self._buffer.on_flush is not None:
                self._buffer.flush()
            self._holder = _nobody
            self._end()

    def __enter__(self) -> Self:
        if self._holder() is None:
            raise self._refusal()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _end(self) -> None:
        """Nobody will ask again: let go of all that is held."""
        try:
            ended = self._counts()
            ended["abandoned"] = ended["buffered"]
        except MemoryError:
            ended = {}
        ended["queries"] = ended["nbytes"] = ended["buffered"] = 0
        self._ended = ended
        buffer, self._buffer = self._buffer, _NO_BUFFER
        # Who waits at a paused one has it, and would wait for ever: nobody else can resume it any more.
        buffer.resume()
        self._answers.clear()

    def _refusal(self) -> SynthexFastError:
        name = type(self).__name__
        if self._holder is _nobody:
            return CollectorClosedError(f"this {name} has been closed")
        return OwnerGoneError(f"the owner of this {name} is gone, and with it what the collector held")

    # What a governor asks of it: answered, not refused, when it holds nothing any more ------------------------

    @property
    def nbytes(self) -> int:
        """Bytes that the kept answers take, and the buffer's own; 0 at the end. O(1), O(due) if any are.

        Responses that wait in the buffer and are kept no longer are not in it.
        """
        return self._answers.nbytes + self._buffer.nbytes

    def trim(self, nbytes: SupportsIndex) -> int:
        """Free about `nbytes` bytes: flush through `on_flush`, if there is one, then evict. Return how many, at least.

        Without a handler, what waits in the buffer stays in memory until it is flushed, though evicted answers count
        as freed. What the handler raises is raised when the eviction is done, and nothing is lost.

        >>> collector = ResponseCollector()
        >>> collector.add(PooledExpertResponse("q1", "ada"))
        >>> collector.trim(100) >= 100
        True
        """
        if self._holder() is None:
            return 0
        wanted = _whole("nbytes", nbytes)
        freed = 0
        try:
            freed = self._buffer.trim(wanted)
        finally:
            freed += self._answers.trim(max(0, wanted - freed))
        return freed

    def expire(self, limit: SupportsIndex | None = None) -> int:
        """Let go of the queries whose time is over, at most `limit` of them; return how many. O(due)."""
        return self._answers.expire(limit)

    def resize(
        self, max_queries: SupportsIndex | None = _UNCHANGED, memory_limit: SupportsIndex | None = _UNCHANGED
    ) -> None:
        """Change one limit of the kept answers or both (None: no limit), and evict what is over at once. O(evicted)."""
        changes: dict[str, Any] = {}
        if max_queries is not _UNCHANGED:
            changes["max_size"] = _positive("max_queries", max_queries)
        if memory_limit is not _UNCHANGED:
            changes["memory_limit"] = memory_limit
        self._answers.resize(**changes)

    def pause(self, wait: bool | float | Callable[[], bool | float] = True) -> bool:
        """Let no new response in until `resume`: additions wait, or fail, as `ResponseBuffer.pause` says. O(1)."""
        return False if self._holder() is None else self._buffer.pause(wait)

    def resume(self) -> bool:
        """End a `pause`. Return whether there was one. O(1)."""
        return self._buffer.resume()

    @property
    def paused(self) -> bool:
        """Whether additions wait or fail because of `pause`."""
        return self._buffer.paused

    # ------------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._holder() is None:
            return f"<{name}, {'closed' if self._holder is _nobody else 'its owner gone'}>"
        return f"<{name} of {len(self._answers)} queries, {len(self._buffer)} responses to be handed on>"

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(
            f"a {type(self).__name__} can't be pickled or copied; the tuples of responses() can"
        )


def _new_lock() -> RLock:
    try:
        return RLock()
    except RuntimeError:
        # So it says where there is no memory for one.
        raise MemoryError from None


def _nobody() -> None:
    """In the place of the owner's weak reference, once the collector is closed."""


def _owner_gone(collector: ref[ResponseCollector], _owner: object) -> None:
    """What runs when the owner goes. It must not keep the collector, nor mind one that is gone or half made."""
    self = collector()
    if self is not None and hasattr(self, "_answers"):
        self._end()


def _call_method(
    anchor: ref[object],
    function: Callable[[Any, list[PooledExpertResponse]], object],
    responses: list[PooledExpertResponse],
) -> object:
    """A method as a handler, without keeping what it is a method of."""
    self = anchor()
    if self is None:
        raise OwnerGoneError("the object whose method was to take these responses is gone")
    return function(self, responses)


def _positive(name: str, value: SupportsIndex | None) -> int | None:
    if value is None:
        return None
    number = _whole(name, value, "a positive integer or None")
    if number < 1:
        raise value_error(name, value, "a positive integer or None")
    return number


def _whole(name: str, value: SupportsIndex, allowed: str = "an integer, 0 or more") -> int:
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise type_error(name, value, allowed)
    number = index(value)
    if number < 0:
        raise value_error(name, value, allowed)
    return number
