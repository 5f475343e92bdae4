"""Any history of budgets against a model of them in Python: each window, each job, after each step, and the audit at the end."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.errors import BudgetExhausted
from app.jobs import held, timekeeping
from app.jobs.cancel import cancel
from app.jobs.finish import Ending, finish
from app.jobs.notices import Used
from app.jobs.submit import Caller, accept
from app.quotas.keys import create_key
from app.settings import Settings
from tests.support.audit import report_on
from tests.support.budgets import FakeClock, add_budget, retire, set_limit, set_price
from tests.support.dead import CHOICES, kill, send_back, start_again
from tests.support.jobs import POOL, prepared, seed

T = TypeVar("T")
BEGIN = datetime(2031, 1, 30, 22, 58, 30, tzinfo=UTC)  # hour, day and month end soon
METRICS = ("input_tokens", "output_tokens", "total_tokens", "requests", "cost")
PERIODS = ("minute", "hour", "day", "month", "total")
PRICES = st.tuples(st.integers(0, 3_000_000), st.integers(0, 3_000_000))
# key, prompt, max_tokens, n, min_tokens
ASKS = st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(1, 9), st.integers(1, 2), st.integers(0, 3))
EMPTY = "TRUNCATE jobs, job_inputs, job_results, attempts, dead_letters, budgets, budget_windows, ledger, usage, audit_log, workers CASCADE"


@dataclass
class Budget:
    id: UUID
    key: UUID | None
    metric: str
    period: str
    limit: int
    retired: bool = False

    def start(self, at: datetime) -> datetime:
        zero = {"minute": {}, "hour": {"minute": 0}, "day": {"minute": 0, "hour": 0}}
        if self.period == "total":
            return datetime(1970, 1, 1, tzinfo=UTC)
        cut = zero.get(self.period, {"minute": 0, "hour": 0, "day": 1})
        return at.replace(second=0, microsecond=0, **cut)

    def next(self, at: datetime) -> datetime | None:
        if self.period == "total":
            return None
        if self.period == "month":
            return (self.start(at) + timedelta(days=32)).replace(day=1)
        return self.start(at) + timedelta(**{f"{self.period}s": 1})


@dataclass
class Job:
    id: UUID
    key: UUID | None
    prompt: int
    n: int
    max_tokens: int
    state: str = "ready"  # held, ready, dead, ended
    held_by: UUID | None = None
    until: datetime | None = None
    prices: tuple[int, int] = (0, 0)
    holds: list[tuple[UUID, datetime, int]] = field(default_factory=list)


def amount(metric: str, prompt: int, output: int, prices: tuple[int, int]) -> int:
    millionths = prompt * prices[0] + output * prices[1]
    cost = millionths // 1_000_000 + (millionths % 1_000_000 > 0)
    by_metric = {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output, "requests": 1}
    return by_metric.get(metric, cost)


class BudgetMachine(RuleBasedStateMachine):
    runner: ClassVar[asyncio.Runner]
    engine: ClassVar[AsyncEngine]
    settings: ClassVar[Settings]
    clock: ClassVar[FakeClock]
    keys: ClassVar[list[UUID | None]]

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    # --- the model ---------------------------------------------------------------------------------------------------

    def window(self, budget: Budget) -> list[int]:
        return self.windows.setdefault((budget.id, budget.start(self.at)), [0, 0])

    def wants(self, job: Job, budget: Budget, max_tokens: int | None = None) -> int:
        output = job.n * (job.max_tokens if max_tokens is None else max_tokens)
        return amount(budget.metric, job.prompt, output, self.prices)

    def applying(self, job: Job) -> list[Budget]:
        found = [b for b in self.budgets.values() if not b.retired and b.key in {None, job.key}]
        return sorted(found, key=lambda b: b.id)

    def refusing(self, job: Job, max_tokens: int | None = None) -> list[Budget]:
        def fits(budget: Budget) -> bool:
            wanted = self.wants(job, budget, max_tokens)
            return wanted == 0 or sum(self.window(budget)) + wanted <= budget.limit

        return [each for each in self.applying(job) if not fits(each)]

    def let_in(self, job: Job) -> None:
        job.state, job.held_by, job.until, job.prices = "ready", None, None, self.prices
        job.holds = [(b.id, b.start(self.at), self.wants(job, b)) for b in self.applying(job)]
        for budget_id, start, held_amount in job.holds:
            self.windows.setdefault((budget_id, start), [0, 0])[1] += held_amount

    def hold(self, job: Job, budgets: list[Budget]) -> None:
        ends = [(b.period == "total", b.next(self.at) or self.at + timedelta(days=1)) for b in budgets]
        job.state, job.held_by, job.until = "held", budgets[ends.index(max(ends))].id, max(ends)[1]

    def settle(self, job: Job, state: str, output: int | None = None) -> None:
        for budget_id, start, held_amount in job.holds:
            window = self.windows[budget_id, start]
            used = 0 if output is None else amount(self.budgets[budget_id].metric, job.prompt, output, job.prices)
            assert used <= held_amount, "the machine asks for no more than was reserved"
            window[0] += used
            window[1] -= held_amount
        job.state, job.held_by, job.until, job.holds = state, None, None, []

    def line(self, budget_id: UUID) -> list[Job]:
        return sorted((j for j in self.jobs.values() if j.held_by == budget_id), key=lambda j: j.id)

    def model_wake(self) -> None:
        lines = sorted({j.held_by for j in self.jobs.values() if j.held_by is not None})

        def is_ready(budget_id: UUID) -> bool:
            budget, line = self.budgets[budget_id], self.line(budget_id)
            if budget.retired or any(j.until is not None and j.until <= self.at for j in line):
                return True
            return sum(self.window(budget)) + self.wants(line[0], budget) <= budget.limit

        for budget_id in [each for each in lines if is_ready(each)]:
            for job in self.line(budget_id):
                refusing = self.refusing(job)
                own = [b for b in refusing if b.id == budget_id]
                if own:
                    for each in self.line(budget_id):
                        if each.until is not None and each.until <= self.at:
                            self.hold(each, own)
                    break
                if refusing:
                    self.hold(job, refusing)
                else:
                    self.let_in(job)

    def some(self, state: str, draw: int) -> Job | None:
        found = sorted((j for j in self.jobs.values() if j.state == state), key=lambda j: j.id)
        return found[draw % len(found)] if found else None

    # --- the rules ---------------------------------------------------------------------------------------------------

    @initialize(
        budgets=st.lists(st.tuples(st.sampled_from(METRICS), st.sampled_from(PERIODS), st.integers(5, 60)), max_size=3),
        cost=st.integers(5, 60),
        prices=PRICES,
    )
    def begin(self, budgets: list[tuple[str, str, int]], cost: int, prices: tuple[int, int]) -> None:
        self.at = BEGIN
        self.budgets: dict[UUID, Budget] = {}
        self.windows: dict[tuple[UUID, datetime], list[int]] = {}
        self.jobs: dict[UUID, Job] = {}

        async def empty() -> None:
            async with self.engine.begin() as conn:
                await conn.execute(text(EMPTY))
            await self.clock.advance(BEGIN - self.clock.at)

        self.do(empty())
        self.change_price(prices)
        for metric, period, limit in [("total_tokens", "hour", 40), ("cost", "day", cost), *budgets]:
            self.make_budget(metric, period, limit, 0)

    @rule(
        metric=st.sampled_from(METRICS),
        period=st.sampled_from(PERIODS),
        limit=st.integers(1, 60),
        key=st.integers(0, 2),
    )
    def make_budget(self, metric: str, period: str, limit: int, key: int) -> None:
        place = (self.keys[key], metric, period)
        if any((b.key, b.metric, b.period) == place for b in self.budgets.values() if not b.retired):
            return
        made = self.do(add_budget(self.engine, limit, metric, period, key=self.keys[key]))
        self.budgets[made] = Budget(made, *place, limit)

    @rule(mode=st.sampled_from(["reject", "fallback"]), many=st.lists(ASKS, min_size=1, max_size=3))
    def submit_plainly(self, mode: str, many: list[tuple[int, int, int, int, int]]) -> None:
        for each in many:
            self.submit(mode, *each)

    @rule(many=st.lists(ASKS, min_size=1, max_size=3))
    def submit_to_be_cut(self, many: list[tuple[int, int, int, int, int]]) -> None:
        for each in many:
            self.submit("truncate", *each)

    @rule(many=st.lists(ASKS, min_size=2, max_size=5))
    def submit_to_wait(self, many: list[tuple[int, int, int, int, int]]) -> None:
        for each in many:
            self.submit("wait", *each)

    def submit(self, mode: str, key: int, prompt: int, max_tokens: int, n: int, least: int) -> None:
        min_tokens = min(least, max_tokens)
        body = {"max_tokens": max_tokens, "n": n, "min_tokens": min_tokens, "on_budget": mode}
        asked = prepared(self.settings, prompt="x" * prompt, **body)
        job = Job(asked.id, self.keys[key], prompt, n, max_tokens)
        refusing = self.refusing(job)
        expected = "ready"
        if refusing and mode == "truncate":
            fitting = [m for m in range(max(1, min_tokens), max_tokens) if not self.refusing(job, m)]
            expected, job.max_tokens = ("ready", max(fitting)) if fitting else ("refused", max_tokens)
        elif refusing and mode == "wait":
            never = any(self.wants(job, b) > b.limit for b in self.applying(job))
            expected = "refused" if never or any(b.period == "total" for b in refusing) else "held"
        elif refusing:
            expected = "refused"

        async def post() -> str:
            try:
                async with self.engine.begin() as conn:
                    (accepted,) = await accept(conn, Caller("acme", job.key), [asked])
            except BudgetExhausted:
                return "refused"
            return "held" if accepted.nomination is None else "ready"

        assert self.do(post()) == expected
        if expected == "refused":
            return
        self.jobs[job.id] = job
        if expected == "held":
            self.hold(job, refusing)
        else:
            self.let_in(job)

    @precondition(lambda self: any(j.state == "ready" for j in self.jobs.values()))
    @rule(draw=st.integers(0, 99), part=st.floats(0, 1))
    def finish(self, draw: int, part: float) -> None:
        job = self.some("ready", draw)
        assert job is not None
        output = round(part * job.n * job.max_tokens)

        async def end() -> None:
            (started,) = await start_again(self.engine, job.id)
            async with self.engine.begin() as conn:
                used = Used(job.prompt, 0, output)
                await finish(conn, [Ending(job.id, started.attempt, "succeeded", choices=CHOICES, used=used)])

        self.do(end())
        self.settle(job, "ended", output)

    @precondition(lambda self: any(j.state in {"ready", "held"} for j in self.jobs.values()))
    @rule(draw=st.integers(0, 99), state=st.sampled_from(["ready", "held"]), by_deadline=st.booleans())
    def give_up(self, draw: int, state: str, by_deadline: bool) -> None:
        job = self.some(state, draw)
        if job is None:
            return

        async def end() -> None:
            async with self.engine.begin() as conn:
                if by_deadline:
                    late = text("UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE id = :id")
                    await conn.execute(late, {"id": job.id})
                    assert [each[0] for each in await timekeeping.expire_queued(conn)] == [job.id]
                else:
                    await cancel(conn, "acme", job.id)

        self.do(end())
        self.settle(job, "ended")

    @precondition(lambda self: any(j.state == "ready" for j in self.jobs.values()))
    @rule(draw=st.integers(0, 99))
    def die(self, draw: int) -> None:
        job = self.some("ready", draw)
        assert job is not None
        self.do(kill(self.engine, [job.id]))
        self.settle(job, "dead")

    @precondition(lambda self: any(j.state == "dead" for j in self.jobs.values()))
    @rule(draw=st.integers(0, 99))
    def requeue(self, draw: int) -> None:
        job = self.some("dead", draw)
        assert job is not None
        if self.refusing(job):
            with pytest.raises(BudgetExhausted):
                self.do(send_back(self.engine, job.id))
            return
        self.do(send_back(self.engine, job.id))
        self.let_in(job)

    @precondition(lambda self: any(j.state == "held" for j in self.jobs.values()))
    @rule()
    def wake(self) -> None:
        async def rounds() -> None:
            async with self.engine.begin() as conn:
                assert await timekeeping.wake_due(conn) == {}
                ready = await held.ready_budgets(conn)
            for budget_id in ready:
                async with self.engine.begin() as conn:
                    await held.wake_line(conn, budget_id)

        self.do(rounds())
        self.model_wake()

    @rule(seconds=st.sampled_from([20, 90, 3000, 50_000, 2_000_000]))
    def let_time_pass(self, seconds: int) -> None:
        self.at += timedelta(seconds=seconds)
        self.do(self.clock.advance(timedelta(seconds=seconds)))

    @rule(prices=PRICES)
    def change_price(self, prices: tuple[int, int]) -> None:
        self.prices = prices
        self.do(set_price(self.engine, POOL, *prices))

    @precondition(lambda self: self.budgets)
    @rule(draw=st.integers(0, 99), limit=st.integers(0, 80))
    def change_limit(self, draw: int, limit: int) -> None:
        budget = sorted(self.budgets.values(), key=lambda b: b.id)[draw % len(self.budgets)]
        budget.limit = limit
        self.do(set_limit(self.engine, budget.id, limit))

    @precondition(lambda self: len(self.budgets) > 2)
    @rule(draw=st.integers(0, 99))
    def retire_one(self, draw: int) -> None:
        budget = sorted(self.budgets.values(), key=lambda b: b.id)[draw % len(self.budgets)]
        budget.retired = True
        self.do(retire(self.engine, budget.id))

    # --- what holds --------------------------------------------------------------------------------------------------

    @invariant()
    def windows_and_jobs_are_as_the_model_says(self) -> None:
        if not hasattr(self, "budgets"):
            return

        async def read() -> tuple[dict, dict]:
            async with self.engine.connect() as conn:
                windows = await conn.execute(text("SELECT * FROM budget_windows WHERE used + reserved > 0"))
                jobs = await conn.execute(
                    text("SELECT id, status, reservation, held_by, not_before, max_tokens FROM jobs")
                )
                return (
                    {(row.budget_id, row.window_start): [row.used, row.reserved] for row in windows},
                    {row.id: row for row in jobs},
                )

        windows, rows = self.do(read())
        assert windows == {place: spent for place, spent in self.windows.items() if sum(spent)}
        assert set(rows) == set(self.jobs)
        for job in self.jobs.values():
            row = rows[job.id]
            statuses = {"dead": {"dead"}, "ended": {"succeeded", "cancelled", "expired"}}
            assert row.status in statuses.get(job.state, {"queued"})
            assert (row.held_by, row.not_before, row.max_tokens) == (job.held_by, job.until, job.max_tokens)
            assert (row.reservation == 0) == (job.state == "held") or job.state == "ended"

    def teardown(self) -> None:
        if not hasattr(self, "budgets"):
            return
        self.wake()  # what is due is looked at before the audit asks why it wasn't
        self.windows_and_jobs_are_as_the_model_says()
        assert self.do(report_on(self.engine, None)).findings == []


def run_machine(settings: Settings, *, examples: int, steps: int) -> None:
    with asyncio.Runner() as runner:
        engine = create_engine(settings, application_name="penstock-tests")

        async def install() -> None:
            await seed(engine)
            async with engine.begin() as conn:
                made = [await create_key(conn, "acme", pepper="p", actor="test") for _ in range(2)]
            BudgetMachine.keys = [None, *[key for key, _ in made]]
            BudgetMachine.clock = await FakeClock.install(engine, BEGIN)

        runner.run(install())
        BudgetMachine.runner, BudgetMachine.engine, BudgetMachine.settings = runner, engine, settings
        try:
            run_state_machine_as_test(
                BudgetMachine,
                settings=hypothesis_settings(
                    max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )  # fmt: skip
        finally:
            runner.run(engine.dispose())


def test_any_history_of_budgets_is_as_the_model_says(settings: Settings) -> None:
    run_machine(settings, examples=15, steps=30)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_histories_of_budgets_are_as_the_model_says(settings: Settings) -> None:
    run_machine(settings, examples=150, steps=60)
