"""Which part of the package may import which: the two wings stand on one ground floor, and nothing imports upwards."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import synthex_fast

# The Cython sources are not installed: where the tests run in a checkout, its own tree is read.
SOURCES = Path(__file__).parents[1] / "src" / "synthex_fast"
PACKAGE = SOURCES if SOURCES.is_dir() else Path(synthex_fast.__file__).parent

# From the bottom up. A part imports only from rows above its own here; those of one row don't know each other.
GROUND = (
    {
        "errors",
        "_interpreter",
        "_unraisable",
        "_python",
        "_sync",
        "_clock",
        "_random",
        "_threads",
        "kinds",
        "_runtime_directory",
    },
    {"_arguments", "_forks", "_lifecycle", "_table", "_pressure"},
    {"_readings", "_ids", "_sizeof", "_sweeper"},
)
RECORDS = (
    {"_freelist", "_codes", "_loads"},
    {"_pool", "_consensus", "_async_loads"},
    {"_record", "_ttl", "_async_flush"},
    {"record", "_tiered", "_cached"},
    {"_declaration", "caching"},
    {"experts"},
    {"_slab"},
    {"collector", "tiered", "compat"},
)
MEMORY = ({"_fleet"}, {"monitor", "gc_tuner", "node"}, {"governor"})
ABOVE = ({"validate", "exporters"}, {"integrations", "top"}, {"cli"})


def allowed():
    """For each part, the parts that it may import."""
    ground = set().union(*GROUND)
    result = {}
    for rows, below in (
        (GROUND, set()),
        (RECORDS, ground),
        (MEMORY, ground),
        (ABOVE, ground.union(*RECORDS, *MEMORY, {"__init__"})),
    ):
        for row in rows:
            for part in row:
                result[part] = below
            below = below | row
    # The face: what it hands on.
    result["__init__"] = ground.union(*RECORDS, *MEMORY)
    return result


def part_of(path):
    name = path.relative_to(PACKAGE).parts[0].split(".")[0]
    # What a module includes begins with its name.
    return "_" + name.split("_")[1] if path.suffix == ".pxi" and path.parent == PACKAGE else name


def parts_named(module, names):
    """The parts that ``from module import names`` is about; for the face itself ``__init__``."""
    head, _, rest = module.partition(".")
    if head != "synthex_fast":
        return set()
    if rest:
        return {rest.split(".")[0]}
    inside = {path.name.split(".")[0] for path in PACKAGE.iterdir()}
    return {name if name in inside else "__init__" for name in names}


def imports(path):
    """The parts that a file imports when it runs; what only type checkers read is left out."""
    found = set()
    if path.suffix != ".py":
        # Docstrings of Cython files show imports too, but behind a prompt.
        for module, names in re.findall(
            r"^[ \t]*from[ \t]+(synthex_fast[\w.]*)[ \t]+c?import[ \t]+\(?([^()#\n]*)", path.read_text(), re.M
        ):
            found |= parts_named(module, [name.split()[0] for name in names.split(",") if name.strip()])
        for module in re.findall(r"^[ \t]*c?import[ \t]+(synthex_fast[\w.]*)", path.read_text(), re.M):
            found |= parts_named(module, [""])
        return found

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node):
            only_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            for statement in node.orelse if only_types else [*node.body, *node.orelse]:
                self.visit(statement)

        def visit_Import(self, node):
            for name in node.names:
                found.update(parts_named(name.name, [""]))

        def visit_ImportFrom(self, node):
            assert not node.level, f"a relative import in {path}"
            found.update(parts_named(node.module, [name.name for name in node.names]))

    Visitor().visit(ast.parse(path.read_text()))
    return found


FILES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx", ".pxd", ".pxi"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_imports_upwards_or_from_the_other_wing(path):
    part = part_of(path)
    assert part in allowed(), "a new part: give it a row above"
    assert imports(path) - {part} <= allowed()[part]


def test_imports_are_found_in_either_language():
    assert {"_pressure", "_unraisable", "monitor"} <= imports(PACKAGE / "governor/governor.py")
    assert imports(PACKAGE / "node.py") >= {"_arguments", "_readings", "errors"}
    assert {"_codes", "_consensus"} <= imports(PACKAGE / "_slab.pxd")


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("gc_tuner", "GCTuner BOUNDARY_MOST_NS BUCKETS CAUSES FORCED GROWTH_AT_LEAST HIGH_WATERMARK YOUNG_MOST"),
        ("gc_tuner", "FREE_THREADED GENERATIONAL INCREMENTAL OUT_OF_REACH RETRY_SECONDS collector_kind"),
        ("governor", "MemoryGovernor EMERGENCY HYSTERESIS IDLE_SECONDS LEVELS MARKS NORMAL OVERHEAD ROUNDS SIZED_FOR"),
        ("governor", "CONTAINER_SECONDS WORTH_IT"),
        ("monitor", "AdaptiveMemoryMonitor HYSTERESIS LEVELS METRICS Leak Sample Trend mann_kendall theil_sen"),
    ],
)  # fmt: skip
def test_names_are_where_they_were_before_a_module_became_a_package(module, names):
    package = importlib.import_module(f"synthex_fast.{module}")
    for name in names.split():
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="NO_SUCH_NAME"):
        _ = package.NO_SUCH_NAME
