"""How does a page of a long table stay fast, whatever is searched for? By a walk along an index that ends after so many rows.

A filter that no index serves could make Postgres read a whole table for one page. So the rows that an index gives are bounded first, the
rest of the filter sees only those, and the page says where it has stopped looking: its cursor goes on from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, func, select, text, true
from sqlalchemy.ext.asyncio import AsyncConnection

MOST_LOOKED_AT = 20_000  # rows for one page

Row = TypeVar("Row")
Made = TypeVar("Made")
Conditions = Callable[[Any], list[ColumnElement[bool]]]


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Rows, newest first. `next` is the key after which the next page begins, None at the end; `is_cut`: this page ended because
    `MOST_LOOKED_AT` rows were looked at, and older ones may fit, too."""

    rows: Sequence[Row]
    next: Any = None
    is_cut: bool = False

    def of(self, make: Callable[[Row], Made]) -> "Page[Made]":
        """The same page of other values."""
        return Page([make(row) for row in self.rows], self.next, self.is_cut)


async def walk(
    conn: AsyncConnection,
    near: Select[Any],
    fits: Conditions,
    *,
    key: str,
    limit: int,
    most: int | None = MOST_LOOKED_AT,
) -> Page[Any]:
    """The first `limit` rows that fit of the first `most` that `near` gives; None: of all, since `few` has said that they are few.

    Args:
        near: rows in the order of their column `key`, falling; an index must serve both its conditions and its order.
        fits: conditions on the columns of `near`.
    """
    looked_at = near.limit(most).subquery("looked_at")
    query = select(looked_at).where(*fits(looked_at.c)).order_by(looked_at.c[key].desc()).limit(limit + 1)
    rows = (await conn.execute(query)).all()
    if len(rows) > limit:
        return Page(rows[:limit], getattr(rows[limit - 1], key))
    if most is None:
        return Page(rows)
    last = await conn.scalar(near.with_only_columns(near.selected_columns[key]).offset(most - 1).limit(1))
    return Page(rows, last, last is not None)


def equal(columns: Any, **wanted: Any) -> list[ColumnElement[bool]]:
    """Conditions that these columns have these values; None is any."""
    return [columns[name] == value for name, value in wanted.items() if value is not None]


async def few(conn: AsyncConnection, rows: Select[Any], *, most: int = MOST_LOOKED_AT) -> Select[Any] | None:
    """`rows`, which an index finds in no order, to be walked along by their column `id`; None where they are more than `most`.

    They may be older than all that a walk in order would look at, and Postgres may not choose that walk for them either: their ids are
    found and sorted first, and a row is read when the walk comes to it (OFFSET 0 keeps Postgres from joining the whole table instead).
    """
    columns = rows.selected_columns
    ids = rows.with_only_columns(columns["id"])
    if (await conn.scalar(select(func.count()).select_from(ids.limit(most + 1).subquery())) or 0) > most:
        return None
    found = select(ids.cte("few").prefix_with("MATERIALIZED")).order_by(text("id DESC")).subquery("in_order")
    row = select(*columns).where(columns["id"] == found.c.id).offset(0).lateral("row")
    rest = [each for name, each in row.c.items() if name != "id"]
    return select(found.c.id, *rest).select_from(found.join(row, true()))
