"""What do commands of operators have in common? One transaction on the database, and an object for people or for machines."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from app.cli.errors import CommandFailed
from app.cli.tables import shown_time, visible
from app.db import create_engine
from app.settings import Settings

T = TypeVar("T")
NONE = "none"


def in_transaction(settings: Settings, act: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """What `act` returns, committed."""

    async def run() -> T:
        db = create_engine(settings, application_name="penstock-cli")
        try:
            async with db.begin() as conn:
                return await act(conn)
        finally:
            await db.dispose()

    return asyncio.run(run())


def whole(option: str, given: str) -> int | None:
    """An option that is a whole number, or `none` for no limit.

    Raises:
        CommandFailed: it is neither.
    """
    if given.lower() == NONE:
        return None
    digits = given.replace("_", "")
    if not (digits.isascii() and digits.removeprefix("-").isdigit()) or len(digits) > 18:
        raise CommandFailed(
            f"{option}: must be a whole number, or {NONE} for no limit, and {visible(given)!r} is neither"
        )
    return int(digits)


def document(value: Any) -> str:
    """A dataclass as a line of JSON."""
    return json.dumps(asdict(value), ensure_ascii=False, default=_plain)


def print_fields(value: Any) -> None:
    """A dataclass, a field a line, for people."""
    for name, field in asdict(value).items():
        shown = (
            shown_time(field)
            if isinstance(field, datetime)
            else ",".join(map(str, field))
            if isinstance(field, list)
            else field
        )
        print(f"{name:<20} {visible(str('-' if shown is None else shown))}")


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
