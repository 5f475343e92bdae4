"""Was this very work done lately, or is it under way? Then it is done once: the first job leads, the others take its result."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs.finish import finish_shared
from app.jobs.prompt_ids import pack_ids
from app.jobs.rescue import Rescued
from app.jobs.states import tier_rank
from app.queue.places import place_sql
from app.queue.streams import Nomination

# A job that waits for another one's result isn't eligible to run: neither retries nor the sweep may find it.
_NOT_BEFORE = "statement_timestamp() + interval '100 years'"


@dataclass(frozen=True, slots=True)
class Work:
    """What a job computes, and for whom. `key` is None where the same request could give another text."""

    job_id: UUID
    tier: str
    key: bytes | None


def work_key(
    served_by: Sequence[str], prompt_ids: Sequence[int], n: int, sampling: dict[str, Any], *, has_own_seed: bool
) -> bytes | None:
    """What the output follows from: SHA-256 over what serves it, prompt and parameters; None where chance has a part in it.

    `served_by`: model, its version, its tokenizer, and how the prompt came, since a text that goes on is written otherwise than
    an answer. Greedy work is the same under any seed; sampled work only where its owner chose the seed.
    """
    is_greedy = sampling["temperature"] == 0
    if not is_greedy and not has_own_seed:
        return None
    left_out = {"speculate", "seed"} if is_greedy else {"speculate"}
    parameters = {name: value for name, value in sampling.items() if name not in left_out}
    digest = hashlib.sha256(msgspec.json.encode([list(served_by), n, parameters], order="sorted"))
    digest.update(pack_ids(prompt_ids))
    return digest.digest()


async def share(conn: AsyncConnection, tenant_id: str, works: Callable[[], Sequence[Work]]) -> set[UUID]:
    """Join each job to a leader that computes the same or has lately, if its tenant wants that; in the submission's transaction.

    The jobs are written and their budgets reserved; `works` is only called where the tenant shares, since keys cost time. One whose leader has succeeded ends here and now, with its result.

    Returns:
        The jobs that are not to be nominated.
    """
    recent_s = await conn.scalar(text("SELECT share_identical_s FROM tenants WHERE id = :id"), {"id": tenant_id})
    if recent_s is None:
        return set()
    wanted = {each.job_id: each for each in works() if each.key is not None}
    if not wanted:
        return set()
    await conn.execute(_MARK, {"ids": list(wanted), "keys": [each.key for each in wanted.values()]})
    # Two submissions of the same work at the same time: the second waits, and finds the first.
    for lock in sorted({int.from_bytes(each.key[:8], signed=True) for each in wanted.values() if each.key}):
        await conn.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
    ready: list[tuple[UUID, UUID]] = []
    waiting: set[UUID] = set()
    leaders: dict[bytes, UUID] = {}
    # The most urgent first: whom it may join, the others may, too.
    for each in sorted(wanted.values(), key=lambda work: (tier_rank(work.tier), work.job_id)):
        assert each.key is not None
        leader_id, status = leaders.get(each.key), "queued"
        if leader_id is None:
            found = {"tenant": tenant_id, "key": each.key, "own": list(wanted), "tier": each.tier, "recent": recent_s}
            leader = (await conn.execute(_LEADER, found)).one_or_none()
            if leader is None:
                leaders[each.key] = each.job_id
                continue
            leader_id, status = leader.id, leader.status
            if status != "succeeded":
                leaders[each.key] = leader_id
        await conn.execute(_JOIN, {"id": each.job_id, "leader": leader_id})
        waiting.add(each.job_id)
        if status == "succeeded":
            ready.append((each.job_id, leader_id))
    await finish_shared(conn, ready)
    return waiting


async def hand_on(conn: AsyncConnection, *, most: int = 500) -> Rescued:
    """What became of the leaders, to those that wait for them, in the caller's transaction.

    A result is theirs, too. If there is none, or none in the time of their own tier, the most urgent of them leads the others.
    After a leader that died it runs alone first, and bears that one's solo crashes: it is the same work.
    """
    if not await conn.scalar(_ONE_ROUND):
        return Rescued({}, [])  # another keeper is at it
    rows = (await conn.execute(_WAITING, {"most": most})).all()
    orphans = [row for row in rows if row.leader_status != "succeeded"]
    leads: dict[UUID, UUID] = {}
    for row in orphans:  # the most urgent first
        leads.setdefault(row.shared_from, row.id)
    new = [row for row in orphans if leads[row.shared_from] == row.id]
    others = [row for row in orphans if leads[row.shared_from] != row.id]
    for row in others:
        await conn.execute(_JOIN, {"id": row.id, "leader": leads[row.shared_from]})
    nominations = await _promote(conn, new)
    # Last, since it locks budgets: a cancel locks a job's row first, and then they are locked the other way round.
    ended = await finish_shared(conn, [(row.id, row.shared_from) for row in rows if row.leader_status == "succeeded"])
    return Rescued(nominations, [(job_id, "succeeded") for job_id in ended])


async def _promote(conn: AsyncConnection, rows: Iterable[Any]) -> dict[str, list[Nomination]]:
    by_pool: dict[str, list[Nomination]] = {}
    for row in rows:
        # Those of a page that wasn't read now follow the new leader as well.
        await conn.execute(_FOLLOW, {"old": row.shared_from, "new": row.id})
        found = (await conn.execute(_LEAD, {"id": row.id, **_lane_after(row)})).one()
        by_pool.setdefault(found.pool, []).append(Nomination(*found[1:]))
    return by_pool


def _lane_after(row: Any) -> dict[str, Any]:
    died = row.leader_status == "dead"
    return {"lane": "solo" if died else "normal", "solo_crashes": row.leader_solo_crashes if died else 0}


# Whether anybody waits for another one's result.
IS_ANY_SHARED = "EXISTS (SELECT 1 FROM jobs WHERE status = 'queued' AND shared_from IS NOT NULL)"
_ONE_ROUND = text("SELECT pg_try_advisory_xact_lock(hashtextextended('penstock.hand_on', 0))")
_MARK = text("""
    UPDATE jobs SET work_key = w.key FROM unnest(CAST(:ids AS uuid[]), CAST(:keys AS bytea[])) AS w (id, key)
    WHERE jobs.id = w.id
""")
# A leader that waits in a less urgent tier would hold its followers up: it leads only its equals and those below.
_LEADER = text("""
    SELECT id, status FROM jobs
    WHERE tenant_id = :tenant AND work_key = :key AND shared_from IS NULL AND id <> ALL(CAST(:own AS uuid[]))
      AND held_by IS NULL
      AND cancel_requested_at IS NULL
      AND CASE status
          WHEN 'succeeded' THEN finished_at > statement_timestamp() - make_interval(secs => :recent)
              AND EXISTS (SELECT 1 FROM job_results r WHERE r.job_id = jobs.id AND r.forgotten_at IS NULL)
          WHEN 'running' THEN true
          WHEN 'queued' THEN not_before IS NULL AND array_position(ARRAY['interactive', 'standard', 'batch'], tier)
              <= array_position(ARRAY['interactive', 'standard', 'batch'], CAST(:tier AS text))
          ELSE false END
    ORDER BY status = 'succeeded' DESC, status = 'running' DESC, id LIMIT 1
""")
_JOIN = text(f"UPDATE jobs SET shared_from = :leader, not_before = {_NOT_BEFORE} WHERE id = :id")  # noqa: S608 - our own text
_WAITING = text("""
    SELECT f.id, f.shared_from,
           -- Those before the one that convicted it: who follows is convicted by one of its own.
           l.solo_crashes - coalesce(l.error ->> 'code' = 'engine_crashes', false)::int AS leader_solo_crashes,
           CASE WHEN l.status <> 'succeeded' THEN l.status WHEN r.job_id IS NOT NULL THEN l.status END AS leader_status
    FROM jobs f LEFT JOIN jobs l ON l.id = f.shared_from LEFT JOIN job_results r ON r.job_id = l.id AND r.forgotten_at IS NULL
    WHERE f.status = 'queued' AND f.shared_from IS NOT NULL
      AND (l.id IS NULL OR l.finished_at IS NOT NULL
           -- It came back to the queue: who is more urgent than it, or can start earlier, doesn't wait for it.
           OR l.status = 'queued' AND (
               l.not_before IS NOT NULL
               OR array_position(ARRAY['interactive', 'standard', 'batch'], l.tier)
                > array_position(ARRAY['interactive', 'standard', 'batch'], f.tier)))
    ORDER BY array_position(ARRAY['interactive', 'standard', 'batch'], f.tier), f.id LIMIT :most
    FOR UPDATE OF f SKIP LOCKED
""")
# Whom somebody else is changing just now comes in a later round: to wait for one while holding others would be half of a deadlock.
_FOLLOW = text("""
    UPDATE jobs SET shared_from = :new WHERE id IN (
        SELECT id FROM jobs WHERE status = 'queued' AND shared_from = :old AND id <> :new ORDER BY id FOR UPDATE SKIP LOCKED)
""")
_LEAD = text(f"""
    UPDATE jobs SET shared_from = NULL, not_before = NULL, eligible_at = statement_timestamp(), lane = :lane,
        solo_crashes = :solo_crashes
    WHERE id = :id
    RETURNING pool, id, gen, {place_sql("jobs")}, tenant_id, prompt_tokens + n * max_tokens
""")  # noqa: S608 - our own text
