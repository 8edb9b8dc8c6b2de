"""The exceptions that the package raises. Each also derives from the builtin exception that callers would expect."""

__all__ = [
    "AlreadyInstalledError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "BatchTooLargeError",
    "BufferFullError",
    "BufferPausedError",
    "CollectorClosedError",
    "FactoryError",
    "LoadCycleError",
    "OwnerGoneError",
    "PoolExhaustedError",
    "ServerUnavailableError",
    "SynthexFastError",
    "TunerRunningError",
    "UnsupportedServerError",
    "ValueTooLargeError",
]


class SynthexFastError(Exception):
    """Base class of all package errors."""


class ArgumentValueError(SynthexFastError, ValueError):
    """An argument or a record's field has the right type but a value that is not allowed."""


class ArgumentTypeError(SynthexFastError, TypeError):
    """An argument or a record's field has a type that is not allowed."""


class BatchTooLargeError(ArgumentValueError):
    """A batch holds more responses than the buffer's ``max_batch``; none of them was added."""


class ValueTooLargeError(ArgumentValueError):
    """A key and value are larger than the dict's whole ``memory_limit``, or a query has more responses than a collector
    keeps; nothing was changed.
    """


class BufferFullError(SynthexFastError, OverflowError):
    """The buffer has no room and no flush handler; nothing was added."""


class BufferPausedError(SynthexFastError, RuntimeError):
    """The buffer is paused and the addition may not wait, or has waited long enough; nothing was added.

    A RuntimeError, like other operations on an object in the wrong state. BlockingIOError and TimeoutError are
    OSErrors, and code that handles those would take this for a problem with a file or a peer.
    """


class CollectorClosedError(SynthexFastError, ValueError):
    """The collector has been closed and no longer holds anything."""


class OwnerGoneError(SynthexFastError, ReferenceError):
    """The collector's owner no longer exists, and the collector has released everything it held."""


class FactoryError(ArgumentTypeError):
    """A pool's factory returned None."""


class PoolExhaustedError(SynthexFastError, TimeoutError):
    """As many objects of a bounded pool are in use as may be, and none was released within the ``timeout``."""


class ServerUnavailableError(SynthexFastError, ConnectionError):
    """The server of a tiered cache can't be reached, or didn't answer in time: a write may have reached it or not."""


class LoadCycleError(SynthexFastError, RuntimeError):
    """The factory of a cached value asks for that very value, or several wait for each other's; none can be made."""


class TunerRunningError(SynthexFastError, RuntimeError):
    """A second `GCTuner` was started while one is running: a process has only one collector."""


class AlreadyInstalledError(SynthexFastError, RuntimeError):
    """`install` was called for something else than what it has put in place in this process; nothing was changed."""


class UnsupportedServerError(SynthexFastError, RuntimeError):
    """The package can't work in this server, or not with these settings of it; nothing was started."""


_SHOWN = 80


def _message(name: str, value: object, allowed: str) -> str:
    try:
        shown = repr(value)
    except Exception:
        # The caller must get the message even if the value's own repr fails.
        shown = "an object whose repr fails"
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "..."
    return f"{name} must be {allowed}, not {shown} ({type(value).__name__})"


def value_error(name: str, value: object, allowed: str) -> ArgumentValueError:
    """An `ArgumentValueError` that names the argument, the value received and what is allowed.

    >>> raise value_error("max_size", -1, "a positive integer")
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentValueError: max_size must be a positive integer, not -1 (int)
    """
    return ArgumentValueError(_message(name, value, allowed))


def type_error(name: str, value: object, allowed: str) -> ArgumentTypeError:
    """An `ArgumentTypeError` that names the argument, the value received and what is allowed.

    >>> raise type_error("factory", 3, "callable")
    Traceback (most recent call last):
    synthex_fast.errors.ArgumentTypeError: factory must be callable, not 3 (int)
    """
    return ArgumentTypeError(_message(name, value, allowed))
