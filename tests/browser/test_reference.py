"""Does /docs work from this package alone, and can what runs there not reach the dashboard, whose origin it shares?"""

from tests.browser.conftest import OpenPage

# Chromium says so of every sandbox with both. Frames could take it off again; the page itself can't.
_BOTH = r"console: An iframe which has both allow-scripts and allow-same-origin"
_REACH = """async (path) => {
    try { return (await fetch(path)).status } catch (error) { return `refused: ${error.name}` }
}"""


async def test_the_reference_shows_the_api_and_tries_it_out(open_page: OpenPage) -> None:
    async with open_page("owner") as watched:
        page = watched.page
        await watched.open("/docs")
        await page.locator(".opblock").first.wait_for(timeout=60_000)
        assert await page.locator(".opblock").count() > 50
        await page.locator(".opblock-get .opblock-summary-control").first.click()
        await page.locator(".try-out__btn").click()
        await watched.assert_clean(_BOTH)
        await page.locator(".execute").click()
        await page.locator(".responses-table.live-responses-table").wait_for(timeout=30_000)
        assert "401" in await page.inner_text(".live-responses-table")  # no key was given
        await watched.assert_clean(_BOTH, r"status: 401 /v1/", r"console: .*status of 401")


async def test_what_runs_beside_the_reference_cannot_reach_the_dashboard(open_page: OpenPage) -> None:
    """Its scripts came from a CDN, without a policy: one of them made a second owner with the session of who looked."""
    async with open_page("owner") as watched:
        page = watched.page
        await watched.open("/docs")
        await page.locator(".opblock").first.wait_for(timeout=60_000)
        assert await page.evaluate(_REACH, "/v1/jobs") == 401
        for path in ("/admin/account", "/admin/overview", "/healthz", "/v1", "https://example.com/"):
            assert await page.evaluate(_REACH, path) == "refused: TypeError", path
        assert await page.evaluate("window.open('/admin/account') === null")
        framed = (
            "() => { const f = document.createElement('iframe'); f.src = '/admin/account'; document.body.append(f); }"
        )
        await page.evaluate(framed)
        await page.evaluate(
            "() => document.body.append(Object.assign(document.createElement('script'), {text: 'window.x = 1'}))"
        )
        assert await page.evaluate("window.x") is None
        violated = " ".join(await page.evaluate("window.__violations"))
        assert all(each in violated for each in ("connect-src", "frame-src", "script-src"))
