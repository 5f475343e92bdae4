"""What do the pages of tenants show, change, refuse and preview?"""

import csv
import io
import re
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.jobs.models import Model
from app.queue.streams import JobQueue
from app.quotas.budget_acts import BudgetView, create_budget, list_budgets, read_budget
from app.quotas.tenants import read_tenant
from app.quotas.wanted import BudgetWanted
from app.redis import Redis
from app.settings import Settings
from tests.support.api import HandWorker, Tenant, make_tenant, register_bytes
from tests.support.dashboard import Browser, seen

ALL_LIMITS = {"display_name": "Acme", "weight": "2", "tiers": ["standard", "batch"], "bill_shared": "on"}


@pytest.fixture
async def model(engine: AsyncEngine, redis: Redis) -> Model:
    model = await register_bytes(engine)
    await JobQueue(redis, model.pool).open_epoch("test")
    return model


@pytest.fixture
async def acme(engine: AsyncEngine, settings: Settings, model: Model) -> Tenant:
    return await make_tenant(engine, settings, "acme")


@pytest.fixture
async def budget(engine: AsyncEngine, acme: Tenant) -> BudgetView:
    """1,000 tokens a day."""
    async with engine.begin() as conn:
        wanted = BudgetWanted(metric="total_tokens", period="day", limit=1000)
        return await create_budget(conn, "acme", wanted, actor="test")


async def submit(app: FastAPI, tenant: Tenant, count: int = 1, *, max_tokens: int = 96) -> list[dict[str, object]]:
    """Jobs of 4 + max_tokens tokens."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=tenant.auth) as caller:
        answers = [
            await caller.post("/v1/jobs", json={"prompt": "Once", "max_tokens": max_tokens}) for _ in range(count)
        ]
    assert [each.status_code for each in answers] == [202] * count, answers[-1].text
    return [each.json() for each in answers]


async def test_tenants_are_paged_by_id_searched_and_filtered(viewer: Browser, engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO tenants (id, display_name, webhook_secret, suspended_at) SELECT 't-' || lpad(i::text, 3, '0'), "
                "'100% no. ' || i, 'x', CASE WHEN i = 7 THEN now() END FROM generate_series(1, 120) AS i"
            )
        )
    seen: list[str] = []
    path: str | None = "/admin/tenants"
    while path:
        shown = (await viewer.get(path)).text
        seen += re.findall(r'href="/admin/tenants/(t-\d+)"', shown)
        following = re.search(r'href="([^"]+)" rel="next"', shown)
        path = following[1].replace("&amp;", "&") if following else None
    assert seen == [f"t-{i:03}" for i in range(1, 121)]

    async def found(query: str) -> list[str]:
        return re.findall(r'href="/admin/tenants/(t-\d+)"', (await viewer.get(f"/admin/tenants?{query}")).text)

    assert await found("q=no.%2042") == ["t-042"]
    assert await found("q=100%25%20no.%2011") == ["t-011"] + [f"t-{i}" for i in range(110, 120)]
    assert await found("q=1__") == []  # no wildcards
    assert await found("state=suspended") == ["t-007"]
    assert (await viewer.get("/admin/tenants?q=%00")).status_code == 422
    assert "No tenant fits" in (await viewer.get("/admin/tenants?q=nobody")).text


async def test_a_name_that_looks_like_markup_is_text(operator: Browser) -> None:
    await operator.act("/admin/tenants", id="acme", display_name="<script>alert(1)</script>'\"")
    for path in ("/admin/tenants", "/admin/tenants/acme", "/admin/tenants/acme?edit=limits"):
        shown = (await operator.get(path)).text
        assert "<script>alert" not in shown
        assert "&lt;script&gt;alert(1)" in shown


async def test_a_tenant_that_is_there_already_is_refused_with_what_was_typed(operator: Browser, acme: Tenant) -> None:
    refused = await operator.act("/admin/tenants", id="acme", display_name="Second")
    assert refused.status_code == 422
    assert "there is a tenant" in refused.text
    assert 'value="Second"' in refused.text


async def test_limits_are_changed_and_the_act_is_written_down(
    operator: Browser, acme: Tenant, engine: AsyncEngine
) -> None:
    fields = ALL_LIMITS | {"max_queued_tokens": "2 000 000", "requests_per_minute": "600", "token_burst": ""}
    fields |= {"seen": await seen(operator, "/admin/tenants/acme?edit=limits")}
    assert (await operator.act("/admin/tenants/acme/limits", **fields)).status_code == 303
    async with engine.connect() as conn:
        found = await read_tenant(conn, "acme")
        act = (await conn.execute(text("SELECT actor, action, detail FROM audit_log ORDER BY id DESC LIMIT 1"))).one()
    assert (found.weight, found.tiers, found.max_queued_tokens, found.requests_per_minute, found.token_burst) == (
        2, ["standard", "batch"], 2_000_000, 600, None,
    )  # fmt: skip
    assert (act.actor, act.action) == ("operator:the-operator", "tenant.change")
    assert act.detail["max_queued_tokens"] == [None, 2_000_000]


@pytest.mark.parametrize(
    ("field", "value"),
    [("weight", "0"), ("weight", ""), ("max_queued_jobs", "-1"), ("max_queued_jobs", "many"), ("requests_per_minute", "0"),
     ("tiers", "premium"), ("tiers", ""), ("display_name", "a\x07b"), ("token_burst", "9" * 30)],
)  # fmt: skip
async def test_a_limit_that_cannot_be_is_refused_by_its_name_and_nothing_changes(
    operator: Browser, acme: Tenant, engine: AsyncEngine, field: str, value: str
) -> None:
    async with engine.connect() as conn:
        before = await read_tenant(conn, "acme")
    refused = await operator.act("/admin/tenants/acme/limits", **(ALL_LIMITS | {field: value}))
    assert refused.status_code == 422
    assert f"{field}: must" in refused.text
    async with engine.connect() as conn:
        assert await read_tenant(conn, "acme") == before


@pytest.mark.parametrize(
    "path",
    ["/admin/tenants", "/admin/tenants/acme/limits", "/admin/tenants/acme/limits/preview", "/admin/tenants/acme/suspend",
     "/admin/tenants/acme/budgets", "/admin/tenants/acme/keys"],
)  # fmt: skip
async def test_a_viewer_changes_nothing(viewer: Browser, acme: Tenant, engine: AsyncEngine, path: str) -> None:
    fields = ALL_LIMITS | {
        "id": "new",
        "reason": "x",
        "metric": "requests",
        "period": "day",
        "limit": "1",
        "scopes": "jobs:read",
    }
    async with engine.connect() as conn:
        before = await conn.scalar(text("SELECT max(id) FROM audit_log"))
        assert (await viewer.act(path, **fields)).status_code == 403
        assert await conn.scalar(text("SELECT max(id) FROM audit_log")) == before


async def test_a_budget_is_made_changed_and_retired(operator: Browser, acme: Tenant, engine: AsyncEngine) -> None:
    path = "/admin/tenants/acme/budgets"
    made = await operator.act(path, metric="cost", period="month", limit="12.50", thresholds="90, 50 %")
    assert made.status_code == 303
    async with engine.connect() as conn:
        (found,) = await list_budgets(conn, "acme", limit=9)
    assert (found.metric, found.limit, found.thresholds) == ("cost", 12_500_000, [50, 90])
    twice = await operator.act(path, metric="cost", period="month", limit="1", thresholds="")
    assert twice.status_code == 422
    assert "there is a budget" in twice.text
    shown = {"seen": await seen(operator, f"/admin/tenants/acme?edit={found.id}")}
    assert (await operator.act(f"{path}/{found.id}", limit="0.000001", thresholds="", **shown)).status_code == 303
    refused = await operator.act(f"{path}/{found.id}", limit="0.0000001", thresholds="")
    assert "limit: must be an amount" in refused.text
    assert (await operator.act(f"{path}/{found.id}/retire")).status_code == 303
    async with engine.connect() as conn:
        after = await read_budget(conn, found.id)
    assert (after.limit, after.thresholds, after.retired_at is not None) == (1, [], True)


async def test_limits_that_somebody_else_saved_meanwhile_are_not_lost(
    operator: Browser, acme: Tenant, engine: AsyncEngine
) -> None:
    path = "/admin/tenants/acme/limits"
    old = await seen(operator, "/admin/tenants/acme?edit=limits")
    older = ALL_LIMITS | {"weight": "7", "tokens_per_minute": "", "max_queued_jobs": ""}
    saved = ALL_LIMITS | {"tokens_per_minute": "1000", "max_queued_jobs": "5", "seen": old}
    assert (await operator.act(path, **saved)).status_code == 303
    late = await operator.act(path, **(older | {"seen": old}))
    assert late.status_code == 409
    assert "tokens per minute: 1,000" in late.text
    assert "max queued jobs: 5" in late.text
    assert re.search(r'name="weight"[^>]* value="7"', late.text), "what was entered stays"
    async with engine.connect() as conn:
        found = await read_tenant(conn, "acme")
    assert (found.weight, found.tokens_per_minute, found.max_queued_jobs) == (2, 1000, 5)
    assert (await operator.act(path, **older)).status_code == 409, "a form without a version"
    wrong = await operator.act(path, **(older | {"weight": "none", "seen": old}))
    assert wrong.status_code == 422
    assert f'name="seen" value="{old}"' in wrong.text, "what it was made over was never looked at anew"
    shown = re.search(r'name="seen" value="(\w+)"', late.text)
    assert shown
    again = await operator.act(path, **(older | {"seen": shown[1]}))
    assert again.status_code == 303, "now it was seen"


async def test_a_budget_that_somebody_else_raised_meanwhile_stays_raised(
    operator: Browser, budget: BudgetView, engine: AsyncEngine, acme: Tenant
) -> None:
    path, form = f"/admin/tenants/acme/budgets/{budget.id}", f"/admin/tenants/acme?edit={budget.id}"
    old = await seen(operator, form)
    assert (await operator.act(path, limit="5,000", thresholds="80", seen=old)).status_code == 303
    late = await operator.act(path, limit=str(budget.limit), thresholds="50", seen=old)
    assert late.status_code == 409
    assert "limit: 5,000" in late.text
    assert re.search(r'name="thresholds"[^>]* value="50"', late.text)
    same = await operator.act(path, limit="5,000", thresholds="80", seen=old)
    assert same.status_code == 303, "what is there already overwrites nothing"
    async with engine.connect() as conn:
        assert (await read_budget(conn, budget.id)).limit == 5000


@pytest.mark.parametrize(
    ("act", "fields"),
    [
        ("tenant.create", {"id": "new"}),
        ("tenant.change", ALL_LIMITS),
        ("budget.create", {"metric": "requests", "period": "hour", "limit": "5"}),
        ("budget.change", {"limit": "5"}),
        ("budget.retire", {}),
        ("key.create", {"scopes": "jobs:read"}),
        ("key.rotate", {}),
        ("key.revoke", {}),
    ],
)
async def test_a_reason_may_be_given_and_is_kept_with_the_act(
    operator: Browser, acme: Tenant, budget: BudgetView, engine: AsyncEngine, act: str, fields: dict[str, object]
) -> None:
    at = "/admin/tenants/acme"
    async with engine.connect() as conn:
        prefix = await conn.scalar(text("SELECT prefix FROM api_keys WHERE tenant_id = 'acme' LIMIT 1"))
        before = await conn.scalar(text("SELECT max(id) FROM audit_log"))
    path = {
        "tenant.create": "/admin/tenants", "tenant.change": f"{at}/limits", "budget.create": f"{at}/budgets",
        "budget.change": f"{at}/budgets/{budget.id}", "budget.retire": f"{at}/budgets/{budget.id}/retire",
        "key.create": f"{at}/keys", "key.rotate": f"{at}/keys/{prefix}/rotate", "key.revoke": f"{at}/keys/{prefix}/revoke",
    }[act]  # fmt: skip
    if act in {"tenant.change", "budget.change"}:
        edit = "limits" if act == "tenant.change" else budget.id
        fields = fields | {"seen": await seen(operator, f"{at}?edit={edit}")}
    refused = await operator.act(path, **fields, reason="x" * 501)
    assert refused.status_code == 422
    assert "reason: must be at most 500" in refused.text
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT max(id) FROM audit_log")) == before
    assert (await operator.act(path, **fields, reason="asked for in ticket 7")).status_code in {200, 303}
    async with engine.connect() as conn:
        row = (await conn.execute(text("SELECT action, detail FROM audit_log ORDER BY id DESC LIMIT 1"))).one()
    assert (row.action, row.detail["reason"]) == (act, "asked for in ticket 7")


async def test_another_tenants_budget_and_key_are_not_found(
    operator: Browser, budget: BudgetView, engine: AsyncEngine, settings: Settings, acme: Tenant
) -> None:
    await make_tenant(engine, settings, "rival")
    prefix = acme.token.split("_")[1]
    for path in (
        f"budgets/{budget.id}", f"budgets/{budget.id}/preview", f"budgets/{budget.id}/retire", f"keys/{prefix}/rotate",
        f"keys/{prefix}/revoke",
    ):  # fmt: skip
        assert (await operator.act(f"/admin/tenants/rival/{path}", limit="1", thresholds="")).status_code == 404
    async with engine.connect() as conn:
        assert (await read_budget(conn, budget.id)).limit == 1000


async def test_a_preview_counts_what_would_not_fit_and_changes_nothing(
    operator: Browser, budget: BudgetView, app: FastAPI, acme: Tenant, engine: AsyncEngine, redis: Redis
) -> None:
    jobs = await submit(app, acme, 5)  # 100 tokens each
    worker = HandWorker(engine, redis, "bytes")
    await worker.finish(jobs[0])  # 4 + 7 used
    await worker.start(jobs[1])
    async with engine.begin() as conn:
        for days, used in ((1, 600), (2, 100), (3, 250)):
            await conn.execute(
                text(
                    "INSERT INTO budget_windows (budget_id, window_start, hard_limit, used) "
                    "VALUES (:id, CAST(:start AS timestamptz) - make_interval(days => :days), 1000, :used)"
                ),
                {"id": budget.id, "start": budget.window_start, "days": days, "used": used},
            )
    path = f"/admin/tenants/acme/budgets/{budget.id}/preview"
    shown = (await operator.act(path, limit="250", thresholds="")).text
    assert "passes it by 161 tokens: nothing more is accepted until" in shown  # 11 + 400 - 250
    # 11 used and two of 100 make 211; the third and the fourth pass 250.
    assert "2 of 4 jobs that wait or run would not fit, with 200 tokens reserved" in shown
    assert "1 of the last 3 windows used more: 350 tokens of them, 37 % of what they used" in shown
    roomy = (await operator.act(path, limit="5,000", thresholds="")).text
    assert "4,589 tokens would be left to reserve" in roomy
    assert "All 4 jobs that wait or run with a reservation in it fit" in roomy
    assert "None of the last 3 windows used more" in roomy
    assert "limit: must be a whole number" in (await operator.act(path, limit="lots", thresholds="")).text
    async with engine.connect() as conn:
        assert (await read_budget(conn, budget.id)).limit == 1000


async def test_a_preview_of_limits_counts_what_waits_runs_and_came(
    operator: Browser, acme: Tenant, app: FastAPI, engine: AsyncEngine, redis: Redis
) -> None:
    jobs = await submit(app, acme, 4)
    await HandWorker(engine, redis, "bytes").start(jobs[0])
    fields = ALL_LIMITS | {"tiers": ["interactive", "standard", "batch"], "weight": "1", "display_name": ""}

    async def preview(**changes: object) -> str:
        return (await operator.act("/admin/tenants/acme/limits/preview", **(fields | changes))).text

    assert "Nothing is changed yet" in await preview()
    assert "3 jobs wait, 1 beyond it" in await preview(max_queued_jobs="2")
    assert "300 tokens wait, 50 beyond it" in await preview(max_queued_tokens="250")
    assert "1 jobs run, 1 beyond it" in await preview(max_running_jobs="0")
    assert "4 of the 4 submissions of the last 24 hours have a longer prompt" in await preview(max_prompt_tokens="3")
    assert "ask for more output" in await preview(max_output_tokens="95")
    assert "are of a tier that isn&#39;t among these" in await preview(tiers=["batch"])
    assert "too many together" in await preview(requests_per_minute="1")
    assert "too many together" in await preview(tokens_per_minute="99")
    generous = await preview(max_queued_jobs="3", max_running_jobs="1", max_prompt_tokens="4", max_output_tokens="96")
    assert "Nothing of what waits, runs, or was submitted" in generous


async def test_a_suspension_wants_a_reason_and_is_taken_back(
    operator: Browser, acme: Tenant, engine: AsyncEngine
) -> None:
    assert (await operator.act("/admin/tenants/acme/suspend", reason=" ")).status_code == 422
    assert (await operator.act("/admin/tenants/acme/suspend", reason="unpaid")).status_code == 303
    assert "suspended" in (await operator.get("/admin/tenants/acme")).text
    assert (await operator.act("/admin/tenants/acme/resume", reason="paid")).status_code == 303
    async with engine.connect() as conn:
        assert (await read_tenant(conn, "acme")).suspended_at is None


async def test_a_keys_secret_is_in_one_answer_only(operator: Browser, acme: Tenant, app: FastAPI) -> None:
    made = await operator.act(
        "/admin/tenants/acme/keys", name="web", scopes=["jobs:read", "jobs:write"], expires_days="30"
    )
    (token,) = re.findall(r"pk_[0-9a-f]{12}_[\w-]{43}", made.text)
    assert made.headers["cache-control"] == "no-store"
    await submit(app, Tenant("acme", token))
    prefix = token.split("_")[1]
    assert f">web, {prefix}</option>" in made.text, "a budget can hold it at once, by its name"
    rotated = await operator.act(f"/admin/tenants/acme/keys/{prefix}/rotate", overlap_h="1")
    (second,) = re.findall(r"pk_[0-9a-f]{12}_[\w-]{43}", rotated.text)
    assert second != token
    shown = (await operator.get("/admin/tenants/acme")).text
    assert token not in shown
    assert second not in shown
    assert (await operator.act(f"/admin/tenants/acme/keys/{second.split('_')[1]}/revoke")).status_code == 303
    refused = await operator.act(f"/admin/tenants/acme/keys/{second.split('_')[1]}/rotate", overlap_h="1")
    assert refused.status_code == 422
    assert "is revoked" in refused.text


async def test_only_an_owner_makes_and_rotates_a_key_that_may_administer(
    operator: Browser, owner: Browser, acme: Tenant
) -> None:
    path = "/admin/tenants/acme/keys"
    refused = await operator.act(path, scopes=["admin"])
    assert (refused.status_code, re.findall(r"pk_[0-9a-f]{12}_[\w-]{43}", refused.text)) == (422, [])
    made = await owner.act(path, scopes=["admin"])
    (token,) = re.findall(r"pk_[0-9a-f]{12}_[\w-]{43}", made.text)
    refused = await operator.act(f"{path}/{token.split('_')[1]}/rotate", overlap_h="1")
    assert (refused.status_code, re.findall(r"pk_[0-9a-f]{12}_[\w-]{43}", refused.text)) == (422, [])
    assert (await owner.act(f"{path}/{token.split('_')[1]}/rotate", overlap_h="1")).status_code == 200


async def test_usage_is_shown_and_exported_by_model_tier_and_key(
    viewer: Browser, acme: Tenant, engine: AsyncEngine
) -> None:
    now = datetime.now(UTC)
    prefix = acme.token.split("_")[1]
    async with engine.begin() as conn:
        key_id = await conn.scalar(text("SELECT id FROM api_keys WHERE prefix = :prefix"), {"prefix": prefix})
        for hours, model, tier, kind in (
            (0, "bytes", "batch", "billed"), (0, "=1+1", "batch", "billed"), (2, "bytes", "standard", "billed"),
            (3, "bytes", "standard", "wasted"), (24 * 40, "bytes", "batch", "billed"),
        ):  # fmt: skip
            await conn.execute(
                text(
                    "INSERT INTO usage (job_id, attempt, kind, tenant_id, api_key_id, model, tier, prompt_tokens, cached_tokens, "
                    "completion_tokens, cost_micros, at) VALUES (gen_random_uuid(), 1, :kind, 'acme', :key, :model, :tier, 10, 4, 5, "
                    "1500000, :at)"
                ),
                {"kind": kind, "key": key_id, "model": model, "tier": tier, "at": now - timedelta(hours=hours)},
            )
    shown = (await viewer.get("/admin/tenants/acme/usage?by=tier")).text
    assert "batch" in shown
    assert "standard" in shown
    assert prefix in (await viewer.get("/admin/tenants/acme/usage?by=key")).text
    answer = await viewer.get("/admin/tenants/acme/usage.csv?span=day")
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert sorted((each["model"], each["tier"], each["jobs"], each["prompt_tokens"]) for each in rows) == [
        ("'=1+1", "batch", "1", "10"), ("bytes", "batch", "1", "10"), ("bytes", "standard", "1", "10"),
    ]  # fmt: skip
    assert {each["key"] for each in rows} == {prefix}
    assert {each["cost"] for each in rows} == {"1.500000"}
    for bad in ("by=name", "span=year"):
        assert (await viewer.get(f"/admin/tenants/acme/usage?{bad}")).status_code == 422


@pytest.mark.parametrize("path", ["nobody", "nobody/usage", "nobody/usage.csv", "NOT-A-SLUG", "a%00b"])
async def test_what_is_not_there_is_said_plainly(viewer: Browser, path: str) -> None:
    answer = await viewer.get(f"/admin/tenants/{path}")
    assert answer.status_code in {404, 422}
    assert 'role="alert"' in answer.text
