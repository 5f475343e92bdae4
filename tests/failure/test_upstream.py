"""What becomes of jobs when the server that a worker asks goes away in the middle? Real processes, real sockets."""

from pathlib import Path

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.queue.events import EventLog
from app.redis import Redis
from app.settings import Settings
from tests.failure.test_worker_crashes import first_token
from tests.support.api import job_id_of, make_tenant
from tests.support.api_process import running_process
from tests.support.audit import assert_audit_clean
from tests.support.completions import little_server
from tests.support.stack import MAINTENANCE, QUICK, WORKER, assert_exactly_once, running, wait_for, wait_until_ended
from workers.engine.config import EngineConfig
from workers.models import BROOK

KEY = "sk-never-shown"
SLOW = EngineConfig(engine="null", model=str(BROOK), null_step_s=0.05, max_model_len=1024)
FAST = EngineConfig(engine="null", model=str(BROOK), max_model_len=1024)


def files_with(secret: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.log") if secret in path.read_text()]


async def test_a_server_that_dies_under_a_job_and_comes_back_costs_it_one_failure_and_others_nothing(
    engine: AsyncEngine, settings: Settings, redis: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    tenant = await make_tenant(engine, settings, "acme")
    outcomes = "SELECT EXISTS (SELECT 1 FROM attempts WHERE job_id = :id AND outcome = :outcome)"
    with (
        little_server(SLOW, tmp_path / "server.log", key=KEY) as server,
        running(
            WORKER, environment, tmp_path, PENSTOCK_ENGINE="upstream", PENSTOCK_MODEL=str(BROOK),
            PENSTOCK_UPSTREAM_URL=server.url, PENSTOCK_UPSTREAM_API_KEY=KEY, PENSTOCK_UPSTREAM_DIALECT="vllm",
            PENSTOCK_UPSTREAM_OUTAGE_S="1", PENSTOCK_RETRY_BASE_S="0.1",
        ),
        running(MAINTENANCE, environment, tmp_path),
        running_process(environment | QUICK, tmp_path) as api,
    ):  # fmt: skip
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'", timeout_s=60)
        async with httpx.AsyncClient(base_url=await api.url(), headers=tenant.auth, timeout=60) as client:

            async def post(max_tokens: int) -> object:
                answer = await client.post("/v1/jobs", json={"prompt": "Once upon a time", "max_tokens": max_tokens})
                assert answer.status_code in {200, 201, 202}, answer.text
                return job_id_of(answer.json())

            begun = await post(400)
            await first_token(redis, begun)
            server.kill()
            await wait_for(engine, outcomes, id=begun, outcome="transient_error")
            waiting = await post(8)
            await wait_for(engine, outcomes, id=begun, outcome="upstream_away")
            with little_server(FAST, tmp_path / "server.log", key=KEY, port=server.port) as again:
                assert await wait_until_ended(engine, [begun, waiting]) == {"succeeded": 2}
                assert again.stats()["generated_tokens"] >= 408
    await assert_exactly_once(engine, [begun, waiting])
    await assert_audit_clean(engine, redis)
    async with engine.connect() as conn:
        query = text("SELECT failures, engine_crashes, worker_losses FROM jobs WHERE id = :id")
        counted = [tuple((await conn.execute(query, {"id": job_id})).one()) for job_id in (begun, waiting)]
    assert counted == [(1, 0, 0), (0, 0, 0)]
    assert not files_with(KEY, tmp_path)
    events = await EventLog(redis, ttl_s=60, max_entries=10_000).read(begun)
    assert events[-1].event.kind == "succeeded"
    await assert_audit_clean(engine, redis)
