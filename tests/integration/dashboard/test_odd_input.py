"""Is input that no browser sends answered by a refusal, at once, and never by a 500?"""

import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.ids import job_name
from tests.support.dashboard import HOST, Browser
from tests.support.world import World

ENDS_OF_TIME = (
    "9999-12-31T23:59", "0001-01-01T00:00", "0001-01-01T00:00%2B14:00", "9999-12-31T23:59-14:00", "1969-12-31T23:59",
)  # fmt: skip


@pytest.mark.parametrize("path", ["/admin/jobs", "/admin/audit"])
@pytest.mark.parametrize("at", ENDS_OF_TIME)
async def test_a_time_at_either_end_of_time_is_refused(viewer: Browser, path: str, at: str) -> None:
    for name in ("after", "before"):
        answer = await viewer.get(f"{path}?{name}={at}")
        assert answer.status_code == 422
        assert "Must be a time such as" in answer.text


@pytest.mark.parametrize("at", ENDS_OF_TIME)
async def test_a_cursor_at_either_end_of_time_is_refused(viewer: Browser, at: str) -> None:
    for path, cursor in (
        ("/admin/dead-letters/all", f"{at}~{'0' * 32}~1"), ("/admin/workers", f"{at}~{'0' * 32}"),
        ("/admin/dead-letters/all", f"2026-01-01~{'0' * 32}~{'9' * 100}"),
    ):  # fmt: skip
        assert (await viewer.get(f"{path}?cursor={cursor}")).status_code == 422


async def test_the_edit_form_refuses_what_is_nested_without_end(world: World, operator: Browser) -> None:
    path = f"/admin/dead-letters/{job_name(world.dead[0])}/edit"
    for value in ("[" * 5000, "1" * 5000, "Infinity", "1e999", "{}"):
        answer = await operator.act(path, reason="why", life=1, temperature=value)
        assert answer.status_code == 422, value[:10]
        assert "temperature" in answer.text


@pytest.mark.parametrize("headers", [{"HX-Current-URL": "http://["}, {"HX-Current-URL": "x" * 5000}])
async def test_a_page_that_calls_itself_strangely_leads_to_the_log_in(
    stranger: Browser, headers: dict[str, str]
) -> None:
    assert (await stranger.get("/admin/jobs", headers=headers)).status_code == 303


@pytest.mark.parametrize("origin", ["http://[", "https://[::1"])
async def test_an_origin_that_is_no_url_is_a_foreign_one(stranger: Browser, origin: str) -> None:
    answer = await stranger.post("/admin/login", data={"name": "ada"}, headers={"Origin": origin})
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/admin/login", "/admin/operators"])
async def test_a_form_is_read_in_one_encoding_only(
    stranger: Browser, owner: Browser, path: str, engine: AsyncEngine
) -> None:
    """A multipart form that named its own charset, unicode_escape, brought a lone surrogate as far as the database."""
    parts = '--B\r\nContent-Disposition: form-data; name="name"\r\n\r\n\\ud800\r\n--B--\r\n'
    for kind, body, status in (
        ("multipart/form-data; boundary=B; charset=unicode_escape", parts.encode(), 415),
        ("text/plain", b"name=ada", 415),
        ("application/x-www-form-urlencoded; charset=unicode_escape", b"name=%ED%A0%80", 400),
        ("application/x-www-form-urlencoded", b"name=\xff", 400),
    ):
        client = stranger if path.endswith("login") else owner
        headers = {"Content-Type": kind, "X-CSRF-Token": client.csrf}
        assert (await client.post(path, content=body, headers=headers)).status_code == status, kind
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM login_failures")) == 0


async def test_who_is_not_known_sends_little(stranger: Browser, owner: Browser) -> None:
    """8 MB of `&` were parsed for seconds, before any throttle."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for path in ("/admin/login", "/admin/link/x"):
        assert (await stranger.post(path, content=b"&" * 20_000, headers=headers)).status_code == 413
    many = await owner.post("/admin/operators", content=b"a&" * 1000, headers=headers | {"X-CSRF-Token": owner.csrf})
    assert many.status_code == 422
    assert "at most 500 fields" in many.text


async def test_each_page_answers_head_as_get_without_a_body(app: FastAPI, viewer: Browser, stranger: Browser) -> None:
    paths = {each.path for each in app.state.dashboard.state.all_routes if "GET" in each.methods}
    for path in sorted(each for each in paths if "{" not in each):
        asked = await viewer.get(f"/admin{path}")
        answer = await viewer.head(f"/admin{path}")
        assert answer.status_code == asked.status_code, path
    to_login = await stranger.head("/admin/jobs")
    assert to_login.headers["location"] == "/admin/login?next=/admin/jobs"
    assert str(to_login.url).startswith(HOST)
