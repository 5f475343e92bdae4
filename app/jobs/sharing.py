"""Was this very work done lately, or is it under way? Then it is done once: the first job leads, the others take its result."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs.finish import finish_shared
from app.jobs.rescue import Rescued
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
    model: str, model_hash: str, prompt_ids: Sequence[int], n: int, sampling: dict[str, Any], *, has_own_seed: bool
) -> bytes | None:
    """What the output follows from: SHA-256 over model, prompt and parameters; None where chance has a part in it.

    Greedy work is the same under any seed; sampled work only where its owner chose the seed.
    """
    is_greedy = sampling["temperature"] == 0
    if not is_greedy and not has_own_seed:
        return None
    left_out = {"speculate", "seed"} if is_greedy else {"speculate"}
    parameters = {name: value for name, value in sampling.items() if name not in left_out}
    digest = hashlib.sha256(msgspec.json.encode([model, model_hash, n, parameters], order="sorted"))
    digest.update(np.asarray(prompt_ids, dtype="<i4").tobytes())
    return digest.digest()


async def share(conn: AsyncConnection, tenant_id: str, works: Sequence[Work]) -> set[UUID]:
    """Join each job to a leader that computes the same or has lately, if its tenant wants that; in the submission's transaction.

    The jobs are written and their budgets reserved. One whose leader has succeeded ends here and now, with its result.

    Returns:
        The jobs that are not to be nominated.
    """
    wanted = {each.job_id: each for each in works if each.key is not None}
    if not wanted:
        return set()
    recent_s = await conn.scalar(text("SELECT share_identical_s FROM tenants WHERE id = :id"), {"id": tenant_id})
    if recent_s is None:
        return set()
    await conn.execute(_MARK, {"ids": list(wanted), "keys": [each.key for each in wanted.values()]})
    # Two submissions of the same work at the same time: the second waits, and finds the first.
    for lock in sorted({int.from_bytes(each.key[:8], signed=True) for each in wanted.values() if each.key}):
        await conn.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
    joined: dict[UUID, UUID] = {}
    ready: list[tuple[UUID, UUID]] = []
    for each in wanted.values():
        leader = (
            await conn.execute(
                _LEADER,
                {"tenant": tenant_id, "key": each.key, "id": each.job_id, "tier": each.tier, "recent": recent_s},
            )
        ).one_or_none()
        if leader is not None:
            await conn.execute(_JOIN, {"id": each.job_id, "leader": leader.id})
            joined[each.job_id] = leader.id
            if leader.status == "succeeded":
                ready.append((each.job_id, leader.id))
    await finish_shared(conn, ready)
    return set(joined)


async def hand_on(conn: AsyncConnection, *, most: int = 500) -> Rescued:
    """What became of the leaders, to those that wait for them, in the caller's transaction.

    A result is theirs, too. If there is none, the most urgent of them leads the others; after a poison leader it runs alone first.
    """
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
        lane = "solo" if row.leader_status == "dead" else "normal"
        # Those of a page that wasn't read now follow the new leader as well.
        await conn.execute(_FOLLOW, {"old": row.shared_from, "new": row.id})
        found = (await conn.execute(_LEAD, {"id": row.id, "lane": lane})).one()
        by_pool.setdefault(found.pool, []).append(Nomination(*found[1:]))
    return by_pool


_MARK = text("""
    UPDATE jobs SET work_key = w.key FROM unnest(CAST(:ids AS uuid[]), CAST(:keys AS bytea[])) AS w (id, key)
    WHERE jobs.id = w.id
""")
# A leader that waits in a less urgent tier would hold its followers up: it leads only its equals and those below.
_LEADER = text("""
    SELECT id, status FROM jobs
    WHERE tenant_id = :tenant AND work_key = :key AND shared_from IS NULL AND id <> :id AND held_by IS NULL
      AND cancel_requested_at IS NULL
      AND CASE status
          WHEN 'succeeded' THEN finished_at > statement_timestamp() - make_interval(secs => :recent)
              AND EXISTS (SELECT 1 FROM job_results r WHERE r.job_id = jobs.id)
          WHEN 'running' THEN true
          WHEN 'queued' THEN array_position(ARRAY['interactive', 'standard', 'batch'], tier)
              <= array_position(ARRAY['interactive', 'standard', 'batch'], CAST(:tier AS text))
          ELSE false END
    ORDER BY status = 'succeeded' DESC, status = 'running' DESC, id LIMIT 1
""")
_JOIN = text(f"UPDATE jobs SET shared_from = :leader, not_before = {_NOT_BEFORE} WHERE id = :id")  # noqa: S608 - our own text
_WAITING = text("""
    SELECT f.id, f.shared_from, CASE WHEN l.status <> 'succeeded' THEN l.status WHEN r.job_id IS NOT NULL THEN l.status END AS leader_status
    FROM jobs f LEFT JOIN jobs l ON l.id = f.shared_from LEFT JOIN job_results r ON r.job_id = l.id
    WHERE f.status = 'queued' AND f.shared_from IS NOT NULL AND (l.id IS NULL OR l.finished_at IS NOT NULL)
    ORDER BY array_position(ARRAY['interactive', 'standard', 'batch'], f.tier), f.id LIMIT :most
    FOR UPDATE OF f SKIP LOCKED
""")
_FOLLOW = text("""
    UPDATE jobs SET shared_from = :new WHERE status = 'queued' AND shared_from = :old AND id <> :new
""")
_LEAD = text(f"""
    UPDATE jobs SET shared_from = NULL, not_before = NULL, eligible_at = statement_timestamp(), lane = :lane WHERE id = :id
    RETURNING pool, id, gen, {place_sql("jobs")}, tenant_id, prompt_tokens + n * max_tokens
""")  # noqa: S608 - our own text
