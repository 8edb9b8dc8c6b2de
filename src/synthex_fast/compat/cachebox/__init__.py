"""The names of ``cachebox``, so that replacing it takes one changed import.

    from synthex_fast.compat import cachebox        # instead of: import cachebox
    from synthex_fast.compat.cachebox import TTLCache, cached

The caches behave as those of cachebox 6 do, whose own tests pass with them. New code has more from `TTLDict`: limits in
bytes, entries that are freed when they expire, and half the memory.
"""

from __future__ import annotations

from synthex_fast.compat._cachebox import (
    BaseCacheImpl,
    Cache,
    FIFOCache,
    LFUCache,
    LRUCache,
    RRCache,
    TTLCache,
    VTTLCache,
)
from synthex_fast.compat.cachebox._decorator import (
    EVENT_HIT,
    EVENT_MISS,
    CacheInfo,
    cached,
    clear_cached_cache,
    get_cached_cache,
    get_cached_cache_info,
    get_cached_callback,
    is_cached,
    make_hash_key,
    make_key,
    make_typed_key,
    postprocess_copy,
    postprocess_copy_mutables,
    postprocess_deepcopy,
    postprocess_deepcopy_mutables,
)
from synthex_fast.compat.cachebox._frozen import Frozen

__all__ = (
    "EVENT_HIT",
    "EVENT_MISS",
    "BaseCacheImpl",
    "Cache",
    "CacheInfo",
    "FIFOCache",
    "Frozen",
    "LFUCache",
    "LRUCache",
    "RRCache",
    "TTLCache",
    "VTTLCache",
    "cached",
    "clear_cached_cache",
    "get_cached_cache",
    "get_cached_cache_info",
    "get_cached_callback",
    "is_cached",
    "make_hash_key",
    "make_key",
    "make_typed_key",
    "postprocess_copy",
    "postprocess_copy_mutables",
    "postprocess_deepcopy",
    "postprocess_deepcopy_mutables",
)
