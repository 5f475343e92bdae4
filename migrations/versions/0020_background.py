"""Which stored calls are told of as a background response when they end: a column, so that no end has to read what callers wrote.

Rows from before stay NULL: of them it is asked as before. Locks: face_calls, for a moment.
"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("face_calls", sa.Column("is_background", sa.Boolean(), nullable=True))


def downgrade() -> None:
    """Take back."""
    op.drop_column("face_calls", "is_background")
