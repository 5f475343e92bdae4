"""Does each check of batches find just what it is for? A batch that has ended, one that goes on, one corruption by hand."""

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.audit.batches import BATCHES
from app.clock import SystemClock
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.api import make_tenant, register_bytes, running
from tests.support.audit import assert_audit_clean, report_on
from tests.support.batches import Bench, chat_line, make_batch
from workers.maintenance.batches import BatchKeeper

CORRUPTIONS = {
    "batch_line_job": ["UPDATE batch_lines SET job_id = gen_random_uuid() WHERE state = 'submitted' AND number = 1"],
    "batch_counts": ["UPDATE batches SET completed = 1 WHERE status = 'in_progress'"],
    "batch_files": [
        "UPDATE file_pieces SET data = data || data WHERE file_id = (SELECT output_file_id FROM batches WHERE status = 'completed')"
    ],
    "batch_overdue": ["UPDATE batches SET expires_at = now() - interval '1 h' WHERE status = 'in_progress'"],
}


async def found(engine: AsyncEngine, redis: Redis) -> set[str]:
    return {each.check for each in (await report_on(engine, redis)).findings}


@pytest.fixture(autouse=True)
async def world(engine: AsyncEngine, redis: Redis, settings: Settings) -> None:
    model = await register_bytes(engine)
    tenant = await make_tenant(engine, settings, "acme")
    queue = JobQueue(redis, model.pool)
    await queue.open_epoch("test")
    bench = Bench(engine, BatchKeeper(settings, SystemClock(), engine, redis), queue)
    async with running(create_app(settings), tenant.auth) as client:
        await _ended(client, bench)
        await make_batch(client, [chat_line(f"b{n}") for n in range(3)])
        await bench.keep(2)
    await assert_audit_clean(engine, redis)


async def _ended(client: httpx.AsyncClient, bench: Bench) -> None:
    batch = await make_batch(client, [chat_line('ä{"}'), chat_line("long", "x" * 5000), chat_line("a2", "\\u0000 \n")])
    done = await bench.run(client, batch)
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}


@pytest.mark.parametrize("check", CORRUPTIONS)
async def test_a_corruption_is_found_by_its_check_alone(engine: AsyncEngine, redis: Redis, check: str) -> None:
    async with engine.begin() as conn:
        for statement in CORRUPTIONS[check]:
            assert (await conn.execute(text(statement))).rowcount == 1
    assert await found(engine, redis) == {check}


async def test_a_line_that_is_missing_in_the_files_is_found(engine: AsyncEngine, redis: Redis) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "DELETE FROM file_pieces WHERE file_id = (SELECT error_file_id FROM batches WHERE status = 'completed')"
            )
        )
    assert await found(engine, redis) == {"batch_files"}


async def test_an_answer_with_a_nul_is_looked_into(engine: AsyncEngine, redis: Redis) -> None:
    """A model may write one; the audit ended with an error of Postgres."""
    async with engine.begin() as conn:
        nul = text("""UPDATE file_pieces SET data = convert_to(replace(convert_from(data, 'UTF8'), '"custom_id":', :first), 'UTF8')
                      WHERE file_id = (SELECT output_file_id FROM batches WHERE status = 'completed')""")
        await conn.execute(nul, {"first": r'"text": "\u0000\u0000 \\u0000 \\\u0000", "custom_id":'})
        assert (
            await conn.scalar(
                text("SELECT count(*) FROM file_pieces WHERE strpos(convert_from(data, 'UTF8'), 'u0000') > 0")
            )
            > 0
        )
    await assert_audit_clean(engine, redis)


async def test_files_that_were_deleted_are_not_missed(engine: AsyncEngine, redis: Redis) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("DELETE FROM files WHERE purpose = 'batch_output'"))
    assert await found(engine, redis) == set()


async def test_each_check_has_its_corruption() -> None:
    assert set(CORRUPTIONS) == {each.name for each in BATCHES}
