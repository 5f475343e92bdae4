"""Where is it written what was deleted, how far it has come, and what is left of it?"""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, Index, Table, Text, Uuid, func, text
from sqlalchemy.dialects.postgresql import JSONB

from app.db import Timestamp, metadata

# One row a run. `running` is true or NULL, and unique: two runs at once can't be. A run holds it by a lease, which each of its
# transactions extends.
retention_runs = Table(
    "retention_runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("asked_by", Text, nullable=False),  # `schedule`, or an operator
    Column("host", Text, nullable=False),
    Column("running", Boolean, unique=True, server_default=text("true")),
    Column("leased_until", Timestamp, nullable=False),
    Column("started_at", Timestamp, nullable=False, server_default=func.now()),
    Column("ended_at", Timestamp),
    Column("step", Text, nullable=False, server_default=""),  # what it is at, or was at its end
    Column(
        "rows", JSONB, nullable=False, server_default=text("'{}'::jsonb")
    ),  # by table, written with each transaction
    Column("outcome", Text),
    Column("error", Text),
    CheckConstraint("outcome IN ('done', 'more', 'failed', 'lost')", name="outcome_known"),
    CheckConstraint("running IS DISTINCT FROM false", name="running_or_null"),
    CheckConstraint("(running IS NULL) = (ended_at IS NOT NULL AND outcome IS NOT NULL)", name="ends_with_outcome"),
    Index("ix_retention_runs_started", "started_at"),
)

# All runs together, by table: what the metric shows. Runs themselves are forgotten after a while.
retention_totals = Table(
    "retention_totals",
    metadata,
    Column("name", Text, primary_key=True),
    Column("rows", BigInteger, nullable=False),
)

# Up to which end of a job a tenant's prompts and outputs are gone, so that no round looks at them again.
retention_marks = Table(
    "retention_marks",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("content_until", Timestamp, nullable=False),
)
