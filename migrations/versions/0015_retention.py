"""Retention: how long a tenant's jobs and texts are kept, the runs that delete, and what is left of a deleted job's ledger and bill.

Locks: the new columns have no default, the check on tenants reads few rows. The index on jobs is built CONCURRENTLY, outside of the
transaction, so that jobs go on being written; a build that was broken off leaves an invalid index, which the next try drops first.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_ENDED = sa.text("finished_at IS NOT NULL")


def upgrade() -> None:
    """Apply."""
    op.add_column("tenants", sa.Column("retention_days", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("content_retention_s", sa.Integer(), nullable=True))
    op.create_check_constraint(
        op.f("ck_tenants_retention_makes_sense"), "tenants", "retention_days >= 1 AND content_retention_s >= 60"
    )
    op.add_column("job_results", sa.Column("forgotten_for", sa.Text(), nullable=True))
    op.create_table(
        "ledger_rollups",
        sa.Column("budget_id", sa.Uuid(), nullable=False),
        sa.Column("window_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled", sa.BigInteger(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("settled >= 0 AND jobs > 0", name=op.f("ck_ledger_rollups_not_negative")),
        sa.ForeignKeyConstraint(
            ["budget_id", "window_start"],
            ["budget_windows.budget_id", "budget_windows.window_start"],
            name=op.f("fk_ledger_rollups_budget_id_window_start"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("budget_id", "window_start", name=op.f("pk_ledger_rollups")),
    )
    op.create_table(
        "usage_days",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Uuid(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_micros", sa.BigInteger(), nullable=False),
    )
    op.create_index(
        "uq_usage_days",
        "usage_days",
        ["tenant_id", "day", "model", "tier", "kind", "api_key_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "retention_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("running", sa.Boolean(), server_default=sa.text("true"), nullable=True),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("step", sa.Text(), server_default="", nullable=False),
        sa.Column("rows", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('done', 'more', 'failed', 'lost')", name=op.f("ck_retention_runs_outcome_known")
        ),
        sa.CheckConstraint("running IS DISTINCT FROM false", name=op.f("ck_retention_runs_running_or_null")),
        sa.CheckConstraint(
            "(running IS NULL) = (ended_at IS NOT NULL AND outcome IS NOT NULL)",
            name=op.f("ck_retention_runs_ends_with_outcome"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retention_runs")),
        sa.UniqueConstraint("running", name=op.f("uq_retention_runs_running")),
    )
    op.create_index("ix_retention_runs_started", "retention_runs", ["started_at"], unique=False)
    op.create_table(
        "retention_totals",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_retention_totals")),
    )
    op.create_table(
        "retention_marks",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("content_until", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_retention_marks_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_retention_marks")),
    )
    with op.get_context().autocommit_block():
        op.drop_index("ix_jobs_ended", table_name="jobs", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "ix_jobs_ended",
            "jobs",
            ["tenant_id", "finished_at"],
            postgresql_where=_ENDED,
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    """Take back. What was deleted stays deleted, and the audit of the version before misses what the rollups hold."""
    op.drop_table("retention_marks")
    op.drop_table("retention_totals")
    op.drop_index("ix_retention_runs_started", table_name="retention_runs")
    op.drop_table("retention_runs")
    op.drop_index("uq_usage_days", table_name="usage_days")
    op.drop_table("usage_days")
    op.drop_table("ledger_rollups")
    op.drop_index("ix_jobs_ended", table_name="jobs", postgresql_where=_ENDED)
    op.drop_column("job_results", "forgotten_for")
    op.drop_constraint(op.f("ck_tenants_retention_makes_sense"), "tenants")
    op.drop_column("tenants", "content_retention_s")
    op.drop_column("tenants", "retention_days")
