"""What does a caller see of budgets? Refusals, cuts, waiting, another model, and quotes."""

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.runtime import Runtime
from app.jobs.breaker import Mode
from app.jobs.breakers import set_mode
from app.jobs.models import Model
from tests.support.api import MODEL, Submit, assert_problem, job_id_of, register_bytes
from tests.support.audit import assert_audit_clean
from tests.support.budgets import add_budget, balance, set_price

BODY = {"prompt": "abcd", "max_tokens": 6}  # 4 tokens of prompt, 10 in all


@pytest.fixture
async def cheap(engine: AsyncEngine, model: Model) -> Model:
    """A second model at a tenth of the first one's price."""
    cheap = await register_bytes(engine, name="cheap")
    await set_price(engine, MODEL, 0, 10_000_000)
    await set_price(engine, "cheap", 0, 1_000_000)
    return cheap


async def test_an_exhausted_budget_says_which_and_that_trying_again_is_no_use(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    budget = await add_budget(engine, 9, period="month")
    answer = await client.post("/v1/jobs", json=BODY)
    problem = assert_problem(answer, 429, "budget_exhausted", "budget of 9 total tokens a month", "the 10 that")
    assert answer.headers["x-should-retry"] == "false"
    assert (problem["budget_id"], problem["metric"], problem["limit"]) == (str(budget), "total_tokens", 9)
    assert (problem["period"], problem["left"]) == ("month", 9)
    assert problem["resets_at"].endswith("-01T00:00:00Z")


async def test_a_cut_job_says_so_each_time_that_it_is_shown(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit
) -> None:
    budget = await add_budget(engine, 8)
    job = await submit(**BODY, on_budget="truncate")
    change = {"asked": 6, "given": 4, "reason": "budget", "budget_id": str(budget)}
    assert job["changes"] == {"max_tokens": change}
    assert (await client.get(f"/v1/jobs/{job['id']}")).json()["changes"] == job["changes"]
    assert (await client.get("/v1/jobs")).json()["data"][0]["changes"] == job["changes"]


async def test_a_held_job_shows_what_it_waits_for_and_can_be_cancelled(
    client: httpx.AsyncClient, engine: AsyncEngine, runtime: Runtime, submit: Submit
) -> None:
    budget = await add_budget(engine, 10, period="month")
    assert (await submit(**BODY))["waiting_for"] is None
    key = {"Idempotency-Key": "once"}
    answer = await client.post("/v1/jobs", json={**BODY, "on_budget": "wait"}, headers=key)
    job = answer.json()
    waiting_for = job["waiting_for"]
    assert waiting_for["clears_at"].endswith("-01T00:00:00Z")
    assert (waiting_for["reason"], waiting_for["budget_id"]) == ("budget", str(budget))
    assert job["status"] == "queued"
    replay = await client.post("/v1/jobs", json={**BODY, "on_budget": "wait"}, headers=key)
    assert (replay.json()["id"], replay.headers["Idempotency-Replayed"]) == (job["id"], "true")
    cancelled = (await client.post(f"/v1/jobs/{job['id']}/cancel")).json()
    assert (cancelled["status"], cancelled["waiting_for"]) == ("cancelled", None)
    assert await balance(engine, budget) == [(0, 10)]
    await assert_audit_clean(engine, None)


@pytest.mark.parametrize("named_by", ["request", "operator"])
async def test_a_job_runs_on_the_fallback_where_that_ones_cost_fits(
    client: httpx.AsyncClient, engine: AsyncEngine, cheap: Model, submit: Submit, named_by: str
) -> None:
    budget = await add_budget(engine, 66, "cost")
    named = {"fallback_model": "cheap"} if named_by == "request" else {}
    if named_by == "operator":
        async with engine.begin() as conn:
            await conn.execute(text("UPDATE models SET fallback = 'cheap' WHERE name = :name"), {"name": MODEL})
    body = {**BODY, **named, "model": MODEL, "on_budget": "fallback"}
    first = await submit(**body)
    assert (first["model"], first["requested_model"], first["changes"]) == (MODEL, MODEL, None)
    second = await submit(**body)
    change = {"asked": MODEL, "given": "cheap", "reason": "budget", "budget_id": str(budget)}
    assert (second["model"], second["requested_model"]) == ("cheap", MODEL)
    assert second["changes"] == {"model": change}
    async with engine.connect() as conn:
        query = text("SELECT pool, input_price, output_price FROM jobs WHERE id = :id")
        row = (await conn.execute(query, {"id": job_id_of(second)})).one()
    assert tuple(row) == ("cheap", 0, 1_000_000)
    assert await balance(engine, budget) == [(0, 66)]
    assert_problem(await client.post("/v1/jobs", json=body), 429, "budget_exhausted", "can't hold the 60")
    await assert_audit_clean(engine, None)


async def test_a_fallback_that_cannot_run_the_job_is_none(
    client: httpx.AsyncClient, engine: AsyncEngine, cheap: Model
) -> None:
    await add_budget(engine, 10, "cost")
    body = {**BODY, "model": MODEL, "on_budget": "fallback"}
    await register_bytes(engine, name="tiny", max_model_len=5)
    await register_bytes(engine, name="dear")
    await set_price(engine, "dear", 0, 5_000_000)
    await register_bytes(engine, name="stopped")
    async with engine.begin() as conn:
        await set_mode(conn, "stopped", "open", actor="test")
    for name, reason, said, advice in (
        (None, "none", "names no fallback_model, and no operator has set one for 'bytes'", "Name one that costs less"),
        (
            "tiny",
            "invalid",
            "'tiny', the fallback that an operator has set, can't run it: max_tokens: must be",
            "Change",
        ),
        ("gone", "unknown", "'gone', the fallback that an operator has set, is no other model", "have another set"),
        (MODEL, "unknown", "'bytes', the fallback that an operator has set, is no other model", "name one"),
        ("dear", "budget", "can't hold it on 'dear', the fallback that an operator has set,", "ask for less"),
        ("stopped", "unavailable", "'stopped', the fallback that an operator has set, takes no new jobs now", "later"),
    ):
        async with engine.begin() as conn:
            await conn.execute(text("UPDATE models SET fallback = :to WHERE name = :name"), {"to": name, "name": MODEL})
        answer = await client.post("/v1/jobs", json=body)
        # The budget is the first model's, and what happened to the second is said beside it.
        problem = assert_problem(answer, 429, "budget_exhausted", "budget of 10", "the 60 that", said, advice)
        assert problem["fallback"] == {"model": name, "reason": reason}
        assert (problem["left"], answer.headers["x-should-retry"]) == (10, "false")
        quoted = await quote_of(client, model=MODEL, on_budget="fallback")
        assert (quoted["code"], quoted["detail"]) == ("budget_exhausted", problem["detail"])
    # Nobody who asked for something else hears of fallbacks.
    for on_budget in ("reject", "wait", "truncate"):
        answer = await client.post("/v1/jobs", json=body | {"on_budget": on_budget, "max_tokens": 60, "min_tokens": 60})
        assert "fallback" not in assert_problem(answer, 429, "budget_exhausted")


async def test_a_named_fallback_that_does_not_help_is_named_in_the_refusal(
    client: httpx.AsyncClient, engine: AsyncEngine, runtime: Runtime, cheap: Model
) -> None:
    await add_budget(engine, 5, "cost")
    body = {**BODY, "model": MODEL, "fallback_model": "cheap", "on_budget": "fallback"}

    async def refused(*said: str) -> dict:
        problem = assert_problem(await client.post("/v1/jobs", json=body), 429, "budget_exhausted", *said)
        quoted = (await client.post("/v1/jobs/quote", json=body)).json()
        assert (quoted["code"], quoted["detail"]) == ("budget_exhausted", problem["detail"])
        return problem["fallback"]

    async def stop(**modes: Mode) -> None:
        async with engine.begin() as conn:
            for name, mode in modes.items():
                await set_mode(conn, name, mode, actor="test")
        runtime.breakers.forget()

    # An operator's choice doesn't count where the request has its own.
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE models SET fallback = 'bytes'"))
    assert await refused("the 60 that", "can't hold it on the fallback_model 'cheap' either") == {
        "model": "cheap", "reason": "budget",
    }  # fmt: skip
    await stop(cheap="open")
    assert await refused("the 60 that", "the fallback_model 'cheap' takes no new jobs now") == {
        "model": "cheap", "reason": "unavailable",
    }  # fmt: skip
    await stop(cheap="auto", **{MODEL: "open"})
    assert await refused("the 6 that", "only the fallback_model 'cheap' could run it now, since 'bytes' takes") == {
        "model": "cheap", "reason": "budget",
    }  # fmt: skip


# --- quotes ----------------------------------------------------------------------------------------------------------


async def quote_of(client: httpx.AsyncClient, **body: object) -> dict:
    answer = await client.post("/v1/jobs/quote", json={**BODY, **body})
    assert answer.status_code == 200, answer.text
    quoted: dict = answer.json()
    return quoted


async def test_a_quote_counts_prices_and_asks_the_budgets_and_leaves_nothing(
    client: httpx.AsyncClient, engine: AsyncEngine, cheap: Model, submit: Submit
) -> None:
    tokens = await add_budget(engine, 25, period="day")
    cost = await add_budget(engine, 70, "cost")
    await submit(**BODY, model=MODEL)
    quoted = await quote_of(client, model=MODEL)
    assert (quoted["outcome"], quoted["prompt_tokens"], quoted["max_total_tokens"]) == ("rejected", 4, 10)
    assert (quoted["max_cost_micros"], quoted["input_price"], quoted["output_price"]) == (60, 0, 10_000_000)
    assert "millionths of the currency" in quoted["detail"]
    by_id = {each["id"]: each for each in quoted["budgets"]}
    assert by_id[str(tokens)]["would_refuse"] is False
    assert (by_id[str(tokens)]["left"], by_id[str(tokens)]["wanted"]) == (15, 10)
    assert by_id[str(cost)]["would_refuse"] is True
    assert (by_id[str(cost)]["left"], by_id[str(cost)]["resets_at"]) == (10, None)
    cut = await quote_of(client, model=MODEL, on_budget="truncate")
    assert (cut["outcome"], cut["max_tokens"], cut["max_cost_micros"]) == ("accepted", 1, 10)
    assert cut["changes"]["max_tokens"]["given"] == 1
    other = await quote_of(client, model=MODEL, on_budget="fallback", fallback_model="cheap")
    assert (other["outcome"], other["model"], other["requested_model"]) == ("accepted", "cheap", MODEL)
    assert other["max_cost_micros"] == 6
    never = await quote_of(client, model=MODEL, on_budget="wait")
    assert never["outcome"] == "rejected"
    assert await balance(engine, tokens) == [(0, 10)]
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM jobs")) == 1


async def test_a_quote_says_that_a_job_would_wait(
    client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit
) -> None:
    await add_budget(engine, 10, period="month")
    assert (await quote_of(client, on_budget="wait"))["outcome"] == "accepted"
    await submit(**BODY)
    assert (await quote_of(client, on_budget="wait"))["outcome"] == "waiting"


async def test_a_quote_is_held_to_the_rules_of_a_submission(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post("/v1/jobs/quote", json={"max_tokens": 6}), 422, "invalid_request")
    assert_problem(await client.post("/v1/jobs/quote", json={**BODY, "model": "gone"}), 404, "unknown_model")
    nobody = await client.post("/v1/jobs/quote", json=BODY, headers={"Authorization": "Bearer no"})
    assert_problem(nobody, 401, "unauthenticated")
