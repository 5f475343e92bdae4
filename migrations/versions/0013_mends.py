"""Deliveries that are to be given up are found by indexes of their own; a batch knows its Idempotency-Key."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("batches", sa.Column("idempotency_key", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("body_hash", sa.LargeBinary(), nullable=True))
    op.create_index(
        "uq_batches_key",
        "batches",
        ["tenant_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    with op.get_context().autocommit_block():
        for name, columns, where in (
            ("ix_webhook_deliveries_spent", ["next_try_at"], "status = 'pending' AND tries - sent_before >= 10"),
            ("ix_webhook_deliveries_open", ["endpoint_id", "id"], "status = 'pending'"),
        ):
            op.drop_index(name, table_name="webhook_deliveries", if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                "webhook_deliveries",
                columns,
                postgresql_where=sa.text(where),
                postgresql_concurrently=True,
            )


def downgrade() -> None:
    """Take back."""
    op.drop_index("uq_batches_key", table_name="batches")
    op.drop_column("batches", "body_hash")
    op.drop_column("batches", "idempotency_key")
    op.drop_index("ix_webhook_deliveries_open", table_name="webhook_deliveries")
    op.drop_index("ix_webhook_deliveries_spent", table_name="webhook_deliveries")
