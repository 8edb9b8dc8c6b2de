"""`PooledExpertQuery` and `PooledExpertResponse`: a question put to experts and an expert's answer, as records."""

from __future__ import annotations

from synthex_fast._declaration import (
    choice,
    declared,
    mapping,
    moment,
    now,
    number,
    tags,
    text,
    texts,
    uuid4,
)
from synthex_fast._record import KINDS, RecordBase, late_fields, rules_of
from synthex_fast.errors import type_error, value_error

__all__ = ["PooledExpertQuery", "PooledExpertResponse"]


def _query_type():
    from synthex_fast.kinds import QueryType

    return QueryType


def _priority():
    from synthex_fast.kinds import QueryPriority

    return QueryPriority


def _made_of(cls, fields):
    """A record made from the fields, those that the constructor takes no arguments for included."""
    later = late_fields(cls)
    if not later or cls.__init__ is not RecordBase.__init__:
        return cls(**fields)
    record = cls(**{name: fields[name] for name in fields if name not in later})
    for name in later:
        if name in fields:
            setattr(record, name, fields[name])
    return record


class _Expert(RecordBase, metaclass=declared):
    """What both have besides a record's methods."""

    def to_dict(self):
        """All fields as a dict of strings, numbers, lists and dicts that `json.dumps` accepts; times are in ISO 8601.

        Containers are copied one level deep. `from_dict` makes an equal record from it.

        >>> from synthex_fast import PooledExpertQuery
        >>> PooledExpertQuery("Cache size", "How large should the cache be?", "ops").to_dict()["priority"]
        'medium'
        """
        fields, _ = RecordBase.__getstate__(self)
        for name in fields:
            value = fields[name]
            if isinstance(value, (dict, list)):
                fields[name] = value.copy()
            elif hasattr(value, "isoformat"):
                fields[name] = value.isoformat()
        return fields

    @classmethod
    def from_dict(cls, data):
        """A record made from the fields in ``data``, checked as in construction; times may be ISO 8601 strings.

        >>> from synthex_fast import PooledExpertResponse
        >>> response = PooledExpertResponse("q-1", "expert-1", confidence=0.8)
        >>> PooledExpertResponse.from_dict(response.to_dict()) == response
        True
        """
        if not isinstance(data, dict):
            raise type_error("data", data, "a dict as to_dict() returns")
        rules = rules_of(cls)
        arguments = dict(data)
        for name in data:
            value = data[name]
            rule = rules.get(name)
            if rule is None:
                raise value_error("data", name, "a dict with no keys but " + ", ".join(rules))
            if rule.kind == KINDS["moment"] and isinstance(value, str):
                from datetime import datetime

                try:
                    arguments[name] = datetime.fromisoformat(value)
                except ValueError:
                    raise value_error(name, value, "a time in ISO 8601") from None
        return _made_of(cls, arguments)

    def model_dump(self, **options):
        """The fields as a dict; options as those of `synthex_fast.record.PydanticNames.model_dump`.

        >>> from synthex_fast import PooledExpertResponse
        >>> PooledExpertResponse("q-1", "expert-1").model_dump(include=["query_id"])
        {'query_id': 'q-1'}
        """
        from synthex_fast.record import dump

        return dump(self, **options)

    def model_dump_json(self, *, indent=None, **options):
        """The fields as JSON text; options as those of `model_dump`."""
        from synthex_fast.record import dump_json

        return dump_json(self, indent, options)

    def model_copy(self, *, update=None):
        """A shallow copy, with the fields in ``update`` changed and checked."""
        from synthex_fast.record import PydanticNames

        return PydanticNames.model_copy(self, update=update)

    @classmethod
    def model_validate(cls, obj):
        """A record made from a dict of its fields, as `from_dict` does; keys that are no fields are ignored."""
        if isinstance(obj, cls):
            return obj
        if not isinstance(obj, dict):
            raise type_error("obj", obj, f"a dict of fields or a {cls.__name__}")
        rules = rules_of(cls)
        return cls.from_dict({name: value for name, value in obj.items() if name in rules})

    @classmethod
    def model_validate_json(cls, json_data):
        """A record made from JSON text."""
        from synthex_fast.record import parse_json

        return cls.model_validate(parse_json(json_data))

    # A pickle has the values alone, which makes it smaller by the names.

    def __getstate__(self):
        fields, extra = RecordBase.__getstate__(self)
        if len(fields) < len(rules_of(type(self))):
            # One is not set, which only the names can tell.
            return fields, extra
        return tuple(fields.values()), extra

    def __setstate__(self, state):
        names = tuple(rules_of(type(self)))
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            RecordBase.__setstate__(self, state)
            return
        if not (
            isinstance(state, tuple)
            and len(state) == 2
            and isinstance(state[0], tuple)
            and len(state[0]) == len(names)
        ):
            raise value_error("state", state, "what __getstate__() returned")
        RecordBase.__setstate__(self, (dict(zip(names, state[0], strict=True)), state[1]))


class PooledExpertQuery(_Expert, metaclass=declared, positional=3, pool=4096):
    """A question put to the experts, whose memory is reused for the next one after the last reference is dropped.

    ``title`` has 1 to 200 characters, ``content`` 10 to 10,000, ``requester`` at least one. ``query_type`` is one of
    technical, architectural, optimization, review, research, general, code_review, and ``priority`` one of low, medium,
    high, critical; both accept strings or `QueryType` and `QueryPriority` members, and read as members. ``deadline`` is
    a timezone-aware datetime later than ``created_at``. ``context`` is stored by reference. ``constraints`` and
    ``tags`` are copied; tags are lower-cased, stripped and deduplicated, and blank ones removed. ``id`` defaults to a
    version-4 UUID, which forked children and unpickled copies share, ``created_at`` to the time of construction in UTC.
    Setting an attribute applies the same checks. An error names the field and leaves the query unchanged.

    Construction takes constant time, plus linear time in the constraints and tags. Queries are mutable and compare by
    value, so they are unhashable. `PooledExpertQuery.stats` counts how often memory was reused.

    >>> query = PooledExpertQuery("Cache size", "How large should the cache be?", "ops", tags=["Cache", " cache "])
    >>> query.tags, query.query_type == "general", len(query.id)
    (['cache'], True, 36)
    """

    title = text(1, 200, "The title: 1 to 200 characters.")
    content = text(10, 10_000, "The question: 10 to 10,000 characters.")
    requester = text(1, None, "The name of the requester; not empty.")
    query_type = choice(
        _query_type,
        "QueryType",
        ("technical", "architectural", "optimization", "review", "research", "general", "code_review"),
        "A `QueryType`; accepts its string value too.",
        "general",
    )
    priority = choice(
        _priority,
        "QueryPriority",
        ("low", "medium", "high", "critical"),
        "A `QueryPriority`; accepts its string value too.",
        "medium",
    )
    context = mapping("A dict; stored by reference, not copied.")
    constraints = texts("A list of strings.")
    deadline = moment("A timezone-aware datetime, or None.", after="created_at")
    tags = tags("A list of distinct lower-case strings.")
    id = uuid4("A version-4 UUID as a string, unless another id was given.")
    created_at = now("The time of construction: a timezone-aware datetime.")


class PooledExpertResponse(_Expert, metaclass=declared, positional=6, pool=4096):
    """An expert's answer, whose memory is reused for the next one after the last reference is dropped.

    ``confidence`` is a number from 0 to 1. ``metadata`` is stored by reference, not copied. ``id`` defaults to a
    version-4 UUID, which forked children and unpickled copies share, ``timestamp``, a timezone-aware datetime, to the
    time of construction in UTC. Setting an attribute applies the same checks. An error names the field and leaves the
    response unchanged.

    Construction takes constant time. Responses are mutable and compare by value, so they are unhashable.
    `PooledExpertResponse.stats` counts how often memory was reused.

    >>> response = PooledExpertResponse("q-1", "expert-1", "About 2 GB.", confidence=0.8)
    >>> response.confidence, response.metadata
    (0.8, {})
    """

    query_id = text(0, None, "The id of the query answered.")
    expert_id = text(0, None, "The id of the expert.")
    content = text(0, None, "The answer.", "")
    confidence = number(0, 1, "A float from 0 to 1.", 0.0)
    reasoning = text(0, None, "The reasoning behind the answer.", "")
    metadata = mapping("A dict; stored by reference, not copied.")
    id = uuid4("A version-4 UUID as a string, unless another id was given.")
    timestamp = now("The time of construction: a timezone-aware datetime.")
