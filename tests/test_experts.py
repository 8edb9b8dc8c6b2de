"""The expert types as record classes: what they can do since they are declared on the engine of `Record`."""

import copy
import dataclasses
import gc
import inspect
import pickle
from datetime import UTC, datetime, timedelta

import pytest
from support import run

from synthex_fast import PooledExpertQuery, PooledExpertResponse, QueryType, ResponseBuffer
from synthex_fast._record import RecordBase
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError

NOW = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=UTC)
QUERY = {"title": "Cache size", "content": "How large should the cache be?", "requester": "ops"}


class Costed(PooledExpertQuery, pool=8):
    """A subclass with fields of its own."""

    budget: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)


def test_a_subclass_adds_fields():
    costed = Costed(**QUERY, tags=["A"], budget=3, notes=["n"])
    assert (costed.title, costed.tags, costed.budget, costed.notes) == ("Cache size", ["a"], 3.0, ["n"])
    assert [one.name for one in dataclasses.fields(Costed)][-3:] == ["created_at", "budget", "notes"]
    # What is positional comes first, as in dataclasses.
    assert list(inspect.signature(Costed).parameters)[3:5] == ["budget", "notes"]
    with pytest.raises(ArgumentTypeError, match="budget"):
        costed.budget = "much"
    with pytest.raises(ArgumentValueError, match="title"):
        Costed(**{**QUERY, "title": ""})
    with pytest.raises(ArgumentValueError, match=r"^deadline must be later than created_at"):
        Costed(**QUERY, created_at=NOW, deadline=NOW)
    for twin in (copy.copy(costed), copy.deepcopy(costed), pickle.loads(pickle.dumps(costed))):
        assert twin == costed
        assert twin.to_dict() == costed.to_dict()
    assert Costed.from_dict(costed.to_dict()) == costed
    costed.reset()
    assert (costed.title, costed.tags, costed.budget, costed.notes) == ("", [], 0.0, [])


def test_a_subclass_has_records_and_counts_of_its_own():
    made = Costed(**QUERY)
    address = id(made)
    before, others = Costed.stats, PooledExpertQuery.stats
    del made
    made = Costed(**QUERY)
    assert id(made) == address
    assert Costed.stats["reused"] == before["reused"] + 1
    assert PooledExpertQuery.stats == others


@pytest.mark.parametrize("name", ["query_type", "context", "tags", "created_at"])
def test_a_field_that_is_not_stored_as_it_is_read_cannot_be_declared_anew(name):
    with pytest.raises(
        TypeError, match=f"^{name}: a base class has this field as one that can't be declared"
    ):
        type(PooledExpertQuery)(
            "Own", (PooledExpertQuery,), {"__annotations__": {name: str}, name: "x", "__module__": __name__}
        )


def test_a_text_can_be_declared_anew():
    class Titled(PooledExpertQuery):
        title: str = "Untitled"
        content: str = "No content at all"
        requester: str = "nobody"

    assert (Titled().title, Titled().query_type) == ("Untitled", QueryType.GENERAL)


def test_a_subclass_can_be_made_before_record_is_imported():
    code = """
        import sys
        from synthex_fast import PooledExpertQuery

        assert "synthex_fast.record" not in sys.modules

        class Own(PooledExpertQuery):
            def __init__(self, title):
                super().__init__(title, "Some content here", "someone")
                self.extra = 1

        class Slotted(PooledExpertQuery):
            __slots__ = ()

        print(Own("t").title, Own("t").extra, hasattr(Slotted("t", "Some content here", "r"), "__dict__"))
    """
    assert run(code).split() == ["t", "1", "False"]


@pytest.mark.parametrize("cls", [PooledExpertQuery, PooledExpertResponse, Costed])
def test_acquire_is_the_class(cls):
    assert cls.acquire is cls
    assert issubclass(cls, RecordBase)


def test_an_enumeration_is_stored_as_its_place_and_read_as_a_member():
    query = PooledExpertQuery(**QUERY, query_type="review")
    assert query.query_type is QueryType.REVIEW
    assert query.__getstate__()[0][3] == "review"
    assert type(query.__getstate__()[0][3]) is str
    assert "query_type='review'" in repr(query)
    assert not [each for each in gc.get_referents(query) if isinstance(each, QueryType)]


def test_nothing_that_bypasses_the_checks_upsets_a_buffer():
    buffer = ResponseBuffer(max_batch=10)
    for name, value, error in [
        ("query_id", 5, TypeError),
        ("expert_id", None, TypeError),
        ("confidence", "much", TypeError),
        ("confidence", object(), TypeError),
    ]:
        response = PooledExpertResponse("q", "e", confidence=0.5)
        # A member descriptor stores what it is given.
        type(response).__dict__[name].__set__(response, value)
        for add in (buffer.add, lambda one: buffer.add_batch([one])):
            with pytest.raises(error):
                add(response)
        type(response).__dict__[name].__delete__(response)
        for add in (buffer.add, lambda one: buffer.add_batch([one])):
            with pytest.raises(AttributeError, match=name):
                add(response)
    assert len(buffer) == 0
    response = PooledExpertResponse("q", "e")
    type(response).__dict__["confidence"].__set__(response, 1)
    buffer.add_batch([response])
    assert buffer.columns().confidence.tolist() == [1.0]


def test_times_before_the_epoch_and_far_from_it():
    for when in (datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, 0, 0, 0, 1, tzinfo=UTC)):
        query = PooledExpertQuery(**QUERY, created_at=when)
        assert query.created_at is when
        with pytest.raises(ArgumentValueError, match=r"^deadline"):
            query.deadline = when
        query.deadline = when + timedelta(days=1)
        for twin in (copy.copy(query), pickle.loads(pickle.dumps(query))):
            with pytest.raises(ArgumentValueError, match=r"^created_at must be earlier than the deadline"):
                twin.created_at = when + timedelta(days=1)


class Unpooled(PooledExpertQuery, pool=0):
    pass


class Plain(PooledExpertQuery, gc=False):
    pass


@pytest.mark.parametrize("cls", [PooledExpertQuery, Costed, Unpooled, Plain])
def test_idle_containers_that_are_replaced_are_freed(leaks_nothing, cls):
    def scenario():
        for name, value in [
            ("tags", ["a"]),
            ("tags", [" "]),
            ("tags", None),
            ("constraints", ()),
            ("context", {}),
        ]:
            one = cls(**QUERY, tags=["x"], constraints=["y"])
            one.context["x"] = 1
            del one
            one = cls(**QUERY)
            setattr(one, name, value)
            del one
            one = cls(**QUERY, **{name: value})
            one = copy.copy(one)

    scenario()
    leaks_nothing(scenario)


def test_a_deep_copy_that_is_reached_half_made(leaks_nothing):
    class Meddler:
        def __init__(self, query):
            self.query = query

        def __deepcopy__(self, memo):
            twin = memo[id(self.query)]
            twin.id = "".join(["an", "id"])
            assert "query_type=" not in repr(twin) or "Ellipsis" not in repr(twin)

    def scenario():
        query = PooledExpertQuery(**QUERY)
        query.context["meddler"] = Meddler(query)
        assert copy.deepcopy(query).id == query.id
        query.context.clear()

    scenario()
    leaks_nothing(scenario)


def test_a_time_set_through_its_descriptor_is_the_one_that_counts():
    response = PooledExpertResponse("q", "e")
    type(response).__dict__["timestamp"].__set__(response, NOW)
    buffer = ResponseBuffer(max_batch=10)
    buffer.add_batch([response])
    assert buffer.columns().timestamp.tolist() == [NOW.timestamp()]
    query = PooledExpertQuery(**QUERY)
    type(query).__dict__["created_at"].__set__(query, NOW)
    query.deadline = NOW + timedelta(seconds=1)


class Open(PooledExpertQuery):
    note: str = dataclasses.field(init=False)


def test_pickles_of_records_with_a_field_that_is_not_set():
    record = Open(**QUERY)
    twin = pickle.loads(pickle.dumps(record))
    assert twin == record
    assert not hasattr(twin, "note")
    record.note = "n"
    assert pickle.loads(pickle.dumps(record)).note == "n"


def test_a_dict_has_the_fields_that_are_set_after_construction():
    record = Open(**QUERY)
    assert Open.from_dict(record.to_dict()) == record
    record.note = "n"
    twin = Open.from_dict(record.to_dict())
    assert (twin, twin.note) == (record, "n")
    assert Open.model_validate(record.model_dump()) == record
    with pytest.raises(ArgumentTypeError, match=r"^note must be a string"):
        Open.from_dict(record.to_dict() | {"note": 1})


class Counted(PooledExpertResponse):
    n: int = dataclasses.field(default=0, init=False)

    def __init__(self, query_id, expert_id, *, n, **rest):
        self.query_id, self.expert_id, self.n = query_id, expert_id, n
        self.doubled = 2 * n
        for name, value in rest.items():
            setattr(self, name, value)


def test_from_dict_gives_a_constructor_of_ones_own_all_fields():
    record = Counted("q", "e", n=4)
    twin = Counted.from_dict(record.to_dict())
    assert (twin, twin.doubled) == (record, 8)


def test_from_dict_loads_no_module():
    code = """
        import sys
        from synthex_fast import PooledExpertResponse
        data = PooledExpertResponse("q", "e").to_dict()
        del data["timestamp"]
        before = set(sys.modules)
        PooledExpertResponse.from_dict(data)
        print(sorted(set(sys.modules) - before))
    """
    assert run(code).strip() == "[]"


def test_a_state_with_times_in_the_wrong_order_is_refused():
    query = PooledExpertQuery(**QUERY)
    values, extra = query.__getstate__()
    before = query.to_dict()
    with pytest.raises(ArgumentValueError, match=r"^deadline must be later than created_at"):
        query.__setstate__(((*values[:7], NOW - timedelta(days=10_000), *values[8:]), extra))
    assert query.to_dict() == before


def test_a_deadline_without_validation():
    code = """
        from synthex_fast import PooledExpertQuery

        class Open(PooledExpertQuery, validate=False):
            pass

        query = Open("t", "c", "r")
        try:
            query.deadline = "tomorrow"
        except TypeError as error:
            print(error)
        from datetime import UTC, datetime
        query.deadline = datetime(2999, 1, 1, tzinfo=UTC)
        print(query.deadline.year)
    """
    assert run(code).splitlines() == [
        "deadline must be a timezone-aware datetime, not 'tomorrow' (str)",
        "2999",
    ]
