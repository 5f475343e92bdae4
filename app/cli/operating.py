"""What do commands of operators have in common? One transaction on the database, and rows for people or for machines."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from app.cli.dlq_shown import visible
from app.cli.errors import CommandFailed
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


def when(at: datetime | None, never: str) -> str:
    """A time in UTC, to the minute."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%MZ}" if at else never


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, nothing: str) -> None:
    """A table on a terminal, lines with tabs elsewhere."""
    console = Console()
    cells = [["-" if cell is None else visible(str(cell)) for cell in row] for row in rows]
    if not console.is_terminal:
        for each in cells:
            print("\t".join(each))
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for each in cells:
        table.add_row(*each)
    console.print(table if cells else nothing, highlight=False, markup=False)


def print_fields(value: Any) -> None:
    """A dataclass, a field a line, for people."""
    for name, field in asdict(value).items():
        shown = (
            when(field, "-")
            if isinstance(field, datetime)
            else ",".join(map(str, field))
            if isinstance(field, list)
            else field
        )
        print(f"{name:<20} {visible(str('-' if shown is None else shown))}")


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
