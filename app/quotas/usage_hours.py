"""What was billed in each hour? Rows of usage added up once an hour is over, so that pages needn't read them one by one."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# After the end of an hour: no transaction that began in it is still open (statements end after 60 s, idle ones after 8 s).
CLOSED_AFTER_S = 600

_NEXT = text("""
    SELECT next FROM (
        SELECT coalesce((SELECT max(hour) + interval '1 hour' FROM usage_rollups),
                        (SELECT date_trunc('hour', min(at)) FROM usage)) AS next) AS n
    WHERE next + interval '1 hour' <= statement_timestamp() - make_interval(secs => :closed)
""")
# Whoever comes second waits here for the first, and then does nothing.
_CLAIM = text("INSERT INTO usage_rollups (hour) VALUES (:hour) ON CONFLICT DO NOTHING RETURNING hour")
_ADD_UP = text("""
    INSERT INTO usage_hours (hour, tenant_id, model, tier, api_key_id, jobs, prompt_tokens, cached_tokens, completion_tokens, cost_micros)
    SELECT :hour, tenant_id, model, tier, api_key_id, count(*), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),
           sum(cost_micros)
    FROM usage WHERE kind = 'billed' AND at >= :hour AND at < CAST(:hour AS timestamptz) + interval '1 hour'
    GROUP BY tenant_id, model, tier, api_key_id
""")


async def roll_up_next(conn: AsyncConnection) -> datetime | None:
    """Add up the next hour that is over, in the caller's transaction; return which, None where there is none."""
    hour: datetime | None = await conn.scalar(_NEXT, {"closed": CLOSED_AFTER_S})
    if hour is None:
        return None
    if await conn.scalar(_CLAIM, {"hour": hour}) is not None:
        await conn.execute(_ADD_UP, {"hour": hour})
    return hour
