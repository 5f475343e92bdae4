"""What does the retention do, and what would it do now? For operators, by whatever face."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.retention import content, jobs, rest, runs
from app.settings import Settings

_OWN = text("""
    SELECT id, retention_days, content_retention_s FROM tenants
    WHERE retention_days IS NOT NULL OR content_retention_s IS NOT NULL ORDER BY id LIMIT :limit
""")
_MOST_TENANTS = 1000


@dataclass(frozen=True, slots=True)
class OwnWord:
    """A tenant that says for itself how long its jobs, or their texts, are kept; None: as the setting says."""

    tenant: str
    retention_days: int | None
    content_retention_s: int | None


@dataclass(frozen=True, slots=True)
class Overview:
    """Runs, newest first, the first of them perhaps under way; and what all runs together have done, by table."""

    runs: list[runs.Run]
    totals: dict[str, int]
    tenants: list[OwnWord]


async def overview(conn: AsyncConnection, *, limit: int) -> Overview:
    """How it stands; at most `limit` runs."""
    own = await conn.execute(_OWN, {"limit": _MOST_TENANTS})
    return Overview(list(await runs.newest(conn, limit=limit)), await runs.totals(conn), [OwnWord(*row) for row in own])


async def plan(conn: AsyncConnection, settings: Settings) -> dict[str, int]:
    """What a run would delete if it began now, by table, and of how many jobs it would wipe the texts (`texts`); what hangs on these isn't counted.

    Counts everything: on a large database it takes its time.
    """
    days = settings.retention_days
    await conn.execute(text("SET LOCAL statement_timeout = '10min'"))
    return {
        "texts": await content.count_past(conn),
        "jobs": await jobs.count_old_jobs(conn, days=days),
        **await rest.count_rest(
            conn,
            days=days,
            worker_days=settings.worker_retention_days,
            usage_days=settings.usage_retention_days,
        ),
    }
