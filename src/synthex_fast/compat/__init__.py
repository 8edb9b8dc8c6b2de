"""The names of other packages, so that replacing one of them takes one changed import.

`synthex_fast.compat.cachetools` has those of cachetools.
"""

__all__: list[str] = []
