"""A headless Chromium driven through its DevTools protocol, for the tests that look at a page as a person would."""

import json
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_ENDPOINT = re.compile(rb"DevTools listening on (ws://\S+)")
# Nothing that would go to the network by itself.
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-port=0",
)


class Browser:
    """One process with one page. ``requests`` are the URLs it asked for, ``errors`` what reached its console."""

    def __init__(self):
        from websockets.sync.client import connect

        self._opened = ExitStack()
        enter = self._opened.enter_context
        profile = enter(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        self._log = enter(tempfile.TemporaryFile())  # noqa: SIM115
        self._process = subprocess.Popen(
            [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        self._opened.callback(self._end)
        self._number = 0
        self._session = None
        self.requests, self.errors = [], []
        try:
            self._socket = enter(
                connect(self._endpoint(), max_size=None, open_timeout=30, ping_interval=None, proxy=None)
            )
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def _endpoint(self):
        end = time.monotonic() + 30
        while time.monotonic() < end and self._process.poll() is None:
            self._log.seek(0)
            if found := _ENDPOINT.search(self._log.read()):
                return found[1].decode()
            time.sleep(0.05)
        self._log.seek(0)
        raise RuntimeError(f"the browser does not start: {self._log.read()[-500:]}")

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer.get("method"), answer.get("params"))

    def _note(self, method, given):
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(given["exceptionDetails"].get("exception", given)))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.errors.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(given["entry"]["text"])

    def open(self, url, width=1280, height=900, dark=False, reduced_motion=False):
        self.resize(width, height)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=url)
        # Of the document before, nothing counts any more.
        self.requests.clear()
        self.errors.clear()
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def resize(self, width, height=900):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def eval(self, expression):
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression, seconds=30):
        """Wait until it is true in the page, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.eval(expression)):
            assert time.monotonic() < end, (
                f"still not {expression}; the page says: {self.text('body')[:2000]}"
            )
            time.sleep(0.05)
        return value

    def text(self, selector):
        return self.eval(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''")

    def press(self, key, code=0, shift=False):
        text = "\r" if key == "Enter" else ""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=8 if shift else 0,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def _end(self):
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self):
        self._opened.close()
