"""Are tenants, keys and budgets made, changed and ended as they should, each act written down, also by many at once?"""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.errors import (
    AlreadyExists,
    BudgetExhausted,
    BudgetRetired,
    InvalidRequest,
    KeyEnded,
    NotFound,
    Unauthenticated,
    Unavailable,
    UnknownModel,
)
from app.jobs import prices
from app.jobs.prices import ModelChange
from app.jobs.submit import Caller, accept
from app.quotas import budget_acts, key_acts, tenants
from app.quotas.keys import authenticate
from app.quotas.tables import api_keys, audit_log
from app.quotas.wanted import (
    BudgetChange,
    BudgetWanted,
    KeyChange,
    KeyRotation,
    KeyWanted,
    TenantChange,
    TenantWanted,
)
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.jobs import MODEL, prepared, seed, submit

PEPPER = "pepper"
DAY = BudgetWanted(metric="total_tokens", period="day", limit=1000)


async def acts(engine: AsyncEngine) -> list[tuple[str, str, dict[str, Any]]]:
    async with engine.connect() as conn:
        found = await conn.execute(
            select(audit_log.c.action, audit_log.c.target, audit_log.c.detail, audit_log.c.actor).order_by(
                audit_log.c.id
            )
        )
        rows = found.all()
    assert {row.actor for row in rows} <= {"op"}
    return [(row.action, row.target, row.detail) for row in rows]


async def doing(engine: AsyncEngine, act: Any, *args: Any, **options: Any) -> Any:
    """One act in a transaction of its own."""
    async with engine.begin() as conn:
        return await act(conn, *args, actor="op", **options)


# --- tenants ---------------------------------------------------------------------------------------------------------


async def test_a_tenant_is_made_changed_suspended_and_resumed_and_each_act_is_written_down(engine: AsyncEngine) -> None:
    made = await doing(engine, tenants.create_tenant, TenantWanted(id="acme", weight=2, max_queued_jobs=10))
    assert (made.weight, made.tiers, made.max_queued_jobs) == (2, ["interactive", "standard", "batch"], 10)
    changed = await doing(
        engine, tenants.change_tenant, "acme", TenantChange.model_validate({"max_queued_jobs": None, "weight": 2})
    )
    assert (changed.max_queued_jobs, changed.weight) == (None, 2)
    suspended = await doing(engine, tenants.suspend_tenant, "acme", reason="unpaid")
    assert suspended.suspended_at is not None
    again = await doing(engine, tenants.suspend_tenant, "acme", reason="unpaid")
    assert again == suspended
    assert (await doing(engine, tenants.resume_tenant, "acme", reason="paid")).suspended_at is None
    assert (await doing(engine, tenants.resume_tenant, "acme", reason="paid")).suspended_at is None
    assert await acts(engine) == [
        ("tenant.create", "acme", {"id": "acme", "weight": 2, "max_queued_jobs": 10}),
        ("tenant.change", "acme", {"max_queued_jobs": [10, None]}),
        ("tenant.suspend", "acme", {"reason": "unpaid"}),
        ("tenant.resume", "acme", {"reason": "paid"}),
    ]


async def test_of_many_who_make_the_same_tenant_one_does(engine: AsyncEngine) -> None:
    outcomes = await asyncio.gather(
        *(doing(engine, tenants.create_tenant, TenantWanted(id="acme")) for _ in range(8)), return_exceptions=True
    )
    assert sum(isinstance(each, tenants.Tenant) for each in outcomes) == 1
    assert sum(isinstance(each, AlreadyExists) for each in outcomes) == 7
    assert [action for action, _, _ in await acts(engine)] == ["tenant.create"]


async def test_changes_at_once_are_all_told_as_they_happened(engine: AsyncEngine) -> None:
    """The log of acts leads from the first value to the last, without a gap: nobody overwrites what they didn't see."""
    await doing(engine, tenants.create_tenant, TenantWanted(id="acme"))
    await asyncio.gather(
        *(doing(engine, tenants.change_tenant, "acme", TenantChange(weight=weight)) for weight in range(2, 12))
    )
    chain = [detail["weight"] for action, _, detail in await acts(engine) if action == "tenant.change"]
    assert len(chain) == 10
    assert [before for before, _ in chain] == [1, *(after for _, after in chain[:-1])]


async def test_a_tenant_that_is_not_there_is_not_found(engine: AsyncEngine) -> None:
    for act, args in (
        (tenants.change_tenant, (TenantChange(weight=2),)),
        (key_acts.make_key, (KeyWanted(),)),
        (budget_acts.create_budget, (DAY,)),
    ):
        options = {"pepper": PEPPER} if act is key_acts.make_key else {}
        with pytest.raises(NotFound):
            await doing(engine, act, "nobody", *args, **options)
    for act in (tenants.suspend_tenant, tenants.resume_tenant):
        with pytest.raises(NotFound):
            await doing(engine, act, "nobody", reason="x")
    assert await acts(engine) == []


async def test_tenants_come_in_pages_by_id_and_by_state(engine: AsyncEngine) -> None:
    await seed(engine, "c", "a", "b-2", "b-1")
    await doing(engine, tenants.suspend_tenant, "b-1", reason="x")
    async with engine.connect() as conn:
        first = await tenants.list_tenants(conn, limit=3)
        rest = await tenants.list_tenants(conn, limit=3, after=first[-1].id)
        assert sorted(each.id for each in [*first, *rest]) == ["a", "b-1", "b-2", "c"]
        assert [each.id for each in await tenants.list_tenants(conn, limit=9, state="suspended")] == ["b-1"]
        assert len(await tenants.list_tenants(conn, limit=9, state="active")) == 3


# --- keys ------------------------------------------------------------------------------------------------------------


async def make_key(engine: AsyncEngine, **wanted: Any) -> key_acts.FreshKey:
    found: key_acts.FreshKey = await doing(
        engine, key_acts.make_key, "acme", KeyWanted.model_validate(wanted), pepper=PEPPER
    )
    return found


async def rotate(engine: AsyncEngine, prefix: str, **wanted: Any) -> key_acts.FreshKey:
    found: key_acts.FreshKey = await doing(
        engine, key_acts.rotate_key, prefix, KeyRotation.model_validate(wanted), pepper=PEPPER
    )
    return found


async def opens(engine: AsyncEngine, token: str) -> UUID | None:
    """The key that a token opens, if it does."""
    async with engine.connect() as conn:
        try:
            return (await authenticate(conn, token, pepper=PEPPER)).id
        except Unauthenticated:
            return None


async def later(engine: AsyncEngine, column: str) -> None:
    """As if this time had come."""
    async with engine.begin() as conn:
        await conn.execute(
            text(f"UPDATE api_keys SET {column} = now() - interval '1 second' WHERE {column} IS NOT NULL")
        )


async def test_both_secrets_open_the_same_key_until_the_overlap_is_over(engine: AsyncEngine) -> None:
    await seed(engine)
    old = await make_key(engine, requests_per_minute=60)
    new = await rotate(engine, old.key.prefix, overlap_s=3600)
    assert (new.key.id, new.key.requests_per_minute) == (old.key.id, 60)
    assert new.key.old_prefix == old.key.prefix
    assert await opens(engine, old.token) == await opens(engine, new.token) == old.key.id
    await later(engine, "old_until")
    assert (await opens(engine, old.token), await opens(engine, new.token)) == (None, old.key.id)
    async with engine.connect() as conn:
        (shown,) = await key_acts.list_keys(conn, "acme", limit=9)
    assert (shown.old_prefix, shown.old_until, shown.prefix) == (None, None, new.key.prefix)


async def test_without_an_overlap_the_secret_before_ends_at_once(engine: AsyncEngine) -> None:
    await seed(engine)
    old = await make_key(engine)
    new = await rotate(engine, old.key.prefix, overlap_s=0)
    assert (await opens(engine, old.token), await opens(engine, new.token)) == (None, old.key.id)


async def test_a_second_rotation_ends_the_first_secret(engine: AsyncEngine) -> None:
    await seed(engine)
    first = await make_key(engine)
    second = await rotate(engine, first.key.prefix)
    third = await rotate(engine, second.key.prefix)
    assert [await opens(engine, each.token) is not None for each in (first, second, third)] == [False, True, True]


async def test_halves_of_two_secrets_open_nothing(engine: AsyncEngine) -> None:
    await seed(engine)
    old = await make_key(engine)
    new = await rotate(engine, old.key.prefix)
    (_, old_prefix, old_secret), (_, new_prefix, new_secret) = (each.token.split("_", 2) for each in (old, new))
    assert await opens(engine, f"pk_{old_prefix}_{new_secret}") is None
    assert await opens(engine, f"pk_{new_prefix}_{old_secret}") is None


async def test_of_many_who_rotate_a_key_one_does_and_the_others_learn_its_prefix(engine: AsyncEngine) -> None:
    await seed(engine)
    key = (await make_key(engine)).key
    outcomes = await asyncio.gather(*(rotate(engine, key.prefix) for _ in range(6)), return_exceptions=True)
    (won,) = [each for each in outcomes if isinstance(each, key_acts.FreshKey)]
    lost = [each for each in outcomes if isinstance(each, KeyEnded)]
    assert len(lost) == 5
    assert all(f"its prefix is {won.key.prefix} now" in each.detail for each in lost)
    assert await opens(engine, won.token) == key.id


@pytest.mark.parametrize("by_old_prefix", [False, True])
async def test_a_revocation_ends_both_secrets(engine: AsyncEngine, by_old_prefix: bool) -> None:
    await seed(engine)
    old = await make_key(engine)
    new = await rotate(engine, old.key.prefix)
    revoked = await doing(engine, key_acts.revoke_key, (old if by_old_prefix else new).key.prefix)
    assert revoked.state == "revoked"
    assert await doing(engine, key_acts.revoke_key, new.key.prefix) == revoked
    assert (await opens(engine, old.token), await opens(engine, new.token)) == (None, None)
    with pytest.raises(KeyEnded, match="is revoked"):
        await rotate(engine, new.key.prefix)
    assert [action for action, _, _ in await acts(engine)] == ["key.create", "key.rotate", "key.revoke"]


async def test_an_expired_key_isnt_rotated_and_a_rotation_can_move_the_expiry(engine: AsyncEngine) -> None:
    await seed(engine)
    kept = await make_key(engine, expires_in_s=3600)
    moved = await rotate(engine, kept.key.prefix)
    assert moved.key.expires_at == kept.key.expires_at
    assert (await rotate(engine, moved.key.prefix, expires_in_s=None)).key.expires_at is None
    ending = await make_key(engine, expires_in_s=3600)
    later_one = await rotate(engine, ending.key.prefix, expires_in_s=7200, overlap_s=60)
    assert later_one.key.expires_at is not None
    assert ending.key.expires_at is not None
    assert later_one.key.expires_at > ending.key.expires_at
    await later(engine, "expires_at")
    with pytest.raises(KeyEnded, match="is expired"):
        await rotate(engine, later_one.key.prefix)


async def test_a_change_keeps_both_secrets_and_what_has_expired_stays_so(engine: AsyncEngine) -> None:
    await seed(engine)
    old = await make_key(engine, expires_in_s=3600)
    new = await rotate(engine, old.key.prefix)
    change = KeyChange.model_validate({"name": "renamed"})
    for given in (old, new):  # by either prefix, as a revocation
        assert (await doing(engine, key_acts.change_key, given.key.prefix, change)).id == old.key.id
    assert await opens(engine, old.token) == await opens(engine, new.token) == old.key.id
    assert [action for action, _, _ in await acts(engine)] == ["key.create", "key.rotate", "key.change"]
    await later(engine, "expires_at")
    with pytest.raises(KeyEnded, match="is expired"):
        await doing(engine, key_acts.change_key, new.key.prefix, KeyChange.model_validate({"expires_at": None}))
    assert (await opens(engine, old.token), await opens(engine, new.token)) == (None, None)


async def test_no_secret_is_stored_or_written_down(engine: AsyncEngine) -> None:
    await seed(engine)
    old = await make_key(engine, name="n")
    new = await rotate(engine, old.key.prefix)
    async with engine.connect() as conn:
        stored = str((await conn.execute(select(api_keys))).all()) + str((await conn.execute(select(audit_log))).all())
    for each in (old, new):
        assert each.token.split("_", 2)[2] not in stored
        assert each.key.prefix in stored


# --- budgets ---------------------------------------------------------------------------------------------------------


async def test_of_many_who_make_the_same_budget_one_does(engine: AsyncEngine) -> None:
    await seed(engine)
    outcomes = await asyncio.gather(
        *(doing(engine, budget_acts.create_budget, "acme", DAY) for _ in range(8)), return_exceptions=True
    )
    (made,) = [each for each in outcomes if isinstance(each, budget_acts.BudgetView)]
    lost = [each for each in outcomes if isinstance(each, AlreadyExists)]
    assert len(lost) == 7
    assert {each.extra["budget_id"] for each in lost} == {str(made.id)}
    await doing(engine, budget_acts.retire_budget, made.id)
    assert (await doing(engine, budget_acts.create_budget, "acme", DAY)).id != made.id


async def test_a_budget_shows_what_its_window_holds(engine: AsyncEngine, settings: Settings) -> None:
    await seed(engine)
    budget = await doing(engine, budget_acts.create_budget, "acme", DAY)
    assert (budget.used, budget.reserved, budget.remaining) == (0, 0, 1000)
    await submit(engine, settings)
    cost = prepared(settings).cost
    async with engine.connect() as conn:
        seen = await budget_acts.read_budget(conn, budget.id)
    assert (seen.used, seen.reserved, seen.remaining) == (0, cost, 1000 - cost)
    assert seen.window_end is not None
    assert (seen.window_end - seen.window_start).total_seconds() == 86_400


async def test_a_limit_below_what_is_reserved_takes_nothing_back_and_lets_nothing_in(
    engine: AsyncEngine, settings: Settings
) -> None:
    await seed(engine)
    budget = await doing(engine, budget_acts.create_budget, "acme", DAY)
    await submit(engine, settings)
    cost = prepared(settings).cost
    lowered = await doing(engine, budget_acts.change_budget, budget.id, BudgetChange(limit=cost - 1))
    assert (lowered.limit, lowered.reserved, lowered.remaining) == (cost - 1, cost, 0)
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings)
    await assert_audit_clean(engine, None)
    await doing(engine, budget_acts.change_budget, budget.id, BudgetChange(limit=2 * cost))
    await submit(engine, settings)
    with pytest.raises(BudgetExhausted):
        await submit(engine, settings)
    await assert_audit_clean(engine, None)
    changes = [detail for action, _, detail in await acts(engine) if action == "budget.change"]
    assert [(each["limit"], each["reserved"]) for each in changes] == [
        ([1000, cost - 1], cost),
        ([cost - 1, 2 * cost], cost),
    ]


async def test_a_retired_budget_holds_nothing_back_and_is_changed_no_more(
    engine: AsyncEngine, settings: Settings
) -> None:
    await seed(engine)
    budget = await doing(engine, budget_acts.create_budget, "acme", DAY)
    await submit(engine, settings)
    await doing(engine, budget_acts.change_budget, budget.id, BudgetChange(limit=0))
    retired = await doing(engine, budget_acts.retire_budget, budget.id)
    assert (retired.remaining, retired.reserved) == (0, prepared(settings).cost)
    assert await doing(engine, budget_acts.retire_budget, budget.id) == retired
    await submit(engine, settings)
    with pytest.raises(BudgetRetired):
        await doing(engine, budget_acts.change_budget, budget.id, BudgetChange(limit=1))
    async with engine.connect() as conn:
        assert await budget_acts.list_budgets(conn, "acme", limit=9) == []
        assert [each.id for each in await budget_acts.list_budgets(conn, "acme", limit=9, retired=True)] == [budget.id]
    await assert_audit_clean(engine, None)


async def test_a_keys_budget_holds_that_key_only_and_needs_a_key_of_the_tenant(
    engine: AsyncEngine, settings: Settings
) -> None:
    await seed(engine, "acme", "rival")
    key, other = (await make_key(engine)).key, (await make_key(engine)).key
    wanted = BudgetWanted(metric="requests", period="total", limit=0, key=key.prefix)
    with pytest.raises(InvalidRequest, match="'rival' has no key"):
        await doing(engine, budget_acts.create_budget, "rival", wanted)
    budget = await doing(engine, budget_acts.create_budget, "acme", wanted)
    assert (budget.key, budget.window_end) == (key.prefix, None)

    async def submit_with(key_id: UUID) -> None:
        async with engine.begin() as conn:
            await accept(conn, Caller("acme", key_id), [prepared(settings)])

    with pytest.raises(BudgetExhausted):
        await submit_with(key.id)
    await submit_with(other.id)
    fresh = await rotate(engine, key.prefix)
    async with engine.connect() as conn:
        assert (await budget_acts.read_budget(conn, budget.id)).key == fresh.key.prefix
    with pytest.raises(BudgetExhausted):
        await submit_with(key.id)


async def test_limits_and_submissions_at_once_neither_deadlock_nor_leave_drift(
    engine: AsyncEngine, settings: Settings
) -> None:
    await seed(engine)
    ids = [
        (await doing(engine, budget_acts.create_budget, "acme", DAY.model_copy(update={"period": period}))).id
        for period in ("hour", "day", "total")
    ]
    cost = prepared(settings).cost
    changes = [
        doing(engine, budget_acts.change_budget, ids[turn % 3], BudgetChange(limit=cost * (turn % 7)))
        for turn in range(18)
    ]
    refusals = (BudgetExhausted, Unavailable)  # the second: its budget was changed under it
    outcomes = await asyncio.gather(*changes, *(submit(engine, settings) for _ in range(30)), return_exceptions=True)
    unforeseen = [each for each in outcomes if isinstance(each, Exception) and not isinstance(each, refusals)]
    assert unforeseen == []
    await assert_audit_clean(engine, None)


# --- prices ----------------------------------------------------------------------------------------------------------


async def test_a_models_price_and_fallback_are_set_and_survive_a_registration(engine: AsyncEngine) -> None:
    await seed(engine)
    change = ModelChange(input_price=150_000, output_price=600_000)
    priced = await doing(engine, prices.change_price, MODEL.name, change)
    assert (priced.input_price, priced.output_price, priced.fallback) == (150_000, 600_000, None)
    await seed(engine)  # its worker registers it again
    async with engine.connect() as conn:
        assert await prices.read_price(conn, MODEL.name) == priced
    for fallback, said in ((MODEL.name, "another model"), ("nothing", "not known")):
        with pytest.raises(InvalidRequest, match=said):
            await doing(engine, prices.change_price, MODEL.name, ModelChange(fallback=fallback))
    with pytest.raises(UnknownModel):
        await doing(engine, prices.change_price, "nothing", change)
    assert await acts(engine) == [
        ("model.change", MODEL.name, {"input_price": [0, 150_000], "output_price": [0, 600_000]})
    ]
