"""Does a 202 leave a whole job behind, and a refusal nothing?"""

import asyncio
from time import time
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.job_documents import JobObject
from app.ids import new_id
from app.jobs.models import Model
from app.jobs.tables import idempotency_keys, job_inputs, jobs
from app.queue.events import JobEvent, Publication
from app.queue.streams import JobQueue
from app.quotas.tables import budgets
from tests.support.api import MODEL, HandWorker, Submit, Tenant, assert_problem, job_id_of, register_bytes


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as conn:
        return int((await conn.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def test_a_202_leaves_the_row_the_input_and_the_nomination(
    client: httpx.AsyncClient, engine: AsyncEngine, epoch: JobQueue
) -> None:
    answer = await client.post(
        "/v1/jobs",
        json={
            "prompt": "Once upon",
            "max_tokens": 12,
            "n": 2,
            "tier": "interactive",
            "deadline_s": 60,
            "seed": 7,
            "metadata": {"project": "demo"},
            "webhook": {"url": "https://example.com/hook"},
        },
    )
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" == job["urls"]["self"]
    assert answer.headers["content-type"] == "application/json"
    JobObject.model_validate(job)
    assert job["status"] == "queued"
    assert job["model"] == MODEL
    assert job["created_at"].endswith("Z")
    assert job["deadline_at"] > job["created_at"]
    assert job["usage"] == {"prompt_tokens": 9, "cached_tokens": 0, "completion_tokens": 0, "total_tokens": 9}
    assert job["choices"] is None
    assert job["metadata"] == {"project": "demo"}

    async with engine.connect() as conn:
        row = (await conn.execute(select(jobs))).one()
        stored = (await conn.execute(select(job_inputs))).one()
    assert row.id == job_id_of(job)
    assert (row.tenant_id, row.status, row.gen, row.attempt) == ("acme", "queued", 1, 0)
    assert (row.prompt_tokens, row.max_tokens, row.n) == (9, 12, 2)
    assert row.webhook == {"url": "https://example.com/hook"}
    assert len(np.frombuffer(stored.prompt_ids, dtype="<i4")) == 9
    assert stored.sampling["seed"] == 7
    assert stored.request["prompt"] == "Once upon"

    (nominated,) = await epoch.claim("test", max_jobs=8, room=10_000)
    assert (nominated.job_id, nominated.gen, nominated.place) == (row.id, 1, "interactive")
    assert (nominated.tenant, nominated.cost) == ("acme", 9 + 2 * 12)


async def test_messages_go_through_the_chat_template(client: httpx.AsyncClient, submit: Submit) -> None:
    answer = await client.post("/v1/jobs", json={"messages": [{"role": "user", "content": "hi"}]})
    assert answer.json()["usage"]["prompt_tokens"] == len("user: hi\nassistant:")


async def test_token_ids_are_taken_as_they_are(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/jobs", json={"prompt": [1, 2, 255]})
    assert answer.json()["usage"]["prompt_tokens"] == 3
    assert_problem(await client.post("/v1/jobs", json={"prompt": [256]}), 422, "invalid_request", "prompt", "256")


async def test_the_job_can_be_read_through_its_whole_life(
    client: httpx.AsyncClient, submit: Submit, worker: HandWorker
) -> None:
    job = await submit(max_tokens=9)
    read = (await client.get(job["urls"]["self"])).json()
    ahead = {"forecast", "waiting_for"}  # as it is known at each moment
    assert {name: read[name] for name in read.keys() - ahead} == {name: job[name] for name in job.keys() - ahead}

    await worker.start(job)
    running = (await client.get(job["urls"]["self"])).json()
    assert (running["status"], running["attempts"]) == ("running", 1)
    assert running["started_at"] is not None
    assert running["progress"] is None

    event = JobEvent(kind="tokens", attempt=1)
    log = client._transport.app.state.runtime.events  # type: ignore[attr-defined]
    await log.publish([Publication(job_id_of(job), 5, event)])
    running = (await client.get(job["urls"]["self"])).json()
    assert running["progress"] == {"completion_tokens": 5}

    await worker.finish(running)
    ended = (await client.get(job["urls"]["self"])).json()
    JobObject.model_validate(ended)
    assert ended["status"] == "succeeded"
    assert ended["choices"] == [{"index": 0, "text": " there was", "finish_reason": "stop"}]
    assert ended["usage"] == {"prompt_tokens": 16, "cached_tokens": 2, "completion_tokens": 7, "total_tokens": 23}
    assert ended["finished_at"] >= ended["started_at"] >= ended["created_at"]
    assert ended["progress"] is None


async def test_one_key_one_job(client: httpx.AsyncClient, engine: AsyncEngine, epoch: JobQueue) -> None:
    body = {"prompt": "Once", "tier": "batch"}
    first = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "order-17"})
    again = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": '"order-17"'})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await count(engine, "jobs") == 1

    other = await client.post("/v1/jobs", json=body | {"prompt": "Twice"}, headers={"Idempotency-Key": "order-17"})
    assert_problem(other, 422, "idempotency_mismatch")
    assert await count(engine, "jobs") == 1


async def test_a_replay_is_answered_even_when_the_same_body_would_be_refused_now(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await client.post("/v1/jobs", json={"prompt": "Once"}, headers=headers)
    await register_bytes(engine, name="second")
    client._transport.app.state.runtime.catalog._read_at = None  # type: ignore[attr-defined]
    assert_problem(await client.post("/v1/jobs", json={"prompt": "Once"}), 404, "unknown_model", "name one")
    again = await client.post("/v1/jobs", json={"prompt": "Once"}, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())


async def test_keys_of_two_tenants_never_meet(
    client: httpx.AsyncClient, other_tenant: Tenant, engine: AsyncEngine
) -> None:
    headers = {"Idempotency-Key": "same"}
    mine = await client.post("/v1/jobs", json={"prompt": "a"}, headers=headers)
    theirs = await client.post("/v1/jobs", json={"prompt": "b"}, headers=headers | other_tenant.auth)
    assert mine.json()["id"] != theirs.json()["id"]
    assert await count(engine, "jobs") == 2


async def test_posts_with_one_key_at_once_make_one_job(
    client: httpx.AsyncClient, engine: AsyncEngine, epoch: JobQueue
) -> None:
    async def post() -> httpx.Response:
        return await client.post("/v1/jobs", json={"prompt": "Once"}, headers={"Idempotency-Key": "k"})

    answers = await asyncio.gather(*(post() for _ in range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert await count(engine, "jobs") == await count(engine, "job_inputs") == 1
    assert (await epoch.depth())["standard"].jobs == 1


async def test_posts_with_one_key_and_different_bodies_at_once_make_one_job(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    async def post(number: int) -> httpx.Response:
        return await client.post("/v1/jobs", json={"prompt": f"{number}"}, headers={"Idempotency-Key": "k"})

    answers = await asyncio.gather(*(post(number) for number in range(8)))
    taken = [answer for answer in answers if answer.status_code == 202]
    assert len(taken) == 1
    for answer in answers:
        if answer is not taken[0]:
            assert_problem(answer, 422, "idempotency_mismatch")
    assert await count(engine, "jobs") == await count(engine, "idempotency_keys") == 1


async def test_a_key_that_only_postgres_knows_of_replays_too(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit
) -> None:
    """As after a crash between commit and answer: whoever asks again with the key gets the job."""
    first = await client.post("/v1/jobs", json={"prompt": "Once"}, headers={"Idempotency-Key": "k"})
    async with engine.connect() as conn:
        assert await conn.scalar(select(idempotency_keys.c.job_id)) == job_id_of(first.json())


async def test_a_refused_budget_leaves_nothing(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            insert(budgets).values(id=new_id(), tenant_id="acme", metric="total_tokens", period="total", hard_limit=100)
        )
    body = {"prompt": "x" * 40, "max_tokens": 60}
    headers = {"Idempotency-Key": "k"}
    assert (await client.post("/v1/jobs", json=body)).status_code == 202
    refused = await client.post("/v1/jobs", json=body, headers=headers)
    assert_problem(refused, 429, "budget_exhausted", "100")
    for table, rows in (("jobs", 1), ("idempotency_keys", 0), ("ledger", 1)):
        assert await count(engine, table) == rows


async def test_a_second_model_must_be_named(client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit) -> None:
    assert (await submit())["model"] == MODEL
    assert_problem(
        await client.post("/v1/jobs", json={"prompt": "a", "model": "gpt-9"}), 404, "unknown_model", "gpt-9", MODEL
    )
    await register_bytes(engine, name="second")
    # Known at once, though the catalogue was read a moment ago.
    assert (await submit(model="second"))["model"] == "second"
    assert_problem(await client.post("/v1/jobs", json={"prompt": "a"}), 404, "unknown_model", "name one")


async def test_models_are_listed(client: httpx.AsyncClient, model: Model) -> None:
    listed = (await client.get("/v1/models")).json()
    shown = {"id": MODEL, "object": "model", "owned_by": "penstock", "name": MODEL, "max_model_len": 4096}
    (registered,) = [each.pop("created") for each in listed["data"]]
    assert listed == {"object": "list", "data": [shown | {"breaker": "closed"}]}
    assert abs(registered - time()) < 60
    assert (await client.get(f"/v1/models/{MODEL}")).json() == listed["data"][0] | {"created": registered}
    problem = assert_problem(await client.get("/v1/models/no/such"), 404, "unknown_model", "no/such")
    assert set(problem["error"]) == {"message", "type", "param", "code"}


async def test_a_webhook_that_could_never_be_delivered_is_refused(
    client: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for url in (
        "http://example.com/",
        "https://127.0.0.1/",
        "nonsense",
        "https://[::ffff:10.0.0.1]/",
        "https://" + "a" * 2100,
    ):
        with subtests.test(url=url[:40]):
            answer = await client.post("/v1/jobs", json={"prompt": "a", "webhook": {"url": url}})
            assert assert_problem(answer, 422, "invalid_request", "webhook.url")["param"] == "webhook.url"


async def test_what_was_not_said_is_not_stored(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    async def stored() -> Any:
        async with engine.connect() as conn:
            return await conn.scalar(select(job_inputs.c.request))

    await client.post("/v1/jobs", json={"prompt": "a"})
    assert await stored() == {"prompt": "a"}
