"""Who used how much? Sums over what was billed."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.quotas.tables import usage


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What one tenant was billed for, in jobs and tokens; cached tokens are part of the prompt's."""

    tenant_id: str
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


async def usage_by_tenant(conn: AsyncConnection) -> list[TenantUsage]:
    """Every tenant that was ever billed, by id."""
    u = usage.c
    sums = [func.sum(column).cast(column.type) for column in (u.prompt_tokens, u.cached_tokens, u.completion_tokens)]
    rows = await conn.execute(
        select(u.tenant_id, func.count(), *sums).where(u.kind == "billed").group_by(u.tenant_id).order_by(u.tenant_id)
    )
    return [TenantUsage(*row) for row in rows]
