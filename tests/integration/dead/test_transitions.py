"""Do dead letters keep what they promise: evidence, requeue, discard, each once, whoever else does the same?"""

import asyncio
import json
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.errors import (
    AlreadyResolved,
    BudgetExhausted,
    InvalidRequest,
    NotFound,
    OverTenantLimit,
    PenstockError,
    PromptTooLong,
    TenantSuspended,
    TierNotAllowed,
    UnknownModel,
)
from app.ids import job_name, new_id
from app.jobs.cancel import cancel
from app.jobs.dead.announce import announce_ends
from app.jobs.dead.edit import prepare_edit, read_request, show_request
from app.jobs.dead.evidence import MAX_BYTES
from app.jobs.dead.read import (
    LetterFilter,
    LetterPlace,
    count_letters,
    list_groups,
    list_letters,
    open_jobs,
    read_story,
)
from app.jobs.dead.resolve import Order, Refusal, Requeued, discard, discard_one, requeue, requeue_one, tell_workers
from app.jobs.models import Model, ModelCatalog, register_model
from app.jobs.submit import Caller, accept, find_replay
from app.jobs.tables import attempts, job_inputs, jobs
from app.queue.dead import MAX_ENTRIES, Obituary, follow_obituaries, publish_obituaries
from app.queue.keys import PoolKeys
from app.queue.streams import JobQueue
from app.quotas.tables import audit_log, budget_windows, budgets, usage
from app.redis import Redis
from app.settings import Settings
from app.webhooks.tables import webhook_deliveries
from tests.support.audit import assert_audit_clean
from tests.support.dead import CRASH, ORDER, kill, letters, send_back, start_again, succeed
from tests.support.jobs import FILES, POOL, key_of, prepared, seed, submit


@pytest.fixture(autouse=True)
async def world(engine: AsyncEngine) -> None:
    await seed(engine, "acme", "rival")


async def job_row(engine: AsyncEngine, job_id: UUID):
    async with engine.connect() as conn:
        return (await conn.execute(select(jobs).where(jobs.c.id == job_id))).one()


async def rows(engine: AsyncEngine, table: object) -> list:
    async with engine.connect() as conn:
        return list(await conn.execute(select(table)))


async def make_budget(engine: AsyncEngine, limit: int, tenant: str = "acme", metric: str = "total_tokens") -> None:
    row = {"id": new_id(), "tenant_id": tenant, "metric": metric, "period": "total", "hard_limit": limit}
    async with engine.begin() as conn:
        await conn.execute(budgets.insert().values(row))


async def windows(engine: AsyncEngine) -> list[tuple[int, int]]:
    return [(row.used, row.reserved) for row in await rows(engine, budget_windows)]


# --- what is kept ----------------------------------------------------------------------------------------------------


async def test_a_letter_has_reason_group_and_all_attempts(engine: AsyncEngine, settings: Settings) -> None:
    flight = {"step": 7, "members": ["a.1", "b.1"], "admitted": ["a.1"]}
    (job_id,) = await kill(engine, await submit(engine, settings), detail=CRASH | {"flight": flight})
    (letter,) = await letters(engine)
    assert (letter.job_id, letter.reservation, letter.attempt, letter.reason) == (job_id, 1, 1, "engine_crashes")
    assert "SIGSEGV" in letter.signature
    assert "Segmentation fault at <address>" in letter.signature
    (attempt,) = letter.evidence["attempts"]
    assert attempt["detail"]["flight"] == flight
    assert attempt["detail"]["log_tail"] == CRASH["log_tail"]
    assert (attempt["outcome"], attempt["worker"]["device"]) == ("engine_crash", "cpu")
    assert letter.evidence["error"]["code"] == "engine_crashes"
    assert {"failures", "worker_losses", "engine_crashes"} <= set(letter.evidence)
    assert "once upon" not in json.dumps(letter.evidence), "no prompt"


async def test_evidence_is_bounded_whatever_an_attempt_left(engine: AsyncEngine, settings: Settings) -> None:
    detail = {"reason": "x" * 10**6, "log_tail": "y" * 10**6 + "END", "flight": {"members": ["z" * 50] * 10**5}}
    await kill(engine, await submit(engine, settings), detail=detail)
    (letter,) = await letters(engine)
    assert len(json.dumps(letter.evidence)) < MAX_BYTES
    assert letter.evidence["attempts"][0]["detail"]["log_tail"].endswith("END")


async def test_letters_are_listed_in_pages_and_groups(engine: AsyncEngine, settings: Settings) -> None:
    crashed = await kill(engine, await submit(engine, settings, count=5))
    lost = await kill(engine, await submit(engine, settings, tenant="rival", count=2), "worker_lost", detail={})
    async with engine.begin() as conn:
        pages: list[UUID] = []
        after: LetterPlace | None = None
        while page := await list_letters(conn, LetterFilter(), limit=3, after=after):
            pages += [each.job_id for each in page]
            after = page[-1].place
        assert sorted(pages) == sorted(crashed + lost)
        assert pages[:2] == sorted(lost, reverse=True), "newest first"
        groups = await list_groups(conn, LetterFilter(), limit=10)
        assert [(each.count, each.reason, each.tenants) for each in groups] == [
            (5, "engine_crashes", 1), (2, "workers_lost", 1),
        ]  # fmt: skip
        of_rival = LetterFilter(tenant="rival", pool=POOL, reason="workers_lost", fingerprint=groups[1].fingerprint)
        assert await open_jobs(conn, of_rival, limit=10) == sorted(lost)
        assert await open_jobs(conn, of_rival, limit=10, after=min(lost)) == [max(lost)]
        assert await count_letters(conn, LetterFilter(tenant="nobody")) == 0
        newest = (await list_letters(conn, LetterFilter(), limit=1))[0].at
        assert await count_letters(conn, LetterFilter(before=newest)) == 5
        assert await count_letters(conn, LetterFilter(after=newest)) == 0
        await discard(conn, lost[0], actor="ann", reason="no use")
        assert await count_letters(conn, LetterFilter()) == 6
        assert [each.job_id for each in await list_letters(conn, LetterFilter(state="discarded"), limit=9)] == lost[:1]
        assert await count_letters(conn, LetterFilter(state="any")) == 7


async def test_nobody_can_delete_a_job_from_under_its_letter(engine: AsyncEngine, settings: Settings) -> None:
    await kill(engine, await submit(engine, settings))
    with pytest.raises(IntegrityError, match="fk_dead_letters_job_id"):
        async with engine.begin() as conn:
            await conn.execute(text("DELETE FROM jobs"))


# --- requeue ---------------------------------------------------------------------------------------------------------


async def test_a_requeued_job_lives_again_and_is_billed_once(
    engine: AsyncEngine, settings: Settings, redis: Redis
) -> None:
    await make_budget(engine, 100)
    await JobQueue(redis, POOL).open_epoch("test")
    (job_id,) = await kill(engine, await submit(engine, settings))
    assert await windows(engine) == [(0, 0)]
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE jobs SET failures = 1, worker_losses = 2, engine_crashes = 3, lane = 'solo'"))
    requeued = await requeue_one(engine.begin, job_id, ORDER)
    assert isinstance(requeued, Requeued)
    assert await tell_workers(lambda pool: JobQueue(redis, pool), [requeued])
    assert await windows(engine) == [(0, 24)]
    row = await job_row(engine, job_id)
    assert (row.status, row.gen, row.attempt, row.reservation) == ("queued", 2, 1, 2)
    assert (row.failures, row.worker_losses, row.engine_crashes, row.error, row.finished_at) == (0, 0, 0, None, None)
    assert row.lane == "normal"
    assert await JobQueue(redis, POOL).known_gens([job_id]) == [2]
    (letter,) = await letters(engine)
    assert (letter.resolution, letter.resolved_by, letter.resolution_reason) == ("requeued", ORDER.actor, ORDER.reason)
    (act,) = await rows(engine, audit_log)
    assert (act.actor, act.action, act.target) == (ORDER.actor, "dead_letter.requeue", job_name(job_id))
    assert (act.detail["tenant"], act.detail["reason"]) == ("acme", ORDER.reason)
    await assert_audit_clean(engine, redis, within_s=0)
    await succeed(engine, job_id)
    assert await windows(engine) == [(19, 0)]
    assert [(row.kind, row.attempt) for row in await rows(engine, usage)] == [("wasted", 1), ("billed", 2)]
    assert [row.attempt for row in await rows(engine, attempts)] == [1, 2]
    await assert_audit_clean(engine, None)


async def test_a_job_that_dies_again_gets_a_letter_of_its_own_and_tells_so_again(
    engine: AsyncEngine, settings: Settings
) -> None:
    hook = {"url": "https://example.com/hook", "events": ["job.started", "job.dead", "job.succeeded"]}
    await make_budget(engine, 100)
    (job_id,) = await kill(engine, await submit(engine, settings, webhook=hook))
    await send_back(engine, job_id)
    await kill(engine, [job_id])
    await send_back(engine, job_id)
    assert [(each.reservation, each.attempt, each.resolution) for each in await letters(engine)] == [
        (1, 1, "requeued"), (2, 2, "requeued"),
    ]  # fmt: skip
    await succeed(engine, job_id)
    told = [(row.event_type, row.reservation) for row in await rows(engine, webhook_deliveries)]
    assert sorted(told) == [("job.dead", 1), ("job.dead", 2), ("job.started", 1), ("job.succeeded", 3)]
    bodies = {row.body for row in await rows(engine, webhook_deliveries)}
    assert len(bodies) == 4
    await assert_audit_clean(engine, None)


async def test_of_operators_who_requeue_at_once_one_wins_and_the_others_are_told(
    engine: AsyncEngine, settings: Settings
) -> None:
    await make_budget(engine, 100)
    (job_id,) = await kill(engine, await submit(engine, settings))
    orders = [Order(f"test:{name}", "again") for name in ("ann", "bob", "cid", "dan")]
    found = await asyncio.gather(*[requeue_one(engine.begin, job_id, order) for order in orders])
    (won,) = [order for order, each in zip(orders, found, strict=True) if isinstance(each, Requeued)]
    refused = [each for each in found if isinstance(each, Refusal)]
    assert len(refused) == 3
    for each in refused:
        assert isinstance(each.error, AlreadyResolved)
        assert f"was requeued by {won.actor} at " in each.error.detail
    assert (await job_row(engine, job_id)).reservation == 2
    assert await windows(engine) == [(0, 24)]
    assert len(await rows(engine, audit_log)) == 1
    await assert_audit_clean(engine, None)


async def test_of_a_requeue_and_a_discard_at_once_one_wins(engine: AsyncEngine, settings: Settings) -> None:
    ids = await kill(engine, await submit(engine, settings, count=8))

    async def both(job_id: UUID) -> tuple[object, object]:
        return await asyncio.gather(
            requeue_one(engine.begin, job_id, ORDER),
            discard_one(engine.begin, job_id, actor="test:bob", reason="no use"),
        )

    for sent_back, thrown_away in await asyncio.gather(*[both(job_id) for job_id in ids]):
        assert isinstance(sent_back, Requeued) == isinstance(thrown_away, Refusal)
    await assert_audit_clean(engine, None)


async def test_a_full_budget_refuses_and_the_letter_stays_open(engine: AsyncEngine, settings: Settings) -> None:
    await make_budget(engine, 30)
    (job_id,) = await kill(engine, await submit(engine, settings))
    await submit(engine, settings)  # takes the room
    refused = await requeue_one(engine.begin, job_id, ORDER)
    assert isinstance(refused, Refusal)
    assert isinstance(refused.error, BudgetExhausted)
    assert refused.error.detail.startswith(
        f"{job_name(job_id)} of acme: the budget of 30 total tokens can't hold the 24"
    )
    (letter,) = await letters(engine)
    assert letter.resolved_at is None
    assert (await job_row(engine, job_id)).status == "dead"
    assert await rows(engine, audit_log) == []
    await assert_audit_clean(engine, None)
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE budgets SET hard_limit = 1000"))
    assert isinstance(await requeue_one(engine.begin, job_id, ORDER), Requeued)
    await assert_audit_clean(engine, None)


async def test_tenants_with_budgets_are_requeued_at_once_without_a_deadlock(
    engine: AsyncEngine, settings: Settings
) -> None:
    for tenant in ("acme", "rival"):
        for metric in ("total_tokens", "requests"):
            await make_budget(engine, 10_000, tenant, metric)
    ids: list[UUID] = []
    for tenant in ("acme", "rival") * 5:
        ids += await kill(engine, await submit(engine, settings, tenant=tenant))
    orders = [requeue_one(engine.begin, job_id, ORDER) for job_id in (*ids, *reversed(ids))]
    found = await asyncio.gather(*orders)
    assert sum(isinstance(each, Requeued) for each in found) == len(ids)
    await assert_audit_clean(engine, None)


@pytest.mark.parametrize(
    ("asked", "deadline_s", "least", "most"),
    [(100, "renew", 90, 100), (None, "renew", None, None), (100, None, None, None), (None, 50.0, 40, 50)],
)
async def test_a_deadline_is_renewed_or_cleared(
    engine: AsyncEngine, settings: Settings, asked: int | None, deadline_s: object, least: int | None, most: int | None
) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings, deadline_s=asked))
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE jobs SET deadline_at = now() - interval '1 hour'"))
    await send_back(engine, job_id, Order("test:ann", "again", deadline_s))  # type: ignore[arg-type]
    async with engine.connect() as conn:
        left = await conn.scalar(text("SELECT extract(epoch FROM deadline_at - now())::float8 FROM jobs"))
    if least is None or most is None:
        assert left is None
    else:
        assert least < left <= most


async def test_a_request_of_before_that_holds_a_nul_is_requeued_with_its_deadline(
    engine: AsyncEngine, settings: Settings
) -> None:
    """Tools were taken with one: SQL that looked into the request couldn't requeue the job."""
    (job_id,) = await kill(engine, await submit(engine, settings, deadline_s=60))
    async with engine.begin() as conn:
        with_nul = "UPDATE job_inputs SET request = CAST(replace(CAST(request AS text), '{', :first) AS json)"
        await conn.execute(text(with_nul), {"first": '{"nul": "\\u0000", '})
    await send_back(engine, job_id, Order("test:ann", "again"))
    async with engine.connect() as conn:
        left = await conn.scalar(text("SELECT extract(epoch FROM deadline_at - now())::float8 FROM jobs"))
    assert left is not None
    assert 50 < left <= 60


async def test_what_is_not_dead_is_refused(engine: AsyncEngine, settings: Settings) -> None:
    (queued,) = await submit(engine, settings)
    for job_id in (queued.job_id, new_id()):
        with pytest.raises(NotFound):
            async with engine.begin() as conn:
                await requeue(conn, job_id, ORDER)
        with pytest.raises(NotFound):
            async with engine.begin() as conn:
                await discard(conn, job_id, actor="test:ann", reason="no use")


async def test_a_letter_that_older_code_wrote_is_completed_by_its_requeue(
    engine: AsyncEngine, settings: Settings
) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE dead_letters SET attempt = DEFAULT, signature = DEFAULT"))
    await assert_audit_clean(engine, None)
    await send_back(engine, job_id)
    assert [each.attempt for each in await letters(engine)] == [1]
    (job,) = await start_again(engine, job_id)
    assert (job.attempt, job.died_at) == (2, 1)
    await assert_audit_clean(engine, None)


async def test_a_discarded_letter_is_closed_for_good_and_keeps_its_evidence(
    engine: AsyncEngine, settings: Settings
) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings))
    assert await discard_one(engine.begin, job_id, actor="test:ann", reason="a test of ours") is None
    again = await discard_one(engine.begin, job_id, actor="test:bob", reason="no use")
    assert again is not None
    assert "was discarded by test:ann at " in str(again.error)
    assert isinstance(await requeue_one(engine.begin, job_id, ORDER), Refusal)
    (letter,) = await letters(engine)
    assert (letter.resolution, letter.resolution_reason) == ("discarded", "a test of ours")
    assert letter.evidence["attempts"]
    assert (await job_row(engine, job_id)).status == "dead"
    async with engine.connect() as conn:
        story = await read_story(conn, job_id)
    assert story is not None
    assert story.letter.resolved_by == "test:ann"
    await assert_audit_clean(engine, None)


async def test_a_requeued_job_can_be_cancelled_and_its_key_still_leads_to_it(
    engine: AsyncEngine, settings: Settings
) -> None:
    caller, first = Caller("acme", None), prepared(settings)
    async with engine.begin() as conn:
        accepted = await accept(conn, caller, [first], key=key_of("k", first))
    (job_id,) = await kill(engine, accepted)
    await send_back(engine, job_id)
    async with engine.begin() as conn:
        replay = await find_replay(conn, caller, key_of("k", first))
        assert replay is not None
        assert replay[0].job_id == job_id
        assert (await cancel(conn, "acme", job_id)).ended
    await assert_audit_clean(engine, None)


# --- edit ------------------------------------------------------------------------------------------------------------


async def edit_of(engine: AsyncEngine, settings: Settings, job_id: UUID, **changes: object):
    async with engine.connect() as conn:
        stored = await read_request(conn, job_id)
    return await prepare_edit(stored, changes, ModelCatalog(engine, clock=SystemClock()), settings)


async def test_an_edit_changes_what_it_says_and_keeps_the_rest(engine: AsyncEngine, settings: Settings) -> None:
    await make_budget(engine, 100)
    async with engine.begin() as conn:
        await register_model(conn, Model("small", "small", FILES.hash, "other-hash", 64, 512), FILES)
    (job_id,) = await kill(engine, await submit(engine, settings, model=POOL, temperature=0.5))
    before = (await rows(engine, job_inputs))[0].sampling
    edit = await edit_of(
        engine, settings, job_id, max_tokens=4, temperature=0.0, tier="batch", stop=["\n"], model="small", deadline_s=60
    )
    async with engine.begin() as conn:
        requeued = await requeue(conn, job_id, ORDER, edit)
    assert (requeued.pool, requeued.nomination.place, requeued.nomination.cost) == ("small", "batchagain", 20)
    row = await job_row(engine, job_id)
    assert (row.model, row.pool, row.tier, row.max_tokens) == ("small", "small", "batch", 4)
    assert row.deadline_at is not None
    (stored,) = await rows(engine, job_inputs)
    assert stored.sampling == before | {"max_tokens": 4, "temperature": 0.0, "stop": ["\n"]}, "the drawn seed stays"
    assert (stored.request["max_tokens"], stored.request["prompt"]) == (4, "once upon a time")
    assert await windows(engine) == [(0, 20)]
    (act,) = await rows(engine, audit_log)
    assert act.detail["changed"]["max_tokens"] == [8, 4]
    assert act.detail["changed"]["temperature"] == [0.5, 0.0]
    assert "once upon" not in json.dumps(act.detail)
    await assert_audit_clean(engine, None)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"prompt": "another"}, InvalidRequest, "prompt: can't be changed; what can: model, tier"),
        ({"temperature": 3}, InvalidRequest, "temperature: "),
        ({"temperature": "0"}, InvalidRequest, "temperature: "),
        ({"tier": "now"}, InvalidRequest, "tier: "),
        ({"stop": ["x"] * 17}, InvalidRequest, "stop: must be at most 16"),
        ({"max_tokens": 5000}, PromptTooLong, "max_tokens: must be at most"),
        ({"model": "unheard-of"}, UnknownModel, "unheard-of"),
    ],
)
async def test_an_edit_is_checked_as_a_submission(
    engine: AsyncEngine, settings: Settings, changes: dict, error: type[Exception], said: str
) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings))
    with pytest.raises(error, match=said):
        await edit_of(engine, settings, job_id, **changes)
    assert (await letters(engine))[0].resolved_at is None


@pytest.mark.parametrize(
    ("rights", "changes", "error"),
    [
        ("tiers = '{standard}'", {"tier": "interactive"}, TierNotAllowed),
        ("max_output_tokens = 16", {"max_tokens": 17}, OverTenantLimit),
        ("suspended_at = now()", {"max_tokens": 4}, TenantSuspended),
        # What the tenant may has changed since: an edit to what it may still goes.
        ("tiers = '{batch}'", None, TierNotAllowed),
        ("max_output_tokens = 4", None, OverTenantLimit),
        ("max_prompt_tokens = 1", None, OverTenantLimit),
        ("suspended_at = now()", None, TenantSuspended),
    ],
)
async def test_another_life_keeps_to_the_rights_that_its_tenant_has_now(
    engine: AsyncEngine, settings: Settings, rights: str, changes: dict | None, error: type[PenstockError]
) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        await conn.execute(text(f"UPDATE tenants SET {rights} WHERE id = 'acme'"))
    edit = None if changes is None else await edit_of(engine, settings, job_id, **changes)
    refused = await requeue_one(engine.begin, job_id, ORDER, edit)
    assert isinstance(refused, Refusal)
    assert type(refused.error) is error
    assert (await letters(engine))[0].resolved_at is None
    row = await job_row(engine, job_id)
    assert (row.status, row.tier, row.max_tokens) == ("dead", "standard", 8)
    assert await rows(engine, audit_log) == []


async def test_another_life_may_wait_where_the_queue_is_full(engine: AsyncEngine, settings: Settings) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET max_queued_jobs = 0, tiers = '{batch}' WHERE id = 'acme'"))
    edit = await edit_of(engine, settings, job_id, tier="batch")
    assert isinstance(await requeue_one(engine.begin, job_id, ORDER, edit), Requeued)


async def test_of_stop_strings_the_log_says_only_how_many_and_that_they_were_shown(
    engine: AsyncEngine, settings: Settings
) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings, stop=["a private word"]))
    async with engine.begin() as conn:
        assert (await show_request(conn, job_id, actor="test:ann")).shown()["stop"] == ["a private word"]
    edit = await edit_of(engine, settings, job_id, stop=["another word", "and one"])
    await send_back(engine, job_id, edit=edit)
    shown, requeued = await rows(engine, audit_log)
    assert (shown.actor, shown.action, shown.target) == ("test:ann", "dead_letter.show_texts", job_name(job_id))
    assert requeued.detail["changed"] == {"stop": [{"strings": 1}, {"strings": 2}]}
    assert "word" not in json.dumps([shown.detail, requeued.detail])
    (stored,) = await rows(engine, job_inputs)
    assert stored.sampling["stop"] == ["another word", "and one"]


async def test_a_look_without_stop_strings_is_none(engine: AsyncEngine, settings: Settings) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings))
    async with engine.begin() as conn:
        await show_request(conn, job_id, actor="test:ann")
    assert await rows(engine, audit_log) == []


async def test_a_letters_story_hides_every_text_of_its_owner(engine: AsyncEngine, settings: Settings) -> None:
    (job_id,) = await kill(
        engine, await submit(engine, settings, stop=["a private word"], metadata={"team": "a"}, top_k=5)
    )
    async with engine.connect() as conn:
        story = await read_story(conn, job_id)
    assert story is not None
    assert story.hidden_request == {"prompt": "once upon a time", "stop": ["a private word"]}
    assert (story.shown_request["metadata"], story.shown_request["top_k"]) == ({"team": "a"}, 5)
    assert not {"stop", "prompt"} & set(story.shown_request)


async def test_an_edit_of_an_earlier_life_is_refused(engine: AsyncEngine, settings: Settings) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings))
    edit = await edit_of(engine, settings, job_id, max_tokens=4)
    await send_back(engine, job_id)
    with pytest.raises(AlreadyResolved):
        await edit_of(engine, settings, job_id, max_tokens=4)
    await kill(engine, [job_id])
    refused = await requeue_one(engine.begin, job_id, ORDER, edit)
    assert isinstance(refused, Refusal)
    assert "died again while it was edited" in str(refused.error)


# --- who watches -----------------------------------------------------------------------------------------------------


async def test_a_death_is_announced_to_those_who_watch(engine: AsyncEngine, settings: Settings, redis: Redis) -> None:
    ids = await kill(engine, await submit(engine, settings, count=2))
    await announce_ends(engine, redis, [(ids[0], "dead"), (new_id(), "cancelled")])
    following = follow_obituaries(redis, [POOL, "empty"], backlog=5)
    told = await anext(following)
    (letter, other) = await letters(engine)
    assert told == Obituary(POOL, job_name(ids[0]), "acme", "engine_crashes", letter.fingerprint, letter.at.isoformat())
    await announce_ends(engine, redis, [(ids[1], "dead")])
    assert (await anext(following)).job == job_name(other.job_id)
    await following.aclose()


async def test_the_stream_is_capped(redis: Redis) -> None:
    one = Obituary("p", "job_1", "t", "r", "f", "2026-01-01T00:00:00Z")
    await publish_obituaries(redis, [one] * (MAX_ENTRIES + 500))
    assert await redis.xlen(PoolKeys("p").dlq) < MAX_ENTRIES + 200


async def test_without_redis_a_requeue_is_done_all_the_same(engine: AsyncEngine, settings: Settings) -> None:
    (job_id,) = await kill(engine, await submit(engine, settings))
    requeued = await requeue_one(engine.begin, job_id, ORDER)
    assert isinstance(requeued, Requeued)
    assert not await tell_workers(_no_queue, [requeued])
    assert await start_again(engine, job_id)


def _no_queue(pool: str) -> JobQueue:
    return JobQueue(Redis.from_url("redis://127.0.0.1:1/0"), pool)
