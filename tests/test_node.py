"""node_heap_flags: what the real Node makes of them, and what is refused."""

import json
import math
import os
import shutil
import subprocess

import pytest
from support import GB, MB, FakeReadings

from synthex_fast import node_heap_flags, node_options
from synthex_fast.errors import ArgumentTypeError, ArgumentValueError

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node")


def host(limit=None, total=64 * GB):
    return FakeReadings(limit, total=total)


def heap_limit(*flags, **environment):
    """What V8 says of its heap's limit when Node is started like this."""
    code = "console.log(JSON.stringify(require('v8').getHeapStatistics()))"
    ran = subprocess.run(
        [NODE, *flags, "-e", code],
        capture_output=True,
        text=True,
        env={**{name: value for name, value in os.environ.items() if name != "NODE_OPTIONS"}, **environment},
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return json.loads(ran.stdout)["heap_size_limit"]


def sizes(flags):
    old, semi = flags
    assert old.startswith("--max-old-space-size=")
    assert semi.startswith("--max-semi-space-size=")
    return int(old.partition("=")[2]), int(semi.partition("=")[2])


# What Node makes of them ----------------------------------------------------------------------------------------

LIMITS = ["512MB", 600 * MB, "1GB", "1.5GB", "2GB", "3GB", "4GB", "6GB", "8GB", "12GB", "16GB"]


@needs_node
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.slow
def test_the_heap_limit_is_what_was_meant(limit):
    flags = node_heap_flags(limit, readings=host())
    meant = (
        limit if isinstance(limit, int) else float(limit.rstrip("GMB")) * (GB if "G" in limit else MB)
    ) * 0.75
    # Asked for: within 10 %. Flags are in whole MB, so it can be had to the MB.
    assert meant - MB <= heap_limit(*flags) <= meant


@needs_node
@pytest.mark.parametrize(
    ("limit", "share"), [("64MB", 0.5), ("100MB", 0.5), ("300MB", 1), ("2GB", 0.25), ("5GB", 0.9)]
)
def test_other_shares_and_small_limits(limit, share):
    meant = float(limit.rstrip("GMB")) * (GB if "G" in limit else MB) * share
    assert meant - MB <= heap_limit(*node_heap_flags(limit, share=share, readings=host())) <= meant


@needs_node
def test_node_takes_them_from_the_environment_too():
    options = node_options("2GB", readings=host())
    assert heap_limit(NODE_OPTIONS=options) == 1536 * MB


@needs_node
def test_with_the_real_readings_node_starts():
    flags = node_heap_flags("256MB")
    assert heap_limit(*flags) == 192 * MB
    assert heap_limit(*node_heap_flags()) > 32 * MB


@needs_node
def test_what_the_report_gave_is_refused_or_misses():
    """The README says this of the fixed flags."""
    fixed = ["--max-old-space-size=6144", "--max-semi-space-size=64"]
    # Whatever the container's size.
    assert heap_limit(*fixed) == (6144 + 3 * 64) * MB
    in_environment = {**os.environ, "NODE_OPTIONS": "--gc-interval=100"}
    refused = subprocess.run(
        [NODE, "-e", "0"], env=in_environment, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode != 0
    assert "not allowed in NODE_OPTIONS" in refused.stderr
    together = subprocess.run(
        [NODE, *fixed, "--max-heap-size=6400", "-e", "0"], capture_output=True, text=True, timeout=60
    )
    assert together.returncode != 0
    # The flags given here are none of these.
    for limit in LIMITS:
        assert len(node_heap_flags(limit, readings=host())) == 2


# A cache of about 100 MB, replaced again and again.
ROLLING = """
const keep = new Map(), end = Date.now() + SECONDS * 1000;
for (let i = 0; Date.now() < end; )
  for (let k = 0; k < 20000; k++, i++)
    keep.set(i % 200000, {id: i, tags: ['a' + i, 'b' + i], text: ('x' + i).repeat(6) + i, n: [i, i + 1, i + 2]});
console.log("lived");
"""


@needs_node
@pytest.mark.linux
@pytest.mark.root
@pytest.mark.slow
def test_in_a_small_container_node_lives_with_them_and_is_killed_with_the_fixed_ones(group):
    (group / "memory.limit_in_bytes").write_text(str(512 * MB))

    def run(flags, seconds):
        # The shell enters the group before it becomes Node.
        command = f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"'
        code = ROLLING.replace("SECONDS", str(seconds))
        return subprocess.run(
            ["sh", "-c", command, NODE, *flags, "-e", code], capture_output=True, text=True, timeout=60
        )

    lived = run(node_heap_flags("512MB"), 3)
    assert (lived.returncode, lived.stdout) == (0, "lived\n"), lived.stderr
    killed = run(["--max-old-space-size=6144", "--max-semi-space-size=64"], 30)
    assert killed.returncode == -9


# The figures ----------------------------------------------------------------------------------------------------


def test_the_young_generation_grows_with_the_limit_within_bounds():
    before = 0
    for mb in [43, 64, 100, 128, 200, 256, 400, 512, 700, 1024, 2048, 3000, 4096, 8192, 16384, 32768]:
        old, semi = sizes(node_heap_flags(mb * MB, readings=host()))
        heap = mb * 3 // 4
        assert semi & (semi - 1) == 0
        assert 1 <= semi <= 64
        assert semi >= before
        assert 3 * semi <= heap / 8
        assert old + 3 * semi == heap
        before = semi
    assert before == 64


def test_none_is_the_containers_limit_else_the_hosts_memory():
    assert node_heap_flags(readings=host(2 * GB, 32 * GB)) == node_heap_flags(2 * GB, readings=host())
    assert node_heap_flags(readings=host(None, 8 * GB)) == node_heap_flags(8 * GB, readings=host())
    assert node_heap_flags("50%", readings=host(4 * GB, 32 * GB)) == node_heap_flags(2 * GB, readings=host())


def test_the_one_string_is_the_flags():
    assert node_options("1GB", share=0.5, readings=host()) == " ".join(
        node_heap_flags("1GB", share=0.5, readings=host())
    )
    assert node_options("1GB", readings=host()).count(" ") == 1


@pytest.mark.parametrize(
    ("limit", "share", "name"),
    [
        (-1, 0.75, "memory_limit"), (0, 0.75, "memory_limit"), (math.nan, 0.75, "memory_limit"),
        (math.inf, 0.75, "memory_limit"), (1 << 62, 0.75, "memory_limit"),
        ("101%", 0.75, "memory_limit"), ("much", 0.75, "memory_limit"), ("", 0.75, "memory_limit"),
        ("42MB", 0.75, "memory_limit"), (64 * MB, 0.4, "memory_limit"), (1, 1, "memory_limit"),
        (True, 0.75, "memory_limit"), ([], 0.75, "memory_limit"),
        ("1GB", 0, "share"), ("1GB", -0.5, "share"), ("1GB", 1.01, "share"), ("1GB", math.nan, "share"),
        ("1GB", math.inf, "share"), ("1GB", 10**400, "share"), ("1GB", "0.5", "share"), ("1GB", True, "share"),
        ("1GB", None, "share"), ("1GB", 1j, "share"),
    ],
)  # fmt: skip
def test_absurd_arguments_are_named(limit, share, name):
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match=f"^{name} must be"):
        node_heap_flags(limit, share=share, readings=host())


def test_too_small_a_container_says_what_is_needed():
    with pytest.raises(
        ArgumentValueError,
        match=r"memory_limit must be large enough for a share of 0\.75 to be 32 MB or more",
    ):
        node_heap_flags(readings=host(40 * MB))


def test_the_examples_say_what_happens():
    import doctest

    import synthex_fast.node

    # The examples name sizes that any host has.
    assert doctest.testmod(synthex_fast.node).failed == 0
