"""Caps, rates and tiers of tenants, rotation of keys, cost and waiting for a budget, prices, identical work once."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:  # noqa: PLR0915 - a list
    """Apply."""
    op.add_column("api_keys", sa.Column("old_prefix", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("old_hash", sa.LargeBinary(), nullable=True))
    op.add_column("api_keys", sa.Column("old_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("request_burst", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("tokens_per_minute", sa.BigInteger(), nullable=True))
    op.add_column("api_keys", sa.Column("token_burst", sa.BigInteger(), nullable=True))
    op.create_unique_constraint(op.f("uq_api_keys_old_prefix"), "api_keys", ["old_prefix"])
    op.add_column("budget_windows", sa.Column("warned", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column(
        "budgets",
        sa.Column(
            "thresholds", postgresql.ARRAY(sa.SmallInteger()), server_default=sa.text("'{80,100}'"), nullable=False
        ),
    )
    op.add_column("budgets", sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_constraint(op.f("uq_budgets_tenant_id_api_key_id_metric_period"), "budgets", type_="unique")
    op.create_index(
        "uq_budgets_applying",
        "budgets",
        ["tenant_id", "api_key_id", "metric", "period"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.add_column("jobs", sa.Column("on_budget", sa.Text(), server_default="reject", nullable=False))
    op.add_column("jobs", sa.Column("held_by", sa.Uuid(), nullable=True))
    op.add_column("jobs", sa.Column("input_price", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("output_price", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("changes", postgresql.JSONB(), nullable=True))
    op.add_column("jobs", sa.Column("work_key", sa.LargeBinary(), nullable=True))
    op.add_column("jobs", sa.Column("shared_from", sa.Uuid(), nullable=True))
    op.create_index(
        "ix_jobs_shared",
        "jobs",
        ["shared_from"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND shared_from IS NOT NULL"),
    )
    op.create_index("ix_jobs_held", "jobs", ["held_by"], unique=False, postgresql_where=sa.text("held_by IS NOT NULL"))
    op.create_index(
        "ix_jobs_work",
        "jobs",
        ["tenant_id", "work_key", "id"],
        unique=False,
        postgresql_where=sa.text("work_key IS NOT NULL"),
    )
    op.add_column("models", sa.Column("input_price", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("models", sa.Column("output_price", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("models", sa.Column("fallback", sa.Text(), nullable=True))
    op.add_column(
        "tenants",
        sa.Column(
            "tiers",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{interactive,standard,batch}'"),
            nullable=False,
        ),
    )
    op.add_column("tenants", sa.Column("max_running_jobs", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("max_queued_jobs", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("max_queued_tokens", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("max_prompt_tokens", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("max_output_tokens", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("request_burst", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("tokens_per_minute", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("token_burst", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("share_identical_s", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("bill_shared", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.add_column("tenants", sa.Column("suspended_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("usage", sa.Column("cost_micros", sa.BigInteger(), server_default="0", nullable=False))
    op.create_check_constraint(op.f("ck_tenants_tiers_known"), "tenants", "tiers <@ '{interactive,standard,batch}'")
    op.create_check_constraint(
        op.f("ck_tenants_limits_make_sense"),
        "tenants",
        "least(max_running_jobs, max_queued_jobs, max_queued_tokens, max_prompt_tokens, max_output_tokens) >= 0 AND least(requests_per_minute, request_burst, tokens_per_minute, token_burst, share_identical_s) >= 1",
    )
    op.create_check_constraint(
        op.f("ck_api_keys_old_secret_is_whole"), "api_keys", "num_nulls(old_prefix, old_hash, old_until) IN (0, 3)"
    )
    op.create_check_constraint(
        op.f("ck_api_keys_limits_make_sense"),
        "api_keys",
        "least(requests_per_minute, request_burst, tokens_per_minute, token_burst) >= 1",
    )
    op.create_check_constraint(
        op.f("ck_budgets_thresholds_in_range"), "budgets", "1 <= ALL (thresholds) AND 100 >= ALL (thresholds)"
    )
    op.create_check_constraint(
        op.f("ck_models_prices_not_negative"), "models", "input_price >= 0 AND output_price >= 0"
    )
    op.create_check_constraint(
        op.f("ck_jobs_on_budget_known"), "jobs", "on_budget IN ('reject', 'wait', 'truncate', 'fallback')"
    )
    op.create_check_constraint(
        op.f("ck_jobs_only_waiting_is_held"), "jobs", "(held_by IS NULL) OR (status = 'queued' AND reservation = 0)"
    )
    op.drop_constraint(op.f("ck_budgets_metric_known"), "budgets", type_="check")
    op.create_check_constraint(
        op.f("ck_budgets_metric_known"),
        "budgets",
        "metric IN ('input_tokens', 'output_tokens', 'total_tokens', 'requests', 'cost')",
    )


def downgrade() -> None:
    """Take back. Budgets of cost and retired ones have no place in the older schema: they go."""
    op.execute("DELETE FROM budgets WHERE metric = 'cost' OR retired_at IS NOT NULL")
    op.execute("UPDATE jobs SET reservation = 1 WHERE reservation = 0")
    op.drop_constraint(op.f("ck_budgets_metric_known"), "budgets", type_="check")
    op.create_check_constraint(
        op.f("ck_budgets_metric_known"),
        "budgets",
        "metric IN ('input_tokens', 'output_tokens', 'total_tokens', 'requests')",
    )
    op.drop_column("usage", "cost_micros")
    op.drop_column("tenants", "suspended_at")
    op.drop_column("tenants", "bill_shared")
    op.drop_column("tenants", "share_identical_s")
    op.drop_column("tenants", "token_burst")
    op.drop_column("tenants", "tokens_per_minute")
    op.drop_column("tenants", "request_burst")
    op.drop_column("tenants", "requests_per_minute")
    op.drop_column("tenants", "max_output_tokens")
    op.drop_column("tenants", "max_prompt_tokens")
    op.drop_column("tenants", "max_queued_tokens")
    op.drop_column("tenants", "max_queued_jobs")
    op.drop_column("tenants", "max_running_jobs")
    op.drop_column("tenants", "tiers")
    op.drop_column("models", "fallback")
    op.drop_column("models", "output_price")
    op.drop_column("models", "input_price")
    op.drop_index("ix_jobs_work", table_name="jobs", postgresql_where=sa.text("work_key IS NOT NULL"))
    op.drop_index(
        "ix_jobs_shared", table_name="jobs", postgresql_where=sa.text("status = 'queued' AND shared_from IS NOT NULL")
    )
    op.drop_index("ix_jobs_held", table_name="jobs", postgresql_where=sa.text("held_by IS NOT NULL"))
    op.drop_column("jobs", "shared_from")
    op.drop_column("jobs", "work_key")
    op.drop_column("jobs", "changes")
    op.drop_column("jobs", "output_price")
    op.drop_column("jobs", "input_price")
    op.drop_column("jobs", "held_by")
    op.drop_column("jobs", "on_budget")
    op.drop_index(
        "uq_budgets_applying",
        table_name="budgets",
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.create_unique_constraint(
        op.f("uq_budgets_tenant_id_api_key_id_metric_period"),
        "budgets",
        ["tenant_id", "api_key_id", "metric", "period"],
        postgresql_nulls_not_distinct=True,
    )
    op.drop_column("budgets", "retired_at")
    op.drop_column("budgets", "thresholds")
    op.drop_column("budget_windows", "warned")
    op.drop_constraint(op.f("uq_api_keys_old_prefix"), "api_keys", type_="unique")
    op.drop_column("api_keys", "token_burst")
    op.drop_column("api_keys", "tokens_per_minute")
    op.drop_column("api_keys", "request_burst")
    op.drop_column("api_keys", "requests_per_minute")
    op.drop_column("api_keys", "old_until")
    op.drop_column("api_keys", "old_hash")
    op.drop_column("api_keys", "old_prefix")
