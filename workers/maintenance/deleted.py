"""What does Prometheus see of the retention? Rows by table, of all runs together, and how the last one went."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncConnection

from app.observe.metrics import AtScrape, Family, family
from app.retention import runs

OUTCOMES = ("done", "more", "failed", "lost")


class RetentionFigures:
    """Figures of the last look into Postgres: every maintenance process shows the same, so take the largest, not the sum."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._totals: dict[str, int] = {}
        self._last: runs.Run | None = None
        AtScrape(self._shown, registry)

    async def look(self, conn: AsyncConnection) -> None:
        """Read them anew."""
        self._totals = await runs.totals(conn)
        self._last = next((each for each in await runs.newest(conn, limit=2) if each.ended_at), None)

    def _shown(self) -> Iterator[Family]:
        rows = family("penstock_retention_rows_total")
        for table, number in self._totals.items():
            rows.add_metric([table], number)
        outcome, ended = family("penstock_retention_outcome"), family("penstock_retention_ended_timestamp_seconds")
        if self._last is not None and self._last.ended_at is not None:
            ended.add_metric([], self._last.ended_at.timestamp())
            for each in OUTCOMES:
                outcome.add_metric([each], float(each == self._last.outcome))
        yield from (rows, outcome, ended)
