"""Pools, pooled records, a response buffer and a cache that save a Python service allocations and garbage collection.

The core (pool, records, buffer, dict) is imported with the package, everything else on first use (PEP 562). Docstrings
call the memory analysis of a service that this package answers "the report"; the README describes it.
"""

# First: it refuses a subinterpreter before a compiled module is loaded.
from synthex_fast import _interpreter  # noqa: F401
from synthex_fast._pool import ObjectPool
from synthex_fast._slab import ResponseBuffer
from synthex_fast._ttl import TTLDict, create_memory_aware_ttl_dict
from synthex_fast.experts import PooledExpertQuery, PooledExpertResponse

# Type checkers treat it like typing.TYPE_CHECKING, whose import would cost time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from synthex_fast.caching import cached as cached
    from synthex_fast.caching import cachedmethod as cachedmethod
    from synthex_fast.collector import ResponseCollector as ResponseCollector
    from synthex_fast.gc_tuner import GCTuner as GCTuner
    from synthex_fast.governor import MemoryGovernor as MemoryGovernor
    from synthex_fast.integrations import install as install
    from synthex_fast.kinds import QueryPriority as QueryPriority
    from synthex_fast.kinds import QueryType as QueryType
    from synthex_fast.monitor import AdaptiveMemoryMonitor as AdaptiveMemoryMonitor
    from synthex_fast.node import node_heap_flags as node_heap_flags
    from synthex_fast.node import node_options as node_options
    from synthex_fast.record import Length as Length
    from synthex_fast.record import OneOf as OneOf
    from synthex_fast.record import Pattern as Pattern
    from synthex_fast.record import Range as Range
    from synthex_fast.record import Record as Record
    from synthex_fast.record import field as field

__version__ = "0.1.0"

_LATER: dict[str, str] = {
    "AdaptiveMemoryMonitor": "synthex_fast.monitor",
    "GCTuner": "synthex_fast.gc_tuner",
    "Length": "synthex_fast.record",
    "MemoryGovernor": "synthex_fast.governor",
    "OneOf": "synthex_fast.record",
    "Pattern": "synthex_fast.record",
    "QueryPriority": "synthex_fast.kinds",
    "QueryType": "synthex_fast.kinds",
    "Range": "synthex_fast.record",
    "Record": "synthex_fast.record",
    "ResponseCollector": "synthex_fast.collector",
    "cached": "synthex_fast.caching",
    "cachedmethod": "synthex_fast.caching",
    "field": "synthex_fast.record",
    "install": "synthex_fast.integrations",
    "node_heap_flags": "synthex_fast.node",
    "node_options": "synthex_fast.node",
}

__all__ = [
    "ObjectPool",
    "PooledExpertQuery",
    "PooledExpertResponse",
    "ResponseBuffer",
    "TTLDict",
    "create_memory_aware_ttl_dict",
    *_LATER,
]


def __getattr__(name: str) -> object:
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
