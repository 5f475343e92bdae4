"""Streams after the end: what a job's readers were told, kept with its result, and for how long."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("job_results", sa.Column("trace", sa.LargeBinary(), nullable=True))
    op.add_column("job_results", sa.Column("forgotten_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_job_results_kept",
        "job_results",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("forgotten_at IS NULL"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_job_results_kept", table_name="job_results", postgresql_where=sa.text("forgotten_at IS NULL"))
    op.drop_column("job_results", "forgotten_at")
    op.drop_column("job_results", "trace")
