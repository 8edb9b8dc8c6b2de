"""Argument checks: every part of the package accepts the same values and refuses the rest in the same words.

Each check takes the argument's name first and raises `ArgumentTypeError` or `ArgumentValueError` with that name, the
value received and what is allowed. Neither a bool nor a string is accepted as a number. Exceptions from the value's own
``__index__`` or ``__float__`` propagate, except `OverflowError`, which means out of range.

Callables whose result the package drops or keeps must not be asynchronous: nothing would await what they return.
`check_callable` refuses coroutine functions, and `refuse_awaitable` what any other callable returned to be awaited.

Cython code cimports the ``cdef`` functions; the ``def`` functions below wrap them for Python code.
"""

from libc.math cimport INFINITY, isnan

from cpython.object cimport PyObject

from synthex_fast._python cimport PY_SSIZE_T_MAX

from _functools import partial
from operator import index as to_index
from sys import modules
from types import FunctionType, MethodType

from synthex_fast.errors import ArgumentTypeError, type_error, value_error

__all__ = [
    "finite_number",
    "one_of",
    "positive_seconds",
    "refuse_awaited",
    "share_of_one",
    "want_bool",
    "want_callable",
    "want_methods",
    "want_text",
    "whole_number",
]


cdef object integer(
    str name, object value, object least=1, object most=PY_SSIZE_T_MAX, str unit="", bint optional=False
):
    """The value as an int from `least` to `most`, or None if `optional` and it is None."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise type_error(name, value, _allowed_integer(least, most, unit, optional))
    number = to_index(value)
    if not least <= number <= most:
        raise value_error(name, value, _allowed_integer(least, most, unit, optional))
    return number


cdef str _allowed_integer(object least, object most, str unit, bint optional):
    kind = f"an integer from {least} to {most}"
    if unit:
        kind += f" ({unit})"
    return f"{kind} or None" if optional else kind


cdef Py_ssize_t size(str name, object value, Py_ssize_t least=0, str unit="") except? -1:
    """The value as a C integer, `least` or more."""
    return integer(name, value, least, PY_SSIZE_T_MAX, unit)


cdef double real(str name, object value, str allowed) except? -1.0:
    """The value as a C double. NaN passes, and a value too large for a double, even a negative one, becomes infinity.

    The caller's range check refuses both; where infinity is allowed, it has to ask the value itself.
    """
    if type(value) is float:
        return value
    if isinstance(value, (bool, str)) or not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        raise type_error(name, value, allowed)
    try:
        return float(value)
    except OverflowError:
        # Not compared with 0: an object that has `__index__` or `__float__` need not be comparable.
        return INFINITY


cdef double seconds(str name, object value, bint optional=False) except? -1.0:
    """A positive number of seconds. Infinity, and None if `optional`, mean forever; finite values must fit doubles."""
    if value is None and optional:
        return INFINITY
    return _positive(name, value, "a positive number of seconds" + (" or None" if optional else ""))


cdef double lifetime(str name, object value, bint optional=False) except? -1.0:
    """Like `seconds`, and a timedelta is allowed as well."""
    cdef str allowed = "a positive number of seconds, a timedelta" + (" or None" if optional else "")
    if value is None and optional:
        return INFINITY
    # Whoever has a timedelta has imported its module, which takes milliseconds.
    datetime = modules.get("datetime")
    if datetime is not None and isinstance(value, datetime.timedelta):
        value = datetime.timedelta.total_seconds(value)
    return _positive(name, value, allowed)


cdef double _positive(str name, object value, str allowed) except? -1.0:
    cdef double number = real(name, value, allowed)
    if isnan(number) or number <= 0 or (number == INFINITY and not _is_infinite(value)):
        raise value_error(name, value, allowed)
    return number


cdef bint _is_infinite(object value) except -1:
    # An int so large that no double holds it compares as less than infinity.
    return bool(value == INFINITY)


cdef double share(str name, object value, double most=1.0) except? -1.0:
    """A number above 0 and up to `most`."""
    cdef str allowed = f"a number above 0 and up to {most:g}"
    cdef double number = real(name, value, allowed)
    if not 0.0 < number <= most:
        raise value_error(name, value, allowed)
    return number


cdef extern from *:
    """
    /* Whether a callable is known at a glance not to be async: a class, a builtin function, or a function that is none
       and has no attributes, among which `inspect.markcoroutinefunction` leaves its mark. */
    static inline int synthex_is_plainly_sync(PyObject *o) {
        if (PyType_CheckExact(o) || PyCFunction_CheckExact(o)) return 1;
    #ifndef Py_GIL_DISABLED
        if (PyFunction_Check(o) && ((PyFunctionObject *)o)->func_dict == NULL) {
            int async = CO_COROUTINE | CO_ITERABLE_COROUTINE | CO_ASYNC_GENERATOR;
            return !(((PyCodeObject *)PyFunction_GET_CODE(o))->co_flags & async);
        }
    #endif
        return 0;
    }
    """
    bint is_plainly_sync "synthex_is_plainly_sync"(PyObject*) noexcept


cdef int check_callable(
    str name, object value, bint optional=False, bint may_await=False, str instead=""
) except -1:
    """`instead` says what takes an async callable."""
    if is_plainly_sync(<PyObject*>value):
        return 0
    if not (callable(value) or (optional and value is None)):
        raise type_error(name, value, "callable or None" if optional else "callable")
    if value is not None and not may_await and _is_async(value):
        raise type_error(
            name, value, "a callable that isn't async, because its coroutine would never be awaited" + instead
        )
    return 0


cdef enum:
    # Flags of code objects; `inspect`, which names them, takes milliseconds to import.
    CO_COROUTINE = 0x80
    CO_ITERABLE_COROUTINE = 0x100
    CO_ASYNC_GENERATOR = 0x200


cdef object unwrapped(object value):
    """The function under partials, bound methods and static methods."""
    cdef int _i
    # Bounded: a partial can be made to refer to itself.
    for _i in range(32):
        if isinstance(value, partial):
            value = value.func
        elif isinstance(value, (MethodType, staticmethod)):
            value = value.__func__
        else:
            break
    return value


cdef bint _is_async_function(object value) except -1:
    if isinstance(value, FunctionType):
        if value.__code__.co_flags & (CO_COROUTINE | CO_ITERABLE_COROUTINE | CO_ASYNC_GENERATOR):
            return True
        # Set by `inspect.markcoroutinefunction`.
        return "_is_coroutine_marker" in value.__dict__
    # A function compiled by Cython has this attribute, which is None unless the function is async.
    return hasattr(type(value), "_is_coroutine") and value._is_coroutine is not None


cdef bint _is_async(object value) except -1:
    """Whether calling the value is known to return a coroutine or an asynchronous generator."""
    value = unwrapped(value)
    if _is_async_function(value):
        return True
    return _is_async_function(unwrapped(type(value).__call__))


cdef extern from *:
    """
    /* Coroutines, generators, asynchronous generators and all else that has __await__. */
    static inline int synthex_may_be_awaited(PyObject *o) {
        PyTypeObject *type = Py_TYPE(o);
        return (type->tp_as_async != NULL && (type->tp_as_async->am_await != NULL || PyAsyncGen_CheckExact(o)))
            || PyGen_CheckExact(o);
    }
    """
    bint may_be_awaited "synthex_may_be_awaited"(PyObject*) noexcept
    bint is_generator "PyGen_CheckExact"(object) noexcept
    bint is_async_generator "PyAsyncGen_CheckExact"(object) noexcept


cdef int refuse_awaitable(str name, object result, bint kept=False, str instead="") except -1:
    """Raise if a callable returned what does nothing until it is awaited, and close that.

    If the result is `kept` as a value, only what can be awaited just once is refused. A Future or a Task runs by itself
    and is never refused.
    """
    if result is None or not may_be_awaited(<PyObject*>result):
        return 0
    cls = type(result)
    if is_generator(result):
        if kept and not result.gi_code.co_flags & CO_ITERABLE_COROUTINE:
            return 0
    elif not is_async_generator(result):
        if hasattr(cls, "_asyncio_future_blocking"):
            return 0
        if kept and not (hasattr(cls, "send") and hasattr(cls, "close")):
            return 0
    if hasattr(cls, "close"):
        try:
            result.close()
        except Exception:
            # The error below says what is wrong.
            pass
    fate = "can be awaited only once, so it can't be kept" if kept else "nothing awaits"
    raise ArgumentTypeError(f"{name} must not be async: it returned a {cls.__name__}, which {fate}{instead}")


cdef int check_text(str name, object value, bint optional=False) except -1:
    if not (isinstance(value, str) or (optional and value is None)):
        raise type_error(name, value, "a string or None" if optional else "a string")
    return 0


cdef int check_choice(str name, object value, object choices) except -1:
    allowed = f"one of {', '.join(map(repr, choices))}"
    if not isinstance(value, str):
        raise type_error(name, value, allowed)
    if value not in choices:
        raise value_error(name, value, allowed)
    return 0


# ---- the same for Python callers ----

def whole_number(name, value, least=1, most=PY_SSIZE_T_MAX, *, unit="", optional=False):
    """The value as an int from `least` to `most`; with `optional`, None is allowed and returned.

    >>> whole_number("max_size", 10)
    10
    >>> whole_number("max_size", True)
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentTypeError: max_size must be an integer from 1 to 9223372036854775807, not True (bool)
    """
    return integer(name, value, least, most, unit, optional)


def positive_seconds(name, value, *, optional=False):
    """The value as a float above 0. `math.inf`, and None if `optional`, mean forever and are returned as infinity.

    >>> positive_seconds("ttl", 3), positive_seconds("ttl", None, optional=True)
    (3.0, inf)
    """
    return seconds(name, value, optional)


def finite_number(name, value, allowed="a finite number", *, least=-INFINITY, most=INFINITY):
    """The value as a finite float from `least` to `most`; `allowed` describes that in the error.

    >>> finite_number("weight", 2, "a number, 0 or more", least=0)
    2.0
    """
    cdef double number = real(name, value, allowed)
    # NaN fails every comparison.
    if not (least <= number <= most and -INFINITY < number < INFINITY):
        raise value_error(name, value, allowed)
    return number


def share_of_one(name, value, most=1.0):
    """The value as a float above 0 and up to `most`.

    >>> share_of_one("flush_threshold", 0.8)
    0.8
    """
    return share(name, value, most)


def want_callable(name, value, *, optional=False, may_await=False):
    """The value, if it is callable (or None, with `optional`) and no coroutine function (unless `may_await`).

    >>> want_callable("reset", None, optional=True)
    """
    check_callable(name, value, optional, may_await)
    return value


def refuse_awaited(name, result):
    """Raise `ArgumentTypeError` if a callback returned what does nothing until it is awaited, and close that.

    >>> async def callback(): pass
    >>> refuse_awaited("callback", callback())
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentTypeError: callback must not be async: it returned a coroutine, which nothing awaits
    """
    refuse_awaitable(name, result)


def want_text(name, value, *, optional=False):
    """The value, if it is a string (or None, with `optional`).

    >>> want_text("name", "cache")
    'cache'
    """
    check_text(name, value, optional)
    return value


def want_methods(name, value, methods):
    """The value, if it has all of these methods.

    >>> want_methods("readings", 3, ["rss"])
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentTypeError: readings must be an object with the methods rss, or None, not 3 (int)
    """
    for method in methods:
        if not callable(getattr(value, method, None)):
            raise type_error(name, value, f"an object with the methods {', '.join(methods)}, or None")
    return value


def want_bool(name, value):
    """The value, if it is True or False.

    >>> want_bool("freeze", False)
    False
    """
    if not isinstance(value, bool):
        raise type_error(name, value, "True or False")
    return value


def one_of(name, value, choices):
    """The value, if it is one of the strings in `choices`.

    >>> one_of("policy", "lru", ("fifo", "lru"))
    'lru'
    """
    check_choice(name, value, choices)
    return value
