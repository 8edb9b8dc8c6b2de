"""The names of other packages, so that replacing one of them takes one changed import.

`synthex_fast.compat.cachetools` has those of cachetools, `synthex_fast.compat.cachebox` those of cachebox.
"""

__all__: list[str] = []
