"""Was this asked before? An Idempotency-Key leads to the jobs that it made, for as long as it is remembered."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec
from sqlalchemy import Uuid, any_, bindparam, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import IdempotencyMismatch, Unavailable
from app.jobs import tables as t
from app.jobs.request import JobRequest

_MAX_BINDS = 3


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key, and the hash of what was asked under it."""

    key: str
    body_hash: bytes

    @classmethod
    def of_one(cls, key: str, request: JobRequest) -> "IdempotencyKey":
        """Of a job that comes alone."""
        return cls(key, _body_hash(request))

    @classmethod
    def of_many(cls, key: str, requests: Sequence[JobRequest]) -> "IdempotencyKey":
        """Of these requests in their order; one alone isn't the same as that one submitted by itself."""
        digest = hashlib.sha256()
        for each in requests:
            digest.update(_body_hash(each))
        return cls(key, digest.digest())


async def jobs_of(conn: AsyncConnection, tenant_id: str, key: IdempotencyKey) -> list[UUID] | None:
    """The jobs that this key made before, in their order, if it did.

    Raises:
        IdempotencyMismatch: they were made of another body.
    """
    keys = t.idempotency_keys
    row = (
        await conn.execute(
            select(keys.c.body_hash, keys.c.job_id, keys.c.job_ids).where(
                keys.c.tenant_id == tenant_id, keys.c.key == key.key
            )
        )
    ).one_or_none()
    if row is None:
        return None
    if row.body_hash != key.body_hash:
        raise IdempotencyMismatch("this Idempotency-Key was used with another body; use a new key for a new job")
    return row.job_ids or [row.job_id]


async def claim(conn: AsyncConnection, tenant_id: str, key: IdempotencyKey, ids: Sequence[UUID]) -> list[UUID] | None:
    """Bind the key to these jobs, which were just written. If another request has it (we wait for its commit), undo them and return its jobs.

    Raises:
        IdempotencyMismatch: those were made of another body.
        Unavailable: the key is being forgotten.
    """
    keys = t.idempotency_keys
    row = {
        "tenant_id": tenant_id, "key": key.key, "body_hash": key.body_hash, "job_id": ids[0],
        "job_ids": list(ids) if len(ids) > 1 else None,
    }  # fmt: skip
    bind = upsert(keys).values(**row).on_conflict_do_nothing().returning(keys.c.job_id)
    for _ in range(_MAX_BINDS):
        if await conn.scalar(bind) is not None:
            return None
        first = await jobs_of(conn, tenant_id, key)
        if first is not None:
            ours = bindparam("ids", list(ids), type_=ARRAY(Uuid))
            await conn.execute(t.jobs.delete().where(t.jobs.c.id == any_(ours)))
            return first
        # The key was past its time and forgotten between the two statements: now it is free.
    raise Unavailable("this Idempotency-Key is being forgotten just now: send the request again")


def _body_hash(request: JobRequest) -> bytes:
    return hashlib.sha256(msgspec.json.encode(request.canonical(), order="sorted")).digest()
