"""Does the gate count a job that fell back where it really waits, and nowhere where it was refused?"""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api import submission
from app.api.runtime import Runtime
from app.jobs.breakers import Standing
from app.queue.streams import JobQueue
from tests.support.api import MODEL, register_bytes
from tests.support.budgets import add_budget

# 100 tokens, 84 of them output.
BODY: dict[str, Any] = {"prompt": [65] * 16, "max_tokens": 84, "tier": "interactive", "model": MODEL}


@pytest.fixture
async def loads(
    client: httpx.AsyncClient, runtime: Runtime, engine: AsyncEngine, epoch: JobQueue
) -> AsyncIterator[Any]:
    """The process's board, read once: from then on it knows what this process tells it."""
    await register_bytes(engine, name="spare")
    await JobQueue(runtime.redis, "spare").open_epoch("test")
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE models SET output_price = 1000000 WHERE name = :name"), {"name": MODEL})
    runtime.catalog._read_at = None
    runtime.loads.close()
    await runtime.loads.refresh()
    return runtime.loads


def counted(loads: Any) -> Counter[str]:
    """Tokens by pool that this process adds to the last figures."""
    found: Counter[str] = Counter()
    for each in loads._since():
        found[each.pool] += each.tokens
    return found


@pytest.mark.parametrize("named_by", ["request", "operator"])
async def test_a_job_that_a_budget_sent_to_the_fallback_counts_in_the_fallbacks_pool(
    client: httpx.AsyncClient, engine: AsyncEngine, loads: Any, named_by: str
) -> None:
    await add_budget(engine, 10, "cost")
    named = {"fallback_model": "spare"} if named_by == "request" else {}
    if named_by == "operator":
        async with engine.begin() as conn:
            await conn.execute(text("UPDATE models SET fallback = 'spare' WHERE name = :name"), {"name": MODEL})
    answer = await client.post("/v1/jobs", json=BODY | named | {"on_budget": "fallback"})
    assert (answer.status_code, answer.json()["model"]) == (202, "spare")
    assert counted(loads) == {"spare": 100}
    assert loads.own_tokens("spare", "interactive", "acme") == 100, "what its forecast counts from"
    assert not loads.on_its_way


async def test_while_the_fallback_takes_it_the_job_is_held_there_and_not_with_the_first_model(
    client: httpx.AsyncClient, engine: AsyncEngine, loads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, int]]] = []
    write = submission._write

    async def watched(runtime: Runtime, asked: Any, prepared: Any) -> Any:
        seen.append((prepared.model.name, dict(counted(loads))))
        return await write(runtime, asked, prepared)

    monkeypatch.setattr(submission, "_write", watched)
    await add_budget(engine, 10, "cost")
    await client.post("/v1/jobs", json=BODY | {"fallback_model": "spare", "on_budget": "fallback"})
    assert seen == [(MODEL, {MODEL: 100}), ("spare", {"spare": 100})]


async def test_a_job_that_lost_the_last_probe_counts_in_the_fallbacks_pool(
    client: httpx.AsyncClient, loads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = submission._write

    async def no_probe(runtime: Runtime, asked: Any, prepared: Any) -> Any:
        if prepared.model.name == MODEL:
            raise submission.NoProbeLeft(Standing(MODEL, "half_open", "auto", 0.0, 0, 0, 0))
        return await write(runtime, asked, prepared)

    monkeypatch.setattr(submission, "_write", no_probe)
    answer = await client.post("/v1/jobs", json=BODY | {"fallback_model": "spare"})
    assert (answer.status_code, answer.json()["model"]) == (202, "spare")
    assert counted(loads) == {"spare": 100}


@pytest.mark.parametrize("named_by", ["request", "operator"])
async def test_a_job_that_neither_takes_counts_nowhere(
    client: httpx.AsyncClient, engine: AsyncEngine, loads: Any, named_by: str
) -> None:
    await add_budget(engine, 10, "total_tokens")
    named = {"fallback_model": "spare"} if named_by == "request" else {}
    if named_by == "operator":
        async with engine.begin() as conn:
            await conn.execute(text("UPDATE models SET fallback = 'spare' WHERE name = :name"), {"name": MODEL})
    answer = await client.post("/v1/jobs", json=BODY | named | {"on_budget": "fallback"})
    assert answer.status_code == 429
    assert not counted(loads)
    assert not loads.on_its_way
