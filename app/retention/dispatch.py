"""How does a run get to whoever makes it? As an RQ job with JSON arguments; that there is one at a time, Postgres sees to."""

from redis import Redis as SyncRedis
from rq import Queue
from rq.serializers import JSONSerializer

QUEUE_NAME = "retention"
FUNCTION = "workers.maintenance.retention.retain"  # by name: the control plane never imports workers
SCHEDULE = "schedule"
_WAITS_S = 3600  # for somebody to take it
_MOST_QUEUED = 10  # of those that operators ask for


def open_queue(redis: SyncRedis) -> Queue:
    """RQ's queue of runs."""
    return Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer, default_timeout=-1)


def enqueue_run(queue: Queue, asked_by: str) -> bool:
    """Ask for a run; False where so many wait that another one would change nothing.

    Raises:
        redis.RedisError: Redis is away.
    """
    if queue.count >= (1 if asked_by == SCHEDULE else _MOST_QUEUED):
        return False
    queue.enqueue_call(FUNCTION, args=(asked_by,), ttl=_WAITS_S, timeout=-1, result_ttl=0, failure_ttl=_WAITS_S)
    return True
