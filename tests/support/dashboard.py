"""What do tests of the dashboard need? Clients that are logged in, each with its role."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.dashboard.access import cookie_name
from app.operators.people import create_person, find_person
from app.operators.roles import Role
from app.operators.sessions import csrf_of, open_session
from app.settings import Settings

HOST = "https://penstock.test"


class Browser(httpx.AsyncClient):
    """A client as a browser would be: it says where its forms come from, and follows no redirect by itself."""

    csrf: str = ""

    async def act(self, path: str, **fields: object) -> httpx.Response:
        """Send a form of this session."""
        return await self.post(path, data={"csrf": self.csrf, **fields})


async def seen(client: Browser, path: str) -> str:
    """The version that the edit form at this address shows."""
    found = re.search(r'name="seen" value="([0-9a-f]{16})"', (await client.get(path)).text)
    assert found, f"{path} has no form with a version"
    return found[1]


def browser(app: FastAPI) -> Browser:
    """One that isn't logged in; the app's lifespan must run."""
    return Browser(transport=httpx.ASGITransport(app), base_url=HOST, headers={"Origin": HOST}, timeout=60)


@asynccontextmanager
async def logged_in(app: FastAPI, engine: AsyncEngine, settings: Settings, role: Role) -> AsyncIterator[Browser]:
    """A session of an operator called `the-<role>`, made in the database: log-ins cost a slow hash."""
    async with engine.begin() as conn:
        name = f"the-{role}"
        person = await find_person(conn, name) or await create_person(conn, name, role, actor="test")
        token = await open_session(conn, person, longest_s=3600, by="test")
    async with browser(app) as client:
        client.cookies.set(cookie_name(settings), token)
        client.csrf = csrf_of(token)
        yield client
