"""What does Prometheus see of the retention? Rows by table, of all runs together, and how the last one went."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.ext.asyncio import AsyncConnection

from app.retention import runs

OUTCOMES = ("done", "more", "failed", "lost")


class RetentionFigures(Collector):
    """Figures of the last look into Postgres: every maintenance process shows the same, so take the largest, not the sum."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._totals: dict[str, int] = {}
        self._last: runs.Run | None = None
        registry.register(self)

    async def look(self, conn: AsyncConnection) -> None:
        """Read them anew."""
        self._totals = await runs.totals(conn)
        self._last = next((each for each in await runs.newest(conn, limit=2) if each.ended_at), None)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: they are known once they were read."""
        return iter(())

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The values of the last look."""
        rows = CounterMetricFamily(
            "penstock_retention_rows_total", "Rows that the retention has deleted or emptied.", labels=["table"]
        )
        for table, number in self._totals.items():
            rows.add_metric([table], number)
        yield rows
        if self._last is None or self._last.ended_at is None:
            return
        ended = GaugeMetricFamily("penstock_retention_ended_timestamp_seconds", "When the last run ended.")
        ended.add_metric([], self._last.ended_at.timestamp())
        outcome = GaugeMetricFamily(
            "penstock_retention_outcome", "1 for the outcome of the last run.", labels=["outcome"]
        )
        for each in OUTCOMES:
            outcome.add_metric([each], float(each == self._last.outcome))
        yield from (ended, outcome)
