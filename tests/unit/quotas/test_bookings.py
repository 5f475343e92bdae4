"""Is each refused request told a time of its own, at the pace at which capacity falls free, and is memory bounded?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.quotas.bookings import GRACE_S, HORIZON_S, PACE, Bookings


def test_those_who_are_refused_together_come_back_one_after_the_other() -> None:
    bookings = Bookings()
    told = [bookings.book(bytes([i]), "line", 100.0, over_s=3, tokens=50, rate=100 / PACE) for i in range(4)]
    assert told == pytest.approx([3.0, 3.5, 4.0, 4.5])
    assert bookings.book(b"x", "another", 100.0, over_s=3, tokens=50, rate=100) == 3.0


def test_asking_again_too_early_keeps_the_place() -> None:
    bookings = Bookings()
    assert bookings.book(b"a", "line", 0, over_s=10, tokens=1, rate=1) == 10
    assert bookings.book(b"b", "line", 0, over_s=10, tokens=1, rate=1) == pytest.approx(10 + 1 / PACE)
    assert bookings.book(b"a", "line", 4, over_s=30, tokens=1, rate=1) == 6
    assert not bookings.is_due(b"a", 4)
    assert bookings.is_due(b"a", 10)


def test_who_came_in_time_and_found_no_room_stays_ahead_of_the_others() -> None:
    bookings = Bookings()
    bookings.book(b"a", "line", 0, over_s=5, tokens=10, rate=1)
    for i in range(9):
        bookings.book(bytes([i]), "line", 0, over_s=5, tokens=10, rate=1)
    assert bookings.book(b"a", "line", 5, over_s=0.5, tokens=10, rate=1) == 0.5
    assert bookings.is_due(b"a", 5.5)


def test_newcomers_wait_while_others_have_places_and_not_after() -> None:
    bookings = Bookings()
    bookings.book(b"a", "line", 0, over_s=5, tokens=10, rate=10 / PACE)
    assert bookings.others_first("line", 5.9)
    assert not bookings.others_first("line", 6.1)
    assert not bookings.others_first("another", 0)


def test_a_place_is_lost_by_coming_far_too_late_or_by_entering() -> None:
    bookings = Bookings()
    bookings.book(b"a", "line", 0, over_s=5, tokens=10, rate=10 / PACE)
    assert not bookings.is_due(b"a", 6 + GRACE_S)
    bookings.leave(b"a")
    assert not bookings.is_due(b"a", 5)


def test_a_place_beyond_the_horizon_is_not_given_and_keeps_nobody_out() -> None:
    bookings = Bookings()
    told = [bookings.book(bytes([i]), "line", 0, over_s=10, tokens=50, rate=1 / PACE) for i in range(9)]
    assert told == pytest.approx([10, 60, 110] + [HORIZON_S] * 6)
    assert len(bookings) == 3
    assert bookings.others_first("line", 159)
    assert not bookings.others_first("line", 161)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 5)), max_size=200))
def test_there_are_never_more_than_allowed_and_nothing_stays_for_ever(asked: list[tuple[int, float]]) -> None:
    bookings, now = Bookings(most=20), 0.0
    for who, passes in asked:
        now += passes
        assert bookings.book(str(who).encode(), f"line {who % 3}", now, over_s=1, tokens=5, rate=10) >= 0
        assert len(bookings) <= 20
    bookings.forget(now + 10_000)
    assert len(bookings) == 0
    assert not bookings.others_first("line 0", now + 10_000)
