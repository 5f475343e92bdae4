"""What is written of a job that is accepted? Its row in `jobs`, and what was asked in `job_inputs`."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs import tables as t
from app.jobs.copying import insert_rows
from app.jobs.prepare import PreparedJob
from app.jobs.prompt_ids import pack_ids
from app.observe.tracing import current_traceparent
from app.quotas.budgets import Prices


def job_row(tenant_id: str, api_key_id: UUID | None, job: PreparedJob) -> dict[str, Any]:
    """Columns of `jobs`, without the prices, which are the model's of the moment."""
    request = job.request
    return {
        "id": job.id,
        "tenant_id": tenant_id,
        "api_key_id": api_key_id,
        "pool": job.model.pool,
        "model": job.model.name,
        "requested_model": job.requested_model,
        "tier": request.tier,
        "prompt_tokens": len(job.prompt_ids),
        "max_tokens": job.max_tokens,
        "n": request.n,
        "on_budget": request.on_budget,
        "changes": job.changes,
        "metadata": request.metadata,
        "webhook": request.webhook.model_dump(exclude_none=True) if request.webhook else None,
        "traceparent": current_traceparent(),
    }


def input_row(job: PreparedJob) -> dict[str, Any]:
    """Columns of `job_inputs`."""
    return {
        "job_id": job.id,
        "request": job.request.canonical(),
        "sampling": job.sampling,
        "prompt_ids": pack_ids(job.prompt_ids),
        "tokenizer_hash": job.model.tokenizer_hash,
    }


async def insert_jobs(
    conn: AsyncConnection,
    tenant_id: str,
    api_key_id: UUID | None,
    prepared: Sequence[PreparedJob],
    prices: Mapping[str, Prices],
) -> None:
    """Write many rows of `jobs`, in the caller's transaction."""
    deadlines = [each.request.deadline_s for each in prepared]
    rows = [
        job_row(tenant_id, api_key_id, each)
        | {
            "input_price": prices[each.model.name].input_price,
            "output_price": prices[each.model.name].output_price,
        }
        for each in prepared
    ]
    await insert_rows(conn, t.jobs, rows)
    if any(deadline is not None for deadline in deadlines):
        # Deadlines are facts of Postgres' clock.
        timed = [
            (each.id, deadline) for each, deadline in zip(prepared, deadlines, strict=True) if deadline is not None
        ]
        await conn.execute(
            text(
                "UPDATE jobs SET deadline_at = jobs.created_at + make_interval(secs => d.seconds) "
                "FROM unnest(CAST(:ids AS uuid[]), CAST(:seconds AS float8[])) AS d (id, seconds) WHERE jobs.id = d.id"
            ),
            {"ids": [job_id for job_id, _ in timed], "seconds": [seconds for _, seconds in timed]},
        )
