"""Hides from Python what other systems lack; `.ci/elsewhere` installs it as an environment's ``sitecustomize``.

``SYNTHEX_FAST_ELSEWHERE`` names the system to resemble. ``macos``: ``sys.platform`` is another, /proc and control
groups don't exist, nor do Linux's own functions. ``windows``: in addition no fork, poll, pread and sysconf; the
platform is then no system's, because the standard library would call what only Windows has.

The standard library and psutil, which stands for its versions elsewhere, choose their own code by what they find when
they are imported, so they see everything until then, and psutil may also open /proc.
"""

import contextlib
import os
import select
import sys
import sysconfig

SYSTEM = os.environ.get("SYNTHEX_FAST_ELSEWHERE")
PLATFORMS = {"macos": "darwin", "windows": "elsewhere"}
HIDDEN_PATHS = ("/proc", "/sys/fs/cgroup")
# These see the machine as it is while they are imported.
UNAWARE = {
    "asyncio", "ctypes", "hypothesis", "logging", "multiprocessing", "numpy", "psutil", "_pytest", "selectors",
    "shutil", "socket", "ssl", "subprocess", "tempfile", "threading", "uuid",
}  # fmt: skip
ONLY_LINUX = [
    (os, name)
    for name in dir(os)
    if name.startswith(
        ("eventfd", "EFD_", "timerfd", "TFD_", "memfd_", "MFD_", "sched_", "pidfd_", "P_PIDFD")
    )
]
ONLY_LINUX += [(select, name) for name in dir(select) if name.startswith(("epoll", "EPOLL"))]
NOT_ON_WINDOWS = [
    (os, name)
    for name in (
        "fork",
        "forkpty",
        "register_at_fork",
        "pread",
        "preadv",
        "sysconf",
        "wait",
        "wait3",
        "wait4",
    )
    if hasattr(os, name)
]
NOT_ON_WINDOWS += [(select, name) for name in dir(select) if name.startswith(("poll", "POLL"))]


def in_psutil():
    frame = sys._getframe(2)
    for _ in range(8):
        if frame is None:
            return False
        if frame.f_globals.get("__name__", "").partition(".")[0] == "psutil":
            return True
        frame = frame.f_back
    return False


def is_hidden(path):
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    return isinstance(path, str) and (path + "/").startswith(tuple(f"{hidden}/" for hidden in HIDDEN_PATHS))


def refuse_hidden(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and is_hidden(arguments[0]) and not in_psutil():
        raise FileNotFoundError(2, "No such file or directory", arguments[0])


def stat(path, *, dir_fd=None, follow_symlinks=True, really=os.stat):
    if is_hidden(os.fspath(path) if hasattr(path, "__fspath__") else path) and not in_psutil():
        raise FileNotFoundError(2, "No such file or directory", path)
    return really(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)


class Hiding:
    """The names that are hidden, and a module finder that shows them while one of `UNAWARE` is imported."""

    def __init__(self, names, platform):
        self.names = [(module, name, getattr(module, name)) for module, name in names]
        self.platforms = (sys.platform, platform)
        self.shown = 0

    def hide(self):
        for module, name, _ in self.names:
            if hasattr(module, name):
                delattr(module, name)
        sys.platform = self.platforms[1]

    def show(self):
        for module, name, value in self.names:
            setattr(module, name, value)
        sys.platform = self.platforms[0]

    @contextlib.contextmanager
    def showing(self):
        self.shown += 1
        self.show()
        try:
            yield
        finally:
            self.shown -= 1
            if not self.shown:
                self.hide()

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in UNAWARE:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        loader = spec.loader
        if hasattr(loader, "exec_module") and not isinstance(loader, type):
            execute = loader.exec_module

            def exec_module(module):
                with self.showing():
                    execute(module)

            loader.exec_module = exec_module
        return spec


if SYSTEM is not None:
    if SYSTEM not in PLATFORMS:
        raise SystemExit(f"SYNTHEX_FAST_ELSEWHERE must be one of {', '.join(PLATFORMS)}, not {SYSTEM!r}")
    hiding = Hiding(ONLY_LINUX + (NOT_ON_WINDOWS if SYSTEM == "windows" else []), PLATFORMS[SYSTEM])
    sys.meta_path.insert(0, hiding)
    # It has the platform in its name.
    os.environ.setdefault("_PYTHON_SYSCONFIGDATA_NAME", sysconfig._get_sysconfigdata_name())
    os.stat = stat
    sys.addaudithook(refuse_hidden)
    hiding.hide()
