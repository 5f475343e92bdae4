"""How does this process take jobs from RQ? One at a time, in a thread, each handed over at once.

RQ's own workers make one job at a time, each in a fork or each in the way of the next: an endpoint that takes 20 s to answer would hold a
whole process. Here a job of RQ's is only the hand-over to the courier, which has hundreds of deliveries under way; RQ needs no worker more.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout
from rq.job import Job
from rq.timeouts import BaseDeathPenalty
from rq.utils import now
from rq.worker import WorkerStatus

from app.redis import RedisError
from app.telemetry import emit
from app.webhooks.dispatch import FUNCTION
from workers.webhooks.deliver import deliver

log = logging.getLogger(__name__)

LISTEN_S = 1  # also the longest that a stop waits
TTL_S = 30  # RQ waits for Redis 5 s less than that


class DeliveryJob(Job):
    """RQ's job, but it can only be a delivery: whoever writes to Redis can't name another function for us to call."""

    @property
    def func(self) -> Callable[..., Any]:
        """`deliver`.

        Raises:
            ValueError: the job is something else.
        """
        if self.func_name != FUNCTION:
            raise ValueError("not a delivery")
        return deliver

    success_callback = failure_callback = stopped_callback = None

    def send_webhooks(self, *args: Any, **kwargs: Any) -> None:
        """RQ's own webhooks aren't used."""


class NoTimeout(BaseDeathPenalty):
    """Tries have their own timeout; RQ's works by SIGALRM, in the main thread only."""

    def setup_death_penalty(self) -> None:
        """Nothing."""

    def cancel_death_penalty(self) -> None:
        """Nothing."""


class DeliveryWorker(SimpleWorker):
    """An RQ worker (`rq info` shows it) that listens until `stopping` and outlives a Redis that goes away."""

    job_class = DeliveryJob
    death_penalty_class = NoTimeout
    log_job_description = False
    log_result_lifespan = False

    def __init__(self, queue: Queue) -> None:
        super().__init__(
            [queue], connection=queue.connection, serializer=queue.serializer, worker_ttl=TTL_S, prepare_for_work=False
        )
        self.hostname, self.pid = socket.gethostname(), os.getpid()
        self.stopping = False

    def listen(self) -> None:
        """Take jobs until `stopping`; what was taken is handed over when this returns."""
        born = False
        while not self.stopping:
            try:
                if not born:
                    self.register_birth()  # type: ignore[no-untyped-call]
                    self.set_state(WorkerStatus.IDLE)
                    born = True
                self._take_one()
            except DequeueTimeout:
                continue
            except RedisError as error:
                emit(log, logging.WARNING, "redis_away", error=error)
                time.sleep(LISTEN_S)
            except Exception as error:  # noqa: BLE001  the edge of one job: an entry that RQ can't read stops nobody
                emit(log, logging.ERROR, "rq_job_unreadable", error=error)
                self._throw_away(getattr(error, "job_id", None))
        if born:
            self._bury()

    def _take_one(self) -> None:
        if self.should_run_maintenance_tasks:
            self.last_cleaned_at = now()  # type: ignore[assignment]  # first, so that what fails here isn't tried again at once
            self.run_maintenance_tasks()  # type: ignore[no-untyped-call]
        self.heartbeat()
        found = self.queue_class.dequeue_any(
            self.queues,
            LISTEN_S,
            connection=self.connection,
            job_class=self.job_class,
            serializer=self.serializer,
            death_penalty_class=self.death_penalty_class,
        )
        if found is not None:
            self._hand_over(found[0])

    def _hand_over(self, job: Job) -> None:
        """What RQ's own worker does beside that, a dozen round trips of registries and results, is for jobs that have a result."""
        try:
            job.func(*job.args)
        finally:
            self._throw_away(job.id)

    def _throw_away(self, job_id: str | None) -> None:
        """Forget an entry. If it was a delivery that didn't begin, it is due again."""
        if job_id is None:
            return
        try:
            with self.connection.pipeline(transaction=False) as pipe:
                pipe.delete(self.job_class.key_for(job_id))
                pipe.lrem(self.queues[0].intermediate_queue_key, 0, job_id)
                pipe.execute()
        except RedisError as error:
            emit(log, logging.WARNING, "redis_away", error=error)

    def _bury(self) -> None:
        try:
            self.register_death()  # type: ignore[no-untyped-call]
        except RedisError as error:
            emit(log, logging.WARNING, "redis_away", error=error)
