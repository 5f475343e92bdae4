"""Who used how much? Sums over what was billed."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What one tenant was billed for, in jobs and tokens; cached tokens are part of the prompt's."""

    tenant_id: str
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


# Bills of jobs that were deleted may be sums by day.
_BY_TENANT = text("""
    SELECT tenant_id, CAST(sum(jobs) AS bigint), CAST(sum(prompt_tokens) AS bigint), CAST(sum(cached_tokens) AS bigint),
           CAST(sum(completion_tokens) AS bigint)
    FROM (SELECT tenant_id, kind, 1 AS jobs, prompt_tokens, cached_tokens, completion_tokens FROM usage
          UNION ALL SELECT tenant_id, kind, jobs, prompt_tokens, cached_tokens, completion_tokens FROM usage_days) used
    WHERE kind = 'billed' GROUP BY tenant_id ORDER BY tenant_id
""")


async def usage_by_tenant(conn: AsyncConnection) -> list[TenantUsage]:
    """Every tenant that was ever billed, by id."""
    return [TenantUsage(*row) for row in await conn.execute(_BY_TENANT)]
