"""`python -m workers.webhooks.main`: one webhook worker, until SIGTERM or SIGINT; deliveries that are under way are finished.

More of them, here or elsewhere, share the work; one has room for `webhook_concurrency` deliveries at once.
"""

import asyncio
import logging
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import SystemRandom

from app.clock import SystemClock
from app.db import create_engine
from app.errors import PenstockError
from app.observe.tracing import open_tracing
from app.probe import probe
from app.settings import Settings, settings
from app.telemetry import configure_logging, emit
from app.webhooks.dispatch import connect_rq, open_queue
from workers.webhooks.courier import Courier
from workers.webhooks.deliver import give_to
from workers.webhooks.meters import Meters
from workers.webhooks.rq_worker import DeliveryWorker

log = logging.getLogger(__name__)


async def run(config: Settings) -> None:
    """Deliver until a signal comes.

    Raises:
        PenstockError: the configuration isn't usable.
    """
    loop = asyncio.get_running_loop()
    # For RQ's thread and for look-ups: a name server that hangs must not hold up other names.
    loop.set_default_executor(ThreadPoolExecutor(config.webhook_concurrency + 1, thread_name_prefix="webhooks"))
    db = create_engine(config, application_name="penstock-webhooks")
    redis = connect_rq(config)
    try:
        meters, tracing = Meters(), open_tracing(config, "penstock-webhooks")
        courier = Courier(config, SystemClock(), db, SystemRandom(), meters=meters, tracing=tracing)
        worker = DeliveryWorker(open_queue(redis))
        give_to(courier)

        def stop(number: int) -> None:
            emit(log, logging.INFO, "draining", signal=signal.Signals(number).name)
            worker.stopping = True
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)  # a second one ends at once

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        emit(log, logging.INFO, "webhook_worker_started", concurrency=config.webhook_concurrency)
        try:
            why = partial(_why_not_ready, worker)
            async with probe(config.probe_host, config.probe_port, why, meters.registry):
                await loop.run_in_executor(None, worker.listen)
        finally:
            worker.stopping = True
            await courier.drain()
            give_to(None)
            if tracing is not None:
                await tracing.close()
    finally:
        redis.close()
        await db.dispose()


def _why_not_ready(worker: DeliveryWorker) -> str | None:
    return "draining" if worker.stopping else None


def main() -> int:
    """The process's exit status: 0 after a drain, 1 after an error, which stands on stderr."""
    config = settings()
    configure_logging(config.log_level)
    for name in ("rq.worker", "rq.job", "rq.queue"):  # RQ sets its own to INFO: some lines for each job
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        asyncio.run(run(config))
    except PenstockError as error:
        emit(log, logging.CRITICAL, "webhook_worker_failed", error=error, reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
