"""What does Prometheus read? GET /metrics: queues, waits and wanted workers as this process sees them, and its own admissions."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.quotas.pressure import REASONS

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
# Every reason that a submission may be decided by: present from the start, at 0.
DECISIONS: dict[str, tuple[str, ...]] = {
    "accepted": ("room", "fallback", "no_worker", "replay"),
    "refused": (*REASONS, "breaker", "budget", "rate", "tenant"),
}
_ERROR_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43_200)

router = APIRouter(tags=["health"])


class Metrics:
    """One API process's metrics, in a registry of its own. No label names a tenant: there may be any number."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.admissions = Counter(
            "penstock_admissions", "Submissions by what became of them, and why.", ["decision", "reason"],
            registry=self.registry,
        )  # fmt: skip
        for decision, reasons in DECISIONS.items():
            for reason in reasons:
                self.admissions.labels(decision, reason)
        self.forecast_error = Histogram(
            "penstock_forecast_error_seconds",
            "How far a job's start was from the first p50 that this process told, of jobs that were read again.",
            ["tier"], buckets=_ERROR_BUCKETS, registry=self.registry,
        )  # fmt: skip

    def count(self, decision: str, reason: str, *, num: int = 1) -> None:
        """A submission was decided, or `num` that came together. The reason must be a known one, so that none is born later than the process."""
        assert reason in DECISIONS[decision]
        self.admissions.labels(decision, reason).inc(num)

    def decided(self) -> dict[str, int]:
        """All that was counted so far, by `decision:reason`."""
        samples = [each for family in self.admissions.collect() for each in family.samples]
        return {
            f"{each.labels['decision']}:{each.labels['reason']}": int(each.value)
            for each in samples
            if each.name.endswith("_total")
        }


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus' text format; without a key, as /healthz: it names models and tiers, nobody's work."""
    # Asked here, not in a collector: a scrape shows the figures of one moment.
    from app.api.autoscale import pools_now
    from app.api.runtime import runtime_of

    runtime = runtime_of(request)
    shown = _Shown(pools_now(runtime))
    runtime.metrics.registry.register(shown)
    try:
        return Response(generate_latest(runtime.metrics.registry), media_type=_TEXT)
    finally:
        runtime.metrics.registry.unregister(shown)


class _Shown(Collector):
    """The gauges of one scrape."""

    def __init__(self, pools: list[dict[str, object]]) -> None:
        self._pools = pools

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("penstock_queue_jobs", "Jobs that wait.", labels=["pool", "tier"])
        tokens = GaugeMetricFamily(
            "penstock_queue_tokens", "Tokens that wait: prompt + n x max_tokens.", labels=["pool", "tier"]
        )
        waits = GaugeMetricFamily(
            "penstock_predicted_wait_seconds",
            "How long a new job of a new tenant's would wait behind all of its tier; absent where no rate is known.",
            labels=["pool", "tier"],
        )
        wanted = GaugeMetricFamily("penstock_desired_replicas", "Workers that the pool should have.", labels=["pool"])
        workers = GaugeMetricFamily("penstock_workers", "Workers that take jobs.", labels=["pool"])
        for each in self._pools:
            pool = str(each["pool"])
            wanted.add_metric([pool], _number(each["desired_replicas"]))
            workers.add_metric([pool], _number(each["replicas"]))
            tiers = each["tiers"]
            assert isinstance(tiers, dict)
            for tier, figures in tiers.items():
                jobs.add_metric([pool, tier], figures["jobs"])
                tokens.add_metric([pool, tier], figures["tokens"])
                if figures["predicted_wait_s"] is not None:
                    waits.add_metric([pool, tier], figures["predicted_wait_s"])
        yield from (jobs, tokens, waits, wanted, workers)


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
