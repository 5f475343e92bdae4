"""What operators look for in the dashboard, workers that they take out of the work, and what webhooks' receivers answered.

Locks: each index is built CONCURRENTLY, outside of a transaction, so that jobs, deliveries and acts go on being written meanwhile; a
build that was broken off leaves an invalid index, which the next try drops first. The new columns have no default: their ACCESS
EXCLUSIVE locks are held for a moment only.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_INDEXES: tuple[tuple[str, str, list[str | sa.TextClause], str | None], ...] = (
    (
        "ix_jobs_ended_badly",
        "jobs",
        ["status", sa.text("id DESC")],
        "status IN ('failed', 'cancelled', 'expired', 'dead')",
    ),
    ("ix_webhook_deliveries_failed", "webhook_deliveries", [sa.text("id DESC")], "status = 'failed'"),
    ("ix_audit_log_actor_id", "audit_log", ["actor", "id"], None),
    ("ix_audit_log_target_id", "audit_log", ["target", "id"], None),
)


def upgrade() -> None:
    """Apply."""
    op.add_column("workers", sa.Column("drain_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("webhook_tries", sa.Column("excerpt", sa.Text(), nullable=True))
    with op.get_context().autocommit_block():
        for name, table, columns, where in _INDEXES:
            op.drop_index(name, table_name=table, if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                table,
                columns,
                postgresql_where=None if where is None else sa.text(where),
                postgresql_concurrently=True,
            )


def downgrade() -> None:
    """Take back."""
    for name, table, _, _ in reversed(_INDEXES):
        op.drop_index(name, table_name=table)
    op.drop_column("webhook_tries", "excerpt")
    op.drop_column("workers", "drain_requested_at")
