"""Is each field of tenants, keys and budgets held to its bounds, and are rights judged to the token?"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest, OverTenantLimit, TenantSuspended, TierNotAllowed
from app.quotas.rights import ALL_RIGHTS, Rights, check_rights, check_size
from app.quotas.wanted import (
    Because,
    BudgetChange,
    BudgetWanted,
    KeyRotation,
    KeyWanted,
    TenantChange,
    TenantWanted,
    checked,
)

BUDGET = {"metric": "requests", "period": "day", "limit": 1}


@pytest.mark.parametrize(
    ("model", "values", "field"),
    [
        (TenantWanted, {"id": "Acme"}, "id"),
        (TenantWanted, {"id": "a" * 64}, "id"),
        (TenantWanted, {"id": "a\n"}, "id"),
        (TenantWanted, {"id": "a\x00"}, "id"),
        (TenantWanted, {}, "id"),
        (TenantWanted, {"id": "a", "weight": 0}, "weight"),
        (TenantWanted, {"id": "a", "weight": 1001}, "weight"),
        (TenantWanted, {"id": "a", "weight": True}, "weight"),
        (TenantWanted, {"id": "a", "weight": 1.0}, "weight"),
        (TenantWanted, {"id": "a", "tiers": []}, "tiers"),
        (TenantWanted, {"id": "a", "tiers": ["gold"]}, "tiers"),
        (TenantWanted, {"id": "a", "max_queued_jobs": -1}, "max_queued_jobs"),
        (TenantWanted, {"id": "a", "max_queued_jobs": 2**31}, "max_queued_jobs"),
        (TenantWanted, {"id": "a", "max_queued_tokens": 2**63}, "max_queued_tokens"),
        (TenantWanted, {"id": "a", "max_output_tokens": "5"}, "max_output_tokens"),
        (TenantWanted, {"id": "a", "requests_per_minute": 0}, "requests_per_minute"),
        (TenantWanted, {"id": "a", "token_burst": 10**9}, "token_burst"),
        (TenantWanted, {"id": "a", "display_name": "x\x1b[2J"}, "display_name"),
        (TenantWanted, {"id": "a", "display_name": "x\u202e"}, "display_name"),
        (TenantWanted, {"id": "a", "display_name": "x" * 201}, "display_name"),
        (TenantWanted, {"id": "a", "webhook_secret": "x"}, "webhook_secret"),
        (TenantWanted, {"id": "a", "suspended_at": None}, "suspended_at"),
        (TenantChange, {"weight": None}, "weight"),
        (TenantChange, {"tiers": None}, "tiers"),
        (TenantChange, {"id": "b"}, "id"),
        (Because, {"reason": ""}, "reason"),
        (Because, {"reason": "  "}, "reason"),
        (Because, {"reason": "x" * 501}, "reason"),
        (KeyWanted, {"scopes": []}, "scopes"),
        (KeyWanted, {"scopes": ["root"]}, "scopes"),
        (KeyWanted, {"expires_in_s": 0}, "expires_in_s"),
        (KeyWanted, {"expires_in_s": 10**12}, "expires_in_s"),
        (KeyWanted, {"expires_in_s": float("nan")}, "expires_in_s"),
        (KeyRotation, {"overlap_s": -1}, "overlap_s"),
        (KeyRotation, {"overlap_s": None}, "overlap_s"),
        (KeyRotation, {"overlap_s": 91 * 86_400}, "overlap_s"),
        (BudgetWanted, BUDGET | {"metric": "joules"}, "metric"),
        (BudgetWanted, BUDGET | {"period": "week"}, "period"),
        (BudgetWanted, BUDGET | {"limit": -1}, "limit"),
        (BudgetWanted, BUDGET | {"limit": 10**15 + 1}, "limit"),
        (BudgetWanted, BUDGET | {"thresholds": [0]}, "thresholds"),
        (BudgetWanted, BUDGET | {"thresholds": [101]}, "thresholds"),
        (BudgetWanted, BUDGET | {"thresholds": list(range(1, 12))}, "thresholds"),
        (BudgetWanted, BUDGET | {"key": "pk_0123456789ab"}, "key"),
        (BudgetChange, {"limit": None}, "limit"),
        (BudgetChange, {"metric": "requests"}, "metric"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_its_field(model: Any, values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: must ") as refused:
        checked(model, values)
    assert refused.value.extra["param"] == field


def test_a_change_says_only_what_was_said() -> None:
    assert checked(TenantChange, {}).given() == {}
    assert checked(TenantChange, {"max_queued_jobs": None, "weight": 3}).given() == {
        "max_queued_jobs": None,
        "weight": 3,
    }
    assert checked(BudgetChange, {"thresholds": [100, 80, 80]}).given() == {"thresholds": [80, 100]}


def test_lists_are_put_in_order_without_doubles() -> None:
    assert checked(TenantWanted, {"id": "a", "tiers": ["batch", "interactive", "batch"]}).tiers == [
        "interactive",
        "batch",
    ]
    assert checked(KeyWanted, {"scopes": ["admin", "jobs:read"]}).scopes == ["jobs:read", "admin"]


def test_a_suspended_tenant_may_ask_for_nothing() -> None:
    with pytest.raises(TenantSuspended):
        check_rights(Rights(is_suspended=True), tier="batch")


def test_a_tier_that_is_not_allowed_is_refused_and_the_others_are_named() -> None:
    rights = Rights(tiers=("standard", "batch"))
    check_rights(rights, tier="batch")
    with pytest.raises(TierNotAllowed, match="may not use interactive; it may use standard, batch") as refused:
        check_rights(rights, tier="interactive")
    assert (refused.value.status, refused.value.extra["allowed"]) == (403, ["standard", "batch"])


@given(
    st.integers(0, 100),
    st.integers(1, 8),
    st.integers(1, 100),
    st.none() | st.integers(0, 300),
    st.none() | st.integers(0, 100),
)
def test_a_request_is_refused_exactly_where_it_passes_a_maximum(
    prompt: int, n: int, max_tokens: int, most_output: int | None, most_prompt: int | None
) -> None:
    rights = Rights(max_prompt_tokens=most_prompt, max_output_tokens=most_output)
    too_long = most_prompt is not None and prompt > most_prompt
    too_much = most_output is not None and n * max_tokens > most_output
    if not too_long and not too_much:
        check_size(rights, prompt_tokens=prompt, n=n, max_tokens=max_tokens, prompt_field="messages")
        return
    with pytest.raises(OverTenantLimit) as refused:
        check_size(rights, prompt_tokens=prompt, n=n, max_tokens=max_tokens, prompt_field="messages")
    field, limit = ("messages", most_prompt) if too_long else ("max_tokens", most_output)
    assert (refused.value.status, refused.value.extra) == (400, {"param": field, "limit": limit})


def test_who_has_no_limits_is_held_to_none() -> None:
    check_rights(ALL_RIGHTS, tier="interactive")
    check_size(ALL_RIGHTS, prompt_tokens=10**9, n=128, max_tokens=10**9)
