"""An operator's first day, in a browser: the link, a tenant, a key, a budget that refuses, the same one raised."""

import re

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.operators import links, people
from tests.browser.conftest import OpenPage
from tests.support.api import Tenant, make_tenant
from tests.support.streams import Served

PASSWORD = "four rivers meet here"


async def test_from_the_link_to_a_budget_that_is_raised(
    open_page: OpenPage, served: Served, engine: AsyncEngine
) -> None:
    async with engine.begin() as conn:
        person = await people.ensure_owner(conn, actor="test")
        assert person is not None
        token = await links.make_link(conn, person, actor="test")
    async with open_page() as watched:
        page = watched.page
        # In, by the link; out, and in again by the password. Over plain http: Chromium keeps Secure cookies of this machine.
        await watched.open(f"/admin/link/{token}")
        await page.get_by_label("Password", exact=True).fill(PASSWORD)
        await page.get_by_label("Password, again").fill(PASSWORD)
        await page.get_by_role("button", name="Set password").click()
        await page.wait_for_url("**/admin/overview?said=welcome")
        await page.get_by_role("button", name="Log out").click()
        await page.get_by_label("Name").fill("owner")
        await page.get_by_label("Password").fill(PASSWORD)
        await page.get_by_role("button", name="Log in").click()
        await page.wait_for_url("**/admin/overview")

        await page.get_by_role("link", name="Tenants & quotas").click()
        await page.get_by_text("New tenant", exact=True).click()
        await page.get_by_label("Id", exact=True).fill("acme")
        await page.get_by_label("Name", exact=True).fill("Acme <i>Ltd</i>")
        await page.get_by_role("button", name="Make tenant").click()
        await page.wait_for_url("**/admin/tenants/acme?said=saved")

        await page.get_by_text("New key", exact=True).click()
        await page.locator("#key-name").fill("web")
        await page.get_by_role("button", name="Make key").click()
        secret = await page.locator("[data-copy-from]").inner_text()
        assert re.fullmatch(r"pk_[0-9a-f]{12}_[\w-]+", secret)

        await page.get_by_text("New budget", exact=True).click()
        await page.locator("#new-limit").fill("20")
        await page.get_by_role("button", name="Make budget").click()
        await page.get_by_role("heading", name="Tokens a day").wait_for()

        async with httpx.AsyncClient(
            base_url=served.url, headers={"Authorization": f"Bearer {secret}"}, timeout=60
        ) as caller:
            job = {"prompt": "Once upon a time", "max_tokens": 30}
            refused = await caller.post("/v1/jobs", json=job)
            assert (refused.status_code, refused.json()["code"]) == (429, "budget_exhausted")

            await page.get_by_role("link", name="Edit Tokens a day").click()
            limit = page.get_by_label("Limit of each window")
            await limit.fill("1,000")
            await page.get_by_text("1,000 tokens would be left to reserve").wait_for()
            await page.get_by_role("button", name="Save").click()
            await limit.wait_for(state="detached")  # the sentence that it is saved is there from before
            assert "1,000 tokens" in await page.locator("#budgets").inner_text()
            assert (await caller.post("/v1/jobs", json=job)).status_code == 202

        # What was accepted is reserved, and a lower limit would refuse more: said before it is saved.
        await page.reload()
        await page.get_by_role("link", name="Edit Tokens a day").click()
        await page.get_by_label("Limit of each window").fill("40")
        await page.get_by_text("passes it by 6 tokens: nothing more is accepted until").wait_for()
        await page.get_by_text("1 of 1 jobs that wait or run would not fit, with 46 tokens reserved").wait_for()
        assert secret not in await page.content()
        await watched.assert_clean()
    async with engine.connect() as conn:
        acts = (
            await conn.execute(text("SELECT action FROM audit_log WHERE actor = 'operator:owner' ORDER BY id"))
        ).scalars()
        assert list(acts) == [
            "operator.password", "operator.login", "operator.login", "tenant.create", "key.create", "budget.create",
            "budget.change",
        ]  # fmt: skip


@pytest.fixture
async def acme(engine: AsyncEngine, served: Served) -> Tenant:
    return await make_tenant(engine, served.runtime.settings, "acme")


async def test_a_key_is_rotated_and_revoked_in_place(open_page: OpenPage, acme: Tenant, served: Served) -> None:
    async with open_page("operator") as watched:
        page = watched.page
        await watched.open("/admin/tenants/acme")
        await page.locator("summary", has_text="Rotate").click()
        await page.get_by_label("The old secret stays valid for").fill("0")
        await page.get_by_role("button", name="Rotate it").click()
        fresh = await page.locator("[data-copy-from]").inner_text()
        async with served.client(Tenant("acme", fresh)) as caller:
            assert (await caller.get("/v1/jobs")).status_code == 200
        await watched.open("/admin/tenants/acme")
        assert await page.locator("[data-copy-from]").count() == 0
        await page.locator("summary", has_text="Revoke").click()
        await page.get_by_role("button", name="Revoke it").click()
        await page.locator("#keys .badge", has_text="revoked").wait_for()
        await watched.assert_clean()


async def test_limits_are_checked_and_previewed_before_they_are_saved(
    open_page: OpenPage, acme: Tenant, served: Served
) -> None:
    async with served.client(acme) as caller:
        for _ in range(3):
            assert (await caller.post("/v1/jobs", json={"prompt": "Once", "max_tokens": 8})).status_code == 202
    async with open_page("operator") as watched:
        page = watched.page
        await watched.open("/admin/tenants/acme")
        await page.get_by_role("link", name="Edit limits").click()
        await page.get_by_label("Jobs that may wait").fill("2")
        await page.get_by_text("3 jobs wait, 1 beyond it").wait_for()
        await page.get_by_label("Most output of a job").fill("7")
        await page.get_by_text("3 of the 3 submissions of the last 24 hours ask for more output").wait_for()
        await page.get_by_label("Weight").fill("2000")
        await page.get_by_role("button", name="Save").click()
        await page.locator(
            "#limits [role=alert]", has_text="weight: must be less than or equal to 1000"
        ).first.wait_for()
        assert await page.get_by_label("Jobs that may wait").input_value() == "2"
        await page.get_by_label("Weight").fill("5")
        await page.get_by_role("button", name="Save").click()
        await page.get_by_text("Saved.").wait_for()
        async with served.client(acme) as caller:
            refused = await caller.post("/v1/jobs", json={"prompt": "Once", "max_tokens": 2})
            assert (refused.status_code, refused.json()["code"]) == (429, "queue_limit_reached")
        await watched.assert_clean("422")


async def test_a_viewer_sees_and_cannot_edit(open_page: OpenPage, acme: Tenant) -> None:
    async with open_page("viewer") as watched:
        page = watched.page
        await watched.open("/admin/tenants/acme?edit=limits")
        assert await page.locator("main form, main button:not([data-copy])").count() == 0
        for words in ("New key", "New budget", "Suspend", "Save", "Revoke"):
            assert await page.get_by_text(words, exact=True).count() == 0
        csrf = await page.locator("header input[name=csrf]").get_attribute("value")
        status = await page.evaluate(
            "async (csrf) => (await fetch('/admin/tenants/acme/suspend', {method: 'POST', headers: {'X-CSRF-Token': csrf}, "
            "body: new URLSearchParams({reason: 'because'})})).status",
            csrf,
        )
        assert status == 403
        assert "active" in await watched.text()
        await watched.assert_clean("403")


async def test_the_search_narrows_the_list_while_somebody_types(
    open_page: OpenPage, engine: AsyncEngine, served: Served
) -> None:
    for name in ("acme", "rival", "post-house"):
        await make_tenant(engine, served.runtime.settings, name)
    async with open_page("viewer") as watched:
        await watched.open("/admin/tenants")
        await watched.page.get_by_label("Search").press_sequentially("house")
        await watched.page.locator("#list").get_by_text("rival").wait_for(state="detached")
        assert await watched.page.locator("#list tbody tr").count() == 1
        await watched.assert_clean()
