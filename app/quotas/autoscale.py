"""How many workers should a pool have? Enough for what comes, and for what waits within its objectives. Pure arithmetic."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from app.quotas.pressure import PoolLoad

# Fewer are asked for only when one less would be busy to at most this part: so a pool doesn't go up and down around a boundary.
DOWN_BELOW = 0.7
_LEAST_WINDOW = 0.25  # of an objective: what is left of it for the work where loading a model takes longer


@dataclass(frozen=True, slots=True)
class Desired:
    """`replicas` is what an autoscaler should aim at; `needed` the same before rounding and hysteresis, in workers at full load."""

    replicas: int
    needed: float | None
    reason: str


def desired_replicas(
    load: PoolLoad,
    *,
    served_per_s: float,
    per_worker: float | None,
    load_s: float,
    running: int,
    objectives_s: Mapping[str, float],
) -> Desired:
    """Workers that serve what is being served now, and drain each tier's backlog within its objective.

    A new worker helps only after `load_s`, so that much less of the objective is left for the work, down to a quarter of it. Up at
    once; down by hysteresis: `DOWN_BELOW`.

    Args:
        served_per_s: what is served now, in the queue's tokens a second.
        per_worker: what one worker drains at full load; None where that isn't known.
        running: jobs that run now.
        objectives_s: by tier, within which its jobs should start.
    """
    now = load.num_workers
    if load.tokens == 0 and running == 0:
        return Desired(0, 0.0, "nothing waits and nothing runs")
    if per_worker is None or per_worker <= 0:
        return Desired(max(1, now), None, "no worker was ever full: one is enough to find out")
    backlog = sum(
        each.tokens / max(objectives_s[tier] - load_s, _LEAST_WINDOW * objectives_s[tier])
        for tier, each in load.tiers.items()
    )
    needed = (served_per_s + backlog) / per_worker
    up = max(1, math.ceil(needed - 1e-9))
    if up >= now:
        return Desired(up, needed, "what is served now, and what waits within its objective")
    down = max(1, math.ceil(needed / DOWN_BELOW - 1e-9))
    if down < now:
        return Desired(down, needed, f"one less would be busy to at most {DOWN_BELOW:.0%}")
    return Desired(now, needed, f"with fewer, each would be busy to more than {DOWN_BELOW:.0%}")
