"""`penstock models breaker`: does a model take new jobs, and who says so? Directly on the database, as an operator."""

import asyncio
from typing import cast

from app.cli.actor import actor
from app.db import create_engine
from app.jobs.breaker import Mode
from app.jobs.breakers import Standing, set_mode, show
from app.settings import Settings


def breaker(settings: Settings, model: str, mode: str | None) -> None:
    """Set the breaker (`open`, `close`, `auto`), or leave it; print how it stands, in one line.

    Raises:
        UnknownModel: no worker has ever registered the model.
    """
    standing = asyncio.run(_breaker(settings, model, mode))
    by = "by an operator's word" if standing.mode != "auto" else "by its error rate"
    print(f"{standing.model}: {standing.shown} {by} ({standing.bad} bad, {standing.good} good at its last change)")


async def _breaker(settings: Settings, model: str, mode: str | None) -> Standing:
    db = create_engine(settings, application_name="penstock-cli")
    try:
        async with db.begin() as conn:
            if mode is None:
                return await show(conn, model)
            wanted = cast("Mode", "closed" if mode == "close" else mode)
            return await set_mode(conn, model, wanted, actor=actor())
    finally:
        await db.dispose()
