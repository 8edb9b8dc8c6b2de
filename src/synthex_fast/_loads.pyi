# Types of `_loads.pyx`: the loads under way.

from typing import final

from typing_extensions import disjoint_base

__all__ = ["Aged", "Load"]

@final
@disjoint_base
class Aged: ...

@final
@disjoint_base
class Load:
    def is_forgotten(self) -> bool: ...
