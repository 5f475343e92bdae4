"""Where is a job written? Small hot row, cold input, result, attempts; and who runs what under which lease."""

from sqlalchemy import (
    JSON,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from app.db import Timestamp, metadata

# A tokenizer is stored once by the worker that first served it, so that the API counts with the model's own and needs no model files.
tokenizers = Table(
    "tokenizers",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("tokenizer_json", LargeBinary, nullable=False),
    Column("chat_template", Text),
    Column("special_tokens", JSONB, nullable=False),
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
)

models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("tokenizer_hash", ForeignKey("tokenizers.hash"), nullable=False),
    Column("model_hash", Text, nullable=False),
    Column("max_model_len", Integer, nullable=False),
    Column("vocab_size", Integer, nullable=False),
    # Millionths of the currency for a million tokens. A worker's registration leaves these three as they are.
    Column("input_price", BigInteger, nullable=False, server_default="0"),
    Column("output_price", BigInteger, nullable=False, server_default="0"),
    Column("fallback", Text),  # for jobs that name none
    Column("registered_at", Timestamp, nullable=False, server_default=func.now()),
    CheckConstraint("input_price >= 0 AND output_price >= 0", name="prices_not_negative"),
)

# One row a worker incarnation: N running jobs cost one UPDATE to keep alive, not N.
workers = Table(
    "workers",
    metadata,
    Column("incarnation", Uuid, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("model_hash", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("stats", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("started_at", Timestamp, nullable=False, server_default=func.now()),
    Column("renewed_at", Timestamp, nullable=False, server_default=func.now()),
    Column("expires_at", Timestamp, nullable=False),
    Column("ended_at", Timestamp),
    Column("drain_requested_at", Timestamp),  # by an operator: it claims nothing until this is NULL again
    CheckConstraint("state IN ('ready', 'draining', 'ended', 'lost')", name="state_known"),
    Index("ix_workers_live", "expires_at", postgresql_where=text("ended_at IS NULL")),
    # The breakers: whose attempts are recent.
    Index("ix_workers_ended", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
)

# A model without a row has never failed much: its breaker is closed. app/jobs/breaker.py has the rules.
breakers = Table(
    "breakers",
    metadata,
    Column("model", ForeignKey("models.name"), primary_key=True),
    Column("state", Text, nullable=False, server_default="closed"),
    Column("mode", Text, nullable=False, server_default="auto"),  # an operator's word goes before `state`
    Column("version", Integer, nullable=False, server_default="1"),  # the keepers' compare-and-set
    Column("since", Timestamp, nullable=False, server_default=func.now()),
    Column("retry_at", Timestamp),
    Column("probes_left", SmallInteger, nullable=False, server_default="0"),
    Column("bad", Integer, nullable=False, server_default="0"),  # the evidence of the last change, for those who look
    Column("good", Integer, nullable=False, server_default="0"),
    CheckConstraint("state IN ('closed', 'open', 'half_open')", name="state_known"),
    CheckConstraint("mode IN ('auto', 'open', 'closed')", name="mode_known"),
    CheckConstraint("probes_left >= 0", name="probes_not_negative"),
)

# What an engine gave for a known prompt when it was first asked on this machine: it must give the same ever after.
canaries = Table(
    "canaries",
    metadata,
    Column("made_by", Text, primary_key=True),
    Column("machine", Text, primary_key=True),
    Column("token_ids", ARRAY(Integer), nullable=False),
    Column("seen_at", Timestamp, nullable=False, server_default=func.now()),
)

# gen, attempt and lane do all the fencing: docs/protocol.md.
jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("api_key_id", Uuid),
    Column("pool", Text, nullable=False),
    Column("model", Text, nullable=False),  # what runs it
    Column("requested_model", Text),  # where its owner asked for another: that one's breaker was open
    Column("tier", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="queued"),
    Column("gen", Integer, nullable=False, server_default="1"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("lane", Text, nullable=False, server_default="normal"),
    Column("reservation", SmallInteger, nullable=False, server_default="1"),  # 0: waits for a budget, holds none
    Column("on_budget", Text, nullable=False, server_default="reject"),
    Column("held_by", Uuid),  # the budget that it waits for
    # At the time of its reservation: a price that changes meanwhile changes nothing for it.
    Column("input_price", BigInteger, nullable=False, server_default="0"),
    Column("output_price", BigInteger, nullable=False, server_default="0"),
    Column("changes", JSONB(none_as_null=True)),  # what it runs with that its owner asked differently, and why
    Column("work_key", LargeBinary),  # of deterministic work that may be shared: what it is computed from
    Column("shared_from", Uuid),  # the job that computed its result
    Column("incarnation", Uuid),
    Column("prompt_tokens", Integer, nullable=False),
    Column("max_tokens", Integer, nullable=False),
    Column("n", SmallInteger, nullable=False, server_default="1"),
    Column("failures", SmallInteger, nullable=False, server_default="0"),
    Column("worker_losses", SmallInteger, nullable=False, server_default="0"),
    Column("engine_crashes", SmallInteger, nullable=False, server_default="0"),
    Column("solo_crashes", SmallInteger, nullable=False, server_default="0"),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("webhook", JSONB(none_as_null=True)),
    Column("error", JSONB(none_as_null=True)),
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column("eligible_at", Timestamp, nullable=False, server_default=func.now()),
    Column("not_before", Timestamp),
    Column("deadline_at", Timestamp),
    Column("cancel_requested_at", Timestamp),
    Column("started_at", Timestamp),
    Column("finished_at", Timestamp),
    Column("traceparent", Text),  # W3C Trace Context of its submission, where traces are kept
    CheckConstraint(
        "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired', 'dead')", name="status_known"
    ),
    CheckConstraint("tier IN ('interactive', 'standard', 'batch')", name="tier_known"),
    CheckConstraint("lane IN ('normal', 'bisect', 'solo')", name="lane_known"),
    CheckConstraint("on_budget IN ('reject', 'wait', 'truncate', 'fallback')", name="on_budget_known"),
    CheckConstraint("(held_by IS NULL) OR (status = 'queued' AND reservation = 0)", name="only_waiting_is_held"),
    CheckConstraint("(status = 'running') = (incarnation IS NOT NULL)", name="only_running_has_worker"),
    CheckConstraint("(finished_at IS NULL) = (status IN ('queued', 'running'))", name="only_ended_is_finished"),
    # A tenant's page of jobs, newest first (ids are time-ordered).
    Index("ix_jobs_tenant_page", "tenant_id", text("id DESC")),
    # The sweeper and the rebuild: what must be known to Redis.
    Index(
        "ix_jobs_queued", "pool", "eligible_at", "id", postgresql_where=text("status = 'queued' AND not_before IS NULL")
    ),
    # The caps: how much of a tenant's work waits.
    Index("ix_jobs_waiting", "tenant_id", postgresql_where=text("status = 'queued'")),
    # The timekeeper: retries that are due, deadlines that passed.
    Index("ix_jobs_due", "not_before", postgresql_where=text("status = 'queued' AND not_before IS NOT NULL")),
    Index("ix_jobs_deadline", "deadline_at", postgresql_where=text("status = 'queued' AND deadline_at IS NOT NULL")),
    # The line of a budget: who waits for it, and who was first.
    Index("ix_jobs_held", "held_by", "id", postgresql_where=text("held_by IS NOT NULL")),
    # Identical work: who computes it, or has.
    Index("ix_jobs_shared", "shared_from", postgresql_where=text("status = 'queued' AND shared_from IS NOT NULL")),
    Index("ix_jobs_work", "tenant_id", "work_key", "id", postgresql_where=text("work_key IS NOT NULL")),
    # Retention: a tenant's oldest ends.
    Index("ix_jobs_ended", "tenant_id", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    # Operators: the newest of those that ended as nobody wished. Written once, at such an end only.
    Index(
        "ix_jobs_ended_badly",
        "status",
        text("id DESC"),
        postgresql_where=text("status IN ('failed', 'cancelled', 'expired', 'dead')"),
    ),
    # The lease and the reaper: who runs what.
    Index("ix_jobs_running", "incarnation", postgresql_where=text("status = 'running'")),
)

job_inputs = Table(
    "job_inputs",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("request", JSON, nullable=False),
    Column("sampling", JSON, nullable=False),
    Column("prompt_ids", LargeBinary, nullable=False),  # int32, little endian
    Column("tokenizer_hash", Text, nullable=False),
)

# The primary key is the database's own guard for "exactly one result". JSON, not JSONB: a text may hold U+0000.
job_results = Table(
    "job_results",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("choices", JSON, nullable=False),
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column("trace", LargeBinary),  # how readers were told of it: app/queue/traces.py
    Column("forgotten_at", Timestamp),  # past its retention: choices is [] since, and there is no trace
    Column("forgotten_for", Text),  # whose word that was: `tenant`, or NULL for the setting
    Index("ix_job_results_kept", "created_at", postgresql_where=text("forgotten_at IS NULL")),
)

# What a call of the OpenAI-compatible face asked for, where it may be read again: a response, or a chat completion with `store`.
face_calls = Table(
    "face_calls",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("face", Text, nullable=False),
    Column("body", JSON, nullable=False),
    Column("is_background", Boolean),  # its end is told to endpoints as a response's; NULL in rows of before
    CheckConstraint("face IN ('chat', 'responses')", name="face_known"),
)

# One row an attempt that ended, however it ended.
attempts = Table(
    "attempts",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("incarnation", Uuid, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("detail", JSONB(none_as_null=True)),
    Column("queued_s", REAL),  # app/jobs/timing.py; NULL: not measured
    Column("prefill_s", REAL),
    Column("decode_s", REAL),
    Column("ended_at", Timestamp, nullable=False, server_default=func.now()),
    # The breakers: what became of a worker's attempts lately.
    Index("ix_attempts_by_worker", "incarnation", "outcome", "ended_at"),
)

# A job that was given up, once for each of its lives: `reservation` counts them. No row goes, whatever becomes of the job.
dead_letters = Table(
    "dead_letters",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("reservation", SmallInteger, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("evidence", JSONB, nullable=False),
    Column("at", Timestamp, nullable=False, server_default=func.now()),
    Column("resolved_at", Timestamp),
    Column("attempt", Integer, nullable=False, server_default="0"),  # the life's last one; 0: not known yet
    Column("signature", Text, nullable=False, server_default=""),  # the fingerprint in words
    Column("resolution", Text),
    Column("resolved_by", Text),
    Column("resolution_reason", Text),
    CheckConstraint("resolution IN ('requeued', 'discarded')", name="resolution_known"),
    CheckConstraint(
        "num_nulls(resolved_at, resolution, resolved_by, resolution_reason) IN (0, 4)", name="resolved_by_somebody"
    ),
    # A page, newest first; the open ones by job, and by group.
    Index("ix_dead_letters_page", text("at DESC"), text("job_id DESC"), text("reservation DESC")),
    Index("ix_dead_letters_open", "job_id", unique=True, postgresql_where=text("resolved_at IS NULL")),
    Index("ix_dead_letters_fingerprint", "fingerprint", "job_id", postgresql_where=text("resolved_at IS NULL")),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_hash", LargeBinary, nullable=False),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("job_ids", ARRAY(Uuid)),  # where it stands for many jobs: all of them in their order, `job_id` the first
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Index(None, "job_id"),
    Index(None, "created_at"),
)
