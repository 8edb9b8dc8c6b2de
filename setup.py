"""Builds the Cython modules. Everything else about the package is in pyproject.toml.

Two environment variables are for development: ``SYNTHEX_FAST_CFLAGS`` adds compiler and linker flags, such as those of
a sanitizer, and ``SYNTHEX_FAST_ANNOTATE=1`` writes Cython's annotated HTML next to each module.
"""

import os
import shlex
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DIRECTIVES = {
    "language_level": 3,
    "freethreading_compatible": True,
    # Methods stay method descriptors, which the interpreter's specialised call paths handle; Cython's functions don't.
    "binding": False,
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
}
extra_flags = shlex.split(os.environ.get("SYNTHEX_FAST_CFLAGS", ""))
# The generated C consists mostly of short calls into the interpreter: -O2 keeps it small for the instruction cache.
flags = ["/O2"] if sys.platform == "win32" else ["-O2", "-fno-strict-aliasing", "-Wno-unreachable-code"]
# Symbol tables are for debuggers and would double the wheel's size. Builds with flags of their own are for debugging.
strip = {"linux": ["-Wl,-s"], "darwin": ["-Wl,-x"]}.get(sys.platform, [])

modules = [
    Extension(
        ".".join(source.relative_to("src").with_suffix("").parts),
        [source.as_posix()],
        extra_compile_args=flags + extra_flags,
        extra_link_args=extra_flags or strip,
    )
    for source in sorted(Path("src/synthex_fast").rglob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        modules,
        compiler_directives=DIRECTIVES,
        include_path=["src"],
        annotate=os.environ.get("SYNTHEX_FAST_ANNOTATE") == "1",
        build_dir="build/cython",
    )
)
