"""Does a batch hold only so much in memory at a time, and does none outlive its window?"""

from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.batches import collect as collecting
from app.batches import pump as pumping
from app.batches.store import batch_id_of
from app.clock import SystemClock
from app.files.store import Span, read_spans
from app.jobs.models import Model
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.batches import Bench, chat_line, make_batch, read_batch
from workers.maintenance.batches import BatchKeeper

MIB = 2**20


@pytest.fixture
def bench(engine: AsyncEngine, redis: Redis, settings: Settings, model: Model, epoch: JobQueue) -> Bench:
    return Bench(engine, BatchKeeper(settings, SystemClock(), engine, redis), epoch)


async def test_results_are_collected_by_their_bytes_however_few_tokens_they_have(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine, redis: Redis
) -> None:
    """Eight tokens with logprobs may be larger than a million without."""
    batch = await make_batch(client, [chat_line(f"c{n}", logprobs=True) for n in range(4)])
    await bench.keep(2)
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    size = len(str(entry))
    logprobs = {"content": [entry] * (collecting.MOST_BYTES // size * 3 // 4)}
    choices = [{"index": 0, "text": "a", "finish_reason": "stop", "logprobs": logprobs}]
    assert await bench.work(ending=lambda _: {"choices": choices}) == 4
    found = [await collecting.collect(engine, batch_id_of(batch["id"])) for _ in range(3)]
    assert found == [2, 2, 0], "one more than what is held at most"
    assert (await bench.run(client, batch))["request_counts"]["completed"] == 4
    await assert_audit_clean(engine, redis)


async def test_lines_are_submitted_by_their_bytes(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    async def watched(conn: Any, file_id: Any, spans: Sequence[Span]) -> dict[int, bytes]:
        held.append(sum(each.length for each in spans))
        return await read_spans(conn, file_id, spans)

    monkeypatch.setattr(pumping, "read_spans", watched)
    num = 2 * pumping.MOST_BYTES // MIB + 2
    batch = await make_batch(client, [chat_line(f"c{n}", "word " * (MIB // 5)) for n in range(num)])
    done = await bench.run(client, batch)
    assert (done["status"], done["request_counts"]["failed"]) == ("completed", num), "no model holds so long a prompt"
    assert len(held) >= 2
    assert max(held) < pumping.MOST_BYTES + 2 * MIB
    await assert_audit_clean(engine, redis)


async def test_a_batch_whose_time_is_over_before_its_lines_were_looked_at_expires(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often its validation breaks, it doesn't stay `validating`."""
    batch = await make_batch(client, [chat_line("c")])

    async def breaks(*_: object) -> None:
        raise RuntimeError("validation broke")

    monkeypatch.setattr("app.batches.validate._decide", breaks)
    await bench.keep(2)
    assert (await read_batch(client, batch))["status"] == "validating"
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE batches SET expires_at = statement_timestamp()"))
    await bench.keep()
    after = await read_batch(client, batch)
    assert (after["status"], after["request_counts"]["total"]) == ("expired", 0)
    assert after["expired_at"] is not None
    assert after["errors"]["data"][0]["code"] == "batch_expired"
    await assert_audit_clean(engine, redis)
