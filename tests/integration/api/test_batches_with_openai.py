"""Does OpenAI's own client see files and batches as it knows them?"""

import json

import httpx
import openai
import pytest
from fastapi import FastAPI

from app.clock import SystemClock
from app.queue.streams import JobQueue
from app.settings import Settings
from tests.support.api import Tenant
from tests.support.batches import CHAT, Bench, chat_line, jsonl
from workers.maintenance.batches import BatchKeeper


@pytest.fixture
def bench(engine, redis, settings: Settings, epoch: JobQueue) -> Bench:  # type: ignore[no-untyped-def]
    return Bench(engine, BatchKeeper(settings, SystemClock(), engine, redis), epoch)


async def test_a_batch_from_upload_to_content(
    client: httpx.AsyncClient, app: FastAPI, tenant: Tenant, bench: Bench
) -> None:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
    theirs = openai.AsyncOpenAI(base_url="http://test/v1", api_key=tenant.token, http_client=http, max_retries=0)
    content = jsonl([chat_line("a"), chat_line("b"), chat_line("long", "x" * 5000)])
    file = await theirs.files.create(
        file=("in.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (file.object, file.bytes, file.purpose, file.status) == ("file", len(content), "batch", "processed")
    assert (await theirs.files.retrieve(file.id)).filename == "in.jsonl"
    assert [each.id async for each in theirs.files.list(purpose="batch", limit=1)] == [file.id]
    assert (await theirs.files.content(file.id)).content == content

    batch = await theirs.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"run": "1"}
    )
    assert batch.status == "validating"
    await bench.run(client, {"id": batch.id})
    batch = await theirs.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.metadata == {"run": "1"}
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 2, 1)
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    output = [json.loads(line) for line in (await theirs.files.content(batch.output_file_id)).text.splitlines()]
    for line in output:
        answer = openai.types.chat.ChatCompletion.model_validate(line["response"]["body"])
        assert (answer.choices[0].message.content or "").startswith("answer to")
    errors = (await theirs.files.content(batch.error_file_id)).text
    assert json.loads(errors)["custom_id"] == "long"
    assert [each.id async for each in theirs.batches.list(limit=1)] == [batch.id]
    assert (await theirs.files.delete(file.id)).deleted


async def test_errors_and_cancel_are_theirs(
    client: httpx.AsyncClient, app: FastAPI, tenant: Tenant, bench: Bench
) -> None:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
    theirs = openai.AsyncOpenAI(base_url="http://test/v1", api_key=tenant.token, http_client=http, max_retries=0)
    with pytest.raises(openai.NotFoundError) as absent:
        await theirs.files.retrieve("file-nowhere")
    assert (absent.value.code, absent.value.type) == ("not_found", "invalid_request_error")
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        await theirs.files.create(file=b"x", purpose="fun")  # type: ignore[arg-type]
    assert wrong.value.param == "purpose"
    file = await theirs.files.create(file=("in.jsonl", b"{\n"), purpose="batch")
    first = await theirs.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert (await theirs.batches.cancel(first.id)).status == "cancelled"
    second = await theirs.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    await bench.run(client, {"id": second.id})
    second = await theirs.batches.retrieve(second.id)
    assert second.status == "failed"
    assert second.errors is not None
    assert [(each.line, each.code) for each in second.errors.data or []] == [(1, "invalid_json_line")]
