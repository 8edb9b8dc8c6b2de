"""The records: what they check and keep, how their memory is reused, and what hostile code can't do to them."""

import copy
import gc
import inspect
import json
import os
import pickle
import sys
import weakref
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from support import FREE_THREADED, needs_fork, quiet_fork, run

from synthex_fast import ObjectPool, PooledExpertQuery, PooledExpertResponse, QueryPriority, QueryType
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError

QUERY = {"title": "Cache size", "content": "How large should the cache be?", "requester": "ops"}
RESPONSE = {"query_id": "q-1", "expert_id": "e-1"}
NOW = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=UTC)
FULL_QUERY = {
    **QUERY,
    "query_type": "review",
    "priority": "high",
    "context": {"cpu": 4, "nested": {"a": [1, 2]}},
    "constraints": ["under 2 GB", "no restart"],
    "deadline": NOW + timedelta(hours=1),
    "tags": ["cache", "memory"],
    "id": "query-1",
    "created_at": NOW,
}
FULL_RESPONSE = {
    **RESPONSE,
    "content": "About 2 GB.",
    "confidence": 0.75,
    "reasoning": "It is what the others have.",
    "metadata": {"model": "m", "tokens": 12},
    "id": "response-1",
    "timestamp": NOW,
}
KINDS = [(PooledExpertQuery, QUERY, FULL_QUERY), (PooledExpertResponse, RESPONSE, FULL_RESPONSE)]
both = pytest.mark.parametrize(("cls", "least", "full"), KINDS, ids=["query", "response"])


class Query(PooledExpertQuery):
    """A subclass with a ``__dict__``."""


class SlottedQuery(PooledExpertQuery):
    __slots__ = ("note",)


class DictAndSlots(SlottedQuery):
    pass


class Response(PooledExpertResponse):
    __slots__ = ("note",)


class Text(str):
    """A string that can hold references."""


def query(**fields):
    return PooledExpertQuery(**{**QUERY, **fields})


def response(**fields):
    return PooledExpertResponse(**{**RESPONSE, **fields})


def fields_of(record):
    names = FULL_QUERY if isinstance(record, PooledExpertQuery) else FULL_RESPONSE
    return {name: copy.deepcopy(getattr(record, name)) for name in names}


# --- construction ---


@both
def test_fields_are_what_was_given(cls, least, full):
    record = cls(**full)
    for name, value in full.items():
        assert getattr(record, name) == value, name
    assert cls.acquire(**full) == record
    assert type(cls.acquire(**least)) is cls


def test_defaults():
    q, r = query(), response()
    assert (q.query_type, q.priority) == (QueryType.GENERAL, QueryPriority.MEDIUM)
    assert type(q.query_type) is QueryType
    assert type(q.priority) is QueryPriority
    assert (q.context, q.constraints, q.deadline, q.tags) == ({}, [], None, [])
    assert (r.content, r.confidence, r.reasoning, r.metadata) == ("", 0.0, "", {})
    assert q.created_at.tzinfo is UTC
    assert q.created_at is q.created_at
    assert q.id is q.id


def test_none_is_the_default_of_what_is_optional():
    optional = dict.fromkeys(("context", "constraints", "deadline", "tags", "id", "created_at"))
    q = query(**optional)
    assert (q.context, q.constraints, q.deadline, q.tags, len(q.id)) == ({}, [], None, [], 36)
    r = response(metadata=None, id=None, timestamp=None)
    assert (r.metadata, len(r.id)) == ({}, 36)
    for name in optional:
        setattr(q, name, None)
    assert (q.context, q.constraints, q.deadline, q.tags, len(q.id)) == ({}, [], None, [], 36)


def test_positional_arguments():
    q = PooledExpertQuery("A title", "Some content here", "someone")
    assert (q.title, q.content, q.requester) == ("A title", "Some content here", "someone")
    q = PooledExpertQuery("A title", requester="someone", content="Some content here")
    assert (q.title, q.content, q.requester) == ("A title", "Some content here", "someone")
    r = PooledExpertResponse("q", "e", "text", 0.5, "because", {"a": 1}, id="x")
    assert fields_of(r) | {"timestamp": None} == {
        "query_id": "q", "expert_id": "e", "content": "text", "confidence": 0.5, "reasoning": "because",
        "metadata": {"a": 1}, "id": "x", "timestamp": None,
    }  # fmt: skip


@pytest.mark.parametrize("make", [PooledExpertQuery, PooledExpertQuery.acquire, Query], ids=repr)
def test_calls_that_do_not_fit_the_signature(make):
    text = "Some content here"
    for args, kwargs, complaint in [
        ((), {}, "title|argument"),
        (("t", text), {}, "requester|argument"),
        (("t", text, "r", "general"), {}, "positional"),
        (("t", text, "r"), {"title": "t"}, "title"),
        (("t", text, "r"), {"nonsense": 1}, "nonsense"),
        (("t", text, "r"), {"": 1}, "unexpected"),
        (("t", text, "r"), {Text("nonsense"): 1}, "nonsense"),
    ]:
        with pytest.raises(TypeError, match=complaint):
            make(*args, **kwargs)


@both
def test_signatures_and_docstrings(cls, least, full):
    for callable_ in (cls, cls.acquire):
        parameters = inspect.signature(callable_).parameters
        assert set(parameters) == set(full)
        inspect.signature(callable_).bind(**full)
        assert [p.name for p in parameters.values() if p.default is p.empty] == list(least)
    assert cls.__doc__.lstrip().startswith(("A question put", "An expert's answer"))
    for name in full:
        assert getattr(cls, name).__doc__


def test_keywords_in_any_order_and_not_interned():
    names = list(FULL_QUERY)
    expected = PooledExpertQuery(**FULL_QUERY)
    for turn in range(len(names)):
        order = names[turn:] + names[:turn]
        made = PooledExpertQuery(**{"".join(list(name)): FULL_QUERY[name] for name in order})
        assert made == expected
        assert PooledExpertQuery(**{name: FULL_QUERY[name] for name in reversed(order)}) == expected
    assert PooledExpertQuery(**{Text(name): value for name, value in FULL_QUERY.items()}) == expected


def test_constructing_needs_no_package_but_the_records():
    code = (
        "import sys; from synthex_fast import PooledExpertQuery as Q, PooledExpertResponse as R\n"
        "q = Q('A title', 'Some content here', 'someone', query_type='review', tags=['A']); q.id, q.tags\n"
        "r = R('q', 'e', 'text', 0.5); r.metadata, r.id, r.confidence; del q, r\n"
        "print(*{'datetime', 'enum', 'uuid', 'synthex_fast.kinds', 'copyreg', 'random'} & set(sys.modules))\n"
        "assert Q('t', 'Some content here', 'r').query_type == 'general'; assert 'enum' in sys.modules\n"
    )
    # No site: what it imports would hide what the package does.
    assert set(run(code, "-S").split()) <= {"copyreg"}


# --- checks ---

AWARE_PAST = datetime(2001, 1, 1, tzinfo=UTC)


class HalfAware(tzinfo):
    def utcoffset(self, when):
        return None


BAD_QUERY = [
    ("title", "", ArgumentValueError),
    ("title", "x" * 201, ArgumentValueError),
    ("title", None, ArgumentTypeError),
    ("title", b"bytes", ArgumentTypeError),
    ("content", "x" * 9, ArgumentValueError),
    ("content", "x" * 10_001, ArgumentValueError),
    ("content", 10, ArgumentTypeError),
    ("requester", "", ArgumentValueError),
    ("requester", ["x"], ArgumentTypeError),
    ("query_type", "urgent", ArgumentValueError),
    ("query_type", "General", ArgumentValueError),
    ("query_type", None, ArgumentTypeError),
    ("query_type", 5, ArgumentTypeError),
    ("priority", "", ArgumentValueError),
    ("priority", "general", ArgumentValueError),
    ("priority", 1, ArgumentTypeError),
    ("context", [], ArgumentTypeError),
    ("context", "text", ArgumentTypeError),
    ("constraints", "text", ArgumentTypeError),
    ("constraints", {"a": 1}, ArgumentTypeError),
    ("constraints", ["text", 1], ArgumentTypeError),
    ("constraints", iter(["text"]), ArgumentTypeError),
    ("tags", "text", ArgumentTypeError),
    ("tags", ["text", None], ArgumentTypeError),
    ("tags", 3, ArgumentTypeError),
    ("deadline", "2030-01-01", ArgumentTypeError),
    ("deadline", datetime(2999, 1, 1), ArgumentValueError),
    ("deadline", datetime(2999, 1, 1, tzinfo=HalfAware()), ArgumentValueError),
    ("deadline", AWARE_PAST, ArgumentValueError),
    ("id", "", ArgumentValueError),
    ("id", 7, ArgumentTypeError),
    ("created_at", datetime(2999, 1, 1), ArgumentValueError),
    ("created_at", 1e9, ArgumentTypeError),
]
BAD_RESPONSE = [
    ("query_id", None, ArgumentTypeError),
    ("query_id", 1, ArgumentTypeError),
    ("expert_id", b"e", ArgumentTypeError),
    ("content", None, ArgumentTypeError),
    ("reasoning", 0, ArgumentTypeError),
    ("confidence", -1e-9, ArgumentValueError),
    ("confidence", 1.0000001, ArgumentValueError),
    ("confidence", float("nan"), ArgumentValueError),
    ("confidence", 10**400, ArgumentValueError),
    ("confidence", "0.5", ArgumentTypeError),
    ("confidence", None, ArgumentTypeError),
    ("metadata", [("a", 1)], ArgumentTypeError),
    ("id", "", ArgumentValueError),
    ("timestamp", datetime(2020, 1, 1), ArgumentValueError),
    ("timestamp", "2020-01-01", ArgumentTypeError),
]
BAD = [(PooledExpertQuery, *bad) for bad in BAD_QUERY] + [
    (PooledExpertResponse, *bad) for bad in BAD_RESPONSE
]


@pytest.mark.parametrize(("cls", "name", "value", "error"), BAD, ids=lambda v: repr(v)[:30])
def test_bad_values_are_refused_by_name_and_change_nothing(cls, name, value, error):
    full = FULL_QUERY if cls is PooledExpertQuery else FULL_RESPONSE
    builtin = ValueError if error is ArgumentValueError else TypeError
    for make in (cls, cls.acquire, Query if cls is PooledExpertQuery else Response):
        with pytest.raises(error, match=f"^{name} must be ") as caught:
            make(**{**full, name: value})
        assert isinstance(caught.value, builtin)
    record = cls(**full)
    before = fields_of(record)
    with pytest.raises(error, match=f"^{name} must be .*{type(value).__name__}"):
        setattr(record, name, value)
    assert fields_of(record) == before
    with pytest.raises(error, match=f"^{name} must be "):
        record.__init__(**{**full, "id": "another", name: value})
    assert fields_of(record) == before


@both
def test_fields_cannot_be_deleted(cls, least, full):
    record = cls(**full)
    for name in full:
        with pytest.raises(AttributeError, match=name):
            delattr(record, name)
    assert record == cls(**full)
    with pytest.raises(AttributeError):
        record.nonsense = 1


def test_bounds_are_inclusive():
    for length in (1, 200):
        assert len(query(title="é" * length).title) == length
    for length in (10, 10_000):
        assert len(query(content="€" * length).content) == length
    assert query(requester="x").requester == "x"
    for confidence in (0.0, 1.0, 0, 1):
        assert response(confidence=confidence).confidence == float(confidence)
        assert type(response(confidence=confidence).confidence) is float


def test_lengths_are_those_of_the_text_not_what_a_subclass_says():
    class Liar(str):
        def __len__(self):
            return 50

        def __eq__(self, other):
            raise RuntimeError

        __hash__ = None

    with pytest.raises(ArgumentValueError, match="title"):
        query(title=Liar(""))
    with pytest.raises(ArgumentValueError, match="query_type"):
        query(query_type=Liar("no"))
    assert query(query_type=Liar("review")).query_type is QueryType.REVIEW


@pytest.mark.parametrize("kind", QueryType)
@pytest.mark.parametrize("priority", QueryPriority)
def test_enumerations_by_text_and_by_member(kind, priority):
    for q in (
        query(query_type=kind, priority=priority),
        query(query_type=kind.value, priority=str(priority)),
    ):
        assert q.query_type is kind
        assert q.priority is priority
    q = query()
    q.query_type, q.priority = kind, priority.value
    assert (q.query_type, q.priority) == (kind, priority)


class Number:
    def __init__(self, value):
        self.value = value

    def __float__(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_confidence_of_other_number_types():
    assert response(confidence=Number(0.5)).confidence == 0.5
    with pytest.raises(ArgumentValueError, match="confidence"):
        response(confidence=Number(7.0))
    with pytest.raises(KeyError):
        response(confidence=Number(KeyError("mine")))


# --- lists of texts ---


def plain_tags(tags):
    return list(dict.fromkeys(cleaned for tag in tags if (cleaned := tag.strip().lower())))


TAG = st.one_of(
    st.text(max_size=6),
    st.text(alphabet="aAbB \t", max_size=4),
    st.sampled_from([" Café ", "ǅ", "ẞ", "İ", "\x1fa", "a\x1f", "\x85a", "a b", "\x00"]),
)


@given(st.lists(TAG, max_size=40), st.sampled_from([list, tuple]))
@pytest.mark.slow
def test_tags_are_lower_case_stripped_and_unique(tags, container):
    expected = plain_tags(tags)
    assert query(tags=container(tags)).tags == expected
    q = query()
    q.tags = container(tags)
    assert q.tags == expected
    assert query(tags=[Text(tag) for tag in tags]).tags == expected
    assert all(type(tag) is str for tag in query(tags=[Text(tag) for tag in tags]).tags)


def test_many_tags():
    tags = [f"Tag {n % 700}" for n in range(2000)]
    assert query(tags=tags).tags == plain_tags(tags)


@given(st.lists(st.text(max_size=4), max_size=30))
def test_lists_are_copied(texts):
    class Mine(list):
        pass

    for given_texts in (list(texts), tuple(texts), Mine(texts)):
        q = query(constraints=given_texts)
        assert q.constraints == texts
        assert type(q.constraints) is list
        assert q.constraints is not given_texts
        assert q.constraints is q.constraints
    assert sorted(query(constraints=frozenset(texts)).constraints) == sorted(set(texts))
    assert set(query(tags=set(texts)).tags) == set(plain_tags(texts))


def test_dicts_are_kept_as_they_are():
    context = {"a": 1}
    q, r = query(context=context), response(metadata=context)
    assert q.context is context
    assert r.metadata is context
    q.context = other = {"b": 2}
    assert q.context is other
    q.context = None
    assert q.context == {}
    assert (context, other) == ({"a": 1}, {"b": 2})


@both
def test_containers_are_made_when_touched_and_kept(cls, least, full):
    record, other = cls(**least), cls(**least)
    for name in {"context", "constraints", "tags", "metadata"} & set(full):
        made = getattr(record, name)
        assert made == type(full[name])()
        assert getattr(record, name) is made
        assert getattr(other, name) is not made
        made.append("x") if isinstance(made, list) else made.update(x=1)
        assert getattr(record, name) is made
        assert not getattr(other, name)


# --- identity and time ---


def test_ids():
    made = [query().id for _ in range(500)] + [response().id for _ in range(500)]
    assert len(set(made)) == 1000
    assert all(len(id) == 36 and id[14] == "4" and id[19] in "89ab" for id in made)
    q = query()
    first = q.id
    q.id = None
    assert q.id != first


def test_times_keep_their_order_with_datetime_now():
    for _ in range(3000):
        before = datetime.now(UTC)
        q, r = query(), response()
        after = datetime.now(UTC)
        assert before <= q.created_at <= r.timestamp <= after


def test_times_are_kept_as_given():
    for zone in (UTC, timezone(timedelta(hours=-7, minutes=-30))):
        when = datetime(2031, 2, 3, 4, 5, 6, 999_999, tzinfo=zone)
        q, r = query(created_at=when), response(timestamp=when)
        assert q.created_at is when
        assert r.timestamp is when
        later = when + timedelta(microseconds=1)
        assert query(created_at=when, deadline=later).deadline is later
        with pytest.raises(ArgumentValueError, match=r"^deadline must be later than created_at"):
            query(created_at=when, deadline=when)


def test_deadline_and_creation_are_checked_against_each_other_when_set():
    q = query(created_at=NOW, deadline=NOW + timedelta(seconds=1))
    with pytest.raises(ArgumentValueError, match=r"^created_at must be earlier than the deadline"):
        q.created_at = NOW + timedelta(seconds=1)
    assert q.created_at is NOW
    with pytest.raises(ArgumentValueError, match=r"^created_at must be earlier than the deadline"):
        q.created_at = None
    with pytest.raises(ArgumentValueError, match=r"^deadline"):
        q.deadline = NOW
    q.created_at = NOW - timedelta(days=1)
    q.deadline = NOW
    q.deadline = None
    assert q.deadline is None


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1)))
def test_times_survive_to_the_microsecond(when):
    when = when.replace(tzinfo=UTC)
    q = query(created_at=when, id="x")
    assert PooledExpertQuery.from_dict(q.to_dict()).created_at == when
    assert copy.copy(q) == q


def test_time_zones_may_run_any_code():
    class Zone(tzinfo):
        def utcoffset(self, when):
            gc.collect()
            query(), response()
            if self.fails:
                raise KeyError("mine")
            return timedelta(hours=1)

    zone = Zone()
    zone.fails = False
    when = datetime(2999, 1, 1, tzinfo=zone)
    q = query(deadline=when)
    assert q.deadline is when
    zone.fails = True
    with pytest.raises(KeyError):
        query(deadline=when)
    with pytest.raises(KeyError):
        q.created_at = when


# --- reset, release, with ---


@both
@pytest.mark.parametrize("way", ["reset", "release", "with", "error"])
def test_reset_and_release_blank_every_field(cls, least, full, way):
    for make in (cls, Query if cls is PooledExpertQuery else Response):
        record = make(**full)
        contents = full.get("context", full.get("metadata"))
        before = copy.deepcopy(contents)
        if way == "with":
            with record as same:
                assert same is record
        elif way == "error":
            with pytest.raises(KeyError), record:
                raise KeyError
        else:
            assert getattr(record, way)() is None
        assert contents == before
        blanks = fields_of(record)
        assert blanks.pop("id") != full["id"]
        assert blanks.pop("timestamp", None) != NOW
        assert blanks.pop("created_at", None) != NOW
        assert not any(value for name, value in blanks.items() if name not in ("query_type", "priority"))
        if cls is PooledExpertQuery:
            assert (record.query_type, record.priority) == ("general", "medium")
        record.release()
        record.release()
        # A blank record can be copied and pickled all the same.
        assert copy.deepcopy(record) == record
        record.__init__(**full)
        assert [getattr(record, name) for name in full] == list(full.values())


def test_reset_leaves_to_others_what_they_hold():
    q = query()
    context, constraints, tags = q.context, q.constraints, q.tags
    context["a"] = 1
    constraints.append("x")
    tags.append("y")
    q.reset()
    assert (context, constraints, tags) == ({"a": 1}, ["x"], ["y"])
    assert q.context is not context
    assert (q.context, q.constraints, q.tags) == ({}, [], [])


def test_reset_survives_what_its_contents_do_when_they_go():
    class Toucher:
        def __del__(self):
            seen.append((q.title, dict(q.context), list(q.tags)))
            q.context["late"] = 1
            q.reset()

    seen = []
    q = query()
    q.context["a"] = Toucher()
    q.reset()
    assert seen == [("", {}, [])]
    assert q.context == {}


# --- values: dicts, equality, repr, copies ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3)
    ),
    max_leaves=6,
)
QUERIES = st.builds(
    query,
    title=st.text(min_size=1, max_size=20),
    query_type=st.sampled_from(QueryType),
    priority=st.sampled_from(["low", "critical"]),
    context=st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=3),
    constraints=st.none() | st.lists(st.text(max_size=3), max_size=3),
    tags=st.none() | st.lists(TAG, max_size=3),
    deadline=st.none() | st.datetimes(min_value=datetime(2100, 1, 1), timezones=st.just(UTC)),
    id=st.none() | st.text(min_size=1, max_size=4),
    created_at=st.none() | st.datetimes(datetime(1980, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)),
)
RESPONSES = st.builds(
    response,
    content=st.text(max_size=5),
    confidence=st.floats(0, 1),
    reasoning=st.text(max_size=5),
    metadata=st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=3),
    id=st.none() | st.text(min_size=1, max_size=4),
    timestamp=st.none() | st.datetimes(datetime(1980, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)),
)


@given(st.one_of(QUERIES, RESPONSES))
def test_every_way_of_copying_gives_an_equal_record(record):
    cls = type(record)
    assert cls.from_dict(record.to_dict()) == record
    assert cls.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    for twin in (
        copy.copy(record),
        copy.deepcopy(record),
        *(pickle.loads(pickle.dumps(record, p)) for p in range(6)),
    ):
        assert type(twin) is cls
        assert twin is not record
        assert twin == record
        assert fields_of(twin) == fields_of(record)
        assert twin.id == record.id


def test_to_dict_is_plain():
    fields = PooledExpertQuery(**FULL_QUERY).to_dict()
    assert fields == {
        **FULL_QUERY,
        "deadline": FULL_QUERY["deadline"].isoformat(),
        "created_at": NOW.isoformat(),
    }
    assert type(fields["query_type"]) is str
    q = query()
    assert q.to_dict()["deadline"] is None
    # The containers are copies, and asking for them does not make the record's own.
    q.to_dict()["context"]["a"] = 1
    assert not gc.is_tracked(q)
    assert q.context == {}
    assert response(timestamp=NOW).to_dict()["timestamp"] == NOW.isoformat()


def test_from_dict_checks():
    data = query().to_dict()
    with pytest.raises(ArgumentValueError, match="title"):
        PooledExpertQuery.from_dict({**data, "title": ""})
    with pytest.raises(ArgumentValueError, match="nonsense"):
        PooledExpertQuery.from_dict({**data, "nonsense": 1})
    with pytest.raises(ArgumentValueError, match=r"^created_at must be a time in ISO 8601"):
        PooledExpertQuery.from_dict({**data, "created_at": "yesterday"})
    with pytest.raises(ArgumentValueError, match=r"^deadline must be a timezone-aware"):
        PooledExpertQuery.from_dict({**data, "deadline": "2999-01-01"})
    with pytest.raises(ArgumentTypeError, match=r"^data must be"):
        PooledExpertQuery.from_dict([])
    with pytest.raises(TypeError, match="requester"):
        PooledExpertQuery.from_dict({"title": "t", "content": "x" * 10})
    assert type(Query.from_dict(data)) is Query
    assert data == PooledExpertQuery.from_dict(data).to_dict()


@both
def test_equality_compares_every_field(cls, least, full):
    record = cls(**full)
    assert record == cls(**copy.deepcopy(full))
    assert (record != cls(**full)) is False
    others = {
        "title": "Another", "content": "Another content", "requester": "dev", "query_type": "general",
        "priority": "low", "context": {}, "constraints": [], "deadline": None, "tags": ["cache"], "id": "other",
        "created_at": NOW - timedelta(microseconds=1), "query_id": "q-2", "expert_id": "e-2", "confidence": 0.7,
        "reasoning": "", "metadata": None, "timestamp": NOW + timedelta(microseconds=1),
    }  # fmt: skip
    for name in full:
        assert record != cls(**{**full, name: others[name]}), name
    assert cls(**least) != cls(**least)
    blank = cls(**least)
    assert blank == blank
    assert record != full
    assert (record == object()) is False
    assert record.__eq__(1) is NotImplemented


def test_equality_across_types_and_time_zones():
    assert Query(**FULL_QUERY) != PooledExpertQuery(**FULL_QUERY)
    assert Query(**FULL_QUERY) == Query(**FULL_QUERY)
    there = NOW.astimezone(timezone(timedelta(hours=5)))
    assert PooledExpertQuery(**{**FULL_QUERY, "created_at": there}) == PooledExpertQuery(**FULL_QUERY)
    # Untouched containers equal empty ones.
    a, b = query(id="x", created_at=NOW), query(id="x", created_at=NOW)
    assert not a.context
    assert not a.tags
    assert a == b


@both
def test_unhashable_because_mutable(cls, least, full):
    with pytest.raises(TypeError, match="unhashable"):
        hash(cls(**least))


def test_repr_shows_every_field_and_survives_cycles():
    q = PooledExpertQuery(**FULL_QUERY)
    assert eval(repr(q), {"PooledExpertQuery": PooledExpertQuery, "datetime": sys.modules["datetime"]}) == q
    r = response(metadata={})
    r.metadata["self"] = r
    assert "PooledExpertResponse(...)" in repr(r)
    assert repr(Query(**QUERY)).startswith("Query(title=")
    r.metadata.clear()


def test_match_arguments():
    match query():
        case PooledExpertQuery(title, content, requester):
            assert [title, content, requester] == list(QUERY.values())
    match PooledExpertResponse(**FULL_RESPONSE):
        case PooledExpertResponse(query_id, expert_id, content, confidence, reasoning, metadata):
            assert [query_id, expert_id, content, confidence, reasoning, metadata] == list(
                FULL_RESPONSE.values()
            )[:6]


@pytest.mark.parametrize("cls", [Query, SlottedQuery, DictAndSlots])
def test_copies_of_subclasses_keep_their_own_state(cls):
    q = cls(**FULL_QUERY)
    names = {Query: ["extra"], SlottedQuery: ["note"], DictAndSlots: ["note", "extra"]}[cls]
    for name in names:
        setattr(q, name, [name])
    for twin in (copy.copy(q), copy.deepcopy(q), *(pickle.loads(pickle.dumps(q, p)) for p in range(6))):
        assert type(twin) is cls
        assert twin == q
        assert all(getattr(twin, name) == [name] for name in names)
    assert getattr(copy.copy(q), names[0]) is getattr(q, names[0])
    assert getattr(copy.deepcopy(q), names[0]) is not getattr(q, names[0])


def test_copies_are_shallow_or_deep():
    q = query(context={"a": []})
    assert copy.copy(q).context is q.context
    assert copy.deepcopy(q).context["a"] is not q.context["a"]


def test_pickles_of_cycles_and_of_changed_contents():
    q = query()
    q.context["self"] = q
    q.constraints.append(5)
    for twin in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert twin.context["self"] is twin
        assert twin.constraints == [5]
        twin.context.clear()
    q.context.clear()


@both
def test_states_that_no_record_gave_are_refused(cls, least, full):
    record = cls(**full)
    values, extra = record.__getstate__()
    bad = [None, (), (values,), (values[:-1], None), (list(values), None)]
    bad += [((*values[:i], object(), *values[i + 1 :]), None) for i in range(len(values))]
    for state in bad:
        with pytest.raises((TypeError, ValueError)):
            record.__setstate__(state)
        assert record == cls(**full)
    record.__setstate__((values, extra))
    assert record == cls(**full)


# --- subclasses ---


def test_subclass_that_changes_the_signature():
    class Short(PooledExpertQuery):
        def __init__(self, title):
            super().__init__(title, "Some content here", "someone")
            self.extra = title.upper()

    q = Short("a title")
    assert (q.title, q.requester, q.extra) == ("a title", "someone", "A TITLE")
    assert Short.acquire("x").extra == "X"
    assert pickle.loads(pickle.dumps(Query(**FULL_QUERY))) == Query(**FULL_QUERY)


def test_subclass_that_never_calls_the_constructor_has_blanks():
    class Lazy(PooledExpertResponse):
        def __init__(self):
            pass

    r = Lazy()
    assert (r.query_id, r.content, r.confidence, r.metadata, len(r.id)) == ("", "", 0.0, {}, 36)
    assert r.timestamp.tzinfo is UTC
    q = PooledExpertQuery.__new__(PooledExpertQuery)
    assert (q.title, q.priority, q.tags) == ("", "medium", [])
    with pytest.raises(TypeError):
        object.__new__(PooledExpertQuery)
    with pytest.raises(TypeError):
        q.__class__ = Query


def test_subclass_finaliser_and_resurrection():
    class Phoenix(PooledExpertQuery):
        def __del__(self):
            kept.append(self)

    kept = []
    q = Phoenix(**FULL_QUERY)
    del q
    gc.collect()
    (q,) = kept
    kept.clear()
    assert q.context == FULL_QUERY["context"]
    assert q.tags == FULL_QUERY["tags"]
    assert gc.is_tracked(q)
    del q
    gc.collect()
    # A finaliser runs once.
    assert not kept


@pytest.mark.parametrize("cls", [PooledExpertQuery, PooledExpertResponse])
def test_stats_is_an_attribute_that_can_be_called(cls):
    class Sub(cls):
        pass

    keys = set(ObjectPool(list).stats)
    record = cls(*["some text here"] * 3)
    for holder in (cls, record, Sub, Sub(*["some text here"] * 3)):
        assert isinstance(holder.stats, dict)
        assert holder.stats.keys() == holder.stats().keys() == keys
        assert holder.stats == holder.stats()
        assert type(holder.stats()) is dict
    with pytest.raises((AttributeError, TypeError)):
        record.stats = {}
    with pytest.raises(TypeError):
        cls.stats = {}


def test_stats_are_a_snapshot_and_the_call_counts_again():
    stats = PooledExpertQuery.stats
    before = dict(stats)
    assert stats is not PooledExpertQuery.stats
    for _ in range(3):
        query()
    assert stats == before
    assert stats()["created"] + stats()["reused"] == before["created"] + before["reused"] + 3


@pytest.mark.parametrize("cls", [PooledExpertQuery, PooledExpertResponse])
def test_the_descriptor_behind_stats_cannot_be_made_without_a_record_type(cls):
    kind = type(cls.__dict__["stats"])
    for make in (kind, lambda: kind.__new__(kind)):
        with pytest.raises(TypeError):
            make().__get__(None, cls)


def test_stats_copy_and_pickle_as_a_plain_dict():
    stats = PooledExpertQuery.stats
    for plain in (pickle.loads(pickle.dumps(stats)), copy.copy(stats), copy.deepcopy(stats)):
        assert type(plain) is dict
        assert plain == stats
    assert json.loads(json.dumps(stats)) == stats


def test_subclasses_take_no_memory_from_the_freelist():
    query()
    before = PooledExpertQuery.stats
    for cls in (Query, SlottedQuery, DictAndSlots):
        q = cls(**FULL_QUERY)
        q.title = "Another"
        del q
    after = PooledExpertQuery.stats
    assert after["pool_size"] >= before["pool_size"]
    assert after["created"] - before["created"] == 0


def test_mixed_inheritance():
    class Mixin:
        def shout(self):
            return self.title.upper()

    class Mixed(Mixin, PooledExpertQuery):
        pass

    assert Mixed(**QUERY).shout() == "CACHE SIZE"
    with pytest.raises(TypeError):
        type("Both", (PooledExpertQuery, PooledExpertResponse), {})


# --- recycling ---

STATS = {"created", "reused", "released", "discarded", "aliased", "pool_size", "reuse_rate"}


@both
def test_stats(cls, least, full):
    def made(n):
        for _ in range(n):
            cls(**least)

    made(1)
    before = cls.stats
    made(10)
    after = cls.stats
    assert set(after) == STATS
    assert after["reused"] - before["reused"] == 10
    assert after["released"] - before["released"] == 10
    assert after["created"] == before["created"]
    assert after["pool_size"] == before["pool_size"] >= 1
    assert 0 < after["reuse_rate"] <= 1
    assert after["aliased"] == 0
    assert after["reuse_rate"] == after["reused"] / (after["reused"] + after["created"])


@both
def test_memory_is_used_again_at_once(cls, least, full):
    record = cls(**full)
    address = id(record)
    del record
    record = cls(**least)
    assert id(record) == address
    # Nothing of the last one shows.
    for name in {"context", "constraints", "tags", "metadata"} & set(full):
        assert not getattr(record, name)
    assert record.id != full["id"]


def test_containers_that_nobody_holds_are_used_again():
    q, r = query(), response()
    q.context["a"] = 1
    q.tags.append("x")
    q.constraints.append("y")
    r.metadata["a"] = 1
    addresses = [id(q.context), id(q.constraints), id(q.tags), id(r.metadata)]
    del q, r
    q, r = query(), response()
    found = [q.context, q.constraints, q.tags, r.metadata]
    assert [id(container) for container in found] == addresses
    assert found == [{}, [], [], {}]
    assert all(map(gc.is_tracked, found))


def test_lists_that_nobody_holds_are_used_again_with_their_room():
    q = query(tags=["a", "b", "c"], constraints=["d"])
    address = id(q.tags)
    del q
    q = query(tags=["e", "f"])
    assert id(q.tags) == address
    assert (q.tags, q.constraints) == (["e", "f"], [])


def test_containers_that_somebody_holds_are_left_to_them():
    q = query(tags=["x"], constraints=["y"], context={"a": 1})
    held = [q.context, q.constraints, q.tags]
    del q
    q = query()
    assert held == [{"a": 1}, ["y"], ["x"]]
    now = [q.context, q.constraints, q.tags]
    assert now == [{}, [], []]
    assert not any(a is b for a, b in zip(held, now, strict=True))
    now[0]["b"] = 2
    assert held[0] == {"a": 1}


def test_an_alias_elsewhere_keeps_a_container():
    shared = []
    q = query()
    q.context["list"] = shared
    q.tags = []
    shared.append(q.tags)
    del q
    query()
    assert shared == [[]]
    shared[0].append("mine")
    assert query().tags == []


def test_large_lists_and_container_subclasses_are_let_go():
    class Mine(dict):
        pass

    q = query(constraints=["x"] * 1000, context=Mine())
    ref = weakref.ref(q.context)
    del q
    q = query()
    assert ref() is None
    assert sys.getsizeof(q.constraints) < 1000


def test_freelist_is_bounded():
    many = [query() for _ in range(9000)]
    before = PooledExpertQuery.stats
    many.clear()
    after = PooledExpertQuery.stats
    assert after["pool_size"] <= 4096
    assert after["discarded"] > before["discarded"]


def test_size():
    expected = PooledExpertQuery.__basicsize__ + (0 if FREE_THREADED else 16)
    assert sys.getsizeof(query()) == expected
    q = query(tags=["a"] * 5)
    assert sys.getsizeof(q) == expected
    assert sys.getsizeof(SlottedQuery(**QUERY)) >= expected


class Lives(RuleBasedStateMachine):
    """Records that come and go beside plain dicts that never share memory."""

    records = Bundle("records")
    held = Bundle("held")

    def __init__(self):
        super().__init__()
        self.alive = []

    @staticmethod
    def plain(**fields):
        return {"context": {}, "constraints": [], "tags": [], **fields}

    def born(self, record, model):
        pair = [record, model]
        self.alive.append(pair)
        return pair

    @rule(target=records, number=st.integers(0, 99), subclass=st.booleans(), untracked=st.booleans())
    def make(self, number, subclass, untracked):
        cls = Query if subclass else PooledExpertQuery
        fields = {"title": f"title {number}", "tags": [f"t{number}"]}
        if not untracked:
            fields["context"] = {"number": number}
        if number % 3 == 0:
            fields["constraints"] = [str(number)] * (number // 3)
        return self.born(cls(**{**QUERY, **fields}), self.plain(**copy.deepcopy(fields)))

    @rule(target=records, pair=records)
    def twin(self, pair):
        return self.born(copy.deepcopy(pair[0]), copy.deepcopy(pair[1]))

    @rule(pair=consumes(records))
    def drop(self, pair):
        self.alive = [each for each in self.alive if each is not pair]
        pair.clear()

    @rule(pair=records)
    def forget_the_cycle(self, pair):
        # Another dict, so that a holder of the old one sees no cycle in it.
        pair[0].context = {"self": pair[0]}
        model = copy.deepcopy(pair[1])
        model["title"] = model["title"] or "blank before"
        model["tags"] = plain_tags(model["tags"])
        pair[:] = PooledExpertQuery(**{**QUERY, **copy.deepcopy(model)}), model
        gc.collect(0)

    @rule(pair=records, number=st.integers())
    def change(self, pair, number):
        record, model = pair
        for each in (record.context, model["context"]):
            each[number] = [number]
        for name in ("constraints", "tags"):
            getattr(record, name).append(f"{number}")
            model[name].append(f"{number}")

    @rule(pair=records, name=st.sampled_from(["constraints", "tags", "context"]), number=st.integers(0, 9))
    def set(self, pair, name, number):
        value = {"set": number} if name == "context" else [f"set {number}"] * (number > 0)
        setattr(pair[0], name, value)
        pair[1][name] = copy.deepcopy(value)

    @rule(target=held, pair=records, name=st.sampled_from(["constraints", "tags", "context"]))
    def hold(self, pair, name):
        return getattr(pair[0], name), pair[1][name]

    @rule(pair=records)
    def reset(self, pair):
        pair[0].reset()
        pair[1].clear()
        pair[1].update(self.plain(title=""))

    @rule(one=held)
    def held_is_as_it_was(self, one):
        container, model = one
        assert container == model

    @rule(one=consumes(held))
    def let_go(self, one):
        pass

    @invariant()
    def nobody_sees_anothers(self):
        for record, model in self.alive:
            assert {name: getattr(record, name) for name in model} == model


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=40)


# --- the collector ---


def test_who_is_tracked():
    assert not gc.is_tracked(query())
    assert not gc.is_tracked(response(content="text", confidence=0.5))
    q = query(id="x", created_at=NOW, deadline=NOW + timedelta(1), tags=["a"], constraints=("b",))
    q.id, q.created_at, q.title, q.query_type, q.deadline, q.to_dict(), repr(q)
    q.title = "Another"
    assert not gc.is_tracked(q)
    assert q.tags == ["a"]
    assert gc.is_tracked(q)
    assert gc.is_tracked(q.tags)
    q.reset()
    assert not gc.is_tracked(q)
    assert gc.is_tracked(query(context={}))
    assert gc.is_tracked(query(title=Text("text")))
    q = query()
    q.requester = Text("text")
    assert gc.is_tracked(q)
    q = query(constraints=[Text("text")])
    assert gc.is_tracked(q)
    assert gc.is_tracked(q.constraints)
    q = query()
    q.context = {}
    assert gc.is_tracked(q)
    for name in ("context", "constraints", "tags"):
        q = query()
        assert gc.is_tracked(getattr(q, name))
        assert gc.is_tracked(q)
    r = response()
    assert gc.is_tracked(r.metadata)
    assert gc.is_tracked(r)
    assert gc.is_tracked(Query(**QUERY))
    q = Query(**QUERY)
    q.reset()
    assert gc.is_tracked(q)


def test_no_list_out_of_the_collectors_sight_gets_into_anybodys_hands():
    q = query(tags=["a"], constraints=["b"])
    values, _ = q.__getstate__()
    assert all(gc.is_tracked(value) for value in values if isinstance(value, list))
    twin = copy.copy(q)
    for name in ("tags", "constraints"):
        assert gc.is_tracked(getattr(twin, name))
        assert getattr(q, name) == getattr(twin, name)
        assert gc.is_tracked(getattr(q, name))

    class Thief(list):
        def __eq__(self, other):
            stolen.append(other)
            return True

        __hash__ = None

    stolen = []
    q, other = (query(tags=["a"], id="x", created_at=NOW) for _ in range(2))
    other.__setstate__(((*other.__getstate__()[0][:8], Thief(["a"]), *other.__getstate__()[0][9:]), None))
    assert q == other
    assert stolen
    assert all(map(gc.is_tracked, stolen))


def test_idle_containers_are_out_of_sight():
    q = query(tags=["a"])
    q.context["b"] = 1
    q.tags.append("c")
    addresses = {id(q.context), id(q.tags)}
    del q
    assert not [found for found in gc.get_objects() if id(found) in addresses]


def test_a_time_set_while_another_is_made():
    class Zone(tzinfo):
        def utcoffset(self, when):
            q.created_at = None
            return timedelta(0)

        def dst(self, when):
            return timedelta(0)

    q = query(created_at=NOW)
    q.created_at = datetime(2001, 1, 1, tzinfo=Zone())
    assert q.created_at.year == 2001


def test_memory_used_again_is_not_tracked():
    q = query(context={})
    address = id(q)
    del q
    q = query()
    assert id(q) == address
    assert not gc.is_tracked(q)


class Canary:
    pass


def _through_context(q, canary):
    q.context.update(canary=canary, self=q)


def _through_given_context(q, canary):
    context = {"canary": canary}
    q.context = context
    context["self"] = q


def _through_tags(q, canary):
    q.tags.extend([canary, q])


def _through_constraints(q, canary):
    text = Text("x")
    text.canary, text.self = canary, q
    q.constraints = [text]


def _through_title(q, canary):
    text = Text("x")
    text.canary, text.self = canary, q
    q.title = text


def _through_id(q, canary):
    text = Text("x")
    text.canary, text.self = canary, q
    q.id = text


def _through_deadline(q, canary):
    class When(datetime):
        pass

    when = When(2999, 1, 1, tzinfo=UTC)
    when.canary, when.self = canary, q
    q.deadline = when


def _through_two_records(q, canary):
    q.context["response"] = response(metadata={"query": q, "canary": canary})


@pytest.mark.parametrize(
    "tie",
    [
        _through_context,
        _through_given_context,
        _through_tags,
        _through_constraints,
        _through_title,
        _through_id,
        _through_deadline,
        _through_two_records,
    ],
)
@pytest.mark.parametrize("cls", [PooledExpertQuery, Query, SlottedQuery])
@pytest.mark.slow
def test_cycles_are_collected(tie, cls):
    for collected_at_once in (False, True):
        q, canary = cls(**QUERY), Canary()
        tie(q, canary)
        gone, record_gone = weakref.ref(canary), weakref.ref(q)
        assert gc.is_tracked(q)
        if collected_at_once:
            gc.collect()
        del q, canary
        gc.collect()
        assert gone() is None
        assert record_gone() is None
    assert query().context == {}


def test_cycle_with_a_finaliser_that_looks_at_the_record():
    class Last:
        def __init__(self, record):
            self.record = record

        def __del__(self):
            seen.append((self.record.title, dict(self.record.context).keys(), self.record.tags))

    seen = []
    q = query(tags=["a"])
    q.context["last"] = Last(q)
    del q
    gc.collect()
    assert seen == [("Cache size", {"last": 0}.keys(), ["a"])]


def test_cycle_resurrected_by_a_finaliser():
    class Saviour:
        def __del__(self):
            kept.append(self.record)

    kept = []
    q = query(context={"saviour": Saviour()})
    q.context["saviour"].record = q
    del q
    gc.collect()
    (q,) = kept
    assert q.context["saviour"].record is q
    assert gc.is_tracked(q)
    q.context.clear()


def test_referents_are_the_fields_and_no_idle_container():
    q = query(id="the-id", context={"a": 1}, tags=["x"])
    referents = gc.get_referents(q)
    for value in (q.title, q.content, q.requester, "the-id", q.context, q.tags):
        assert any(value is referent for referent in referents)
    del referents, q
    q = query()
    assert not [referent for referent in gc.get_referents(q) if isinstance(referent, (dict, list))]


def test_weak_references():
    q = query()
    calls = []
    ref = weakref.ref(q, lambda dead: calls.append((dead() is None, query().context)))
    assert ref() is q
    address = id(q)
    del q
    assert calls == [(True, {})]
    assert ref() is None
    q = query()
    assert ref() is None
    assert weakref.getweakrefcount(q) == 0
    proxy = weakref.proxy(q)
    assert proxy.title == q.title
    assert isinstance(address, int)
    values = weakref.WeakValueDictionary(q=q)
    del q
    assert "q" not in values


def test_a_deep_chain_of_records_does_not_exhaust_the_stack():
    for n in range(2):
        q = query()
        for _ in range(100_000):
            parent = query(context={"child": q}) if n else query()
            if not n:
                parent.tags.append(q)
            q = parent
        del q, parent
    q = Query(**QUERY)
    for _ in range(20_000):
        q = Query(**QUERY, context={"child": q})
    del q
    assert query().context == {}


# --- hostile contents ---


def test_contents_that_make_records_while_they_go():
    class Maker:
        def __del__(self):
            inner = [query(tags=["t"]), query(context={}), response(), query()]
            inner[3].context["x"] = query()
            made.extend(record.to_dict() for record in inner[:1])

    made = []
    for _ in range(50):
        q = query(constraints=["a"], tags=["b"])
        q.context["maker"] = Maker()
        q.tags.append(Maker())
        q.constraints.append(Maker())
        del q
        q = query()
        assert (q.context, q.tags, q.constraints) == ({}, [], [])
    assert len(made) == 150


def test_contents_that_raise_while_they_go():
    class Raiser:
        def __del__(self):
            unraisable.append(1)

    unraisable = []
    with pytest.raises(KeyError, match="mine"):
        q = query()
        q.context["x"] = Raiser()
        try:
            raise KeyError("mine")
        finally:
            del q
    assert unraisable == [1]


def test_an_error_half_way_leaves_nothing_behind():
    q = query(tags=["a", "b"])
    del q
    for _ in range(3):
        with pytest.raises(ArgumentTypeError):
            query(tags=["x", "y", 3], constraints=["z"])
        with pytest.raises(ArgumentTypeError):
            query(constraints=["z"] * 20 + [None], tags=["x"])
    q = query()
    assert (q.tags, q.constraints) == ([], [])


def test_setters_let_go_last():
    class Nosy(Text):
        def __del__(self):
            seen.append((q.title, q.requester))

    seen = []
    q = query(title=Nosy("old"))
    q.title = "new"
    q.requester = Nosy("old")
    q.requester = "new"
    assert seen == [("new", "ops"), ("new", "new")]


def test_a_list_that_changes_while_it_is_read():
    class Shrinker(list):
        def __iter__(self):
            texts.clear()
            return super().__iter__()

    texts = Shrinker(["a", "b"])
    assert query(constraints=texts).constraints in ([], ["a", "b"])


def test_hostile_equality():
    class Hostile:
        def __eq__(self, other):
            a.reset()
            gc.collect()
            return True

        __hash__ = None

    a = query(context={"x": Hostile()}, id="x", created_at=NOW)
    b = query(context={"x": Hostile()}, id="x", created_at=NOW)
    assert a == b
    assert a.context == {}


# --- allocation failure ---


@both
def test_allocation_failure(fail_allocations, cls, least, full):
    record = cls(**full)
    state = record.__getstate__()
    data = record.to_dict()
    subclass = Query if cls is PooledExpertQuery else Response

    def unchanged(*_):
        assert record == cls(**full)

    def fresh():
        return cls(**least)

    def still_sound(made):
        assert made.id
        assert made == copy.copy(made)
        assert not any(
            getattr(made, name) for name in {"context", "constraints", "tags", "metadata"} & set(full)
        )

    def all_of_them():
        for call in (
            lambda: cls(**least),
            lambda: cls(**full),
            lambda: subclass(**full),
            lambda: cls.acquire(**full),
            lambda: copy.copy(record),
            # The record's parts in pickling and deep copying. The interpreter's own don't stand the test everywhere:
            # pickle makes a PicklingError of it, and dict.items() of 3.11 crashes.
            lambda: record.__reduce__(),
            lambda: cls.__new__(cls).__setstate__(state),
            lambda: record.to_dict(),
            lambda: cls.from_dict(data),
            lambda: repr(record),
            lambda: record == cls(**full),
            lambda: cls.stats,
        ):
            fail_allocations(call, check=unchanged)
        for name in full:
            fail_allocations(lambda made, name=name: getattr(made, name), prepare=fresh, check=still_sound)
        fail_allocations(lambda made: made.reset(), prepare=fresh, check=still_sound)
        fail_allocations(lambda made: made.release(), prepare=lambda: cls(**full))

    all_of_them()


@pytest.mark.parametrize("name", ["constraints", "tags"])
def test_allocation_failure_while_setting_a_list(fail_allocations, name):
    texts = ["Upper", "lower", " spaced "] * 8 + [f"n{n}" for n in range(20)]

    def check(q):
        assert getattr(q, name) == ["old"]

    fail_allocations(lambda q: setattr(q, name, texts), prepare=lambda: query(**{name: ["old"]}), check=check)
    fail_allocations(lambda: query(**{name: texts}))


def test_allocation_failure_on_new_memory(fail_allocations):
    held = []

    def make():
        held.append(query())

    # With every idle block in use, each query needs memory of its own.
    held.extend(query() for _ in range(PooledExpertQuery.stats["pool_size"] + 1))
    fail_allocations(make)
    assert all(q.title == QUERY["title"] for q in held)


@both
def test_no_leaks(leaks_nothing, cls, least, full):
    subclass = Query if cls is PooledExpertQuery else Response
    bad = BAD_QUERY if cls is PooledExpertQuery else BAD_RESPONSE
    bad = [each for each in bad if not isinstance(each[1], datetime)]

    def refused(call):
        try:
            call()
        except (TypeError, ValueError):
            return
        raise AssertionError

    def scenario():
        for make in (cls, subclass, cls.acquire):
            use(make)
        gc.collect()
        # datetime looks up "utcoffset" by a new string each time, which the cache of attribute look-ups keeps.
        getattr(sys, "_clear_internal_caches" if sys.version_info >= (3, 13) else "_clear_type_cache")()

    def use(make):
        record = make(**full)
        copy.copy(record), copy.deepcopy(record), record.__setstate__(record.__getstate__())
        record.to_dict(), cls.from_dict(record.to_dict()), repr(record), record == make(**full)
        for name, value in full.items():
            setattr(record, name, value)
            getattr(record, name)
        for name, value, _ in bad:
            refused(lambda name=name, value=value: setattr(record, name, value))
            refused(lambda name=name, value=value: make(**{**full, name: value}))
        refused(lambda: make(nonsense=1))
        with record:
            pass
        other = make(**least)
        for name in full:
            getattr(other, name)
        weakref.ref(other)
        other = make(**least)
        container = other.context if cls is PooledExpertQuery else other.metadata
        container["self"] = other
        container["all"] = [make(**full) for _ in range(3)]

    # Idle records keep containers; with all of them there from the start, more of them is a leak.
    scenario()
    everything = [cls(**full) for _ in range(cls.stats["pool_size"])]
    for record in everything:
        for name in full:
            getattr(record, name)
        if cls is PooledExpertQuery:
            record.context = None
            record.context["a"] = 1
        else:
            record.metadata = None
            record.metadata["a"] = 1
    del everything, record
    gc.freeze()
    try:
        leaks_nothing(scenario, runs=2, windows=12)
    finally:
        gc.unfreeze()


# --- threads and forks ---


def test_threads_with_records_of_their_own(hammer):
    def work(index):
        q = query(tags=[f"T{index}", "x"], constraints=["c"], context={"i": index})
        assert q.tags == [f"t{index}", "x"]
        r = response(query_id=q.id, confidence=0.5)
        r.metadata["i"] = index
        assert r.query_id == q.id
        assert copy.copy(q) == q
        q.reset()
        assert (q.title, q.context) == ("", {})
        del q
        assert query().context == {}
        assert r.metadata == {"i": index}

    hammer(8, work, iterations=400)


def test_threads_that_share_records(hammer):
    shared_query, shared_response = query(), response()
    ids = set()

    def work(index):
        q, r = shared_query, shared_response
        turn = index % 8
        if turn == 0:
            q.title, q.requester = f"title {index}", Text("someone")
            r.content = f"content {index}"
        elif turn == 1:
            q.context[index] = index
            q.tags = ["a", "B"]
            r.metadata = {"x": 1}
        elif turn == 2:
            q.context = {"x": [1]}
            q.constraints = ["c"]
            r.metadata.get("x")
        elif turn == 3:
            q.created_at = NOW
            q.created_at = None
            q.id = None
            r.timestamp = None
        elif turn == 4:
            q.reset()
            r.reset()
        elif turn == 5:
            ids.add(q.id)
            assert q.created_at.tzinfo is UTC
            assert len(r.id) == 36
            list(q.tags), list(q.constraints), dict(q.context), r.timestamp
        elif turn == 6:
            copy.copy(q), copy.copy(r)
            assert q != r
            str(q == copy.copy(q))
        else:
            q.query_type, q.priority, r.confidence = "review", "high", 0.5
            assert q.query_type in QueryType
            assert 0 <= r.confidence <= 1
            assert isinstance(q.title, str)
            assert isinstance(r.reasoning, str)

    hammer(8, work, iterations=400)
    gc.collect()
    assert isinstance(shared_query.title, str)


def test_records_let_go_by_another_thread(hammer):
    handed = [[query(tags=["a"], context={"n": n}) for n in range(200)] for _ in range(8)]

    def work(index):
        handed[(index + 1) % 8].clear()
        handed[index] = [query(tags=["b"], constraints=["c"]) for _ in range(20)]
        for q in handed[index]:
            q.context["x"] = 1
            assert (q.tags, q.constraints, q.context) == (["b"], ["c"], {"x": 1})

    hammer(8, work, iterations=20)


def ids_of_child(records, then=None):
    """The ids that a forked child reads from the records, and those of the records that ``then()`` makes there."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            more = then() if then else []
            os.write(writing, json.dumps([[each.id for each in records], more]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = json.loads(pipe.read())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return answer


def made_ids(cls, least):
    records = [cls(**least) for _ in range(20)]
    records[3].reset()
    return [record.id for record in records]


@needs_fork
@quiet_fork
@both
def test_an_id_not_read_before_a_fork_is_the_same_after_it(cls, least, full):
    records = [cls(**least) for _ in range(10)]
    records[1].reset()
    before = records[2].id
    one, ones_own = ids_of_child(records, lambda: made_ids(cls, least))
    other, others_own = ids_of_child(records, lambda: made_ids(cls, least))
    here, own = [record.id for record in records], made_ids(cls, least)
    assert one == other == here
    assert here[2] == before
    assert len({*here, *ones_own, *others_own, *own}) == 10 + 3 * 20


@needs_fork
@quiet_fork
@both
def test_ids_in_a_chain_of_forks(cls, least, full):
    def deeper(records, depth):
        mine = [cls(**least) for _ in range(3)]
        if depth == 0:
            return [each.id for each in mine]
        # The middle process makes records between two forks and reads their ids after the second only.
        inherited, below = ids_of_child(records + mine, lambda: deeper(records + mine, depth - 1))
        assert inherited == [each.id for each in records + mine]
        return inherited + below

    found = deeper([], 4)
    assert len(set(found)) == 5 * 3


@needs_fork
@quiet_fork
@both
def test_an_id_set_to_none_before_a_fork_is_new_and_the_same_in_both(cls, least, full):
    record = cls(**least)
    first = record.id
    record.id = None
    (child,), _ = ids_of_child([record])
    assert record.id == child != first
    record.id = None
    assert record.id not in (child, first)


@both
def test_an_id_not_read_before_pickling_is_the_same_in_all_copies(cls, least, full):
    record = cls(**least)
    sent = pickle.dumps(record), pickle.dumps(record)
    copies = [*map(pickle.loads, sent), copy.copy(record), copy.deepcopy(record)]
    assert {each.id for each in copies} == {record.id}


@needs_fork
@quiet_fork
@pytest.mark.stress
def test_fork_while_threads_make_records(hammer):
    def work(index):
        if index:
            for _ in range(300):
                str(query(tags=["a"]).id)
            return
        for _ in range(3):
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    made = [query(tags=["a"], context={}) for _ in range(1000)]
                    os.write(write, made[0].id.encode())
                    made.clear()
                    gc.collect()
                    status = 0 if query().context == {} else 2
                finally:
                    os._exit(status)
            mine = {query().id for _ in range(300)}
            assert os.waitpid(child, 0)[1] == 0
            assert os.read(read, 36).decode() not in mine
            os.close(read)
            os.close(write)

    hammer(4, work, iterations=2)
