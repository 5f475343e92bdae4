"""From POST to result, with the bundled model: is what a job asks of its output's form kept, and what isn't kept refused?"""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from app.queue.events import EventLog
from app.redis import Redis
from app.settings import Settings
from tests.support.api import job_id_of, make_tenant
from tests.support.api_process import running_process
from tests.support.stack import LONG_LEASE, MAINTENANCE, QUICK, WORKER, running, wait_for

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "maximum": 99, "minimum": 0},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
LETTERS = "äöü🦊"
# What is asked for, and what must become of it: status, what the text matches, finish reason.
JOBS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}, "n": 2},
        "succeeded",
        r'\{\s*"name"\s*:\s*".*"\s*,\s*"age"\s*:\s*\d+\s*\}',
        "stop",
    ),
    "choice": ({"structured_outputs": {"choice": ["heron", "fox"]}, "logprobs": 2}, "succeeded", "heron|fox", "stop"),
    "regex": ({"structured_outputs": {"regex": "[A-F]{3}-[0-9]{2}"}}, "succeeded", "[A-F]{3}-[0-9]{2}", "stop"),
    "lark": ({"structured_outputs": {"grammar": 'start: "a" (", b")~2 "."'}}, "succeeded", r"a, b, b\.", "stop"),
    "cut": (
        {"structured_outputs": {"regex": f"[{LETTERS}]{{40}}"}, "max_tokens": 9},
        "succeeded",
        f"[{LETTERS}]*",
        "length",
    ),
    "invalid": ({"structured_outputs": {"regex": "["}}, "failed", "grammar_invalid", ""),
    "endless": (
        {"structured_outputs": {"json": {"type": "integer", "multipleOf": 99_999_989}}},
        "failed",
        "grammar_too_complex",
        "",
    ),
    "circles": (
        {"logit_bias": {"65": 100}, "max_tokens": 100, "stop_repeating": 3, "temperature": 0, "speculate": False},
        "succeeded",
        "(.)\\1*",
        "stop",
    ),
}


async def test_each_kind_of_structure_is_kept_and_a_bad_one_fails_alone(
    engine: AsyncEngine, settings: Settings, environment: dict[str, str], redis: Redis, tmp_path: Path
) -> None:
    tenant = await make_tenant(engine, settings, "acme")
    extra = {"PENSTOCK_SPECULATIVE_TOKENS": "3", "PENSTOCK_GRAMMAR_CHECK_S": "1"}
    with (
        running(WORKER, environment, tmp_path, **LONG_LEASE, **extra),
        running(MAINTENANCE, environment, tmp_path, **LONG_LEASE),
        running_process(environment | QUICK | LONG_LEASE, tmp_path) as api,
    ):
        await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'", timeout_s=90)
        async with httpx.AsyncClient(base_url=await api.url(), timeout=90, headers=tenant.auth) as client:

            async def ask(body: dict[str, Any]) -> dict[str, Any]:
                body = {"prompt": "Once there was a", "seed": 4, "max_tokens": 80} | body
                answer = await client.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
                assert answer.status_code == 200, answer.text
                found: dict[str, Any] = answer.json()
                return found

            await run_the_how_to(str(client.base_url), tenant.auth)
            answers = await asyncio.gather(*(ask(body) for body, *_ in JOBS.values()))
    jobs = dict(zip(JOBS, answers, strict=True))
    for name, (_, status, wanted, reason) in JOBS.items():
        job = jobs[name]
        assert job["status"] == status, (name, job["error"])
        if status == "failed":
            assert job["error"]["code"] == wanted
            continue
        for choice in job["choices"]:
            assert choice["finish_reason"] == reason, name
            assert re.fullmatch(wanted, choice["text"], re.DOTALL), (name, choice["text"])
    for choice in jobs["schema"]["choices"]:
        assert 0 <= json.loads(choice["text"])["age"] <= 99
    assert_logprobs(jobs["choice"]["choices"][0])
    assert jobs["circles"]["usage"]["completion_tokens"] < 100
    await assert_streamed(redis, settings, jobs["cut"])


async def run_the_how_to(url: str, auth: dict[str, str]) -> None:
    """The page's program, as a reader would run it."""
    page = (Path(__file__).parents[3] / "docs" / "structured-output.md").read_text(encoding="utf-8")
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    key = auth["Authorization"].removeprefix("Bearer ")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=os.environ | {"PENSTOCK_URL": url, "PENSTOCK_API_KEY": key}, stdout=PIPE
    )
    output = (await process.communicate())[0].decode().split()
    assert process.returncode == 0
    assert output[0] in {"heron", "fox", "duck"}
    assert output[-1] in {"yes", "no"}


def assert_logprobs(choice: dict[str, Any]) -> None:
    """As OpenAI has them: texts and bytes of tokens, which make up the text."""
    content = choice["logprobs"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    told = b"".join(bytes(entry["bytes"]) for entry in content)
    assert told.removesuffix(b"<|end|>").decode().strip() == choice["text"]
    assert "".join(entry["token"] for entry in content) == told.decode()
    assert all(entry["logprob"] <= 0 for entry in content)


async def assert_streamed(redis: Redis, settings: Settings, job: dict[str, Any]) -> None:
    """All events together are the text, of whole characters, each time a beginning of it."""
    log = EventLog(redis, ttl_s=settings.event_ttl_s, max_entries=settings.event_max_entries)
    events = await log.read(job_id_of(job))
    pieces = [delta.text for event in events for delta in event.event.deltas]
    assert "".join(pieces) == job["choices"][0]["text"]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
