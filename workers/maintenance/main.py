"""`python -m workers.maintenance.main`: the repairer and the timekeeper, until SIGTERM or SIGINT."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from random import SystemRandom

import uvloop

import app.starting  # noqa: F401 - before all others
from app.clock import SystemClock
from app.db import create_engine
from app.errors import PenstockError
from app.garbage import collect_seldom
from app.probe import probe
from app.racing import race
from app.redis import create_redis
from app.settings import Settings, settings
from app.telemetry import configure_logging, emit
from app.webhooks.dispatch import connect_rq, dispatch_due, open_queue
from app.webhooks.nominate import Rooms
from workers.maintenance.batches import BatchKeeper
from workers.maintenance.keeper import Keeper
from workers.maintenance.meters import Meters
from workers.maintenance.retention import LOOK_EVERY_S, RetentionKeeper
from workers.maintenance.tidying import Tidier

log = logging.getLogger(__name__)


async def run(config: Settings) -> None:
    """Keep until a signal comes.

    Raises:
        Misconfigured: a server isn't configured.
    """
    db = create_engine(config, application_name="penstock-maintenance")
    redis = create_redis(config)
    meters = Meters(db)
    keeper = Keeper(config, SystemClock(), db, redis, SystemRandom(), meters)
    rq = connect_rq(config)
    queue, rooms = open_queue(rq), Rooms.of(config)

    async def dispatch() -> int:
        await dispatch_due(db, queue, rooms)
        return 0  # nothing was repaired

    batches = BatchKeeper(config, SystemClock(), db, redis)
    retention = RetentionKeeper(config, SystemClock(), db, redis, rq, meters.registry)
    rounds: dict[str, tuple[float, Callable[[], Awaitable[int]]]] = {
        "webhooks": (config.webhook_dispatch_every_s, dispatch),
        "tidy": (config.audit_every_s, Tidier(db, redis).round),
        "files": (config.audit_every_s, batches.forget),
        "retention": (LOOK_EVERY_S, retention.round),
    }
    keeping = asyncio.create_task(race(keeper.run(rounds), batches.run(keeper.outlook)))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, keeping.cancel)
    emit(log, logging.INFO, "maintenance_ready")
    try:
        async with probe(config.probe_host, config.probe_port, keeper.why_not_ready, meters.registry):
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
    finally:
        rq.close()
        await redis.aclose()
        await db.dispose()


def main() -> int:
    """The process's exit status: 0 after a signal, 1 after an error, which stands on stderr."""
    config = settings()
    configure_logging(config.log_level)
    collect_seldom()
    try:
        uvloop.run(run(config))
    except PenstockError as error:
        emit(log, logging.CRITICAL, "maintenance_failed", reason=error.detail)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
