"""Does `penstock dashboard` let people in, and only those who are named?"""

import asyncio
import re

import pytest

from app.db import create_engine
from app.operators.links import whose_link
from app.operators.people import Person, disable_person
from app.settings import Settings
from tests.support.cli import Run, runner


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("DATABASE_URL", "REDIS_URL", "PENSTOCK_DATA_DIR"):
        monkeypatch.setenv(name, environment[name])
    return runner(capsys)


def owner_of(settings: Settings, link: str) -> Person | None:
    async def look() -> Person | None:
        engine = create_engine(settings, application_name="penstock-tests")
        try:
            async with engine.begin() as conn:
                return await whose_link(conn, link.rpartition("/")[2])
        finally:
            await engine.dispose()

    return asyncio.run(look())


def test_a_link_is_for_the_owner_unless_somebody_is_named(penstock: Run, settings: Settings) -> None:
    first = penstock("dashboard", "link").out
    link = re.search(r"^(http://127\.0\.0\.1:8000/admin/link/[\w-]{43})$", first, re.MULTILINE)
    assert link is not None
    person = owner_of(settings, link[1])
    assert person is not None
    assert (person.name, person.role, person.has_password) == ("owner", "owner", False)
    assert "It works once, for 15 minutes." in first

    unknown = penstock("dashboard", "link", "ada")
    assert unknown.status == 1
    assert "there is no operator 'ada': --role makes one" in unknown.err
    ada = penstock("dashboard", "link", "ada", "--role", "viewer").out
    person = owner_of(settings, ada.splitlines()[0])
    assert person is not None
    assert (person.name, person.role) == ("ada", "viewer")
    listed = penstock("dashboard", "operators").out
    assert [line.split("\t")[:3] for line in listed.splitlines()[1:]] == [
        ["ada", "viewer", "no password yet"], ["owner", "owner", "no password yet"],
    ]  # fmt: skip


def test_who_is_disabled_gets_no_link(penstock: Run, settings: Settings) -> None:
    async def disable() -> None:
        engine = create_engine(settings, application_name="penstock-tests")
        try:
            async with engine.begin() as conn:
                await disable_person(conn, "ada", actor="test")
        finally:
            await engine.dispose()

    penstock("dashboard", "link", "ada", "--role", "viewer")
    asyncio.run(disable())
    refused = penstock("dashboard", "link", "ada")
    assert refused.status == 1
    assert "disabled" in refused.err


def test_the_link_is_where_browsers_find_the_api(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_DASHBOARD_URL", "https://penstock.example.com/")
    assert penstock("dashboard", "link").out.startswith("https://penstock.example.com/admin/link/")


def test_a_link_of_an_api_that_listens_for_all_can_be_opened(penstock: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image PENSTOCK_API_HOST is 0.0.0.0, which no browser opens."""
    for listens, found in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.1.2.3", "10.1.2.3")):
        monkeypatch.setenv("PENSTOCK_API_HOST", listens)
        said = penstock("dashboard", "link").out
        assert said.startswith(f"http://{found}:8000/admin/link/")
        assert "set PENSTOCK_DASHBOARD_URL" in said
        assert "port 8000 is forwarded" in said
    monkeypatch.setenv("PENSTOCK_API_HOST", "127.0.0.1")
    assert "PENSTOCK_DASHBOARD_URL" not in penstock("dashboard", "link").out


def test_a_name_that_cannot_be_one_is_refused(penstock: Run) -> None:
    refused = penstock("dashboard", "link", "Ada Lovelace", "--role", "owner")
    assert refused.status == 1
    assert "name: use 1 to 63" in refused.err
