"""Is every limit kept with the right status, its field and its number, and is no body able to break the API?"""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.body import parse_job
from app.errors import InvalidRequest
from tests.support.api import MAX_MODEL_LEN, assert_problem


def schema(of: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": of}}}


def tool(parameters: dict[str, Any]) -> dict[str, Any]:
    function = {"name": "f", "parameters": parameters}
    return {
        "prompt": None,
        "messages": [{"role": "user", "content": "a"}],
        "tools": [{"type": "function", "function": function}],
    }


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth - 1):
        found = {"not": found}
    return found


REGEX = {"structured_outputs": {"regex": "a+"}}
LIMITS: list[tuple[dict[str, Any], str, str]] = [
    # what is added to a good body, the field that is named, what the detail says
    ({"max_tokens": 0}, "max_tokens", "1"),
    ({"max_tokens": 1_000_001}, "max_tokens", "1000000"),
    ({"max_tokens": MAX_MODEL_LEN}, "max_tokens", str(MAX_MODEL_LEN - 4)),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_tokens": "5"}, "max_tokens", "integer"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"max_tokens": 10**300}, "max_tokens", "1000000"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "8"),
    ({"min_tokens": 300}, "min_tokens", "256"),
    ({"temperature": 2.1}, "temperature", "2"),
    ({"temperature": -0.1}, "temperature", "0"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "0"),
    ({"top_p": 1.01}, "top_p", "1"),
    ({"top_k": -1}, "top_k", "0"),
    ({"min_p": 1.1}, "min_p", "1"),
    ({"presence_penalty": 2.1}, "presence_penalty", "2"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "-2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "0"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "100"),
    ({"logit_bias": {"one": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"256": 1}}, "logit_bias", "256"),
    ({"logit_bias": {str(n): 0 for n in range(1025)}}, "logit_bias", "1024"),
    ({"n": 0}, "n", "1"),
    ({"n": 17}, "n", "16"),
    ({"seed": -1}, "seed", "0"),
    ({"seed": 2**63}, "seed", str(2**63 - 1)),
    ({"stop": ["x"] * 17}, "stop", "16"),
    ({"stop": "x" * 65}, "stop", "64"),
    ({"stop": [""]}, "stop", "64"),
    ({"stop": ["ok", 5]}, "stop[1]", "string"),
    ({"stop": 5}, "stop", "list"),
    ({"logprobs": 21}, "logprobs", "20"),
    ({"ignore_eos": 1}, "ignore_eos", "boolean"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "goes with"),
    (
        {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
        "response_format.json_schema",
        "goes with",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
        "required",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        "response_format.json_schema.name",
        "pattern",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": True}}},
        "response_format.json_schema.schema",
        "must be an object",
    ),
    (schema({"title": "x" * 65_536}), "response_format.json_schema.schema", "65536"),
    (schema(nested(33)), "response_format.json_schema.schema", "32"),
    (schema({"const": "a\u0000"}), "response_format.json_schema.schema", "U+0000"),
    (schema(nested(300)), "response_format.json_schema.schema", "128"),
    (tool({"const": ["a\u0000"]}), "tools[0].function.parameters", "U+0000"),
    (tool({"a\u0000": 1}), "tools[0].function.parameters", "U+0000"),
    (tool(nested(33)), "tools[0].function.parameters", "32"),
    (tool(nested(300)), "tools[0].function.parameters", "128"),
    (tool({"title": "x" * 65_536}), "tools[0].function.parameters", "65536"),
    ({"structured_outputs": {"json": nested(33)}}, "structured_outputs.json", "32"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one of json, regex, choice and grammar"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "exactly one of"),
    ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml", "known field"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "1"),
    ({"structured_outputs": {"regex": "a" * 4097}}, "structured_outputs.regex", "4096"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "1"),
    ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice[1]", "1"),
    ({"structured_outputs": {"choice": ["a"] * 1001}}, "structured_outputs.choice", "1000"),
    ({"structured_outputs": {"choice": ["a" * 70_000]}}, "structured_outputs.choice", "65536"),
    ({"structured_outputs": {"grammar": "# " + "a" * 65_536}}, "structured_outputs.grammar", "65536"),
    (REGEX | {"response_format": {"type": "json_object"}}, "structured_outputs", "only one of"),
    (REGEX | {"stop": "b"}, "stop", "structured output"),
    (REGEX | {"min_tokens": 1}, "min_tokens", "structured output"),
    (REGEX | {"ignore_eos": True}, "ignore_eos", "structured output"),
    (REGEX | {"stop_repeating": 3}, "stop_repeating", "structured output"),
    ({"stop_repeating": 1}, "stop_repeating", "at least 2"),
    ({"stop_repeating": 1001}, "stop_repeating", "1000"),
    ({"speculate": "no"}, "speculate", "boolean"),
    ({"tier": "vip"}, "tier", "interactive"),
    ({"tier": None}, "tier", "interactive"),
    ({"deadline_s": 0}, "deadline_s", "0"),
    ({"deadline_s": 1e9}, "deadline_s", "31536000"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
    ({"metadata": {"k" * 65: ""}}, "metadata", "64"),
    ({"metadata": {"": ""}}, "metadata", "64"),
    ({"metadata": {"k": "v" * 513}}, "metadata", "512"),
    ({"metadata": {"k": 1}}, "metadata.k", "string"),
    ({"metadata": []}, "metadata", "must be an object"),
    ({"metadata": {"a\u0000": ""}}, "metadata.a\u0000", "U+0000"),
    ({"model": "../" + "x" * 200}, "model", "pattern"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": "a\u0000b"}, "prompt", "U+0000"),
    ({"prompt": "x" * MAX_MODEL_LEN}, "prompt", str(MAX_MODEL_LEN)),
    ({"prompt": []}, "prompt", "must have at least 1 item, not 0"),
    ({"prompt": [1, -1]}, "prompt[1]", "0"),
    ({"prompt": [2**40]}, "prompt[0]", str(2**31 - 1)),
    ({"prompt": [["a"]]}, "prompt[0]", "integer"),
    ({"prompt": {"a": 1}}, "prompt", "string"),
    ({"prompt": None}, "body", "exactly one of prompt and messages"),
    ({"messages": [{"role": "user", "content": "a"}]}, "body", "exactly one of prompt and messages"),
    ({"prompt": None, "messages": []}, "messages", "1"),
    ({"prompt": None, "messages": [{}] * 1025}, "messages", "1024"),
    ({"prompt": None, "messages": [{"role": "king", "content": "a"}]}, "messages[0].role", "user"),
    ({"prompt": None, "messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"prompt": None, "messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content", "string"),
    ({"webhook": {"url": "https://x.example/" + "y" * 2100}}, "webhook.url", "2048"),
    ({"webhook": {}}, "webhook.url", "required"),
    ({"webhook": {"url": "x"}}, "webhook.url", "must be a URL that starts with https://"),
    ({"webhook": {"url": ""}}, "webhook.url", "must be a URL that starts with https://"),
    ({"webhook": {"url": "https://example.com/", "events": ["job.born"]}}, "webhook.events[0]", "job.started"),
    ({"webhook": {"url": "https://example.com/", "events": []}}, "webhook.events", "1"),
    ({"surprise": 1}, "surprise", "known field"),
    ({"s" * 9000: 1}, "s" * 64 + "…", "known field"),
]

JSON_HEADERS = {"Content-Type": "application/json"}
MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "blank": b"   ",
    "half": b'{"prompt": "a"',
    "two": b'{"prompt": "a"} {}',
    "python": b"{'prompt': 'a'}",
    "nan": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": -Infinity}',
    "out of range": b'{"prompt": "a", "temperature": 1e999}',
    "nan in an unknown field": b'{"prompt": "a", "x": [NaN]}',
    "5000 digits": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested in a field": b'{"prompt": "a", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested and never closed": b'{"prompt": ' + b"[" * 100_000,
    "latin-1": '{"prompt": "é"}'.encode("latin-1"),
    "utf-16": '{"prompt": "a"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + b'{"prompt": "a"}',
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "lone surrogate in a key": b'{"prompt": "a", "metadata": {"\\udfff": "a"}}',
    "raw surrogate": b'{"prompt": "\xed\xa0\x80"}',
    "overlong": b'{"prompt": "\xc0\xaf"}',
    "control character": b'{"prompt": "a\nb"}',
    "zero bytes": b"\x00" * 100,
}
WRONG_KINDS: dict[str, bytes] = {
    "nested lists": b"[" * 100_000 + b"]" * 100_000,
    "list": b"[]",
    "text": b'"a"',
    "number": b"1",
    "null": b"null",
    "true": b"true",
}
HUGE: dict[str, bytes] = {
    # Each of these once took seconds or gigabytes to refuse.
    "lists": b'{"prompt": [' + b",".join([b"[]"] * 1_000_000) + b"]}",
    "wrong ids": b'{"prompt": [' + b",".join([b"-1"] * 1_000_000) + b"]}",
    "wrong stops": b'{"prompt": "a", "stop": [' + b",".join([b"1"] * 1_000_000) + b"]}",
    "unknown fields": b"{" + b",".join(b'"%x": 1' % n for n in range(300_000)) + b"}",
    "metadata": b'{"prompt": "a", "metadata": {' + b",".join(b'"%x": 1' % n for n in range(300_000)) + b"}}",
    "fields of a message": b'{"messages": [{' + b",".join(b'"%x": 1' % n for n in range(300_000)) + b"}]}",
    "messages": b'{"messages": [' + b",".join([b"{}"] * 1_000_000) + b"]}",
}


async def test_each_limit_names_its_field_and_number(
    client: httpx.AsyncClient, engine: AsyncEngine, subtests: pytest.Subtests
) -> None:
    for added, field, words in LIMITS:
        with subtests.test(field=field, added=repr(added)[:60]):
            answer = await client.post("/v1/jobs", json={"prompt": "Once"} | added)
            assert answer.status_code == 422, answer.text
            problem = assert_problem(answer, 422, answer.json()["code"], words)
            assert problem["param"] == field
            assert problem["detail"].startswith(field)
            assert problem["retryable"] is False
    async with engine.connect() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM jobs"))).scalar_one() == 0


async def test_several_broken_rules_are_all_listed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/jobs", json={"prompt": "a", "n": 0, "tier": "vip", "top_p": 2, "x": 1, "y": 1})
    problem = assert_problem(answer, 422, "invalid_request", "n: ", "(and 2 more)")
    assert {each["field"] for each in problem["errors"]} == {"n", "tier", "top_p", "x", "y"}
    assert {"field": "top_p", "message": "must be less than or equal to 1", "limit": 1.0} in problem["errors"]


@pytest.mark.parametrize("kind", ["MALFORMED", "WRONG_KINDS", "HUGE"])
async def test_no_broken_body_does_harm(client: httpx.AsyncClient, subtests: pytest.Subtests, kind: str) -> None:
    cases, status, code = {
        "MALFORMED": (MALFORMED, 400, "malformed_body"),
        "WRONG_KINDS": (WRONG_KINDS, 422, "invalid_request"),
        "HUGE": (HUGE, 422, "invalid_request"),
    }[kind]
    for name, body in cases.items():
        with subtests.test(name):
            assert_problem(await client.post("/v1/jobs", content=body, headers=JSON_HEADERS), status, code)
    assert (await client.post("/v1/jobs", json={"prompt": "a"})).status_code == 202


async def test_a_body_that_is_no_object_is_told_what_it_must_be(client: httpx.AsyncClient) -> None:
    for body in (b"[]", b'"text"', b"7", b"null"):
        problem = assert_problem(
            await client.post("/v1/jobs", content=body, headers=JSON_HEADERS), 422, "invalid_request"
        )
        assert problem["detail"] == "body: must be a JSON object"
        assert (problem["param"], problem["errors"]) == (
            "body",
            [{"field": "body", "message": "must be a JSON object"}],
        )


async def test_a_body_that_says_it_is_too_large_isn_t_read(client: httpx.AsyncClient) -> None:
    async def never_read() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = JSON_HEADERS | {"Content-Length": str(8 * 2**20 + 1)}
    answer = await client.post("/v1/jobs", content=never_read(), headers=headers)
    assert_problem(answer, 413, "body_too_large", str(8 * 2**20))
    headers["Content-Length"] = "9" * 5000
    assert_problem(await client.post("/v1/jobs", content=never_read(), headers=headers), 413, "body_too_large")


async def test_a_body_that_doesn_t_say_its_size_is_counted(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"prompt": "'
        while True:
            sent += 1
            yield b"a" * 2**20

    answer = await client.post("/v1/jobs", content=endless(), headers=JSON_HEADERS)
    assert_problem(answer, 413, "body_too_large", str(8 * 2**20))
    assert sent <= 9


async def test_the_largest_body_is_read_and_judged(client: httpx.AsyncClient) -> None:
    body = b'{"prompt": "' + b"a" * (8 * 2**20 - 14) + b'"}'
    assert len(body) == 8 * 2**20
    answer = await client.post("/v1/jobs", content=body, headers=JSON_HEADERS)
    assert_problem(answer, 422, "prompt_too_long", str(MAX_MODEL_LEN))


async def test_only_plain_json_is_read(client: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
    body = json.dumps({"prompt": "a"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"):
        with subtests.test(kind):
            answer = await client.post("/v1/jobs", content=body, headers={"Content-Type": kind})
            problem = assert_problem(answer, 415, "unsupported_media_type", "application/json")
            assert problem["param"] == "Content-Type"
    answer = await client.post("/v1/jobs", content=body, headers=JSON_HEADERS | {"Content-Encoding": "gzip"})
    assert_problem(answer, 415, "unsupported_media_type", "Content-Encoding")
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        answer = await client.post("/v1/jobs", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 202


async def test_a_bad_key_is_refused_before_the_body_is_read(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/jobs", json={"prompt": "a"}, headers={"Idempotency-Key": "x" * 256})
    assert assert_problem(answer, 422, "invalid_request", "255")["param"] == "Idempotency-Key"


async def test_a_duplicate_member_counts_as_its_last(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/jobs", content=b'{"prompt":"aaa","prompt":"b"}', headers=JSON_HEADERS)
    assert answer.json()["usage"]["prompt_tokens"] == 1


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["prompt", "messages", "n", "seed", "stop", "metadata", "logit_bias", "webhook", "tier", "temperature", "model"]
)


@given(
    st.binary(max_size=200)
    | st.dictionaries(FIELDS, JSON_VALUES, max_size=4).map(lambda value: json.dumps(value).encode())
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_a_job_or_a_refusal(body: bytes) -> None:
    refused = None
    try:
        job = parse_job(body)
    except InvalidRequest as error:
        refused = error
    if refused is None:
        assert (job.prompt is None) != (job.messages is None)
    else:
        assert refused.status in {400, 422}
        assert len(refused.detail) < 3000
        assert msgspec.json.encode([refused.detail, refused.extra])
