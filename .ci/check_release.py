"""Refuse a tag that the version, the changelog or the citation doesn't agree with. Usage: check_release.py TAG"""

import ast
import re
import sys
from pathlib import Path

root = Path(__file__).parents[1]
module = ast.parse((root / "src" / "synthex_fast" / "__init__.py").read_text(encoding="utf-8"))
(version,) = (
    node.value.value
    for node in module.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
)
tag = sys.argv[1]
wrong = []
if tag != f"v{version}":
    wrong.append(f"the tag is {tag!r}, and __version__ asks for 'v{version}'")
if not re.search(
    rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", (root / "CHANGELOG.md").read_text("utf-8"), re.M
):
    wrong.append(f"CHANGELOG.md has no heading '## [{version}] - YYYY-MM-DD'")
if f"\nversion: {version}\n" not in (root / "CITATION.cff").read_text("utf-8"):
    wrong.append(f"CITATION.cff does not state version {version}")
sys.exit("\n".join(wrong) if wrong else 0)
