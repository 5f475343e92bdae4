"""How do we talk to Postgres? One metadata, one engine a process, transactions opened at the edge."""

import select
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import DateTime, Dialect, MetaData, TextClause, event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.settings import Settings

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Timestamp = DateTime(timezone=True)
Statement = tuple[TextClause, Mapping[str, Any]]  # and its values


def create_engine(settings: Settings, *, application_name: str) -> AsyncEngine:
    """The process's connection pool. Each session speaks UTC; no statement outlives the timeout unseen.

    Raises:
        Misconfigured: no database is configured.
    """
    engine = create_async_engine(
        settings.sqlalchemy_url,
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=settings.database_timeout_s,
        hide_parameters=True,  # an error's text may end in a log: prompts may not
        connect_args={
            "application_name": application_name,
            "connect_timeout": max(2, int(settings.database_timeout_s)),
            "options": "-c timezone=UTC -c statement_timeout=60s -c lock_timeout=20s"
            " -c idle_in_transaction_session_timeout=8s",
            "keepalives_idle": 10,
            "keepalives_interval": 3,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        },
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def looking(engine: AsyncEngine) -> AsyncEngine:
    """The same pool for single statements that need no transaction: one round trip each, instead of three with BEGIN and COMMIT.

    Make it once and keep it: the making costs more than it saves.
    """
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def _refuse_closed(connection: Any, *_: Any) -> None:
    """Take no connection out of the pool whose server has ended it. That costs no round trip, as a ping would.

    An idle connection has nothing to read: what there is, is the server's farewell, or the end of the stream.
    """
    driver = connection.driver_connection
    poll = select.poll()
    if not driver.closed:
        poll.register(driver.pgconn.socket, select.POLLIN)
    if driver.closed or poll.poll(0):
        raise DisconnectionError("the server has ended this connection")


# SQLSTATE classes and codes after which the same again may work: connection, rollback, resources (a full disk too), locks,
# an operator's or a time-out's cancel, input and output, a server that is read-only for the time of a failover.
_PASSING = ("08", "40", "53", "55", "57", "58", "25006", "25P03")


def is_outage(error: BaseException) -> bool:
    """Whether this says that Postgres is away or overtaxed, so that the same again may work, rather than that it refused."""
    if isinstance(error, DBAPIError):
        return has_lost_connection(error) or str(getattr(error.orig, "sqlstate", "")).startswith(_PASSING)
    return isinstance(error, OSError | PoolTimeout)


def has_lost_connection(error: BaseException) -> bool:
    """Whether this says that Postgres went away, be it for a moment."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, OSError)
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    is_about_connection = isinstance(error, OperationalError | InterfaceError)
    return is_about_connection and (state is None or state.startswith(("08", "57P")))


def storable(value: Any) -> Any:
    """A JSON value as JSONB can hold it: U+0000, which it can't, is replaced."""
    if isinstance(value, str):
        return value.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, dict):
        return {storable(key): storable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [storable(each) for each in value]
    return value


async def in_one_trip(conn: AsyncConnection, statements: Sequence[Statement]) -> list[list[Any]]:
    """The rows of each of these statements (none of one that gives none back), which Postgres runs one after the other in the transaction of `conn`, by one round trip.

    Where the transaction hasn't begun yet, its BEGIN goes along. The first one's failure is the failure of all.

    Raises:
        DBAPIError: as SQLAlchemy's own statements do.
    """
    driver: Any = (await conn.get_raw_connection()).driver_connection
    try:
        async with driver.pipeline():
            cursors = [driver.cursor(row_factory=namedtuple_row) for _ in statements]
            for cursor, (statement, values) in zip(cursors, statements, strict=True):
                await cursor.execute(compiled(statement, conn.dialect), values)
        return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]
    except psycopg.Error as error:
        raise as_ours(error, driver, conn.dialect) from error


@lru_cache
def compiled(statement: TextClause, dialect: Dialect) -> str:
    """The statement as the driver takes it, for those that go past SQLAlchemy."""
    return str(statement.compile(dialect=dialect))


def as_ours(error: psycopg.Error, driver: Any, dialect: Dialect) -> DBAPIError:
    """An error of the driver in the form that SQLAlchemy gives it, for statements that went past it."""
    found = DBAPIError.instance(
        None, None, error, psycopg.Error,
        hide_parameters=True, connection_invalidated=bool(driver.closed), dialect=dialect,
    )  # fmt: skip
    assert isinstance(found, DBAPIError)
    return found


async def database_now(conn: AsyncConnection) -> datetime:
    """Postgres' clock: the only one that leases and deadlines believe."""
    result: Any = await conn.scalar(text("SELECT clock_timestamp()"))
    assert isinstance(result, datetime)
    return result
