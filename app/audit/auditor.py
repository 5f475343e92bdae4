"""Is everything as docs/protocol.md promises? All of Postgres' checks in one snapshot, then Redis against Postgres."""

from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.audit.batches import BATCHES
from app.audit.letters import LETTERS
from app.audit.lives import LIVES, Check
from app.audit.money import MONEY
from app.audit.nominations import audit_queues
from app.audit.report import Outcome, Report, Violation
from app.clock import Clock
from app.ids import job_name
from app.redis import Redis, RedisError

CHECKS: list[Check] = [*LIVES, *LETTERS, *MONEY, *BATCHES]
_STATEMENT_TIMEOUT_MS = (
    30 * 60 * 1000
)  # millions of jobs take their time; the session's own limit is for transactions that others wait for
_LIMITED = """
    SELECT subject, expected, found, count(*) OVER () AS total FROM ({sql}) AS violation ORDER BY subject LIMIT :most
"""


async def audit(
    db: AsyncEngine, redis: Redis | None, clock: Clock, *, within_s: float, claim_s: float, most: int
) -> Report:
    """Look at everything, change nothing, and list at most `most` violations for each check.

    Postgres is read in one REPEATABLE READ snapshot. What Redis holds is compared with Postgres as it is at that time; a
    difference counts if it is still there `within_s` later.

    Args:
        within_s: how long something may be under way: a repair that is due, a nomination on its way to Redis.
        claim_s: how long a claim may be undecided before it is put back, beside `within_s`.
        redis: None where there is none to look at.

    Raises:
        SQLAlchemyError: Postgres can't be asked.
    """
    async with db.connect() as conn:
        await conn.execution_options(isolation_level="REPEATABLE READ")
        await conn.execute(text("SET TRANSACTION READ ONLY"))
        await conn.execute(text(f"SET LOCAL statement_timeout = {_STATEMENT_TIMEOUT_MS}"))
        jobs = {row.status: row.jobs for row in await conn.execute(text(_BY_STATUS))}
        outcomes = [await _run(conn, check, within_s, most) for check in CHECKS]
        await conn.rollback()
    unchecked: dict[str, str] = {}
    try:
        if redis is None:
            unchecked["redis"] = "none is configured"
        else:
            queues = await audit_queues(db, redis, clock, within_s=within_s, claim_s=claim_s, most=most)
            outcomes += queues.outcomes
            unchecked |= queues.unchecked
    except (RedisError, OSError) as error:
        unchecked["redis"] = f"it doesn't answer: {error}"
    return Report(within_s, jobs, outcomes, unchecked)


_BY_STATUS = "SELECT status, count(*) AS jobs FROM jobs GROUP BY status ORDER BY status"


async def _run(conn: AsyncConnection, check: Check, within_s: float, most: int) -> Outcome:
    statement = text(_LIMITED.format(sql=check.sql))
    parameters: dict[str, object] = {"most": most} | ({"within": within_s} if ":within" in check.sql else {})
    rows = (await conn.execute(statement, parameters)).all()
    return Outcome(check.name, check.claim, rows[0].total if rows else 0, [_violation(row) for row in rows])


def _violation(row: Row[tuple[object, str, str]]) -> Violation:
    subject = row.subject
    return Violation(job_name(subject) if isinstance(subject, UUID) else str(subject), row.expected, row.found)
