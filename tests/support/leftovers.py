"""Who is still connected when a test has ended? A worker that outlives its test takes the next one's jobs."""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, TypeVar

import psutil
import psycopg
import pytest
from redis import Redis

T = TypeVar("T")

GRACE_S = 10.0  # a client that has just hung up is on its way out, and its server may be held up
POLL_S = 0.002
BACKENDS = """
    SELECT pid, client_port, application_name, state, left(query, 200)
    FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'
"""


def assert_nobody_in_redis(client: Redis) -> None:
    """Fail if others are connected to `client`'s database, and go on being; hang up on them."""
    own, database = client.client_id(), str(client.connection_pool.connection_kwargs["db"])

    def others() -> list[dict[str, str]]:
        found: list[dict[str, str]] = client.client_list()
        return [each for each in found if each["db"] == database and each["id"] != str(own)]

    left = _those_that_stay(others)
    for each in left:
        client.client_kill_filter(_id=each["id"])
    _fail_of(
        "Redis",
        [
            f"{_owner_of(int(each['addr'].rpartition(':')[2]))}: name={each['name']!r}, "
            f"cmd={each['cmd']}, idle={each['idle']} s"
            for each in left
        ],
    )


def assert_nobody_in_postgres(admin: psycopg.Connection[Any], database: str) -> None:
    """Fail if somebody is connected to `database`, and goes on being."""
    left = _those_that_stay(lambda: admin.execute(BACKENDS, [database]).fetchall())
    _fail_of("Postgres", [f"{_owner_of(port)}: {name!r}, {state}: {query}" for _, port, name, state, query in left])


def _those_that_stay(others: Callable[[], list[T]]) -> list[T]:
    give_up_at = monotonic() + GRACE_S
    while (found := others()) and monotonic() < give_up_at:
        sleep(POLL_S)
    return found


def _owner_of(port: int) -> str:
    """The process that speaks from this port."""
    with suppress(psutil.Error):
        for each in psutil.net_connections("tcp"):
            if each.laddr.port == port and each.pid is not None:
                return f"pid {each.pid} ({' '.join(psutil.Process(each.pid).cmdline())})"
    return f"port {port}"


def _fail_of(server: str, left: list[str]) -> None:
    if left:
        pytest.fail(f"the test has ended, and these still speak to its {server}:\n" + "\n".join(left), pytrace=False)
