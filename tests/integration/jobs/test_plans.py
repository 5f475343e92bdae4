"""Does each query that runs in a loop use its index? Shown by EXPLAIN on a table with many ended jobs and few live ones."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.cli import top_figures
from app.ids import new_id
from app.jobs import (
    breakers,
    forecast,
    held,
    hopeless,
    leases,
    lengths,
    pool_figures,
    read,
    rescue,
    resync,
    sharing,
    store,
    timekeeping,
    why,
)
from app.jobs.breaker import Rules
from app.jobs.finish import end_queued
from app.settings import Settings
from app.webhooks.nominate import Rooms, nominate
from tests.support.jobs import open_lease, seed
from workers.maintenance.outlook import LOOK

FILL = text("""
    INSERT INTO jobs (id, tenant_id, pool, model, tier, status, prompt_tokens, max_tokens, created_at, eligible_at, finished_at)
    SELECT gen_random_uuid(), 't' || (i % 50), 'tiny', 'tiny', 'standard',
           CASE WHEN i % 1000 = 0 THEN 'queued' ELSE 'succeeded' END, 5, 8, now(), now(),
           CASE WHEN i % 1000 = 0 THEN NULL ELSE now() END
    FROM generate_series(1, 60000) AS i
""")
FILL_KEYS = text("""
    INSERT INTO idempotency_keys (tenant_id, key, body_hash, job_id)
    SELECT tenant_id, id::text, '', id FROM jobs LIMIT 30000
""")
FILL_DELIVERIES = text("""
    INSERT INTO webhook_deliveries (id, tenant_id, job_id, event_type, url, body, status)
    SELECT gen_random_uuid(), tenant_id, id, 'job.succeeded', 'https://example.com', '', 'delivered' FROM jobs LIMIT 30000
""")
FILL_WORKERS = text("""
    INSERT INTO workers (incarnation, pool, model, host, pid, device, model_hash, state, expires_at, ended_at)
    SELECT gen_random_uuid(), 'tiny', 'tiny', 'h', 1, 'cpu', 'x', 'ended', now(), now() FROM generate_series(1, 5000)
""")
FILL_ATTEMPTS = text("""
    INSERT INTO attempts (job_id, attempt, incarnation, outcome)
    SELECT j.id, 1, w.incarnation, CASE WHEN j.n % 300 = 0 THEN 'engine_crash' ELSE 'succeeded' END
    FROM (SELECT id, row_number() OVER () AS n FROM jobs WHERE status = 'succeeded') j
    JOIN (SELECT incarnation, row_number() OVER () AS n FROM workers) w ON w.n = j.n % 5000 + 1
""")
AGE_WORKERS = text("""
    UPDATE workers SET ended_at = now() - interval '1 day'
    WHERE incarnation NOT IN (SELECT incarnation FROM attempts WHERE outcome = 'engine_crash' LIMIT 20)
""")
FILL_RESULTS = text(
    "INSERT INTO job_results (job_id, attempt, choices) SELECT id, 1, '[]' FROM jobs WHERE status = 'succeeded'"
)
FILL_INPUTS = text(
    "INSERT INTO job_inputs (job_id, request, sampling, prompt_ids, tokenizer_hash) SELECT id, '{}', '{}', '', '' FROM jobs"
)
FILL_USAGE = text("""
    INSERT INTO usage (job_id, attempt, kind, tenant_id, model, tier, prompt_tokens, cached_tokens, completion_tokens)
    SELECT id, 1, 'billed', tenant_id, model, tier, 1, 1, 1 FROM jobs WHERE status = 'succeeded'
""")
FILL_LETTERS = text("""
    INSERT INTO dead_letters (job_id, reservation, attempt, pool, tenant_id, reason, signature, fingerprint, evidence)
    SELECT id, 1, 1, pool, tenant_id, 'engine_crashes', '', 'x', '{}' FROM jobs LIMIT 30000
""")
FILL_CALLS = text("""
    INSERT INTO face_calls (job_id, tenant_id, face, body)
    SELECT id, tenant_id, 'responses', '{"background": true}' FROM jobs LIMIT 30000
""")
FILL_BATCHES = text("""
    INSERT INTO batches (id, tenant_id, endpoint, input_file_id, tier, completion_window, status, expires_at)
    SELECT gen_random_uuid(), 't' || i % 50, '/v1/chat/completions', gen_random_uuid(), 'batch', '24h', 'completed', now()
    FROM generate_series(1, 20000) i
""")
SMALL = {
    "workers",
    "models",
    "budgets",
    "budget_windows",
    "breakers",
    "tenants",
    "webhook_endpoints",
    "webhook_lanes",
}  # so few rows that reading them all is right


class Recorder:
    """A connection that explains each statement before it runs it."""

    def __init__(self, conn: AsyncConnection) -> None:
        self._conn = conn
        self.info = conn.info
        self.scanned: list[str] = []

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        compiled = statement.compile(dialect=self._conn.dialect, compile_kwargs={"render_postcompile": True})
        bound = compiled.params | (parameters if isinstance(parameters, dict) else {})
        bound = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in bound.items()}
        plan = (await self._conn.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {compiled}", bound)).scalar_one()
        self._walk((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
        return await self._conn.execute(statement, parameters)

    async def scalar(self, statement: Any, parameters: Any = None) -> Any:
        return (await self.execute(statement, parameters)).scalar()

    def _walk(self, plan: dict[str, Any]) -> None:
        if plan["Node Type"] == "Seq Scan":
            self.scanned.append(plan["Relation Name"])
        for child in plan.get("Plans", []):
            self._walk(child)


@pytest.fixture
async def recorder(engine: AsyncEngine) -> Any:
    await seed(engine, *[f"t{i}" for i in range(50)])
    async with engine.begin() as conn:
        for statement in (
            FILL, FILL_RESULTS, FILL_INPUTS, FILL_USAGE, FILL_KEYS, FILL_DELIVERIES, FILL_WORKERS, FILL_ATTEMPTS,
            AGE_WORKERS, FILL_LETTERS, FILL_CALLS, FILL_BATCHES,
        ):  # fmt: skip
            await conn.execute(statement)
        await conn.execute(text("ANALYZE"))
    async with engine.begin() as conn:
        yield Recorder(conn)


async def hold_some(conn: AsyncConnection) -> UUID:
    """20 jobs of one tenant that wait for a budget, and there is room."""
    budget_id = new_id()
    await conn.execute(
        text(
            "INSERT INTO budgets (id, tenant_id, metric, period, hard_limit) VALUES (:id, 't7', 'requests', 'day', 1)"
        ),
        {"id": budget_id},
    )
    await conn.execute(
        text("""
            UPDATE jobs SET held_by = :id, reservation = 0, tenant_id = 't7', not_before = now() + interval '1 day'
            WHERE id IN (SELECT id FROM jobs WHERE status = 'queued' AND not_before IS NULL LIMIT 20)
        """),
        {"id": budget_id},
    )
    await conn.execute(text("ANALYZE jobs"))
    return budget_id


async def test_no_loop_reads_a_whole_table(recorder: Any, settings: Settings) -> None:
    fate = store.Fate(3, 10, 3, 1, 300)
    incarnation = await open_lease(recorder._conn)
    from random import Random

    await leases.renew(recorder, incarnation, ttl_s=15, state="ready", stats={})
    await leases.bury_expired(recorder, ttl_s=15)
    await rescue.reap_orphans(recorder, fate=fate, random=Random(1))
    await timekeeping.wake_due(recorder)
    line = await hold_some(recorder._conn)
    assert await held.ready_budgets(recorder) == [line]
    assert len((await recorder.execute(held._LINE, {"budget": line, "most": 500})).all()) == 20
    await recorder.execute(held._POSTPONE, {"budget": line, "until": datetime(2099, 1, 1, tzinfo=UTC)})
    await timekeeping.expire_queued(recorder)
    await sharing.hand_on(recorder)
    shared = {
        "tenant": "t7",
        "key": b"k",
        "own": [new_id()],
        "tier": "batch",
        "recent": 60,
        "old": new_id(),
        "new": new_id(),
    }
    await recorder.execute(sharing._LEADER, {name: shared[name] for name in ("tenant", "key", "own", "tier", "recent")})
    await recorder.execute(sharing._FOLLOW, {name: shared[name] for name in ("old", "new")})
    await timekeeping.forget_keys(recorder, ttl_s=60)
    await recorder.execute(
        resync._SWEEP,
        {"pool": "tiny", "since": resync.SweepCursor().since, "after": new_id(), "grace": 10.0, "page": 1000},
    )
    queued = (await recorder._conn.execute(text("SELECT id, gen FROM jobs WHERE status = 'queued' LIMIT 8"))).all()
    await recorder.execute(
        store._START,
        {"ids": [r.id for r in queued], "gens": [r.gen for r in queued], "incarnation": incarnation, "pace": 0.1},
    )
    await hopeless.expire_hopeless(recorder, lambda *_: lengths.UNKNOWN)
    await lengths.read_lengths(recorder, "t7", "tiny")
    await forecast.ahead_of(recorder, queued[-1].id, own_tokens=0)
    await why.read_facts(recorder, "t7", queued[-1].id)
    await recorder.execute(pool_figures.WORKERS)
    await recorder.execute(pool_figures.QUEUED)
    await store.load(recorder, incarnation, [r.id for r in queued])
    await store.lock_attempts(recorder, [(r.id, 1) for r in queued])
    await store.lock_incarnations(recorder, [incarnation])
    await read.get_job(recorder, "t7", queued[0].id)
    await read.list_jobs(recorder, "t7", read.JobFilter(), limit=20)
    await recorder.execute(top_figures.WORKERS, {"most": top_figures.MOST_WORKERS})
    await recorder.execute(top_figures.RUNNING)
    counted = {"most": top_figures.MOST_TENANTS, "counted": top_figures.MOST_COUNTED}
    await recorder.execute(top_figures.TENANTS, counted)
    await end_queued(recorder, [queued[0].id], "cancelled")
    (found,) = await recorder.execute(LOOK)
    assert found.wake
    assert not found.webhooks
    await nominate(recorder, Rooms.of(settings), limit=100)
    await recorder._conn.execute(
        text("INSERT INTO breakers (model, state, since) VALUES ('tiny', 'open', now() - interval '1 hour')")
    )
    (closed,) = await breakers.keep(recorder, Rules.of(settings))
    assert closed.evidence.bad >= 5, "it had something to read"
    assert closed.evidence.good > 0
    await breakers.standings(recorder)
    assert [table for table in recorder.scanned if table not in SMALL] == []

    recorder.scanned.clear()  # the check can fail
    await recorder.execute(text("SELECT count(*) FROM jobs WHERE metadata = '{}'"))
    assert recorder.scanned == ["jobs"]


async def test_a_start_looks_at_what_it_was_handed_though_the_statistics_know_of_no_queue(engine: AsyncEngine) -> None:
    await seed(engine, "acme")
    ids = [new_id() for _ in range(5000)]
    async with engine.begin() as conn:
        await conn.execute(text("ANALYZE jobs"))  # of an idle night
        incarnation = await open_lease(conn)
        await conn.execute(
            text("""
                INSERT INTO jobs (id, tenant_id, pool, model, tier, prompt_tokens, max_tokens)
                SELECT id, 'acme', 'tiny', 'tiny', 'batch', 5, 8 FROM unnest(CAST(:ids AS uuid[])) AS id
            """),
            {"ids": ids},
        )
        handed = {"ids": ids[:8], "gens": [1] * 8, "incarnation": incarnation, "pace": 0.1}
        explained = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {store._START.text}")
        plan = (await conn.execute(explained, handed)).scalar_one()[0]["Plan"]
        assert await conn.scalar(text("SELECT count(*) FROM jobs WHERE status = 'running'")) == 8
    assert max(_rows_of(plan)) <= 8


def _rows_of(plan: dict[str, Any]) -> list[float]:
    """Rows that each node of an executed plan has looked at."""
    thrown_away = sum(value for name, value in plan.items() if name.startswith("Rows Removed"))
    own = (plan["Actual Rows"] + thrown_away) * plan["Actual Loops"]
    return [own, *(rows for child in plan.get("Plans", []) for rows in _rows_of(child))]
