"""Which jobs may higher tiers no longer preempt? Those that have waited for so long that their tier's ceiling is in danger."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from app.jobs.states import TIERS
from app.jobs.store import StartedJob
from app.queue.places import TIER_WEIGHTS
from app.quotas.pressure import SPREAD
from workers.generation.hand import RunningJob

# Of an engine's places and tokens, the most that such jobs hold: what is due to all tiers below the highest when all have work.
MOST_PART = 1 - TIER_WEIGHTS[TIERS[0]] / sum(TIER_WEIGHTS.values())


def hurry(
    started: StartedJob,
    hand: Iterable[RunningJob],
    *,
    ceilings_s: Mapping[str, float],
    max_num_seqs: int,
    max_tokens: int,
) -> StartedJob:
    """The job, hurried where it is late and there is room for one more: it then runs at the highest tier's common priority.

    Late is who has waited for more than `ceiling / SPREAD`: no job is let in for which so long a wait is predicted. What runs at that
    priority keeps its place, so hurried jobs together hold no more than `MOST_PART` of the engine's sequences and tokens; the others
    are preempted as ever.
    """
    if started.tier == TIERS[0] or started.waited_s * SPREAD <= ceilings_s[started.tier]:
        return started
    hurried = [job for job in hand if job.started.is_hurried]
    sequences = started.n + sum(job.num_unfinished for job in hurried)
    tokens = started.cost + sum(job.cost for job in hurried)
    if sequences > MOST_PART * max_num_seqs or tokens > MOST_PART * max_tokens:
        return started
    return replace(started, is_hurried=True)
