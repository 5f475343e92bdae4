"""Does a job say when it will start and what it waits for, and is an operator told how many workers there should be?"""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.metrics import DECISIONS
from app.api.runtime import Runtime
from app.ids import new_id
from app.queue.streams import JobQueue
from app.settings import Settings
from tests.integration.api.test_pressure import worker_with
from tests.support.api import MODEL, HandWorker, Submit, Tenant, assert_problem, job_id_of, make_tenant

BODY: dict[str, Any] = {"prompt": "x" * 60, "max_tokens": 40}  # 100 tokens


async def why(client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    answer = await client.get(f"{job['urls']['self']}/why")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["detail"]
    shown = (await client.get(job["urls"]["self"])).json()
    if shown["status"] == "queued":
        assert (shown["waiting_for"]["reason"], shown["waiting_for"]["detail"]) == (found["reason"], found["detail"])
        assert (shown["waiting_for"]["clears_at"] is None) == (found["clears_at"] is None)
        assert shown["forecast"]["position"] == found["forecast"]["position"]
    else:
        assert (shown["waiting_for"], shown["forecast"]) == (None, None)
    return found


async def change(engine: AsyncEngine, job: dict[str, Any], what: str, **values: Any) -> None:
    async with engine.begin() as conn:
        await conn.execute(text(f"UPDATE jobs SET {what} WHERE id = :id"), {"id": job_id_of(job), **values})


def seconds(job: dict[str, Any], name: str) -> float:
    at = datetime.fromisoformat(job["forecast"][name])
    return (at - datetime.fromisoformat(job["created_at"])) / timedelta(seconds=1)


async def test_a_forecast_counts_what_is_ahead(
    client: httpx.AsyncClient,
    runtime: Runtime,
    engine: AsyncEngine,
    epoch: JobQueue,
    submit: Submit,
    other_tenant: Tenant,
) -> None:
    await worker_with(engine, seconds_per_token=0.01)
    first, *_, last = [await submit(**BODY) for _ in range(5)]
    await runtime.loads.refresh()
    before = datetime.now(UTC)
    read_first, read_last = [(await client.get(each["urls"]["self"])).json() for each in (first, last)]
    after = datetime.now(UTC)
    assert [each["forecast"]["position"] for each in (read_first, read_last)] == [1, 5]
    # 400 tokens ahead at 100 a second; then 40 tokens of its own.
    start = datetime.fromisoformat(read_last["forecast"]["start_p50"])
    assert before + timedelta(seconds=3.9) < start < after + timedelta(seconds=4.1)
    assert seconds(read_last, "start_p95") - seconds(read_last, "start_p50") == pytest.approx(2, abs=0.01)
    assert seconds(read_last, "finish_p50") - seconds(read_last, "start_p50") == pytest.approx(0.4, abs=0.01)
    assert seconds(read_last, "finish_p95") - seconds(read_last, "start_p95") == pytest.approx(0.6, abs=0.01)
    # Another tenant's work in between, by turns.
    assert (await client.post("/v1/jobs", json=BODY, headers=other_tenant.auth)).status_code == 202
    await runtime.loads.refresh()
    assert (await client.get(last["urls"]["self"])).json()["forecast"]["position"] == 6
    submitted = await submit(**BODY)
    assert submitted["forecast"]["position"] == 7
    assert seconds(submitted, "start_p50") == pytest.approx(6, abs=0.5)
    assert (await client.get("/v1/jobs")).json()["data"][0]["forecast"] is None


async def test_usual_lengths_shorten_the_forecast(
    client: httpx.AsyncClient,
    runtime: Runtime,
    engine: AsyncEngine,
    epoch: JobQueue,
    submit: Submit,
    worker: HandWorker,
) -> None:
    await worker_with(engine, seconds_per_token=0.01)
    for _ in range(10):
        await worker.finish(await submit(**BODY))  # 7 of 40 tokens each
    job = await submit(**BODY)
    await runtime.lengths.settle()
    runtime.lengths._known.clear()
    runtime.lengths.of("acme", MODEL)
    await runtime.lengths.settle()
    await runtime.loads.refresh()
    read = (await client.get(job["urls"]["self"])).json()
    assert seconds(read, "finish_p50") - seconds(read, "start_p50") == pytest.approx(0.07, abs=0.005)


async def test_why_names_what_binds(
    client: httpx.AsyncClient,
    runtime: Runtime,
    engine: AsyncEngine,
    epoch: JobQueue,
    submit: Submit,
    worker: HandWorker,
) -> None:
    job = await submit(**BODY)
    await runtime.loads.refresh()
    found = await why(client, job)
    assert (found["reason"], found["forecast"]["start_p50"]) == ("no_worker", None)

    await worker_with(engine)
    await runtime.loads.refresh()
    found = await why(client, job)
    assert found["reason"] == "queue"
    assert found["clears_at"] == found["forecast"]["start_p50"]
    assert (found["figures"]["position"], found["figures"]["tier_share"], found["figures"]["workers"]) == (1, 1.0, 1)

    await change(engine, job, "not_before = now() + interval '1 minute', failures = 2")
    found = await why(client, job)
    assert (found["reason"], found["figures"]) == ("retry_delay", {"failures": 2})
    assert datetime.fromisoformat(found["clears_at"]) > datetime.fromisoformat(job["created_at"])

    await change(engine, job, "not_before = NULL, lane = 'solo'")
    assert (await why(client, job))["reason"] == "suspect_lane"

    await change(engine, job, "lane = 'normal'")
    async with engine.begin() as conn:
        await conn.execute(
            text("INSERT INTO breakers (model, state, retry_at) VALUES (:model, 'open', now() + interval '20 s')"),
            {"model": MODEL},
        )
    found = await why(client, job)
    assert (found["reason"], found["figures"]["breaker"]) == ("breaker_open", "open")
    async with engine.begin() as conn:
        await conn.execute(text("DELETE FROM breakers"))

    running = await submit(**BODY)
    await worker.start(running)
    assert (await why(client, running))["reason"] == "running"
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET max_running_jobs = 1"))
    found = await why(client, job)
    assert found["reason"] == "tenant_cap"
    assert "when one of them has ended" in found["detail"]
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET max_running_jobs = 0"))
    assert "max_running_jobs is 0" in (await why(client, job))["detail"]
    assert found["figures"] == {"running_jobs": 1, "max_running_jobs": 1}
    await client.post(running["urls"]["cancel"])
    assert (await why(client, running))["reason"] == "cancelling"
    await client.post(job["urls"]["cancel"])
    found = await why(client, job)
    assert (found["reason"], found["forecast"]) == ("ended", None)


async def test_a_held_job_names_its_budget_and_the_next_window(
    client: httpx.AsyncClient, engine: AsyncEngine, epoch: JobQueue, submit: Submit
) -> None:
    job = await submit(**BODY)
    budget = new_id()
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO budgets (id, tenant_id, metric, period, hard_limit) VALUES (:id, 'acme', 'total_tokens', 'hour', 5)"
            ),
            {"id": budget},
        )
    await change(engine, job, "reservation = 0, on_budget = 'wait', held_by = :budget", budget=budget)
    found = await why(client, job)
    assert found["reason"] == "budget"
    assert found["figures"] == {"budget_id": str(budget), "metric": "total_tokens", "period": "hour", "limit": 5}
    clears = datetime.fromisoformat(found["clears_at"])
    assert (clears.minute, clears.second) == (0, 0)
    assert timedelta(0) < clears - datetime.fromisoformat(job["created_at"]) <= timedelta(hours=1, minutes=1)


async def test_why_is_for_its_owner_only(client: httpx.AsyncClient, submit: Submit, other_tenant: Tenant) -> None:
    job = await submit(**BODY)
    answer = await client.get(f"{job['urls']['self']}/why", headers=other_tenant.auth)
    assert_problem(answer, 404, "not_found")


async def test_autoscale_and_metrics_tell_the_same(
    client: httpx.AsyncClient,
    runtime: Runtime,
    engine: AsyncEngine,
    epoch: JobQueue,
    submit: Submit,
    settings: Settings,
) -> None:
    await worker_with(engine, load_s=2.5, served_tokens_per_s=0.0)
    for _ in range(10):
        await submit(**BODY, tier="interactive")
    await submit(**BODY, tier="batch")
    await runtime.loads.refresh()
    assert_problem(await client.get("/v1/autoscale"), 403, "forbidden")
    admin = await make_tenant(engine, settings, "ops", scopes=["admin"])
    (pool,) = (await client.get("/v1/autoscale", headers=admin.auth)).json()["data"]
    # 1000 tokens in the 2.5 s that loading leaves of 5: 4 workers of 100 tokens a second, and a little for batch.
    assert (pool["pool"], pool["desired_replicas"], pool["replicas"]) == (MODEL, 5, 1)
    assert pool["tiers"]["interactive"] == {
        "jobs": 10, "tokens": 1000, "predicted_wait_s": pytest.approx(10 * 17 / 16, abs=0.01), "objective_s": 5.0,
    }  # fmt: skip
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found["penstock_desired_replicas", MODEL] == 5
    assert found["penstock_workers", MODEL] == 1
    assert found["penstock_queue_jobs", MODEL, "interactive"] == 10
    assert found["penstock_queue_tokens", MODEL, "batch"] == 100
    assert (
        found["penstock_predicted_wait_seconds", MODEL, "interactive"]
        == pool["tiers"]["interactive"]["predicted_wait_s"]
    )


async def test_every_reason_is_counted_from_the_start(
    client: httpx.AsyncClient, submit: Submit, runtime: Runtime
) -> None:
    def counted(answer: httpx.Response) -> dict[tuple[str, str], float]:
        return {
            (sample.labels["decision"], sample.labels["reason"]): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name == "penstock_admissions_total"
        }

    before = counted(await client.get("/metrics"))
    assert before == {(decision, reason): 0 for decision, reasons in DECISIONS.items() for reason in reasons}
    await runtime.loads.refresh()
    await submit()
    assert counted(await client.get("/metrics")) == before | {("accepted", "no_worker"): 1}


async def test_a_forecasts_error_is_counted_when_the_start_is_seen(
    client: httpx.AsyncClient,
    runtime: Runtime,
    engine: AsyncEngine,
    epoch: JobQueue,
    submit: Submit,
    worker: HandWorker,
) -> None:
    await worker_with(engine)
    await runtime.loads.refresh()
    job = await submit(**BODY)
    await worker.start(job)
    for _ in range(2):
        assert (await client.get(job["urls"]["self"])).json()["status"] == "running"
    assert 'penstock_forecast_error_seconds_count{tier="standard"} 1.0' in (await client.get("/metrics")).text
