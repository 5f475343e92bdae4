"""What if one of two API processes is cut from Redis while a tenant has a rate limit?"""

import asyncio
from pathlib import Path
from uuid import UUID

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.queue.streams import JobQueue
from app.settings import Settings
from benchmarks.faults.link import Link
from tests.support.api import job_id_of, make_tenant
from tests.support.api_process import running_process
from tests.support.stack import (
    MAINTENANCE,
    NULL_ENGINE,
    WORKER,
    assert_exactly_once,
    running,
    wait_until_ended,
)

ROOT = Path(__file__).parents[2]
# A process decides alone after half a second without Redis' answer: here only the cut shall be the reason, not a busy machine.
PATIENT = 'import app.quotas.rates\napp.quotas.rates.TIMEOUT_S = 20.0\nprint(\'{"event": "patient"}\', flush=True)\n'
BODY = {"prompt": "Once", "max_tokens": 8, "model": "tiny"}


async def test_a_process_cut_from_redis_keeps_to_its_share_and_tells_redis_of_it_later(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    tenant = await make_tenant(engine, settings, "globex")
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET requests_per_minute = 1, request_burst = 8 WHERE id = 'globex'"))
    assert settings.redis_url
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole").mkdir()
    (tmp_path / "sitecustomize.py").write_text(PATIENT)
    patient = environment | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with (
        Link(settings.redis_url) as to_redis,
        running_process(patient | {"REDIS_URL": to_redis.url}, tmp_path / "cut") as cut,
        running_process(patient, tmp_path / "whole") as whole,
        running(MAINTENANCE, environment, tmp_path),
        running(WORKER, environment, tmp_path, **NULL_ENGINE),
    ):
        async with (
            httpx.AsyncClient(base_url=await cut.url(), timeout=60, headers=tenant.auth) as to_cut,
            httpx.AsyncClient(base_url=await whole.url(), timeout=60, headers=tenant.auth) as to_whole,
        ):
            taken: list[UUID] = []

            async def submit(client: httpx.AsyncClient) -> tuple[int, str]:
                answer = await client.post("/v1/jobs", json=BODY)
                assert answer.status_code in {202, 429}, answer.text
                if answer.status_code == 202:
                    taken.append(job_id_of(answer.json()))
                return answer.status_code, answer.headers["x-ratelimit-remaining-requests"]

            assert [await submit(to_cut) for _ in range(2)] == [(202, "7"), (202, "6")]
            to_redis.refuse()
            # Its share are four of the eight, and it knows of the two that are taken.
            assert [await submit(to_cut) for _ in range(3)] == [(202, "1"), (202, "0"), (429, "0")]
            # The other process knows of those two, too, and of no more.
            assert await submit(to_whole) == (202, "5")
            to_redis.heal()
            async with asyncio.timeout(30):
                while (found := await submit(to_cut))[0] == 429:
                    await asyncio.sleep(0.05)
            # Four of eight are gone, as this process knows, not three; and now a fifth.
            assert found == (202, "3")
            assert await submit(to_whole) == (202, "2")
            events = [line["event"] for line in cut.events()]
            assert (events.count("rates.local"), events.count("rates.shared")) == (1, 1)
            of_whole = [line["event"] for line in whole.events()]
            assert "patient" in of_whole
            assert "rates.local" not in of_whole
        assert await wait_until_ended(engine, taken) == {"succeeded": 7}
    await assert_exactly_once(engine, taken)
