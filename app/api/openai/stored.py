"""Which calls can be read again? One row a call beside its job, written with it; without the row the face knows nothing of it."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import IdempotencyMismatch
from app.jobs import tables as t
from app.jobs.read import JobView, get_job


@dataclass(frozen=True, slots=True)
class StoredCall:
    """A call that was kept, and its job as it is now."""

    body: dict[str, Any]
    job: JobView


async def keep(
    conn: AsyncConnection, tenant_id: str, job_id: UUID, face: str, body: dict[str, Any], *, is_background: bool = False
) -> None:
    """Write the call down, in the transaction that makes its job. `is_background`: its end is told as a response's."""
    row = {"job_id": job_id, "tenant_id": tenant_id, "face": face, "body": body, "is_background": is_background}
    await conn.execute(insert(t.face_calls).values(row))


async def check_replay(
    conn: AsyncConnection, tenant_id: str, job_id: UUID, face: str, *, is_background: bool = False
) -> None:
    """See that the job which an Idempotency-Key brought back is the job of a call that is kept as this one is to be.

    Raises:
        IdempotencyMismatch: it isn't, so that nobody could read this call under its id.
    """
    body = await _body_of(conn, tenant_id, job_id, face)
    if body is None or bool(body.get("background")) != is_background:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used with a call that isn't kept as this one asks (store, background), or was deleted; "
            "use a new key for a new call"
        )


async def find(conn: AsyncConnection, tenant_id: str, job_id: UUID, face: str) -> StoredCall | None:
    """The tenant's call; None where there is none, it was deleted, or its output isn't kept any more."""
    body = await _body_of(conn, tenant_id, job_id, face)
    job = None if body is None else await get_job(conn, tenant_id, job_id)
    if body is None or job is None or (job.status == "succeeded" and job.choices is None):
        return None
    return StoredCall(body, job)


async def _body_of(conn: AsyncConnection, tenant_id: str, job_id: UUID, face: str) -> dict[str, Any] | None:
    c = t.face_calls.c
    found: dict[str, Any] | None = await conn.scalar(
        select(c.body).where(c.job_id == job_id, c.tenant_id == tenant_id, c.face == face)
    )
    return found


async def forget(conn: AsyncConnection, tenant_id: str, job_id: UUID, face: str) -> bool:
    """Delete the call, not its job, which goes with all jobs of its age; whether there was one."""
    c = t.face_calls.c
    gone = delete(t.face_calls).where(c.job_id == job_id, c.tenant_id == tenant_id, c.face == face).returning(c.job_id)
    return await conn.scalar(gone) is not None


async def turns_before(conn: AsyncConnection, tenant_id: str, job_id: UUID) -> list[dict[str, Any]]:
    """The conversation that a job was asked to continue."""
    joined = t.job_inputs.join(t.jobs, t.jobs.c.id == t.job_inputs.c.job_id)
    request = await conn.scalar(
        select(t.job_inputs.c.request).select_from(joined).where(t.jobs.c.id == job_id, t.jobs.c.tenant_id == tenant_id)
    )
    return list((request or {}).get("messages", []))
