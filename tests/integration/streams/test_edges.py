"""Who may read a stream, from where, and what does one get who can't?"""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.timekeeping import forget_outputs
from app.queue.events import EventLog
from app.retention.jobs import delete_old_jobs
from app.settings import Settings
from app.streams import follow
from app.streams.event import last_id
from tests.support.api import HandWorker, Tenant, assert_problem, job_id_of, make_tenant
from tests.support.audit import assert_audit_clean
from tests.support.streams import Heard, Served, Writer, read_to_end, serving, submitted, until_followed, watching


async def test_another_tenants_job_is_not_found(
    client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings
) -> None:
    job = await submitted(client)
    rival = await make_tenant(engine, settings, "rival")
    answer = await client.get(f"/v1/jobs/{job['id']}/events", headers=rival.auth)
    assert_problem(answer, 404, "not_found", job["id"])
    assert_problem(await client.get(f"/v1/jobs/job_{'0' * 32}/events"), 404, "not_found")
    assert_problem(await client.get("/v1/jobs/job_1/events"), 404, "not_found")


async def test_what_is_no_id_is_refused_by_its_name(client: httpx.AsyncClient) -> None:
    job = await submitted(client)
    for after in ("-1", "x", "1.5", "9007199254740992", "٣"):
        answer = await client.get(f"/v1/jobs/{job['id']}/events", params={"starting_after": after})
        assert assert_problem(answer, 422, "invalid_request", "starting_after")["param"] == "starting_after"
        if after.isascii():
            answer = await client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": after})
            assert assert_problem(answer, 422, "invalid_request", "Last-Event-ID")["param"] == "Last-Event-ID"


async def test_nothing_follows_the_end_and_what_is_beyond_it(client: httpx.AsyncClient, worker: HandWorker) -> None:
    job = await submitted(client)
    await worker.finish(job)
    heard = await read_to_end(client, job)
    assert heard.kinds == ["started", "tokens", "finished"], "a result from before traces were kept"
    assert heard.text() == " there was"
    for after in (heard.last_id, heard.last_id + 1, 2**53 - 1):
        answer = await client.get(f"/v1/jobs/{job['id']}/events", params={"starting_after": after})
        assert (answer.status_code, answer.content) == (204, b"")


async def test_a_job_that_never_ran_ends_its_stream_within_seconds(client: httpx.AsyncClient) -> None:
    job, heard = await submitted(client), Heard()
    async with watching(client, job, heard, starting_after=7) as events:
        await client.post(f"/v1/jobs/{job['id']}/cancel")
        async for _ in events:
            pass
    assert heard.kinds == ["finished"]
    assert heard.events[0]["status"] == "cancelled"


async def test_the_header_goes_before_the_query(client: httpx.AsyncClient, worker: HandWorker, log: EventLog) -> None:
    job = await submitted(client)
    writer = Writer(log, job_id_of(job))
    writer.deltas("ab")
    writer.deltas("cd", reasons={0: "stop"})
    await worker.finish(job, **writer.result())
    whole = await read_to_end(client, job)
    rest = Heard(whole.events[:2])
    async with watching(client, job, rest, starting_after=0) as events:
        assert (await anext(events))["text"] == "cd"


async def test_a_misspelt_offset_is_not_the_beginning(client: httpx.AsyncClient) -> None:
    job = await submitted(client)
    answer = await client.get(f"/v1/jobs/{job['id']}/events", params={"after": 7})
    problem = assert_problem(answer, 422, "invalid_request", "isn't a known parameter; there are starting_after")
    assert problem["param"] == "after"


async def test_silence_is_filled_with_comments(client: httpx.AsyncClient, served: Served) -> None:
    job, heard = await submitted(client), Heard()
    async with watching(client, job, heard) as events:
        waiting = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(20):
            while len(heard.comments) < 2:
                await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(20):
        while served.hub.num_readers:
            await asyncio.sleep(0.01)
    assert served.hub.num_topics == 0, "whoever left is forgotten"


async def test_one_reader_too_many_is_told_when_to_come_back(
    settings: Settings, client: httpx.AsyncClient, tenant: Tenant
) -> None:
    job = await submitted(client)
    small = settings.model_copy(update={"stream_max_readers": 1})
    async with serving(small) as served, served.client(tenant) as other, watching(other, job, Heard()):
        answer = await other.get(f"/v1/jobs/{job['id']}/events")
        assert_problem(answer, 503, "streams_full", "stream_max_readers")
        assert int(answer.headers["retry-after"]) >= 1


async def test_many_readers_of_one_job_share_a_topic_and_all_of_a_process_a_connection(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog, served: Served
) -> None:
    jobs = [await submitted(client) for _ in range(3)]
    writers = [Writer(log, job_id_of(job)) for job in jobs]
    for job, writer in zip(jobs, writers, strict=True):
        await worker.start(job)
        await writer.start()
        await writer.write("abc")
    heard = [Heard() for _ in range(30)]
    reading = [asyncio.create_task(read_to_end(client, jobs[place % 3], each)) for place, each in enumerate(heard)]
    async with asyncio.timeout(20):
        while not all(each.text() == "abc" for each in heard):
            await asyncio.sleep(0.01)
    await until_followed(served, 3)
    waiting = [each for each in await worker.redis.client_list() if each["cmd"] == "xread"]
    assert len(waiting) == 1
    for job, writer in zip(jobs, writers, strict=True):
        writer.deltas("d", reasons={0: "stop"})
        await worker.finish(job | {"status": "running"}, **writer.result())
    await asyncio.gather(*reading)
    assert [each.text() for each in heard] == ["abcd"] * 30
    assert all(each.kinds[-1] == "finished" for each in heard)


async def test_an_output_past_its_retention_is_gone_and_its_bill_stays(
    client: httpx.AsyncClient, worker: HandWorker, engine: AsyncEngine
) -> None:
    job = await submitted(client)
    await worker.finish(job)
    assert (await read_to_end(client, job)).text()
    async with engine.begin() as conn:
        assert await forget_outputs(conn, ttl_s=3600) == 0
        await conn.execute(sa.text("UPDATE job_results SET created_at = created_at - interval '2 hours'"))
        assert await forget_outputs(conn, ttl_s=3600) == 1
        assert await forget_outputs(conn, ttl_s=3600) == 0
    answer = await client.get(f"/v1/jobs/{job['id']}/events")
    assert_problem(answer, 410, "output_forgotten", job["id"], "output_retention_s")
    assert (await client.get(f"/v1/jobs/{job['id']}/events", params={"starting_after": last_id(1)})).status_code == 204
    shown = (await client.get(f"/v1/jobs/{job['id']}")).json()
    assert (shown["status"], shown["choices"], shown["usage"]["completion_tokens"]) == ("succeeded", None, 7)
    await assert_audit_clean(engine, None)


@pytest.mark.parametrize("what", ["the output", "the whole job"])
async def test_output_that_is_forgotten_before_it_is_loaded_is_no_empty_output(
    client: httpx.AsyncClient, worker: HandWorker, engine: AsyncEngine, served: Served, what: str
) -> None:
    job = await submitted(client)
    await worker.finish(job)
    reader = await served.hub.open("acme", job_id_of(job))
    async with engine.begin() as conn:
        if what == "the output":
            await conn.execute(sa.text("UPDATE job_results SET created_at = created_at - interval '2 hours'"))
            assert await forget_outputs(conn, ttl_s=3600) == 1
        else:
            await conn.execute(sa.text("UPDATE jobs SET finished_at = finished_at - interval '2 days'"))
            since = datetime.now(UTC) - timedelta(days=3)
            assert (await delete_old_jobs(conn, "acme", days=1, since=since, most=10)).rows["jobs"] == 1
    assert await reader.read() is None
    assert reader.cut_off, "who comes back is told that it isn't kept"
    reader.close()


async def test_a_result_that_was_shared_is_told_to_its_end(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog
) -> None:
    """Its leader's text began anew in a later attempt than the only one that the job itself has."""
    job = await submitted(client)
    writer = Writer(log, job_id_of(job))
    writer.deltas("ab", reasons={0: "stop"})
    writer.run = 3
    await worker.finish(job, **writer.result())
    heard = await read_to_end(client, job)
    assert (heard.text(), heard.kinds[-1]) == ("ab", "finished")


async def test_another_room_follows_a_job_without_http(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog, served: Served
) -> None:
    job = await submitted(client)
    writer = Writer(log, job_id_of(job))
    writer.deltas("ab", reasons={0: "stop"})
    await worker.finish(job, **writer.result())
    events = [event async for event in follow(served.runtime, writer.job_id, "acme")]
    assert [event.kind for event in events] == ["started", "tokens", "finished"]
    assert (events[1].text, events[1].token_ids, events[1].finish_reason) == ("ab", [97, 98], "stop")
    assert events[-1].kind == "finished"
    assert served.hub.num_readers == 0
