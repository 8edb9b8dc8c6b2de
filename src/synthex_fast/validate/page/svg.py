"""Makes a fragment for a page out of a matplotlib figure: text stays text, and colours are the page's variables.

matplotlib knows no CSS, so each variable is drawn in a colour of its own that stands for nothing else, and is replaced
afterwards.
"""

import io
import re
from html import escape
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

NAMES = (
    "ink",
    "soft",
    "line",
    "panel",
    "good",
    "current",
    "recommended",
    "tuned_by_hand",
    "synthex_fast",
)
# Nearly black, so that a colour that was forgotten shows.
COLOURS = {name: f"#0{number:x}0{number:x}0b" for number, name in enumerate(NAMES, 1)}

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": COLOURS["soft"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["soft"],
    "ytick.labelcolor": COLOURS["soft"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": COLOURS["ink"],
    "lines.solid_capstyle": "round",
}


def fragment(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an ``<svg>`` element, closed for drawing afterwards.

    Its identifiers begin with `name`, so that a page may hold several; `title` and `description` are for those who
    don't see it.
    """
    written = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    plt.close(figure)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    # Its stylesheet would be the whole page's; page.css has what matters of it.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    head, _, rest = text.partition(">")
    head = re.sub(r' (width|height|xmlns(:\w+)?|version)="[^"]*"', "", head)
    labels = f'role="img" aria-labelledby="{name}-title {name}-description"'
    return (
        f'{head} {labels}><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>{rest.strip()}'
    )
