"""What the package offers: every name that the API pages must describe, found in the package itself."""

import importlib
import inspect
from pathlib import Path

import synthex_fast

PACKAGE = Path(synthex_fast.__file__).parent

# Public names that live in modules whose own names begin with an underscore.
IN_PRIVATE_MODULES = {
    "_ids": ("uuid4_text",),
    "_sizeof": ("sizeof", "sizeof_pair"),
    "_pool": ("Acquisition", "Lease"),
    "_record": ("RecordStats",),
    "_slab": ("Columns", "Aggregate", "AggregateRow"),
}


def public_modules():
    """The modules and packages next to ``__init__`` whose names don't begin with an underscore. Not ``validate`` and
    ``top``: they are commands, and their modules are for reading.
    """
    found = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    return sorted(
        name for name in found if not name.startswith("_") and name not in ("cli", "top", "validate")
    )


def public_names():
    """{full name: the object}, each object once: under `synthex_fast` itself if it is there."""
    found, seen = {}, set()
    modules = {"synthex_fast": synthex_fast.__all__}
    for name in public_modules():
        module = importlib.import_module(f"synthex_fast.{name}")
        modules[module.__name__] = module.__all__
    modules |= {f"synthex_fast.{name}": names for name, names in IN_PRIVATE_MODULES.items()}
    for module, names in modules.items():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            # Texts and numbers may be equal without being the same thing.
            shared = inspect.isclass(value) or inspect.isroutine(value)
            if not shared or id(value) not in seen:
                seen.add(id(value))
                found[f"{module}.{name}"] = value
    return found


def members(value):
    """The public attributes that a class of the package defines itself."""
    if not inspect.isclass(value):
        return []
    return [name for name in vars(value) if not name.startswith("_")]
