"""Deliveries that are to be given up are found by indexes of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_index(
        "ix_webhook_deliveries_spent",
        "webhook_deliveries",
        ["next_try_at"],
        postgresql_where=sa.text("status = 'pending' AND tries - sent_before >= 10"),
    )
    op.create_index(
        "ix_webhook_deliveries_open",
        "webhook_deliveries",
        ["endpoint_id", "id"],
        postgresql_where=sa.text("status = 'pending'"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_webhook_deliveries_open", table_name="webhook_deliveries")
    op.drop_index("ix_webhook_deliveries_spent", table_name="webhook_deliveries")
