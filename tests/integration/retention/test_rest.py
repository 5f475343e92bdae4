"""Do batches, files, deliveries of no job, lives of workers and bills go when they should, and stay until then?"""

from datetime import date
from uuid import UUID

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from app.files.store import append, close_file, open_file
from app.ids import new_id
from app.operators.links import make_link, whose_link
from app.operators.people import create_person
from app.operators.sessions import digest, open_session, read_session
from app.operators.tables import operator_sessions
from app.operators.throttle import count_try
from app.quotas.usage import usage_by_tenant
from app.redis import Redis
from app.retention.overview import plan
from app.retention.rest import delete_old_logins
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import open_lease, seed
from tests.support.retention import age, count, live, retain

OLD_ID = UUID("01700000-0000-7000-8000-000000000001")  # of 2010


@pytest.fixture(autouse=True)
async def world(engine: AsyncEngine) -> None:
    await seed(engine, "acme", "rival")


async def run_sql(engine: AsyncEngine, sql: str, **values: object) -> None:
    async with engine.begin() as conn:
        await conn.execute(text(sql), values)


async def upload(engine: AsyncEngine, days: float, tenant: str = "acme") -> UUID:
    async with engine.begin() as conn:
        file_id = await open_file(conn, tenant, purpose="batch", filename="a.jsonl")
        await append(conn, file_id, b"{}\n")
        await close_file(conn, file_id)
        await conn.execute(
            text("UPDATE files SET created_at = created_at - make_interval(secs => :s) WHERE id = :id"),
            {"s": days * 86_400, "id": file_id},
        )
    return file_id


async def batch(engine: AsyncEngine, file_id: UUID, *, status: str = "completed", days: float = 0) -> UUID:
    """A batch of one line, without a job, that ended so many days ago."""
    batch_id = new_id()
    await run_sql(
        engine,
        "INSERT INTO batches (id, tenant_id, endpoint, input_file_id, tier, completion_window, status, total, completed, created_at, "
        "expires_at, completed_at) SELECT :id, tenant_id, '/v1/completions', id, 'batch', '24h', :status, 1, 1, created_at, "
        "now() + interval '1 h', CASE WHEN :status = 'completed' THEN now() - make_interval(secs => :s) END FROM files WHERE id = :file",
        id=batch_id, status=status, s=days * 86_400, file=file_id,
    )  # fmt: skip
    await run_sql(
        engine,
        "INSERT INTO batch_lines (batch_id, number, custom_id, rank, start, length, state, job_id) "
        "VALUES (:id, 1, 'a', 1, 0, 2, 'completed', NULL)",
        id=batch_id,
    )
    return batch_id


async def test_an_old_batch_goes_with_its_lines_and_files(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    await batch(engine, await upload(engine, 40), days=31)
    await batch(engine, await upload(engine, 29), days=28)
    await batch(engine, await upload(engine, 40), status="in_progress")
    run = await retain(engine, redis, settings, retention_days=30)
    assert run.rows == {"batches": 1, "batch_lines": 1, "files": 1, "file_pieces": 1}
    assert await count(engine, "batches") == await count(engine, "files") == 2


async def test_a_batch_stays_as_long_as_one_of_its_jobs(engine: AsyncEngine, redis: Redis, settings: Settings) -> None:
    batch_id = await batch(engine, await upload(engine, 0), days=31)
    dead = await live(engine, settings, "dead")
    await age(engine, 31)
    await run_sql(engine, "UPDATE batch_lines SET job_id = :job WHERE batch_id = :id", job=dead, id=batch_id)
    assert (await retain(engine, redis, settings, retention_days=30)).rows == {}


async def test_files_of_a_tenant_with_a_short_memory_go_after_their_batch(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    await run_sql(engine, "UPDATE tenants SET content_retention_s = 3600 WHERE id = 'acme'")
    read, unread, running = [await upload(engine, days) for days in (3, 3, 3)]
    await batch(engine, read, days=0.1)
    await batch(engine, running, status="in_progress")
    ended_just_now = await upload(engine, 3)
    await batch(engine, ended_just_now, days=0.01)
    fresh = await upload(engine, 0.5)  # perhaps a batch is made of it
    other = await upload(engine, 3, "rival")
    assert (await retain(engine, redis, settings)).rows == {"files": 2, "file_pieces": 2}
    async with engine.connect() as conn:
        left = set(await conn.scalars(text("SELECT id FROM files")))
    assert left == {running, ended_just_now, fresh, other}
    assert {read, unread} & left == set()


async def test_old_deliveries_of_no_job_go_with_their_tries(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    for delivery_id, status, days in ((OLD_ID, "delivered", 31), (new_id(), "failed", 29)):
        await run_sql(
            engine,
            "INSERT INTO webhook_deliveries (id, tenant_id, event_type, url, body, status, ended_at, tries) VALUES (:id, 'acme', "
            "'batch.completed', 'https://example.com/', '', :status, now() - make_interval(days => :days), 1)",
            id=delivery_id, status=status, days=days,
        )  # fmt: skip
        await run_sql(engine, "INSERT INTO webhook_tries (delivery_id, number) VALUES (:id, 1)", id=delivery_id)
    run = await retain(engine, redis, settings, retention_days=30)
    assert run.rows == {"webhook_deliveries": 1, "webhook_tries": 1}
    assert await count(engine, "webhook_deliveries", "status = 'failed'") == 1


async def test_lives_of_workers_are_forgotten_when_they_ended_long_ago(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    for days in (None, 29, 31):
        async with engine.begin() as conn:
            incarnation = await open_lease(conn)
            if days:
                await conn.execute(
                    text("UPDATE workers SET state = 'ended', ended_at = now() - make_interval(days => :days) WHERE incarnation = :id"),
                    {"days": days, "id": incarnation},
                )  # fmt: skip
    assert (await retain(engine, redis, settings)).rows == {"workers": 1}


async def test_log_ins_that_are_over_go_without_another_log_in(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    async with engine.begin() as conn:
        ann = await create_person(conn, "ann", "viewer", actor="test")
        tokens = [await open_session(conn, ann, longest_s=3600, by="test") for _ in range(4)]
        await conn.execute(
            update(operator_sessions)
            .where(operator_sessions.c.token_hash != digest(tokens[0]))
            .values(expires_at=text("now() - interval '1 s'"))
        )
        for name in ("ann", "bob"):
            await count_try(conn, name=name, address="::1")
        link = await make_link(conn, ann, actor="test")
        await conn.execute(
            text("INSERT INTO operator_links (token_hash, operator_id, expires_at) VALUES ('old', :ann, now() - interval '1 s')"),
            {"ann": ann.id},
        )  # fmt: skip
        await conn.execute(
            text("UPDATE login_failures SET last_at = now() - interval '25 h' WHERE subject = 'account:ann'")
        )
        before = await plan(conn, settings)
    gone = {"operator_sessions": 3, "operator_links": 1, "login_failures": 1}
    assert {name: rows for name, rows in before.items() if rows} == gone
    async with engine.connect() as conn:  # which isn't committed
        assert (await delete_old_logins(conn, most=2))["operator_sessions"] == 2
    assert (await retain(engine, redis, settings)).rows == gone
    async with engine.connect() as conn:
        assert await read_session(conn, tokens[0], idle_s=60, is_act=False) is not None
        assert await whose_link(conn, link) is not None
    assert await count(engine, "login_failures") == 2


async def test_bills_of_deleted_jobs_are_summed_up_and_no_token_is_lost(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    for fate in ("succeeded", "succeeded", "failed"):
        await live(engine, settings, fate)
    kept = await live(engine, settings, "succeeded")
    await run_sql(engine, "UPDATE usage SET at = '2026-01-05 23:30+00'")
    async with engine.connect() as conn:
        before = await usage_by_tenant(conn)
    assert (await retain(engine, redis, settings, usage_retention_days=1)).rows == {}, "their jobs are there"
    await age(engine, 31)
    await age(engine, -31, kept)
    run = await retain(engine, redis, settings, retention_days=30, usage_retention_days=1)
    assert run.rows["usage"] == 3
    async with engine.connect() as conn:
        rows = (
            await conn.execute(
                text("SELECT day, kind, jobs, prompt_tokens, completion_tokens FROM usage_days ORDER BY kind")
            )
        ).all()
        assert [tuple(row) for row in rows] == [
            (date(2026, 1, 5), "billed", 2, 32, 6), (date(2026, 1, 5), "wasted", 1, 16, 0),
        ]  # fmt: skip
        assert await usage_by_tenant(conn) == before
    await assert_audit_clean(engine, None)
