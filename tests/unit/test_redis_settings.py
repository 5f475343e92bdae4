"""Which addresses of Redis are refused before anybody connects, and does the refusal name the setting and no secret?"""

import pytest

from app.errors import Misconfigured
from app.redis import create_redis
from app.settings import Settings
from app.webhooks.dispatch import connect_rq


@pytest.mark.parametrize(
    "url",
    [
        "redis.example:6379",
        "http://:secret@redis.example",
        "redis://:secret@host:port/0",
        "unix:///run/redis.sock?db=secret",
        "unix://run/secret.sock",  # redis-py would go to /secret.sock
        "unix://:secret@",
        "redis://[secret",
    ],
)
def test_what_is_no_address_of_redis_is_refused_by_every_client(url: str) -> None:
    for connect in (create_redis, connect_rq):
        with pytest.raises(Misconfigured, match=r"^REDIS_URL must look like .*unix:///absolute/path") as refused:
            connect(Settings(redis_url=url))
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://:p%40ss@[::1]:6379/7",
        "rediss://user:pass@h:6380/0?ssl_cert_reqs=none",
        "unix:///run/a@b.sock",
        "unix://user:pass@/run/redis.sock?db=3",
    ],
)
def test_every_form_that_redis_py_knows_is_taken(url: str) -> None:
    pool = create_redis(Settings(redis_url=url)).connection_pool
    pool.make_connection()  # its options are the ones that its kind of connection has
    connect_rq(Settings(redis_url=url)).connection_pool.make_connection()
