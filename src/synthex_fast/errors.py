"""Every exception that the package raises of its own accord. Each is also the builtin one that callers expect."""

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
    """Base of all of them, for callers who want to catch whatever the package complains of."""


class ArgumentValueError(SynthexFastError, ValueError):
    """An argument or a record's field has the right type and a value that is not allowed."""


class ArgumentTypeError(SynthexFastError, TypeError):
    """An argument or a record's field has a type that is not allowed."""


class BatchTooLargeError(ArgumentValueError):
    """A batch holds more responses than the buffer's ``max_batch``; nothing of it was added."""


class ValueTooLargeError(ArgumentValueError):
    """A key and value weigh more than the dict's whole ``memory_limit``, or a query has more answers than a collector
    keeps; nothing was changed.
    """


class BufferFullError(SynthexFastError, OverflowError):
    """The buffer has no room and no flush handler; nothing was added."""


class BufferPausedError(SynthexFastError, RuntimeError):
    """The buffer is paused and the addition may not wait, or not any longer; nothing was added.

    A RuntimeError, as for other things asked of an object in the wrong state. BlockingIOError and TimeoutError are
    OSErrors: what handles those would take it for trouble with a file or a peer.
    """


class CollectorClosedError(SynthexFastError, ValueError):
    """The collector has been closed, and holds nothing any more."""


class OwnerGoneError(SynthexFastError, ReferenceError):
    """The object that the collector belonged to is gone, and with it what the collector held."""


class FactoryError(ArgumentTypeError):
    """A pool's factory gave back ``None`` where an object was due."""


class TunerRunningError(SynthexFastError, RuntimeError):
    """A second `GCTuner` was started while one runs: there is one collector in a process."""


_SHOWN = 80


def _complaint(name: str, value: object, allowed: str) -> str:
    try:
        shown = repr(value)
    except Exception:
        # The complaint must reach the caller even when the value can't describe itself.
        shown = "an object whose repr fails"
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "..."
    return f"{name} must be {allowed}, not {shown} ({type(value).__name__})"


def value_error(name: str, value: object, allowed: str) -> ArgumentValueError:
    """An `ArgumentValueError` that names the argument, what came and what is allowed.

    >>> raise value_error("max_size", -1, "a positive integer")
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentValueError: max_size must be a positive integer, not -1 (int)
    """
    return ArgumentValueError(_complaint(name, value, allowed))


def type_error(name: str, value: object, allowed: str) -> ArgumentTypeError:
    """An `ArgumentTypeError` that names the argument, what came and what is allowed.

    >>> raise type_error("factory", 3, "callable")
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentTypeError: factory must be callable, not 3 (int)
    """
    return ArgumentTypeError(_complaint(name, value, allowed))
