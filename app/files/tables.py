"""Where is a file written? One row for what it is, and its bytes in pieces: docs/decisions/0044 says why in Postgres."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    func,
    text,
)

from app.db import Timestamp, metadata

files = Table(
    "files",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    # `open`: being uploaded, or written by a batch; nobody sees it in lists. `processed`: whole, and never changed again.
    Column("status", Text, nullable=False, server_default="open"),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    Column("pieces", Integer, nullable=False, server_default="0"),
    Column("batch_id", Uuid),  # whose output it is
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column(
        "touched_at", Timestamp, nullable=False, server_default=func.now()
    ),  # an upload that stands still is given up
    Column("expires_at", Timestamp),
    CheckConstraint("status IN ('open', 'processed')", name="status_known"),
    CheckConstraint("bytes >= 0 AND pieces >= 0", name="sizes_not_negative"),
    Index("ix_files_tenant_page", "tenant_id", text("id DESC")),
    Index("ix_files_open", "touched_at", postgresql_where=text("status = 'open'")),
    Index("ix_files_expiring", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

# `data` is stored EXTERNAL (migration 0009), so that some bytes of a piece are read without the rest.
file_pieces = Table(
    "file_pieces",
    metadata,
    Column("file_id", ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("start", BigInteger, nullable=False),  # of its first byte in the file
    Column("data", LargeBinary, nullable=False),
)
