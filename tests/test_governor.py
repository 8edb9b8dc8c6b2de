"""MemoryGovernor: each promise on a fake clock and fake readings, hostile parts, threads, forks, real containers."""

import contextlib
import ctypes
import gc
import importlib.util
import itertools
import math
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import MB, ROOT, FakeReadings, in_child, needs_fork, quiet_fork, run, wait_for

from synthex_fast import (
    AdaptiveMemoryMonitor,
    GCTuner,
    ObjectPool,
    PooledExpertResponse,
    ResponseBuffer,
    ResponseCollector,
    TTLDict,
    _pressure,
)
from synthex_fast._readings import Readings
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError, BufferPausedError, ValueTooLargeError
from synthex_fast.governor import (
    Capped,
    Component,
    Expirable,
    GarbageCollector,
    IdlePool,
    Limited,
    MemoryGovernor,
    MemorySample,
    Pausable,
    PressureSource,
    policy,
)
from synthex_fast.governor import thread as governor_thread
from synthex_fast.monitor import Sample
from synthex_fast.monitor.thread import SamplingThread

LIMIT = 1000 * MB


class Machine:
    """A clock, and memory: what the caches hold times `overhead`, and the rest."""

    def __init__(self, base=0, overhead=1.0, container=LIMIT):
        self.now = 1000.0
        self.base = base
        self.overhead = overhead
        self.container = container
        self.parts = []
        self.idle_files = 0
        self.sticky = False
        self.most = 0

    def clock(self):
        return self.now

    def rss(self):
        live = int(self.base + self.overhead * sum(part.held for part in self.parts))
        self.most = max(live, self.most if self.sticky else 0)
        return self.most

    def charge(self):
        return None if self.container is None else self.rss() + self.idle_files

    def reclaimable(self):
        return self.idle_files

    def limit(self):
        return self.container

    def total(self):
        return 16000 * MB

    def available(self):
        return 12000 * MB

    def governor(self, *parts, limit=None, **options):
        made = MemoryGovernor(limit, readings=self, clock=self.clock, **options)
        for part in parts:
            made.register(part)
        return made


class Part:
    """Something of the caller's own."""

    def __init__(self, machine, held=0):
        self.held = held
        self.calls = []
        machine.parts.append(self)

    @property
    def nbytes(self):
        return self.held

    def trim(self, nbytes):
        freed = min(nbytes, self.held)
        self.held -= freed
        self.calls.append(("trim", freed))
        return freed


class Cache(Part):
    """Evicts as a TTLDict does: over its limit, to 80 % of it."""

    def __init__(self, machine, held=0, memory_limit=None):
        super().__init__(machine, held)
        self.memory_limit = memory_limit
        self.due = 0

    def add(self, nbytes):
        self.held += nbytes
        if self.memory_limit is not None and self.held > self.memory_limit:
            self.held = int(0.8 * self.memory_limit)

    def expire(self):
        self.calls.append(("expire", self.due))
        freed, self.due = self.due, 0
        self.held -= freed
        return freed

    def resize(self, *, memory_limit):
        self.calls.append(("resize", memory_limit))
        self.memory_limit = memory_limit
        self.add(0)


class CappedCache(Cache):
    """Takes a cap, as a TTLDict does."""

    def __init__(self, machine, held=0, memory_limit=None):
        super().__init__(machine, held, memory_limit)
        self.memory_cap = None

    @property
    def limit(self):
        """The limit in force."""
        return min((n for n in (self.memory_limit, self.memory_cap) if n is not None), default=None)

    def add(self, nbytes):
        self.held += nbytes
        if self.limit is not None and self.held > self.limit:
            self.held = int(0.8 * self.limit)

    def cap(self, nbytes):
        self.calls.append(("cap", nbytes))
        self.memory_cap = nbytes
        self.add(0)


class Pool(Part):
    def acquire(self):
        raise AssertionError("the governor has no use for a pool's objects")

    release = acquire


class Tuner(Part):
    def __init__(self, machine, garbage=0):
        super().__init__(machine)
        self.machine, self.garbage = machine, garbage

    def request(self):
        raise AssertionError("the governor serves no requests")

    idle = request

    def trim(self, nbytes):
        self.calls.append(("trim", nbytes))
        self.machine.base -= self.garbage
        freed, self.garbage = self.garbage, 0
        return freed


class Monitor:
    def __init__(self, running=False):
        self.stats = {"running": running}
        self.callbacks = []
        self.calls = []

    def on_pressure(self, level, callback):
        entry = (level, callback)
        self.callbacks.append(entry)
        return lambda: self.callbacks.remove(entry)

    def start(self):
        self.calls.append("start")
        self.stats["running"] = True

    def stop(self):
        self.calls.append("stop")
        self.stats["running"] = False

    def press(self):
        for level, callback in list(self.callbacks):
            callback(level, None)


@pytest.fixture(autouse=True)
def no_malloc_trim(monkeypatch):
    """What really lies free in this process is no matter for fake readings."""
    monkeypatch.setattr(_pressure, "_trim", None)
    monkeypatch.setattr(_pressure, "_sought", True)


@pytest.fixture
def unraisable(monkeypatch):
    caught = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: caught.append(args.exc_value))
    return caught


# The limit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "container", "expected"),
    [
        (None, LIMIT, LIMIT),
        (None, None, 16000 * MB),
        ("50%", LIMIT, LIMIT // 2),
        ("50%", None, 8000 * MB),
        ("512MB", None, 512 * MB),
        (123456, LIMIT, 123456),
    ],
)
def test_the_limit(limit, container, expected):
    made = Machine(container=container).governor(limit=limit)
    assert made.limit == made.stats["limit"] == expected


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, -0.5, "0", "-5MB", "101%", "much", 1 << 62, ""])
def test_an_absurd_limit_is_refused(limit):
    with pytest.raises(ArgumentValueError, match="limit must be"):
        Machine().governor(limit=limit)


@pytest.mark.parametrize("limit", [True, [], b"1GB", 1j])
def test_a_limit_of_another_type_is_refused(limit):
    with pytest.raises(ArgumentTypeError, match="limit must be"):
        Machine().governor(limit=limit)


def test_other_arguments_are_checked():
    for name, bad in (("on_emergency", 3), ("monitor", object()), ("pause", None), ("pause", [])):
        with pytest.raises(ArgumentTypeError, match=f"{name} must be"):
            MemoryGovernor(**{name: bad})
    for bad in ("never", -1, math.nan):
        with pytest.raises(ArgumentValueError, match="pause must be"):
            MemoryGovernor(pause=bad)


@pytest.mark.skipif(not hasattr(os, "pread"), reason="the trees are read with pread")
@pytest.mark.parametrize("version", [1, 2])
def test_a_container_of_either_version(tmp_path, version):
    """The kernel's files as a tree: resident memory by statm, charge and limit by the controller."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/statm").write_text(f"9999 {50 * MB // os.sysconf('SC_PAGE_SIZE')} 0 0 0 0 0\n")
    (proc / "meminfo").write_text(
        "MemTotal: 16384000 kB\nMemFree: 1 kB\nMemAvailable: 12000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
    )
    group = tmp_path / "sys/fs/cgroup" / ("memory/box" if version == 1 else "box")
    group.mkdir(parents=True)
    if version == 1:
        (proc / "self/cgroup").write_text("4:memory:/box\n")
        mount = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        names = "memory.usage_in_bytes", "memory.limit_in_bytes"
        stat = f"cache 0\nhierarchical_memory_limit {100 * MB}\ntotal_inactive_file {5 * MB}\ntotal_swap 0\n"
    else:
        (proc / "self/cgroup").write_text("0::/box\n")
        mount = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
        names = "memory.current", "memory.max"
        stat = f"anon 0\ninactive_file {5 * MB}\n"
    (proc / "self/mountinfo").write_text(mount)
    (group / names[0]).write_text(f"{90 * MB}\n")
    (group / names[1]).write_text(f"{100 * MB}\n")
    (group / "memory.stat").write_text(stat)
    made = MemoryGovernor(readings=Readings(tmp_path))
    assert (made.limit, made.check()) == (100 * MB, "high")
    assert (made.stats["rss"], made.stats["charge"]) == (50 * MB, 90 * MB)
    # Without the idle pages of files, which the kernel takes back by itself.
    assert made.stats["used"] == pytest.approx(0.85)


def test_a_container_may_be_resized():
    machine = Machine(base=85 * MB, container=100 * MB)
    made, fixed = machine.governor(), machine.governor(limit=100 * MB)
    assert made.check() == fixed.check() == "high"
    machine.container = 200 * MB
    machine.now += 60
    assert (made.check(), made.limit) == ("normal", 200 * MB)
    assert (fixed.check(), fixed.limit) == ("high", 100 * MB)
    machine.container = 100 * MB
    machine.now += 60
    assert (made.check(), made.limit) == ("high", 100 * MB)


# Registering ------------------------------------------------------------------------------------------------


def test_registering_returns_the_object_and_holds_it_weakly():
    machine = Machine()
    made = machine.governor()
    cache = TTLDict()
    assert made.register(cache) is cache
    assert list(made.stats["components"]) == ["TTLDict"]
    del cache
    gc.collect()
    assert made.stats["components"] == {}
    assert "0 parts" in repr(made)


def test_what_the_package_makes_can_be_registered():
    made = Machine().governor()
    kept = [TTLDict(), ObjectPool(list, name="lists"), ResponseBuffer(), TTLDict()]
    for part in kept:
        made.register(part)
    made.register(kept[0], name="answers")
    assert list(made.stats["components"]) == ["answers", "lists", "ResponseBuffer", "TTLDict-2"]
    assert made.check() == "normal"
    assert made.stats["nbytes"] == sum(part.nbytes for part in kept) > 0


@pytest.mark.parametrize("bad", [None, 3, [], "text", object(), {}])
def test_what_cannot_give_memory_back_is_refused(bad):
    made = Machine().governor()
    with pytest.raises(ArgumentTypeError, match="obj must be something with nbytes and trim"):
        made.register(bad)
    assert made.stats["components"] == {}


def test_the_protocols_say_what_the_package_offers():
    cache, pool, buffer = TTLDict(), ObjectPool(list), ResponseBuffer()
    protocols = (Component, Expirable, Limited, Capped, Pausable, IdlePool, GarbageCollector, PressureSource)
    found = [[isinstance(obj, each) for each in protocols] for obj in (cache, pool, buffer)]
    assert found == [
        [True, True, True, True, False, False, False, False],
        [True, False, False, False, False, True, False, False],
        [True, False, False, False, True, False, False, False],
    ]
    tuner = GCTuner()
    made = Machine().governor(tuner)
    # Trimming it collects garbage, which is not eviction.
    assert made._components.find(tuner).collect_method
    assert not made._components.find(tuner).evictable
    assert isinstance(AdaptiveMemoryMonitor(), PressureSource)
    assert isinstance(AdaptiveMemoryMonitor().sample(), MemorySample)


def test_the_error_names_what_is_needed():
    class Sized:
        nbytes = 3

    with pytest.raises(ArgumentTypeError, match=r"nbytes and trim.*collect_garbage.*on_pressure"):
        Machine().governor().register(Sized())


def test_what_only_collects_garbage_can_be_registered(monkeypatch):
    machine = Machine(base=910 * MB)

    class Collector:
        def collect_garbage(self, nbytes):
            machine.base -= 300 * MB
            return 300 * MB

    times = collections(machine, monkeypatch)
    collector = Collector()
    made = machine.governor(collector)
    assert made.check() == "normal"
    assert times == []
    shown = made.stats["components"]["Collector"]
    assert (shown["nbytes"], shown["errors"]) == (0, 0)


def test_a_limit_that_cannot_be_read_for_once_is_not_forgotten(unraisable):
    machine = Machine(base=600 * MB)

    class Moody(Cache):
        moody = False

        @property
        def memory_limit(self):
            if self.moody:
                raise MemoryError
            return self.limit_

        @memory_limit.setter
        def memory_limit(self, limit):
            self.limit_ = limit

    cache = Moody(machine, 100 * MB, 700 * MB)
    made = machine.governor(cache)
    made.check()
    lowered = cache.memory_limit
    assert lowered < 700 * MB
    cache.moody = True
    machine.now += 1
    made.check()
    made.stop()
    cache.moody = False
    assert cache.memory_limit == lowered
    made.stop()
    assert cache.memory_limit == 700 * MB
    assert [type(error) for error in unraisable] == [MemoryError]


def test_a_callback_that_cannot_be_cancelled_keeps_no_other_from_it(unraisable):
    class Stubborn(Monitor):
        def on_pressure(self, level, callback):
            cancel = super().on_pressure(level, callback)

            def refuse():
                cancel()
                raise ZeroDivisionError

            return refuse if level == "normal" else cancel

    machine, monitor = Machine(), Stubborn()
    part = Part(machine)
    with machine.governor(part, monitor=monitor):
        assert monitor.stats["running"]
    assert monitor.callbacks == []
    assert not monitor.stats["running"]
    assert [type(error) for error in unraisable] == [ZeroDivisionError]


def test_a_getter_that_raises_exists():
    class Late:
        """Can't say yet what it holds; `__getattr__` provides some of its names."""

        @property
        def nbytes(self):
            raise ZeroDivisionError

        def __getattr__(self, name):
            if name == "trim":
                return lambda nbytes: 0
            raise AttributeError(name)

    late = Late()
    assert Machine().governor().register(late) is late


COMPONENT = """
from typing import Any

from synthex_fast import (
    AdaptiveMemoryMonitor, GCTuner, MemoryGovernor, ObjectPool, ResponseBuffer, ResponseCollector, TTLDict
)
from synthex_fast.governor import Component, Expirable, IdlePool, Limited, MemorySample, Pausable, PressureSource


class Images:
    @property
    def nbytes(self) -> int:
        return 0

    def trim(self, nbytes: int) -> int:
        return nbytes


class NotOne:
    nbytes = 0


images: Component = Images()
cache: TTLDict[str, int] = TTLDict()
pool: ObjectPool[list[Any]] = ObjectPool(list)
buffer = ResponseBuffer()
monitor = AdaptiveMemoryMonitor()
collector = ResponseCollector(images)
components: list[Component] = [images, cache, pool, buffer, collector]
expirables: list[Expirable] = [cache, collector]
limited: list[Limited] = [cache, collector]
pausable: list[Pausable] = [buffer]
idle: IdlePool = pool
source: PressureSource = monitor
sample: MemorySample = monitor.sample()
governor = MemoryGovernor(monitor=monitor, pause=0.5)
governor.register(images)
same: TTLDict[str, int] = governor.register(cache)
governor.register(monitor)
governor.register(GCTuner())
governor.register(NotOne())  # refused
"""


@pytest.mark.slow
def test_type_checkers_know_what_a_component_is(tmp_path):
    pytest.importorskip("mypy")
    path = tmp_path / "service.py"
    path.write_text(COMPONENT)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )
    errors = [line for line in checked.stdout.splitlines() if " error: " in line]
    refused = COMPONENT.splitlines().index("governor.register(NotOne())  # refused") + 1
    assert len(errors) == 1, checked.stdout + checked.stderr
    assert errors[0].startswith(f"service.py:{refused}: "), checked.stdout


def test_what_cannot_be_referred_to_weakly_is_refused():
    class Slotted:
        __slots__ = ()
        nbytes = 0

        def trim(self, nbytes):
            return 0

    with pytest.raises(ArgumentTypeError, match="obj must be an object that can be weakly referenced"):
        Machine().governor().register(Slotted())


@pytest.mark.parametrize("weight", [-1, -0.001, math.nan, math.inf, -math.inf, 10**400])
def test_a_weight_out_of_range_is_refused(weight):
    made = Machine().governor()
    cache = TTLDict()
    made.register(cache, 3)
    with pytest.raises(ArgumentValueError, match="weight must be"):
        made.register(cache, weight)
    assert made.stats["components"]["TTLDict"]["weight"] == 3


@pytest.mark.parametrize("weight", [None, "1", True, 1j])
def test_a_weight_of_another_type_is_refused(weight):
    with pytest.raises(ArgumentTypeError, match="weight must be"):
        Machine().governor().register(TTLDict(), weight)


def test_registering_again_changes_the_weight():
    machine = Machine()
    cache = Cache(machine)
    made = machine.governor(cache)
    made.register(cache, 2.5)
    assert made.stats["components"]["Cache"]["weight"] == 2.5
    assert len(made.stats["components"]) == 1


def test_unregistering_gives_back_what_was_taken():
    machine = Machine(base=500 * MB)
    cache, other = Cache(machine, memory_limit=2000 * MB), Cache(machine)
    made = machine.governor(cache, other)
    made.check()
    assert cache.memory_limit < 300 * MB
    assert made.unregister(cache) is True
    assert made.unregister(cache) is False
    assert made.unregister(object()) is False
    assert cache.memory_limit == 2000 * MB
    assert list(made.stats["components"]) == ["Cache-2"]


# Levels -----------------------------------------------------------------------------------------------------


def test_levels_and_hysteresis():
    machine = Machine()
    made = machine.governor()
    expected = [
        (0.0, "normal"),
        (0.699, "normal"),
        (0.70, "warning"),
        (0.68, "warning"),
        (0.669, "normal"),
        (0.80, "high"),
        (0.775, "high"),
        (0.769, "warning"),
        (0.90, "critical"),
        (0.875, "critical"),
        (0.869, "high"),
        (0.95, "emergency"),
        (0.925, "emergency"),
        (0.919, "critical"),
        (1.5, "emergency"),
        (0.1, "normal"),
    ]
    for share, level in expected:
        machine.base = int(share * LIMIT) + 1
        assert (made.check(), made.level) == (level, level), share


def test_a_limit_of_ones_own_inside_of_a_container():
    machine = Machine(container=1000 * MB)
    made = machine.governor(limit="300MB")
    machine.base = 250 * MB
    assert made.check() == "high"
    machine.base = 100 * MB
    assert made.check() == "normal"
    # The neighbours in the container count against the container's limit.
    machine.idle_files = 0
    machine.charge = lambda: 910 * MB
    assert made.check() == "critical"


def test_files_that_the_kernel_takes_back_do_not_count():
    machine = Machine(base=100 * MB)
    made = machine.governor()
    machine.idle_files = 880 * MB
    assert made.check() == "normal"


# Normal: nothing, or limits within the headroom -------------------------------------------------------------


def test_where_everything_fits_nothing_is_touched():
    machine = Machine(base=100 * MB)
    parts = [Cache(machine, 10 * MB, memory_limit=100 * MB), Pool(machine, 5 * MB), Part(machine, 7 * MB)]
    made = machine.governor(*parts, ResponseBuffer())
    assert made.check() == "normal"
    assert [part.calls for part in parts] == [[], [], []]
    assert made.stats["actions"] == {}
    assert made.stats["looks"] == 1
    assert made.stats["cpu_seconds"] >= 0


def test_without_a_limit_from_anybody_no_limit_is_touched():
    machine = Machine(base=100 * MB, container=None)
    cache, unlimited = Cache(machine, memory_limit=10**12), Cache(machine)
    made = machine.governor(cache, unlimited)
    assert made.check() == "normal"
    assert cache.calls == unlimited.calls == []
    assert "all of the machine's memory" in made.stats["note"]
    assert Machine().governor(cache).stats["note"] is None


def test_caches_too_large_for_the_limit_cannot_outgrow_it_between_two_looks():
    machine = Machine(base=200 * MB, overhead=1.2)
    caches = [Cache(machine, memory_limit=1000 * MB), Cache(machine), Cache(machine, memory_limit=50 * MB)]
    made = machine.governor(*caches)
    assert made.check() == "normal"
    assert caches[2].memory_limit == 50 * MB
    for cache in caches:
        assert cache.memory_limit > 40 * MB
        # However fast.
        for _ in range(1000):
            cache.add(10 * MB)
            assert machine.rss() <= 0.80 * LIMIT
    shown = made.stats["components"]
    assert (shown["Cache"]["own_limit"], shown["Cache-2"]["own_limit"]) == (1000 * MB, None)
    assert shown["Cache"]["memory_limit"] == caches[0].memory_limit


def test_who_needs_more_gets_what_others_leave():
    machine = Machine(base=100 * MB)
    busy, quiet = Cache(machine, memory_limit=2000 * MB), Cache(machine, memory_limit=2000 * MB)
    made = machine.governor(busy, quiet)
    for _ in range(3000):
        busy.add(1 * MB)
        machine.now += 0.05
        made.check()
    assert busy.memory_limit > 600 * MB
    assert machine.rss() <= 0.80 * LIMIT


# Warning: what costs nobody anything ------------------------------------------------------------------------


def test_at_warning_what_is_due_expires_and_pools_are_trimmed():
    machine = Machine(base=600 * MB)
    cache, pool, small = Cache(machine, 60 * MB, 80 * MB), Pool(machine, 60 * MB), Pool(machine, 20 * MB)
    other = Part(machine, 10 * MB)
    cache.due = 10 * MB
    made = machine.governor(cache, pool, small, other)
    assert made.check() == "normal"
    assert cache.calls == [("expire", 10 * MB)]
    # 740 of 1,000 MB were left: back to where warning ends, no further, in proportion to size.
    assert machine.rss() == pytest.approx(670 * MB, abs=100)
    assert pool.held / small.held == pytest.approx(3, rel=0.01)
    assert other.calls == []
    assert made.stats["actions"]["trim_pools"]["freed"] == pytest.approx(70 * MB, abs=100)
    assert "of 1,048,576,000 bytes in use" in made.stats["actions"]["trim_pools"]["why"]


def test_at_warning_no_cache_is_cut_below_what_it_holds():
    machine = Machine(base=400 * MB)
    cache = Cache(machine, 395 * MB, memory_limit=600 * MB)
    made = machine.governor(cache)
    assert made.check() == "warning"
    assert cache.held == 395 * MB <= cache.memory_limit < 400 * MB


# High: eviction ---------------------------------------------------------------------------------------------


def test_eviction_is_in_proportion_to_weight_and_size():
    machine = Machine(base=400 * MB)
    light, heavy, large = Cache(machine, 100 * MB), Cache(machine, 100 * MB), Part(machine, 200 * MB)
    counted = Cache(machine, 50 * MB)
    made = machine.governor()
    for part, weight in ((light, 1), (heavy, 2), (large, 1.0), (counted, 0)):
        made.register(part, weight)
    assert machine.rss() == 850 * MB
    made.check()
    freed = [100 * MB - light.held, 100 * MB - heavy.held, 200 * MB - large.held]
    assert freed[1] == pytest.approx(2 * freed[0], rel=0.01)
    assert freed[2] == pytest.approx(2 * freed[0], rel=0.01)
    assert counted.calls in ([], [("expire", 0)])
    # By what memory is over, and the ratio assumed before one is known.
    assert sum(freed) == pytest.approx(75 * MB / policy.OVERHEAD, rel=0.01)


@pytest.mark.parametrize("overhead", [1.0, 1.25, 2.0])
def test_eviction_ends_near_what_is_aimed_at(overhead):
    machine = Machine(base=300 * MB, overhead=overhead)
    caches = [Cache(machine, int(300 * MB / overhead)), Cache(machine, int(260 * MB / overhead))]
    made = machine.governor(*caches)
    for _ in range(20):
        made.check()
        machine.now += 1.0
    assert 0.70 * LIMIT <= machine.rss() <= 0.80 * LIMIT


def test_a_cache_does_not_refill():
    machine = Machine(base=300 * MB)
    cache = Cache(machine, 600 * MB, memory_limit=2000 * MB)
    made = machine.governor(cache)
    made.check()
    for _ in range(1000):
        cache.add(5 * MB)
        assert machine.rss() <= 0.85 * LIMIT


def test_memory_that_stays_after_an_eviction_is_not_answered_by_another():
    machine = Machine(base=300 * MB)
    machine.sticky = True
    cache = Cache(machine, 550 * MB)
    made = machine.governor(cache)
    assert made.check() == "high"
    held = cache.held
    assert held < 500 * MB
    for _ in range(200):
        machine.now += 1.0
        assert made.check() == "high"
    assert cache.held == held
    # Now it is used up: by something else, so that caches have to give way again.
    machine.base += 160 * MB
    made.check()
    assert cache.held < held - 50 * MB


def test_while_memory_stays_critical_more_is_freed_little_by_little():
    machine = Machine(base=500 * MB)
    machine.sticky = True
    cache, tuner = Cache(machine, 420 * MB), Tuner(machine)
    made = machine.governor(cache, tuner)
    assert made.check() == "critical"
    held = [cache.held]
    for _ in range(500):
        machine.now += 0.02
        assert made.check() == "critical"
        held.append(cache.held)
    # Ten seconds: ten times 2 % of the limit, and not all at once.
    assert 100 * MB < held[0] - held[-1] <= 10 * 0.02 * LIMIT
    assert max(before - after for before, after in itertools.pairwise(held)) <= 0.02 * LIMIT


def test_ordinary_values_fit_at_any_level():
    machine = Machine(base=990 * MB)
    caches = [Cache(machine, 1 * MB, 500 * MB) for _ in range(4)]
    made = machine.governor(*caches)
    for _ in range(20):
        made.check()
        machine.now += 1.0
    assert all(10 * MB < cache.memory_limit < 20 * MB for cache in caches)


def test_a_smaller_limit_of_ones_own_is_never_raised():
    machine = Machine(base=850 * MB)
    cache = Cache(machine, 1000, memory_limit=2000)
    made = machine.governor(cache)
    made.check()
    assert cache.memory_limit <= 2000


# Recovery ---------------------------------------------------------------------------------------------------


def pressed(machine, *caches):
    made = machine.governor(*caches)
    base, machine.base = machine.base, int(0.85 * LIMIT)
    made.check()
    machine.base = base
    return made


def test_limits_grow_back_slowly_to_exactly_what_they_were():
    machine = Machine(base=100 * MB)
    cache, unlimited = Cache(machine, memory_limit=200 * MB + 7), Cache(machine)
    made = pressed(machine, cache, unlimited)
    assert cache.memory_limit < 50 * MB
    seen = [cache.memory_limit]
    for _ in range(40):
        machine.now += 5.0
        made.check()
        seen.append(cache.memory_limit)
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert all(0 <= step <= 21 * MB for step in steps)
    assert sum(step > 19 * MB for step in steps) >= 5
    assert seen[-1] == 200 * MB + 7
    assert made.stats["components"]["Cache"]["own_limit"] == 200 * MB + 7
    # The one without a limit has what there is, and without a container its None.
    assert unlimited.memory_limit > 300 * MB
    made.stop()
    assert unlimited.memory_limit is None


def test_limits_grow_back_however_often_memory_is_read():
    machine = Machine(base=100 * MB)
    cache, unlimited = Cache(machine, memory_limit=200 * MB), Cache(machine)
    made = pressed(machine, cache, unlimited)
    before = cache.memory_limit
    for _ in range(1000):
        # Less than what is worth a change each time.
        machine.now += 0.05
        made.check()
    assert before + 60 * MB < cache.memory_limit <= 200 * MB


def test_a_limit_changed_meanwhile_is_what_it_goes_back_to():
    machine = Machine(base=100 * MB)
    lowered, raised = Cache(machine, memory_limit=300 * MB), Cache(machine, memory_limit=100 * MB)
    made = pressed(machine, lowered, raised)
    lowered.memory_limit = 1 * MB
    raised.memory_limit = 200 * MB
    for _ in range(40):
        machine.now += 5.0
        made.check()
        assert lowered.memory_limit <= 1 * MB
        assert raised.memory_limit <= 200 * MB
    assert (lowered.memory_limit, raised.memory_limit) == (1 * MB, 200 * MB)


def test_stopping_gives_back_limits_and_resumes():
    machine = Machine(base=960 * MB)
    cache, buffer = Cache(machine, memory_limit=700 * MB), ResponseBuffer()
    made = machine.governor(cache, buffer)
    made.check()
    assert buffer.paused and cache.memory_limit < 100 * MB
    made.stop()
    made.stop()
    assert not buffer.paused and cache.memory_limit == 700 * MB
    assert made.level == "normal"


def squeezed(base, *caches):
    """A governor of these caches in a container of 1,000 MB, of which others hold `base` MB; it has looked once."""
    machine = Machine(base=base * MB)
    machine.parts.append(type("Held", (), {"held": property(lambda self: sum(c.nbytes for c in caches))})())
    made = machine.governor(*caches)
    made.check()
    return machine, made


@pytest.mark.parametrize("base", [760, 960])
def test_shortage_is_no_error_and_no_setting_of_the_caches_own(base):
    gone = []
    cache = TTLDict(
        memory_limit=200 * MB, on_evict=lambda key, value, why: gone.append((key, len(value), why))
    )
    _, made = squeezed(base, cache)
    capped = cache.memory_cap
    assert (cache.memory_limit, capped < 64 * MB) == (200 * MB, True)
    big = bytes(capped + 100)
    cache["big"] = big
    assert cache.get_or_set("big", lambda: big) is big
    assert cache.setdefault("big", big) is big
    cache.update(big=big)
    assert (len(cache), cache.stats["over_cap"]) == (0, 4)
    assert gone == [("big", len(big), "memory")] * 4
    shown = made.stats["components"]["TTLDict"]
    assert (shown["memory_limit"], shown["own_limit"], shown["memory_cap"]) == (capped, 200 * MB, capped)
    with pytest.raises(ValueTooLargeError, match=str(200 * MB)):
        cache["huge"] = bytes(201 * MB)
    twin = cache.copy()
    assert (twin.memory_limit, twin.memory_cap) == (200 * MB, None)
    twin["big"] = big
    assert "big" in twin
    made.stop()
    assert (cache.memory_limit, cache.memory_cap) == (200 * MB, None)
    shown = made.stats["components"]["TTLDict"]
    assert (shown["memory_limit"], shown["own_limit"], shown["memory_cap"]) == (200 * MB, 200 * MB, None)
    cache["big"] = big
    assert "big" in cache


def test_unregistering_lifts_the_cap():
    cache, unlimited = TTLDict(memory_limit=900 * MB), TTLDict()
    _, made = squeezed(500, cache, unlimited)
    assert cache.memory_cap and unlimited.memory_cap
    made.unregister(cache)
    assert (cache.memory_limit, cache.memory_cap) == (900 * MB, None)
    made.stop()
    assert (unlimited.memory_limit, unlimited.memory_cap) == (None, None)


def test_a_collector_is_capped_too():
    collector = ResponseCollector(memory_limit=500 * MB)
    _, made = squeezed(700, collector)
    assert collector.memory_limit == 500 * MB
    assert collector.memory_cap < 100 * MB
    shown = made.stats["components"]["ResponseCollector"]
    assert (shown["own_limit"], shown["memory_cap"]) == (500 * MB, collector.memory_cap)
    made.stop()
    assert (collector.memory_limit, collector.memory_cap) == (500 * MB, None)


def test_a_limit_changed_between_reading_and_setting_is_not_overwritten():
    class Meddled(TTLDict):
        then = None

        def cap(self, nbytes):
            # As another thread would, after the governor has read the limits.
            if self.then is not None:
                self.resize(memory_limit=self.then)
            super().cap(nbytes)

    cache = Meddled(memory_limit=900 * MB)
    machine, made = squeezed(500, cache)
    for limit in (600 * MB, 300 * MB, 800 * MB):
        cache.then = limit
        # The cap falls, and grows back from there.
        for base in (900, 300, 300, 300):
            machine.base = base * MB
            machine.now += 60.0
            made.check()
        assert cache.memory_limit == limit
    cache.then = None
    machine.now += 5.0
    made.check()
    assert made.stats["components"]["Meddled"]["own_limit"] == 800 * MB
    cache.then = 70 * MB
    made.stop()
    assert (cache.memory_limit, cache.memory_cap) == (70 * MB, None)


def test_a_subclass_that_overrides_resize_is_governed():
    class Fixed(TTLDict):
        def resize(self, *arguments, **limits):
            raise ZeroDivisionError

    cache = Fixed(memory_limit=900 * MB)
    _, made = squeezed(500, cache)
    assert cache.memory_cap < 400 * MB
    assert made.stats["components"]["Fixed"]["errors"] == 0
    made.stop()
    assert (cache.memory_limit, cache.memory_cap) == (900 * MB, None)


def test_caps_grow_back_slowly_until_there_is_none():
    machine = Machine(base=100 * MB)
    cache, unlimited = CappedCache(machine, memory_limit=200 * MB + 7), CappedCache(machine)
    made = pressed(machine, cache, unlimited)
    assert cache.memory_cap < 50 * MB
    seen = [cache.memory_cap]
    for _ in range(40):
        machine.now += 5.0
        made.check()
        seen.append(cache.limit)
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert all(0 <= step <= 21 * MB for step in steps)
    assert sum(step > 19 * MB for step in steps) >= 5
    assert (cache.memory_limit, cache.memory_cap) == (200 * MB + 7, None)
    assert unlimited.memory_cap > 300 * MB
    assert ("resize" in str(cache.calls), unlimited.memory_limit) == (False, None)
    made.stop()
    assert unlimited.memory_cap is None


def test_of_two_governors_the_one_that_allows_less_prevails():
    machine = Machine(base=100 * MB)
    cache = CappedCache(machine, memory_limit=900 * MB)
    strict, lenient = machine.governor(cache, limit="50%"), machine.governor(cache, limit="90%")
    for _ in range(3):
        machine.now += 5.0
        strict.check()
        lenient.check()
        assert cache.memory_cap < 310 * MB
    assert lenient.stats["components"]["CappedCache"]["own_limit"] == 900 * MB
    # It lifts no cap that it has not set.
    lenient.stop()
    assert cache.memory_cap < 310 * MB
    lenient.check()
    strict.stop()
    assert cache.memory_cap is None
    lenient.check()
    assert 310 * MB < cache.memory_cap < 900 * MB
    # And replaces one set by hand only by a lower one.
    cache.cap(5 * MB)
    lenient.stop()
    assert cache.memory_cap == 5 * MB
    lenient.check()
    lenient.stop()
    assert (cache.memory_limit, cache.memory_cap) == (900 * MB, 5 * MB)


def test_a_cap_that_cannot_be_lifted_is_lifted_later(unraisable):
    machine = Machine(base=960 * MB)
    failing = [True]

    class Bad(CappedCache):
        def cap(self, nbytes):
            if failing and nbytes is None:
                raise MemoryError
            super().cap(nbytes)

    cache = Bad(machine, memory_limit=700 * MB)
    made = machine.governor(cache)
    made.check()
    made.stop()
    assert cache.memory_cap < 700 * MB
    assert [type(error) for error in unraisable] == [MemoryError]
    failing.clear()
    made.stop()
    assert cache.memory_cap is None


def test_what_could_not_be_given_back_is_given_back_later(unraisable):
    machine = Machine(base=960 * MB)
    failing = [True]

    class Bad(Cache):
        paused = False

        def pause(self, wait):
            self.paused = True

        def resume(self):
            if failing:
                raise MemoryError
            self.paused = False

        def resize(self, *, memory_limit):
            if failing and memory_limit == 700 * MB:
                raise MemoryError
            super().resize(memory_limit=memory_limit)

    cache = Bad(machine, memory_limit=700 * MB)
    made = machine.governor(cache)
    made.check()
    assert cache.paused
    machine.base = 10 * MB
    made.check()
    assert cache.paused
    made.stop()
    assert cache.paused and cache.memory_limit < 700 * MB
    assert made.stats["components"]["Bad"]["own_limit"] == 700 * MB
    failing.clear()
    made.check()
    assert not cache.paused
    made.stop()
    assert cache.memory_limit == 700 * MB


def test_two_parts_given_the_same_name_are_both_shown():
    machine = Machine()
    first, second = Part(machine, 10), Part(machine, 20)
    made = machine.governor()
    made.register(first, name="answers")
    made.register(second, name="answers")
    sizes = {name: part["nbytes"] for name, part in made.stats["components"].items()}
    assert sizes == {"answers": 10, "answers-2": 20}
    made.register(first, name="answers")
    made.register(second, name="answers")
    assert list(made.stats["components"]) == ["answers", "answers-2"]


def test_a_monitor_that_could_not_be_started_is_started_by_the_next_registration():
    machine = Machine()

    class Failing(Monitor):
        failures = 1

        def start(self):
            if self.failures:
                self.failures -= 1
                raise RuntimeError("can't start new thread")
            super().start()

    monitor, part = Failing(), Part(machine)
    with machine.governor(monitor=monitor) as made:
        with pytest.raises(RuntimeError):
            made.register(part)
        assert not monitor.callbacks
        made.register(part)
        assert monitor.stats["running"]


def test_a_monitor_that_is_unregistered_is_left_alone():
    machine = Machine()
    monitor, part = Monitor(), Part(machine)
    with machine.governor(part) as made:
        own = made._subscription.source
        made.register(monitor)
        assert monitor.stats["running"] and not own.stats["running"]
        made.unregister(monitor)
        assert not monitor.stats["running"] and not monitor.callbacks
        assert made._subscription.source is not monitor and made._subscription.source.stats["running"]


class Failing(Part):
    """Memory can't be read once it has been trimmed."""

    def __init__(self, machine, held, then=lambda: None, error=OSError):
        super().__init__(machine, held)
        self.machine, self.then, self.error = machine, then, error
        self.failed = False

    def trim(self, nbytes):
        def fail():
            self.failed = True
            del self.machine.rss
            raise self.error

        self.then()
        self.machine.rss = fail
        return 0


def test_a_stop_in_the_middle_of_a_look_that_fails_gives_all_back():
    machine = Machine(base=960 * MB)
    cache, buffer = Cache(machine, memory_limit=700 * MB), ResponseBuffer()
    made = machine.governor(cache, buffer)
    made.check()
    assert buffer.paused and cache.memory_limit < 100 * MB
    failing = Failing(machine, 10 * MB, made.stop)
    made.register(failing)
    machine.base = 990 * MB
    with pytest.raises(OSError):
        made.check()
    assert failing.failed
    assert not buffer.paused and cache.memory_limit == 700 * MB


@pytest.mark.parametrize("error", [MemoryError, SystemExit])
@pytest.mark.parametrize("own", [False, True])
def test_after_a_look_that_fails_there_is_another(monkeypatch, unraisable, error, own):
    monkeypatch.setattr(policy, "IDLE_SECONDS", (5.0, 0.05, 0.05, 0.05, 0.05))
    machine = Machine(base=100 * MB)
    machine.clock = time.monotonic
    buffer, failing = ResponseBuffer(), Failing(machine, 10 * MB, error=error)
    with machine.governor(buffer, failing, monitor=Monitor()) as made:
        wait_for(lambda: made._worker.due == math.inf and made._worker.looks and made._worker.actor is None)
        machine.base = 990 * MB
        if own:
            made._worker.plan(0.0)
        else:
            with pytest.raises(error):
                made.check()
        wait_for(lambda: failing.failed)
        failing.trim = lambda nbytes: 0
        machine.base = 10 * MB
        wait_for(lambda: not buffer.paused and made.level == "normal")


def test_stopping_leaves_a_limit_set_by_others():
    machine = Machine(base=960 * MB)
    cache = Cache(machine, memory_limit=700 * MB)
    made = machine.governor(cache)
    made.check()
    cache.memory_limit = 5
    made.stop()
    assert cache.memory_limit == 5


# Critical: a collection, and memory handed back -------------------------------------------------------------


def collections(machine, monkeypatch, seconds=0.0, garbage=0):
    """What would be collections of this process: a list of their times."""
    times = []

    def collect(generation=2):
        times.append(machine.now)
        machine.now += seconds
        machine.base -= min(garbage, machine.base)
        return 0

    monkeypatch.setattr(gc, "collect", collect)
    return times


def test_at_critical_there_is_one_full_collection(monkeypatch):
    machine = Machine(base=890 * MB)
    made = machine.governor(Part(machine))
    times = collections(machine, monkeypatch, garbage=200 * MB)
    assert made.check() == "high"
    assert times == []
    machine.base = 910 * MB
    assert made.check() == "warning"
    assert len(times) == 1
    assert made.stats["actions"]["collect"]["returned"] == 200 * MB
    made.check()
    assert len(times) == 1


def test_the_tuner_collects_where_there_is_one(monkeypatch):
    machine = Machine(base=910 * MB)
    tuner = Tuner(machine, garbage=300 * MB)
    times = collections(machine, monkeypatch)
    made = machine.governor(tuner)
    assert made.check() == "normal"
    assert (len(tuner.calls), times) == (1, [])


@pytest.mark.parametrize("seconds", [0.0, 0.5, 4.0])
def test_collections_take_half_of_the_time_at_most(monkeypatch, seconds):
    machine = Machine(base=920 * MB)
    made = machine.governor(Part(machine))
    times = collections(machine, monkeypatch, seconds)
    for _ in range(4000):
        made.check()
        machine.now += 0.02
    taken = len(times) * seconds
    assert len(times) >= 2
    assert taken <= 0.5 * (machine.now - 1000) + seconds
    # They freed nothing: they become seldom.
    assert times[-1] - times[-2] > 8 * max(times[1] - times[0], 1.0) - 10 * seconds or len(times) < 10


def test_eviction_may_make_a_collection_needless(monkeypatch):
    machine = Machine(base=500 * MB)
    cache = Cache(machine, 410 * MB)
    times = collections(machine, monkeypatch)
    made = machine.governor(cache)
    assert made.check() in ("warning", "high")
    assert times == []


def test_memory_is_handed_back_after_an_eviction(monkeypatch):
    machine = Machine(base=300 * MB)
    machine.sticky = True
    cache = Cache(machine, 550 * MB)

    def trim(pad):
        calls.append(machine.now)
        machine.most = 0
        return 1

    calls = []
    monkeypatch.setattr(_pressure, "_trim", trim)
    made = machine.governor(cache)
    assert made.check() == "high"
    assert len(calls) == 1
    assert made.stats["actions"]["malloc_trim"]["returned"] > 50 * MB
    assert made.check() in ("warning", "high")
    for _ in range(100):
        machine.now += 1.0
        made.check()
    # Nothing has been freed since.
    assert len(calls) == 1


def test_malloc_trim_is_looked_for_only_where_it_can_be(monkeypatch):
    for platform in ("win32", "darwin"):
        monkeypatch.setattr(_pressure, "_sought", False)
        monkeypatch.setattr(sys, "platform", platform)
        assert not _pressure.find_malloc_trim()
        assert not _pressure.malloc_trim()
    monkeypatch.undo()
    monkeypatch.setattr(_pressure, "_sought", False)
    assert _pressure.find_malloc_trim() == _pressure.malloc_trim()


def test_malloc_trim_is_looked_for_again_after_allocation_failed(monkeypatch):
    def fail(name):
        raise MemoryError

    monkeypatch.setattr(_pressure, "_sought", False)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "linux")
        patch.setattr(ctypes, "CDLL", fail)
        with pytest.raises(MemoryError):
            _pressure.find_malloc_trim()
    found = _pressure.find_malloc_trim()
    monkeypatch.setattr(_pressure, "_sought", False)
    assert found == _pressure.find_malloc_trim()


# Emergency --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", ["wait", "fail", True, False, 0.01, lambda: False, lambda: True])
def test_at_emergency_buffers_are_paused_and_resumed_first(pause):
    machine = Machine(base=500 * MB)
    cache, buffer = Cache(machine, memory_limit=700 * MB), ResponseBuffer()
    made = machine.governor(cache, buffer, pause=pause)
    assert made.check() == "normal"
    machine.base = 960 * MB
    assert made.check() == "emergency"
    assert buffer.paused
    assert made.stats["components"]["ResponseBuffer"]["paused"]
    outcome = []

    def add():
        try:
            outcome.append(buffer.add(PooledExpertResponse("q", "e")))
        except BufferPausedError as error:
            outcome.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    if pause in ("fail", False, 0.01) or (callable(pause) and not pause()):
        thread.join(30)
        assert isinstance(outcome[0], BufferPausedError)
    else:
        wait_for(lambda: buffer.stats["waited"])
    machine.base = 930 * MB
    assert made.check() == "emergency"
    assert buffer.paused
    limit = cache.memory_limit
    machine.base = 910 * MB
    assert made.check() == "critical"
    assert not buffer.paused
    assert cache.memory_limit <= limit
    thread.join(30)
    assert len(outcome) == 1


def test_on_emergency_is_called_once_for_each():
    machine = Machine()
    calls = []
    made = machine.governor(on_emergency=lambda governor: calls.append((governor, governor.level)))
    for share in (0.96, 0.97, 0.94, 0.96, 0.5, 0.7, 0.99, 0.99):
        machine.base = int(share * LIMIT)
        made.check()
        machine.now += 1.0
    assert calls == [(made, "emergency")] * 2
    assert made.stats["actions"]["emergency"]["count"] == 2


def test_what_on_emergency_raises_is_reported(unraisable):
    def fail(governor):
        raise ZeroDivisionError

    machine = Machine(base=990 * MB)
    buffer = ResponseBuffer()
    made = machine.governor(buffer, on_emergency=fail)
    assert made.check() == "emergency"
    assert [type(error) for error in unraisable] == [ZeroDivisionError]
    assert buffer.paused
    made.stop()


def test_on_emergency_may_use_the_governor():
    machine = Machine(base=990 * MB)

    def act(governor):
        machine.base = 100 * MB
        seen.append(governor.check())
        governor.register(late)
        governor.unregister(buffer)
        governor.stop()

    seen = []
    buffer, late = ResponseBuffer(), Cache(machine)
    made = machine.governor(buffer, on_emergency=act)
    made.check()
    assert seen == ["normal"]
    assert not buffer.paused


def test_a_buffer_that_somebody_else_paused_is_theirs_to_resume():
    machine = Machine(base=990 * MB)
    buffer = ResponseBuffer()
    buffer.pause(wait=False)
    made = machine.governor(buffer)
    made.check()
    machine.base = 0
    assert made.check() == "normal"
    assert buffer.paused
    made.stop()
    assert buffer.paused


def test_a_callback_run_by_the_governor_does_not_wait_for_the_governor(unraisable):
    machine = Machine(base=990 * MB)
    buffer = ResponseBuffer()
    refused = []

    def evicted(key, value, reason):
        try:
            buffer.add(PooledExpertResponse("q", "e"))
        except BufferPausedError:
            refused.append(key)

    cache = TTLDict(on_evict=evicted)
    cache["a"] = bytes(10 * MB)
    machine.parts.append(type("Held", (), {"held": property(lambda self: cache.nbytes)})())
    made = machine.governor(buffer, cache, on_emergency=lambda governor: evicted("own", None, None))
    made.check()
    assert refused == ["a", "own"]
    assert unraisable == []
    made.stop()


# Parts that misbehave ---------------------------------------------------------------------------------------


class Broken(Cache):
    """Fails wherever it is told to."""

    def __init__(self, machine, *fails, held=100 * MB, error=ZeroDivisionError):
        super().__init__(machine, held, memory_limit=None)
        self.fails, self.error = fails, error

    def __getattribute__(self, name):
        if name != "fails" and name in (object.__getattribute__(self, "__dict__").get("fails") or ()):
            raise self.error
        return super().__getattribute__(name)


@pytest.mark.parametrize("name", ["nbytes", "trim", "expire", "resize", "memory_limit"])
def test_a_part_that_raises_does_not_stop_the_others(name, unraisable):
    machine = Machine(base=900 * MB)
    good = Cache(machine, 20 * MB)
    broken = Broken(machine)
    machine.parts.remove(broken)
    made = machine.governor(broken, good)
    broken.fails = (name,)
    for _ in range(50):
        made.check()
        machine.now += 1.0
    assert good.held < 1 * MB
    if name != "memory_limit":
        # Counted each time, told once.
        assert made.stats["components"]["Broken"]["errors"] > 1
        assert [type(error) for error in unraisable] == [ZeroDivisionError]


@pytest.mark.parametrize("size", [math.nan, -5, "many", None, True, 10**30, 1.5])
def test_a_size_that_is_none(size, unraisable):
    machine = Machine(base=500 * MB)
    good, odd = Cache(machine, 350 * MB), Part(machine)
    made = machine.governor(good, odd)
    odd.__class__ = type("Odd", (Part,), {"nbytes": size})
    for _ in range(5):
        made.check()
        machine.now += 1.0
    assert made.stats
    assert machine.rss() >= 0.7 * LIMIT
    if size != 10**30:
        assert machine.rss() <= 0.8 * LIMIT


@pytest.mark.parametrize("answer", [None, "much", -7, True, math.nan, 10**30])
def test_an_answer_that_is_no_count(answer, unraisable):
    machine = Machine(base=850 * MB)
    odd = Part(machine, 10 * MB)
    made = machine.governor(odd)
    odd.trim = lambda nbytes: answer
    made.check()
    freed = made.stats["components"]["Part"]["freed"]
    assert freed == (answer if answer == 10**30 else 0)
    assert unraisable == []


def test_a_part_may_unregister_itself_and_others_as_it_is_used():
    machine = Machine(base=500 * MB)

    class Leaves(Cache):
        def trim(self, nbytes):
            made.unregister(self)
            made.unregister(other)
            made.register(late)
            return super().trim(nbytes)

    leaves, other, late = Leaves(machine, 200 * MB), Cache(machine, 200 * MB, 500 * MB), Cache(machine)
    made = machine.governor(leaves, other)
    made.check()
    assert list(made.stats["components"]) == ["Cache"]
    assert (leaves.memory_limit, other.memory_limit) == (None, 500 * MB)


def test_a_part_may_unregister_itself_while_its_limit_is_set():
    machine = Machine(base=500 * MB)

    class Leaves(Cache):
        def resize(self, *, memory_limit):
            super().resize(memory_limit=memory_limit)
            made.unregister(self)

    leaves = Leaves(machine, 100 * MB, 900 * MB)
    made = machine.governor(leaves)
    made.check()
    assert leaves.memory_limit == 900 * MB


def test_a_part_may_die_as_it_is_used():
    machine = Machine(base=850 * MB)
    held = {}

    class Dies(Part):
        def trim(self, nbytes):
            held.clear()
            gc.collect()
            return super().trim(nbytes)

    held["part"], held["other"] = Dies(machine, 10 * MB), Part(machine, 10 * MB)
    machine.parts.clear()
    made = machine.governor(held["part"], held["other"])
    gone = weakref.ref(held["part"])
    made.check()
    gc.collect()
    assert gone() is None
    assert made.stats["components"] == {}


def test_a_part_that_looks_itself_finds_a_look_under_way():
    machine = Machine(base=850 * MB)
    levels = []

    class Looks(Part):
        def trim(self, nbytes):
            levels.append(made.check())
            return super().trim(nbytes)

    looks = Looks(machine, 100 * MB)
    made = machine.governor(looks)
    made.check()
    assert levels == ["emergency"]


def test_what_ends_the_program_passes_and_leaves_the_governor_in_order():
    machine = Machine(base=850 * MB)
    part = Part(machine, 100 * MB)
    made = machine.governor(part)

    def interrupt(nbytes):
        raise KeyboardInterrupt

    part.trim = interrupt
    with pytest.raises(KeyboardInterrupt):
        made.check()
    del part.trim
    made.check()
    assert part.held < 100 * MB


def test_readings_that_fail_are_tried_again(unraisable):
    machine = Machine(base=850 * MB)
    part = Part(machine, 100 * MB)
    made = machine.governor(part)
    machine.rss = lambda: 1 / 0
    assert made.check() == "normal"
    assert [type(error) for error in unraisable] == [ZeroDivisionError]
    del machine.rss
    assert made.check() in ("high", "critical")


# The thread -------------------------------------------------------------------------------------------------


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "synthex-fast-governor"]


def test_with_nothing_registered_there_is_nothing_to_pay_for():
    machine = Machine()
    monitor = Monitor()
    made = machine.governor(monitor=monitor)
    before = threading.active_count()
    with made:
        assert made.running
        assert (threading.active_count(), monitor.callbacks, monitor.calls) == (before, [], [])
        assert made.stats["note"] == "nothing is registered, so nothing can be shrunk"
        # Until something is.
        cache = made.register(Cache(machine))
        wait_for(threads)
        assert monitor.calls == ["start"]
        assert made.stats["note"] is None
        del cache
    assert not made.running


def test_where_all_fits_the_thread_sleeps():
    machine = Machine(base=100 * MB)
    looks = []
    cache = Cache(machine, memory_limit=10 * MB)
    made = machine.governor(cache, monitor=Monitor())
    step = made._step
    made._step = lambda sample: (looks.append(1), step(sample))
    with made:
        wait_for(lambda: looks)
        time.sleep(0.1)
        assert len(looks) == 1
        assert made._worker.due == math.inf


def test_it_acts_when_the_monitor_calls():
    machine = Machine(base=100 * MB)
    monitor, cache = Monitor(), Cache(machine, 100 * MB)
    made = machine.governor(cache, monitor=monitor)
    with made:
        assert {level for level, _ in monitor.callbacks} == set(_pressure.LEVELS)
        machine.base = 750 * MB
        # In the monitor's thread, which this one plays here; if the governor's is at it, that one looks again.
        monitor.press()
        wait_for(lambda: cache.held < 100 * MB)
        governors = weakref.ref(made)
        late = lambda: governors()._worker.act(governors(), False)  # noqa: E731
    assert monitor.callbacks == []
    # A call that had begun when it was stopped.
    machine.base, held = 900 * MB, cache.held
    late()
    assert cache.held == held


class Counting(Machine):
    """Counts how often each figure is read."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read = dict.fromkeys(("rss", "charge", "reclaimable", "limit", "available"), 0)
        for name in self.read:
            setattr(self, name, self.counted(name, getattr(self, name)))

    def charge(self):
        return None if self.container is None else Machine.rss(self) + self.idle_files

    def counted(self, name, read):
        def counting():
            self.read[name] += 1
            return read()

        return counting

    def readings_of(self, call):
        before = dict(self.read)
        call()
        return {name: count - before[name] for name, count in self.read.items() if count > before[name]}

    def sample(self, level="warning", age=0.0):
        rss, held = Machine.rss(self), Machine.rss(self) + self.idle_files
        used, limit = max(rss, held - self.idle_files), self.container or self.total()
        if self.container is None:
            held, used = None, limit - Machine.available(self)
        return Sample(time.time() - age, rss, held, limit, 0, 0, 0.0, 0, used, level)


class Sampling(Monitor):
    """Passes samples on."""

    def press(self, sample, level="warning"):
        for registered, callback in list(self.callbacks):
            if registered == level:
                callback(level, sample)


@pytest.fixture
def counting(monkeypatch):
    """Starts a governor that acts only when its monitor calls, and stops it at the end."""
    monkeypatch.setattr(policy, "IDLE_SECONDS", (1000.0,) * 5)
    started = []

    def start(machine, monitor=None, **options):
        monitor = monitor or Sampling()
        part = Part(machine)
        made = machine.governor(part, monitor=monitor, **options)
        made.start()
        started.append((made, part))
        wait_for(lambda: made._worker.due == math.inf and made._worker.looks and made._worker.actor is None)
        # A sample taken in the same tick of the clock may be from before.
        time.sleep(0.001)
        return made, monitor

    yield start
    for made, _ in started:
        made.stop()


@pytest.mark.parametrize(
    ("options", "level"), [({}, "normal"), ({"limit": "1000MB"}, "normal"), ({"limit": "800MB"}, "warning")]
)
def test_the_monitors_sample_is_not_read_again(counting, options, level):
    machine = Counting(100 * MB)
    made, monitor = counting(machine, **options)
    machine.base, machine.idle_files = 600 * MB, 300 * MB
    looks = made.stats["looks"]
    assert machine.readings_of(lambda: monitor.press(machine.sample("high"), "high")) == {}
    assert made.stats["looks"] == looks + 1
    # As when it reads memory by itself.
    assert made.level == made.check() == level


def test_all_of_the_machines_memory_is_not_read_again(counting):
    machine = Counting(100 * MB, 1.0, None)
    made, monitor = counting(machine)
    assert machine.readings_of(lambda: monitor.press(machine.sample())) == {}
    # On the way down the monitor's figure may be a minute old.
    assert machine.readings_of(lambda: monitor.press(machine.sample("normal"), "normal")) == {"available": 1}
    assert made.level == "normal"


def test_on_the_way_down_what_is_slow_to_read_is_read(counting):
    machine = Counting(100 * MB)
    made, monitor = counting(machine)
    machine.idle_files = 800 * MB
    assert machine.readings_of(lambda: monitor.press(machine.sample("normal"), "normal")) == {
        "reclaimable": 1
    }
    assert made.level == "normal"


def test_a_sample_that_is_out_of_date_is_not_used(counting):
    machine = Counting(100 * MB)
    made, monitor = counting(machine)
    machine.base = 750 * MB
    # One sample comes with a call for each level that memory has passed. Since the first call memory may differ.
    sample = machine.sample()
    assert machine.readings_of(lambda: monitor.press(sample)) == {}
    assert made.level == "warning"
    whole = {"rss": 1, "charge": 1, "reclaimable": 1}
    for stale in (sample, machine.sample(age=1.0), machine.sample(age=-1.0), None, object()):
        assert machine.readings_of(lambda stale=stale: monitor.press(stale)) == whole


def test_a_rise_that_the_monitor_sees_is_read_once(counting):
    class NotStarted(AdaptiveMemoryMonitor):
        def start(self):
            pass

    machine = Counting(100 * MB)
    machine.swap = lambda: 0
    made, monitor = counting(machine, NotStarted(readings=machine, clock=machine.clock))
    machine.base = 750 * MB
    assert set(machine.readings_of(monitor.sample).values()) == {1}
    assert made.level == monitor.level == "warning"


def test_it_goes_on_by_itself_while_there_is_pressure():
    machine = Machine(base=700 * MB)
    machine.clock = time.monotonic
    cache = Cache(machine, 150 * MB)
    with machine.governor(cache, monitor=Monitor()) as made:
        wait_for(lambda: cache.held < 150 * MB)
        machine.base = 950 * MB
        wait_for(lambda: made.level == "emergency")
        machine.base = 10 * MB
        wait_for(lambda: made.level == "normal")


def test_a_registered_monitor_is_used_and_left_as_it_was():
    machine = Machine()
    running, idle = Monitor(running=True), Monitor()
    for monitor, calls in ((running, []), (idle, ["start", "stop"])):
        made = machine.governor(monitor)
        cache = made.register(Cache(machine))
        made.start()
        assert len(monitor.callbacks) == 5
        made.stop()
        assert (monitor.calls, monitor.callbacks) == (calls, [])
        del cache


def test_a_monitor_registered_later_takes_over():
    machine = Machine()
    first, second = Monitor(), Monitor()
    cache = Cache(machine)
    made = machine.governor(cache, first)
    with made:
        made.unregister(first)
        made.register(second)
        assert (first.calls, first.callbacks, second.calls) == (["start", "stop"], [], ["start"])


def test_without_a_monitor_it_makes_one():
    cache = TTLDict()
    made = MemoryGovernor()
    made.register(cache)
    with made:
        assert made._subscription.source.stats["running"]
        monitor = weakref.ref(made._subscription.source)
    gc.collect()
    assert monitor() is None or not monitor().stats["running"]
    assert made._subscription.source is None


def test_starting_and_stopping_twice():
    machine = Machine()
    cache, monitor = Cache(machine), Monitor()
    made = machine.governor(cache, monitor=monitor)
    made.stop()
    made.start()
    made.start()
    assert (monitor.calls, len(monitor.callbacks)) == (["start"], 5)
    made.stop()
    made.stop()
    assert monitor.calls == ["start", "stop"]
    with made, made:
        assert made.running
    assert not made.running
    wait_for(lambda: not threads())


def test_a_governor_that_is_not_running_is_freed():
    machine = Machine()
    cache = Cache(machine)
    made = machine.governor(cache, monitor=Monitor())
    with made:
        pass
    gone = weakref.ref(made)
    wait_for(lambda: not threads())
    del made
    gc.collect()
    assert gone() is None


def test_a_callback_may_stop_it():
    machine = Machine(base=990 * MB)
    stopped = []

    def stop(governor):
        governor.stop()
        stopped.append(governor)

    buffer = ResponseBuffer()
    made = machine.governor(buffer, monitor=Monitor(), on_emergency=stop)
    made.start()
    wait_for(lambda: stopped)
    wait_for(lambda: not threads())
    assert not made.running and not buffer.paused


def test_a_part_may_stop_it():
    machine = Machine(base=850 * MB)

    class Stops(Cache):
        def trim(self, nbytes):
            made.stop()
            return super().trim(nbytes)

    cache = Stops(machine, 100 * MB, 1000 * MB)
    made = machine.governor(cache, monitor=Monitor())
    made.start()
    wait_for(lambda: not made.running and not threads())
    assert cache.memory_limit == 1000 * MB


def test_many_threads(hammer, unraisable):
    machine = Machine(base=500 * MB)
    machine.clock = time.monotonic
    monitor = Monitor()
    made = machine.governor(monitor=monitor)
    buffer = made.register(ResponseBuffer(100, on_flush=lambda responses: None))
    shared = [made.register(TTLDict(memory_limit=50 * MB)) for _ in range(3)]
    machine.parts.append(type("Held", (), {"held": property(lambda self: sum(d.nbytes for d in shared))})())

    def work(i):
        turn = time.perf_counter_ns() % 7
        if i == 0:
            machine.base = (100, 720, 830, 920, 960)[turn % 5] * MB
            monitor.press()
        elif i == 1:
            made.start() if turn % 2 else made.stop()
        elif i == 2:
            assert made.stats
            repr(made)
        elif i == 3:
            cache = TTLDict(memory_limit=10**9)
            made.register(cache, turn)
            made.check()
            if turn % 2:
                made.unregister(cache)
                assert (cache.memory_limit, cache.memory_cap) == (10**9, None)
        elif i == 4:
            made.check()
        elif i == 5:
            with contextlib.suppress(BufferPausedError):
                buffer.pause(wait=False) if turn == 0 else buffer.resume() if turn == 1 else None
                if not buffer.paused:
                    buffer.flush()
        else:
            shared[turn % 3][turn] = bytes(1000)

    hammer(8, work, iterations=200)
    made.stop()
    buffer.resume()
    assert [(d.memory_limit, d.memory_cap) for d in shared] == [(50 * MB, None)] * 3
    assert made._worker.actor is None
    wait_for(lambda: not threads())
    assert unraisable == []


def test_stopped_while_its_monitor_is_attached():
    class StopsIt(Monitor):
        def on_pressure(self, level, callback):
            made.stop()
            return super().on_pressure(level, callback)

    machine = Machine()
    cache, monitor = Cache(machine), StopsIt()
    made = machine.governor(cache, monitor=monitor)
    made.start()
    assert not made.running
    assert monitor.callbacks == []
    assert made._subscription.source is None


def test_two_threads_that_start_and_stop(hammer):
    machine = Machine()
    cache, monitor = Cache(machine), Monitor()
    made = machine.governor(cache, monitor=monitor)
    hammer(2, lambda i: made.start() if i else made.stop(), iterations=100)
    made.stop()
    assert monitor.callbacks == []
    wait_for(lambda: not threads())


# Forks and the end ------------------------------------------------------------------------------------------


@needs_fork
@quiet_fork
def test_the_child_of_a_fork_governs_itself():
    machine = Machine(base=960 * MB)
    machine.clock = time.monotonic
    buffer, cache = ResponseBuffer(), Cache(machine, memory_limit=700 * MB)
    with machine.governor(buffer, cache, monitor=Monitor()) as made:
        wait_for(lambda: buffer.paused)

        def check():
            assert buffer.paused
            machine.base = 100 * MB
            wait_for(lambda: not buffer.paused)
            made.stop()
            return cache.memory_limit == 700 * MB and not threads()

        in_child(check)
        assert buffer.paused
        wait_for(threads)
    assert not buffer.paused


@needs_fork
@quiet_fork
@pytest.mark.slow
def test_a_look_that_a_fork_left_behind_does_not_block_the_child():
    machine = Machine(base=850 * MB)
    entered, leave = threading.Event(), threading.Event()
    # The child must not touch the events, whose locks a thread of the parent may hold during the fork.
    parent = os.getpid()

    class Slow(Part):
        def trim(self, nbytes):
            if os.getpid() == parent:
                entered.set()
                assert leave.wait(30)
            return super().trim(nbytes)

    slow = Slow(machine, 50 * MB)
    with machine.governor(slow, monitor=Monitor()) as made:
        assert entered.wait(30)

        def check():
            wait_for(lambda: slow.held < 50 * MB)
            made.check()
            return True

        in_child(check)
        assert slow.held == 50 * MB
        leave.set()
        wait_for(lambda: slow.held < 50 * MB)


@needs_fork
@quiet_fork
def test_a_fork_inside_a_callback():
    machine = Machine(base=990 * MB)
    children = []

    def fork(governor):
        children.append(os.fork())

    buffer = ResponseBuffer()
    made = machine.governor(buffer, monitor=Monitor(), on_emergency=fork)
    made._worker.target = made
    governor_thread.running.add(made._worker)
    good = False
    try:
        made.check()
        machine.base = 10 * MB
        # In either process a thread may be at it.
        wait_for(lambda: made.check() == "normal")
        good = not buffer.paused
        made.stop()
    finally:
        if children and children[0] == 0:
            os._exit(0 if good else 1)
    assert good
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


@needs_fork
@quiet_fork
def test_a_fork_lets_the_monitors_thread_finish_what_it_does_for_the_governor(monkeypatch):
    machine, readings = Machine(base=500 * MB), FakeReadings(limit=LIMIT)
    monitor = AdaptiveMemoryMonitor(readings=readings)
    entered = threading.Event()
    ended = []

    class Slow(Part):
        @property
        def nbytes(self):
            if threading.current_thread().name == "synthex-fast-monitor":
                entered.set()
                wait_for(lambda: governor_thread._forking)
            return 1

        def trim(self, nbytes):
            return 0

    def join(self, genuine=SamplingThread.join):
        genuine(self)
        ended.append(not self._thread.is_alive())

    monkeypatch.setattr(SamplingThread, "join", join)
    # The governor's own thread would do it, if it happened to be at work when the monitor calls.
    monkeypatch.setattr(governor_thread.Worker, "plan", lambda worker, seconds: None)
    with machine.governor(slow := Slow(machine), monitor=monitor):
        readings.rss_ = 750 * MB

        def look():
            # Again each time: a sample under way plans the next one when it ends.
            monitor._due = -math.inf
            monitor._thread.waker.wake()
            return entered.wait(0.01)

        wait_for(look)
        in_child(lambda: slow.nbytes == 1)
        assert ended == [True]


def test_two_threads_that_fork_at_once_leave_nothing_locked():
    made = Machine(base=500 * MB).governor()
    joining, ahead = threading.Event(), threading.Event()

    class Thread:
        ident = 0

        def join(self, seconds):
            joining.set()
            assert ahead.wait(30)

    def fork(seconds):
        governor_thread._before_fork()
        governor_thread._hold_locks()
        ahead.set()
        # So that the other one comes to wait.
        time.sleep(seconds)
        governor_thread._release_locks()
        governor_thread._after_fork()

    governor_thread.running.add(made._worker)
    try:
        made._worker.thread = Thread()
        first = threading.Thread(target=fork, args=(0,), daemon=True)
        first.start()
        assert joining.wait(30)
        second = threading.Thread(target=fork, args=(0.3,), daemon=True)
        second.start()
        first.join(30)
        second.join(30)
        assert made._worker.state.acquire(False)
        made._worker.state.release()
    finally:
        governor_thread.running.discard(made._worker)


@needs_fork
@quiet_fork
def test_forks_while_it_works(hammer):
    machine = Machine(base=500 * MB)
    cache, monitor = Cache(machine, 100 * MB), Monitor()
    with machine.governor(cache, monitor=monitor) as made:

        def work(i):
            if i == 0:
                in_child(lambda: made.check() is not None and made.stop() is None)
            else:
                machine.base = (500, 850)[i % 2] * MB
                monitor.press()
                assert made.stats

        hammer(3, work, iterations=5)


def test_a_running_governor_does_not_outlive_the_interpreter():
    out = run(
        """
        import threading, time
        from synthex_fast import MemoryGovernor, PooledExpertResponse, ResponseBuffer, TTLDict
        class Readings:
            rss = lambda self: 990
            charge = lambda self: None
            reclaimable = lambda self: 0
            limit = lambda self: 1000
            total = available = lambda self: 10**9
        class Monitor:
            stats = {"running": True}
            on_pressure = lambda self, level, callback: lambda: None
        buffer, cache = ResponseBuffer(), TTLDict()
        governor = MemoryGovernor(readings=Readings(), monitor=Monitor())
        governor.register(buffer), governor.register(cache)
        governor.start()
        while not buffer.paused:
            time.sleep(0.001)
        def put():
            buffer.add(PooledExpertResponse("q", "e"))
            print("added", flush=True)
        # The interpreter waits for this thread before it calls what is registered with atexit.
        threading.Thread(target=put).start()
        while not buffer.stats["waited"]:
            time.sleep(0.001)
        """
    )
    assert out == "added\n"


def test_importing_leaves_out_what_is_not_needed():
    run(
        """
        import sys, synthex_fast
        assert "synthex_fast.governor" not in sys.modules
        from synthex_fast import MemoryGovernor
        for name in ("numpy", "psutil", "logging", "ctypes", "asyncio"):
            assert name not in sys.modules, name
        assert not any(name.startswith("synthex_fast.collector") for name in sys.modules)
        """
    )


# State machine ----------------------------------------------------------------------------------------------


def limits_of(part):
    return part.held, getattr(part, "memory_limit", 0), getattr(part, "memory_cap", None)


class GovernorMachine(RuleBasedStateMachine):
    """Caches, a pool, a buffer and something else that all grow and shrink as they like, under one governor."""

    @initialize(overhead=st.floats(1.0, 2.0), sticky=st.booleans(), base=st.integers(0, 300))
    def start(self, overhead, sticky, base):
        self.machine = Machine(base * MB, overhead)
        self.machine.sticky = sticky
        self.governor = self.machine.governor()
        self.own = {}
        self.parts = []
        self.buffer, self.tuner = ResponseBuffer(), Tuner(self.machine)
        self.governor.register(self.buffer)
        self.governor.register(self.tuner)

    @rule(
        kind=st.sampled_from([Cache, CappedCache]),
        limit=st.sampled_from([None, 20, 200, 900, 3000]),
        weight=st.sampled_from([0, 0.5, 1, 3]),
    )
    def add_cache(self, kind, limit, weight):
        if len(self.own) < 4:
            limit = limit and limit * MB
            cache = kind(self.machine, 0, limit)
            self.governor.register(cache, weight)
            self.parts.append(cache)
            self.own[cache] = limit

    @rule(kind=st.sampled_from([Pool, Part]))
    def add_part(self, kind):
        if len(self.parts) < 6:
            part = kind(self.machine)
            self.governor.register(part)
            self.parts.append(part)

    @precondition(lambda self: self.parts)
    @rule(data=st.data(), grows=st.integers(0, 200))
    def grow(self, data, grows):
        part = data.draw(st.sampled_from(self.parts))
        if isinstance(part, Cache):
            part.add(grows * MB)
        else:
            part.held += grows * MB // 4

    @precondition(lambda self: self.own)
    @rule(data=st.data(), limit=st.sampled_from([None, 5, 300]))
    def user_changes_a_limit(self, data, limit):
        cache = data.draw(st.sampled_from(list(self.own)))
        limit = limit and limit * MB
        if limit != cache.memory_limit:
            self.own[cache] = limit
            cache.memory_limit = limit
            cache.add(0)

    @precondition(lambda self: self.parts)
    @rule(data=st.data())
    def leave(self, data):
        part = data.draw(st.sampled_from(self.parts))
        self.parts.remove(part)
        self.governor.unregister(part)
        if part in self.own:
            assert part.memory_limit == self.own.pop(part)
            assert getattr(part, "memory_cap", None) is None
        self.machine.parts.remove(part)

    @rule(base=st.integers(0, 900))
    def others_need(self, base):
        self.machine.base = base * MB

    @rule(seconds=st.floats(0, 30))
    def look(self, seconds):
        self.machine.now += seconds
        level = self.governor.check()
        used = self.machine.rss() / LIMIT
        assert used < _pressure.MARKS[min(_pressure.LEVELS.index(level) + 1, 4)] or level == "emergency"
        assert used >= _pressure.MARKS[_pressure.LEVELS.index(level)] - _pressure.HYSTERESIS
        assert self.buffer.paused == (level == "emergency")
        for cache, own in self.own.items():
            if isinstance(cache, CappedCache):
                assert cache.memory_limit == own
            elif own is not None:
                assert cache.memory_limit <= own

    @rule()
    def quiet(self):
        """With nothing happening any more, everything settles, and a look changes nothing."""
        for _ in range(60):
            self.machine.now += 30.0
            self.governor.check()
        before = [limits_of(part) for part in self.parts]
        level = self.governor.check()
        assert before == [limits_of(part) for part in self.parts]
        evictable = [
            part for part in self.parts if type(part) is Part or (part in self.own and part.held > 20 * MB)
        ]
        weights = {p["weight"] for p in self.governor.stats["components"].values()}
        if level in ("critical", "emergency") and 0 not in weights:
            assert not any(part.held > 20 * MB for part in evictable)

    @rule()
    def stop(self):
        self.governor.stop()
        assert not self.buffer.paused
        for cache, own in self.own.items():
            assert cache.memory_limit == own
            assert getattr(cache, "memory_cap", None) is None

    @invariant()
    def stats_add_up(self):
        if hasattr(self, "governor"):
            stats = self.governor.stats
            assert stats["nbytes"] == sum(part.held for part in self.parts) + self.buffer.nbytes
            assert len(stats["components"]) == len(self.parts) + 2


GovernorMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=20)
TestGovernorMachine = GovernorMachine.TestCase


# The real kernel --------------------------------------------------------------------------------------------


def test_this_process():
    made = MemoryGovernor()
    cache = made.register(TTLDict())
    cache["a"] = bytes(100_000)
    made.check()
    stats = made.stats
    assert stats["rss"] > 5 * MB
    assert stats["rest"] == stats["rss"] - stats["nbytes"]
    assert 0 < stats["used"] < 1.5
    assert stats["components"]["TTLDict"]["nbytes"] == cache.nbytes > 100_000
    made.stop()


def bench():
    path = Path(__file__).parents[1] / "bench" / "bench_governor.py"
    if not path.exists():
        pytest.skip("the bench is not in this tree")
    spec = importlib.util.spec_from_file_location("bench_governor", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.linux
@pytest.mark.root
@pytest.mark.slow
def test_in_a_real_container(monkeypatch):
    """Killed without the governor; with it no request fails, and memory keeps its distance from the limit."""
    module = bench()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    try:
        # The collector tuned or not is another matter, and slow on debug builds.
        without = module.measure(20.0, governed=False, limit=112 * MB, tuned=False)
        governed = module.measure(3.0, governed=True, limit=112 * MB, tuned=False)
    except module.NoContainerError as error:
        pytest.skip(f"no container can be made here: {error}")
    assert without["killed"]
    assert (governed["status"], governed["errors"]) == (0, 0), governed
    assert governed["served"] > 0
    assert governed["peak_rss"] <= 0.95 * 112 * MB


@pytest.mark.linux
@pytest.mark.root
@pytest.mark.slow
def test_the_bench_shows_what_each_worker_holds(monkeypatch):
    module = bench()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    try:
        found, peak = module.measure_workers(2, 6.0, limit=128 * MB, rows=4)
    except module.NoContainerError as error:
        pytest.skip(f"no container can be made here: {error}")
    assert [status for _, status in found] == [0, 0]
    assert set(found[0][0]) == {1, 2, 3, 4}
    assert {3, 4} <= set(found[1][0])
    for rows, _ in found:
        assert all(size > 0 and 0 <= hits <= asked for size, hits, asked, _ in rows.values())
    assert peak is None or peak <= 128 * MB
