"""Every page: nothing in the console, nothing against the CSP, nothing that axe calls serious, nothing that sticks out; with `make screens` a picture to look at."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.quotas.budget_acts import create_budget
from app.quotas.tenants import change_tenant
from app.quotas.wanted import BudgetWanted, TenantChange
from tests.browser.conftest import WIDTHS, OpenPage
from tests.support.api import HandWorker, Tenant, make_tenant
from tests.support.streams import Served

PAGES = {
    "overview": "/admin/overview",
    "tenants": "/admin/tenants",
    "tenant": "/admin/tenants/acme",
    "tenant-limits": "/admin/tenants/acme?edit=limits",
    "tenant-new-budget": "/admin/tenants/acme",
    "tenants-new": "/admin/tenants",
    "operators": "/admin/operators",
    "account": "/admin/account",
    "not-found": "/admin/nowhere",
}
OPENED = {"tenant-new-budget": "New budget", "tenants-new": "New tenant"}


@pytest.fixture
async def lived_in(engine: AsyncEngine, served: Served) -> Tenant:
    """A tenant with all that its page can show, and work that waits and runs."""
    acme = await make_tenant(engine, served.runtime.settings, "acme")
    await make_tenant(engine, served.runtime.settings, "rival")
    async with engine.begin() as conn:
        await conn.execute(
            text("UPDATE tenants SET display_name = 'Rival & Sons, of the long street' WHERE id = 'rival'")
        )
        change = TenantChange(max_queued_jobs=1000, requests_per_minute=600)
        await change_tenant(conn, "acme", change, actor="test")
        for metric, period, limit in (
            ("total_tokens", "day", 200),
            ("cost", "month", 5_000_000),
            ("requests", "total", 3),
        ):
            wanted = BudgetWanted.model_validate({"metric": metric, "period": period, "limit": limit})
            await create_budget(conn, "acme", wanted, actor="test")
    worker = HandWorker(engine, served.runtime.redis, "bytes")
    async with served.client(acme) as caller:
        for tier in ("interactive", "batch", "standard"):
            job = (await caller.post("/v1/jobs", json={"prompt": "Once", "max_tokens": 40, "tier": tier})).json()
            if tier == "interactive":
                await worker.finish(job)
            if tier == "batch":
                await worker.start(job)
        assert (await caller.post("/v1/jobs", json={"prompt": "Once", "max_tokens": 40})).status_code == 429
    stats = {
        "jobs": 1, "running": 1, "kv_blocks_used": 300, "kv_blocks_total": 400, "served_tokens_per_s": 120.5,
        "served_by_tier": {"batch": 120.5}, "version": "0.1.0",
    }  # fmt: skip
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE workers SET stats = CAST(:stats AS jsonb)"), {"stats": _json(stats)})
    return acme


async def test_each_page_is_clean_accessible_and_fits(open_page: OpenPage, lived_in: Tenant) -> None:
    async with open_page("owner", color_scheme="light", reduced_motion="reduce") as watched:
        for name, path in PAGES.items():
            await watched.open(path)
            if name in OPENED:
                await watched.page.locator("summary", has_text=OPENED[name]).click()
            await watched.assert_accessible()
            await watched.picture(name)
            await watched.page.emulate_media(color_scheme="dark")
            await watched.assert_accessible("color-contrast")  # what the other colours can change
            await watched.picture(f"{name}-dark", widths=WIDTHS[:1])
            await watched.page.emulate_media(color_scheme="light")
            await watched.assert_clean("404 /admin/nowhere", "Failed to load resource.* 404")


async def test_the_log_in_is_clean_and_accessible(open_page: OpenPage) -> None:
    async with open_page(reduced_motion="reduce") as watched:
        await watched.open("/admin")
        assert watched.page.url.endswith("/admin/login?next=/admin/")
        await watched.assert_accessible()
        await watched.picture("login")
        await watched.assert_clean()


async def test_a_tenant_page_at_390_pixels_keeps_its_tables_in_their_boxes(
    open_page: OpenPage, lived_in: Tenant
) -> None:
    async with open_page("owner") as watched:
        await watched.page.set_viewport_size({"width": 390, "height": 800})
        await watched.open("/admin/tenants/acme")
        button = watched.page.get_by_role("button", name="Menu")
        assert await button.get_attribute("aria-expanded") == "false"
        await button.click()
        await watched.page.get_by_role("link", name="Overview").click()
        await watched.page.wait_for_url("**/admin/overview")
        await watched.assert_clean()


async def test_by_keyboard_alone(open_page: OpenPage, lived_in: Tenant) -> None:
    async with open_page("owner") as watched:
        page = watched.page
        await watched.open("/admin/tenants/acme")
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to content"
        await page.keyboard.press("Enter")
        for _ in range(20):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.textContent") == "Suspend":
                break
        await page.keyboard.press("Enter")
        await page.locator("#f-reason").wait_for()
        await page.keyboard.press("Tab")
        await page.keyboard.type("unpaid")
        await page.keyboard.press("Enter")
        await page.locator("#tenant-head .badge", has_text="suspended").wait_for()
        await watched.assert_clean()


async def test_the_overview_is_live_and_nothing_moves(
    open_page: OpenPage, lived_in: Tenant, engine: AsyncEngine
) -> None:
    async with open_page("viewer") as watched:
        page = watched.page
        await page.add_init_script(
            "window.__shifts = []; new PerformanceObserver((list) => { for (const each of list.getEntries()) "
            "window.__shifts.push(each.value); }).observe({type: 'layout-shift', buffered: true});"
        )
        await watched.open("/admin/overview")
        await page.locator("[data-history] canvas").first.wait_for()
        await page.wait_for_timeout(300)
        before = await page.evaluate("window.__shifts.length")
        async with engine.begin() as conn:
            await conn.execute(
                text("UPDATE workers SET stats = stats || CAST(:more AS jsonb)"),
                {"more": _json({"kv_blocks_used": 100})},
            )
        await page.get_by_text("25\u202f%").wait_for()
        shifts = await page.evaluate("window.__shifts")
        assert sum(shifts[before:]) < 0.01
        await watched.assert_clean()


async def test_a_page_that_nobody_sees_asks_for_nothing(open_page: OpenPage, lived_in: Tenant) -> None:
    async with open_page("viewer") as watched:
        page, asked = watched.page, asyncio.Event()
        await watched.open("/admin/overview")
        await page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})")
        await watched.settled()
        page.on("request", lambda request: asked.set() if request.url.endswith("/live") else None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4.5):
                await asked.wait()
        await page.evaluate(
            "Object.defineProperty(document, 'hidden', {get: () => false, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        async with asyncio.timeout(30):
            await asked.wait()


async def test_times_are_utc_as_in_filters_and_the_viewers_on_hover(open_page: OpenPage, lived_in: Tenant) -> None:
    async with open_page("viewer", timezone_id="Asia/Tokyo", locale="en-GB") as watched:
        await watched.open("/admin/tenants/acme")
        shown = watched.page.locator("main .sub time")
        utc = datetime.fromisoformat(str(await shown.get_attribute("datetime")))
        assert await shown.inner_text() == f"{utc:%Y-%m-%d %H:%M:%S}Z"
        in_tokyo = utc + timedelta(hours=9)
        title = str(await shown.get_attribute("title"))
        assert f"{in_tokyo:%H:%M:%S}" in title
        assert title.endswith("where you are")


def _json(value: dict[str, Any]) -> str:
    import json

    return json.dumps(value)
