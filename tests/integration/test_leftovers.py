"""Is a test told of whom it leaves behind? Whoever goes on speaking to its servers is named."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
import redis as sync_redis

from tests.support import leftovers


@contextmanager
def told_of(pattern: str) -> Iterator[None]:
    """Somebody is found and named, soon. Who has hung up is given the usual time to be gone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leftovers, "GRACE_S", 0.1)
        with pytest.raises(pytest.fail.Exception, match=pattern):
            yield


def test_who_stays_in_redis_is_named_and_hung_up_on(redis_url: str) -> None:
    with (
        sync_redis.Redis.from_url(redis_url) as looking,
        sync_redis.Redis.from_url(redis_url, client_name="forgotten") as left,
    ):
        left.ping()
        with told_of("name='forgotten'"):
            leftovers.assert_nobody_in_redis(looking)
        leftovers.assert_nobody_in_redis(looking)


def test_who_stays_in_postgres_is_named(database_url: str, postgres_admin: psycopg.Connection) -> None:
    name = urlsplit(database_url).path.strip("/")
    with psycopg.connect(database_url, application_name="forgotten") as left:
        left.execute("SELECT 42")
        with told_of("'forgotten', idle in transaction: SELECT 42"):
            leftovers.assert_nobody_in_postgres(postgres_admin, name)
    leftovers.assert_nobody_in_postgres(postgres_admin, name)
