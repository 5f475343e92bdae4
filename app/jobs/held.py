"""Which jobs have waited long enough for a budget? Those at the head of its line, as far as it has room: each gets its reservation, then its turn."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.jobs.spending import Ask, Hold, hold_of, listen, prices_of, tell
from app.queue.places import place_sql
from app.queue.streams import Nomination
from app.quotas.budgets import Window, open_account

# Each budget that somebody waits for is found by one step in the index, however many wait. Its first in line is asked for: a new
# window, a raised limit, and what others gave back all show as room. What is due and finds none gets its next date.
_READY = text("""
    WITH RECURSIVE held (budget_id) AS (
        (SELECT held_by FROM jobs WHERE held_by IS NOT NULL ORDER BY held_by LIMIT 1)
        UNION ALL
        SELECT (SELECT held_by FROM jobs WHERE held_by > held.budget_id ORDER BY held_by LIMIT 1)
        FROM held WHERE held.budget_id IS NOT NULL),
    due AS (
        SELECT DISTINCT held_by FROM jobs
        WHERE status = 'queued' AND not_before <= statement_timestamp() AND held_by IS NOT NULL)
    SELECT held.budget_id
    FROM held
    CROSS JOIN LATERAL (
        SELECT * FROM jobs WHERE jobs.held_by = held.budget_id ORDER BY jobs.id LIMIT 1) AS head
    JOIN models m ON m.name = head.model
    LEFT JOIN budgets b ON b.id = held.budget_id
    LEFT JOIN budget_windows w ON w.budget_id = b.id
        AND w.window_start = CASE b.period WHEN 'total' THEN 'epoch'::timestamptz ELSE date_trunc(b.period, now()) END
    WHERE b.id IS NULL OR b.retired_at IS NOT NULL OR held.budget_id IN (SELECT held_by FROM due)
       OR coalesce(w.used + w.reserved, 0) + CASE b.metric
            WHEN 'input_tokens' THEN head.prompt_tokens
            WHEN 'output_tokens' THEN head.n * head.max_tokens
            WHEN 'total_tokens' THEN head.prompt_tokens + head.n * head.max_tokens
            WHEN 'requests' THEN 1
            WHEN 'cost' THEN ceil((head.prompt_tokens::numeric * m.input_price
                                   + head.n::numeric * head.max_tokens * m.output_price) / 1000000) END <= b.hard_limit
    ORDER BY held.budget_id
""")
# Whether there is a line at all. The first of all by the index: where statistics know no job that waits, EXISTS reads the table.
IS_ANY_HELD = "(SELECT held_by FROM jobs WHERE held_by IS NOT NULL ORDER BY held_by LIMIT 1) IS NOT NULL"
# One keeper at a time works on a line; the others go on to the next. An operator's change of the budget waits for it, or it for that.
_OWN = text("SELECT 1 FROM budgets WHERE id = :budget FOR NO KEY UPDATE SKIP LOCKED")
_EXISTS = text("SELECT 1 FROM budgets WHERE id = :budget")
_LINE = text("""
    SELECT id, tenant_id, api_key_id, model, prompt_tokens, n, max_tokens, webhook FROM jobs
    WHERE held_by = :budget ORDER BY id LIMIT :most FOR UPDATE SKIP LOCKED
""")
_WAKE = text(f"""
    UPDATE jobs SET reservation = 1, held_by = NULL, not_before = NULL, eligible_at = statement_timestamp(),
        input_price = p.input_price, output_price = p.output_price
    FROM unnest(CAST(:ids AS uuid[]), CAST(:input_prices AS bigint[]), CAST(:output_prices AS bigint[]))
        AS p (id, input_price, output_price)
    WHERE jobs.id = p.id AND jobs.reservation = 0 AND jobs.status = 'queued'
    RETURNING jobs.pool, jobs.id, jobs.gen, {place_sql("jobs")}, jobs.tenant_id, jobs.prompt_tokens + jobs.n * jobs.max_tokens
""")  # noqa: S608  our own text
_MOVE = text("""
    UPDATE jobs SET held_by = h.budget_id, not_before = h.until
    FROM unnest(CAST(:ids AS uuid[]), CAST(:budgets AS uuid[]), CAST(:untils AS timestamptz[])) AS h (id, budget_id, until)
    WHERE jobs.id = h.id AND jobs.reservation = 0 AND jobs.status = 'queued'
""")
_POSTPONE = text("""
    UPDATE jobs SET not_before = :until WHERE id IN (
        SELECT id FROM jobs WHERE held_by = :budget AND not_before <= statement_timestamp() FOR UPDATE SKIP LOCKED)
""")


async def ready_budgets(conn: AsyncConnection) -> list[UUID]:
    """The budgets in whose lines something is to be done: the first could have its turn, or its date has come."""
    return [row.budget_id for row in await conn.execute(_READY)]


async def wake_line(conn: AsyncConnection, budget_id: UUID, *, most: int = 500) -> dict[str, list[Nomination]]:
    """Let those in who wait for this budget, in the order of their arrival, in the caller's transaction; return what to nominate, by pool.

    The first that this budget can't hold stops the line: nobody overtakes a large job until there is room for it. One that another
    budget refuses goes over to that one's line. One line a transaction: its callers' budgets are locked together.
    """
    if await conn.scalar(_OWN, {"budget": budget_id}) is None and await conn.scalar(_EXISTS, {"budget": budget_id}):
        return {}
    line = (await conn.execute(_LINE, {"budget": budget_id, "most": most})).all()
    if not line:
        return {}
    prices = await prices_of(conn, {row.model for row in line})
    account = await open_account(conn, {(row.tenant_id, row.api_key_id) for row in line})
    await listen(conn, account)
    woken: list[Ask] = []
    moved: dict[UUID, Hold] = {}
    stopped_by: list[Window] = []
    for row in line:
        ask = _ask(row, prices)
        refusing = account.refusing(ask.tenant_id, ask.api_key_id, ask.wanted())
        stopped_by = [each for each in refusing if each.budget_id == budget_id]
        if stopped_by:
            break
        if refusing:
            moved[ask.job_id] = hold_of(refusing)
        else:
            account.take(ask.reservation())
            woken.append(ask)
    await tell(conn, await account.write(conn), {each.job_id: each.webhook for each in woken})
    await _move(conn, moved)
    if stopped_by:
        await conn.execute(_POSTPONE, {"budget": budget_id, "until": hold_of(stopped_by).until})
    return await _wake(conn, woken)


def _ask(row: Row[Any], prices: dict[str, Any]) -> Ask:
    return Ask(
        row.id, 1, row.tenant_id, row.api_key_id, prices[row.model], row.prompt_tokens, row.n, row.max_tokens,
        webhook=row.webhook,
    )  # fmt: skip


async def _move(conn: AsyncConnection, moved: dict[UUID, Hold]) -> None:
    if moved:
        await conn.execute(
            _MOVE,
            {
                "ids": list(moved),
                "budgets": [hold.budget_id for hold in moved.values()],
                "untils": [hold.until for hold in moved.values()],
            },
        )


async def _wake(conn: AsyncConnection, woken: Sequence[Ask]) -> dict[str, list[Nomination]]:
    by_pool: dict[str, list[Nomination]] = {}
    if not woken:
        return by_pool
    found = await conn.execute(
        _WAKE,
        {
            "ids": [each.job_id for each in woken],
            "input_prices": [each.prices.input_price for each in woken],
            "output_prices": [each.prices.output_price for each in woken],
        },
    )
    rows = {row.id: row for row in found}
    assert len(rows) == len(woken), "they are locked"
    for each in woken:  # in the order of the line
        row = rows[each.job_id]
        by_pool.setdefault(row.pool, []).append(Nomination(*row[1:]))
    return by_pool
