"""Does a batch come through whole when its keeper dies at any point, workers die under it, and Redis forgets everything?"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.queue.streams import JobQueue
from app.settings import Settings
from tests.support.api import make_tenant
from tests.support.api import running as app_running
from tests.support.batches import chat_line, make_batch, read_batch, read_lines
from tests.support.stack import MAINTENANCE, NULL_ENGINE, SHORT_LEASE, WORKER, running, wait_for

QUICK_BATCHES = {"PENSTOCK_BATCH_EVERY_S": "0.05", "PENSTOCK_BATCH_WINDOW_LINES": "40"}
NUM_LINES = 150
POINTS = [
    "batches.before_validate_commit", "batches.after_validate_commit", "batches.before_submit_commit",
    "batches.after_submit_commit", "batches.before_collect_commit", "batches.after_collect_commit",
    "batches.before_end_commit", "batches.after_end_commit",
]  # fmt: skip


@pytest.fixture
async def client(engine: AsyncEngine, settings: Settings, queue: JobQueue) -> AsyncIterator[httpx.AsyncClient]:
    tenant = await make_tenant(engine, settings, "acme")
    async with app_running(create_app(settings), tenant.auth) as client:
        yield client


def lines(count: int = NUM_LINES) -> list[dict[str, Any]]:
    return [chat_line(f"c{n}", f"{'ab'[n % 2] * 100} question {n}") for n in range(count)]


async def until_ended(engine: AsyncEngine, client: httpx.AsyncClient, batch: dict[str, Any]) -> dict[str, Any]:
    await wait_for(
        engine, "SELECT bool_and(status IN ('completed', 'failed', 'expired', 'cancelled')) FROM batches", timeout_s=60
    )
    return await read_batch(client, batch)


async def assert_each_line_once(client: httpx.AsyncClient, batch: dict[str, Any], count: int = NUM_LINES) -> None:
    found = await read_lines(client, f"/v1/batches/{batch['id']}/output")
    found += await read_lines(client, f"/v1/batches/{batch['id']}/errors")
    assert sorted(each["custom_id"] for each in found) == sorted(each["custom_id"] for each in lines(count))


@pytest.mark.parametrize(
    "point", [pytest.param(each, marks=[] if "after_submit" in each else pytest.mark.long) for each in POINTS]
)
async def test_kill_9_of_maintenance_at_each_point_loses_and_doubles_no_line(
    engine: AsyncEngine, client: httpx.AsyncClient, environment: dict[str, str], tmp_path: Path, point: str
) -> None:
    batch = await make_batch(client, lines())
    with running(WORKER, environment, tmp_path, **NULL_ENGINE):
        with running(MAINTENANCE, environment, tmp_path, **QUICK_BATCHES, PENSTOCK_KILL_POINT=point) as first:
            assert await asyncio.to_thread(first.process.wait, 60) == -signal.SIGKILL
        async with engine.begin() as conn:  # the lease of its last step needn't be waited for
            await conn.execute(text("UPDATE batches SET due_at = now()"))
        with running(MAINTENANCE, environment, tmp_path, **QUICK_BATCHES):
            done = await until_ended(engine, client, batch)
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    await assert_each_line_once(client, batch)


async def test_two_keepers_a_killed_worker_and_a_lost_redis(
    engine: AsyncEngine, client: httpx.AsyncClient, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    slow = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.01"}
    batch = await make_batch(client, lines(400))
    with (
        running(MAINTENANCE, environment, tmp_path, **QUICK_BATCHES),
        running(MAINTENANCE, environment, tmp_path, **QUICK_BATCHES),
        running(WORKER, environment, tmp_path, **slow, **SHORT_LEASE) as first,
    ):
        await wait_for(engine, "SELECT sum(completed) >= 50 FROM batches")
        await queue.redis.flushdb()
        await wait_for(engine, "SELECT sum(completed) >= 100 FROM batches")
        first.kill_all()
        with running(WORKER, environment, tmp_path, **slow):
            done = await until_ended(engine, client, batch)
    assert done["request_counts"] == {"total": 400, "completed": 400, "failed": 0}
    await assert_each_line_once(client, batch, 400)


@pytest.mark.long
async def test_a_cancel_and_an_expiry_in_the_middle_leave_each_line_once(
    engine: AsyncEngine, client: httpx.AsyncClient, environment: dict[str, str], tmp_path: Path
) -> None:
    slow = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02"}
    cancelled, expired = [await make_batch(client, lines(400)) for _ in range(2)]
    with running(MAINTENANCE, environment, tmp_path, **QUICK_BATCHES), running(WORKER, environment, tmp_path, **slow):
        await wait_for(engine, "SELECT bool_and(completed >= 20) FROM batches")
        assert (await client.post(f"/v1/batches/{cancelled['id']}/cancel")).status_code == 200
        assert (await client.post(f"/v1/batches/{expired['id']}", json={"deadline_s": 0.5})).status_code == 200
        await until_ended(engine, client, cancelled)
    for batch, status, code in ((cancelled, "cancelled", "batch_cancelled"), (expired, "expired", "batch_expired")):
        done = await read_batch(client, batch)
        assert done["status"] == status
        assert done["request_counts"]["completed"] >= 20
        await assert_each_line_once(client, batch, 400)
        lost = await read_lines(client, f"/v1/files/{done['error_file_id']}/content")
        assert {each["error"]["code"] for each in lost} == {code}, json.dumps(lost[0])
