"""Does a late job keep its place against higher tiers, and do late jobs leave these their share?"""

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.clock import SystemClock
from app.ids import new_id
from app.jobs.store import StartedJob
from app.queue.fairness import priority_of
from app.settings import Settings
from workers.engine.config import EngineConfig
from workers.engine.null import NullEngine
from workers.engine.tokenizer import byte_bundle
from workers.generation.claimer import take_in
from workers.generation.hurry import MOST_PART, hurry

CEILINGS_S = {"interactive": 10.0, "standard": 30.0, "batch": 100.0}
LIMITS = {"max_num_seqs": 21, "max_tokens": 2100}
TIERS = st.sampled_from(list(CEILINGS_S))


def started(tier: str, waited_s: float, *, n: int = 1, max_tokens: int = 9) -> StartedJob:
    return StartedJob(
        new_id(), 1, 1, "acme", tier, "normal", n, [65], "hash", {"prompt": "A"},
        {"max_tokens": max_tokens, "temperature": 1.0, "seed": 1, "ignore_eos": True}, None, False, waited_s=waited_s,
    )  # fmt: skip


def held(job: StartedJob) -> Any:
    return SimpleNamespace(started=job, num_unfinished=job.n, cost=job.cost)


JOBS = st.builds(
    lambda tier, part, n, tokens: started(tier, part * CEILINGS_S[tier], n=n, max_tokens=tokens),
    TIERS, st.floats(0, 3), st.integers(1, 4), st.integers(1, 400),
)  # fmt: skip


@given(st.lists(JOBS, max_size=40))
def test_late_jobs_never_hold_more_than_what_is_due_to_the_lower_tiers(jobs: list[StartedJob]) -> None:
    hand: list[Any] = []
    for job in jobs:
        after = hurry(job, hand, ceilings_s=CEILINGS_S, **LIMITS)
        is_late = job.tier != "interactive" and job.waited_s * 1.5 > CEILINGS_S[job.tier]
        assert is_late or not after.is_hurried
        assert after.priority == (priority_of(0) if after.is_hurried else job.priority)
        hand.append(held(after))
        hurried = [each for each in hand if each.started.is_hurried]
        assert sum(each.num_unfinished for each in hurried) <= 5  # 5/21 of the places
        assert sum(each.cost for each in hurried) <= 500


@given(TIERS.filter(lambda tier: tier != "interactive"))
def test_a_late_job_is_hurried_where_nothing_stands_against_it(tier: str) -> None:
    late = started(tier, CEILINGS_S[tier] / 1.5 + 0.1)
    assert hurry(late, [], ceilings_s=CEILINGS_S, **LIMITS).is_hurried
    assert not hurry(started(tier, CEILINGS_S[tier] / 1.5 - 0.1), [], ceilings_s=CEILINGS_S, **LIMITS).is_hurried


def test_a_late_job_ends_although_interactive_ones_fill_the_engine_and_these_get_all_other_places() -> None:
    settings = Settings(_env_file=None, max_wait_standard_s=30)
    engine = NullEngine(EngineConfig(engine="null", max_num_seqs=8, num_blocks=100))
    worker = SimpleNamespace(
        hand={}, tokenizer_hash="hash", tokenizer=_tokenizer(), clock=SystemClock(), settings=settings, engine=engine,
        meters=SimpleNamespace(started=lambda _: None),
    )  # fmt: skip
    late, punctual = [started("standard", 29.0) for _ in range(4)], [started("standard", 1.0) for _ in range(4)]
    first = take_in(cast("Any", worker), cast("Any", None), [*late, *punctual])
    for request in first:
        engine.add(request)
    engine.step()
    interactive = take_in(cast("Any", worker), cast("Any", None), [started("interactive", 0.0) for _ in range(8)])
    for request in interactive:
        engine.add(request)
    ran = {delta.request_id for delta in engine.step().deltas}
    most = int(MOST_PART * 8)
    assert most == 1
    assert ran == {request.id for request in [*first[:most], *interactive[: 8 - most]]}


def _tokenizer() -> Tokenizer:
    return Tokenizer.from_str(byte_bundle(300).tokenizer_json)
