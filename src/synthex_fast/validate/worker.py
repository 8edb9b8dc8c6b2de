"""One arm's process: ``python -m synthex_fast.validate.worker ARM SEED``.

It reads one JSON command a line on standard input and answers each with one JSON line on standard output; an
answer with ``"payload": n`` is followed by n raw bytes. It ends when its standard input does, in the middle
of a round if need be, so that it can't outlive the process that started it, however that one ended.
"""

import contextlib
import gc
import json
import os
import pickle
import queue
import sys
import threading
import time
import traceback
from array import array

from synthex_fast.validate import corpus, garbage, process_memory, simulated_day
from synthex_fast.validate.arms import service
from synthex_fast.validate.background import Background

# More than a round needs: it is at most three seconds, and 200,000 requests a second is beyond any arm.
MOST_REQUESTS = 600_000
FIRST_REQUESTS = 5
# Enough to fill the larger cache and to evict from both.
FILL_REQUESTS = 1_100


class Collections:
    """The collector's runs while `watch`ed: how many of each generation, and how long each one stopped the
    program.
    """

    def __init__(self):
        self.pauses = array("q")  # nanoseconds
        self._began = 0

    def _on_collection(self, phase, _info):
        if phase == "start":
            self._began = time.perf_counter_ns()
        else:
            self.pauses.append(time.perf_counter_ns() - self._began)

    @contextlib.contextmanager
    def watch(self):
        self.pauses = array("q")
        gc.callbacks.append(self._on_collection)
        try:
            yield
        finally:
            gc.callbacks.remove(self._on_collection)


def collected() -> list[int]:
    """Collections since the process began, by generation."""
    return [generation["collections"] for generation in gc.get_stats()]


class Arm:
    """A service under load, and what is measured of it."""

    def __init__(self, name: str, seed: int):
        self.seed = seed
        self.requests = corpus.make(seed)
        self.latencies = array(
            "q", bytes(8 * MOST_REQUESTS)
        )  # nanoseconds; written to here, so that it is resident
        self.collections = Collections()
        gc.collect()
        self.before_import = process_memory.resident()
        self.make_service = service(name)
        gc.collect()
        # The collector is to traverse what the load makes, not the harness, its corpus or what was imported.
        gc.freeze()
        self.before_load = process_memory.resident()
        self.service = self.make_service()
        self.background = Background(self.service.tasks())

    def fill(self) -> None:
        handle, requests = self.service.handle, self.requests
        for request in requests:
            handle(request)
        for request in requests[: FILL_REQUESTS - len(requests)]:
            handle(request)

    def first_fill(self) -> dict:
        """Fill the caches for the first time in this process, and return what the collector did during that."""
        before = collected()
        with self.collections.watch():
            self.fill()
        return {
            "requests": FILL_REQUESTS,
            "collections": [late - early for early, late in zip(before, collected(), strict=True)],
            "pauses": list(self.collections.pauses),
        }

    def consensus(self, count: int) -> list[tuple]:
        """What the first `count` requests return, for comparing the arms."""
        return [tuple(self.service.handle(request)) for request in self.requests[:count]]

    def allocation(self) -> dict:
        """What a request allocates: bytes and blocks, and how many of the bytes are kept."""
        self.service.expire()
        kept = garbage.kept(self.service.handle, self.requests)
        self.fill()
        return {**garbage.allocated(self.service.handle, self.requests), "kept_bytes": kept}

    def count_collections(self, seconds: float, objects: int) -> dict:
        """How often the collector runs beside a long-lived heap; the service is made anew, and nothing is frozen."""
        self.service.close()
        self.service = self.background = None
        gc.unfreeze()
        return garbage.count_collections(self.make_service, self.requests, seconds, objects)

    def held(self) -> dict:
        """Bytes that a service with full caches holds, by tracemalloc, and what its caches believe they hold.

        Meant for a process of its own, in which nothing was served before. What is allocated from the making
        of the service to its last request, and is still there when the buffer has been emptied, is in its
        caches and pools. Every request arrives as fresh objects here, as from a network, so that the texts
        count where they are kept.
        """
        import tracemalloc

        arriving = [pickle.dumps(self.requests[i % len(self.requests)]) for i in range(FILL_REQUESTS)]
        tracemalloc.start()
        # The first requests make what is made once per process, before the service that is measured is made.
        for request in arriving[:FIRST_REQUESTS]:
            self.service.handle(pickle.loads(request))
        self.service.close()
        self.service = None
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        self.service = self.make_service()
        for request in arriving:
            self.service.handle(pickle.loads(request))
        self.service.flush()
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return {"bytes": after - before, "account": self.service.account(), "requests": FILL_REQUESTS}

    def sampling(self) -> dict:
        """What this version's memory monitor costs in a simulated day."""
        return simulated_day.measure(self.service.sampling(), self.seed)

    def round(self, seconds: float) -> tuple[dict, memoryview]:
        """Let everything expire, fill the caches again, then serve one request after the other for `seconds`.

        Filling is the same number of requests for every arm and is where memory grows; what is timed is the
        load on full caches that follows.
        """
        requests, latencies = self.requests, self.latencies
        answer, sent = self.service.answer, self.service.sent
        clock = time.perf_counter_ns
        corpus_size, served = len(requests), 0
        self.service.expire()
        gc.collect()
        peak_is_of_this_round = process_memory.restart_peak()
        before = collected()
        with self.collections.watch():
            self.fill()
            filled = collected()
            reused, created = self.service.made()
            place = FILL_REQUESTS % corpus_size
            self.background.resume()
            cpu = time.process_time_ns()
            begin = now = clock()
            end = begin + int(seconds * 1e9)
            while now < end and served < MOST_REQUESTS:
                start = clock()
                answer(requests[place])
                now = clock()
                latencies[served] = now - start
                sent()
                served += 1
                place += 1
                if place == corpus_size:
                    place = 0
            cpu = time.process_time_ns() - cpu
            self.background.pause()
        after = collected()
        peak = process_memory.peak()
        reused_now, created_now = self.service.made()
        gc.collect()
        return {
            "requests": served,
            "seconds": (now - begin) / 1e9,
            "cpu_seconds": cpu / 1e9,
            "refill_requests": FILL_REQUESTS,
            "refill_collections": [late - early for early, late in zip(before, filled, strict=True)],
            "collections": [late - early for early, late in zip(filled, after, strict=True)],
            "pauses": list(self.collections.pauses),
            "peak_rss": peak,
            "peak_rss_of_this_round": peak_is_of_this_round,
            "settled_rss": process_memory.resident(),
            "reused": reused_now - reused,
            "created": created_now - created,
            "responses_flushed": self.service.flushed,
        }, memoryview(latencies)[:served].cast("B")


class Channel:
    """The protocol's pipe to the parent, kept separate from anything that is printed."""

    def __init__(self):
        # What a library prints must not get between the answers.
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._commands: queue.SimpleQueue[dict] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in sys.stdin.buffer:
                self._commands.put(json.loads(line))
        # The parent has ended, so this process has nothing left to do.
        os._exit(0)

    def receive(self) -> dict:
        return self._commands.get()

    def send(self, answer: dict, payload: memoryview | None = None) -> None:
        if payload is not None:
            answer["payload"] = len(payload)
        self._write(memoryview(json.dumps(answer).encode() + b"\n"))
        if payload is not None:
            self._write(payload)

    def _write(self, data: memoryview) -> None:
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError:
            os._exit(0)


def main(name: str, seed: int) -> None:
    channel = Channel()
    try:
        arm = Arm(name, seed)
        channel.send(
            {
                "digest": corpus.digest(arm.requests),
                "requests": len(arm.requests),
                "import_rss": arm.before_load - arm.before_import,
                "before_load_rss": arm.before_load,
                "gc_threshold": gc.get_threshold(),
            }
        )
        while True:
            command = channel.receive()
            match command["do"]:
                case "first fill":
                    channel.send(arm.first_fill())
                case "consensus":
                    channel.send({"consensus": arm.consensus(command["count"])})
                case "allocation":
                    channel.send(arm.allocation())
                case "held":
                    channel.send(arm.held())
                case "collections":
                    channel.send(arm.count_collections(command["seconds"], command["objects"]))
                case "sampling":
                    channel.send(arm.sampling())
                case "round":
                    channel.send(*arm.round(command["seconds"]))
    except Exception as error:
        traceback.print_exc()
        channel.send({"error": f"{type(error).__name__}: {error}"})
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
