"""This process's resident memory according to the operating system: current and peak, in bytes."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident() -> int:
    """Bytes resident now: the kernel's own figure on Linux, psutil's elsewhere."""
    if sys.platform == "linux":
        return _status("VmRSS")
    import psutil

    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most bytes that were resident at once, since `restart_peak` where that works, else since the
    process began.
    """
    if sys.platform == "linux":
        return _status("VmHWM")
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def restart_peak() -> bool:
    """Make `peak` count from now on; false if the system can't (only Linux can, and only if /proc is
    writable).
    """
    if sys.platform != "linux":
        return False
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in {_STATUS}")
