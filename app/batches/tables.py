"""Where is a batch written? One row for the whole, one for each line of its input file."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from app.db import Timestamp, metadata

batches = Table(
    "batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("api_key_id", Uuid),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Uuid, nullable=False),  # no foreign key: an ended batch outlives its input
    Column("output_file_id", Uuid),
    Column("error_file_id", Uuid),
    Column("tier", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("metadata", JSONB(none_as_null=True)),
    Column("status", Text, nullable=False, server_default="validating"),
    Column("ending", Text),  # while it is `finalizing`: what it will be
    Column("errors", JSONB(none_as_null=True)),  # why validation failed, by line
    # Of its lines: total = waiting + submitted + completed + failed, and the audit counts them.
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("model", Text),  # None where its lines name several
    Column("lines_per_s", Double),  # lately, for the ETA
    Column("waiting_for", JSONB(none_as_null=True)),  # why no more of its lines are submitted now
    # When a pump has to look at it again. A pump that works on it has set it a little ahead: its lease.
    Column("due_at", Timestamp, nullable=False, server_default=func.now()),
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column("expires_at", Timestamp, nullable=False),
    Column("in_progress_at", Timestamp),
    Column("progress_at", Timestamp),  # of `lines_per_s`
    Column("finalizing_at", Timestamp),
    Column("completed_at", Timestamp),
    Column("failed_at", Timestamp),
    Column("expired_at", Timestamp),
    Column("cancelling_at", Timestamp),
    Column("cancelled_at", Timestamp),
    Column("idempotency_key", Text),  # that it was made under, for as long as there is the batch
    Column("body_hash", LargeBinary),  # of what was asked for then
    CheckConstraint(
        "status IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')",
        name="status_known",
    ),
    CheckConstraint("tier IN ('interactive', 'standard', 'batch')", name="tier_known"),
    CheckConstraint("(status = 'finalizing') = (ending IS NOT NULL)", name="finalizing_has_ending"),
    CheckConstraint("completed + failed <= total AND least(completed, failed) >= 0", name="counts_make_sense"),
    Index("ix_batches_tenant_page", "tenant_id", text("id DESC")),
    Index(
        "ix_batches_due",
        "due_at",
        postgresql_where=text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    ),
    Index("ix_batches_input", "input_file_id"),
    Index(
        "uq_batches_key",
        "tenant_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
)

# The primary key is the guard: a line has one row, the row one job, and both are written in the job's own transaction.
batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),  # in the file, from 1
    Column("custom_id", Text, nullable=False),
    Column("rank", Integer, nullable=False),  # in the order of submission: shared prefixes side by side
    Column("start", BigInteger, nullable=False),  # where its bytes are in the input file
    Column("length", Integer, nullable=False),
    Column("state", Text, nullable=False, server_default="waiting"),
    Column("job_id", Uuid, unique=True),  # no foreign key: a line's result outlives its job
    CheckConstraint("state IN ('waiting', 'submitted', 'completed', 'failed')", name="state_known"),
    CheckConstraint("state <> 'submitted' OR job_id IS NOT NULL", name="submitted_has_job"),
    CheckConstraint("state <> 'waiting' OR job_id IS NULL", name="waiting_has_no_job"),
    Index("uq_batch_lines_custom_id", "batch_id", "custom_id", unique=True),
    Index("ix_batch_lines_waiting", "batch_id", "rank", postgresql_where=text("state = 'waiting'")),
    Index("ix_batch_lines_submitted", "batch_id", "job_id", postgresql_where=text("state = 'submitted'")),
)
