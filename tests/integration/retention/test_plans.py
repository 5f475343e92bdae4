"""Does a run look at what is old only? Shown by EXPLAIN where nearly all jobs are young, as they are between two runs."""

import json
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.retention import content, jobs, rest

FILL = (
    "INSERT INTO tenants (id, webhook_secret, content_retention_s) SELECT 't' || i, 'x', 3600 FROM generate_series(0, 19) AS i",
    """INSERT INTO jobs (id, tenant_id, pool, model, tier, status, prompt_tokens, max_tokens, created_at, finished_at)
       SELECT gen_random_uuid(), 't' || i % 20, 'p', 'p', 'batch', 'succeeded', 1, 1, at, at
       FROM (SELECT i, now() - CASE WHEN i % 600 = 0 THEN interval '100 days' ELSE interval '1 s' END AS at
             FROM generate_series(1, 6000) AS i) AS filled""",
    "INSERT INTO job_inputs (job_id, request, sampling, prompt_ids, tokenizer_hash) SELECT id, '{}', '{}', '', '' FROM jobs",
    "INSERT INTO job_results (job_id, attempt, choices) SELECT id, 1, '[]' FROM jobs",
    "INSERT INTO attempts (job_id, attempt, incarnation, outcome) SELECT id, 1, id, 'finished' FROM jobs",
    """INSERT INTO usage (job_id, attempt, kind, tenant_id, model, tier, prompt_tokens, cached_tokens, completion_tokens)
       SELECT id, 1, 'billed', tenant_id, 'p', 'batch', 1, 1, 1 FROM jobs""",
    """INSERT INTO ledger (budget_id, window_start, job_id, reservation, kind, amount)
       SELECT id, now(), id, 1, kind, 0 FROM jobs CROSS JOIN unnest(ARRAY['reserve', 'settle', 'release']) AS kind""",
    # Time-ordered ids of now: older ones would sort before them.
    """INSERT INTO webhook_deliveries (id, tenant_id, job_id, event_type, url, body, status, ended_at)
       SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || substr(md5(id::text), 1, 20))::uuid, tenant_id, id, 'job.succeeded', '', '', 'delivered', now() FROM jobs""",
    "INSERT INTO webhook_tries (delivery_id, number) SELECT id, 1 FROM webhook_deliveries",
)
LARGE = {
    "jobs", "job_inputs", "job_results", "attempts", "usage", "ledger", "webhook_deliveries", "webhook_tries",
}  # fmt: skip


@pytest.fixture
async def filled(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        for statement in FILL:
            await conn.execute(text(statement))
    async with engine.connect() as conn:
        await (await conn.execution_options(isolation_level="AUTOCOMMIT")).execute(text("VACUUM ANALYZE"))


async def scanned(conn: AsyncConnection, statement: TextClause, values: dict[str, Any]) -> set[str]:
    """Large tables that the statement's plan reads from one end to the other."""
    (plan,) = await conn.scalar(text(f"EXPLAIN (FORMAT JSON) {statement.text}"), values) or [{}]
    found: set[str] = set()

    def walk(node: dict[str, Any]) -> None:
        if node.get("Node Type") == "Seq Scan" and node["Relation Name"] in LARGE:
            found.add(node["Relation Name"])
        for child in node.get("Plans", []):
            walk(child)

    walk(json.loads(json.dumps(plan))["Plan"])
    return found


@pytest.mark.usefixtures("filled")
async def test_no_statement_of_a_run_reads_a_large_table_whole(engine: AsyncEngine) -> None:
    since = "1970-01-01T00:00:00+00:00"
    async with engine.connect() as conn:
        ids = list(await conn.scalars(text("SELECT id FROM jobs LIMIT 500")))
        page = {"tenant": "t0", "since": datetime.fromisoformat(since), "most": 500}
        statements: dict[str, tuple[TextClause, dict[str, Any]]] = {
            "tenants with old jobs": (jobs._TENANTS, {"days": 30}),
            "old jobs": (jobs._DUE, {"days": 30, **page}),
            "roll-up": (jobs._ROLL_UP, {"ids": ids[:10]}),
            **{f"delete {table}": (each, {"ids": ids[:10]}) for table, each in jobs._DELETES.items()},
            "tenants with texts": (content._TENANTS, {}),
            "texts": (content._DUE, page | {"after": ids[0]}),
            "deliveries": (rest._LOCK_DELIVERIES, {"days": 30, "most": 500}),
            "bills": (rest._SUM_UP, {"usage_days": 30, "most": 500}),
        }
        assert await scanned(conn, text("SELECT count(*) FROM jobs WHERE metadata = '{}'"), {}) == {"jobs"}, (
            "it can fail"
        )
        found = {name: await scanned(conn, *each) for name, each in statements.items()}
    assert {name: tables for name, tables in found.items() if tables} == {}
