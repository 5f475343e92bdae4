"""Is a connection that was reset told as an error of Redis', also on the event loop that the API runs on?"""

import uvloop

from app.redis import Redis, RedisError, create_redis
from app.settings import Settings
from benchmarks.faults.link import Link

ROUNDS = 10


def test_on_uvloop_a_connection_that_was_reset_is_an_error_of_redis(redis_url: str) -> None:
    """It was a RuntimeError of the transport's, which no caller expects: a submission that was committed was a 500."""
    with Link(redis_url) as link:
        assert uvloop.run(resets(create_redis(Settings(redis_url=link.url)), link)) == ROUNDS


async def resets(client: Redis, link: Link) -> int:
    found = 0
    for _ in range(ROUNDS):
        await client.ping()
        link.refuse()
        try:
            await client.ping()
        except RedisError:
            found += 1
        link.heal()
    await client.aclose()
    return found
