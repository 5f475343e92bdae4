"""Does Redis nominate what waits in Postgres, all of it and nothing else, where claims find it? Read in pages, looked at again.

Redis and Postgres have no common snapshot, and a live queue changes while it is read. So a difference is a suspicion at first:
all is looked at again, and what is still there when the bound has passed is a violation.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from redis.exceptions import ResponseError, WatchError
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.audit.report import Outcome, Violation
from app.clock import Clock
from app.ids import job_name
from app.queue.keys import PoolKeys
from app.redis import Redis

CLAIMS = {
    "queue_epoch": "a pool with waiting jobs has an epoch",
    "queue_missing": "each job that waits in Postgres is nominated, with its gen, place, tenant and cost",
    "queue_stale": "each nomination is of a job that waits in Postgres",
    "queue_entry": "each nomination's entry is in its stream",
    "queue_depth": "the depth is the sum of the nominations",
    "queue_active": "a tenant is in act, or passed over in full, while its stream holds what wasn't handed out; never without a stream",
    "queue_claims": "no claim is undecided for longer than the time to put it back and the bound",
}
_PLACES = ("solo", "bisect", "interactiveagain", "interactive", "standardagain", "standard", "batchagain", "batch")
_PAGE = 1000
_PAUSE_S = 0.5
_MOST_SUSPECTS = 10_000  # of one check that are remembered from look to look; all are counted
_NOMINATION = re.compile(rb"(\d+):([a-z]+):([^:]+):(\d+):(\d+-\d+)")

_POOLS = text("SELECT pool FROM models UNION SELECT pool FROM jobs WHERE status = 'queued' AND not_before IS NULL")
_WAITING = text("""
    SELECT id, gen, tenant_id, prompt_tokens + n * max_tokens AS cost, eligible_at,
           CASE lane WHEN 'normal' THEN tier || CASE attempt WHEN 0 THEN '' ELSE 'again' END ELSE lane END AS place
    FROM jobs
    WHERE status = 'queued' AND not_before IS NULL AND pool = :pool
      AND (eligible_at, id) > (CAST(:since AS timestamptz), CAST(:after AS uuid))
    ORDER BY eligible_at, id LIMIT :page
""")
_STATES = text("""
    SELECT asked.id, jobs.status, jobs.gen, jobs.not_before IS NULL AS is_eligible
    FROM unnest(CAST(:ids AS uuid[])) AS asked (id) LEFT JOIN jobs ON jobs.id = asked.id
""")


@dataclass(slots=True)
class QueuesSeen:
    """What an audit of Redis found."""

    outcomes: list[Outcome] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Look:
    """What was off at one look: by check and subject; all are counted, the first so many kept."""

    suspects: dict[str, dict[str, Violation]] = field(default_factory=lambda: {check: {} for check in CLAIMS})
    totals: Counter[str] = field(default_factory=Counter)
    undecided: set[str] = field(default_factory=set)  # pools whose depth changed while it was counted

    def suspect(self, check: str, subject: str, expected: str, found: str) -> None:
        if subject in self.suspects[check]:
            return  # HSCAN may show a field twice
        self.totals[check] += 1
        if len(self.suspects[check]) < _MOST_SUSPECTS:
            self.suspects[check][subject] = Violation(subject, expected, found)

    def keep(self, again: "_Look") -> None:
        """Drop what is no longer there at the next look."""
        for check, before in self.suspects.items():
            self.suspects[check] = {name: now for name, now in again.suspects[check].items() if name in before}
            self.totals[check] = min(self.totals[check], again.totals[check]) if self.suspects[check] else 0
        self.undecided &= again.undecided

    @property
    def is_settled(self) -> bool:
        return not any(self.suspects.values()) and not self.undecided


async def audit_queues(
    db: AsyncEngine, redis: Redis, clock: Clock, *, within_s: float, claim_s: float, most: int
) -> QueuesSeen:
    """Compare all pools' queues; look again until nothing is suspect or `within_s` has passed since the first look.

    Raises:
        RedisError: Redis doesn't answer.
        SQLAlchemyError: Postgres doesn't.
    """
    await redis.ping()
    look, ends_at = await _look(db, redis, within_s + claim_s), clock.monotonic() + within_s
    while not look.is_settled and (left := ends_at - clock.monotonic()) > 0:
        await asyncio.sleep(min(_PAUSE_S, left))
        look.keep(await _look(db, redis, within_s + claim_s))
    return QueuesSeen(
        [
            Outcome(check, claim, look.totals[check], list(look.suspects[check].values())[:most])
            for check, claim in CLAIMS.items()
        ],
        {
            f"queue_depth of {pool}": "the queue changes faster than it can be counted"
            for pool in sorted(look.undecided)
        },
    )


async def _look(db: AsyncEngine, redis: Redis, claim_s: float) -> _Look:
    look = _Look()
    async with db.connect() as conn:
        pools = [row.pool for row in await conn.execute(_POOLS)]
    for pool in sorted(pools):
        keys = PoolKeys(pool)
        if await _compare_waiting(db, redis, keys, look) and not await redis.exists(keys.epoch):
            look.suspect("queue_epoch", f"pool {pool}", "an epoch", "none: this Redis lost its memory")
        streams = await _compare_nominations(db, redis, keys, look)
        await _count_depth(redis, keys, look)
        await _look_at_streams(redis, keys, streams, claim_s, look)
    return look


async def _compare_waiting(db: AsyncEngine, redis: Redis, keys: PoolKeys, look: _Look) -> bool:
    """Postgres' queue against `idx`; return whether anything waits."""
    is_any = False
    async for rows in _waiting(db, keys.pool):
        is_any = True
        known: list[Any] = await redis.hmget(keys.idx, [row.id.hex for row in rows])
        for row, value in zip(rows, known, strict=True):
            wanted = f"{row.gen}:{row.place}:{row.tenant_id}:{row.cost}"
            found = "nothing" if value is None else value.decode(errors="replace").rpartition(":")[0]
            if found != wanted:
                look.suspect("queue_missing", job_name(row.id), wanted, found)
    return is_any


async def _waiting(db: AsyncEngine, pool: str) -> AsyncIterator[Sequence[Row[Any]]]:
    since, after = datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0)
    while True:
        async with db.connect() as conn:
            place = {"pool": pool, "since": since, "after": after, "page": _PAGE}
            rows = (await conn.execute(_WAITING, place)).all()
        if rows:
            yield rows
            since, after = rows[-1].eligible_at, rows[-1].id
        if len(rows) < _PAGE:
            return


async def _compare_nominations(db: AsyncEngine, redis: Redis, keys: PoolKeys, look: _Look) -> set[tuple[str, str]]:
    """`idx` against Postgres and the streams; return the (place, tenant) that it names."""
    streams: set[tuple[str, str]] = set()
    cursor = 0
    while True:
        reply: Any = await redis.hscan(keys.idx, cursor, count=_PAGE)
        cursor, page = reply
        await _compare_page(db, redis, keys, page, look, streams)
        if cursor == 0:
            return streams


async def _compare_page(
    db: AsyncEngine, redis: Redis, keys: PoolKeys, page: dict[bytes, bytes], look: _Look, streams: set[tuple[str, str]]
) -> None:
    parsed: dict[UUID, tuple[str, ...]] = {}
    for job, value in page.items():
        if (match := _NOMINATION.fullmatch(value)) and re.fullmatch(rb"[0-9a-f]{32}", job):
            parsed[UUID(hex=job.decode())] = tuple(part.decode() for part in match.groups())
        else:
            look.suspect("queue_stale", repr(job), "a job and gen:place:tenant:cost:entry", repr(value))
    async with db.connect() as conn:
        states = (await conn.execute(_STATES, {"ids": list(parsed)})).all()
    for row in states:
        # One that waits under another gen is told by queue_missing.
        if row.status is None or row.status != "queued" or not row.is_eligible:
            found = "no such job" if row.status is None else f"{row.status}, gen {row.gen}"
            look.suspect("queue_stale", job_name(row.id), f"waiting, gen {parsed[row.id][0]}", found)
    async with redis.pipeline(transaction=False) as pipe:
        for _, place, tenant, _, entry in parsed.values():
            pipe.xrange(keys.stream(place, tenant), entry, entry)
        entries = await pipe.execute()
    for (job_id, (gen, place, tenant, cost, entry)), found in zip(parsed.items(), entries, strict=True):
        streams.add((place, tenant))
        wanted = {b"j": job_id.hex.encode(), b"g": gen.encode(), b"c": cost.encode()}
        if [fields for _, fields in found] != [wanted]:
            shown = f"entry of {found[0][1]}" if found else "no entry"
            look.suspect("queue_entry", job_name(job_id), f"{entry} in {keys.stream(place, tenant)}", shown)


async def _count_depth(redis: Redis, keys: PoolKeys, look: _Look) -> None:
    """Depth against the sums over `idx`, undecided where `idx` changed meanwhile: each change of either changes it."""
    sums: Counter[str] = Counter()
    num_seen = cursor = 0
    async with redis.pipeline(transaction=True) as pipe:
        await pipe.watch(keys.idx)
        depth: Any = await pipe.hgetall(keys.depth)  # after WATCH commands are sent at once
        while True:
            reply: Any = await pipe.hscan(keys.idx, cursor, count=_PAGE)
            cursor, page = reply
            for value in page.values():
                if match := _NOMINATION.fullmatch(value):
                    sums[f"{match[2].decode()}:jobs"] += 1
                    sums[f"{match[2].decode()}:tokens"] += int(match[4])
            num_seen += len(page)
            if cursor == 0:
                break
        pipe.multi()  # type: ignore[no-untyped-call]
        pipe.hlen(keys.idx)
        try:
            (length,) = await pipe.execute()
        except WatchError:
            length = -1
    if length != num_seen:  # it changed, or HSCAN showed a field twice
        look.undecided.add(keys.pool)
        return
    for name in [f"{place}:{unit}" for place in _PLACES for unit in ("jobs", "tokens")]:
        found = int(depth.get(name.encode(), 0))
        if found != sums[name]:
            look.suspect("queue_depth", f"pool {keys.pool}, {name}", str(sums[name]), str(found))


async def _look_at_streams(
    redis: Redis, keys: PoolKeys, streams: set[tuple[str, str]], claim_s: float, look: _Look
) -> None:
    """Each stream against `act`, and its claims against the time that they may take."""
    active: set[tuple[str, str]] = set()
    for place in _PLACES:
        tenants: Any = await redis.zrange(keys.active(place), 0, -1)
        active |= {(place, tenant.decode()) for tenant in tenants}
    passed_over: Any = await redis.hgetall(keys.parked)
    parked = {(place.decode(), tenant.decode()) for tenant, places in passed_over.items() for place in places.split()}
    for place, tenant in sorted(streams | active):
        is_active, is_parked = (place, tenant) in active, (place, tenant) in parked
        await _look_at_stream(redis, keys.stream(place, tenant), claim_s, look, active=is_active, parked=is_parked)


async def _look_at_stream(
    redis: Redis, stream: str, claim_s: float, look: _Look, *, active: bool, parked: bool
) -> None:
    async with redis.pipeline(transaction=True) as pipe:
        pipe.xinfo_groups(stream)
        pipe.xrevrange(stream, count=1)
        pipe.xpending_range(stream, "workers", "-", "+", 10, idle=int(claim_s * 1000))
        groups, newest, old = await pipe.execute(raise_on_error=False)
    if isinstance(groups, ResponseError):  # no such stream
        if active:
            look.suspect("queue_active", stream, "a stream, as its tenant is in act", "none")
        return
    delivered = next((group["last-delivered-id"] for group in groups if group["name"] == b"workers"), b"0-0")
    if newest and _place(newest[0][0]) > _place(delivered) and not active and not parked:
        look.suspect("queue_active", stream, "its tenant in act", f"not there, and {newest[0][0].decode()} waits")
    for claim in [] if isinstance(old, ResponseError) else old:
        seconds = claim["time_since_delivered"] / 1000
        expected, found = f"decided within {claim_s:g} s", f"claimed {seconds:.0f} s ago"
        look.suspect("queue_claims", f"{stream} {claim['message_id'].decode()}", expected, found)


def _place(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
