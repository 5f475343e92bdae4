"""Is the wanted number of workers enough for the work, never negative, and steady around a boundary?"""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from app.quotas.autoscale import DOWN_BELOW, Desired, desired_replicas
from app.quotas.pressure import Backlog, PoolLoad

WEIGHTS = {"interactive": 16.0, "standard": 4.0, "batch": 1.0}
OBJECTIVES = {"interactive": 5.0, "standard": 120.0, "batch": 14_400.0}


def desired(load: PoolLoad, **changes: float | None) -> Desired:
    wanted = {"served_per_s": 0.0, "per_worker": 100.0, "load_s": 0.0, "running": 0} | changes
    return desired_replicas(load, objectives_s=OBJECTIVES, **wanted)  # type: ignore[arg-type]


def load_of(interactive: int = 0, batch: int = 0, workers: int = 1) -> PoolLoad:
    return PoolLoad({"interactive": Backlog(1, interactive, 1), "batch": Backlog(1, batch, 1)}, WEIGHTS, workers, 100.0)


def test_an_idle_pool_wants_none_and_work_wants_one_before_anything_is_known() -> None:
    assert desired(load_of(0, 0)).replicas == 0
    assert desired(load_of(0, 0), running=1, served_per_s=1.0).replicas == 1
    assert desired(load_of(10**6, workers=0), per_worker=None).replicas == 1


def test_the_backlog_counts_by_its_objective() -> None:
    assert desired(load_of(interactive=5000)).replicas == 10
    assert desired(load_of(batch=5000)).replicas == 1
    assert desired(load_of(interactive=5000), served_per_s=200.0).replicas == 12


def test_the_time_that_loading_takes_is_missing_for_the_work() -> None:
    assert desired(load_of(interactive=5000), load_s=2.5).replicas == 20
    assert desired(load_of(interactive=5000), load_s=3600).replicas == 40  # a quarter of the objective is left


@given(st.integers(0, 10**7), st.integers(0, 10**9), st.integers(0, 200), st.floats(0, 10**5), st.floats(0, 500))
def test_more_work_never_wants_fewer_and_what_is_wanted_is_enough(
    interactive: int, batch: int, workers: int, served: float, load_s: float
) -> None:
    load = load_of(interactive, batch, workers)
    found = desired(load, served_per_s=served, load_s=load_s)
    more = desired(load_of(interactive + 1000, batch, workers), served_per_s=served, load_s=load_s)
    assert 0 <= found.replicas <= more.replicas
    if found.needed:
        assert found.replicas >= found.needed - 1e-6
    # An autoscaler that obeys stays there while nothing changes.
    there = desired(replace(load, num_workers=found.replicas), served_per_s=served, load_s=load_s)
    assert there.replicas == found.replicas


def test_around_a_boundary_it_stays_where_it_is() -> None:
    three = load_of(workers=3)
    for served in (190.0, 215.0, 250.0):
        assert desired(three, served_per_s=served, running=5).replicas == 3
    assert desired(three, served_per_s=200 * DOWN_BELOW, running=5).replicas == 2
