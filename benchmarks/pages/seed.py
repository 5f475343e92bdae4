"""How does a database come by a million jobs of ten thousand tenants, with all that belongs to them, in minutes? Made where they are kept.

Foreign keys and triggers are passed over while it is filled (`session_replication_role`): the rows are made to fit. Some tenants have
much, most have little: the share of the i-th falls with i. All draws are of one seed, so that two databases of one size are the same.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.queue.places import place_sql
from app.queue.streams import JobQueue, Nomination
from app.redis import Redis

POOLS = ("fox-small", "fox-large")
_STEP = 50_000  # jobs of one statement
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: the rest follows from jobs and tenants."""

    jobs: int
    tenants: int

    @property
    def queued(self) -> int:
        """Jobs that wait, the newest."""
        return self.jobs // 50

    @property
    def running(self) -> int:
        """Jobs that run, the newest but those that wait."""
        return min(2000, self.jobs // 100)


# An id as UUIDv7 has it: the milliseconds, then what is drawn, here from the number of the row.
_ID = """
    CAST(lpad(to_hex(CAST(extract(epoch FROM {at}) * 1000 AS bigint)), 12, '0') || '7' || substr(md5({of}::text), 1, 3) || '8'
         || substr(md5({of}::text), 4, 15) AS uuid)
"""
_WORKER = "CAST(md5('worker' || (({of}) % 5000 + 1)) AS uuid)"

_TENANTS = """
    INSERT INTO tenants (id, display_name, webhook_secret, weight, max_running_jobs, created_at)
    SELECT 'tenant-' || i, 'Tenant ' || i, 'whsec_' || md5(i::text), 1 + i % 4, CASE WHEN i % 7 = 0 THEN 50 END,
           now() - interval '90 days' FROM generate_series(1, :tenants) AS i;
    INSERT INTO api_keys (id, tenant_id, name, prefix, hash, scopes)
    SELECT CAST(md5('key' || i || k) AS uuid), 'tenant-' || i, 'key ' || k, 'pk_' || substr(md5('key' || i || k), 1, 12), ''::bytea,
           '{jobs:read,jobs:write}' FROM generate_series(1, :tenants) AS i, generate_series(1, 2) AS k;
    INSERT INTO budgets (id, tenant_id, metric, period, hard_limit)
    SELECT CAST(md5('budget' || i || p.period) AS uuid), 'tenant-' || i, 'total_tokens', p.period, p.most
    FROM generate_series(1, :tenants) AS i, (VALUES ('day', 10000000), ('month', 200000000)) AS p (period, most);
    INSERT INTO budget_windows (budget_id, window_start, hard_limit, used, reserved)
    SELECT id, date_trunc(period, now()), hard_limit, hard_limit / (2 + abs(hashtext(tenant_id)) % 20), hard_limit / 100 FROM budgets;
"""
_MODELS = """
    INSERT INTO tokenizers (hash, tokenizer_json, special_tokens) VALUES ('none', '', '{}');
    INSERT INTO models (name, pool, tokenizer_hash, model_hash, max_model_len, vocab_size, input_price, output_price)
    SELECT name, name, 'none', 'none', 8192, 32000, 150000, 600000 FROM unnest(CAST(:pools AS text[])) AS name;
    INSERT INTO workers (incarnation, pool, model, host, pid, device, model_hash, state, stats, started_at, renewed_at, expires_at,
                         ended_at)
    SELECT CAST(md5('worker' || i) AS uuid), pool, pool, 'node-' || i % 40, 1000 + i, 'cuda:' || i % 8, 'none',
           CASE WHEN i <= 16 THEN 'ready' WHEN i % 9 = 0 THEN 'lost' ELSE 'ended' END,
           '{"jobs": 120, "running": 120, "waiting": 4, "kv_blocks_used": 3000, "kv_blocks_total": 4096, "preemptions": 12,
             "served_tokens_per_s": 2400.5, "drain_tokens_per_s": 2600.5, "seconds_per_token": 0.02, "generated_tokens": 1000000}',
           now() - i * interval '8 min', now() - i * interval '4 min',
           CASE WHEN i <= 16 THEN now() + interval '1 day' ELSE now() - i * interval '4 min' END,
           CASE WHEN i > 16 THEN now() - i * interval '4 min' END
    FROM (SELECT i, CAST(:pools AS text[]) AS names FROM generate_series(1, 5000) AS i) s
    CROSS JOIN LATERAL (SELECT names[1 + i % array_length(names, 1)] AS pool) p;
"""
# The i-th of n jobs, the last of which were submitted now; `u` is what is drawn of it, 0 to 1.
_JOBS = f"""
    INSERT INTO jobs (id, tenant_id, api_key_id, pool, model, tier, status, gen, attempt, incarnation, input_price, output_price,
                      prompt_tokens, max_tokens, metadata, error, created_at, eligible_at, started_at, finished_at)
    SELECT {_ID.format(at="at", of="i")}, 'tenant-' || tenant, CAST(md5('key' || tenant || (1 + i % 2)) AS uuid), pool, pool,
           (ARRAY['interactive', 'standard', 'standard', 'batch'])[1 + i % 4], status,
           CASE WHEN status = 'queued' THEN 1 ELSE 1 + (i % 10 = 0)::int END,
           CASE WHEN status = 'queued' THEN 0 ELSE 1 + (i % 10 = 0)::int END,
           CASE WHEN status = 'running' THEN CAST(md5('worker' || (1 + i % 16)) AS uuid) END, 150000, 600000,
           20 + i * 7919 % 2000, 64 + i * 104729 % 960,
           jsonb_build_object('project', 'p' || i % 500, 'run', (i / 1000)::text),
           CASE WHEN status IN ('failed', 'dead') THEN jsonb_build_object('code', 'engine_crashes', 'message', 'it died') END,
           at, at, CASE WHEN status NOT IN ('queued', 'cancelled') THEN at + interval '2 s' END,
           CASE WHEN status NOT IN ('queued', 'running') THEN at + interval '9 s' END
    FROM (
        SELECT i, now() - (:jobs - i) * (interval '30 days' / :jobs) AS at,
               1 + floor(:tenants * power((hashtext('t' || i)::bigint + 2147483648) / 4294967296.0, 3))::int AS tenant,
               (CAST(:pools AS text[]))[1 + i % 2] AS pool,
               CASE WHEN i > :jobs - :queued THEN 'queued' WHEN i > :jobs - :queued - :running THEN 'running'
                    WHEN u < 0.02 THEN 'dead' WHEN u < 0.05 THEN 'failed' WHEN u < 0.07 THEN 'cancelled' WHEN u < 0.08 THEN 'expired'
                    ELSE 'succeeded' END AS status
        FROM generate_series(CAST(:first AS bigint), :last) AS i
        CROSS JOIN LATERAL (SELECT (hashtext('u' || i)::bigint + 2147483648) / 4294967296.0 AS u) drawn) AS made
"""
_BELONGINGS = f"""
    CREATE TEMP TABLE fresh ON COMMIT DROP AS
    SELECT *, row_number() OVER () + CAST(:first AS bigint) AS number FROM jobs WHERE id >= :from_id AND id <= :to_id;
    INSERT INTO job_inputs (job_id, request, sampling, prompt_ids, tokenizer_hash)
    SELECT id, json_build_object('prompt', repeat('Once upon a time there was a fox. ', 6), 'max_tokens', max_tokens, 'tier', tier,
                                 'temperature', 0.7, 'seed', number), '{{"seed": 1}}', ''::bytea, 'none' FROM fresh;
    INSERT INTO job_results (job_id, attempt, choices, created_at)
    SELECT id, attempt, json_build_array(json_build_object('index', 0, 'text', repeat('And the fox liked the rain. ', 12),
                                                           'finish_reason', 'stop')), finished_at
    FROM fresh WHERE status = 'succeeded';
    INSERT INTO attempts (job_id, attempt, incarnation, outcome, detail, ended_at)
    SELECT id, 1, {_WORKER.format(of="number")}, CASE WHEN attempt > 1 THEN 'drained' WHEN status = 'dead' THEN 'engine_crash' ELSE status END,
           NULL, coalesce(finished_at, started_at) - interval '1 s'
    FROM fresh WHERE started_at IS NOT NULL AND (attempt > 1 OR finished_at IS NOT NULL);
    INSERT INTO attempts (job_id, attempt, incarnation, outcome, ended_at)
    SELECT id, 2, {_WORKER.format(of="number + 1")}, CASE WHEN status = 'dead' THEN 'engine_crash' ELSE status END, finished_at
    FROM fresh WHERE attempt = 2 AND finished_at IS NOT NULL AND started_at IS NOT NULL;
    INSERT INTO usage (job_id, attempt, kind, tenant_id, api_key_id, model, tier, prompt_tokens, cached_tokens, completion_tokens,
                       cost_micros, at)
    SELECT id, attempt, 'billed', tenant_id, api_key_id, model, tier, prompt_tokens, prompt_tokens / 3, max_tokens / 2,
           (prompt_tokens * 150000 + max_tokens / 2 * 600000) / 1000000, finished_at FROM fresh WHERE status = 'succeeded';
    INSERT INTO dead_letters (job_id, reservation, attempt, pool, tenant_id, reason, signature, fingerprint, evidence, at,
                              resolved_at, resolution, resolved_by, resolution_reason)
    SELECT id, 1, attempt, pool, tenant_id, 'engine_crashes', 'engine_crashes | kind ' || number % 60, substr(md5((number % 60)::text), 1, 16),
           '{{"error": {{"code": "engine_crashes"}}, "attempts": [{{"attempt": 1, "outcome": "engine_crash"}}]}}', finished_at,
           CASE WHEN number % 5 = 0 THEN finished_at + interval '1 h' END, CASE WHEN number % 5 = 0 THEN 'requeued' END,
           CASE WHEN number % 5 = 0 THEN 'operator:ada' END, CASE WHEN number % 5 = 0 THEN 'mended' END
    FROM fresh WHERE status = 'dead';
    INSERT INTO webhook_deliveries (id, tenant_id, job_id, event_type, url, body, status, tries, created_at, ended_at, endpoint_id, lane)
    SELECT {_ID.format(at="finished_at", of="number")}, tenant_id, id, 'job.' || status, 'https://hooks.example.com/' || tenant_id, '{{}}',
           CASE WHEN number % 40 = 0 THEN 'failed' ELSE 'delivered' END, 1, finished_at, finished_at,
           CAST(md5('endpoint' || tenant_id) AS uuid), tenant_id
    FROM fresh WHERE finished_at IS NOT NULL AND number % 2 = 0;
    INSERT INTO webhook_tries (delivery_id, number, at, http_status, error, duration_ms)
    SELECT {_ID.format(at="finished_at", of="number")}, 1, finished_at, CASE WHEN number % 40 = 0 THEN 500 ELSE 200 END,
           CASE WHEN number % 40 = 0 THEN '500: the endpoint didn''t accept it' END, 80
    FROM fresh WHERE finished_at IS NOT NULL AND number % 2 = 0;
    INSERT INTO audit_log (at, actor, action, target, detail)
    SELECT finished_at, 'operator:op' || number % 20, (ARRAY['job.cancel', 'budget.change', 'dead_letter.requeue'])[1 + number % 3],
           'job_' || replace(id::text, '-', ''), '{{"reason": "because"}}' FROM fresh WHERE finished_at IS NOT NULL AND number % 10 = 0;
"""
_ENDPOINTS = """
    INSERT INTO webhook_endpoints (id, tenant_id, url, secret, status, disabled_reason, failing_since)
    SELECT CAST(md5('endpoint' || id) AS uuid), id, 'https://hooks.example.com/' || id, 's',
           CASE WHEN abs(hashtext(id)) % 50 = 0 THEN 'disabled' ELSE 'enabled' END,
           CASE WHEN abs(hashtext(id)) % 50 = 0 THEN 'it said 410' END, CASE WHEN abs(hashtext(id)) % 30 = 0 THEN now() END FROM tenants;
"""
_BATCHES = f"""
    INSERT INTO batches (id, tenant_id, endpoint, input_file_id, tier, completion_window, status, total, completed, failed, created_at,
                         expires_at, lines_per_s)
    SELECT {_ID.format(at="at", of="i")}, 'tenant-' || (1 + i % :tenants), '/v1/chat/completions', gen_random_uuid(), 'batch', '24h',
           CASE WHEN i % 50 = 0 THEN 'in_progress' WHEN i % 41 = 0 THEN 'failed' ELSE 'completed' END, 1000,
           CASE WHEN i % 50 = 0 THEN 400 ELSE 990 END, 10, at, at + interval '1 day', 3.5
    FROM (SELECT i, now() - i * (interval '30 days' / :batches) AS at FROM generate_series(1, :batches) AS i) made
"""
_QUEUED = text(f"""
    SELECT id, gen, {place_sql("jobs")}, tenant_id, prompt_tokens + n * max_tokens, pool FROM jobs WHERE status = 'queued'
    ORDER BY eligible_at, id
""")


async def fill(db: AsyncEngine, redis: Redis, size: Size, say: Callable[[str], None]) -> None:
    """Make all of it, but for the rows where they are there already; `say` is told how far it is.

    Raises:
        ValueError: there are jobs, but not as many.
    """
    async with db.begin() as conn:
        await conn.execute(text("SET LOCAL statement_timeout = 0"))
        found = await conn.scalar(text("SELECT count(*) FROM jobs"))
    if found not in {0, size.jobs}:
        raise ValueError(f"the database has {found:,} jobs, not {size.jobs:,}: give another folder, or delete this one")
    if not found:
        await _fill_database(db, size, say)
    await _nominate(db, redis)


async def _fill_database(db: AsyncEngine, size: Size, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    values = {"tenants": size.tenants, "pools": list(POOLS), "batches": max(1, size.jobs // 50)}
    for name, statements in (
        ("tenants", _TENANTS),
        ("models and workers", _MODELS),
        ("endpoints", _ENDPOINTS),
        ("batches", _BATCHES),
    ):
        say(name)
        await _run(db, statements, values)
    for first in range(1, size.jobs + 1, _STEP):
        last = min(size.jobs, first + _STEP - 1)
        await _some_jobs(db, size, first, last)
        say(f"{last:,} of {size.jobs:,} jobs, after {time.monotonic() - began:.0f} s")
    say("statistics")
    async with db.connect() as conn:
        autocommit = await conn.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.execute(text("SET statement_timeout = 0"))
        await autocommit.execute(text("VACUUM ANALYZE"))


async def _run(db: AsyncEngine, statements: str, values: dict[str, object]) -> None:
    async with db.begin() as conn:
        await _let_it_be(conn)
        for each in statements.split(";\n"):
            if each.strip():
                named = {name: value for name, value in values.items() if f":{name}" in each}
                await conn.execute(text(each), named)


async def _some_jobs(db: AsyncEngine, size: Size, first: int, last: int) -> None:
    values = {
        "jobs": size.jobs, "queued": size.queued, "running": size.running, "tenants": size.tenants, "pools": list(POOLS),
        "first": first, "last": last,
    }  # fmt: skip
    async with db.begin() as conn:
        await _let_it_be(conn)
        made = await conn.execute(text(_JOBS + " RETURNING id"), values)
        ids = sorted(made.scalars())
        for each in _BELONGINGS.split(";\n"):
            if each.strip():
                ends = {"first": first, "from_id": ids[0], "to_id": ids[-1]}
                await conn.execute(text(each), {name: value for name, value in ends.items() if f":{name}" in each})


async def _let_it_be(conn: object) -> None:
    for each in ("statement_timeout = 0", "session_replication_role = 'replica'", "synchronous_commit = off"):
        await conn.execute(text(f"SET LOCAL {each}"))  # type: ignore[attr-defined]


async def _nominate(db: AsyncEngine, redis: Redis) -> None:
    """Let Redis know what waits, as if it had been submitted."""
    queues = {pool: JobQueue(redis, pool) for pool in POOLS}
    for queue in queues.values():
        await queue.open_epoch("benchmark")
    waiting: dict[str, list[Nomination]] = {pool: [] for pool in POOLS}
    async with db.connect() as conn:
        for row in await conn.execute(_QUEUED):
            waiting[row.pool].append(Nomination(*row[:5]))
    for pool, nominations in waiting.items():
        for start in range(0, len(nominations), _PAGE):
            await queues[pool].enqueue(nominations[start : start + _PAGE])
