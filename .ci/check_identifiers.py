"""Compare the wheels that cibuildwheel would build with those intended, and with what the package says of itself.

Usage: check_identifiers.py CHECKOUT FILE, where the file has cibuildwheel's build identifiers.
"""

import re
import sys
import tomllib
from pathlib import Path

checkout, built = Path(sys.argv[1]), set(Path(sys.argv[2]).read_text().split())
listed = (checkout / ".ci" / "wheel-identifiers").read_text().splitlines()
intended = {line for line in listed if line and not line.startswith("#")}
assert built == intended, (
    f"not built though listed: {sorted(intended - built)}; built though not listed: {sorted(built - intended)}"
)

with (checkout / "pyproject.toml").open("rb") as file:
    classifiers = tomllib.load(file)["project"]["classifiers"]
found = {re.match(r"cp(\d)(\d+)(t?)-(\w+?)_", identifier).groups() for identifier in intended}
true = {
    *(f"Programming Language :: Python :: {major}.{minor}" for major, minor, _, _ in found),
    *(
        {
            "manylinux": "Operating System :: POSIX :: Linux",
            "musllinux": "Operating System :: POSIX :: Linux",
            "macosx": "Operating System :: MacOS",
            "win": "Operating System :: Microsoft :: Windows",
        }[platform]
        for *_, platform in found
    ),
}
claimed = {c for c in classifiers if re.match(r"Operating System|Programming Language :: Python :: \d\.", c)}
assert claimed == true, f"classifiers and wheels differ: {sorted(claimed ^ true)}"
