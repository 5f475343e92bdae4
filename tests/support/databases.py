"""How does each test get a database of its own, in milliseconds? As a copy of one that was migrated once."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from urllib.parse import urlsplit

import psycopg
from psycopg.sql import SQL, Identifier

# Copying files, without the WAL of their pages, is the faster of the two ways where nothing is synced.
CREATE = "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY"
_numbers = count(1)


def with_database(url: str, name: str) -> str:
    """`url` with another database."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@contextmanager
def temporary_database(server_url: str, template: str = "template0") -> Iterator[str]:
    """The url of a new copy of `template`, dropped at the end whoever is still connected."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(SQL(CREATE).format(Identifier(name), Identifier(template)))
        try:
            yield with_database(server_url, name)
        finally:
            admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
