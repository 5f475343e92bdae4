"""Does what is due reach RQ, once, in JSON, whatever becomes of Redis?"""

import asyncio
import json
import zlib
from collections.abc import Iterator

import pytest
from rq import Queue
from sqlalchemy.ext.asyncio import AsyncEngine

from app.embedded import EmbeddedRedis
from app.redis import RedisError
from app.settings import Settings
from app.webhooks import dispatch
from app.webhooks.dispatch import connect_rq, dispatch_due, open_queue
from app.webhooks.nominate import Rooms
from tests.support.webhooks import notify, pass_time, state, with_known_lanes

URL = "https://hooks.example.com/1"
ROOMS = Rooms(again_after_s=60.0, most=1024, cautious=1024)


@pytest.fixture
def queue(settings: Settings) -> Iterator[Queue]:
    with connect_rq(settings) as redis:
        yield open_queue(redis)


async def test_rq_gets_the_id_and_the_number_in_json(engine: AsyncEngine, queue: Queue) -> None:
    (one,) = await notify(engine, URL)
    assert await dispatch_due(engine, queue, ROOMS) == 1
    assert queue.job_ids == [f"{one.hex}-1"]
    stored = queue.connection.hgetall(f"rq:job:{one.hex}-1")
    assert json.loads(zlib.decompress(stored[b"data"])) == [
        "workers.webhooks.deliver.deliver", None, [one.hex, 1], {},
    ]  # fmt: skip
    assert 0 < queue.connection.ttl(f"rq:job:{one.hex}-1") <= 60


async def test_what_rq_has_isnt_handed_over_again_at_once_but_what_it_lost_is(
    engine: AsyncEngine, queue: Queue
) -> None:
    (one,) = await notify(engine, URL)
    assert await dispatch_due(engine, queue, ROOMS) == 1
    assert await dispatch_due(engine, queue, ROOMS) == 0
    queue.connection.flushdb()
    await pass_time(engine, 61)
    assert await dispatch_due(engine, queue, ROOMS) == 1
    assert queue.job_ids == [f"{one.hex}-1"]


async def test_several_dispatchers_share_the_work(engine: AsyncEngine, queue: Queue) -> None:
    await with_known_lanes(engine)  # none of which has more of these hosts than it has room for
    await notify(engine, *[f"https://{n}.example.com/" for n in range(50)])
    done = await asyncio.gather(*(dispatch_due(engine, queue, ROOMS, limit=20) for _ in range(4)))
    assert sum(done) == 50
    assert len(set(queue.job_ids)) == queue.count == 50


async def test_rq_is_a_short_buffer(engine: AsyncEngine, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_QUEUED", 3)
    await notify(engine, *[f"https://{n}.example.com/" for n in range(5)])
    assert await dispatch_due(engine, queue, ROOMS) == 3
    assert await dispatch_due(engine, queue, ROOMS) == 0
    queue.empty()
    assert await dispatch_due(engine, queue, ROOMS) == 2


async def test_a_redis_that_is_away_delays_nothing(
    settings: Settings, engine: AsyncEngine, private_redis: EmbeddedRedis
) -> None:
    (one,) = await notify(engine, URL)
    with connect_rq(settings.model_copy(update={"redis_url": private_redis.url})) as redis:
        queue = open_queue(redis)
        private_redis.stop()
        with pytest.raises(RedisError):
            await dispatch_due(engine, queue, ROOMS)
        assert (await state(engine, one)).wait_s <= 0
        private_redis.start()
        assert await dispatch_due(engine, queue, ROOMS) == 1
