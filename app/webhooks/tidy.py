"""What do deliveries leave behind that nobody needs? Rooms of lanes that nobody waits in, and lanes of an earlier layout or secret."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.webhooks.lanes import ONE_OFF_LANE_SQL

FORGET_AFTER_S = 7 * 86_400.0
FIRST_DELIVERY = UUID(int=0)

# Both go along an index, a page at a time, and pass over rows that somebody else is changing.
_FORGET = text("""
    WITH page AS (SELECT lane, changed_at FROM webhook_lanes WHERE lane > :after ORDER BY lane LIMIT :page),
    old AS (
        SELECT r.lane FROM webhook_lanes r JOIN page USING (lane)
        WHERE r.changed_at < statement_timestamp() - make_interval(secs => :after_s)
          AND NOT EXISTS (SELECT FROM webhook_deliveries d WHERE d.lane = r.lane AND d.status = 'pending')
        ORDER BY r.lane FOR UPDATE OF r SKIP LOCKED),
    gone AS (DELETE FROM webhook_lanes r USING old WHERE r.lane = old.lane RETURNING r.lane)
    SELECT (SELECT max(lane) FROM page) AS last, (SELECT count(*) FROM gone) AS done
""")
_MOVE = text(f"""
    WITH page AS (
        SELECT id FROM webhook_deliveries WHERE endpoint_id IS NULL AND status = 'pending' AND id > :after ORDER BY id LIMIT :page),
    strayed AS (
        SELECT d.id, {ONE_OFF_LANE_SQL} AS lane
        FROM webhook_deliveries d JOIN page USING (id) JOIN tenants t ON t.id = d.tenant_id
        WHERE d.status = 'pending' AND d.lane <> {ONE_OFF_LANE_SQL} ORDER BY d.id FOR UPDATE OF d SKIP LOCKED),
    moved AS (UPDATE webhook_deliveries d SET lane = strayed.lane FROM strayed WHERE d.id = strayed.id RETURNING d.id)
    SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM moved) AS done
""")  # noqa: S608  constants only


async def forget_rooms(conn: AsyncConnection, after: str, *, page: int) -> tuple[str, int]:
    """Look at the next `page` lanes after this one; forget the room of those that haven't changed it for `FORGET_AFTER_S` and have
    nothing pending. They learn it again.

    Returns:
        Where to go on ("": from the beginning), and how many were forgotten.
    """
    found = (await conn.execute(_FORGET, {"after": after, "page": page, "after_s": FORGET_AFTER_S})).one()
    return found.last or "", found.done


async def bring_home(conn: AsyncConnection, after: UUID, *, page: int) -> tuple[UUID, int]:
    """Look at the next `page` pending deliveries to jobs' own URLs; move those that aren't in the lane that they would get today.

    That bounds the lanes of deliveries that are older than the bound, too, and of those that are sent again.

    Returns:
        Where to go on (`FIRST_DELIVERY`: from the beginning), and how many were moved.
    """
    found = (await conn.execute(_MOVE, {"after": after, "page": page})).one()
    return found.last or FIRST_DELIVERY, found.done
