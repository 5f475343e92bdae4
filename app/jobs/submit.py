"""How does a prepared request become a job? Accept (one transaction), then, after its commit, nominate (Redis)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import QueueLimitReached, TenantSuspended
from app.jobs import idempotency
from app.jobs import tables as t
from app.jobs.arrival import Arrival, arrive
from app.jobs.copying import insert_rows
from app.jobs.idempotency import IdempotencyKey
from app.jobs.prepare import PreparedJob
from app.jobs.rows import input_row, insert_jobs, job_row
from app.jobs.sharing import Work, share
from app.jobs.spending import Answer, Ask, let_in, prices_of
from app.queue.streams import JobQueue, Nomination
from app.quotas.budgets import Prices
from app.quotas.caps import hold_to_caps, hold_to_locked
from app.quotas.limits import NO_LIMITS, Limits
from app.quotas.rights import ALL_RIGHTS, Rights
from app.redis import RedisError

NOMINATE_CHUNK = 250  # jobs: a script holds Redis up for as long as it runs


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: taken from the API key, never from the request."""

    tenant_id: str
    api_key_id: UUID | None
    limits: Limits = NO_LIMITS
    rights: Rights = ALL_RIGHTS


@dataclass(frozen=True, slots=True)
class Accepted:
    """The promise that a 202 gives. `replayed`: it was given before, under the same Idempotency-Key.

    `arrival`: of a job that came alone and is as its owner asked, waiting for nothing but its turn.
    """

    job_id: UUID
    replayed: bool
    nomination: Nomination | None
    pool: str
    arrival: Arrival | None = None


async def accept(
    conn: AsyncConnection, caller: Caller, prepared: Sequence[PreparedJob], *, key: IdempotencyKey | None = None
) -> list[Accepted]:
    """All of these jobs of one tenant or none, in the caller's transaction; the jobs exist when it commits. Then `nominate` them.

    Caps and budgets see them together, in the order given: a job that the ones before it leave no room for refuses all, unless it
    may wait (`on_budget`). With `key`, one that was used before gives the jobs that it made, in their order.

    Raises:
        TenantSuspended: the tenant may submit nothing now.
        QueueLimitReached: its caps have no room for them (or OverTenantLimit: they never will).
        BudgetExhausted: a budget can't hold them; roll back.
        IdempotencyMismatch: the key came with another body before.
    """
    if not prepared:
        return []
    if len(prepared) == 1 and key is None:
        return await _accept_one(conn, caller, prepared[0])
    return await _accept_many(conn, caller, prepared, key)


async def find_replay(conn: AsyncConnection, caller: Caller, key: IdempotencyKey) -> list[Accepted] | None:
    """The jobs that this Idempotency-Key made before, in their order, if it did.

    Raises:
        IdempotencyMismatch: they were made of another body.
    """
    first = await idempotency.jobs_of(conn, caller.tenant_id, key)
    return None if first is None else _replayed(first)


async def nominate(queue: JobQueue, accepted: Sequence[Accepted]) -> bool:
    """Tell the workers, after the commit, one call a chunk. Best effort: a job that this loses is found by the sweeper.

    Returns:
        Whether Redis has them now.
    """
    nominations = [each.nomination for each in accepted if each.nomination is not None]
    try:
        for start in range(0, len(nominations), NOMINATE_CHUNK):
            if await queue.enqueue(nominations[start : start + NOMINATE_CHUNK]) is None:
                return False
    except RedisError:
        return False
    return True


async def nominate_all(queue_of: Callable[[str], JobQueue], accepted: Sequence[Accepted]) -> None:
    """`nominate`, each job in the queue of its pool."""
    by_pool: dict[str, list[Accepted]] = {}
    for each in accepted:
        if each.nomination is not None:
            by_pool.setdefault(each.pool, []).append(each)
    for pool, jobs in by_pool.items():
        await nominate(queue_of(pool), jobs)


def ask_of(caller: Caller, job: PreparedJob, prices: Prices) -> Ask:
    """What the job asks of its budgets."""
    request = job.request
    webhook = request.webhook.model_dump(exclude_none=True) if request.webhook else None
    return Ask(
        job.id, 1, caller.tenant_id, caller.api_key_id, prices, len(job.prompt_ids), request.n, job.max_tokens,
        request.min_tokens, request.on_budget, webhook,
    )  # fmt: skip


async def _accept_one(conn: AsyncConnection, caller: Caller, job: PreparedJob) -> list[Accepted]:
    """Row, input, caps and budgets by one round trip, each as `_accept_many` has it; what they refuse is rolled back."""
    row = job_row(caller.tenant_id, caller.api_key_id, job)
    arrival = await arrive(conn, row, input_row(job), deadline_s=job.request.deadline_s)
    await hold_to_locked(conn, caller.tenant_id, arrival.caps, jobs=1, tokens=job.cost, are_written=True)
    answers = await let_in(conn, [ask_of(caller, job, arrival.prices)], arrival.budgets)
    final = await _write_answers(conn, [job], answers)
    return await _accepted(conn, caller, final, answers, arrival if answers[0].changes is None else None)


async def _accept_many(
    conn: AsyncConnection, caller: Caller, prepared: Sequence[PreparedJob], key: IdempotencyKey | None
) -> list[Accepted]:
    """Caps, rows, key, inputs, budgets, in this order. Under a key there may be jobs already: they are promised again.

    The budgets come last: from then on everybody who reserves or settles in them waits for our commit.
    """
    try:
        await hold_to_caps(conn, caller.tenant_id, jobs=len(prepared), tokens=sum(each.cost for each in prepared))
    except (QueueLimitReached, TenantSuspended):
        # What the same key has made a moment ago is a promise, full or not: that request held the lock before us.
        first = await find_replay(conn, caller, key) if key else None
        if first is None:
            raise
        return first
    prices = await prices_of(conn, {each.model.name for each in prepared})
    await insert_jobs(conn, caller.tenant_id, caller.api_key_id, prepared, prices)
    if key is not None:
        made = await idempotency.claim(conn, caller.tenant_id, key, [each.id for each in prepared])
        if made is not None:
            return _replayed(made)
    await insert_rows(conn, t.job_inputs, [input_row(each) for each in prepared])
    answers = await let_in(conn, [ask_of(caller, each, prices[each.model.name]) for each in prepared])
    final = await _write_answers(conn, prepared, answers)
    return await _accepted(conn, caller, final, answers)


async def _write_answers(
    conn: AsyncConnection, prepared: Sequence[PreparedJob], answers: Sequence[Answer]
) -> list[PreparedJob]:
    """What the budgets have changed of the rows and inputs that were written before they were asked; return the jobs as they are now."""
    final = [_cut(job, answer) for job, answer in zip(prepared, answers, strict=True)]
    for job, answer in zip(final, answers, strict=True):
        values: dict[str, Any] = {}
        if answer.changes is not None:
            values |= {"max_tokens": job.max_tokens, "changes": (job.changes or {}) | answer.changes}
            await conn.execute(
                update(t.job_inputs).where(t.job_inputs.c.job_id == job.id).values(sampling=job.sampling)
            )
        if answer.hold is not None:
            values |= {"reservation": 0, "held_by": answer.hold.budget_id, "not_before": answer.hold.until}
        if values:
            await conn.execute(update(t.jobs).where(t.jobs.c.id == job.id).values(**values))
    return final


def _cut(job: PreparedJob, answer: Answer) -> PreparedJob:
    """The job with as many tokens as its budgets let it have."""
    if answer.max_tokens == job.max_tokens:
        return job
    return replace(job, max_tokens=answer.max_tokens, sampling=job.sampling | {"max_tokens": answer.max_tokens})


async def _accepted(
    conn: AsyncConnection,
    caller: Caller,
    jobs: Sequence[PreparedJob],
    answers: Sequence[Answer],
    arrival: Arrival | None = None,
) -> list[Accepted]:
    """The promises, with a nomination for those that wait neither for a budget nor for another's result."""
    waiting = {each.id for each, answer in zip(jobs, answers, strict=True) if answer.hold}
    certain = [each for each in jobs if each.is_deterministic and each.id not in waiting]
    if certain:
        waiting |= await share(
            conn, caller.tenant_id, lambda: [Work(each.id, each.request.tier, each.work_key) for each in certain]
        )
    return [
        Accepted(each.id, False, None, each.model.pool)
        if each.id in waiting
        else Accepted(each.id, False, _nomination(caller, each), each.model.pool, arrival)
        for each in jobs
    ]


def _nomination(caller: Caller, job: PreparedJob) -> Nomination:
    return Nomination(job.id, 1, job.request.tier, caller.tenant_id, job.cost)


def _replayed(ids: Sequence[UUID]) -> list[Accepted]:
    return [Accepted(job_id, True, None, "") for job_id in ids]
