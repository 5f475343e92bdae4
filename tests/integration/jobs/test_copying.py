"""Do rows that go by COPY arrive as those of a statement, whatever stands in them; and fail as those do?"""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, Column, Integer, LargeBinary, MetaData, Table, Text, Uuid, insert, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import is_outage
from app.jobs.copying import copy_rows

ROWS = Table(
    "copied", MetaData(),
    Column("key", Uuid, primary_key=True), Column("words", Text), Column("number", Integer, nullable=False),
    Column("raw", LargeBinary), Column("said", JSON), Column("known", JSONB(none_as_null=True)),
)  # fmt: skip
LETTERS = st.text(
    st.characters(exclude_characters="\x00", exclude_categories=["Cs"]) | st.sampled_from("\\\t\n\r\x0b\"'N.")
)
VALUES = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | LETTERS, st.lists, max_leaves=4)
DOCUMENTS = st.dictionaries(LETTERS, VALUES, max_size=3)
RECORDS = st.fixed_dictionaries(
    {
        "key": st.uuids(), "words": st.none() | LETTERS | st.just(r"\N"), "number": st.integers(-(2**31), 2**31 - 1),
        "raw": st.none() | st.binary(), "said": DOCUMENTS, "known": st.none() | DOCUMENTS,
    }
)  # fmt: skip


@pytest.fixture
async def table(engine: AsyncEngine) -> Table:
    async with engine.begin() as conn:
        await conn.run_sync(ROWS.create)
    return ROWS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(rows=st.lists(RECORDS, min_size=1, max_size=5, unique_by=lambda row: row["key"]))
async def test_copied_rows_are_those_that_a_statement_inserts(
    engine: AsyncEngine, table: Table, rows: list[dict[str, Any]]
) -> None:
    async with engine.connect() as conn:
        found = []
        for write in (lambda: conn.execute(insert(table), rows), lambda: copy_rows(conn, table, rows)):
            await conn.execute(text("TRUNCATE copied"))
            await write()
            found.append([tuple(row) for row in await conn.execute(select(table).order_by(table.c.key))])
        assert found[0] == found[1]
        assert found[1] == [
            tuple(row[column.name] for column in table.c) for row in sorted(rows, key=lambda row: row["key"])
        ]


async def test_a_text_may_hold_u_0000_where_json_may(engine: AsyncEngine, table: Table) -> None:
    row = {"key": "a" * 32, "words": None, "number": 1, "raw": None, "said": {"text": "a\x00b"}, "known": None}
    async with engine.begin() as conn:
        await copy_rows(conn, table, [row])
        assert await conn.scalar(select(table.c.said)) == row["said"]


@pytest.mark.parametrize(
    ("change", "error"),
    [({"number": None}, IntegrityError), ({"said": {"logprob": float("nan")}}, DataError), ({}, IntegrityError)],
    ids=["null", "NaN", "twice"],
)
async def test_a_refused_row_is_the_same_error_as_in_a_statement_and_undoes_all(
    engine: AsyncEngine, table: Table, change: dict[str, Any], error: type[Exception]
) -> None:
    row = {"key": "a" * 32, "words": None, "number": 1, "raw": None, "said": {}, "known": None}
    for write in (
        lambda conn, rows: conn.execute(insert(table), rows),
        lambda conn, rows: copy_rows(conn, table, rows),
    ):
        with pytest.raises(error) as refused:
            async with engine.begin() as conn:
                await write(conn, [row, row | {"key": "b" * 32 if change else "a" * 32} | change])
        assert not is_outage(refused.value)
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM copied")) == 0


async def test_a_server_that_ends_the_connection_in_a_copy_is_an_outage(engine: AsyncEngine, table: Table) -> None:
    row = {"key": "a" * 32, "words": None, "number": 1, "raw": None, "said": {}, "known": None}

    async def cut_off() -> None:
        async with engine.begin() as conn:
            pid = await conn.scalar(text("SELECT pg_backend_pid()"))
            async with engine.begin() as other:
                await other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            await copy_rows(conn, table, [row])

    with pytest.raises(DBAPIError) as ended:
        await cut_off()
    assert is_outage(ended.value)


async def test_a_connection_that_the_server_has_ended_is_not_handed_out(engine: AsyncEngine) -> None:
    async with engine.connect() as conn:
        pid = await conn.scalar(text("SELECT pg_backend_pid()"))
        async with engine.connect() as other:
            await conn.close()  # back into the pool
            await other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            async with engine.connect() as fresh:
                assert await fresh.scalar(text("SELECT pg_backend_pid()")) != pid
