"""How does a dead letter come to be? In the transaction that ends its job as dead, with all that is known of why."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import storable
from app.jobs import tables as t
from app.jobs.dead.evidence import MAX_ATTEMPTS, evidence_of
from app.jobs.dead.fingerprint import fingerprint_of, signature_of
from app.jobs.timing import NOT_MEASURED

# What counts against a job, and what a requeue sets to 0.
COUNTERS = ("failures", "worker_losses", "engine_crashes", "solo_crashes")

# The newest attempts, of earlier lives too: the whole story of a job that died again.
_ATTEMPTS = text("""
    SELECT a.job_id, a.attempt, a.outcome, a.detail, a.ended_at, a.queued_s, a.prefill_s, a.decode_s, w.incarnation, w.host, w.pid, w.device, w.model_hash
    FROM unnest(CAST(:ids AS uuid[])) AS dead (id)
    CROSS JOIN LATERAL (
        SELECT * FROM attempts WHERE attempts.job_id = dead.id ORDER BY attempts.attempt DESC LIMIT :most) a
    LEFT JOIN workers w ON w.incarnation = a.incarnation
    ORDER BY a.job_id, a.attempt
""")


async def write_dead_letters(
    conn: AsyncConnection, rows: Sequence[Row[Any]], extra: dict[UUID, dict[str, Any]]
) -> None:
    """Write the letters of jobs that have just ended as dead, in the caller's transaction, after their attempts' rows.

    Args:
        rows: the jobs' rows as they are now.
        extra: by job, what the code that gave it up adds to the evidence.
    """
    if not rows:
        return
    ids = [row.id for row in rows]
    attempts: dict[UUID, list[dict[str, Any]]] = {job_id: [] for job_id in ids}
    for each in await conn.execute(_ATTEMPTS, {"ids": ids, "most": MAX_ATTEMPTS}):
        attempts[each.job_id].append(_shown(each))
    await conn.execute(insert(t.dead_letters), [_letter(row, attempts[row.id], extra.get(row.id, {})) for row in rows])


def _letter(row: Row[Any], attempts: list[dict[str, Any]], extra: dict[str, Any]) -> dict[str, Any]:
    error = row.error or {}
    reason = str(error.get("code", "unknown"))
    detail = (attempts[-1]["detail"] if attempts else None) or {}
    signature = storable(signature_of(reason, detail))
    evidence = evidence_of(error, {name: getattr(row, name) for name in COUNTERS}, attempts, extra)
    evidence["attempts_left_out"] = row.attempt - len(evidence["attempts"])
    return {
        "job_id": row.id,
        "reservation": row.reservation,
        "attempt": row.attempt,
        "pool": row.pool,
        "tenant_id": row.tenant_id,
        "reason": reason,
        "signature": signature,
        "fingerprint": fingerprint_of(row.model, signature),
        "evidence": evidence,
    }


def _shown(attempt: Row[Any]) -> dict[str, Any]:
    shown = {"attempt": attempt.attempt, "outcome": attempt.outcome, "ended_at": attempt.ended_at.isoformat()}
    shown |= {name: getattr(attempt, name) for name in NOT_MEASURED}
    if attempt.incarnation is not None:
        names = ("host", "pid", "device", "model_hash")
        shown["worker"] = {"incarnation": attempt.incarnation.hex} | {name: getattr(attempt, name) for name in names}
    return {**shown, "detail": attempt.detail}
