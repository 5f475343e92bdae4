"""How does a job end? Status, result, usage, settlement, notices and evidence in ONE transaction, fenced by the attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Statement, in_one_trip, storable
from app.ids import job_name
from app.jobs import tables as t
from app.jobs.apart import all_or_apart
from app.jobs.copying import insert_or_leave
from app.jobs.dead.letters import write_dead_letters
from app.jobs.notices import Used, job_event, response_event
from app.jobs.states import EndStatus
from app.jobs.timing import Timing, columns_of
from app.observe.ends import note_ends
from app.quotas.budgets import Prices, Settlement, Spending, settlement
from app.quotas.tables import usage
from app.webhooks.outbox import TARGETS_OF_JOBS, deliver, deliveries, emit

MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of one attempt. `billed` says whether `used` goes on the tenant's bill or is our waste."""

    job_id: UUID
    attempt: int
    status: EndStatus
    choices: list[dict[str, Any]] | None = None
    error: dict[str, Any] | None = None
    used: Used = field(default_factory=Used)
    wasted: Used = field(default_factory=Used)  # beside `used`: what earlier attempts made and nobody needs
    billed: bool = True
    outcome: str = "finished"  # of the attempt, for its row
    detail: dict[str, Any] | None = None
    evidence: dict[str, Any] = field(default_factory=dict)  # kept with a dead letter
    trace: bytes | None = None  # how readers were told of the choices: app/queue/traces.py
    timing: Timing | None = None


# Whether an end is told as a background response's, too. What callers wrote may hold U+0000 in rows that have no `is_background`: an error to
# every `->>`, and so to the end of all jobs that end with that one.
_IS_RESPONSE = r"""EXISTS (
        SELECT FROM face_calls f WHERE f.job_id = jobs.id AND f.face = 'responses' AND coalesce(f.is_background, CASE
            WHEN strpos(f.body::text, '\u0000') = 0 THEN f.body ->> 'background' = 'true'
            ELSE f.body::text ~ '"background": ?true' END)) AS is_response"""
# What counts against a job counts when it ends it, too: a letter tells of the death that it was written for.
_END_RUNNING = text(f"""
    WITH ended AS (
        SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS integer[]), CAST(:statuses AS text[]),
                             CAST(:errors AS jsonb[]), CAST(:outcomes AS text[])) AS e (id, attempt, status, error, outcome)),
    held AS (
        SELECT jobs.id, jobs.incarnation FROM jobs JOIN ended ON jobs.id = ended.id AND jobs.attempt = ended.attempt
        WHERE jobs.status = 'running' ORDER BY jobs.id FOR UPDATE OF jobs)
    UPDATE jobs SET status = ended.status, error = ended.error, finished_at = statement_timestamp(), incarnation = NULL,
        failures = jobs.failures + (ended.outcome = 'transient_error')::int,
        worker_losses = jobs.worker_losses + (ended.outcome = 'worker_lost')::int,
        engine_crashes = jobs.engine_crashes + (ended.outcome = 'engine_crash')::int,
        solo_crashes = jobs.solo_crashes + (ended.outcome = 'engine_crash' AND jobs.lane = 'solo')::int
    FROM ended JOIN held USING (id)
    WHERE jobs.id = ended.id
    RETURNING jobs.*, held.incarnation AS ran_under, {_IS_RESPONSE}
""")  # noqa: S608 - words of ours
_END_QUEUED = text(f"""
    WITH ended AS (
        SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:errors AS jsonb[])) AS e (id, error)),
    held AS (
        SELECT jobs.id FROM jobs JOIN ended ON jobs.id = ended.id
        WHERE jobs.status = 'queued' ORDER BY jobs.id FOR UPDATE OF jobs)
    UPDATE jobs SET status = :status, error = ended.error, finished_at = statement_timestamp(), not_before = NULL,
        held_by = NULL
    FROM ended JOIN held USING (id)
    WHERE jobs.id = ended.id
    RETURNING jobs.*, {_IS_RESPONSE}
""")  # noqa: S608 - words of ours

_END_SHARED = text(f"""
    UPDATE jobs SET status = 'succeeded', attempt = jobs.attempt + 1, finished_at = statement_timestamp(), not_before = NULL,
        started_at = coalesce(jobs.started_at, statement_timestamp())
    FROM tenants WHERE jobs.id = ANY(CAST(:ids AS uuid[])) AND jobs.status = 'queued' AND tenants.id = jobs.tenant_id
    RETURNING jobs.*, tenants.bill_shared, {_IS_RESPONSE}
""")  # noqa: S608 - words of ours
_LEADERS = text("""
    SELECT j.id, a.incarnation, r.choices, r.trace, u.prompt_tokens, u.completion_tokens FROM jobs j
    JOIN job_results r ON r.job_id = j.id AND r.forgotten_at IS NULL JOIN usage u ON u.job_id = j.id AND u.kind = 'billed'
    JOIN attempts a ON a.job_id = j.id AND a.attempt = j.attempt
    WHERE j.id = ANY(CAST(:ids AS uuid[])) AND j.status = 'succeeded'
""")


async def finish(conn: AsyncConnection, endings: Sequence[Ending]) -> set[UUID]:
    """running(attempt) -> its end, with all that belongs to it, in the caller's transaction.

    Returns:
        The jobs that this ended. One that is missing was fenced: another attempt owns it, or it ended before.
    """
    if not endings:
        return set()
    by_id = {each.job_id: each for each in endings}
    assert len(by_id) == len(endings), "one ending for each job"
    values = {
        "outcomes": [each.outcome for each in endings],
        "ids": [each.job_id for each in endings],
        "attempts": [each.attempt for each in endings],
        "statuses": [each.status for each in endings],
        "errors": [_json(_bounded(each.error)) for each in endings],
    }
    rows, targets = await in_one_trip(conn, [(_END_RUNNING, values), (TARGETS_OF_JOBS, {"jobs": values["ids"]})])
    ended = {row.id: by_id[row.id] for row in rows}
    await _record(conn, rows, {row.id: row.ran_under for row in rows}, ended, targets)
    return set(ended)


async def finish_shared(conn: AsyncConnection, shared: Sequence[tuple[UUID, UUID]]) -> list[UUID]:
    """queued -> succeeded with the result of another job that succeeded, in the caller's transaction.

    `shared` is (job, the one whose result it takes). Billed as the tenant's `bill_shared` says: as if it had been computed, with
    all of the prompt cached, or not at all. Its attempt stands under the worker that did compute.

    Returns:
        The jobs that this ended.
    """
    if not shared:
        return []
    leaders = {
        row.id: row for row in await conn.execute(_LEADERS, {"ids": list({leader_id for _, leader_id in shared})})
    }
    pairs = {job_id: leaders[leader_id] for job_id, leader_id in shared if leader_id in leaders}
    rows = (await conn.execute(_END_SHARED, {"ids": list(pairs)})).all()
    endings, ran_under = {}, {}
    for row in rows:
        leader = pairs[row.id]
        computed = Used(leader.prompt_tokens, leader.prompt_tokens, leader.completion_tokens)
        endings[row.id] = Ending(
            row.id,
            row.attempt,
            "succeeded",
            leader.choices,
            trace=leader.trace,
            used=computed if row.bill_shared else Used(),
            outcome="shared",
        )
        ran_under[row.id] = leader.incarnation
    await emit(conn, [job_event(row, "job.started", row.started_at) for row in rows])
    await _record(conn, rows, ran_under, endings)
    return list(endings)


async def _record(
    conn: AsyncConnection,
    rows: Sequence[Row[Any]],
    ran_under: dict[UUID, UUID],
    endings: dict[UUID, Ending],
    targets: Sequence[Any] | None = None,
) -> None:
    """Results, usage and attempts of those that ended, and what every end brings with it."""
    results = [
        {"job_id": job_id, "attempt": each.attempt, "choices": each.choices, "trace": each.trace}
        for job_id, each in endings.items()
        if each.choices is not None
    ]
    spent = {row.id: _spent(row, endings[row.id]) for row in rows}
    bills = [each for row in rows for each in _usage_rows(row, endings[row.id], spent[row.id])]
    attempts = [
        {
            "job_id": row.id, "attempt": row.attempt, "incarnation": ran_under[row.id],
            "outcome": endings[row.id].outcome, "detail": storable(endings[row.id].detail),
            **columns_of(endings[row.id].timing),
        }
        for row in rows
    ]  # fmt: skip
    left = await insert_or_leave(conn, [(t.job_results, results), (usage, bills), (t.attempts, attempts)])
    await _aftermath(conn, rows, endings, spent, left, targets)


async def has_finished(conn: AsyncConnection, endings: Sequence[Ending]) -> set[UUID]:
    """Of these endings, those that are written already: what a COMMIT did whose reply got lost."""
    rows = await conn.execute(
        text("""
            SELECT jobs.id FROM jobs
            JOIN unnest(CAST(:ids AS uuid[]), CAST(:attempts AS integer[]), CAST(:statuses AS text[]))
                AS e (id, attempt, status) ON jobs.id = e.id AND jobs.attempt = e.attempt AND jobs.status = e.status
            WHERE jobs.finished_at IS NOT NULL
        """),
        {
            "ids": [each.job_id for each in endings],
            "attempts": [each.attempt for each in endings],
            "statuses": [each.status for each in endings],
        },
    )
    return {row.id for row in rows}


async def end_queued(
    conn: AsyncConnection,
    job_ids: Sequence[UUID],
    status: EndStatus,
    errors: Mapping[UUID, dict[str, Any]] | None = None,
) -> list[tuple[UUID, int, str]]:
    """queued -> cancelled or expired, with the refund, in the caller's transaction; return (job, gen, pool) of those ended.

    Name all that a transaction ends at once: it locks their rows in the order of their ids, and then their budgets. Who locks
    another job's row after that waits for somebody who may wait for the same budgets. `errors` tells some of them why.
    """
    if not job_ids:
        return []
    told = errors or {}
    ended = {
        "ids": list(job_ids), "status": status, "errors": [_json(told.get(job_id)) for job_id in job_ids],
    }  # fmt: skip
    rows = (await conn.execute(_END_QUEUED, ended)).all()
    await _aftermath(conn, rows, {}, {})
    return [(row.id, row.gen, row.pool) for row in rows]


async def expire_waiting(conn: AsyncConnection, errors: Mapping[UUID, dict[str, Any]]) -> list[tuple[UUID, int, str]]:
    """`end_queued` of these jobs as expired; one that Postgres refuses to end keeps no other from it."""
    parts = await all_or_apart(conn, list(errors), lambda ids: end_queued(conn, ids, "expired", errors), job_name)
    return [each for part in parts for each in part]


async def _aftermath(
    conn: AsyncConnection,
    rows: Sequence[Row[Any]],
    endings: dict[UUID, Ending],
    spent: dict[UUID, Spending | None],
    before: Sequence[Statement] = (),
    targets: Sequence[Any] | None = None,
) -> None:
    """What every end brings with it: the settlement, the notices, the dead letter. `before`: what is still to be run before all of it."""
    if not rows:
        return
    settlements, events, dead = [], [], []
    for row in rows:
        ending, billed = endings.get(row.id), spent.get(row.id)
        settlements.append(Settlement(row.id, row.reservation, billed))
        used = ending.used if ending and billed else None
        cost_micros = (billed.cost_micros if billed else 0) if _prices(row).are_set else None
        events.append(job_event(row, f"job.{row.status}", row.finished_at, used, cost_micros=cost_micros))
        if row.is_response:
            events.append(response_event(row, ending.choices if ending else None))
        if row.status == "dead":
            dead.append(row)
    note_ends(conn, [(row.status, row.tier, row.model) for row in rows])
    if targets is None:
        (targets,) = await in_one_trip(conn, [(TARGETS_OF_JOBS, {"jobs": [row.id for row in rows]})])
    notices = deliveries(events, targets)
    # Settled last: from then on everybody who reserves or settles in the same budgets waits for our commit.
    if notices or dead:
        await in_one_trip(conn, before)
        before = ()
        await deliver(conn, notices)
        await write_dead_letters(conn, dead, {job_id: each.evidence for job_id, each in endings.items()})
    await in_one_trip(conn, [*before, settlement(settlements)])


def _prices(row: Row[Any]) -> Prices:
    return Prices(row.input_price, row.output_price)


def _spent(row: Row[Any], ending: Ending) -> Spending | None:
    """What goes on the tenant's bill; None where nothing does."""
    if not ending.billed:
        return None
    return Spending.at(_prices(row), ending.used.prompt_tokens, ending.used.completion_tokens)


def _usage_rows(row: Row[Any], ending: Ending, billed: Spending | None) -> list[dict[str, Any]]:
    """What is billed, and what is our waste, each where there is any; an attempt always leaves a row."""
    used, wasted = ending.used, ending.wasted
    if billed is None:
        wasted = Used(
            used.prompt_tokens + wasted.prompt_tokens,
            used.cached_tokens + wasted.cached_tokens,
            used.completion_tokens + wasted.completion_tokens,
        )
        return [_usage_row(row, ending.attempt, "wasted", wasted, 0)]
    rows = [_usage_row(row, ending.attempt, "billed", used, billed.cost_micros)]
    return [*rows, _usage_row(row, ending.attempt, "wasted", wasted, 0)] if wasted != Used() else rows


def _usage_row(row: Row[Any], attempt: int, kind: str, tokens: Used, cost_micros: int) -> dict[str, Any]:
    return {
        "job_id": row.id,
        "attempt": attempt,
        "kind": kind,
        "tenant_id": row.tenant_id,
        "api_key_id": row.api_key_id,
        "model": row.model,
        "tier": row.tier,
        "prompt_tokens": tokens.prompt_tokens,
        "cached_tokens": tokens.cached_tokens,
        "completion_tokens": tokens.completion_tokens,
        "cost_micros": cost_micros,  # what nobody pays costs nothing
    }


def _bounded(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """An error of a job goes into webhooks and lists: its words are cut at `MAX_ERROR_CHARS`."""
    message = error.get("message") if error else None
    if error is None or not isinstance(message, str) or len(message) <= MAX_ERROR_CHARS:
        return error
    return error | {"message": message[: MAX_ERROR_CHARS - 1] + "…"}


def _json(value: dict[str, Any] | None) -> str | None:
    import json

    return None if value is None else json.dumps(storable(value))
