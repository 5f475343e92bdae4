"""What do the browser's tests stand on? An API that listens, Debian's Chromium, and pages that report each error, violation and failed request."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, Request, Response, async_playwright
from sqlalchemy.ext.asyncio import AsyncEngine

from app.dashboard.access import cookie_name
from app.jobs.models import Model
from app.operators.people import create_person, find_person
from app.operators.roles import Role
from app.operators.sessions import open_session
from app.queue.streams import JobQueue
from app.redis import Redis
from app.settings import Settings
from tests.support.api import register_bytes
from tests.support.streams import Served, serving

SCREENS = os.environ.get("SCREENS")  # a folder: `make screens`
WIDTHS = (1440, 390)
# --no-sandbox: tests run as root in containers. The others: it shall ask nobody else for anything.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
_WATCH_CSP = """
    window.__violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.__violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


def find_chromium() -> str | None:
    """Debian's, or what CHROMIUM names."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: Page
    url: str
    troubles: list[str] = field(default_factory=list)

    async def open(self, path: str) -> None:
        """Go there; htmx and what it loads at first are done when this returns."""
        await self.page.goto(self.url + path)
        await self.settled()

    async def settled(self) -> None:
        """Nothing that htmx asked for is under way."""
        async with asyncio.timeout(30):
            while await self.page.locator(".htmx-request").count():
                await asyncio.sleep(0.02)

    async def text(self) -> str:
        """What stands on the page."""
        return await self.page.inner_text("main")

    async def assert_clean(self, *allowed: str) -> None:
        """No error in the console, no violation of the CSP, no failed request; `allowed` are patterns of what a test provoked."""
        violations = await self.page.evaluate("window.__violations")
        left = [each for each in self.troubles if not any(re.search(pattern, each) for pattern in allowed)]
        assert left + violations == []

    async def assert_accessible(self, *rules: str) -> None:
        """axe-core finds nothing serious or critical, by all of its rules or these."""
        from axe_core_python.async_playwright import Axe

        found: dict[str, Any] = await Axe().run(self.page, options={"runOnly": list(rules)} if rules else None)
        bad = [each for each in found["violations"] if each["impact"] in {"serious", "critical"}]
        assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in bad] == []

    async def picture(self, name: str, widths: tuple[int, ...] = WIDTHS) -> None:
        """Nothing may stick out at the side, in these widths; where SCREENS names a folder, the whole page is photographed."""
        for width in widths:
            await self.page.set_viewport_size({"width": width, "height": 900})
            await self.page.wait_for_timeout(150)  # charts take their new width in the next frames
            assert await self.page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            if SCREENS:
                await self.page.screenshot(path=Path(SCREENS) / f"{name}-{width}.png", full_page=True)
        await self.page.set_viewport_size({"width": WIDTHS[0], "height": 900})


OpenPage = Callable[..., AbstractAsyncContextManager[Watched]]


@pytest.fixture
async def model(engine: AsyncEngine) -> Model:
    return await register_bytes(engine)


@pytest.fixture
async def epoch(redis: Redis, model: Model) -> JobQueue:
    """The model's queue, open."""
    queue = JobQueue(redis, model.pool)
    await queue.open_epoch("test")
    return queue


@pytest.fixture
async def served(settings: Settings, epoch: JobQueue) -> AsyncIterator[Served]:
    """The API with the dashboard, on a port of this machine."""
    async with serving(settings) as served:
        yield served


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium, or set CHROMIUM to one")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        await browser.close()


@pytest.fixture
def open_page(served: Served, chromium: Browser, engine: AsyncEngine, settings: Settings) -> OpenPage:
    """A page of a fresh profile; with a role, of an operator who is logged in."""

    @asynccontextmanager
    async def opened(role: Role | None = None, **options: Any) -> AsyncIterator[Watched]:
        context = await chromium.new_context(viewport={"width": WIDTHS[0], "height": 900}, **options)
        await context.add_init_script(_WATCH_CSP)
        if role is not None:
            async with engine.begin() as conn:
                name = f"the-{role}"
                person = await find_person(conn, name) or await create_person(conn, name, role, actor="test")
                token = await open_session(conn, person, longest_s=3600, by="test")
            await context.add_cookies(
                [
                    {
                        "name": cookie_name(settings),
                        "value": token,
                        "url": served.url.replace("http:", "https:"),
                        "secure": True,
                        "httpOnly": True,
                    }
                ]
            )
        page = await context.new_page()
        watched = Watched(page, served.url)
        page.on("console", lambda said: _note_console(watched, said))
        page.on("pageerror", lambda error: watched.troubles.append(f"error: {error}"))
        page.on("requestfailed", lambda request: _note_failure(watched, request))
        page.on("response", lambda answer: _note_answer(watched, answer))
        try:
            yield watched
        finally:
            await context.close()

    return opened


def _note_console(watched: Watched, said: ConsoleMessage) -> None:
    if said.type in {"error", "warning"}:
        watched.troubles.append(f"console: {said.text}")


def _note_failure(watched: Watched, request: Request) -> None:
    if request.failure != "net::ERR_ABORTED":  # that one is the browser's own: it left the page
        watched.troubles.append(f"failed: {request.url} {request.failure}")


def _note_answer(watched: Watched, answer: Response) -> None:
    if not answer.url.startswith(watched.url):
        watched.troubles.append(f"elsewhere: {answer.url}")
    if answer.status >= 400:
        watched.troubles.append(f"status: {answer.status} {answer.url.removeprefix(watched.url)}")
