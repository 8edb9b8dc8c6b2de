"""A small service under load with the live page, to look at it: prints the URL. With --screenshot, takes a picture.

Usage: python bench/page.py [--port N] [--seconds S] [--screenshot FILE [--dark] [--width N]]

The picture of the documentation: python bench/page.py --seconds 75 --screenshot docs/pictures/live-page.png
(needs Chromium, ``websockets`` and Pillow).
"""

import argparse
import base64
import io
import os
import random
import sys
import threading
import time
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from synthex_fast import (
    AdaptiveMemoryMonitor,
    GCTuner,
    MemoryGovernor,
    ObjectPool,
    PooledExpertQuery,
    PooledExpertResponse,
    ResponseBuffer,
    TTLDict,
)
from synthex_fast.exporters import Observed, page

MB = 1 << 20


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


class Service:
    """Caches, pools and a buffer that requests use, under one limit."""

    def __init__(self):
        self.shown = Observed()
        show = self.shown.add
        self.users = show(TTLDict(memory_limit=40 * MB, ttl=30, policy="s3fifo"), "users")
        self.sessions = show(TTLDict(max_size=20_000, ttl=20), "sessions")
        self.answers = show(TTLDict(memory_limit=400 * MB), "answers")
        self.buffers = show(ObjectPool(bytearray, 200), "buffers")
        show(PooledExpertQuery)
        show(PooledExpertResponse)
        self.responses = show(ResponseBuffer(1000, 100, on_flush=lambda batch: None), "responses")
        self.tuner, self.monitor = show(GCTuner()), show(AdaptiveMemoryMonitor())
        self.governor = show(MemoryGovernor("256MB", monitor=self.monitor))
        for name in ("users", "sessions", "answers", "buffers", "responses"):
            self.governor.register(getattr(self, name), name=name)
        self.governor.register(self.tuner)

    def request(self, n):
        with self.tuner.request(), self.buffers.lease():
            for _ in range(40):
                key = int(random.paretovariate(0.6)) % 60_000
                if self.users.get(key) is None:
                    self.users[key] = "x" * random.randrange(100, 3000)
                key = int(random.paretovariate(0.4)) % 30_000
                if self.sessions.get(key) is None:
                    self.sessions[key] = key
            if self.answers.get(n - random.randrange(1, 9000)) is None:
                self.answers[n] = os.urandom(40_000)
            query = PooledExpertQuery("a title", "what it is about", "somebody")
            self.responses.add(PooledExpertResponse(query.id, "expert", confidence=0.5))
            for _ in range(200):
                cycle = []
                cycle.append(cycle)

    def serve(self):
        for n in range(sys.maxsize):
            self.request(n)
            time.sleep(0.008)


def screenshot(url, path, seconds, width, dark):
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from browser import Browser

    browser = Browser()
    try:
        browser.open(url, width=width, dark=dark)
        time.sleep(seconds)
        height = browser.eval(
            "Math.ceil(document.querySelector('#buffers').getBoundingClientRect().bottom) + 14"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        picture = browser.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        from PIL import Image

        # 220 colours are enough, and make the file small.
        opened = Image.open(io.BytesIO(base64.b64decode(picture["data"]))).convert("RGB")
        opened.quantize(220, dither=Image.Dither.NONE).save(path, optimize=True)
    finally:
        browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--screenshot", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1180)
    given = parser.parse_args()
    service = Service()
    app = page.wsgi(service.shown, streams=4)

    def threaded(environ, start_response):
        # wsgiref doesn't know that it is.
        return app({**environ, "wsgi.multithread": True}, start_response)

    server = make_server("127.0.0.1", given.port, threaded, Server, Quiet)
    url = f"http://localhost:{server.server_port}/"
    with service.tuner, service.monitor, service.governor:
        for run in (server.serve_forever, service.serve):
            threading.Thread(target=run, daemon=True).start()
        if given.screenshot is None:
            print(f"{url} for {given.seconds:g} seconds", flush=True)
            time.sleep(given.seconds)
        else:
            screenshot(url, given.screenshot, given.seconds, given.width, given.dark)
        server.shutdown()


if __name__ == "__main__":
    main()
