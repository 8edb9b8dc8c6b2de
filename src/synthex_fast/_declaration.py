"""Declares record classes of the package itself, which must not import `dataclasses` and `typing` before they are used.

`declared` stands in a class statement as the metaclass. The body has a `Part` for each field, made by the functions
here, where a `synthex_fast.Record` has annotations. What the tools of others ask a class about its fields is made when
it is first asked for.
"""

from __future__ import annotations

from synthex_fast._record import (
    HOWS,
    KINDS,
    STYLES,
    RecordBase,
    RecordMeta,
    Rule,
    lay_out,
    make_class,
    set_loader,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["choice", "declared", "mapping", "moment", "now", "number", "tags", "text", "texts", "uuid4"]

_TYPING = "__import__('typing')"
_CONSTRAINTS = "__import__('synthex_fast.record').record"
_DATETIME = "__import__('datetime').datetime"


def _load_record() -> None:
    from synthex_fast import record  # noqa: F401


# A user's subclass of a class declared here is declared as any other record class is.
set_loader(_load_record)


class Part:
    """One field: what it accepts, how it is filled and stored, and what others are told about it."""

    __slots__ = ("after", "annotation", "default", "description", "how", "rule", "style")

    def __init__(
        self,
        rule: Rule,
        annotation: str,
        description: str,
        how: str,
        default: Any = None,
        *,
        style: str = "ordinary",
        after: str | None = None,
    ) -> None:
        self.rule = rule
        self.annotation = annotation
        self.description = description
        self.how = how
        self.default = default
        self.style = style
        self.after = after

    def slots(self, name: str) -> tuple[str, str | None]:
        """The slot that holds the field, and the one for its clock."""
        if self.style == "ordinary" and self.how != "uuid4":
            return name, None
        # Never the field's own name: the interpreter compares them before it lets an instance change its class.
        return f"_{self.style}_{self.how}_{name}", f"_clock_{name}" if self.style == "clocked" else None


def text(least: int, most: int | None, description: str, default: str | None = None) -> Part:
    rule = Rule(KINDS["text"], least=least or None, most=most)
    annotation = f"{_TYPING}.Annotated[str, {_CONSTRAINTS}.Length({least}, {most})]"
    return Part(rule, annotation, description, "required" if default is None else "value", default)


def number(low: float, high: float, description: str, default: float) -> Part:
    annotation = f"{_TYPING}.Annotated[float, {_CONSTRAINTS}.Range({low}, {high})]"
    return Part(Rule(KINDS["number"], low=low, high=high), annotation, description, "value", default)


def choice(
    load: Callable[[], Any], name: str, options: tuple[str, ...], description: str, default: str
) -> Part:
    """One of some texts, read as a member of the enumeration ``name`` that ``load`` returns."""
    rule = Rule(KINDS["literal"], cls=load, options=options, allowed="one of " + ", ".join(options))
    annotation = f"__import__('synthex_fast.kinds').kinds.{name}"
    return Part(rule, annotation, description, "code", default, style="coded")


def mapping(description: str) -> Part:
    """A dict, made when first read."""
    return Part(Rule(KINDS["dict"]), "dict | None", description, "when_touched", style="touched")


def texts(description: str, style: str = "texts") -> Part:
    """A list, made when first read, of texts that are copied from what is given."""
    rule = Rule(KINDS["list"], allowed="a list of strings")
    return Part(rule, "list[str] | None", description, "when_touched", style=style)


def tags(description: str) -> Part:
    """The same, of stripped and distinct lower-case texts."""
    return texts(description, "tags")


def moment(description: str, *, after: str) -> Part:
    """A time later than that in the field ``after``, or None."""
    rule = Rule(KINDS["moment"], optional=True, allowed="a timezone-aware datetime")
    return Part(rule, f"{_DATETIME} | None", description, "value", after=after)


def uuid4(description: str) -> Part:
    return Part(Rule(KINDS["text"], least=1), "str | None", description, "uuid4")


def now(description: str) -> Part:
    return Part(Rule(KINDS["moment"]), f"{_DATETIME} | None", description, "now", style="clocked")


class _Fields:
    """``__dataclass_fields__``, which tells that the class is a dataclass, and what `dataclasses.fields` returns."""

    def __init__(self, parts: dict[str, Part], positional: int) -> None:
        self._parts = parts
        self._positional = positional
        self._made: dict[str, Any] | None = None

    def __get__(self, instance: object, owner: type) -> dict[str, Any]:
        if self._made is None:
            self._made = self._described()
        return self._made

    def _described(self) -> dict[str, Any]:
        import dataclasses

        described: dict[str, Any] = {}
        for place, (name, part) in enumerate(self._parts.items()):
            default: Any = part.default
            if part.how == "required":
                default = dataclasses.MISSING
            elif part.how == "code":
                default = part.rule.cls()(default)
            one: Any = dataclasses.field(default=default, kw_only=place >= self._positional)
            one.name = name
            one.type = part.annotation
            one._field_type = dataclasses._FIELD  # type: ignore[attr-defined]
            described[name] = one
        return described


class _Signature:
    """``__signature__`` of the class, made when `inspect.signature` asks for it; instances have none."""

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is not None:
            raise AttributeError("__signature__")
        from synthex_fast.record import signature_of

        return signature_of(owner)


def declared(
    name: str, bases: tuple[type, ...], body: dict[str, Any], *, positional: int = 0, pool: int = 0
) -> Any:
    """Makes the class. The first ``positional`` fields are positional parameters, the others keyword-only."""
    namespace: dict[str, Any] = {}
    parts: dict[str, Part] = {}
    for key, value in body.items():
        if isinstance(value, Part):
            parts[key] = value
        else:
            namespace[key] = value
    slots = {key: part.slots(key) for key, part in parts.items()}
    weakrefs = "_hidden_weakrefs" if parts else None
    hidden = [slot for pair in slots.values() for slot in pair if slot is not None]
    namespace["__slots__"] = (*hidden, weakrefs) if parts else ()
    namespace["__hash__"] = None
    if parts:
        namespace["stats"] = RecordBase.__dict__["stats"]
        namespace["__annotations__"] = {key: part.annotation for key, part in parts.items()}
        namespace["__match_args__"] = tuple(parts)[:positional]
    namespace["__annotations_of__"] = tuple(parts)
    namespace["__dataclass_fields__"] = _Fields(parts, positional)
    namespace["__signature__"] = _Signature()
    cls = make_class(RecordMeta, name, bases, namespace, {})
    lay_out(
        cls,
        [
            (
                key,
                part.rule,
                HOWS[part.how],
                part.default,
                *slots[key],
                0 if place < positional else 1,
                True,
                True,
                True,
                STYLES[part.style],
                part.after,
                part.description,
            )
            for place, (key, part) in enumerate(parts.items())
        ],
        tuple(range(len(parts))),
        pool=pool,
        gc=True,
        frozen=False,
        eq=True,
        ordered=False,
        validate=True,
        weakrefs=weakrefs,
        attributes=None,
        extras=False,
        reset=None,
        blank=True,
        opens=True,
    )
    # Not the names: pickling would read each of a subclass's instances, and so make what nobody had touched.
    cls.__slots__ = ()  # type: ignore[attr-defined]
    return cls
