"""`python -m workers.generation.main`: one generation worker, until SIGTERM or SIGINT drains it."""

import asyncio
import logging
import signal
import sys
from random import SystemRandom

import uvloop

import app.starting  # noqa: F401 - before all others
from app.clock import SystemClock
from app.db import create_engine
from app.errors import PenstockError
from app.garbage import collect_seldom
from app.observe.tracing import open_tracing
from app.probe import probe
from app.redis import create_redis
from app.settings import Settings, settings
from app.telemetry import configure_logging, emit
from workers.engine.errors import EngineError, EngineStartFailed
from workers.generation.supervisor import Supervisor

log = logging.getLogger(__name__)


async def run(config: Settings) -> None:
    """Work until a signal comes.

    Raises:
        PenstockError: the configuration isn't usable.
        EngineStartFailed: the model can't be loaded.
    """
    db = create_engine(config, application_name="penstock-worker")
    redis = create_redis(config)
    tracing = open_tracing(config, "penstock-worker")
    supervisor = Supervisor(config, SystemClock(), db, redis, SystemRandom(), tracing)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.drain)
    try:
        async with probe(config.probe_host, config.probe_port, supervisor.why_not_ready, supervisor.meters.registry):
            await supervisor.run()
    finally:
        await redis.aclose()
        await db.dispose()
        if tracing is not None:
            await tracing.close()


def main() -> int:
    """The process's exit status: 0 after a drain, 1 after an error, which stands on stderr."""
    config = settings()
    configure_logging(config.log_level)
    collect_seldom()
    try:
        uvloop.run(run(config))
    except (PenstockError, EngineError) as error:
        tail = error.log_tail[-480:] if isinstance(error, EngineStartFailed) else ""
        emit(log, logging.CRITICAL, "worker_failed", reason=str(error), log_tail=tail)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
