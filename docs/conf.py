"""How Sphinx builds the documentation: ``python -m sphinx -W --keep-going docs OUTPUT``, with the ``docs`` extra."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_extensions")]

# Imported before Sphinx looks: if it loads a compiled module itself, it takes the stub instead, without docstrings.
import synthex_fast  # noqa: E402

project = "synthex-fast"
copyright = "the synthex-fast authors"
version = release = synthex_fast.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "stub_signatures",
    "complete_api",
]
exclude_patterns = ["_build", "_extensions", "plots"]

# Links to headings as GitHub makes them, so that pages can be read there too.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

# Docstrings have single backticks around names: of the package where there is one, otherwise plain code.
default_role = "py:obj"
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False

html_theme = "furo"
html_title = f"synthex-fast {release}"
html_show_sphinx = False
pygments_style = "default"
pygments_dark_style = "monokai"
