"""An arm's service as an ASGI application: the same for all, except that one uses what this package offers to servers.

A request brings a query and its five answers as JSON. The application parses it, has the arm's service answer it,
leaves behind what requests leave in a service with an object mapper, and returns the consensus as JSON.
"""

import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import synthex_fast
from synthex_fast.validate import corpus, process_memory
from synthex_fast.validate.arms import service
from synthex_fast.validate.background import Background
from synthex_fast.validate.http import heap
from synthex_fast.validate.http.protocol import PATH
from synthex_fast.validate.http.watched import Watched

# How the parent process says what is to be served: a server's workers get nothing else.
SETTINGS = "SYNTHEX_FAST_VALIDATE_HTTP"
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, also while it is stopped.

    A stopped process does not see its standard input end. A group of them is woken when it becomes an orphan, but where
    the first process of a container is in the same session as its parent, it never does.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))


def create() -> Watched:
    """The application that the environment asks for. The long-lived heap is made here, before a server forks."""
    settings = json.loads(os.environ[SETTINGS])
    arm, directory = settings["arm"], Path(settings["directory"])
    make_service = service(arm)
    nodes = heap.build(settings["heap_objects"])
    leavings = heap.Leavings()
    if arm == "tuned_by_hand" and settings["preloaded"]:
        # As gunicorn's users do by hand, so that collections in the workers don't copy the pages that they share.
        gc.collect()
        gc.freeze()
    serving: Any = None

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        nonlocal serving
        # Not inherited by a worker when it is forked.
        end_with_parent()
        if installation is None:
            serving = make_service()
            Background(serving.tasks()).resume()
        else:
            # The installation has a tuner and a monitor for the process.
            serving = make_service(tuned=False)
            serving.register(installation)
        watched.start(directory / f"{os.getpid()}.pauses")
        ready = {"tracked": heap.tracked(), "rss": process_memory.resident(), "nodes": len(nodes)}
        written = directory / f"{os.getpid()}.ready"
        written.with_suffix(".tmp").write_text(json.dumps(ready))
        written.with_suffix(".tmp").rename(written)
        yield
        watched.stop()
        serving.close()

    async def consensus(request: Request) -> JSONResponse:
        body = await request.json()
        body["answers"] = tuple(corpus.Answer(**answer) for answer in body["answers"])
        found = serving.answer(corpus.Request(**body))
        leavings.add(body["requester"])
        return JSONResponse(found._asdict())

    app: Any = Starlette(routes=[Route(PATH, consensus, methods=["POST"])], lifespan=lifespan)
    installation = None
    if arm == "synthex_fast":
        app, installation = synthex_fast.install(app)
    watched = Watched(app)
    return watched
