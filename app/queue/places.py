"""In which of a pool's queues does a job wait? One place a tier, one ahead of it for jobs that have run before, one a lane."""

# Who gets which share of the tokens while all three have work; the first wins ties.
TIER_WEIGHTS = {"interactive": 16, "standard": 4, "batch": 1}
# Suspects of an engine's death: they run before all others, alone or in groups of their own.
LANES = ("solo", "bisect")
# The most suspects that are run one by one; more are run in groups of at least so many first.
MAX_SOLO_SUSPECTS = 32

_AGAIN = "again"
PLACES = (*LANES, *(tier + again for tier in TIER_WEIGHTS for again in (_AGAIN, "")))


def place_again(tier: str) -> str:
    """Where a tier's jobs wait that have run before: claimed ahead of its other jobs, in the tier's share."""
    return tier + _AGAIN


def place_sql(jobs: str) -> str:
    """SQL for the place of a row of the table `jobs`, which goes by that name in the query."""
    return (
        f"CASE WHEN {jobs}.lane <> 'normal' THEN {jobs}.lane "
        f"WHEN {jobs}.attempt > 0 THEN {jobs}.tier || '{_AGAIN}' ELSE {jobs}.tier END"
    )
