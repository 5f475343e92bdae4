"""Are files kept as they came, in pieces, and refused where they may not be?"""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.files.store import PIECE_BYTES, Span, forget_files, read_spans
from app.jobs.models import Model
from app.settings import Settings
from tests.support.api import Tenant, assert_problem, make_tenant, running
from tests.support.api_process import running_process
from tests.support.batches import upload

BOUNDARY = "0123boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, content: bytes, extra: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


async def test_a_file_comes_back_as_it_was_sent(client: httpx.AsyncClient) -> None:
    content = bytes(range(256)) * 3000 + b"\r\n--0123boundar"
    file = await upload(client, content)
    assert (file["object"], file["bytes"], file["purpose"]) == ("file", len(content), "batch")
    answer = await client.get(f"/v1/files/{file['id']}/content")
    assert answer.content == content
    assert (await client.get(f"/v1/files/{file['id']}")).json() == file
    assert (await client.delete(f"/v1/files/{file['id']}")).json() == {
        "id": file["id"], "object": "file", "deleted": True,
    }  # fmt: skip
    assert_problem(await client.get(f"/v1/files/{file['id']}/content"), 404, "not_found")


async def test_any_bytes_of_a_file_are_read_without_the_rest(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    content = b"".join(n.to_bytes(4, "big") for n in range(PIECE_BYTES * 5 // 8))
    file = await upload(client, content)
    spans = [
        Span(1, 0, 5),
        Span(2, PIECE_BYTES - 3, 6),
        Span(3, PIECE_BYTES, 1),
        Span(4, 10, PIECE_BYTES * 2),
        Span(5, len(content) - 2, 2),
    ]
    async with engine.connect() as conn:
        file_id = await conn.scalar(text("SELECT id FROM files"))
        assert file_id is not None
        found = await read_spans(conn, file_id, spans)
        pieces = await conn.scalar(text("SELECT pieces FROM files"))
    assert file["bytes"] == len(content)
    assert pieces == 3
    assert found == {each.number: content[each.start : each.start + each.length] for each in spans}


async def test_the_purpose_may_stand_behind_the_file_in_chunks_of_any_size(client: httpx.AsyncClient) -> None:
    body = part("file", b"x" * 1000, '; filename="späte.jsonl"') + part("purpose", b"batch") + END

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 7):
            yield body[at : at + 7]

    answer = await client.post("/v1/files", content=chunks(), headers=FORM)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == "späte.jsonl"
    assert answer.json()["bytes"] == 1000


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (part("purpose", b"batch") + END, 422, "invalid_request", "file: is required"),
        (part("file", b"x", '; filename="a"') + END, 422, "invalid_request", "purpose"),
        (part("file", b"x", '; filename="a"') + part("purpose", b"fun") + END, 422, "invalid_request", "purpose"),
        (part("file", b"x") + END, 422, "invalid_request", "filename"),
        (part("file", b"x", '; filename="a"') * 2 + END, 422, "invalid_request", "given twice"),
        (part("purpose", b"x" * 5000) + END, 422, "invalid_request", "4096"),
        (part("purpose", b"\xff") + part("file", b"x", '; filename="a"') + END, 422, "invalid_request", "UTF-8"),
        (part("file", b"x", '; filename="a"'), 400, "malformed_body", "ends before"),
        (b"nothing of the kind", 400, "malformed_body", "multipart"),
    ],
)  # fmt: skip
async def test_what_is_no_upload_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, engine: AsyncEngine, body: bytes, status: int, code: str, words: str
) -> None:
    answer = await client.post("/v1/files", content=body, headers=FORM)
    assert assert_problem(answer, status, code, words)["error"]["code"] == code
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM files")) == 0


async def test_other_media_are_refused(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post("/v1/files", json={}), 415, "unsupported_media_type", "multipart/form-data")


async def test_a_file_that_is_too_large_is_not_read_to_its_end(
    engine: AsyncEngine, settings: Settings, model: Model, tenant: Tenant
) -> None:
    app = create_app(settings.model_copy(update={"max_file_bytes": 10_000}))
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield part("purpose", b"batch") + part("file", b"", '; filename="a"').removesuffix(b"\r\n")
        while True:
            sent += 1000
            yield b"x" * 1000

    async with running(app, tenant.auth) as client:
        answer = await client.post("/v1/files", content=endless(), headers=FORM)
        assert assert_problem(answer, 413, "body_too_large", "10000")["limit"] == 10_000
    assert sent < 20_000
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM files")) == 0


async def test_a_tenant_keeps_so_many_bytes_and_no_more(
    engine: AsyncEngine, settings: Settings, model: Model, tenant: Tenant
) -> None:
    app = create_app(settings.model_copy(update={"max_tenant_file_bytes": 2000}))
    async with running(app, tenant.auth) as client:
        file = await upload(client, b"x" * 2000)
        answer = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": b"y"})
        assert_problem(answer, 413, "storage_full", "2000")
        await client.delete(f"/v1/files/{file['id']}")
        await upload(client, b"y")


async def test_pages_go_on_where_the_last_one_ended(client: httpx.AsyncClient) -> None:
    made = [(await upload(client, b"x"))["id"] for _ in range(5)]
    first = (await client.get("/v1/files?limit=2")).json()
    assert [each["id"] for each in first["data"]] == made[:2:-1]
    assert first["has_more"] is True
    second = (await client.get(f"/v1/files?limit=9&after={first['last_id']}")).json()
    assert [each["id"] for each in second["data"]] == made[2::-1]
    assert second["has_more"] is False
    up = (await client.get("/v1/files?order=asc&purpose=batch")).json()
    assert [each["id"] for each in up["data"]] == made
    assert (await client.get("/v1/files?purpose=evals")).json()["data"] == []
    for query in ("limit=0", "limit=x", "order=up", "colour=red", "limit=1&limit=2"):
        assert_problem(await client.get(f"/v1/files?{query}"), 422, "invalid_request")
    assert_problem(await client.get("/v1/files?after=file-1"), 404, "not_found")


async def test_files_past_their_time_and_uploads_that_stand_still_go(
    client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings
) -> None:
    await make_tenant(engine, settings, "third")
    fields = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    answer = await client.post("/v1/files", data=fields, files={"file": b"x"})
    file = answer.json()
    assert file["expires_at"] == pytest.approx(file["created_at"] + 3600, abs=2)
    kept = await upload(client, b"kept")
    async with engine.begin() as conn:
        assert await forget_files(conn, idle_s=3600, most=10) == 0
        await conn.execute(text("UPDATE files SET expires_at = now() - interval '1 s' WHERE expires_at IS NOT NULL"))
        await conn.execute(
            text(
                "INSERT INTO files (id, tenant_id, purpose, filename, touched_at) "
                "VALUES (gen_random_uuid(), 'third', '', '', now() - interval '2 h')"
            )
        )
    assert_problem(await client.get(f"/v1/files/{file['id']}"), 404, "not_found")
    async with engine.begin() as conn:
        assert await forget_files(conn, idle_s=3600, most=10) == 2
        assert await conn.scalar(text("SELECT count(*) FROM files")) == 1
    assert (await client.get(f"/v1/files/{kept['id']}/content")).content == b"kept"
    bad = fields | {"expires_after[seconds]": "5"}
    answer = await client.post("/v1/files", data=bad, files={"file": b"x"})
    assert_problem(answer, 422, "invalid_request", "3600")


def peak_mib(pid: int) -> float:
    """The most memory that the process has ever had."""
    (line,) = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory are read from /proc")
async def test_a_large_file_is_never_in_memory_whole(
    engine: AsyncEngine, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    tenant = await make_tenant(engine, settings, "acme")
    size, chunk = 48 * 2**20, b"x" * 2**16

    async def body(num_bytes: int) -> AsyncIterator[bytes]:
        yield part("purpose", b"batch") + part("file", b"", '; filename="a"').removesuffix(b"\r\n")
        for _ in range(num_bytes // len(chunk)):
            yield chunk
        yield b"\r\n" + END

    with running_process(environment, tmp_path) as api:
        async with httpx.AsyncClient(base_url=await api.url(), headers=tenant.auth, timeout=120) as client:
            for num_bytes in (2**20, size):  # the first one warms up
                before = peak_mib(api.process.pid)
                answer = await client.post("/v1/files", content=body(num_bytes), headers=FORM)
                assert answer.json()["bytes"] == num_bytes
            received = 0
            async with client.stream("GET", f"/v1/files/{answer.json()['id']}/content") as content:
                async for each in content.aiter_bytes():
                    received += len(each)
        assert received == size
        assert peak_mib(api.process.pid) - before < 24
