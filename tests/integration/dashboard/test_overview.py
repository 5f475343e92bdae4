"""What does the overview show, and what of it comes from other processes?"""

import json
import re
from html import unescape

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.dashboard.history import KEPT, History
from app.jobs.live import unserved_pools
from app.queue.decisions import note_decisions, read_decisions
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.api import HandWorker, Tenant, make_tenant, register_bytes
from tests.support.dashboard import Browser


def words(answer: httpx.Response) -> str:
    """The page as it reads."""
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", answer.text)))


@pytest.fixture
async def busy(app: FastAPI, engine: AsyncEngine, redis: Redis, settings: Settings) -> Tenant:
    """Jobs of each tier, one of which runs on a worker that says how it goes."""
    model = await register_bytes(engine)
    await JobQueue(redis, model.pool).open_epoch("test")
    acme = await make_tenant(engine, settings, "acme")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test", headers=acme.auth
    ) as caller:
        jobs = [
            (await caller.post("/v1/jobs", json={"prompt": "Once", "max_tokens": 96, "tier": tier})).json()
            for tier in ("batch", "batch", "interactive")
        ]
        await caller.post("/v1/jobs", json={"prompt": "Once", "max_tokens": 96})
    await HandWorker(engine, redis, "bytes").start(jobs[2])
    async with engine.begin() as conn:
        stats = {
            "jobs": 1, "running": 1, "kv_blocks_used": 3, "kv_blocks_total": 4, "served_tokens_per_s": 1234.5,
            "served_by_tier": {"interactive": 1234.5}, "version": "9.8.7", "capacity_tokens_per_s": 5000,
        }  # fmt: skip
        await conn.execute(text("UPDATE workers SET stats = CAST(:stats AS jsonb)"), {"stats": json.dumps(stats)})
    await app.state.runtime.loads.refresh()
    return acme


async def test_an_empty_system_says_what_to_do(viewer: Browser) -> None:
    shown = words(await viewer.get("/admin/overview"))
    assert "No worker has a lease" in shown
    assert "No model yet" in shown


async def test_jobs_that_wait_for_a_model_without_a_worker_are_named(
    viewer: Browser, busy: Tenant, app: FastAPI, engine: AsyncEngine
) -> None:
    assert "no worker serves it" not in words(await viewer.get("/admin/overview"))
    async with engine.begin() as conn:
        assert await unserved_pools(conn) == []
        await conn.execute(text("UPDATE workers SET expires_at = now() - interval '1 min'"))
        (pool,) = await unserved_pools(conn)
    await app.state.runtime.loads.refresh()
    shown = words(await viewer.get("/admin/overview"))
    assert f"4 jobs wait for {pool}, and no worker serves it" in shown, "what was started by hand is in the queue still"


async def test_figures_have_their_units(viewer: Browser, busy: Tenant) -> None:
    shown = words(await viewer.get("/admin/overview"))
    for expected in (
        "1.23 k tokens/s", "Running 1 job", "interactive 1 job", "batch 0 jobs 2 jobs 200 tokens", "75 %", "9.8.7",
        "1 ready of 1 with a lease", "5 k tokens/s", "host 1",
    ):  # fmt: skip
        assert expected in shown, expected
    assert without_spans(words(await viewer.get("/admin/overview/live"))) in without_spans(shown)


def without_spans(shown: str) -> str:
    """Without lengths of time: a worker's age grows from one look to the next."""
    return re.sub(r"[\d.]+ (ms|s|min)\b", "", shown)


async def test_refusals_of_all_processes_are_added_up_by_reason(
    viewer: Browser, app: FastAPI, busy: Tenant, redis: Redis
) -> None:
    minute = int(app.state.runtime.clock.now() // 60)
    await note_decisions(redis, minute, {"refused:tier_wait": 3, "accepted:room": 5})
    await note_decisions(redis, minute - 14, {"refused:tier_wait": 4})
    await note_decisions(redis, minute - 20, {"refused:rate": 1000})  # too long ago
    shown = words(await viewer.get("/admin/overview/live"))
    assert "the tier's predicted wait is too long tier_wait 7" in shown
    assert "faster than a rate limit" not in shown


async def test_a_process_hands_its_own_decisions_on_once(app: FastAPI, busy: Tenant, redis: Redis) -> None:
    runtime = app.state.runtime
    history = History(runtime)
    for _ in range(3):
        await history.sample()
    minute = int(runtime.clock.now() // 60)
    told = await read_decisions(redis, minute, minutes=2)
    decided = sum(count for name, count in runtime.decided().items() if name.startswith("accepted:"))
    # The app's own sampling may have told them as well: each History tells what it knows, once.
    assert sum(count for name, count in told.items() if name.startswith("accepted:")) in {decided, 2 * decided}
    assert decided == 4


async def test_the_history_is_columns_that_fit_and_ends(app: FastAPI, busy: Tenant, viewer: Browser) -> None:
    history = History(app.state.runtime)
    for _ in range(3):
        await history.sample()
    columns = history.columns()
    assert [len(column) for column in columns] == [3] * 5
    assert columns[1] == [1234.5] * 3
    assert [column[-1] for column in columns[2:]] == [1, 1, 2] or [column[-1] for column in columns[2:]] == [0, 1, 2]
    assert history.latest == [column[-1] for column in columns]
    for _ in range(KEPT):
        history._samples.append(history._samples[-1])
    assert len(history.columns()[0]) == KEPT
    assert len((await viewer.get("/admin/overview/history/live")).json()) == 5


async def test_without_redis_the_overview_says_so(
    viewer: Browser, app: FastAPI, busy: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.dashboard import overview
    from app.redis import RedisError

    async def away(*_: object, **__: object) -> None:
        raise RedisError("away")

    monkeypatch.setattr(overview, "read_decisions", away)
    assert "Redis doesn't answer" in words(await viewer.get("/admin/overview/live"))


async def test_an_expired_worker_serves_nothing(viewer: Browser, busy: Tenant, engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE workers SET expires_at = now() - interval '1 second'"))
    shown = words(await viewer.get("/admin/overview/live"))
    assert "lease expired" in shown
    assert "0 tokens/s prompts and output" in shown
