"""What does Prometheus see of the retention? Rows by table, of all runs together, and how the last one went."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry

from app.observe.metrics import AtScrape, Family, family
from app.retention.runs import Look

OUTCOMES = ("done", "more", "failed", "lost")


class RetentionFigures:
    """Figures of the last look into Postgres: every maintenance process shows the same, so take the largest, not the sum."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seen = Look(is_due=False, totals={}, last_outcome=None, last_ended_at=None)
        AtScrape(self._shown, registry)

    def show(self, seen: Look) -> None:
        """These, from now on."""
        self._seen = seen

    def _shown(self) -> Iterator[Family]:
        rows = family("penstock_retention_rows_total")
        for table, number in self._seen.totals.items():
            rows.add_metric([table], number)
        outcome, ended = family("penstock_retention_outcome"), family("penstock_retention_ended_timestamp_seconds")
        if self._seen.last_ended_at is not None:
            ended.add_metric([], self._seen.last_ended_at.timestamp())
            for each in OUTCOMES:
                outcome.add_metric([each], float(each == self._seen.last_outcome))
        yield from (rows, outcome, ended)
