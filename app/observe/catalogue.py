"""Which metrics are there? Each one once: name, type, labels, meaning, and which processes have it. docs/metrics.md documents them all."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Process = Literal["api", "worker", "maintenance", "webhooks"]

_WAIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200, 86_400)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)
_ERROR_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43_200)
_TRY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` is what Prometheus shows; of a histogram the part before `_bucket`, `_sum` and `_count`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    processes: tuple[Process, ...]
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert (self.kind == "counter") == self.name.endswith("_total")
        assert (self.kind == "histogram") == bool(self.buckets)
        assert not {"tenant", "tenant_id", "key", "job"} & set(self.labels), (
            "any number of them: a label would be endless"
        )


METRICS = (
    # What comes in
    Metric(
        "penstock_admissions_total", "counter", ("decision", "reason"),
        "Submissions by what became of them, and why.", ("api",),
    ),
    Metric("penstock_queue_jobs", "gauge", ("pool", "tier"), "Jobs that wait.", ("api",)),
    Metric("penstock_queue_tokens", "gauge", ("pool", "tier"), "Tokens that wait: prompt + n x max_tokens.", ("api",)),
    Metric(
        "penstock_predicted_wait_seconds", "gauge", ("pool", "tier"),
        "How long a new job of a new tenant's would wait behind all of its tier; absent where no rate is known.", ("api",),
    ),
    Metric("penstock_desired_replicas", "gauge", ("pool",), "Workers that the pool should have.", ("api",)),
    Metric("penstock_workers", "gauge", ("pool",), "Workers that take jobs.", ("api",)),
    Metric(
        "penstock_forecast_error_seconds", "histogram", ("tier",),
        "How far a job's start was from the first p50 that this process told, of jobs that were read again.", ("api",),
        _ERROR_BUCKETS,
    ),
    # What becomes of it
    Metric(
        "penstock_jobs_total", "counter", ("status", "tier", "model"),
        "Jobs that this process has ended.", ("api", "worker", "maintenance"),
    ),
    Metric(
        "penstock_queue_wait_seconds", "histogram", ("tier", "model"),
        "From when a job could run until a worker started it; once for each attempt.", ("worker",), _WAIT_BUCKETS,
    ),
    Metric(
        "penstock_time_to_first_token_seconds", "histogram", ("tier", "model"),
        "From a job's submission to its first token.", ("worker",), _WAIT_BUCKETS,
    ),
    Metric(
        "penstock_inter_token_seconds", "histogram", ("tier", "model"),
        "Between two tokens of a choice, as the engine brought them.", ("worker",), _TOKEN_BUCKETS,
    ),
    Metric(
        "penstock_e2e_seconds", "histogram", ("tier", "model"),
        "From a job's submission until its success was written.", ("worker",), _WAIT_BUCKETS,
    ),
    Metric(
        "penstock_given_back_total", "counter", ("cause", "model"),
        "Attempts that this worker ended without a result.", ("worker",),
    ),
    # The engine
    Metric("penstock_tokens_total", "counter", ("kind", "model"), "Tokens of the engine that runs now.", ("worker",)),
    Metric("penstock_running_sequences", "gauge", ("model",), "Sequences in the batch.", ("worker",)),
    Metric("penstock_waiting_sequences", "gauge", ("model",), "Sequences that the engine has and doesn't run.", ("worker",)),
    Metric("penstock_kv_usage_ratio", "gauge", ("model",), "Share of the KV pages that is in use.", ("worker",)),
    Metric(
        "penstock_prefix_cache_hit_ratio", "gauge", ("model",),
        "Share of the prompts' tokens that the prefix cache gave, since the engine started.", ("worker",),
    ),
    Metric("penstock_preemptions_total", "counter", ("model",), "Sequences that had to give up their pages.", ("worker",)),
    Metric("penstock_engine_steps_total", "counter", ("model",), "Steps of the engine that runs now.", ("worker",)),
    Metric("penstock_slow_steps_total", "counter", ("model",), "Steps that took longer than slow_step_s.", ("worker",)),
    # The promises
    Metric(
        "penstock_budget_drift_tokens", "gauge", (),
        "By how many tokens the budgets differ from their ledger; it has to be 0.", ("maintenance",),
    ),
    Metric(
        "penstock_dead_letters", "gauge", ("pool", "reason"),
        "Jobs that were given up and that nobody has dealt with.", ("maintenance",),
    ),
    Metric(
        "penstock_breaker_state", "gauge", ("model", "state"),
        "1 for the state that the model's breaker is in, 0 for the others.", ("maintenance",),
    ),
    Metric(
        "penstock_dependency_up", "gauge", ("dependency",), "Whether the server answered when it was last asked.",
        ("maintenance",),
    ),
    Metric("penstock_repairs_total", "counter", ("round",), "What maintenance's rounds have repaired.", ("maintenance",)),
    Metric("penstock_round_failures_total", "counter", ("round",), "Rounds of maintenance that failed.", ("maintenance",)),
    Metric(
        "penstock_webhook_deliveries_total", "counter", ("outcome",), "Tries of deliveries by what came of them.",
        ("webhooks",),
    ),
    Metric(
        "penstock_webhook_try_seconds", "histogram", ("outcome",), "How long a try took, the look-up of the name included.",
        ("webhooks",), _TRY_BUCKETS,
    ),
)  # fmt: skip

CATALOGUE = {each.name: each for each in METRICS}
