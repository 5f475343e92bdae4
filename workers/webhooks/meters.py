"""What does a webhook worker count? Its tries: what came of them, and how long they took."""

from typing import get_args

from prometheus_client import CollectorRegistry

from app.observe.metrics import counter, histogram, preset
from app.webhooks.retries import Outcome


class Meters:
    """One webhook worker's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._deliveries = counter("penstock_webhook_deliveries_total", self.registry)
        self._seconds = histogram("penstock_webhook_try_seconds", self.registry)
        for each in (self._deliveries, self._seconds):
            preset(each, get_args(Outcome))

    def tried(self, outcome: Outcome, duration_s: float) -> None:
        """A try was made, and what came of it is written down."""
        self._deliveries.labels(outcome).inc()
        self._seconds.labels(outcome).observe(duration_s)
