"""The package as a whole: what importing it costs and where it works, what it ships, how a process ends."""

import importlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

import synthex_fast

PACKAGE = Path(synthex_fast.__file__).parent
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
# A ``.pxd`` with nothing beside it is inline C for those that cimport it.
HEADERS = ("_clock", "_python", "_sync", "_table")
MODULES = sorted({path.stem for path in PACKAGE.glob("*.pxd")} - set(HEADERS))


def run(code, *options, timeout=60):
    """Run ``code`` in a fresh interpreter that finds this package; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stderr == ""
    return done.stdout


# Importing


def test_import_loads_nothing_that_costs():
    loaded = run(
        """
        import sys
        bare = set(sys.modules)
        import synthex_fast
        print(*sorted(set(sys.modules) - bare))
        """,
        # Without site: what site loads on one machine must not hide what the package loads.
        "-S",
    ).split()
    ours = [name for name in loaded if name.split(".")[0] == "synthex_fast"]
    assert "synthex_fast._records" in ours
    slow = {
        "asyncio", "collections", "contextlib", "ctypes", "dataclasses", "datetime", "enum", "functools",
        "inspect", "json", "logging", "numpy", "psutil", "pydantic", "random", "re", "rich", "socket",
        "subprocess", "tempfile", "threading", "typing", "uuid", "warnings", "weakref",
    }  # fmt: skip
    assert slow.isdisjoint(name.split(".")[0] for name in loaded)


def test_every_public_name_is_there_and_listed():
    for name in synthex_fast.__all__:
        assert getattr(synthex_fast, name) is not None
        assert name in dir(synthex_fast)
    assert len(set(synthex_fast.__all__)) == len(synthex_fast.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = synthex_fast.no_such_name


def test_every_error_is_also_the_builtin_that_callers_expect():
    from synthex_fast import errors

    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.SynthexFastError)
        if error is not errors.SynthexFastError:
            assert any(base.__module__ == "builtins" and base not in (Exception, BaseException, object)
                       for base in error.__mro__)  # fmt: skip


@pytest.mark.skipif(not FREE_THREADED, reason="the standard build always has its lock")
@pytest.mark.parametrize("module", MODULES)
def test_importing_does_not_bring_the_interpreter_lock_back(module):
    assert "False" in run(
        f"""
        import sys, synthex_fast.{module}
        print(sys._is_gil_enabled())
        """
    )


# Subinterpreters

SUBINTERPRETER = """
    import sys
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters

    def create():
        try:
            return interpreters.create({config!r})
        except TypeError:
            return interpreters.create(isolated={config!r} == "isolated")

    def use():
        record = synthex_fast.PooledExpertQuery("A title", "Some content here", "someone")
        assert record.title == "A title"

    code = '''if True:
        try:
            import {module}
        except ImportError as e:
            print("refused")
        else:
            print("works")
    '''

    if {main_first}:
        import synthex_fast
        use()
    for _ in range(3):
        interpreter = create()
        error = interpreters.run_string(interpreter, code)
        assert error is None, error
        interpreters.destroy(interpreter)
    import synthex_fast
    use()
"""


@pytest.mark.parametrize("main_first", [True, False])
@pytest.mark.parametrize("config", ["legacy", "isolated"])
@pytest.mark.parametrize("module", ["synthex_fast", "synthex_fast._pool"])
def test_a_subinterpreter_is_refused_and_the_main_one_unharmed(module, config, main_first):
    if importlib.util.find_spec("_interpreters") is None:
        pytest.importorskip("_xxsubinterpreters")
    code = SUBINTERPRETER.format(module=module, config=config, main_first=main_first)
    # The modules that make subinterpreters warn on 3.11 to 3.13 that they are internal.
    assert run(code, "-W", "ignore").split() == ["refused"] * 3


# What is shipped


def test_sources_for_other_compilers_and_type_checkers_are_shipped():
    assert (PACKAGE / "py.typed").exists()
    assert MODULES
    for module in MODULES:
        assert (PACKAGE / f"{module}.pyi").exists(), f"{module} has no stub"
        compiled = importlib.import_module(f"synthex_fast.{module}")
        assert not compiled.__file__.endswith(".py")
    for header in HEADERS:
        assert (PACKAGE / f"{header}.pxd").exists()


CIMPORT = """
# cython: language_level=3
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint32_t, uint64_t
from cpython.object cimport PyObject
from synthex_fast._pool cimport Freelist, freelist_delete, freelist_new, freelist_pop, freelist_push
from synthex_fast._table cimport (
    LRU, NONE, Slot, Table, heap_next_due, index_home, mix_hash, reserve_node, reserve_slot, slot_accessed, slot_free,
    table_free, table_init, table_insert, table_probe, table_remove, table_victim,
)


cdef void let_go(void* block) noexcept:
    pass


# Under nogil the compiler refuses whatever would call into Python.
cdef int64_t cycle(Freelist* spare, int* blocks, int count, int rounds) noexcept nogil:
    cdef int64_t total = 0
    cdef int n, i
    for n in range(rounds):
        for i in range(count):
            freelist_push(spare, &blocks[i])
        for i in range(count):
            total += (<int*>freelist_pop(spare))[0]
    return total


def use_freelist(int rounds):
    cdef int[4] blocks
    cdef Freelist* spare = freelist_new(3, let_go)
    cdef int i
    for i in range(4):
        blocks[i] = i + 1
    try:
        total = cycle(spare, blocks, 3, rounds)
        return total, [freelist_push(spare, &blocks[i]) for i in range(4)]
    finally:
        freelist_delete(spare)


cdef uint32_t find(Table* table, size_t key) noexcept nogil:
    # The table compares no keys; here they are numbers in the place of pointers.
    cdef uint32_t hash = mix_hash(<Py_hash_t>key, 1), slot, at
    if table.live == 0:
        return NONE
    at = index_home(table, hash)
    while True:
        slot = table_probe(table, hash, &at)
        if slot == NONE or <size_t>table.slots[slot].key == key:
            return slot


cdef bint insert(Table* table, size_t key, double deadline) noexcept nogil:
    if not (reserve_slot(table) and reserve_node(table)):
        return False
    table_insert(table, <PyObject*>key, NULL, mix_hash(<Py_hash_t>key, 1), 10, deadline, 0.0)
    return True


cdef void remove(Table* table, uint32_t slot) noexcept nogil:
    table_remove(table, slot)
    slot_free(table, slot)


cdef (int64_t, int64_t, int64_t, int64_t) fill_and_drain(Table* table, int count) noexcept nogil:
    cdef int64_t found = 0, expired = 0, oldest
    cdef uint32_t slot
    cdef int key, steps
    for key in range(1, count + 1):
        # Odd keys fall due at 10 s.
        if not insert(table, key, 10.0 if key % 2 else INFINITY):
            return -1, -1, -1, -1
    for key in range(1, count + 11):
        if find(table, key) != NONE:
            found += 1
    slot_accessed(table, find(table, 1))
    oldest = <int64_t><size_t>table.slots[table_victim(table)].key
    while True:
        steps = 100
        slot = heap_next_due(table, 11.0, &steps)
        if slot == NONE:
            break
        remove(table, slot)
        expired += 1
    return found, oldest, expired, <int64_t>table.nbytes


def use_table(int count):
    cdef Table table
    cdef (int64_t, int64_t, int64_t, int64_t) result
    table_init(&table, LRU, NONE, INFINITY, 0.0)
    with nogil:
        result = fill_and_drain(&table, count)
        table_free(&table)
    return result
"""

SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    name="borrower",
    ext_modules=cythonize(
        [Extension("borrower", ["borrower.pyx"])],
        compiler_directives={"freethreading_compatible": True},
    ),
)
"""


@pytest.fixture(scope="module")
def borrower(tmp_path_factory):
    """A module built against the installed package's ``.pxd`` files, in a directory of its own."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    home = tmp_path_factory.mktemp("borrower")
    (home / "borrower.pyx").write_text(CIMPORT)
    (home / "setup.py").write_text(SETUP)
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "CFLAGS": "-O0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    sys.path.insert(0, str(home))
    try:
        yield importlib.import_module("borrower")
    finally:
        sys.path.remove(str(home))


def test_other_cython_code_can_use_the_freelist(borrower):
    total, kept = borrower.use_freelist(10)
    assert total == 10 * (1 + 2 + 3)
    assert kept == [True, True, True, False]


def test_other_cython_code_can_use_the_table_without_the_interpreter(borrower):
    found, oldest, expired, nbytes = borrower.use_table(1000)
    assert found == 1000
    # Key 1 was used since, so key 2 is the least recently used.
    assert oldest == 2
    assert expired == 500
    assert nbytes == 500 * 10


# How a process ends

ALIVE = {
    "in a module's globals": "keep = things",
    "in a cycle": "keep = [things]; keep.append(keep)",
    "in a class that outlives the modules": """
        import sys
        class Late:
            kept = things
            def __del__(self):
                for thing in self.kept:
                    repr(thing)
        sys.late = Late()
    """,
    "in a daemon thread that still runs": """
        import threading
        started = threading.Event()
        def work():
            while True:
                for thing in things:
                    repr(thing)
                make()
                started.set()
        threading.Thread(target=work, daemon=True).start()
        started.wait()
    """,
    "in a thread that has ended": """
        import threading
        local = threading.local()
        def work():
            local.things = make()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        keep = things
    """,
    "in an exit handler": """
        import atexit
        atexit.register(lambda: [repr(thing) for thing in make() + things])
    """,
}

MAKE = """
    import synthex_fast as sf

    class Subclass(sf.PooledExpertQuery):
        pass

    def make():
        query = sf.PooledExpertQuery("A title", "Some content here", "someone")
        child = Subclass("A title", "Some content here", "someone")
        response = sf.PooledExpertResponse(query.id, "an expert", "An answer", 0.5)
        things = [query, child, response]
        query.context["self"] = query
        child.context["things"] = things
        pool = sf.ObjectPool(dict, 100, max_idle=0.01)
        pool.release(pool.acquire())
        buffer = sf.ResponseBuffer(100)
        buffer.add(response)
        cache = sf.TTLDict(100, 3600.0)
        cache["query"] = query
        cache["itself"] = cache
        brief = sf.TTLDict(ttl=0.01)
        brief["soon due"] = response
        things += [pool, pool.acquire(), buffer, cache, brief]
        return things

    things = make()
"""


@pytest.mark.parametrize("where", ALIVE)
def test_a_process_ends_quietly_with_objects_alive(where):
    run(textwrap.dedent(MAKE) + textwrap.dedent(ALIVE[where]))


def test_a_process_with_sanitised_memory_ends_quietly():
    # Debug hooks on every allocator find writes past an end and frees through the wrong allocator.
    run(textwrap.dedent(MAKE) + "for _ in range(200): things = make()", "-X", "dev")
