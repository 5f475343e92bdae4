"""Is everything sound after what a test did? The auditor's word, on the test's own servers."""

from sqlalchemy.ext.asyncio import AsyncEngine

from app.audit.auditor import audit
from app.audit.report import Report
from app.clock import SystemClock
from app.redis import Redis

CLAIM_S = 35.0


async def report_on(engine: AsyncEngine, redis: Redis | None, *, within_s: float = 0.0) -> Report:
    """What the auditor finds."""
    return await audit(engine, redis, SystemClock(), within_s=within_s, claim_s=CLAIM_S, most=20)


async def assert_audit_clean(engine: AsyncEngine, redis: Redis | None, *, within_s: float = 5.0) -> None:
    """Nothing is off, or it is put right within the bound; without a Redis only Postgres is looked at."""
    report = await report_on(engine, redis, within_s=within_s)
    assert report.findings == [], report.findings
    assert redis is None or report.unchecked == {}
