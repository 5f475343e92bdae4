"""Where does a job say that its time went, however it ended?"""

from random import Random

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.rescue import give_back
from app.jobs.store import Cause, Fate, GivenBack
from app.jobs.timing import Timing
from app.settings import Settings
from tests.support.api import HandWorker, Submit, job_id_of

MEASURED = Timing(0.0, 0.0, 0.0)


async def timing_of(client: httpx.AsyncClient, job: dict) -> dict[str, float] | None:
    found: dict[str, float] | None = (await client.get(job["urls"]["self"])).json()["timing"]
    return found


async def age(engine: AsyncEngine, job: dict, seconds: float) -> None:
    """It came so much earlier, and could run at once."""
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "UPDATE jobs SET created_at = created_at - make_interval(secs => :s), "
                "eligible_at = eligible_at - make_interval(secs => :s) WHERE id = :id"
            ),
            {"s": seconds, "id": job_id_of(job)},
        )


async def break_off(engine: AsyncEngine, settings: Settings, job: dict, cause: Cause) -> None:
    async with engine.begin() as conn:
        given = GivenBack(job_id_of(job), 1, cause, timing=MEASURED)
        await give_back(conn, [given], Fate.of(settings), Random(1))


async def test_a_job_that_ran_has_what_its_worker_measured_and_the_rest(
    client: httpx.AsyncClient, submit: Submit, worker: HandWorker, engine: AsyncEngine
) -> None:
    job = await submit()
    assert job["timing"] is None
    await age(engine, job, 60)
    await worker.finish(job, timing=Timing(30.0, 10.0, 15.0))
    found = await timing_of(client, job)
    assert found is not None
    assert (found["held_s"], found["queued_s"], found["prefill_s"], found["decode_s"]) == (0, 30, 10, 15)
    assert found["persisted_s"] >= 5
    assert sum(found.values()) == pytest.approx(2 * found["total_s"], abs=0.01)


async def test_a_job_that_was_cancelled_while_it_waited_has_only_waited(
    client: httpx.AsyncClient, submit: Submit, engine: AsyncEngine
) -> None:
    job = await submit()
    await age(engine, job, 60)
    await client.post(job["urls"]["cancel"])
    found = await timing_of(client, job)
    assert found is not None
    assert found["queued_s"] == found["total_s"] >= 60


async def test_what_was_before_its_last_wait_is_held(
    client: httpx.AsyncClient, submit: Submit, worker: HandWorker, engine: AsyncEngine, settings: Settings
) -> None:
    job = await submit()
    await age(engine, job, 60)
    await worker.start(job)
    await break_off(engine, settings, job, "drained")
    await client.post(job["urls"]["cancel"])
    found = await timing_of(client, job)
    assert found is not None
    assert found["held_s"] >= 60
    assert (found["prefill_s"], found["decode_s"], found["persisted_s"]) == (0, 0, 0)


async def test_a_job_whose_last_worker_measured_nothing_says_nothing(
    client: httpx.AsyncClient, submit: Submit, worker: HandWorker
) -> None:
    job = await submit()
    await worker.finish(job)
    assert await timing_of(client, job) is None


async def test_an_attempt_that_was_given_back_keeps_its_times(
    submit: Submit, worker: HandWorker, engine: AsyncEngine, settings: Settings
) -> None:
    job = await submit()
    await worker.start(job)
    await break_off(engine, settings, job, "drained")
    async with engine.connect() as conn:
        row = (await conn.execute(text("SELECT queued_s, prefill_s, decode_s FROM attempts"))).one()
    assert tuple(row) == (0.0, 0.0, 0.0)
