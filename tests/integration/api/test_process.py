"""Does the API as a process start, end and die as promised?"""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.models import Model
from app.queue.streams import JobQueue
from tests.support.api import LONG, HandWorker, Tenant
from tests.support.api_process import running_process

SECRET_PROMPT = "the prompt that nobody may log"


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
async def test_a_drain_answers_who_waits_and_exits_0(
    environment: dict[str, str], tmp_path: Path, model: Model, tenant: Tenant, ending: signal.Signals
) -> None:
    with running_process(environment, tmp_path) as api:
        async with httpx.AsyncClient(base_url=await api.url(), headers=tenant.auth, timeout=60) as client:
            job = (await client.post("/v1/jobs", json={"prompt": SECRET_PROMPT})).json()
            await client.get("/v1/jobs?model=a-private-thing")
            waiting = asyncio.create_task(client.get(job["urls"]["self"], headers=LONG))
            # Sent after the wait on another connection, and answered: so the wait has been read too.
            for _ in range(3):
                await client.get("/v1/jobs")
            api.process.send_signal(ending)
            answer = await waiting
            assert (answer.status_code, answer.json()["status"]) == (200, "queued")
        assert await api.exit_code() == 0
        seen = api.events()
    assert [each["event"] for each in seen if str(each["event"]).startswith("api.") and each["event"] != "api.request"] == [
        "api.listening", "api.draining", "api.ended",
    ]  # fmt: skip
    requests = [each for each in seen if each["event"] == "api.request"]
    assert {(each["method"], each["route"], each["status"]) for each in requests} == {
        ("POST", "/v1/jobs", 202), ("GET", "/v1/jobs", 200), ("GET", "/v1/jobs/{id}", 200),
    }  # fmt: skip
    assert all(isinstance(each["duration_ms"], float) for each in requests)
    log = api.log.read_text()
    for secret in (SECRET_PROMPT, tenant.token, "a-private-thing", job["id"]):
        assert secret not in log


async def test_a_submission_in_flight_is_finished_before_the_end(
    environment: dict[str, str], tmp_path: Path, engine: AsyncEngine, model: Model, tenant: Tenant
) -> None:
    with running_process(environment, tmp_path) as api:
        async with httpx.AsyncClient(base_url=await api.url(), headers=tenant.auth, timeout=60) as client:
            assert (await client.get("/v1/jobs")).status_code == 200
            async with engine.begin() as blocker:
                # The submission stands before this lock: it is in the middle of its transaction.
                await blocker.execute(text("LOCK TABLE job_inputs IN ACCESS EXCLUSIVE MODE"))
                posting = asyncio.create_task(client.post("/v1/jobs", json={"prompt": "Once"}))
                await _until_blocked(engine)
                api.process.send_signal(signal.SIGTERM)
                await api.until_logged("api.draining")
                with pytest.raises(httpx.ConnectError):
                    async with httpx.AsyncClient() as late:
                        await _until_refused(late, await api.url())
                assert not posting.done()
            answer = await posting
            assert answer.status_code == 202
        assert await api.exit_code() == 0
    async with engine.connect() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM jobs"))).scalar_one() == 1


async def _until_blocked(engine: AsyncEngine) -> None:
    async with asyncio.timeout(60), engine.connect() as conn:
        while not await conn.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        ):
            await conn.rollback()
            await asyncio.sleep(0.01)


async def _until_refused(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            # Who came in just before the door was closed gets no answer: that is no refusal yet.
            with suppress(httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout):
                await client.get(f"{url}/healthz")


async def test_killed_between_commit_and_enqueue_the_job_is_there_and_its_key_finds_it(
    environment: dict[str, str],
    tmp_path: Path,
    engine: AsyncEngine,
    tenant: Tenant,
    epoch: JobQueue,
    worker: HandWorker,
) -> None:
    """The promise was never given, but the row is: the sweeper nominates it, and the caller's retry gets it."""
    body, headers = {"prompt": "Once"}, {"Idempotency-Key": "order-17"}
    with running_process(environment, tmp_path, PENSTOCK_KILL_POINT="api.after_commit") as api:
        async with httpx.AsyncClient(base_url=await api.url(), headers=tenant.auth, timeout=60) as client:
            with pytest.raises(httpx.TransportError):
                await client.post("/v1/jobs", json=body, headers=headers)
        assert await api.exit_code() == -signal.SIGKILL
    async with engine.connect() as conn:
        (status,) = (await conn.execute(text("SELECT status FROM jobs"))).scalars()
    assert status == "queued"
    assert (await epoch.depth())["standard"].jobs == 0
    with running_process(environment, tmp_path) as api:
        async with httpx.AsyncClient(base_url=await api.url(), headers=tenant.auth, timeout=60) as client:
            again = await client.post("/v1/jobs", json=body, headers=headers)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    await worker.finish(again.json())


async def test_without_settings_it_says_which(environment: dict[str, str], tmp_path: Path) -> None:
    bare = {name: value for name, value in environment.items() if name != "DATABASE_URL"}
    with running_process(bare, tmp_path) as api:
        assert await api.exit_code() == 1
        said = api.log.read_text()
    assert said.count("\n") == 1
    assert "DATABASE_URL" in said


async def test_a_taken_port_ends_it(environment: dict[str, str], tmp_path: Path) -> None:
    """It once hung here: a cancellation in the middle of connecting to Redis was swallowed."""
    with running_process(environment, tmp_path) as first:
        port = (await first.url()).rpartition(":")[2]
        (tmp_path / "second").mkdir()
        with running_process(environment, tmp_path / "second", PENSTOCK_API_PORT=port) as second:
            assert await second.exit_code() != 0
            said = second.log.read_text()
    assert "address already in use" in said
    assert "Traceback" not in said
