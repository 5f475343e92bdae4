"""Dead letters: how they were resolved, by whom and why; an event is told once for each life of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    # With a default: while processes are restarted one by one, older code goes on writing letters, which a requeue completes.
    op.add_column("dead_letters", sa.Column("attempt", sa.Integer(), server_default="0", nullable=False))
    op.add_column("dead_letters", sa.Column("signature", sa.Text(), server_default="", nullable=False))
    op.add_column("dead_letters", sa.Column("resolution", sa.Text(), nullable=True))
    op.add_column("dead_letters", sa.Column("resolved_by", sa.Text(), nullable=True))
    op.add_column("dead_letters", sa.Column("resolution_reason", sa.Text(), nullable=True))
    # Every letter so far is of its job's last attempt: nothing has led out of the dead letters.
    op.execute("UPDATE dead_letters d SET attempt = j.attempt FROM jobs j WHERE j.id = d.job_id")
    op.execute(
        "UPDATE dead_letters SET resolution = 'discarded', resolved_by = 'unknown', resolution_reason = 'before 0002' "
        "WHERE resolved_at IS NOT NULL"
    )
    op.create_check_constraint(
        op.f("ck_dead_letters_resolution_known"), "dead_letters", "resolution IN ('requeued', 'discarded')"
    )
    op.create_check_constraint(
        op.f("ck_dead_letters_resolved_by_somebody"),
        "dead_letters",
        "num_nulls(resolved_at, resolution, resolved_by, resolution_reason) IN (0, 4)",
    )
    # A job can't be deleted from under its letters.
    op.drop_constraint(op.f("fk_dead_letters_job_id"), "dead_letters", type_="foreignkey")
    op.create_foreign_key(op.f("fk_dead_letters_job_id"), "dead_letters", "jobs", ["job_id"], ["id"])
    op.drop_index("ix_dead_letters_open", table_name="dead_letters")
    op.create_index(
        "ix_dead_letters_page",
        "dead_letters",
        [sa.literal_column("at DESC"), sa.literal_column("job_id DESC"), sa.literal_column("reservation DESC")],
        unique=False,
    )
    op.create_index(
        "ix_dead_letters_open",
        "dead_letters",
        ["job_id"],
        unique=True,
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.create_index(
        "ix_dead_letters_fingerprint",
        "dead_letters",
        ["fingerprint", "job_id"],
        unique=False,
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.add_column("webhook_deliveries", sa.Column("reservation", sa.SmallInteger(), server_default="1", nullable=False))
    op.drop_index("uq_webhook_deliveries_event", table_name="webhook_deliveries")
    op.create_index(
        "uq_webhook_deliveries_event",
        "webhook_deliveries",
        ["job_id", "event_type", "url", "reservation"],
        unique=True,
    )


def downgrade() -> None:
    """Take back. Events of later lives that the older index has no room for go."""
    op.drop_index("uq_webhook_deliveries_event", table_name="webhook_deliveries")
    op.execute(
        "DELETE FROM webhook_deliveries later USING webhook_deliveries first WHERE later.reservation > first.reservation "
        "AND (later.job_id, later.event_type, later.url) = (first.job_id, first.event_type, first.url)"
    )
    op.create_index("uq_webhook_deliveries_event", "webhook_deliveries", ["job_id", "event_type", "url"], unique=True)
    op.drop_column("webhook_deliveries", "reservation")
    op.drop_index("ix_dead_letters_fingerprint", table_name="dead_letters")
    op.drop_index("ix_dead_letters_open", table_name="dead_letters")
    op.drop_index("ix_dead_letters_page", table_name="dead_letters")
    op.create_index(
        "ix_dead_letters_open",
        "dead_letters",
        ["pool", sa.literal_column("at DESC")],
        unique=False,
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.drop_constraint(op.f("fk_dead_letters_job_id"), "dead_letters", type_="foreignkey")
    op.create_foreign_key(
        op.f("fk_dead_letters_job_id"), "dead_letters", "jobs", ["job_id"], ["id"], ondelete="CASCADE"
    )
    op.drop_constraint(op.f("ck_dead_letters_resolved_by_somebody"), "dead_letters", type_="check")
    op.drop_constraint(op.f("ck_dead_letters_resolution_known"), "dead_letters", type_="check")
    for column in ("resolution_reason", "resolved_by", "resolution", "signature", "attempt"):
        op.drop_column("dead_letters", column)
