"""Every argument of every public constructor, method and function refuses the same list of bad values.

The error must be the package's own and name the argument, and the object must stay as it was. The arguments are found
in the type stubs (in the source, for modules in Python), so that a new one fails here until `MEANINGFUL` says which of
the values it takes.
"""

import ast
import copy
import inspect
import math
import re
from pathlib import Path

import pytest
from support import Clock, FakeReadings

import synthex_fast
from synthex_fast import PooledExpertQuery, PooledExpertResponse
from synthex_fast._arguments import finite_number, positive_seconds, share_of_one
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError

PACKAGE = Path(synthex_fast.__file__).parent


class HugeIndex:
    """An integer to `operator.index`, which has no comparison of its own."""

    def __index__(self):
        return 10**400


class NumericText(str):
    """numpy's strings are such: `float` takes them for numbers."""

    __slots__ = ()

    def __float__(self):
        return 1.0


BAD = {
    "True": True,
    "None": None,
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "0": 0,
    "10**400": 10**400,
    "index of 10**400": HugeIndex(),
    "text": "x",
    "list": [],
}


def parsed_definitions():
    """The classes and functions of the package by name; a stub comes before the source."""
    found = {}
    for pattern in ("*.pyi", "*.py"):
        for path in sorted(PACKAGE.rglob(pattern)):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    found.setdefault(node.name, node)
    return found


def decorators(function):
    return {ast.unparse(decorator).rpartition(".")[2] for decorator in function.decorator_list}


def parameters(function):
    """Its parameters by name: whether each is given by position only, and whether it may be left out."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    found = {
        each.arg: (n < len(arguments.posonlyargs), n >= required)
        for n, each in enumerate(positional)
        if each.arg not in ("self", "cls")
    }
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found[each.arg] = (False, default is not None)
    return found


class Call:
    """One public callable: a constructor, a method, a property's setter or a function."""

    def __init__(self, owner, method, function, kind):
        self.owner, self.method, self.kind = owner, method, kind
        self.parameters = parameters(function)
        if kind == "setter":
            self.parameters = {method: (True, False)}

    def argument(self, parameter):
        """How the argument is called in `MEANINGFUL`, such as ``ObjectPool.resize(max_size)``."""
        if self.kind == "setter":
            return f"{self.owner}.{parameter}"
        return ".".join(filter(None, (self.owner, self.method))) + f"({parameter})"

    def __call__(self, subject, parameter, value):
        """Call it with this value, what else it needs being valid."""
        if self.kind == "setter":
            setattr(subject, self.method, value)
            return
        positional, named = [], {}
        for name, (by_position, optional) in self.parameters.items():
            if name != parameter and optional:
                continue
            given = value if name == parameter else VALID[name]
            if by_position:
                positional.append(given)
            else:
                named[name] = given
        if self.kind == "constructor":
            getattr(synthex_fast, self.owner)(*positional, **named)
        elif self.kind == "function":
            getattr(synthex_fast, self.method)(*positional, **named)
        else:
            made = getattr(subject, self.method)(*positional, **named)
            if inspect.iscoroutine(made):
                made.close()


def body_of(node, definitions):
    """What the body of a class says, and those of its private bases."""
    yield from node.body
    for base in node.bases:
        name = ast.unparse(base)
        if name.startswith("_") and name in definitions:
            yield from body_of(definitions[name], definitions)


def public_calls():
    definitions = parsed_definitions()
    calls = {}
    for public in synthex_fast.__all__:
        node = definitions[public]
        if isinstance(node, ast.FunctionDef):
            calls[public] = Call("", public, node, "function")
            continue
        for function in body_of(node, definitions):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            name, how = function.name, decorators(function)
            if name == "__init__":
                calls[public] = Call(public, "", function, "constructor")
                if getattr(getattr(synthex_fast, public), "acquire", None) is getattr(synthex_fast, public):
                    # A record class, which is its own `acquire`.
                    calls[f"{public}.acquire"] = Call(public, "acquire", function, "method")
            elif "setter" in how:
                calls[f"{public}.{name}="] = Call(public, name, function, "setter")
            elif not name.startswith("_") and not how & {"property", "type_check_only"}:
                # Overloads are one method.
                known = calls.setdefault(f"{public}.{name}", Call(public, name, function, "method"))
                known.parameters |= parameters(function)
    return calls


CALLS = public_calls()
ARGUMENTS = {
    call.argument(parameter): (call, parameter) for call in CALLS.values() for parameter in call.parameters
}

# What calls need beside the argument under test.
VALID = {
    "callback": print,
    "content": "Some content here",
    "coroutine_function": list,
    "default": 1,
    "entries": {"present": 2},
    "expert_id": "ada",
    "factory": list,
    "key": "present",
    "keys": ["present"],
    "level": "high",
    "max_size": 5,
    "memory_limit_mb": 1.0,
    "obj": synthex_fast.TTLDict(),
    "query_id": "q1",
    "requester": "someone",
    "title": "A title",
    "ttl": 60.0,
    "value": 1,
}


def make_subject(owner):
    """An object of the class with something in it, all of whose limits are set."""
    match owner:
        case "ObjectPool":
            return synthex_fast.ObjectPool(list, 5, prefill=2, max_idle=1000.0, name="pool")
        case "PooledExpertQuery":
            return PooledExpertQuery("A title", "Some content here", "someone", tags=["tag"])
        case "PooledExpertResponse":
            return PooledExpertResponse("q1", "ada", "text", 0.5)
        case "ResponseBuffer":
            made = synthex_fast.ResponseBuffer(5, 3)
            made.add(synthex_fast.PooledExpertResponse("x", "ada"))
            made.add(PooledExpertResponse("q1", "ada"))
            return made
        case "ResponseCollector":
            made = synthex_fast.ResponseCollector(max_queries=5, timer=Clock())
            made.add(PooledExpertResponse("q1", "ada"))
            return made
        case "TTLDict":
            made = synthex_fast.TTLDict(5, 60.0, memory_limit=10_000, idle=30.0, timer=Clock())
            made["present"] = 1
            return made
        case "AdaptiveMemoryMonitor":
            return synthex_fast.AdaptiveMemoryMonitor(limit="1GB", readings=FakeReadings(), clock=Clock())
        case "GCTuner":
            return synthex_fast.GCTuner(memory_limit="1GB", readings=FakeReadings(), clock=Clock())
        case "MemoryGovernor":
            made = synthex_fast.MemoryGovernor("1GB", readings=FakeReadings(), clock=Clock())
            made.register(VALID["obj"])
            return made
    return None


PROPERTIES = {
    node.name: [
        each.name
        for each in node.body
        if isinstance(each, ast.FunctionDef)
        and not each.name.startswith("_")
        and "property" in decorators(each)
    ]
    for node in parsed_definitions().values()
    if isinstance(node, ast.ClassDef) and node.name in synthex_fast.__all__
}


def state(subject):
    """All that can be seen of the object without changing it."""
    seen = {name: copy.copy(getattr(subject, name)) for name in PROPERTIES.get(type(subject).__name__, ())}
    if hasattr(type(subject), "__len__"):
        seen["len"] = len(subject)
    if isinstance(subject, synthex_fast.TTLDict):
        seen["items"] = list(subject.items())
    return seen


# Any object will do: keys, values, what is handed back.
ANYTHING = frozenset(BAD)


def takes(*values):
    return frozenset(values)


QUERY_FIELDS = {
    "title": takes("text"),
    "content": takes(),
    "requester": takes("text"),
    "query_type": takes(),
    "priority": takes(),
    "context": takes("None"),
    "constraints": takes("None", "list"),
    "deadline": takes("None"),
    "tags": takes("None", "list"),
    "id": takes("None", "text"),
    "created_at": takes("None"),
}
RESPONSE_FIELDS = {
    "query_id": takes("text"),
    "expert_id": takes("text"),
    "content": takes("text"),
    "confidence": takes("0"),
    "reasoning": takes("text"),
    "metadata": takes("None"),
    "id": takes("None", "text"),
    "timestamp": takes("None"),
}

# The values of `BAD` that an argument takes; what is not listed must be refused.
MEANINGFUL = {
    "ObjectPool(factory)": takes(),
    "ObjectPool(max_size)": takes(),
    "ObjectPool(prefill)": takes("None", "0"),
    "ObjectPool(reset)": takes("None"),
    "ObjectPool(max_idle)": takes("None", "inf"),
    "ObjectPool(max_in_use)": takes("None"),
    "ObjectPool(on_discard)": takes("None"),
    "ObjectPool(name)": takes("None", "text"),
    "ObjectPool.acquire(timeout)": takes("None", "0", "inf"),
    "ObjectPool.aacquire(timeout)": takes("None", "0", "inf"),
    "ObjectPool.lease(timeout)": takes("None", "0", "inf"),
    "ObjectPool.release(obj)": ANYTHING,
    "ObjectPool.resize(max_size)": takes(),
    "ObjectPool.trim(nbytes)": takes("0"),
    **{
        spelling.format(name): values
        for fields, owner in ((QUERY_FIELDS, "PooledExpertQuery"), (RESPONSE_FIELDS, "PooledExpertResponse"))
        for spelling in (f"{owner}({{}})", f"{owner}.acquire({{}})", f"{owner}.{{}}")
        for name, values in fields.items()
    },
    **{
        f"{owner}.{argument}": values
        for owner in ("PooledExpertQuery", "PooledExpertResponse")
        for argument, values in (
            ("model_copy(update)", takes("None")),
            ("model_dump_json(indent)", takes("None", "0")),
            ("model_validate(obj)", takes()),
            ("model_validate_json(json_data)", takes()),
        )
    },
    "PooledExpertQuery.from_dict(data)": takes(),
    "PooledExpertResponse.from_dict(data)": takes(),
    "ResponseBuffer(capacity)": takes(),
    "ResponseBuffer(max_batch)": takes(),
    "ResponseBuffer(flush_threshold)": takes(),
    "ResponseBuffer(on_flush)": takes("None"),
    "ResponseBuffer.add(response)": takes(),
    "ResponseBuffer.add_batch(responses)": takes("list"),
    "ResponseBuffer.aflush(handler)": takes(),
    "ResponseBuffer.consensus(query_id)": takes("text"),
    "ResponseBuffer.trim(nbytes)": takes("0"),
    # True: additions wait until the pause ends. A number is how long they wait.
    "ResponseBuffer.pause(wait)": takes("True", "0", "inf"),
    "TTLDict(max_size)": takes("None"),
    "TTLDict(ttl)": takes("None", "inf"),
    "TTLDict(memory_limit)": takes("None"),
    "TTLDict(sizeof)": takes("None"),
    "TTLDict(policy)": takes(),
    "TTLDict(idle)": takes("None", "inf"),
    "TTLDict(timer)": takes("None"),
    "TTLDict(on_evict)": takes("None"),
    "TTLDict(on_remove)": takes("None"),
    "TTLDict(sweep)": takes("True"),
    "TTLDict.set(key)": ANYTHING,
    "TTLDict.set(value)": ANYTHING,
    "TTLDict.set(ttl)": takes("None", "inf"),
    "TTLDict.get(key)": ANYTHING,
    "TTLDict.get(default)": ANYTHING,
    "TTLDict.pop(key)": ANYTHING,
    "TTLDict.pop(default)": ANYTHING,
    "TTLDict.setdefault(key)": ANYTHING,
    "TTLDict.setdefault(default)": ANYTHING,
    "TTLDict.get_or_set(key)": ANYTHING,
    "TTLDict.get_or_set(factory)": takes(),
    "TTLDict.get_or_set(ttl)": takes("None", "inf"),
    "TTLDict.aget_or_set(key)": ANYTHING,
    "TTLDict.aget_or_set(coroutine_function)": takes(),
    "TTLDict.aget_or_set(ttl)": takes("None", "inf"),
    # Keys, or entries, are in anything that can be iterated over; a text is its characters.
    "TTLDict.get_many(keys)": takes("text", "list"),
    "TTLDict.set_many(entries)": takes("list"),
    "TTLDict.set_many(ttl)": takes("None", "inf"),
    "TTLDict.delete_many(keys)": takes("text", "list"),
    "TTLDict.fromkeys(keys)": takes("text", "list"),
    "TTLDict.fromkeys(value)": ANYTHING,
    "TTLDict.expires_at(key)": ANYTHING,
    "TTLDict.touch(key)": ANYTHING,
    "TTLDict.touch(ttl)": takes("None", "inf"),
    "TTLDict.expire(limit)": takes("None"),
    "TTLDict.recount(key)": ANYTHING,
    "TTLDict.trim(nbytes)": takes("0"),
    "TTLDict.resize(max_size)": takes("None"),
    "TTLDict.resize(memory_limit)": takes("None"),
    "TTLDict.cap(nbytes)": takes("None", "0"),
    **{
        f"{function}({option})": values
        for function in ("cached", "cachedmethod")
        for option, values in {
            "max_size": takes("None", "0"),
            "ttl": takes("None", "inf"),
            "key": takes("None"),
            "cache": takes("None"),
            "typed": takes("True"),
            "lock": takes("None"),
            "refresh_after": takes("None"),
            "stale_if_error": takes("None", "inf"),
            "negative_ttl": takes("None", "inf"),
            "negative_errors": takes(),
            "jitter": takes("None"),
            "condition": takes("None"),
            "info": takes("True"),
        }.items()
    },
    # In place of the function, as `functools.lru_cache` takes it.
    "cached(function)": takes("None", "0"),
    "cached(maxsize)": takes("None", "0"),
    "cachedmethod(function)": takes(),
    "create_memory_aware_ttl_dict(max_size)": takes("None"),
    "create_memory_aware_ttl_dict(ttl)": takes("None", "inf"),
    "create_memory_aware_ttl_dict(memory_limit_mb)": takes(),
    "AdaptiveMemoryMonitor(base_interval)": takes(),
    "AdaptiveMemoryMonitor(max_interval)": takes(),
    "AdaptiveMemoryMonitor(stability_window)": takes(),
    "AdaptiveMemoryMonitor(limit)": takes("None"),
    "AdaptiveMemoryMonitor(readings)": takes("None"),
    "AdaptiveMemoryMonitor(clock)": takes("None"),
    # A scale without a unit, which may have any finite value.
    "AdaptiveMemoryMonitor.calculate_next_interval(current_memory)": takes("0", "-1"),
    "AdaptiveMemoryMonitor.trend(seconds)": takes("None"),
    "AdaptiveMemoryMonitor.on_pressure(level)": takes(),
    "AdaptiveMemoryMonitor.on_pressure(callback)": takes(),
    "GCTuner(target_overhead)": takes(),
    "GCTuner(memory_limit)": takes("None"),
    "GCTuner(freeze)": takes("True"),
    "GCTuner(long_request)": takes("inf"),
    "GCTuner(readings)": takes("None"),
    "GCTuner(clock)": takes("None"),
    "GCTuner(collector)": takes("None"),
    "GCTuner(kind)": takes("None"),
    "GCTuner.asgi(app)": takes(),
    "GCTuner.rsgi(app)": takes(),
    "GCTuner.wsgi(app)": takes(),
    "GCTuner.collect_garbage(nbytes)": takes("0"),
    "GCTuner.trim(nbytes)": takes("0"),
    "MemoryGovernor(limit)": takes("None"),
    "MemoryGovernor(monitor)": takes("None"),
    "MemoryGovernor(readings)": takes("None"),
    "MemoryGovernor(clock)": takes("None"),
    "MemoryGovernor(on_emergency)": takes("None"),
    "MemoryGovernor(pause)": takes("True", "0", "inf"),
    "MemoryGovernor(fleet)": takes("True", "text"),
    "MemoryGovernor.register(obj)": takes(),
    "MemoryGovernor.register(weight)": takes("0"),
    "MemoryGovernor.register(name)": takes("None", "text"),
    "MemoryGovernor.unregister(obj)": ANYTHING,
    "ResponseCollector(owner)": takes("None", "index of 10**400"),
    "ResponseCollector(ttl)": takes("None", "inf"),
    "ResponseCollector(idle)": takes("None", "inf"),
    "ResponseCollector(memory_limit)": takes("None"),
    "ResponseCollector(max_queries)": takes("None"),
    "ResponseCollector(max_per_query)": takes("None"),
    "ResponseCollector(capacity)": takes(),
    "ResponseCollector(max_batch)": takes(),
    "ResponseCollector(flush_threshold)": takes(),
    "ResponseCollector(on_flush)": takes("None"),
    "ResponseCollector(policy)": takes(),
    "ResponseCollector(timer)": takes("None"),
    "ResponseCollector(sweep)": takes("True"),
    "ResponseCollector.add(response)": takes(),
    "ResponseCollector.add_batch(responses)": takes("list"),
    "ResponseCollector.aflush(handler)": takes(),
    "ResponseCollector.responses(query_id)": ANYTHING,
    "ResponseCollector.consensus(query_id)": ANYTHING,
    "ResponseCollector.pop(query_id)": ANYTHING,
    "ResponseCollector.trim(nbytes)": takes("0"),
    "ResponseCollector.expire(limit)": takes("None"),
    "ResponseCollector.resize(max_queries)": takes("None"),
    "ResponseCollector.resize(memory_limit)": takes("None"),
    "ResponseCollector.cap(nbytes)": takes("None", "0"),
    "ResponseCollector.pause(wait)": takes("True", "0", "inf"),
    **{
        f"{function}({name})": values
        for function in ("node_heap_flags", "node_options")
        for name, values in (("memory_limit", takes("None")), ("share", takes()), ("readings", takes("None")))
    },
    "node_options(existing)": takes("text"),
    "Length(least)": takes("0"),
    "Length(most)": takes("None", "0"),
    "Pattern(pattern)": takes("text"),
    # Whatever has an order; the field's value is compared with it.
    **{f"Range({name})": ANYTHING for name in ("least", "most", "above", "below")},
    "field(default)": ANYTHING,
    "field(hash)": takes("None", "True"),
    "field(metadata)": takes("None"),
    **{f"field({name})": takes("True") for name in ("init", "repr", "compare", "kw_only")},
    "install(app)": takes("None"),
    "install(memory_limit)": takes("None"),
    **{f"install({name})": takes("True") for name in ("tuner", "governor", "monitor")},
    "install(metrics)": takes("None"),
}


@pytest.fixture(autouse=True)
def _nothing_stays_installed():
    yield
    from synthex_fast.integrations import installation

    if installation.current() is not None:
        installation.current().stop()


def test_every_argument_is_listed():
    assert sorted(ARGUMENTS.keys() - MEANINGFUL.keys()) == [], "say in MEANINGFUL what these take"
    assert sorted(MEANINGFUL.keys() - ARGUMENTS.keys()) == [], "there are no such arguments any more"


@pytest.mark.parametrize("check", [positive_seconds, share_of_one, finite_number])
def test_a_string_that_float_takes_is_no_number(check):
    with pytest.raises(ArgumentTypeError, match="name must be"):
        check("name", NumericText("1"))


def complaint(call, parameter, value, key):
    """What is wrong with how the call takes this value; None if nothing is."""
    subject = make_subject(call.owner)
    before = state(subject)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(VALID, "key", key)
            call(subject, parameter, value)
    except (ArgumentTypeError, ArgumentValueError) as error:
        if not re.search(rf"\b{parameter}\b", str(error)):
            return f"does not name the argument: {error}"
    except Exception as error:
        return f"raises {type(error).__name__}: {str(error)[:200]}"
    else:
        return "is accepted"
    after = state(subject)
    return None if after == before else f"changes the object: {before} becomes {after}"


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_bad_values_are_refused_by_name_and_change_nothing(argument):
    call, parameter = ARGUMENTS[argument]
    keys = ("present", "absent") if "key" in call.parameters else ("present",)
    complaints = [
        f"{shown} {complained}"
        for shown, value in BAD.items()
        if shown not in MEANINGFUL.get(argument, ANYTHING)
        for key in keys
        if (complained := complaint(call, parameter, value, key)) is not None
    ]
    assert not complaints, f"{argument}: " + "; ".join(complaints)


@pytest.mark.parametrize(
    "argument", [name for name, values in MEANINGFUL.items() if values not in (ANYTHING, takes())]
)
def test_meaningful_values_are_accepted(argument):
    """Otherwise the table would leave out more than it should."""
    call, parameter = ARGUMENTS[argument]
    for shown in sorted(MEANINGFUL[argument]):
        call(make_subject(call.owner), parameter, BAD[shown])
