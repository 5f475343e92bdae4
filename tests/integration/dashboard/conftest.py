"""What do the pages' tests stand on? The API with the dashboard in it, and a client of each role; no worker."""

from collections.abc import AsyncIterator

import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.main import create_app
from app.operators import passwords
from app.redis import Redis
from app.settings import Settings
from tests.support.dashboard import Browser, browser, logged_in
from tests.support.world import World, make_world


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow hash is the point of it, but not here."""
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    passwords._nobodys.cache_clear()


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """With its lifespan run."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def stranger(app: FastAPI) -> AsyncIterator[Browser]:
    """Not logged in."""
    async with browser(app) as client:
        yield client


@pytest.fixture
async def viewer(app: FastAPI, engine: AsyncEngine, settings: Settings) -> AsyncIterator[Browser]:
    async with logged_in(app, engine, settings, "viewer") as client:
        yield client


@pytest.fixture
async def operator(app: FastAPI, engine: AsyncEngine, settings: Settings) -> AsyncIterator[Browser]:
    async with logged_in(app, engine, settings, "operator") as client:
        yield client


@pytest.fixture
async def owner(app: FastAPI, engine: AsyncEngine, settings: Settings) -> AsyncIterator[Browser]:
    async with logged_in(app, engine, settings, "owner") as client:
        yield client


@pytest.fixture
async def world(engine: AsyncEngine, redis: Redis, settings: Settings) -> World:
    """Something on every page."""
    return await make_world(engine, redis, settings)
