"""Is everything compared after a restart of Redis, whatever goes wrong meanwhile?"""

from random import Random

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.embedded import EmbeddedRedis
from app.redis import create_redis
from app.settings import Settings
from tests.support.jobs import seed
from workers.maintenance.keeper import Keeper


async def test_a_comparison_that_failed_after_a_restart_of_redis_is_made_up_for(
    engine: AsyncEngine, settings: Settings, private_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both servers restart together, Postgres may be away still: the restart was forgotten with the first try."""
    await seed(engine)
    own = settings.model_copy(update={"redis_url": private_redis.url})
    tries = []

    async with create_redis(own) as redis:
        keeper = Keeper(own, SystemClock(), engine, redis, Random(1))

        async def audit() -> int:
            tries.append("audit")
            if len(tries) == 1:
                raise OperationalError("", {}, Exception("Postgres is away"))
            return 3

        monkeypatch.setattr(keeper, "audit", audit)
        assert await keeper.rebuild() == 0
        private_redis.stop()
        private_redis.start()
        with pytest.raises(OperationalError):
            await keeper.rebuild()
        assert await keeper.rebuild() == 3
        assert await keeper.rebuild() == 0
    assert len(tries) == 2
