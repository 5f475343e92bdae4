"""What does a job cost its tenant, and on which terms do tenants share? The unit of the virtual token counters.

Source: Y. Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024. docs/fairness.md says what it guarantees here.
"""

from dataclasses import dataclass

# A generated token holds the machine for longer than one of a prompt, which is computed beside many others; the paper's weights.
INPUT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
AGING_S = 60.0
# Inside a tier: a tenant that returned from idle has level 0 for the first quarter of its credit, and so on; who has none has the last.
LEVELS = 5
COMMON_LEVEL = LEVELS - 1
_LEAD_PART = 4


@dataclass(frozen=True, slots=True)
class Terms:
    """How a tenant shares in a pool: its weight among tenants, and the most jobs that it may have running there (None: any)."""

    weight: int = 1
    cap: int | None = None


def lead_of(held_tokens: int) -> int:
    """Tokens by which a tier may run ahead of its share in a worker that holds so many: enough to take in a burst, not to shut others out."""
    return held_tokens // _LEAD_PART


def credit_of(held_tokens: int) -> int:
    """Work that a tenant which returns from idle may do ahead of the others, where a worker holds so many tokens: at most its engine's fill."""
    return round(OUTPUT_WEIGHT * held_tokens)


def priority_of(tier_rank: int, level: int = COMMON_LEVEL) -> int:
    """At which priority an engine runs a job, the lowest first: by tier, and in it first who was claimed on the credit of a tenant that
    returned from idle. So a burst displaces what a flood holds, for as much as the credit is worth."""
    return LEVELS * tier_rank + level


def work_of(prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
    """What was computed for a job, in tokens of a prompt: what the prefix cache held wasn't."""
    return INPUT_WEIGHT * max(0, prompt_tokens - cached_tokens) + OUTPUT_WEIGHT * completion_tokens
