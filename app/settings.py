"""Which settings are there? Each one once: name with unit, default, bounds. docs/configuration.md documents them all."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
_ISSUER = re.compile(
    r"(https://[a-z0-9.-]+|https://\[[0-9a-f:]+\]|http://(localhost|127\.0\.0\.1|\[::1\]))(:\d{1,5})?(/[^\s?#@\\]*)?",
    re.IGNORECASE,
)


class Settings(BaseSettings):
    """Read from the environment: PENSTOCK_<NAME>; the servers' addresses also from DATABASE_URL and REDIS_URL."""

    model_config = SettingsConfigDict(
        env_prefix="PENSTOCK_", extra="ignore", frozen=True, populate_by_name=True, hide_input_in_errors=True
    )

    # Servers
    database_url: str | None = Field(
        None,
        validation_alias=AliasChoices("PENSTOCK_DATABASE_URL", "DATABASE_URL"),
        description="Postgres, as postgresql://user:password@host:port/database. Unset: `penstock up` starts an embedded one.",
    )
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("PENSTOCK_REDIS_URL", "REDIS_URL"),
        description="Redis >= 6.2, as redis://host:port/db or unix:///path?db=0. Unset: `penstock up` starts an embedded one.",
    )
    data_dir: Path = Field(Path(".penstock"), description="Where embedded servers, logs and generated secrets live.")
    database_pool_size: int = Field(10, ge=1, le=1000, description="Postgres connections that one process may hold.")
    database_timeout_s: Seconds = Field(
        10.0, description="How long to wait for a connection from the pool, and for one to open."
    )
    redis_timeout_s: Seconds = Field(5.0, description="How long one Redis command may take.")

    # API
    api_host: str = Field("127.0.0.1", description="Address that the API binds to.")
    api_port: Port = Field(8000, description="Port that the API binds to; 0 takes a free one.")
    probe_host: str = Field("127.0.0.1", description="Address that the probes of workers and maintenance bind to.")
    probe_port: Port | None = Field(
        None,
        description="Port on which a worker or maintenance answers /healthz and /readyz; 0 takes a free one. Unset: none.",
    )
    key_pepper: SecretStr = Field(
        SecretStr("development-only"),
        description="Secret mixed into the hash of each API key. Changing it makes all keys invalid.",
    )
    max_body_bytes: int = Field(8 * 2**20, ge=1024, le=2**30, description="Largest request body; more is a 413.")
    max_wait_s: Seconds = Field(60.0, description="Longest `Prefer: wait` that is honoured.")
    max_n: int = Field(16, ge=1, le=128, description="Most choices (`n`) of one job.")
    max_stop: int = Field(16, ge=1, le=64, description="Most stop strings of one job.")
    max_stop_chars: int = Field(64, ge=1, le=1024, description="Longest stop string, in characters.")
    max_schema_bytes: int = Field(
        65_536, ge=1024, le=262_144, description="Longest JSON schema, list of choices or grammar of one job, in bytes."
    )
    max_schema_depth: int = Field(32, ge=1, le=128, description="How deep a JSON schema may be nested.")
    max_regex_chars: int = Field(4096, ge=1, le=65_536, description="Longest regex of one job, in characters.")
    max_choices: int = Field(1000, ge=1, le=100_000, description="Most texts that an output may be chosen from.")
    max_metadata_pairs: int = Field(16, ge=0, le=256, description="Most metadata pairs of one job.")
    max_logprobs: int = Field(
        100_000,
        ge=21,
        le=100_000_000,
        description="Most log-probabilities of one job: n x max_tokens x (logprobs + 1). Their JSON is large.",
    )
    default_max_tokens: int = Field(
        256, ge=1, le=1_000_000, description="Output tokens where a job doesn't say `max_tokens`."
    )
    default_model: str | None = Field(
        None, description="Model for jobs that don't name one. Unset: the only one there is, else an error."
    )
    page_size: int = Field(
        20, ge=1, le=100, description="Jobs a page where the caller doesn't say `limit` (at most 100)."
    )
    rate_local_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of each rate limit that one API process admits by itself while Redis is away.",
    )
    tokenize_threads: int = Field(2, ge=1, le=64, description="Threads of one API process that count tokens.")
    idempotency_ttl_s: Seconds = Field(86_400.0, description="How long an Idempotency-Key is kept after its job ended.")

    # Jobs
    max_attempts: int = Field(
        3, ge=1, le=100, description="Attempts that may fail by a transient error before a job is dead."
    )
    max_worker_losses: int = Field(10, ge=1, le=1000, description="Lost workers that a job survives before it is dead.")
    max_solo_crashes: int = Field(
        2, ge=2, le=100, description="Engines that may die while they run nothing but the job, before it is dead."
    )
    retry_base_s: Seconds = Field(
        1.0, description="Backoff after the first failed attempt (full jitter, doubled each time)."
    )
    retry_cap_s: Seconds = Field(300.0, description="Longest backoff between attempts.")
    event_ttl_s: Seconds = Field(3600.0, description="How long a job's token events stay in Redis after the last one.")
    event_max_entries: int = Field(10_000, ge=100, le=1_000_000, description="Most entries of one job's event stream.")
    event_interval_s: Seconds = Field(0.05, description="Tokens of one job are published at most this often.")
    unread_event_interval_s: Seconds = Field(
        1.0,
        description="The same, of a job that nobody reads now: then it is only a checkpoint.",
    )

    # Streams
    stream_max_readers: int = Field(
        5000, ge=1, le=1_000_000, description="Streams that may be read from one API process at once."
    )
    stream_buffer_bytes: int = Field(
        65_536, ge=4096, le=2**26, description="What waits in memory for one reader; the rest stays in Redis."
    )
    stream_heartbeat_s: Seconds = Field(15.0, description="A stream that has nothing to tell sends a comment so often.")
    output_retention_s: float | None = Field(
        None,
        gt=0,
        le=315_360_000,
        description="How long a finished job's output is kept, and its stream can be read. Unset: for ever.",
    )
    stream_stall_s: Seconds = Field(30.0, description="A reader that takes nothing for so long is cut off.")

    # Files and batches
    max_file_bytes: int = Field(
        200 * 2**20, ge=1024, le=2**40, description="Largest file that may be uploaded, in bytes; more is a 413."
    )
    max_tenant_file_bytes: int = Field(
        50 * 2**30, ge=1024, le=2**50, description="Most bytes that the files of one tenant may have together."
    )
    file_ttl_s: Seconds = Field(2_592_000.0, description="How long files that batches have written are kept.")
    max_batch_lines: int = Field(50_000, ge=1, le=10_000_000, description="Most lines of a batch's input file.")
    max_batch_window_s: Seconds = Field(
        1_209_600.0, description="Longest `completion_window` of a batch, and furthest deadline."
    )
    batch_window_lines: int = Field(
        2000, ge=1, le=100_000, description="Most lines of one batch that wait in the queue or run at a time."
    )
    batch_every_s: Seconds = Field(0.2, description="How often batches in progress are looked at.")

    # Retention
    retention_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="Ended jobs and all that belongs to them are deleted so many days after their end. Unset: kept for ever.",
    )
    usage_retention_days: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="Bills of deleted jobs are summed up by day after so many days. Unset: kept row by row for ever.",
    )
    worker_retention_days: int = Field(
        30, ge=1, le=36_500, description="For how many days it is known which workers there were."
    )
    retention_every_s: Seconds = Field(60.0, description="How often a run of the retention begins.")
    retention_run_s: Seconds = Field(
        300.0, description="A run stops after so long and leaves the rest to the next one."
    )

    # Leases and repair
    lease_ttl_s: Seconds = Field(15.0, description="A worker that hasn't renewed for so long is dead to the others.")
    lease_renew_s: Seconds = Field(3.0, description="How often a worker renews its lease.")
    lease_fence_s: Seconds = Field(
        12.0, description="A worker that couldn't renew for so long stops its engine by itself."
    )
    reap_every_s: Seconds = Field(2.0, description="How often expired leases are looked for.")
    sweep_every_s: Seconds = Field(2.0, description="How often lost enqueues are looked for.")
    sweep_after_s: Seconds = Field(10.0, description="A job that is queued this long must be known to Redis.")
    audit_every_s: Seconds = Field(60.0, description="How often all queued jobs are compared with Redis.")
    expire_every_s: Seconds = Field(1.0, description="How often deadlines and due retries are looked for.")
    renominate_after_s: Seconds = Field(
        30.0, description="A nomination that was claimed and not decided for so long is put back."
    )

    # Fairness
    aging_s: Seconds = Field(
        60.0, description="A tier with waiting work that had no turn for so long gets one, out of turn."
    )

    # Circuit breakers
    breaker_window_s: Seconds = Field(300.0, description="How far back a model's attempts count for its error rate.")
    breaker_min_attempts: int = Field(
        5, ge=1, le=100_000, description="Engine deaths, broken streams and successes before a breaker may open."
    )
    breaker_error_rate: float = Field(
        0.5, gt=0, le=1, description="Share of deaths and broken streams at which a model takes no new jobs."
    )
    breaker_open_s: float = Field(
        30.0, ge=1, le=3600, description="How long an open breaker refuses before it looks again, or lets probes in."
    )
    breaker_probes: int = Field(
        3, ge=1, le=1000, description="New jobs that a half-open breaker lets in, and successes that close it."
    )
    breaker_every_s: Seconds = Field(1.0, description="How often the breakers are judged.")

    # Pressure
    max_wait_interactive_s: Seconds = Field(
        30.0, description="Longest predicted wait with which an interactive job is accepted."
    )
    max_wait_standard_s: Seconds = Field(
        600.0,
        description="Longest predicted wait with which a standard job is accepted; one that has waited for two thirds of it is "
        "no longer preempted by higher tiers, as far as their share allows.",
    )
    max_wait_batch_s: Seconds = Field(
        86_400.0,
        description="Longest predicted wait with which a batch job is accepted; one that has waited for two thirds of it is "
        "no longer preempted by higher tiers, as far as their share allows.",
    )
    max_queued_tokens_interactive: int = Field(
        20_000_000, ge=1, le=10**15, description="Most tokens that may wait in a pool's interactive tier."
    )
    max_queued_tokens_standard: int = Field(
        200_000_000, ge=1, le=10**15, description="Most tokens that may wait in a pool's standard tier."
    )
    max_queued_tokens_batch: int = Field(
        5_000_000_000, ge=1, le=10**15, description="Most tokens that may wait in a pool's batch tier."
    )
    max_queued_tokens: int = Field(
        6_000_000_000,
        ge=1,
        le=10**15,
        description="Most tokens that may wait in a pool. Batch is refused from 80 % of it on, standard from 90 %.",
    )

    objective_interactive_s: Seconds = Field(
        5.0, description="Within which interactive jobs should start: what the wanted number of workers is made for."
    )
    objective_standard_s: Seconds = Field(120.0, description="Within which standard jobs should start.")
    objective_batch_s: Seconds = Field(14_400.0, description="Within which batch jobs should start.")

    # Generation worker
    model: str | None = Field(
        None, description="Hugging Face id or folder of the model that a worker serves. Unset: the bundled one."
    )
    model_name: str | None = Field(
        None, description="Name that jobs use for it. Unset: the folder's or id's last part."
    )
    engine: Literal["paged", "vllm", "upstream", "null"] = Field(
        "paged",
        description="Engine: ours, vLLM, a server (`upstream`), or `null` (fake tokens, for tests and benchmarks).",
    )
    engine_python: Path | None = Field(
        None, description="Python interpreter that runs the engine's process. Unset: the worker's own."
    )
    engine_options: dict[str, Any] | None = Field(
        None, description="JSON object with engine arguments of vLLM's, such as tensor_parallel_size."
    )
    upstream_url: str | None = Field(None, description="OpenAI-compatible server that the engine `upstream` asks.")
    upstream_api_key: SecretStr | None = Field(None, description="Key that the upstream wants.")
    upstream_model: str | None = Field(
        None, description="The upstream's name for the model. Unset: the only one that it lists."
    )
    upstream_dialect: Literal["openai", "vllm"] = Field(
        "openai", description="`vllm`: with vLLM's own parameters, and exact token ids."
    )
    upstream_priority: bool = Field(
        False,
        description="Hand each job's priority (by tier, and in it by who returned from idle) to the upstream as vLLM's `priority`, which must schedule by it.",
    )
    upstream_timeout_s: Seconds = Field(120.0, description="A stream that brings nothing for so long has failed.")
    upstream_outage_s: Seconds = Field(
        30.0, description="An upstream that answers nobody for so long is away: its jobs are given back."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device that the engine runs on.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Type of weights and KV; auto: the checkpoint's."
    )
    quantization: Literal["none", "int8", "nf4", "fp4"] = Field(
        "none", description="How bitsandbytes shrinks the linear layers' weights as they are loaded."
    )
    kv_cache_mib: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description="Memory for KV pages. Unset: 1024 on CPU, on CUDA what `gpu_memory_utilization` leaves.",
    )
    gpu_memory_utilization: float = Field(
        0.9, ge=0.05, le=1, description="Share of a GPU's memory for weights, KV pages and all else."
    )
    attention: Literal["auto", "triton", "varlen", "torch"] = Field(
        "auto", description="How attention is computed; auto: our Triton kernel on CUDA."
    )
    cuda_graphs: bool = Field(True, description="Capture decoding as CUDA graphs when the model is loaded.")
    decode_steps: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Most tokens of a sequence between two looks of the host. Unset: 4 on CUDA, else 1.",
    )
    deterministic: bool = Field(
        False, description="The same tokens on CUDA, too, whatever else is in the batch; slower."
    )
    max_model_len: int | None = Field(
        None, ge=8, le=2**24, description="Longest prompt + output in tokens. Unset: the model's own."
    )
    max_num_seqs: int = Field(64, ge=1, le=4096, description="Most sequences in one batch.")
    max_batch_tokens: int | None = Field(
        None, ge=16, le=2**20, description="Most tokens in one forward pass. Unset: 512."
    )
    prefix_cache: bool = Field(
        True, description="Let a prompt begin where an earlier one of the same tenant left its pages."
    )
    speculative_tokens: int = Field(
        0, ge=0, le=64, description="Most tokens that the engine guesses ahead in a sequence; 0: none."
    )
    grammar_check_s: int = Field(
        5, ge=1, le=600, description="Processor time that compiling one schema, regex or grammar may take."
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        le=512,
        description="CPU threads of the engine. Unset: one for a model under 20 M parameters, else the cores.",
    )
    kernels: Literal["auto", "torch"] = Field(
        "auto",
        description="auto: our own C++ kernels on a CPU, where the model and a compiler allow it; torch: without.",
    )
    null_step_s: float = Field(0.0, ge=0, le=60, description="Seconds that each step of the null engine takes.")
    engine_start_timeout_s: Seconds = Field(600.0, description="How long loading a model may take.")
    engine_hang_s: Seconds = Field(30.0, description="An engine with work that makes no step for so long is killed.")
    engine_memory_mib: int | None = Field(
        None,
        ge=64,
        le=2**24,
        description="An engine whose process holds more of the machine's memory is drained and replaced. Unset: no limit.",
    )
    standby_engine: bool = Field(
        False, description="Keep a second engine loaded, which takes over when the first dies. Takes its memory twice."
    )
    canary: bool = Field(
        True, description="Test each engine with a known prompt: before its first job, before suspects, and at idle."
    )
    canary_every_s: Seconds = Field(60.0, description="How often an idle engine is tested.")
    crash_loop_deaths: int = Field(
        5, ge=1, le=1000, description="Engine deaths in the window, from which on the next start waits."
    )
    crash_loop_window_s: Seconds = Field(300.0, description="How long an engine's death is remembered for that.")
    crash_loop_pause_s: Seconds = Field(
        30.0, description="The first wait; it doubles from death to death, up to ten minutes."
    )
    drain_grace_s: Seconds = Field(
        30.0, description="After SIGTERM: how long running jobs may go on before they are given back."
    )

    # Webhooks
    webhook_allow_local: bool = Field(
        False, description="Allow http and loopback addresses as webhook targets (development)."
    )
    webhook_timeout_s: Seconds = Field(
        20.0, description="How long one try of a delivery may take, from the look-up of the name to the answer."
    )
    webhook_lease_s: Seconds = Field(
        30.0,
        description="A try whose worker was lost is repeated after so long; more than the timeout.",
    )
    webhook_redispatch_s: Seconds = Field(
        60.0, description="A delivery that was handed to RQ and hasn't begun for so long is handed over again."
    )
    webhook_concurrency: int = Field(
        256, ge=1, le=4096, description="Deliveries that one webhook worker has under way at once."
    )
    webhook_endpoint_concurrency: int = Field(
        32, ge=1, le=1024, description="Most deliveries that are under way at once from one tenant to one server."
    )
    webhook_dispatch_every_s: Seconds = Field(
        0.2, description="How often maintenance hands over deliveries that are due."
    )
    webhook_disable_after_s: Seconds = Field(
        432_000.0, description="An endpoint that accepted nothing for so long, while there were tries, is disabled."
    )

    # What is observed
    otlp_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("PENSTOCK_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="OpenTelemetry collector that traces go to, as http://host:4318. Unset: nothing is traced.",
    )
    slow_step_s: float = Field(
        2.0,
        ge=0,
        le=3600,
        description="A step of our own engine that takes longer is logged with its batch's shape; 0: none is.",
    )
    profile_dir: Path | None = Field(
        None, description="Folder that a worker writes a torch profile of its engine to, once it is warm. Unset: none."
    )
    profile_steps: int = Field(20, ge=1, le=10_000, description="Steps that such a profile covers.")
    drift_every_s: Seconds = Field(
        300.0,
        description="How often maintenance compares budgets with their ledger: each time those of the tenants that have waited longest, so that all have their turn twice a day.",
    )

    # Dashboard
    dashboard_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+/?$",
        description="Where browsers find the API, such as https://penstock.example.com, if a proxy changes Host or scheme. Unset: by Host.",
    )
    dashboard_idle_s: Seconds = Field(7200.0, description="A session in which nobody did anything for so long ends.")
    dashboard_session_s: Seconds = Field(43_200.0, description="After so long everybody must log in again.")
    dashboard_insecure_cookie: bool = Field(
        False, description="Let the session's cookie travel over plain http (development, where a browser wants that)."
    )
    dashboard_passwords: bool = Field(
        True, description="Operators may log in by password. `false` wants an OIDC provider; one-time links work on."
    )
    oidc_issuer: str | None = Field(
        None,
        description="OIDC provider by which operators log in, word for word as its discovery document calls itself. Unset: none.",
    )
    oidc_client_id: str | None = Field(
        None, min_length=1, max_length=255, description="What the provider calls the dashboard."
    )
    oidc_client_secret: SecretStr | None = Field(
        None, min_length=1, max_length=1024, description="The dashboard's secret with it."
    )
    oidc_scopes: str = Field(
        "openid profile", description="What is asked for, with spaces between; `openid` must be there."
    )
    oidc_groups_claim: str = Field(
        "groups",
        min_length=1,
        max_length=200,
        description="Claim of the ID token that names groups; dots lead into objects, such as realm_access.roles.",
    )
    oidc_roles: dict[str, Literal["viewer", "operator", "owner"]] | None = Field(
        None,
        description="JSON object: the role of each group. Unset: groups say nothing, and only operators who were sent a link get in.",
    )
    oidc_label: str = Field(
        "single sign-on", min_length=1, max_length=40, description="What the button calls the provider."
    )
    oidc_timeout_s: float = Field(5.0, gt=0, le=60, description="How long one call to the provider may take.")

    # Logs
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")

    @model_validator(mode="after")
    def _leases_fit(self) -> Self:
        if not self.lease_renew_s < self.lease_fence_s < self.lease_ttl_s:
            raise ValueError(
                "lease_renew_s < lease_fence_s < lease_ttl_s must hold: a worker stops before others believe it dead"
            )
        return self

    @model_validator(mode="after")
    def _oidc_fits(self) -> Self:
        if trouble := oidc_trouble(self):
            raise ValueError(trouble)
        return self

    @property
    def sqlalchemy_url(self) -> str:
        """`database_url` with the psycopg driver named, as SQLAlchemy wants it.

        Raises:
            Misconfigured: no database is configured.
        """
        from app.errors import Misconfigured

        if not self.database_url:
            raise Misconfigured(
                "DATABASE_URL isn't set: set it, or use `penstock up`, which starts an embedded Postgres"
            )
        scheme, separator, rest = self.database_url.partition("://")
        if not separator or scheme.split("+")[0] not in {"postgresql", "postgres"}:
            raise Misconfigured("DATABASE_URL must look like postgresql://user:password@host:port/database")
        return f"postgresql+psycopg://{rest}"

    @property
    def required_redis_url(self) -> str:
        """`redis_url`, or an error that says what to do.

        Raises:
            Misconfigured: no Redis is configured, or not as redis-py writes the address of one.
        """
        from app.errors import Misconfigured

        if not self.redis_url:
            raise Misconfigured("REDIS_URL isn't set: set it, or use `penstock up`, which starts an embedded Redis")
        if not _leads_to_redis(self.redis_url):
            raise Misconfigured(
                "REDIS_URL must look like redis://:password@host:port/0, rediss://… for TLS, or unix:///absolute/path?db=0"
            )
        return self.redis_url


def _leads_to_redis(url: str) -> bool:
    """Whether redis-py finds its way by this address, and to what it says: of unix://a/b it would leave the `a` out."""
    from redis.connection import parse_url

    try:
        parts = parse_url(url)  # type: ignore[no-untyped-call]
        return not url.startswith("unix:") or (bool(parts.get("path")) and not urlsplit(url).hostname)
    except ValueError:
        return False


def oidc_trouble(given: Settings) -> str | None:
    """What is wrong with the OIDC provider's settings, and what to do; None where nothing is."""
    parts = {
        "PENSTOCK_OIDC_ISSUER": given.oidc_issuer,
        "PENSTOCK_OIDC_CLIENT_ID": given.oidc_client_id,
        "PENSTOCK_OIDC_CLIENT_SECRET": given.oidc_client_secret,
    }
    lacking = [name for name, value in parts.items() if value is None]
    if 0 < len(lacking) < len(parts):
        return f"{', '.join(lacking)}: must be set where one of {', '.join(parts)} is"
    if given.oidc_issuer is not None and not _ISSUER.fullmatch(given.oidc_issuer):
        return (
            "PENSTOCK_OIDC_ISSUER: must be an https URL without user, query and fragment, such as https://id.example.com/realms/ops "
            "(http only for localhost, 127.0.0.1 and [::1])"
        )
    if "openid" not in given.oidc_scopes.split():
        return "PENSTOCK_OIDC_SCOPES: must have openid in it, such as: openid profile groups"
    if given.oidc_roles is not None and (not given.oidc_roles or "" in given.oidc_roles):
        return 'PENSTOCK_OIDC_ROLES: must name at least one group, such as {"penstock-admins": "owner"}, or be unset'
    if not given.dashboard_passwords and given.oidc_issuer is None:
        return "PENSTOCK_DASHBOARD_PASSWORDS: can be false only where PENSTOCK_OIDC_ISSUER is set: nobody could log in otherwise"
    return None


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
