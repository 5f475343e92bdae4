"""Which states, tiers and lanes does a job know? The diagram is in docs/protocol.md."""

from typing import Literal, get_args

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired", "dead"]
EndStatus = Literal["succeeded", "failed", "cancelled", "expired", "dead"]
Tier = Literal["interactive", "standard", "batch"]
Lane = Literal["normal", "bisect", "solo"]
OnBudget = Literal["reject", "wait", "truncate", "fallback"]

STATUSES: tuple[str, ...] = get_args(Status)
END_STATUSES: tuple[str, ...] = get_args(EndStatus)
TIERS: tuple[str, ...] = get_args(Tier)  # the first is served first


def tier_rank(tier: str) -> int:
    """0 for the tier that is served first."""
    return TIERS.index(tier)
