"""Streams after the end: what a job's readers were told, kept with its result."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("job_results", sa.Column("trace", sa.LargeBinary(), nullable=True))
    op.create_index("ix_job_results_created_at", "job_results", ["created_at"], unique=False)


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_job_results_created_at", table_name="job_results")
    op.drop_column("job_results", "trace")
