"""Check an installed wheel against the sources it was built from. Usage: check_wheel.py WHEEL SOURCE_PACKAGE."""

import importlib
import struct
import sys
import zipfile
from pathlib import Path

wheel, source = Path(sys.argv[1]), Path(sys.argv[2])
archive = zipfile.ZipFile(wheel)
names = set(archive.namelist())
LARGEST = 1_500_000


def has_symbols(library):
    """Whether a 64-bit ELF file has a symbol table besides that of the dynamic linker, or debug information."""
    (offset,) = struct.unpack_from("<Q", library, 0x28)
    size, count, strings = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, offset + size * n) for n in range(count)]
    texts = library[headers[strings][4] :][: headers[strings][5]]
    return any(kind == 2 or texts[name:].startswith(b".debug") for name, kind, *_ in headers)


missing = [
    path.name
    for pattern in ("*.py", "*.pyi", "*.pxd", "py.typed", "*.css", "*.js")
    for path in sorted(source.rglob(pattern))
    if path.relative_to(source.parent).as_posix() not in names
]
assert not missing, f"not in the wheel: {missing}"
unwanted = [
    name
    for name in names
    if name.endswith((".c", ".pyx", ".pxi", ".html"))
    or not name.startswith((f"{source.name}/", f"{source.name}-"))
]
assert not unwanted, f"in the wheel, and of no use there: {unwanted}"
nbytes = wheel.stat().st_size
assert nbytes < LARGEST, f"the wheel has {nbytes:,} bytes, {LARGEST:,} or more"
libraries = [name for name in names if name.endswith(".so")]
unstripped = [
    name for name in libraries if (data := archive.read(name))[:4] == b"\x7fELF" and has_symbols(data)
]
assert not unstripped, f"not stripped: {unstripped}"

import synthex_fast  # noqa: E402

assert source not in Path(synthex_fast.__file__).parents, "the sources were imported, not the wheel"
for path in sorted(source.glob("*.pyx")):
    module = importlib.import_module(f"synthex_fast.{path.stem}")
    assert not module.__file__.endswith(".py"), f"{path.stem} is not compiled"
    for suffix in (".pxd", ".pyi"):
        assert path.with_suffix(suffix).exists(), f"{path.stem} has no {suffix}"
for name in synthex_fast.__all__:
    getattr(synthex_fast, name)
