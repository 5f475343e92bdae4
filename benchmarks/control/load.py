"""What is asked of the control plane? Submissions one by one and in bulk, whole lives with an engine that costs nothing, latencies."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.ids import parse_job_name
from app.queue.keys import events_key
from app.redis import create_redis
from benchmarks.control.client import Client
from benchmarks.control.stack import MODEL, ControlStack, now

_BULK = 1000
_PROMPT = "tell me, in a few words, of the river and the mill"
_SAMPLE = 100  # results that are read over HTTP, of those that have ended


def body(max_tokens: int, **more: Any) -> dict[str, Any]:
    """A small job."""
    return {"model": MODEL, "prompt": _PROMPT, "max_tokens": max_tokens, "tier": "standard"} | more


async def one_by_one(client: Client, jobs: int, clients: int) -> float:
    """Durable submissions a second, each a request of its own, so many at once."""
    sent, left = json.dumps(body(1)).encode(), iter(range(jobs))

    async def go_on() -> None:
        for _ in left:
            await client.post("/v1/jobs", sent)

    await _at_once(go_on, clients)  # connections open, code warm
    left = iter(range(jobs))
    start = now()
    await _at_once(go_on, clients)
    return jobs / (now() - start)


async def in_bulk(client: Client, jobs: int, clients: int) -> float:
    """Durable submissions a second, 1,000 a request, so many requests at once."""
    calls = list(_bulks(jobs))
    await client.post("/v1/jobs/bulk", calls[0])
    left = iter(calls)

    async def go_on() -> None:
        for each in left:
            await client.post("/v1/jobs/bulk", each)

    start = now()
    await _at_once(go_on, clients)
    return jobs / (now() - start)


async def end_to_end(stack: ControlStack, client: Client, jobs: int, clients: int) -> float:
    """Jobs a second from the first byte of a bulk submission to the moment when all results can be read."""
    await in_bulk(client, _BULK, 1)  # warm
    await stack.until_all_ended()
    names: list[str] = []
    left = _bulks(jobs)

    async def go_on() -> None:
        for each in left:
            names.extend(json.loads(await client.post("/v1/jobs/bulk", each))["job_ids"])

    start = now()
    await _at_once(go_on, clients)
    await stack.until_all_ended()
    took_s = now() - start
    for name in Random(1).sample(names, min(_SAMPLE, len(names))):
        job = await client.get(f"/v1/jobs/{name}")
        assert job["status"] == "succeeded", job
        assert job["choices"], job
    return jobs / took_s


async def submit_latencies(client: Client, rate: float, seconds: float) -> list[float]:
    """Seconds from the moment when each request was due to its answer, at so many a second, whatever comes back when."""
    sent = json.dumps(body(1)).encode()

    async def submit(due: float) -> float:
        await client.post("/v1/jobs", sent)
        return now() - due

    return await _at_a_rate(submit, rate, seconds)


async def first_tokens(
    stack: ControlStack, client: Client, rate: float, seconds: float, *, tier: str = "standard"
) -> list[float]:
    """Seconds from the submission to its first token in the job's event stream, as a reader that is there at once sees it."""
    sent = json.dumps(body(4, tier=tier)).encode()
    async with create_redis(stack.config) as redis:

        async def submit(due: float) -> float:
            job_id = parse_job_name(json.loads(await client.post("/v1/jobs", sent))["id"])
            assert job_id is not None
            last = "0-0"
            while True:
                found: Any = await redis.xread({events_key(job_id): last}, block=4000)
                for _, entries in found:
                    for entry_id, fields in entries:
                        last = entry_id
                        if json.loads(fields[b"d"]).get("deltas"):
                            return now() - due

        return await _at_a_rate(submit, rate, seconds)


async def webhook_delays(stack: ControlStack, client: Client, rate: float, seconds: float) -> list[float]:
    """Seconds from a job's end in Postgres to the arrival of its webhook."""
    async with _receiver() as (url, arrived):
        names: list[UUID] = []
        sent = json.dumps(body(1, webhook={"url": url})).encode()

        async def submit(due: float) -> float:
            job_id = parse_job_name(json.loads(await client.post("/v1/jobs", sent))["id"])
            assert job_id is not None
            names.append(job_id)
            return now() - due

        await _at_a_rate(submit, rate, seconds)
        async with asyncio.timeout(120):
            while len(arrived) < len(names):  # noqa: ASYNC110 - filled by the receiver's connections
                await asyncio.sleep(0.05)
        async with stack.db.connect() as conn:
            rows = await conn.execute(text("SELECT id, finished_at FROM jobs WHERE id = ANY(:ids)"), {"ids": names})
            return [(arrived[row.id] - row.finished_at).total_seconds() for row in rows]


def _bulks(jobs: int) -> Iterator[bytes]:
    for start in range(0, jobs, _BULK):
        count = min(_BULK, jobs - start)
        yield json.dumps({"jobs": [body(1, seed=start + number) for number in range(count)]}).encode()


async def _at_once(act: Any, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(act())


async def _at_a_rate(act: Any, rate: float, seconds: float) -> list[float]:
    """What each call gives, begun at its time on an even grid; the first second doesn't count."""
    warm, count = int(rate), int(rate * (seconds + 1))
    tasks, start = [], now()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - now()))
            tasks.append(group.create_task(act(due)))
    return [task.result() for task in tasks[warm:]]


@asynccontextmanager
async def _receiver() -> AsyncIterator[tuple[str, dict[UUID, datetime]]]:
    """Somebody who takes webhooks: when each job's first came."""
    arrived: dict[UUID, datetime] = {}

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                said = json.loads(await reader.readexactly(length))
                job_id = parse_job_name(said["data"]["id"])
                if job_id is not None:
                    arrived.setdefault(job_id, datetime.now(UTC))
                writer.write(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/hook", arrived


def summary(values: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    from benchmarks.peers.task import percentile

    return {"p50_ms": percentile(list(values), 50) * 1000, "p99_ms": percentile(list(values), 99) * 1000}
