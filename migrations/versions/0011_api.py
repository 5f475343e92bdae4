"""Many jobs under one Idempotency-Key."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("idempotency_keys", sa.Column("job_ids", ARRAY(sa.Uuid()), nullable=True))


def downgrade() -> None:
    """Take back."""
    op.drop_column("idempotency_keys", "job_ids")
