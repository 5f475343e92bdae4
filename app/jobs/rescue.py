"""What happens to work that went astray? Attempts that ended badly, leases that ran out, orphans: again, or dead."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import storable
from app.ids import job_name
from app.jobs import leases, store
from app.jobs import tables as t
from app.jobs.apart import all_or_apart
from app.jobs.finish import Ending, finish
from app.jobs.notices import Used
from app.jobs.states import Lane
from app.jobs.store import Fate, GivenBack, HeldRow
from app.jobs.timing import columns_of
from app.queue.streams import Nomination
from app.quotas.tables import usage


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float
    cap_s: float

    def delay_s(self, attempt: int, draw: float) -> float:
        """Seconds to wait after failed attempt `attempt` (counted from 1); `draw` is uniform in [0, 1)."""
        return draw * min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 62))


_SUSPICIOUS_LOSSES = 3
_LAST_WORDS = {
    "transient_error": "{count} attempts failed by a transient error",
    "worker_lost": "{count} workers were lost while they ran the job",
    "engine_crash": "the engine died {count} times while it ran nothing but the job",
}
_LAST_WORDS_OF_ONE = {
    "transient_error": "an attempt failed by a transient error",
    "worker_lost": "a worker was lost while it ran the job",
    "engine_crash": "the engine died once while it ran nothing but the job",
}


@dataclass(frozen=True, slots=True)
class Rescued:
    """What became of attempts that were given back: nominations to enqueue by pool, and jobs that ended."""

    nominations: dict[str, list[Nomination]]
    ended: list[tuple[UUID, str]]


async def give_back(conn: AsyncConnection, given_back: Sequence[GivenBack], fate: Fate, random: Random) -> Rescued:
    """End these attempts without a result, in the caller's transaction: the jobs run again, or have used up their chances."""
    held = await store.lock_attempts(conn, [(each.job_id, each.attempt) for each in given_back])
    causes = {each.job_id: each for each in given_back}
    return await _decide(conn, [(row, causes[row.job_id]) for row in held], fate, random)


async def reap(conn: AsyncConnection, *, ttl_s: float, fate: Fate, random: Random) -> Rescued:
    """Bury workers whose lease ran out and give back what they ran, in the caller's transaction."""
    lost = await leases.bury_expired(conn, ttl_s=ttl_s)
    return await _give_back_all(conn, lost, fate, random)


async def retire(conn: AsyncConnection, incarnation: UUID, *, fate: Fate, random: Random) -> Rescued:
    """Close a lease for good, in the caller's transaction, and give back, unpunished, whatever still runs under it.

    That catches a start whose caller was stopped between its commit and its return.
    """
    await leases.lock(conn, incarnation)
    held = await store.lock_incarnations(conn, [incarnation])
    rescued = await _decide(conn, [(row, GivenBack(row.job_id, row.attempt, "drained")) for row in held], fate, random)
    await leases.end(conn, incarnation)
    return rescued


async def reap_orphans(conn: AsyncConnection, *, fate: Fate, random: Random) -> Rescued:
    """Give back jobs that run under an incarnation that has ended or never was: there should be none."""
    rows = await conn.execute(
        text("""
            SELECT DISTINCT j.incarnation FROM jobs j LEFT JOIN workers w USING (incarnation)
            WHERE j.status = 'running' AND (w.incarnation IS NULL OR w.ended_at IS NOT NULL)
        """)
    )
    return await _give_back_all(conn, [row.incarnation for row in rows], fate, random)


async def _give_back_all(conn: AsyncConnection, incarnations: list[UUID], fate: Fate, random: Random) -> Rescued:
    held = await store.lock_incarnations(conn, incarnations) if incarnations else []
    pairs = [(row, GivenBack(row.job_id, row.attempt, "worker_lost", lane=_lane_of_lost(row))) for row in held]
    return await _decide(conn, pairs, fate, random)


def _lane_of_lost(row: HeldRow) -> Lane | None:
    """A job that takes whole workers along, supervisor and all, leaves nobody to say so: that it was there again tells."""
    return "solo" if row.worker_losses + 1 >= _SUSPICIOUS_LOSSES else None


async def _decide(
    conn: AsyncConnection, pairs: Sequence[tuple[HeldRow, GivenBack]], fate: Fate, random: Random
) -> Rescued:
    """Again, or the end, for each of these; what Postgres refuses of one keeps no other from it."""
    parts = await all_or_apart(
        conn, pairs, lambda some: _decide_all(conn, some, fate, random), lambda pair: job_name(pair[0].job_id)
    )
    rescued = Rescued({}, [])
    for part in parts:
        rescued.ended.extend(part.ended)
        for pool, nominations in part.nominations.items():
            rescued.nominations.setdefault(pool, []).extend(nominations)
    return rescued


async def _decide_all(
    conn: AsyncConnection, pairs: Sequence[tuple[HeldRow, GivenBack]], fate: Fate, random: Random
) -> Rescued:
    backoff = Backoff(fate.retry_base_s, fate.retry_cap_s)
    again: list[tuple[HeldRow, GivenBack, float]] = []
    endings: list[Ending] = []
    for row, each in pairs:
        ending = _last_end(row, each, fate)
        if ending is not None:
            endings.append(ending)
            continue
        delay = backoff.delay_s(row.failures + 1, random.random()) if each.cause == "transient_error" else 0.0
        again.append((row, each, delay))
    await finish(conn, endings)
    nominations = await store.requeue(conn, again)
    if again:
        await conn.execute(
            insert(t.attempts),
            [
                {
                    "job_id": row.job_id, "attempt": row.attempt, "incarnation": row.incarnation,
                    "outcome": each.cause, "detail": storable(each.detail), **columns_of(each.timing),
                }
                for row, each, _ in again
            ],
        )  # fmt: skip
    wasted = [(row, each) for row, each, _ in again if each.used != Used()]
    if wasted:
        await conn.execute(insert(usage), [_wasted(row, each) for row, each in wasted])
    pools = {row.job_id: row.pool for row, _, _ in again}
    by_pool: dict[str, list[Nomination]] = {}
    for nomination in nominations:
        by_pool.setdefault(pools[nomination.job_id], []).append(nomination)
    return Rescued(by_pool, [(each.job_id, each.status) for each in endings])


def _wasted(row: HeldRow, given: GivenBack) -> dict[str, Any]:
    return {
        "job_id": row.job_id,
        "attempt": row.attempt,
        "kind": "wasted",
        "tenant_id": row.tenant_id,
        "api_key_id": row.api_key_id,
        "model": row.model,
        "tier": row.tier,
        "prompt_tokens": given.used.prompt_tokens,
        "cached_tokens": given.used.cached_tokens,
        "completion_tokens": given.used.completion_tokens,
    }


def _last_end(row: HeldRow, given: GivenBack, fate: Fate) -> Ending | None:
    """The end that this attempt brings, where the job may not run again."""
    if row.cancel_requested:
        return Ending(
            row.job_id,
            row.attempt,
            "cancelled",
            used=given.used,
            billed=False,
            outcome=given.cause,
            detail=given.detail,
            timing=given.timing,
        )
    limits = {
        "transient_error": (row.failures + 1, fate.max_attempts, "attempts_exhausted"),
        "worker_lost": (row.worker_losses + 1, fate.max_worker_losses, "workers_lost"),
        "engine_crash": (row.solo_crashes + (row.lane == "solo"), fate.max_solo_crashes, "engine_crashes"),
    }
    if given.cause not in limits:  # no fault of the job's, so it costs it nothing
        return None
    count, most, code = limits[given.cause]
    if count < most:
        return None
    words = _LAST_WORDS_OF_ONE if count == 1 else _LAST_WORDS
    error = {"code": code, "message": words[given.cause].format(count=count)}
    return Ending(
        row.job_id, row.attempt, "dead", error=error, billed=False, outcome=given.cause, detail=given.detail,
        evidence={"last": given.detail or {}}, used=given.used, timing=given.timing,
    )  # fmt: skip
