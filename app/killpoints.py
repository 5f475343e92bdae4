"""Where may a test kill this process? At named points between two steps of the protocol. For tests only: no setting, no effect otherwise."""

import os
import signal

# Read once: a process is started with its kill point or without one.
_CHOSEN = os.environ.get("PENSTOCK_KILL_POINT")


def kill_point(name: str) -> None:
    """End this process by SIGKILL, as a power cut would, if PENSTOCK_KILL_POINT names this point."""
    if name == _CHOSEN:
        os.kill(os.getpid(), signal.SIGKILL)
