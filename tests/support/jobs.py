"""A model, a tenant and jobs for tests that need no API and no worker."""

import socket
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.ids import new_id
from app.jobs import leases, store
from app.jobs.idempotency import IdempotencyKey
from app.jobs.leases import Incarnation
from app.jobs.models import Model, TokenizerFiles, register_model
from app.jobs.prepare import PreparedJob, prepare
from app.jobs.request import JobRequest
from app.jobs.submit import Accepted, Caller, accept, nominate
from app.jobs.tokenizing import PromptEncoder, tokenizer_digest
from app.queue.streams import JobQueue
from app.quotas.keys import ensure_tenant
from app.settings import Settings
from workers.engine.tokenizer import byte_bundle
from workers.generation.context import WorkerContext

POOL = "tiny"
BUNDLE = byte_bundle(512)
FILES = TokenizerFiles(
    tokenizer_digest(BUNDLE.tokenizer_json.encode(), BUNDLE.chat_template),
    BUNDLE.tokenizer_json.encode(),
    BUNDLE.chat_template,
    BUNDLE.special_tokens,
)
MODEL = Model(POOL, POOL, FILES.hash, "model-hash", 1024, 512)
ENCODER = PromptEncoder(FILES.tokenizer_json, FILES.chat_template, FILES.special_tokens)


async def seed(engine: AsyncEngine, *tenants: str) -> None:
    """The model and the tenants (one called `acme` where none is named)."""
    async with engine.begin() as conn:
        await register_model(conn, MODEL, FILES)
        for tenant in tenants or ("acme",):
            await ensure_tenant(conn, tenant)


def prepared(settings: Settings, **body: object) -> PreparedJob:
    """A checked request; a short prompt where the test doesn't say."""
    body.setdefault("prompt", "once upon a time")
    body.setdefault("max_tokens", 8)
    return prepare(JobRequest.model_validate(body), MODEL, ENCODER, settings)


def key_of(key: str, job: PreparedJob) -> IdempotencyKey:
    """An Idempotency-Key that comes with this job."""
    return IdempotencyKey.of_one(key, job.request)


async def submit(
    engine: AsyncEngine, settings: Settings, *, tenant: str = "acme", count: int = 1, **body: object
) -> list[Accepted]:
    """Committed, queued jobs that Redis doesn't know yet."""
    async with engine.begin() as conn:
        return await accept(conn, Caller(tenant, None), [prepared(settings, **body) for _ in range(count)])


async def submit_and_nominate(
    engine: AsyncEngine, settings: Settings, queue: JobQueue, count: int, **body: object
) -> list[UUID]:
    """Committed, queued jobs that Redis knows."""
    accepted = await submit(engine, settings, count=count, **body)
    assert await nominate(queue, accepted)
    return [each.job_id for each in accepted]


async def open_lease(conn: AsyncConnection, *, ttl_s: float = 15.0, pool: str = POOL) -> UUID:
    """A live worker incarnation."""
    incarnation = new_id()
    await leases.register(
        conn, Incarnation(incarnation, pool, pool, socket.gethostname(), 1, "cpu", "model-hash"), ttl_s=ttl_s
    )
    return incarnation


def nominations(accepted: Sequence[Accepted]) -> list:
    """What would be enqueued for these jobs."""
    return [each.nomination for each in accepted]


async def start_under(worker: WorkerContext, settings: Settings, **body: object) -> list[store.StartedJob]:
    """Submit a job and start it under this worker's incarnation."""
    accepted = await submit(worker.db, settings, **body)
    async with worker.db.begin() as conn:
        return await store.start(conn, worker.incarnation, nominations(accepted))
