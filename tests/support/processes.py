"""How does a test see that a process is gone?"""

from time import monotonic

import psutil


def have_ended(processes: list[psutil.Process], timeout_s: float = 20.0) -> bool:
    """Whether all end within `timeout_s`. A zombie has ended: not every pid 1 reaps."""
    give_up_at = monotonic() + timeout_s
    waiting = list(processes)
    while waiting and monotonic() < give_up_at:
        _, waiting = psutil.wait_procs(waiting, timeout=0.05)
        waiting = [process for process in waiting if not _is_zombie(process)]
    return not waiting


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
