"""What do the forms of tenants, keys and budgets ask for? Their fields as app/quotas/wanted.py checks them."""

from typing import Any

from app.dashboard.forms import Form, flag_of, micros_of, text_of, whole_of, wholes_of
from app.errors import InvalidRequest
from app.quotas.wanted import (
    TIERS,
    BudgetChange,
    BudgetWanted,
    KeyRotation,
    KeyWanted,
    TenantChange,
    TenantWanted,
    checked,
)

CAPS = ("max_running_jobs", "max_queued_jobs", "max_queued_tokens", "max_prompt_tokens", "max_output_tokens")
RATES = ("requests_per_minute", "request_burst", "tokens_per_minute", "token_burst")


def tenant_wanted(form: Form) -> TenantWanted:
    """A new tenant; raises InvalidRequest, which names the field, as all of these do."""
    return checked(TenantWanted, {"id": text_of(form, "id"), "display_name": text_of(form, "display_name")})


def tenant_change(form: Form) -> TenantChange:
    """The form of all of a tenant's limits: what is empty is no limit."""
    weight = whole_of(form, "weight")
    if weight is None:
        raise InvalidRequest("weight: must be a whole number from 1 to 1000", param="weight")
    values: dict[str, Any] = {
        "display_name": text_of(form, "display_name"),
        "weight": weight,
        "tiers": [each for each in TIERS if each in form.get("tiers", [])],
        "bill_shared": flag_of(form, "bill_shared"),
    }
    return checked(TenantChange, values | wholes_of(form, (*CAPS, *RATES, "share_identical_s")))


def key_wanted(form: Form) -> KeyWanted:
    """A new key."""
    days = _days(form)
    values: dict[str, Any] = {"name": text_of(form, "name"), "scopes": form.get("scopes", [])}
    return checked(KeyWanted, values | wholes_of(form, RATES) | ({} if days is None else {"expires_in_s": days}))


def key_rotation(form: Form) -> KeyRotation:
    """A new secret of a key."""
    hours = whole_of(form, "overlap_h")
    return checked(KeyRotation, {"overlap_s": (24 if hours is None else hours) * 3600})


def budget_wanted(form: Form) -> BudgetWanted:
    """A new budget."""
    metric = text_of(form, "metric")
    values = {
        "metric": metric, "period": text_of(form, "period"), "limit": limit_of(form, metric),
        "thresholds": _thresholds(form), "key": text_of(form, "key") or None,
    }  # fmt: skip
    return checked(BudgetWanted, values)


def budget_change(form: Form, metric: str) -> BudgetChange:
    """Limit and thresholds of a budget of this metric."""
    return checked(BudgetChange, {"limit": limit_of(form, metric), "thresholds": _thresholds(form)})


def limit_of(form: Form, metric: str) -> int:
    """The field `limit`: a whole number; of a cost in units of the currency, which are kept in millionths."""
    if metric == "cost":
        micros = micros_of(text_of(form, "limit"))
        if micros is None or abs(micros) > 10**18:
            raise InvalidRequest(
                "limit: must be an amount of the currency, such as 1,250.50: at most six decimals after a point",
                param="limit",
            )
        return micros
    limit = whole_of(form, "limit")
    if limit is None:
        raise InvalidRequest("limit: must be a whole number", param="limit")
    return limit


def _days(form: Form) -> int | None:
    days = whole_of(form, "expires_days")
    return None if days is None else days * 86_400


def _thresholds(form: Form) -> list[int]:
    found = []
    for each in text_of(form, "thresholds").replace("%", " ").replace(",", " ").split():
        if not (each.isascii() and each.isdigit() and len(each) < 4):
            raise InvalidRequest("thresholds: must be whole numbers from 1 to 100, such as 80, 100", param="thresholds")
        found.append(int(each))
    return found
