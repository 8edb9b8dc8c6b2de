"""The directory of one user's own where processes of the package find each other: `synthex-fast-UID`, of mode 0700."""

from __future__ import annotations

import os
import stat

__all__ = ["VARIABLE", "candidates", "is_private"]

# In place of all the places below, for processes that see different ones.
VARIABLE = "SYNTHEX_FAST_RUNTIME_DIR"


def candidates() -> list[str]:
    """Where it may be, the first choice first. Not all of them exist."""
    # Takes milliseconds to import, and most programs don't come here.
    import tempfile

    bases = [os.environ.get(VARIABLE, "")]
    if not bases[0]:
        bases = [os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm", tempfile.gettempdir()]
    return [os.path.join(base, f"synthex-fast-{os.geteuid()}") for base in bases if os.path.isabs(base)]


def is_private(status: os.stat_result) -> bool:
    """Whether what ``os.lstat`` has found is a directory, of this user, that nobody else can enter."""
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
