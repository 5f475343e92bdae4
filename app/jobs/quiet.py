"""Which tenants need no queue remember? Those that have had nothing for long, by Postgres."""

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

QUIET_AFTER_S = 7 * 86_400.0

# What runs, the queue itself knows.
_QUIET = text("""
    SELECT name FROM unnest(CAST(:tenants AS text[])) AS known (name)
    WHERE NOT EXISTS (SELECT FROM jobs WHERE tenant_id = name AND status = 'queued')
      AND NOT EXISTS (
          SELECT FROM jobs WHERE tenant_id = name AND finished_at > statement_timestamp() - make_interval(secs => :after_s))
""")


async def quiet_tenants(conn: AsyncConnection, tenants: Sequence[str]) -> list[str]:
    """Those of these tenants that have nothing waiting, and had nothing that ended in the last `QUIET_AFTER_S`."""
    return list(await conn.scalars(_QUIET, {"tenants": list(tenants), "after_s": QUIET_AFTER_S}))
