"""Readings: the figures against fixture trees of both versions of control groups, and against the real kernel."""

import contextlib
import math
import mmap
import os
import threading

import pytest
from support import MB, FakeReadings, needs_fork, quiet_fork, run

from synthex_fast import _readings
from synthex_fast._readings import Readings, memory_limit, parse_size

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
NO_LIMIT = 9223372036854771712

MEMINFO = """\
MemTotal:       16384000 kB
MemFree:         1000000 kB
MemAvailable:    8000000 kB
Buffers:               0 kB
SwapCached:            0 kB
SwapTotal:       2000000 kB
SwapFree:        1500000 kB
"""
TOTAL = 16384000 << 10
V1_MOUNT = "32 31 0:29 {part} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V2_MOUNT = "41 31 0:38 {part} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"


class Tree:
    """A machine's ``/proc`` and ``/sys`` as files."""

    def __init__(self, root):
        self.root = root
        self.write("proc/self/statm", "5000 1234 300 1 0 700 0\n")
        self.write("proc/meminfo", MEMINFO)
        self.write("proc/self/cgroup", "0::/\n")
        self.write("proc/self/mountinfo", "31 23 0:28 / / rw,relatime - ext4 /dev/vda rw\n")

    def write(self, path, text):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def belong(self, membership, *mounts):
        self.write("proc/self/cgroup", membership + "\n")
        self.write("proc/self/mountinfo", "\n".join(("31 23 0:28 / / rw - ext4 /dev/vda rw", *mounts)) + "\n")

    def v1(self, path, usage=100 * MB, limit=NO_LIMIT, hierarchical=None, inactive=7 * MB, swap=3 * MB):
        self.write(f"{path}/memory.usage_in_bytes", f"{usage}\n")
        self.write(f"{path}/memory.limit_in_bytes", f"{limit}\n")
        least = limit if hierarchical is None else hierarchical
        self.write(f"{path}/memory.memsw.usage_in_bytes", f"{usage + swap}\n")
        self.write(
            f"{path}/memory.stat",
            f"cache 1\ninactive_file 1\nhierarchical_memory_limit {least}\n"
            f"total_swap {swap}\ntotal_inactive_file {inactive}\ntotal_active_file 0\n",
        )

    def v2(self, path, usage=100 * MB, limit="max", inactive=7 * MB, swap=3 * MB):
        self.write(f"{path}/memory.current", f"{usage}\n")
        self.write(f"{path}/memory.max", f"{limit}\n")
        self.write(f"{path}/memory.stat", f"anon 1\ninactive_anon 2\ninactive_file {inactive}\nfile 9\n")
        if swap is not None:
            self.write(f"{path}/memory.swap.current", f"{swap}\n")

    def readings(self):
        return Readings(self.root)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


pytestmark = pytest.mark.skipif(not hasattr(os, "pread"), reason="the trees are read with pread")


def figures(readings):
    return readings.charge(), readings.limit(), readings.reclaimable(), readings.swap()


# Outside of a container


def test_a_host_without_control_groups(tree):
    readings = tree.readings()
    assert readings.rss() == 1234 * PAGE
    assert readings.total() == TOTAL
    assert readings.available() == 8000000 << 10
    assert readings.container is None
    assert figures(readings) == (None, None, 0, 500000 << 10)
    assert readings.slow() == (None, 8000000 << 10, 500000 << 10, 0)


def test_proc_without_the_files_about_control_groups(tree):
    (tree.root / "proc/self/cgroup").unlink()
    assert figures(tree.readings()) == (None, None, 0, 500000 << 10)


def test_the_root_of_a_hierarchy_is_the_host(tree):
    tree.belong("4:memory:/", V1_MOUNT.format(part="/"))
    tree.v1("sys/fs/cgroup/memory")
    tree.write("sys/fs/cgroup/memory/release_agent", "")
    assert figures(tree.readings()) == (None, None, 0, 500000 << 10)
    # Version 2 has no memory.current there.
    tree.belong("0::/", V2_MOUNT.format(part="/"))
    assert tree.readings().charge() is None


# Version 1


def test_v1_container_in_its_own_namespace(tree):
    tree.belong("4:cpu,memory:/\n0::/", V1_MOUNT.format(part="/").replace("rw,memory", "rw,cpu,memory"))
    tree.v1("sys/fs/cgroup/memory", limit=512 * MB)
    readings = tree.readings()
    assert figures(readings) == (100 * MB, 512 * MB, 7 * MB, 3 * MB)
    assert readings.container == (1, str(tree.root / "sys/fs/cgroup/memory"))
    assert readings.slow() == (512 * MB, 8000000 << 10, 3 * MB, 7 * MB)


def test_v1_container_whose_mount_shows_only_its_own_group(tree):
    tree.belong("4:memory:/docker/abc", V1_MOUNT.format(part="/docker/abc"))
    tree.v1("sys/fs/cgroup/memory", limit=512 * MB)
    assert tree.readings().limit() == 512 * MB


def test_v1_group_below_the_mounted_part(tree):
    tree.belong("4:memory:/docker/abc/worker", V1_MOUNT.format(part="/docker/abc"))
    tree.v1("sys/fs/cgroup/memory", usage=300 * MB, limit=512 * MB)
    tree.v1("sys/fs/cgroup/memory/worker", hierarchical=512 * MB)
    # The container is the group with the limit, and its charge includes its other groups.
    assert figures(tree.readings()) == (300 * MB, 512 * MB, 7 * MB, 3 * MB)


def test_v1_limit_of_a_group_that_the_container_does_not_see(tree):
    tree.belong("4:memory:/pod/abc", V1_MOUNT.format(part="/pod/abc"))
    tree.v1("sys/fs/cgroup/memory", limit=512 * MB, hierarchical=256 * MB)
    readings = tree.readings()
    assert readings.slow()[0] == 256 * MB
    assert figures(readings)[:2] == (100 * MB, 256 * MB)


def test_v1_process_elsewhere_than_its_mount_shows(tree):
    tree.belong("4:memory:/kubepods/x/abc", V1_MOUNT.format(part="/docker/abc"))
    tree.v1("sys/fs/cgroup/memory", limit=512 * MB)
    assert tree.readings().limit() == 512 * MB
    tree.v1("sys/fs/cgroup/memory/abc", limit=128 * MB)
    assert tree.readings().limit() == 128 * MB


@pytest.mark.parametrize("number", [NO_LIMIT, 2**63 - 1, 0x7FFFFFFFFFFF0000, TOTAL, 2 * TOTAL])
def test_v1_without_a_limit_that_binds(tree, number):
    tree.belong("4:memory:/user", V1_MOUNT.format(part="/"))
    tree.v1("sys/fs/cgroup/memory/user", limit=number)
    assert figures(tree.readings()) == (100 * MB, None, 7 * MB, 3 * MB)
    assert tree.readings().slow()[0] is None


# Version 2


def test_v2_container_in_its_own_namespace(tree):
    tree.belong("0::/", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup", limit=512 * MB)
    readings = tree.readings()
    assert figures(readings) == (100 * MB, 512 * MB, 7 * MB, 3 * MB)
    assert readings.container == (2, str(tree.root / "sys/fs/cgroup"))
    assert readings.slow() == (512 * MB, 8000000 << 10, 3 * MB, 7 * MB)
    # Far from the limit the most expensive file stays unread.
    assert readings.slow(near=200 * MB) == (512 * MB, 8000000 << 10, 3 * MB, 0)


def test_v2_without_limit_and_swap_accounting(tree):
    tree.belong("0::/user.slice/a", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup/user.slice/a", swap=None)
    tree.v2("sys/fs/cgroup/user.slice")
    assert figures(tree.readings()) == (100 * MB, None, 7 * MB, 500000 << 10)


def test_v2_the_least_limit_of_nested_groups_and_the_charge_of_its_group(tree):
    tree.belong("0::/a/b/c", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup/a/b/c", usage=10 * MB, limit=900 * MB)
    tree.v2("sys/fs/cgroup/a/b", usage=20 * MB, limit=600 * MB)
    tree.v2("sys/fs/cgroup/a", usage=40 * MB, limit=700 * MB)
    readings = tree.readings()
    assert figures(readings)[:2] == (20 * MB, 600 * MB)
    # Of equal limits the outermost is reached first.
    tree.write("sys/fs/cgroup/a/memory.max", f"{600 * MB}\n")
    assert readings.limit() == 600 * MB
    assert readings.charge() == 40 * MB


def test_v2_group_without_the_controller_belongs_to_the_one_around_it(tree):
    tree.belong("0::/user.slice/session.scope", V2_MOUNT.format(part="/"))
    tree.write("sys/fs/cgroup/user.slice/session.scope/cgroup.procs", "")
    tree.v2("sys/fs/cgroup/user.slice", limit=400 * MB)
    assert figures(tree.readings())[:2] == (100 * MB, 400 * MB)


def test_v2_mount_from_outside_of_the_namespace(tree):
    tree.belong("0::/", V2_MOUNT.format(part="/../.."))
    tree.v2("sys/fs/cgroup", limit=400 * MB)
    assert tree.readings().limit() == 400 * MB
    assert not tree.readings().container_known
    # The process is outside of what is mounted here.
    tree.belong("0::/../other", V2_MOUNT.format(part="/"))
    assert tree.readings().limit() is None
    assert not tree.readings().container_known


def test_v2_rootless_container_is_found_by_its_members(tree):
    tree.belong("0::/", V2_MOUNT.format(part="/../.."))
    tree.v2("sys/fs/cgroup", limit=4000 * MB, usage=900 * MB)
    tree.v2("sys/fs/cgroup/user", limit="max", usage=800 * MB)
    tree.v2("sys/fs/cgroup/user/pod", limit=500 * MB, usage=100 * MB)
    tree.write("sys/fs/cgroup/user/pod/cgroup.procs", f"1\n{os.getpid()}\n")
    tree.v2("sys/fs/cgroup/user/other", limit=50 * MB)
    tree.write("sys/fs/cgroup/user/other/cgroup.procs", f"1{os.getpid()}\n")
    readings = tree.readings()
    assert readings.container_known
    assert readings.limit() == 500 * MB
    assert readings.container == (2, str(tree.root / "sys/fs/cgroup/user/pod"))


def test_a_membership_longer_than_a_page_is_read_whole(tree):
    others = "".join(f"{n}:name{n}:/{'x' * 100}\n" for n in range(20, 90))
    assert len(others) > 4096
    tree.belong(others + "4:memory:/pod", V1_MOUNT.format(part="/"))
    tree.v1("sys/fs/cgroup/memory/pod", limit=512 * MB)
    assert tree.readings().limit() == 512 * MB


# What counts against which limit


def test_v2_file_pages_in_use_are_reclaimable(tree):
    tree.belong("0::/", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup", usage=990 * MB, limit=1000 * MB)
    tree.write(
        "sys/fs/cgroup/memory.stat",
        f"anon {300 * MB}\nfile {690 * MB}\nshmem {40 * MB}\nfile_dirty {15 * MB}\nfile_writeback {5 * MB}\n"
        f"inactive_file {20 * MB}\nactive_file {600 * MB}\nunevictable {30 * MB}\nslab_reclaimable {10 * MB}\n",
    )
    readings = tree.readings()
    assert readings.limit() == 1000 * MB
    assert readings.reclaimable() == (20 + 600 + 10 - 15 - 5) * MB


def levels(tree):
    """The levels that monitor and governor see, and the share of memory that the tuner does."""
    from synthex_fast import AdaptiveMemoryMonitor, GCTuner, MemoryGovernor, TTLDict

    monitor = AdaptiveMemoryMonitor(readings=tree.readings())
    cache = TTLDict()
    cache.update((n, n) for n in range(1000))
    governor = MemoryGovernor(readings=tree.readings())
    governor.register(cache)
    level = governor.check()
    with GCTuner(readings=tree.readings(), freeze=False) as tuner:
        share = tuner.stats["memory_share"]
    return monitor.sample().level, level, round(share, 2), len(cache)


def test_page_cache_in_use_is_no_pressure(tree):
    tree.belong("0::/", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup", usage=990 * MB, limit=1000 * MB)
    tree.write(
        "sys/fs/cgroup/memory.stat",
        f"anon {300 * MB}\ninactive_file {20 * MB}\nactive_file {670 * MB}\n",
    )
    assert levels(tree) == ("normal", "normal", 0.3, 1000)


def test_little_room_in_the_group_around_is_pressure(tree):
    tree.belong("0::/pod/app", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup/pod/app", usage=410 * MB, limit=2000 * MB, inactive=0)
    tree.v2("sys/fs/cgroup/pod", usage=3960 * MB, limit=4000 * MB, inactive=0)
    assert levels(tree)[:3] == ("emergency", "emergency", 0.99)


def test_a_soft_limit_that_is_reached_is_pressure(tree):
    tree.belong("0::/", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup", usage=599 * MB, limit=1000 * MB, inactive=0)
    tree.write("sys/fs/cgroup/memory.high", f"{600 * MB}\n")
    assert levels(tree)[:3] == ("emergency", "emergency", 1.0)


def test_v1_file_pages_in_use_are_reclaimable(tree):
    tree.belong("4:memory:/", V1_MOUNT.format(part="/"))
    tree.v1("sys/fs/cgroup/memory", usage=230 * MB, limit=240 * MB)
    tree.write(
        "sys/fs/cgroup/memory/memory.stat",
        f"cache 1\nhierarchical_memory_limit {240 * MB}\ntotal_shmem {9 * MB}\ntotal_dirty {3 * MB}\n"
        f"total_writeback {1 * MB}\ntotal_inactive_file {50 * MB}\ntotal_active_file {150 * MB}\n"
        f"total_unevictable {2 * MB}\n",
    )
    assert tree.readings().reclaimable() == (50 + 150 - 3 - 1) * MB


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_with_the_least_room_counts(tree, version):
    if version == 1:
        tree.belong("4:memory:/pod/app", V1_MOUNT.format(part="/"))
        add, top = tree.v1, "sys/fs/cgroup/memory"
        tree.write(f"{top}/release_agent", "")
    else:
        tree.belong("0::/pod/app", V2_MOUNT.format(part="/"))
        add, top = tree.v2, "sys/fs/cgroup"
    add(f"{top}/pod/app", usage=410 * MB, limit=2000 * MB, inactive=0)
    add(f"{top}/pod", usage=3960 * MB, limit=4000 * MB, inactive=0)
    readings = tree.readings()
    assert (readings.limit(), readings.charge()) == (4000 * MB, 3960 * MB)
    # What the one around it could give back is room.
    add(f"{top}/pod", usage=3960 * MB, limit=4000 * MB, inactive=3000 * MB)
    assert (readings.limit(), readings.charge()) == (2000 * MB, 410 * MB)
    assert readings.slow()[0] == 2000 * MB


@pytest.mark.parametrize("hard", [1000 * MB, "max"])
def test_v2_soft_limit_counts_where_it_is_the_lower(tree, hard):
    tree.belong("0::/", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup", usage=599 * MB, limit=hard)
    tree.write("sys/fs/cgroup/memory.high", f"{600 * MB}\n")
    readings = tree.readings()
    assert readings.limit() == 600 * MB
    assert readings.slow()[0] == 600 * MB
    tree.write("sys/fs/cgroup/memory.high", "max\n")
    assert readings.limit() == (None if hard == "max" else hard)
    # As little as can be is not the same as no limit.
    tree.write("sys/fs/cgroup/memory.high", "0\n")
    assert readings.limit() == 1
    assert memory_limit(None, readings) == 1


def test_hybrid_host_has_the_controller_in_version_1(tree):
    tree.belong(
        "4:memory:/a\n1:name=systemd:/b\n0::/b",
        V1_MOUNT.format(part="/"),
        V2_MOUNT.format(part="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
    )
    tree.v1("sys/fs/cgroup/memory/a", limit=300 * MB)
    tree.write("sys/fs/cgroup/unified/b/cgroup.procs", "")
    assert tree.readings().limit() == 300 * MB
    # And in version 2 where version 1 doesn't list it.
    tree.belong("1:name=systemd:/b\n0::/b", V1_MOUNT.format(part="/"), V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup/b", limit=200 * MB)
    assert tree.readings().limit() == 200 * MB


def test_mount_point_with_a_space(tree):
    tree.belong("0::/", V2_MOUNT.format(part="/").replace("/sys/fs/cgroup", r"/mnt/my\040groups"))
    tree.v2("mnt/my groups", limit=512 * MB)
    assert tree.readings().limit() == 512 * MB


# Change


def test_a_limit_that_changes_is_seen(tree):
    tree.belong("0::/", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup", limit=512 * MB)
    readings = tree.readings()
    assert readings.limit() == 512 * MB
    for text, expected in ((f"{256 * MB}", 256 * MB), ("max", None), (f"{128 * MB}", 128 * MB)):
        tree.write("sys/fs/cgroup/memory.max", text + "\n")
        assert readings.limit() == expected
        assert readings.slow()[0] == expected


def test_v1_limit_that_changes_is_seen(tree):
    tree.belong("4:memory:/a/b", V1_MOUNT.format(part="/"))
    tree.v1("sys/fs/cgroup/memory/a", usage=30 * MB)
    tree.v1("sys/fs/cgroup/memory/a/b", usage=10 * MB, limit=512 * MB)
    readings = tree.readings()
    assert (readings.limit(), readings.charge()) == (512 * MB, 10 * MB)
    tree.v1("sys/fs/cgroup/memory/a", usage=30 * MB, limit=256 * MB)
    tree.v1("sys/fs/cgroup/memory/a/b", usage=10 * MB, limit=512 * MB, hierarchical=256 * MB)
    for _ in range(2):
        assert (readings.limit(), readings.charge()) == (256 * MB, 30 * MB)
    tree.v1("sys/fs/cgroup/memory/a", usage=30 * MB)
    tree.v1("sys/fs/cgroup/memory/a/b", usage=10 * MB)
    assert (readings.limit(), readings.charge()) == (None, 10 * MB)


def test_a_process_that_is_moved_is_followed(tree):
    tree.belong("0::/a", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup/a", limit=512 * MB)
    tree.v2("sys/fs/cgroup/b", usage=5 * MB, limit=256 * MB)
    readings = tree.readings()
    assert readings.limit() == 512 * MB
    tree.write("proc/self/cgroup", "0::/b\n")
    assert 256 * MB in [readings.slow()[0] for _ in range(8)]
    assert readings.charge() == 5 * MB
    tree.write("proc/self/cgroup", "0::/a\n")
    assert readings.limit() == 512 * MB


def test_closed_descriptors_are_opened_again(tree):
    tree.belong("0::/", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup", limit=512 * MB)
    readings = tree.readings()
    assert readings.rss() == 1234 * PAGE
    readings.close()
    readings.close()
    assert (readings.rss(), *figures(readings)[:2]) == (1234 * PAGE, 100 * MB, 512 * MB)


def open_descriptors():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is among them.
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.add(int(name))
    return found


@pytest.mark.linux(reason="counts descriptors in /proc")
def test_no_descriptor_is_left_open(tree):
    tree.belong("0::/a", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup/a", limit=512 * MB)
    before = open_descriptors()
    readings = tree.readings()
    readings.slow()
    assert len(open_descriptors()) > len(before)
    readings.close()
    assert open_descriptors() == before
    readings.slow()
    del readings
    assert open_descriptors() == before


@pytest.mark.linux(reason="counts descriptors in /proc")
def test_a_daemon_that_closes_every_descriptor_goes_on_and_keeps_its_new_ones(tree):
    tree.belong("0::/a", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup/a", limit=512 * MB)
    before = open_descriptors()
    readings = tree.readings()
    readings.slow()
    ours = open_descriptors() - before
    for fd in ours:
        os.close(fd)
    # The numbers are another's now, one that gives nothing back.
    others = [os.open(os.devnull, os.O_RDONLY) for _ in ours]
    try:
        assert set(others) == ours
        assert readings.rss() == 1234 * PAGE
        assert readings.charge() == 100 * MB
        assert readings.slow()[0] == 512 * MB
        readings.close()
        for fd in others:
            os.fstat(fd)
    finally:
        for fd in others:
            os.close(fd)


def test_threads_may_read_while_another_closes(tree):
    tree.belong("0::/a", V2_MOUNT.format(part="/"))
    tree.v2("sys/fs/cgroup/a", limit=512 * MB)
    readings = tree.readings()
    wrong = []

    def read():
        for _ in range(300):
            got = readings.rss(), readings.charge(), readings.slow()[0]
            if got != (1234 * PAGE, 100 * MB, 512 * MB):
                wrong.append(got)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        readings.close()
    for thread in threads:
        thread.join()
    assert wrong == []


# Elsewhere than on Linux


def test_psutil_where_there_is_no_proc(tmp_path):
    psutil = pytest.importorskip("psutil")
    readings = Readings(tmp_path)
    assert readings.total() == psutil.virtual_memory().total
    assert 0 < readings.rss() < readings.total()
    assert 0 < readings.available() <= readings.total()
    assert readings.swap() >= 0
    assert (readings.charge(), readings.limit(), readings.reclaimable()) == (None, None, 0)
    assert readings.container is None
    limit, available, swap, reclaimable = readings.slow()
    assert (limit, reclaimable) == (None, 0)
    assert available > 0
    assert swap >= 0
    readings.close()
    assert readings.rss() > 0


def test_no_psutil_and_no_numpy_where_proc_is_there(tree):
    code = f"""
        import sys
        from synthex_fast._readings import Readings
        readings = Readings({str(tree.root)!r})
        assert readings.rss() and readings.slow()
        print("psutil" in sys.modules, "numpy" in sys.modules)
    """
    assert run(code) == "False False\n"


# The real kernel


@pytest.mark.linux(reason="compares with /proc")
def test_this_process_against_psutil():
    psutil = pytest.importorskip("psutil")
    readings = Readings()
    process = psutil.Process()
    low = process.memory_info().rss
    rss = readings.rss()
    assert low * 0.9 <= rss <= process.memory_info().rss * 1.1
    assert readings.total() == psutil.virtual_memory().total
    # The system's own, because an allocator may have memory left that was freed before.
    block = mmap.mmap(-1, 64 * MB)
    block.write(bytes(64 * MB))
    assert readings.rss() - rss > 50 * MB
    del block
    assert abs(readings.available() - psutil.virtual_memory().available) < 0.2 * readings.total()


@needs_fork
@quiet_fork
def test_the_child_of_a_fork_reads_its_own_figures():
    readings = Readings()
    before = readings.rss()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            # Pages of files that the parent had mapped are not the child's yet.
            inherited = readings.rss()
            # Not from an allocator, which may have some in hand.
            block = mmap.mmap(-1, 128 * MB)
            for at in range(0, 128 * MB, PAGE):
                block[at] = 1
            status = int(not readings.rss() > inherited + 100 * MB)
            block.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert readings.rss() < before + 100 * MB


@pytest.mark.linux
@pytest.mark.root
def test_a_real_control_group(group):
    (group / "memory.limit_in_bytes").write_text(str(256 * MB))
    out = run(
        f"""
        import os
        from synthex_fast._readings import Readings, memory_limit
        readings = Readings()
        before = readings.charge()
        with open({str(group / "cgroup.procs")!r}, "w") as file:
            file.write(str(os.getpid()))
        print(readings.limit(), memory_limit(None, readings), memory_limit("50%", readings))
        print(readings.container)
        charge = readings.charge()
        block = b"x" * {64 * MB}
        print(readings.charge() - charge > {60 * MB}, readings.charge() < {256 * MB})
        with open({str(group / "memory.limit_in_bytes")!r}, "w") as file:
            file.write(str({128 * MB}))
        print(readings.slow()[0])
        """
    )
    assert out.splitlines() == [
        f"{256 * MB} {256 * MB} {128 * MB}",
        str((1, str(group))),
        "True True",
        str(128 * MB),
    ]


@pytest.mark.linux
def test_page_cache_in_use_in_a_real_control_group(group, tmp_path):
    (group / "memory.limit_in_bytes").write_text(str(96 * MB))
    file = tmp_path / "data"
    file.write_bytes(bytes(1 * MB) * 70)
    out = run(
        f"""
        import os
        from synthex_fast import MemoryGovernor, TTLDict
        from synthex_fast._readings import Readings
        with open({str(group / "cgroup.procs")!r}, "w") as file:
            file.write(str(os.getpid()))
        cache = TTLDict(memory_limit={8 * MB})
        for n in range(1000):
            cache[n] = bytes(1000)
        governor = MemoryGovernor()
        governor.register(cache)
        levels = set()
        # What is cached already is another group's.
        with open({str(file)!r}, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        # Read more than once, pages are no longer "inactive".
        for _ in range(5):
            with open({str(file)!r}, "rb") as file:
                while file.read({4 * MB}):
                    levels.add(governor.check())
        readings = Readings()
        print(sorted(levels), len(cache), readings.charge() > {70 * MB}, readings.reclaimable() > {40 * MB})
        """
    )
    assert out == "['normal'] 1000 True True\n"


# Limits as users write them


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("536870912", 512 * MB),
        ("512MB", 512 * MB),
        ("512M", 512 * MB),
        ("512mib", 512 * MB),
        ("512Mi", 512 * MB),
        (" 2 GB ", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("100kb", 100 << 10),
        ("100b", 100),
        ("0.5k", 512),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "MB", ".", "-1", "+1", "1e3", "1_000", "0", "0.5", "0MB", "1.2.3", "512 MBit", "512XB", "nan", "inf",
     "infinity", "\u0663", "5%", "1" * 40, "1GBB", "1ib", "kk", "1 2"],
)  # fmt: skip
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"max_heap must be a size like .*, not .*\(str\)"):
        parse_size(text, "max_heap")


@pytest.mark.parametrize("value", [None, 5, b"5MB", ["5"]])
def test_size_of_another_type(value):
    with pytest.raises(TypeError, match="memory_limit must be"):
        parse_size(value)


@pytest.mark.parametrize(
    ("limit", "container", "expected"),
    [
        (None, None, 16 << 30),
        (None, 1 << 30, 1 << 30),
        ("80%", None, int((16 << 30) * 0.8)),
        ("50%", 1 << 30, 1 << 29),
        ("100%", 1 << 30, 1 << 30),
        ("12.5%", 1 << 30, 1 << 27),
        ("2GB", 1 << 30, 2 << 30),
        (1 << 20, 1 << 30, 1 << 20),
        (16 << 30, None, 16 << 30),
        (1e9, None, 10**9),
    ],
)
def test_memory_limits(limit, container, expected):
    assert memory_limit(limit, FakeReadings(container)) == expected


@pytest.mark.parametrize(
    "limit",
    [
        0,
        -1,
        0.5,
        -1.0,
        math.nan,
        math.inf,
        -math.inf,
        1 << 62,
        1e30,
        "9000000000GB",
        "0%",
        "101%",
        "-5%",
        "%",
        "lots",
    ],
)
def test_limits_out_of_reach(limit):
    with pytest.raises(ValueError, match="memory_limit must be"):
        memory_limit(limit, FakeReadings())


@pytest.mark.parametrize("limit", [True, False, b"1GB", [1], 1j, object()])
def test_limits_of_another_type(limit):
    with pytest.raises(TypeError, match="limit must be 1 byte or more"):
        memory_limit(limit, FakeReadings(), "limit")


def test_whatever_counts_as_an_integer_is_one():
    numpy = pytest.importorskip("numpy")
    assert memory_limit(numpy.int64(5_000_000), FakeReadings()) == 5_000_000
    assert memory_limit(numpy.float64(5e6), FakeReadings()) == 5_000_000


def test_the_monitor_shows_the_limit_in_force_and_the_one_asked_for():
    from synthex_fast import AdaptiveMemoryMonitor

    with pytest.warns(RuntimeWarning, match="limit"):
        monitor = AdaptiveMemoryMonitor(limit=64 << 40, readings=FakeReadings())
    stats = monitor.stats
    assert (stats["limit"], stats["requested_limit"]) == (FakeReadings().total(), 64 << 40)


def test_the_module_is_on_nobodys_way():
    assert _readings.__all__ == [
        "Readings",
        "container_state",
        "memory_limit",
        "parse_size",
        "requested_limit",
    ]


def test_a_limit_above_what_the_machine_has_is_clamped():
    with pytest.warns(RuntimeWarning, match="limit is 687194767360 bytes, more than this machine has"):
        assert memory_limit("640GB", FakeReadings(), "limit") == 16 << 30
    with pytest.warns(RuntimeWarning):
        assert memory_limit((16 << 30) + 1, FakeReadings()) == 16 << 30
    assert _readings.requested_limit("640GB", FakeReadings()) == 640 << 30


def _small_tree(root, members, mounts, groups):
    files = {
        "proc/self/statm": "10000 5632 100 1 0 100 0\n",
        "proc/meminfo": "MemTotal: 16000000 kB\nMemFree: 9000000 kB\nMemAvailable: 9000000 kB\n",
        "proc/self/cgroup": members,
        "proc/self/mountinfo": mounts,
    } | groups
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Readings(root)


def test_a_group_that_cannot_be_read_may_have_a_limit(tmp_path):
    readings = _small_tree(
        tmp_path,
        "0::/app\n",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        {"sys/fs/cgroup/app/memory.current": "1000\n"},
    )
    assert readings.container_state == "unknown"


@pytest.mark.parametrize(("hierarchical", "limit"), [("1", 400_000), ("0", 2_000_000)])
def test_a_version_1_group_counts_its_children_only_with_use_hierarchy(tmp_path, hierarchical, limit):
    groups = {}
    for name, usage, most in (("p", 399_000, 400_000), ("p/app", 1_000, 2_000_000)):
        group = f"sys/fs/cgroup/memory/{name}/memory."
        groups |= {
            f"{group}usage_in_bytes": f"{usage}\n",
            f"{group}limit_in_bytes": f"{most}\n",
            f"{group}use_hierarchy": f"{hierarchical}\n",
            f"{group}stat": f"cache 0\nhierarchical_memory_limit {most}\n",
        }
    readings = _small_tree(
        tmp_path,
        "5:memory:/p/app\n",
        "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        groups,
    )
    assert readings.limit() == limit
