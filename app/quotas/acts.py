"""Who did what that has to be answered for? One row an act, written in the act's own transaction."""

from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.quotas.tables import audit_log


async def record_act(
    conn: AsyncConnection, actor: str, action: str, target: str, detail: dict[str, Any], *, reason: str | None = None
) -> None:
    """Write down that `actor` did `action` to `target`, and why where they said so; `detail` holds no secrets, prompts or outputs."""
    if reason:
        detail = {**detail, "reason": reason}
    await conn.execute(insert(audit_log).values(actor=actor, action=action, target=target, detail=detail))
