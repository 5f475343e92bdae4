"""Does the queue in Redis nominate each (job, gen) once, in order, fairly, and forget what was decided?"""

import asyncio
from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.ids import new_id
from app.queue.checkpoints import read_checkpoint, take_over
from app.queue.events import ChoiceDelta, EventLog, JobEvent, Publication
from app.queue.streams import Depth, JobQueue, Nomination, Ring, Room
from app.redis import Redis


def nominate(tenant: str = "acme", tier: str = "standard", gen: int = 1, cost: int = 100) -> Nomination:
    return Nomination(new_id(), gen, tier, tenant, cost)


@pytest.fixture
async def queue(redis: Redis) -> JobQueue:
    queue = JobQueue(redis, "tiny")
    await queue.open_epoch("test")
    return queue


async def test_a_job_is_nominated_once_per_gen(queue: JobQueue) -> None:
    job = nominate()
    assert await queue.enqueue([job]) == 1
    assert await queue.enqueue([job]) == 0
    assert await queue.claim("w", max_jobs=8, room=10_000) == [job]
    assert await queue.claim("w", max_jobs=8, room=10_000) == []
    assert await queue.enqueue([job]) == 0, "claimed but undecided: still known"


async def test_a_newer_gen_replaces_the_older_one_and_an_older_one_is_refused(queue: JobQueue) -> None:
    job = nominate()
    newer = Nomination(job.job_id, 2, job.place, job.tenant, job.cost)
    await queue.enqueue([job])
    assert await queue.enqueue([newer]) == 1
    assert await queue.enqueue([job]) == 0
    assert await queue.claim("w", max_jobs=8, room=10_000) == [newer]
    assert (await queue.depth())["standard"] == Depth(1, 100)


async def test_ack_of_another_gen_changes_nothing(queue: JobQueue) -> None:
    job = nominate(gen=3)
    await queue.enqueue([job])
    assert await queue.ack([(job.job_id, 2)]) == 0
    assert await queue.ack([(job.job_id, 4)]) == 0
    assert await queue.ack([(job.job_id, 3)]) == 1
    assert await queue.ack([(job.job_id, 3)]) == 0
    assert await queue.claim("w", max_jobs=8, room=10_000) == []


async def test_a_drained_queue_leaves_no_key_but_counters(queue: JobQueue, redis: Redis) -> None:
    jobs = [nominate(tenant=f"t{i % 5}", tier=tier) for i in range(40) for tier in ("interactive", "batch")]
    await queue.enqueue(jobs)
    claimed = await queue.claim("w", max_jobs=200, room=10**9)
    assert sorted(claimed, key=str) == sorted(jobs, key=str)
    await queue.ack([(job.job_id, job.gen) for job in claimed])
    assert [key async for key in redis.scan_iter("q:*")] == []
    assert [key async for key in redis.scan_iter("act:*")] == []
    assert not await redis.exists("idx:{tiny}")
    assert await queue.depth() == {tier: Depth(0, 0) for tier in ("interactive", "standard", "batch")}


async def test_claims_stop_at_the_room_with_one_job_of_overshoot(queue: JobQueue) -> None:
    await queue.enqueue([nominate(cost=100) for _ in range(10)])
    assert len(await queue.claim("w", max_jobs=8, room=250)) == 3
    assert len(await queue.claim("w", max_jobs=8, room=0)) == 0
    assert len(await queue.claim("w", max_jobs=2, room=10_000)) == 2


async def test_order_within_a_tenant_is_kept(queue: JobQueue) -> None:
    jobs = [nominate() for _ in range(50)]
    await queue.enqueue(jobs[:20])
    await queue.enqueue(jobs[20:])
    claimed = []
    while more := await queue.claim("w", max_jobs=7, room=10**9):
        claimed += more
    assert claimed == jobs


async def test_tenants_take_turns_by_tokens_not_by_jobs(queue: JobQueue) -> None:
    await queue.enqueue([nominate("big", cost=1000) for _ in range(20)])
    await queue.enqueue([nominate("small", cost=100) for _ in range(200)])
    claimed = await queue.claim("w", max_jobs=110, room=10**9)
    served = {tenant: sum(job.cost for job in claimed if job.tenant == tenant) for tenant in ("big", "small")}
    assert abs(served["big"] - served["small"]) <= 1000


async def test_tiers_share_by_weight_and_batch_moves(queue: JobQueue) -> None:
    for tier in ("interactive", "standard", "batch"):
        await queue.enqueue([nominate(tier=tier, cost=10) for _ in range(500)])
    claimed = await queue.claim("w", max_jobs=420, room=10**9)
    counts = {tier: sum(job.place == tier for job in claimed) for tier in ("interactive", "standard", "batch")}
    assert counts["interactive"] == pytest.approx(320, abs=16)
    assert counts["standard"] == pytest.approx(80, abs=4)
    assert counts["batch"] == pytest.approx(20, abs=2)


async def test_where_claims_name_no_room_an_idle_tenant_saves_up_no_credit(queue: JobQueue) -> None:
    await queue.enqueue([nominate("busy", cost=10) for _ in range(400)])
    await queue.claim("w", max_jobs=200, room=10**9)
    await queue.enqueue([nominate("late", cost=10) for _ in range(200)])
    claimed = await queue.claim("w", max_jobs=100, room=10**9)
    assert sum(job.tenant == "late" for job in claimed) == pytest.approx(50, abs=2)


async def test_undecided_claims_are_put_back_with_their_gen(queue: JobQueue) -> None:
    jobs = [nominate(gen=2) for _ in range(3)]
    await queue.enqueue(jobs)
    await queue.claim("dead", max_jobs=2, room=10**9)
    assert await queue.renominate(idle_s=60) == 0, "too early"
    assert await queue.renominate(idle_s=0) == 2
    assert sorted(await queue.claim("w", max_jobs=8, room=10**9), key=str) == sorted(jobs, key=str)
    assert (await queue.depth())["standard"] == Depth(3, 300)


async def test_a_decided_claim_is_not_put_back(queue: JobQueue) -> None:
    job = nominate()
    await queue.enqueue([job])
    await queue.claim("w", max_jobs=1, room=1000)
    await queue.ack([(job.job_id, job.gen)])
    assert await queue.renominate(idle_s=0) == 0


async def test_without_an_epoch_nothing_is_added_but_by_the_rebuild(redis: Redis) -> None:
    queue = JobQueue(redis, "tiny")
    job = nominate()
    assert await queue.enqueue([job]) is None
    assert await queue.known_gens([job.job_id]) == [None]
    assert await queue.enqueue([job], force=True) == 1
    assert await queue.known_gens([job.job_id]) == [1]


async def test_pools_do_not_see_each_other(queue: JobQueue, redis: Redis) -> None:
    other = JobQueue(redis, "tiny-2")
    await other.open_epoch("test")
    await other.enqueue([nominate()])
    assert await queue.claim("w", max_jobs=1, room=1000) == []
    assert (await queue.depth())["standard"] == Depth(0, 0)


async def test_a_script_survives_script_flush(queue: JobQueue, redis: Redis) -> None:
    await queue.enqueue([nominate()])
    await redis.script_flush()
    assert len(await queue.claim("w", max_jobs=1, room=1000)) == 1


async def test_the_bell_wakes_and_stays_short(queue: JobQueue, redis: Redis) -> None:
    await queue.enqueue([nominate() for _ in range(500)])
    assert await redis.llen("bell:{tiny}:standard") == 64
    assert await queue.wait_for_bell(1.0)


async def test_rings_for_what_was_taken_already_wake_nobody(queue: JobQueue, redis: Redis) -> None:
    """Of five hundred lines that came at once, 64 rings were left when all were claimed: as many claims found nothing."""
    await queue.enqueue([nominate() for _ in range(100)])
    await queue.enqueue([nominate(tier="batch") for _ in range(3)])
    room = {"interactive": Room(10**6, 200), "standard": Room(10**6, 200), "batch": Room(0, 0)}
    while await queue.claim("w", max_jobs=200, room=room, lead=10**9):
        pass
    assert await queue.wait_for_bell(0.1, tiers=["standard"], full=["standard"]) is None
    assert await queue.wait_for_bell(1.0, tiers=["batch"]), "there is work still, for who has room for it"
    await queue.enqueue([nominate()])
    assert await queue.wait_for_bell(1.0, tiers=["standard"]), "what comes rings anew"


async def test_a_worker_without_room_doesnt_take_the_bell_of_one_that_has_some(queue: JobQueue, redis: Redis) -> None:
    full = asyncio.create_task(queue.wait_for_bell(2.0, tiers=["interactive"], who="full"))
    while not any(client["cmd"] == "blpop" for client in await redis.client_list()):
        await asyncio.sleep(0.01)
    await queue.enqueue([nominate()])
    assert await queue.wait_for_bell(2.0, tiers=["interactive", "standard"])
    assert not full.done()
    await queue.wake("full")
    assert not await full, "it was woken, no bell rang"


async def test_suspects_ring_everywhere_and_who_is_ahead_where_there_is_no_room(queue: JobQueue) -> None:
    await queue.enqueue([nominate(tier="solo")])
    assert await queue.wait_for_bell(2.0, tiers=[]) == Ring(needs_room=False)
    assert len(await queue.claim("w", max_jobs=1, room=1000)) == 1
    await queue.enqueue([nominate("flooder") for _ in range(3)])
    assert len(await queue.claim("w", max_jobs=2, room=1000, credit=500)) == 2
    await queue.enqueue([nominate("quiet")])
    assert await queue.wait_for_bell(2.0, tiers=[], full=["standard"]) == Ring(needs_room=True)
    assert await queue.wait_for_bell(0.1, tiers=[], full=["standard"]) is None, (
        "the flooder rings only where there is room"
    )


@pytest.mark.parametrize("args", [["{tiny}", "1", "", "job"], ["{tiny}", "1", "", "job", "x", "standard", "t", "1"]])
async def test_a_malformed_call_writes_nothing(queue: JobQueue, redis: Redis, args: list[str]) -> None:
    keys = queue.keys
    with pytest.raises(Exception, match="enqueue"):
        await queue._scripts.run("enqueue", [keys.idx, keys.depth, keys.epoch, keys.tiers], args)
    assert not await redis.exists(keys.idx)


@given(
    ops=st.lists(
        st.tuples(st.sampled_from(["enqueue", "claim", "ack", "renominate", "requeue"]), st.integers(0, 7)), max_size=60
    )
)
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_sequence_of_calls_loses_or_doubles_a_nomination(redis: Redis, ops: list[tuple[str, int]]) -> None:
    await redis.flushdb()
    queue = JobQueue(redis, "tiny")
    await queue.open_epoch("test")
    jobs = [nominate(tenant=f"t{i % 3}", tier=("interactive", "batch")[i % 2]) for i in range(8)]
    waiting: dict[int, int] = {}  # job number -> gen that is nominated
    held: dict[int, int] = {}  # claimed, undecided
    gens = dict.fromkeys(range(8), 1)
    for op, i in ops:
        job = jobs[i]
        if op in {"enqueue", "requeue"}:
            gens[i] += op == "requeue"
            added = await queue.enqueue([Nomination(job.job_id, gens[i], job.place, job.tenant, job.cost)])
            known = {**waiting, **held}.get(i)
            assert added == (known is None or known < gens[i])
            if added:
                held.pop(i, None)
                waiting[i] = gens[i]
        elif op == "claim":
            for claimed in await queue.claim("w", max_jobs=2, room=10**9):
                number = next(n for n, each in enumerate(jobs) if each.job_id == claimed.job_id)
                assert waiting.pop(number) == claimed.gen, "claimed what wasn't waiting"
                held[number] = claimed.gen
        elif op == "ack":
            gen = {**waiting, **held}.get(i)
            assert await queue.ack([(job.job_id, gens[i])]) == (gen == gens[i])
            if gen == gens[i]:
                waiting.pop(i, None)
                held.pop(i, None)
        else:
            assert await queue.renominate(idle_s=0) == len(held)
            waiting |= held
            held.clear()
        depth = await queue.depth()
        assert sum(each.jobs for each in depth.values()) == len(waiting) + len(held)
    await queue.renominate(idle_s=0)
    waiting |= held
    left = await queue.claim("w", max_jobs=100, room=10**9)
    assert {each.job_id: each.gen for each in left} == {jobs[n].job_id: gen for n, gen in waiting.items()}


async def test_late_events_of_a_fenced_attempt_are_refused_by_their_place(redis: Redis) -> None:
    log = EventLog(redis, ttl_s=60, max_entries=1000)
    job_id = new_id()

    def tokens(seq: int, attempt: int) -> Publication:
        delta = ChoiceDelta(choice=0, offset=seq - 1, token_ids=[seq], text="x")
        return Publication(job_id, seq, JobEvent(kind="tokens", attempt=attempt, deltas=[delta]))

    await log.publish([tokens(1, 1), tokens(2, 1), tokens(3, 2), tokens(2, 1)])
    await log.publish([Publication(job_id, 3, JobEvent(kind="succeeded", attempt=2))])
    stored = await log.read(job_id)
    assert [(each.seq, each.event.kind) for each in stored] == [
        (1, "tokens"),
        (2, "tokens"),
        (3, "tokens"),
        (3, "succeeded"),
    ]
    assert (last := await log.last(job_id)) is not None
    assert last.event.kind == "succeeded"
    assert msgspec.to_builtins(stored[2].event)["attempt"] == 2


async def test_who_takes_a_stream_over_has_what_was_written_meanwhile_and_nothing_comes_after(redis: Redis) -> None:
    log, job_id = EventLog(redis, ttl_s=60, max_entries=1000), new_id()

    def tokens(seq: int, attempt: int, choice: int = 0) -> Publication:
        delta = ChoiceDelta(choice=choice, offset=seq - 1, token_ids=[seq], text="x", text_offset=seq - 1)
        return Publication(job_id, seq, JobEvent(kind="tokens", attempt=attempt, deltas=[delta]))

    await log.publish([Publication(job_id, 0, JobEvent(kind="started", attempt=1, made_by="us")), tokens(1, 1)])
    known = await read_checkpoint(log, job_id, 1)
    assert known is not None
    await log.publish([tokens(2, 1)])  # its worker was stopped and goes on
    start = JobEvent(kind="started", attempt=2, made_by="us")
    current = await take_over(log, job_id, known, start)
    assert current is not None
    assert current.choices[0].token_ids == [1, 2]
    await log.publish([tokens(each, 1) for each in range(3, 100)])
    await log.publish([tokens(3, 2)])
    assert [(each.place.attempt, each.seq) for each in await log.read(job_id)] == [
        (1, 0), (1, 1), (1, 2), (2, 1), (2, 3),
    ]  # fmt: skip
    await log.publish([tokens(5, 2)])
    assert await take_over(log, job_id, known, start) is None, "a gap"


async def test_a_stream_stays_for_its_time_after_its_start_and_after_its_end(redis: Redis) -> None:
    """In between the time is set anew now and then only: a command less for each token, and for an end soon after. What another process
    writes counts from its own first.
    """
    log, job_id = EventLog(redis, ttl_s=600, max_entries=1000), new_id()
    key = f"ev:{job_id.hex}"

    async def ttl_after(kind: str, seq: int, *, through: EventLog = log) -> int:
        await redis.expire(key, 5)
        await through.publish([Publication(job_id, seq, JobEvent(kind=kind, attempt=1))])
        return int(await redis.ttl(key))

    assert await ttl_after("started", 0) > 500
    assert await ttl_after("tokens", 1) <= 5
    assert await ttl_after("tokens", 2, through=EventLog(redis, ttl_s=600, max_entries=1000)) > 500
    assert await ttl_after("succeeded", 2) <= 5, "it was set a moment ago"
    assert log._kept_at == {}
    assert await ttl_after("succeeded", 3, through=EventLog(redis, ttl_s=600, max_entries=1000)) > 500


async def test_a_stream_that_redis_has_lost_since_comes_back_with_its_time(redis: Redis) -> None:
    """Else what a running job writes next would stay in Redis for ever, once for each job that ran at the loss."""
    log, jobs = EventLog(redis, ttl_s=600, max_entries=1000), [new_id(), new_id()]

    def about(kind: str, seq: int) -> list[Publication]:
        return [Publication(job_id, seq, JobEvent(kind=kind, attempt=1)) for job_id in jobs]

    for kind, seq in (("tokens", 1), ("succeeded", 1)):
        await log.publish(about("started", 0))
        await redis.delete(*[f"ev:{job_id.hex}" for job_id in jobs])
        await log.publish(about(kind, seq))
        for job_id in jobs:
            assert [each.event.kind for each in await log.read(job_id)] == [kind]
            assert await redis.ttl(f"ev:{job_id.hex}") > 500
        await redis.delete(*[f"ev:{job_id.hex}" for job_id in jobs])


async def test_a_lost_claim_of_a_busy_tenant_is_put_back_too(queue: JobQueue, redis: Redis) -> None:
    """Each claim used to move the stream's place in `pend`: a tenant that was claimed from all the time was never looked at."""
    lost, *others = [nominate() for _ in range(6)]
    await queue.enqueue([lost, *others])
    await queue.claim("dead", max_jobs=1, room=10**9)
    await redis.zadd("pend:{tiny}", {queue.keys.stream("standard", "acme"): 1})  # long ago
    for _ in others:
        (busy,) = await queue.claim("w", max_jobs=1, room=10**9)
        await queue.ack([(busy.job_id, busy.gen)])
    assert await queue.renominate(idle_s=0.0) == 1
    assert await queue.claim("w", max_jobs=1, room=10**9) == [lost]


async def test_a_stream_is_looked_at_again_when_its_oldest_claim_is_due(queue: JobQueue, redis: Redis) -> None:
    await queue.enqueue([nominate() for _ in range(3)])
    await queue.claim("dead", max_jobs=1, room=10**9)
    stream = queue.keys.stream("standard", "acme")
    claimed_at = await redis.zscore("pend:{tiny}", stream)
    await redis.zadd("pend:{tiny}", {stream: 1})
    assert await queue.renominate(idle_s=60) == 0, "its claim is young"
    assert await redis.zscore("pend:{tiny}", stream) == pytest.approx(claimed_at, abs=1.5)


async def test_a_stream_tells_the_end_of_a_job_whose_second_attempt_was_shorter(redis: Redis) -> None:
    log, job = EventLog(redis, ttl_s=60, max_entries=1000), new_id()
    await log.publish(
        [
            Publication(job, 0, JobEvent(kind="started", attempt=1)),
            Publication(job, 30, JobEvent(kind="tokens", attempt=1)),
        ]
    )
    await log.publish(
        [
            Publication(job, 0, JobEvent(kind="started", attempt=2)),
            Publication(job, 5, JobEvent(kind="cancelled", attempt=2)),
        ]
    )
    last = await log.last(job)
    assert last is not None
    assert last.event.kind == "cancelled"


async def test_what_ran_before_goes_ahead_of_its_tier(queue: JobQueue, redis: Redis) -> None:
    fresh = [nominate() for _ in range(3)]
    again = [nominate(tier="standardagain", gen=2) for _ in range(2)]
    await queue.enqueue([*fresh, *again])
    assert (await queue.depth())["standard"] == Depth(5, 500)
    assert await queue.claim("w", max_jobs=5, room=10_000) == [*(replace(each, level=0) for each in again), *fresh]
    assert float(await redis.hget(queue.keys.tiers, "standard")) == 500 / 4


async def test_a_suspect_is_claimed_before_all_others_and_alone(queue: JobQueue) -> None:
    others = [nominate(tier="interactive") for _ in range(3)]
    suspects = [nominate(tier="solo", gen=2, cost=9000) for _ in range(2)]
    await queue.enqueue([*others, *suspects])
    assert await queue.num_suspects() == 2
    assert await queue.claim("a", max_jobs=8, room=10) == suspects[:1]
    assert await queue.claim("b", max_jobs=8, room=10) == suspects[1:], "while one worker tries the first"
    assert await queue.claim("c", max_jobs=8, room=10_000) == others


async def test_many_suspects_come_in_halves_but_never_in_groups_that_could_run_one_by_one(queue: JobQueue) -> None:
    await queue.enqueue([nominate(tier="bisect", gen=2, cost=1) for _ in range(100)] + [nominate()])
    sizes = []
    while claimed := await queue.claim("w", max_jobs=200, room=10_000):
        sizes.append(len(claimed))
        assert len({job.place for job in claimed}) == 1, "suspects have no company"
        await queue.ack([(job.job_id, job.gen) for job in claimed])
    assert sizes == [50, 32, 18, 1]
