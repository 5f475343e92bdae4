"""`penstock models ...`: does a model take new jobs, who says so, and what does it cost? Directly on the database, as an operator."""

from typing import Any, cast

from app.cli.actor import actor
from app.cli.operating import NONE, in_transaction
from app.jobs.breaker import Mode
from app.jobs.breakers import Standing, set_mode, show, show_all
from app.jobs.prices import ModelChange, Priced, change_price, read_price
from app.quotas.wanted import checked
from app.settings import Settings


def breaker(settings: Settings, model: str | None, mode: str | None) -> None:
    """Set a model's breaker (`open`, `close`, `auto`), or leave it; print how it stands, in a line. Without a model: all of them.

    Raises:
        UnknownModel: no worker has ever registered the model.
    """

    async def act(conn: Any) -> list[Standing]:
        if model is None:
            return await show_all(conn)
        if mode is None:
            return [await show(conn, model)]
        wanted = cast("Mode", "closed" if mode == "close" else mode)
        return [await set_mode(conn, model, wanted, actor=actor())]

    for each in in_transaction(settings, act):
        print(_described(each))


_TAKES = {"closed": "takes new jobs", "open": "takes no new jobs", "half_open": "takes a few new jobs, to see"}


def _described(standing: Standing) -> str:
    if standing.mode != "auto":
        return f"{standing.model}: {_TAKES[standing.shown]} ({standing.shown} by an operator's word, until it is set to auto)"
    tried = standing.bad + standing.good
    counted = f": {standing.bad} of {tried} attempts were bad at the last change" if tried else ""
    again = f", tried again in {standing.retry_in_s:.0f} s" if standing.shown == "open" else ""
    return f"{standing.model}: {_TAKES[standing.shown]} ({standing.shown} by its error rate{counted}{again})"


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
