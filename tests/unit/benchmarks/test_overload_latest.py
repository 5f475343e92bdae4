"""Is a late job's time taken apart without a rest?"""

from types import SimpleNamespace

import pytest

from app.ids import job_name, new_id
from benchmarks import overload_latest


def test_a_jobs_time_is_wait_first_token_run_and_standing_preempted() -> None:
    job = new_id()
    preempted = [
        {"choice": 0, "out_s": 1.0, "back_s": 3.0},  # of which 1 s was before its first token
        {"choice": 0, "out_s": 4.0, "back_s": 5.5},
        {"choice": 0, "out_s": 9.0, "back_s": None},
    ]
    row = SimpleNamespace(
        id=job, tier="standard", took_s=30.0, waited_s=20.0, held_s=10.0, prefill_s=2.0, detail={"preempted": preempted}
    )
    ended = overload_latest.of_row(row, {job_name(job): 7.0})
    assert (ended.foretold_s, ended.waited_s, ended.first_s, ended.num_preemptions) == (7.0, 20.0, 2.0, 3)
    assert ended.preempted_s == pytest.approx(1.0 + 1.5 + 1.0)
    assert ended.waited_s + ended.first_s + ended.ran_s + ended.preempted_s == pytest.approx(ended.took_s)
    early = SimpleNamespace(
        id=job, tier="batch", took_s=5.0, waited_s=0.0, held_s=5.0, prefill_s=4.0,
        detail={"preempted": [{"choice": 0, "out_s": 0.0, "back_s": 4.0}]},
    )  # fmt: skip
    assert overload_latest.of_row(early, {}).preempted_s == 0, "it counts as time until the first token"
    assert list(overload_latest.latest([ended])) == ["standard"]
