"""Who makes the runs of the retention? Whichever maintenance process takes the RQ job; a plain `rq worker` may, too."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry
from redis import Redis as SyncRedis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import Clock, SystemClock
from app.db import create_engine
from app.looks import Looks
from app.redis import Redis, create_redis
from app.retention.dispatch import FUNCTION, SCHEDULE, enqueue_run, open_queue
from app.retention.run import run_retention
from app.retention.runs import look
from app.settings import Settings, settings
from app.telemetry import emit
from workers.maintenance.deleted import RetentionFigures

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0  # how soon what an operator asks for begins


class RetentionJob(Job):
    """RQ's job, but it can only be a run: whoever writes to Redis can't name another function for us to call."""

    @property
    def func(self) -> Callable[..., Any]:
        """`retain`.

        Raises:
            ValueError: the job is something else.
        """
        if self.func_name != FUNCTION:
            raise ValueError("not a run of the retention")
        return retain

    success_callback = failure_callback = stopped_callback = None


def retain(asked_by: str) -> None:
    """One run, under a plain `rq worker retention --serializer json`."""
    asyncio.run(_retain_alone(asked_by))


async def _retain_alone(asked_by: str) -> None:
    config = settings()
    db, redis = create_engine(config, application_name="penstock-retention"), create_redis(config)
    try:
        await run_retention(config, SystemClock(), db, redis, asked_by=str(asked_by))
    finally:
        await redis.aclose()
        await db.dispose()


class RetentionKeeper:
    """Hands a run to RQ when it is time, and makes what RQ hands out. Any number of processes may do so: Postgres lets one run."""

    def __init__(
        self,
        config: Settings,
        clock: Clock,
        db: AsyncEngine,
        redis: Redis,
        rq: SyncRedis,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._db = db
        self._looks = Looks(db)
        self._redis = redis
        self._queue = open_queue(rq)
        self._figures = RetentionFigures(registry or CollectorRegistry())

    async def round(self) -> int:
        """Ask for a run if one is due; make one if one was asked for; return how many rows it deleted or emptied.

        Raises:
            SQLAlchemyError, RedisError: a server is away: the next round does it.
        """
        found = await look(self._looks, every_s=self._config.retention_every_s)
        self._figures.show(found)
        if found.is_due:
            await asyncio.to_thread(enqueue_run, self._queue, SCHEDULE)
        if not await self._redis.llen(self._queue.key):  # a cheap look: RQ's own takes a thread and several trips
            return 0
        asked_by = await asyncio.to_thread(self._take)
        if asked_by is None:
            return 0
        run = await run_retention(self._config, self._clock, self._db, self._redis, asked_by=asked_by)
        return 0 if run is None else sum(run.rows.values())

    def _take(self) -> str | None:
        """Who asked for the next run; None where nobody has. What can't be read is thrown away."""
        connection = self._queue.connection
        try:
            found = Queue.dequeue_any(
                [self._queue], None, connection, job_class=RetentionJob, serializer=JSONSerializer
            )
        except (ValueError, TypeError, KeyError) as error:
            emit(log, logging.ERROR, "rq_job_unreadable", error=error)
            return None
        if found is None:
            return None
        job = found[0]
        try:
            return str(job.args[0])[:200] if job.func is retain else None
        except (ValueError, TypeError, LookupError) as error:
            emit(log, logging.ERROR, "rq_job_unreadable", error=error)
            return None
        finally:
            connection.delete(RetentionJob.key_for(job.id))
            connection.lrem(self._queue.intermediate_queue_key, 0, job.id)
