"""`Record`: classes whose fields are checked and whose instances' memory is reused.

A class body is read here, by the rules of `dataclasses`, and its annotations become what `_record.pyx` checks. That
module constructs, compares, copies and deallocates the records.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, MISSING, InitVar
from enum import Enum
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    ForwardRef,
    Literal,
    NewType,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    is_typeddict,
    overload,
)

from synthex_fast import _record
from synthex_fast._arguments import one_of, want_bool, want_callable, whole_number
from synthex_fast._ids import uuid4_text
from synthex_fast._record import HOWS, KINDS, ORDERINGS, RecordBase, RecordMeta, Rule
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError, type_error, value_error

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Length", "OneOf", "Pattern", "PydanticNames", "Range", "Record", "field"]

_T = TypeVar("_T")


# --- What restricts a field ---


class _Constraint:
    """What `Annotated` may carry; compared and shown by its arguments."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).__slots__)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in type(self).__slots__)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in type(self).__slots__)
        return f"{type(self).__name__}({shown})"

    def _schema_keys(self, kind: str) -> dict[str, Any]:
        """The same for pydantic: keys of its core schema for such a kind; those it does not know are left out."""
        return {}

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        # So that pydantic's models check the same, and its JSON schemas say so.
        schema = handler(source)
        inner = schema
        while inner.get("type") in ("nullable", "default"):
            inner = inner["schema"]
        inner.update(self._schema_keys(inner.get("type", "")))
        return schema


class Length(_Constraint):
    """The length that a string, bytes or a container may have, both bounds included; ``most=None`` for no upper bound.

    >>> from typing import Annotated
    >>> from synthex_fast import Length, Record
    >>> class Order(Record):
    ...     customer: Annotated[str, Length(1, 200)]
    >>> Order("")
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentValueError: customer must be 1 to 200 characters, not '' (str)
    """

    __slots__ = ("least", "most")

    def __init__(self, least: int = 0, most: int | None = None) -> None:
        self.least = whole_number("least", least, 0)
        self.most = whole_number("most", most, self.least, optional=True)

    def _schema_keys(self, kind: str) -> dict[str, Any]:
        if kind not in ("str", "bytes", "list", "dict", "set", "frozenset"):
            return {}
        keys = {"min_length": self.least or None, "max_length": self.most}
        return {key: bound for key, bound in keys.items() if bound is not None}


class Range(_Constraint):
    """The values that a number, or anything else that has an order, may have.

    ``least`` and ``most`` are allowed themselves, ``above`` and ``below`` are not.

    >>> from typing import Annotated
    >>> from synthex_fast import Range, Record
    >>> class Order(Record):
    ...     total: Annotated[float, Range(0)] = 0.0
    >>> Order(total=-1.0)
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentValueError: total must be a number, at least 0, not -1.0 (float)
    """

    __slots__ = ("above", "below", "least", "most")

    def __init__(self, least: Any = None, most: Any = None, *, above: Any = None, below: Any = None) -> None:
        if least is not None and above is not None:
            raise ArgumentTypeError("least and above can't be given together")
        if most is not None and below is not None:
            raise ArgumentTypeError("most and below can't be given together")
        self.least = least
        self.most = most
        self.above = above
        self.below = below

    def _schema_keys(self, kind: str) -> dict[str, Any]:
        if kind not in ("int", "float", "decimal", "date", "datetime"):
            return {}
        keys = {"ge": self.least, "le": self.most, "gt": self.above, "lt": self.below}
        return {key: bound for key, bound in keys.items() if bound is not None}


class Pattern(_Constraint):
    """A regular expression that a string must contain a match of; anchor it with ``^`` and ``$`` for the whole string.

    >>> from typing import Annotated
    >>> from synthex_fast import Pattern, Record
    >>> class Order(Record):
    ...     code: Annotated[str, Pattern("^[A-Z]{3}$")]
    >>> Order("ABC").code
    'ABC'
    """

    __slots__ = ("pattern",)

    def __init__(self, pattern: str | re.Pattern[str]) -> None:
        if not isinstance(pattern, (str, re.Pattern)):
            raise type_error("pattern", pattern, "a string or a compiled pattern")
        self.pattern = re.compile(pattern)

    def _schema_keys(self, kind: str) -> dict[str, Any]:
        # pydantic's own engine lacks what Python's patterns have; the record checks again with Python's.
        return {"pattern": self.pattern.pattern, "regex_engine": "python-re"} if kind == "str" else {}


class OneOf(_Constraint):
    """The values that a field may have. `Literal` says the same to type checkers.

    >>> from typing import Annotated
    >>> from synthex_fast import OneOf, Record
    >>> class Order(Record):
    ...     priority: Annotated[str, OneOf("low", "high")] = "low"
    >>> Order("urgent")
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentValueError: priority must be one of 'low', 'high', not 'urgent' (str)
    """

    __slots__ = ("values",)

    def __init__(self, *values: Any) -> None:
        if not values:
            raise ArgumentValueError("OneOf needs a value or more")
        self.values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return {"type": "literal", "expected": list(self.values)}


# --- Fields ---

# Keys of a field's metadata: what makes it when it is first read.
_MADE = "synthex_fast.made"


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def _uuid7_text() -> str:
    return _record.uuid7_text()


_MAKERS: dict[str, Callable[[], Any]] = {"uuid4": uuid4_text, "uuid7": _uuid7_text, "now": _now}


@overload
def field(
    *,
    default: _T,
    init: bool = True,
    repr: bool = True,
    hash: bool | None = None,
    compare: bool = True,
    metadata: Mapping[Any, Any] | None = None,
    kw_only: bool = ...,
) -> _T: ...
@overload
def field(
    *,
    default_factory: Callable[[], _T],
    init: bool = True,
    repr: bool = True,
    hash: bool | None = None,
    compare: bool = True,
    metadata: Mapping[Any, Any] | None = None,
    kw_only: bool = ...,
) -> _T: ...
@overload
def field(
    *,
    default_factory: Literal["uuid4", "uuid7", "now"],
    init: bool = True,
    repr: bool = True,
    hash: bool | None = None,
    compare: bool = True,
    metadata: Mapping[Any, Any] | None = None,
    kw_only: bool = ...,
) -> Any: ...
@overload
def field(
    *,
    init: bool = True,
    repr: bool = True,
    hash: bool | None = None,
    compare: bool = True,
    metadata: Mapping[Any, Any] | None = None,
    kw_only: bool = ...,
) -> Any: ...
def field(
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    init: bool = True,
    repr: bool = True,
    hash: bool | None = None,
    compare: bool = True,
    metadata: Mapping[Any, Any] | None = None,
    kw_only: Any = MISSING,
) -> Any:
    """Describes a field of a `Record`, as `dataclasses.field` does, which may be used as well.

    ``default_factory`` is a callable without parameters; or the name of what is made when the field is first read:
    ``"uuid4"`` or ``"uuid7"``, a UUID of that version as text, or ``"now"``, the time of construction in UTC. A copy, a
    pickle and a forked child have the same value, whether it was read before or not. Assigning None to such a field
    makes a new one.

    >>> from datetime import datetime
    >>> from synthex_fast import Record, field
    >>> class Order(Record):
    ...     items: list[str] = field(default_factory=list)
    ...     id: str = field(default_factory="uuid4")
    ...     created: datetime = field(default_factory="now", repr=False)
    >>> order = Order()
    >>> order.items, len(order.id)
    ([], 36)
    """
    if isinstance(default_factory, str):
        one_of("default_factory", default_factory, tuple(_MAKERS))
        metadata = {**(metadata or {}), _MADE: default_factory}
        default_factory = _MAKERS[default_factory]
    elif default_factory is not MISSING:
        want_callable("default_factory", default_factory)
    for name, value in (("init", init), ("repr", repr), ("compare", compare)):
        want_bool(name, value)
    if hash is not None:
        want_bool("hash", hash)
    if kw_only is not MISSING:
        want_bool("kw_only", kw_only)
    if not (metadata is None or isinstance(metadata, Mapping)):
        raise type_error("metadata", metadata, "a mapping or None")
    made: Any = dataclasses.field(
        default=default,
        default_factory=default_factory,
        init=init,
        repr=repr,
        hash=hash,
        compare=compare,
        metadata=metadata,
        kw_only=kw_only,
    )
    return made


# --- From annotations to rules ---

_PLAIN = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "truth",
    bytes: "bytes",
    list: "list",
    dict: "dict",
    set: "set",
    frozenset: "frozenset",
    tuple: "tuple",
    object: "any",
}
_SIZED = {
    KINDS[kind] for kind in ("text", "bytes", "list", "dict", "set", "frozenset", "tuple", "any", "instance")
}


class _UnresolvedError(Exception):
    """An annotation names something that does not exist yet."""


def _rule_of(annotation: Any, owner: type | None) -> Rule:
    """What an annotation allows. TypeError if it says nothing that could be checked."""
    if annotation is Any or (isinstance(annotation, str) and not annotation):
        return Rule(KINDS["any"], optional=True)
    if annotation is None or annotation is NoneType:
        return Rule(KINDS["nothing"], optional=True)
    if isinstance(annotation, (str, ForwardRef)):
        raise _UnresolvedError(str(getattr(annotation, "__forward_arg__", annotation)))
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *extra = get_args(annotation)
        return _restricted(_rule_of(base, owner), extra)
    if origin is Union or origin is UnionType:
        return _union_of(get_args(annotation), owner)
    if origin is Literal:
        options = get_args(annotation)
        return Rule(KINDS["literal"], options=[o for o in options if o is not None], optional=None in options)
    if origin in (Final, ClassVar):
        arguments = get_args(annotation)
        return _rule_of(arguments[0], owner) if arguments else Rule(KINDS["any"], optional=True)
    if origin is type:
        return Rule(KINDS["instance"], cls=type)
    if origin is not None:
        return _rule_of(origin, owner)
    if annotation is Self and owner is not None:
        return Rule(KINDS["instance"], cls=owner)
    if isinstance(annotation, TypeVar):
        if annotation.__constraints__:
            return _union_of(annotation.__constraints__, owner)
        bound = annotation.__bound__
        return Rule(KINDS["any"], optional=True) if bound is None else _rule_of(bound, owner)
    if isinstance(annotation, NewType):
        return _rule_of(annotation.__supertype__, owner)
    if hasattr(annotation, "__value__"):
        # `type Name = ...` of Python 3.12.
        return _rule_of(annotation.__value__, owner)
    if isinstance(annotation, type):
        return _class_rule(annotation)
    raise TypeError(f"{annotation!r} is no type that a Record can check; typing.Any allows everything")


def _class_rule(cls: type) -> Rule:
    kind = _PLAIN.get(cls)
    if kind is not None:
        return Rule(KINDS[kind], optional=cls is object)
    if is_typeddict(cls):
        return Rule(KINDS["dict"])
    if issubclass(cls, Enum):
        return Rule(KINDS["choice"], cls=cls)
    if issubclass(cls, _date()):
        if cls is _date():
            return Rule(KINDS["date"])
        if cls is _datetime():
            return Rule(KINDS["moment"])
    if getattr(cls, "_is_protocol", False) and not getattr(cls, "_is_runtime_protocol", False):
        # isinstance() refuses those.
        return Rule(KINDS["any"], optional=True)
    return Rule(KINDS["instance"], cls=cls)


def _date() -> type:
    from datetime import date

    return date


def _datetime() -> type:
    from datetime import datetime

    _record.know_datetime()
    return datetime


def _union_of(options: Iterable[Any], owner: type | None) -> Rule:
    rules = []
    optional = False
    for option in options:
        if option is None or option is NoneType:
            optional = True
            continue
        rule = _rule_of(option, owner)
        if rule.kind == KINDS["any"]:
            return rule
        rules.append(rule)
    if not rules:
        return Rule(KINDS["nothing"], optional=True)
    if len(rules) == 1:
        return _changed(rules[0], optional=optional or rules[0].optional)
    return Rule(KINDS["union"], options=rules, optional=optional or any(rule.optional for rule in rules))


_PARTS = (
    "cls",
    "options",
    "optional",
    "least",
    "most",
    "low",
    "high",
    "above",
    "below",
    "pattern",
    "choices",
    "calls",
)


def _changed(rule: Rule, **changes: Any) -> Rule:
    return Rule(rule.kind, **{name: getattr(rule, name) for name in _PARTS} | changes)


def _restricted(rule: Rule, extra: Iterable[Any]) -> Rule:
    for item in extra:
        if isinstance(item, Length):
            if rule.kind not in _SIZED and rule.kind != KINDS["union"]:
                raise TypeError(f"{item!r} fits strings, bytes and containers, not {rule.allowed}")
            rule = _changed(rule, least=item.least or None, most=item.most)
        elif isinstance(item, Range):
            if rule.kind in (KINDS["truth"], KINDS["literal"], KINDS["nothing"]):
                raise TypeError(f"{item!r} fits numbers and dates, not {rule.allowed}")
            rule = _changed(
                rule,
                low=item.above if item.least is None else item.least,
                above=item.above is not None,
                high=item.below if item.most is None else item.most,
                below=item.below is not None,
            )
        elif isinstance(item, Pattern):
            if rule.kind != KINDS["text"]:
                raise TypeError(f"{item!r} fits strings, not {rule.allowed}")
            rule = _changed(rule, pattern=item.pattern)
        elif isinstance(item, OneOf):
            rule = _changed(rule, choices=item.values)
        elif callable(item) and not isinstance(item, type):
            rule = _changed(rule, calls=(*rule.calls, want_callable("a check", item)))
    return rule


def _evaluated(annotation: Any, scopes: tuple[dict[str, Any], Mapping[str, Any]]) -> Any:
    """The annotation with every name in it replaced by what it stands for."""
    if isinstance(annotation, ForwardRef):
        evaluate = getattr(annotation, "evaluate", None)
        if evaluate is not None:
            try:
                return evaluate(globals=None, locals=dict(scopes[1]) or None)
            except NameError:
                pass
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        try:
            return _evaluated(eval(annotation, dict(scopes[0]), dict(scopes[1])), scopes)
        except NameError as error:
            raise _UnresolvedError(str(error)) from None
    arguments = get_args(annotation)
    if arguments and get_origin(annotation) is not Literal:
        return _with_evaluated_arguments(annotation, arguments, scopes)
    return annotation


def _with_evaluated_arguments(annotation: Any, arguments: tuple[Any, ...], scopes: Any) -> Any:
    """Names can stand in quotes inside of a type: ``list["Node"] | None``."""
    origin = get_origin(annotation)
    if not (origin is Union or origin is UnionType or origin is Annotated):
        # What a container holds is not checked.
        return annotation
    if origin is Annotated:
        return Annotated[(_evaluated(arguments[0], scopes), *arguments[1:])]
    evaluated = tuple(_evaluated(argument, scopes) for argument in arguments)
    return Union[evaluated]  # noqa: UP007


# --- From a class body to a class ---

_CLASS_VAR = re.compile(r"\s*(?:\w+\s*\.\s*)?(ClassVar|InitVar|KW_ONLY)\b")

_INHERITED = ("frozen", "order", "eq", "gc", "validate")
_DEFAULT_POOL = 1024


class _Options:
    """The class options: those given, those of the nearest base, or the defaults."""

    def __init__(self, name: str, base: dict[str, Any], given: dict[str, Any], *, slotted: bool) -> None:
        for option in ("frozen", "order", "eq", "kw_only", "gc", "weakref", "dict", "validate"):
            if option in given:
                want_bool(option, given[option])
        self.pool: int = whole_number("pool", given.get("pool", base.get("pool", _DEFAULT_POOL)), 0)
        self.frozen: bool = given.get("frozen", base.get("frozen", False))
        self.order: bool = given.get("order", base.get("order", False))
        self.eq: bool = given.get("eq", base.get("eq", True))
        self.kw_only: bool = given.get("kw_only", False)
        self.gc: bool = given.get("gc", base.get("gc", True))
        self.weakref: bool = given.get("weakref", base.get("weakref", False))
        self.dict: bool = given.get(
            "dict", base.get("dict", False) or (bool(base.get("opens")) and not slotted)
        )
        self.validate: bool = given.get("validate", base.get("validate", True))
        self.reset: Any = want_callable("reset", given.get("reset", base.get("reset")), optional=True)
        if base.get("fields") and base.get("frozen", False) != self.frozen:
            kinds = ("a frozen", "one that is not") if self.frozen else ("a not frozen", "a frozen one")
            raise TypeError(f"{name}: {kinds[0]} record can't inherit from {kinds[1]}")
        if self.order and not self.eq:
            raise ValueError("eq must be true if order is true")


_OPTIONS = ("pool", "frozen", "order", "eq", "kw_only", "gc", "weakref", "dict", "validate", "reset")


def _annotations_of(namespace: dict[str, Any]) -> dict[str, Any]:
    """The annotations of a class body, unevaluated where a name does not exist yet."""
    if sys.version_info >= (3, 14):
        import annotationlib

        annotate = annotationlib.get_annotate_from_class_namespace(namespace)
        if annotate is not None:
            return annotationlib.call_annotate_function(annotate, annotationlib.Format.FORWARDREF)
    found: dict[str, Any] = namespace.get("__annotations__", {})
    return found


def _special(annotation: Any) -> str:
    """``ClassVar``, ``InitVar`` or ``KW_ONLY`` if the annotation is one of those, else an empty string."""
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        found = _CLASS_VAR.match(annotation)
        return found[1] if found else ""
    if annotation is ClassVar or get_origin(annotation) is ClassVar:
        return "ClassVar"
    if annotation is InitVar or isinstance(annotation, InitVar):
        return "InitVar"
    return "KW_ONLY" if annotation is KW_ONLY else ""


def _own_fields(
    name: str, namespace: dict[str, Any], annotations: dict[str, Any], kw_only: bool
) -> dict[str, dataclasses.Field[Any]]:
    """The fields that a class body declares. Takes their defaults out of the namespace."""
    own: dict[str, dataclasses.Field[Any]] = {}
    keyword_only = kw_only
    for key, annotation in annotations.items():
        special = _special(annotation)
        if special == "ClassVar":
            continue
        if special == "InitVar":
            raise TypeError(
                f"{name}.{key}: a Record has no InitVar fields; read a field in __post_init__ instead"
            )
        if special == "KW_ONLY":
            keyword_only = True
            continue
        default = namespace.pop(key, MISSING)
        described: Any = (
            default if isinstance(default, dataclasses.Field) else dataclasses.field(default=default)
        )
        if described.name is not None:
            raise TypeError(f"{name}.{key}: this field() describes another field already")
        if described.default is not MISSING and type(described.default).__hash__ is None:
            raise ValueError(
                f"mutable default {type(described.default)} for field {key} is not allowed: use default_factory"
            )
        described.name = key
        described.type = annotation
        if described.kw_only is MISSING:
            described.kw_only = keyword_only
        described._field_type = dataclasses._FIELD  # type: ignore[attr-defined]
        own[key] = described
    for key, value in namespace.items():
        if isinstance(value, dataclasses.Field):
            raise TypeError(f"{key!r} is a field but has no type annotation")
    return own


def _inherited_fields(bases: tuple[type, ...]) -> dict[str, dataclasses.Field[Any]]:
    inherited: dict[str, dataclasses.Field[Any]] = {}
    for base in reversed(bases):
        if isinstance(base, RecordMeta):
            inherited.update(base.__dataclass_fields__)
    return inherited


def _parameter(described: dataclasses.Field[Any]) -> int:
    return 2 if not described.init else 1 if described.kw_only else 0


def _made(described: dataclasses.Field[Any]) -> str:
    made: str = described.metadata.get(_MADE, "")
    return made


def _how(described: dataclasses.Field[Any]) -> tuple[str, Any]:
    """How a field is filled that no argument was given for, and the default or the factory."""
    made = _made(described)
    if made:
        return made, None
    if described.default is not MISSING:
        return "value", described.default
    if described.default_factory is not MISSING:
        factory: Any = described.default_factory
        return {list: "list", dict: "dict"}.get(factory, "factory"), factory
    return ("required" if described.init else "absent"), None


def _check_order(name: str, fields: Iterable[dataclasses.Field[Any]]) -> None:
    last = None
    for described in fields:
        if _parameter(described) == 0:
            if _how(described)[0] != "required":
                last = described.name
            elif last is not None:
                raise TypeError(f"non-default argument {described.name!r} follows default argument {last!r}")


def _slot_names(
    own: dict[str, dataclasses.Field[Any]], inherited: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """For each new field the slot that holds it, and the slot for its clock; None for none."""
    slots: dict[str, tuple[Any, Any]] = {}
    for key, described in own.items():
        made = _made(described)
        if key in inherited:
            slots[key] = (None, None)
        elif made:
            # Never the field's own name: the interpreter compares them before it lets an instance change its class.
            slots[key] = (f"_lazy_{made}_{key}", f"_clock_{key}" if made == "uuid7" else None)
        else:
            slots[key] = (key, None)
    return slots


# A slot that comes last makes the interpreter see that a class has a layout of its own. It does not count slots for a
# dict and weak references at the end, and would take the layout of a base without fields that stands before it.
_LAST = "_hidden_last"


def _suitable_bases(bases: tuple[type, ...], namespace: dict[str, Any]) -> tuple[type, ...]:
    """The bases, with the first record class replaced by a subclass of it where one of the others asks for that.

    A base that is no record may bring a ``__dict__``, which the interpreter would otherwise add in its own way. And one
    that stands first would lend its ``tp_new`` to a ``__new__`` of the class.
    """
    records = [base for base in bases if isinstance(base, RecordMeta)]
    if not records or len(records) == len(bases):
        return bases
    brings = any(getattr(base, "__dictoffset__", 0) for base in bases if base not in records)
    has_dict = any(base.__dictoffset__ for base in records)
    if not (brings and not has_dict) and not (bases[0] is not records[0] and "__new__" in namespace):
        return bases
    first = records[0]
    body = {"__module__": first.__module__, "__slots__": (_LAST,)}
    dict_too = {"dict": True, "weakref": True} if brings and not has_dict else {}
    extended = RecordMeta(first.__name__, (first,), body, **dict_too)
    return tuple(extended if base is first else base for base in bases)


def _extra_slots(namespace: dict[str, Any], own: Mapping[str, Any], options: _Options) -> tuple[str, ...]:
    """The slots that a class body asks for besides its fields."""
    given = namespace.pop("__slots__", ())
    names = (given,) if isinstance(given, str) else tuple(given)
    options.dict = options.dict or "__dict__" in names
    options.weakref = options.weakref or "__weakref__" in names
    return tuple(name for name in names if name not in own and name not in ("__dict__", "__weakref__"))


def _checked_post_init(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A ``__post_init__`` that checks the fields first, for those who fill a record without constructing it."""

    def __post_init__(self: Any) -> None:
        _record.check_and_run(self, hook)

    __post_init__.__qualname__ = getattr(hook, "__qualname__", "__post_init__")
    __post_init__.__doc__ = hook.__doc__
    __post_init__.__wrapped_hook__ = hook  # type: ignore[attr-defined]
    return __post_init__


def _check_before_mixin(cls: Any) -> None:
    """The same where a base that is no record stands before the records and has the first ``__post_init__``."""
    first = next(base for base in cls.__mro__ if "__post_init__" in vars(base))
    if isinstance(first, RecordMeta) or first is RecordBase:
        return

    def __post_init__(self: Any) -> None:
        # Looked up at each call: a subclass may have put another class in between.
        _record.check_and_run(self, _record.post_init_after(type(self), cls))

    __post_init__.__checks_for__ = cls  # type: ignore[attr-defined]
    cls.__post_init__ = __post_init__


def _add_methods(namespace: dict[str, Any], options: _Options) -> None:
    if options.order:
        for method, function in ORDERINGS.items():
            if method in namespace:
                raise TypeError(f"cannot overwrite attribute {method}: order=True defines it")
            namespace[method] = function
    # A class body that defines __eq__ leaves the hash to us all the same, as with dataclasses.
    left = "__hash__" not in namespace or (namespace["__hash__"] is None and "__eq__" in namespace)
    if options.eq and left:
        namespace["__hash__"] = RecordBase.__hash__ if options.frozen else None
    hook = namespace.get("__post_init__")
    if hook is not None:
        namespace["__post_init__"] = _checked_post_init(hook)


def _definer(cls: type, name: str) -> type:
    """The class that an attribute is inherited from."""
    return next(base for base in cls.__mro__ if name in vars(base))


def _renew_methods(cls: type, options: _Options) -> None:
    """Replace methods that a base record has written for its own fields, as dataclasses do."""
    for method in ("__repr__", *(("__eq__",) if options.eq else ())):
        definer = _definer(cls, method)
        if definer is not cls and isinstance(definer, RecordMeta):
            setattr(cls, method, vars(RecordBase)[method])
    if (
        not options.eq
        and cls.__hash__ is None
        and cls.__eq__ is RecordBase.__eq__
        and "__hash__" not in vars(cls)
    ):
        cls.__hash__ = RecordBase.__hash__


def _filled(
    cls: type, described: dataclasses.Field[Any], rule: Rule | None, validate: bool
) -> tuple[Rule | None, int, Any]:
    how, value = _how(described)
    if how == "value" and rule is not None and validate:
        value = rule.check(f"{cls.__qualname__}.{described.name}'s default", value)
    return rule, HOWS[how], value


def _locals_of_statement() -> Mapping[str, Any]:
    """The local names where the class statement stands; `abc.ABCMeta` may be in between."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") == "abc" and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_locals


def _scopes(cls: type, local: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    module = sys.modules.get(cls.__module__)
    parameters = {one.__name__: one for one in getattr(cls, "__type_params__", ())}
    return (
        {} if module is None else vars(module),
        {**local, **parameters, **{k: v for k, v in vars(cls).items() if k[:1] != "_"}, cls.__name__: cls},
    )


def _rule_for(
    cls: type, described: dataclasses.Field[Any], scopes: tuple[dict[str, Any], dict[str, Any]]
) -> Rule:
    try:
        return _rule_of(_evaluated(described.type, scopes), cls)
    except TypeError as error:
        raise TypeError(f"{cls.__qualname__}.{described.name}: {error}") from None


def _resolve(cls: type) -> None:
    """Evaluate the annotations that could not be when the class was made; the names should exist by now."""
    rules: dict[str, Rule] = {}
    scopes = _scopes(cls, {})
    for name in _record.unresolved(cls):
        described = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
        owner = next(base for base in cls.__mro__ if name in base.__dict__.get("__annotations_of__", ()))
        if owner is not cls:
            rules[name] = _record.rules_of(owner)[name]
            continue
        try:
            rules[name] = _rule_for(cls, described, scopes)
        except _UnresolvedError as error:
            raise TypeError(
                f"{cls.__qualname__}.{name}: the annotation {described.type!r} can't be evaluated: {error}"
            ) from None
    _record.set_rules(cls, rules)


def signature_of(cls: Any) -> Any:
    """The signature of a record class."""
    from inspect import Parameter, Signature

    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return Signature(
        [
            Parameter(
                one.name,
                kinds[_parameter(one)],
                default=Parameter.empty if _how(one)[0] == "required" else _Default.of(one),
                annotation=one.type,
            )
            for one in sorted(cls.__dataclass_fields__.values(), key=_parameter)
            if one.init
        ]
    )


class _Params:
    """``__dataclass_params__`` of a class, made when somebody asks for it."""

    def __init__(self, kw_only: bool) -> None:
        self.kw_only = kw_only

    def __get__(self, instance: object, owner: Any) -> Any:
        options = _record.options_of(owner)
        chosen = {name: options[name] for name in ("eq", "order", "frozen")}
        return _params(kw_only=self.kw_only, weakref_slot=options["weakref"], **chosen)


@functools.cache
def _params(**chosen: Any) -> Any:
    made: Any = dataclasses.make_dataclass("_Params", (), slots=True, **chosen)
    return made.__dataclass_params__


class _Signature:
    """``__signature__`` of a class, made when `inspect.signature` asks for it; instances have none."""

    def __get__(self, instance: object, owner: Any) -> Any:
        if instance is not None:
            raise AttributeError("__signature__")
        return signature_of(owner)


class _Default:
    """How a signature shows a default that is made for each record."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def of(cls, described: dataclasses.Field[Any]) -> Any:
        how, value = _how(described)
        if how == "value":
            return value
        return cls(f"<{how if value is None else getattr(value, '__name__', 'factory')}>")


def _declare(meta: type, name: str, bases: tuple[type, ...], body: dict[str, Any], /, **given: Any) -> type:
    """Makes a record class: what the metaclass does when a class statement is executed."""
    rest = {key: given.pop(key) for key in list(given) if key not in _OPTIONS}
    namespace = dict(body)
    bases = _suitable_bases(bases, namespace)
    inherited = _inherited_fields(bases)
    base = next((base for base in bases if isinstance(base, RecordMeta)), None)
    of_base = {} if base is None else {**_record.options_of(base), "fields": inherited}
    options = _Options(name, of_base, given, slotted="__slots__" in namespace)
    own = _own_fields(name, namespace, _annotations_of(namespace), options.kw_only)
    for key in namespace:
        if key in inherited:
            raise TypeError(f"{name}.{key}: a base class has this field; annotate it to declare it anew")
    fields = inherited | own
    _check_order(name, fields.values())
    slots = _slot_names(own, inherited)
    extra = _extra_slots(namespace, own, options)
    hidden_dict = "_hidden_a_dict" if options.dict and not getattr(base, "__dictoffset__", 0) else None
    hidden_weakrefs = (
        "_hidden_a_weakrefs" if options.weakref and not getattr(base, "__weakrefoffset__", 0) else None
    )
    made = [slot for pair in slots.values() for slot in pair if slot is not None]
    last = _LAST if (hidden_dict or hidden_weakrefs) and not fields and _LAST not in extra else None
    namespace["__slots__"] = (*made, *extra, *filter(None, (hidden_dict, hidden_weakrefs, last)))
    namespace["__dataclass_fields__"] = fields
    namespace["__dataclass_params__"] = _Params(options.kw_only)
    namespace["__annotations_of__"] = tuple(own)
    namespace.setdefault("__match_args__", tuple(key for key, one in fields.items() if _parameter(one) == 0))
    _add_methods(namespace, options)
    cls: Any = _record.make_class(meta, name, bases, namespace, rest)
    _renew_methods(cls, options)
    _check_before_mixin(cls)
    scopes = _scopes(cls, _locals_of_statement() if own else {})
    rules: dict[str, Rule | None] = {}
    for key, one in own.items():
        try:
            rules[key] = _rule_for(cls, one, scopes)
        except _UnresolvedError:
            rules[key] = None
    arranged = sorted(fields.values(), key=_parameter)
    _record.lay_out(
        cls,
        [
            (
                one.name,
                *_filled(cls, one, rules[one.name], options.validate),
                *slots[one.name],
                _parameter(one),
                bool(one.repr),
                bool(one.compare),
                bool(one.compare if one.hash is None else one.hash),
            )
            if one.name in own
            else one.name
            for one in arranged
        ],
        tuple(arranged.index(one) for one in fields.values()),
        pool=options.pool,
        gc=options.gc,
        frozen=options.frozen,
        eq=options.eq,
        ordered=options.order,
        validate=options.validate,
        weakrefs=hidden_weakrefs,
        attributes=hidden_dict,
        extras=any(name != _LAST for name in extra),
        reset=options.reset,
    )
    cls.__slots__ = (
        *(key for key in own if key not in inherited),
        *(name for name in extra if name != _LAST),
    )
    return cls  # type: ignore[no-any-return]


_record.set_makers(_declare, _resolve)


@dataclass_transform(field_specifiers=(field, dataclasses.field))
class Record(RecordBase, metaclass=RecordMeta):
    """Base class of records: classes with typed fields that are checked, and instances whose memory is reused.

    A class body declares fields as that of a dataclass does. The class's instances come from a freelist of its own and
    go back to it with their last reference. Their lists and dicts that ``default_factory`` made, and that nobody else
    holds, are emptied and reused with them. Fields are checked on construction and assignment: by their annotated type,
    and by what `Annotated` adds, which is `Length`, `Range`, `Pattern`, `OneOf` or a callable that returns whether it
    accepts a value. What a container holds is not checked. An integer given for a float is stored as a float, and a
    value of an enumeration as its member; a datetime must be timezone-aware. An error names the field, the value and
    what is allowed, and leaves the record unchanged.

    Options stand behind the bases, as in ``class Order(Record, frozen=True)``, and are inherited except ``kw_only``:

    - ``pool``: how many idle instances the class keeps, 1024 by default, 0 for none.
    - ``frozen``, ``order``, ``eq`` and ``kw_only`` mean what they do for dataclasses. Records that are compared by
      value and not frozen are unhashable.
    - ``gc=False`` leaves instances without the cyclic collector's header, which saves 16 bytes each. A reference cycle
      through such a record is never freed. Without the option, an instance is in the collector's sight only once a
      field holds what may be part of a cycle.
    - ``weakref`` and ``dict``: whether instances can be weakly referenced and have attributes that are no fields.
    - ``validate=False`` stores values unchecked.
    - ``reset``: a function that `Record.reset` and `Record.release` call with the record at their end.

    ``__post_init__`` runs after construction, if the class has one, and can assign to the fields of a frozen record;
    what it stores there by ``object.__setattr__`` is checked when it returns. Elsewhere, ``object.__setattr__`` and the
    fields' descriptors store what they are given unchecked, and a reference cycle that they make may stay for ever.

    As with dataclasses, a subclass does not inherit ``__eq__`` and ``__repr__`` that a base record has written for its
    own fields. The decorator itself can't be applied to a record. An instance of a class with ``__del__`` is not
    reused. Construction takes constant time for each field. Single reads and assignments are thread-safe.

    >>> from typing import Annotated
    >>> from synthex_fast import Length, Range, Record, field
    >>> class Order(Record, pool=4096):
    ...     customer: Annotated[str, Length(1, 200)]
    ...     items: list[str] = field(default_factory=list)
    ...     total: Annotated[float, Range(0)] = 0.0
    ...     note: str | None = None
    >>> order = Order("ada", total=3.5)
    >>> order
    Order(customer='ada', items=[], total=3.5, note=None)
    >>> order.total = "much"
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentTypeError: total must be a number, at least 0, not 'much' (str)
    """

    __slots__ = ()

    __signature__: ClassVar[Any] = _Signature()

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

        def __init_subclass__(
            cls,
            *,
            pool: int = ...,
            frozen: bool = ...,
            order: bool = ...,
            eq: bool = ...,
            kw_only: bool = ...,
            gc: bool = ...,
            weakref: bool = ...,
            dict: bool = ...,
            validate: bool = ...,
            reset: Callable[[Any], object] | None = ...,
        ) -> None: ...


# --- Names that pydantic's models have ---


class PydanticNames:
    """A mixin with the methods of pydantic's models, for records that replace some; pydantic is not needed.

    ``model_dump``, ``model_dump_json``, ``model_validate``, ``model_validate_json`` and ``model_copy`` do for records,
    and for what they hold, what the methods of that name do for models. `model_validate` accepts what JSON has in place
    of other types: text for times, dates, decimals, UUIDs and bytes, numbers and text for members of enumerations,
    lists for tuples and sets, and dicts for records. What it refuses raises the errors of records, which are
    ValueErrors and TypeErrors.

    >>> from synthex_fast import Record
    >>> from synthex_fast.record import PydanticNames
    >>> class Order(PydanticNames, Record):
    ...     customer: str
    ...     total: float = 0.0
    >>> Order.model_validate({"customer": "ada", "total": 3}).model_dump_json()
    '{"customer":"ada","total":3.0}'
    """

    __slots__ = ()

    def model_dump(
        self,
        *,
        mode: str = "python",
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        exclude_none: bool = False,
        exclude_defaults: bool = False,
    ) -> dict[str, Any]:
        """The fields as a dict, records in them as dicts too; with ``mode="json"`` as values that JSON has.

        ``include`` and ``exclude`` name fields of this record.
        """
        return dump(
            self,
            mode=mode,
            include=include,
            exclude=exclude,
            exclude_none=exclude_none,
            exclude_defaults=exclude_defaults,
        )

    def model_dump_json(self, *, indent: int | None = None, **options: Any) -> str:
        """The fields as JSON text; ``options`` are those of `model_dump`."""
        return dump_json(self, indent, options)

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """A shallow copy, with the fields in ``update`` changed; unlike in pydantic, they are checked."""
        if not (update is None or isinstance(update, Mapping)):
            raise type_error("update", update, "a dict of fields or None")
        changed: Self = self.__replace__(**(update or {}))  # type: ignore[attr-defined]
        return changed

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """A record made from a dict of its fields, or the record itself if it is one already. Unknown keys are ignored.

        >>> from datetime import datetime
        >>> from synthex_fast import Record
        >>> from synthex_fast.record import PydanticNames
        >>> class Event(PydanticNames, Record):
        ...     time: datetime
        >>> Event.model_validate({"time": "2026-05-04T03:02:01Z"}).time.year
        2026
        """
        loaded: Self = _loaded_record(cls, obj)
        return loaded

    @classmethod
    def model_validate_json(cls, json_data: str | bytes) -> Self:
        """A record made from JSON text."""
        return cls.model_validate(parse_json(json_data))


def dump(
    record: Any,
    *,
    mode: str = "python",
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    exclude_none: bool = False,
    exclude_defaults: bool = False,
) -> dict[str, Any]:
    """`PydanticNames.model_dump` for any record."""
    one_of("mode", mode, ("python", "json"))
    wanted = None if include is None else set(include)
    left_out = set() if exclude is None else set(exclude)
    dumped = {}
    for one in dataclasses.fields(record):
        if one.name in left_out or not (wanted is None or one.name in wanted):
            continue
        value = getattr(record, one.name)
        if (exclude_none and value is None) or (exclude_defaults and _is_default(one, value)):
            continue
        dumped[one.name] = _dumped(value, mode == "json")
    return dumped


def dump_json(record: Any, indent: int | None, options: Mapping[str, Any]) -> str:
    """`PydanticNames.model_dump_json` for any record."""
    import json

    whole_number("indent", indent, 0, 100, optional=True)
    separators = (",", ":") if indent is None else None
    return json.dumps(
        dump(record, mode="json", **options), ensure_ascii=False, indent=indent, separators=separators
    )


def parse_json(json_data: Any) -> Any:
    """What JSON text says."""
    import json

    if not isinstance(json_data, (str, bytes, bytearray)):
        raise type_error("json_data", json_data, "JSON as a string or bytes")
    try:
        return json.loads(json_data)
    except ValueError:
        raise value_error("json_data", json_data, "JSON as a string or bytes") from None


def _is_default(described: dataclasses.Field[Any], value: Any) -> bool:
    how, default = _how(described)
    if how == "value":
        return bool(value == default)
    return how in ("list", "dict") and value == default()


def _dumped(value: Any, for_json: bool) -> Any:
    if isinstance(value, Record) or dataclasses.is_dataclass(value):
        return {one.name: _dumped(getattr(value, one.name), for_json) for one in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {
            (_dumped_key(key) if for_json else key): _dumped(item, for_json) for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_dumped(item, for_json) for item in value]
        if for_json or isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return _for_json(value) if for_json else value


def _dumped_key(key: Any) -> Any:
    key = _for_json(key)
    return key if isinstance(key, (str, int, float, bool, NoneType)) else str(key)


def _for_json(value: Any) -> Any:
    if isinstance(value, Enum):
        return _for_json(value.value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        return text[:-6] + "Z" if text.endswith("+00:00") else text
    return str(value)


def _loaded_record(cls: Any, data: Any) -> Any:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise type_error(cls.__name__, data, "made from a dict of its fields")
    rules = _record.rules_of(cls)
    named = {one.name for one in dataclasses.fields(cls) if one.init}
    return cls(**{key: _loaded(rules[key], value) for key, value in data.items() if key in named})


def _loaded(rule: Rule, value: Any) -> Any:
    """The value as the field's kind, if JSON has no such kind; otherwise, the field's own check tells."""
    if rule.fits_as_it_is(value):
        return value
    kind = rule.kind
    try:
        if kind == KINDS["union"]:
            return _loaded_option(rule, value)
        if isinstance(value, str):
            return _loaded_text(rule, value)
        if isinstance(value, (list, tuple, set, frozenset)):
            for name, container in (("list", list), ("set", set), ("frozenset", frozenset), ("tuple", tuple)):
                if kind == KINDS[name]:
                    return container(value)
        if kind == KINDS["instance"] and isinstance(value, Mapping) and isinstance(rule.cls, RecordMeta):
            return _loaded_record(rule.cls, value)
        if kind == KINDS["instance"] and isinstance(value, (int, float)) and rule.cls.__name__ == "Decimal":
            return rule.cls(str(value))
    except (ArgumentTypeError, ArgumentValueError):
        raise
    except (TypeError, ValueError, ArithmeticError):
        pass
    return value


def _loaded_option(rule: Rule, value: Any) -> Any:
    for option in rule.options:
        try:
            loaded = _loaded(option, value)
            return option.check("value", loaded)
        except (TypeError, ValueError):
            continue
    return value


def _loaded_text(rule: Rule, text: str) -> Any:
    kind = rule.kind
    if kind == KINDS["moment"]:
        return _datetime().fromisoformat(text)  # type: ignore[attr-defined]
    if kind == KINDS["date"]:
        return _date().fromisoformat(text)  # type: ignore[attr-defined]
    if kind == KINDS["bytes"]:
        return text.encode()
    if kind == KINDS["instance"] and rule.cls.__module__ in ("decimal", "uuid", "datetime", "pathlib"):
        parse = getattr(rule.cls, "fromisoformat", rule.cls)
        return parse(text)
    return text
