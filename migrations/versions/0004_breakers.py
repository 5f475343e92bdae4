"""A circuit breaker for each model, and which model a job's owner asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "breakers",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="closed", nullable=False),
        sa.Column("mode", sa.Text(), server_default="auto", nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("probes_left", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("bad", sa.Integer(), server_default="0", nullable=False),
        sa.Column("good", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint("state IN ('closed', 'open', 'half_open')", name=op.f("ck_breakers_state_known")),
        sa.CheckConstraint("mode IN ('auto', 'open', 'closed')", name=op.f("ck_breakers_mode_known")),
        sa.CheckConstraint("probes_left >= 0", name=op.f("ck_breakers_probes_not_negative")),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_breakers_model")),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_breakers")),
    )
    op.create_index("ix_attempts_by_worker", "attempts", ["incarnation", "outcome", "ended_at"], unique=False)
    op.create_index(
        "ix_workers_ended", "workers", ["ended_at"], unique=False, postgresql_where=sa.text("ended_at IS NOT NULL")
    )
    op.add_column("jobs", sa.Column("requested_model", sa.Text(), nullable=True))


def downgrade() -> None:
    """Take back."""
    op.drop_column("jobs", "requested_model")
    op.drop_index("ix_workers_ended", table_name="workers", postgresql_where=sa.text("ended_at IS NOT NULL"))
    op.drop_index("ix_attempts_by_worker", table_name="attempts")
    op.drop_table("breakers")
