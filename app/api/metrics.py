"""What does Prometheus read? GET /metrics: queues, waits and wanted workers as this process sees them, and its own admissions."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry

from app.jobs.states import TIERS
from app.observe.metrics import TEXT, AtScrape, Family, counter, exposition, family, histogram, preset
from app.quotas.pressure import REASONS

# Every reason that a submission may be decided by: present from the start, at 0.
DECISIONS: dict[str, tuple[str, ...]] = {
    "accepted": ("room", "fallback", "no_worker", "replay"),
    "refused": (*REASONS, "breaker", "budget", "rate", "tenant"),
}

router = APIRouter(tags=["health"])


class Metrics:
    """One API process's metrics, in a registry of its own. No label names a tenant: there may be any number."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.admissions = counter("penstock_admissions_total", self.registry)
        for decision, reasons in DECISIONS.items():
            preset(self.admissions, [decision], reasons)
        self.forecast_error = histogram("penstock_forecast_error_seconds", self.registry)
        preset(self.forecast_error, TIERS)

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
    pools = pools_now(runtime)
    shown = AtScrape(lambda: _shown(pools), runtime.metrics.registry)
    try:
        return Response(exposition(runtime.metrics.registry), media_type=TEXT)
    finally:
        runtime.metrics.registry.unregister(shown)


def _shown(pools: list[dict[str, object]]) -> Iterator[Family]:
    """The gauges of one scrape."""
    jobs, tokens = family("penstock_queue_jobs"), family("penstock_queue_tokens")
    waits = family("penstock_predicted_wait_seconds")
    wanted, workers = family("penstock_desired_replicas"), family("penstock_workers")
    for each in pools:
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
