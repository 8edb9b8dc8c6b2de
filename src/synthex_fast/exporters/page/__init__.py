"""A live page of the process's figures: an ASGI app, a WSGI app, and a Unix socket for ``synthex-fast top``.

Nothing of it is active unless asked for: the apps answer where they are mounted, and only to clients on the same
machine unless ``allow`` names others. They show figures and names, never keys or values, and change nothing.
While nobody looks, nothing runs.

>>> from synthex_fast.exporters import page
>>> app = page.asgi()          # app.mount("/synthex", page.asgi()) in FastAPI or Starlette

Who owns what: `_figures` picks what may be shown from ``Observed.snapshot()``; `_feed` takes snapshots while somebody
looks and keeps the last minutes; `_access` decides who may look and what a path means; `_document` makes the page from
``page.css`` and ``page.js``; `_asgi`, `_wsgi` and `_socket` carry it.
"""

from synthex_fast.exporters.page._asgi import asgi
from synthex_fast.exporters.page._socket import Listener, listen
from synthex_fast.exporters.page._wsgi import wsgi

__all__ = ["Listener", "asgi", "listen", "wsgi"]
