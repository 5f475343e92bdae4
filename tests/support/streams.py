"""What do tests of streams need? A worker's writing done by hand, and a reader that remembers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa
import uvicorn
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import ApiServer, create_app
from app.api.runtime import Runtime
from app.jobs.finish import Ending, finish
from app.jobs.notices import Used
from app.queue.events import ChoiceDelta, EventLog, JobEvent, Publication, TokenLogprob
from app.queue.traces import Step, Trace
from app.settings import Settings
from app.streams import Hub
from tests.support.api import Tenant, until


@dataclass
class Writer:
    """Writes one attempt of a job: one token a character, so that a test can count by looking."""

    log: EventLog
    job_id: UUID
    n: int = 1
    attempt: int = 1
    run: int = 1
    with_logprobs: bool = False  # each token's is minus its place, from 1
    texts: list[str] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.texts = self.texts or [""] * self.n
        self.reasons = self.reasons or [None] * self.n

    @property
    def seq(self) -> int:
        return sum(map(len, self.texts))

    async def start(self) -> None:
        kind = "restarted" if self.run == self.attempt > 1 else "started"
        event = JobEvent(kind=kind, attempt=self.attempt, made_by="us")
        await self.log.publish([Publication(self.job_id, self.seq, event, self.run)])

    def deltas(self, *new: str, reasons: dict[int, str] | None = None) -> list[ChoiceDelta]:
        """What is new, by choice; they count as told."""
        deltas = []
        for choice, text in enumerate(new):
            reason = (reasons or {}).get(choice)
            if not text and reason is None:
                continue
            before = self.texts[choice]
            ids = [ord(letter) for letter in text]
            deltas.append(
                ChoiceDelta(
                    choice=choice,
                    offset=len(before),
                    token_ids=ids,
                    text=text,
                    text_offset=len(before),
                    finish_reason=reason,
                    logprobs=self._logprobs(ids, len(before)),
                )
            )
            self.texts[choice] += text
            self.reasons[choice] = self.reasons[choice] or reason
            self.steps.append(Step(choice, len(text), len(text), reason is not None))
        return deltas

    def _logprobs(self, ids: list[int], offset: int) -> list[TokenLogprob]:
        if not self.with_logprobs:
            return []
        return [TokenLogprob(-place, [token], [-place]) for place, token in enumerate(ids, offset + 1)]

    async def write(self, *new: str, reasons: dict[int, str] | None = None) -> None:
        event = JobEvent(kind="tokens", attempt=self.attempt, deltas=self.deltas(*new, reasons=reasons))
        await self.log.publish([Publication(self.job_id, self.seq, event, self.run)])

    async def end(self, *new: str, status: str = "succeeded", reasons: dict[int, str] | None = None) -> None:
        event = JobEvent(kind=status, attempt=self.attempt, deltas=self.deltas(*new, reasons=reasons))
        await self.log.publish([Publication(self.job_id, self.seq, event, self.run)])

    def result(self) -> dict[str, Any]:
        """Fields of an `Ending`."""
        choices = [
            {"index": place, "text": text, "finish_reason": reason}
            for place, (text, reason) in enumerate(zip(self.texts, self.reasons, strict=True))
        ]
        ids = [[ord(letter) for letter in text] for text in self.texts]
        return {"choices": choices, "trace": Trace.of(self.run, self.steps, ids).pack()}


async def finished(engine: AsyncEngine, writer: Writer) -> None:
    """The end of the attempt that the writer is, in Postgres alone."""
    used = Used(4, 0, writer.seq)
    async with engine.begin() as conn:
        await conn.execute(
            sa.text("UPDATE jobs SET attempt = :attempt, gen = :attempt WHERE id = :id"),
            {"attempt": writer.attempt, "id": writer.job_id},
        )
        ending = Ending(writer.job_id, writer.attempt, "succeeded", used=used, **writer.result())
        assert await finish(conn, [ending]) == {writer.job_id}


@dataclass
class Heard:
    """What a reader has got so far."""

    events: list[dict[str, Any]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    @property
    def last_id(self) -> int:
        return self.events[-1]["id"] if self.events else 0

    @property
    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    def text(self, index: int = 0) -> str:
        """The text of a choice. Fails where the events have a gap or a repeat in it."""
        text, tokens, last = "", 0, 0
        for event in self.events:
            assert event["id"] > last, "ids grow"
            last = event["id"]
            if event["kind"] == "restarted":
                text, tokens = "", 0
            if event["kind"] == "tokens" and event["index"] == index:
                assert (event["offset"], event["text_offset"]) == (tokens, len(text)), "a gap or a repeat"
                text += event["text"]
                tokens += len(event["token_ids"])
        return text

    async def read(self, lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
        """Events as they come."""
        fields: dict[str, str] = {}
        async for line in lines:
            if line.startswith(":"):
                self.comments.append(line)
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                event = json.loads(fields["data"])
                assert str(event["id"]) == fields["id"]
                assert event["kind"] == fields["event"]
                self.events.append(event)
                yield event
                fields = {}


async def submitted(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """A job that waits."""
    answer = await client.post("/v1/jobs", json={"prompt": "Once", "max_tokens": 64} | body)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


@asynccontextmanager
async def watching(
    client: httpx.AsyncClient, job: dict[str, Any] | str, heard: Heard, **query: Any
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The job's events after what was heard, as they come."""
    name = job if isinstance(job, str) else job["id"]
    headers = {"Last-Event-ID": str(heard.last_id)} if heard.events else {}
    async with client.stream("GET", f"/v1/jobs/{name}/events", headers=headers, params=query) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["x-accel-buffering"] == "no"
        yield heard.read(answer.aiter_lines())


async def read_to_end(client: httpx.AsyncClient, job: dict[str, Any] | str, heard: Heard | None = None) -> Heard:
    """What is heard from there on until the stream ends."""
    heard = heard or Heard()
    async with watching(client, job, heard) as events:
        async for _ in events:
            pass
    return heard


@dataclass
class Served:
    """An API that listens on a port, in this process."""

    url: str
    runtime: Runtime

    @property
    def hub(self) -> Hub:
        return self.runtime.streams

    def client(self, tenant: Tenant) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=tenant.auth, timeout=30)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Served]:
    """Serve until the block ends, which cuts readers off as a restart does."""
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,  # a caller who reads nothing keeps its connection
    )
    server = ApiServer(config, app)
    sock = config.bind_socket()
    task = asyncio.create_task(server.serve([sock]))
    try:
        await until(lambda: server.started or task.done())
        yield Served(f"http://127.0.0.1:{sock.getsockname()[1]}", app.state.runtime)
    finally:
        server.should_exit = True
        await task
        sock.close()


async def until_followed(served: Served, topics: int = 1) -> None:
    """Return when so many jobs are followed."""
    await until(lambda: served.hub.num_topics == topics)
