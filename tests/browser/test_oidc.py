"""An operator logs in by the button, at a provider that is another site; and what the pages look like where there is one."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.operators import links, people
from app.settings import Settings
from tests.browser.conftest import OpenPage
from tests.support.oidc import OidcProvider, oidc_provider
from tests.support.streams import Served


@pytest.fixture
async def provider() -> AsyncIterator[OidcProvider]:
    """`localhost` is another site than the dashboard's 127.0.0.1: cookies that are too strict would be left out."""
    async with oidc_provider("localhost") as provider:
        yield provider


@pytest.fixture
def settings(settings: Settings, provider: OidcProvider) -> Settings:
    return provider.configured(settings, oidc_label="Example ID")


async def test_an_operator_comes_by_a_link_and_from_then_on_by_the_button(
    open_page: OpenPage, served: Served, provider: OidcProvider, engine: AsyncEngine, settings: Settings
) -> None:
    async with engine.begin() as conn:
        grace = await people.create_person(conn, "grace", "owner", actor="test")
        token = await links.make_link(conn, grace, actor="test")
    async with open_page(color_scheme="light", reduced_motion="reduce") as watched:
        page = watched.page
        await watched.open("/admin/login?next=/admin/account")
        await watched.assert_accessible()
        await watched.picture("login-oidc")
        await page.get_by_role("link", name="Log in with Example ID").click()
        await page.get_by_role("alert").wait_for()  # nobody has let them in
        assert "Ask an owner for a link" in await watched.text()
        await watched.picture("login-oidc-refused")
        await watched.open(f"/admin/link/{token}")
        await watched.assert_accessible()
        await watched.picture("link-oidc")
        await page.get_by_role("link", name="Log in with Example ID").click()
        await page.wait_for_url("**/admin/overview")
        await watched.open("/admin/account")
        assert "grace, owner" in await watched.text()
        await watched.picture("account-oidc")
        await watched.open("/admin/operators")
        await watched.picture("operators-oidc")
        await page.set_viewport_size({"width": 1440, "height": 900})
        await page.get_by_role("button", name="Log out").click()
        served.runtime.settings = provider.configured(settings, oidc_label="Example ID", dashboard_passwords=False)
        await watched.open("/admin/login?next=/admin/account")
        await watched.assert_accessible()
        await watched.picture("login-oidc-only")
        await page.emulate_media(color_scheme="dark")
        await watched.assert_accessible("color-contrast")
        await watched.picture("login-oidc-only-dark", widths=(1440,))
        await page.get_by_role("link", name="Log in with Example ID").click()
        await page.wait_for_url("**/admin/account")
        assert "grace, owner" in await watched.text()
        await watched.assert_clean("status: 403 /admin/oidc/callback", "elsewhere: http://localhost", "403")
