"""The package as a whole: what importing it costs and where it works, what it ships, how a process ends."""

import importlib
import importlib.util
import textwrap
from pathlib import Path

import pytest
from conftest import CYTHON, build_extension
from support import FREE_THREADED, run

import synthex_fast

PACKAGE = Path(synthex_fast.__file__).parent
# A ``.pxd`` with nothing beside it is inline C for those that cimport it.
HEADERS = ("_clock", "_python", "_random", "_sync", "_table")
MODULES = sorted({path.stem for path in PACKAGE.glob("*.pxd")} - set(HEADERS))


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
    assert "synthex_fast.experts" in ours
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


@pytest.fixture(scope="module")
def borrower(tmp_path_factory):
    """A module built against the installed package's ``.pxd`` files, in a directory of its own."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    return build_extension(CYTHON / "borrower.pyx", tmp_path_factory.mktemp("borrower"), "-O0")


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
