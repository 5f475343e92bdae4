"""What is known of a pool, and how is it read? The workers' leases in Postgres, what waits in Redis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import text

from app.jobs.states import TIERS
from app.queue.places import TIER_WEIGHTS, place_again
from app.queue.standings import ask_for_tenants, ask_for_tiers, standings_of
from app.queue.streams import JobQueue
from app.quotas.pressure import Backlog, PoolLoad

Source = Literal["redis", "postgres", "last", "none"]
Key = tuple[str, str, str]  # pool, tier, tenant

_MOST_WEIGHED = 256  # tenants of a tier; of more, so many at random stand for all

# Figures of workers that ended within the hour serve where the living ones have none yet.
WORKERS = text("""
    SELECT m.pool,
        count(w.incarnation) FILTER (WHERE live AND w.state = 'ready') AS ready,
        count(drain) FILTER (WHERE live AND w.state = 'ready') AS measured,
        coalesce(sum(drain) FILTER (WHERE live AND w.state = 'ready'), 0) AS drain,
        coalesce(avg(drain) FILTER (WHERE live), avg(drain)) AS mean_drain,
        coalesce(avg(served) FILTER (WHERE live), 0) * count(*) FILTER (WHERE live) AS served,
        coalesce(avg(pace) FILTER (WHERE live), avg(pace)) AS pace,
        coalesce(jsonb_agg(paces) FILTER (WHERE live AND paces IS NOT NULL), '[]') AS paces,
        coalesce(jsonb_agg(slow_paces) FILTER (WHERE live AND slow_paces IS NOT NULL), '[]') AS slow_paces,
        coalesce(min(pace) FILTER (WHERE live), min(pace)) AS best_pace,
        coalesce(max(load_s) FILTER (WHERE live), max(load_s)) AS load_s,
        coalesce(sum(at_hand) FILTER (WHERE live), 0)::int AS running
    FROM (SELECT DISTINCT pool FROM models) m
    LEFT JOIN LATERAL (
        SELECT incarnation, state, ended_at IS NULL AND expires_at > statement_timestamp() AS live,
            CAST(stats->>'drain_tokens_per_s' AS float8) AS drain,
            CAST(stats->>'served_tokens_per_s' AS float8) / CAST(stats->>'token_yield' AS float8) AS served,
            CAST(stats->>'seconds_per_token' AS float8) AS pace, stats->'paces' AS paces, stats->'slow_paces' AS slow_paces,
            CAST(stats->>'load_s' AS float8) AS load_s,
            CAST(stats->>'jobs' AS float8) AS at_hand
        FROM workers
        WHERE workers.pool = m.pool
          AND (ended_at IS NULL OR ended_at > statement_timestamp() - interval '1 hour')) w ON true
    GROUP BY m.pool
""")
QUEUED = text("""
    SELECT pool, tier, count(*) AS jobs, sum(prompt_tokens + n * max_tokens)::bigint AS tokens,
           count(DISTINCT tenant_id) AS tenants
    FROM jobs WHERE status = 'queued' AND not_before IS NULL AND held_by IS NULL GROUP BY pool, tier
""")


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """What was read of a pool. `source` says where its backlog comes from: `last` is what was known before Redis went away."""

    load: PoolLoad
    source: Source
    read_at: float  # monotonic
    served_per_s: float = 0.0  # now, in the queue's tokens
    per_worker: float | None = None  # mean drain of one worker
    best_pace: float | None = None  # least seconds a token of a job
    load_s: float | None = None  # how long a worker takes to load the model
    running: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in a pool by Redis' word, and of the tenants that were asked for: how many jobs, and their weights."""

    tiers: dict[str, Backlog]
    jobs: dict[Key, int]
    weights: dict[Key, float]
    owed: dict[Key, float]  # tokens of other tenants of the tier that are claimed before this one's next turn
    owed_to_tiers: dict[str, float]  # by tier, tokens of other tiers that are claimed before its next turn


async def read_waiting(queue: JobQueue, asked: Sequence[Key]) -> Waiting:
    """Of the queue's pool, in two round trips, however many tenants wait, and in one while nobody does; `asked` are of that pool.

    Raises:
        RedisError: it doesn't answer.
    """
    keys = queue.keys
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.depth)
        ask_for_tiers(pipe, keys)
        for tier in TIERS:
            pipe.zcard(keys.active(tier))
        for tier in TIERS:
            pipe.zrandmember(keys.active(tier), _MOST_WEIGHED)
        for _, tier, tenant in asked:
            pipe.xlen(keys.stream(tier, tenant))
        found = await pipe.execute()
    (depth, at, mean), counts, samples, lengths = found[:3], found[3:6], found[6:9], found[9:]
    by_tier = {tier: [key[2].encode() for key in asked if key[1] == tier] for tier in TIERS}
    looked_for = {
        tier: [*dict.fromkeys([*sample, *by_tier[tier]])] for tier, sample in zip(TIERS, samples, strict=True)
    }
    names = [*dict.fromkeys(name for each in looked_for.values() for name in each)]
    terms, counters = [], []
    if names:
        async with queue.redis.pipeline(transaction=False) as pipe:
            pipe.hmget(keys.terms, names)
            ask_for_tenants(pipe, keys, looked_for)
            terms, *counters = await pipe.execute()
    standings = standings_of(at, mean, looked_for, counters)
    weights = {name: _weight(value) for name, value in zip(names, terms, strict=True)}
    tiers = {}
    for tier, count, sample in zip(TIERS, counts, samples, strict=True):
        weight = sum(weights[name] for name in sample) * (int(count) / len(sample) if sample else 0.0)
        tiers[tier] = Backlog(_depth(depth, tier, "jobs"), _depth(depth, tier, "tokens"), int(count), weight)
    owed: dict[Key, float] = {}
    for tier, count, sample in zip(TIERS, counts, samples, strict=True):
        others = [(name, weights[name]) for name in sample]
        scale = int(count) / len(sample) if sample else 0.0
        tokens = standings.owed(tier, by_tier[tier], others)
        owed |= {
            (keys.pool, tier, name.decode()): scale * each for name, each in zip(by_tier[tier], tokens, strict=True)
        }
    return Waiting(
        tiers,
        {key: int(length) for key, length in zip(asked, lengths, strict=True)},
        {key: weights[key[2].encode()] for key in asked},
        owed,
        # Where all tenants are at their caps, no claim hands anything out: the tier's counter stands, and it isn't owed the difference.
        standings.owed_to_tiers({tier: each.tokens for tier, each in tiers.items() if each.tenants > 0}),
    )


def figures_of(
    row: Any, tiers: Mapping[str, Backlog], source: Source, now: float, owed: Mapping[str, float] | None = None
) -> PoolFigures:
    """From a row of `WORKERS` and what waits, by tier; `owed`: `PoolLoad.owed`, where it is known."""
    unmeasured = (row.ready - row.measured) * (row.mean_drain or 0.0)
    drain = row.drain + unmeasured
    load = PoolLoad(
        tiers, TIER_WEIGHTS, row.ready, drain or None, row.pace, _paces(row.paces), _paces(row.slow_paces), owed=owed or {}
    )  # fmt: skip
    return PoolFigures(
        load, source, now, row.served, row.mean_drain, row.best_pace, row.load_s, row.running
    )  # fmt: skip


def _weight(terms: Any) -> float:
    """From "weight:cap"; no terms: 1."""
    return float(terms.partition(b":")[0]) if terms else 1.0


def _paces(leases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The workers' mean, by tier."""
    found: dict[str, list[float]] = {}
    for lease in leases:
        for tier, pace in lease.items():
            found.setdefault(tier, []).append(float(pace))
    return {tier: sum(paces) / len(paces) for tier, paces in found.items()}


def _depth(raw: dict[Any, Any], tier: str, unit: str) -> int:
    return max(0, sum(int(raw.get(f"{place}:{unit}".encode(), 0)) for place in (tier, place_again(tier))))
