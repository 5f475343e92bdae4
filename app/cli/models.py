"""`penstock models ...`: does a model take new jobs, who says so, and what does it cost? Directly on the database, as an operator."""

import asyncio
from typing import Any, cast

from app.cli.actor import actor
from app.cli.operating import NONE, in_transaction
from app.db import create_engine
from app.jobs.breaker import Mode
from app.jobs.breakers import Standing, set_mode, show
from app.jobs.prices import ModelChange, Priced, change_price, read_price
from app.quotas.wanted import checked
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


def price(settings: Settings, model: str, options: dict[str, Any]) -> None:
    """Change what is given; print prices and fallback, in one line.

    Raises:
        UnknownModel: no worker has ever registered the model.
        InvalidRequest: a price is out of its bounds, or the fallback unknown.
    """
    given = {name: None if str(value).lower() == NONE else value for name, value in options.items()}

    async def act(conn: Any) -> Priced:
        if not given:
            return await read_price(conn, model)
        return await change_price(conn, model, checked(ModelChange, given), actor=actor())

    found = in_transaction(settings, act)
    print(
        f"{found.name}: {found.input_price} a million tokens of prompt, {found.output_price} of output, in millionths of "
        f"the currency; fallback: {found.fallback or 'none'}"
    )
