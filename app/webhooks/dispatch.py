"""How do due deliveries reach the webhook workers? As RQ jobs of (delivery id, number of the try), in JSON, never pickle."""

import asyncio

from redis import Redis as SyncRedis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import delivery_name
from app.redis import connection_options
from app.settings import Settings
from app.webhooks.nominate import Nomination, Rooms, nominate

QUEUE_NAME = "webhooks"
FUNCTION = "workers.webhooks.deliver.deliver"  # by name: the control plane never imports workers
# RQ is only a short buffer before its workers. What doesn't fit stays where nothing is lost: in Postgres.
MAX_QUEUED = 1000
FAILURES_KEPT_S = 3600  # for RQ's own tools; ours is in webhook_tries


def connect_rq(settings: Settings, *, timeout_s: float | None = None) -> SyncRedis:
    """RQ's client: a blocking one.

    Raises:
        Misconfigured: no Redis is configured, or not as an address of one.
    """
    options = connection_options(settings)
    if timeout_s is not None:
        options["socket_timeout"] = timeout_s
    return SyncRedis.from_url(settings.required_redis_url, **options, retry=Retry(NoBackoff(), 1), protocol=2)


def open_queue(redis: SyncRedis) -> Queue:
    """RQ's queue of deliveries."""
    return Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer, default_timeout=-1)


async def dispatch_due(engine: AsyncEngine, queue: Queue, rooms: Rooms, *, limit: int = 500) -> int:
    """Hand deliveries that are due and have room to RQ; return how many. Any number of processes may do so at once, in turns.

    What RQ or Redis loses is handed over again after `rooms.again_after_s`; what it has twice begins once.

    Raises:
        redis.RedisError: Redis is away. Nothing is lost.
    """
    # Before the rows are touched, so that a Redis that is away delays nothing.
    room = MAX_QUEUED - await asyncio.to_thread(lambda: queue.count)
    if room <= 0:
        return 0
    async with engine.begin() as conn:
        nominations = await nominate(conn, rooms, limit=min(limit, room))
    if nominations:
        await asyncio.to_thread(_enqueue, queue, nominations, rooms.again_after_s)
    return len(nominations)


def _enqueue(queue: Queue, nominations: list[Nomination], ttl_s: float) -> None:
    queue.enqueue_many(
        [
            Queue.prepare_data(
                FUNCTION,
                args=(each.delivery_id.hex, each.number),
                job_id=f"{each.delivery_id.hex}-{each.number}",
                ttl=max(1, round(ttl_s)),  # after that it is handed over again
                timeout=-1,  # a try has its own
                result_ttl=0,
                failure_ttl=FAILURES_KEPT_S,
                description=delivery_name(each.delivery_id),
            )
            for each in nominations
        ]
    )
