"""How does each test get a database of its own, in milliseconds? As a copy of one that was migrated once."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg.sql import SQL, Identifier

from tests.support.leftovers import assert_nobody_in_postgres

# Copying files, without the WAL of their pages, is the faster of the two ways where nothing is synced.
CREATE = "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY"
MEMORY = Path("/dev/shm")
ROOM = 4 << 30  # bytes: the servers of some sessions, and room to spare
_numbers = count(1)


def servers_folder() -> Path | None:
    """Where servers' data is best kept: in memory, if there is much of it, for a disk has other users; None is the usual place."""
    try:
        fits = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM
    except OSError:
        fits = False
    return MEMORY if fits else None


def with_database(url: str, name: str) -> str:
    """`url` with another database."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@contextmanager
def temporary_database(admin: psycopg.Connection, url: str, template: str = "template0") -> Iterator[str]:
    """`url` with a new copy of `template`, dropped at the end; who is still connected then fails the test.

    `DROP DATABASE` looks for connections every 100 ms: it isn't begun before all have gone.
    """
    name = f"test_{next(_numbers)}"
    admin.execute(SQL(CREATE).format(Identifier(name), Identifier(template)))
    try:
        yield with_database(url, name)
        assert_nobody_in_postgres(admin, name)
    finally:
        admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
