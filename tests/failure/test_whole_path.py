"""Does the whole path hold when the API dies between its commit and its enqueue, and when a webhook must be told?"""

import signal
from pathlib import Path

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.redis import Redis
from app.settings import Settings
from tests.support.api import job_id_of, make_tenant
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


async def test_kill_9_of_the_api_between_commit_and_enqueue_and_the_job_runs_all_the_same(
    engine: AsyncEngine, settings: Settings, redis: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    tenant = await make_tenant(engine, settings, "acme")
    body, headers = {"prompt": "Once upon a time", "max_tokens": 8}, tenant.auth | {"Idempotency-Key": "once"}
    with (
        running(WORKER, environment, tmp_path, **NULL_ENGINE),
        running(MAINTENANCE, environment, tmp_path),
    ):
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
        with running_process(environment | QUICK, tmp_path, PENSTOCK_KILL_POINT="api.after_commit") as api:
            async with httpx.AsyncClient(base_url=await api.url(), timeout=60) as client:
                with pytest.raises(httpx.TransportError):
                    await client.post("/v1/jobs", json=body, headers=headers)
            assert await api.exit_code() == -signal.SIGKILL
        with running_process(environment | QUICK, tmp_path) as api:
            async with httpx.AsyncClient(base_url=await api.url(), timeout=60) as client:
                again = await client.post("/v1/jobs", json=body, headers=headers | {"Prefer": "wait=30"})
        assert again.status_code == 200
        assert again.json()["status"] == "succeeded"
        job_id = job_id_of(again.json())
        assert await wait_until_ended(engine, [job_id]) == {"succeeded": 1}
    await assert_exactly_once(engine, [job_id])
    await assert_audit_clean(engine, redis)
