"""What do tests of batches need? Lines, uploads, a keeper that is moved by hand, a worker that ends what waits."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import new_id
from app.jobs import leases, store
from app.jobs.finish import Ending, Used, finish
from app.jobs.leases import Incarnation
from app.queue.streams import JobQueue, Nomination
from workers.maintenance.batches import BatchKeeper

CHAT = "/v1/chat/completions"


def chat_line(custom_id: str, content: str = "Hello", **body: Any) -> dict[str, Any]:
    """A line for chat."""
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8} | body
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def jsonl(lines: Sequence[Any]) -> bytes:
    """The file of these lines."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


async def upload(client: httpx.AsyncClient, content: bytes, *, purpose: str = "batch") -> dict[str, Any]:
    """The file object of what was uploaded."""
    answer = await client.post("/v1/files", data={"purpose": purpose}, files={"file": ("in.jsonl", content)})
    assert answer.status_code == 200, answer.text
    file: dict[str, Any] = answer.json()
    return file


async def make_batch(
    client: httpx.AsyncClient, lines: Sequence[Any], *, endpoint: str = CHAT, **options: Any
) -> dict[str, Any]:
    """The batch object of these lines, not validated yet."""
    file = await upload(client, jsonl(lines))
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"} | options
    answer = await client.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    batch: dict[str, Any] = answer.json()
    return batch


async def read_batch(client: httpx.AsyncClient, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as it is now."""
    answer = await client.get(f"/v1/batches/{batch['id']}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def read_lines(client: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    """The lines of a file."""
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.content.splitlines()]


@dataclass
class Bench:
    """A keeper of batches and a worker of the pool, both moved by hand."""

    engine: AsyncEngine
    keeper: BatchKeeper
    queue: JobQueue
    incarnation: UUID | None = None

    async def keep(self, times: int = 1) -> None:
        """So many steps of the keeper, whatever rest a step has asked for."""
        for _ in range(times):
            async with self.engine.begin() as conn:
                await conn.execute(text("UPDATE batches SET due_at = statement_timestamp() - interval '1 second'"))
            await self.keeper.step()

    async def start(self, most: int = 1000) -> list[store.StartedJob]:
        """Claim and start what is nominated, in the order of the queue."""
        async with self.engine.begin() as conn:
            if self.incarnation is None:
                self.incarnation = new_id()
                pool = self.queue.keys.pool
                await leases.register(conn, Incarnation(self.incarnation, pool, pool, "host", 1, "cpu", "h"), ttl_s=600)
            claimed: list[Nomination] = await self.queue.claim("test", max_jobs=most, room=10**9)
            started = await store.start(conn, self.incarnation, claimed)
        await self.queue.ack([(each.job_id, each.gen) for each in claimed])
        return started

    async def work(self, most: int = 1000, ending: Callable[[UUID], dict[str, Any]] | None = None) -> int:
        """Start and end what is nominated; return how many."""
        started = await self.start(most)
        endings = [await self._ending(each, ending) for each in started]
        async with self.engine.begin() as conn:
            return len(await finish(conn, endings))

    async def _ending(self, job: store.StartedJob, ending: Callable[[UUID], dict[str, Any]] | None) -> Ending:
        choices = [{"index": 0, "text": f"answer to {job.job_id.hex}", "finish_reason": "stop"}]
        usual: dict[str, Any] = {"status": "succeeded", "choices": choices, "used": Used(5, 1, 3)}
        return Ending(job.job_id, job.attempt, **(usual | (ending(job.job_id) if ending else {})))

    async def run(self, client: httpx.AsyncClient, batch: dict[str, Any], *, steps: int = 60) -> dict[str, Any]:
        """Keep and work until the batch has ended."""
        for _ in range(steps):
            await self.keep()
            await self.work()
            found = await read_batch(client, batch)
            if found["status"] in {"completed", "failed", "expired", "cancelled"}:
                return found
        raise AssertionError(f"it hasn't ended: {found}")
