"""Who is handed over when there isn't room for all, and how much room does a lane earn?"""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from app.ids import new_id
from app.webhooks.lanes import FIRST_ROOM, QUICK_S, TIMES_FREE, Busy, Candidate, next_room, pick

ROOMS = st.integers(1, 40)
LANES = st.dictionaries(
    st.sampled_from("abcdefgh"), st.tuples(ROOMS, st.integers(0, 20), st.integers(0, 12)), max_size=8
)


def candidates(lane: str, count: int, room: int = 8, *, tenant: str | None = None, held: int = 0) -> list[Candidate]:
    """So many that are due, of a tenant of its own or of one that has this one lane."""
    return [Candidate(new_id(), 1, lane, tenant or lane, room, held + turn) for turn in range(1, count + 1)]


@given(LANES, st.integers(0, 50), st.integers(1, 40), st.integers(1, 60))
def test_no_limit_is_passed_and_no_room_is_left_unused(
    lanes: dict[str, tuple[int, int, int]], limit: int, most: int, cautious: int
) -> None:
    found = [each for lane, (room, due, count) in lanes.items() for each in candidates(lane, due, room, held=count)]
    busy = [Busy(lane, lane, count, room) for lane, (room, _, count) in lanes.items()]
    before = sum(each.count for each in busy if each.is_cautious)
    picked = pick(found, busy, limit=limit, most=most, cautious=cautious)
    taken = Counter(each.lane for each in picked)
    after = before + sum(each.is_cautious for each in picked)
    assert len(picked) == len({each.delivery_id for each in picked}) <= limit
    assert after <= max(cautious, before)
    for lane, (room, due, count) in lanes.items():
        free = max(0, min(room, most) - count)
        assert taken[lane] <= min(due, free)
        turns = [each.turn for each in picked if each.lane == lane]
        assert turns == list(range(count + 1, count + 1 + taken[lane])), "oldest first"
        left, own = cautious - after, count + taken[lane] + 1
        has_share = room > FIRST_ROOM or (left > 0 and (own == 1 or own <= TIMES_FREE * (left - 1)))
        if len(picked) < limit and has_share:
            assert taken[lane] == min(due, free)


def test_the_first_of_each_tenant_comes_before_the_second_of_any() -> None:
    found = candidates("long", 100, 32) + candidates("short", 1, 32) + candidates("other", 2, 32)
    picked = pick(found, [], limit=4, most=32, cautious=8)
    assert Counter((each.lane, each.turn) for each in picked[:3]) == Counter([("long", 1), ("short", 1), ("other", 1)])


def test_all_that_hang_together_leave_room_for_those_that_dont() -> None:
    hanging = [each for n in range(500) for each in candidates(f"hangs-{n}", 4, room=FIRST_ROOM)]
    busy = [Busy(f"hung-{n}", f"hung-{n}", 4, FIRST_ROOM) for n in range(30)]
    picked = pick(hanging + candidates("quick", 32, room=32), busy, limit=500, most=32, cautious=128)
    assert Counter(each.lane == "quick" for each in picked) == {True: 32, False: 8}


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(16, 200), st.integers(1, 200))
def test_however_many_hang_the_next_tenant_finds_a_slot(tenants: int, cautious: int, lanes: int) -> None:
    """A few tenants' dead endpoints, as many as you like, of which none ever ends."""
    hanging = [
        Candidate(new_id(), 1, f"{tenant} {lane}", str(tenant), FIRST_ROOM, lane + 1)
        for tenant in range(tenants)
        for lane in range(lanes)
    ]
    picked = pick(hanging, [], limit=10_000, most=32, cautious=cautious)
    busy = [Busy(each.lane, each.tenant_id, 1, FIRST_ROOM) for each in picked]
    gone = {each.delivery_id for each in picked}
    left = [each for each in hanging if each.delivery_id not in gone]
    assert pick(left, busy, limit=10_000, most=32, cautious=cautious) == []
    assert len(pick(candidates("new", 1, FIRST_ROOM), busy, limit=10_000, most=32, cautious=cautious)) == 1


def test_room_doubles_with_quick_answers_and_halves_with_slow_ones() -> None:
    rooms = [FIRST_ROOM]
    for duration_s in (0.1, 0.1, 0.1, 0.1, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0, QUICK_S, 0.1):
        rooms.append(next_room(rooms[-1], duration_s, most=32))
    assert rooms == [4, 8, 16, 32, 32, 16, 8, 4, 2, 1, 1, 1, 2]
