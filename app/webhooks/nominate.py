"""Which deliveries are handed over now? Those that are due, lane by lane, as many as each lane has room for."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.settings import Settings
from app.webhooks.lanes import FIRST_ROOM, Busy, Candidate, pick
from app.webhooks.tables import SPENT

_LOCK = 0x7765_6268  # "webh": rooms are counted by one dispatcher at a time
_PAGE = 1000  # deliveries that are given up by one statement


@dataclass(frozen=True, slots=True)
class Nomination:
    """A delivery that is due, and the number of the try that it is due for. Only nominated: `begin` decides."""

    delivery_id: UUID
    number: int


@dataclass(frozen=True, slots=True)
class Rooms:
    """`again_after_s`: what was handed over and hasn't begun for so long is due again. `most`: of one lane; `cautious`: of all lanes
    together that haven't shown to be quick.
    """

    again_after_s: float
    most: int
    cautious: int

    @classmethod
    def of(cls, settings: Settings) -> "Rooms":
        """As the settings say."""
        return cls(
            settings.webhook_redispatch_s,
            settings.webhook_endpoint_concurrency,
            max(1, settings.webhook_concurrency // 2),
        )


_FREE = "(d.leased_until IS NULL OR d.leased_until <= statement_timestamp())"
# Whether a delivery is due, room or not: a condition for whoever looks all the time, and mostly in vain.
IS_ANY_DUE = (
    "EXISTS (SELECT 1 FROM webhook_deliveries WHERE status = 'pending' AND next_try_at <= statement_timestamp())"
)
# Rows that somebody else is changing are passed over: who waits for one while holding others could be waited for himself.
_GIVE_UP = text(f"""
    UPDATE webhook_deliveries d SET status = 'failed', ended_at = statement_timestamp(), leased_until = NULL, handed_until = NULL,
        error = coalesce(d.error, 'the last try was lost')
    FROM (SELECT d.id FROM webhook_deliveries d
        WHERE d.status = 'pending' AND {SPENT} AND d.next_try_at <= statement_timestamp() AND {_FREE}
        ORDER BY d.id LIMIT :page FOR UPDATE SKIP LOCKED) spent
    WHERE d.id = spent.id
""")  # noqa: S608  constants only
_CLOSE = text(f"""
    UPDATE webhook_deliveries d SET status = 'failed', ended_at = statement_timestamp(), leased_until = NULL, handed_until = NULL,
        error = closed.error
    FROM (SELECT d.id, coalesce(e.disabled_reason, 'the endpoint was deleted') AS error
        FROM webhook_endpoints e JOIN webhook_deliveries d ON d.endpoint_id = e.id
        WHERE e.id = ANY(CAST(:endpoints AS uuid[])) AND e.status <> 'enabled' AND d.status = 'pending' AND {_FREE}
        ORDER BY d.id LIMIT :page FOR UPDATE OF d SKIP LOCKED) closed
    WHERE d.id = closed.id
""")  # noqa: S608  constants only
_BUSY = text("""
    SELECT d.lane, d.tenant_id, count(*) AS busy, coalesce(min(r.room), :first_room) AS room
    FROM webhook_deliveries d LEFT JOIN webhook_lanes r USING (lane)
    WHERE d.status = 'pending' AND d.handed_until > statement_timestamp() GROUP BY d.lane, d.tenant_id
""")
# From lane to lane by the index, past all that waits in between: a lane with a million deliveries costs what one with a single one does.
# Pairs are compared so that only the index of lanes fits. Cautious lanes and quick ones have a limit each, so that neither hides the other;
# within both, tenants take turns.
_CANDIDATES = text(f"""
    WITH RECURSIVE lanes AS (
        (SELECT lane FROM webhook_deliveries WHERE status = 'pending' ORDER BY lane LIMIT 1)
        UNION ALL
        SELECT (SELECT d.lane FROM webhook_deliveries d WHERE d.status = 'pending' AND d.lane > lanes.lane
                ORDER BY d.lane LIMIT 1)
        FROM lanes WHERE lanes.lane IS NOT NULL),
    busy AS (
        SELECT * FROM unnest(CAST(:lanes AS text[]), CAST(:tenants AS text[]), CAST(:rooms AS integer[]), CAST(:busy AS integer[]))
            AS b (lane, tenant_id, room, busy)),
    due AS (
        SELECT due.*, lanes.lane, coalesce(r.room, :first_room) AS room, coalesce(r.room, :first_room) <= :first_room AS is_cautious
        FROM lanes LEFT JOIN webhook_lanes r USING (lane) LEFT JOIN busy USING (lane)
        CROSS JOIN LATERAL (
            SELECT d.id, d.tries, d.tenant_id, d.endpoint_id, d.next_try_at, row_number() OVER (ORDER BY d.next_try_at) AS place
            FROM webhook_deliveries d
            WHERE d.lane = lanes.lane AND d.status = 'pending' AND (d.lane, d.next_try_at) <= (lanes.lane, statement_timestamp())
              AND {_FREE} AND NOT {SPENT}
            ORDER BY d.next_try_at
            LIMIT greatest(0, least(coalesce(r.room, :first_room), :most) - coalesce(busy.busy, 0))) due
        WHERE lanes.lane IS NOT NULL),
    turns AS (
        SELECT due.*, coalesce(held.busy, 0)
            + row_number() OVER (PARTITION BY due.tenant_id, due.is_cautious ORDER BY due.place, due.next_try_at) AS turn
        FROM due LEFT JOIN (
            SELECT tenant_id, room <= :first_room AS is_cautious, sum(busy) AS busy FROM busy GROUP BY 1, 2) held
            USING (tenant_id, is_cautious)),
    ranked AS (
        SELECT turns.*, row_number() OVER (PARTITION BY is_cautious ORDER BY turn, next_try_at) AS rank FROM turns)
    SELECT ranked.id, ranked.tries + 1, ranked.lane, ranked.tenant_id, ranked.room, ranked.turn,
           CASE WHEN e.status <> 'enabled' THEN e.id END AS closed
    FROM ranked LEFT JOIN webhook_endpoints e ON e.id = ranked.endpoint_id
    WHERE ranked.rank <= CASE WHEN ranked.is_cautious THEN :cautious ELSE :limit END
    ORDER BY ranked.turn, ranked.next_try_at
""")  # noqa: S608  constants only
_HAND_OVER = text(f"""
    UPDATE webhook_deliveries d
    SET next_try_at = clock_timestamp() + make_interval(secs => :again_after_s),
        handed_until = clock_timestamp() + make_interval(secs => :again_after_s)
    FROM (
        SELECT held.id FROM unnest(CAST(:ids AS uuid[]), CAST(:numbers AS integer[])) AS wanted (id, number)
        JOIN webhook_deliveries held ON held.id = wanted.id AND held.tries = wanted.number - 1
        WHERE held.status = 'pending' AND held.next_try_at <= statement_timestamp() ORDER BY held.id
        FOR UPDATE OF held SKIP LOCKED) free
    WHERE d.id = free.id AND {_FREE}
    RETURNING d.id, d.tries + 1 AS number
""")  # noqa: S608  constants only


async def nominate(conn: AsyncConnection, rooms: Rooms, *, limit: int) -> list[Nomination]:
    """Take what is due and has room in its lane: tenants in turn, of each one's lanes the first before the second of any, the oldest first.

    What doesn't begin within `again_after_s` is due again. A delivery whose last try was lost with its worker is given up here, and so is
    one to an endpoint that is disabled.
    """
    await conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    await conn.execute(_GIVE_UP, {"page": _PAGE})
    busy = [Busy(*row) for row in await conn.execute(_BUSY, {"first_room": FIRST_ROOM})]
    rows = (
        await conn.execute(
            _CANDIDATES,
            {
                "lanes": [each.lane for each in busy], "tenants": [each.tenant_id for each in busy],
                "rooms": [each.room for each in busy], "busy": [each.count for each in busy],
                "first_room": FIRST_ROOM, "most": rooms.most, "limit": limit, "cautious": rooms.cautious,
            },
        )
    ).all()  # fmt: skip
    closed = sorted({row.closed for row in rows if row.closed is not None})
    if closed:
        await conn.execute(_CLOSE, {"endpoints": closed, "page": _PAGE})
    open_ones = [Candidate(*row[:-1]) for row in rows if row.closed is None]
    picked = pick(open_ones, busy, limit=limit, most=rooms.most, cautious=rooms.cautious)
    if not picked:
        return []
    handed = await conn.execute(
        _HAND_OVER,
        {
            "ids": [each.delivery_id for each in picked],
            "numbers": [each.number for each in picked],
            "again_after_s": rooms.again_after_s,
        },
    )
    numbers = {row.id: row.number for row in handed}
    return [Nomination(each.delivery_id, each.number) for each in picked if each.delivery_id in numbers]
