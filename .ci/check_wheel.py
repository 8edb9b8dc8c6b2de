"""Check an installed wheel against the sources it was built from. Usage: check_wheel.py WHEEL SOURCE_PACKAGE."""

import importlib
import sys
import zipfile
from pathlib import Path

wheel, source = Path(sys.argv[1]), Path(sys.argv[2])
names = set(zipfile.ZipFile(wheel).namelist())

missing = [
    path.name
    for pattern in ("*.py", "*.pyi", "*.pxd", "py.typed")
    for path in sorted(source.rglob(pattern))
    if path.relative_to(source.parent).as_posix() not in names
]
assert not missing, f"not in the wheel: {missing}"
unwanted = [name for name in names if name.endswith((".c", ".pyx", ".html")) or name.startswith("tests/")]
assert not unwanted, f"in the wheel, and of no use there: {unwanted}"

import synthex_fast  # noqa: E402

assert source not in Path(synthex_fast.__file__).parents, "the sources were imported, not the wheel"
for path in sorted(source.glob("*.pyx")):
    module = importlib.import_module(f"synthex_fast.{path.stem}")
    assert not module.__file__.endswith(".py"), f"{path.stem} is not compiled"
    for suffix in (".pxd", ".pyi"):
        assert path.with_suffix(suffix).exists(), f"{path.stem} has no {suffix}"
for name in synthex_fast.__all__:
    getattr(synthex_fast, name)
