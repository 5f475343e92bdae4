"""What do tests of the API need? A model of bytes, tenants with keys, an app with its lifespan run, a worker's acts done by hand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from app.ids import new_id, parse_job_name
from app.jobs import store
from app.jobs.finish import Ending, Used, finish
from app.jobs.leases import Incarnation, register
from app.jobs.models import Model, TokenizerFiles, register_model
from app.jobs.tokenizing import tokenizer_digest
from app.queue.events import announce_end
from app.queue.streams import Nomination
from app.quotas.keys import create_key, ensure_tenant
from app.redis import Redis
from app.settings import Settings

LONG = {"Prefer": "wait=50"}  # longer than a test may take
MODEL = "bytes"
MAX_MODEL_LEN = 4096
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def tokenizer_of_bytes() -> TokenizerFiles:
    """One token a byte, so that a test can count by looking."""
    tokenizer = Tokenizer(BPE({char: place for place, char in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    content = tokenizer.to_str().encode()
    return TokenizerFiles(tokenizer_digest(content, TEMPLATE), content, TEMPLATE, {})


async def register_bytes(engine: AsyncEngine, *, name: str = MODEL, max_model_len: int = MAX_MODEL_LEN) -> Model:
    files = tokenizer_of_bytes()
    model = Model(name, name, files.hash, "hash-of-weights", max_model_len, 256)
    async with engine.begin() as conn:
        await register_model(conn, model, files)
    return model


@dataclass
class Tenant:
    """A tenant with a key for everything."""

    name: str
    token: str

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


async def make_tenant(engine: AsyncEngine, settings: Settings, name: str, **options: Any) -> Tenant:
    async with engine.begin() as conn:
        await ensure_tenant(conn, name)
        pepper = settings.key_pepper.get_secret_value()
        _, token = await create_key(conn, name, pepper=pepper, actor="test", **options)
    return Tenant(name, token)


@asynccontextmanager
async def running(app: FastAPI, headers: dict[str, str] | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app between its start and its end. An exception that became a 500 is raised in the test."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers, timeout=60) as client,
    ):
        yield client


def job_id_of(job: dict[str, Any]) -> UUID:
    job_id = parse_job_name(job["id"])
    assert job_id is not None
    return job_id


@dataclass
class HandWorker:
    """Does by hand what a worker does to rows: starts and finishes jobs."""

    engine: AsyncEngine
    redis: Redis
    pool: str
    incarnation: UUID = field(default_factory=new_id)
    registered: bool = False

    async def start(self, job: dict[str, Any]) -> store.StartedJob:
        async with self.engine.begin() as conn:
            if not self.registered:
                await register(
                    conn, Incarnation(self.incarnation, self.pool, MODEL, "host", 1, "cpu", "hash"), ttl_s=600
                )
                self.registered = True
            nomination = Nomination(job_id_of(job), 1, job["tier"], "acme", 1)
            (started,) = await store.start(conn, self.incarnation, [nomination])
        return started

    async def finish(self, job: dict[str, Any], *, announce: bool = True, **ending: Any) -> None:
        started = await self.start(job) if job["status"] == "queued" else None
        ending = {
            "status": "succeeded",
            "choices": [{"index": 0, "text": " there was", "finish_reason": "stop"}],
            "used": Used(prompt_tokens=job["usage"]["prompt_tokens"], cached_tokens=2, completion_tokens=7),
        } | ending
        async with self.engine.begin() as conn:
            ended = await finish(conn, [Ending(job_id_of(job), started.attempt if started else 1, **ending)])
        assert ended == {job_id_of(job)}
        if announce:
            await announce_end(self.redis, [(job_id_of(job), ending["status"])])


Submit = Callable[..., Awaitable[dict[str, Any]]]


def assert_problem(answer: httpx.Response, status: int, code: str, *said: str) -> dict[str, Any]:
    """The answer is a whole problem document with this status and code, whose detail says these words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["type"] == f"/errors/{code}"
    assert isinstance(body["retryable"], bool)
    assert body["title"]
    for words in said:
        assert words in body["detail"], body["detail"]
    assert len(answer.content) < 10_000
    assert "NaN" not in answer.text
    return body


async def until(condition: Callable[[], bool]) -> None:
    """Return when something in this process has come true that no event tells of."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def until_seated(app: FastAPI, count: int = 1) -> None:
    """Return when so many requests wait for a job's end."""
    await until(lambda: app.state.runtime.watch.num_seated >= count)
