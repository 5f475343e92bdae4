"""Suspects of an engine's death, and what engines are compared with."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("jobs", sa.Column("solo_crashes", sa.SmallInteger(), server_default="0", nullable=False))
    op.create_table(
        "canaries",
        sa.Column("made_by", sa.Text(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("token_ids", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("made_by", "machine", name=op.f("pk_canaries")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("canaries")
    op.drop_column("jobs", "solo_crashes")
