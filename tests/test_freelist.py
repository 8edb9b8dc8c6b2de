"""The C-level freelist, through a small module that cimports it as any other Cython code would."""

import gc
import os
import random
import sys
import threading
from collections import Counter

import pytest
from conftest import CYTHON, build_extension
from support import FREE_THREADED, in_threads, needs_fork

pytest.importorskip("Cython")
pytest.importorskip("setuptools")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    return build_extension(CYTHON / "blocks.pyx", tmp_path_factory.mktemp("blocks"), "-O0")


@pytest.fixture(autouse=True)
def nothing_gone(blocks):
    blocks.gone.clear()


def test_gives_the_block_released_last_first(blocks):
    idle = blocks.Blocks(1000)
    for block in range(1, 501):
        assert idle.push(block)
    assert [idle.pop() for _ in range(501)] == [*range(500, 0, -1), 0]
    stats = idle.stats()
    assert [stats[name] for name in ("idle", "reused", "missed", "released", "discarded")] == [
        0,
        500,
        1,
        500,
        0,
    ]


def test_pool_hands_out_the_freelist_of_its_own_module(blocks):
    idle = blocks.Blocks(10)
    assert idle.push(1)
    assert idle.push_own(2)
    assert [idle.pop(), idle.pop_own(), idle.pop()] == [2, 1, 0]
    idle.count_made()
    assert idle.stats()["made"] == 2


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 63, 64, 65, 300, 2**40, sys.maxsize])
def test_keeps_as_many_as_the_limit_allows(blocks, limit):
    idle = blocks.Blocks(limit)
    kept = [idle.push(block) for block in range(1, 401)]
    assert kept == [True] * min(400, limit) + [False] * max(0, 400 - limit)
    assert idle.stats()["idle"] == min(400, limit)
    assert idle.stats()["discarded"] == max(0, 400 - limit)


@pytest.mark.parametrize("pinned", [False, True])
def test_random_operations_against_a_list(blocks, pinned):
    chance = random.Random(7)
    for limit in (1, 3, 10, 100, 400):
        idle, model, discarded, fresh = blocks.Blocks(limit, pinned), Counter(), 0, 1
        blocks.gone.clear()
        for _ in range(5000):
            action = chance.random()
            if action < 0.5:
                kept = idle.push(fresh)
                assert kept == (model.total() < limit)
                model[fresh] += kept
                discarded += not kept
                fresh += 1
            elif action < 0.98:
                block = idle.pop()
                assert bool(block) == (model.total() > 0)
                if block:
                    assert model[block] == 1
                    del model[block]
            else:
                if action < 0.99:
                    limit = chance.choice((1, 3, 10, 100, 400))
                    expected = max(0, model.total() - limit)
                    assert idle.resize(limit) == expected
                else:
                    wanted = chance.randrange(20)
                    expected = min(wanted, model.total())
                    assert idle.trim(wanted) == expected
                assert len(blocks.gone) == expected
                discarded += expected
                model.subtract(blocks.gone)
                model += Counter()
                blocks.gone.clear()
            assert idle.stats()["idle"] == model.total() <= limit
            assert idle.stats()["discarded"] == discarded
        del idle
        assert Counter(blocks.gone) == model


def test_trims_the_coldest_first(blocks):
    idle = blocks.Blocks(100)
    for block in range(1, 11):
        idle.push(block)
    assert idle.trim(4) == 4
    assert blocks.gone == [1, 2, 3, 4]
    assert idle.pop() == 10


def test_many_freelists_and_slots_used_again(blocks):
    kept = [blocks.Blocks(4) for _ in range(300)]
    for number, idle in enumerate(kept):
        idle.push(number + 1)
    del kept[::2]
    fresh = [blocks.Blocks(4) for _ in range(300)]
    assert all(idle.pop() == 0 for idle in fresh)
    assert [idle.pop() for idle in kept] == list(range(2, 301, 2))


def test_blocks_of_an_ended_thread_go_to_the_others(blocks):
    idle = blocks.Blocks(1000)
    in_threads(lambda: [idle.push(block) for block in range(1, 101)])
    assert idle.stats()["idle"] == 100
    assert sorted(idle.pop() for _ in range(100)) == list(range(1, 101))
    in_threads(lambda: [idle.push(block) for block in range(1, 101)])
    popped = []
    in_threads(lambda: popped.extend(idle.pop() for _ in range(100)))
    assert sorted(popped) == list(range(1, 101))
    assert not blocks.gone


def test_the_limit_holds_when_threads_take_over_from_ended_ones(blocks):
    idle = blocks.Blocks(64)
    together = threading.Barrier(4)

    def push():
        together.wait()
        for block in range(1, 17):
            idle.push(block)
        together.wait()

    # This thread has a magazine, so it takes blocks out of one that was left, not the whole magazine.
    assert not idle.pop()
    in_threads(*[push] * 4)
    assert idle.stats()["idle"] == 64
    assert idle.pop()
    in_threads(*[push] * 4)
    for block in range(1, 17):
        idle.push(block)
    assert idle.stats()["idle"] == 64


@pytest.mark.skipif(not FREE_THREADED, reason="any thread may take any block on the standard build")
def test_pinned_blocks_of_an_ended_thread_are_let_go(blocks):
    idle = blocks.Blocks(1000, True)
    in_threads(lambda: [idle.push(block) for block in range(1, 101)])
    assert idle.stats()["idle"] == 0
    assert idle.stats()["discarded"] == 100
    assert sorted(blocks.gone) == list(range(1, 101))


def test_one_thread_pushes_what_another_pops(blocks):
    """The producer's credit must find its way back, or all but the first blocks are refused."""
    idle = blocks.Blocks(200)
    turn = [threading.Semaphore(1), threading.Semaphore(0)]
    got = []

    def push():
        for start in range(1, 20_001, 100):
            turn[0].acquire()
            for block in range(start, start + 100):
                assert idle.push(block)
            turn[1].release()

    def pop():
        for _ in range(200):
            turn[1].acquire()
            got.append(sum(idle.pop() != 0 for _ in range(100)))
            turn[0].release()

    in_threads(push, pop)
    # A magazine may hold some back; whatever is neither popped nor idle would be lost.
    assert sum(got) + idle.stats()["idle"] == 20_000
    assert sum(got) > 19_000


@pytest.mark.parametrize("limit", [1, 10, 1000])
def test_eight_threads_never_share_a_block_or_pass_the_limit(blocks, limit):
    idle = blocks.Blocks(limit)
    owners = {}
    ends = threading.Event()

    def hammer(seed):
        chance = random.Random(seed)
        held = []
        for number in range(3000):
            if chance.random() < 0.5:
                block = idle.pop()
                if block == 0:
                    block = seed * 1_000_000 + number + 1
                assert owners.setdefault(block, seed) == seed, "two threads hold one block"
                held.append(block)
            elif held:
                block = held.pop(chance.randrange(len(held)))
                del owners[block]
                idle.push(block)
        for block in held:
            del owners[block]
            idle.push(block)

    def walk():
        while not ends.is_set():
            assert idle.stats()["idle"] <= limit
            idle.trim(1)

    watcher = threading.Thread(target=walk)
    watcher.start()
    try:
        in_threads(*(lambda seed=seed: hammer(seed) for seed in range(8)))
    finally:
        ends.set()
        watcher.join()
    stats = idle.stats()
    assert stats["idle"] <= limit
    left = 0
    while idle.pop():
        left += 1
    assert left == stats["idle"] - idle.stats()["idle"]
    assert stats["released"] - stats["reused"] - stats["idle"] == len(blocks.gone)


def test_deleted_before_its_threads_end(blocks):
    idle = [blocks.Blocks(100)]
    ready, go_on = threading.Event(), threading.Event()

    def use():
        idle[0].push(5)
        ready.set()
        go_on.wait()

    thread = threading.Thread(target=use)
    thread.start()
    ready.wait()
    idle.clear()
    gc.collect()
    assert blocks.gone == [5]
    go_on.set()
    thread.join()
    assert blocks.gone == [5]


def test_another_freelist_has_taken_the_slot_when_a_thread_ends(blocks):
    idle = [blocks.Blocks(100)]
    ready, go_on = threading.Event(), threading.Event()

    def use():
        idle[0].push(5)
        ready.set()
        go_on.wait()

    thread = threading.Thread(target=use)
    thread.start()
    ready.wait()
    idle.clear()
    gc.collect()
    others = [blocks.Blocks(100) for _ in range(3)]
    for other in others:
        for block in range(1, 11):
            other.push(block)
    go_on.set()
    thread.join()
    assert blocks.gone == [5]
    for other in others:
        assert other.stats()["idle"] == 10
        assert [other.pop() for _ in range(11)] == [*range(10, 0, -1), 0]


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_child_takes_over_the_blocks_of_the_threads_it_lost(blocks):
    idle = blocks.Blocks(1000)
    filled, ends = threading.Barrier(4), threading.Event()

    def fill_and_stay(start):
        for block in range(start, start + 50):
            idle.push(block)
        filled.wait()
        while not ends.is_set():
            idle.exchange(100)

    threads = [threading.Thread(target=fill_and_stay, args=(1 + 50 * number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    filled.wait()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    got = set()
                    while block := idle.pop():
                        got.add(block)
                    # A thread may hold one block each while the fork happens.
                    code = 0 if len(got) >= 147 and idle.stats()["idle"] == 0 else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def test_allocation_failure_keeps_the_freelist_whole(blocks):
    testcapi = pytest.importorskip("_testcapi")
    for start in range(1, 12):
        idle = blocks.Blocks(1000)
        refused = 0
        for block in range(1, 200):
            testcapi.set_nomemory(start, start + 1) if block in (1, 17, 33, 65) else None
            try:
                kept = idle.push(block)
            except MemoryError:
                continue
            finally:
                testcapi.remove_mem_hooks()
            refused += not kept
        stats = idle.stats()
        assert stats["discarded"] == refused
        popped = 0
        while idle.pop():
            popped += 1
        assert popped == stats["idle"] == stats["released"]
