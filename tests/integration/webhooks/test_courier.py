"""What does a receiver get, and what becomes of the delivery by its answer? Real sockets, a real Postgres."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from random import Random
from time import time
from uuid import UUID

import httpx
import pytest
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.errors import Misconfigured
from app.settings import Settings
from app.webhooks.nominate import Nomination
from app.webhooks.retries import MAX_TRIES
from tests.support.receiver import Receiver, answer, receiver
from tests.support.webhooks import DATA, first, notify, now, pass_time, secret, state, tries, webhook_id
from workers.webhooks import post
from workers.webhooks.courier import Courier

CERTIFICATE = Path(__file__).with_name("hooks.example.test.pem")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_local": True, "webhook_timeout_s": 5.0, "webhook_lease_s": 10.0})


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    async with receiver() as it:
        yield it


def courier(settings: Settings, engine: AsyncEngine, **options: object) -> Courier:
    return Courier(settings, SystemClock(), engine, Random(0), **options)


async def delivered(settings: Settings, engine: AsyncEngine, url: str, **options: object) -> Row:
    """The row after the first try."""
    (one,) = await notify(engine, url)
    await courier(settings, engine, **options).deliver(first(one))
    return await state(engine, one)


async def complaint(engine: AsyncEngine, one: UUID) -> str:
    return (await tries(engine, one))[-1].error


async def test_a_delivery_arrives_as_standard_webhooks_says(
    settings: Settings, engine: AsyncEngine, server: Receiver
) -> None:
    row = await delivered(settings, engine, server.url("/hook/%7Ea?b=c&d=%20"))
    assert (row.status, row.tries, row.leased_until) == ("delivered", 1, None)
    (got,) = server.received
    assert got.path == "/hook/%7Ea?b=c&d=%20"
    assert got.body == row.body
    assert json.loads(got.body) == {
        "id": f"evt_{row.event_id.hex}",
        "object": "event",
        "type": "job.succeeded",
        "created_at": "2026-01-01T00:00:00Z",
        "data": DATA,
    }
    key = base64.b64decode((await secret(engine)).removeprefix("whsec_"))
    signed = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
    wanted = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert got.headers["webhook-signature"] == f"v1,{wanted}"
    assert got.headers["webhook-id"] == f"evt_{row.event_id.hex}"
    assert abs(int(got.headers["webhook-timestamp"]) - time()) < 10
    assert got.headers["content-type"] == "application/json"
    assert got.headers["host"] == f"127.0.0.1:{server.port}"
    assert "authorization" not in got.headers
    assert "cookie" not in got.headers
    (made,) = await tries(engine, row.id)
    assert (made.number, made.http_status, made.error) == (1, 204, None)
    assert made.duration_ms >= 0


ANSWERS = [
    ("200 OK", [], "delivered", None),
    ("202 Accepted", ["Content-Encoding: gzip"], "delivered", None),
    ("500 Internal Server Error", [], "pending", 5),
    ("404 Not Found", [], "pending", 5),
    ("429 Too Many Requests", ["Retry-After: 120"], "pending", 120),
    ("503 Service Unavailable", ["Retry-After: 2"], "pending", 5),
    ("503 Service Unavailable", ["Retry-After: 99999999"], "pending", 86_400),
    ("301 Moved Permanently", ["Location: /elsewhere"], "pending", 5),
    ("307 Temporary Redirect", ["Location: /elsewhere"], "pending", 5),
    ("410 Gone", [], "failed", None),
]


async def test_the_answer_decides(settings: Settings, engine: AsyncEngine, server: Receiver) -> None:
    for n, (status, headers, _, _) in enumerate(ANSWERS):
        server.answers[f"/{n}"] = answer(status, *headers, body=b"whatever")
    ids = await notify(engine, *(server.url(f"/{n}") for n in range(len(ANSWERS))))
    it, before = courier(settings, engine), await now(engine)
    await asyncio.gather(*(it.deliver(first(one)) for one in ids))
    after = await now(engine)
    for one, (status, headers, outcome, wait_s) in zip(ids, ANSWERS, strict=True):
        row = await state(engine, one)
        assert row.status == outcome, (status, headers)
        if wait_s is not None:
            assert before + timedelta(seconds=wait_s) <= row.next_try_at <= after + timedelta(seconds=wait_s * 1.1)
        (made,) = await tries(engine, one)
        assert made.http_status == int(status[:3])
        assert (made.error is None) == (outcome == "delivered")
    assert sorted(each.path for each in server.received) == sorted(server.answers)  # no redirect was followed


async def test_all_tries_carry_one_id_until_the_schedule_ends(
    settings: Settings, engine: AsyncEngine, server: Receiver
) -> None:
    server.answers["/"] = answer("500 Internal Server Error")
    (one,) = await notify(engine, server.url())
    it = courier(settings, engine)
    for number in range(1, MAX_TRIES + 1):
        assert (await state(engine, one)).status == "pending"
        await it.deliver(Nomination(one, number))
        await pass_time(engine, 200_000)
    row = await state(engine, one)
    assert (row.status, row.tries) == ("failed", MAX_TRIES)
    assert {each.headers["webhook-id"] for each in server.received} == {await webhook_id(engine, one)}
    assert len({each.body for each in server.received}) == 1
    assert len(server.received) == len(await tries(engine, one)) == MAX_TRIES


async def test_an_endpoint_that_hangs_costs_the_timeout(
    settings: Settings, engine: AsyncEngine, server: Receiver
) -> None:
    server.hold.add("/")
    row = await delivered(settings.model_copy(update={"webhook_timeout_s": 0.3}), engine, server.url())
    assert row.status == "pending"
    (made,) = await tries(engine, row.id)
    assert made.http_status is None
    assert made.error == "no answer within 0.3 s"
    assert 300 <= made.duration_ms < 3000


async def test_a_status_that_came_in_time_counts_whenever_its_body_ends(
    settings: Settings, engine: AsyncEngine, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time was up while the body was waited for: what was accepted was sent again."""
    server.answers["/"] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    server.unended.add("/")
    monkeypatch.setattr(post, "FAREWELL_S", 60.0)
    for timeout_s in (0.5, 5.0):  # where this process is held up, the status itself comes late
        row = await delivered(settings.model_copy(update={"webhook_timeout_s": timeout_s}), engine, server.url())
        if row.status == "delivered":
            break
    assert row.status == "delivered"


async def test_of_an_endless_answer_little_is_read(settings: Settings, engine: AsyncEngine, server: Receiver) -> None:
    server.answers["/"] = b"HTTP/1.1 200 OK\r\n\r\n"
    server.endless.add("/")
    assert (await delivered(settings, engine, server.url())).status == "delivered"
    assert server.sent_bytes < 32 * 2**20  # what fits into the sockets' buffers


async def test_endless_headers_are_an_error(settings: Settings, engine: AsyncEngine, server: Receiver) -> None:
    server.answers["/"] = b"HTTP/1.1 200 OK\r\nX-Much: "
    server.endless.add("/")
    row = await delivered(settings, engine, server.url())
    assert row.status == "pending"
    assert "the connection failed" in await complaint(engine, row.id)


async def test_an_endpoint_that_dies_in_mid_answer_has_said_what_it_has_said(
    settings: Settings, engine: AsyncEngine, server: Receiver
) -> None:
    cut = {
        b"": "pending",
        b"HTTP/1.1 200": "pending",
        b"no HTTP at all\r\n\r\n": "pending",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf": "delivered",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\nhalf": "pending",
    }
    server.answers = {f"/{n}": sent for n, sent in enumerate(cut)}
    server.half.update(server.answers)
    ids = await notify(engine, *map(server.url, server.answers))
    it = courier(settings, engine)
    for one, (sent, outcome) in zip(ids, cut.items(), strict=True):
        await it.deliver(first(one))
        assert (await state(engine, one)).status == outcome, sent


async def test_nobody_listens(settings: Settings, engine: AsyncEngine) -> None:
    async with receiver() as gone:
        url = gone.url()
    row = await delivered(settings, engine, url)
    assert row.status == "pending"
    assert "the connection failed" in await complaint(engine, row.id)


async def test_proxies_of_the_environment_get_nothing(
    settings: Settings, engine: AsyncEngine, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiver() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url())
        assert (await delivered(settings, engine, server.url())).status == "delivered"
        assert proxy.received == []


async def test_a_name_that_points_inside_is_never_called(
    settings: Settings, engine: AsyncEngine, server: Receiver
) -> None:
    async def rebound(host: str, port: int) -> list[str]:
        return ["93.184.215.14", "127.0.0.1"]

    strict = settings.model_copy(update={"webhook_allow_local": False})
    row = await delivered(strict, engine, server.url("/", host="hooks.example.test", scheme="https"), resolver=rebound)
    assert row.status == "pending"
    assert await complaint(engine, row.id) == "the host resolves to an address that isn't public"
    assert server.received == []


async def test_a_url_that_was_allowed_once_is_refused_now(
    settings: Settings, engine: AsyncEngine, server: Receiver
) -> None:
    """A database that was filled in development, or before the rules were tightened."""
    row = await delivered(settings.model_copy(update={"webhook_allow_local": False}), engine, server.url())
    assert row.status == "pending"
    assert "must start with https://" in await complaint(engine, row.id)
    assert server.received == []


async def test_a_look_up_that_hangs_costs_the_timeout(settings: Settings, engine: AsyncEngine) -> None:
    async def hangs(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    quick = settings.model_copy(update={"webhook_timeout_s": 0.2})
    row = await delivered(quick, engine, "https://hooks.example.test/", resolver=hangs)
    assert await complaint(engine, row.id) == "no answer within 0.2 s"


@pytest.mark.parametrize("name", ["hooks.example.test", "other.example.test"])
async def test_the_checked_address_is_called_under_the_asked_name(
    settings: Settings, engine: AsyncEngine, name: str
) -> None:
    """The name stands in SNI and Host, the certificate must fit it, and nobody looks it up a second time."""
    looked_up: list[str] = []
    asked_for: list[str | None] = []

    async def resolver(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    def sni(_: ssl.SSLObject, asked: str | None, __: ssl.SSLContext) -> None:
        asked_for.append(asked)

    certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.load_cert_chain(CERTIFICATE)
    certificate.sni_callback = sni
    trust = ssl.create_default_context(cafile=CERTIFICATE)
    async with receiver(certificate) as server:
        url = server.url("/tls", host=name, scheme="https")
        row = await delivered(settings, engine, url, resolver=resolver, verify=trust)
        assert looked_up == [name]
        assert asked_for == [name]
        if name == "hooks.example.test":
            assert row.status == "delivered"
            assert [each.headers["host"] for each in server.received] == [f"{name}:{server.port}"]
        else:
            assert row.status == "pending"
            assert "CERTIFICATE_VERIFY_FAILED" in await complaint(engine, row.id)
            assert server.received == []


async def test_a_certificate_that_nobody_knows_is_refused(settings: Settings, engine: AsyncEngine) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.load_cert_chain(CERTIFICATE)
    async with receiver(certificate) as server:
        url = server.url("/", host="hooks.example.test", scheme="https")
        assert (await delivered(settings, engine, url, resolver=resolver)).status == "pending"
        assert server.received == []


async def test_the_same_nomination_twice_at_once_is_one_post(
    settings: Settings, engine: AsyncEngine, server: Receiver
) -> None:
    (one,) = await notify(engine, server.url())
    a, b = courier(settings, engine), courier(settings, engine)
    await asyncio.gather(*(each.deliver(first(one)) for each in (a, b, a, b)))
    assert len(server.received) == 1
    assert len(await tries(engine, one)) == 1


async def test_a_lease_must_outlast_a_try(settings: Settings, engine: AsyncEngine) -> None:
    with pytest.raises(Misconfigured):
        courier(settings.model_copy(update={"webhook_lease_s": 5.0}), engine)


@pytest.mark.parametrize("host", ["xn--ls8h.example.com", "xn--a.example.com", "xn--zzzzzz99999.com"])
async def test_a_name_that_resolves_but_is_none_for_the_http_client_is_a_failed_try(
    settings: Settings, engine: AsyncEngine, host: str
) -> None:
    """Its error is no HTTPError: the try was lost with it, and begun again every lease."""

    async def public(host: str, port: int) -> list[str]:
        return ["93.184.215.14"]

    (one,) = await notify(engine, f"https://{host}/hook")
    await courier(settings, engine, resolver=public).deliver(first(one))
    row = await state(engine, one)
    assert (row.status, row.tries, row.leased_until) == ("pending", 1, None)
    assert "the host isn't a valid name" in await complaint(engine, one)


async def test_an_url_that_the_http_client_refuses_is_a_failed_try(
    settings: Settings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: object, **__: object) -> None:
        raise httpx.InvalidURL("URL too long")

    monkeypatch.setattr("workers.webhooks.courier.post", refuses)
    (one,) = await notify(engine, "http://127.0.0.1:9999/")
    await courier(settings, engine).deliver(first(one))
    assert (await state(engine, one)).leased_until is None
    assert "URL too long" in await complaint(engine, one)


async def test_the_beginning_of_an_answer_that_refuses_is_kept_for_operators(
    settings: Settings, engine: AsyncEngine, server: Receiver
) -> None:
    server.answers["/no"] = answer("500 Oh No", body=b"line one\r\n\x00\xff\t" + b"x" * 5000)
    row = await delivered(settings, engine, server.url("/no"))
    (made,) = await tries(engine, row.id)
    assert made.excerpt.startswith("line one \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} xxx")
    assert len(made.excerpt) == 200
    server.answers["/yes"] = answer("200 OK", body=b"thanks")
    row = await delivered(settings, engine, server.url("/yes"))
    assert [each.excerpt for each in await tries(engine, row.id)] == [None]
