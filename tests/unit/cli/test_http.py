"""Is the command line patient where the API asks for it, and clear where the API says no?"""

import pytest

from app.cli.errors import one_line
from app.cli.http import Api, Target, find_target, tokens_of
from app.client import PenstockError as ApiError
from app.errors import PenstockError
from app.settings import Settings
from tests.support.hostile import hostile, http

TOO_FAST = b'{"code": "rate_limited", "detail": "too fast", "retryable": true}'
SPENT = b'{"code": "budget_exhausted", "detail": "all is spent", "retryable": false}'
TOMORROW = b'{"code": "unavailable", "detail": "come back tomorrow", "retryable": true}'


async def said(url: str) -> str | None:
    """What a person reads when a call fails."""
    async with Api(Target(url, "pk_000000000000_secret")) as api:
        with pytest.raises(ApiError) as raised:
            await api.get("job_1")
    return one_line(raised.value)


async def test_a_long_wait_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def no_sleep(_: float) -> None:
        return None

    with hostile(
        http(429, TOO_FAST, Retry_After="5"), http(503, Retry_After="2"), http(200, b'{"id": "job_1"}')
    ) as server:
        async with Api(Target(server.url, "pk")) as api:
            monkeypatch.setattr(api, "_sleep", no_sleep)
            assert await api.get("job_1") == {"id": "job_1"}
    assert capsys.readouterr().err == "penstock: too fast (rate_limited); trying again in 5 s, Ctrl-C gives up\n"


async def test_a_refusal_ends_with_its_code() -> None:
    with hostile(http(429, SPENT, Retry_After="1")) as server:
        assert await said(server.url) == "all is spent (budget_exhausted)"


async def test_a_wait_that_is_too_long_is_refused_at_once() -> None:
    with hostile(http(503, TOMORROW, Retry_After="86400")) as server:
        assert await said(server.url) == "come back tomorrow (unavailable)"


async def test_an_api_that_never_answered_isnt_waited_for() -> None:
    with hostile(b"") as server:
        url = server.url
    assert await said(url) == f"no answer from {url} (Connection refused): is `penstock up` running?"


async def test_something_else_that_answers_is_said_to_be_something_else() -> None:
    with hostile(http(200, b"<html>")) as server:
        assert await said(server.url) == f"what answers at {server.url} isn't Penstock: it sent no JSON object"


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
