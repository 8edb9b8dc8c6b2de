"""Records in other people's tools: each without an adapter, and each skipped where it is not installed."""

import dataclasses
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

import pytest

from synthex_fast import Length, OneOf, Pattern, PooledExpertQuery, PooledExpertResponse, Range, Record, field
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError
from synthex_fast.kinds import QueryPriority
from synthex_fast.record import PydanticNames

NOW = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=UTC)


class Address(Record, frozen=True):
    city: Annotated[str, Length(1)]
    code: Annotated[str, Pattern("^[0-9]+$")] = "0"


class Order(PydanticNames, Record):
    """An order."""

    customer: Annotated[str, Length(1, 200)]
    items: list[str] = field(default_factory=list)
    total: Annotated[float, Range(0)] = 0.0
    note: str | None = None
    priority: QueryPriority = QueryPriority.LOW
    unit: Annotated[str, OneOf("EUR", "USD")] = "EUR"
    address: Address | None = None
    tags: frozenset[str] = frozenset()
    id: str = field(default_factory="uuid4")
    created: datetime = field(default_factory="now")


class Node(Record):
    value: Any = None
    next: Optional["Node"] = None


def order():
    return Order("ada", ["x"], 3.5, address=Address("Bern", "3000"), id="i", created=NOW)


PLAIN = {
    "customer": "ada", "items": ["x"], "total": 3.5, "note": None, "priority": "low", "unit": "EUR",
    "address": {"city": "Bern", "code": "3000"}, "tags": [], "id": "i", "created": "2026-05-04T03:02:01.987654Z",
}  # fmt: skip
QUERY = PooledExpertQuery(
    "Cache size", "How large should it be?", "ops", tags=["a"], context={"cpu": 4}, id="q", created_at=NOW
)
RESPONSE = PooledExpertResponse("q", "e", "About 2 GB.", 0.75, metadata={"m": 1}, id="r", timestamp=NOW)
experts = pytest.mark.parametrize("record", [QUERY, RESPONSE], ids=["query", "response"])
records = pytest.mark.parametrize("record", [order(), QUERY, RESPONSE], ids=["order", "query", "response"])


def fields_of(record):
    return {one.name: getattr(record, one.name) for one in dataclasses.fields(record)}


# --- the standard library, and names for migration ---


@records
def test_dataclasses(record):
    assert dataclasses.is_dataclass(record)
    assert dataclasses.is_dataclass(type(record))
    assert dataclasses.asdict(record).keys() == fields_of(record).keys()
    assert dataclasses.replace(record) == record == record.__replace__()
    assert record.__replace__(id="other").id == "other"
    with pytest.raises(ArgumentTypeError, match="id"):
        record.__replace__(id=5)
    with pytest.raises(TypeError, match="nonsense"):
        record.__replace__(nonsense=5)


@experts
def test_fields_of_the_expert_types(record):
    for one in dataclasses.fields(type(record)):
        assert one.init
        assert one.default_factory is dataclasses.MISSING
        assert one.name in repr(one)
    required = [one.name for one in dataclasses.fields(record) if one.default is dataclasses.MISSING]
    assert required == (["title", "content", "requester"] if record is QUERY else ["query_id", "expert_id"])
    assert get_type_hints(type(record)).keys() == fields_of(record).keys()


def test_json():
    assert json.loads(json.dumps(Address("Bern"), default=dataclasses.asdict)) == {
        "city": "Bern",
        "code": "0",
    }


@records
def test_names_of_pydantics_models(record):
    cls = type(record)
    dumped = record.model_dump()
    assert dumped.keys() == fields_of(record).keys()
    assert cls.model_validate(dumped) == record
    assert cls.model_validate(record) is record
    assert cls.model_validate(record.model_dump(mode="json")) == record
    assert cls.model_validate_json(record.model_dump_json()) == record
    assert cls.model_validate({**dumped, "unknown": 1}) == record
    assert record.model_copy() == record
    assert record.model_copy(update={"id": "other"}).id == "other"
    assert set(record.model_dump(include=["id"])) == {"id"}
    assert "id" not in record.model_dump(exclude={"id"})
    assert None not in record.model_dump(exclude_none=True).values()
    assert json.loads(record.model_dump_json(indent=1)) == record.model_dump(mode="json")
    with pytest.raises(ArgumentValueError, match="mode"):
        record.model_dump(mode="xml")
    for bad in (5, [], "text", None):
        with pytest.raises(TypeError):
            cls.model_validate(bad)


def test_what_model_dump_and_model_validate_say():
    assert order().model_dump(mode="json") == PLAIN
    assert order().model_dump(exclude_defaults=True).keys() == {
        "customer", "items", "total", "address", "id", "created",
    }  # fmt: skip
    assert Order.model_validate(PLAIN) == order()
    with pytest.raises(ArgumentValueError, match="city"):
        Order.model_validate({"customer": "a", "address": {"city": ""}})
    with pytest.raises(ArgumentTypeError, match="created must be a timezone-aware datetime"):
        Order.model_validate({"customer": "a", "created": "yesterday"})


# --- packages ---


@records
def test_orjson(record):
    orjson = pytest.importorskip("orjson")
    expected = {
        name: record.model_dump(mode="json")[name].replace("Z", "+00:00")
        if isinstance(value, datetime)
        else record.model_dump(mode="json")[name]
        for name, value in fields_of(record).items()
    }
    assert json.loads(orjson.dumps(record, default=list)) == expected
    assert json.loads(orjson.dumps([record] * 3, default=list)) == [expected] * 3


def test_orjson_reads_what_is_made_later():
    orjson = pytest.importorskip("orjson")
    fresh = Order("ada")
    assert json.loads(orjson.dumps(fresh, default=list))["id"] == fresh.id


@records
def test_msgspec_encodes(record):
    msgspec = pytest.importorskip("msgspec")
    assert json.loads(msgspec.json.encode(record)) == record.model_dump(mode="json")


def test_msgspec_decodes():
    msgspec = pytest.importorskip("msgspec")
    assert msgspec.convert(PLAIN, Order, strict=False) == order()
    assert msgspec.json.decode(msgspec.json.encode(order()), type=Order) == order()
    decoded = msgspec.json.decode(b'{"value": 1, "next": {"value": [2]}}', type=Node)
    assert decoded == Node(1, Node([2]))
    made = [msgspec.convert({"customer": "ada"}, Order) for _ in range(3)]
    assert len({one.id for one in made}) == 3
    for bad in ({}, {"customer": 5}, {"customer": ""}, {"customer": "a", "total": -1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, Order)


class OwnQuery(PooledExpertQuery):
    pass


@pytest.mark.parametrize("cls", [PooledExpertQuery, OwnQuery])
def test_msgspec_fills_expert_types_checked(cls):
    msgspec = pytest.importorskip("msgspec")
    query = msgspec.convert(QUERY.to_dict(), cls)
    assert query == cls(**QUERY.model_dump())
    assert msgspec.json.decode(msgspec.json.encode(query), type=cls) == query
    least = {"title": "t", "content": "x" * 10, "requester": "r"}
    made = [msgspec.convert(least, cls) for _ in range(3)]
    assert len({one.id for one in made}) == 3
    assert all(
        (one.query_type, one.context, one.tags, one.deadline) == ("general", {}, [], None) for one in made
    )
    tagged = msgspec.convert({**least, "tags": [" A", "a"], "priority": "high"}, cls)
    assert (tagged.tags, tagged.priority) == (["a"], QueryPriority.HIGH)
    for bad in (
        {"title": "t"},
        {**least, "title": ""},
        {**least, "content": "short"},
        {**least, "query_type": "urgent"},
        {**QUERY.to_dict(), "deadline": NOW.isoformat()},
        {**QUERY.to_dict(), "created_at": "2026-05-04T03:02:01"},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, cls)


def test_msgspec_fills_responses_checked():
    msgspec = pytest.importorskip("msgspec")
    assert msgspec.convert(RESPONSE.to_dict(), PooledExpertResponse) == RESPONSE
    assert msgspec.convert({"query_id": "q", "expert_id": "e"}, PooledExpertResponse).confidence == 0.0
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"query_id": "q", "expert_id": "e", "confidence": 2}, PooledExpertResponse)


@records
def test_pydantic_field(record):
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", record=(type(record), ...))
    assert model(record=record).record is record
    assert json.loads(model(record=record).model_dump_json())["record"] == record.model_dump(mode="json")
    assert model.model_validate_json(model(record=record).model_dump_json()).record == record
    assert model.model_validate({"record": record.model_dump()}).record == record
    with pytest.raises(pydantic.ValidationError, match="record"):
        model(record={})
    with pytest.raises(pydantic.ValidationError):
        model(record=5)


def test_pydantic_checks_the_same_and_its_schema_says_so():
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(Order)
    for bad in (
        {"customer": ""},
        {"customer": "a", "total": -1},
        {"customer": "a", "unit": "CHF"},
        {"customer": "a", "address": {"city": "Bern", "code": "x"}},
    ):
        with pytest.raises(pydantic.ValidationError):
            adapter.validate_python(bad)
    schema = adapter.json_schema()
    assert schema["title"] == "Order"
    assert schema["required"] == ["customer"]
    properties = schema["properties"]
    assert properties["customer"] == {
        "maxLength": 200, "minLength": 1, "title": "Customer", "type": "string",
    }  # fmt: skip
    assert properties["total"]["minimum"] == 0
    assert properties["unit"]["enum"] == ["EUR", "USD"]
    assert properties["created"]["format"] == "date-time"
    assert schema["$defs"]["Address"]["properties"]["code"]["pattern"] == "^[0-9]+$"
    assert pydantic.TypeAdapter(Node).validate_python({"next": {"value": 1}}) == Node(None, Node(1))


def test_pydantic_runs_post_init():
    pydantic = pytest.importorskip("pydantic")

    class Sum(Record):
        parts: list[int]
        total: int = field(init=False, default=0)

        def __post_init__(self):
            self.total = sum(self.parts)
            if self.total > 10:
                raise ValueError("too much")

    assert pydantic.TypeAdapter(Sum).validate_python({"parts": [1, 2]}).total == 3
    with pytest.raises(pydantic.ValidationError, match="too much"):
        pydantic.TypeAdapter(Sum).validate_python({"parts": [11]})


def test_pydantic_schemas_of_the_expert_types():
    pydantic = pytest.importorskip("pydantic")
    schema = pydantic.TypeAdapter(PooledExpertQuery).json_schema()
    assert schema["title"] == "PooledExpertQuery"
    assert schema["properties"]["title"]["maxLength"] == 200
    assert schema["required"] == ["title", "content", "requester"]
    adapter = pydantic.TypeAdapter(PooledExpertResponse)
    assert adapter.json_schema()["properties"]["confidence"]["maximum"] == 1
    with pytest.raises(pydantic.ValidationError, match="confidence"):
        adapter.validate_python({"query_id": "q", "expert_id": "e", "confidence": 2})
    with pytest.raises(pydantic.ValidationError, match="later than created_at"):
        pydantic.TypeAdapter(PooledExpertQuery).validate_python({**QUERY.to_dict(), "deadline": NOW})


def test_fastapi():
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    testclient = pytest.importorskip("fastapi.testclient")
    encoders = pytest.importorskip("fastapi.encoders")
    app = fastapi.FastAPI()

    # Their annotations are evaluated by FastAPI, so these are set by hand.
    def place(order):
        return order.__replace__(note="placed")

    def ask(query):
        return PooledExpertResponse(query.id, "expert", confidence=0.5)

    place.__annotations__ = {"order": Order, "return": Order}
    ask.__annotations__ = {"query": PooledExpertQuery, "return": PooledExpertResponse}
    app.post("/orders")(place)
    app.post("/queries")(ask)
    client = testclient.TestClient(app)
    assert client.post("/orders", json=PLAIN).json() == {**PLAIN, "note": "placed"}
    bad = client.post("/orders", json={"customer": ""})
    assert (bad.status_code, bad.json()["detail"][0]["loc"]) == (422, ["body", "customer"])
    answer = client.post("/queries", json=QUERY.to_dict()).json()
    assert (answer["query_id"], answer["confidence"]) == ("q", 0.5)
    bad = client.post("/queries", json={**QUERY.to_dict(), "title": ""})
    assert (bad.status_code, bad.json()["detail"][0]["loc"]) == (422, ["body", "title"])
    schemas = app.openapi()["components"]["schemas"]
    assert schemas["Order"]["properties"]["customer"]["minLength"] == 1
    assert schemas["PooledExpertQuery"]["required"] == ["title", "content", "requester"]
    assert schemas["PooledExpertResponse"]["properties"]["confidence"]["type"] == "number"
    assert encoders.jsonable_encoder(QUERY)["title"] == "Cache size"
    assert encoders.jsonable_encoder(order())["address"] == {"city": "Bern", "code": "3000"}


def test_rich():
    pretty = pytest.importorskip("rich.pretty")
    assert pretty.pretty_repr(Address("Bern")) == "Address(city='Bern', code='0')"


# --- type checkers ---

SAMPLE = """\
from typing import Annotated
from synthex_fast import Length, Record, field

class Order(Record, pool=10):
    customer: Annotated[str, Length(1)]
    items: list[str] = field(default_factory=list)
    total: float = 0.0
    id: str = field(default_factory="uuid4", kw_only=True)

class Point(Record, frozen=True, order=True):
    x: int
    y: int = 0

order = Order("ada", total=3, id="i")
text: str = order.customer
order.items.append("x")
print(Point(1) < Point(2), Order.stats["created"], order.__replace__(total=1.0).total)
Order()  # E: missing
Order("ada", total="x")  # E: type
Order("ada", nonsense=1)  # E: unexpected
order.customer = 5  # E: assignment
Point(1).x = 3  # E: frozen
number: int = order.total  # E: attribute type
"""


def _lines_with_errors(output, path):
    return {
        int(line.split(":")[1])
        for line in output.splitlines()
        if line.startswith(path.name) and "error" in line
    }


def _expected_lines():
    return {n for n, line in enumerate(SAMPLE.splitlines(), 1) if "# E:" in line}


@pytest.mark.slow
def test_mypy_understands_records(tmp_path):
    pytest.importorskip("mypy")
    path = tmp_path / "sample.py"
    path.write_text(SAMPLE)
    source = Path(sys.modules["synthex_fast"].__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), path.name],
        cwd=tmp_path,
        # mypy finds what is installed by itself, and refuses to be told.
        env={"PATH": "/usr/bin:/bin"} | ({} if source.name == "site-packages" else {"MYPYPATH": str(source)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert _lines_with_errors(done.stdout, path) == _expected_lines(), done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_understands_records(tmp_path):
    shutil = pytest.importorskip("shutil")
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed")
    path = tmp_path / "sample.py"
    path.write_text(SAMPLE)
    source = Path(sys.modules["synthex_fast"].__file__).parents[1]
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(source)]}))
    done = subprocess.run(
        [pyright, "--outputjson", path.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}
    assert errors == _expected_lines(), done.stdout
