"""What lies before a waiting job? Its forecast and what it waits for, from its row and from figures in memory."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs.forecast import Forecast, Waiting, ahead_of, forecast
from app.jobs.lengths import LengthBook
from app.jobs.loads import LoadBoard
from app.jobs.why import Why, explain, read_facts


@dataclass(frozen=True, slots=True)
class Outlook:
    """`forecast` only of a waiting job."""

    forecast: Forecast | None
    why: Why


async def outlook_of(
    conn: AsyncConnection, loads: LoadBoard, lengths: LengthBook, tenant_id: str, job_id: UUID
) -> Outlook | None:
    """By a look at the job's row and at what is ahead of it; None where the tenant has no such job."""
    facts = await read_facts(conn, tenant_id, job_id)
    if facts is None:
        return None
    figures = loads.figures(facts.pool)
    if facts.status != "queued":
        return Outlook(None, explain(facts, figures, None))
    own_tokens = loads.own_tokens(facts.pool, facts.tier, tenant_id)
    weight = loads.weight_of(facts.pool, facts.tier, tenant_id)
    owed = loads.owed_tokens(facts.pool, facts.tier, tenant_id)
    ahead = await ahead_of(conn, job_id, own_tokens=own_tokens)
    usual = lengths.of(tenant_id, facts.model)
    when = forecast(
        figures, Waiting(facts.tier, facts.tokens, facts.max_tokens, weight, owed), ahead, usual, now=facts.now
    )
    why = explain(facts, figures, when)
    if why.reason not in {"queue", "breaker_open"}:
        # Its turn isn't what holds it up: nobody knows when that is over.
        when = Forecast(when.position, None, None, None, None)
    return Outlook(when, why)
