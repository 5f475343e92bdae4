"""Do operators see and set it, by HTTP and by command, and do owners read why a text is gone?"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.clock import SystemClock
from app.ids import job_name
from app.redis import Redis
from app.settings import Settings
from app.webhooks.dispatch import connect_rq
from tests.support.api import Tenant, assert_problem, make_tenant, running
from tests.support.cli import Run, runner
from tests.support.jobs import seed
from tests.support.retention import age, live, retain
from workers.maintenance.retention import RetentionKeeper


@pytest.fixture
async def tenant(engine: AsyncEngine, settings: Settings) -> Tenant:
    await seed(engine, "acme")
    return await make_tenant(engine, settings, "acme")


@pytest.fixture
async def owner(settings: Settings, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    async with running(create_app(settings), tenant.auth) as client:
        yield client


@pytest.fixture
async def operator(engine: AsyncEngine, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    admin = await make_tenant(engine, settings, "ops", scopes=["admin"])
    async with running(create_app(settings), admin.auth) as client:
        yield client


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("DATABASE_URL", "REDIS_URL", "PENSTOCK_DATA_DIR"):
        monkeypatch.setenv(name, environment[name])
    return runner(capsys)


async def acts(engine: AsyncEngine) -> list[tuple[str, str, Any]]:
    async with engine.connect() as conn:
        rows = await conn.execute(text("SELECT action, target, detail FROM audit_log ORDER BY id"))
        return [(row.action, row.target, row.detail) for row in rows]


async def test_an_owner_reads_since_when_and_why_a_text_is_gone(
    engine: AsyncEngine, redis: Redis, settings: Settings, owner: httpx.AsyncClient
) -> None:
    job_id = await live(engine, settings, "succeeded")
    path = f"/v1/jobs/{job_name(job_id)}"
    before = (await owner.get(path)).json()
    assert before["choices"][0]["text"] == "the end"
    assert "forgotten" not in before
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET content_retention_s = 60 WHERE id = 'acme'"))
    await age(engine, 1)
    await retain(engine, redis, settings)
    after = (await owner.get(path)).json()
    assert (after["status"], after["choices"], after["usage"]) == ("succeeded", None, before["usage"])
    assert after["forgotten"]["reason"] == "content_retention_s"
    assert after["forgotten"]["at"].endswith("Z")
    assert_problem(await owner.get(f"{path}/events"), 410, "output_forgotten", job_name(job_id))


async def test_a_deleted_job_is_no_job(
    engine: AsyncEngine, redis: Redis, settings: Settings, owner: httpx.AsyncClient
) -> None:
    job_id = await live(engine, settings, "succeeded")
    await age(engine, 31)
    await retain(engine, redis, settings, retention_days=30)
    assert (await owner.get(f"/v1/jobs/{job_name(job_id)}")).status_code == 404
    assert (await owner.get("/v1/jobs")).json()["data"] == []


async def test_an_operator_sets_it_for_a_tenant_and_that_is_written_down(
    engine: AsyncEngine, operator: httpx.AsyncClient, tenant: Tenant
) -> None:
    wanted = {"retention_days": 30, "content_retention_s": 300}
    answer = await operator.patch("/v1/admin/tenants/acme", json=wanted)
    assert answer.status_code == 200, answer.text
    assert {name: answer.json()[name] for name in wanted} == wanted
    change = {"retention_days": [None, 30], "content_retention_s": [None, 300]}
    assert (await acts(engine))[-1] == ("tenant.change", "acme", change)
    for name, value in (("content_retention_s", 59), ("retention_days", 0), ("retention_days", 10_001)):
        assert_problem(await operator.patch("/v1/admin/tenants/acme", json={name: value}), 422, "invalid_request", name)
    seen = (await operator.get("/v1/admin/retention")).json()
    assert seen["tenants"] == [{"tenant": "acme", **wanted}]


async def test_operators_only_may_look_and_ask(
    engine: AsyncEngine, redis: Redis, settings: Settings, operator: httpx.AsyncClient, owner: httpx.AsyncClient
) -> None:
    assert (await owner.get("/v1/admin/retention")).status_code == 403
    assert (await owner.post("/v1/admin/retention/runs")).status_code == 403
    assert (await operator.post("/v1/admin/retention/runs")).json() == {"object": "retention.asked", "asked": True}
    assert (await acts(engine))[-1][0] == "retention.run"
    with connect_rq(settings) as rq:
        await RetentionKeeper(settings, SystemClock(), engine, redis, rq).round()
    (run,) = (await operator.get("/v1/admin/retention")).json()["runs"]
    assert run["outcome"] == "done"


def test_the_commands_show_plan_and_run(penstock: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(_one_old_job(settings))
    monkeypatch.setenv("PENSTOCK_RETENTION_DAYS", "30")
    assert penstock("tenants", "set", "acme", "--retention-days", "20", "--content-retention-s", "none").status == 0
    planned = json.loads(penstock("retention", "plan", "--json").out)
    assert (planned["jobs"], planned["texts"]) == (1, 0)
    made = penstock("retention", "run", "--here")
    assert (made.status, "1 jobs" in made.out) == (0, True), made.err
    shown = penstock("retention", "status").out
    assert "jobs: 30 days" in shown
    assert "tenant acme: jobs 20 days" in shown
    assert json.loads(penstock("retention", "status", "--json").out)["totals"]["jobs"] == 1
    assert "asked" in penstock("retention", "run").out


async def _one_old_job(settings: Settings) -> None:
    from app.db import create_engine

    engine = create_engine(settings, application_name="penstock-tests")
    try:
        await seed(engine, "acme")
        await live(engine, settings, "succeeded")
        await age(engine, 31)
    finally:
        await engine.dispose()


async def test_the_figures_are_those_of_all_runs(
    engine: AsyncEngine, redis: Redis, settings: Settings, tenant: Tenant
) -> None:
    await live(engine, settings, "succeeded")
    await age(engine, 31)
    await retain(engine, redis, settings, retention_days=30)
    registry = CollectorRegistry()
    with connect_rq(settings) as rq:
        await RetentionKeeper(settings, SystemClock(), engine, redis, rq, registry).round()
    shown = generate_latest(registry).decode()
    assert 'penstock_retention_rows_total{table="jobs"} 1.0' in shown
    assert 'penstock_retention_outcome{outcome="done"} 1.0' in shown
    assert "penstock_retention_ended_timestamp_seconds " in shown
