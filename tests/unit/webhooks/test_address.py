"""Which targets of webhooks are refused, whatever way an inner address is written?"""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.webhooks.address import DENIED_IPV4, AddressRefused, check_url, is_allowed, parse_url, resolve

HOSTILE = [
    # IPv4, in all notations that some resolver reads
    "https://127.0.0.1/",
    "https://127.1/",
    "https://127.0.0.1./",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0x0.0x0.0x1/",
    "https://0x7F.1/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://100.64.0.1/",
    "https://100.100.100.200/",
    "https://169.254.169.254/latest/meta-data/",
    "https://2852039166/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.0.0.192/",
    "https://192.0.2.1/",
    "https://192.88.99.1/",
    "https://192.168.1.1/",
    "https://198.18.0.1/",
    "https://198.51.100.1/",
    "https://203.0.113.1/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    "https://168.63.129.16/",
    "https://1.2.3/",
    "https://1.2.3.4.5/",
    "https://1.2.3.999/",
    "https://example.0x10/",
    # IPv6, and IPv4 inside of it
    "https://[::]/",
    "https://[::1]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::ffff:8.8.8.8]/",
    "https://[::127.0.0.1]/",
    "https://[::ffff:0:127.0.0.1]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[64:ff9b::8.8.8.8]/",
    "https://[64:ff9b:1::a00:1]/",
    "https://[2002:a9fe:a9fe::1]/",
    "https://[2002:808:808::1]/",
    "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "https://[2001:2::1]/",
    "https://[2001:10::1]/",
    "https://[2001:db8::1]/",
    "https://[3fff::1]/",
    "https://[3ffe::1]/",
    "https://[2600::5efe:7f00:1]/",
    "https://[2600::200:5efe:a00:1]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[2600::1%eth0]/",
    "https://[fec0::1]/",
    "https://[ff02::1]/",
    "https://[100::1]/",
    "https://[5f00::1]/",
    "https://[4000::1]/",
    "https://[v1.fe80::1]/",
    "https://[127.0.0.1]/",
    "https://[example.com]/",
    "https://[::1/",
    "https://[::1]evil.example/",
    # names
    "https://localhost/",
    "https://LOCALHOST/",
    "https://localhost./",
    "https://a.localhost/",
    "https://metadata/",
    "https://metadata.google.internal/",
    "https://printer.local/",
    "https://nas.home.arpa/",
    "https://exa mple.com/",
    "https://-example.com/",
    "https://example..com/",
    "https://.example.com/",
    "https://%6cocalhost/",
    "https://ⓛocalhost.com/",
    "https://１２７.0.0.1/",
    "https://127。0。0。1/",
    "https://exämple.com/",
    f"https://{'a' * 64}.com/",
    f"https://{'a.' * 127}com/",
    # user names, ports, schemes, tricks of parsers
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://example.com@127.0.0.1/",
    "https://@example.com/",
    "https://example.com:0/",
    "https://example.com:22/",
    "https://example.com:25/",
    "https://example.com:6667/",
    "https://example.com:65536/",
    "https://example.com:-1/",
    "https://example.com:443x/",
    "https://example.com:/",
    "http://example.com/",
    "http://127.0.0.1/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "javascript:alert(1)",
    "//example.com/",
    "example.com",
    "https:example.com",
    "https:/example.com",
    "https:///example.com/",
    "https://",
    "",
    "https://example.com\\@127.0.0.1/",
    "https:\\\\example.com",
    "https://example.com/\r\nHost: inner",
    "https://example.com/\t",
    " https://example.com/",
    "https://example.com/a b",
    "https://example.com/#fragment",
    "https://example.com/\x00",
    "https://127.0.0.1#@example.com/",
    "https://127.0.0.1?@example.com/",
    f"https://example.com/{'a' * 2048}",
]
# The only ones of them that development allows.
LOOPBACK = {"https://127.0.0.1/", "https://127.0.0.1./", "https://[::1]/", "https://[0:0:0:0:0:0:0:1]/", "http://127.0.0.1/"} | {
    "https://localhost/",
    "https://LOCALHOST/",
    "https://localhost./",
    "https://a.localhost/",
}  # fmt: skip


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_url_is_refused_at_submission(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_url(url, allow_local=False)
    assert refused.value.extra["param"] == "webhook.url"
    assert refused.value.detail.startswith("webhook.url ")


@pytest.mark.parametrize("url", [url for url in HOSTILE if url not in LOOPBACK and "@example" not in url])
def test_development_allows_loopback_and_nothing_else(url: str) -> None:
    with pytest.raises(InvalidRequest):
        check_url(url, allow_local=True)


@pytest.mark.parametrize(
    "url", [*sorted(LOOPBACK), "http://localhost:8080/hook", "http://[::1]:8080/", "http://127.8.9.1:1024/"]
)
def test_development_allows_the_local_host(url: str) -> None:
    check_url(url, allow_local=True)


@pytest.mark.parametrize(
    ("url", "host", "port", "resource", "authority"),
    [
        ("https://example.com", "example.com", 443, "/", "example.com"),
        (
            "HTTPS://Hooks.Example.COM/a%20b?q=1&r=%2F",
            "hooks.example.com",
            443,
            "/a%20b?q=1&r=%2F",
            "hooks.example.com",
        ),
        ("https://example.com:443/", "example.com", 443, "/", "example.com"),
        ("https://example.com:8443/x", "example.com", 8443, "/x", "example.com:8443"),
        ("https://example.com.", "example.com", 443, "/", "example.com"),
        ("https://xn--exmple-cua.com/?", "xn--exmple-cua.com", 443, "/", "xn--exmple-cua.com"),
        ("https://my_hooks.example.com//a/../b", "my_hooks.example.com", 443, "//a/../b", "my_hooks.example.com"),
        ("https://8.8.8.8/", "8.8.8.8", 443, "/", "8.8.8.8"),
        ("https://[2606:4700:4700:0:0::1111]:8443/", "2606:4700:4700::1111", 8443, "/", "[2606:4700:4700::1111]:8443"),
        ("https://example.com/@user:1", "example.com", 443, "/@user:1", "example.com"),
    ],
)
def test_a_public_url_passes_and_is_taken_apart(url: str, host: str, port: int, resource: str, authority: str) -> None:
    target = parse_url(url, allow_local=False)
    assert (target.host, target.port, target.resource, target.authority) == (host, port, resource, authority)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "192.0.1.1", "2606:4700:4700::1111", "2a00:1450::1"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(ip_address(address), allow_local=False)


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_is_allowed_that_the_standard_library_calls_private(address) -> None:
    if is_allowed(address, allow_local=False):
        assert address.is_global
        assert not address.is_multicast


@given(st.sampled_from(DENIED_IPV4).flatmap(lambda network: st.ip_addresses(network=network)))
def test_a_denied_ipv4_address_is_denied_in_each_embedding(address) -> None:
    number = int(address)
    assert not is_allowed(address, allow_local=False)
    for embedded in (
        number,  # compatible
        0xFFFF << 32 | number,  # mapped
        0xFFFF << 48 | number,  # translated (SIIT)
        0x64FF9B << 96 | number,  # NAT64
        0x2002 << 112 | number << 80 | 1,  # 6to4
        0x2001_0000 << 96 | number ^ 0xFFFF_FFFF,  # Teredo
        0x2600 << 112 | 0x5EFE << 32 | number,  # ISATAP
    ):
        assert not is_allowed(ip_address(embedded.to_bytes(16)), allow_local=False)


class FakeResolver:
    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def __call__(self, host: str, port: int) -> list[str]:
        return self.answers.pop(0)


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["8.8.8.8", "::1"],
        ["2606:4700::1111", "::ffff:10.0.0.1"],
        ["2606:4700::1111", "fe80::1%eth0"],
        ["64:ff9b::a9fe:a9fe"],
        ["8.8.8.8", "169.254.169.254"],
        [],
        ["no address"],
    ],
)
async def test_one_bad_address_spoils_the_answer(answer: list[str]) -> None:
    with pytest.raises(AddressRefused):
        await resolve("example.com", 443, allow_local=False, resolver=FakeResolver(answer))


async def test_a_name_is_looked_up_once() -> None:
    """Rebinding: a first answer to pass the check, a second one to connect to."""
    resolver = FakeResolver(["8.8.8.8", "1.1.1.1"], ["127.0.0.1"])
    assert await resolve("example.com", 443, allow_local=False, resolver=resolver) == ip_address("8.8.8.8")
    assert resolver.answers == [["127.0.0.1"]]


async def test_an_address_isnt_looked_up() -> None:
    assert await resolve("8.8.8.8", 443, allow_local=False, resolver=FakeResolver()) == ip_address("8.8.8.8")
    with pytest.raises(AddressRefused):
        await resolve("10.0.0.1", 443, allow_local=False, resolver=FakeResolver())


async def test_development_allows_answers_with_loopback_only_in_addition() -> None:
    local = FakeResolver(["127.0.0.1", "::1"], ["127.0.0.1", "10.0.0.1"])
    assert await resolve("localhost", 80, allow_local=True, resolver=local) == ip_address("127.0.0.1")
    with pytest.raises(AddressRefused):
        await resolve("localhost", 80, allow_local=True, resolver=local)


async def test_a_name_that_doesnt_resolve_is_an_ordinary_refusal() -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(AddressRefused, match="doesn't resolve"):
        await resolve("example.com", 443, allow_local=False, resolver=nowhere)
