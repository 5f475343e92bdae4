"""Do claims share by weight and by real work, keep caps, respect room by tier, and let no tier starve?"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.ids import new_id
from app.queue.fairness import COMMON_LEVEL, Terms, work_of
from app.queue.places import TIER_WEIGHTS
from app.queue.streams import JobQueue, Nomination, Room, Work
from app.redis import Redis

PLENTY = 10**9


def nominate(tenant: str = "acme", tier: str = "standard", gen: int = 1, cost: int = 100) -> Nomination:
    return Nomination(new_id(), gen, tier, tenant, cost)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def queue(redis: Redis, clock: Clock) -> JobQueue:
    queue = JobQueue(redis, "tiny", now=clock)
    await queue.open_epoch("test")
    return queue


async def counters(queue: JobQueue) -> dict[str, float]:
    """Tenant -> counter in the standard tier, wherever it stands."""
    idle = await queue.redis.hgetall(queue.keys.remembered("standard"))
    active = await queue.redis.zrange(queue.keys.active("standard"), 0, -1, withscores=True)
    found = {tenant.decode(): float(value) for tenant, value in idle.items() if tenant != b":now"}
    return found | {tenant.decode(): value for tenant, value in active}


async def drained(queue: JobQueue) -> list[Nomination]:
    taken = []
    while claimed := await queue.claim("w", max_jobs=64, room=PLENTY):
        taken += claimed
        await queue.ack([(job.job_id, job.gen) for job in claimed])
    return taken


async def test_tenants_share_by_their_weights(queue: JobQueue) -> None:
    await queue.share({"two": Terms(2), "four": Terms(4)})
    await queue.enqueue([nominate(tenant, cost=10) for tenant in ("one", "two", "four") for _ in range(100)])
    counts = Counter(job.tenant for job in await queue.claim("w", max_jobs=70, room=PLENTY))
    assert counts["one"] == pytest.approx(10, abs=1)
    assert counts["two"] == pytest.approx(20, abs=1)
    assert counts["four"] == pytest.approx(40, abs=1)


async def test_terms_that_are_taken_away_hold_no_more(queue: JobQueue) -> None:
    await queue.share({"one": Terms(1000, 0)})
    await queue.enqueue([nominate(tenant, cost=10) for tenant in ("one", "two") for _ in range(20)])
    assert {job.tenant for job in await queue.claim("w", max_jobs=4, room=PLENTY)} == {"two"}
    await queue.share({})
    counts = Counter(job.tenant for job in await queue.claim("w", max_jobs=20, room=PLENTY))
    assert counts["one"] == pytest.approx(10, abs=4)


async def test_a_true_up_charges_the_real_work_and_the_next_claim_expects_it(queue: JobQueue) -> None:
    job, other = nominate(cost=1000), nominate(cost=1000)
    await queue.enqueue([job, other])
    await queue.claim("w", max_jobs=1, room=PLENTY)
    assert await counters(queue) == {"acme": 1000}
    assert await queue.true_up([Work(job.job_id, 250)]) == 1
    assert await counters(queue) == {"acme": 250}
    await queue.claim("w", max_jobs=1, room=PLENTY)
    assert await counters(queue) == {"acme": 500}, "a quarter of the cost, as before"
    assert float(await queue.redis.hget(queue.keys.tiers, "standard")) == 500 / 4


async def test_a_true_up_that_is_repeated_or_of_a_stranger_changes_nothing(queue: JobQueue) -> None:
    job = nominate(cost=1000)
    await queue.enqueue([job])
    await queue.claim("w", max_jobs=1, room=PLENTY)
    await queue.true_up([Work(job.job_id, 250)])
    assert await queue.true_up([Work(job.job_id, 250), Work(new_id(), 9)]) == 0
    assert await counters(queue) == {"acme": 250}


async def test_an_idle_tenant_is_trued_up_too(queue: JobQueue) -> None:
    job = nominate(cost=1000)
    await queue.enqueue([job])
    assert await drained(queue) == [job]
    await queue.true_up([Work(job.job_id, 300)])
    assert await counters(queue) == {"acme": 300}


async def test_a_weight_that_changes_while_a_job_runs_is_used_for_the_next(queue: JobQueue) -> None:
    job = nominate(cost=1000)
    await queue.share({"acme": Terms(2)})
    await queue.enqueue([job, nominate(cost=1000)])
    await queue.claim("w", max_jobs=1, room=PLENTY)
    await queue.share({"acme": Terms(10)})
    await queue.true_up([Work(job.job_id, 0)])
    assert await counters(queue) == {"acme": 0}


async def test_work_that_is_given_back_is_charged_once(queue: JobQueue) -> None:
    job = nominate(cost=1000)
    await queue.enqueue([job])
    await queue.claim("w", max_jobs=1, room=PLENTY)
    await queue.ack([(job.job_id, 1)])
    await queue.enqueue([Nomination(job.job_id, 2, "standardagain", "acme", 1000)])
    assert await counters(queue) == {"acme": 0}, "nobody pays for an attempt that was lost"
    await queue.claim("w", max_jobs=1, room=PLENTY)
    await queue.true_up([Work(job.job_id, 400)])
    assert await counters(queue) == {"acme": 400}
    assert not await queue.redis.exists(queue.keys.running, queue.keys.busy)


async def test_who_returns_from_idle_goes_ahead_by_one_workers_room_and_no_more(queue: JobQueue) -> None:
    await queue.enqueue([nominate("flooder", cost=10) for _ in range(400)])
    await queue.claim("w", max_jobs=200, room=PLENTY, credit=500)
    await queue.enqueue([nominate("quiet", cost=10) for _ in range(100)])
    first = await queue.claim("w", max_jobs=50, room=PLENTY, credit=500)
    assert Counter(job.tenant for job in first)["quiet"] == pytest.approx(50, abs=1)
    then = await queue.claim("w", max_jobs=40, room=PLENTY, credit=500)
    assert Counter(job.tenant for job in then)["quiet"] == pytest.approx(20, abs=2)


async def test_who_left_less_than_that_to_the_others_gets_what_it_left(queue: JobQueue) -> None:
    await queue.enqueue([nominate(tenant, cost=10) for tenant in ("flooder", "quiet") for _ in range(10)])
    await queue.claim("w", max_jobs=20, room=PLENTY, credit=10_000)
    await queue.enqueue([nominate("flooder", cost=10) for _ in range(200)])
    await queue.claim("w", max_jobs=30, room=PLENTY, credit=10_000)
    await queue.enqueue([nominate("quiet", cost=10) for _ in range(100)])
    claimed = await queue.claim("w", max_jobs=50, room=PLENTY, credit=10_000)
    assert Counter(job.tenant for job in claimed)["quiet"] == pytest.approx(30 + 10, abs=2)


async def test_credits_of_several_who_return_do_not_add_up(queue: JobQueue) -> None:
    """Each is lifted relative to where the claims stand, not to one who has just come back with a credit of its own."""
    await queue.enqueue([nominate("flooder", cost=10) for _ in range(400)])
    await queue.claim("w", max_jobs=200, room=PLENTY, credit=500)
    for tenant in ("first", "second", "third"):
        await queue.enqueue([nominate(tenant, cost=10) for _ in range(3)])
        await queue.claim("w", max_jobs=1, room=PLENTY, credit=500)
    assert min((await counters(queue)).values()) >= 200 * 10 - 10 - 500


async def test_who_was_served_for_long_owes_nothing_to_who_comes_new_after_a_lull(queue: JobQueue) -> None:
    """With nobody active there was nobody to be lifted to: a newcomer began at 0, and ran alone until it had caught up."""
    await queue.enqueue([nominate("old", cost=100) for _ in range(50)])
    await drained(queue)
    await queue.enqueue([nominate("new", cost=100) for _ in range(40)])
    await queue.enqueue([nominate("old", cost=100) for _ in range(40)])
    counts = Counter(job.tenant for job in await queue.claim("w", max_jobs=40, room=PLENTY))
    assert counts["old"] == pytest.approx(20, abs=2)


async def test_a_tier_that_was_served_for_long_owes_nothing_to_one_that_comes_new_after_a_lull(queue: JobQueue) -> None:
    await queue.enqueue([nominate(tier="interactive") for _ in range(500)])
    await drained(queue)
    await queue.enqueue([nominate(tier="batch") for _ in range(40)])
    await queue.enqueue([nominate(tier="interactive") for _ in range(40)])
    counts = Counter(job.place for job in await queue.claim("w", max_jobs=34, room=PLENTY))
    assert counts["interactive"] >= 30


async def test_a_tenant_at_its_cap_is_passed_over_until_one_of_its_jobs_ends(queue: JobQueue) -> None:
    await queue.share({"capped": Terms(1, 2)})
    capped = [nominate("capped") for _ in range(5)]
    others = [nominate("free") for _ in range(3)]
    await queue.enqueue([*capped, *others])
    claimed = await queue.claim("w", max_jobs=64, room=PLENTY)
    assert {job.job_id for job in claimed} == {job.job_id for job in [*capped[:2], *others]}
    await queue.ack([(job.job_id, job.gen) for job in claimed])
    assert await queue.claim("w", max_jobs=64, room=PLENTY) == []
    await queue.enqueue([nominate("capped")])
    assert await queue.claim("w", max_jobs=64, room=PLENTY) == [], "work that is new doesn't bring it back"
    await queue.true_up([Work(capped[0].job_id, 10)])
    assert await queue.claim("w", max_jobs=64, room=PLENTY) == [capped[2]], "in its order"


async def test_a_cap_that_is_raised_lets_its_tenant_in_again(queue: JobQueue) -> None:
    await queue.share({"capped": Terms(1, 0)})
    jobs = [nominate("capped") for _ in range(3)]
    await queue.enqueue(jobs)
    assert await queue.claim("w", max_jobs=64, room=PLENTY) == []
    await queue.share({"capped": Terms(1, 2)})
    assert await queue.claim("w", max_jobs=64, room=PLENTY) == jobs[:2]


async def test_a_tier_whose_only_tenant_was_at_its_cap_has_saved_up_no_more_than_one_that_was_idle(
    queue: JobQueue,
) -> None:
    await queue.share({"capped": Terms(1, 0)})
    await queue.enqueue([nominate("capped", "batch", cost=10) for _ in range(100)])
    await queue.enqueue([nominate(tier="standard", cost=10) for _ in range(600)])
    assert len(await queue.claim("w", max_jobs=400, room=PLENTY, credit=50)) == 400
    await queue.share({"capped": Terms(1, None)})
    claimed = await queue.claim("w", max_jobs=100, room=PLENTY, credit=50)
    assert Counter(job.place for job in claimed)["batch"] == pytest.approx(5 + 95 / 5, abs=2)


async def test_what_postgres_refused_is_put_back_with_its_gen_and_its_tenant_waits(queue: JobQueue) -> None:
    await queue.share({"capped": Terms(1, 8)})
    jobs = [nominate("capped", gen=3) for _ in range(3)]
    await queue.enqueue(jobs)
    assert await queue.claim("w", max_jobs=2, room=PLENTY) == jobs[:2]
    assert await queue.put_back([(jobs[0].job_id, 3), (jobs[1].job_id, 2)]) == 1
    assert await queue.claim("w", max_jobs=8, room=PLENTY) == [], "though it isn't at its cap as far as Redis knows"
    await queue.true_up([Work(jobs[1].job_id, 10)])
    assert await queue.claim("w", max_jobs=8, room=PLENTY) == [jobs[2], jobs[0]]


@pytest.mark.parametrize("key", ["busy", "running", "parked", "terms"])
async def test_a_lost_key_is_made_good(queue: JobQueue, key: str) -> None:
    terms = {"capped": Terms(1, 2)}
    await queue.share(terms)
    jobs = [nominate("capped") for _ in range(5)]
    await queue.enqueue(jobs)
    running = {job.job_id: job.tenant for job in await queue.claim("w", max_jobs=8, room=PLENTY)}
    await queue.ack([(job_id, 1) for job_id in running])
    await queue.redis.delete(getattr(queue.keys, key))
    for _ in range(2):  # a count that was lost is seen when it is compared
        await queue.adopt(running)
        await queue.share(terms)
        await queue.mend([job.job_id for job in jobs[2:]])
    assert await queue.claim("w", max_jobs=8, room=PLENTY) == []
    await queue.true_up([Work(jobs[0].job_id, 10)])
    assert await queue.claim("w", max_jobs=8, room=PLENTY) == [jobs[2]]


def rooms(interactive: int, standard: int, batch: int, jobs: int = 64) -> dict[str, Room]:
    return {"interactive": Room(interactive, jobs), "standard": Room(standard, jobs), "batch": Room(batch, jobs)}


async def test_interactive_work_enters_where_there_is_no_room_for_batch(queue: JobQueue) -> None:
    batch, urgent = nominate(tier="batch"), nominate(tier="interactive")
    await queue.enqueue([batch, urgent])
    assert await queue.claim("w", max_jobs=8, room=rooms(500, 0, 0), lead=500) == [urgent]
    assert await queue.claim("w", max_jobs=8, room=rooms(500, 0, 0), lead=500) == []
    assert await queue.claim("w", max_jobs=8, room=rooms(500, 500, 500), lead=500) == [batch]


async def test_what_a_tier_takes_is_taken_from_the_lower_ones_only(queue: JobQueue) -> None:
    await queue.enqueue([nominate(tier=tier, cost=100) for tier in ("interactive", "batch") for _ in range(40)])
    claimed = await queue.claim("w", max_jobs=64, room=rooms(3000, 3000, 1000), lead=PLENTY)
    assert sum(job.cost for job in claimed) == 3000
    # Batch had its turn with its first job; interactive jobs then used up what room there was for more of it.
    assert Counter(job.place for job in claimed) == {"interactive": 29, "batch": 1}
    assert claimed[1].place == "batch"


def levels(standard: list[int]) -> dict[str, list[Room]]:
    """Room in the standard tier by level; none in the others."""
    return {tier: [Room(tokens if tier == "standard" else 0, 64) for tokens in standard] for tier in TIER_WEIGHTS}


async def test_who_returns_from_idle_may_take_what_a_flood_holds_for_as_much_as_its_credit(queue: JobQueue) -> None:
    """Its burst had to wait until jobs of the flood ended, one by one, though it was its turn at each."""
    await queue.enqueue([nominate("flood", cost=10) for _ in range(100)])
    assert {job.level for job in await queue.claim("w", max_jobs=50, room=PLENTY, credit=160)} == {COMMON_LEVEL}
    await queue.enqueue([nominate("quiet", cost=10) for _ in range(20)])
    full = levels([100] * COMMON_LEVEL + [0])
    taken = [job for _ in range(3) for job in await queue.claim("w", max_jobs=64, room=full, credit=160)]
    assert [job.tenant for job in taken] == ["quiet"] * 16, "then both wait for room"
    assert [job.level for job in taken] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4, (
        "the less is left, the less it may displace"
    )
    rest = await queue.claim("w", max_jobs=8, room=PLENTY, credit=160)
    assert Counter(job.tenant for job in rest) == {"quiet": 4, "flood": 4}
    assert {job.level for job in rest} == {COMMON_LEVEL}


async def test_what_a_privileged_job_takes_is_missing_behind_it_only(queue: JobQueue) -> None:
    await queue.enqueue([nominate("flood", cost=10) for _ in range(100)])
    await queue.claim("w", max_jobs=50, room=PLENTY, credit=400)
    await queue.enqueue([nominate("quiet", cost=10) for _ in range(40)])
    claimed = await queue.claim("w", max_jobs=64, room=levels([150, 130, 130, 130, 130]), credit=400)
    # Ten at level 0 leave 30 at the next; three of that level use them up.
    assert [job.level for job in claimed] == [0] * 10 + [1] * 3


async def test_a_tier_that_returns_from_idle_may_take_what_it_left_to_the_others_up_to_the_credit(
    queue: JobQueue,
) -> None:
    """Interactive jobs that come one by one find their tier idle each time: each began where batch was, and they soon were ahead of it."""
    await queue.enqueue([nominate(tier="batch", cost=10) for _ in range(400)])
    await queue.claim("w", max_jobs=100, room=PLENTY, credit=160)
    taken = []
    for _ in range(40):
        await queue.enqueue([nominate(tier="interactive", cost=10)])
        taken += await queue.claim("w", max_jobs=1, room=rooms(1000, 0, 0), credit=160)
    assert len(taken) == pytest.approx(160 / 10, abs=1), "then it is batch's turn, which has no room"


async def test_a_tier_runs_ahead_of_its_share_by_no_more_than_its_lead(queue: JobQueue) -> None:
    await queue.enqueue([nominate(tier=tier, cost=100) for tier in ("interactive", "batch") for _ in range(40)])
    taken = []
    for _ in range(40):
        taken += await queue.claim("w", max_jobs=1, room=rooms(1000, 0, 0), lead=600)
    assert {job.place for job in taken} == {"interactive"}
    assert 600 <= sum(job.cost for job in taken) <= 700
    (due,) = await queue.claim("w", max_jobs=1, room=rooms(1000, 1000, 1000), lead=600)
    assert due.place == "batch"


async def test_a_tier_without_a_turn_for_long_gets_one_out_of_turn(queue: JobQueue, clock: Clock) -> None:
    await queue.enqueue([nominate(tier="interactive", cost=100) for _ in range(600)])
    await queue.enqueue([nominate(tier="batch", cost=10_000) for _ in range(3)])
    first = await queue.claim("w", max_jobs=2, room=PLENTY, aging_s=30)
    assert [job.place for job in first] == ["interactive", "batch"]
    clock.now += 29
    assert {job.place for job in await queue.claim("w", max_jobs=8, room=PLENTY, aging_s=30)} == {"interactive"}
    clock.now += 1
    late = await queue.claim("w", max_jobs=8, room=PLENTY, aging_s=30)
    assert [job.place for job in late] == ["batch", *["interactive"] * 7], "one, and the next in its turn"
    clock.now += 30
    assert not await queue.claim("w", max_jobs=8, room=rooms(0, 0, 0), aging_s=30), "and only where there is room"


def test_work_counts_generated_tokens_twice_and_cached_ones_not_at_all() -> None:
    assert work_of(100, 30, 50) == 170
    assert work_of(10, 20, 0) == 0


class Model:
    """What must be known of four jobs of each of two tenants, after any calls."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.jobs = [nominate(("one", "two")[i % 2], cost=10 * (i + 1)) for i in range(8)]
        self.waiting: set[int] = set()
        self.held: set[int] = set()  # claimed, undecided
        self.running: set[int] = set()
        self.caps: dict[str, int | None] = {"one": None, "two": None}

    def gone(self) -> set[int]:
        return set(range(8)) - self.waiting - self.held - self.running

    def busy(self) -> Counter[str]:
        return Counter(self.jobs[i].tenant for i in self.held | self.running)

    async def enqueue(self, i: int) -> None:
        if i in self.running:
            return  # only Postgres knows that this gen has started: its compare-and-set refuses a nomination that comes late
        if i in self.gone():
            old = self.jobs[i]
            self.jobs[i] = Nomination(new_id(), 1, "standard", old.tenant, old.cost)
            self.waiting.add(i)
        await self.queue.enqueue([self.jobs[i]])  # again, where it is known already: nothing happens

    async def claim(self, i: int) -> None:
        before = self.busy()
        for claimed in await self.queue.claim("w", max_jobs=1 + i, room=PLENTY):
            number = self.jobs.index(claimed)
            self.waiting.remove(number)
            self.held.add(number)
        for tenant, cap in self.caps.items():
            assert cap is None or self.busy()[tenant] <= max(cap, before[tenant])

    async def ack(self, i: int) -> None:
        if i in self.held:
            await self.queue.ack([(self.jobs[i].job_id, self.jobs[i].gen)])
            self.held.remove(i)
            self.running.add(i)

    async def true_up(self, i: int) -> None:
        assert await self.queue.true_up([Work(self.jobs[i].job_id, i)]) == (i in self.running | self.held)
        if i in self.held:
            await self.queue.ack([(self.jobs[i].job_id, self.jobs[i].gen)])
        if i not in self.waiting:
            self.held.discard(i)
            self.running.discard(i)

    async def give_back(self, i: int) -> None:
        if i in self.running:
            old = self.jobs[i]
            self.jobs[i] = Nomination(old.job_id, old.gen + 1, "standardagain", old.tenant, old.cost)
            self.running.remove(i)
            self.waiting.add(i)
            await self.queue.enqueue([self.jobs[i]])

    async def put_back(self, i: int) -> None:
        put_back = await self.queue.put_back([(self.jobs[i].job_id, self.jobs[i].gen)])
        assert put_back == (i in self.held)
        if put_back:
            self.held.remove(i)
            self.waiting.add(i)

    async def renominate(self, i: int) -> None:
        assert await self.queue.renominate(idle_s=0) == len(self.held)
        self.waiting |= self.held
        self.held.clear()

    async def share(self, i: int) -> None:
        self.caps[("one", "two")[i % 2]] = None if i > 5 else i // 2
        await self.queue.share({tenant: Terms(1 + i, cap) for tenant, cap in self.caps.items()})

    async def check(self) -> None:
        redis, keys = self.queue.redis, self.queue.keys
        counts = {tenant.decode(): int(count) for tenant, count in (await redis.hgetall(keys.busy)).items()}
        assert counts == self.busy()
        known = {job_id for page in [page async for page in self.queue.running()] for job_id in page}
        assert known == {self.jobs[i].job_id for i in self.held | self.running}
        assert (await self.queue.depth())["standard"].jobs == len(self.waiting | self.held)


OPS = ("enqueue", "enqueue", "claim", "claim", "ack", "true_up", "give_back", "put_back", "renominate", "share")


@given(ops=st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 7)), max_size=60))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_sequence_of_calls_passes_a_cap_or_loses_count_or_leaves_work_behind(
    redis: Redis, ops: list[tuple[str, int]]
) -> None:
    await redis.flushdb()
    queue = JobQueue(redis, "tiny")
    await queue.open_epoch("test")
    model = Model(queue)
    for op, i in ops:
        await getattr(model, op)(i)
        await model.check()
    for i in list(model.running | model.held):
        await model.true_up(i)
    await queue.share({})
    left = await queue.claim("w", max_jobs=64, room=PLENTY)
    assert {job.job_id for job in left} == {model.jobs[i].job_id for i in model.waiting}
