"""Do caps on what waits hold, to the job and to the token, however many submit at once?"""

import asyncio
from random import Random

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import create_engine
from app.errors import OverTenantLimit, PenstockError, QueueLimitReached, TenantSuspended
from app.jobs import store
from app.jobs.submit import Accepted, Caller, accept
from app.quotas.tenants import change_tenant, suspend_tenant
from app.quotas.wanted import TenantChange
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import key_of, nominations, open_lease, prepared, seed, submit

WAITING = text("""
    SELECT count(*) AS jobs, coalesce(sum(prompt_tokens + n * max_tokens), 0) AS tokens FROM jobs
    WHERE status = 'queued' AND tenant_id = 'acme'
""")


async def limit(engine: AsyncEngine, **caps: int | None) -> None:
    async with engine.begin() as conn:
        await change_tenant(conn, "acme", TenantChange.model_validate(caps), actor="test")


async def waiting(engine: AsyncEngine) -> tuple[int, int]:
    async with engine.connect() as conn:
        row = (await conn.execute(WAITING)).one()
    return row.jobs, row.tokens


@pytest.mark.parametrize("seed_of_draws", range(3))
async def test_many_submitters_at_once_never_pass_the_caps(
    engine: AsyncEngine, settings: Settings, seed_of_draws: int
) -> None:
    """Submitters and a worker that starts jobs; whoever looks, at any committed state, sees no cap passed."""
    await seed(engine)
    max_jobs, max_tokens = 7, 260
    await limit(engine, max_queued_jobs=max_jobs, max_queued_tokens=max_tokens)
    draws, seen, accepted, refused = Random(seed_of_draws), [], [], []
    own = create_engine(settings.model_copy(update={"database_pool_size": 24}), application_name="penstock-tests")
    bodies = [{"max_tokens": draws.choice([1, 8, 40, 90]), "n": draws.choice([1, 1, 2])} for _ in range(96)]
    started, ended = asyncio.Event(), asyncio.Event()

    async def submitter(body: dict[str, int]) -> None:
        try:
            accepted.extend(await submit(own, settings, **body))
            started.set()
        except QueueLimitReached as error:
            refused.append(error)

    async def watcher() -> None:
        while not ended.is_set():
            seen.append(await waiting(own))
            await asyncio.sleep(0)

    async def worker() -> None:
        """Makes room now and then."""
        async with own.begin() as conn:
            incarnation = await open_lease(conn)
        await started.wait()
        for _ in range(12):
            async with own.begin() as conn:
                queued = (await conn.execute(text("SELECT id, gen FROM jobs WHERE status = 'queued' LIMIT 2"))).all()
                await conn.execute(
                    store._START,
                    {
                        "ids": [r.id for r in queued],
                        "gens": [r.gen for r in queued],
                        "incarnation": incarnation,
                        "pace": 0.0,
                    },
                )
            await asyncio.sleep(0)

    async def all_the_others() -> None:
        try:
            await asyncio.gather(worker(), *(submitter(body) for body in bodies))
        finally:
            ended.set()

    try:
        await asyncio.gather(watcher(), all_the_others())
        assert len(accepted) + len(refused) == len(bodies)
        assert refused, "there were more than fit"
        assert len(seen) > 3
        assert max(jobs for jobs, _ in seen) <= max_jobs
        assert max(tokens for _, tokens in seen) <= max_tokens
        assert {error.extra["reason"] for error in refused} <= {"max_queued_jobs", "max_queued_tokens"}
    finally:
        await own.dispose()


async def test_a_cap_is_used_up_to_the_last_job_and_token(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    cost = prepared(settings).cost
    await limit(engine, max_queued_jobs=3)
    outcomes = await asyncio.gather(*(submit(engine, settings) for _ in range(9)), return_exceptions=True)
    assert sum(isinstance(each, list) for each in outcomes) == 3
    assert sum(isinstance(each, QueueLimitReached) for each in outcomes) == 6
    await limit(engine, max_queued_jobs=None, max_queued_tokens=4 * cost)
    await submit(engine, settings)
    with pytest.raises(QueueLimitReached, match=f"{4 * cost} tokens of this tenant wait") as refused:
        await submit(engine, settings, max_tokens=1)
    assert refused.value.extra["limit"] == refused.value.extra["queued"] == 4 * cost
    await assert_audit_clean(engine, None)


async def test_what_starts_makes_room(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    await limit(engine, max_queued_jobs=1)
    (first,) = await submit(engine, settings)
    with pytest.raises(QueueLimitReached):
        await submit(engine, settings)
    async with engine.begin() as conn:
        incarnation = await open_lease(conn)
        assert len(await store.start(conn, incarnation, nominations([first]))) == 1
    await submit(engine, settings)


async def test_a_job_that_is_larger_than_the_cap_is_told_so(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    await limit(engine, max_queued_tokens=10)
    with pytest.raises(OverTenantLimit, match="at most 10 tokens waiting") as refused:
        await submit(engine, settings)
    assert (refused.value.extra["param"], refused.value.extra["limit"]) == ("max_tokens", 10)


async def test_another_tenants_work_fills_no_cap_and_waits_for_no_lock(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine, "acme", "rival")
    await limit(engine, max_queued_jobs=1)
    await submit(engine, settings)
    await submit(engine, settings, tenant="rival", count=5)
    async with engine.begin() as conn:  # acme's row is locked by a submission that doesn't end
        with pytest.raises(QueueLimitReached):
            await accept(conn, Caller("acme", None), [prepared(settings)])
        async with asyncio.timeout(10):
            await submit(engine, settings, tenant="rival")


async def test_without_caps_nobody_waits_for_the_tenants_row(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    async with engine.begin() as conn:
        await accept(conn, Caller("acme", None), [prepared(settings)])
        async with asyncio.timeout(10):
            await submit(engine, settings)


async def test_many_jobs_in_one_transaction_are_counted_together(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    await limit(engine, max_queued_jobs=5)
    with pytest.raises(OverTenantLimit, match=r"together they are 6 jobs.* at most 5 jobs waiting") as refused:
        await submit(engine, settings, count=6)
    assert refused.value.extra["param"] == "jobs"
    assert await waiting(engine) == (0, 0)
    await submit(engine, settings, count=2)
    with pytest.raises(QueueLimitReached, match="2 jobs of this tenant wait, 4 more would pass the 5"):
        await submit(engine, settings, count=4)
    await submit(engine, settings, count=3)


async def test_the_same_idempotency_key_is_a_replay_where_the_queue_is_full(
    engine: AsyncEngine, settings: Settings
) -> None:
    """Also for those that came while the first one was under way."""
    await seed(engine)
    await limit(engine, max_queued_jobs=1)

    async def once() -> Accepted:
        async with engine.begin() as conn:
            return (
                await accept(conn, Caller("acme", None), [prepared(settings)], key=key_of("k", prepared(settings)))
            )[0]

    found = await asyncio.gather(*(once() for _ in range(6)))
    assert len({each.job_id for each in found}) == 1
    assert sorted(each.replayed for each in found) == [False] + [True] * 5
    assert (await waiting(engine))[0] == 1
    async with engine.begin() as conn:
        await suspend_tenant(conn, "acme", actor="test", reason="test")
    assert (await once()).replayed


async def test_a_suspension_holds_from_its_commit_on(engine: AsyncEngine, settings: Settings) -> None:
    """Without any memory of keys: what is accepted afterwards isn't."""
    await seed(engine)
    async with engine.begin() as conn:
        await suspend_tenant(conn, "acme", actor="test", reason="test")
    with pytest.raises(TenantSuspended):
        await submit(engine, settings)


async def test_a_cap_that_is_lowered_takes_nothing_back(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    await submit(engine, settings, count=4)
    await limit(engine, max_queued_jobs=2)
    with pytest.raises(QueueLimitReached, match="4 jobs of this tenant wait"):
        await submit(engine, settings)
    assert (await waiting(engine))[0] == 4


async def test_caps_and_changes_of_caps_at_once_neither_deadlock_nor_pass(
    engine: AsyncEngine, settings: Settings
) -> None:
    await seed(engine)
    await limit(engine, max_queued_jobs=5)

    async def change(to: int) -> None:
        await limit(engine, max_queued_jobs=to)

    outcomes = await asyncio.gather(
        *(change(5 + turn % 2) for turn in range(6)), *(submit(engine, settings) for _ in range(20)),
        return_exceptions=True,
    )  # fmt: skip
    unforeseen = [each for each in outcomes if isinstance(each, Exception) and not isinstance(each, PenstockError)]
    assert unforeseen == []
    assert (await waiting(engine))[0] <= 6


async def test_the_count_uses_its_index(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine, *(f"t{i}" for i in range(20)))
    async with engine.begin() as conn:
        await conn.execute(
            text("""
                INSERT INTO jobs (id, tenant_id, pool, model, tier, status, prompt_tokens, max_tokens, finished_at)
                SELECT gen_random_uuid(), 't' || (i % 20), 'tiny', 'tiny', 'standard',
                       CASE WHEN i % 500 = 0 THEN 'queued' ELSE 'succeeded' END, 5, 8, CASE WHEN i % 500 <> 0 THEN now() END
                FROM generate_series(1, 20000) AS i
            """)
        )
        await conn.execute(text("ANALYZE jobs"))
        assert "ix_jobs_waiting" in await plan(conn)
        await conn.execute(text("DROP INDEX ix_jobs_waiting"))
        assert "ix_jobs_waiting" not in await plan(conn)


async def plan(conn: AsyncConnection) -> str:
    from app.quotas.caps import _WAITING

    rows = await conn.execute(text(f"EXPLAIN {_WAITING.text}"), {"tenant": "t7"})
    return "\n".join(str(row[0]) for row in rows)
