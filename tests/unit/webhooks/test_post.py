"""To whom does a delivery think that it speaks?"""

import ipaddress
import ssl

import httpx
import pytest

from workers.webhooks.post import PinnedTransport


@pytest.mark.parametrize("host", ["xn--strae-oqa.de", "hooks.example.com"])
async def test_the_name_in_sni_is_the_one_of_the_address(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ssl` would make strasse.de of the letters that xn--strae-oqa.de stands for: another domain."""
    sent: list[httpx.Request] = []

    async def keep(_: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", keep)
    transport = PinnedTransport(ipaddress.ip_address("93.184.216.34"), ssl.create_default_context())
    await transport.handle_async_request(httpx.Request("POST", httpx.URL(scheme="https", host=host, path="/")))
    assert sent[0].extensions["sni_hostname"] == host
    assert sent[0].url.host == "93.184.216.34"
    assert sent[0].headers["host"] == host
