"""`ResponseCollector`: keeps the answers to each query for a time and within a limit, and delivers them in batches.

It combines a `TTLDict` (the answers to each query) with a `ResponseBuffer` (the answers yet to be delivered), keeps the
two in step, and refers to its owner weakly.

Adding is all or nothing across both parts. Everything the buffer may refuse is checked before the dict is changed; then
the dict takes the answers (which may evict others), then the buffer, and if that fails the dict's part is undone. The
owner or another thread may end the collector at any point: an addition checks for that once it has finished, and clears
what it stored. A query's answers are a list that only grows at its end; appending to an existing one, or undoing that,
requires the lock. Handlers, and the owner's weak reference callback, run without it.
"""

from __future__ import annotations

from _thread import RLock
from functools import partial
from itertools import islice
from weakref import ref

from synthex_fast._arguments import want_callable, want_text, whole_number
from synthex_fast._forks import fork_count
from synthex_fast._slab import ResponseBuffer
from synthex_fast._ttl import TTLDict
from synthex_fast.errors import (
    ArgumentTypeError,
    CollectorClosedError,
    OwnerGoneError,
    SynthexFastError,
    ValueTooLargeError,
    type_error,
)
from synthex_fast.experts import PooledExpertResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
    from typing import Any, Literal, NoReturn, Self, SupportsFloat, SupportsIndex

    from synthex_fast._slab import Aggregate, AggregateRow, Columns

__all__ = ["MEMORY_LIMIT", "ResponseCollector"]

MEMORY_LIMIT = int(5.8 * 2**20)
"""Default limit of the kept answers: 5.8 MB (of 2**20 bytes), the response cache's target in the memory-management
analysis that this package implements ("the report")."""

_UNCHANGED: Any = object()
# Replaces the buffer of a collector that has ended: it has room for nothing and holds nothing.
_NO_BUFFER = ResponseBuffer.__new__(ResponseBuffer)


class ResponseCollector:
    """Keeps the answers to each query and buffers them for delivery.

    An answer that is added goes to two places: to the other answers to its query, where `responses` and `consensus`
    find it, and into a buffer, from which `on_flush` receives it as part of a list. It goes to both or to neither.

    Answers are kept for at most `max_queries` queries and in at most `memory_limit` bytes (5.8 MB = 6,081,740 bytes).
    A query's answers are dropped `ttl` seconds after the first of them was added, `idle` seconds after they were last
    read or added to, or, when a limit needs room, as the `policy` of a `TTLDict` decides. A query may have at most
    `max_per_query` answers. None means no limit. The buffer takes `capacity` responses, at most `max_batch` at a time,
    and passes them to `on_flush` once it holds ``flush_threshold * capacity`` of them; without a handler it fills up,
    and `flush` empties it. Buffered responses do not count against `memory_limit`: most of them are kept answers too.

    `owner` is the object that the collector works for, and is referenced weakly. When it dies, everything the collector
    holds is released at once, without a garbage collection: the kept answers and the buffered ones, which are not
    delivered (call `close` first if they matter). Calls after that raise `OwnerGoneError`. A handler that is a method
    of the owner or of the collector is referenced weakly too; a lambda or partial that refers to the owner keeps it
    alive.

    Threads may share a collector. Handlers run outside all locks; what a handler raises propagates to the call that
    ran it, and nothing is lost. Weak references, subclasses and ``with`` work; pickling and copying are refused.

    >>> from synthex_fast import PooledExpertResponse, ResponseCollector
    >>> collector = ResponseCollector(on_flush=lambda responses: print(len(responses), "delivered"))
    >>> with collector:
    ...     collector.add_batch(PooledExpertResponse("q1", expert, "Yes.", 0.9) for expert in ("ada", "bob"))
    ...     collector.add(PooledExpertResponse("q1", "cyd", "Likely.", 0.75))
    ...     row = collector.consensus("q1")
    ...     row.count, round(row.mean, 2), row.consensus
    ...     [response.expert_id for response in collector.responses("q1")]
    2
    (3, 0.85, 'high')
    ['ada', 'bob', 'cyd']
    3 delivered
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

    # A list per query. It grows only at its end, and shrinks only under the lock.
    _answers: TTLDict[str, list[PooledExpertResponse]]
    _buffer: ResponseBuffer
    # Returns None once the collector may no longer be used: the weak reference to the owner, or a stand-in.
    _holder: Callable[[], object]
    # The final counts, once the collector has ended.
    _ended: dict[str, int] | None
    # By number of forks, and the locks for closing by its complement. A lock that another thread held at a fork is
    # never released in the child, so each process has its own.
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
                allowed = (
                    "an object that supports weak references (with __slots__: one named __weakref__), or None"
                )
                raise type_error("owner", owner, allowed) from None
        most = whole_number("max_per_query", max_per_query, optional=True)
        answers: TTLDict[str, list[PooledExpertResponse]] = TTLDict(
            whole_number("max_queries", max_queries, optional=True),
            ttl,
            memory_limit=memory_limit,
            idle=idle,
            policy=policy,
            timer=timer,
            sweep=sweep,
        )
        want_callable("on_flush", on_flush, optional=True)
        for anchor in (owner, self):
            if anchor is not None and getattr(on_flush, "__self__", None) is anchor:
                function = getattr(on_flush, "__func__", None)
                if function is None:
                    # A method implemented in C, such as append.
                    function = getattr(type(anchor), getattr(on_flush, "__name__", ""), None)
                if function is not None:
                    on_flush = partial(_call_method, ref(anchor), function)
                break
        buffer = ResponseBuffer(capacity, max_batch, flush_threshold=flush_threshold, on_flush=on_flush)
        self._max_per_query = float("inf") if most is None else most
        self._max_batch = buffer.max_batch
        self._locks = {fork_count(): _new_lock()}
        self._ended = None
        self._buffer = buffer
        self._holder = holder
        self._answers = answers

    # Adding ---------------------------------------------------------------------------------------------------

    def add(self, response: PooledExpertResponse) -> None:
        """Add one response to the answers to its query and to the buffer, or to neither.

        Raises what `add_batch` raises. O(1), or O(answers so far) if the query has some: their size is recomputed.

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

        Raises `ArgumentTypeError` if an item is not a PooledExpertResponse, `BatchTooLargeError` for more than
        `max_batch` (an iterator is read to one more than that), `ValueTooLargeError` if the answers to one query would
        exceed `memory_limit` or `max_per_query`, and `BufferFullError` if the buffer has no room and no handler to make
        some. Nothing is added then. What `on_flush` raises propagates: nothing was added if it ran to make room, and
        everything was if it ran because of these responses; `in` shows which. Answers that alone exceed only the `cap`
        cause no error: they go to the buffer and are not kept (``stats["over_cap"]``).
        """
        # Taken before the owner is checked: while the owner exists, so does the buffer.
        buffer = self._buffer
        if self._holder() is None:
            raise self._refusal()
        if (type(responses) is list or type(responses) is tuple) and len(responses) <= self._max_batch:
            batch = tuple(responses)
        else:
            batch = self._read(responses)
        if not batch:
            return 0
        # Whatever the buffer refuses, it must refuse before these answers evict others.
        query = buffer._admit(batch)
        answers = list(batch)
        if (
            type(query) is str
            and len(answers) <= self._max_per_query
            and self._answers.setdefault(query, answers) is answers
        ):
            # The first answers to their query: the fast path.
            try:
                due = buffer._store_batch(batch)
            except BaseException:
                self._take_back(query, batch)
                raise
        else:
            groups = [(query, batch)] if type(query) is str else self._grouped(query, batch)
            due = self._add(buffer, groups, batch)
        if self._ended is not None:
            # The owner died, or another thread closed the collector, during this call.
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
        """Add to both parts or to neither. Returns whether the buffer should be flushed."""
        # Functions are short, here and below: if memory has run out, CPython 3.11 loops forever on an error raised
        # past the 256th instruction of a function, because it cannot allocate the int that records the position.
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
            # Otherwise the error's traceback and this frame would keep each other alive.
            error = None

    def _read(self, responses: Iterable[PooledExpertResponse]) -> tuple[PooledExpertResponse, ...]:
        """The responses as a tuple: at most one more than the cap, which the buffer then refuses."""
        try:
            source = iter(responses)
        except TypeError as error:
            raise type_error("responses", responses, "an iterable of PooledExpertResponse") from error
        return tuple(islice(source, self._max_batch + 1))

    def _grouped(
        self, queries: list[str] | str, batch: tuple[PooledExpertResponse, ...]
    ) -> list[tuple[str, Sequence[PooledExpertResponse]]]:
        """The batch by query, checked against the limits: no group may evict others if a later one is refused."""
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
        """Add answers to those of their query, all or none. `answers` may become the list that is kept."""
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
                # The list has expired or been evicted. The query starts again with these answers alone.
                present = self._answers.setdefault(query_id, answers)
                if present is answers:
                    return

    def _extended(
        self, query_id: str, present: list[PooledExpertResponse], answers: list[PooledExpertResponse]
    ) -> bool:
        """Append to a query's list and recompute its size. False if it is no longer that query's list."""
        self._check_count(query_id, len(present) + len(answers))
        present.extend(answers)
        counted = 0
        error: BaseException
        try:
            # More than once if a ``__sizeof__`` in the answers' metadata appends to the same list.
            while counted != len(present):
                counted = len(present)
                self._answers.recount(query_id)
            return self._answers.get(query_id) is present
        except BaseException as caught:
            error = caught
        try:
            # The KeyError may also come from a ``__sizeof__``.
            if isinstance(error, KeyError) and self._answers.get(query_id) is not present:
                return False
            self._take_back(query_id, answers)
            raise error
        finally:
            del error

    def _take_back(self, query_id: str, answers: Sequence[PooledExpertResponse]) -> None:
        """Undo `_file`. Answers that were evicted since need no undoing; those added behind stay."""
        try:
            with self._lock():
                self._remove(query_id, answers)
        except MemoryError:
            # Even shortening a list can fail. Losing all answers, as by eviction, beats keeping refused ones.
            self._answers.pop(query_id, None)

    def _remove(self, query_id: str, answers: Sequence[PooledExpertResponse]) -> None:
        """Remove the run of these very objects that is nearest to the list's end. The caller holds the lock.

        Others only append, and code that interrupts this thread finishes or undoes its changes before it returns, so
        the index that was found stays valid.
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
            # The entry is gone, or its size cannot be computed now. Its recorded size is then too high, not too low.
            pass

    def _lock(self, closing: bool = False) -> Any:
        """This process's lock: for appending to lists and undoing that, or for closing."""
        forks = fork_count()
        key = -1 - forks if closing else forks
        lock = self._locks.get(key)
        return self._locks.setdefault(key, _new_lock()) if lock is None else lock

    # Reading --------------------------------------------------------------------------------------------------

    def responses(self, query_id: str) -> tuple[PooledExpertResponse, ...]:
        """The kept answers to a query, in the order in which they were added; empty if there are none. O(answers).

        Reading counts as a use: the answers stay for another `idle` seconds, within `ttl`.

        >>> ResponseCollector().responses("nobody's")
        ()
        """
        if self._holder() is None:
            raise self._refusal()
        present = self._answers.get(want_text("query_id", query_id))
        return () if present is None else tuple(present)

    def consensus(self, query_id: str) -> AggregateRow:
        """The consensus of the kept answers to a query, as an `AggregateRow`. O(answers).

        Answers are kept beyond the flush that delivers them, so this is not `ResponseBuffer.consensus`, which covers
        what is buffered. Answers that have been released, or moved to another query, since they were added do not
        count. Reading counts as a use. KeyError if no answer is kept.

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
            return scratch.consensus(query_id)
        raise KeyError(query_id)

    def aggregate(self) -> Aggregate:
        """The consensus of the buffered answers, kept or not, by query: see `ResponseBuffer.aggregate`. O(queries).

        >>> len(ResponseCollector().aggregate())
        0
        """
        if self._holder() is None:
            raise self._refusal()
        return self._buffer.aggregate()

    def columns(self) -> Columns:
        """The buffered answers as columns for numpy, without a copy: see `ResponseBuffer.columns`. O(1)."""
        if self._holder() is None:
            raise self._refusal()
        return self._buffer.columns()

    def __contains__(self, query_id: object) -> bool:
        """Whether answers to the query are kept. Does not count as a use."""
        if self._holder() is None:
            raise self._refusal()
        return query_id in self._answers

    def __len__(self) -> int:
        """How many queries have answers that are kept."""
        if self._holder() is None:
            raise self._refusal()
        return len(self._answers)

    def __bool__(self) -> bool:
        # Otherwise len() would make an empty collector false, and raise once the collector has ended.
        return True

    def __iter__(self) -> Iterator[str]:
        """The ids of the queries that have answers, in no particular order."""
        if self._holder() is None:
            raise self._refusal()
        return iter(self._answers)

    @property
    def owner(self) -> object:
        """The object that the collector works for; None if it has none or the owner has died."""
        return self._holder() if type(self._holder) is ref else None

    @property
    def buffered(self) -> int:
        """Number of responses in the buffer."""
        return len(self._buffer)

    @property
    def memory_limit(self) -> int | None:
        """Most bytes that the kept answers may take, or None. A `memory_cap` below it holds instead."""
        return self._answers.memory_limit

    @property
    def memory_cap(self) -> int | None:
        """The limit of the kept answers in bytes that `cap` has set, or None."""
        return self._answers.memory_cap

    @property
    def max_queries(self) -> int | None:
        """Most queries whose answers are kept, or None."""
        return self._answers.max_size

    @property
    def stats(self) -> dict[str, int]:
        """Counts since construction, as a dict.

        ``queries`` kept now and their ``nbytes``; queries dropped, by reason (``expired``, ``idle``, ``full``,
        ``memory``), and how often answers were not kept because they alone exceeded the `cap` (``over_cap``; counted as
        ``memory`` too); ``buffered`` responses; and the buffer's ``added``, ``batches`` (successful calls of `add` and
        `add_batch`), ``flushed``, ``flushes``, ``failed``, ``rejected``, ``waited`` and ``high_water``, as in
        `ResponseBuffer.stats`. Once the collector is closed or its owner has died they no longer change, and
        ``abandoned`` is the number of responses that were in the buffer.
        """
        return self._counts() if self._ended is None else dict(self._ended)

    def _counts(self) -> dict[str, int]:
        kept = self._answers.stats
        counts = {"queries": kept["entries"]}
        # Not one display: without memory for six or more pairs Python 3.14.4 raises SystemError, not MemoryError.
        for name in ("nbytes", "expired", "idle", "full", "memory", "over_cap"):
            counts[name] = kept[name]
        counts["buffered"], counts["abandoned"] = len(self._buffer), 0
        counts.update(self._buffer.stats)
        return counts

    # Releasing ------------------------------------------------------------------------------------------------

    def flush(self) -> list[PooledExpertResponse]:
        """Pass the buffered responses to `on_flush`, if there is one, and return them. O(buffered).

        The kept answers stay. If the handler raises, everything stays in the buffer. Returns an empty list while
        another flush is running.
        """
        if self._holder() is None:
            raise self._refusal()
        return self._buffer.flush()

    def aflush(
        self, handler: Callable[[list[PooledExpertResponse]], Awaitable[object]]
    ) -> Coroutine[Any, Any, list[PooledExpertResponse]]:
        """A coroutine: await ``handler(responses)`` with the buffered responses, remove and return them. O(buffered).

        If the handler raises or is cancelled, everything stays in the buffer. `on_flush` is not called. The rest is as
        in `ResponseBuffer.aflush`.
        """
        if self._holder() is None:
            raise self._refusal()
        return self._buffer.aflush(handler)

    def pop(self, query_id: str) -> tuple[PooledExpertResponse, ...]:
        """Stop keeping the answers to a query, and return them; empty if there are none. O(answers).

        They stay in the buffer until they are delivered.

        >>> collector = ResponseCollector()
        >>> collector.add(PooledExpertResponse("q1", "ada"))
        >>> len(collector.pop("q1")), "q1" in collector, collector.buffered
        (1, False, 1)
        """
        if self._holder() is None:
            raise self._refusal()
        want_text("query_id", query_id)
        with self._lock():
            present = self._answers.pop(query_id, None)
        return () if present is None else tuple(present)

    def close(self) -> None:
        """Deliver the buffered responses, then release everything. Later calls raise `CollectorClosedError`.

        Without `on_flush` the buffered responses are released undelivered. If the handler raises, the collector stays
        open and keeps everything. Closing again, or after the owner has died, does nothing. Nothing should be added or
        flushed during the call.
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
        """Release everything: the collector may no longer be used."""
        try:
            ended = self._counts()
            ended["abandoned"] = ended["buffered"]
        except MemoryError:
            ended = {}
        ended["queries"] = ended["nbytes"] = ended["buffered"] = 0
        self._ended = ended
        buffer, self._buffer = self._buffer, _NO_BUFFER
        # A thread that waits at a paused buffer refers to it and would wait forever: no one else can resume it now.
        buffer.resume()
        self._answers.clear()

    def _refusal(self) -> SynthexFastError:
        name = type(self).__name__
        if self._holder is _nobody:
            return CollectorClosedError(f"this {name} has been closed")
        return OwnerGoneError(f"the owner of this {name} is gone, and with it everything the collector held")

    # For a governor: these answer, rather than refuse, once the collector has ended ---------------------------

    @property
    def nbytes(self) -> int:
        """Bytes that the kept answers and the buffer itself take; 0 once the collector has ended.

        O(1), or O(due) if entries have expired. Buffered responses that are no longer kept are not counted.
        """
        return self._answers.nbytes + self._buffer.nbytes

    def trim(self, nbytes: SupportsIndex) -> int:
        """Free about `nbytes` bytes and return at least how many were: flush through `on_flush`, if any, then evict.

        Without a handler, buffered responses stay in memory until they are flushed, although their eviction counts as
        freed. What the handler raises propagates after the eviction, and nothing is lost.

        >>> collector = ResponseCollector()
        >>> collector.add(PooledExpertResponse("q1", "ada"))
        >>> collector.trim(100) >= 100
        True
        """
        wanted = whole_number("nbytes", nbytes, 0)
        if self._holder() is None:
            return 0
        freed = 0
        try:
            freed = self._buffer.trim(wanted)
        finally:
            freed += self._answers.trim(max(0, wanted - freed))
        return freed

    def expire(self, limit: SupportsIndex | None = None) -> int:
        """Drop queries that have expired, at most `limit` of them, and return how many. O(due)."""
        return self._answers.expire(limit)

    def resize(
        self, max_queries: SupportsIndex | None = _UNCHANGED, memory_limit: SupportsIndex | None = _UNCHANGED
    ) -> None:
        """Change one or both limits of the kept answers (None: no limit) and evict what exceeds them. O(evicted)."""
        changes: dict[str, Any] = {}
        if max_queries is not _UNCHANGED:
            changes["max_size"] = whole_number("max_queries", max_queries, optional=True)
        if memory_limit is not _UNCHANGED:
            changes["memory_limit"] = memory_limit
        self._answers.resize(**changes)

    def cap(self, nbytes: SupportsIndex | None) -> None:
        """Limit the kept answers from outside, in bytes, for the time being; None lifts it. O(evicted).

        `memory_limit` stays as it is, and the lower of the two holds. See `TTLDict.cap`.

        >>> collector = ResponseCollector()
        >>> collector.cap(0)
        >>> collector.add(PooledExpertResponse("q1", "ada"))
        >>> "q1" in collector, collector.buffered, collector.stats["over_cap"]
        (False, 1, 1)
        >>> collector.cap(None)
        """
        self._answers.cap(nbytes)

    def pause(self, wait: bool | float | Callable[[], bool | float] = True) -> bool:
        """Stop accepting responses until `resume`: additions wait or fail as `ResponseBuffer.pause` describes. O(1)."""
        return False if self._holder() is None else self._buffer.pause(wait)

    def resume(self) -> bool:
        """Accept responses again. Return whether the collector was paused. O(1)."""
        return self._buffer.resume()

    @property
    def paused(self) -> bool:
        """Whether `pause` makes additions wait or fail."""
        return self._buffer.paused

    # ------------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._holder() is None:
            return f"<{name}, {'closed' if self._holder is _nobody else 'its owner gone'}>"
        return f"<{name} of {len(self._answers)} queries, {len(self._buffer)} responses to be delivered>"

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(
            f"{type(self).__name__} can't be pickled or copied; the tuples of responses() can"
        )


def _new_lock() -> RLock:
    try:
        return RLock()
    except RuntimeError:
        # Python 3.11 and 3.12 raise this if allocation fails.
        raise MemoryError from None


def _nobody() -> None:
    """Replaces the owner's weak reference once the collector is closed."""


def _owner_gone(collector: ref[ResponseCollector], _owner: object) -> None:
    """Runs when the owner dies. The collector may be dead already, or still in its constructor."""
    self = collector()
    if self is not None and hasattr(self, "_answers"):
        self._end()


def _call_method(
    anchor: ref[object],
    function: Callable[[Any, list[PooledExpertResponse]], object],
    responses: list[PooledExpertResponse],
) -> object:
    """Calls a method as the handler without keeping its object alive."""
    self = anchor()
    if self is None:
        raise OwnerGoneError("the object whose method was to receive these responses is gone")
    return function(self, responses)
