"""May this job come in? The seam between the simulation and admission: `admit` is all that a day asks.

Plain arithmetic on what the queue says is waiting and on what has drained lately, with a ceiling on the wait for each tier.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from app.queue.places import TIER_WEIGHTS
from app.queue.streams import Depth

CEILING_S = {"interactive": 30.0, "standard": 600.0, "batch": 86_400.0}


@dataclass(frozen=True, slots=True)
class Ask:
    """A job that wants in, and what its tenant has waiting in the same tier."""

    tier: str
    tokens: int
    own_tokens: int
    num_tenants: int  # that have something waiting in the tier, this one included


@dataclass(frozen=True, slots=True)
class Refusal:
    """No: it would wait for so long."""

    predicted_s: float
    retry_after_s: float


def admit(depths: Mapping[str, Depth], drain_per_s: float | None, ask: Ask) -> Refusal | None:
    """None where the job may come in.

    Tenants of a tier are served in turn, so a job waits until each tenant that waits was given as much as its own tenant by then, at most
    for all of the tier's; the tier gets its weight's share among those with work.

    Args:
        depths: what waits in the pool, by tier.
        drain_per_s: tokens a second (as the queue counts them) that the pool takes at full load; None: it wasn't seen full yet.
    """
    waiting = depths[ask.tier].tokens
    if drain_per_s is None or waiting == 0:
        return None
    busy = sum(weight for tier, weight in TIER_WEIGHTS.items() if tier == ask.tier or depths[tier].tokens > 0)
    rate = drain_per_s * TIER_WEIGHTS[ask.tier] / busy
    predicted_s = min(waiting, (ask.own_tokens + ask.tokens) * ask.num_tenants) / rate
    if predicted_s <= CEILING_S[ask.tier]:
        return None
    return Refusal(predicted_s, predicted_s - CEILING_S[ask.tier])
