"""Which prompts and outputs are wiped though their jobs stay? Those of tenants that want them kept for a short while only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

FORGOTTEN_FOR_TENANT = "tenant"
# A finish writes its time and commits up to a statement's timeout later: so far back ends may still appear.
_LATE_S = 600

# An end is looked at once, but while something still needs its texts: a batch that hasn't written its line down, a job of identical
# work that waits for them. A dead job's prompt goes, too: it can't be requeued then.
# Looked up one by one, not by EXISTS ... OR EXISTS: Postgres would hash each of these tables whole.
_HELD = """coalesce(
    (SELECT true FROM batch_lines l WHERE l.job_id = j.id AND l.state = 'submitted'),
    (SELECT true FROM jobs f WHERE f.shared_from = j.id AND f.status = 'queued' LIMIT 1),
    false)
"""
_HAS_CONTENT = """coalesce(
    (SELECT true FROM job_inputs i WHERE i.job_id = j.id),
    (SELECT true FROM job_results r WHERE r.job_id = j.id AND r.forgotten_at IS NULL),
    (SELECT true FROM face_calls c WHERE c.job_id = j.id),
    j.work_key IS NOT NULL)
"""
_CUTOFF = "statement_timestamp() - make_interval(secs => t.content_retention_s)"
_PAST = f"""
    tenants t LEFT JOIN retention_marks m ON m.tenant_id = t.id JOIN jobs j ON j.tenant_id = t.id
    AND j.finished_at >= coalesce(m.content_until, '-infinity') AND j.finished_at < {_CUTOFF}
"""
_TENANTS = text(f"""
    SELECT o.id FROM tenants o WHERE o.content_retention_s IS NOT NULL
      AND EXISTS (SELECT 1 FROM {_PAST} WHERE t.id = o.id AND {_HAS_CONTENT}) ORDER BY o.id
""")  # noqa: S608 - our own text
_DUE = text(f"""
    SELECT j.id, j.finished_at, {_HELD} AS is_held FROM {_PAST}
    WHERE t.id = :tenant AND j.finished_at >= CAST(:since AS timestamptz)
      AND (j.finished_at, j.id) > (CAST(:since AS timestamptz), CAST(:after AS uuid)) AND {_HAS_CONTENT}
    ORDER BY j.finished_at, j.id LIMIT :most
""")  # noqa: S608 - our own text
_COUNT = text(f"SELECT count(*) FROM {_PAST} WHERE {_HAS_CONTENT} AND NOT {_HELD}")  # noqa: S608 - our own text
# Anew, and locked: a requeue by an operator may have come between.
_LOCK = text("""
    SELECT id FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) AND finished_at IS NOT NULL ORDER BY id FOR UPDATE
""")
_RESULTS = text("""
    UPDATE job_results SET choices = '[]', trace = NULL, forgotten_at = statement_timestamp(), forgotten_for = :whose
    WHERE job_id = ANY(CAST(:ids AS uuid[])) AND forgotten_at IS NULL
""")
_INPUTS = text("DELETE FROM job_inputs WHERE job_id = ANY(CAST(:ids AS uuid[]))")
_CALLS = text("DELETE FROM face_calls WHERE job_id = ANY(CAST(:ids AS uuid[]))")
# It is a hash of the prompt, and whoever guesses that could tell.
_KEYS = text("UPDATE jobs SET work_key = NULL WHERE id = ANY(CAST(:ids AS uuid[])) AND work_key IS NOT NULL")
_MARK = text(f"""
    INSERT INTO retention_marks (tenant_id, content_until)
    SELECT t.id, least({_CUTOFF}, statement_timestamp() - make_interval(secs => :late), CAST(:held AS timestamptz))
    FROM tenants t WHERE t.id = :tenant AND t.content_retention_s IS NOT NULL
    ON CONFLICT (tenant_id) DO UPDATE SET content_until = greatest(retention_marks.content_until, excluded.content_until)
""")  # noqa: S608 - our own text


@dataclass(frozen=True, slots=True)
class Place:
    """A place among a tenant's ended jobs: behind this one."""

    ended_at: datetime
    job_id: UUID


BEGINNING = Place(datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0))


@dataclass(frozen=True, slots=True)
class Past:
    """A page of ended jobs whose texts have had their time. `held`: when the first ended whose texts are needed; `last`: where the next page begins."""

    job_ids: list[UUID]
    held: datetime | None
    last: Place | None


async def tenants_with_past(conn: AsyncConnection) -> Sequence[str]:
    """Tenants with prompts or outputs that have had their time before their jobs have."""
    return (await conn.scalars(_TENANTS)).all()


async def count_past(conn: AsyncConnection) -> int:
    """Of how many jobs a run would wipe the texts now."""
    return int(await conn.scalar(_COUNT) or 0)


async def find_past(conn: AsyncConnection, tenant_id: str, *, since: Place, most: int) -> Past:
    """The tenant's next jobs whose texts have to go, oldest end first, behind `since`."""
    place = {"since": since.ended_at, "after": since.job_id}
    rows: Any = (await conn.execute(_DUE, {"tenant": tenant_id, **place, "most": most})).all()
    held = [row.finished_at for row in rows if row.is_held]
    due = [row.id for row in rows if not row.is_held]
    return Past(due, min(held, default=None), Place(rows[-1].finished_at, rows[-1].id) if len(rows) == most else None)


async def wipe(conn: AsyncConnection, job_ids: Sequence[UUID]) -> Counter[str]:
    """Wipe prompts, outputs and what they were computed from, of those that haven't been requeued; in the caller's transaction.

    That there was a result stays, and what it cost. Their event streams have to be gone before.
    """
    ids: dict[str, Any] = {"ids": list((await conn.scalars(_LOCK, {"ids": list(job_ids)})).all())}
    rows: Counter[str] = Counter()
    rows["job_inputs"] = (await conn.execute(_INPUTS, ids)).rowcount
    rows["job_results"] = (await conn.execute(_RESULTS, {**ids, "whose": FORGOTTEN_FOR_TENANT})).rowcount
    rows["face_calls"] = (await conn.execute(_CALLS, ids)).rowcount
    await conn.execute(_KEYS, ids)
    return rows


async def note_wiped(conn: AsyncConnection, tenant_id: str, *, held: datetime | None) -> None:
    """All that was past its time is wiped, but for what ended at `held` or later: don't look at the rest again."""
    await conn.execute(_MARK, {"tenant": tenant_id, "late": _LATE_S, "held": held})
