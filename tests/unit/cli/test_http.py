"""Is the command line's client patient where the API asks for it, and clear where the API says no?"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.cli.http import Api, Refused, Target, find_target, tokens_of
from app.errors import PenstockError, Unavailable
from app.settings import Settings

TARGET = Target("http://127.0.0.1:1", "pk_000000000000_secret")
Handler = Callable[[httpx.Request], httpx.Response]


class Slept:
    """A sleep that takes no time and remembers how long it was for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def api_with(handler: Handler, slept: Slept) -> Api:
    return Api(TARGET, sleep=slept, transport=httpx.MockTransport(handler))


def answers(*responses: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    seen: list[httpx.Request] = []
    rest: Iterator[httpx.Response | Exception] = iter(responses)

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = next(rest)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler, seen


def problem(status: int, headers: dict[str, str] | None = None, **members: Any) -> httpx.Response:
    return httpx.Response(status, json=members, headers=headers)


async def test_retry_after_is_honoured_and_the_idempotency_key_stays(capsys: pytest.CaptureFixture[str]) -> None:
    handler, seen = answers(
        problem(429, {"Retry-After": "7"}, retryable=True, code="rate_limited", detail="too fast"),
        problem(503, {"Retry-After": "2"}, retryable=True),
        httpx.Response(202, json={"id": "job_1"}),
    )
    slept = Slept()
    async with api_with(handler, slept) as api:
        assert await api.submit({"prompt": "a"}, idempotency_key="k") == {"id": "job_1"}
    assert slept.seconds == [7.0, 2.0]
    assert capsys.readouterr().err == "penstock: too fast (rate_limited); trying again in 7 s, Ctrl-C gives up\n"
    assert [request.headers["idempotency-key"] for request in seen] == ["k"] * 3
    assert {request.headers["authorization"] for request in seen} == {f"Bearer {TARGET.api_key}"}
    assert json.loads(seen[-1].content) == {"prompt": "a"}


@pytest.mark.parametrize(
    "response",
    [
        problem(429, {"Retry-After": "1", "x-should-retry": "false"}, code="budget_exhausted", detail="all is spent"),
        problem(429, {"Retry-After": "1"}, code="budget_exhausted", detail="all is spent", retryable=False),
        problem(422, code="budget_exhausted", detail="all is spent"),
    ],
)
async def test_what_cant_succeed_is_not_asked_again(response: httpx.Response) -> None:
    handler, seen = answers(response)
    slept = Slept()
    async with api_with(handler, slept) as api:
        with pytest.raises(Refused, match=r"^all is spent \(budget_exhausted\)$"):
            await api.job("job_1")
    assert len(seen) == 1
    assert slept.seconds == []


async def test_a_wait_that_is_too_long_is_refused_at_once() -> None:
    handler, _ = answers(problem(503, {"Retry-After": "86400"}, code="unavailable", detail="come back tomorrow"))
    async with api_with(handler, Slept()) as api:
        with pytest.raises(Refused, match="come back tomorrow"):
            await api.job("job_1")


async def test_an_api_that_never_answered_isnt_waited_for() -> None:
    handler, seen = answers(httpx.ConnectError("[Errno 111] Connection refused"))
    async with api_with(handler, Slept()) as api:
        with pytest.raises(Unavailable, match=r"\[Errno 111\] Connection refused.*is `penstock up` running"):
            await api.job("job_1")
    assert len(seen) == 1


async def test_a_connection_that_is_lost_in_between_is_tried_again() -> None:
    handler, seen = answers(
        httpx.Response(200, json={"status": "running"}),
        httpx.ReadError(""),
        httpx.ConnectError(""),
        httpx.Response(200, json={"status": "succeeded"}),
    )
    async with api_with(handler, Slept()) as api:
        await api.job("job_1")
        assert await api.job("job_1", wait_s=25) == {"status": "succeeded"}
    assert seen[-1].headers["prefer"] == "wait=25"


async def test_pages_are_followed_up_to_the_limit() -> None:
    handler, seen = answers(
        httpx.Response(200, json={"data": [{"id": str(i)} for i in range(100)], "next_cursor": "c"}),
        httpx.Response(200, json={"data": [{"id": "100"}], "next_cursor": "d"}),
    )
    async with api_with(handler, Slept()) as api:
        assert len(await api.jobs(limit=101, status="queued", tier=None)) == 101
    assert dict(seen[1].url.params) == {"status": "queued", "limit": "1", "cursor": "c"}


async def test_something_else_that_answers_is_said_to_be_something_else() -> None:
    handler, _ = answers(httpx.Response(200, text="<html>"))
    async with api_with(handler, Slept()) as api:
        with pytest.raises(PenstockError, match="isn't Penstock"):
            await api.job("job_1")


def test_tokens_are_those_of_the_progress_until_there_are_billed_ones() -> None:
    assert tokens_of({"usage": {"completion_tokens": 0}, "progress": {"completion_tokens": 4}}) == 4
    assert tokens_of({"usage": {"completion_tokens": 9}, "progress": None}) == 9
    assert tokens_of({}) == 0


def test_the_target_is_what_is_given_then_what_up_left(settings_in: Settings) -> None:
    folder = settings_in.data_dir
    with pytest.raises(PenstockError, match="PENSTOCK_URL"):
        find_target(settings_in, None, "pk")
    with pytest.raises(PenstockError, match="PENSTOCK_API_KEY"):
        find_target(settings_in, "http://api", None)
    (folder / "url").write_text("http://127.0.0.1:8000\n")
    (folder / "api-key").write_text("pk_up\n")
    assert find_target(settings_in, None, None) == Target("http://127.0.0.1:8000", "pk_up")
    assert find_target(settings_in, "https://api.example/v1/", "pk_own") == Target("https://api.example", "pk_own")
    with pytest.raises(PenstockError, match="must begin with http"):
        find_target(settings_in, "api.example", None)
