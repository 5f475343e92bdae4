"""Do the parts of a job's time make up the whole, whatever the two clocks say?"""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.timing import Timing, breakdown

START = datetime(2026, 1, 1, tzinfo=UTC)
seconds = st.floats(0, 10_000, allow_nan=False)


@given(seconds, seconds, st.one_of(st.none(), st.builds(Timing, *[st.floats(-1, 20_000)] * 3)))
def test_the_parts_make_up_the_whole_and_none_is_negative(held: float, rest: float, timing: Timing | None) -> None:
    eligible_at = START + timedelta(seconds=held)
    finished_at = eligible_at + timedelta(seconds=rest)
    found = breakdown(START, eligible_at, finished_at, timing)
    parts = (found.held_s, found.queued_s, found.prefill_s, found.decode_s, found.persisted_s)
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(found.total_s, abs=1e-6)
    assert found.total_s == pytest.approx((finished_at - START).total_seconds())


def test_each_part_is_what_the_worker_measured() -> None:
    found = breakdown(START, START + timedelta(seconds=3), START + timedelta(seconds=10), Timing(1, 2, 3.5))
    assert (found.held_s, found.queued_s, found.prefill_s, found.decode_s) == (3, 1, 2, 3.5)
    assert found.persisted_s == pytest.approx(0.5)


def test_a_job_that_never_ran_has_waited_all_the_time() -> None:
    found = breakdown(START, START, START + timedelta(seconds=4), None)
    assert (found.queued_s, found.prefill_s, found.decode_s, found.persisted_s) == (4, 0, 0, 0)
