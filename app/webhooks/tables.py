"""Where is it written what has to be told to whom, and whether it was?"""

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)

from app.db import Timestamp, metadata

# One row an event and target, written in the transaction that made the event true. `id` is the webhook-id of every try.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
    Column("job_id", Uuid),
    Column("event_type", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("next_try_at", Timestamp, nullable=False, server_default=func.now()),
    Column("leased_until", Timestamp),
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column("ended_at", Timestamp),
    CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status_known"),
    # A job that is requeued from the dead letters may die again: each life tells its own end.
    Column("reservation", SmallInteger, nullable=False, server_default="1"),
    Index("uq_webhook_deliveries_event", "job_id", "event_type", "url", "reservation", unique=True),
    Index("ix_webhook_deliveries_due", "next_try_at", postgresql_where=text("status = 'pending'")),
)

webhook_tries = Table(
    "webhook_tries",
    metadata,
    Column("delivery_id", ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Timestamp, nullable=False, server_default=func.now()),
    Column("http_status", Integer),
    Column("error", Text),
    Column("duration_ms", Integer),
)
