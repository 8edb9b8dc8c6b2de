"""`MemoryGovernor`: one memory limit for a process, kept by shrinking its caches in time.

The OOM killer acts when a container reaches its limit, without asking it to free anything first. The governor reads the
same figures and acts earlier. It frees expired entries and idle pools, evicts from caches, collects garbage, returns
free memory to the system, and delays new work if all that is not enough.

The protocols here define what the governor can use of an object. A component of your own needs only `Component`, which
is ``nbytes`` and ``trim(nbytes)``. Type checkers verify what is passed to `MemoryGovernor.register`.
"""

from synthex_fast import _pressure
from synthex_fast.governor import policy, reading, thread
from synthex_fast.governor.components import (
    Capped,
    Component,
    Expirable,
    GarbageCollector,
    IdlePool,
    Limited,
    MemorySample,
    Pausable,
    PressureSource,
)
from synthex_fast.governor.governor import MemoryGovernor

__all__ = [
    "Capped",
    "Component",
    "Expirable",
    "GarbageCollector",
    "IdlePool",
    "Limited",
    "MemoryGovernor",
    "MemorySample",
    "Pausable",
    "PressureSource",
]

TYPE_CHECKING = False
if not TYPE_CHECKING:

    def __getattr__(name):
        # The constants that this module had before it became a package.
        if name == "WORTH_IT":
            return policy.WORTHWHILE
        for part in (_pressure, policy, reading, thread) if name.isupper() else ():
            if hasattr(part, name):
                return getattr(part, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
