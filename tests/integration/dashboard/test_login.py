"""Who gets in, who stays in, and who may do what: log-in, one-time links, sessions, roles, forged forms."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.dashboard.access import cookie_name
from app.dashboard.guard import CSP
from app.operators import links, passwords, people, throttle
from app.operators.sessions import csrf_of
from app.settings import Settings
from tests.support.dashboard import HOST, Browser, logged_in

PASSWORD = "four rivers meet here"


@pytest.fixture
async def link(engine: AsyncEngine) -> str:
    """For the first owner."""
    async with engine.begin() as conn:
        person = await people.ensure_owner(conn, actor="test")
        assert person is not None
        return await links.make_link(conn, person, actor="test")


@pytest.fixture
async def known(engine: AsyncEngine) -> str:
    """An operator with PASSWORD; the name."""
    async with engine.begin() as conn:
        person = await people.create_person(conn, "ada", "operator", actor="test")
        await people.set_password(conn, person.id, await passwords.hashed(PASSWORD), actor="test")
    return "ada"


async def log_in(stranger: Browser, name: str, password: str = PASSWORD) -> httpx.Response:
    return await stranger.post("/admin/login", data={"name": name, "password": password})


async def test_the_first_owner_gets_in_by_a_link_that_works_once(stranger: Browser, link: str) -> None:
    for _ in range(2):  # looking uses nothing up
        shown = await stranger.get(f"/admin/link/{link}")
        assert shown.status_code == 200
        assert "Choose a password" in shown.text
    short = await stranger.post(f"/admin/link/{link}", data={"password": "short", "again": "short"})
    assert short.status_code == 422
    assert "12 to 200 characters" in short.text
    used = await stranger.post(f"/admin/link/{link}", data={"password": PASSWORD, "again": PASSWORD})
    assert used.status_code == 303
    cookie = used.headers["set-cookie"]
    assert cookie.startswith("__Host-penstock-session=")
    for part in ("HttpOnly", "Secure", "SameSite=lax", "Path=/"):
        assert part in cookie
    assert "Domain" not in cookie
    assert (await stranger.get("/admin/overview")).status_code == 200
    stranger.cookies.clear()
    again = await stranger.post(f"/admin/link/{link}", data={"password": PASSWORD + "!", "again": PASSWORD + "!"})
    assert again.status_code == 410
    assert (await stranger.get(f"/admin/link/{link}")).status_code == 410
    assert (await log_in(stranger, "owner")).status_code == 303


async def test_a_link_that_is_too_old_lets_nobody_in(stranger: Browser, engine: AsyncEngine, link: str) -> None:
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE operator_links SET expires_at = now() - interval '1 second'"))
    assert (await stranger.get(f"/admin/link/{link}")).status_code == 410
    used = await stranger.post(f"/admin/link/{link}", data={"password": PASSWORD, "again": PASSWORD})
    assert used.status_code == 410
    assert "set-cookie" not in used.headers


async def test_a_second_link_ends_the_first(stranger: Browser, engine: AsyncEngine, link: str) -> None:
    async with engine.begin() as conn:
        await links.make_link(conn, await people.read_person(conn, "owner"), actor="test")
    assert (await stranger.get(f"/admin/link/{link}")).status_code == 410


async def test_no_owner_is_made_where_somebody_can_log_in(engine: AsyncEngine, known: str) -> None:
    async with engine.begin() as conn:
        assert await people.ensure_owner(conn, actor="test") is None


async def test_a_log_in_leads_back_to_the_page_that_was_asked_for(stranger: Browser, known: str) -> None:
    sent = await stranger.get("/admin/account")
    assert sent.status_code == 303
    form = await stranger.get(sent.headers["location"])
    to = re.search(r'name="next" value="([^"]*)"', form.text)
    assert to is not None
    assert to[1] == "/admin/account"
    answer = await stranger.post("/admin/login", data={"name": known, "password": PASSWORD, "next": to[1]})
    assert answer.headers["location"] == "/admin/account"


async def test_a_page_that_refreshes_itself_leads_to_the_log_in_and_back_to_itself(stranger: Browser) -> None:
    asked = {"HX-Request": "true", "HX-Current-URL": f"{HOST}/admin/tenants/acme?edit=limits"}
    answer = await stranger.get("/admin/overview/live", headers=asked)
    assert answer.status_code == 401
    assert answer.headers["hx-redirect"] == "/admin/login?next=/admin/tenants/acme"
    asked["HX-Current-URL"] = "https://evil.test//evil.test/x"
    assert (await stranger.get("/admin/overview/live", headers=asked)).headers[
        "hx-redirect"
    ] == "/admin/login?next=/admin"


@pytest.mark.parametrize(
    "elsewhere", ["https://evil.test/", "//evil.test", "/admin//evil.test", "/admin/\\evil", "/v1/jobs"]
)
async def test_a_log_in_leads_nowhere_else(stranger: Browser, known: str, elsewhere: str) -> None:
    answer = await stranger.post("/admin/login", data={"name": known, "password": PASSWORD, "next": elsewhere})
    assert answer.headers["location"] == "/admin"


async def test_an_unknown_name_and_a_wrong_password_are_answered_alike(stranger: Browser, known: str) -> None:
    wrong, unknown = await log_in(stranger, known, "not the password"), await log_in(stranger, "nobody", PASSWORD)
    assert wrong.status_code == unknown.status_code == 401
    assert re.sub(rf"\b{known}\b", "X", wrong.text) == re.sub(r"\bnobody\b", "X", unknown.text)
    assert "set-cookie" not in wrong.headers


async def failed_before(engine: AsyncEngine, subject: str, times: int) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO login_failures (subject, failures) VALUES (:subject, :times) "
                "ON CONFLICT (subject) DO UPDATE SET failures = :times"
            ),
            {"subject": subject, "times": times},
        )


async def test_guesses_are_throttled_even_when_the_last_is_right(
    stranger: Browser, known: str, engine: AsyncEngine
) -> None:
    await failed_before(engine, f"account:{known}", 10)
    assert (await log_in(stranger, known, "a guess that is wrong")).status_code == 401
    refused = await log_in(stranger, known)
    assert refused.status_code == 429
    assert 1 < int(refused.headers["retry-after"]) <= 64  # 2 ** (11 - 5)


async def test_guesses_at_many_names_from_one_address_are_throttled(
    stranger: Browser, known: str, engine: AsyncEngine
) -> None:
    await failed_before(engine, "address:127.0.0.1", 30)
    assert (await log_in(stranger, "nobody", "a guess that is wrong")).status_code == 401
    refused = await log_in(stranger, known)
    assert refused.status_code == 429
    assert 1 < int(refused.headers["retry-after"]) <= throttle.LONGEST_S


async def test_the_first_failures_cost_nothing_and_old_ones_are_forgotten(engine: AsyncEngine) -> None:
    async def attempt(name: str, address: str) -> None:
        async with engine.begin() as conn:
            await throttle.count_try(conn, name=name, address=address)

    for i in range(throttle.BY_NAME.free):
        await attempt("ada", f"10.0.0.{i}")
    for i in range(throttle.BY_ADDRESS.free):
        await attempt(f"name-{i}", "10.0.1.1")
    async with engine.begin() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM login_failures WHERE blocked_until > last_at")) == 0
        await conn.execute(text("UPDATE login_failures SET failures = 50, last_at = now() - interval '25 hours'"))
    for _ in range(2):
        await attempt("ada", "10.0.1.1")


async def test_a_right_password_makes_the_account_forget_its_failures(stranger: Browser, known: str) -> None:
    for _ in range(2):
        for _ in range(3):
            assert (await log_in(stranger, known, "a guess that is wrong")).status_code == 401
        assert (await log_in(stranger, known)).status_code == 303


async def test_who_logs_out_is_out(viewer: Browser) -> None:
    answer = await viewer.act("/admin/logout")
    assert answer.status_code == 303
    viewer.cookies.set("__Host-penstock-session", "x")
    assert (await viewer.get("/admin/overview")).status_code == 303


async def test_a_cookie_that_was_kept_is_worth_nothing_after_the_log_out(viewer: Browser) -> None:
    token = viewer.cookies["__Host-penstock-session"]
    await viewer.act("/admin/logout")
    viewer.cookies.set("__Host-penstock-session", token)
    assert (await viewer.get("/admin/overview")).status_code == 303


@pytest.mark.parametrize(
    "change", ["seen_at = now() - interval '3 hours'", "expires_at = now() - interval '1 second'"], ids=["idle", "old"]
)
async def test_a_session_ends_by_idleness_and_by_age(viewer: Browser, engine: AsyncEngine, change: str) -> None:
    assert (await viewer.get("/admin/overview")).status_code == 200
    async with engine.begin() as conn:
        await conn.execute(text(f"UPDATE operator_sessions SET {change}"))
    assert (await viewer.get("/admin/overview")).status_code == 303


async def test_a_page_that_refreshes_itself_keeps_no_session_alive(viewer: Browser, engine: AsyncEngine) -> None:
    async def seen_ago_s() -> float:
        async with engine.connect() as conn:
            return float(await conn.scalar(text("SELECT extract(epoch FROM now() - seen_at) FROM operator_sessions")))

    async with engine.begin() as conn:
        await conn.execute(text("UPDATE operator_sessions SET seen_at = now() - interval '1 hour'"))
    await viewer.get("/admin/overview/live")
    assert await seen_ago_s() > 3000
    await viewer.get("/admin/overview")
    assert await seen_ago_s() < 60


async def test_sessions_end_when_role_or_password_change_and_when_the_operator_is_disabled(
    app: FastAPI, engine: AsyncEngine, settings: Settings, owner: Browser
) -> None:
    for act, fields in (("role", {"role": "operator"}), ("disable", {})):
        async with logged_in(app, engine, settings, "viewer") as viewer:
            assert (await viewer.get("/admin/overview")).status_code == 200
            assert (await owner.act(f"/admin/operators/the-viewer/{act}", **fields)).status_code == 303
            assert (await viewer.get("/admin/overview")).status_code == 303
    await owner.act("/admin/operators/the-viewer/enable")
    async with logged_in(app, engine, settings, "viewer") as viewer:
        shown = await owner.act("/admin/operators/the-viewer/link")
        token = re.search(rf"{HOST}/admin/link/([\w-]+)", shown.text)
        assert token is not None
        await owner.post(f"/admin/link/{token[1]}", data={"password": PASSWORD, "again": PASSWORD})
        assert (await viewer.get("/admin/overview")).status_code == 303


async def test_who_changes_their_password_stays_in_and_is_out_elsewhere(
    stranger: Browser, known: str, app: FastAPI
) -> None:
    await log_in(stranger, known)
    elsewhere = stranger.cookies["__Host-penstock-session"]
    stranger.cookies.clear()
    await log_in(stranger, known)
    stranger.csrf = csrf_of(stranger.cookies["__Host-penstock-session"])
    wrong = await stranger.act(
        "/admin/account/password", current="no", password="five rivers meet", again="five rivers meet"
    )
    assert wrong.status_code == 422
    right = await stranger.act(
        "/admin/account/password", current=PASSWORD, password="five rivers meet", again="five rivers meet"
    )
    assert right.status_code == 303
    assert (await stranger.get("/admin/account")).status_code == 200
    stranger.cookies.clear()
    stranger.cookies.set("__Host-penstock-session", elsewhere)
    assert (await stranger.get("/admin/account")).status_code == 303


async def test_the_last_owner_stays_one(owner: Browser, engine: AsyncEngine) -> None:
    for act, fields in (("role", {"role": "viewer"}), ("disable", {})):
        refused = await owner.act(f"/admin/operators/the-owner/{act}", **fields)
        assert refused.status_code == 422
        assert "only owner" in refused.text
    assert (await owner.get("/admin/operators")).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "https://penstock.test.evil.test"])
async def test_a_form_of_another_site_does_nothing(owner: Browser, engine: AsyncEngine, origin: str) -> None:
    refused = await owner.post(
        "/admin/operators", data={"csrf": owner.csrf, "name": "mallory", "role": "owner"}, headers={"Origin": origin}
    )
    assert refused.status_code == 403
    async with engine.connect() as conn:
        assert await people.find_person(conn, "mallory") is None


async def test_a_form_without_origin_does_nothing_unless_the_browser_says_where_it_is_from(
    app: FastAPI, engine: AsyncEngine, settings: Settings
) -> None:
    async with logged_in(app, engine, settings, "owner") as client:
        del client.headers["Origin"]
        assert (await client.act("/admin/operators", name="eve", role="viewer")).status_code == 403
        client.headers["Sec-Fetch-Site"] = "same-origin"
        assert (await client.act("/admin/operators", name="eve", role="viewer")).status_code == 200


@pytest.mark.parametrize("token", ["", "0" * 64, "ü"])
async def test_a_form_without_the_sessions_token_does_nothing(owner: Browser, engine: AsyncEngine, token: str) -> None:
    refused = await owner.post("/admin/operators", data={"csrf": token, "name": "mallory", "role": "owner"})
    assert refused.status_code == 403
    async with engine.connect() as conn:
        assert await people.find_person(conn, "mallory") is None


async def test_each_act_wants_a_session_and_its_token(app: FastAPI) -> None:
    """Every unsafe route depends on `require(...)`, which checks both; log-in and link have none yet."""
    unguarded = set()
    for route in app.state.dashboard.state.all_routes:
        if not route.path.startswith("/static"):
            roles = [each.call for each in route.dependant.dependencies if hasattr(each.call, "role")]
            if not roles:
                unguarded.add(route.path)
    assert unguarded == {"/login", "/link/{token}", "/oidc", "/oidc/link/{token}", "/oidc/callback"}


async def test_the_navigation_shows_what_there_is(viewer: Browser, owner: Browser) -> None:
    for client, expected in ((viewer, False), (owner, True)):
        shown = await client.get("/admin/overview")
        assert 'href="/admin/overview" aria-current="page"' in shown.text
        assert ('href="/admin/operators"' in shown.text) is expected


async def test_roles_hold(viewer: Browser, operator: Browser) -> None:
    for client in (viewer, operator):
        assert (await client.get("/admin/operators")).status_code == 403
        assert (await client.act("/admin/operators", name="mallory", role="owner")).status_code == 403
        assert "Operators" not in (await client.get("/admin/overview")).text


@pytest.mark.parametrize(
    "path", ["/admin", "/admin/overview", "/admin/login", "/admin/nowhere", "/admin/static/x/penstock.css"]
)
async def test_each_answer_has_its_security_headers(viewer: Browser, path: str) -> None:
    answer = await viewer.get(path)
    assert answer.headers["content-security-policy"] == CSP
    assert "unsafe" not in CSP
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "max-age" in answer.headers["strict-transport-security"]
    assert answer.headers["cache-control"] == "no-store"


async def test_assets_are_kept_for_ever_under_their_digest(viewer: Browser) -> None:
    shown = await viewer.get("/admin/overview")
    found = re.findall(r'(?:src|href)="(/admin/static/[^"]+)"', shown.text)
    assert len(found) >= 4
    for each in found:
        answer = await viewer.get(each)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert not re.findall(r'(?:src|href|action)="(?:https?:)?//', shown.text)


async def test_a_form_that_is_too_large_is_not_read(owner: Browser) -> None:
    refused = await owner.act("/admin/operators", name="x" * (9 * 2**20))
    assert refused.status_code == 413


async def test_secrets_stand_in_no_log(
    stranger: Browser, link: str, known: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await stranger.get(f"/admin/link/{link}")
    await log_in(stranger, known, "a guess that is wrong")
    await log_in(stranger, known)
    lines = "\n".join(
        f"{each.getMessage()} {vars(each)}" for each in caplog.records if each.name.startswith("penstock")
    )
    assert "/admin/link/{token}" in lines
    for secret in (link, PASSWORD, "a guess", stranger.cookies["__Host-penstock-session"]):
        assert secret not in lines


async def test_the_log_of_acts_says_who_came(stranger: Browser, known: str, engine: AsyncEngine) -> None:
    await log_in(stranger, known)
    async with engine.connect() as conn:
        acts = (await conn.execute(text("SELECT actor, action, detail FROM audit_log ORDER BY id DESC LIMIT 1"))).one()
    assert tuple(acts) == ("operator:ada", "operator.login", {"by": "password"})


def test_over_plain_http_only_where_it_is_asked_for(settings: Settings) -> None:
    assert cookie_name(settings).startswith("__Host-")
    assert not cookie_name(settings.model_copy(update={"dashboard_insecure_cookie": True})).startswith("__Host-")


async def test_a_log_in_with_a_password_that_is_changed_meanwhile_opens_no_session(
    stranger: Browser, known: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had read the old hash, and while that was compared every session was ended, but for the one that it then opened."""
    looked_at = passwords._is_right

    async def while_it_is_looked_at(stored: str | None, given: str) -> bool:
        right = await looked_at(stored, given)
        async with engine.begin() as conn:
            person = await people.read_person(conn, known)
            await people.set_password(conn, person.id, await passwords.hashed("five rivers meet"), actor="test")
        return right

    for _ in range(3):
        await log_in(stranger, known, "a guess that is wrong")
    monkeypatch.setattr(passwords, "_is_right", while_it_is_looked_at)
    answer = await log_in(stranger, known)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM operator_sessions")) == 0
        counted = text("SELECT failures FROM login_failures WHERE subject = 'account:ada'")
        assert await conn.scalar(counted) == 4  # nothing was forgiven


async def test_a_password_that_is_changed_meanwhile_is_not_changed_by_who_knew_the_old_one(
    stranger: Browser, known: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log_in(stranger, known)
    stranger.csrf = csrf_of(stranger.cookies["__Host-penstock-session"])
    hashed = passwords.hashed

    async def while_it_is_hashed(password: str) -> str:
        async with engine.begin() as conn:
            person = await people.read_person(conn, known)
            await people.set_password(conn, person.id, await hashed("five rivers meet"), actor="test")
        return await hashed(password)

    monkeypatch.setattr(passwords, "hashed", while_it_is_hashed)
    thieves = "six rivers meet now"
    answer = await stranger.act("/admin/account/password", current=PASSWORD, password=thieves, again=thieves)
    assert answer.headers["location"].startswith("/admin/login")
    assert (await log_in(stranger, known, thieves)).status_code == 401
    assert (await log_in(stranger, known, "five rivers meet")).status_code == 303


async def test_an_operator_who_is_disabled_meanwhile_gets_no_session(
    stranger: Browser, known: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = passwords._is_right

    async def while_it_is_looked_at(stored: str | None, given: str) -> bool:
        async with engine.begin() as conn:
            await people.disable_person(conn, known, actor="test")
        return await looked_at(stored, given)

    monkeypatch.setattr(passwords, "_is_right", while_it_is_looked_at)
    assert (await log_in(stranger, known)).status_code == 401


async def test_guesses_from_one_ipv6_network_are_counted_together(app: FastAPI, engine: AsyncEngine) -> None:
    """40 guesses at 40 names from 40 addresses of a /64 were all looked at."""
    await failed_before(engine, "address:2001:db8:1:2::/64", throttle.BY_ADDRESS.free + 5)
    for host, expected in (("2001:db8:1:2::7", 401), ("2001:db8:1:2:ffff::8", 429), ("2001:db8:1:3::7", 401)):
        transport = httpx.ASGITransport(app, client=(host, 1))
        async with httpx.AsyncClient(transport=transport, base_url=HOST, headers={"Origin": HOST}) as client:
            answer = await client.post("/admin/login", data={"name": f"nobody-{host}", "password": "a guess"})
            assert answer.status_code == expected, host


async def test_who_guesses_much_fills_no_queue_without_an_end(
    app: FastAPI, stranger: Browser, engine: AsyncEngine, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right log-in waited behind 40 guesses for a minute; so did who chose a password."""
    looked_at, may_go_on = passwords._is_right, asyncio.Event()
    turns = passwords._turns()

    async def slowly(stored: str | None, given: str) -> bool:
        await may_go_on.wait()
        return await looked_at(stored, given)

    async def guess(host: str, name: str = "nobody") -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(host, 1))
        async with httpx.AsyncClient(transport=transport, base_url=HOST, headers={"Origin": HOST}) as client:
            return await client.post("/admin/login", data={"name": name, "password": "a guess"})

    async def until_there_are(count: int) -> None:
        async with asyncio.timeout(30):
            while turns.guesses.total() < count:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(passwords, "_is_right", slowly)
    most, most_of_one = passwords.MOST_GUESSES, passwords.MOST_GUESSES_OF_ONE
    guesses = [asyncio.create_task(guess("192.0.2.1", f"one-{i}")) for i in range(most_of_one)]
    await until_there_are(most_of_one)
    refused = await guess("192.0.2.1")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) == passwords.BUSY_RETRY_S
    guesses += [asyncio.create_task(guess(f"198.51.100.{i}", f"many-{i}")) for i in range(most - most_of_one)]
    await until_there_are(most)
    assert (await guess("203.0.113.1")).status_code == 503
    async with engine.connect() as conn:
        counted = text("SELECT count(*) FROM login_failures WHERE subject IN ('address:203.0.113.1', 'account:nobody')")
        assert await conn.scalar(counted) == 0
    chosen = await stranger.post(f"/admin/link/{link}", data={"password": PASSWORD, "again": PASSWORD})
    assert chosen.status_code == 303  # passes them all
    may_go_on.set()
    assert {each.status_code for each in await asyncio.gather(*guesses)} == {401}
    assert not turns.guesses


async def test_a_log_in_that_failed_can_be_attributed(
    stranger: Browser, known: str, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    await log_in(stranger, known, "a guess that is wrong")
    await log_in(stranger, "typed my password here", "a guess that is wrong")
    said = [vars(each) for each in caplog.records if each.getMessage() == "dashboard.login_refused"]
    assert [(each["fields"]["operator"], each["fields"]["address"]) for each in said] == [
        (known, "127.0.0.1"),
        (None, "127.0.0.1"),
    ]
    async with engine.connect() as conn:
        acts = await conn.execute(text("SELECT actor, target FROM audit_log WHERE action = 'operator.login_refused'"))
        assert [tuple(each) for each in acts] == [("address:127.0.0.1", known)]


@pytest.mark.parametrize("path", ["/admin/login", "/admin/link/{link}"])
async def test_over_plain_http_it_is_said_what_is_wrong_before_the_link_is_used_up(
    app: FastAPI, stranger: Browser, link: str, path: str, settings: Settings
) -> None:
    """Browsers drop the cookie there: the log-in page came back without a word, and the link was used up."""
    path = path.format(link=link)
    form = {"name": "owner", "password": PASSWORD, "again": PASSWORD}

    async def ask(url: str, **headers: str) -> set[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url, headers=headers) as client:
            shown = await client.get(path)
            if shown.status_code == 403:
                assert "PENSTOCK_DASHBOARD_INSECURE_COOKIE" in shown.text
                sent = await client.post(path, data=form, headers={"Origin": url})
                assert "Host" in headers or "PENSTOCK_DASHBOARD_INSECURE_COOKIE" in sent.text
                assert "set-cookie" not in sent.headers
                return {shown.status_code, sent.status_code}
            return {shown.status_code}

    for url in ("http://penstock.test", "http://10.1.2.3:8000", "http://0.0.0.0:8000", "http://localhost.test"):
        assert await ask(url) == {403}
    for url in ("http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000", "http://x.localhost", HOST):
        assert await ask(url) == {200}
    assert await ask("http://penstock.test", Host="[") == {403}
    assert await ask("http://penstock.test", Host="penstock.test:99999") == {403}
    # A proxy that speaks TLS, of which uvicorn was told nothing: the browser says so itself, or the proxy does.
    assert await ask("http://penstock.test", **{"Sec-Fetch-Site": "none"}) == {200}
    assert await ask("http://penstock.test", **{"X-Forwarded-Proto": "https"}) == {200}
    for change in ({"dashboard_insecure_cookie": True}, {"dashboard_url": "https://penstock.example.com"}):
        app.state.runtime.settings = settings.model_copy(update=change)
        assert await ask("http://penstock.test") == {200}
    app.state.runtime.settings = settings
    assert (await stranger.get(f"/admin/link/{link}")).status_code == 200  # nothing was used up
