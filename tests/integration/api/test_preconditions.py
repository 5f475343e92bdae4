"""Does who sends If-Match change nothing but what they read; and is it as before for whoever sends none?"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from app.settings import Settings
from tests.support.api import assert_problem, make_tenant

BUDGET = {"metric": "requests", "period": "day", "limit": 1000}
ENDPOINT = {"url": "https://8.8.8.8/hook"}
# What may be changed, by one and by another, and what nobody changed.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tenant": ({"weight": 2}, {"weight": 3}),
    "key": ({"name": "two"}, {"name": "three"}),
    "budget": ({"limit": 2}, {"limit": 3}),
    "model": ({"input_price": 2}, {"input_price": 3}),
    "endpoint": ({"description": "two"}, {"description": "three"}),
}


@pytest.fixture
async def admin(
    app: FastAPI, client: httpx.AsyncClient, engine: AsyncEngine, settings: Settings
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends an operator's key, which may have endpoints, too."""
    operator = await make_tenant(engine, settings, "ops", scopes=["admin", "jobs:read", "jobs:write"])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=operator.auth) as admin:
        yield admin


@pytest.fixture
async def paths(admin: httpx.AsyncClient) -> dict[str, str]:
    """One of each kind."""
    key = await admin.post("/v1/admin/tenants/acme/keys", json={})
    budget = await admin.post("/v1/admin/tenants/acme/budgets", json=BUDGET)
    endpoint = await admin.post("/v1/webhook_endpoints", json=ENDPOINT)
    return {
        "tenant": "/v1/admin/tenants/acme",
        "key": key.headers["location"],
        "budget": budget.headers["location"],
        "model": "/v1/admin/models/bytes",
        "endpoint": endpoint.headers["location"],
    }


@pytest.mark.parametrize("kind", CHANGES)
async def test_of_two_who_read_the_same_the_second_is_told(
    admin: httpx.AsyncClient, paths: dict[str, str], kind: str
) -> None:
    path, (ours, theirs) = paths[kind], CHANGES[kind]
    ((field, value),) = ours.items()
    tag = (await admin.get(path)).headers["etag"]
    assert (await admin.get(path)).headers["etag"] == tag
    first = await admin.patch(path, json=ours, headers={"If-Match": tag})
    assert (first.status_code, first.json()[field]) == (200, value)
    late = await admin.patch(path, json=theirs, headers={"If-Match": tag})
    said = assert_problem(late, 412, "precondition_failed", "read it again")
    assert (said["param"], said["now"], said["retryable"]) == ("If-Match", ours, False)
    assert (await admin.get(path)).json()[field] == value
    assert (await admin.get(path)).headers["etag"] == first.headers["etag"] != tag
    again = {"If-Match": f'"another", {first.headers["etag"]}'}
    assert (await admin.patch(path, json=theirs, headers=again)).status_code == 200
    for headers in ({}, {"If-Match": "*"}):
        assert (await admin.patch(path, json=ours, headers=headers)).status_code == 200
        assert (await admin.patch(path, json=theirs, headers=headers)).status_code == 200


async def test_of_two_at_once_one_is_told(admin: httpx.AsyncClient, paths: dict[str, str]) -> None:
    for kind, changes in CHANGES.items():
        headers = {"If-Match": (await admin.get(paths[kind])).headers["etag"]}
        answers = await asyncio.gather(*(admin.patch(paths[kind], json=each, headers=headers) for each in changes))
        assert sorted(each.status_code for each in answers) == [200, 412], kind


async def test_a_header_that_names_no_version_changes_nothing(admin: httpx.AsyncClient, paths: dict[str, str]) -> None:
    for given in ("", ",", " , ,", "abc", '"a', '"a" "b"', "*, *", ", *", "W/abc"):
        answer = await admin.patch(paths["tenant"], json={"weight": 9}, headers={"If-Match": given})
        assert assert_problem(answer, 422, "invalid_request", "If-Match")["param"] == "If-Match", given
    assert (await admin.get(paths["tenant"])).json()["weight"] == 1


async def test_a_weak_tag_matches_nothing_a_strong_one_beside_it_does_and_what_is_so_already_is_no_conflict(
    admin: httpx.AsyncClient, paths: dict[str, str]
) -> None:
    tag = (await admin.get(paths["tenant"])).headers["etag"]
    weak = {"If-Match": f"W/{tag}"}
    assert_problem(await admin.patch(paths["tenant"], json={"weight": 7}, headers=weak), 412, "precondition_failed")
    assert (await admin.patch(paths["tenant"], json={"weight": 1}, headers=weak)).status_code == 200
    for weight, given in enumerate(('W/"x", {}', 'W/"x",{},W/"y"', '"W/", {}', '{}, W/"x"'), 2):
        tag = (await admin.get(paths["tenant"])).headers["etag"]
        beside = await admin.patch(paths["tenant"], json={"weight": weight}, headers={"If-Match": given.format(tag)})
        assert beside.status_code == 200, given


async def test_a_list_may_have_empty_elements_wherever_they_stand(
    admin: httpx.AsyncClient, paths: dict[str, str]
) -> None:
    """RFC 9110, 5.6.1.2: who reads a list ignores them. A comma at its beginning was a 422."""
    for weight, given in enumerate((", {}", ",,{}", ' ,\t, "x",, {} ,', '{}, , "x"', "{},"), 2):
        tag = (await admin.get(paths["tenant"])).headers["etag"]
        answer = await admin.patch(paths["tenant"], json={"weight": weight}, headers={"If-Match": given.format(tag)})
        assert answer.status_code == 200, given
        late = await admin.patch(paths["tenant"], json={"weight": 9}, headers={"If-Match": given.format(tag)})
        assert_problem(late, 412, "precondition_failed")


async def test_an_endpoint_that_was_changed_is_not_deleted(admin: httpx.AsyncClient, paths: dict[str, str]) -> None:
    path = paths["endpoint"]
    tag = (await admin.get(path)).headers["etag"]
    changed = await admin.patch(path, json={"description": "wanted after all"})
    assert_problem(await admin.delete(path, headers={"If-Match": tag}), 412, "precondition_failed")
    assert (await admin.delete(path, headers={"If-Match": changed.headers["etag"]})).status_code == 200
