"""Does a worker leave the bells alone that others could follow?"""

import pytest

from app.queue.fairness import LEVELS
from app.queue.places import TIER_WEIGHTS
from app.queue.streams import Ring, Room
from workers.generation import claimer
from workers.generation.claimer import _Bell
from workers.generation.context import WorkerContext

FULL, SOME = Room(0, 0), Room(100, 4)


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimer, "_BELL_WAIT_S", 0.2)
    monkeypatch.setattr(claimer, "room", lambda _: {tier: [FULL] * LEVELS for tier in TIER_WEIGHTS})


async def rung(worker: WorkerContext) -> Ring | None:
    return await worker.queue.wait_for_bell(0.1, tiers=(), full=["standard"])


@pytest.mark.parametrize(("first", "is_left"), [(FULL, True), (SOME, False)])
async def test_a_worker_whose_room_is_all_privileged_leaves_the_bell_to_who_can_displace(
    worker: WorkerContext, first: Room, is_left: bool
) -> None:
    """It would claim nothing, and the other wouldn't look before its second is over."""
    rooms = {tier: [first if tier == "standard" else FULL, *[FULL] * (LEVELS - 1)] for tier in TIER_WEIGHTS}
    await worker.queue.redis.lpush(worker.queue.keys.bell("standard:full"), "1")
    await _Bell(worker).wait(rooms)
    assert (await rung(worker) is not None) == is_left
