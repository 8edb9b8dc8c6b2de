# Types of `_forks.pyx`: the fork count.

__all__ = ["fork_count"]

def fork_count() -> int: ...
