"""Who is handed over when there isn't room for all, and how much room does a lane earn?"""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.ids import new_id
from app.webhooks.lanes import FIRST_ROOM, QUICK_S, Candidate, next_room, pick

ROOMS = st.integers(1, 40)
LANES = st.dictionaries(
    st.sampled_from("abcdefgh"), st.tuples(ROOMS, st.integers(0, 20), st.integers(0, 12)), max_size=8
)


def candidates(lane: str, count: int, room: int = 8) -> list[Candidate]:
    return [Candidate(new_id(), 1, lane, room, place) for place in range(1, count + 1)]


@given(LANES, st.integers(0, 50), st.integers(1, 40), st.integers(0, 30), st.integers(0, 30))
def test_no_limit_is_passed_and_no_room_is_left_unused(
    lanes: dict[str, tuple[int, int, int]], limit: int, most: int, cautious_busy: int, cautious: int
) -> None:
    found = [each for lane, (room, due, _) in lanes.items() for each in candidates(lane, due, room)]
    busy = {lane: count for lane, (_, _, count) in lanes.items()}
    picked = pick(found, busy, limit=limit, most=most, cautious_busy=cautious_busy, cautious=cautious)
    taken = Counter(each.lane for each in picked)
    newly_cautious = sum(each.room <= FIRST_ROOM for each in picked)
    assert len(picked) == len({each.delivery_id for each in picked}) <= limit
    assert cautious_busy + newly_cautious <= max(cautious, cautious_busy)
    for lane, (room, due, count) in lanes.items():
        free = max(0, min(room, most) - count)
        assert taken[lane] <= min(due, free)
        assert [each.place for each in picked if each.lane == lane] == list(range(1, taken[lane] + 1)), "oldest first"
        if len(picked) < limit and (room > FIRST_ROOM or cautious_busy + newly_cautious < cautious):
            assert taken[lane] == min(due, free)


def test_the_first_of_each_lane_comes_before_the_second_of_any() -> None:
    found = candidates("long", 100, 32) + candidates("short", 1, 32) + candidates("other", 2, 32)
    picked = pick(found, {}, limit=4, most=32, cautious_busy=0, cautious=8)
    assert Counter((each.lane, each.place) for each in picked[:3]) == Counter([("long", 1), ("short", 1), ("other", 1)])


def test_all_that_hang_together_leave_room_for_those_that_dont() -> None:
    hanging = [each for n in range(500) for each in candidates(f"hangs-{n}", 4, room=FIRST_ROOM)]
    picked = pick(hanging + candidates("quick", 32, room=32), {}, limit=500, most=32, cautious_busy=120, cautious=128)
    assert Counter(each.lane == "quick" for each in picked) == {True: 32, False: 8}


def test_room_doubles_with_quick_answers_and_halves_with_slow_ones() -> None:
    rooms = [FIRST_ROOM]
    for duration_s in (0.1, 0.1, 0.1, 0.1, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0, QUICK_S, 0.1):
        rooms.append(next_room(rooms[-1], duration_s, most=32))
    assert rooms == [4, 8, 16, 32, 32, 16, 8, 4, 2, 1, 1, 1, 2]
