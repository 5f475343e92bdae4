"""Does the API say truly whether it lives and can serve, and stay polite while its servers are away?"""

import asyncio
import threading
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api import candidates
from app.api.main import create_app
from app.db import create_engine
from app.embedded import EmbeddedPostgres
from app.endings import JOB_CODES, LINE_CODES
from app.errors import PenstockError
from app.settings import Settings
from tests.support.api import Submit, Tenant, assert_problem, make_tenant, register_bytes, running


async def test_all_is_well(client: httpx.AsyncClient) -> None:
    root = await client.get("/")
    assert (root.status_code, root.json()["links"]["admin"]) == (200, "/admin")
    for path in root.json()["links"].values():
        assert path == "/v1" or (await client.get(path)).status_code < 400, path
    sent = await client.get("/", headers={"Accept": "text/html,application/xhtml+xml"})
    assert (sent.status_code, sent.headers["location"]) == (303, "/admin/")
    alive = await client.get("/healthz")
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert {name: check["ok"] for name, check in ready.json()["checks"].items()} == {
        "postgres": True, "schema": True, "redis": True, "models": True, "loops": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("revision", "status", "words"), [(None, 503, "behind"), ("0000_future", 200, "newer"), ("gone", 503, "migrate")]
)
async def test_readiness_knows_the_schema(
    client: httpx.AsyncClient, engine: AsyncEngine, revision: str | None, status: int, words: str
) -> None:
    statement = {
        None: "DELETE FROM alembic_version",
        "gone": "DROP TABLE alembic_version",
    }.get(revision, f"UPDATE alembic_version SET version_num = '{revision}'")
    async with engine.begin() as conn:
        await conn.execute(text(statement))
    answer = await client.get("/readyz")
    assert answer.status_code == status
    assert words in answer.json()["checks"]["schema"]["detail"]
    if status == 503:
        assert_problem(answer, 503, "unavailable", "schema", words)
    assert (await client.get("/healthz")).status_code == 200


async def test_an_empty_database_is_a_503_that_says_what_to_do(
    empty_database_url: str, settings: Settings, tenant: Tenant
) -> None:
    app = create_app(settings.model_copy(update={"database_url": empty_database_url}))
    async with running(app, tenant.auth) as client:
        assert_problem(await client.get("/readyz"), 503, "unavailable", "penstock migrate")
        assert_problem(await client.get("/v1/jobs"), 503, "unavailable", "penstock migrate")


@pytest.fixture
def behind(private_postgres: EmbeddedPostgres, settings: Settings) -> Settings:
    """Settings with a Postgres of the test's own."""
    return settings.model_copy(update={"database_url": private_postgres.url, "database_timeout_s": 3.0})


async def test_without_postgres_every_answer_is_a_polite_503(
    private_postgres: EmbeddedPostgres, behind: Settings
) -> None:
    engine = create_engine(behind, application_name="test")
    await register_bytes(engine)
    tenant = await make_tenant(engine, behind, "acme")
    await engine.dispose()
    app = create_app(behind)
    async with running(app, tenant.auth) as client:
        job = (await client.post("/v1/jobs", json={"prompt": "a"})).json()

        async def calls() -> list[httpx.Response]:
            return [
                await client.post("/v1/jobs", json={"prompt": "a"}),
                await client.post("/v1/jobs", json={"prompt": "a"}, headers={"Idempotency-Key": "k"}),
                await client.get("/v1/jobs"),
                await client.get(job["urls"]["self"]),
                await client.post(job["urls"]["cancel"]),
                await client.get("/readyz"),
            ]

        def check(answers: list[httpx.Response]) -> None:
            for answer in answers:
                problem = assert_problem(answer, 503, "unavailable")
                assert 1 <= int(answer.headers["retry-after"]) <= 10
                assert problem["retryable"] is True

        await asyncio.to_thread(private_postgres.pause)
        try:
            hung = await asyncio.gather(client.get("/v1/jobs"), client.get("/readyz"), client.get("/healthz"))
        finally:
            await asyncio.to_thread(private_postgres.resume)
        check(list(hung[:2]))
        assert hung[2].status_code == 200

        await asyncio.to_thread(private_postgres.stop)
        check(await calls())
        assert (await client.get("/healthz")).status_code == 200

        await asyncio.to_thread(private_postgres.start)
        assert (await client.post("/v1/jobs", json={"prompt": "a"})).status_code == 202
        assert (await client.get("/readyz")).json()["checks"]["postgres"]["ok"] is True


async def test_the_api_opens_while_postgres_is_away(private_postgres: EmbeddedPostgres, behind: Settings) -> None:
    await asyncio.to_thread(private_postgres.stop)
    async with running(create_app(behind)) as client:
        assert (await client.get("/healthz")).status_code == 200
        problem = assert_problem(await client.get("/readyz"), 503, "unavailable", "postgres")
        assert problem["checks"]["redis"]["ok"] is True


async def test_counting_a_book_holds_up_nobody(
    client: httpx.AsyncClient, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The book stays in its thread until the others were answered: if it held the loop, this would never end."""
    began, may_end = threading.Event(), threading.Event()
    prepare: Callable[..., object] = candidates.prepare

    def held(request: object, *rest: object) -> object:
        if len(str(getattr(request, "prompt", ""))) > 10_000:
            began.set()
            assert may_end.wait(60)
        return prepare(request, *rest)

    monkeypatch.setattr(candidates, "prepare", held)
    books = [asyncio.create_task(client.post("/v1/jobs", json={"prompt": "book " * 20_000})) for _ in range(4)]
    assert await asyncio.to_thread(began.wait, 60)
    assert (await client.get("/healthz")).status_code == 200
    job = await submit()
    assert (await client.get(job["urls"]["self"])).status_code == 200
    assert not any(book.done() for book in books)
    may_end.set()
    for answer in await asyncio.gather(*books):
        assert_problem(answer, 422, "prompt_too_long")


async def test_too_many_books_at_once_are_refused(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = app.state.runtime.lanes
    monkeypatch.setattr(lanes, "_max_waiting_bytes", 150_000)
    began, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        began.set()
        assert may_end.wait(60)

    holding = asyncio.create_task(lanes.run(140_000, hold))
    assert await asyncio.to_thread(began.wait, 60)
    refused = await client.post("/v1/jobs", json={"prompt": "book " * 20_000})
    assert_problem(refused, 503, "unavailable", "large")
    assert "retry-after" in refused.headers
    may_end.set()
    await holding
    assert_problem(await client.post("/v1/jobs", json={"prompt": "book " * 20_000}), 422, "prompt_too_long")


async def test_an_unforeseen_error_is_a_problem_without_a_trace(
    settings: Settings, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(settings)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("app.api.jobs.parse_page", broken)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        problem = assert_problem(await client.get("/v1/jobs", headers=tenant.auth), 500, "internal_error")
    assert "secret" not in str(problem)


async def test_what_isn_t_there_is_a_problem_too(client: httpx.AsyncClient) -> None:
    for path in ("/v1", "/v1/jobs/", "/nothing", "/v1/jobs/a/b/c", "/errors/nothing"):
        assert_problem(await client.get(path), 404, "not_found")
    for method, path, allowed in (
        ("DELETE", "/v1/jobs", "GET, POST"),
        ("PUT", "/v1/jobs/job_1", "GET"),
        ("GET", "/v1/jobs/job_1/cancel", "POST"),
        ("POST", "/healthz", "GET"),
        ("BREW", "/v1/models", "GET"),
    ):
        answer = await client.request(method, path)
        assert_problem(answer, 405, "method_not_allowed", allowed)
        assert answer.headers["allow"] == allowed
    assert_problem(await client.post("/openapi.json"), 405, "method_not_allowed", "GET")


async def test_every_error_code_has_its_page(client: httpx.AsyncClient) -> None:
    def tree(cls: type[PenstockError]) -> list[type[PenstockError]]:
        return [cls, *(below for each in cls.__subclasses__() for below in tree(each))]

    classes = [cls for cls in tree(PenstockError) if cls.__module__.startswith("app.")]
    assert len({cls.code for cls in classes}) == len(classes), "a code means one thing"
    for cls in classes:
        page = (await client.get(f"/errors/{cls.code}")).json()
        assert (page["code"], page["status"], page["retryable"]) == (cls.code, cls.status, cls.retryable)
        assert page["meaning"]
    for kind, codes in (("job", JOB_CODES), ("line", LINE_CODES)):
        for code, each in codes.items():
            page = (await client.get(f"/errors/{code}")).json()
            assert page[kind] == {"meaning": each.meaning, "advice": each.advice}
    page = (await client.get("/errors/grammar_invalid")).json()
    assert (page["status"], page["retryable"], page["line"]) == (None, None, None)
    assert page["meaning"] == JOB_CODES["grammar_invalid"].meaning
    both = (await client.get("/errors/prompt_too_long")).json()
    assert (both["status"], both["job"]["meaning"] != both["meaning"]) == (422, True)
