"""Are forecasts in order for any load: a position from 1 on, p50 not after p95, no end before its start?"""

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from app.jobs.forecast import Ahead, Waiting, forecast
from app.jobs.lengths import UNKNOWN, Lengths
from app.jobs.pool_figures import PoolFigures
from app.quotas.pressure import Backlog, PoolLoad

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEIGHTS = {"interactive": 16, "standard": 4, "batch": 1}
BACKLOGS = st.builds(Backlog, st.integers(0, 10**4), st.integers(0, 10**7), st.integers(0, 50))
FIGURES = st.builds(
    lambda tiers, workers, rate, pace: PoolFigures(
        PoolLoad(dict(zip(WEIGHTS, tiers, strict=True)), WEIGHTS, workers, rate, pace), "redis", 0.0
    ),
    st.tuples(BACKLOGS, BACKLOGS, BACKLOGS), st.integers(0, 5), st.none() | st.floats(1, 10**5), st.none() | st.floats(0, 1),
)  # fmt: skip
LENGTHS = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)).map(lambda each: Lengths(*sorted(each), 100))


@given(FIGURES, st.sampled_from(list(WEIGHTS)), st.integers(0, 1000), st.integers(0, 10**6), LENGTHS)
def test_times_are_in_order(figures: PoolFigures, tier: str, jobs: int, tokens: int, lengths: Lengths) -> None:
    when = forecast(figures, Waiting(tier, 200, 100), Ahead(jobs, tokens), lengths, now=NOW)
    assert when.position >= 1 + (jobs if figures.load.tier(tier).tenants else 0)
    is_known = figures.load.num_workers > 0 and figures.load.drain_per_s is not None
    assert (when.start_p50 is None) == (not is_known)
    for first, second in (
        (NOW, when.start_p50), (when.start_p50, when.start_p95), (when.finish_p50, when.finish_p95),
        (when.start_p50, when.finish_p50), (when.start_p95, when.finish_p95),
    ):  # fmt: skip
        assert first is None or second is None or first <= second


def test_without_workers_or_figures_there_is_a_position_and_no_time() -> None:
    job, ahead = Waiting("batch", 200, 100), Ahead(3, 600)
    figures = PoolFigures(PoolLoad({"batch": Backlog(4, 800, 1)}, WEIGHTS, 0, None, None), "redis", 0.0)
    for known in (None, figures):
        when = forecast(known, job, ahead, UNKNOWN, now=NOW)
        assert (when.position, when.start_p50, when.start_p95, when.finish_p50, when.finish_p95) == (
            4,
            None,
            None,
            None,
            None,
        )


def test_the_job_itself_is_not_ahead_of_itself() -> None:
    figures = PoolFigures(PoolLoad({"batch": Backlog(1, 200, 1)}, WEIGHTS, 1, 100.0, 0.01), "redis", 0.0)
    when = forecast(figures, Waiting("batch", 200, 100), Ahead(0, 0), UNKNOWN, now=NOW)
    assert (when.position, when.start_p50, when.start_p95) == (1, NOW, NOW)
    later = forecast(replace(figures), Waiting("batch", 200, 100), Ahead(2, 400), UNKNOWN, now=NOW)
    assert later.position == 3
