# Types of `_loads.pyx`: the loads under way.

from typing import final

__all__ = ["Aged", "Load"]

@final
class Aged: ...

@final
class Load:
    def is_forgotten(self) -> bool: ...
