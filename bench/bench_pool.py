"""ObjectPool compared with a plain list, with the report's deque-and-lock pool, and with itself in two threads.

"The report" is the memory management analysis that this package answers; its pool is copied below. The pooled objects
belong to a plain Python class, without a ``reset`` unless the claim's name says so. No name refers to an object when it
is acquired again, as in a service that passes it to a function: the pool would discard it as an alias.
"""

import sysconfig
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from measure import NotMeasuredError, compare, scaling, statement

from synthex_fast import ObjectPool

T = TypeVar("T")


class ReportPool(Generic[T]):
    """The ``ObjectPool`` of the report's section 6 A, unchanged."""

    def __init__(self, factory: Callable[[], T], max_size: int = 1000):
        self._factory = factory
        self._pool = deque(maxlen=max_size)
        self._lock = threading.Lock()
        self._created = 0
        self._reused = 0

        # Pre-populate pool
        for _ in range(min(100, max_size)):
            self._pool.append(factory())
            self._created += 1

    def acquire(self) -> T:
        with self._lock:
            if self._pool:
                self._reused += 1
                return self._pool.popleft()
            else:  # noqa: RET505
                self._created += 1
                return self._factory()

    def release(self, obj: T):
        if hasattr(obj, "reset"):
            obj.reset()
        with self._lock:
            if len(self._pool) < self._pool.maxlen:
                self._pool.append(obj)


class Plain:
    def __init__(self):
        self.text = ""


class Resettable(Plain):
    def reset(self):
        self.text = ""


def claim_vs_list():
    """Acquire and release, compared with pop and append."""
    return compare(
        statement("pool.release(pool.acquire())", pool=ObjectPool(Plain)),
        statement("items.append(items.pop())", items=[Plain() for _ in range(100)]),
    )


def claim_named_vs_list():
    """The same with the object bound to a name in between."""
    return compare(
        statement("thing = pool.acquire(); pool.release(thing); thing = None", pool=ObjectPool(Plain)),
        statement(
            "thing = items.pop(); items.append(thing); thing = None", items=[Plain() for _ in range(100)]
        ),
    )


def claim_reset_vs_list():
    """Objects with a ``reset`` written in Python, which the list's side calls too."""
    result = compare(
        statement("pool.release(pool.acquire())", pool=ObjectPool(Resettable)),
        statement(
            "thing = items.pop(); thing.reset(); items.append(thing); thing = None",
            items=[Resettable() for _ in range(100)],
        ),
    )
    return result._replace(note="both sides call a reset written in Python")


def claim_vs_report_pool():
    """The report's pool, which looks for a ``reset`` that the objects don't have."""
    return compare(
        statement("pool.release(pool.acquire())", pool=ObjectPool(Plain)),
        statement("pool.release(pool.acquire())", pool=ReportPool(Plain)),
    )


def claim_reset_vs_report_pool():
    """The report's pool with objects that have a ``reset`` written in Python."""
    result = compare(
        statement("pool.release(pool.acquire())", pool=ObjectPool(Resettable)),
        statement("pool.release(pool.acquire())", pool=ReportPool(Resettable)),
    )
    return result._replace(note="both sides call a reset written in Python")


def claim_lease_vs_list():
    """A lease: acquire and release in a ``with`` statement."""
    return compare(
        statement("with pool.lease(): pass", pool=ObjectPool(Plain)),
        statement("items.append(items.pop())", items=[Plain() for _ in range(100)]),
    )


def _in_threads(names):
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise NotMeasuredError("two threads run in parallel only on a free-threaded interpreter")
    return scaling(names)


def claim_two_threads():
    """One pool used by two threads, each through a local name."""
    pool = ObjectPool(Plain)
    return _in_threads(lambda n: statement("pool.release(pool.acquire())", inner=500_000, pool=pool))


def claim_two_threads_global():
    """One pool used by two threads through a global name."""
    scope = {"pool": ObjectPool(Plain)}
    body = "        pool.release(pool.acquire())\n" * 10
    exec(f"def run():\n    for _ in range(50_000):\n{body}", scope)
    return _in_threads(lambda n: scope["run"])
