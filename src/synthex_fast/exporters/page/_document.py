"""The page itself: one document with its style and script inside, so that a browser needs nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from urllib.parse import quote

__all__ = ["document"]

_ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><rect width='16' height='16' rx='3' fill='#2b6cb0'/>"
    "<path d='M2 11l3-4 3 2 3-5 3 3' fill='none' stroke='#fff' stroke-width='1.6'/></svg>"
)
# A fixed text: what is shown comes later, as data, and is put in as text by the script.
_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>synthex-fast</title>
<link rel="icon" href="data:image/svg+xml,{icon}">
<style nonce="{nonce}">
{style}</style>
</head>
<body>
<noscript><p class="empty">This page is drawn by a script; the same figures are at <code>frame</code> below it, as JSON,
and in a terminal: <code>synthex-fast top</code>.</p></noscript>
<a class="skip" href="#memory">Skip to the figures</a>
<header id="top"></header>
<main id="main"></main>
<div id="news" class="unseen" role="status" aria-live="polite"></div>
<script nonce="{nonce}">
{script}</script>
</body>
</html>
"""


@cache
def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def document(nonce: str) -> str:
    """The page, with the nonce that its security policy allows."""
    parts = {"nonce": nonce, "icon": quote(_ICON), "style": _part("page.css"), "script": _part("page.js")}
    text = _DOCUMENT
    for name, value in parts.items():
        text = text.replace("{" + name + "}", value)
    return text
