"""Which deliveries are handed over now? Those that are due, lane by lane, as many as each lane has room for."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.settings import Settings
from app.webhooks.lanes import FIRST_ROOM, Candidate, pick
from app.webhooks.retries import MAX_TRIES

_LOCK = 0x7765_6268  # "webh": rooms are counted by one dispatcher at a time


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
_ANY_DUE = text(
    "SELECT EXISTS (SELECT 1 FROM webhook_deliveries WHERE status = 'pending' AND next_try_at <= statement_timestamp())"
)
_GIVE_UP = text(f"""
    UPDATE webhook_deliveries d SET status = 'failed', ended_at = statement_timestamp(), leased_until = NULL, handed_until = NULL,
        error = coalesce(d.error, 'the last try was lost')
    WHERE status = 'pending' AND next_try_at <= statement_timestamp() AND tries - sent_before >= :max_tries AND {_FREE}
""")  # noqa: S608  constants only
_CLOSE = text(f"""
    UPDATE webhook_deliveries d SET status = 'failed', ended_at = statement_timestamp(), leased_until = NULL, handed_until = NULL,
        error = coalesce(e.disabled_reason, 'the endpoint was deleted')
    FROM webhook_endpoints e
    WHERE d.status = 'pending' AND d.next_try_at <= statement_timestamp() AND {_FREE} AND e.id = d.endpoint_id
      AND e.status <> 'enabled'
""")  # noqa: S608  constants only
_BUSY = text("""
    SELECT d.lane, count(*) AS busy, coalesce(min(r.room), :first_room) AS room
    FROM webhook_deliveries d LEFT JOIN webhook_lanes r USING (lane)
    WHERE d.status = 'pending' AND d.handed_until > statement_timestamp() GROUP BY d.lane
""")
# From lane to lane by the index, past all that waits in between: a lane with a million deliveries costs what one with a single one does.
# Pairs are compared so that only the index of lanes fits.
_CANDIDATES = text(f"""
    WITH RECURSIVE lanes AS (
        (SELECT lane FROM webhook_deliveries WHERE status = 'pending' ORDER BY lane LIMIT 1)
        UNION ALL
        SELECT (SELECT d.lane FROM webhook_deliveries d WHERE d.status = 'pending' AND d.lane > lanes.lane
                ORDER BY d.lane LIMIT 1)
        FROM lanes WHERE lanes.lane IS NOT NULL),
    busy AS (SELECT * FROM unnest(CAST(:lanes AS text[]), CAST(:busy AS integer[])) AS b (lane, busy))
    SELECT due.id, due.tries + 1, lanes.lane, coalesce(r.room, :first_room), due.place
    FROM lanes LEFT JOIN webhook_lanes r USING (lane) LEFT JOIN busy USING (lane)
    CROSS JOIN LATERAL (
        SELECT d.id, d.tries, row_number() OVER (ORDER BY d.next_try_at) AS place FROM webhook_deliveries d
        WHERE d.lane = lanes.lane AND d.status = 'pending' AND (d.lane, d.next_try_at) <= (lanes.lane, statement_timestamp()) AND {_FREE}
        ORDER BY d.next_try_at
        LIMIT greatest(0, least(coalesce(r.room, :first_room), :most) - coalesce(busy.busy, 0))) due
    WHERE lanes.lane IS NOT NULL
    ORDER BY due.place LIMIT :limit
""")  # noqa: S608  constants only
_HAND_OVER = text(f"""
    UPDATE webhook_deliveries d
    SET next_try_at = clock_timestamp() + make_interval(secs => :again_after_s),
        handed_until = clock_timestamp() + make_interval(secs => :again_after_s)
    FROM (
        SELECT held.id FROM unnest(CAST(:ids AS uuid[]), CAST(:numbers AS integer[])) AS wanted (id, number)
        JOIN webhook_deliveries held ON held.id = wanted.id AND held.tries = wanted.number - 1
        WHERE held.status = 'pending' AND held.next_try_at <= statement_timestamp() ORDER BY held.id FOR UPDATE OF held) free
    WHERE d.id = free.id AND {_FREE}
    RETURNING d.id, d.tries + 1 AS number
""")  # noqa: S608  constants only


async def nominate(conn: AsyncConnection, rooms: Rooms, *, limit: int) -> list[Nomination]:
    """Take what is due and has room in its lane, the lanes in turn, each one's oldest first.

    What doesn't begin within `again_after_s` is due again. A delivery whose last try was lost with its worker is given up here, and so is
    one to an endpoint that is disabled.
    """
    if not await conn.scalar(_ANY_DUE):
        return []
    await conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    await conn.execute(_GIVE_UP, {"max_tries": MAX_TRIES})
    await conn.execute(_CLOSE)
    under_way = (await conn.execute(_BUSY, {"first_room": FIRST_ROOM})).all()
    busy = {row.lane: row.busy for row in under_way}
    rows = await conn.execute(
        _CANDIDATES,
        {
            "lanes": list(busy), "busy": list(busy.values()), "first_room": FIRST_ROOM, "most": rooms.most,
            # Cautious lanes may stand before the others and be passed over.
            "limit": limit + rooms.cautious,
        },
    )  # fmt: skip
    picked = pick(
        [Candidate(*row) for row in rows],
        busy,
        limit=limit,
        most=rooms.most,
        cautious_busy=sum(row.busy for row in under_way if row.room <= FIRST_ROOM),
        cautious=rooms.cautious,
    )
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
