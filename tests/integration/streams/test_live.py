"""What does a reader see while its job runs?"""

import httpx

from app.queue.events import EventLog
from tests.support.api import HandWorker, job_id_of
from tests.support.streams import Heard, Served, Writer, read_to_end, submitted, until_followed, watching


async def test_events_come_as_they_are_written_and_end_with_the_jobs_end(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog
) -> None:
    job, heard = await submitted(client), Heard()
    writer = Writer(log, job_id_of(job))
    async with watching(client, job, heard) as events:
        await worker.start(job)
        await writer.start()
        assert (await anext(events))["kind"] == "started"
        for word in ("Once", " upon", " a time"):
            await writer.write(word)
            event = await anext(events)
            assert (event["kind"], event["text"], event["token_ids"]) == (
                "tokens",
                word,
                [ord(letter) for letter in word],
            )
        job["status"] = "running"
        writer.deltas(".", reasons={0: "stop"})
        await worker.finish(job, **writer.result())
        event = await anext(events)
        assert (event["text"], event["finish_reason"]) == (".", "stop")
        last = await anext(events)
        assert (last["kind"], last["status"], last["usage"]["completion_tokens"]) == ("finished", "succeeded", 7)
        assert [event async for event in events] == []
    assert heard.text() == "Once upon a time."


async def test_any_event_can_be_gone_on_from_while_it_runs_and_after(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog, served: Served
) -> None:
    job = await submitted(client, n=2)
    writer = Writer(log, job_id_of(job), n=2)
    await worker.start(job)
    await writer.start()
    await writer.write("ab", "x")
    await writer.write("c", "yz", reasons={0: "stop"})
    await writer.write("", "w")
    running = Heard()
    async with watching(client, job, running) as events:
        while running.text(1) != "xyzw":
            await anext(events)
        await until_followed(served)
        job["status"] = "running"
        writer.deltas("", "v", reasons={1: "length"})
        await worker.finish(job, **writer.result())
        await worker.redis.delete(f"ev:{writer.job_id.hex}")
        async for _ in events:
            pass
    assert (running.text(0), running.text(1)) == ("abc", "xyzwv")
    for place in range(len(running.events)):
        again = Heard(running.events[:place])
        await read_to_end(client, job, again)
        assert again.events == running.events


async def test_workers_are_told_who_is_read(client: httpx.AsyncClient, worker: HandWorker, served: Served) -> None:
    job = await submitted(client)
    async with worker.redis.pubsub() as told:
        await told.subscribe("jobs:read")
        while await told.get_message(timeout=5.0) is None:
            pass
        async with watching(client, job, Heard()):
            message = None
            while message is None:
                message = await told.get_message(ignore_subscribe_messages=True, timeout=5.0)
            assert message["data"].decode() == job_id_of(job).hex
            assert 0 < await worker.redis.ttl(f"ev:read:{job_id_of(job).hex}") <= 60
