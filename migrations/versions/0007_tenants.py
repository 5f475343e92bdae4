"""Caps on what waits: how much of a tenant's work is queued."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_index(
        "ix_jobs_waiting", "jobs", ["tenant_id"], unique=False, postgresql_where=sa.text("status = 'queued'")
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_jobs_waiting", table_name="jobs", postgresql_where=sa.text("status = 'queued'"))
