"""Workers that share a container: the arithmetic, the file and its enemies, forks, turns, governors on fake memory."""

import contextlib
import errno
import importlib.util
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    FREE_THREADED,
    MB,
    ROOT,
    Clock,
    FakeReadings,
    in_child,
    needs_fork,
    quiet_fork,
    run,
    wait_for,
)

from synthex_fast import GCTuner, MemoryGovernor, TTLDict
from synthex_fast._fleet import file as fleet_file
from synthex_fast._fleet import member, split, turns
from synthex_fast._fleet._watch import Watch
from synthex_fast._fleet.split import ANYTHING, Held, Hunger, Need, Posting
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError

needs_locks = pytest.mark.skipif(fleet_file.fcntl is None, reason="needs fcntl")
LIMIT = 512 * MB


def posting(pid=1, **given):
    fields = {
        "pid": pid,
        "started": 5.0,
        "nbytes": 0,
        "held": 0,
        "rest": 0,
        "want": 0.0,
        "evidence": 0.0,
        "weight": 1.0,
        "most": ANYTHING,
        "floor": 0,
        "share": 0,
        "level": 0,
        "settled": True,
        "hungry": True,
    }
    return Posting(**{**fields, **given})


# The arithmetic


workers = st.lists(
    st.builds(
        posting,
        pid=st.integers(1, 1 << 20),
        weight=st.floats(split.WEIGHT_LEAST, split.WEIGHT_MOST),
        most=st.integers(0, 1 << 40),
        floor=st.integers(0, 1 << 20),
    ),
    min_size=1,
    max_size=64,
)


@given(st.floats(0, 1e12), workers)
def test_a_division_hands_out_all_there_is_and_no_more(total, fleet):
    shares = split.divide(total, fleet)
    assert len(shares) == len(fleet)
    assert all(share >= 0 for share in shares)
    assert sum(shares) == pytest.approx(total, rel=1e-6, abs=2.0)


@given(st.floats(0, 1e12), workers)
def test_nobody_falls_below_the_floor_while_there_is_enough(total, fleet):
    for share, each in zip(split.divide(total, fleet), fleet, strict=True):
        assert share >= min(each.floor, each.most, total / len(fleet)) * (1 - 1e-9)


def test_what_some_cannot_use_goes_to_the_others():
    shares = split.divide(400.0, [posting(most=20), posting(), posting(weight=2.0)])
    assert shares == pytest.approx([20, 380 / 3, 760 / 3])


def test_the_budget_is_the_same_whether_evicted_memory_returns_or_not():
    # 100 bytes were evicted: they have returned to the system, or are kept for what comes next.
    before = split.budget(775, 700, [300, 300])
    assert split.budget(775, 600, [200, 300]) == split.budget(775, 700, [300, 300]) == before == 675
    assert split.budget(775, 900, []) == 0


def test_what_is_held_falls_only_with_resident_memory():
    held = Held()
    assert held.observe(200, 100.0) == 100
    # Evicted, but nothing has returned.
    assert held.observe(200, 40.0) == 100
    assert held.observe(170, 40.0) == 70
    assert held.observe(170, 90.0) == 90
    # It can't be more than the process has.
    assert held.observe(60, 90.0) == 60


def test_on_the_way_down_the_last_part_is_given_at_once():
    assert split.step_down(120.0, 100.0) == 100
    assert split.step_down(300.0, 100.0) == pytest.approx(180)


def test_evictions_are_divided_by_what_is_held_above_the_share():
    fleet = [posting(held=300), posting(held=100), posting(held=50)]
    assert split.fair_part(fleet, [100.0, 50.0, 100.0], 0) == pytest.approx(0.8)
    assert split.fair_part(fleet, [100.0, 50.0, 100.0], 2) == 0
    # Nobody is above: by what they hold.
    assert split.fair_part(fleet, [400.0, 400.0, 400.0], 0) == pytest.approx(300 / 450)
    assert split.fair_part([posting()], [0.0], 0) == 1


def weighed(rate, other, *, seconds=60, seed=1, **given):
    """The weight after a minute of ``rate`` ghost hits a second, the others having ``other`` and as many bytes."""
    need, draw, count = Need(), random.Random(seed), 0
    for second in range(seconds):
        # By chance, as requests come.
        count += sum(draw.random() < rate / 1000 for _ in range(1000))
        need.observe(count, float(second))
        mine = posting(held=1000, want=need.want, evidence=need.evidence, **given)
        sibling = posting(2, held=1000, want=other, evidence=10 * other)
        need.next_weight(mine, split.Together([mine, sibling]), float(second))
    return need.weight


def test_where_a_byte_is_worth_more_the_weight_grows():
    assert weighed(300, 100) > 1.5
    assert weighed(100, 300) < 0.67


@pytest.mark.parametrize("rate", [1, 10, 300])
def test_chance_moves_nothing_between_equals(rate):
    assert all(0.87 < weighed(rate, float(rate), seed=seed) < 1.15 for seed in range(5))


def test_who_has_all_it_needs_or_is_still_filling_is_not_compared():
    assert weighed(10, 900, hungry=False) == 1
    assert weighed(10, 900, settled=False) == 1
    need = Need()
    for second in range(20):
        need.observe(100 * second, float(second))
        mine = posting(held=1000, want=need.want, evidence=need.evidence)
        need.next_weight(mine, split.Together([mine, posting(2, held=1000, hungry=False)]), float(second))
    assert need.weight == 1


def test_weights_stay_within_bounds():
    assert weighed(900, 0, seconds=3000) == split.WEIGHT_MOST
    assert weighed(0, 900, seconds=3000) == split.WEIGHT_LEAST


def test_a_counter_that_goes_back_is_no_news():
    need = Need()
    for second, count in enumerate([100, 200, 5, 105]):
        need.observe(count, float(second))
    assert need.want == pytest.approx(100)


def test_hunger_passes_some_time_after_the_last_eviction():
    hunger = Hunger()
    assert not hunger.observe(50, 0.0)
    assert hunger.observe(51, 1.0)
    assert hunger.observe(51, split.HUNGRY_SECONDS)
    assert not hunger.observe(51, 2 + split.HUNGRY_SECONDS)


# Ghost hits


def test_ghost_hits_are_of_keys_evicted_not_long_ago():
    cache = TTLDict(100)
    for n in range(1000):
        cache[n] = n
    assert cache.stats["ghost_hits"] == 0
    # The last one evicted, and one evicted longer ago than half as many evictions as there are entries.
    evicted = [n for n in range(1000) if n not in cache]
    cache[evicted[-1]] = 0
    assert cache.stats["ghost_hits"] == 1
    cache[evicted[-80]] = 0
    assert cache.stats["ghost_hits"] == 1
    cache.clear()
    assert cache.stats["ghost_hits"] == 1
    assert cache.copy().stats["ghost_hits"] == 0


@pytest.mark.parametrize("policy", ["fifo", "lru", "sieve"])
def test_other_policies_have_no_ghosts(policy):
    cache = TTLDict(10, policy=policy)
    for n in [*range(20), *range(20)]:
        cache[n] = n
    assert cache.stats["ghost_hits"] == 0


# The file


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "fleet")


class Sibling:
    """Another process that has the file open and has posted, until it is killed."""

    CODE = """
import sys, time
from synthex_fast._fleet.file import FleetFile
from synthex_fast._fleet.split import Posting
file = FleetFile(sys.argv[1])
import os
file.post(Posting(os.getpid(), 5.0, 10, 20, 30, 1.0, 2.0, 1.0, 100, 1, 50, 0, True, True))
print(file.slot, flush=True)
for line in sys.stdin:
    what = line.strip()
    if what == "post":
        file.post(Posting(os.getpid(), 5.0, 11, 21, 31, 1.0, 2.0, 1.0, 100, 1, 50, 0, True, True))
    print(sorted(file.look()) if what == "look" else file.take_turn(), flush=True)
"""

    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.slot = int(self.process.stdout.readline())

    def ask(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def sibling(path):
    started = []

    def start():
        started.append(Sibling(path))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@needs_locks
def test_siblings_see_each_other_until_one_dies(path, sibling):
    mine = fleet_file.FleetFile(path)
    mine.post(posting(os.getpid()))
    assert mine.look() == {}
    other, third = sibling(), sibling()
    assert sorted((mine.slot, other.slot, third.slot)) == [0, 1, 2]
    found = mine.look()
    assert {each.pid for each in found.values()} == {other.process.pid, third.process.pid}
    assert found[other.slot].share == 50
    # The same object while nothing changes.
    assert mine.look() is found
    assert other.ask("look") == str(sorted({mine.slot, third.slot}))
    other.kill()
    assert list(mine.look()) == [third.slot]
    # Its place is free again.
    assert sibling().slot == other.slot


@needs_locks
def test_one_that_leaves_is_gone_at_once(path, sibling):
    mine = fleet_file.FleetFile(path)
    mine.post(posting())
    other = sibling()
    assert other.ask("look") == f"[{mine.slot}]"
    mine.leave()
    assert other.ask("look") == "[]"
    # The file is the other one's still.
    assert fleet_file.FleetFile(path).look().keys() == {other.slot}


@needs_locks
def test_the_last_one_takes_the_file_away(path):
    mine = fleet_file.FleetFile(path)
    mine.post(posting())
    mine.leave()
    assert not os.path.exists(path)
    # Not somebody else's in its place.
    again = fleet_file.FleetFile(path)
    os.unlink(path)
    other = fleet_file.FleetFile(path)
    again.leave()
    assert os.path.exists(path)
    assert other.look() == {}


@needs_locks
def test_file_and_directory_are_this_users_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    directory = fleet_file.find_directory()
    assert os.path.dirname(directory) == str(tmp_path)
    assert os.stat(directory).st_mode & 0o777 == 0o700
    mine = fleet_file.FleetFile(os.path.join(directory, "x"))
    status = os.fstat(mine.fd)
    assert status.st_mode & 0o777 == 0o600
    assert status.st_size == fleet_file.SIZE
    assert not os.get_inheritable(mine.fd)


def write(path, data):
    Path(path).touch(0o600)
    Path(path).write_bytes(data)


def spoil_header(path):
    write(path, b"\xff" * fleet_file.SIZE)


def other_version(path):
    header = fleet_file._HEADER.pack(fleet_file.MAGIC, fleet_file.VERSION + 1)
    write(path, header.ljust(fleet_file.SIZE, b"\0"))


def too_short(path):
    write(path, b"x")


def too_long(path):
    write(path, bytes(fleet_file.SIZE + 1))


def readable_by_all(path):
    Path(path).touch(0o644)
    Path(path).chmod(0o644)


def symlink(path):
    Path(path + "-target").touch(0o600)
    os.symlink(path + "-target", path)


def dangling(path):
    os.symlink(path + "-nowhere", path)


def directory(path):
    os.mkdir(path)


def fifo(path):
    os.mkfifo(path, 0o600)


def foreign(path):
    Path(path).touch(0o600)
    try:
        os.chown(path, 12345, -1)
    except PermissionError:
        pytest.skip("only root can give a file away")


@needs_locks
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_header, "not a file of this version's"),
        (other_version, "not a file of this version's"),
        (too_short, "has 1 bytes"),
        (too_long, "bytes instead of"),
        (readable_by_all, "not this user's only"),
        (symlink, "can't be opened"),
        (dangling, "can't be opened"),
        (directory, "can't be opened"),
        (fifo, "is not a file"),
        (foreign, "not this user's only"),
    ],
)
def test_a_hostile_file_means_alone_and_stays_as_it_is(path, spoil, reason):
    spoil(path)
    before = Path(path).read_bytes() if os.path.isfile(path) else None
    with pytest.raises(fleet_file.AloneError, match=reason):
        fleet_file.FleetFile(path)
    assert before is None or Path(path).read_bytes() == before
    assert not os.path.exists(path + "-nowhere")


@needs_locks
def test_a_hostile_directory_means_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    place = tmp_path / f"synthex-fast-{os.geteuid()}"
    place.mkdir()
    place.chmod(0o755)
    with pytest.raises(fleet_file.AloneError, match="not this user's only"):
        fleet_file.find_directory()
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(fleet_file.AloneError, match="is not a directory"):
        fleet_file.find_directory()


@needs_locks
def test_no_directory_means_alone(tmp_path, monkeypatch):
    def refuse(path, mode=0o777):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(fleet_file.AloneError, match="no directory can be made"):
        fleet_file.find_directory()


@needs_locks
@pytest.mark.parametrize("part", ["all", "some"])
def test_a_full_disk_means_alone(path, monkeypatch, part):
    def full(fd, data, at):
        if part == "some":
            return genuine(fd, data[:100], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    genuine = os.pwrite
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(fleet_file.AloneError, match="No space left"):
        fleet_file.FleetFile(path)
    monkeypatch.undo()
    # What was written of it is no obstacle once there is room.
    assert fleet_file.FleetFile(path).slot == 0


@needs_locks
def test_a_full_table_means_alone(path, monkeypatch, sibling):
    monkeypatch.setattr(fleet_file, "SLOTS", 1)
    sibling()
    with pytest.raises(fleet_file.AloneError, match="are taken"):
        fleet_file.FleetFile(path)


@needs_locks
@pytest.mark.parametrize("size", [0, 100, fleet_file.SIZE - 1, fleet_file.SIZE + 1])
def test_a_file_cut_off_while_it_is_open_means_alone(path, sibling, size):
    mine = fleet_file.FleetFile(path)
    mine.post(posting())
    sibling()
    assert len(mine.look()) == 1
    os.truncate(path, size)
    with pytest.raises(fleet_file.AloneError, match="changed its size"):
        mine.look()


@needs_locks
def test_a_file_removed_while_it_is_open_means_alone(path):
    mine = fleet_file.FleetFile(path)
    os.unlink(path)
    with pytest.raises(fleet_file.AloneError, match="was removed"):
        mine.look()


@needs_locks
def test_a_descriptor_that_now_is_another_file_is_not_read_nor_closed(path, tmp_path):
    mine = fleet_file.FleetFile(path)
    number = mine.fd
    os.close(number)
    with pytest.raises(fleet_file.AloneError, match="can't be read"):
        mine.look()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    if other != number:
        os.dup2(other, number)
    with pytest.raises(fleet_file.AloneError, match="was closed"):
        mine.look()
    del mine
    os.fstat(number)
    for each in {other, number}:
        os.close(each)


@needs_locks
@pytest.mark.parametrize(
    "use",
    [
        lambda mine, siblings: mine.post(posting(7)),
        lambda mine, siblings: mine.look(),
        lambda mine, siblings: mine.watch(Watch(), siblings, 1.0),
        lambda mine, siblings: mine.leave(),
    ],
    ids=["post", "look", "watch", "leave"],
)
def test_a_descriptor_that_now_is_another_file_is_not_written_to(path, tmp_path, sibling, use):
    mine = fleet_file.FleetFile(path)
    mine.post(posting(7))
    sibling()
    siblings = mine.look()
    data = bytes(range(256)) * 100
    (tmp_path / "other").write_bytes(data)
    os.utime(tmp_path / "other", (1, 1))
    other = os.open(tmp_path / "other", os.O_RDWR)
    kept = os.dup(mine.fd)
    os.dup2(other, mine.fd)
    with contextlib.suppress(fleet_file.AloneError):
        use(mine, siblings)
    assert (tmp_path / "other").read_bytes() == data
    assert os.fstat(other).st_mtime == 1
    os.dup2(kept, mine.fd)
    for each in (other, kept):
        os.close(each)


@needs_locks
@pytest.mark.parametrize(
    "spoiled",
    [
        lambda data: data[:10] + bytes([data[10] ^ 1]) + data[11:],
        lambda data: data[:64] + bytes(64),
        lambda data: b"\xff" * 128,
        *(
            lambda data, bad=bad: fleet_file._packed(posting(**bad))
            for bad in (
                {"held": -1},
                {"held": ANYTHING + 1},
                {"weight": 0.0},
                {"weight": float("nan")},
                {"weight": 1e9},
                {"want": float("inf")},
                {"want": -1.0},
                {"evidence": float("nan")},
                {"started": float("-inf")},
                {"level": 7},
                {"pid": 0},
            )
        ),
    ],
)
def test_a_posting_that_makes_no_sense_is_ignored(path, sibling, spoiled):
    mine = fleet_file.FleetFile(path)
    other = sibling()
    assert list(mine.look()) == [other.slot]
    at = mine._place(other.slot)
    data = os.pread(mine.fd, 128, at)
    os.pwrite(mine.fd, spoiled(data), at)
    assert mine.look() == {}
    os.pwrite(mine.fd, data, at)
    assert list(mine.look()) == [other.slot]


@needs_locks
def test_whatever_bytes_a_file_holds_nothing_is_raised(path, sibling):
    mine = fleet_file.FleetFile(path)
    sibling()
    draw = random.Random(1)
    for _ in range(200):
        os.pwrite(mine.fd, draw.randbytes(fleet_file.SIZE - 64), 64)
        assert mine.look() == {}


@needs_locks
def test_a_posting_that_was_overwritten_is_posted_again(path):
    mine = fleet_file.FleetFile(path)
    mine.post(posting(7))
    at = mine._place(mine.slot)
    data = os.pread(mine.fd, 128, at)
    os.pwrite(mine.fd, bytes(128), at)
    mine.look()
    mine.look()
    assert os.pread(mine.fd, 128, at) == data


@needs_locks
@needs_fork
def test_a_lock_lost_to_a_descriptor_closed_elsewhere_is_taken_again(path):
    mine = fleet_file.FleetFile(path)
    # Whoever closes another descriptor of the file releases all locks of the process.
    os.close(os.open(path, os.O_RDONLY))
    mine.look()

    def another():
        assert fleet_file.FleetFile(path).slot != mine.slot

    in_child(another)


# Membership


class Container:
    """Readings of a process in a container, all that a membership asks for."""

    def __init__(self, folder):
        self.container = (1, str(folder))


@pytest.fixture
def container(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    group = tmp_path / "group"
    group.mkdir()
    yield Container(group)
    for each in list(member._members):
        each.leave()


@needs_locks
def test_a_member_joins_with_its_first_exchange_and_leaves(container):
    one = member.Member(True, container)
    assert not one.joined
    assert one.exchange(posting(), 0.0) == {}
    assert one.joined
    assert turns.current is one._file
    one.leave()
    assert (one.joined, one.reason, turns.current) == (False, "not running", None)
    assert one.exchange(posting(), 0.0) == {}


def test_who_does_not_want_to_join_is_alone(container):
    one = member.Member(False, container)
    assert one.exchange(posting(), 0.0) is None
    assert one.reason == "fleet=False"


@needs_locks
def test_without_a_container_there_is_no_fleet(container):
    for readings in (object(), Container("/no/such/group")):
        one = member.Member(True, readings)
        assert one.exchange(posting(), 0.0) is None
        assert "container" in one.reason or "control group" in one.reason


@needs_locks
def test_one_process_has_one_place(container):
    one, two = member.Member(True, container), member.Member(True, container)
    assert one.exchange(posting(), 0.0) == {}
    assert two.exchange(posting(), 0.0) is None
    assert two.reason == "another governor of this process has joined"
    # Other names are other fleets.
    three = member.Member("blue", container)
    assert three.exchange(posting(), 0.0) == {}
    one.leave()
    assert two.exchange(posting(), 1.0) is None
    assert two.exchange(posting(), 1.0 + member.RETRY_SECONDS) == {}


@needs_locks
def test_a_member_whose_file_is_spoiled_is_alone_and_joins_again(container):
    one = member.Member(True, container)
    one.exchange(posting(), 0.0)
    path = one._file.path
    os.truncate(path, 3)
    assert one.look() is None
    assert one.exchange(posting(), 1.0) is None
    assert "changed its size" in one.reason
    os.unlink(path)
    assert one.exchange(posting(), 1.0 + member.RETRY_SECONDS) == {}


@needs_locks
@needs_fork
def test_the_child_of_a_fork_is_a_worker_of_its_own(container):
    one = member.Member(True, container)
    one.exchange(posting(os.getpid()), 0.0)
    slot = one.slot

    def child():
        assert not one.joined
        assert turns.current is None
        found = one.exchange(posting(os.getpid()), 0.0)
        assert list(found) == [slot]
        assert one.slot != slot

    in_child(child)
    # The parent has kept its place, and sees that the child is gone.
    assert one.exchange(posting(os.getpid()), 0.1) == {}
    assert one.slot == slot


# Turns


@needs_locks
def test_one_at_a_time_has_its_turn(path, sibling):
    mine, other = fleet_file.FleetFile(path), sibling()
    assert mine.take_turn()
    assert other.ask("turn") == "False"
    mine.end_turn()
    assert other.ask("turn") == "True"
    assert not mine.take_turn()
    # Dead ones have no turn.
    other.kill()
    assert mine.take_turn()
    mine.end_turn()


class Turns:
    def __init__(self, free):
        self.free = free
        self.calls = []

    def take_turn(self):
        self.calls.append("take")
        return self.free

    def end_turn(self):
        self.calls.append("end")


class Collector:
    """Stands in for the module ``gc``; a collection takes 10 ms."""

    def __init__(self, clock):
        self.clock = clock
        self.callbacks = []
        self.collected = 0

    def collect(self, generation=2):
        self.collected += 1
        for callback in self.callbacks:
            callback("start", {"generation": 2})
        self.clock.now += 0.01
        for callback in self.callbacks:
            callback("stop", {"generation": 2, "collected": 10, "uncollectable": 0})
        return 10

    def get_count(self):
        return (0, 0, 0)

    def get_threshold(self):
        return (700, 10, 10)

    def isenabled(self):
        return True

    def set_threshold(self, *thresholds):
        pass

    enable = disable = freeze = unfreeze = set_threshold

    def get_freeze_count(self):
        return 0


@pytest.fixture
def tuned(monkeypatch):
    """A tuner among stand-ins, and its clock, readings and collector."""
    clock, readings = Clock(100.0), FakeReadings(rss=100 * MB)
    collector = Collector(clock)
    tuner = GCTuner(
        memory_limit=1000 * MB,
        readings=readings,
        clock=clock,
        collector=collector,
        kind="generational",
        freeze=False,
    )
    tuner._start_watcher = lambda: None
    with tuner:
        collector.collected = 0
        yield tuner, clock, readings, collector


def look(tuner, clock):
    clock.now += 2.0
    tuner._read_memory(tuner._now())
    return tuner._collect_if_due(tuner._epoch)


def test_a_full_collection_waits_while_a_sibling_collects(tuned, monkeypatch):
    tuner, clock, readings, collector = tuned
    other = Turns(free=False)
    monkeypatch.setattr(turns, "current", other)
    readings.rss_ = 500 * MB
    again = look(tuner, clock)
    assert (collector.collected, other.calls) == (0, ["take"])
    assert 0 < again <= 0.1
    assert tuner.stats["turns_waited"] == 1
    assert tuner.collect_garbage(1) == 0
    other.free, other.calls = True, []
    look(tuner, clock)
    assert (collector.collected, other.calls) == (1, ["take", "end"])


def test_above_the_watermark_nobody_waits(tuned, monkeypatch):
    tuner, clock, readings, collector = tuned
    other = Turns(free=False)
    monkeypatch.setattr(turns, "current", other)
    readings.rss_ = 900 * MB
    look(tuner, clock)
    assert collector.collected == 1
    # The turn is the sibling's still.
    assert other.calls == ["take"]


def test_the_turn_ends_if_the_collection_raises(tuned, monkeypatch):
    tuner, clock, readings, collector = tuned
    other = Turns(free=True)
    monkeypatch.setattr(turns, "current", other)

    def fail(generation=2):
        raise MemoryError

    collector.collect = fail
    readings.rss_ = 500 * MB
    with pytest.raises(MemoryError):
        look(tuner, clock)
    assert other.calls == ["take", "end"]


# Governors on fake memory


class Board:
    """A container's memory and its postings. Time is simulated: every worker takes steps when it has asked to."""

    def __init__(self, limit=LIMIT, base=10 * MB):
        self.now = 1000.0
        self.limit = limit
        self.base = base
        self.workers = []
        self.most = 0

    def used(self):
        return sum(worker.rss() for worker in self.workers)

    def add(self, **options):
        worker = Worker(self, **options)
        self.workers.append(worker)
        return worker.start()

    def run(self, seconds, each=None):
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            for worker in list(self.workers):
                worker.live(0.05)
            self.most = max(self.most, self.used())
            if each is not None:
                each()

    def spread(self):
        caps = [worker.cache.memory_cap for worker in self.workers]
        return max(caps) / min(caps) - 1


class Member:
    """Stands in for a membership."""

    wanted = True
    reason = ""

    def __init__(self, worker):
        self.worker = worker
        self.slot = len(worker.board.workers)
        self.joined = False
        self.posted = None
        self.posts = 0
        self.seen = {}

    def exchange(self, posting, now):
        self.joined, self.posted = True, posting
        self.posts += 1
        return self.look()

    def look(self):
        found = {
            worker.member.slot: worker.member.posted
            for worker in self.worker.board.workers
            if worker is not self.worker and worker.member.posted is not None
        }
        if found != self.seen:
            self.seen = found
        return self.seen

    def leave(self):
        self.joined = False


class Worker:
    """A governor with one cache, and requests that fill it: each of ``keys`` keys is as likely as any other."""

    VALUE = 64 << 10

    def __init__(self, board, keys=6000, rate=1500, sticky=False, wanted=True):
        self.board = board
        self.keys, self.rate = keys, rate
        # Whether freed memory stays with the process.
        self.sticky = sticky
        self.most = 0
        self.draw = random.Random(len(board.workers)).random
        self.cache = TTLDict(sizeof=lambda key, value: self.VALUE - 128)
        self.governor = MemoryGovernor(readings=self, clock=lambda: board.now)
        self.member = Member(self)
        self.member.wanted = wanted
        self.governor._sharing.member = self.member
        self.governor.register(self.cache)
        self.due = board.now
        self.hits = self.asked = 0

    def start(self):
        # Running, in the test's own thread. What is registered from now on would start the governor's.
        self.governor._worker.target = self.governor
        self.governor._step()
        return self

    # Readings

    def rss(self):
        self.most = max(self.cache.nbytes, self.most if self.sticky else 0)
        return self.board.base + self.most

    def charge(self):
        return self.board.used()

    def reclaimable(self):
        return 0

    def limit(self):
        return self.board.limit

    def total(self):
        return 16_000 * MB

    def available(self):
        return 12_000 * MB

    def live(self, seconds):
        for _ in range(int(self.rate * seconds)):
            key = int(self.keys * self.draw())
            self.asked += 1
            if self.cache.get(key) is not None:
                self.hits += 1
            else:
                self.cache[key] = True
        if self.board.now >= self.due:
            rest = self.governor._rest()
            if not rest:
                self.governor._step()
                rest = self.governor._interval
            self.due = self.board.now + min(rest, 5.0)

    @property
    def held(self):
        return self.cache.nbytes


@pytest.fixture
def board(monkeypatch):
    from synthex_fast import _pressure

    monkeypatch.setattr(_pressure, "_trim", None)
    monkeypatch.setattr(_pressure, "_sought", True)
    before = set(threading.enumerate())
    yield Board()
    late = [thread.name for thread in set(threading.enumerate()) - before if "sweeper" not in thread.name]
    assert not late, "a governor of the board's has a thread of its own"


@pytest.mark.parametrize("gap", [0.0, 1.0, 15.0])
def test_equal_workers_end_equal_whatever_the_order_of_starts(board, gap):
    for _ in range(4):
        board.add()
        board.run(gap)
    board.run(10.0)
    assert board.spread() < 0.15
    board.run(20.0)
    assert board.spread() < 0.15
    assert sum(worker.cache.memory_cap for worker in board.workers) > 0.6 * LIMIT
    assert board.most < 0.9 * LIMIT


def test_three_times_the_working_set_gets_more_and_those_that_fit_stay(board):
    workers = [board.add(keys=3000), *(board.add(keys=1000) for _ in range(3))]
    board.run(60.0)
    assert all(worker.held > 0.97 * 1000 * worker.VALUE for worker in workers[1:])
    assert workers[0].held > 1.8 * workers[1].held


def test_one_that_asks_for_more_gets_more(board):
    workers = [board.add(rate=3000), board.add(), board.add()]
    board.run(120.0)
    assert workers[0].cache.memory_cap > 1.25 * workers[1].cache.memory_cap


class Plain:
    """A cache of one's own that says nothing of its misses."""

    def __init__(self):
        self.entries = TTLDict(sizeof=lambda key, value: Worker.VALUE - 128)
        self.memory_limit = None
        self.cap, self.trim, self.get = self.entries.cap, self.entries.trim, self.entries.get

    def __setitem__(self, key, value):
        self.entries[key] = value

    @property
    def nbytes(self):
        return self.entries.nbytes

    @property
    def memory_cap(self):
        return self.entries.memory_cap


def test_who_cannot_say_what_more_is_worth_keeps_an_equal_share(board):
    board.add()
    silent = Worker(board)
    silent.governor.unregister(silent.cache)
    silent.cache = silent.governor.register(Plain())
    board.workers.append(silent.start())
    board.run(60.0)
    assert silent.held > 0.2 * LIMIT
    assert board.spread() < 0.15


def test_a_burst_of_starts_is_survived_and_shared(board):
    """Each fills its cache as fast as 200 MB a second, before the others have made room."""
    board.add(rate=3000)
    board.run(10.0)
    for _ in range(3):
        board.add(rate=3000)
    board.run(10.0)
    assert board.most < 0.9 * LIMIT
    assert board.spread() < 0.15


def test_a_dead_worker_is_forgotten_and_its_share_is_used(board):
    for _ in range(3):
        board.add()
    board.run(15.0)
    share = board.workers[1].cache.memory_cap
    board.workers.pop(0)
    board.run(2.0)
    assert all(worker.governor.stats["fleet"]["workers"] == 2 for worker in board.workers)
    board.run(8.0)
    assert board.spread() < 0.15
    assert board.workers[0].cache.memory_cap > 1.3 * share


def test_a_new_one_gets_its_share(board):
    for _ in range(3):
        board.add()
    board.run(30.0)
    board.add()
    board.run(10.0)
    assert board.spread() < 0.15
    assert board.workers[-1].held > 0.75 * board.workers[-1].cache.memory_cap


def test_where_memory_does_not_return_no_cache_is_emptied_for_nothing(board):
    """What a cut frees stays with the process, and nobody else can use it: one cut shows that, and no other follows."""
    first = board.add(sticky=True)
    board.run(20.0)
    for _ in range(3):
        board.add()
    board.run(3.0)
    cap = first.cache.memory_cap
    board.run(20.0)
    assert first.cache.memory_cap >= cap > 1.8 * first.governor.stats["fleet"]["share"]
    assert board.most < 0.95 * LIMIT


class Process(Worker):
    """A worker with two caches, which ask for keys in different number."""

    def __init__(self, board, keys, others, **options):
        super().__init__(board, keys=keys, **options)
        self.others = others
        self.other = TTLDict(sizeof=lambda key, value: self.VALUE - 128)
        self.governor.register(self.other)

    def rss(self):
        held = self.cache.nbytes + (self.other.nbytes if hasattr(self, "other") else 0)
        self.most = max(held, self.most if self.sticky else 0)
        return self.board.base + self.most

    def live(self, seconds):
        super().live(seconds)
        for _ in range(int(self.rate * seconds) if self.others else 0):
            key = int(self.others * self.draw())
            if self.other.get(key) is None:
                self.other[key] = True


@pytest.mark.parametrize("sticky", [False, True])
def test_two_caches_of_one_process_share_too_whichever_was_full_first(board, sticky):
    one = Process(board, 6000, 0, wanted=False, sticky=sticky)
    board.workers.append(one.start())
    board.run(20.0)
    assert one.cache.nbytes > 0.55 * LIMIT
    one.others = 6000
    board.run(30.0)
    caps = one.cache.memory_cap, one.other.memory_cap
    # Keys are asked for at random, so that chance counts for much in the beginning.
    assert max(caps) < 1.4 * min(caps)
    assert board.most < 0.85 * LIMIT


def test_of_two_caches_the_one_that_fits_stays_whole(board):
    one = Process(board, 6000, 1000, wanted=False)
    board.workers.append(one.start())
    board.run(60.0)
    assert one.other.nbytes > 0.97 * 1000 * one.VALUE
    assert one.cache.nbytes > 3 * one.other.nbytes


def test_an_only_worker_is_governed_as_ever(board):
    one = board.add()
    board.run(15.0)
    stats = one.governor.stats["fleet"]
    assert (stats["state"], stats["workers"], stats["share"]) == ("joined", 1, None)
    assert one.held > 0.55 * LIMIT


def test_deaths_and_starts_at_random_never_come_near_the_limit(board):
    draw = random.Random(5)
    for _ in range(40):
        if len(board.workers) < 8 and (not board.workers or draw.random() < 0.55):
            board.add(keys=draw.choice([500, 2000, 8000]))
        else:
            board.workers.pop(draw.randrange(len(board.workers)))
        board.run(draw.choice([0.1, 1.0, 4.0]))
    assert board.most < 0.95 * LIMIT


def test_while_nothing_changes_siblings_are_only_looked_at(board):
    workers = [board.add(keys=100) for _ in range(2)]
    board.run(40.0)
    steps = [0, 0]
    for worker in workers:
        worker.member.posts = 0
    for n, worker in enumerate(workers):

        def step(sample=None, n=n, genuine=worker.governor._step):
            steps[n] += 1
            genuine(sample)

        worker.governor._step = step
    board.run(60.0)
    # As often as without siblings: every half a minute.
    assert all(count <= 3 for count in steps)
    assert all(worker.member.posts <= 1 for worker in workers)


def steps_of(worker):
    """The times of a worker's steps from now on."""
    times, genuine = [], worker.governor._step

    def step(sample=None):
        times.append(worker.board.now)
        genuine(sample)

    worker.governor._step = step
    return times


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        lambda worker: setattr(worker, "most", worker.most + 20 * MB),
        lambda worker: worker.cache.update({("more", n): True for n in range(300)}),
        lambda worker: worker.cache.cap(1000 * worker.VALUE),
        lambda worker: worker.cache.resize(memory_limit=2000 * worker.VALUE),
        lambda worker: worker.governor._components.remove(worker.governor._components.find(worker.cache)),
        lambda worker: setattr(worker.board, "limit", LIMIT // 2),
    ],
    ids=[
        "memory grows",
        "the cache grows",
        "another cap",
        "another limit",
        "unregistered",
        "the container shrinks",
    ],
)
def test_a_governor_at_rest_notices_what_changes(board, count, change):
    worker, *_ = [board.add(keys=100, sticky=True) for _ in range(count)]
    board.run(60.0)
    times = steps_of(worker)
    board.run(60.0)
    assert 1 <= len(times) <= 3, "it is not at rest"
    assert all(later - earlier >= 25.0 for earlier, later in itertools.pairwise(times))
    del times[:]
    began = board.now
    change(worker)
    board.run(35.0)
    # The container's limit is read only by a step, and one is taken every half a minute.
    most = 30.5 if board.limit < LIMIT else 10.5
    assert times and times[0] - began <= most


def test_a_hungry_cache_never_rests(board):
    workers = [board.add() for _ in range(2)]
    board.run(60.0)
    times = steps_of(workers[0])
    board.run(20.0)
    assert len(times) >= 4


def test_the_stats_say_who_is_there(board):
    workers = [board.add() for _ in range(2)]
    board.run(10.0)
    stats = workers[0].governor.stats["fleet"]
    assert stats["state"] == "joined"
    assert stats["workers"] == 2
    (other,) = stats["siblings"]
    assert other["pid"] == os.getpid()
    assert {"nbytes", "held", "share", "want", "weight", "level", "started"} <= set(other)
    assert other["share"] == pytest.approx(stats["share"], rel=0.15)


def test_alone_the_stats_say_why():
    governor = MemoryGovernor("1GB", readings=FakeReadings(), fleet=False)
    assert governor.stats["fleet"] == {
        "state": "alone",
        "reason": "fleet=False",
        "workers": 1,
        "share": None,
        "siblings": [],
    }


class Readings(FakeReadings):
    """A process in a container of which nothing else is known."""

    def __init__(self, folder):
        super().__init__(limit=LIMIT, charge=100 * MB)
        self.container = 1, str(folder)


@needs_locks
def test_a_governor_joins_while_it_runs(container):
    governor = MemoryGovernor(readings=Readings(container.container[1]))
    cache = governor.register(TTLDict())
    # One that only looks when it is told to does not act for others.
    governor.check()
    stats = governor.stats["fleet"]
    assert (stats["state"], stats["reason"]) == ("alone", "not running")
    with governor:
        wait_for(lambda: governor.stats["fleet"]["state"] == "joined")
        assert turns.current is not None
    stats = governor.stats["fleet"]
    assert (stats["state"], stats["reason"]) == ("alone", "not running")
    assert turns.current is None
    assert cache.memory_cap is None


@needs_locks
@needs_fork
@quiet_fork
def test_the_governor_of_a_forked_child_joins_as_another_worker(container):
    governor = MemoryGovernor(readings=Readings(container.container[1]))
    cache = governor.register(TTLDict())
    with governor:
        wait_for(lambda: governor.stats["fleet"]["state"] == "joined")

        def child():
            wait_for(lambda: governor.stats["fleet"]["workers"] == 2)
            assert governor.stats["fleet"]["siblings"][0]["pid"] == os.getppid()

        in_child(child)
        wait_for(lambda: governor.stats["fleet"]["workers"] == 1)
    del cache


@needs_locks
def test_a_process_that_ends_leaves(container, tmp_path):
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_fleet import LIMIT, MB, FakeReadings, MemoryGovernor, Readings, TTLDict, wait_for
        governor = MemoryGovernor(readings=Readings(sys.argv[2]))
        cache = governor.register(TTLDict())
        governor.start()
        wait_for(lambda: governor.stats["fleet"]["state"] == "joined")
        """
    run(code, arguments=(str(Path(__file__).parent), container.container[1]))
    # Nothing is left of it, and as it was the only one, not even the file.
    assert os.listdir(fleet_file.find_directory()) == []


def test_an_error_in_the_fleet_stops_no_governor(board, monkeypatch):
    caught = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: caught.append(args.exc_value))
    one, _ = board.add(), board.add()
    board.run(5.0)
    assert one.governor._policy.share is not None

    def fail(posting, now):
        raise MemoryError

    one.member.exchange = fail
    one.member.joined = False
    board.run(15.0)
    assert one.governor._policy.share is None
    assert one.held > 0
    assert board.most < 0.85 * LIMIT
    assert any(isinstance(error, MemoryError) for error in caught)


@needs_locks
def test_a_governor_whose_file_goes_joins_again_without_haste(container, monkeypatch):
    governor = MemoryGovernor(readings=Readings(container.container[1]))
    cache = governor.register(TTLDict())
    with governor:
        wait_for(lambda: governor.stats["fleet"]["state"] == "joined")
        path = governor._sharing.member._file.path
        other = Sibling(path)
        try:
            wait_for(lambda: governor.stats["fleet"]["workers"] == 2)
            # At rest.
            wait_for(lambda: governor._worker.due - time.monotonic() > 1.0)
            looks = []
            genuine = governor._rest
            monkeypatch.setattr(governor, "_rest", lambda: looks.append(1) or genuine())
            os.unlink(path)
            wait_for(lambda: os.path.exists(path))
            assert len(looks) < 20
        finally:
            other.kill()
    del cache


def test_a_watch_that_fails_ends_no_thread(monkeypatch):
    governor = MemoryGovernor(readings=FakeReadings())
    cache = governor.register(TTLDict())
    with governor:
        wait_for(lambda: governor.stats["looks"])
        failed = []

        def fail(*arguments):
            failed.append(arguments)
            raise MemoryError

        monkeypatch.setattr(governor._sharing, "watch", fail)
        governor._worker.plan(3600.0)
        wait_for(lambda: failed)
        looks = governor.stats["looks"]
        governor._worker.plan(0.0)
        wait_for(lambda: governor.stats["looks"] > looks)
        assert governor._worker.thread.is_alive()
    del cache


def test_what_is_asked_for_is_not_put_off_because_siblings_are_quiet():
    governor = MemoryGovernor(readings=FakeReadings())
    first = governor.register(TTLDict())
    with governor:
        wait_for(lambda: governor.stats["looks"])
        governor._rest = lambda: 100.0
        for _ in range(3):
            before = governor.stats["looks"]
            second = governor.register(TTLDict())
            wait_for(lambda before=before: governor.stats["looks"] > before, 10.0)
    del first, second


def test_the_argument_is_checked():
    for bad in (None, 1, 0.5, []):
        with pytest.raises(ArgumentTypeError, match="fleet must be"):
            MemoryGovernor(fleet=bad)
    for bad in ("", "a/b", "../x", "x" * 65, "a b", "é"):
        with pytest.raises(ArgumentValueError, match="fleet must be"):
            MemoryGovernor(fleet=bad)


# Waiting


@contextlib.contextmanager
def no_descriptors_left():
    """Nothing can be opened: a `Watch` then has to look by itself."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def other(sibling):
    return sibling()


@pytest.fixture(params=["notices", "looking"])
def watching(request, path, other):
    """A file with a sibling, and what watches them every 20 milliseconds, with notices from the kernel or without."""
    mine = fleet_file.FleetFile(path)
    siblings = mine.look()
    assert list(siblings) == [other.slot]
    watch = Watch()
    with no_descriptors_left() if request.param == "looking" else contextlib.nullcontext():
        assert mine.watch(watch, siblings, 0.02)
    yield mine, watch
    mine.leave()


def ends_early(watch):
    """Whether it ends long before its time, without having been notified."""
    began = time.monotonic()
    assert not watch.acquire(True, 60.0)
    return time.monotonic() - began < 30.0


@needs_locks
def test_a_watch_that_nothing_happens_to_waits_for_its_time(watching):
    _, watch = watching
    assert not watch.acquire(True, 0.2)
    watch.release()
    assert watch.acquire(True, 60.0)
    assert not watch.acquire(True, 0.1)
    timer = threading.Timer(0.1, watch.release)
    timer.start()
    assert watch.acquire(True, 60.0)
    timer.join()


@needs_locks
def test_a_notice_does_not_make_a_watch_wait_longer_than_it_was_told(path, other):
    mine = fleet_file.FleetFile(path)
    watch = Watch()
    assert mine.watch(watch, mine.look(), 120.0)
    # There is a notice from the beginning, and the next look is far away.
    began = time.monotonic()
    assert not watch.acquire(True, 0.1)
    assert time.monotonic() - began < 60.0
    mine.leave()


@needs_locks
def test_a_watch_ends_when_a_sibling_posts(watching, other):
    _, watch = watching
    timer = threading.Timer(0.1, lambda: other.ask("post"))
    timer.start()
    assert ends_early(watch)
    timer.join()


@needs_locks
def test_a_watch_ends_when_a_sibling_dies(watching, other):
    _, watch = watching
    timer = threading.Timer(0.1, other.kill)
    timer.start()
    assert ends_early(watch)
    timer.join()


@needs_locks
def test_a_watch_ends_when_somebody_joins_or_the_file_goes(watching, path, sibling):
    mine, watch = watching
    third = sibling()
    assert ends_early(watch)
    siblings = mine.look()
    assert third.slot in siblings
    assert mine.watch(watch, siblings, 0.02)
    assert not watch.acquire(True, 0.1)
    os.unlink(path)
    assert ends_early(watch)


@needs_locks
def test_a_watch_overlooks_nothing_that_happened_before_it_began(watching, other):
    mine, watch = watching
    siblings = mine.look()
    other.ask("post")
    assert mine.watch(watch, siblings, 0.02)
    assert ends_early(watch)
    assert watch.changed
    # Not even if nobody looks in between.
    assert mine.watch(watch, siblings, 0.02)
    assert ends_early(watch)
    now = mine.look()
    assert not mine.watch(watch, siblings, 0.02), "these are no longer the siblings"
    assert mine.watch(watch, now, 0.02)
    assert not watch.changed
    assert not watch.acquire(True, 0.1)


@needs_locks
def test_a_watch_is_content_once_all_is_as_before(watching, other):
    mine, watch = watching
    siblings = mine.look()
    at = mine._place(other.slot)
    data = os.pread(mine.fd, 128, at)
    # Somebody joins and is gone again.
    os.pwrite(mine.fd, bytes(128), at)
    assert ends_early(watch)
    os.pwrite(mine.fd, data, at)
    assert mine.look() is siblings
    assert mine.watch(watch, siblings, 0.02)
    assert not watch.changed
    began = time.monotonic()
    assert not watch.acquire(True, 0.2)
    assert time.monotonic() - began > 0.1


@needs_locks
def test_however_often_a_watch_is_released_it_returns_once(watching):
    _, watch = watching
    for _ in range(2):
        for _ in range(3):
            watch.release()
        assert watch.acquire(True, 60.0)
        assert not watch.acquire(True, 0.05)
        watch.look_away()


@needs_locks
def test_a_watch_that_looks_away_only_waits(watching, other):
    _, watch = watching
    watch.look_away()
    other.ask("post")
    assert not watch.acquire(True, 0.2)
    watch.release()
    assert watch.acquire(True, 60.0)


@needs_locks
def test_a_watch_touches_no_descriptors_that_have_become_others(watching):
    mine, watch = watching
    # As a program does that turns into a daemon.
    reader, writer = os.pipe()
    kept = os.dup(mine.fd)
    notices = [fd for fd in range(3, 256) if "anon_inode" in target(fd)]
    for fd in notices:
        os.dup2(writer, fd)
    os.dup2(writer, mine.fd)
    assert not watch.acquire(True, 0.1)
    watch.release()
    assert watch.acquire(True, 60.0)
    del watch
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    for fd in notices:
        assert os.path.sameopenfile(fd, writer)
        os.close(fd)
    os.dup2(kept, mine.fd)
    for fd in (kept, reader, writer):
        os.close(fd)


def target(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


# Real processes in a real container


def bench():
    path = Path(__file__).parents[1] / "bench/bench_fleet.py"
    if not path.exists():
        pytest.skip("the bench is not in this tree")
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("bench_fleet", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


# `work` of the bench, in a process that also tells when its governor looks at its siblings, how many it finds, and for
# how long it rests.
WATCHED = """
import functools, json, sys, time
import bench_fleet
from synthex_fast._fleet.member import Member
from synthex_fast.governor.sharing import Sharing
import threading

def tells(look):
    @functools.wraps(look)
    def told(self, *arguments):
        began = time.monotonic()
        found = look(self, *arguments)
        if threading.current_thread().name == "synthex-fast-governor":
            bench_fleet.say(look=began, found=len(found or ()))
        return found
    return told

def tells_rest(interval):
    @functools.wraps(interval)
    def told(self, *arguments):
        rests = interval(self, *arguments)
        bench_fleet.say(rests=rests, found=len(self._siblings))
        return rests
    return told

Member.look, Member.exchange = tells(Member.look), tells(Member.exchange)
Sharing.interval = tells_rest(Sharing.interval)
bench_fleet.work(sys.argv[1], json.loads(sys.argv[2]))
"""


@pytest.mark.linux
@pytest.mark.root
@pytest.mark.slow
def test_workers_of_a_real_container(monkeypatch, tmp_path):
    """Three find each other and share; one is killed, and the others' next look, within two seconds, finds it gone."""
    module = bench()
    (tmp_path / "watched.py").write_text(WATCHED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.path.dirname(module.__file__)]))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    popen = subprocess.Popen

    def watched(code, **options):
        return popen([code[0], str(tmp_path / "watched.py"), *code[-2:]], **options)

    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(module.Container(256 * MB))
        except module.NoContainerError as error:
            pytest.skip(f"no container can be made here: {error}")
        workers = []

        def last():
            return [worker.rows()[-1:] for worker in workers]

        def each(condition):
            return lambda: all(row and condition(row[0]) for row in last())

        def looks(worker, after=0.0):
            return [line["found"] for line in worker.lines() if line.get("look", 0.0) > after]

        try:
            for n in range(3):
                with monkeypatch.context() as patched:
                    patched.setattr(module.subprocess, "Popen", watched)
                    workers.append(module.Running(container, seed=n, seconds=120.0))
                time.sleep(1.0)
            wait_for(each(lambda row: row["workers"] == 3))
            wait_for(each(lambda row: row["cap"]))
            # The free-threaded build's allocator keeps what the first one frees, so the others never get it.
            if not FREE_THREADED:
                wait_for(lambda: module.spread([row[0]["cap"] for row in last()]) < 0.15)
            wait_for(lambda: all(looks(worker)[-1:] == [2] for worker in workers))
            workers.pop().kill()
            dead = time.monotonic()
            wait_for(lambda: all(looks(worker, dead) for worker in workers))
            # No look that began after the death has found the dead one.
            assert [set(looks(worker, dead)) for worker in workers] == [{1}, {1}]
            # Between two looks a governor with siblings rests for less than two seconds.
            rests = [
                line["rests"]
                for worker in workers
                for line in worker.lines()
                if "rests" in line and line["found"]
            ]
            assert len(rests) >= 2 and max(rests) < 2.0
            wait_for(each(lambda row: row["workers"] == 2))
            assert module.oom_kills(container) == 0
            assert not any(row[0]["errors"] for row in last())
        finally:
            for worker in workers:
                worker.process.send_signal(signal.SIGKILL)
                worker.process.wait()
                worker.out.close()
