"""Can a tenant make us call what isn't public? Hostile URLs through the whole courier, each with a DNS answer of our own."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import SystemClock
from app.settings import Settings
from app.webhooks.address import Address, Target
from tests.support.webhooks import first, notify, state, tries
from workers.webhooks import courier as courier_module
from workers.webhooks.courier import Courier
from workers.webhooks.post import Response

PUBLIC = "93.184.215.14"
NAMED = "https://hooks.example.com/"
# URL, and what its name resolves to. Without an answer the URL alone must be enough.
HOSTILE: list[tuple[str, Sequence[str]]] = [
    # IPv4 in all notations
    *((f"https://{host}/", ()) for host in (
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "0x7f.1", "0", "0.0.0.0",
        "127.0.0.1.", "169.254.169.254", "2852039166", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "168.63.129.16",
    )),
    # IPv6, and IPv4 within
    *((f"https://[{host}]/", ()) for host in (
        "::1", "::", "::ffff:127.0.0.1", "::ffff:7f00:1", "::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1",
        "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2600::5efe:7f00:1", "fc00::1", "fe80::1",
        "fe80::1%25eth0", "ff02::1", "fec0::1",
    )),
    # user names, ports, schemes, names of inner networks
    *((url, [PUBLIC]) for url in (
        "https://hooks.example.com@127.0.0.1/", "https://user:pw@hooks.example.com/", "https://hooks.example.com:22/",
        "https://hooks.example.com:6379/\r\nSET x y", "https://hooks.example.com:0/", "https://hooks.example.com:6667/",
        "http://hooks.example.com/", "file:///etc/passwd", "gopher://hooks.example.com/", "https://localhost/",
        "https://metadata.google.internal/", "https://redis/", "https://printer.local/", "https://hooks.example.com\\@10.0.0.1/",
        "https://127.0.0.1#@hooks.example.com/", "https://exämple.com/",
    )),
    # names that lead inside: every record counts
    *((NAMED, answers) for answers in (
        ["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], [PUBLIC, "10.0.0.1"], ["10.0.0.1", PUBLIC], ["::1"],
        ["::ffff:169.254.169.254"], ["64:ff9b::a9fe:a9fe"], ["2002:7f00:1::1"], ["2606:4700::1111", "fd00::1"],
        ["fe80::1%eth0"], ["0.0.0.0"], ["100.100.100.200"], ["224.0.0.1"], [], ["nonsense"],
    )),
]  # fmt: skip


@dataclass
class Dns:
    """Our own answers, in turn; the last one stays."""

    answers: list[Sequence[str]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Address]:
    """The addresses that a connection was made to: none is, in truth."""
    found: list[Address] = []

    async def post(target: Target, address: Address, *_: Any, **__: Any) -> Response:
        found.append(address)
        return Response(204, None)

    monkeypatch.setattr(courier_module, "post", post)
    return found


async def deliver(settings: Settings, engine: AsyncEngine, one: UUID, dns: Dns) -> None:
    await Courier(settings, SystemClock(), engine, Random(0), resolver=dns).deliver(first(one))


async def test_no_hostile_url_is_ever_connected_to(
    settings: Settings, engine: AsyncEngine, connected: list[Address], subtests: pytest.Subtests
) -> None:
    """Rows are written as if the check at the door had been passed by: the courier has one of its own."""
    assert len(HOSTILE) >= 40
    ids = await notify(engine, *(url for url, _ in HOSTILE))
    servers = [Dns([answers]) for _, answers in HOSTILE]
    await asyncio.gather(*(deliver(settings, engine, one, dns) for one, dns in zip(ids, servers, strict=True)))
    for one, (url, answers) in zip(ids, HOSTILE, strict=True):
        with subtests.test(url=url, answers=answers):
            (made,) = await tries(engine, one)
            assert made.http_status is None
            assert made.error
            assert (await state(engine, one)).status == "pending"
    assert connected == []


async def test_a_name_that_is_rebound_is_called_where_it_was_checked(
    settings: Settings, engine: AsyncEngine, connected: list[Address]
) -> None:
    """A public answer for the check, an inner one for the connection: there is no second look-up. The next try looks anew, and refuses."""
    dns = Dns([[PUBLIC], ["127.0.0.1"]])
    one, other = await notify(engine, NAMED, NAMED)
    await deliver(settings, engine, one, dns)
    assert [str(each) for each in connected] == [PUBLIC]
    assert dns.asked == ["hooks.example.com"]
    assert (await state(engine, one)).status == "delivered"
    await deliver(settings, engine, other, dns)
    assert len(connected) == 1
    (made,) = await tries(engine, other)
    assert made.error == "the host resolves to an address that isn't public"
