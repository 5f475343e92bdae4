"""How does a dead letter come to its end? Requeued: its job lives again; or discarded: its job stays dead. Each by somebody, for a reason."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Row, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import (
    AlreadyResolved,
    BudgetExhausted,
    Forbidden,
    InputForgotten,
    InvalidRequest,
    NotFound,
    PenstockError,
)
from app.ids import job_name
from app.jobs import tables as t
from app.jobs.dead.edit import Edit, input_forgotten
from app.jobs.dead.letters import COUNTERS
from app.jobs.prompt_ids import pack_ids
from app.jobs.spending import Ask, let_in, prices_of
from app.queue.places import place_sql
from app.queue.streams import JobQueue, Nomination
from app.quotas.acts import record_act
from app.quotas.rights import check_rights, check_size, rights_of
from app.redis import RedisError

MAX_LIVES = 1000  # of one job
MAX_REASON_CHARS = 500
_TELL_TIMEOUT_S = 1.0  # a Redis that hangs holds nobody up for longer

Renew = Literal["renew"]
RENEW: Renew = "renew"
Transaction = Callable[[], AbstractAsyncContextManager[AsyncConnection]]


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator wants of a requeue.

    `deadline_s` counts from the requeue: seconds; None for no deadline; RENEW for as long as the job asked for at first.
    """

    actor: str
    reason: str
    deadline_s: float | Renew | None = RENEW


@dataclass(frozen=True, slots=True)
class Requeued:
    """A job that waits again, and what to nominate after the commit."""

    job_id: UUID
    pool: str
    reservation: int
    nomination: Nomination


@dataclass(frozen=True, slots=True)
class Refusal:
    """A letter that couldn't be resolved, and why; it is as it was."""

    job_id: UUID
    error: PenstockError


# A new life: the fence (attempt) goes on, all that counts against the job begins anew.
_RESET = ", ".join(f"{counter} = 0" for counter in COUNTERS)
_REVIVE = text(f"""
    UPDATE jobs SET status = 'queued', gen = gen + 1, reservation = reservation + 1, lane = 'normal', {_RESET},
        input_price = :input_price, output_price = :output_price,
        work_key = NULL, error = NULL, finished_at = NULL, not_before = NULL, cancel_requested_at = NULL, eligible_at = statement_timestamp(),
        deadline_at = statement_timestamp() + make_interval(secs => CAST(:deadline_s AS float8))
    WHERE id = :id AND status = 'dead' AND reservation = :reservation
    RETURNING id, gen, {place_sql("jobs")}, tenant_id, prompt_tokens + n * max_tokens, pool, reservation
""")  # noqa: S608  constants only
_LOCK_JOB = text("""
    SELECT id, status, tenant_id, api_key_id, attempt, reservation, model, tier, prompt_tokens, n, max_tokens, webhook FROM jobs
    WHERE id = :id FOR UPDATE
""")
_LOCK_LETTER = text("""
    SELECT d.*, i.request AS request, i.job_id IS NOT NULL AS has_input FROM dead_letters d LEFT JOIN job_inputs i USING (job_id)
    WHERE d.job_id = :id ORDER BY d.reservation DESC LIMIT 1 FOR UPDATE OF d
""")
_RESOLVE = text("""
    UPDATE dead_letters SET resolved_at = statement_timestamp(), resolution = :resolution, resolved_by = :actor,
        resolution_reason = :reason, attempt = :attempt
    WHERE job_id = :id AND reservation = :reservation AND resolved_at IS NULL
    RETURNING job_id
""")


async def requeue(conn: AsyncConnection, job_id: UUID, order: Order, edit: Edit | None = None) -> Requeued:
    """dead -> queued(gen + 1), with a reservation of its own, in the caller's transaction; one job a transaction.

    Locks: the job, its letter, then budgets, as a submission and a finish take them. More than one job in a transaction could
    take two tenants' budgets in another order than somebody else.

    Raises:
        NotFound: the job has no dead letter.
        AlreadyResolved: somebody was faster.
        InputForgotten: its prompt was wiped.
        TenantSuspended, TierNotAllowed, OverTenantLimit: its tenant may not ask for that (any more).
        BudgetExhausted: a budget can't hold it; the transaction is spoilt, the letter stays open.
        InvalidRequest: the job has been requeued too often.
    """
    job = (await conn.execute(_LOCK_JOB, {"id": job_id})).one_or_none()
    letter = (await conn.execute(_LOCK_LETTER, {"id": job_id})).one_or_none()
    _refuse_unless_open(job_id, letter)
    assert job is not None, "a letter keeps its job"
    assert letter is not None
    assert (job.status, job.reservation) == ("dead", letter.reservation), "an open letter is of its job's last life"
    if not letter.has_input:
        raise input_forgotten(job_id)
    if job.reservation >= MAX_LIVES:
        raise InvalidRequest(f"{job_name(job_id)} was requeued {MAX_LIVES - 1} times: submit it as a new job")
    if edit is not None and edit.reservation != job.reservation:
        raise AlreadyResolved(f"{job_name(job_id)} was requeued and died again while it was edited: look at it anew")
    model, tier, prompt_tokens, max_tokens = job.model, job.tier, job.prompt_tokens, job.max_tokens
    if edit is not None:
        new = edit.prepared
        model, tier, prompt_tokens, max_tokens = new.model.name, new.request.tier, len(new.prompt_ids), new.max_tokens
    # Another life is a new request of its tenant. Only the caps of its queue don't judge it: that it may wait was promised.
    rights = await rights_of(conn, job.tenant_id)
    check_rights(rights, tier=tier)
    check_size(rights, prompt_tokens=prompt_tokens, n=job.n, max_tokens=max_tokens)
    if edit is not None:
        await _rewrite(conn, job_id, edit)
    prices = (await prices_of(conn, {model}))[model]  # of today: it reserves anew
    ask = Ask(
        job_id, job.reservation + 1, job.tenant_id, job.api_key_id, prices, prompt_tokens, job.n, max_tokens,
        webhook=job.webhook,
    )  # fmt: skip
    try:
        await let_in(conn, [ask])
    except BudgetExhausted as error:
        raise BudgetExhausted(f"{job_name(job_id)} of {job.tenant_id}: {error.detail}", **error.extra) from error
    deadline_s = order.deadline_s
    if deadline_s == RENEW:
        asked = edit.prepared.request.deadline_s if edit else letter.request.get("deadline_s")
        deadline_s = None if asked is None else float(asked)
    revived = (
        await conn.execute(
            _REVIVE,
            {
                "id": job_id,
                "reservation": job.reservation,
                "deadline_s": deadline_s,
                "input_price": prices.input_price,
                "output_price": prices.output_price,
            },
        )
    ).one()
    await _resolve(conn, letter, "requeued", order.actor, order.reason, job.attempt)
    detail = {
        "tenant": letter.tenant_id,
        "reason": order.reason,
        "reservation": letter.reservation,
        "deadline_s": deadline_s,
    }
    detail |= {"fingerprint": letter.fingerprint} | ({"changed": edit.changed} if edit else {})
    await record_act(conn, order.actor, "dead_letter.requeue", job_name(job_id), detail)
    return Requeued(job_id, revived.pool, revived.reservation, Nomination(*revived[:5]))


async def discard(conn: AsyncConnection, job_id: UUID, *, actor: str, reason: str) -> None:
    """Close a letter for good, in the caller's transaction: its job stays dead, its row and evidence stay.

    Raises:
        NotFound: the job has no dead letter.
        AlreadyResolved: somebody was faster.
    """
    letter = (await conn.execute(_LOCK_LETTER, {"id": job_id})).one_or_none()
    _refuse_unless_open(job_id, letter)
    assert letter is not None
    await _resolve(conn, letter, "discarded", actor, reason, letter.attempt)
    detail = {
        "tenant": letter.tenant_id,
        "reason": reason,
        "reservation": letter.reservation,
        "fingerprint": letter.fingerprint,
    }
    await record_act(conn, actor, "dead_letter.discard", job_name(job_id), detail)


async def requeue_one(
    transaction: Transaction, job_id: UUID, order: Order, edit: Edit | None = None
) -> Requeued | Refusal:
    """Requeue and commit; afterwards the workers have to be told."""
    try:
        async with transaction() as conn:
            return await requeue(conn, job_id, order, edit)
    except (NotFound, AlreadyResolved, InputForgotten, Forbidden, BudgetExhausted, InvalidRequest) as error:
        return Refusal(job_id, error)


async def tell_workers(queue_of: Callable[[str], JobQueue], requeued: Sequence[Requeued]) -> bool:
    """Nominate, after the commit; return whether Redis has all of them. What this loses the sweeper brings."""
    by_pool: dict[str, list[Nomination]] = {}
    for each in requeued:
        by_pool.setdefault(each.pool, []).append(each.nomination)
    try:
        async with asyncio.timeout(_TELL_TIMEOUT_S):
            nominated = [await queue_of(pool).enqueue(nominations) for pool, nominations in by_pool.items()]
    except (RedisError, OSError, TimeoutError):
        return False
    return None not in nominated


async def discard_one(transaction: Transaction, job_id: UUID, *, actor: str, reason: str) -> Refusal | None:
    """Discard and commit; None where it was done."""
    try:
        async with transaction() as conn:
            await discard(conn, job_id, actor=actor, reason=reason)
    except (NotFound, AlreadyResolved) as error:
        return Refusal(job_id, error)
    return None


def _refuse_unless_open(job_id: UUID, letter: Row[Any] | None) -> None:
    if letter is None:
        raise NotFound(f"there is no dead letter of {job_name(job_id)}: `penstock dlq list` shows those that are open")
    if letter.resolved_at is not None:
        at = letter.resolved_at.isoformat(timespec="seconds")
        raise AlreadyResolved(
            f"the dead letter of {job_name(job_id)} was {letter.resolution} by {letter.resolved_by} at {at}",
            resolution=letter.resolution, resolved_by=letter.resolved_by, resolved_at=at,
        )  # fmt: skip


async def _resolve(
    conn: AsyncConnection, letter: Row[Any], resolution: str, actor: str, reason: str, attempt: int
) -> None:
    row = {"id": letter.job_id, "reservation": letter.reservation, "resolution": resolution, "attempt": attempt}
    closed = await conn.scalar(_RESOLVE, {**row, "actor": actor, "reason": reason})
    assert closed is not None, "its row is locked by this transaction"


async def _rewrite(conn: AsyncConnection, job_id: UUID, edit: Edit) -> None:
    """The job as it was edited: nobody runs it now."""
    new = edit.prepared
    await conn.execute(
        update(t.jobs)
        .where(t.jobs.c.id == job_id)
        .values(
            model=new.model.name, pool=new.model.pool, tier=new.request.tier, prompt_tokens=len(new.prompt_ids),
            max_tokens=new.max_tokens,
        )
    )  # fmt: skip
    await conn.execute(
        update(t.job_inputs)
        .where(t.job_inputs.c.job_id == job_id)
        .values(
            request=new.request.canonical(), sampling=edit.sampling,
            prompt_ids=pack_ids(new.prompt_ids), tokenizer_hash=new.model.tokenizer_hash,
        )
    )  # fmt: skip
