"""Does every process of ours work with a Redis that only a unix socket leads to?"""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import redis as sync_redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.embedded import EmbeddedRedis
from app.redis import create_redis
from app.settings import Settings
from tests.support.api import make_tenant
from tests.support.api_process import running_process
from tests.support.audit import assert_audit_clean
from tests.support.receiver import receiver
from tests.support.stack import MAINTENANCE, NULL_ENGINE, QUICK, WORKER, running, wait_for

WEBHOOKS = "workers.webhooks.main"
LOCAL = {"PENSTOCK_WEBHOOK_ALLOW_LOCAL": "true"}


async def test_a_job_its_stream_and_its_webhook_over_a_unix_socket(
    engine: AsyncEngine,
    settings: Settings,
    private_redis: EmbeddedRedis,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """No process could connect: TCP's keepalive was asked of the socket, which has none."""
    url = private_redis.socket_url.replace("db=0", "db=3")
    environment = environment | {"REDIS_URL": url}
    tenant = await make_tenant(engine, settings, "acme")
    async with receiver() as hooks:
        body = {"prompt": "Once upon a time", "max_tokens": 8, "webhook": {"url": hooks.url("/hook")}}
        with (
            running(WORKER, environment, tmp_path, **NULL_ENGINE, PENSTOCK_NULL_STEP_S="0.1"),
            running(MAINTENANCE, environment, tmp_path, **LOCAL),
            running(WEBHOOKS, environment, tmp_path, **LOCAL),
            running_process(environment | QUICK | LOCAL, tmp_path) as api,
        ):
            await wait_for(engine, "SELECT count(*) = 1 FROM workers WHERE state = 'ready'")
            async with httpx.AsyncClient(base_url=await api.url(), timeout=60, headers=tenant.auth) as client:
                accepted = await client.post("/v1/jobs", json=body)
                path = f"/v1/jobs/{accepted.json()['id']}"
                events = await client.get(f"{path}/events")  # as they come, to the last one
                assert (accepted.status_code, events.text.count("event: tokens") > 1) == (202, True), events.text
                assert (await client.get(path)).json()["status"] == "succeeded"
                assert (await client.get("/readyz")).status_code == 200
            (hook,) = await hooks.wait(1, timeout_s=60)
            assert hook.path == "/hook"
            await wait_for(engine, "SELECT count(*) = 1 FROM webhook_deliveries WHERE status = 'delivered'")
            told = _doctor(environment)
            with sync_redis.Redis.from_url(private_redis.url) as admin:
                clients = [each for each in admin.client_list() if each["db"] == "3"]
    assert "redis.sock" in told
    assert private_redis.password not in told
    assert len(clients) >= 4
    assert {each["addr"].rpartition(":")[2] for each in clients} == {"0"}, "none came over TCP"
    async with create_redis(settings.model_copy(update={"redis_url": url})) as redis:
        await assert_audit_clean(engine, redis)


def _doctor(environment: dict[str, str]) -> str:
    """Its line about Redis."""
    ran = subprocess.run(
        [sys.executable, "-m", "app.cli", "doctor"],
        env=os.environ | environment | {"PENSTOCK_ENGINE": "null", "COLUMNS": "300"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (line,) = [each for each in ran.stdout.splitlines() if each.split()[1:2] == ["redis"]]
    assert line.startswith("ok"), ran.stdout
    return line
