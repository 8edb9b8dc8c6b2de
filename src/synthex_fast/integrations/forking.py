"""What a server's main process does before it forks those that serve."""

from __future__ import annotations

import gc
import sysconfig

__all__ = ["freeze"]

_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def freeze() -> None:
    """Collect, then freeze what is alive, so that no collection in a child writes to the pages that it shares.

    The tuner that a child starts finds it frozen, and leaves it so.
    """
    if _FREE_THREADED and gc.get_freeze_count():
        # Freezing writes to every object there, which would copy what children that run already share.
        return
    gc.collect()
    gc.freeze()
    # The interpreter compares what is new with what the last full collection kept, which must be nothing now.
    gc.collect()
