"""How long may a job of a tier have to wait before its tier takes nothing more?"""

from app.settings import Settings


def max_wait_s(tier: str, settings: Settings) -> float:
    """Seconds from the submission to the end; of a job that runs for long, half of it to the start."""
    return {
        "interactive": settings.max_wait_interactive_s,
        "standard": settings.max_wait_standard_s,
        "batch": settings.max_wait_batch_s,
    }[tier]
