"""How do many rows get into a table in one go? By COPY, in its text format: Postgres parses no statement and plans nothing."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg.types.json import Json, Jsonb
from sqlalchemy import JSON, LargeBinary, Table, Text, TextClause, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Statement, as_ours, in_one_trip

_COPY_FROM = 8  # rows
# The characters that mean something in the format (PostgreSQL documentation, COPY, "Text Format").
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


async def insert_rows(conn: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert these rows, in the caller's transaction: a few by statements, which are one round trip, many by `copy_rows`."""
    left = await insert_or_leave(conn, [(table, rows)])
    if left:
        await in_one_trip(conn, left)


async def insert_or_leave(
    conn: AsyncConnection, tables: Sequence[tuple[Table, Sequence[Mapping[str, Any]]]]
) -> list[Statement]:
    """Insert the rows of each table, in their order and in the caller's transaction: many by `copy_rows`, now.

    Returns:
        What is left to be run by `app.db.in_one_trip`, with what else the caller has to say: statements for a few rows each.
    """
    left: list[Statement] = []
    for table, rows in tables:
        if len(rows) >= _COPY_FROM:
            await copy_rows(conn, table, rows)
        else:
            left += [_insert(table, row) for row in rows]
    return left


def _insert(table: Table, row: Mapping[str, Any]) -> Statement:
    values = {name: _adapted(table.c[name].type, value) for name, value in row.items()}
    return _insert_into(table.name, tuple(row)), values


def _adapted(kind: Any, value: Any) -> Any:
    if value is None or not isinstance(kind, JSON):
        return value
    return Jsonb(value) if isinstance(kind, JSONB) else Json(value)


@lru_cache
def _insert_into(table: str, names: tuple[str, ...]) -> TextClause:
    columns = ", ".join(f'"{name}"' for name in names)
    return text(f'INSERT INTO "{table}" ({columns}) VALUES ({", ".join(f":{name}" for name in names)})')  # noqa: S608 - our own names


async def copy_rows(conn: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert these rows, in the caller's transaction. All have the same columns; those that are left out get their defaults.

    None is NULL, in JSON columns, too.

    Raises:
        DBAPIError: as SQLAlchemy's own statements do; a row breaks a rule of the table, or Postgres went away.
    """
    if not rows:
        return
    names = list(rows[0])
    writers = [(name, _writer(table.c[name].type)) for name in names]
    lines = [
        "\t".join([r"\N" if (value := row[name]) is None else write(value) for name, write in writers]) for row in rows
    ]
    columns = ", ".join(f'"{name}"' for name in names)
    statement = f'COPY "{table.name}" ({columns}) FROM STDIN'
    driver: Any = (await conn.get_raw_connection()).driver_connection
    try:
        async with driver.cursor() as cursor, cursor.copy(statement) as copy:
            await copy.write("\n".join([*lines, ""]).encode())
    except psycopg.Error as error:
        raise as_ours(error, driver, conn.dialect) from error


def _writer(kind: Any) -> Callable[[Any], str]:
    if isinstance(kind, JSON):
        return _json
    if isinstance(kind, LargeBinary):
        return _bytes
    return _text if isinstance(kind, Text) else str


def _text(value: str) -> str:
    return value.translate(_ESCAPES)


def _json(value: Any) -> str:
    # As the driver writes it in a statement: what Postgres refuses there (NaN), it refuses here. Control characters are escaped.
    return json.dumps(value).replace("\\", "\\\\")


def _bytes(value: bytes) -> str:
    return "\\\\x" + value.hex()
