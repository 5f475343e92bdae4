"""Is the client patient where the API asks for it, clear where the API says no, and never the cause of a second job?"""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.client import NoAnswer, NotPenstock, Penstock, Refused, Retries, TimedOut, texts
from tests.support.hostile import RESET, hostile, http
from tests.unit.client.conftest import KEY, Driven, answers, problem

Drive = Callable[..., Driven]
JOB = {"id": "job_1", "status": "queued"}
ENDED = JOB | {"status": "succeeded", "choices": [{"index": 0, "text": " there"}]}


def test_retry_after_is_honoured_and_the_idempotency_key_stays(driven: Drive) -> None:
    handler, seen = answers(
        problem(429, {"Retry-After": "7"}, retryable=True, code="rate_limited", detail="too fast"),
        problem(503, {"Retry-After": "2"}, retryable=True),
        httpx.Response(202, json=JOB),
    )
    client = driven(handler=handler)
    assert client.call("submit", prompt="a") == JOB
    assert client.slept.seconds == [7.0, 2.0]
    assert [(error.code, delay_s) for error, delay_s in client.told] == [("rate_limited", 7.0), ("http_503", 2.0)]
    keys = {request.headers["idempotency-key"] for request in seen}
    assert len(keys) == 1
    assert keys != {""}
    assert {request.headers["authorization"] for request in seen} == {f"Bearer {KEY}"}
    assert json.loads(seen[-1].content) == {"prompt": "a"}


def test_who_was_refused_together_comes_back_apart_but_never_too_early(driven: Drive) -> None:
    handler, _ = answers(problem(503, {"Retry-After": "10"}), httpx.Response(200, json=JOB))
    client = driven(handler=handler, draw=0.5)
    client.call("get", "job_1")
    assert client.slept.seconds == [pytest.approx(10.5)]


def test_two_submissions_have_two_keys_and_a_given_key_is_kept(driven: Drive) -> None:
    handler, seen = answers(*[httpx.Response(202, json=JOB)] * 3)
    client = driven(handler=handler)
    for options in ({}, {}, {"idempotency_key": "mine"}):
        client.call("submit", prompt="a", **options)
    first, second, third = (request.headers["idempotency-key"] for request in seen)
    assert first != second
    assert third == "mine"


@pytest.mark.parametrize(
    ("status", "headers", "retryable"),
    [
        (429, {"Retry-After": "1", "x-should-retry": "false"}, True),
        (429, {"Retry-After": "1"}, False),
        (422, {}, False),
    ],
    ids=["x-should-retry", "retryable", "status"],
)
def test_what_cant_succeed_is_not_asked_again(
    driven: Drive, status: int, headers: dict[str, str], retryable: bool
) -> None:
    handler, seen = answers(
        problem(status, headers, code="budget_exhausted", detail="all is spent", retryable=retryable)
    )
    client = driven(handler=handler)
    with pytest.raises(Refused, match=r"^all is spent$") as raised:
        client.call("get", "job_1")
    assert (raised.value.code, raised.value.retryable) == ("budget_exhausted", retryable)
    assert len(seen) == 1
    assert client.slept.seconds == []


def test_x_should_retry_says_yes_where_the_status_says_nothing(driven: Drive) -> None:
    handler, seen = answers(problem(500, {"x-should-retry": "true"}), httpx.Response(200, json=JOB))
    assert driven(handler=handler).call("get", "job_1") == JOB
    assert len(seen) == 2


def test_a_refusal_names_the_field_and_its_limit(driven: Drive) -> None:
    broken = [{"field": "temperature", "message": "must be less than or equal to 2", "limit": 2.0}]
    handler, _ = answers(
        problem(422, code="invalid_request", detail="temperature: …", retryable=False, errors=broken),
        problem(400, code="over_tenant_limit", detail="…", retryable=False, param="max_tokens", limit=100),
        httpx.Response(
            400, json={"error": {"message": "no such model", "type": "x", "param": "model", "code": "unknown_model"}}
        ),
    )
    client = driven(handler=handler)
    seen = []
    for _ in range(3):
        with pytest.raises(Refused) as raised:
            client.call("submit", prompt="a")
        error = raised.value
        seen.append((error.code, error.status, error.field, error.limit, error.retryable))
    assert seen == [
        ("invalid_request", 422, "temperature", 2.0, False),
        ("over_tenant_limit", 400, "max_tokens", 100, False),
        ("unknown_model", 400, "model", None, False),
    ]


def test_a_wait_that_is_too_long_is_raised_at_once_with_its_length(driven: Drive) -> None:
    handler, _ = answers(problem(503, {"Retry-After": "86400"}, code="unavailable", detail="come back tomorrow"))
    client = driven(handler=handler)
    with pytest.raises(Refused, match="come back tomorrow") as raised:
        client.call("get", "job_1")
    assert raised.value.retry_after_s == 86400
    assert raised.value.retryable
    assert client.slept.seconds == []


def test_a_storm_of_429_ends_when_patience_does(driven: Drive) -> None:
    storm = http(429, b'{"code": "rate_limited", "retryable": true, "detail": "too fast"}', Retry_After="10")
    with hostile(storm) as server:
        client = driven(url=server.url, retries=Retries(patience_s=35))
        with pytest.raises(Refused, match="too fast"):
            client.call("submit", prompt="a")
        assert client.slept.seconds == [10.0, 10.0, 10.0]
        assert len(server.asked) == 4
        assert len({each.headers["idempotency-key"] for each in server.asked}) == 1


def test_backoff_grows_to_its_cap_where_nothing_is_said(driven: Drive) -> None:
    with hostile(http(503)) as server:
        client = driven(url=server.url, draw=1.0)
        with pytest.raises(Refused):
            client.call("get", "job_1")
    assert client.slept.seconds[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert sum(client.slept.seconds) <= 120


def test_a_date_is_a_retry_after_too_and_nonsense_is_none(driven: Drive) -> None:
    handler, _ = answers(
        problem(503, {"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"}),
        problem(503, {"Retry-After": "soon"}),
        problem(503, {"Retry-After": "inf"}),
        httpx.Response(200, json=JOB),
    )
    client = driven(handler=handler)
    assert client.call("get", "job_1") == JOB
    assert client.slept.seconds == [0.0, 0.05, 0.05]


@pytest.mark.parametrize(
    "cut",
    [
        [RESET],
        [b""],
        [b"HTTP/1.1 202 Acc"],
        [http(202, b'{"id": "job_1"}')[:-5]],
        [b"HTTP/1.1 202 X\r\nContent-Length: 9\r\n\r\n{", RESET],
    ],
    ids=["reset", "closed", "half a head", "half a body", "reset in the body"],
)
def test_a_lost_answer_is_asked_for_again_under_the_same_key(driven: Drive, cut: list[Any]) -> None:
    with hostile(lambda _: cut, lambda _: cut, http(202, json.dumps(JOB).encode())) as server:
        assert driven(url=server.url).call("submit", prompt="a") == JOB
        assert len({each.headers["idempotency-key"] for each in server.asked}) == 1
        assert len(server.asked) == 3


def test_bytes_that_come_one_by_one_make_a_whole_answer(driven: Drive) -> None:
    whole = http(200, json.dumps(ENDED).encode())
    with hostile(lambda _: [whole[place : place + 1] for place in range(len(whole))]) as server:
        assert driven(url=server.url).call("get", "job_1") == ENDED


def test_an_api_that_stays_away_is_given_up(driven: Drive) -> None:
    with hostile(lambda _: [RESET]) as server:
        client = driven(url=server.url, draw=1.0, retries=Retries(lost_s=5))
        with pytest.raises(NoAnswer, match=r"no answer from http://127"):
            client.call("get", "job_1")
    assert sum(client.slept.seconds) <= 5


def test_an_api_that_never_answered_isnt_waited_for_where_that_is_wanted(driven: Drive) -> None:
    handler, seen = answers(httpx.ConnectError("[Errno 111] Connection refused"))
    with pytest.raises(NoAnswer, match=r"\[Errno 111\] Connection refused"):
        driven(handler=handler, retries=Retries(first_contact=False)).call("get", "job_1")
    assert len(seen) == 1


def test_something_else_that_answers_is_said_to_be_something_else(driven: Drive) -> None:
    handler, _ = answers(httpx.Response(200, text="<html>"))
    with pytest.raises(NotPenstock, match="isn't Penstock"):
        driven(handler=handler).call("get", "job_1")


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (501, {"text": "<html>Unsupported method ('POST')</html>"}, "it says 501 Not Implemented"),
        (404, {"json": {"detail": "Not Found"}}, "it says 404 Not Found"),
        (404, {"json": ["no"]}, "it says 404 Not Found"),
        (301, {"headers": {"Location": "/elsewhere"}}, "it says 301 Moved Permanently"),
        (413, {"text": "<html>nginx</html>"}, "it says 413"),
        (500, {"json": {"error": "oops"}}, "it says 500"),
    ],
)
def test_a_refusal_without_a_code_of_ours_is_said_to_be_something_elses(
    driven: Drive, status: int, content: dict[str, Any], said: str
) -> None:
    handler, seen = answers(httpx.Response(status, **content))
    with pytest.raises(NotPenstock, match=f"isn't Penstock: {said}"):
        driven(handler=handler).call("submit", prompt="a")
    assert len(seen) == 1


def test_a_proxy_whose_server_is_away_is_asked_again(driven: Drive) -> None:
    handler, seen = answers(httpx.Response(502, text="<html>Bad Gateway</html>"), httpx.Response(200, json=ENDED))
    assert driven(handler=handler).call("get", "job_1") == ENDED
    assert len(seen) == 2


def test_waiting_asks_until_the_end_and_pauses_where_there_is_no_seat(driven: Drive) -> None:
    handler, seen = answers(httpx.Response(200, json=JOB), httpx.ReadError(""), httpx.Response(200, json=ENDED))
    client = driven(handler=handler)
    assert texts(client.call("wait", JOB)) == [" there"]
    assert [request.headers["prefer"] for request in seen] == ["wait=25"] * 3
    assert client.slept.seconds == [0.5, 0.05]


def test_waiting_gives_up_when_it_was_told_to(driven: Drive) -> None:
    client = driven(handler=lambda _: httpx.Response(200, json=JOB))
    with pytest.raises(TimedOut, match="job_1 is still queued after 3 s"):
        client.call("wait", "job_1", timeout_s=3)
    assert sum(client.slept.seconds) == pytest.approx(3)


def test_pages_are_followed_up_to_the_limit(driven: Drive) -> None:
    handler, seen = answers(
        httpx.Response(200, json={"data": [{"id": str(i)} for i in range(100)], "next_cursor": "c"}),
        httpx.Response(200, json={"data": [{"id": "100"}], "next_cursor": "d"}),
    )
    found = driven(handler=handler).listed(limit=101, status="queued", tier=None, metadata={"run": "7"})
    assert [each["id"] for each in found] == [str(i) for i in range(101)]
    assert dict(seen[1].url.params) == {"status": "queued", "metadata[run]": "7", "limit": "1", "cursor": "c"}


def test_a_list_ends_with_its_last_page(driven: Drive) -> None:
    handler, seen = answers(
        httpx.Response(200, json={"data": [{"id": "1"}], "next_cursor": "c"}),
        httpx.Response(200, json={"data": [{"id": "2"}], "next_cursor": None}),
    )
    assert len(driven(handler=handler).listed()) == 2
    assert len(seen) == 2


def test_many_jobs_go_in_thousands_and_a_repeated_call_finds_its_jobs(driven: Drive) -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        jobs = json.loads(request.content)["jobs"]
        key = request.headers["idempotency-key"]
        return httpx.Response(202, json={"object": "job.bulk", "job_ids": [f"{key}/{job['prompt']}" for job in jobs]})

    wanted = [{"prompt": str(number)} for number in range(2001)]
    found = driven(handler=serve).call("submit_many", iter(wanted), idempotency_key="k")
    assert found == [f"k-{number // 1000 * 1000}/{number}" for number in range(2001)]


def test_long_jobs_go_in_fewer_at_a_time_and_an_empty_call_is_none(driven: Drive) -> None:
    sizes = []

    def serve(request: httpx.Request) -> httpx.Response:
        sizes.append(len(request.content))
        return httpx.Response(202, json={"job_ids": ["job_1"] * len(json.loads(request.content)["jobs"])})

    client = driven(handler=serve)
    assert len(client.call("submit_many", [{"prompt": "ü" * 1_000_000}] * 5)) == 5
    assert len(sizes) == 3
    assert max(sizes) < 5_000_000
    assert client.call("submit_many", []) == []
    assert len(sizes) == 3


def test_a_refused_part_of_many_says_what_was_taken(driven: Drive) -> None:
    handler, _ = answers(
        httpx.Response(202, json={"job_ids": [str(i) for i in range(1000)]}),
        problem(429, code="budget_exhausted", detail="all is spent", retryable=False),
    )
    with pytest.raises(Refused, match="all is spent") as raised:
        driven(handler=handler).call("submit_many", [{"prompt": "a"}] * 1500, idempotency_key="k")
    assert raised.value.__notes__ == ["the first 1000 jobs were taken; the same call with idempotency_key='k' goes on"]


def test_any_route_can_be_asked_and_is_tried_again_unless_that_is_forbidden(driven: Drive) -> None:
    lost = http(502)
    with hostile(lost, http(200, b'{"object": "list"}'), lost) as server:
        client = driven(url=server.url)
        assert client.call("request", "GET", "/v1/models", params={"limit": 3}) == {"object": "list"}
        assert server.asked[1].line == "GET /v1/models?limit=3 HTTP/1.1"
        with pytest.raises(NoAnswer):
            client.call("request", "POST", "/v1/things", json={"a": 1}, repeatable=False)
        assert len(server.asked) == 3
        assert json.loads(server.asked[2].body) == {"a": 1}


def test_an_id_cant_lead_elsewhere(driven: Drive) -> None:
    handler, seen = answers(httpx.Response(200, json=JOB))
    driven(handler=handler).call("get", "../admin/tenants?x=1")
    assert seen[0].url.raw_path == b"/v1/jobs/..%2Fadmin%2Ftenants%3Fx%3D1"


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="PENSTOCK_URL"):
        Penstock(api_key="pk")
    with pytest.raises(ValueError, match="must begin with http"):
        Penstock("api.example", "pk")
    with pytest.raises(ValueError, match="PENSTOCK_API_KEY"):
        Penstock("http://api.example")
    with hostile(http(200, json.dumps(JOB).encode())) as server:
        monkeypatch.setenv("PENSTOCK_URL", f"{server.url}/v1/")
        monkeypatch.setenv("PENSTOCK_API_KEY", "pk_env")
        with Penstock() as penstock:
            penstock.get("job_1")
        assert server.asked[0].line == "GET /v1/jobs/job_1 HTTP/1.1"
        assert server.asked[0].headers["authorization"] == "Bearer pk_env"
