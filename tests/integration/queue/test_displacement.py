"""May a tenant displace others for more than its credit, by a rhythm of its own or by what its jobs don't cost in the end?"""

from collections import Counter

import pytest

from app.ids import new_id
from app.queue.fairness import COMMON_LEVEL
from app.queue.streams import JobQueue, Nomination, Work
from app.redis import Redis

PLENTY = 10**9
CREDIT = 400


def nominate(tenant: str, cost: int = 10) -> Nomination:
    return Nomination(new_id(), 1, "standard", tenant, cost)


@pytest.fixture
async def queue(redis: Redis) -> JobQueue:
    queue = JobQueue(redis, "tiny")
    await queue.open_epoch("test")
    return queue


async def claim(queue: JobQueue, most: int) -> list[Nomination]:
    claimed = await queue.claim("w", max_jobs=most, room=PLENTY, credit=CREDIT)
    await queue.ack([(job.job_id, job.gen) for job in claimed])
    return claimed


async def test_a_burst_in_pieces_has_the_levels_of_a_burst_at_once(queue: JobQueue) -> None:
    """Each piece finds its tenant idle: no piece begins with a new first quarter."""
    await queue.enqueue([nominate("flooder") for _ in range(400)])
    await claim(queue, 200)
    levels: Counter[int] = Counter()
    for _ in range(50):
        await queue.enqueue([nominate("quiet")])
        (job,) = await claim(queue, 1)
        if job.tenant == "quiet":
            levels[job.level] += 1
    assert all(levels[level] == pytest.approx(10, abs=1) for level in range(COMMON_LEVEL)), levels


async def test_nobody_displaces_by_what_jobs_were_expected_to_cost(queue: JobQueue) -> None:
    """Jobs that end early leave their tenant far behind where its claims stood. Who comes then isn't behind anybody."""
    await queue.enqueue([nominate("first", 1000) for _ in range(400)])
    await queue.true_up([Work(job.job_id, 10) for job in await claim(queue, 40)])
    await queue.enqueue([nominate("second", 1000) for _ in range(400)])
    levels: Counter[int] = Counter()
    for _ in range(10):
        claimed = await claim(queue, 40)
        await queue.true_up([Work(job.job_id, 10) for job in claimed])
        levels += Counter(job.level for job in claimed if job.tenant == "second")
    assert sum(levels.values()) == pytest.approx(200, abs=20)
    assert sum(levels[level] for level in range(COMMON_LEVEL)) <= CREDIT / 10 + 1, levels
