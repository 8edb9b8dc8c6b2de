"""`synthex-fast top`, and the Unix socket that it asks."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import ROOT, in_child, needs_fork, quiet_fork, run, wait_for

from synthex_fast import GCTuner, MemoryGovernor, ObjectPool, TTLDict, _runtime_directory
from synthex_fast.exporters import Observed, page
from synthex_fast.exporters.page import _socket
from synthex_fast.exporters.page._feed import Feed

pytest.importorskip("rich")
pytestmark = pytest.mark.skipif(not _socket.SUPPORTED, reason="needs Unix sockets")

from synthex_fast.top import screen, sources  # noqa: E402

COMMAND = [sys.executable, "-m", "synthex_fast.cli", "top"]


@pytest.fixture
def runtime(monkeypatch):
    """A runtime directory of the test's own; returns that of the sockets, which does not exist yet."""
    # A socket's path is limited to about 100 characters, which pytest's directories may exceed.
    with tempfile.TemporaryDirectory(prefix="sf-") as base:
        monkeypatch.setenv(_runtime_directory.VARIABLE, base)
        yield Path(base, f"synthex-fast-{os.geteuid()}")


@pytest.fixture
def shown():
    shown = Observed()
    shown.kept = [
        shown.add(TTLDict(memory_limit=1 << 20), "users [bold]x"),
        shown.add(ObjectPool(list, 5), "pool"),
        shown.add(GCTuner()),
        shown.add(MemoryGovernor("2GB")),
    ]
    return shown


def top(*arguments, status=0, width=100, **environment):
    """Run the command; returns what it printed, on standard error if it fails."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(width), **environment},
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, f"{done.stdout}{done.stderr}"
    if status:
        assert done.stdout == ""
        return done.stderr
    assert done.stderr == ""
    return done.stdout


def only_line(text):
    """An error is one line."""
    assert text.startswith("synthex-fast top: ")
    assert text.count("\n") == 1, text
    return text.removeprefix("synthex-fast top: ").rstrip()


# ---- The socket


def test_whoever_connects_gets_one_frame(runtime, shown):
    with page.listen(shown) as listener:
        assert listener.running
        assert page.listen() is listener
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
        path = Path(listener.path)
        assert path == runtime / f"{os.getpid()}.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        (process,) = sources.processes()
        assert process.pid == os.getpid()
        frame = process.frame()
        assert frame["pid"] == os.getpid()
        assert [each["name"] for each in frame["components"]] == ["pool", "users [bold]x"]
    assert not listener.running
    assert not path.exists()
    assert sources.processes() == []
    listener.stop()
    assert "stopped" in repr(listener)


def test_a_peer_that_reads_nothing_holds_nobody_up(runtime, shown):
    with page.listen(shown) as listener:
        idle = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        try:
            for each in idle:
                each.connect(listener.path)
            assert sources.Process(os.getpid(), listener.path).frame()["pid"] == os.getpid()
        finally:
            for each in idle:
                each.close()


def test_a_directory_that_others_can_enter_is_refused(runtime):
    runtime.mkdir(mode=0o755)
    runtime.chmod(0o755)
    with pytest.raises(OSError, match="this user's only"):
        page.listen()
    assert list(runtime.iterdir()) == []
    assert sources.processes() == []


def test_a_directory_behind_a_link_is_refused(runtime, tmp_path):
    tmp_path.chmod(0o700)
    runtime.symlink_to(tmp_path)
    with pytest.raises(OSError, match="this user's only"):
        page.listen()


@needs_fork
@quiet_fork
def test_a_child_answers_for_itself_only(runtime, shown):
    with page.listen(shown) as listener:
        parent = os.getpid()

        def child():
            assert listener.path == str(runtime / f"{os.getpid()}.sock")
            assert {each.pid: each.frame()["pid"] for each in sources.processes()} == {
                parent: parent,
                os.getpid(): os.getpid(),
            }
            listener.stop()

        in_child(child)
        assert [each.frame()["pid"] for each in sources.processes()] == [parent]


@needs_fork
@quiet_fork
@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system doesn't tell the peer's pid")
def test_a_socket_that_another_process_serves_does_not_count(runtime, shown):
    with page.listen(shown) as listener:
        other = runtime / f"{os.getppid()}.sock"
        other.symlink_to(listener.path)
        with pytest.raises(sources.SourceError, match=f"is served by process {os.getpid()}"):
            sources.Process(os.getppid(), str(other)).frame()


@needs_fork
@quiet_fork
@pytest.mark.root
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_another_user_gets_nothing(runtime, shown):
    with page.listen(shown) as listener:
        # As if the modes had not kept it out.
        for path, mode in ((runtime.parent, 0o755), (runtime, 0o755), (Path(listener.path), 0o666)):
            path.chmod(mode)

        def child():
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(f"{runtime}/{os.getppid()}.sock")
                assert connection.recv(100) == b""
            with pytest.raises(sources.SourceError, match="belongs to another user"):
                sources.Process(os.getppid(), f"{runtime}/{os.getppid()}.sock").frame()

        in_child(child)
        assert sources.Process(os.getpid(), listener.path).frame()


SLEEPER = """
    import sys, time
    from synthex_fast import TTLDict
    from synthex_fast.exporters import observe, page
    users = observe(TTLDict(), "users")
    listener = page.listen()
    print(listener.path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def sleeper(runtime):
    """A process that listens, and its socket."""
    import textwrap

    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLEEPER)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    path = process.stdout.readline().strip()
    yield process, Path(path)
    process.kill()
    process.communicate()


def test_it_is_removed_at_exit(sleeper):
    process, path = sleeper
    assert path.exists()
    process.communicate()
    assert process.returncode == 0
    assert not path.exists()


def test_what_a_killed_process_left_behind_is_removed(sleeper):
    process, path = sleeper
    (source,) = sources.processes()
    process.kill()
    process.wait()
    with pytest.raises(sources.SourceError, match="has ended"):
        source.frame()
    assert path.exists()
    assert sources.processes() == []
    assert not path.exists()


# ---- The command


def test_it_finds_the_only_process(sleeper):
    process, _ = sleeper
    for arguments in ((), ("--once",), (str(process.pid),)):
        printed = top(*arguments)
        assert f"pid {process.pid}" in printed
        assert "users" in printed
    assert json.loads(top("--json"))["pid"] == process.pid


def test_it_lists_several(sleeper, shown):
    process, _ = sleeper
    with page.listen(shown):
        lines = top().splitlines()
        assert {int(line.split()[0]) for line in lines} == {process.pid, os.getpid()}
        assert "2 processes listen" in only_line(top("--json", status=2))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_where_sockets_may_be(monkeypatch):
    monkeypatch.delenv(_runtime_directory.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    name = f"synthex-fast-{os.geteuid()}"
    assert _runtime_directory.candidates()[:2] == [f"/run/user/7/{name}", f"/dev/shm/{name}"]
    # A relative one is none.
    monkeypatch.setenv("XDG_RUNTIME_DIR", "here")
    assert _runtime_directory.candidates()[0] == f"/dev/shm/{name}"


def test_bad_arguments_get_one_line(runtime):
    assert "no process of this user listens" in only_line(top(status=2))
    assert only_line(top("4194304999", status=2)) == "there is no process 4194304999"
    assert only_line(top("9" * 30, status=2)).startswith("there is no process 999")
    assert only_line(top("0", status=2)) == "there is no process 0"
    assert "has to call synthex_fast.exporters.page.listen()" in only_line(top(str(os.getpid()), status=2))
    port = free_port()
    assert only_line(top(f"http://127.0.0.1:{port}/x", status=2)).endswith(
        "does not answer: Connection refused"
    )
    for bad in ("foo", "ftp://a/b", "http://", "http://a:b/", "-1 ", "/tmp/x.sock", "12.5"):
        assert "not a URL of a page" in only_line(top("--", bad, status=2))


@pytest.mark.root
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_process_of_another_user(runtime):
    # Its real path: the other user may not see the directory in which it was found.
    other = subprocess.Popen([os.path.realpath(shutil.which("sleep")), "60"], user=65534)
    try:
        assert f"process {other.pid} belongs to another user" in only_line(top(str(other.pid), status=2))
    finally:
        other.kill()
        other.wait()


def test_without_rich_it_names_the_extra(runtime):
    code = """
        import sys
        from importlib.util import find_spec
        from synthex_fast import cli
        cli.find_spec = lambda name: None if name == "rich" else find_spec(name)
        cli.main(["top"])
    """
    run(code, status=2, stderr="synthex-fast top: needs rich: pip install synthex-fast[top]\n")


class Answers(BaseHTTPRequestHandler):
    """Answers each path with what is in ``given``: status, type, body."""

    given: dict = {}  # noqa: RUF012

    def do_GET(self):
        status, kind, body = self.given[self.path]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_page_is_asked_by_its_url(web, shown):
    Answers.given = {"/synthex/frame": (200, "application/json", Feed(shown, 1.0).frame_json().encode())}
    for url in (f"{web}/synthex", f"{web}/synthex/"):
        printed = top(url, http_proxy="http://127.0.0.1:9")
        assert f"pid {os.getpid()}" in printed
        assert "users [bold]x" in printed
    assert json.loads(top(url, "--json"))["pid"] == os.getpid()


def test_of_several_workers_it_stays_with_the_first(web, shown):
    """Until that one is gone."""
    frames = [{**Feed(shown, 1.0).frame(), "id": f"{n}-f", "pid": n} for n in range(3)]
    alive, turn = [0, 1, 2], itertools.count(1)

    class Workers(dict):
        def __getitem__(self, path):
            _, _, of = path.partition("?of=")
            frame = frames[alive[next(turn) % len(alive)]]
            if of not in ("", frame["id"]):
                frame = {"id": frame["id"], "pid": frame["pid"]}
            return 200, "application/json", json.dumps(frame).encode()

    Answers.given = Workers()
    source = sources.Page(web)
    assert [source.frame()["pid"] for _ in range(5)] == [1] * 5
    alive.remove(1)
    later = {source.frame()["pid"] for _ in range(5)}
    assert len(later) == 1 and later < {0, 2}


def test_what_is_no_page_gets_one_line(web):
    Answers.given = {
        "/refuses/frame": (403, "text/plain", b"this page answers clients on the same machine only\n"),
        "/missing/frame": (404, "text/html", b"<h1>not here</h1>"),
        "/empty/frame": (200, "application/json", b""),
        "/html/frame": (200, "text/html", b"<p>"),
        "/list/frame": (200, "application/json", b"[1]"),
        "/deep/frame": (200, "application/json", b"[" * 100_000),
        "/other/frame": (200, "application/json", b'{"pid": 1, "components": [{}], "time": 1, "id": "x"}'),
        "/evil/frame": (418, "text/plain", b"\x1b]0;hacked\x07\x1b[2J"),
    }
    expected = {
        "refuses": "answers 403 Forbidden: this page answers clients on the same machine only",
        "missing": "answers 404 Not Found",
        "empty": "answers nothing",
        "html": "does not answer with a page's figures",
        "list": "does not answer with a page's figures",
        "deep": "does not answer with a page's figures",
        "other": "another version",
        "evil": "answers 418",
    }
    for path, words in expected.items():
        line = only_line(top(f"{web}/{path}", status=2))
        assert words in line
        assert line.isprintable()


def test_names_can_not_command_the_terminal(web, shown):
    evil = shown.add(TTLDict(), "\x1b]0;hacked\x07\x1b[2Jname")
    Answers.given = {"/frame": (200, "application/json", Feed(shown, 1.0).frame_json().encode())}
    printed = top(web)
    assert "[2Jname" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert evil is not None


def drawn(frame, width, **options):
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=width, **options)
    shown = screen.Screen()
    shown.take(frame)
    console.print(shown.draw(width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 50, 66, 90, 200])
def test_any_width_will_do(shown, width):
    shown.kept.append(shown.add(TTLDict(), "a_cache_with_a_name_that_is_" + "long_" * 15))
    lines = drawn(Feed(shown, 1.0).frame(), width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in ("memory", "caches", "hits", "evicted", "pools", "collector", "governor"):
        assert word in text, word


def test_it_needs_neither_colour_nor_unicode(sleeper):
    assert "\x1b" not in top()
    plain = top(PYTHONIOENCODING="ascii")
    assert plain.isascii()
    assert "#" in plain or "|" in plain or "users" in plain


def test_whoever_reads_may_leave(sleeper):
    process, _ = sleeper
    piped = subprocess.run(
        f"{' '.join(COMMAND)} {process.pid} | head -n 1",
        shell=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert piped.stdout.startswith("synthex-fast")
    assert piped.stderr == ""


def test_rates_come_from_two_frames(shown):
    cache = shown.kept[0]
    feed = Feed(shown, 0.1)
    first = feed.frame()
    for _ in range(50):
        cache.get("x")
    feed._current = None
    second = {**feed.frame(), "time": first["time"] + 2.0}
    found = screen.Screen()
    found.take(first)
    found.take(second)
    (each,) = [each for each in second["components"] if each["kind"] == "cache"]
    assert found._rate(each, "hits", "misses") == "25/s"
    # Another process has no rates yet.
    found.take({**second, "id": "another"})
    assert found._rate(each, "hits", "misses") == "-"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
@pytest.mark.parametrize("how", ["q", "interrupt", "ended"])
def test_a_terminal_is_redrawn_until_told_to_stop(sleeper, how):
    import pty
    import termios

    process, _ = sleeper
    leader, follower = pty.openpty()
    before = termios.tcgetattr(follower)
    command = subprocess.Popen(
        [*COMMAND, str(process.pid)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "90", "LINES": "40"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    # A list, which one thread may append to while another reads it.
    parts = []
    reader = threading.Thread(target=read_all, args=(leader, parts))
    reader.start()
    try:
        wait_for(lambda: len(re.findall(rb"pid \d+", b"".join(parts))) >= 2 or command.poll() is not None)
        assert command.poll() is None, b"".join(parts)
        if how == "q":
            os.write(leader, b"xq")
        elif how == "interrupt":
            command.send_signal(signal.SIGINT)
        else:
            process.kill()
            process.wait()
        assert command.wait(20) == {"q": 0, "interrupt": 130, "ended": 2}[how]
        assert termios.tcgetattr(follower)[3] == before[3]
    finally:
        command.kill()
        command.wait()
        os.close(follower)
        reader.join()
        os.close(leader)
    seen = b"".join(parts)
    # The screen as it was before is shown again.
    assert seen.rfind(b"\x1b[?1049l") > seen.rfind(b"\x1b[?1049h") >= 0
    if how == "ended":
        assert b"has ended" in seen


def read_all(descriptor, into):
    while True:
        try:
            part = os.read(descriptor, 4096)
        except OSError:
            return
        if not part:
            return
        into.append(part)


def test_importing_the_package_imports_none_of_it():
    run(
        """
        import sys, synthex_fast
        assert not [name for name in sys.modules if name.startswith(("synthex_fast.exporters", "synthex_fast.top"))]
        """
    )
