"""Who may see which jobs, and do pages hold still?"""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.job_documents import JobPage
from tests.support.api import HandWorker, Submit, Tenant, assert_problem, register_bytes


async def ids_of(client: httpx.AsyncClient, **query: str) -> list[str]:
    answer = await client.get("/v1/jobs", params=query)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    JobPage.model_validate(page)
    return [job["id"] for job in page["data"]]


async def walk(client: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    """All pages, one after the other."""
    pages = []
    while True:
        page = (await client.get("/v1/jobs", params=query)).json()
        pages.append(page)
        if not page["has_more"]:
            assert page["next_cursor"] is None
            return pages
        query["cursor"] = page["next_cursor"]


async def test_another_tenant_s_job_doesn_t_exist(
    client: httpx.AsyncClient, other_tenant: Tenant, submit: Submit
) -> None:
    job = await submit()
    absent = f"/v1/jobs/job_{'0' * 32}"
    for path in (job["urls"]["self"], absent):
        for answer in (
            await client.get(path, headers=other_tenant.auth),
            await client.post(f"{path}/cancel", headers=other_tenant.auth),
        ):
            # Word for word the same, but for the id.
            problem = assert_problem(answer, 404, "not_found")
            assert problem["detail"] == f"there is no job {path.removeprefix('/v1/jobs/')}"
    assert (await client.get("/v1/jobs", headers=other_tenant.auth)).json()["data"] == []
    assert (await client.get(job["urls"]["self"])).json()["status"] == "queued"


@pytest.mark.parametrize("name", ["x", "job_", "job_" + "g" * 32, "job_" + "0" * 33, "%00", "job_%F0%9F", "0" * 9000])
async def test_what_can_t_be_an_id_is_a_404(client: httpx.AsyncClient, name: str) -> None:
    assert_problem(await client.get(f"/v1/jobs/{name}"), 404, "not_found")


async def test_pages_hold_still_while_jobs_come_in(client: httpx.AsyncClient, submit: Submit) -> None:
    made = [(await submit())["id"] for _ in range(7)]
    first = (await client.get("/v1/jobs", params={"limit": "3"})).json()
    assert [job["id"] for job in first["data"]] == made[:3:-1]
    assert first["has_more"] is True
    late = [(await submit())["id"] for _ in range(2)]
    pages = await walk(client, limit="3", cursor=first["next_cursor"])
    assert [job["id"] for page in pages for job in page["data"]] == made[3::-1]
    assert await ids_of(client) == (made + late)[::-1]


async def test_a_page_that_is_just_full_is_the_last(client: httpx.AsyncClient, submit: Submit) -> None:
    assert [page["data"] for page in await walk(client)] == [[]]
    for _ in range(4):
        await submit()
    assert [len(page["data"]) for page in await walk(client, limit="2")] == [2, 2]
    assert [len(page["data"]) for page in await walk(client, limit="4")] == [4]


async def test_filters(client: httpx.AsyncClient, engine: AsyncEngine, submit: Submit, worker: HandWorker) -> None:
    await register_bytes(engine, name="second")
    plain = await submit(model="bytes")
    second = await submit(model="second", tier="batch")
    marked = await submit(model="bytes", metadata={"project": "demo", "a b[c]": "ü="})
    await worker.finish(plain)

    assert await ids_of(client, status="succeeded") == [plain["id"]]
    assert await ids_of(client, status="queued") == [marked["id"], second["id"]]
    assert await ids_of(client, tier="batch") == [second["id"]]
    assert await ids_of(client, model="second") == [second["id"]]
    assert await ids_of(client, model="third") == []
    assert await ids_of(client, **{"metadata[project]": "demo"}) == [marked["id"]]
    assert await ids_of(client, **{"metadata[project]": "demo", "metadata[a b[c]]": "ü="}) == [marked["id"]]
    assert await ids_of(client, **{"metadata[project]": "other"}) == []
    assert await ids_of(client, status="queued", tier="batch", model="second") == [second["id"]]
    assert await ids_of(client, created_after=plain["created_at"]) == [marked["id"], second["id"]]
    assert await ids_of(client, created_before=marked["created_at"]) == [second["id"], plain["id"]]
    moment = datetime.fromisoformat(second["created_at"]).astimezone(UTC) + timedelta(hours=2)
    assert await ids_of(client, created_before=moment.replace(tzinfo=None).isoformat() + "+02:00") == [plain["id"]]


async def test_a_list_leaves_out_the_texts(client: httpx.AsyncClient, submit: Submit, worker: HandWorker) -> None:
    job = await submit()
    await worker.finish(job)
    (listed,) = (await client.get("/v1/jobs")).json()["data"]
    read = (await client.get(job["urls"]["self"])).json()
    assert read["choices"] is not None
    assert listed == read | {"choices": None}


BAD_QUERIES: list[tuple[str, str, str]] = [
    ("limit=0", "limit", "1 to 100"),
    ("limit=101", "limit", "100"),
    ("limit=ten", "limit", "100"),
    ("limit=", "limit", "100"),
    ("limit=1e1", "limit", "100"),
    ("limit=%D9%A3", "limit", "100"),
    ("limit=1&limit=2", "limit", "twice"),
    ("cursor=", "cursor", "cursor"),
    ("cursor=abc", "cursor", "cursor"),
    ("cursor=" + "x" * 5000, "cursor", "cursor"),
    ("cursor=" + base64.urlsafe_b64encode(b"x" * 15).decode(), "cursor", "cursor"),
    ("status=done", "status", "succeeded"),
    ("tier=vip", "tier", "interactive"),
    ("model=a%00b", "model", "U+0000"),
    ("model=a%0A", "model", "128"),
    ("model=" + "x" * 200, "model", "128"),
    ("metadata[a]=%00", "metadata[a]", "U+0000"),
    ("metadata[%00]=a", "metadata[�]", "U+0000"),
    ("metadata[]=a", "metadata[]", "known parameter"),
    ("metadata=a", "metadata", "known parameter"),
    ("metadata[" + "k" * 65 + "]=a", "metadata[" + "k" * 55, "known parameter"),
    ("&".join(f"metadata[{n}]=a" for n in range(17)), "metadata", "16"),
    ("metadata[a]=1&metadata[a]=2", "metadata[a]", "twice"),
    ("created_after=yesterday", "created_after", "RFC 3339"),
    ("created_after=2026-01-31", "created_after", "RFC 3339"),
    ("created_after=2026-01-31T12:00:00", "created_after", "RFC 3339"),
    ("created_after=2026-01-31T12:00:00+00:00", "created_after", "%2B"),
    ("created_after=2026-02-30T12:00:00Z", "created_after", "RFC 3339"),
    ("created_before=0000-01-01T00:00:00Z", "created_before", "RFC 3339"),
    ("created_before=2026-01-01T00:00:60Z", "created_before", "RFC 3339"),
    ("statsu=queued", "statsu", "known parameter"),
    ("x" * 5000 + "=1", "x" * 64, "known parameter"),
]


async def test_bad_queries_are_refused_by_name(client: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
    for query, name, words in BAD_QUERIES:
        with subtests.test(query[:50]):
            answer = await client.get(f"/v1/jobs?{query}")
            assert assert_problem(answer, 422, "invalid_request", words)["param"] == name


async def test_far_times_are_only_times(client: httpx.AsyncClient, submit: Submit) -> None:
    job = await submit()
    for query in (
        "created_after=0001-01-01T00:00:00%2B14:00",
        "created_before=9999-12-31T23:59:59.999999999-14:00",
        "created_after=2000-01-01t00:00:00z",
    ):
        answer = await client.get(f"/v1/jobs?{query}")
        assert [each["id"] for each in answer.json()["data"]] == [job["id"]], query
