"""Does each check of the auditor find just what it is for? A sound system, one corruption by hand, one finding."""

import json
from random import Random

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.audit.auditor import CHECKS
from app.audit.batches import BATCHES
from app.audit.nominations import CLAIMS
from app.ids import job_name, new_id
from app.jobs import rescue, store
from app.jobs.cancel import cancel
from app.jobs.finish import Ending, finish
from app.jobs.notices import Used
from app.jobs.store import Fate, GivenBack
from app.jobs.submit import Caller, accept
from app.queue.streams import JobQueue, Nomination
from app.quotas.tables import budgets
from app.redis import Redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean, report_on
from tests.support.dead import kill, send_back
from tests.support.jobs import POOL, key_of, nominations, open_lease, prepared, seed, submit

FATE = Fate(max_attempts=1, max_worker_losses=10, max_solo_crashes=2, retry_base_s=60, retry_cap_s=300)
CHOICES = [{"index": 0, "text": "the end", "finish_reason": "stop"}]
HOOK = {"url": "https://example.com/hook", "events": ["job.started", "job.succeeded", "job.dead", "job.cancelled"]}


@pytest.fixture
async def queue(redis: Redis) -> JobQueue:
    queue = JobQueue(redis, POOL)
    await queue.open_epoch("test")
    return queue


@pytest.fixture(autouse=True)
async def world(engine: AsyncEngine, settings: Settings, queue: JobQueue) -> None:
    """Jobs in all states, with budgets, webhooks, a key, a second attempt, a second life; two wait and one is claimed in Redis."""
    await seed(engine, "acme", "patient")
    async with engine.begin() as conn:
        row = {"id": new_id(), "tenant_id": "patient", "metric": "input_tokens", "period": "month", "hard_limit": 16}
        await conn.execute(budgets.insert().values(row))
        await conn.execute(text("UPDATE models SET input_price = 300001, output_price = 1500000"))
        for metric in ("total_tokens", "requests", "input_tokens", "output_tokens", "cost"):
            row = {"id": new_id(), "tenant_id": "acme", "metric": metric, "period": "total", "hard_limit": 10_000}
            await conn.execute(budgets.insert().values(row))
    jobs = await submit(engine, settings, count=6, webhook=HOOK)
    (unstarted,) = await submit(engine, settings)
    async with engine.begin() as conn:
        worker = await open_lease(conn, ttl_s=600)
        again = (await store.start(conn, worker, nominations(jobs)))[0]
        rescued = await rescue.give_back(conn, [GivenBack(again.job_id, 1, "drained")], FATE, Random(1))
        await store.start(conn, worker, rescued.nominations[POOL])
    ids = [each.job_id for each in jobs]
    async with engine.begin() as conn:
        await finish(
            conn,
            [
                Ending(ids[0], 2, "succeeded", choices=CHOICES, used=Used(16, 4, 3)),
                Ending(ids[1], 1, "failed", error={"code": "x"}, billed=False, used=Used(16, 0, 0)),
                Ending(ids[2], 1, "cancelled", choices=CHOICES, used=Used(16, 0, 2)),
                Ending(ids[3], 1, "expired", used=Used(16, 0, 0)),
            ],
        )
        await rescue.give_back(conn, [GivenBack(ids[4], 1, "transient_error")], FATE, Random(1))
        await cancel(conn, "acme", unstarted.job_id)
        waiting = await accept(conn, Caller("acme", None), [prepared(settings)], key=key_of("once", prepared(settings)))
    waiting += await submit(engine, settings, tenant="acme", count=2, tier="batch")
    await queue.enqueue(nominations(waiting))
    await queue.claim("w", max_jobs=1, room=10**9)
    (revived,) = await kill(engine, await submit(engine, settings))
    await queue.enqueue([(await send_back(engine, revived)).nomination])
    (first,) = await submit(engine, settings, tenant="patient")
    await submit(engine, settings, tenant="patient", on_budget="wait")
    async with engine.begin() as conn:
        await cancel(conn, "patient", first.job_id)
    async with engine.connect() as conn:
        rows = await conn.execute(text("SELECT status, count(*) FROM jobs GROUP BY status"))
        assert {row[0]: row[1] for row in rows} == {
            "succeeded": 1, "failed": 1, "cancelled": 3, "expired": 1, "dead": 1, "running": 1, "queued": 5,
        }  # fmt: skip


async def found(engine: AsyncEngine, redis: Redis | None) -> list[str]:
    return [each.check for each in (await report_on(engine, redis)).findings]


async def test_a_sound_system_is_clean(engine: AsyncEngine, redis: Redis) -> None:
    report = await report_on(engine, redis)
    assert report.findings == []
    assert report.unchecked == {}
    assert report.jobs["queued"] == 5
    assert [each.check for each in report.outcomes] == [check.name for check in CHECKS] + list(CLAIMS)


NO_TRIGGERS = "SET LOCAL session_replication_role = replica"
OF_THE_LEDGER = """(SELECT sum(CASE kind WHEN 'reserve' THEN amount ELSE -amount END)
                        FROM ledger l WHERE l.budget_id = w.budget_id)"""
CORRUPTIONS = {
    "job_status": ["ALTER TABLE jobs DROP CONSTRAINT ck_jobs_only_ended_is_finished",
                   "UPDATE jobs SET finished_at = NULL WHERE status = 'failed'"],
    "job_attempt": ["UPDATE jobs SET gen = gen + 1 WHERE status = 'running'"],
    "job_input": ["DELETE FROM job_inputs WHERE job_id = (SELECT id FROM jobs WHERE status = 'running')"],
    "running_worker": ["UPDATE workers SET ended_at = now() - interval '1 s', state = 'lost'"],
    "overdue": ["UPDATE jobs SET cancel_requested_at = now() - interval '1 s' WHERE status = 'running'"],
    "attempt_rows": ["DELETE FROM attempts WHERE attempt = 1 AND job_id = (SELECT id FROM jobs WHERE status = 'succeeded')"],
    "fenced_writes": ["UPDATE job_results SET attempt = 1 WHERE attempt = 2"],
    "one_result": ["DELETE FROM job_results WHERE attempt = 2"],
    "dead_letter": ["DELETE FROM dead_letters WHERE resolved_at IS NULL"],
    "requeue": ["DELETE FROM dead_letters WHERE resolution = 'requeued'",
                "DELETE FROM audit_log WHERE action = 'dead_letter.requeue'"],
    "operator_act": ["DELETE FROM audit_log WHERE action = 'dead_letter.requeue'"],
    "idempotency_key": ["UPDATE idempotency_keys SET tenant_id = 'stranger'"],
    "notice_true": [("INSERT INTO webhook_deliveries (id, tenant_id, job_id, event_type, url, body) SELECT gen_random_uuid(), "
                     "tenant_id, id, 'job.succeeded', 'https://example.com', '' FROM jobs WHERE status = 'expired'")],
    "notice_written": ["DELETE FROM webhook_deliveries WHERE event_type = 'job.succeeded'"],
    "endpoint_told": [("INSERT INTO webhook_endpoints (id, tenant_id, url, secret, events, updated_at) SELECT gen_random_uuid(), id, "
                      "'https://example.com/', 'x', '{job.*}', '2000-01-01' FROM tenants")],
    "response_told": [("INSERT INTO webhook_endpoints (id, tenant_id, url, secret, events, updated_at) SELECT gen_random_uuid(), id, "
                      "'https://example.com/', 'x', '{response.*}', '2000-01-01' FROM tenants"),
                      ("INSERT INTO face_calls (job_id, tenant_id, face, body) SELECT id, tenant_id, 'responses', '{\"background\": true}' "
                      "FROM jobs WHERE status = 'failed'")],
    "notice_once": ["DROP INDEX uq_webhook_deliveries_event",
                    ("INSERT INTO webhook_deliveries (id, tenant_id, job_id, event_type, url, body) SELECT gen_random_uuid(), "
                    "tenant_id, job_id, event_type, url, body FROM webhook_deliveries WHERE event_type = 'job.dead'")],
    "billed_once": ["DROP INDEX uq_usage_one_billed_row",
                    ("UPDATE usage SET kind = 'billed' WHERE kind = 'wasted' AND attempt = 1 "
                    "AND job_id = (SELECT id FROM jobs WHERE status = 'succeeded')")],
    "billed_end": ["UPDATE usage SET attempt = 1 WHERE attempt = 2 AND kind = 'billed'"],
    "billed_tokens": ["UPDATE usage SET cached_tokens = 17 WHERE attempt = 2 AND kind = 'billed'"],
    "billed_cost": ["UPDATE usage SET cost_micros = cost_micros + 1 WHERE kind = 'wasted'"],
    "held": ["UPDATE jobs SET held_by = NULL WHERE held_by IS NOT NULL"],
    "usage_visible": ["DELETE FROM usage WHERE job_id = (SELECT id FROM jobs WHERE status = 'failed')"],
    "budget_sums": ["UPDATE budget_windows SET reserved = reserved + 1"],
    "budget_limit": ["ALTER TABLE budget_windows DROP CONSTRAINT ck_budget_windows_never_over",
                     "UPDATE budget_windows SET hard_limit = 1 WHERE used > 1"],
    "ledger_place": ["DELETE FROM budget_windows WHERE ctid IN (SELECT ctid FROM budget_windows LIMIT 1)"],
    "reservation": [("UPDATE ledger SET amount = 0 WHERE kind = 'release' AND amount > 0 "
                    "AND job_id = (SELECT id FROM jobs WHERE status = 'failed')"),
                    "UPDATE budget_windows w SET reserved = " + OF_THE_LEDGER],
    "reserved_again": [("DELETE FROM ledger WHERE reservation = 2 AND budget_id = (SELECT id FROM budgets "
                        "WHERE metric = 'requests')"), "UPDATE budget_windows w SET reserved = " + OF_THE_LEDGER],
    "reserved_amount": ["UPDATE jobs SET max_tokens = max_tokens + 1 WHERE status = 'running'"],
    "settled_amount": [("UPDATE usage SET prompt_tokens = 17, cost_micros = "
                        "ceil((17 * 300001 + completion_tokens * 1500000) / 1e6) WHERE attempt = 2 AND kind = 'billed'")],
}  # fmt: skip


async def test_each_check_of_the_database_is_tried() -> None:
    assert sorted(CORRUPTIONS) == sorted(check.name for check in CHECKS if check not in BATCHES)


@pytest.mark.parametrize("check", CORRUPTIONS)
async def test_a_corruption_is_found_by_its_check_alone(engine: AsyncEngine, redis: Redis, check: str) -> None:
    async with engine.begin() as conn:
        await conn.execute(text(NO_TRIGGERS))
        if check == "billed_once":  # the row has to exist first
            await conn.execute(
                text(
                    "INSERT INTO usage (job_id, attempt, kind, tenant_id, model, tier, prompt_tokens, cached_tokens, "
                    "completion_tokens, cost_micros) SELECT job_id, 1, 'wasted', tenant_id, model, tier, prompt_tokens, cached_tokens, "
                    "completion_tokens, cost_micros FROM usage WHERE attempt = 2 AND kind = 'billed'"
                )
            )
        for statement in CORRUPTIONS[check]:
            await conn.execute(text(statement))
    seen = set(await found(engine, redis))
    if check == "billed_once":  # the second row is of an attempt before the last: both are true
        seen.discard("billed_end")
    assert seen == {check}


OF_LIVES = {
    "a letter that is open though its job lives": (
        "dead_letter", [("UPDATE dead_letters SET resolved_at = NULL, resolution = NULL, resolved_by = NULL, "
                        "resolution_reason = NULL WHERE resolution = 'requeued'")]),
    "a letter that is discarded though its job lives": (
        "dead_letter", ["UPDATE dead_letters SET resolution = 'discarded' WHERE resolution = 'requeued'",
                        "UPDATE audit_log SET action = 'dead_letter.discard'"]),
    "a letter of a later attempt than the job has had": (
        "requeue", ["UPDATE dead_letters SET attempt = 2 WHERE resolution = 'requeued'",
                    "UPDATE usage SET attempt = 2 WHERE job_id = (SELECT id FROM jobs WHERE reservation = 2)"]),
    "an act that nothing came of": (
        "operator_act", [("INSERT INTO audit_log (actor, action, target, detail) SELECT actor, action, target, "
                         "jsonb_build_object('reservation', 7) FROM audit_log WHERE action = 'dead_letter.requeue'")]),
    "a letter that was resolved twice": (
        "operator_act", [("INSERT INTO audit_log (actor, action, target, detail) SELECT actor, action, target, detail "
                         "FROM audit_log WHERE action = 'dead_letter.requeue'")]),
    "an end of an earlier life that wasn't told": (
        "notice_written", [("UPDATE jobs SET webhook = '{\"url\": \"https://example.com/\", \"events\": [\"job.dead\"]}' "
                           "WHERE reservation = 2")]),
    "an end that was told as another life's": (
        "notice_true", [("INSERT INTO webhook_deliveries (id, tenant_id, job_id, event_type, url, body, reservation) "
                        "SELECT gen_random_uuid(), tenant_id, id, 'job.dead', 'https://example.com/', '', 2 "
                        "FROM jobs WHERE reservation = 2")]),
    "a life that ended without a row of usage": (
        "usage_visible", ["DELETE FROM usage WHERE job_id = (SELECT id FROM jobs WHERE reservation = 2)"]),
    "an earlier life's reservation that is still open": (
        "reservation", [("DELETE FROM ledger WHERE reservation = 1 AND kind = 'release' AND amount = 1 "
                        "AND job_id = (SELECT id FROM jobs WHERE reservation = 2)"),
                        "UPDATE budget_windows w SET reserved = " + OF_THE_LEDGER]),
    "an earlier life that was charged": (
        "settled_amount", [("UPDATE ledger SET amount = 1 - amount WHERE reservation = 1 AND kind IN ('settle', 'release') "
                           "AND job_id = (SELECT id FROM jobs WHERE reservation = 2) "
                           "AND budget_id = (SELECT id FROM budgets WHERE metric = 'requests')"),
                           ("UPDATE budget_windows w SET used = used + 1 WHERE budget_id = (SELECT id FROM budgets "
                           "WHERE metric = 'requests')")]),
}  # fmt: skip


@pytest.mark.parametrize("what", OF_LIVES)
async def test_what_is_wrong_with_a_second_life_is_found(engine: AsyncEngine, redis: Redis, what: str) -> None:
    check, statements = OF_LIVES[what]
    async with engine.begin() as conn:
        await conn.execute(text(NO_TRIGGERS))
        for statement in statements:
            await conn.execute(text(statement))
    assert check in await found(engine, redis)


@pytest.mark.parametrize("check", CLAIMS)
async def test_a_corruption_of_redis_is_found_by_its_check_alone(
    engine: AsyncEngine, redis: Redis, queue: JobQueue, check: str
) -> None:
    keys = queue.keys
    stream = keys.stream("batch", "acme")
    if check == "queue_epoch":
        await redis.delete(keys.epoch)
    elif check == "queue_missing":
        async with engine.begin() as conn:  # requeued, and Redis wasn't told
            await conn.execute(text("UPDATE jobs SET max_tokens = 9 WHERE status = 'queued' AND tier = 'batch'"))
            await conn.execute(text("DELETE FROM ledger"))
            await conn.execute(text("DELETE FROM budget_windows"))
    elif check == "queue_stale":
        await queue.enqueue([Nomination(new_id(), 1, "batch", "acme", 5)])
    elif check == "queue_entry":
        await redis.xdel(stream, (await redis.xrange(stream))[0][0])
    elif check == "queue_depth":
        await redis.hincrby(keys.depth, "batch:tokens", 1)
    elif check == "queue_active":
        await redis.delete(keys.active("batch"))
    else:
        claimed = keys.stream("standard", "acme")
        (pending,) = await redis.xpending_range(claimed, "workers", "-", "+", 10)
        await redis.xclaim(claimed, "workers", "w", 0, [pending["message_id"]], idle=60_000)
    assert await found(engine, redis) == [check]


async def test_what_is_under_way_is_no_violation_within_the_bound(
    engine: AsyncEngine, redis: Redis, settings: Settings, queue: JobQueue
) -> None:
    async with engine.begin() as conn:
        await conn.execute(text(CORRUPTIONS["running_worker"][0]))
    assert await found(engine, None) == ["running_worker"]
    assert (await report_on(engine, None, within_s=60)).findings == []


async def test_a_difference_that_is_mended_within_the_bound_is_none(
    engine: AsyncEngine, redis: Redis, settings: Settings, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = await submit(engine, settings)
    assert await found(engine, redis) == ["queue_missing"]
    looks = []

    async def in_between(_: float) -> None:
        looks.append(await queue.enqueue(nominations(late)))

    monkeypatch.setattr("app.audit.nominations.asyncio.sleep", in_between)
    await assert_audit_clean(engine, redis, within_s=60)
    assert looks == [1]


async def test_a_finding_names_the_job_and_counts_beyond_its_list(
    engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    lost = await submit(engine, settings, count=30)
    (finding,) = (await report_on(engine, redis)).findings
    assert (finding.check, finding.total, len(finding.violations)) == ("queue_missing", 30, 20)
    assert finding.violations[0].subject == job_name(lost[0].job_id)
    assert finding.violations[0].found == "nothing"
    assert json.dumps((await report_on(engine, redis)).document())
