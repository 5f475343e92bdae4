"""What does OpenAI's own client do with our refusals, and what becomes of a job whose caller leaves?"""

import json
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import httpx
import openai
import pytest
import redis as sync_redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.openai.conftest import FAKE, Stack
from tests.support.budgets import add_budget

ASK: list[Any] = [{"role": "user", "content": "hi"}]
LONG = {"model": FAKE, "messages": ASK, "max_tokens": 4000}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": ASK, "temprature": 1}, "temprature"),
        ("chat/completions", {"messages": ASK, "audio": {"voice": "a"}}, "audio"),
        ("chat/completions", {"messages": ASK, "functions": []}, "functions"),
        ("chat/completions", {"messages": ASK, "service_tier": "scale"}, "service_tier"),
        ("chat/completions", {"messages": ASK, "top_logprobs": 3}, "top_logprobs"),
        ("chat/completions", {"messages": ASK, "temperature": "1"}, "temperature"),
        ("chat/completions", {"messages": ASK, "tool_choice": "required"}, "tool_choice"),
        ("chat/completions", {"messages": ASK, "max_tokens": 10**6 - 1, "model": FAKE}, "max_tokens"),
        ("chat/completions", {"messages": ASK, "max_completion_tokens": 10**6 - 1}, "max_completion_tokens"),
        ("responses", {"input": "a", "max_output_tokens": 10**6 - 1}, "max_output_tokens"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ("chat/completions", {"messages": ASK, "stop": ["a"] * 17}, "stop"),
        ("completions", {"prompt": ["a"] * 129}, "prompt"),
        ("completions", {"prompt": "a", "echo": True}, "echo"),
        ("completions", {"prompt": "a", "best_of": 3}, "best_of"),
        ("completions", {}, "prompt"),
        ("responses", {"input": "a", "conversation": "conv_1"}, "conversation"),
        ("responses", {"input": "a", "truncation": "auto"}, "truncation"),
        ("responses", {"input": "a", "background": True, "store": False}, "background"),
        ("responses", {"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ("responses", {"input": [{"type": "reasoning"}]}, "input"),
        ("responses", {"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_not_supported_is_a_400_that_names_it(
    stack: Stack, path: str, body: dict[str, Any], param: str
) -> None:
    answer = httpx.post(f"{stack.url}/v1/{path}", json={"model": FAKE} | body, headers=stack.tenant.auth, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert param.partition("[")[0] in error["message"]


def test_each_refusal_is_the_clients_own_class(client: openai.OpenAI, stack: Stack) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=ASK)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError) as wrong, stack.client(token="pk_nobody") as nobody:
        nobody.chat.completions.create(model=FAKE, messages=ASK)
    assert wrong.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=FAKE, prompt="a" * 9000, max_tokens=5)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as malformed:
        client.post(
            "/chat/completions", content=b"{", cast_to=object, options={"headers": {"content-type": "application/json"}}
        )
    assert malformed.value.code == "malformed_body"
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.APIStatusError) as grammar:
        client.chat.completions.create(model="brook", messages=ASK, response_format=form)
    assert (grammar.value.status_code, grammar.value.code) == (400, "grammar_invalid")
    with pytest.raises(openai.APIError) as streamed:
        for _ in client.chat.completions.create(model="brook", messages=ASK, response_format=form, stream=True):
            pass
    assert streamed.value.code == "grammar_invalid"


def test_the_client_comes_back_when_its_rate_allows(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"requests_per_minute": 2, "request_burst": 1}
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        with sync_redis.Redis.from_url(stack.settings.required_redis_url) as redis:
            redis.delete(*redis.keys("rate:{hasty}*"))  # as if so much time had passed

    tenant = stack.new_tenant("hasty", rates=rates)
    with monkeypatch.context() as patch, stack.client(token=tenant.token, max_retries=3) as client:
        patch.setattr("openai._base_client.time.sleep", sleep)
        created = client.completions.with_raw_response.create
        answers = [created(model=FAKE, prompt="a", max_tokens=1) for _ in range(2)]
    assert answers[0].retries_taken == 0
    assert answers[1].retries_taken == len(slept) == 1, "the second one was refused first"
    assert 1 <= slept[0] <= 30 * 1.25 + 2
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-requests"] == "1"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-reset-requests"]
        assert answer.headers["x-request-id"].startswith("job_")
    with stack.client(token=stack.new_tenant("hasty2", rates=rates).token) as client:
        client.completions.create(model=FAKE, prompt="a", max_tokens=1)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model=FAKE, prompt="a", max_tokens=1)
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_the_client_does_not_try_an_exhausted_budget_again(stack: Stack) -> None:
    tenant = stack.new_tenant("poor")
    stack.on_database(lambda engine: add_budget(engine, 5, tenant="poor"))
    with stack.client(token=tenant.token, max_retries=5) as client, pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model=FAKE, prompt="abc", max_tokens=100)
    assert caught.value.code == caught.value.type == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_the_client_comes_back_when_a_503_says(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def set_breaker(engine: AsyncEngine, mode: str) -> None:
        async with engine.begin() as conn:
            await conn.execute(
                text(
                    "INSERT INTO breakers (model, mode) VALUES (:model, :mode) ON CONFLICT (model) DO UPDATE SET mode = :mode"
                ),
                {"model": FAKE, "mode": mode},
            )

    real_sleep, slept = time.sleep, []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        stack.on_database(lambda engine: set_breaker(engine, "auto"))
        real_sleep(1.0)  # what a process knows of breakers is half a second old at most

    stack.on_database(lambda engine: set_breaker(engine, "open"))
    real_sleep(1.0)
    with stack.client() as client, pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=FAKE, prompt="a", max_tokens=1)
    assert caught.value.status_code == 503
    assert caught.value.code == "model_unavailable"
    told = int(caught.value.response.headers["retry-after"])
    assert 0 < told <= 120
    monkeypatch.setattr("openai._base_client.time.sleep", sleep)
    with stack.client(max_retries=1) as client:
        assert client.completions.create(model=FAKE, prompt="a", max_tokens=1).choices[0].text
    assert len(slept) == 1
    assert 0 < slept[0] <= 120
    assert slept[0] == int(slept[0]), "as the header said, not by the client's own guess"


def wait_until(is_so: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def until(stack: Stack, job: str, status: str) -> None:
    wait_until(lambda: stack.status_of(job) == status)


def newest(stack: Stack) -> list[str]:
    """The newest job's id, if there is one."""
    answer = httpx.get(f"{stack.url}/v1/jobs?limit=1", headers=stack.tenant.auth, timeout=60)
    return [each["id"] for each in answer.json()["data"]]


def begun_and_left(stack: Stack, path: str, body: dict[str, Any]) -> str:
    """The job of a call whose caller hangs up before the answer, as soon as the job is there."""
    before = newest(stack)
    url = httpx.URL(stack.url)
    with closing(HTTPConnection(url.host, url.port or 80)) as caller:
        caller.request("POST", path, json.dumps(body), stack.tenant.auth | {"content-type": "application/json"})
        wait_until(lambda: newest(stack) != before)
        (job,) = newest(stack)
        assert stack.status_of(job) in {"queued", "running"}
    return job


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_who_leaves_takes_his_job_with_him(stack: Stack, path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "chat/completions": LONG,
        "completions": {"model": FAKE, "prompt": "a", "max_tokens": 4000},
        "responses": {"model": FAKE, "input": "a", "max_output_tokens": 4000, "store": False},
    }
    until(stack, begun_and_left(stack, f"/v1/{path}", bodies[path]), "cancelled")
    body = bodies[path] | {"stream": True}
    with httpx.stream("POST", f"{stack.url}/v1/{path}", json=body, headers=stack.tenant.auth, timeout=60) as answer:
        job = answer.headers["x-request-id"]
        next(answer.iter_lines())
    until(stack, job, "cancelled")


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_what_is_stored_goes_on(stack: Stack, client: openai.OpenAI, path: str) -> None:
    body: dict[str, Any] = {"model": FAKE, "stream": True}
    if path == "responses":
        body |= {"input": "a", "max_output_tokens": 60}
    else:
        body |= {"messages": ASK, "max_tokens": 60, "store": True}
    with httpx.stream("POST", f"{stack.url}/v1/{path}", json=body, headers=stack.tenant.auth, timeout=60) as answer:
        job = answer.headers["x-request-id"]
        next(answer.iter_lines())
    until(stack, job, "succeeded")
    if path == "responses":
        assert client.responses.retrieve(job.replace("job_", "resp_")).output_text
    else:
        assert client.chat.completions.retrieve(job.replace("job_", "chatcmpl-")).choices[0].message.content


def test_a_tier_is_asked_for_by_its_name_there(client: openai.OpenAI, stack: Stack) -> None:
    for word, tier, shown in (
        ("priority", "interactive", "priority"),
        ("flex", "batch", "flex"),
        ("auto", "standard", "default"),
    ):
        raw = client.chat.completions.with_raw_response.create(
            model=FAKE, messages=ASK, max_tokens=1, service_tier=word, metadata={"a": "b"}, user="u"
        )
        job = httpx.get(
            f"{stack.url}/v1/jobs/{raw.headers['x-request-id']}", headers=stack.tenant.auth, timeout=60
        ).json()
        assert (job["tier"], job["metadata"]) == (tier, {"a": "b"})
        assert raw.parse().service_tier == shown


def test_a_stream_ends_with_done(stack: Stack) -> None:
    for path, body in (
        ("chat/completions", {"messages": ASK}),
        ("completions", {"prompt": "a"}),
        ("responses", {"input": "a"}),
    ):
        most = {"max_output_tokens" if path == "responses" else "max_tokens": 2}
        with httpx.stream(
            "POST",
            f"{stack.url}/v1/{path}",
            json={"model": FAKE, "stream": True} | body | most,
            headers=stack.tenant.auth,
            timeout=60,
        ) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert lines[-1] == "data: [DONE]"
        assert all(json.loads(line[6:]) for line in lines[:-1])
