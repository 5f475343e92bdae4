"""What is observed of a job: the trace that it belongs to, and where each attempt's time went."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("jobs", sa.Column("traceparent", sa.Text(), nullable=True))
    op.add_column("webhook_deliveries", sa.Column("traceparent", sa.Text(), nullable=True))
    for name in ("queued_s", "prefill_s", "decode_s"):
        op.add_column("attempts", sa.Column(name, sa.REAL(), nullable=True))


def downgrade() -> None:
    """Take back."""
    for name in ("decode_s", "prefill_s", "queued_s"):
        op.drop_column("attempts", name)
    op.drop_column("webhook_deliveries", "traceparent")
    op.drop_column("jobs", "traceparent")
