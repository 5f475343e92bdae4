"""A model dies again and again, and recovers: are new jobs refused quickly, and do all that were accepted succeed?"""

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.redis import Redis
from app.settings import Settings
from tests.support.api import assert_problem, job_id_of, make_tenant
from tests.support.api_process import running_process
from tests.support.audit import assert_audit_clean
from tests.support.stack import (
    MAINTENANCE,
    NULL_ENGINE,
    QUICK,
    WORKER,
    assert_exactly_once,
    running,
    wait_for,
    wait_until_ended,
)

POISON = 300
ILL = {"PENSTOCK_ENGINE_OPTIONS": json.dumps({"poison_token": POISON})}  # the engine dies as soon as it runs anything
PATIENT = NULL_ENGINE | {"PENSTOCK_MAX_SOLO_CRASHES": "100"}  # else the jobs would be taken for the cause
BREAKER = {
    "PENSTOCK_BREAKER_MIN_ATTEMPTS": "2",
    "PENSTOCK_BREAKER_OPEN_S": "2",
    "PENSTOCK_BREAKER_PROBES": "2",
    "PENSTOCK_BREAKER_EVERY_S": "0.2",
}
BODY = {"prompt": [POISON, 65], "max_tokens": 100}
OPEN = "SELECT count(*) = 1 FROM breakers WHERE state = 'open'"


async def until_refused(client: httpx.AsyncClient) -> httpx.Response:
    """The first refusal: processes hear of an opening half a second later at most. What is accepted before, waits too."""
    async with asyncio.timeout(60):
        while (answer := await client.post("/v1/jobs", json=BODY)).status_code == 202:
            await asyncio.sleep(0.1)
    return answer


async def test_a_dying_model_refuses_new_jobs_and_keeps_its_promises_when_it_recovers(
    engine: AsyncEngine, settings: Settings, redis: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    tenant = await make_tenant(engine, settings, "acme")
    with (
        running(WORKER, environment, tmp_path, **PATIENT, **ILL) as ill,
        running(MAINTENANCE, environment, tmp_path, **BREAKER) as maintenance,
        running_process(environment | QUICK | BREAKER, tmp_path) as api,
        ExitStack() as recovery,
    ):
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
        async with httpx.AsyncClient(base_url=await api.url(), headers=tenant.auth, timeout=60) as client:
            accepted = [await client.post("/v1/jobs", json=BODY) for _ in range(6)]
            assert [each.status_code for each in accepted] == [202] * 6
            await wait_for(engine, OPEN)
            refused = await until_refused(client)
            problem = assert_problem(refused, 503, "model_unavailable")
            assert 1 <= int(refused.headers["retry-after"]) == problem["retry_after_s"] <= 4
            async with engine.connect() as conn:
                ended = await conn.scalar(text("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL"))
            assert ended == 0, "accepted jobs wait"

            assert await asyncio.to_thread(ill.terminate) == 0
            recovery.enter_context(running(WORKER, environment, tmp_path, **PATIENT))
            async with engine.connect() as conn:
                ids = list((await conn.execute(text("SELECT id FROM jobs"))).scalars())
            assert {job_id_of(each.json()) for each in accepted} <= set(ids)
            assert await wait_until_ended(engine, ids) == {"succeeded": len(ids)}
            await wait_for(engine, "SELECT state = 'closed' FROM breakers")
            async with asyncio.timeout(60):
                while (again := await client.post("/v1/jobs", json=BODY)).status_code == 503:
                    await asyncio.sleep(0.1)
            assert again.status_code == 202
            ids.append(job_id_of(again.json()))
            assert await wait_until_ended(engine, ids) == {"succeeded": len(ids)}
        log = maintenance.log.read_text()
    assert '"event":"breaker_changed"' in log
    assert '"after":"closed"' in log
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, redis)
