"""Who moves batches on? A loop that takes whichever is due, some at a time; any number of processes may run it, there is no leader."""

import asyncio
import json
import logging
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.batches import end as ending
from app.batches.collect import collect
from app.batches.pump import Pump
from app.batches.retier import retier
from app.batches.store import COLUMNS, Batch, batch_name
from app.batches.validate import validate
from app.clock import Clock
from app.files.store import forget_files
from app.jobs.breakers import BreakerBoard
from app.jobs.models import ModelCatalog
from app.jobs.submit import nominate_all
from app.queue.events import announce_cancel, announce_end
from app.queue.streams import JobQueue
from app.redis import Redis, RedisError
from app.settings import Settings
from app.telemetry import emit
from workers.maintenance.outlook import Outlook

log = logging.getLogger(__name__)

_AT_ONCE = 4  # batches that one process works on at the same time
_LEASE_S = 10.0  # how long a batch rests whose process died in the middle; to work on one twice at once is harmless
_BROKEN_S = 30.0  # how long one rests that can't be moved on for an error of ours
_IDLE_UPLOAD_S = 3600.0
_PAGE = 100

_TAKE = text(f"""
    UPDATE batches SET due_at = statement_timestamp() + make_interval(secs => :lease)
    WHERE id = (SELECT id FROM batches
        WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') AND due_at <= statement_timestamp()
        ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING {", ".join(column.name for column in COLUMNS)}
""")  # noqa: S608 - our own names
_REST = text("""
    UPDATE batches SET
        due_at = statement_timestamp() + make_interval(secs => CASE WHEN status = :status THEN CAST(:seconds AS float8) ELSE 0 END),
        waiting_for = CASE WHEN status = :status THEN CAST(:waiting AS jsonb) ELSE waiting_for END
    WHERE id = :batch
""")


@dataclass(frozen=True, slots=True)
class Moved:
    """What one step did, and when the next one is due."""

    count: int = 0
    rest_s: float = 0.0
    waiting_for: dict[str, object] | None = None


class BatchKeeper:
    """Validates batches, submits their lines, collects results, ends them. Each public coroutine is one act, so that tests can call it."""

    def __init__(self, settings: Settings, clock: Clock, db: AsyncEngine, redis: Redis) -> None:
        self._settings = settings
        self._db = db
        self._redis = redis
        self._catalog = ModelCatalog(db, clock=clock)
        breakers = BreakerBoard(db, clock=clock, timeout_s=settings.database_timeout_s)
        self._pump = Pump(db, self._catalog, breakers, settings)
        self._queues: dict[str, JobQueue] = {}
        self._working: dict[UUID, asyncio.Task[None]] = {}

    async def run(self, outlook: Outlook) -> None:
        """Move batches on, as they are due, until cancelled."""
        try:
            while True:
                if not await self._fill():
                    await self._pause(outlook)
        finally:
            for task in self._working.values():
                task.cancel()
            await asyncio.gather(*self._working.values(), return_exceptions=True)

    async def step(self) -> bool:
        """Take the batch that is due longest and move it on once; return whether there was one."""
        batch = await self._take()
        if batch is None:
            return False
        await self._work(batch)
        return True

    async def forget(self) -> int:
        """Delete files past their time, and uploads that nobody goes on with."""
        async with self._db.begin() as conn:
            return await forget_files(conn, idle_s=_IDLE_UPLOAD_S, most=_PAGE)

    async def _fill(self) -> bool:
        """Take on as many as are due and may be worked on; return whether there may be more."""
        if len(self._working) >= _AT_ONCE:
            await asyncio.wait(self._working.values(), return_when=asyncio.FIRST_COMPLETED)
        try:
            batch = await self._take()
        except SQLAlchemyError as error:
            emit(log, logging.WARNING, "round_failed", round="batches", error=error)
            await asyncio.sleep(1.0)
            return False
        if batch is None or batch.id in self._working:
            return False
        task = asyncio.create_task(self._work(batch))
        self._working[batch.id] = task
        task.add_done_callback(lambda _: self._working.pop(batch.id, None))
        return True

    async def _pause(self, outlook: Outlook) -> None:
        """Until something may be due: a while, or a step's end."""
        if self._working:
            every_s = self._settings.batch_every_s
            await asyncio.wait(self._working.values(), timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await outlook.until_due("batches")

    async def _take(self) -> Batch | None:
        async with self._db.begin() as conn:
            row = (await conn.execute(_TAKE, {"lease": _LEASE_S})).one_or_none()
        return None if row is None else Batch(*row)

    async def _work(self, batch: Batch) -> None:
        """One step of one batch; what goes wrong with it stays with it."""
        try:
            moved = await self._move(batch)
        except (SQLAlchemyError, RedisError, OSError) as error:  # it is due again when its lease is over
            emit(log, logging.WARNING, "round_failed", round="batches", batch=batch_name(batch.id), error=error)
            return
        except Exception as error:  # noqa: BLE001 - the edge of one batch: the others go on
            emit(log, logging.ERROR, "batch_broken", batch=batch_name(batch.id), error=error)
            moved = Moved(0, _BROKEN_S)
        await self._rest(batch, moved)

    async def _rest(self, batch: Batch, moved: Moved) -> None:
        waiting = None if moved.waiting_for is None else json.dumps(moved.waiting_for)
        values = {"seconds": moved.rest_s, "waiting": waiting, "batch": batch.id, "status": batch.status}
        try:
            async with self._db.begin() as conn:
                await conn.execute(_REST, values)
        except SQLAlchemyError as error:
            emit(log, logging.WARNING, "round_failed", round="batches", batch=batch_name(batch.id), error=error)

    async def _move(self, batch: Batch) -> Moved:
        pause_s = self._settings.batch_every_s
        if batch.status == "validating":
            if await ending.expire_unread(self._db, batch):
                return Moved(1)
            decided = await validate(self._db, self._catalog, self._settings, batch)
            return Moved(int(decided))
        if batch.status == "in_progress":
            return await self._progress(batch, pause_s)
        stopped = await ending.stop(self._db, batch)
        await self._spread(stopped)
        count = await collect(self._db, batch.id)
        if await ending.end(self._db, batch, file_ttl_s=self._settings.file_ttl_s):
            emit(log, logging.INFO, "batch_ended", batch=batch_name(batch.id))
            return Moved(1)
        return Moved(count, 0.0 if count or len(stopped) else pause_s)

    async def _progress(self, batch: Batch, pause_s: float) -> Moved:
        if await ending.begin_end(self._db, batch):
            return Moved(1)
        await retier(self._db, batch, self._queue)
        # Side by side: the preparation of lines takes longer than all else, and needs no database.
        collecting = asyncio.create_task(collect(self._db, batch.id))
        try:
            pumped = await self._pump.submit(batch, lambda accepted: nominate_all(self._queue, accepted))
        finally:
            # Whatever becomes of the other one: a step that is over, or was stopped, leaves nothing behind, and no error unseen.
            await asyncio.gather(collecting, return_exceptions=True)
        count = collecting.result()
        if count or pumped.accepted or pumped.num_failed:
            return Moved(count + len(pumped.accepted), 0.0, pumped.waiting_for)
        return Moved(0, max(pause_s, pumped.retry_s), pumped.waiting_for)

    async def _spread(self, stopped: ending.Stopped) -> None:
        """Tell Redis, after the commit. Best effort: a stale nomination is dropped at its claim, a worker asks at its renewal."""
        try:
            for pool, ended in stopped.ended.items():
                await self._queue(pool).ack(ended)
                await announce_end(self._redis, [(job_id, "cancelled") for job_id, _ in ended])
            if stopped.asked:
                await announce_cancel(self._redis, stopped.asked)
        except RedisError as error:
            emit(log, logging.WARNING, "round_failed", round="batches", error=error)

    def _queue(self, pool: str) -> JobQueue:
        if pool not in self._queues:
            self._queues[pool] = JobQueue(self._redis, pool)
        return self._queues[pool]
