"""Where is it written who operates Penstock, and who is logged in? Of secrets, only hashes."""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text, Uuid, func, text

from app.db import Timestamp, metadata

operators = Table(
    "operators",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("password_hash", Text),  # argon2id; NULL: none was chosen yet
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column("logged_in_at", Timestamp),
    Column("disabled_at", Timestamp),
    CheckConstraint("role IN ('viewer', 'operator', 'owner')", name="role_known"),
    CheckConstraint("name ~ '^[a-z0-9][a-z0-9._@-]{0,62}$'", name="name_is_plain"),
)

operator_sessions = Table(
    "operator_sessions",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),  # SHA-256: the token has 256 random bits
    Column("operator_id", ForeignKey("operators.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column("seen_at", Timestamp, nullable=False, server_default=func.now()),
    Column("expires_at", Timestamp, nullable=False),  # whatever happens
    Index(None, "operator_id"),
    Index(None, "expires_at"),
)

# A link that lets its reader choose an operator's password, once.
operator_links = Table(
    "operator_links",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("operator_id", ForeignKey("operators.id", ondelete="CASCADE"), nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Column("used_at", Timestamp),
    Index(None, "operator_id"),
)

# Whom an OIDC provider means by a subject. Never by e-mail address: those are given to others, and some providers let anybody enter any.
operator_identities = Table(
    "operator_identities",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("operator_id", ForeignKey("operators.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Index(None, "operator_id", "issuer", unique=True),
)

# Log-ins that were begun and are at the provider. What the browser keeps of one is random; here is its hash.
oidc_flows = Table(
    "oidc_flows",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("network", Text, nullable=False),
    Column("next", Text, nullable=False),
    Column("link_hash", LargeBinary),  # of the one-time link that is used up at its end
    Column("expires_at", Timestamp, nullable=False),
    Index(None, "network", "expires_at"),
    Index(None, "expires_at"),
)

# Log-ins that failed lately, by name and by address.
login_failures = Table(
    "login_failures",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("blocked_until", Timestamp, nullable=False, server_default=func.now()),
    Column("last_at", Timestamp, nullable=False, server_default=func.now()),
    Index(None, "last_at"),
)
