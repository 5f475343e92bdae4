"""What does a list look like on the command line? A table for people; the same with tabs, its header first, for whatever reads on."""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SEVERAL = re.compile(r"[\t\n]+")


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, nothing: str, wide: str | None = None,
    right: Sequence[str] = (), styles: Sequence[str] = (),
) -> None:  # fmt: skip
    """Rows under their header; where there are none, `nothing` on standard error.

    Args:
        wide: the column whose cells may take several lines in a terminal.
        right: columns of figures.
        styles: of each row's second cell in a terminal, as rich names them.
    """
    console = Console()
    cells = [[_cell(each) for each in row] for row in rows]
    if not cells:
        print(nothing, file=sys.stderr)
        return
    if not console.is_terminal:
        # Nothing is cut, and rich would make blanks of tabs.
        for line in (columns, *cells):
            print("\t".join(line))
        return
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name != wide, overflow="fold", justify="right" if name in right else "left")
    for place, row in enumerate(cells):
        styled = [Text(cell) for cell in row]
        if styles:
            styled[1].stylize(styles[place])
        table.add_row(*styled)
    console.print(table)


def shown_time(at: datetime | str | float | None, never: str = "-") -> str:
    """A time in UTC to the second, as all commands write it: of Postgres, of the API in ISO 8601, or in seconds since the epoch."""
    if at is None:
        return never
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    elif not isinstance(at, datetime):
        at = datetime.fromtimestamp(at, UTC)
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def visible(text: str) -> str:
    """`text` without what would command the terminal: logs and requests hold whatever others wrote."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return _SEVERAL.sub(" ", visible(shown_time(value) if isinstance(value, datetime) else str(value)))
