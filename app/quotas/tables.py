"""Where is it written who may ask for how much, and who used what?"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from app.db import Timestamp, metadata

# A tenant's id is a slug: it stands readable in Redis keys, logs and URLs, and never changes.
tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("display_name", Text, nullable=False, server_default=""),
    Column("weight", Integer, nullable=False, server_default="1"),
    Column("tiers", ARRAY(Text), nullable=False, server_default=text("'{interactive,standard,batch}'")),
    # NULL is no limit.
    Column("max_running_jobs", Integer),
    Column("max_queued_jobs", Integer),
    Column("max_queued_tokens", BigInteger),
    Column("max_prompt_tokens", Integer),  # of one request
    Column("max_output_tokens", Integer),  # of one request: n x max_tokens
    Column("requests_per_minute", Integer),
    Column("request_burst", Integer),  # NULL: as many as a minute brings
    Column("tokens_per_minute", BigInteger),
    Column("token_burst", BigInteger),
    # Identical deterministic work is computed once if it is in flight or no older than this; NULL: never.
    Column("share_identical_s", Integer),
    Column("bill_shared", Boolean, nullable=False, server_default=text("true")),
    Column("retention_days", Integer),  # of ended jobs; NULL: as the setting says
    Column("content_retention_s", Integer),  # of prompts and outputs after a job's end; NULL: as long as the job
    Column("suspended_at", Timestamp),
    Column("webhook_secret", Text, nullable=False),  # for jobs' own URLs; endpoints have theirs
    Column("old_webhook_secret", Text),  # the one before the last rotation; signs beside it
    Column("old_webhook_until", Timestamp),
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    CheckConstraint("id ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="id_is_slug"),
    CheckConstraint("weight BETWEEN 1 AND 1000", name="weight_in_range"),
    CheckConstraint("tiers <@ '{interactive,standard,batch}'", name="tiers_known"),
    CheckConstraint(
        "least(max_running_jobs, max_queued_jobs, max_queued_tokens, max_prompt_tokens, max_output_tokens) >= 0 "
        "AND least(requests_per_minute, request_burst, tokens_per_minute, token_burst, share_identical_s) >= 1",
        name="limits_make_sense",
    ),
    CheckConstraint("retention_days >= 1 AND content_retention_s >= 60", name="retention_makes_sense"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False, server_default=""),
    Column("prefix", Text, nullable=False, unique=True),
    Column("hash", LargeBinary, nullable=False),
    # The secret before the last rotation, for as long as both are valid. The key stays the same: budgets and rates hold on.
    Column("old_prefix", Text, unique=True),
    Column("old_hash", LargeBinary),
    Column("old_until", Timestamp),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("requests_per_minute", Integer),
    Column("request_burst", Integer),
    Column("tokens_per_minute", BigInteger),
    Column("token_burst", BigInteger),
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column("expires_at", Timestamp),
    Column("revoked_at", Timestamp),
    CheckConstraint("num_nulls(old_prefix, old_hash, old_until) IN (0, 3)", name="old_secret_is_whole"),
    CheckConstraint(
        "least(requests_per_minute, request_burst, tokens_per_minute, token_burst) >= 1", name="limits_make_sense"
    ),
    Index(None, "tenant_id"),
)

# What a tenant or one of its keys may use in each window of a period.
budgets = Table(
    "budgets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
    Column("api_key_id", ForeignKey("api_keys.id", ondelete="CASCADE")),
    Column("metric", Text, nullable=False),
    Column("period", Text, nullable=False),
    Column("hard_limit", BigInteger, nullable=False),  # tokens, requests, or millionths of the currency
    Column("thresholds", ARRAY(SmallInteger), nullable=False, server_default=text("'{80,100}'")),  # warn at, per cent
    Column("created_at", Timestamp, nullable=False, server_default=func.now()),
    Column("retired_at", Timestamp),  # its windows and its ledger stay
    CheckConstraint(
        "metric IN ('input_tokens', 'output_tokens', 'total_tokens', 'requests', 'cost')", name="metric_known"
    ),
    CheckConstraint("period IN ('minute', 'hour', 'day', 'month', 'total')", name="period_known"),
    CheckConstraint("hard_limit >= 0", name="limit_not_negative"),
    CheckConstraint("1 <= ALL (thresholds) AND 100 >= ALL (thresholds)", name="thresholds_in_range"),
    Index(
        "uq_budgets_applying",
        "tenant_id",
        "api_key_id",
        "metric",
        "period",
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=text("retired_at IS NULL"),
    ),
)

# A new window is a new row: nothing is ever zeroed. The CHECK is the database's own guard against an overdraft.
budget_windows = Table(
    "budget_windows",
    metadata,
    Column("budget_id", ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True),
    Column("window_start", Timestamp, primary_key=True),
    Column("hard_limit", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False, server_default="0"),
    Column("reserved", BigInteger, nullable=False, server_default="0"),
    Column("warned", SmallInteger, nullable=False, server_default="0"),  # the highest threshold that was told
    CheckConstraint("used >= 0 AND reserved >= 0", name="not_negative"),
    CheckConstraint("used + reserved <= hard_limit", name="never_over"),
)

# Append-only. `reservation` counts how often a job reserved: 1 at submission, one more for each requeue from the dead letters.
ledger = Table(
    "ledger",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("budget_id", Uuid, nullable=False),
    Column("window_start", Timestamp, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("reservation", SmallInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("at", Timestamp, nullable=False, server_default=func.now()),
    CheckConstraint("kind IN ('reserve', 'settle', 'release')", name="kind_known"),
    CheckConstraint("amount >= 0", name="amount_not_negative"),
    UniqueConstraint("job_id", "reservation", "budget_id", "kind"),
)

# What is left of the ledger of jobs that were deleted: closed reservations, so nothing is reserved, and this much was settled.
ledger_rollups = Table(
    "ledger_rollups",
    metadata,
    Column("budget_id", Uuid, primary_key=True),
    Column("window_start", Timestamp, primary_key=True),
    Column("settled", BigInteger, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    CheckConstraint("settled >= 0 AND jobs > 0", name="not_negative"),
    ForeignKeyConstraint(
        ["budget_id", "window_start"],
        ["budget_windows.budget_id", "budget_windows.window_start"],
        ondelete="CASCADE",
    ),
)

# When a tenant's budgets were compared with their ledger, and by how many tokens they differed.
budget_comparisons = Table(
    "budget_comparisons",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("begun_at", Timestamp, nullable=False),
    Column("compared_at", Timestamp),  # NULL: none has ended yet
    Column("drift", BigInteger, nullable=False, server_default="0"),
)

# What was really computed. At most one billed row a job; wasted attempts are rows too, never billed.
usage = Table(
    "usage",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("api_key_id", Uuid),
    Column("model", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False, server_default="0"),  # millionths of the currency
    Column("at", Timestamp, nullable=False, server_default=func.now()),
    CheckConstraint("kind IN ('billed', 'wasted')", name="kind_known"),
    Index("uq_usage_one_billed_row", "job_id", unique=True, postgresql_where=text("kind = 'billed'")),
    Index(None, "tenant_id", "at"),
    Index(
        None, "at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}
    ),  # an hour of it: rows come in order
)

# Billed usage of an hour that is over, added up; which hours are is a row each of `usage_rollups`.
usage_hours = Table(
    "usage_hours",
    metadata,
    Column("hour", Timestamp, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("api_key_id", Uuid),
    Column("jobs", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Index(None, "tenant_id", "hour"),
)

usage_rollups = Table(
    "usage_rollups",
    metadata,
    Column("hour", Timestamp, primary_key=True),
    Column("rolled_up_at", Timestamp, nullable=False, server_default=func.now()),
)

# The same of jobs that were deleted, by UTC day of their end, where usage isn't kept row by row for ever.
usage_days = Table(
    "usage_days",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("api_key_id", Uuid),
    Column("model", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("day", Date, nullable=False),
    Column("kind", Text, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Index(
        "uq_usage_days", "tenant_id", "day", "model", "tier", "kind", "api_key_id",
        unique=True, postgresql_nulls_not_distinct=True,
    ),
)  # fmt: skip

# Every act of an operator, whoever and by whatever face.
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("at", Timestamp, nullable=False, server_default=func.now()),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Index(None, "at"),
    # What somebody did, what was done to something: newest first.
    Index("ix_audit_log_actor_id", "actor", "id"),
    Index("ix_audit_log_target_id", "target", "id"),
)
