"""Where does a delivery stand, and who may try it now? Every change of a delivery's row.

pending --begin--> pending, leased --record--> delivered | failed | pending, due later

`next_try_at` is when somebody has to look at a pending delivery again, for whatever reason: it was never handed over, the hand-over may be
lost, the lease of a try runs out, or a failed try is repeated. `tries` counts begun tries and is the fence: a try may begin only if it is
the next one, and only the latest one may fail the delivery or set its next date.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.webhooks.retries import MAX_TRIES, Answer, Verdict


@dataclass(frozen=True, slots=True)
class Nomination:
    """A delivery that is due, and the number of the try that it is due for. Only nominated: `begin` decides."""

    delivery_id: UUID
    number: int


@dataclass(frozen=True, slots=True)
class Try:
    """A try that its holder, and nobody else, may make until the lease runs out. `body` is sent as it is."""

    delivery_id: UUID
    number: int
    at: datetime  # by Postgres' clock
    event_type: str
    url: str
    body: bytes
    secrets: tuple[str, ...]

    @property
    def webhook_id(self) -> str:
        """The same for every try: receivers know repeats by it. It is the event's id in the body, too."""
        return f"evt_{self.delivery_id.hex}"


_GIVE_UP = text("""
    UPDATE webhook_deliveries SET status = 'failed', ended_at = clock_timestamp(), leased_until = NULL
    WHERE status = 'pending' AND next_try_at <= statement_timestamp() AND tries >= :max_tries
      AND (leased_until IS NULL OR leased_until <= statement_timestamp())
""")
_NOMINATE = text("""
    WITH due AS (
        SELECT id FROM webhook_deliveries
        WHERE status = 'pending' AND next_try_at <= statement_timestamp()
          AND (leased_until IS NULL OR leased_until <= statement_timestamp())
        ORDER BY next_try_at LIMIT :limit FOR UPDATE SKIP LOCKED)
    UPDATE webhook_deliveries d SET next_try_at = clock_timestamp() + make_interval(secs => :again_after_s)
    FROM due WHERE d.id = due.id
    RETURNING d.id, d.tries + 1 AS number
""")
_MAY_BEGIN = """
    d.id = :id AND d.status = 'pending' AND d.tries = :number - 1
    AND (d.leased_until IS NULL OR d.leased_until <= clock_timestamp())
"""
_URL = text(f"SELECT d.url FROM webhook_deliveries d WHERE {_MAY_BEGIN}")  # noqa: S608  constants only
_POSTPONE = text(
    "UPDATE webhook_deliveries d SET next_try_at = clock_timestamp() + make_interval(secs => :delay_s) "  # noqa: S608
    f"WHERE {_MAY_BEGIN}"
)
_BEGIN = text(f"""
    WITH begun AS (
        UPDATE webhook_deliveries d
        SET tries = d.tries + 1, leased_until = clock_timestamp() + make_interval(secs => :lease_s),
            next_try_at = clock_timestamp() + make_interval(secs => :lease_s)
        WHERE {_MAY_BEGIN}
        RETURNING d.*),
    noted AS (
        INSERT INTO webhook_tries (delivery_id, number, at) SELECT id, tries, clock_timestamp() FROM begun RETURNING at)
    SELECT begun.id, begun.tries, noted.at, begun.event_type, begun.url, begun.body, tenants.webhook_secret
    FROM begun CROSS JOIN noted JOIN tenants ON tenants.id = begun.tenant_id
""")  # noqa: S608  constants only
_NOTE = """
    WITH noted AS (
        UPDATE webhook_tries SET http_status = :http_status, error = :error, duration_ms = :duration_ms
        WHERE delivery_id = :id AND number = :number)
"""
_LATEST = "WHERE id = :id AND status = 'pending' AND tries = :number RETURNING id"
_RECORD = {
    # A receiver that has it has it, whatever other tries there are.
    "delivered": text(f"""{_NOTE}
        UPDATE webhook_deliveries SET status = 'delivered', ended_at = clock_timestamp(), leased_until = NULL
        WHERE id = :id AND status <> 'delivered' RETURNING id
    """),  # noqa: S608  constants only
    "failed": text(f"""{_NOTE}
        UPDATE webhook_deliveries SET status = 'failed', ended_at = clock_timestamp(), leased_until = NULL
        {_LATEST}
    """),  # noqa: S608  constants only
    "again": text(f"""{_NOTE}
        UPDATE webhook_deliveries
        SET next_try_at = clock_timestamp() + make_interval(secs => :delay_s), leased_until = NULL
        {_LATEST}
    """),  # noqa: S608  constants only
}


async def nominate(conn: AsyncConnection, *, limit: int, again_after_s: float) -> list[Nomination]:
    """Take what is due, oldest first. What doesn't begin within `again_after_s` is due again.

    A delivery whose last try was lost with its worker is given up here.
    """
    await conn.execute(_GIVE_UP, {"max_tries": MAX_TRIES})
    rows = await conn.execute(_NOMINATE, {"limit": limit, "again_after_s": again_after_s})
    return [Nomination(row.id, row.number) for row in rows]


async def url_of(conn: AsyncConnection, nomination: Nomination) -> str | None:
    """Where a try would go; None where it may not begin: it is stale, or somebody is at it."""
    url: str | None = await conn.scalar(_URL, _key(nomination))
    return url


async def postpone(conn: AsyncConnection, nomination: Nomination, *, delay_s: float) -> None:
    """Nominate it again after `delay_s`, without counting a try."""
    await conn.execute(_POSTPONE, {**_key(nomination), "delay_s": delay_s})


async def begin(conn: AsyncConnection, nomination: Nomination, *, lease_s: float) -> Try | None:
    """Lease the try, by one UPDATE; None where it may not begin. Its row stays without a result if the holder dies."""
    row = (await conn.execute(_BEGIN, {**_key(nomination), "lease_s": lease_s})).one_or_none()
    if row is None:
        return None
    return Try(row.id, row.tries, row.at, row.event_type, row.url, bytes(row.body), (row.webhook_secret,))


async def record(conn: AsyncConnection, made: Try, answer: Answer, verdict: Verdict) -> bool:
    """Note what came of a try and what follows; False where the delivery was decided by others in the meantime."""
    values: dict[str, object] = {
        "id": made.delivery_id,
        "number": made.number,
        "http_status": answer.http_status,
        "error": answer.error,
        "duration_ms": answer.duration_ms,
    }
    if verdict.outcome == "again":
        values["delay_s"] = verdict.delay_s
    changed = await conn.scalar(_RECORD[verdict.outcome], values)
    return changed is not None


def _key(nomination: Nomination) -> dict[str, object]:
    return {"id": nomination.delivery_id, "number": nomination.number}
