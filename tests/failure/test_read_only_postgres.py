"""A failover of Postgres: for some seconds the sessions see a read-only server (25006, psycopg's InternalError)."""

import asyncio
from pathlib import Path

import psycopg
from sqlalchemy import text

from app.db import create_engine
from app.embedded import EmbeddedPostgres
from app.jobs.submit import nominate
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import POOL, seed, submit
from tests.support.stack import NULL_ENGINE, WORKER, running, wait_for, wait_until_ended


async def test_a_worker_outlives_a_read_only_postgres_and_no_result_is_thrown_away(
    private_postgres: EmbeddedPostgres, redis: Redis, redis_url: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    settings = Settings(database_url=private_postgres.url, redis_url=redis_url, data_dir=tmp_path)
    db = create_engine(settings, application_name="test")
    await seed(db)
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    env = environment | {"DATABASE_URL": private_postgres.url}
    with running(
        WORKER,
        env,
        tmp_path,
        **NULL_ENGINE,
        PENSTOCK_NULL_STEP_S="0.1",
    ) as worker:
        accepted = await submit(db, settings, count=4, max_tokens=30)
        assert await nominate(queue, accepted)
        ids = [each.job_id for each in accepted]
        await wait_for(db, "SELECT count(*) = 4 FROM jobs WHERE status = 'running'")
        async with db.connect() as conn:
            auto = await conn.execution_options(isolation_level="AUTOCOMMIT")
            await auto.execute(text("ALTER SYSTEM SET default_transaction_read_only = on"))
            await auto.execute(text("SELECT pg_reload_conf()"))
        async with asyncio.timeout(30):  # the jobs end meanwhile
            while worker.process.poll() is None and "finish_failed" not in worker.log.read_text():
                await asyncio.sleep(0.05)
        alive = worker.process.poll() is None
        with psycopg.connect(private_postgres.url, autocommit=True) as admin:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute("ALTER SYSTEM SET default_transaction_read_only = off")
            admin.execute("SELECT pg_reload_conf()")
        if alive:
            ended = await wait_until_ended(db, ids)
        else:
            ended = {}
        tail = worker.log.read_text()[-1500:]
    await assert_audit_clean(db, redis)
    await db.dispose()
    assert alive, f"the worker died: {tail}"
    assert ended == {"succeeded": 4}, tail
