"""Who gets in by an OIDC provider, and who doesn't, whatever the provider, the network or another site does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import RedirectResponse, Response

from app.operators import flows, links, passwords, people
from app.settings import Settings
from tests.support.dashboard import HOST, Browser, browser
from tests.support.oidc import CLIENT_SECRET, FORGERIES, OidcProvider, asked_for, ec_key, oidc_provider, rsa_key

ROLES = {"admins": "owner", "sre": "operator", "staff": "viewer"}
OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def provider(app: FastAPI, settings: Settings) -> AsyncIterator[OidcProvider]:
    """Configured, with roles by groups; whoever comes is in `sre`."""
    async with oidc_provider() as provider:
        provider.person["groups"] = ["sre", "coffee"]
        configure(app, settings, provider, oidc_roles=ROLES)
        yield provider


def configure(app: FastAPI, settings: Settings, provider: OidcProvider, **more: Any) -> None:
    app.state.runtime.settings = provider.configured(settings, **more)


async def log_in(client: Browser, provider: OidcProvider, **query: str) -> httpx.Response:
    """There and back; the answer to the return."""
    away = await client.get("/admin/oidc", params=query)
    assert away.status_code == 303, away.text
    return await client.get(await provider.visited(away.headers["location"]))


async def come_by_link(client: Browser, provider: OidcProvider, engine: AsyncEngine, name: str) -> httpx.Response:
    async with engine.begin() as conn:
        token = await links.make_link(conn, await people.read_person(conn, name), actor="test")
    away = await client.get(f"/admin/oidc/link/{token}", headers=OURS)
    return await client.get(await provider.visited(away.headers["location"]))


async def acts(engine: AsyncEngine, action: str) -> list[tuple[str, str, dict[str, Any]]]:
    async with engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT actor, target, detail FROM audit_log WHERE action = :action ORDER BY id"), {"action": action}
        )
        return [tuple(row) for row in rows]


async def sessions(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int(await conn.scalar(text("SELECT count(*) FROM operator_sessions")))


def assert_refused(answer: httpx.Response, status: int, said: str) -> None:
    assert answer.status_code == status, answer.text
    assert said in answer.text
    assert "penstock-session" not in str(answer.headers.get_list("set-cookie"))


async def test_who_is_in_a_group_with_a_role_gets_in(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    form = await stranger.get("/admin/login?next=/admin/jobs")
    assert 'href="/admin/oidc?next=/admin/jobs"' in form.text
    away = await stranger.get("/admin/oidc", params={"next": "/admin/jobs"})
    there = asked_for(away.headers["location"])
    assert there["redirect_uri"] == f"{HOST}/admin/oidc/callback"
    assert (there["response_type"], there["code_challenge_method"]) == ("code", "S256")
    assert len({there["state"], there["nonce"], there["code_challenge"]}) == 3
    (kept,) = away.headers.get_list("set-cookie")
    for part in ("__Host-penstock-oidc=", "HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age=600"):
        assert part in kept
    assert not [each for each in ("state", "nonce", "code_challenge") if there[each] in kept]
    back = await stranger.get(await provider.visited(away.headers["location"]))
    assert (back.status_code, back.headers["location"]) == (303, "/admin/jobs")
    session = next(each for each in back.headers.get_list("set-cookie") if "penstock-session" in each)
    for part in ("__Host-", "HttpOnly", "Secure", "SameSite=lax", "Path=/"):
        assert part in session
    shown = await stranger.get("/admin/account")
    assert "ada, operator" in shown.text
    assert "single sign-on" in shown.text
    assert [each[:2] for each in await acts(engine, "operator.create")] == [("oidc", "ada")]
    assert await acts(engine, "operator.login") == [("operator:ada", "ada", {"by": "oidc"})]


async def test_acts_and_the_log_out_are_as_after_a_password(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    provider.person["groups"] = "admins"
    await log_in(stranger, provider)
    first = stranger.cookies["__Host-penstock-session"]
    await log_in(stranger, provider)
    assert stranger.cookies["__Host-penstock-session"] != first
    assert await sessions(engine) == 1  # the one before ended
    assert (await stranger.post("/admin/operators", data={"name": "bob", "role": "viewer"})).status_code == 403
    page = (await stranger.get("/admin/account")).text
    stranger.csrf = page.split('name="csrf" value="')[1].split('"')[0]
    assert (await stranger.act("/admin/operators", name="bob", role="viewer")).status_code == 200
    assert (await stranger.act("/admin/logout")).status_code == 303
    assert await sessions(engine) == 0
    assert (await stranger.get("/admin/account")).status_code == 303


async def test_who_comes_again_is_the_same_operator_with_the_role_of_now(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    await log_in(stranger, provider)
    provider.person |= {"preferred_username": "grace", "email": "other@example.com", "groups": ["staff"]}
    await log_in(stranger, provider)
    assert "ada, viewer" in (await stranger.get("/admin/account")).text
    assert await acts(engine, "operator.role") == [("oidc", "ada", {"role": ["operator", "viewer"]})]
    assert await sessions(engine) == 1  # those of the other role ended, this one's before was replaced
    provider.person["groups"] = ["staff", "admins", "sre"]
    await log_in(stranger, provider)
    assert "ada, owner" in (await stranger.get("/admin/account")).text
    provider.person["groups"] = ["staff"]
    await log_in(stranger, provider)  # the only owner
    assert "ada, viewer" in (await stranger.get("/admin/account")).text


async def test_who_comes_twice_at_once_for_the_first_time_is_one_operator(
    provider: OidcProvider, engine: AsyncEngine, app: FastAPI
) -> None:
    async with browser(app) as one, browser(app) as other:
        answers = await asyncio.gather(log_in(one, provider), log_in(other, provider))
    assert [each.status_code for each in answers] == [303, 303]
    assert [each[1] for each in await acts(engine, "operator.create")] == ["ada"]
    assert await sessions(engine) == 2


async def test_whose_groups_map_no_more_is_refused_and_their_sessions_end(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine, app: FastAPI
) -> None:
    await log_in(stranger, provider)
    provider.person["groups"] = ["coffee"]
    async with browser(app) as elsewhere:
        assert_refused(await log_in(elsewhere, provider), 403, "None of your groups")
    assert (await stranger.get("/admin/account")).status_code == 303
    ((actor, target, detail),) = await acts(engine, "operator.login_refused")
    assert (actor, target) == ("address:127.0.0.1", "ada")
    assert detail == {"by": "oidc", "refused": "no_role", "issuer": provider.issuer, "subject": "u-1"}


async def test_who_is_in_no_such_group_gets_no_account(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    for groups in (None, ["coffee"]):
        provider.person["groups"] = groups
        assert_refused(await log_in(stranger, provider), 403, "None of your groups")
    assert await acts(engine, "operator.create") == []
    assert [each[1] for each in await acts(engine, "operator.login_refused")] == ["oidc", "oidc"]


async def test_who_was_disabled_stays_out(stranger: Browser, provider: OidcProvider, engine: AsyncEngine) -> None:
    await log_in(stranger, provider)
    async with engine.begin() as conn:
        await people.disable_person(conn, "ada", actor="test")
    assert_refused(await log_in(stranger, provider), 403, "disabled")
    assert (await stranger.get("/admin/account")).status_code == 303


async def test_a_name_that_is_taken_here_is_somebody_elses(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    async with engine.begin() as conn:
        await people.create_person(conn, "owner", "owner", actor="test")
    provider.person |= {"preferred_username": "Owner", "email": "owner@example.com", "email_verified": True}
    await log_in(stranger, provider)
    assert "owner-2, operator" in (await stranger.get("/admin/account")).text


async def test_the_same_subject_of_another_issuer_is_somebody_else(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    async with engine.begin() as conn:
        root = await people.create_person(conn, "root", "owner", actor="test")
        await conn.execute(
            text(
                "INSERT INTO operator_identities (issuer, subject, operator_id) VALUES ('https://old.test', 'u-1', :id)"
            ),
            {"id": root.id},
        )
    await log_in(stranger, provider)
    assert "ada, operator" in (await stranger.get("/admin/account")).text


# --- attacks on the way ----------------------------------------------------------------------------------------------


async def test_an_answer_to_a_log_in_that_this_browser_did_not_begin_logs_nobody_in(
    stranger: Browser, provider: OidcProvider, app: FastAPI, engine: AsyncEngine
) -> None:
    """Log-in CSRF: somebody has their visitor open the end of a log-in of their own."""
    async with browser(app) as attacker:
        away = await attacker.get("/admin/oidc")
        theirs = await provider.visited(away.headers["location"])
        assert_refused(await stranger.get(theirs), 400, "wasn&#39;t begun in this browser")
        mine = await stranger.get("/admin/oidc")
        assert_refused(await stranger.get(theirs), 400, "wasn&#39;t begun in this browser")
        good = await provider.visited(mine.headers["location"])
        assert (await stranger.get(good)).status_code == 303  # the wrong answer hasn't used it up
        assert (await attacker.get(theirs)).status_code == 303
    assert provider.asked["token"] == 2


async def test_a_wrong_state_or_none_is_refused(stranger: Browser, provider: OidcProvider) -> None:
    away = await stranger.get("/admin/oidc")
    code = asked_for(await provider.visited(away.headers["location"]))["code"]
    for state in ("state=x&", "", "state=&", "state=é&"):
        assert_refused(await stranger.get(f"/admin/oidc/callback?{state}code={code}"), 400, "Begin it again")
    assert provider.asked["token"] == 0


async def test_an_answer_counts_once_even_where_the_cookie_comes_again(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    away = await stranger.get("/admin/oidc")
    kept = stranger.cookies["__Host-penstock-oidc"]
    back = await provider.visited(away.headers["location"])
    assert (await stranger.get(back)).status_code == 303
    assert "__Host-penstock-oidc" not in stranger.cookies
    stranger.cookies.clear()
    assert_refused(await stranger.get(back), 400, "Begin it again")
    stranger.cookies.set("__Host-penstock-oidc", kept)
    assert_refused(await stranger.get(back), 400, "Begin it again")
    assert provider.asked["token"] == 1
    assert await sessions(engine) == 1


async def test_a_code_that_was_used_already_logs_nobody_in(
    stranger: Browser, provider: OidcProvider, app: FastAPI
) -> None:
    """The code of another's log-in, put into an answer to one's own: its challenge is another one, and it works once."""
    async with browser(app) as victim:
        theirs = await provider.visited((await victim.get("/admin/oidc")).headers["location"])
        mine = await provider.visited((await stranger.get("/admin/oidc")).headers["location"])
        mixed = f"/admin/oidc/callback?code={asked_for(theirs)['code']}&state={asked_for(mine)['state']}&iss={provider.issuer}"
        assert_refused(await stranger.get(mixed), 403, "finished already")
        assert "<b>no</b>" not in (await stranger.get(mixed)).text


async def test_a_log_in_that_took_too_long_is_over(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    away = await stranger.get("/admin/oidc")
    back = await provider.visited(away.headers["location"])
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE oidc_flows SET expires_at = now() - interval '1 second'"))
    assert_refused(await stranger.get(back), 400, "ten minutes")


async def test_an_answer_of_another_provider_is_refused(stranger: Browser, provider: OidcProvider) -> None:
    for iss in ("&iss=https://evil.test", ""):
        back = asked_for(await provider.visited((await stranger.get("/admin/oidc")).headers["location"]))
        answer = await stranger.get(f"/admin/oidc/callback?code={back['code']}&state={back['state']}{iss}")
        assert_refused(answer, 403, "Begin it again")
    assert provider.asked["token"] == 0


async def test_what_the_provider_says_of_a_refusal_is_not_repeated(stranger: Browser, provider: OidcProvider) -> None:
    state = asked_for((await stranger.get("/admin/oidc")).headers["location"])["state"]
    answer = await stranger.get(
        "/admin/oidc/callback", params={"state": state, "error": "<script>", "error_description": "<img src=x>"}
    )
    assert_refused(answer, 403, "let you in")
    assert "<script>" not in answer.text.replace("<script src=", "")
    assert "img src=x" not in answer.text


async def test_the_way_back_leads_nowhere_else(stranger: Browser, provider: OidcProvider) -> None:
    for elsewhere in (
        "https://evil.test/",
        "//evil.test",
        "/admin//evil.test",
        "/admin/\\evil",
        "/v1/jobs",
        "/admin/oidc",
    ):
        assert (await log_in(stranger, provider, next=elsewhere)).headers["location"] == "/admin"


async def test_nobody_fills_the_table_nor_ends_what_others_began(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    async with engine.begin() as conn:
        other = await flows.begin_flow(conn, network="192.0.2.1", to="/admin", link_hash=None)
        for _ in range(flows.MOST_OF_NETWORK + 5):
            last = await flows.begin_flow(conn, network="192.0.2.2", to="/admin", link_hash=None)
        assert await conn.scalar(text("SELECT count(*) FROM oidc_flows")) == flows.MOST_OF_NETWORK + 1
        assert await flows.end_flow(conn, other) is not None
        assert await flows.end_flow(conn, last) is not None


async def test_who_tries_too_often_has_to_wait(stranger: Browser, provider: OidcProvider, engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO login_failures (subject, failures, blocked_until) VALUES ('address:127.0.0.1', 30, now() + interval '60 s')"
            )
        )
    answer = await log_in(stranger, provider)
    assert_refused(answer, 429, "too many log-ins failed")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert provider.asked["token"] == 0


# --- tokens that prove nothing ---------------------------------------------------------------------------------------


async def test_a_token_that_proves_nothing_lets_nobody_in(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    """How many ways there are to be wrong: tests/unit/operators/test_id_tokens.py."""
    for lies in ({"nonce": "another"}, {"aud": "another"}, {"iss": "https://evil.test"}, {"exp": 1}, {"sub": None}):
        provider.lies = lies
        assert_refused(await log_in(stranger, provider), 403, "prove who you are")
    provider.lies = {}
    provider.published = [provider.key, rsa_key()]
    for forge in FORGERIES:
        provider.forge = forge
        assert_refused(await log_in(stranger, provider), 403, "prove who you are")
    assert await acts(engine, "operator.create") == []
    assert await sessions(engine) == 0


async def test_keys_that_were_changed_are_read_once_more(stranger: Browser, provider: OidcProvider) -> None:
    assert (await log_in(stranger, provider)).status_code == 303
    assert (await log_in(stranger, provider)).status_code == 303
    assert (provider.asked["keys"], provider.asked["discovery"]) == (1, 1)
    provider.rotate(rsa_key())
    assert (await log_in(stranger, provider)).status_code == 303
    assert provider.asked["keys"] == 2
    provider.key = ec_key("unpublished")
    assert_refused(await log_in(stranger, provider), 403, "prove who you are")
    assert provider.asked["keys"] == 3


# --- a provider that is away, or odd ---------------------------------------------------------------------------------


async def test_while_the_provider_hangs_the_page_says_so_and_others_are_served(
    stranger: Browser, app: FastAPI, settings: Settings
) -> None:
    async with oidc_provider() as provider:
        configure(app, settings, provider, oidc_timeout_s=0.5)
        provider.hangs = asyncio.Event()
        waiting = asyncio.create_task(stranger.get("/admin/oidc"))
        async with asyncio.timeout(30):
            while not provider.asked["discovery"]:
                await asyncio.sleep(0.01)
            assert (await stranger.get("/admin/login")).status_code == 200  # meanwhile
        answer = await waiting
        assert_refused(answer, 503, "or log in by password")
        provider.hangs.set()
        provider.hangs = None
        async with asyncio.timeout(
            30
        ):  # nothing has to be restarted; a provider that is held up for half a second is away once more
            while (answer := await stranger.get("/admin/oidc")).status_code != 303:
                assert answer.status_code == 503


async def test_a_provider_that_nobody_reaches_is_away_and_passwords_work(
    stranger: Browser, app: FastAPI, settings: Settings, engine: AsyncEngine
) -> None:
    async with oidc_provider() as provider:
        pass
    configure(app, settings, provider)
    assert_refused(await stranger.get("/admin/oidc"), 503, "The provider doesn&#39;t answer")
    password = "four rivers meet here"
    async with engine.begin() as conn:
        person = await people.create_person(conn, "bob", "viewer", actor="test")
        await people.set_password(conn, person.id, await passwords.hashed(password), actor="test")
    answer = await stranger.post("/admin/login", data={"name": "bob", "password": password})
    assert answer.status_code == 303


async def test_a_discovery_document_that_can_not_be_is_refused(stranger: Browser, provider: OidcProvider) -> None:
    documents: list[dict[str, Any]] = [
        {"issuer": "https://evil.test"}, {"issuer": None}, {"token_endpoint": None}, {"jwks_uri": 7},
        {"token_endpoint": "http://evil.test/token"}, {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "http://["}, {"token_endpoint": "https://é.test/"}, {"id_token_signing_alg_values_supported": ["HS256", "none"]},
        {"id_token_signing_alg_values_supported": 7}, {"token_endpoint_auth_methods_supported": 7},
    ]  # fmt: skip
    for document in documents:
        provider.document = document
        assert_refused(await stranger.get("/admin/oidc"), 503, "The provider doesn&#39;t answer")


async def test_an_answer_that_is_none_is_one_of_a_provider_that_fails(
    stranger: Browser, provider: OidcProvider
) -> None:
    odd = [Response("{"), Response("[]"), Response("<p>", 502), Response(b"[" * 200_000), Response(b" " * 1_100_000)]
    for path in ("discovery", "token", "keys"):
        for answer in odd:
            provider.answers[path] = answer
            away = await stranger.get("/admin/oidc")
            if path != "discovery":
                away = await stranger.get(await provider.visited(away.headers["location"]))
            assert_refused(away, 503, "The provider doesn&#39;t answer")
        del provider.answers[path]


async def test_a_redirect_of_the_token_endpoint_takes_our_secret_nowhere(
    stranger: Browser, provider: OidcProvider
) -> None:
    provider.answers["token"] = RedirectResponse(f"{provider.url}/keys", 307)
    assert_refused(await log_in(stranger, provider), 503, "The provider doesn&#39;t answer")
    assert provider.asked["keys"] == 0


async def test_a_client_may_show_its_secret_in_the_form(stranger: Browser, provider: OidcProvider) -> None:
    provider.document["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    assert (await log_in(stranger, provider)).status_code == 303


async def test_no_secret_stands_in_the_log(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    away = await stranger.get("/admin/oidc")
    secrets = [stranger.cookies["__Host-penstock-oidc"], CLIENT_SECRET]
    back = await provider.visited(away.headers["location"])
    assert (await stranger.get(back)).status_code == 303
    provider.lies = {"aud": "another"}
    await log_in(stranger, provider)
    said = [vars(each) for each in caplog.records if each.name.startswith("penstock")]
    told = [each["fields"] for each in said if each["event"] == "dashboard.login_refused"]
    assert [(each["reason"], each["by"], each["why"]) for each in told] == [
        ("not_proven", "oidc", "a claim is wrong: InvalidClaimError aud")
    ]
    there = asked_for(away.headers["location"])
    for secret in (*secrets, there["state"], there["nonce"], asked_for(back)["code"], "u-1"):
        assert secret not in str(said)


# --- without roles by groups: by a link ------------------------------------------------------------------------------


@pytest.fixture
async def by_link(app: FastAPI, settings: Settings, provider: OidcProvider, engine: AsyncEngine) -> OidcProvider:
    """Groups say nothing; there is an operator `grace`, whom the provider doesn't know yet."""
    configure(app, settings, provider)
    async with engine.begin() as conn:
        await people.create_person(conn, "grace", "operator", actor="test")
    return provider


async def test_who_was_sent_no_link_is_refused_whatever_their_address(
    stranger: Browser, by_link: OidcProvider, engine: AsyncEngine
) -> None:
    by_link.person |= {"preferred_username": "grace", "email": "grace", "email_verified": True, "groups": ["admins"]}
    assert_refused(await log_in(stranger, by_link), 403, "Ask an owner for a link")
    ((_, target, detail),) = await acts(engine, "operator.login_refused")
    assert (target, detail["refused"], detail["subject"]) == ("oidc", "unknown", "u-1")


async def test_a_link_ties_an_operator_to_who_comes_by_it(
    stranger: Browser, by_link: OidcProvider, engine: AsyncEngine, app: FastAPI
) -> None:
    assert (await come_by_link(stranger, by_link, engine, "grace")).status_code == 303
    assert "grace, operator" in (await stranger.get("/admin/account")).text
    assert (await acts(engine, "operator.identity"))[0][2] == {"issuer": by_link.issuer, "subject": "u-1"}
    stranger.cookies.clear()
    assert (await log_in(stranger, by_link)).status_code == 303  # and needs no link any more
    assert "grace, operator" in (await stranger.get("/admin/account")).text
    async with browser(app) as other:  # who has another link doesn't become two
        async with engine.begin() as conn:
            await people.create_person(conn, "eve", "owner", actor="test")
        assert_refused(await come_by_link(other, by_link, engine, "eve"), 403, "tied to another account")
        by_link.person["sub"] = "u-2"
        assert (await come_by_link(other, by_link, engine, "grace")).status_code == 303  # a new link, a new subject
    assert (await stranger.get("/admin/account")).status_code == 303
    by_link.person["sub"] = "u-1"
    assert_refused(await log_in(stranger, by_link), 403, "Ask an owner for a link")


async def test_a_link_ties_once_and_from_its_own_page_only(
    stranger: Browser, by_link: OidcProvider, engine: AsyncEngine
) -> None:
    async with engine.begin() as conn:
        token = await links.make_link(conn, await people.read_person(conn, "grace"), actor="test")
    path = f"/admin/oidc/link/{token}"
    assert path in (await stranger.get(f"/admin/link/{token}")).text
    for foreign in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "none"},
        {},
        {"Referer": "https://evil.test/"},
    ):
        assert (await stranger.get(path, headers=foreign)).headers["location"] == f"/admin/link/{token}"
    first = await stranger.get(path, headers={"Referer": f"{HOST}/admin/link/{token}"})
    kept = stranger.cookies["__Host-penstock-oidc"]
    second = await stranger.get(path, headers=OURS)
    assert (await stranger.get(await by_link.visited(second.headers["location"]))).status_code == 303
    stranger.cookies.clear()
    stranger.cookies.set("__Host-penstock-oidc", kept)
    by_link.person["sub"] = "u-2"
    assert_refused(await stranger.get(await by_link.visited(first.headers["location"])), 403, "used already")
    assert (await stranger.get(path, headers=OURS)).status_code == 410


async def test_an_owner_unties_an_operator(
    stranger: Browser, owner: Browser, by_link: OidcProvider, engine: AsyncEngine
) -> None:
    await come_by_link(stranger, by_link, engine, "grace")
    assert "/admin/operators/grace/unlink" in (await owner.get("/admin/operators")).text
    assert (await owner.act("/admin/operators/grace/unlink")).status_code == 303
    assert (await stranger.get("/admin/account")).status_code == 303
    assert_refused(await log_in(stranger, by_link), 403, "Ask an owner for a link")
    assert [each[0] for each in await acts(engine, "operator.unlink")] == ["operator:the-owner"]


# --- what is configured ----------------------------------------------------------------------------------------------


async def test_without_a_provider_nothing_is_there(stranger: Browser) -> None:
    assert "oidc" not in (await stranger.get("/admin/login")).text
    for path in ("/admin/oidc", "/admin/oidc/callback?state=x&code=y"):
        assert (await stranger.get(path)).status_code == 404


async def test_without_passwords_the_provider_and_one_time_links_remain(
    stranger: Browser, app: FastAPI, settings: Settings, provider: OidcProvider, engine: AsyncEngine
) -> None:
    configure(app, settings, provider, oidc_roles=ROLES, dashboard_passwords=False)
    form = await stranger.get("/admin/login")
    assert 'name="password"' not in form.text
    refused = await stranger.post("/admin/login", data={"name": "owner", "password": "x"})
    assert_refused(refused, 403, "Nobody logs in by password")
    assert provider.asked["token"] == 0
    assert (await log_in(stranger, provider)).status_code == 303
    stranger.cookies.clear()
    async with engine.begin() as conn:
        await people.create_person(conn, "owner", "owner", actor="test")
        token = await links.make_link(conn, await people.read_person(conn, "owner"), actor="test")
    shown = await stranger.get(f"/admin/link/{token}")
    assert 'name="password"' not in shown.text
    assert (await stranger.post(f"/admin/link/{token}", data={})).status_code == 303
    assert "owner, owner" in (await stranger.get("/admin/account")).text
    stranger.csrf = (await stranger.get("/admin/account")).text.split('name="csrf" value="')[1].split('"')[0]
    assert (await stranger.act("/admin/account/password", password="x" * 20, again="x" * 20)).status_code == 422
    assert (await stranger.post(f"/admin/link/{token}", data={})).status_code == 410


async def test_who_comes_by_the_provider_needs_no_first_link(
    stranger: Browser, provider: OidcProvider, engine: AsyncEngine
) -> None:
    async with engine.begin() as conn:
        assert await people.ensure_owner(conn, actor="test") is not None
    provider.person["groups"] = ["admins"]
    await log_in(stranger, provider)
    async with engine.begin() as conn:
        assert await people.ensure_owner(conn, actor="test", passwords=False) is None
