"""Was anything lost, doubled or mangled? What the clients know against what the database says, and the audit."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.audit.auditor import audit
from app.clock import SystemClock
from app.ids import parse_job_name
from app.redis import Redis
from benchmarks.faults.load import Tally

_WITHIN_S = 20.0
_CLAIM_S = 15.0

_UNFINISHED = text("SELECT count(*) FROM jobs WHERE finished_at IS NULL")
_UNTOLD = text("SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'")
_LONGEST = text("SELECT max(extract(epoch FROM finished_at - created_at))::float8 FROM jobs")
_DOUBLED = text("""
    SELECT (SELECT count(*) FROM (SELECT 1 FROM usage WHERE kind = 'billed' GROUP BY job_id HAVING count(*) > 1) twice)
         + (SELECT count(*) FROM jobs j WHERE NOT EXISTS (SELECT 1 FROM idempotency_keys k WHERE k.job_id = j.id))
         + (SELECT count(*) FROM (SELECT 1 FROM job_results GROUP BY job_id HAVING count(*) > 1) twice)
""")


@dataclass(slots=True)
class Verdict:
    """What was found. Empty lists and zeros are what is promised."""

    by_status: dict[str, int] = field(default_factory=dict)
    longest_s: float = 0.0  # from a job's submission to its end, queue and repairs included
    lost: list[str] = field(default_factory=list)  # accepted, and not there or without an end
    num_doubled: int = 0  # billed, stored or made twice
    mangled: list[str] = field(default_factory=list)  # whose text isn't that of the others of its kind
    dead: dict[str, int] = field(default_factory=dict)  # by reason
    told_twice: list[str] = field(default_factory=list)  # one event under two webhook-ids
    never_told: int = 0  # deliveries that count as made and never came
    untold: int = 0  # deliveries that are still to be made
    findings: dict[str, int] = field(default_factory=dict)  # of the audit
    unchecked: dict[str, str] = field(default_factory=dict)


async def num_unfinished(db: AsyncEngine) -> tuple[int, int]:
    """(jobs without an end, deliveries that weren't made)."""
    async with db.connect() as conn:
        return await conn.scalar(_UNFINISHED) or 0, await conn.scalar(_UNTOLD) or 0


async def judge(db: AsyncEngine, redis: Redis, tally: Tally) -> Verdict:
    """Look at everything, once all is quiet."""
    verdict = Verdict()
    async with db.connect() as conn:
        await _compare(conn, tally, verdict)
        await _compare_hooks(conn, tally, verdict)
        verdict.num_doubled = await conn.scalar(_DOUBLED) or 0
        verdict.longest_s = float(await conn.scalar(_LONGEST) or 0)
        rows = await conn.execute(text("SELECT reason, count(*) AS count FROM dead_letters GROUP BY reason"))
        verdict.dead = {str(row[0]): int(row[1]) for row in rows}
    report = await audit(db, redis, SystemClock(), within_s=_WITHIN_S, claim_s=_CLAIM_S, most=5)
    verdict.findings = {each.check: each.total for each in report.findings}
    verdict.unchecked = report.unchecked
    return verdict


async def _compare(conn: AsyncConnection, tally: Tally, verdict: Verdict) -> None:
    rows = (await conn.execute(text("SELECT id, status, finished_at IS NOT NULL AS has_ended FROM jobs"))).all()
    verdict.by_status = dict(Counter(row.status for row in rows))
    known = {row.id: row for row in rows}
    kinds: dict[Any, int] = {}
    for name, kind in tally.accepted.items():
        job_id = parse_job_name(name)
        row = known.get(job_id)
        if row is None or not row.has_ended:
            verdict.lost.append(f"{name}: {'not there' if row is None else row.status}")
        elif row.status == "succeeded":
            kinds[job_id] = kind
    texts: dict[int, Counter[str]] = defaultdict(Counter)
    of_job: dict[Any, str] = {}
    for row in await conn.execute(text("SELECT job_id, choices FROM job_results")):
        if row.job_id in kinds:
            of_job[row.job_id] = json.dumps([choice["text"] for choice in row.choices])
            texts[kinds[row.job_id]][of_job[row.job_id]] += 1
    right = {kind: counts.most_common(1)[0][0] for kind, counts in texts.items()}
    verdict.mangled = [str(job_id) for job_id, found in of_job.items() if found != right[kinds[job_id]]]
    verdict.mangled += [f"{job_id}: no result" for job_id in kinds.keys() - of_job.keys()]


async def _compare_hooks(conn: AsyncConnection, tally: Tally, verdict: Verdict) -> None:
    verdict.told_twice = [f"{job} {event}" for (job, event), ids in tally.told.items() if len(ids) > 1]
    came = {webhook_id for ids in tally.told.values() for webhook_id in ids}
    rows = await conn.execute(text("SELECT event_id, status FROM webhook_deliveries"))
    for row in rows:
        if row.status == "pending":
            verdict.untold += 1
        elif row.status == "delivered" and f"evt_{row.event_id.hex}" not in came:
            verdict.never_told += 1
