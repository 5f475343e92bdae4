"""Do lists show each thing once, whatever page it stands on, and look no further than they should?"""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.dashboard.queries import acts, batches, hooks, jobs, letters, workers
from app.dashboard.queries.jobs import JobSearch, find_jobs, first_id_at
from app.dashboard.queries.walk import Page
from app.ids import new_id
from app.jobs.tables import jobs as jobs_table

START = datetime(2026, 3, 1, tzinfo=UTC)
# i seconds after START each, with ids as a process makes them.
FILL = text("""
    INSERT INTO jobs (id, tenant_id, pool, model, tier, status, prompt_tokens, max_tokens, metadata, created_at, finished_at)
    SELECT CAST(lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0') || '7' || substr(md5(i::text), 1, 3) || '8'
                || substr(md5(i::text), 4, 15) AS uuid),
           't' || i % 3, 'p', 'm' || i % 2, (ARRAY['batch', 'standard'])[1 + i % 2], status, 1, 1,
           jsonb_build_object('run', (i % 10)::text), at, CASE WHEN status NOT IN ('queued', 'running') THEN at END
    FROM (
        SELECT i, CAST(:start AS timestamptz) + i * interval '1 s' AS at,
               CASE WHEN i % 50 = 0 THEN 'dead' WHEN i <= 5 THEN 'queued' ELSE 'succeeded' END AS status
        FROM generate_series(1, :count) AS i) made
""")


@pytest.fixture
async def many(engine: AsyncEngine) -> AsyncEngine:
    """3,000 jobs of 3 tenants; the 5 oldest wait, each 50th is dead."""
    async with engine.begin() as conn:
        await conn.execute(
            text("INSERT INTO tenants (id, webhook_secret) SELECT 't' || i, 's' FROM generate_series(0, 2) AS i")
        )
        await conn.execute(FILL, {"start": START, "count": 3000})
        await conn.execute(text("ANALYZE jobs"))
    return engine


async def all_pages(
    read: Callable[[Any], Awaitable[Page[Any]]], key: Callable[[Any], Any] = lambda row: row.id
) -> tuple[list[Any], int]:
    """(the keys of all rows, in order, how many pages they stood on)."""
    found, cursor, count = [], None, 0
    while True:
        page = await read(cursor)
        found += [key(row) for row in page.rows]
        count += 1
        if page.next is None:
            return found, count
        cursor = page.next


@pytest.mark.parametrize(
    ("wanted", "where"),
    [
        (JobSearch(), "true"),
        (JobSearch(tenant="t1"), "tenant_id = 't1'"),
        (JobSearch(status="dead"), "status = 'dead'"),
        (JobSearch(status="dead", tenant="t1"), "status = 'dead' AND tenant_id = 't1'"),
        (JobSearch(status="queued"), "status = 'queued'"),
        (JobSearch(status="queued", tenant="t2"), "status = 'queued' AND tenant_id = 't2'"),
        (JobSearch(status="succeeded", tier="batch", model="m0"), "status = 'succeeded' AND tier = 'batch' AND model = 'm0'"),
        (JobSearch(metadata={"run": "7"}), "metadata @> '{\"run\": \"7\"}'"),
        (
            JobSearch(after=START + timedelta(seconds=100), before=START + timedelta(seconds=900)),
            "created_at > '2026-03-01 00:01:40+00' AND created_at < '2026-03-01 00:15:00+00'",
        ),
    ],
)  # fmt: skip
async def test_each_job_that_fits_is_found_once_also_where_pages_are_cut(
    many: AsyncEngine, wanted: JobSearch, where: str
) -> None:
    async with many.connect() as conn:
        expected = list(await conn.scalars(text(f"SELECT id FROM jobs WHERE {where} ORDER BY id DESC")))
        for most in (20_000, 170):
            found, count = await all_pages(
                lambda cursor, most=most: find_jobs(conn, wanted, limit=40, older_than=cursor, most=most)
            )
            assert found == expected
            assert count >= len(expected) // 40
    assert expected


async def test_a_page_looks_at_no_more_rows_than_it_may_and_says_so(many: AsyncEngine) -> None:
    async with many.connect() as conn:
        page = await find_jobs(conn, JobSearch(model="none"), limit=10, most=100)
        assert (list(page.rows), page.is_cut) == ([], True)
        newest = list(await conn.scalars(text("SELECT id FROM jobs ORDER BY id DESC LIMIT 100")))
        assert page.next == newest[-1]
        last = await find_jobs(conn, JobSearch(), limit=3000)
        assert (last.next, last.is_cut) == (None, False)


async def test_the_five_oldest_that_wait_are_on_the_first_page_however_few_rows_it_may_look_at(
    many: AsyncEngine,
) -> None:
    async with many.connect() as conn:
        page = await find_jobs(conn, JobSearch(status="queued"), limit=10, most=50)
    assert (len(page.rows), page.next) == (5, None)


def test_the_first_id_of_a_time_is_between_the_ids_before_and_after() -> None:
    assert first_id_at(START) < first_id_at(START + timedelta(milliseconds=1))
    assert (
        first_id_at(datetime.now(UTC) - timedelta(minutes=1))
        < new_id()
        < first_id_at(datetime.now(UTC) + timedelta(minutes=1))
    )


class Explained:
    """A connection that notes the plan of each statement."""

    def __init__(self, conn: AsyncConnection) -> None:
        self._conn = conn
        self.read_whole: list[str] = []
        self.num_scans = 0

    async def execute(self, statement: Any, values: dict[str, Any] | None = None) -> Any:
        compiled = statement.compile(dialect=self._conn.dialect, compile_kwargs={"render_postcompile": True})
        plan = await self._conn.exec_driver_sql(
            "EXPLAIN (FORMAT JSON) " + str(compiled), compiled.params | (values or {})
        )
        found = plan.scalar()
        self._walk(json.loads(found)[0]["Plan"] if isinstance(found, str) else found[0]["Plan"])
        return await self._conn.execute(statement, values)

    async def scalar(self, statement: Any, values: dict[str, Any] | None = None) -> Any:
        return (await self.execute(statement, values)).scalar()

    def _walk(self, plan: dict[str, Any]) -> None:
        if plan["Node Type"] == "Seq Scan" and plan["Relation Name"] == jobs_table.name:
            self.read_whole.append(str(plan))
        self.num_scans += "Scan" in plan["Node Type"] and plan.get("Relation Name") == jobs_table.name
        for each in plan.get("Plans", ()):
            self._walk(each)


@pytest.mark.parametrize(
    "wanted",
    [
        JobSearch(),
        JobSearch(tenant="t1"),
        JobSearch(status="dead"),
        JobSearch(status="queued"),
        JobSearch(status="running"),
    ],
)
async def test_the_list_of_jobs_never_reads_the_whole_table(many: AsyncEngine, wanted: JobSearch) -> None:
    async with many.connect() as conn:
        explained = Explained(conn)
        await find_jobs(explained, wanted, limit=50, most=200)  # type: ignore[arg-type]
    assert explained.read_whole == []
    assert explained.num_scans, "it was looked at"


async def test_acts_are_found_by_actor_kind_object_and_time(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text("""
                INSERT INTO audit_log (at, actor, action, target)
                SELECT CAST(:start AS timestamptz) + i * interval '1 min', 'operator:' || (ARRAY['ada', 'bob'])[1 + i % 2],
                       (ARRAY['job.cancel', 'job.tier', 'jobs.else'])[1 + i % 3], 'job_' || i % 7
                FROM generate_series(1, 200) AS i
            """),
            {"start": START},
        )
        for wanted, where in (
            (acts.ActSearch(), "true"),
            (acts.ActSearch(actor="operator:ada"), "actor = 'operator:ada'"),
            (acts.ActSearch(action="job"), "action LIKE 'job.%'"),
            (acts.ActSearch(action="job.tier", target="job_3"), "action = 'job.tier' AND target = 'job_3'"),
            (acts.ActSearch(actor="operator:bob", target="job_3"), "actor = 'operator:bob' AND target = 'job_3'"),
            (acts.ActSearch(before=START + timedelta(hours=1)), "at < '2026-03-01 01:00:00+00'"),
            (acts.ActSearch(after=START + timedelta(hours=3)), "at > '2026-03-01 03:00:00+00'"),
        ):
            expected = list(await conn.scalars(text(f"SELECT id FROM audit_log WHERE {where} ORDER BY id DESC")))
            assert expected
            for most in (20_000, 30):
                found, _ = await all_pages(
                    lambda cursor, wanted=wanted, most=most: acts.find_acts(
                        conn, wanted, limit=9, older_than=cursor, most=most
                    )
                )
                assert found == expected, wanted


async def test_acts_are_found_by_the_tenant_whose_things_they_changed(engine: AsyncEngine) -> None:
    log = [
        ("tenant.create", "acme", "{}"), ("budget.create", "acme/0197a1b2", "{}"), ("key.revoke", "acme/pk_1", "{}"),
        ("webhook_endpoint.recover", "we_1", '{"tenant": "acme"}'), ("key.revoke", "acme2/pk_2", "{}"),
        ("model.change", "acme/model", "{}"), ("operator.create", "acme", "{}"), ("job.cancel", "job_1", "{}"),
    ]  # fmt: skip
    async with engine.begin() as conn:
        for action, target, detail in log:
            await conn.execute(
                text("INSERT INTO audit_log (actor, action, target, detail) VALUES ('a', :action, :target, :detail)"),
                {"action": action, "target": target, "detail": detail},
            )
        found = await acts.find_acts(conn, acts.ActSearch(tenant="acme"), limit=9)
    assert [(row.action, row.target) for row in found.rows][::-1] == [(each[0], each[1]) for each in log[:4]]


async def test_past_workers_are_paged_by_their_end_also_where_many_end_at_once(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text("""
                INSERT INTO workers (incarnation, pool, model, host, pid, device, model_hash, state, expires_at, ended_at)
                SELECT gen_random_uuid(), 'p', 'p', 'h', i, 'cpu', 'x', 'ended', now(), CAST(:start AS timestamptz) + i / 5 * interval '1 s'
                FROM generate_series(1, 43) AS i
            """),
            {"start": START},
        )
        found, after = [], None
        while page := await workers.past_workers(conn, limit=10, after=after):
            found += [row.incarnation for row in page]
            after = workers.PastPlace(page[-1].ended_at, page[-1].incarnation)
        assert len(found) == len(set(found)) == 43
        assert await workers.live_workers(conn) == []


async def test_the_other_lists_are_empty_on_an_empty_database(engine: AsyncEngine) -> None:
    async with engine.connect() as conn:
        assert (await letters.open_groups(conn)).groups == []
        assert list((await hooks.list_endpoints(conn, limit=5)).rows) == []
        assert list((await hooks.find_deliveries(conn, hooks.DeliverySearch(status="pending"), limit=5)).rows) == []
        assert list((await batches.list_batches(conn, limit=5)).rows) == []
        assert list((await jobs.find_jobs(conn, JobSearch(), limit=5)).rows) == []
