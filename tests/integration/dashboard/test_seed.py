"""Does the benchmark's database still fit the schema, and is there every page that it opens?"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.redis import Redis
from benchmarks.pages.paths import pages
from benchmarks.pages.seed import POOLS, Size, fill
from tests.support.dashboard import Browser

SIZE = Size(jobs=1500, tenants=40)
ORPHANS = """
    SELECT (SELECT count(*) FROM jobs j LEFT JOIN tenants t ON t.id = j.tenant_id WHERE t.id IS NULL)
         + (SELECT count(*) FROM webhook_deliveries d LEFT JOIN webhook_endpoints e ON e.id = d.endpoint_id WHERE e.id IS NULL)
         + (SELECT count(*) FROM dead_letters d LEFT JOIN jobs j ON j.id = d.job_id AND j.status = 'dead' WHERE j.id IS NULL)
         + (SELECT count(*) FROM jobs j LEFT JOIN job_inputs i ON i.job_id = j.id WHERE i.job_id IS NULL)
         + (SELECT count(*) FROM attempts a LEFT JOIN workers w USING (incarnation) WHERE w.incarnation IS NULL)
"""


async def test_a_small_one_is_whole_and_each_page_opens(engine: AsyncEngine, redis: Redis, viewer: Browser) -> None:
    said: list[str] = []
    await fill(engine, redis, SIZE, said.append)
    assert any("1,500 of 1,500 jobs" in each for each in said)
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM jobs")) == SIZE.jobs
        assert await conn.scalar(text("SELECT count(*) FROM jobs WHERE status = 'queued'")) == SIZE.queued
        assert await conn.scalar(text(ORPHANS)) == 0
    assert sum([await redis.hlen(f"idx:{{{pool}}}") for pool in POOLS]) == SIZE.queued
    for name, path in (await pages(engine)).items():
        answer = await viewer.get(f"/admin{path}")
        assert answer.status_code == 200, (name, path)
