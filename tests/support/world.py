"""A database in which every page of the dashboard has something to show: jobs in all states, letters, webhooks, a batch, workers."""

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import new_id
from app.jobs import store
from app.jobs.cancel import cancel
from app.jobs.submit import nominate
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from app.webhooks.endpoints import create_endpoint
from app.webhooks.wanted import EndpointWanted
from tests.support.dead import kill, succeed
from tests.support.jobs import POOL, nominations, open_lease, seed, submit
from tests.support.webhooks import notify

EVIL = "<script>alert('x')</script>"
OOM = {"reason": "the engine's process died with exit status -9", "log_tail": "Out of memory at 0x7f\n", "code": EVIL}


@dataclass
class World:
    """What is there, by name."""

    engine: AsyncEngine
    queue: JobQueue
    jobs: dict[str, UUID] = field(default_factory=dict)
    dead: list[UUID] = field(default_factory=list)  # two of one kind, then one of another
    worker: UUID = field(default_factory=new_id)
    past_worker: UUID = field(default_factory=new_id)
    endpoint: UUID = field(default_factory=new_id)
    delivery: UUID = field(default_factory=new_id)
    batch: UUID = field(default_factory=new_id)

    async def value(self, query: str, **values: object) -> object:
        """The one value that a query gives."""
        async with self.engine.connect() as conn:
            return await conn.scalar(text(query), values)

    async def acts(self) -> list[tuple[str, str, str]]:
        """Actor, action and target of all acts but log-ins and the making of operators, oldest first."""
        async with self.engine.connect() as conn:
            rows = await conn.execute(
                text("SELECT actor, action, target FROM audit_log WHERE action NOT LIKE 'operator.%' ORDER BY id")
            )
            return [(row.actor, row.action, row.target) for row in rows]


async def make_world(engine: AsyncEngine, redis: Redis, settings: Settings) -> World:
    """All of it; the queue knows what waits."""
    await seed(engine, "acme", "rival")
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    world = World(engine, queue)
    await _jobs(world, settings)
    await _webhooks(world)
    await _batch(world)
    return world


async def _jobs(world: World, settings: Settings) -> None:
    engine, queue = world.engine, world.queue
    async with engine.begin() as conn:
        world.worker = await open_lease(conn, ttl_s=3600)
        world.past_worker = await open_lease(conn, ttl_s=3600)
        await conn.execute(
            text("UPDATE workers SET state = 'lost', ended_at = now() WHERE incarnation = :id"),
            {"id": world.past_worker},
        )
        stats = (
            '{"jobs": 1, "running": 1, "waiting": 0, "kv_blocks_used": 30, "kv_blocks_total": 120, "preemptions": 2, '
            '"served_tokens_per_s": 812.5, "generated_tokens": 123456}'
        )
        await conn.execute(text("UPDATE workers SET stats = :stats, device = :evil"), {"stats": stats, "evil": EVIL})
    (done,) = await submit(engine, settings, metadata={"team": EVIL}, webhook={"url": "https://example.com/hook?key=1"})
    await succeed(engine, done.job_id)
    (running,) = await submit(engine, settings, tenant="rival")
    async with engine.begin() as conn:
        assert len(await store.start(conn, world.worker, nominations([running]))) == 1
    (stopped,) = await submit(engine, settings)
    async with engine.begin() as conn:
        await cancel(conn, "acme", stopped.job_id)
    world.dead = await kill(engine, await submit(engine, settings, count=2))
    world.dead += await kill(engine, await submit(engine, settings, tenant="rival"), detail=OOM)
    (waiting,) = await submit(engine, settings, tier="batch")
    assert await nominate(queue, [waiting])
    (held,) = await submit(engine, settings)
    async with engine.begin() as conn:
        budget = "INSERT INTO budgets (id, tenant_id, metric, period, hard_limit) VALUES (:id, 'acme', 'requests', 'day', 1000)"
        values = {"id": new_id(), "job": held.job_id}
        await conn.execute(text(budget), values)
        await conn.execute(
            text(
                "UPDATE jobs SET reservation = 0, held_by = :id, on_budget = 'wait', not_before = now() + interval '1 h' "
                "WHERE id = :job"
            ),
            values,
        )
    world.jobs = {
        "succeeded": done.job_id, "running": running.job_id, "cancelled": stopped.job_id, "queued": waiting.job_id,
        "held": held.job_id,
    }  # fmt: skip


async def _webhooks(world: World) -> None:
    async with world.engine.begin() as conn:
        wanted = EndpointWanted(url="https://hooks.example.com/in?token=secret", description=EVIL)
        world.endpoint = (await create_endpoint(conn, "acme", wanted)).endpoint.id
    await notify(world.engine, "https://example.com/a", "https://example.com/b")
    async with world.engine.begin() as conn:
        find = "SELECT id FROM webhook_deliveries WHERE endpoint_id = :id ORDER BY id LIMIT 1"
        found = await conn.scalar(text(find), {"id": world.endpoint})
        assert isinstance(found, UUID)
        world.delivery = found
        values = {"id": found, "evil": EVIL}
        await conn.execute(
            text(
                "UPDATE webhook_deliveries SET status = 'failed', tries = 1, error = '500', ended_at = now() WHERE id = :id"
            ),
            values,
        )
        await conn.execute(
            text(
                "INSERT INTO webhook_tries (delivery_id, number, http_status, error, duration_ms, excerpt) "
                "VALUES (:id, 1, 500, '500: the endpoint didn''t accept it', 120, :evil)"
            ),
            values,
        )


async def _batch(world: World) -> None:
    world.batch = new_id()
    async with world.engine.begin() as conn:
        await conn.execute(
            text("""
                INSERT INTO batches (id, tenant_id, endpoint, input_file_id, tier, completion_window, metadata, status, total,
                    completed, failed, lines_per_s, expires_at, in_progress_at)
                VALUES (:id, 'acme', '/v1/chat/completions', :id, 'batch', '24h', CAST(:metadata AS jsonb), 'in_progress', 100,
                    40, 3, 2.5, now() + interval '1 day', now())
            """),
            {"id": world.batch, "metadata": '{"name": "<script>alert(1)</script>"}'},
        )
