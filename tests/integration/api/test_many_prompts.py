"""Are several prompts of one completion several jobs, all or none, and one answer? A worker by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.openai.completion_request import MAX_PROMPTS
from tests.support.api import HandWorker, Tenant
from tests.support.budgets import add_budget

PROMPTS: list[Any] = ["Once", [79, 110], "Twice upon"]


@pytest.fixture
async def face(app: FastAPI, client: httpx.AsyncClient, tenant: Tenant) -> AsyncIterator[openai.AsyncOpenAI]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        yield openai.AsyncOpenAI(base_url="http://test/v1", api_key=tenant.token, max_retries=0, http_client=http)


async def jobs_of(client: httpx.AsyncClient, count: int) -> list[dict[str, Any]]:
    """The jobs in the order of their prompts, once there are so many."""
    async with asyncio.timeout(20):
        while len(jobs := (await client.get("/v1/jobs")).json()["data"]) < count:
            await asyncio.sleep(0.01)
    return jobs[::-1]


def choices_of(place: int, n: int) -> list[dict[str, Any]]:
    return [{"index": i, "text": f"<{place}.{i}>", "finish_reason": "stop"} for i in range(n)]


async def test_each_prompt_has_its_choices_in_one_answer(
    client: httpx.AsyncClient, face: openai.AsyncOpenAI, worker: HandWorker
) -> None:
    call = asyncio.create_task(face.completions.create(model="bytes", prompt=PROMPTS, n=2, max_tokens=9))
    jobs = await jobs_of(client, 3)
    assert [job["usage"]["prompt_tokens"] for job in jobs] == [4, 2, 10]
    for place, job in reversed(list(enumerate(jobs))):
        await worker.finish(job, choices=choices_of(place, 2))
    async with asyncio.timeout(20):
        done = await call
    assert [(choice.index, choice.text) for choice in done.choices] == [
        (0, "<0.0>"), (1, "<0.1>"), (2, "<1.0>"), (3, "<1.1>"), (4, "<2.0>"), (5, "<2.1>"),
    ]  # fmt: skip
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (16, 21, 37)
    assert done.id == "cmpl-" + jobs[0]["id"].removeprefix("job_")


async def test_a_stream_of_them(client: httpx.AsyncClient, worker: HandWorker) -> None:
    body = {"prompt": PROMPTS, "n": 2, "max_tokens": 9, "stream": True, "stream_options": {"include_usage": True}}
    call = asyncio.create_task(client.post("/v1/completions", json=body))
    for place, job in reversed(list(enumerate(await jobs_of(client, 3)))):
        await worker.finish(job, choices=choices_of(place, 2))
    async with asyncio.timeout(20):
        lines = [line[6:] for line in (await call).text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    texts, reasons = [""] * 6, [0] * 6
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] += choice["finish_reason"] == "stop"
    assert texts == ["<0.0>", "<0.1>", "<1.0>", "<1.1>", "<2.0>", "<2.1>"]
    assert reasons == [1] * 6
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["usage"]["total_tokens"] for chunk in chunks if chunk["usage"]] == [37]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_if_one_fails_so_does_the_call_and_the_others_are_cancelled(
    client: httpx.AsyncClient, worker: HandWorker, *, is_stream: bool
) -> None:
    call = asyncio.create_task(client.post("/v1/completions", json={"prompt": PROMPTS, "stream": is_stream}))
    jobs = await jobs_of(client, 3)
    await worker.finish(jobs[0], status="dead", choices=None, error={"code": "engine_failed", "message": "it broke"})
    async with asyncio.timeout(20):
        answer = await call
    assert "engine_failed" in answer.text
    assert answer.status_code == (200 if is_stream else 500)
    assert [job["status"] for job in await jobs_of(client, 3)] == ["dead", "cancelled", "cancelled"]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_key_leads_back_to_all_of_them(
    client: httpx.AsyncClient, worker: HandWorker, *, is_stream: bool
) -> None:
    body, headers = {"prompt": PROMPTS, "stream": is_stream}, {"Idempotency-Key": "k"}
    call = asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))
    for place, job in enumerate(await jobs_of(client, 3)):
        await worker.finish(job, choices=choices_of(place, 1))
    first, again = await call, await client.post("/v1/completions", json=body, headers=headers)
    assert first.status_code == again.status_code == 200
    assert all(f"<{place}.0>" in again.text for place in range(3))
    assert len(await jobs_of(client, 3)) == 3


async def test_all_or_none(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await add_budget(engine, 40)
    answer = await client.post("/v1/completions", json={"prompt": ["a", "b", "c"], "max_tokens": 15})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert (await client.get("/v1/jobs")).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt", str(MAX_PROMPTS)),
        ({"prompt": ["a", ""]}, "prompt[1]", "empty"),
        ({"prompt": [[1], []]}, "prompt[1]", "empty"),
        ({"prompt": ["a", 5]}, "prompt[1]", "token ids"),
        ({"prompt": ["a", [5, "b"]]}, "prompt[1]", "token ids"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": ["a", "b" * 9000]}, "prompt[1]", "prompt[1]"),
        ({"prompt": ["a", "b"], "model": "nothing"}, "model", "nothing"),
        ({"prompt": ["a", "b"], "max_tokens": 10**6 - 1}, "max_tokens", "max_tokens"),
        ({"prompt": ["a", "b"], "fallback_model": "other"}, "fallback_model", "one prompt"),
        ({"prompt": ["a", "b"], "on_budget": "truncate"}, "on_budget", "one prompt"),
        ({"prompt": ["a", "b"], "webhook": {"url": "https://127.0.0.1/"}}, "webhook.url", "webhook"),
    ],
)
async def test_refusals_name_the_prompt(
    client: httpx.AsyncClient, body: dict[str, Any], param: str, words: str
) -> None:
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code in {400, 404}, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert words in error["message"]
    assert "jobs[" not in error["message"]
    assert (await client.get("/v1/jobs")).json()["data"] == []
