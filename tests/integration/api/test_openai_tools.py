"""Are calls that a model makes by itself told as calls, and do the turns that follow come through its template? A worker by hand."""

import asyncio
import json
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.tables import job_inputs
from app.jobs.timekeeping import forget_outputs
from tests.support.api import HandWorker, Tenant, assert_problem, until_seated

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ASK = [{"role": "user", "content": "How is it in Rome?"}]
TEXT = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


async def answered(
    app: FastAPI,
    client: httpx.AsyncClient,
    worker: HandWorker,
    path: str,
    body: dict[str, Any],
    text: str,
    reason: str = "stop",
) -> httpx.Response:
    """The answer to a call whose job gives this text."""
    call = asyncio.create_task(client.post(path, json=body))
    await until_seated(app)
    job = (await client.get("/v1/jobs?limit=1")).json()["data"][0]
    await worker.finish(job, choices=[{"index": 0, "text": text, "finish_reason": reason}])
    return await call


async def test_a_call_that_the_model_makes_is_told_as_one(
    app: FastAPI, client: httpx.AsyncClient, worker: HandWorker
) -> None:
    body = {"messages": ASK, "tools": TOOLS}
    (choice,) = (await answered(app, client, worker, "/v1/chat/completions", body, TEXT)).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] == "Let me see."
    assert choice["finish_reason"] == "tool_calls"
    assert (call["type"], call["function"]) == ("function", {"name": "weather", "arguments": '{"city": "Rome"}'})
    none = await answered(app, client, worker, "/v1/chat/completions", body | {"tool_choice": "none"}, TEXT)
    (choice,) = none.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (TEXT, "stop")
    assert "tool_calls" not in choice["message"]


async def test_a_stream_of_a_call_that_the_model_makes(client: httpx.AsyncClient, worker: HandWorker) -> None:
    call = asyncio.create_task(
        client.post("/v1/chat/completions", json={"messages": ASK, "tools": TOOLS, "stream": True})
    )
    jobs: list[Any] = []
    while not jobs:
        jobs = (await client.get("/v1/jobs?limit=1")).json()["data"]
    await worker.finish(jobs[0], choices=[{"index": 0, "text": TEXT, "finish_reason": "stop"}])
    lines = [line[6:] for line in (await call).text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines]
    calls = [part for choice in choices for part in choice["delta"].get("tool_calls", [])]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Let me see."
    assert calls[0]["function"]["name"] == "weather"
    assert "".join(part["function"]["arguments"] for part in calls) == '{"city": "Rome"}'
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_a_response_goes_on_with_the_calls_before_it(
    app: FastAPI, client: httpx.AsyncClient, worker: HandWorker, engine: AsyncEngine
) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
    body = {"input": "How is it in Rome?", "instructions": "Be short.", "tools": tools}
    before = (await answered(app, client, worker, "/v1/responses", body, TEXT)).json()
    assert [item["type"] for item in before["output"]] == ["message", "function_call"]
    given = {"type": "function_call_output", "call_id": before["output"][1]["call_id"], "output": "sunny"}
    after = {"input": [given], "previous_response_id": before["id"]}
    shown = (await answered(app, client, worker, "/v1/responses", after, "It is sunny.")).json()
    assert shown["status"] == "completed"
    assert shown["output"][0]["content"][0]["text"] == "It is sunny."
    async with engine.connect() as conn:
        stored = await conn.scalar(select(job_inputs.c.request).order_by(job_inputs.c.job_id.desc()).limit(1))
    assert [turn["role"] for turn in stored["messages"]] == ["user", "assistant", "tool"], (
        "instructions aren't carried on"
    )
    assert stored["messages"][1]["content"] == "Let me see."
    assert stored["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'


async def test_ends_without_a_result_have_statuses_of_their_own(
    app: FastAPI, client: httpx.AsyncClient, worker: HandWorker
) -> None:
    for status, code, wanted in (
        ("failed", "grammar_invalid", 400),
        ("failed", "result_not_storable", 500),
        ("expired", "deadline_passed", 504),
    ):
        call = asyncio.create_task(client.post("/v1/chat/completions", json={"messages": ASK}))
        await until_seated(app)
        job = (await client.get("/v1/jobs?limit=1")).json()["data"][0]
        await worker.finish(job, status=status, choices=None, error={"code": code, "message": "why"})
        answer = await call
        assert (answer.status_code, answer.headers["x-should-retry"]) == (wanted, "false")
        assert (answer.json()["error"]["code"], answer.json()["error"]["message"]) == (code, "why")


async def test_a_key_brings_the_same_answer_again(app: FastAPI, client: httpx.AsyncClient, worker: HandWorker) -> None:
    client.headers["Idempotency-Key"] = "k"
    first = await answered(app, client, worker, "/v1/chat/completions", {"messages": ASK}, "Hello.")
    assert (await client.post("/v1/chat/completions", json={"messages": ASK})).json() == first.json()
    other = await client.post("/v1/chat/completions", json={"messages": [*ASK, *ASK]})
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_mismatch")


async def test_an_output_that_is_not_kept_any_more_is_not_found(
    app: FastAPI, client: httpx.AsyncClient, worker: HandWorker, engine: AsyncEngine
) -> None:
    made = (await answered(app, client, worker, "/v1/responses", {"input": "a"}, "Hello.")).json()
    assert (await client.get(f"/v1/responses/{made['id']}")).json() == made
    async with engine.begin() as conn:
        assert await forget_outputs(conn, ttl_s=0) == 1
    answer = await client.get(f"/v1/responses/{made['id']}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    body = {"input": "b", "previous_response_id": made["id"]}
    assert (await client.post("/v1/responses", json=body)).json()["error"]["param"] == "previous_response_id"


async def test_native_errors_stay_problems(client: httpx.AsyncClient, tenant: Tenant) -> None:
    assert_problem(await client.get("/v1/jobs/nonsense"), 404, "not_found")
    tools = {"prompt": "a", "tools": TOOLS}
    assert_problem(await client.post("/v1/jobs", json=tools), 422, "invalid_request", "tools")
