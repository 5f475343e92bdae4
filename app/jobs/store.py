"""Every compare-and-set on a job row but the last one (finish): start, give back, cancel. Postgres decides here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import in_one_trip
from app.errors import LeaseLost
from app.jobs.hopeless import BEST_PACE, CERTAIN_SQL
from app.jobs.notices import Used, job_event
from app.jobs.prompt_ids import unpack_ids
from app.jobs.states import Lane, tier_rank
from app.jobs.timing import Timing
from app.queue.fairness import COMMON_LEVEL, priority_of
from app.queue.places import place_sql
from app.queue.streams import Nomination
from app.settings import Settings
from app.webhooks.outbox import TARGETS_OF_JOBS, deliver, deliveries

# Only the last three count against the job; `engine_crash` means that it is a suspect.
Cause = Literal[
    "drained", "upstream_away", "bystander", "engine_unfit", "worker_lost", "engine_crash", "transient_error"
]


@dataclass(frozen=True, slots=True)
class StartedJob:
    """A job that this worker runs now, with all that it needs. `attempt` is the fence of every later write."""

    job_id: UUID
    attempt: int
    gen: int
    tenant_id: str
    tier: str
    lane: Lane
    n: int
    prompt_ids: list[int]
    tokenizer_hash: str
    request: dict[str, Any]
    sampling: dict[str, Any]
    deadline_in_s: float | None  # from now, by Postgres' clock
    cancel_requested: bool
    died_at: int = 0  # the last attempt of an earlier life, whose tokens aren't gone on from; 0 in the first
    age_s: float = 0.0  # since its submission, when it was loaded
    waited_s: float = 0.0  # since it could run
    traceparent: str | None = None
    level: int = COMMON_LEVEL  # of its claim: app.queue.fairness.LEVELS
    is_hurried: bool = (
        False  # it has waited for so long that higher tiers don't preempt it: workers/generation/hurry.py
    )

    @property
    def priority(self) -> int:
        """At which an engine runs it, the lowest first."""
        own = priority_of(tier_rank(self.tier), self.level)
        return min(own, priority_of(0)) if self.is_hurried else own

    @property
    def cost(self) -> int:
        """Most tokens that it can hold at once."""
        return len(self.prompt_ids) + self.n * int(self.sampling["max_tokens"])


@dataclass(frozen=True, slots=True)
class Fate:
    """How many failures and losses a job survives, and how long a failed attempt waits before the next."""

    max_attempts: int
    max_worker_losses: int
    max_solo_crashes: int
    retry_base_s: float
    retry_cap_s: float

    @classmethod
    def of(cls, settings: Settings) -> "Fate":
        """As it is configured."""
        return cls(
            max_attempts=settings.max_attempts,
            max_worker_losses=settings.max_worker_losses,
            max_solo_crashes=settings.max_solo_crashes,
            retry_base_s=settings.retry_base_s,
            retry_cap_s=settings.retry_cap_s,
        )


@dataclass(frozen=True, slots=True)
class GivenBack:
    """An attempt that ended without a result, and why."""

    job_id: UUID
    attempt: int
    cause: Cause
    detail: dict[str, Any] | None = None  # for operators; the job's owner doesn't see it
    used: Used = field(default_factory=Used)  # computed for nothing: shown, never billed
    lane: Lane | None = None  # where the job runs next; None: where it ran
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class HeldRow:
    """A running job's row, locked: what has to be known to decide how it goes on."""

    job_id: UUID
    attempt: int
    gen: int
    tenant_id: str
    tier: str
    pool: str
    model: str
    api_key_id: UUID | None
    incarnation: UUID
    failures: int
    worker_losses: int
    engine_crashes: int
    solo_crashes: int
    lane: Lane
    cancel_requested: bool


# A deadline that the job can't meet even if it writes no more than it must: it isn't started, and maintenance ends it.
# Locked in the order of their ids first: two workers that were handed the same jobs don't deadlock. What is asked of them is asked
# under that lock and not again in the UPDATE: there it would let Postgres look for all jobs that wait, however many.
_START = text(f"""
    WITH held AS MATERIALIZED (
        SELECT jobs.id, nominated.gen = jobs.gen AND jobs.status = 'queued'
            AND jobs.reservation > 0
            AND (jobs.not_before IS NULL OR jobs.not_before <= statement_timestamp())
            AND (jobs.deadline_at IS NULL OR jobs.deadline_at > statement_timestamp()
                + CASE WHEN jobs.attempt = 0 THEN make_interval(secs => :pace * {CERTAIN_SQL}) ELSE interval '0' END) AS may_start
        FROM unnest(CAST(:ids AS uuid[]), CAST(:gens AS integer[])) AS nominated (id, gen)
        JOIN jobs ON jobs.id = nominated.id ORDER BY jobs.id FOR UPDATE OF jobs)
    UPDATE jobs SET status = 'running', attempt = attempt + 1, incarnation = :incarnation,
        started_at = coalesce(started_at, statement_timestamp())
    FROM held WHERE jobs.id = held.id AND held.may_start
    RETURNING jobs.id, jobs.tenant_id, jobs.webhook, jobs.model, jobs.tier, jobs.metadata, jobs.attempt, jobs.started_at,
        jobs.reservation, jobs.traceparent
""")  # noqa: S608 - our own text
_LEASE = text("""
    SELECT 1 FROM workers
    WHERE incarnation = :incarnation AND ended_at IS NULL AND expires_at > statement_timestamp() FOR KEY SHARE
""")
_LOAD = text("""
    SELECT j.id, j.attempt, j.gen, j.tenant_id, j.tier, j.lane, j.n, i.prompt_ids, i.tokenizer_hash, i.request, i.sampling,
           extract(epoch FROM j.deadline_at - statement_timestamp())::float8 AS deadline_in_s,
           j.cancel_requested_at IS NOT NULL AS cancel_requested, j.traceparent,
           extract(epoch FROM statement_timestamp() - j.created_at)::float8 AS age_s,
           extract(epoch FROM statement_timestamp() - j.eligible_at)::float8 AS waited_s,
           CASE WHEN j.reservation > 1 THEN (SELECT max(d.attempt) FROM dead_letters d WHERE d.job_id = j.id) ELSE 0 END
               AS died_at
    FROM jobs j JOIN job_inputs i ON i.job_id = j.id
    WHERE j.id = ANY(CAST(:ids AS uuid[])) AND j.incarnation = :incarnation AND j.status = 'running'
""")


async def start(
    conn: AsyncConnection, incarnation: UUID, nominated: Sequence[Nomination], *, seconds_per_token: float = 0.0
) -> list[StartedJob]:
    """queued(gen) -> running(attempt + 1) for every nomination that still holds; the others are stale.

    What can't meet its deadline at twice the pace of `seconds_per_token` isn't started. The worker's lease is locked against its burial meanwhile, so that nothing starts under a dead incarnation.

    Raises:
        LeaseLost: this incarnation's lease has ended.
    """
    if not nominated:
        return []
    ids, gens = [each.job_id for each in nominated], [each.gen for each in nominated]
    lease, started, targets, found = await in_one_trip(
        conn,
        [
            (_LEASE, {"incarnation": incarnation}),
            (_START, {"ids": ids, "gens": gens, "incarnation": incarnation, "pace": seconds_per_token * BEST_PACE}),
            (TARGETS_OF_JOBS, {"jobs": ids}),
            (_LOAD, {"ids": ids, "incarnation": incarnation}),
        ],
    )
    if not lease:
        raise LeaseLost(f"worker {incarnation}: its lease has ended; it starts nothing more")
    events = [job_event(row, "job.started", row.started_at) for row in started if row.attempt == 1]
    await deliver(conn, deliveries(events, targets))
    levels = {each.job_id: each.level for each in nominated}
    ours = {row.id for row in started}  # a stale nomination may be of a job that runs here already
    return _loaded([row for row in found if row.id in ours], levels)


async def load(
    conn: AsyncConnection, incarnation: UUID, job_ids: Sequence[UUID], levels: Mapping[UUID, int] | None = None
) -> list[StartedJob]:
    """What these jobs need to run, of those that run under `incarnation`; `levels` of their claims, where they are known."""
    if not job_ids:
        return []
    rows = await conn.execute(_LOAD, {"ids": list(job_ids), "incarnation": incarnation})
    return _loaded(rows.all(), levels or {})


def _loaded(rows: Sequence[Any], levels: Mapping[UUID, int]) -> list[StartedJob]:
    return [
        StartedJob(
            row.id, row.attempt, row.gen, row.tenant_id, row.tier, row.lane, row.n,
            unpack_ids(row.prompt_ids), row.tokenizer_hash, row.request, row.sampling,
            row.deadline_in_s, row.cancel_requested, row.died_at, row.age_s, row.waited_s, row.traceparent,
            levels.get(row.id, COMMON_LEVEL),
        )
        for row in rows
    ]  # fmt: skip


async def lock_attempts(conn: AsyncConnection, attempts: Sequence[tuple[UUID, int]]) -> list[HeldRow]:
    """The rows of those attempts that still run, locked in the order of their ids."""
    rows = await conn.execute(
        text(_HELD + "JOIN unnest(CAST(:ids AS uuid[]), CAST(:attempts AS integer[])) AS held (id, attempt) "
             "ON jobs.id = held.id AND jobs.attempt = held.attempt WHERE jobs.status = 'running' "
             "ORDER BY jobs.id FOR UPDATE OF jobs"),
        {"ids": [job_id for job_id, _ in attempts], "attempts": [attempt for _, attempt in attempts]},
    )  # fmt: skip
    return [HeldRow(*row) for row in rows]


async def lock_incarnations(conn: AsyncConnection, incarnations: Sequence[UUID]) -> list[HeldRow]:
    """The rows of all jobs that run under these incarnations, locked in the order of their ids."""
    rows = await conn.execute(
        text(_HELD + "WHERE jobs.status = 'running' AND jobs.incarnation = ANY(CAST(:incarnations AS uuid[])) "
             "ORDER BY jobs.id FOR UPDATE OF jobs"),
        {"incarnations": list(incarnations)},
    )  # fmt: skip
    return [HeldRow(*row) for row in rows]


_HELD = """
    SELECT jobs.id, jobs.attempt, jobs.gen, jobs.tenant_id, jobs.tier, jobs.pool, jobs.model,
           jobs.api_key_id, jobs.incarnation, jobs.failures, jobs.worker_losses, jobs.engine_crashes,
           jobs.solo_crashes, jobs.lane, jobs.cancel_requested_at IS NOT NULL
    FROM jobs
"""
_REQUEUE = text(f"""
    UPDATE jobs SET status = 'queued', gen = jobs.gen + 1, incarnation = NULL, eligible_at = statement_timestamp(),
        not_before = CASE WHEN r.delay_s > 0 THEN statement_timestamp() + make_interval(secs => r.delay_s) END,
        failures = jobs.failures + (r.cause = 'transient_error')::int,
        worker_losses = jobs.worker_losses + (r.cause = 'worker_lost')::int,
        engine_crashes = jobs.engine_crashes + (r.cause = 'engine_crash')::int,
        solo_crashes = jobs.solo_crashes + (r.cause = 'engine_crash' AND jobs.lane = 'solo')::int,
        lane = coalesce(r.lane, jobs.lane)
    FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS integer[]), CAST(:causes AS text[]), CAST(:delays AS float8[]),
                CAST(:lanes AS text[])) AS r (id, attempt, cause, delay_s, lane)
    WHERE jobs.id = r.id AND jobs.attempt = r.attempt AND jobs.status = 'running'
    RETURNING jobs.id, jobs.gen, {place_sql("jobs")}, jobs.tenant_id, jobs.prompt_tokens + jobs.n * jobs.max_tokens,
        jobs.not_before IS NULL
""")  # noqa: S608 - our own text


async def requeue(conn: AsyncConnection, given_back: Sequence[tuple[HeldRow, GivenBack, float]]) -> list[Nomination]:
    """running(attempt) -> queued(gen + 1), each after its delay in seconds; return what may be nominated at once."""
    if not given_back:
        return []
    rows = await conn.execute(
        _REQUEUE,
        {
            "ids": [row.job_id for row, _, _ in given_back],
            "attempts": [row.attempt for row, _, _ in given_back],
            "causes": [each.cause for _, each, _ in given_back],
            "delays": [delay for _, _, delay in given_back],
            "lanes": [each.lane for _, each, _ in given_back],
        },
    )
    return [Nomination(*row[:5]) for row in rows if row[5]]


@dataclass(frozen=True, slots=True)
class CancelTarget:
    """A job that somebody wants to stop, its row locked."""

    job_id: UUID
    status: str
    gen: int
    pool: str
    finished_at: datetime | None


async def lock_for_cancel(conn: AsyncConnection, tenant_id: str, job_id: UUID) -> CancelTarget | None:
    """The tenant's job, locked; None where the tenant has no such job."""
    row = (
        await conn.execute(
            text(
                "SELECT id, status, gen, pool, finished_at FROM jobs WHERE id = :id AND tenant_id = :tenant FOR UPDATE"
            ),
            {"id": job_id, "tenant": tenant_id},
        )
    ).one_or_none()
    return None if row is None else CancelTarget(*row)


async def request_cancel(conn: AsyncConnection, job_id: UUID) -> None:
    """Note on a running job that it is no longer wanted; its worker learns by event and at its next lease renewal."""
    await conn.execute(
        text(
            "UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, statement_timestamp()) "
            "WHERE id = :id AND status = 'running'"
        ),
        {"id": job_id},
    )
