"""Who waits for a budget, in the order of arrival."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.drop_index("ix_jobs_held", table_name="jobs")
    op.create_index(
        "ix_jobs_held", "jobs", ["held_by", "id"], unique=False, postgresql_where=sa.text("held_by IS NOT NULL")
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_jobs_held", table_name="jobs")
    op.create_index("ix_jobs_held", "jobs", ["held_by"], unique=False, postgresql_where=sa.text("held_by IS NOT NULL"))
