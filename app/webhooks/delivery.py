"""Where does a delivery stand, and who may try it now? Every change that a try makes to a delivery's row.

pending --begin--> pending, leased --record--> delivered | failed | pending, due later

`next_try_at` is when somebody has to look at a pending delivery again, for whatever reason: it was never handed over, the hand-over may be
lost, the lease of a try runs out, or a failed try is repeated. `tries` counts begun tries and is the fence: a try may begin only if it is
the next one, and only the latest one may fail the delivery or set its next date.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.ids import delivery_name, event_name
from app.webhooks.lanes import FIRST_ROOM, next_room
from app.webhooks.nominate import Nomination
from app.webhooks.retries import Answer, Verdict


@dataclass(frozen=True, slots=True)
class Try:
    """A try that its holder, and nobody else, may make until the lease runs out. `body` is sent as it is."""

    delivery_id: UUID
    number: int
    at: datetime  # by Postgres' clock
    event_id: UUID
    event_type: str
    url: str
    body: bytes
    secrets: tuple[str, ...]
    round: int  # which try since it was sent again by hand, counted from 1: the schedule's place
    endpoint_id: UUID | None
    lane: str
    room: int
    traceparent: str | None = None  # of its job

    @property
    def webhook_id(self) -> str:
        """The same for every try: receivers know repeats by it. It is the event's id in the body, too."""
        return event_name(self.event_id)

    @property
    def name(self) -> str:
        """The delivery's public id."""
        return delivery_name(self.delivery_id)


@dataclass(frozen=True, slots=True)
class Made:
    """A try and what came of it."""

    made: Try
    answer: Answer
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Rules:
    """`disable_after_s`: an endpoint that accepts nothing for so long is disabled. `most`: the most room that a lane may get."""

    disable_after_s: float
    most: int


_BEGIN = text("""
    WITH held AS (
        SELECT d.id FROM unnest(CAST(:ids AS uuid[]), CAST(:numbers AS integer[])) AS wanted (id, number)
        JOIN webhook_deliveries d ON d.id = wanted.id LEFT JOIN webhook_endpoints e ON e.id = d.endpoint_id
        WHERE d.status = 'pending' AND d.tries = wanted.number - 1
          AND (d.leased_until IS NULL OR d.leased_until <= statement_timestamp())
          AND (d.endpoint_id IS NULL OR e.status = 'enabled')
        ORDER BY d.id FOR UPDATE OF d),
    begun AS (
        UPDATE webhook_deliveries d
        SET tries = d.tries + 1, leased_until = clock_timestamp() + make_interval(secs => :lease_s),
            handed_until = clock_timestamp() + make_interval(secs => :lease_s),
            next_try_at = clock_timestamp() + make_interval(secs => :lease_s)
        FROM held WHERE d.id = held.id
        RETURNING d.*),
    noted AS (
        INSERT INTO webhook_tries (delivery_id, number, at) SELECT id, tries, clock_timestamp() FROM begun
        RETURNING delivery_id, at)
    SELECT begun.id, begun.tries, noted.at, begun.event_id, begun.event_type, begun.url, begun.body,
           coalesce(e.secret, t.webhook_secret) AS secret,
           CASE WHEN e.old_until > statement_timestamp() THEN e.old_secret
                WHEN e.id IS NULL AND t.old_webhook_until > statement_timestamp() THEN t.old_webhook_secret END AS old_secret,
           begun.tries - begun.sent_before AS round, begun.endpoint_id,
           begun.lane, coalesce(r.room, :first_room) AS room, begun.traceparent
    FROM begun JOIN noted ON noted.delivery_id = begun.id JOIN tenants t ON t.id = begun.tenant_id
    LEFT JOIN webhook_endpoints e ON e.id = begun.endpoint_id LEFT JOIN webhook_lanes r ON r.lane = begun.lane
""")
_LOCK_ENDPOINTS = text("""
    SELECT id FROM webhook_endpoints WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
""")
_ARE_FAILING = text(
    "SELECT id FROM webhook_endpoints WHERE id = ANY(CAST(:ids AS uuid[])) AND failing_since IS NOT NULL"
)
_WELL = text("""
    UPDATE webhook_endpoints e SET failing_since = NULL FROM unnest(CAST(:ids AS uuid[]), CAST(:urls AS text[])) AS well (id, url)
    WHERE e.id = well.id AND e.url = well.url AND e.failing_since IS NOT NULL
""")
_FAILING = text("""
    UPDATE webhook_endpoints e SET failing_since = clock_timestamp()
    FROM unnest(CAST(:ids AS uuid[]), CAST(:urls AS text[])) AS failed (id, url)
    WHERE e.id = failed.id AND e.url = failed.url AND e.failing_since IS NULL
""")
_DISABLE = text("""
    UPDATE webhook_endpoints e
    SET status = 'disabled', disabled_at = clock_timestamp(), updated_at = clock_timestamp(),
        disabled_reason = CASE WHEN failed.is_gone THEN failed.error
            ELSE concat('no try was accepted since ', to_char(e.failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                        '; the last one: ', failed.error) END
    FROM unnest(CAST(:ids AS uuid[]), CAST(:urls AS text[]), CAST(:gone AS boolean[]), CAST(:errors AS text[])) AS failed (id, url, is_gone, error)
    WHERE e.id = failed.id AND e.url = failed.url AND e.status = 'enabled'
      AND (failed.is_gone OR e.failing_since <= statement_timestamp() - make_interval(secs => :disable_after_s))
    RETURNING e.id, e.tenant_id, e.disabled_reason
""")
_NOTE = text("""
    UPDATE webhook_tries t SET http_status = n.http_status, error = n.error, duration_ms = n.duration_ms, excerpt = n.excerpt
    FROM unnest(CAST(:ids AS uuid[]), CAST(:numbers AS integer[]), CAST(:statuses AS integer[]), CAST(:errors AS text[]),
                CAST(:durations AS integer[]), CAST(:excerpts AS text[])) AS n (id, number, http_status, error, duration_ms, excerpt)
    WHERE t.delivery_id = n.id AND t.number = n.number
""")
# A receiver that has it has it, whatever other tries there are; of those that failed, the latest decides. One that failed where its endpoint is
# no more says nothing of where it is now: that is tried at once.
_RECORD = text("""
    WITH made AS (
        SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:numbers AS integer[]), CAST(:outcomes AS text[]),
                             CAST(:delays AS float8[]), CAST(:errors AS text[]), CAST(:urls AS text[])) AS m (id, number, outcome, delay_s, error, url)),
    held AS (
        SELECT d.id, CASE WHEN made.outcome <> 'delivered' AND d.url <> made.url THEN 'moved' ELSE made.outcome END AS outcome
        FROM webhook_deliveries d JOIN made USING (id)
        WHERE (made.outcome = 'delivered' AND d.status <> 'delivered') OR (d.status = 'pending' AND d.tries = made.number)
        ORDER BY d.id FOR UPDATE OF d)
    UPDATE webhook_deliveries d
    SET status = CASE WHEN held.outcome IN ('again', 'moved') THEN 'pending' ELSE held.outcome END,
        ended_at = CASE WHEN held.outcome IN ('delivered', 'failed') THEN clock_timestamp() END,
        next_try_at = CASE held.outcome WHEN 'again' THEN clock_timestamp() + make_interval(secs => made.delay_s)
            WHEN 'moved' THEN clock_timestamp() ELSE d.next_try_at END,
        leased_until = NULL, handed_until = NULL, error = CASE held.outcome WHEN 'failed' THEN made.error END
    FROM made JOIN held USING (id) WHERE d.id = made.id
    RETURNING d.id
""")
_ROOMS = text("""
    INSERT INTO webhook_lanes (lane, room)
    SELECT * FROM unnest(CAST(:lanes AS text[]), CAST(:rooms AS smallint[])) AS r (lane, room) ORDER BY lane
    ON CONFLICT (lane) DO UPDATE SET room = excluded.room, changed_at = now()
""")
_CLOSE = text("""
    UPDATE webhook_deliveries d SET status = 'failed', ended_at = clock_timestamp(), leased_until = NULL, handed_until = NULL,
        error = held.error
    FROM (
        SELECT p.id, coalesce(e.disabled_reason, 'the endpoint was deleted') AS error
        FROM webhook_deliveries p JOIN webhook_endpoints e ON e.id = p.endpoint_id
        WHERE e.id = ANY(CAST(:ids AS uuid[])) AND e.status <> 'enabled' AND p.status = 'pending'
        ORDER BY p.id FOR UPDATE OF p) held
    WHERE d.id = held.id
""")


async def begin(conn: AsyncConnection, nominations: Sequence[Nomination], *, lease_s: float) -> dict[Nomination, Try]:
    """Lease these tries, by one statement. Missing is one that may not begin: it is stale, somebody is at it, or its endpoint is disabled.

    A try's row stays without a result if its holder dies.
    """
    rows = await conn.execute(
        _BEGIN,
        {
            "ids": [each.delivery_id for each in nominations],
            "numbers": [each.number for each in nominations],
            "lease_s": lease_s,
            "first_room": FIRST_ROOM,
        },
    )
    begun: dict[Nomination, Try] = {}
    for row in rows:
        secrets = (row.secret,) if row.old_secret is None else (row.secret, row.old_secret)
        begun[Nomination(row.id, row.tries)] = Try(
            row.id, row.tries, row.at, row.event_id, row.event_type, row.url, bytes(row.body), secrets, row.round,
            row.endpoint_id, row.lane, row.room, row.traceparent,
        )  # fmt: skip
    return begun


@dataclass(frozen=True, slots=True)
class Disabled:
    """An endpoint that accepted nothing for too long, or is gone."""

    endpoint_id: UUID
    tenant_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """The deliveries that tries changed, the others were decided by somebody else meanwhile; and endpoints that this disabled."""

    changed: set[UUID]
    disabled: list[Disabled]


async def record(conn: AsyncConnection, results: Sequence[Made], rules: Rules) -> Recorded:
    """Note what came of tries and what follows, each delivery's at most once a call. Endpoints are locked before deliveries.

    What is pending for an endpoint that this disables is for `close_disabled`, in a transaction of its own.
    """
    assert len({each.made.delivery_id for each in results}) == len(results), "one try of a delivery at a time"
    disabled = await _judge_endpoints(conn, results, rules)
    keys = {"ids": [each.made.delivery_id for each in results], "numbers": [each.made.number for each in results]}
    errors = [each.answer.error for each in results]
    await conn.execute(
        _NOTE,
        keys
        | {
            "statuses": [each.answer.http_status for each in results],
            "errors": errors,
            "durations": [each.answer.duration_ms for each in results],
            "excerpts": [each.answer.excerpt for each in results],
        },
    )
    changed = await conn.execute(
        _RECORD,
        keys
        | {
            "outcomes": [each.verdict.outcome for each in results],
            "delays": [each.verdict.delay_s for each in results],
            "errors": errors,
            "urls": [each.made.url for each in results],
        },
    )
    rooms: dict[str, int] = {}
    for each in results:
        room = next_room(rooms.get(each.made.lane, each.made.room), each.answer.duration_ms / 1000, most=rules.most)
        if room != each.made.room or each.made.lane in rooms:
            rooms[each.made.lane] = room
    if rooms:
        await conn.execute(_ROOMS, {"lanes": list(rooms), "rooms": list(rooms.values())})
    return Recorded({row.id for row in changed}, disabled)


async def close_disabled(conn: AsyncConnection, endpoint_ids: Sequence[UUID]) -> int:
    """Give up what is pending for endpoints that aren't enabled, in the caller's transaction; return how many."""
    closed = await conn.execute(_CLOSE, {"ids": list(endpoint_ids)})
    return closed.rowcount


_Target = tuple[UUID, str]  # an endpoint and where it was


def _columns(targets: Iterable[_Target]) -> dict[str, Any]:
    listed = list(targets)
    return {"ids": [endpoint_id for endpoint_id, _ in listed], "urls": [url for _, url in listed]}


async def _judge_endpoints(conn: AsyncConnection, results: Sequence[Made], rules: Rules) -> list[Disabled]:
    """Note who fails and who is well again; disable who is gone, or has failed for too long.

    What became of a try says something of the URL that it went to, which may not be its endpoint's any more.
    """
    tried: list[tuple[_Target, Made]] = [
        ((each.made.endpoint_id, each.made.url), each) for each in results if each.made.endpoint_id is not None
    ]
    well = {target for target, each in tried if each.verdict.outcome == "delivered"}
    # Asked anew: one that began before somebody else's failed may be accepted after that was noted.
    failing = await conn.scalars(_ARE_FAILING, {"ids": [endpoint_id for endpoint_id, _ in well]}) if well else ()
    are_failing = set(failing)
    recovered = {target for target in well if target[0] in are_failing}
    failed: dict[_Target, Answer] = {}
    for target, each in tried:
        if each.verdict.outcome == "delivered":
            continue
        if each.answer.is_gone or (target not in well and target not in failed):
            failed[target] = each.answer
    if not recovered and not failed:
        return []
    await conn.execute(_LOCK_ENDPOINTS, {"ids": [endpoint_id for endpoint_id, _ in (*recovered, *failed)]})
    await conn.execute(_WELL, _columns(recovered))
    if not failed:
        return []
    await conn.execute(_FAILING, _columns(failed))
    rows = await conn.execute(
        _DISABLE,
        _columns(failed)
        | {
            "gone": [answer.is_gone for answer in failed.values()],
            "errors": [answer.error for answer in failed.values()],
            "disable_after_s": rules.disable_after_s,
        },
    )
    return [Disabled(*row) for row in rows]
