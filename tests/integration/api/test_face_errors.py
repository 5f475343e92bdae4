"""Do all answers of the OpenAI-compatible face's paths carry its error object, those of no route and of a database that is away, too?"""

import httpx
import openai
import pytest
from fastapi import FastAPI

from app.api.main import create_app
from app.settings import Settings
from tests.support.api import assert_problem, running

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


def error_of(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return dict(error)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/nothing", 404, "not_found"),
        ("GET", "/v1/responses", 405, "method_not_allowed"),
        ("PUT", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/responses/resp_1/nothing", 404, "not_found"),
    ],
)
async def test_the_faces_own_paths_answer_in_its_words_alone(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)
    error_of(answer, status, code)
    assert set(answer.json()) == {"error"}
    assert answer.headers["content-type"] == "application/json"
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/files/a/b/c", 404, "not_found"),
        ("PATCH", "/v1/batches", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("POST", "/v1/audio/speech", 404, "not_found"),
    ],
)
async def test_paths_of_both_faces_and_unknown_ones_answer_in_both(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)
    error_of(answer, status, code)
    assert_problem(answer, status, code)


@pytest.mark.parametrize(
    "path", ["/v1/jobs/a/b/c", "/v1/webhook_endpoints/a/b/c", "/v1/admin/nothing", "/nothing", "/v1"]
)
async def test_other_paths_answer_in_ours_alone(client: httpx.AsyncClient, path: str) -> None:
    assert "error" not in assert_problem(await client.get(path), 404, "not_found")


async def test_a_key_brings_back_only_a_call_that_is_kept_as_it_asks(client: httpx.AsyncClient) -> None:
    """The job was the same, so an answer said that it was stored under an id that nobody could read."""
    key = {"Idempotency-Key": "k"}
    job = await client.post("/v1/jobs", json={"messages": [{"role": "user", "content": "a"}]}, headers=key)
    assert job.status_code == 202
    asked = {"input": "a", "background": True}
    error_of(await client.post("/v1/responses", json=asked, headers=key), 400, "idempotency_mismatch")
    first = await client.post("/v1/responses", json=asked, headers={"Idempotency-Key": "l"})
    again = await client.post("/v1/responses", json=asked, headers={"Idempotency-Key": "l"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert (await client.get(f"/v1/responses/{first.json()['id']}")).status_code == 200
    error_of(
        await client.post("/v1/responses", json={"input": "a"}, headers={"Idempotency-Key": "l"}),
        400,
        "idempotency_mismatch",
    )


async def test_a_database_that_is_away(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"database_url": NOWHERE, "database_timeout_s": 2.0}))
    async with running(app, {"Authorization": "Bearer pk_0123456789ab_c29tZWJvZHk"}) as client:
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/v1/models/a/b"),
            ("GET", "/v1/files"),
            ("POST", "/v1/batches"),
            ("GET", "/v1/batches/batch_1"),
        ):
            answer = await client.request(method, path, json={} if method == "POST" else None)
            error_of(answer, 503, "unavailable")
            assert_problem(answer, 503, "unavailable")
            assert answer.headers["retry-after"]
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
            error_of(await client.post(path, json={}), 503, "unavailable")


async def test_openais_client_reads_them(app: FastAPI, client: httpx.AsyncClient) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport) as http:
        face = openai.AsyncOpenAI(base_url="http://test/v1", api_key="pk", max_retries=0, http_client=http)
        with pytest.raises(openai.NotFoundError) as unknown:
            await face.embeddings.create(model="bytes", input="a")
        assert (unknown.value.code, unknown.value.type) == ("not_found", "invalid_request_error")
        assert "nothing at this path" in str(unknown.value)
