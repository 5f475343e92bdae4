"""Who comes at the same instant by several ways: nobody waits for somebody who waits for them, and nobody slips through."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.operators import identities, links, passwords, people, throttle
from app.operators.sessions import Credentials, credentials_of, open_session, still_holds
from tests.support.locks import until_waiting

CLAIMS = {"iss": "https://id.test", "sub": "u-1", "preferred_username": "ada"}
ADDRESS = "192.0.2.7"

Way = Callable[[AsyncConnection], Any]


@pytest.fixture
async def ada(engine: AsyncEngine) -> Credentials:
    """Whom the provider knows, and who has a password."""
    async with engine.begin() as conn:
        arrival = await identities.arrive(conn, CLAIMS, role="operator", by_groups=True, link_hash=None)
        assert arrival.person is not None
        await people.set_password(conn, arrival.person.id, await passwords.hashed("four rivers meet"), actor="test")
        await throttle.count_try(conn, name="ada", address=ADDRESS)
        return await credentials_of(conn, "ada")


async def by_oidc(conn: AsyncConnection) -> None:
    arrival = await identities.arrive(conn, CLAIMS, role="operator", by_groups=True, link_hash=None)
    assert arrival.person is not None
    await throttle.forgive(conn, name=None, address=ADDRESS)
    await open_session(conn, arrival.person, longest_s=60, by="oidc")


async def at_once(engine: AsyncEngine, way: Way) -> None:
    async with engine.begin() as conn:
        await way(conn)


async def test_a_password_and_the_provider(engine: AsyncEngine, ada: Credentials) -> None:
    assert ada.person is not None
    async with engine.begin() as conn:
        assert await still_holds(conn, ada)
        other = asyncio.create_task(at_once(engine, by_oidc))
        await until_waiting(engine, other)
        await throttle.forgive(conn, name="ada", address=ADDRESS)
        await open_session(conn, ada.person, longest_s=60, by="password")
    await other


async def test_a_one_time_link_and_the_provider(engine: AsyncEngine, ada: Credentials) -> None:
    async def out(conn: AsyncConnection) -> None:
        await identities.arrive(conn, CLAIMS, role=None, by_groups=True, link_hash=None)

    assert ada.person is not None
    async with engine.begin() as conn:
        token = await links.make_link(conn, ada.person, actor="test")
    async with engine.begin() as conn:
        assert await links.use_link(conn, token) is not None
        # None of the groups has a role any more: their links end, too.
        other = asyncio.create_task(at_once(engine, out))
        await until_waiting(engine, other)
        await people.set_password(conn, ada.person.id, "x", actor="test")
    await other


async def test_a_try_and_a_right_password(engine: AsyncEngine, ada: Credentials) -> None:
    async def forgive(conn: AsyncConnection) -> None:
        await throttle.forgive(conn, name="ada", address=ADDRESS)

    async with engine.begin() as conn:
        await throttle.count_try(conn, name=None, address=ADDRESS)  # the first half of a try
        other = asyncio.create_task(at_once(engine, forgive))
        await until_waiting(engine, other)
        await throttle.count_try(conn, name="ada", address=ADDRESS)
    await other


async def test_who_comes_in_while_an_owner_unties_them_is_out(engine: AsyncEngine, ada: Credentials) -> None:
    async def untie(conn: AsyncConnection) -> None:
        await identities.unlink(conn, "ada", actor="test")

    async with engine.begin() as conn:
        arrival = await identities.arrive(conn, CLAIMS, role="operator", by_groups=True, link_hash=None)
        assert arrival.person is not None
        other = asyncio.create_task(at_once(engine, untie))
        await until_waiting(engine, other)
        await open_session(conn, arrival.person, longest_s=60, by="oidc")
    await other
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM operator_sessions")) == 0
