"""One self-contained page of a run: the table, and plots of what is behind it. It needs no network and no script.

- `plots` draws, with matplotlib, what the JSON of a run holds; a plot without data is left out.
- `svg` makes of such a drawing a fragment for the page, whose colours follow the page's.
- `document` puts the table, the plots and the conditions of the run together.
"""

from typing import Any


def render(found: dict[str, Any]) -> str:
    """The page of what ``synthex-fast validate --json`` wrote, as HTML."""
    # It needs matplotlib, which the command checks for before a run.
    from synthex_fast.validate.page import document

    return document.page(found)
