"""How often does a process look for garbage? Seldom: what it makes for a request or a job holds no cycles, and goes by itself."""

import gc

_ALLOCATIONS = 50_000  # more than were freed, between two looks; Python's own is 700


def collect_seldom() -> None:
    """Once everything is imported: leave what is there now out of every look, and look seldom.

    Without a first look: of 120,000 objects that a worker has then, a thousand are garbage, and to find them takes a tenth of a second.
    """
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, 20, 20)
    gc.enable()
