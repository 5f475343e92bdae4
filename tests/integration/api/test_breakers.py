"""Is a dying model a fast 503 that says when to come back, or its fallback's job, and are accepted jobs left alone?"""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.runtime import Runtime
from app.ids import new_id
from app.jobs.breakers import standings, take_probe
from app.jobs.models import Model, TokenizerFiles, register_model
from app.jobs.tokenizing import tokenizer_digest
from app.quotas.tables import budgets
from app.settings import Settings
from tests.support.api import MODEL, Submit, assert_problem, job_id_of, register_bytes, tokenizer_of_bytes
from tests.support.locks import until_waiting

BODY = {"prompt": "Once upon a time", "max_tokens": 8}


@pytest.fixture
async def spare(engine: AsyncEngine, client: httpx.AsyncClient, runtime: Runtime) -> Model:
    """A second model; jobs name theirs from now on."""
    spare = await register_bytes(engine, name="spare", max_model_len=64)
    runtime.catalog._read_at = None
    return spare


@pytest.fixture
def set_breaker(engine: AsyncEngine, runtime: Runtime) -> Any:
    async def set_breaker(state: str, model: str = MODEL, *, in_s: float = 20.0, probes: int = 0) -> None:
        async with engine.begin() as conn:
            await conn.execute(
                text("""
                    INSERT INTO breakers (model, state, retry_at, probes_left)
                    VALUES (:model, :state, now() + make_interval(secs => :in_s), :probes)
                    ON CONFLICT (model) DO UPDATE SET state = EXCLUDED.state, retry_at = EXCLUDED.retry_at,
                        probes_left = EXCLUDED.probes_left, version = breakers.version + 1
                """),
                {"model": model, "state": state, "in_s": in_s, "probes": probes},
            )
        runtime.breakers.forget()

    return set_breaker


async def num_jobs(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int(await conn.scalar(text("SELECT count(*) FROM jobs")) or 0)


async def test_an_open_breaker_is_a_503_that_says_when_to_come_back(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit, settings: Settings, set_breaker: Any
) -> None:
    accepted = await submit()
    await set_breaker("open", in_s=20)
    answer = await client.post("/v1/jobs", json=BODY)
    problem = assert_problem(answer, 503, "model_unavailable", f"'{MODEL}'", "fallback_model", "accepted wait")
    assert problem["retryable"] is True
    assert problem["model"] == MODEL
    assert int(answer.headers["retry-after"]) == problem["retry_after_s"]
    assert 15 <= problem["retry_after_s"] <= 20 + 0.25 * settings.breaker_open_s + 1
    assert await num_jobs(engine) == 1
    assert (await client.get(accepted["urls"]["self"])).json()["status"] == "queued", "never shed after its 202"
    await set_breaker("closed")
    await submit()


async def test_a_quote_says_that_nothing_gets_in_or_who_stands_in(
    client: httpx.AsyncClient, spare: Model, set_breaker: Any
) -> None:
    await set_breaker("open", in_s=20)
    quoted = (await client.post("/v1/jobs/quote", json=BODY | {"model": MODEL})).json()
    assert (quoted["outcome"], quoted["code"], quoted["forecast"]) == ("rejected", "model_unavailable", None)
    assert quoted["retry_after_s"] >= 15
    quoted = (await client.post("/v1/jobs/quote", json=BODY | {"model": MODEL, "fallback_model": "spare"})).json()
    assert (quoted["outcome"], quoted["model"], quoted["requested_model"]) == ("accepted", "spare", MODEL)


async def test_the_state_is_shown(client: httpx.AsyncClient, set_breaker: Any) -> None:
    for state, is_ok in (("closed", True), ("open", False), ("half_open", False)):
        await set_breaker(state)
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert model["breaker"] == state
        ready = await client.get("/readyz")
        assert ready.status_code == 200, "this process serves"
        assert ready.json()["status"] == ("ready" if is_ok else "degraded")
        check = ready.json()["checks"]["models"]
        assert check["ok"] is is_ok
        assert is_ok or f"{MODEL}'s breaker is {state}" in check["detail"]


async def test_half_open_lets_exactly_its_probes_in(
    client: httpx.AsyncClient, engine: AsyncEngine, set_breaker: Any
) -> None:
    await set_breaker("half_open", probes=3)
    answers = await asyncio.gather(*[client.post("/v1/jobs", json=BODY) for _ in range(12)])
    assert sorted(each.status_code for each in answers) == [202] * 3 + [503] * 9
    assert await num_jobs(engine) == 3
    for each in answers:
        if each.status_code == 503:
            assert_problem(each, 503, "model_unavailable")


async def test_a_probe_that_a_budget_refuses_is_not_used_up(
    client: httpx.AsyncClient, engine: AsyncEngine, set_breaker: Any
) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            budgets.insert().values(
                id=new_id(), tenant_id="acme", metric="output_tokens", period="total", hard_limit=10
            )
        )
    await set_breaker("half_open", probes=1)
    assert_problem(await client.post("/v1/jobs", json=BODY | {"max_tokens": 11}), 429, "budget_exhausted")
    assert (await client.post("/v1/jobs", json=BODY)).status_code == 202


async def test_bulks_that_name_two_half_open_models_in_either_order_do_not_wait_for_each_other(
    client: httpx.AsyncClient, engine: AsyncEngine, spare: Model, set_breaker: Any
) -> None:
    """Probes were taken in the order of the request: who had the second model's waited for who had the first's, and that one for the other."""
    for name in (MODEL, spare.name):
        await set_breaker("half_open", name, probes=3)
    backwards = {"jobs": [BODY | {"model": spare.name}, BODY | {"model": MODEL}]}
    async with engine.begin() as conn:  # another bulk, that names them the other way round
        assert await take_probe(conn, MODEL) is None
        posting = asyncio.create_task(client.post("/v1/jobs/bulk", json=backwards))
        await until_waiting(engine, posting)
        assert await take_probe(conn, spare.name) is None
    assert (await posting).status_code == 202
    async with engine.connect() as conn:
        assert [each.probes_left for each in await standings(conn)] == [1, 1]


async def test_the_fallback_runs_the_job_and_the_answer_says_so(
    client: httpx.AsyncClient, engine: AsyncEngine, spare: Model, set_breaker: Any
) -> None:
    body = BODY | {"model": MODEL, "fallback_model": "spare"}
    healthy = (await client.post("/v1/jobs", json=body)).json()
    assert (healthy["model"], healthy["requested_model"]) == (MODEL, MODEL)
    await set_breaker("open")
    answer = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"})
    assert answer.status_code == 202
    job = answer.json()
    assert (job["model"], job["requested_model"]) == ("spare", MODEL)
    async with engine.connect() as conn:
        row = (await conn.execute(text("SELECT model, pool FROM jobs WHERE id = :id"), {"id": job_id_of(job)})).one()
    assert tuple(row) == ("spare", "spare")
    await set_breaker("closed")
    replay = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"})
    assert replay.headers["idempotency-replayed"] == "true"
    assert (replay.json()["id"], replay.json()["model"]) == (job["id"], "spare"), "what was decided stays"
    listed = (await client.get("/v1/jobs?model=spare")).json()["data"]
    assert [(each["id"], each["requested_model"]) for each in listed] == [(job["id"], MODEL)]


async def test_a_replay_is_answered_whatever_the_breaker_says(client: httpx.AsyncClient, set_breaker: Any) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await client.post("/v1/jobs", json=BODY, headers=headers)
    await set_breaker("open")
    again = await client.post("/v1/jobs", json=BODY, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])


async def test_the_last_probe_taken_by_another_leads_to_the_fallback(
    client: httpx.AsyncClient, spare: Model, set_breaker: Any
) -> None:
    await set_breaker("half_open", probes=1)
    body = BODY | {"model": MODEL, "fallback_model": "spare"}
    answers = await asyncio.gather(*[client.post("/v1/jobs", json=body) for _ in range(4)])
    assert [each.status_code for each in answers] == [202] * 4
    assert sorted(each.json()["model"] for each in answers) == [MODEL] + ["spare"] * 3


async def test_with_both_open_it_says_when_the_first_is_tried_again(
    client: httpx.AsyncClient, spare: Model, settings: Settings, set_breaker: Any
) -> None:
    await set_breaker("open", in_s=100)
    await set_breaker("open", "spare", in_s=10)
    answer = await client.post("/v1/jobs", json=BODY | {"model": MODEL, "fallback_model": "spare"})
    problem = assert_problem(answer, 503, "model_unavailable", f"'{MODEL}' and 'spare'")
    assert 5 <= problem["retry_after_s"] <= 10 + 0.25 * settings.breaker_open_s + 1


@pytest.mark.parametrize("state", ["closed", "open"])
async def test_a_fallback_that_could_not_run_the_job_is_refused_whatever_the_breaker_says(
    client: httpx.AsyncClient, engine: AsyncEngine, spare: Model, runtime: Runtime, set_breaker: Any, state: str
) -> None:
    files = tokenizer_of_bytes()
    other = TokenizerFiles(tokenizer_digest(files.tokenizer_json, "x"), files.tokenizer_json, "x", {})
    async with engine.begin() as conn:
        await register_model(conn, Model("foreign", "foreign", other.hash, "hash", 4096, 256), other)
    runtime.catalog._read_at = None
    await set_breaker(state)
    long = BODY | {"model": MODEL, "fallback_model": "spare", "max_tokens": 60}
    problem = assert_problem(await client.post("/v1/jobs", json=long), 422, "prompt_too_long", "fallback_model 'spare'")
    assert problem["limit"] == 64 - len(BODY["prompt"])  # type: ignore[arg-type]
    too_long = long | {"prompt": "x" * 80}
    assert_problem(await client.post("/v1/jobs", json=too_long), 422, "prompt_too_long", "fallback_model 'spare'")
    for change, status, code, words in [
        ({"fallback_model": MODEL}, 422, "invalid_request", "another model"),
        ({"fallback_model": "unheard-of"}, 404, "unknown_model", "fallback_model: 'unheard-of'"),
        ({"fallback_model": "foreign", "prompt": [1, 2]}, 422, "invalid_request", "token ids"),
        ({"fallback_model": "foreign", "logit_bias": {"5": 1.0}}, 422, "invalid_request", "logit_bias"),
    ]:
        answer = await client.post("/v1/jobs", json=BODY | {"model": MODEL} | change)
        assert assert_problem(answer, status, code, words)["param"] == "fallback_model"
    assert await num_jobs(engine) == 0
    taken = await client.post("/v1/jobs", json=BODY | {"model": MODEL, "fallback_model": "foreign"})
    assert taken.status_code == 202
