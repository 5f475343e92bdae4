"""Which pages are asked for? Each kind once as it opens, and each filter that a large table could make slow."""

from urllib.parse import quote
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.batches.store import batch_name
from app.ids import delivery_name, endpoint_name, job_name

_FOUND = text("""
    SELECT (SELECT id FROM jobs WHERE status = 'succeeded' AND attempt = 2 ORDER BY id DESC LIMIT 1) AS ended,
           (SELECT id FROM jobs WHERE status = 'queued' ORDER BY id DESC LIMIT 1) AS queued,
           (SELECT id FROM jobs WHERE status = 'running' ORDER BY id LIMIT 1) AS running,
           (SELECT id FROM jobs ORDER BY id OFFSET (SELECT count(*) / 2 FROM jobs) LIMIT 1) AS middle,
           (SELECT job_id FROM dead_letters WHERE resolved_at IS NULL ORDER BY job_id DESC LIMIT 1) AS dead,
           (SELECT fingerprint FROM dead_letters WHERE resolved_at IS NULL GROUP BY 1 ORDER BY count(*) DESC LIMIT 1) AS fingerprint,
           (SELECT tenant_id FROM jobs GROUP BY 1 ORDER BY count(*) DESC LIMIT 1) AS large,
           (SELECT tenant_id FROM jobs GROUP BY 1 ORDER BY count(*), 1 LIMIT 1) AS small,
           (SELECT id FROM webhook_deliveries WHERE status = 'failed' ORDER BY id LIMIT 1) AS delivery,
           (SELECT id FROM batches ORDER BY id LIMIT 1) AS batch,
           (SELECT incarnation FROM workers WHERE ended_at IS NULL LIMIT 1) AS worker,
           (SELECT target FROM audit_log ORDER BY id LIMIT 1) AS target,
           (SELECT max(id) / 2 FROM audit_log) AS act,
           (SELECT to_char(min(created_at) + interval '1 day', 'YYYY-MM-DD"T"HH24:MI') FROM jobs) AS early
""")


async def pages(db: AsyncEngine) -> dict[str, str]:
    """Path by name, for this database."""
    async with db.begin() as conn:
        await conn.execute(text("SET LOCAL statement_timeout = 0"))
        found = (await conn.execute(_FOUND)).one()
        endpoint: UUID | None = await conn.scalar(
            text("SELECT endpoint_id FROM webhook_deliveries WHERE tenant_id = :tenant LIMIT 1"),
            {"tenant": found.large},
        )
    assert endpoint is not None
    large, small, middle = quote(found.large), quote(found.small), found.middle.hex
    return {
        "overview": "/overview",
        "overview, live part": "/overview/live",
        "tenants": "/tenants",
        "tenant with most jobs": f"/tenants/{large}",
        "its usage": f"/tenants/{large}/usage",
        "jobs": "/jobs",
        "jobs, from the middle": f"/jobs?cursor={middle}",
        "jobs of the largest tenant": f"/jobs?tenant={large}",
        "jobs of the smallest tenant": f"/jobs?tenant={small}",
        "jobs of the largest tenant, dead": f"/jobs?tenant={large}&status=dead",
        "jobs, running": "/jobs?status=running",
        "jobs, queued": "/jobs?status=queued",
        "jobs, dead, from the middle": f"/jobs?status=dead&cursor={middle}",
        "jobs, expired, interactive": "/jobs?status=expired&tier=interactive",
        "jobs by metadata": "/jobs?metadata=project%3Dp7",
        "jobs by metadata that none has": "/jobs?metadata=project%3Dnone",
        "jobs of an unknown model": "/jobs?model=none",
        "jobs before a time": f"/jobs?before={quote(found.early)}",
        "jobs of a day, by metadata": f"/jobs?before={quote(found.early)}&metadata=project%3Dp7",
        "job, ended": f"/jobs/{job_name(found.ended)}",
        "job, queued": f"/jobs/{job_name(found.queued)}",
        "job, running": f"/jobs/{job_name(found.running)}",
        "job, dead": f"/jobs/{job_name(found.dead)}",
        "dead letters": "/dead-letters",
        "dead letters of a tenant": f"/dead-letters?tenant={small}",
        "dead letters of one kind": f"/dead-letters/group?fingerprint={quote(found.fingerprint)}",
        "dead letters, all": "/dead-letters/all",
        "dead letters, requeued": "/dead-letters/all?state=requeued",
        "dead letters, all of a tenant": f"/dead-letters/all?tenant={small}",
        "dead letter": f"/dead-letters/{job_name(found.dead)}",
        "webhooks": "/webhooks",
        "webhooks, disabled": "/webhooks?state=disabled",
        "webhooks of a tenant": f"/webhooks?tenant={large}",
        "endpoint": f"/webhooks/endpoints/{endpoint_name(endpoint)}",
        "deliveries": "/webhooks/deliveries",
        "deliveries, failed": "/webhooks/deliveries?status=failed",
        "deliveries, pending": "/webhooks/deliveries?status=pending",
        "deliveries of an endpoint, failed": f"/webhooks/deliveries?endpoint={endpoint_name(endpoint)}&status=failed",
        "deliveries of an unknown kind": "/webhooks/deliveries?type=batch.expired",
        "delivery": f"/webhooks/deliveries/{delivery_name(found.delivery)}",
        "batches": "/batches",
        "batches, in progress": "/batches?status=in_progress",
        "batch": f"/batches/{batch_name(found.batch)}",
        "workers": "/workers",
        "worker": f"/workers/{found.worker.hex}",
        "models": "/models",
        "audit log": "/audit",
        "audit log of an actor": "/audit?actor=operator%3Aop10",
        "audit log of an object": f"/audit?target={quote(found.target)}",
        "audit log, unknown act": "/audit?action=none",
        "audit log before a time": f"/audit?before={quote(found.early)}",
        "audit log, from the middle": f"/audit?cursor={found.act}",
    }
