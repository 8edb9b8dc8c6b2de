"""TTLDict for Cython code: its fields, and the methods that other extensions may call in C."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cpython.object cimport PyObject

from synthex_fast._loads cimport Load
from synthex_fast._sync cimport Mutex
from synthex_fast._table cimport Table


cdef enum Reason:
    EXPIRED = 0
    IDLE = 1
    FULL = 2
    MEMORY = 3
    # In addition, entries that the user removes. `on_remove` hears of those with a name.
    SILENT = 4
    DELETED = 5
    REPLACED = 6
    CLEARED = 7


cdef enum Presence:
    REPLACE = 0               # store: the new value wins
    KEEP = 1                  # store: a value that is present stays
    OFFER = 2                 # like KEEP, and a value over the own memory limit is returned but not stored
    # Within _ttl.pyx only:
    LOADED = 3                # like OFFER, unless the load was forgotten
    MANY = 4                  # like REPLACE, one of several entries


cdef struct Stripe:
    # A reader locks one stripe, a writer all of them. Each is a cache line of its own, so that readers don't contend.
    Mutex lock
    int64_t hits
    int64_t misses
    char padding[104]


cdef struct Copying:
    # A copy that C code such as dict(d) is making: see _ttl_views.pxi.
    Copying* following
    PyObject* frame           # owned: the Python frame whose instruction makes the copy
    int instruction
    PyObject* pairs           # owned: a list of (key, value)
    Py_ssize_t position       # the first pair that has not been fetched


cdef class TTLDict:
    cdef object __weakref__
    cdef Table table
    cdef Stripe* stripes
    cdef void* stripes_block
    cdef uint32_t generation      # `forks_seen` when the locks were last known to be sound; see _forks.pxd
    cdef double ttl_seconds       # infinity: entries live until evicted; NaN: `life_of` decides
    # Limits in bytes; all bits set: none. The first, the lower of the two others, is in force.
    cdef uint64_t most_bytes
    cdef uint64_t own_bytes       # `memory_limit`: the user's setting
    cdef uint64_t cap_bytes       # set from outside by `cap`
    cdef Py_ssize_t most_entries  # as given; 0: no limit
    cdef uint32_t changes         # counts what ends an iteration: the user's insertions and deletions
    cdef int64_t sets
    cdef int64_t evicted[4]       # entries removed, by Reason
    cdef int64_t exhausted        # values whose size was estimated in part
    cdef int64_t uncacheable      # values that get_or_set returned without storing them
    cdef int64_t over_cap         # values evicted at once because they alone exceed `cap_bytes`
    cdef bint sweepable
    cdef bint ready
    cdef double sweep_at          # the sweeper's next visit; infinity: none is scheduled
    cdef double swept             # its last visit, on the precise clock
    cdef int64_t operations_then  # operations counted at that visit
    cdef object size_of
    cdef object clock
    cdef object on_evict
    cdef object on_remove
    cdef object life_of           # the function given as `ttl`, or None
    cdef str policy_name
    cdef Copying* copies          # NULL: none is under way
    # Loads under way: those of threads and, apart from them, those of event loops. See _ttl_loading.pxi.
    cdef PyObject* loading
    cdef PyObject* loading_async
    cdef uint32_t loads_listed    # counts the changes of the first list
    cdef object flights           # stands for the dict where event loops keep what they load; or None
    cdef int64_t loads            # calls of a factory that have ended
    cdef int64_t load_failures    # those that raised
    cdef int64_t load_waits       # calls that waited for another's load
    cdef double load_seconds

    # The value as a new reference; NULL without an error if the key is missing.
    cdef PyObject* lookup(self, PyObject* key) except? NULL
    # Returns whether the key was new. `life` is in seconds; infinity: until evicted; NaN: as the dict's
    # `ttl` function says, if it has one. `present`, unless NULL, receives a new reference to the value that
    # is stored afterwards.
    cdef int store(self, PyObject* key, PyObject* value, double life, Presence mode, PyObject** present) except -1
    # Like lookup, and removes the entry.
    cdef PyObject* take(self, PyObject* key) except? NULL


# The key's hash for the function below and for `new_load`, so that its own is asked for once.
cdef int hash_key(object key, uint32_t* hash) except -1
# Like `TTLDict.lookup`.
cdef PyObject* lookup_hashed(TTLDict self, PyObject* key, uint32_t hash) except? NULL
# The key's value, once that load, which is not under way yet, or the one that is under way has ended. `name` is the
# factory's in errors, `instead` says what takes an async one. `life` is as for `store`, unless the result is `Aged`.
cdef object load_value(TTLDict self, Load mine, object factory, double life, str name, str instead)
