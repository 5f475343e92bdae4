"""What does a deploy cost? SIGTERM to every kind of process, a rolling restart of all workers, another version of the model."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import parse_job_name
from app.jobs.submit import nominate
from app.queue.events import EventLog
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.api import make_tenant
from tests.support.api_process import running_process
from tests.support.audit import assert_audit_clean
from tests.support.jobs import submit
from tests.support.processes import have_ended
from tests.support.receiver import Receiver, receiver
from tests.support.stack import (
    MAINTENANCE,
    NULL_ENGINE,
    QUICK,
    WORKER,
    Process,
    assert_exactly_once,
    running,
    wait_for,
    wait_until_ended,
)
from workers.models import BROOK

WEBHOOKS = "workers.webhooks.main"
SLOW = NULL_ENGINE | {"PENSTOCK_NULL_STEP_S": "0.02", "PENSTOCK_DRAIN_GRACE_S": "0.5"}
LOCAL = {
    "PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true",
    "PENSTOCK_WEBHOOK_TIMEOUT_S": "2.5",
    "PENSTOCK_WEBHOOK_LEASE_S": "3",
    "PENSTOCK_WEBHOOK_REDISPATCH_S": "5",
}


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    async with receiver() as it:
        yield it


class Caller:
    """Submits one job after the other, each with a key, to whichever API answers; a request without an answer is repeated."""

    def __init__(self, token: str, hook: str) -> None:
        self.url = ""
        self.jobs: dict[str, str] = {}  # key -> job
        self.num_repeated = 0
        self._hook = hook
        self._headers = {"Authorization": f"Bearer {token}"}

    async def submit_forever(self) -> None:
        async with httpx.AsyncClient(headers=self._headers, timeout=30) as client:
            while True:
                await self.submit(client, f"order-{len(self.jobs)}")
                await asyncio.sleep(0.05)

    async def submit(self, client: httpx.AsyncClient, key: str) -> None:
        body = {"prompt": "Once upon a time", "max_tokens": 60, "webhook": {"url": self._hook}}
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await client.post(f"{self.url}/v1/jobs", json=body, headers={"Idempotency-Key": key})
                assert answer.status_code == 202, answer.text
                self.jobs[key] = answer.json()["id"]
                return
            self.num_repeated += 1
            await asyncio.sleep(0.05)

    async def until(self, count: int) -> None:
        """Until so many more jobs were accepted."""
        wanted = len(self.jobs) + count
        async with asyncio.timeout(30):
            while len(self.jobs) < wanted:
                await asyncio.sleep(0.02)


async def test_sigterm_to_every_kind_of_process_under_load_loses_nothing(
    engine: AsyncEngine, settings: Settings, redis: Redis, environment: dict[str, str], tmp_path: Path, server: Receiver
) -> None:
    """One after the other: API, generation worker, engine alone, maintenance, webhook worker; each is started anew."""
    tenant = await make_tenant(engine, settings, "acme")
    caller = Caller(tenant.token, server.url())
    env = environment | LOCAL
    with ExitStack() as stack:

        async def start_api(name: str) -> object:
            (tmp_path / name).mkdir()
            api = stack.enter_context(running_process(env | QUICK, tmp_path / name))
            return api, await api.url()

        def start(module: str, **changes: str) -> Process:
            return stack.enter_context(running(module, env, tmp_path, **changes))

        worker, maintenance, webhooks = start(WORKER, **SLOW), start(MAINTENANCE), start(WEBHOOKS)
        api, caller.url = await start_api("first")
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
        load = asyncio.create_task(caller.submit_forever())
        await caller.until(5)

        api.process.send_signal(signal.SIGTERM)
        _, caller.url = await start_api("second")
        assert await api.exit_code() == 0
        await caller.until(5)

        assert await asyncio.to_thread(worker.terminate) == 0
        worker = start(WORKER, **SLOW)
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
        await caller.until(5)

        await wait_for(engine, "SELECT EXISTS (SELECT 1 FROM jobs WHERE status = 'running')")
        engines = worker.children()
        for child in engines:
            child.send_signal(signal.SIGTERM)
        assert have_ended(engines)
        await caller.until(5)

        assert await asyncio.to_thread(maintenance.terminate) == 0
        start(MAINTENANCE)
        assert await asyncio.to_thread(webhooks.terminate) == 0
        await caller.until(5)
        start(WEBHOOKS)

        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
        # What was sent when the load ended may have no answer: its row is there, or not.
        async with engine.connect() as conn:
            ids = list((await conn.execute(text("SELECT id FROM jobs"))).scalars())
        promised = {parse_job_name(each) for each in caller.jobs.values()}
        assert len(promised) == len(caller.jobs), "a repeated request is the same job"
        assert promised <= set(ids)
        assert len(ids) - len(promised) <= 1
        assert await wait_until_ended(engine, ids) == {"succeeded": len(ids)}
        await wait_for(engine, "SELECT bool_and(status = 'delivered') FROM webhook_deliveries", timeout_s=60)
    told = {each.headers["webhook-id"] for each in server.received}
    assert len(told) == len(ids), "each end was told"
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, redis)


async def test_a_rolling_restart_of_all_workers_under_load_costs_no_job_an_attempt(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, environment: dict[str, str], tmp_path: Path
) -> None:
    async def load() -> None:
        while True:
            accepted = await submit(engine, settings, count=2, max_tokens=60)
            assert await nominate(queue, accepted)
            await asyncio.sleep(0.1)

    with ExitStack() as stack:

        def start() -> Process:
            return stack.enter_context(running(WORKER, environment, tmp_path, **SLOW, PENSTOCK_MAX_NUM_SEQS="8"))

        stack.enter_context(running(MAINTENANCE, environment, tmp_path))
        old = [start() for _ in range(3)]
        await wait_for(engine, "SELECT count(*) = 3 FROM workers WHERE state = 'ready'")
        loading = asyncio.create_task(load())
        for worker in old:
            await wait_for(
                engine,
                "SELECT count(DISTINCT incarnation) = (SELECT count(*) FROM workers WHERE ended_at IS NULL) "
                "FROM jobs WHERE status = 'running'",
            )
            replacement = asyncio.to_thread(worker.terminate)
            start()
            assert await replacement == 0
            await wait_for(engine, "SELECT count(*) = 3 FROM workers WHERE ended_at IS NULL")
        assert not loading.done()
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        async with engine.connect() as conn:
            ids = list(
                (await conn.execute(text("SELECT id FROM jobs"))).scalars()
            )  # also one whose nomination was cut off
        assert await wait_until_ended(engine, ids) == {"succeeded": len(ids)}
    async with engine.connect() as conn:
        penalties = (
            await conn.execute(text("SELECT sum(failures), sum(worker_losses), sum(engine_crashes) FROM jobs"))
        ).one()
        outcomes = set((await conn.execute(text("SELECT DISTINCT outcome FROM attempts"))).scalars())
        states = set((await conn.execute(text("SELECT DISTINCT state FROM workers WHERE pid = ANY(:pids)"),
                                         {"pids": [each.process.pid for each in old]})).scalars())  # fmt: skip
    assert tuple(penalties) == (0, 0, 0)
    assert outcomes == {"succeeded", "drained"}, "some were given back, and that's all"
    assert states == {"ended"}, "no lease was left to run out"
    await assert_exactly_once(engine, ids)
    await assert_audit_clean(engine, queue.redis)


PAGED = {
    "PENSTOCK_MODEL": str(BROOK),
    "PENSTOCK_MODEL_NAME": "tiny",
    "PENSTOCK_KERNELS": "torch",
    "PENSTOCK_DRAIN_GRACE_S": "0.05",
}
NULL = NULL_ENGINE | {"PENSTOCK_DRAIN_GRACE_S": "0.05"}


@pytest.mark.parametrize(
    ("before", "after", "num_tokens"),
    [
        (PAGED | {"PENSTOCK_DTYPE": "bfloat16"}, PAGED | {"PENSTOCK_DTYPE": "float32"}, 500),
        (NULL | {"PENSTOCK_NULL_STEP_S": "0.1"}, NULL | {"PENSTOCK_MODEL": str(BROOK)}, 80),
    ],
    ids=["another-dtype", "another-folder"],
)  # fmt: skip
async def test_a_worker_with_another_version_of_the_model_never_goes_on_from_its_tokens(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, redis: Redis, environment: dict[str, str], tmp_path: Path,
    before: dict[str, str], after: dict[str, str], num_tokens: int,
) -> None:  # fmt: skip
    log = EventLog(redis, ttl_s=600, max_entries=10_000)
    body = {"max_tokens": num_tokens, "seed": 11, "temperature": 1.0, "ignore_eos": True}

    async def submit_one() -> UUID:
        accepted = await submit(engine, settings, **body)
        assert await nominate(queue, accepted)
        return accepted[0].job_id

    async def choices_of(job_id: UUID) -> object:
        async with engine.connect() as conn:
            found = await conn.scalar(text("SELECT choices FROM job_results WHERE job_id = :id"), {"id": job_id})
        return json.loads(found) if isinstance(found, str) else found

    for _ in range(5):  # a machine that was away for a moment may drain it when it has ended
        with running(WORKER, environment, tmp_path, **before) as old:
            job_id = await submit_one()
            async with asyncio.timeout(60):
                while not (entries := await log.read(job_id)) or entries[-1].seq < 10:
                    await asyncio.sleep(0.005)
            assert await asyncio.to_thread(old.terminate) == 0
        told = (await log.read(job_id))[-1]
        if told.seq < num_tokens:
            break
    assert 10 <= told.seq < num_tokens, "the drain came in the middle"
    with running(WORKER, environment, tmp_path, **after):
        assert await wait_until_ended(engine, [job_id], timeout_s=120) == {"succeeded": 1}
        undisturbed = await submit_one()
        assert await wait_until_ended(engine, [undisturbed], timeout_s=120) == {"succeeded": 1}
    assert await choices_of(job_id) == await choices_of(undisturbed), "wholly the new version's"
    later = [each.event for each in await log.read(job_id, after=told.place.entry_id)]
    assert later[0].kind == "restarted"
    assert next(delta.offset for event in later for delta in event.deltas) == 0
    assert len({event.made_by for event in later if event.made_by} - {told.event.made_by}) == 1
    async with engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT attempt, kind, completion_tokens FROM usage WHERE job_id = :id ORDER BY attempt, kind"),
            {"id": job_id},
        )
        usage = [tuple(row) for row in rows]
    assert (2, "billed", num_tokens) in usage, "what the old version made is billed to nobody"
    await assert_exactly_once(engine, [job_id, undisturbed])
    await assert_audit_clean(engine, redis)
