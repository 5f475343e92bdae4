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
from sqlalchemy.dialects.postgresql import ARRAY

from app.db import Timestamp, metadata
from app.webhooks.retries import MAX_TRIES

SPENT = f"(tries - sent_before >= {MAX_TRIES})"  # of a delivery whose last try has begun; spelled as its index is

# Where a tenant wants to be told of all its events, or of those that `events` names. A deleted one stays for its history.
webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
    Column("url", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("events", ARRAY(Text)),  # types, or `job.*`; NULL: all but job.started
    Column("secret", Text, nullable=False),
    Column("old_secret", Text),  # the one before the last rotation; signs beside it
    Column("old_until", Timestamp),
    Column("status", Text, nullable=False, server_default="enabled"),
    Column("disabled_reason", Text),  # for its owner to read
    Column("disabled_at", Timestamp),
    Column("failing_since", Timestamp),  # of the first failed try since the last that was accepted
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column("updated_at", Timestamp, nullable=False, server_default=func.now()),
    CheckConstraint("status IN ('enabled', 'disabled', 'deleted')", name="status_known"),
    Index("ix_webhook_endpoints_tenant", "tenant_id", "id", postgresql_where=text("status <> 'deleted'")),
)

# One row an event and target, written in the transaction that made the event true.
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
    # The webhook-id of every try, and of the same event for other targets.
    Column("event_id", Uuid, nullable=False, server_default=func.gen_random_uuid()),
    Column("endpoint_id", ForeignKey("webhook_endpoints.id")),  # NULL: a job's own URL
    Column("lane", Text, nullable=False, server_default=""),  # what has a limit of its own: app/webhooks/lanes.py
    Column("handed_until", Timestamp),  # since it was given to RQ; while it lasts it counts against its lane's room
    Column("sent_before", Integer, nullable=False, server_default="0"),  # tries before it was sent again by hand
    Column("error", Text),  # why it was given up
    Column("traceparent", Text),  # its job's
    Index(
        "uq_webhook_deliveries_event", "job_id", "event_type", "url", "reservation", "endpoint_id",
        unique=True, postgresql_nulls_not_distinct=True, postgresql_where=text("job_id IS NOT NULL"),
    ),
    Index("ix_webhook_deliveries_due", "next_try_at", postgresql_where=text("status = 'pending'")),
    Index("ix_webhook_deliveries_lane", "lane", "next_try_at", postgresql_where=text("status = 'pending'")),
    Index(
        "ix_webhook_deliveries_handed", "handed_until",
        postgresql_where=text("status = 'pending' AND handed_until IS NOT NULL"),
    ),
    Index("ix_webhook_deliveries_spent", "next_try_at", postgresql_where=text(f"status = 'pending' AND {SPENT}")),
    Index("ix_webhook_deliveries_open", "endpoint_id", "id", postgresql_where=text("status = 'pending'")),
    Index("ix_webhook_deliveries_history", "tenant_id", "id"),
    Index("ix_webhook_deliveries_endpoint", "endpoint_id", "id"),
    Index("ix_webhook_deliveries_failed", text("id DESC"), postgresql_where=text("status = 'failed'")),
)  # fmt: skip

webhook_tries = Table(
    "webhook_tries",
    metadata,
    Column("delivery_id", ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Timestamp, nullable=False, server_default=func.now()),
    Column("http_status", Integer),
    Column("error", Text),
    Column("duration_ms", Integer),
    Column("excerpt", Text),  # the beginning of an answer that wasn't 2xx, for operators
)

# How many deliveries a lane may have under way, where that isn't what all begin with. A hint: it may be lost.
webhook_lanes = Table(
    "webhook_lanes",
    metadata,
    Column("lane", Text, primary_key=True),
    Column("room", SmallInteger, nullable=False),
    Column("changed_at", Timestamp, nullable=False, server_default=func.now()),
)
