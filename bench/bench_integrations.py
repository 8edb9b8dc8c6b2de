"""What gunicorn's workers share of what their master has preloaded, with and without the package's hooks.

    python bench/bench_integrations.py [--quick] [--objects N] [--workers N] [--json FILE]

A real gunicorn with ``preload_app`` and sync workers serves requests that leave cycles behind, and then a full
collection in each worker. Printed is the memory private to each worker (``Private_Dirty`` in /proc/PID/smaps_rollup)
beyond that of a worker under the same hooks whose master has preloaded nothing: what the worker copied of what was
shared. The target is 5 MB with the hooks.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEGABYTE = 1 << 20
TARGET = 5 * MEGABYTE

APPLICATION = """
import gc, json, os

gc.disable()
preloaded = [[n] for n in range({objects})]
gc.enable()


def app(environ, start_response):
    for n in range(200):
        cycle = [n]
        cycle.append(cycle)
    if environ["PATH_INFO"] == "/collect":
        gc.collect()
    with open("/proc/self/smaps_rollup") as rollup:
        fields = dict(line.split(":") for line in list(rollup)[1:])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), int(fields["Private_Dirty"].split()[0]) * 1024]).encode()]
"""
HOOKS = "from synthex_fast.integrations.gunicorn import *\n"


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def wait_until_it_answers(server, port):
    end = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < end:
        try:
            return get(port, "/")
        except OSError:
            time.sleep(0.05)
    raise SystemExit("gunicorn does not answer")


def private_bytes(configuration, objects, workers, requests):
    """Bytes private to each worker, after serving."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        (Path(folder) / "application.py").write_text(APPLICATION.format(objects=objects))
        (Path(folder) / "gunicorn.conf.py").write_text(
            f"{configuration}preload_app = True\nworkers = {workers}\n"
        )
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "application:app",
                "-b",
                f"127.0.0.1:{port}",
                "--log-level",
                "warning",
            ],
            cwd=folder,
            env={**os.environ, "HOME": folder},
        )
        try:
            wait_until_it_answers(server, port)
            for _ in range(requests):
                get(port, "/")
            found = {}
            end = time.monotonic() + 60
            while len(found) < workers and time.monotonic() < end:
                pid, nbytes = get(port, "/collect")
                found[pid] = max(found.get(pid, 0), nbytes)
            # Once more, now that all have collected.
            for _ in range(workers * 10):
                pid, nbytes = get(port, "/")
                found[pid] = nbytes
            return sorted(found.values())
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def measure(objects, workers, requests):
    alone = statistics.median(private_bytes(HOOKS, 0, workers, requests))
    return {
        name: [nbytes - alone for nbytes in private_bytes(configuration, objects, workers, requests)]
        for name, configuration in (("plain", ""), ("hooks", HOOKS))
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--objects", type=int, default=500_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not os.path.exists("/proc/self/smaps_rollup"):
        raise SystemExit("needs /proc/self/smaps_rollup")
    results = measure(arguments.objects, arguments.workers, 400 if arguments.quick else 4000)
    print(f"MB that each of {arguments.workers} workers copied of {arguments.objects:,} preloaded objects")
    for name, found in results.items():
        print(f"  {name:8}" + "".join(f"{nbytes / MEGABYTE:8.1f}" for nbytes in found))
    reached = max(results["hooks"]) <= TARGET
    print(f"  target: at most {TARGET / MEGABYTE:.0f} MB with the hooks: {'hit' if reached else 'MISS'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results))
    raise SystemExit(not reached)


if __name__ == "__main__":
    main()
