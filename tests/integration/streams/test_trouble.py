"""Does a reader miss or repeat anything when the API restarts, Redis dies, an attempt is fenced, or it is slow itself?"""

import asyncio
import socket

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.embedded import EmbeddedRedis
from app.queue.events import ChoiceDelta, EventLog, JobEvent, Publication
from app.queue.traces import Step, Trace
from app.redis import create_redis
from app.settings import Settings
from app.streams import Tokens
from app.streams.reader import Item
from tests.support.api import HandWorker, Tenant, job_id_of
from tests.support.streams import Heard, Writer, finished, read_to_end, serving, submitted, until_followed, watching


async def hear(client: httpx.AsyncClient, job: dict, heard: Heard, text: str) -> None:
    """Read until this is heard, and hang up."""
    async with watching(client, job, heard) as events:
        while heard.text() != text:
            await anext(events)


async def test_a_restart_of_the_api_ends_streams_so_that_they_can_be_gone_on_with(
    settings: Settings, client: httpx.AsyncClient, tenant: Tenant, worker: HandWorker, log: EventLog
) -> None:
    job, heard = await submitted(client), Heard()
    writer = Writer(log, job_id_of(job))
    await worker.start(job)
    await writer.start()
    words = iter(["Once ", "upon ", "a ", "time ", "there ", "was "])
    for _ in range(3):
        async with serving(settings) as served, served.client(tenant) as other:
            reading = asyncio.create_task(read_to_end(other, job, heard))
            await writer.write(next(words))
            async with asyncio.timeout(20):
                while heard.text() != writer.texts[0]:
                    await asyncio.sleep(0.005)
            served.runtime.streams.release()
            await reading
        assert heard.comments[-1].startswith(": cut off")
        await writer.write(next(words))  # while nobody listens
    writer.deltas("a fox", reasons={0: "stop"})
    await worker.finish(job | {"status": "running"}, **writer.result())
    await read_to_end(client, job, heard)
    assert heard.text() == "Once upon a time there was a fox"
    assert heard.kinds[-1] == "finished"
    assert heard.kinds.count("started") == 1


@pytest.fixture
def lone(settings: Settings, private_redis: EmbeddedRedis) -> Settings:
    """With a Redis that may be killed."""
    return settings.model_copy(update={"redis_url": private_redis.url})


async def test_a_redis_that_dies_costs_time_and_no_token(
    lone: Settings, private_redis: EmbeddedRedis, engine: AsyncEngine, tenant: Tenant, model: object
) -> None:
    async with serving(lone) as served, create_redis(lone) as redis:
        worker, log = HandWorker(engine, redis, "bytes"), EventLog(redis, ttl_s=600, max_entries=10_000)
        async with httpx.AsyncClient(base_url=served.url, headers=tenant.auth, timeout=30) as client:
            job, heard = await submitted(client), Heard()
            writer = Writer(log, job_id_of(job))
            await worker.start(job)
            await writer.start()
            await writer.write("Once")
            reading = asyncio.create_task(read_to_end(client, job, heard))
            async with asyncio.timeout(20):
                while heard.text() != "Once":
                    await asyncio.sleep(0.005)
            private_redis.kill()
            writer.deltas(" upon", reasons={0: "stop"})
            await worker.finish(job | {"status": "running"}, announce=False, **writer.result())
            await reading
            assert heard.text() == "Once upon"
            assert heard.kinds == ["started", "tokens", "tokens", "finished"]
            # And who comes now gets all of it.
            assert (await read_to_end(client, job)).text() == "Once upon"


async def test_a_redis_that_forgot_everything_shows_no_gap_and_who_comes_back_gets_the_rest(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog
) -> None:
    job, heard = await submitted(client), Heard()
    writer = Writer(log, job_id_of(job))
    await worker.start(job)
    await writer.start()
    await writer.write("ab")
    await hear(client, job, heard, "ab")
    await writer.write("cd")  # which nobody hears
    await log.redis.delete(f"ev:{writer.job_id.hex}")
    reading = asyncio.create_task(read_to_end(client, job, heard))
    await writer.write("ef")
    writer.deltas("g", reasons={0: "stop"})
    event = writer.result()
    await worker.finish(job | {"status": "running"}, announce=False, **event)
    await reading
    assert heard.text() == "abcdefg"


async def test_a_fenced_attempt_that_goes_on_writing_is_not_heard_twice(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog, engine: AsyncEngine
) -> None:
    job, heard = await submitted(client), Heard()
    text = "Once upon a time there was"
    old = Writer(log, job_id_of(job))
    new = Writer(log, job_id_of(job), attempt=2)
    await worker.start(job)
    await old.start()
    await old.write(text[:4])
    reading = asyncio.create_task(read_to_end(client, job, heard))
    new.deltas(text[:4])
    await new.start()
    for at in range(4, 20, 2):  # the new one is a step ahead, then the old one, in turns
        await new.write(text[at : at + 2])
        await old.write(text[at : at + 3])
        old.texts[0] = text[: at + 2]
    new.deltas(text[20:], reasons={0: "stop"})
    await finished(engine, new)
    await reading
    assert heard.text() == text
    assert heard.kinds.count("started") == 1


async def test_an_attempt_that_starts_over_says_so(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog, engine: AsyncEngine
) -> None:
    job, heard = await submitted(client), Heard()
    old = Writer(log, job_id_of(job))
    await worker.start(job)
    await old.start()
    await old.write("Once")
    await hear(client, job, heard, "Once")
    new = Writer(log, job_id_of(job), attempt=2, run=2)
    await new.start()
    await new.write("Twice")
    await hear(client, job, heard, "Twice")
    await old.write(" upon")
    new.deltas("!", reasons={0: "stop"})
    await finished(engine, new)
    await log.redis.delete(f"ev:{new.job_id.hex}")
    await read_to_end(client, job, heard)
    assert heard.kinds == ["started", "tokens", "restarted", "tokens", "tokens", "finished"]
    assert heard.text() == "Twice!"
    late = Heard(heard.events[:2])
    await read_to_end(client, job, late)
    assert late.text() == "Twice!"


async def test_an_end_of_an_earlier_life_is_not_the_end(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog, engine: AsyncEngine
) -> None:
    job, heard = await submitted(client), Heard()
    dead = Writer(log, job_id_of(job))
    await worker.start(job)
    await dead.start()
    await dead.write("Once")
    await dead.end(status="dead")  # and an operator sent it back before anybody looked
    again = Writer(log, job_id_of(job), attempt=2, run=2)
    reading = asyncio.create_task(read_to_end(client, job, heard))
    async with asyncio.timeout(20):
        while heard.text() != "Once":
            await asyncio.sleep(0.005)
    await again.start()
    again.deltas("Twice", reasons={0: "stop"})
    await finished(engine, again)
    await reading
    assert heard.text() == "Twice"
    assert heard.kinds.count("finished") == 1


async def test_what_is_no_event_in_a_stream_is_a_gap_and_stops_nobody(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog
) -> None:
    job, heard = await submitted(client), Heard()
    writer = Writer(log, job_id_of(job))
    await worker.start(job)
    await writer.start()
    await writer.write("ab")
    await log.redis.xadd(f"ev:{writer.job_id.hex}", {"d": b"{}"}, id=f"{(1 << 32) + 2}-7")
    reading = asyncio.create_task(read_to_end(client, job, heard))
    await writer.write("cd")
    writer.deltas("e", reasons={0: "stop"})
    await worker.finish(job | {"status": "running"}, **writer.result())
    await reading
    assert heard.text() == "abcde"


async def test_a_reader_that_takes_nothing_is_cut_off_and_holds_no_more_than_its_buffer(
    settings: Settings, tenant: Tenant, worker: HandWorker, log: EventLog, client: httpx.AsyncClient
) -> None:
    job, text = await submitted(client), "x" * 50_000
    job_id, count = job_id_of(job), 0
    await worker.start(job)
    async with serving(settings.model_copy(update={"stream_buffer_bytes": 4096})) as served:
        host, _, port = served.url.removeprefix("http://").partition(":")
        slow = socket.create_connection((host, int(port)))
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(
            f"GET /v1/jobs/{job['id']}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.token}\r\n\r\n".encode()
        )
        await until_followed(served)
        (reader,) = served.hub._readers
        most = 0
        async with asyncio.timeout(60):
            while served.hub.num_readers:
                if count < 400:  # 20 MB: more than sockets hold
                    delta = ChoiceDelta(
                        choice=0, offset=count, token_ids=[count], text=text, text_offset=count * len(text)
                    )
                    count += 1
                    await log.publish([Publication(job_id, count, JobEvent(kind="tokens", attempt=1, deltas=[delta]))])
                most = max(most, reader._num_bytes)
                await asyncio.sleep(0.001)
        assert reader.cut_off
        assert most < 4096 + 2 * len(text), "what is beyond one entry stays in Redis"
        assert served.hub.num_topics == 0
        slow.close()
    steps = [Step(0, 1, len(text))] * count + [Step(0, 0, 0, is_finished=True)]
    await worker.finish(
        job | {"status": "running"},
        choices=[{"index": 0, "text": text * count, "finish_reason": "stop"}],
        trace=Trace.of(1, steps, [list(range(count))]).pack(),
    )
    heard = await read_to_end(client, job)
    assert heard.text() == text * count


def text_of(item: Item) -> str:
    return item.event.text if isinstance(item.event, Tokens) else ""


async def test_a_slow_reader_falls_behind_and_catches_up_without_a_gap(
    settings: Settings, tenant: Tenant, worker: HandWorker, log: EventLog, client: httpx.AsyncClient
) -> None:
    job = await submitted(client)
    writer = Writer(log, job_id_of(job))
    await worker.start(job)
    await writer.start()
    patient = settings.model_copy(update={"stream_buffer_bytes": 4096, "stream_stall_s": 60.0})
    async with serving(patient) as served:
        slow, quick = [await served.hub.open("acme", writer.job_id) for _ in range(2)]
        texts = {slow: "", quick: ""}
        for number in range(400):
            await writer.write(f"{number:03d} ")
            if number % 10 == 0:
                for item in await quick.read() or ():
                    texts[quick] += text_of(item)
            assert slow._num_bytes < 2 * 4096
        writer.deltas("end", reasons={0: "stop"})
        await worker.finish(job | {"status": "running"}, **writer.result())
        for reader in (slow, quick):
            while (items := await reader.read()) is not None:
                for item in items:
                    assert not isinstance(item.event, Tokens) or item.event.text_offset == len(texts[reader])
                    texts[reader] += text_of(item)
            reader.close()
        assert texts == {slow: writer.texts[0], quick: writer.texts[0]}


async def test_a_fenced_attempt_that_is_ahead_in_one_choice_hides_nothing_of_its_successor(
    client: httpx.AsyncClient, worker: HandWorker, log: EventLog, engine: AsyncEngine
) -> None:
    """A worker that was stopped for longer than its lease, and then went on. Its entries were ahead by their number of tokens, so Redis
    refused the successor's until it had as many: what those told of the other choice was seen at the job's end only.
    """
    job, heard = await submitted(client, n=2), Heard()
    texts = ["Once upon a time there was", "Twice below a moon"]
    old = Writer(log, job_id_of(job), n=2)
    await worker.start(job)
    await old.start()
    await old.write(texts[0][:4], texts[1][:2])
    new = Writer(log, job_id_of(job), n=2, attempt=2)
    new.deltas(texts[0][:4], texts[1][:2])
    async with watching(client, job, heard) as events, asyncio.timeout(20):
        while heard.text(1) != texts[1][:2]:
            await anext(events)
        await new.start()
        await old.write(texts[0][4:])
        for at in range(2, 18, 2):
            await new.write(texts[0][at + 2 : at + 4], texts[1][at : at + 2])
            while (heard.text(0), heard.text(1)) != (texts[0][: at + 4], texts[1][: at + 2]):
                await anext(events)
        new.deltas(texts[0][20:], "", reasons={0: "stop", 1: "stop"})
        await finished(engine, new)
        async for _ in events:
            pass
    assert (heard.text(0), heard.text(1)) == tuple(texts)
    for place in range(len(heard.events)):
        again = Heard(heard.events[:place])
        await read_to_end(client, job, again)
        assert again.events == heard.events
