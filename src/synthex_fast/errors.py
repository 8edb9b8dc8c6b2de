"""The exceptions that the package raises. Each also derives from the builtin exception that fits best."""

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "BatchTooLargeError",
    "BufferFullError",
    "BufferPausedError",
    "CollectorClosedError",
    "FactoryError",
    "OwnerGoneError",
    "SynthexFastError",
    "TunerRunningError",
    "ValueTooLargeError",
]


class SynthexFastError(Exception):
    """Base class of all package errors."""


class ArgumentValueError(SynthexFastError, ValueError):
    """An argument or a record's field has the right type but an invalid value."""


class ArgumentTypeError(SynthexFastError, TypeError):
    """An argument or a record's field has the wrong type."""


class BatchTooLargeError(ArgumentValueError):
    """A batch holds more responses than the buffer's ``max_batch``; none of them was added."""


class ValueTooLargeError(ArgumentValueError):
    """A value exceeds the container's whole limit; nothing was changed.

    Raised when a key and its value take more bytes than a dict's ``memory_limit``, and when a query has more answers
    than a collector keeps.
    """


class BufferFullError(SynthexFastError, OverflowError):
    """The buffer is full and has no flush handler; nothing was added."""


class BufferPausedError(SynthexFastError, RuntimeError):
    """The buffer is paused, and the caller does not wait or its timeout expired; nothing was added.

    It derives from RuntimeError because the buffer is in the wrong state for the call. BlockingIOError and TimeoutError
    are OSErrors, so code that handles I/O failures would catch this by mistake.
    """


class CollectorClosedError(SynthexFastError, ValueError):
    """The collector is closed and empty."""


class OwnerGoneError(SynthexFastError, ReferenceError):
    """The collector's owner no longer exists, and the collector's contents were released with it."""


class FactoryError(ArgumentTypeError):
    """A pool's factory returned ``None`` instead of an object."""


class TunerRunningError(SynthexFastError, RuntimeError):
    """A `GCTuner` was started while another was running; a process has only one garbage collector to tune."""


_SHOWN = 80


def _message(name: str, value: object, allowed: str) -> str:
    try:
        shown = repr(value)
    except Exception:
        # The error must reach the caller even if the value's own repr is broken.
        shown = "an object whose repr fails"
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "..."
    return f"{name} must be {allowed}, not {shown} ({type(value).__name__})"


def value_error(name: str, value: object, allowed: str) -> ArgumentValueError:
    """An `ArgumentValueError` that names the argument, the value passed and what is allowed.

    >>> raise value_error("max_size", -1, "a positive integer")
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentValueError: max_size must be a positive integer, not -1 (int)
    """
    return ArgumentValueError(_message(name, value, allowed))


def type_error(name: str, value: object, allowed: str) -> ArgumentTypeError:
    """An `ArgumentTypeError` that names the argument, the value passed and what is allowed.

    >>> raise type_error("factory", 3, "callable")
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentTypeError: factory must be callable, not 3 (int)
    """
    return ArgumentTypeError(_message(name, value, allowed))
