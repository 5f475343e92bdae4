"""What do the admin API's answers on tenants, keys, budgets and prices look like? Built, and described for the OpenAPI document."""

from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.documents import Described
from app.jobs.prices import Priced
from app.quotas.budget_acts import BudgetView
from app.quotas.key_acts import FreshKey, KeyView
from app.quotas.tenants import Tenant


def tenant_object(tenant: Tenant) -> dict[str, Any]:
    """A tenant; its webhook secret is shown by `penstock keys webhook-secret` only."""
    return {"object": "tenant", **asdict(tenant)}


def key_object(key: KeyView) -> dict[str, Any]:
    """A key without its secrets."""
    known = asdict(key)
    return {"object": "api_key", "id": str(known.pop("id")), "tenant": known.pop("tenant_id"), **known}


def fresh_key_object(fresh: FreshKey) -> dict[str, Any]:
    """A key with its token, the only time."""
    return key_object(fresh.key) | {"token": fresh.token}


def budget_object(budget: BudgetView) -> dict[str, Any]:
    """A budget with its current window."""
    return {
        "object": "budget",
        "id": str(budget.id),
        "tenant": budget.tenant_id,
        "key": budget.key,
        "metric": budget.metric,
        "period": budget.period,
        "limit": budget.limit,
        "thresholds": budget.thresholds,
        "created_at": budget.created_at,
        "retired_at": budget.retired_at,
        "window": {
            "start": budget.window_start,
            "end": budget.window_end,
            "used": budget.used,
            "reserved": budget.reserved,
            "remaining": budget.remaining,
        },
    }


def price_object(model: Priced) -> dict[str, Any]:
    """A model's prices."""
    return {"object": "model_price", **asdict(model)}


def _page(example: dict[str, Any]) -> ConfigDict:
    listed: dict[str, Any] = {"object": "list", "data": [example], "has_more": False, "next_cursor": None}
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [listed]})


_NO_RATES: dict[str, Any] = {
    "requests_per_minute": None,
    "request_burst": None,
    "tokens_per_minute": None,
    "token_burst": None,
}
TENANT_EXAMPLE: dict[str, Any] = {
    "object": "tenant",
    "id": "acme",
    "display_name": "Acme Ltd",
    "weight": 2,
    "tiers": ["standard", "batch"],
    "max_running_jobs": None,
    "max_queued_jobs": 1000,
    "max_queued_tokens": None,
    "max_prompt_tokens": None,
    "max_output_tokens": 4096,
    **_NO_RATES,
    "share_identical_s": None,
    "bill_shared": True,
    "retention_days": None,
    "content_retention_s": None,
    "suspended_at": None,
    "created_at": "2026-01-31T12:00:00.000000Z",
}
KEY_EXAMPLE: dict[str, Any] = {
    "object": "api_key",
    "id": "0197a1b2-c3d4-7e8f-9a0b-1c2d3e4f5a6b",
    "tenant": "acme",
    "name": "nightly import",
    "prefix": "0123456789ab",
    "scopes": ["jobs:read", "jobs:write"],
    "created_at": "2026-01-31T12:00:00.000000Z",
    "expires_at": None,
    "revoked_at": None,
    "old_prefix": None,
    "old_until": None,
    **_NO_RATES,
    "state": "valid",
}
BUDGET_EXAMPLE: dict[str, Any] = {
    "object": "budget",
    "id": "0197a1b2-c3d4-7e8f-9a0b-1c2d3e4f5a6c",
    "tenant": "acme",
    "key": None,
    "metric": "total_tokens",
    "period": "day",
    "limit": 1_000_000,
    "thresholds": [80, 100],
    "created_at": "2026-01-31T12:00:00.000000Z",
    "retired_at": None,
    "window": {
        "start": "2026-01-31T00:00:00Z",
        "end": "2026-02-01T00:00:00Z",
        "used": 120_000,
        "reserved": 3_000,
        "remaining": 877_000,
    },
}
PRICE_EXAMPLE: dict[str, Any] = {
    "object": "model_price",
    "name": "tiny-stories",
    "max_model_len": 2048,
    "input_price": 150_000,
    "output_price": 600_000,
    "fallback": None,
}


class RatesShown(Described):
    """Rates of a tenant or key; null is no limit."""

    requests_per_minute: int | None = Field(ge=1)
    request_burst: int | None = Field(ge=1)
    tokens_per_minute: int | None = Field(ge=1)
    token_burst: int | None = Field(ge=1)


class TenantObject(RatesShown):
    """A tenant and what it may have; null is no limit."""

    model_config = ConfigDict(json_schema_extra={"examples": [TENANT_EXAMPLE]})

    object: Literal["tenant"]
    id: str
    display_name: str
    weight: int = Field(ge=1, le=1000)
    tiers: list[Literal["interactive", "standard", "batch"]]
    max_running_jobs: int | None = Field(ge=0)
    max_queued_jobs: int | None = Field(ge=0)
    max_queued_tokens: int | None = Field(ge=0)
    max_prompt_tokens: int | None = Field(ge=0)
    max_output_tokens: int | None = Field(ge=0)
    share_identical_s: int | None = Field(ge=1)
    bill_shared: bool
    retention_days: int | None = Field(ge=1, description="Null: as the installation's setting says.")
    content_retention_s: int | None = Field(ge=60, description="Null: as long as the job.")
    suspended_at: datetime | None
    created_at: datetime


class TenantPage(Described):
    """A page of tenants, by id."""

    model_config = _page(TENANT_EXAMPLE)

    object: Literal["list"]
    data: list[TenantObject]
    has_more: bool
    next_cursor: str | None


class KeyObject(RatesShown):
    """An API key without its secrets."""

    model_config = ConfigDict(json_schema_extra={"examples": [KEY_EXAMPLE]})

    object: Literal["api_key"]
    id: str
    tenant: str
    name: str
    prefix: str = Field(pattern="^[0-9a-f]{12}$", description="Its name in paths and lists; a rotation changes it.")
    scopes: list[Literal["jobs:read", "jobs:write", "admin"]]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    old_prefix: str | None = Field(description="Of the secret before the last rotation, while that is valid, too.")
    old_until: datetime | None
    state: Literal["valid", "expired", "revoked"]


class FreshKeyObject(KeyObject):
    """An API key with its token."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [KEY_EXAMPLE | {"token": "pk_0123456789ab_EXAMPLE-EXAMPLE-EXAMPLE"}]}
    )

    token: str = Field(description="Shown now, and never again.")


class KeyPage(Described):
    """A page of keys, oldest first."""

    model_config = _page(KEY_EXAMPLE)

    object: Literal["list"]
    data: list[KeyObject]
    has_more: bool
    next_cursor: str | None


class BudgetWindow(Described):
    """The window that counts now; in UTC."""

    start: datetime
    end: datetime | None = Field(description="When the next one begins; null: never.")
    used: int = Field(ge=0, description="By jobs that have ended.")
    reserved: int = Field(ge=0, description="By jobs that wait or run, as they may need at most.")
    remaining: int = Field(ge=0)


class BudgetObject(Described):
    """A budget; amounts are tokens, requests, or millionths of the currency."""

    model_config = ConfigDict(json_schema_extra={"examples": [BUDGET_EXAMPLE]})

    object: Literal["budget"]
    id: str
    tenant: str
    key: str | None = Field(description="The prefix of the key that it holds; null: all of the tenant's.")
    metric: Literal["input_tokens", "output_tokens", "total_tokens", "requests", "cost"]
    period: Literal["minute", "hour", "day", "month", "total"]
    limit: int = Field(ge=0)
    thresholds: list[int]
    created_at: datetime
    retired_at: datetime | None
    window: BudgetWindow


class BudgetPage(Described):
    """A page of budgets, oldest first."""

    model_config = _page(BUDGET_EXAMPLE)

    object: Literal["list"]
    data: list[BudgetObject]
    has_more: bool
    next_cursor: str | None


class PriceObject(Described):
    """A model's prices in millionths of the currency for a million tokens, and what stands in for it."""

    model_config = ConfigDict(json_schema_extra={"examples": [PRICE_EXAMPLE]})

    object: Literal["model_price"]
    name: str
    max_model_len: int = Field(ge=1)
    input_price: int = Field(ge=0)
    output_price: int = Field(ge=0)
    fallback: str | None


DESCRIBED: tuple[type[BaseModel], ...] = (
    TenantObject, TenantPage, KeyObject, FreshKeyObject, KeyPage, BudgetObject, BudgetPage, PriceObject,
)  # fmt: skip
