"""How good were the forecasts? What this process told, until it sees the start."""

from collections import OrderedDict
from datetime import datetime
from uuid import UUID

from app.api.metrics import Metrics
from app.jobs.forecast import Forecast
from app.jobs.read import JobView

_MOST_REMEMBERED = 10_000


class ForecastMemory:
    """The first forecast of each waiting job that this process told, so that its error is known when the start is seen."""

    def __init__(self) -> None:
        self._first_p50: OrderedDict[UUID, datetime] = OrderedDict()

    def remember(self, job_id: UUID, when: Forecast) -> None:
        """A forecast was given."""
        if when.start_p50 is not None and job_id not in self._first_p50:
            self._first_p50[job_id] = when.start_p50
            if len(self._first_p50) > _MOST_REMEMBERED:
                self._first_p50.popitem(last=False)

    def seen(self, job: JobView, metrics: Metrics) -> None:
        """A job was read; if it has started, its forecast's error is counted."""
        if job.started_at is not None and job.id in self._first_p50:
            error_s = abs((job.started_at - self._first_p50.pop(job.id)).total_seconds())
            metrics.forecast_error.labels(tier=job.tier).observe(error_s)
