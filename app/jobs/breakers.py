"""Where does a model's breaker stand? Evidence from the attempts, changes by compare-and-set, probes counted in the submission."""

import asyncio
import random
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.clock import Clock
from app.errors import ModelUnavailable, UnknownModel
from app.jobs.breaker import Breaker, Change, Evidence, Mode, Rules, State, judge
from app.looks import Looks
from app.quotas.acts import record_act

MAX_RETRY_AFTER_S = 120  # the openai client gives up on more
_SPREAD = 0.25  # of what is left to wait: those who were refused together don't come back together

# Deaths: one an incarnation, whichever of its jobs it was that told. Broken streams: one a second of a worker, since a
# server that dies breaks all its streams at once.
_BAD = text("""
    WITH recent AS MATERIALIZED (
        SELECT incarnation, model FROM workers WHERE ended_at IS NULL
        UNION ALL
        SELECT incarnation, model FROM workers WHERE ended_at > statement_timestamp() - make_interval(secs => :window)),
    of_worker AS (
        SELECT recent.model, found.bad
        FROM recent LEFT JOIN breakers USING (model) CROSS JOIN LATERAL (
            SELECT (count(*) FILTER (WHERE outcome <> 'transient_error') > 0)::int
                   + count(DISTINCT date_trunc('second', ended_at)) FILTER (WHERE outcome = 'transient_error') AS bad
            FROM attempts
            WHERE attempts.incarnation = recent.incarnation
              AND outcome IN ('engine_crash', 'bystander', 'upstream_away', 'transient_error')
              AND ended_at > greatest(breakers.since, statement_timestamp() - make_interval(secs => :window))) found)
    SELECT coalesce(w.model, b.model) AS model, coalesce(w.bad, 0)::int AS bad, w.model IS NOT NULL AS has_worker,
           b.state, b.version, b.since, b.retry_at, b.probes_left, statement_timestamp() AS now
    FROM (SELECT model, sum(bad) AS bad FROM of_worker GROUP BY model) w
    FULL JOIN breakers b ON b.model = w.model
    WHERE w.bad > 0 OR b.state <> 'closed'
""")
_GOOD = text("""
    SELECT coalesce(sum(found.good), 0)::int FROM (
        SELECT incarnation FROM workers WHERE ended_at IS NULL AND model = :model
        UNION ALL
        SELECT incarnation FROM workers
        WHERE ended_at > statement_timestamp() - make_interval(secs => :window) AND model = :model) recent
    CROSS JOIN LATERAL (
        SELECT count(*) AS good FROM (
            SELECT 1 FROM attempts
            WHERE attempts.incarnation = recent.incarnation AND outcome = 'succeeded'
              AND ended_at > greatest(CAST(:since AS timestamptz),
                                      statement_timestamp() - make_interval(secs => :window))
            LIMIT :enough) AS seen) found
""")
_OPEN_FIRST = text("""
    INSERT INTO breakers (model, state, since, retry_at, probes_left, bad, good)
    VALUES (:model, :state, :since, :retry_at, :probes_left, :bad, :good)
    ON CONFLICT (model) DO NOTHING RETURNING version
""")
_CHANGE = text("""
    UPDATE breakers SET state = :state, version = version + 1, since = coalesce(CAST(:since AS timestamptz), since),
        retry_at = :retry_at, probes_left = :probes_left, bad = :bad, good = :good
    WHERE model = :model AND version = :version RETURNING version
""")


@dataclass(frozen=True, slots=True)
class Changed:
    """A transition that this process has won, for its log."""

    model: str
    before: State
    after: State
    evidence: Evidence


async def is_any_to_judge(looks: Looks, rules: Rules) -> bool:
    """Whether `keep` would find a model that failed lately, or a breaker that isn't closed."""
    return bool(await looks.rows(_BAD, {"window": rules.window_s}))


async def keep(conn: AsyncConnection, rules: Rules) -> list[Changed]:
    """Judge every model once and write what changes, in the caller's transaction.

    Any number may do so at once: a change is a compare-and-set on the row's version, so one of them wins.
    """
    won = []
    rows = (await conn.execute(_BAD, {"window": rules.window_s})).all()
    for row in sorted(rows, key=lambda row: str(row.model)):  # as probes are taken, whatever the database's collation
        known = row.state is not None
        breaker = (
            Breaker(row.model, row.state, row.version, row.since, row.retry_at, row.probes_left) if known else None
        )
        wanted = {
            "model": row.model, "window": rules.window_s, "since": row.since, "enough": rules.enough(row.bad),
        }  # fmt: skip
        good = int(await conn.scalar(_GOOD, wanted) or 0)
        evidence = Evidence(row.bad, good, row.has_worker)
        change = judge(breaker, evidence, rules, row.now)
        if change is not None and await _apply(conn, row.model, breaker, change, evidence):
            won.append(Changed(row.model, breaker.state if breaker else "closed", change.state, evidence))
    return won


async def _apply(
    conn: AsyncConnection, model: str, breaker: Breaker | None, change: Change, evidence: Evidence
) -> bool:
    values = {
        "model": model, "state": change.state, "since": change.since, "retry_at": change.retry_at,
        "probes_left": change.probes_left, "bad": evidence.bad, "good": evidence.good,
    }  # fmt: skip
    if breaker is None:
        return await conn.scalar(_OPEN_FIRST, values) is not None
    return await conn.scalar(_CHANGE, values | {"version": breaker.version}) is not None


@dataclass(frozen=True, slots=True)
class Standing:
    """A model's breaker as submissions meet it. `state` is what the keeper found, `mode` what an operator decided."""

    model: str
    state: State
    mode: Mode
    retry_in_s: float  # until probes are let in, or more of them; 0 where nothing is known
    probes_left: int
    bad: int  # at the last change
    good: int

    @property
    def shown(self) -> State:
        """How it works: the operator's word, or else the keeper's."""
        return self.state if self.mode == "auto" else self.mode

    @property
    def is_refusing(self) -> bool:
        """Whether no new job of this model is accepted now."""
        return self.shown == "open" or (self.shown == "half_open" and self.probes_left == 0)


_STANDINGS = text("""
    SELECT model, state, mode,
           coalesce(greatest(0, extract(epoch FROM retry_at - clock_timestamp())), 0)::float8 AS retry_in_s,
           probes_left, bad, good
    FROM breakers WHERE state <> 'closed' OR mode <> 'auto' ORDER BY model
""")


async def standings(conn: AsyncConnection) -> list[Standing]:
    """Every breaker that isn't simply closed, by model."""
    return [Standing(*row) for row in await conn.execute(_STANDINGS)]


# Locks the row only where a probe may be had: submissions of healthy models never come here.
_TAKE_PROBE = text("""
    UPDATE breakers SET probes_left = probes_left - 1
    WHERE model = :model AND state = 'half_open' AND mode = 'auto' AND probes_left > 0 RETURNING probes_left
""")
_ONE = text(str(_STANDINGS).replace("WHERE state <> 'closed' OR mode <> 'auto' ORDER BY model", "WHERE model = :model"))


async def take_probe(conn: AsyncConnection, model: str) -> Standing | None:
    """Let one new job of the model in, in its submission's transaction: a rollback gives the probe back.

    It locks the breaker's row until then: who asks for several models does so in the order of their names.

    Returns:
        None where the job may come in; else the breaker that refuses it: roll back.
    """
    if await conn.scalar(_TAKE_PROBE, {"model": model}) is not None:
        return None
    standing = await show(conn, model)
    return None if standing.shown == "closed" else standing


def unavailable(refusing: list[Standing], *, open_s: float, draw: float | None = None) -> ModelUnavailable:
    """The refusal of a job whose models all rest; it may come back when the first of them is tried again.

    `draw`, uniform in [0, 1), spreads those who were refused together.
    """
    draw = random.random() if draw is None else draw  # noqa: S311
    waits = [open_s if each.mode == "open" else each.retry_in_s for each in refusing]
    retry_after_s = min(MAX_RETRY_AFTER_S, 1 + int(min(waits) + draw * max(1.0, _SPREAD * open_s)))
    names = " and ".join(f"{each.model!r}" for each in refusing)
    return ModelUnavailable(
        f"model: {names} failed too often just now, or an operator stopped it: no new jobs are taken. "
        f"Come back in {retry_after_s} s, or name another model (fallback_model does so by itself). "
        "Jobs that were accepted wait",
        param="model",
        model=refusing[0].model,
        retry_after_s=retry_after_s,
    )


class BreakerBoard:
    """The breakers as one API process knows them: a look at Postgres every `ttl_s` at most, none for each submission."""

    # Shorter than the shortest time that a breaker stays open: none goes unseen from closed to half-open.
    TTL_S = 0.5

    def __init__(self, engine: AsyncEngine, *, clock: Clock, timeout_s: float, ttl_s: float = TTL_S) -> None:
        self._engine = engine
        self._clock = clock
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._standings: dict[str, Standing] = {}
        self._read_at: float | None = None
        self._reading = asyncio.Lock()

    async def standing(self, model: str) -> Standing | None:
        """The model's breaker; None where it is closed."""
        return (await self.all()).get(model)

    async def all(self) -> dict[str, Standing]:
        """Every breaker that isn't simply closed.

        Raises:
            TimeoutError: Postgres doesn't answer in time.
        """
        if self._is_old():
            async with asyncio.timeout(self._timeout_s), self._reading:  # one look serves all who wait for it
                if self._is_old():
                    async with self._engine.connect() as conn:
                        self._standings = {each.model: each for each in await standings(conn)}
                    self._read_at = self._clock.monotonic()
        return self._standings

    def forget(self) -> None:
        """Look again at the next call."""
        self._read_at = None

    def _is_old(self) -> bool:
        return self._read_at is None or self._clock.monotonic() - self._read_at >= self._ttl_s


async def set_mode(conn: AsyncConnection, model: str, mode: Mode, *, actor: str, reason: str = "") -> Standing:
    """An operator's word on a model's breaker, until the next one; `auto` leaves it to the keeper again.

    Raises:
        UnknownModel: no worker has ever registered it.
    """
    await _require(conn, model)
    await conn.execute(
        text(
            "INSERT INTO breakers (model, mode) VALUES (:model, :mode) "
            "ON CONFLICT (model) DO UPDATE SET mode = EXCLUDED.mode, version = breakers.version + 1"
        ),
        {"model": model, "mode": mode},
    )
    await record_act(conn, actor, f"breaker.{mode}", model, {"reason": reason} if reason else {})
    return await show(conn, model)


async def show(conn: AsyncConnection, model: str) -> Standing:
    """A model's breaker; closed where it never opened.

    Raises:
        UnknownModel: no worker has ever registered it.
    """
    row = (await conn.execute(_ONE, {"model": model})).one_or_none()
    if row is not None:
        return Standing(*row)
    await _require(conn, model)
    return Standing(model, "closed", "auto", 0.0, 0, 0, 0)


async def show_all(conn: AsyncConnection) -> list[Standing]:
    """The breaker of each model that a worker has ever registered, by name."""
    return [await show(conn, name) for name in await conn.scalars(text("SELECT name FROM models ORDER BY name"))]


async def _require(conn: AsyncConnection, model: str) -> None:
    if await conn.scalar(text("SELECT 1 FROM models WHERE name = :model"), {"model": model}) is None:
        raise UnknownModel(f"model: {model!r} is not known: no worker has ever registered it", param="model")
