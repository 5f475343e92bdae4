"""What else has had its time? Batches, files, deliveries that belong to no job, workers that ended, log-ins, bills that are summed up."""

from collections import Counter
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.operators.throttle import FORGET_S

_DAYS = "coalesce(t.retention_days, CAST(:days AS integer))"
_OLD = f"statement_timestamp() - make_interval(days => {_DAYS})"
_MOST_COUNTED = 10_000_000  # of one tenant's deliveries, where nothing is deleted
_UNUSED_S = 86_400  # an upload that no batch has asked for may be about to be
_ENDED_AT = "greatest(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at)"
_IS_ACTIVE = "b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"

_OLD_BATCH = f"""
    SELECT b.id FROM batches b JOIN tenants t ON t.id = b.tenant_id
    WHERE NOT {_IS_ACTIVE} AND {_ENDED_AT} < {_OLD} AND NOT EXISTS (
        SELECT 1 FROM batch_lines l JOIN jobs j ON j.id = l.job_id WHERE l.batch_id = b.id)
"""  # noqa: S608 - our own text
_LOCK_BATCH = text(f"{_OLD_BATCH} ORDER BY b.id LIMIT 1 FOR UPDATE OF b SKIP LOCKED")
_LINES = text("DELETE FROM batch_lines WHERE batch_id = :id")
_BATCH = text("DELETE FROM batches WHERE id = :id")

# With their tenant's jobs, or where its texts are kept for a short while only, with the batch that they belong to.
_OLD_FILE = f"""
    SELECT f.id FROM files f JOIN tenants t ON t.id = f.tenant_id
    WHERE f.status = 'processed' AND (t.content_retention_s IS NOT NULL OR {_DAYS} IS NOT NULL)
      AND NOT EXISTS (SELECT 1 FROM batches b WHERE f.id IN (b.input_file_id, b.output_file_id, b.error_file_id) AND {_IS_ACTIVE}
                      AND b.tenant_id = f.tenant_id)
      AND (f.created_at < {_OLD} OR coalesce((
            SELECT max({_ENDED_AT}) FROM batches b
            WHERE b.tenant_id = f.tenant_id AND f.id IN (b.input_file_id, b.output_file_id, b.error_file_id)),
            f.created_at + make_interval(secs => {_UNUSED_S}))
          < statement_timestamp() - make_interval(secs => t.content_retention_s))
"""  # noqa: S608 - our own text
_LOCK_FILE = text(f"{_OLD_FILE} LIMIT 1 FOR UPDATE OF f SKIP LOCKED")
_PIECES = text("DELETE FROM file_pieces WHERE file_id = :id")
_FILE = text("DELETE FROM files WHERE id = :id")

# A job's own deliveries go with it. Ids are UUIDv7 (RFC 9562): older ones are less than one of that time, so the index leads to them.
_FLOOR = f"CAST(lpad(to_hex(CAST(extract(epoch FROM {_OLD}) * 1000 AS bigint)), 12, '0') || repeat('0', 20) AS uuid)"
_OLD_DELIVERIES = f"""
    SELECT w.id FROM tenants t CROSS JOIN LATERAL (
        SELECT id FROM webhook_deliveries
        WHERE tenant_id = t.id AND id < {_FLOOR} AND job_id IS NULL AND status <> 'pending' AND ended_at < {_OLD}
        ORDER BY id LIMIT :most) w
"""  # noqa: S608 - our own text
_LOCK_DELIVERIES = text(f"""
    SELECT id FROM webhook_deliveries WHERE id = ANY(ARRAY({_OLD_DELIVERIES} LIMIT :most)) FOR UPDATE SKIP LOCKED
""")  # noqa: S608 - our own text
_TRIES = text("DELETE FROM webhook_tries WHERE delivery_id = ANY(CAST(:ids AS uuid[]))")
_DELIVERIES = text("DELETE FROM webhook_deliveries WHERE id = ANY(CAST(:ids AS uuid[]))")

_OLD_WORKERS = """
    SELECT incarnation FROM workers w WHERE ended_at < statement_timestamp() - make_interval(days => :worker_days)
    AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.incarnation = w.incarnation AND j.status = 'running')
"""
_WORKERS = text(f"DELETE FROM workers WHERE incarnation IN ({_OLD_WORKERS} ORDER BY ended_at LIMIT :most)")  # noqa: S608

# Log-ins that have ended, links that can't be used any more, failures that count no more.
_OLD_SESSIONS = "SELECT token_hash FROM operator_sessions WHERE expires_at < statement_timestamp()"
_OLD_LINKS = "SELECT token_hash FROM operator_links WHERE expires_at < statement_timestamp()"
_OLD_FAILURES = f"SELECT subject FROM login_failures WHERE last_at < statement_timestamp() - interval '{FORGET_S} s'"  # noqa: S608
_SESSIONS = text(f"DELETE FROM operator_sessions WHERE token_hash = ANY(ARRAY({_OLD_SESSIONS} LIMIT :most))")  # noqa: S608
_LINKS = text(f"DELETE FROM operator_links WHERE token_hash = ANY(ARRAY({_OLD_LINKS} LIMIT :most))")  # noqa: S608
_FAILURES = text(f"DELETE FROM login_failures WHERE subject = ANY(ARRAY({_OLD_FAILURES} LIMIT :most))")  # noqa: S608

# The bill of a job that is gone, by day. While its job is there the audit compares them.
_OLD_USAGE = """
    SELECT u.ctid FROM tenants t JOIN usage u ON u.tenant_id = t.id AND u.at < statement_timestamp() - make_interval(days => :usage_days)
    WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = u.job_id)
"""
_SUM_UP = text(f"""
    WITH gone AS (
        DELETE FROM usage WHERE ctid = ANY(ARRAY({_OLD_USAGE} LIMIT :most)) RETURNING *),
    summed AS (
        INSERT INTO usage_days AS d (tenant_id, api_key_id, model, tier, day, kind, jobs, prompt_tokens, cached_tokens,
                                     completion_tokens, cost_micros)
        SELECT tenant_id, api_key_id, model, tier, (at AT TIME ZONE 'UTC')::date, kind, count(DISTINCT job_id), sum(prompt_tokens),
               sum(cached_tokens), sum(completion_tokens), sum(cost_micros)
        FROM gone GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT (tenant_id, day, model, tier, kind, api_key_id) DO UPDATE SET
            jobs = d.jobs + excluded.jobs, prompt_tokens = d.prompt_tokens + excluded.prompt_tokens,
            cached_tokens = d.cached_tokens + excluded.cached_tokens,
            completion_tokens = d.completion_tokens + excluded.completion_tokens, cost_micros = d.cost_micros + excluded.cost_micros)
    SELECT count(*) FROM gone
""")  # noqa: S608 - our own text


async def delete_old_batch(conn: AsyncConnection, *, days: int | None) -> Counter[str]:
    """Delete one ended batch that is past its time and none of whose jobs is left, with its lines; nothing where there is none."""
    batch_id: UUID | None = await conn.scalar(_LOCK_BATCH, {"days": days})
    if batch_id is None:
        return Counter()
    lines = (await conn.execute(_LINES, {"id": batch_id})).rowcount
    return Counter(batch_lines=lines, batches=(await conn.execute(_BATCH, {"id": batch_id})).rowcount)


async def delete_old_file(conn: AsyncConnection, *, days: int | None) -> Counter[str]:
    """Delete one file that is past its time, bytes and all; nothing where there is none."""
    file_id: UUID | None = await conn.scalar(_LOCK_FILE, {"days": days})
    if file_id is None:
        return Counter()
    pieces = (await conn.execute(_PIECES, {"id": file_id})).rowcount
    return Counter(file_pieces=pieces, files=(await conn.execute(_FILE, {"id": file_id})).rowcount)


async def delete_old_deliveries(conn: AsyncConnection, *, days: int | None, most: int) -> Counter[str]:
    """Delete up to `most` ended deliveries that tell of no job and are past their time, with their tries."""
    found: Any = (await conn.scalars(_LOCK_DELIVERIES, {"days": days, "most": most})).all()
    if not found:
        return Counter()
    ids = {"ids": list(found)}
    tries = (await conn.execute(_TRIES, ids)).rowcount
    return Counter(webhook_tries=tries, webhook_deliveries=(await conn.execute(_DELIVERIES, ids)).rowcount)


async def delete_old_workers(conn: AsyncConnection, *, worker_days: int, most: int) -> Counter[str]:
    """Delete up to `most` lives of workers that ended so long ago."""
    return Counter(workers=(await conn.execute(_WORKERS, {"worker_days": worker_days, "most": most})).rowcount)


async def delete_old_logins(conn: AsyncConnection, *, most: int) -> Counter[str]:
    """Delete up to `most` of each: sessions of operators and one-time links whose time is over, failed log-ins that count no more."""
    tables = {"operator_sessions": _SESSIONS, "operator_links": _LINKS, "login_failures": _FAILURES}
    return Counter({name: (await conn.execute(delete, {"most": most})).rowcount for name, delete in tables.items()})


async def sum_up_usage(conn: AsyncConnection, *, usage_days: int, most: int) -> Counter[str]:
    """Turn up to `most` rows of `usage` of jobs that are gone into sums by day. Nothing is lost but whose job it was."""
    return Counter(usage=int(await conn.scalar(_SUM_UP, {"usage_days": usage_days, "most": most}) or 0))


async def count_rest(
    conn: AsyncConnection, *, days: int | None, worker_days: int, usage_days: int | None
) -> dict[str, int]:
    """What a run would delete now, by table; what hangs on these rows isn't counted."""
    counted = {
        "batches": _OLD_BATCH,
        "files": _OLD_FILE,
        "webhook_deliveries": _OLD_DELIVERIES,
        "workers": _OLD_WORKERS,
        "operator_sessions": _OLD_SESSIONS,
        "operator_links": _OLD_LINKS,
        "login_failures": _OLD_FAILURES,
    }
    if usage_days is not None:
        counted["usage"] = _OLD_USAGE
    values = {"days": days, "worker_days": worker_days, "usage_days": usage_days, "most": _MOST_COUNTED}
    found = {}
    for table, query in counted.items():
        named = {name: value for name, value in values.items() if f":{name}" in query}
        found[table] = int(await conn.scalar(text(f"SELECT count(*) FROM ({query}) old"), named) or 0)  # noqa: S608
    return found
