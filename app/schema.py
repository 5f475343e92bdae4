"""Is the schema the one that this code wants, and how does it get there? Alembic's migrations are the only way."""

import time
from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, create_engine, text

import app.batches.tables
import app.files.tables
import app.jobs.tables
import app.operators.tables
import app.quotas.tables
import app.retention.tables
import app.webhooks.tables
from app.db import metadata
from app.settings import Settings

ALL_TABLES: tuple[object, ...] = (
    app.jobs.tables,
    app.quotas.tables,
    app.operators.tables,
    app.webhooks.tables,
    app.files.tables,
    app.batches.tables,
    app.retention.tables,
)
MIGRATION_LOCK = 0x70656E73  # "pens": two processes that migrate at once take turns
_TURN_S = 0.1


def full_metadata() -> MetaData:
    """The metadata with every room's tables in it."""
    assert ALL_TABLES
    return metadata


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; with `connection` the migrations run on it."""
    config = Config(str(Path(str(files("migrations"))) / "alembic.ini"))
    config.attributes["connection"] = connection
    return config


def migrate(settings: Settings, revision: str = "head") -> str | None:
    """Bring the database to `revision`, one process at a time; return the revision that it has then.

    Raises:
        Misconfigured: no database is configured.
    """
    engine = create_engine(settings.sqlalchemy_url)
    try:
        with engine.connect() as connection:
            _take_turns(connection)
            try:
                command.upgrade(alembic_config(connection), revision)
                connection.commit()
                return MigrationContext.configure(connection).get_current_revision()
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
                connection.commit()
    finally:
        engine.dispose()


def _take_turns(connection: Connection) -> None:
    """Take the lock. Who waited for it within a statement would hold a snapshot, and an index that the one before builds
    CONCURRENTLY waits for those."""
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": MIGRATION_LOCK}):
        connection.commit()
        time.sleep(_TURN_S)
    connection.commit()


def current_revision(settings: Settings) -> str | None:
    """The revision that the database has; None where it was never migrated.

    Raises:
        Misconfigured: no database is configured.
    """
    engine = create_engine(settings.sqlalchemy_url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
