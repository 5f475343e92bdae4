"""Webhook endpoints of tenants; deliveries know their event, their endpoint and their lane."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TIMESTAMP = sa.DateTime(timezone=True)
_PENDING = sa.text("status = 'pending'")
_HANDED = sa.text("status = 'pending' AND handed_until IS NOT NULL")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("old_secret", sa.Text(), nullable=True),
        sa.Column("old_until", _TIMESTAMP, nullable=True),
        sa.Column("status", sa.Text(), server_default="enabled", nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("disabled_at", _TIMESTAMP, nullable=True),
        sa.Column("failing_since", _TIMESTAMP, nullable=True),
        sa.Column("created_at", _TIMESTAMP, server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", _TIMESTAMP, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint(
            "status IN ('enabled', 'disabled', 'deleted')", name=op.f("ck_webhook_endpoints_status_known")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_webhook_endpoints_tenant_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_index(
        "ix_webhook_endpoints_tenant",
        "webhook_endpoints",
        ["tenant_id", "id"],
        postgresql_where=sa.text("status <> 'deleted'"),
    )
    op.add_column("tenants", sa.Column("old_webhook_secret", sa.Text(), nullable=True))
    op.add_column("tenants", sa.Column("old_webhook_until", _TIMESTAMP, nullable=True))
    op.create_table(
        "webhook_lanes",
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("room", sa.SmallInteger(), nullable=False),
        sa.Column("changed_at", _TIMESTAMP, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("lane", name=op.f("pk_webhook_lanes")),
    )
    for name, kind, default in (
        ("event_id", sa.Uuid(), sa.func.gen_random_uuid()),
        ("lane", sa.Text(), ""),
        ("sent_before", sa.Integer(), "0"),
    ):
        op.add_column("webhook_deliveries", sa.Column(name, kind, server_default=default, nullable=False))
    op.add_column("webhook_deliveries", sa.Column("endpoint_id", sa.Uuid(), nullable=True))
    op.add_column("webhook_deliveries", sa.Column("handed_until", _TIMESTAMP, nullable=True))
    op.add_column("webhook_deliveries", sa.Column("error", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_webhook_deliveries_endpoint_id"), "webhook_deliveries", "webhook_endpoints", ["endpoint_id"], ["id"]
    )
    # What was told before was told under the delivery's own id.
    op.execute(
        "UPDATE webhook_deliveries SET event_id = id, lane = tenant_id || ' ' || substring(url FROM '^[^/]*//[^/?#]*')"
    )
    op.drop_index("uq_webhook_deliveries_event", table_name="webhook_deliveries")
    op.create_index(
        "uq_webhook_deliveries_event",
        "webhook_deliveries",
        ["job_id", "event_type", "url", "reservation", "endpoint_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("job_id IS NOT NULL"),
    )
    op.create_index(
        "ix_webhook_deliveries_lane", "webhook_deliveries", ["lane", "next_try_at"], postgresql_where=_PENDING
    )
    op.create_index("ix_webhook_deliveries_handed", "webhook_deliveries", ["handed_until"], postgresql_where=_HANDED)
    op.create_index("ix_webhook_deliveries_history", "webhook_deliveries", ["tenant_id", "id"])
    op.create_index("ix_webhook_deliveries_endpoint", "webhook_deliveries", ["endpoint_id", "id"])


def downgrade() -> None:
    """Take back."""
    # What was for endpoints has no place in the older table.
    op.execute("DELETE FROM webhook_deliveries WHERE endpoint_id IS NOT NULL")
    for name in ("endpoint", "history", "handed", "lane"):
        op.drop_index(f"ix_webhook_deliveries_{name}", table_name="webhook_deliveries")
    op.drop_index("uq_webhook_deliveries_event", table_name="webhook_deliveries")
    op.create_index(
        "uq_webhook_deliveries_event", "webhook_deliveries", ["job_id", "event_type", "url", "reservation"], unique=True
    )
    op.drop_constraint(op.f("fk_webhook_deliveries_endpoint_id"), "webhook_deliveries", type_="foreignkey")
    for name in ("error", "sent_before", "handed_until", "lane", "endpoint_id", "event_id"):
        op.drop_column("webhook_deliveries", name)
    op.drop_table("webhook_lanes")
    op.drop_column("tenants", "old_webhook_until")
    op.drop_column("tenants", "old_webhook_secret")
    op.drop_index(
        "ix_webhook_endpoints_tenant",
        table_name="webhook_endpoints",
        postgresql_where=sa.text("status <> 'deleted'"),
    )
    op.drop_table("webhook_endpoints")
