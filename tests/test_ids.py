"""Identifiers: version-4 UUIDs that differ across threads and forks."""

import os
import re
import sys
import threading
import uuid

import pytest
from support import needs_fork, quiet_fork, run

from synthex_fast._ids import uuid4_text

PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
# The whole promise, 10 million, takes a minute: SYNTHEX_TEST_IDS=10000000.
IDS = int(os.environ.get("SYNTHEX_TEST_IDS", 200_000))


def test_form():
    for _ in range(1000):
        text = uuid4_text()
        assert PATTERN.fullmatch(text)
        assert type(text) is str
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)


def test_every_random_bit_varies():
    ones = zeros = 0
    for _ in range(2000):
        bits = uuid.UUID(uuid4_text()).int
        ones |= bits
        zeros |= ~bits
    fixed = (0xF << 76) | (0x3 << 62)
    everything = (1 << 128) - 1
    assert ones | fixed == everything
    assert (zeros & everything) | fixed == everything
    assert ones & ~zeros & everything == (0x4 << 76) | (0x2 << 62)


def test_bits_are_even():
    counts = [0] * 128
    n = 4000
    for _ in range(n):
        bits = uuid.UUID(uuid4_text()).int
        for bit in range(128):
            counts[bit] += bits >> bit & 1
    for bit, count in enumerate(counts):
        if bit not in (62, 63, 76, 77, 78, 79):
            # 8 standard deviations: once in 10**13 runs.
            assert abs(count - n / 2) < 8 * (n / 4) ** 0.5, bit


@pytest.mark.skipif(sys.platform == "win32", reason="made to be read through /proc or ctypes on POSIX")
@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no /proc")
def test_bytes_are_wiped_when_used():
    """Nothing but the returned text has the bytes of an identifier."""
    texts = [uuid4_text() for _ in range(3)]
    wanted = [uuid.UUID(text).bytes for text in texts]
    spans = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "_ids" in line and " rw" in line:
                spans.append(tuple(int(end, 16) for end in line.split()[0].split("-")))
            elif spans and line.split()[-1] == "0" and " rw" in line:
                # The static data of a module may go on in a mapping without a name.
                start, end = (int(each, 16) for each in line.split()[0].split("-"))
                if start == spans[-1][1]:
                    spans.append((start, end))
    assert spans
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for start, end in spans:
            memory.seek(start)
            data = memory.read(end - start)
            assert not any(each in data for each in wanted)


def drawn(n):
    """The bytes of n identifiers, one after the other."""
    return bytes.fromhex("".join([uuid4_text() for _ in range(n)]).replace("-", ""))


def all_differ(data):
    try:
        import numpy as np
    except ImportError:
        return len({data[n : n + 16] for n in range(0, len(data), 16)}) == len(data) // 16
    every = np.sort(np.frombuffer(data, dtype=[("a", ">u8"), ("b", ">u8")]), order=("a", "b"))
    return not np.any(every[1:] == every[:-1])


@needs_fork
@quiet_fork
def test_no_duplicates_across_four_children_and_four_threads():
    each = IDS // 8
    arrays, errors = [], []

    def work():
        try:
            arrays.append(drawn(each))
        except BaseException as e:
            errors.append(e)

    # Part of a batch is left over in every thread's hands when the children start.
    arrays.append(drawn(7))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(4):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(read)
                data = memoryview(drawn(each))
                while data:
                    data = data[os.write(write, data) :]
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        children.append((child, read))
        arrays.append(drawn(3))
    for child, read in children:
        with os.fdopen(read, "rb") as pipe:
            arrays.append(pipe.read())
        assert os.waitpid(child, 0)[1] == 0
    for thread in threads:
        thread.join()
    assert not errors
    data = b"".join(arrays)
    assert len(data) == 16 * (8 * each + 7 + 12)
    assert all_differ(data)


@needs_fork
@pytest.mark.linux(reason="calls the C library's fork through ctypes")
@pytest.mark.parametrize("way", ["os.fork", "fork of the C library"])
def test_a_child_shares_no_batch_with_its_parent(way):
    # In an interpreter of its own: a fork behind the interpreter's back is not for a process with threads.
    code = """
        import ctypes, os, sys
        from synthex_fast._ids import uuid4_text
        fork = os.fork if sys.argv[1] == "os.fork" else ctypes.PyDLL(None).fork
        uuid4_text()
        read, write = os.pipe()
        child = fork()
        if child == 0:
            os.write(write, " ".join(uuid4_text() for _ in range(300)).encode())
            os._exit(0)
        os.close(write)
        mine = {uuid4_text() for _ in range(300)}
        with os.fdopen(read) as pipe:
            theirs = pipe.read().split()
        assert os.waitpid(child, 0)[1] == 0
        assert len(mine) == len(theirs) == len(set(theirs)) == 300
        assert not mine & set(theirs)
    """
    run(code, arguments=[way], stderr=None)


def test_threads(hammer):
    arrays = [[] for _ in range(8)]

    def work(index):
        arrays[index].append(uuid4_text())

    hammer(8, work, iterations=3000)
    made = [text for array in arrays for text in array]
    assert len(set(made)) == len(made) == 24_000


def test_short_lived_threads():
    """Each thread of the free-threaded build starts with an empty batch."""
    made = []
    for _ in range(200):
        thread = threading.Thread(target=lambda: made.append(uuid4_text()))
        thread.start()
        thread.join()
    assert len(set(made)) == 200


def test_allocation_failure(fail_allocations):
    seen = set()

    def several():
        for _ in range(130):
            text = uuid4_text()
            assert text not in seen
            seen.add(text)

    fail_allocations(several)
    fail_allocations(uuid4_text)


def test_no_leaks(leaks_nothing):
    def scenario():
        for _ in range(300):
            uuid4_text()

    leaks_nothing(scenario)


def test_takes_no_arguments():
    with pytest.raises(TypeError):
        uuid4_text(1)


def test_failure_of_the_system_is_passed_on():
    code = """
        import os
        real = os.urandom
        def broken(n):
            if n < 1000:
                return real(n)
            raise NotImplementedError("no randomness")
        os.urandom = broken
        from synthex_fast._ids import uuid4_text
        for _ in range(3):
            try:
                uuid4_text()
            except NotImplementedError:
                continue
            raise AssertionError
    """
    run(code, stderr=None)
